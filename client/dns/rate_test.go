package dns_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	sarndns "github.com/sarnmesh/sarn/client/dns"
)

// packets is a socket in memory that gets packets from anywhere.
type packets struct {
	in     chan packet
	out    chan packet
	closed chan struct{}
}

type packet struct {
	data []byte
	addr net.Addr
}

func newPackets() *packets {
	return &packets{in: make(chan packet), out: make(chan packet, 1), closed: make(chan struct{})}
}

func (p *packets) ReadFrom(buf []byte) (int, net.Addr, error) {
	select {
	case q := <-p.in:
		return copy(buf, q.data), q.addr, nil
	case <-p.closed:
		return 0, nil, net.ErrClosed
	}
}

func (p *packets) WriteTo(data []byte, addr net.Addr) (int, error) {
	p.out <- packet{append([]byte(nil), data...), addr}
	return len(data), nil
}

func (p *packets) Close() error {
	close(p.closed)
	return nil
}

func (p *packets) LocalAddr() net.Addr              { return &net.UDPAddr{Port: 8600} }
func (p *packets) SetDeadline(time.Time) error      { return nil }
func (p *packets) SetReadDeadline(time.Time) error  { return nil }
func (p *packets) SetWriteDeadline(time.Time) error { return nil }

// ask sends a question from an address and returns the answer, with the sizes of both.
func (p *packets) ask(t *testing.T, from, name string, qtype uint16, size uint16) (resp *dns.Msg, asked, got int) {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	if size > 0 {
		m.SetEdns0(size, false)
	}
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	p.in <- packet{msg, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 5353))}
	out := <-p.out
	resp = new(dns.Msg)
	if err := resp.Unpack(out.data); err != nil {
		t.Fatalf("%x: %v", out.data, err)
	}
	if resp.Id != m.Id || len(resp.Question) != 1 || resp.Question[0] != m.Question[0] || (resp.IsEdns0() != nil) != (size > 0) {
		t.Fatalf("%v answers %v", resp, m)
	}
	return resp, len(msg), len(out.data)
}

// serving runs f in a bubble beside a server that has a socket in memory.
func serving(t *testing.T, change func(*sarndns.Config), f func(t *testing.T, s *sarndns.Server, p *packets)) {
	synctest.Test(t, func(t *testing.T) {
		s, p := server(change), newPackets()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx, []net.PacketConn{p}, nil) }()
		f(t, s, p)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// Who cannot be known to ask gets no more than is needed to ask over TCP.
func TestAnswersToStrangersAreLimited(t *testing.T) {
	const stranger, neighbour, other = "198.51.100.7", "198.51.100.200", "198.51.101.7"
	for _, size := range []uint16{0, 4096} {
		serving(t, func(c *sarndns.Config) { c.Settings.UDPAnswerRate = 100 }, func(t *testing.T, s *sarndns.Server, p *packets) {
			// full returns how many of n questions were answered; the others were to be asked over TCP.
			full := func(n int, from, name string) (full int) {
				t.Helper()
				for range n {
					resp, asked, got := p.ask(t, from, name, dns.TypeA, size)
					switch {
					case !resp.Truncated && got > asked:
						full++
					case !resp.Truncated || got > asked || len(resp.Answer)+len(resp.Ns) > 0 || resp.Rcode != dns.RcodeSuccess:
						t.Fatalf("%d bytes for %d: %v", got, asked, resp)
					}
				}
				return full
			}
			want := func(want int, from, name, why string) {
				t.Helper()
				if got := full(150, from, name); got != want {
					t.Errorf("%s: %d full answers, want %d", why, got, want)
				}
			}
			want(100, stranger, "web.service.consul.", "as many at once as in a second")
			want(0, neighbour, "web.service.consul.", "the same network")
			want(100, other, "web.service.consul.", "another network")
			want(100, stranger, "gone.service.consul.", "what is not there is limited on its own")
			want(0, stranger, "gone2.service.consul.", "of whatever name")
			for _, trusted := range []string{"127.0.0.1", "127.7.7.7", "::1", "10.1.1.1", "192.168.1.1", "172.31.1.1", "100.64.0.1", "169.254.1.1", "fe80::1", "fd00::1", "::ffff:10.1.1.1"} {
				want(150, trusted, "web.service.consul.", trusted)
			}
			want(100, "2001:db8:0:100::1", "web.service.consul.", "a network of IPv6")
			want(0, "2001:db8:0:1ff::2", "web.service.consul.", "the same 56 bits")
			want(100, "2001:db8:0:200::1", "web.service.consul.", "the next 56 bits")
			time.Sleep(500 * time.Millisecond)
			want(50, stranger, "web.service.consul.", "after half a second")
			time.Sleep(time.Hour)
			want(100, stranger, "web.service.consul.", "never more than a second's")
			for range 150 { // no longer than the question: nothing to be gained
				if resp, _, _ := p.ask(t, stranger, "www.example.com.", dns.TypeA, size); resp.Rcode != dns.RcodeRefused {
					t.Fatal(resp)
				}
			}
			settings := sarndns.Defaults()
			settings.UDPAnswerRate = 0
			s.Update(settings)
			want(150, stranger, "web.service.consul.", "without a limit")
			settings.UDPAnswerRate, settings.TrustedNetworks = 10, append(settings.TrustedNetworks, netip.MustParsePrefix("198.51.100.0/25"))
			s.Update(settings)
			want(150, stranger, "web.service.consul.", "in a network that is trusted")
			time.Sleep(time.Second)
			want(10, neighbour, "web.service.consul.", "beside it, at another rate")
			settings.TrustedNetworks = nil
			s.Update(settings)
			want(10, "10.1.1.1", "web.service.consul.", "no network is trusted")
			want(150, "127.0.0.1", "web.service.consul.", "but for this machine")
		})
	}
}

// What is not kept is limited alike.
func TestLongAnswersToStrangersAreLimited(t *testing.T) {
	serving(t, func(c *sarndns.Config) { c.Settings.UDPAnswerRate = 5 }, func(t *testing.T, _ *sarndns.Server, p *packets) {
		for i := range 10 {
			resp, asked, got := p.ask(t, "198.51.100.7", "inner.service.consul.", dns.TypeA, 1232)
			if limited := i >= 5; resp.Truncated != limited || (len(resp.Answer) == 0) != limited || limited && got > asked {
				t.Errorf("question %d: %d bytes, %v", i, got, resp)
			}
		}
	})
}

// However much a stranger says to take, an answer fits into a packet that crosses the Internet whole; if it would not, the
// client is told so, for it could not know.
func TestStrangersGetShortAnswers(t *testing.T) {
	serving(t, nil, func(t *testing.T, _ *sarndns.Server, p *packets) {
		for _, tt := range []struct {
			from, name string
			qtype      uint16
			size       uint16
			cut        bool
		}{
			{"198.51.100.7", "many.service.consul.", dns.TypeSRV, 65535, true},
			{"198.51.100.7", "many.service.consul.", dns.TypeSRV, 1232, false}, // as the client says
			{"198.51.100.7", "many.service.consul.", dns.TypeA, 65535, false},
			{"10.1.1.1", "many.service.consul.", dns.TypeSRV, 65535, false},
		} {
			for i := range 3 { // kept from the second time on
				resp, _, got := p.ask(t, tt.from, tt.name, tt.qtype, tt.size)
				strange := tt.from[:3] == "198"
				if resp.Truncated != tt.cut || strange && got > 1232 || !strange && len(resp.Answer) != 40 || len(resp.Answer) == 0 {
					t.Errorf("%+v, time %d: %d bytes, %d answers, tc %v", tt, i, got, len(resp.Answer), resp.Truncated)
				}
			}
		}
	})
}

func TestRecursionForStrangers(t *testing.T) {
	asked := 0
	serving(t, func(c *sarndns.Config) {
		c.Settings.Recursors, c.Settings.UDPAnswerRate = []string{"good:53"}, 3
		c.Exchange = func(_ context.Context, _, _ string, m *dns.Msg) (*dns.Msg, error) {
			asked++
			resp := new(dns.Msg).SetReply(m)
			resp.RecursionAvailable = true
			n := 1
			if strings.HasPrefix(m.Question[0].Name, "large") {
				n = 100
			}
			for i := range n {
				resp.Answer = append(resp.Answer, &dns.A{Hdr: dns.RR_Header{Name: m.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(192, 0, 2, byte(i))})
			}
			if opt := m.IsEdns0(); opt != nil {
				resp.SetEdns0(opt.UDPSize(), false)
			}
			return resp, nil
		}
	}, func(t *testing.T, s *sarndns.Server, p *packets) {
		const stranger = "198.51.100.7"
		if resp, q, got := p.ask(t, stranger, "large.example.com.", dns.TypeA, 4096); !resp.Truncated || got > q || !resp.RecursionAvailable {
			t.Errorf("%d bytes for %d: %v", got, q, resp)
		}
		if resp, _, _ := p.ask(t, "10.1.1.1", "large.example.com.", dns.TypeA, 4096); resp.Truncated || len(resp.Answer) != 100 {
			t.Errorf("%v", resp)
		}
		for i := range 5 {
			resp, _, _ := p.ask(t, stranger, "www.example.com.", dns.TypeA, 0)
			if full := i < 2; resp.Truncated == full || len(resp.Answer) == 1 != full || !resp.RecursionAvailable {
				t.Errorf("question %d: %v", i, resp)
			}
		}
		if asked != 4 {
			t.Errorf("recursors were asked %d times, want 4", asked)
		}
		settings := sarndns.Defaults()
		settings.Recursors, settings.AllowRecursionFrom = []string{"good:53"}, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		s.Update(settings)
		for from, want := range map[string]int{"10.1.1.1": dns.RcodeSuccess, "127.0.0.1": dns.RcodeSuccess, "::1": dns.RcodeSuccess, "192.168.1.1": dns.RcodeRefused, stranger: dns.RcodeRefused} {
			for _, name := range []string{"www.example.com.", "9.9.9.9.in-addr.arpa."} {
				resp, _, _ := p.ask(t, from, name, dns.TypeA, 1232)
				if rcode := resp.Rcode; want == dns.RcodeSuccess && rcode != want || want != dns.RcodeSuccess && (rcode == dns.RcodeSuccess || len(resp.Answer) > 0) {
					t.Errorf("%s asks for %s: %v", from, name, resp)
				}
				if name == "www.example.com." && resp.RecursionAvailable != (want == dns.RcodeSuccess) {
					t.Errorf("%s: recursion available %v", from, resp.RecursionAvailable)
				}
			}
			if resp, _, _ := p.ask(t, from, "web.service.consul.", dns.TypeA, 0); len(resp.Answer) != 1 {
				t.Errorf("%s: %v", from, resp)
			}
		}
	})
}

// However many networks ask, no memory is taken for them, and who asks all the time is not forgotten.
func TestRememberedNetworksAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := server(nil)
		q := sarndns.NewQuick(s)
		msg := wire(t, "web.service.consul.", dns.TypeA)
		q.Keep(msg)
		ask := func(ip netip.Addr) (truncated bool) {
			q.From = netip.AddrPortFrom(ip, 1)
			out, ok := q.Answer(msg)
			if !ok {
				t.Fatal("not kept")
			}
			return out[2]&2 != 0
		}
		victim := netip.MustParseAddr("198.51.100.7")
		for range 300 {
			ask(victim)
		}
		forgotten, n := 0, 0
		// Runs are many and short, so that what else goes on makes no allocation of each.
		if allocs := testing.AllocsPerRun(10_000, func() {
			for range 10 {
				n++
				ask(netip.AddrFrom4([4]byte{byte(11 + n>>16), byte(n >> 8), byte(n), 1}))
			}
			if !ask(victim) {
				forgotten++
			}
		}); allocs > 0 {
			t.Errorf("%v allocations", allocs)
		}
		if forgotten > 0 || n < 100000 {
			t.Errorf("forgotten %d times among %d networks", forgotten, n)
		}
	})
}

func wire(t testing.TB, name string, qtype uint16) []byte {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, qtype)
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// BenchmarkKeptForStrangers is BenchmarkKept for clients that are limited.
func BenchmarkKeptForStrangers(b *testing.B) {
	for _, rate := range []int{1, 1 << 40} {
		b.Run(fmt.Sprintf("rate=%d", rate), func(b *testing.B) {
			s := server(func(c *sarndns.Config) { c.Settings.UDPAnswerRate = rate })
			q := sarndns.NewQuick(s)
			msg := wire(b, "web.service.consul.", dns.TypeA)
			q.Keep(msg)
			q.From = netip.MustParseAddrPort("198.51.100.7:1")
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := q.Answer(msg); !ok {
					b.Fatal("not kept")
				}
			}
		})
	}
}
