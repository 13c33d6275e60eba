// Package command is the command line: it finds the command that the arguments name and runs it.
package command

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/cli"
	"github.com/posener/complete"

	"github.com/sarnmesh/sarn/command/aclcmd"
	"github.com/sarnmesh/sarn/command/agent"
	"github.com/sarnmesh/sarn/command/catalogcmd"
	"github.com/sarnmesh/sarn/command/clustercmd"
	"github.com/sarnmesh/sarn/command/completioncmd"
	"github.com/sarnmesh/sarn/command/configcmd"
	"github.com/sarnmesh/sarn/command/connectcmd"
	"github.com/sarnmesh/sarn/command/debugcmd"
	"github.com/sarnmesh/sarn/command/execcmd"
	"github.com/sarnmesh/sarn/command/explaincmd"
	"github.com/sarnmesh/sarn/command/initcmd"
	"github.com/sarnmesh/sarn/command/intentioncmd"
	"github.com/sarnmesh/sarn/command/kvcmd"
	"github.com/sarnmesh/sarn/command/lockcmd"
	"github.com/sarnmesh/sarn/command/logincmd"
	"github.com/sarnmesh/sarn/command/operatorcmd"
	"github.com/sarnmesh/sarn/command/peeringcmd"
	"github.com/sarnmesh/sarn/command/proxycmd"
	"github.com/sarnmesh/sarn/command/redirectcmd"
	"github.com/sarnmesh/sarn/command/runcmd"
	"github.com/sarnmesh/sarn/command/servicescmd"
	"github.com/sarnmesh/sarn/command/snapshotcmd"
	"github.com/sarnmesh/sarn/command/tlscmd"
	"github.com/sarnmesh/sarn/command/troubleshootcmd"
	"github.com/sarnmesh/sarn/command/validatecmd"
	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/command/versioncmd"
	"github.com/sarnmesh/sarn/command/watchcmd"
	"github.com/sarnmesh/sarn/internal/spelling"
)

// name is what the binary is called in help and completion. A link under another name works the same.
const name = "sarn"

// Main runs the command line and returns the exit code of the process.
func Main(args []string) int {
	adoptEnvironment()
	return Run(context.Background(), args, verb.Std())
}

// Run runs the command that args name with the given streams and returns its exit code. Commands that wait end with ctx.
func Run(ctx context.Context, args []string, s verb.Streams) int {
	commands := all(ctx, s)
	c := cli.NewCLI(name, strings.TrimSuffix(versioncmd.Text(), "\n"))
	c.Args = args
	c.Commands = commands
	c.HelpFunc = help
	c.HelpWriter, c.ErrorWriter = s.Out, s.Err
	code, err := c.Run()
	if err != nil {
		fmt.Fprintf(s.Err, "Error executing command: %v\n", err)
		return 1
	}
	if _, known := commands[c.Subcommand()]; code == 127 && c.Subcommand() != "" && !known {
		suggest(s, c.Subcommand(), commands)
	}
	return code
}

// assembled are the commands that run for long and make themselves; each takes what it needs from flags and configuration.
var assembled = map[string]func(ui cli.Ui) cli.Command{
	"agent":         agent.New,
	"connect proxy": proxycmd.New,
}

// all are the commands by name.
func all(ctx context.Context, s verb.Streams) map[string]cli.CommandFactory {
	commands := map[string]cli.CommandFactory{}
	for _, verbs := range [][]verb.Verb{
		aclcmd.Verbs(), catalogcmd.Verbs(), clustercmd.Verbs(), completioncmd.Verbs(), configcmd.Verbs(), connectcmd.Verbs(), debugcmd.Verbs(), execcmd.Verbs(), explaincmd.Verbs(),
		initcmd.Verbs(), intentioncmd.Verbs(), kvcmd.Verbs(), lockcmd.Verbs(), logincmd.Verbs(), operatorcmd.Verbs(), redirectcmd.Verbs(), runcmd.Verbs(), servicescmd.Verbs(), snapshotcmd.Verbs(), tlscmd.Verbs(), troubleshootcmd.Verbs(), validatecmd.Verbs(),
		versioncmd.Verbs(), watchcmd.Verbs(),
		peeringcmd.Verbs(),
	} {
		for _, v := range verbs {
			v.Example = cmp.Or(v.Example, examples[v.Path])
			if v.Complete == nil {
				v.Complete = kinds[v.Path]
			}
			commands[v.Path] = v.Factory(ctx, s)
		}
	}
	ui := &cli.BasicUi{Reader: s.In, Writer: s.Out, ErrorWriter: s.Err}
	for path, factory := range assembled {
		commands[path] = func() (cli.Command, error) { return completed{factory(ui)}, nil }
	}
	return commands
}

// A completed command has the flags completed that its help lists.
type completed struct{ cli.Command }

var listedFlag = regexp.MustCompile(`(?m)^\s+-([a-zA-Z][a-z0-9-]*)`)

// AutocompleteArgs predicts nothing: these commands take flags only.
func (completed) AutocompleteArgs() complete.Predictor { return complete.PredictNothing }

// AutocompleteFlags predicts the flags, and files for their values.
func (c completed) AutocompleteFlags() complete.Flags {
	out := complete.Flags{}
	for _, found := range listedFlag.FindAllStringSubmatch(c.Help(), -1) {
		out["-"+found[1]] = complete.PredictFiles("*")
	}
	return out
}

// Paths lists the names of all commands.
func Paths() []string { return slices.Sorted(maps.Keys(all(context.Background(), verb.Std()))) }

// suggest names the command that was probably meant.
func suggest(s verb.Streams, word string, commands map[string]cli.CommandFactory) {
	var names []string
	for path := range commands {
		if !strings.Contains(path, " ") {
			names = append(names, path)
		}
	}
	fmt.Fprintf(s.Err, "There is no command %q.", word)
	if near := spelling.Nearest(word, names); near != "" {
		fmt.Fprintf(s.Err, " Did you mean %s?", near)
	}
	fmt.Fprintln(s.Err)
}

// groups order the commands in the help text by what they are for, each with a line to begin with.
var groups = []struct{ title, names, example string }{
	{"Set up and run an agent", "init join-token agent validate reload leave maint", "agent -dev"},
	{"Register and find services", "run services catalog event", "run -name web -port 8080 -- ./web"},
	{"Connect services", "connect intention config explain peering troubleshoot", "intention create web db"},
	{"Keep keys, locks and backups", "kv lock watch snapshot", "kv put app/color red"},
	{"Look after the cluster", "members join force-leave operator info monitor rtt debug exec", "members"},
	{"Say who may do what", "acl login logout keygen keyring tls", "acl token create -service-identity web"},
}

// help lists the commands by group.
func help(commands map[string]cli.CommandFactory) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s [--version] [--help] COMMAND [options] [arguments]\n", name)
	left := maps.Clone(commands)
	section := func(title, example string, names []string) {
		began := false
		for _, n := range names {
			factory, ok := left[n]
			if !ok {
				continue
			}
			delete(left, n)
			c, err := factory()
			if err != nil {
				continue
			}
			if !began {
				fmt.Fprintf(&b, "\n%s:\n", title)
				began = true
			}
			fmt.Fprintf(&b, "  %-12s  %s\n", n, c.Synopsis())
		}
		if began && example != "" {
			fmt.Fprintf(&b, "    $ %s %s\n", name, example)
		}
	}
	for _, g := range groups {
		section(g.title, g.example, strings.Fields(g.names))
	}
	section("Other", "", slices.Sorted(maps.Keys(left)))
	fmt.Fprintf(&b, "\n%s COMMAND -h tells more about a command.", name)
	return b.String()
}

// adoptEnvironment lets variables under this product's own name win over those of the reference product, which the client
// library reads.
func adoptEnvironment() {
	for _, pair := range os.Environ() {
		key, value, _ := strings.Cut(pair, "=")
		if rest, ok := strings.CutPrefix(key, "SARN_"); ok {
			if err := os.Setenv("CONSUL_"+rest, value); err != nil {
				fmt.Fprintf(os.Stderr, "set CONSUL_%s: %v\n", rest, err)
			}
		}
	}
}
