package oidcflow_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/command/oidcflow"
	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/internal/oidc"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// A visit is what the browser was shown.
type visit struct {
	status int
	header http.Header
	body   string
}

func get(t *testing.T, at string) visit {
	t.Helper()
	resp, err := http.Get(at)
	if err != nil {
		t.Error(err)
		return visit{}
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return visit{resp.StatusCode, resp.Header, string(b)}
}

// login runs the flow with a browser, which is given the URL.
func login(t *testing.T, i *testkit.Issuer, conf oidcflow.Config, browser func(at string)) (string, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conf.Issuer, conf.Listener = i.URL, l
	if conf.ClientID == "" {
		conf.ClientID = i.ClientID
	}
	if conf.Client == nil {
		conf.Client = &http.Client{CheckRedirect: fetch.Redirect}
	}
	if conf.Out == nil {
		conf.Out = io.Discard
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	conf.Open = func(at string) error {
		wg.Go(func() { browser(at) })
		return nil
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return oidcflow.Login(ctx, conf)
}

func TestLoginReturnsTheVerifiedIDToken(t *testing.T) {
	for _, secret := range []string{"", "s+cr/t &="} {
		i := testkit.NewIssuer(t)
		i.Secret = secret
		i.Person(map[string]any{"sub": "alice", "team": "eng"})
		var out bytes.Buffer
		var shown visit
		raw, err := login(t, i, oidcflow.Config{ClientSecret: secret, Scopes: []string{"email"}, Out: &out}, func(at string) {
			u, _ := url.Parse(at)
			if got := u.Query().Get("scope"); got != "openid email" {
				t.Errorf("scope %q", got)
			}
			shown = get(t, at)
		})
		if err != nil {
			t.Fatal(err)
		}
		tok, err := oidc.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		key, err := oidc.ParsePEM(i.PEM())
		if err != nil {
			t.Fatal(err)
		}
		c, ok := tok.Verify([]oidc.Key{key})
		if team, _ := c.Text("team"); !ok || team != "eng" {
			t.Errorf("claims %v", c)
		}
		if shown.status != 200 || !strings.Contains(shown.body, "You are logged in") || strings.Contains(shown.body, raw) {
			t.Errorf("the browser was shown %d %s", shown.status, shown.body)
		}
		if csp := shown.header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || shown.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("headers %v", shown.header)
		}
		if !strings.Contains(out.String(), i.URL+"/authorize?") {
			t.Errorf("printed %q", out.String())
		}
	}
}

func TestLoginRefusesTokensThatAreNotItsOwn(t *testing.T) {
	now := time.Now().Unix()
	tests := []struct {
		name   string
		person map[string]any
		want   string
	}{
		{"another nonce", map[string]any{"nonce": "guess"}, "it belongs to another login"},
		{"no nonce", map[string]any{"nonce": nil}, "it belongs to another login"},
		{"another audience", map[string]any{"aud": "other"}, "it is for another client"},
		{"several audiences, made for another", map[string]any{"aud": []string{"sarn", "x"}, "azp": "x"}, "it was made for another client"},
		{"another issuer", map[string]any{"iss": "https://evil.example"}, "it is from another issuer"},
		{"expired", map[string]any{"exp": now - 3600}, "it is expired"},
		{"never expires", map[string]any{"exp": nil}, "it is expired"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			i := testkit.NewIssuer(t)
			i.Person(tt.person)
			var shown visit
			raw, err := login(t, i, oidcflow.Config{}, func(at string) { shown = get(t, at) })
			if raw != "" || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, %v; want %q", raw, err, tt.want)
			}
			if shown.status != 400 || !strings.Contains(shown.body, "The login failed") {
				t.Errorf("the browser was shown %d %s", shown.status, shown.body)
			}
		})
	}
}

func TestLoginRefusesAWrongClientSecret(t *testing.T) {
	i := testkit.NewIssuer(t)
	i.Secret = "right"
	_, err := login(t, i, oidcflow.Config{ClientSecret: "wrong"}, func(at string) { get(t, at) })
	if err == nil || !strings.Contains(err.Error(), `exchange the code: the provider refuses: "invalid_grant"`) || strings.Contains(err.Error(), "wrong") {
		t.Errorf("got %v", err)
	}
}

// callback returns the URL that the browser comes back to, with these parameters. State is the real one if empty.
func callback(at string, q url.Values) string {
	u, _ := url.Parse(at)
	asked := u.Query()
	back, _ := url.Parse(asked.Get("redirect_uri"))
	if q.Get("state") == "" {
		q.Set("state", asked.Get("state"))
	}
	back.RawQuery = q.Encode()
	return back.String()
}

// A page elsewhere, or another program of this machine, can send requests to the listener. Without the state they
// neither end the login nor take part in it.
func TestCallbackNeedsTheState(t *testing.T) {
	i := testkit.NewIssuer(t)
	_, err := login(t, i, oidcflow.Config{}, func(at string) {
		for _, q := range []url.Values{
			{"code": {"stolen"}, "state": {"guess"}}, {"error": {"x"}, "state": {strings.Repeat("a", 26)}},
			{"code": {strings.Repeat("a", 9000)}},
		} {
			if v := get(t, callback(at, q)); v.status != 400 || strings.Contains(v.body, "stolen") {
				t.Errorf("%v: %d %s", q, v.status, v.body)
			}
		}
		back, _ := url.Parse(callback(at, url.Values{"code": {"x"}}))
		path := *back
		path.Path = "/"
		if v := get(t, path.String()); v.status != 404 {
			t.Errorf("another path: %d", v.status)
		}
		// What a name that leads here by DNS would send.
		req, _ := http.NewRequest("GET", back.String(), nil)
		req.Host = "evil.example:8550"
		if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != 404 {
			t.Errorf("another host: %v %v", resp, err)
		}
		if resp, err := http.Post(back.String(), "text/plain", nil); err != nil || resp.StatusCode != 405 {
			t.Errorf("POST: %v %v", resp, err)
		}
		if i.Asked("/token") != 0 {
			t.Error("a code without the state was exchanged")
		}
		if v := get(t, at); v.status != 200 {
			t.Errorf("the real one: %d %s", v.status, v.body)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

func TestCallbackWorksOnce(t *testing.T) {
	i := testkit.NewIssuer(t)
	hold, release := make(chan struct{}), make(chan struct{})
	client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.URL.Path == "/token" {
			close(hold)
			<-release
		}
		return http.DefaultTransport.RoundTrip(r)
	})}
	_, err := login(t, i, oidcflow.Config{Client: client}, func(at string) {
		done := make(chan visit, 1)
		go func() { done <- get(t, at) }()
		<-hold
		if v := get(t, callback(at, url.Values{"code": {"second"}})); v.status != http.StatusGone {
			t.Errorf("second return: %d", v.status)
		}
		close(release)
		if v := <-done; v.status != 200 {
			t.Errorf("first return: %d", v.status)
		}
	})
	if err != nil || i.Asked("/token") != 1 {
		t.Errorf("%v; %d exchanges", err, i.Asked("/token"))
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Class 12, XSS: what the provider or a link says is shown as text; and a terminal is sent no escapes.
func TestThreat12CallbackEscapesWhatItIsTold(t *testing.T) {
	i := testkit.NewIssuer(t)
	var shown visit
	_, err := login(t, i, oidcflow.Config{}, func(at string) {
		shown = get(t, callback(at, url.Values{"error": {"<script>alert(1)</script>"}, "error_description": {"\x1b]0;owned\a<b>"}}))
	})
	if err == nil || strings.ContainsAny(err.Error(), "\x1b\a") || !strings.Contains(err.Error(), "the provider refuses") {
		t.Errorf("error %q", err)
	}
	if shown.status != 400 || strings.Contains(shown.body, "<script>") || strings.Contains(shown.body, "<b>") || strings.ContainsAny(shown.body, "\x1b\a") {
		t.Errorf("the browser was shown %d %s", shown.status, shown.body)
	}
	if ct := shown.header.Get("Content-Type"); ct != "text/html; charset=utf-8" {
		t.Errorf("type %q", ct)
	}
}

func TestCallbackFromAnotherProviderIsRefused(t *testing.T) {
	i := testkit.NewIssuer(t)
	_, err := login(t, i, oidcflow.Config{}, func(at string) {
		get(t, callback(at, url.Values{"code": {"x"}, "iss": {"https://evil.example"}}))
	})
	if err == nil || !strings.Contains(err.Error(), "another provider") || i.Asked("/token") != 0 {
		t.Errorf("got %v; %d exchanges", err, i.Asked("/token"))
	}
}

func TestLoginEndsWithItsContext(t *testing.T) {
	i := testkit.NewIssuer(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = oidcflow.Login(ctx, oidcflow.Config{
		Issuer: i.URL, ClientID: "sarn", Listener: l, Client: http.DefaultClient, Out: io.Discard,
		Open: func(string) error { cancel(); return nil },
	})
	if err == nil || !strings.Contains(err.Error(), "wait for the browser: context canceled") {
		t.Errorf("got %v", err)
	}
	l.(*net.TCPListener).SetDeadline(time.Now()) // if that is still possible
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener is still open: %v", err)
	}
}

func TestLoginNeedsAProvider(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, err = oidcflow.Login(t.Context(), oidcflow.Config{Issuer: srv.URL, Listener: l, Client: srv.Client(), Out: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "ask the provider about itself: ") {
		t.Errorf("got %v", err)
	}
}

func TestFlags(t *testing.T) {
	parse := func(args ...string) *oidcflow.Flags {
		fs := flag.NewFlagSet("login", flag.ContinueOnError)
		o := oidcflow.AddFlags(fs)
		if err := fs.Parse(args); err != nil {
			t.Fatal(err)
		}
		return o
	}
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"no issuer", nil, "Missing required '-oidc-issuer' flag"},
		{"no client", []string{"-oidc-issuer=x"}, "Missing required '-oidc-client-id' flag"},
		{"no secret file", []string{"-oidc-issuer=x", "-oidc-client-id=y", "-oidc-client-secret-file=/nonexistent"}, "no such file"},
		{"open to others", []string{"-oidc-issuer=x", "-oidc-client-id=y", "-oidc-callback-listen-addr=0.0.0.0:8550"}, "not a loopback address"},
		{"no port", []string{"-oidc-issuer=x", "-oidc-client-id=y", "-oidc-callback-listen-addr=127.0.0.1"}, "missing port"},
		{"no URL", []string{"-oidc-issuer=x", "-oidc-client-id=y", "-oidc-callback-listen-addr=127.0.0.1:0"}, "not an http or https URL"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := parse(tt.args...).Login(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}

	i := testkit.NewIssuer(t)
	i.Secret = "from-a-file"
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("from-a-file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := parse("-oidc", "-oidc-issuer", i.URL, "-oidc-client-id=sarn", "-oidc-client-secret-file", file, "-oidc-scope=email",
		"-oidc-callback-listen-addr=127.0.0.1:0", "-oidc-skip-browser")
	if !o.Enabled || o.Listen != "127.0.0.1:0" {
		t.Errorf("%+v", o)
	}
	// The person opens what is printed.
	r, w := io.Pipe()
	go func() {
		buf := make([]byte, 4096)
		n, _ := r.Read(buf)
		for word := range strings.FieldsSeq(string(buf[:n])) {
			if strings.HasPrefix(word, "http") {
				get(t, word)
			}
		}
		_, _ = io.Copy(io.Discard, r)
	}()
	defer w.Close()
	raw, err := o.Login(t.Context(), w)
	if err != nil || raw == "" {
		t.Errorf("got %q, %v", raw, err)
	}
}
