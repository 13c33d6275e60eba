package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Everything that is wrong with a file is told at once, each with its line and column, its key, what is written there and
// what was expected.
func TestAllProblemsOfAFileAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.hcl")
	text := `data_dir = "/tmp/x"
bind_addr = "127.0.0.1"
portz { http = 8500 }
ports {
  dns = "8600"
  https = 99999
}
session_ttl_min = "5x"
node_meta { "a b" = "c" }
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := Load(Sources{Paths: []string{file}, LookupEnv: func(string) (string, bool) { return "", false }})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		"invalid config key portz", "did you mean ports?", file + ":3:1",
		"'ports.dns' expected type 'int', got unconvertible type 'string', value: '8600'", file + ":5:9",
		"ports.https: invalid port: 99999", file + ":6:11",
		`session_ttl_min: invalid duration: "5x": time: unknown unit "x" in duration "5x"`, file + ":8:19",
		"node_meta invalid: Couldn't load metadata pair ('a b', 'c'): Key contains invalid characters", file + ":9:11",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(err)
	}
	// What is missing is not blamed when a key was misspelt.
	if err := os.WriteFile(file, []byte("data_dri = \"/tmp/x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err = Load(Sources{Paths: []string{file}})
	if err == nil || strings.Contains(err.Error(), "data_dir cannot be empty") {
		t.Errorf("a misspelt key: %v", err)
	}
}
