package connectcmd

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/gateway"
	"github.com/sarnmesh/sarn/command/verb"
)

// envoyFlags are the flags of connect envoy.
type envoyFlags struct {
	proxyID, sidecarFor, nodeName, gateway string
	meshGateway                            bool
	bootstrap                              bool
	binary                                 string
	adminBind, adminLog                    string
	grpcAddr, grpcCAFile, grpcCAPath       string
	noCentral, omitDeprecated              bool

	register, exposeServers      bool
	service, address, wanAddress string
	bindAddresses                map[string]string
	deregisterAfter              time.Duration
	readyAddr                    string
	readyPort                    int

	prometheus prometheusFlags
}

// prometheusFlags are the flags about serving metrics.
type prometheusFlags struct {
	backendPort, scrapePath           string
	caFile, caPath, certFile, keyFile string
}

func envoy(f *flag.FlagSet) func(*verb.Call) error {
	e := new(envoyFlags)
	f.StringVar(&e.proxyID, "proxy-id", env("CONNECT_PROXY_ID", ""), "`ID` of the proxy service; CONNECT_PROXY_ID")
	f.StringVar(&e.sidecarFor, "sidecar-for", env("CONNECT_SIDECAR_FOR", ""), "`ID` of the service whose sidecar to run; CONNECT_SIDECAR_FOR")
	f.StringVar(&e.nodeName, "node-name", "", "`node` of the catalog the proxy is registered on, where there is no agent; needs -proxy-id")
	f.StringVar(&e.gateway, "gateway", "", "`kind` of the gateway to run: api, ingress, mesh or terminating")
	f.BoolVar(&e.meshGateway, "mesh-gateway", false, "old form of -gateway=mesh")
	f.BoolVar(&e.bootstrap, "bootstrap", false, "print the configuration and exit")
	f.StringVar(&e.binary, "envoy-binary", "", "`path` of the envoy binary; default from PATH")
	f.String("envoy-version", "", "accepted, without effect")
	f.Bool("ignore-envoy-compatibility", false, "accepted, without effect: Envoy itself refuses what it cannot read")
	f.Bool("enable-config-gen-logging", false, "accepted, without effect")
	f.StringVar(&e.adminBind, "admin-bind", "localhost:19000", "`host:port` of Envoy's admin interface")
	f.StringVar(&e.adminLog, "admin-access-log-path", os.DevNull, "`file` for the access log of the admin interface")
	f.StringVar(&e.grpcAddr, "grpc-addr", env("CONSUL_GRPC_ADDR", ""), "`address` of the agent's gRPC port; CONSUL_GRPC_ADDR")
	f.StringVar(&e.grpcCAFile, "grpc-ca-file", env("CONSUL_GRPC_CACERT", ""), "CA `file` for gRPC; CONSUL_GRPC_CACERT")
	f.StringVar(&e.grpcCAPath, "grpc-ca-path", env("CONSUL_GRPC_CAPATH", ""), "`folder` of CA files for gRPC; CONSUL_GRPC_CAPATH")
	f.BoolVar(&e.noCentral, "no-central-config", false, "do not use the configuration of the proxy for the bootstrap")
	f.BoolVar(&e.omitDeprecated, "omit-deprecated-tags", false, "leave out the old names of stats tags")
	f.BoolVar(&e.register, "register", false, "register the gateway first")
	f.BoolVar(&e.exposeServers, "expose-servers", false, "let other datacenters reach the servers through this mesh gateway; needs -register")
	f.StringVar(&e.service, "service", "", "`name` to register the gateway under; default its kind")
	f.StringVar(&e.address, "address", "", "`host:port` to register the gateway with")
	f.StringVar(&e.wanAddress, "wan-address", "", "`host:port` other datacenters reach the gateway at")
	bind := verb.Pairs(f, "bind-address", "address to bind, as `name=ip:port`; repeatable")
	f.DurationVar(&e.deregisterAfter, "deregister-after-critical", 6*time.Hour, "`time` after which a dead gateway is deregistered")
	f.StringVar(&e.readyAddr, "envoy-ready-bind-address", "", "`host` to answer /ready on")
	f.IntVar(&e.readyPort, "envoy-ready-bind-port", 0, "`port` to answer /ready on")
	p := &e.prometheus
	f.StringVar(&p.backendPort, "prometheus-backend-port", "", "`port` to fetch metrics from in place of Envoy's own")
	f.StringVar(&p.scrapePath, "prometheus-scrape-path", "/metrics", "`path` metrics are served at")
	f.StringVar(&p.caFile, "prometheus-ca-file", "", "CA `file` for scraping over TLS")
	f.StringVar(&p.caPath, "prometheus-ca-path", "", "`folder` of CA files for scraping over TLS")
	f.StringVar(&p.certFile, "prometheus-cert-file", "", "certificate `file` for scraping over TLS")
	f.StringVar(&p.keyFile, "prometheus-key-file", "", "key `file` for scraping over TLS")
	return func(c *verb.Call) error {
		e.bindAddresses = *bind
		return e.run(c)
	}
}

// env is an environment variable, or the default where it is empty.
func env(name, other string) string { return cmp.Or(os.Getenv(name), other) }

// check finds what is wrong with the flags alone. It returns the kind of gateway, empty for a sidecar.
func (e *envoyFlags) check() (api.ServiceKind, error) {
	if e.meshGateway {
		e.gateway = "mesh"
	}
	kind := gateway.Kinds[e.gateway]
	p := e.prometheus
	switch {
	case e.gateway != "" && kind == "":
		return "", gateway.ErrKind
	case e.nodeName != "" && e.proxyID == "":
		return "", verb.Errorf("'-node-name' requires '-proxy-id'")
	case e.register && e.nodeName != "":
		return "", verb.Errorf("'-register' cannot be used with '-node-name'")
	case e.proxyID == "" && e.sidecarFor == "" && kind == "":
		return "", verb.Errorf("No proxy ID specified. One of -proxy-id, -sidecar-for, or -gateway is required")
	case e.register && kind == "":
		return "", verb.Errorf("Auto-Registration can only be used for gateways")
	case e.exposeServers && (kind != api.ServiceKindMeshGateway || !e.register):
		return "", verb.Errorf("'-expose-servers' can only be used for mesh gateways with '-register'")
	}
	if hasCA := p.caFile != "" || p.caPath != ""; hasCA || p.certFile != "" || p.keyFile != "" {
		if !hasCA || p.certFile == "" || p.keyFile == "" {
			return "", verb.Errorf("Must provide a CA (-prometheus-ca-file or -prometheus-ca-path) as well as " +
				"-prometheus-cert-file and -prometheus-key-file to enable TLS for prometheus metrics")
		}
	}
	return kind, nil
}

func (e *envoyFlags) run(c *verb.Call) error {
	kind, err := e.check()
	if err != nil {
		return err
	}
	client, err := c.API()
	if err != nil {
		return err
	}
	if e.register {
		if err := e.registerGateway(c, client, kind); err != nil {
			return err
		}
	}
	id, err := e.findProxy(client, kind)
	if err != nil {
		return err
	}
	proxy, err := e.fetch(c, client, id)
	if err != nil {
		return err
	}
	args, err := e.arguments(c, client, proxy)
	if err != nil {
		return err
	}
	doc, err := args.bootstrap(proxy)
	if err != nil {
		return err
	}
	if e.bootstrap {
		c.Println(string(doc))
		return nil
	}
	return e.exec(c, doc)
}

// A proxyService is what the bootstrap needs to know of a proxy, from an agent or from the catalog.
type proxyService struct {
	id, name, datacenter string
	kind                 api.ServiceKind
	port                 int
	address              string
	tagged               map[string]api.ServiceAddress
	proxy                *api.AgentServiceConnectProxyConfig
}

// findProxy returns the ID of the proxy that the flags mean.
func (e *envoyFlags) findProxy(client *api.Client, kind api.ServiceKind) (string, error) {
	if e.proxyID != "" {
		return e.proxyID, nil
	}
	all, err := client.Agent().Services()
	if err != nil {
		return "", verb.Errorf("Failed looking up proxy: %w", err)
	}
	if e.sidecarFor == "" {
		return gateway.Find(all, kind)
	}
	var ids []string
	for id, s := range all {
		if s.Kind == api.ServiceKindConnectProxy && s.Proxy != nil && strings.EqualFold(s.Proxy.DestinationServiceID, e.sidecarFor) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	switch len(ids) {
	case 1:
		return ids[0], nil
	case 0:
		return "", verb.Errorf("No sidecar proxy registered for %s", e.sidecarFor)
	default:
		return "", verb.Errorf("More than one sidecar proxy registered for %s.\n    Start proxy with -proxy-id and one of the following IDs: %s",
			e.sidecarFor, strings.Join(ids, ", "))
	}
}

// fetch reads the proxy's registration.
func (e *envoyFlags) fetch(c *verb.Call, client *api.Client, id string) (*proxyService, error) {
	var p *proxyService
	if e.nodeName != "" {
		q := c.Query()
		q.Filter = fmt.Sprintf("ID == %q", id)
		q.MergeCentralConfig = true
		list, _, err := client.Catalog().NodeServiceList(e.nodeName, q)
		if err != nil {
			return nil, verb.Errorf("failed to fetch proxy config from catalog for node %q: %w", e.nodeName, err)
		}
		if list == nil || len(list.Services) == 0 {
			return nil, verb.Errorf("Proxy service with ID %q not found", id)
		}
		s := list.Services[0]
		p = &proxyService{s.ID, s.Service, s.Datacenter, s.Kind, s.Port, s.Address, s.TaggedAddresses, s.Proxy}
	} else {
		s, _, err := client.Agent().Service(id, nil)
		if err != nil {
			return nil, verb.Errorf("failed fetch proxy config from local agent: %w", err)
		}
		p = &proxyService{s.ID, s.Service, s.Datacenter, s.Kind, s.Port, s.Address, s.TaggedAddresses, s.Proxy}
	}
	isGateway := false
	for _, k := range gateway.Kinds {
		isGateway = isGateway || p.kind == k
	}
	if p.proxy == nil || p.kind != api.ServiceKindConnectProxy && !isGateway {
		return nil, verb.Errorf("service is not a Connect proxy or gateway")
	}
	return p, nil
}

// registerGateway registers the gateway with the agent.
func (e *envoyFlags) registerGateway(c *verb.Call, client *api.Client, kind api.ServiceKind) error {
	r := gateway.Registration{
		Kind: kind, ID: e.proxyID, Name: e.service, Address: e.address, WANAddress: e.wanAddress, BindAddresses: e.bindAddresses,
		ExposeServers: e.exposeServers, DeregisterAfter: e.deregisterAfter,
	}
	reg, err := r.Request()
	if err != nil {
		return err
	}
	e.proxyID = reg.ID
	if err := client.Agent().ServiceRegister(reg); err != nil {
		return verb.Errorf("Error registering service %q: %w", reg.Name, err)
	}
	if !e.bootstrap {
		c.Printf("Registered service: %s\n", reg.Name)
	}
	return nil
}

// grpcTarget is where Envoy finds its control plane.
type grpcTarget struct {
	address, port string
	socket        string // path, in place of address and port
	tls           bool
}

// target works out the gRPC address, asking the agent if nothing else tells.
func (e *envoyFlags) target(c *verb.Call, client *api.Client) (grpcTarget, error) {
	addr := e.grpcAddr
	if addr == "" {
		port, secure, err := discover(client)
		if err != nil {
			c.Warnf("Cannot ask the agent for its gRPC port, using 8502: %v", err)
			port = 8502
		}
		addr = fmt.Sprintf("localhost:%d", port)
		if secure {
			addr = "https://" + addr
		}
	}
	hasCA := e.grpcCAFile != "" || e.grpcCAPath != ""
	if path, ok := strings.CutPrefix(addr, "unix://"); ok {
		return grpcTarget{socket: path, tls: hasCA}, nil
	}
	rest, secure := strings.CutPrefix(addr, "https://")
	rest = strings.TrimPrefix(rest, "http://")
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return grpcTarget{}, verb.Errorf("Invalid gRPC address: %w", err)
	}
	ip, err := resolve(c.Context, host)
	if err != nil {
		return grpcTarget{}, verb.Errorf("Failed to resolve gRPC address: %w", err)
	}
	return grpcTarget{address: ip, port: port, tls: secure || hasCA}, nil
}

// discover asks the agent for its gRPC port, the one with TLS first.
func discover(client *api.Client) (port int, secure bool, err error) {
	self, err := client.Agent().Self()
	if err != nil {
		return 0, false, err
	}
	number := func(v any) int {
		n, _ := v.(float64)
		return int(n)
	}
	if ports, ok := self["xDS"]["Ports"].(map[string]any); ok {
		if p := number(ports["TLS"]); p > 0 {
			return p, true, nil
		}
		if p := number(ports["Plaintext"]); p > 0 {
			return p, false, nil
		}
	}
	if p := number(self["DebugConfig"]["GRPCPort"]); p > 0 {
		return p, false, nil
	}
	return 0, false, verb.Errorf("gRPC is not enabled on the agent")
}

// resolve returns an IP address for a host, IPv4 if there is one.
func resolve(ctx context.Context, host string) (string, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.String(), nil
	}
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return "", err
	}
	for _, ip := range found {
		if ip.Unmap().Is4() {
			return ip.Unmap().String(), nil
		}
	}
	if len(found) == 0 {
		return "", fmt.Errorf("no address for %s", host)
	}
	return found[0].String(), nil
}

// pemFiles reads a CA file, or all files of a folder, one after the other.
func pemFiles(file, folder string) (string, error) {
	if file != "" {
		data, err := os.ReadFile(file)
		return string(data), err
	}
	if folder == "" {
		return "", nil
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, f := range entries {
		if f.IsDir() {
			continue
		}
		data, err := os.ReadFile(filepath.Join(folder, f.Name()))
		if err != nil {
			return "", err
		}
		b.Write(data)
		if !strings.HasSuffix(b.String(), "\n") {
			b.WriteByte('\n')
		}
	}
	return b.String(), nil
}

// arguments gathers what the bootstrap is made of.
func (e *envoyFlags) arguments(c *verb.Call, client *api.Client, p *proxyService) (*bootstrapArgs, error) {
	adminHost, adminPort, err := net.SplitHostPort(e.adminBind)
	if err != nil {
		return nil, verb.Errorf("Invalid -admin-bind: %w", err)
	}
	adminIP, err := resolve(c.Context, adminHost)
	if err != nil {
		return nil, verb.Errorf("Failed to resolve -admin-bind address: %w", err)
	}
	target, err := e.target(c, client)
	if err != nil {
		return nil, err
	}
	token, err := c.TokenFlag()
	if err != nil {
		return nil, err
	}
	conf := c.Config()
	ca, err := pemFiles(cmp.Or(e.grpcCAFile, iif(e.grpcCAPath == "", conf.TLSConfig.CAFile)), cmp.Or(e.grpcCAPath, iif(e.grpcCAFile == "", conf.TLSConfig.CAPath)))
	if err != nil {
		return nil, verb.Errorf("Error loading CA: %w", err)
	}
	if e.grpcAddr == "" && target.tls && ca == "" {
		// An agent without a certificate of its own shows one of the mesh. Envoy refuses an empty CA.
		if ca, err = meshRoots(client); err != nil {
			c.Warnf("Cannot ask the agent for the roots of the mesh, to know it by on its gRPC port: %v", err)
		}
	}
	source := p.name
	if p.kind == api.ServiceKindConnectProxy {
		source = cmp.Or(p.proxy.DestinationServiceName, p.name)
	}
	a := &bootstrapArgs{
		GRPC:         GRPC{AgentAddress: target.address, AgentPort: target.port, AgentSocket: target.socket, AgentTLS: target.tls},
		ProxyCluster: cmp.Or(source, p.id), ProxyID: p.id, NodeName: e.nodeName, ProxySourceService: source,
		AgentCAPEM: strings.ReplaceAll(ca, "\n", `\n`), AdminAccessLogPath: e.adminLog, AdminBindAddress: adminIP, AdminBindPort: adminPort,
		LocalAgentClusterName: "local_agent", Token: token, Namespace: "default", Partition: "default", Datacenter: p.datacenter,
		PrometheusBackendPort: e.prometheus.backendPort, PrometheusScrapePath: e.prometheus.scrapePath,
		PrometheusCAFile: e.prometheus.caFile, PrometheusCAPath: e.prometheus.caPath,
		PrometheusCertFile: e.prometheus.certFile, PrometheusKeyFile: e.prometheus.keyFile,
		caPEM: ca, omitDeprecated: e.omitDeprecated, central: !e.noCentral,
	}
	if a.Datacenter == "" {
		self, err := client.Agent().Self()
		if err == nil {
			a.Datacenter, _ = self["Config"]["Datacenter"].(string)
		}
	}
	a.readyAddress, a.readyPort = e.ready(p)
	return a, nil
}

// meshRoots returns the root certificates of the mesh.
func meshRoots(client *api.Client) (string, error) {
	roots, _, err := client.Agent().ConnectCARoots(nil)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, r := range roots.Roots {
		b.WriteString(strings.TrimSuffix(r.RootCertPEM, "\n") + "\n")
	}
	return b.String(), nil
}

// iif is v if the condition holds, else empty.
func iif(cond bool, v string) string {
	if cond {
		return v
	}
	return ""
}

// ready is where Envoy answers whether it is ready; no address means nowhere. Ingress gateways always do, since they may
// have no other listener that tells.
func (e *envoyFlags) ready(p *proxyService) (addr, port string) {
	if e.readyAddr != "" && e.readyPort != 0 {
		return e.readyAddr, strconv.Itoa(e.readyPort)
	}
	if p.kind != api.ServiceKindIngressGateway {
		return "", ""
	}
	lan := p.tagged["lan"]
	return cmp.Or(e.readyAddr, lan.Address, p.address, "127.0.0.1"), strconv.Itoa(cmp.Or(e.readyPort, lan.Port, p.port))
}

// exec replaces the process by Envoy, with the configuration in a file that is gone once Envoy has read it.
func (e *envoyFlags) exec(c *verb.Call, doc []byte) error {
	binary := cmp.Or(e.binary, "envoy")
	path, err := exec.LookPath(binary)
	if err != nil {
		return verb.Errorf("Couldn't find envoy binary: %w", err)
	}
	return execEnvoy(c, path, doc)
}
