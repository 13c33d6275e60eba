// Package watchcmd holds the command that waits for changes.
package watchcmd

import (
	"bytes"
	"encoding/json"
	"flag"
	"slices"
	"strconv"

	"github.com/hashicorp/consul/api/watch"
	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{{
		Path: "watch", Args: "[CHILD...]", Synopsis: "Wait for changes and run a program on each", Client: true, Server: true, Setup: setup,
		Help: "Prints what the watch sees now; with a program, runs it with that on its standard input, and again on every change.",
	}}
}

// configOnly are the types of watches that only agents run.
var configOnly = []string{"connect_leaf", "connect_roots", "agent_service"}

func setup(f *flag.FlagSet) func(*verb.Call) error {
	kind := f.String("type", "", "`type` of the watch: key, keyprefix, services, nodes, service, checks or event; required")
	text := map[string]*string{
		"key":     f.String("key", "", "`key` to watch"),
		"prefix":  f.String("prefix", "", "`prefix` of the keys to watch"),
		"service": f.String("service", "", "`name` of the service to watch"),
		"state":   f.String("state", "", "`state` of the checks to watch"),
		"name":    f.String("name", "", "`name` of the events to watch"),
		"filter":  f.String("filter", "", "`expression` that results must match"),
	}
	tags := verb.Strings(f, "tag", "`tag` the service must have; repeatable")
	passing := f.String("passingonly", "", "`true` to watch only instances that pass their checks")
	shell := f.Bool("shell", true, "run the program with a shell")
	return func(c *verb.Call) error {
		if *kind == "" {
			return verb.Usagef("Watch type must be specified")
		}
		if slices.Contains(configOnly, *kind) {
			return verb.Errorf("Type %s is not supported in the CLI tool", *kind)
		}
		params := map[string]any{"type": *kind}
		for name, value := range text {
			if *value != "" {
				params[name] = *value
			}
		}
		if len(*tags) > 0 {
			params["tag"] = *tags
		}
		if c.Stale() {
			params["stale"] = true
		}
		if *passing != "" {
			only, err := strconv.ParseBool(*passing)
			if err != nil {
				return verb.Errorf("Failed to parse passingonly flag: %w", err)
			}
			params["passingonly"] = only
		}
		plan, err := watch.Parse(params)
		if err != nil {
			return verb.Errorf("%w", err)
		}
		return run(c, plan, *shell)
	}
}

// run follows the plan until there was one result, the program failed, or the command is told to stop.
func run(c *verb.Call, plan *watch.Plan, shell bool) error {
	client, err := c.API()
	if err != nil {
		return err
	}
	if _, err := client.Status().Leader(); err != nil {
		return verb.Errorf("Error querying Sarn agent: %w", err)
	}
	ctx, cancel := c.Interruptible()
	defer cancel()
	var failed error
	plan.Handler = func(index uint64, result any) {
		if ctx.Err() != nil {
			return
		}
		if len(c.Args) == 0 {
			failed = show(c, result)
			plan.Stop()
			return
		}
		if failed = handle(c, index, result, shell); failed != nil {
			plan.Stop()
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		plan.Stop()
	}()
	log := hclog.New(&hclog.LoggerOptions{Name: "sarn", Output: c.Err})
	err = plan.RunWithClientAndHclog(client, log)
	interrupted := ctx.Err() != nil
	cancel()
	<-done
	switch {
	case interrupted:
		return nil
	case err != nil:
		return verb.Errorf("Error querying Sarn agent: %w", err)
	}
	return failed
}

// show prints a result.
func show(c *verb.Call, result any) error {
	out, err := json.MarshalIndent(result, "", "    ")
	if err != nil {
		return verb.Errorf("Error encoding output: %w", err)
	}
	c.Println(string(out))
	return nil
}

// handle runs the program with a result.
func handle(c *verb.Call, index uint64, result any, shell bool) error {
	var in bytes.Buffer
	if err := json.NewEncoder(&in).Encode(result); err != nil {
		return verb.Errorf("Error encoding output: %w", err)
	}
	cmd := c.Child(c.Args, shell, "CONSUL_INDEX="+strconv.FormatUint(index, 10))
	cmd.Stdin = &in
	if err := cmd.Run(); err != nil {
		return verb.Errorf("Error executing handler: %w", err)
	}
	return nil
}
