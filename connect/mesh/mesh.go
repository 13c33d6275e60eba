// Package mesh holds what one proxy needs to know: its registration, the trust roots, its certificate, the intentions
// about its service, and the discovery chains and instances behind its upstreams. Which things those are is a function
// of the registration and of the answers so far (Snapshot.Needs); whoever keeps a snapshot current watches them and
// puts each answer in (Snapshot.With).
//
// The package is pure. Snapshots are immutable and shared.
package mesh

import (
	"maps"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
)

// A Registration is a proxy as it was registered, merged with the central configuration of its service, and where.
type Registration struct {
	Node       string
	Datacenter string
	Service    *catalog.Service
	// DefaultAllow is what is decided about a caller that no intention mentions.
	DefaultAllow bool
}

// A Snapshot is what is known for one proxy. Make one with New.
type Snapshot struct {
	Proxy *Registration
	// Config and Upstreams are the registration's, decoded. Upstreams are ordered by ID.
	Config    Config
	Upstreams []*Upstream
	// Problems are what could not be made sense of in the registration; defaults stand in for it.
	Problems []error

	answers map[Need]any
	// fallback has, by upstream ID, the chain in use while that of the present registration, or the instances of its
	// targets, are not known yet: an upstream that worked goes on working while what replaces it is fetched.
	fallback map[string]*chain.Chain
}

// New returns the snapshot of a proxy about which nothing is known but its registration.
func New(r *Registration) *Snapshot {
	s := &Snapshot{Proxy: r, answers: map[Need]any{}}
	var err error
	if s.Config, err = ParseConfig(r.Service.Proxy.Config); err != nil {
		s.Problems = append(s.Problems, err)
	}
	for i := range r.Service.Proxy.Upstreams {
		u, err := newUpstream(&r.Service.Proxy.Upstreams[i], r.Service.Proxy.MeshGateway)
		if err != nil {
			s.Problems = append(s.Problems, err)
		}
		s.Upstreams = append(s.Upstreams, u)
	}
	slices.SortStableFunc(s.Upstreams, func(a, b *Upstream) int { return strings.Compare(a.ID, b.ID) })
	return s
}

// Register returns a snapshot of the proxy under a new registration, with those answers that still serve.
func (s *Snapshot) Register(r *Registration) *Snapshot {
	n := New(r)
	n.answers = maps.Clone(s.answers)
	n.settle(s)
	return n
}

// With returns the snapshot with answers put in or replaced. Each is of the type its need documents. Answers nobody
// needs are left out.
func (s *Snapshot) With(answers map[Need]any) *Snapshot {
	n := *s
	n.answers = maps.Clone(s.answers)
	maps.Copy(n.answers, answers)
	// Newer answers of kinds that bring no further needs leave everything else as it is: the common case.
	if len(n.answers) != len(s.answers) || len(s.fallback) > 0 || hasChain(answers) {
		n.settle(s)
	}
	return &n
}

func hasChain(answers map[Need]any) bool {
	for n := range answers {
		if n.Kind == NeedChain {
			return true
		}
	}
	return false
}

// settle finds the chains to fall back to, given the snapshot before, and drops the answers that are not needed.
func (s *Snapshot) settle(before *Snapshot) {
	s.fallback = nil
	for _, u := range s.Upstreams {
		own := s.ownChain(u)
		if own != nil && s.answered(own) {
			continue
		}
		i := slices.IndexFunc(before.Upstreams, func(o *Upstream) bool { return o.ID == u.ID })
		if i < 0 {
			continue
		}
		if c := before.Chain(before.Upstreams[i]); c != nil && c != own {
			if s.fallback == nil {
				s.fallback = map[string]*chain.Chain{}
			}
			s.fallback[u.ID] = c
		}
	}
	needed := map[Need]bool{}
	for _, n := range s.Needs() {
		needed[n] = true
	}
	maps.DeleteFunc(s.answers, func(n Need, _ any) bool { return !needed[n] })
}

// answered reports whether the instances of all targets of a chain are known.
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
		_, mesh := s.answers[Need{Kind: NeedMesh}]
		_, intentions := s.answers[s.intentionsNeed()]
		return mesh && intentions && len(s.Roots().Roots) > 0 && s.Leaf() != nil
	}
	return false
}

// Has reports whether the answer to a need is known.
func (s *Snapshot) Has(n Need) bool { _, ok := s.answers[n]; return ok }

// Roots returns the trusted roots, empty while they are not known.
func (s *Snapshot) Roots() *ca.RootsReply {
	if r, ok := s.answers[Need{Kind: NeedRoots}].(*ca.RootsReply); ok {
		return r
	}
	return &noRoots
}

var noRoots ca.RootsReply

// Leaf returns the certificate of the proxy's service, nil while it is not known.
func (s *Snapshot) Leaf() *ca.Leaf {
	l, _ := s.answers[s.leafNeed()].(*ca.Leaf)
	return l
}

// Intentions returns the intentions about the proxy's service, highest precedence first.
func (s *Snapshot) Intentions() *intention.MatchReply {
	m, _ := s.answers[s.intentionsNeed()].(*intention.MatchReply)
	return m
}

// Mesh returns the mesh entry, nil when there is none.
func (s *Snapshot) Mesh() *entry.Mesh {
	r, _ := s.answers[Need{Kind: NeedMesh}].(*entry.GetReply)
	if r == nil {
		return nil
	}
	m, _ := r.Entry.Entry.(*entry.Mesh)
	return m
}

// Chain returns the discovery chain to use for an upstream, nil while none is known.
func (s *Snapshot) Chain(u *Upstream) *chain.Chain {
	if c := s.fallback[u.ID]; c != nil {
		return c
	}
	return s.ownChain(u)
}

func (s *Snapshot) ownChain(u *Upstream) *chain.Chain {
	r, _ := s.answers[s.chainNeed(u)].(*chain.GetReply)
	if r == nil {
		return nil
	}
	return r.Chain
}

// Instances returns the instances of a target of a chain, nil while they are not known.
func (s *Snapshot) Instances(t *chain.Target) *catalog.InstancesReply {
	r, _ := s.answers[s.instancesNeed(t)].(*catalog.InstancesReply)
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
