package headermutation_test

import (
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/filter/headermutation"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

func set(name, value string) headermutation.Mutation {
	return headermutation.Mutation{Edit: model.HeaderEdit{Name: name, Value: value, Action: model.OverwriteOrAdd}}
}

func TestMutations(t *testing.T) {
	secret, err := model.NewStringMatch(model.MatchPrefix, "x-secret", false)
	if err != nil {
		t.Fatal(err)
	}
	remove := headermutation.Mutation{Edit: model.HeaderEdit{Remove: true, Name: "x-a"}}
	b := filtertest.New(t, headermutation.Type, &headermutation.Config{
		Request:          []headermutation.Mutation{set("x-a", "1"), remove, {RemoveMatch: &secret}, set("x-method", "%REQ(:METHOD)%")},
		Response:         []headermutation.Mutation{set("x-r", "1")},
		RequestTrailers:  []headermutation.Mutation{set("x-t", "1")},
		ResponseTrailers: []headermutation.Mutation{{Edit: model.HeaderEdit{Remove: true, Name: "x-gone"}}},
	})
	x := b.Exchange("GET", "/", "x-a", "0", "x-secret-1", "a", "x-secret-2", "b", "x-b", "2")
	up := filtertest.Body("in")
	up.Tail = filtertest.Trailers("x-end", "1")
	x.Body = up
	res := b.Run(x, func(x *filter.Exchange) {
		s := filtertest.Body("out")
		s.Tail = filtertest.Trailers("x-gone", "1", "x-stays", "1")
		x.ResponseBody = s
	})
	if got := filtertest.Fields(&x.Request.Header); got != "x-b: 2\nx-method: GET\n" {
		t.Error(got)
	}
	if filtertest.Fields(res.SentTail) != "x-end: 1\nx-t: 1\n" || filtertest.Fields(res.Trailer) != "x-stays: 1\n" || res.Header.Get("x-r") != "1" || res.Sent != "in" || res.Body != "out" {
		t.Errorf("%+v %s %s", res, filtertest.Fields(res.SentTail), filtertest.Fields(res.Trailer))
	}
	// A body without trailers gets none.
	if res := b.Run(b.Exchange("GET", "/"), func(x *filter.Exchange) { x.ResponseBody = filtertest.Body("a") }); res.Trailer != nil {
		t.Error("trailers out of nothing")
	}
}

func TestRouteHasTheLastWord(t *testing.T) {
	b := filtertest.New(t, headermutation.Type, &headermutation.Config{Request: []headermutation.Mutation{set("x-l", "filter")}})
	b.Route(&headermutation.Config{Request: []headermutation.Mutation{set("x-l", "route")}})
	x := b.Exchange("GET", "/")
	if b.Run(x, nil); x.Request.Header.Get("x-l") != "route" {
		t.Errorf("%q", x.Request.Header.Get("x-l"))
	}
}

func TestQuery(t *testing.T) {
	for _, tt := range []struct {
		path   string
		change headermutation.QueryMutation
		want   string
	}{
		{"/a?x=1&y=2", headermutation.QueryMutation{Remove: true, Name: "x"}, "/a?y=2"},
		{"/a?x=1", headermutation.QueryMutation{Remove: true, Name: "x"}, "/a"},
		{"/a", headermutation.QueryMutation{Name: "x", Value: "a b"}, "/a?x=a+b"},
		{"/a?x=1", headermutation.QueryMutation{Name: "x", Value: "2"}, "/a?x=1&x=2"},
		{"/a?x=1&y=2&x=3", headermutation.QueryMutation{Name: "x", Value: "4", Action: model.OverwriteOrAdd}, "/a?x=4&y=2"},
		{"/a?x=1", headermutation.QueryMutation{Name: "x", Value: "2", Action: model.AddIfAbsent}, "/a?x=1"},
		{"/a?y=1", headermutation.QueryMutation{Name: "x", Value: "2", Action: model.AddIfAbsent}, "/a?y=1&x=2"},
		{"/a?y=1", headermutation.QueryMutation{Name: "x", Value: "2", Action: model.OverwriteIfExists}, "/a?y=1"},
		{"/a?x", headermutation.QueryMutation{Name: "x", Value: "2", Action: model.OverwriteIfExists}, "/a?x=2"},
	} {
		b := filtertest.New(t, headermutation.Type, &headermutation.Config{Query: []headermutation.QueryMutation{tt.change}})
		x := b.Exchange("GET", tt.path)
		if b.Run(x, nil); x.Request.Path != tt.want {
			t.Errorf("%s with %+v: %s, want %s", tt.path, tt.change, x.Request.Path, tt.want)
		}
	}
}
