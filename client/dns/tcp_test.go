package dns_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/sarnmesh/sarn/catalog"
	sarndns "github.com/sarnmesh/sarn/client/dns"
)

// pipes is a listener in memory whose clients have any address.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

// A pipe is the server's end of a connection.
type pipe struct {
	net.Conn
	from   net.Addr
	closed chan struct{}
	once   sync.Once
}

func (p *pipe) RemoteAddr() net.Addr { return p.from }

func (p *pipe) Close() error {
	p.once.Do(func() { close(p.closed) })
	return p.Conn.Close()
}

// A dialled connection is the client's end of one.
type dialled struct {
	net.Conn
	lost chan struct{} // closed when the server has closed its end
}

func (d *dialled) alive() bool {
	select {
	case <-d.lost:
		return false
	default:
		return true
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	close(p.closed)
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{Port: 8600} }

func (p *pipes) dial(from string) *dialled {
	ours, theirs := net.Pipe()
	d := &dialled{ours, make(chan struct{})}
	p.conns <- &pipe{Conn: theirs, from: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 5353)), closed: d.lost}
	return d
}

// streaming runs f in a bubble beside a server that has a listener in memory.
func streaming(t *testing.T, change func(*sarndns.Config), f func(t *testing.T, p *pipes)) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		s, done := server(change), make(chan error)
		go func() { done <- s.Run(ctx, nil, []net.Listener{p}) }()
		f(t, p)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// framed is a question as it goes over TCP.
func framed(t testing.TB, id uint16, name string, qtype uint16) []byte {
	msg := wire(t, name, qtype)
	binary.BigEndian.PutUint16(msg, id)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
}

func readMsg(conn net.Conn) (*dns.Msg, error) {
	return (&dns.Conn{Conn: conn}).ReadMsg()
}

// slowSource answers questions about one service when it is let.
type slowSource struct {
	*fakeSource
	asked, let chan struct{}
}

// slow gives a server a slowSource, to be found at src.
func slow(src **slowSource) func(*sarndns.Config) {
	return func(c *sarndns.Config) {
		*src = &slowSource{source(), make(chan struct{}, 100), make(chan struct{})}
		c.Source = *src
	}
}

func (s *slowSource) Instances(ctx context.Context, req *catalog.InstancesRequest) (*catalog.InstancesReply, sarndns.Standing, error) {
	if strings.HasPrefix(req.Service, "slow") {
		s.asked <- struct{}{}
		select {
		case <-s.let:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
		reply, _, err := s.fakeSource.Instances(ctx, &catalog.InstancesRequest{Service: "web"})
		return reply, nil, err
	}
	return s.fakeSource.Instances(ctx, req)
}

func TestQuestionsOfAConnectionAreAnsweredSideBySide(t *testing.T) {
	var src *slowSource
	streaming(t, slow(&src), func(t *testing.T, p *pipes) {
		conn := p.dial("192.0.2.1")
		defer conn.Close()
		// One that waits, and many that do not, all at once.
		batch := framed(t, 0, "slow.service.consul.", dns.TypeA)
		for i := range 200 {
			batch = append(batch, framed(t, uint16(i+1), "web.service.consul.", dns.TypeA)...)
		}
		go conn.Write(batch)
		seen := map[uint16]bool{}
		for range 200 {
			resp, err := readMsg(conn)
			if err != nil || len(resp.Answer) != 1 || resp.Id == 0 || seen[resp.Id] {
				t.Fatal(resp, err)
			}
			seen[resp.Id] = true
		}
		close(src.let)
		if resp, err := readMsg(conn); err != nil || resp.Id != 0 || len(resp.Answer) != 1 {
			t.Fatal(resp, err)
		}
	})
}

func TestQuestionsOfAConnectionUnderWayAreBounded(t *testing.T) {
	var src *slowSource
	streaming(t, slow(&src), func(t *testing.T, p *pipes) {
		conn := p.dial("192.0.2.1")
		defer conn.Close()
		var batch []byte
		for i := range 40 {
			batch = append(batch, framed(t, uint16(i), fmt.Sprintf("slow%d.service.consul.", i), dns.TypeA)...)
		}
		go conn.Write(batch)
		synctest.Wait()
		if n := len(src.asked); n != 16 {
			t.Errorf("%d questions are under way, want 16", n)
		}
		other := p.dial("192.0.2.2") // has its own
		defer other.Close()
		go other.Write(framed(t, 7, "slow.service.consul.", dns.TypeA))
		synctest.Wait()
		if n := len(src.asked); n != 17 {
			t.Errorf("%d questions of two connections are under way, want 17", n)
		}
		close(src.let)
		for range 40 {
			if resp, err := readMsg(conn); err != nil || len(resp.Answer) != 1 {
				t.Fatal(resp, err)
			}
		}
	})
}

// A client that sends or takes nothing, or as little as it can, loses its connection in time; one that uses it does not.
func TestSlowClientsLoseTheirConnections(t *testing.T) {
	long := func(c *sarndns.Config) {
		for i := range 2000 {
			c.Source.(*fakeSource).services["long"] = append(c.Source.(*fakeSource).services["long"], instance(fmt.Sprint("l", i), fmt.Sprintf("10.3.%d.%d", i/250, i%250), "l", "", 80))
		}
	}
	for _, tt := range []struct {
		name string
		use  func(t *testing.T, conn net.Conn)
		want time.Duration
	}{
		{"says nothing", func(*testing.T, net.Conn) {}, 8 * time.Second},
		{"half a length", func(_ *testing.T, conn net.Conn) { conn.Write([]byte{0}) }, 8 * time.Second},
		{"drips a question", func(t *testing.T, conn net.Conn) {
			for _, b := range framed(t, 1, "web.service.consul.", dns.TypeA) {
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}, 8 * time.Second},
		{"says that much comes", func(_ *testing.T, conn net.Conn) { conn.Write([]byte{0xff, 0xff, 1, 2, 3}) }, 8 * time.Second},
		{"asks now and then", func(t *testing.T, conn net.Conn) {
			for range 10 {
				conn.Write(framed(t, 1, "web.service.consul.", dns.TypeA))
				if _, err := readMsg(conn); err != nil {
					t.Error(err)
				}
				time.Sleep(7 * time.Second)
			}
		}, 71 * time.Second},
		{"takes no answer", func(t *testing.T, conn net.Conn) { conn.Write(framed(t, 1, "web.service.consul.", dns.TypeA)) }, 2 * time.Second},
		{"takes half an answer", func(t *testing.T, conn net.Conn) {
			conn.Write(framed(t, 1, "long.service.consul.", dns.TypeSRV))
			io.ReadFull(conn, make([]byte, 10000))
		}, 2 * time.Second},
		{"asks much and takes nothing", func(t *testing.T, conn net.Conn) {
			one := framed(t, 1, "long.service.consul.", dns.TypeA)
			conn.Write(one)
			readMsg(conn)
			conn.Write(bytes.Repeat(one, 1000))
		}, 2 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			streaming(t, long, func(t *testing.T, p *pipes) {
				conn := p.dial("192.0.2.1")
				began := time.Now()
				used := make(chan struct{})
				go func() {
					defer close(used)
					tt.use(t, conn)
				}()
				<-conn.lost
				if got := time.Since(began); got < tt.want || got > tt.want+time.Second {
					t.Errorf("closed after %v, want %v", got, tt.want)
				}
				conn.Close()
				<-used
			})
		})
	}
}

// One who has asked and says that no more comes gets the answers.
func TestHalfClosedConnectionsAreAnswered(t *testing.T) {
	streams, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var src *slowSource
	s := server(slow(&src))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx, nil, []net.Listener{streams}) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	conn, err := net.Dial("tcp", streams.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	for _, name := range []string{"slow.service.consul.", "web.service.consul."} {
		if _, err := conn.Write(framed(t, 9, name, dns.TypeA)); err != nil {
			t.Fatal(err)
		}
	}
	conn.(*net.TCPConn).CloseWrite()
	<-src.asked
	close(src.let)
	for range 2 {
		if resp, err := readMsg(conn); err != nil || len(resp.Answer) != 1 {
			t.Fatal(resp, err)
		}
	}
	if _, err := readMsg(conn); !errors.Is(err, io.EOF) {
		t.Errorf("the connection is left open: %v", err)
	}
}

// Few clients cannot keep others out: who has most connections loses one to who has fewer.
func TestConnectionsAreShared(t *testing.T) {
	streaming(t, nil, func(t *testing.T, p *pipes) {
		open := func(from string) *dialled {
			conn := p.dial(from)
			synctest.Wait()
			return conn
		}
		alive := func(conns ...*dialled) (n int) {
			for _, c := range conns {
				if c.alive() {
					n++
				}
			}
			return n
		}
		var greedy []*dialled
		for i := range 8 {
			for range 300 { // one of IPv6 has many addresses
				from := fmt.Sprintf("192.0.2.%d", i)
				if i == 0 {
					from = fmt.Sprintf("2001:db8::%x", len(greedy)+1)
				}
				greedy = append(greedy, open(from))
			}
		}
		if n := alive(greedy...); n != 2048 {
			t.Fatalf("%d connections, want 2048", n)
		}
		var late []*dialled
		for i := range 100 {
			late = append(late, open(fmt.Sprintf("198.51.100.%d", i)))
		}
		if n := alive(late...); n != 100 {
			t.Errorf("%d of 100 later clients are connected", n)
		}
		if n := alive(greedy...); n != 1948 {
			t.Errorf("the greedy have %d connections left, want 1948", n)
		}
		conn := late[0]
		go conn.Write(framed(t, 1, "web.service.consul.", dns.TypeA))
		if resp, err := readMsg(conn); err != nil || len(resp.Answer) != 1 {
			t.Error(resp, err)
		}
		for _, c := range append(greedy, late...) {
			c.Close()
		}
	})
}

// Over TCP, too, what is no question gets the answer it deserves, and does not end the connection.
func TestMalformedMessagesOverTCP(t *testing.T) {
	streaming(t, nil, func(t *testing.T, p *pipes) {
		conn := p.dial("192.0.2.1")
		defer conn.Close()
		send := func(msg []byte) {
			go conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
		}
		good, list := malformed(t)
		long := append(bytes.Clone(good[:12]), make([]byte, 60000)...) // asks for the root, with a tail
		for _, tt := range append(list, deserves{"long, and no question", long, dns.RcodeRefused}) {
			send(tt.msg)
			if tt.rcode < 0 {
				continue
			}
			resp, err := readMsg(conn)
			if err != nil {
				t.Fatalf("%s: %v", tt.name, err)
			}
			if resp.Rcode != tt.rcode {
				t.Errorf("%s: %v", tt.name, resp)
			}
		}
		send(good)
		if resp, err := readMsg(conn); err != nil || len(resp.Answer) != 1 {
			t.Error(resp, err)
		}
	})
}

// What is kept is answered over TCP as it is the long way, up to as much as a message can hold.
func TestKeptAnswersOverTCPAreLikeOthers(t *testing.T) {
	f := source()
	few(f)
	for i := range 1200 {
		f.services["large"] = append(f.services["large"], instance(fmt.Sprintf("a-rather-long-name-%d", i), fmt.Sprintf("10.4.%d.%d", i/250, i%250), "l", "", 80))
		if i < 400 { // beyond what pointers reach, and not beyond a message
			f.services["larger"] = f.services["large"]
		}
	}
	s := server(func(c *sarndns.Config) { c.Source = f })
	q := sarndns.NewQuick(s)
	q.TCP = true
	for _, name := range []string{"web.service.consul.", "WEB.service.Consul.", "few.service.sarn.", "sick.service.consul.", "n1.node.consul.", "0a090807.addr.consul.", "many.service.consul.", "large.service.consul.", "larger.service.consul."} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeANY, dns.TypeTXT} {
			for _, size := range []uint16{0, 512, 4096} {
				m := new(dns.Msg)
				m.SetQuestion(name, qtype)
				if size > 0 {
					m.SetEdns0(size, false)
				}
				msg, err := m.Pack()
				if err != nil {
					t.Fatal(err)
				}
				q.Keep(msg)
				out, ok := q.Answer(msg)
				if !ok {
					continue // never kept
				}
				got := new(dns.Msg)
				if err := got.Unpack(out); err != nil {
					t.Fatal(name, err)
				}
				want := s.Answer(t.Context(), m, true)
				if name != "large.service.consul." || qtype != dns.TypeSRV {
					if diff := cmp.Diff(sorted(want), sorted(got)); diff != "" {
						t.Fatalf("%s %s, size %d (-want +got):\n%s", name, dns.TypeToString[qtype], size, diff)
					}
					continue
				}
				// Too large for a message: cut as near to its end as may be, with the addresses of what is left.
				glue := map[string]bool{}
				for _, rr := range got.Extra {
					glue[rr.Header().Name] = true
				}
				for _, rr := range got.Answer {
					if !glue[rr.(*dns.SRV).Target] {
						t.Fatalf("no address of %s", rr.(*dns.SRV).Target)
					}
				}
				if len(out) > 65535 || len(got.Answer) < len(want.Answer) {
					t.Errorf("%d answers, %d bytes, and %d the long way", len(got.Answer), len(out), len(want.Answer))
				}
			}
		}
	}
}

// BenchmarkKeptOverTCP is the cost of a question that was asked before, pipelined over TCP, with that of its client.
func BenchmarkKeptOverTCP(b *testing.B) {
	streams, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error)
	go func() { done <- server(nil).Run(ctx, nil, []net.Listener{streams}) }()
	conn, err := net.Dial("tcp", streams.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	const together = 50
	one := framed(b, 1, "web.service.consul.", dns.TypeA)
	conn.Write(one)
	resp, err := readMsg(conn)
	if err != nil {
		b.Fatal(err)
	}
	resp.Compress = true
	size, _ := resp.Pack()
	batch, answers := bytes.Repeat(one, together), make([]byte, together*(2+len(size)))
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if n++; n%together != 0 {
			continue
		}
		if _, err := conn.Write(batch); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(conn, answers); err != nil {
			b.Fatal(err)
		}
	}
	conn.Close()
	cancel()
	if err := <-done; err != nil {
		b.Error(err)
	}
}
