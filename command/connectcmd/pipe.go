package connectcmd

import (
	"flag"
	"io"
	"os"

	"github.com/sarnmesh/sarn/command/verb"
)

// pipeBootstrap hands a bootstrap configuration to a program that reads it from a pipe with a name, and takes the name
// away when that has read it.
func pipeBootstrap(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		if len(c.Args) != 1 {
			return verb.Errorf("Expecting the path of a pipe as the only argument")
		}
		path := c.Args[0]
		pipe, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0) // waits for a reader
		if err != nil {
			return verb.Errorf("Error opening the pipe: %w", err)
		}
		_, err = io.Copy(pipe, c.In)
		if closing := pipe.Close(); err == nil {
			err = closing
		}
		if err != nil {
			return verb.Errorf("Error writing to the pipe: %w", err)
		}
		if err := os.Remove(path); err != nil {
			return verb.Errorf("Error removing the pipe: %w", err)
		}
		return nil
	}
}
