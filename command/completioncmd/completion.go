// Package completioncmd holds the command that prints what makes a shell complete commands.
package completioncmd

import (
	"flag"
	"strings"

	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{{
		Path: "completion", Args: "bash|zsh|fish", Synopsis: "Print what makes a shell complete commands", Setup: setup,
		Help: "Prints a script that makes a shell complete commands, flags, and names of services, nodes, keys and more that the agent " +
			"knows; those need an agent that can be reached as the environment says or what is typed already.\n\n" +
			"bash, in ~/.bashrc: source <(sarn completion bash)\n\n" +
			"zsh, in ~/.zshrc below compinit: source <(sarn completion zsh)\n\n" +
			"fish: sarn completion fish > ~/.config/fish/completions/sarn.fish",
		Complete: map[string]verb.Kind{"": verb.Shells},
	}}
}

// scripts ask the program itself, which answers when COMP_LINE is set. What ends with a slash goes on, so there is no
// space after it.
var scripts = map[string]string{
	"bash": `# Completion of NAME for bash.
_NAME_complete() {
    local line="${COMP_LINE:0:COMP_POINT}" word
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <(COMP_LINE="$line" COMP_POINT="${#line}" NAME 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == */ ]]; then
        compopt -o nospace
    fi
}
complete -o default -F _NAME_complete NAME
`,
	"zsh": `#compdef NAME
# Completion of NAME for zsh.
_NAME() {
    local line="${BUFFER[1,CURSOR]}"
    local -a found going
    local word
    for word in ${(f)"$(COMP_LINE="$line" COMP_POINT="${#line}" NAME 2>/dev/null)"}; do
        if [[ $word == */ ]]; then going+=("$word"); else found+=("$word"); fi
    done
    (( ${#going} )) && compadd -S '' -- $going
    (( ${#found} )) && compadd -- $found
    (( ${#going} + ${#found} )) || _files
}
if [[ ${funcstack[1]} == _NAME ]]; then
    _NAME "$@"
else
    compdef _NAME NAME
fi
`,
	"fish": `# Completion of NAME for fish.
function __NAME_complete
    set -lx COMP_LINE (commandline -cp)
    set -lx COMP_POINT (string length -- $COMP_LINE)
    NAME 2>/dev/null
end
complete -c NAME -a '(__NAME_complete)'
`,
}

func setup(f *flag.FlagSet) func(*verb.Call) error {
	name := f.String("name", "sarn", "`name` that the program is called by")
	return func(c *verb.Call) error {
		if len(c.Args) != 1 {
			return verb.Usagef("One shell must be named: bash, zsh or fish")
		}
		script, ok := scripts[c.Args[0]]
		if !ok {
			return verb.Errorf("Unknown shell: %s", c.Args[0])
		}
		if strings.Trim(*name, letters) != "" || *name == "" {
			return verb.Errorf("Not the name of a program: %q", *name)
		}
		c.Printf("%s", strings.ReplaceAll(script, "NAME", *name))
		return nil
	}
}

// letters are those of names that are part of a script.
const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
