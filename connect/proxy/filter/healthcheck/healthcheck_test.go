package healthcheck_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/filter/healthcheck"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

func probes(t *testing.T) []model.HeaderMatch {
	m, err := model.NewStringMatch(model.MatchExact, "/healthz", false)
	if err != nil {
		t.Fatal(err)
	}
	return []model.HeaderMatch{{Name: ":path", Kind: model.HeaderString, Match: m}}
}

func TestProxyAnswers(t *testing.T) {
	for _, tt := range []struct {
		name    string
		failing bool
		min     []healthcheck.Cluster
		want    int
		details string
	}{
		{"well", false, nil, 200, "health_check_ok"},
		{"failing", true, nil, 503, "health_check_failed"},
		{"enough hosts", false, []healthcheck.Cluster{{"c", 75}}, 200, "health_check_ok_cluster_healthy"},
		{"too few hosts", false, []healthcheck.Cluster{{"c", 76}}, 503, "health_check_failed_cluster_unhealthy"},
		{"no hosts", false, []healthcheck.Cluster{{"empty", 1}}, 503, "health_check_failed_cluster_empty"},
		{"no cluster", false, []healthcheck.Cluster{{"gone", 1}}, 503, "health_check_failed_no_cluster_found"},
		{"nothing asked", false, []healthcheck.Cluster{{"gone", 0}, {"empty", 0}}, 200, "health_check_ok_cluster_healthy"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := filtertest.New(t, healthcheck.Type, &healthcheck.Config{Headers: probes(t), MinHealthy: tt.min})
			b.Failing, b.Hosts = tt.failing, map[string][2]int{"c": {3, 4}, "empty": {0, 0}}
			res := b.Run(b.Exchange("GET", "/healthz"), nil)
			if res.Upstream || res.Status != tt.want || res.Reply.Details != tt.details || res.Header.Get("x-envoy-upstream-healthchecked-cluster") != "web" {
				t.Errorf("%d, reply %+v", res.Status, res.Reply)
			}
			if (res.Reply.Flags == accesslog.FailedLocalHealthCheck) != (tt.want == 503) {
				t.Errorf("flags %v", res.Reply.Flags)
			}
			other := b.Run(b.Exchange("GET", "/"), nil)
			if !other.Upstream || (other.Header.Get("x-envoy-immediate-health-check-fail") == "true") != tt.failing {
				t.Errorf("another request: %+v", other)
			}
		})
	}
}

func TestServiceAnswersOnceInAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := filtertest.New(t, healthcheck.Type, &healthcheck.Config{PassThrough: true, CacheTime: time.Second, Headers: probes(t)})
		status, asked := 204, 0
		host := func(x *filter.Exchange) { asked++; x.Response.Status = status }
		probe := func() int { return b.Run(b.Exchange("GET", "/healthz"), host).Status }
		for i := range 2 {
			if s := probe(); s != 204 || asked != 1 {
				t.Errorf("probe %d: %d, asked %d times", i, s, asked)
			}
		}
		status = 500
		time.Sleep(time.Second)
		for i := range 2 {
			if s := probe(); s != 500 || asked != 2 {
				t.Errorf("probe %d: %d, asked %d times", i, s, asked)
			}
		}
		b.Failing = true
		if s := probe(); s != 503 || asked != 2 {
			t.Errorf("%d from a failing proxy", s)
		}
	})
}
