package dns_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	sarndns "github.com/sarnmesh/sarn/client/dns"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// withQueries adds prepared queries to a source.
func withQueries(f *fakeSource) *fakeSource {
	var ordered []*catalog.Instance
	for _, i := range []int{3, 1, 2} {
		ordered = append(ordered, instance(fmt.Sprintf("n%d", i), fmt.Sprintf("10.1.1.%d", i), "web", "", 80, "critical"))
	}
	far := instance("far", "10.3.3.3", "web", "", 80)
	far.Node.Datacenter, far.Node.TaggedAddresses = "dc2", map[string]string{"wan": "192.0.2.7"}
	alias := instance("n1", "10.1.1.1", "e", "my.query.consul", 443)
	f.queries = map[string]*query.ExecuteReply{
		"my":        {Service: "web", Instances: ordered, DNS: query.DNS{TTL: "11s"}, Datacenter: "dc1"},
		"with.dots": {Service: "web", Instances: ordered[:1], Datacenter: "dc1"},
		"zero":      {Service: "web", Instances: ordered[:1], DNS: query.DNS{TTL: "0s"}, Datacenter: "dc1"},
		"none":      {Service: "web", Datacenter: "dc1"},
		"far":       {Service: "web", Instances: []*catalog.Instance{far}, Datacenter: "dc2", Failovers: 1},
	}
	f.services["alias"] = []*catalog.Instance{alias}
	return f
}

func TestQueryAnswers(t *testing.T) {
	my := func(name string) []string {
		return []string{name + " 11 A 10.1.1.3", name + " 11 A 10.1.1.1", name + " 11 A 10.1.1.2"}
	}
	soa := []string{"consul. 0 SOA ns.consul. hostmaster.consul."}
	tests := []struct {
		name, qtype string
		rcode       int
		answer, ns  []string
	}{
		{name: "my.query.consul.", qtype: "A", answer: my("my.query.consul.")}, // in the order of the query, whatever the checks say
		{name: "MY.Query.DC1.consul.", qtype: "A", answer: my("MY.Query.DC1.consul.")},
		{name: "_my._tcp.query.consul.", qtype: "SRV", answer: []string{
			"_my._tcp.query.consul. 11 SRV 1 7 80 n3.node.dc1.consul.", "_my._tcp.query.consul. 11 SRV 1 7 80 n1.node.dc1.consul.",
			"_my._tcp.query.consul. 11 SRV 1 7 80 n2.node.dc1.consul.",
		}},
		{name: "_my._anything.query.consul.", qtype: "A", answer: my("_my._anything.query.consul.")},
		{name: "with.dots.query.consul.", qtype: "A", answer: []string{"with.dots.query.consul. 60 A 10.1.1.3"}}, // the service's TTL
		{name: "_with.dots._udp.query.consul.", qtype: "A", answer: []string{"_with.dots._udp.query.consul. 60 A 10.1.1.3"}},
		{name: "zero.query.consul.", qtype: "A", answer: []string{"zero.query.consul. 0 A 10.1.1.3"}},
		{name: "far.query.consul.", qtype: "A", answer: []string{"far.query.consul. 60 A 192.0.2.7"}},
		{name: "far.query.sarn.", qtype: "SRV", answer: []string{"far.query.sarn. 60 SRV 1 7 80 c0000207.addr.dc2.sarn."}},
		{name: "my.query.consul.", qtype: "AAAA", ns: soa},
		{name: "my.query.consul.", qtype: "MX", ns: soa},
		{name: "none.query.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "unknown.query.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "my.query.dc9.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "my.query.dc1.dc.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "query.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "alias.service.consul.", qtype: "A", answer: append([]string{"alias.service.consul. 0 CNAME my.query.consul."},
			"my.query.consul. 0 A 10.1.1.3", "my.query.consul. 0 A 10.1.1.1", "my.query.consul. 0 A 10.1.1.2")},
	}
	s := server(func(c *sarndns.Config) {
		c.Source = withQueries(source())
		c.Settings.ServiceTTL = map[string]time.Duration{"we*": time.Minute}
		c.Settings.TranslateWAN = true
		c.Settings.OnlyPassing = true
		c.Settings.UDPAnswerLimit = 8
	})
	for _, tt := range tests {
		t.Run(tt.name+" "+tt.qtype, func(t *testing.T) {
			got := ask(t, s, tt.name, tt.qtype, nil, false)
			if got.Rcode != tt.rcode || !got.Authoritative {
				t.Errorf("rcode %s, aa %v", dns.RcodeToString[got.Rcode], got.Authoritative)
			}
			if diff := cmp.Diff(tt.answer, brief(got.Answer)); diff != "" {
				t.Errorf("answer (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.ns, brief(got.Ns)); diff != "" {
				t.Errorf("authority (-want +got):\n%s", diff)
			}
		})
	}
}

func TestQueryLimits(t *testing.T) {
	s := server(func(c *sarndns.Config) {
		c.Source = withQueries(source())
		c.Settings.ARecordLimit = 2
	})
	if got := ask(t, s, "my.query.consul.", "A", nil, true); len(got.Answer) != 2 {
		t.Errorf("%d address records, want 2", len(got.Answer))
	}
	if got := ask(t, s, "my.query.consul.", "SRV", nil, true); len(got.Answer) != 3 || len(got.Extra) != 3 {
		t.Errorf("%d SRV records with %d more, want 3 with 3", len(got.Answer), len(got.Extra))
	}
}

func TestQueryFailures(t *testing.T) {
	f := withQueries(source())
	s := server(func(c *sarndns.Config) { c.Source = f })
	f.err = wireerr.ErrNoLeader
	if got := ask(t, s, "my.query.consul.", "A", nil, false); got.Rcode != dns.RcodeServerFailure || len(got.Ns) != 0 {
		t.Errorf("no leader: %v", got)
	}
	f.err = wireerr.ErrPermissionDenied
	if got := ask(t, s, "my.query.consul.", "A", nil, false); got.Rcode != dns.RcodeNameError || len(got.Ns) != 1 {
		t.Errorf("denied: %v", got)
	}
}

func TestQueryRequests(t *testing.T) {
	f := withQueries(source())
	s := server(func(c *sarndns.Config) {
		c.Source = f
		c.Token = func() string { return "secret" }
	})
	subnet := func(ip string, bits uint8) func(*dns.Msg) {
		return func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			addr := net.ParseIP(ip)
			family := uint16(2)
			if v4 := addr.To4(); v4 != nil {
				addr, family = v4, 1
			}
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: family, SourceNetmask: bits, Address: addr})
		}
	}
	tests := []struct {
		name, question, client string
		edit                   func(*dns.Msg)
		ip                     string
		scope                  int // -1 for no option
	}{
		{"the client", "my.query.dc2.consul.", "10.7.7.7", nil, "10.7.7.7", -1},
		{"mapped", "my.query.dc2.consul.", "::ffff:10.7.7.7", nil, "10.7.7.7", -1},
		{"not known", "my.query.dc2.consul.", "", nil, "", -1},
		{"on behalf of a subnet", "my.query.dc2.consul.", "10.7.7.7", subnet("198.51.100.0", 24), "198.51.100.0", 24},
		{"of another family", "my.query.dc2.consul.", "10.7.7.7", subnet("2001:db8::", 32), "2001:db8::", 32},
		{"by an alias", "alias.service.consul.", "10.7.7.7", subnet("198.51.100.0", 24), "198.51.100.0", 24},
		{"a service is for everybody", "web.service.consul.", "10.7.7.7", subnet("198.51.100.0", 24), "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.executed = nil
			m := new(dns.Msg)
			m.SetQuestion(tt.question, dns.TypeA)
			if tt.edit != nil {
				tt.edit(m)
			}
			client, _ := netip.ParseAddr(tt.client)
			resp := s.AnswerTo(t.Context(), client, m, false)
			scope := -1
			if opt := resp.IsEdns0(); opt != nil {
				scope = int(opt.Option[0].(*dns.EDNS0_SUBNET).SourceScope)
			}
			if scope != tt.scope {
				t.Errorf("scope %d, want %d", scope, tt.scope)
			}
			if f.executed == nil {
				if tt.ip != "" {
					t.Error("no query executed")
				}
				return
			}
			want := &query.ExecuteRequest{
				Options: read.Options{Target: read.Target{Token: "secret"}, Mode: read.Stale, MaxStale: 87600 * time.Hour},
				Query:   "my", Origin: query.Origin{IP: tt.ip},
			}
			if tt.name != "by an alias" {
				want.Datacenter = "dc2"
			}
			if diff := cmp.Diff(want, f.executed); diff != "" {
				t.Errorf("request (-want +got):\n%s", diff)
			}
		})
	}
}
