package jwt_test

import (
	"context"
	"encoding/json"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server/authmethod/jwt"
)

var way = fetch.Way{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}}

func validator(t *testing.T, conf jwt.Config) *jwt.Validator {
	t.Helper()
	v, err := jwt.New(conf, way)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// configure reads a configuration as it is written.
func configure(text string) (jwt.Config, error) {
	var conf jwt.Config
	err := json.Unmarshal([]byte(text), &conf)
	return conf, err
}

func TestConfigErrors(t *testing.T) {
	i := testkit.NewIssuer(t)
	key, _ := json.Marshal(i.PEM())
	const one = `exactly one of 'JWTValidationPubKeys', 'JWKSURL', or 'OIDCDiscoveryURL' must be set for type "jwt"`
	tests := []struct{ name, conf, want string }{
		{"none", `{}`, one},
		{"two", `{"JWKSURL":"http://x","OIDCDiscoveryURL":"http://x"}`, one},
		{"three", `{"JWTValidationPubKeys":["x"],"JWKSURL":"http://x","OIDCDiscoveryURL":"http://x"}`, one},
		{"empty keys", `{"JWTValidationPubKeys":[]}`, one},
		{"bad key", `{"JWTValidationPubKeys":[` + string(key) + `,"x"]}`, "error parsing public key JWTValidationPubKeys[1]: not PEM"},
		{"HS256", `{"JWTValidationPubKeys":[` + string(key) + `],"JWTSupportedAlgs":["RS256","HS256"]}`, "Invalid supported algorithm: HS256"},
		{"none as algorithm", `{"JWTValidationPubKeys":[` + string(key) + `],"JWTSupportedAlgs":["none"]}`, "Invalid supported algorithm: none"},
		{"values", `{"JWTValidationPubKeys":[` + string(key) + `],"ClaimMappings":{"a":"x","b":"x"}}`, `ClaimMappings contains multiple mappings for key "x"`},
		{"lists", `{"JWTValidationPubKeys":[` + string(key) + `],"ListClaimMappings":{"a":"x","b":"x"}}`, `ListClaimMappings contains multiple mappings for key "x"`},
		{"JWKS authority alone", `{"JWTValidationPubKeys":[` + string(key) + `],"JWKSCACert":"x"}`, "'JWKSCACert' should not be set unless 'JWKSURL' is set"},
		{"OIDC authority alone", `{"JWTValidationPubKeys":[` + string(key) + `],"OIDCDiscoveryCACert":"x"}`, "'OIDCDiscoveryCACert' should not be set unless 'OIDCDiscoveryURL' is set"},
		{"bad JWKS authority", `{"JWKSURL":"https://x","JWKSCACert":"x"}`, "error checking JWKSCACert: no certificate in PEM"},
		{"bad OIDC authority", `{"OIDCDiscoveryURL":"https://x","OIDCDiscoveryCACert":"x"}`, "error checking OIDCDiscoveryCACert: no certificate in PEM"},
		{"bad leeway", `{"ClockSkewLeeway":"long"}`, "invalid duration"},
		{"leeway is a list", `{"ClockSkewLeeway":[]}`, "not a duration"},
		{"endless leeway", `{"ClockSkewLeeway":1e300}`, "not a duration"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conf, err := configure(tt.conf)
			if err == nil {
				_, err = jwt.New(conf, way)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestCheckReachesTheURL(t *testing.T) {
	i := testkit.NewIssuer(t)
	notFound := httptest.NewServer(http.NotFoundHandler())
	defer notFound.Close()
	for _, tt := range []struct {
		name string
		conf jwt.Config
		want string // prefix of the error
	}{
		{"static", jwt.Config{JWTValidationPubKeys: []string{i.PEM()}}, ""},
		{"keys", jwt.Config{JWKSURL: i.URL + "/keys"}, ""},
		{"provider", jwt.Config{OIDCDiscoveryURL: i.URL}, ""},
		{"nobody's keys", jwt.Config{JWKSURL: "http://127.0.0.1:1"}, "error checking JWKSURL: "},
		{"no such keys", jwt.Config{JWKSURL: notFound.URL}, "error checking JWKSURL: "},
		{"metadata as keys", jwt.Config{JWKSURL: i.URL + "/.well-known/openid-configuration"}, "error checking JWKSURL: no public key"},
		{"no URL of keys", jwt.Config{JWKSURL: "/keys"}, "error checking JWKSURL: not an http or https URL"},
		{"nobody", jwt.Config{OIDCDiscoveryURL: "http://127.0.0.1:1"}, "error checking OIDCDiscoveryURL: "},
		{"not its issuer", jwt.Config{OIDCDiscoveryURL: i.URL + "/"}, "error checking OIDCDiscoveryURL: it calls itself"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := validator(t, tt.conf).Check(t.Context())
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestLoginByEverySourceOfKeys(t *testing.T) {
	i, other := testkit.NewIssuer(t), testkit.NewIssuer(t)
	mappings := map[string]string{"name": "n"}
	for name, conf := range map[string]jwt.Config{
		"static":   {JWTValidationPubKeys: []string{other.PEM(), i.PEM()}, BoundIssuer: i.URL, ClaimMappings: mappings},
		"keys":     {JWKSURL: i.URL + "/keys", ClaimMappings: mappings},
		"provider": {OIDCDiscoveryURL: i.URL, ClaimMappings: mappings},
	} {
		t.Run(name, func(t *testing.T) {
			v := validator(t, conf)
			got, err := v.Login(t.Context(), i.Sign(map[string]any{"name": "web"}))
			if err != nil || got.Values["n"] != "web" {
				t.Errorf("got %v, %v", got, err)
			}
			stranger := testkit.NewIssuer(t)
			_, err = v.Login(t.Context(), stranger.Sign(map[string]any{"iss": i.URL, "name": "web"}))
			want := "no known key successfully validated the token signature"
			if name != "static" {
				want = "error verifying token: " + want
			}
			if err == nil || err.Error() != want {
				t.Errorf("a stranger's token: %v, want %q", err, want)
			}
		})
	}
}

func TestLoginFollowsARotation(t *testing.T) {
	i := testkit.NewIssuer(t)
	v := validator(t, jwt.Config{JWKSURL: i.URL + "/keys"})
	i.Rotate()
	if _, err := v.Login(t.Context(), i.Sign(nil)); err != nil {
		t.Error(err)
	}
	// The issuer's keys are not fetched for every login.
	for range 20 {
		if _, err := v.Login(t.Context(), i.Sign(nil)); err != nil {
			t.Error(err)
		}
	}
	if n := i.Asked("/keys"); n != 1 {
		t.Errorf("keys were fetched %d times", n)
	}
}

func TestLoginErrorsWithoutKeys(t *testing.T) {
	i := testkit.NewIssuer(t)
	v := validator(t, jwt.Config{JWKSURL: "http://127.0.0.1:1/keys"})
	if _, err := v.Login(t.Context(), i.Sign(nil)); err == nil || !strings.HasPrefix(err.Error(), "error verifying token: ") {
		t.Errorf("got %v", err)
	}
}

func TestLoginErrors(t *testing.T) {
	i := testkit.NewIssuer(t)
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Unix() // in bubbles
	bound := jwt.Config{BoundIssuer: i.URL, BoundAudiences: []string{"a", "b"}}
	tests := []struct {
		name   string
		conf   jwt.Config
		claims map[string]any
		raw    string // instead of claims
		want   string // error; empty for none
	}{
		{name: "good", conf: bound, claims: map[string]any{"aud": "b"}},
		{name: "one audience of several", conf: bound, claims: map[string]any{"aud": []string{"x", "a"}}},
		{name: "no token", want: "missing jwt"},
		{name: "no JWT", raw: "x", want: "error parsing token: "},
		{name: "three dots", raw: "...", want: "error parsing token: "},
		{name: "huge", raw: strings.Repeat("a", 1<<20), want: "error parsing token: the token is longer than"},
		{name: "other audience", conf: bound, claims: map[string]any{"aud": []string{"x"}}, want: "error validating claims: aud claim does not match any bound audience"},
		{name: "no audience", conf: bound, claims: map[string]any{}, want: "error validating claims: aud claim does not match any bound audience"},
		{name: "empty audience", conf: bound, claims: map[string]any{"aud": []string{}}, want: "error validating claims: aud claim does not match any bound audience"},
		{name: "audience is a number", conf: bound, claims: map[string]any{"aud": 7}, want: "error validating claims: aud is not text"},
		{name: "audience but none bound", claims: map[string]any{"aud": "a"}, want: "error validating claims: audience claim found in JWT but no audiences are bound"},
		{name: "empty audience but none bound", claims: map[string]any{"aud": []string{}}, want: "error validating claims: audience claim found in JWT but no audiences are bound"},
		{name: "other issuer", conf: bound, claims: map[string]any{"aud": "a", "iss": "x"}, want: "error validating claims: iss claim does not match the bound issuer"},
		{name: "no issuer", conf: bound, claims: map[string]any{"aud": "a", "iss": nil}, want: "error validating claims: iss claim does not match the bound issuer"},
		{name: "issuer is a list", conf: bound, claims: map[string]any{"aud": "a", "iss": []string{i.URL}}, want: "error validating claims: iss is not text"},
		{name: "no time", claims: map[string]any{"iat": nil, "exp": nil}, want: "no issue time, notbefore, or expiration time encoded in token"},
		{name: "expired", claims: map[string]any{"exp": now - 100}, want: "error validating claims: the token is expired (exp)"},
		{name: "expired within the skew", claims: map[string]any{"exp": now - 30}},
		{name: "expires at zero", claims: map[string]any{"exp": 0}, want: "error validating claims: the token is expired (exp)"},
		{name: "not yet", claims: map[string]any{"nbf": now + 100}, want: "error validating claims: the token is not valid yet (nbf)"},
		{name: "not yet within the skew", claims: map[string]any{"nbf": now + 30}},
		{name: "issued later", claims: map[string]any{"nbf": now, "iat": now + 100}, want: "error validating claims: the token was issued in the future (iat)"},
		{name: "time is text", claims: map[string]any{"exp": "never"}, want: "error validating claims: exp is not a time"},
		{name: "time without end", claims: map[string]any{"exp": 1e200}, want: "error validating claims: exp is not a time"},
		{name: "no skew", conf: jwt.Config{ClockSkewLeeway: -1}, claims: map[string]any{"exp": now - 30}, want: "error validating claims: the token is expired (exp)"},
		{name: "more skew", conf: jwt.Config{ClockSkewLeeway: jwt.Leeway(time.Hour)}, claims: map[string]any{"exp": now - 3000}},
		{name: "allowed algorithm", conf: jwt.Config{JWTSupportedAlgs: []string{"RS256", "ES256"}}, claims: map[string]any{}},
		{name: "not an allowed algorithm", conf: jwt.Config{JWTSupportedAlgs: []string{"RS256"}}, claims: map[string]any{}, want: "error verifying token: it is signed with ES256, which is not a supported algorithm"},
		{name: "value is an object", conf: jwt.Config{ClaimMappings: map[string]string{"c": "x"}}, claims: map[string]any{"c": map[string]any{}}, want: "error converting claim 'c' to string"},
		{name: "value is a list", conf: jwt.Config{ClaimMappings: map[string]string{"/a/c": "x"}}, claims: map[string]any{"a": map[string]any{"c": []string{"x"}}}, want: "error converting claim '/a/c' to string"},
		{name: "value without end", conf: jwt.Config{ClaimMappings: map[string]string{"c": "x"}}, claims: map[string]any{"c": 1e300}, want: "error converting claim 'c' to string"},
		{name: "list of objects", conf: jwt.Config{ListClaimMappings: map[string]string{"c": "x"}}, claims: map[string]any{"c": []any{map[string]any{}}}, want: "error converting claim 'c' to string list"},
		{name: "object as list", conf: jwt.Config{ListClaimMappings: map[string]string{"c": "x"}}, claims: map[string]any{"c": map[string]any{}}, want: "error converting claim 'c' to string list"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tt.conf.JWTValidationPubKeys = []string{i.PEM()}
				raw := tt.raw
				if tt.claims != nil {
					raw = i.Sign(tt.claims)
				}
				_, err := validator(t, tt.conf).Login(t.Context(), raw)
				switch {
				case tt.want == "" && err != nil, tt.want != "" && err == nil:
					t.Errorf("got %v, want %q", err, tt.want)
				case tt.want != "" && !strings.HasPrefix(err.Error(), tt.want):
					t.Errorf("got %v, want %q", err, tt.want)
				case err != nil && tt.raw != "" && strings.Contains(err.Error(), tt.raw) && len(tt.raw) > 10:
					t.Error("the error has the token")
				}
			})
		})
	}
}

func TestLeewaysFillInMissingTimes(t *testing.T) {
	i := testkit.NewIssuer(t)
	now := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Unix() // in bubbles
	tests := []struct {
		name          string
		iat, nbf, exp any
		leeway        jwt.Leeway
		good          bool
	}{
		{"issued lately", now - 140, nil, nil, 0, true},
		{"issued 150 seconds and the skew ago", now - 205, nil, nil, 0, true},
		{"issued before that", now - 215, nil, nil, 0, false},
		{"begins later than issued", now - 1000, now - 200, nil, 0, true},
		{"only begins", nil, now - 215, nil, 0, false},
		{"none at all", now - 65, nil, nil, -1, false},
		{"more", now - 3000, nil, nil, jwt.Leeway(time.Hour), true},
		{"only expires soon", nil, nil, now + 140, 0, true},
		{"only expires long from now", nil, nil, now + 215, 0, false},
		{"expires long from now, more", nil, nil, now + 3000, jwt.Leeway(time.Hour), true},
		{"expires and is issued", now - 10, nil, now + 86400, 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := validator(t, jwt.Config{JWTValidationPubKeys: []string{i.PEM()}, ExpirationLeeway: tt.leeway, NotBeforeLeeway: tt.leeway})
				_, err := v.Login(t.Context(), i.Sign(map[string]any{"iat": tt.iat, "nbf": tt.nbf, "exp": tt.exp}))
				if (err == nil) != tt.good {
					t.Errorf("got %v, want good %v", err, tt.good)
				}
			})
		})
	}
	for text, want := range map[string]jwt.Leeway{`"30s"`: jwt.Leeway(30 * time.Second), `5000000000`: jwt.Leeway(5 * time.Second), `-1`: -1, `"-1s"`: jwt.Leeway(-time.Second), `0`: 0, `null`: 0} {
		conf, err := configure(`{"ClockSkewLeeway":` + text + `}`)
		if err != nil || conf.ClockSkewLeeway != want {
			t.Errorf("%s: %v, %v; want %v", text, conf.ClockSkewLeeway, err, want)
		}
	}
}

func TestVariables(t *testing.T) {
	i := testkit.NewIssuer(t)
	v := validator(t, jwt.Config{
		JWTValidationPubKeys: []string{i.PEM()},
		ClaimMappings: map[string]string{
			"name": "name", "/nested/team": "team", "num": "num", "float": "float", "neg": "neg", "big": "big", "yes": "yes", "gone": "gone",
			"null": "null", "/list/1": "second", "/list/01": "odd", "/list/9": "out", "/name/x": "below", "/a~1b/c~0d": "escaped", "http://x/y": "url",
		},
		ListClaimMappings: map[string]string{"groups": "groups", "one": "one", "mixed": "mixed", "/nested/all": "all", "gone": "none", "empty": "empty"},
	})
	got, err := v.Login(t.Context(), i.Sign(map[string]any{
		"name": "Web", "nested": map[string]any{"team": "Blue", "all": []any{"x", "y"}}, "num": 7, "float": 7.9, "neg": -3, "big": json.Number("9007199254740993"),
		"yes": true, "null": json.RawMessage("null"), "list": []any{"a", "b"}, "a/b": map[string]any{"c~d": "e"}, "http://x/y": "u",
		"groups": []any{"eng", "", "ops"}, "one": "single", "mixed": []any{1, true, "a"}, "empty": []any{},
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := &jwt.Variables{
		Values: map[string]string{
			"name": "Web", "team": "Blue", "num": "7", "float": "7", "neg": "-3", "big": "9007199254740993", "yes": "true", "gone": "", "null": "",
			"second": "b", "odd": "", "out": "", "below": "", "escaped": "e", "url": "u",
		},
		Lists: map[string][]string{"groups": {"eng", "ops"}, "one": {"single"}, "mixed": {"1", "true", "a"}, "all": {"x", "y"}, "none": nil, "empty": nil},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	blank := v.Blank()
	for name := range maps.Keys(want.Values) {
		if s, ok := blank.Values[name]; !ok || s != "" {
			t.Errorf("blank %s: %q, %v", name, s, ok)
		}
	}
	if len(blank.Lists) != len(want.Lists) {
		t.Errorf("blank lists %v", blank.Lists)
	}
}

// FuzzLogin checks that claims of any shape give variables under the mapped names alone, or an error with a text of the
// specification.
func FuzzLogin(f *testing.F) {
	f.Add([]byte(`{"name":"web","groups":["a",1,true]}`), "name")
	f.Add([]byte(`{"a":{"b":[1,{"c":"d"}]}}`), "/a/b/1/c")
	f.Add([]byte(`{"exp":1e999,"iat":-1,"aud":{}}`), "/")
	f.Add([]byte(`{"name":"\" or value.x != \""}`), "~")
	i := testkit.NewIssuer(f)
	texts := []string{"error validating claims: ", "error converting claim '", "no issue time, notbefore, or expiration time encoded in token", "error parsing token: "}
	f.Fuzz(func(t *testing.T, claims []byte, claim string) {
		var c map[string]any
		if json.Unmarshal(claims, &c) != nil || c == nil {
			return
		}
		v, err := jwt.New(jwt.Config{
			JWTValidationPubKeys: []string{i.PEM()}, ClaimMappings: map[string]string{claim: "v"}, ListClaimMappings: map[string]string{claim: "l"},
		}, way)
		if err != nil {
			t.Fatal(err)
		}
		got, err := v.Login(t.Context(), i.Sign(c))
		if err != nil {
			for _, text := range texts {
				if strings.HasPrefix(err.Error(), text) {
					return
				}
			}
			t.Fatalf("unknown error: %v", err)
		}
		_, hasV := got.Values["v"]
		if _, hasL := got.Lists["l"]; !hasV || !hasL || len(got.Values) != 1 || len(got.Lists) != 1 {
			t.Fatalf("got %v", got)
		}
	})
}
