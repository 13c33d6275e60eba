// Package agent is the agent command: it reads the configuration, puts the parts of an agent together, and runs them
// until a signal or an API call ends it.
package agent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/cli"
	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/client/newcomer"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/internal/version"
)

// New returns the command.
func New(ui cli.Ui) cli.Command { return &command{ui: ui} }

// NewSetUp returns the command for a configuration that a program has just written: it does not warn of what is in it.
func NewSetUp(ui cli.Ui) cli.Command { return &command{ui: ui, setUp: true} }

type command struct {
	ui      cli.Ui
	setUp   bool    // the configuration is not the user's
	manager manager // what has started the agent
}

// Synopsis implements cli.Command.
func (c *command) Synopsis() string { return "Run an agent, on servers the server too" }

// Help implements cli.Command.
func (c *command) Help() string {
	var src config.Sources
	fs := flag.NewFlagSet("agent", flag.ContinueOnError)
	src.Register(fs)
	var b strings.Builder
	b.WriteString(`Usage: sarn agent [options]

  Runs an agent until it is told to stop. Every machine runs one: it registers
  services, checks their health and answers HTTP, DNS and gRPC. A few of them
  are servers and keep the catalog.

  For a first look, everything in memory on loopback:

      sarn agent -dev -sidecars

  As a server and as a client in production:

      sarn agent -config-dir /etc/sarn

Options

`)
	fs.SetOutput(&b)
	fs.PrintDefaults()
	return b.String()
}

// Run implements cli.Command.
func (c *command) Run(args []string) int {
	var src config.Sources
	fs := flag.NewFlagSet("agent", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	src.Register(fs)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			c.ui.Output(c.Help())
			return 0
		}
		return c.fail(err)
	}
	if fs.NArg() > 0 {
		return c.fail(fmt.Errorf("Unexpected extra arguments: %v", fs.Args()))
	}
	return managed(func(ctx context.Context, m manager) int {
		c.manager = m
		return c.run(ctx, src)
	})
}

// run runs an agent until a signal, an API call or the end of ctx ends it, and returns the exit code.
func (c *command) run(ctx context.Context, src config.Sources) int {
	early := make(chan os.Signal, 1)
	signal.Notify(early, syscall.SIGHUP) // it would end the process
	defer signal.Stop(early)
	c.manager.say(starting)
	s, warnings, err := config.Load(src)
	if err != nil {
		return c.fail(err)
	}
	level, err := config.ParseLevel(s.Log.Level)
	if err != nil {
		return c.fail(err)
	}
	if err := s.CheckNodeID(); err != nil {
		return c.fail(err)
	}
	if _, err := savedNodeID(s); err != nil {
		return c.fail(err)
	}
	out, closeLog, err := c.logOutput(s)
	if err != nil {
		return c.fail(err)
	}
	defer closeLog()
	log := hclog.NewInterceptLogger(&hclog.LoggerOptions{
		Name: "agent", Level: level, Output: out, JSONFormat: s.Log.JSON, TimeFormat: "2006-01-02T15:04:05.000Z", TimeFn: func() time.Time { return time.Now().UTC() },
	})
	if s.Log.Syslog {
		w, err := openSyslog(s.Log.SyslogFacility)
		if err != nil {
			return c.fail(err)
		}
		defer w.Close()
		log.RegisterSink(newSyslogSink(w, log.GetLevel))
	}
	if c.manager.sink != nil {
		log.RegisterSink(c.manager.sink)
	}
	if !c.setUp {
		for _, w := range warnings {
			log.Warn(w)
		}
	}
	// From here on, what is wrong goes to the log, as everything later does.
	refuse := func(err error) int {
		for line := range strings.Lines(err.Error()) {
			log.Error("cannot start: " + strings.TrimSuffix(line, "\n"))
		}
		return 1
	}
	if err := s.CheckStart(); err != nil {
		return refuse(err)
	}
	if s.DataDir != "" {
		if err := os.MkdirAll(s.DataDir, 0o700); err != nil {
			return refuse(fmt.Errorf("data_dir: %w", err))
		}
	}
	src, s, given, err := c.introduce(ctx, src, s, log)
	if errors.Is(err, context.Canceled) {
		return 1
	}
	if err != nil {
		return refuse(err)
	}
	a, err := newMember(src, s, log, given)
	if err != nil {
		return refuse(err)
	}
	if s.PIDFile != "" {
		if err := os.WriteFile(s.PIDFile, []byte(fmt.Sprint(os.Getpid())), 0o600); err != nil {
			a.sockets.close()
			return refuse(fmt.Errorf("pid_file: %w", err))
		}
		defer os.Remove(s.PIDFile)
	}
	if !s.Log.JSON {
		c.ui.Output(banner(s, a))
	}
	select {
	case <-early:
		log.Warn("configuration not reloaded: the agent has only just started")
	default:
	}
	return c.supervise(ctx, a, s)
}

// introduce is introduce that ends with a signal.
func (c *command) introduce(ctx context.Context, src config.Sources, s *config.Settings, log hclog.Logger) (config.Sources, *config.Settings, *newcomer.Keeper, error) {
	ctx, cancel := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if s.AutoEncrypt.TLS || s.AutoConfig.Enabled {
		c.manager.say(admission)
	}
	return introduce(ctx, src, s, log)
}

func (c *command) fail(err error) int {
	c.ui.Error("==> " + err.Error())
	if c.manager.warn != nil {
		c.manager.warn(err)
	}
	return 1
}

// logOutput is where log lines go, and what ends that.
func (c *command) logOutput(s *config.Settings) (io.Writer, func() error, error) {
	var console io.Writer = os.Stdout
	if c.manager.mute {
		console = io.Discard
	}
	if s.Log.File == "" {
		return console, func() error { return nil }, nil
	}
	f, err := openLogFile(s.Log)
	if err != nil {
		return nil, nil, fmt.Errorf("log_file: %w", err)
	}
	return io.MultiWriter(console, f), f.Close, nil
}

// supervise runs the agent until it ends or asked does, which is a request to stop as an interrupt is, and returns the exit
// code (spec/config.md section 10). For a manager that asked for it a stop without leaving is no failure.
func (c *command) supervise(asked context.Context, a *Agent, s *config.Settings) int {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGHUP, os.Interrupt, syscall.SIGTERM)
	signal.Ignore(syscall.SIGPIPE)
	defer signal.Stop(signals)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	end := func(code int) int {
		c.manager.say(stopping)
		cancel()
		select {
		case err := <-done:
			if err != nil {
				c.ui.Error("==> " + err.Error())
				return 1
			}
		case <-time.After(5 * time.Second):
			a.log.Warn("not everything ended in time")
		}
		return code
	}
	ready, beat := a.ready, (<-chan time.Time)(nil)
	for {
		var sig os.Signal
		select {
		case err := <-done:
			if err != nil {
				a.log.Error("the agent failed", "error", err)
				c.ui.Error("==> " + err.Error())
			}
			return 1
		case <-a.stop:
			return end(0)
		case <-ready:
			ready = nil
			c.manager.say(serving)
			if c.manager.every > 0 {
				t := time.NewTicker(c.manager.every)
				defer t.Stop()
				beat = t.C
			}
		case <-beat:
			a.responsive()
			c.manager.alive()
		case <-asked.Done():
			sig = os.Interrupt
		case <-c.manager.reloads:
			sig = syscall.SIGHUP
		case sig = <-signals:
		}
		switch sig {
		case nil:
		case syscall.SIGHUP:
			if ready == nil {
				c.manager.say(reloading)
			}
			if err := a.Reload(ctx); err != nil {
				a.log.Error("configuration not reloaded", "error", err)
			}
			if ready == nil {
				c.manager.say(serving)
			}
		default:
			leaves := sig == os.Interrupt && !s.SkipLeaveOnInterrupt || sig == syscall.SIGTERM && s.LeaveOnTerminate
			a.log.Info("stopping", "signal", sig, "leave", leaves)
			if !leaves {
				return end(c.manager.stopped())
			}
			c.manager.say(stopping)
			if c.leave(a, signals, done) {
				return end(0)
			}
			return end(1)
		}
	}
}

// leave leaves the cluster, and reports whether that was finished before a second signal or the time limit.
func (c *command) leave(a *Agent, signals <-chan os.Signal, done chan error) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	left := make(chan error, 1)
	go func() { left <- a.leave(ctx) }()
	for {
		select {
		case err := <-left:
			if err != nil {
				a.log.Error("could not leave the cluster", "error", err)
			}
			return err == nil
		case sig := <-signals:
			if sig != syscall.SIGHUP {
				return false
			}
		case err := <-done:
			done <- err
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// banner is what is printed before the log begins. Ports where nothing listens are -1.
func banner(s *config.Settings, a *Agent) string {
	clients := make([]string, len(s.Addresses.Client))
	for i, addr := range s.Addresses.Client {
		clients[i] = addr.String()
	}
	grpcTLS := s.Ports.GRPCTLS
	if len(s.Addresses.GRPCTLS) == 0 {
		grpcTLS = -1 // there is nothing to serve TLS with
	}
	wan := -1
	if a.sockets.wan != nil {
		wan = s.Ports.SerfWAN
	}
	return fmt.Sprintf(`==> Starting %s agent...
              Version: '%s'
           Build Date: '%s'
              Node ID: '%s'
            Node name: '%s'
           Datacenter: '%s' (Segment: '')
               Server: %v (Bootstrap: %v)
          Client Addr: [%s] (HTTP: %d, HTTPS: %d, gRPC: %d, gRPC-TLS: %d, DNS: %d)
         Cluster Addr: %s (LAN: %d, WAN: %d)
    Gossip Encryption: %v
     Auto-Encrypt-TLS: %v
          ACL Enabled: %v
   ACL Default Policy: %s
     HTTPS TLS: Verify Incoming: %v, Verify Outgoing: %v, Min Version: %s
      gRPC TLS: Verify Incoming: %v, Min Version: %s
Internal RPC TLS: Verify Incoming: %v, Verify Outgoing: %v (Verify Hostname: %v), Min Version: %s

==> Log data will now stream in as it occurs:
`, version.Name, version.Human(), version.BuildDate, a.node.ID, s.Node.Name, s.Node.Datacenter, s.Server, s.Bootstrap,
		strings.Join(clients, " "), s.Ports.HTTP, s.Ports.HTTPS, s.Ports.GRPC, grpcTLS, s.Ports.DNS,
		s.Addresses.Advertise, s.Ports.SerfLAN, wan, a.pool.Encrypted(), s.AutoEncrypt.TLS || s.AutoEncrypt.AllowTLS,
		s.ACL.Enabled, s.ACL.DefaultPolicy, s.TLS.HTTPS.VerifyIncoming, s.TLS.HTTPS.VerifyOutgoing, s.TLS.HTTPS.MinVersion,
		s.TLS.GRPC.VerifyIncoming, s.TLS.GRPC.MinVersion, s.TLS.InternalRPC.VerifyIncoming, s.TLS.InternalRPC.VerifyOutgoing,
		s.TLS.InternalRPC.VerifyServerHostname, s.TLS.InternalRPC.MinVersion)
}
