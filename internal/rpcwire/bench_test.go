package rpcwire_test

import (
	"context"
	"net"
	"testing"

	"github.com/sarnmesh/sarn/internal/rpcwire"
)

// BenchmarkCall measures calls of 32 callers at once over loopback, each by itself and on a lane.
func BenchmarkCall(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	p := rpcwire.NewPort(rpcwire.PortConfig{Listener: l})
	s := rpcwire.NewServer([]rpcwire.Method{{Name: "Echo", Handle: func(_ context.Context, _ rpcwire.Peer, decode func(any) error) (any, error) {
		req := new(echo)
		return req, decode(req)
	}}}, nil, 0)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 2)
	go func() { done <- p.Run(ctx) }()
	go func() { done <- s.Serve(p.Listener(rpcwire.ProtoRPC)) }()
	c := rpcwire.NewClient(func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		return new(rpcwire.Security).Secure(ctx, conn, rpcwire.ProtoRPC, "dc1")
	})
	defer func() {
		c.Close()
		s.Stop()
		cancel()
		<-done
		<-done
	}()
	for _, bb := range []struct {
		name string
		call func(ctx context.Context, address, method string, req, resp any) error
	}{{"itself", c.Call}, {"lane", c.CallShort}} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := bb.call(b.Context(), l.Addr().String(), "Echo", &echo{"hello"}, new(echo)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
