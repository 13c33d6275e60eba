package authmethod_test

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server/authmethod"
)

var env = authmethod.Env{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}}

func method(kind string, config map[string]any) *acl.AuthMethod {
	return &acl.AuthMethod{Name: "m", Type: kind, Config: config, ModifyIndex: 7}
}

// jwtMethod maps name and team to values and groups to a list.
func jwtMethod(i *testkit.Issuer) *acl.AuthMethod {
	return method(acl.MethodJWT, map[string]any{
		"JWTValidationPubKeys": []any{i.PEM()}, "BoundIssuer": i.URL, "ClockSkewLeeway": "10s", "ExpirationLeeway": float64(1e9),
		"ClaimMappings": map[string]any{"name": "name", "/x/team": "team"}, "ListClaimMappings": map[string]any{"groups": "groups"},
	})
}

func TestNewErrors(t *testing.T) {
	i := testkit.NewIssuer(t)
	tests := []struct {
		name   string
		method *acl.AuthMethod
		want   []string // parts of the error
	}{
		{"no type", method("", nil), []string{"Type should be one of: [aws-iam jwt kubernetes]"}},
		{"oidc", method("oidc", nil), []string{"Type should be one of: [aws-iam jwt kubernetes]"}},
		{"unknown key", method(acl.MethodJWT, map[string]any{"Bogus": 1}), []string{"error decoding config: ", "Bogus"}},
		{"unknown key of AWS", method(acl.MethodAWSIAM, map[string]any{"Bogus": 1}), []string{"error decoding config: ", "Bogus"}},
		{"key of another type", method(acl.MethodKubernetes, map[string]any{"JWKSURL": "x"}), []string{"error decoding config: ", "JWKSURL"}},
		{"value of another kind", method(acl.MethodKubernetes, map[string]any{"ServiceAccountJWT": []any{"topsecret"}}), []string{"error decoding config: ", "ServiceAccountJWT"}},
		{"no JSON", method(acl.MethodJWT, map[string]any{"JWKSURL": make(chan int)}), []string{"error decoding config: "}},
		{"jwt", method(acl.MethodJWT, nil), []string{`exactly one of 'JWTValidationPubKeys', 'JWKSURL', or 'OIDCDiscoveryURL' must be set for type "jwt"`}},
		{"kubernetes", method(acl.MethodKubernetes, nil), []string{"Config.Host is required"}},
		{"aws-iam", method(acl.MethodAWSIAM, map[string]any{}), []string{"BoundIAMPrincipalARNs is required and must have at least 1 entry"}},
		{"not reached", method(acl.MethodJWT, map[string]any{"JWKSURL": "http://127.0.0.1:1"}), []string{"error checking JWKSURL: "}},
		{"provider not reached", method(acl.MethodJWT, map[string]any{"OIDCDiscoveryURL": "http://127.0.0.1:1"}), []string{"error checking OIDCDiscoveryURL: "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := authmethod.New(t.Context(), tt.method, env)
			if err == nil {
				t.Fatal("no error")
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("got %v, want %q", err, part)
				}
			}
			if strings.Contains(err.Error(), "topsecret") {
				t.Errorf("the error has the value: %v", err)
			}
		})
	}
	if _, err := authmethod.New(t.Context(), method(acl.MethodJWT, map[string]any{"JWKSURL": i.URL + "/keys"}), authmethod.Env{}); err == nil || !strings.Contains(err.Error(), "no way to the outside") {
		t.Errorf("without a dialer: %v", err)
	}
	if i.Asked("/keys") != 0 {
		t.Error("reached without a dialer")
	}
}

func login(t *testing.T, v authmethod.Validator, bearer string) *authmethod.Identity {
	t.Helper()
	id, err := v.Login(t.Context(), bearer)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestJWTIdentity(t *testing.T) {
	i := testkit.NewIssuer(t)
	v, err := authmethod.New(t.Context(), jwtMethod(i), env)
	if err != nil {
		t.Fatal(err)
	}
	id := login(t, v, i.Sign(map[string]any{"name": "Web", "groups": []any{"eng", "ops"}}))
	if d := cmp.Diff(map[string]string{"value.name": "Web", "value.team": ""}, id.Variables); d != "" {
		t.Error(d)
	}
	for selector, want := range map[string]bool{
		"": true, "value.name == Web": true, "value.name == web": false, `"eng" in list.groups`: true, `list.groups contains "x"`: false,
		`value.team == ""`: true, "list.groups is empty": false, `value.name matches "^W" and not "root" in list.groups`: true,
	} {
		got, err := id.Matches(selector)
		if err != nil || got != want {
			t.Errorf("%s: %v, %v", selector, got, err)
		}
	}
	for _, selector := range []string{"nope == 1", "value == x", "value.name", "serviceaccount.name == x", "entity_name == x", `value.name matches "("`} {
		if _, err := v.Blank().Matches(selector); err == nil {
			t.Errorf("%s is a selector", selector)
		}
	}
}

// Class 8, injection into selectors: what a token says is compared, never read as part of a selector.
func TestThreat08ClaimsAreNeverPartOfASelector(t *testing.T) {
	i := testkit.NewIssuer(t)
	v, err := authmethod.New(t.Context(), jwtMethod(i), env)
	if err != nil {
		t.Fatal(err)
	}
	for _, hostile := range []string{
		`admin" or value.name != "`, `" or "" == "`, `x or value.name == x`, `admin` + "\n" + `or value.name != x`, "`", `"`, `\"`, `admin" in list.groups or "`,
		`${value.team}`, `$${value.name}`, `value.name`, `not `, `) or (value.name != x`, "admin\x00", "Admin", "admin ", "аdmin",
	} {
		id := login(t, v, i.Sign(map[string]any{"name": hostile, "groups": []any{hostile}, "x": map[string]any{"team": hostile}}))
		for _, selector := range []string{
			`value.name == admin`, `value.name == "admin"`, `value.name == admin and value.team == admin`, `"admin" in list.groups`,
			`not value.name != admin`, `value.name matches "^admin$"`, `admin in list.groups and value.name != guest`,
		} {
			if got, err := id.Matches(selector); got || err != nil {
				t.Errorf("name %q is selected by %s: %v", hostile, selector, err)
			}
		}
		// It is there as it was said, for whoever checks the name that is made of it.
		if id.Variables["value.name"] != hostile {
			t.Errorf("variable %q", id.Variables["value.name"])
		}
		if len(id.Variables) != 2 {
			t.Errorf("variables %v", id.Variables)
		}
		same, err := id.Matches("value.name == " + fmt.Sprintf("%q", hostile))
		if err != nil || !same {
			t.Errorf("%q is not equal to itself: %v", hostile, err)
		}
	}
}

// Claims choose no variable: names come from the method alone.
func TestThreat08ClaimsAddNoVariables(t *testing.T) {
	i := testkit.NewIssuer(t)
	v, err := authmethod.New(t.Context(), jwtMethod(i), env)
	if err != nil {
		t.Fatal(err)
	}
	id := login(t, v, i.Sign(map[string]any{"value.name": "admin", "value": map[string]any{"name": "admin"}, "list": map[string]any{"groups": []any{"admin"}}, "team": "admin"}))
	if d := cmp.Diff(map[string]string{"value.name": "", "value.team": ""}, id.Variables); d != "" {
		t.Error(d)
	}
	if got, _ := id.Matches(`value.name == admin or value.team == admin or "admin" in list.groups`); got {
		t.Error("selected")
	}
}

func TestKubernetesIdentity(t *testing.T) {
	i := testkit.NewIssuer(t)
	own := i.Sign(nil)
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			_, _ = io.WriteString(w, `{"status":{"authenticated":true,"user":{"username":"system:serviceaccount:shop:web","uid":"u1"}}}`)
		} else {
			_, _ = io.WriteString(w, `{"metadata":{"uid":"u1"}}`)
		}
	}))
	defer srv.Close()
	m := method(acl.MethodKubernetes, map[string]any{
		"Host": srv.URL, "ServiceAccountJWT": own, "CACert": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})),
	})
	v, err := authmethod.New(t.Context(), m, env)
	if err != nil {
		t.Fatal(err)
	}
	id := login(t, v, i.Sign(nil))
	if d := cmp.Diff(map[string]string{"serviceaccount.namespace": "shop", "serviceaccount.name": "web", "serviceaccount.uid": "u1"}, id.Variables); d != "" {
		t.Error(d)
	}
	if got, err := id.Matches("serviceaccount.namespace == shop and serviceaccount.name == web and serviceaccount.uid != u2"); !got || err != nil {
		t.Errorf("got %v, %v", got, err)
	}
	for _, selector := range []string{"serviceaccount is empty", "serviceaccount.nope == x", "value.x == y"} {
		if _, err := v.Blank().Matches(selector); err == nil {
			t.Errorf("%s is a selector", selector)
		}
	}
}

func TestAWSIdentityFields(t *testing.T) {
	bound := []any{"arn:aws:iam::123456789012:role/web"}
	plain, err := authmethod.Blank(method(acl.MethodAWSIAM, map[string]any{"BoundIAMPrincipalARNs": bound}))
	if err != nil {
		t.Fatal(err)
	}
	details, err := authmethod.Blank(method(acl.MethodAWSIAM, map[string]any{"BoundIAMPrincipalARNs": bound, "EnableIAMEntityDetails": true, "IAMEntityTags": []any{"team"}}))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]string{"entity_name": "", "entity_id": "", "account_id": ""}, plain.Variables); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(map[string]string{"entity_name": "", "entity_id": "", "account_id": "", "entity_path": "", "entity_tags.team": ""}, details.Variables); d != "" {
		t.Error(d)
	}
	for selector, onlyDetails := range map[string]bool{
		"entity_name == web and entity_id == x and account_id == 1": false, `entity_path matches "^/svc/"`: true, "entity_tags.team == Blue": true,
	} {
		if _, err := plain.Matches(selector); (err != nil) != onlyDetails {
			t.Errorf("%s: %v", selector, err)
		}
		if _, err := details.Matches(selector); err != nil {
			t.Errorf("%s: %v", selector, err)
		}
	}
}

func TestBlankReachesNothing(t *testing.T) {
	i := testkit.NewIssuer(t)
	id, err := authmethod.Blank(method(acl.MethodJWT, map[string]any{"JWKSURL": i.URL + "/keys", "ClaimMappings": map[string]any{"a": "b"}}))
	if err != nil || i.Asked("/keys") != 0 {
		t.Fatalf("%v; asked %d times", err, i.Asked("/keys"))
	}
	if d := cmp.Diff(map[string]string{"value.b": ""}, id.Variables); d != "" {
		t.Error(d)
	}
	if _, err := authmethod.Blank(method("x", nil)); err == nil {
		t.Error("a type nobody knows")
	}
}

func TestCacheKeepsWhatWasFetched(t *testing.T) {
	i := testkit.NewIssuer(t)
	c := authmethod.NewCache(env)
	m := method(acl.MethodJWT, map[string]any{"OIDCDiscoveryURL": i.URL, "ClaimMappings": map[string]any{"name": "n"}})
	get := func() authmethod.Validator {
		t.Helper()
		v, err := c.Get(m)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			v, err := c.Get(m)
			if err == nil {
				_, err = v.Login(t.Context(), i.Sign(map[string]any{"name": "web"}))
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := i.Asked("/keys"); n != 1 {
		t.Errorf("keys were fetched %d times", n)
	}
	first := get()
	if get() != first {
		t.Error("another validator for the same method")
	}
	m.ModifyIndex++
	second := get()
	if second == first {
		t.Error("the validator of a method that changed")
	}
	c.Forget(m.Name)
	if get() == second {
		t.Error("the validator of a method that was deleted")
	}
	if _, err := c.Get(method("x", nil)); err == nil {
		t.Error("a type nobody knows")
	}
}

// Class 11, unbounded resources: logins need no token, so those that ask the outside are bounded, and those that wait
// end with their callers.
func TestThreat11LoginsThatAskOutsideAreBounded(t *testing.T) {
	i := testkit.NewIssuer(t)
	var mu sync.Mutex
	open, most := 0, 0
	full, release := make(chan struct{}), make(chan struct{})
	busy := authmethod.Env{Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		mu.Lock()
		open++
		if most = max(most, open); open == 32 {
			close(full)
		}
		mu.Unlock()
		<-release
		return nil, io.ErrUnexpectedEOF
	}}
	ca := testkit.NewCA(t, "api")
	v, err := authmethod.New(t.Context(), method(acl.MethodKubernetes, map[string]any{
		"Host": "https://10.0.0.1", "ServiceAccountJWT": i.Sign(nil), "CACert": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate().Raw})),
	}), busy)
	if err != nil {
		t.Fatal(err)
	}
	token := i.Sign(nil)
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			if _, err := v.Login(t.Context(), token); err == nil {
				t.Error("logged in")
			}
		})
	}
	<-full
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Login(gone, token); err != context.Canceled {
		t.Errorf("a caller that is gone: %v", err)
	}
	mu.Lock()
	if most != 32 {
		t.Errorf("%d at the same time", most)
	}
	open = -1000
	mu.Unlock()
	close(release)
	wg.Wait()
}

// Class 4, secrets readable with a read right.
func TestThreat04TheTokenOfAMethodIsHidden(t *testing.T) {
	m := method(acl.MethodKubernetes, map[string]any{"Host": "https://x", "serviceAccountJWT": "topsecret"})
	shown := authmethod.Redact(m)
	if d := cmp.Diff(map[string]any{"Host": "https://x", "serviceAccountJWT": acl.Hidden}, shown.Config); d != "" {
		t.Error(d)
	}
	if m.Config["serviceAccountJWT"] != "topsecret" {
		t.Error("the stored method was changed")
	}
	if j := method(acl.MethodJWT, map[string]any{"JWKSURL": "x"}); authmethod.Redact(j) != j {
		t.Error("a method without secrets was changed")
	}
}
