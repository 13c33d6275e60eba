package kubernetes_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server/authmethod/kubernetes"
)

var way = fetch.Way{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}}

// An apiServer stands in for that of a cluster.
type apiServer struct {
	*httptest.Server
	ca    string
	own   string // token that may ask
	good  string // token that is reviewed well
	asked atomic.Int32

	status                   int // of the review; 201
	username, uid, reviewErr string
	account                  string // JSON of the service account
	accountStatus            int    // 200
}

func newAPIServer(t *testing.T) *apiServer {
	i := testkit.NewIssuer(t)
	a := &apiServer{
		own: i.Sign(map[string]any{"sub": "sarn"}), good: i.Sign(map[string]any{"sub": "pod"}), status: 201, accountStatus: 200,
		username: "system:serviceaccount:shop:web", uid: "u1",
		account: `{"kind":"ServiceAccount","metadata":{"name":"web","namespace":"shop","uid":"u1"}}`,
	}
	a.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.asked.Add(1)
		if r.Header.Get("Authorization") != "Bearer "+a.own {
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		switch r.Method + " " + r.URL.Path {
		case "POST /apis/authentication.k8s.io/v1/tokenreviews":
			var in struct {
				APIVersion, Kind string
				Spec             struct{ Token string }
			}
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Kind != "TokenReview" || in.APIVersion != "authentication.k8s.io/v1" {
				t.Errorf("review %+v, %v", in, err)
			}
			status := map[string]any{}
			if in.Spec.Token == a.good {
				status = map[string]any{"authenticated": true, "user": map[string]any{"username": a.username, "uid": a.uid}}
			}
			if a.reviewErr != "" {
				status["error"] = a.reviewErr
			}
			w.WriteHeader(a.status)
			_ = json.NewEncoder(w).Encode(map[string]any{"kind": "TokenReview", "status": status})
		case "GET /api/v1/namespaces/shop/serviceaccounts/web":
			w.WriteHeader(a.accountStatus)
			_, _ = io.WriteString(w, a.account)
		default:
			t.Errorf("%s %s", r.Method, r.URL.Path)
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(a.Close)
	a.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate().Raw}))
	return a
}

func (a *apiServer) login(t *testing.T, token string) (*kubernetes.Account, error) {
	t.Helper()
	v, err := kubernetes.New(kubernetes.Config{Host: a.URL, CACert: a.ca, ServiceAccountJWT: a.own}, way)
	if err != nil {
		t.Fatal(err)
	}
	return v.Login(t.Context(), token)
}

func TestConfigErrors(t *testing.T) {
	a := newAPIServer(t)
	tests := []struct {
		name string
		conf kubernetes.Config
		want string
	}{
		{"host", kubernetes.Config{}, "Config.Host is required"},
		{"authority", kubernetes.Config{Host: a.URL}, "Config.CACert is required"},
		{"bad authority", kubernetes.Config{Host: a.URL, CACert: "x"}, "error parsing kubernetes ca cert: no certificate in PEM"},
		{"token", kubernetes.Config{Host: a.URL, CACert: a.ca}, "Config.ServiceAccountJWT is required"},
		{"bad token", kubernetes.Config{Host: a.URL, CACert: a.ca, ServiceAccountJWT: "topsecret"}, "Config.ServiceAccountJWT is not a valid JWT: "},
		{"plain text", kubernetes.Config{Host: "http://10.0.0.1", CACert: a.ca, ServiceAccountJWT: a.own}, "Config.Host is not the https URL of a host"},
		{"query", kubernetes.Config{Host: "https://10.0.0.1/?x=", CACert: a.ca, ServiceAccountJWT: a.own}, "Config.Host is not the https URL of a host"},
		{"credentials", kubernetes.Config{Host: "https://u:p@10.0.0.1/", CACert: a.ca, ServiceAccountJWT: a.own}, "Config.Host is not the https URL of a host"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := kubernetes.New(tt.conf, way)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "topsecret") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	// What only the other side verifies may be signed with anything.
	shared := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"x"}`)) + ".AAAA"
	if _, err := kubernetes.New(kubernetes.Config{Host: a.URL, CACert: a.ca, ServiceAccountJWT: shared}, way); err != nil {
		t.Errorf("a token with a shared key: %v", err)
	}
	for _, host := range []string{"10.0.0.1:6443", "https://10.0.0.1:6443/", "https://rancher.example/k8s/clusters/c-1"} {
		if _, err := kubernetes.New(kubernetes.Config{Host: host, CACert: a.ca, ServiceAccountJWT: a.own}, way); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
}

func TestLoginReturnsTheServiceAccount(t *testing.T) {
	a := newAPIServer(t)
	got, err := a.login(t, a.good)
	if want := (kubernetes.Account{Namespace: "shop", Name: "web", UID: "u1"}); err != nil || *got != want {
		t.Errorf("got %v, %v", got, err)
	}
	a.account = `{"metadata":{"uid":"u1","annotations":{"consul.hashicorp.com/service-name":"frontend"}}}`
	got, err = a.login(t, a.good)
	if want := (kubernetes.Account{Namespace: "shop", Name: "frontend", UID: "u1"}); err != nil || *got != want {
		t.Errorf("annotated: got %v, %v", got, err)
	}
}

func TestLoginErrors(t *testing.T) {
	tests := []struct {
		name   string
		token  string // default the good one
		change func(a *apiServer)
		want   string
	}{
		{"no token", "-", func(*apiServer) {}, "failed to parse and validate JWT: "},
		{"another's token", "other", func(*apiServer) {}, "lookup failed: service account jwt not valid"},
		{"status error", "", func(a *apiServer) { a.reviewErr = "token has expired" }, "lookup failed: token has expired"},
		{"a person", "", func(a *apiServer) { a.username = "admin" }, "lookup failed: unexpected username format"},
		{"a node", "", func(a *apiServer) { a.username = "system:node:shop:web" }, "lookup failed: username returned is not a service account"},
		{"a way out of the path", "", func(a *apiServer) { a.username = "system:serviceaccount:shop:../../secrets/x" }, "lookup failed: unexpected username format"},
		{"no name", "", func(a *apiServer) { a.username = "system:serviceaccount:shop:" }, "lookup failed: unexpected username format"},
		{"a query", "", func(a *apiServer) { a.username = "system:serviceaccount:shop:web?x=y" }, "lookup failed: unexpected username format"},
		{"more parts", "", func(a *apiServer) { a.username = "system:serviceaccount:shop:web:x" }, "lookup failed: unexpected username format"},
		{"the method's own token is no good", "", func(a *apiServer) { a.own = "changed" }, "lookup failed: the API server answers with status 401"},
		{"refused", "", func(a *apiServer) { a.status = 403 }, "lookup failed: the API server answers with status 403"},
		{"no such account", "", func(a *apiServer) { a.accountStatus, a.account = 404, `{"message":"topsecret"}` }, "annotation lookup failed: the API server answers with status 404"},
		{"no JSON", "", func(a *apiServer) { a.account = "topsecret" }, "annotation lookup failed: the API server's answer is not the JSON expected"},
		{"an account of the same name", "", func(a *apiServer) { a.account = `{"metadata":{"uid":"u2"}}` }, "annotation lookup failed: the service account is no longer the one"},
		{"nobody", "", func(a *apiServer) { a.Close() }, "lookup failed: ask "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newAPIServer(t)
			v, err := kubernetes.New(kubernetes.Config{Host: a.URL, CACert: a.ca, ServiceAccountJWT: a.own}, way)
			if err != nil {
				t.Fatal(err)
			}
			tt.change(a)
			token := a.good
			switch tt.token {
			case "-":
				token = ""
			case "other":
				token = testkit.NewIssuer(t).Sign(nil)
			}
			_, err = v.Login(t.Context(), token)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "topsecret") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			for _, secret := range []string{a.own, a.good} {
				if len(secret) > 10 && strings.Contains(err.Error(), secret) {
					t.Error("the error has a token")
				}
			}
		})
	}
}

// What is no JWT is not sent on: anybody can log in.
func TestLoginSendsOnlyTokens(t *testing.T) {
	a := newAPIServer(t)
	for _, token := range []string{"", "x", "a.b.c", strings.Repeat("a", 1<<20)} {
		if _, err := a.login(t, token); err == nil {
			t.Errorf("%.20q was taken", token)
		}
	}
	if a.asked.Load() != 0 {
		t.Error("the API server was asked")
	}
}

// Class 3, TLS verification that is passed over: only the authority of the method counts.
func TestThreat03APIServerIsVerified(t *testing.T) {
	a, other := newAPIServer(t), testkit.NewCA(t, "other")
	pemText := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate().Raw}))
	v, err := kubernetes.New(kubernetes.Config{Host: a.URL, CACert: pemText, ServiceAccountJWT: a.own}, way)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Login(t.Context(), a.good); err == nil || !strings.Contains(err.Error(), "certificate") || a.asked.Load() != 0 {
		t.Errorf("got %v", err)
	}
}

// Class 13, request forgery by the server: the token of the method goes to no other host.
func TestThreat13APIServerRedirectsNowhere(t *testing.T) {
	a := newAPIServer(t)
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the other host was asked") }))
	defer thief.Close()
	a.Config.Handler = http.RedirectHandler(thief.URL, http.StatusTemporaryRedirect)
	if _, err := a.login(t, a.good); err == nil || !strings.Contains(err.Error(), "redirect refused") {
		t.Errorf("got %v", err)
	}
}
