package xds

import (
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/mesh"
)

// Names of the secrets of flavour Own.
const (
	LeafSecret  = "leaf"  // the proxy's certificate
	RootsSecret = "roots" // the trusted roots
)

// secrets makes the certificate and the trusted roots into resources of their own.
func (b *build) secrets() error {
	leaf, roots := b.s.Leaf(), b.s.Roots()
	err := b.add(Secret, LeafSecret, []any{leaf}, func() (made, error) {
		return made{message: &tlsv3.Secret{
			Name: LeafSecret, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: b.certificate()},
		}}, nil
	})
	if err != nil {
		return err
	}
	return b.add(Secret, RootsSecret, []any{roots}, func() (made, error) {
		return made{message: &tlsv3.Secret{
			Name: RootsSecret,
			Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: b.trustedCA()}},
		}}, nil
	})
}

// certificate returns the proxy's own certificate with its intermediates and key.
func (b *build) certificate() *tlsv3.TlsCertificate {
	leaf := b.s.Leaf()
	return &tlsv3.TlsCertificate{
		CertificateChain: inline(line(leaf.CertPEM)),
		PrivateKey:       inline(line(leaf.PrivateKeyPEM)),
	}
}

// peerSecret returns the name of the secret of flavour Own with the roots of a peer.
func peerSecret(p *mesh.PeerBundle) string { return RootsSecret + "~" + p.Peer }

// peerCA returns the roots of a peer.
func peerCA(p *mesh.PeerBundle) *corev3.DataSource {
	var all strings.Builder
	for _, r := range p.RootPEMs {
		all.WriteString(line(r))
	}
	return inline(all.String())
}

// peerRoots makes the roots of a peer a secret of flavour Own. What refers to it may be as it was; the secret is there
// nevertheless.
func (b *build) peerRoots(p *mesh.PeerBundle) error {
	if p == nil || b.flavour != Own {
		return nil
	}
	return b.add(Secret, peerSecret(p), []any{p}, func() (made, error) {
		return made{message: &tlsv3.Secret{
			Name: peerSecret(p),
			Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: peerCA(p)}},
		}}, nil
	})
}

// trustedCA returns all roots, those rotated out included.
func (b *build) trustedCA() *corev3.DataSource {
	var all strings.Builder
	for _, r := range b.s.Roots().Roots {
		all.WriteString(line(r.RootCert))
	}
	return inline(all.String())
}

func inline(s string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}}
}

// line makes s end in exactly the newline it has, or one.
func line(s string) string {
	if s == "" || strings.HasSuffix(s, "\n") {
		return s
	}
	return s + "\n"
}

// trustFrom lists what commonTLS depends on, for add.
func (b *build) trustFrom() []any {
	if b.flavour != Envoy {
		return []any{b.s.Mesh()}
	}
	return []any{b.s.Mesh(), b.s.Roots(), b.s.Leaf()}
}

// commonTLS returns what both sides of a connection in the mesh have: the proxy's certificate, trust in the roots (in
// those of a peer unless that is nil), and the names the other side must have one of, none for any.
func (b *build) commonTLS(params *entry.TLSParameters, names []string, peer *mesh.PeerBundle) (*tlsv3.CommonTlsContext, []ref, error) {
	p, err := tlsParameters(params)
	if err != nil {
		return nil, nil, err
	}
	c := &tlsv3.CommonTlsContext{TlsParams: p}
	validation := &tlsv3.CertificateValidationContext{}
	for _, n := range names {
		validation.MatchTypedSubjectAltNames = append(validation.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{
			SanType: tlsv3.SubjectAltNameMatcher_URI,
			Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: n}},
		})
	}
	if b.flavour != Own {
		c.TlsCertificates = []*tlsv3.TlsCertificate{b.certificate()}
		if peer != nil {
			validation.TrustedCa = peerCA(peer)
		} else {
			validation.TrustedCa = b.trustedCA()
		}
		c.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation}
		return c, nil, nil
	}
	roots := RootsSecret
	if peer != nil {
		roots = peerSecret(peer)
	}
	uses := []ref{{Secret, LeafSecret}, {Secret, roots}}
	c.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{b.sds(LeafSecret)}
	if len(names) == 0 {
		c.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{ValidationContextSdsSecretConfig: b.sds(roots)}
		return c, uses, nil
	}
	c.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext:         validation,
			ValidationContextSdsSecretConfig: b.sds(roots),
		},
	}
	return c, uses, nil
}

func (b *build) sds(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: b.ads()}
}

// downstreamTLS returns the transport socket of a listener of the mesh: every client shows a certificate. It is that of a
// member of this cluster, or of a peer that the proxy's service is exported to.
func (b *build) downstreamTLS(protocol string) (*corev3.TransportSocket, []ref, error) {
	domains := map[string]*corev3.DataSource{}
	for _, p := range b.s.Callers() {
		domains[strings.ToLower(p.TrustDomain)] = peerCA(p)
	}
	if len(domains) > 0 {
		domains[b.trustDomain] = b.trustedCA()
	}
	return b.downstreamTLSFor(protocol, domains)
}

// downstreamTLSFor is downstreamTLS for clients of some trust domains, each of which vouches for its own members only; for
// those of this cluster alone when there are none.
func (b *build) downstreamTLSFor(protocol string, domains map[string]*corev3.DataSource) (*corev3.TransportSocket, []ref, error) {
	var params *entry.TLSParameters
	if m := b.s.Mesh(); m != nil && m.TLS != nil {
		params = m.TLS.Incoming
	}
	common, uses, err := b.commonTLS(params, nil, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("incoming TLS parameters: %w", err)
	}
	if len(domains) > 0 {
		v := &tlsv3.SPIFFECertValidatorConfig{}
		for _, name := range sortedKeys(domains) {
			v.TrustDomains = append(v.TrustDomains, &tlsv3.SPIFFECertValidatorConfig_TrustDomain{Name: name, TrustBundle: domains[name]})
		}
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			CustomValidatorConfig: &corev3.TypedExtensionConfig{Name: "envoy.tls.cert_validator.spiffe", TypedConfig: mustPack(v)},
		}}
		uses = slices.DeleteFunc(slices.Clone(uses), func(r ref) bool { return r == ref{Secret, RootsSecret} })
	}
	switch {
	case isHTTP2(protocol):
		common.AlpnProtocols = []string{"h2", "http/1.1"}
	case isHTTP(protocol):
		common.AlpnProtocols = []string{"http/1.1"}
	}
	return tlsSocket(&tlsv3.DownstreamTlsContext{
		CommonTlsContext:         common,
		RequireClientCertificate: wrapperspb.Bool(true),
	}), uses, nil
}

// callersFrom lists whom downstreamTLS trusts, for add.
func (b *build) callersFrom() []any {
	peers := b.s.Callers()
	if len(peers) == 0 {
		return nil
	}
	from := []any{b.s.Roots()}
	for _, p := range peers {
		from = append(from, p)
	}
	return from
}

// upstreamTLS returns the transport socket of a cluster whose instances must have one of the names.
func (b *build) upstreamTLS(r *reach) (*corev3.TransportSocket, []ref, error) {
	if len(r.names) == 0 {
		return nil, nil, fmt.Errorf("no name to expect from %s", r.sni)
	}
	if b.flavour == Proxyless {
		return proxylessTLS(r), nil, nil
	}
	var params *entry.TLSParameters
	if m := b.s.Mesh(); m != nil && m.TLS != nil {
		params = m.TLS.Outgoing
	}
	common, uses, err := b.commonTLS(params, r.names, r.peer)
	if err != nil {
		return nil, nil, fmt.Errorf("outgoing TLS parameters: %w", err)
	}
	return tlsSocket(&tlsv3.UpstreamTlsContext{CommonTlsContext: common, Sni: r.sni}), uses, nil
}

func tlsSocket(context proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name:       "tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: mustPack(context)},
	}
}

var tlsVersions = map[entry.TLSVersion]tlsv3.TlsParameters_TlsProtocol{
	"": tlsv3.TlsParameters_TLS_AUTO, "TLS_AUTO": tlsv3.TlsParameters_TLS_AUTO,
	"TLSv1_0": tlsv3.TlsParameters_TLSv1_0, "TLSv1_1": tlsv3.TlsParameters_TLSv1_1,
	"TLSv1_2": tlsv3.TlsParameters_TLSv1_2, "TLSv1_3": tlsv3.TlsParameters_TLSv1_3,
}

// cipherNames are the names OpenSSL gives to the suites that may be asked for by their IANA names.
var cipherNames = map[string]string{
	"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256":       "ECDHE-ECDSA-AES128-GCM-SHA256",
	"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384":       "ECDHE-ECDSA-AES256-GCM-SHA384",
	"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
	"TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA":          "ECDHE-ECDSA-AES128-SHA",
	"TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA":          "ECDHE-ECDSA-AES256-SHA",
	"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256":         "ECDHE-RSA-AES128-GCM-SHA256",
	"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384":         "ECDHE-RSA-AES256-GCM-SHA384",
	"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256":   "ECDHE-RSA-CHACHA20-POLY1305",
	"TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA":            "ECDHE-RSA-AES128-SHA",
	"TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA":            "ECDHE-RSA-AES256-SHA",
	"TLS_RSA_WITH_AES_128_GCM_SHA256":               "AES128-GCM-SHA256",
	"TLS_RSA_WITH_AES_256_GCM_SHA384":               "AES256-GCM-SHA384",
	"TLS_RSA_WITH_AES_128_CBC_SHA":                  "AES128-SHA",
	"TLS_RSA_WITH_AES_256_CBC_SHA":                  "AES256-SHA",
}

// tlsParameters returns the bounds on versions and ciphers. It is always present.
func tlsParameters(p *entry.TLSParameters) (*tlsv3.TlsParameters, error) {
	out := &tlsv3.TlsParameters{}
	if p == nil {
		return out, nil
	}
	var ok bool
	if out.TlsMinimumProtocolVersion, ok = tlsVersions[p.TLSMinVersion]; !ok {
		return nil, fmt.Errorf("unknown TLS version %q", p.TLSMinVersion)
	}
	if out.TlsMaximumProtocolVersion, ok = tlsVersions[p.TLSMaxVersion]; !ok {
		return nil, fmt.Errorf("unknown TLS version %q", p.TLSMaxVersion)
	}
	if len(p.CipherSuites) > 0 && out.TlsMinimumProtocolVersion == tlsv3.TlsParameters_TLSv1_3 {
		return nil, fmt.Errorf("cipher suites can not be chosen with minimum version %s", p.TLSMinVersion)
	}
	for _, suite := range p.CipherSuites {
		name, ok := cipherNames[suite]
		if !ok {
			return nil, fmt.Errorf("unknown cipher suite %q", suite)
		}
		out.CipherSuites = append(out.CipherSuites, name)
	}
	return out, nil
}
