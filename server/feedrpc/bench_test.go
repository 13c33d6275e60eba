package feedrpc_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/feed"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
)

const (
	fanOutInstances   = 500
	fanOutSubscribers = 1000
)

// fill registers the instances of one service.
func (s *site) fill() {
	for i := range fanOutInstances {
		s.register(fmt.Sprintf("node-%04d", i), 80)
	}
}

// A counter counts what is sent to one subscriber.
type counter struct {
	messages, bytes *atomic.Int64
	got             chan<- struct{}
}

func (c *counter) Write(b []byte) (int, error) { return len(b), c.WriteParts(b) }

func (c *counter) WriteParts(all ...[]byte) error {
	for _, b := range all {
		c.bytes.Add(int64(len(b)))
	}
	c.messages.Add(1)
	c.got <- struct{}{}
	return nil
}

// subscribe has many feeds of one subscription each, or one feed with many, and returns how to end them.
func (s *site) subscribe(b *testing.B, feeds, each int, c *counter) (end func()) {
	_, streams := s.servers[0].Methods()
	var open rpcwire.StreamMethod
	for _, m := range streams {
		if m.Name == feed.OpenCall.Name {
			open = m
		}
	}
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	var ends []io.Closer
	for range feeds {
		in, w := io.Pipe()
		ends = append(ends, w)
		wg.Go(func() {
			err := open.Handle(ctx, rpcwire.Peer{}, func(any) error { return nil }, in, func(any) error { return nil }, c)
			if err != nil {
				b.Error(err)
			}
		})
		var asks bytes.Buffer
		for i := range each {
			subject := feed.Subject{Service: "web"}
			if i > 0 {
				subject.Service = fmt.Sprint("other-", i)
			}
			feed.WriteAsk(&asks, &feed.Ask{ID: uint64(i + 1), Subject: subject})
		}
		if _, err := w.Write(asks.Bytes()); err != nil {
			b.Fatal(err)
		}
	}
	return func() {
		for _, w := range ends {
			w.Close()
		}
		wg.Wait()
		cancel()
	}
}

// A change of one of 500 instances goes to 1,000 agents that subscribe to them.
func BenchmarkChangeTo1000Subscribers(b *testing.B) {
	s := newSite(b, 1, nil)
	s.fill()
	got := make(chan struct{}, 4*fanOutSubscribers)
	c := &counter{messages: new(atomic.Int64), bytes: new(atomic.Int64), got: got}
	end := s.subscribe(b, fanOutSubscribers, 1, c)
	defer end()
	await := func() {
		for range fanOutSubscribers {
			<-got
		}
	}
	await()
	c.bytes.Store(0)
	c.messages.Store(0)
	port := 0
	b.ReportAllocs()
	for b.Loop() {
		port++
		s.register("node-0250", port)
		await()
	}
	b.ReportMetric(float64(c.bytes.Load())/float64(b.N)/fanOutSubscribers, "B/subscriber")
}

// The same to 1,000 agents that wait in blocking queries, each of whose answers is encoded as for the network.
func BenchmarkChangeTo1000Queries(b *testing.B) {
	s := newSite(b, 1, nil)
	s.fill()
	ctx, cancel := context.WithCancel(b.Context())
	got := make(chan struct{}, fanOutSubscribers)
	var sent atomic.Int64
	var wg sync.WaitGroup
	for range fanOutSubscribers {
		wg.Go(func() {
			req := catalog.InstancesRequest{Options: read.Options{Mode: read.Stale}, Service: "web"}
			for {
				own := req
				reply, err := catalog.InstancesCall.Call(ctx, s.data.Caller(), &own)
				if err != nil {
					return
				}
				data, err := rpc.Marshal(reply)
				if err != nil {
					b.Error(err)
				}
				sent.Add(int64(len(data)))
				req.MinIndex = reply.Index
				got <- struct{}{}
			}
		})
	}
	await := func() {
		for range fanOutSubscribers {
			<-got
		}
	}
	await()
	sent.Store(0)
	port := 0
	b.ReportAllocs()
	for b.Loop() {
		port++
		for s.data.Caller().Blocked() < fanOutSubscribers {
			runtime.Gosched()
		}
		s.register("node-0250", port)
		await()
	}
	b.ReportMetric(float64(sent.Load())/float64(b.N)/fanOutSubscribers, "B/subscriber")
	cancel()
	wg.Wait()
}

// What a subscription takes that waits: of 100 agents with ten each.
func BenchmarkMemoryOfASubscription(b *testing.B) {
	s := newSite(b, 1, nil)
	s.fill()
	for b.Loop() {
		const feeds, each = 100, 10
		got := make(chan struct{}, feeds*each)
		c := &counter{messages: new(atomic.Int64), bytes: new(atomic.Int64), got: got}
		memory := func() uint64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc + m.StackInuse
		}
		warm := s.subscribe(b, 1, each, c) // the topics stay
		for s.stats().Subscriptions < each || c.bytes.Load() == 0 {
			runtime.Gosched()
		}
		before, goroutines := memory(), runtime.NumGoroutine()
		end := s.subscribe(b, feeds, each, c)
		for s.stats().Subscriptions < (feeds+1)*each {
			runtime.Gosched()
		}
		for range feeds {
			<-got
		}
		after := memory()
		b.ReportMetric(float64(after-before)/feeds/each, "B/subscription")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/feeds, "goroutines/agent")
		end()
		warm()
	}
}
