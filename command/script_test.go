package command_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sarnmesh/sarn/command"
	"github.com/sarnmesh/sarn/command/verb"
)

func TestMain(m *testing.M) {
	main := func() { os.Exit(command.Main(os.Args[1:])) }
	testscript.Main(m, map[string]func(){"sarn": main, "consul": main})
}

// Each script in testdata is one behaviour of commands that need no agent.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			// Nothing listens here: a script that asks an agent by mistake fails at once.
			e.Setenv("CONSUL_HTTP_ADDR", "127.0.0.1:1")
			return nil
		},
	})
}

// Every command shows help on standard output and nothing else.
func TestEveryCommandHasHelp(t *testing.T) {
	for _, path := range command.Paths() {
		t.Run(path, func(t *testing.T) {
			var out, errs bytes.Buffer
			args := append(strings.Fields(path), "-h")
			code := command.Run(t.Context(), args, verb.Streams{In: strings.NewReader(""), Out: &out, Err: &errs})
			if code != 0 || errs.Len() > 0 || out.Len() == 0 {
				t.Errorf("help: exit %d, stdout %q, stderr %q", code, &out, &errs)
			}
		})
	}
}
