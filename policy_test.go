package main

import (
	"bufio"
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/sarnmesh/sarn/"

// allowed lists, for each part of the tree, the parts it may import beside itself and internal/…. A package belongs to
// the longest prefix listed. The arrows are those of ARCHITECTURE.md.
var allowed = []struct {
	part, may, why string
}{
	{"internal", "", "mechanisms know no subject"},
	{"internal/docgen", "*", "the reference is made from the whole"},
	{"internal/e2e", "*", "end-to-end tests drive the whole"},
	{"internal/fleetbench", "client connect catalog acl", "its agents are made of the parts of real ones"},
	{"internal/testkit", "*", "test support may use what it supports"},
	{"acl", "", "decisions know no other subject"},
	{"catalog", "acl", "subjects stand on acl and the mechanisms"},
	{"connect", "catalog acl", "the mesh's rules stand on the catalog's"},
	{"connect/proxy", "connect", "the data plane knows only what xDS tells it"},
	{"server", "connect catalog acl plugin", "a server knows no agent"},
	{"client", "connect catalog acl", "an agent reaches servers through interfaces"},
	{"plugin", "connect acl", "contracts"},
	{"command", "server client connect catalog acl plugin website", "only commands know both sides"},
	{"website", "", "embedded files"},
	{"", "*", "main"},
}

// denied lists imports that the table above would allow.
var denied = []struct{ from, to, why string }{
	{"connect/proxy", "connect/ads", "the data plane knows only what xDS tells it"},
	{"connect/proxy", "connect/xds", "the data plane knows only what xDS tells it"},
	{"connect/proxy", "connect/mesh", "the data plane knows only what xDS tells it"},
	{"connect/proxy", "connect/ca", "the data plane is given its certificates"},
	{"connect/proxy", "connect/chain", "the data plane knows only what xDS tells it"},
	{"connect/proxy", "connect/intention", "the data plane knows only what xDS tells it"},
	{"connect/proxy", "catalog", "the data plane knows only what xDS tells it"},
	{"connect/mesh", "connect/xds", "a snapshot does not know what it is compiled to"},
}

// pure lists the subject folders: what is there is true whoever runs it.
var pure = []string{"acl", "catalog", "connect"}

// impure lists the folders below pure ones that run something.
var impure = []string{"connect/proxy", "connect/ads"}

// effects are what a pure package does not use.
var effects = map[string]string{
	"time.Now": "a clock", "time.Since": "a clock", "time.Until": "a clock", "time.Sleep": "a clock", "time.After": "a clock",
	"time.NewTimer": "a clock", "time.NewTicker": "a clock", "time.AfterFunc": "a clock", "time.Tick": "a clock",
	"net.Listen": "a socket", "net.Dial": "a socket", "net.DialTimeout": "a socket", "net.ListenPacket": "a socket",
	"rand.Reader": "randomness", "rand.Int": "randomness", "rand.IntN": "randomness", "rand.Read": "randomness",
	"rand.Float64": "randomness", "rand.Shuffle": "randomness", "rand.Perm": "randomness", "rand.Text": "randomness",
	"os.Getenv": "the environment", "os.Hostname": "the environment", "os.ReadFile": "a file", "os.Open": "a file",
	"http.Get": "a socket", "http.ListenAndServe": "a socket",
}

func under(path, folder string) bool {
	return folder == "" || path == folder || strings.HasPrefix(path, folder+"/")
}

// TestImportsFollowTheArrows holds every package's imports against the table.
func TestImportsFollowTheArrows(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		from := strings.TrimPrefix(strings.TrimPrefix(fields[0], strings.TrimSuffix(module, "/")), "/")
		rule := -1
		for i, a := range allowed {
			if under(from, a.part) && (rule < 0 || len(a.part) > len(allowed[rule].part)) {
				rule = i
			}
		}
		a := allowed[rule]
		for _, imp := range fields[1:] {
			to, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			ok := a.may == "*" || under(to, a.part) && a.part != "" || under(to, "internal") && !under(to, "internal/testkit")
			for may := range strings.FieldsSeq(a.may) {
				ok = ok || under(to, may)
			}
			if !ok {
				t.Errorf("%s imports %s: %s", from, to, a.why)
			}
			for _, d := range denied {
				if under(from, d.from) && under(to, d.to) {
					t.Errorf("%s imports %s: %s", from, to, d.why)
				}
			}
		}
	}
}

// TestSubjectsArePure looks for goroutines, clocks, sockets, files and randomness in the subject folders.
func TestSubjectsArePure(t *testing.T) {
	eachFile(t, func(folder, path string, f *ast.File, fset *token.FileSet) {
		is := false
		for _, p := range pure {
			is = is || under(folder, p)
		}
		for _, p := range impure {
			is = is && !under(folder, p)
		}
		if !is {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: a goroutine in a subject package", fset.Position(n.Pos()))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Obj == nil {
					if what, bad := effects[x.Name+"."+n.Sel.Name]; bad {
						t.Errorf("%s: %s.%s: %s in a subject package", fset.Position(n.Pos()), x.Name, n.Sel.Name, what)
					}
				}
			}
			return true
		})
	})
}

// TestEveryPackageHasAComment asks each package to say what it provides, once.
func TestEveryPackageHasAComment(t *testing.T) {
	comments := map[string]int{}
	eachFile(t, func(folder, path string, f *ast.File, fset *token.FileSet) {
		comments[folder] += 0
		if f.Doc != nil && len(f.Doc.List) > 0 {
			comments[folder]++
		}
	})
	for folder, n := range comments {
		if n != 1 {
			t.Errorf("%s: %d package comments, want 1", folder, n)
		}
	}
}

// TestEveryDependencyIsExplained asks ARCHITECTURE.md to name each module that the code, its tests or its tools import.
func TestEveryDependencyIsExplained(t *testing.T) {
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	const imports = `{{join .Imports "\n"}}
{{join .TestImports "\n"}}
{{join .XTestImports "\n"}}`
	direct := map[string]bool{}
	for _, imp := range golist(t, "-f", imports, "./...") {
		if first, _, _ := strings.Cut(imp, "/"); strings.Contains(first, ".") && !strings.HasPrefix(imp, module) {
			direct[imp] = true
		}
	}
	for _, tool := range golist(t, "tool") {
		direct[tool] = true
	}
	modules := map[string]bool{}
	for _, m := range golist(t, append([]string{"-f", "{{with .Module}}{{.Path}}{{end}}"}, slices.Sorted(maps.Keys(direct))...)...) {
		modules[m] = true
	}
	delete(modules, strings.TrimSuffix(module, "/"))
	if len(modules) == 0 {
		t.Error("no module found")
	}
	for _, m := range slices.Sorted(maps.Keys(modules)) {
		if !strings.Contains(string(text), "`"+m+"`") {
			t.Errorf("ARCHITECTURE.md does not say what %s is for", m)
		}
	}
}

// golist runs go list and returns the lines of its output that are not empty.
func golist(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == '\n' })
}

// eachFile parses every Go file that is not a test.
func eachFile(t *testing.T, visit func(folder, path string, f *ast.File, fset *token.FileSet)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != "." && (strings.HasPrefix(name, ".") || name == "node_modules" || name == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			return nil
		}
		visit(filepath.ToSlash(filepath.Dir(path)), path, f, fset)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
