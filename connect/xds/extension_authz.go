package xds

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	httpauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	netauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/sarnmesh/sarn/catalog"
)

// A targetArguments names the server an extension talks to: an upstream service, or one beside the proxy.
type targetArguments struct {
	Service *struct{ Name, Namespace, Partition string }
	URI     string
	Timeout time.Duration
}

// A target is that server.
type target struct {
	name    string // of the cluster
	uri     string
	timeout time.Duration
	own     *clusterv3.Cluster // nil for an upstream's
}

// resolve finds the target among the upstreams, or makes the cluster with the name local of it.
func (a *targetArguments) resolve(local string, http2 bool, x *extensions) (*target, error) {
	t := &target{timeout: cmp.Or(a.Timeout, time.Second)}
	if t.timeout < 0 {
		return nil, fmt.Errorf("Target.Timeout %v is negative", a.Timeout)
	}
	service := a.Service != nil && a.Service.Name != ""
	if service == (a.URI != "") {
		return nil, errors.New("exactly one of Target.Service and Target.URI must be set")
	}
	if service {
		if t.name = x.targets[a.Service.Name]; t.name == "" {
			return nil, fmt.Errorf("service %q is no upstream of the proxy", a.Service.Name)
		}
		t.uri = "http://" + a.Service.Name
		return t, nil
	}
	host, port, ok := cutLast(a.URI, ":")
	n, err := strconv.Atoi(port)
	if !ok || err != nil || !validPort(n) || host != "localhost" && host != "127.0.0.1" && host != "::1" {
		return nil, fmt.Errorf("Target.URI %q is none of localhost:PORT, 127.0.0.1:PORT and ::1:PORT", a.URI)
	}
	t.name, t.uri = local, "http://"+a.URI
	t.own = &clusterv3.Cluster{
		Name:                 local,
		ConnectTimeout:       durationpb.New(defaultConnectTimeout),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: local, Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{endpointOf(host, n)}}},
		},
	}
	if _, err := netip.ParseAddr(host); err != nil {
		t.own.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
	}
	if http2 {
		t.own.TypedExtensionProtocolOptions = http2Options()
	}
	return t, nil
}

func endpointOf(ip string, port int) *endpointv3.LbEndpoint { return host(socket(ip, port)) }

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func (t *target) cluster() (string, proto.Message) {
	if t == nil || t.own == nil {
		return "", nil
	}
	return t.name, t.own
}

// grpcArguments are how a gRPC server is called.
type grpcArguments struct {
	Target          *targetArguments
	Authority       string
	InitialMetadata []headerPair
}

func (g *grpcArguments) service(t *target) *corev3.GrpcService {
	return &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: t.name, Authority: g.Authority}},
		Timeout:         durationpb.New(t.timeout),
		InitialMetadata: headerValues(g.InitialMetadata),
	}
}

// extAuthz asks a server about connections and requests.
type extAuthz struct {
	*target
	listenerType string
	insert       insertOptions
	http         *httpauthzv3.ExtAuthz
	net          *netauthzv3.ExtAuthz // nil when connections can not be asked about
}

type extAuthzArguments struct {
	ProxyType, ListenerType string
	InsertOptions           insertOptions
	Config                  struct {
		BootstrapMetadataLabelsKey string
		ClearRouteCache            bool
		GrpcService                *grpcArguments
		HTTPService                *struct {
			Target               *targetArguments
			PathPrefix           string
			AuthorizationRequest *struct {
				AllowedHeaders []stringMatcher
				HeadersToAdd   []headerPair
			}
			AuthorizationResponse *struct {
				AllowedUpstreamHeaders, AllowedUpstreamHeadersToAppend, AllowedClientHeaders []stringMatcher
				AllowedClientHeadersOnSuccess, DynamicMetadataFromHeaders                    []stringMatcher
			}
		}
		AllowedHeaders, DisallowedHeaders []stringMatcher
		IncludePeerCertificate            bool
		MetadataContextNamespaces         []string
		StatusOnError                     *int
		StatPrefix                        string
		WithRequestBody                   *struct {
			MaxRequestBytes                  uint32
			AllowPartialMessage, PackAsBytes bool
		}
	}
}

func newExtAuthz(e *catalog.EnvoyExtension, x *extensions) (extension, error) {
	var a extAuthzArguments
	if err := decodeArguments(e, &a); err != nil {
		return nil, err
	}
	a.ListenerType = cmp.Or(a.ListenerType, inbound)
	if err := errors.Join(checkListenerType(a.ListenerType), a.InsertOptions.check()); err != nil {
		return nil, err
	}
	c := &a.Config
	if (c.GrpcService == nil) == (c.HTTPService == nil) {
		return nil, errors.New("exactly one of GrpcService and HttpService must be set")
	}
	to := &targetArguments{}
	if c.GrpcService != nil && c.GrpcService.Target != nil {
		to = c.GrpcService.Target
	} else if c.HTTPService != nil && c.HTTPService.Target != nil {
		to = c.HTTPService.Target
	}
	if ok, err := concerns(a.ProxyType, x); err != nil || !ok {
		return noExtension{}, err
	}
	t, err := to.resolve("local_ext_authz", c.GrpcService != nil, x)
	if err != nil {
		return nil, err
	}
	status := 403
	if c.StatusOnError != nil {
		status = *c.StatusOnError
	}
	code := typev3.StatusCode(status)
	if typev3.StatusCode_name[int32(code)] == "" {
		return nil, fmt.Errorf("StatusOnError %d is no status", status)
	}
	namespaces := slices.Concat([]string{"consul"}, c.MetadataContextNamespaces)
	allow := !e.Required
	prefix := cmp.Or(c.StatPrefix, "response")
	ext := &extAuthz{target: t, listenerType: a.ListenerType, insert: a.InsertOptions}
	ext.http = &httpauthzv3.ExtAuthz{
		StatPrefix: prefix, TransportApiVersion: corev3.ApiVersion_V3, FailureModeAllow: allow, ClearRouteCache: c.ClearRouteCache,
		StatusOnError: &typev3.HttpStatus{Code: code}, MetadataContextNamespaces: namespaces, IncludePeerCertificate: c.IncludePeerCertificate,
		BootstrapMetadataLabelsKey: c.BootstrapMetadataLabelsKey,
		AllowedHeaders:             matchersOf(c.AllowedHeaders), DisallowedHeaders: matchersOf(c.DisallowedHeaders),
	}
	if body := c.WithRequestBody; body != nil {
		if body.MaxRequestBytes == 0 {
			return nil, errors.New("WithRequestBody.MaxRequestBytes must be set")
		}
		ext.http.WithRequestBody = &httpauthzv3.BufferSettings{
			MaxRequestBytes: body.MaxRequestBytes, AllowPartialMessage: body.AllowPartialMessage, PackAsBytes: body.PackAsBytes,
		}
	}
	if g := c.GrpcService; g != nil {
		ext.http.Services = &httpauthzv3.ExtAuthz_GrpcService{GrpcService: g.service(t)}
		ext.net = &netauthzv3.ExtAuthz{
			StatPrefix: prefix, TransportApiVersion: corev3.ApiVersion_V3, FailureModeAllow: allow, GrpcService: g.service(t),
			IncludePeerCertificate: c.IncludePeerCertificate, BootstrapMetadataLabelsKey: c.BootstrapMetadataLabelsKey,
			MetadataContextNamespaces: namespaces,
		}
		return ext, nil
	}
	h := c.HTTPService
	if h.PathPrefix != "" && !strings.HasPrefix(h.PathPrefix, "/") {
		return nil, fmt.Errorf("HttpService.PathPrefix %q does not begin with /", h.PathPrefix)
	}
	service := &httpauthzv3.HttpService{PathPrefix: h.PathPrefix, ServerUri: &corev3.HttpUri{
		Uri: t.uri, HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: t.name}, Timeout: durationpb.New(t.timeout),
	}}
	if r := h.AuthorizationRequest; r != nil {
		service.AuthorizationRequest = &httpauthzv3.AuthorizationRequest{HeadersToAdd: headerValues(r.HeadersToAdd)}
		if m := matchersOf(r.AllowedHeaders); m != nil && ext.http.AllowedHeaders == nil {
			ext.http.AllowedHeaders = m
		}
	}
	if r := h.AuthorizationResponse; r != nil {
		service.AuthorizationResponse = &httpauthzv3.AuthorizationResponse{
			AllowedUpstreamHeaders:         matchersOf(r.AllowedUpstreamHeaders),
			AllowedUpstreamHeadersToAppend: matchersOf(r.AllowedUpstreamHeadersToAppend),
			AllowedClientHeaders:           matchersOf(r.AllowedClientHeaders),
			AllowedClientHeadersOnSuccess:  matchersOf(r.AllowedClientHeadersOnSuccess),
			DynamicMetadataFromHeaders:     matchersOf(r.DynamicMetadataFromHeaders),
		}
	}
	ext.http.Services = &httpauthzv3.ExtAuthz_HttpService{HttpService: service}
	return ext, nil
}

// matchersOf returns what arguments match, nil for nothing.
func matchersOf(all []stringMatcher) *matcherv3.ListStringMatcher {
	if len(all) == 0 {
		return nil
	}
	out := &matcherv3.ListStringMatcher{}
	for _, a := range all {
		m := &matcherv3.StringMatcher{IgnoreCase: a.IgnoreCase}
		switch {
		case a.Contains != "":
			m.MatchPattern = &matcherv3.StringMatcher_Contains{Contains: a.Contains}
		case a.Prefix != "":
			m.MatchPattern = &matcherv3.StringMatcher_Prefix{Prefix: a.Prefix}
		case a.Suffix != "":
			m.MatchPattern = &matcherv3.StringMatcher_Suffix{Suffix: a.Suffix}
		case a.SafeRegex != "":
			m = regex(a.SafeRegex)
		default:
			m.MatchPattern = &matcherv3.StringMatcher_Exact{Exact: a.Exact}
		}
		out.Patterns = append(out.Patterns, m)
	}
	return out
}

func (x *extAuthz) apply(b *build, t Type, m *made) error {
	l := b.listenerOf(x.listenerType, t, m)
	if l == nil {
		return nil
	}
	m.uses = append(slices.Clip(m.uses), ref{Cluster, x.name})
	for _, fc := range chainsOf(l) {
		if slices.ContainsFunc(fc.Filters, func(f *listenerv3.Filter) bool { return f.Name == filterHCM }) {
			continue
		}
		if x.net == nil {
			return errors.New("an HttpService can not be asked about connections")
		}
		if b.flavour == Own {
			return errors.New("the built-in proxy asks about requests only")
		}
		f := filter("envoy.filters.network.ext_authz", x.net)
		var err error
		if fc.Filters, err = insertFilter(fc.Filters, f, x.insert, filterTCPProxy); err != nil {
			return err
		}
	}
	return changeManagers(l, func(m *hcmv3.HttpConnectionManager) (err error) {
		m.HttpFilters, err = insertFilter(m.HttpFilters, httpFilter("envoy.filters.http.ext_authz", x.http), x.insert, filterRouter)
		return err
	})
}

// messageOf fills a message with fields by their JSON names. Values that are nil are left out.
func messageOf(m proto.Message, fields map[string]any) error {
	for k, v := range fields {
		if v == nil {
			delete(fields, k)
		}
	}
	data, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	return protojson.Unmarshal(data, m)
}
