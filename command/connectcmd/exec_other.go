//go:build !unix

package connectcmd

import "github.com/sarnmesh/sarn/command/verb"

// execEnvoy is not possible where a process cannot replace itself.
func execEnvoy(*verb.Call, string, []byte) error {
	return verb.Errorf("Running envoy is not supported on this system; use -bootstrap and run it yourself")
}
