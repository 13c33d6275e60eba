package command

import (
	"bytes"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/cli"

	"github.com/sarnmesh/sarn/command/verb"
)

// runHere runs the command line in this process.
func runHere(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = Run(t.Context(), args, verb.Streams{In: strings.NewReader(""), Out: &o, Err: &e})
	return code, o.String(), e.String()
}

var flagInHelp = regexp.MustCompile(`(?m)^  -([a-zA-Z][a-z0-9-]*)`)

// flagsOf are the flags that a help text lists.
func flagsOf(help string) []string {
	var out []string
	for _, m := range flagInHelp.FindAllStringSubmatch(help, -1) {
		out = append(out, "-"+m[1])
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Every command says in its help how to call it, completes the flags that it lists, and refuses others as
// spec/cli.md section 1.1 says.
func TestEveryCommand(t *testing.T) {
	commands := all(t.Context(), verb.Streams{In: strings.NewReader(""), Out: new(bytes.Buffer), Err: new(bytes.Buffer)})
	for path, factory := range commands {
		t.Run(path, func(t *testing.T) {
			words := strings.Fields(path)
			_, help, _ := runHere(t, append(words, "-h")...)
			_, byItself := assembled[path]
			if !byItself && !strings.Contains(help, "\nExample:\n\n  sarn "+path) {
				t.Errorf("help has no example:\n%s", help)
			}
			listed := flagsOf(help)
			for word := range strings.FieldsSeq(examples[path]) {
				if word == "--" {
					break
				}
				if name, _, _ := strings.Cut(word, "="); strings.HasPrefix(word, "-") && len(commandsBelow(commands, path)) == 0 && !slices.Contains(listed, name) {
					t.Errorf("the example has the flag %s, which the command does not know", name)
				}
			}
			c, err := factory()
			if err != nil {
				t.Fatal(err)
			}
			completes, ok := c.(cli.CommandAutocomplete)
			if !ok {
				t.Fatal("nothing is completed")
			}
			if offered := slices.Sorted(maps.Keys(completes.AutocompleteFlags())); !slices.Equal(offered, listed) {
				t.Errorf("completion offers %v, help lists %v", offered, listed)
			}
			if len(commandsBelow(commands, path)) > 0 && path != "connect envoy" {
				code, out, errs := runHere(t, words...)
				if code != 1 || out != "" || !strings.Contains(errs, "Subcommands:") {
					t.Errorf("a group alone: exit %d, stdout %q, stderr %q", code, out, errs)
				}
				return
			}
			want := 1
			if slices.Contains(twoForFlags, path) {
				want = 2
			}
			code, out, errs := runHere(t, append(words, "-no-such-flag")...)
			if code != want || out != "" || !strings.Contains(errs, "flag provided but not defined: -no-such-flag") {
				t.Errorf("an unknown flag: exit %d, want %d; stdout %q, stderr %q", code, want, out, errs)
			}
		})
	}
}

// commandsBelow are the subcommands of a command.
func commandsBelow(commands map[string]cli.CommandFactory, path string) (below []string) {
	for other := range commands {
		if strings.HasPrefix(other, path+" ") {
			below = append(below, other)
		}
	}
	return below
}

// twoForFlags are the commands whose exit code 1 is an answer.
var twoForFlags = []string{"intention check", "explain", "config test"}

// What the tables of examples and completion speak of exists.
func TestTablesNameCommands(t *testing.T) {
	commands := all(t.Context(), verb.Std())
	for path := range examples {
		if _, ok := commands[path]; !ok {
			t.Errorf("an example of %q, which is no command", path)
		}
	}
	for path, flags := range kinds {
		if _, ok := commands[path]; !ok {
			t.Errorf("names for %q, which is no command", path)
		}
		_, help, _ := runHere(t, append(strings.Fields(path), "-h")...)
		for name := range flags {
			if name != "" && !slices.Contains(flagsOf(help), "-"+name) {
				t.Errorf("names for %s -%s, which is no flag", path, name)
			}
		}
	}
	for _, g := range groups {
		_, known := commands[strings.Fields(g.example)[0]]
		if !known || !slices.Contains(strings.Fields(g.names), strings.Fields(g.example)[0]) {
			t.Errorf("the example of the group %q is of none of its commands: %s", g.title, g.example)
		}
		for n := range strings.FieldsSeq(g.names) {
			if commands[n] == nil {
				t.Errorf("the group %q has %s, which is no command", g.title, n)
			}
		}
	}
}
