//lint:file-ignore SA1019 control planes still send what Envoy has deprecated

package decode

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Secret decodes an SDS secret.
func (d *Decoder) Secret(a *anypb.Any) (*model.Secret, error) {
	var m tlsv3.Secret
	if err := resource(a, &m); err != nil {
		return nil, err
	}
	r := &run{d: d}
	s := &model.Secret{Name: m.GetName()}
	switch {
	case m.GetTlsCertificate() != nil:
		c := r.certificate("tls_certificate", m.GetTlsCertificate())
		s.Certificate = &c
	case m.GetValidationContext() != nil:
		s.Validation = r.validation("validation_context", m.GetValidationContext(), false)
	default:
		r.errorf("type", "only tls_certificate and validation_context are supported")
	}
	return s, r.err()
}

// tlsSocket decodes the settings of a transport socket for TLS; it returns false for plaintext, and for one that cannot be
// used.
func (r *run) tlsSocket(path string, s *corev3.TransportSocket, m proto.Message) bool {
	switch typeOf(s.GetTypedConfig()) {
	case string(m.ProtoReflect().Descriptor().FullName()):
		return r.extension(path, s.GetTypedConfig(), m)
	case "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer":
	default:
		// Fail closed: a socket that is not understood is not plaintext.
		if s != nil {
			r.errorf(path, "transport socket %q of type %q is not supported", s.GetName(), s.GetTypedConfig().GetTypeUrl())
		}
	}
	return false
}

// downstreamTLS decodes the transport socket of a filter chain; nil is plaintext.
func (r *run) downstreamTLS(path string, s *corev3.TransportSocket) *model.DownstreamTLS {
	path = join(path, "transport_socket")
	var m tlsv3.DownstreamTlsContext
	if !r.tlsSocket(path, s, &m) {
		return nil
	}
	r.only(path, &m, "common_tls_context require_client_certificate disable_stateless_session_resumption",
		// Sessions are only ever kept by the client; staples are not served.
		"disable_stateful_session_resumption session_timeout ocsp_staple_policy full_scan_certs_on_sni_mismatch prefer_client_ciphers")
	t := &model.DownstreamTLS{
		TLS:                      r.commonTLS(join(path, "common_tls_context"), m.GetCommonTlsContext()),
		RequireClientCertificate: m.GetRequireClientCertificate().GetValue(),
		DisableResumption:        m.GetDisableStatelessSessionResumption(),
	}
	if len(t.Certificates)+len(t.CertSecrets) == 0 {
		r.errorf(join(path, "common_tls_context"), "no certificate for a server")
	}
	if t.RequireClientCertificate && t.Validation == nil && t.ValidationSecret == "" {
		r.errorf(join(path, "require_client_certificate"), "client certificates are required but no validation context says which are good")
	}
	return t
}

// upstreamTLS decodes the transport socket of a cluster; nil is plaintext.
func (r *run) upstreamTLS(path string, s *corev3.TransportSocket) *model.UpstreamTLS {
	path = join(path, "transport_socket")
	var m tlsv3.UpstreamTlsContext
	if !r.tlsSocket(path, s, &m) {
		return nil
	}
	r.only(path, &m, "common_tls_context sni max_session_keys", "enforce_rsa_key_usage")
	return &model.UpstreamTLS{
		TLS:               r.commonTLS(join(path, "common_tls_context"), m.GetCommonTlsContext()),
		SNI:               m.GetSni(),
		DisableResumption: m.GetMaxSessionKeys() != nil && m.GetMaxSessionKeys().GetValue() == 0,
	}
}

func (r *run) commonTLS(path string, m *tlsv3.CommonTlsContext) model.TLS {
	r.only(path, m, "tls_params tls_certificates tls_certificate_sds_secret_configs validation_context combined_validation_context validation_context_sds_secret_config alpn_protocols", "")
	t := model.TLS{ALPN: m.GetAlpnProtocols()}
	for i, c := range m.GetTlsCertificates() {
		t.Certificates = append(t.Certificates, r.certificate(index(join(path, "tls_certificates"), i), c))
	}
	for i, c := range m.GetTlsCertificateSdsSecretConfigs() {
		t.CertSecrets = append(t.CertSecrets, r.sds(index(join(path, "tls_certificate_sds_secret_configs"), i), c))
	}
	switch {
	case m.GetValidationContext() != nil:
		t.Validation = r.validation(join(path, "validation_context"), m.GetValidationContext(), false)
	case m.GetValidationContextSdsSecretConfig() != nil:
		t.ValidationSecret = r.sds(join(path, "validation_context_sds_secret_config"), m.GetValidationContextSdsSecretConfig())
	case m.GetCombinedValidationContext() != nil:
		c, p := m.GetCombinedValidationContext(), join(path, "combined_validation_context")
		r.only(p, c, "default_validation_context validation_context_sds_secret_config", "")
		t.Validation = r.validation(join(p, "default_validation_context"), c.GetDefaultValidationContext(), true)
		t.ValidationSecret = r.sds(join(p, "validation_context_sds_secret_config"), c.GetValidationContextSdsSecretConfig())
	}
	p := m.GetTlsParams()
	path = join(path, "tls_params")
	r.only(path, p, "tls_minimum_protocol_version tls_maximum_protocol_version cipher_suites ecdh_curves", "")
	t.MinVersion = r.version(join(path, "tls_minimum_protocol_version"), p.GetTlsMinimumProtocolVersion())
	t.MaxVersion = r.version(join(path, "tls_maximum_protocol_version"), p.GetTlsMaximumProtocolVersion())
	if t.MaxVersion != 0 && max(t.MinVersion, tls.VersionTLS10) > t.MaxVersion {
		r.errorf(path, "minimum version is above the maximum")
	}
	for i, name := range p.GetCipherSuites() {
		// Groups of equal preference are taken in order.
		for _, one := range strings.Split(strings.Trim(name, "[]"), "|") {
			id, ok := ciphers[one]
			if !ok {
				r.errorf(index(join(path, "cipher_suites"), i), "cipher suite %q is not supported", one)
				continue
			}
			t.Ciphers = append(t.Ciphers, id)
		}
	}
	for i, name := range p.GetEcdhCurves() {
		id, ok := curves[name]
		if !ok {
			r.errorf(index(join(path, "ecdh_curves"), i), "curve %q is not supported", name)
			continue
		}
		t.Curves = append(t.Curves, id)
	}
	return t
}

func (r *run) version(path string, v tlsv3.TlsParameters_TlsProtocol) uint16 {
	switch v {
	case tlsv3.TlsParameters_TLS_AUTO:
		return 0
	case tlsv3.TlsParameters_TLSv1_0:
		return tls.VersionTLS10
	case tlsv3.TlsParameters_TLSv1_1:
		return tls.VersionTLS11
	case tlsv3.TlsParameters_TLSv1_2:
		return tls.VersionTLS12
	case tlsv3.TlsParameters_TLSv1_3:
		return tls.VersionTLS13
	}
	r.errorf(path, "unknown version %v", v)
	return 0
}

var ciphers = map[string]uint16{
	"ECDHE-ECDSA-AES128-GCM-SHA256": tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-RSA-AES128-GCM-SHA256":   tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	"ECDHE-ECDSA-AES256-GCM-SHA384": tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-RSA-AES256-GCM-SHA384":   tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	"ECDHE-ECDSA-CHACHA20-POLY1305": tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-RSA-CHACHA20-POLY1305":   tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	"ECDHE-ECDSA-AES128-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA,
	"ECDHE-RSA-AES128-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
	"ECDHE-ECDSA-AES256-SHA":        tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA,
	"ECDHE-RSA-AES256-SHA":          tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
	"AES128-GCM-SHA256":             tls.TLS_RSA_WITH_AES_128_GCM_SHA256,
	"AES256-GCM-SHA384":             tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
	"AES128-SHA":                    tls.TLS_RSA_WITH_AES_128_CBC_SHA,
	"AES256-SHA":                    tls.TLS_RSA_WITH_AES_256_CBC_SHA,
}

var curves = map[string]tls.CurveID{
	"X25519": tls.X25519, "P-256": tls.CurveP256, "P-384": tls.CurveP384, "P-521": tls.CurveP521, "X25519MLKEM768": tls.X25519MLKEM768,
}

func (r *run) sds(path string, m *tlsv3.SdsSecretConfig) string {
	if m == nil {
		r.errorf(path, "missing")
		return ""
	}
	// Without a source the secret is one of the bootstrap's.
	if c := m.GetSdsConfig(); c != nil {
		r.adsOnly(join(path, "sds_config"), c)
	}
	if m.GetName() == "" {
		r.errorf(join(path, "name"), "empty")
	}
	return m.GetName()
}

// adsOnly reports configuration sources other than the aggregated stream.
func (r *run) adsOnly(path string, c *corev3.ConfigSource) {
	r.only(path, c, "ads self", "initial_fetch_timeout resource_api_version")
	if c.GetAds() == nil && c.GetSelf() == nil {
		r.errorf(path, "only the source ads is supported")
	}
}

func (r *run) certificate(path string, m *tlsv3.TlsCertificate) model.Certificate {
	r.only(path, m, "certificate_chain private_key", "watched_directory")
	chain, ok1 := r.source(join(path, "certificate_chain"), m.GetCertificateChain())
	key, ok2 := r.source(join(path, "private_key"), m.GetPrivateKey())
	if !ok1 || !ok2 {
		r.errorf(path, "needs both certificate_chain and private_key")
		return model.Certificate{}
	}
	id := sha256.Sum256(append(append([]byte("pair\x00"), chain...), key...))
	c, err := remember(r.d, id, len(chain)+len(key), func() (model.Certificate, error) {
		// The error never quotes the key.
		t, err := tls.X509KeyPair(chain, key)
		return model.Certificate{TLS: t}, err
	})
	if err != nil {
		r.errorf(path, "%w", err)
	}
	return c
}

func (r *run) roots(path string, b []byte) []*x509.Certificate {
	id := sha256.Sum256(append([]byte("roots\x00"), b...))
	certs, err := remember(r.d, id, len(b), func() ([]*x509.Certificate, error) { return parseCertificates(b) })
	if err != nil {
		r.errorf(path, "%w", err)
	}
	return certs
}

func parseCertificates(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" && block.Type != "TRUSTED CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("no certificate found")
	}
	return certs, nil
}

// validation decodes a validation context. One that is partial gets its trust
// from a secret; until then it trusts nobody.
func (r *run) validation(path string, m *tlsv3.CertificateValidationContext, partial bool) *model.Validation {
	if m == nil {
		return nil
	}
	r.only(path, m, "trusted_ca verify_certificate_spki verify_certificate_hash match_typed_subject_alt_names match_subject_alt_names crl allow_expired_certificate trust_chain_verification custom_validator_config only_verify_leaf_cert_crl max_verify_depth",
		"watched_directory suppress_client_ca_list")
	v := &model.Validation{
		AllowExpired: m.GetAllowExpiredCertificate(),
		CRLOnlyLeaf:  m.GetOnlyVerifyLeafCertCrl(),
		MaxDepth:     -1,
		NoTrust:      m.GetTrustChainVerification() == tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED,
	}
	if m.GetMaxVerifyDepth() != nil {
		v.MaxDepth = int(min(m.GetMaxVerifyDepth().GetValue(), 100))
	}
	if b, ok := r.source(join(path, "trusted_ca"), m.GetTrustedCa()); ok {
		v.Roots = r.roots(join(path, "trusted_ca"), b)
	} else if m.GetTrustedCa() == nil && !partial {
		v.NoTrust = true
	}
	for i, s := range m.GetMatchTypedSubjectAltNames() {
		p := index(join(path, "match_typed_subject_alt_names"), i)
		sm := model.SANMatch{Match: r.stringMatch(join(p, "matcher"), s.GetMatcher())}
		switch s.GetSanType() {
		case tlsv3.SubjectAltNameMatcher_URI:
			sm.Type = model.SANURI
		case tlsv3.SubjectAltNameMatcher_DNS:
			sm.Type = model.SANDNS
		case tlsv3.SubjectAltNameMatcher_EMAIL:
			sm.Type = model.SANEmail
		case tlsv3.SubjectAltNameMatcher_IP_ADDRESS:
			sm.Type = model.SANIP
		default:
			r.errorf(join(p, "san_type"), "%v is not supported", s.GetSanType())
		}
		v.SANs = append(v.SANs, sm)
	}
	for i, s := range m.GetMatchSubjectAltNames() {
		sm := r.stringMatch(index(join(path, "match_subject_alt_names"), i), s)
		for _, t := range []model.SANType{model.SANURI, model.SANDNS, model.SANEmail, model.SANIP} {
			v.SANs = append(v.SANs, model.SANMatch{Type: t, Match: sm})
		}
	}
	for i, s := range m.GetVerifyCertificateSpki() {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil || len(b) != sha256.Size {
			r.errorf(index(join(path, "verify_certificate_spki"), i), "is no base64 of a SHA-256")
		}
		v.SPKIHashes = append(v.SPKIHashes, b)
	}
	for i, s := range m.GetVerifyCertificateHash() {
		b, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
		if err != nil || len(b) != sha256.Size {
			r.errorf(index(join(path, "verify_certificate_hash"), i), "is no hexadecimal SHA-256")
		}
		v.CertHashes = append(v.CertHashes, b)
	}
	if b, ok := r.source(join(path, "crl"), m.GetCrl()); ok {
		for {
			var block *pem.Block
			if block, b = pem.Decode(b); block == nil {
				break
			}
			l, err := x509.ParseRevocationList(block.Bytes)
			if err != nil {
				r.errorf(join(path, "crl"), "%w", err)
				continue
			}
			v.CRLs = append(v.CRLs, l)
		}
		if len(v.CRLs) == 0 {
			r.errorf(join(path, "crl"), "no revocation list found")
		}
	}
	if c := m.GetCustomValidatorConfig(); c != nil {
		r.spiffe(join(path, "custom_validator_config"), c, v)
	}
	if v.NoTrust && len(v.SANs) > 0 {
		// Names in a certificate that nobody vouches for mean nothing.
		r.errorf(path, "names are matched but no trusted_ca vouches for them")
	}
	return v
}

func (r *run) spiffe(path string, c *corev3.TypedExtensionConfig, v *model.Validation) {
	var m tlsv3.SPIFFECertValidatorConfig
	if t := typeOf(c.GetTypedConfig()); t != string(m.ProtoReflect().Descriptor().FullName()) {
		r.errorf(path, "validator %q of type %q is not supported", c.GetName(), t)
		return
	}
	if !r.extension(path, c.GetTypedConfig(), &m) {
		return
	}
	r.only(path, &m, "trust_domains", "")
	v.Bundles = map[string][]*x509.Certificate{}
	v.NoTrust = false
	for i, td := range m.GetTrustDomains() {
		p := index(join(path, "trust_domains"), i)
		r.only(p, td, "name trust_bundle", "")
		if _, twice := v.Bundles[td.GetName()]; twice {
			r.errorf(p, "trust domain %q is there twice", td.GetName())
		}
		b, ok := r.source(join(p, "trust_bundle"), td.GetTrustBundle())
		if !ok {
			r.errorf(p, "no trust_bundle")
			continue
		}
		v.Bundles[td.GetName()] = r.roots(join(p, "trust_bundle"), b)
	}
	if len(v.Bundles) == 0 {
		r.errorf(path, "%w", fmt.Errorf("no trust domain"))
	}
}
