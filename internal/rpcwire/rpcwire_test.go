package rpcwire_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

type echo struct{ Text string }

// A port under test serves RPC that echoes, and Raft connections that send one byte.
type port struct {
	t      *testing.T
	server *testkit.Host
	client *testkit.Host
	// hanging is how many calls do at present.
	hanging atomic.Int32
}

func serve(t *testing.T, cfg rpcwire.PortConfig) *port {
	t.Helper()
	n := testkit.NewNetwork(1)
	p := &port{t: t, server: n.Host("10.0.0.1"), client: n.Host("10.0.0.2")}
	l, err := p.server.Listen(8300)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listener = l
	rp := rpcwire.NewPort(cfg)
	methods := []rpcwire.Method{
		{Name: "Echo", Handle: func(_ context.Context, _ rpcwire.Peer, decode func(any) error) (any, error) {
			var req echo
			if err := decode(&req); err != nil {
				return nil, err
			}
			return &req, nil
		}},
		{Name: "Fail", Handle: func(_ context.Context, _ rpcwire.Peer, decode func(any) error) (any, error) {
			var req echo
			if err := decode(&req); err != nil {
				return nil, err
			}
			switch req.Text {
			case "status":
				return nil, wireerr.BadRequest("bad: %s", "zap\n% ü")
			case "leader":
				return nil, wireerr.ErrNoLeader
			}
			return nil, errors.New(req.Text)
		}},
		{Name: "Hang", Handle: func(ctx context.Context, _ rpcwire.Peer, _ func(any) error) (any, error) {
			p.hanging.Add(1)
			defer p.hanging.Add(-1)
			<-ctx.Done()
			return nil, ctx.Err()
		}},
	}
	streams := []rpcwire.StreamMethod{{Name: "Double", Handle: func(_ context.Context, _ rpcwire.Peer, decode func(any) error, in io.Reader, reply func(any) error, out io.Writer) error {
		var req echo
		if err := decode(&req); err != nil {
			return err
		}
		if req.Text == "refuse" {
			return wireerr.BadRequest("refused")
		}
		data, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		if err := reply(&echo{req.Text + "!"}); err != nil {
			return err
		}
		_, err = out.Write(append(data, data...))
		return err
	}}}
	srv := rpcwire.NewServer(methods, streams, 1<<20)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- rp.Run(ctx) }()
	go func() { done <- srv.Serve(rp.Listener(rpcwire.ProtoRPC)) }()
	raft := rp.Listener(rpcwire.ProtoRaft)
	go func() {
		for {
			c, err := raft.Accept()
			if err != nil {
				return
			}
			c.Write([]byte{42})
			c.Close()
		}
	}()
	t.Cleanup(func() {
		srv.Stop()
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Errorf("port: %v", err)
			}
		}
	})
	return p
}

func (p *port) rpc(sec *rpcwire.Security) *rpcwire.Client {
	c := rpcwire.NewClient(func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := p.client.Dial(ctx, address)
		if err != nil {
			return nil, err
		}
		return sec.Secure(ctx, conn, rpcwire.ProtoRPC, "dc1")
	})
	p.t.Cleanup(func() { c.Close() })
	return c
}

const address = "10.0.0.1:8300"

func TestCallsAndErrors(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := serve(t, rpcwire.PortConfig{}).rpc(&rpcwire.Security{})
		var got echo
		if err := c.Call(t.Context(), address, "Echo", &echo{"hi"}, &got); err != nil || got.Text != "hi" {
			t.Fatalf("%q, %v", got.Text, err)
		}
		tests := []struct {
			name, call, text string
			want             string
			status           int
			is               error
		}{
			{name: "carried status", call: "Fail", text: "status", want: "rpc error making call: bad: zap\n% ü", status: 400},
			{name: "known error", call: "Fail", text: "leader", want: "rpc error making call: No cluster leader", status: 500, is: wireerr.ErrNoLeader},
			{name: "plain error", call: "Fail", text: "boom", want: "rpc error making call: boom", status: 500},
			{name: "prefix only once", call: "Fail", text: "rpc error making call: boom", want: "rpc error making call: boom", status: 500},
			{name: "denied by text", call: "Fail", text: "Permission denied: x", want: "rpc error making call: Permission denied: x", status: 403},
		}
		for _, tt := range tests {
			err := c.Call(context.Background(), address, tt.call, &echo{tt.text}, &got)
			if err == nil || err.Error() != tt.want || wireerr.Status(err) != tt.status {
				t.Errorf("%s: got %q with status %d, want %q with %d", tt.name, err, wireerr.Status(err), tt.want, tt.status)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%s: %v is not %v", tt.name, err, tt.is)
			}
		}
		if err := c.Call(t.Context(), address, "Nothing", &echo{}, &got); err == nil || !strings.Contains(err.Error(), "unknown method") {
			t.Errorf("unknown call: %v", err)
		}
		if err := c.Call(t.Context(), address, "Echo", &echo{strings.Repeat("x", 2<<20)}, &got); err == nil {
			t.Error("a request over the limit was taken")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.Call(ctx, address, "Hang", &echo{}, &got); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a call that takes too long: %v", err)
		}
	})
}

func TestStreams(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := serve(t, rpcwire.PortConfig{}).rpc(&rpcwire.Security{})
		data := bytes.Repeat([]byte("0123456789"), 50_000)
		var got echo
		body, err := c.Stream(t.Context(), address, "Double", &echo{"x"}, bytes.NewReader(data), &got)
		if err != nil || got.Text != "x!" {
			t.Fatalf("%q, %v", got.Text, err)
		}
		out, err := io.ReadAll(body)
		if err != nil || !bytes.Equal(out, append(data, data...)) {
			t.Errorf("%d bytes, %v; want %d", len(out), err, 2*len(data))
		}
		body.Close()
		_, err = c.Stream(t.Context(), address, "Double", &echo{"refuse"}, bytes.NewReader(data), &got)
		if err == nil || wireerr.Status(err) != 400 {
			t.Errorf("a refused stream: %v", err)
		}
	})
}

func TestFailuresTellWhetherTheCallWasMade(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := serve(t, rpcwire.PortConfig{})
		c := p.rpc(&rpcwire.Security{})
		var got echo
		err := c.Call(t.Context(), "10.0.0.1:9999", "Echo", &echo{}, &got)
		if _, ok := errors.AsType[*rpcwire.DialError](err); !ok || !strings.HasPrefix(err.Error(), "rpc error getting client: failed to get conn: dial tcp") {
			t.Errorf("nobody there: %v", err)
		}
		result := make(chan error, 1)
		go func() { result <- c.Call(context.Background(), address, "Hang", &echo{}, &got) }()
		time.Sleep(time.Second)
		p.client.Crash() // its connections break
		if _, ok := errors.AsType[*rpcwire.LostError](<-result); !ok {
			t.Errorf("a broken connection: %v", err)
		}
		// The next call makes a new connection.
		if err := c.Call(t.Context(), address, "Echo", &echo{"again"}, &got); err != nil || got.Text != "again" {
			t.Errorf("afterwards: %q, %v", got.Text, err)
		}
	})
}

func TestShortCalls(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := serve(t, rpcwire.PortConfig{})
		c := p.rpc(&rpcwire.Security{})
		var all sync.WaitGroup
		for i := range 500 {
			all.Go(func() {
				want := strings.Repeat(strconv.Itoa(i), 1+i%100*200) // some of them are not small
				var got echo
				if err := c.CallShort(t.Context(), address, "Echo", &echo{want}, &got); err != nil || got.Text != want {
					t.Errorf("call %d: %.20q, %v", i, got.Text, err)
				}
			})
		}
		all.Wait()

		var got echo
		for _, want := range []struct {
			text   string
			status int
		}{{"status", 400}, {"leader", 500}, {"odd", 500}} {
			err := c.CallShort(t.Context(), address, "Fail", &echo{want.text}, &got)
			other := c.Call(t.Context(), address, "Fail", &echo{want.text}, &got)
			if err == nil || err.Error() != other.Error() || wireerr.Status(err) != want.status || errors.Is(err, wireerr.ErrNoLeader) != errors.Is(other, wireerr.ErrNoLeader) {
				t.Errorf("%s: %v (%d), alone %v", want.text, err, wireerr.Status(err), other)
			}
		}
		if err := c.CallShort(t.Context(), address, "Nothing", &echo{}, &got); err == nil || !strings.Contains(err.Error(), "unknown method") {
			t.Errorf("an unknown method: %v", err)
		}

		// One that is given up ends at the server, and holds up nobody.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.CallShort(ctx, address, "Hang", &echo{}, &got); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("given up: %v", err)
		}
		synctest.Wait()
		if n := p.hanging.Load(); n != 0 {
			t.Errorf("%d calls that were given up go on", n)
		}

		result := make(chan error, 1)
		go func() { result <- c.CallShort(context.Background(), address, "Hang", &echo{}, new(echo)) }()
		time.Sleep(time.Second)
		p.client.Crash()
		err := <-result
		if _, ok := errors.AsType[*rpcwire.LostError](err); !ok {
			t.Errorf("a broken connection: %v", err)
		}
		synctest.Wait()
		if n := p.hanging.Load(); n != 0 {
			t.Errorf("%d calls of a client that is gone go on", n)
		}
		if err := c.CallShort(t.Context(), address, "Echo", &echo{"again"}, &got); err != nil || got.Text != "again" {
			t.Errorf("afterwards: %q, %v", got.Text, err)
		}
	})
}

// Every combination of what a server demands and a caller does, for each flag of the TLS settings: what must not work
// does not (spec/threats.md, classes 2 and 3).
func TestTLS(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		ca, other := testkit.NewCA(t, "ours"), testkit.NewCA(t, "theirs")
		cert := func(c *tls.Certificate) func() *tls.Certificate { return func() *tls.Certificate { return c } }
		roots := func(ca *testkit.CA) func() *x509.CertPool { p := ca.Pool(); return func() *x509.CertPool { return p } }
		serverCert, wrongDC, agentCert := ca.Issue("server.dc1.consul"), ca.Issue("server.dc2.consul"), ca.Issue("agent.dc1.consul")
		strange := other.Issue("server.dc1.consul")

		servers := map[string]rpcwire.Security{
			"plain":      {},
			"tls":        {Certificate: cert(serverCert), Roots: roots(ca)},
			"verify":     {Certificate: cert(serverCert), Roots: roots(ca), VerifyIncoming: true},
			"other dc":   {Certificate: cert(wrongDC), Roots: roots(ca)},
			"strange ca": {Certificate: cert(strange), Roots: roots(ca)},
			"no roots":   {Certificate: cert(serverCert), VerifyIncoming: true},
			"tls 1.3":    {Certificate: cert(serverCert), Roots: roots(ca), MinVersion: tls.VersionTLS13},
		}
		callers := map[string]rpcwire.Security{
			"plain":          {},
			"tls":            {Roots: roots(ca), VerifyOutgoing: true},
			"tls, agent":     {Roots: roots(ca), VerifyOutgoing: true, Certificate: cert(agentCert)},
			"tls, stranger":  {Roots: roots(ca), VerifyOutgoing: true, Certificate: cert(strange)},
			"names, agent":   {Roots: roots(ca), VerifyServerHostname: true, Certificate: cert(agentCert)},
			"no roots":       {VerifyOutgoing: true, Certificate: cert(agentCert)},
			"their roots":    {Roots: roots(other), VerifyOutgoing: true, Certificate: cert(agentCert)},
			"another domain": {Roots: roots(ca), VerifyServerHostname: true, Certificate: cert(agentCert), Domain: "example."},
		}
		works := map[string][]string{
			"plain":      {"plain"},
			"tls":        {"plain", "tls", "tls, agent", "tls, stranger", "names, agent"},
			"verify":     {"tls, agent", "names, agent"},
			"other dc":   {"plain", "tls", "tls, agent", "tls, stranger"},
			"strange ca": {"plain", "their roots"},
			"no roots":   {},
			"tls 1.3":    {"plain", "tls", "tls, agent", "tls, stranger", "names, agent"},
		}
		for sname, s := range servers {
			p := serve(t, rpcwire.PortConfig{Security: &s})
			for cname, c := range callers {
				want := false
				for _, w := range works[sname] {
					want = want || w == cname
				}
				client := p.rpc(&c)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				var got echo
				err := client.Call(ctx, address, "Echo", &echo{"x"}, &got)
				cancel()
				if (err == nil) != want {
					t.Errorf("server %q, caller %q: %v, want success: %v", sname, cname, err, want)
				}
				client.Close()
			}
		}
	})
}

func TestProtocolsAreToldApart(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		ca := testkit.NewCA(t, "ours")
		c := ca.Issue("server.dc1.consul")
		pool := ca.Pool()
		secure := rpcwire.Security{
			Certificate: func() *tls.Certificate { return c }, Roots: func() *x509.CertPool { return pool },
			VerifyIncoming: true, VerifyServerHostname: true,
		}
		for name, sec := range map[string]*rpcwire.Security{"plain": {}, "tls": &secure} {
			p := serve(t, rpcwire.PortConfig{Security: sec})
			dial := func(proto string) (net.Conn, error) {
				conn, err := p.client.Dial(t.Context(), address)
				if err != nil {
					t.Fatal(err)
				}
				return sec.Secure(t.Context(), conn, proto, "dc1")
			}
			conn, err := dial(rpcwire.ProtoRaft)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			b := make([]byte, 1)
			if _, err := io.ReadFull(conn, b); err != nil || b[0] != 42 {
				t.Errorf("%s: Raft: %v, %v", name, b, err)
			}
			conn.Close()
			if conn, err := dial("http/1.1"); err == nil {
				if _, err := conn.Read(b); err == nil {
					t.Errorf("%s: an unknown protocol was served", name)
				}
				conn.Close()
			}
		}
	})
}

func TestSlowAndManyConnections(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		p := serve(t, rpcwire.PortConfig{HandshakeTimeout: 2 * time.Second, MaxConnsPerClient: 3})
		open := func() net.Conn {
			c, err := p.client.Dial(t.Context(), address)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		start := time.Now()
		silent := open()
		if _, err := silent.Read(make([]byte, 1)); err == nil || time.Since(start) != 2*time.Second {
			t.Errorf("a silent connection was closed after %v (%v), want 2s", time.Since(start), err)
		}
		silent.Close()
		time.Sleep(time.Millisecond) // it does not count any more
		var held []net.Conn
		for range 3 {
			held = append(held, open())
		}
		time.Sleep(time.Millisecond)
		fourth := open()
		start = time.Now()
		if _, err := fourth.Read(make([]byte, 1)); err == nil || time.Since(start) > 100*time.Millisecond {
			t.Errorf("the fourth connection of an address: %v after %v, want it closed at once", err, time.Since(start))
		}
		fourth.Close()
		for _, c := range held {
			c.Close()
		}
		time.Sleep(3 * time.Second)
		c := p.rpc(&rpcwire.Security{})
		if err := c.Call(t.Context(), address, "Echo", &echo{}, new(echo)); err != nil {
			t.Errorf("after the others closed: %v", err)
		}
	})
}

// FuzzPort sends arbitrary bytes to a port: it must neither stop nor leave anything behind.
func FuzzPort(f *testing.F) {
	f.Add([]byte("\x0asarn-rpc/1PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	f.Add([]byte("\x0bsarn-raft/1"))
	f.Add([]byte("\x16\x03\x01\x00\x05hello"))
	f.Fuzz(func(t *testing.T, data []byte) {
		n := testkit.NewNetwork(1)
		s, c := n.Host("10.0.0.1"), n.Host("10.0.0.2")
		l, err := s.Listen(8300)
		if err != nil {
			t.Fatal(err)
		}
		p := rpcwire.NewPort(rpcwire.PortConfig{Listener: l, HandshakeTimeout: 20 * time.Millisecond})
		srv := rpcwire.NewServer(nil, nil, 0)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 2)
		go func() { done <- p.Run(ctx) }()
		go func() { done <- srv.Serve(p.Listener(rpcwire.ProtoRPC)) }()
		conn, err := c.Dial(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(data)
		conn.Close()
		time.Sleep(time.Millisecond)
		srv.Stop()
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}
