package leaf_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/client/leaf"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/testkit"
)

const clusterID = "11111111-2222-3333-4444-555555555555"

// servers stands for the servers: it answers for roots, and signs.
type servers struct {
	t   *testing.T
	ttl time.Duration

	mu      sync.Mutex
	index   uint64
	roots   []*ca.Root
	signers map[string]ca.Provider
	changed chan struct{}
	err     error // of signing
	rootErr error // of asking for roots
	signed  []time.Time
	csrs    map[string]bool // public parts, to see that no key is used twice
	tokens  []string
}

func newServers(t *testing.T, ttl time.Duration) *servers {
	s := &servers{t: t, ttl: ttl, changed: make(chan struct{}), signers: map[string]ca.Provider{}, csrs: map[string]bool{}}
	s.rotate()
	return s
}

func (s *servers) rotate() {
	key, err := ca.GenerateKey(rand.Reader, ca.KeyEC, 256)
	if err != nil {
		s.t.Fatal(err)
	}
	text, err := ca.NewRoot(ca.RootParams{
		Key: key, Serial: 1, ClusterID: clusterID, Label: "x", Now: time.Now(), TTL: 100 * 365 * 24 * time.Hour, Random: rand.Reader,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	root, err := ca.DescribeRoot(text, "x", clusterID)
	if err != nil {
		s.t.Fatal(err)
	}
	p, err := ca.NewBuiltIn(text, key, rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signers[root.ID] = p
	s.roots = ca.Rotate(s.roots, root, time.Now(), s.ttl)
	s.wake()
}

// wake tells waiting calls of a change; s.mu is held.
func (s *servers) wake() {
	s.index += 10
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *servers) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *servers) signatures() []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.signed)
}

func (s *servers) attempts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.tokens)
}

func (s *servers) Call(ctx context.Context, d rpc.Descriptor, req, resp any) error {
	switch req := req.(type) {
	case *ca.RootsRequest:
		for {
			s.mu.Lock()
			index, changed, roots, err := s.index, s.changed, s.roots, s.rootErr
			s.mu.Unlock()
			if err != nil {
				return err
			}
			if index > req.MinIndex || req.MinIndex == 0 {
				r := resp.(*ca.RootsReply)
				r.Index, r.TrustDomain, r.Roots = index, connect.TrustDomain(clusterID), roots
				r.ActiveRootID = ca.ActiveRoot(roots).ID
				return nil
			}
			select {
			case <-changed:
			case <-time.After(req.MaxWait):
				req.MinIndex = 0
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	case *ca.SignRequest:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.tokens = append(s.tokens, req.Token)
		if s.err != nil {
			return s.err
		}
		if s.csrs[req.CSR] {
			s.t.Error("the same request was sent twice")
		}
		s.csrs[req.CSR] = true
		r, err := ca.ParseCSR(req.CSR, connect.TrustDomain(clusterID), "dc1")
		if err != nil {
			return err
		}
		root := ca.ActiveRoot(s.roots)
		leaf, err := ca.SignLeaf(ctx, r, ca.LeafParams{Provider: s.signers[root.ID], Root: root, Serial: []byte{1, byte(len(s.signed))}, Now: time.Now(), TTL: s.ttl})
		if err != nil {
			return err
		}
		leaf.CreateIndex, leaf.ModifyIndex = s.index, s.index
		s.signed = append(s.signed, time.Now())
		resp.(*ca.SignReply).Leaf = *leaf
		return nil
	}
	return fmt.Errorf("unexpected call %s", d.Name)
}

// run runs f in virtual time with a keeper that works.
func run(t *testing.T, ttl time.Duration, cfg leaf.Config, f func(t *testing.T, s *servers, k *leaf.Keeper)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := newServers(t, ttl)
		cfg.Datacenter = "dc1"
		if cfg.Chance == nil {
			cfg.Chance = func() float64 { return 0.5 }
		}
		k := leaf.New(s, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- k.Run(ctx) }()
		f(t, s, k)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func get(t *testing.T, k *leaf.Keeper, r leaf.Request) leaf.Result {
	t.Helper()
	res, err := k.Get(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

var web = leaf.Request{Service: "web", Token: "secret"}

func TestLeafIsSharedUntilItIsDue(t *testing.T) {
	run(t, 72*time.Hour, leaf.Config{}, func(t *testing.T, s *servers, k *leaf.Keeper) {
		first := get(t, k, web)
		if first.Hit || first.Leaf.Service != "web" || first.Leaf.ServiceURI != "spiffe://"+connect.TrustDomain(clusterID)+"/ns/default/dc/dc1/svc/web" {
			t.Errorf("first %+v", first.Leaf)
		}
		checkPair(t, first.Leaf)
		second := get(t, k, web)
		if !second.Hit || second.Leaf != first.Leaf || second.Index != first.Index {
			t.Error("the second caller got another leaf")
		}
		if other := get(t, k, leaf.Request{Service: "web", Token: "other"}); other.Leaf.SerialNumber == first.Leaf.SerialNumber {
			t.Error("a leaf was given to another token")
		}
		if got := get(t, k, leaf.Request{Agent: "node1"}); got.Leaf.Agent != "node1" {
			t.Errorf("agent leaf %+v", got.Leaf)
		}
		if got := get(t, k, leaf.Request{MeshGateway: true}); got.Leaf.Kind != "mesh-gateway" {
			t.Errorf("gateway leaf %+v", got.Leaf)
		}
		if got := get(t, k, leaf.Request{Server: true}); got.Leaf.ServerURI == "" {
			t.Errorf("server leaf %+v", got.Leaf)
		}
		if _, err := k.Get(t.Context(), leaf.Request{}); err != leaf.ErrIdentity {
			t.Errorf("nothing asked for: %v", err)
		}
	})
}

// checkPair checks that key and certificate belong together.
func checkPair(t *testing.T, l *ca.Leaf) {
	t.Helper()
	key, err := ca.ParseKey(l.PrivateKeyPEM)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.ParseCertificate(l.CertPEM)
	if err != nil {
		t.Fatal(err)
	}
	if !cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(key.Public()) {
		t.Error("key and certificate do not belong together")
	}
}

// A service keeps a valid certificate over 400 of its lifetimes, renewed between 50 and 65 % of each, a new key every
// time, while the root is replaced now and then (spec/threats.md pain 4).
func TestRenewalOver400Lifetimes(t *testing.T) {
	const ttl = 72 * time.Hour
	seed := testkit.Seed(t)
	rng := mathrand.New(mathrand.NewPCG(seed, 0))
	var mu sync.Mutex
	chance := func() float64 {
		mu.Lock()
		defer mu.Unlock()
		return rng.Float64()
	}
	run(t, ttl, leaf.Config{Chance: chance}, func(t *testing.T, s *servers, k *leaf.Keeper) {
		start := time.Now()
		watcher, req := get(t, k, web), web
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-time.After(60 * ttl):
					s.rotate()
				case <-stop:
					return
				}
			}
		}()
		defer func() {
			close(stop)
			<-stopped
		}()
		rotations := 0
		for time.Since(start) < 400*ttl {
			req.MinIndex, req.MaxWait = watcher.Index, 4*ttl
			next := get(t, k, req)
			now := time.Now()
			if next.Index <= watcher.Index || next.Leaf.SerialNumber == watcher.Leaf.SerialNumber && next.Leaf.CertPEM == watcher.Leaf.CertPEM {
				t.Fatalf("woken with the same leaf: index %d after %d", next.Index, watcher.Index)
			}
			if !now.Before(watcher.Leaf.ValidBefore) {
				t.Fatalf("renewed at %v, valid until %v", now, watcher.Leaf.ValidBefore)
			}
			life := watcher.Leaf.ValidBefore.Sub(watcher.Leaf.ValidAfter)
			share := float64(now.Sub(watcher.Leaf.ValidAfter)) / float64(life)
			if next.Leaf.RootID != watcher.Leaf.RootID {
				rotations++
			} else if share < 0.5 || share > 0.65 {
				t.Fatalf("renewed at %.3f of its life", share)
			}
			checkPair(t, next.Leaf)
			watcher = next
		}
		if n := len(s.signatures()); n < 400*100/90 || n > 700+10*rotations || rotations < 5 {
			t.Errorf("%d signatures, %d rotations", n, rotations)
		}
	})
}

func TestRootChangeGivesNewLeavesSpreadOut(t *testing.T) {
	rng := mathrand.New(mathrand.NewPCG(1, 2))
	var mu sync.Mutex
	chance := func() float64 {
		mu.Lock()
		defer mu.Unlock()
		return rng.Float64()
	}
	run(t, 72*time.Hour, leaf.Config{Chance: chance}, func(t *testing.T, s *servers, k *leaf.Keeper) {
		for i := range 50 {
			get(t, k, leaf.Request{Service: fmt.Sprint("s", i)})
		}
		time.Sleep(time.Hour)
		changed := time.Now()
		s.rotate()
		time.Sleep(31 * time.Second)
		synctest.Wait()
		after := s.signatures()[50:]
		if len(after) != 50 {
			t.Fatalf("%d new leaves", len(after))
		}
		early, late := 0, 0
		for _, at := range after {
			switch d := at.Sub(changed); {
			case d > 30*time.Second:
				t.Errorf("after %v", d)
			case d < 10*time.Second:
				early++
			case d > 20*time.Second:
				late++
			}
		}
		if early < 5 || late < 5 {
			t.Errorf("not spread: %d early, %d late", early, late)
		}
		if got := get(t, k, leaf.Request{Service: "s0"}); got.Leaf.RootID != activeID(s) || !got.Hit {
			t.Errorf("signed under %s", got.Leaf.RootID)
		}
	})
}

func activeID(s *servers) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return ca.ActiveRoot(s.roots).ID
}

func TestPlainReadsAreValidUnderThePresentRoots(t *testing.T) {
	run(t, 72*time.Hour, leaf.Config{}, func(t *testing.T, s *servers, k *leaf.Keeper) {
		get(t, k, web)
		s.rotate()
		// The old root is gone at once: nobody waits for the random moment.
		s.mu.Lock()
		s.roots = slices.DeleteFunc(slices.Clone(s.roots), func(r *ca.Root) bool { return !r.Active })
		s.wake()
		s.mu.Unlock()
		synctest.Wait()
		start := time.Now()
		if got := get(t, k, web); got.Leaf.RootID != activeID(s) || time.Since(start) != 0 {
			t.Errorf("after %v signed under %s", time.Since(start), got.Leaf.RootID)
		}
	})
}

func TestBlockingGetWaits(t *testing.T) {
	run(t, 72*time.Hour, leaf.Config{}, func(t *testing.T, s *servers, k *leaf.Keeper) {
		first := get(t, k, web)
		start := time.Now()
		same := get(t, k, leaf.Request{Service: "web", Token: "secret", MinIndex: first.Index, MaxWait: time.Minute})
		if same.Leaf != first.Leaf || time.Since(start) != time.Minute {
			t.Errorf("after %v: index %d", time.Since(start), same.Index)
		}
		// An index from the future waits the whole time, and learns the real one.
		if got := get(t, k, leaf.Request{Service: "web", Token: "secret", MinIndex: 1 << 40, MaxWait: time.Minute}); got.Index != first.Index {
			t.Errorf("index %d", got.Index)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := k.Get(ctx, leaf.Request{Service: "web", Token: "secret", MinIndex: first.Index}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled: %v", err)
		}
	})
}

var errAway = errors.New("No cluster leader")

func TestOldLeafIsServedWhileRenewalFails(t *testing.T) {
	run(t, 10*time.Hour, leaf.Config{}, func(t *testing.T, s *servers, k *leaf.Keeper) {
		first := get(t, k, web)
		s.fail(errAway)
		time.Sleep(9 * time.Hour)
		got := get(t, k, web)
		if got.Leaf != first.Leaf || got.Age == 0 {
			t.Errorf("while the servers are away: %+v", got)
		}
		attempts := s.attempts()
		time.Sleep(2 * time.Hour) // it expires
		if _, err := k.Get(t.Context(), web); !errors.Is(err, errAway) {
			t.Errorf("expired: %v", err)
		}
		if n := s.attempts() - attempts; n < 60 || n > 240 {
			t.Errorf("%d attempts in two hours", n)
		}
		s.fail(nil)
		time.Sleep(2 * time.Minute)
		if got := get(t, k, web); got.Leaf.SerialNumber == first.Leaf.SerialNumber || got.Age != 0 || got.Index <= first.Index {
			t.Errorf("after they are back: %+v", got)
		}
	})
}

func TestRefusalIsToldAtOnceAndForgotten(t *testing.T) {
	run(t, 72*time.Hour, leaf.Config{}, func(t *testing.T, s *servers, k *leaf.Keeper) {
		denied := errors.New("Permission denied: no")
		s.fail(denied)
		start := time.Now()
		for range 3 {
			if _, err := k.Get(t.Context(), web); !errors.Is(err, denied) || time.Since(start) != 0 {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
		}
		time.Sleep(time.Hour)
		if n := s.attempts(); n != 3 {
			t.Errorf("%d attempts for 3 callers", n)
		}
		s.fail(nil)
		get(t, k, web)
	})
}

func TestRateLimitIsWaitedOut(t *testing.T) {
	run(t, 72*time.Hour, leaf.Config{}, func(t *testing.T, s *servers, k *leaf.Keeper) {
		busy := errors.New("Rate limit reached, try again later")
		s.fail(busy)
		go func() {
			time.Sleep(6 * time.Second)
			s.fail(nil)
		}()
		start := time.Now()
		get(t, k, web)
		if d := time.Since(start); d < 6*time.Second || d > 10*time.Second {
			t.Errorf("after %v", d)
		}
		s.fail(busy)
		start = time.Now()
		if _, err := k.Get(t.Context(), leaf.Request{Service: "db"}); !errors.Is(err, busy) || time.Since(start) != 10*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

func TestRightIsAskedForEveryTime(t *testing.T) {
	var mu sync.Mutex
	revoked := false
	denied := errors.New("Permission denied")
	cfg := leaf.Config{Authorize: func(_ context.Context, token string, id connect.ID) error {
		mu.Lock()
		defer mu.Unlock()
		if token != "secret" || id.Name() != "web" || revoked {
			return denied
		}
		return nil
	}}
	run(t, 72*time.Hour, cfg, func(t *testing.T, s *servers, k *leaf.Keeper) {
		get(t, k, web)
		if _, err := k.Get(t.Context(), leaf.Request{Service: "web", Token: "other"}); err != denied {
			t.Errorf("another token: %v", err)
		}
		mu.Lock()
		revoked = true
		mu.Unlock()
		if _, err := k.Get(t.Context(), web); err != denied {
			t.Errorf("after the right was taken away: %v", err)
		}
		if n := s.attempts(); n != 1 {
			t.Errorf("%d certificates were asked for", n)
		}
	})
}

func TestUnusedLeavesAreForgotten(t *testing.T) {
	run(t, 10*time.Hour, leaf.Config{IdleTTL: 72 * time.Hour}, func(t *testing.T, s *servers, k *leaf.Keeper) {
		get(t, k, web)
		time.Sleep(300 * time.Hour)
		n := len(s.signatures())
		if n < 10 || n > 13 {
			t.Errorf("%d certificates", n)
		}
		time.Sleep(300 * time.Hour)
		if again := len(s.signatures()); again != n {
			t.Errorf("%d more certificates for nobody", again-n)
		}
		get(t, k, web)
	})
}

func TestStartWithoutServers(t *testing.T) {
	run(t, 72*time.Hour, leaf.Config{}, func(t *testing.T, s *servers, k *leaf.Keeper) {
		// Roots are known from the start here; make the keeper anew against servers that are away.
		s.mu.Lock()
		s.rootErr = errAway
		s.mu.Unlock()
		fresh := leaf.New(s, leaf.Config{Datacenter: "dc1", Chance: func() float64 { return 0.5 }})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- fresh.Run(ctx) }()
		start := time.Now()
		if _, err := fresh.Get(t.Context(), web); !errors.Is(err, errAway) || time.Since(start) > 5*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		s.mu.Lock()
		s.rootErr = nil
		s.mu.Unlock()
		time.Sleep(2 * time.Minute)
		get(t, fresh, web)
		cancel()
		<-done
		s.mu.Lock()
		s.wake()
		s.mu.Unlock()
	})
}

func TestManyCallersShareOneSignature(t *testing.T) {
	run(t, 72*time.Hour, leaf.Config{}, func(t *testing.T, s *servers, k *leaf.Keeper) {
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, err := k.Get(t.Context(), web); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := len(s.signatures()); n != 1 {
			t.Errorf("%d signatures", n)
		}
	})
}
