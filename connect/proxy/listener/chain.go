package listener

import (
	"errors"
	"reflect"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/hcm"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/rbac"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
)

// A chain is a filter chain ready to run.
type chain struct {
	model    *model.FilterChain
	tls      *tlscontext.Server // nil serves plaintext
	filters  []filter
	terminal terminal
	scopes   []*stats.Scope
	before   *chain // whose terminal this one took over; nil if none
	handed   bool   // the terminal was taken over
}

// A filter decides about a connection whose peer is known.
type filter interface {
	// admit returns why the connection must end, or "" if it may go on. Unless
	// it was refused, leave is called when the connection ends.
	admit(c *conn) (refusal string)
	leave(c *conn)
	// recheck is admit for a connection that was admitted by another version
	// of the filter, or by none.
	recheck(c *conn) (refusal string)
}

// A terminal carries a connection until it ends. Filters for protocols above
// bytes are further implementations.
type terminal interface {
	serve(c *conn)
}

// compile makes chain c of a listener. Old is the version that it replaces, or
// nil: what need not change is taken over from there.
func (m *Manager) compile(c *model.FilterChain, old *chain) (*chain, error) {
	ch := &chain{model: c}
	if c.TLS != nil {
		if old != nil && old.tls != nil && reflect.DeepEqual(old.tls.Model(), c.TLS) {
			ch.tls = old.tls // with the keys of its session tickets
		} else {
			ch.tls = tlscontext.NewServer(c.TLS, m.cfg.Secrets)
		}
	}
	for i, f := range c.Filters {
		switch f := f.(type) {
		case *model.NetworkRBAC:
			sc := m.cfg.Stats.Scope(stats.Text(f.StatPrefix), stats.Text("rbac"))
			ch.scopes = append(ch.scopes, sc)
			ch.filters = append(ch.filters, &rbacFilter{m, f, stats.Struct[rbacStats](sc)})
		case *model.ConnectionLimit:
			sc := m.cfg.Stats.Scope(stats.Text("connection_limit"), stats.Label("envoy_connection_limit_prefix", f.StatPrefix))
			ch.scopes = append(ch.scopes, sc)
			lf := &limitFilter{m: m, conf: f, stats: stats.Struct[limitStats](sc), active: new(atomic.Int64)}
			if old != nil && i < len(old.filters) {
				if o, ok := old.filters[i].(*limitFilter); ok {
					lf.active = o.active
				}
			}
			ch.filters = append(ch.filters, lf)
		case *model.SNICluster:
			ch.filters = append(ch.filters, sniFilter{})
		default:
			ch.close()
			return nil, errors.New("unknown network filter")
		}
	}
	switch t := c.Terminal.(type) {
	case *model.TCPProxy:
		sc := m.cfg.Stats.Scope(stats.Text("tcp"), stats.Label("envoy_tcp_prefix", t.StatPrefix))
		ch.scopes = append(ch.scopes, sc)
		logs, err := m.logs(t.AccessLogs)
		if err != nil {
			ch.close()
			return nil, err
		}
		ch.terminal = &tcpProxy{m: m, conf: t, stats: stats.Struct[tcpStats](sc), logs: logs}
	case *model.HTTPManager:
		if err := m.compileHTTP(t, ch, old); err != nil {
			ch.close()
			return nil, err
		}
	default:
		ch.close()
		return nil, errors.New("no terminal filter")
	}
	return ch, nil
}

func (m *Manager) logs(list []model.AccessLog) ([]*accesslog.Log, error) {
	var out []*accesslog.Log
	for i := range list {
		l, err := accesslog.Compile(&list[i], m.cfg.Logs.Writer(&list[i]))
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// close forgets what the chain counted. A chain that never came into force leaves what it took over.
func (c *chain) close() {
	for _, s := range c.scopes {
		s.Close()
	}
	if t, ok := c.terminal.(*httpTerminal); ok && !c.handed && c.before == nil {
		t.m.Close()
	}
}

// inForce notes that the chain serves now, so that the one before leaves it what it took over.
func (c *chain) inForce() {
	if c.before != nil {
		c.before.handed, c.before = true, nil
	}
}

// sameBody reports whether connections of chain a need not notice that it
// became b: what differs is only keys, trust, or who may connect, which open
// connections are asked about separately.
func sameBody(a, b *model.FilterChain) bool {
	if (a.TLS == nil) != (b.TLS == nil) {
		return false
	}
	h, ok := a.Terminal.(*model.HTTPManager)
	g, ok2 := b.Terminal.(*model.HTTPManager)
	if ok != ok2 || ok && !hcm.SameConnection(h, g) || !ok && !reflect.DeepEqual(a.Terminal, b.Terminal) {
		return false
	}
	rest := func(c *model.FilterChain) (out []model.NetworkFilter) {
		for _, f := range c.Filters {
			if _, ok := f.(*model.NetworkRBAC); !ok {
				out = append(out, f)
			}
		}
		return out
	}
	return reflect.DeepEqual(rest(a), rest(b))
}

// rbacFilter lets peers in by who they are.
type rbacFilter struct {
	m     *Manager
	conf  *model.NetworkRBAC
	stats *rbacStats
}

func (f *rbacFilter) admit(c *conn) string {
	facts := c.rbacFacts()
	if f.conf.Shadow != nil {
		if rbac.Evaluate(f.conf.Shadow, &facts).Allowed {
			f.stats.ShadowAllowed.Inc()
		} else {
			f.stats.ShadowDenied.Inc()
		}
	}
	if f.conf.Rules == nil {
		return ""
	}
	d := rbac.Evaluate(f.conf.Rules, &facts)
	if d.Allowed {
		f.stats.Allowed.Inc()
		return ""
	}
	f.stats.Denied.Inc()
	f.m.cfg.Logger.Info("connection denied", "listener", c.l.name, "source", c.principal(), "address", c.remote, "policy", orDefault(d.Policy))
	return d.Detail()
}

func orDefault(policy string) string {
	if policy == "" {
		return "default"
	}
	return policy
}

func (f *rbacFilter) leave(*conn) {}

func (f *rbacFilter) recheck(c *conn) string {
	if f.conf.Rules == nil {
		return ""
	}
	facts := c.rbacFacts()
	d := rbac.Evaluate(f.conf.Rules, &facts)
	if d.Allowed {
		return ""
	}
	f.stats.Denied.Inc()
	f.m.cfg.Logger.Info("open connection denied by a change of policy", "listener", c.l.name, "source", c.principal(), "address", c.remote, "policy", orDefault(d.Policy))
	return d.Detail()
}

// limitFilter bounds how many connections are open.
type limitFilter struct {
	m      *Manager
	conf   *model.ConnectionLimit
	stats  *limitStats
	active *atomic.Int64 // shared by all versions of the filter
}

func (f *limitFilter) admit(c *conn) string {
	if f.active.Add(1) > int64(min(f.conf.Max, 1<<62)) {
		f.active.Add(-1)
		f.stats.Limited.Inc()
		if f.conf.Delay > 0 {
			select {
			case <-time.After(f.conf.Delay):
			case <-c.gone:
			}
		}
		return "connection_limit"
	}
	f.stats.Active.Inc()
	return ""
}

func (f *limitFilter) leave(*conn) {
	f.active.Add(-1)
	f.stats.Active.Dec()
}

func (f *limitFilter) recheck(*conn) string { return "" }

// sniFilter makes the server name the cluster to connect to.
type sniFilter struct{}

func (sniFilter) admit(c *conn) string {
	c.cluster = c.facts.server
	return ""
}

func (sniFilter) leave(*conn) {}

func (sniFilter) recheck(*conn) string { return "" }
