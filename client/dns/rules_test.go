package dns_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	sarndns "github.com/sarnmesh/sarn/client/dns"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// recorder notes what a source is asked.
type recorder struct {
	*fakeSource
	asked string
}

func (r *recorder) Instances(ctx context.Context, req *catalog.InstancesRequest) (*catalog.InstancesReply, sarndns.Standing, error) {
	r.asked = fmt.Sprintf("instances %s tags=%v peer=%s dc=%s", req.Service, req.Tags, req.Peer, req.Datacenter)
	if req.Connect {
		r.asked += " connect"
	}
	if req.Ingress {
		r.asked += " ingress"
	}
	return r.fakeSource.Instances(ctx, req)
}

func (r *recorder) Node(ctx context.Context, req *catalog.NodeServicesRequest) (*catalog.NodeServicesReply, sarndns.Standing, error) {
	r.asked = fmt.Sprintf("node %s peer=%s dc=%s", req.Node, req.Peer, req.Datacenter)
	return r.fakeSource.Node(ctx, req)
}

func (r *recorder) Virtual(ctx context.Context, o read.Options, service, peer string) (netip.Addr, error) {
	r.asked = fmt.Sprintf("virtual %s peer=%s", service, peer)
	return r.fakeSource.Virtual(ctx, o, service, peer)
}

// What each form of a name asks of the catalog; nothing for forms that are none.
func TestNamesAskForWhatTheyMean(t *testing.T) {
	long := strings.Repeat("a", 63)
	tests := []struct{ name, qtype, asks string }{
		{"web.service", "A", "instances web tags=[] peer= dc="},
		{"WEB.SERVICE", "A", "instances web tags=[] peer= dc="},
		{"web.service.dc2", "A", "instances web tags=[] peer= dc=dc2"},
		{"web.service.DC2.dc", "A", "instances web tags=[] peer= dc=dc2"},
		{"web.service.dc1.dc.dc2.dc", "A", "instances web tags=[] peer= dc=dc2"},
		{"web.service.east.peer", "A", "instances web tags=[] peer=east dc="},
		{"web.service.east.peer.west.peer", "A", "instances web tags=[] peer=west dc="},
		{"web.service.east.peer.dc1.dc", "A", ""},
		{"web.service.dc1.dc.east.peer", "A", ""},
		{"web.service.team.ns", "A", ""},
		{"web.service.team.ns.part.ap", "A", ""},
		{"web.service.group.sg", "A", ""},
		{"web.service.a.b.c", "A", ""},
		{"web.service.a.dc.b.dc.c.dc", "A", ""},
		{"service", "A", ""},
		{"service.dc1", "A", ""},
		{"v1.web.service", "A", "instances web tags=[v1] peer= dc="},
		{"v1.2.web.service.dc2", "A", "instances web tags=[v1.2] peer= dc=dc2"},
		{"node.web.service", "A", "instances web tags=[node] peer= dc="}, // the kind is the first from the right
		{"web.service.node", "A", "node web.service peer= dc="},
		{"_web._tcp.service", "SRV", "instances web tags=[] peer= dc="},
		{"_web._tcp.service.dc2", "A", "instances web tags=[] peer= dc=dc2"},
		{"_web._v1.service", "A", "instances web tags=[v1] peer= dc="},
		{"_web._udp.service.east.peer", "SRV", "instances web tags=[udp] peer=east dc="},
		{"v1._web._tcp.service", "A", "instances _tcp tags=[v1._web] peer= dc="}, // not exactly two parts
		{"_web.tcp.service", "A", "instances tcp tags=[_web] peer= dc="},         // not both with a bar
		{"_._tcp.service", "SRV", ""},
		{"_web._tcp", "SRV", "instances web tags=[] peer= dc="},
		{"_web._tcp.dc2", "SRV", "instances web tags=[] peer= dc=dc2"},
		{"_web._tcp", "A", ""},
		{"web.connect", "A", "instances web tags=[] peer= dc= connect"},
		{"web.connect.dc2", "A", "instances web tags=[] peer= dc=dc2 connect"},
		{"web.connect.east.peer", "A", "instances web tags=[] peer= dc= connect"},
		{"web.ingress.dc2.dc", "A", "instances web tags=[] peer= dc=dc2 ingress"},
		{"web.ingress.east.peer", "A", "instances web tags=[] peer= dc= ingress"},
		{"connect", "A", ""},
		{"n1.node", "A", "node n1 peer= dc="},
		{"N1.Node.DC2", "AAAA", "node n1 peer= dc=dc2"},
		{"name.with.dots.node.dc2.dc", "ANY", "node name.with.dots peer= dc=dc2"},
		{"n1.node.east.peer", "A", "node n1 peer=east dc="},
		{"n1.node", "SRV", ""}, // answered without looking
		{"node", "A", ""},
		{"node.dc1", "A", ""},
		{"web.virtual", "A", "virtual web peer="},
		{"web.virtual.east", "SRV", "virtual web peer=east"},
		{"web.virtual.east.peer", "A", "virtual web peer=east"},
		{"a.web.virtual", "A", ""},
		{"virtual", "A", ""},
		{"0a090807.addr", "A", ""},
		{"0a090807.addr.x.y.z", "A", ""},
		{"_.query", "A", ""},
		{"query", "A", ""},
		{"unknown", "A", ""},
		{"", "A", ""},
		{`my\ web.service`, "A", "instances my web tags=[] peer= dc="},
		{`a\.b.service`, "A", "instances a.b tags=[] peer= dc="}, // one label, not a tag
		{`a\.b.web.service`, "A", "instances web tags=[a.b] peer= dc="},
		{`a\\b\200.node`, "A", "node a\\b\xc8 peer= dc="},
		{long + ".service", "A", "instances " + long + " tags=[] peer= dc="},
	}
	for _, tt := range tests {
		for _, domain := range []string{"consul.", "SARN."} {
			t.Run(tt.name+"."+domain+" "+tt.qtype, func(t *testing.T) {
				r := &recorder{fakeSource: source()}
				name := tt.name + "." + domain
				if tt.name == "" {
					name = domain
				}
				resp := ask(t, server(func(c *sarndns.Config) { c.Source = r }), name, tt.qtype, nil, false)
				if r.asked != tt.asks {
					t.Errorf("asks for %q, want %q", r.asked, tt.asks)
				}
				if resp.Question[0].Name != name || !resp.Authoritative {
					t.Errorf("got %v", resp)
				}
			})
		}
	}
}

// peered marks an instance as one of a peer.
func peered(in *catalog.Instance) *catalog.Instance {
	in.Node.PeerName, in.Node.Datacenter = "east", "dc7"
	return in
}

// tagged gives an instance addresses for what is asked.
func tagged(in *catalog.Instance, node map[string]string, service map[string]string, wanPort int) *catalog.Instance {
	in.Node.TaggedAddresses = node
	in.Service.TaggedAddresses = map[string]catalog.ServiceAddress{}
	for tag, a := range service {
		in.Service.TaggedAddresses[tag] = catalog.ServiceAddress{Address: a, Port: wanPort}
	}
	return in
}

func abroad(in *catalog.Instance) *catalog.Instance {
	in.Node.Datacenter = "dc2"
	return in
}

// ruled is a source of what the rules below are about.
func ruled() *fakeSource {
	f := source()
	long := strings.Repeat("x", 64)
	all := map[string]string{"lan": "10.5.5.1", "lan_ipv4": "10.5.5.4", "lan_ipv6": "2001:db8::54", "wan": "192.0.2.1", "wan_ipv4": "192.0.2.4", "wan_ipv6": "2001:db8::94"}
	for name, list := range map[string][]*catalog.Instance{
		"twice":     {instance("n1", "10.1.1.1", "a", "", 80), instance("n1", "10.1.1.1", "b", "", 80), instance("n1", "10.1.1.1", "c", "10.1.1.1", 80)},
		"nodetags":  {tagged(abroad(instance("t", "10.5.5.5", "a", "", 80)), all, nil, 0)},
		"svctags":   {tagged(abroad(instance("t", "10.5.5.5", "a", "10.6.6.6", 80)), nil, all, 8080)},
		"plain2":    {abroad(instance("t", "10.5.5.5", "a", "", 80))},
		"peered":    {peered(instance("p", "10.7.7.7", "a", "", 80))},
		"peeredsvc": {peered(instance("p", "10.7.7.7", "a", "10.8.8.8", 80))},
		"mixed":     {instance("n1", "10.1.1.1", "a", "www.example.com", 80), instance("n2", "10.1.1.2", "b", "", 80)},
		"names":     {instance("n1", "10.1.1.1", "a", "one.example.com", 80)},
		"named":     {instance("n1", "db.example.com", "a", "", 80)},
		"nowhere":   {instance("n1", "", "a", "", 80)},
		"unnameful": {instance("n1", "10.1.1.1", "a", long+".example.com", 80)},
		"onlong":    {instance(long, "10.1.1.9", "a", "", 80)},
		"onodd":     {instance(`a b\c`, "10.1.1.8", "a", "", 80)},
		"six":       {instance("n6", "2001:db8::5", "a", "", 80)},
		"noweight":  {{Node: &catalog.Node{Node: "n1", Address: "10.1.1.1", Datacenter: "dc1"}, Service: &catalog.Service{Service: "noweight", Port: 1}}},
		"nodesick":  {instance("n1", "10.1.1.1", "a", "", 80, "passing", "maintenance")},
		"odd.name":  {instance("n1", "10.1.1.1", "a", "10.9.9.9", 80)},
	} {
		f.services[name] = list
	}
	f.nodes["alias"] = &catalog.Node{Node: "alias", Address: "n1.node.consul", Datacenter: "dc1"}
	f.nodes["empty"] = &catalog.Node{Node: "empty", Datacenter: "dc1"}
	f.nodes["both"] = &catalog.Node{Node: "both", Address: "10.5.5.5", Datacenter: "dc1", TaggedAddresses: all}
	f.nodes["texts"] = &catalog.Node{Node: "texts", Address: "10.5.5.6", Datacenter: "dc1", Meta: map[string]string{
		"a=b": "c`d", " e ": "=f", "RFC1035-x": "alone", `back\slash`: `\\1\`, "long": strings.Repeat("y", 300),
	}}
	return f
}

// Records by the type asked and by what the catalog has.
func TestRecordRules(t *testing.T) {
	soa := []string{"consul. 0 SOA ns.consul. hostmaster.consul."}
	tests := []struct {
		name, qtype       string
		rcode             int
		answer, ns, extra []string
	}{
		{name: "twice.service.consul.", qtype: "A", answer: []string{"twice.service.consul. 0 A 10.1.1.1"}},
		{name: "twice.service.consul.", qtype: "TXT", answer: []string{"twice.service.consul. 0 A 10.1.1.1"}},
		{name: "both.node.consul.", qtype: "A", answer: []string{"both.node.consul. 9 A 10.5.5.4"}},
		{name: "both.node.consul.", qtype: "AAAA", answer: []string{"both.node.consul. 9 AAAA 2001:db8::54"}},
		{name: "both.node.consul.", qtype: "ANY", answer: []string{"both.node.consul. 9 A 10.5.5.5"}},
		{name: "both.node.dc2.consul.", qtype: "A", answer: []string{"both.node.dc2.consul. 9 A 192.0.2.4"}},
		{name: "both.node.dc2.consul.", qtype: "AAAA", answer: []string{"both.node.dc2.consul. 9 AAAA 2001:db8::94"}},
		{name: "both.node.dc2.consul.", qtype: "ANY", answer: []string{"both.node.dc2.consul. 9 A 192.0.2.1"}},
		{name: "both.node.consul.", qtype: "MX"},
		{name: "gone.node.consul.", qtype: "MX"},
		{name: "alias.node.consul.", qtype: "AAAA", answer: []string{"alias.node.consul. 9 CNAME n1.node.consul.", "n1.node.consul. 9 A 10.1.1.1"}},
		{name: "empty.node.consul.", qtype: "A"},
		{name: "nodetags.service.dc1.consul.", qtype: "A", answer: []string{"nodetags.service.dc1.consul. 7 A 10.5.5.4"}},
		{name: "nodetags.service.dc2.consul.", qtype: "A", answer: []string{"nodetags.service.dc2.consul. 7 A 192.0.2.4"}},
		{name: "nodetags.service.dc2.consul.", qtype: "AAAA", answer: []string{"nodetags.service.dc2.consul. 7 AAAA 2001:db8::94"}},
		{name: "nodetags.service.dc2.consul.", qtype: "SRV", answer: []string{"nodetags.service.dc2.consul. 7 SRV 1 7 80 c0000201.addr.dc2.consul."}, extra: []string{"c0000201.addr.dc2.consul. 7 A 192.0.2.1"}},
		{name: "svctags.service.consul.", qtype: "A", answer: []string{"svctags.service.consul. 7 A 10.5.5.4"}},
		{name: "svctags.service.consul.", qtype: "SRV", answer: []string{"svctags.service.consul. 7 SRV 1 7 80 0a060606.addr.dc2.consul."}, extra: []string{"0a060606.addr.dc2.consul. 7 A 10.6.6.6"}},
		{name: "svctags.service.dc2.consul.", qtype: "SRV", answer: []string{"svctags.service.dc2.consul. 7 SRV 1 7 8080 c0000201.addr.dc2.consul."}, extra: []string{"c0000201.addr.dc2.consul. 7 A 192.0.2.1"}},
		{name: "plain2.service.dc2.consul.", qtype: "SRV", answer: []string{"plain2.service.dc2.consul. 0 SRV 1 7 80 t.node.dc2.consul."}, extra: []string{"t.node.dc2.consul. 0 A 10.5.5.5"}}, // nothing was translated
		{name: "peered.service.east.peer.consul.", qtype: "SRV", answer: []string{"peered.service.east.peer.consul. 0 SRV 1 7 80 p.node.east.peer.consul."}, extra: []string{"p.node.east.peer.consul. 0 A 10.7.7.7"}},
		{name: "peeredsvc.service.east.peer.CONSUL.", qtype: "SRV", answer: []string{"peeredsvc.service.east.peer.CONSUL. 0 SRV 1 7 80 0a080808.addr.CONSUL."}, extra: []string{"0a080808.addr.CONSUL. 0 A 10.8.8.8"}},
		{name: "mixed.service.consul.", qtype: "A", answer: []string{"mixed.service.consul. 0 A 10.1.1.2"}}, // addresses win
		{name: "named.service.consul.", qtype: "AAAA", answer: []string{"named.service.consul. 0 CNAME db.example.com.", "db.example.com. 0 A 192.0.2.80"}},
		{name: "names.service.consul.", qtype: "SRV", answer: []string{"names.service.consul. 0 SRV 1 7 80 one.example.com."}, extra: []string{"one.example.com. 0 A 192.0.2.80"}},
		{name: "self.service.consul.", qtype: "SRV", answer: []string{"self.service.consul. 0 SRV 1 7 80 n1.node.dc1.consul."}, extra: []string{"n1.node.dc1.consul. 0 A 10.1.1.1"}},
		{name: "nowhere.service.consul.", qtype: "A", ns: soa},
		{name: "nowhere.service.consul.", qtype: "SRV", ns: soa},
		{name: "unnameful.service.consul.", qtype: "SRV", ns: soa},
		{name: "onlong.service.consul.", qtype: "SRV", answer: []string{"onlong.service.consul. 0 SRV 1 7 80 0a010109.addr.dc1.consul."}, extra: []string{"0a010109.addr.dc1.consul. 0 A 10.1.1.9"}},
		{name: "onodd.service.consul.", qtype: "SRV", answer: []string{`onodd.service.consul. 0 SRV 1 7 80 a\ b\\c.node.dc1.consul.`}, extra: []string{`a\ b\\c.node.dc1.consul. IN A 10.1.1.8`}}, // the owner is two fields
		{name: "six.service.consul.", qtype: "A", ns: soa},
		{name: "six.service.consul.", qtype: "ANY", answer: []string{"six.service.consul. 0 AAAA 2001:db8::5"}},
		{name: "six.service.consul.", qtype: "SRV", answer: []string{"six.service.consul. 0 SRV 1 7 80 n6.node.dc1.consul."}, extra: []string{"n6.node.dc1.consul. 0 AAAA 2001:db8::5"}},
		{name: "noweight.service.consul.", qtype: "SRV", answer: []string{"noweight.service.consul. 0 SRV 1 1 1 n1.node.dc1.consul."}, extra: []string{"n1.node.dc1.consul. 0 A 10.1.1.1"}},
		{name: "nodesick.service.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "web.service.consul.", qtype: "HTTPS", ns: soa},
		{name: "gone.service.consul.", qtype: "HTTPS", rcode: dns.RcodeNameError, ns: soa},
		{name: "gone.service.SARN.", qtype: "A", rcode: dns.RcodeNameError, ns: []string{"sarn. 0 SOA ns.sarn. hostmaster.sarn."}},
		{name: "WEB.Virtual.Consul.", qtype: "TXT", answer: []string{"web.virtual.consul. 9 A 240.0.0.1"}},
		{name: "0A090807.addr.DC1.consul.", qtype: "ANY", answer: []string{"0a090807.addr.dc1.consul. 9 A 10.9.8.7"}},
		{name: "0a090807.addr.consul.", qtype: "TXT", extra: []string{"0a090807.addr.consul. 9 A 10.9.8.7"}},
		{name: "0a090807.addr.consul.", qtype: "SRV", extra: []string{"0a090807.addr.consul. 9 A 10.9.8.7"}},
		{name: "20010db8000000000000000000000005.addr.consul.", qtype: "AAAA", answer: []string{"20010db8000000000000000000000005.addr.consul. 9 AAAA 2001:db8::5"}},
		{name: "20010db8000000000000000000000005.addr.consul.", qtype: "A", extra: []string{"20010db8000000000000000000000005.addr.consul. 9 AAAA 2001:db8::5"}},
		{name: "0a0908.addr.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "x.0a090807.addr.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "1.1.1.10.IN-ADDR.arpa.", qtype: "A", answer: []string{"1.1.1.10.IN-ADDR.arpa. 0 PTR n1.node.dc1.consul."}},
		{name: "1.1.1.10.in-addr.arpa.", qtype: "SOA", answer: []string{"1.1.1.10.in-addr.arpa. 0 PTR n1.node.dc1.consul."}, ns: soa},
		{name: "7.7.7.7.in-addr.arpa.", qtype: "PTR", answer: []string{"7.7.7.7.in-addr.arpa. 0 PTR web.service.dc1.consul."}},
		{name: "8.8.8.8.in-addr.arpa.", qtype: "PTR", answer: []string{`8.8.8.8.in-addr.arpa. 0 PTR odd\.name.service.dc1.consul.`}},
		{name: "1.1.10.in-addr.arpa.", qtype: "PTR", rcode: dns.RcodeServerFailure}, // asked of the recursor, which does not know
		{name: "web.service.consul.", qtype: "IXFR", ns: soa},
		{name: `web\.service.consul.`, qtype: "A", rcode: dns.RcodeNameError, ns: soa},
	}
	src := &serviceAddresses{ruled()}
	s := server(func(c *sarndns.Config) {
		c.Source = src
		c.Settings.NodeTTL, c.Settings.ServiceTTL = 9*time.Second, map[string]time.Duration{"NodeTags": 7 * time.Second, "svc*": 7 * time.Second}
		c.Settings.TranslateWAN = true
		c.Settings.Recursors, c.Settings.RecursorTimeout = []string{"good:53"}, time.Minute
		c.Exchange = func(_ context.Context, _, _ string, m *dns.Msg) (*dns.Msg, error) {
			if !strings.HasSuffix(m.Question[0].Name, "example.com.") || m.Question[0].Qtype != dns.TypeA || m.IsEdns0() != nil {
				return nil, fmt.Errorf("unexpected question %v", m)
			}
			resp := new(dns.Msg).SetReply(m)
			rr, err := dns.NewRR(m.Question[0].Name + " 77 IN A 192.0.2.80")
			resp.Answer = []dns.RR{rr}
			return resp, err
		}
	})
	for _, tt := range tests {
		t.Run(tt.name+" "+tt.qtype, func(t *testing.T) {
			got := ask(t, s, tt.name, tt.qtype, nil, false)
			if got.Rcode != tt.rcode || got.Authoritative != (tt.rcode != dns.RcodeServerFailure) || !got.RecursionAvailable {
				t.Errorf("rcode %s, aa %v, ra %v", dns.RcodeToString[got.Rcode], got.Authoritative, got.RecursionAvailable)
			}
			for _, section := range []struct {
				name      string
				want, got []string
			}{{"answer", tt.answer, brief(got.Answer)}, {"authority", tt.ns, brief(got.Ns)}, {"additional", tt.extra, brief(got.Extra)}} {
				if diff := cmp.Diff(section.want, section.got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", section.name, diff)
				}
			}
		})
	}
}

// serviceAddresses has two addresses that are of services only.
type serviceAddresses struct{ *fakeSource }

func (s *serviceAddresses) Address(ctx context.Context, req *catalog.AddressRequest) (*catalog.AddressReply, error) {
	switch req.Address {
	case "7.7.7.7":
		return &catalog.AddressReply{Service: "web"}, nil
	case "8.8.8.8":
		return &catalog.AddressReply{Service: "odd.name"}, nil
	}
	return s.fakeSource.Address(ctx, req)
}

// Texts of metadata are told as RFC 1464 has it, whatever is in them.
func TestTextsOfNodes(t *testing.T) {
	got := ask(t, server(func(c *sarndns.Config) { c.Source = ruled() }), "texts.node.consul.", "TXT", func(m *dns.Msg) { m.SetEdns0(4096, false) }, false)
	packed, err := got.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\x09a`=b=c``d", "\x08` e` ==f", "\x05alone", "\x0fback\\slash=\\\\1\\", "\xfflong=" + strings.Repeat("y", 250) + "\x32" + strings.Repeat("y", 50)} {
		if !strings.Contains(string(packed), want) {
			t.Errorf("no text %q in %q", want, packed)
		}
	}
	if len(got.Answer) != 5 {
		t.Errorf("%d texts, want 5", len(got.Answer))
	}
}

// Messages that are no ordinary questions of the Internet.
func TestMessagesOfOtherKinds(t *testing.T) {
	edns := func(m *dns.Msg) { m.SetEdns0(1232, false) }
	asked := 0
	s := server(func(c *sarndns.Config) {
		c.Settings.Recursors = []string{"good:53"}
		c.Exchange = func(_ context.Context, _, _ string, m *dns.Msg) (*dns.Msg, error) {
			asked++
			return nil, context.DeadlineExceeded
		}
	})
	alone := server(nil)
	for _, tt := range []struct {
		name     string
		s        *sarndns.Server
		question string
		edit     func(*dns.Msg)
		rcode    int
		aa, ra   bool
		asks     int
	}{
		{"another class", s, "web.service.consul.", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused, false, false, 0},
		{"another class of addresses", s, "1.1.1.10.in-addr.arpa.", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassHESIOD }, dns.RcodeRefused, false, false, 0},
		{"any class", s, "web.service.consul.", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassANY }, dns.RcodeSuccess, true, true, 0},
		{"the version of the server", alone, "version.bind.", func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }, dns.RcodeRefused, false, false, 0},
		{"a notification", s, "consul.", func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, dns.RcodeNotImplemented, false, false, 0},
		{"an update", s, "consul.", func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }, dns.RcodeNotImplemented, false, false, 0},
		{"a question for the status", s, "consul.", func(m *dns.Msg) { m.Opcode = dns.OpcodeStatus }, dns.RcodeNotImplemented, false, false, 0},
		{"two questions", s, "consul.", func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, dns.RcodeFormatError, false, false, 0},
		{"no question", s, "consul.", func(m *dns.Msg) { m.Question = nil }, dns.RcodeFormatError, false, false, 0},
		{"outside, with EDNS0", alone, "www.example.com.", edns, dns.RcodeRefused, false, false, 0},
		{"outside, nobody answers", s, "www.example.com.", edns, dns.RcodeServerFailure, false, true, 1},
		{"a transfer", s, "consul.", func(m *dns.Msg) { edns(m); m.Question[0].Qtype = dns.TypeAXFR }, dns.RcodeNotImplemented, true, true, 0},
		{"a label that ends like the zone", alone, `a\.consul.`, nil, dns.RcodeRefused, false, false, 0},
		{"a label with an escape before the zone", alone, `a\\.consul.`, nil, dns.RcodeNameError, true, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			asked = 0
			m := new(dns.Msg)
			m.SetQuestion(tt.question, dns.TypeA)
			m.CheckingDisabled = true
			if tt.edit != nil {
				tt.edit(m)
			}
			got := tt.s.Answer(t.Context(), m, false)
			if got.Rcode != tt.rcode || got.Authoritative != tt.aa || got.RecursionAvailable != tt.ra || asked != tt.asks || got.Opcode != m.Opcode || got.Id != m.Id ||
				!got.Response || !got.RecursionDesired && m.Opcode == dns.OpcodeQuery && len(m.Question) == 1 {
				t.Errorf("asked %d times, got %v", asked, got)
			}
			if (got.IsEdns0() != nil) != (m.IsEdns0() != nil) {
				t.Errorf("the answer has OPT: %v", got)
			}
		})
	}
}

func TestNameServers(t *testing.T) {
	f := source()
	f.services["consul"] = nil
	for i, name := range []string{"Server-1", "server-2", "server.3", "server-4", "server-5", "server_6"} {
		in := instance(name, fmt.Sprintf("10.1.1.%d", i+1), "consul", "", 8300, "passing")
		f.services["consul"] = append(f.services["consul"], in)
	}
	f.services["consul"][1].Checks[0].Status = catalog.Critical
	f.services["consul"][4].Node.Address = "2001:db8::5"
	s := server(func(c *sarndns.Config) { c.Source, c.Settings.NodeTTL, c.Settings.SOAMinTTL = f, 5*time.Second, 3 })
	seen := map[string]bool{}
	for range 200 {
		got := ask(t, s, "Consul.", "NS", nil, false)
		if len(got.Answer) != 3 || len(got.Extra) != 3 || len(got.Ns) != 0 {
			t.Fatal(got)
		}
		for i, rr := range got.Answer {
			ns := rr.(*dns.NS)
			seen[fmt.Sprint(i, ns.Ns)] = true
			if ns.Hdr.Name != "consul." || ns.Hdr.Ttl != 5 || got.Extra[i].Header().Name != ns.Ns || got.Extra[i].Header().Ttl != 5 {
				t.Fatal(got)
			}
		}
	}
	want := []string{}
	for i := range 3 {
		for _, name := range []string{"server-1", "server-4", "server-5"} {
			want = append(want, fmt.Sprint(i, name, ".node.dc1.consul."))
		}
	}
	if diff := cmp.Diff(want, slices.Sorted(func(yield func(string) bool) {
		for name := range seen {
			if !yield(name) {
				return
			}
		}
	})); diff != "" {
		t.Errorf("name servers by place (-want +got):\n%s", diff)
	}
	before := uint32(time.Now().Unix())
	got := ask(t, s, "what.ever.SARN.", "SOA", nil, false)
	soa := got.Answer[0].(*dns.SOA)
	if soa.Serial < before || soa.Serial > before+60 {
		t.Errorf("serial %d", soa.Serial)
	}
	soa.Serial = 0
	if diff := cmp.Diff("sarn.\t3\tIN\tSOA\tns.sarn. hostmaster.sarn. 0 3600 600 86400 3", soa.String()); diff != "" || len(got.Ns) != 3 || len(got.Extra) != 3 {
		t.Errorf("%s %v", diff, got)
	}
	// What is dropped first when there is too much is the authority.
	for _, in := range f.services["consul"] {
		in.Node.Node = strings.Repeat("s", 50) + strings.ReplaceAll(in.Node.Node, "Server", "t")
	}
	m := new(dns.Msg)
	m.SetQuestion("what.ever.consul.", dns.TypeSOA)
	resp := s.Answer(t.Context(), m, false)
	if len(resp.Answer) != 1 || len(resp.Ns) != 0 || resp.Truncated {
		t.Errorf("%v", resp)
	}
}

func TestTTLs(t *testing.T) {
	s := server(func(c *sarndns.Config) {
		c.Source = withQueries(source())
		c.Settings.NodeTTL = 9 * time.Second
		c.Settings.ServiceTTL = map[string]time.Duration{"*": 5 * time.Second, "we*": 10 * time.Second, "Self": 15 * time.Second, "warn*": 0}
	})
	for name, want := range map[string]uint32{
		"web.service.consul. A": 10, "web.service.consul. SRV": 10, "self.service.consul. A": 15, "inner.service.consul. A": 5, "inner.service.consul. SRV": 5,
		"warned.service.consul. A": 0, "my.query.consul. A": 11, "zero.query.consul. A": 0, "with.dots.query.consul. SRV": 10, "n1.node.consul. A": 9, "n1.node.consul. TXT": 9,
		"0a090807.addr.consul. A": 9, "web.virtual.consul. A": 9, "consul. NS": 9, "1.1.1.10.in-addr.arpa. PTR": 0,
	} {
		qname, qtype, _ := strings.Cut(name, " ")
		got := ask(t, s, qname, qtype, nil, false)
		for _, rr := range append(got.Answer, got.Extra...) {
			if rr.Header().Ttl != want {
				t.Errorf("%s: %v, want TTL %d", name, rr, want)
			}
		}
		if len(got.Answer) == 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestOnlyPassingLeavesOutWarnings(t *testing.T) {
	s := server(func(c *sarndns.Config) { c.Settings.OnlyPassing = true })
	for name, want := range map[string]int{"web": dns.RcodeSuccess, "warned": dns.RcodeNameError, "sick": dns.RcodeNameError} {
		if got := ask(t, s, name+".service.consul.", "A", nil, false); got.Rcode != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if got := ask(t, s, "n1.node.consul.", "A", nil, false); len(got.Answer) != 1 { // nodes always are answered
		t.Errorf("%v", got)
	}
}

// Without EDNS0 only so much of a recursor's answer is kept.
func TestNamesOfOthersAreFollowed(t *testing.T) {
	s := server(func(c *sarndns.Config) {
		c.Settings.Recursors = []string{"good:53"}
		c.Exchange = func(_ context.Context, network, _ string, m *dns.Msg) (*dns.Msg, error) {
			if network != "udp" || m.Question[0].Qtype != dns.TypeA {
				t.Errorf("asks %v over %s", m, network)
			}
			resp := new(dns.Msg).SetReply(m)
			for _, text := range []string{"www.example.com. 5 IN CNAME a.example.com.", `a.example.com. 5 IN TXT "x"`} {
				rr, err := dns.NewRR(text)
				if err != nil {
					return nil, err
				}
				resp.Answer = append(resp.Answer, rr)
			}
			for i := range 9 {
				resp.Answer = append(resp.Answer, &dns.A{Hdr: dns.RR_Header{Name: "a.example.com.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5}, A: net.IPv4(192, 0, 2, byte(i))})
			}
			return resp, nil
		}
	})
	for _, tt := range []struct {
		edit func(*dns.Msg)
		want int
	}{{nil, 1 + 5}, {func(m *dns.Msg) { m.SetEdns0(4096, false) }, 1 + 10}} {
		got := ask(t, s, "external.service.consul.", "A", tt.edit, true)
		if len(got.Answer) != tt.want {
			t.Errorf("%d records, want %d", len(got.Answer), tt.want)
		}
		for _, rr := range got.Answer {
			if rr.Header().Ttl != 0 || rr.Header().Rrtype == dns.TypeTXT {
				t.Errorf("%v", rr)
			}
		}
	}
}

// However many instances there are, an answer over TCP has so many records.
func TestAnswersOverTCPAreBounded(t *testing.T) {
	f := source()
	for i := range 5000 {
		f.services["huge"] = append(f.services["huge"], instance(fmt.Sprint("h", i), fmt.Sprintf("10.%d.%d.%d", 100+i/62500, i/250%250, i%250), "h", "", 80))
	}
	for _, truncate := range []bool{false, true} {
		s := server(func(c *sarndns.Config) { c.Source, c.Settings.EnableTruncate = f, truncate })
		q := sarndns.NewQuick(s)
		q.TCP = true
		for qtype, most := range map[string]int{"A": 4096, "SRV": 1024} {
			m := new(dns.Msg)
			m.SetQuestion("huge.service.consul.", dns.StringToType[qtype])
			msg, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			q.Keep(msg)
			out, ok := q.Answer(msg)
			quick := new(dns.Msg)
			if err := quick.Unpack(out); err != nil || !ok {
				t.Fatal(ok, err)
			}
			for way, got := range map[string]*dns.Msg{"at once": quick, "the long way": ask(t, s, "huge.service.consul.", qtype, nil, true)} {
				if n := len(got.Answer); n > most || n < most*9/10 || got.Truncated != truncate {
					t.Errorf("%s, %s: %d answers, tc %v", qtype, way, n, got.Truncated)
				}
			}
		}
	}
}

func TestDisabledCompression(t *testing.T) {
	sizes := map[bool]int{}
	for _, off := range []bool{false, true} {
		s := server(func(c *sarndns.Config) { c.Settings.DisableCompression = off })
		packed, err := s.Answer(t.Context(), question("web.service.consul.", dns.TypeSRV), false).Pack()
		if err != nil {
			t.Fatal(err)
		}
		sizes[off] = len(packed)
	}
	if sizes[true] <= sizes[false] {
		t.Errorf("%d bytes without compression, %d with it", sizes[true], sizes[false])
	}
}

// How the catalog is asked, by the settings.
func TestConsistencyOfReads(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*sarndns.Settings)
		mode   read.Mode
		stale  time.Duration
	}{
		{"by default", func(*sarndns.Settings) {}, read.Stale, 87600 * time.Hour},
		{"of an age", func(s *sarndns.Settings) { s.MaxStale = time.Minute }, read.Stale, time.Minute},
		{"of the leader", func(s *sarndns.Settings) { s.AllowStale = false }, read.Default, 0},
		{"what is known", func(s *sarndns.Settings) { s.AllowStale, s.UseCache, s.CacheMaxAge = false, true, time.Second }, read.Stale, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &optionsSource{fakeSource: source()}
			s := server(func(c *sarndns.Config) {
				c.Source, c.Token = r, func() string { return "secret" }
				tt.change(&c.Settings)
			})
			ask(t, s, "web.service.dc2.consul.", "A", nil, false)
			want := read.Options{Target: read.Target{Datacenter: "dc2", Token: "secret"}, Mode: tt.mode, MaxStale: tt.stale}
			if diff := cmp.Diff(want, r.options); diff != "" {
				t.Error(diff)
			}
		})
	}
}

type optionsSource struct {
	*fakeSource
	options read.Options
}

func (o *optionsSource) Instances(ctx context.Context, req *catalog.InstancesRequest) (*catalog.InstancesReply, sarndns.Standing, error) {
	o.options = req.Options
	return o.fakeSource.Instances(ctx, req)
}

func TestFailuresByKind(t *testing.T) {
	for _, tt := range []struct {
		err   error
		rcode int
		soa   bool
	}{
		{wireerr.ErrNoLeader, dns.RcodeServerFailure, false},
		{context.DeadlineExceeded, dns.RcodeServerFailure, false},
		{wireerr.ErrTokenNotFound, dns.RcodeServerFailure, false},
		{wireerr.ErrPermissionDenied, dns.RcodeNameError, true},
		{wireerr.ErrNoDatacenter, dns.RcodeNameError, true},
	} {
		s := server(func(c *sarndns.Config) { c.Source.(*fakeSource).err = tt.err })
		for _, name := range []string{"web.service.consul.", "n1.node.consul.", "web.virtual.consul.", "9.9.9.9.in-addr.arpa."} {
			got := ask(t, s, name, "A", func(m *dns.Msg) { m.SetEdns0(1232, false) }, false)
			if got.Rcode != tt.rcode || len(got.Ns) == 1 != tt.soa || got.IsEdns0() == nil || got.Authoritative == (tt.rcode == dns.RcodeServerFailure) {
				t.Errorf("%v, %s: %v", tt.err, name, got)
			}
		}
	}
}

// Who does not want to be told on whose behalf it asks says so by a subnet of no bits.
func TestSubnetOfNoBits(t *testing.T) {
	f := withQueries(source())
	s := server(func(c *sarndns.Config) { c.Source = f })
	m := question("my.query.consul.", dns.TypeA)
	m.SetEdns0(1232, false)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 0, Address: net.IPv4zero.To4()})
	packed, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	asked := new(dns.Msg)
	if err := asked.Unpack(packed); err != nil {
		t.Fatal(err)
	}
	resp := s.AnswerTo(t.Context(), netip.MustParseAddr("10.7.7.7"), asked, false)
	if f.executed == nil || f.executed.Origin.IP != "10.7.7.7" || resp.IsEdns0().Option[0].(*dns.EDNS0_SUBNET).SourceScope != 0 {
		t.Errorf("executed %+v, answered %v", f.executed, resp)
	}
}

// FuzzName reads names as questions have them: whatever stands in a label is not taken for the end of one.
func FuzzName(f *testing.F) {
	for _, name := range []string{"web.service.consul.", `a\.b.node.consul.`, `\092\046.service.consul.`, `x\.consul.`, "_a._b.c.d.dc.consul."} {
		f.Add(name)
	}
	r := &recorder{fakeSource: source()}
	s := server(func(c *sarndns.Config) { c.Source = r })
	f.Fuzz(func(t *testing.T, name string) {
		packed := make([]byte, 300)
		n, err := dns.PackDomainName(name, packed, 0, nil, false)
		if err != nil {
			return
		}
		name, _, err = dns.UnpackDomainName(packed[:n], 0)
		if err != nil {
			return
		}
		var labels []string
		for at := 0; packed[at] != 0; at += 1 + int(packed[at]) {
			labels = append(labels, string(packed[at+1:at+1+int(packed[at])]))
		}
		r.asked = ""
		resp := s.Answer(t.Context(), new(dns.Msg).SetQuestion(name, dns.TypeA), false)
		if resp.Question[0].Name != name {
			t.Errorf("%q is answered as %q", name, resp.Question[0].Name)
		}
		last := len(labels) - 1
		ours := last >= 0 && (strings.EqualFold(labels[last], "consul") || strings.EqualFold(labels[last], "sarn"))
		if ours != resp.Authoritative && !strings.HasSuffix(strings.ToLower(name), "arpa.") {
			t.Errorf("%q: %v", name, resp)
		}
		if ours && last == 2 && strings.EqualFold(labels[1], "node") {
			if want := fmt.Sprintf("node %s peer= dc=", lower(labels[0])); r.asked != want {
				t.Errorf("%q asks for %q, want %q", name, r.asked, want)
			}
		}
	})
}

// lower is in lower case what ASCII has of it, as names compare.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
