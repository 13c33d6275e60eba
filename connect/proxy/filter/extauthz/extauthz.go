// Package extauthz asks a service whether a request may pass. Without an answer it may not, unless that is configured
// otherwise.
package extauthz

import (
	"context"
	"encoding/pem"
	"errors"
	"maps"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/held"
	"github.com/sarnmesh/sarn/connect/proxy/filter/unary"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter, Route: newRoute}

const name = "envoy.filters.http.ext_authz"

// DefaultTimeout is how long a service has to answer.
const DefaultTimeout = 200 * time.Millisecond

// Config says who is asked about which requests.
type Config struct {
	GRPC *unary.Service // one of the two
	HTTP *HTTPService

	AllowOnError       bool // requests pass if the service fails
	AllowOnErrorHeader bool // and say so in x-envoy-auth-failure-mode-allowed
	StatusOnError      int  // 0 is 403
	Body               *Body
	Reroute            bool // find the route anew if the service changed the request

	Metadata, RouteMetadata []string // namespaces that the service is told
	Enabled                 *model.Fraction
	EnabledMetadata         *model.MetadataMatcher
	DenyDisabled            bool // requests that are not asked about are refused
	PeerCertificate         bool // the service is told the certificate of the caller
	TLSSession              bool // and the server name that it asked for
	StatPrefix              string
	Allowed, Disallowed     []model.StringMatch // headers that the service is told, in lower case
	RawHeaders              bool                // as a list rather than a map
	IgnoreMetadata          bool                // that the service answers
	MaxDeniedBody           int                 // bytes; 0 any
}

// Body says that the service is told the body.
type Body struct {
	Max     int  // bytes
	Partial bool // only the beginning of a larger one; else it is refused
	Raw     bool // as bytes
}

// An HTTPService answers by its status.
type HTTPService struct {
	Cluster      string
	Timeout      time.Duration
	PathPrefix   string
	PathOverride string
	Add          []message.Field // headers that the service gets

	// Headers of the answer, by their names in lower case: those that replace headers of the request, those that are
	// added to them, those that the client gets with a refusal (nil: all) or an acceptance, those that become
	// dynamic metadata.
	Upstream, UpstreamAppend []model.StringMatch
	Client, ClientOnSuccess  []model.StringMatch
	Metadata                 []model.StringMatch
}

// FilterType returns "envoy.filters.http.ext_authz".
func (*Config) FilterType() string { return name }

// A RouteConfig is what a virtual host or a route says.
type RouteConfig struct {
	Disabled   bool
	Extensions map[string]string // told to the service; those of a route are added to those of its virtual host
	NoBody     bool
	Body       *Body // nil takes that of the filter
}

// FilterType returns "envoy.filters.http.ext_authz".
func (*RouteConfig) FilterType() string { return name }

func newRoute(conf model.FilterConfig, _ *filter.Env) (any, error) { return conf.(*RouteConfig), nil }

type authzFilter struct {
	name string
	env  *filter.Env
	conf *Config

	ok, denied, failed, disabled, failureAllowed, invalid, ignoredMetadata *stats.Counter

	clusters *filter.ClusterStats[clusterCounters]
}

func newFilter(filterName string, conf model.FilterConfig, env *filter.Env) (filter.Filter, error) {
	c := conf.(*Config)
	base := "ext_authz."
	if c.StatPrefix != "" {
		base += strings.TrimSuffix(c.StatPrefix, ".") + "."
	}
	s := func(n string) *stats.Counter { return env.Stats.Counter(base + n) }
	return &authzFilter{
		name: filterName, env: env, conf: c, ok: s("ok"), denied: s("denied"), failed: s("error"), disabled: s("disabled"),
		failureAllowed: s("failure_mode_allowed"), invalid: s("invalid"), ignoredMetadata: s("ignored_dynamic_metadata"),
		clusters: filter.NewClusterStats[clusterCounters](env, "ext_authz", c.StatPrefix),
	}, nil
}

// clusterCounters count what became of requests for a cluster.
type clusterCounters struct {
	OK                 stats.Counter `stat:"ok"`
	Denied             stats.Counter `stat:"denied"`
	Error              stats.Counter `stat:"error"`
	FailureModeAllowed stats.Counter `stat:"failure_mode_allowed"`
}

// nobody counts for requests without a cluster, or for one too many, and shows nothing.
var nobody = new(clusterCounters)

func (f *authzFilter) of(cluster string) *clusterCounters {
	if cluster == "" {
		return nobody
	}
	if c := f.clusters.Of(cluster); c != nil {
		return c
	}
	return nobody
}

// A verdict is what a service answered.
type verdict struct {
	denied bool
	status int
	body   string

	set, append, add []message.Field // of the request
	remove           []string
	setQuery         []message.Field
	removeQuery      []string
	response         []edit          // of the response to a request that passes
	client           []message.Field // of a refusal
	metadata         map[string]any
}

type edit struct {
	message.Field
	action model.AppendAction
}

// A question is what a service is asked.
type question struct {
	extensions map[string]string
	body       []byte
	withBody   bool
	raw        bool
	partial    bool
}

func (f *authzFilter) Request(x *filter.Exchange) *filter.Reply {
	c := f.conf
	var q question
	limits, disabled := c.Body, false
	x.Match.FilterConfigs(f.name, func(v any) {
		r, isRoute := v.(*RouteConfig)
		if !isRoute {
			return
		}
		disabled = r.Disabled
		if len(r.Extensions) > 0 {
			if q.extensions == nil {
				q.extensions = map[string]string{}
			}
			maps.Copy(q.extensions, r.Extensions)
		}
		if r.NoBody {
			limits = nil
		} else if r.Body != nil {
			limits = r.Body
		}
	})
	if disabled {
		return nil
	}
	if c.Enabled != nil && !c.Enabled.Hit(f.env.Rand()) || c.EnabledMetadata != nil && !c.EnabledMetadata.Match(x.Entry.HTTP.Metadata) {
		f.disabled.Inc()
		if c.DenyDisabled {
			return f.refuse()
		}
		return nil
	}
	if limits != nil && x.Body != message.NoBody && x.Request.Upgrade == "" && x.Request.Method != "CONNECT" {
		if !limits.Partial && x.Request.ContentLength > int64(limits.Max) {
			return held.TooLarge()
		}
		b, err := held.Read(x.Body, limits.Max)
		if err != nil {
			return held.Failed(err)
		}
		if len(b.Bytes) > limits.Max && !limits.Partial {
			return held.TooLarge()
		}
		x.Body = b.Source()
		q.body = b.Bytes[:min(len(b.Bytes), limits.Max)]
		q.partial = !b.Ended || len(b.Bytes) > limits.Max
	}
	q.withBody, q.raw = limits != nil, limits != nil && limits.Raw

	var v *verdict
	var err error
	if c.GRPC != nil {
		v, err = f.askGRPC(x, &q)
	} else {
		v, err = f.askHTTP(x, &q)
	}
	if err == nil && !v.valid() {
		f.invalid.Inc()
		f.failed.Inc()
		return filter.Deny(500, "", "ext_authz_invalid", accesslog.UnauthorizedExternalService)
	}
	switch {
	case err != nil:
		if x.Context().Err() != nil { // the client has left
			return held.Failed(err)
		}
		f.failed.Inc()
		of := f.of(x.Match.Cluster)
		of.Error.Inc()
		if c.AllowOnError {
			f.failureAllowed.Inc()
			of.FailureModeAllowed.Inc()
			if c.AllowOnErrorHeader {
				x.Request.Header.Set("x-envoy-auth-failure-mode-allowed", "true")
			}
			return nil
		}
		f.env.Logger.Debug("authorization failed", "error", err)
		return f.refuse()
	case v.denied:
		f.denied.Inc()
		f.of(x.Match.Cluster).Denied.Inc()
		f.tell(x, v)
		if c.MaxDeniedBody > 0 && len(v.body) > c.MaxDeniedBody {
			v.body = v.body[:c.MaxDeniedBody]
		}
		r := filter.Deny(v.status, v.body, "ext_authz_denied", accesslog.UnauthorizedExternalService)
		r.Header, r.Rule = v.client, name
		return r
	}
	f.ok.Inc()
	f.of(x.Match.Cluster).OK.Inc()
	f.tell(x, v)
	if v.apply(x) && c.Reroute {
		x.Reroute()
	}
	if len(v.response) > 0 {
		x.SetState(f, v)
	}
	return nil
}

func (f *authzFilter) tell(x *filter.Exchange, v *verdict) {
	if f.conf.IgnoreMetadata && len(v.metadata) > 0 {
		f.ignoredMetadata.Inc()
		return
	}
	for k, value := range v.metadata {
		x.SetMetadata(name, k, value)
	}
}

// refuse is the reply if there is no answer.
func (f *authzFilter) refuse() *filter.Reply {
	status := f.conf.StatusOnError
	if status == 0 {
		status = 403
	}
	r := filter.Deny(status, "", "ext_authz_error", accesslog.UnauthorizedExternalService)
	r.Rule = name
	return r
}

func (f *authzFilter) Response(x *filter.Exchange) *filter.Reply {
	v, passed := x.State(f).(*verdict)
	if !passed {
		return nil
	}
	h := &x.Response.Header
	for _, e := range v.response {
		switch {
		case e.action == model.OverwriteOrAdd, e.action == model.OverwriteIfExists && h.Has(e.Name):
			h.Set(e.Name, e.Value)
		case e.action == model.AppendOrAdd, e.action == model.AddIfAbsent && !h.Has(e.Name):
			h.Add(e.Name, e.Value)
		}
	}
	return nil
}

// valid reports whether what a service wants to change can be said in HTTP, and is its to change.
func (v *verdict) valid() bool {
	for _, list := range [][]message.Field{v.set, v.append, v.add, v.client} {
		for _, f := range list {
			if !validName(f.Name) || !validValue(f.Value) {
				return false
			}
		}
	}
	for _, e := range v.response {
		if strings.HasPrefix(e.Name, ":") || !validName(e.Name) || !validValue(e.Value) {
			return false
		}
	}
	for _, f := range v.setQuery {
		if f.Name == "" {
			return false
		}
	}
	return true
}

func validName(s string) bool {
	switch s {
	case ":path", ":authority", ":method":
		return true
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "content-length", "te", "":
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return true
}

func validValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// apply changes a request and reports whether it did.
func (v *verdict) apply(x *filter.Exchange) bool {
	r := x.Request
	h := &r.Header
	for _, n := range v.remove {
		if n != "host" && !strings.HasPrefix(n, ":") {
			h.Del(n)
		}
	}
	for _, f := range v.set {
		switch f.Name {
		case ":path":
			if strings.HasPrefix(f.Value, "/") {
				r.Path = f.Value
			}
		case ":authority", "host":
			r.Authority = f.Value
		case ":method":
			r.Method = f.Value
		default:
			h.Set(f.Name, f.Value)
		}
	}
	for _, f := range v.add {
		h.Add(f.Name, f.Value)
	}
	for _, f := range v.append {
		// What is not there is not appended to.
		if old, there := h.Lookup(f.Name, &r.Arena); there && !strings.HasPrefix(f.Name, ":") {
			h.Set(f.Name, old+","+f.Value)
		}
	}
	if len(v.setQuery)+len(v.removeQuery) > 0 {
		r.Path = editQuery(r.Path, v.setQuery, v.removeQuery)
	}
	return len(v.set)+len(v.add)+len(v.append)+len(v.remove)+len(v.setQuery)+len(v.removeQuery) > 0
}

func editQuery(path string, set []message.Field, remove []string) string {
	bare, query, _ := strings.Cut(path, "?")
	var parts []string
	for p := range strings.SplitSeq(query, "&") {
		k, _, _ := strings.Cut(p, "=")
		drop := p == ""
		for _, n := range remove {
			drop = drop || n == k
		}
		for _, f := range set {
			drop = drop || f.Name == k
		}
		if !drop {
			parts = append(parts, p)
		}
	}
	for _, f := range set {
		parts = append(parts, url.QueryEscape(f.Name)+"="+url.QueryEscape(f.Value))
	}
	if len(parts) == 0 {
		return bare
	}
	return bare + "?" + strings.Join(parts, "&")
}

func matchAny(list []model.StringMatch, s string) bool {
	for i := range list {
		if list[i].Match(s) {
			return true
		}
	}
	return false
}

func (f *authzFilter) shown(header string) bool {
	return (f.conf.Allowed == nil || matchAny(f.conf.Allowed, header)) && !matchAny(f.conf.Disallowed, header)
}

func certificate(x *filter.Exchange) string {
	p := x.Conn.Peer
	if p == nil || p.Leaf == nil {
		return ""
	}
	return strings.ReplaceAll(url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Leaf.Raw}))), "+", "%20")
}

// maxAnswer bounds the answer of an HTTP service.
const maxAnswer = 1 << 20

func (f *authzFilter) askHTTP(x *filter.Exchange, q *question) (*verdict, error) {
	s := f.conf.HTTP
	r := &message.Request{Version: message.HTTP11, Method: x.Request.Method, Scheme: x.Request.Scheme, Authority: x.Request.Authority, Path: s.PathPrefix + x.Request.Path}
	if s.PathOverride != "" {
		r.Path = s.PathOverride
	}
	for i := range x.Request.Header.Len() {
		h := x.Request.Header.At(i)
		if h.Name == "content-length" || matchAny(f.conf.Disallowed, h.Name) {
			continue
		}
		if h.Name == "authorization" || f.conf.Allowed != nil && matchAny(f.conf.Allowed, h.Name) {
			r.Header.Add(h.Name, h.Value)
		}
	}
	for _, h := range s.Add {
		r.Header.Set(h.Name, h.Value)
	}
	if q.withBody {
		r.Header.Set("x-envoy-auth-partial-body", strconv.FormatBool(q.partial))
	}
	r.Header.Set("content-length", strconv.Itoa(len(q.body)))
	r.ContentLength = int64(len(q.body))
	r.Header.Set("x-envoy-expected-rq-timeout-ms", strconv.FormatInt(s.Timeout.Milliseconds(), 10))
	ctx, cancel := context.WithTimeout(x.Context(), s.Timeout)
	defer cancel()
	a, err := f.env.Client.Do(ctx, s.Cluster, r, q.body, maxAnswer)
	if err != nil {
		return nil, err
	}
	if a.Status >= 500 {
		return nil, errors.New("status " + strconv.Itoa(a.Status))
	}
	v := &verdict{denied: a.Status != 200, status: a.Status, body: string(a.Body)}
	for i := range a.Header.Len() {
		h := a.Header.At(i)
		if matchAny(s.Metadata, h.Name) {
			if v.metadata == nil {
				v.metadata = map[string]any{}
			}
			v.metadata[h.Name] = h.Value
		}
		if h.Name == "x-envoy-auth-headers-to-remove" {
			for n := range strings.SplitSeq(h.Value, ",") {
				v.remove = append(v.remove, strings.ToLower(strings.TrimSpace(n)))
			}
			continue
		}
		if !validName(h.Name) || h.Name == "host" || h.Name == "date" || h.Name == "server" {
			continue
		}
		if v.denied {
			always := h.Name == "www-authenticate" || h.Name == "location" || h.Name == "content-type"
			if s.Client == nil || always || matchAny(s.Client, h.Name) {
				v.client = append(v.client, h)
			}
			continue
		}
		if matchAny(s.Upstream, h.Name) {
			v.set = append(v.set, h)
		}
		if matchAny(s.UpstreamAppend, h.Name) {
			v.append = append(v.append, h)
		}
		if matchAny(s.ClientOnSuccess, h.Name) {
			v.response = append(v.response, edit{h, model.AppendOrAdd})
		}
	}
	return v, nil
}
