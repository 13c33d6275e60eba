// Package runcmd holds the command that runs a program as a service: registered, meshed, and gone when it ends.
package runcmd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/command/proxycmd"
	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{{
		Path: "run", Args: "-- PROGRAM [ARGUMENTS...]", Synopsis: "Run a program as a service of the mesh", Client: true, Setup: setup,
		Help: "Registers a service, runs its sidecar, waits until both are ready, and runs the program. When the program ends or the " +
			"command is told to stop, nobody sends new requests any more; those that are under way may finish; then the service is " +
			"deregistered.\n\n" +
			"The program gets all signals, and its exit code is that of the command; 128 and the number of the signal if one ended it, " +
			"127 if there is no such program, 126 if it can not be run. SIGTERM and SIGINT get to it once -drain is over, or with the second one. " +
			"It finds its upstreams in SARN_UPSTREAM_<NAME>, with the parts in …_HOST and …_PORT, and itself in SARN_SERVICE_ID, " +
			"SARN_SERVICE_NAME, SARN_SERVICE_PORT and SARN_SIDECAR_PORT.",
	}}
}

// Exit codes that shells use for programs that do not start.
const (
	exitNotRunnable = 126
	exitNotFound    = 127
)

// deregisterAfter is the least time after which the agent takes away what it has not heard of.
const deregisterAfter = time.Minute

// options are the flags of the command.
type options struct {
	description
	readyTimeout, drain              time.Duration
	grpcAddr, grpcCAFile, grpcCAPath string
	logLevel                         string
}

func setup(f *flag.FlagSet) func(*verb.Call) error {
	o := new(options)
	o.flags(f)
	f.DurationVar(&o.readyTimeout, "ready-timeout", 30*time.Second, "how long registration and sidecar may take to be ready")
	f.DurationVar(&o.drain, "drain", 3*time.Second, "`time` between the end of new requests and the signal that ends the program; as long may connections of the sidecar take to end")
	f.StringVar(&o.grpcAddr, "grpc-addr", os.Getenv("CONSUL_GRPC_ADDR"), "`address` of the agent's gRPC port, asked of the agent if not given; CONSUL_GRPC_ADDR")
	f.StringVar(&o.grpcCAFile, "grpc-ca-file", os.Getenv("CONSUL_GRPC_CACERT"), "CA `file` for gRPC over TLS; default that of -ca-file; CONSUL_GRPC_CACERT")
	f.StringVar(&o.grpcCAPath, "grpc-ca-path", os.Getenv("CONSUL_GRPC_CAPATH"), "`folder` of CA files for gRPC over TLS; CONSUL_GRPC_CAPATH")
	f.StringVar(&o.logLevel, "log-level", "WARN", "`level` of the sidecar's log, on standard error: trace, debug, info, warn or error")
	return o.call
}

func (o *options) call(c *verb.Call) error {
	switch {
	case len(c.Args) == 0:
		return verb.Usagef("The program to run is missing")
	case o.readyTimeout <= 0 || o.drain < 0:
		return verb.Errorf("-ready-timeout is above 0, -drain at least 0")
	case hclog.LevelFromString(o.logLevel) == hclog.NoLevel:
		return verb.Errorf("Invalid log level: %s", o.logLevel)
	}
	plan, err := o.plan(func() (int, error) { return unusedPort(c.Context) })
	if err != nil {
		return err
	}
	if err := plan.check(); err != nil {
		return err
	}
	path, err := exec.LookPath(c.Args[0])
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
			return verb.Exit(exitNotFound, fmt.Errorf("Error starting the program: %w", err)) //nolint:staticcheck // shown as it is
		}
		return verb.Exit(exitNotRunnable, fmt.Errorf("Error starting the program: %w", err)) //nolint:staticcheck // shown as it is
	}
	cmd := c.Child(append([]string{path}, c.Args[1:]...), false, plan.environment()...)
	cmd.Args[0] = c.Args[0]
	cmd.Stdin = c.In
	token, err := c.TokenFlag()
	if err != nil {
		return err
	}
	client, err := c.API()
	if err != nil {
		return err
	}
	r := &runner{
		options: o, plan: plan, agent: &agent{client, token}, cmd: cmd, warnf: c.Warnf,
		config: c.Config(), run: uuid.NewString(),
		log: hclog.New(&hclog.LoggerOptions{Name: "proxy", Level: hclog.LevelFromString(o.logLevel), Output: c.Err}),
	}
	return r.all(c.Context)
}

// unusedPort returns a port that nobody listens on now.
func unusedPort(ctx context.Context) (int, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", ":0")
	if err != nil {
		return 0, err
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port, nil
}

// A runner runs one program.
type runner struct {
	*options
	plan   *plan
	agent  *agent
	config *api.Config // of the agent's client
	cmd    *exec.Cmd
	run    string // the mark of this run
	log    hclog.Logger
	warnf  func(format string, args ...any)
}

// all registers, starts, runs and tidies up.
func (r *runner) all(ctx context.Context) error {
	signals, silence := listen()
	defer silence()

	// What guards the registration waits longer than anything this process does on purpose.
	after := max(deregisterAfter, r.readyTimeout+r.drain+deregisterAfter/2)
	services := []*definition.Service{r.plan.service}
	guard(r.plan.service, r.run, after)
	if r.plan.sidecar != nil {
		guard(r.plan.sidecar, r.run, after)
		services = append(services, r.plan.sidecar)
	}
	k := newKeeper(r.agent, services, r.run, r.warnf)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var beside errgroup.Group
	defer beside.Wait()
	defer cancel() // before waiting

	ready, giveUp := context.WithTimeout(ctx, r.readyTimeout)
	defer giveUp()
	proxying, endProxy := context.WithCancel(context.WithoutCancel(ctx))
	defer endProxy()
	proxyEnded := make(chan error, 1)
	prepared := make(chan error, 1)
	beside.Go(func() error {
		prepared <- r.prepare(ready, k, func(s *proxycmd.Sidecar) {
			beside.Go(func() error { proxyEnded <- s.Run(proxying); return nil })
		})
		return nil
	})
	var stopped os.Signal
	var err error
waiting:
	for {
		select {
		case s := <-signals:
			if ends(s) {
				stopped = s
				giveUp()
			}
		case err = <-prepared:
			break waiting
		}
	}
	if err != nil || stopped != nil {
		if lerr := k.leave(context.WithoutCancel(ctx)); lerr != nil && stopped != nil {
			r.warnf("Error deregistering %s: %v", r.plan.service.ServiceID(), lerr)
		}
		endProxy()
		if stopped != nil {
			return verb.Exit(128+number(stopped), nil)
		}
		return verb.Errorf("Error preparing %s: %w", r.plan.service.ServiceID(), err)
	}

	keeping, endKeeping := context.WithCancel(ctx)
	defer endKeeping()
	replaced := make(chan error, 1)
	beside.Go(func() error { replaced <- k.keep(keeping); return nil })

	code, err := r.program(k, signals, proxyEnded, replaced)

	// The program is gone: nobody may be sent here, whatever becomes of the rest.
	endKeeping()
	if lerr := k.leave(context.WithoutCancel(ctx)); lerr != nil {
		r.warnf("Error deregistering %s, the agent does it by itself within %v: %v", r.plan.service.ServiceID(), after+30*time.Second, lerr)
	}
	endProxy()
	if werr := beside.Wait(); err == nil {
		err = werr
	}
	if err != nil || code != 0 {
		return verb.Exit(max(code, 1), err)
	}
	return nil
}

// prepare registers the services, has the sidecar started and waits until both are ready.
func (r *runner) prepare(ctx context.Context, k *keeper, start func(*proxycmd.Sidecar)) error {
	within := func(err error) error {
		if ctx.Err() != nil {
			return fmt.Errorf("not ready within %v: %w", r.readyTimeout, err)
		}
		return err
	}
	said := false
	for {
		err := k.start(ctx)
		if err == nil {
			break
		}
		if denied(err) || ctx.Err() != nil {
			return within(err)
		}
		if !said {
			r.warnf("==> The agent does not take the registration yet: %v", err)
			said = true
		}
		select {
		case <-ctx.Done():
			return within(err)
		case <-time.After(retryBeat):
		}
	}
	if r.plan.sidecar != nil {
		sidecar, err := proxycmd.NewSidecar(proxycmd.SidecarConfig{
			ID: r.plan.sidecar.ServiceID(), Client: r.agent.client, Config: r.config, Token: r.agent.token,
			GRPCAddr: r.grpcAddr, GRPCCAFile: r.grpcCAFile, GRPCCAPath: r.grpcCAPath,
			DrainTime: r.drain, Logger: r.log,
		})
		if err != nil {
			return err
		}
		start(sidecar)
		for !sidecar.Ready() {
			select {
			case <-ctx.Done():
				return within(errors.New("the sidecar has not got all of its configuration from the agent; -log-level debug tells more"))
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	if err := r.agent.inCatalog(ctx, k.services, r.run); err != nil {
		return within(err)
	}
	return nil
}

// program runs the program and returns its exit code.
func (r *runner) program(k *keeper, signals <-chan os.Signal, proxyEnded, replaced <-chan error) (int, error) {
	ended, err := start(r.cmd)
	if err != nil {
		return exitNotRunnable, fmt.Errorf("Error starting the program: %w", err) //nolint:staticcheck // shown as it is
	}
	pid := r.cmd.Process.Pid
	k.say(api.HealthPassing, fmt.Sprintf("Process %d runs", pid))
	var (
		stop    os.Signal // what the program is to end by; nil while it may run
		drained <-chan time.Time
		failed  error
	)
	drain := func(s os.Signal) {
		stop = s
		k.say(api.HealthCritical, "Draining: the program is about to end")
		drained = time.After(r.drain)
	}
	for {
		select {
		case code := <-ended:
			if failed != nil {
				return max(code, 1), failed
			}
			return code, nil
		case s := <-signals:
			switch {
			case !ends(s):
				pass(r.cmd.Process, s)
			case stop == nil && r.drain > 0:
				drain(s)
			default:
				stop, drained = s, nil
				pass(r.cmd.Process, s)
			}
		case <-drained:
			drained = nil
			pass(r.cmd.Process, stop)
		case err := <-proxyEnded:
			proxyEnded = nil
			failed = errors.Join(errors.New("the sidecar has ended"), err)
			if stop == nil {
				drain(terminate)
			}
		case err := <-replaced:
			replaced = nil
			if err != nil {
				r.warnf("==> %s: %v. The program goes on, without being registered.", r.plan.service.ServiceID(), err)
			}
		}
	}
}
