package csrf_test

import (
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/filter/csrf"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

func TestOrigins(t *testing.T) {
	m, err := model.NewStringMatch(model.MatchSuffix, ".friend", false)
	if err != nil {
		t.Fatal(err)
	}
	conf := &csrf.Config{Enabled: model.Fraction{Numerator: 100, Denominator: 100}, Origins: []model.StringMatch{m}}
	b := filtertest.New(t, csrf.Type, conf)
	for _, tt := range []struct {
		method string
		fields []string
		ok     bool
	}{
		{"GET", nil, true},
		{"POST", nil, false},
		{"POST", []string{"origin", "null"}, false},
		{"POST", []string{"origin", "https://web.test"}, true},
		{"PUT", []string{"referer", "http://web.test/page?x"}, true},
		{"DELETE", []string{"origin", "http://web.test.evil"}, false},
		{"PATCH", []string{"origin", "http://evil", "referer", "http://web.test/"}, false},
		{"POST", []string{"origin", "http://a.friend"}, true},
	} {
		res := b.Run(b.Exchange(tt.method, "/", tt.fields...), nil)
		if (res.Reply == nil) != tt.ok || !tt.ok && (res.Status != 403 || res.Body != "Invalid origin" || res.Reply.Details != "csrf_origin_mismatch") {
			t.Errorf("%s %v: %+v", tt.method, tt.fields, res)
		}
	}
	if got := b.Counters(); got != "http.test.csrf.missing_source_origin 2\nhttp.test.csrf.request_invalid 2\nhttp.test.csrf.request_valid 3\n" {
		t.Error(got)
	}
	b.Route(&csrf.Config{Shadow: &conf.Enabled})
	if res := b.Run(b.Exchange("POST", "/", "origin", "http://evil"), nil); res.Reply != nil || b.Stats.Value("http.test.csrf.request_invalid") != 3 {
		t.Errorf("%+v, %s", res.Reply, b.Counters())
	}
}
