//go:build unix

package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A nodeService is a service with a sidecar.
type nodeService struct {
	name     string
	app      int // port of the application
	public   int // of the sidecar
	upstream int // local port that leads to the service "to"; 0 for none
	to       string
}

func (s nodeService) register(t testing.TB, a *agent) {
	t.Helper()
	up := ""
	if s.upstream > 0 {
		up = fmt.Sprintf(`{"DestinationName":%q,"LocalBindPort":%d}`, s.to, s.upstream)
	}
	a.must(t, "PUT", "/v1/agent/service/register", fmt.Sprintf(
		`{"Name":%q,"Port":%d,"Connect":{"SidecarService":{"Port":%d,"Checks":[],"Proxy":{"LocalServiceAddress":"127.0.0.1","Config":{"protocol":"http"},"Upstreams":[%s]}}}}`,
		s.name, s.app, s.public, up))
}

// oneProcess waits until one process runs the sidecars with the IDs and is ready, and returns its ID.
func oneProcess(t testing.TB, a *agent, within time.Duration, ids ...string) (pid int) {
	t.Helper()
	eventually(t, within, "one process runs the sidecars", func() bool {
		paths, _ := filepath.Glob(filepath.Join(a.dir, "data", "sidecars", "*.json"))
		if len(paths) != 1 {
			return false
		}
		var r struct {
			PID    int
			Socket string
		}
		b, _ := os.ReadFile(paths[0])
		json.Unmarshal(b, &r)
		pid = r.PID
		var list struct {
			Proxies []struct{ ID, State string }
		}
		if json.Unmarshal([]byte(unixGet(r.Socket, "/proxies")), &list) != nil {
			return false
		}
		var live []string
		for _, p := range list.Proxies {
			if p.State == "LIVE" {
				live = append(live, p.ID)
			}
		}
		return len(list.Proxies) == len(ids) && slices.Equal(live, ids)
	})
	return pid
}

// unixGet returns what a server behind a socket answers; empty if it does not.
func unixGet(socket, path string) string {
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	resp, err := c.Get("http://localhost" + path)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return string(b)
}

func nodeAgent(t testing.TB) *agent {
	a := newAgent(t, "node", map[string]any{
		"server": true, "bootstrap": true, "log_level": "info",
		"connect": map[string]any{"enabled": true, "node_proxy": true},
	})
	a.run(t)
	t.Cleanup(func() { endSidecars([]*agent{a}) })
	eventually(t, 30*time.Second, "a leader", func() bool { return a.leader() != "" })
	return a
}

// identityAt returns the identity that whoever listens shows.
func identityAt(t testing.TB, port int) string {
	t.Helper()
	c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	uri := ""
	tc := tls.Client(c, &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		for _, u := range s.PeerCertificates[0].URIs {
			uri = u.String()
		}
		return nil
	}})
	tc.SetDeadline(time.Now().Add(20 * time.Second))
	tc.Handshake() // refused in the end, since no certificate is shown
	return uri
}

func TestOneProcessServesAllServicesOfAHost(t *testing.T) {
	a := nodeAgent(t)
	ports := freePorts(5)
	services := []nodeService{
		{name: "api", app: echo(t, "api"), public: ports[0]},
		{name: "db", app: echo(t, "db"), public: ports[1]},
		{name: "web", app: echo(t, "web"), public: ports[2], to: "api", upstream: ports[3]},
	}
	for _, s := range services {
		s.register(t, a)
	}
	pid := oneProcess(t, a, 30*time.Second, "api-sidecar-proxy", "db-sidecar-proxy", "web-sidecar-proxy")
	for _, s := range services {
		if got := identityAt(t, s.public); !strings.HasSuffix(got, "/svc/"+s.name) {
			t.Errorf("the proxy of %s shows itself as %q", s.name, got)
		}
	}
	call := func() string {
		_, body, err := request("GET", "http://127.0.0.1:"+strconv.Itoa(ports[3])+"/x", "")
		if err != nil {
			return err.Error()
		}
		return body
	}
	eventually(t, 20*time.Second, "web reaches api", func() bool { return call() == "api /x" })

	// A connection of its own, which stays the same while another service leaves and a third comes.
	conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(ports[3]))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func() {
		t.Helper()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(conn, "GET /held HTTP/1.1\r\nHost: api\r\n\r\n")
		var got []byte
		for !strings.HasSuffix(string(got), "api /held") {
			b := make([]byte, 1<<10)
			n, err := conn.Read(b)
			if got = append(got, b[:n]...); err != nil {
				t.Fatalf("the held connection: %q, %v", got, err)
			}
		}
	}
	ask()
	a.must(t, "PUT", "/v1/agent/service/deregister/db", "")
	nodeService{name: "more", app: echo(t, "more"), public: ports[4]}.register(t, a)
	if now := oneProcess(t, a, 30*time.Second, "api-sidecar-proxy", "more-sidecar-proxy", "web-sidecar-proxy"); now != pid {
		t.Errorf("process %d became %d", pid, now)
	}
	ask()
	if got := identityAt(t, ports[4]); !strings.HasSuffix(got, "/svc/more") {
		t.Errorf("the new proxy shows itself as %q", got)
	}
	eventually(t, 30*time.Second, "nothing listens for the service that left", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(ports[1]))
		if err == nil {
			c.Close()
		}
		return err != nil
	})

	metrics := ""
	paths, _ := filepath.Glob(filepath.Join(a.dir, "data", "sidecars", "*.sock"))
	for _, p := range paths {
		metrics = unixGet(p, "/stats/prometheus")
	}
	for _, id := range []string{"api-sidecar-proxy", "web-sidecar-proxy"} {
		if !strings.Contains(metrics, `proxy="`+id+`"`) {
			t.Errorf("no metrics of %s", id)
		}
	}
}

// latencies returns quantiles of how long requests take, each over a connection that is kept, for a time.
func latencies(t testing.TB, port int, d time.Duration) (p50, p99 time.Duration, n int) {
	t.Helper()
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 4}}
	defer c.CloseIdleConnections()
	var all []time.Duration
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		start := time.Now()
		resp, err := c.Get("http://127.0.0.1:" + strconv.Itoa(port) + "/")
		if err != nil {
			t.Errorf("request: %v", err)
			return 0, 0, 0
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("status %d", resp.StatusCode)
			return 0, 0, 0
		}
		all = append(all, time.Since(start))
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)*99/100], len(all)
}

func TestOverloadedServiceLeavesOthersTheirShare(t *testing.T) {
	a := nodeAgent(t)
	ports := freePorts(6)
	services := []nodeService{
		{name: "api", app: echo(t, "api"), public: ports[0]},
		{name: "db", app: echo(t, "db"), public: ports[1]},
		{name: "hog", app: echo(t, "hog"), public: ports[2], to: "api", upstream: ports[3]},
		{name: "web", app: echo(t, "web"), public: ports[4], to: "db", upstream: ports[5]},
	}
	for _, s := range services {
		s.register(t, a)
	}
	oneProcess(t, a, 30*time.Second, "api-sidecar-proxy", "db-sidecar-proxy", "hog-sidecar-proxy", "web-sidecar-proxy")
	for _, p := range []int{ports[3], ports[5]} {
		eventually(t, 20*time.Second, "the services reach each other", func() bool {
			code, _, err := request("GET", "http://127.0.0.1:"+strconv.Itoa(p)+"/", "")
			return err == nil && code == 200
		})
	}
	_, alone, n := latencies(t, ports[5], 2*time.Second)

	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var sent atomic.Int64
	for range 200 {
		wg.Go(func() {
			c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(ports[3]))
			if err != nil {
				return
			}
			defer c.Close()
			b := make([]byte, 4<<10)
			for ctx.Err() == nil {
				c.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: api\r\n\r\n"); err != nil {
					return
				}
				if _, err := c.Read(b); err != nil {
					return
				}
				sent.Add(1)
			}
		})
	}
	time.Sleep(500 * time.Millisecond)
	// What client, applications and agent take of the same processors is part of it, and what else the machine does only
	// makes it worse: the best of six counts. Without a share of its own it would wait for the requests of 200 connections.
	most := max(20*alone, 400*time.Millisecond)
	_, beside, m := latencies(t, ports[5], 4*time.Second)
	for range 5 {
		if beside <= most {
			break
		}
		_, beside, m = latencies(t, ports[5], 4*time.Second)
	}
	stop()
	wg.Wait()
	t.Logf("p99 alone %v of %d; beside %d requests on 200 connections %v of %d", alone, n, sent.Load(), beside, m)
	if beside > most {
		t.Errorf("p99 beside an overloaded service is %v, want at most %v", beside, most)
	}
}

// BenchmarkNodeMemory tells what the proxies of 20 services take, as a process each and as one.
func BenchmarkNodeMemory(b *testing.B) {
	for _, one := range []bool{false, true} {
		name := map[bool]string{false: "sidecars", true: "node"}[one]
		b.Run(name, func(b *testing.B) {
			const services = 20
			for range b.N {
				a := newAgent(b, "node", map[string]any{
					"server": true, "bootstrap": true, "log_level": "info",
					"connect": map[string]any{"enabled": true, "sidecars": !one, "node_proxy": one},
				})
				a.run(b)
				defer endSidecars([]*agent{a})
				eventually(b, 30*time.Second, "a leader", func() bool { return a.leader() != "" })
				ports := freePorts(2 * services)
				app := echo(b, "app")
				for i := range services {
					s := nodeService{name: fmt.Sprint("s", i), app: app, public: ports[2*i], to: fmt.Sprint("s", (i+1)%services), upstream: ports[2*i+1]}
					s.register(b, a)
				}
				for i := range services {
					eventually(b, time.Minute, "the services reach each other", func() bool {
						code, _, err := request("GET", "http://127.0.0.1:"+strconv.Itoa(ports[2*i+1])+"/", "")
						return err == nil && code == 200
					})
				}
				time.Sleep(10 * time.Second) // what the start needed is given back
				rss, pss, n := 0, 0, 0
				for _, pid := range sidecarPIDs(a) {
					r, p := resident(pid)
					rss, pss, n = rss+r, pss+p, n+1
				}
				b.ReportMetric(float64(n), "processes")
				b.ReportMetric(float64(rss)/1024, "MiB-RSS")
				b.ReportMetric(float64(pss)/1024, "MiB-PSS")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

// resident returns the resident memory of a process in KiB, and the same with shared pages divided among those who have them.
func resident(pid int) (rss, pss int) {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(data)) {
		fmt.Sscanf(line, "Rss: %d kB", &rss)
		fmt.Sscanf(line, "Pss: %d kB", &pss)
	}
	return rss, pss
}
