// Package oidcflow signs a person in at an OpenID Connect provider: the authorization code flow with PKCE (OpenID
// Connect Core 1.0 section 3.1, RFC 7636), with a browser and a listener on this machine (RFC 8252 section 7.3).
package oidcflow

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/internal/oidc"
)

const (
	// DefaultListen is where the browser returns to.
	DefaultListen = "127.0.0.1:8550"
	// CallbackPath is the path there. The provider must know http://127.0.0.1:8550/oidc/callback as a redirect URI.
	CallbackPath = "/oidc/callback"
)

const (
	maxTime   = 5 * time.Minute // for the person to log in
	maxAnswer = 1 << 20         // of the provider, in bytes
	maxText   = 8 << 10         // of what the browser brings, in bytes
	skew      = time.Minute     // by which clocks may differ
)

// A Config describes one login.
type Config struct {
	Issuer       string // URL
	ClientID     string
	ClientSecret string   // empty for a public client
	Scopes       []string // besides openid

	Listener net.Listener // where the browser returns to; Login closes it
	Callback string       // its host and port as the browser is told; default the listener's address
	Client   *http.Client // to reach the provider

	Out  io.Writer              // what the person should do
	Open func(url string) error // opens a browser; nil does not, and an error is passed over
}

// Login signs a person in and returns the ID token, which has been verified. It takes five minutes at most.
func Login(ctx context.Context, conf Config) (string, error) {
	defer conf.Listener.Close()
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	if conf.Callback == "" {
		conf.Callback = conf.Listener.Addr().String()
	}
	p, err := oidc.Discover(ctx, conf.Client, conf.Issuer)
	if err != nil {
		return "", fmt.Errorf("ask the provider about itself: %w", err)
	}
	if p.AuthorizationEndpoint == "" || p.TokenEndpoint == "" {
		return "", errors.New("the provider has no endpoints to log in at")
	}
	f := &flow{
		conf: conf, provider: p, redirect: "http://" + conf.Callback + CallbackPath,
		state: rand.Text(), nonce: rand.Text(), verifier: rand.Text() + rand.Text(), result: make(chan result, 1),
	}

	srv := &http.Server{
		Handler: f, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	srv.SetKeepAlivesEnabled(false)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(conf.Listener) }()
	defer func() {
		// The browser gets the answer that is under way.
		ending, stop := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer stop()
		if srv.Shutdown(ending) != nil {
			srv.Close()
		}
		<-served
	}()

	at := f.address()
	fmt.Fprintf(conf.Out, "Log in with your browser at\n\n    %s\n\n", at)
	if conf.Open != nil {
		_ = conf.Open(at) // the person can do it
	}
	select {
	case r := <-f.result:
		return r.token, r.err
	case err := <-served:
		served <- err
		return "", fmt.Errorf("listen for the browser: %w", err)
	case <-ctx.Done():
		return "", fmt.Errorf("wait for the browser: %w", ctx.Err())
	}
}

// A flow is one login.
type flow struct {
	conf     Config
	provider *oidc.Provider
	redirect string

	// state comes back with the browser, nonce in the token; verifier shows that the code was asked for here.
	state, nonce, verifier string

	used   atomic.Bool // the browser has returned
	result chan result
}

type result struct {
	token string
	err   error
}

// address returns where the person logs in.
func (f *flow) address() string {
	u, err := url.Parse(f.provider.AuthorizationEndpoint)
	if err != nil { // Discover has parsed it
		return ""
	}
	sum := sha256.Sum256([]byte(f.verifier))
	q := u.Query()
	for k, v := range map[string]string{
		"response_type": "code", "client_id": f.conf.ClientID, "redirect_uri": f.redirect,
		"scope": strings.Join(append([]string{"openid"}, f.conf.Scopes...), " "), "state": f.state, "nonce": f.nonce,
		"code_challenge": base64.RawURLEncoding.EncodeToString(sum[:]), "code_challenge_method": "S256",
	} {
		q.Set(k, v)
	}
	u.RawQuery = q.Encode()
	return u.String()
}

var page = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{.Title}}</title>
<body><h1>{{.Title}}</h1><p>{{.Text}}</p></body></html>
`))

// ServeHTTP takes the browser's return, once. Whatever does not know the state is told nothing and changes nothing.
func (f *flow) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	q := r.URL.Query()
	switch {
	case r.Host != f.conf.Callback || r.URL.Path != CallbackPath:
		http.Error(w, "not found", http.StatusNotFound)
		return
	case r.Method != http.MethodGet:
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	case len(r.URL.RawQuery) > maxText || !equal(q.Get("state"), f.state):
		http.Error(w, "this is not the return of the login that waits here", http.StatusBadRequest)
		return
	case !f.used.CompareAndSwap(false, true):
		http.Error(w, "this login has been used", http.StatusGone)
		return
	}
	token, err := f.finish(r.Context(), q)
	text, status := struct{ Title, Text string }{"You are logged in", "Close this window and go back to your terminal."}, http.StatusOK
	if err != nil {
		text.Title, text.Text, status = "The login failed", err.Error(), http.StatusBadRequest
	}
	h.Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_ = page.Execute(w, text)
	f.result <- result{token, err}
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// finish turns what the browser brings into a token.
func (f *flow) finish(ctx context.Context, q url.Values) (string, error) {
	if iss := q.Get("iss"); iss != f.provider.Issuer && (iss != "" || f.provider.NamesItself) {
		return "", errors.New("the browser returns from another provider")
	}
	if code := q.Get("error"); code != "" {
		return "", providerError(code, q.Get("error_description"))
	}
	code := q.Get("code")
	if code == "" {
		return "", errors.New("the provider gave no code")
	}
	raw, err := f.exchange(ctx, code)
	if err != nil {
		return "", fmt.Errorf("exchange the code: %w", err)
	}
	if err := f.verify(ctx, raw); err != nil {
		return "", fmt.Errorf("verify the ID token: %w", err)
	}
	return raw, nil
}

// providerError shows what a provider says, without what a terminal would obey.
func providerError(code, description string) error {
	if description == "" {
		return fmt.Errorf("the provider refuses: %.100q", code)
	}
	return fmt.Errorf("the provider refuses: %.100q: %.300q", code, description)
}

// exchange gives the code for an ID token.
func (f *flow) exchange(ctx context.Context, code string) (string, error) {
	form := url.Values{
		"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {f.redirect}, "code_verifier": {f.verifier},
	}
	methods := f.provider.TokenAuthMethods
	inForm := f.conf.ClientSecret == "" || len(methods) > 0 && !slices.Contains(methods, "client_secret_basic")
	if inForm {
		form.Set("client_id", f.conf.ClientID)
		if f.conf.ClientSecret != "" {
			form.Set("client_secret", f.conf.ClientSecret)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.provider.TokenEndpoint, strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	if !inForm {
		req.SetBasicAuth(url.QueryEscape(f.conf.ClientID), url.QueryEscape(f.conf.ClientSecret))
	}
	a, err := fetch.Do(f.conf.Client, req, maxAnswer)
	if err != nil {
		return "", err
	}
	var said struct {
		IDToken     string `json:"id_token"`
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	notJSON := json.Unmarshal(a.Body, &said) != nil
	switch {
	case said.Error != "":
		return "", providerError(said.Error, said.Description)
	case a.Status != http.StatusOK || notJSON:
		return "", fmt.Errorf("the provider answers with status %d and no token", a.Status)
	case said.IDToken == "":
		return "", errors.New("the provider gave no ID token")
	}
	return said.IDToken, nil
}

// verify checks the ID token as its audience must (OpenID Connect Core 1.0 section 3.1.3.7).
func (f *flow) verify(ctx context.Context, raw string) error {
	t, err := oidc.Parse(raw)
	if err != nil {
		return err
	}
	keys, err := oidc.FetchKeys(ctx, f.conf.Client, f.provider.KeysURL)
	if err != nil {
		return err
	}
	c, ok := t.Verify(keys)
	if !ok {
		return oidc.ErrNoKey
	}
	iss, err := c.Text("iss")
	if err != nil || iss != f.provider.Issuer {
		return errors.New("it is from another issuer")
	}
	aud, _, err := c.Audience()
	if err != nil || !slices.Contains(aud, f.conf.ClientID) {
		return errors.New("it is for another client")
	}
	if azp, err := c.Text("azp"); err != nil || azp != "" && azp != f.conf.ClientID {
		return errors.New("it was made for another client")
	}
	exp, err := c.Time("exp")
	if err != nil || exp.IsZero() || time.Now().Add(-skew).After(exp) {
		return errors.New("it is expired")
	}
	nonce, err := c.Text("nonce")
	if err != nil || !equal(nonce, f.nonce) {
		return errors.New("it belongs to another login")
	}
	return nil
}
