package httpapi

import (
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// params are the parameters of a query string, parsed once per request, in order.
type params struct{ list []param }

type param struct{ name, value string }

// errSemicolon reports the old separator, which net/url refuses too.
var errSemicolon = errors.New("invalid semicolon separator in query")

// parse reads a query string by the rules of url.ParseQuery, except that any fault makes the whole unreadable.
func (p *params) parse(raw string) error {
	for raw != "" {
		var pair string
		pair, raw, _ = strings.Cut(raw, "&")
		if pair == "" {
			continue
		}
		if strings.IndexByte(pair, ';') >= 0 {
			return errSemicolon
		}
		name, value, _ := strings.Cut(pair, "=")
		var err error
		if name, err = unescape(name); err != nil {
			return err
		}
		if value, err = unescape(value); err != nil {
			return err
		}
		p.list = append(p.list, param{name, value})
	}
	return nil
}

func unescape(s string) (string, error) {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s, nil
	}
	return url.QueryUnescape(s)
}

// lookup returns the first value of a parameter.
func (p *params) lookup(name string) (string, bool) {
	for i := range p.list {
		if p.list[i].name == name {
			return p.list[i].value, true
		}
	}
	return "", false
}

func (p *params) get(name string) string { v, _ := p.lookup(name); return v }
func (p *params) has(name string) bool   { _, ok := p.lookup(name); return ok }

// all returns every value of a parameter, nil if there is none.
func (p *params) all(name string) []string {
	var out []string
	for i := range p.list {
		if p.list[i].name == name {
			out = append(out, p.list[i].value)
		}
	}
	return out
}

// encode returns the parameters as a query string sorted by name.
func (p *params) encode() string {
	v := url.Values{}
	for _, kv := range p.list {
		v.Add(kv.name, kv.value)
	}
	return v.Encode()
}

// query returns the parsed query string of the request w answers.
func query(w http.ResponseWriter) *params { return &w.(*response).params }

// Refusals of parameters (spec/registry.md section 1.4).
var (
	errIndex         = wireerr.BadRequest("Invalid index")
	errWait          = wireerr.BadRequest("Invalid wait time")
	errCacheControl  = wireerr.BadRequest("Invalid Cache-Control header.")
	errStaleConflict = wireerr.BadRequest("Cannot specify ?stale with ?consistent, conflicting semantics.")
	errCacheConflict = wireerr.BadRequest("Cannot specify ?cached with ?consistent, conflicting semantics.")
)

// cacheControl is what a request said about the agent's cache.
type cacheControl struct {
	wanted       bool          // ?cached, and the cache is on
	revalidate   bool          // must-revalidate or max-age=0
	maxAge       time.Duration // 0 for no bound
	staleIfError time.Duration // 0 for never
}

// parseOptions reads the parameters every query endpoint shares: datacenter, token, consistency, blocking and caching.
// What only some support is read by parseSelection and by the endpoint itself.
func (s *Server) parseOptions(w http.ResponseWriter, r *http.Request) (read.Options, error) {
	rw := w.(*response)
	o := read.Options{Target: s.target(w, r)}
	if err := rw.parseBlocking(&o); err != nil {
		return o, err
	}
	if err := rw.parseConsistency(&o); err != nil {
		return o, err
	}
	rw.mode = o.Mode
	return o, nil
}

// target returns where a request goes and the token it is made with.
func (s *Server) target(w http.ResponseWriter, r *http.Request) read.Target {
	return read.Target{Datacenter: s.datacenter(w), Token: s.token(w, r)}
}

// datacenter returns the datacenter a request asks for, empty for that of the agent.
func (s *Server) datacenter(w http.ResponseWriter) string {
	q := query(w)
	if len(q.list) == 0 {
		return ""
	}
	if dc := q.get("datacenter"); dc != "" {
		return dc
	}
	return q.get("dc")
}

// remote reports whether a datacenter asked for is another one than that of the agent.
func (s *Server) remote(dc string) bool { return dc != "" && dc != s.cfg.Datacenter }

// token returns the secret a request is made with: its own, or the agent's default token.
func (s *Server) token(w http.ResponseWriter, r *http.Request) string {
	token := requestToken(query(w), r.Header)
	if token == "" && s.cfg.DefaultToken != nil {
		token = s.cfg.DefaultToken()
	}
	w.(*response).hasToken = token != "" && token != acl.AnonymousSecret
	return token
}

// requestToken returns the secret a request brings itself.
func requestToken(q *params, h http.Header) string {
	if len(q.list) != 0 {
		if t := q.get("token"); t != "" {
			return t
		}
	}
	if v := h["X-Consul-Token"]; len(v) != 0 && v[0] != "" {
		return v[0]
	}
	if v := h["Authorization"]; len(v) != 0 {
		scheme, rest, ok := strings.Cut(strings.TrimLeft(v[0], " \t"), " ")
		if ok && strings.EqualFold(scheme, "Bearer") {
			if words := strings.Fields(rest); len(words) != 0 {
				return words[0]
			}
		}
	}
	return ""
}

// parseBlocking reads index and wait.
func (w *response) parseBlocking(o *read.Options) error {
	if len(w.params.list) == 0 {
		return nil
	}
	if v := w.params.get("wait"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			return errWait
		}
		o.MaxWait = max(d, 0)
	}
	if v := w.params.get("index"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return errIndex
		}
		o.MinIndex = n
	}
	return nil
}

// parseConsistency reads the consistency mode and what is said about caching, which depend on each other.
func (w *response) parseConsistency(o *read.Options) error {
	if v := w.r.Header["Cache-Control"]; len(v) != 0 {
		if err := w.cache.parse(v); err != nil {
			return err
		}
	}
	stale, consistent, explicit := false, false, false
	for _, p := range w.params.list {
		switch p.name {
		case "stale":
			stale, explicit = true, true
		case "consistent":
			consistent, explicit = true, true
		case "leader":
			explicit = true
		case "cached":
			if w.s.cfg.Cache != nil {
				w.cache.wanted, explicit = true, true
			}
		}
	}
	if v := w.params.get("max_stale"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			return wireerr.BadRequest("Invalid max_stale value %q", v)
		}
		explicit = true
		if d > 0 {
			o.MaxStale, stale = d, true
		}
	}
	if !explicit && w.s.cfg.DiscoveryMaxStale > 0 && discovery(w.r.URL.Path) {
		o.MaxStale, stale = w.s.cfg.DiscoveryMaxStale, true
	}
	switch {
	case stale && consistent:
		return errStaleConflict
	case w.cache.wanted && consistent:
		return errCacheConflict
	case consistent:
		o.Mode = read.Consistent
	case stale:
		o.Mode = read.Stale
	}
	return nil
}

// discovery reports whether discovery_max_stale applies to a path.
func discovery(p string) bool {
	return strings.HasPrefix(p, "/v1/catalog") || strings.HasPrefix(p, "/v1/health")
}

func (c *cacheControl) parse(values []string) error {
	for _, v := range values {
		for part := range strings.SplitSeq(v, ",") {
			name, arg, _ := strings.Cut(strings.ToLower(strings.TrimSpace(part)), "=")
			var into *time.Duration
			switch strings.TrimSpace(name) {
			case "must-revalidate":
				c.revalidate = true
				continue
			case "max-age":
				into = &c.maxAge
			case "stale-if-error":
				into = &c.staleIfError
			default:
				continue
			}
			n, err := strconv.ParseInt(strings.TrimSpace(arg), 10, 32)
			if err != nil || n < 0 {
				return errCacheControl
			}
			*into = time.Duration(n) * time.Second
			if into == &c.maxAge && n == 0 {
				c.revalidate = true
			}
		}
	}
	return nil
}

// parseSelection reads filter, near and node-meta into the options of an endpoint that supports them.
func (s *Server) parseSelection(w http.ResponseWriter, o *read.Options) {
	q := query(w)
	if len(q.list) == 0 {
		return
	}
	o.Filter = q.get("filter")
	switch near := q.get("near"); {
	case near == "" || s.cfg.DisableCoordinates:
	case near == "_agent":
		if !s.remote(o.Datacenter) {
			o.Near = s.cfg.NodeName
		}
	default:
		o.Near = near
	}
	for _, p := range q.list {
		if p.name == "node-meta" {
			k, v, _ := strings.Cut(p.value, ":")
			if o.NodeMeta == nil {
				o.NodeMeta = map[string]string{}
			}
			o.NodeMeta[k] = v
		}
	}
}

// checkTenancy refuses the parameters of namespaces and partitions, which this product does not have.
func (s *Server) checkTenancy(w http.ResponseWriter, r *http.Request) error {
	if query(w).get("ns") != "" {
		return wireerr.BadRequest(`Invalid query parameter: "ns" - namespaces are not supported`)
	}
	if v := r.Header["X-Consul-Namespace"]; len(v) != 0 && v[0] != "" {
		return wireerr.BadRequest(`Invalid header: "X-Consul-Namespace" - namespaces are not supported`)
	}
	return s.checkPartition(w, r)
}

// checkPartition is checkTenancy for endpoints about nodes, which have no namespace.
func (s *Server) checkPartition(w http.ResponseWriter, r *http.Request) error {
	if query(w).get("partition") != "" {
		return wireerr.BadRequest(`Invalid query parameter: "partition" - partitions are not supported`)
	}
	if v := r.Header["X-Consul-Partition"]; len(v) != 0 && v[0] != "" {
		return wireerr.BadRequest(`Invalid header: "X-Consul-Partition" - partitions are not supported`)
	}
	return nil
}

// parseQuery is what nearly every query endpoint begins with: checkTenancy, then parseOptions.
func (s *Server) parseQuery(w http.ResponseWriter, r *http.Request) (read.Options, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return read.Options{}, err
	}
	return s.parseOptions(w, r)
}
