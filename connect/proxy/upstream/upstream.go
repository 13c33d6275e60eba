// Package upstream connects to the hosts of clusters: it knows who they are,
// chooses one, proves the proxy's identity to it and checks who it is, and
// keeps away from those that fail.
package upstream

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
)

// Config tunes a Manager. A zero field takes its default.
type Config struct {
	// Dial connects to a host; default net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Resolve looks a host name up; default the system's resolver.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	Secrets *tlscontext.Secrets // default none
	Stats   *stats.Store        // default a store of its own
	Logger  hclog.Logger        // default discards
	Rand    func() uint64       // default math/rand/v2
	// Warm is called whenever a cluster becomes ready for use, without locks
	// held. It must not block.
	Warm func(name string)
}

// A Manager holds the clusters of a proxy.
type Manager struct {
	cfg    Config
	scope  *stats.Scope
	stats  *managerStats
	active sync.Map      // name to *Cluster
	gen    atomic.Uint64 // grows whenever it changes who may be chosen

	mu          sync.Mutex // taken before those of clusters; see unlock
	later       []func()   // to do once mu is free
	warming     map[string]*Cluster
	assignments map[string]*model.LoadAssignment // by the name that clusters ask for
	asking      map[string]map[string]bool       // by that name, the names of the clusters that do

	run struct {
		mu      sync.Mutex              // taken last
		waiting []func(context.Context) // for Run to begin
		ctx     context.Context         // of Run; nil before it and after
		done    bool
		sync.WaitGroup
	}
}

// NewManager returns a manager without clusters.
func NewManager(cfg Config) *Manager {
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{}).DialContext
	}
	if cfg.Resolve == nil {
		cfg.Resolve = func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		}
	}
	if cfg.Secrets == nil {
		cfg.Secrets = tlscontext.NewSecrets()
	}
	if cfg.Stats == nil {
		cfg.Stats = stats.NewStore(nil)
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Uint64
	}
	if cfg.Warm == nil {
		cfg.Warm = func(string) {}
	}
	m := &Manager{cfg: cfg, warming: map[string]*Cluster{}, assignments: map[string]*model.LoadAssignment{}, asking: map[string]map[string]bool{}}
	m.scope = cfg.Stats.Scope(stats.Text("cluster_manager"))
	m.stats = stats.Struct[managerStats](m.scope)
	return m
}

// Get returns the cluster in use under the name, or nil if there is none.
func (m *Manager) Get(name string) *Cluster {
	if c, ok := m.active.Load(name); ok {
		return c.(*Cluster)
	}
	return nil
}

// Warming reports whether a cluster with the name waits for its hosts and none
// is in use.
func (m *Manager) Warming(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.warming[name] != nil && m.Get(name) == nil
}

// unlock frees m.mu and does what had to wait for that.
func (m *Manager) unlock() {
	later := m.later
	m.later = nil
	m.mu.Unlock()
	for _, f := range later {
		f()
	}
}

// Run looks names up and checks the health of hosts until ctx ends.
func (m *Manager) Run(ctx context.Context) error {
	m.run.mu.Lock()
	m.run.ctx = ctx
	for _, f := range m.run.waiting {
		m.run.Go(func() { f(ctx) })
	}
	m.run.waiting = nil
	m.run.mu.Unlock()
	<-ctx.Done()
	m.run.mu.Lock()
	m.run.ctx, m.run.done = nil, true
	m.run.mu.Unlock()
	m.mu.Lock()
	for _, c := range m.warming {
		c.close()
	}
	m.mu.Unlock()
	m.active.Range(func(_, c any) bool { c.(*Cluster).close(); return true })
	m.run.Wait()
	return nil
}

// Set adds a cluster, or replaces one once the new version knows its hosts.
// Static says that it comes from the bootstrap.
func (m *Manager) Set(conf *model.Cluster, static bool) {
	if warmed := m.set(conf, static); warmed {
		m.cfg.Warm(conf.Name)
	}
}

func (m *Manager) set(conf *model.Cluster, static bool) (warmed bool) {
	m.mu.Lock()
	defer m.unlock()
	old := m.Get(conf.Name)
	if w := m.warming[conf.Name]; w != nil {
		if reflect.DeepEqual(w.conf, conf) {
			return false // keeps warming
		}
		w.close()
		delete(m.warming, conf.Name)
		m.leaves(w.conf)
	} else if old != nil && reflect.DeepEqual(old.conf, conf) {
		return false
	}
	statName := conf.Name
	if conf.AltStatName != "" {
		statName = conf.AltStatName
	}
	c := &Cluster{m: m, conf: conf, static: static, shared: new(shared)}
	c.scope = m.cfg.Stats.Scope(stats.Text("cluster"), stats.Label("envoy_cluster_name", statName))
	c.stats = stats.Struct[Stats](c.scope)
	c.hosts.Store(&hostSet{})
	if old != nil {
		c.shared = old.shared
		m.stats.Modified.Inc()
	} else {
		m.stats.Added.Inc()
	}
	var clients []*tlscontext.Client
	if old != nil {
		clients = append(old.tlsMatches[:len(old.tlsMatches):len(old.tlsMatches)], old.tls)
	}
	c.tls = m.client(conf.TLS, clients)
	for _, t := range conf.TLSMatches {
		c.tlsMatches = append(c.tlsMatches, m.client(t.TLS, clients))
	}
	m.warming[conf.Name] = c
	m.asks(conf)
	switch conf.Type {
	case model.Static:
		return m.adopt(c, conf.Endpoints)
	case model.EDS:
		if la := m.assignments[conf.EDSName]; la != nil {
			// What is known of the hosts stays true while the cluster changes.
			return m.adopt(c, la)
		}
		if conf.FetchTimeout > 0 {
			c.fetch = time.AfterFunc(conf.FetchTimeout, func() {
				m.cfg.Logger.Warn("no endpoints arrived in time, using the cluster without", "cluster", conf.Name, "waited", conf.FetchTimeout)
				m.ready(c)
			})
		}
	case model.StrictDNS, model.LogicalDNS:
		m.spawn(func(ctx context.Context) { m.lookupLoop(ctx, c) })
	default:
		return m.promote(c)
	}
	m.count()
	return false
}

// client returns a TLS client, one of those that there are if it has the same
// context, with its sessions.
func (m *Manager) client(conf *model.UpstreamTLS, known []*tlscontext.Client) *tlscontext.Client {
	if conf == nil {
		return nil
	}
	for _, k := range known {
		if k != nil && reflect.DeepEqual(k.Model(), conf) {
			return k
		}
	}
	return tlscontext.NewClient(conf, m.cfg.Secrets)
}

// adopt gives a version of a cluster hosts, known ones if there are, and puts it
// into use unless they must be checked first. The caller holds m.mu.
func (m *Manager) adopt(c *Cluster, la *model.LoadAssignment) (promoted bool) {
	known := c.hosts.Load().hosts
	if old := m.Get(c.conf.Name); old != nil && old != c {
		// Both versions share the hosts until the new one replaces the old;
		// those that are no longer leave then.
		known = append(known[:len(known):len(known)], old.hosts.Load().hosts...)
	}
	c.mu.Lock()
	c.merge(known, la)
	waits := c.unchecked()
	c.mu.Unlock()
	return !waits && m.promote(c)
}

// promote puts a version into use. The caller holds m.mu.
func (m *Manager) promote(c *Cluster) bool {
	if m.warming[c.conf.Name] != c {
		return false
	}
	delete(m.warming, c.conf.Name)
	if c.fetch != nil {
		c.fetch.Stop()
	}
	c.breakers.configure(c.conf, c.stats, c.scope)
	old := m.Get(c.conf.Name)
	m.active.Store(c.conf.Name, c)
	m.gen.Add(1)
	if old != nil {
		old.close()
		m.leaves(old.conf)
	}
	m.later = append(m.later, c.takeOver(old))
	m.count()
	return true
}

// count updates the gauges. The caller holds m.mu.
func (m *Manager) count() {
	n := 0
	m.active.Range(func(_, _ any) bool { n++; return true })
	m.stats.Active.Set(int64(n))
	m.stats.Warming.Set(int64(len(m.warming)))
}

// ready puts a version into use that has warmed up by itself.
func (m *Manager) ready(c *Cluster) {
	m.mu.Lock()
	ok := m.promote(c)
	m.unlock()
	if ok {
		m.cfg.Warm(c.conf.Name)
	}
}

// Remove drops a cluster. Its connections stay until they end.
func (m *Manager) Remove(name string) {
	m.mu.Lock()
	defer m.unlock()
	if w := m.warming[name]; w != nil {
		w.close()
		delete(m.warming, name)
		m.leaves(w.conf)
	}
	if c := m.Get(name); c != nil {
		m.active.Delete(name)
		m.leaves(c.conf)
		m.gen.Add(1)
		m.later = append(m.later, c.remove)
		m.stats.Removed.Inc()
	}
	m.count()
}

// SetEndpoints gives the clusters that ask for an assignment by its name their hosts.
func (m *Manager) SetEndpoints(la *model.LoadAssignment) {
	var warmed []string
	m.mu.Lock()
	m.assignments[la.Cluster] = la
	for name := range m.asking[la.Cluster] {
		if c := m.Get(name); c != nil && c.asksFor(la.Cluster) {
			m.later = append(m.later, c.setAssignment(la))
		}
		if c := m.warming[name]; c != nil && c.asksFor(la.Cluster) && m.adopt(c, la) {
			warmed = append(warmed, name)
		}
	}
	m.unlock()
	for _, name := range warmed {
		m.cfg.Warm(name)
	}
}

// asksFor reports whether the cluster asks for the assignment of a name.
func (c *Cluster) asksFor(assignment string) bool {
	return c.conf.Type == model.EDS && c.conf.EDSName == assignment
}

// asks notes that a version of a cluster asks for its assignment. The caller holds m.mu.
func (m *Manager) asks(conf *model.Cluster) {
	if conf.Type != model.EDS {
		return
	}
	names := m.asking[conf.EDSName]
	if names == nil {
		names = map[string]bool{}
		m.asking[conf.EDSName] = names
	}
	names[conf.Name] = true
}

// leaves undoes asks for a version that is no longer there, unless another version of the cluster asks for the same. The
// caller holds m.mu.
func (m *Manager) leaves(conf *model.Cluster) {
	if conf.Type != model.EDS {
		return
	}
	for _, c := range []*Cluster{m.Get(conf.Name), m.warming[conf.Name]} {
		if c != nil && c.asksFor(conf.EDSName) {
			return
		}
	}
	delete(m.asking[conf.EDSName], conf.Name)
	if len(m.asking[conf.EDSName]) == 0 {
		delete(m.asking, conf.EDSName)
	}
}

// ForgetEndpoints drops assignments that no cluster asks for any more.
func (m *Manager) ForgetEndpoints(keep func(name string) bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.assignments {
		if !keep(name) {
			delete(m.assignments, name)
		}
	}
}

// spawn runs f while Run runs.
func (m *Manager) spawn(f func(context.Context)) {
	m.run.mu.Lock()
	defer m.run.mu.Unlock()
	switch ctx := m.run.ctx; {
	case m.run.done:
	case ctx == nil:
		m.run.waiting = append(m.run.waiting, f)
	default:
		m.run.Go(func() { f(ctx) })
	}
}

// lookupTimeout bounds one lookup.
const lookupTimeout = 5 * time.Second

// lookupLoop keeps the hosts of a DNS cluster those that its names stand for.
// A lookup that fails keeps the hosts of the last one that did not.
func (m *Manager) lookupLoop(ctx context.Context, c *Cluster) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.stop = cancel
	c.mu.Unlock()
	known := make([][]netip.Addr, len(c.conf.Endpoints.Endpoints))
	for first := true; ; first = false {
		changed := first
		for i, e := range c.conf.Endpoints.Endpoints {
			if e.Address.Path != "" || e.Address.IP().IsValid() {
				continue
			}
			c.stats.UpdateAttempt.Inc()
			lctx, done := context.WithTimeout(ctx, lookupTimeout)
			addrs, err := m.cfg.Resolve(lctx, e.Address.Host)
			done()
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				c.stats.UpdateFailure.Inc()
				m.cfg.Logger.Warn("host name not resolved, keeping what is known", "cluster", c.conf.Name, "name", e.Address.Host, "error", err)
				continue
			}
			c.stats.UpdateSuccess.Inc()
			if len(addrs) == 0 {
				c.stats.UpdateEmpty.Inc()
			}
			addrs = family(addrs, c.conf.DNS.Family)
			if c.conf.Type == model.LogicalDNS && c.conf.DNS.Family != model.FamilyAll && len(addrs) > 1 {
				addrs = addrs[:1]
			}
			if !slices.Equal(addrs, known[i]) {
				known[i], changed = addrs, true
			}
		}
		if changed {
			la := *c.conf.Endpoints
			la.Endpoints = nil
			for i, e := range c.conf.Endpoints.Endpoints {
				if e.Address.Path != "" || e.Address.IP().IsValid() {
					la.Endpoints = append(la.Endpoints, e)
					continue
				}
				if c.conf.Type == model.LogicalDNS && len(known[i]) > 0 {
					// One host, whichever of its addresses answers.
					x := e
					x.Hostname = cmp.Or(e.Hostname, e.Address.Host)
					for n, a := range alternate(known[i]) {
						if at := (model.Address{Host: a.String(), Port: e.Address.Port}); n == 0 {
							x.Address = at
						} else {
							x.Additional = append(x.Additional, at)
						}
					}
					la.Endpoints = append(la.Endpoints, x)
					continue
				}
				for _, a := range known[i] {
					x := e
					x.Hostname = cmp.Or(e.Hostname, e.Address.Host)
					x.Address = model.Address{Host: a.String(), Port: e.Address.Port}
					la.Endpoints = append(la.Endpoints, x)
				}
			}
			if first {
				m.mu.Lock()
				warm := m.adopt(c, &la)
				m.unlock()
				if warm {
					m.cfg.Warm(c.conf.Name)
				}
			} else {
				c.setAssignment(&la)()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(c.conf.DNS.Refresh):
		}
	}
}

// family returns the addresses that count, sorted so that order in answers
// does not matter for equality.
func family(addrs []netip.Addr, f model.LookupFamily) []netip.Addr {
	var v4, v6 []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	slices.SortFunc(v4, netip.Addr.Compare)
	slices.SortFunc(v6, netip.Addr.Compare)
	switch f {
	case model.FamilyV4:
		return v4
	case model.FamilyV6:
		return v6
	case model.FamilyPreferV4:
		if len(v4) > 0 {
			return v4
		}
		return v6
	case model.FamilyAll:
		return slices.Concat(v6, v4)
	}
	if len(v6) > 0 {
		return v6
	}
	return v4
}

// alternate returns addresses, those of IPv6 first, so that families take turns.
func alternate(addrs []netip.Addr) []netip.Addr {
	split := slices.IndexFunc(addrs, netip.Addr.Is4)
	if split <= 0 {
		return addrs
	}
	v6, v4 := addrs[:split], addrs[split:]
	var out []netip.Addr
	for i := range max(len(v6), len(v4)) {
		if i < len(v6) {
			out = append(out, v6[i])
		}
		if i < len(v4) {
			out = append(out, v4[i])
		}
	}
	return out
}

// Info is the state of a cluster, for showing.
type Info struct {
	Conf    *model.Cluster
	Static  bool
	Warming bool
	Hosts   []HostInfo
	TLS     *tlscontext.Client // nil in plaintext
	Breaker [2]*Breaker        // by priority
}

// HostInfo is the state of a host, for showing.
type HostInfo struct {
	Endpoint model.Endpoint
	Locality model.Locality
	Ejected  bool
	// FailedCheck and DegradedCheck are what active health checks say; Waits that they said nothing yet.
	FailedCheck, DegradedCheck, Waits bool
	Leaving                           bool    // kept though no longer configured
	SuccessRate                       float64 // percent in the last interval of outlier detection, -1 if that is not known
	LocalSuccessRate                  float64 // of connecting
	Stats                             *HostStats
}

// Clusters returns the state of all clusters, sorted by name.
func (m *Manager) Clusters() []Info {
	var list []*Cluster
	warming := map[*Cluster]bool{}
	m.active.Range(func(_, c any) bool { list = append(list, c.(*Cluster)); return true })
	m.mu.Lock()
	for _, c := range m.warming {
		list = append(list, c)
		warming[c] = true
	}
	m.mu.Unlock()
	slices.SortFunc(list, func(a, b *Cluster) int { return cmp.Compare(a.conf.Name, b.conf.Name) })
	var out []Info
	for _, c := range list {
		i := Info{Conf: c.conf, Static: c.static, Warming: warming[c], TLS: c.tls, Breaker: [2]*Breaker{&c.breakers[0], &c.breakers[1]}}
		c.mu.Lock()
		for _, h := range c.hosts.Load().hosts {
			bits := h.health.load()
			hi := HostInfo{
				Endpoint: *h.endpoint.Load(), Ejected: h.outlier.ejected, Stats: &h.Stats,
				FailedCheck: bits&checkFailed != 0, DegradedCheck: bits&checkDegraded != 0, Waits: bits&checkWaits != 0, Leaving: bits&leaving != 0,
				SuccessRate: -1, LocalSuccessRate: -1,
			}
			if h.outlier.rated {
				hi.SuccessRate = h.outlier.rate
			}
			if h.outlier.localRated {
				hi.LocalSuccessRate = h.outlier.localRate
			}
			if la := c.assignment; la != nil && hi.Endpoint.Locality < len(la.Localities) {
				hi.Locality = la.Localities[hi.Endpoint.Locality]
			}
			i.Hosts = append(i.Hosts, hi)
		}
		c.mu.Unlock()
		out = append(out, i)
	}
	return out
}
