package descriptor_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/descriptor"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
)

func exchange(path string, fields ...string) *filter.Exchange {
	x := &filter.Exchange{
		Request: &message.Request{Method: "GET", Path: path, Authority: "web.test"},
		Remote:  netip.MustParseAddr("192.0.2.77"),
		Match:   route.Match{Cluster: "up"},
		Entry:   &accesslog.Entry{HTTP: &accesslog.HTTP{Metadata: model.Metadata{"ns": {"a": map[string]any{"b": "deep"}, "n": 1.0}}}},
	}
	for i := 0; i < len(fields); i += 2 {
		x.Request.Header.Add(fields[i], fields[i+1])
	}
	return x
}

func TestActions(t *testing.T) {
	type action = model.RateLimitAction
	present := []model.HeaderMatch{{Name: "x-a"}}
	for _, tt := range []struct {
		name    string
		actions []action
		want    string
	}{
		{"clusters", []action{{SourceCluster: true}, {DestinationCluster: true}}, "[{source_cluster web} {destination_cluster up}]"},
		{"address", []action{{RemoteAddress: true}}, "[{remote_address 192.0.2.77}]"},
		{"network", []action{{MaskV4: 26, MaskV6: 64}}, "[{masked_remote_address 192.0.2.64/26}]"},
		{"header", []action{{Header: "x-a", HeaderKey: "k"}}, "[{k 1,2}]"},
		{"pseudo header", []action{{Header: ":authority", HeaderKey: "k"}}, "[{k web.test}]"},
		{"missing header", []action{{RemoteAddress: true}, {Header: "x-b", HeaderKey: "k"}}, ""},
		{"missing header that may be", []action{{RemoteAddress: true}, {Header: "x-b", HeaderKey: "k", SkipIfAbsent: true}}, "[{remote_address 192.0.2.77}]"},
		{"nothing left", []action{{Header: "x-b", HeaderKey: "k", SkipIfAbsent: true}}, ""},
		{"generic", []action{{Generic: "v"}, {Generic: "w", GenericKey: "k"}}, "[{generic_key v} {k w}]"},
		{"header value", []action{{HeaderValue: &model.HeaderValueMatch{Value: "v", Expect: true, Headers: present}}}, "[{header_match v}]"},
		{"header value, not expected", []action{{HeaderValue: &model.HeaderValueMatch{Value: "v", Headers: present}}}, ""},
		{"query", []action{{Query: "q", HeaderKey: "k"}}, "[{k 1}]"},
		{"metadata", []action{{Metadata: &model.MetadataKey{Key: "k", Namespace: "ns", Path: []string{"a", "b"}}}}, "[{k deep}]"},
		{"metadata by default", []action{{Metadata: &model.MetadataKey{Key: "k", Namespace: "ns", Path: []string{"n"}, Default: "d"}}}, "[{k d}]"},
		{"no metadata", []action{{Metadata: &model.MetadataKey{Key: "k", Namespace: "ns", Path: []string{"a", "b", "c"}}}}, ""},
	} {
		got := ""
		descriptor.Each(exchange("/?p=0&q=1&q=2", "x-a", "1", "x-a", "2"), &filter.Env{NodeCluster: "web"}, []model.RateLimit{{Actions: tt.actions}}, 0, 0, func(e []descriptor.Entry) bool {
			got += fmt.Sprint(e)
			return true
		})
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestWhoseLimitsCount(t *testing.T) {
	limit := func(s string) []model.RateLimit {
		return []model.RateLimit{{Actions: []model.RateLimitAction{{Generic: s}}}}
	}
	for _, tt := range []struct {
		own, route []model.RateLimit
		include    bool
		use        descriptor.VirtualHostUse
		want       string
	}{
		{nil, limit("r"), false, descriptor.Override, "r"},
		{nil, nil, false, descriptor.Override, "v"},
		{nil, nil, false, descriptor.Ignore, ""},
		{nil, limit("r"), false, descriptor.Include, "rv"},
		{nil, limit("r"), true, descriptor.Ignore, "rv"},
		{limit("o"), limit("r"), true, descriptor.Include, "o"},
	} {
		x := exchange("/")
		x.Match.VirtualHost = &model.VirtualHost{RateLimits: limit("v")}
		x.Match.Route = &model.Route{Forward: &model.Forward{RateLimits: tt.route, IncludeVHLimits: tt.include}}
		got := ""
		descriptor.Each(x, &filter.Env{}, tt.own, 0, tt.use, func(e []descriptor.Entry) bool { got += e[0].Value; return true })
		if got != tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}

func FuzzQueryAndCookies(f *testing.F) {
	f.Add("/a?x=1&y=2&x", "x", `x=1; y="2";;z`)
	f.Fuzz(func(t *testing.T, path, name, cookies string) {
		if strings.ContainsAny(name, "&=?") {
			return
		}
		var a message.Arena
		rest := descriptor.WithoutParameter(path, name, &a)
		if v, ok := descriptor.QueryParameter(rest, name); ok && name != "" {
			t.Errorf("%q still has %q=%q after removal: %q", path, name, v, rest)
		}
		if len(rest) > len(path) {
			t.Errorf("%q grew to %q", path, rest)
		}
		descriptor.EachCookie(cookies, func(k, v string) {
			if strings.Contains(k, ";") || strings.Contains(v, ";") || strings.Contains(k, "=") {
				t.Errorf("%q has the cookie %q=%q", cookies, k, v)
			}
		})
	})
}
