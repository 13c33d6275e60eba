//go:build unix

package connectcmd

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sarnmesh/sarn/command/verb"
)

// execEnvoy replaces the process by Envoy. The configuration holds the token, so it has no name others could open it by:
// Envoy inherits a file that is already removed and reads it under /dev/fd, which it allows for this purpose and takes for
// JSON.
func execEnvoy(c *verb.Call, path string, doc []byte) error {
	fail := func(err error) error { return verb.Errorf("Error passing the configuration to envoy: %w", err) }
	file, err := os.CreateTemp("", "sarn-envoy-*.json") // mode 0600
	if err != nil {
		return fail(err)
	}
	defer file.Close()
	if err := os.Remove(file.Name()); err != nil {
		return fail(err)
	}
	if _, err := file.Write(doc); err != nil {
		return fail(err)
	}
	if _, err := file.Seek(0, 0); err != nil {
		return fail(err)
	}
	fd, err := unix.Dup(int(file.Fd())) // unlike the original, a duplicate stays open
	if err != nil {
		return fail(err)
	}
	args := []string{path, "--config-path", fmt.Sprintf("/dev/fd/%d", fd)}
	if !slices.ContainsFunc(c.Args, func(a string) bool {
		return strings.HasPrefix(a, "--restart-epoch") || a == "--disable-hot-restart"
	}) {
		args = append(args, "--disable-hot-restart")
	}
	return verb.Errorf("Failed to exec envoy: %w", unix.Exec(path, append(args, c.Args...), os.Environ()))
}
