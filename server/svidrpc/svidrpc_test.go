package svidrpc_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect/svid"
	"github.com/sarnmesh/sarn/server/connectrpc"
	"github.com/sarnmesh/sarn/server/leader"
	"github.com/sarnmesh/sarn/server/rpctest"
	"github.com/sarnmesh/sarn/server/svidrpc"
)

func newServer(t *testing.T) *rpctest.Server {
	t.Helper()
	s := rpctest.New()
	authority := connectrpc.New(connectrpc.Config{})
	authority.Register(&s.Registry, &s.Appliers)
	svidrpc.Register(&s.Registry, &s.Appliers, svidrpc.Config{})
	if err := authority.Initialize(t.Context(), s.Store, s.Apply); err != nil {
		t.Fatal(err)
	}
	return s
}

func lead(t *testing.T, s *rpctest.Server) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		leader.Run(ctx, &leader.Leader{Calls: s.Caller().Internal(), Store: s.Store, Apply: s.Apply, Log: hclog.NewNullLogger()}, []leader.Duty{svidrpc.Duty(svidrpc.Config{})})
	}()
	return func() { cancel(); <-done }
}

func keys(t *testing.T, s *rpctest.Server) *svid.KeysReply {
	t.Helper()
	k, err := svid.KeysCall.Call(t.Context(), s.Caller(), &svid.KeysRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestTokensAreSignedForWhoMayBeTheService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		s.Resolve = func(token string) (*acl.Authorizer, error) {
			rules, err := acl.Parse(`service "web" { policy = "write" } service "db" { policy = "read" }`)
			if err != nil {
				return nil, err
			}
			return acl.New(acl.Compile(false, rules), "accessor"), nil
		}
		stop := lead(t, s)
		synctest.Wait()
		ask := func(service string, audience ...string) (*svid.SignReply, error) {
			return svid.SignCall.Call(t.Context(), s.Caller(), &svid.SignRequest{Target: read.Target{Token: "t"}, Service: service, Audience: audience})
		}
		r, err := ask("web", "db")
		if err != nil {
			t.Fatal(err)
		}
		k := keys(t, s)
		id, _, err := svid.Validate(r.Token, "db", k.TrustDomain, k.JWKS, time.Now())
		if err != nil || id.Name() != "web" || id.String() != r.ID {
			t.Errorf("%v, %v", id, err)
		}
		if strings.Contains(string(k.JWKS), `"d":`) {
			t.Error("private keys are told")
		}
		if _, err := ask("db", "x"); err == nil {
			t.Error("who may only read a service got its token")
		} else if _, denied := errors.AsType[*acl.DeniedError](err); !denied {
			t.Error(err)
		}
		for name, audience := range map[string][]string{"none": nil, "empty": {""}, "long": {strings.Repeat("x", 2000)}, "many": make([]string, 100)} {
			if _, err := ask("web", audience...); err == nil {
				t.Errorf("%s: signed", name)
			}
		}
		if _, err := ask("", "x"); err == nil {
			t.Error("signed for no service")
		}
		stop()
	})
}

func TestKeysAreReplacedUnderTheEyesOfWatchers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t)
		stop := lead(t, s)
		synctest.Wait()
		first := keys(t, s)
		sign := func() string {
			r, err := svid.SignCall.Call(t.Context(), s.Caller(), &svid.SignRequest{Service: "web", Audience: []string{"a"}})
			if err != nil {
				t.Fatal(err)
			}
			return r.Token
		}
		// Whoever follows the keys can check every token at once. In a short run they look away for hours in between.
		away := time.Duration(0)
		if testing.Short() {
			away = 3 * time.Hour
		}
		index, known := first.Index, first
		changes := 0
		for end := time.Now().Add(30 * 24 * time.Hour); time.Now().Before(end); {
			k, err := svid.KeysCall.Call(t.Context(), s.Caller(), &svid.KeysRequest{Options: read.Options{MinIndex: index, MaxWait: 5 * time.Minute}})
			if err != nil {
				t.Fatal(err)
			}
			if k.Index > index {
				changes++
				// A token signed at this moment is good for those who have not heard yet.
				if _, _, err := svid.Validate(sign(), "a", known.TrustDomain, known.JWKS, time.Now()); err != nil {
					t.Errorf("not yet told: %v", err)
				}
			}
			index, known = k.Index, k
			if _, _, err := svid.Validate(sign(), "a", known.TrustDomain, known.JWKS, time.Now()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(away)
		}
		if changes < 8 { // each key comes and goes
			t.Errorf("%d changes in 30 days", changes)
		}
		before := s.Index()
		stop()
		stop = lead(t, s) // another leader finds nothing to do
		synctest.Wait()
		if s.Index() != before {
			t.Error("a new leader wrote keys anew")
		}
		stop()
	})
}
