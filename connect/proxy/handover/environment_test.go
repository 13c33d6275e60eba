//go:build linux

package handover_test

import (
	"net"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

// runWithSockets runs TestServiceManager in a process that has the sockets, the first under a name.
func runWithSockets(t *testing.T, one, all net.Listener) string {
	t.Helper()
	var files []*os.File
	for _, ln := range []net.Listener{one, all} {
		f, err := ln.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	// The shell knows the process ID that the program will have.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run='^TestServiceManager$'`, os.Args[0])
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), "HANDOVER_TEST_CHILD=1", "LISTEN_FDS=2", "LISTEN_FDNAMES=by name:unknown",
		"HANDOVER_TEST_PORT="+strconv.Itoa(all.Addr().(*net.TCPAddr).Port))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}
