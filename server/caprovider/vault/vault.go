// Package vault is the CA provider whose root and intermediate are PKI engines of HashiCorp Vault, or of OpenBao, which
// speaks the same. Keys never leave Vault. The root signs one intermediate; that signs leaves, with a role of its own that
// takes the names from this server and none from requests.
package vault

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/server/caprovider"
)

// A Kind makes providers. A zero field takes its default.
type Kind struct {
	Dial   func(ctx context.Context, network, address string) (net.Conn, error) // default a net.Dialer's
	Getenv func(string) string                                                  // default os.Getenv; for credentials of AWS
	Log    hclog.Logger                                                         // default discards
}

// withDefaults returns the kind with nothing missing.
func (k Kind) withDefaults() *Kind {
	if k.Dial == nil {
		k.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	if k.Getenv == nil {
		k.Getenv = os.Getenv
	}
	if k.Log == nil {
		k.Log = hclog.NewNullLogger()
	}
	return &k
}

// leafRole is the role that signs leaves.
const leafRole = "leaf-cert"

// issuerKey is where the state has the ID that Vault gave to the intermediate. Versions before 1.11 give none.
const issuerKey = "IntermediateIssuer"

// Establish finds the root at its path or makes one there, and does the same with the intermediate and its role.
func (k Kind) Establish(ctx context.Context, w caprovider.Wanted) (*trust.ProviderState, error) {
	s, err := parse(w.Config)
	if err != nil {
		return nil, err
	}
	c, err := newClient(k.withDefaults(), s)
	if err != nil {
		return nil, err
	}
	defer c.close()
	b := &builder{client: c, settings: w.Settings, trustDomain: connect.TrustDomain(w.ClusterID)}
	kept := &trust.ProviderState{}
	if kept.RootCert, err = b.root(ctx); err != nil {
		return nil, err
	}
	if w.Current != nil && w.New && sameCertificate(kept.RootCert, w.Current.RootCert) {
		return nil, fmt.Errorf("the root is where RootPKIPath %q says; for another one, set another path", s.root.path)
	}
	if err := b.prepareIntermediate(ctx); err != nil {
		return nil, err
	}
	if w.Current != nil && sameCertificate(kept.RootCert, w.Current.RootCert) {
		if ok, err := b.uses(ctx, w.Current); err != nil {
			return nil, err
		} else if ok {
			kept.Intermediate, kept.State = w.Current.Intermediate, w.Current.State
			return kept, nil
		}
	}
	return kept, b.intermediate(ctx, kept)
}

// Open returns a provider that logs in when it is first used.
func (k Kind) Open(kept *trust.ProviderState, clusterID string) (ca.Provider, error) {
	s, err := parse(kept.Config)
	if err != nil {
		return nil, err
	}
	settings, err := ca.ParseSettings(ca.Vault, kept.Config)
	if err != nil {
		return nil, err
	}
	between, issuer, err := ca.SigningChain(kept)
	if err != nil {
		return nil, err
	}
	c, err := newClient(k.withDefaults(), s)
	if err != nil {
		return nil, err
	}
	b := builder{client: c, settings: settings, trustDomain: connect.TrustDomain(clusterID)}
	return &provider{builder: b, kept: kept, issuer: issuer, between: between}, nil
}

// Close does nothing: providers share nothing.
func (k Kind) Close() {}

// A builder sets up the engines.
type builder struct {
	*client
	settings    ca.Settings
	trustDomain string
}

// root returns the certificate at the root's path, which is made if there is none.
func (b *builder) root(ctx context.Context) (string, error) {
	m := b.s.root
	text, mounted, err := b.authority(ctx, m)
	if err != nil || text != "" {
		return text, err
	}
	if !mounted {
		if err := b.mount(ctx, m, "root CA of the Sarn mesh", b.settings.RootCertTTL); err != nil {
			return "", err
		}
	}
	var reply certificateReply
	err = b.call(ctx, http.MethodPost, m, m.path+"/root/generate/internal", map[string]any{
		"common_name": "Vault CA Root Authority " + b.trustDomain[:min(8, len(b.trustDomain))], "exclude_cn_from_sans": true,
		"uri_sans": b.uri(), "key_type": b.settings.PrivateKeyType, "key_bits": b.settings.PrivateKeyBits,
		"ttl": seconds(b.settings.RootCertTTL), "format": "pem",
	}, &reply)
	if err != nil {
		return "", fmt.Errorf("make the root at %s: %w", m.path, err)
	}
	return reply.certificate("root at " + m.path)
}

func (b *builder) uri() string { return connect.CAID(b.trustDomain).String() }

// A certificateReply is the answer of what signs.
type certificateReply struct {
	Data struct {
		Certificate string `json:"certificate"`
	} `json:"data"`
}

func (r *certificateReply) certificate(what string) (string, error) {
	cert, err := ca.ParseCertificate(r.Data.Certificate)
	if err != nil {
		return "", fmt.Errorf("%s: no certificate in the answer of Vault: %w", what, err)
	}
	return ca.EncodeCertificate(cert.Raw), nil
}

// authority returns the certificate of an engine, "" when it has none, and whether the engine is there at all.
func (b *builder) authority(ctx context.Context, m mount) (text string, mounted bool, err error) {
	err = b.call(ctx, http.MethodGet, m, m.path+"/ca/pem", nil, &text)
	switch {
	case hasStatus(err, http.StatusNotFound):
		return "", false, nil
	case says(err, "no default issuer"): // as some versions put it
		return "", true, nil
	case err != nil:
		return "", false, fmt.Errorf("read the certificate at %s: %w", m.path, err)
	case strings.TrimSpace(text) == "":
		return "", true, nil
	}
	cert, err := ca.ParseCertificate(text)
	if err != nil {
		return "", true, fmt.Errorf("read the certificate at %s: %w", m.path, err)
	}
	return ca.EncodeCertificate(cert.Raw), true, nil
}

func (b *builder) mount(ctx context.Context, m mount, description string, ttl time.Duration) error {
	err := b.call(ctx, http.MethodPost, m, "sys/mounts/"+m.path, map[string]any{
		"type": "pki", "description": description, "config": map[string]any{"max_lease_ttl": seconds(ttl)},
	}, nil)
	if err != nil && !says(err, "path is already in use") {
		return fmt.Errorf("mount a PKI engine at %s: %w", m.path, err)
	}
	return nil
}

// prepareIntermediate sees to the engine of the intermediate and to the role that signs leaves.
func (b *builder) prepareIntermediate(ctx context.Context) error {
	m := b.s.between
	_, mounted, err := b.authority(ctx, m)
	if err != nil {
		return err
	}
	if !mounted {
		err = b.mount(ctx, m, "intermediate CA of the Sarn mesh", b.settings.IntermediateCertTTL)
	} else {
		err = b.call(ctx, http.MethodPost, m, "sys/mounts/"+m.path+"/tune", map[string]any{"max_lease_ttl": seconds(b.settings.IntermediateCertTTL)}, nil)
		if err != nil && !hasStatus(err, http.StatusForbidden) { // who mounts it may keep that for himself
			err = fmt.Errorf("set the longest TTL of %s: %w", m.path, err)
		} else if err != nil {
			b.log.Warn("the longest TTL of the intermediate PKI engine is left as it is", "path", m.path, "error", err)
			err = nil
		}
	}
	if err != nil {
		return err
	}
	// The names come from the server alone, which has checked the request.
	err = b.call(ctx, http.MethodPost, m, m.path+"/roles/"+leafRole, map[string]any{
		"allow_any_name": true, "enforce_hostnames": false, "allowed_uri_sans": "spiffe://*", "key_type": "any",
		"use_csr_common_name": false, "use_csr_sans": false, "require_cn": false, "no_store": true,
		"max_ttl": seconds(b.settings.LeafCertTTL), "not_before_duration": "60s", "server_flag": true, "client_flag": true,
		"key_usage": []string{"DigitalSignature", "KeyEncipherment", "DataEncipherment", "KeyAgreement"},
	}, nil)
	if err != nil {
		return fmt.Errorf("write the role %s/roles/%s: %w", m.path, leafRole, err)
	}
	return nil
}

// uses tells whether the engine of the intermediate still has the one that is kept.
func (b *builder) uses(ctx context.Context, kept *trust.ProviderState) (bool, error) {
	m := b.s.between
	path := m.path + "/ca/pem"
	if id := kept.State[issuerKey]; id != "" {
		path = m.path + "/issuer/" + id + "/pem"
	}
	var text string
	if err := b.call(ctx, http.MethodGet, m, path, nil, &text); err != nil {
		if hasStatus(err, http.StatusNotFound) || hasStatus(err, http.StatusInternalServerError) {
			return false, nil
		}
		return false, fmt.Errorf("read the certificate at %s: %w", m.path, err)
	}
	return sameCertificate(text, kept.Intermediate), nil
}

// intermediate makes a new intermediate, signed by the root.
func (b *builder) intermediate(ctx context.Context, kept *trust.ProviderState) error {
	m := b.s.between
	var made struct {
		Data struct {
			CSR   string `json:"csr"`
			KeyID string `json:"key_id"`
		} `json:"data"`
	}
	name := ca.IntermediateName(b.trustDomain, "vault")
	err := b.call(ctx, http.MethodPost, m, m.path+"/intermediate/generate/internal", map[string]any{
		"common_name": name, "exclude_cn_from_sans": true, "uri_sans": b.uri(),
		"key_type": b.settings.PrivateKeyType, "key_bits": b.settings.PrivateKeyBits,
	}, &made)
	if err != nil {
		return fmt.Errorf("make the key of an intermediate at %s: %w", m.path, err)
	}
	root, err := ca.ParseCertificate(kept.RootCert)
	if err != nil {
		return err
	}
	// Vault refuses what would outlive its root.
	ttl := min(b.settings.IntermediateCertTTL, time.Until(root.NotAfter)-time.Second)
	cert, err := b.signByRoot(ctx, made.Data.CSR, name, b.uri(), ttl)
	if err != nil {
		return err
	}
	var set struct {
		Data struct {
			Mapping  map[string]string `json:"mapping"` // issuer to key
			Imported []string          `json:"imported_issuers"`
		} `json:"data"`
	}
	if err := b.call(ctx, http.MethodPost, m, m.path+"/intermediate/set-signed", map[string]any{"certificate": cert}, &set); err != nil {
		return fmt.Errorf("give %s its certificate: %w", m.path, err)
	}
	kept.Intermediate, kept.State = cert, nil
	for issuer, key := range set.Data.Mapping {
		if key != "" && key == made.Data.KeyID && pathIsPlain(issuer) {
			kept.State = map[string]string{issuerKey: issuer}
			if err := b.call(ctx, http.MethodPost, m, m.path+"/config/issuers", map[string]any{"default": issuer}, nil); err != nil {
				return fmt.Errorf("make the new intermediate the default of %s: %w", m.path, err)
			}
		}
	}
	return nil
}

// signByRoot has the root sign an authority for leaves.
func (b *builder) signByRoot(ctx context.Context, csr, name, uri string, ttl time.Duration) (string, error) {
	m := b.s.root
	var reply certificateReply
	err := b.call(ctx, http.MethodPost, m, m.path+"/root/sign-intermediate", map[string]any{
		"csr": csr, "use_csr_values": false, "common_name": name, "exclude_cn_from_sans": true, "uri_sans": uri,
		"ttl": seconds(ttl), "max_path_length": 0, "format": "pem",
	}, &reply)
	if err != nil {
		return "", fmt.Errorf("sign an intermediate with the root at %s: %w", m.path, err)
	}
	return reply.certificate("intermediate signed at " + m.path)
}

// seconds writes a duration as Vault reads it.
func seconds(d time.Duration) string { return fmt.Sprintf("%ds", int64(d/time.Second)) }

func sameCertificate(a, b string) bool {
	x, err := ca.ParseCertificate(a)
	if err != nil {
		return false
	}
	y, err := ca.ParseCertificate(b)
	return err == nil && x.Equal(y)
}

// A provider signs with what was established.
type provider struct {
	builder
	kept    *trust.ProviderState
	issuer  *x509.Certificate
	between []string
}

func (p *provider) Root() string              { return p.kept.RootCert }
func (p *provider) Issuer() *x509.Certificate { return p.issuer }
func (p *provider) Intermediates() []string   { return p.between }
func (p *provider) CrossSigns() bool          { return true }
func (p *provider) Close()                    { p.close() }

func (p *provider) Sign(ctx context.Context, template *x509.Certificate, csr *x509.CertificateRequest) ([]byte, error) {
	m := p.s.between
	path := m.path + "/sign/" + leafRole
	if id := p.kept.State[issuerKey]; id != "" {
		path = m.path + "/issuer/" + id + "/sign/" + leafRole
	}
	var uris []string
	for _, u := range template.URIs {
		uris = append(uris, u.String())
	}
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	var reply certificateReply
	err := p.call(ctx, http.MethodPost, m, path, map[string]any{
		"csr": encodeRequest(csr), "uri_sans": strings.Join(uris, ","), "alt_names": strings.Join(template.DNSNames, ","),
		"exclude_cn_from_sans": true, "ttl": seconds(time.Until(template.NotAfter)), "format": "pem",
	}, &reply)
	if err != nil {
		return nil, err
	}
	return decode(reply.Data.Certificate)
}

func (p *provider) SignIntermediate(ctx context.Context, template *x509.Certificate, csr *x509.CertificateRequest) ([]byte, error) {
	if len(template.URIs) != 1 {
		return nil, errors.New("an intermediate has one URI")
	}
	cert, err := p.signByRoot(ctx, encodeRequest(csr), template.Subject.CommonName, template.URIs[0].String(), time.Until(template.NotAfter))
	if err != nil {
		return nil, err
	}
	return decode(cert)
}

// CrossSign has Vault sign the other root. It gives it the life that the root has, as far as the engine lets it.
func (p *provider) CrossSign(ctx context.Context, _, root *x509.Certificate) ([]byte, error) {
	m := p.s.root
	var reply certificateReply
	err := p.call(ctx, http.MethodPost, m, m.path+"/root/sign-self-issued", map[string]any{
		"certificate": ca.EncodeCertificate(root.Raw),
	}, &reply)
	if err != nil {
		return nil, err
	}
	return decode(reply.Data.Certificate)
}

func (p *provider) Renew(ctx context.Context) (*trust.ProviderState, error) {
	next := caprovider.Copy(p.kept)
	if err := p.prepareIntermediate(ctx); err != nil {
		return nil, err
	}
	return next, p.intermediate(ctx, next)
}

// Cleanup removes the engine of the intermediate. The root's stays: others may have been signed by it.
func (p *provider) Cleanup(ctx context.Context, next *trust.ProviderState) error {
	m := p.s.between
	if next != nil && next.Provider == ca.Vault {
		if other, err := parse(next.Config); err != nil || other.between == m || other.root == m {
			return nil
		}
	}
	err := p.call(ctx, http.MethodDelete, m, "sys/mounts/"+m.path, nil, nil)
	if err != nil && !hasStatus(err, http.StatusNotFound) {
		return fmt.Errorf("unmount the PKI engine at %s: %w", m.path, err)
	}
	return nil
}

func encodeRequest(csr *x509.CertificateRequest) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw}))
}

func decode(text string) ([]byte, error) {
	cert, err := ca.ParseCertificate(text)
	if err != nil {
		return nil, fmt.Errorf("no certificate in the answer of Vault: %w", err)
	}
	return cert.Raw, nil
}
