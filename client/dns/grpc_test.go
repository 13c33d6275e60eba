package dns_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/miekg/dns"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/sarnmesh/sarn/catalog"
	sarndns "github.com/sarnmesh/sarn/client/dns"
)

// rawCodec sends and receives messages as they are packed.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error)      { return *v.(*[]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error { *v.(*[]byte) = bytes.Clone(data); return nil }
func (rawCodec) Name() string                       { return "proto" }

// A caller asks over gRPC.
type caller struct{ conn *grpc.ClientConn }

func newCaller(t *testing.T, s *sarndns.Server) caller {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	g := grpc.NewServer()
	s.Register(g)
	done := make(chan error, 1)
	go func() { done <- g.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///dns", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		g.Stop()
		<-done
	})
	return caller{conn}
}

const (
	unset, tcp, udp = 0, 1, 2
)

func (c caller) raw(ctx context.Context, msg []byte, protocol uint64) ([]byte, error) {
	var in, out []byte
	in = protowire.AppendBytes(protowire.AppendTag(in, 1, protowire.BytesType), msg)
	if protocol != unset {
		in = protowire.AppendVarint(protowire.AppendTag(in, 2, protowire.VarintType), protocol)
	}
	if err := c.conn.Invoke(ctx, "/hashicorp.consul.dns.DNSService/Query", &in, &out, grpc.ForceCodec(rawCodec{})); err != nil {
		return nil, err
	}
	field, kind, n := protowire.ConsumeTag(out)
	if n < 0 || field != 1 || kind != protowire.BytesType {
		return nil, fmt.Errorf("answered %x", out)
	}
	answer, n := protowire.ConsumeBytes(out[n:])
	if n < 0 {
		return nil, protowire.ParseError(n)
	}
	return answer, nil
}

func (c caller) ask(ctx context.Context, t *testing.T, m *dns.Msg, protocol uint64) *dns.Msg {
	t.Helper()
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.raw(ctx, msg, protocol)
	if err != nil {
		t.Fatal(err)
	}
	resp := new(dns.Msg)
	if err := resp.Unpack(out); err != nil {
		t.Fatal(err)
	}
	if resp.Id != m.Id || !resp.Response {
		t.Errorf("answered %v", resp)
	}
	return resp
}

func question(name string, qtype uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, qtype) }

// tokenSource notes the token that instances are asked with.
type tokenSource struct {
	*fakeSource
	token atomic.Value
}

func (s *tokenSource) Instances(ctx context.Context, req *catalog.InstancesRequest) (*catalog.InstancesReply, sarndns.Standing, error) {
	s.token.Store(req.Token)
	return s.fakeSource.Instances(ctx, req)
}

func TestQuestionsOverGRPC(t *testing.T) {
	src := &tokenSource{fakeSource: source()}
	s := server(func(c *sarndns.Config) {
		c.Source, c.Token = src, func() string { return "the agent's own" }
	})
	c := newCaller(t, s)

	// The limits are those of the protocol that the question came over.
	for protocol, want := range map[uint64]int{udp: 3, tcp: 40} {
		if got := c.ask(t.Context(), t, question("many.service.consul.", dns.TypeA), protocol); len(got.Answer) != want {
			t.Errorf("protocol %d: %d answers, want %d", protocol, len(got.Answer), want)
		}
	}
	if got := c.ask(t.Context(), t, question("many.service.consul.", dns.TypeA).SetEdns0(4096, false), udp); len(got.Answer) != 40 {
		t.Errorf("with EDNS0: %d answers", len(got.Answer))
	}
	if got := c.ask(t.Context(), t, question("gone.service.consul.", dns.TypeA), udp); got.Rcode != dns.RcodeNameError {
		t.Errorf("unknown: %v", got)
	}
	if got := c.ask(t.Context(), t, question("example.com.", dns.TypeA), udp); got.Rcode != dns.RcodeRefused {
		t.Errorf("outside: %v", got)
	}

	// The token is the caller's, and never that of the agent; what others were answered is not used.
	if got := src.token.Load(); got != "" {
		t.Errorf("asked with token %q, want none", got)
	}
	c.ask(metadata.AppendToOutgoingContext(t.Context(), "x-consul-token", "the caller's"), t, question("many.service.consul.", dns.TypeA), udp)
	if got := src.token.Load(); got != "the caller's" {
		t.Errorf("asked with token %q, want the caller's", got)
	}
	if n := src.open.Load(); n != 0 {
		t.Errorf("%d standings are open", n)
	}

	good, _ := question("web.service.consul.", dns.TypeA).Pack()
	answer := question("web.service.consul.", dns.TypeA)
	answer.Response = true
	back, _ := answer.Pack()
	for name, tt := range map[string]struct {
		msg      []byte
		protocol uint64
		want     string
	}{
		"no protocol":   {good, unset, "error protocol type not set"},
		"some protocol": {good, 7, "error protocol type not set"},
		"nothing":       {nil, udp, "failure decoding dns request"},
		"garbage":       {[]byte("garbage"), udp, "failure decoding dns request"},
		"an answer":     {back, udp, "failure decoding dns request"},
		"too long":      {make([]byte, 1<<16), tcp, "too long"},
	} {
		if _, err := c.raw(t.Context(), tt.msg, tt.protocol); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// waitingSource answers once it is told to.
type waitingSource struct {
	*fakeSource
	asked   atomic.Int64
	proceed chan struct{}
}

func (s *waitingSource) Instances(ctx context.Context, req *catalog.InstancesRequest) (*catalog.InstancesReply, sarndns.Standing, error) {
	s.asked.Add(1)
	<-s.proceed
	return s.fakeSource.Instances(ctx, req)
}

// Class 11, unbounded resources.
func TestThreat11QuestionsOverGRPCAreBounded(t *testing.T) {
	const most = 1024
	src := &waitingSource{fakeSource: source(), proceed: make(chan struct{})}
	c := newCaller(t, server(func(c *sarndns.Config) { c.Source = src }))
	msg, _ := question("web.service.consul.", dns.TypeA).Pack()
	var calls sync.WaitGroup
	var refused atomic.Int64
	for range most + 10 {
		calls.Go(func() {
			switch _, err := c.raw(t.Context(), msg, udp); {
			case status.Code(err) == codes.ResourceExhausted:
				refused.Add(1)
			case err != nil:
				t.Error(err)
			}
		})
	}
	for src.asked.Load() < most || refused.Load() < 10 {
		time.Sleep(time.Millisecond)
	}
	close(src.proceed)
	calls.Wait()
	if src.asked.Load() != most || refused.Load() != 10 {
		t.Errorf("%d asked, %d refused", src.asked.Load(), refused.Load())
	}
}

// faultySource has a fault that one name brings out.
type faultySource struct{ *fakeSource }

func (s faultySource) Instances(ctx context.Context, req *catalog.InstancesRequest) (*catalog.InstancesReply, sarndns.Standing, error) {
	if req.Service == "boom" {
		panic("the fault")
	}
	return s.fakeSource.Instances(ctx, req)
}

// faultyStanding has a fault once it was kept.
type faultyStanding struct{ sarndns.Standing }

func (faultyStanding) Current() bool { panic("the fault") }

func (s faultySource) Node(ctx context.Context, req *catalog.NodeServicesRequest) (*catalog.NodeServicesReply, sarndns.Standing, error) {
	reply, standing, err := s.fakeSource.Node(ctx, req)
	return reply, faultyStanding{standing}, err
}

// lockedBuffer is a log.
type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func TestAFaultConcernsOneQuestion(t *testing.T) {
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	streams, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	s := server(func(c *sarndns.Config) {
		c.Source, c.Logger = faultySource{source()}, hclog.New(&hclog.LoggerOptions{Output: &log, Level: hclog.Error})
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx, []net.PacketConn{packets}, []net.Listener{streams}) }()
	over := func(network, addr string) func(*dns.Msg) *dns.Msg {
		return func(m *dns.Msg) *dns.Msg {
			resp, _, err := (&dns.Client{Net: network, Timeout: 20 * time.Second}).Exchange(m, addr)
			if err != nil {
				t.Fatalf("%s: %v", network, err)
			}
			return resp
		}
	}
	c := newCaller(t, s)
	for way, ask := range map[string]func(*dns.Msg) *dns.Msg{
		"udp": over("udp", packets.LocalAddr().String()), "tcp": over("tcp", streams.Addr().String()),
		"grpc": func(m *dns.Msg) *dns.Msg { return c.ask(ctx, t, m, udp) },
	} {
		for range 3 {
			if got := ask(question("boom.service.consul.", dns.TypeA)); got.Rcode != dns.RcodeServerFailure || len(got.Question) != 1 {
				t.Errorf("%s: %v", way, got)
			}
		}
		// The second time the answer of the first would be there.
		for range 2 {
			if got := ask(question("n1.node.consul.", dns.TypeA)); got.Rcode != dns.RcodeSuccess || len(got.Answer) != 1 {
				t.Errorf("%s, with a fault in what is kept: %v", way, got)
			}
		}
		if got := ask(question("web.service.consul.", dns.TypeA)); len(got.Answer) != 1 {
			t.Errorf("%s, after the fault: %v", way, got)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if text := log.String(); !strings.Contains(text, "the fault") || !strings.Contains(text, "grpc_test.go") {
		t.Errorf("the log does not tell of the fault: %s", text)
	}
}

func TestVersionsOfEDNS(t *testing.T) {
	s := server(func(c *sarndns.Config) {
		c.Settings.Recursors = []string{"192.0.2.1:53"}
		c.Exchange = func(context.Context, string, string, *dns.Msg) (*dns.Msg, error) {
			return nil, errors.New("a recursor was asked")
		}
	})
	for _, name := range []string{"web.service.consul.", "1.1.1.10.in-addr.arpa.", "example.com."} {
		got := ask(t, s, name, "A", func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().SetVersion(1)
		}, false)
		if opt := got.IsEdns0(); got.Rcode != dns.RcodeBadVers || opt == nil || opt.Version() != 0 || opt.UDPSize() != 1232 || len(got.Answer)+len(got.Ns) != 0 {
			t.Errorf("%s, version 1: %v", name, got)
		}
	}
	if got := ask(t, s, "web.service.consul.", "A", func(m *dns.Msg) { m.SetEdns0(1232, false).SetEdns0(1232, false) }, false); got.Rcode != dns.RcodeFormatError || len(got.Answer) != 0 {
		t.Errorf("two OPT records: %v", got)
	}
}
