package aclrpc_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/aclrpc"
)

// A pair is a server of the primary datacenter, dc1, and one of another.
type pair struct {
	primary, second *server

	mu    sync.Mutex
	asked int
	err   error         // of asking the primary one
	wait  time.Duration // of asking it
}

// answers sets how the primary answers from now on.
func (p *pair) answers(err error, after time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err, p.wait = err, after
}

func newPair(t *testing.T, cfg aclrpc.Config) *pair {
	t.Helper()
	p := &pair{primary: newRooted(t)}
	cfg.Enabled, cfg.Datacenter, cfg.PrimaryDatacenter, cfg.DefaultPolicy = true, "dc2", "dc1", aclrpc.Deny
	cfg.Primary = func(ctx context.Context, d rpc.Descriptor, req, resp any) error {
		p.mu.Lock()
		p.asked++
		err, wait := p.err, p.wait
		p.mu.Unlock()
		time.Sleep(wait)
		if err != nil {
			return err
		}
		return p.primary.Caller().Call(ctx, d, req, resp)
	}
	p.second = bareServer(t, cfg)
	if err := p.second.control.Initialize(t.Context(), p.second.Store, p.second.Apply); err != nil || p.second.Index() != 0 {
		t.Fatalf("another datacenter made tokens or policies of its own: %v", err)
	}
	return p
}

// A token of the primary datacenter has the rights here that its policies give it here, for as long as was heard of it.
func TestTokensOfThePrimaryDatacenter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, aclrpc.Config{})
		must(p.primary.setPolicy(root, acl.Policy{Name: "there", Rules: `key "there" { policy = "write" }`, Datacenters: []string{"dc2"}}))(t)
		must(p.primary.setPolicy(root, acl.Policy{Name: "here", Rules: `key "here" { policy = "write" }`, Datacenters: []string{"dc1"}}))(t)
		k := p.primary.createToken(acl.Token{
			Policies:       []acl.Link{{Name: "there"}, {Name: "here"}},
			NodeIdentities: []acl.NodeIdentity{{NodeName: "n", Datacenter: "dc2"}, {NodeName: "m", Datacenter: "dc1"}},
		})
		local := p.primary.createToken(acl.Token{Local: true, Policies: []acl.Link{{ID: acl.ManagementID}}})
		for key, want := range map[string]bool{"there": true, "here": false, "else": false} {
			if got := p.second.may(k.SecretID, acl.Key, acl.Write, key); got != want {
				t.Errorf("key %s: %v", key, got)
			}
		}
		if !p.second.may(k.SecretID, acl.Node, acl.Write, "n") || p.second.may(k.SecretID, acl.Node, acl.Write, "m") {
			t.Error("node identities")
		}
		if p.asked != 1 {
			t.Errorf("asked %d times", p.asked)
		}
		if !p.second.may(root, acl.ACL, acl.Write, "") {
			t.Error("management is none there")
		}
		if _, err := p.second.control.Resolve(t.Context(), local.SecretID); wireerr.Status(err) != 403 || !strings.Contains(err.Error(), `Permission denied: This is a local token in datacenter "dc1"`) {
			t.Errorf("a local token elsewhere: %v", err)
		}
		if _, err := p.second.control.Resolve(t.Context(), unused); !errors.Is(err, wireerr.ErrTokenNotFound) {
			t.Errorf("unknown: %v", err)
		}

		// An agent there is told the same.
		req := &access.ResolveRequest{}
		req.Token = k.SecretID
		reply := must(access.ResolveCall.Call(t.Context(), p.second.Caller(), req))(t)
		if reply.Token.AccessorID != k.AccessorID || reply.Token.SecretID != "" || len(reply.Policies) != 2 || reply.Policies[0].Name != "there" {
			t.Errorf("told %+v with %d policies", reply.Token, len(reply.Policies))
		}
		// Also one's own token can be read there.
		self := must(p.second.readToken(k.SecretID, access.TokenReadRequest{Self: true}))(t).Token
		if self.SecretID != k.SecretID {
			t.Errorf("self %+v", self)
		}
		if all := must(p.second.listTokens(root, access.TokenListRequest{}))(t); len(all) != 4 {
			t.Errorf("%d tokens are listed", len(all))
		}

		// What is deleted is refused when what was heard is no longer good.
		if err := p.primary.deleteToken(root, k.AccessorID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if _, err := p.second.control.Resolve(t.Context(), k.SecretID); !errors.Is(err, wireerr.ErrTokenNotFound) {
			t.Errorf("deleted: %v", err)
		}

		// The anonymous token is the primary's.
		must(p.primary.setToken(root, access.TokenSetRequest{Token: acl.Token{AccessorID: acl.AnonymousID, Policies: []acl.Link{{Name: "there"}}}}))(t)
		if !p.second.may("", acl.Key, acl.Write, "there") || p.second.may("", acl.Key, acl.Write, "here") {
			t.Error("rights of nobody")
		}
		if reply := must(access.ResolveCall.Call(t.Context(), p.second.Caller(), &access.ResolveRequest{}))(t); reply.Token == nil || len(reply.Policies) != 1 {
			t.Errorf("nobody: told %+v", reply)
		}
	})
}

// While the primary datacenter cannot be asked, the down policy holds.
func TestDownPolicies(t *testing.T) {
	for _, tt := range []struct {
		policy                  string
		known, revoked, unknown bool // may what a token that is known may, what it may not, what one that is not may
	}{
		{aclrpc.ExtendCache, true, false, false},
		{aclrpc.AsyncCache, true, false, false},
		{aclrpc.Allow, true, true, true},
		{aclrpc.Deny, false, false, false},
	} {
		t.Run(tt.policy, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, aclrpc.Config{DownPolicy: tt.policy, TokenTTL: time.Minute})
				must(p.primary.setPolicy(root, acl.Policy{Name: "p", Rules: `key "a" { policy = "write" }`}))(t)
				end := time.Now().Add(time.Hour)
				k := p.primary.createToken(acl.Token{Policies: []acl.Link{{Name: "p"}}, ExpirationTime: &end})
				if !p.second.may(k.SecretID, acl.Key, acl.Write, "a") {
					t.Fatal("rights at first")
				}
				p.answers(wireerr.ErrNoDatacenter, 0)
				time.Sleep(59 * time.Second)
				if !p.second.may(k.SecretID, acl.Key, acl.Write, "a") {
					t.Error("what was heard is forgotten early")
				}
				time.Sleep(time.Second)
				if got := p.second.may(k.SecretID, acl.Key, acl.Write, "a"); got != tt.known {
					t.Errorf("known token: %v", got)
				}
				if got := p.second.may(k.SecretID, acl.Key, acl.Write, "b"); got != tt.revoked {
					t.Errorf("what a known token may not: %v", got)
				}
				if got := p.second.may(unused, acl.Key, acl.Write, "a"); got != tt.unknown {
					t.Errorf("unknown token: %v", got)
				}
				p.answers(wireerr.ErrNoDatacenter, time.Minute)
				before := time.Now()
				if p.second.may(k.SecretID, acl.Key, acl.Write, "a"); time.Since(before) != 0 {
					t.Errorf("waited %v for what did not answer before", time.Since(before))
				}
				p.answers(wireerr.ErrNoDatacenter, 0)
				req := &access.ResolveRequest{}
				req.Token = unused
				if _, err := access.ResolveCall.Call(t.Context(), p.second.Caller(), req); err == nil || wireerr.Status(err) != 500 {
					t.Errorf("an agent asks about an unknown token: %v", err)
				}
				p.answers(nil, 0)
				time.Sleep(time.Second)
				p.second.may(k.SecretID, acl.Key, acl.Write, "a") // asks, and does not wait
				synctest.Wait()
				if !p.second.may(k.SecretID, acl.Key, acl.Write, "a") {
					t.Error("the primary is back")
				}
				// What has expired is good by no policy that goes by what was known.
				p.answers(wireerr.ErrNoDatacenter, 0)
				time.Sleep(time.Until(end))
				if got := p.second.may(k.SecretID, acl.Key, acl.Write, "a"); got != tt.unknown {
					t.Errorf("expired token: %v", got)
				}
			})
		})
	}
}

func TestAsyncCacheAnswersAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, aclrpc.Config{DownPolicy: aclrpc.AsyncCache})
		pol := must(p.primary.setPolicy(root, acl.Policy{Name: "p", Rules: `key "a" { policy = "write" }`}))(t)
		k := p.primary.createToken(acl.Token{Policies: []acl.Link{{Name: "p"}}})
		if !p.second.may(k.SecretID, acl.Key, acl.Write, "a") {
			t.Fatal("rights at first")
		}
		must(p.primary.setPolicy(root, acl.Policy{ID: pol.ID, Name: "p"}))(t)
		p.answers(nil, time.Second)
		time.Sleep(30 * time.Second)
		start := time.Now()
		if !p.second.may(k.SecretID, acl.Key, acl.Write, "a") || time.Since(start) != 0 {
			t.Errorf("what was known is not used at once, but after %v", time.Since(start))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if p.second.may(k.SecretID, acl.Key, acl.Write, "a") || time.Since(start) != time.Second {
			t.Error("nobody has asked in the background")
		}
	})
}
