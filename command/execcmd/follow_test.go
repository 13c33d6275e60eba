package execcmd

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/command/verb"
)

func TestSplit(t *testing.T) {
	for name, want := range map[string][2]string{
		"n1/ack": {"n1", "ack"}, "n1/exit": {"n1", "exit"}, "n1/out/00001": {"n1", "out/00001"}, "odd/name/ack": {"odd/name", "ack"}, "job": {"", "job"},
	} {
		if node, what := split(name); node != want[0] || what != want[1] {
			t.Errorf("split(%q) = %q, %q; want %q", name, node, what, want)
		}
	}
}

// An agent with these answers of nodes, told at once.
func agent(t *testing.T, answers map[string]string) *httptest.Server {
	const session = "11111111-2222-3333-4444-555555555555"
	base := "/v1/kv/_rexec/" + session + "/"
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/agent/self", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"Config": {"Datacenter": "dc1", "NodeName": "n1"}}`)
	})
	mux.HandleFunc("/v1/session/create", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, `{"ID": %q}`, session) })
	mux.HandleFunc("/v1/session/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "true") })
	mux.HandleFunc("/v1/event/fire/_rexec", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"ID": "x"}`) })
	mux.HandleFunc("/v1/kv/", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodGet:
			fmt.Fprint(w, "true")
		case r.URL.Query().Has("keys"):
			if r.URL.Query().Get("index") == "7" {
				<-r.Context().Done()
				return
			}
			w.Header().Set("X-Consul-Index", "7")
			var keys []string
			for name := range answers {
				keys = append(keys, fmt.Sprintf("%q", strings.TrimPrefix(base, "/v1/kv/")+name))
			}
			fmt.Fprintf(w, "[%s]", strings.Join(keys, ","))
		default:
			value := base64.StdEncoding.EncodeToString([]byte(answers[strings.TrimPrefix(r.URL.Path, base)]))
			fmt.Fprintf(w, `[{"Value": %q}]`, value)
		}
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		name    string
		answers map[string]string
		code    int
		out     []string
	}{
		{"nobody", nil, 0, []string{"0 / 0 node(s) completed / acknowledged\n"}},
		{"one", map[string]string{"a/ack": "", "a/out/00000": "x\ny", "a/exit": "0"}, 0, []string{
			"    a: x\n    a: y\n==> a: finished with exit code 0\n", "1 / 1 node(s)",
		}},
		{"one fails", map[string]string{"a/ack": "", "a/exit": "0", "b/ack": "", "b/exit": "3"}, 2, []string{"==> b: finished with exit code 3\n", "2 / 2 node(s)"}},
		{"one does not end", map[string]string{"a/ack": "", "a/exit": "0", "b/ack": "", "b/out/00000": "half"}, 2, []string{"    b: half\n", "1 / 2 node(s)"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var out, errs bytes.Buffer
			cmd, err := Verbs()[0].Factory(t.Context(), verb.Streams{In: strings.NewReader(""), Out: &out, Err: &errs})()
			if err != nil {
				t.Fatal(err)
			}
			if code := cmd.Run([]string{"-http-addr=" + agent(t, tt.answers).URL, "-wait=2s", "-wait-repl=1ms", "true"}); code != tt.code {
				t.Errorf("exit %d, %s; want %d", code, &errs, tt.code)
			}
			if hinted := strings.Contains(errs.String(), "disable_remote_exec = false"); hinted != (tt.answers == nil) || !hinted && errs.Len() > 0 {
				t.Errorf("standard error: %s", &errs)
			}
			for _, want := range tt.out {
				if !strings.Contains(out.String(), want) {
					t.Errorf("output %q, want %q in it", &out, want)
				}
			}
		})
	}
}
