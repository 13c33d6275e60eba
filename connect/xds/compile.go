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

	memo map[memoKey]*Resource // of the last compilation
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
	b := &build{s: s, flavour: c.Flavour, old: c.memo, memo: map[memoKey]*Resource{}, out: &Resources{
		Service: s.Proxy.Identity(), Problems: slices.Clone(s.Problems),
	}}
	for t := range Type(NumTypes) {
		b.out.byType[t] = map[string]*Resource{}
	}
	b.trustDomain = s.Roots().TrustDomain
	if err := b.sidecar(); err != nil {
		return nil, err
	}
	b.out.index()
	if err := b.out.check(); err != nil {
		return nil, err
	}
	c.memo = b.memo
	return b.out, nil
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
	for _, u := range b.s.Upstreams {
		c := b.s.Chain(u)
		if !u.Followed() || c == nil {
			continue
		}
		// An upstream is served as a whole or not at all, so that what fails in one leaves the others alone.
		part := &build{s: b.s, flavour: b.flavour, trustDomain: b.trustDomain, old: b.old, memo: b.memo, out: &Resources{}}
		for t := range Type(NumTypes) {
			part.out.byType[t] = map[string]*Resource{}
		}
		if err := part.upstream(u, c); err != nil {
			b.problem("upstream %s: %w", u.ID, err)
			continue
		}
		for t := range Type(NumTypes) {
			for name, r := range part.out.byType[t] {
				if b.out.byType[t][name] == nil {
					b.out.byType[t][name] = r
				}
			}
		}
		b.out.Problems = append(b.out.Problems, part.out.Problems...)
	}
	return nil
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
