package subscription_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/feed"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/client/subscription"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// A scope is what a subscription is of.
type scope struct {
	service, token string
}

var scopes = []scope{{"web", ""}, {"web", "half"}, {"db", ""}}

// A world is what servers have: every state there was of each scope, and the event that led to it. Who has the token
// "half" sees every other node.
type world struct {
	t *testing.T

	mu      sync.Mutex
	r       *rand.Rand
	index   uint64
	nodes   map[string][]*catalog.Instance // by service
	states  map[scope][]*feed.State
	events  map[scope][][]byte
	feeds   map[*worldFeed]bool
	lag     int  // how many states behind is the server that is asked next
	trouble bool // refuses and sends what is wrong
}

func newWorld(t *testing.T, r *rand.Rand) *world {
	w := &world{
		t: t, r: r, nodes: map[string][]*catalog.Instance{}, states: map[scope][]*feed.State{}, events: map[scope][][]byte{}, feeds: map[*worldFeed]bool{},
	}
	for _, k := range scopes {
		s, data := begin(t, 1)
		w.states[k], w.events[k] = []*feed.State{s}, [][]byte{data}
	}
	w.index = 1
	return w
}

// change changes the instances of a service and tells all who subscribe. The world is locked.
func (w *world) change() {
	service := []string{"web", "web", "db"}[w.r.IntN(3)]
	node := fmt.Sprintf("n%d", w.r.IntN(6))
	list := slices.DeleteFunc(slices.Clone(w.nodes[service]), func(i *catalog.Instance) bool { return i.Node.Node == node })
	if w.r.IntN(4) > 0 {
		text := fmt.Sprintf("%s=%d rack:%d", node, 1+w.r.IntN(3), w.r.IntN(2))
		for _, word := range []string{"#a", "#B", "critical"} {
			if w.r.IntN(2) == 0 {
				text += " " + word
			}
		}
		list = append(list, instances(text)...)
		slices.SortFunc(list, func(a, b *catalog.Instance) int { return strings.Compare(a.Node.Node, b.Node.Node) })
	}
	w.nodes[service] = list
	w.index += 1 + uint64(w.r.IntN(3))
	for _, k := range scopes {
		if k.service != service {
			continue
		}
		seen := list
		if k.token == "half" {
			seen = slices.DeleteFunc(slices.Clone(list), func(i *catalog.Instance) bool { return i.Node.Node[1]%2 == 0 })
		}
		last := w.states[k][len(w.states[k])-1]
		if slices.Equal(seen, last.Instances) {
			continue
		}
		next, data, err := last.Next(w.index, k.token == "half", seen)
		if err != nil {
			w.t.Fatal(err)
		}
		w.states[k], w.events[k] = append(w.states[k], next), append(w.events[k], data)
	}
	for f := range w.feeds {
		if w.r.IntN(3) > 0 { // else several go together
			f.tell()
		}
	}
}

// A worldFeed is a feed of one of the servers.
type worldFeed struct {
	*server
	w   *world
	lag int
	all map[uint64]*worldSubscription
}

type worldSubscription struct {
	scope
	at int // of the states, the one that was sent last; -1 for none
}

// serve answers what the client asks until it closes the feed.
func (f *worldFeed) serve() {
	r := bufio.NewReader(f.in)
	for {
		a, err := feed.ReadAsk(r)
		f.w.mu.Lock()
		if err != nil {
			delete(f.w.feeds, f)
			f.w.mu.Unlock()
			return
		}
		f.ask(a)
		f.w.mu.Unlock()
	}
}

// ask begins or ends a subscription. The world is locked.
func (f *worldFeed) ask(a *feed.Ask) {
	w := f.w
	if a.End {
		delete(f.all, a.ID)
		return
	}
	if f.all[a.ID] != nil {
		w.t.Errorf("the number %d is in use", a.ID)
	}
	k := scope{a.Subject.Service, a.Token}
	states := w.states[k]
	if states == nil || a.Subject != (feed.Subject{Service: k.service}) {
		w.t.Errorf("the client asks %+v", a)
		return
	}
	if w.trouble && w.r.IntN(8) == 0 {
		x := []struct {
			status int
			text   string
		}{{403, "ACL not found"}, {503, "too many"}, {404, "nothing"}, {0, "No cluster leader"}}[w.r.IntN(4)]
		f.send(refused(a.ID, x.status, x.text))
		return
	}
	s := &worldSubscription{scope: k, at: -1}
	f.all[a.ID] = s
	for i, x := range states {
		if x.Version() == a.Have {
			s.at = i
		}
	}
	at := max(0, len(states)-1-f.lag)
	for at < len(states)-1 && states[at].Index < a.Floor { // it waits until it has that
		at++
	}
	if states[at].Index < a.Floor && w.index < a.Floor {
		w.t.Errorf("the client has been shown %d, and there is %d", a.Floor, w.index)
	}
	if s.at == at {
		f.send(current(a.ID))
		return
	}
	f.advance(a.ID, s, at)
}

// tell tells all that is new. The world is locked.
func (f *worldFeed) tell() {
	for id, s := range f.all {
		if at := len(f.w.states[s.scope]) - 1; at != s.at {
			f.advance(id, s, at)
		}
	}
}

// advance sends what leads to a state.
func (f *worldFeed) advance(id uint64, s *worldSubscription, to int) {
	w := f.w
	var all [][]byte
	if s.at >= 0 && s.at < to && w.r.IntN(4) > 0 {
		all = w.events[s.scope][s.at+1 : to+1]
	} else {
		whole, err := w.states[s.scope][to].Snapshot()
		if err != nil {
			w.t.Error(err)
		}
		all = [][]byte{whole}
	}
	s.at = to
	for i, data := range all {
		x := event(id, data)
		x.Last = i == len(all)-1
		if w.trouble && w.r.IntN(30) == 0 {
			x.Event = slices.Clone(data)
			x.Event[w.r.IntN(len(data))] ^= 1 << w.r.IntN(8)
		}
		f.send(x)
	}
}

// open opens a feed.
func (w *world) open() (io.ReadWriteCloser, error) {
	in, out := io.Pipe()
	r, frames := io.Pipe()
	w.mu.Lock()
	f := &worldFeed{server: &server{t: w.t, in: in, out: frames}, w: w, lag: w.lag, all: map[uint64]*worldSubscription{}}
	w.feeds[f] = true
	w.mu.Unlock()
	go f.serve()
	return &connection{r, out}, nil
}

// A pick is what a reader selects, in the client's words and in the test's own.
type pick struct {
	scope
	tag, rack string
	passing   bool
	notPort   int
}

func (p pick) request() catalog.InstancesRequest {
	r := catalog.InstancesRequest{Service: p.service, PassingOnly: p.passing}
	r.Token = p.token
	if p.tag != "" {
		r.Tags = []string{p.tag}
	}
	if p.rack != "" {
		r.NodeMeta = map[string]string{"rack": p.rack}
	}
	if p.notPort != 0 {
		r.Filter = fmt.Sprintf("Service.Port != %d", p.notPort)
	}
	return r
}

// of is what a reader is to show of a state.
func (p pick) of(s *feed.State) string {
	text := fmt.Sprintf("%d:", s.Index)
	for _, i := range s.Instances {
		tags := strings.ToLower(strings.Join(i.Service.Tags, " "))
		if p.tag != "" && !strings.Contains(tags, strings.ToLower(p.tag)) || p.rack != "" && i.Node.Meta["rack"] != p.rack ||
			p.passing && i.Checks[0].Status != catalog.Passing || p.notPort == i.Service.Port {
			continue
		}
		text += fmt.Sprintf(" %s=%d", i.Node.Node, i.Service.Port)
	}
	return text
}

// A follower reads a stream as a view of the cache does, and holds what it is given against what there was.
type follower struct {
	pick
	stop func()

	mu       sync.Mutex // guards the rest
	index    uint64     // shown last
	text     string
	streamed int // answers of the stream
}

// follow reads until ctx ends.
func (v *follower) follow(ctx context.Context, w *world, s cache.Stream, r *rand.Rand) {
	defer s.Close()
	var last, since uint64
	nap := func() {
		select {
		case <-time.After(time.Duration(r.IntN(int(time.Second)))):
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		resp, index, err := s.Next(ctx, since)
		text, streamed := "", 1
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, cache.ErrNoStream): // it is asked for
			w.mu.Lock()
			states := w.states[v.scope]
			at := len(states) - 1
			for range r.IntN(3) {
				if at > 0 && states[at-1].Index >= last {
					at--
				}
			}
			w.mu.Unlock()
			index, text, streamed = states[at].Index, v.of(states[at]), 0
			nap()
		case err != nil:
			since = 0
			nap()
			continue
		default:
			got := resp.(*catalog.InstancesReply)
			text = show(got)
			w.mu.Lock()
			states := w.states[v.scope]
			at := slices.IndexFunc(states, func(s *feed.State) bool { return s.Index == index })
			w.mu.Unlock()
			switch {
			case at < 0 || got.Index != index:
				w.t.Errorf("%+v shows %s, of an index at which there was nothing", v.pick, text)
			case text != v.of(states[at]) || got.Filtered != states[at].Filtered:
				w.t.Errorf("%+v shows %s, filtered %v; want %s", v.pick, text, got.Filtered, v.of(states[at]))
			case index < last:
				w.t.Errorf("%+v shows %d after %d", v.pick, index, last)
			}
		}
		last, since = index, index
		v.mu.Lock()
		v.index, v.text = index, text
		v.streamed += streamed
		v.mu.Unlock()
	}
}

// Whatever becomes of feeds, servers and subscriptions, streams give nothing but what there was, select from it what they
// are to, never go back, and give the latest once it is quiet.
func TestStreamsGiveWhatThereIs(t *testing.T) {
	seed := testkit.Seed(t)
	rounds := uint64(20)
	if testing.Short() {
		rounds = 4
	}
	for round := range rounds {
		bubble(t, subscription.Config{Rebalance: 2 * time.Minute}, func(t *testing.T, a *agent) {
			r := rand.New(rand.NewPCG(seed, round))
			w := newWorld(t, r)
			naps := rand.New(rand.NewPCG(seed, round+1000))
			a.dial = w.open
			ctx, cancel := context.WithCancel(context.Background())
			var running sync.WaitGroup
			var all []*follower
			begin := func() {
				p := pick{scope: scopes[r.IntN(len(scopes))], tag: []string{"", "", "A", "b"}[r.IntN(4)], rack: []string{"", "", "1"}[r.IntN(3)]}
				p.passing, p.notPort = r.IntN(3) == 0, max(0, r.IntN(6)-3)
				v := &follower{pick: p}
				req := p.request()
				s := a.streams.Open(catalog.InstancesCall.Descriptor, &req)
				if s == nil {
					t.Fatalf("no stream of %+v", p)
				}
				own, stop := context.WithCancel(ctx)
				v.stop = stop
				luck := rand.New(rand.NewPCG(r.Uint64(), 0))
				running.Go(func() { v.follow(own, w, s, luck) })
				all = append(all, v)
			}
			locked := func(f func()) {
				w.mu.Lock()
				defer w.mu.Unlock()
				f()
			}
			for range 10 {
				locked(begin)
			}
			for range 300 {
				locked(func() {
					switch r.IntN(20) {
					default:
						w.change()
					case 10:
						for f := range w.feeds {
							switch r.IntN(4) {
							case 0:
								f.fail(errCut)
							case 1:
								f.fail(io.EOF)
							case 2:
								f.send(feed.Frame{Kind: feed.Goodbye})
							case 3:
								f.send(feed.Frame{Kind: 77})
							}
						}
						w.lag = r.IntN(5)
					case 11:
						a.answer([]error{nil, nil, &rpcwire.DialError{Err: errors.New("nobody there")}, rpcwire.ErrUnknownMethod}[r.IntN(4)])
					case 12, 13:
						w.trouble = r.IntN(2) == 0
					case 14, 15:
						begin()
					case 16, 17:
						if i := r.IntN(len(all)); len(all) > 4 {
							all[i].stop()
							all = slices.Delete(all, i, i+1)
						}
					case 18:
						for f := range w.feeds {
							f.tell()
						}
					}
				})
				switch n := naps.IntN(40); {
				case n == 0:
					time.Sleep(time.Duration(naps.IntN(int(3 * time.Minute))))
				case n < 5:
					time.Sleep(time.Duration(naps.IntN(int(10 * time.Second))))
				case n < 30:
					time.Sleep(time.Duration(naps.IntN(int(50 * time.Millisecond))))
				}
			}
			locked(func() { w.trouble, w.lag = false, 0 })
			a.answer(nil)
			time.Sleep(10 * time.Minute) // longer than feeds are given up for
			locked(w.change)
			time.Sleep(3 * time.Minute)
			locked(func() {
				for f := range w.feeds {
					f.tell()
				}
			})
			time.Sleep(3 * time.Second)
			locked(func() {
				if len(w.feeds) != 1 {
					t.Errorf("round %d: %d feeds are open", round, len(w.feeds))
				}
				for _, v := range all {
					last := w.states[v.scope][len(w.states[v.scope])-1]
					v.mu.Lock()
					if v.text != v.of(last) || v.streamed == 0 {
						t.Errorf("round %d: %+v shows %s after %d answers; want %s", round, v.pick, v.text, v.streamed, v.of(last))
					}
					v.mu.Unlock()
				}
			})
			cancel()
			running.Wait()
			time.Sleep(2 * time.Minute)
			locked(func() {
				if len(w.feeds) != 0 {
					t.Errorf("round %d: a feed is open that nobody uses", round)
				}
			})
		})
	}
}
