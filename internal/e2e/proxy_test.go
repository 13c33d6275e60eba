//go:build unix

package e2e

import (
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/internal/testkit"
)

// tool returns a program that `make tools` installs. Tests that need one are left out of short runs, which go without.
func tool(t testing.TB, name string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs what `make tools` installs")
	}
	dir := os.Getenv("SARN_TOOLS")
	if dir == "" {
		dir, _ = filepath.Abs("../../.tools")
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("run `make tools`: %v", err)
		}
		t.Skipf("run `make tools`: %v", err)
	}
	return path
}

// A proxy is a built-in proxy that runs from a bootstrap file.
type proxy struct {
	*process
	admin string // URL
	log   string // of accesses
}

// bootstrap is what a proxy is started with, in YAML: lists of listeners and clusters, and what else the file has.
type bootstrap struct{ listeners, clusters, more string }

// accessLog is how all listeners of these tests log.
const accessLog = `access_log: [{name: envoy.access_loggers.file, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog,
  path: "{{log}}", log_format: {text_format_source: {inline_string: "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %UPSTREAM_HOST% %UPSTREAM_TRANSPORT_FAILURE_REASON% %REQ(:PATH)%\n"}}}}]`

// connectionLog is how listeners log, too: connections that never get to speak are found there.
const connectionLog = `access_log: [{name: envoy.access_loggers.file, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog,
  path: "{{log}}.connections", log_format: {text_format_source: {inline_string: "%CONNECTION_TERMINATION_DETAILS% %DOWNSTREAM_TRANSPORT_FAILURE_REASON%\n"}}}}]`

// startProxy runs a proxy until it is ready. "T/" in the file stands for the type URLs of Envoy's extensions.
func startProxy(t testing.TB, name string, b bootstrap) *proxy {
	t.Helper()
	bin, dir := binary(t), t.TempDir()
	p := &proxy{log: filepath.Join(dir, name+".access.log")}
	port := freePorts(1)[0]
	p.admin = "http://127.0.0.1:" + strconv.Itoa(port)
	text := fmt.Sprintf("node: {id: %s, cluster: %s}\nadmin: {address: %s}\nstatic_resources: {listeners: [%s], clusters: [%s]}\n%s\n",
		name, name, socketAddress(port), b.listeners, b.clusters, b.more)
	text = strings.NewReplacer("T/", "type.googleapis.com/envoy.extensions.", "{{log}}", p.log).Replace(text)
	file := filepath.Join(dir, name+".yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p.process = start(t, name, nil, bin, "connect", "proxy", "-bootstrap", file, "-drain-time", "1ms")
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if code, _, err := request("GET", p.admin+"/ready", ""); err == nil && code == 200 {
			return p
		}
		if _, ended := p.exit(0); ended || time.Now().After(end) {
			t.Fatalf("%s is not ready:\n%s", name, text)
		}
	}
}

// stat returns a counter or gauge, 0 if there is none.
func (p *proxy) stat(name string) int {
	_, body, _ := request("GET", p.admin+"/stats?filter=^"+regexp.QuoteMeta(name)+"$", "")
	_, value, _ := strings.Cut(body, ": ")
	n, _ := strconv.Atoi(strings.TrimSpace(value))
	return n
}

// accesses returns the access log.
func (p *proxy) accesses() string {
	data, _ := os.ReadFile(p.log)
	return string(data)
}

// connections returns the log of connections.
func (p *proxy) connections() string {
	data, _ := os.ReadFile(p.log + ".connections")
	return string(data)
}

// logged waits for the line that the access log has about a path. Lines are written up to a second late.
func (p *proxy) logged(path string) (line string) {
	p.t.Helper()
	eventually(p.t, 30*time.Second, "the access log has "+path, func() bool {
		for l := range strings.Lines(p.accesses()) {
			if l = strings.TrimSpace(l); strings.HasSuffix(l, " "+path) {
				line = l
				return true
			}
		}
		return false
	})
	return line
}

// usage returns the processor time that the process has used, and its resident memory in bytes.
func (p *proxy) usage() (cpu time.Duration, resident int) {
	p.t.Helper()
	dir := fmt.Sprintf("/proc/%d/", p.cmd.Process.Pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		p.t.Skip("no /proc")
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	pages, _ := strconv.Atoi(fields[21])
	return time.Duration(user+system) * 10 * time.Millisecond, pages * os.Getpagesize()
}

func socketAddress(port int) string {
	return fmt.Sprintf("{socket_address: {address: 127.0.0.1, port_value: %d}}", port)
}

// An httpListener is a listener with a connection manager. Its zero fields are left out.
type httpListener struct {
	port    int
	socket  string // transport socket
	hcm     string // more fields of the connection manager
	vhost   string // more fields of the virtual host
	filters string // HTTP filters before the router
	routes  string // default: all to the cluster "up"
}

func (l httpListener) String() string {
	if l.routes == "" {
		l.routes = `{match: {prefix: /}, route: {cluster: up, timeout: 0s}}`
	}
	return fmt.Sprintf(`{name: in%d, address: %s, %s, filter_chains: [{%s filters: [{name: envoy.filters.network.http_connection_manager, typed_config: {
  "@type": T/filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: in, %s
  %s,
  http_filters: [%s {name: envoy.filters.http.router, typed_config: {"@type": T/filters.http.router.v3.Router}}],
  route_config: {name: r, virtual_hosts: [{name: all, domains: ["*"], %s routes: [%s]}]}}}]}]}`,
		l.port, socketAddress(l.port), connectionLog, comma(l.socket), comma(l.hcm), accessLog, comma(l.filters), comma(l.vhost), l.routes)
}

func comma(s string) string {
	if s == "" {
		return ""
	}
	return s + ","
}

// speaksH2 are the protocol options of a cluster whose hosts speak HTTP/2.
const speaksH2 = `typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": T/upstreams.http.v3.HttpProtocolOptions,
  explicit_http_config: {http2_protocol_options: {allow_connect: true}}}}`

// clusterOf returns a cluster with hosts on these ports.
func clusterOf(name, more string, ports ...int) string {
	var hosts []string
	for _, p := range ports {
		hosts = append(hosts, fmt.Sprintf("{endpoint: {address: %s}}", socketAddress(p)))
	}
	return fmt.Sprintf("{name: %s, type: STATIC, connect_timeout: 2s, %s load_assignment: {cluster_name: %s, endpoints: [{lb_endpoints: [%s]}]}}",
		name, comma(more), name, strings.Join(hosts, ", "))
}

// An authority signs for the ends of a mesh.
type authority struct {
	*testkit.CA
	dir  string
	ends map[string]time.Time // when the certificates of some services expire
}

func newAuthority(t testing.TB) *authority {
	return &authority{CA: testkit.NewCA(t, "mesh"), dir: t.TempDir()}
}

// common is the common part of a TLS context: the identity of a service, and the one of its peer.
func (a *authority) common(t *testing.T, own, peer string) string {
	t.Helper()
	end, ok := a.ends[own]
	if !ok {
		end = time.Now().Add(time.Hour)
	}
	cert := a.IssueUntil(end, spiffe(own))
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(a.dir, name) }
	return fmt.Sprintf(`common_tls_context: {tls_certificates: [{certificate_chain: {filename: "%s"}, private_key: {filename: "%s"}}],
  validation_context: {trusted_ca: {filename: "%s"}, match_typed_subject_alt_names: [{san_type: URI, matcher: {exact: "%s"}}]}, alpn_protocols: [h2]}`,
		writePEM(t, file(own+".crt"), "CERTIFICATE", cert.Certificate...), writePEM(t, file(own+".key"), "PRIVATE KEY", der),
		writePEM(t, file("ca.crt"), "CERTIFICATE", a.Certificate().Raw), spiffe(peer))
}

func spiffe(service string) string { return "spiffe://mesh/svc/" + service }

// server and client are the transport sockets of two services' proxies that speak with one another alone.
func (a *authority) server(t *testing.T, own, peer string) string {
	return fmt.Sprintf(`transport_socket: {name: tls, typed_config: {"@type": T/transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, %s}}`, a.common(t, own, peer))
}

func (a *authority) client(t *testing.T, own, peer string) string {
	return fmt.Sprintf(`transport_socket: {name: tls, typed_config: {"@type": T/transport_sockets.tls.v3.UpstreamTlsContext, sni: %s, %s}}`, peer, a.common(t, own, peer))
}

// httpWays are the ways in which a test's requests reach a port: through one proxy, and through two with mutual TLS
// between them. Such a function starts proxies with listeners like l and returns the port that leads there.
var httpWays = map[string]func(t *testing.T, to int, l httpListener, cluster string) int{
	"one proxy": func(t *testing.T, to int, l httpListener, cluster string) int {
		l.port = freePorts(1)[0]
		startProxy(t, "proxy", bootstrap{listeners: l.String(), clusters: clusterOf("up", cluster, to)})
		return l.port
	},
	"pair": func(t *testing.T, to int, l httpListener, cluster string) int {
		ports, ca := freePorts(2), newAuthority(t)
		callee := l
		callee.port, callee.socket, l.port = ports[1], ca.server(t, "callee", "caller"), ports[0]
		startProxy(t, "callee", bootstrap{listeners: callee.String(), clusters: clusterOf("up", cluster, to)})
		startProxy(t, "caller", bootstrap{listeners: l.String(), clusters: clusterOf("up", speaksH2+", "+ca.client(t, "caller", "callee"), ports[1])})
		return l.port
	},
}

// portOf returns the port of a listener.
func portOf(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }
