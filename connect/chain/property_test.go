package chain_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// A walker follows a request through entries by the rules of spec/connect.md section 10.2, one step at a time, and makes
// nothing of them: no nodes, no keys, nothing shared. What it finds is written as text.
type walker struct {
	set
	service   string
	o         chain.Overrides
	visited   []string
	forwarded bool // a router or splitter was gone through
}

// An end is where a walk leads: a resolver's target.
type end struct{ service, subset, datacenter, peer string }

func (e end) id() string { return chain.TargetID(e.service, e.subset, e.datacenter, e.peer) }

// to returns where a redirect or failover leads from e: what it does not say stays as it is.
func (e end) to(next end) end {
	out := e
	if next.service != "" && next.service != e.service {
		out = end{service: next.service, datacenter: e.datacenter}
	}
	if next.subset != "" {
		out.subset = next.subset
	}
	if next.datacenter != "" {
		out.datacenter = next.datacenter
	}
	if next.peer != "" {
		out.peer, out.datacenter = next.peer, ""
	}
	return out
}

var errLoop = errors.New("loop")

func get[T any](s set, kind entry.Kind, name string) *T {
	e, _ := any(s[entry.Key{Kind: kind, Name: name}]).(*T)
	return e
}

// plain reports whether routers and splitters are left out (step 1).
func (w *walker) plain() bool {
	p := w.o.Protocol
	return p != "" && p != "http" && p != "http2" && p != "grpc"
}

func (w *walker) splitter(service string) *entry.ServiceSplitter {
	if w.plain() {
		return nil
	}
	return get[entry.ServiceSplitter](w.set, entry.KindServiceSplitter, service)
}

// protocol is step 5 for one service.
func (w *walker) protocol(service string) string {
	if d := get[entry.ServiceDefaults](w.set, entry.KindServiceDefaults, service); d != nil {
		if d.Protocol == "" {
			return "tcp"
		}
		return d.Protocol
	}
	if d := get[entry.ProxyDefaults](w.set, entry.KindProxyDefaults, "global"); d != nil {
		if p, _ := d.Config["protocol"].(string); p != "" {
			return p
		}
	}
	return "tcp"
}

// external reports whether a service is outside the mesh, which may not be redirected, divided or failed over.
func (w *walker) external(service string) bool {
	d := get[entry.ServiceDefaults](w.set, entry.KindServiceDefaults, service)
	return d != nil && d.ExternalSNI != ""
}

// resolve is step 4 a to c: redirects and default subsets.
func (w *walker) resolve(t end) (end, error) {
	var seen []end
	for {
		if t.peer != "" {
			return t, nil
		}
		if slices.Contains(seen, t) {
			return t, errLoop
		}
		seen = append(seen, t)
		w.visited = append(w.visited, t.service)
		r := get[entry.ServiceResolver](w.set, entry.KindServiceResolver, t.service)
		if r == nil {
			r = &entry.ServiceResolver{}
		}
		switch d := r.Redirect; {
		case d != nil:
			if w.external(t.service) {
				return t, errors.New("external")
			}
			next := t.to(end{d.Service, d.ServiceSubset, d.Datacenter, d.Peer})
			if next == t {
				return t, nil
			}
			t = next
		case t.subset == "" && r.DefaultSubset != "":
			t.subset = r.DefaultSubset
		default:
			if _, known := r.Subsets[t.subset]; t.subset != "" && !known {
				return t, errors.New("no subset")
			}
			return t, nil
		}
	}
}

// resolution tells all about a target and where it fails over to.
func (w *walker) resolution(t end) (string, error) {
	t, err := w.resolve(t)
	if err != nil {
		return "", err
	}
	r := get[entry.ServiceResolver](w.set, entry.KindServiceResolver, t.service)
	if r == nil || t.peer != "" {
		r = &entry.ServiceResolver{}
	}
	if w.external(t.service) && t.peer == "" && (len(r.Subsets) > 0 || len(r.Failover) > 0) {
		return "", errors.New("external")
	}
	var over []string
	f, ok := r.Failover[t.subset]
	if !ok {
		f, ok = r.Failover["*"]
	}
	if ok {
		var to []end
		for _, x := range f.Targets {
			to = append(to, end{x.Service, x.ServiceSubset, x.Datacenter, x.Peer})
		}
		for _, dc := range f.Datacenters {
			to = append(to, end{f.Service, f.ServiceSubset, dc, ""})
		}
		if len(f.Targets)+len(f.Datacenters) == 0 {
			to = append(to, end{f.Service, f.ServiceSubset, "", ""})
		}
		for _, x := range to {
			next, err := w.resolve(t.to(x))
			if err != nil {
				return "", err
			}
			if next != t && !slices.Contains(over, w.target(next)) {
				over = append(over, w.target(next))
			}
		}
	}
	return fmt.Sprintf("%s timeout %s over [%s]", w.target(t), time.Duration(r.RequestTimeout), strings.Join(over, "; ")), nil
}

// target is step 4 d, f and g: what is set about a target.
func (w *walker) target(t end) string {
	r := get[entry.ServiceResolver](w.set, entry.KindServiceResolver, t.service)
	if r == nil || t.peer != "" {
		r = &entry.ServiceResolver{}
	}
	timeout := 5 * time.Second
	if r.ConnectTimeout > 0 {
		timeout = time.Duration(r.ConnectTimeout)
	}
	if w.o.ConnectTimeout > 0 {
		timeout = w.o.ConnectTimeout
	}
	d := get[entry.ServiceDefaults](w.set, entry.KindServiceDefaults, t.service)
	if d == nil || t.peer != "" {
		d = &entry.ServiceDefaults{} // a peer's service is not the one of that name here
	}
	all := get[entry.ProxyDefaults](w.set, entry.KindProxyDefaults, "global")
	if all == nil {
		all = &entry.ProxyDefaults{}
	}
	mode := ""
	if d.ExternalSNI == "" {
		for _, m := range []string{all.MeshGateway.Mode, d.MeshGateway.Mode, w.o.MeshGateway.Mode} {
			if m != "" {
				mode = m
			}
		}
	}
	return fmt.Sprintf("%s filter %q connect %s gateway %q external %q", t.id(), r.Subsets[t.subset].Filter, timeout, mode, d.ExternalSNI)
}

// shares are steps 3 and 6: where the requests for a service end up, by share, with the headers that are set on the way.
func (w *walker) shares(service string, weight float64, headers map[string]string, path []string) (map[string]float64, error) {
	out := map[string]float64{}
	add := func(key string, n float64) { out[key] = math.Round((out[key]+n)*100) / 100 }
	s := w.splitter(service)
	if s == nil {
		text, err := w.resolution(end{service: service, datacenter: "dc1"})
		add(fmt.Sprint(text, " headers ", headers), weight)
		return out, err
	}
	if slices.Contains(path, service) {
		return nil, errLoop
	}
	w.forwarded = true
	w.visited = append(w.visited, service)
	for _, split := range s.Splits {
		// What is set later, further in, wins.
		merged := maps.Clone(headers)
		if split.RequestHeaders != nil {
			maps.Copy(merged, split.RequestHeaders.Set)
		}
		share := math.Round(weight*float64(split.Weight)) / 100
		to := split.Service
		if to == "" {
			to = service
		}
		if split.ServiceSubset == "" && to != service {
			inner, err := w.shares(to, share, merged, append(slices.Clip(path), service))
			if err != nil {
				return nil, err
			}
			for k, n := range inner {
				add(k, n)
			}
			continue
		}
		text, err := w.resolution(end{service: to, subset: split.ServiceSubset, datacenter: "dc1"})
		if err != nil {
			return nil, err
		}
		add(fmt.Sprint(text, " headers ", merged), share)
	}
	return out, nil
}

// walk is steps 1 and 2: what the routes of the service lead to.
func (w *walker) walk() (routes []map[string]float64, err error) {
	w.visited = append(w.visited, w.service)
	r := get[entry.ServiceRouter](w.set, entry.KindServiceRouter, w.service)
	type destination struct{ service, subset string }
	to := []destination{{w.service, ""}}
	if r != nil && !w.plain() {
		w.forwarded = true
		to = nil
		for _, route := range r.Routes {
			d := destination{w.service, ""}
			if route.Destination != nil {
				d.subset = route.Destination.ServiceSubset
				if route.Destination.Service != "" {
					d.service = route.Destination.Service
				}
			}
			to = append(to, d)
		}
		to = append(to, destination{w.service, ""})
	}
	for _, d := range to {
		var shares map[string]float64
		if d.subset != "" {
			text, failed := w.resolution(end{service: d.service, subset: d.subset, datacenter: "dc1"})
			shares, err = map[string]float64{fmt.Sprint(text, " headers ", map[string]string{}): 100}, failed
		} else {
			shares, err = w.shares(d.service, 100, map[string]string{}, nil)
		}
		if err != nil {
			return nil, err
		}
		routes = append(routes, shares)
	}
	protocol := w.protocol(w.service)
	for _, s := range w.visited {
		if w.protocol(s) != protocol {
			return nil, errors.New("protocols")
		}
	}
	if w.o.Protocol != "" {
		protocol = w.o.Protocol
	}
	if w.forwarded && protocol != "http" && protocol != "http2" && protocol != "grpc" {
		return nil, errors.New("no routing")
	}
	return routes, nil
}

// outcome writes a chain as the walker writes what it finds.
func outcome(t *testing.T, c *chain.Chain) (routes []map[string]float64) {
	t.Helper()
	target := func(id string) string {
		x := c.Targets[id]
		sni := ""
		if x.External {
			sni = x.SNI
		}
		if x.ID != id || chain.TargetID(x.Service, x.ServiceSubset, x.Datacenter, x.Peer) != id {
			t.Fatalf("target %q has the ID %q", id, x.ID)
		}
		return fmt.Sprintf("%s filter %q connect %s gateway %q external %q", id, x.Subset.Filter, time.Duration(x.ConnectTimeout), x.MeshGateway.Mode, sni)
	}
	resolver := func(n *chain.Node) string {
		var over []string
		if n.Resolver.Failover != nil {
			for _, id := range n.Resolver.Failover.Targets {
				over = append(over, target(id))
			}
		}
		if n.Resolver.ConnectTimeout != c.Targets[n.Resolver.Target].ConnectTimeout {
			t.Fatalf("resolver %s has another connect timeout than its target", n.Name)
		}
		return fmt.Sprintf("%s timeout %s over [%s]", target(n.Resolver.Target), n.Resolver.RequestTimeout, strings.Join(over, "; "))
	}
	shares := func(key string) map[string]float64 {
		n := c.Nodes[key]
		if n.Type == chain.Resolver {
			return map[string]float64{fmt.Sprint(resolver(n), " headers ", map[string]string{}): 100}
		}
		out := map[string]float64{}
		for _, s := range n.Splits {
			headers := map[string]string{}
			if s.Definition.RequestHeaders != nil {
				maps.Copy(headers, s.Definition.RequestHeaders.Set)
			}
			k := fmt.Sprint(resolver(c.Nodes[s.NextNode]), " headers ", headers)
			out[k] = math.Round((out[k]+s.Weight)*100) / 100
		}
		return out
	}
	start := c.Nodes[c.StartNode]
	if start.Type != chain.Router {
		return append(routes, shares(c.StartNode))
	}
	for _, r := range start.Routes {
		routes = append(routes, shares(r.NextNode))
	}
	return routes
}

// randomEntries makes entries about a few services that refer to one another in every way there is.
func randomEntries(g *rand.Rand) []string {
	names := []string{"a", "b", "c", "d"}
	pick := func(list ...string) string { return list[g.IntN(len(list))] }
	name := func() string { return names[g.IntN(len(names))] }
	maybe := func(n int, text string, args ...any) string {
		if g.IntN(n) > 0 {
			return ""
		}
		return fmt.Sprintf(text, args...)
	}
	object := func(fields ...string) string {
		return "{" + strings.Join(slices.DeleteFunc(fields, func(f string) bool { return f == "" }), ", ") + "}"
	}
	var out []string
	if g.IntN(8) > 0 {
		out = append(out, object(`"Kind": "proxy-defaults", "Name": "global"`, fmt.Sprintf(`"Config": {"protocol": %q}`, pick("http", "http", "grpc", "tcp")),
			maybe(3, `"MeshGateway": {"Mode": %q}`, pick("local", "remote"))))
	}
	where := func() string {
		return object(maybe(2, `"Service": %q`, name()), maybe(4, `"ServiceSubset": %q`, pick("s", "t")), maybe(4, `"Datacenter": "dc2"`))
	}
	for _, n := range names {
		head := func(kind string) string { return fmt.Sprintf(`"Kind": %q, "Name": %q`, kind, n) }
		if g.IntN(6) == 0 {
			out = append(out, object(head("service-defaults"), fmt.Sprintf(`"Protocol": %q`, pick("http", "http", "tcp", "grpc", "")),
				maybe(3, `"MeshGateway": {"Mode": %q}`, pick("none", "local")), maybe(4, `"ExternalSNI": "x.example.com"`)))
		}
		switch g.IntN(6) {
		case 0:
			out = append(out, object(head("service-resolver"), fmt.Sprintf(`"Redirect": %s`,
				object(fmt.Sprintf(`"Service": %q`, name()), maybe(4, `"ServiceSubset": "s"`), maybe(4, `"Datacenter": "dc2"`)))))
		case 1:
			out = append(out, object(head("service-resolver"), fmt.Sprintf(`"Redirect": {"Service": %q, "Peer": "p"}`, name())))
		case 2, 3, 4:
			var over []string
			for _, subset := range []string{"*", "s", ""} {
				switch g.IntN(5) {
				case 0:
					var targets []string
					for range 1 + g.IntN(3) {
						targets = append(targets, where())
					}
					if g.IntN(3) == 0 {
						targets = append(targets, `{"Peer": "p"}`)
					}
					over = append(over, fmt.Sprintf(`%q: {"Targets": [%s]}`, subset, strings.Join(targets, ", ")))
				case 1:
					over = append(over, fmt.Sprintf(`%q: {"Service": %q}`, subset, name()))
				case 2:
					over = append(over, fmt.Sprintf(`%q: {"Datacenters": ["dc2", "dc1", "dc3"]}`, subset))
				}
			}
			fields := []string{head("service-resolver"), `"Subsets": {"s": {"Filter": "Service.Port == 1"}, "t": {}}`, maybe(3, `"DefaultSubset": %q`, pick("s", "t")),
				maybe(3, `"ConnectTimeout": "9s"`), maybe(3, `"RequestTimeout": "7s"`)}
			if len(over) > 0 {
				fields = append(fields, fmt.Sprintf(`"Failover": {%s}`, strings.Join(over, ", ")))
			}
			out = append(out, object(fields...))
		}
		if g.IntN(3) == 0 {
			var splits []string
			for _, weight := range [][]float64{{100}, {50, 50}, {33.33, 66.67}, {12.5, 12.5, 75}}[g.IntN(4)] {
				splits = append(splits, object(fmt.Sprintf(`"Weight": %v`, weight), maybe(2, `"Service": %q`, name()), maybe(3, `"ServiceSubset": %q`, pick("s", "t")),
					maybe(3, `"RequestHeaders": {"Set": {%q: %q}}`, pick("x", "y"), n)))
			}
			out = append(out, object(head("service-splitter"), fmt.Sprintf(`"Splits": [%s]`, strings.Join(splits, ", "))))
		}
		if g.IntN(3) == 0 {
			var routes []string
			for i := range 1 + g.IntN(3) {
				routes = append(routes, object(fmt.Sprintf(`"Match": {"HTTP": {"PathPrefix": "/%d"}}`, i), maybe(2, `"Destination": %s`,
					object(maybe(2, `"Service": %q`, name()), maybe(3, `"ServiceSubset": %q`, pick("s", "t"))))))
			}
			out = append(out, object(head("service-router"), fmt.Sprintf(`"Routes": [%s]`, strings.Join(routes, ", "))))
		}
	}
	return out
}

// valid keeps the texts of entries that are valid on their own.
func valid(t *testing.T, texts []string) (out []string) {
	t.Helper()
	for _, text := range texts {
		var doc map[string]any
		if err := json.Unmarshal([]byte(text), &doc); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		e, err := entry.Decode(doc)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if e.Normalize(); e.Validate() == nil {
			out = append(out, text)
		}
	}
	return out
}

// The compiler says of any entries what a naive walk through them by the rules finds: the same targets by the same shares,
// settings and failover for each route, or that they make no chain.
func TestChainsAreWhatTheRulesSay(t *testing.T) {
	seed := testkit.Seed(t)
	g := rand.New(rand.NewPCG(seed, 2))
	compiled, refused := 0, 0
	for range 3000 {
		texts := valid(t, randomEntries(g))
		s := entries(t, texts...)
		o := chain.Overrides{}
		if g.IntN(4) == 0 {
			o = chain.Overrides{
				Protocol: []string{"", "tcp", "http", "grpc"}[g.IntN(4)], ConnectTimeout: []time.Duration{0, 3 * time.Second}[g.IntN(2)],
				MeshGateway: catalog.MeshGateway{Mode: []string{"", "remote"}[g.IntN(2)]},
			}
		}
		w := &walker{set: s, service: "a", o: o}
		want, wrong := w.walk()
		c, err := compile("a", s, o)
		if (err == nil) != (wrong == nil) {
			t.Fatalf("the compiler says %v, the rules %v, of %+v and\n%s", err, wrong, o, strings.Join(texts, "\n"))
		}
		if err != nil {
			refused++
			continue
		}
		compiled++
		if d := cmp.Diff(want, outcome(t, c)); d != "" {
			t.Fatalf("the chain is another one than the rules say (-rules +chain):\n%s\nof %+v and\n%s", d, o, strings.Join(texts, "\n"))
		}
	}
	if compiled < 500 || refused < 100 {
		t.Errorf("%d chains were compiled and %d refused: the entries are too much alike", compiled, refused)
	}
}
