package logincmd

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/command/verb"
)

func run(t *testing.T, name string, args ...string) (code int, out, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	for _, v := range Verbs() {
		if v.Path == name {
			c, err := v.Factory(t.Context(), verb.Streams{In: strings.NewReader(""), Out: &stdout, Err: &stderr})()
			if err != nil {
				t.Fatal(err)
			}
			return c.Run(args), stdout.String(), stderr.String()
		}
	}
	t.Fatalf("no command %s", name)
	return
}

// A login shows nothing, and leaves a secret that only its user can read, also in place of what was there.
func TestLoginLeavesTheSecretInItsFile(t *testing.T) {
	var body string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		body = string(b)
		io.WriteString(w, `{"SecretID":"the-secret"}`)
	}))
	defer s.Close()
	dir := t.TempDir()
	proof, sink := filepath.Join(dir, "proof"), filepath.Join(dir, "sink")
	if err := os.WriteFile(proof, []byte(" jwt\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sink, []byte("old, and for all to see"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, errs := run(t, "login", "-http-addr="+s.URL, "-method=m", "-bearer-token-file="+proof, "-token-sink-file="+sink, "-meta=k=v")
	if code != 0 || out != "" || errs != "" {
		t.Fatalf("exit %d, %q, %q", code, out, errs)
	}
	if !strings.Contains(body, `"BearerToken":"jwt"`) || !strings.Contains(body, `"k":"v"`) {
		t.Errorf("asked with %s", body)
	}
	data, err := os.ReadFile(sink)
	if err != nil || string(data) != "the-secret" {
		t.Errorf("the sink holds %q, %v", data, err)
	}
	if info, err := os.Stat(sink); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("left behind: %v", left)
	}
}

func TestLoginMistakes(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-method=m", "-token-sink-file=x", "-aws-region=r"}, "Missing '-aws-auto-bearer-token' flag, which '-aws-region' is for"},
		{[]string{"-method=m", "-token-sink-file=x", "-aws-auto-bearer-token", "-bearer-token-file=y"}, "Cannot use '-bearer-token-file' flag or '-oidc' with '-aws-auto-bearer-token'"},
		{[]string{"-method=m", "-token-sink-file=x", "-aws-auto-bearer-token", "-aws-access-key-id=y"}, "-aws-access-key-id and -aws-secret-access-key go together"},
		{[]string{"-method=m", "-token-sink-file=x", "-oidc", "-bearer-token-file=y"}, "Cannot use '-bearer-token-file' flag with '-oidc'"},
		{[]string{"-method=m", "-token-sink-file=x", "-oidc"}, "Missing required '-oidc-issuer' flag"},
		{[]string{"-method=m", "-token-sink-file=x", "-type=y"}, `Unknown auth method type "y"`},
	} {
		if code, out, errs := run(t, "login", tt.args...); code != 1 || out != "" || !strings.Contains(errs, tt.want) {
			t.Errorf("%v: exit %d, %q, %q", tt.args, code, out, errs)
		}
	}
	if code, _, errs := run(t, "logout", "x"); code != 1 || !strings.Contains(errs, "Should have no non-flag arguments.") {
		t.Errorf("logout: %d, %q", code, errs)
	}
}
