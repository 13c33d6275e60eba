package stats

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// datagrams is a server that keeps what it gets.
type datagrams struct {
	mu  sync.Mutex
	got []string
}

func (d *datagrams) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.got = append(d.got, string(b))
	return len(b), nil
}

// take returns what came since it was last called.
func (d *datagrams) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	got := d.got
	d.got = nil
	return got
}

func (d *datagrams) Close() error { return nil }

func TestStatsDReportsWhatIsNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStore(nil)
		s := Struct[clusterStats](st.Scope(Text("cluster"), Label("envoy_cluster_name", "d:b")))
		var server datagrams
		var down atomic.Bool
		d := NewStatsD(st, func(context.Context) (io.WriteCloser, error) {
			if down.Load() {
				return nil, errors.New("down")
			}
			return &server, nil
		}, StatsDConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- d.Run(ctx) }()
		check := func(want ...string) {
			t.Helper()
			synctest.Wait()
			if got := server.take(); !slices.Equal(got, want) {
				t.Errorf("reported %q, want %q", got, want)
			}
		}
		s.Total.Add(3)
		s.Active.Set(-1)
		for range 4 {
			s.Length.Record(7 * time.Microsecond)
		}
		time.Sleep(5 * time.Second)
		check("envoy.cluster.d_b.upstream_cx_active:-1|g", "envoy.cluster.d_b.upstream_cx_length_ms:0.007|ms|@0.25", "envoy.cluster.d_b.upstream_cx_total:3|c")
		s.Total.Inc()
		time.Sleep(5 * time.Second)
		check("envoy.cluster.d_b.upstream_cx_active:-1|g", "envoy.cluster.d_b.upstream_cx_total:1|c")
		down.Store(true)
		s.Total.Inc()
		time.Sleep(5 * time.Second)
		check()
		down.Store(false)
		st.Reset()
		s.Total.Add(2)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		check("envoy.cluster.d_b.upstream_cx_active:-1|g", "envoy.cluster.d_b.upstream_cx_total:2|c")
	})
}

func TestDogStatsDHasTagsAndFullDatagrams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := NewStore(nil)
		for _, name := range []string{"a", "b", "c"} {
			st.Scope(Text("cluster"), Label("envoy_cluster_name", name)).Counter("x").Inc()
		}
		var server datagrams
		d := NewStatsD(st, func(context.Context) (io.WriteCloser, error) { return &server, nil }, StatsDConfig{Prefix: "p", Tags: true, MaxDatagram: 90, Interval: time.Second})
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		if err := d.Run(ctx); err != nil {
			t.Fatal(err)
		}
		want := []string{"p.cluster.x:1|c|#envoy_cluster_name:a\np.cluster.x:1|c|#envoy_cluster_name:b", "p.cluster.x:1|c|#envoy_cluster_name:c"}
		got := server.take()
		if !slices.Equal(got, want) {
			t.Errorf("datagrams %q, want %q", got, want)
		}
		for _, g := range got {
			if len(g) > 90 || strings.HasSuffix(g, "\n") {
				t.Errorf("datagram %q", g)
			}
		}
	})
}
