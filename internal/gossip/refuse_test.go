package gossip_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/sarnmesh/sarn/internal/gossip"
)

func TestGuard(t *testing.T) {
	g := gossip.NewGuard("dc1", "self", "id0")
	m := func(name, dc, id string) gossip.Member {
		return gossip.Member{Name: name, Status: gossip.Alive, Tags: map[string]string{"dc": dc, "id": id}}
	}
	g.Observe(gossip.Event{Kind: gossip.Joined, Members: []gossip.Member{m("a", "dc1", "id1"), m("b", "dc1", "id2")}})
	g.Observe(gossip.Event{Kind: gossip.Lost, Members: []gossip.Member{m("b", "dc1", "id2")}})
	tests := []struct {
		name   string
		member gossip.Member
		want   string
	}{
		{name: "new", member: m("c", "dc1", "id3")},
		{name: "known", member: m("a", "dc1", "id1")},
		{name: "self", member: m("self", "dc1", "id0")},
		{name: "other datacenter", member: m("c", "dc2", "id3"), want: "Member 'c' part of wrong datacenter 'dc2'"},
		{name: "ID of a living member", member: m("c", "dc1", "id1"), want: "Member 'c' has conflicting node ID 'id1' with member 'a'"},
		{name: "ID of this agent", member: m("c", "dc1", "id0"), want: "Member 'c' has conflicting node ID 'id0' with this agent's ID"},
		{name: "ID of a failed member", member: m("c", "dc1", "id2")},
		{name: "no ID", member: m("c", "dc1", "")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if err := g.Refuse(tt.member); err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestServerTagsRoundTrip(t *testing.T) {
	want := gossip.Server{
		ID: "id", Datacenter: "dc1", Addr: netip.MustParseAddrPort("10.0.0.1:8300"), Expect: 3, Build: "1.2.3",
		GRPCPort: 8502, GRPCTLSPort: 8503, WANPort: 8302, UseTLS: true, ACLs: "1",
	}
	got, ok := gossip.ParseServer(gossip.Member{Name: "n", Addr: netip.MustParseAddr("10.0.0.1"), Port: 8301, Status: gossip.Alive, Tags: want.Tags()})
	want.Name, want.Status, want.RaftVersion, want.Version, want.Gossip = "n", gossip.Alive, 3, 2, netip.MustParseAddrPort("10.0.0.1:8301")
	if !ok || !cmp.Equal(got, want, cmpopts.EquateComparable(netip.AddrPort{})) {
		t.Errorf("%v: %s", ok, cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})))
	}
	for name, tags := range map[string]map[string]string{
		"a client": gossip.ClientTags("dc1", "id", "1"), "no port": {"role": "consul", "dc": "dc1", "id": "x"},
		"a port too large": {"role": "consul", "dc": "dc1", "id": "x", "port": "70000"},
	} {
		if _, ok := gossip.ParseServer(gossip.Member{Tags: tags}); ok {
			t.Errorf("%s passes for a server", name)
		}
	}
}
