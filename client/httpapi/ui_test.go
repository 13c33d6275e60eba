package httpapi

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/acl"
)

// reading grants reading of one kind of thing.
type reading acl.Resource

func (o reading) Allows(r acl.Resource, a acl.Access, _ string) bool {
	return r == acl.Resource(o) && a == acl.Read
}

func TestMetricsProxyLeavesNeitherItsPathsNorTheTokenOut(t *testing.T) {
	var seen *http.Request
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r
		io.WriteString(w, "metrics")
	}))
	defer store.Close()
	proxy := &MetricsProxy{Base: store.URL + "/prom", Headers: []MetricsHeader{{"X-Org", "7"}, {"host", "store.example"}}}
	s, _ := newServer(t, Config{UIEnabled: true, UIMetrics: proxy}, nil)
	tests := []struct {
		name, path string
		paths      []string
		status     int
		asked      string // of the store, empty for nothing
	}{
		{"below the base", "/v1/internal/ui/metrics-proxy/api/v1/query?query=up&token=x", nil, 200, "/prom/api/v1/query?query=up&token=x"},
		{"listed", "/v1/internal/ui/metrics-proxy/a", []string{"/prom/a"}, 200, "/prom/a"},
		{"not listed", "/v1/internal/ui/metrics-proxy/b", []string{"/prom/a"}, 403, ""},
		{"out of the base", "/v1/internal/ui/metrics-proxy/%2e%2e/secret", nil, 400, ""},
		{"far out of the base", "/v1/internal/ui/metrics-proxy/x%2f..%2f..%2f..%2fsecret", nil, 400, ""},
		{"a neighbour of the base", "/v1/internal/ui/metrics-proxy/%2e%2e%2fpromises", nil, 400, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			seen, proxy.Paths = nil, tt.paths
			got := do(s, "GET", tt.path, "", "X-Consul-Token", "secret", "Authorization", "Bearer secret", "Cookie", "a=b")
			if got.Code != tt.status && !(tt.status == 400 && got.Code == http.StatusMovedPermanently) {
				t.Errorf("status %d, want %d", got.Code, tt.status)
			}
			if tt.asked == "" {
				if seen != nil {
					t.Errorf("the store was asked for %s", seen.URL)
				}
				return
			}
			if seen == nil || seen.RequestURI != tt.asked || seen.Host != "store.example" || seen.Header.Get("X-Org") != "7" {
				t.Fatalf("the store saw %+v, want a request for %s", seen, tt.asked)
			}
			for name, values := range seen.Header {
				if strings.Contains(strings.Join(values, " "), "secret") || name == "Cookie" {
					t.Errorf("the store saw %s: %s", name, values)
				}
			}
		})
	}
}

func TestMetricsProxyNeedsToSeeEverything(t *testing.T) {
	s, _ := newServer(t, Config{
		UIEnabled: true, UIMetrics: &MetricsProxy{Base: "http://127.0.0.1:1"},
		Authorize: func(_ context.Context, token string) (*acl.Authorizer, error) {
			return acl.New(reading(token), token), nil
		},
	}, nil)
	for _, token := range []string{"", "node", "service"} {
		if got := do(s, "GET", "/v1/internal/ui/metrics-proxy/x?token=node", "", "X-Consul-Token", token); got.Code != http.StatusForbidden {
			t.Errorf("token %q: status %d", token, got.Code)
		}
	}
}

func TestMetricsProxyOff(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{}, "UI is not enabled"},
		{Config{UIEnabled: true}, "Metrics proxy is not enabled"},
	} {
		s, _ := newServer(t, tt.cfg, nil)
		if got := do(s, "GET", "/v1/internal/ui/metrics-proxy/x", ""); got.Code != 404 || got.Body.String() != tt.want {
			t.Errorf("%d %q, want 404 %q", got.Code, got.Body, tt.want)
		}
	}
}

func TestProfilesAreOpenOrForOperators(t *testing.T) {
	open := false
	cfg := Config{
		Debug:     http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "profile") }),
		DebugOpen: func() bool { return open },
	}
	off, _ := newServer(t, cfg, nil)
	cfg.ACLEnabled = true
	cfg.Authorize = func(_ context.Context, token string) (*acl.Authorizer, error) {
		return acl.New(reading(token), token), nil
	}
	guarded, _ := newServer(t, cfg, nil)
	for _, tt := range []struct {
		s      *Server
		open   bool
		token  string
		status int
	}{
		{off, false, "operator", 404}, {off, true, "", 200}, {guarded, false, "", 403}, {guarded, false, "agent", 403},
		{guarded, false, "operator", 200}, {guarded, true, "", 200},
	} {
		open = tt.open
		if got := do(tt.s, "GET", "/debug/pprof/heap", "", "X-Consul-Token", tt.token); got.Code != tt.status || (tt.status == 200) != (got.Body.String() == "profile") {
			t.Errorf("open %v, token %q: status %d, want %d", tt.open, tt.token, got.Code, tt.status)
		}
	}
}
