// Package grpcapi is the public gRPC interface of an agent: configuration for proxies (xDS) and the health of the
// server itself. It serves on listeners it is given, in plaintext or over TLS.
package grpcapi

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/sarnmesh/sarn/internal/span"
)

// A Service adds itself to a gRPC server.
type Service interface {
	Register(grpc.ServiceRegistrar)
}

// A Listener is a place to serve on.
type Listener struct {
	net.Listener
	TLS *tls.Config // nil serves in plaintext
	// Admit, when not nil, is asked before every call over TLS; its error refuses the call.
	Admit func(method string, state tls.ConnectionState) error
}

// Config tunes a Server. A zero field takes its default.
type Config struct {
	MaxRequest    int           // bytes of one message of a client; default 4 MiB
	MaxConcurrent uint32        // streams on one connection; default 1024
	Grace         time.Duration // open calls may finish in this time once Run is to end; default none
	KeepAlive     time.Duration // silent clients are pinged this often; default 30s
	Timeout       time.Duration // of the answer to a ping; default 20s
	Logger        hclog.Logger  // default discards
	Tracer        *span.Tracer  // records calls that are no streams; nil records none
}

// A Server serves gRPC. Make one with New; nothing happens until Run.
type Server struct {
	cfg       Config
	listeners []Listener
	services  []Service
	load      load
}

// New returns a server of the services, and of gRPC health, on the listeners.
func New(listeners []Listener, services []Service, cfg Config) *Server {
	if cfg.MaxRequest <= 0 {
		cfg.MaxRequest = 4 << 20
	}
	if cfg.MaxConcurrent == 0 {
		cfg.MaxConcurrent = 1024
	}
	if cfg.KeepAlive <= 0 {
		cfg.KeepAlive = 30 * time.Second
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 20 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Server{cfg: cfg, listeners: listeners, services: services}
}

// Run serves until ctx ends, then closes the listeners and returns nil; or until a listener fails. Every call has ended
// by then.
func (s *Server) Run(ctx context.Context) error {
	healthy := health.NewServer()
	servers := make([]*grpc.Server, len(s.listeners))
	for i, l := range s.listeners {
		servers[i] = s.server(l)
		healthv1.RegisterHealthServer(servers[i], healthy)
		for _, svc := range s.services {
			svc.Register(servers[i])
		}
	}
	failed := make(chan error, len(servers))
	var serving sync.WaitGroup
	reporting, reported := context.WithCancel(ctx)
	defer reported()
	serving.Go(func() { s.load.report(reporting) })
	for i, g := range servers {
		serving.Go(func() {
			if err := g.Serve(s.listeners[i].Listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
				failed <- err
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	reported()
	healthy.Shutdown()
	s.stop(servers)
	serving.Wait()
	return err
}

// stop ends the servers, leaving open calls the grace.
func (s *Server) stop(servers []*grpc.Server) {
	if s.cfg.Grace > 0 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			var all sync.WaitGroup
			for _, g := range servers {
				all.Go(g.GracefulStop)
			}
			all.Wait()
		}()
		grace := time.NewTimer(s.cfg.Grace)
		defer grace.Stop()
		select {
		case <-done:
			return
		case <-grace.C:
		}
		defer func() { <-done }()
	}
	for _, g := range servers {
		g.Stop()
	}
}

// window is how much clients may send ahead, in bytes.
const window = 1 << 20

func (s *Server) server(l Listener) *grpc.Server {
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(s.cfg.MaxRequest),
		grpc.MaxConcurrentStreams(s.cfg.MaxConcurrent),
		// There are many clients and each says little: what they may send ahead need not be found out by pings.
		grpc.StaticConnWindowSize(window), grpc.StaticStreamWindowSize(window),
		grpc.ConnectionTimeout(20 * time.Second), // for a client to say hello
		grpc.StatsHandler(&s.load), grpc.ChainUnaryInterceptor(s.load.unary, s.record), grpc.ChainStreamInterceptor(s.load.stream),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 15 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: s.cfg.KeepAlive, Timeout: s.cfg.Timeout}),
	}
	if l.TLS != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(l.TLS)))
	}
	if l.Admit != nil {
		options = append(options,
			grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
				if err := l.admit(ctx, info.FullMethod); err != nil {
					return nil, err
				}
				return handle(ctx, req)
			}),
			grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
				if err := l.admit(ss.Context(), info.FullMethod); err != nil {
					return err
				}
				return handle(srv, ss)
			}))
	}
	return grpc.NewServer(options...)
}

// record records a call if it is to be recorded.
func (s *Server) record(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if !s.cfg.Tracer.On() {
		return handle(ctx, req)
	}
	name := strings.TrimPrefix(info.FullMethod, "/")
	ctx, sp := s.cfg.Tracer.Begin(ctx, span.Incoming(ctx), span.Server, name)
	reply, err := handle(ctx, req)
	if sp != nil {
		service, method, _ := strings.Cut(name, "/")
		sp.Text("rpc.system", "grpc")
		sp.Text("rpc.service", service)
		sp.Text("rpc.method", method)
		code := status.Code(err)
		sp.Int("rpc.grpc.status_code", int(code))
		switch code {
		case codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
			sp.Fail(strconv.Itoa(int(code)))
		}
		sp.Finish()
	}
	return reply, err
}

// admit asks whether a call may be made.
func (l Listener) admit(ctx context.Context, method string) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.PermissionDenied, "nothing is known of the caller")
	}
	t, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil
	}
	if err := l.Admit(method, t.State); err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return nil
}
