// Package versioncmd holds the command that tells which build this is.
package versioncmd

import (
	"encoding/json"
	"flag"
	"fmt"
	"strings"

	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/internal/version"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{{Path: "version", Synopsis: "Print the version", Setup: setup}}
}

// Versions of the gossip protocol the agent speaks.
const (
	protocolDefault = 2
	protocolMin     = 2
	protocolMax     = 3
)

func setup(f *flag.FlagSet) func(*verb.Call) error {
	format := f.String("format", "pretty", "`form` of the output: pretty or json")
	return func(c *verb.Call) error {
		switch *format {
		case "pretty":
			c.Println(Text())
			return nil
		case "json":
			type rpc struct{ Default, Min, Max int }
			// Programs decide by Version what they may ask for, as they do by what an agent says of itself.
			out, err := json.MarshalIndent(struct {
				Version, Revision, Prerelease, BuildDate string
				RPC                                      rpc
				Sarn                                     string
			}{
				version.Compat, version.Commit, "", version.BuildDate,
				rpc{protocolDefault, protocolMin, protocolMax}, version.Version,
			}, "", "   ")
			if err != nil {
				return err
			}
			c.Println(string(out))
			return nil
		}
		return verb.Errorf("Unknown format: %s", *format)
	}
}

// Text is what the command prints, without the last newline.
func Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s\n", version.Name, version.Human())
	if version.Commit != "" {
		fmt.Fprintf(&b, "Revision %s\n", version.Commit)
	}
	fmt.Fprintf(&b, "Build Date %s\n", version.BuildDate)
	fmt.Fprintf(&b, "Protocol %d spoken by default, understands %d to %d (agent will automatically use protocol >%d when speaking to compatible agents)\n",
		protocolDefault, protocolMin, protocolMax, protocolDefault)
	return b.String()
}
