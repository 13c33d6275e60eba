package admin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/node"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// NodeID is the name under which the admin server of a node answers.
const NodeID = "sarn-node-proxy"

// nodePages answers for all proxies of a process. What is said of one of them is below /proxies/ID/.
type nodePages struct {
	n       *node.Node
	version string
	quit    func()
	cfg     Config

	mu      sync.Mutex
	servers map[string]*Server // of members, made when they are asked for
}

// NewNode returns a server for the proxies of n. Quit is called by those who want all of them to end.
func NewNode(n *node.Node, version string, quit func(), cfg Config) *Server {
	s := newServer(cfg)
	p := &nodePages{n: n, version: version, quit: quit, cfg: cfg, servers: map[string]*Server{}}
	s.routes = map[string]route{
		"/":                      {"this page", false, s.index},
		"/help":                  {"print out list of admin commands", false, s.help},
		"/proxies":               {"print the proxies; /proxies/ID/… is the admin server of each", false, p.list(s)},
		"/ready":                 {"return 200 if every proxy is LIVE, otherwise return 503", false, p.ready},
		"/server_info":           {"print server version/status information", false, p.info(s)},
		"/stats":                 {"print stats of all proxies", false, p.stats},
		"/stats/prometheus":      {"print stats of all proxies in prometheus format", false, p.prometheus},
		"/memory":                {"print current allocation/heap usage", false, s.memory},
		"/logging":               {"query/change logging levels", true, s.logging},
		"/quitquitquit":          {"exit the server", true, func(w http.ResponseWriter, _ *http.Request) { ok(w); p.quit() }},
		"/debug/pprof/":          {"profiles", false, pprof.Index},
		"/debug/pprof/profile":   {"CPU profile", false, pprof.Profile},
		"/debug/pprof/trace":     {"execution trace", false, pprof.Trace},
		"/debug/pprof/symbol":    {"program counters to names", false, pprof.Symbol},
		"/debug/pprof/heap":      {"heap profile", false, pprof.Handler("heap").ServeHTTP},
		"/debug/pprof/allocs":    {"allocation profile", false, pprof.Handler("allocs").ServeHTTP},
		"/debug/pprof/goroutine": {"goroutines", false, pprof.Handler("goroutine").ServeHTTP},
	}
	s.below = p.below
	return s
}

// below answers for a member.
func (p *nodePages) below(w http.ResponseWriter, r *http.Request) bool {
	rest, ok := strings.CutPrefix(r.URL.Path, "/proxies/")
	if !ok {
		return false
	}
	// An ID may have slashes in it, so the longest that there is counts.
	for at := len(rest); at > 0; at = strings.LastIndexByte(rest[:at], '/') {
		member := p.n.Get(rest[:at])
		if member == nil {
			continue
		}
		if at == len(rest) {
			rest += "/"
		}
		q := r.Clone(r.Context())
		q.URL.Path = rest[at:]
		p.server(rest[:at], member).ServeHTTP(w, q)
		return true
	}
	http.Error(w, "no such proxy", http.StatusNotFound)
	return true
}

func (p *nodePages) server(id string, member *proxy.Proxy) *Server {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.servers[id]; s != nil && s.p == member {
		return s
	}
	for id := range p.servers { // forget those that are gone
		if p.n.Get(id) == nil {
			delete(p.servers, id)
		}
	}
	s := New(member, Config{Logger: p.cfg.Logger, Options: p.cfg.Options})
	p.servers[id] = s
	return s
}

// A memberState is what /proxies tells of a proxy.
type memberState struct {
	ID                 string `json:"id"`
	State              string `json:"state"`
	Listeners          int    `json:"listeners"`
	Clusters           int    `json:"clusters"`
	Connections        int64  `json:"connections"`
	ConnectionsRefused int64  `json:"connections_refused"`
	Memory             int64  `json:"memory"`
	MemoryRefused      int64  `json:"memory_refused"`
	Failure            string `json:"failure,omitempty"`
}

func (p *nodePages) list(s *Server) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		list := []memberState{}
		for _, i := range p.n.Members() {
			m := memberState{
				ID: i.ID, State: "INITIALIZING", Connections: i.Connections, ConnectionsRefused: i.ConnectionsRefused,
				Memory: i.Memory, MemoryRefused: i.MemoryRefused, Failure: i.Failure,
			}
			if i.Proxy != nil {
				m.State, m.Listeners, m.Clusters = i.Proxy.State(), len(i.Proxy.Listeners()), len(i.Proxy.Upstreams())
			}
			list = append(list, m)
		}
		s.json(w, map[string]any{"proxies": list, "leaving": p.n.Leaving()})
	}
}

func (p *nodePages) state() string {
	if p.n.Ready() {
		return "LIVE"
	}
	return "INITIALIZING"
}

func (p *nodePages) ready(w http.ResponseWriter, _ *http.Request) {
	text(w)
	state := p.state()
	if state != "LIVE" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintln(w, state)
}

func (p *nodePages) info(s *Server) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		up := time.Since(p.n.Started()).Truncate(time.Second).String()
		s.json(w, map[string]any{
			"version": p.version, "state": p.state(), "uptime_current_epoch": up, "uptime_all_epochs": up,
			"hot_restart_version": "disabled", "command_line_options": s.cfg.Options,
			"node": map[string]any{"id": NodeID, "cluster": NodeID},
		})
	}
}

// samples returns the metrics of all members, with the label "proxy".
func (p *nodePages) samples(q stats.Query) []stats.Sample {
	var all []stats.Sample
	for _, i := range p.n.Members() {
		if i.Proxy == nil {
			continue
		}
		for _, s := range i.Proxy.Stats().Samples(q) {
			all = append(all, s.With("proxy", i.ID))
		}
	}
	return all
}

func (p *nodePages) stats(w http.ResponseWriter, r *http.Request) {
	serveStats(w, r, func(q *statsQuery, b *bytes.Buffer) error {
		switch q.format {
		case "prometheus":
			return stats.WritePrometheus(b, p.samples(q.Query), q.detail)
		case "json":
			list := map[string]any{}
			for _, i := range p.n.Members() {
				if i.Proxy != nil {
					list[i.ID] = stats.JSON(i.Proxy.Stats().Samples(q.Query), q.detail)
				}
			}
			return json.NewEncoder(b).Encode(map[string]any{"proxies": list})
		}
		for _, i := range p.n.Members() {
			if i.Proxy == nil {
				continue
			}
			fmt.Fprintf(b, "# proxy %s\n", strconv.Quote(i.ID))
			if err := stats.WriteText(b, i.Proxy.Stats().Samples(q.Query), q.detail); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *nodePages) prometheus(w http.ResponseWriter, r *http.Request) { p.stats(w, asPrometheus(r)) }
