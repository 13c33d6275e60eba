package xds

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	jwtauthnv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog/entry"
)

const (
	filterJWT = "envoy.filters.http.jwt_authn"
	// tokenPrefix begins the names of clusters that keys for tokens are fetched from.
	tokenPrefix = "jwks_cluster_"
	// tokenPayload begins the names of the metadata that the payload of a valid token is left in.
	tokenPayload = "jwt_payload_"
)

// tokenIssuers returns the providers whose tokens intentions ask for, those that exist and can be used, in order. It tells
// about the others on demand.
func (b *build) tokenIssuers(tell bool) []*entry.JWTProvider {
	var out []*entry.JWTProvider
	for _, name := range b.s.TokenIssuers() {
		p := b.s.TokenIssuer(name)
		if p == nil {
			continue // no token of its can be valid, so whoever must have one is refused
		}
		if _, err := tokenServer(p); err != nil {
			if tell {
				b.problem("jwt-provider %s: %w", name, err)
			}
			continue
		}
		out = append(out, p)
	}
	return out
}

// tokensFrom lists what authorization by tokens depends on, for add.
func (b *build) tokensFrom() []any {
	var from []any
	for _, name := range b.s.TokenIssuers() {
		from = append(from, b.s.TokenIssuer(name))
	}
	return from
}

// tokenFilter is the filter that verifies tokens, nil when no intention asks for any. It refuses nothing by itself: what
// it leaves behind about valid tokens the rules ask for.
func (b *build) tokenFilter() (*hcmv3.HttpFilter, []ref, error) {
	issuers := b.tokenIssuers(false)
	if len(issuers) == 0 {
		return nil, nil, nil
	}
	config := &jwtauthnv3.JwtAuthentication{Providers: map[string]*jwtauthnv3.JwtProvider{}}
	var all []*jwtauthnv3.JwtRequirement
	var uses []ref
	for _, e := range issuers {
		p, err := b.tokenProvider(e)
		if err != nil {
			return nil, nil, fmt.Errorf("jwt-provider %s: %w", e.Name, err)
		}
		config.Providers[e.Name] = p
		if p.GetRemoteJwks() != nil {
			uses = append(uses, ref{Cluster, tokenPrefix + e.Name})
		}
		all = append(all, &jwtauthnv3.JwtRequirement{RequiresType: &jwtauthnv3.JwtRequirement_RequiresAny{
			RequiresAny: &jwtauthnv3.JwtRequirementOrList{Requirements: []*jwtauthnv3.JwtRequirement{
				{RequiresType: &jwtauthnv3.JwtRequirement_ProviderName{ProviderName: e.Name}},
				{RequiresType: &jwtauthnv3.JwtRequirement_AllowMissingOrFailed{AllowMissingOrFailed: &emptypb.Empty{}}},
			}},
		}})
	}
	requires := all[0]
	if len(all) > 1 {
		requires = &jwtauthnv3.JwtRequirement{RequiresType: &jwtauthnv3.JwtRequirement_RequiresAll{
			RequiresAll: &jwtauthnv3.JwtRequirementAndList{Requirements: all},
		}}
	}
	config.Rules = []*jwtauthnv3.RequirementRule{{
		Match:           &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		RequirementType: &jwtauthnv3.RequirementRule_Requires{Requires: requires},
	}}
	return httpFilter(filterJWT, config), uses, nil
}

// tokenProvider says how the tokens of an issuer are found and verified.
func (b *build) tokenProvider(e *entry.JWTProvider) (*jwtauthnv3.JwtProvider, error) {
	p := &jwtauthnv3.JwtProvider{
		Issuer: e.Issuer, Audiences: e.Audiences, PayloadInMetadata: tokenPayload + e.Name, ClockSkewSeconds: uint32(max(0, e.ClockSkewSeconds)),
	}
	if f := e.Forwarding; f != nil {
		p.ForwardPayloadHeader, p.PadForwardPayloadHeader = f.HeaderName, f.PadForwardPayloadHeader
	}
	if c := e.CacheConfig; c != nil && c.Size > 0 {
		p.JwtCacheConfig = &jwtauthnv3.JwtCacheConfig{JwtCacheSize: uint32(min(c.Size, math.MaxUint32))}
	}
	for _, l := range e.Locations {
		switch {
		case l.Header != nil:
			p.FromHeaders = append(p.FromHeaders, &jwtauthnv3.JwtHeader{Name: l.Header.Name, ValuePrefix: l.Header.ValuePrefix})
			p.Forward = l.Header.Forward
		case l.QueryParam != nil:
			p.FromParams = append(p.FromParams, l.QueryParam.Name)
		case l.Cookie != nil:
			p.FromCookies = append(p.FromCookies, l.Cookie.Name)
		}
	}
	set := e.JSONWebKeySet
	if local := set.Local; local != nil {
		keys := &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: local.Filename}}
		if local.Filename == "" {
			text, err := base64.StdEncoding.DecodeString(local.JWKS)
			if err != nil {
				return nil, fmt.Errorf("decode JWKS: %w", err)
			}
			keys = inline(string(text))
		}
		p.JwksSourceSpecifier = &jwtauthnv3.JwtProvider_LocalJwks{LocalJwks: keys}
		return p, nil
	}
	r := set.Remote
	remote := &jwtauthnv3.RemoteJwks{
		HttpUri: &corev3.HttpUri{
			Uri:              r.URI,
			HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: tokenPrefix + e.Name},
			Timeout:          durationpb.New(milliseconds(cmp.Or(max(r.RequestTimeoutMs, 0), defaultFetchMs))),
		},
		AsyncFetch: &jwtauthnv3.JwksAsyncFetch{FastListener: r.FetchAsynchronously},
	}
	if r.CacheDuration > 0 {
		remote.CacheDuration = durationpb.New(r.CacheDuration)
	}
	if retry := r.RetryPolicy; retry != nil {
		remote.RetryPolicy = &corev3.RetryPolicy{NumRetries: wrapperspb.UInt32(uint32(max(0, retry.NumRetries)))}
		if back := retry.RetryPolicyBackOff; back != nil && back.BaseInterval > 0 {
			remote.RetryPolicy.RetryBackOff = &corev3.BackoffStrategy{BaseInterval: durationpb.New(max(back.BaseInterval, time.Millisecond))}
			if back.MaxInterval > 0 {
				remote.RetryPolicy.RetryBackOff.MaxInterval = durationpb.New(max(back.MaxInterval, back.BaseInterval, time.Millisecond))
			}
		}
	}
	p.JwksSourceSpecifier = &jwtauthnv3.JwtProvider_RemoteJwks{RemoteJwks: remote}
	return p, nil
}

// defaultFetchMs bounds fetching keys where nothing else is set.
const defaultFetchMs = 500

// tokenDiscovery are the ways of finding a server of keys that need nothing else.
var tokenDiscovery = map[string]clusterv3.Cluster_DiscoveryType{
	"": clusterv3.Cluster_STRICT_DNS, "STRICT_DNS": clusterv3.Cluster_STRICT_DNS,
	"LOGICAL_DNS": clusterv3.Cluster_LOGICAL_DNS, "STATIC": clusterv3.Cluster_STATIC,
}

// tokenServer returns the URI keys are fetched from, nil for keys that are not fetched; an error when they can not be had.
func tokenServer(e *entry.JWTProvider) (*url.URL, error) {
	set := e.JSONWebKeySet
	if set == nil || set.Local == nil && set.Remote == nil {
		return nil, errors.New("it has no keys")
	}
	if set.Remote == nil {
		return nil, checkKeys(set.Local)
	}
	u, err := url.Parse(set.Remote.URI)
	if err != nil {
		return nil, err
	}
	if u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("keys can not be fetched from %q", set.Remote.URI)
	}
	if c := set.Remote.JWKSCluster; c != nil {
		discovery, ok := tokenDiscovery[c.DiscoveryType]
		if !ok {
			return nil, fmt.Errorf("a server of keys can not be found by %s", c.DiscoveryType)
		}
		if _, err := netip.ParseAddr(u.Hostname()); discovery == clusterv3.Cluster_STATIC && err != nil {
			return nil, fmt.Errorf("discovery type STATIC with the name %s", u.Hostname())
		}
	}
	return u, nil
}

// checkKeys refuses keys that a proxy would refuse together with the listener that uses them: its older rules would stay
// in force.
func checkKeys(l *entry.LocalJWKS) error {
	if l.Filename != "" {
		return nil
	}
	text, err := base64.StdEncoding.DecodeString(l.JWKS)
	if err != nil {
		return fmt.Errorf("decode JWKS: %w", err)
	}
	var set struct {
		Keys []struct {
			Kty string `json:"kty"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(text, &set); err != nil {
		return fmt.Errorf("decode JWKS: %w", err)
	}
	for _, k := range set.Keys {
		if k.Kty == "RSA" || k.Kty == "EC" || k.Kty == "OKP" || k.Kty == "oct" {
			return nil
		}
	}
	return errors.New("there is no key in its JWKS")
}

// tokenClusters makes the clusters that keys for tokens are fetched from.
func (b *build) tokenClusters() error {
	if !isHTTP(b.s.Config.Protocol) {
		return nil
	}
	for _, e := range b.tokenIssuers(true) {
		u, err := tokenServer(e)
		if err != nil {
			return err
		}
		if u == nil {
			continue
		}
		err = b.add(Cluster, tokenPrefix+e.Name, []any{e}, func() (made, error) { return b.tokenCluster(e, u) })
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *build) tokenCluster(e *entry.JWTProvider, u *url.URL) (made, error) {
	name, r := tokenPrefix+e.Name, e.JSONWebKeySet.Remote
	port := 80
	if u.Scheme == "https" {
		port = 443
	}
	if p := u.Port(); p != "" {
		n, err := strconv.Atoi(p)
		if err != nil || !validPort(n) {
			return made{}, fmt.Errorf("port %q of %s", p, net.JoinHostPort(u.Hostname(), p))
		}
		port = n
	}
	conf := r.JWKSCluster
	if conf == nil {
		conf = &entry.JWKSCluster{}
	}
	c := &clusterv3.Cluster{
		Name:                 name,
		ConnectTimeout:       durationpb.New(cmp.Or(max(conf.ConnectTimeout, 0), defaultConnectTimeout)),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: tokenDiscovery[conf.DiscoveryType]},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints:   []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{host(socket(u.Hostname(), port))}}},
		},
	}
	switch c.GetType() {
	case clusterv3.Cluster_LOGICAL_DNS:
		c.DnsLookupFamily = clusterv3.Cluster_ALL
	case clusterv3.Cluster_STRICT_DNS:
		c.DnsLookupFamily = clusterv3.Cluster_V4_PREFERRED
	}
	if u.Scheme != "https" {
		return made{message: c}, nil
	}
	tls := &tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{}}
	if r.UseSNI {
		tls.Sni = u.Hostname()
	}
	validation := &tlsv3.CertificateValidationContext{}
	trust := conf.TLSCertificates
	switch {
	case trust == nil || trust.TrustedCA == nil && trust.CaCertificateProviderInstance == nil:
		b.problem("jwt-provider %s: the server of keys is not verified, since no TLSCertificates say whom to trust", e.Name)
		c.TransportSocket = tlsSocket(tls)
		return made{message: c}, nil
	case trust.TrustedCA != nil:
		ca := trust.TrustedCA
		switch {
		case ca.Filename != "":
			validation.TrustedCa = &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: ca.Filename}}
		case ca.EnvironmentVariable != "":
			validation.TrustedCa = &corev3.DataSource{Specifier: &corev3.DataSource_EnvironmentVariable{EnvironmentVariable: ca.EnvironmentVariable}}
		case ca.InlineString != "":
			validation.TrustedCa = inline(ca.InlineString)
		default:
			validation.TrustedCa = &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: ca.InlineBytes}}
		}
	default:
		validation.CaCertificateProviderInstance = &tlsv3.CertificateProviderPluginInstance{
			InstanceName: trust.CaCertificateProviderInstance.InstanceName, CertificateName: trust.CaCertificateProviderInstance.CertificateName,
		}
	}
	tls.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation}
	c.TransportSocket = tlsSocket(tls)
	return made{message: c}, nil
}
