package check_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/client/check"
)

// BenchmarkRun runs one of 10,000 checks, due in turn, and waits for the result: what the scheduler takes, and what each
// kind of check does beside.
func BenchmarkRun(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	defer server.Close()
	address := server.Listener.Addr().String()
	for _, bb := range []struct {
		name string
		def  definition.Check
		dial func(ctx context.Context, network, address string) (net.Conn, error)
	}{
		{"scheduler", definition.Check{TCP: "x:1"}, refuse},
		{"tcp", definition.Check{TCP: address}, (&net.Dialer{}).DialContext},
		{"http", definition.Check{HTTP: "http://" + address}, (&net.Dialer{}).DialContext},
	} {
		b.Run(bb.name, func(b *testing.B) {
			ran := make(chan string, 1)
			s := running(b, check.Config{Dial: bb.dial, Sink: sinkFunc(func(id, status, _ string) { ran <- status }),
				Jitter: func(max time.Duration) time.Duration { return max }})
			ids := make([]string, 10_000)
			for i := range ids {
				ids[i] = fmt.Sprint(i)
				def := bb.def
				def.Interval = time.Hour
				if err := s.Add(ids[i], &def, ""); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				s.RunNow(ids[i%len(ids)])
				<-ran
			}
		})
	}
}

// BenchmarkTTL has a program report about one of 10,000 TTL checks.
func BenchmarkTTL(b *testing.B) {
	s := running(b, check.Config{Sink: &log{}})
	for i := range 10_000 {
		if err := s.Add(fmt.Sprint(i), &definition.Check{TTL: time.Hour}, ""); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := s.SetTTL("5000", "fine"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAdd reports what each of 10,000 checks that wait for their turn takes: memory, and goroutines.
func BenchmarkAdd(b *testing.B) {
	for b.Loop() {
		s := running(b, check.Config{Dial: refuse, Sink: &log{}, Jitter: func(max time.Duration) time.Duration { return max }})
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		goroutines := runtime.NumGoroutine()
		for i := range 10_000 {
			def := definition.Check{Interval: time.Hour}
			switch i % 3 {
			case 0:
				def.HTTP = "http://127.0.0.1/health"
			case 1:
				def.TCP = "127.0.0.1:80"
			default:
				def.Interval, def.TTL = 0, time.Hour
			}
			if err := s.Add(fmt.Sprint(i), &def, ""); err != nil {
				b.Fatal(err)
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/10_000, "B/check")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines), "goroutines")
		runtime.KeepAlive(s)
	}
}

// running returns a scheduler that runs until the benchmark ends.
func running(b *testing.B, cfg check.Config) *check.Scheduler {
	b.Helper()
	s, err := check.New(cfg)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		<-done
	})
	return s
}
