package proxycmd

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/command/gateway"
	"github.com/sarnmesh/sarn/connect/proxy/adsclient"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
)

// httpFlags say how to reach the agent's HTTP API.
type httpFlags struct {
	addr, token, tokenFile                            string
	caFile, caPath, clientCert, clientKey, serverName string
	namespace, partition, datacenter                  string
	stale                                             bool
}

func (h *httpFlags) add(f *flag.FlagSet) {
	f.StringVar(&h.addr, "http-addr", env("HTTP_ADDR"), "`address` of the agent's HTTP API; default http://127.0.0.1:8500")
	f.StringVar(&h.token, "token", env("HTTP_TOKEN"), "ACL `token`; better given by environment or file, since others can see arguments")
	f.StringVar(&h.tokenFile, "token-file", env("HTTP_TOKEN_FILE"), "`file` with the ACL token, read again for each connection")
	f.StringVar(&h.caFile, "ca-file", env("CACERT"), "CA `file` for the HTTP API")
	f.StringVar(&h.caPath, "ca-path", env("CAPATH"), "`folder` of CA files for the HTTP API")
	f.StringVar(&h.clientCert, "client-cert", env("CLIENT_CERT"), "client certificate `file`")
	f.StringVar(&h.clientKey, "client-key", env("CLIENT_KEY"), "client key `file`")
	f.StringVar(&h.serverName, "tls-server-name", env("TLS_SERVER_NAME"), "`name` to expect in the agent's certificate")
	f.StringVar(&h.datacenter, "datacenter", "", "accepted, without effect: a proxy belongs to its agent")
	f.BoolVar(&h.stale, "stale", false, "accepted, without effect")
	f.StringVar(&h.namespace, "namespace", "", "accepted, without effect")
	f.StringVar(&h.partition, "partition", "", "accepted, without effect")
}

// An agent is the agent that the proxy belongs to.
type agent struct {
	flags *flags
	cfg   *api.Config
	api   *api.Client
	log   hclog.Logger
}

func (c *command) agent(log hclog.Logger) (*agent, error) {
	h := &c.flags.http
	cfg := api.DefaultConfig()
	if h.addr != "" {
		cfg.Address = h.addr
	}
	cfg.Token, cfg.TokenFile = h.token, h.tokenFile
	if h.token != "" {
		cfg.TokenFile = "" // what is given directly wins
	}
	set := func(dst *string, v string) { *dst = cmp.Or(v, *dst) }
	set(&cfg.TLSConfig.CAFile, h.caFile)
	set(&cfg.TLSConfig.CAPath, h.caPath)
	set(&cfg.TLSConfig.CertFile, h.clientCert)
	set(&cfg.TLSConfig.KeyFile, h.clientKey)
	set(&cfg.TLSConfig.Address, h.serverName)
	client, err := api.NewClient(cfg)
	if err != nil {
		return nil, fmt.Errorf("Error connecting to the agent: %w", err) //nolint:staticcheck // shown as it is
	}
	return &agent{flags: &c.flags, cfg: cfg, api: client, log: log.Named("agent")}, nil
}

// token returns the ACL token as it is now.
func (a *agent) token() string {
	if h := &a.flags.http; h.token == "" && h.tokenFile != "" {
		b, err := os.ReadFile(h.tokenFile)
		if err != nil {
			a.log.Error("token file not read", "error", err)
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	return a.flags.http.token
}

func (a *agent) options(ctx context.Context) *api.QueryOptions {
	o := &api.QueryOptions{Token: a.token()}
	return o.WithContext(ctx)
}

// sidecarFor returns the ID of the one sidecar of a service.
func (a *agent) sidecarFor(ctx context.Context, service string) (string, error) {
	all, err := a.api.Agent().ServicesWithFilterOpts("", a.options(ctx))
	if err != nil {
		var s api.StatusError
		if errors.As(err, &s) && s.Code == http.StatusForbidden {
			return "", final{fmt.Errorf("Failed looking up sidecar proxy info for %s: %w", service, err)} //nolint:staticcheck // clients match the text
		}
		return "", err
	}
	var ids []string
	for id, s := range all {
		if s.Kind == api.ServiceKindConnectProxy && s.Proxy != nil && strings.EqualFold(s.Proxy.DestinationServiceID, service) {
			ids = append(ids, id)
		}
	}
	switch len(ids) {
	case 0:
		return "", final{fmt.Errorf("No sidecar proxy registered for %s", service)} //nolint:staticcheck // clients match the text
	case 1:
		return ids[0], nil
	}
	//nolint:staticcheck // clients match the text
	return "", final{fmt.Errorf("More than one sidecar proxy registered for %s.\n    Start proxy with -proxy-id and one of the following IDs: %s", service, sortedIDs(ids))}
}

// gateway returns the ID of the agent's one gateway of a kind.
func (a *agent) gateway(ctx context.Context, kind api.ServiceKind) (string, error) {
	all, err := a.api.Agent().ServicesWithFilterOpts("", a.options(ctx))
	if err != nil {
		return "", err
	}
	id, err := gateway.Find(all, kind)
	if err != nil {
		return "", final{err}
	}
	return id, nil
}

// bootstrap is what a proxy of the agent starts from.
func (a *agent) bootstrap(id string) *decode.Bootstrap {
	return &decode.Bootstrap{
		Node: decode.Node{
			ID: id, Cluster: id,
			// The last asks for certificates as secrets of their own, so that
			// their rotation changes nothing else.
			Metadata: map[string]any{"namespace": "default", "partition": "default", "sarn_secrets": true},
		},
		LDS: true, CDS: true,
	}
}

func (a *agent) metadata() []decode.Header {
	if t := a.token(); t != "" {
		return []decode.Header{{Key: "x-consul-token", Value: t}}
	}
	return nil
}

// targets returns the control planes. Where the agent's is, is asked anew each
// time: an agent may come back with other ports.
func (a *agent) targets() []adsclient.Target {
	var out []adsclient.Target
	if a.flags.grpcAddr == "" {
		return []adsclient.Target{{Name: "agent " + a.cfg.Address, Dial: func(ctx context.Context) (net.Conn, error) {
			addr, told, err := a.discover(ctx)
			if err != nil {
				return nil, err
			}
			conn, err := a.dial(ctx, addr)
			if err != nil && !told {
				err = fmt.Errorf("%w (the agent's gRPC port is taken to be the default, since the token may not ask the agent for it; give another with -grpc-addr)", err)
			}
			return conn, err
		}}}
	}
	for addr := range strings.SplitSeq(a.flags.grpcAddr, ",") {
		addr = strings.TrimSpace(addr)
		out = append(out, adsclient.Target{Name: addr, Dial: func(ctx context.Context) (net.Conn, error) { return a.dial(ctx, addr) }})
	}
	return out
}

// defaultGRPCPort is tried where the agent does not tell.
const defaultGRPCPort = 8502

// discover asks the agent where its gRPC port is. It is a guess when the agent has not told.
func (a *agent) discover(ctx context.Context) (addr string, told bool, err error) {
	host := a.host()
	var self struct {
		XDS struct {
			Ports struct{ TLS, Plaintext int }
			Port  int
		} `json:"xDS"`
		DebugConfig struct{ GRPCPort, GRPCTLSPort int }
	}
	var s api.StatusError
	switch _, err := a.api.Raw().Query("/v1/agent/self", &self, a.options(ctx)); {
	case errors.As(err, &s) && s.Code == http.StatusForbidden:
		a.log.Info("the token may not ask the agent for its gRPC port, using the default", "port", defaultGRPCPort)
		return net.JoinHostPort(host, strconv.Itoa(defaultGRPCPort)), false, nil
	case err != nil:
		return "", false, err
	}
	p := self.XDS.Ports
	secure, plain := max(p.TLS, self.DebugConfig.GRPCTLSPort), cmp.Or(max(p.Plaintext, 0), max(self.XDS.Port, 0), max(self.DebugConfig.GRPCPort, 0))
	trusted := a.flags.grpcCAFile != "" || a.flags.grpcCAPath != ""
	switch ip := net.ParseIP(host); {
	case secure > 0 && trusted:
		return "https://" + net.JoinHostPort(host, strconv.Itoa(secure)), true, nil
	case plain > 0:
		if secure > 0 && (ip == nil || !ip.IsLoopback()) {
			a.log.Warn("using the agent's plaintext gRPC port: no CA is given for the one with TLS", "flag", "-grpc-ca-file")
		}
		return net.JoinHostPort(host, strconv.Itoa(plain)), true, nil
	case secure > 0:
		return "", false, errors.New("the agent's gRPC port speaks TLS: give its CA with -grpc-ca-file")
	}
	return "", false, errors.New("the agent has no gRPC port: set ports.grpc in its configuration")
}

// host is where the agent is.
func (a *agent) host() string {
	addr := a.cfg.Address
	if strings.HasPrefix(addr, "unix://") || addr == "" {
		return "127.0.0.1"
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil || u.Hostname() == "" {
		return "127.0.0.1"
	}
	return u.Hostname()
}

// dial connects to a gRPC address and does TLS if it asks for that.
func (a *agent) dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	if path, ok := strings.CutPrefix(addr, "unix://"); ok {
		return d.DialContext(ctx, "unix", path)
	}
	secure := strings.HasPrefix(addr, "https://")
	addr = strings.TrimPrefix(strings.TrimPrefix(addr, "https://"), "http://")
	if !secure {
		return d.DialContext(ctx, "tcp", addr)
	}
	roots, err := a.roots()
	if err != nil {
		return nil, err
	}
	// Certificates of agents are made out to names of the datacenter, which
	// the proxy does not know: the chain is what counts.
	conn, err := (&tls.Dialer{Config: &tls.Config{
		NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS12, InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			o := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
			for _, c := range cs.PeerCertificates[1:] {
				o.Intermediates.AddCert(c)
			}
			_, err := cs.PeerCertificates[0].Verify(o)
			return err
		},
	}}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

func (a *agent) roots() (*x509.CertPool, error) {
	files := []string{}
	if f := a.flags.grpcCAFile; f != "" {
		files = append(files, f)
	}
	if dir := a.flags.grpcCAPath; dir != "" {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if !e.IsDir() {
				files = append(files, filepath.Join(dir, e.Name()))
			}
		}
	}
	if len(files) == 0 {
		return x509.SystemCertPool()
	}
	pool := x509.NewCertPool()
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		if !pool.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("no certificate in %s", f)
		}
	}
	return pool, nil
}

// errDeregistered ends a proxy that nobody wants any more.
var errDeregistered = errors.New("the proxy is not registered any more")

// watchInterval is how often the agent is asked about the registration.
const watchInterval = 5 * time.Second

// watchRegistration returns errDeregistered once the agent has said for the
// given time that it does not know the proxy. An agent that does not answer
// says nothing.
func (a *agent) watchRegistration(ctx context.Context, id string, grace, interval time.Duration) error {
	var gone time.Time // zero: registered, as far as is known
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
		_, _, err := a.api.Agent().Service(id, a.options(ctx))
		switch {
		case !notFound(err):
			gone = time.Time{}
		case gone.IsZero():
			gone = time.Now()
			a.log.Warn("the agent does not know this proxy", "proxy", id, "exit in", grace)
		case time.Since(gone) >= grace:
			a.log.Info("exiting, since the proxy is not registered any more", "proxy", id)
			return errDeregistered
		}
	}
}

// register registers the proxy with the agent.
func (a *agent) register(ctx context.Context, reg *api.AgentServiceRegistration) error {
	err := a.api.Agent().ServiceRegisterOpts(reg, api.ServiceRegisterOpts{Token: a.token()}.WithContext(ctx))
	var s api.StatusError
	if errors.As(err, &s) && s.Code >= 400 && s.Code < 500 {
		return final{err}
	}
	return err
}

// keepRegistered keeps the registration that the flags asked for alive, and
// ends it with the proxy, unless that was succeeded by another process.
func (a *agent) keepRegistered(ctx context.Context, id string, succeeded func() bool) error {
	for {
		err := a.api.Agent().UpdateTTLOpts(id+"-ttl", "", api.HealthPassing, a.options(ctx))
		if err != nil && ctx.Err() == nil {
			a.log.Warn("registration not refreshed", "error", err)
			if reg, rerr := a.flags.registration(); notFound(err) && rerr == nil && a.flags.listen != "" {
				// The agent forgot: perhaps it was started anew.
				if err := a.register(ctx, reg); err != nil {
					a.log.Warn("not registered again", "error", err)
				}
			}
		}
		select {
		case <-ctx.Done():
			if succeeded() {
				return nil
			}
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			if err := a.api.Agent().ServiceDeregisterOpts(id, a.options(end)); err != nil {
				a.log.Warn("not deregistered", "error", err)
			}
			return nil
		case <-time.After(10 * time.Second):
		}
	}
}

// hostPort splits an address with a numeric port.
func hostPort(addr string) (string, int, error) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return "", 0, fmt.Errorf("%q is no port", text)
	}
	return host, int(port), nil
}
