package oidc_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/sarnmesh/sarn/internal/oidc"
)

var rsaKey = func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
}()

func pemOf(t testing.TB, public any) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func keyOf(t testing.TB, public any) oidc.Key {
	t.Helper()
	k, err := oidc.ParsePEM(pemOf(t, public))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// signRaw signs a token with any header by RS256.
func signRaw(t testing.TB, header, payload string) string {
	t.Helper()
	text := b64(header) + "." + b64(payload)
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, rsaKey, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig)
}

func sign(t testing.TB, alg jose.SignatureAlgorithm, key any) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	jws, err := s.Sign([]byte(`{"sub":"alice"}`))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestEveryAlgorithmVerifiesWithItsOwnKindOfKey(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private := map[string]any{"RS": rsaKey, "PS": rsaKey, "EdDSA": ed}
	public := map[string]any{"RSA": &rsaKey.PublicKey, "OKP": ed.Public()}
	fits := map[string]string{"RS": "RSA", "PS": "RSA", "EdDSA": "OKP"}
	for name, curve := range map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()} {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		private[name], public[name], fits[name] = k, &k.PublicKey, name
	}
	for _, alg := range oidc.Algorithms() {
		family := alg
		if _, ok := private[family]; !ok {
			family = alg[:2]
		}
		tok, err := oidc.Parse(sign(t, jose.SignatureAlgorithm(alg), private[family]))
		if err != nil {
			t.Fatal(err)
		}
		for kind, key := range public {
			c, ok := tok.Verify([]oidc.Key{keyOf(t, key)})
			if want := fits[family] == kind; ok != want || ok && c["sub"] != "alice" {
				t.Errorf("%s with a key for %s: %v %v", alg, kind, ok, c)
			}
		}
	}
}

// Tokens that try to choose how they are verified. All of them must be refused, or looked at as if they had not.
func TestAlgorithmConfusion(t *testing.T) {
	key := keyOf(t, &rsaKey.PublicKey)
	hs := func(header string, secret []byte) string {
		text := b64(header) + "." + b64(`{"sub":"admin"}`)
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(text))
		return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	}
	mine, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	embedded, err := json.Marshal(jose.JSONWebKey{Key: &mine.PublicKey})
	if err != nil {
		t.Fatal(err)
	}
	// signed by the attacker's key, which the header offers
	offered := func(header string) string {
		text := b64(header) + "." + b64(`{"sub":"admin"}`)
		sum := sha256.Sum256([]byte(text))
		sig, err := rsa.SignPKCS1v15(rand.Reader, mine, crypto.SHA256, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return text + "." + base64.RawURLEncoding.EncodeToString(sig)
	}
	der, _ := x509.MarshalPKIXPublicKey(&rsaKey.PublicKey)
	tests := []struct{ name, raw string }{
		{"HS256 with the public key in PEM as secret", hs(`{"alg":"HS256"}`, []byte(pemOf(t, &rsaKey.PublicKey)))},
		{"HS256 with the public key in DER as secret", hs(`{"alg":"HS256"}`, der)},
		{"HS256 with an empty secret", hs(`{"alg":"HS256"}`, nil)},
		{"none", b64(`{"alg":"none"}`) + "." + b64(`{"sub":"admin"}`) + "."},
		{"None", b64(`{"alg":"None"}`) + "." + b64(`{"sub":"admin"}`) + ".AAAA"},
		{"no algorithm", b64(`{}`) + "." + b64(`{"sub":"admin"}`) + ".AAAA"},
		{"no signature", b64(`{"alg":"RS256"}`) + "." + b64(`{"sub":"admin"}`) + "."},
		{"algorithm as list", b64(`{"alg":["RS256"]}`) + "." + b64(`{"sub":"admin"}`) + ".AAAA"},
		{"jwk header", offered(`{"alg":"RS256","jwk":` + string(embedded) + `}`)},
		{"jku header", offered(`{"alg":"RS256","jku":"http://127.0.0.1:1/keys"}`)},
		{"x5u header", offered(`{"alg":"RS256","x5u":"http://127.0.0.1:1/cert"}`)},
		{"kid is a path", offered(`{"alg":"RS256","kid":"../../../dev/null"}`)},
		{"kid is SQL", offered(`{"alg":"RS256","kid":"' UNION SELECT 'x"}`)},
		{"unknown critical header", signRaw(t, `{"alg":"RS256","crit":["pwn"],"pwn":1}`, `{"sub":"admin"}`)},
		{"algorithm twice", signRaw(t, `{"alg":"none","alg":"RS256"}`, `{"sub":"admin"}`)},
		{"another payload", strings.Replace(signRaw(t, `{"alg":"RS256"}`, `{"sub":"alice"}`), b64(`{"sub":"alice"}`), b64(`{"sub":"admin"}`), 1)},
		{"JSON form", `{"payload":"` + b64(`{"sub":"admin"}`) + `","protected":"` + b64(`{"alg":"RS256"}`) + `","signature":"AAAA"}`},
		{"two parts", b64(`{"alg":"RS256"}`) + "." + b64(`{}`)},
		{"four parts", "a.b.c.d"},
		{"encrypted", "a.b.c.d.e"},
		{"payload is a list", signRaw(t, `{"alg":"RS256"}`, `[]`)},
		{"payload is null", signRaw(t, `{"alg":"RS256"}`, `null`)},
		{"payload goes on", signRaw(t, `{"alg":"RS256"}`, `{"sub":"alice"}{"sub":"admin"}`)},
		{"payload is no JSON", signRaw(t, `{"alg":"RS256"}`, `sub=admin`)},
		{"empty", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tok, err := oidc.Parse(tt.raw)
			if err != nil {
				return
			}
			if c, ok := tok.Verify([]oidc.Key{key}); ok {
				t.Errorf("verified, with claims %v", c)
			}
		})
	}
	// The same headers change nothing about a token that the key did sign.
	for _, header := range []string{`{"alg":"RS256","jku":"http://127.0.0.1:1/"}`, `{"alg":"RS256","kid":"whatever"}`, `{"alg":"RS256","jwk":` + string(embedded) + `}`} {
		tok, err := oidc.Parse(signRaw(t, header, `{"sub":"alice"}`))
		if err != nil {
			t.Errorf("%s: %v", header, err)
			continue
		}
		if c, ok := tok.Verify([]oidc.Key{key}); !ok || c["sub"] != "alice" {
			t.Errorf("%s: not verified", header)
		}
	}
}

// Class 11, unbounded resources.
func TestThreat11TokensAndKeySetsAreBounded(t *testing.T) {
	if _, err := oidc.Parse(strings.Repeat("a", oidc.MaxToken+1)); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("huge token: %v", err)
	}
	var keys []string
	for i := range 101 {
		keys = append(keys, fmt.Sprintf(`{"kty":"oct","k":"AAAA","kid":"%d"}`, i))
	}
	if _, err := oidc.ParseKeys([]byte(`{"keys":[` + strings.Join(keys, ",") + `]}`)); err == nil || !strings.Contains(err.Error(), "more than 100 keys") {
		t.Errorf("many keys: %v", err)
	}
	// A modulus of 65,536 bits would make every login slow.
	big := fmt.Sprintf(`{"keys":[{"kty":"RSA","e":"AQAB","n":"%s"}]}`, strings.Repeat("_", 65536/6))
	if _, err := oidc.ParseKeys([]byte(big)); err == nil {
		t.Error("a huge RSA key was taken")
	}
	if _, err := oidc.ParsePEM(strings.Repeat("-", 1<<20)); err == nil {
		t.Error("a huge PEM was taken")
	}
}

func TestParseKeysTakesOnlyWhatVerifies(t *testing.T) {
	good, err := json.Marshal(jose.JSONWebKey{Key: &rsaKey.PublicKey, KeyID: "a", Algorithm: "RS256"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, keys string
		want       int
	}{
		{"good", string(good), 1},
		{"symmetric", `{"kty":"oct","k":"AAAA"}`, 0},
		{"for encryption", strings.Replace(string(good), `{`, `{"use":"enc",`, 1), 0},
		{"of an unknown kind", `{"kty":"AKP","alg":"ML-DSA-44","pub":"AA"}`, 0},
		{"point not on the curve", `{"kty":"EC","crv":"P-256","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`, 0},
		{"good among others", `{"kty":"oct","k":"AAAA"},` + string(good) + `,7,null,{}`, 1},
		{"none", ``, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			keys, err := oidc.ParseKeys([]byte(`{"keys":[` + tt.keys + `]}`))
			if len(keys) != tt.want || (err == nil) != (tt.want > 0) {
				t.Errorf("got %d keys, %v", len(keys), err)
			}
		})
	}
	for _, text := range []string{"", "[]", "{", `{"keys":{}}`, "<html>secret</html>"} {
		if _, err := oidc.ParseKeys([]byte(text)); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", text, err)
		}
	}
	// A key for one algorithm or with another name is not tried.
	keys, err := oidc.ParseKeys([]byte(`{"keys":[` + string(good) + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	for header, want := range map[string]bool{`{"alg":"RS256","kid":"a"}`: true, `{"alg":"RS256"}`: true, `{"alg":"RS256","kid":"b"}`: false} {
		tok, err := oidc.Parse(signRaw(t, header, `{}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := tok.Verify(keys); ok != want {
			t.Errorf("%s: %v, want %v", header, ok, want)
		}
	}
	tok, err := oidc.Parse(sign(t, jose.PS256, rsaKey))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := tok.Verify(keys); ok {
		t.Error("a key for RS256 verified PS256")
	}
}

func TestParsePEM(t *testing.T) {
	pkcs1 := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&rsaKey.PublicKey)}))
	if _, err := oidc.ParsePEM(pkcs1); err != nil {
		t.Error(err)
	}
	cert, err := x509.CreateCertificate(rand.Reader, certTemplate, certTemplate, &rsaKey.PublicKey, rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	k, err := oidc.ParsePEM(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	if err != nil {
		t.Fatal(err)
	}
	tok, err := oidc.Parse(sign(t, jose.RS256, rsaKey))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := tok.Verify([]oidc.Key{k}); !ok {
		t.Error("the key of a certificate does not verify")
	}
	private := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)}))
	for _, text := range []string{"", "x", private, "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if _, err := oidc.ParsePEM(text); err == nil {
			t.Errorf("%.40q was taken", text)
		}
	}
}

func TestClaims(t *testing.T) {
	tok, err := oidc.Parse(signRaw(t, `{"alg":"RS256"}`, `{"iss":"i","aud":["a","b"],"exp":1600000000.9,"nbf":"soon","iat":1e300,"n":9007199254740993}`))
	if err != nil {
		t.Fatal(err)
	}
	c, ok := tok.Verify([]oidc.Key{keyOf(t, &rsaKey.PublicKey)})
	if !ok {
		t.Fatal("not verified")
	}
	if s, err := c.Text("iss"); s != "i" || err != nil {
		t.Errorf("iss: %q, %v", s, err)
	}
	if _, err := c.Text("n"); err == nil {
		t.Error("a number is text")
	}
	if at, err := c.Time("exp"); at.Unix() != 1600000000 || err != nil {
		t.Errorf("exp: %v, %v", at, err)
	}
	for _, name := range []string{"nbf", "iat", "aud"} {
		if at, err := c.Time(name); err == nil {
			t.Errorf("%s: %v", name, at)
		}
	}
	if at, err := c.Time("nope"); !at.IsZero() || err != nil {
		t.Errorf("nope: %v, %v", at, err)
	}
	if aud, present, err := c.Audience(); len(aud) != 2 || !present || err != nil || !oidc.HasAudience(aud, []string{"x", "b"}) || oidc.HasAudience(aud, nil) {
		t.Errorf("aud: %v, %v, %v", aud, present, err)
	}
	for _, aud := range []any{json.Number("7"), []any{"a", json.Number("7")}, map[string]any{}} {
		if _, present, err := (oidc.Claims{"aud": aud}).Audience(); !present || err == nil {
			t.Errorf("aud %v: %v, %v", aud, present, err)
		}
	}
}

// FuzzParse checks that no token verifies but the one that was signed.
func FuzzParse(f *testing.F) {
	raw := signRaw(f, `{"alg":"RS256"}`, `{"sub":"alice"}`)
	header, rest, _ := strings.Cut(raw, ".")
	payload, signature, _ := strings.Cut(rest, ".")
	f.Add(header, payload, signature)
	f.Add(b64(`{"alg":"none"}`), payload, "")
	f.Add(b64(`{"alg":"HS256","crit":["b64"],"b64":false}`), payload, signature)
	f.Add(b64(`{"alg":"RS256","kid":7}`), "", "...")
	key := keyOf(f, &rsaKey.PublicKey)
	f.Fuzz(func(t *testing.T, h, p, s string) {
		tok, err := oidc.Parse(h + "." + p + "." + s)
		if err != nil {
			return
		}
		if _, ok := tok.Verify([]oidc.Key{key}); ok && (strings.TrimRight(h, "=") != header || strings.TrimRight(p, "=") != payload) {
			t.Fatalf("%s.%s.%s verified", h, p, s)
		}
	})
}

// FuzzParseKeys checks that a key set gives keys or an error, and that its keys can be used.
func FuzzParseKeys(f *testing.F) {
	good, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &rsaKey.PublicKey, KeyID: "a"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"},{"kty":"OKP","crv":"Ed25519","x":"AA"}]}`))
	f.Add([]byte(`{"keys":[{"kty":"RSA","n":"AA","e":"AQ"}]}`))
	tok, err := oidc.Parse(signRaw(f, `{"alg":"RS256"}`, `{}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := oidc.ParseKeys(b)
		if (err == nil) != (len(keys) > 0) {
			t.Fatalf("%d keys, %v", len(keys), err)
		}
		tok.Verify(keys)
	})
}
