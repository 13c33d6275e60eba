// Package hcm is the HTTP connection manager: it takes requests off a connection, brings them into one form, finds
// their route, runs the filters, sends them to a host, and carries the response back.
//
// One goroutine carries an exchange from its first byte to its last. A body that comes piece by piece gets a second
// one, so that a host can answer before the request has ended.
package hcm

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/http2"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/pool"
	"github.com/sarnmesh/sarn/connect/proxy/quota"
	"github.com/sarnmesh/sarn/connect/proxy/route"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/trace"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

// Config is what all managers of a proxy share. All is required unless it says otherwise.
type Config struct {
	Upstreams *upstream.Manager
	Pool      *pool.Pool
	Stats     *stats.Store
	Sinks     *accesslog.Sinks
	Filters   map[string]filter.Type // by name
	Rand      func() uint64
	Logger    hclog.Logger
	Failing   func() bool // the proxy fails health checks, or drains

	NodeID, NodeCluster string // may be empty

	Memory *quota.Share // for bodies that are kept; nil does not limit
}

// A Factory makes managers and keeps the route tables that come by name.
type Factory struct {
	cfg    Config
	client *client
	http1  *http1Stats
	http2  *http2.Counters

	mu     sync.Mutex
	tables map[string]*table
	work   sync.WaitGroup
	ctx    context.Context
	stop   context.CancelFunc
}

// A table is the route configuration of a name, with those who use it.
type table struct {
	conf     *model.RouteConfig // nil: not known yet
	managers map[*Manager]bool
}

// New returns a factory. Close ends what its filters do by themselves.
func New(cfg Config) *Factory {
	f := &Factory{cfg: cfg, tables: map[string]*table{}}
	f.ctx, f.stop = context.WithCancel(context.Background())
	root := cfg.Stats.Scope()
	f.http1, f.http2 = stats.Struct[http1Stats](root), stats.Struct[http2.Counters](root)
	f.client = &client{cfg.Upstreams, cfg.Pool}
	return f
}

// Close ends what filters do by themselves and waits for it.
func (f *Factory) Close() {
	f.stop()
	f.work.Wait()
}

// A Manager serves the connections of one filter chain. It is one version of its configuration.
type Manager struct {
	f     *Factory
	conf  *model.HTTPManager
	env   *filter.Env
	scope *stats.Scope
	stats *Stats
	logs  []*accesslog.Log

	filters  []entry // without the router
	router   *model.Router
	upgrades map[string]*upgrade
	reply    *replyMapper
	tracer   *trace.Tracer // nil traces nothing
	signals  *signals

	routes atomic.Pointer[route.Table] // nil: not known yet
	rds    *rdsStats                   // nil: the routes don't come by name

	mu     sync.Mutex
	closed bool
	scopes []*stats.Scope // of filters
	stop   context.CancelFunc
}

// An entry is a filter in its place.
type entry struct {
	name     string
	disabled bool
	f        filter.Filter
	respond  filter.Responder // nil if it does not
	finish   filter.Finisher
}

type upgrade struct {
	enabled bool
	filters []entry // nil takes those of the manager
}

// Manager makes a manager. Close it when it is no longer used.
func (f *Factory) Manager(conf *model.HTTPManager) (*Manager, error) {
	ctx, stop := context.WithCancel(f.ctx)
	m := &Manager{f: f, conf: conf, stop: stop, upgrades: map[string]*upgrade{}, signals: newSignals(f.cfg.Stats)}
	m.scope = f.cfg.Stats.Scope(stats.Text("http"), stats.Label("envoy_http_conn_manager_prefix", conf.StatPrefix))
	m.stats = stats.Struct[Stats](m.scope)
	m.env = &filter.Env{
		StatPrefix: conf.StatPrefix, Stats: m.scope, Scope: m.openScope, Client: f.client, Clusters: clusters{f.cfg.Upstreams},
		Logger: f.cfg.Logger, Rand: f.cfg.Rand, NodeID: f.cfg.NodeID, NodeCluster: f.cfg.NodeCluster, Failing: f.cfg.Failing,
		Go: func(work func(context.Context)) { f.work.Go(func() { work(ctx) }) },
	}
	if err := m.build(); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// openScope opens the prefix of a filter.
func (m *Manager) openScope(parts ...stats.Part) *stats.Scope {
	sc := m.f.cfg.Stats.Scope(parts...)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		sc.Close() // an exchange that outlives the manager
	} else {
		m.scopes = append(m.scopes, sc)
	}
	return sc
}

func (m *Manager) build() error {
	conf := m.conf
	var err error
	if m.filters, err = m.chain(conf.Filters); err != nil {
		return err
	}
	for _, u := range conf.Upgrades {
		up := &upgrade{enabled: u.Enabled}
		if u.Filters != nil {
			if up.filters, err = m.chain(u.Filters); err != nil {
				return fmt.Errorf("upgrade %q: %w", u.Name, err)
			}
		}
		m.upgrades[u.Name] = up
	}
	for i := range conf.AccessLogs {
		l, err := accesslog.Compile(&conf.AccessLogs[i], m.f.cfg.Sinks.Writer(&conf.AccessLogs[i]))
		if err != nil {
			return err
		}
		m.logs = append(m.logs, l)
	}
	if m.tracer, err = trace.New(conf.Tracing, m.env); err != nil {
		return err
	}
	if conf.LocalReply != nil {
		if m.reply, err = newReplyMapper(conf.LocalReply); err != nil {
			return err
		}
	}
	if conf.Routes != nil {
		t, err := m.compileRoutes(conf.Routes)
		if err != nil {
			return err
		}
		m.routes.Store(t)
		return nil
	}
	return m.f.subscribe(m)
}

// chain makes the filters, without the router.
func (m *Manager) chain(list []model.HTTPFilter) ([]entry, error) {
	var out []entry
	for _, c := range list {
		if r, ok := c.Config.(*model.Router); ok {
			m.router = r
			continue
		}
		t, ok := m.f.cfg.Filters[c.Config.FilterType()]
		if !ok {
			return nil, fmt.Errorf("filter %q: type %s is not supported", c.Name, c.Config.FilterType())
		}
		f, err := t.New(c.Name, c.Config, m.env)
		if err != nil {
			return nil, fmt.Errorf("filter %q: %w", c.Name, err)
		}
		e := entry{name: c.Name, disabled: c.Disabled, f: f}
		e.respond, _ = f.(filter.Responder)
		e.finish, _ = f.(filter.Finisher)
		out = append(out, e)
	}
	return out, nil
}

func (m *Manager) compileRoutes(conf *model.RouteConfig) (*route.Table, error) {
	return route.Compile(conf, func(name string, c model.FilterConfig) (any, error) {
		t, ok := m.f.cfg.Filters[c.FilterType()]
		if !ok || t.Route == nil {
			return nil, fmt.Errorf("filter %q: type %s has no configuration for routes", name, c.FilterType())
		}
		return t.Route(c, m.env)
	})
}

// Close ends what the filters do by themselves. Exchanges that have begun go on.
func (m *Manager) Close() {
	m.f.mu.Lock()
	if t := m.f.tables[m.conf.RouteName]; t != nil {
		delete(t.managers, m)
	}
	m.f.mu.Unlock()
	m.stop()
	m.scope.Close()
	m.signals.close()
	m.mu.Lock()
	m.closed = true
	for _, sc := range m.scopes {
		sc.Close()
	}
	m.scopes = nil
	m.mu.Unlock()
}

// Model returns the configuration.
func (m *Manager) Model() *model.HTTPManager { return m.conf }

// subscribe gives a manager the routes of its name, now and whenever they change.
func (f *Factory) subscribe(m *Manager) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.tables[m.conf.RouteName]
	if t == nil {
		t = &table{managers: map[*Manager]bool{}}
		f.tables[m.conf.RouteName] = t
	}
	if t.conf != nil {
		compiled, err := m.compileRoutes(t.conf)
		if err != nil {
			return fmt.Errorf("route configuration %q: %w", m.conf.RouteName, err)
		}
		m.routes.Store(compiled)
	}
	t.managers[m] = true
	m.rds = stats.Struct[rdsStats](m.openScope(stats.Text("http"), stats.Label("envoy_http_conn_manager_prefix", m.conf.StatPrefix),
		stats.Text("rds"), stats.Label("envoy_rds_route_config", m.conf.RouteName)))
	if t.conf != nil {
		m.rds.Reload.Inc()
	}
	return nil
}

// SetRoutes puts a route configuration into force under its name. Requests that have begun keep the old one. If it
// does not fit one of its managers nothing has changed.
func (f *Factory) SetRoutes(conf *model.RouteConfig) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.tables[conf.Name]
	if t == nil {
		t = &table{managers: map[*Manager]bool{}}
		f.tables[conf.Name] = t
	}
	compiled := map[*Manager]*route.Table{}
	for m := range t.managers {
		m.rds.Attempt.Inc()
		c, err := m.compileRoutes(conf)
		if err != nil {
			m.rds.Rejected.Inc()
			return err
		}
		compiled[m] = c
	}
	if len(compiled) == 0 {
		// Nobody uses it; what concerns no filter is checked all the same.
		if _, err := route.Compile(conf, func(string, model.FilterConfig) (any, error) { return nil, nil }); err != nil {
			return err
		}
	}
	t.conf = conf
	for m, c := range compiled {
		m.routes.Store(c)
		m.rds.Success.Inc()
		m.rds.Reload.Inc()
	}
	return nil
}

// HasRoutes reports whether a route configuration of the name is known.
func (f *Factory) HasRoutes(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.tables[name] != nil && f.tables[name].conf != nil
}

// ForgetRoutes forgets the configurations of names that keep does not want.
func (f *Factory) ForgetRoutes(keep func(name string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, t := range f.tables {
		if len(t.managers) == 0 && !keep(name) {
			delete(f.tables, name)
		}
	}
}

// clusters tells filters about clusters.
type clusters struct{ m *upstream.Manager }

func (c clusters) Health(name string) (healthy, total int, ok bool) {
	cl := c.m.Get(name)
	if cl == nil {
		return 0, 0, false
	}
	s := cl.Stats()
	return int(s.MembershipHealthy.Value()), int(s.MembershipTotal.Value()), true
}

// client makes requests of the proxy's own.
type client struct {
	upstreams *upstream.Manager
	pool      *pool.Pool
}

// Do implements filter.Client.
func (c *client) Do(ctx context.Context, name string, r *message.Request, body []byte, limit int) (*filter.Answer, error) {
	a, again, err := c.do(ctx, name, r, body, nil, limit)
	if again {
		// The host had closed a connection that was kept for it, which shows when it is used.
		a, _, err = c.do(ctx, name, r, body, nil, limit)
	}
	return a, err
}

// do also sends trailers, which may be nil. A negative limit reads the answer and forgets its body. Again tells that the
// request was lost with a connection that had been used before, without an answer.
func (c *client) do(ctx context.Context, name string, r *message.Request, body []byte, trailer *message.Header, limit int) (answer *filter.Answer, again bool, err error) {
	cluster := c.upstreams.Get(name)
	if cluster == nil {
		return nil, false, fmt.Errorf("no cluster %q", name)
	}
	owner, host, err := cluster.Choose(&upstream.Choice{})
	if err != nil {
		return nil, false, err
	}
	st, info, err := c.pool.Stream(ctx, owner, host, pool.Options{})
	if err != nil {
		return nil, false, err
	}
	// A stream that was closed is somebody else's, so the end of the context must not meet it any more.
	var mu sync.Mutex
	closed := false
	stop := context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		if !closed {
			st.SetReadDeadline(time.Unix(1, 0))
			st.SetWriteDeadline(time.Unix(1, 0))
		}
	})
	defer func() {
		stop()
		mu.Lock()
		closed = true
		mu.Unlock()
		st.Close()
	}()
	start := time.Now()
	r.ContentLength = int64(len(body))
	r.Header.Set("x-envoy-internal", "true")
	fail := func(err error) (*filter.Answer, bool, error) {
		if ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
		_, lost := errors.AsType[*message.StreamError](err)
		// A connection that the host had closed before shows so at once.
		again := lost && info.Reused && message.ReasonOf(err) != message.ProtocolError && time.Since(start) < 50*time.Millisecond
		return nil, again, err
	}
	if err := st.Send(r, len(body) == 0 && trailer == nil); err != nil {
		return fail(err)
	}
	if len(body) > 0 {
		if err := st.Write(body, trailer == nil); err != nil {
			return fail(err)
		}
	}
	if trailer != nil {
		if err := st.WriteTrailer(trailer); err != nil {
			return fail(err)
		}
	}
	if err := st.Flush(); err != nil {
		return fail(err)
	}
	var head message.Response
	end := false
	for head.Status < 200 {
		head.Reset()
		if end, err = st.Receive(&head); err != nil {
			return fail(err)
		}
	}
	head.Header.CloneStrings()
	a := &filter.Answer{Status: head.Status, Header: head.Header}
	for !end {
		p, err := st.Read()
		switch {
		case limit < 0:
		case len(a.Body)+len(p) > limit:
			return nil, false, fmt.Errorf("answer of more than %d bytes", limit)
		default:
			a.Body = append(a.Body, p...)
		}
		if end = errors.Is(err, errEnd); err != nil && !end {
			_, _, err = fail(err)
			return nil, false, err
		}
	}
	if t := st.Trailer(); t != nil {
		a.Trailer.CopyFrom(t)
		a.Trailer.CloneStrings()
	}
	return a, false, nil
}

// SameConnection reports whether connections that were made under one configuration can go on under the other.
// Everything about requests may differ.
func SameConnection(a, b *model.HTTPManager) bool {
	return a.Codec == b.Codec && reflect.DeepEqual(a.HTTP1, b.HTTP1) && reflect.DeepEqual(a.HTTP2, b.HTTP2) &&
		a.MaxHeaderBytes == b.MaxHeaderBytes && a.MaxHeaders == b.MaxHeaders && a.IdleTimeout == b.IdleTimeout &&
		a.MaxDuration == b.MaxDuration && a.MaxRequests == b.MaxRequests && a.HeadersTimeout == b.HeadersTimeout &&
		a.DelayedClose == b.DelayedClose && a.Underscores == b.Underscores
}
