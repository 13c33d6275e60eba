package route_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
)

// many returns a table of hosts with routes, of which a request for the last one is returned.
func many(hosts, routes int, match func(i int) model.RouteMatch) (*model.RouteConfig, string) {
	c := &model.RouteConfig{}
	for i := range hosts {
		vh := model.VirtualHost{Name: fmt.Sprint(i), Domains: []string{fmt.Sprintf("service-%d.example.com", i), fmt.Sprintf("*.service-%d.example.com", i)}}
		for j := range routes {
			vh.Routes = append(vh.Routes, to("c", match(j)))
		}
		c.VirtualHosts = append(c.VirtualHosts, vh)
	}
	return c, fmt.Sprintf("GET http://service-%d.example.com/api/v1/resource-%d/items?id=1", hosts-1, routes-1)
}

func prefixes(i int) model.RouteMatch { return prefix(fmt.Sprintf("/api/v1/resource-%d/", i)) }

func patterns(i int) model.RouteMatch {
	return pattern(fmt.Sprintf("/api/v1/resource-%d/[a-z]+", i))
}

func sameWithHeaders(i int) model.RouteMatch {
	return model.RouteMatch{Path: "/api/", Headers: []model.HeaderMatch{{Name: "x-version", Kind: model.HeaderString, Match: exactly(fmt.Sprint(i))}}}
}

func BenchmarkMatch(b *testing.B) {
	for _, bb := range []struct {
		name          string
		hosts, routes int
		match         func(int) model.RouteMatch
	}{
		{"10 prefixes", 1, 10, prefixes}, {"1000 prefixes", 1, 1000, prefixes},
		{"10 expressions", 1, 10, patterns}, {"1000 expressions", 1, 1000, patterns},
		{"10 headers", 1, 10, sameWithHeaders}, {"1000 headers", 1, 1000, sameWithHeaders},
		{"1000 domains", 1000, 1, prefixes},
	} {
		b.Run(bb.name, func(b *testing.B) {
			c, line := many(bb.hosts, bb.routes, bb.match)
			table := compile(b, c)
			r := request(line, "user-agent: x", fmt.Sprintf("x-version: %d", bb.routes-1), "accept: */*")
			f := &route.Facts{Request: r}
			b.ReportAllocs()
			for b.Loop() {
				if m := table.Match(f); m.Route == nil {
					b.Fatal("no route")
				}
			}
		})
	}
}

// A request costs no memory, whatever its route does but regular expressions.
func TestNothingIsAllocated(t *testing.T) {
	c, _ := many(1, 3, prefixes)
	c.RequestEdits = []model.HeaderEdit{{Name: "x-literal", Value: "1"}, {Name: "x-gone", Remove: true}}
	c.ResponseEdits = []model.HeaderEdit{{Name: "x-literal", Value: "1", Action: model.OverwriteOrAdd}}
	c.VirtualHosts[0].Routes[2].Forward = &model.Forward{
		Weighted:      []model.WeightedRoute{{Cluster: "a", Weight: 1}, {Cluster: "b", Weight: 1}},
		PrefixRewrite: "/", AutoHost: true, AppendXFH: true, Hash: []model.HashPolicy{{Header: "x-user"}, {SourceIP: true}},
	}
	c.VirtualHosts[0].Routes[2].Match.Headers = []model.HeaderMatch{{Name: "x-user", Kind: model.HeaderString, Match: exactly("2")}}
	c.VirtualHosts[0].Routes[2].Match.Query = []model.QueryMatch{{Name: "id", Match: exactly("1")}}
	table := compile(t, c)
	r, resp := &message.Request{}, &message.Response{}
	entry := &accesslog.Entry{}
	ip := netip.MustParseAddr("10.0.0.1")
	n := testing.AllocsPerRun(200, func() {
		r.Reset()
		resp.Reset()
		r.Method, r.Authority, r.Path = "GET", "SERVICE-0.example.com", "/api/v1/resource-2/items?id=1"
		r.Header.Add("x-user", "1")
		r.Header.Add("x-user", "2")
		m := table.Match(&route.Facts{Request: r})
		m.EditRequest(r, entry)
		m.Rewrite(r, "10.0.0.2")
		_, ok, _ := m.Hash(r, ip, nil, nil)
		m.EditResponse(resp, entry)
		if m.Cluster == "" || !ok || r.Path != "/items?id=1" || resp.Header.Len() != 1 {
			t.Fatalf("cluster %q, path %q", m.Cluster, r.Path)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for a request", n)
	}
}
