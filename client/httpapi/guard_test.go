package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/client/access"
	"github.com/sarnmesh/sarn/client/cache"
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
		var deleted atomic.Bool
		s, _ := newAgent(t, Config{ACLEnabled: true, Authorize: func(context.Context, string) (*acl.Authorizer, error) {
			if deleted.Load() {
				return nil, wireerr.ErrTokenNotFound
			}
			return acl.Everything(), nil
		}})
		run(t, s, []step{{"PUT", "/v1/agent/service/register", `{"Name":"web"}`, 200, ""}})
		hash := do(s, "GET", "/v1/agent/service/web", "").Header().Get("X-Consul-ContentHash")
		go func() {
			time.Sleep(time.Second)
			deleted.Store(true)
		}()
		if w := do(s, "GET", "/v1/agent/service/web?wait=5s&hash="+hash, "", "X-Consul-Token", "x"); w.Code != 403 || w.Body.String() != "ACL not found" {
			t.Errorf("after the token was deleted: %d %s", w.Code, w.Body)
		}
	})
}

// Following the log ends when the token that began it was deleted.
func TestEndlessAnswersEndWithTheirToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var deleted atomic.Bool
		logger := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard})
		s, _ := newAgent(t, Config{
			ACLEnabled: true, Agent: AgentConfig{Logs: logger, Metrics: metrics.NewInmemSink(10*time.Second, time.Minute)},
			Authorize: func(context.Context, string) (*acl.Authorizer, error) {
				if deleted.Load() {
					return nil, wireerr.ErrTokenNotFound
				}
				return acl.Everything(), nil
			},
		})
		for _, path := range []string{"/v1/agent/monitor", "/v1/agent/metrics/stream"} {
			deleted.Store(false)
			done := make(chan struct{})
			go func() {
				defer close(done)
				do(s, "GET", path, "", "X-Consul-Token", "x")
			}()
			time.Sleep(2 * time.Minute)
			select {
			case <-done:
				t.Errorf("%s ended with a good token", path)
			default:
			}
			deleted.Store(true)
			start := time.Now()
			<-done
			if d := time.Since(start); d > time.Minute {
				t.Errorf("%s ended after %v", path, d)
			}
		}
	})
}

// Class 5: what the cache keeps for a token is not for a token that is good no more, however it was asked for before.
func TestCachedAnswersNeedAGoodToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var deleted atomic.Bool
		f := &fakeCaller{answer: map[string]any{}}
		c := cache.New(f, cache.Config{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }()
		s, _ := newServer(t, Config{
			ACLEnabled: true, Caller: f, Cache: c,
			Authorize: func(context.Context, string) (*acl.Authorizer, error) {
				if deleted.Load() {
					return nil, wireerr.ErrTokenNotFound
				}
				return acl.Everything(), nil
			},
		}, nil)
		for _, target := range []string{"/v1/health/service/web?cached", "/v1/catalog/services?cached", "/v1/catalog/datacenters?cached"} {
			deleted.Store(false)
			for range 2 {
				if w := do(s, "GET", target, "", "X-Consul-Token", "x"); w.Code != 200 {
					t.Errorf("%s: %d %s", target, w.Code, w.Body)
				}
			}
			deleted.Store(true)
			for range 2 {
				if w := do(s, "GET", target, "", "X-Consul-Token", "x"); w.Code != 403 || w.Header().Get("X-Cache") != "" {
					t.Errorf("%s with a deleted token: %d %s, X-Cache %q", target, w.Code, w.Body, w.Header().Get("X-Cache"))
				}
			}
		}
		cancel()
		<-done
	})
}
