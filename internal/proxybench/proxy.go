package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A process is a running proxy or upstream with its children.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

func start(dir, name string, argv ...string) (*process, error) {
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), log: filepath.Join(dir, name+".log"), done: make(chan struct{})}
	f, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p.cmd.Stdout, p.cmd.Stderr = f, f
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.cmd.Wait(); close(p.done) }()
	return p, nil
}

// listening waits until a port is open.
func (p *process) listening(ctx context.Context, port int) error {
	for range 500 {
		select {
		case <-p.done:
			b, _ := os.ReadFile(p.log)
			l := strings.Split(strings.TrimSpace(string(b)), "\n")
			return errors.New("it does not start: " + l[len(l)-1])
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
		if c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port)); err == nil {
			c.Close()
			return nil
		}
	}
	return errors.New("it does not listen")
}

func (p *process) end() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(3 * time.Second):
		p.cmd.Process.Kill()
		<-p.done
	}
}

// tree returns the process and its children.
func (p *process) tree() []int {
	pid := p.cmd.Process.Pid
	out := []int{pid}
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	for f := range strings.FieldsSeq(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// tick is the unit of processor time in /proc, which is the same on every Linux.
const tick = 10 * time.Millisecond

// cpu is the processor time that the proxy has used.
func (b *bench) cpu() (sum time.Duration) {
	for _, p := range b.processes {
		for _, pid := range p.tree() {
			data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			_, rest, _ := strings.Cut(string(data), ") ")
			if f := strings.Fields(rest); len(f) > 12 {
				user, _ := strconv.Atoi(f[11])
				system, _ := strconv.Atoi(f[12])
				sum += time.Duration(user+system) * tick
			}
		}
	}
	return sum
}

// rss is the memory that the proxy has resident, less what it shares with the others of its processes.
func (b *bench) rss() (sum int64) {
	for _, p := range b.processes {
		for i, pid := range p.tree() {
			data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			for l := range strings.SplitSeq(string(data), "\n") {
				key, v, _ := strings.Cut(l, ":")
				if key != "RssAnon" && (i > 0 || key != "RssFile") {
					continue
				}
				n, _ := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
				sum += n << 10
			}
		}
	}
	return sum
}

func (b *bench) stop() {
	for _, p := range b.processes {
		p.end()
	}
	b.processes = nil
}

// start runs the proxy, or the pair, that of the callee first.
func (b *bench) start(ctx context.Context) error {
	names := []string{"h1", "h2", "grpc", "tcp", "mtls", "inbound", "inbound-tcp", "admin-single", "admin-outbound", "admin-inbound"}
	for i, p := range freePorts(len(names)) {
		b.ports[names[i]] = p
	}
	roles := map[bool][]string{false: {"single"}, true: {"inbound", "outbound"}}[b.pair]
	for _, role := range roles {
		var conf, name string
		var argv []string
		switch b.proxy {
		case "sarn":
			conf, name = b.envoyConfig(role), role+".yaml"
			argv = []string{b.sarn, "connect", "proxy", "-bootstrap", "", "-log-level", "warn"}
		case "envoy":
			conf, name = b.envoyConfig(role), role+".yaml"
			argv = []string{b.envoy, "-c", "", "--disable-hot-restart", "--concurrency", strconv.Itoa(b.cores), "--log-level", "error"}
		case "haproxy":
			conf, name = b.haproxyConfig(role), role+".cfg"
			argv = []string{"haproxy", "-db", "-f", ""}
		case "nginx":
			conf, name = b.nginxConfig(role), role+".conf"
			argv = []string{"nginx", "-p", b.dir, "-c", ""}
		default:
			return fmt.Errorf("no proxy %q", b.proxy)
		}
		file, err := filepath.Abs(filepath.Join(b.dir, name))
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
			return err
		}
		for i := range argv {
			if argv[i] == "" {
				argv[i] = file
			}
		}
		p, err := start(b.dir, role, argv...)
		if err != nil {
			return err
		}
		b.processes = append(b.processes, p)
		if err := p.listening(ctx, b.ports[map[string]string{"single": "h1", "inbound": "inbound", "outbound": "h1"}[role]]); err != nil {
			return err
		}
	}
	return nil
}

// freePorts returns ports that were free a moment ago.
func freePorts(n int) (out []int) {
	for p := 10000 + int(time.Now().UnixNano()/1000)%18000; len(out) < n; p++ {
		if l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(p)); err == nil {
			defer l.Close()
			out = append(out, p)
		}
	}
	return out
}

// envoyConfig is what Envoy and the built-in proxy start from.
func (b *bench) envoyConfig(role string) string {
	addr := func(name string) string {
		return fmt.Sprintf(`{socket_address: {address: 127.0.0.1, port_value: %d}}`, b.ports[name])
	}
	cluster := func(name, to, more string) string {
		return fmt.Sprintf("  - {name: %s, type: STATIC, connect_timeout: 5s, circuit_breakers: {thresholds: [{max_connections: 20000, max_pending_requests: 20000, max_requests: 20000}]}, %s load_assignment: {cluster_name: %s, endpoints: [{lb_endpoints: [{endpoint: {address: %s}}]}]}}\n", name, more, name, addr(to))
	}
	listener := func(name, cluster, socket, filters, log string) string {
		return fmt.Sprintf(`  - name: %s
    address: %s
    filter_chains:
    - %s
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: %s
          %s
          route_config: {name: r, virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: %s}}]}]}
          http_filters:
          %s
          - {name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
`, name, addr(name), socket, name, log, cluster, filters)
	}
	stream := func(name, cluster, socket, filters string) string {
		return fmt.Sprintf(`  - name: %s
    address: %s
    filter_chains:
    - %s
      filters:
      %s
      - {name: envoy.filters.network.tcp_proxy, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: %s, cluster: %s}}
`, name, addr(name), socket, filters, name, cluster)
	}
	common := func(name string) string {
		return fmt.Sprintf(`common_tls_context: {tls_params: {tls_maximum_protocol_version: TLSv1_3}, tls_certificates: [{certificate_chain: {filename: %q}, private_key: {filename: %q}}], validation_context: {trusted_ca: {filename: %q}, match_typed_subject_alt_names: [{san_type: URI, matcher: {prefix: "spiffe://td/"}}]}}`,
			b.keys.file(name+".crt"), b.keys.file(name+".key"), b.keys.file("ca.crt"))
	}
	down := `transport_socket: {name: envoy.transport_sockets.tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, ` + common("server") + `}}`
	up := `transport_socket: {name: envoy.transport_sockets.tls, typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, sni: web.test, ` + common("client") + `}},`
	rules := `rules: {action: ALLOW, policies: {client: {permissions: [{any: true}], principals: [{authenticated: {principal_name: {exact: "spiffe://td/svc/client"}}}]}}}`
	h2 := `typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}},`
	accessLog := fmt.Sprintf(`access_log: [{name: envoy.access_loggers.file, typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %q}}]`, filepath.Join(b.dir, "access-"+role+".log"))
	none := "filter_chain_match: {}"
	var listeners, clusters string
	switch role {
	case "single":
		listeners = listener("h1", "web", none, "", "") + listener("h2", "web", none, "", "") + listener("grpc", "grpc", none, "", "") + stream("tcp", "tcp", none, "") + listener("mtls", "web", down, "", "")
		clusters = cluster("web", "up-h1", "") + cluster("grpc", "up-grpc", h2) + cluster("tcp", "up-tcp", "")
	case "inbound":
		listeners = listener("inbound", "web", down, `- {name: envoy.filters.http.rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC, `+rules+`}}`, accessLog) +
			stream("inbound-tcp", "tcp", down, `- {name: envoy.filters.network.rbac, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: r, `+rules+`}}`)
		clusters = cluster("web", "up-h1", "") + cluster("tcp", "up-tcp", "")
	case "outbound":
		listeners = listener("h1", "peer", none, "", accessLog) + stream("tcp", "peer-tcp", none, "")
		clusters = cluster("peer", "inbound", up) + cluster("peer-tcp", "inbound-tcp", up)
	}
	return "node: {id: bench, cluster: bench}\nadmin: {address: " + addr("admin-"+role) + "}\nstatic_resources:\n  listeners:\n" + listeners + "  clusters:\n" + clusters
}

// haproxyConfig does the same as nearly as HAProxy can.
func (b *bench) haproxyConfig(role string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "global\n maxconn 9000\n nbthread %d\n ssl-default-bind-options ssl-min-ver TLSv1.2\n", b.cores)
	if b.pair {
		s.WriteString(" log stdout format raw local0\n")
	}
	s.WriteString("defaults\n mode http\n timeout connect 5s\n timeout client 1h\n timeout server 1h\n http-reuse always\n")
	if b.pair {
		s.WriteString(" log global\n option httplog\n")
	}
	bind := func(name, more string) { fmt.Fprintf(&s, " bind 127.0.0.1:%d %s\n", b.ports[name], more) }
	server := func(name, more string) { fmt.Fprintf(&s, " server s 127.0.0.1:%d %s\n", b.ports[name], more) }
	down := fmt.Sprintf("ssl crt %s ca-file %s verify required alpn h2,http/1.1", b.keys.file("server.pem"), b.keys.file("ca.crt"))
	up := fmt.Sprintf("ssl crt %s ca-file %s verify required sni str(web.test) verifyhost web.test", b.keys.file("client.pem"), b.keys.file("ca.crt"))
	listen := func(name, more, to, toMore, lines string) {
		fmt.Fprintf(&s, "listen %s\n%s", name, lines)
		bind(name, more)
		server(to, toMore)
	}
	switch role {
	case "single":
		listen("h1", "", "up-h1", "", "")
		listen("h2", "proto h2", "up-h1", "", "")
		listen("grpc", "proto h2", "up-grpc", "proto h2", "")
		listen("tcp", "", "up-tcp", "", " mode tcp\n")
		listen("mtls", down, "up-h1", "", "")
	case "inbound":
		listen("inbound", down, "up-h1", "", " http-request deny unless { ssl_c_s_dn(cn) client }\n")
		listen("inbound-tcp", down, "up-tcp", "", " mode tcp\n option tcplog\n tcp-request content reject unless { ssl_c_s_dn(cn) client }\n")
	case "outbound":
		listen("h1", "", "inbound", up, "")
		listen("tcp", "", "inbound-tcp", up, " mode tcp\n option tcplog\n")
	}
	return s.String()
}

// nginxConfig does the same as nearly as nginx can.
func (b *bench) nginxConfig(role string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "daemon off;\nworker_processes %d;\npid %s;\nerror_log stderr error;\nworker_rlimit_nofile 60000;\nevents { worker_connections 20000; }\nhttp {\n", b.cores, filepath.Join(b.dir, role+".pid"))
	fmt.Fprintf(&s, "client_body_temp_path %s; proxy_temp_path %s; fastcgi_temp_path %s; uwsgi_temp_path %s; scgi_temp_path %s;\n", b.dir, b.dir, b.dir, b.dir, b.dir)
	log := "off"
	if b.pair {
		log = filepath.Join(b.dir, "access-"+role+".log")
	}
	fmt.Fprintf(&s, "access_log %s;\nkeepalive_requests 1000000000;\nkeepalive_timeout 1h;\nproxy_http_version 1.1;\nproxy_set_header Connection \"\";\nproxy_buffering on;\n", log)
	upstream := func(name string) {
		fmt.Fprintf(&s, "upstream %s { server 127.0.0.1:%d; keepalive 256; keepalive_requests 1000000000; keepalive_timeout 1h; }\n", name, b.ports[name])
	}
	down := fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s; ssl_client_certificate %s; ssl_verify_client on; ssl_protocols TLSv1.2 TLSv1.3; ", b.keys.file("server.crt"), b.keys.file("server.key"), b.keys.file("ca.crt"))
	switch role {
	case "single":
		upstream("up-h1")
		upstream("up-grpc")
		fmt.Fprintf(&s, "server { listen 127.0.0.1:%d reuseport; location / { proxy_pass http://up-h1; } }\n", b.ports["h1"])
		fmt.Fprintf(&s, "server { listen 127.0.0.1:%d http2 reuseport; location / { proxy_pass http://up-h1; } }\n", b.ports["h2"])
		fmt.Fprintf(&s, "server { listen 127.0.0.1:%d http2 reuseport; location / { grpc_pass grpc://up-grpc; } }\n", b.ports["grpc"])
		fmt.Fprintf(&s, "server { listen 127.0.0.1:%d ssl reuseport; %s location / { proxy_pass http://up-h1; } }\n", b.ports["mtls"], down)
	case "inbound":
		upstream("up-h1")
		fmt.Fprintf(&s, "server { listen 127.0.0.1:%d ssl reuseport; %s location / { if ($ssl_client_s_dn != \"CN=client\") { return 403; } proxy_pass http://up-h1; } }\n", b.ports["inbound"], down)
	case "outbound":
		upstream("inbound")
		fmt.Fprintf(&s, "server { listen 127.0.0.1:%d reuseport; location / { proxy_pass https://inbound; proxy_ssl_certificate %s; proxy_ssl_certificate_key %s; proxy_ssl_trusted_certificate %s; proxy_ssl_verify on; proxy_ssl_name web.test; proxy_ssl_server_name on; } }\n",
			b.ports["h1"], b.keys.file("client.crt"), b.keys.file("client.key"), b.keys.file("ca.crt"))
	}
	return s.String() + "}\n"
}
