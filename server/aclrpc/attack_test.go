package aclrpc_test

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/aclrpc"
	"github.com/sarnmesh/sarn/server/authmethod"
)

// replicate copies from the primary datacenter until the test ends.
func (p *pair) replicate(t *testing.T) {
	r := &aclrpc.Replicator{
		Datacenter: "dc1", Primary: p.primary.Caller(), Tokens: true, Token: func() string { return root },
		Store: p.second.Store, Apply: p.second.Apply, Log: hclog.NewNullLogger(),
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, &aclrpc.ReplicationProgress{}) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A global token is given back in the primary datacenter, wherever that is asked for: a copy that was deleted alone would
// come back.
func TestTokenScopeLogoutOfAGlobalToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, aclrpc.Config{TokenReplication: true})
		g := newSigner(t)
		m := g.method("jm")
		m.TokenLocality = acl.LocalityGlobal
		must(p.primary.setMethod(root, m))(t)
		must(p.primary.setRule(root, acl.BindingRule{AuthMethod: "jm", BindType: acl.BindService, BindName: "web"}))(t)
		k := must(p.primary.login("jm", g.token(t, nil), nil))(t)
		p.replicate(t)
		time.Sleep(5 * time.Second)
		if _, copied := p.second.Store.View().ACLToken(k.AccessorID); copied == nil {
			t.Fatal("the token was not copied")
		}
		if err := p.second.logout(k.SecretID); err != nil {
			t.Fatal(err)
		}
		if _, left := p.primary.Store.View().ACLToken(k.AccessorID); left != nil {
			t.Error("the token is still good in the primary datacenter")
		}
		time.Sleep(5 * time.Second)
		if _, err := p.second.control.Resolve(t.Context(), k.SecretID); err == nil {
			t.Error("the token is still good")
		}
	})
}

// A token that was made again under its accessor ID, with another secret, is good by that secret alone.
func TestTokenScopeReplicationOfANewSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, aclrpc.Config{TokenReplication: true})
		old := p.primary.createToken(acl.Token{Policies: []acl.Link{{ID: acl.ManagementID}}})
		p.replicate(t)
		time.Sleep(5 * time.Second)
		if !p.second.may(old.SecretID, acl.ACL, acl.Write, "") {
			t.Fatal("the token was not copied")
		}
		// Both between two rounds.
		if err := p.primary.deleteToken(root, old.AccessorID); err != nil {
			t.Fatal(err)
		}
		k := p.primary.createToken(acl.Token{AccessorID: old.AccessorID, Policies: old.Policies})
		time.Sleep(40 * time.Second)
		if _, err := p.second.control.Resolve(t.Context(), old.SecretID); err == nil {
			t.Error("the old secret is still good")
		}
		if _, copied := p.second.Store.View().ACLToken(k.AccessorID); copied == nil || copied.SecretID != k.SecretID {
			t.Errorf("copied %+v", copied)
		}
	})
}

// An agent is not told what its datacenter no longer goes by.
func TestTokenScopeDownPolicyOfAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, aclrpc.Config{DownPolicy: aclrpc.Deny})
		k := p.primary.createToken(acl.Token{Policies: []acl.Link{{ID: acl.ManagementID}}})
		ask := func() error {
			req := &access.ResolveRequest{}
			req.Token = k.SecretID
			return drop(access.ResolveCall.Call(t.Context(), p.second.Caller(), req))
		}
		if err := ask(); err != nil {
			t.Fatal(err)
		}
		p.answers(wireerr.ErrNoDatacenter, 0)
		time.Sleep(time.Minute)
		if err := ask(); err == nil || wireerr.Status(err) != 500 {
			t.Errorf("told what was known before: %v", err)
		}
	})
}

// Agents, and servers that do not lead, are told how old an answer is: their own time for it does not come on top.
func TestTokenScopeRevokedWithinTheTTL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, aclrpc.Config{})
		follower := aclrpc.New(aclrpc.Config{Enabled: true, Datacenter: "dc2", PrimaryDatacenter: "dc1", DefaultPolicy: aclrpc.Deny}, state.New())
		follower.AskLeader(p.second.Caller(), func() bool { return false })
		k := p.primary.createToken(acl.Token{Policies: []acl.Link{{ID: acl.ManagementID}}})
		req := &access.ResolveRequest{}
		req.Token = k.SecretID
		if reply := must(access.ResolveCall.Call(t.Context(), p.second.Caller(), req))(t); reply.Age != 0 {
			t.Errorf("just heard: %v", reply.Age)
		}
		time.Sleep(20 * time.Second)
		if reply := must(access.ResolveCall.Call(t.Context(), p.second.Caller(), req))(t); reply.Age != 20*time.Second {
			t.Errorf("heard 20 seconds ago: %v", reply.Age)
		}
		must(follower.Resolve(t.Context(), k.SecretID))(t)
		if err := p.primary.deleteToken(root, k.AccessorID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if _, err := follower.Resolve(t.Context(), k.SecretID); !errors.Is(err, wireerr.ErrTokenNotFound) {
			t.Errorf("30 seconds after it was heard: %v", err)
		}
	})
}

// A proof that was good for a method as it was gives no token when the method was changed while it was checked.
func TestLoginWhileTheMethodChanges(t *testing.T) {
	good, other := newSigner(t), newSigner(t)
	s := newServer(t, aclrpc.Config{InitialManagement: root, Methods: authmethod.Env{Dial: (&net.Dialer{}).DialContext}})
	asked := 0
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked == 2 { // by the login
			must(s.setMethod(root, other.method("jm")))(t)
		}
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: good.key.Public(), Algorithm: "ES256"}}})
	}))
	defer keys.Close()
	m := good.method("jm")
	delete(m.Config, "JWTValidationPubKeys")
	m.Config["JWKSURL"] = keys.URL
	must(s.setMethod(root, m))(t)
	must(s.setRule(root, acl.BindingRule{AuthMethod: "jm", BindType: acl.BindService, BindName: "web"}))(t)
	k, err := s.login("jm", good.token(t, nil), nil)
	if asked != 2 {
		t.Fatalf("keys were fetched %d times", asked)
	}
	if err == nil || !strings.Contains(err.Error(), "has changed") {
		t.Errorf("got %+v: %v", k, err)
	}
	if k, err = s.login("jm", other.token(t, nil), nil); err != nil || k.AuthMethod != "jm" {
		t.Errorf("by the method as it is: %+v: %v", k, err)
	}
}

// A method of another datacenter takes its own tokens with it, not those that a method of the same name made in the
// primary one.
func TestTokenScopeDeletionOfAMethod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, aclrpc.Config{TokenReplication: true})
		g := newSigner(t)
		m := g.method("jm")
		rule := acl.BindingRule{AuthMethod: "jm", BindType: acl.BindService, BindName: "web"}
		must(p.second.setMethod(root, m))(t)
		must(p.second.setRule(root, rule))(t)
		m.TokenLocality = acl.LocalityGlobal
		must(p.primary.setMethod(root, m))(t)
		must(p.primary.setRule(root, rule))(t)
		global := must(p.primary.login("jm", g.token(t, nil), nil))(t)
		local := must(p.second.login("jm", g.token(t, nil), nil))(t)
		p.replicate(t)
		time.Sleep(5 * time.Second)
		if err := p.second.deleteMethod(root, "jm"); err != nil {
			t.Fatal(err)
		}
		v := p.second.Store.View()
		if _, k := v.ACLToken(global.AccessorID); k == nil {
			t.Error("a token of the primary datacenter went, too")
		}
		if _, k := v.ACLToken(local.AccessorID); k != nil {
			t.Error("a token of the method is left")
		}
	})
}

// Datacenters that take each other for the primary one do not send a request to and fro.
func TestRequestsDoNotLoop(t *testing.T) {
	servers, calls := map[string]*server{}, 0
	other := map[string]string{"dc1": "dc2", "dc2": "dc1"}
	for own, there := range other {
		servers[own] = bareServer(t, aclrpc.Config{
			Enabled: true, Datacenter: own, PrimaryDatacenter: there,
			Primary: func(ctx context.Context, d rpc.Descriptor, req, resp any) error {
				if calls++; calls > 10 {
					return errors.New("this has no end")
				}
				return servers[there].Caller().Call(ctx, d, req, resp)
			},
		})
		servers[own].Datacenter = own
		servers[own].Resolve = nil // everything
	}
	if _, err := servers["dc2"].setPolicy("", acl.Policy{Name: "p"}); err == nil || calls != 1 || !strings.Contains(err.Error(), "primary") {
		t.Errorf("after %d calls: %v", calls, err)
	}
}
