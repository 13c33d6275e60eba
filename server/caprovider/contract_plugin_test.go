package caprovider_test

import (
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/server/caprovider/external"
)

// example builds the example program and returns where it is and its checksum.
func example(t *testing.T) (path string, sum []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fileca")
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", path, "github.com/sarnmesh/sarn/plugin/example/fileca").CombinedOutput(); err != nil {
		t.Fatalf("build the example: %v\n%s", err, out)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := sha256.Sum256(text)
	return path, s[:]
}

func TestContractOfAProgram(t *testing.T) {
	path, sum := example(t)
	for _, more := range []map[string]any{
		{"Nested": map[string]any{"A": []any{1, map[string]any{"b": true}}}},
		{"PrivateKeyType": "rsa", "PrivateKeyBits": 2048},
	} {
		kind := external.New(&external.Program{Name: "file", Path: path, SHA256: sum}, nil)
		t.Cleanup(kind.Close)
		config := func(folder string) map[string]any {
			c := map[string]any{"Folder": folder}
			for k, v := range more {
				c[k] = v
			}
			return c
		}
		first, second := filepath.Join(t.TempDir(), "ca"), filepath.Join(t.TempDir(), "ca")
		contract(t, &subject{provider: "plugin:file", kind: kind, config: config(first), another: config(second), left: func() string {
			// The keys that the example keeps as files are the operator's.
			for _, name := range []string{"root.key", "root.pem"} {
				info, err := os.Stat(filepath.Join(first, name))
				if err != nil {
					return err.Error()
				}
				if info.Mode().Perm() != 0o600 {
					return strings.Join([]string{name, info.Mode().String()}, " ")
				}
			}
			return ""
		}})
	}
}
