// Package vaulttest is a small stand-in for Vault's HTTP API: tokens and their life, mounts, namespaces, and as much of the
// PKI engine as a certificate authority needs, with real certificates and Vault's rules about them. It is for tests.
package vaulttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Server is a stand-in. Serve it with net/http. Make one with New.
type Server struct {
	// Login answers a request to log in: the path below auth/ and the body. It returns a token, or "" to refuse.
	Login func(path string, body map[string]any) string
	// Old makes it like versions before 1.11, which have one issuer for each engine.
	Old bool
	// Tamper changes a certificate before it is signed for a leaf, as a hostile authority would.
	Tamper func(*x509.Certificate)

	mu      sync.Mutex
	tokens  map[string]*token
	engines map[string]*engine // by namespace and path
	calls   []string           // method and path
}

type token struct {
	expires   time.Time // zero means never
	ttl       time.Duration
	renewable bool
}

// An engine is a PKI mount.
type engine struct {
	maxTTL  time.Duration
	keys    map[string]crypto.Signer
	issuers map[string]*issuer
	active  string // ID of the default issuer
	roles   map[string]map[string]any
}

type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// New returns a server with one token that never expires.
func New(rootToken string) *Server {
	return &Server{tokens: map[string]*token{rootToken: {}}, engines: map[string]*engine{}}
}

// AddToken makes a token that lives for ttl unless it is renewed.
func (s *Server) AddToken(id string, ttl time.Duration, renewable bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[id] = &token{time.Now().Add(ttl), ttl, renewable}
}

// Revoke ends a token.
func (s *Server) Revoke(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, id)
}

// Mounts lists the engines there are, sorted.
func (s *Server) Mounts() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for m := range s.engines {
		out = append(out, m)
	}
	slices.Sort(out)
	return out
}

// Calls lists the requests so far, each as method and path.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

type failure struct {
	status  int
	message string
}

func (f *failure) Error() string { return f.message }

func fail(status int, format string, args ...any) error {
	return &failure{status, fmt.Sprintf(format, args...)}
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return
	}
	body := map[string]any{}
	if len(text) > 0 {
		_ = json.Unmarshal(text, &body)
	}
	path := strings.TrimPrefix(r.URL.Path, "/v1/")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, r.Method+" "+path)
	reply, err := s.answer(r, path, body)
	if err != nil {
		f := err.(*failure)
		w.WriteHeader(f.status)
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []string{f.message}})
		return
	}
	switch v := reply.(type) {
	case nil:
		w.WriteHeader(http.StatusNoContent)
	case string:
		_, _ = io.WriteString(w, v)
	default:
		_ = json.NewEncoder(w).Encode(v)
	}
}

func (s *Server) answer(r *http.Request, path string, body map[string]any) (any, error) {
	if rest, ok := strings.CutPrefix(path, "auth/"); ok && strings.Contains(rest, "/login") {
		id := ""
		if s.Login != nil {
			id = s.Login(rest, body)
		}
		t := s.tokens[id]
		if t == nil {
			return nil, fail(400, "invalid credentials")
		}
		return map[string]any{"auth": map[string]any{"client_token": id, "renewable": t.renewable, "lease_duration": int(t.ttl / time.Second)}}, nil
	}
	id := r.Header.Get("X-Vault-Token")
	t := s.tokens[id]
	if t == nil || !t.expires.IsZero() && time.Now().After(t.expires) {
		return nil, fail(403, "permission denied for token %s", id)
	}
	switch path {
	case "auth/token/lookup-self":
		ttl := 0
		if !t.expires.IsZero() {
			ttl = int(time.Until(t.expires) / time.Second)
		}
		return map[string]any{"data": map[string]any{"ttl": ttl, "renewable": t.renewable}}, nil
	case "auth/token/renew-self":
		if !t.renewable {
			return nil, fail(400, "lease is not renewable")
		}
		t.expires = time.Now().Add(t.ttl)
		return map[string]any{"auth": map[string]any{"client_token": id, "renewable": true, "lease_duration": int(t.ttl / time.Second)}}, nil
	}
	namespace := r.Header.Get("X-Vault-Namespace")
	if mount, ok := strings.CutPrefix(path, "sys/mounts/"); ok {
		return nil, s.mounts(r.Method, namespace, mount, body)
	}
	for name, e := range s.engines {
		if rest, ok := strings.CutPrefix(join(namespace, path), name+"/"); ok {
			return s.pki(e, r.Method, rest, body)
		}
	}
	return nil, fail(404, "no handler for route %q. route entry not found.", path)
}

func join(namespace, path string) string {
	if namespace == "" {
		return path
	}
	return strings.Trim(namespace, "/") + "/" + path
}

func (s *Server) mounts(method, namespace, mount string, body map[string]any) error {
	mount, tune := strings.CutSuffix(mount, "/tune")
	name := join(namespace, mount)
	e := s.engines[name]
	switch {
	case method == http.MethodDelete:
		delete(s.engines, name)
		return nil
	case tune && e == nil:
		return fail(400, "no mount found")
	case tune:
		e.maxTTL = duration(body["max_lease_ttl"], e.maxTTL)
		return nil
	case e != nil:
		return fail(400, "path is already in use at %s/", mount)
	case body["type"] != "pki":
		return fail(400, "plugin not found in the catalog")
	}
	config, _ := body["config"].(map[string]any)
	s.engines[name] = &engine{
		maxTTL: duration(config["max_lease_ttl"], 768*time.Hour), keys: map[string]crypto.Signer{}, issuers: map[string]*issuer{}, roles: map[string]map[string]any{},
	}
	return nil
}

func (s *Server) pki(e *engine, method, path string, body map[string]any) (any, error) {
	switch path {
	case "ca/pem":
		if i := e.issuers[e.active]; i != nil {
			return strings.TrimSpace(encode(i.cert.Raw)), nil
		}
		return nil, nil
	case "root/generate/internal":
		return e.generateRoot(body)
	case "root/sign-intermediate":
		return e.signIntermediate(body)
	case "root/sign-self-issued":
		return e.signSelfIssued(body)
	case "intermediate/generate/internal":
		return s.generateIntermediate(e, body)
	case "intermediate/set-signed":
		return s.setSigned(e, body)
	case "config/issuers":
		if s.Old {
			return nil, fail(404, "unsupported path")
		}
		id, _ := body["default"].(string)
		if e.issuers[id] == nil {
			return nil, fail(400, "unable to find issuer")
		}
		e.active = id
		return nil, nil
	}
	if name, ok := strings.CutPrefix(path, "roles/"); ok {
		e.roles[name] = body
		return nil, nil
	}
	if name, ok := strings.CutPrefix(path, "sign/"); ok {
		return s.sign(e, e.active, name, body)
	}
	if rest, ok := strings.CutPrefix(path, "issuer/"); ok && !s.Old {
		id, what, _ := strings.Cut(rest, "/")
		if e.issuers[id] == nil {
			return nil, fail(500, "unable to find issuer for reference: %s", id)
		}
		if what == "pem" {
			return encode(e.issuers[id].cert.Raw), nil
		}
		if name, ok := strings.CutPrefix(what, "sign/"); ok {
			return s.sign(e, id, name, body)
		}
	}
	return nil, fail(404, "unsupported path")
}

func (e *engine) generateRoot(body map[string]any) (any, error) {
	key, err := generateKey(body)
	if err != nil {
		return nil, err
	}
	ttl, err := e.ttl(body)
	if err != nil {
		return nil, err
	}
	uris, err := parseURIs(body["uri_sans"])
	if err != nil {
		return nil, err
	}
	t := template(ttl)
	t.Subject = pkix.Name{CommonName: text(body["common_name"])}
	t.URIs, t.IsCA, t.BasicConstraintsValid, t.KeyUsage = uris, true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	cert, err := create(t, t, key.Public(), key)
	if err != nil {
		return nil, err
	}
	e.active = newID()
	e.issuers[e.active] = &issuer{cert, key}
	return certificate(cert), nil
}

func (s *Server) generateIntermediate(e *engine, body map[string]any) (any, error) {
	key, err := generateKey(body)
	if err != nil {
		return nil, err
	}
	uris, err := parseURIs(body["uri_sans"])
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: text(body["common_name"])}, URIs: uris}, key)
	if err != nil {
		return nil, fail(500, "%v", err)
	}
	id := newID()
	e.keys[id] = key
	data := map[string]any{"csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))}
	if !s.Old {
		data["key_id"] = id
	}
	return map[string]any{"data": data}, nil
}

func (s *Server) setSigned(e *engine, body map[string]any) (any, error) {
	block, _ := pem.Decode([]byte(text(body["certificate"])))
	if block == nil {
		return nil, fail(400, "no certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fail(400, "%v", err)
	}
	for keyID, key := range e.keys {
		if !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(cert.PublicKey) {
			continue
		}
		id := newID()
		e.issuers[id] = &issuer{cert, key}
		if e.active == "" || s.Old {
			e.active = id
		}
		if s.Old {
			return nil, nil
		}
		return map[string]any{"data": map[string]any{"imported_issuers": []string{id}, "mapping": map[string]string{id: keyID}}}, nil
	}
	return nil, fail(400, "the certificate is for no key of this engine")
}

func (e *engine) signIntermediate(body map[string]any) (any, error) {
	csr, err := request(body)
	if err != nil {
		return nil, err
	}
	ca := e.issuers[e.active]
	if ca == nil {
		return nil, fail(500, "no default issuer currently configured")
	}
	ttl, err := e.ttl(body)
	if err != nil {
		return nil, err
	}
	t := template(ttl)
	t.Subject, t.URIs = csr.Subject, csr.URIs
	if body["use_csr_values"] != true {
		t.Subject = pkix.Name{CommonName: text(body["common_name"])}
		if t.URIs, err = parseURIs(body["uri_sans"]); err != nil {
			return nil, err
		}
	}
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	t.MaxPathLen = -1
	if length, ok := body["max_path_length"].(float64); ok {
		t.MaxPathLen, t.MaxPathLenZero = int(length), length == 0
	}
	if t.NotAfter.After(ca.cert.NotAfter) {
		return nil, fail(400, "cannot satisfy request, as TTL would result in notAfter that is beyond the expiration of the CA certificate")
	}
	cert, err := create(t, ca.cert, csr.PublicKey, ca.key)
	if err != nil {
		return nil, err
	}
	return certificate(cert), nil
}

func (e *engine) signSelfIssued(body map[string]any) (any, error) {
	block, _ := pem.Decode([]byte(text(body["certificate"])))
	if block == nil {
		return nil, fail(400, "certificate could not be PEM-decoded")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fail(400, "%v", err)
	}
	if !cert.IsCA || string(cert.RawSubject) != string(cert.RawIssuer) {
		return nil, fail(400, "given certificate is not a self-issued CA certificate")
	}
	ca := e.issuers[e.active]
	if ca == nil {
		return nil, fail(500, "no default issuer currently configured")
	}
	t := *cert
	t.SignatureAlgorithm, t.AuthorityKeyId = 0, nil
	out, err := create(&t, ca.cert, cert.PublicKey, ca.key)
	if err != nil {
		return nil, err
	}
	return certificate(out), nil
}

// sign applies the rules of a role, as far as they concern a leaf.
func (s *Server) sign(e *engine, id, name string, body map[string]any) (any, error) {
	role, ca := e.roles[name], e.issuers[id]
	if role == nil {
		return nil, fail(400, "unknown role: %s", name)
	}
	if ca == nil {
		return nil, fail(500, "no default issuer currently configured")
	}
	csr, err := request(body)
	if err != nil {
		return nil, err
	}
	ttl := duration(body["ttl"], e.maxTTL)
	if most := duration(role["max_ttl"], e.maxTTL); ttl > most {
		ttl = most // Vault shortens, and warns
	}
	t := template(ttl)
	t.NotBefore = time.Now().Add(-duration(role["not_before_duration"], 30*time.Second))
	if t.NotAfter.After(ca.cert.NotAfter) {
		return nil, fail(400, "cannot satisfy request, as TTL would result in notAfter that is beyond the expiration of the CA certificate")
	}
	t.Subject, t.URIs, t.DNSNames = pkix.Name{}, csr.URIs, csr.DNSNames
	if role["use_csr_common_name"] != false {
		t.Subject.CommonName = csr.Subject.CommonName
	}
	if role["use_csr_sans"] == false {
		if t.URIs, err = parseURIs(body["uri_sans"]); err != nil {
			return nil, err
		}
		t.DNSNames = nil
		if names := text(body["alt_names"]); names != "" {
			t.DNSNames = strings.Split(names, ",")
		}
	}
	if t.Subject.CommonName == "" && role["require_cn"] != false {
		return nil, fail(400, "the common_name field is required")
	}
	if len(t.DNSNames) > 0 && role["allow_any_name"] != true {
		return nil, fail(400, "subject alternate name not allowed by this role")
	}
	pattern, _ := role["allowed_uri_sans"].(string)
	for _, u := range t.URIs {
		if prefix, ok := strings.CutSuffix(pattern, "*"); !ok || !strings.HasPrefix(u.String(), prefix) {
			return nil, fail(400, "URI Subject Alternative Names were provided via the API, but are not allowed by this role")
		}
	}
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	t.BasicConstraintsValid = true
	uses, _ := role["key_usage"].([]any)
	for _, u := range uses {
		t.KeyUsage |= map[string]x509.KeyUsage{
			"DigitalSignature": x509.KeyUsageDigitalSignature, "KeyEncipherment": x509.KeyUsageKeyEncipherment,
			"DataEncipherment": x509.KeyUsageDataEncipherment, "KeyAgreement": x509.KeyUsageKeyAgreement,
		}[text(u)]
	}
	if s.Tamper != nil {
		s.Tamper(t)
	}
	cert, err := create(t, ca.cert, csr.PublicKey, ca.key)
	if err != nil {
		return nil, err
	}
	return certificate(cert), nil
}

func (e *engine) ttl(body map[string]any) (time.Duration, error) {
	ttl := duration(body["ttl"], e.maxTTL)
	if ttl > e.maxTTL {
		return 0, fail(400, "requested TTL of %s is longer than the mount's %s", ttl, e.maxTTL)
	}
	return ttl, nil
}

func request(body map[string]any) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode([]byte(text(body["csr"])))
	if block == nil {
		return nil, fail(400, "csr contains no data")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, fail(400, "certificate request could not be parsed: %v", err)
	}
	return csr, nil
}

func template(ttl time.Duration) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	return &x509.Certificate{SerialNumber: serial, NotBefore: time.Now().Add(-30 * time.Second), NotAfter: time.Now().Add(ttl)}
}

func create(t, parent *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key, signer)
	if err != nil {
		return nil, fail(500, "%v", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fail(500, "%v", err)
	}
	return cert, nil
}

func generateKey(body map[string]any) (crypto.Signer, error) {
	bits, _ := body["key_bits"].(float64)
	switch body["key_type"] {
	case "rsa":
		if bits == 0 {
			bits = 2048
		}
		key, err := rsa.GenerateKey(rand.Reader, int(bits))
		if err != nil {
			return nil, fail(400, "%v", err)
		}
		return key, nil
	case "ec":
		for _, c := range []elliptic.Curve{elliptic.P224(), elliptic.P256(), elliptic.P384(), elliptic.P521()} {
			if c.Params().BitSize == int(bits) {
				key, err := ecdsa.GenerateKey(c, rand.Reader)
				if err != nil {
					return nil, fail(500, "%v", err)
				}
				return key, nil
			}
		}
	}
	return nil, fail(400, "unsupported key type %v with %v bits", body["key_type"], bits)
}

func parseURIs(v any) ([]*url.URL, error) {
	var out []*url.URL
	for part := range strings.SplitSeq(text(v), ",") {
		if part == "" {
			continue
		}
		u, err := url.Parse(part)
		if err != nil {
			return nil, fail(400, "the provided URI SAN %q is not a valid URI", part)
		}
		out = append(out, u)
	}
	return out, nil
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

func duration(v any, otherwise time.Duration) time.Duration {
	switch d := v.(type) {
	case float64:
		return time.Duration(d) * time.Second
	case string:
		if n, err := strconv.Atoi(d); err == nil {
			return time.Duration(n) * time.Second
		}
		if p, err := time.ParseDuration(d); err == nil && p > 0 {
			return p
		}
	}
	return otherwise
}

func certificate(c *x509.Certificate) any {
	return map[string]any{"data": map[string]any{"certificate": strings.TrimSpace(encode(c.Raw))}}
}

func encode(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	sum := sha256.Sum256(b[:])
	return hex.EncodeToString(sum[:16])
}
