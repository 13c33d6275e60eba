package aclrpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/aclrpc"
)

func TestChangesAreSeenByTheNextRequest(t *testing.T) {
	s := newRooted(t)
	p := must(s.setPolicy(root, acl.Policy{Name: "p", Rules: `key "a" { policy = "read" }`}))(t)
	r := must(s.setRole(root, acl.Role{Name: "r", Policies: []acl.Link{{ID: p.ID}}}))(t)
	k := s.createToken(acl.Token{Roles: []acl.Link{{ID: r.ID}}})
	if !s.may(k.SecretID, acl.Key, acl.Read, "a") || s.may(k.SecretID, acl.Key, acl.Write, "a") {
		t.Error("rights at first")
	}
	before := must(s.control.Resolve(t.Context(), k.SecretID))(t)
	s.createToken(acl.Token{Description: "another"})
	if must(s.control.Resolve(t.Context(), k.SecretID))(t) != before {
		t.Error("another token's creation has changed this one")
	}
	must(s.setPolicy(root, acl.Policy{ID: p.ID, Name: "p", Rules: `key "a" { policy = "write" }`}))(t)
	if !s.may(k.SecretID, acl.Key, acl.Write, "a") {
		t.Error("the new rules are not in force")
	}
	must(s.setPolicy(root, acl.Policy{ID: p.ID, Name: "p", Rules: `key "a" { policy = "write" }`, Datacenters: []string{"dc2"}}))(t)
	if s.may(k.SecretID, acl.Key, acl.Read, "a") {
		t.Error("a policy of another datacenter is in force")
	}
	must(s.setRole(root, acl.Role{ID: r.ID, Name: "r", NodeIdentities: []acl.NodeIdentity{{NodeName: "n", Datacenter: "dc1"}, {NodeName: "m", Datacenter: "dc2"}}}))(t)
	if !s.may(k.SecretID, acl.Node, acl.Write, "n") || s.may(k.SecretID, acl.Node, acl.Write, "m") {
		t.Error("node identities of the role")
	}
	if err := s.deleteRole(root, r.ID); err != nil {
		t.Fatal(err)
	}
	if s.may(k.SecretID, acl.Node, acl.Write, "n") {
		t.Error("the deleted role is in force")
	}
	// Another state as a whole counts at once too.
	empty := new(bytes.Buffer)
	if err := state.New().View().Dump(empty); err != nil {
		t.Fatal(err)
	}
	if err := s.Store.Restore(empty); err != nil {
		t.Fatal(err)
	}
	if _, err := s.control.Resolve(t.Context(), k.SecretID); err == nil {
		t.Error("a token that was not restored is good")
	}
}

func TestAnonymousTokenAndDefaultPolicy(t *testing.T) {
	for _, policy := range []string{aclrpc.Allow, aclrpc.Deny} {
		s := newServer(t, aclrpc.Config{InitialManagement: root, DefaultPolicy: policy})
		if got := s.may("", acl.Key, acl.Read, "a"); got != (policy == aclrpc.Allow) {
			t.Errorf("%s: nobody may read: %v", policy, got)
		}
		if s.may("", acl.ACL, acl.Read, "") {
			t.Errorf("%s: nobody may read tokens", policy)
		}
		z := must(s.control.Resolve(t.Context(), "anonymous"))(t)
		if !z.Anonymous() {
			t.Error("the anonymous token is somebody's")
		}
		must(s.setPolicy(root, acl.Policy{Name: "pub", Rules: `key_prefix "pub/" { policy = "write" }`}))(t)
		must(s.setToken(root, access.TokenSetRequest{Token: acl.Token{AccessorID: acl.AnonymousID, Policies: []acl.Link{{Name: "pub"}}}}))(t)
		if !s.may("", acl.Key, acl.Write, "pub/a") {
			t.Error("a policy of the anonymous token is not in force")
		}
	}
	// Before a leader has made it, the default policy decides.
	s := bareServer(t, aclrpc.Config{Enabled: true, Datacenter: "dc1", DefaultPolicy: aclrpc.Deny})
	if s.may("", acl.Key, acl.Read, "a") {
		t.Error("nobody may read before there is an anonymous token")
	}
}

func TestRootWordsAreNoTokens(t *testing.T) {
	s := newRooted(t)
	for _, word := range []string{"allow", "deny", "manage"} {
		if _, err := s.control.Resolve(t.Context(), word); err == nil || err.Error() != "Cannot resolve root ACL" || wireerr.Status(err) != 500 {
			t.Errorf("%s: %v", word, err)
		}
	}
}

func TestResolvingAgainAllocatesNothing(t *testing.T) {
	s := newRooted(t)
	ctx := t.Context()
	k := s.createToken(acl.Token{ServiceIdentities: []acl.ServiceIdentity{{ServiceName: "web"}}, Policies: []acl.Link{{ID: acl.ReadOnlyID}}})
	s.may(k.SecretID, acl.Key, acl.Read, "a")
	allocs := testing.AllocsPerRun(1000, func() {
		z, err := s.control.Resolve(ctx, k.SecretID)
		if err != nil || !z.May(acl.Service, acl.Write, "web") || z.May(acl.Key, acl.Write, "a") {
			t.Fatal("wrong answer")
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// What an agent is told has everything to decide by, and no secret.
func TestResolveCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newRooted(t)
		p := must(s.setPolicy(root, acl.Policy{Name: "p", Rules: `key "a" { policy = "read" }`}))(t)
		must(s.setPolicy(root, acl.Policy{Name: "there", Datacenters: []string{"dc2"}}))(t)
		k := s.createToken(acl.Token{Policies: []acl.Link{{ID: p.ID}, {Name: "there"}}, ServiceIdentities: []acl.ServiceIdentity{{ServiceName: "web"}}})
		resolve := func(secret string, index uint64) (*access.ResolveReply, error) {
			req := &access.ResolveRequest{}
			req.Token, req.MinIndex, req.MaxWait = secret, index, time.Minute
			return access.ResolveCall.Call(t.Context(), s.Caller(), req)
		}
		got := must(resolve(k.SecretID, 0))(t)
		if got.Token.SecretID != "" || got.Token.AccessorID != k.AccessorID || got.Token.Policies[0].Name != "p" || got.DefaultPolicy != "deny" {
			t.Errorf("token %+v, default %q", got.Token, got.DefaultPolicy)
		}
		if len(got.Policies) != 2 || got.Policies[0].ID != p.ID || !strings.Contains(got.Policies[1].Rules, "web-sidecar-proxy") {
			t.Errorf("policies %+v", got.Policies)
		}
		if got := must(resolve("", 0))(t); got.Token.AccessorID != acl.AnonymousID || len(got.Policies) != 0 {
			t.Errorf("nobody: %+v", got)
		}
		if _, err := resolve(unused, 0); !errors.Is(err, wireerr.ErrTokenNotFound) {
			t.Errorf("unknown: %v", err)
		}

		// It can be waited for: a change of a policy ends the wait, deletion refuses it.
		index, start := got.Index, time.Now()
		time.AfterFunc(time.Second, func() {
			must(s.setPolicy(root, acl.Policy{ID: p.ID, Name: "p", Rules: `key "a" { policy = "write" }`}))(t)
		})
		if got = must(resolve(k.SecretID, index))(t); got.Index <= index || time.Since(start) != time.Second || !strings.Contains(got.Policies[0].Rules, "write") {
			t.Errorf("after %v: %+v", time.Since(start), got)
		}
		time.AfterFunc(time.Second, func() {
			if err := s.deleteToken(root, k.AccessorID); err != nil {
				t.Error(err)
			}
		})
		if _, err := resolve(k.SecretID, got.Index); !errors.Is(err, wireerr.ErrTokenNotFound) || time.Since(start) != 2*time.Second {
			t.Errorf("deleted, after %v: %v", time.Since(start), err)
		}
	})
}

// A read that was blocked is answered with the rights that its token has then.
func TestBlockedReadsAreCheckedAgain(t *testing.T) {
	for _, tt := range []struct {
		name       string
		meanwhile  func(s *server, k *acl.Token)
		after      time.Duration
		want       string
		wantTokens int
	}{
		{"deleted, and woken", func(s *server, k *acl.Token) {
			s.control.Reap(s.t.Context(), s.Store, s.Apply)
			if err := s.deleteToken(root, k.AccessorID); err != nil {
				s.t.Error(err)
			}
		}, time.Second, "ACL not found", 0},
		{"lost its rights, and timed out", func(s *server, k *acl.Token) {
			_, p := s.Store.View().ACLPolicyByName("acl-read")
			must(s.setPolicy(root, acl.Policy{ID: p.ID, Name: p.Name, Rules: `acl = "deny"`}))(s.t)
		}, 11 * time.Second, "lacks permission 'acl:read'", 0},
		{"lost the right to secrets, and timed out", func(s *server, k *acl.Token) {
			_, p := s.Store.View().ACLPolicyByName("acl-write")
			must(s.setPolicy(root, acl.Policy{ID: p.ID, Name: p.Name}))(s.t)
		}, 11 * time.Second, "", 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newRooted(t)
				for _, level := range []string{"read", "write"} {
					must(s.setPolicy(root, acl.Policy{Name: "acl-" + level, Rules: fmt.Sprintf("acl = %q", level)}))(t)
				}
				k := s.createToken(acl.Token{Policies: []acl.Link{{Name: "acl-read"}, {Name: "acl-write"}}})
				req := &access.TokenListRequest{}
				req.Token, req.MinIndex, req.MaxWait = k.SecretID, s.Store.View().ACLIndex(), 10*time.Second
				start := time.Now()
				time.AfterFunc(time.Second, func() { tt.meanwhile(s, k) })
				reply, err := access.TokenListCall.Call(t.Context(), s.Caller(), req)
				if took := time.Since(start); took < time.Second || took > tt.after {
					t.Errorf("answered after %v", took)
				}
				if tt.want != "" {
					if err == nil || !strings.Contains(err.Error(), tt.want) || wireerr.Status(err) != 403 {
						t.Fatalf("got %v, want %q", err, tt.want)
					}
					return
				}
				if err != nil || len(reply.Tokens) != tt.wantTokens {
					t.Fatalf("got %v, %v", reply, err)
				}
				for _, k := range reply.Tokens {
					if k.SecretID != acl.Hidden {
						t.Errorf("shows the secret of %s", k.AccessorID)
					}
				}
			})
		})
	}
}

// counted counts the calls that pass through it.
type counted struct {
	to    rpc.Caller
	calls atomic.Int32
	wait  time.Duration
	err   error
}

func (c *counted) Call(ctx context.Context, d rpc.Descriptor, req, resp any) error {
	c.calls.Add(1)
	time.Sleep(c.wait)
	if c.err != nil {
		return c.err
	}
	return c.to.Call(ctx, d, req, resp)
}

// A server that lags behind the leader asks it about tokens that it does not know, and remembers for a second at most
// that there is none.
func TestUnknownTokensAreLookedUpWithTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lead := newRooted(t)
		follower := bareServer(t, aclrpc.Config{Enabled: true, Datacenter: "dc1", DefaultPolicy: aclrpc.Deny})
		link := &counted{to: lead.Caller(), wait: 10 * time.Millisecond}
		leading := false
		follower.control.AskLeader(link, func() bool { return leading })
		p := must(lead.setPolicy(root, acl.Policy{Name: "p", Rules: `key "a" { policy = "read" }`}))(t)
		k := lead.createToken(acl.Token{Policies: []acl.Link{{ID: p.ID}}})

		z := must(follower.control.Resolve(t.Context(), k.SecretID))(t)
		if !z.May(acl.Key, acl.Read, "a") || z.May(acl.Key, acl.Write, "a") || z.Accessor() != k.AccessorID {
			t.Error("rights of a token that only the leader knows")
		}
		if follower.may("", acl.Key, acl.Read, "a") {
			t.Error("nobody may read")
		}

		link.calls.Store(0)
		for range 20 {
			go func() {
				if _, err := follower.control.Resolve(t.Context(), unused); !errors.Is(err, wireerr.ErrTokenNotFound) {
					t.Errorf("unknown token: %v", err)
				}
			}()
		}
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
		if _, err := follower.control.Resolve(t.Context(), unused); !errors.Is(err, wireerr.ErrTokenNotFound) || link.calls.Load() != 1 {
			t.Errorf("the leader was asked %d times: %v", link.calls.Load(), err)
		}
		lead.createToken(acl.Token{SecretID: unused})
		time.Sleep(time.Second)
		if _, err := follower.control.Resolve(t.Context(), unused); err != nil || link.calls.Load() != 2 {
			t.Errorf("a second later: %v, asked %d times", err, link.calls.Load())
		}

		link.err = wireerr.ErrNoLeader
		if _, err := follower.control.Resolve(t.Context(), secret); !errors.Is(err, wireerr.ErrNoLeader) || errors.Is(err, wireerr.ErrTokenNotFound) {
			t.Errorf("while the leader cannot be asked: %v", err)
		}
		link.calls.Store(0)
		leading = true
		if _, err := follower.control.Resolve(t.Context(), secret); !errors.Is(err, wireerr.ErrTokenNotFound) || link.calls.Load() != 0 {
			t.Errorf("the leader asked itself: %v", err)
		}
	})
}

// Secrets are in no error and no line of the log.
func TestErrorsAndLogsHaveNoSecrets(t *testing.T) {
	var log bytes.Buffer
	s := newServer(t, aclrpc.Config{InitialManagement: root, Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: &log})})
	s.createToken(acl.Token{AccessorID: accessor, SecretID: secret})
	g := newSigner(t)
	must(s.setMethod(root, g.method("jm")))(t)
	must(s.setRule(root, acl.BindingRule{AuthMethod: "jm", BindType: acl.BindService, BindName: "web"}))(t)
	bearer := g.token(t, nil)
	login := must(s.login("jm", bearer, nil))(t)
	for _, err := range []error{
		drop(s.control.Resolve(t.Context(), unused)),
		drop(s.setToken(root, access.TokenSetRequest{Create: true, Token: acl.Token{SecretID: secret}})),
		drop(s.setToken(root, access.TokenSetRequest{Token: acl.Token{AccessorID: accessor, SecretID: unused}})),
		drop(s.setPolicy(secret, acl.Policy{Name: "x"})),
		s.logout(secret), s.deleteToken(secret, accessor), drop(s.bootstrap(secret)), drop(s.login("jm", newSigner(t).token(t, nil), nil)),
	} {
		if err == nil || strings.Contains(err.Error(), secret) || strings.Contains(err.Error(), unused) {
			t.Errorf("error %v", err)
		}
	}
	for _, hidden := range []string{root, secret, unused, bearer, login.SecretID} {
		if strings.Contains(log.String(), hidden) {
			t.Errorf("the log tells %q:\n%s", hidden, log.String())
		}
	}
	if !strings.Contains(log.String(), "initial management token") {
		t.Error("nothing was logged")
	}
}

// Whoever asks after a change was made sees it, however many ask at the same time.
func TestChangesAreSeenByTheNextOfManyRequests(t *testing.T) {
	s := newRooted(t)
	p := must(s.setPolicy(root, acl.Policy{Name: "p"}))(t)
	k := s.createToken(acl.Token{Policies: []acl.Link{{ID: p.ID}}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := s.control.Resolve(context.Background(), k.SecretID); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 300 {
		level := []string{"read", "write"}[i%2]
		must(s.setPolicy(root, acl.Policy{ID: p.ID, Name: "p", Rules: fmt.Sprintf(`key "a" { policy = %q }`, level)}))(t)
		if got := s.may(k.SecretID, acl.Key, acl.Write, "a"); got != (level == "write") {
			t.Fatalf("change %d is not seen", i)
		}
	}
	cancel()
	wg.Wait()
}

func TestSnapshotsKeepAccessControl(t *testing.T) {
	s := newRooted(t)
	g := newSigner(t)
	must(s.setMethod(root, g.method("jm")))(t)
	must(s.setRule(root, acl.BindingRule{AuthMethod: "jm", BindType: acl.BindService, BindName: "web"}))(t)
	p := must(s.setPolicy(root, acl.Policy{Name: "p", Rules: `key "a" { policy = "read" }`}))(t)
	r := must(s.setRole(root, acl.Role{Name: "r", Policies: []acl.Link{{ID: p.ID}}}))(t)
	far := time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC)
	s.createToken(acl.Token{SecretID: secret, Policies: []acl.Link{{ID: p.ID}}, Roles: []acl.Link{{ID: r.ID}}, ExpirationTime: &far})
	login := must(s.login("jm", g.token(t, map[string]any{"name": "x"}), nil))(t)

	var dump bytes.Buffer
	if err := s.Store.View().Dump(&dump); err != nil {
		t.Fatal(err)
	}
	copied := bareServer(t, aclrpc.Config{Enabled: true, Datacenter: "dc1", DefaultPolicy: aclrpc.Deny})
	if err := copied.Store.Restore(bytes.NewReader(dump.Bytes())); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := copied.Store.View().Dump(&again); err != nil || !bytes.Equal(again.Bytes(), dump.Bytes()) {
		t.Errorf("the copy's snapshot differs: %v", err)
	}
	if !copied.may(secret, acl.Key, acl.Read, "a") || !copied.may(login.SecretID, acl.Service, acl.Write, "web") {
		t.Error("rights in the copy")
	}
	if _, err := copied.bootstrap(""); wireerr.Status(err) != 403 {
		t.Errorf("bootstrap of the copy: %v", err)
	}
	// What refers to what is known there too.
	if err := copied.deletePolicy(root, p.ID); err != nil {
		t.Fatal(err)
	}
	if copied.may(secret, acl.Key, acl.Read, "a") {
		t.Error("links were lost")
	}
	if _, k := copied.Store.View().ACLRole(r.ID); k == nil || len(k.Policies) != 0 {
		t.Errorf("role %+v", k)
	}
	if err := copied.deleteMethod(root, "jm"); err != nil {
		t.Fatal(err)
	}
	if _, err := copied.control.Resolve(t.Context(), login.SecretID); err == nil {
		t.Error("the token of a deleted method is good")
	}
	if got := cmp.Diff(1, len(must(copied.listTokens(root, access.TokenListRequest{Policy: acl.ManagementID}))(t))); got != "" {
		t.Error(got)
	}
}

func BenchmarkResolveAndDecide(b *testing.B) {
	for _, rules := range []int{10, 1000, 100_000} {
		b.Run(fmt.Sprint(rules), func(b *testing.B) {
			s := newRooted(b)
			var text strings.Builder
			for i := range rules {
				fmt.Fprintf(&text, "service \"web-%d\" { policy = \"write\" }\n", i)
			}
			p := must(s.setPolicy(root, acl.Policy{Name: "p", Rules: text.String()}))(b)
			k := s.createToken(acl.Token{Policies: []acl.Link{{ID: p.ID}}})
			ctx := b.Context()
			s.may(k.SecretID, acl.Service, acl.Write, "web-7")
			b.ReportAllocs()
			for b.Loop() {
				z, err := s.control.Resolve(ctx, k.SecretID)
				if err != nil || !z.May(acl.Service, acl.Write, "web-7") {
					b.Fatal("wrong answer")
				}
			}
		})
	}
}
