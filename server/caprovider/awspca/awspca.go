// Package awspca is the CA provider whose root is an authority of AWS Private CA. It speaks AWS's HTTP interface itself and
// signs its requests; AWS's libraries are not needed.
package awspca

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/server/caprovider"
	"github.com/sarnmesh/sarn/server/caprovider/awsauth"
)

// A Kind makes providers. A zero field takes its default.
type Kind struct {
	Dial   func(ctx context.Context, network, address string) (net.Conn, error) // default a net.Dialer's
	Getenv func(string) string                                                  // default os.Getenv
	Log    hclog.Logger                                                         // default discards
}

// arnKey is where the state has the name of the authority.
const arnKey = "CA_ARN"

// settings are the provider's own part of its configuration.
type settings struct {
	existing     string
	deleteOnExit bool
}

func parse(config map[string]any) (*settings, error) {
	r := caprovider.Read(config)
	s := &settings{existing: r.Text("ExistingARN"), deleteOnExit: r.Bool("DeleteOnExit")}
	if r.Err() == nil && s.existing != "" {
		return s, checkARN(s.existing)
	}
	return s, r.Err()
}

// checkARN refuses what is not the name of an authority.
func checkARN(arn string) error {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" || !plain(parts[1]) || parts[2] != "acm-pca" || !plain(parts[3]) || !strings.HasPrefix(parts[5], "certificate-authority/") {
		return fmt.Errorf("%q is not the ARN of an authority of AWS Private CA", arn)
	}
	return nil
}

func (k Kind) client(arn string) *client {
	if k.Dial == nil {
		k.Dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	if k.Getenv == nil {
		k.Getenv = os.Getenv
	}
	transport := func(proxy bool) *http.Transport {
		t := &http.Transport{
			DialContext: k.Dial, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 8, IdleConnTimeout: 90 * time.Second,
			TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		}
		if proxy {
			t.Proxy = http.ProxyFromEnvironment
		} else {
			t.DisableKeepAlives = true
		}
		return t
	}
	noRedirects := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c := &client{
		http: &http.Client{Transport: transport(true), CheckRedirect: noRedirects},
		env: &awsauth.Environment{Getenv: k.Getenv, HTTP: &http.Client{
			Transport: transport(false), CheckRedirect: noRedirects, Timeout: 5 * time.Second,
		}},
	}
	if parts := strings.Split(arn, ":"); len(parts) > 3 {
		c.region = parts[3]
	}
	return c
}

// Establish finds the authority that the settings name, or the one that there is already, or makes one.
func (k Kind) Establish(ctx context.Context, w caprovider.Wanted) (*trust.ProviderState, error) {
	s, err := parse(w.Config)
	if err != nil {
		return nil, err
	}
	arn, present := s.existing, ""
	if w.Current != nil {
		present = w.Current.State[arnKey]
	}
	switch {
	case arn != "" && arn == present && w.New:
		return nil, errors.New("the root is that of ExistingARN; for another one, give another, or none")
	case arn == "" && present != "" && !w.New && sameKey(w):
		arn = present
	}
	c := k.client(arn)
	defer c.http.CloseIdleConnections()
	if arn == "" {
		if arn, err = c.create(ctx, w); err != nil {
			return nil, err
		}
	}
	kept := &trust.ProviderState{State: map[string]string{arnKey: arn}}
	return kept, c.read(ctx, arn, kept)
}

// sameKey tells whether the settings are content with the key that there is.
func sameKey(w caprovider.Wanted) bool {
	s := w.Settings
	return w.Root == nil || !s.KeyTypeGiven || s.PrivateKeyType == w.Root.PrivateKeyType && s.PrivateKeyBits == w.Root.PrivateKeyBits
}

// keyAlgorithms are the names that AWS has for keys, and for how they sign.
var keyAlgorithms = map[string][2]string{
	"ec 256": {"EC_prime256v1", "SHA256WITHECDSA"}, "ec 384": {"EC_secp384r1", "SHA384WITHECDSA"}, "ec 521": {"EC_secp521r1", "SHA512WITHECDSA"},
	"rsa 2048": {"RSA_2048", "SHA256WITHRSA"}, "rsa 4096": {"RSA_4096", "SHA256WITHRSA"},
}

// create makes a root of AWS's. One that cannot be completed is deleted again.
func (c *client) create(ctx context.Context, w caprovider.Wanted) (_ string, err error) {
	algorithms, ok := keyAlgorithms[w.Settings.PrivateKeyType+" "+strconv.Itoa(w.Settings.PrivateKeyBits)]
	if !ok {
		return "", fmt.Errorf("AWS PCA does not support keys of type %q with %d bits", w.Settings.PrivateKeyType, w.Settings.PrivateKeyBits)
	}
	id := sha256.Sum256([]byte(w.ClusterID))
	if w.Root != nil {
		id = sha256.Sum256([]byte(w.ClusterID + w.Root.ID + algorithms[0]))
	}
	var made struct{ CertificateAuthorityArn string }
	err = c.call(ctx, "CreateCertificateAuthority", map[string]any{
		"CertificateAuthorityType": "ROOT",
		// Who asks again within minutes, since he did not get to know the answer, gets the same one.
		"IdempotencyToken": hex.EncodeToString(id[:16]),
		"CertificateAuthorityConfiguration": map[string]any{
			"KeyAlgorithm": algorithms[0], "SigningAlgorithm": algorithms[1],
			"Subject": map[string]any{"CommonName": fmt.Sprintf("pri-%x.consul.ca.%.8s.consul", id[:4], w.ClusterID)},
		},
		"RevocationConfiguration": map[string]any{"CrlConfiguration": map[string]any{"Enabled": false}},
		"Tags":                    []map[string]any{{"Key": "sarn-cluster-id", "Value": w.ClusterID}},
	}, &made)
	if err != nil {
		return "", fmt.Errorf("make an authority at AWS: %w", err)
	}
	arn := made.CertificateAuthorityArn
	if err := checkARN(arn); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			_ = c.remove(context.WithoutCancel(ctx), arn) // the first error is what matters
		}
	}()
	status, err := c.await(ctx, arn)
	if err != nil || status == "ACTIVE" {
		return arn, err
	}
	named := map[string]any{"CertificateAuthorityArn": arn}
	var request struct{ Csr string }
	if err := c.call(ctx, "GetCertificateAuthorityCsr", named, &request); err != nil {
		return "", err
	}
	cert, err := c.issue(ctx, arn, map[string]any{
		"Csr": []byte(request.Csr), "TemplateArn": templateARN(arn, "RootCACertificate/V1"), "SigningAlgorithm": algorithms[1],
		"Validity": until(time.Now().Add(w.Settings.RootCertTTL)), "IdempotencyToken": hex.EncodeToString(id[16:]),
	})
	if err != nil {
		return "", fmt.Errorf("sign the root at AWS: %w", err)
	}
	return arn, c.call(ctx, "ImportCertificateAuthorityCertificate", map[string]any{"CertificateAuthorityArn": arn, "Certificate": []byte(cert)}, nil)
}

const (
	createTimeout = 2 * time.Minute
	pollEvery     = time.Second
)

// await waits until AWS has made the authority, and returns its state.
func (c *client) await(ctx context.Context, arn string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	for {
		var found struct{ CertificateAuthority struct{ Status string } }
		if err := c.call(ctx, "DescribeCertificateAuthority", map[string]any{"CertificateAuthorityArn": arn}, &found); err != nil {
			return "", err
		}
		switch status := found.CertificateAuthority.Status; status {
		case "PENDING_CERTIFICATE", "ACTIVE":
			return status, nil
		case "CREATING":
		default:
			return "", fmt.Errorf("the authority %s is %s", arn, status)
		}
		if !pause.For(ctx, pollEvery) {
			return "", ctx.Err()
		}
	}
}

// read gets the certificates of an authority: its own, and those above it up to the root.
func (c *client) read(ctx context.Context, arn string, kept *trust.ProviderState) error {
	status, err := c.await(ctx, arn)
	if err != nil {
		return err
	}
	if status != "ACTIVE" {
		return fmt.Errorf("the authority %s is %s", arn, status)
	}
	var found struct{ Certificate, CertificateChain string }
	if err := c.call(ctx, "GetCertificateAuthorityCertificate", map[string]any{"CertificateAuthorityArn": arn}, &found); err != nil {
		return err
	}
	chain, err := ca.ParseCertificates(found.Certificate + "\n" + found.CertificateChain)
	if err != nil {
		return fmt.Errorf("the certificates of %s: %w", arn, err)
	}
	last := len(chain) - 1
	kept.RootCert, kept.Intermediate = ca.EncodeCertificate(chain[last].Raw), ""
	for _, between := range chain[:last] {
		kept.Intermediate += ca.EncodeCertificate(between.Raw)
	}
	return nil
}

// templateARN is the name of one of AWS's templates, in the partition of an authority.
func templateARN(arn, name string) string {
	return "arn:" + strings.Split(arn, ":")[1] + ":acm-pca:::template/" + name
}

func until(t time.Time) map[string]any { return map[string]any{"Type": "ABSOLUTE", "Value": t.Unix()} }

const firstPoll, longestPoll = 50 * time.Millisecond, time.Second

// issue has an authority sign, and waits for the certificate, which it returns in PEM.
func (c *client) issue(ctx context.Context, arn string, in map[string]any) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	in["CertificateAuthorityArn"] = arn
	var issued struct{ CertificateArn string }
	if err := c.call(ctx, "IssueCertificate", in, &issued); err != nil {
		return "", err
	}
	for wait := firstPoll; ; wait = min(2*wait, longestPoll) {
		var found struct{ Certificate string }
		err := c.call(ctx, "GetCertificate", map[string]any{"CertificateAuthorityArn": arn, "CertificateArn": issued.CertificateArn}, &found)
		if err == nil || !hasCode(err, "RequestInProgressException") {
			return found.Certificate, err
		}
		if !pause.For(ctx, wait) {
			return "", ctx.Err()
		}
	}
}

// recoverDays is how long AWS keeps a deleted authority, at least.
const recoverDays = 7

// remove disables an authority and deletes it.
func (c *client) remove(ctx context.Context, arn string) error {
	err := c.call(ctx, "UpdateCertificateAuthority", map[string]any{"CertificateAuthorityArn": arn, "Status": "DISABLED"}, nil)
	if err != nil && !hasCode(err, "InvalidStateException") { // it has no certificate yet
		if hasCode(err, "ResourceNotFoundException") {
			return nil
		}
		return fmt.Errorf("disable %s: %w", arn, err)
	}
	err = c.call(ctx, "DeleteCertificateAuthority", map[string]any{"CertificateAuthorityArn": arn, "PermanentDeletionTimeInDays": recoverDays}, nil)
	if err != nil {
		return fmt.Errorf("delete %s: %w", arn, err)
	}
	return nil
}

// Open returns a provider; it finds its credentials when it is first used.
func (k Kind) Open(kept *trust.ProviderState, _ string) (ca.Provider, error) {
	s, err := parse(kept.Config)
	if err != nil {
		return nil, err
	}
	between, issuer, err := ca.SigningChain(kept)
	if err != nil {
		return nil, err
	}
	arn := kept.State[arnKey]
	if err := checkARN(arn); err != nil {
		return nil, err
	}
	return &provider{client: k.client(arn), arn: arn, s: s, kept: kept, issuer: issuer, between: between}, nil
}

// Close does nothing: providers share nothing.
func (k Kind) Close() {}

// A provider signs with one authority.
type provider struct {
	*client
	arn     string
	s       *settings
	kept    *trust.ProviderState
	issuer  *x509.Certificate
	between []string
}

func (p *provider) Root() string              { return p.kept.RootCert }
func (p *provider) Issuer() *x509.Certificate { return p.issuer }
func (p *provider) Intermediates() []string   { return p.between }
func (p *provider) CrossSigns() bool          { return false }
func (p *provider) Close()                    { p.http.CloseIdleConnections() }

// Sign uses the plain template for leaves where the request has all the names, as it does for most. Others are given with
// the call.
func (p *provider) Sign(ctx context.Context, template *x509.Certificate, csr *x509.CertificateRequest) ([]byte, error) {
	if len(csr.Subject.Names) != 0 {
		return nil, errors.New("AWS PCA takes the subject from the certificate request, which must have none")
	}
	if len(template.DNSNames) == 0 {
		return p.sign(ctx, template, csr, "EndEntityCertificate/V1", nil)
	}
	return p.sign(ctx, template, csr, "EndEntityCertificate_APIPassthrough/V1", map[string]any{"Extensions": extensions(template)})
}

func (p *provider) SignIntermediate(ctx context.Context, template *x509.Certificate, csr *x509.CertificateRequest) ([]byte, error) {
	if p.between != nil {
		return nil, errors.New("the authority at AWS is not a root itself, and signs no other datacenter's")
	}
	return p.sign(ctx, template, csr, "SubordinateCACertificate_PathLen0_APIPassthrough/V1", map[string]any{
		"Subject": map[string]any{"CommonName": template.Subject.CommonName}, "Extensions": extensions(template),
	})
}

// extensions are the names of a template as AWS takes them.
func extensions(template *x509.Certificate) map[string]any {
	var names []map[string]any
	for _, u := range template.URIs {
		names = append(names, map[string]any{"UniformResourceIdentifier": u.String()})
	}
	for _, n := range template.DNSNames {
		names = append(names, map[string]any{"DnsName": n})
	}
	return map[string]any{"SubjectAlternativeNames": names}
}

func (p *provider) sign(ctx context.Context, template *x509.Certificate, csr *x509.CertificateRequest, name string, passthrough map[string]any) ([]byte, error) {
	in := map[string]any{
		"Csr":         pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw}),
		"TemplateArn": templateARN(p.arn, name), "SigningAlgorithm": signingAlgorithm(p.issuer), "Validity": until(template.NotAfter),
	}
	if serial := template.SerialNumber.Text(16); len(serial) <= 36 {
		in["IdempotencyToken"] = serial
	}
	if passthrough != nil {
		in["ApiPassthrough"] = passthrough
	}
	text, err := p.issue(ctx, p.arn, in)
	if err != nil {
		return nil, err
	}
	cert, err := ca.ParseCertificate(text)
	if err != nil {
		return nil, fmt.Errorf("no certificate in the answer of AWS Private CA: %w", err)
	}
	return cert.Raw, nil
}

// signingAlgorithm is AWS's name for how an authority signs.
func signingAlgorithm(issuer *x509.Certificate) string {
	switch key := issuer.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return keyAlgorithms["ec "+strconv.Itoa(key.Params().BitSize)][1]
	case *rsa.PublicKey:
		return "SHA256WITHRSA"
	}
	return ""
}

// CrossSign does not work: AWS signs only what proves to have the key.
func (p *provider) CrossSign(context.Context, *x509.Certificate, *x509.Certificate) ([]byte, error) {
	return nil, ca.ErrNoCrossSigning
}

// Renew does not work: an authority below a root is one that the operator has made, and renews.
func (p *provider) Renew(context.Context) (*trust.ProviderState, error) {
	return nil, ca.ErrNoIntermediate
}

// Cleanup deletes an authority that was made here, if the settings say so.
func (p *provider) Cleanup(ctx context.Context, next *trust.ProviderState) error {
	if !p.s.deleteOnExit || p.s.existing != "" || next != nil && next.State[arnKey] == p.arn {
		return nil
	}
	return p.remove(ctx, p.arn)
}
