package configcmd

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// smallTests has every key of a file of tests.
const smallTests = `
default_policy = "deny"
datacenter = "dc1"
entry { Kind = "proxy-defaults" Name = "global" Config { protocol = "http" } }
entry {
  Kind = "service-intentions"
  Name = "db"
  Sources = [{ Name = "web", Permissions = [{ Action = "allow", HTTP { PathPrefix = "/" } }] }]
}
service "web" { upstreams = ["db"] }
service "db" { kind = "sidecar" count = 2 address = "10.9.0.1" port = 80 status = "warning" meta { a = "b" } tags = ["x"] }
test "web" {
  from = "web"
  to = "db"
  method = "GET"
  path = "/x?y=z"
  host = "h"
  headers { a = "b" c = ["d", "e"] }
  jwt { iss = "x" }
  entry { Kind = "service-resolver" Name = "db" ConnectTimeout = "2s" }
  delete { kind = "service-router" name = "db" }
  expect {
    allowed = true
    verdict = "allowed"
    intention = "web => db"
    permission = 1
    by_default = false
    reason = "permission 1"
    route = "none"
    service = "db"
    subset = ""
    datacenter = "dc1"
    peer = ""
    path = "/x?y=z"
    host = "h"
    protocol = "http"
    timeout = "15s"
    retries = 0
    instances = 2
    healthy = 2
    failover = []
    edits = []
    split { db = 100 }
    rule = ""
    details = ""
    status = 0
    problem = ""
  }
}
refused "no such subset" {
  entry { Kind = "service-resolver" Name = "web" DefaultSubset = "v9" }
  error = "not a valid subset"
}
`

func always(string) bool { return true }

func TestEveryExpectationCanBeMet(t *testing.T) {
	r := runFile("small.hcl", []byte(smallTests), always)
	if r.Error != "" || len(r.Tests) != 2 {
		t.Fatalf("got %+v", r)
	}
	for _, x := range r.Tests {
		if !x.Passed {
			t.Errorf("%s: %q\n%s", x.Name, x.Failures, outcome(x))
		}
	}
	// Each fails, with its line, when something else is wanted.
	lines := strings.Split(smallTests, "\n")
	others := strings.NewReplacer(`= true`, `= false`, `= false`, `= true`, `= ""`, `= "other"`, `= []`, `= ["other"]`, `= 100 `, `= 50 `, `= 0`, `= 7`, `= 2`, `= 7`, `= 1`, `= 7`)
	first := slices.Index(lines, "  expect {") + 1
	changes := 0
	for i := first; i < first+len(expectations); i++ {
		changed := others.Replace(lines[i])
		if changed == lines[i] {
			changed = regexp.MustCompile(`= ".*"`).ReplaceAllString(changed, `= "other"`)
		}
		if changed == lines[i] {
			continue // the end of a block
		}
		changes++
		text := strings.Join(lines[:i], "\n") + "\n" + changed + "\n" + strings.Join(lines[i+1:], "\n")
		r := runFile("small.hcl", []byte(text), always)
		if r.Error != "" {
			t.Errorf("%s: %s", changed, r.Error)
			continue
		}
		if f := r.Tests[0].Failures; len(f) != 1 || !strings.HasPrefix(f[0], fmt.Sprintf("line %d: ", i+1)) {
			t.Errorf("%s on line %d: got %q", changed, i+1, f)
		}
	}
	if changes != len(expectations) {
		t.Errorf("%d of %d expectations were tried", changes, len(expectations))
	}
}

func TestMistakesInTestFilesHaveTheirLine(t *testing.T) {
	const body = "\ntest \"a\" {\n  from = \"web\"\n  to = \"db\"\n  expect { allowed = false }\n}\n"
	tests := []struct{ name, text, want string }{
		{"nothing", "", "x.hcl:1: there is no test in the file"},
		{"syntax", "test \"a\" {", "x.hcl: line 1"},
		{"an unknown key", "\n\nservce \"db\" {}" + body, `x.hcl:3: "servce" is not expected in a file of tests, did you mean service?`},
		{"an unknown key of a service", "service \"db\" {\n  prt = 3\n}" + body, `x.hcl:2: "prt" is not expected in a service, did you mean port?`},
		{"no name", "service {\n  port = 3\n}" + body, "x.hcl:2: service has no name"},
		{"an unknown kind of instance", "service \"db\" { kind = \"odd\" }" + body, `x.hcl:1: kind "odd" of service db is none of`},
		{"an unknown status", "service \"db\" { status = \"odd\" }" + body, `x.hcl:1: status "odd" of service db`},
		{"a port out of range", "service \"db\" { port = 70000 }" + body, "x.hcl:1: port is not a whole number from 1 to 65535"},
		{"an entry that is none", "\nentry {\n  Kind = \"odd\"\n}" + body, "x.hcl:2: invalid config entry kind: odd"},
		{"a key that an entry does not have", "entry {\n  Kind = \"service-router\"\n  Odd = 1\n}" + body, `x.hcl:1: 1 error occurred`},
		{"an entry that is refused", "\nentry {\n  Kind = \"service-router\"\n  Name = \"a\"\n}" + body, `x.hcl:2: discovery chain "a" uses a protocol "tcp"`},
		{"a policy", "default_policy = \"maybe\"" + body, `x.hcl:1: default_policy is "maybe"`},
		{"an empty test", "test \"b\" {\n  from = \"a\"\n  to = \"b\"\n}", `x.hcl:1: test "b" expects nothing`},
		{"no source", "test \"b\" {\n  to = \"b\"\n  expect { allowed = true }\n}", `x.hcl:1: test "b": the source is missing`},
		{"an unknown expectation", "test \"b\" {\n  from = \"a\"\n  to = \"b\"\n  expect {\n    alowed = true\n  }\n}", `x.hcl:5: "alowed" is not expected in expect, did you mean allowed?`},
		{"the wrong type", "test \"b\" {\n  from = \"a\"\n  to = \"b\"\n  expect {\n    allowed = \"yes\"\n  }\n}", "x.hcl:5: allowed is neither true nor false"},
		{"shares that are none", "test \"b\" {\n  from = \"a\"\n  to = \"b\"\n  expect {\n    split = 3\n  }\n}", "x.hcl:5: split is not a block of shares"},
		{"two of a name", body + strings.TrimPrefix(body, "\n"), `x.hcl:7: there is another test "a"`},
		{"nothing to refuse", "refused \"b\" {\n  error = \"x\"\n}", `x.hcl:1: "b" has nothing to refuse`},
		{"a deletion without a name", "test \"b\" {\n  from = \"a\"\n  to = \"b\"\n  delete {\n    kind = \"service-router\"\n  }\n  expect { allowed = true }\n}", "x.hcl:4: a deletion needs the kind and the name"},
		{"a file that is not there", "files = [\"none/*.hcl\"]" + body, "x.hcl: files: no file is named none/*.hcl"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := runFile("x.hcl", []byte(tt.text), always)
			if !strings.Contains(r.Error, tt.want) {
				t.Errorf("got %q, want %q", r.Error, tt.want)
			}
		})
	}
}

// A file means the same in HCL and in JSON, and entries may stand in files of their own.
func TestJSONAndOtherFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a.json":  `[{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}]`,
		"b.hcl":   `Kind = "service-intentions"` + "\n" + `Name = "db"` + "\n" + `Sources = [{ Name = "web", Action = "allow" }]`,
		"c.hcl":   "entry {\n  Kind = \"service-intentions\"\n  Name = \"api\"\n  Sources = [{ Name = \"*\", Action = \"allow\" }]\n}\ndelete {\n  kind = \"service-intentions\"\n  name = \"api\"\n}\n",
		"one.txt": "not looked at",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	text := `{"files": ["*.json", "?.hcl"], "service": {"db": [{"meta": {"v": "1"}}, {"count": 2}]}, "test": {
		"web": {"from": "web", "to": "db", "headers": {"a": ["b"]}, "expect": {"allowed": true, "protocol": "http", "instances": 3}},
		"other": {"from": "x", "to": "db", "jwt": {"sub": "me"}, "expect": {"allowed": false, "status": 403}}}}`
	r := runFile(filepath.Join(dir, "test_me.json"), []byte(text), always)
	if r.Error != "" || len(r.Tests) != 2 || !r.Tests[0].Passed || !r.Tests[1].Passed {
		t.Errorf("got %+v", r)
		for _, x := range r.Tests {
			t.Error(x.Name, x.Failures)
		}
	}
}

// Whatever a file says, reading and running it ends: with a mistake that has the file's name, or with a result for each
// test, the same each time.
func FuzzTestFile(f *testing.F) {
	f.Add(smallTests)
	f.Add(`{"test": {"a": [{"from": "a", "to": "b", "expect": [{"allowed": true}, {"split": {"b": 1e400}}]}]}, "entry": [{"Kind": 3}]}`)
	f.Add("test \"a\" { from = \"x\" to = \"y\" jwt = \"a.b.c\" path = \"/%zz?#\" expect { route = 3 } }\nservice \"y\" { address = \"::1\" kind = \"terminating-gateway\" }")
	f.Add("refused \"a\" { delete { kind = \"mesh\" } error = \"\" }\nentry = []\nfiles = [\"[\"]")
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := parseTests("x.hcl", []byte(text))
		if err != nil {
			if !strings.Contains(err.Error(), "x.hcl:") {
				t.Fatalf("the mistake has no place: %v", err)
			}
			return
		}
		instances := 0
		for _, s := range parsed.services {
			instances += s.count
		}
		if len(parsed.files) > 0 || instances > 50 || len(parsed.cases) > 20 {
			return
		}
		one, two := runFile("x.hcl", []byte(text), always), runFile("x.hcl", []byte(text), always)
		if one.Error == "" && len(one.Tests) != len(parsed.cases) {
			t.Fatalf("%d of %d tests were run", len(one.Tests), len(parsed.cases))
		}
		if fmt.Sprint(one.Error, sum([]*fileResult{one})) != fmt.Sprint(two.Error, sum([]*fileResult{two})) {
			t.Fatalf("a second run gives %+v after %+v", two, one)
		}
	})
}

// Files of tests pass that are kept here, and the one that the manual shows.
func TestFiles(t *testing.T) {
	manual, err := os.ReadFile("../../website/docs/config-tests.md")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(manual), "```hcl\n")
	shown, _, found := strings.Cut(shown, "```")
	if !found {
		t.Fatal("the manual shows no tests")
	}
	files := map[string][]byte{"config-tests.md": []byte(shown)}
	paths, err := filepath.Glob("testdata/*.hcl")
	if err != nil || len(paths) == 0 {
		t.Fatal("there are no files", err)
	}
	for _, path := range paths {
		if files[path], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range files {
		r := runFile(name, data, always)
		if r.Error != "" || len(r.Tests) == 0 {
			t.Errorf("%s: %d tests, %s", name, len(r.Tests), r.Error)
		}
		for _, x := range r.Tests {
			if !x.Passed {
				t.Errorf("%s: %s: %q", name, x.Name, x.Failures)
			}
		}
	}
}
