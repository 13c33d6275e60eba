package route

import (
	"strconv"
	"strings"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// EditRequest changes the header of a request on its way to a host: as the weighted cluster says, then the route, the
// virtual host and the table, or the last three the other way round if the table wants it. Without a route nothing is
// changed. Call it before Rewrite.
func (m *Match) EditRequest(r *message.Request, e *accesslog.Entry) {
	if m.route == nil {
		return
	}
	if m.weighted != nil {
		m.weighted.requestEdits.Apply(&r.Header, &r.Arena, e)
	}
	m.ordered([3]*Edits{&m.table.requestEdits, &m.host.requestEdits, &m.route.requestEdits}, &r.Header, &r.Arena, e)
}

// EditResponse changes the header of a response on its way to the client, in the order of EditRequest.
func (m *Match) EditResponse(r *message.Response, e *accesslog.Entry) {
	if m.route == nil {
		return
	}
	if m.weighted != nil {
		m.weighted.responseEdits.Apply(&r.Header, &r.Arena, e)
	}
	m.ordered([3]*Edits{&m.table.responseEdits, &m.host.responseEdits, &m.route.responseEdits}, &r.Header, &r.Arena, e)
}

// ordered applies edits of which the least specific are the first.
func (m *Match) ordered(list [3]*Edits, h *message.Header, a *message.Arena, e *accesslog.Entry) {
	for i := range list {
		if !m.table.conf.MostSpecificWins {
			i = len(list) - 1 - i
		}
		list[i].Apply(h, a, e)
	}
}

// Rewrite changes path and authority of a request that is forwarded. Hostname is that of the chosen host, or empty.
// Call it once for a request, and AutoHost for further hosts.
func (m *Match) Rewrite(r *message.Request, hostname string) {
	if m.Route == nil || m.Route.Forward == nil {
		return
	}
	f := m.Route.Forward
	if m.Weighted != nil && m.Weighted.HostRewrite != "" {
		r.Authority = m.Weighted.HostRewrite
	}
	switch {
	case f.HostRewrite != "":
		setAuthority(r, f.HostRewrite, f.AppendXFH, true)
	case f.HostHeader != "":
		// From the client: only what can be an authority counts.
		if v, _ := First(f.HostHeader, r); validAuthority(v) {
			setAuthority(r, v, f.AppendXFH, true)
		}
	case f.HostPathRegex != nil:
		path := WithoutQuery(r.Path)
		if v := f.HostPathRegex.Pattern.ReplaceAllString(path, f.HostPathRegex.Substitution); validAuthority(v) {
			setAuthority(r, v, f.AppendXFH, true)
		}
	}
	if path, ok := m.rewritten(r, f.PrefixRewrite, f.RegexRewrite); ok {
		r.Header.Set("x-envoy-original-path", r.Path)
		r.Path = path
	}
	m.autoHost(r, hostname, true)
}

// AutoHost makes the name of the chosen host the authority if the route says so.
func (m *Match) AutoHost(r *message.Request, hostname string) { m.autoHost(r, hostname, false) }

func (m *Match) autoHost(r *message.Request, hostname string, first bool) {
	if hostname != "" && m.Route != nil && m.Route.Forward != nil && m.Route.Forward.AutoHost {
		setAuthority(r, hostname, m.Route.Forward.AppendXFH, first)
	}
}

// validAuthority reports whether s can stand as an authority.
func validAuthority(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c <= ' ' || c >= 0x7f || strings.IndexByte(`/\?#@,"<>`, c) >= 0:
			return false
		}
	}
	return s != ""
}

// setAuthority replaces the authority; first tells that it is still that of the client.
func setAuthority(r *message.Request, to string, keep, first bool) {
	if first && r.Authority != "" {
		r.Header.Set("x-envoy-original-host", r.Authority)
	}
	if keep && r.Authority != "" {
		old := r.Header.Get("x-forwarded-host")
		switch i := strings.LastIndexByte(old, ','); {
		case old == "":
			r.Header.Set("x-forwarded-host", r.Authority)
		case old[i+1:] != r.Authority:
			r.Header.Set("x-forwarded-host", r.Arena.Concat(old, ",", r.Authority))
		}
	}
	r.Authority = to
}

// rewritten returns the path with its query after a rewrite; ok is false if there is none to make.
func (m *Match) rewritten(r *message.Request, prefix string, regex *model.RegexRewrite) (string, bool) {
	if r.Path == "" || prefix == "" && regex == nil {
		return "", false
	}
	path := WithoutQuery(r.Path)
	rest := r.Path[len(path):]
	to := prefix
	if prefix != "" {
		// What the match matched: of regular expressions all.
		n := len(path)
		if k := m.Route.Match.Kind; k != model.PathRegex && k != model.PathConnect {
			n = min(n, len(m.Route.Match.Path))
		}
		rest = r.Path[n:]
	} else {
		to = regex.Pattern.ReplaceAllString(path, regex.Substitution)
	}
	// A request target begins with a slash; nothing else could be sent on.
	if strings.HasPrefix(to, "/") || to == "" && strings.HasPrefix(rest, "/") {
		return r.Arena.Concat(to, rest), true
	}
	return r.Arena.Concat("/", to, rest), true
}

// Location returns where a redirect leads: that of the route, or to https if the virtual host demands it. Https tells
// how the client came if the request does not say.
func (m *Match) Location(r *message.Request, https bool) string {
	if m.TLSRedirect {
		return r.Arena.Concat("https://", r.Authority, r.Path)
	}
	d := m.Route.Redirect
	came := r.Header.Get("x-forwarded-proto")
	if came == "" {
		came = "http"
		if https {
			came = "https"
		}
	}
	scheme := r.Scheme
	switch {
	case d.Scheme != "":
		scheme = d.Scheme
	case d.HTTPS:
		scheme = "https"
	case scheme == "":
		scheme = came
	}
	host, port := d.Host, ""
	if d.Port != 0 {
		port = strconv.Itoa(int(d.Port))
	}
	if host == "" {
		host = r.Authority
		// The port of the request goes if another is asked for, and if it is the usual one of the scheme that is left.
		if i := portStart(host); i >= 0 {
			p := host[i+1:]
			if port != "" || scheme != came && (came == "https" && p == "443" || came == "http" && p == "80") {
				host = host[:i]
			}
		}
	}
	if port != "" {
		port = r.Arena.Concat(":", port)
	}
	path, strip := r.Path, d.StripQuery
	switch prefix := ""; {
	case d.Path != "":
		if strings.IndexByte(d.Path, '?') >= 0 {
			path, strip = d.Path, false // its own query stays
		} else {
			path = r.Arena.Concat(d.Path, path[len(WithoutQuery(path)):])
		}
	default:
		if d.Prefix != nil {
			prefix = *d.Prefix
		}
		if p, ok := m.rewritten(r, prefix, d.Regex); ok {
			path = p
		}
	}
	if strip {
		path = WithoutQuery(path)
	}
	slash := ""
	if !strings.HasPrefix(path, "/") {
		slash = "/"
	}
	return r.Arena.Concat(scheme, "://", host, port, slash, path)
}
