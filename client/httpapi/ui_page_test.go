package httpapi

import (
	"os"
	"strings"
	"testing"
)

func TestConsoleAnswersEveryPathBelowItsOwn(t *testing.T) {
	s, _ := newServer(t, Config{UIEnabled: true, UI: ConsolePage(), UIPath: "/console/"}, nil)
	for _, path := range []string{"/console/", "/console/services/web", "/console/../console/x.js"} {
		got := do(s, "GET", path, "")
		if got.Code == 301 { // cleaned
			continue
		}
		policy := got.Header().Get("Content-Security-Policy")
		if got.Code != 200 || got.Header().Get("Content-Type") != "text/html; charset=utf-8" || !strings.Contains(got.Body.String(), "<title>Sarn</title>") ||
			!strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") || strings.Count(policy, "'sha256-") != 2 {
			t.Errorf("%s: %d %v", path, got.Code, got.Header())
		}
	}
	if got := do(s, "POST", "/console/", ""); got.Code != 405 {
		t.Errorf("POST: %d", got.Code)
	}
	if strings.Contains(consolePage, "innerHTML") || strings.Contains(consolePage, "localStorage") {
		t.Error("the page takes text for markup, or keeps the token longer than its tab")
	}
}

func TestConsoleOfFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"index.html": "the index", "app.js": "the script"} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/../outside", []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := newServer(t, Config{UIEnabled: true, UI: ConsoleFiles(dir, "/ui/")}, nil)
	for path, want := range map[string]string{
		"/ui/": "the index", "/ui/app.js": "the script", "/ui/services/web": "the index", "/ui/..%2foutside": "", "/ui/%2e%2e/outside": "",
	} {
		got := do(s, "GET", path, "")
		if body := got.Body.String(); want != "" && (got.Code != 200 || body != want) || strings.Contains(body, "secret") {
			t.Errorf("%s: %d %q, want %q", path, got.Code, body, want)
		}
	}
}
