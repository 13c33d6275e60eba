package subscription_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/feed"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/client/subscription"
	"github.com/sarnmesh/sarn/internal/measure"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// patience is how long a test waits, by the clock of its bubble, for what is to come.
const patience = time.Hour

// An agent is a client that runs, and the dialer of its feeds.
type agent struct {
	t       *testing.T
	streams *subscription.Client
	feeds   chan *server                       // that were opened
	dial    func() (io.ReadWriteCloser, error) // opens feeds; nil for those that are told to feeds
	stop    func()                             // ends Run and waits for it

	mu     sync.Mutex
	err    error // of attempts
	silent bool  // attempts hear nothing
	dials  int
}

// bubble has f test a client in a bubble.
func bubble(t *testing.T, cfg subscription.Config, f func(t *testing.T, a *agent)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := newAgent(t, cfg)
		defer a.stop()
		f(t, a)
	})
}

func newAgent(t *testing.T, cfg subscription.Config) *agent {
	a := &agent{t: t, feeds: make(chan *server, 10000)}
	cfg.Datacenter = "dc1"
	a.streams = subscription.New(a, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- a.streams.Run(ctx) }()
	a.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run ends with %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
	})
	return a
}

// Duplex implements subscription.Dialer.
func (a *agent) Duplex(ctx context.Context, d rpc.Descriptor, _, _ any) (io.ReadWriteCloser, error) {
	if d.Name != feed.OpenCall.Name {
		a.t.Errorf("the client calls %s", d.Name)
	}
	a.mu.Lock()
	a.dials++
	err, silent := a.err, a.silent
	a.mu.Unlock()
	switch {
	case silent:
		<-ctx.Done()
		return nil, ctx.Err()
	case err != nil:
		return nil, err
	}
	if a.dial != nil {
		return a.dial()
	}
	in, w := io.Pipe()
	r, out := io.Pipe()
	s := &server{t: a.t, in: in, out: out, asks: make(chan *feed.Ask, 1000)}
	a.feeds <- s
	return &connection{r, w}, nil
}

// answer has attempts to open a feed fail with err, or succeed again if it is nil. It returns how many there were.
func (a *agent) answer(err error) (dials int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
	return a.dials
}

// feed returns the feed that is opened next, when the client has asked for what it wants.
func (a *agent) feed() *server {
	a.t.Helper()
	s := a.unheard()
	go s.listen()
	synctest.Wait()
	return s
}

// unheard is feed, of a server that takes nothing of what the client sends.
func (a *agent) unheard() *server {
	a.t.Helper()
	select {
	case s := <-a.feeds:
		return s
	case <-time.After(patience):
		a.t.Fatal("no feed is opened")
		return nil
	}
}

// noFeed fails the test if a feed is opened within d.
func (a *agent) noFeed(d time.Duration) {
	a.t.Helper()
	select {
	case <-a.feeds:
		a.t.Fatal("a feed is opened")
	case <-time.After(d):
	}
}

// A connection is the client's end of a feed.
type connection struct {
	*io.PipeReader
	w *io.PipeWriter
}

func (c *connection) Write(p []byte) (int, error) { return c.w.Write(p) }

func (c *connection) Close() error {
	c.w.Close()
	return c.PipeReader.Close()
}

// A server is the other end of a feed, which does what a test says.
type server struct {
	t    *testing.T
	in   *io.PipeReader
	out  *io.PipeWriter
	asks chan *feed.Ask // closed when the client has closed the feed
}

// listen takes what the client sends until it closes the feed.
func (s *server) listen() {
	defer close(s.asks)
	r := bufio.NewReader(s.in)
	for {
		a, err := feed.ReadAsk(r)
		if err != nil {
			return
		}
		s.asks <- a
	}
}

// ask returns what the client asks next.
func (s *server) ask() *feed.Ask {
	s.t.Helper()
	select {
	case a, ok := <-s.asks:
		if !ok {
			s.t.Fatal("the client has closed the feed")
		}
		return a
	case <-time.After(patience):
		s.t.Fatal("the client asks nothing")
	}
	return nil
}

// wants fails the test if the client asks something else next than to begin a subscription of a subject with what it has.
// It returns its number.
func (s *server) wants(subject feed.Subject, token string, have feed.Version, floor uint64) uint64 {
	s.t.Helper()
	got := s.ask()
	if want := (feed.Ask{ID: got.ID, Subject: subject, Token: token, Have: have, Floor: floor}); *got != want || got.ID == 0 {
		s.t.Fatalf("the client asks %+v, want %+v", *got, want)
	}
	return got.ID
}

// ends fails the test if the client asks something else next than to end a subscription.
func (s *server) ends(id uint64) {
	s.t.Helper()
	if got, want := s.ask(), (feed.Ask{ID: id, End: true}); *got != want {
		s.t.Fatalf("the client asks %+v, want %+v", *got, want)
	}
}

// idle fails the test if the client asks something, or closes the feed, within d.
func (s *server) idle(d time.Duration) {
	s.t.Helper()
	select {
	case a, ok := <-s.asks:
		s.t.Fatalf("the client asks %+v, %v", a, ok)
	case <-time.After(d):
	}
}

// closed waits until the client has closed the feed, and returns how long that took.
func (s *server) closed() time.Duration {
	s.t.Helper()
	began := time.Now()
	limit := time.After(patience)
	for {
		select {
		case _, ok := <-s.asks:
			if !ok {
				return time.Since(began)
			}
		case <-limit:
			s.t.Fatal("the client does not close the feed")
		}
	}
}

// send sends frames. The client may have closed the feed.
func (s *server) send(frames ...feed.Frame) {
	var b []byte
	for i := range frames {
		b = append(frames[i].AppendHead(b), frames[i].Event...)
	}
	s.out.Write(b)
}

// gives begins a subscription with instances that need no more words, which its reader is shown. It returns the state.
func (s *server) gives(to *reader, id, index uint64, all ...string) *feed.State {
	s.t.Helper()
	state, data := begin(s.t, index, all...)
	s.send(event(id, data))
	to.shows(strings.Join(append([]string{fmt.Sprintf("%d:", index)}, all...), " "))
	return state
}

// fail ends the feed from the server's side.
func (s *server) fail(err error) {
	s.out.CloseWithError(err)
	s.in.CloseWithError(err)
}

// errCut is what a client reads of a connection that was cut.
var errCut = &rpcwire.LostError{Err: io.ErrUnexpectedEOF}

// event is a frame of the last event of a change.
func event(id uint64, data []byte) feed.Frame {
	return feed.Frame{Kind: feed.Event, ID: id, Last: true, KnownLeader: true, Event: data}
}

func current(id uint64) feed.Frame { return feed.Frame{Kind: feed.Current, ID: id, KnownLeader: true} }

func refused(id uint64, status int, text string) feed.Frame {
	return feed.Frame{Kind: feed.Refused, ID: id, Status: status, Text: text}
}

// instances makes instances of what is said of each: NODE=PORT, after it tags with "#" before them, "critical", and pairs
// of the node's metadata.
func instances(all ...string) []*catalog.Instance {
	list := []*catalog.Instance{}
	for _, text := range all {
		words := strings.Fields(text)
		i := &catalog.Instance{Service: &catalog.Service{ID: "web", Service: "web", Weights: catalog.DefaultWeights()}}
		node, port, _ := strings.Cut(words[0], "=")
		fmt.Sscan(port, &i.Service.Port)
		i.Node = &catalog.Node{Node: node, Address: "10.0.0.1", Meta: map[string]string{}}
		check := &catalog.Check{Node: node, CheckID: "c", ServiceID: "web", Status: catalog.Passing}
		i.Checks = []*catalog.Check{check}
		for _, w := range words[1:] {
			if tag, ok := strings.CutPrefix(w, "#"); ok {
				i.Service.Tags = append(i.Service.Tags, tag)
			} else if k, v, ok := strings.Cut(w, ":"); ok {
				i.Node.Meta[k] = v
			} else {
				check.Status = w
			}
		}
		list = append(list, i)
	}
	return list
}

// begin makes a state and the event that leads to it.
func begin(t testing.TB, index uint64, all ...string) (*feed.State, []byte) {
	t.Helper()
	s, data, err := feed.Begin(index, false, instances(all...))
	if err != nil {
		t.Fatal(err)
	}
	return s, data
}

// follow makes the state that follows with other instances, and the event that leads to it.
func follow(t testing.TB, s *feed.State, index uint64, all ...string) (*feed.State, []byte) {
	t.Helper()
	s, data, err := s.Next(index, false, instances(all...))
	if err != nil {
		t.Fatal(err)
	}
	return s, data
}

// A reader reads a stream as a view does.
type reader struct {
	t     *testing.T
	s     cache.Stream
	since uint64
	reply *catalog.InstancesReply // of the last answer
}

// open opens a stream that is there.
func (a *agent) open(req catalog.InstancesRequest) *reader {
	a.t.Helper()
	s := a.streams.Open(catalog.InstancesCall.Descriptor, &req)
	if s == nil {
		a.t.Fatalf("no stream of %+v", req)
	}
	return &reader{t: a.t, s: s}
}

func (r *reader) next() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return r.nextUntil(ctx)
}

func (r *reader) nextUntil(ctx context.Context) (string, error) {
	reply, index, err := r.s.Next(ctx, r.since)
	if err != nil {
		return "", err
	}
	r.reply, r.since = reply.(*catalog.InstancesReply), index
	return show(r.reply), nil
}

// show is an answer in short: its index, and the nodes and ports of its instances.
func show(r *catalog.InstancesReply) string {
	text := fmt.Sprintf("%d:", r.Index)
	for _, i := range r.Instances {
		text += fmt.Sprintf(" %s=%d", i.Node.Node, i.Service.Port)
	}
	return text
}

// shows fails the test unless the next answer is as wanted.
func (r *reader) shows(want string) {
	r.t.Helper()
	if got, err := r.next(); err != nil || got != want {
		r.t.Fatalf("the stream gives %q, %v; want %q", got, err, want)
	}
}

// fails returns the error that the stream tells next.
func (r *reader) fails() error {
	r.t.Helper()
	got, err := r.next()
	if err == nil || errors.Is(err, context.DeadlineExceeded) {
		r.t.Fatalf("the stream gives %q, %v; want an error", got, err)
	}
	return err
}

// quiet fails the test if the stream tells anything within d.
func (r *reader) quiet(d time.Duration) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	began := time.Now()
	if got, err := r.nextUntil(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != d {
		r.t.Fatalf("the stream gives %q, %v, after %v; want nothing", got, err, time.Since(began))
	}
}

var (
	web    = catalog.InstancesRequest{Service: "web"}
	ofWeb  = feed.Subject{Service: "web"}
	noHave = feed.Version{}
)

// A stream gives the first state and each change, whole, with what the server says of its contact with the leader.
func TestAStreamGivesTheStateAndWhatChanges(t *testing.T) {
	bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
		req := web
		req.Token = "secret"
		v := a.open(req)
		defer v.s.Close()
		f := a.feed()
		id := f.wants(ofWeb, "secret", noHave, 0)
		v.quiet(time.Second)

		s, data := begin(t, 5, "a=1", "b=1")
		f.send(feed.Frame{Kind: feed.Event, ID: id, Last: true, KnownLeader: true, Contact: 7 * time.Millisecond, Event: data})
		v.shows("5: a=1 b=1")
		if m := v.reply.Meta; m.Index != 5 || !m.KnownLeader || m.LastContact != 7*time.Millisecond || m.Filtered {
			t.Errorf("%+v", m)
		}
		first := v.reply
		v.quiet(time.Second)
		f.send(current(id)) // no news
		v.quiet(time.Second)

		s, one := follow(t, s, 6, "a=1")
		s, two := follow(t, s, 7, "a=1", "c=1")
		middle := event(id, one)
		middle.Last = false
		f.send(middle)
		v.quiet(time.Second)
		f.send(event(id, two))
		v.shows("7: a=1 c=1")

		s, data, err := s.Next(8, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		f.send(feed.Frame{Kind: feed.Event, ID: id, Last: true, Event: data})
		v.shows("8:")
		if m := v.reply.Meta; m.KnownLeader || m.LastContact != 0 || !m.Filtered || v.reply.Instances == nil {
			t.Errorf("%+v, instances %v", m, v.reply.Instances)
		}
		_, data = follow(t, s, 9, "a=2")
		f.send(event(id, data))
		v.shows("9: a=2")
		if got := show(first); got != "5: a=1 b=1" {
			t.Errorf("an answer was changed to %s", got)
		}
		v.since = 0
		v.shows("9: a=2") // any answer will do
		f.idle(time.Second)
	})
}

// Whatever streams select, those of one subject and token share a subscription.
func TestStreamsSelectFromOneSubscription(t *testing.T) {
	with := func(change func(*catalog.InstancesRequest)) catalog.InstancesRequest {
		req := web
		change(&req)
		return req
	}
	tests := []struct {
		name        string
		req         catalog.InstancesRequest
		first, then string
	}{
		{"all", web, "5: a=1 b=2 c=3", "6: a=1 b=2 c=4 d=5"},
		{"in the agent's datacenter", with(func(r *catalog.InstancesRequest) { r.Datacenter = "dc1" }), "5: a=1 b=2 c=3", "6: a=1 b=2 c=4 d=5"},
		{"tag", with(func(r *catalog.InstancesRequest) { r.Tags = []string{"RED"} }), "5: a=1 b=2", "6: a=1 d=5"},
		{"tags", with(func(r *catalog.InstancesRequest) { r.Tags = []string{"red", "blue"} }), "5: b=2", "6:"},
		{"meta", with(func(r *catalog.InstancesRequest) { r.NodeMeta = map[string]string{"rack": "1"} }), "5: a=1", "6: a=1 d=5"},
		{"passing", with(func(r *catalog.InstancesRequest) { r.PassingOnly = true }), "5: a=1 c=3", "6: a=1 b=2 c=4"},
		{"filter", with(func(r *catalog.InstancesRequest) { r.Filter = "Service.Port != 1 and Node.Node != c" }), "5: b=2", "6: b=2 d=5"},
		{"all of it", with(func(r *catalog.InstancesRequest) {
			r.Tags, r.NodeMeta, r.PassingOnly, r.Filter = []string{"red"}, map[string]string{"rack": "1"}, true, "Service.Port == 1"
		}), "5: a=1", "6: a=1"},
	}
	bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
		var readers []*reader
		for _, tt := range tests {
			v := a.open(tt.req)
			defer v.s.Close()
			readers = append(readers, v)
		}
		f := a.feed()
		id := f.wants(ofWeb, "", noHave, 0)
		s, data := begin(t, 5, "a=1 #red rack:1", "b=2 #Red #blue critical rack:2", "c=3")
		f.send(event(id, data))
		_, next := follow(t, s, 6, "a=1 #red rack:1", "b=2 #blue", "c=4", "d=5 #red rack:1 critical")
		for i, tt := range tests {
			if got, err := readers[i].next(); err != nil || got != tt.first {
				t.Errorf("%s: first %q, %v; want %q", tt.name, got, err, tt.first)
			}
		}
		f.send(event(id, next))
		for i, tt := range tests {
			if got, err := readers[i].next(); err != nil || got != tt.then {
				t.Errorf("%s: then %q, %v; want %q", tt.name, got, err, tt.then)
			}
		}
		f.idle(time.Second)
	})
}

// What a feed cannot answer, or the servers are to say is wrong, has no stream.
func TestWhatHasNoStream(t *testing.T) {
	bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
		instances := catalog.InstancesCall.Descriptor
		for name, tt := range map[string]struct {
			d      rpc.Descriptor
			req    any
			covers bool
			opens  bool
		}{
			"covered":            {instances, &catalog.InstancesRequest{Service: "web"}, true, true},
			"another datacenter": {instances, &catalog.InstancesRequest{Service: "web", Options: read.Options{Target: read.Target{Datacenter: "dc2"}}}, false, false},
			"a peer":             {instances, &catalog.InstancesRequest{Service: "web", Peer: "east"}, false, false},
			"sorted":             {instances, &catalog.InstancesRequest{Service: "web", Options: read.Options{Near: "a"}}, false, false},
			"another call":       {catalog.NodesCall.Descriptor, &catalog.InstancesRequest{Service: "web"}, false, false},
			"another request":    {instances, &catalog.NodesRequest{}, false, false},
			"a wrong filter":     {instances, &catalog.InstancesRequest{Service: "web", Options: read.Options{Filter: "Service ==="}}, true, false},
		} {
			if got := a.streams.Covers(tt.d, tt.req); got != tt.covers {
				t.Errorf("%s: Covers is %v", name, got)
			}
			s := a.streams.Open(tt.d, tt.req)
			if (s != nil) != tt.opens {
				t.Errorf("%s: opened %v", name, s != nil)
			}
			if s != nil {
				s.Close()
			}
		}
	})
}

// A subscription lasts until the last stream of it is closed; one that is opened then begins anew.
func TestASubscriptionIsSharedAndGivenUp(t *testing.T) {
	bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
		one := a.open(web)
		f := a.feed()
		id := f.wants(ofWeb, "", noHave, 0)
		s := f.gives(one, id, 5, "a=1")

		two := a.open(web)
		two.shows("5: a=1") // nobody is asked for it
		f.idle(time.Second)
		mine := web
		mine.Token = "mine"
		other, kind := a.open(mine), a.open(catalog.InstancesRequest{Kind: catalog.KindMeshGateway, Connect: true})
		second := f.wants(ofWeb, "mine", noHave, 0)
		third := f.wants(feed.Subject{Kind: catalog.KindMeshGateway, Connect: true}, "", noHave, 0)
		if second == id || third == id || second == third {
			t.Errorf("subscriptions %d, %d and %d", id, second, third)
		}
		f.gives(other, second, 3, "b=1")
		one.quiet(time.Second)
		f.gives(kind, third, 4, "c=1")
		other.s.Close()
		f.ends(second)
		kind.s.Close()
		f.ends(third)

		one.s.Close()
		f.idle(time.Second)
		last, data := follow(t, s, 6, "a=2")
		f.send(event(id, data), event(second, data), event(999, data)) // those that have ended are nobody's
		two.shows("6: a=2")
		two.s.Close()
		f.ends(id)
		f.send(event(id, data), refused(id, 403, "Permission denied"))
		f.idle(time.Second)

		again := a.open(web)
		defer again.s.Close()
		id = f.wants(ofWeb, "", noHave, 0)
		whole, err := last.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		f.send(event(id, whole))
		again.shows("6: a=2")
	})
}

// A refusal is told once to each stream, and the subscription is asked for anew by who goes on reading: with the state that
// there was, unless the token may not see it.
func TestRefusals(t *testing.T) {
	tests := []struct {
		name   string
		status int
		text   string
		is     error // what errors.Is finds
		tells  int   // the status that the error has
		keeps  bool  // the state
	}{
		{"forbidden", 403, "ACL not found", wireerr.ErrTokenNotFound, 403, false},
		{"forbidden by its text", 0, "Permission denied", nil, 403, false},
		{"not found", 404, "no such thing", nil, 404, true},
		{"any other", 0, "No cluster leader", wireerr.ErrNoLeader, 500, true},
		{"too many", 503, "too many subscriptions on one feed", cache.ErrNoStream, 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
				one, two := a.open(web), a.open(web)
				defer one.s.Close()
				defer two.s.Close()
				f := a.feed()
				id := f.wants(ofWeb, "", noHave, 0)
				s := f.gives(one, id, 5, "a=1")
				two.shows("5: a=1")
				waited := make(chan error)
				go func() {
					_, err := one.next()
					waited <- err
				}()
				synctest.Wait()
				f.send(refused(id, tt.status, tt.text))
				for i, err := range []error{<-waited, two.fails()} {
					if err == nil || tt.is != nil && !errors.Is(err, tt.is) || tt.tells != 0 && (wireerr.Status(err) != tt.tells || !strings.Contains(err.Error(), tt.text)) {
						t.Errorf("stream %d tells %v", i, err)
					}
				}
				f.idle(time.Minute) // nobody reads
				if !a.streams.Covers(catalog.InstancesCall.Descriptor, &web) {
					t.Error("what one subscription is refused is no longer covered")
				}
				one.quiet(time.Second)
				have := noHave
				if tt.keeps {
					have = s.Version()
				}
				id = f.wants(ofWeb, "", have, 5)
				two.quiet(time.Second) // it is asked for already
				f.send(refused(id, tt.status, tt.text))
				two.fails()
				three := a.open(web) // asks at once
				defer three.s.Close()
				id = f.wants(ofWeb, "", have, 5)
				_, data := begin(t, 8, "a=2")
				f.send(event(id, data))
				for _, v := range []*reader{one, two, three} {
					v.shows("8: a=2")
				}
				f.idle(time.Second)
			})
		})
	}
}

// A feed that breaks is opened anew and goes on from the state there was, without its readers noticing.
func TestABrokenFeedGoesOn(t *testing.T) {
	for name, end := range map[string]func(f *server){
		"cut":       func(f *server) { f.fail(errCut) },
		"ended":     func(f *server) { f.fail(io.EOF) },
		"goodbye":   func(f *server) { f.send(feed.Frame{Kind: feed.Goodbye}); f.closed() },
		"malformed": func(f *server) { f.send(feed.Frame{Kind: 77}); f.closed() },
		"half a change": func(f *server) {
			_, data := begin(f.t, 6, "z=1")
			f.send(feed.Frame{Kind: feed.Event, ID: 1, Event: data})
			f.fail(errCut)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
				v := a.open(web)
				defer v.s.Close()
				f := a.feed()
				id := f.wants(ofWeb, "", noHave, 0)
				s := f.gives(v, id, 5, "a=1", "b=1")
				v.quiet(10 * time.Second)
				end(f)
				f = a.feed()
				id = f.wants(ofWeb, "", s.Version(), 5)
				f.send(current(id))
				v.quiet(10 * time.Second)
				s, data := follow(t, s, 6, "b=1")
				f.send(event(id, data))
				v.shows("6: b=1")
				end(f)
				f = a.feed()
				id = f.wants(ofWeb, "", s.Version(), 6)
				_, data = follow(t, s, 7, "b=1", "c=1")
				f.send(event(id, data))
				v.shows("7: b=1 c=1")
			})
		})
	}
}

// While no server gives a feed its readers are told of each attempt, once; Retry has servers asked sooner.
func TestServersThatCannotBeReached(t *testing.T) {
	bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
		v, late := a.open(web), a.open(web)
		defer v.s.Close()
		defer late.s.Close()
		f := a.feed()
		id := f.wants(ofWeb, "", noHave, 0)
		s := f.gives(v, id, 5, "a=1")
		late.shows("5: a=1")
		away := &rpcwire.DialError{Err: errors.New("nobody there")}
		before := a.answer(away)
		f.fail(errCut)
		told := 0
		for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); told++ {
			if err := v.fails(); !errors.Is(err, error(away)) {
				t.Fatalf("told %v", err)
			}
			if a.streams.Covers(catalog.InstancesCall.Descriptor, &web) {
				t.Fatal("it is covered")
			}
		}
		if dials := a.answer(away) - before; dials != told || dials < 25 || dials > 100 {
			t.Errorf("%d attempts in five minutes, %d were told", dials, told)
		}
		late.fails() // once for them all
		before = a.answer(away)
		for range 20 { // soon, however often
			a.streams.Retry()
			time.Sleep(100 * time.Millisecond)
		}
		if dials := a.answer(away) - before; dials < 7 || dials > 20 {
			t.Errorf("%d attempts for 20 wishes in two seconds", dials)
		}
		a.answer(nil)
		a.streams.Retry()
		f = a.feed()
		id = f.wants(ofWeb, "", s.Version(), 5)
		f.send(current(id))
		v.since = 0
		v.shows("5: a=1")
		if !a.streams.Covers(catalog.InstancesCall.Descriptor, &web) {
			t.Error("it is not covered")
		}

		a.mu.Lock()
		a.silent = true
		a.mu.Unlock()
		f.fail(errCut)
		began := time.Now()
		if _, err := v.next(); !errors.Is(err, context.DeadlineExceeded) { // that of the attempt
			t.Errorf("told %v", err)
		}
		if took := time.Since(began); took < 10*time.Second || took > 20*time.Second {
			t.Errorf("given up after %v", took)
		}
	})
}

// An agent whose servers could not be reached when it was first asked has streams once they are there, though nobody has
// waited for them.
func TestNobodyWaitedForTheServers(t *testing.T) {
	bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
		a.answer(&rpcwire.DialError{Err: errors.New("nobody there")})
		v := a.open(web)
		v.fails()
		v.s.Close()
		time.Sleep(time.Minute)
		dials := a.answer(nil)
		if !a.streams.Covers(catalog.InstancesCall.Descriptor, &web) {
			t.Error("it is never covered again")
		}
		time.Sleep(time.Minute)
		if more := a.answer(nil) - dials; more != 0 {
			t.Errorf("%d attempts that nobody waits for", more)
		}
		v = a.open(web)
		defer v.s.Close()
		f := a.feed()
		f.gives(v, f.wants(ofWeb, "", noHave, 0), 5, "a=1")
	})
}

// A reader that was shown something newer elsewhere has the server catch up with that first, and other readers of the
// subscription get what it then has.
func TestReadersDoNotGoBack(t *testing.T) {
	bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
		one := a.open(web)
		defer one.s.Close()
		f := a.feed()
		id := f.wants(ofWeb, "", noHave, 0)
		s := f.gives(one, id, 15, "a=1")

		two := a.open(web)
		defer two.s.Close()
		two.since = 20
		two.quiet(time.Second)
		f.ends(id)
		id = f.wants(ofWeb, "", s.Version(), 20)
		_, old := follow(t, s, 16, "z=1")
		f.send(event(id-1, old)) // of what has ended
		two.quiet(time.Second)
		one.quiet(time.Second)
		s, data := follow(t, s, 22, "a=2")
		f.send(event(id, data))
		one.shows("22: a=2")
		two.shows("22: a=2")

		// What was shown is the floor when the feed goes on elsewhere, though nobody has come back since.
		s, data = follow(t, s, 23, "a=3")
		f.send(event(id, data))
		two.shows("23: a=3")
		f.fail(errCut)
		f = a.feed()
		id = f.wants(ofWeb, "", s.Version(), 23)
		f.send(current(id))
		one.shows("23: a=3")

		// A server that still has less after it was asked again has had its index go back: so it is told.
		_, data = follow(t, s, 24, "z=1")
		half := event(id, data)
		half.Last = false
		f.send(half)
		three := a.open(web)
		defer three.s.Close()
		three.since = 50
		three.quiet(time.Second)
		f.ends(id)
		id = f.wants(ofWeb, "", s.Version(), 50)
		f.send(current(id))
		three.shows("23: a=3")
		s, data = follow(t, s, 24, "a=4")
		f.send(event(id, data))
		three.shows("24: a=4")
		one.shows("24: a=4")
		two.shows("24: a=4")
		f.idle(time.Second)

		// Who was told to ask elsewhere meanwhile, and was shown something newer still, has it asked for once more.
		four := a.open(web)
		defer four.s.Close()
		four.since = 60
		four.quiet(time.Second)
		f.ends(id)
		id = f.wants(ofWeb, "", s.Version(), 60)
		f.send(refused(id, 503, "too many"))
		four.fails()
		four.since = 70
		for _, v := range []*reader{one, two, three} {
			v.fails()
		}
		one.quiet(time.Second)
		id = f.wants(ofWeb, "", s.Version(), 60)
		s, data = follow(t, s, 61, "a=5")
		f.send(event(id, data))
		one.shows("61: a=5")
		four.quiet(time.Second)
		f.ends(id)
		id = f.wants(ofWeb, "", s.Version(), 70)
		_, data = follow(t, s, 71, "a=6")
		f.send(event(id, data))
		four.shows("71: a=6")
		one.shows("71: a=6")
	})
}

// Servers that know no feeds are left alone for a while; meanwhile there are no streams.
func TestServersThatKnowNoFeeds(t *testing.T) {
	bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
		a.answer(rpcwire.ErrUnknownMethod)
		v := a.open(web)
		defer v.s.Close()
		if err := v.fails(); !errors.Is(err, cache.ErrNoStream) {
			t.Fatalf("told %v", err)
		}
		a.answer(nil)
		began := time.Now()
		for range 290 {
			if err := v.fails(); !errors.Is(err, cache.ErrNoStream) || a.streams.Covers(catalog.InstancesCall.Descriptor, &web) {
				t.Fatalf("after %v: told %v", time.Since(began), err)
			}
			a.streams.Retry()
			time.Sleep(time.Second)
		}
		f := a.feed()
		if took := time.Since(began); took < 5*time.Minute || took > 376*time.Second {
			t.Errorf("asked again after %v", took)
		}
		if !a.streams.Covers(catalog.InstancesCall.Descriptor, &web) {
			t.Error("it is not covered again")
		}
		v.since = 9 // it was asked for meanwhile
		v.quiet(time.Second)
		s := f.gives(v, f.wants(ofWeb, "", noHave, 0), 9, "a=1")

		// They may be replaced by older ones.
		v.quiet(time.Minute)
		a.answer(rpcwire.ErrUnknownMethod)
		f.fail(errCut)
		if err := v.fails(); !errors.Is(err, cache.ErrNoStream) {
			t.Fatalf("told %v", err)
		}
		a.answer(nil)
		f = a.feed()
		v.since = 12
		v.quiet(time.Second)
		id := f.wants(ofWeb, "", s.Version(), 9)
		_, data := follow(t, s, 11, "z=1") // of a server that is behind what was asked for
		f.send(event(id, data))
		v.quiet(time.Second)
		f.ends(id)
		f.gives(v, f.ask().ID, 13, "a=2")
	})
}

// What comes wrong is asked for anew, whole; a feed of which too much comes wrong is given up for a while.
func TestWhatComesWrongIsAskedForAnew(t *testing.T) {
	cut := func(data []byte) []byte { return data[:len(data)-1] }
	for name, wrong := range map[string]func(id uint64, data, other []byte) []feed.Frame{
		"malformed":        func(id uint64, data, _ []byte) []feed.Frame { return []feed.Frame{event(id, cut(data))} },
		"empty":            func(id uint64, _, _ []byte) []feed.Frame { return []feed.Frame{event(id, nil)} },
		"of another state": func(id uint64, _, other []byte) []feed.Frame { return []feed.Frame{event(id, other)} },
		"other content": func(id uint64, data, _ []byte) []feed.Frame {
			data = slices.Clone(data)
			data[3]++ // of the digest
			return []feed.Frame{event(id, data)}
		},
		"half of it is said to be all": func(id uint64, data, _ []byte) []feed.Frame {
			half := event(id, data)
			half.Last = false
			return []feed.Frame{half, current(id)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
				v := a.open(web)
				defer v.s.Close()
				f := a.feed()
				id := f.wants(ofWeb, "", noHave, 0)
				s := f.gives(v, id, 10, "a=0")
				x, _ := begin(t, 10, "x=0")
				_, other := follow(t, x, 11, "x=1")
				for i := range 5 { // as often as a feed may
					_, data := follow(t, s, uint64(11+i), fmt.Sprintf("a=%d", 1+i))
					f.send(wrong(id, data, other)...)
					f.ends(id)
					id = f.wants(ofWeb, "", noHave, uint64(10+i))
					v.quiet(time.Second)
					s = f.gives(v, id, uint64(11+i), fmt.Sprintf("a=%d", 1+i))
				}
				_, data := follow(t, s, 16, "a=6")
				f.send(wrong(id, data, other)...)
				if err := v.fails(); !errors.Is(err, cache.ErrNoStream) || a.streams.Covers(catalog.InstancesCall.Descriptor, &web) {
					t.Fatalf("told %v", err)
				}
				f.closed()
				began := time.Now()
				f = a.feed()
				if took := time.Since(began); took < time.Minute || took > 90*time.Second {
					t.Errorf("another feed after %v", took)
				}
				id = f.wants(ofWeb, "", s.Version(), 15)
				s, data = follow(t, s, 16, "a=6")
				f.send(event(id, data))
				v.shows("16: a=6")
				_, data = follow(t, s, 17, "a=7")
				f.send(wrong(id, data, other)...) // this feed may again
				f.ends(id)
				f.wants(ofWeb, "", noHave, 16)
			})
		})
	}
}

// Of a state that the client has not, nothing can be current.
func TestNothingIsCurrentBeforeTheFirstState(t *testing.T) {
	bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
		v := a.open(web)
		defer v.s.Close()
		f := a.feed()
		id := f.wants(ofWeb, "", noHave, 0)
		f.send(current(id))
		f.ends(id)
		f.gives(v, f.wants(ofWeb, "", noHave, 0), 1)
	})
}

// Feeds that end as soon as they are there are given up for a while: sooner if it is no connection that breaks.
func TestFeedsThatDoNotLastAreGivenUp(t *testing.T) {
	for _, tt := range []struct {
		name  string
		end   func(*server)
		feeds int
	}{
		{"ended", func(f *server) { f.fail(io.EOF) }, 3},
		{"malformed", func(f *server) { f.send(feed.Frame{Kind: 77}) }, 3},
		{"an error", func(f *server) { f.fail(wireerr.Remote(500, "panic")) }, 3},
		{"cut", func(f *server) { f.fail(errCut) }, 12},
		{"goodbye", func(f *server) { f.send(feed.Frame{Kind: feed.Goodbye}) }, 12},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
				v := a.open(web)
				defer v.s.Close()
				f := a.feed()
				id := f.wants(ofWeb, "", noHave, 0)
				s := f.gives(v, id, 5, "a=1")
				v.quiet(6 * time.Second) // this one has lasted
				tt.end(f)
				for i := range tt.feeds {
					began := time.Now()
					f = a.feed()
					if took := time.Since(began); took > 6400*time.Millisecond {
						t.Fatalf("feed %d after %v", i, took)
					}
					f.wants(ofWeb, "", s.Version(), 5)
					time.Sleep(4 * time.Second)
					tt.end(f)
				}
				if err := v.fails(); !errors.Is(err, cache.ErrNoStream) {
					t.Fatalf("told %v", err)
				}
				began := time.Now()
				f = a.feed()
				if took := time.Since(began); took < time.Minute || took > 90*time.Second {
					t.Errorf("another feed after %v", took)
				}
				f.send(current(f.wants(ofWeb, "", s.Version(), 5)))
				v.shows("5: a=1") // another may have been asked for
			})
		})
	}
}

// A feed that owes an answer and says nothing is given up for a while, and so is one that takes nothing.
func TestSilentFeedsAreGivenUp(t *testing.T) {
	for name, open := range map[string]func(*agent) *server{"says nothing": (*agent).feed, "takes nothing": (*agent).unheard} {
		t.Run(name, func(t *testing.T) {
			bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
				v := a.open(web)
				defer v.s.Close()
				open(a)
				began := time.Now()
				if err := v.fails(); !errors.Is(err, cache.ErrNoStream) {
					t.Fatalf("told %v", err)
				}
				if took := time.Since(began); took < 30*time.Second || took > 45*time.Second {
					t.Errorf("given up after %v", took)
				}
				began = time.Now()
				f := a.feed()
				if took := time.Since(began); took < time.Minute || took > 90*time.Second {
					t.Errorf("another after %v", took)
				}
				f.gives(v, f.wants(ofWeb, "", noHave, 0), 5, "a=1")

				// One that owes nothing may be silent, and who was asked lately may take a while.
				v.quiet(5 * time.Minute)
				mine := web
				mine.Token = "mine"
				other := a.open(mine)
				defer other.s.Close()
				other.quiet(29 * time.Second)
				f.gives(other, f.wants(ofWeb, "mine", noHave, 0), 6, "b=1")
			})
		})
	}
}

// Run ends with its context though the server takes nothing and says nothing.
func TestRunEndsWhateverTheServerDoes(t *testing.T) {
	bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
		v := a.open(web)
		defer v.s.Close()
		a.unheard()
		v.quiet(time.Second)
		began := time.Now()
		a.stop()
		if took := time.Since(began); took != 0 {
			t.Errorf("Run ends after %v", took)
		}
		v.quiet(time.Second)
	})
}

// A feed stays open while somebody uses it, and for a while after that.
func TestAnUnusedFeedIsClosed(t *testing.T) {
	bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
		a.noFeed(time.Hour)
		for range 2 {
			v := a.open(web)
			f := a.feed()
			id := f.wants(ofWeb, "", noHave, 0)
			f.gives(v, id, 5, "a=1")
			v.quiet(5 * time.Minute)
			v.s.Close()
			f.ends(id)
			f.idle(45 * time.Second)
			v = a.open(web) // it is used again
			id = f.wants(ofWeb, "", noHave, 0)
			f.gives(v, id, 5, "a=1")
			v.s.Close()
			f.ends(id)
			if took := f.closed(); took < 50*time.Second || took > 70*time.Second {
				t.Errorf("closed after %v", took)
			}
			if synctest.Wait(); !a.streams.Covers(catalog.InstancesCall.Descriptor, &web) {
				t.Error("it is not covered")
			}
			a.noFeed(time.Hour)
		}
	})
}

// After a while a feed is opened anew, at the server that is then asked first.
func TestFeedsAreOpenedAnewNowAndThen(t *testing.T) {
	bubble(t, subscription.Config{Rebalance: 20 * time.Minute}, func(t *testing.T, a *agent) {
		v := a.open(web)
		defer v.s.Close()
		f := a.feed()
		id := f.wants(ofWeb, "", noHave, 0)
		s := f.gives(v, id, 5, "a=1")
		for range 5 {
			if took := f.closed(); took < 20*time.Minute || took > 30*time.Minute+10*time.Second {
				t.Errorf("closed after %v", took)
			}
			f = a.feed()
			id = f.wants(ofWeb, "", s.Version(), 5)
			f.send(current(id))
			v.quiet(time.Millisecond)
		}
	})
}

// Next ends with its context, at once, and what it would have returned is not lost.
func TestNextEndsWithItsContext(t *testing.T) {
	bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
		v, other := a.open(web), a.open(web)
		defer other.s.Close()
		f := a.feed()
		id := f.wants(ofWeb, "", noHave, 0)
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(7*time.Second, cancel)
		began := time.Now()
		if _, err := v.nextUntil(ctx); !errors.Is(err, context.Canceled) || time.Since(began) != 7*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if _, err := v.nextUntil(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("of one that has ended: %v", err)
		}
		s, data := begin(t, 5, "a=1")
		f.send(event(id, data))
		synctest.Wait()
		v.shows("5: a=1")

		// One stream is closed while another waits.
		got := make(chan string)
		other.shows("5: a=1")
		go func() {
			text, err := other.next()
			got <- fmt.Sprint(text, err)
		}()
		synctest.Wait()
		v.s.Close()
		_, data = follow(t, s, 6, "a=2")
		f.send(event(id, data))
		if text := <-got; text != "6: a=2<nil>" {
			t.Errorf("the other gives %s", text)
		}
	})
}

// Streams may be opened, read and closed by many at a time.
func TestManyStreamsAtATime(t *testing.T) {
	bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
		stay := a.open(web)
		defer stay.s.Close()
		f := a.feed()
		s, first := begin(t, 5, "a=1")
		go func() {
			for ask := range f.asks {
				if !ask.End {
					f.send(event(ask.ID, first))
				}
			}
		}()
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				req := web
				req.Token = fmt.Sprint(i % 3)
				for range 50 {
					v := a.open(req)
					if got, err := v.next(); err != nil || got != "5: a=1" {
						t.Errorf("stream %d gives %q, %v", i, got, err)
					}
					v.s.Close()
				}
			})
		}
		all.Wait()
		stay.shows("5: a=1")
		if got := show(stay.reply); got != "5: a=1" || s.Index != 5 {
			t.Errorf("%s", got)
		}
	})
}

// Agents tell how much they subscribe to, and whether they have a feed.
func TestMetrics(t *testing.T) {
	bubble(t, subscription.Config{}, func(t *testing.T, a *agent) {
		sink := metrics.NewInmemSink(24*time.Hour, 48*time.Hour)
		conf := metrics.DefaultConfig("")
		conf.EnableRuntimeMetrics, conf.EnableHostname = false, false
		measure.Report() // what others have counted
		if _, err := metrics.NewGlobal(conf, sink); err != nil {
			t.Fatal(err)
		}
		defer metrics.NewGlobal(conf, &metrics.BlackholeSink{})
		check := func(subscriptions, open float32) {
			t.Helper()
			time.Sleep(11 * time.Second)
			synctest.Wait()
			gauges := sink.Data()[0].Gauges
			if n, o := gauges["feed.client.subscriptions"].Value, gauges["feed.client.open"].Value; n != subscriptions || o != open {
				t.Errorf("%v subscriptions, %v feeds; want %v, %v", n, o, subscriptions, open)
			}
		}
		check(0, 0)
		other := web
		other.Token = "x"
		one, two, three := a.open(web), a.open(web), a.open(other)
		defer one.s.Close()
		defer two.s.Close()
		f := a.feed()
		check(2, 1)
		three.s.Close()
		check(1, 1)
		a.answer(errCut)
		f.fail(errCut)
		check(1, 0)
		a.answer(nil)
		a.feed()
		check(1, 1)
		measure.Report()
		if got := sink.Data()[0].Counters["feed.client.opened"]; got.AggregateSample == nil || got.Sum != 2 {
			t.Errorf("%v feeds were opened, want 2", got.AggregateSample)
		}
	})
}
