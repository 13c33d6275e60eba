package xds

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/mesh"
)

// A Flavour is a way of expressing the same configuration.
type Flavour uint8

const (
	// Envoy puts the certificate and the roots into every resource that uses them, as the reference does.
	Envoy Flavour = iota
	// Own delivers certificate and roots as secrets, so that renewing them replaces no listener or cluster, and lets
	// the first instance that fails be ejected however few there are.
	Own
	NumFlavours = iota
)

// ErrKind reports a registration of a kind that no resources are made for.
var ErrKind = errors.New("service must be a sidecar proxy or gateway")

// A Compiler compiles the successive snapshots of one proxy. It makes anew only what depends on what changed. It is not
// safe for concurrent use. The zero Compiler is ready.
type Compiler struct {
	Flavour Flavour

	memo  map[memoKey]*Resource // of the last compilation, of what belongs to no upstream
	parts map[string]*part      // of the last compilation, by upstream ID
}

// A part is all that was made for one upstream, and what it was made from.
type part struct {
	from      [6]any
	instances []*catalog.InstancesReply
	memo      map[memoKey]*Resource
	resources [NumTypes][]*Resource
	problems  []error
}

// A memoKey identifies a resource together with everything it was made from. Snapshots and the answers in them are
// immutable, so equal pointers mean equal content.
type memoKey struct {
	typ  Type
	name string
	from [6]any
}

// Compile returns the resources for a snapshot, which must be complete. It fails where serving what can be made would
// be unsafe or pointless; what concerns one upstream alone is left out and told in Problems.
func (c *Compiler) Compile(s *mesh.Snapshot) (*Resources, error) {
	if s.Proxy.Service.Kind != catalog.KindConnectProxy {
		return nil, ErrKind
	}
	b := newBuild(s, c.Flavour, c.memo)
	b.out.Service = s.Proxy.Identity()
	b.out.Problems = slices.Clone(s.Problems)
	if err := b.sidecar(); err != nil {
		return nil, err
	}
	parts := make(map[string]*part, len(s.Upstreams))
	for _, u := range s.Upstreams {
		if ch := s.Chain(u); ch != nil {
			parts[u.ID] = b.part(c.parts[u.ID], u, ch)
		}
	}
	b.out.index()
	if err := b.out.check(); err != nil {
		return nil, err
	}
	c.memo, c.parts = b.memo, parts
	return b.out, nil
}

func newBuild(s *mesh.Snapshot, f Flavour, old map[memoKey]*Resource) *build {
	b := &build{
		s: s, flavour: f, trustDomain: s.Roots().TrustDomain, old: old, memo: map[memoKey]*Resource{}, out: &Resources{},
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

// build is one compilation.
type build struct {
	s           *mesh.Snapshot
	flavour     Flavour
	trustDomain string
	old, memo   map[memoKey]*Resource
	out         *Resources
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
	if b.out.byType[t][name] != nil {
		return nil
	}
	key := memoKey{typ: t, name: name}
	if copy(key.from[:], from) < len(from) {
		panic("xds: a resource is made from too many things")
	}
	r := b.old[key]
	if r == nil {
		m, err := make()
		if err != nil {
			return fmt.Errorf("%s %s: %w", t, name, err)
		}
		if r, err = NewResource(name, m.message, m.children...); err != nil {
			return fmt.Errorf("%s %w", t, err)
		}
		r.uses = m.uses
	}
	b.memo[key] = r
	b.out.byType[t][name] = r
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
	if err := b.exposed(); err != nil {
		return err
	}
	return nil
}

// part adds everything for an upstream: the part made last time, if it was made from the same things, or a new one. An
// upstream is served as a whole or not at all, so that what fails in one leaves the others alone.
func (b *build) part(last *part, u *mesh.Upstream, c *chain.Chain) *part {
	p := &part{from: [6]any{u, c, b.s.Proxy, b.s.Mesh(), b.s.Roots(), b.s.Leaf()}}
	for _, key := range sortedKeys(c.Targets) {
		if t := c.Targets[key]; t != nil {
			p.instances = append(p.instances, b.s.Instances(t))
		}
	}
	if last != nil && last.from == p.from && slices.Equal(last.instances, p.instances) {
		p = last
	} else {
		var old map[memoKey]*Resource
		if last != nil {
			old = last.memo
		}
		own := newBuild(b.s, b.flavour, old)
		err := own.upstream(u, c)
		p.memo, p.problems = own.memo, own.out.Problems
		if err != nil {
			p.problems = append(p.problems, fmt.Errorf("upstream %s: %w", u.ID, err))
		} else {
			for t := range Type(NumTypes) {
				for _, r := range own.out.byType[t] {
					p.resources[t] = append(p.resources[t], r)
				}
			}
		}
	}
	for t, all := range p.resources {
		for _, r := range all {
			if b.out.byType[t][r.Name] == nil {
				b.out.byType[t][r.Name] = r
			}
		}
	}
	b.out.Problems = append(b.out.Problems, p.problems...)
	return p
}

// upstream makes everything for one explicit upstream.
func (b *build) upstream(u *mesh.Upstream, c *chain.Chain) error {
	if start := c.Nodes[c.StartNode]; start == nil {
		return fmt.Errorf("the chain of %s has no start", c.ServiceName)
	}
	if err := b.chainClusters(u, c); err != nil {
		return err
	}
	if err := b.chainRoutes(u, c); err != nil {
		return err
	}
	return b.upstreamListener(u, c)
}

// Protocols that are told apart from plain bytes.
func isHTTP(protocol string) bool {
	return protocol == "http" || protocol == "http2" || protocol == "grpc"
}

func isHTTP2(protocol string) bool { return protocol == "http2" || protocol == "grpc" }

// ownHTTP tells whether flavour Own has what concerns requests as flavour Envoy has it. While it is false, the built-in
// proxy is served every protocol as connections, under the rules for connections, where intentions that ask for something
// of a request refuse: a listener it does not know how to run would leave an older one, with older rules, in its place.
var ownHTTP = false

// bytesOnly reports whether everything is served as connections.
func (b *build) bytesOnly() bool { return b.flavour == Own && !ownHTTP }

// http reports whether requests of this protocol are told apart.
func (b *build) http(protocol string) bool { return isHTTP(protocol) && !b.bytesOnly() }

func (b *build) http2(protocol string) bool { return isHTTP2(protocol) && !b.bytesOnly() }
