package telemetry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	metricsv1 "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/proto"

	"github.com/sarnmesh/sarn/internal/measure"
)

var op = []metrics.Label{{Name: "op", Value: "set"}}

// fill measures a few things.
func fill(s *Store) {
	s.SetGauge([]string{"consul", "host1", "server", "isLeader"}, 1)
	s.IncrCounterWithLabels([]string{"consul", "rpc", "request"}, 3, op)
	s.IncrCounterWithLabels([]string{"consul", "rpc", "request"}, 2, op)
	for i := range 4 {
		s.AddSample([]string{"consul", "kvs", "apply"}, float32(i+1))
	}
	s.AddBatch([]string{"consul", "api", "http"}, measure.Same(1000, 2), op)
}

// The summary is that of go-metrics' own sink.
func TestSummaryIsThatOfGoMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, theirs := NewStore(0), metrics.NewInmemSink(Interval, 6*Interval)
		show := func(from interface {
			DisplayMetrics(http.ResponseWriter, *http.Request) (any, error)
		}) string {
			v, err := from.DisplayMetrics(nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			m := v.(metrics.MetricsSummary)
			data, err := json.MarshalIndent([]any{m.Timestamp, m.Gauges, m.Counters, m.Samples}, "", " ")
			if err != nil {
				t.Fatal(err)
			}
			return strings.ReplaceAll(string(data), "null", "[]")
		}
		for i := range 4 {
			for _, sink := range []metrics.MetricSink{s, theirs} {
				sink.SetGaugeWithLabels([]string{"a", "gauge"}, float32(i), op)
				sink.SetGauge([]string{"a", "b c"}, 7)
				for j := range 3 * i {
					sink.IncrCounterWithLabels([]string{"a", "counter"}, float32(j), op)
					sink.AddSample([]string{"a", "sample"}, 0.25*float32(j))
				}
			}
			if got, want := show(s), show(theirs); got != want {
				t.Fatalf("interval %d: got %s, want %s", i, got, want)
			}
			time.Sleep(Interval)
		}
	})
}

func TestStreamGivesEachInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(0)
		ctx, cancel := context.WithCancel(t.Context())
		var got []metrics.MetricsSummary
		go func() {
			for i := range 35 {
				s.SetGauge([]string{"second"}, float32(i))
				time.Sleep(time.Second)
			}
			cancel()
		}()
		s.Stream(ctx, encoderFunc(func(v any) error { got = append(got, v.(metrics.MetricsSummary)); return nil }))
		if len(got) != 3 || len(got[0].Gauges) != 1 || got[2].Gauges[0].Value != 29 && got[2].Gauges[0].Value != 30 || got[0].Timestamp == got[1].Timestamp {
			t.Errorf("got %+v", got)
		}
		stop := errors.New("gone")
		s.Stream(t.Context(), encoderFunc(func(any) error { return stop })) // returns
	})
}

type encoderFunc func(any) error

func (f encoderFunc) Encode(v any) error { return f(v) }

// The text form is one that Prometheus reads, with exact counts, and has what is known from the start.
func TestPrometheusReadsTheText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(time.Minute)
		s.KnownGauge("consul.known-gauge")
		s.KnownCounter("consul.known.counter")
		s.KnownSummary("consul.known.summary")
		fill(s)
		odd := []metrics.Label{{Name: "a-b", Value: "q\"\\\n\xff"}}
		s.SetGaugeWithLabels([]string{"consul", "odd"}, 1.5, odd)
		s.IncrCounter([]string{"consul", "odd"}, 1) // of another kind
		read := func() map[string]string {
			w := httptest.NewRecorder()
			s.Prometheus().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			if got := w.Header().Get("Content-Type"); got != "text/plain; version=0.0.4; charset=utf-8" {
				t.Errorf("Content-Type %q", got)
			}
			parser := expfmt.NewTextParser(model.LegacyValidation)
			families, err := parser.TextToMetricFamilies(bytes.NewReader(w.Body.Bytes()))
			if err != nil {
				t.Fatalf("%v in %s", err, w.Body)
			}
			got := map[string]string{}
			for name, f := range families {
				for _, m := range f.Metric {
					got[name] += fmt.Sprint(m) + "\n"
				}
			}
			return got
		}
		got := read()
		for name, want := range map[string]string{
			"consul_known_gauge":           "gauge:{value:0}",
			"consul_known_counter":         "counter:{value:0}",
			"consul_known_summary":         "value:nan",
			"consul_host1_server_isLeader": "gauge:{value:1}",
			"consul_rpc_request":           "counter:{value:5}",
			"consul_kvs_apply":             "sample_count:4 sample_sum:10",
			"consul_api_http":              "sample_count:1000 sample_sum:2000",
			"consul_odd":                   "gauge:{value:1.5}",
		} {
			if !strings.Contains(strings.Join(strings.Fields(got[name]), " "), want) {
				t.Errorf("%s: got %s, want %s", name, got[name], want)
			}
		}
		if !strings.Contains(got["consul_odd"], `name:"a_b"`) {
			t.Errorf("labels: %s", got["consul_odd"])
		}
		time.Sleep(2 * time.Minute)
		s.IncrCounterWithLabels([]string{"consul", "rpc", "request"}, 1, op)
		got = read()
		if got["consul_kvs_apply"] != "" || got["consul_known_gauge"] == "" || !strings.Contains(got["consul_rpc_request"], "value:6") {
			t.Errorf("after the retention: %v", got)
		}
	})
}

// However many series are asked for, so many are kept.
func TestSeriesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(0)
		const more = 5000
		for i := range maxSeries + more {
			s.IncrCounterWithLabels([]string{"x"}, 1, []metrics.Label{{Name: "i", Value: fmt.Sprint(i)}})
		}
		if got := len(s.series); got != maxSeries || s.Dropped() != more {
			t.Errorf("%d series, %d dropped", got, s.Dropped())
		}
		time.Sleep(2 * time.Minute) // room again, for those of old are not measured any more
		s.IncrCounter([]string{"y"}, 1)
		if got := len(s.series); got != 1 {
			t.Errorf("%d series after the retention", got)
		}
	})
}

// once runs a pusher that has one interval to send.
func once(t *testing.T, target Target) {
	t.Helper()
	if err := target.Check(); err != nil {
		t.Fatal(err)
	}
	s := NewStore(0)
	ctx, cancel := context.WithCancel(t.Context())
	var dialer net.Dialer
	dial := func(_ context.Context, network, address string) (net.Conn, error) {
		return dialer.DialContext(t.Context(), network, address)
	}
	p := NewPusher(s, dial, hclog.NewNullLogger())
	p.Set([]Target{target})
	fill(s)
	cancel() // the last interval is sent at once
	if err := p.Run(ctx); err != nil {
		t.Error(err)
	}
}

// sameInterval waits for the next interval if this one is about to end: what a test measures is to be in one.
func sameInterval() {
	if left := time.Until(time.Unix(0, beginning(time.Now())).Add(Interval)); left < time.Second {
		time.Sleep(left)
	}
}

var wantStatsd = []string{
	"consul.host1.server.isLeader:1|g", "consul.rpc.request.set:5|c", "consul.kvs.apply:1|ms", "consul.kvs.apply:4|ms", "consul.api.http.set:2|ms|@0.064",
}

func checkLines(t *testing.T, got string, want []string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(got, "\n"), "\n")
	for _, w := range want {
		if !slices.Contains(lines, w) {
			t.Errorf("no line %s in %q", w, got)
		}
	}
	if n := len(lines); n != 2+4+measure.Kept {
		t.Errorf("%d lines in %q", n, got)
	}
}

// datagrams reads what has arrived until it is as much as fill makes.
func datagrams(t *testing.T, c net.PacketConn) string {
	t.Helper()
	var all strings.Builder
	b := make([]byte, 64<<10)
	for strings.Count(all.String(), "\n") < 2+4+measure.Kept {
		c.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, _, err := c.ReadFrom(b)
		if err != nil {
			t.Fatalf("%v after %q", err, all.String())
		}
		if n > maxDatagram {
			t.Errorf("a datagram of %d bytes", n)
		}
		all.Write(b[:n])
	}
	return all.String()
}

func TestStatsdGetsDatagrams(t *testing.T) {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sameInterval()
	once(t, Target{Protocol: Statsd, Address: c.LocalAddr().String()})
	checkLines(t, datagrams(t, c), wantStatsd)
}

func TestDogstatsdGetsTags(t *testing.T) {
	want := []string{
		"consul.server.isLeader:1|g|#env:test,odd_tag", "consul.rpc.request:5|c|#env:test,odd_tag,op:set", "consul.kvs.apply:4|ms|#env:test,odd_tag",
		"consul.api.http:2|ms|@0.064|#env:test,odd_tag,op:set",
	}
	for _, network := range []string{"udp", "unixgram"} {
		at := "127.0.0.1:0"
		if network == "unixgram" {
			at = filepath.Join(t.TempDir(), "dsd.socket")
		}
		c, err := net.ListenPacket(network, at)
		if err != nil {
			t.Skip(network, err)
		}
		defer c.Close()
		address := c.LocalAddr().String()
		if network == "unixgram" {
			address = "unix://" + at
		}
		sameInterval()
		once(t, Target{Protocol: Dogstatsd, Address: address, Tags: []string{"env:test", "odd|tag"}, Host: "host1"})
		checkLines(t, datagrams(t, c), want)
	}
}

func TestStatsiteGetsLinesOverTCP(t *testing.T) {
	for _, target := range []Target{{Protocol: Statsite}, {Protocol: Statsd, Address: "tcp://"}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		got := make(chan string, 1)
		go func() {
			c, err := l.Accept()
			if err != nil {
				got <- err.Error()
				return
			}
			all, _ := io.ReadAll(c)
			got <- string(all)
		}()
		target.Address += l.Addr().String()
		sameInterval()
		once(t, target)
		checkLines(t, <-got, wantStatsd)
	}
}

func TestCollectorGetsMetrics(t *testing.T) {
	got := make(chan *metricsv1.MetricsData, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		m := new(metricsv1.MetricsData)
		if err := proto.Unmarshal(body, m); err != nil || r.URL.Path != "/x/v1/metrics" || r.Header.Get("Authorization") != "secret" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%s %s %v: %v", r.Method, r.URL, r.Header, err)
		}
		got <- m
	}))
	defer srv.Close()
	sameInterval()
	once(t, Target{Protocol: OTLPMetric, Address: srv.URL, OTLP: &OTLP{
		Endpoint: srv.URL + "/x/", Headers: map[string]string{"Authorization": "secret"}, Resource: map[string]string{"service.name": "sarn"},
	}})
	m := <-got
	found := map[string]string{}
	for _, x := range m.ResourceMetrics[0].ScopeMetrics[0].Metrics {
		found[x.Name] = strings.Join(strings.Fields(fmt.Sprint(x)), " ")
	}
	for name, want := range map[string]string{
		"consul.host1.server.isLeader": "as_double:1",
		"consul.rpc.request":           "as_double:5",
		"consul.kvs.apply":             "count:4 sum:10",
		"consul.api.http":              "count:1000 sum:2000",
	} {
		if !strings.Contains(found[name], want) {
			t.Errorf("%s: %s, want %s", name, found[name], want)
		}
	}
	if !strings.Contains(found["consul.rpc.request"], "AGGREGATION_TEMPORALITY_CUMULATIVE") || len(found) != 4 {
		t.Errorf("got %v", found)
	}
	if got := m.ResourceMetrics[0].Resource.Attributes[0].Value.GetStringValue(); got != "sarn" {
		t.Errorf("resource %q", got)
	}
}

// A receiver that is away, or does not read, holds nobody up: its latest intervals are kept and sent when it is there.
func TestDeadReceiverIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var arrived []string
		var up, hung atomic.Bool
		dial := func(ctx context.Context, network, address string) (net.Conn, error) {
			if !up.Load() {
				return nil, errors.New("connection refused")
			}
			ours, theirs := net.Pipe()
			go func() {
				b := make([]byte, 64<<10)
				for !hung.Load() {
					n, err := theirs.Read(b)
					if err != nil {
						return
					}
					mu.Lock()
					arrived = append(arrived, string(b[:n]))
					mu.Unlock()
				}
			}()
			return ours, nil
		}
		s := NewStore(0)
		p := NewPusher(s, dial, hclog.NewNullLogger())
		p.Set([]Target{{Protocol: Statsite, Address: "receiver:1"}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		count := func(intervals int) {
			for range intervals {
				s.IncrCounter([]string{"n"}, 1)
				time.Sleep(Interval)
			}
		}
		time.Sleep(time.Until(time.Unix(0, beginning(time.Now())).Add(Interval + time.Second)))
		count(20)
		if len(arrived) != 0 {
			t.Fatalf("arrived %q", arrived)
		}
		up.Store(true)
		time.Sleep(time.Minute)
		mu.Lock()
		if n := strings.Count(strings.Join(arrived, ""), "n:1|c\n"); n < 5 || n > waiting+1 {
			t.Errorf("%d intervals arrived of those before: %q", n, arrived)
		}
		arrived = nil
		mu.Unlock()
		count(3)
		time.Sleep(Interval)
		mu.Lock()
		if n := strings.Count(strings.Join(arrived, ""), "n:1|c\n"); n != 3 {
			t.Errorf("%d of 3 intervals: %q", n, arrived)
		}
		mu.Unlock()
		hung.Store(true)
		count(30)
		cancel()
		began := time.Now()
		if err := <-done; err != nil || time.Since(began) > 2*sendLimit {
			t.Errorf("ended after %v: %v", time.Since(began), err)
		}
		synctest.Wait()
	})
}

// Targets are changed while metrics are sent.
func TestTargetsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		got := map[string]int{}
		dial := func(_ context.Context, network, address string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() {
				b := make([]byte, 64<<10)
				for {
					if _, err := theirs.Read(b); err != nil {
						return
					}
					mu.Lock()
					got[network+" "+address]++
					mu.Unlock()
				}
			}()
			return ours, nil
		}
		s := NewStore(0)
		p := NewPusher(s, dial, hclog.NewNullLogger())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		step := func(want string, targets ...Target) {
			t.Helper()
			p.Set(targets)
			time.Sleep(time.Second)
			mu.Lock()
			clear(got)
			mu.Unlock()
			s.SetGauge([]string{"x"}, 1)
			time.Sleep(Interval)
			mu.Lock()
			defer mu.Unlock()
			if fmt.Sprint(got) != want {
				t.Errorf("got %v, want %s", got, want)
			}
		}
		a, b := Target{Protocol: Statsd, Address: "a:1"}, Target{Protocol: Statsite, Address: "b:1"}
		step("map[]")
		step("map[udp a:1:1]", a)
		step("map[tcp b:1:1 udp a:1:1]", a, b)
		step("map[tcp b:1:1]", b)
		step("map[]")
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestAddressesAreChecked(t *testing.T) {
	for _, tt := range []struct {
		target Target
		ok     bool
	}{
		{Target{Protocol: Statsd, Address: "127.0.0.1:8125"}, true},
		{Target{Protocol: Statsd, Address: "[::1]:8125"}, true},
		{Target{Protocol: Statsd, Address: "udp://h:8125"}, true},
		{Target{Protocol: Statsd, Address: "tcp://h:8125"}, true},
		{Target{Protocol: Statsd, Address: "h"}, false},
		{Target{Protocol: Statsd, Address: "h:"}, false},
		{Target{Protocol: Statsd, Address: "http://h:1"}, false},
		{Target{Protocol: Statsd, Address: "unix:///run/x"}, false},
		{Target{Protocol: Dogstatsd, Address: "unix:///run/x"}, true},
		{Target{Protocol: Dogstatsd, Address: "unix://"}, false},
		{Target{Protocol: OTLPMetric, Address: "x", OTLP: &OTLP{Endpoint: "http://h:4318"}}, true},
		{Target{Protocol: OTLPMetric, Address: "x", OTLP: &OTLP{Endpoint: "h:4318"}}, false},
	} {
		if err := tt.target.Check(); (err == nil) != tt.ok {
			t.Errorf("%s %s: %v", tt.target.Protocol, tt.target.Address, err)
		}
	}
}

func TestProcessorTimesAreRead(t *testing.T) {
	got := parseStat("cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\ncpu1 1 2 x 4 5\ncpu2\nintr 5\n")
	if len(got) != 1 || got["cpu0"] != (cpuTimes{user: 3, system: 16, idle: 4, iowait: 5, all: 36}) {
		t.Errorf("got %+v", got)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("cpu0 1 2 3 4 5 6 7 8 9 10\n")
	f.Fuzz(func(t *testing.T, text string) {
		for cpu, v := range parseStat(text) {
			if !strings.HasPrefix(cpu, "cpu") || v.user < 0 || v.all < v.user {
				t.Errorf("%s: %+v", cpu, v)
			}
		}
	})
}
