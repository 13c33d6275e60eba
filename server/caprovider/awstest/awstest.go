// Package awstest is a small stand-in for AWS Private CA: its JSON interface with signed requests, authorities and their
// states, templates, and certificates that take a moment, all of them real. It is for tests.
package awstest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/server/caprovider/awsauth"
)

// Region is where the stand-in is.
const Region = "eu-test-1"

// A Server is a stand-in. Serve it with net/http.
type Server struct {
	Credentials awsauth.Credentials // that requests must be signed with
	// Throttle makes it refuse every third request, as one that is called too often.
	Throttle bool

	mu          sync.Mutex
	authorities map[string]*authority
	made        map[string]string // ARN by idempotency token
	count       int
	actions     []string
}

type authority struct {
	key       crypto.Signer
	subject   pkix.Name
	cert      *x509.Certificate // nil before it is imported
	chain     string
	status    string
	described int
	certs     map[string]*issued
}

type issued struct {
	der   []byte
	asked int
}

// Actions lists the calls so far.
func (s *Server) Actions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.actions)
}

// Authorities lists the states of all authorities by ARN.
func (s *Server) Authorities() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]string{}
	for arn, a := range s.authorities {
		out[arn] = a.status
	}
	return out
}

// AddSubordinate makes an active authority with a certificate of another's, and returns its ARN.
func (s *Server) AddSubordinate(key crypto.Signer, certPEM, chainPEM string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	block, _ := pem.Decode([]byte(certPEM))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		panic(err)
	}
	return s.add(&authority{key: key, cert: cert, chain: chainPEM, status: "ACTIVE"})
}

func (s *Server) add(a *authority) string {
	if s.authorities == nil {
		s.authorities, s.made = map[string]*authority{}, map[string]string{}
	}
	a.certs = map[string]*issued{}
	arn := fmt.Sprintf("arn:aws:acm-pca:%s:123456789012:certificate-authority/%08d", Region, len(s.authorities)+1)
	s.authorities[arn] = a
	return arn
}

type failure struct {
	status        int
	code, message string
}

func fail(code, format string, args ...any) *failure {
	return &failure{http.StatusBadRequest, code, fmt.Sprintf(format, args...)}
}

// A request has the parameters of all actions.
type request struct {
	CertificateAuthorityArn           string
	CertificateAuthorityType          string
	IdempotencyToken                  string
	CertificateAuthorityConfiguration struct {
		KeyAlgorithm, SigningAlgorithm string
		Subject                        struct{ CommonName string }
	}
	Csr, Certificate, CertificateChain []byte
	SigningAlgorithm, TemplateArn      string
	Validity                           struct {
		Type  string
		Value int64
	}
	ApiPassthrough *struct {
		Subject    struct{ CommonName string }
		Extensions struct {
			SubjectAlternativeNames []struct{ DnsName, UniformResourceIdentifier string }
		}
	}
	CertificateArn              string
	Status                      string
	PermanentDeletionTimeInDays int
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	reply, failed := s.answer(r, body)
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	if failed != nil {
		w.WriteHeader(failed.status)
		reply = map[string]string{"__type": "com.amazonaws.acmpca#" + failed.code, "message": failed.message}
	}
	_ = json.NewEncoder(w).Encode(reply)
}

func (s *Server) answer(r *http.Request, body []byte) (any, *failure) {
	if !s.signed(r, body) {
		return nil, &failure{http.StatusForbidden, "InvalidSignatureException", "The request signature we calculated does not match the signature you provided."}
	}
	action, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "ACMPrivateCA.")
	if !ok {
		return nil, fail("UnknownOperationException", "")
	}
	s.actions = append(s.actions, action)
	if s.count++; s.Throttle && s.count%3 == 0 {
		return nil, fail("ThrottlingException", "Rate exceeded")
	}
	var in request
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fail("SerializationException", "%v", err)
	}
	if action == "CreateCertificateAuthority" {
		return s.create(&in)
	}
	a := s.authorities[in.CertificateAuthorityArn]
	if a == nil {
		return nil, fail("ResourceNotFoundException", "Could not find CA with ARN %s", in.CertificateAuthorityArn)
	}
	switch action {
	case "DescribeCertificateAuthority":
		if a.described++; a.described == 2 && a.status == "CREATING" {
			a.status = "PENDING_CERTIFICATE"
		}
		return map[string]any{"CertificateAuthority": map[string]any{"Arn": in.CertificateAuthorityArn, "Status": a.status}}, nil
	case "GetCertificateAuthorityCsr":
		if a.status != "PENDING_CERTIFICATE" {
			return nil, fail("InvalidStateException", "The CA is %s", a.status)
		}
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: a.subject}, a.key)
		if err != nil {
			return nil, fail("InternalFailure", "%v", err)
		}
		return map[string]any{"Csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}, nil
	case "GetCertificateAuthorityCertificate":
		if a.cert == nil {
			return nil, fail("InvalidStateException", "The CA is %s", a.status)
		}
		reply := map[string]any{"Certificate": encode(a.cert.Raw)}
		if a.chain != "" {
			reply["CertificateChain"] = a.chain
		}
		return reply, nil
	case "ImportCertificateAuthorityCertificate":
		block, _ := pem.Decode(in.Certificate)
		if block == nil {
			return nil, fail("MalformedCertificateException", "")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || !cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(a.key.Public()) {
			return nil, fail("CertificateMismatchException", "")
		}
		a.cert, a.status = cert, "ACTIVE"
		return map[string]any{}, nil
	case "IssueCertificate":
		return a.issue(in.CertificateAuthorityArn, &in)
	case "GetCertificate":
		c := a.certs[in.CertificateArn]
		if c == nil {
			return nil, fail("ResourceNotFoundException", "Could not find the certificate")
		}
		if c.asked++; c.asked == 1 {
			return nil, fail("RequestInProgressException", "The request to issue the certificate is in progress")
		}
		return map[string]any{"Certificate": strings.TrimSpace(encode(c.der))}, nil
	case "UpdateCertificateAuthority":
		if a.status != "ACTIVE" && a.status != "DISABLED" {
			return nil, fail("InvalidStateException", "The CA is %s", a.status)
		}
		a.status = in.Status
		return map[string]any{}, nil
	case "DeleteCertificateAuthority":
		if a.status == "ACTIVE" || in.PermanentDeletionTimeInDays < 7 {
			return nil, fail("InvalidStateException", "The CA is %s", a.status)
		}
		a.status = "DELETED"
		return map[string]any{}, nil
	}
	return nil, fail("UnknownOperationException", "")
}

// signed checks the signature by making it again.
func (s *Server) signed(r *http.Request, body []byte) bool {
	got := r.Header.Get("Authorization")
	_, signed, _ := strings.Cut(got, "SignedHeaders=")
	signed, _, _ = strings.Cut(signed, ",")
	again, err := http.NewRequest(r.Method, "http://"+r.Host+r.URL.RequestURI(), nil)
	if err != nil {
		return false
	}
	for name := range strings.SplitSeq(signed, ";") {
		if values := r.Header.Values(name); name != "host" && len(values) > 0 {
			again.Header[http.CanonicalHeaderKey(name)] = values
		}
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || time.Since(at).Abs() > 5*time.Minute || r.Header.Get("X-Amz-Security-Token") != s.Credentials.Token {
		return false
	}
	awsauth.Sign(again, body, &s.Credentials, "acm-pca", Region, at)
	return subtle.ConstantTimeCompare([]byte(again.Header.Get("Authorization")), []byte(got)) == 1
}

func (s *Server) create(in *request) (any, *failure) {
	if arn := s.made[in.IdempotencyToken]; arn != "" && s.authorities[arn].status != "DELETED" {
		return map[string]any{"CertificateAuthorityArn": arn}, nil
	}
	if in.CertificateAuthorityType != "ROOT" || in.IdempotencyToken == "" || len(in.IdempotencyToken) > 36 {
		return nil, fail("ValidationException", "")
	}
	var key crypto.Signer
	var err error
	switch in.CertificateAuthorityConfiguration.KeyAlgorithm {
	case "EC_prime256v1":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EC_secp384r1":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "RSA_2048":
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		return nil, fail("InvalidArgsException", "")
	}
	if err != nil {
		return nil, fail("InternalFailure", "%v", err)
	}
	arn := s.add(&authority{key: key, subject: pkix.Name{CommonName: in.CertificateAuthorityConfiguration.Subject.CommonName}, status: "CREATING"})
	s.made[in.IdempotencyToken] = arn
	return map[string]any{"CertificateAuthorityArn": arn}, nil
}

// issue follows the templates.
func (a *authority) issue(arn string, in *request) (any, *failure) {
	block, _ := pem.Decode(in.Csr)
	if block == nil {
		return nil, fail("MalformedCSRException", "")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, fail("MalformedCSRException", "%v", err)
	}
	name, ok := strings.CutPrefix(in.TemplateArn, "arn:aws:acm-pca:::template/")
	if !ok || in.Validity.Type != "ABSOLUTE" {
		return nil, fail("ValidationException", "")
	}
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	t := &x509.Certificate{
		SerialNumber: serial, Subject: csr.Subject, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Unix(in.Validity.Value, 0),
		URIs: csr.URIs, DNSNames: csr.DNSNames, EmailAddresses: csr.EmailAddresses, IPAddresses: csr.IPAddresses, BasicConstraintsValid: true,
	}
	if strings.Contains(name, "_APIPassthrough/") != (in.ApiPassthrough != nil) {
		return nil, fail("InvalidArgsException", "the template and the passthrough do not fit")
	}
	if p := in.ApiPassthrough; p != nil {
		if p.Subject.CommonName != "" {
			t.Subject = pkix.Name{CommonName: p.Subject.CommonName}
		}
		if names := p.Extensions.SubjectAlternativeNames; names != nil {
			t.URIs, t.DNSNames = nil, nil
			for _, n := range names {
				if n.DnsName != "" {
					t.DNSNames = append(t.DNSNames, n.DnsName)
				} else if u, err := url.Parse(n.UniformResourceIdentifier); err == nil {
					t.URIs = append(t.URIs, u)
				}
			}
		}
	}
	parent := a.cert
	switch strings.TrimSuffix(strings.Replace(name, "_APIPassthrough", "", 1), "/V1") {
	case "RootCACertificate":
		t.IsCA, t.KeyUsage, parent = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign|x509.KeyUsageDigitalSignature, t
	case "SubordinateCACertificate_PathLen0":
		t.IsCA, t.MaxPathLenZero, t.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign|x509.KeyUsageDigitalSignature
	case "EndEntityCertificate":
		t.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
		t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	default:
		return nil, fail("InvalidArgsException", "unknown template %s", name)
	}
	switch {
	case parent == nil || a.status != "ACTIVE" && !(t == parent && a.status == "PENDING_CERTIFICATE"):
		return nil, fail("InvalidStateException", "The CA is %s", a.status)
	case t != parent && t.NotAfter.After(a.cert.NotAfter):
		return nil, fail("ValidationException", "the validity is longer than the CA's")
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, csr.PublicKey, a.key)
	if err != nil {
		return nil, fail("InternalFailure", "%v", err)
	}
	cert := fmt.Sprintf("%s/certificate/%s", arn, serial.Text(16))
	a.certs[cert] = &issued{der: der}
	return map[string]any{"CertificateArn": cert}, nil
}

func encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
