package chain

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect"
)

// Entries finds configuration entries; it returns nil for those that do not exist.
type Entries interface {
	Entry(kind entry.Kind, name string) entry.Entry
}

// Request is what a chain is compiled for.
type Request struct {
	Service     string
	Datacenter  string // in which the chain is evaluated
	TrustDomain string
	Overrides   Overrides
}

// DefaultConnectTimeout bounds connecting to a target where nothing else is set.
const DefaultConnectTimeout = 5 * time.Second

// An Error tells why entries make no chain. Its text is that of spec/connect.md section 9.
type Error struct{ Text string }

func (e *Error) Error() string { return e.Text }

func failf(format string, args ...any) error { return &Error{fmt.Sprintf(format, args...)} }

// Compile makes the chain of a service from the entries. Virtual IPs are left to the caller.
func Compile(r Request, entries Entries) (*Chain, error) {
	c := &compiler{
		Request: r, entries: entries,
		protocols: map[string]string{},
		chain: &Chain{
			ServiceName: r.Service, Namespace: "default", Partition: "default", Datacenter: r.Datacenter,
			Nodes: map[string]*Node{}, Targets: map[string]*Target{},
		},
	}
	if p := r.Overrides.Protocol; p != "" && !entry.HTTPLike(p) {
		c.plain = true
	}
	if err := c.compile(); err != nil {
		return nil, err
	}
	return c.chain, nil
}

type compiler struct {
	Request
	entries   Entries
	chain     *Chain
	plain     bool              // leave routers and splitters out
	advanced  bool              // there is a router or splitter
	protocols map[string]string // by service visited
	splitting []string          // splitters being compiled, outermost first
	custom    custom
	walked    func(target) // is told each target that end goes through; nil tells nobody
}

// custom tells which overrides changed something.
type custom struct{ meshGateway, protocol, connectTimeout bool }

func find[T any](c *compiler, kind entry.Kind, name string) *T {
	e, _ := any(c.entries.Entry(kind, name)).(*T)
	return e
}

func (c *compiler) defaults(service string) *entry.ServiceDefaults {
	return find[entry.ServiceDefaults](c, entry.KindServiceDefaults, service)
}

func (c *compiler) proxyDefaults() *entry.ProxyDefaults {
	return find[entry.ProxyDefaults](c, entry.KindProxyDefaults, entry.ProxyDefaultsName)
}

func (c *compiler) resolver(service string) *entry.ServiceResolver {
	return find[entry.ServiceResolver](c, entry.KindServiceResolver, service)
}

func (c *compiler) splitter(service string) *entry.ServiceSplitter {
	e := find[entry.ServiceSplitter](c, entry.KindServiceSplitter, service)
	if e != nil && c.plain {
		c.custom.protocol = true
		return nil
	}
	return e
}

func (c *compiler) router(service string) *entry.ServiceRouter {
	e := find[entry.ServiceRouter](c, entry.KindServiceRouter, service)
	if e != nil && c.plain {
		c.custom.protocol = true
		return nil
	}
	return e
}

func (c *compiler) compile() error {
	if err := c.visit(c.Service); err != nil {
		return err
	}
	start, err := c.start()
	if err != nil {
		return err
	}
	c.chain.StartNode = start
	c.chain.Protocol = c.protocols[c.Service]
	if p := c.Overrides.Protocol; p != "" && p != c.chain.Protocol {
		c.chain.Protocol = p
		c.custom.protocol = true
	}
	if c.advanced && !entry.HTTPLike(c.chain.Protocol) {
		return failf("discovery chain %q uses a protocol %q that does not permit advanced routing or splitting behavior", c.Service, c.chain.Protocol)
	}
	if err := c.flatten(); err != nil {
		return err
	}
	c.dropUnused()
	c.balanceSplits()
	node := c.chain.Nodes[start]
	c.chain.Default = node.Type == Resolver && node.Resolver.Default &&
		node.Resolver.Target == TargetID(c.Service, "", c.Datacenter, "")
	if d := c.proxyDefaults(); d != nil {
		c.chain.EnvoyExtensions = append(c.chain.EnvoyExtensions, d.EnvoyExtensions...)
	}
	if d := c.defaults(c.Service); d != nil {
		c.chain.ServiceMeta = d.Meta
		c.chain.EnvoyExtensions = append(c.chain.EnvoyExtensions, d.EnvoyExtensions...)
	}
	c.chain.CustomizationHash = c.customHash()
	return nil
}

// customHash tells chains that overrides made different apart.
func (c *compiler) customHash() string {
	if c.custom == (custom{}) {
		return ""
	}
	h := sha256.New()
	if c.custom.meshGateway {
		fmt.Fprintf(h, "mesh-gateway %q\n", c.Overrides.MeshGateway.Mode)
	}
	if c.custom.protocol {
		fmt.Fprintf(h, "protocol %q\n", c.Overrides.Protocol)
	}
	if c.custom.connectTimeout {
		fmt.Fprintf(h, "connect-timeout %s\n", c.Overrides.ConnectTimeout)
	}
	return hex.EncodeToString(h.Sum(nil)[:4])
}

// Protocol returns the protocol of a service: that of its service-defaults, where empty means tcp, else that of
// proxy-defaults, else tcp.
func Protocol(entries Entries, service string) string {
	if d, _ := any(entries.Entry(entry.KindServiceDefaults, service)).(*entry.ServiceDefaults); d != nil {
		if d.Protocol == "" {
			return entry.TCP
		}
		return d.Protocol
	}
	if d, _ := any(entries.Entry(entry.KindProxyDefaults, entry.ProxyDefaultsName)).(*entry.ProxyDefaults); d != nil && d.Protocol() != "" {
		return d.Protocol()
	}
	return entry.TCP
}

// visit records the protocol of a service the chain goes through: all must agree.
func (c *compiler) visit(service string) error {
	if _, seen := c.protocols[service]; seen {
		return nil
	}
	p := Protocol(c.entries, service)
	c.protocols[service] = p
	if first := c.protocols[c.Service]; p != first {
		return failf("discovery chain %q uses inconsistent protocols; service %q has %q which is not %q", c.Service, service, p, first)
	}
	return nil
}

// start compiles everything reachable and returns the key of the first node.
func (c *compiler) start() (string, error) {
	router := c.router(c.Service)
	if router == nil {
		return c.splitterOrResolver(c.Service)
	}
	c.advanced = true
	node := &Node{Type: Router, Name: c.Service + ".default.default"}
	c.chain.Nodes[node.Key()] = node
	routes := slices.Clone(router.Routes)
	routes = append(routes, entry.ServiceRoute{
		Match:       &entry.ServiceRouteMatch{HTTP: &entry.ServiceRouteHTTPMatch{PathPrefix: "/"}},
		Destination: &entry.ServiceRouteDestination{Service: c.Service},
	})
	for i := range routes {
		service, subset := c.Service, ""
		if d := routes[i].Destination; d != nil {
			if d.Service != "" {
				service = d.Service
			}
			subset = d.ServiceSubset
		}
		var next string
		var err error
		if subset != "" {
			next, err = c.resolve(target{service, subset, c.Datacenter, ""})
		} else {
			next, err = c.splitterOrResolver(service)
		}
		if err != nil {
			return "", err
		}
		node.Routes = append(node.Routes, &Route{Definition: &routes[i], NextNode: next})
	}
	return node.Key(), nil
}

func (c *compiler) splitterOrResolver(service string) (string, error) {
	if c.splitter(service) != nil {
		return c.split(service)
	}
	return c.resolve(target{service, "", c.Datacenter, ""})
}

// split compiles the splitter of a service, which exists.
func (c *compiler) split(service string) (string, error) {
	node := &Node{Type: Splitter, Name: service + ".default.default"}
	key := node.Key()
	if slices.Contains(c.splitting, key) {
		return "", failf("detected circular reference: [%s]", strings.Join(append(c.splitting, key), " -> "))
	}
	if c.chain.Nodes[key] != nil {
		return key, nil
	}
	if err := c.visit(service); err != nil {
		return "", err
	}
	c.advanced = true
	c.splitting = append(c.splitting, key)
	for _, s := range c.splitter(service).Splits {
		to := service
		if s.Service != "" {
			to = s.Service
		}
		var next string
		var err error
		if s.ServiceSubset == "" && to != service {
			next, err = c.splitterOrResolver(to)
		} else {
			next, err = c.resolve(target{to, s.ServiceSubset, c.Datacenter, ""})
		}
		if err != nil {
			return "", err
		}
		node.Splits = append(node.Splits, &Split{Definition: &s, Weight: s.Weight, NextNode: next})
	}
	c.splitting = c.splitting[:len(c.splitting)-1]
	c.chain.Nodes[key] = node
	return key, nil
}

// A target is what is looked for: a service, a subset of it, where.
type target struct{ service, subset, datacenter, peer string }

func (t target) id() string { return TargetID(t.service, t.subset, t.datacenter, t.peer) }

// moved returns t with the non-empty arguments in place. Another service has other subsets.
func (t target) moved(service, subset, datacenter, peer string) target {
	if service != "" && service != t.service {
		t.service, t.subset = service, ""
	}
	if subset != "" {
		t.subset = subset
	}
	if datacenter != "" {
		t.datacenter = datacenter
	}
	if peer != "" {
		t.peer, t.datacenter = peer, ""
	}
	return t
}

// end follows redirects and default subsets to the target that is meant in the end, with its resolver if it has one.
func (c *compiler) end(t target) (target, *entry.ServiceResolver, error) {
	var walked []string
	for {
		if t.peer != "" {
			return t, nil, nil
		}
		if slices.Contains(walked, t.id()) {
			return t, nil, failf("detected circular resolver redirect: [%s]", strings.Join(append(walked, t.id()), " -> "))
		}
		walked = append(walked, t.id())
		if c.walked != nil {
			c.walked(t)
		}
		if err := c.visit(t.service); err != nil {
			return t, nil, err
		}
		r := c.resolver(t.service)
		switch {
		case r == nil:
			if t.subset != "" {
				return t, nil, noSubset(t)
			}
			return t, nil, nil
		case r.Redirect != nil:
			if err := c.checkExternal(t.service, "redirects"); err != nil {
				return t, nil, err
			}
			to := r.Redirect
			next := t.moved(to.Service, to.ServiceSubset, to.Datacenter, to.Peer)
			if next == t {
				return t, r, nil
			}
			t = next
			continue
		case t.subset == "" && r.DefaultSubset != "":
			t.subset = r.DefaultSubset
			continue
		}
		if _, ok := r.Subsets[t.subset]; t.subset != "" && !ok {
			return t, nil, noSubset(t)
		}
		return t, r, nil
	}
}

func noSubset(t target) error {
	return failf("service %q does not have a subset named %q", t.service, t.subset)
}

// checkExternal refuses what makes no sense for a service outside the mesh.
func (c *compiler) checkExternal(service, what string) error {
	if d := c.defaults(service); d != nil && d.ExternalSNI != "" {
		return failf("service %q has an external SNI set; cannot define %s for external services", service, what)
	}
	return nil
}

// resolve compiles the resolver for a target and returns the key of its node.
func (c *compiler) resolve(t target) (string, error) {
	t, r, err := c.end(t)
	if err != nil {
		return "", err
	}
	node := &Node{Type: Resolver, Name: t.id()}
	key := node.Key()
	if c.chain.Nodes[key] != nil {
		return key, nil
	}
	if r != nil && len(r.Subsets) != 0 {
		if err := c.checkExternal(t.service, "subsets"); err != nil {
			return "", err
		}
	}
	made := c.target(t, r)
	node.Resolver = &Resolution{
		Default: r == nil || r.IsDefault(), ConnectTimeout: made.ConnectTimeout, Target: made.ID,
	}
	if r != nil {
		node.Resolver.RequestTimeout = time.Duration(r.RequestTimeout)
		node.LoadBalancer = r.LoadBalancer
	}
	c.chain.Nodes[key] = node
	if r == nil {
		return key, nil
	}
	f, ok := r.Failover[t.subset]
	if !ok {
		f, ok = r.Failover[entry.Wildcard]
	}
	if !ok {
		return key, nil
	}
	if err := c.checkExternal(t.service, "failover"); err != nil {
		return "", err
	}
	var targets []string
	for _, to := range failoverTargets(t, f) {
		end, resolver, err := c.end(to)
		if err != nil {
			return "", err
		}
		if id := end.id(); id != made.ID && !slices.Contains(targets, id) {
			c.target(end, resolver)
			targets = append(targets, id)
		}
	}
	if len(targets) != 0 {
		node.Resolver.Failover = &Failover{Targets: targets}
		if d := c.proxyDefaults(); d != nil && d.FailoverPolicy != nil {
			node.Resolver.Failover.Policy = d.FailoverPolicy
		}
	}
	return key, nil
}

func failoverTargets(t target, f entry.ServiceFailover) (out []target) {
	switch {
	case len(f.Targets) != 0:
		for _, to := range f.Targets {
			out = append(out, t.moved(to.Service, to.ServiceSubset, to.Datacenter, to.Peer))
		}
	case len(f.Datacenters) != 0:
		for _, dc := range f.Datacenters {
			out = append(out, t.moved(f.Service, f.ServiceSubset, dc, ""))
		}
	default:
		out = append(out, t.moved(f.Service, f.ServiceSubset, "", ""))
	}
	return out
}

// target adds a target to the chain.
func (c *compiler) target(t target, r *entry.ServiceResolver) *Target {
	id := t.id()
	if made := c.chain.Targets[id]; made != nil {
		return made
	}
	made := &Target{
		ID: id, Service: t.service, ServiceSubset: t.subset, Namespace: "default", Partition: "default",
		Datacenter: t.datacenter, Peer: t.peer, ConnectTimeout: catalog.Duration(DefaultConnectTimeout),
	}
	c.chain.Targets[id] = made
	if r != nil {
		made.Subset = r.Subsets[t.subset]
		if r.ConnectTimeout > 0 {
			made.ConnectTimeout = r.ConnectTimeout
		}
	}
	if o := catalog.Duration(c.Overrides.ConnectTimeout); o > 0 && o != made.ConnectTimeout {
		made.ConnectTimeout = o
		c.custom.connectTimeout = true
	}
	if t.peer == "" {
		made.Name = connect.ServiceSNI(t.subset, t.service, t.datacenter, c.TrustDomain)
		made.SNI = made.Name
	}
	all, own := c.proxyDefaults(), c.defaults(t.service)
	if t.peer == "" && own != nil && own.ExternalSNI != "" {
		made.External, made.SNI = true, own.ExternalSNI
		return made
	}
	if all != nil {
		made.MeshGateway = all.MeshGateway
		made.TransparentProxy.DialedDirectly = all.TransparentProxy.DialedDirectly
	}
	if own != nil && t.peer == "" {
		if own.MeshGateway.Mode != "" {
			made.MeshGateway = own.MeshGateway
		}
		if own.TransparentProxy.DialedDirectly {
			made.TransparentProxy.DialedDirectly = true
		}
	}
	if o := c.Overrides.MeshGateway; o.Mode != "" && o != made.MeshGateway {
		made.MeshGateway = o
		c.custom.meshGateway = true
	}
	return made
}

// maxSplits bounds a splitter after flattening: splitters of splitters grow fast.
const maxSplits = 1024

// flatten multiplies splitters that lead to splitters out, from the outermost inwards: what shares are rounded to then
// does not depend on names.
func (c *compiler) flatten() error {
	given := map[string][]*Split{}
	for key, node := range c.chain.Nodes {
		given[key] = node.Splits
	}
	for _, node := range c.chain.Nodes {
		for again := true; again; {
			again = false
			var out []*Split
			for _, outer := range node.Splits {
				if c.chain.Nodes[outer.NextNode].Type != Splitter {
					out = append(out, outer)
					continue
				}
				again = true
				for _, inner := range given[outer.NextNode] {
					out = append(out, nest(outer, inner))
				}
			}
			if len(out) > maxSplits {
				return failf("discovery chain %q splits into more than %d parts", c.Service, maxSplits)
			}
			node.Splits = out
		}
	}
	return nil
}

// nest returns the split that goes through outer, then inner.
func nest(outer, inner *Split) *Split {
	d := *inner.Definition
	// What is done last wins: requests pass outer first, responses inner.
	d.RequestHeaders = mergeEdits(outer.Definition.RequestHeaders, inner.Definition.RequestHeaders)
	d.ResponseHeaders = mergeEdits(inner.Definition.ResponseHeaders, outer.Definition.ResponseHeaders)
	w := entry.RoundWeight(outer.Weight * inner.Weight / 100)
	d.Weight = w
	return &Split{Definition: &d, Weight: w, NextNode: inner.NextNode}
}

func mergeEdits(first, last *entry.HeaderEdit) *entry.HeaderEdit {
	switch {
	case first == nil:
		return last
	case last == nil:
		return first
	}
	m := &entry.HeaderEdit{Add: mergeMaps(first.Add, last.Add), Set: mergeMaps(first.Set, last.Set)}
	m.Remove = append(slices.Clone(first.Remove), last.Remove...)
	slices.Sort(m.Remove)
	m.Remove = slices.Compact(m.Remove)
	return m
}

func mergeMaps(first, last map[string]string) map[string]string {
	if len(first)+len(last) == 0 {
		return nil
	}
	m := maps.Clone(first)
	if m == nil {
		m = map[string]string{}
	}
	maps.Copy(m, last)
	return m
}

// dropUnused removes what cannot be reached from the start.
func (c *compiler) dropUnused() {
	nodes, targets := map[string]*Node{}, map[string]*Target{}
	keep := func(id string) { targets[id] = c.chain.Targets[id] }
	var walk func(key string)
	walk = func(key string) {
		if nodes[key] != nil {
			return
		}
		n := c.chain.Nodes[key]
		nodes[key] = n
		for _, r := range n.Routes {
			walk(r.NextNode)
		}
		for _, s := range n.Splits {
			walk(s.NextNode)
		}
		if n.Resolver != nil {
			keep(n.Resolver.Target)
			if n.Resolver.Failover != nil {
				for _, id := range n.Resolver.Failover.Targets {
					keep(id)
				}
			}
		}
	}
	walk(c.chain.StartNode)
	c.chain.Nodes, c.chain.Targets = nodes, targets
}

// balanceSplits gives a splitter the first load balancer of its resolvers that works on hashes: all of its splits are
// chosen by the same hash.
func (c *compiler) balanceSplits() {
	for _, n := range c.chain.Nodes {
		for _, s := range n.Splits {
			if lb := c.chain.Nodes[s.NextNode].LoadBalancer; lb.Hashes() {
				n.LoadBalancer = lb
				break
			}
		}
	}
}
