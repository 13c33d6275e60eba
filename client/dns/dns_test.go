package dns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	sarndns "github.com/sarnmesh/sarn/client/dns"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// fakeSource is a catalog of one datacenter.
type fakeSource struct {
	services map[string][]*catalog.Instance // by lower-case name
	nodes    map[string]*catalog.Node
	virtual  map[string]string
	queries  map[string]*query.ExecuteReply
	executed *query.ExecuteRequest // the last one
	err      error

	lookups, version atomic.Int64
	open             atomic.Int64 // standings
}

func (f *fakeSource) Instances(_ context.Context, req *catalog.InstancesRequest) (*catalog.InstancesReply, sarndns.Standing, error) {
	if f.err != nil {
		return nil, nil, f.err
	}
	if dc := req.Datacenter; dc != "" && dc != "dc1" && dc != "dc2" {
		return nil, nil, wireerr.ErrNoDatacenter
	}
	f.lookups.Add(1)
	reply := &catalog.InstancesReply{}
	for _, in := range f.services[req.Service] {
		if len(req.Tags) == 0 || slices.ContainsFunc(in.Service.Tags, func(t string) bool { return strings.EqualFold(t, req.Tags[0]) }) {
			reply.Instances = append(reply.Instances, in)
		}
	}
	return reply, f.standing(), nil
}

func (f *fakeSource) Node(_ context.Context, req *catalog.NodeServicesRequest) (*catalog.NodeServicesReply, sarndns.Standing, error) {
	f.lookups.Add(1)
	return &catalog.NodeServicesReply{Node: f.nodes[req.Node]}, f.standing(), f.err
}

// standing returns one that is current until the version of the source changes.
func (f *fakeSource) standing() sarndns.Standing {
	f.open.Add(1)
	return &fakeStanding{f, f.version.Load()}
}

type fakeStanding struct {
	f       *fakeSource
	version int64
}

func (s *fakeStanding) Current() bool { return s.f.version.Load() == s.version }
func (s *fakeStanding) Close()        { s.f.open.Add(-1) }

func (f *fakeSource) Address(_ context.Context, req *catalog.AddressRequest) (*catalog.AddressReply, error) {
	for _, n := range f.nodes {
		if n.Address == req.Address {
			return &catalog.AddressReply{Node: n}, nil
		}
	}
	return &catalog.AddressReply{}, f.err
}

func (f *fakeSource) Virtual(_ context.Context, _ read.Options, service, _ string) (netip.Addr, error) {
	ip, _ := netip.ParseAddr(f.virtual[service])
	return ip, f.err
}

func (f *fakeSource) Query(_ context.Context, req *query.ExecuteRequest) (*query.ExecuteReply, error) {
	f.executed = req
	reply, ok := f.queries[req.Query]
	switch {
	case f.err != nil:
		return nil, f.err
	case req.Datacenter != "" && req.Datacenter != "dc1" && req.Datacenter != "dc2":
		return nil, wireerr.ErrNoDatacenter
	case !ok:
		return nil, wireerr.Remote(404, "Query not found")
	}
	return reply, nil
}

func instance(node, nodeAddr, id, addr string, port int, checks ...string) *catalog.Instance {
	in := &catalog.Instance{
		Node:    &catalog.Node{Node: node, Address: nodeAddr, Datacenter: "dc1"},
		Service: &catalog.Service{ID: id, Service: "web", Address: addr, Port: port, Tags: []string{"Primary"}, Weights: &catalog.Weights{Passing: 7, Warning: 3}},
	}
	for _, status := range checks {
		in.Checks = append(in.Checks, &catalog.Check{Status: status})
	}
	return in
}

func source() *fakeSource {
	nodes := map[string]*catalog.Node{
		"n1": {Node: "n1", Address: "10.1.1.1", Datacenter: "dc1", Meta: map[string]string{"k": "v"}},
		"n6": {Node: "n6", Address: "2001:db8::5", Datacenter: "dc1"},
	}
	many := []*catalog.Instance{}
	for i := range 40 {
		many = append(many, instance(fmt.Sprintf("m%d", i), fmt.Sprintf("10.2.0.%d", i), "m", "", 80))
	}
	return &fakeSource{
		nodes: nodes, virtual: map[string]string{"web": "240.0.0.1"},
		services: map[string][]*catalog.Instance{
			"web":      {instance("n1", "10.1.1.1", "web", "", 80, "passing")},
			"warned":   {instance("n1", "10.1.1.1", "w", "10.9.8.7", 81, "passing", "warning")},
			"sick":     {instance("n1", "10.1.1.1", "s", "", 80, "critical")},
			"external": {instance("n1", "10.1.1.1", "e", "www.example.com", 443)},
			"inner":    {instance("n1", "10.1.1.1", "i", "n1.node.consul", 80)},
			"loop":     {instance("n1", "10.1.1.1", "l", "other.service.consul", 80)},
			"other":    {instance("n1", "10.1.1.1", "o", "loop.service.consul", 80)},
			"self":     {instance("n1", "10.1.1.1", "x", "self.service.consul", 80)},
			"many":     many,
			"consul":   {instance("n1", "10.1.1.1", "consul", "", 8300, "passing")},
		},
	}
}

func server(change func(*sarndns.Config)) *sarndns.Server {
	cfg := sarndns.Config{AltDomain: "sarn", Datacenter: "dc1", Source: source(), Settings: sarndns.Defaults()}
	if change != nil {
		change(&cfg)
	}
	return sarndns.New(cfg)
}

func ask(t *testing.T, s *sarndns.Server, name, qtype string, edit func(*dns.Msg), tcp bool) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, dns.StringToType[qtype])
	if edit != nil {
		edit(m)
	}
	resp := s.Answer(t.Context(), m, tcp)
	packed, err := resp.Pack()
	if err != nil {
		t.Fatalf("the answer to %s cannot be packed: %v", name, err)
	}
	back := new(dns.Msg)
	if err := back.Unpack(packed); err != nil {
		t.Fatal(err)
	}
	return back
}

// brief shows records without their class.
func brief(rrs []dns.RR) (list []string) {
	for _, rr := range rrs {
		if rr.Header().Rrtype == dns.TypeOPT {
			continue
		}
		f := strings.Fields(rr.String())
		if rr.Header().Rrtype == dns.TypeSOA {
			f = f[:6]
		}
		list = append(list, strings.Join(append(f[:2:2], f[3:]...), " "))
	}
	return list
}

func TestAnswersInTheZone(t *testing.T) {
	soa := []string{"consul. 0 SOA ns.consul. hostmaster.consul."}
	tests := []struct {
		name, qtype           string
		rcode                 int
		answer, ns, extra     []string
		notOurs, noAuthorized bool
	}{
		{name: "web.service.consul.", qtype: "A", answer: []string{"web.service.consul. 0 A 10.1.1.1"}},
		{name: "WEB.Service.Consul.", qtype: "A", answer: []string{"WEB.Service.Consul. 0 A 10.1.1.1"}},
		{name: "web.service.sarn.", qtype: "SRV", answer: []string{"web.service.sarn. 0 SRV 1 7 80 n1.node.dc1.sarn."}, extra: []string{"n1.node.dc1.sarn. 0 A 10.1.1.1"}},
		{name: "primary.web.service.consul.", qtype: "A", answer: []string{"primary.web.service.consul. 0 A 10.1.1.1"}},
		{name: "absent.web.service.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "_web._tcp.service.consul.", qtype: "SRV", answer: []string{"_web._tcp.service.consul. 0 SRV 1 7 80 n1.node.dc1.consul."}, extra: []string{"n1.node.dc1.consul. 0 A 10.1.1.1"}},
		{name: "_web._tcp.consul.", qtype: "SRV", answer: []string{"_web._tcp.consul. 0 SRV 1 7 80 n1.node.dc1.consul."}, extra: []string{"n1.node.dc1.consul. 0 A 10.1.1.1"}},
		{name: "_web._tcp.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "warned.service.consul.", qtype: "SRV", answer: []string{"warned.service.consul. 0 SRV 1 3 81 0a090807.addr.dc1.consul."}, extra: []string{"0a090807.addr.dc1.consul. 0 A 10.9.8.7"}},
		{name: "sick.service.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "web.service.consul.", qtype: "AAAA", ns: soa},
		{name: "web.service.consul.", qtype: "MX", ns: soa},
		{name: "web.service.dc9.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "web.service.a.b.c.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "external.service.consul.", qtype: "A", answer: []string{"external.service.consul. 0 CNAME www.example.com."}},
		{name: "inner.service.consul.", qtype: "A", answer: []string{"inner.service.consul. 0 CNAME n1.node.consul.", "n1.node.consul. 0 A 10.1.1.1"}},
		{name: "self.service.consul.", qtype: "A", answer: []string{"self.service.consul. 0 A 10.1.1.1"}},
		{name: "loop.service.consul.", qtype: "A", answer: []string{
			"loop.service.consul. 0 CNAME other.service.consul.", "other.service.consul. 0 CNAME loop.service.consul.",
			"loop.service.consul. 0 CNAME other.service.consul."}}, // cut to three; the chase itself ends after three more
		{name: "n1.node.consul.", qtype: "A", answer: []string{"n1.node.consul. 0 A 10.1.1.1"}, extra: []string{`n1.node.consul. 0 TXT "k=v"`}},
		{name: "n1.node.consul.", qtype: "TXT", answer: []string{`n1.node.consul. 0 TXT "k=v"`}},
		{name: "n1.node.consul.", qtype: "AAAA", extra: []string{`n1.node.consul. 0 TXT "k=v"`}},
		{name: "gone.node.consul.", qtype: "SRV"},
		{name: "gone.node.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "0a090807.addr.consul.", qtype: "A", answer: []string{"0a090807.addr.consul. 0 A 10.9.8.7"}},
		{name: "0a090807.addr.consul.", qtype: "AAAA", extra: []string{"0a090807.addr.consul. 0 A 10.9.8.7"}},
		{name: "zz090807.addr.consul.", qtype: "A", rcode: dns.RcodeNameError, ns: soa},
		{name: "web.virtual.consul.", qtype: "MX", answer: []string{"web.virtual.consul. 0 A 240.0.0.1"}},
		{name: "gone.virtual.consul.", qtype: "A"},
		{name: "consul.", qtype: "NS", answer: []string{"consul. 0 NS n1.node.dc1.consul."}, extra: []string{"n1.node.dc1.consul. 0 A 10.1.1.1"}},
		{name: "any.thing.consul.", qtype: "SOA", answer: soa, ns: []string{"consul. 0 NS n1.node.dc1.consul."}, extra: []string{"n1.node.dc1.consul. 0 A 10.1.1.1"}},
		{name: "consul.", qtype: "AXFR", rcode: dns.RcodeNotImplemented},
		{name: "1.1.1.10.in-addr.arpa.", qtype: "PTR", answer: []string{"1.1.1.10.in-addr.arpa. 0 PTR n1.node.dc1.consul."}},
		{name: "9.1.1.10.in-addr.arpa.", qtype: "PTR", rcode: dns.RcodeNameError, ns: soa},
		{name: "5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.", qtype: "PTR",
			answer: []string{"5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 0 PTR n6.node.dc1.consul."}},
		{name: "www.example.com.", qtype: "A", rcode: dns.RcodeRefused, notOurs: true},
		{name: "notconsul.", qtype: "A", rcode: dns.RcodeRefused, notOurs: true},
	}
	s := server(nil)
	for _, tt := range tests {
		t.Run(tt.name+" "+tt.qtype, func(t *testing.T) {
			got := ask(t, s, tt.name, tt.qtype, nil, false)
			if got.Rcode != tt.rcode || got.Authoritative == tt.notOurs || got.RecursionAvailable {
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

func TestCatalogFailureIsServfail(t *testing.T) {
	s := server(func(c *sarndns.Config) { c.Source.(*fakeSource).err = wireerr.ErrNoLeader })
	if got := ask(t, s, "web.service.consul.", "A", nil, false); got.Rcode != dns.RcodeServerFailure || len(got.Ns) != 0 {
		t.Errorf("got %v", got)
	}
}

func TestAnswersAreCutToWhatTheClientTakes(t *testing.T) {
	edns := func(size uint16) func(*dns.Msg) { return func(m *dns.Msg) { m.SetEdns0(size, false) } }
	tests := []struct {
		name      string
		change    func(*sarndns.Settings)
		edit      func(*dns.Msg)
		qtype     string
		tcp       bool
		want      int
		truncated bool
	}{
		{name: "plain UDP takes three", qtype: "A", want: 3},
		{name: "and says so when told to", qtype: "A", change: func(s *sarndns.Settings) { s.EnableTruncate = true }, want: 3, truncated: true},
		{name: "never more than eight", qtype: "A", change: func(s *sarndns.Settings) { s.UDPAnswerLimit = 20 }, want: 8},
		{name: "a larger size takes all", qtype: "A", edit: edns(4096), want: 40},
		{name: "a small EDNS size is plain", qtype: "A", edit: edns(100), want: 3},
		{name: "TCP takes all", qtype: "A", tcp: true, want: 40},
		{name: "a record limit holds over TCP too", qtype: "A", tcp: true, change: func(s *sarndns.Settings) { s.ARecordLimit = 2 }, want: 2},
		{name: "but not for SRV", qtype: "SRV", tcp: true, change: func(s *sarndns.Settings) { s.ARecordLimit = 2 }, want: 40},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := server(func(c *sarndns.Config) {
				if tt.change != nil {
					tt.change(&c.Settings)
				}
			})
			got := ask(t, s, "many.service.consul.", tt.qtype, tt.edit, tt.tcp)
			if len(got.Answer) != tt.want || got.Truncated != tt.truncated {
				t.Errorf("%d answers, tc %v; want %d, %v", len(got.Answer), got.Truncated, tt.want, tt.truncated)
			}
			if opt := got.IsEdns0(); (opt != nil) != (tt.edit != nil) {
				t.Errorf("OPT record %v", opt)
			}
			if tt.qtype == "SRV" && len(got.Extra) != len(got.Answer) {
				t.Errorf("%d additional records for %d answers", len(got.Extra), len(got.Answer))
			}
		})
	}
}

func TestCutAnswersFitTheirSize(t *testing.T) {
	s := server(func(c *sarndns.Config) { c.Settings.UDPAnswerLimit = 0 })
	for _, size := range []uint16{512, 600, 800, 1232} {
		m := new(dns.Msg)
		m.SetQuestion("many.service.consul.", dns.TypeSRV)
		m.SetEdns0(size, false)
		resp := s.Answer(t.Context(), m, false)
		packed, err := resp.Pack()
		if err != nil || len(packed) > int(size) || len(resp.Answer) == 0 {
			t.Errorf("size %d: %d bytes, %d answers, %v", size, len(packed), len(resp.Answer), err)
		}
	}
}

func TestRecursorsAreAskedInOrder(t *testing.T) {
	var asked []string
	s := server(func(c *sarndns.Config) {
		c.Settings.Recursors = []string{"dead:53", "refusing:53", "good:53"}
		c.Exchange = func(_ context.Context, network, addr string, m *dns.Msg) (*dns.Msg, error) {
			asked = append(asked, network+" "+addr)
			resp := new(dns.Msg)
			switch addr {
			case "dead:53":
				return nil, errors.New("no answer")
			case "refusing:53":
				return resp.SetRcode(m, dns.RcodeRefused), nil
			}
			resp.SetReply(m)
			rr, err := dns.NewRR("www.example.com. 60 IN A 192.0.2.1")
			resp.Answer = []dns.RR{rr}
			return resp, err
		}
	})
	got := ask(t, s, "www.example.com.", "A", nil, false)
	if diff := cmp.Diff([]string{"udp dead:53", "udp refusing:53", "udp good:53"}, asked); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"www.example.com. 60 A 192.0.2.1"}, brief(got.Answer)); diff != "" {
		t.Error(diff)
	}
	asked = nil
	got = ask(t, s, "external.service.consul.", "A", nil, false)
	want := []string{"external.service.consul. 0 CNAME www.example.com.", "www.example.com. 0 A 192.0.2.1"}
	if diff := cmp.Diff(want, brief(got.Answer)); diff != "" || !got.RecursionAvailable {
		t.Errorf("ra %v, %s", got.RecursionAvailable, diff)
	}
	if ask(t, s, "gone.service.consul.", "A", nil, false); len(asked) != 3 {
		t.Errorf("a name of the zone was forwarded: %v", asked)
	}
}

func TestServiceTTLMatchesTheLongestPrefix(t *testing.T) {
	s := server(func(c *sarndns.Config) {
		c.Settings.ServiceTTL = map[string]time.Duration{"*": 5 * time.Second, "we*": 10 * time.Second, "self": 15 * time.Second}
	})
	for name, want := range map[string]uint32{"web": 10, "self": 15, "inner": 5} {
		got := ask(t, s, name+".service.consul.", "A", nil, false)
		if len(got.Answer) == 0 || got.Answer[0].Header().Ttl != want {
			t.Errorf("%s: %v, want TTL %d", name, got.Answer, want)
		}
	}
}

func TestServesUDPAndTCPUntilCancelled(t *testing.T) {
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	streams, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- server(nil).Run(ctx, []net.PacketConn{packets}, []net.Listener{streams}) }()
	for network, addr := range map[string]string{"udp": packets.LocalAddr().String(), "tcp": streams.Addr().String()} {
		m := new(dns.Msg)
		m.SetQuestion("web.service.consul.", dns.TypeA)
		resp, _, err := (&dns.Client{Net: network, Timeout: time.Minute}).Exchange(m, addr)
		if err != nil || len(resp.Answer) != 1 {
			t.Errorf("%s: %v, %v", network, resp, err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// FuzzAnswer sends arbitrary messages: every answer can be packed, repeats the question and fits its size.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"web.service.consul.", "_web._tcp.service.dc1.consul.", "1.1.1.10.in-addr.arpa.", "0a090807.addr.consul.", "a.b.node.x.dc.sarn.", "_q.x._tcp.query.dc1.consul."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypeANY, dns.TypeSOA} {
			m := new(dns.Msg)
			m.SetQuestion(name, qtype)
			data, _ := m.Pack()
			f.Add(data, false)
		}
	}
	s := server(nil)
	f.Fuzz(func(t *testing.T, data []byte, tcp bool) {
		m := new(dns.Msg)
		if m.Unpack(data) != nil {
			return
		}
		resp := s.Answer(t.Context(), m, tcp)
		if resp == nil {
			return
		}
		packed, err := resp.Pack()
		if err != nil {
			// A name at the length limit cannot be repeated inside a longer one.
			if !errors.Is(err, dns.ErrRdata) && !strings.Contains(err.Error(), "domain") && !strings.Contains(err.Error(), "rdata") {
				t.Fatalf("%v: %v", resp, err)
			}
			return
		}
		if resp.Id != m.Id || !resp.Response {
			t.Errorf("answer %v to %v", resp.MsgHdr, m.MsgHdr)
		}
		if limit := 65535; len(packed) > limit {
			t.Errorf("%d bytes", len(packed))
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	s := server(nil)
	for _, name := range []string{"web.service.consul.", "many.service.consul."} {
		b.Run(name, func(b *testing.B) {
			m := new(dns.Msg)
			m.SetQuestion(name, dns.TypeA)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Answer(b.Context(), m, false).Pack(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	streaming(t, nil, func(t *testing.T, p *pipes) {
		question := framed(t, 1, "web.service.consul.", dns.TypeA)
		ask := func(conn net.Conn) error {
			if _, err := conn.Write(question); err != nil {
				return err
			}
			_, err := readMsg(conn)
			return err
		}
		var open []*dialled
		refused := 0
		for range 300 {
			conn := p.dial("192.0.2.1")
			if err := ask(conn); err != nil {
				refused++
				conn.Close()
				continue
			}
			open = append(open, conn)
		}
		if len(open) != 256 || refused != 44 {
			t.Errorf("%d connections of one client, %d refused; want 256 and 44", len(open), refused)
		}
		for i := range 300 { // many questions on one connection
			if err := ask(open[0]); err != nil {
				t.Fatalf("question %d: %v", i, err)
			}
		}
		// One that goes makes room for another.
		open[0].Close()
		synctest.Wait()
		open[0] = p.dial("192.0.2.1")
		if err := ask(open[0]); err != nil {
			t.Errorf("no connection after one was closed: %v", err)
		}
		for _, conn := range open {
			conn.Close()
		}
	})
}
