// Package proxycmd is the command "connect proxy", which runs the built-in
// proxy as the sidecar of a service, or alone from a bootstrap file.
package proxycmd

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/cli"
	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sarnmesh/sarn/command/gateway"
	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/admin"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/listener"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/internal/version"
)

// New returns the command.
func New(ui cli.Ui) cli.Command { return &command{ui: ui} }

type command struct {
	ui    cli.Ui
	flags flags
}

type flags struct {
	bootstrap  string
	proxyID    string
	sidecarFor string
	node       bool
	nodeList   string // file; empty asks the agent
	gateway    string // kind, by the names of gateway.Kinds
	edge       gateway.Registration

	service     string
	serviceAddr string
	listen      string
	upstreams   list
	binds       list
	register    bool
	registerID  string

	grpcAddr, grpcCAFile, grpcCAPath string
	http                             httpFlags

	adminBind, adminSocket string
	stateDir               string
	drainTime              time.Duration
	takeOver               bool
	parentShutdown         time.Duration
	deregisteredGrace      time.Duration
	maxConnections         int64
	proxyConnections       int64
	bodyMemory             int64 // MiB
	logLevel               string
	logJSON                bool
	pprofAddr              string
}

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// env returns the value of a variable under this product's name, or else under
// the name that users of the reference have.
func env(name string) string {
	return cmp.Or(os.Getenv("SARN_"+name), os.Getenv("CONSUL_"+name))
}

func (c *command) set() *flag.FlagSet {
	f := flag.NewFlagSet("connect proxy", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	x := &c.flags
	f.StringVar(&x.bootstrap, "bootstrap", "", "run from a bootstrap `file` (.yaml, .json, .pb, .pb_text), without an agent")
	f.StringVar(&x.proxyID, "proxy-id", os.Getenv("CONNECT_PROXY_ID"), "`ID` of the proxy's registration with the agent; CONNECT_PROXY_ID")
	f.StringVar(&x.sidecarFor, "sidecar-for", os.Getenv("CONNECT_SIDECAR_FOR"), "`ID` of the service whose sidecar to run; CONNECT_SIDECAR_FOR")
	f.BoolVar(&x.node, "node", false, "run all sidecars that are registered with the agent, in one process")
	f.StringVar(&x.nodeList, "node-list", "", "`file` that says which proxies to run, with -node, in place of asking the agent; it is read again when it changes")
	f.StringVar(&x.gateway, "gateway", "", "`kind` of the gateway to run: api, ingress, mesh or terminating")
	f.StringVar(&x.service, "service", "", "`name` of the service to represent, registers the proxy for as long as it runs; with -gateway the name to register it under, default its kind")
	f.StringVar(&x.serviceAddr, "service-addr", "", "`address` of the local service, with -service")
	f.StringVar(&x.listen, "listen", "", "`address` to take connections for -service on; default a free local port")
	f.Var(&x.upstreams, "upstream", "service to make reachable, as `name:addr` or name:port, with -service; repeatable")
	f.BoolVar(&x.register, "register", false, "register the gateway first, with -gateway; accepted with -service, which implies it")
	f.StringVar(&x.edge.Address, "address", "", "`host:port` to register the gateway with")
	f.StringVar(&x.edge.WANAddress, "wan-address", "", "`host:port` other datacenters reach the gateway at")
	f.Var(&x.binds, "bind-address", "address to bind, as `name=ip:port`, with -register; repeatable")
	f.BoolVar(&x.edge.ExposeServers, "expose-servers", false, "let other datacenters reach the servers through this mesh gateway; needs -register")
	f.DurationVar(&x.edge.DeregisterAfter, "deregister-after-critical", 6*time.Hour, "`time` after which a dead gateway is deregistered")
	f.StringVar(&x.registerID, "register-id", "", "`suffix` of the ID to register under")
	f.StringVar(&x.grpcAddr, "grpc-addr", env("GRPC_ADDR"), "`address` of the agent's gRPC port, asked of the agent if not given; also https://host:port and unix:///path")
	f.StringVar(&x.grpcCAFile, "grpc-ca-file", env("GRPC_CACERT"), "CA `file` for gRPC over TLS")
	f.StringVar(&x.grpcCAPath, "grpc-ca-path", env("GRPC_CAPATH"), "`folder` of CA files for gRPC over TLS")
	x.http.add(f)
	f.StringVar(&x.adminBind, "admin-bind", "", "`host:port` of the admin server, in place of the socket")
	f.StringVar(&x.adminSocket, "admin-socket", "", "`path` of the admin server's UNIX socket, in a folder closed to others; \"none\" for no admin server")
	f.StringVar(&x.stateDir, "state-dir", "", "`folder` to keep the last good configuration in, so that the proxy starts without the agent; it holds keys")
	f.DurationVar(&x.drainTime, "drain-time", 10*time.Second, "how long open connections may stay when the proxy is told to stop")
	f.BoolVar(&x.takeOver, "take-over", false, "take the listening sockets over from a running process of the same proxy and -state-dir, which then drains and ends")
	f.DurationVar(&x.parentShutdown, "parent-shutdown-time", 15*time.Minute, "how long open connections may stay when another process has taken over")
	f.DurationVar(&x.deregisteredGrace, "deregistered-grace", 0, "exit when the agent has said for so long that the proxy is not registered; 0 never")
	f.Int64Var(&x.maxConnections, "max-connections", 0, "connections of all listeners together; 0 does not limit, with -node half as many as files may be open")
	f.Int64Var(&x.proxyConnections, "max-proxy-connections", 0, "connections of each proxy, with -node; 0: as many as are left free")
	f.Int64Var(&x.bodyMemory, "max-body-memory", 128, "`MiB` of bodies that are kept for retries by all proxies together, with -node; 0 does not limit")
	f.StringVar(&x.logLevel, "log-level", cmp.Or(env("LOG_LEVEL"), "INFO"), "trace, debug, info, warn or error")
	f.BoolVar(&x.logJSON, "log-json", false, "log as JSON")
	f.StringVar(&x.pprofAddr, "pprof-addr", "", "`address` to serve profiles on; they are on the admin server too")
	return f
}

func (c *command) Synopsis() string { return "Run the built-in proxy" }

func (c *command) Help() string {
	var b strings.Builder
	b.WriteString(`Usage: sarn connect proxy [options]

  Runs the built-in proxy until it is told to stop by a signal.

      sarn connect proxy -sidecar-for web      the sidecar of the local service "web"
      sarn connect proxy -proxy-id web-proxy   the proxy registered with that ID
      sarn connect proxy -node                 all sidecars that are registered with the agent
      sarn connect proxy -gateway ingress      the ingress gateway registered with the agent
      sarn connect proxy -bootstrap edge.yaml  alone, from a file
      sarn connect proxy -service web -service-addr 127.0.0.1:8080 -upstream db:9191

  The proxy keeps its last good configuration when the agent goes away, and
  connects again by itself.

Options:

`)
	f := c.set()
	f.SetOutput(&b)
	f.PrintDefaults()
	return b.String()
}

func (c *command) fail(err error) int {
	c.ui.Error("==> " + err.Error())
	return 1
}

func (c *command) Run(args []string) int {
	f := c.set()
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			c.ui.Output(c.Help())
			return 0
		}
		return c.fail(err)
	}
	if f.NArg() > 0 {
		return c.fail(fmt.Errorf("Too many arguments: %s", strings.Join(f.Args(), " "))) //nolint:staticcheck // shown as it is
	}
	if err := c.check(); err != nil {
		return c.fail(err)
	}
	log := hclog.New(&hclog.LoggerOptions{
		Name: "proxy", Level: hclog.LevelFromString(c.flags.logLevel), JSONFormat: c.flags.logJSON, Output: os.Stderr,
		IndependentLevels: false,
	})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once

	c.ui.Output("==> Proxy starting...")
	if err := c.run(ctx, log); err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return 0
		}
		return c.fail(err)
	}
	c.ui.Output("==> Proxy shutdown")
	return 0
}

// check finds what is wrong with the flags alone. The texts are a contract
// with scripts.
func (c *command) check() error {
	x := &c.flags
	if x.gateway != "" {
		if err := c.checkGateway(); err != nil {
			return err
		}
	} else if x.edge.Address != "" || x.edge.WANAddress != "" || len(x.binds) > 0 || x.edge.ExposeServers {
		return errors.New("-address, -wan-address, -bind-address and -expose-servers may only be specified with -gateway")
	}
	named := []string{x.bootstrap, x.proxyID, x.sidecarFor, x.service}
	if x.gateway != "" {
		named = []string{x.bootstrap, x.sidecarFor, x.gateway}
	}
	modes := 0
	if x.node {
		modes++
	}
	for _, m := range named {
		if m != "" {
			modes++
		}
	}
	switch {
	case modes == 0:
		return errors.New("-service or -proxy-id must be specified so that proxy can configure itself.")
	case modes > 1 && x.node:
		return errors.New("-node can't be used with -bootstrap, -proxy-id, -sidecar-for, -gateway or -service")
	case !x.node && (x.nodeList != "" || x.proxyConnections != 0):
		return errors.New("-node-list and -max-proxy-connections may only be specified with -node")
	case x.maxConnections < 0 || x.proxyConnections < 0 || x.bodyMemory < 0:
		return errors.New("-max-connections, -max-proxy-connections and -max-body-memory can't be negative")
	case modes > 1:
		return errors.New("Only one of -bootstrap, -proxy-id, -sidecar-for, -gateway and -service may be specified")
	case x.register && x.service == "" && x.gateway == "":
		return errors.New("-register may only be specified with -service and -listen")
	case (x.service == "" || x.gateway != "") && (x.listen != "" || x.serviceAddr != "" || len(x.upstreams) > 0):
		return errors.New("-listen, -service-addr and -upstream may only be specified with -service")
	case x.listen != "" && x.serviceAddr == "":
		return errors.New("-listen requires -service-addr")
	case x.takeOver && x.stateDir == "":
		return errors.New("-take-over requires -state-dir")
	case hclog.LevelFromString(x.logLevel) == hclog.NoLevel:
		return fmt.Errorf("Invalid log level: %s", x.logLevel)
	}
	for _, u := range x.upstreams {
		if _, err := ParseUpstream(u); err != nil {
			return err
		}
	}
	return nil
}

// checkGateway finds what is wrong with the flags about a gateway.
func (c *command) checkGateway() error {
	x := &c.flags
	x.edge.Kind, x.edge.ID, x.edge.Name = gateway.Kinds[x.gateway], x.proxyID, x.service
	switch {
	case x.edge.Kind == "":
		return gateway.ErrKind
	case x.edge.ExposeServers && (x.edge.Kind != api.ServiceKindMeshGateway || !x.register):
		return errors.New("'-expose-servers' can only be used for mesh gateways with '-register'")
	case !x.register && (x.service != "" || x.edge.Address != "" || x.edge.WANAddress != "" || len(x.binds) > 0):
		return errors.New("-service, -address, -wan-address and -bind-address need -register with -gateway")
	}
	x.edge.BindAddresses = map[string]string{}
	for _, b := range x.binds {
		name, addr, ok := strings.Cut(b, "=")
		if !ok {
			return fmt.Errorf("-bind-address should be name=ip:port, not %q", b)
		}
		x.edge.BindAddresses[name] = addr
	}
	return nil
}

// run configures the proxy and runs it with what stands beside it.
func (c *command) run(ctx context.Context, log hclog.Logger) error {
	x := &c.flags
	if x.node {
		return c.runNode(ctx, log)
	}
	smallHeap()
	cfg := proxy.Config{
		Version: version.Number(), Decoder: decode.New(decode.FromSystem()), Logger: log,
		Stdout: os.Stdout, Stderr: os.Stderr,
		ShutdownTime: max(x.drainTime, time.Millisecond), HandoverTime: x.parentShutdown, MaxConnections: x.maxConnections,
	}
	var p *proxy.Proxy
	g, gctx := errgroup.WithContext(ctx)
	beside := []func(context.Context) error{trimMemory}
	if x.bootstrap != "" {
		c.ui.Info("    Configuration mode: File")
		data, err := os.ReadFile(x.bootstrap)
		if err != nil {
			return err
		}
		if cfg.Bootstrap, err = cfg.Decoder.Bootstrap(x.bootstrap, data); err != nil {
			return err
		}
	} else {
		a, err := c.agent(log)
		if err != nil {
			return err
		}
		id, err := c.identify(ctx, a, log)
		if err != nil {
			return err
		}
		c.ui.Info("              Proxy ID: " + id)
		cfg.Bootstrap = a.bootstrap(id)
		cfg.Targets = a.targets()
		cfg.Metadata = a.metadata
		if x.service != "" && x.gateway == "" {
			beside = append(beside, func(ctx context.Context) error { return a.keepRegistered(ctx, id, p.HandedOver) })
		} else if x.deregisteredGrace > 0 {
			beside = append(beside, func(ctx context.Context) error {
				return a.watchRegistration(ctx, id, x.deregisteredGrace, watchInterval)
			})
		}
	}
	id := fileName(cmp.Or(cfg.Bootstrap.Node.ID, "proxy"))
	if x.stateDir != "" {
		if err := admin.SocketFolder(x.stateDir); err != nil {
			return fmt.Errorf("state folder: %w", err)
		}
		cfg.StateFile = filepath.Join(x.stateDir, id+".state")
	}
	succession, err := c.succeed(gctx, id, &cfg, log)
	if err != nil {
		return err
	}
	if p, err = proxy.New(cfg); err != nil {
		return err
	}
	desk := newAdminServer(p, log, func(ctx context.Context) (net.Listener, []model.StringMatch, error) {
		return c.openAdmin(ctx, id, cfg.Bootstrap.Admin)
	})
	if err := desk.listen(gctx); err != nil {
		if succession.predecessor == nil {
			return fmt.Errorf("admin server: %w", err)
		}
		log.Info("the admin server has to wait", "error", err)
	}
	beside = append(beside, desk.serve, func(ctx context.Context) error { return succession.run(ctx, p, desk) })
	if x.pprofAddr != "" {
		ln, err := new(net.ListenConfig).Listen(gctx, "tcp", x.pprofAddr)
		if err != nil {
			return fmt.Errorf("pprof: %w", err)
		}
		only, err := model.NewStringMatch(model.MatchPrefix, "/debug/pprof/", false)
		if err != nil {
			return err
		}
		s := admin.New(p, admin.Config{Allow: []model.StringMatch{only}})
		beside = append(beside, func(ctx context.Context) error { return s.Serve(ctx, ln) })
	}
	// What stands beside the proxy stays until the proxy has drained.
	sctx, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	for _, f := range beside {
		g.Go(func() error { return f(sctx) })
	}
	g.Go(func() error {
		defer end()
		return p.Run(gctx)
	})
	err = g.Wait()
	if errors.Is(err, errDeregistered) {
		return nil
	}
	return err
}

// openAdmin opens the admin server's socket; nil means that there is none.
func (c *command) openAdmin(ctx context.Context, id string, fromFile *decode.Admin) (net.Listener, []model.StringMatch, error) {
	x := &c.flags
	if x.adminSocket == "none" {
		return nil, nil, nil
	}
	a := model.Address{Path: x.adminSocket, Mode: 0o600}
	var allow []model.StringMatch
	switch {
	case x.adminBind != "":
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp", x.adminBind)
		return ln, nil, err
	case a.Path != "":
	case fromFile != nil:
		a, allow = fromFile.Address, fromFile.Allow
	default:
		dir := cmp.Or(x.stateDir, runtimeFolder())
		a.Path = filepath.Join(dir, id+".sock")
	}
	if a.Path != "" && !strings.HasPrefix(a.Path, "@") && fromFile == nil {
		if err := admin.SocketFolder(filepath.Dir(a.Path)); err != nil {
			return nil, nil, err
		}
	}
	ln, err := listener.Listen(ctx, &model.Listener{}, a)
	return ln, allow, err
}

// runtimeFolder returns the user's own folder for sockets.
func runtimeFolder() string {
	if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
		return filepath.Join(d, "sarn")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("sarn-%d", os.Getuid()))
}

var unsafeName = regexp.MustCompile(`[^A-Za-z0-9._-]`)

// fileName returns a file name that stands for an ID.
func fileName(id string) string {
	name := unsafeName.ReplaceAllString(id, "_")
	if strings.HasPrefix(name, ".") {
		name = "_" + name
	}
	return name[:min(len(name), 64)]
}

// identify returns the ID of the proxy's registration.
func (c *command) identify(ctx context.Context, a *agent, log hclog.Logger) (string, error) {
	x := &c.flags
	c.ui.Info("    Configuration mode: " + map[bool]string{true: "Flags", false: "Agent API"}[x.service != "" && x.gateway == ""])
	switch {
	case x.gateway != "":
		return c.identifyGateway(ctx, a, log)
	case x.proxyID != "":
		return x.proxyID, nil
	case x.sidecarFor != "":
		c.ui.Info("        Sidecar for ID: " + x.sidecarFor)
		return retry(ctx, log, func() (string, error) { return a.sidecarFor(ctx, x.sidecarFor) })
	}
	reg, err := x.registration()
	if err != nil {
		return "", err
	}
	c.ui.Info("               Service: " + x.service)
	return retry(ctx, log, func() (string, error) { return reg.ID, a.register(ctx, reg) })
}

// identifyGateway returns the ID of the gateway, after registering it if that was asked for.
func (c *command) identifyGateway(ctx context.Context, a *agent, log hclog.Logger) (string, error) {
	x := &c.flags
	c.ui.Info("               Gateway: " + x.gateway)
	switch {
	case x.register:
		reg, err := x.edge.Request()
		if err != nil {
			return "", err
		}
		return retry(ctx, log, func() (string, error) { return reg.ID, a.register(ctx, reg) })
	case x.proxyID != "":
		return x.proxyID, nil
	}
	return retry(ctx, log, func() (string, error) { return a.gateway(ctx, x.edge.Kind) })
}

// errFinal marks an answer that asking again will not change.
var errFinal = errors.New("")

type final struct{ error }

func (f final) Is(target error) bool { return target == errFinal }

// retry calls f until it succeeds or its error is final.
func retry(ctx context.Context, log hclog.Logger, f func() (string, error)) (string, error) {
	for wait := time.Second; ; wait = min(2*wait, 15*time.Second) {
		id, err := f()
		if err == nil || errors.Is(err, errFinal) {
			return id, err
		}
		log.Warn("the agent does not answer, will retry", "error", err, "wait", wait)
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(wait):
		}
	}
}

// ParseUpstream reads a service and the address it is to be reached at, or only a port of this host's loopback.
func ParseUpstream(s string) (api.Upstream, error) {
	name, addr, ok := strings.Cut(s, ":")
	if !ok || name == "" || addr == "" {
		return api.Upstream{}, fmt.Errorf("Upstream value should be name:addr in %q", s)
	}
	if !strings.Contains(addr, ":") {
		addr = net.JoinHostPort("127.0.0.1", addr)
	}
	host, port, err := hostPort(addr)
	if err != nil {
		return api.Upstream{}, fmt.Errorf("Upstream value should be name:addr in %q: %w", s, err)
	}
	return api.Upstream{DestinationName: name, LocalBindAddress: host, LocalBindPort: port}, nil
}

// registration is what the flags ask to be registered.
func (x *flags) registration() (*api.AgentServiceRegistration, error) {
	id := x.service + "-proxy"
	if x.registerID != "" {
		id += "-" + x.registerID
	}
	reg := &api.AgentServiceRegistration{
		Kind: api.ServiceKindConnectProxy, ID: id, Name: x.service + "-proxy",
		Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: x.service},
		Check: &api.AgentServiceCheck{CheckID: id + "-ttl", Name: "Built-in proxy", TTL: "30s", DeregisterCriticalServiceAfter: "1m"},
	}
	listen := x.listen
	if listen == "" {
		ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		listen = ln.Addr().String()
		ln.Close()
	}
	var err error
	if reg.Address, reg.Port, err = hostPort(listen); err != nil {
		return nil, fmt.Errorf("-listen: %w", err)
	}
	if reg.Address != "" {
		reg.Proxy.Config = map[string]any{"bind_address": reg.Address}
	}
	reg.Proxy.LocalServicePort = 1 // nobody listens there: connections are refused
	if x.serviceAddr != "" {
		if reg.Proxy.LocalServiceAddress, reg.Proxy.LocalServicePort, err = hostPort(x.serviceAddr); err != nil {
			return nil, fmt.Errorf("-service-addr: %w", err)
		}
	}
	for _, u := range x.upstreams {
		up, err := ParseUpstream(u)
		if err != nil {
			return nil, err
		}
		reg.Proxy.Upstreams = append(reg.Proxy.Upstreams, up)
	}
	return reg, nil
}

// sortedIDs is for messages.
func sortedIDs(ids []string) string {
	slices.Sort(ids)
	return strings.Join(ids, ", ")
}

// notFound reports whether the agent answered that there is no such thing.
func notFound(err error) bool {
	var s api.StatusError
	return errors.As(err, &s) && s.Code == http.StatusNotFound
}
