package jwtauthn_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/filter/jwtauthn"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Keys are slow to make, so all tests share these.
var (
	rsaKey  = must(rsa.GenerateKey(rand.Reader, 2048))
	p256    = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	p384    = must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	p521    = must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	edKey   = ed25519.NewKeyFromSeed(make([]byte, 32))
	secret  = []byte("a secret of thirty-two bytes, at least, and for HS512 sixty-four")
	allKeys = set(public("rsa", rsaKey), public("p256", p256), public("p384", p384), public("p521", p521), public("ed", edKey), jose.JSONWebKey{Key: secret, KeyID: "oct"})
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func public(id string, k crypto.Signer) jose.JSONWebKey {
	return jose.JSONWebKey{Key: k.Public(), KeyID: id}
}

func set(keys ...jose.JSONWebKey) string {
	return string(must(json.Marshal(jose.JSONWebKeySet{Keys: keys})))
}

func sign(alg jose.SignatureAlgorithm, key any, kid string, claims any) string {
	s := must(jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: key, KeyID: kid}}, nil))
	return must(must(s.Sign(must(json.Marshal(claims)))).CompactSerialize())
}

type claims map[string]any

func es256(c claims) string { return sign(jose.ES256, p256, "p256", c) }

func provider(t testing.TB) *jwtauthn.Provider {
	return &jwtauthn.Provider{Issuer: "iss", Keys: must(jwtauthn.ParseKeys([]byte(allKeys))), Skew: time.Minute}
}

func needs(r *jwtauthn.Requirement) []jwtauthn.Rule {
	return []jwtauthn.Rule{{Match: model.RouteMatch{Path: "/"}, Requirement: r}}
}

func of(name string) *jwtauthn.Requirement { return &jwtauthn.Requirement{Provider: name} }

func group(k jwtauthn.RequirementKind, of ...*jwtauthn.Requirement) *jwtauthn.Requirement {
	return &jwtauthn.Requirement{Kind: k, Of: of}
}

func single(t testing.TB, change ...func(*jwtauthn.Provider)) *filtertest.Bench {
	p := provider(t)
	for _, f := range change {
		f(p)
	}
	return filtertest.New(t, jwtauthn.Type, &jwtauthn.Config{Providers: map[string]*jwtauthn.Provider{"p": p}, Rules: needs(of("p"))})
}

func bearer(token string) []string { return []string{"authorization", "Bearer " + token} }

func TestAlgorithms(t *testing.T) {
	b := single(t)
	for _, tt := range []struct {
		alg jose.SignatureAlgorithm
		key any
		kid string
	}{
		{jose.RS256, rsaKey, "rsa"}, {jose.RS384, rsaKey, "rsa"}, {jose.RS512, rsaKey, ""},
		{jose.PS256, rsaKey, "rsa"}, {jose.PS384, rsaKey, "rsa"}, {jose.PS512, rsaKey, "rsa"},
		{jose.ES256, p256, "p256"}, {jose.ES384, p384, ""}, {jose.ES512, p521, "p521"},
		{jose.EdDSA, edKey, "ed"}, {jose.HS256, secret, "oct"}, {jose.HS384, secret, "oct"}, {jose.HS512, secret, "oct"},
	} {
		token := sign(tt.alg, tt.key, tt.kid, claims{"iss": "iss"})
		for range 2 { // the second time it is remembered
			if res := b.Run(b.Exchange("GET", "/", bearer(token)...), nil); res.Reply != nil {
				t.Errorf("%s: %q", tt.alg, res.Body)
			}
		}
		// The last character holds bits that are not used, the tenth before it does not.
		i := len(token) - 10
		broken := token[:i] + string("AB"[b2i(token[i] == 'A')]) + token[i+1:]
		if res := b.Run(b.Exchange("GET", "/", bearer(broken)...), nil); res.Status != 401 || res.Body != "Jwt verification fails" {
			t.Errorf("%s with a broken signature: %d %q", tt.alg, res.Status, res.Body)
		}
	}
	want := "http.test.jwt_authn.allowed 26\nhttp.test.jwt_authn.denied 13\nhttp.test.jwt_authn.jwt_cache_hit 13\nhttp.test.jwt_authn.jwt_cache_miss 26\n"
	if got := b.Counters(); got != want {
		t.Errorf("counters\n%s", got)
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now().Unix()
		enc := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
		head := enc(`{"alg":"ES256"}`)
		subject, err := model.NewStringMatch(model.MatchPrefix, "spiffe://", false)
		if err != nil {
			t.Fatal(err)
		}
		strict := func(p *jwtauthn.Provider) {
			p.RequireExpiration, p.MaxLifetime, p.Subject = true, time.Hour, &subject
		}
		none := func(*jwtauthn.Provider) {}
		audience := func(p *jwtauthn.Provider) { p.Audiences = []string{"a", "https://b/"} }
		for _, tt := range []struct {
			name   string
			change func(*jwtauthn.Provider)
			token  string
			want   string // empty: accepted
		}{
			{"not expired", none, es256(claims{"iss": "iss", "exp": now - 60}), ""},
			{"expired", none, es256(claims{"iss": "iss", "exp": now - 61}), "Jwt is expired"},
			{"expired at the beginning of time", none, es256(claims{"iss": "iss", "exp": 0}), "Jwt is expired"},
			{"valid", none, es256(claims{"iss": "iss", "nbf": now + 60}), ""},
			{"not yet valid", none, es256(claims{"iss": "iss", "nbf": now + 61}), "Jwt not yet valid"},
			{"other issuer", none, es256(claims{"iss": "other"}), "Jwt issuer is not configured"},
			{"no issuer", none, es256(claims{}), "Jwt issuer is not configured"},
			{"audience", audience, es256(claims{"iss": "iss", "aud": "a"}), ""},
			{"one of the audiences", audience, es256(claims{"iss": "iss", "aud": []string{"x", "http://b"}}), ""},
			{"other audience", audience, es256(claims{"iss": "iss", "aud": []string{"x"}}), "Audiences in Jwt are not allowed"},
			{"no audience", audience, es256(claims{"iss": "iss"}), "Audiences in Jwt are not allowed"},
			{"unknown key", none, sign(jose.ES256, p256, "other", claims{"iss": "iss"}), "Jwks doesn't have key to match kid or alg from Jwt"},
			{"key of another kind", none, sign(jose.ES384, p384, "p256", claims{"iss": "iss"}), "Jwks doesn't have key to match kid or alg from Jwt"},
			{"the public key as a secret", none, sign(jose.HS256, must(json.Marshal(public("", rsaKey))), "oct", claims{"iss": "iss"}), "Jwt verification fails"},
			{"no algorithm", none, enc(`{"alg":"none"}`) + "." + enc(`{"iss":"iss"}`) + ".aa", "Jwt header [alg] is not supported"},
			{"two parts", none, head + "." + enc(`{}`), "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"},
			{"four parts", none, head + "." + enc(`{}`) + ".a.b", "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"},
			{"too long", none, head + "." + strings.Repeat("a", 20000) + ".a", "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"},
			{"header in other base64", none, "+/=." + enc(`{}`) + ".a", "Jwt header is an invalid Base64url encoded"},
			{"header no JSON", none, enc("x") + "." + enc(`{}`) + ".aa", "Jwt header is an invalid JSON"},
			{"header without alg", none, enc("{}") + "." + enc(`{}`) + ".aa", "Jwt header [alg] field is required and must be a string"},
			{"kid no text", none, enc(`{"alg":"ES256","kid":1}`) + "." + enc(`{}`) + ".aa", "Jwt header [kid] field is not a string"},
			{"payload no JSON", none, head + "." + enc("[1]") + ".aa", "Jwt payload is an invalid JSON"},
			{"payload no base64", none, head + ".=.aa", "Jwt payload is an invalid Base64url encoded"},
			{"issuer no text", none, head + "." + enc(`{"iss":1}`) + ".aa", "Jwt payload [iss] field is not a string"},
			{"expiry no number", none, head + "." + enc(`{"exp":"1"}`) + ".aa", "Jwt payload [exp] field is not an integer"},
			{"audience no text", none, head + "." + enc(`{"aud":[1]}`) + ".aa", "Jwt payload [aud] field is not a string or string list"},
			{"signature no base64", none, head + "." + enc(`{}`) + ".=", "Jwt signature is an invalid Base64url encoded"},
			{"no signature", none, head + "." + enc(`{"iss":"iss"}`) + ".", "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"},
			{"strict", strict, es256(claims{"iss": "iss", "sub": "spiffe://a", "iat": now, "exp": now + 3600}), ""},
			{"no expiry", strict, es256(claims{"iss": "iss", "sub": "spiffe://a", "iat": now}), "Jwt verification fails"},
			{"lives too long", strict, es256(claims{"iss": "iss", "sub": "spiffe://a", "iat": now, "exp": now + 3601}), "Jwt verification fails"},
			{"other subject", strict, es256(claims{"iss": "iss", "sub": "a", "iat": now, "exp": now + 3600}), "Jwt verification fails"},
		} {
			func() {
				b := single(t, tt.change)
				res := b.Run(b.Exchange("GET", "/a?b=c", bearer(tt.token)...), nil)
				if res.Body != tt.want {
					t.Errorf("%s: %q, want %q", tt.name, res.Body, tt.want)
					return
				}
				if tt.want == "" {
					return
				}
				status, auth := 401, `Bearer realm="http://web.test/a", error="invalid_token"`
				if strings.HasPrefix(tt.want, "Audiences") {
					status = 403
				}
				if res.Status != status || res.Header.Get("www-authenticate") != auth || res.Reply.Details != "jwt_authn_access_denied{"+strings.ReplaceAll(tt.want, " ", "_")+"}" {
					t.Errorf("%s: %d, www-authenticate %q, details %q", tt.name, res.Status, res.Header.Get("www-authenticate"), res.Reply.Details)
				}
			}()
		}
	})
}

func TestRememberedTokensExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := single(t)
		token := es256(claims{"iss": "iss", "exp": time.Now().Unix() + 10})
		for _, want := range []string{"", "Jwt is expired"} {
			if res := b.Run(b.Exchange("GET", "/", bearer(token)...), nil); res.Body != want {
				t.Errorf("%q, want %q", res.Body, want)
			}
			time.Sleep(71 * time.Second)
		}
	})
}

func TestMissingToken(t *testing.T) {
	b := single(t)
	res := b.Run(b.Exchange("GET", "/", "x-forwarded-proto", "https"), nil)
	if res.Status != 401 || res.Body != "Jwt is missing" || res.Header.Get("www-authenticate") != `Bearer realm="https://web.test/"` {
		t.Errorf("%d %q %q", res.Status, res.Body, res.Header.Get("www-authenticate"))
	}
}

func TestPlaces(t *testing.T) {
	token := es256(claims{"iss": "iss"})
	custom := func(p *jwtauthn.Provider) {
		p.Headers, p.Params, p.Cookies = []jwtauthn.HeaderPlace{{Name: "x-token", Prefix: "tok="}}, []string{"jwt"}, []string{"session"}
	}
	forward := func(p *jwtauthn.Provider) { custom(p); p.Forward = true }
	for _, tt := range []struct {
		name   string
		change func(*jwtauthn.Provider)
		path   string
		fields []string
		ok     bool
		left   string // path and fields at the host
	}{
		{"bearer", nil, "/", bearer(token), true, "/\n"},
		{"other scheme", nil, "/", []string{"authorization", "Basic " + token}, false, ""},
		{"parameter", nil, "/?a=1&access_token=" + token + "&b=2", nil, true, "/?a=1&b=2\n"},
		{"only parameter", nil, "/?access_token=" + token, nil, true, "/\n"},
		{"parameter of another name", nil, "/?token=" + token, nil, false, ""},
		{"custom header", custom, "/", []string{"x-token", "tok=" + token + ";x"}, true, "/\n"},
		{"custom header without prefix", custom, "/", []string{"x-token", token}, false, ""},
		{"places of old are not looked at", custom, "/", bearer(token), false, ""},
		{"custom parameter", custom, "/?jwt=" + token, nil, true, "/\n"},
		{"cookie", custom, "/", []string{"cookie", "a=b; session=" + token + "; c=d"}, true, "/\ncookie: a=b; c=d\n"},
		{"cookie of another name", custom, "/", []string{"cookie", "xsession=" + token}, false, ""},
		{"forwarded", forward, "/", []string{"cookie", "session=" + token}, true, "/\ncookie: session=" + token + "\n"},
		{"all tokens must be good", nil, "/?access_token=bad", bearer(token), false, ""},
		{"in all fields", nil, "/", append(bearer(token), bearer("bad")...), false, ""},
		{"no more than some", nil, "/?access_token=1" + strings.Repeat("&access_token="+token, 40), nil, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var change []func(*jwtauthn.Provider)
			if tt.change != nil {
				change = append(change, tt.change)
			}
			b := single(t, change...)
			x := b.Exchange("GET", tt.path, tt.fields...)
			res := b.Run(x, nil)
			if (res.Reply == nil) != tt.ok {
				t.Fatalf("%d %q", res.Status, res.Body)
			}
			if got := x.Request.Path + "\n" + filtertest.Fields(&x.Request.Header); tt.ok && got != tt.left {
				t.Errorf("the host got %q, want %q", got, tt.left)
			}
		})
	}
}

func TestHostIsTold(t *testing.T) {
	c := claims{"iss": "iss", "sub": "bob", "n": 12, "f": 1.5, "ok": true, "list": []string{"a"}, "deep": claims{"er": "x"}, "scope": "read  write", "evil": "a\r\nx-admin: 1"}
	b := single(t, func(p *jwtauthn.Provider) {
		p.PayloadHeader, p.PadPayload, p.PayloadMetadata, p.HeaderMetadata = "x-payload", true, "jwt_payload_p", "jwt_header_p"
		p.SplitClaims = []string{"scope"}
		for _, n := range []string{"sub", "n", "f", "ok", "list", "evil", "gone"} {
			p.ClaimHeaders = append(p.ClaimHeaders, jwtauthn.ClaimHeader{Name: "x-" + n, Claim: []string{n}})
		}
		p.ClaimHeaders = append(p.ClaimHeaders, jwtauthn.ClaimHeader{Name: "x-deep", Claim: []string{"deep", "er"}})
	})
	token := es256(c)
	x := b.Exchange("GET", "/", append(bearer(token), "x-sub", "forged", "x-payload", "forged", "x-gone", "forged")...)
	if res := b.Run(x, nil); res.Reply != nil {
		t.Fatal(res.Body)
	}
	payload := strings.Split(token, ".")[1]
	payload += strings.Repeat("=", (4-len(payload)%4)%4)
	want := "x-payload: " + payload + "\nx-sub: bob\nx-n: 12\nx-f: 1.5\nx-ok: true\nx-list: WyJhIl0=\nx-deep: x\n"
	if got := filtertest.Fields(&x.Request.Header); got != want {
		t.Errorf("headers\n%s\nwant\n%s", got, want)
	}
	m := x.Entry.HTTP.Metadata["envoy.filters.http.jwt_authn"]
	p, _ := m["jwt_payload_p"].(map[string]any)
	if p["sub"] != "bob" || fmt.Sprint(p["scope"]) != "[read write]" || m["jwt_header_p"].(map[string]any)["kid"] != "p256" {
		t.Errorf("metadata %v", m)
	}
}

func TestForgedClaimsAreRemovedWithoutToken(t *testing.T) {
	p := provider(t)
	p.PayloadHeader = "x-payload"
	b := filtertest.New(t, jwtauthn.Type, &jwtauthn.Config{Providers: map[string]*jwtauthn.Provider{"p": p}, Rules: needs(&jwtauthn.Requirement{Kind: jwtauthn.AllowMissing})})
	x := b.Exchange("GET", "/", "x-payload", "forged")
	if res := b.Run(x, nil); res.Reply != nil || x.Request.Header.Len() != 0 {
		t.Errorf("reply %+v, headers %s", res.Reply, filtertest.Fields(&x.Request.Header))
	}
}

func TestRequirements(t *testing.T) {
	a, c := provider(t), provider(t)
	a.Issuer, a.PayloadMetadata, a.Headers = "a", "a", []jwtauthn.HeaderPlace{{Name: "x-a"}}
	c.Issuer, c.PayloadMetadata, c.Headers = "c", "c", []jwtauthn.HeaderPlace{{Name: "x-c"}}
	ta, tc, bad := es256(claims{"iss": "a"}), es256(claims{"iss": "c"}), es256(claims{"iss": "a", "exp": 1})
	lax := &jwtauthn.Requirement{Kind: jwtauthn.AllowMissing}
	laxer := &jwtauthn.Requirement{Kind: jwtauthn.AllowMissingOrFailed}
	for _, tt := range []struct {
		name   string
		need   *jwtauthn.Requirement
		fields []string
		want   string // empty: accepted
		told   string // payloads in metadata
	}{
		{"nothing", nil, nil, "", ""},
		{"one", of("a"), []string{"x-a", ta}, "", "a"},
		{"of another provider", of("a"), []string{"x-a", tc}, "Jwt issuer is not configured", ""},
		{"audience of the requirement", &jwtauthn.Requirement{Provider: "a", Audiences: []string{"x"}}, []string{"x-a", ta}, "Audiences in Jwt are not allowed", ""},
		{"any: first", group(jwtauthn.Any, of("a"), of("c")), []string{"x-a", ta, "x-c", tc}, "", "a"},
		{"any: second", group(jwtauthn.Any, of("a"), of("c")), []string{"x-c", tc}, "", "c"},
		{"any: none", group(jwtauthn.Any, of("a"), of("c")), nil, "Jwt is missing", ""},
		{"any: what is wrong", group(jwtauthn.Any, of("a"), of("c")), []string{"x-a", bad}, "Jwt is expired", ""},
		{"any: bad and good", group(jwtauthn.Any, of("a"), of("c")), []string{"x-a", bad, "x-c", tc}, "", "c"},
		{"any or missing", group(jwtauthn.Any, lax, of("a")), nil, "", ""},
		{"any or missing: bad", group(jwtauthn.Any, lax, of("a")), []string{"x-a", bad}, "Jwt is expired", ""},
		{"any or failed: bad", group(jwtauthn.Any, laxer, of("a")), []string{"x-a", bad}, "", ""},
		{"any or failed: good", group(jwtauthn.Any, laxer, of("a")), []string{"x-a", ta}, "", "a"},
		{"all", group(jwtauthn.All, of("a"), of("c")), []string{"x-a", ta, "x-c", tc}, "", "ac"},
		{"all: one", group(jwtauthn.All, of("a"), of("c")), []string{"x-a", ta}, "Jwt is missing", "a"},
		{"as intentions need it", group(jwtauthn.All, group(jwtauthn.Any, of("a"), laxer), group(jwtauthn.Any, of("c"), laxer)), []string{"x-a", bad, "x-c", tc}, "", "c"},
		{"missing allowed: by issuer", lax, []string{"x-c", tc}, "", "c"},
		{"missing allowed: unknown issuer", lax, []string{"x-c", es256(claims{"iss": "z"})}, "Jwt issuer is not configured", ""},
		{"missing allowed: at the place of another", lax, []string{"x-a", tc}, "Jwt issuer is not configured", ""},
		{"failed allowed", laxer, []string{"x-a", "x", "x-c", tc}, "", "c"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := filtertest.New(t, jwtauthn.Type, &jwtauthn.Config{Providers: map[string]*jwtauthn.Provider{"a": a, "c": c}, Rules: needs(tt.need)})
			x := b.Exchange("GET", "/", tt.fields...)
			res := b.Run(x, nil)
			told := ""
			for _, n := range []string{"a", "c"} {
				if _, there := x.Entry.HTTP.Metadata["envoy.filters.http.jwt_authn"][n]; there {
					told += n
				}
			}
			if res.Body != tt.want || told != tt.told {
				t.Errorf("%q, told %q; want %q, %q", res.Body, told, tt.want, tt.told)
			}
		})
	}
}

func TestRulesRoutesAndState(t *testing.T) {
	conf := &jwtauthn.Config{
		Providers: map[string]*jwtauthn.Provider{"p": provider(t)},
		Rules: []jwtauthn.Rule{
			{Match: model.RouteMatch{Kind: model.PathExact, Path: "/health"}},
			{Match: model.RouteMatch{Path: "/api"}, Requirement: of("p")},
		},
		State: "need", ByState: map[string]*jwtauthn.Requirement{"yes": of("p")},
		Named: map[string]*jwtauthn.Requirement{"strict": of("p")}, BypassPreflight: true,
	}
	b := filtertest.New(t, jwtauthn.Type, conf)
	run := func(x *filter.Exchange) int { return b.Run(x, nil).Status }
	if run(b.Exchange("GET", "/health?x")) != 200 || run(b.Exchange("GET", "/api/x")) != 401 || run(b.Exchange("GET", "/other")) != 200 {
		t.Error("rules were not followed")
	}
	x := b.Exchange("GET", "/other")
	x.Entry.HTTP.FilterState = map[string]string{"need": "yes"}
	if run(x) != 401 {
		t.Error("filter state was not followed")
	}
	if run(b.Exchange("OPTIONS", "/api", "origin", "x", "access-control-request-method", "GET")) != 200 || run(b.Exchange("OPTIONS", "/api", "origin", "x")) != 401 {
		t.Error("preflight")
	}
	b.Route(&jwtauthn.RouteConfig{Disabled: true})
	if run(b.Exchange("GET", "/api")) != 200 {
		t.Error("a route could not switch the filter off")
	}
	b.Route(&jwtauthn.RouteConfig{Requirement: "strict"})
	if run(b.Exchange("GET", "/health")) != 401 {
		t.Error("the requirement of the route was not applied")
	}
	b.Route(&jwtauthn.RouteConfig{Requirement: "typo"})
	if res := b.Run(b.Exchange("GET", "/health"), nil); res.Status != 403 || res.Body != "Wrong requirement_name: typo. It should be one of [strict]" {
		t.Errorf("%d %q", res.Status, res.Body)
	}
}

func TestStrippedRefusal(t *testing.T) {
	b := filtertest.New(t, jwtauthn.Type, &jwtauthn.Config{Providers: map[string]*jwtauthn.Provider{"p": provider(t)}, Rules: needs(of("p")), Strip: true})
	if res := b.Run(b.Exchange("GET", "/"), nil); res.Status != 401 || res.Body != "" || res.Header.Has("www-authenticate") {
		t.Errorf("%d %q %s", res.Status, res.Body, filtertest.Fields(&res.Header))
	}
}

// A server of keys that counts.
type keyServer struct {
	mu     sync.Mutex
	keys   string
	status int
	err    error
	delay  time.Duration
	asked  []time.Duration
	start  time.Time
}

func (k *keyServer) serve(ctx context.Context, cluster string, r *message.Request, _ []byte) (*filter.Answer, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if cluster != "jwks" || r.Authority != "keys.test" || r.Path != "/jwks.json" || r.Method != "GET" {
		return nil, fmt.Errorf("asked %s for %s %s%s", cluster, r.Method, r.Authority, r.Path)
	}
	k.asked = append(k.asked, time.Since(k.start))
	select {
	case <-time.After(k.delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return &filter.Answer{Status: k.status, Body: []byte(k.keys)}, k.err
}

// times returns when it was asked.
func (k *keyServer) times() []time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.asked)
}

func (k *keyServer) set(status int, keys string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.status, k.keys, k.err, k.delay = status, keys, nil, 0
}

func remote(t *testing.T, k *keyServer, change func(*jwtauthn.Remote)) *filtertest.Bench {
	k.start = time.Now()
	r := &jwtauthn.Remote{Cluster: "jwks", Authority: "keys.test", Path: "/jwks.json", Timeout: time.Second}
	if change != nil {
		change(r)
	}
	p := &jwtauthn.Provider{Issuer: "iss", Remote: r, Skew: time.Minute}
	conf := &jwtauthn.Config{Providers: map[string]*jwtauthn.Provider{"p": p}, Rules: needs(of("p"))}
	return filtertest.NewWith(t, jwtauthn.Type, conf, func(b *filtertest.Bench) { b.Client = k.serve })
}

func TestKeysAreFetchedOnceAndAgainWhenOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keyServer{keys: allKeys, status: 200, delay: 100 * time.Millisecond}
		b := remote(t, k, nil)
		token := es256(claims{"iss": "iss"})
		if len(k.times()) != 0 {
			t.Error("asked before anybody needed it")
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if res := b.Run(b.Exchange("GET", "/", bearer(token)...), nil); res.Reply != nil {
					t.Error(res.Body)
				}
			})
		}
		wg.Wait()
		time.Sleep(10*time.Minute - time.Second)
		b.Run(b.Exchange("GET", "/", bearer(token)...), nil)
		if len(k.times()) != 1 {
			t.Errorf("asked at %v", k.times())
		}
		time.Sleep(2 * time.Second)
		k.set(200, set(public("rsa", rsaKey))) // the key is gone
		if res := b.Run(b.Exchange("GET", "/", bearer(token)...), nil); res.Status != 401 || len(k.times()) != 2 {
			t.Errorf("%d %q with a key that is gone; asked at %v", res.Status, res.Body, k.times())
		}
	})
}

func TestFetchFails(t *testing.T) {
	token := func() string { return es256(claims{"iss": "iss"}) }
	for _, k := range []*keyServer{
		{status: 500, keys: allKeys}, {status: 200, keys: "no JSON"}, {status: 200, keys: `{"keys":[{"kty":"new"}]}`},
		{err: errors.New("refused")}, {status: 200, keys: allKeys, delay: 2 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			b := remote(t, k, nil)
			for range 3 { // within a second it is not asked again
				if res := b.Run(b.Exchange("GET", "/", bearer(token())...), nil); res.Status != 401 || res.Body != "Jwks remote fetch is failed" {
					t.Errorf("%d %q", res.Status, res.Body)
				}
			}
			if len(k.times()) != 1 {
				t.Errorf("asked at %v", k.times())
			}
			time.Sleep(time.Second)
			k.set(200, allKeys)
			if res := b.Run(b.Exchange("GET", "/", bearer(token())...), nil); res.Reply != nil {
				t.Errorf("%q when the server is well again", res.Body)
			}
			if b.Stats.Value("http.test.jwt_authn.jwks_fetch_failed") != 1 || b.Stats.Value("http.test.jwt_authn.jwks_fetch_success") != 1 {
				t.Error(b.Counters())
			}
		})
	}
}

func TestClientThatLeavesDoesNotStopAFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keyServer{keys: allKeys, status: 200, delay: 500 * time.Millisecond}
		b := remote(t, k, nil)
		token := es256(claims{"iss": "iss"})
		x := b.Exchange("GET", "/", bearer(token)...)
		x.Context() // made before another goroutine may end it
		time.AfterFunc(100*time.Millisecond, x.Cancel)
		if res := b.Run(x, nil); res.Reply == nil {
			t.Error("let through without keys")
		}
		if res := b.Run(b.Exchange("GET", "/", bearer(token)...), nil); res.Reply != nil || len(k.times()) != 1 {
			t.Errorf("%q, asked at %v", res.Body, k.times())
		}
	})
}

func TestExchangesOfAnOldConfigurationStillGetKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keyServer{keys: allKeys, status: 200}
		b := remote(t, k, nil)
		b.Env.Go = func(f func(context.Context)) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			go f(ctx)
		}
		k.delay = time.Millisecond
		for range 2 {
			if res := b.Run(b.Exchange("GET", "/", bearer(es256(claims{"iss": "iss"}))...), nil); res.Reply != nil {
				t.Error(res.Body)
			}
		}
	})
}

func TestKeysAreFetchedAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keyServer{keys: allKeys, status: 503}
		b := remote(t, k, func(r *jwtauthn.Remote) {
			r.Async, r.Cache, r.Refetch, r.Retries = true, time.Minute, 10*time.Second, 1
		})
		time.Sleep(20 * time.Second) // tries at 0 and 1, 11 and 12
		k.set(200, allKeys)
		time.Sleep(time.Minute + 20*time.Second)
		synctest.Wait()
		want := []time.Duration{0, time.Second, 11 * time.Second, 12 * time.Second, 22 * time.Second, 77 * time.Second}
		if fmt.Sprint(k.times()) != fmt.Sprint(want) {
			t.Errorf("asked at %v, want %v", k.asked, want)
		}
		if res := b.Run(b.Exchange("GET", "/", bearer(es256(claims{"iss": "iss"}))...), nil); res.Reply != nil {
			t.Error(res.Body)
		}
	})
}

func TestKeySetsWithoutUsableKeys(t *testing.T) {
	enc := jose.JSONWebKey{Key: p256.Public(), Use: "enc"}
	for _, s := range []string{"", "{}", `{"keys":[]}`, set(enc), `{"keys":[{"kty":"RSA","n":"","e":""}]}`} {
		if k, err := jwtauthn.ParseKeys([]byte(s)); err == nil {
			t.Errorf("%q: %v", s, k)
		}
	}
	if _, err := jwtauthn.ParseKeys([]byte(`{"keys":[{"kty":"new"},` + strings.TrimPrefix(allKeys, `{"keys":[`))); err != nil {
		t.Errorf("a key of an unknown kind spoils the others: %v", err)
	}
}

func FuzzToken(f *testing.F) {
	f.Add(es256(claims{"iss": "iss"}), "/")
	f.Add("a.b.c", "/?access_token=e30.e30.")
	f.Add(sign(jose.HS256, secret, "oct", claims{"iss": "iss", "aud": []string{"a"}, "exp": 1e9}), "/?access_token=&&=")
	other := set(public("x", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))))
	f.Fuzz(func(t *testing.T, token, path string) {
		p := provider(t)
		p.Keys = must(jwtauthn.ParseKeys([]byte(other)))
		b := filtertest.New(t, jwtauthn.Type, &jwtauthn.Config{Providers: map[string]*jwtauthn.Provider{"p": p}, Rules: []jwtauthn.Rule{{Match: model.RouteMatch{}, Requirement: of("p")}}})
		if res := b.Run(b.Exchange("GET", "/"+path, bearer(token)...), nil); res.Reply == nil || res.Status != 401 {
			t.Errorf("%q at %q: status %d", token, path, res.Status)
		}
	})
}

func BenchmarkRequest(b *testing.B) {
	f := single(b)
	token := sign(jose.RS256, rsaKey, "rsa", claims{"iss": "iss", "sub": "spiffe://td/ns/default/dc/dc1/svc/web", "aud": "web", "exp": time.Now().Unix() + 3600})
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		x := f.Exchange("GET", "/", bearer(token)...)
		b.StartTimer()
		if f.Filter.Request(x) != nil {
			b.Fatal("denied")
		}
	}
}
