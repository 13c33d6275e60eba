// Command proxybench measures the built-in proxy beside Envoy, HAProxy and nginx: the same client, the same upstream and,
// for the first two, the same bootstrap file. `make bench-proxy` runs it.
//
// Requests are made by wrk, h2load and clients of its own; what a proxy costs is read from /proc, of its processes
// alone. The output is Markdown.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

func main() {
	var o options
	var only, cases string
	flag.StringVar(&only, "only", "nothing,sarn,envoy,haproxy,nginx", "which `proxies` to run")
	flag.StringVar(&cases, "cases", strings.Join(caseNames(), ","), "which `cases` to run")
	flag.IntVar(&o.seconds, "seconds", 5, "`seconds` of load for each line")
	flag.IntVar(&o.idle, "idle", 5000, "`number` of idle connections")
	flag.DurationVar(&o.settle, "settle", 65*time.Second, "how long idle connections are left alone before memory is read; the built-in proxy gives back every `minute`")
	flag.StringVar(&o.sarn, "sarn", "bin/sarn", "`path` of the binary under test")
	flag.StringVar(&o.envoy, "envoy", filepath.Join(cmp.Or(os.Getenv("SARN_TOOLS"), ".tools"), "envoy"), "`path` of Envoy")
	flag.StringVar(&o.keep, "keep", "", "`folder` to keep configurations and logs in")
	flag.Parse()
	o.cores = runtime.NumCPU()
	o.only, o.cases = strings.Split(only, ","), strings.Split(cases, ",")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type options struct {
	only, cases   []string
	seconds, idle int
	settle        time.Duration
	cores         int
	sarn, envoy   string
	keep          string
}

// A result is one line of the table. What is zero was not measured.
type result struct {
	rate          float64       // requests, connections or MiB per second
	cpu           time.Duration // of the proxy for each
	p50, p99, p3n time.Duration
	idle, loaded  int64 // resident bytes before and after
	each          int64 // resident bytes for an idle connection
	failed        int
	err           error
}

// A benchmark is one kind of load.
type benchmark struct {
	name, what, unit string
	skip             string // proxies that cannot do it
	pair             bool   // two proxies, one behind the other
	load             func(context.Context, *bench) (result, error)
}

var benchmarks = []benchmark{
	{name: "h1", what: "HTTP/1.1 keep-alive, 64 B, 64 connections", unit: "requests", load: func(ctx context.Context, b *bench) (result, error) { return b.wrk(ctx, b.port("h1"), "/", 64) }},
	{name: "h1-half", what: "the same at half of Envoy's rate", unit: "requests", load: func(ctx context.Context, b *bench) (result, error) { return b.half(ctx) }},
	{name: "h2", what: "HTTP/2, 64 B, 8 connections of 16 streams", unit: "requests", load: func(ctx context.Context, b *bench) (result, error) { return b.h2load(ctx, b.port("h2"), "-c8", "-m16") }, skip: "nothing"},
	{name: "grpc", what: "gRPC unary, 64 B, 4 connections of 16 calls", unit: "calls", load: func(ctx context.Context, b *bench) (result, error) {
		return grpcLoad(ctx, b.port("grpc"), b.time(), 4, 16)
	}},
	{name: "big", what: "1 MiB bodies, 16 connections", unit: "requests", load: func(ctx context.Context, b *bench) (result, error) { return b.wrk(ctx, b.port("h1"), "/big", 16) }},
	{name: "tcp", what: "a TCP stream, 4 connections", unit: "MiB", skip: "nginx", load: func(ctx context.Context, b *bench) (result, error) { return tcpLoad(ctx, b.port("tcp"), b.time(), 4) }},
	{name: "mtls", what: "new mTLS connections, a request each", unit: "connections", skip: "nothing", load: func(ctx context.Context, b *bench) (result, error) { return b.handshakes(ctx, b.time(), 16) }},
	{name: "pair", what: "a pair of sidecars: mTLS, RBAC, statistics and access log; HTTP/1.1, 64 B, 64 connections", unit: "requests", pair: true, load: func(ctx context.Context, b *bench) (result, error) { return b.wrk(ctx, b.port("h1"), "/", 64) }},
	{name: "pair-tcp", what: "a TCP stream through a pair with mTLS, 4 connections", unit: "MiB", pair: true, skip: "nginx", load: func(ctx context.Context, b *bench) (result, error) { return tcpLoad(ctx, b.port("tcp"), b.time(), 4) }},
	{name: "idle", what: "idle mTLS connections that had a request", unit: "connections", skip: "nothing", load: func(ctx context.Context, b *bench) (result, error) { return b.idleConnections(ctx) }},
}

func caseNames() (out []string) {
	for _, b := range benchmarks {
		out = append(out, b.name)
	}
	return out
}

// A bench is one benchmark with one proxy.
type bench struct {
	options
	benchmark
	proxy    string
	dir      string
	ports    map[string]int // listeners of the proxy, upstreams
	keys     *keys
	halfRate float64 // requests per second that are half of Envoy's

	processes []*process
}

func (b *bench) time() time.Duration { return time.Duration(b.seconds) * time.Second }

// port returns where clients of a kind go.
func (b *bench) port(name string) int {
	if b.proxy == "nothing" {
		return b.ports["up-"+strings.Replace(name, "h2", "h1", 1)]
	}
	return b.ports[name]
}

func run(ctx context.Context, o options, out io.Writer) error {
	dir := o.keep
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "proxybench-"); err != nil {
			return err
		}
		defer os.RemoveAll(dir)
	}
	k, err := newKeys(dir)
	if err != nil {
		return err
	}
	up, err := startUpstreams(dir, o.cores)
	if err != nil {
		return err
	}
	defer up.stop()
	versions(out, o)
	results := map[string]map[string]result{}
	fmt.Fprintf(out, "| case | through | per second | CPU µs each | p50 ms | p99 ms | p99.9 ms | RSS idle MiB | RSS after MiB | |\n|---|---|--:|--:|--:|--:|--:|--:|--:|---|\n")
	order := slices.Clone(o.only)
	if i := slices.Index(order, "envoy"); i > 0 { // the others are measured against what Envoy does
		order = append([]string{"envoy"}, slices.Delete(order, i, i+1)...)
	}
	for _, bm := range benchmarks {
		if !slices.Contains(o.cases, bm.name) {
			continue
		}
		results[bm.name] = map[string]result{}
		for _, proxy := range order {
			if slices.Contains(strings.Split(bm.skip, ","), proxy) || ctx.Err() != nil {
				continue
			}
			b := &bench{options: o, benchmark: bm, proxy: proxy, dir: filepath.Join(dir, bm.name+"-"+proxy), keys: k}
			b.halfRate = cmp.Or(results["h1"]["envoy"].rate, results["h1"][proxy].rate, 10000) / 2
			r := b.measure(ctx, up)
			results[bm.name][proxy] = r
			r.print(out, bm, proxy)
		}
	}
	ratios(out, results, o)
	return ctx.Err()
}

// measure starts the proxy, loads it and reads what that cost.
func (b *bench) measure(ctx context.Context, up *upstreams) (r result) {
	if r.err = os.MkdirAll(b.dir, 0o700); r.err != nil {
		return r
	}
	b.ports = up.ports()
	defer b.stop()
	if b.proxy != "nothing" {
		if r.err = b.start(ctx); r.err != nil {
			return r
		}
	}
	var idle int64
	if b.name == "h1" || b.name == "idle" {
		time.Sleep(5 * time.Second) // what only the start needed is given back
		idle = b.rss()
	} else {
		time.Sleep(300 * time.Millisecond)
	}
	if b.name != "idle" { // warm connections, caches and heap up
		warm := *b
		warm.seconds = 1
		if _, err := b.load(ctx, &warm); err != nil {
			return result{err: err}
		}
	}
	before := b.cpu()
	r, err := b.load(ctx, b)
	used := b.cpu() - before
	if err != nil {
		return result{err: err}
	}
	r.idle = idle
	if r.loaded == 0 {
		r.loaded = b.rss()
	}
	if total := r.rate * float64(b.seconds); total > 0 && b.proxy != "nothing" && r.cpu == 0 {
		r.cpu = time.Duration(float64(used) / total)
	}
	return r
}

func (r result) print(out io.Writer, bm benchmark, proxy string) {
	if r.err != nil {
		fmt.Fprintf(out, "| %s | %s | | | | | | | | %s |\n", bm.name, proxy, strings.ReplaceAll(strings.TrimSpace(r.err.Error()), "\n", "; "))
		return
	}
	note := ""
	if r.failed > 0 {
		note = fmt.Sprintf("%d failed", r.failed)
	}
	if r.each > 0 {
		note += fmt.Sprintf(" %.1f KiB each", float64(r.each)/1024)
	}
	ms := func(d time.Duration) string {
		if d == 0 {
			return ""
		}
		return fmt.Sprintf("%.2f", float64(d)/1e6)
	}
	mib := func(n int64) string {
		if n == 0 {
			return ""
		}
		return fmt.Sprintf("%.1f", float64(n)/(1<<20))
	}
	cpu := ""
	if r.cpu > 0 {
		cpu = fmt.Sprintf("%.1f", float64(r.cpu)/1e3)
	}
	fmt.Fprintf(out, "| %s | %s | %.0f | %s | %s | %s | %s | %s | %s | %s |\n", bm.name, proxy, r.rate, cpu, ms(r.p50), ms(r.p99), ms(r.p3n), mib(r.idle), mib(r.loaded), strings.TrimSpace(note))
}

// ratios compares the built-in proxy with the others.
func ratios(out io.Writer, all map[string]map[string]result, o options) {
	if !slices.Contains(o.only, "sarn") {
		return
	}
	fmt.Fprintf(out, "\nThe built-in proxy's figures divided by those of others:\n\n| case | than | rate | CPU each | p99 | RSS idle | RSS after | RSS of a connection |\n|---|---|--:|--:|--:|--:|--:|--:|\n")
	for _, bm := range benchmarks {
		s, ok := all[bm.name]["sarn"]
		if !ok || s.err != nil {
			continue
		}
		for _, other := range []string{"envoy", "haproxy", "nginx"} {
			r, ok := all[bm.name][other]
			if !ok || r.err != nil {
				continue
			}
			div := func(a, b float64) string {
				if a <= 0 || b <= 0 {
					return ""
				}
				return fmt.Sprintf("%.2f", a/b)
			}
			fmt.Fprintf(out, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", bm.name, other, div(s.rate, r.rate), div(float64(s.cpu), float64(r.cpu)), div(float64(s.p99), float64(r.p99)), div(float64(s.idle), float64(r.idle)), div(float64(s.loaded), float64(r.loaded)), div(float64(s.each), float64(r.each)))
		}
	}
	fmt.Fprintln(out)
	for _, bm := range benchmarks {
		if slices.Contains(o.cases, bm.name) {
			fmt.Fprintf(out, "- %s: %s; per second and CPU are of %s\n", bm.name, bm.what, bm.unit)
		}
	}
}

// versions tells what was run where.
func versions(out io.Writer, o options) {
	first := func(name string, args ...string) string {
		b, _ := exec.Command(name, args...).CombinedOutput()
		line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
		return line
	}
	fmt.Fprintf(out, "%d cores, %d s for each line; %s; %s; %s\n\n", o.cores, o.seconds, first(o.envoy, "--version"), first("haproxy", "-v"), first("nginx", "-v"))
}
