// Package intentioncmd holds the commands that say which service may talk to which.
package intentioncmd

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	common := func(v verb.Verb) verb.Verb {
		v.Client, v.Server, v.Tenancy = true, true, true
		return v
	}
	return []verb.Verb{
		{Path: "intention", Synopsis: "Say which service may talk to which"},
		common(verb.Verb{
			Path: "intention create", Args: "SOURCE DESTINATION", Synopsis: "Allow or deny connections", Setup: create,
			Help: "Allows, or with -deny denies, connections from SOURCE to DESTINATION. Either may be *. With -file the arguments are JSON " +
				"files of intentions.",
		}),
		common(verb.Verb{
			Path: "intention get", Args: "SOURCE DESTINATION | ID", Synopsis: "Print an intention", Setup: get, Formats: true,
		}),
		common(verb.Verb{
			Path: "intention list", Synopsis: "List all intentions", Setup: list, Formats: true,
			Help: "Lists all intentions by precedence. Exits 2 if there are none.",
		}),
		common(verb.Verb{
			Path: "intention check", Args: "SOURCE DESTINATION", Synopsis: "Tell whether a connection is allowed", FlagExit: 2, Setup: check,
			Help: "Prints whether SOURCE may connect to DESTINATION. Exits 0 if it may, 1 if not, 2 if that cannot be told.",
		}),
		common(verb.Verb{
			Path: "intention match", Args: "NAME", Synopsis: "List the intentions that apply to a service", Setup: match, Formats: true,
			Help: "Lists the intentions that apply to a service, in the order in which they are looked at.",
		}),
		common(verb.Verb{
			Path: "intention delete", Args: "SOURCE DESTINATION | ID", Synopsis: "Delete an intention", Setup: del,
		}),
	}
}

// A target is a service as commands name it.
type target struct{ partition, namespace, name string }

// parse reads "name", "namespace/name" or "partition/namespace/name".
func parse(s string) (target, error) {
	switch parts := strings.Split(s, "/"); len(parts) {
	case 1:
		return target{name: parts[0]}, nil
	case 2:
		return target{namespace: parts[0], name: parts[1]}, nil
	case 3:
		return target{parts[0], parts[1], parts[2]}, nil
	}
	return target{}, verb.Errorf("input can contain at most two '/'")
}

// build makes an intention of two arguments.
func build(source, destination string) (*api.Intention, error) {
	src, err := parse(source)
	if err != nil {
		return nil, verb.Errorf("Invalid intention source: %w", err)
	}
	dst, err := parse(destination)
	if err != nil {
		return nil, verb.Errorf("Invalid intention destination: %w", err)
	}
	return &api.Intention{
		SourcePartition: src.partition, SourceNS: src.namespace, SourceName: src.name,
		DestinationPartition: dst.partition, DestinationNS: dst.namespace, DestinationName: dst.name,
		SourceType: api.IntentionSourceConsul,
	}, nil
}

func create(f *flag.FlagSet) func(*verb.Call) error {
	allow := f.Bool("allow", false, "allow connections; the default")
	deny := f.Bool("deny", false, "deny connections")
	file := f.Bool("file", false, "the arguments are files")
	replace := f.Bool("replace", false, "replace an intention for the same source and destination")
	meta := verb.Pairs(f, "meta", "metadata `key=value` of the intention; repeatable")
	return func(c *verb.Call) error {
		if *allow && *deny {
			return verb.Errorf("Only one of -allow or -deny may be specified.")
		}
		action := api.IntentionActionAllow
		if *deny {
			action = api.IntentionActionDeny
		}
		var all []*api.Intention
		var err error
		if *file {
			all, err = fromFiles(c.Args)
		} else {
			all, err = fromArgs(c.Args, action, *meta)
		}
		if err != nil {
			return verb.Errorf("Error: %w", err)
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		for _, i := range all {
			if err := write(c, client.Connect(), i, *replace); err != nil {
				return err
			}
		}
		return nil
	}
}

func fromArgs(args []string, action api.IntentionAction, meta map[string]string) ([]*api.Intention, error) {
	if len(args) != 2 {
		return nil, verb.Errorf("Must specify two arguments: source and destination")
	}
	i, err := build(args[0], args[1])
	if err != nil {
		return nil, err
	}
	i.Action, i.Meta = action, meta
	return []*api.Intention{i}, nil
}

func fromFiles(paths []string) ([]*api.Intention, error) {
	if len(paths) == 0 {
		return nil, verb.Errorf("Must specify at least one file")
	}
	var out []*api.Intention
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		i := new(api.Intention)
		if err := json.Unmarshal(data, i); err != nil {
			return nil, verb.Errorf("parse %s: %w", path, err)
		}
		if len(i.Permissions) > 0 {
			return nil, verb.Errorf("cannot create L7 intention from file %q using this CLI; use 'sarn config write' instead", path)
		}
		out = append(out, i)
	}
	return out, nil
}

// write creates an intention, or replaces the one for the same source and destination, and says so.
func write(c *verb.Call, connect *api.Connect, i *api.Intention, replace bool) error {
	if replace {
		old, _, err := connect.IntentionGetExact(i.SourceString(), i.DestinationString(), c.Query())
		if err != nil {
			return verb.Errorf("Error looking up existing intention: %w", err)
		}
		if old != nil {
			if i.ID = old.ID; i.ID != "" { // it keeps its ID
				//lint:ignore SA1019 the exact endpoint drops IDs
				_, err = connect.IntentionUpdate(i, c.Write())
			} else {
				_, err = connect.IntentionUpsert(i, c.Write())
			}
			if err != nil {
				return verb.Errorf("Error replacing intention with source %q and destination %q: %w", i.SourceString(), i.DestinationString(), err)
			}
			return nil
		}
	}
	//lint:ignore SA1019 the exact endpoint would replace silently
	_, _, err := connect.IntentionCreate(i, c.Write())
	if err != nil && strings.Contains(err.Error(), "legacy intention API") {
		// The destination's intentions are kept in a configuration entry, which only the exact endpoint adds to.
		old, _, lookup := connect.IntentionGetExact(i.SourceString(), i.DestinationString(), c.Query())
		if lookup == nil && old == nil {
			_, err = connect.IntentionUpsert(i, c.Write())
		}
	}
	if err != nil {
		return verb.Errorf("Error creating intention %q: %w", i, err)
	}
	c.Printf("Created: %s\n", i)
	return nil
}

// find looks an intention up by two names or one ID.
func find(c *verb.Call, connect *api.Connect) (*api.Intention, error) {
	switch len(c.Args) {
	case 1:
		//lint:ignore SA1019 the command takes IDs
		i, _, err := connect.IntentionGet(c.Args[0], c.Query())
		if err != nil {
			return nil, verb.Errorf("Error reading the intention: %w", err)
		}
		if i == nil {
			return nil, verb.Errorf("Intention not found with ID %q", c.Args[0])
		}
		return i, nil
	case 2:
		named, err := build(c.Args[0], c.Args[1])
		if err != nil {
			return nil, err
		}
		i, _, err := connect.IntentionGetExact(named.SourceString(), named.DestinationString(), c.Query())
		if err != nil {
			return nil, verb.Errorf("Error: %w", err)
		}
		if i == nil {
			return nil, verb.Errorf("Intention not found with source %q and destination %q", c.Args[0], c.Args[1])
		}
		return i, nil
	}
	return nil, verb.Errorf("command requires exactly 1 or 2 arguments")
}

func get(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		i, err := find(c, client.Connect())
		if err != nil {
			return err
		}
		if c.WantsJSON() {
			return c.PrintJSON(i)
		}
		rows := [][]string{{"Source:", i.SourceString()}, {"Destination:", i.DestinationString()}}
		if i.Action != "" {
			rows = append(rows, []string{"Action:", string(i.Action)})
		}
		if i.ID != "" {
			rows = append(rows, []string{"ID:", i.ID})
		}
		if i.Description != "" {
			rows = append(rows, []string{"Description:", i.Description})
		}
		for _, k := range slices.Sorted(maps.Keys(i.Meta)) {
			rows = append(rows, []string{fmt.Sprintf("Meta[%s]:", k), i.Meta[k]})
		}
		rows = append(rows, []string{"Created At:", i.CreatedAt.Local().Format(time.RFC850)})
		c.Printf("%s", verb.Table(rows))
		if len(i.Permissions) > 0 {
			text, err := json.MarshalIndent(i.Permissions, "", "   ")
			if err != nil {
				return verb.Errorf("Error encoding permissions: %w", err)
			}
			c.Printf("Permissions:\n%s\n", text)
		}
		return nil
	}
}

func list(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		if err := c.NoArgs(); err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		all, _, err := client.Connect().Intentions(c.Query())
		if err != nil {
			return verb.Errorf("Failed to retrieve the intentions list: %w", err)
		}
		if len(all) == 0 {
			return verb.Exit(2, verb.Errorf("There are no intentions."))
		}
		if c.WantsJSON() {
			return c.PrintJSON(all)
		}
		rows := [][]string{{"ID", "Source", "Action", "Destination", "Precedence"}}
		for _, i := range all {
			rows = append(rows, []string{i.ID, i.SourceString(), string(i.Action), i.DestinationString(), fmt.Sprint(i.Precedence)})
		}
		c.Printf("%s", verb.Table(rows))
		return nil
	}
}

func check(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		if len(c.Args) != 2 {
			return verb.Exit(2, verb.Errorf("Error: command requires exactly two arguments: src and dst"))
		}
		client, err := c.API()
		if err != nil {
			return verb.Exit(2, err)
		}
		allowed, _, err := client.Connect().IntentionCheck(&api.IntentionCheck{
			Source: c.Args[0], Destination: c.Args[1], SourceType: api.IntentionSourceConsul,
		}, c.Query())
		if err != nil {
			return verb.Exit(2, verb.Errorf("Error checking the connection: %w", err))
		}
		if !allowed {
			c.Println("Denied")
			return verb.Exit(1, nil)
		}
		c.Println("Allowed")
		return nil
	}
}

func match(f *flag.FlagSet) func(*verb.Call) error {
	source := f.Bool("source", false, "match NAME as the source")
	destination := f.Bool("destination", false, "match NAME as the destination; the default")
	return func(c *verb.Call) error {
		switch {
		case len(c.Args) != 1:
			return verb.Errorf("Error: command requires exactly one argument: src or dst")
		case *source && *destination:
			return verb.Errorf("Error: only one of -source or -destination may be specified")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		by := api.IntentionMatchDestination
		if *source {
			by = api.IntentionMatchSource
		}
		found, _, err := client.Connect().IntentionMatch(&api.IntentionMatch{By: by, Names: c.Args}, c.Query())
		if err != nil {
			return verb.Errorf("Error matching the connection: %w", err)
		}
		if c.WantsJSON() {
			return c.PrintJSON(found[c.Args[0]])
		}
		for _, i := range found[c.Args[0]] {
			c.Println(i)
		}
		return nil
	}
}

func del(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		switch len(c.Args) {
		case 1:
			//lint:ignore SA1019 the command takes IDs
			_, err = client.Connect().IntentionDelete(c.Args[0], c.Write())
		case 2:
			named, bad := build(c.Args[0], c.Args[1])
			if bad != nil {
				return bad
			}
			_, err = client.Connect().IntentionDeleteExact(named.SourceString(), named.DestinationString(), c.Write())
		default:
			return verb.Errorf("command requires exactly 1 or 2 arguments")
		}
		if err != nil {
			return verb.Errorf("Error deleting the intention: %w", err)
		}
		c.Println("Intention deleted.")
		return nil
	}
}
