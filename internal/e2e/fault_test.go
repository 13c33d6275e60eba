//go:build unix

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// faultyUpstream listens and does with each connection what is given, after it has read a head.
func faultyUpstream(t *testing.T, do func(c *net.TCPConn, r *bufio.Reader)) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				r := bufio.NewReader(c)
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					if line == "\r\n" {
						break
					}
				}
				do(c.(*net.TCPConn), r)
			}()
		}
	}()
	return portOf(l)
}

// TestFaultyUpstreams has upstreams break in every way. Clients are told in time and truly, the access log says why, and
// nothing of it harms other requests.
func TestFaultyUpstreams(t *testing.T) {
	binary(t)
	write := func(s string) func(*net.TCPConn, *bufio.Reader) {
		return func(c *net.TCPConn, _ *bufio.Reader) { io.WriteString(c, s) }
	}
	hold := func(s string) func(*net.TCPConn, *bufio.Reader) {
		return func(c *net.TCPConn, _ *bufio.Reader) {
			io.WriteString(c, s)
			c.Read(make([]byte, 1))
		}
	}
	garbage := strings.Repeat("\x00\xff\x16\x03garbage\r\n", 1000)
	tests := []struct {
		name    string
		do      func(c *net.TCPConn, r *bufio.Reader)
		cluster string
		body    int    // bytes of the request, in chunks
		status  int    // 0: none
		broken  bool   // the response breaks off
		log     string // part of the line
	}{
		{name: "hangs", do: hold(""), status: 504, log: "504 UT response_timeout"},
		{name: "hangs in its head", do: hold("HTTP/1.1 200 OK\r\nContent-Le"), status: 504, log: "504 UT response_timeout"},
		{name: "hangs in its body", do: hold("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), status: 200, broken: true, log: "200 UT response_timeout"},
		{name: "resets", do: func(c *net.TCPConn, _ *bufio.Reader) { c.SetLinger(0) }, status: 503, log: "503 UC upstream_reset_before_response_started{connection_termination}"},
		{name: "closes", do: write(""), status: 503, log: "503 UC upstream_reset_before_response_started"},
		{name: "closes in its head", do: write("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n"), status: 503, log: "503 UC upstream_reset_before_response_started"},
		{name: "closes in its body", do: write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), status: 200, broken: true, log: "200 UC upstream_reset_after_response_started"},
		{name: "closes in its chunks", do: write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"), status: 200, broken: true, log: "200 UC upstream_reset_after_response_started"},
		{name: "breaks its chunks", do: write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n"), status: 200, broken: true, log: "200 UPE "},
		{name: "sends garbage", do: write(garbage), status: 502, log: "502 UPE "},
		{name: "sends garbage for HTTP/2", do: hold(garbage), cluster: speaksH2, status: 502, log: "502 UPE "},
		{name: "speaks HTTP/1 for HTTP/2", do: hold("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), cluster: speaksH2, status: 502, log: "502 UPE "},
		{name: "sends two lengths", do: write("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), status: 502, log: "502 UPE "},
		{name: "sends a head without end", do: hold("HTTP/1.1 200 OK\r\nx: " + strings.Repeat("a", 200<<10)), status: 502, log: "502 UPE "},
		{name: "answers early", do: func(c *net.TCPConn, r *bufio.Reader) {
			io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge")
			c.CloseWrite()
			io.Copy(io.Discard, r)
		}, body: 4 << 20, status: 413, log: "413 - via_upstream"},
		{name: "answers early and resets", do: func(c *net.TCPConn, r *bufio.Reader) {
			io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nlarge")
			time.Sleep(300 * time.Millisecond) // so that the answer has been read
			c.SetLinger(0)
		}, body: 4 << 20, status: 413, log: "413 "},
		{name: "answers twice", do: hold("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\noneHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo"), status: 200, log: "200 - via_upstream"},
	}
	port := freePorts(1)[0]
	routes := []string{`{match: {path: /fine}, route: {cluster: fine}}`}
	clusters := []string{clusterOf("fine", "", echo(t, "fine"))}
	for i, tt := range tests {
		timeout := "10s"
		if strings.HasSuffix(tt.log, "response_timeout") {
			timeout = "0.5s"
		}
		routes = append(routes, fmt.Sprintf(`{match: {path: /%d}, route: {cluster: c%d, timeout: %s}}`, i, i, timeout))
		clusters = append(clusters, clusterOf(fmt.Sprintf("c%d", i), tt.cluster, faultyUpstream(t, tt.do)))
	}
	p := startProxy(t, "proxy", bootstrap{listeners: httpListener{port: port, routes: strings.Join(routes, ", ")}.String(), clusters: strings.Join(clusters, ", ")})
	url := "http://127.0.0.1:" + strconv.Itoa(port)
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var body io.Reader
			if tt.body > 0 {
				body = io.MultiReader(bytes.NewReader(make([]byte, tt.body)), bytes.NewReader(nil))
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, "POST", fmt.Sprintf("%s/%d", url, i), body)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != tt.status || tt.broken != (err != nil) || time.Since(began) > 15*time.Second {
				t.Errorf("after %v: %d %q %v", time.Since(began), resp.StatusCode, answer, err)
			}
			if !tt.broken && tt.status == 200 && string(answer) != "one" {
				t.Errorf("answered %q", answer)
			}
			if line := p.logged(fmt.Sprintf("/%d", i)); !strings.HasPrefix(line, tt.log) {
				t.Errorf("logged %q, want %q", line, tt.log)
			}
			if code, body, err := request("GET", url+"/fine", ""); code != 200 || body != "fine /fine" || err != nil {
				t.Errorf("afterwards: %d %q %v", code, body, err)
			}
			eventually(t, 30*time.Second, "nothing is left of it", func() bool { return p.stat(fmt.Sprintf("cluster.c%d.upstream_rq_active", i)) == 0 })
		})
	}
}

// A zone is a network namespace with an HTTP server in it, reached over a pair of interfaces.
type zone struct {
	t    *testing.T
	name string
	addr string
}

var zones int

func newZone(t *testing.T) *zone {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("makes network namespaces")
	}
	zones++
	network := freeNetwork(t)
	z := &zone{t: t, name: fmt.Sprintf("sarn-%d-%d", os.Getpid()%10000, zones), addr: network + ".2"}
	if out, err := exec.Command("ip", "netns", "add", z.name).CombinedOutput(); err != nil {
		t.Skipf("no network namespaces: %v %s", err, out)
	}
	t.Cleanup(func() { exec.Command("ip", "netns", "del", z.name).Run() })
	outside, inside := z.name+"o", z.name+"i"
	for _, args := range []string{
		"ip link add " + outside + " type veth peer name " + inside,
		"ip link set " + inside + " netns " + z.name,
		"ip addr add " + network + ".1/24 dev " + outside,
		"ip link set " + outside + " up",
		"ip -n " + z.name + " addr add " + z.addr + "/24 dev " + inside,
		"ip -n " + z.name + " link set " + inside + " up",
		"ip -n " + z.name + " link set lo up",
	} {
		z.run(args)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start(t, z.name, []string{"SARN_TEST_HTTP=" + z.addr + ":80"}, "ip", "netns", "exec", z.name, self)
	eventually(t, 30*time.Second, "the zone answers", func() bool {
		code, _, err := request("GET", "http://"+z.addr, "")
		return err == nil && code == 200
	})
	return z
}

// freeNetwork returns the first three numbers of addresses that this machine has none of.
func freeNetwork(t *testing.T) string {
	t.Helper()
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for {
		n := fmt.Sprintf("10.214.%d", rand.IntN(256))
		if !slices.ContainsFunc(own, func(a net.Addr) bool { return strings.HasPrefix(a.String(), n+".") }) {
			return n
		}
	}
}

func (z *zone) run(command string) {
	z.t.Helper()
	f := strings.Fields(command)
	if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
		z.t.Fatalf("%s: %v %s", command, err, out)
	}
}

// cut drops all packets that reach the zone; heal lets them in again.
func (z *zone) cut() {
	z.run("ip netns exec " + z.name + " nft add table inet cut")
	z.run("ip netns exec " + z.name + " nft add chain inet cut in { type filter hook input priority 0 ; policy drop ; }")
}

func (z *zone) heal() { z.run("ip netns exec " + z.name + " nft delete table inet cut") }

// serveZone is what the test binary does in a zone.
func serveZone(addr string) error {
	return http.ListenAndServe(addr, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, addr) }))
}

// TestZoneIsCutOff drops all packets to the zone that is preferred: requests fail within the connect timeout, go to the
// other zone once health checks or failures have told, and come back after.
func TestZoneIsCutOff(t *testing.T) {
	binary(t)
	near, far := newZone(t), newZone(t)
	cluster := func(name, more string, zones ...*zone) string {
		var localities []string
		for i, z := range zones {
			localities = append(localities, fmt.Sprintf(`{priority: %d, locality: {zone: z%d}, lb_endpoints: [{endpoint: {address: {socket_address: {address: %s, port_value: 80}}}}]}`, i, i, z.addr))
		}
		return fmt.Sprintf(`{name: %s, type: STATIC, connect_timeout: 0.3s, %s load_assignment: {cluster_name: %s, endpoints: [%s]}}`, name, comma(more), name, strings.Join(localities, ", "))
	}
	ports := freePorts(1)
	p := startProxy(t, "proxy", bootstrap{
		listeners: httpListener{port: ports[0], routes: `{match: {prefix: /checked}, route: {cluster: checked, idle_timeout: 5s}}, {match: {prefix: /ejected}, route: {cluster: ejected}},
  {match: {prefix: /alone}, route: {cluster: alone}}, {match: {prefix: /retried}, route: {cluster: retried, retry_policy: {retry_on: connect-failure, num_retries: 1, retry_priority: {name: p, typed_config: {"@type": T/retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, update_frequency: 1}}}}}`}.String(),
		clusters: strings.Join([]string{
			cluster("checked", `common_http_protocol_options: {max_requests_per_connection: 1}, health_checks: [{timeout: 2s, interval: 0.2s, unhealthy_threshold: 2, healthy_threshold: 1, no_traffic_interval: 0.2s, http_health_check: {path: /}}]`, near, far),
			cluster("ejected", `common_http_protocol_options: {max_requests_per_connection: 1}, outlier_detection: {consecutive_5xx: 2, consecutive_gateway_failure: 2, interval: 0.5s, base_ejection_time: 1s, max_ejection_percent: 100}`, near, far),
			cluster("alone", `common_http_protocol_options: {max_requests_per_connection: 1}`, near),
			cluster("retried", `common_http_protocol_options: {max_requests_per_connection: 1}`, near, far),
		}, ", "),
	})
	url := "http://127.0.0.1:" + strconv.Itoa(ports[0])
	get := func(path string) (int, string, time.Duration) {
		began := time.Now()
		code, body, err := request("GET", url+path, "")
		if err != nil {
			t.Fatal(err)
		}
		return code, body, time.Since(began)
	}
	from := func(z *zone) string { return z.addr + ":80" }
	for _, path := range []string{"/checked", "/ejected", "/alone", "/retried"} {
		eventually(t, 30*time.Second, path+" goes to the near zone", func() bool { _, body, _ := get(path); return body == from(near) })
	}
	near.cut()
	if code, body, d := get("/alone"); code != 503 || d < 250*time.Millisecond || d > 15*time.Second || !strings.Contains(body, "connection timeout") {
		t.Errorf("the zone alone: %d %q after %v", code, body, d)
	}
	eventually(t, 30*time.Second, "the access log says so", func() bool { return strings.Contains(p.accesses(), "503 UF ") })
	if p.stat("cluster.alone.upstream_cx_connect_timeout") == 0 {
		t.Error("no connect timeout is counted")
	}
	if code, body, d := get("/retried"); code != 200 || body != from(far) || d > 15*time.Second {
		t.Errorf("retried: %d %q after %v", code, body, d)
	}
	for _, path := range []string{"/checked", "/ejected"} {
		eventually(t, 30*time.Second, path+" goes to the far zone", func() bool { _, body, _ := get(path); return body == from(far) })
	}
	timeouts := p.stat("cluster.checked.upstream_cx_connect_timeout")
	for range 20 { // none of them tries the near zone first
		if code, body, d := get("/checked"); code != 200 || body != from(far) {
			t.Errorf("checked: %d %q after %v", code, body, d)
		}
	}
	if now := p.stat("cluster.checked.upstream_cx_connect_timeout"); now != timeouts {
		t.Errorf("%d of them waited for the near zone", now-timeouts)
	}
	near.heal()
	for _, path := range []string{"/checked", "/ejected", "/alone", "/retried"} {
		eventually(t, 30*time.Second, path+" goes to the near zone again", func() bool { _, body, _ := get(path); return body == from(near) })
	}
}

// TestCertificateExpiresWhileNothingRenewsIt serves with what there is as long as it is valid, and refuses after: an
// expired certificate is not accepted, whichever side has it, and the reason is in logs, answers and counters.
func TestCertificateExpiresWhileNothingRenewsIt(t *testing.T) {
	binary(t)
	for _, side := range []string{"callee", "caller"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			ports, ca := freePorts(2), newAuthority(t)
			end := time.Now().Add(10 * time.Second).Truncate(time.Second) // as exact as certificates are
			ca.ends = map[string]time.Time{side: end}
			callee := startProxy(t, "callee", bootstrap{listeners: httpListener{port: ports[1], socket: ca.server(t, "callee", "caller")}.String(), clusters: clusterOf("up", "", echo(t, "web"))})
			caller := startProxy(t, "caller", bootstrap{listeners: httpListener{port: ports[0]}.String(),
				clusters: clusterOf("up", "common_http_protocol_options: {max_requests_per_connection: 1}, "+ca.client(t, "caller", "callee"), ports[1])})
			url := "http://127.0.0.1:" + strconv.Itoa(ports[0])
			served := 0
			for time.Until(end) > 500*time.Millisecond {
				if code, body, err := request("GET", url+"/x", ""); time.Until(end) <= 0 {
					break
				} else if code != 200 || err != nil {
					t.Fatalf("%v before the end: %d %s %v", time.Until(end), code, body, err)
				}
				served++
				time.Sleep(20 * time.Millisecond)
			}
			if served < 10 {
				t.Errorf("only %d requests were served", served)
			}
			time.Sleep(time.Until(end) + 1100*time.Millisecond)
			for range 5 {
				if code, body, err := request("GET", url+"/x", ""); code != 503 || err != nil {
					t.Errorf("after the end: %d %s %v", code, body, err)
				}
			}
			says := func() string { return caller.accesses() + callee.connections() }
			for end := time.Now().Add(30 * time.Second); !strings.Contains(says(), "expired"); time.Sleep(50 * time.Millisecond) {
				if time.Now().After(end) {
					t.Errorf("no log says why:\n%s\n%s", tail(caller.accesses(), 3), tail(callee.connections(), 3))
					break
				}
			}
			if n := caller.stat("cluster.up.upstream_cx_connect_fail") + callee.stat(fmt.Sprintf("listener.127.0.0.1_%d.ssl.connection_error", ports[1])) +
				callee.stat(fmt.Sprintf("listener.127.0.0.1_%d.ssl.fail_verify_error", ports[1])); n == 0 {
				t.Error("nothing is counted")
			}
			expiring := map[string]*proxy{"callee": callee, "caller": caller}[side]
			if n := expiring.stat("server.days_until_first_cert_expiring"); n > 0 {
				t.Errorf("%d days until the first certificate expires", n)
			}
			// The process lives, and says that it does.
			for _, p := range []*proxy{callee, caller} {
				if p.cmd.Process.Signal(syscall.Signal(0)) != nil {
					t.Error("a proxy has ended")
				}
			}
		})
	}
}
