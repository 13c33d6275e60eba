// Command xdsbench measures how an agent tells proxies of a change: how long it takes until the last proxy has accepted it,
// what that costs, and how much memory the agent needs for each proxy. `make bench-xds` runs it.
//
// The agent is a real one, in development mode. The proxies are light: each has a connection and a delta stream of its own,
// asks for what Envoy asks for, and accepts everything without reading it.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.sarn, "sarn", "bin/sarn", "`path` of the binary under test")
	flag.IntVar(&o.proxies, "proxies", 1000, "`number` of proxies")
	flag.IntVar(&o.services, "services", 5000, "`number` of services in the second case")
	flag.IntVar(&o.uses, "uses", 5, "`number` of services each proxy uses in the second case")
	flag.IntVar(&o.changes, "changes", 20, "`number` of changes")
	flag.StringVar(&o.cases, "cases", "one,many", "which `cases` to run: all proxies use one service, or a few of many")
	flag.StringVar(&o.profile, "profile", "", "`file` to write a profile of the agent's processor time during the changes to, the case appended")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type options struct {
	sarn                             string
	proxies, services, uses, changes int
	cases, profile                   string
}

// endpoints is how many instances the services have that change.
const endpoints = 20

func run(ctx context.Context, o options, out io.Writer) error {
	fmt.Fprintf(out, "| case | proxies told | last of them, p50 | p99 | each, p50 | p99 | CPU of the agent per change | memory per proxy: heap and stacks | resident |\n")
	fmt.Fprintf(out, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for name := range strings.SplitSeq(o.cases, ",") {
		if err := measure(ctx, o, name, out); err != nil {
			return fmt.Errorf("case %s: %w", name, err)
		}
	}
	return nil
}

// used returns the services that a proxy uses.
func used(o options, name string, proxy int) []string {
	if name == "one" {
		return []string{"web"}
	}
	r := rand.New(rand.NewPCG(1, uint64(proxy)))
	var out []string
	for len(out) < o.uses {
		s := fmt.Sprintf("service-%d", r.IntN(o.services))
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func measure(ctx context.Context, o options, name string, out io.Writer) error {
	a, err := startAgent(ctx, o.sarn)
	if err != nil {
		return err
	}
	defer a.stop()
	users := map[string][]int{} // proxies by service
	for p := range o.proxies {
		for _, s := range used(o, name, p) {
			users[s] = append(users[s], p)
		}
	}
	services := []string{"web"}
	if name != "one" {
		services = services[:0]
		for s := range o.services {
			services = append(services, fmt.Sprintf("service-%d", s))
		}
	}
	err = parallel(len(services), func(i int) error {
		n := endpoints
		if name != "one" {
			n = 1
		}
		for e := range n {
			if err := a.endpoint(ctx, services[i], e, 10000); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := parallel(o.proxies, func(p int) error { return a.proxy(ctx, p, used(o, name, p)) }); err != nil {
		return err
	}
	if err := a.registered(ctx, o.proxies); err != nil {
		return err
	}
	before, err := a.memory(ctx)
	if err != nil {
		return err
	}

	ctx, cancel := context.WithCancel(ctx)
	accepted := make(chan acceptance, o.proxies)
	clients := make([]*proxy, o.proxies)
	defer func() {
		cancel()
		for _, c := range clients {
			if c != nil {
				c.close()
			}
		}
	}()
	err = parallel(o.proxies, func(p int) (err error) {
		clients[p], err = connect(ctx, a.grpc, p, accepted)
		return err
	})
	if err != nil {
		return err
	}
	if err := quiet(ctx, accepted); err != nil {
		return err
	}
	after, err := a.memory(ctx)
	if err != nil {
		return err
	}

	// Of the services that somebody uses, some change.
	var changing []string
	for s := range users {
		changing = append(changing, s)
	}
	slices.Sort(changing)
	profiled := a.profile(ctx, o.profile, name)
	var last, each []time.Duration
	var told int
	var cpu time.Duration
	for n := range o.changes {
		service := changing[n*7919%len(changing)]
		cpu0, err := a.cpu()
		if err != nil {
			return err
		}
		start := time.Now()
		if err := a.endpoint(ctx, service, 0, 20000+n); err != nil {
			return err
		}
		want := len(users[service])
		var latest time.Duration
		for range want {
			select {
			case x := <-accepted:
				d := x.at.Sub(start)
				each, latest = append(each, d), max(latest, d)
			case <-time.After(30 * time.Second):
				return fmt.Errorf("change %d: not all of %d proxies were told", n, want)
			}
		}
		last = append(last, latest)
		told += want
		time.Sleep(300 * time.Millisecond) // for what goes on afterwards
		for range len(accepted) {
			x := <-accepted
			return fmt.Errorf("change %d: proxy %d was told though it had been, or does not use %s", n, x.proxy, service)
		}
		cpu1, err := a.cpu()
		if err != nil {
			return err
		}
		cpu += cpu1 - cpu0
	}
	if err := profiled(); err != nil {
		return err
	}
	per := func(before, after int64) string {
		return fmt.Sprintf("%.1f KiB", float64(after-before)/float64(o.proxies)/1024)
	}
	fmt.Fprintf(out, "| %s | %.1f | %v | %v | %v | %v | %v | %s | %s |\n", name, float64(told)/float64(o.changes),
		quantile(last, 0.5), quantile(last, 0.99), quantile(each, 0.5), quantile(each, 0.99),
		(cpu / time.Duration(o.changes)).Round(10*time.Microsecond), per(before.live, after.live), per(before.resident, after.resident))
	return nil
}

func quantile(d []time.Duration, q float64) time.Duration {
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))].Round(10 * time.Microsecond)
}

// quiet waits until nothing has been accepted for a while.
func quiet(ctx context.Context, accepted <-chan acceptance) error {
	for {
		select {
		case <-accepted:
		case <-time.After(3 * time.Second):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// parallel calls f with 0 to n-1, a few at a time, and returns the first error.
func parallel(n int, f func(i int) error) error {
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	next := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range next {
				if err := f(i); err != nil {
					once.Do(func() { first = err })
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return first
}
