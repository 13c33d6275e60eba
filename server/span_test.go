package server_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/httpapi"
	"github.com/sarnmesh/sarn/client/router"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/span"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
)

// A record keeps the spans of one machine.
type record struct {
	*span.Tracer
	queue *span.Queue
	seen  []*span.Data
}

func newRecord(t *testing.T, share float64) *record {
	q := span.NewQueue(1000, 1000, func(int) { t.Error("a span was dropped") })
	r := &record{Tracer: span.NewTracer(q), queue: q}
	r.Set(true, share)
	return r
}

// take returns the spans that have ended since it was last called.
func (r *record) take() []*span.Data {
	list := r.queue.Take()
	r.seen = append(r.seen, list...)
	return list
}

// tree writes each span below its parent, with its side, its name and some attributes.
func tree(spans []*span.Data, root span.ID, attributes ...string) string {
	var b strings.Builder
	var below func(id span.ID, indent string)
	below = func(id span.ID, indent string) {
		list := slices.DeleteFunc(slices.Clone(spans), func(d *span.Data) bool { return d.Parent != id })
		slices.SortFunc(list, func(a, b *span.Data) int { return a.Start.Compare(b.Start) })
		for i, d := range list {
			if i > 0 && d.Name == "wait for a change" && d.Name == list[i-1].Name { // it woke for nothing
				continue
			}
			fmt.Fprintf(&b, "%s%s %s", indent, [...]string{"internal", "server", "client"}[d.Kind], d.Name)
			for _, key := range attributes {
				for _, a := range d.Attributes {
					if a.Key == key && a.Text != "" {
						fmt.Fprintf(&b, " %s=%s", key, a.Text)
					} else if a.Key == key {
						fmt.Fprintf(&b, " %s=%d", key, a.Number)
					}
				}
			}
			b.WriteString("\n")
			below(d.Span, indent+"  ")
		}
	}
	below(root, "")
	return b.String()
}

// asks returns the HTTP API of an agent at an address that asks one server, and a client of it.
func (c *cluster) asks(o *node, address string, tracer *span.Tracer) func(method, target, traceparent string) *httptest.ResponseRecorder {
	c.t.Helper()
	host := c.net.Host(address)
	r := router.New(router.Config{Datacenter: "dc1", Dial: host.Dial})
	for _, m := range o.Gossip().Members() {
		if m.Name == o.name {
			r.Observe(gossip.Event{Kind: gossip.Joined, Members: []gossip.Member{m}})
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	c.t.Cleanup(func() { cancel(); <-done })
	api, err := httpapi.New(httpapi.Config{Caller: r, Datacenter: "dc1", NodeName: "agent", Tracer: tracer})
	if err != nil {
		c.t.Fatal(err)
	}
	return func(method, target, traceparent string) *httptest.ResponseRecorder {
		req := httptest.NewRequest(method, target, strings.NewReader("the-value"))
		req.Header.Set("X-Consul-Token", "header-token")
		if traceparent != "" {
			req.Header.Set("Traceparent", traceparent)
			req.Header.Set("Tracestate", "vendor=1")
		}
		w := httptest.NewRecorder()
		api.ServeHTTP(w, req)
		return w
	}
}

const (
	sampledParent   = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	unsampledParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
)

// A request is one trace, from the agent over a server to the leader and into the log.
func TestRequestsAreTraced(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		all := newRecord(t, 0)
		c := newCluster(t, 31, 3, server.Config{Tracer: all.Tracer})
		lead, follower := c.leader(), c.follower()
		do := c.asks(follower, "10.0.7.1", all.Tracer)
		parent, _ := span.Parse(sampledParent)
		check := func(what, want string) []*span.Data {
			t.Helper()
			spans := all.take()
			got := tree(spans, parent.Span, "http.request.method", "http.route", "http.response.status_code", "server.address", "rpc.method", "error.type")
			if want = strings.NewReplacer("LEADER", lead.host.Addr().String(), "FOLLOWER", follower.host.Addr().String()).Replace(want); got != want {
				t.Errorf("%s:\n%swant\n%s", what, got, want)
			}
			for _, d := range spans {
				if d.Trace != parent.Trace || d.State != "vendor=1" || d.End.Before(d.Start) {
					t.Errorf("%s: %+v", what, d)
				}
			}
			return spans
		}
		if w := do("PUT", "/v1/kv/the-key?token=query-token&flags=3", sampledParent); w.Code != 200 {
			t.Fatal(w.Code, w.Body)
		}
		check("a write", `server PUT /v1/kv/* http.request.method=PUT http.route=/v1/kv/* http.response.status_code=200 server.address=example.com
  client sarn/KV.Apply server.address=FOLLOWER rpc.method=KV.Apply
    server sarn/KV.Apply rpc.method=KV.Apply
      client sarn/Forwarded.KV.Apply server.address=LEADER rpc.method=Forwarded.KV.Apply
        server sarn/Forwarded.KV.Apply rpc.method=Forwarded.KV.Apply
          internal raft apply
            internal raft queue
            internal raft commit
            internal fsm apply
`)
		if w := do("GET", "/v1/kv/the-key?consistent", sampledParent); w.Code != 200 {
			t.Fatal(w.Code, w.Body)
		}
		check("a consistent read", `server GET /v1/kv/* http.request.method=GET http.route=/v1/kv/* http.response.status_code=200 server.address=example.com
  client sarn/KV.Get server.address=FOLLOWER rpc.method=KV.Get
    server sarn/KV.Get rpc.method=KV.Get
      client sarn/Forwarded.KV.Get server.address=LEADER rpc.method=Forwarded.KV.Get
        server sarn/Forwarded.KV.Get rpc.method=Forwarded.KV.Get
          internal raft verify leader
`)
		if w := do("PUT", "/v1/txn", sampledParent); w.Code != 400 {
			t.Fatal(w.Code, w.Body)
		}
		check("a mistake of the caller", "server PUT /v1/txn http.request.method=PUT http.route=/v1/txn http.response.status_code=400 server.address=example.com\n")

		// The wait of a read for a change is a span of its own.
		index := do("GET", "/v1/kv/the-key", sampledParent).Header().Get("X-Consul-Index")
		all.take()
		go func() {
			time.Sleep(2 * time.Minute)
			do("PUT", "/v1/kv/the-key", "")
		}()
		if w := do("GET", "/v1/kv/the-key?stale&wait=5m&index="+index, sampledParent); w.Code != 200 {
			t.Fatal(w.Code, w.Body)
		}
		spans := check("a read that waits", `server GET /v1/kv/* http.request.method=GET http.route=/v1/kv/* http.response.status_code=200 server.address=example.com
  client sarn/KV.Get server.address=FOLLOWER rpc.method=KV.Get
    server sarn/KV.Get rpc.method=KV.Get
      internal wait for a change
`)
		took := map[string]time.Duration{}
		for _, d := range spans {
			if d.Name != "sarn/KV.Get" { // of either side
				took[d.Name] += d.End.Sub(d.Start)
			}
		}
		for name, d := range took {
			if d < 119*time.Second || d > 121*time.Second {
				t.Errorf("%s took %v", name, d)
			}
		}

		// What the caller does not want recorded is not, and by no server either; no more is what nobody has decided.
		for _, parent := range []string{unsampledParent, "", "00-zz", sampledParent + "x"} {
			if w := do("PUT", "/v1/kv/the-key", parent); w.Code != 200 {
				t.Fatal(w.Code, w.Body)
			}
			if spans := all.take(); len(spans) > 0 {
				t.Errorf("traceparent %q: %d spans, the first %+v", parent, len(spans), spans[0])
			}
		}
		// With every request recorded, one whose traceparent is malformed begins a trace.
		all.Set(true, 1)
		do("PUT", "/v1/kv/the-key", "00-zz")
		spans = all.take()
		if len(spans) != 9 || spans[8].Parent != (span.ID{}) || spans[8].Trace == parent.Trace || spans[8].State != "" {
			t.Errorf("%d spans, the last %+v", len(spans), spans[len(spans)-1])
		}
		do("PUT", "/v1/kv/the-key", unsampledParent)
		if spans := all.take(); len(spans) > 0 {
			t.Errorf("an unsampled request gave %d spans", len(spans))
		}

		// Without a leader the wait for one shows.
		lead.crash()
		if w := do("GET", "/v1/kv/the-key", sampledParent); w.Code != 200 {
			t.Fatal(w.Code, w.Body)
		}
		if got := tree(all.take(), parent.Span); !strings.Contains(got, "internal wait for a leader\n") {
			t.Errorf("without a leader:\n%s", got)
		}

		data, err := proto.Marshal(span.Encode(nil, "", all.seen))
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{"header-token", "query-token", "the-value", "the-key", "flags"} {
			if bytes.Contains(data, []byte(secret)) {
				t.Errorf("%s is in a span", secret)
			}
		}
	})
}

// Servers that know nothing of traces take the calls of an agent that does, and answer none that is recorded.
func TestServersWithoutTracesTakeCallsOfTracedRequests(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 32, 3, server.Config{})
		mine := newRecord(t, 0)
		do := c.asks(c.follower(), "10.0.7.1", mine.Tracer)
		for _, method := range []string{http.MethodPut, http.MethodGet, http.MethodDelete} {
			if w := do(method, "/v1/kv/a", sampledParent); w.Code != 200 {
				t.Fatal(method, w.Code, w.Body)
			}
			if spans := mine.take(); len(spans) != 2 {
				t.Errorf("%s: %d spans", method, len(spans))
			}
		}
	})
}

// A call to another datacenter is part of the trace.
func TestCallsToOtherDatacentersAreTraced(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		all := newRecord(t, 0)
		network := testkit.NewNetwork(33)
		network.SetAll(testkit.Link{Delay: time.Millisecond})
		one := newClusterIn(t, network, "10.0.1", 1, server.Config{Datacenter: "dc1", WAN: &gossip.Config{}, Tracer: all.Tracer})
		two := newClusterIn(t, network, "10.0.2", 1, server.Config{Datacenter: "dc2", WAN: &gossip.Config{}, Tracer: all.Tracer})
		if _, err := two.nodes[0].WAN().Join([]string{one.nodes[0].host.Addr().String() + ":8302"}); err != nil {
			t.Fatal(err)
		}
		one.within(2*time.Minute, "dc2 known", func() bool { return len(datacenters(one.nodes[0])) == 2 })
		all.take()
		ctx, root := all.Begin(t.Context(), func() span.Context { p, _ := span.Parse(sampledParent); return p }(), span.Server, "request")
		_, err := kv.ApplyCall.Call(ctx, one.nodes[0].Caller(), &kv.ApplyRequest{Target: read.Target{Datacenter: "dc2"}, Op: kv.OpSet, Entry: kv.Entry{Key: "a"}})
		if err != nil {
			t.Fatal(err)
		}
		root.Finish()
		got := tree(all.take(), root.Parent, "server.address")
		if want := "server request\n  client sarn/KV.Apply server.address=" + two.nodes[0].host.Addr().String() + "\n    server sarn/KV.Apply\n      internal raft apply\n"; !strings.HasPrefix(got, want) {
			t.Errorf("got\n%swant\n%s", got, want)
		}
	})
}
