// Command dnsbench measures how a server answers DNS, with dnsperf as the client: questions per second and their latency for
// mixed names over UDP, the same over TCP, and what becomes of ten times as many questions as a client waits for.
//
//	go run ./internal/dnsbench -sarn bin/sarn
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var (
	sarn    = flag.String("sarn", "bin/sarn", "the program to measure")
	seconds = flag.Int("seconds", 10, "how long each run takes")
	nodes   = flag.Int("nodes", 100, "nodes registered, each with an instance of web")
)

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// freePort returns a port free for TCP and UDP.
func freePort() (int, error) {
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		defer l.Close() // once all are found
		port := l.Addr().(*net.TCPAddr).Port
		if p, err := net.ListenPacket("udp", l.Addr().String()); err == nil {
			p.Close()
			return port, nil
		}
	}
}

func run() error {
	dir, err := os.MkdirTemp("", "dnsbench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	ports := map[string]int{"https": -1, "grpc": -1, "grpc_tls": -1}
	for _, name := range []string{"http", "dns", "server", "serf_lan", "serf_wan"} {
		if ports[name], err = freePort(); err != nil {
			return err
		}
	}
	conf, err := json.Marshal(map[string]any{
		"node_name": "bench", "bind_addr": "127.0.0.1", "server": true, "bootstrap_expect": 1, "data_dir": filepath.Join(dir, "data"),
		"ports": ports, "log_level": "warn", "performance": map[string]any{"raft_multiplier": 1},
	})
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "agent.json")
	if err := os.WriteFile(file, conf, 0o600); err != nil {
		return err
	}
	agent := exec.Command(*sarn, "agent", "-config-file", file)
	agent.Stderr = os.Stderr
	if err := agent.Start(); err != nil {
		return err
	}
	defer agent.Wait()
	defer agent.Process.Signal(syscall.SIGTERM)

	base := fmt.Sprintf("http://127.0.0.1:%d", ports["http"])
	if err := register(base); err != nil {
		return err
	}
	names := filepath.Join(dir, "names")
	if err := os.WriteFile(names, questions(), 0o600); err != nil {
		return err
	}
	for _, r := range []struct {
		name string
		args []string
	}{
		{"UDP, mixed names", []string{"-q", "100", "-c", "8"}},
		{"UDP, 20,000/s", []string{"-q", "100", "-c", "8", "-Q", "20000", "-v"}}, // told one by one
		{"UDP, EDNS0", []string{"-q", "100", "-c", "8", "-e"}},
		{"TCP, mixed names", []string{"-m", "tcp", "-q", "100", "-c", "8"}},
		{"UDP, ten times as many under way", []string{"-q", "1000", "-c", "64"}},
		{"UDP, afterwards", []string{"-q", "100", "-c", "8"}},
	} {
		before := cpu(agent.Process.Pid)
		args := append([]string{"-s", "127.0.0.1", "-p", strconv.Itoa(ports["dns"]), "-d", names, "-l", strconv.Itoa(*seconds)}, r.args...)
		perf := exec.Command("dnsperf", args...)
		out, err := perf.CombinedOutput()
		if err != nil {
			return fmt.Errorf("dnsperf: %w\n%s", err, out)
		}
		own := perf.ProcessState.UserTime() + perf.ProcessState.SystemTime()
		f := figures(string(out))
		n, p99 := max(f.completed, 1), ""
		if f.p99 > 0 {
			p99 = fmt.Sprintf(", p99 %.3f ms", f.p99)
		}
		fmt.Printf("%-34s %8.0f/s  mean %7.3f ms%s  lost %d of %d  agent %5.2f us, dnsperf %5.2f us a question  memory %d MiB\n", r.name, f.perSecond, f.mean, p99, f.lost, f.sent,
			float64((cpu(agent.Process.Pid)-before).Microseconds())/float64(n), float64(own.Microseconds())/float64(n), memory(agent.Process.Pid))
	}
	return nil
}

// register waits for the server and fills its catalog.
func register(base string) error {
	for i := range *nodes {
		body := fmt.Sprintf(`{"Node": "n%d", "Address": "10.0.%d.%d", "NodeMeta": {"rack": "r%d"}, "Service": {"ID": "web", "Service": "web", "Port": 80, "Tags": ["v%d"]}}`,
			i, i/250, i%250+1, i%7, i%3)
		for deadline := time.Now().Add(30 * time.Second); ; {
			req, err := http.NewRequest(http.MethodPut, base+"/v1/catalog/register", strings.NewReader(body))
			if err != nil {
				return err
			}
			resp, err := http.DefaultClient.Do(req)
			if err == nil {
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					break
				}
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("no registration: %v", err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}

// questions is what dnsperf asks over and over: half of it for addresses of services, the rest for ports, nodes, what is
// not there, and the way back from addresses.
func questions() []byte {
	var b bytes.Buffer
	for i := range 300 {
		n := i % *nodes
		switch i % 10 {
		case 0, 1, 2:
			fmt.Fprintln(&b, "web.service.consul A")
		case 3, 4:
			fmt.Fprintf(&b, "v%d.web.service.consul A\n", i%3)
		case 5:
			fmt.Fprintln(&b, "_web._tcp.service.consul SRV")
		case 6:
			fmt.Fprintf(&b, "n%d.node.consul A\n", n)
		case 7:
			fmt.Fprintln(&b, "web.service.consul AAAA")
		case 8:
			fmt.Fprintf(&b, "gone%d.service.consul A\n", i)
		case 9:
			fmt.Fprintf(&b, "%d.%d.0.10.in-addr.arpa PTR\n", n%250+1, n/250)
		}
	}
	return b.Bytes()
}

// A result is what dnsperf prints.
type result struct {
	sent, completed, lost int
	perSecond, mean       float64
	p99                   float64 // milliseconds, as mean; 0 when not every question was told
}

var (
	number = regexp.MustCompile(`(?m)^\s*(Queries sent|Queries completed|Queries lost|Queries per second):\s+([0-9.]+)`)
	mean   = regexp.MustCompile(`(?m)^\s*Average Latency \(s\):\s+([0-9.]+)`)
	each   = regexp.MustCompile(`(?m)^> .* ([0-9.]+)$`)
)

func figures(out string) (r result) {
	for _, m := range number.FindAllStringSubmatch(out, -1) {
		v, _ := strconv.ParseFloat(m[2], 64)
		switch m[1] {
		case "Queries sent":
			r.sent = int(v)
		case "Queries completed":
			r.completed = int(v)
		case "Queries lost":
			r.lost = int(v)
		case "Queries per second":
			r.perSecond = v
		}
	}
	if m := mean.FindStringSubmatch(out); m != nil {
		v, _ := strconv.ParseFloat(m[1], 64)
		r.mean = v * 1000
	}
	var all []float64
	for _, m := range each.FindAllStringSubmatch(out, -1) {
		v, _ := strconv.ParseFloat(m[1], 64)
		all = append(all, v*1000)
	}
	if len(all) > 0 {
		slices.Sort(all)
		r.p99 = all[len(all)*99/100]
	}
	return r
}

// cpu is the processor time that a process has taken so far.
func cpu(pid int) time.Duration {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(data), ") ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// memory is what a process has in memory, in MiB.
func memory(pid int) int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, _ := strconv.Atoi(f[1])
			return kb / 1024
		}
	}
	return 0
}
