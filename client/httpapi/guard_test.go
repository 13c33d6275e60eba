package httpapi

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/client/access"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// What a handler answers goes out only with a permit, and the agent's own is not to be had without one.
func TestNothingOfTheAgentWithoutAPermit(t *testing.T) {
	secret := func(p acl.Permit) guarded {
		return func(http.ResponseWriter, *http.Request) (any, acl.Permit, error) { return "secret", p, nil }
	}
	if v, err := permitted(secret(acl.Permit{}))(nil, nil); v != nil || !errors.Is(err, access.ErrNoPermit) {
		t.Errorf("without a permit: %v, %v", v, err)
	}
	if v, err := permitted(secret(acl.Open()))(nil, nil); v != "secret" || err != nil {
		t.Errorf("with a permit: %v, %v", v, err)
	}
	s, _ := newAgent(t, Config{})
	if a, err := s.own.With(acl.Permit{}); a.Local != nil || a.Agent != nil || !errors.Is(err, access.ErrNoPermit) {
		t.Errorf("the agent was had without a permit: %v", err)
	}
	if s.cfg.Agent.Local != nil || s.cfg.Agent.Agent != nil || s.cfg.Events != nil || s.cfg.Connect.Leaf != nil {
		t.Error("the configuration still holds what is guarded")
	}
}

// A request that waited is refused when its token was deleted meanwhile.
func TestWaitingAsksForTheRightAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deleted := false
		s, _ := newAgent(t, Config{ACLEnabled: true, Authorize: func(context.Context, string) (*acl.Authorizer, error) {
			if deleted {
				return nil, wireerr.ErrTokenNotFound
			}
			return acl.Everything(), nil
		}})
		run(t, s, []step{{"PUT", "/v1/agent/service/register", `{"Name":"web"}`, 200, ""}})
		hash := do(s, "GET", "/v1/agent/service/web", "").Header().Get("X-Consul-ContentHash")
		go func() {
			time.Sleep(time.Second)
			deleted = true
		}()
		if w := do(s, "GET", "/v1/agent/service/web?wait=5s&hash="+hash, "", "X-Consul-Token", "x"); w.Code != 403 || w.Body.String() != "ACL not found" {
			t.Errorf("after the token was deleted: %d %s", w.Code, w.Body)
		}
	})
}
