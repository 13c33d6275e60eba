// Package jwtauthn checks the JSON Web Tokens that requests carry, and tells others what is in them.
package jwtauthn

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter, Route: newRoute}

const name = "envoy.filters.http.jwt_authn"

// Config says which tokens which requests need.
type Config struct {
	Providers map[string]*Provider
	Rules     []Rule // the first whose match fits counts; a request without one needs nothing
	// State names filter state whose value picks a requirement, for requests that no rule fits.
	State           string
	ByState         map[string]*Requirement
	Named           map[string]*Requirement // for routes
	BypassPreflight bool                    // of CORS
	Strip           bool                    // refusals do not say why
	StatPrefix      string
}

// FilterType returns "envoy.filters.http.jwt_authn".
func (*Config) FilterType() string { return name }

// A Rule says what the requests that it matches need.
type Rule struct {
	Match       model.RouteMatch
	Requirement *Requirement // nil needs nothing
}

// A Requirement says which tokens a request needs.
type Requirement struct {
	Kind      RequirementKind
	Provider  string         // OfProvider
	Audiences []string       // OfProvider: instead of those of the provider; nil takes those
	Of        []*Requirement // Any, All
}

// A RequirementKind is a form of requirement.
type RequirementKind uint8

// The forms.
const (
	OfProvider           RequirementKind = iota // a valid token of the provider
	Any                                         // one of the requirements
	All                                         // all of them
	AllowMissing                                // no token, or only valid ones
	AllowMissingOrFailed                        // whatever; valid tokens are told about
)

// A Provider is who issues tokens.
type Provider struct {
	Issuer            string // empty does not look at it
	Audiences         []string
	Subject           *model.StringMatch // nil does not look at it
	RequireExpiration bool
	MaxLifetime       time.Duration // 0 any
	Skew              time.Duration // by which clocks may differ

	Keys   *Keys   // or
	Remote *Remote // exactly one

	Headers         []HeaderPlace
	Params, Cookies []string // without any place: "Authorization: Bearer" and the parameter "access_token"

	Forward         bool   // the host gets the token, too
	PayloadHeader   string // gets the payload as it stands in the token; empty none
	PadPayload      bool   // with "="
	PayloadMetadata string // key in dynamic metadata; empty none
	SplitClaims     []string
	HeaderMetadata  string
	ClaimHeaders    []ClaimHeader
	Reroute         bool
	CacheSize       int // tokens whose signature is remembered; 0 takes a default
}

// A HeaderPlace is a header that holds tokens after a prefix.
type HeaderPlace struct{ Name, Prefix string }

// A ClaimHeader tells a claim to the host.
type ClaimHeader struct {
	Name  string // of the header
	Claim []string
}

// A RouteConfig is what a route says.
type RouteConfig struct {
	Disabled    bool
	Requirement string // one of Config.Named
}

// FilterType returns "envoy.filters.http.jwt_authn".
func (*RouteConfig) FilterType() string { return name }

func newRoute(conf model.FilterConfig, _ *filter.Env) (any, error) {
	return conf.(*RouteConfig), nil
}

type jwtFilter struct {
	name      string
	conf      *Config
	providers []*provider // by name
	byName    map[string]*provider
	table     *route.Table // its routes have the indexes of rules as names
	owned     []string     // headers that only the filter may set

	allowed, denied, preflight, hit, miss *stats.Counter
}

type provider struct {
	*Provider
	name   string
	remote *remote
	cache  verified
}

func newFilter(filterName string, conf model.FilterConfig, env *filter.Env) (filter.Filter, error) {
	c := conf.(*Config)
	base := "jwt_authn."
	if c.StatPrefix != "" {
		base += strings.TrimSuffix(c.StatPrefix, ".") + "."
	}
	f := &jwtFilter{
		name: filterName, conf: c, byName: map[string]*provider{},
		allowed: env.Stats.Counter(base + "allowed"), denied: env.Stats.Counter(base + "denied"),
		preflight: env.Stats.Counter(base + "cors_preflight_bypassed"),
		hit:       env.Stats.Counter(base + "jwt_cache_hit"), miss: env.Stats.Counter(base + "jwt_cache_miss"),
	}
	for _, n := range slices.Sorted(maps.Keys(c.Providers)) {
		p := &provider{Provider: c.Providers[n], name: n, cache: verified{size: cmp.Or(c.Providers[n].CacheSize, defaultCache)}}
		if p.Remote != nil {
			p.remote = &remote{conf: p.Remote, env: env, good: env.Stats.Counter(base + "jwks_fetch_success"), wrong: env.Stats.Counter(base + "jwks_fetch_failed")}
			if p.Remote.Async {
				env.Go(p.remote.run)
			}
		}
		if p.PayloadHeader != "" {
			f.owned = append(f.owned, p.PayloadHeader)
		}
		for _, h := range p.ClaimHeaders {
			f.owned = append(f.owned, h.Name)
		}
		f.providers = append(f.providers, p)
		f.byName[n] = p
	}
	host := model.VirtualHost{Name: "rules", Domains: []string{"*"}}
	for i, r := range c.Rules {
		host.Routes = append(host.Routes, model.Route{Name: strconv.Itoa(i), Match: r.Match, NonForwarding: true})
		if err := f.check(r.Requirement, 0); err != nil {
			return nil, err
		}
	}
	for _, named := range []map[string]*Requirement{c.Named, c.ByState} {
		for _, r := range named {
			if err := f.check(r, 0); err != nil {
				return nil, err
			}
		}
	}
	var err error
	f.table, err = route.Compile(&model.RouteConfig{VirtualHosts: []model.VirtualHost{host}}, func(string, model.FilterConfig) (any, error) { return nil, nil })
	return f, err
}

// maxNesting bounds how deep requirements nest.
const maxNesting = 32

func (f *jwtFilter) check(r *Requirement, depth int) error {
	if r == nil {
		return nil
	}
	if depth > maxNesting {
		return fmt.Errorf("requirements nest too deep")
	}
	if r.Kind == OfProvider && f.byName[r.Provider] == nil {
		return fmt.Errorf("required provider %q is not configured", r.Provider)
	}
	for _, of := range r.Of {
		if err := f.check(of, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (f *jwtFilter) Request(x *filter.Exchange) *filter.Reply {
	h := &x.Request.Header
	for _, n := range f.owned {
		h.Del(n)
	}
	if f.conf.BypassPreflight && x.Request.Method == "OPTIONS" && h.Get("origin") != "" && h.Get("access-control-request-method") != "" {
		f.preflight.Inc()
		return nil
	}
	need, reply := f.requirement(x)
	if reply != nil {
		f.denied.Inc()
		return reply
	}
	if need != nil {
		c := checker{f: f, x: x}
		if s := c.check(need, nil); s != ok {
			f.denied.Inc()
			return f.deny(x, s)
		}
		if c.reroute {
			x.Reroute()
		}
	}
	f.allowed.Inc()
	return nil
}

// requirement returns what a request needs; nil if nothing.
func (f *jwtFilter) requirement(x *filter.Exchange) (*Requirement, *filter.Reply) {
	if r, isRoute := x.RouteConfig(f.name).(*RouteConfig); isRoute {
		if r.Disabled {
			return nil, nil
		}
		need, there := f.conf.Named[r.Requirement]
		if !there {
			body := fmt.Sprintf("Wrong requirement_name: %s. It should be one of [%s]", r.Requirement, strings.Join(slices.Sorted(maps.Keys(f.conf.Named)), ","))
			return nil, filter.Deny(403, body, details(body), 0)
		}
		return need, nil
	}
	facts := route.Facts{Request: x.Request, Random: x.Random, Metadata: x.Entry.HTTP.Metadata}
	if c := x.Conn.TLS; c != nil {
		facts.TLSPresented = len(c.PeerCertificates) > 0
		facts.TLSValidated = x.Conn.Peer != nil
	}
	if m := f.table.Match(&facts); m.Route != nil {
		i, _ := strconv.Atoi(m.Route.Name)
		return f.conf.Rules[i].Requirement, nil
	}
	if f.conf.State != "" {
		return f.conf.ByState[x.Entry.HTTP.FilterState[f.conf.State]], nil
	}
	return nil, nil
}

func details(s string) string {
	return "jwt_authn_access_denied{" + strings.Join(strings.Fields(s), "_") + "}"
}

// maxRealm bounds the path in the header "www-authenticate".
const maxRealm = 256

func (f *jwtFilter) deny(x *filter.Exchange, s status) *filter.Reply {
	code, body := 401, string(s)
	if s == wrongAudience {
		code = 403
	}
	r := filter.Deny(code, body, details(body), 0)
	r.Rule = name
	if f.conf.Strip {
		r.Body = ""
		return r
	}
	// Not the query, which can hold a token.
	path := x.Path()
	path = strings.ReplaceAll(path[:min(len(path), maxRealm)], `"`, "%22")
	scheme := cmp.Or(x.Request.Header.Get("x-forwarded-proto"), x.Request.Scheme, "http")
	v := `Bearer realm="` + scheme + "://" + x.Request.Authority + path + `"`
	if s != missing {
		v += `, error="invalid_token"`
	}
	r.Header = append(r.Header, field("www-authenticate", v))
	return r
}

// A checker checks the tokens of one request.
type checker struct {
	f       *jwtFilter
	x       *filter.Exchange
	reroute bool
}

// check checks a requirement. Siblings are those that it is one alternative of.
func (c *checker) check(r *Requirement, siblings []*provider) status {
	switch r.Kind {
	case OfProvider:
		p := c.f.byName[r.Provider]
		audiences := p.Audiences
		if r.Audiences != nil {
			audiences = r.Audiences
		}
		return c.tokens([]*provider{p}, p, audiences, false)
	case All:
		for _, of := range r.Of {
			if s := c.check(of, nil); s != ok {
				return s
			}
		}
		return ok
	case Any:
		return c.any(r)
	case AllowMissing:
		if s := c.tokens(c.or(siblings), nil, nil, false); s != missing {
			return s
		}
		return ok
	case AllowMissingOrFailed:
		c.tokens(c.or(siblings), nil, nil, true)
		return ok
	}
	return notVerified
}

func (c *checker) or(siblings []*provider) []*provider {
	if len(siblings) > 0 {
		return siblings
	}
	return c.f.providers
}

// any tries alternatives in their order, what allows a missing token last. If none is met, it tells what is wrong with
// a token rather than that there is none.
func (c *checker) any(r *Requirement) status {
	result := missing
	var bypass *Requirement
	var siblings []*provider
	for _, of := range r.Of {
		switch of.Kind {
		case AllowMissingOrFailed:
			bypass = of
			continue
		case AllowMissing:
			if bypass == nil {
				bypass = of
			}
			continue
		}
		siblings = c.f.collect(of, siblings)
		s := c.check(of, nil)
		if s == ok {
			return ok
		}
		if result == missing || result == unknownIssuer && s != missing {
			result = s
		}
	}
	if bypass != nil {
		s := c.check(bypass, siblings)
		if s == ok || s != missing {
			return s
		}
	}
	return result
}

// collect adds the providers that a requirement names.
func (f *jwtFilter) collect(r *Requirement, list []*provider) []*provider {
	if r.Kind == OfProvider {
		if p := f.byName[r.Provider]; !slices.Contains(list, p) {
			list = append(list, p)
		}
	}
	for _, of := range r.Of {
		list = f.collect(of, list)
	}
	return list
}

// tokens checks all tokens at the places of the providers. They must be of the provider, if it is not nil, and else of
// the one that has their issuer. All must be good, unless bad ones may be passed over.
func (c *checker) tokens(places []*provider, of *provider, audiences []string, lenient bool) status {
	found := extract(c.x, places)
	if len(found) == 0 {
		return missing
	}
	for i := range found {
		if s := c.token(&found[i], of, audiences); s != ok && !lenient {
			return s
		}
	}
	return ok
}

func (c *checker) token(e *extracted, of *provider, audiences []string) status {
	// The signature comes last but is remembered; what else is asked of a token is asked each time.
	hash := sha256.Sum256(unsafe.Slice(unsafe.StringData(e.value), len(e.value)))
	p, t := of, (*token)(nil)
	if p != nil {
		t = p.cache.get(hash, p.known())
	} else {
		for _, q := range e.of {
			if t = q.cache.get(hash, q.known()); t != nil && (q.Issuer == "" || q.Issuer == t.iss) {
				break
			}
			t = nil
		}
	}
	cached := t != nil
	if !cached {
		var s status
		if t, s = parse(strings.Clone(e.value)); s != ok {
			return s
		}
	}
	if p == nil {
		if p = issuer(e.of, t.iss); p == nil {
			return unknownIssuer
		}
		audiences = p.Audiences
	}
	if p.Issuer != "" && p.Issuer != t.iss {
		return unknownIssuer
	}
	now := time.Now()
	if s := t.checkTime(now, p.Skew); s != ok {
		return s
	}
	if s := p.claims(t, now); s != ok {
		return s
	}
	if !t.allowed(audiences) {
		return wrongAudience
	}
	keys := p.Keys
	if p.remote != nil {
		if keys = p.remote.get(c.x.Context()); keys == nil {
			return fetchFailed
		}
	}
	if cached && p.cache.get(hash, keys) == t {
		c.f.hit.Inc()
	} else {
		c.f.miss.Inc()
		if s := keys.verify(t); s != ok {
			return s
		}
		p.cache.put(hash, keys, t)
	}
	c.tell(p, t, e)
	return ok
}

// known returns the keys that are there without waiting.
func (p *provider) known() *Keys {
	if p.remote == nil {
		return p.Keys
	}
	if f := p.remote.current.Load(); f != nil {
		return f.keys
	}
	return nil
}

func issuer(list []*provider, iss string) *provider {
	var open *provider
	for _, p := range list {
		switch {
		case p.Issuer == "" && open == nil:
			open = p
		case p.Issuer != "" && p.Issuer == iss:
			return p
		}
	}
	return open
}

// claims checks what a provider asks for besides issuer, audience and time.
func (p *provider) claims(t *token, now time.Time) status {
	if p.Subject != nil && !p.Subject.Match(t.sub) {
		return notVerified
	}
	_, expires := t.claims["exp"]
	if p.RequireExpiration && !expires {
		return notVerified
	}
	if p.MaxLifetime > 0 {
		from := t.iat
		if from == 0 {
			from = float64(now.Unix())
		}
		if !expires || t.exp-from > p.MaxLifetime.Seconds() {
			return notVerified
		}
	}
	return ok
}

// tell passes on what a good token says.
func (c *checker) tell(p *provider, t *token, e *extracted) {
	h := &c.x.Request.Header
	if p.PayloadHeader != "" {
		v := t.payload
		if n := len(v) % 4; p.PadPayload && n > 0 {
			v += "==="[:4-n]
		}
		h.Add(p.PayloadHeader, v)
	}
	if p.PayloadMetadata != "" {
		c.x.SetMetadata(name, p.PayloadMetadata, p.normal(t.claims))
	}
	if p.HeaderMetadata != "" {
		c.x.SetMetadata(name, p.HeaderMetadata, t.header)
	}
	for _, ch := range p.ClaimHeaders {
		if v, there := claimText(t.claims, ch.Claim); there {
			h.Add(ch.Name, v)
		}
	}
	if !p.Forward {
		e.remove(c.x)
	}
	c.reroute = c.reroute || p.Reroute && (p.PayloadMetadata != "" || len(p.ClaimHeaders) > 0)
}

// normal returns claims with those made lists that are words between spaces.
func (p *provider) normal(claims map[string]any) map[string]any {
	if len(p.SplitClaims) == 0 {
		return claims
	}
	out := maps.Clone(claims)
	for _, n := range p.SplitClaims {
		if s, isText := out[n].(string); isText {
			words := []any{}
			for _, w := range strings.Fields(s) {
				words = append(words, w)
			}
			out[n] = words
		}
	}
	return out
}

// claimText returns a claim as the value of a header: numbers and booleans as they are written, lists and objects as
// JSON in base64.
func claimText(claims map[string]any, path []string) (string, bool) {
	var v any = claims
	for _, key := range path {
		m, isMap := v.(map[string]any)
		if v = m[key]; !isMap || v == nil {
			return "", false
		}
	}
	var s string
	switch v := v.(type) {
	case string:
		s = v
	case bool:
		s = strconv.FormatBool(v)
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<63 {
			s = strconv.FormatInt(int64(v), 10)
		} else {
			s = strconv.FormatFloat(v, 'f', -1, 64)
		}
	default:
		b, err := json.Marshal(v)
		if err != nil {
			return "", false
		}
		s = base64.StdEncoding.EncodeToString(b)
	}
	// A claim must not become another header.
	if strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return "", false
	}
	return s, true
}
