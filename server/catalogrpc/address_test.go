package catalogrpc_test

import (
	"testing"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/server/catalogrpc"
)

func TestAddressIsFound(t *testing.T) {
	s := newServer(t, catalogrpc.Config{})
	s.register(&catalog.RegisterRequest{Node: "a", Address: "10.0.0.1", Service: &catalog.Service{Service: "web", Address: "10.0.0.9", Port: 1}})
	s.register(&catalog.RegisterRequest{Node: "b", Address: "10.0.0.1", Service: &catalog.Service{Service: "api", Address: "2001:db8:0:0::9", Port: 1}})
	s.register(&catalog.RegisterRequest{Node: "c", Address: "::ffff:10.0.0.3", Service: &catalog.Service{Service: "db", Address: "10.0.0.1", Port: 1}})
	s.register(&catalog.RegisterRequest{Node: "d", Address: "db.example.net", Service: &catalog.Service{Service: "none", Port: 1}})
	var rules map[string]bool
	s.Resolve = func(token string) (*acl.Authorizer, error) { return acl.New(reader(rules), token), nil }
	all := map[string]bool{"node:a": true, "node:b": true, "node:c": true, "node:d": true, "service:web": true, "service:api": true, "service:db": true}
	without := func(rule string) map[string]bool {
		m := map[string]bool{}
		for r := range all {
			m[r] = r != rule
		}
		return m
	}
	for _, tt := range []struct {
		name, address string
		rules         map[string]bool
		want          string
	}{
		{"first node", "10.0.0.1", all, "node a"},
		{"node that may be read", "10.0.0.1", without("node:a"), "node b"},
		{"service with an address of its own", "10.0.0.9", all, "service web"},
		{"service, IPv6 in another spelling", "2001:db8::9", all, "service api"},
		{"node registered as a mapped address", "10.0.0.3", all, "node c"},
		{"asked for as a mapped address", "::ffff:10.0.0.9", all, "service web"},
		{"nodes before services, unless hidden", "10.0.0.1", map[string]bool{"node:c": true, "service:db": true}, "service db"},
		{"service that may not be read", "10.0.0.9", without("service:web"), ""},
		{"service on a node that may not be read", "10.0.0.9", without("node:a"), ""},
		{"nobody", "10.0.0.8", all, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rules = tt.rules
			r, err := catalog.AddressCall.Call(t.Context(), s.Caller(), &catalog.AddressRequest{Options: read.Options{Target: read.Target{Token: "tok"}}, Address: tt.address})
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			if r.Node != nil {
				got = "node " + r.Node.Node
			} else if r.Service != "" {
				got = "service " + r.Service
			}
			if got != tt.want || r.Index == 0 {
				t.Errorf("got %q at index %d, want %q", got, r.Index, tt.want)
			}
		})
	}
	rules = all
	if _, err := catalog.AddressCall.Call(t.Context(), s.Caller(), &catalog.AddressRequest{Address: "web"}); err == nil {
		t.Error("a name passes for an address")
	}
}
