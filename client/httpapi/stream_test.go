package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// streams give what they are told, for one service.
type streams struct {
	mu    sync.Mutex
	reply *catalog.InstancesReply
	err   error
	next  chan struct{}
}

func (s *streams) set(reply *catalog.InstancesReply, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reply, s.err = reply, err
	close(s.next)
	s.next = make(chan struct{})
}

func (s *streams) Covers(_ rpc.Descriptor, req any) bool {
	r, ok := req.(*catalog.InstancesRequest)
	return ok && r.Near == ""
}

func (s *streams) Open(d rpc.Descriptor, req any) cache.Stream {
	if !s.Covers(d, req) {
		return nil
	}
	return &streamOf{s: s}
}

func (s *streams) Retry() {}

type streamOf struct {
	s    *streams
	seen *catalog.InstancesReply
	told error
}

func (t *streamOf) Close() {}

func (t *streamOf) Next(ctx context.Context, since uint64) (any, uint64, error) {
	for {
		t.s.mu.Lock()
		reply, err, next := t.s.reply, t.s.err, t.s.next
		t.s.mu.Unlock()
		switch {
		case err != nil && t.told != err:
			t.told = err
			return nil, 0, err
		case err == nil && (reply != t.seen || since == 0):
			t.seen, t.told = reply, nil
			return reply, reply.Index, nil
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// Blocking queries, and ?cached, are answered by what a stream keeps, as long as that is in touch with the servers; what
// asks for more, or for something else, is asked of them (spec/state.md section 1.8).
func TestBlockingQueriesAreAnsweredByStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at := func(index uint64) *catalog.InstancesReply {
			return &catalog.InstancesReply{Meta: read.Meta{Index: index, KnownLeader: true}, Instances: []*catalog.Instance{someInstance(int(index))}}
		}
		x := &streams{reply: at(5), next: make(chan struct{})}
		var asked []catalog.InstancesRequest
		f := &fakeCaller{answer: map[string]any{"Health.Instances": func(req any) (any, error) {
			asked = append(asked, *req.(*catalog.InstancesRequest))
			return at(9), nil
		}}}
		c := cache.New(f, cache.Config{Streams: x})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		s, _ := newServer(t, Config{Caller: f, Cache: c}, nil)
		check := func(what string, w *httptest.ResponseRecorder, backend, index, cached string, calls int) {
			t.Helper()
			h := w.Header()
			if w.Code != 200 || h.Get("X-Consul-Query-Backend") != backend || h.Get("X-Consul-Index") != index || h.Get("X-Cache") != cached || len(asked) != calls {
				t.Errorf("%s: %d, backend %q, index %s, X-Cache %q, %d calls; want %q, %s, %q, %d",
					what, w.Code, h.Get("X-Consul-Query-Backend"), h.Get("X-Consul-Index"), h.Get("X-Cache"), len(asked), backend, index, cached, calls)
			}
		}
		check("plain", do(s, "GET", "/v1/health/service/web", ""), "blocking-query", "9", "", 1)
		check("cached", do(s, "GET", "/v1/health/service/web?cached", ""), "streaming", "5", "MISS", 1)
		check("cached again", do(s, "GET", "/v1/health/service/web?cached", ""), "streaming", "5", "HIT", 1)
		check("blocking", do(s, "GET", "/v1/health/service/web?index=4", ""), "streaming", "5", "", 1)
		began := time.Now()
		check("to the limit", do(s, "GET", "/v1/health/service/web?index=5&wait=16s", ""), "streaming", "5", "", 1)
		if took := time.Since(began); took != 16*time.Second {
			t.Errorf("the wait took %v, want no more than asked for", took)
		}
		time.AfterFunc(3*time.Second, func() { x.set(at(6), nil) })
		check("to the change", do(s, "GET", "/v1/health/connect/web?index=5&stale", ""), "streaming", "6", "", 1)
		check("consistent", do(s, "GET", "/v1/health/service/web?index=4&consistent", ""), "blocking-query", "9", "", 2)
		check("near", do(s, "GET", "/v1/health/service/web?index=4&near=n", ""), "blocking-query", "9", "", 3)
		check("bounded age", do(s, "GET", "/v1/health/service/web?index=4&max_stale=5s", ""), "blocking-query", "9", "", 4)

		// Out of touch, ?cached gets what there is, with its age; a query the servers' word, after its wait.
		synctest.Wait() // until every view has the change
		x.set(nil, errors.New("the connection broke"))
		time.Sleep(30 * time.Second)
		w := do(s, "GET", "/v1/health/service/web?cached", "")
		check("cached, out of touch", w, "streaming", "6", "HIT", 4)
		if w.Header().Get("Age") != "30" {
			t.Errorf("Age %q", w.Header().Get("Age"))
		}
		check("blocking, out of touch", do(s, "GET", "/v1/health/service/web?index=6&wait=8s", ""), "blocking-query", "9", "", 5)
		if got := asked[4]; got.MinIndex != 6 || got.MaxWait != time.Millisecond {
			t.Errorf("the servers are asked for %s", fmt.Sprint(got.MinIndex, got.MaxWait))
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
