package check

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
)

const (
	probeTimeout  = 10 * time.Second // of network checks
	scriptTimeout = 30 * time.Second // of scripts and questions about services of the system
	dockerTimeout = 5 * time.Minute  // of programs in containers: the reference lets one that hangs hang
	userAgent     = "Consul Health Check"
	maxHeader     = 64 << 10 // bytes of an answer's header, and of a whole one over gRPC
	maxFrames     = 1000     // of HTTP/2, until a PING is acknowledged
	maxFrameSize  = 1 << 16
)

// newProbe returns the probe for c, nil for TTL checks.
func (s *Scheduler) newProbe(c *scheduled) Probe {
	d := &c.def
	n := network{s.cfg.Dial, s.cfg.TLS, d, d.Timeout}
	if n.timeout <= 0 {
		n.timeout = probeTimeout
	}
	switch c.kind {
	case definition.TypeHTTP:
		return httpProbe{n, c.limit}
	case definition.TypeTCP:
		return tcpProbe{n}
	case definition.TypeUDP:
		return udpProbe{n}
	case definition.TypeGRPC:
		return grpcProbe{n}
	case definition.TypeH2PING:
		return h2Probe{n}
	case definition.TypeScript:
		return scriptProbe{d.ScriptArgs, d.Timeout, c.limit}
	case definition.TypeDocker:
		return dockerProbe{s.cfg.DialDocker, d.DockerContainerID, d.ScriptArgs, d.Timeout, c.limit}
	case definition.TypeOSService:
		return serviceProbe{s.cfg.OSService, d.OSService, d.Timeout}
	case definition.TypeAlias:
		if d.AliasNode != "" {
			return &nodeAlias{caller: s.cfg.Caller, id: c.id, node: d.AliasNode, service: d.AliasService, token: s.cfg.Token}
		}
		return localAlias{s.cfg.Aliases, c.id, d.AliasService}
	}
	return nil
}

func critical(format string, args ...any) Result {
	return Result{Status: catalog.Critical, Output: fmt.Sprintf(format, args...)}
}

func passing(format string, args ...any) Result {
	return Result{Status: catalog.Passing, Output: fmt.Sprintf(format, args...)}
}

var errNoDialer = errors.New("network checks are not available")

// network is what probes that connect somewhere share.
type network struct {
	dialer  func(ctx context.Context, network, address string) (net.Conn, error)
	base    func() *tls.Config
	def     *definition.Check
	timeout time.Duration
}

func (n *network) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if n.dialer == nil {
		return nil, errNoDialer
	}
	return n.dialer(ctx, network, address)
}

// tlsConfig returns the configuration for a connection to address. Without an address the name to expect may be empty.
func (n *network) tlsConfig(address string, protocols ...string) *tls.Config {
	cfg := &tls.Config{}
	if n.base != nil {
		if b := n.base(); b != nil {
			cfg = b.Clone()
		}
	}
	cfg.NextProtos = protocols
	cfg.InsecureSkipVerify = n.def.TLSSkipVerify
	if n.def.TLSServerName != "" {
		cfg.ServerName = n.def.TLSServerName
	}
	if cfg.ServerName == "" {
		if host, _, err := net.SplitHostPort(address); err == nil {
			cfg.ServerName = host
		}
	}
	return cfg
}

// dialTLS connects to address and shakes hands.
func (n *network) dialTLS(ctx context.Context, network, address string, protocols ...string) (net.Conn, error) {
	conn, err := n.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	t := tls.Client(conn, n.tlsConfig(address, protocols...))
	if err := t.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return t, nil
}

// A tcpProbe asks for a connection.
type tcpProbe struct{ network }

// Probe connects once.
func (p tcpProbe) Probe(ctx context.Context) Result {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	network, address := "tcp", p.def.TCP
	if path, ok := strings.CutPrefix(address, "unix://"); ok {
		network, address = "unix", path
	}
	dial, kind := p.dial, "TCP"
	if p.def.TCPUseTLS {
		kind = "TCP+TLS"
		dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			return p.dialTLS(ctx, network, address)
		}
	}
	conn, err := dial(ctx, network, address)
	if err != nil {
		return critical("%v", err)
	}
	conn.Close()
	return passing("%s connect %s: Success", kind, p.def.TCP)
}

// A udpProbe sends an empty datagram. An answer is passing, and so is silence: only a refusal or an unusable address
// is critical.
type udpProbe struct{ network }

// Probe sends once and waits for an answer.
func (p udpProbe) Probe(ctx context.Context) Result {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	conn, err := p.dial(ctx, "udp", p.def.UDP)
	if err != nil {
		return critical("%v", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(nil); err != nil {
		return critical("%v", err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
			return critical("%v", err)
		}
	}
	return passing("UDP connect %s: Success", p.def.UDP)
}

// A grpcProbe asks the standard health service.
type grpcProbe struct{ network }

// Probe asks once.
func (p grpcProbe) Probe(ctx context.Context) Result {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	target, service, _ := strings.Cut(p.def.GRPC, "/")
	creds := insecure.NewCredentials()
	if p.def.GRPCUseTLS {
		creds = credentials.NewTLS(p.tlsConfig(target, "h2"))
	}
	conn, err := grpc.NewClient("passthrough:///"+target,
		grpc.WithTransportCredentials(creds), grpc.WithUserAgent(userAgent), grpc.WithDisableServiceConfig(), grpc.WithNoProxy(),
		grpc.WithMaxHeaderListSize(maxHeader), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxHeader)),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return p.dial(ctx, "tcp", addr) }))
	if err != nil {
		return critical("%v", err)
	}
	defer conn.Close()
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	switch {
	case err != nil:
		return critical("%v", err)
	case resp.Status != grpc_health_v1.HealthCheckResponse_SERVING:
		return critical("gRPC %s serving status: %s", p.def.GRPC, resp.Status)
	}
	return passing("gRPC check %s: success", p.def.GRPC)
}

// An h2Probe sends an HTTP/2 PING.
type h2Probe struct{ network }

// Probe pings once.
func (p h2Probe) Probe(ctx context.Context) Result {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	var conn net.Conn
	var err error
	if p.def.H2PingUseTLS {
		conn, err = p.dialTLS(ctx, "tcp", p.def.H2PING, http2.NextProtoTLS)
	} else {
		conn, err = p.dial(ctx, "tcp", p.def.H2PING)
	}
	if err != nil {
		return critical("Failed to dial to %s: %v", p.def.H2PING, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := ping(conn); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return critical("HTTP2 ping failed: %v", err)
	}
	return passing("HTTP2 ping was successful")
}

// ping opens an HTTP/2 connection as a client and waits for the acknowledgement of a PING (RFC 9113 section 6.7).
func ping(conn net.Conn) error {
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		return err
	}
	framer := http2.NewFramer(conn, conn)
	framer.SetMaxReadFrameSize(maxFrameSize)
	if err := framer.WriteSettings(); err != nil {
		return err
	}
	data := [8]byte{'s', 'a', 'r', 'n', 'p', 'i', 'n', 'g'}
	if err := framer.WritePing(false, data); err != nil {
		return err
	}
	for range maxFrames {
		f, err := framer.ReadFrame()
		if err != nil {
			return err
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				if err := framer.WriteSettingsAck(); err != nil {
					return err
				}
			}
		case *http2.PingFrame:
			if f.IsAck() && f.Data == data {
				return nil
			}
		case *http2.GoAwayFrame:
			return fmt.Errorf("connection refused with %v", f.ErrCode)
		}
	}
	return fmt.Errorf("no answer within %d frames", maxFrames)
}
