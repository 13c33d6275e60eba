// Package troubleshootcmd holds the commands that find out why a sidecar, or a port of an agent, can not be reached. They
// ask the admin server of the proxy, Envoy's or the built-in one's.
package troubleshootcmd

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{
		{Path: "troubleshoot", Synopsis: "Find out why something can not be reached"},
		{
			Path: "troubleshoot upstreams", Synopsis: "List what a sidecar can reach", Setup: upstreams, Client: true, Server: true,
			Help: "Lists the upstreams of a sidecar, as its admin server tells them: those that are written in its registration by their " +
				"names, those of a transparent proxy by the addresses that they have. Either can be given to troubleshoot proxy.",
		},
		{
			Path: "troubleshoot proxy", Synopsis: "Check the way from a sidecar to an upstream", Setup: proxy, Client: true, Server: true,
			Help: "Looks at certificates, refused configuration, failed connections, and listener, route, cluster and endpoints of " +
				"one upstream, as the admin server of the sidecar tells them.",
		},
		{
			Path: "troubleshoot ports", Synopsis: "Try the ports of an agent", Setup: ports,
			Help: "Tries to connect to the ports of an agent over TCP and tells which of them are open.",
		},
	}
}

const (
	adminTimeout = 10 * time.Second
	maxAnswer    = 256 << 20 // of an admin server
	dialTimeout  = 5 * time.Second
)

// An admin asks the admin server of a proxy.
type admin struct {
	client *http.Client
	base   string
}

func adminFlag(f *flag.FlagSet) *string {
	return f.String("envoy-admin-endpoint", "127.0.0.1:19000", "`address` of the proxy's admin server: host:port, or unix:///path")
}

func newAdmin(endpoint string) (*admin, error) {
	if path, ok := strings.CutPrefix(endpoint, "unix://"); ok {
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		return &admin{&http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}, "http://proxy"}, nil
	}
	host := strings.TrimPrefix(endpoint, "http://")
	if _, port, err := net.SplitHostPort(host); err != nil || port == "" {
		return nil, verb.Errorf("Error: -envoy-admin-endpoint should be host:port or unix:///path, not %q", endpoint)
	}
	return &admin{&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, "http://" + host}, nil
}

// get decodes the answer to a request for JSON.
func (a *admin) get(ctx context.Context, path string, to any) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	fail := func(err error) error { return verb.Errorf("Error asking the proxy for %s: %w", path, err) }
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.base+path, nil)
	if err != nil {
		return fail(err)
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fail(fmt.Errorf("unexpected status %s", resp.Status))
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(to); err != nil {
		return fail(err)
	}
	return nil
}

// formatFlag adds the flag for the form of the output.
func formatFlag(f *flag.FlagSet) *string {
	return f.String("format", "pretty", "`format` of the output: pretty or json")
}

func checkFormat(format string) error {
	if format != "pretty" && format != "json" {
		return verb.Errorf("Unknown format: %s", format)
	}
	return nil
}

func upstreams(f *flag.FlagSet) func(*verb.Call) error {
	endpoint, format := adminFlag(f), formatFlag(f)
	return func(c *verb.Call) error {
		if err := checkFormat(*format); err != nil {
			return err
		}
		if err := c.NoArgs(); err != nil {
			return err
		}
		a, err := newAdmin(*endpoint)
		if err != nil {
			return err
		}
		var dump configDump
		if err := a.get(c.Context, "/config_dump?include_eds", &dump); err != nil {
			return err
		}
		found := dump.upstreams()
		if *format == "json" {
			return c.PrintJSON(found)
		}
		c.Printf("==> Upstreams (explicit upstreams only) (%d)\n", len(found.Explicit))
		for _, name := range found.Explicit {
			c.Printf("%s\n", name)
		}
		c.Printf("\n==> Upstream IPs (transparent proxy only) (%d)\n", len(found.Transparent))
		if len(found.Transparent) > 0 {
			rows := [][]string{{"IPs", "Virtual", "Clusters"}}
			for _, u := range found.Transparent {
				rows = append(rows, []string{strings.Join(u.IPs, ", "), strconv.FormatBool(u.Virtual), strings.Join(u.Clusters, ", ")})
			}
			c.Printf("%s", verb.Table(rows))
		}
		c.Printf("\nAn upstream of a transparent proxy that is not here:\n" +
			"- is known to a sidecar once an intention allows calls to it: see intention check\n" +
			"- has the addresses that DNS gives for NAME.virtual.consul\n")
		return nil
	}
}

func proxy(f *flag.FlagSet) func(*verb.Call) error {
	endpoint, format := adminFlag(f), formatFlag(f)
	id := f.String("upstream-envoy-id", "", "`name` of an upstream that is written in the registration")
	ip := f.String("upstream-ip", "", "`IP` of an upstream of a transparent proxy")
	return func(c *verb.Call) error {
		if *id == "" && *ip == "" {
			return verb.Errorf("-upstream-envoy-id OR -upstream-ip is required.\nPlease run `sarn troubleshoot upstreams` to find the corresponding upstream.")
		}
		if err := checkFormat(*format); err != nil {
			return err
		}
		if err := c.NoArgs(); err != nil {
			return err
		}
		a, err := newAdmin(*endpoint)
		if err != nil {
			return err
		}
		var (
			dump     configDump
			certs    certificates
			stats    statistics
			clusters clusterStatuses
		)
		for path, to := range map[string]any{
			"/config_dump?include_eds": &dump, "/certs": &certs, "/stats?format=json": &stats, "/clusters?format=json": &clusters,
		} {
			if err := a.get(c.Context, path, to); err != nil {
				return err
			}
		}
		findings := examine(&dump, &certs, &stats, &clusters, *id, *ip, time.Now())
		if *format == "json" {
			return c.PrintJSON(findings)
		}
		c.Println("==> Validation")
		for _, v := range findings {
			mark := c.Paint(verb.Good, "✓")
			if !v.Success {
				mark = c.Paint(verb.Bad, "!")
			}
			c.Println(" " + mark + " " + v.Message)
			for _, action := range v.PossibleActions {
				c.Println("  -> " + action)
			}
		}
		return nil
	}
}

// A port is what became of one port of a host.
type port struct {
	Port  int
	Open  bool
	Error string `json:",omitempty"`
}

func ports(f *flag.FlagSet) func(*verb.Call) error {
	host := f.String("host", os.Getenv("CONSUL_HTTP_ADDR"), "`host` to try the ports of, also as a URL or with a port; CONSUL_HTTP_ADDR")
	list := f.String("ports", "8600,8500,8501,8502,8503,8301,8302,8300", "comma-separated `ports`")
	format := formatFlag(f)
	return func(c *verb.Call) error {
		if *host == "" {
			return verb.Errorf("-host is required. or set environment variable CONSUL_HTTP_ADDR")
		}
		if err := checkFormat(*format); err != nil {
			return err
		}
		if err := c.NoArgs(); err != nil {
			return err
		}
		name := hostOf(*host)
		var all []*port
		for text := range strings.SplitSeq(*list, ",") {
			n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 16)
			if err != nil || n == 0 {
				return verb.Errorf("Invalid port: %q", text)
			}
			all = append(all, &port{Port: int(n)})
		}
		tried := make(chan struct{})
		for _, p := range all {
			go func() {
				p.try(c.Context, name)
				tried <- struct{}{}
			}()
		}
		for range all {
			<-tried
		}
		if *format == "json" {
			return c.PrintJSON(all)
		}
		for _, p := range all {
			if p.Open {
				c.Printf("TCP: Port %d on %s is open.\n", p.Port, name)
			} else {
				c.Printf("TCP: Port %d on %s is closed, unreachable, or the connection timed out.\n", p.Port, name)
			}
		}
		return nil
	}
}

// try connects to the port.
func (p *port) try(ctx context.Context, host string) {
	conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(p.Port)))
	if err != nil {
		p.Error = err.Error()
		return
	}
	conn.Close()
	p.Open = true
}

// hostOf is the host of an address, which may be a URL.
func hostOf(addr string) string {
	if u, err := url.Parse(addr); err == nil && u.Scheme != "" && u.Host != "" {
		return u.Hostname()
	}
	if host, _, err := net.SplitHostPort(addr); err == nil {
		return host
	}
	return strings.Trim(addr, "[]")
}
