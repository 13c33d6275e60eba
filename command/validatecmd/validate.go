// Package validatecmd holds the command that checks configuration files.
package validatecmd

import (
	"flag"

	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{{
		Path: "validate", Args: "PATH...", Synopsis: "Check configuration files and folders", Setup: setup,
		Help: "Reads configuration files and folders as the agent would and reports every problem with its place, without starting\n" +
			"anything.",
	}}
}

func setup(f *flag.FlagSet) func(*verb.Call) error {
	var src config.Sources
	f.StringVar(&src.Format, "config-format", "", "`format` of all files: hcl or json")
	quiet := f.Bool("quiet", false, "print nothing but errors")
	return func(c *verb.Call) error {
		if src.Paths = c.Args; len(src.Paths) == 0 {
			return verb.Errorf("Must specify at least one config file or directory")
		}
		_, warnings, err := config.Load(src)
		if err != nil {
			return verb.Errorf("Config validation failed: %w", err)
		}
		if *quiet {
			return nil
		}
		for _, w := range warnings {
			c.Warnf("%s", w)
		}
		c.Println("Configuration is valid!")
		return nil
	}
}
