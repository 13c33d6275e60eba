package oidc_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/internal/oidc"
	"github.com/sarnmesh/sarn/internal/testkit"
)

var certTemplate = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour)}

func parse(t *testing.T, raw string) *oidc.Token {
	t.Helper()
	tok, err := oidc.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// A source of keys that counts.
type source struct {
	mu    sync.Mutex
	keys  []oidc.Key
	err   error
	asked int
	slow  time.Duration
}

func (s *source) get(context.Context) ([]oidc.Key, error) {
	time.Sleep(s.slow)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return s.keys, s.err
}

func issuerKey(t *testing.T, i *testkit.Issuer) []oidc.Key {
	t.Helper()
	k, err := oidc.ParsePEM(i.PEM())
	if err != nil {
		t.Fatal(err)
	}
	return []oidc.Key{k}
}

func TestSetFetchesWhenNeededAndNotMoreOften(t *testing.T) {
	i := testkit.NewIssuer(t)
	first := issuerKey(t, i)
	old := i.Sign(nil)
	i.Rotate()
	second := issuerKey(t, i)
	synctest.Test(t, func(t *testing.T) {
		src := &source{keys: first}
		s := oidc.NewSet(src.get)
		verify := func(raw string, wantErr error, asked int) {
			t.Helper()
			if _, err := s.Verify(t.Context(), parse(t, raw)); !errors.Is(err, wantErr) {
				t.Errorf("got %v, want %v", err, wantErr)
			}
			if src.asked != asked {
				t.Errorf("asked %d times, want %d", src.asked, asked)
			}
		}
		fresh := i.Sign(nil) // by the second key
		verify(old, nil, 1)
		verify(old, nil, 1)
		// The issuer rotates: its next token is refused until the pause is over, then fetched for.
		src.keys = second
		for range 50 {
			verify(fresh, oidc.ErrNoKey, 1)
		}
		time.Sleep(11 * time.Second)
		verify(fresh, nil, 2)
		verify(old, oidc.ErrNoKey, 2)
		time.Sleep(11 * time.Second)
		// A flood of tokens that nobody signed asks once in ten seconds.
		for range 50 {
			verify(old, oidc.ErrNoKey, 3)
		}
		// Keys are fetched again when they are ten minutes old,
		time.Sleep(10 * time.Minute)
		verify(fresh, nil, 4)
		// and used for an hour while that fails.
		down := errors.New("down")
		src.err = down
		time.Sleep(30 * time.Minute)
		verify(fresh, nil, 5)
		time.Sleep(31 * time.Minute)
		verify(fresh, down, 6)
		src.err = nil
		verify(fresh, down, 6) // tried within the second
		time.Sleep(2 * time.Second)
		verify(fresh, nil, 7)
	})
}

func TestSetFetchesOnceForAllThatWait(t *testing.T) {
	i := testkit.NewIssuer(t)
	keys, raw := issuerKey(t, i), i.Sign(nil)
	synctest.Test(t, func(t *testing.T) {
		src := &source{keys: keys, slow: 3 * time.Second}
		s := oidc.NewSet(src.get)
		var wg sync.WaitGroup
		// The one that began gives up; the others get the keys.
		gone, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		wg.Go(func() { _ = s.Fetch(gone) })
		synctest.Wait()
		for range 20 {
			wg.Go(func() {
				if _, err := s.Verify(t.Context(), parse(t, raw)); err != nil {
					t.Error(err)
				}
			})
		}
		short, cancel2 := context.WithTimeout(t.Context(), time.Second)
		defer cancel2()
		if err := s.Fetch(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller whose time is over: %v", err)
		}
		wg.Wait()
		if src.asked != 1 {
			t.Errorf("asked %d times", src.asked)
		}
	})
}

// A provider that hangs delays one login in a while, not all.
func TestSetWithKeysDoesNotWaitForAnotherFetch(t *testing.T) {
	i := testkit.NewIssuer(t)
	keys, raw := issuerKey(t, i), i.Sign(nil)
	synctest.Test(t, func(t *testing.T) {
		src := &source{keys: keys}
		s := oidc.NewSet(src.get)
		if err := s.Fetch(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Minute)
		src.slow, src.err = 9*time.Second, errors.New("down")
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = s.Verify(t.Context(), parse(t, raw)) })
		synctest.Wait()
		began := time.Now()
		for range 20 {
			if _, err := s.Verify(t.Context(), parse(t, raw)); err != nil {
				t.Error(err)
			}
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("waited for %v", d)
		}
		wg.Wait()
		if _, err := s.Verify(t.Context(), parse(t, raw)); err != nil || time.Since(began) != 9*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

func TestSetSurvivesASourceThatPanics(t *testing.T) {
	calls := 0
	synctest.Test(t, func(t *testing.T) {
		s := oidc.NewSet(func(context.Context) ([]oidc.Key, error) {
			if calls++; calls == 1 {
				panic("bad keys")
			}
			return nil, errors.New("down")
		})
		func() {
			defer func() { recover() }()
			_ = s.Fetch(t.Context())
		}()
		time.Sleep(2 * time.Second)
		if err := s.Fetch(t.Context()); err == nil || err.Error() != "down" {
			t.Errorf("got %v", err)
		}
	})
}

func TestDiscover(t *testing.T) {
	tests := []struct {
		name string
		body func(self string) string
		want string // of the error; empty for none
	}{
		{"good", func(s string) string { return `{"issuer":"` + s + `","jwks_uri":"` + s + `/k"}` }, ""},
		{"keys elsewhere", func(s string) string { return `{"issuer":"` + s + `","jwks_uri":"https://keys.example/k"}` }, ""},
		{"another issuer", func(s string) string { return `{"issuer":"https://evil.example","jwks_uri":"` + s + `/k"}` }, "it calls itself"},
		{"longer issuer", func(s string) string { return `{"issuer":"` + s + `/","jwks_uri":"` + s + `/k"}` }, "it calls itself"},
		{"no keys", func(s string) string { return `{"issuer":"` + s + `"}` }, "jwks_uri: not an http or https URL"},
		{"keys in a file", func(s string) string { return `{"issuer":"` + s + `","jwks_uri":"file:///etc/passwd"}` }, "jwks_uri: not an http or https URL"},
		{"endpoint is a command", func(s string) string {
			return `{"issuer":"` + s + `","jwks_uri":"` + s + `/k","authorization_endpoint":"--help"}`
		}, "authorization_endpoint: not an http or https URL"},
		{"script as endpoint", func(s string) string {
			return `{"issuer":"` + s + `","jwks_uri":"` + s + `/k","token_endpoint":"javascript:alert(1)"}`
		}, "token_endpoint: not an http or https URL"},
		{"not JSON", func(string) string { return "<html>internal secret</html>" }, "not OpenID Connect metadata"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var self string
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/.well-known/openid-configuration" {
					t.Errorf("asked for %s", r.URL.Path)
				}
				_, _ = io.WriteString(w, tt.body(self))
			}))
			defer srv.Close()
			self = srv.URL
			p, err := oidc.Discover(t.Context(), srv.Client(), self)
			if tt.want == "" {
				if err != nil || p.Issuer != self {
					t.Errorf("got %+v, %v", p, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	for _, issuer := range []string{"", "example.com", "ftp://x", "file:///etc", "https://u:p@x", "https://x?y=z", "https://x#y", "http://[::1", "https://"} {
		if _, err := oidc.Discover(t.Context(), http.DefaultClient, issuer); err == nil || strings.Contains(err.Error(), "u:p") {
			t.Errorf("%q: %v", issuer, err)
		}
	}
}

func TestDiscoverDoesNotLeaveTLS(t *testing.T) {
	var self string
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":"http://keys.example/k"}`, self)
	}))
	defer srv.Close()
	self = srv.URL
	if _, err := oidc.Discover(t.Context(), srv.Client(), self); err == nil || !strings.Contains(err.Error(), "jwks_uri: not https") {
		t.Errorf("got %v", err)
	}
}

// Class 13, request forgery by the server: what an inner service answers is never shown to the one who set the URL.
func TestThreat13ErrorsTellNothingOfTheAnswer(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refused" {
			w.WriteHeader(http.StatusForbidden)
		}
		_, _ = io.WriteString(w, `{"AccessKeyId":"topsecret"}`)
	}))
	defer srv.Close()
	for _, path := range []string{"/refused", "/ok"} {
		if _, err := oidc.FetchKeys(t.Context(), &http.Client{CheckRedirect: fetch.Redirect}, srv.URL+path); err == nil || strings.Contains(err.Error(), "topsecret") || strings.Contains(err.Error(), "AccessKeyId") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
