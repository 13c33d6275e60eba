package e2e

import (
	"context"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/client/bundle"
	"github.com/sarnmesh/sarn/client/leaf"
	"github.com/sarnmesh/sarn/client/local"
	"github.com/sarnmesh/sarn/connect/ads"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/connectrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
)

// A slowProxy is a proxy that takes its time to accept what its agent has: roots and certificates.
type slowProxy struct {
	keeper *leaf.Keeper
	name   string
	lag    func() time.Duration

	mu    sync.Mutex
	roots []*ca.Root // trusted
	leaf  *ca.Leaf   // shown
	news  chan struct{}
}

func (p *slowProxy) Trust(string) ([]ads.Trust, []string, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return []ads.Trust{{Proxy: p.name, Bundle: ca.Bundle(p.roots)}}, nil, p.news
}

func (p *slowProxy) Services() []*local.Service { return nil }

func (p *slowProxy) state() ([]*ca.Root, *ca.Leaf) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.roots, p.leaf
}

// followRoots accepts roots some time after the agent knows them.
func (p *slowProxy) followRoots(ctx context.Context) {
	for ctx.Err() == nil {
		roots, news, _ := p.keeper.Roots()
		if roots != nil {
			if time.Sleep(p.lag()); ctx.Err() != nil {
				return
			}
			p.mu.Lock()
			p.roots = roots.Roots
			close(p.news)
			p.news = make(chan struct{})
			p.mu.Unlock()
		}
		select {
		case <-news:
		case <-ctx.Done():
		}
	}
}

// followLeaf shows certificates some time after the agent has them.
func (p *slowProxy) followLeaf(ctx context.Context) {
	var index uint64
	for ctx.Err() == nil {
		r, err := p.keeper.Get(ctx, leaf.Request{Service: p.name, MinIndex: index})
		if err != nil || r.Index == index {
			continue
		}
		index = r.Index
		time.Sleep(p.lag())
		p.mu.Lock()
		p.leaf = r.Leaf
		p.mu.Unlock()
	}
}

// verify checks a certificate as a proxy does that trusts some roots; with nothing but the leaf, so that nothing is made
// up for by cross-signed certificates.
func verify(l *ca.Leaf, roots []*ca.Root) error {
	pool := x509.NewCertPool()
	for _, r := range roots {
		pool.AppendCertsFromPEM([]byte(r.RootCert))
	}
	cert, err := ca.ParseCertificate(l.CertPEM)
	if err != nil {
		return err
	}
	_, err = cert.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return err
}

// TestShortLeavesAreTrustedThroughRotations lets roots rotate by age every three hours while leaves live for one, in
// virtual time. Proxies on three nodes take up to two minutes to accept roots and certificates. At no time does one show
// a certificate that another does not trust, or that has expired.
func TestShortLeavesAreTrustedThroughRotations(t *testing.T) {
	seed := testkit.Seed(t)
	synctest.Test(t, func(t *testing.T) {
		s := rpctest.New()
		a := connectrpc.New(connectrpc.Config{Settings: map[string]any{
			"leaf_cert_ttl": "1h", "intermediate_cert_ttl": "3h", "root_cert_ttl": "50h", "rotation_period": "3h", "csr_max_per_second": 0,
		}})
		a.Register(&s.Registry, &s.Appliers)
		catalogrpc.Register(&s.Registry, &s.Appliers, catalogrpc.Config{})
		if err := a.Initialize(t.Context(), s.Store, s.Apply); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { a.Rotate(ctx, s.Store, s.Apply) })
		var proxies []*slowProxy
		for i := range 3 {
			node, name := fmt.Sprintf("n%d", i+1), fmt.Sprintf("svc%d", i+1)
			_, err := catalog.RegisterCall.Call(t.Context(), s.Caller(), &catalog.RegisterRequest{
				Node: node, Address: "10.0.0.1", Check: &catalog.Check{Node: node, CheckID: catalog.SerfCheckID, Status: catalog.Passing},
				Service: &catalog.Service{Kind: catalog.KindConnectProxy, ID: name, Service: name, Port: 1, Proxy: catalog.Proxy{DestinationServiceName: "x"}},
			})
			if err != nil {
				t.Fatal(err)
			}
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			var mu sync.Mutex
			chance := func() float64 { mu.Lock(); defer mu.Unlock(); return random.Float64() }
			p := &slowProxy{name: name, news: make(chan struct{}), lag: func() time.Duration { return time.Duration(chance() * float64(2*time.Minute)) }}
			p.keeper = leaf.New(s.Caller(), leaf.Config{Datacenter: "dc1", Chance: chance})
			r := bundle.New(bundle.Config{Node: node, Caller: s.Caller(), Leaves: p.keeper, Proxies: p, Services: p, Chance: chance})
			wg.Go(func() { p.keeper.Run(ctx) })
			wg.Go(func() { r.Run(ctx) })
			wg.Go(func() { p.followRoots(ctx) })
			wg.Go(func() { p.followLeaf(ctx) })
			proxies = append(proxies, p)
		}
		time.Sleep(5 * time.Minute) // until everybody has something

		signers := map[string]bool{}
		phases := map[string]int{}
		began, rotations := time.Now(), 20
		if testing.Short() {
			rotations = 3
		}
		for tick := 0; time.Since(began) < time.Duration(rotations)*3*time.Hour; tick++ {
			if tick%120 == 0 {
				if err := a.Maintain(ctx, s.Store, s.Apply); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			}
			r, err := ca.RotationCall.Call(ctx, s.Caller(), &ca.RotationRequest{})
			if err != nil {
				t.Fatal(err)
			}
			phases[r.Phase]++
			for _, from := range proxies {
				_, shown := from.state()
				signers[shown.RootID] = true
				for _, to := range proxies {
					if trusted, _ := to.state(); verify(shown, trusted) != nil {
						t.Fatalf("after %v, %s: %s does not trust %s: %v", time.Since(began), r.Phase, to.name, from.name, verify(shown, trusted))
					}
				}
			}
			time.Sleep(30 * time.Second)
		}
		if len(signers) < rotations*7/10 || len(signers) > rotations {
			t.Errorf("%d roots have signed in %v", len(signers), time.Since(began))
		}
		if phases[ca.PhaseRetiring] == 0 || !testing.Short() && (phases[ca.PhaseSpreading] == 0 || phases[ca.PhaseSigning] == 0) { // these are over soon
			t.Errorf("phases: %v", phases)
		}
		_, roots := s.Store.View().CARoots()
		if len(roots) > 3 || !slices.ContainsFunc(roots, func(r *ca.Root) bool { return r.Active }) {
			var ids []string
			for _, r := range roots {
				ids = append(ids, r.ID)
			}
			t.Errorf("roots at the end: %s", strings.Join(ids, " "))
		}
	})
}
