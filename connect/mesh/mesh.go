// Package mesh holds what one proxy needs to know: its registration, the trust roots, its certificate, the intentions
// about its service, and the discovery chains and instances behind its upstreams. Which things those are is a function
// of the registration and of the answers so far (Snapshot.Needs); whoever keeps a snapshot current watches them and
// puts each answer in (Snapshot.With).
//
// The package is pure. Snapshots are immutable and shared.
package mesh

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
)

// A Registration is a proxy as it was registered, merged with the central configuration of its service, and where.
type Registration struct {
	Node       string
	Datacenter string
	Service    *catalog.Service
	// Domain is the DNS domain of the agent; empty means consul.
	Domain string
	// DefaultAllow is what is decided about a caller that no intention mentions.
	DefaultAllow bool
	// Checks are the paths of the service's HTTP and gRPC checks that are to be reachable without mutual TLS, for whoever
	// runs on the agent's machine, whose address is AgentAddress.
	Checks       []catalog.ExposePath
	AgentAddress string
}

// A Snapshot is what is known for one proxy. Make one with New.
type Snapshot struct {
	Proxy *Registration
	// Config and Upstreams are the registration's, decoded; Upstreams are ordered by ID, and include those that are implied
	// in transparent mode.
	Config    Config
	Upstreams []*Upstream
	// Gateway is set for gateways. Their upstreams are the services behind their listeners.
	Gateway *Gateway
	// Problems are what could not be made sense of in the registration; defaults stand in for it.
	Problems []error

	configProblem error
	answers       answers
	// fallback has, by upstream ID, the chain in use while that of the present registration, or the instances of its
	// targets, are not known yet: an upstream that worked goes on working while what replaces it is fetched.
	fallback map[string]*chain.Chain
	change   *change
}

// answers are what is known. They are immutable. Most of them are in base; what came since is in recent and counts.
type answers struct{ base, recent map[Need]any }

func (a answers) get(n Need) (any, bool) {
	if v, ok := a.recent[n]; ok {
		return v, true
	}
	v, ok := a.base[n]
	return v, ok
}

// with returns the answers with others put in. It copies all of them only now and then.
func (a answers) with(more map[Need]any) answers {
	if n := len(a.recent) + len(more); n*n < len(a.base) {
		recent := make(map[Need]any, n)
		maps.Copy(recent, a.recent)
		maps.Copy(recent, more)
		return answers{a.base, recent}
	}
	base := make(map[Need]any, len(a.base)+len(more))
	maps.Copy(base, a.base)
	maps.Copy(base, a.recent)
	maps.Copy(base, more)
	return answers{base: base}
}

// A change tells by which answers a snapshot differs from the one before. The first of a row tells nothing: upstreams,
// needs or the registration differ.
type change struct {
	before *change
	needs  []Need
	length int // of the row
}

// maxChanges bounds a row.
const maxChanges = 64

// Since returns the needs whose answers are other ones than in an older snapshot, when that is all that differs between
// the two. It reports false when there may be more, or when it can not tell.
func (s *Snapshot) Since(old *Snapshot) ([]Need, bool) {
	var needs []Need
	for c := s.change; c != nil; c = c.before {
		if c == old.change {
			return needs, true
		}
		needs = append(needs, c.needs...)
	}
	return nil, false
}

// New returns the snapshot of a proxy about which nothing is known but its registration.
func New(r *Registration) *Snapshot {
	s := &Snapshot{Proxy: r, change: new(change)}
	s.Config, s.configProblem = ParseConfig(r.Service.Proxy.Config)
	transparent := s.Transparent()
	for i := range r.Service.Proxy.Upstreams {
		s.Upstreams = append(s.Upstreams, newUpstream(&r.Service.Proxy.Upstreams[i], r.Service.Proxy.MeshGateway, transparent))
	}
	if dir := s.Config.TelemetrySocketDir; dir != "" {
		s.Upstreams = append(s.Upstreams, telemetryUpstream(dir, r.Service.ID))
	}
	s.finishUpstreams()
	s.deriveGateway()
	return s
}

// finishUpstreams orders the upstreams and collects their problems.
func (s *Snapshot) finishUpstreams() {
	slices.SortStableFunc(s.Upstreams, func(a, b *Upstream) int { return strings.Compare(a.ID, b.ID) })
	for i, u := range s.Upstreams {
		u.Key = u.ID
		for n := 2; i >= n-1 && s.Upstreams[i-n+1].ID == u.ID; n++ {
			u.Key = fmt.Sprint(u.ID, "#", n)
		}
	}
	s.Problems = nil
	if s.configProblem != nil {
		s.Problems = append(s.Problems, s.configProblem)
	}
	for _, u := range s.Upstreams {
		if u.problem != nil {
			s.Problems = append(s.Problems, u.problem)
		}
	}
}

// Transparent reports whether the proxy takes all connections of its application.
func (s *Snapshot) Transparent() bool { return s.Proxy.Service.Proxy.Mode == entry.ModeTransparent }

// Register returns a snapshot of the proxy under a new registration, with those answers that still serve.
func (s *Snapshot) Register(r *Registration) *Snapshot {
	n := New(r)
	n.answers = s.answers
	n.impliedUpstreams()
	n.deriveGateway()
	n.settle(s)
	return n
}

// With returns the snapshot with answers put in or replaced. Each is of the type its need documents. Answers nobody
// needs are left out.
func (s *Snapshot) With(more map[Need]any) *Snapshot {
	n := *s
	n.answers = s.answers.with(more)
	// Newer answers of kinds that bring no further needs leave everything else as it is: the common case.
	c := &change{before: s.change, length: s.change.length + 1, needs: make([]Need, 0, len(more))}
	same := len(s.fallback) == 0
	for need := range more {
		_, known := s.answers.get(need)
		same = same && known && !need.Kind.leadsOn()
		c.needs = append(c.needs, need)
	}
	switch {
	case !same:
		for need := range more {
			if need.Kind == NeedCallable {
				n.impliedUpstreams()
			}
		}
		n.deriveGateway()
		n.settle(s)
	case c.length > maxChanges:
		n.change = new(change)
	default:
		n.change = c
	}
	return &n
}

// leadsOn reports whether answers of this kind bring further needs.
func (k NeedKind) leadsOn() bool {
	switch k {
	case NeedChain, NeedIntentions, NeedCallable, NeedEntry, NeedEntries, NeedLinks, NeedServices, NeedDatacenters, NeedExports, NeedImports:
		return true
	}
	return false
}

// impliedUpstreams makes the upstreams those that were registered and those that are implied.
func (s *Snapshot) impliedUpstreams() {
	if !s.Transparent() {
		return
	}
	v, _ := s.answers.get(s.callableNeed())
	may, _ := v.(*intention.CallableReply)
	if may == nil {
		return
	}
	implied := s.imply(may)
	s.Upstreams = slices.DeleteFunc(slices.Clone(s.Upstreams), func(u *Upstream) bool { return u.settings != nil })
	s.Upstreams = append(s.Upstreams, implied...)
	s.finishUpstreams()
}

// settle finds the chains to fall back to, given the snapshot before, and drops the answers that are not needed.
func (s *Snapshot) settle(before *Snapshot) {
	s.change = new(change)
	s.fallback = nil
	upstreams := make(map[string]*Upstream, len(before.Upstreams))
	for _, u := range before.Upstreams {
		if u.Kind == ToChain {
			upstreams[u.ID] = u
		}
	}
	for _, u := range s.Upstreams {
		own := s.ownChain(u)
		if u.Kind != ToChain || own != nil && s.answered(own) {
			continue
		}
		old := upstreams[u.ID]
		if old == nil {
			continue
		}
		if c := before.Chain(old); c != nil && c != own {
			if s.fallback == nil {
				s.fallback = map[string]*chain.Chain{}
			}
			s.fallback[u.ID] = c
		}
	}
	base := make(map[Need]any, len(s.answers.base))
	for _, n := range s.Needs() {
		if v, ok := s.answers.get(n); ok {
			base[n] = v
		}
	}
	s.answers = answers{base: base}
}

// answered reports whether the instances of all targets of a chain are known. Those of peers do not count.
func (s *Snapshot) answered(c *chain.Chain) bool {
	for _, t := range c.Targets {
		if t != nil && t.Peer == "" && s.Instances(t) == nil {
			return false
		}
	}
	return true
}

// Complete reports whether enough is known to configure the proxy. Upstreams may still be missing; they are left out
// until their answers are there (spec/xds.md section 1.5).
func (s *Snapshot) Complete() bool {
	switch s.Proxy.Service.Kind {
	case catalog.KindConnectProxy:
		return s.Has(Need{Kind: NeedMesh}) && s.Has(s.intentionsNeed()) && len(s.Roots().Roots) > 0 && s.Leaf() != nil
	}
	return s.gatewayComplete()
}

// Has reports whether the answer to a need is known.
func (s *Snapshot) Has(n Need) bool { _, ok := s.answers.get(n); return ok }

// Answer returns the answer to a need, nil while it is not known.
func (s *Snapshot) Answer(n Need) any { v, _ := s.answers.get(n); return v }

// Roots returns the trusted roots, empty while they are not known.
func (s *Snapshot) Roots() *ca.RootsReply {
	if r, ok := s.Answer(Need{Kind: NeedRoots}).(*ca.RootsReply); ok {
		return r
	}
	return &noRoots
}

var noRoots ca.RootsReply

// Leaf returns the certificate of the proxy's service, nil while it is not known.
func (s *Snapshot) Leaf() *ca.Leaf {
	l, _ := s.Answer(s.leafNeed()).(*ca.Leaf)
	return l
}

// Intentions returns the intentions about the proxy's service, highest precedence first.
func (s *Snapshot) Intentions() *intention.MatchReply {
	m, _ := s.Answer(s.intentionsNeed()).(*intention.MatchReply)
	return m
}

// Mesh returns the mesh entry, nil when there is none.
func (s *Snapshot) Mesh() *entry.Mesh {
	m, _ := s.entry(Need{Kind: NeedMesh}).(*entry.Mesh)
	return m
}

func (s *Snapshot) entry(n Need) entry.Entry {
	r, _ := s.Answer(n).(*entry.GetReply)
	if r == nil {
		return nil
	}
	return r.Entry.Entry
}

// TokenIssuers returns the names of the JWT providers whose tokens intentions ask for, in order.
func (s *Snapshot) TokenIssuers() []string {
	m := s.Intentions()
	if m == nil || len(m.Matches) == 0 {
		return nil
	}
	var names []string
	add := func(j *entry.IntentionJWT) {
		if j == nil {
			return
		}
		for _, p := range j.Providers {
			if p != nil {
				names = append(names, p.Name)
			}
		}
	}
	for _, n := range m.Matches[0] {
		add(n.JWT)
		for _, p := range n.Permissions {
			if p != nil {
				add(p.JWT)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// TokenIssuer returns a JWT provider, nil when there is none of that name.
func (s *Snapshot) TokenIssuer(name string) *entry.JWTProvider {
	p, _ := s.entry(providerNeed(name)).(*entry.JWTProvider)
	return p
}

// Chain returns the discovery chain to use for an upstream, nil while none is known.
func (s *Snapshot) Chain(u *Upstream) *chain.Chain {
	if c := s.fallback[u.ID]; c != nil {
		return c
	}
	return s.ownChain(u)
}

func (s *Snapshot) ownChain(u *Upstream) *chain.Chain {
	if u.Kind != ToChain {
		return nil
	}
	r, _ := s.Answer(s.chainNeed(u)).(*chain.GetReply)
	if r == nil {
		return nil
	}
	return r.Chain
}

// Instances returns the instances of a target of a chain, nil while they are not known.
func (s *Snapshot) Instances(t *chain.Target) *catalog.InstancesReply {
	r, _ := s.Answer(s.instancesNeed(t)).(*catalog.InstancesReply)
	return r
}

// Imported returns the instances of a service of a peer, nil while they are not known.
func (s *Snapshot) Imported(service, peer string) *catalog.InstancesReply {
	r, _ := s.Answer(s.importedNeed(service, peer)).(*catalog.InstancesReply)
	return r
}

// Behind returns the instances of the terminating gateways in front of a destination outside the mesh, nil while they are
// not known.
func (s *Snapshot) Behind(destination string) *catalog.InstancesReply {
	r, _ := s.Answer(Need{Kind: NeedInstances, Service: destination}).(*catalog.InstancesReply)
	return r
}

// Gateways returns the mesh gateways through which a target is reached, nil while they are not known; false when it is
// reached through none.
func (s *Snapshot) Gateways(t *chain.Target) (*catalog.InstancesReply, bool) {
	n, ok := s.gatewaysNeed(t)
	if !ok {
		return nil, false
	}
	r, _ := s.Answer(n).(*catalog.InstancesReply)
	return r, true
}

// MeshGateways returns the mesh gateways of a datacenter, nil while they are not known.
func (s *Snapshot) MeshGateways(datacenter string) *catalog.InstancesReply {
	r, _ := s.Answer(s.GatewaysNeed(datacenter)).(*catalog.InstancesReply)
	return r
}

// Peer returns whom to trust for a peer, nil while it is not known.
func (s *Snapshot) Peer(name string) *PeerBundle {
	b, _ := s.Answer(peerNeed(name)).(*PeerBundle)
	return b
}

// Callers returns whom to trust, besides the members of this cluster, of those that call: by peer, in order.
func (s *Snapshot) Callers() []*PeerBundle {
	r, _ := s.Answer(s.bundlesNeed()).(*peering.BundlesReply)
	if r == nil {
		return nil
	}
	return r.Bundles
}

// Found returns what a prepared query found for an upstream, nil while that is not known.
func (s *Snapshot) Found(u *Upstream) *query.ExecuteReply {
	r, _ := s.Answer(s.queryNeed(u)).(*query.ExecuteReply)
	return r
}

// Identity returns the name of the service whose identity the proxy has: for a sidecar its destination, for a gateway
// its own. It is also the service that a token must be able to write to get the proxy's configuration.
func (r *Registration) Identity() string {
	if r.Service.Kind == catalog.KindConnectProxy {
		return r.Service.Proxy.DestinationServiceName
	}
	return r.Service.Service
}
