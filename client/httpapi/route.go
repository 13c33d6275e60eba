package httpapi

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sarnmesh/sarn/internal/measure"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A handler answers one request. It returns a value to be written as JSON, an error whose wireerr.Status is the status
// and whose text is the body, or nil and nil for an empty 200 unless it wrote the answer itself.
//
// w is always a *response: the helpers of Server find the parsed query string and what is known of the request there.
type handler func(w http.ResponseWriter, r *http.Request) (any, error)

// An endpoint is a path with the methods it knows, in the order they are told in the Allow header. A path that ends in
// "/" is a prefix: what follows it is the argument, which argument returns. In a path such as "/v1/query/*/execute" the
// argument stands in the place of the star; the prefix before it must be an endpoint too, listed first.
type endpoint struct {
	path    string
	methods string // "GET", or several separated by commas
	handle  handler
}

// A route is an endpoint ready for use.
type route struct {
	prefix  string // the path, up to the argument
	suffix  string // what follows the argument
	pattern string // the path, with a star for the argument
	methods []string
	allow   []string // value of the Allow header, when it is asked for
	refusal []string // value of the Allow header, when the method is not known
	handle  handler
	nested  []*route         // with this prefix and a suffix
	timers  []*measure.Timer // of its requests, by method
	tally   *tally           // nil for none
}

func (s *Server) add(e endpoint) error {
	rt := &route{
		prefix:  e.path,
		methods: strings.Split(e.methods, ","),
		allow:   []string{"OPTIONS," + e.methods},
		handle:  e.handle,
	}
	rt.refusal = rt.allow
	var inside bool
	rt.prefix, rt.suffix, inside = strings.Cut(e.path, "*")
	if rt.pattern = e.path; strings.HasSuffix(e.path, "/") {
		rt.pattern += "*"
	}
	rt.label()
	rt.tally = tallyOf(e.path, s.cfg.NodeName)
	if inside {
		parent := s.prefixes[rt.prefix]
		if parent == nil {
			return fmt.Errorf("httpapi: path %s is inside of none", e.path)
		}
		parent.nested = append(parent.nested, rt)
		// Of these, a refusal does not tell OPTIONS (spec/state.md section 6).
		parent.refusal, rt.refusal = []string{strings.Join(parent.methods, ",")}, []string{e.methods}
		return nil
	}
	table := s.exact
	if strings.HasSuffix(e.path, "/") {
		table = s.prefixes
		s.deepest = max(s.deepest, strings.Count(e.path, "/"))
	}
	if table[e.path] != nil {
		return fmt.Errorf("httpapi: path %s registered twice", e.path)
	}
	table[e.path] = rt
	return nil
}

// Endpoints returns the paths of the API, sorted, each with the methods it knows, as "GET,PUT /v1/kv/".
func (s *Server) Endpoints() []string {
	var list []string
	for _, table := range []map[string]*route{s.exact, s.prefixes} {
		for path, rt := range table {
			list = append(list, strings.Join(rt.methods, ",")+" "+path)
			for _, n := range rt.nested {
				list = append(list, strings.Join(n.methods, ",")+" "+n.prefix+"*"+n.suffix)
			}
		}
	}
	slices.Sort(list)
	return list
}

// find returns the route for a decoded path, nil if there is none.
func (s *Server) find(p string) *route {
	if rt := s.exact[p]; rt != nil {
		return rt
	}
	var found *route
	end := 0
	for range s.deepest {
		i := strings.IndexByte(p[end:], '/')
		if i < 0 {
			break
		}
		end += i + 1
		if rt := s.prefixes[p[:end]]; rt != nil {
			found = rt
		}
	}
	if found != nil {
		for _, rt := range found.nested {
			if strings.HasSuffix(p, rt.suffix) && len(p) > len(rt.prefix)+len(rt.suffix) {
				return rt
			}
		}
	}
	return found
}

func (rt *route) knows(method string) bool {
	for _, m := range rt.methods {
		if m == method {
			return true
		}
	}
	return false
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	for i := range s.headers {
		h[s.headers[i].name] = s.headers[i].value
	}
	if !s.cfg.AllowUnprintable && !printable(r.URL.Path) {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	raw := r.URL.RawPath
	if raw == "" {
		raw = r.URL.Path
	}
	if clean, changed := cleanPath(raw); changed {
		redirect(w, r, clean)
		return
	}
	rt := s.find(r.URL.Path)
	if rt == nil {
		s.serveOther(w, r, raw)
		return
	}
	defer rt.measure(r.Method, time.Now())
	rw := newResponse(s, w, r, rt)
	if s.cfg.Tracer.On() {
		rw.begin()
	}
	if s.monitors.Load() == 0 && !s.log.IsDebug() {
		rw.serve()
	} else {
		began := time.Now()
		rw.serve()
		// The query string is left out: it may have a token.
		s.log.Debug("request finished", "method", r.Method, "path", r.URL.Path, "from", r.RemoteAddr, "latency", time.Since(began))
	}
	rw.free()
}

// serve runs the request through the checks every API path shares, and its handler.
func (w *response) serve() {
	if w.span != nil {
		defer w.finish()
	}
	s, r := w.s, w.r
	w.set("X-Consul-Default-Acl-Policy", s.defaultPolicy)
	w.set("Vary", varyEncoding)
	if s.cfg.TranslateWANAddrs {
		w.set("X-Consul-Translate-Addresses", valueTrue)
	}
	if err := w.params.parse(r.URL.RawQuery); err != nil {
		s.log.Warn("query string cannot be read", "path", r.URL.Path, "error", err)
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	if err := s.checkBlocked(r.URL.Path); err != nil {
		w.writeError(err)
		return
	}
	if r.Method == http.MethodOptions {
		w.Header()["Allow"] = w.route.allow
		w.setUint("Content-Length", 0)
		w.WriteHeader(http.StatusOK)
		return
	}
	if !w.route.knows(r.Method) {
		w.writeError(&methodError{r.Method, w.route.refusal})
		return
	}
	if err := s.checkWriter(r); err != nil {
		w.writeError(err)
		return
	}
	if r.ContentLength > 0 && r.Method == http.MethodGet {
		s.log.Warn("GET request has a body, which is ignored", "path", r.URL.Path)
	}
	v, err := w.route.handle(w, r)
	switch {
	case err != nil:
		w.writeError(err)
	case v != nil:
		w.writeValue(v)
	case !w.wrote:
		w.set("Content-Type", typeJSON)
		w.setUint("Content-Length", 0)
		w.WriteHeader(http.StatusOK)
	}
}

// A methodError refuses a method. A handler whose path has fewer methods than its route returns one of its own.
type methodError struct {
	method string
	allow  []string
}

func (e *methodError) Error() string { return "method " + e.method + " not allowed" }

// checkBlocked refuses paths that the configuration blocks.
func (s *Server) checkBlocked(p string) error {
	for _, prefix := range s.blocked {
		if strings.HasPrefix(p, prefix) {
			return errBlocked
		}
	}
	return nil
}

var (
	errBlocked    = wireerr.Errorf(http.StatusForbidden, "Endpoint is blocked by agent configuration")
	errRestricted = wireerr.Errorf(http.StatusForbidden, "Access is restricted")
)

// checkWriter refuses writes from addresses that may not write.
func (s *Server) checkWriter(r *http.Request) error {
	if len(s.cfg.AllowWriteFrom) == 0 || r.Method == http.MethodGet || r.Method == http.MethodHead {
		return nil
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return errRestricted
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return errRestricted
	}
	ip = ip.Unmap().WithZone("")
	for _, p := range s.cfg.AllowWriteFrom {
		if p.Contains(ip) {
			return nil
		}
	}
	return errRestricted
}

// serveOther answers paths that are no API endpoints.
func (s *Server) serveOther(w http.ResponseWriter, r *http.Request, raw string) {
	p := r.URL.Path
	switch {
	case !strings.HasSuffix(p, "/") && (s.prefixes[p+"/"] != nil || s.cfg.UIEnabled && p+"/" == s.cfg.UIPath):
		redirect(w, r, raw+"/")
	case p == "/" && s.cfg.UIEnabled:
		http.Redirect(w, r, s.cfg.UIPath, http.StatusMovedPermanently)
	case p == "/":
		w.Header()["Content-Type"] = typeText
		fmt.Fprint(w, "Sarn agent: the web console is off. Set ui_config.enabled = true in the agent's configuration to turn it on.\n")
	case s.cfg.UIEnabled && s.cfg.UI != nil && strings.HasPrefix(p, s.cfg.UIPath):
		s.cfg.UI.ServeHTTP(w, r)
	case s.cfg.Debug != nil && strings.HasPrefix(p, "/debug/pprof/"):
		s.serveDebug(w, r)
	case strings.Contains(p, "/v1/"):
		notFound(w, "Invalid URL path: not a recognized HTTP API endpoint\n")
	default:
		notFound(w, "Invalid URL path: if attempting to use the HTTP API, ensure the path starts with '/v1/'\n")
	}
}

func notFound(w http.ResponseWriter, text string) {
	w.Header()["Content-Type"] = typeText
	w.WriteHeader(http.StatusNotFound)
	fmt.Fprint(w, text)
}

// redirect sends the client to another escaped path with the same query string. Anything but GET and HEAD is told to
// repeat its method and body.
func redirect(w http.ResponseWriter, r *http.Request, escaped string) {
	code := http.StatusTemporaryRedirect
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		code = http.StatusMovedPermanently
	}
	if r.URL.RawQuery != "" {
		escaped += "?" + r.URL.RawQuery
	}
	http.Redirect(w, r, escaped, code)
}

// cleanPath returns the canonical form of an escaped path: no empty, "." or ".." elements. It keeps a trailing slash.
func cleanPath(p string) (clean string, changed bool) {
	if p != "" && p[0] == '/' && !strings.Contains(p, "//") && !strings.Contains(p, "/.") {
		return p, false
	}
	if p == "" || p[0] != '/' {
		p = "/" + p
		changed = true
	}
	clean = path.Clean(p)
	if p[len(p)-1] == '/' && clean != "/" {
		clean += "/"
	}
	return clean, changed || clean != p
}

// printable reports whether a decoded path has no control characters.
func printable(p string) bool {
	for i := range len(p) {
		c := p[i]
		if c >= utf8.RuneSelf {
			return strings.IndexFunc(p[i:], func(r rune) bool { return !unicode.IsPrint(r) }) < 0
		}
		if c < 0x20 || c == 0x7f {
			return false
		}
	}
	return true
}

// argument returns what follows the prefix of the request's route, up to its suffix, decoded.
func argument(w http.ResponseWriter, r *http.Request) string {
	rt, p := w.(*response).route, r.URL.Path
	return p[len(rt.prefix) : len(p)-len(rt.suffix)]
}
