package state_test

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"testing"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/state"
)

// registration returns the request that puts instance i of a service with one check on a node of its own.
func registration(service string, i int) *catalog.RegisterRequest {
	node := fmt.Sprintf("node-%05d", i)
	id := fmt.Sprintf("%s-%05d", service, i)
	return &catalog.RegisterRequest{
		ID: fmt.Sprintf("00000000-0000-0000-0000-%012d", i), Node: node, Address: fmt.Sprintf("10.0.%d.%d", i/250, i%250),
		Service: &catalog.Service{
			ID: id, Service: service, Port: 8080, Tags: []string{"v1", "primary"}, Meta: map[string]string{"version": "1"},
			Weights: &catalog.Weights{Passing: 1, Warning: 1},
		},
		Checks: []*catalog.Check{
			{Node: node, CheckID: catalog.SerfCheckID, Name: catalog.SerfCheckName, Status: catalog.Passing},
			{Node: node, CheckID: "service:" + id, Name: "alive", Status: catalog.Passing, ServiceID: id, Type: "ttl"},
		},
	}
}

func filled(tb testing.TB, service string, n int) *state.Store {
	tb.Helper()
	s := state.New()
	for i := range n {
		tx := s.Write(uint64(10 + i))
		if err := tx.Register(registration(service, i)); err != nil {
			tb.Fatal(err)
		}
		tx.Commit()
	}
	return s
}

func BenchmarkKeyPut(b *testing.B) {
	for _, batch := range []int{1, 64} {
		b.Run(fmt.Sprint("batch=", batch), func(b *testing.B) {
			s := state.New()
			index := uint64(10)
			keys := make([]string, 10000)
			for i := range keys {
				keys[i] = fmt.Sprintf("bench/key/%05d", i)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); {
				tx := s.Write(index)
				for range batch {
					tx.SetKey(kv.Entry{Key: keys[i%len(keys)], Value: []byte{byte(i), byte(i >> 8), byte(i >> 16), byte(i >> 24)}})
					i++
				}
				tx.Commit()
				index++
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/put")
		})
	}
}

func BenchmarkRegisterNew(b *testing.B) {
	s := state.New()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		tx := s.Write(uint64(10 + i))
		if err := tx.Register(registration("web", i)); err != nil {
			b.Fatal(err)
		}
		tx.Commit()
	}
}

func BenchmarkCheckUpdate(b *testing.B) {
	s := filled(b, "web", 1000)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		r := registration("web", i%1000)
		r.Checks[1].Output = fmt.Sprint(i)
		tx := s.Write(uint64(100000 + i))
		if err := tx.Register(r); err != nil {
			b.Fatal(err)
		}
		tx.Commit()
	}
}

func BenchmarkHealthView(b *testing.B) {
	s := filled(b, "web", 100)
	b.ReportAllocs()
	for b.Loop() {
		_, all := s.View().Instances("web", false)
		if len(all) != 100 {
			b.Fatal(len(all))
		}
	}
}

func BenchmarkKeyGet(b *testing.B) {
	s := state.New()
	tx := s.Write(10)
	for i := range 10000 {
		tx.SetKey(kv.Entry{Key: fmt.Sprintf("bench/key/%05d", i), Value: []byte("v")})
	}
	tx.Commit()
	b.ReportAllocs()
	for b.Loop() {
		if _, e := s.View().Key("bench/key/00777"); e == nil {
			b.Fatal("missing")
		}
	}
}

// BenchmarkWake measures a change of one instance until the last of 2,000 waiters on its service of 100 has read again.
func BenchmarkWake(b *testing.B) {
	const waiters = 2000
	s := filled(b, "web", 100)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	ready, woken := make(chan struct{}, waiters), make(chan struct{}, waiters)
	for range waiters {
		go func() {
			for ctx.Err() == nil {
				v := s.WatchView()
				v.Instances("web", false)
				ready <- struct{}{}
				if v.Wait(ctx) != nil {
					return
				}
				s.View().Instances("web", false)
				woken <- struct{}{}
			}
		}()
	}
	index := uint64(1000)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		for range waiters {
			<-ready
		}
		b.StartTimer()
		r := registration("web", int(index)%100)
		r.Checks[1].Output = fmt.Sprint(index)
		tx := s.Write(index)
		if err := tx.Register(r); err != nil {
			b.Fatal(err)
		}
		tx.Commit()
		index++
		for range waiters {
			<-woken
		}
	}
}

func BenchmarkDump(b *testing.B) {
	s := filled(b, "web", 10000)
	for b.Loop() {
		if err := s.View().Dump(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkMemory tells the memory that 10,000 instances with two checks each take.
func BenchmarkMemory(b *testing.B) {
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		s := filled(b, "web", 10000)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
		runtime.KeepAlive(s)
	}
}
