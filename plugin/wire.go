package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/status"
)

// Handshake is what both sides know of one another. A program that is started by hand says that it is a plugin.
var Handshake = goplugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: "SARN_CA_PLUGIN", MagicCookieValue: "ca-provider-v1"}

// Name is what the provider is called among what a program serves.
const Name = "ca"

// LifelineVariable is the environment variable with the number of the file that a program reads until its end: then its
// server is gone, and so is the program.
const LifelineVariable = "SARN_PLUGIN_LIFELINE"

const (
	service = "sarn.ca.v1.Provider"
	subtype = "json"
)

func init() { encoding.RegisterCodec(codec{}) }

// codec writes messages as JSON.
type codec struct{}

func (codec) Name() string                       { return subtype }
func (codec) Marshal(v any) ([]byte, error)      { return json.Marshal(v) }
func (codec) Unmarshal(data []byte, v any) error { return json.Unmarshal(data, v) }

// A GRPC is a provider as go-plugin knows it: with Provider set on the side of the program, without on that of the server.
type GRPC struct {
	goplugin.NetRPCUnsupportedPlugin
	Provider Provider
}

// GRPCServer serves the provider.
func (g *GRPC) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	if g.Provider == nil {
		return errors.New("there is no provider to serve")
	}
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: service, HandlerType: (*Provider)(nil),
		Methods: []grpc.MethodDesc{
			method("Establish", Provider.Establish), method("Sign", Provider.Sign), method("SignIntermediate", Provider.SignIntermediate),
			method("CrossSign", Provider.CrossSign), method("Renew", Provider.Renew), method("Cleanup", Provider.Cleanup),
		},
	}, g.Provider)
	return nil
}

// GRPCClient returns a Provider that speaks to the program.
func (g *GRPC) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return client{conn}, nil
}

func method[Req, Resp any](name string, f func(Provider, context.Context, *Req) (*Resp, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(p any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (reply any, err error) {
		defer func() {
			if fault := recover(); fault != nil {
				err = status.Errorf(codes.Internal, "the provider panicked: %v", fault)
			}
		}()
		req := new(Req)
		if err := decode(req); err != nil {
			return nil, err
		}
		resp, err := f(p.(Provider), ctx, req)
		if err != nil {
			return nil, status.Error(codes.Unknown, err.Error())
		}
		if resp == nil {
			return nil, status.Error(codes.Internal, "the provider returned nothing")
		}
		return resp, nil
	}}
}

// A client is the server's side.
type client struct{ conn *grpc.ClientConn }

func call[Resp any](ctx context.Context, c client, name string, req any) (*Resp, error) {
	resp := new(Resp)
	err := c.conn.Invoke(ctx, "/"+service+"/"+name, req, resp,
		grpc.CallContentSubtype(subtype), grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage))
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (c client) Establish(ctx context.Context, r *EstablishRequest) (*Kept, error) {
	return call[Kept](ctx, c, "Establish", r)
}

func (c client) Sign(ctx context.Context, r *SignRequest) (*Certificate, error) {
	return call[Certificate](ctx, c, "Sign", r)
}

func (c client) SignIntermediate(ctx context.Context, r *SignRequest) (*Certificate, error) {
	return call[Certificate](ctx, c, "SignIntermediate", r)
}

func (c client) CrossSign(ctx context.Context, r *CrossSignRequest) (*Certificate, error) {
	return call[Certificate](ctx, c, "CrossSign", r)
}

func (c client) Renew(ctx context.Context, r *RenewRequest) (*Kept, error) {
	return call[Kept](ctx, c, "Renew", r)
}

func (c client) Cleanup(ctx context.Context, r *CleanupRequest) (*CleanupReply, error) {
	return call[CleanupReply](ctx, c, "Cleanup", r)
}

// Serve serves a provider until the server that started the program ends it, or is gone. It is the whole of a main function.
func Serve(p Provider) {
	if text := os.Getenv(LifelineVariable); text != "" {
		number, err := strconv.Atoi(text)
		if err != nil || number < 3 {
			fmt.Fprintf(os.Stderr, "%s is no file\n", LifelineVariable)
			os.Exit(2)
		}
		go func() {
			_, _ = io.Copy(io.Discard, os.NewFile(uintptr(number), "lifeline"))
			os.Exit(0)
		}()
	}
	goplugin.Serve(&goplugin.ServeConfig{
		HandshakeConfig: Handshake,
		Plugins:         goplugin.PluginSet{Name: &GRPC{Provider: p}},
		GRPCServer: func(options []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(options, grpc.MaxRecvMsgSize(MaxMessage))...)
		},
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: os.Stderr, JSONFormat: true}),
	})
}
