// Package admin shows what a proxy does and takes a few orders, over HTTP. It
// never shows private keys or tokens.
//
// Whoever reaches the server may stop the proxy, so it listens on a UNIX
// socket in a folder of the owner's by default. On a TCP address it answers
// only requests that name it by an IP address or as localhost, so that a web
// page can't be made to send some by a name that it controls.
package admin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

// Config tunes a Server. A zero field takes its default.
type Config struct {
	Allow  []model.StringMatch // paths to serve; empty serves all
	Logger hclog.Logger        // whose level /logging changes; default discards
	// Options are shown by /server_info.
	Options map[string]string
}

// A Server answers for a proxy. It is an http.Handler.
type Server struct {
	cfg    Config
	p      *proxy.Proxy // nil answers for several
	routes map[string]route
	below  func(http.ResponseWriter, *http.Request) bool // answers other paths, or returns false; nil does not
}

type route struct {
	help    string
	mutates bool // needs POST
	serve   func(http.ResponseWriter, *http.Request)
}

func newServer(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Server{cfg: cfg}
}

// New returns a server for p.
func New(p *proxy.Proxy, cfg Config) *Server {
	s := newServer(cfg)
	s.p = p
	s.routes = map[string]route{
		"/":                      {"this page", false, s.index},
		"/help":                  {"print out list of admin commands", false, s.help},
		"/ready":                 {"print server state, return 200 if LIVE, otherwise return 503", false, s.ready},
		"/server_info":           {"print server version/status information", false, s.serverInfo},
		"/stats":                 {"print server stats", false, s.stats},
		"/stats/prometheus":      {"print server stats in prometheus format", false, s.prometheus},
		"/clusters":              {"upstream cluster status", false, s.clusters},
		"/listeners":             {"print listener info", false, s.listeners},
		"/certs":                 {"print certs on machine", false, s.certs},
		"/config_dump":           {"dump current configs (secrets redacted)", false, s.configDump},
		"/init_dump":             {"dump what is warming", false, s.initDump},
		"/memory":                {"print current allocation/heap usage", false, s.memory},
		"/runtime":               {"print runtime values", false, s.runtime},
		"/hot_restart_version":   {"print the hot restart compatibility version", false, s.hotRestart},
		"/logging":               {"query/change logging levels", true, s.logging},
		"/healthcheck/fail":      {"cause the server to fail health checks", true, s.failHealth},
		"/healthcheck/ok":        {"cause the server to pass health checks", true, s.passHealth},
		"/drain_listeners":       {"drain listeners", true, s.drain},
		"/quitquitquit":          {"exit the server", true, s.quit},
		"/reset_counters":        {"reset all counters to zero", true, s.reset},
		"/reopen_logs":           {"reopen access logs", true, s.reopen},
		"/debug/pprof/":          {"profiles", false, pprof.Index},
		"/debug/pprof/profile":   {"CPU profile", false, pprof.Profile},
		"/debug/pprof/trace":     {"execution trace", false, pprof.Trace},
		"/debug/pprof/symbol":    {"program counters to names", false, pprof.Symbol},
		"/debug/pprof/heap":      {"heap profile", false, pprof.Handler("heap").ServeHTTP},
		"/debug/pprof/allocs":    {"allocation profile", false, pprof.Handler("allocs").ServeHTTP},
		"/debug/pprof/goroutine": {"goroutines", false, pprof.Handler("goroutine").ServeHTTP},
	}
	return s
}

// Serve answers on ln until ctx ends.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler: s, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       s.cfg.Logger.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(sctx) != nil {
			srv.Close()
		}
		close(done)
	})
	err := srv.Serve(ln)
	if stop() {
		return err // it failed by itself
	}
	<-done
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-cache, max-age=0")
	if !localName(r) {
		http.Error(w, "ask by IP address or as localhost", http.StatusForbidden)
		return
	}
	path := r.URL.Path
	if len(s.cfg.Allow) > 0 && !slices.ContainsFunc(s.cfg.Allow, func(m model.StringMatch) bool { return m.Match(path) }) {
		http.Error(w, "request to path "+strconv.Quote(path)+" not allowed", http.StatusForbidden)
		return
	}
	rt, ok := s.routes[path]
	if !ok {
		if s.below != nil && s.below(w, r) {
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, "invalid path. ")
		s.list(w)
		return
	}
	if rt.mutates && r.Method != http.MethodPost {
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
		return
	}
	rt.serve(w, r)
}

// localName reports whether the request came over a UNIX socket or names the
// server in a way that only somebody who means it does.
func localName(r *http.Request) bool {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && a.Network() == "unix" {
		return true
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "" || strings.EqualFold(host, "localhost") {
		return true
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil
}

func text(w http.ResponseWriter) { w.Header().Set("Content-Type", "text/plain; charset=UTF-8") }

func (s *Server) json(w http.ResponseWriter, v any) {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(append(b, '\n'))
}

func ok(w http.ResponseWriter) {
	text(w)
	fmt.Fprintln(w, "OK")
}

func (s *Server) list(w http.ResponseWriter) {
	fmt.Fprintln(w, "admin commands are:")
	for _, path := range slices.Sorted(maps.Keys(s.routes)) {
		method := ""
		if s.routes[path].mutates {
			method = " (POST)"
		}
		fmt.Fprintf(w, "  %s%s: %s\n", path, method, s.routes[path].help)
	}
}

func (s *Server) help(w http.ResponseWriter, _ *http.Request) {
	text(w)
	s.list(w)
}

func (s *Server) index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=UTF-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'")
	fmt.Fprint(w, "<!doctype html><title>Proxy admin</title><h1>Proxy admin</h1><ul>")
	for _, path := range slices.Sorted(maps.Keys(s.routes)) {
		r := s.routes[path]
		if r.mutates {
			fmt.Fprintf(w, "<li><form method=post action=%q><button>%s</button> %s</form>", path, path, r.help)
		} else {
			fmt.Fprintf(w, "<li><a href=%q>%s</a> %s", path, path, r.help)
		}
	}
	fmt.Fprint(w, "</ul>")
}

func (s *Server) ready(w http.ResponseWriter, _ *http.Request) {
	text(w)
	if !s.p.Ready() {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintln(w, s.p.State())
}

func (s *Server) serverInfo(w http.ResponseWriter, _ *http.Request) {
	n := s.p.Node()
	up := time.Since(s.p.Started()).Truncate(time.Second).String()
	s.json(w, map[string]any{
		"version": s.p.Version(), "state": s.p.State(), "uptime_current_epoch": up, "uptime_all_epochs": up,
		"hot_restart_version": "disabled", "command_line_options": s.cfg.Options,
		"node": map[string]any{"id": n.ID, "cluster": n.Cluster, "metadata": n.Metadata, "locality": map[string]string{"region": n.Region, "zone": n.Zone, "sub_zone": n.SubZone}},
	})
}

func (s *Server) clusters(w http.ResponseWriter, r *http.Request) {
	list := s.p.Upstreams()
	if r.URL.Query().Get("format") == "json" {
		s.json(w, map[string]any{"cluster_statuses": clustersJSON(list)})
		return
	}
	text(w)
	var b bytes.Buffer
	for _, c := range list {
		n := c.Conf.Name
		fmt.Fprintf(&b, "%s::observability_name::%s\n", n, cmp.Or(c.Conf.AltStatName, n))
		for i, priority := range [...]string{"default", "high"} {
			l := c.Breaker[i].Limits()
			fmt.Fprintf(&b, "%s::%s_priority::max_connections::%d\n", n, priority, l.MaxConnections)
			fmt.Fprintf(&b, "%s::%s_priority::max_pending_requests::%d\n", n, priority, l.MaxPending)
			fmt.Fprintf(&b, "%s::%s_priority::max_requests::%d\n", n, priority, l.MaxRequests)
			fmt.Fprintf(&b, "%s::%s_priority::max_retries::%d\n", n, priority, l.MaxRetries)
			for _, r := range breakerNames {
				fmt.Fprintf(&b, "%s::%s_priority::%s::%s, %d in use\n", n, priority, r.name, c.Breaker[i].State(r.resource), c.Breaker[i].Used(r.resource))
			}
		}
		fmt.Fprintf(&b, "%s::added_via_api::%v\n", n, !c.Static)
		for _, h := range c.Hosts {
			p := n + "::" + h.Endpoint.Address.String()
			fmt.Fprintf(&b, "%s::cx_active::%d\n", p, h.Stats.CxActive.Value())
			fmt.Fprintf(&b, "%s::cx_connect_fail::%d\n", p, h.Stats.CxConnectFail.Value())
			fmt.Fprintf(&b, "%s::cx_total::%d\n", p, h.Stats.CxTotal.Value())
			fmt.Fprintf(&b, "%s::rq_active::%d\n", p, h.Stats.RqActive.Value())
			fmt.Fprintf(&b, "%s::rq_error::%d\n", p, h.Stats.RqError.Value())
			fmt.Fprintf(&b, "%s::rq_success::%d\n", p, h.Stats.RqSuccess.Value())
			fmt.Fprintf(&b, "%s::rq_timeout::%d\n", p, h.Stats.RqTimeout.Value())
			fmt.Fprintf(&b, "%s::rq_total::%d\n", p, h.Stats.RqTotal.Value())
			fmt.Fprintf(&b, "%s::hostname::%s\n", p, h.Endpoint.Hostname)
			fmt.Fprintf(&b, "%s::health_flags::%s\n", p, healthFlags(h))
			fmt.Fprintf(&b, "%s::weight::%d\n", p, h.Endpoint.Weight)
			fmt.Fprintf(&b, "%s::region::%s\n", p, h.Locality.Region)
			fmt.Fprintf(&b, "%s::zone::%s\n", p, h.Locality.Zone)
			fmt.Fprintf(&b, "%s::sub_zone::%s\n", p, h.Locality.SubZone)
			fmt.Fprintf(&b, "%s::canary::false\n", p)
			fmt.Fprintf(&b, "%s::priority::%d\n", p, h.Endpoint.Priority)
			fmt.Fprintf(&b, "%s::success_rate::%s\n", p, rate(h.SuccessRate))
			fmt.Fprintf(&b, "%s::local_origin_success_rate::%s\n", p, rate(h.LocalSuccessRate))
		}
	}
	w.Write(b.Bytes())
}

// breakerNames are the resources that circuit breakers guard.
var breakerNames = []struct {
	resource upstream.Resource
	name     string
}{{upstream.Connections, "connections"}, {upstream.Pending, "pending_requests"}, {upstream.Requests, "requests"}, {upstream.Retries, "retries"}}

func rate(percent float64) string { return strconv.FormatFloat(percent, 'f', -1, 64) }

// healthFlags tells what speaks against a host, by Envoy's names.
func healthFlags(h upstream.HostInfo) string {
	var flags []string
	for _, f := range []struct {
		set  bool
		name string
	}{
		{h.FailedCheck, "/failed_active_hc"},
		{h.Ejected, "/failed_outlier_check"},
		{h.Endpoint.Health == model.Unhealthy, "/failed_eds_health"},
		{h.DegradedCheck, "/degraded_active_hc"},
		{h.Endpoint.Health == model.Degraded, "/degraded_eds_health"},
		{h.Leaving, "/pending_dynamic_removal"},
		{h.Waits, "/pending_active_hc"},
	} {
		if f.set {
			flags = append(flags, f.name)
		}
	}
	if flags == nil {
		return "healthy"
	}
	return strings.Join(flags, "")
}

func address(a model.Address) map[string]any {
	if a.Path != "" {
		return map[string]any{"pipe": map[string]any{"path": a.Path}}
	}
	return map[string]any{"socket_address": map[string]any{"address": a.Host, "port_value": a.Port}}
}

func clustersJSON(list []upstream.Info) []any {
	out := []any{}
	for _, c := range list {
		hosts := []any{}
		for _, h := range c.Hosts {
			eds := map[model.Health]string{model.Healthy: "HEALTHY", model.Degraded: "DEGRADED", model.Unhealthy: "UNHEALTHY"}[h.Endpoint.Health]
			health := map[string]any{"eds_health_status": eds}
			for name, set := range map[string]bool{
				"failed_outlier_check": h.Ejected, "failed_active_health_check": h.FailedCheck, "failed_active_degraded_check": h.DegradedCheck,
				"pending_dynamic_removal": h.Leaving, "pending_active_hc": h.Waits,
			} {
				if set {
					health[name] = true
				}
			}
			host := map[string]any{
				"address": address(h.Endpoint.Address), "hostname": h.Endpoint.Hostname, "health_status": health,
				"weight": h.Endpoint.Weight, "priority": h.Endpoint.Priority,
				"locality": map[string]string{"region": h.Locality.Region, "zone": h.Locality.Zone, "sub_zone": h.Locality.SubZone},
				"stats": []any{
					map[string]any{"name": "cx_connect_fail", "value": strconv.FormatUint(h.Stats.CxConnectFail.Value(), 10)},
					map[string]any{"name": "cx_total", "value": strconv.FormatUint(h.Stats.CxTotal.Value(), 10)},
					map[string]any{"name": "rq_error", "value": strconv.FormatUint(h.Stats.RqError.Value(), 10)},
					map[string]any{"name": "rq_success", "value": strconv.FormatUint(h.Stats.RqSuccess.Value(), 10)},
					map[string]any{"name": "rq_timeout", "value": strconv.FormatUint(h.Stats.RqTimeout.Value(), 10)},
					map[string]any{"name": "rq_total", "value": strconv.FormatUint(h.Stats.RqTotal.Value(), 10)},
					map[string]any{"name": "cx_active", "value": strconv.FormatInt(h.Stats.CxActive.Value(), 10), "type": "GAUGE"},
					map[string]any{"name": "rq_active", "value": strconv.FormatInt(h.Stats.RqActive.Value(), 10), "type": "GAUGE"},
				},
			}
			for name, r := range map[string]float64{"success_rate": h.SuccessRate, "local_origin_success_rate": h.LocalSuccessRate} {
				if r >= 0 {
					host[name] = map[string]float64{"value": r}
				}
			}
			hosts = append(hosts, host)
		}
		out = append(out, map[string]any{
			"name": c.Conf.Name, "observability_name": cmp.Or(c.Conf.AltStatName, c.Conf.Name), "added_via_api": !c.Static, "host_statuses": hosts,
			"circuit_breakers": map[string]any{"thresholds": breakersJSON(c, false)}, "sarn_breakers": breakersJSON(c, true),
		})
	}
	return out
}

// breakersJSON shows the limits of circuit breakers, or their states.
func breakersJSON(c upstream.Info, states bool) []any {
	var out []any
	for i, priority := range [...]string{"DEFAULT", "HIGH"} {
		one := map[string]any{"priority": priority}
		if !states {
			l := c.Breaker[i].Limits()
			one["max_connections"], one["max_pending_requests"], one["max_requests"], one["max_retries"] = l.MaxConnections, l.MaxPending, l.MaxRequests, l.MaxRetries
		} else {
			for _, r := range breakerNames {
				one[r.name] = map[string]any{"state": c.Breaker[i].State(r.resource).String(), "used": c.Breaker[i].Used(r.resource)}
			}
		}
		out = append(out, one)
	}
	return out
}

func (s *Server) listeners(w http.ResponseWriter, r *http.Request) {
	list := s.p.Listeners()
	if r.URL.Query().Get("format") == "json" {
		out := []any{}
		for _, l := range list {
			entry := map[string]any{"name": l.Model.Name, "local_address": address(l.Model.Address)}
			for _, a := range l.Addresses {
				if ap, err := netip.ParseAddrPort(a); err == nil { // the real port
					entry["local_address"] = address(model.Address{Host: ap.Addr().String(), Port: ap.Port()})
					break
				}
			}
			out = append(out, entry)
		}
		s.json(w, map[string]any{"listener_statuses": out})
		return
	}
	text(w)
	for _, l := range list {
		for _, a := range l.Addresses {
			fmt.Fprintf(w, "%s::%s\n", l.Model.Name, a)
		}
		if len(l.Addresses) == 0 {
			fmt.Fprintf(w, "%s::\n", l.Model.Name)
		}
	}
}

type cert struct {
	Path       string `json:"path"`
	Serial     string `json:"serial_number"`
	SANs       []san  `json:"subject_alt_names"`
	Days       string `json:"days_until_expiration"`
	ValidFrom  string `json:"valid_from"`
	Expiration string `json:"expiration_time"`
}

type san map[string]string

// newCert describes a certificate; it has no access to the key.
func newCert(c *x509.Certificate) cert {
	out := cert{Path: "<inline>", Serial: c.SerialNumber.Text(16), Days: strconv.Itoa(max(int(time.Until(c.NotAfter).Hours()/24), 0)),
		ValidFrom: c.NotBefore.UTC().Format(time.RFC3339), Expiration: c.NotAfter.UTC().Format(time.RFC3339), SANs: []san{}}
	if p, err := tlscontext.NewPeer(c); err == nil {
		for _, u := range p.URIs {
			out.SANs = append(out.SANs, san{"uri": u})
		}
		for _, d := range p.DNS {
			out.SANs = append(out.SANs, san{"dns": d})
		}
		for _, ip := range p.IPs {
			out.SANs = append(out.SANs, san{"ip_address": ip.String()})
		}
	}
	return out
}

func (s *Server) certs(w http.ResponseWriter, _ *http.Request) {
	type pair struct {
		CA    []cert `json:"ca_cert"`
		Chain []cert `json:"cert_chain"`
	}
	out := []pair{}
	seen := map[string]bool{}
	add := func(chain [][]byte, roots []*x509.Certificate) {
		key := string(bytes.Join(chain, nil))
		for _, r := range roots {
			key += string(r.Raw)
		}
		if seen[key] {
			return
		}
		seen[key] = true
		p := pair{CA: []cert{}, Chain: []cert{}}
		for _, der := range chain {
			if c, err := x509.ParseCertificate(der); err == nil {
				p.Chain = append(p.Chain, newCert(c))
			}
		}
		for _, r := range roots {
			p.CA = append(p.CA, newCert(r))
		}
		out = append(out, p)
	}
	for _, l := range s.p.Listeners() {
		for _, t := range l.TLS {
			for _, c := range t.Certificates() {
				add(c.Certificate, t.Roots())
			}
		}
	}
	for _, u := range s.p.Upstreams() {
		if u.TLS != nil {
			for _, c := range u.TLS.Certificates() {
				add(c.Certificate, u.TLS.Roots())
			}
		}
	}
	s.json(w, map[string]any{"certificates": out})
}

func (s *Server) initDump(w http.ResponseWriter, _ *http.Request) {
	listeners, clusters := s.p.Warming()
	s.json(w, map[string]any{"unready_targets_dumps": []any{
		map[string]any{"name": "listeners", "target_names": append([]string{}, listeners...)},
		map[string]any{"name": "clusters", "target_names": append([]string{}, clusters...)},
	}})
}

func (s *Server) memory(w http.ResponseWriter, _ *http.Request) {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	num := func(n uint64) string { return strconv.FormatUint(n, 10) }
	s.json(w, map[string]string{
		"allocated": num(m.HeapAlloc), "heap_size": num(m.HeapSys - m.HeapReleased), "pageheap_unmapped": num(m.HeapReleased),
		"pageheap_free": num(m.HeapIdle - m.HeapReleased), "total_thread_cache": num(m.StackInuse), "total_physical_bytes": num(m.Sys - m.HeapReleased),
	})
}

func (s *Server) runtime(w http.ResponseWriter, _ *http.Request) {
	s.json(w, map[string]any{"layers": []string{}, "entries": map[string]any{}})
}

func (s *Server) hotRestart(w http.ResponseWriter, _ *http.Request) {
	text(w)
	fmt.Fprint(w, "disabled")
}

func (s *Server) logging(w http.ResponseWriter, r *http.Request) {
	if v := r.URL.Query().Get("level"); v != "" {
		switch v {
		case "warning":
			v = "warn"
		case "critical":
			v = "error"
		}
		level := hclog.LevelFromString(v)
		if level == hclog.NoLevel {
			http.Error(w, "error: unknown logger level", http.StatusBadRequest)
			return
		}
		s.cfg.Logger.SetLevel(level)
	}
	text(w)
	fmt.Fprintf(w, "active loggers:\n  proxy: %v\n", s.cfg.Logger.GetLevel())
}

func (s *Server) failHealth(w http.ResponseWriter, _ *http.Request) {
	s.p.FailHealth(true)
	ok(w)
}

func (s *Server) passHealth(w http.ResponseWriter, _ *http.Request) {
	s.p.FailHealth(false)
	ok(w)
}

func (s *Server) drain(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	graceful, stay := v.Has("graceful"), v.Has("skip_exit")
	if stay && !graceful {
		http.Error(w, "skip_exit requires graceful", http.StatusBadRequest)
		return
	}
	s.p.DrainListeners(v.Has("inboundonly"), graceful, stay)
	ok(w)
}

func (s *Server) quit(w http.ResponseWriter, _ *http.Request) {
	ok(w)
	s.p.Quit()
}

func (s *Server) reset(w http.ResponseWriter, _ *http.Request) {
	s.p.Stats().Reset()
	ok(w)
}

func (s *Server) reopen(w http.ResponseWriter, _ *http.Request) {
	s.p.ReopenLogs()
	ok(w)
}

// SocketFolder makes the folder that an admin socket lies in, or checks that it
// is the user's own and closed to others.
func SocketFolder(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	if runtime.GOOS != "windows" && fi.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("folder %s is open to other users (mode %v), want 0700", path, fi.Mode().Perm())
	}
	return nil
}
