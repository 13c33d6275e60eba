package httpapi

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strings"
)

//go:embed ui_page.html
var consolePage string

// ConsolePage returns the console: one page that reads the API of the agent it comes from, with the rights of the token
// that its user gives it. It is the answer to every path.
func ConsolePage() http.Handler {
	policy := "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'" +
		"; script-src " + hashOf(consolePage, "script") + "; style-src " + hashOf(consolePage, "style")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			w.WriteHeader(http.StatusMethodNotAllowed)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-cache")
		if r.Method == http.MethodGet {
			w.Write([]byte(consolePage))
		}
	})
}

// hashOf is how a policy names the one element of a kind in the page.
func hashOf(page, kind string) string {
	_, rest, _ := strings.Cut(page, "<"+kind+">")
	text, _, _ := strings.Cut(rest, "</"+kind+">")
	sum := sha256.Sum256([]byte(text))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// ConsoleFiles returns a console of the user's own: the files of a folder, below a path, and its index.html for every other
// path.
func ConsoleFiles(dir, below string) http.Handler {
	root := os.DirFS(dir)
	files := http.StripPrefix(strings.TrimSuffix(below, "/"), http.FileServerFS(root))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(path.Clean("/"+strings.TrimPrefix(r.URL.Path, below)), "/")
		if info, err := fs.Stat(root, name); name == "" || errors.Is(err, fs.ErrNotExist) || err == nil && info.IsDir() {
			http.ServeFileFS(w, r, root, "index.html")
			return
		}
		files.ServeHTTP(w, r)
	})
}
