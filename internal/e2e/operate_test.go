//go:build unix

package e2e

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Secrets of the tests below.
const (
	operatorToken = "0b5e2c4e-0a5c-4d62-93a4-000000000001"
	serviceToken  = "0b5e2c4e-0a5c-4d62-93a4-000000000002"
	gossipKey     = "pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s="
	caKey         = "-----BEGIN EC PRIVATE KEY-----"
	watchSecret   = "secret-of-a-watch"
	checkSecret   = "secret-of-a-check"
)

// guarded starts an agent whose access control denies everything but to the operator.
func guarded(t *testing.T) *agent {
	a := newAgent(t, "guarded", map[string]any{
		"server": true, "bootstrap": true, "encrypt": gossipKey, "disable_remote_exec": false, "log_level": "info", "enable_debug": false,
		"acl": map[string]any{"enabled": true, "default_policy": "deny", "tokens": map[string]any{
			"initial_management": operatorToken, "agent": operatorToken, "config_file_service_registration": operatorToken,
		}},
		"watches": []any{map[string]any{
			"type": "key", "key": "none", "token": operatorToken, "handler_type": "http",
			"http_handler_config": map[string]any{"path": "http://127.0.0.1:1/" + watchSecret, "header": map[string]any{"Authorization": []any{watchSecret}}},
		}},
		"services": []any{map[string]any{"name": "web", "port": 80, "token": operatorToken, "check": map[string]any{
			"http": "http://127.0.0.1:1/", "interval": "1s", "header": map[string]any{"Authorization": []any{checkSecret}},
		}}},
	})
	a.run(t)
	eventually(t, 30*time.Second, "the operator's token counts", func() bool {
		_, code := a.cli(t, "catalog", "nodes", "-token="+operatorToken)
		return code == 0
	})
	return a
}

// TestDebugArchiveHasNoSecrets makes an archive of an agent that has secrets of every kind while they are used, and looks
// for them in every file of it.
func TestDebugArchiveHasNoSecrets(t *testing.T) {
	a := guarded(t)
	archive := filepath.Join(t.TempDir(), "out")
	done := make(chan struct{})
	go func() { // what is logged meanwhile
		defer close(done)
		for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			a.cli(t, "kv", "put", "-token="+operatorToken, "a", "value-of-a-key")
			a.cli(t, "kv", "get", "-token="+serviceToken, "a")
			a.call("GET", "/v1/kv/a?token="+operatorToken, "")
			a.call("GET", "/v1/agent/connect/ca/leaf/web?token="+operatorToken, "")
			a.call("PUT", "/v1/agent/token/default?token="+operatorToken, `{"Token": ""}`)
		}
	}()
	out, code := a.cli(t, "debug", "-token="+operatorToken, "-duration=10s", "-interval=5s", "-output="+archive)
	<-done
	if code != 0 || strings.Contains(out, "Not collected") {
		t.Fatalf("exit %d: %s", code, out)
	}
	files := unpack(t, archive+".tar.gz")
	if len(files) < 10 || !strings.Contains(files["out/consul.log"], "request finished") {
		t.Errorf("there is too little in the archive: %d files, log %q", len(files), tail(files["out/consul.log"], 3))
	}
	for _, secret := range []string{operatorToken, serviceToken, gossipKey, caKey, watchSecret, checkSecret, "value-of-a-key", "PRIVATE KEY"} {
		for name, text := range files {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %q", name, secret)
			}
		}
	}
}

// unpack returns the files of an archive; profiles are compressed once more, and come out plain.
func unpack(t *testing.T, path string) map[string]string {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		var in io.Reader = archive
		if strings.HasSuffix(h.Name, ".prof") {
			if in, err = gzip.NewReader(archive); err != nil {
				t.Fatalf("%s: %v", h.Name, err)
			}
		}
		data, err := io.ReadAll(in)
		if err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		files[h.Name] = string(data)
	}
}

// TestRemoteExecutionTakesItsRights runs a command with a token that has just the rights that the manual tells, and
// without each of them.
func TestRemoteExecutionTakesItsRights(t *testing.T) {
	a := guarded(t)
	rights := []string{
		`event "_rexec" { policy = "write" }`, `key_prefix "_rexec/" { policy = "write" }`, `session_prefix "" { policy = "write" }`,
		`agent_prefix "" { policy = "read" }`,
	}
	token := func(name string, rules []string) string {
		t.Helper()
		put := func(path string, body map[string]any, into any) {
			t.Helper()
			text, err := json.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			status, answer, err := a.call("PUT", path+"?token="+operatorToken, string(text))
			if err != nil || status != 200 {
				t.Fatalf("%s: %d %s %v", path, status, answer, err)
			}
			if err := json.Unmarshal([]byte(answer), into); err != nil {
				t.Fatal(err)
			}
		}
		var policy, made map[string]any
		put("/v1/acl/policy", map[string]any{"Name": name, "Rules": strings.Join(rules, "\n")}, &policy)
		put("/v1/acl/token", map[string]any{"Policies": []any{map[string]any{"ID": policy["ID"]}}}, &made)
		return made["SecretID"].(string)
	}
	allowed := token("all", rights)
	eventually(t, 30*time.Second, "a job runs", func() bool {
		out, code := a.cli(t, "exec", "-token="+allowed, "-wait=1s", "echo", "hello")
		return code == 0 && strings.Contains(out, "hello\n") && strings.Contains(out, "1 / 1 node(s)")
	})
	for i, right := range rights {
		without := append(append([]string{}, rights[:i]...), rights[i+1:]...)
		name := regexp.MustCompile(`\w+`).FindString(right)
		out, code := a.cli(t, "exec", "-token="+token("without-"+name, without), "-wait=1s", "echo", "hello")
		if code != 1 || strings.Contains(out, "hello\n") || !strings.Contains(out, "Permission denied") {
			t.Errorf("without %s: exit %d: %s", right, code, out)
		}
	}
}
