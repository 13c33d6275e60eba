package console

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/intention"
)

// transparentMode is the mode of proxies that applications are sent through without knowing.
const transparentMode = "transparent"

// externalSource is the key of metadata that says what registered something.
const externalSource = "external-source"

// A Summarizer makes summaries of services from their instances.
type Summarizer struct {
	datacenter string
	byName     map[string]*tally // by the lower-case form of the name
}

// NewSummarizer returns a summarizer for a datacenter.
func NewSummarizer(datacenter string) *Summarizer {
	return &Summarizer{datacenter: datacenter, byName: map[string]*tally{}}
}

// A tally is a summary in the making.
type tally struct {
	Summary
	tags, nodes, sources map[string]bool
	checks               map[checkKey]bool
	proxies, transparent int
}

type checkKey struct{ node, id string }

func (s *Summarizer) tally(name string) *tally {
	key := strings.ToLower(name)
	t := s.byName[key]
	if t == nil {
		t = &tally{
			Summary: Summary{Name: name, Datacenter: s.datacenter},
			tags:    map[string]bool{}, nodes: map[string]bool{}, sources: map[string]bool{}, checks: map[checkKey]bool{},
		}
		s.byName[key] = t
	}
	return t
}

// Add counts an instance. That of a proxy counts for its destination too.
func (s *Summarizer) Add(i *catalog.Instance) {
	svc := i.Service
	t := s.tally(svc.Service)
	t.Name, t.Kind = svc.Service, svc.Kind
	t.InstanceCount++
	t.nodes[i.Node.Node] = true
	for _, tag := range svc.Tags {
		t.tags[tag] = true
	}
	if from := svc.Meta[externalSource]; from != "" {
		t.sources[from] = true
	}
	t.ConnectNative = t.ConnectNative || svc.Connect.Native
	t.PeerName = svc.PeerName
	t.count(i.Checks)
	if svc.Kind == catalog.KindConnectProxy {
		d := s.tally(svc.Proxy.DestinationServiceName)
		d.proxies++
		if svc.Proxy.Mode == transparentMode {
			d.transparent++
		}
		d.count(i.Checks)
	}
}

func (t *tally) count(checks []*catalog.Check) {
	for _, c := range checks {
		key := checkKey{c.Node, c.CheckID}
		if t.checks[key] {
			continue
		}
		t.checks[key] = true
		switch c.Status {
		case catalog.Passing:
			t.ChecksPassing++
		case catalog.Warning:
			t.ChecksWarning++
		default:
			t.ChecksCritical++
		}
	}
}

// Proxied reports whether a proxy was added that has the service as its destination.
func (s *Summarizer) Proxied(name string) bool {
	t := s.byName[strings.ToLower(name)]
	return t != nil && t.proxies > 0
}

// Summary returns the summary of a service, nil when none of its own instances was added.
func (s *Summarizer) Summary(name string) *Summary {
	t := s.byName[strings.ToLower(name)]
	if t == nil || t.InstanceCount == 0 {
		return nil
	}
	sum := t.Summary
	sum.Tags, sum.Nodes, sum.ExternalSources = sorted(t.tags), sorted(t.nodes), sorted(t.sources)
	sum.TransparentProxy = t.proxies > 0 && t.transparent == t.proxies
	return &sum
}

// Names returns the names of the services of which instances were added, in order.
func (s *Summarizer) Names() []string {
	var names []string
	for _, t := range s.byName {
		if t.InstanceCount > 0 {
			names = append(names, t.Name)
		}
	}
	slices.Sort(names)
	return names
}

// sorted returns the members of a set in order, nil for none.
func sorted(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }

// Judge returns what intentions say about calls of a source. They are those of the destination, in the order of
// intention.Sort.
func Judge(to []*intention.Intention, source string, def intention.Default) Verdict {
	d := intention.Decide(to, source, "", def)
	v := Verdict{Allowed: d.Allowed, DefaultAllow: def.Allow}
	if d.By != nil {
		v.HasPermissions = len(d.By.Permissions) > 0
		v.ExternalSource = d.By.Meta[externalSource]
		v.HasExact = d.By.SourceName != entry.Wildcard && d.By.DestinationName != entry.Wildcard
	}
	return v
}

// Open reports whether any calls are let through, and as what the topology shows that.
func Open(to []*intention.Intention, source string, def intention.Default) (Source, bool) {
	d := intention.Decide(to, source, "", def)
	switch {
	case !d.Allowed && (d.By == nil || len(d.By.Permissions) == 0):
		return "", false
	case d.By == nil:
		return ByDefault, true
	case d.By.SourceName == entry.Wildcard || d.By.DestinationName == entry.Wildcard:
		return ByWildcard, true
	}
	return ByIntention, true
}

// An Overview counts health.
type Overview struct {
	nodes            Health
	services, checks map[string]*Health
}

// NewOverview returns one without counts.
func NewOverview() *Overview {
	return &Overview{services: map[string]*Health{}, checks: map[string]*Health{}}
}

// AddNode counts a node, given its checks and those of what runs on it.
func (o *Overview) AddNode(checks []*catalog.Check) {
	worst := 0
	for _, c := range checks {
		if c.ServiceID == "" {
			worst = max(worst, severity(c.Status))
		}
		named(o.checks, c.Name).add(severity(c.Status))
	}
	o.nodes.add(worst)
}

// AddInstance counts an instance; of its checks only its own count.
func (o *Overview) AddInstance(i *catalog.Instance) {
	worst := 0
	for _, c := range i.Checks {
		if c.ServiceID != "" {
			worst = max(worst, severity(c.Status))
		}
	}
	named(o.services, i.Service.Service).add(worst)
}

// Reply returns the counts.
func (o *Overview) Reply() *OverviewReply {
	return &OverviewReply{Nodes: []Health{o.nodes}, Services: list(o.services), Checks: list(o.checks)}
}

func named(m map[string]*Health, name string) *Health {
	if m[name] == nil {
		m[name] = &Health{}
	}
	return m[name]
}

func list(m map[string]*Health) []NamedHealth {
	out := make([]NamedHealth, 0, len(m))
	for name, h := range m {
		out = append(out, NamedHealth{name, *h})
	}
	slices.SortFunc(out, func(a, b NamedHealth) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// severity orders statuses; one that is not known counts as critical.
func severity(status string) int {
	switch status {
	case catalog.Passing:
		return 0
	case catalog.Warning:
		return 1
	}
	return 2
}

func (h *Health) add(severity int) {
	h.Total++
	switch severity {
	case 0:
		h.Passing++
	case 1:
		h.Warning++
	default:
		h.Critical++
	}
}
