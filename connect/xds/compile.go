package xds

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/mesh"
)

// A Flavour is a way of expressing the same configuration.
type Flavour uint8

const (
	// Envoy puts the certificate and the roots into every resource that uses them, as the reference does.
	Envoy Flavour = iota
	// Own delivers certificate and roots as secrets, so that renewing them replaces no listener or cluster, and lets
	// the first instance that fails be ejected however few there are. Nothing in it may be refused by the built-in
	// proxy: a listener that is refused leaves an older one, with older rules, in its place.
	Own
	// Proxyless is for gRPC clients that do without a proxy: only what is about the upstreams, by their names, and nothing
	// that gRPC refuses.
	Proxyless
	NumFlavours = iota
)

// ErrKind reports a registration of a kind that no resources are made for.
var ErrKind = errors.New("service must be a sidecar proxy or gateway")

// A Compiler compiles the successive snapshots of one proxy. It makes anew only what depends on what changed. It is not
// safe for concurrent use. The zero Compiler is ready.
type Compiler struct {
	Flavour Flavour
	// Shared, unless nil, has what several proxies have in common.
	Shared *Shared

	last *compilation
}

// A compilation is what is kept of one for the next.
type compilation struct {
	of         *mesh.Snapshot
	out        *Resources
	extensions *extensions
	memo       memo    // of what belongs to no upstream
	parts      []*part // of the upstreams of the snapshot, in their order
	// users has, by what is needed, the parts it is needed for. What is needed for anything else is not in it.
	users map[mesh.Need][]int
}

// A memo has resources together with everything they were made from. Snapshots and the answers in them are immutable, so
// equal pointers mean equal content.
type memo map[ref]*memoEntry

type memoEntry struct {
	from     []any
	resource *Resource
	problems []error
}

// A part is all that was made for one upstream, and what it was made from.
type part struct {
	upstream  *mesh.Upstream
	from      []any
	memo      memo
	resources [NumTypes][]*Resource
	outbound  []*outbound
	problems  []error
}

// Compile returns the resources for a snapshot, which must be complete. It fails where serving what can be made would
// be unsafe or pointless; what concerns one upstream alone is left out and told in Problems.
func (c *Compiler) Compile(s *mesh.Snapshot) (*Resources, error) {
	if c.last != nil {
		if next := c.change(s); next != nil {
			c.last = next
			return next.out, nil
		}
	}
	x := c.newBuild(s, nil, nil).extensionsOf()
	if x.err != nil {
		return nil, x.err
	}
	if c.last != nil && c.last.extensions.equal(x) {
		x = c.last.extensions
	}
	for {
		next, err := c.compile(s, x)
		var failed *extensionError
		switch {
		case err == nil:
			c.last = next
			return next.out, nil
		case errors.As(err, &failed) && !failed.required:
			x = x.without(failed) // and all over again, since it may have been applied in part
		default:
			return nil, err
		}
	}
}

// compile makes everything, out of what was made before where that was made from the same things.
func (c *Compiler) compile(s *mesh.Snapshot, x *extensions) (*compilation, error) {
	last := c.last
	if last == nil {
		last = new(compilation)
	}
	b := c.newBuild(s, x, last.memo)
	b.out.Service = s.Proxy.Identity()
	b.out.Bundle = ca.Bundle(s.Roots().Roots)
	b.out.Problems = slices.Concat(s.Problems, x.problems)
	next := &compilation{of: s, out: b.out, extensions: x, memo: b.memo, users: map[mesh.Need][]int{}}
	before := make(map[string]*part, len(last.parts)) // by upstream key
	for _, p := range last.parts {
		before[p.upstream.Key] = p
	}
	switch s.Proxy.Service.Kind {
	case catalog.KindConnectProxy:
		if c.Flavour == Proxyless {
			break
		}
		if err := b.sidecar(); err != nil {
			return nil, err
		}
	default:
		if s.Gateway == nil || c.Flavour == Proxyless {
			return nil, ErrKind
		}
	}
	for i, u := range s.Upstreams {
		p, err := c.part(before[u.Key], s, u, x)
		if err != nil {
			return nil, err
		}
		next.parts = append(next.parts, p)
		for _, n := range s.UpstreamNeeds(u) {
			next.users[n] = append(next.users[n], i)
		}
		for t, all := range p.resources {
			for _, r := range all {
				if b.out.byType[t][r.Name] == nil {
					b.out.byType[t][r.Name] = r
				}
			}
		}
		b.outbound = append(b.outbound, p.outbound...)
		b.out.Problems = append(b.out.Problems, p.problems...)
	}
	if c.Flavour != Proxyless {
		if err := b.outboundListener(); err != nil {
			return nil, err
		}
	}
	if s.Gateway != nil {
		if err := b.gateway(); err != nil {
			return nil, err
		}
	}
	if err := b.staticClusters(); err != nil {
		return nil, err
	}
	b.out.index()
	if err := b.out.check(); err != nil {
		return nil, err
	}
	return next, nil
}

// change makes anew what belongs to the upstreams whose needs alone were answered anew since the last compilation: mostly
// instances. It returns nil when more changed than that.
func (c *Compiler) change(s *mesh.Snapshot) *compilation {
	needs, ok := s.Since(c.last.of)
	if !ok || s.Gateway != nil { // listeners of gateways depend on instances, too
		return nil
	}
	next, out := *c.last, *c.last.out
	next.of, next.out = s, &out
	var own [NumTypes]bool // maps that are not shared with the last any more
	done := map[int]bool{}
	single := !slices.ContainsFunc(needs, func(n mesh.Need) bool { return n != needs[0] })
	for _, n := range needs {
		if len(next.users[n]) == 0 || n.Kind == mesh.NeedPeer {
			return nil
		}
		for _, at := range next.users[n] {
			if done[at] {
				continue
			}
			if len(done) == 0 {
				next.parts = slices.Clone(next.parts)
			}
			done[at] = true
			old := c.last.parts[at]
			var p *part
			if single {
				p = c.reassign(old, s, n)
			}
			if p == nil {
				var err error
				if p, err = c.part(old, s, old.upstream, c.last.extensions); err != nil || !old.alike(p) {
					return nil
				}
			}
			next.parts[at] = p
			for t := range Type(NumTypes) {
				for i, r := range p.resources[t] {
					// What upstreams share is that of the first.
					if before := old.resources[t][i]; r == before || out.byType[t][r.Name] != before {
						continue
					}
					if !own[t] {
						out.byType[t] = maps.Clone(out.byType[t])
						own[t] = true
					}
					out.byType[t][r.Name] = r
				}
			}
		}
	}
	return &next
}

// reassign makes a part anew where all that differs from the last compilation are the instances that a need is about, and
// nothing but load assignments depends on them. It returns nil when it can not tell. It is the most frequent of all changes,
// and of it every proxy that uses a service has its share.
func (c *Compiler) reassign(old *part, s *mesh.Snapshot, n mesh.Need) *part {
	was, _ := c.last.of.Answer(n).(*catalog.InstancesReply)
	now, _ := s.Answer(n).(*catalog.InstancesReply)
	if n.Kind != mesh.NeedInstances || was == nil || now == nil || c.Shared == nil || !c.last.extensions.empty() ||
		old.upstream.Kind != mesh.ToChain || s.Transparent() || len(old.problems) > 0 {
		return nil
	}
	for _, r := range old.resources[Cluster] {
		for _, x := range old.memo[ref{Cluster, r.Name}].from {
			if dns, ok := x.(dnsHost); ok && dns != (dnsHost{}) {
				return nil // the cluster has a host in line
			}
		}
	}
	b := &build{s: s, flavour: c.Flavour, shared: c.Shared}
	p := *old
	p.from = slices.Clone(old.from)
	for i, x := range p.from {
		if x == any(was) {
			p.from[i] = now
		}
	}
	p.memo = maps.Clone(old.memo)
	p.resources[Endpoint] = slices.Clone(old.resources[Endpoint])
	for i, r := range p.resources[Endpoint] {
		at := ref{Endpoint, r.Name}
		key, ok := old.memo[at].from[0].(assignmentKey)
		if !ok {
			return nil
		}
		if key.instances != was {
			continue
		}
		key.instances = now
		to := key.reach()
		if b.dnsHost(to) != (dnsHost{}) {
			return nil // the cluster is to have one
		}
		key.node = b.socketNode(to)
		made, err := b.sharedAssignment(key, to)
		if err != nil {
			return nil
		}
		p.memo[at] = &memoEntry{from: []any{key}, resource: made}
		p.resources[Endpoint][i] = made
	}
	return &p
}

// alike reports whether p has the same resources as o but for what is in them: names, references, what is in listeners
// shared by upstreams.
func (o *part) alike(p *part) bool {
	if len(o.problems)+len(p.problems) > 0 || !slices.Equal(o.outbound, p.outbound) {
		return false
	}
	for t := range Type(NumTypes) {
		if !slices.EqualFunc(o.resources[t], p.resources[t], func(a, b *Resource) bool {
			return a == b || a.Name == b.Name && slices.Equal(a.Children, b.Children) && slices.Equal(a.uses, b.uses)
		}) {
			return false
		}
	}
	return true
}

func (c *Compiler) newBuild(s *mesh.Snapshot, x *extensions, old memo) *build {
	b := &build{
		s: s, flavour: c.Flavour, shared: c.Shared, extensions: x, trustDomain: s.Roots().TrustDomain, old: old, memo: memo{}, out: &Resources{},
	}
	for t := range Type(NumTypes) {
		b.out.byType[t] = map[string]*Resource{}
	}
	return b
}

// Compile compiles a single snapshot.
func Compile(s *mesh.Snapshot, f Flavour) (*Resources, error) {
	c := Compiler{Flavour: f}
	return c.Compile(s)
}

// build is one compilation, of a whole or of what belongs to one upstream.
type build struct {
	s           *mesh.Snapshot
	flavour     Flavour
	shared      *Shared
	extensions  *extensions
	upstream    *mesh.Upstream // nil for a whole
	trustDomain string
	old, memo   memo
	out         *Resources
	outbound    []*outbound
}

// made is what a resource is made of: the message and what it refers to.
type made struct {
	message  proto.Message
	children []string
	uses     []ref
}

// add makes a resource, or takes that of the last compilation when it was made from the same things. A resource of that
// name that is there already stays: it is made the same way for whoever shares it.
func (b *build) add(t Type, name string, from []any, make func() (made, error)) error {
	return b.addResource(t, name, from, func() (*Resource, error) {
		m, err := make()
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", t, name, err)
		}
		if err := b.extend(t, &m); err != nil {
			return nil, err
		}
		r, err := NewResource(name, m.message, m.children...)
		if err != nil {
			return nil, fmt.Errorf("%s %w", t, err)
		}
		r.uses = m.uses
		return b.shared.one(t, r), nil
	})
}

func (b *build) addResource(t Type, name string, from []any, make func() (*Resource, error)) error {
	if b.out.byType[t][name] != nil {
		return nil
	}
	if !b.extensions.empty() {
		from = append(slices.Clip(from), b.extensions)
	}
	key := ref{t, name}
	e := b.old[key]
	if e != nil && slices.Equal(e.from, from) {
		b.out.Problems = append(b.out.Problems, e.problems...)
	} else {
		known := len(b.out.Problems)
		r, err := make()
		if err != nil {
			return err
		}
		e = &memoEntry{from, r, slices.Clone(b.out.Problems[known:])}
	}
	b.memo[key] = e
	b.out.byType[t][name] = e.resource
	return nil
}

// problem records what was left out.
func (b *build) problem(format string, args ...any) {
	b.out.Problems = append(b.out.Problems, fmt.Errorf(format, args...))
}

func (b *build) sidecar() error {
	if b.flavour == Own {
		if err := b.secrets(); err != nil {
			return err
		}
	}
	if err := b.localApp(); err != nil {
		return err
	}
	if err := b.publicListener(); err != nil {
		return err
	}
	if err := b.tokenClusters(); err != nil {
		return err
	}
	if err := b.extensionClusters(); err != nil {
		return err
	}
	return b.exposed()
}

// part makes everything for an upstream, or takes what was made last time, if it was made from the same things. An
// upstream is served as a whole or not at all, so that what fails in one leaves the others alone. The error is that of an
// extension.
func (c *Compiler) part(last *part, s *mesh.Snapshot, u *mesh.Upstream, x *extensions) (*part, error) {
	p := &part{upstream: u, from: []any{u, s.Chain(u), x, s.Proxy, s.Mesh(), s.Roots(), s.Leaf()}}
	for _, n := range s.UpstreamNeeds(u) {
		p.from = append(p.from, s.Answer(n))
	}
	var old memo
	if last != nil {
		if slices.Equal(last.from, p.from) {
			return last, nil
		}
		old = last.memo
	}
	b := c.newBuild(s, x, old)
	b.upstream = u
	err := b.upstreamPart(u)
	p.memo, p.problems = b.memo, b.out.Problems
	if err != nil {
		if failed := (*extensionError)(nil); errors.As(err, &failed) {
			return nil, failed
		}
		p.problems = append(p.problems, fmt.Errorf("upstream %s: %w", u.ID, err))
		return p, nil
	}
	for t := range Type(NumTypes) {
		for _, name := range sortedKeys(b.out.byType[t]) {
			p.resources[t] = append(p.resources[t], b.out.byType[t][name])
		}
	}
	p.outbound = b.outbound
	if last != nil {
		p.keep(last.outbound)
	}
	return p, nil
}

// upstreamPart makes everything for one upstream, as far as enough is known about it.
func (b *build) upstreamPart(u *mesh.Upstream) error {
	if b.flavour == Proxyless && u.Kind != mesh.ToChain && u.Kind != mesh.ToNothing {
		return errProxyless
	}
	switch u.Kind {
	case mesh.ToChain:
		if c := b.s.Chain(u); c != nil {
			return b.chainUpstream(u, c)
		}
	case mesh.ToPeer:
		return b.peerUpstream(u)
	case mesh.ToQuery:
		return b.queryUpstream(u)
	case mesh.ToDestination:
		return b.destinationUpstream(u)
	}
	return nil
}

// chainUpstream makes everything for an upstream with a discovery chain.
func (b *build) chainUpstream(u *mesh.Upstream, c *chain.Chain) error {
	if start := c.Nodes[c.StartNode]; start == nil {
		return fmt.Errorf("the chain of %s has no start", c.ServiceName)
	}
	if err := b.chainClusters(u, c); err != nil || b.s.Gateway != nil {
		return err // listeners of gateways are for several services
	}
	if b.flavour == Proxyless {
		return b.proxylessChain(u, c)
	}
	lead := func() (*lead, error) { return b.chainLead(u, c) }
	if !u.Bound() {
		return b.virtualChain(u, c, lead)
	}
	if err := b.chainRoutes(u, c); err != nil {
		return err
	}
	return b.upstreamListener(u, c, lead)
}

// Protocols that are told apart from plain bytes.
func isHTTP(protocol string) bool {
	return protocol == "http" || protocol == "http2" || protocol == "grpc"
}

func isHTTP2(protocol string) bool { return protocol == "http2" || protocol == "grpc" }
