// Package listener accepts connections, finds out who is calling, decides
// whether they may, and carries them to the clusters of package upstream.
//
// A listener changes in place: the socket stays, new connections see the new
// filter chains, and open ones are asked again whether the new policy admits
// them. Certificates and trust change without any of that.
package listener

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/hcm"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/quota"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

// Config tunes a Manager. A zero field takes its default.
type Config struct {
	// Listen opens the socket of a listener at one of its addresses; default
	// Listen of this package.
	Listen func(ctx context.Context, l *model.Listener, a model.Address) (net.Listener, error)
	// OriginalDst tells where a redirected connection was going; default asks
	// the operating system.
	OriginalDst func(net.Conn) (netip.AddrPort, bool)
	Upstreams   *upstream.Manager   // required
	HTTP        *hcm.Factory        // required if a chain speaks HTTP
	Secrets     *tlscontext.Secrets // default none
	Stats       *stats.Store        // default a store of its own
	Logs        *accesslog.Sinks    // default discards
	Logger      hclog.Logger        // default discards
	Rand        func() uint64       // default math/rand/v2
	// Failing reports whether the proxy fails health checks, so that clients should go elsewhere; default never.
	Failing func() bool

	// DrainTime is how long a connection may stay whose filter chain was
	// removed or changed; default 10 minutes.
	DrainTime time.Duration
	// MaxConnections bounds the connections of all listeners together; 0 does not.
	MaxConnections int64
	// Share bounds them by what other proxies of the process leave; nil does not.
	Share *quota.Share
}

// A Manager holds the listeners of a proxy.
type Manager struct {
	cfg       Config
	stats     *managerStats
	inspector *tlsInspectorStats
	nextID    atomic.Uint64
	open      atomic.Int64 // connections of all listeners
	departing atomic.Bool
	empty     chan struct{} // holds a token if the last connection ended while departing

	// dials ends when the manager stops for good.
	dials context.Context
	abort context.CancelFunc

	mu        sync.Mutex
	stopping  bool // no new sockets, nothing accepted
	listeners map[string]*listener
	sockets   map[model.Address]*socket
	leaving   map[*listener]bool // removed, with connections left
	running   sync.WaitGroup     // accepting goroutines and connections
}

// A listener is one listener with its connections.
type listener struct {
	m         *Manager
	name      string
	scope     *stats.Scope
	stats     *listenerStats
	conf      atomic.Pointer[config]
	addresses []model.Address // guarded by Manager.mu
	removed   atomic.Bool
	departing atomic.Bool // clients are told to use other connections

	mu    sync.Mutex
	conns map[*conn]struct{}
}

// config is a version of a listener's configuration.
type config struct {
	model  *model.Listener
	chains []*chain
	match  *matcher
	logs   []*accesslog.Log
}

// A socket accepts for whichever listener owns its address.
type socket struct {
	ln    net.Listener
	owner atomic.Pointer[listener]
}

// NewManager returns a manager without listeners.
func NewManager(cfg Config) *Manager {
	if cfg.Listen == nil {
		cfg.Listen = Listen
	}
	if cfg.OriginalDst == nil {
		cfg.OriginalDst = originalDst
	}
	if cfg.Secrets == nil {
		cfg.Secrets = tlscontext.NewSecrets()
	}
	if cfg.Stats == nil {
		cfg.Stats = stats.NewStore(nil)
	}
	if cfg.Logs == nil {
		cfg.Logs = accesslog.NewSinks(nil, nil, nil)
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Uint64
	}
	if cfg.Failing == nil {
		cfg.Failing = func() bool { return false }
	}
	if cfg.DrainTime <= 0 {
		cfg.DrainTime = 10 * time.Minute
	}
	m := &Manager{
		cfg:       cfg,
		stats:     stats.Struct[managerStats](cfg.Stats.Scope(stats.Text("listener_manager"))),
		inspector: stats.Struct[tlsInspectorStats](cfg.Stats.Scope(stats.Text("tls_inspector"))),
		empty:     make(chan struct{}, 1),
		listeners: map[string]*listener{},
		sockets:   map[model.Address]*socket{},
		leaving:   map[*listener]bool{},
	}
	m.dials, m.abort = context.WithCancel(context.Background())
	return m
}

// ErrStopping reports a listener that came while the proxy shuts down.
var ErrStopping = errors.New("the proxy is shutting down")

// Set adds a listener and starts accepting, or changes the one of that name in
// place. Replaced names listeners that are about to be removed: their sockets
// are taken over if the new listener has the same address. If it fails nothing
// has changed. After StopAccepting only listeners that are there are changed,
// for the connections that they have.
func (m *Manager) Set(conf *model.Listener, replaced ...string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.listeners[conf.Name]
	if m.stopping && old == nil {
		return ErrStopping
	}
	l := old
	if l == nil {
		l = &listener{m: m, name: conf.Name, conns: map[*conn]struct{}{}}
	}
	next, err := m.compileListener(conf, l.conf.Load())
	if err != nil {
		m.stats.CreateFailure.Inc()
		return err
	}
	var wanted []model.Address
	if conf.BindToPort && !m.stopping {
		wanted = append([]model.Address{conf.Address}, conf.Additional...)
	}
	opened, err := m.openSockets(l, conf, wanted, replaced)
	if err != nil {
		next.close()
		m.stats.CreateFailure.Inc()
		return err
	}
	if old == nil {
		l.departing.Store(m.departing.Load())
		addr := strings.ReplaceAll(conf.Address.String(), ":", "_")
		if conf.StatPrefix != "" {
			addr = conf.StatPrefix
		}
		l.scope = m.cfg.Stats.Scope(stats.Text("listener"), stats.Label("envoy_listener_address", addr))
		l.stats = stats.Struct[listenerStats](l.scope)
		m.listeners[conf.Name] = l
		m.stats.Added.Inc()
	} else {
		m.stats.Modified.Inc()
		m.stats.InPlaceUpdated.Inc()
	}
	m.stats.CreateSuccess.Inc()
	for _, ch := range next.chains {
		ch.inForce()
	}
	before := l.conf.Swap(next)
	for _, s := range opened {
		s.socket.owner.Store(l) // before anybody is accepted
		if !s.started {
			m.running.Go(func() { m.accept(s.socket) })
		}
	}
	for _, a := range l.addresses {
		if !slices.Contains(wanted, a) {
			m.closeSocket(a, l)
		}
	}
	l.addresses = wanted
	m.stats.Active.Set(int64(len(m.listeners)))
	if before != nil {
		before.close()
		for _, c := range l.list() {
			c.changed(next)
		}
	}
	return nil
}

type openedSocket struct {
	*socket
	started bool // accepts already
}

// openSockets returns the sockets for the addresses, opening those that nobody
// has. The caller holds m.mu.
func (m *Manager) openSockets(l *listener, conf *model.Listener, wanted []model.Address, replaced []string) ([]openedSocket, error) {
	var out []openedSocket
	fail := func(err error) ([]openedSocket, error) {
		for _, s := range out {
			if !s.started {
				s.ln.Close()
			}
		}
		return nil, err
	}
	for _, a := range wanted {
		if s := m.sockets[a]; s != nil {
			owner := s.owner.Load()
			if owner != l && !slices.Contains(replaced, owner.name) {
				return fail(fmt.Errorf("address %s is in use by listener %q", a, owner.name))
			}
			out = append(out, openedSocket{s, true})
			continue
		}
		ln, err := m.cfg.Listen(m.dials, conf, a)
		if err != nil {
			return fail(fmt.Errorf("listen on %s: %w", a, err))
		}
		out = append(out, openedSocket{&socket{ln: ln}, false})
	}
	for i, a := range wanted {
		m.sockets[a] = out[i].socket
	}
	return out, nil
}

func (m *Manager) compileListener(conf *model.Listener, old *config) (*config, error) {
	next := &config{model: conf}
	before := func(i int, c *model.FilterChain) *chain {
		if old == nil {
			return nil
		}
		// Chains keep their place unless some came or went.
		for _, o := range old.chains {
			if c.Name != "" && o.model.Name == c.Name {
				return o
			}
		}
		if i < len(old.chains) && len(old.chains) == len(conf.AllChains()) {
			return old.chains[i]
		}
		return nil
	}
	for i, c := range conf.AllChains() {
		ch, err := m.compile(c, before(i, c))
		if err != nil {
			next.close()
			return nil, fmt.Errorf("filter chain %d %q: %w", i, c.Name, err)
		}
		next.chains = append(next.chains, ch)
	}
	n := len(conf.Chains)
	var def *chain
	if conf.Default != nil {
		def = next.chains[n]
	}
	next.match = newMatcher(next.chains[:n], def)
	var err error
	if next.logs, err = m.logs(conf.AccessLogs); err != nil {
		next.close()
		return nil, err
	}
	return next, nil
}

func (c *config) close() {
	for _, ch := range c.chains {
		ch.close()
	}
}

// closeSocket closes the socket unless another listener took it over. The
// caller holds m.mu.
func (m *Manager) closeSocket(a model.Address, l *listener) {
	if s := m.sockets[a]; s != nil && s.owner.Load() == l {
		delete(m.sockets, a)
		s.ln.Close()
	}
}

// Remove closes the listener. Its connections may stay for the drain time.
func (m *Manager) Remove(name string) {
	m.mu.Lock()
	l := m.listeners[name]
	if l == nil {
		m.mu.Unlock()
		return
	}
	delete(m.listeners, name)
	l.removed.Store(true)
	for _, a := range l.addresses {
		m.closeSocket(a, l)
	}
	m.stats.Removed.Inc()
	m.stats.Active.Set(int64(len(m.listeners)))
	l.mu.Lock()
	if len(l.conns) > 0 {
		m.leaving[l] = true
	}
	l.mu.Unlock()
	m.stats.Draining.Set(int64(len(m.leaving)))
	l.scope.Close()
	l.conf.Load().close()
	m.mu.Unlock()
	for _, c := range l.list() {
		c.drain(m.cfg.DrainTime, "listener_removed")
	}
}

// Has reports whether a listener with the name accepts.
func (m *Manager) Has(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.listeners[name] != nil
}

// Connections returns how many connections are open.
func (m *Manager) Connections() int64 { return m.open.Load() }

// StopAccepting closes the sockets of listeners, only those for inbound traffic
// if asked. Connections stay. After a call for all listeners no new ones are taken.
func (m *Manager) StopAccepting(inboundOnly bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !inboundOnly {
		m.stopping = true
	}
	for _, l := range m.listeners {
		if inboundOnly && l.conf.Load().model.Direction != model.Inbound {
			continue
		}
		for _, a := range l.addresses {
			m.closeSocket(a, l)
			m.stats.Stopped.Inc()
		}
		l.addresses = nil
	}
}

// Depart lets clients know that they should use other connections, as far as
// their protocols have a way: HTTP says so with the next response. Connections
// that come later are told, too. It concerns only listeners for inbound traffic
// if asked.
func (m *Manager) Depart(inboundOnly bool) {
	m.mu.Lock()
	if !inboundOnly {
		m.departing.Store(true)
	}
	var conns []*conn
	for _, l := range m.listeners {
		if inboundOnly && l.conf.Load().model.Direction != model.Inbound {
			continue
		}
		l.departing.Store(true)
		conns = append(conns, l.list()...)
	}
	m.mu.Unlock()
	for _, c := range conns {
		c.depart()
	}
}

// Wait returns when there is no connection left after Depart, or ctx ends.
func (m *Manager) Wait(ctx context.Context) {
	for m.open.Load() > 0 {
		select {
		case <-ctx.Done():
			return
		case <-m.empty:
		}
	}
}

// Sockets returns the listening sockets by the addresses that the configuration
// has for them. They stay the manager's.
func (m *Manager) Sockets() map[string]net.Listener {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[string]net.Listener, len(m.sockets))
	for a, s := range m.sockets {
		out[a.String()] = s.ln
	}
	return out
}

// Shutdown stops accepting, waits until every connection has ended or ctx does,
// and then ends those that are left.
func (m *Manager) Shutdown(ctx context.Context) {
	m.StopAccepting(false)
	done := make(chan struct{})
	go func() {
		m.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		m.mu.Lock()
		all := make([]*listener, 0, len(m.listeners)+len(m.leaving))
		for _, l := range m.listeners {
			all = append(all, l)
		}
		for l := range m.leaving {
			all = append(all, l)
		}
		m.mu.Unlock()
		m.abort()
		for _, l := range all {
			for _, c := range l.list() {
				c.stop("proxy_shutdown")
			}
		}
		<-done
	}
	m.abort()
}

// accept takes connections from a socket until it is closed.
func (m *Manager) accept(s *socket) {
	m.stats.WorkersStarted.Set(1)
	wait := time.Duration(0)
	for {
		c, err := s.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || m.closedSocket(s) {
				return
			}
			// Out of file descriptors, most likely: those who end give some back.
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			m.cfg.Logger.Warn("connection not accepted", "address", s.ln.Addr(), "error", err, "wait", wait)
			time.Sleep(wait)
			continue
		}
		wait = 0
		s.owner.Load().take(c)
	}
}

func (m *Manager) closedSocket(s *socket) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, x := range m.sockets {
		if x == s {
			return false
		}
	}
	return true
}

// take starts to serve a connection, unless there are too many.
func (l *listener) take(raw net.Conn) {
	m := l.m
	l.stats.CxTotal.Inc()
	if n := m.open.Add(1); m.cfg.MaxConnections > 0 && n > m.cfg.MaxConnections || !m.cfg.Share.Take(1) {
		m.open.Add(-1)
		l.stats.GlobalOverflow.Inc()
		raw.Close()
		return
	}
	l.stats.CxActive.Inc()
	c := &conn{
		l: l, raw: raw, start: time.Now(), gone: make(chan struct{}),
		remote: text(raw.RemoteAddr()), local: text(raw.LocalAddr()),
	}
	c.facts.local, c.facts.remote = addrPort(raw.LocalAddr()), addrPort(raw.RemoteAddr())
	c.facts.direct = c.facts.remote
	c.entry.ConnectionID = m.nextID.Add(1)
	l.mu.Lock()
	l.conns[c] = struct{}{}
	l.mu.Unlock()
	if l.removed.Load() { // accepted while the socket was being closed
		c.drain(m.cfg.DrainTime, "listener_removed")
	}
	m.running.Go(func() {
		c.serve()
		if m.open.Add(-1) == 0 && m.departing.Load() {
			select {
			case m.empty <- struct{}{}:
			default:
			}
		}
		m.cfg.Share.Give(1)
		l.mu.Lock()
		delete(l.conns, c)
		last := len(l.conns) == 0
		l.mu.Unlock()
		if last {
			m.mu.Lock()
			if m.leaving[l] {
				delete(m.leaving, l)
				m.stats.Draining.Set(int64(len(m.leaving)))
			}
			m.mu.Unlock()
		}
	})
}

func (l *listener) list() []*conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		out = append(out, c)
	}
	return out
}

// Info is the state of a listener, for showing.
type Info struct {
	Model       *model.Listener
	Addresses   []string // where it really listens
	Connections int
	TLS         []*tlscontext.Server
}

// Listeners returns the state of all listeners, sorted by name.
func (m *Manager) Listeners() []Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Info
	for _, l := range m.listeners {
		conf := l.conf.Load()
		i := Info{Model: conf.model}
		for _, a := range l.addresses {
			if s := m.sockets[a]; s != nil {
				i.Addresses = append(i.Addresses, s.ln.Addr().String())
			}
		}
		for _, c := range conf.chains {
			if c.tls != nil {
				i.TLS = append(i.TLS, c.tls)
			}
		}
		l.mu.Lock()
		i.Connections = len(l.conns)
		l.mu.Unlock()
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b Info) int { return cmp.Compare(a.Model.Name, b.Model.Name) })
	return out
}
