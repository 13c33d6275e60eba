package access_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/acl"
	calls "github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/access"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// servers are a fake cluster: the leader knows tokens at once, the others when they are told.
type servers struct {
	mu            sync.Mutex
	leader, stale map[string]*calls.ResolveReply
	down          error         // of every call
	noLeader      error         // of calls that the leader answers
	delay         time.Duration // of every call
	asked         int
}

func newServers() *servers {
	return &servers{leader: map[string]*calls.ResolveReply{}, stale: map[string]*calls.ResolveReply{}}
}

func (s *servers) Call(ctx context.Context, _ rpc.Descriptor, req, resp any) error {
	s.mu.Lock()
	s.asked++
	o := req.(*calls.ResolveRequest).Options
	known, down, noLeader, delay := s.leader[o.Token], s.down, s.noLeader, s.delay
	if o.Mode == read.Stale {
		known, noLeader = s.stale[o.Token], nil
	}
	s.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	switch {
	case down != nil:
		return down
	case noLeader != nil:
		return noLeader
	case known == nil:
		return wireerr.Remote(0, "ACL not found")
	}
	*resp.(*calls.ResolveReply) = *known
	return nil
}

// set makes a token with rules, known to the leader alone or to all.
func (s *servers) set(secret, rules string, everywhere bool) *calls.ResolveReply {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &calls.ResolveReply{
		Token: &acl.Token{AccessorID: "accessor-of-" + secret}, DefaultPolicy: "deny",
		Policies: []*acl.Policy{{ID: "policy-of-" + secret, Name: "p", Rules: rules, ModifyIndex: uint64(len(rules))}},
	}
	s.leader[secret] = r
	if everywhere {
		s.stale[secret] = r
	}
	return r
}

func (s *servers) remove(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.leader, secret)
	delete(s.stale, secret)
}

func (s *servers) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = err
}

// took returns how often the servers were asked since it was last called.
func (s *servers) took() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.asked
	s.asked = 0
	return n
}

// A token is good for the TTL from when it was found, by whomever.
func TestTokenScopeRevokedWithinTheTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServers()
		r := access.New(access.Config{Caller: s, DefaultDeny: true, TTL: time.Minute})
		s.set("token", webRules, true).Age = 40 * time.Second // a server of another datacenter has remembered it
		if got := outcome(t, r, "token"); got != "true false accessor-of-token" {
			t.Fatal(got)
		}
		s.remove("token")
		time.Sleep(19 * time.Second)
		if got := outcome(t, r, "token"); got != "true false accessor-of-token" {
			t.Errorf("asked again early: %s", got)
		}
		time.Sleep(time.Second)
		if got := outcome(t, r, "token"); got != "ACL not found" {
			t.Errorf("after the TTL: %s", got)
		}
		// What is older, since the primary datacenter is away, is not asked for with every request.
		s.set("old", webRules, true).Age = time.Hour
		outcome(t, r, "old")
		s.took()
		outcome(t, r, "old")
		if n := s.took(); n != 0 {
			t.Errorf("asked %d times at once", n)
		}
		time.Sleep(time.Second)
		outcome(t, r, "old")
		if n := s.took(); n != 1 {
			t.Errorf("asked %d times after a second", n)
		}
	})
}

const webRules = `service "web" { policy = "write" }`

// outcome is what became of a request to write the service "web", and one to write "db".
func outcome(t *testing.T, r *access.Resolver, secret string) string {
	t.Helper()
	z, err := r.Resolve(t.Context(), secret)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%v %v %s", z.May(acl.Service, acl.Write, "web"), z.May(acl.Service, acl.Write, "db"), z.Accessor())
}

func expect(t *testing.T, r *access.Resolver, secret, want string) {
	t.Helper()
	if got := outcome(t, r, secret); got != want {
		t.Errorf("after %v: got %q, want %q", time.Since(began), got, want)
	}
}

var began = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // of every bubble

// bubble runs a test in virtual time with a running resolver.
func bubble(t *testing.T, cfg access.Config, f func(t *testing.T, s *servers, r *access.Resolver)) {
	synctest.Test(t, func(t *testing.T) {
		s := newServers()
		cfg.Caller, cfg.NodeName = s, "node1"
		r := access.New(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		f(t, s, r)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestFoundTokensAreKeptForTheirTTL(t *testing.T) {
	bubble(t, access.Config{DefaultDeny: true}, func(t *testing.T, s *servers, r *access.Resolver) {
		s.set("a", webRules, true)
		expect(t, r, "a", "true false accessor-of-a")
		s.remove("a")
		time.Sleep(29 * time.Second)
		expect(t, r, "a", "true false accessor-of-a")
		if n := s.took(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		time.Sleep(time.Second)
		expect(t, r, "a", "ACL not found")
	})
}

func TestNewTokensAreGoodAtOnce(t *testing.T) {
	bubble(t, access.Config{DefaultDeny: true}, func(t *testing.T, s *servers, r *access.Resolver) {
		s.set("a", webRules, false) // the server that is asked has not heard of it
		expect(t, r, "a", "true false accessor-of-a")
		expect(t, r, "b", "ACL not found")
		s.took()
		expect(t, r, "b", "ACL not found")
		if n := s.took(); n != 0 {
			t.Errorf("an unknown token was asked for %d times more at once", n)
		}
		s.set("b", webRules, false)
		time.Sleep(time.Second)
		expect(t, r, "b", "true false accessor-of-b")
	})
}

// A server that says no, without a leader who might know better, is believed.
func TestUnknownTokensAreRefusedWithoutALeader(t *testing.T) {
	bubble(t, access.Config{Down: access.DownAllow}, func(t *testing.T, s *servers, r *access.Resolver) {
		s.noLeader = wireerr.ErrNoLeader
		expect(t, r, "a", "ACL not found")
	})
}

func TestDownPolicies(t *testing.T) {
	lost := wireerr.ErrNoServers
	for _, tt := range []struct {
		policy         access.DownPolicy
		deny           bool
		known, unknown string
	}{
		{access.DownAllow, true, "true true ", "true true "},
		{access.DownDeny, false, "false false accessor-of-a", "false false "},
		{access.DownExtend, true, "true false accessor-of-a", "false false "},
		{access.DownExtend, false, "true false accessor-of-a", "true true "},
		{access.DownAsync, true, "true false accessor-of-a", "false false "},
		{access.DownAsync, false, "true false accessor-of-a", "true true "},
	} {
		t.Run(fmt.Sprint(tt.policy, tt.deny), func(t *testing.T) {
			bubble(t, access.Config{Down: tt.policy, DefaultDeny: tt.deny}, func(t *testing.T, s *servers, r *access.Resolver) {
				s.set("a", webRules, true)
				expect(t, r, "a", "true false accessor-of-a")
				s.fail(lost)
				time.Sleep(10 * time.Second)
				expect(t, r, "a", "true false accessor-of-a") // the TTL is not over
				time.Sleep(time.Hour)
				for range 5 {
					expect(t, r, "a", tt.known)
					expect(t, r, "b", tt.unknown)
					time.Sleep(10 * time.Second)
				}
				s.fail(nil)
				outcome(t, r, "a")
				time.Sleep(2 * time.Second)
				expect(t, r, "a", "true false accessor-of-a")
				expect(t, r, "b", "ACL not found")
				s.remove("a")
				time.Sleep(31 * time.Second)
				outcome(t, r, "a") // with async-cache the last to be let in
				time.Sleep(time.Second)
				expect(t, r, "a", "ACL not found")
			})
		})
	}
}

// With extend-cache one request waits for servers that do not answer; those after it do not.
func TestExtendedEntriesDoNotWait(t *testing.T) {
	bubble(t, access.Config{DefaultDeny: true}, func(t *testing.T, s *servers, r *access.Resolver) {
		s.set("a", webRules, true)
		expect(t, r, "a", "true false accessor-of-a")
		s.fail(wireerr.ErrNoLeader)
		s.delay = 7 * time.Second
		time.Sleep(time.Minute)
		start := time.Now()
		expect(t, r, "a", "true false accessor-of-a")
		if d := time.Since(start); d != 7*time.Second {
			t.Errorf("the first waited %v", d)
		}
		start = time.Now()
		for range 100 {
			time.Sleep(time.Second)
			expect(t, r, "a", "true false accessor-of-a")
		}
		if d := time.Since(start); d != 100*time.Second {
			t.Errorf("the next hundred waited %v", d-100*time.Second)
		}
	})
}

func TestAsyncCacheAsksInTheBackground(t *testing.T) {
	bubble(t, access.Config{DefaultDeny: true, Down: access.DownAsync}, func(t *testing.T, s *servers, r *access.Resolver) {
		s.set("a", webRules, true)
		expect(t, r, "a", "true false accessor-of-a")
		s.set("a", `service_prefix "" { policy = "write" }`, true)
		s.delay = time.Second
		time.Sleep(time.Minute)
		start := time.Now()
		expect(t, r, "a", "true false accessor-of-a")
		if d := time.Since(start); d != 0 {
			t.Errorf("waited %v", d)
		}
		time.Sleep(2 * time.Second)
		expect(t, r, "a", "true true accessor-of-a")
	})
}

func TestQuestionsForOneTokenAreJoined(t *testing.T) {
	bubble(t, access.Config{DefaultDeny: true}, func(t *testing.T, s *servers, r *access.Resolver) {
		s.set("a", webRules, true)
		s.delay = time.Second
		gone, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := r.Resolve(gone, "a"); !errors.Is(err, context.Canceled) {
				t.Errorf("who went away got %v", err)
			}
		})
		synctest.Wait()
		for range 50 {
			wg.Go(func() { expect(t, r, "a", "true false accessor-of-a") })
		}
		synctest.Wait()
		cancel() // the one who asks goes away: one of the others asks in its place
		wg.Wait()
		if n := s.took(); n != 2 {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestTokensEndAtTheirExpiration(t *testing.T) {
	bubble(t, access.Config{DefaultDeny: true, TTL: time.Hour}, func(t *testing.T, s *servers, r *access.Resolver) {
		end := time.Now().Add(time.Minute)
		s.set("a", webRules, true).Token.ExpirationTime = &end
		expect(t, r, "a", "true false accessor-of-a")
		time.Sleep(time.Minute - time.Nanosecond)
		expect(t, r, "a", "true false accessor-of-a")
		time.Sleep(time.Nanosecond)
		expect(t, r, "a", "ACL not found")
	})
}

func TestRecoveryTokenWorksWithoutServers(t *testing.T) {
	recovery := "help"
	cfg := access.Config{Down: access.DownDeny, Recovery: func() string { return recovery }}
	bubble(t, cfg, func(t *testing.T, s *servers, r *access.Resolver) {
		s.fail(wireerr.ErrNoServers)
		z, err := r.Resolve(t.Context(), "help")
		if err != nil {
			t.Fatal(err)
		}
		if !z.May(acl.Agent, acl.Write, "node1") || !z.May(acl.Node, acl.Read, "any") || z.Accessor() != "agent-recovery:node1" {
			t.Error("lacks a right")
		}
		if z.May(acl.Agent, acl.Read, "node2") || z.May(acl.Node, acl.Write, "node1") || z.May(acl.Service, acl.Read, "web") || z.May(acl.Key, acl.Read, "") || z.May(acl.Operator, acl.Read, "") || z.May(acl.ACL, acl.Read, "") {
			t.Error("has a right too many")
		}
		if n := s.took(); n != 0 {
			t.Error("the servers were asked")
		}
		recovery = ""
		expect(t, r, "help", "false false ")
		expect(t, r, "", "false false ") // no recovery token is not an empty one
	})
}

// A text that is too long to be a token is not asked for, nor remembered.
func TestLongTextsAreNoTokens(t *testing.T) {
	bubble(t, access.Config{Down: access.DownAllow}, func(t *testing.T, s *servers, r *access.Resolver) {
		expect(t, r, strings.Repeat("x", 1<<20), "ACL not found")
		if n := s.took(); n != 0 {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestRefusedWords(t *testing.T) {
	bubble(t, access.Config{}, func(t *testing.T, s *servers, r *access.Resolver) {
		for _, word := range []string{"allow", "deny", "manage"} {
			expect(t, r, word, "Cannot resolve root ACL")
		}
	})
}

func TestServersThatHaveNoACLs(t *testing.T) {
	bubble(t, access.Config{DefaultDeny: true}, func(t *testing.T, s *servers, r *access.Resolver) {
		s.fail(wireerr.Remote(0, "ACL support disabled"))
		expect(t, r, "a", "true true ")
		s.fail(nil)
		time.Sleep(29 * time.Second)
		expect(t, r, "a", "true true ")
		if n := s.took(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		time.Sleep(time.Second)
		expect(t, r, "a", "ACL not found")
	})
}

// Errors are told as the servers tell them, and rules that cannot be read grant nothing.
func TestRefusalsKeepTheirText(t *testing.T) {
	bubble(t, access.Config{}, func(t *testing.T, s *servers, r *access.Resolver) {
		const text = `Permission denied: This is a local token in datacenter "dc2"`
		s.fail(wireerr.Remote(403, text))
		expect(t, r, "a", text)
		s.fail(wireerr.Remote(0, "ACL system must be bootstrapped before making any requests that require authorization: ACL not found"))
		expect(t, r, "b", "ACL system must be bootstrapped before making any requests that require authorization: ACL not found")
		s.fail(nil)
		s.set("c", `service "web" { policy = "own" }`, true)
		if _, err := r.Resolve(t.Context(), "c"); wireerr.Status(err) != 403 {
			t.Errorf("rules that cannot be read: %v", err)
		}
	})
}

// Who makes tokens up neither fills the memory nor keeps the servers busy, and does not disturb those with good ones.
func TestTokenFloods(t *testing.T) {
	bubble(t, access.Config{DefaultDeny: true, UnknownRate: 100, MaxTokens: 64}, func(t *testing.T, s *servers, r *access.Resolver) {
		s.set("good", webRules, true)
		expect(t, r, "good", "true false accessor-of-good")
		s.took()
		var wg sync.WaitGroup
		limited := 0
		var mu sync.Mutex
		for i := range 20000 {
			wg.Go(func() {
				_, err := r.Resolve(t.Context(), fmt.Sprint("made up ", i))
				mu.Lock()
				defer mu.Unlock()
				if errors.Is(err, wireerr.ErrRateLimited) {
					limited++
				} else if !errors.Is(err, wireerr.ErrTokenNotFound) {
					t.Errorf("a token nobody knows: %v", err)
				}
			})
		}
		synctest.Wait()
		expect(t, r, "good", "true false accessor-of-good")
		wg.Wait()
		if n := s.took(); n > 2*(32+2*100+1) || limited < 19000 {
			t.Errorf("asked %d times, limited %d", n, limited)
		}
		for i := range 200 { // good tokens are not held back, and kept as far as there is room
			secret := fmt.Sprint("token", i)
			s.set(secret, webRules, true)
			expect(t, r, secret, "true false accessor-of-"+secret)
		}
		expect(t, r, "token199", "true false accessor-of-token199")
	})
}

func TestServersResolveByTheirOwnState(t *testing.T) {
	n := 0
	r := access.New(access.Config{NodeName: "node1", Server: func(context.Context, string) (*acl.Authorizer, error) {
		n++
		return acl.Everything(), nil
	}})
	for range 3 {
		expect(t, r, "a", "true true ")
	}
	if n != 3 {
		t.Errorf("asked %d times", n)
	}
}

func TestGuardedIsOutOfReach(t *testing.T) {
	g := access.Guard("secret")
	if v, err := g.With(acl.Permit{}); v != "" || !errors.Is(err, access.ErrNoPermit) {
		t.Errorf("without a permit: %q, %v", v, err)
	}
	if v, err := g.With(acl.Open()); v != "secret" || err != nil {
		t.Errorf("with a permit: %q, %v", v, err)
	}
}

func TestHitsDoNotAllocate(t *testing.T) {
	s := newServers()
	s.set("3f2b8a4e-0a0c-4a6e-9d3a-1b2c3d4e5f60", webRules, true)
	r := access.New(access.Config{Caller: s, Recovery: func() string { return "9f2b8a4e-0a0c-4a6e-9d3a-1b2c3d4e5f60" }})
	if n := testing.AllocsPerRun(10_000, func() {
		z, err := r.Resolve(t.Context(), "3f2b8a4e-0a0c-4a6e-9d3a-1b2c3d4e5f60")
		if err != nil || !z.May(acl.Service, acl.Write, "web") {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkResolve(b *testing.B) {
	s := newServers()
	s.set("a", webRules, true)
	r := access.New(access.Config{Caller: s, TTL: time.Hour})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Resolve(b.Context(), "a"); err != nil {
			b.Fatal(err)
		}
	}
}
