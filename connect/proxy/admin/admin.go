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
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
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
		fmt.Fprintf(&b, "%s::default_priority::max_connections::%d\n", n, c.Conf.Breakers[0].MaxConnections)
		fmt.Fprintf(&b, "%s::added_via_api::%v\n", n, !c.Static)
		for _, h := range c.Hosts {
			p := n + "::" + h.Endpoint.Address.String()
			fmt.Fprintf(&b, "%s::cx_active::%d\n", p, h.Stats.CxActive.Value())
			fmt.Fprintf(&b, "%s::cx_connect_fail::%d\n", p, h.Stats.CxConnectFail.Value())
			fmt.Fprintf(&b, "%s::cx_total::%d\n", p, h.Stats.CxTotal.Value())
			fmt.Fprintf(&b, "%s::hostname::%s\n", p, h.Endpoint.Hostname)
			fmt.Fprintf(&b, "%s::health_flags::%s\n", p, healthFlags(h))
			fmt.Fprintf(&b, "%s::weight::%d\n", p, h.Endpoint.Weight)
			fmt.Fprintf(&b, "%s::region::%s\n", p, h.Locality.Region)
			fmt.Fprintf(&b, "%s::zone::%s\n", p, h.Locality.Zone)
			fmt.Fprintf(&b, "%s::sub_zone::%s\n", p, h.Locality.SubZone)
			fmt.Fprintf(&b, "%s::canary::false\n", p)
			fmt.Fprintf(&b, "%s::priority::%d\n", p, h.Endpoint.Priority)
			fmt.Fprintf(&b, "%s::success_rate::-1\n", p)
			fmt.Fprintf(&b, "%s::local_origin_success_rate::-1\n", p)
		}
	}
	w.Write(b.Bytes())
}

func healthFlags(h upstream.HostInfo) string {
	var flags []string
	switch h.Endpoint.Health {
	case model.Unhealthy:
		flags = append(flags, "/failed_eds_health")
	case model.Degraded:
		flags = append(flags, "/degraded_eds_health")
	}
	if h.Ejected {
		flags = append(flags, "/failed_outlier_check")
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
			if h.Ejected {
				health["failed_outlier_check"] = true
			}
			hosts = append(hosts, map[string]any{
				"address": address(h.Endpoint.Address), "hostname": h.Endpoint.Hostname, "health_status": health,
				"weight": h.Endpoint.Weight, "priority": h.Endpoint.Priority,
				"locality": map[string]string{"region": h.Locality.Region, "zone": h.Locality.Zone, "sub_zone": h.Locality.SubZone},
				"stats": []any{
					map[string]any{"name": "cx_connect_fail", "value": strconv.FormatUint(h.Stats.CxConnectFail.Value(), 10)},
					map[string]any{"name": "cx_total", "value": strconv.FormatUint(h.Stats.CxTotal.Value(), 10)},
					map[string]any{"name": "cx_active", "value": strconv.FormatInt(h.Stats.CxActive.Value(), 10), "type": "GAUGE"},
				},
			})
		}
		out = append(out, map[string]any{
			"name": c.Conf.Name, "observability_name": cmp.Or(c.Conf.AltStatName, c.Conf.Name), "added_via_api": !c.Static, "host_statuses": hosts,
			"circuit_breakers": map[string]any{"thresholds": []any{map[string]any{"max_connections": c.Conf.Breakers[0].MaxConnections}}},
		})
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

func (s *Server) configDump(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	var name *regexp.Regexp
	if x := v.Get("name_regex"); x != "" {
		var err error
		if name, err = regexp.Compile(x); err != nil {
			http.Error(w, "Invalid regex: "+err.Error(), http.StatusBadRequest)
			return
		}
	}
	const admin = "type.googleapis.com/envoy.admin.v3."
	configs := []any{}
	add := func(typeURL, kind, static, dynamic, warming string, wrap func(proxy.Dumped, json.RawMessage) any) {
		lists := map[string][]any{}
		for _, d := range s.p.Resources(typeURL) {
			if name != nil && !name.MatchString(d.Name) {
				continue
			}
			j, err := decode.JSON(d.Any)
			if err != nil {
				j, _ = json.Marshal(map[string]string{"error": err.Error()})
			}
			key := dynamic
			switch {
			case d.Static:
				key = static
			case d.Warming && warming != "":
				key = warming
			}
			lists[key] = append(lists[key], wrap(d, j))
		}
		out := map[string]any{"@type": admin + kind}
		for k, l := range lists {
			out[k] = l
		}
		if mask := v.Get("resource"); mask != "" {
			if l := lists[mask]; l != nil {
				configs = append(configs, l...)
			}
			return
		}
		configs = append(configs, out)
	}
	entry := func(field string) func(proxy.Dumped, json.RawMessage) any {
		return func(d proxy.Dumped, j json.RawMessage) any {
			e := map[string]any{field: j, "last_updated": d.Updated.UTC().Format(time.RFC3339Nano)}
			if d.Version != "" {
				e["version_info"] = d.Version
			}
			if d.Failure != "" {
				e["error_state"] = map[string]string{"details": d.Failure}
			}
			return e
		}
	}
	add(decode.TypeCluster, "ClustersConfigDump", "static_clusters", "dynamic_active_clusters", "dynamic_warming_clusters", entry("cluster"))
	add(decode.TypeListener, "ListenersConfigDump", "static_listeners", "dynamic_listeners", "", func(d proxy.Dumped, j json.RawMessage) any {
		e := entry("listener")(d, j)
		if d.Static {
			return e
		}
		m := e.(map[string]any)
		state := "active_state"
		if d.Warming {
			state = "warming_state"
		}
		out := map[string]any{"name": d.Name}
		if x := m["error_state"]; x != nil {
			out["error_state"] = x
			delete(m, "error_state")
		}
		out[state] = m
		return out
	})
	add(decode.TypeSecret, "SecretsConfigDump", "static_secrets", "dynamic_active_secrets", "", func(d proxy.Dumped, j json.RawMessage) any {
		m := entry("secret")(d, j).(map[string]any)
		m["name"] = d.Name
		return m
	})
	if v.Has("include_eds") || v.Get("resource") == "dynamic_endpoint_configs" {
		add(decode.TypeEndpoints, "EndpointsConfigDump", "static_endpoint_configs", "dynamic_endpoint_configs", "", entry("endpoint_config"))
	}
	s.json(w, map[string]any{"configs": configs})
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

// reopen has nothing to do: logs are let go of after each batch of lines.
func (s *Server) reopen(w http.ResponseWriter, _ *http.Request) { ok(w) }

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
