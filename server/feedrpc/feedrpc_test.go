package feedrpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/feed"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/client/subscription"
	"github.com/sarnmesh/sarn/internal/measure"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/consensus"
	"github.com/sarnmesh/sarn/server/feedrpc"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/rpctest"
	"github.com/sarnmesh/sarn/server/transport"
)

// A site is a store with servers that have it, and one agent.
type site struct {
	t       testing.TB
	data    *rpctest.Server
	servers []*serverAt
	dialer  *dialer
	cache   *cache.Cache
	streams *subscription.Client
}

// A serverAt is one of several servers that have the same state.
type serverAt struct {
	*transport.Dispatcher
	hub *feedrpc.Hub
}

// A dialer opens feeds at one of the servers, and can break them.
type dialer struct {
	mu     sync.Mutex
	at     []*serverAt
	first  int   // of at, to be asked
	err    error // of attempts
	open   map[*broken]bool
	slow   time.Duration // before each read
	opened int
}

type broken struct {
	io.ReadCloser
	io.Writer
	d    *dialer
	once sync.Once
	cut  func()
}

func (b *broken) Read(p []byte) (int, error) {
	b.d.mu.Lock()
	slow := b.d.slow
	b.d.mu.Unlock()
	if slow > 0 {
		time.Sleep(slow)
	}
	return b.ReadCloser.Read(p)
}

func (b *broken) Close() error {
	b.once.Do(func() {
		b.d.mu.Lock()
		delete(b.d.open, b)
		b.d.mu.Unlock()
		b.cut()
	})
	return nil
}

func (d *dialer) Duplex(_ context.Context, m rpc.Descriptor, req, resp any) (io.ReadWriteCloser, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.opened++
	if d.err != nil {
		return nil, d.err
	}
	in, w := io.Pipe()
	out, err := d.at[d.first].Stream(context.Background(), m, req, in, resp)
	if err != nil {
		return nil, err
	}
	b := &broken{ReadCloser: out, Writer: w, d: d, cut: func() {
		w.CloseWithError(io.ErrUnexpectedEOF)
		out.Close()
	}}
	d.open[b] = true
	return b, nil
}

// set changes what the dialer does; cut breaks what is open.
func (d *dialer) set(cut bool, f func()) {
	d.mu.Lock()
	f()
	var all []*broken
	for b := range d.open {
		all = append(all, b)
	}
	d.mu.Unlock()
	for _, b := range all {
		if cut {
			b.Close()
		}
	}
}

type resolver struct{ s *rpctest.Server }

func (r resolver) Resolve(_ context.Context, token string) (*acl.Authorizer, error) {
	if r.s.Resolve == nil {
		return everything, nil
	}
	return r.s.Resolve(token)
}

var everything = acl.Everything()

// leads is a log that always leads.
type leads struct{}

func (leads) Status() (consensus.Status, <-chan struct{}) {
	return consensus.Status{LeaderID: "self", Leading: true, Elected: true}, nil
}
func (leads) Leadership() context.Context                       { return context.Background() }
func (leads) LastContact() (time.Duration, bool)                { return 0, true }
func (leads) Verify(context.Context) error                      { return nil }
func (leads) Apply(context.Context, fsm.Kind, any) (any, error) { return nil, errors.ErrUnsupported }

// newSite starts everything in a bubble; what began has ended when the test has.
func newSite(t testing.TB, servers int, resolve func(token string) (*acl.Authorizer, error)) *site {
	s := &site{t: t, data: rpctest.New(), dialer: &dialer{open: map[*broken]bool{}}}
	s.data.Resolve = resolve
	lookups := catalogrpc.Config{LinkedGateways: configrpc.LinkedGateways}
	catalogrpc.Register(&s.data.Registry, &s.data.Appliers, lookups)
	configrpc.Register(&s.data.Registry, &s.data.Appliers, configrpc.Config{Datacenter: "dc1"})
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	for range servers {
		x := &serverAt{hub: feedrpc.New(feedrpc.Config{Store: s.data.Store, Candidates: lookups.Candidates})}
		var registry transport.Registry
		x.hub.Register(&registry)
		x.Dispatcher = transport.NewDispatcher(transport.Config{
			Datacenter: "dc1", Registry: &registry, Store: s.data.Store, Log: leads{}, Applied: s.data.Index, Resolver: resolver{s.data},
		})
		x.hub.Connect(x.Dispatcher)
		wg.Go(func() { x.hub.Run(ctx) })
		s.servers = append(s.servers, x)
	}
	s.dialer.at = s.servers
	s.streams = subscription.New(s.dialer, subscription.Config{Datacenter: "dc1"})
	s.cache = cache.New(s.data.Caller(), cache.Config{Streams: s.streams})
	actx, stop := context.WithCancel(context.Background())
	var agent sync.WaitGroup
	agent.Go(func() { s.cache.Run(actx) })
	agent.Go(func() { s.streams.Run(actx) })
	t.Cleanup(func() {
		stop()
		agent.Wait()
		for i, x := range s.servers {
			if got := x.hub.Stats(); got.Feeds != 0 || got.Subscriptions != 0 {
				t.Errorf("server %d has %+v after the agent has gone", i, got)
			}
		}
		cancel()
		wg.Wait()
	})
	return s
}

// ask asks for what a request is about without a stream.
func (s *site) ask(req catalog.InstancesRequest) (*catalog.InstancesReply, error) {
	req.Mode = read.Stale
	return catalog.InstancesCall.Call(context.Background(), s.data.Caller(), &req)
}

// text is an answer's content, for comparison.
func text(t testing.TB, r *catalog.InstancesReply) string {
	data, err := rpc.Marshal(struct {
		Filtered  bool
		Instances []*catalog.Instance
	}{r.Filtered, r.Instances})
	if err != nil {
		t.Fatal(err)
	}
	// A list that is empty and one that is not there are the same in what is decoded.
	var v struct {
		Filtered  bool
		Instances []*catalog.Instance
	}
	if err := rpc.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	data, _ = rpc.Marshal(&v)
	return string(data)
}

// A change is random: a registration, a check, a rename, the end of something.
func (s *site) change(r *rand.Rand) {
	t := s.t
	node := fmt.Sprintf("Node-%d", r.IntN(5))
	id := fmt.Sprintf("id-%d", r.IntN(3))
	name := []string{"web", "web", "web", "Web-b", "other"}[r.IntN(5)]
	var err error
	switch op := r.IntN(12); op {
	case 0, 1, 2, 3, 4, 5:
		svc := &catalog.Service{ID: id, Service: name, Port: 1 + r.IntN(3), Tags: []string{[]string{"a", "b", "C"}[r.IntN(3)]}}
		switch r.IntN(6) {
		case 0:
			svc.Service, svc.Kind, svc.Proxy.DestinationServiceName = "web-proxy", catalog.KindConnectProxy, name
		case 1:
			svc.Connect.Native = true
		case 2:
			svc.Service, svc.Kind, svc.Tags = []string{"gw", "tgw", "igw"}[r.IntN(3)], "", nil
			svc.Kind = map[string]string{"gw": catalog.KindMeshGateway, "tgw": catalog.KindTerminatingGateway, "igw": catalog.KindIngressGateway}[svc.Service]
		}
		req := &catalog.RegisterRequest{Node: node, Address: fmt.Sprintf("10.0.0.%d", 1+r.IntN(2)), Service: svc, NodeMeta: map[string]string{"rack": fmt.Sprint(r.IntN(2))}}
		if r.IntN(2) == 0 {
			req.Check = &catalog.Check{CheckID: "c-" + id, ServiceID: id, Status: []string{catalog.Passing, catalog.Critical}[r.IntN(2)]}
		}
		_, err = catalog.RegisterCall.Call(t.Context(), s.data.Caller(), req)
	case 6, 7:
		_, err = catalog.RegisterCall.Call(t.Context(), s.data.Caller(), &catalog.RegisterRequest{
			Node: node, Address: "10.0.0.1", Check: &catalog.Check{CheckID: "node", Status: []string{catalog.Passing, catalog.Warning}[r.IntN(2)]},
		})
	case 8:
		_, err = catalog.DeregisterCall.Call(t.Context(), s.data.Caller(), &catalog.DeregisterRequest{Node: node})
	case 9:
		_, err = catalog.DeregisterCall.Call(t.Context(), s.data.Caller(), &catalog.DeregisterRequest{Node: node, ServiceID: id})
	case 10: // a gateway is linked to the service, or not any more
		var e entry.Entry = &entry.TerminatingGateway{Header: entry.Header{Kind: entry.KindTerminatingGateway, Name: "tgw"}, Services: []entry.LinkedService{{Name: []string{"web", "none"}[r.IntN(2)]}}}
		_, err = entry.ApplyCall.Call(t.Context(), s.data.Caller(), &entry.ApplyRequest{Entry: entry.Any{Entry: e}})
	default:
		_, err = catalog.DeregisterCall.Call(t.Context(), s.data.Caller(), &catalog.DeregisterRequest{Node: node, CheckID: "c-" + id})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// requests are what the views of the tests are of.
func requests() map[string]catalog.InstancesRequest {
	all := map[string]catalog.InstancesRequest{
		"plain":     {Service: "web"},
		"case":      {Service: "WEB-B"},
		"connect":   {Service: "web", Connect: true},
		"ingress":   {Service: "web", Ingress: true},
		"gateways":  {Kind: catalog.KindMeshGateway},
		"passing":   {Service: "web", PassingOnly: true},
		"tagged":    {Service: "web", Tags: []string{"c"}},
		"nothing":   {Service: "none"},
		"uncovered": {Service: "web", CatalogOnly: true}, // asked for
	}
	filtered := catalog.InstancesRequest{Service: "web"}
	filtered.Filter = `Service.Port != 1`
	all["filtered"] = filtered
	rack := catalog.InstancesRequest{Service: "web", Connect: true}
	rack.NodeMeta = map[string]string{"rack": "1"}
	all["meta"] = rack
	return all
}

// A history is what a query has answered at each index.
type history map[string]map[uint64]string

// note asks all that views are of.
func (s *site) note(h history) {
	for name, req := range requests() {
		reply, err := s.ask(req)
		if err != nil {
			s.t.Fatal(err)
		}
		if h[name] == nil {
			h[name] = map[uint64]string{}
		}
		h[name][reply.Index] = text(s.t, reply)
	}
}

// A watcher holds what a view has told against what there was.
type watcher struct {
	mu    sync.Mutex
	last  uint64
	text  string
	err   error
	told  int
	wrong []string
}

func (w *watcher) check(t testing.TB, name string, h history, mu *sync.Mutex, r *catalog.InstancesReply, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
	if err != nil {
		return
	}
	mu.Lock()
	want, known := h[name][r.Index]
	mu.Unlock()
	got := text(t, r)
	w.told++
	switch {
	case r.Index < w.last:
		w.wrong = append(w.wrong, fmt.Sprintf("index %d after %d", r.Index, w.last))
	case !known:
		w.wrong = append(w.wrong, fmt.Sprintf("index %d, which no query has answered", r.Index))
	case got != want:
		w.wrong = append(w.wrong, fmt.Sprintf("at index %d other instances than a query", r.Index))
	}
	w.last, w.text = r.Index, got
}

// Whatever changes and breaks, a view shows nothing but what a query answers at that index, its index never goes back, and
// once it is quiet it shows what there is.
func TestViewsShowWhatQueriesAnswer(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 5))
			s := newSite(t, 2, nil)
			h, watchers := history{}, map[string]*watcher{}
			s.register("first", 1) // an index of 1 is also that of nothing
			var mu sync.Mutex      // held while the state is ahead of the history
			s.note(h)
			for name, req := range requests() {
				w := &watcher{}
				watchers[name] = w
				defer cache.Watch(s.cache, catalog.InstancesCall, &req, func(reply *catalog.InstancesReply, err error) { w.check(t, name, h, &mu, reply, err) })()
			}
			for range 300 {
				mu.Lock()
				s.change(r)
				s.note(h)
				mu.Unlock()
				switch r.IntN(12) {
				case 0:
					s.dialer.set(true, func() { s.dialer.first = r.IntN(len(s.servers)) })
				case 1:
					s.dialer.set(false, func() { s.dialer.slow = time.Duration(r.IntN(2)) * 3 * time.Second })
				case 2:
					s.dialer.set(r.IntN(2) == 0, func() {
						s.dialer.err = nil
						if r.IntN(3) == 0 {
							s.dialer.err = &rpcwire.DialError{Err: errors.New("nobody there")}
						}
					})
				case 3, 4, 5, 6:
					time.Sleep(time.Duration(r.IntN(int(20 * time.Millisecond))))
				case 7:
					time.Sleep(time.Duration(r.IntN(int(20 * time.Second))))
				}
			}
			s.dialer.set(true, func() { s.dialer.err, s.dialer.slow = nil, 0 })
			time.Sleep(3 * time.Minute)
			for name, req := range requests() {
				reply, err := s.ask(req)
				if err != nil {
					t.Fatal(err)
				}
				w := watchers[name]
				w.mu.Lock()
				if len(w.wrong) > 0 {
					t.Errorf("seed %d, %s: %d times wrong: %v", seed, name, len(w.wrong), w.wrong[:min(3, len(w.wrong))])
				}
				if w.err != nil || w.text != text(t, reply) || w.last > reply.Index {
					t.Errorf("seed %d, %s: at last index %d, error %v, not what a query answers at %d", seed, name, w.last, w.err, reply.Index)
				}
				if w.told < 2 && name != "nothing" {
					t.Errorf("seed %d, %s: told %d times", seed, name, w.told)
				}
				w.mu.Unlock()
				got, info, err := cache.Get(t.Context(), s.cache, catalog.InstancesCall, &req)
				if err != nil || text(t, got) != text(t, reply) || info.Streamed != (name != "uncovered") || !info.Hit || info.Age != 0 {
					t.Errorf("seed %d, %s: Get is %+v, %v", seed, name, info, err)
				}
			}
		})
	}
}

// tokens are what the tokens of a test may do, by rules that change.
type tokens struct {
	mu  sync.Mutex
	all map[string]*acl.Authorizer
}

func (k *tokens) resolve(token string) (*acl.Authorizer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if z := k.all[token]; z != nil {
		return z, nil
	}
	return nil, wireerr.ErrTokenNotFound
}

// set gives a token rules; none end it.
func (k *tokens) set(t testing.TB, token string, rules string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if rules == "" {
		delete(k.all, token)
		return
	}
	parsed, err := acl.Parse(rules)
	if err != nil {
		t.Fatal(err)
	}
	k.all[token] = acl.New(acl.Compile(false, parsed), token)
}

var rules = []string{
	"", // no token
	`service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }`,
	`service_prefix "" { policy = "read" } node_prefix "" { policy = "read" } node "Node-1" { policy = "deny" }`,
	`service "web" { policy = "read" } node_prefix "" { policy = "read" }`,
	`service_prefix "web" { policy = "read" } node "Node-2" { policy = "read" }`,
	`node_prefix "" { policy = "read" }`,
}

// Whatever becomes of a token's rights, and when, its views get no instance that it could not read at any time since that
// became so, and soon show what a query with the token answers, or refuses.
func TestFeedsNeverShowWhatATokenMayNotSee(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 9))
			k := &tokens{all: map[string]*acl.Authorizer{}}
			names := []string{"t0", "t1", "t2"}
			for i, n := range names {
				k.set(t, n, rules[1+i])
			}
			s := newSite(t, 1, func(token string) (*acl.Authorizer, error) {
				if token == "" { // of the test itself
					return everything, nil
				}
				return k.resolve(token)
			})
			var mu sync.Mutex
			allowed := map[string]bool{}           // token and instance as it was
			ever := map[string]*catalog.Instance{} // all that were there
			version := func(token string, i *catalog.Instance) string {
				data, err := rpc.Marshal(i)
				if err != nil {
					t.Error(err)
				}
				again := new(catalog.Instance)
				if err := rpc.Unmarshal(data, again); err != nil {
					t.Error(err)
				}
				data, _ = rpc.Marshal(again)
				return token + " " + string(data)
			}
			note := func() {
				for _, req := range requests() {
					reply, err := s.ask(req)
					if err != nil {
						t.Fatal(err)
					}
					for _, i := range reply.Instances {
						ever[version("", i)] = i
					}
				}
				for _, n := range names {
					z, err := k.resolve(n)
					for v, i := range ever {
						if err == nil && catalogrpc.MayReadInstance(z, i) {
							allowed[n+v] = true
						}
					}
				}
			}
			shown, leaks := 0, 0
			for _, n := range names {
				for name, req := range requests() {
					if name == "uncovered" {
						continue
					}
					req.Token = n
					defer cache.Watch(s.cache, catalog.InstancesCall, &req, func(reply *catalog.InstancesReply, err error) {
						if err != nil {
							return
						}
						mu.Lock()
						defer mu.Unlock()
						for _, i := range reply.Instances {
							if shown++; !allowed[version(n, i)] {
								leaks++
							}
						}
					})()
				}
			}
			for range 250 {
				mu.Lock()
				if r.IntN(6) == 0 {
					k.set(t, names[r.IntN(len(names))], rules[r.IntN(len(rules))])
				} else {
					s.change(r)
				}
				note()
				mu.Unlock()
				if r.IntN(2) == 0 {
					time.Sleep(time.Duration(r.IntN(int(200 * time.Millisecond))))
				}
				if r.IntN(40) == 0 {
					s.dialer.set(true, func() {})
					time.Sleep(6 * time.Second) // feeds that last less, in a row, are given up for a while
				}
			}
			mu.Lock()
			if leaks > 0 || shown < 100 {
				t.Errorf("seed %d: of %d instances that were shown, %d could not be read", seed, shown, leaks)
			}
			mu.Unlock()
			for round := range len(rules) {
				for i, n := range names {
					mu.Lock()
					k.set(t, n, rules[(round+i)%len(rules)])
					note()
					mu.Unlock()
				}
				time.Sleep(4 * time.Minute) // what was refused is asked for again by then
				for _, n := range names {
					for name, req := range requests() {
						req.Token = n
						want, refused := s.ask(req)
						got, info, err := cache.Get(t.Context(), s.cache, catalog.InstancesCall, &req)
						switch {
						case refused != nil && (err == nil || wireerr.Status(err) != wireerr.Status(refused)):
							t.Errorf("seed %d, %s of %s: %v, want %v", seed, name, n, err, refused)
						case refused == nil && (err != nil || text(t, got) != text(t, want)):
							t.Errorf("seed %d, %s of %s: %v, %+v, not what a query answers", seed, name, n, err, info)
						}
					}
				}
			}
		})
	}
}

func (s *site) register(node string, port int) {
	s.t.Helper()
	_, err := catalog.RegisterCall.Call(context.Background(), s.data.Caller(), &catalog.RegisterRequest{
		Node: node, Address: "10.0.0.1", Service: &catalog.Service{ID: "web", Service: "web", Port: port},
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) stats() (sum feedrpc.Stats) {
	for _, x := range s.servers {
		one := x.hub.Stats()
		sum.Feeds, sum.Subscriptions, sum.Topics = sum.Feeds+one.Feeds, sum.Subscriptions+one.Subscriptions, sum.Topics+one.Topics
	}
	return sum
}

// Views of one subject and token share a subscription whatever they select; a view that ends gives it up, and a topic that
// nobody subscribes to is dropped.
func TestSubscriptionsAreSharedAndGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 1, nil)
		s.register("a", 1)
		var cancels []func()
		for _, r := range requests() {
			cancels = append(cancels, cache.Watch(s.cache, catalog.InstancesCall, &r, func(*catalog.InstancesReply, error) {}))
		}
		time.Sleep(time.Second)
		// plain, case, connect, ingress, gateways, nothing; four more select from those.
		if got, want := s.stats(), (feedrpc.Stats{Feeds: 1, Subscriptions: 6, Topics: 6}); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
		for _, cancel := range cancels {
			cancel()
		}
		time.Sleep(26 * time.Minute) // the views are dropped; then the feed and the topics
		if got := s.stats(); got != (feedrpc.Stats{}) {
			t.Errorf("%+v is left", got)
		}
		r := catalog.InstancesRequest{Service: "web"}
		if got, info, err := cache.Get(t.Context(), s.cache, catalog.InstancesCall, &r); err != nil || len(got.Instances) != 1 || !info.Streamed {
			t.Errorf("afterwards: %+v, %+v, %v", got, info, err)
		}
	})
}

// A feed that breaks goes on where it was, at another server as well: who has what there is gets nothing again.
func TestABrokenFeedGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 2, nil)
		s.register("a", 1)
		req := catalog.InstancesRequest{Service: "web"}
		var mu sync.Mutex
		var replies []*catalog.InstancesReply
		var errs []error
		defer cache.Watch(s.cache, catalog.InstancesCall, &req, func(r *catalog.InstancesReply, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			replies = append(replies, r)
		})()
		time.Sleep(time.Second)
		s.dialer.set(true, func() { s.dialer.first = 1 })
		time.Sleep(time.Second)
		opened := 0
		s.dialer.set(false, func() { opened = s.dialer.opened })
		mu.Lock()
		if len(replies) != 1 || len(errs) != 0 || opened != 2 {
			t.Errorf("%d answers, errors %v, %d feeds", len(replies), errs, opened)
		}
		mu.Unlock()
		s.register("b", 1)
		s.register("a", 2)
		time.Sleep(time.Second)
		mu.Lock()
		last := replies[len(replies)-1]
		if len(last.Instances) != 2 || last.Instances[0].Service.Port != 2 || errs != nil {
			t.Errorf("%+v, errors %v", last.Instances, errs)
		}
		if replies[0].Instances[0].Service.Port != 1 {
			t.Error("an answer was changed")
		}
		mu.Unlock()

		// While no server can be reached the answer stays, and its age grows.
		s.dialer.set(true, func() { s.dialer.err = &rpcwire.DialError{Err: errors.New("nobody there")} })
		time.Sleep(time.Minute)
		got, info, err := cache.Get(t.Context(), s.cache, catalog.InstancesCall, &req)
		mu.Lock()
		if err != nil || len(got.Instances) != 2 || info.Age < 55*time.Second || len(errs) != 1 {
			t.Errorf("while nobody is there: %+v, %v, watchers got %v", info, err, errs)
		}
		mu.Unlock()
		s.register("c", 1)
		s.dialer.set(false, func() { s.dialer.err = nil })
		time.Sleep(15 * time.Second)
		if got, info, err = cache.Get(t.Context(), s.cache, catalog.InstancesCall, &req); err != nil || len(got.Instances) != 3 || info.Age != 0 {
			t.Errorf("when they are back: %+v, %v", info, err)
		}
	})
}

// Servers that know no feeds are asked instead, and looked at again later.
func TestServersWithoutFeedsAreAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 1, nil)
		s.dialer.set(false, func() { s.dialer.err = rpcwire.ErrUnknownMethod })
		s.register("a", 1)
		req := catalog.InstancesRequest{Service: "web"}
		get := func() (*catalog.InstancesReply, cache.Info) {
			t.Helper()
			got, info, err := cache.Get(t.Context(), s.cache, catalog.InstancesCall, &req)
			if err != nil {
				t.Fatal(err)
			}
			return got, info
		}
		get()
		if cache.Streamed(s.cache, catalog.InstancesCall, &req) {
			t.Error("a stream is promised")
		}
		s.register("b", 1)
		time.Sleep(time.Second)
		if got, info := get(); len(got.Instances) != 2 || info.Streamed || !info.Hit {
			t.Errorf("%+v, %+v", got, info)
		}
		s.dialer.set(false, func() { s.dialer.err = nil })
		time.Sleep(15 * time.Minute)
		s.register("c", 1)
		time.Sleep(time.Second)
		if got, info := get(); len(got.Instances) != 3 || !info.Streamed {
			t.Errorf("later: %+v, %+v", got, info)
		}
	})
}

// A request that a feed does not cover, or whose filter is wrong, is asked for.
func TestWhatAFeedDoesNotCoverIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 1, nil)
		s.register("a", 1)
		near, elsewhere, wrong := catalog.InstancesRequest{Service: "web"}, catalog.InstancesRequest{Service: "web"}, catalog.InstancesRequest{Service: "web"}
		near.Near, elsewhere.Datacenter, wrong.Filter = "a", "dc2", "Service ==="
		if _, info, err := cache.Get(t.Context(), s.cache, catalog.InstancesCall, &near); err != nil || info.Streamed {
			t.Errorf("near: %+v, %v", info, err)
		}
		if _, _, err := cache.Get(t.Context(), s.cache, catalog.InstancesCall, &elsewhere); !errors.Is(err, wireerr.ErrNoDatacenter) {
			t.Errorf("elsewhere: %v", err)
		}
		if _, _, err := cache.Get(t.Context(), s.cache, catalog.InstancesCall, &wrong); err == nil || !strings.Contains(err.Error(), "boolean expression") {
			t.Errorf("a wrong filter: %v", err)
		}
	})
}

// A server that is about to go tells its agents, who go to another without their views noticing.
func TestALeavingServerSendsItsAgentsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 2, nil)
		s.register("a", 1)
		req := catalog.InstancesRequest{Service: "web"}
		var failed atomic.Int32
		defer cache.Watch(s.cache, catalog.InstancesCall, &req, func(_ *catalog.InstancesReply, err error) {
			if err != nil {
				failed.Add(1)
			}
		})()
		time.Sleep(time.Minute)
		s.dialer.set(false, func() { s.dialer.first = 1 })
		s.servers[0].Refuse()
		time.Sleep(time.Second)
		if a, b := s.servers[0].hub.Stats(), s.servers[1].hub.Stats(); a.Feeds != 0 || b.Subscriptions != 1 || failed.Load() != 0 {
			t.Errorf("the one that goes has %+v, the other %+v; %d errors", a, b, failed.Load())
		}
		_, out, err := feed.OpenCall.Stream(t.Context(), s.servers[0], &feed.OpenRequest{}, nil)
		if !errors.Is(err, wireerr.ErrNoLeader) {
			t.Errorf("the one that goes gives a feed: %v, %v", out, err)
		}
	})
}

// A blocking query of a view waits as long as it is to, exactly, and is answered once the index has passed.
func TestWaitsOnAStreamedView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, 1, nil)
		s.register("a", 1)
		req := catalog.InstancesRequest{Service: "web"}
		first, _, err := cache.Get(t.Context(), s.cache, catalog.InstancesCall, &req)
		if err != nil {
			t.Fatal(err)
		}
		wait := req
		wait.MinIndex, wait.MaxWait = first.Index, time.Minute
		began := time.Now()
		same, info, err := cache.Get(t.Context(), s.cache, catalog.InstancesCall, &wait)
		if took := time.Since(began); err != nil || took != time.Minute || same.Index != first.Index || info.Hit {
			t.Errorf("to the limit: %v, %+v, %v", took, info, err)
		}
		began = time.Now()
		time.AfterFunc(7*time.Second, func() { s.register("b", 1) })
		next, _, err := cache.Get(t.Context(), s.cache, catalog.InstancesCall, &wait)
		if took := time.Since(began); err != nil || took < 7*time.Second || took > 8*time.Second || len(next.Instances) != 2 || next.Index <= first.Index {
			t.Errorf("to the change: %v, %+v, %v", took, next, err)
		}
	})
}

// A panic while a subscription is looked at ends that one, with an error that tells nothing of it; the feed goes on.
func TestAPanicEndsOneSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		s := newSite(t, 1, func(token string) (*acl.Authorizer, error) {
			if token == "bad" && broken.Load() {
				panic("secret")
			}
			return everything, nil
		})
		s.register("a", 1)
		good, bad := catalog.InstancesRequest{Service: "web"}, catalog.InstancesRequest{Service: "web"}
		bad.Token = "bad"
		get := func(req catalog.InstancesRequest) (int, error) {
			got, _, err := cache.Get(t.Context(), s.cache, catalog.InstancesCall, &req)
			if err != nil {
				return 0, err
			}
			return len(got.Instances), nil
		}
		var mu sync.Mutex
		var told error
		defer cache.Watch(s.cache, catalog.InstancesCall, &bad, func(_ *catalog.InstancesReply, err error) {
			mu.Lock()
			defer mu.Unlock()
			told = err
		})()
		for _, req := range []catalog.InstancesRequest{good, bad} {
			if n, err := get(req); err != nil || n != 1 {
				t.Fatalf("%d, %v", n, err)
			}
		}
		broken.Store(true)
		s.register("b", 1)
		time.Sleep(time.Second)
		mu.Lock()
		if told == nil || wireerr.Status(told) != 500 || strings.Contains(told.Error(), "secret") {
			t.Errorf("told %v", told)
		}
		mu.Unlock()
		if n, err := get(good); err != nil || n != 2 {
			t.Errorf("the other shows %d, %v", n, err)
		}
		broken.Store(false)
		s.register("c", 1)
		time.Sleep(time.Minute)
		if n, err := get(bad); err != nil || n != 3 {
			t.Errorf("afterwards %d, %v", n, err)
		}
		opened := 0
		s.dialer.set(false, func() { opened = s.dialer.opened })
		if opened != 1 {
			t.Errorf("%d feeds were opened", opened)
		}
	})
}

// Servers tell how many feeds and subscriptions they have, and how many events they have sent.
func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := metrics.NewInmemSink(24*time.Hour, 48*time.Hour)
		conf := metrics.DefaultConfig("")
		conf.EnableRuntimeMetrics, conf.EnableHostname = false, false
		measure.Report() // what others have counted
		if _, err := metrics.NewGlobal(conf, sink); err != nil {
			t.Fatal(err)
		}
		defer metrics.NewGlobal(conf, &metrics.BlackholeSink{})
		s := newSite(t, 1, nil)
		check := func(feeds, subscriptions, topics float32) {
			t.Helper()
			time.Sleep(10 * time.Second)
			synctest.Wait()
			gauges := sink.Data()[0].Gauges
			f, n, k := gauges["grpc.server.streams;server_type=internal"].Value, gauges["feed.server.subscriptions"].Value, gauges["feed.server.topics"].Value
			if f != feeds || n != subscriptions || k != topics {
				t.Errorf("%v feeds, %v subscriptions, %v topics; want %v, %v, %v", f, n, k, feeds, subscriptions, topics)
			}
		}
		check(0, 0, 0)
		s.register("a", 1)
		one, two := catalog.InstancesRequest{Service: "web"}, catalog.InstancesRequest{Service: "other"}
		mine := one
		mine.Token = "mine" // of one topic with the other
		for _, req := range []*catalog.InstancesRequest{&one, &two, &mine} {
			defer cache.Watch(s.cache, catalog.InstancesCall, req, func(*catalog.InstancesReply, error) {})()
		}
		check(1, 3, 2)
		s.register("b", 1)
		time.Sleep(time.Second)
		s.register("a", 2)
		time.Sleep(time.Second)
		s.dialer.set(true, func() {}) // it goes on where it was
		check(1, 3, 2)
		measure.Report()
		for name, want := range map[string]float64{
			"feed.server.events":                            3 + 2*2, // three states, two changes for two
			"grpc.server.stream.count;server_type=internal": 2,
		} {
			if got := sink.Data()[0].Counters[name]; got.AggregateSample == nil || got.Sum != want {
				t.Errorf("%s is %v, want %v", name, got.AggregateSample, want)
			}
		}
	})
}
