// Package configcmd holds the commands that read and write configuration entries.
package configcmd

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	common := func(v verb.Verb) verb.Verb {
		v.Client, v.Server, v.Tenancy = true, true, true
		return v
	}
	return []verb.Verb{
		{Path: "config", Synopsis: "Read and write the configuration of services and the mesh"},
		common(verb.Verb{
			Path: "config write", Args: "FILE", Synopsis: "Write a configuration entry", Setup: write,
			Help: "Writes the entry in an HCL or JSON file; - is standard input.",
		}),
		common(verb.Verb{Path: "config read", Synopsis: "Print a configuration entry", Setup: read}),
		common(verb.Verb{Path: "config list", Synopsis: "List the configuration entries of a kind", Setup: list, Formats: true}),
		common(verb.Verb{
			Path: "config delete", Synopsis: "Delete a configuration entry", Setup: del,
			Help: "Deletes the entry that -kind and -name, or the file of -filename, name.",
		}),
		{Path: "config test", Args: "FILE...", Synopsis: "Test what configuration entries do to requests", FlagExit: 2, Help: testHelp, Setup: test},
	}
}

// A document is an entry as the client library takes it. It is sent as it was written: decoding it here only finds
// mistakes early.
type document struct {
	entry.Entry
	written map[string]any
}

var _ api.ConfigEntry = document{}

func (d document) GetKind() string            { return string(d.Head().Kind) }
func (d document) GetName() string            { return entry.KeyOf(d.Entry).Name }
func (d document) GetPartition() string       { return "" }
func (d document) GetNamespace() string       { return "" }
func (d document) GetMeta() map[string]string { return d.Head().Meta }
func (d document) GetCreateIndex() uint64     { return 0 }
func (d document) GetModifyIndex() uint64     { return 0 }

// MarshalJSON encodes what was written.
func (d document) MarshalJSON() ([]byte, error) { return json.Marshal(d.written) }

// load reads the entry in a file.
func load(c *verb.Call, file string) (document, error) {
	text, err := c.File(file)
	if err != nil {
		return document{}, verb.Errorf("Failed to load data: %w", err)
	}
	doc, err := config.ParseDocument(file, []byte(text))
	if err == nil {
		var e entry.Entry
		if e, err = entry.Decode(doc); err == nil {
			return document{e, doc}, nil
		}
	}
	return document{}, verb.Errorf("Failed to decode config entry input: %w", err)
}

func write(f *flag.FlagSet) func(*verb.Call) error {
	cas := f.Bool("cas", false, "write only if the entry was last changed at -modify-index")
	index := f.Uint64("modify-index", 0, "`index` for -cas; 0 writes only an entry that does not exist")
	return func(c *verb.Call) error {
		if len(c.Args) != 1 {
			return verb.Errorf("Must provide exactly one positional argument to specify the config entry to write")
		}
		e, err := load(c, c.Args[0])
		if err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		written := false
		if *cas {
			written, _, err = client.ConfigEntries().CAS(e, *index, c.Write())
		} else {
			written, _, err = client.ConfigEntries().Set(e, c.Write())
		}
		switch name := e.GetKind() + "/" + e.GetName(); {
		case err != nil:
			return verb.Errorf("Error writing config entry %s: %w", name, err)
		case !written:
			return verb.Errorf("Config entry not updated: %s", name)
		default:
			c.Printf("Config entry written: %s\n", name)
		}
		return nil
	}
}

func read(f *flag.FlagSet) func(*verb.Call) error {
	kind := f.String("kind", "", "`kind` of the entry; required")
	name := f.String("name", "", "`name` of the entry; required")
	return func(c *verb.Call) error {
		switch {
		case *kind == "":
			return verb.Errorf("Must specify the -kind parameter")
		case *name == "":
			return verb.Errorf("Must specify the -name parameter")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		var raw json.RawMessage
		if _, err := client.Raw().Query(fmt.Sprintf("/v1/config/%s/%s", *kind, *name), &raw, c.Query()); err != nil {
			return verb.Errorf("Error reading config entry %s/%s: %w", *kind, *name, err)
		}
		text, err := arrange(raw)
		if err != nil {
			return verb.Errorf("Error decoding config entry %s/%s: %w", *kind, *name, err)
		}
		c.Println(text)
		return nil
	}
}

// arrange indents a JSON object with its Kind and Name first, so that it reads from the top.
func arrange(raw []byte) (string, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return "", fmt.Errorf("not an object: %w", err)
	}
	var first [2]string
	var rest []string
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return "", err
		}
		key, _ := t.(string)
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return "", err
		}
		quoted, err := json.Marshal(key)
		if err != nil {
			return "", err
		}
		member := string(quoted) + ":" + string(value)
		switch key {
		case "Kind":
			first[0] = member
		case "Name":
			first[1] = member
		default:
			rest = append(rest, member)
		}
	}
	if _, err := dec.Token(); err != nil && err != io.EOF {
		return "", err
	}
	var joined, out bytes.Buffer
	joined.WriteByte('{')
	for i, m := range append(first[:], rest...) {
		if m == "" {
			continue
		}
		if i > 0 && joined.Len() > 1 {
			joined.WriteByte(',')
		}
		joined.WriteString(m)
	}
	joined.WriteByte('}')
	err := json.Indent(&out, joined.Bytes(), "", "    ")
	return out.String(), err
}

func list(f *flag.FlagSet) func(*verb.Call) error {
	kind := f.String("kind", "", "`kind` of the entries; required")
	filter := f.String("filter", "", "`expression` that entries must match")
	return func(c *verb.Call) error {
		if *kind == "" {
			return verb.Errorf("Must specify the -kind parameter")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		q := c.Query()
		q.Filter = *filter
		var entries []struct{ Name string }
		if _, err := client.Raw().Query("/v1/config/"+*kind, &entries, q); err != nil {
			return verb.Errorf("Error listing config entries for kind %q: %w", *kind, err)
		}
		if c.WantsJSON() {
			names := []string{}
			for _, e := range entries {
				names = append(names, e.Name)
			}
			return c.PrintJSON(names)
		}
		for _, e := range entries {
			c.Println(e.Name)
		}
		return nil
	}
}

func del(f *flag.FlagSet) func(*verb.Call) error {
	kind := f.String("kind", "", "`kind` of the entry")
	name := f.String("name", "", "`name` of the entry")
	file := f.String("filename", "", "`file` with the entry, in place of -kind and -name")
	cas := f.Bool("cas", false, "delete only if the entry was last changed at -modify-index")
	index := f.Uint64("modify-index", 0, "`index` for -cas")
	return func(c *verb.Call) error {
		switch {
		case *file != "" && (*kind != "" || *name != ""):
			return verb.Errorf("filename can't be used with kind or name")
		case *file == "" && *kind == "":
			return verb.Errorf("Must specify the -kind or -filename parameter")
		case *file == "" && *name == "":
			return verb.Errorf("Must specify the -name parameter")
		case *cas && *index == 0:
			return verb.Errorf("Must specify a -modify-index greater than 0 with -cas")
		case !*cas && *index != 0:
			return verb.Errorf("Cannot specify -modify-index without -cas")
		}
		if *file != "" {
			e, err := load(c, *file)
			if err != nil {
				return err
			}
			*kind, *name = e.GetKind(), e.GetName()
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		deleted := true
		if *cas {
			deleted, _, err = client.ConfigEntries().DeleteCAS(*kind, *name, *index, c.Write())
		} else {
			_, err = client.ConfigEntries().Delete(*kind, *name, c.Write())
		}
		switch {
		case err != nil:
			return verb.Errorf("Error deleting config entry %s/%s: %w", *kind, *name, err)
		case !deleted:
			return verb.Errorf("Config entry not deleted: %s/%s", *kind, *name)
		}
		c.Printf("Config entry deleted: %s/%s\n", *kind, *name)
		return nil
	}
}
