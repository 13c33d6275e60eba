package rpcwire

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	"github.com/sarnmesh/sarn/internal/span"
)

// A Method answers one call.
type Method struct {
	Name string
	// Handle decodes the request into a pointer, performs the call and returns a pointer to the reply.
	Handle func(ctx context.Context, p Peer, decode func(any) error) (any, error)
}

// A StreamMethod answers a call that takes or gives a stream of bytes beside its request and reply.
type StreamMethod struct {
	Name string
	// Handle decodes the request, reads what follows it from in, sends the reply once, and writes what follows it
	// to out.
	Handle func(ctx context.Context, p Peer, decode func(any) error, in io.Reader, reply func(any) error, out io.Writer) error
}

// Sizes of messages.
const (
	// DefaultMaxRequest bounds a request.
	DefaultMaxRequest = 64 << 20
	// maxReply bounds a reply: a caller trusts the servers, but not without end.
	maxReply = 1 << 30
	// chunk is how much of a byte stream goes into one message.
	chunk = 64 << 10
	// readBuffer is what each connection of a server holds to read: requests are small, and agents many.
	readBuffer = 8 << 10
)

// service is the gRPC service that holds every call.
const service = "sarn"

// A Server answers calls that come over accepted connections.
type Server struct {
	grpc   *grpc.Server
	tracer *span.Tracer // nil records nothing
}

// NewServer makes a server of calls. maxRequest bounds requests in bytes; 0 means DefaultMaxRequest.
func NewServer(methods []Method, streams []StreamMethod, maxRequest int) *Server {
	if maxRequest == 0 {
		maxRequest = DefaultMaxRequest
	}
	g := grpc.NewServer(
		grpc.ForceServerCodecV2(codec{}),
		grpc.Creds(passthrough{}),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxConcurrentStreams(16<<10),
		grpc.ReadBufferSize(readBuffer),
		grpc.InitialWindowSize(1<<20), grpc.InitialConnWindowSize(4<<20),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
	)
	srv := &Server{grpc: g}
	desc := grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil)}
	for _, m := range methods {
		desc.Methods = append(desc.Methods, grpc.MethodDesc{
			MethodName: m.Name,
			Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				ctx, sp := srv.servedSpan(ctx, m.Name)
				reply, err := m.Handle(ctx, peerOf(ctx), decode)
				finish(sp, err)
				if err != nil {
					return nil, toStatus(err)
				}
				return reply, nil
			},
		})
	}
	for _, m := range streams {
		desc.Streams = append(desc.Streams, grpc.StreamDesc{
			StreamName: m.Name, ServerStreams: true, ClientStreams: true,
			Handler: func(_ any, s grpc.ServerStream) error {
				ctx, sp := srv.servedSpan(s.Context(), m.Name)
				err := m.Handle(ctx, peerOf(ctx), s.RecvMsg, &chunkReader{recv: s.RecvMsg}, s.SendMsg, chunkWriter{s.SendMsg})
				finish(sp, err)
				return toStatus(err)
			},
		})
	}
	byName := make(map[string]Method, len(methods))
	for _, m := range methods {
		byName[m.Name] = m
	}
	desc.Streams = append(desc.Streams, grpc.StreamDesc{
		StreamName: laneName, ServerStreams: true, ClientStreams: true,
		Handler: func(_ any, s grpc.ServerStream) error { return serveLane(s, byName) },
	})
	g.RegisterService(&desc, struct{}{})
	return srv
}

// Serve answers on the connections of l until Stop or an error of l.
func (s *Server) Serve(l net.Listener) error {
	err := s.grpc.Serve(l)
	if errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Stop closes every connection and cancels the calls in progress.
func (s *Server) Stop() { s.grpc.Stop() }

// passthrough leaves connections as they are: their security was settled before gRPC saw them.
type passthrough struct{}

type peerInfo struct{ Peer }

func (peerInfo) AuthType() string { return "port" }

func (passthrough) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	info := peerInfo{Peer{Addr: c.RemoteAddr()}}
	if pc, ok := c.(*Conn); ok {
		info.Peer = pc.Peer()
	}
	return c, info, nil
}

func (passthrough) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c, peerInfo{}, nil
}

func (passthrough) Info() credentials.ProtocolInfo { return credentials.ProtocolInfo{} }

func (passthrough) Clone() credentials.TransportCredentials { return passthrough{} }

func (passthrough) OverrideServerName(string) error { return nil }

func peerOf(ctx context.Context) Peer {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(peerInfo); ok {
			return info.Peer
		}
		return Peer{Addr: p.Addr}
	}
	return Peer{}
}

// A chunkReader reads a byte stream that comes in messages.
type chunkReader struct {
	recv func(any) error
	rest []byte
	err  error
}

func (r *chunkReader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 && r.err == nil {
		var m []byte
		r.err = r.recv(&m)
		r.rest = m
	}
	if len(r.rest) == 0 {
		return 0, r.err
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// A chunkWriter sends a byte stream in messages.
type chunkWriter struct{ send func(any) error }

func (w chunkWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		k := min(len(b), chunk)
		m := b[:k]
		if err := w.send(&m); err != nil {
			return n, err
		}
		n, b = n+k, b[k:]
	}
	return n, nil
}
