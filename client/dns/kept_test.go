package dns_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/sarnmesh/sarn/catalog"
	sarndns "github.com/sarnmesh/sarn/client/dns"
)

// start serves s on a UDP socket of its own until the test ends, and returns its address.
func start(t *testing.T, s *sarndns.Server) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx, []net.PacketConn{conn}, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return conn.LocalAddr().String()
}

func exchange(t *testing.T, addr string, m *dns.Msg) *dns.Msg {
	t.Helper()
	resp, _, err := (&dns.Client{Net: "udp", UDPSize: dns.MaxMsgSize, Timeout: 20 * time.Second}).Exchange(m, addr)
	if err != nil {
		t.Fatalf("%v: %v", m.Question, err)
	}
	return resp
}

// sorted shows a message with what is random, or the clock's, taken out.
func sorted(m *dns.Msg) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%+v %v\n", m.MsgHdr, m.Question)
	for i, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		lines := []string{}
		for _, rr := range section {
			if soa, ok := rr.(*dns.SOA); ok {
				soa.Serial = 0
			}
			lines = append(lines, rr.String())
		}
		slices.Sort(lines)
		fmt.Fprintf(&b, "%d: %s\n", i, strings.Join(lines, "\n   "))
	}
	return b.String()
}

// few are instances of every kind of address, so few that nothing is cut.
func few(f *fakeSource) {
	six := instance("n6", "2001:db8::5", "f", "", 81)
	warned := instance("n1", "10.1.1.1", "f", "10.9.8.7", 82, "warning")
	f.services["few"] = []*catalog.Instance{instance("n1", "10.1.1.1", "f", "", 80), instance("n1", "10.1.1.1", "g", "", 83), warned}
	f.services["both"] = []*catalog.Instance{instance("n1", "10.1.1.1", "f", "", 80), six}
	for _, in := range append(f.services["few"], six) {
		in.Node.Meta = map[string]string{"rack": in.Node.Node}
	}
}

func TestKeptAnswersAreLikeOthers(t *testing.T) {
	f := source()
	few(f)
	s := server(func(c *sarndns.Config) {
		c.Source = f
		c.Settings.UDPAnswerLimit = 8
		c.Settings.NodeTTL, c.Settings.ServiceTTL = 7*time.Second, map[string]time.Duration{"*": 9 * time.Second}
	})
	addr := start(t, s)
	for _, name := range []string{
		"web.service.consul.", "WEB.service.Consul.", "few.service.consul.", "few.service.SARN.", "warned.service.dc1.consul.", "absent.web.service.consul.",
		"primary.web.service.consul.", "_few._tcp.service.consul.", "sick.service.consul.", "n1.node.consul.", "gone.node.consul.", "n6.node.consul.",
		"0a090807.addr.consul.", "bad.consul.", "both.service.consul.", "inner.service.consul.", "consul.",
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeANY, dns.TypeTXT, dns.TypeMX, dns.TypeSOA} {
			for _, size := range []uint16{0, 512, 1232, 4096} {
				m := new(dns.Msg)
				m.SetQuestion(name, qtype)
				m.RecursionDesired, m.CheckingDisabled = size != 512, size == 1232
				if size > 0 {
					m.SetEdns0(size, false)
				}
				want := sorted(s.Answer(t.Context(), m.Copy(), false))
				for range 3 {
					if diff := cmp.Diff(want, sorted(exchange(t, addr, m))); diff != "" {
						t.Fatalf("%s %s, size %d (-want +got):\n%s", name, dns.TypeToString[qtype], size, diff)
					}
				}
			}
		}
	}
}

func TestKeptAnswersFitTheirSize(t *testing.T) {
	f := source()
	for _, in := range f.services["many"] {
		in.Node.Meta = map[string]string{"k": strings.Repeat("v", 30)}
	}
	for _, truncate := range []bool{false, true} {
		for _, limit := range []int{0, 5} {
			s := server(func(c *sarndns.Config) {
				c.Source = f
				c.Settings.EnableTruncate, c.Settings.ARecordLimit = truncate, limit
			})
			addr := start(t, s)
			for _, qtype := range []uint16{dns.TypeA, dns.TypeSRV} {
				for _, size := range []uint16{0, 512, 600, 900, 1232, 4096, 65000} {
					m := new(dns.Msg)
					m.SetQuestion("many.service.consul.", qtype)
					if size > 0 {
						m.SetEdns0(size, false)
					}
					all := 40
					if qtype == dns.TypeA && limit > 0 {
						all = limit
					}
					for i := range 3 {
						got := exchange(t, addr, m)
						plain := got.Copy()
						plain.Compress = size > 512
						cut := len(got.Answer) < all
						switch {
						case plain.Len() > max(512, int(size)), len(got.Answer) == 0, got.Truncated != (cut && truncate),
							size <= 512 && len(got.Answer) > 3, size == 65000 && cut:
							t.Errorf("%s, size %d, time %d: %d answers, %d bytes, tc %v", dns.TypeToString[qtype], size, i, len(got.Answer), plain.Len(), got.Truncated)
						}
						glue := map[string]bool{}
						for _, rr := range got.Extra {
							switch rr.(type) {
							case *dns.A:
								glue[rr.Header().Name] = true
							case *dns.TXT:
								if cut {
									t.Errorf("size %d: texts in an answer that was cut", size)
								}
							}
						}
						for _, rr := range got.Answer {
							if srv, ok := rr.(*dns.SRV); ok && !glue[srv.Target] {
								t.Errorf("size %d: no address of %s", size, srv.Target)
							}
						}
					}
				}
			}
		}
	}
}

func TestKeptAnswersFollowWhatTheyRestOn(t *testing.T) {
	f := source()
	token := "one"
	s := server(func(c *sarndns.Config) {
		c.Source = f
		c.Token = func() string { return token }
	})
	q := sarndns.NewQuick(s)
	m := new(dns.Msg)
	m.SetQuestion("many.service.consul.", dns.TypeA)
	msg, _ := m.Pack()
	known := func(want bool, why string) {
		t.Helper()
		if _, ok := q.Answer(msg); ok != want {
			t.Errorf("%s: kept %v", why, ok)
		}
		q.Keep(msg)
	}
	known(false, "never asked")
	known(true, "asked before")
	f.version.Add(1)
	known(false, "changed")
	known(true, "asked since")
	token = "two"
	known(false, "another token")
	known(true, "asked with it")
	s.Update(sarndns.Defaults())
	known(false, "other settings")
	known(true, "asked with them")
	f.err = context.DeadlineExceeded
	f.version.Add(1)
	known(false, "not to be had")
	known(false, "a failure is not kept")
}

func TestKeptAnswersAreBounded(t *testing.T) {
	f := source()
	s := server(func(c *sarndns.Config) { c.Source = f })
	q := sarndns.NewQuick(s)
	for i := range 20000 {
		m := new(dns.Msg)
		m.SetQuestion(fmt.Sprintf("made-up-%d.service.consul.", i), dns.TypeA)
		msg, _ := m.Pack()
		q.Keep(msg)
	}
	if n := f.open.Load(); n > 10000 || n == 0 {
		t.Errorf("%d answers kept", n)
	}
	s.Update(sarndns.Defaults())
	if n := f.open.Load(); n != 0 {
		t.Errorf("%d standings left open", n)
	}
	for i := range 300 { // one name, in any case
		name := []byte("made-up.service.consul.")
		for j := range 7 {
			if i>>j&1 == 1 && name[j] != '-' {
				name[j] -= 'a' - 'A'
			}
		}
		m := new(dns.Msg)
		m.SetQuestion(string(name), dns.TypeA)
		msg, _ := m.Pack()
		q.Keep(msg)
	}
	if n := f.open.Load(); n > 1 {
		t.Errorf("%d answers kept for one name", n)
	}
}

func TestEveryInstanceComesFirstSometimes(t *testing.T) {
	f := source()
	q := sarndns.NewQuick(server(func(c *sarndns.Config) { c.Source = f }))
	m := new(dns.Msg)
	m.SetQuestion("many.service.consul.", dns.TypeA)
	msg, _ := m.Pack()
	q.Keep(msg)
	first := map[string]int{}
	const rounds = 40000
	for range rounds {
		out, ok := q.Answer(msg)
		if !ok {
			t.Fatal("not kept")
		}
		var resp dns.Msg
		if err := resp.Unpack(out); err != nil {
			t.Fatal(err)
		}
		first[resp.Answer[0].(*dns.A).A.String()]++
	}
	for ip, n := range first {
		if n < rounds/40*3/5 || n > rounds/40*7/5 {
			t.Errorf("%s came first %d times of %d", ip, n, rounds)
		}
	}
	if len(first) != 40 || f.lookups.Load() != 1 {
		t.Errorf("%d of 40 came first; %d lookups", len(first), f.lookups.Load())
	}
}

// deserves tells what a message is answered.
type deserves struct {
	name  string
	msg   []byte
	rcode int // -1 for no answer
}

// malformed returns a question, and messages that are none.
func malformed(t *testing.T) (good []byte, list []deserves) {
	good = wire(t, "web.service.consul.", dns.TypeA)
	edit := func(at int, b byte) []byte {
		c := bytes.Clone(good)
		c[at] = b
		return c
	}
	return good, []deserves{
		{"shorter than a header", good[:11], -1},
		{"nothing", nil, -1},
		{"an answer", edit(2, 0x80), -1},
		{"cut off", good[:20], dns.RcodeFormatError},
		{"two questions", edit(5, 2), dns.RcodeFormatError},
		{"no question", edit(5, 0), dns.RcodeFormatError},
		{"an update", edit(2, dns.OpcodeUpdate<<3), dns.RcodeNotImplemented},
		{"a notification", edit(2, dns.OpcodeNotify<<3), dns.RcodeNotImplemented},
		{"a label that is too long", edit(12, 64), dns.RcodeFormatError},
		{"a pointer to itself", append(append(bytes.Clone(good[:12]), 0xc0, 12), good[len(good)-4:]...), dns.RcodeFormatError},
	}
}

func TestMalformedPacketsAreRefused(t *testing.T) {
	s := server(nil)
	addr := start(t, s)
	conn, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	good, list := malformed(t)
	for _, tt := range append(list, deserves{"as it should be", good, dns.RcodeSuccess}) {
		t.Run(tt.name, func(t *testing.T) {
			// What deserves no answer is followed by something that does.
			id := uint16(len(tt.name))
			send := bytes.Clone(tt.msg)
			if len(send) >= 2 {
				binary.BigEndian.PutUint16(send, id)
			}
			conn.Write(send)
			if tt.rcode < 0 {
				id++
				send = bytes.Clone(good)
				binary.BigEndian.PutUint16(send, id)
				conn.Write(send)
			}
			conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			buf := make([]byte, 512)
			n, err := conn.Read(buf)
			if err != nil || n < 12 {
				t.Fatal(n, err)
			}
			if got := int(buf[3] & 15); binary.BigEndian.Uint16(buf) != id || got != max(tt.rcode, 0) || buf[2]&0x80 == 0 {
				t.Errorf("got %x", buf[:n])
			}
		})
	}
}

// FuzzPacket sends arbitrary packets to a server that keeps answers: what it answers from what it keeps is what it would
// answer the long way.
func FuzzPacket(f *testing.F) {
	src := source()
	few(src)
	for _, name := range []string{"few.service.consul.", "WEB.service.consul.", "n1.node.consul.", "x.consul."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypeTXT} {
			m := new(dns.Msg)
			m.SetQuestion(name, qtype)
			msg, _ := m.Pack()
			f.Add(msg)
			m.SetEdns0(1232, false)
			msg, _ = m.Pack()
			f.Add(msg)
		}
	}
	s := server(func(c *sarndns.Config) { c.Source = src })
	q := sarndns.NewQuick(s)
	f.Fuzz(func(t *testing.T, msg []byte) {
		q.Keep(msg)
		for _, tcp := range []bool{false, true} {
			q.TCP = tcp
			out, ok := q.Answer(msg)
			if !ok {
				return
			}
			m, got := new(dns.Msg), new(dns.Msg)
			if err := m.Unpack(msg); err != nil {
				t.Fatalf("%x was answered: %v", msg, err)
			}
			if err := got.Unpack(out); err != nil {
				t.Fatalf("answer %x: %v", out, err)
			}
			want, err := s.Answer(t.Context(), m, tcp).Pack()
			if err != nil {
				t.Fatal(err)
			}
			other := new(dns.Msg)
			if err := other.Unpack(want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(sorted(other), sorted(got)); diff != "" {
				t.Errorf("%x, tcp %v (-long +quick):\n%s", msg, tcp, diff)
			}
		}
	})
}

// BenchmarkKept is the cost of a question that was asked before.
func BenchmarkKept(b *testing.B) {
	f := source()
	few(f)
	s := server(func(c *sarndns.Config) { c.Source = f })
	for _, tt := range []struct {
		name  string
		qtype uint16
		size  uint16
	}{
		{"web.service.consul.", dns.TypeA, 0}, {"many.service.consul.", dns.TypeA, 0}, {"many.service.consul.", dns.TypeA, 4096},
		{"few.service.consul.", dns.TypeSRV, 1232}, {"gone.service.consul.", dns.TypeA, 0}, {"n1.node.consul.", dns.TypeA, 0},
	} {
		b.Run(fmt.Sprintf("%s/%s/%d", tt.name, dns.TypeToString[tt.qtype], tt.size), func(b *testing.B) {
			m := new(dns.Msg)
			m.SetQuestion(tt.name, tt.qtype)
			if tt.size > 0 {
				m.SetEdns0(tt.size, false)
			}
			msg, _ := m.Pack()
			q := sarndns.NewQuick(s)
			q.Keep(msg)
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := q.Answer(msg); !ok {
					b.Fatal("not kept")
				}
			}
		})
	}
}
