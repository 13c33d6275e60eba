package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/adsclient"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/listener"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
)

// Update puts resources into force. It is called by the ADS client.
func (p *Proxy) Update(typeURL string, upserts []adsclient.Resource, removed []string, first bool) map[string]error {
	p.mu.Lock()
	defer p.mu.Unlock()
	refused := map[string]error{}
	if p.store[typeURL] == nil {
		p.store[typeURL] = map[string]*resource{}
	}
	for _, r := range upserts {
		err := p.apply(typeURL, r)
		if err == nil {
			p.store[typeURL][r.Name] = &resource{Resource: r, updated: time.Now()}
			continue
		}
		refused[r.Name] = err
		if old := p.store[typeURL][r.Name]; old != nil {
			old.failure = err.Error()
		}
	}
	for _, name := range removed {
		p.drop(typeURL, name)
	}
	if typeURL == decode.TypeListener {
		p.answered = true
	}
	p.settle(refused)
	p.subscribe()
	poke(p.save)
	return refused
}

// apply decodes a resource and hands it to whom it concerns.
func (p *Proxy) apply(typeURL string, r adsclient.Resource) error {
	if p.static[typeURL][r.Name] {
		return errors.New("a static resource has that name")
	}
	named := func(name string) error {
		if name != r.Name {
			return fmt.Errorf("resource is named %q inside", name)
		}
		return nil
	}
	d := p.cfg.Decoder
	switch typeURL {
	case decode.TypeSecret:
		s, err := d.Secret(r.Any)
		if err != nil {
			return err
		}
		if err := named(s.Name); err != nil {
			return err
		}
		p.secrets.Set(s)
	case decode.TypeCluster:
		c, err := d.Cluster(r.Any)
		if err != nil {
			return err
		}
		if err := named(c.Name); err != nil {
			return err
		}
		p.clusters[c.Name] = c
		p.upstreams.Set(c, false)
	case decode.TypeEndpoints:
		la, err := d.LoadAssignment(r.Any)
		if err != nil {
			return err
		}
		if err := named(la.Cluster); err != nil {
			return err
		}
		p.upstreams.SetEndpoints(la)
	case decode.TypeListener:
		l, err := d.Listener(r.Any)
		if err != nil {
			return err
		}
		if err := named(l.Name); err != nil {
			return err
		}
		delete(p.doomed, l.Name)
		p.pending[l.Name] = &waiting{conf: l}
	case decode.TypeRoute:
		c, err := d.RouteConfig(r.Any)
		if err != nil {
			return err
		}
		if err := named(c.Name); err != nil {
			return err
		}
		if err := p.http.SetRoutes(c); err != nil {
			return err
		}
		p.routeClusters[c.Name] = clustersOf(c)
	default:
		return fmt.Errorf("type %q is not supported", typeURL)
	}
	return nil
}

// drop takes a resource out of force. Secrets and endpoints stay until nobody
// refers to them: old ones are better than none.
func (p *Proxy) drop(typeURL, name string) {
	if p.static[typeURL][name] {
		return
	}
	delete(p.store[typeURL], name)
	switch typeURL {
	case decode.TypeCluster:
		delete(p.clusters, name)
		p.upstreams.Remove(name)
	case decode.TypeListener:
		delete(p.pending, name)
		if p.active[name] != nil {
			p.doomed[name] = true
		}
	}
}

// settle puts listeners into force that have all they need, and removes those
// that are to go. Listeners that can't be opened are added to refused, unless
// it is nil, and tried again later. The caller holds p.mu.
func (p *Proxy) settle(refused map[string]error) {
	now := time.Now()
	waitsForMore := false
	for _, name := range slices.Sorted(maps.Keys(p.pending)) {
		w := p.pending[name]
		if !p.warm(w.conf) {
			waitsForMore = true
			continue
		}
		if w.err != nil && now.Before(w.retry) {
			continue
		}
		err := p.listeners.Set(w.conf, slices.Collect(maps.Keys(p.doomed))...)
		if errors.Is(err, listener.ErrStopping) {
			delete(p.pending, name) // it came too late, which is nobody's fault
			continue
		}
		if err != nil {
			if w.err == nil || w.err.Error() != err.Error() {
				p.log.Error("listener not opened, will retry", "listener", name, "error", err)
			}
			w.err = err
			w.wait = min(max(2*w.wait, time.Second), 30*time.Second)
			w.retry = now.Add(w.wait)
			time.AfterFunc(w.wait, func() { poke(p.wake) })
			if refused != nil {
				refused[name] = err
			}
			continue
		}
		if p.active[name] == nil {
			p.log.Info("listening", "listener", name, "address", w.conf.Address, "direction", w.conf.Direction)
		} else {
			p.log.Debug("listener changed in place", "listener", name)
		}
		p.active[name] = w.conf
		delete(p.pending, name)
	}
	for _, name := range slices.Sorted(maps.Keys(p.doomed)) {
		if p.wanted(p.active[name]) {
			continue // until the one that takes its address over is ready
		}
		delete(p.doomed, name)
		delete(p.active, name)
		p.listeners.Remove(name)
		p.log.Info("listener removed", "listener", name)
	}
	if p.answered && !waitsForMore && p.state.CompareAndSwap(StateInitializing, StateLive) {
		close(p.live)
		p.log.Info("ready", "listeners", len(p.active), "clusters", len(p.clusters), "after", time.Since(p.start).Round(time.Millisecond))
	}
}

// wanted reports whether a listener that is to go has an address that a pending
// one will take over.
func (p *Proxy) wanted(l *model.Listener) bool {
	if l == nil {
		return false
	}
	for _, w := range p.pending {
		if w.err == nil && w.conf.Address == l.Address {
			return true
		}
	}
	return false
}

// warm reports whether all is there that a listener needs to serve its first
// connection.
func (p *Proxy) warm(l *model.Listener) bool {
	if !p.secrets.Has(l.Secrets()) {
		return false
	}
	for _, name := range l.RouteNames() {
		if !p.http.HasRoutes(name) {
			return false
		}
	}
	clusters := l.Clusters()
	if p.active[l.Name] == nil {
		// A request is not worth less than a connection, but a listener that serves already goes on.
		for _, c := range l.AllChains() {
			switch h, _ := c.Terminal.(*model.HTTPManager); {
			case h == nil:
			case h.Routes != nil:
				clusters = append(clusters, clustersOf(h.Routes)...)
			default:
				clusters = append(clusters, p.routeClusters[h.RouteName]...)
			}
		}
	}
	for _, name := range clusters {
		if p.upstreams.Warming(name) {
			return false
		}
		if c := p.clusters[name]; c != nil {
			if c.Type == model.Aggregate && !p.anyMemberReady(c) {
				return false
			}
			if !p.secrets.Has(c.Secrets()) {
				return false
			}
		}
	}
	return true
}

// clustersOf returns the names of the clusters that routes lead to.
func clustersOf(c *model.RouteConfig) []string {
	names := map[string]bool{}
	for i := range c.VirtualHosts {
		for _, r := range c.VirtualHosts[i].Routes {
			if r.Forward == nil {
				continue
			}
			names[r.Forward.Cluster] = true
			for _, w := range r.Forward.Weighted {
				names[w.Cluster] = true
			}
		}
	}
	delete(names, "") // a header has the name
	return slices.Collect(maps.Keys(names))
}

func (p *Proxy) anyMemberReady(c *model.Cluster) bool {
	for _, name := range c.Members {
		if !p.upstreams.Warming(name) {
			return true
		}
	}
	return len(c.Members) == 0
}

// subscribe asks for the endpoints and secrets that what is in force, or waits
// to be, refers to. The caller holds p.mu.
func (p *Proxy) subscribe() {
	endpoints, secrets, routes := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, c := range p.clusters {
		if c.Type == model.EDS {
			endpoints[c.EDSName] = true
		}
		for _, s := range c.Secrets() {
			secrets[s] = true
		}
	}
	listeners := func(l *model.Listener) {
		for _, s := range l.Secrets() {
			secrets[s] = true
		}
		for _, r := range l.RouteNames() {
			routes[r] = true
		}
	}
	for _, l := range p.active {
		listeners(l)
	}
	for _, w := range p.pending {
		listeners(w.conf)
	}
	for name := range p.static[decode.TypeSecret] {
		delete(secrets, name)
	}
	if p.client != nil {
		p.client.Want(decode.TypeEndpoints, slices.Collect(maps.Keys(endpoints)))
		p.client.Want(decode.TypeSecret, slices.Collect(maps.Keys(secrets)))
		p.client.Want(decode.TypeRoute, slices.Collect(maps.Keys(routes)))
	}
	p.http.ForgetRoutes(func(name string) bool { return routes[name] })
	maps.DeleteFunc(p.routeClusters, func(name string, _ []string) bool { return !routes[name] })
	maps.DeleteFunc(p.store[decode.TypeRoute], func(name string, _ *resource) bool { return !routes[name] })
	p.upstreams.ForgetEndpoints(func(name string) bool { return endpoints[name] })
	maps.DeleteFunc(p.store[decode.TypeEndpoints], func(name string, _ *resource) bool { return !endpoints[name] })
	maps.DeleteFunc(p.store[decode.TypeSecret], func(name string, _ *resource) bool { return !secrets[name] })
}

// settleLoop puts listeners into force when what they wait for happens outside
// of an update.
func (p *Proxy) settleLoop(ctx context.Context) error {
	remind := time.NewTicker(15 * time.Second)
	defer remind.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-remind.C:
			if p.state.Load() == StateInitializing {
				listeners, clusters := p.Warming()
				p.log.Warn("not ready yet", "listeners answered", p.hasListeners(), "waiting listeners", listeners, "waiting clusters", clusters)
			}
		case <-p.wake:
			p.mu.Lock()
			p.settle(nil)
			p.mu.Unlock()
		}
	}
}

func (p *Proxy) hasListeners() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answered
}

// restore puts into force what the state file has.
func (p *Proxy) restore() {
	if p.cfg.StateFile == "" || p.client == nil {
		return
	}
	b, err := os.ReadFile(p.cfg.StateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var saved map[string][]adsclient.Resource
	if err == nil {
		saved, err = adsclient.Decode(b, p.cfg.Bootstrap.Node.ID)
	}
	if err != nil {
		p.log.Warn("saved configuration not used", "file", p.cfg.StateFile, "error", err)
		return
	}
	// Nothing is forgotten again if what refers to a thing comes before it.
	for _, t := range []string{decode.TypeCluster, decode.TypeEndpoints, decode.TypeListener, decode.TypeRoute, decode.TypeSecret} {
		if t == decode.TypeListener && len(saved[t]) == 0 {
			break // not worth being ready for
		}
		refused := p.Update(t, saved[t], nil, false)
		for _, r := range saved[t] {
			if err := refused[r.Name]; err != nil {
				p.log.Warn("saved resource not used", "name", r.Name, "error", err)
				continue
			}
			p.client.Known(t, r.Name, r.Version)
		}
	}
	p.log.Info("using the configuration of the last run until the control plane answers", "listeners", len(saved[decode.TypeListener]), "clusters", len(saved[decode.TypeCluster]))
}

// saveDelay gathers changes that come together into one write.
const saveDelay = time.Second

// saveLoop writes the state file after changes.
func (p *Proxy) saveLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.save:
		}
		select {
		case <-ctx.Done():
		case <-time.After(saveDelay):
		}
		if err := p.writeState(); err != nil {
			p.log.Warn("configuration not saved", "file", p.cfg.StateFile, "error", err)
		}
	}
}

func (p *Proxy) writeState() error {
	p.mu.Lock()
	all := map[string][]adsclient.Resource{}
	for t, m := range p.store {
		for _, name := range slices.Sorted(maps.Keys(m)) {
			all[t] = append(all[t], m[name].Resource)
		}
	}
	p.mu.Unlock()
	b, err := adsclient.Encode(p.cfg.Bootstrap.Node.ID, all)
	if err != nil {
		return err
	}
	return replaceFile(p.cfg.StateFile, b)
}

// replaceFile writes a file that only its owner may read, so that readers see
// either the old content or the new.
func replaceFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // of mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(b); err != nil {
		f.Close()
		return err
	}
	if err = f.Sync(); err != nil {
		f.Close()
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Resources returns the raw resources in force of one type, sorted by name, with
// static ones first.
func (p *Proxy) Resources(typeURL string) []Dumped {
	var out []Dumped
	for _, a := range p.cfg.Bootstrap.Raw {
		if a.GetTypeUrl() == typeURL {
			name, _ := decode.NameOf(a)
			out = append(out, Dumped{Resource: adsclient.Resource{Name: name, Any: a}, Static: true, Updated: p.start})
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.store[typeURL]
	for _, name := range slices.Sorted(maps.Keys(m)) {
		r := m[name]
		d := Dumped{Resource: r.Resource, Updated: r.updated, Failure: r.failure}
		switch typeURL {
		case decode.TypeListener:
			d.Warming = p.pending[name] != nil
		case decode.TypeCluster:
			d.Warming = p.upstreams.Warming(name)
		}
		out = append(out, d)
	}
	return out
}

// A Dumped is a resource with what became of it.
type Dumped struct {
	adsclient.Resource
	Static  bool
	Warming bool
	Updated time.Time
	Failure string // why a newer version was refused; empty if none was
}

// Warming returns the names of listeners and clusters that wait for something.
func (p *Proxy) Warming() (listeners, clusters []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	listeners = slices.Sorted(maps.Keys(p.pending))
	for _, name := range slices.Sorted(maps.Keys(p.clusters)) {
		if p.upstreams.Warming(name) {
			clusters = append(clusters, name)
		}
	}
	return listeners, clusters
}

// serverStats adds the gauges under server.
func (p *Proxy) serverStats() {
	sc := p.stats.Scope(stats.Text("server"))
	sc.GaugeFunc("uptime", func() float64 { return time.Since(p.start).Truncate(time.Second).Seconds() })
	sc.GaugeFunc("live", func() float64 {
		if p.state.Load() == StateLive {
			return 1
		}
		return 0
	})
	sc.GaugeFunc("state", func() float64 {
		return map[int32]float64{StateLive: 0, StateDraining: 1, StateInitializing: 3}[p.state.Load()]
	})
	sc.GaugeFunc("concurrency", func() float64 { return float64(runtime.GOMAXPROCS(0)) })
	sc.GaugeFunc("total_connections", func() float64 { return float64(p.listeners.Connections()) })
	memory := func(f func(*runtime.MemStats) uint64) func() float64 {
		return func() float64 {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return float64(f(&m))
		}
	}
	sc.GaugeFunc("memory_allocated", memory(func(m *runtime.MemStats) uint64 { return m.HeapAlloc }))
	sc.GaugeFunc("memory_heap_size", memory(func(m *runtime.MemStats) uint64 { return m.HeapSys - m.HeapReleased }))
	sc.GaugeFunc("memory_physical_size", memory(func(m *runtime.MemStats) uint64 { return m.Sys - m.HeapReleased }))
	sc.GaugeFunc("days_until_first_cert_expiring", func() float64 {
		first := time.Time{}
		for _, c := range p.certificates() {
			if first.IsZero() || c.Before(first) {
				first = c
			}
		}
		if first.IsZero() {
			return 0
		}
		return float64(int(time.Until(first).Hours() / 24))
	})
	p.stats.Scope(stats.Text("access_log")).GaugeFunc("lines_dropped", func() float64 { return float64(p.sinks.Dropped()) })
}

// certificates returns when the proxy's own certificates end.
func (p *Proxy) certificates() []time.Time {
	var out []time.Time
	add := func(s *tlscontext.Server) {
		for _, c := range s.Certificates() {
			if c.Leaf != nil {
				out = append(out, c.Leaf.NotAfter)
			}
		}
	}
	for _, l := range p.listeners.Listeners() {
		for _, s := range l.TLS {
			add(s)
		}
	}
	for _, u := range p.upstreams.Clusters() {
		if u.TLS == nil {
			continue
		}
		for _, c := range u.TLS.Certificates() {
			if c.Leaf != nil {
				out = append(out, c.Leaf.NotAfter)
			}
		}
	}
	return out
}
