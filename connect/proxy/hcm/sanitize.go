package hcm

import (
	"bytes"
	"encoding/hex"
	"encoding/pem"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// canonical brings the path and the authority of a request into the one form that routes, policies and hosts see. A
// reply that is not nil refuses the request.
func (m *Manager) canonical(x *filter.Exchange) *filter.Reply {
	c, r := m.conf, x.Request
	if c.Underscores != model.UnderscoreAllow && r.Version == message.HTTP2 {
		if reply := m.underscores(r); reply != nil {
			return reply
		}
	}
	if r.Authority == "" {
		return filter.Deny(400, "", "missing_host_header", 0)
	}
	if r.Method != "CONNECT" || r.Upgrade != "" {
		if r.Path == "" || r.Path[0] != '/' {
			m.stats.NonRelativePath.Inc()
			return filter.Deny(404, "", "absolute_path_rejected", 0)
		}
		if strings.IndexByte(r.Path, '#') >= 0 {
			return filter.Deny(400, "", "path_normalization_failed", 0)
		}
		if c.EscapedSlashes != model.EscapedKeep {
			if reply := m.escapedSlashes(r); reply != nil {
				return reply
			}
		}
		if c.NormalizePath && !plainPath(r.Path) {
			p, ok := normalizePath(r.Arena.Begin(), r.Path)
			if !ok {
				m.stats.FailedNormalization.Inc()
				return filter.Deny(400, "", "path_normalization_failed", 0)
			}
			r.Path = r.Arena.End(p)
		}
		if c.MergeSlashes && strings.Contains(pathOf(r.Path), "//") {
			r.Path = r.Arena.End(mergeSlashes(r.Arena.Begin(), r.Path))
		}
	}
	if c.StripTrailingDot {
		host, port := splitPort(r.Authority)
		if strings.HasSuffix(host, ".") {
			r.Authority = r.Arena.Concat(host[:len(host)-1], port)
		}
	}
	switch c.StripPort {
	case model.PortAny:
		r.Authority, _ = splitPort(r.Authority)
	case model.PortMatching:
		if host, port := splitPort(r.Authority); port != "" && port[1:] == strconv.Itoa(int(x.Conn.Local.Port())) {
			r.Authority = host
		}
	}
	return nil
}

// underscores deals with names that have an underscore, which the codec of HTTP/1 does itself.
func (m *Manager) underscores(r *message.Request) *filter.Reply {
	has := func(f message.Field) bool { return strings.IndexByte(f.Name, '_') >= 0 }
	if m.conf.Underscores == model.UnderscoreDrop {
		r.Header.DelFunc(has)
		return nil
	}
	for i := range r.Header.Len() {
		if has(r.Header.At(i)) {
			reply := filter.Deny(400, "", "http2.unexpected_underscore", accesslog.DownstreamRemoteReset)
			reply.Reset = true
			return reply
		}
	}
	return nil
}

// splitPort cuts ":port" off an authority.
func splitPort(a string) (host, port string) {
	i := strings.LastIndexByte(a, ':')
	if i < 0 || strings.IndexByte(a[i:], ']') >= 0 {
		return a, ""
	}
	if strings.IndexByte(a, ':') != i && !strings.HasPrefix(a, "[") {
		return a, "" // an IPv6 address without brackets
	}
	return a[:i], a[i:]
}

func pathOf(p string) string {
	if i := strings.IndexByte(p, '?'); i >= 0 {
		return p[:i]
	}
	return p
}

// plainPath reports whether normalizing would change nothing.
func plainPath(p string) bool {
	for i := range len(p) {
		switch p[i] {
		case '?':
			return true
		case '%', '\\':
			return false
		case '.':
			if i > 0 && p[i-1] == '/' {
				return false
			}
		}
	}
	return true
}

// normalizePath appends the path with dot segments resolved, unreserved characters decoded and backslashes turned
// (RFC 3986 section 6.2.2). The query stays as it is. It fails for escapes that are none and for NUL.
func normalizePath(b []byte, p string) ([]byte, bool) {
	path, query := p, ""
	if i := strings.IndexByte(p, '?'); i >= 0 {
		path, query = p[:i], p[i:]
	}
	from := len(b)
	for i := 0; i < len(path); i++ {
		c := path[i]
		switch c {
		case '\\':
			c = '/'
		case '%':
			if i+2 >= len(path) {
				break
			}
			hi, ok1 := unhex(path[i+1])
			lo, ok2 := unhex(path[i+2])
			if !ok1 || !ok2 {
				break // a sign like others
			}
			v := hi<<4 | lo
			if v == 0 {
				return b, false
			}
			if !unreserved(v) {
				b = append(b, path[i:i+3]...)
				i += 2
				continue
			}
			c = v
			i += 2
		}
		b = append(b, c)
	}
	b = resolveDots(b, from)
	return append(b, query...), true
}

// resolveDots removes "." and ".." segments from b[from:], which begins with a slash.
func resolveDots(b []byte, from int) []byte {
	out := from
	for i := from; i < len(b); {
		// b[i] is a slash; the segment is up to the next.
		end := i + 1
		for end < len(b) && b[end] != '/' {
			end++
		}
		seg := b[i+1 : end]
		if n := bytes.IndexByte(seg, ';'); n >= 0 && (string(seg[:n]) == "." || string(seg[:n]) == "..") {
			seg = seg[:n] // servers that know path parameters resolve these, too
		}
		switch {
		case len(seg) == 1 && seg[0] == '.':
			if end == len(b) {
				b[out] = '/'
				out++
			}
		case len(seg) == 2 && seg[0] == '.' && seg[1] == '.':
			for out > from {
				out--
				if b[out] == '/' {
					break
				}
			}
			if end == len(b) {
				b[out] = '/'
				out++
			}
		default:
			out += copy(b[out:], b[i:end])
		}
		i = end
	}
	if out == from && len(b) > from {
		b[out] = '/'
		out++
	}
	return b[:out]
}

func mergeSlashes(b []byte, p string) []byte {
	path := pathOf(p)
	for i := range len(path) {
		if path[i] != '/' || i == 0 || path[i-1] != '/' {
			b = append(b, path[i])
		}
	}
	return append(b, p[len(path):]...)
}

func unhex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

func unreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// escapedSlashes deals with %2F and %5C in the path.
func (m *Manager) escapedSlashes(r *message.Request) *filter.Reply {
	path := pathOf(r.Path)
	b := r.Arena.Begin()
	found := false
	for i := 0; i < len(path); i++ {
		if path[i] == '%' && i+2 < len(path) {
			switch strings.ToLower(path[i+1 : i+3]) {
			case "2f":
				b, found = append(b, '/'), true
				i += 2
				continue
			case "5c":
				b, found = append(b, '\\'), true
				i += 2
				continue
			}
		}
		b = append(b, path[i])
	}
	b = append(b, r.Path[len(path):]...)
	p := r.Arena.End(b)
	if !found {
		return nil
	}
	switch m.conf.EscapedSlashes {
	case model.EscapedReject:
		m.stats.FailedNormalization.Inc()
		return filter.Deny(400, "", "path_normalization_failed", 0)
	case model.EscapedRedirect:
		m.stats.RedirectedNormalized.Inc()
		reply := filter.Deny(307, "", "path_normalization_failed", 0)
		reply.Header = append(reply.Header, message.Field{Name: "location", Value: strings.Clone(p)})
		return reply
	}
	r.Path = p
	return nil
}

// Headers that requests from outside may not bring.
var (
	edgeHeaders = []string{"x-envoy-decorator-operation", "x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node"}

	internalHeaders = []string{
		"x-envoy-retriable-status-codes", "x-envoy-retriable-header-names", "x-envoy-retry-on", "x-envoy-retry-grpc-on",
		"x-envoy-max-retries", "x-envoy-upstream-alt-stat-name", "x-envoy-upstream-rq-timeout-ms",
		"x-envoy-upstream-rq-per-try-timeout-ms", "x-envoy-upstream-rq-timeout-alt-response", "x-envoy-expected-rq-timeout-ms",
		"x-envoy-force-trace", "x-envoy-ip-tags", "x-envoy-original-url", "x-envoy-hedge-on-per-try-timeout",
	}
)

// originate works out who sent the request and makes the headers that tell it.
func (m *Manager) originate(x *filter.Exchange, element *string) {
	c, r, h := m.conf, x.Request, &x.Request.Header
	peer := x.Conn.Remote.Addr()
	scheme := "http"
	if x.Conn.TLS != nil {
		scheme = "https"
	}
	x.Remote = peer
	single := false
	if c.UseRemoteAddress {
		single = !h.Has("x-forwarded-for")
		if c.TrustedHops > 0 {
			if a, ok := forwarded(h, int(c.TrustedHops)-1, r); ok {
				x.Remote = a
			}
		}
		if !c.SkipXFF {
			m.appendXFF(r, peer)
		} else if v, ok := h.Lookup("x-forwarded-for", &r.Arena); ok {
			h.Set("x-forwarded-for", v)
		}
		if c.TrustedHops == 0 || !h.Has("x-forwarded-proto") {
			h.Set("x-forwarded-proto", scheme)
		}
	} else if len(c.ClientHeaders) > 0 {
		for _, ch := range c.ClientHeaders {
			if a, err := netip.ParseAddr(h.Get(ch.Name)); err == nil && a.Zone() == "" {
				x.Remote, single = a, ch.Trusted
				break
			}
		}
	} else {
		if v, ok := h.Lookup("x-forwarded-for", &r.Arena); ok {
			h.Set("x-forwarded-for", v)
			if a, ok := forwarded(h, int(c.TrustedHops), r); ok {
				x.Remote = a
				single = strings.IndexByte(v, ',') < 0 && c.TrustedHops == 0
			}
		}
	}
	if !h.Has("x-forwarded-proto") {
		h.Set("x-forwarded-proto", scheme)
	}
	if x.Remote != peer {
		x.Entry.DownstreamRemote = netip.AddrPortFrom(x.Remote, 0).String()
	}
	if c.SchemeOverwrite != "" {
		r.Scheme = c.SchemeOverwrite
		h.Set("x-forwarded-proto", c.SchemeOverwrite)
	} else if r.Scheme == "" {
		r.Scheme = h.Get("x-forwarded-proto")
		if r.Scheme != "http" && r.Scheme != "https" {
			r.Scheme = scheme
		}
	}
	if c.AppendXFPort && !h.Has("x-forwarded-port") {
		h.Set("x-forwarded-port", r.Arena.String(strconv.Itoa(int(x.Conn.Local.Port()))))
	}

	x.Internal = single && contains(c.Internal, x.Remote)
	edge := c.UseRemoteAddress && !x.Internal
	if !x.Internal {
		if edge {
			for _, n := range edgeHeaders {
				h.Del(n)
			}
			h.Del("x-envoy-external-address")
			h.Add("x-envoy-external-address", addrText(r, x.Remote))
		}
		for _, n := range internalHeaders {
			h.Del(n)
		}
		h.Del("x-envoy-internal")
	} else {
		h.Set("x-envoy-internal", "true")
	}
	if c.AddUserAgent {
		h.Set("x-envoy-downstream-service-cluster", m.env.NodeCluster)
		if m.env.NodeID != "" {
			h.Set("x-envoy-downstream-service-node", m.env.NodeID)
		}
		if !h.Has("user-agent") {
			h.Add("user-agent", m.env.NodeCluster)
		}
	}
	if c.GenerateRequestID && (edge && !c.PreserveExternalRequestID || !h.Has("x-request-id")) {
		h.Set("x-request-id", m.newUUID(&r.Arena))
	}
	if c.Via != "" {
		appendTo(h, "via", c.Via, &r.Arena)
	}
	m.clientCert(x, element)
}

func addrText(r *message.Request, a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return r.Arena.End(a.AppendTo(r.Arena.Begin()))
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func (m *Manager) appendXFF(r *message.Request, peer netip.Addr) {
	if !peer.IsValid() {
		return
	}
	b := r.Arena.Begin()
	if old, ok := r.Header.Lookup("x-forwarded-for", &r.Arena); ok {
		b = append(append(r.Arena.Begin(), old...), ',')
	}
	r.Header.Set("x-forwarded-for", r.Arena.End(peer.AppendTo(b)))
}

// forwarded returns the address n places from the right of x-forwarded-for.
func forwarded(h *message.Header, n int, r *message.Request) (netip.Addr, bool) {
	v, ok := h.Lookup("x-forwarded-for", &r.Arena)
	if !ok {
		return netip.Addr{}, false
	}
	for ; n > 0; n-- {
		i := strings.LastIndexByte(v, ',')
		if i < 0 {
			return netip.Addr{}, false
		}
		v = v[:i]
	}
	a, err := netip.ParseAddr(strings.TrimSpace(v[strings.LastIndexByte(v, ',')+1:]))
	return a.Unmap(), err == nil
}

// newUUID makes a random UUID (RFC 9562 version 4).
func (m *Manager) newUUID(a *message.Arena) string {
	var u [16]byte
	for i, n := range [2]uint64{m.env.Rand(), m.env.Rand()} {
		for j := range 8 {
			u[8*i+j] = byte(n >> (8 * j))
		}
	}
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80
	b := a.Begin()
	for i, c := range u {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, []byte{c})
	}
	return a.End(b)
}

const xfcc = "x-forwarded-client-cert"

// clientCert makes x-forwarded-client-cert. Element keeps what is the same for all requests of the connection.
func (m *Manager) clientCert(x *filter.Exchange, element *string) {
	h, c, r := &x.Request.Header, m.conf, x.Request
	switch {
	case c.XFCC == model.XFCCAlwaysForwardOnly:
		return
	case c.XFCC == model.XFCCSanitize || x.Conn.Peer == nil:
		h.Del(xfcc)
		return
	case c.XFCC == model.XFCCForwardOnly:
		return
	}
	if *element == "" {
		*element = m.certElement(x.Conn)
	}
	value := *element
	if old, ok := h.Lookup(xfcc, &r.Arena); ok && c.XFCC == model.XFCCAppendForward {
		value = r.Arena.Concat(old, ",", value)
	}
	h.Set(xfcc, value)
}

// certElement tells who the client is.
func (m *Manager) certElement(conn *filter.Conn) string {
	c, p := m.conf, conn.Peer
	var b strings.Builder
	put := func(key, value string, quote bool) {
		if b.Len() > 0 {
			b.WriteByte(';')
		}
		b.WriteString(key)
		b.WriteByte('=')
		if !quote && !strings.ContainsAny(value, ",;=") {
			b.WriteString(value)
			return
		}
		b.WriteByte('"')
		b.WriteString(strings.ReplaceAll(value, `"`, `\"`))
		b.WriteByte('"')
	}
	for _, u := range conn.LocalURIs {
		put("By", u, false)
	}
	put("Hash", p.Fingerprint, false)
	if c.XFCCCert {
		put("Cert", escapePEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Leaf.Raw})), true)
	}
	if c.XFCCChain {
		var all []byte
		for _, cert := range conn.TLS.PeerCertificates {
			all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
		}
		put("Chain", escapePEM(all), true)
	}
	if c.XFCCSubject {
		put("Subject", p.Subject, true)
	}
	if c.XFCCURI {
		for _, u := range p.URIs {
			put("URI", u, false)
		}
	}
	if c.XFCCDNS {
		for _, d := range p.DNS {
			put("DNS", d, false)
		}
	}
	return b.String()
}

// escapePEM escapes a PEM text for a header.
func escapePEM(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		if unreserved(c) {
			s.WriteByte(c)
			continue
		}
		s.WriteByte('%')
		s.WriteString(strings.ToUpper(hex.EncodeToString([]byte{c})))
	}
	return s.String()
}
