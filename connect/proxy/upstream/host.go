package upstream

import (
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
)

// A Host is one place to connect to. It outlives changes of its cluster.
type Host struct {
	key      string
	owner    atomic.Pointer[Cluster]
	endpoint atomic.Pointer[model.Endpoint]
	sessions sessions
	Stats    HostStats

	ewma    ewma
	outlier outlier
	health  health

	// lastPick tells hosts of original destinations that nobody uses any more.
	lastPick atomic.Int64

	pool  atomic.Pointer[pool]
	mu    sync.Mutex
	gone  bool                  // from its cluster; guarded by mu
	conns map[net.Conn]struct{} // to close if the host fails its health checks; guarded by mu
}

// sessions are TLS sessions to resume.
type sessions = tlscontext.Sessions

type pool struct{ v any }

func newHost(c *Cluster, e *model.Endpoint) *Host {
	h := &Host{key: e.Address.String()}
	h.endpoint.Store(e)
	h.owner.Store(c)
	return h
}

// Cluster returns the version of its cluster that the host belongs to now.
func (h *Host) Cluster() *Cluster { return h.owner.Load() }

// Address returns where the host is.
func (h *Host) Address() model.Address { return h.endpoint.Load().Address }

// String returns the address as text. It allocates nothing.
func (h *Host) String() string { return h.key }

// Hostname returns the name that the configuration gives the host, if any.
func (h *Host) Hostname() string { return h.endpoint.Load().Hostname }

// Endpoint returns the configuration of the host.
func (h *Host) Endpoint() *model.Endpoint { return h.endpoint.Load() }

// Begin counts a request that is about to use a connection to the host.
func (h *Host) Begin() {
	h.Stats.RqTotal.Inc()
	h.Stats.RqActive.Inc()
	s := h.owner.Load().stats
	s.RqTotal.Inc()
	s.RqActive.Inc()
}

// End counts the end of a request, whatever it was.
func (h *Host) End() {
	h.Stats.RqActive.Dec()
	h.owner.Load().stats.RqActive.Dec()
}

// Pool returns what the caller keeps for the host, which is made if there is
// none. Make should take its settings from h.Cluster(): the pool is given up
// when those that concern connections change.
//
// A pool that is an io.Closer is closed when it is given up and when the host
// leaves its cluster. Requests may still come to a closed pool, for a moment
// after it was closed and from those that hold on to it: it serves them, but
// keeps no connection that is idle.
func (h *Host) Pool(make func() any) any {
	if p := h.pool.Load(); p != nil {
		return p.v
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.pool.Load(); p != nil {
		return p.v
	}
	p := &pool{make()}
	h.pool.Store(p)
	if h.gone {
		closePool(p)
	}
	return p.v
}

// dropPool gives the pool up. Requests on its connections finish.
func (h *Host) dropPool() {
	h.mu.Lock()
	p := h.pool.Swap(nil)
	h.mu.Unlock()
	closePool(p)
}

// leave is called when the host is no longer part of its cluster.
func (h *Host) leave() {
	h.mu.Lock()
	h.gone = true
	p := h.pool.Load()
	h.mu.Unlock()
	closePool(p)
}

func closePool(p *pool) {
	if p == nil {
		return
	}
	if c, ok := p.v.(io.Closer); ok {
		c.Close()
	}
}

// remember keeps a connection to close if the host fails its health checks.
func (h *Host) remember(c net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.conns == nil {
		h.conns = map[net.Conn]struct{}{}
	}
	h.conns[c] = struct{}{}
}

func (h *Host) forget(c net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.conns, c)
}

// disconnect closes the connections that are remembered.
func (h *Host) disconnect() {
	h.mu.Lock()
	conns := h.conns
	h.conns = nil
	h.mu.Unlock()
	for c := range conns {
		c.Close()
	}
}
