package proxycmd

import (
	"cmp"
	"context"
	"net"
	"os"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/internal/version"
)

// SidecarConfig says which proxy another command runs in its own process.
type SidecarConfig struct {
	ID     string      // of the proxy's registration with the agent
	Client *api.Client // of the agent
	Config *api.Config // what Client was made of
	Token  string      // ACL token

	// GRPCAddr is the agent's gRPC port, asked of the agent if empty; CAFile and CAPath are for TLS to it.
	GRPCAddr, GRPCCAFile, GRPCCAPath string

	DrainTime time.Duration // how long connections may stay once the proxy is told to stop; at least 1ms
	Logger    hclog.Logger
}

// A Sidecar is the built-in proxy of one registration, with its admin server.
type Sidecar struct {
	proxy *proxy.Proxy
	desk  *adminServer
	log   hclog.Logger
}

// NewSidecar makes a sidecar. Nothing happens until Run.
func NewSidecar(cfg SidecarConfig) (*Sidecar, error) {
	c := &command{flags: flags{
		grpcAddr: cfg.GRPCAddr, grpcCAPath: cfg.GRPCCAPath,
		grpcCAFile: cmp.Or(cfg.GRPCCAFile, cfg.Config.TLSConfig.CAFile),
		http:       httpFlags{token: cfg.Token},
	}}
	a := &agent{flags: &c.flags, cfg: cfg.Config, api: cfg.Client, log: cfg.Logger.Named("agent")}
	p, err := proxy.New(proxy.Config{
		Version: version.Number(), Decoder: decode.New(decode.FromSystem()), Logger: cfg.Logger,
		Stdout: os.Stdout, Stderr: os.Stderr,
		ShutdownTime: max(cfg.DrainTime, time.Millisecond),
		Bootstrap:    a.bootstrap(cfg.ID), Targets: a.targets(), Metadata: a.metadata,
	})
	if err != nil {
		return nil, err
	}
	s := &Sidecar{proxy: p, log: cfg.Logger}
	s.desk = newAdminServer(p, cfg.Logger, func(ctx context.Context) (net.Listener, []model.StringMatch, error) {
		return c.openAdmin(ctx, fileName(cfg.ID), nil)
	})
	return s, nil
}

// Ready reports whether the proxy does what it was told and may be sent traffic.
func (s *Sidecar) Ready() bool { return s.proxy.Ready() }

// Run runs the proxy until ctx ends and its connections have ended, or the time for that is over.
func (s *Sidecar) Run(ctx context.Context) error {
	g, gctx := errgroup.WithContext(context.WithoutCancel(ctx))
	beside, end := context.WithCancel(gctx)
	defer end()
	if err := s.desk.listen(beside); err != nil {
		s.log.Warn("no admin server", "error", err) // traffic does not depend on it
	}
	g.Go(func() error { return s.desk.serve(beside) })
	g.Go(func() error {
		defer end()
		return s.proxy.Run(ctx)
	})
	return g.Wait()
}
