package cors_test

import (
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/filter/cors"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

func TestPolicy(t *testing.T) {
	match := func(k model.StringMatchKind, p string) []model.StringMatch {
		m, err := model.NewStringMatch(k, p, false)
		if err != nil {
			t.Fatal(err)
		}
		return []model.StringMatch{m}
	}
	yes, no := true, false
	full := &cors.Policy{Origins: match(model.MatchSuffix, ".good"), Methods: "GET,PUT", Headers: "x-a", Expose: "x-b", MaxAge: "600", Credentials: &yes, PrivateNetwork: &yes}
	strict := &cors.Policy{Origins: match(model.MatchSuffix, ".good"), ForwardNotMatching: &no}
	preflight := []string{"access-control-request-method", "PUT"}
	for _, tt := range []struct {
		name           string
		policy         *cors.Policy
		method, origin string
		fields         []string
		upstream       bool
		want           string
	}{
		{"no policy", nil, "GET", "a.good", nil, true, ""},
		{"no origin", full, "GET", "", nil, true, ""},
		{"good", full, "GET", "a.good", nil, true, "access-control-allow-origin: a.good\naccess-control-allow-credentials: true\naccess-control-expose-headers: x-b\n"},
		{"bad", full, "GET", "a.bad", nil, true, ""},
		{"everybody", &cors.Policy{Origins: match(model.MatchExact, "*")}, "GET", "a.bad", nil, true, "access-control-allow-origin: a.bad\n"},
		{"preflight", full, "OPTIONS", "a.good", preflight, false, "access-control-allow-origin: a.good\naccess-control-allow-credentials: true\naccess-control-allow-methods: GET,PUT\naccess-control-allow-headers: x-a\naccess-control-expose-headers: x-b\naccess-control-max-age: 600\n"},
		{"private network", full, "OPTIONS", "a.good", append(preflight, "access-control-request-private-network", "true"), false, "access-control-allow-origin: a.good\naccess-control-allow-credentials: true\naccess-control-allow-methods: GET,PUT\naccess-control-allow-headers: x-a\naccess-control-expose-headers: x-b\naccess-control-max-age: 600\naccess-control-allow-private-network: true\n"},
		{"options without method", full, "OPTIONS", "a.good", nil, true, "access-control-allow-origin: a.good\naccess-control-allow-credentials: true\naccess-control-expose-headers: x-b\n"},
		{"bad preflight goes on", full, "OPTIONS", "a.bad", preflight, true, ""},
		{"bad preflight stays here", strict, "OPTIONS", "a.bad", preflight, false, ""},
		{"off", &cors.Policy{Origins: full.Origins, Enabled: &model.Fraction{Denominator: 100}}, "GET", "a.good", nil, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := filtertest.New(t, cors.Type, &cors.Config{})
			if tt.policy != nil {
				b.Route(tt.policy)
			}
			x := b.Exchange(tt.method, "/", tt.fields...)
			if tt.origin != "" {
				x.Request.Header.Add("origin", tt.origin)
			}
			res := b.Run(x, nil)
			res.Header.Del("content-type")
			res.Header.Del("content-length")
			if got := filtertest.Fields(&res.Header); res.Upstream != tt.upstream || res.Status != 200 || got != tt.want {
				t.Errorf("upstream %v, %d\n%s", res.Upstream, res.Status, got)
			}
		})
	}
	b := filtertest.New(t, cors.Type, &cors.Config{})
	b.Route(full)
	b.Run(b.Exchange("GET", "/", "origin", "a.good"), nil)
	b.Run(b.Exchange("GET", "/", "origin", "a.bad"), nil)
	if got := b.Counters(); got != "http.test.cors.origin_invalid 1\nhttp.test.cors.origin_valid 1\n" {
		t.Error(got)
	}
}
