package main

import (
	"go/ast"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const root = "../.."

func TestReferenceIsUpToDate(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(pages)) {
		t.Run(name, func(t *testing.T) {
			want, err := pages[name](root)
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(root, folder, name))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(got), want); diff != "" {
				t.Errorf("%s/%s differs from the code (- page, + code); run make generate:\n%s", folder, name, diff)
			}
		})
	}
}

func TestEveryKeyHasAMeaning(t *testing.T) {
	all, err := keys(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range all {
		if k.use == "" && !k.paid && !k.ignored && k.meaning() == "" {
			t.Errorf("%s: no comment in the code, no flag and no entry in meanings says what it is for", k.name)
		}
	}
	named := func(what string, names []string) {
		for _, name := range names {
			if !slices.ContainsFunc(all, func(k *key) bool { return k.in(name) }) {
				t.Errorf("%s names %s, and there is no such key", what, name)
			}
		}
	}
	named("meanings", slices.Sorted(maps.Keys(meanings)))
	named("computed", slices.Sorted(maps.Keys(computed)))
	named("worked", strings.Fields(worked))
	for _, group := range absent {
		named("absent", strings.Fields(group.keys))
	}
}

// tellers are functions that look at settings only to tell of them.
var tellers = []string{"unsupported", "withoutEffect", "redact", "debugConfig"}

// TestKeysWithoutEffectAreToldSo looks whether the agent reads each setting. It goes by the names of fields, so it may
// take a key for read that is not, but not the other way round.
func TestKeysWithoutEffectAreToldSo(t *testing.T) {
	all, err := keys(root)
	if err != nil {
		t.Fatal(err)
	}
	files, err := parseFolder(filepath.Join(root, "command/agent"))
	if err != nil {
		t.Fatal(err)
	}
	var chains [][]string
	for _, f := range files {
		inner := map[ast.Node]bool{}
		ast.Inspect(f, func(n ast.Node) bool {
			if fn, ok := n.(*ast.FuncDecl); ok && slices.Contains(tellers, fn.Name.Name) {
				return false
			}
			if s, ok := n.(*ast.SelectorExpr); ok && !inner[s] {
				chains = append(chains, chain(s))
				for x, ok := s.X.(*ast.SelectorExpr); ok; x, ok = x.X.(*ast.SelectorExpr) {
					inner[x] = true
				}
			}
			return true
		})
	}
	for _, k := range all {
		if k.path == nil || k.in(worked) {
			continue
		}
		read := slices.ContainsFunc(chains, k.readBy)
		switch {
		case k.missing() == "" && !read && !k.readWhole(chains):
			t.Errorf("nothing in command/agent reads %s: put %s into absent, or make it work", strings.Join(k.path, "."), k.name)
		case k.missing() != "" && read && !k.in(shown):
			t.Errorf("command/agent reads %s now: take %s out of absent", strings.Join(k.path, "."), k.name)
		}
	}
}

// readBy reports whether a chain of names such as s.Check.EnableScripts reads the key.
func (k *key) readBy(c []string) bool {
	last := len(k.path) - 1
	for i := 1; i < len(c); i++ {
		if c[i] != k.path[last] {
			continue
		}
		if last == 0 && (i == 1 || c[i-1] == "settings") || last > 0 && c[i-1] == k.path[last-1] {
			return true
		}
	}
	return false
}

// readWhole reports whether the group of the key is taken as a whole, and a field of its name read of some variable.
func (k *key) readWhole(chains [][]string) bool {
	last := len(k.path) - 1
	return last > 0 &&
		slices.ContainsFunc(chains, func(c []string) bool { return len(c) > 0 && c[len(c)-1] == k.path[last-1] }) &&
		slices.ContainsFunc(chains, func(c []string) bool { return len(c) == 2 && c[1] == k.path[last] })
}

func TestEveryRouteIsTold(t *testing.T) {
	all, err := routes(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		e, ok := endpoints[r.path]
		if !ok || e.does == "" {
			t.Errorf("the table of endpoints says nothing about %s", r.path)
		}
		if takes := strings.HasSuffix(r.path, "/") || strings.Contains(r.path, "*"); takes != (e.argument != "") {
			t.Errorf("%s: argument %q", r.path, e.argument)
		}
	}
	known := func(path string) {
		if !slices.ContainsFunc(all, func(r *route) bool { return r.path == path }) {
			t.Errorf("the tables name %s, and there is no such route", path)
		}
	}
	for path := range endpoints {
		known(path)
	}
	for path := range still {
		known(path)
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	anchor  = regexp.MustCompile(`<a id="([^"]+)">`)
	heading = regexp.MustCompile(`(?m)^#{1,6} +(.+)$`)
	fence   = regexp.MustCompile("(?ms)^```.*?^```$")
	inline  = regexp.MustCompile("`[^`\n]*`")
)

// TestLinksLeadSomewhere follows every relative link of the manual and the files beside it.
func TestLinksLeadSomewhere(t *testing.T) {
	var files []string
	err := filepath.WalkDir(filepath.Join(root, "website/docs"), func(path string, d os.DirEntry, err error) error {
		if strings.HasSuffix(path, ".md") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Errorf("found only %d pages of the manual", len(files))
	}
	for _, name := range []string{"README.md", "ARCHITECTURE.md", "CHANGELOG.md"} {
		files = append(files, filepath.Join(root, name))
	}
	reached := map[string]bool{}
	for _, file := range files {
		for _, m := range link.FindAllStringSubmatch(prose(t, file), -1) {
			target := m[1]
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			path, fragment, _ := strings.Cut(target, "#")
			to := file
			if path != "" {
				to = filepath.Join(filepath.Dir(file), path)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: link to %s: %v", file, target, err)
				continue
			}
			reached[to] = true
			if fragment != "" && !slices.Contains(fragments(t, to), fragment) {
				t.Errorf("%s: link to %s: no heading there has this fragment", file, target)
			}
		}
	}
	for _, file := range files {
		if filepath.Dir(file) != filepath.Clean(root) && filepath.Base(file) != "index.md" && !reached[file] {
			t.Errorf("no link leads to %s", file)
		}
	}
}

// prose is a page without its blocks and pieces of code.
func prose(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return inline.ReplaceAllStringFunc(fence.ReplaceAllString(string(data), ""), func(s string) string {
		return strings.Repeat("x", len(s))
	})
}

// fragments are what links into a page may name: its anchors, and its headings in small letters with hyphens.
func fragments(t *testing.T, file string) []string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := fence.ReplaceAllString(string(data), "")
	var out []string
	for _, m := range anchor.FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		var b strings.Builder
		for _, r := range strings.ToLower(strings.TrimSpace(m[1])) {
			switch {
			case r == ' ':
				b.WriteByte('-')
			case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r > 127 && r != '…':
				b.WriteRune(r)
			}
		}
		out = append(out, b.String())
	}
	return out
}
