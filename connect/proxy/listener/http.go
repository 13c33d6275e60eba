package listener

import (
	"reflect"

	httpfilter "github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/hcm"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// httpTerminal serves the requests of connections. What changes about requests is in force with the next one, on
// open connections, too.
type httpTerminal struct{ m *hcm.Manager }

// compileHTTP makes the terminal filter for HTTP, or takes over that of old if nothing changed.
func (m *Manager) compileHTTP(conf *model.HTTPManager, ch, old *chain) error {
	if old != nil {
		if t, ok := old.terminal.(*httpTerminal); ok && reflect.DeepEqual(t.m.Model(), conf) {
			ch.terminal, ch.before = t, old
			return nil
		}
	}
	h, err := m.cfg.HTTP.Manager(conf)
	if err != nil {
		return err
	}
	ch.terminal = &httpTerminal{h}
	return nil
}

func (t *httpTerminal) serve(c *conn) { c.stop(t.session(c).Serve()) }

// session makes the session of a connection. It is apart from serve so that the stack of an idle connection stays small.
//
//go:noinline
func (t *httpTerminal) session(c *conn) *hcm.Session {
	c.fillEntry()
	l := &hcm.Link{
		Conn: c.stream,
		Info: &httpfilter.Conn{
			ID: c.entry.ConnectionID, Listener: c.l.name, Remote: c.facts.remote, Direct: c.facts.direct, Local: c.facts.local,
			Destination: c.destination, ServerName: c.facts.server, TLS: c.state, Peer: c.peer, LocalURIs: c.entry.LocalURIs,
		},
		Entry:       c.entry,
		BufferLimit: c.l.conf.Load().model.BufferLimit,
		Outbound:    c.l.conf.Load().model.Direction == model.Outbound,
		Current: func() *hcm.Manager {
			if now, ok := c.chain.Load().terminal.(*httpTerminal); ok {
				return now.m
			}
			return t.m // the chain carries bytes now, and the connection drains
		},
		Leaving: func() bool { return !c.l.conf.Load().model.DrainModifyOnly && c.l.m.cfg.Failing() },
	}
	if c.state != nil {
		l.ALPN = c.state.NegotiatedProtocol
	}
	s := hcm.NewSession(l)
	c.mu.Lock()
	c.session = s
	c.mu.Unlock()
	if c.draining.Load() || c.l.departing.Load() {
		s.Drain()
	}
	return s
}
