package headertometadata_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/filter/headertometadata"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

func TestRules(t *testing.T) {
	type rule = headertometadata.Rule
	type value = headertometadata.Value
	for _, tt := range []struct {
		name   string
		rule   rule
		fields []string
		want   string // metadata
		left   string // of the headers
	}{
		{"header", rule{Header: "x-v", Present: &value{Namespace: "lb", Key: "v"}}, []string{"x-v", "1"}, "map[lb:map[v:1]]", "x-v: 1\n"},
		{"own namespace", rule{Header: "x-v", Present: &value{Key: "v"}}, []string{"x-v", "1"}, "map[envoy.filters.http.header_to_metadata:map[v:1]]", "x-v: 1\n"},
		{"removed", rule{Header: "x-v", Present: &value{Namespace: "lb", Key: "v"}, Remove: true}, []string{"x-v", "1", "x-v", "2"}, "map[lb:map[v:1,2]]", ""},
		{"fixed value", rule{Header: "x-v", Present: &value{Namespace: "lb", Key: "v", Value: "yes"}}, []string{"x-v", "1"}, "map[lb:map[v:yes]]", "x-v: 1\n"},
		{"missing", rule{Header: "x-v", Missing: &value{Namespace: "lb", Key: "v", Value: "none"}}, nil, "map[lb:map[v:none]]", ""},
		{"missing, only present asked", rule{Header: "x-v", Present: &value{Key: "v", Value: "a"}}, nil, "map[]", ""},
		{"empty", rule{Header: "x-v", Present: &value{Key: "v"}}, []string{"x-v", ""}, "map[]", "x-v: \n"},
		{"cookie", rule{Cookie: "b", Present: &value{Namespace: "lb", Key: "v"}}, []string{"cookie", `a=1; b="2"; b=3`}, "map[lb:map[v:2]]", "cookie: a=1; b=\"2\"; b=3\n"},
		{"number", rule{Header: "x-v", Present: &value{Namespace: "lb", Key: "v", Number: true}}, []string{"x-v", "1.5"}, "map[lb:map[v:1.5]]", "x-v: 1.5\n"},
		{"no number", rule{Header: "x-v", Present: &value{Namespace: "lb", Key: "v", Number: true}}, []string{"x-v", "Inf"}, "map[]", "x-v: Inf\n"},
		{"base64", rule{Header: "x-v", Present: &value{Namespace: "lb", Key: "v", Base64: true}}, []string{"x-v", "YWI="}, "map[lb:map[v:ab]]", "x-v: YWI=\n"},
		{"part of it", rule{Header: "x-v", Present: &value{Namespace: "lb", Key: "v", Rewrite: &model.RegexRewrite{Pattern: regexp.MustCompile(`.*svc/(\w+).*`), Substitution: "${1}"}}}, []string{"x-v", "a/svc/web;x"}, "map[lb:map[v:web]]", "x-v: a/svc/web;x\n"},
		{"too long", rule{Header: "x-v", Present: &value{Key: "v"}, Remove: true}, []string{"x-v", strings.Repeat("a", 9000)}, "map[]", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := filtertest.New(t, headertometadata.Type, &headertometadata.Config{Request: []headertometadata.Rule{tt.rule}})
			x := b.Exchange("GET", "/", tt.fields...)
			b.Run(x, nil)
			if got := fmt.Sprint(map[string]map[string]any(x.Entry.HTTP.Metadata)); got != tt.want {
				t.Errorf("metadata %s, want %s", got, tt.want)
			}
			if got := filtertest.Fields(&x.Request.Header); got != tt.left {
				t.Errorf("headers %q, want %q", got, tt.left)
			}
		})
	}
}

func TestResponsesAndRoutes(t *testing.T) {
	conf := func(key string) *headertometadata.Config {
		return &headertometadata.Config{Response: []headertometadata.Rule{{Header: "x-v", Present: &headertometadata.Value{Namespace: "n", Key: key}, Remove: true}}}
	}
	b := filtertest.New(t, headertometadata.Type, conf("own"))
	run := func() string {
		x := b.Exchange("GET", "/")
		res := b.Run(x, func(x *filter.Exchange) { x.Response.Header.Add("x-v", "1") })
		return fmt.Sprint(x.Entry.HTTP.Metadata["n"], res.Header.Len())
	}
	if got := run(); got != "map[own:1] 0" {
		t.Error(got)
	}
	b.Route(conf("route"))
	if got := run(); got != "map[route:1] 0" {
		t.Error(got)
	}
}
