package route

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp/syntax"
	"slices"
	"strings"
	"unsafe"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// A Table finds the route of a request. It is safe for concurrent use.
type Table struct {
	conf     *model.RouteConfig
	exact    map[string]*host
	suffixes wildcards
	prefixes wildcards
	any      *host // of "*"; nil: none

	requestEdits, responseEdits Edits
	filters                     perFilter
}

// wildcards are the domains with a star, by what is left without it.
type wildcards struct {
	lengths []int // of the keys, the longest first
	hosts   map[string]*host
}

func (w *wildcards) add(key string, h *host) {
	if w.hosts == nil {
		w.hosts = map[string]*host{}
	}
	w.hosts[key] = h
	if !slices.Contains(w.lengths, len(key)) {
		w.lengths = append(w.lengths, len(key))
		slices.SortFunc(w.lengths, func(a, b int) int { return b - a })
	}
}

// A host is a virtual host.
type host struct {
	conf   *model.VirtualHost
	routes []route
	// Routes are found by the beginning of their path: in tree, in folded by that in lower case, and those that
	// could have any path, or none, in always.
	tree, folded node
	always       []int32

	requestEdits, responseEdits Edits
	filters                     perFilter
}

type route struct {
	conf     *model.Route
	weighted []weighted
	weight   uint64 // of all
	mirrors  []model.Mirror
	retry    *model.RetryPolicy
	limit    int
	subset   []model.MetadataMatch

	requestEdits, responseEdits Edits
	filters                     perFilter
}

type weighted struct {
	conf   *model.WeightedRoute
	end    uint64 // of its share: the weights up to and with it
	subset []model.MetadataMatch

	requestEdits, responseEdits Edits
	filters                     perFilter
}

// Compile prepares a table. The function prepares what the table says about a filter; its result comes back from
// Match.FilterConfig.
func Compile(conf *model.RouteConfig, filterConfig func(filter string, c model.FilterConfig) (any, error)) (*Table, error) {
	c := compiler{filterConfig: filterConfig}
	t := &Table{conf: conf, exact: map[string]*host{}}
	t.requestEdits, t.responseEdits, t.filters = c.level(conf.RequestEdits, conf.ResponseEdits, conf.PerFilter)
	if c.err != nil {
		return nil, fmt.Errorf("route table %q: %w", conf.Name, c.err)
	}
	for i := range conf.VirtualHosts {
		h := c.host(conf, &conf.VirtualHosts[i])
		if c.err != nil {
			return nil, fmt.Errorf("route table %q: virtual host %q: %w", conf.Name, h.conf.Name, c.err)
		}
		for _, d := range h.conf.Domains {
			switch {
			case d == "*":
				t.any = h
			case strings.HasPrefix(d, "*"):
				t.suffixes.add(d[1:], h)
			case strings.HasSuffix(d, "*"):
				t.prefixes.add(d[:len(d)-1], h)
			default:
				t.exact[d] = h
			}
		}
	}
	return t, nil
}

// Config returns what the table was made of.
func (t *Table) Config() *model.RouteConfig { return t.conf }

// compiler keeps the first error.
type compiler struct {
	filterConfig func(string, model.FilterConfig) (any, error)
	err          error
}

func (c *compiler) level(request, response []model.HeaderEdit, filters map[string]model.PerFilter) (Edits, Edits, perFilter) {
	edits := func(list []model.HeaderEdit) Edits {
		ed, err := NewEdits(list)
		if err != nil && c.err == nil {
			c.err = err
		}
		return ed
	}
	req, resp := edits(request), edits(response)
	var out perFilter
	for _, name := range slices.Sorted(maps.Keys(filters)) {
		m := filters[name]
		f := &filterConfig{disabled: m.Disabled}
		if m.Config != nil {
			v, err := c.filterConfig(name, m.Config)
			if err != nil {
				if c.err == nil && !m.Optional {
					c.err = fmt.Errorf("filter %q: %w", name, err)
				}
				continue
			}
			f.value = v
		}
		if out == nil {
			out = perFilter{}
		}
		out[name] = f
	}
	return req, resp, out
}

func (c *compiler) host(t *model.RouteConfig, m *model.VirtualHost) *host {
	h := &host{conf: m, routes: make([]route, len(m.Routes))}
	h.requestEdits, h.responseEdits, h.filters = c.level(m.RequestEdits, m.ResponseEdits, m.PerFilter)
	for i := range m.Routes {
		if c.route(&h.routes[i], t, m, &m.Routes[i]); c.err != nil {
			c.err = fmt.Errorf("route %d %q: %w", i, m.Routes[i].Name, c.err)
			break
		}
		h.index(int32(i), &m.Routes[i].Match)
	}
	return h
}

func (c *compiler) route(r *route, t *model.RouteConfig, h *model.VirtualHost, m *model.Route) {
	r.conf = m
	r.requestEdits, r.responseEdits, r.filters = c.level(m.RequestEdits, m.ResponseEdits, m.PerFilter)
	if r.limit = m.BufferLimit; r.limit == 0 {
		r.limit = h.BufferLimit
	}
	f := m.Forward
	if f == nil {
		return
	}
	if r.retry = f.Retry; r.retry == nil {
		r.retry = h.Retry
	}
	switch {
	case len(f.Mirrors) > 0:
		r.mirrors = f.Mirrors
	case len(h.Mirrors) > 0:
		r.mirrors = h.Mirrors
	default:
		r.mirrors = t.Mirrors
	}
	r.subset = model.NewMetadataMatches(f.MetadataMatch)
	for i := range f.Weighted {
		w := weighted{conf: &f.Weighted[i], subset: r.subset}
		r.weight += uint64(w.conf.Weight)
		w.end = r.weight
		if own := w.conf.MetadataMatch; len(own) > 0 {
			both := map[string]any{}
			maps.Copy(both, f.MetadataMatch)
			maps.Copy(both, own)
			w.subset = model.NewMetadataMatches(both)
		}
		w.requestEdits, w.responseEdits, w.filters = c.level(w.conf.RequestEdits, w.conf.ResponseEdits, w.conf.PerFilter)
		r.weighted = append(r.weighted, w)
	}
}

// index makes the route be found.
func (h *host) index(i int32, m *model.RouteMatch) {
	tree := &h.tree
	if m.IgnoreCase {
		tree = &h.folded
	}
	switch m.Kind {
	case model.PathConnect:
		h.always = append(h.always, i)
	case model.PathExact:
		n := tree.at(m.Path)
		n.exact = append(n.exact, i)
	case model.PathRegex:
		n := h.tree.at(literalPrefix(m.Path))
		n.below = append(n.below, i)
	default:
		n := tree.at(m.Path)
		n.below = append(n.below, i)
	}
}

// literalPrefix returns text with which everything begins that a pattern matches as a whole; it may be empty.
func literalPrefix(pattern string) string {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return ""
	}
	for re = re.Simplify(); ; {
		switch re.Op {
		case syntax.OpCapture:
			re = re.Sub[0]
			continue
		case syntax.OpConcat:
			subs := re.Sub
			for len(subs) > 1 && subs[0].Op == syntax.OpBeginText {
				subs = subs[1:]
			}
			re = subs[0]
			continue
		case syntax.OpLiteral:
			if re.Flags&syntax.FoldCase == 0 {
				return string(re.Rune)
			}
		}
		return ""
	}
}

// A node of a tree stands for the paths that begin with the text on the way to it.
type node struct {
	text     string // from the parent to here
	first    string // of the children's texts the first bytes
	children []*node
	below    []int32 // routes for all paths that begin so, in order
	exact    []int32 // routes for this path alone, in order
}

// at returns the node of a path, which it makes if there is none.
func (n *node) at(path string) *node {
	for {
		if path == "" {
			return n
		}
		i := strings.IndexByte(n.first, path[0])
		if i < 0 {
			c := &node{text: path}
			n.first, n.children = n.first+path[:1], append(n.children, c)
			return c
		}
		c := n.children[i]
		k := 0
		for k < len(path) && k < len(c.text) && path[k] == c.text[k] {
			k++
		}
		if k < len(c.text) {
			n.children[i] = &node{text: c.text[:k], first: c.text[k : k+1], children: []*node{c}}
			c.text = c.text[k:]
			c = n.children[i]
		}
		n, path = c, path[k:]
	}
}

// A lists is the routes to look at, as lists of their numbers.
type lists struct {
	list [16][]int32
	n    int
	full bool // there were more lists than there is room
}

func (l *lists) add(list []int32) {
	switch {
	case len(list) == 0:
	case l.n == len(l.list):
		l.full = true
	default:
		l.list[l.n] = list
		l.n++
	}
}

// next takes the smallest number from the lists; -1 at their end.
func (l *lists) next() int32 {
	best, from := int32(-1), 0
	for i := range l.n {
		if len(l.list[i]) > 0 && (best < 0 || l.list[i][0] < best) {
			best, from = l.list[i][0], i
		}
	}
	if best >= 0 {
		l.list[from] = l.list[from][1:]
	}
	return best
}

// collect adds the routes for a path.
func (n *node) collect(path string, fold bool, l *lists) {
	for {
		l.add(n.below)
		if path == "" {
			l.add(n.exact)
			return
		}
		c := path[0]
		if fold {
			c = lower(c)
		}
		i := strings.IndexByte(n.first, c)
		if i < 0 {
			return
		}
		n = n.children[i]
		if len(path) < len(n.text) {
			return
		}
		if head := path[:len(n.text)]; head != n.text && !(fold && model.EqualFold(head, n.text)) {
			return
		}
		path = path[len(n.text):]
	}
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// Match finds the route of a request.
func (t *Table) Match(f *Facts) Match {
	h := t.find(f)
	if h == nil {
		return Match{table: t}
	}
	m := Match{table: t, host: h, VirtualHost: h.conf}
	m.levels[0], m.levels[1] = t.filters, h.filters
	if needsTLS(h.conf.RequireTLS, f) {
		m.TLSRedirect = true
		return m
	}
	path := t.path(f.Request.Path)
	var found values
	var l lists
	if path != "" {
		h.tree.collect(path, false, &l)
		if h.folded.children != nil || h.folded.below != nil {
			h.folded.collect(path, true, &l)
		}
	}
	l.add(h.always)
	if l.full {
		for i := range h.routes {
			if m.try(&h.routes[i], path, f, &found) {
				break
			}
		}
		return m
	}
	for i := l.next(); i >= 0; i = l.next() {
		if m.try(&h.routes[i], path, f, &found) {
			break
		}
	}
	return m
}

// path returns the part of a path that routes look at.
func (t *Table) path(p string) string {
	p = WithoutQuery(p)
	if t.conf.IgnorePathParameters {
		if i := strings.IndexByte(p, ';'); i >= 0 {
			p = p[:i]
		}
	}
	return p
}

func needsTLS(req model.TLSRequirement, f *Facts) bool {
	if req == model.TLSNotRequired || req == model.TLSExternalOnly && f.Internal {
		return false
	}
	proto := f.Request.Header.Get("x-forwarded-proto")
	if proto == "" {
		proto = f.Request.Scheme
	}
	return proto != "https"
}

// maxHost is the length of the longest host that is made lower case without memory of its own.
const maxHost = 255

// find returns the virtual host of a request.
func (t *Table) find(f *Facts) *host {
	name := f.Request.Authority
	if t.conf.HostHeader != "" {
		name = f.Request.Header.Get(t.conf.HostHeader)
	}
	if t.conf.IgnorePort {
		name = withoutPort(name)
	}
	for i := range len(name) {
		if c := name[i]; c >= 'A' && c <= 'Z' {
			if len(name) > maxHost {
				return t.findLower(model.LowerASCII(name))
			}
			var buf [maxHost]byte
			for j := range len(name) {
				buf[j] = lower(name[j])
			}
			return t.findLower(unsafe.String(&buf[0], len(name))) // which does not keep it
		}
	}
	return t.findLower(name)
}

func (t *Table) findLower(name string) *host {
	if h := t.exact[name]; h != nil {
		return h
	}
	for _, n := range t.suffixes.lengths {
		// A star stands for at least one byte.
		if n < len(name) {
			if h := t.suffixes.hosts[name[len(name)-n:]]; h != nil {
				return h
			}
		}
	}
	for _, n := range t.prefixes.lengths {
		if n < len(name) {
			if h := t.prefixes.hosts[name[:n]]; h != nil {
				return h
			}
		}
	}
	return t.any
}

// withoutPort returns an authority up to its port.
func withoutPort(authority string) string {
	if i := portStart(authority); i >= 0 {
		return authority[:i]
	}
	return authority
}

// portStart returns where the colon before the port stands; -1 if there is no port.
func portStart(authority string) int {
	i := strings.LastIndexByte(authority, ':')
	if i >= 0 && strings.LastIndexByte(authority, ']') > i {
		return -1
	}
	return i
}

// try makes the match that of the route if it fits.
func (m *Match) try(r *route, path string, f *Facts, found *values) bool {
	if !matches(&r.conf.Match, path, f, found) {
		return false
	}
	m.route, m.Route = r, r.conf
	m.levels[2] = r.filters
	fw := r.conf.Forward
	if fw == nil {
		return true
	}
	switch {
	case len(r.weighted) > 0:
		w := r.draw(f)
		m.weighted, m.Weighted, m.levels[3] = w, w.conf, w.filters
		m.Cluster = w.conf.Cluster
		if w.conf.ClusterHeader != "" {
			m.Cluster, _ = First(w.conf.ClusterHeader, f.Request)
		}
	case fw.ClusterHeader != "":
		m.Cluster, _ = First(fw.ClusterHeader, f.Request)
	default:
		m.Cluster = fw.Cluster
	}
	return true
}

// matches reports whether a request fits. Path is that of the request as far as routes look at it.
func matches(m *model.RouteMatch, path string, f *Facts, found *values) bool {
	r := f.Request
	switch m.Kind {
	case model.PathConnect:
		if r.Method != "CONNECT" {
			return false
		}
	default:
		if path == "" || !matchesPath(m, path) {
			return false
		}
	}
	if m.Fraction != nil && !m.Fraction.Hit(f.Random) || m.GRPC && !IsGRPC(&r.Header) {
		return false
	}
	if !found.headers(m.Headers, r) {
		return false
	}
	for i := range m.Query {
		q := &m.Query[i]
		v, ok := query(r.Path, q.Name)
		if q.Absent {
			if ok {
				return false
			}
		} else if !ok || !q.Present && !q.Match.Match(v) {
			return false
		}
	}
	for i := range m.Cookies {
		c := &m.Cookies[i]
		v, ok := cookie(&r.Header, c.Name)
		if (ok && c.Match.Match(v)) == c.Invert {
			return false
		}
	}
	if m.TLSPresented != nil && *m.TLSPresented != f.TLSPresented || m.TLSValidated != nil && *m.TLSValidated != f.TLSValidated {
		return false
	}
	for i := range m.Metadata {
		if !m.Metadata[i].Match(f.Metadata) {
			return false
		}
	}
	for i := range m.FilterState {
		if !matchesState(&m.FilterState[i], f.FilterState) {
			return false
		}
	}
	return true
}

func matchesPath(m *model.RouteMatch, path string) bool {
	head := path
	switch m.Kind {
	case model.PathRegex:
		return m.Regex.MatchString(path)
	case model.PathPrefix, model.PathSeparatedPrefix:
		if len(path) < len(m.Path) {
			return false
		}
		head = path[:len(m.Path)]
	}
	if head != m.Path && !(m.IgnoreCase && model.EqualFold(head, m.Path)) {
		return false
	}
	return m.Kind != model.PathSeparatedPrefix || len(path) == len(m.Path) || path[len(m.Path)] == '/'
}

func matchesState(m *model.FilterStateMatcher, state map[string]string) bool {
	v, ok := state[m.Key]
	if !ok {
		return false
	}
	if m.Address == nil {
		return m.Match.Match(v)
	}
	ip, err := netip.ParseAddr(v)
	if err != nil {
		ap, err := netip.ParseAddrPort(v)
		if err != nil {
			return false
		}
		ip = ap.Addr()
	}
	return slices.ContainsFunc(m.Address, func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) })
}

// draw returns the cluster that gets the request.
func (r *route) draw(f *Facts) *weighted {
	n := f.Random
	switch fw := r.conf.Forward; {
	case fw.WeightByHash:
		if h, ok, _ := hash(fw.Hash, f.Request, f.SourceIP, func(key string) string { return f.FilterState[key] }, nil); ok {
			n = h
		}
	case fw.WeightHeader != "":
		if v, ok := numberIn(f.Request, fw.WeightHeader); ok {
			n = v
		}
	}
	n %= r.weight
	for i := range r.weighted {
		if n < r.weighted[i].end {
			return &r.weighted[i]
		}
	}
	return &r.weighted[len(r.weighted)-1] // not reached: the last share ends at r.weight
}
