package svid_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/svid"
)

const domain = "11111111-2222-3333-4444-555555555555.consul"

var start = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func fresh(t testing.TB, now time.Time) (*svid.Keys, []byte) {
	t.Helper()
	keys, err := (&svid.Keys{}).Next(rand.Reader, now)
	if err != nil {
		t.Fatal(err)
	}
	jwks, err := keys.JWKS()
	if err != nil {
		t.Fatal(err)
	}
	return keys, jwks
}

func TestTokensAreCheckedByTheKeysTheyWereSignedWith(t *testing.T) {
	keys, jwks := fresh(t, start)
	id := connect.ServiceID(domain, "dc1", "web")
	token, expires, err := keys.Sign(id, []string{"db", "cache"}, start)
	if err != nil {
		t.Fatal(err)
	}
	if !expires.Equal(start.Add(svid.TTL)) {
		t.Errorf("expires %v", expires)
	}
	got, claims, err := svid.Validate(token, "cache", domain, jwks, start.Add(time.Minute))
	if err != nil || got != id || claims["sub"] != id.String() {
		t.Errorf("%v %v %v", got, claims, err)
	}
	if strings.Contains(string(jwks), `"d"`) {
		t.Error("the set shows a private key")
	}
	_, other := fresh(t, start)
	for _, tt := range []struct {
		name, token, audience, domain string
		jwks                          []byte
		now                           time.Time
		want                          string
	}{
		{"other audience", token, "shop", domain, jwks, start, "audience"},
		{"no audience", token, "", domain, jwks, start, "audience is needed"},
		{"expired", token, "db", domain, jwks, start.Add(svid.TTL + time.Minute), "expired"},
		{"other trust domain", token, "db", "other.consul", jwks, start, "another trust domain"},
		{"other keys", token, "db", domain, other, start, "key is none"},
		{"cut", token[:len(token)-4], "db", domain, jwks, start, "signature"},
		{"no token", "x", "db", domain, jwks, start, "cannot be read"},
		{"long", strings.Repeat("x", 1<<20), "db", domain, jwks, start, "longer"},
	} {
		if _, _, err := svid.Validate(tt.token, tt.audience, tt.domain, tt.jwks, tt.now); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
	}
}

// Tokens that another signer could have made with the right key, or with none (spec/threats.md, classes 1 and 18).
func TestForgedTokensAreRefused(t *testing.T) {
	keys, jwks := fresh(t, start)
	secret := privateKey(t, keys)
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(jwks, &set); err != nil {
		t.Fatal(err)
	}
	public, _ := x509.MarshalPKIXPublicKey(set.Keys[0].Key)
	good := jwt.Claims{Subject: connect.ServiceID(domain, "dc1", "web").String(), Audience: jwt.Audience{"db"}, Expiry: jwt.NewNumericDate(start.Add(time.Minute))}
	make := func(alg jose.SignatureAlgorithm, key any, kid string, c jwt.Claims) string {
		s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		token, err := jwt.Signed(s).Claims(c).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	stranger, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	kid := set.Keys[0].KeyID
	endless, agent, odd := good, good, good
	endless.Expiry = nil
	agent.Subject = "spiffe://" + domain + "/agent/client/dc/dc1/id/n"
	odd.Subject = "spiffe://" + domain + "/../svc/web"
	for name, token := range map[string]string{
		"HMAC with the public key": make(jose.HS256, public, kid, good),
		"a stranger's key":         make(jose.ES256, stranger, kid, good),
		"no end":                   make(jose.ES256, secret, kid, endless),
		"no identity":              make(jose.ES256, secret, kid, odd),
		"unknown key":              make(jose.ES256, secret, "x", good),
		"no signature":             "eyJhbGciOiJub25lIn0.e30.",
	} {
		if id, _, err := svid.Validate(token, "db", domain, jwks, start); err == nil {
			t.Errorf("%s: taken for %v", name, id)
		}
	}
	for name, token := range map[string]string{"good": make(jose.ES256, secret, kid, good), "an agent's": make(jose.ES256, secret, kid, agent)} {
		if _, _, err := svid.Validate(token, "db", domain, jwks, start); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func privateKey(t testing.TB, k *svid.Keys) *ecdsa.PrivateKey {
	t.Helper()
	secret, err := x509.ParsePKCS8PrivateKey(decodePEM(t, k.List[0].Private))
	if err != nil {
		t.Fatal(err)
	}
	return secret.(*ecdsa.PrivateKey)
}

// Over a year there is always one key that signs, told a day ahead, and every token can be checked as long as it lives.
func TestKeysFollowOneAnother(t *testing.T) {
	keys := &svid.Keys{}
	id := connect.ServiceID(domain, "dc1", "web")
	known := map[string]time.Time{} // when a key was first told
	type issued struct {
		token string
		until time.Time
	}
	var open []issued
	end := start.AddDate(1, 0, 0)
	if testing.Short() {
		end = start.AddDate(0, 1, 0)
	}
	for now := start; now.Before(end); now = now.Add(20 * time.Minute) {
		next, err := keys.Next(rand.Reader, now)
		if err != nil {
			t.Fatal(err)
		}
		if next != nil {
			keys = next
		}
		if len(keys.List) > 2 {
			t.Fatalf("%v: %d keys", now, len(keys.List))
		}
		for _, k := range keys.List {
			if _, ok := known[k.ID]; !ok {
				known[k.ID] = now
				if now != start && k.From.Sub(now) < svid.KeyAhead-time.Hour {
					t.Fatalf("%v: a key that signs from %v is told only now", now, k.From)
				}
			}
		}
		jwks, err := keys.JWKS()
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range open {
			if now.Before(o.until) {
				if _, _, err := svid.Validate(o.token, "a", domain, jwks, now); err != nil {
					t.Fatalf("%v: %v", now, err)
				}
			}
		}
		token, until, err := keys.Sign(id, []string{"a"}, now)
		if err != nil {
			t.Fatal(err)
		}
		open = []issued{{token, until}}
	}
}

func FuzzValidate(f *testing.F) {
	keys, jwks := fresh(f, start)
	token, _, err := keys.Sign(connect.ServiceID(domain, "dc1", "web"), []string{"db"}, start)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, given string) {
		id, _, err := svid.Validate(given, "db", domain, jwks, start)
		if err == nil && given != token && !strings.EqualFold(id.Name(), "web") {
			t.Errorf("%q speaks for %v", given, id)
		}
	})
}

func decodePEM(t testing.TB, text string) []byte {
	t.Helper()
	b, _ := pem.Decode([]byte(text))
	if b == nil {
		t.Fatal("no PEM")
	}
	return b.Bytes
}
