package httpapi

import (
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-metrics"
)

// Summed up here or told one by one, requests show as the same figures.
func TestRequestsAreCountedInMetrics(t *testing.T) {
	type line struct {
		Name                              string
		Count                             int
		Rate, Sum, Min, Max, Mean, Stddev float64
		Labels                            map[string]string
	}
	measure := func(t *testing.T, interval time.Duration) (all [][]line) {
		synctest.Test(t, func(t *testing.T) {
			sink := metrics.NewInmemSink(10*time.Second, time.Minute)
			conf := metrics.DefaultConfig("consul")
			conf.EnableHostname, conf.EnableRuntimeMetrics = false, false
			if _, err := metrics.NewGlobal(conf, sink); err != nil {
				t.Fatal(err)
			}
			defer metrics.NewGlobal(conf, &metrics.BlackholeSink{})
			s, _ := newAgent(t, Config{Agent: AgentConfig{Metrics: sink, MetricsInterval: interval}})
			show := func() {
				var got struct{ Samples []line }
				if err := json.Unmarshal(do(s, "GET", "/v1/agent/metrics", "").Body.Bytes(), &got); err != nil {
					t.Fatal(err)
				}
				all = append(all, got.Samples)
			}
			request := func(took time.Duration, times int) {
				for range times {
					s.find("/v1/kv/a").measure(s, "GET", time.Now().Add(-took))
				}
			}
			request(time.Millisecond, 3)
			request(4*time.Millisecond, 1)
			show() // of the interval that has begun
			time.Sleep(10 * time.Second)
			request(7*time.Millisecond, 2)
			show()
			time.Sleep(10 * time.Second)
			show()
			time.Sleep(10 * time.Second)
			show()
		})
		return all
	}
	each, summed := measure(t, 0), measure(t, 10*time.Second)
	if len(each) != 4 || len(each[0]) == 0 || each[0][0].Count != 4 || each[0][0].Max != 4 {
		t.Fatalf("told one by one: %+v", each)
	}
	for i := range each {
		if got, want := len(summed[i]), len(each[i]); got != want {
			t.Fatalf("interval %d: %d lines, want %d", i, got, want)
		}
		for j, want := range each[i] {
			got := summed[i][j]
			if d := got.Rate - want.Rate; d > 1e-9 || d < -1e-9 {
				t.Errorf("interval %d, %v: %v a second, want %v", i, want.Labels, got.Rate, want.Rate)
			}
			a, _ := json.Marshal(got)
			got.Rate = want.Rate
			b, _ := json.Marshal(got)
			if c, _ := json.Marshal(want); string(b) != string(c) {
				t.Errorf("interval %d: got %s, want %s", i, a, c)
			}
		}
	}
}
