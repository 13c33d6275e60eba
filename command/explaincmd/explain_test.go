package explaincmd_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/command/explaincmd"
	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/connect/explain"
)

// run runs the command against an agent that answers what is given, and returns what it was asked.
func run(t *testing.T, status int, answer any, args ...string) (code int, out, errs string, asked map[string]any) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/explain" || r.Header.Get("X-Consul-Token") != "secret" {
			t.Errorf("%s %s with token %q", r.Method, r.URL, r.Header.Get("X-Consul-Token"))
		}
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			t.Error(err)
		}
		w.WriteHeader(status)
		if err := json.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	defer srv.Close()
	var o, e bytes.Buffer
	c, err := explaincmd.Verbs()[0].Factory(t.Context(), verb.Streams{In: strings.NewReader("in.the.token\n"), Out: &o, Err: &e})()
	if err != nil {
		t.Fatal(err)
	}
	code = c.Run(append([]string{"-http-addr", srv.URL, "-token", "secret"}, args...))
	return code, o.String(), e.String(), asked
}

func explained(verdict string) map[string]any {
	return map[string]any{"Request": map[string]any{"From": "web", "To": "db"}, "Verdict": verdict, "Reason": "because", "Branches": []any{}}
}

func TestExplainExitsByTheVerdict(t *testing.T) {
	for verdict, want := range map[string]int{explain.Allowed: 0, explain.Denied: 1, explain.Depends: 2, explain.Unknown: 2} {
		code, out, errs, asked := run(t, 200, explained(verdict), "-from", "web", "--to", "db", "-method", "PUT", "-path", "/a", "-H", "x: 1:2", "-H", "y:", "-jwt", "-")
		if code != want || !strings.HasPrefix(out, strings.ToUpper(verdict)+": because\n") || errs != "" {
			t.Errorf("%s: exit %d, %q, %q", verdict, code, out, errs)
		}
		headers, _ := json.Marshal(asked["Headers"])
		if asked["From"] != "web" || asked["Method"] != "PUT" || asked["JWT"] != "in.the.token" || string(headers) != `[{"Name":"x","Value":"1:2"},{"Name":"y","Value":""}]` {
			t.Errorf("asked %v", asked)
		}
	}
	if code, out, _, _ := run(t, 200, explained(explain.Denied), "-from", "web", "-to", "db", "-format", "json"); code != 1 || !strings.Contains(out, `"Verdict": "denied"`) {
		t.Errorf("exit %d, %s", code, out)
	}
	if code, _, errs, _ := run(t, 403, "Permission denied", "-from", "web", "-to", "db"); code != 2 || !strings.Contains(errs, "Permission denied") {
		t.Errorf("exit %d, %s", code, errs)
	}
	for _, args := range [][]string{{}, {"-from", "web"}, {"-from", "web", "-to", "db", "x"}, {"-from", "web", "-to", "db", "-H", "x"}, {"-from", "web", "-to", "db", "-format", "xml"}, {"-odd"}} {
		if code, _, errs, asked := run(t, 200, explained(explain.Allowed), args...); code != 2 || errs == "" || asked != nil {
			t.Errorf("%q: exit %d, %q, asked %v", args, code, errs, asked)
		}
	}
}

func TestWhatIf(t *testing.T) {
	file := filepath.Join(t.TempDir(), "change.hcl")
	text := "entry {\n  Kind = \"service-resolver\"\n  Name = \"db\"\n}\ndelete {\n  kind = \"service-router\"\n  name = \"db\"\n}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	answer := explained(explain.Denied)
	answer["WhatIf"], answer["Differences"] = explained(explain.Allowed), []string{"verdict: denied -> allowed"}
	code, out, errs, asked := run(t, 200, answer, "-from", "web", "-to", "db", "-what-if", file)
	if code != 0 || errs != "" || !strings.Contains(out, "ALLOWED: because") || !strings.HasSuffix(out, "What differs from now:\n  verdict: denied -> allowed\n") {
		t.Errorf("exit %d, %q, %q", code, out, errs)
	}
	sent, _ := json.Marshal(asked["WhatIf"])
	if want := `[{"Kind":"service-resolver","Name":"db"},{"Delete":{"Kind":"service-router","Name":"db"}}]`; string(sent) != want {
		t.Errorf("sent %s, want %s", sent, want)
	}
	delete(answer, "Differences")
	if _, out, _, _ := run(t, 200, answer, "-from", "web", "-to", "db", "-what-if", file); !strings.Contains(out, "Nothing differs from now.") {
		t.Error(out)
	}
	if err := os.WriteFile(file, []byte("\nentri {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs, asked := run(t, 200, answer, "-from", "web", "-to", "db", "-what-if", file); code != 2 || asked != nil || !strings.Contains(errs, `change.hcl:2: "entri" is not expected`) {
		t.Errorf("exit %d, %q, asked %v", code, errs, asked)
	}
}

// Whatever a file says, reading it ends: with a mistake that has the file's name, or with documents that know their line.
func FuzzDocuments(f *testing.F) {
	f.Add("Kind = \"mesh\"\n")
	f.Add("entry { Kind = \"service-router\" Name = \"a\" }\ndelete { kind = \"mesh\" }\n")
	f.Add(`[{"Kind": "proxy-defaults", "Config": {"a": [1]}}, {"kind": 1}]`)
	f.Add(`{"entry": [[{}]], "delete": {"Kind": "x"}}`)
	f.Fuzz(func(t *testing.T, text string) {
		docs, err := explaincmd.Documents("x.hcl", []byte(text))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "x.hcl:") {
				t.Fatalf("the mistake has no place: %v", err)
			}
			return
		}
		lines := strings.Count(text, "\n") + 1
		for _, d := range docs {
			if d.Line < 1 || d.Line > lines {
				t.Fatalf("line %d of %d", d.Line, lines)
			}
			if _, err := d.Change(); err != nil && !strings.HasPrefix(err.Error(), "x.hcl:") {
				t.Fatalf("the mistake has no place: %v", err)
			}
			if _, err := json.Marshal(d.JSON()); err != nil {
				t.Fatal(err)
			}
		}
	})
}
