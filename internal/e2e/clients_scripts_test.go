//go:build unix

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// runs runs a program that uses an agent and says "ok" of each of its steps.
func runs(t *testing.T, steps int, argv ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	if err != nil || strings.Count("\n"+string(out), "\nok ") != steps {
		t.Errorf("%v: %v\n%s", argv, err, out)
	}
}

// TestNodeClient runs the client that most programs in JavaScript have.
func TestNodeClient(t *testing.T) {
	binary(t)
	node, err := exec.LookPath("node")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("no Node: %v", err)
	}
	script := filepath.Join(tool(t, "nodeclient"), "client.js")
	runs(t, 5, node, script, strconv.Itoa(single(t, nil).ports["http"]))
}

// TestPythonClient runs the client for Python that Debian has, and Patroni uses.
func TestPythonClient(t *testing.T) {
	binary(t)
	tool(t, "python3-consul")
	runs(t, 4, "/usr/bin/python3", "pythonclient.py", strconv.Itoa(single(t, nil).ports["http"]))
}
