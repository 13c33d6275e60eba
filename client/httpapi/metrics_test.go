package httpapi

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/internal/measure"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// batches collects what is told of requests.
func batches(t *testing.T) (take func() map[string]measure.Batch) {
	measure.Report() // what others have measured
	var mu sync.Mutex
	all := map[string]measure.Batch{}
	measure.To(func(key []string, labels []metrics.Label, b measure.Batch) {
		if len(key) != 2 || key[0] != "api" || key[1] != "http" {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		name := ""
		for _, l := range labels {
			name += l.Value + " "
		}
		sum := all[name]
		sum.Merge(b)
		all[name] = sum
	})
	t.Cleanup(func() { measure.To(nil) })
	return func() map[string]measure.Batch {
		measure.Report()
		mu.Lock()
		defer mu.Unlock()
		got := all
		all = map[string]measure.Batch{}
		return got
	}
}

func TestRequestsAreCountedInMetrics(t *testing.T) {
	take := batches(t)
	s, _ := newAgent(t, Config{Caller: newFixedCaller()})
	for range 3 {
		do(s, "GET", "/v1/kv/a", "")
	}
	s.find("/v1/kv/a").measure("GET", time.Now().Add(-time.Minute))
	do(s, "PUT", "/v1/kv/a", "x")
	got := take()
	if b := got["GET v1_kv_ "]; b.Count != 4 || b.Max < 60_000 || b.Min >= 60_000 {
		t.Errorf("reads: %+v", b)
	}
	if b := got["PUT v1_kv_ "]; b.Count != 1 {
		t.Errorf("writes: %+v", b)
	}
	if len(got) != 2 {
		t.Errorf("more was told: %v", got)
	}
}

// What clients make up as paths, names and methods makes no new series, and takes no memory.
func TestRequestsDoNotMakeSeries(t *testing.T) {
	take := batches(t)
	s, _ := newAgent(t, Config{Caller: newFixedCaller()})
	routes := 0
	for _, table := range []map[string]*route{s.exact, s.prefixes} {
		for _, rt := range table {
			routes += len(rt.methods)
			for _, n := range rt.nested {
				routes += len(n.methods)
			}
		}
	}
	rng := rand.New(rand.NewPCG(testkit.Seed(t), 0))
	random := func() string {
		b := make([]byte, 1+rng.IntN(12))
		for i := range b {
			b[i] = byte(33 + rng.IntN(94))
		}
		return url.PathEscape(string(b))
	}
	all := map[string]bool{}
	for range 3000 {
		prefix := []string{"/v1/kv/", "/v1/health/service/", "/v1/catalog/node/", "/v1/agent/service/", "/v1/", "/", "/v1/session/info/", "/v1/acl/token/"}[rng.IntN(8)]
		method := []string{"GET", "PUT", "DELETE", "LIST", "M" + fmt.Sprint(rng.IntN(1e6))}[rng.IntN(5)]
		r := httptest.NewRequest("GET", prefix+random()+"?"+random()+"="+random(), bytes.NewReader(nil))
		r.Method = method
		s.ServeHTTP(&discard{header: http.Header{}}, r)
	}
	for name := range take() {
		all[name] = true
	}
	if len(all) == 0 || len(all) > routes {
		t.Errorf("%d series of %d routes", len(all), routes)
	}
	if len(all) > 40 {
		t.Errorf("%d series: %v", len(all), all)
	}
}
