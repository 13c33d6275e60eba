package hcm

import (
	"cmp"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Signals tell how requests of one source to one destination over one route fare, under requests.<source>.<destination>.<route>.
type Signals struct {
	Total   stats.Counter   `stat:"total"`
	Failed  stats.Counter   `stat:"failed"`     // no answer, or a status of 5xx, or a status of gRPC that blames the server
	Refused stats.Counter   `stat:"refused"`    // by the proxy itself, and not failed
	Latency stats.Histogram `stat:"latency_ms"` // until the end of the response
}

// maxSignals bounds how many combinations a manager tells apart; the rest is counted as from "other".
const maxSignals = 500

// signals finds the Signals of requests.
type signals struct {
	store *stats.Store
	known atomic.Pointer[map[signalKey]*Signals] // replaced as a whole

	mu     sync.Mutex
	scopes []*stats.Scope
}

type signalKey struct {
	source, destination string
	route               *model.Route
}

// of returns where the request counts.
func (s *signals) of(source, destination string, r *model.Route) *Signals {
	k := signalKey{source, destination, r}
	if g := (*s.known.Load())[k]; g != nil {
		return g
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	known := *s.known.Load()
	if len(known) >= maxSignals {
		k = signalKey{"other", "other", nil}
	}
	if g := known[k]; g != nil {
		return g
	}
	name := "none"
	if k.route != nil {
		name = cmp.Or(k.route.Name, "unnamed")
	}
	k.source, k.destination = strings.Clone(k.source), strings.Clone(k.destination)
	sc := s.store.Scope(stats.Text("requests"), stats.Label("source", k.source), stats.Label("destination", k.destination), stats.Label("route", name))
	s.scopes = append(s.scopes, sc)
	g := stats.Struct[Signals](sc)
	next := maps.Clone(known)
	next[k] = g
	s.known.Store(&next)
	return g
}

func newSignals(store *stats.Store) *signals {
	s := &signals{store: store}
	s.known.Store(&map[signalKey]*Signals{})
	return s
}

func (s *signals) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sc := range s.scopes {
		sc.Close()
	}
	s.scopes = nil
}

// source is how the client of a connection is counted: its service, or who it says it is. Who calls without a
// certificate is the service that the proxy stands beside, if the listener is for its calls.
func source(l *Link, node string) string {
	switch {
	case l.Info.Peer != nil:
		return service(l.Info.Peer.URIs)
	case l.Outbound && node != "":
		return node
	}
	return "unknown"
}

// service shortens the name of a service in a certificate.
func service(uris []string) string {
	if len(uris) == 0 {
		return "unknown"
	}
	if id, err := connect.ParseID(uris[0]); err == nil {
		return cmp.Or(id.Name(), id.Kind().String())
	}
	return uris[0]
}

// count counts a request that has ended.
func (e *exchange) count(d time.Duration) {
	x := &e.x
	destination := e.s.service
	if destination == "" {
		destination = cmp.Or(x.Match.Cluster, "none")
	}
	g := e.m.signals.of(e.s.source, destination, x.Match.Route)
	g.Total.Inc()
	status := e.http.Status
	switch {
	case status == 0 || status >= 500, e.grpc && grpcFailed(e):
		g.Failed.Inc()
	case !e.sent && (status >= 400 || e.http.Rule != ""):
		g.Refused.Inc()
	}
	g.Latency.Record(d)
}

// grpcFailed reports whether the status of gRPC blames the server.
func grpcFailed(e *exchange) bool {
	v := ""
	if t := e.http.ResponseTrailer; t != nil {
		v = t.Get("grpc-status")
	}
	switch cmp.Or(v, e.resp.Header.Get("grpc-status")) {
	case "2", "4", "12", "13", "14", "15":
		return true
	}
	return false
}
