package fetch_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sarnmesh/sarn/internal/fetch"
)

func dial(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

func do(t *testing.T, method, url string, header http.Header, limit int64) (*fetch.Answer, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	return fetch.Do(fetch.Way{Dial: dial}.Client(nil), req, limit)
}

// Class 13, request forgery by the server: an answer leads to no other host, and no request with credentials anywhere.
func TestThreat13RedirectsStayWithinTheHost(t *testing.T) {
	var elsewhere atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	here := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/away":
			http.Redirect(w, r, other.URL+"/latest/meta-data", http.StatusFound)
		case "/twice":
			http.Redirect(w, r, "/away", http.StatusFound)
		case "/within":
			http.Redirect(w, r, "/end", http.StatusTemporaryRedirect)
		case "/round":
			http.Redirect(w, r, "/round", http.StatusFound)
		case "/file":
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		default:
			_, _ = w.Write([]byte("end"))
		}
	}))
	defer here.Close()
	tests := []struct {
		name, method, path string
		header             http.Header
		want               string // of the error; empty for an answer
	}{
		{"within", "GET", "/within", nil, ""},
		{"another host", "GET", "/away", nil, "redirect to another host refused"},
		{"another host by way of this", "GET", "/twice", nil, "redirect to another host refused"},
		{"another scheme", "GET", "/file", nil, "redirect to another host refused"},
		{"for ever", "GET", "/round", nil, "too many redirects"},
		{"with a body", "POST", "/within", nil, "redirect refused"},
		{"with credentials", "GET", "/within", http.Header{"Authorization": {"Bearer x"}}, "redirect refused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, err := do(t, tt.method, here.URL+tt.path, tt.header, 100)
			if tt.want == "" {
				if err != nil || string(a.Body) != "end" || a.Status != 200 {
					t.Errorf("got %+v, %v", a, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if elsewhere.Load() != 0 {
		t.Error("the other host was asked")
	}
}

// Class 11, unbounded resources: an answer has a bound, and a longer one is not told.
func TestThreat11AnswersAreBounded(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := w.Write([]byte(strings.Repeat("secret ", 1000))); err != nil {
				return
			}
		}
	}))
	defer srv.Close()
	_, err := do(t, "GET", srv.URL, nil, 1000)
	if err == nil || !strings.Contains(err.Error(), "longer than 1000 bytes") || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
	small := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte("1234")) }))
	defer small.Close()
	if a, err := do(t, "GET", small.URL, nil, 4); err != nil || string(a.Body) != "1234" {
		t.Errorf("got %v, %v", a, err)
	}
}

func TestNoWayIsNone(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	if _, err := (fetch.Way{}).Client(nil).Get(srv.URL); err == nil || !strings.Contains(err.Error(), "no way to the outside is configured") {
		t.Errorf("got %v", err)
	}
}

func TestProxyIsAsked(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte(r.URL.Host)) }))
	defer proxy.Close()
	at, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", "http://issuer.example/keys", nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := fetch.Do(fetch.Way{Dial: dial, Proxy: http.ProxyURL(at)}.Client(nil), req, 100)
	if err != nil || string(a.Body) != "issuer.example" {
		t.Errorf("got %v, %v", a, err)
	}
}
