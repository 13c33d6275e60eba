// Command fleetbench measures what a fleet of agents costs three servers: processor time and memory of each, what it writes,
// how long a change takes to reach everybody who watches it, and what happens when the leader is killed. `make bench-fleet`
// runs it.
//
// The servers are real processes with logs on disk. The agents are simulated, in this process: each has a connection and the
// very parts of a real agent that talk to servers, with the registrations and watches of a machine with two services and a
// sidecar that uses three others. They do not gossip, and run no checks but those that programs report. With -real,
// a few real agents do the same, and the figures of as many simulated ones stand beside theirs.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	var o options
	var agents string
	flag.StringVar(&o.sarn, "sarn", "bin/sarn", "`path` of the binary under test")
	flag.StringVar(&agents, "agents", "500,1000,2500,5000", "`numbers` of agents, one after the other")
	flag.IntVar(&o.changes, "changes", 10, "`number` of changes whose way to the watchers is measured, of each kind")
	flag.DurationVar(&o.window, "window", 20*time.Second, "`time` over which the cost of each state is measured")
	flag.DurationVar(&o.flip, "flip", 5*time.Minute, "`time` in which each agent sees one of its checks change, on average")
	flag.IntVar(&o.ramp, "ramp", 200, "`number` of agents that begin to watch per second")
	flag.IntVar(&o.multiplier, "raft-multiplier", 1, "performance.raft_multiplier of the servers")
	flag.IntVar(&o.real, "real", 0, "`number` of real agents to compare with as many simulated ones, instead of the rest")
	flag.BoolVar(&o.streams, "streams", true, "have the servers stream changes to agents, which else ask")
	flag.StringVar(&o.profile, "profile", "", "`prefix` of files to write profiles of the servers to, in each state")
	flag.Parse()
	for s := range strings.SplitSeq(agents, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			fmt.Fprintf(os.Stderr, "-agents: %q is no number of agents\n", s)
			os.Exit(2)
		}
		o.agents = append(o.agents, n)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := curve
	if o.real > 0 {
		run = compare
	}
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type options struct {
	sarn, profile                   string
	agents                          []int
	changes, ramp, multiplier, real int
	window, flip                    time.Duration
	streams                         bool
}

// bound is the longest that any step may take.
const bound = time.Minute

// curve measures one size after the other.
func curve(ctx context.Context, o options, out io.Writer) error {
	for _, n := range o.agents {
		fmt.Fprintf(out, "\n%d agents (load of the machine before: %s)\n", n, load())
		if err := measure(ctx, o, n, out); err != nil {
			return fmt.Errorf("%d agents: %w", n, err)
		}
	}
	return nil
}

// load is how many threads of all programs of the machine run or wait to, lately.
func load() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(data), " ")
	return first
}

func measure(ctx context.Context, o options, n int, out io.Writer) (err error) {
	c, err := startCluster(ctx, o)
	if err != nil {
		return err
	}
	defer c.stop()
	f, err := newFleet(ctx, o, n, c)
	if err != nil {
		return err
	}
	defer f.stop()
	defer func() { f.report(out, c, err) }()

	began, before := time.Now(), c.used()
	err = c.profile(ctx, o.profile, fmt.Sprint(n, "-register"), 8, func() error {
		if err := f.register(); err != nil {
			return err
		}
		return c.registered(ctx, n)
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "all agents, started at once, are registered after %v; the servers have used %v\n", round(time.Since(began)), round(c.used()-before))
	if err := c.move(ctx, shared, 1); err != nil {
		return err
	}
	began, before = time.Now(), c.used()
	watches := 0
	err = c.profile(ctx, o.profile, fmt.Sprint(n, "-watch"), 8, func() error {
		watches = f.watch()
		last := began.Add(time.Duration(n) * time.Second / time.Duration(o.ramp))
		for f.answered.Load() < int64(watches) {
			if time.Since(last) > bound {
				return fmt.Errorf("%d of %d watches have no answer", watches-int(f.answered.Load()), watches)
			}
			time.Sleep(10 * time.Millisecond)
		}
		fmt.Fprintf(out, "%d watches, of %d agents after the other per second, are answered %v after the last has begun; the servers have used %v\n",
			watches, o.ramp, round(time.Since(last)), round(c.used()-before))
		return nil
	})
	if err != nil {
		return err
	}
	f.sessions()
	f.coordinates()
	time.Sleep(15 * time.Second) // every session is made
	if err := f.settle(ctx); err != nil {
		return err
	}

	fmt.Fprintf(out, "\n| state | writes asked for per s | log entries per s | answers per s | server | CPU | resident | connections and files of the network | goroutines |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	state := func(name string, begin func(ctx context.Context)) error {
		sctx, cancel := context.WithCancel(ctx)
		defer cancel()
		return c.profile(ctx, o.profile, fmt.Sprint(n, "-", name), int(o.window.Seconds()), func() error {
			before, err := f.look(ctx, c)
			if err != nil {
				return err
			}
			begin(sctx)
			time.Sleep(o.window)
			after, err := f.look(ctx, c)
			if err != nil {
				return err
			}
			after.since(before, name, out)
			return nil
		})
	}
	if err := state("unchanged, all compare", func(context.Context) { f.compare() }); err != nil {
		return err
	}
	f.sending.Store(true)
	if err := state("unchanged, coordinates", func(context.Context) {}); err != nil {
		return err
	}
	if err := state("checks change", func(ctx context.Context) { f.run.Go(func() { f.change(ctx) }) }); err != nil {
		return err
	}
	f.sending.Store(false)
	if err := f.settle(ctx); err != nil {
		return err
	}

	fmt.Fprintf(out, "\n| change of | watchers | last of them, p50 | worst | each, p50 | p99 | CPU of all servers |\n| --- | --- | --- | --- | --- | --- | --- |\n")
	if err := c.profile(ctx, o.profile, fmt.Sprint(n, "-fanout"), 8, func() error { return f.spread(ctx, c, out) }); err != nil {
		return err
	}
	return f.lose(ctx, c, out)
}

// registered waits until the servers have n agents, with all they register.
func (c *cluster) registered(ctx context.Context, n int) error {
	for end := time.Now().Add(bound); ; time.Sleep(50 * time.Millisecond) {
		var reply struct {
			Usage map[string]struct{ Nodes, ServiceInstances int }
		}
		if err := c.servers[0].call(ctx, "GET", "/v1/operator/usage?stale", nil, &reply); err != nil {
			return err
		}
		if u := reply.Usage["dc1"]; u.Nodes >= n+servers && u.ServiceInstances >= 3*n+servers {
			return nil
		} else if time.Now().After(end) {
			return fmt.Errorf("only %d nodes with %d instances get into the catalog", u.Nodes, u.ServiceInstances)
		}
	}
}

// move gives the canary's proxy of a service another port.
func (c *cluster) move(ctx context.Context, service string, port int) error {
	return c.live()[0].call(ctx, "PUT", "/v1/catalog/register", map[string]any{
		"Node": canary, "Address": "10.255.0.1", "Service": map[string]any{
			"Kind": "connect-proxy", "ID": service, "Service": service + "-proxy", "Port": port,
			"Proxy": map[string]any{"DestinationServiceName": service},
		},
	}, nil)
}

// A view is a look at everything at one time.
type view struct {
	at              time.Time
	own             time.Duration // processor time of this process
	servers         map[string]sample
	writes          [4]int64
	answers, failed int64
	index           int
}

func (f *fleet) look(ctx context.Context, c *cluster) (v view, err error) {
	v = view{at: time.Now(), servers: map[string]sample{}, answers: f.answers.Load(), failed: f.failures.Load()}
	for i := range f.writes {
		v.writes[i] = f.writes[i].Load()
	}
	v.own, _ = used(os.Getpid())
	for _, p := range c.live() {
		s, err := p.sample(ctx)
		if err != nil {
			return v, err
		}
		v.servers[p.name] = s
		v.index = max(v.index, s.index)
	}
	return v, nil
}

// since writes what has happened between two looks.
func (v view) since(before view, state string, out io.Writer) {
	took := v.at.Sub(before.at)
	per := func(n int64) string { return strconv.FormatFloat(float64(n)/took.Seconds(), 'f', 1, 64) }
	share := func(d time.Duration) string { return fmt.Sprintf("%.1f%%", 100*d.Seconds()/took.Seconds()) }
	names := slices.SortedFunc(maps.Keys(v.servers), func(a, b string) int {
		if x, y := v.servers[a].leads, v.servers[b].leads; x != y {
			return map[bool]int{true: -1, false: 1}[x]
		}
		return cmp.Compare(a, b)
	})
	for i, name := range names {
		s, role := v.servers[name], "follower"
		if s.leads {
			role = "leader"
		}
		first := "| | | | |"
		if i == 0 {
			first = fmt.Sprintf("| %s | checks %s, coordinates %s, sessions %s (renewals %s) | %s | %s |", state,
				per(v.writes[checkWrites]-before.writes[checkWrites]), per(v.writes[coordinateWrites]-before.writes[coordinateWrites]),
				per(v.writes[sessionsMade]-before.writes[sessionsMade]), per(v.writes[sessionsRenewed]-before.writes[sessionsRenewed]),
				per(int64(v.index-before.index)), per(v.answers-before.answers))
		}
		fmt.Fprintf(out, "%s %s | %s | %d MiB | %d | %d |\n", first, role, share(s.cpu-before.servers[name].cpu), s.resident>>20, s.connections, s.goroutines)
	}
	fmt.Fprintf(out, "| | | | | the fleet itself | %s | | | |\n", share(v.own-before.own))
}

// tell makes a change and waits until everybody who watches the service has heard of it.
func (f *fleet) tell(ctx context.Context, c *cluster, service string, port int) ([]time.Duration, error) {
	want := f.watchers(service)
	p := &probe{service: service, port: port, began: time.Now(), heard: make(chan time.Duration, want)}
	f.probe.Store(p)
	defer f.probe.Store(nil)
	for {
		err := c.move(ctx, service, port)
		if err == nil {
			break
		}
		if time.Since(p.began) > bound {
			return nil, err
		}
		time.Sleep(20 * time.Millisecond)
	}
	var heard []time.Duration
	timeout := time.After(bound)
	for range want {
		select {
		case d := <-p.heard:
			heard = append(heard, d)
		case <-timeout:
			return nil, fmt.Errorf("of %d watchers of %s, %d have not heard of a change", want, service, want-len(heard))
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return heard, nil
}

// spread measures the way of changes to their watchers.
func (f *fleet) spread(ctx context.Context, c *cluster, out io.Writer) error {
	for _, kind := range []string{"one service of many", "the service all use"} {
		var last, each []time.Duration
		watchers := 0
		var cpu time.Duration
		began, used := time.Now(), c.used()
		time.Sleep(2 * time.Second)
		idle := float64(c.used()-used) / float64(time.Since(began))
		for i := range f.o.changes {
			before, at := c.used(), time.Now()
			service := shared
			if kind != "the service all use" {
				service = f.agents[i*31%len(f.agents)].uses[0]
			}
			heard, err := f.tell(ctx, c, service, 10000+i)
			if err != nil {
				return err
			}
			watchers += len(heard)
			each = append(each, heard...)
			last = append(last, slices.Max(heard))
			time.Sleep(300 * time.Millisecond) // for what goes on afterwards
			cpu += c.used() - before - time.Duration(idle*float64(time.Since(at)))
			if err := f.settle(ctx); err != nil {
				return err
			}
		}
		fmt.Fprintf(out, "| %s | %.0f | %v | %v | %v | %v | %v per change |\n", kind, float64(watchers)/float64(f.o.changes),
			quantile(last, 0.5), quantile(last, 1), quantile(each, 0.5), quantile(each, 0.99), max(0, cpu/time.Duration(f.o.changes)).Round(time.Millisecond))
	}
	return nil
}

// lose kills the leader.
func (f *fleet) lose(ctx context.Context, c *cluster, out io.Writer) error {
	p, err := c.leader(ctx)
	if err != nil {
		return err
	}
	failed := f.failures.Load()
	began := time.Now()
	p.stop(syscall.SIGKILL)
	for {
		if time.Since(began) > bound {
			return errors.New("no server leads after the leader was killed")
		}
		if err := c.move(ctx, shared, 1); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	wrote := time.Since(began)
	if _, err := f.tell(ctx, c, shared, 20000); err != nil {
		return fmt.Errorf("after the leader was killed: %w", err)
	}
	fmt.Fprintf(out, "\nleader killed: a write succeeds after %v, all %d watchers have heard of a change after %v; %d failures at agents\n",
		round(wrote), f.watchers(shared), round(time.Since(began)), f.failures.Load()-failed)
	if err := f.settle(ctx); err != nil {
		return err
	}
	before, err := f.look(ctx, c)
	if err != nil {
		return err
	}
	heard, err := f.tell(ctx, c, shared, 20001)
	if err != nil {
		return err
	}
	after, err := f.look(ctx, c)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "two servers left: the next change reaches the last of %d watchers after %v, with %d log entries\n", len(heard), quantile(heard, 1), after.index-before.index)
	for _, p := range c.live() {
		s := after.servers[p.name]
		fmt.Fprintf(out, "  %s: %d MiB, %d connections, %d goroutines\n", p.name, s.resident>>20, s.connections, s.goroutines)
	}
	return nil
}

// report tells what has failed; with an error of the run, also what the servers have logged last.
func (f *fleet) report(out io.Writer, c *cluster, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fmt.Fprintf(out, "failures at agents, altogether: %d\n", f.failures.Load())
	kinds := slices.SortedFunc(maps.Keys(f.errors), func(a, b string) int {
		return cmp.Or(cmp.Compare(f.errors[b], f.errors[a]), cmp.Compare(a, b))
	})
	for _, text := range kinds[:min(len(kinds), 8)] {
		fmt.Fprintf(out, "  %d x %s\n", f.errors[text], text)
	}
	if err == nil {
		return
	}
	for _, p := range c.servers {
		text, _ := os.ReadFile(filepath.Join(p.dir, "log"))
		fmt.Fprintf(out, "%s:\n%s\n", p.name, text[max(0, len(text)-2000):])
	}
}

// quantile returns the least duration that is not exceeded by a share q.
func quantile(d []time.Duration, q float64) time.Duration {
	slices.Sort(d)
	return round(d[min(len(d)-1, int(q*float64(len(d))))])
}

func round(d time.Duration) time.Duration {
	switch {
	case d > 10*time.Second:
		return d.Round(100 * time.Millisecond)
	case d > time.Second:
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(100 * time.Microsecond)
}
