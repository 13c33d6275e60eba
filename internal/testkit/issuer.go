package testkit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// An Issuer signs JSON Web Tokens for tests and publishes its keys like an OpenID Connect provider, over plain HTTP on
// a loopback address. Its authorization endpoint asks nobody: whoever opens it is the person of Person. It must be made
// outside of bubbles.
type Issuer struct {
	URL      string // also its name as issuer
	ClientID string // that it knows; "sarn"
	Secret   string // of that client; empty, as it is at first, for a public one

	t testing.TB

	mu     sync.Mutex
	key    jose.JSONWebKey
	count  int
	asked  map[string]int
	person map[string]any
	codes  map[string]url.Values // what was asked for, by the code given
}

// NewIssuer starts an issuer that ends with the test.
func NewIssuer(t testing.TB) *Issuer {
	i := &Issuer{t: t, ClientID: "sarn", asked: map[string]int{}, codes: map[string]url.Values{}, person: map[string]any{"sub": "alice"}}
	i.Rotate()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", i.metadata)
	mux.HandleFunc("GET /keys", i.keys)
	mux.HandleFunc("GET /authorize", i.authorize)
	mux.HandleFunc("POST /token", i.token)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		i.asked[r.URL.Path]++
		i.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	i.URL = srv.URL
	return i
}

// Rotate replaces the key.
func (i *Issuer) Rotate() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.count++
	i.key = jose.JSONWebKey{Key: key, KeyID: fmt.Sprint("key-", i.count), Algorithm: "ES256", Use: "sig"}
}

// Person sets the claims of those who log in.
func (i *Issuer) Person(claims map[string]any) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.person = maps.Clone(claims)
}

// Asked returns how often a path was asked for.
func (i *Issuer) Asked(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked[path]
}

// PEM returns the public key.
func (i *Issuer) PEM() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	der, err := x509.MarshalPKIXPublicKey(i.key.Public().Key)
	if err != nil {
		i.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// Sign returns a token of this issuer, good from now on for an hour, with these claims besides and instead.
func (i *Issuer) Sign(claims map[string]any) string {
	now := time.Now().Unix()
	all := map[string]any{"iss": i.URL, "iat": now, "exp": now + 3600}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	payload, err := json.Marshal(all)
	if err != nil {
		i.t.Error(err)
		return ""
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: i.key}, nil)
	if err != nil {
		i.t.Error(err)
		return ""
	}
	jws, err := signer.Sign(payload)
	if err != nil {
		i.t.Error(err)
		return ""
	}
	raw, _ := jws.CompactSerialize()
	return raw
}

func (i *Issuer) metadata(w http.ResponseWriter, _ *http.Request) {
	_ = json.NewEncoder(w).Encode(map[string]any{
		"issuer": i.URL, "jwks_uri": i.URL + "/keys",
		"authorization_endpoint": i.URL + "/authorize", "token_endpoint": i.URL + "/token",
	})
}

func (i *Issuer) keys(w http.ResponseWriter, _ *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{i.key.Public()}})
}

func (i *Issuer) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	to, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || q.Get("client_id") != i.ClientID || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	code := rand.Text()
	i.mu.Lock()
	i.codes[code] = q
	i.mu.Unlock()
	to.RawQuery = url.Values{"code": {code}, "state": {q.Get("state")}}.Encode()
	http.Redirect(w, r, to.String(), http.StatusFound)
}

func (i *Issuer) token(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	i.mu.Lock()
	asked, person := i.codes[r.PostForm.Get("code")], maps.Clone(i.person)
	delete(i.codes, r.PostForm.Get("code"))
	i.mu.Unlock()
	sum := sha256.Sum256([]byte(r.PostForm.Get("code_verifier")))
	id, secret, basic := r.BasicAuth()
	if basic { // both are form-encoded first (RFC 6749 section 2.3.1)
		id, _ = url.QueryUnescape(id)
		secret, _ = url.QueryUnescape(secret)
	} else {
		id, secret = r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	}
	if asked == nil || asked.Get("redirect_uri") != r.PostForm.Get("redirect_uri") || id != i.ClientID || secret != i.Secret ||
		asked.Get("code_challenge") != base64.RawURLEncoding.EncodeToString(sum[:]) ||
		!slices.Equal(r.PostForm["grant_type"], []string{"authorization_code"}) {
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": "invalid_grant"})
		return
	}
	claims := map[string]any{"aud": i.ClientID, "nonce": asked.Get("nonce")}
	maps.Copy(claims, person)
	_ = json.NewEncoder(w).Encode(map[string]string{"access_token": "x", "token_type": "Bearer", "id_token": i.Sign(claims)})
}
