//lint:file-ignore SA1019 control planes still send what Envoy has deprecated

package decode

import (
	"math"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	omitmetadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/omit_host_metadata/v3"
	prioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	// Read from static files, where every type must be known.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/omit_canary_hosts/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// RouteConfig decodes a route table that came on its own.
func (d *Decoder) RouteConfig(a *anypb.Any) (*model.RouteConfig, error) {
	var m routev3.RouteConfiguration
	if err := resource(a, &m); err != nil {
		return nil, err
	}
	r := &run{d: d}
	if m.GetName() == "" {
		r.errorf("name", "empty")
	}
	t := r.routeConfig("", &m, false)
	return t, r.err()
}

// routeConfig decodes a route table. Inline tells that it stands in a listener, where clusters are checked by default.
func (r *run) routeConfig(path string, m *routev3.RouteConfiguration, inline bool) *model.RouteConfig {
	r.only(path, m, `name virtual_hosts internal_only_headers response_headers_to_add response_headers_to_remove
		request_headers_to_add request_headers_to_remove most_specific_header_mutations_wins validate_clusters
		max_direct_response_body_size_bytes request_mirror_policies ignore_port_in_host_matching vhost_header
		ignore_path_parameters_in_path_matching typed_per_filter_config metadata`, "")
	t := &model.RouteConfig{
		Name:                 m.GetName(),
		IgnorePort:           m.GetIgnorePortInHostMatching(),
		IgnorePathParameters: m.GetIgnorePathParametersInPathMatching(),
		HostHeader:           strings.ToLower(m.GetVhostHeader()),
		ValidateClusters:     boolean(m.GetValidateClusters(), inline),
		MostSpecificWins:     m.GetMostSpecificHeaderMutationsWins(),
		RequestEdits:         r.requestEdits(path, m),
		ResponseEdits:        r.responseEdits(path, m),
		MaxDirectBody:        int(u32(m.GetMaxDirectResponseBodySizeBytes(), model.DefaultMaxDirectBody)),
		PerFilter:            r.perFilter(path, m.GetTypedPerFilterConfig()),
		Mirrors:              r.mirrors(path, m.GetRequestMirrorPolicies()),
		Metadata:             metadata(m.GetMetadata()),
	}
	if t.HostHeader == "host" || t.HostHeader == ":authority" {
		t.HostHeader = ""
	}
	for _, h := range m.GetInternalOnlyHeaders() {
		t.InternalOnly = append(t.InternalOnly, strings.ToLower(h))
	}
	seen := map[string]bool{}
	for i, vh := range m.GetVirtualHosts() {
		p := index(join(path, "virtual_hosts"), i)
		h := r.virtualHost(p, vh, t.MaxDirectBody)
		for j, d := range h.Domains {
			dp := index(join(p, "domains"), j)
			switch {
			case seen[d] && d == "*":
				r.errorf(dp, "Only a single wildcard domain is permitted in route %s", t.Name)
			case seen[d]:
				r.errorf(dp, "Only unique values for domains are permitted. Duplicate entry of domain %s in route %s", d, t.Name)
			}
			seen[d] = true
		}
		t.VirtualHosts = append(t.VirtualHosts, h)
	}
	return t
}

func (r *run) virtualHost(path string, m *routev3.VirtualHost, maxBody int) model.VirtualHost {
	r.only(path, m, `name domains routes require_tls rate_limits request_headers_to_add request_headers_to_remove
		response_headers_to_add response_headers_to_remove typed_per_filter_config include_request_attempt_count
		include_attempt_count_in_response retry_policy hedge_policy include_is_timeout_retry_header
		per_request_buffer_limit_bytes request_body_buffer_limit request_mirror_policies metadata`,
		// Only counted.
		"virtual_clusters")
	h := model.VirtualHost{
		Name:                 m.GetName(),
		RequestEdits:         r.requestEdits(path, m),
		ResponseEdits:        r.responseEdits(path, m),
		Retry:                r.retryPolicy(join(path, "retry_policy"), m.GetRetryPolicy()),
		Mirrors:              r.mirrors(path, m.GetRequestMirrorPolicies()),
		RateLimits:           r.rateLimits(path, m.GetRateLimits()),
		PerFilter:            r.perFilter(path, m.GetTypedPerFilterConfig()),
		AttemptCount:         m.GetIncludeRequestAttemptCount(),
		AttemptCountResponse: m.GetIncludeAttemptCountInResponse(),
		TimeoutRetry:         m.GetIncludeIsTimeoutRetryHeader(),
		BufferLimit:          r.retryBuffer(path, m.GetPerRequestBufferLimitBytes(), m.GetRequestBodyBufferLimit()),
		Metadata:             metadata(m.GetMetadata()),
	}
	switch m.GetRequireTls() {
	case routev3.VirtualHost_NONE:
	case routev3.VirtualHost_EXTERNAL_ONLY:
		h.RequireTLS = model.TLSExternalOnly
	case routev3.VirtualHost_ALL:
		h.RequireTLS = model.TLSAlways
	default:
		r.errorf(join(path, "require_tls"), "%d is unknown", m.GetRequireTls())
	}
	for _, d := range m.GetDomains() {
		h.Domains = append(h.Domains, model.LowerASCII(d))
	}
	r.hedge(path, m.GetHedgePolicy())
	for i, x := range m.GetRoutes() {
		h.Routes = append(h.Routes, r.route(index(join(path, "routes"), i), x, maxBody))
	}
	return h
}

// hedge refuses to send requests twice.
func (r *run) hedge(path string, m *routev3.HedgePolicy) {
	r.only(join(path, "hedge_policy"), m, "", "initial_requests additional_request_chance") // which Envoy ignores, too
}

// retryBuffer returns how many bytes of a body are kept; 0 if nothing is said.
func (r *run) retryBuffer(path string, old *wrapperspb.UInt32Value, limit *wrapperspb.UInt64Value) int {
	n := uint64(old.GetValue())
	switch {
	case limit != nil:
		n = limit.GetValue()
	case old == nil:
		return 0
	}
	// One byte is as good as none, which 0 can't say.
	return int(max(min(n, maxBuffer), 1))
}

func (r *run) route(path string, m *routev3.Route, maxBody int) model.Route {
	r.only(path, m, `name match route redirect direct_response non_forwarding_action metadata decorator
		typed_per_filter_config request_headers_to_add request_headers_to_remove response_headers_to_add
		response_headers_to_remove tracing per_request_buffer_limit_bytes request_body_buffer_limit stat_prefix`, "")
	out := model.Route{
		Name:          m.GetName(),
		Match:         r.routeMatch(join(path, "match"), m.GetMatch()),
		RequestEdits:  r.requestEdits(path, m),
		ResponseEdits: r.responseEdits(path, m),
		PerFilter:     r.perFilter(path, m.GetTypedPerFilterConfig()),
		StatPrefix:    m.GetStatPrefix(),
		BufferLimit:   r.retryBuffer(path, m.GetPerRequestBufferLimitBytes(), m.GetRequestBodyBufferLimit()),
		Metadata:      metadata(m.GetMetadata()),
	}
	if d := m.GetDecorator(); d != nil {
		r.only(join(path, "decorator"), d, "operation propagate", "")
		out.Decorator, out.Propagate = d.GetOperation(), boolean(d.GetPropagate(), true)
	}
	if t := m.GetTracing(); t != nil {
		p := join(path, "tracing")
		r.only(p, t, "client_sampling random_sampling overall_sampling custom_tags", "")
		out.Tracing = &model.RouteTracing{
			Client:     r.sampling(join(p, "client_sampling"), t.GetClientSampling()),
			Random:     r.sampling(join(p, "random_sampling"), t.GetRandomSampling()),
			Overall:    r.sampling(join(p, "overall_sampling"), t.GetOverallSampling()),
			CustomTags: r.customTags(p, t.GetCustomTags()),
		}
	}
	switch a := m.GetAction().(type) {
	case *routev3.Route_Route:
		out.Forward = r.forward(join(path, "route"), a.Route, &out.Match)
	case *routev3.Route_Redirect:
		out.Redirect = r.redirect(join(path, "redirect"), a.Redirect)
	case *routev3.Route_DirectResponse:
		out.Direct = r.directResponse(join(path, "direct_response"), a.DirectResponse, maxBody)
	case *routev3.Route_NonForwardingAction:
		out.NonForwarding = true
	default:
		if r.count == 0 {
			r.errorf(path, "no action that is supported")
		}
	}
	return out
}

// sampling returns a share in percent; all if it is not set.
func (r *run) sampling(path string, f *typev3.FractionalPercent) float64 {
	if f == nil {
		return 100
	}
	fr := r.fraction(path, f)
	return math.Min(100, 100*float64(fr.Numerator)/float64(fr.Denominator))
}

func (r *run) fraction(path string, f *typev3.FractionalPercent) model.Fraction {
	out := model.Fraction{Numerator: f.GetNumerator(), Denominator: 100}
	switch f.GetDenominator() {
	case typev3.FractionalPercent_HUNDRED:
	case typev3.FractionalPercent_TEN_THOUSAND:
		out.Denominator = 1e4
	case typev3.FractionalPercent_MILLION:
		out.Denominator = 1e6
	default:
		r.errorf(join(path, "denominator"), "%d is unknown", f.GetDenominator())
	}
	return out
}

// runtimeFraction returns the default of a share that could be changed at run time elsewhere; nil if it is not set.
func (r *run) runtimeFraction(path string, f *corev3.RuntimeFractionalPercent) *model.Fraction {
	if f == nil {
		return nil
	}
	r.only(path, f, "default_value", "runtime_key")
	out := r.fraction(join(path, "default_value"), f.GetDefaultValue())
	return &out
}

func (r *run) routeMatch(path string, m *routev3.RouteMatch) model.RouteMatch {
	r.only(path, m, `prefix path safe_regex connect_matcher path_separated_prefix case_sensitive runtime_fraction headers
		query_parameters cookies grpc tls_context dynamic_metadata filter_state`, "")
	out := model.RouteMatch{
		IgnoreCase: !boolean(m.GetCaseSensitive(), true),
		Headers:    r.headerMatches(join(path, "headers"), m.GetHeaders()),
		GRPC:       m.GetGrpc() != nil,
		Fraction:   r.runtimeFraction(join(path, "runtime_fraction"), m.GetRuntimeFraction()),
	}
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		out.Path = p.Prefix
	case *routev3.RouteMatch_Path:
		out.Kind, out.Path = model.PathExact, p.Path
	case *routev3.RouteMatch_SafeRegex:
		out.Kind, out.Path, out.IgnoreCase = model.PathRegex, p.SafeRegex.GetRegex(), false
		out.Regex = r.regex(join(path, "safe_regex"), p.SafeRegex, true)
	case *routev3.RouteMatch_ConnectMatcher_:
		out.Kind, out.IgnoreCase = model.PathConnect, false
	case *routev3.RouteMatch_PathSeparatedPrefix:
		out.Kind, out.Path = model.PathSeparatedPrefix, p.PathSeparatedPrefix
	}
	if out.IgnoreCase {
		out.Path = model.LowerASCII(out.Path)
	}
	for i, q := range m.GetQueryParameters() {
		out.Query = append(out.Query, r.queryMatch(index(join(path, "query_parameters"), i), q))
	}
	for i, c := range m.GetCookies() {
		p := index(join(path, "cookies"), i)
		r.only(p, c, "name string_match invert_match", "")
		out.Cookies = append(out.Cookies, model.CookieMatch{
			Name: c.GetName(), Match: r.stringMatch(join(p, "string_match"), c.GetStringMatch()), Invert: c.GetInvertMatch(),
		})
	}
	if t := m.GetTlsContext(); t != nil {
		r.only(join(path, "tls_context"), t, "presented validated", "")
		out.TLSPresented, out.TLSValidated = optionalBool(t.GetPresented()), optionalBool(t.GetValidated())
	}
	for i, x := range m.GetDynamicMetadata() {
		out.Metadata = append(out.Metadata, r.metadataMatch(index(join(path, "dynamic_metadata"), i), x))
	}
	for i, x := range m.GetFilterState() {
		p := index(join(path, "filter_state"), i)
		r.only(p, x, "key string_match address_match", "")
		fs := model.FilterStateMatcher{Key: x.GetKey()}
		if a := x.GetAddressMatch(); a != nil {
			r.only(join(p, "address_match"), a, "ranges", "")
			fs.Address = append([]netip.Prefix{}, r.xdsPrefixes(join(p, "address_match.ranges"), a.GetRanges())...)
		} else {
			fs.Match = r.stringMatch(join(p, "string_match"), x.GetStringMatch())
		}
		out.FilterState = append(out.FilterState, fs)
	}
	return out
}

func (r *run) xdsPrefixes(path string, list []*xdscorev3.CidrRange) []netip.Prefix {
	var out []netip.Prefix
	for i, c := range list {
		out = append(out, r.prefix(index(path, i), &corev3.CidrRange{AddressPrefix: c.GetAddressPrefix(), PrefixLen: c.GetPrefixLen()}))
	}
	return out
}

func optionalBool(v *wrapperspb.BoolValue) *bool {
	if v == nil {
		return nil
	}
	b := v.GetValue()
	return &b
}

// maxRegex bounds the length of a pattern.
const maxRegex = 64 << 10

// regex compiles a pattern; whole makes it match only all of a text. It returns a pattern in any case.
func (r *run) regex(path string, m *matcherv3.RegexMatcher, whole bool) *regexp.Regexp {
	pattern := m.GetRegex()
	if len(pattern) > maxRegex {
		r.errorf(path, "regular expression of %d bytes; at most %d are allowed", len(pattern), maxRegex)
		return never
	}
	// Compiled alone first: wrapping could make a broken pattern valid.
	re, err := regexp.Compile(pattern)
	if err == nil && whole {
		re, err = regexp.Compile(`\A(?:` + pattern + `)\z`)
	}
	if err != nil {
		r.errorf(path, "%w", err)
		return never
	}
	return re
}

// never matches nothing.
var never = regexp.MustCompile(`[^\x00-\x{10FFFF}]`)

// regexRewrite decodes a substitution, in which "\1" stands for the first group; nil if there is none.
func (r *run) regexRewrite(path string, m *matcherv3.RegexMatchAndSubstitute) *model.RegexRewrite {
	if m == nil {
		return nil
	}
	r.only(path, m, "pattern substitution", "")
	re := r.regex(join(path, "pattern"), m.GetPattern(), false)
	var b strings.Builder
	s := m.GetSubstitution()
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '$':
			b.WriteString("$$")
		case c < ' ' || c == 0x7f:
			r.errorf(join(path, "substitution"), "has a control character")
		case c != '\\':
			b.WriteByte(c)
		case i+1 < len(s) && s[i+1] == '\\':
			b.WriteByte('\\')
			i++
		case i+1 < len(s) && s[i+1] >= '0' && s[i+1] <= '9':
			n := int(s[i+1] - '0')
			if n > re.NumSubexp() && re != never {
				r.errorf(join(path, "substitution"), `\%d: the pattern has only %d groups`, n, re.NumSubexp())
			}
			b.WriteString("${" + strconv.Itoa(n) + "}")
			i++
		default:
			r.errorf(join(path, "substitution"), `a \ is followed by neither a digit nor another \`)
		}
	}
	return &model.RegexRewrite{Pattern: re, Substitution: b.String()}
}

// headerMatches decodes matchers of headers.
func (r *run) headerMatches(path string, list []*routev3.HeaderMatcher) []model.HeaderMatch {
	var out []model.HeaderMatch
	for i, m := range list {
		out = append(out, r.headerMatch(index(path, i), m))
	}
	return out
}

func (r *run) headerMatch(path string, m *routev3.HeaderMatcher) model.HeaderMatch {
	out := model.HeaderMatch{
		Name:           strings.ToLower(m.GetName()),
		Invert:         m.GetInvertMatch(),
		MissingAsEmpty: m.GetTreatMissingHeaderAsEmpty(),
	}
	if strings.HasPrefix(out.Name, ":") && !slices.Contains(pseudoHeaders, out.Name) {
		r.errorf(join(path, "name"), "%q is no header", m.GetName())
	}
	text := func(kind model.StringMatchKind, pattern string) {
		sm, err := model.NewStringMatch(kind, pattern, false)
		if err != nil {
			r.errorf(path, "%w", err)
		}
		out.Kind, out.Match = model.HeaderString, sm
	}
	switch s := m.GetHeaderMatchSpecifier().(type) {
	case *routev3.HeaderMatcher_StringMatch:
		out.Kind, out.Match = model.HeaderString, r.stringMatch(join(path, "string_match"), s.StringMatch)
	case *routev3.HeaderMatcher_ExactMatch:
		if s.ExactMatch != "" { // which asks only for the header
			text(model.MatchExact, s.ExactMatch)
		}
	case *routev3.HeaderMatcher_PrefixMatch:
		text(model.MatchPrefix, s.PrefixMatch)
	case *routev3.HeaderMatcher_SuffixMatch:
		text(model.MatchSuffix, s.SuffixMatch)
	case *routev3.HeaderMatcher_ContainsMatch:
		text(model.MatchContains, s.ContainsMatch)
	case *routev3.HeaderMatcher_SafeRegexMatch:
		text(model.MatchRegex, s.SafeRegexMatch.GetRegex())
	case *routev3.HeaderMatcher_RangeMatch:
		out.Kind, out.Start, out.End = model.HeaderRange, s.RangeMatch.GetStart(), s.RangeMatch.GetEnd()
	case *routev3.HeaderMatcher_PresentMatch:
		if !s.PresentMatch {
			out.Kind = model.HeaderAbsent
		}
	}
	return out
}

var pseudoHeaders = []string{":method", ":path", ":authority", ":scheme", ":status"}

func (r *run) queryMatch(path string, m *routev3.QueryParameterMatcher) model.QueryMatch {
	r.only(path, m, "name string_match present_match", "")
	out := model.QueryMatch{Name: m.GetName()}
	switch s := m.GetQueryParameterMatchSpecifier().(type) {
	case *routev3.QueryParameterMatcher_StringMatch:
		out.Match = r.stringMatch(join(path, "string_match"), s.StringMatch)
	case *routev3.QueryParameterMatcher_PresentMatch:
		out.Present, out.Absent = s.PresentMatch, !s.PresentMatch
	default:
		out.Present = true
	}
	return out
}

func (r *run) metadataMatch(path string, m *matcherv3.MetadataMatcher) model.MetadataMatcher {
	r.only(path, m, "filter path value invert", "")
	out := model.MetadataMatcher{Namespace: m.GetFilter(), Value: r.valueMatch(join(path, "value"), m.GetValue(), 0), Invert: m.GetInvert()}
	for _, s := range m.GetPath() {
		out.Path = append(out.Path, s.GetKey())
	}
	return out
}

func (r *run) valueMatch(path string, m *matcherv3.ValueMatcher, depth int) model.ValueMatch {
	if depth > 16 {
		r.errorf(path, "nests too deep")
		return model.ValueMatch{}
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.ValueMatcher_NullMatch_:
		return model.ValueMatch{Null: true}
	case *matcherv3.ValueMatcher_DoubleMatch:
		if rg := p.DoubleMatch.GetRange(); rg != nil {
			return model.ValueMatch{Number: &model.NumberMatch{Start: rg.GetStart(), End: rg.GetEnd()}}
		}
		return model.ValueMatch{Number: &model.NumberMatch{Exact: true, Start: p.DoubleMatch.GetExact()}}
	case *matcherv3.ValueMatcher_StringMatch:
		s := r.stringMatch(join(path, "string_match"), p.StringMatch)
		return model.ValueMatch{String: &s}
	case *matcherv3.ValueMatcher_BoolMatch:
		return model.ValueMatch{Bool: &p.BoolMatch}
	case *matcherv3.ValueMatcher_PresentMatch:
		return model.ValueMatch{Present: &p.PresentMatch}
	case *matcherv3.ValueMatcher_ListMatch:
		v := r.valueMatch(join(path, "list_match.one_of"), p.ListMatch.GetOneOf(), depth+1)
		return model.ValueMatch{Any: &v}
	case *matcherv3.ValueMatcher_OrMatch:
		var out model.ValueMatch
		for i, x := range p.OrMatch.GetValueMatchers() {
			out.Or = append(out.Or, r.valueMatch(index(join(path, "or_match.value_matchers"), i), x, depth+1))
		}
		return out
	}
	r.errorf(path, "value matcher %T is not supported", m.GetMatchPattern())
	return model.ValueMatch{}
}

// metadata returns what is said under the names of filters; nil if nothing is.
func metadata(m *corev3.Metadata) model.Metadata {
	if len(m.GetFilterMetadata()) == 0 {
		return nil
	}
	out := model.Metadata{}
	for ns, s := range m.GetFilterMetadata() {
		out[ns] = s.AsMap()
	}
	return out
}

// editable is a message with edits of headers.
type editable interface {
	GetRequestHeadersToAdd() []*corev3.HeaderValueOption
	GetRequestHeadersToRemove() []string
	GetResponseHeadersToAdd() []*corev3.HeaderValueOption
	GetResponseHeadersToRemove() []string
}

func (r *run) requestEdits(path string, m editable) []model.HeaderEdit {
	return append(r.removals(join(path, "request_headers_to_remove"), m.GetRequestHeadersToRemove()),
		r.additions(join(path, "request_headers_to_add"), m.GetRequestHeadersToAdd())...)
}

func (r *run) responseEdits(path string, m editable) []model.HeaderEdit {
	return append(r.removals(join(path, "response_headers_to_remove"), m.GetResponseHeadersToRemove()),
		r.additions(join(path, "response_headers_to_add"), m.GetResponseHeadersToAdd())...)
}

// removals decodes names of headers to remove.
func (r *run) removals(path string, names []string) []model.HeaderEdit {
	var out []model.HeaderEdit
	for i, n := range names {
		if strings.HasPrefix(n, ":") || strings.EqualFold(n, "host") {
			r.errorf(index(path, i), ":-prefixed or host headers may not be removed")
		}
		out = append(out, model.HeaderEdit{Remove: true, Name: strings.ToLower(n)})
	}
	return out
}

// additions decodes headers to add or set.
func (r *run) additions(path string, list []*corev3.HeaderValueOption) []model.HeaderEdit {
	var out []model.HeaderEdit
	for i, m := range list {
		out = append(out, r.addition(index(path, i), m))
	}
	return out
}

func (r *run) addition(path string, m *corev3.HeaderValueOption) model.HeaderEdit {
	r.only(path, m, "header append append_action keep_empty_value", "")
	r.only(join(path, "header"), m.GetHeader(), "key value", "")
	e := model.HeaderEdit{
		Name:      strings.ToLower(m.GetHeader().GetKey()),
		Value:     listArguments.ReplaceAllStringFunc(m.GetHeader().GetValue(), colonArguments),
		KeepEmpty: m.GetKeepEmptyValue(),
	}
	switch {
	case strings.HasPrefix(e.Name, ":") || e.Name == "host":
		r.errorf(join(path, "header.key"), ":-prefixed or host headers may not be modified")
	case !token(e.Name):
		r.errorf(join(path, "header.key"), "%q is no name of a header", e.Name)
	case framing[e.Name]:
		r.errorf(join(path, "header.key"), "%s belongs to the connection, not to the message", e.Name)
	}
	switch m.GetAppendAction() {
	case corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD:
		if m.GetAppend() != nil && !m.GetAppend().GetValue() {
			e.Action = model.OverwriteOrAdd
		}
	case corev3.HeaderValueOption_ADD_IF_ABSENT:
		e.Action = model.AddIfAbsent
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		e.Action = model.OverwriteOrAdd
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
		e.Action = model.OverwriteIfExists
	default:
		r.errorf(join(path, "append_action"), "%d is unknown", m.GetAppendAction())
	}
	if m.GetAppend() != nil && m.GetAppendAction() != corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD {
		r.errorf(path, "Both append and append_action are set and it's not allowed")
	}
	if _, err := accesslog.ParseFormat(e.Value); err != nil {
		r.errorf(join(path, "header.value"), "%w", err)
	}
	return e
}

// framing are headers that tell how a message is delimited; who sets them could smuggle.
var framing = map[string]bool{
	"connection": true, "keep-alive": true, "proxy-connection": true, "transfer-encoding": true, "upgrade": true, "content-length": true,
}

// listArguments finds operators whose argument has the old form ["namespace", "key"].
var listArguments = regexp.MustCompile(`%[A-Z_]+METADATA\(\[[^\]]*\]\)`)

func colonArguments(op string) string {
	head, list, _ := strings.Cut(op, "([")
	var keys []string
	for _, k := range strings.Split(strings.TrimSuffix(list, "])"), ",") {
		keys = append(keys, strings.Trim(k, "\" \t"))
	}
	return head + "(" + strings.Join(keys, ":") + ")"
}

// token reports whether s is a name of a header in lower case.
func token(s string) bool {
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

func (r *run) forward(path string, m *routev3.RouteAction, match *model.RouteMatch) *model.Forward {
	r.only(path, m, `cluster cluster_header weighted_clusters cluster_not_found_response_code metadata_match prefix_rewrite
		regex_rewrite host_rewrite_literal auto_host_rewrite host_rewrite_header host_rewrite_path_regex
		append_x_forwarded_host timeout idle_timeout retry_policy request_mirror_policies priority rate_limits
		include_vh_rate_limits hash_policy max_grpc_timeout grpc_timeout_offset upgrade_configs internal_redirect_policy
		internal_redirect_action max_internal_redirects hedge_policy max_stream_duration`,
		// There is no early data.
		"early_data_policy")
	f := &model.Forward{
		Cluster:         m.GetCluster(),
		ClusterHeader:   strings.ToLower(m.GetClusterHeader()),
		NotFoundStatus:  503,
		PrefixRewrite:   m.GetPrefixRewrite(),
		RegexRewrite:    r.regexRewrite(join(path, "regex_rewrite"), m.GetRegexRewrite()),
		HostRewrite:     m.GetHostRewriteLiteral(),
		AutoHost:        m.GetAutoHostRewrite().GetValue(),
		HostHeader:      strings.ToLower(m.GetHostRewriteHeader()),
		HostPathRegex:   r.regexRewrite(join(path, "host_rewrite_path_regex"), m.GetHostRewritePathRegex()),
		AppendXFH:       m.GetAppendXForwardedHost(),
		Timeout:         r.duration(join(path, "timeout"), m.GetTimeout(), model.DefaultRouteTimeout),
		GRPCOffset:      r.duration(join(path, "grpc_timeout_offset"), m.GetGrpcTimeoutOffset(), 0),
		Retry:           r.retryPolicy(join(path, "retry_policy"), m.GetRetryPolicy()),
		Mirrors:         r.mirrors(path, m.GetRequestMirrorPolicies()),
		RateLimits:      r.rateLimits(path, m.GetRateLimits()),
		IncludeVHLimits: m.GetIncludeVhRateLimits().GetValue(),
		MetadataMatch:   metadata(m.GetMetadataMatch())["envoy.lb"],
	}
	r.hedge(path, m.GetHedgePolicy())
	switch m.GetClusterNotFoundResponseCode() {
	case routev3.RouteAction_SERVICE_UNAVAILABLE:
	case routev3.RouteAction_NOT_FOUND:
		f.NotFoundStatus = 404
	case routev3.RouteAction_INTERNAL_SERVER_ERROR:
		f.NotFoundStatus = 500
	default:
		r.errorf(join(path, "cluster_not_found_response_code"), "%d is unknown", m.GetClusterNotFoundResponseCode())
	}
	switch m.GetPriority() {
	case corev3.RoutingPriority_DEFAULT:
	case corev3.RoutingPriority_HIGH:
		f.Priority = model.PriorityHigh
	default:
		r.errorf(join(path, "priority"), "%d is unknown", m.GetPriority())
	}
	if f.PrefixRewrite != "" && f.RegexRewrite != nil {
		r.errorf(path, "Specify only one of prefix_rewrite, regex_rewrite or path_rewrite_policy")
	}
	r.printable(join(path, "prefix_rewrite"), f.PrefixRewrite)
	r.printable(join(path, "host_rewrite_literal"), f.HostRewrite)
	f.IdleTimeout = r.optionalDuration(join(path, "idle_timeout"), m.GetIdleTimeout())
	f.MaxGRPC = r.optionalDuration(join(path, "max_grpc_timeout"), m.GetMaxGrpcTimeout())
	if s := m.GetMaxStreamDuration(); s != nil {
		p := join(path, "max_stream_duration")
		r.only(p, s, "max_stream_duration grpc_timeout_header_max grpc_timeout_header_offset", "")
		f.MaxStream = &model.MaxStream{
			Duration:   r.optionalDuration(join(p, "max_stream_duration"), s.GetMaxStreamDuration()),
			GRPCMax:    r.optionalDuration(join(p, "grpc_timeout_header_max"), s.GetGrpcTimeoutHeaderMax()),
			GRPCOffset: r.duration(join(p, "grpc_timeout_header_offset"), s.GetGrpcTimeoutHeaderOffset(), 0),
		}
	}
	if w := m.GetWeightedClusters(); w != nil {
		r.weighted(join(path, "weighted_clusters"), w, f)
	}
	if f.Cluster == "" && f.ClusterHeader == "" && len(f.Weighted) == 0 && r.count == 0 {
		r.errorf(path, "no cluster")
	}
	r.hashPolicies(path, m.GetHashPolicy(), f)
	r.routeUpgrades(path, m.GetUpgradeConfigs(), f)
	r.internalRedirect(path, m, f)
	return f
}

// printable reports text that can't stand in a request line or an authority.
func (r *run) printable(path, s string) {
	if strings.IndexFunc(s, func(c rune) bool { return c <= ' ' || c == 0x7f }) >= 0 {
		r.errorf(path, "%q has a space or a control character", s)
	}
}

func (r *run) weighted(path string, m *routev3.WeightedCluster, f *model.Forward) {
	r.only(path, m, "clusters header_name use_hash_policy", "total_weight runtime_key_prefix")
	f.WeightHeader, f.WeightByHash = strings.ToLower(m.GetHeaderName()), m.GetUseHashPolicy().GetValue()
	total := uint64(0)
	for i, c := range m.GetClusters() {
		p := index(join(path, "clusters"), i)
		r.only(p, c, `name cluster_header weight metadata_match request_headers_to_add request_headers_to_remove
			response_headers_to_add response_headers_to_remove typed_per_filter_config host_rewrite_literal`, "")
		if (c.GetName() == "") == (c.GetClusterHeader() == "") {
			r.errorf(p, "exactly one of name and cluster_header must be given")
		}
		if c.GetWeight() == nil {
			r.errorf(join(p, "weight"), "missing")
		}
		r.printable(join(p, "host_rewrite_literal"), c.GetHostRewriteLiteral())
		total += uint64(c.GetWeight().GetValue())
		f.Weighted = append(f.Weighted, model.WeightedRoute{
			Cluster:       c.GetName(),
			ClusterHeader: strings.ToLower(c.GetClusterHeader()),
			Weight:        c.GetWeight().GetValue(),
			HostRewrite:   c.GetHostRewriteLiteral(),
			MetadataMatch: metadata(c.GetMetadataMatch())["envoy.lb"],
			RequestEdits:  r.requestEdits(p, c),
			ResponseEdits: r.responseEdits(p, c),
			PerFilter:     r.perFilter(p, c.GetTypedPerFilterConfig()),
		})
	}
	switch {
	case total == 0:
		r.errorf(path, "Sum of weights in the weighted_cluster must be greater than 0.")
	case total > math.MaxUint32:
		r.errorf(path, "The sum of weights of all weighted_clusters exceeds %d", uint32(math.MaxUint32))
	}
}

func (r *run) hashPolicies(path string, list []*routev3.RouteAction_HashPolicy, f *model.Forward) {
	cookies := 0
	for i, m := range list {
		p := index(join(path, "hash_policy"), i)
		h := model.HashPolicy{Terminal: m.GetTerminal()}
		switch s := m.GetPolicySpecifier().(type) {
		case *routev3.RouteAction_HashPolicy_Header_:
			h.Header = strings.ToLower(s.Header.GetHeaderName())
			h.HeaderRewrite = r.regexRewrite(join(p, "header.regex_rewrite"), s.Header.GetRegexRewrite())
		case *routev3.RouteAction_HashPolicy_Cookie_:
			c := s.Cookie
			h.Cookie = &model.HashCookie{Name: c.GetName(), Path: c.GetPath(), TTL: r.optionalDuration(join(p, "cookie.ttl"), c.GetTtl())}
			if h.Cookie.TTL != nil {
				if cookies++; cookies > 1 {
					r.errorf(p, "a route can make only one cookie")
				}
			}
			parts := []string{c.GetName(), c.GetPath()}
			for _, a := range c.GetAttributes() {
				text := a.GetName()
				if a.GetValue() != "" {
					text += "=" + a.GetValue()
				}
				h.Cookie.Attributes, parts = append(h.Cookie.Attributes, text), append(parts, text)
			}
			for _, s := range parts {
				if strings.IndexFunc(s, func(c rune) bool { return c < ' ' || c >= 0x7f || c == ';' }) >= 0 {
					r.errorf(join(p, "cookie"), "%q can't stand in a cookie", s)
				}
			}
		case *routev3.RouteAction_HashPolicy_ConnectionProperties_:
			if h.SourceIP = s.ConnectionProperties.GetSourceIp(); !h.SourceIP {
				continue
			}
		case *routev3.RouteAction_HashPolicy_QueryParameter_:
			h.Query = s.QueryParameter.GetName()
		case *routev3.RouteAction_HashPolicy_FilterState_:
			h.FilterState = s.FilterState.GetKey()
		default:
			r.errorf(p, "hash policy %T is not supported", s)
		}
		f.Hash = append(f.Hash, h)
	}
}

func (r *run) routeUpgrades(path string, list []*routev3.RouteAction_UpgradeConfig, f *model.Forward) {
	for i, m := range list {
		p := index(join(path, "upgrade_configs"), i)
		r.only(p, m, "upgrade_type enabled connect_config", "")
		name := strings.ToLower(m.GetUpgradeType())
		if _, twice := f.Upgrades[name]; twice {
			r.errorf(p, "Duplicate upgrade %s", m.GetUpgradeType())
		}
		if f.Upgrades == nil {
			f.Upgrades = map[string]model.UpgradeOverride{}
		}
		f.Upgrades[name] = model.UpgradeOverride{Enabled: boolean(m.GetEnabled(), true)}
		if m.GetConnectConfig() != nil {
			r.only(join(p, "connect_config"), m.GetConnectConfig(), "", "")
			if name != "connect" {
				r.errorf(p, "Non-CONNECT upgrade type %s has ConnectConfig", m.GetUpgradeType())
			}
			f.ConnectTerminate = true
		}
	}
}

func (r *run) internalRedirect(path string, m *routev3.RouteAction, f *model.Forward) {
	p := m.GetInternalRedirectPolicy()
	if p == nil {
		if m.GetInternalRedirectAction() == routev3.RouteAction_HANDLE_INTERNAL_REDIRECT {
			f.InternalRedirect = &model.InternalRedirect{Max: u32(m.GetMaxInternalRedirects(), 1), Statuses: []int{302}}
		}
		return
	}
	path = join(path, "internal_redirect_policy")
	r.only(path, p, "max_internal_redirects redirect_response_codes allow_cross_scheme_redirect", "")
	f.InternalRedirect = &model.InternalRedirect{Max: u32(p.GetMaxInternalRedirects(), 1), CrossScheme: p.GetAllowCrossSchemeRedirect()}
	for i, c := range p.GetRedirectResponseCodes() {
		if c != 301 && c != 302 && c != 303 && c != 307 && c != 308 {
			r.errorf(index(join(path, "redirect_response_codes"), i), "%d is no redirect", c)
		}
		f.InternalRedirect.Statuses = append(f.InternalRedirect.Statuses, int(c))
	}
	if len(f.InternalRedirect.Statuses) == 0 {
		f.InternalRedirect.Statuses = []int{302}
	}
}

// Defaults of retries.
const (
	defaultBackOff       = 25 * time.Millisecond
	minBackOff           = time.Millisecond
	defaultRateLimitWait = 300 * time.Second
)

func (r *run) retryPolicy(path string, m *routev3.RetryPolicy) *model.RetryPolicy {
	if m == nil {
		return nil
	}
	r.only(path, m, `retry_on num_retries per_try_timeout per_try_idle_timeout retry_priority retry_host_predicate
		host_selection_retry_max_attempts retriable_status_codes retry_back_off rate_limited_retry_back_off
		retriable_headers retriable_request_headers`, "")
	on, _ := model.ParseRetryOn(m.GetRetryOn()) // unknown conditions never hold, as in the header of requests
	out := &model.RetryPolicy{
		On:             on,
		NumRetries:     u32(m.GetNumRetries(), 1),
		PerTry:         r.duration(join(path, "per_try_timeout"), m.GetPerTryTimeout(), 0),
		PerTryIdle:     r.duration(join(path, "per_try_idle_timeout"), m.GetPerTryIdleTimeout(), 0),
		BaseBackOff:    defaultBackOff,
		Headers:        r.headerMatches(join(path, "retriable_headers"), m.GetRetriableHeaders()),
		RequestHeaders: r.headerMatches(join(path, "retriable_request_headers"), m.GetRetriableRequestHeaders()),
		HostAttempts:   uint32(max(1, min(m.GetHostSelectionRetryMaxAttempts(), math.MaxUint32))),
	}
	for i, c := range m.GetRetriableStatusCodes() {
		if c < 100 || c > 599 {
			r.errorf(index(join(path, "retriable_status_codes"), i), "%d is no status", c)
		}
		out.Statuses = append(out.Statuses, int(c))
	}
	if b := m.GetRetryBackOff(); b != nil {
		p := join(path, "retry_back_off")
		r.only(p, b, "base_interval max_interval", "")
		out.BaseBackOff = max(minBackOff, r.duration(join(p, "base_interval"), b.GetBaseInterval(), 0))
		if b.GetMaxInterval() != nil {
			if out.MaxBackOff = max(minBackOff, r.duration(join(p, "max_interval"), b.GetMaxInterval(), 0)); out.MaxBackOff < out.BaseBackOff {
				r.errorf(p, "retry_policy.max_interval must greater than or equal to the base_interval")
			}
		}
	}
	if out.MaxBackOff == 0 {
		out.MaxBackOff = 10 * out.BaseBackOff
	}
	if b := m.GetRateLimitedRetryBackOff(); b != nil {
		p := join(path, "rate_limited_retry_back_off")
		r.only(p, b, "reset_headers max_interval", "")
		out.RateLimited = &model.RateLimitedBackOff{Max: r.duration(join(p, "max_interval"), b.GetMaxInterval(), defaultRateLimitWait)}
		for _, h := range b.GetResetHeaders() {
			out.RateLimited.Headers = append(out.RateLimited.Headers, model.ResetHeader{
				Name: strings.ToLower(h.GetName()), Unix: h.GetFormat() == routev3.RetryPolicy_UNIX_TIMESTAMP,
			})
		}
	}
	for i, x := range m.GetRetryHostPredicate() {
		p := index(join(path, "retry_host_predicate"), i)
		switch kind(x.GetTypedConfig(), x.GetName()) {
		case "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate", "envoy.retry_host_predicates.previous_hosts":
			out.AvoidHosts = true
		case "envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate", "envoy.retry_host_predicates.omit_canary_hosts":
			out.AvoidCanary = true
		case "envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig":
			var c omitmetadatav3.OmitHostMetadataConfig
			if r.extension(p, x.GetTypedConfig(), &c) {
				if md := metadata(c.GetMetadataMatch())["envoy.lb"]; len(md) > 0 {
					out.AvoidMetadata = append(out.AvoidMetadata, model.Metadata{"envoy.lb": md})
				}
			}
		default:
			r.errorf(p, "%q of type %q is not supported", x.GetName(), x.GetTypedConfig().GetTypeUrl())
		}
	}
	if x := m.GetRetryPriority(); x != nil {
		p := join(path, "retry_priority")
		var c prioritiesv3.PreviousPrioritiesConfig
		if k := kind(x.GetTypedConfig(), x.GetName()); k != "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig" {
			r.errorf(p, "%q of type %q is not supported", x.GetName(), x.GetTypedConfig().GetTypeUrl())
		} else if r.extension(p, x.GetTypedConfig(), &c) {
			out.AvoidPriorities, out.PriorityEvery = true, uint32(max(1, c.GetUpdateFrequency()))
		}
	}
	return out
}

// kind returns the type of an extension's configuration, or its name if it has none.
func kind(a *anypb.Any, name string) string {
	if a == nil {
		return name
	}
	return typeOf(a)
}

func (r *run) mirrors(path string, list []*routev3.RouteAction_RequestMirrorPolicy) []model.Mirror {
	var out []model.Mirror
	for i, m := range list {
		p := index(join(path, "request_mirror_policies"), i)
		r.only(p, m, `cluster cluster_header runtime_fraction trace_sampled disable_shadow_host_suffix_append
			request_headers_mutations host_rewrite_literal`, "")
		if (m.GetCluster() == "") == (m.GetClusterHeader() == "") {
			r.errorf(p, "Exactly one of cluster or cluster_header in request mirror policy need to be specified")
		}
		r.printable(join(p, "host_rewrite_literal"), m.GetHostRewriteLiteral())
		x := model.Mirror{
			Cluster:       m.GetCluster(),
			ClusterHeader: strings.ToLower(m.GetClusterHeader()),
			Fraction:      r.runtimeFraction(join(p, "runtime_fraction"), m.GetRuntimeFraction()),
			TraceSampled:  optionalBool(m.GetTraceSampled()),
			NoShadowHost:  m.GetDisableShadowHostSuffixAppend(),
			HostRewrite:   m.GetHostRewriteLiteral(),
		}
		for j, h := range m.GetRequestHeadersMutations() {
			hp := index(join(p, "request_headers_mutations"), j)
			r.only(hp, h, "remove append", "")
			if h.GetAppend() != nil {
				x.RequestEdits = append(x.RequestEdits, r.addition(join(hp, "append"), h.GetAppend()))
			} else if h.GetRemove() != "" {
				x.RequestEdits = append(x.RequestEdits, r.removals(join(hp, "remove"), []string{h.GetRemove()})...)
			}
		}
		out = append(out, x)
	}
	return out
}

func (r *run) redirect(path string, m *routev3.RedirectAction) *model.Redirect {
	r.only(path, m, `https_redirect scheme_redirect host_redirect port_redirect path_redirect prefix_rewrite regex_rewrite
		response_code strip_query`, "")
	d := &model.Redirect{
		HTTPS:      m.GetHttpsRedirect(),
		Scheme:     m.GetSchemeRedirect(),
		Host:       m.GetHostRedirect(),
		Path:       m.GetPathRedirect(),
		Regex:      r.regexRewrite(join(path, "regex_rewrite"), m.GetRegexRewrite()),
		Status:     301,
		StripQuery: m.GetStripQuery(),
	}
	if m.GetPortRedirect() > math.MaxUint16 {
		r.errorf(join(path, "port_redirect"), "%d is no port", m.GetPortRedirect())
	}
	d.Port = uint16(m.GetPortRedirect())
	if p, ok := m.GetPathRewriteSpecifier().(*routev3.RedirectAction_PrefixRewrite); ok {
		d.Prefix = &p.PrefixRewrite
	}
	r.printable(join(path, "scheme_redirect"), d.Scheme)
	r.printable(join(path, "host_redirect"), d.Host)
	r.printable(join(path, "path_redirect"), d.Path)
	r.printable(join(path, "prefix_rewrite"), m.GetPrefixRewrite())
	switch m.GetResponseCode() {
	case routev3.RedirectAction_MOVED_PERMANENTLY:
	case routev3.RedirectAction_FOUND:
		d.Status = 302
	case routev3.RedirectAction_SEE_OTHER:
		d.Status = 303
	case routev3.RedirectAction_TEMPORARY_REDIRECT:
		d.Status = 307
	case routev3.RedirectAction_PERMANENT_REDIRECT:
		d.Status = 308
	default:
		r.errorf(join(path, "response_code"), "%d is unknown", m.GetResponseCode())
	}
	return d
}

func (r *run) directResponse(path string, m *routev3.DirectResponseAction, maxBody int) *model.DirectResponse {
	r.only(path, m, "status body body_format", "")
	body, _ := r.source(join(path, "body"), m.GetBody())
	if len(body) > maxBody {
		r.errorf(join(path, "body"), "response body size is %d bytes; maximum is %d", len(body), maxBody)
	}
	d := &model.DirectResponse{Status: int(m.GetStatus()), Body: string(body)}
	d.Text, d.JSON, d.ContentType = r.bodyFormat(join(path, "body_format"), m.GetBodyFormat())
	return d
}

// bodyFormat decodes the format of a body.
func (r *run) bodyFormat(path string, m *corev3.SubstitutionFormatString) (text string, jsonFormat any, contentType string) {
	if m == nil {
		return "", nil, ""
	}
	l := model.AccessLog{}
	r.logFormat(path, m, &l)
	if _, err := accesslog.Compile(&l, nil); err != nil {
		r.errorf(path, "%w", err)
	}
	return l.Text, l.JSON, m.GetContentType()
}

func (r *run) rateLimits(path string, list []*routev3.RateLimit) []model.RateLimit {
	var out []model.RateLimit
	for i, m := range list {
		p := index(join(path, "rate_limits"), i)
		r.only(p, m, "stage disable_key actions", "")
		l := model.RateLimit{Stage: u32(m.GetStage(), 0), DisableKey: m.GetDisableKey()}
		for j, a := range m.GetActions() {
			l.Actions = append(l.Actions, r.rateLimitAction(index(join(p, "actions"), j), a))
		}
		out = append(out, l)
	}
	return out
}

func (r *run) rateLimitAction(path string, m *routev3.RateLimit_Action) model.RateLimitAction {
	var out model.RateLimitAction
	switch s := m.GetActionSpecifier().(type) {
	case *routev3.RateLimit_Action_SourceCluster_:
		out.SourceCluster = true
	case *routev3.RateLimit_Action_DestinationCluster_:
		out.DestinationCluster = true
	case *routev3.RateLimit_Action_RemoteAddress_:
		out.RemoteAddress = true
	case *routev3.RateLimit_Action_MaskedRemoteAddress_:
		v4, v6 := u32(s.MaskedRemoteAddress.GetV4PrefixMaskLen(), 32), u32(s.MaskedRemoteAddress.GetV6PrefixMaskLen(), 128)
		if v4 < 1 || v4 > 32 || v6 < 1 || v6 > 128 {
			r.errorf(join(path, "masked_remote_address"), "no length of a prefix")
		}
		out.MaskV4, out.MaskV6 = int(v4), int(v6)
	case *routev3.RateLimit_Action_RequestHeaders_:
		h := s.RequestHeaders
		out.Header, out.HeaderKey, out.SkipIfAbsent = strings.ToLower(h.GetHeaderName()), h.GetDescriptorKey(), h.GetSkipIfAbsent()
	case *routev3.RateLimit_Action_QueryParameters_:
		q := s.QueryParameters
		out.Query, out.HeaderKey, out.SkipIfAbsent = q.GetQueryParameterName(), q.GetDescriptorKey(), q.GetSkipIfAbsent()
	case *routev3.RateLimit_Action_GenericKey_:
		r.only(join(path, "generic_key"), s.GenericKey, "descriptor_value descriptor_key", "")
		out.Generic, out.GenericKey = s.GenericKey.GetDescriptorValue(), s.GenericKey.GetDescriptorKey()
	case *routev3.RateLimit_Action_HeaderValueMatch_:
		h := s.HeaderValueMatch
		p := join(path, "header_value_match")
		r.only(p, h, "descriptor_value descriptor_key expect_match headers", "")
		out.HeaderValue = &model.HeaderValueMatch{
			Key: h.GetDescriptorKey(), Value: h.GetDescriptorValue(), Expect: boolean(h.GetExpectMatch(), true),
			Headers: r.headerMatches(join(p, "headers"), h.GetHeaders()),
		}
	case *routev3.RateLimit_Action_DynamicMetadata:
		d := s.DynamicMetadata
		out.Metadata = metadataKey(d.GetMetadataKey(), d.GetDescriptorKey(), d.GetDefaultValue())
	case *routev3.RateLimit_Action_Metadata:
		d := s.Metadata
		if d.GetSource() != routev3.RateLimit_Action_MetaData_DYNAMIC {
			r.errorf(join(path, "metadata.source"), "%v is not supported", d.GetSource())
		}
		out.Metadata, out.SkipIfAbsent = metadataKey(d.GetMetadataKey(), d.GetDescriptorKey(), d.GetDefaultValue()), d.GetSkipIfAbsent()
	default:
		r.errorf(path, "action %T is not supported", s)
	}
	return out
}

// metadataKey returns a place in metadata.
func metadataKey(m *metadatav3.MetadataKey, key, def string) *model.MetadataKey {
	k := &model.MetadataKey{Key: key, Namespace: m.GetKey(), Default: def}
	for _, s := range m.GetPath() {
		k.Path = append(k.Path, s.GetKey())
	}
	return k
}
