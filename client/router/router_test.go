package router_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/client/router"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

func member(name, dc, role string) gossip.Member {
	tags := gossip.Server{ID: "id-" + name, Datacenter: dc, Addr: netip.MustParseAddrPort("10.0.0.1:8300")}.Tags()
	tags["role"] = role
	return gossip.Member{Name: name, Addr: netip.MustParseAddr("10.0.0.1"), Tags: tags, Status: gossip.Alive}
}

var call = rpc.Local[struct{}, struct{}]("Some.Call")

func TestServersComeAndGo(t *testing.T) {
	r := router.New(router.Config{Datacenter: "dc1"})
	names := func() map[string]bool {
		m := map[string]bool{}
		for _, s := range r.Servers() {
			m[s.Name] = true
		}
		return m
	}
	r.Observe(gossip.Event{Kind: gossip.Joined, Members: []gossip.Member{
		member("a", "dc1", gossip.RoleServer), member("b", "dc1", gossip.RoleServer), member("c", "dc2", gossip.RoleServer), member("d", "dc1", gossip.RoleClient),
	}})
	if got := names(); len(got) != 2 || !got["a"] || !got["b"] {
		t.Errorf("servers %v, want a and b: those of this datacenter", got)
	}
	r.Observe(gossip.Event{Kind: gossip.Updated, Members: []gossip.Member{member("a", "dc1", gossip.RoleServer)}})
	r.Observe(gossip.Event{Kind: gossip.Lost, Members: []gossip.Member{member("b", "dc1", gossip.RoleServer)}})
	if got := names(); len(got) != 1 || !got["a"] {
		t.Errorf("servers %v, want a", got)
	}
}

func TestEveryServerIsTriedAtOnceThenWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials atomic.Int32
		r := router.New(router.Config{Datacenter: "dc1", Dial: func(context.Context, string) (net.Conn, error) {
			dials.Add(1)
			return nil, errors.New("refused")
		}})
		if _, err := call.Call(t.Context(), r, &struct{}{}); !errors.Is(err, wireerr.ErrNoServers) {
			t.Errorf("without servers: %v", err)
		}
		r.Observe(gossip.Event{Kind: gossip.Joined, Members: []gossip.Member{
			member("a", "dc1", gossip.RoleServer), member("b", "dc1", gossip.RoleServer), member("c", "dc1", gossip.RoleServer),
		}})
		start := time.Now()
		time.AfterFunc(time.Nanosecond, func() {
			if n := dials.Load(); n < 3 {
				t.Errorf("%d servers tried at once, want 3", n)
			}
		})
		_, err := call.Call(t.Context(), r, &struct{}{})
		if err == nil || err.Error() != "rpc error getting client: failed to get conn: refused" {
			t.Errorf("unreachable servers: %v", err)
		}
		if took := time.Since(start); took < 6*time.Second || took > 7*time.Second {
			t.Errorf("gave up after %v, want the hold time of 7s", took)
		}
		start = time.Now()
		if _, err := call.Call(rpc.Impatient(t.Context()), r, &struct{}{}); err == nil || time.Since(start) != 0 {
			t.Errorf("a caller who asks again by itself learned after %v: %v", time.Since(start), err)
		}
	})
}

func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := router.New(router.Config{Datacenter: "dc1", Rate: 10, Burst: 3})
		refused := func(n int) (refused int) {
			for range n {
				if _, err := call.Call(t.Context(), r, &struct{}{}); errors.Is(err, wireerr.ErrClientRateLimit) {
					refused++
				}
			}
			return refused
		}
		if got := refused(5); got != 2 {
			t.Errorf("%d of 5 refused, want 2: a burst of 3", got)
		}
		time.Sleep(200 * time.Millisecond)
		if got := refused(5); got != 3 {
			t.Errorf("%d of 5 refused after 200ms at 10/s, want 3", got)
		}
		r.SetRate(0, 0)
		if got := refused(100); got != 0 {
			t.Errorf("%d refused without a limit", got)
		}
	})
}

// counted answers every call.
type counted struct{ calls, streams int }

func (c *counted) Call(context.Context, rpc.Descriptor, any, any) error {
	c.calls++
	return nil
}

func (c *counted) Stream(context.Context, rpc.Descriptor, any, io.Reader, any) (io.ReadCloser, error) {
	c.streams++
	return io.NopCloser(strings.NewReader("")), nil
}

func TestCallsOfAServersAPIAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rate router.Rate
		server := &counted{}
		c := router.Limited(server, &rate)
		ask := func(n int) (refused int) {
			for i := range n {
				var err error
				if i%2 == 0 {
					_, err = call.Call(t.Context(), c, &struct{}{})
				} else {
					_, err = c.Stream(t.Context(), call.Descriptor, &struct{}{}, nil, &struct{}{})
				}
				if errors.Is(err, wireerr.ErrClientRateLimit) {
					refused++
				} else if err != nil {
					t.Fatal(err)
				}
			}
			return refused
		}
		if got := ask(50); got != 0 || server.calls != 25 || server.streams != 25 {
			t.Errorf("%d refused without a limit, %+v", got, server)
		}
		rate.Set(10, 4)
		if got := ask(10); got != 6 {
			t.Errorf("%d of 10 refused, want 6: a burst of 4", got)
		}
		time.Sleep(time.Second)
		if got := ask(10); got != 6 {
			t.Errorf("%d of 10 refused after a second, want 6", got)
		}
	})
}

// busyServer serves calls at an address; it refuses them with err, unless that is nil.
func busyServer(t *testing.T, n *testkit.Network, address string, err error) (member gossip.Member, asked *atomic.Int32) {
	asked = new(atomic.Int32)
	l, lerr := n.Host(address).Listen(8300)
	if lerr != nil {
		t.Fatal(lerr)
	}
	port := rpcwire.NewPort(rpcwire.PortConfig{Listener: l})
	srv := rpcwire.NewServer([]rpcwire.Method{{Name: call.Name, Handle: func(context.Context, rpcwire.Peer, func(any) error) (any, error) {
		asked.Add(1)
		return &struct{}{}, err
	}}}, nil, 0)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- port.Run(ctx) }()
	go func() { done <- srv.Serve(port.Listener(rpcwire.ProtoRPC)) }()
	t.Cleanup(func() {
		cancel()
		srv.Stop()
		<-done
		<-done
	})
	tags := gossip.Server{ID: "id-" + address, Datacenter: "dc1", Addr: netip.MustParseAddrPort(address + ":8300")}.Tags()
	return gossip.Member{Name: address, Addr: netip.MustParseAddr(address), Tags: tags, Status: gossip.Alive}, asked
}

func TestBusyServersAreLeftForOthers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		second error // what the other server says; the first has too much to do
		want   error
	}{
		{"another answers", nil, nil},
		{"the leader alone can do it", wireerr.ErrRateLimitedWrite, wireerr.ErrRateLimitedWrite},
	} {
		t.Run(tt.name, func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				n := testkit.NewNetwork(1)
				busy, asked := busyServer(t, n, "10.0.0.1", wireerr.ErrRateLimited)
				other, _ := busyServer(t, n, "10.0.0.2", tt.second)
				r := router.New(router.Config{Datacenter: "dc1", Dial: n.Host("10.0.0.3").Dial})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- r.Run(ctx) }()
				defer func() { cancel(); <-done }()
				r.Observe(gossip.Event{Kind: gossip.Joined, Members: []gossip.Member{busy, other}})
				for range 20 { // whichever is asked first
					if _, err := call.Call(t.Context(), r, &struct{}{}); !errors.Is(err, tt.want) {
						t.Fatalf("got %v, want %v", err, tt.want)
					}
				}
				if asked.Load() > 1 {
					t.Errorf("the busy server was asked %d times", asked.Load())
				}
			})
		})
	}
}
