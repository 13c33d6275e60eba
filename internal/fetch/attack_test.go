package fetch_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// Errors go to whoever tries to log in: they tell no more of a configured URL than its host.
func TestErrorsDoNotTellURLs(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/round" {
			http.Redirect(w, r, "/round?key=topsecret", http.StatusFound)
		}
	}))
	defer s.Close()
	round := s.URL + "/round?key=topsecret"
	if _, err := do(t, http.MethodGet, round, nil, 10); err == nil || strings.Contains(err.Error(), "topsecret") || !strings.Contains(err.Error(), "redirects") {
		t.Errorf("redirected: %v", err)
	}
	if _, err := do(t, http.MethodGet, "http://127.0.0.1:1/keys?key=topsecret", nil, 10); err == nil || strings.Contains(err.Error(), "topsecret") || strings.Contains(err.Error(), "keys") {
		t.Errorf("away: %v", err)
	}
}
