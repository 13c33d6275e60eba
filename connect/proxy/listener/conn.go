package listener

import (
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/hcm"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/rbac"
	"github.com/sarnmesh/sarn/connect/proxy/stream"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
)

// A conn is a downstream connection.
type conn struct {
	l      *listener
	raw    net.Conn
	stream net.Conn // what filters read: raw, with TLS on it if there is any
	start  time.Time
	gone   chan struct{} // closed when somebody stops the connection

	remote, local string // addresses as text
	facts         facts
	destination   model.Address // where the client wanted to go
	state         *tls.ConnectionState
	peer          *tlscontext.Peer // nil: not authenticated
	cluster       string           // decided by a filter; empty leaves it to the terminal
	entry         accesslog.Entry

	chain    atomic.Pointer[chain] // nil until one was chosen
	admitted atomic.Bool           // the filters of the chain let it in
	draining atomic.Bool

	mu      sync.Mutex
	session *hcm.Session // nil unless requests are served
	up      io.Closer    // connection to upstream; nil while there is none
	ended   bool         // it was stopped
	reason  string       // why; empty if there is nothing to say
	timer   *time.Timer
}

// stop ends the connection for a reason. The first reason counts.
func (c *conn) stop(reason string) {
	c.mu.Lock()
	first := !c.ended
	if first {
		c.ended, c.reason = true, reason
		close(c.gone)
	}
	up := c.up
	c.mu.Unlock()
	if !first {
		return
	}
	c.raw.Close()
	if up != nil {
		up.Close()
	}
}

// attach makes stop close the upstream connection too. It returns false if the
// connection was stopped already.
func (c *conn) attach(up io.Closer) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up = up
	return !c.ended
}

func (c *conn) stopped() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// drain lets the connection live on for a while.
func (c *conn) drain(d time.Duration, reason string) {
	if c.draining.Swap(true) {
		return
	}
	c.l.m.stats.ChainsDraining.Inc()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.timer = time.AfterFunc(d, func() { c.stop(reason) })
	}
	if c.session != nil {
		c.session.Drain()
	}
}

// depart lets the client know that it should use another connection, if there
// is a way to.
func (c *conn) depart() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session != nil {
		c.session.Drain()
	}
}

func (c *conn) rbacFacts() rbac.Facts {
	f := rbac.Facts{
		DirectRemote: c.facts.direct.Addr(),
		Remote:       c.facts.remote.Addr(),
		Local:        c.facts.local,
		ServerName:   c.facts.server,
	}
	if c.peer != nil {
		f.Authenticated = true
		f.URIs, f.DNS, f.Subject = c.peer.URIs, c.peer.DNS, c.peer.Subject
	}
	return f
}

func (c *conn) principal() string {
	if c.peer == nil {
		return ""
	}
	return c.peer.Principal()
}

func addrPort(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	case nil:
		return netip.AddrPort{}
	}
	ap, _ := netip.ParseAddrPort(a.String())
	return ap
}

func text(a net.Addr) string {
	if a == nil {
		return ""
	}
	return a.String()
}

// serve runs the connection from acceptance to its end.
func (c *conn) serve() {
	defer c.end()
	conf := c.l.conf.Load()
	conn, ok := c.inspect(conf)
	if !ok {
		return
	}
	ch := c.l.conf.Load().match.match(&c.facts)
	if ch == nil {
		c.l.stats.NoChain.Inc()
		c.entry.Flags |= accesslog.NoRouteFound
		c.stop("filter_chain_not_found")
		return
	}
	c.stream = conn
	if ch.tls != nil && !c.handshake(ch, conn) {
		return
	}
	// From here on a change of the listener finds this connection; what was
	// changed since the chain was chosen is caught by matching again.
	c.chain.Store(ch)
	if now := c.l.conf.Load().match.match(&c.facts); now != ch {
		if now == nil || (now.tls == nil) != (ch.tls == nil) {
			c.stop("listener_changed")
			return
		}
		ch = now
		c.chain.Store(ch)
	}
	for i, f := range ch.filters {
		if refusal := f.admit(c); refusal != "" {
			c.stop(refusal)
			for _, g := range ch.filters[:i] {
				g.leave(c)
			}
			return
		}
	}
	c.admitted.Store(true)
	defer func() {
		for _, f := range ch.filters {
			f.leave(c)
		}
	}()
	// A change between the two looks at the policy would go unseen.
	if now := c.chain.Load(); now != ch && c.recheck(now) {
		return
	}
	ch.terminal.serve(c)
}

// recheck stops a connection that the filters of ch would not let in, and
// reports whether it did.
func (c *conn) recheck(ch *chain) bool {
	for _, f := range ch.filters {
		if refusal := f.recheck(c); refusal != "" {
			c.stop(refusal)
			return true
		}
	}
	return false
}

// changed is called after the listener got another configuration.
func (c *conn) changed(conf *config) {
	old := c.chain.Load()
	if old == nil {
		return // not that far yet; it will see the new configuration
	}
	now := conf.match.match(&c.facts)
	switch {
	case now == nil:
		c.drain(c.l.m.cfg.DrainTime, "filter_chain_removed")
		return
	case old.tls == nil && now.tls != nil:
		c.stop("listener_requires_tls")
		return
	}
	c.chain.Store(now)
	if c.recheck(now) {
		return
	}
	if !sameBody(old.model, now.model) {
		c.drain(c.l.m.cfg.DrainTime, "filter_chain_changed")
	}
}

// inspect runs the inspectors. It returns the connection to read from.
func (c *conn) inspect(at *config) (net.Conn, bool) {
	conf := at.model
	if len(conf.Inspectors) == 0 {
		return c.raw, true
	}
	s := c.l.stats
	s.PreCxActive.Inc()
	defer s.PreCxActive.Dec()
	if conf.InspectTimeout > 0 {
		c.raw.SetReadDeadline(time.Now().Add(conf.InspectTimeout))
		defer c.raw.SetReadDeadline(time.Time{})
	}
	var seen []byte
	var err error
	for n, i := range conf.Inspectors {
		if i != model.InspectOriginalDst && !slices.Contains(conf.Inspectors[n:], model.InspectOriginalDst) && !at.match.peeks(&c.facts) {
			continue
		}
		switch i {
		case model.InspectOriginalDst:
			if a, ok := c.l.m.cfg.OriginalDst(c.raw); ok {
				c.facts.local = a
				c.destination = model.Address{Host: a.Addr().String(), Port: a.Port()}
			}
		case model.InspectTLS:
			if seen != nil {
				continue
			}
			seen, err = c.inspectTLS()
		case model.InspectHTTP:
			if c.facts.transport == "tls" {
				continue
			}
			var v string
			if v, seen, err = inspectHTTP(c.raw, seen); err == nil && v != "" {
				c.facts.protocols = []string{v}
			}
		}
		if err == nil {
			continue
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.PreCxTimeout.Inc()
			if conf.ContinueOnTimeout {
				err = nil
				continue
			}
			c.stop("listener_filter_timeout")
			return nil, false
		}
		c.stop("listener_filter_error")
		return nil, false
	}
	if len(seen) > 0 {
		return stream.Ahead(c.raw, seen), true
	}
	return c.raw, true
}

func (c *conn) inspectTLS() ([]byte, error) {
	t := c.l.m.inspector
	h, seen, err := inspectTLS(c.raw)
	switch {
	case errors.Is(err, errNotHello):
		t.NotFound.Inc()
		c.facts.transport = "raw_buffer"
		return seen, nil
	case errors.Is(err, errHelloTooLarge):
		t.TooLarge.Inc()
		return seen, err
	case err != nil:
		return seen, err
	}
	t.Found.Inc()
	c.facts.transport = "tls"
	c.facts.server, c.facts.protocols = h.server, h.protocols
	if h.server == "" {
		t.SNINotFound.Inc()
	} else {
		t.SNIFound.Inc()
	}
	if len(h.protocols) == 0 {
		t.ALPNNotFound.Inc()
	} else {
		t.ALPNFound.Inc()
	}
	return seen, nil
}

// handshake puts TLS on the connection.
func (c *conn) handshake(ch *chain, conn net.Conn) bool {
	s := c.l.stats
	cfg, err := ch.tls.Config()
	if err != nil {
		s.SSLError.Inc()
		c.entry.DownstreamFailure = err.Error()
		c.l.m.cfg.Logger.Warn("connection refused, no certificate or trust yet", "listener", c.l.name, "error", err)
		c.stop("tls_not_ready")
		return false
	}
	c.raw.SetDeadline(time.Now().Add(ch.model.HandshakeTimeout))
	t := tls.Server(stream.Below(conn), cfg)
	if err := t.Handshake(); err != nil {
		s.SSLError.Inc()
		c.countTLS(err)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.SocketTimeout.Inc()
		}
		c.entry.DownstreamFailure = "TLS_error:|" + err.Error()
		c.l.m.cfg.Logger.Debug("TLS handshake refused", "listener", c.l.name, "address", c.remote, "error", err)
		c.stop("tls_handshake_failure")
		return false
	}
	c.raw.SetDeadline(time.Time{})
	state := t.ConnectionState()
	c.state = &state
	c.stream = t
	if state.ServerName != "" && c.facts.server == "" {
		c.facts.server = state.ServerName
	}
	s.SSLHandshake.Inc()
	if state.DidResume {
		s.SSLReused.Inc()
	}
	if len(state.PeerCertificates) == 0 {
		s.SSLNoCertificate.Inc()
		return true
	}
	if c.peer, err = ch.tls.Peer(&state); err != nil {
		s.SSLError.Inc()
		c.stop("tls_peer_unreadable")
		return false
	}
	return true
}

func (c *conn) countTLS(err error) {
	var v *tlscontext.VerifyError
	if !errors.As(err, &v) {
		return
	}
	s := c.l.stats
	switch v.Fault {
	case tlscontext.FaultNoCert:
		s.SSLVerifyNoCert.Inc()
	case tlscontext.FaultChain:
		s.SSLVerifyError.Inc()
	case tlscontext.FaultSAN:
		s.SSLVerifySAN.Inc()
	case tlscontext.FaultHash:
		s.SSLVerifyHash.Inc()
	}
}

// end closes the connection and writes the logs of the listener.
func (c *conn) end() {
	c.mu.Lock()
	if c.timer != nil {
		c.timer.Stop()
	}
	c.mu.Unlock()
	if c.stream != nil {
		c.stream.Close()
	}
	c.raw.Close()
	if c.draining.Load() {
		c.l.m.stats.ChainsDraining.Dec()
	}
	s := c.l.stats
	s.CxDestroy.Inc()
	s.CxActive.Dec()
	s.CxLength.Record(time.Since(c.start))
	if logs := c.l.conf.Load().logs; len(logs) > 0 {
		c.fillEntry()
		for _, l := range logs {
			l.Write(&c.entry)
		}
	}
}

// fillEntry adds to the log entry what is only worked out for logs.
func (c *conn) fillEntry() {
	e := &c.entry
	e.Start, e.Duration = c.start, time.Since(c.start)
	e.CloseDetails = c.stopped()
	e.DownstreamRemote, e.DownstreamDirect, e.DownstreamLocal = c.remote, c.remote, c.local
	if c.facts.local.IsValid() {
		e.DownstreamLocal = c.facts.local.String()
	}
	e.ServerName = c.facts.server
	if ch := c.chain.Load(); ch != nil {
		e.FilterChain = ch.model.Name
		if ch.tls != nil {
			if certs := ch.tls.Certificates(); len(certs) > 0 && certs[0].Leaf != nil {
				if p, err := tlscontext.NewPeer(certs[0].Leaf); err == nil {
					e.LocalURIs = p.URIs
				}
			}
		}
	}
	if c.peer != nil {
		e.PeerURIs, e.PeerDNS = c.peer.URIs, c.peer.DNS
		e.PeerSubject, e.PeerIssuer, e.PeerFingerprint = c.peer.Subject, c.peer.Issuer, c.peer.Fingerprint
		e.PeerSerial = hex.EncodeToString(c.peer.Leaf.SerialNumber.Bytes())
	}
	if c.state != nil {
		e.TLSVersion = map[uint16]string{tls.VersionTLS10: "TLSv1", tls.VersionTLS11: "TLSv1.1", tls.VersionTLS12: "TLSv1.2", tls.VersionTLS13: "TLSv1.3"}[c.state.Version]
		e.TLSCipher = tls.CipherSuiteName(c.state.CipherSuite)
	}
}
