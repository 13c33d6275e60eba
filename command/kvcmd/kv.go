// Package kvcmd holds the commands that read and write the key/value store.
package kvcmd

import (
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"strings"
	"text/tabwriter"

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
		{Path: "kv", Synopsis: "Read and write the key/value store"},
		common(verb.Verb{
			Path: "kv get", Args: "[KEY]", Synopsis: "Read a key, or all keys below one", Setup: get, Formats: true,
			Help: "Prints the value stored at KEY. With -recurse, prints key:value for every key that begins with KEY; with -keys, only\n" +
				"the names, up to the next separator.",
		}),
		common(verb.Verb{
			Path: "kv put", Args: "KEY [DATA]", Synopsis: "Write a key", Setup: put,
			Help: "Stores DATA at KEY. DATA may be - for standard input or @FILE for the content of a file; without it the value is\nempty. " +
				"With -acquire or -release, locks or unlocks the key for -session.",
		}),
		common(verb.Verb{
			Path: "kv delete", Args: "[KEY]", Synopsis: "Delete a key, or all keys below one", Setup: del,
			Help: "Deletes KEY. With -recurse, deletes every key that begins with it.",
		}),
		common(verb.Verb{
			Path: "kv export", Args: "[PREFIX]", Synopsis: "Print keys and values as JSON", Setup: export,
			Help: "Prints a JSON array of the keys that begin with PREFIX, which kv import reads. Values are base64.",
		}),
		common(verb.Verb{
			Path: "kv import", Args: "DATA", Synopsis: "Write keys from JSON", Setup: imports,
			Help: "Writes the keys of a JSON array as kv export prints it. DATA may be - for standard input or @FILE for a file.",
		}),
	}
}

func get(f *flag.FlagSet) func(*verb.Call) error {
	b64 := f.Bool("base64", false, "print values in base64")
	detailed := f.Bool("detailed", false, "print everything known about each key")
	keys := f.Bool("keys", false, "print only the names of keys")
	recurse := f.Bool("recurse", false, "print every key that begins with KEY")
	separator := f.String("separator", "/", "`text` up to which -keys prints names")
	return func(c *verb.Call) error {
		key := ""
		switch {
		case len(c.Args) > 1:
			return verb.Errorf("Too many arguments (expected 1, got %d)", len(c.Args))
		case len(c.Args) == 1:
			key = strings.TrimPrefix(c.Args[0], "/")
		case !*keys && !*recurse:
			return verb.Errorf("Error! Missing KEY argument")
		}
		if key == "" && !*keys && !*recurse {
			return verb.Errorf("Error! Missing KEY argument")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		switch {
		case *keys:
			names, _, err := client.KV().Keys(key, *separator, c.Query())
			if err != nil {
				return verb.Errorf("Error querying Sarn agent: %w", err)
			}
			if c.WantsJSON() {
				return c.PrintJSON(names)
			}
			for _, n := range names {
				c.Println(n)
			}
		case *recurse:
			pairs, _, err := client.KV().List(key, c.Query())
			if err != nil {
				return verb.Errorf("Error querying Sarn agent: %w", err)
			}
			if c.WantsJSON() {
				return c.PrintJSON(pairs)
			}
			for i, p := range pairs {
				if *detailed {
					if i > 0 {
						c.Println()
					}
					describe(c, p, *b64)
					continue
				}
				c.Printf("%s:%s\n", p.Key, value(p, *b64))
			}
		default:
			pair, _, err := client.KV().Get(key, c.Query())
			switch {
			case err != nil:
				return verb.Errorf("Error querying Sarn agent: %w", err)
			case pair == nil:
				return verb.Errorf("Error! No key exists at: %s", key)
			case c.WantsJSON():
				return c.PrintJSON(pair)
			case *detailed:
				describe(c, pair, *b64)
			default:
				c.Println(value(pair, *b64))
			}
		}
		return nil
	}
}

func value(p *api.KVPair, b64 bool) string {
	if b64 {
		return base64.StdEncoding.EncodeToString(p.Value)
	}
	return string(p.Value)
}

func describe(c *verb.Call, p *api.KVPair, b64 bool) {
	session := p.Session
	if session == "" {
		session = "-"
	}
	w := tabwriter.NewWriter(c.Out, 0, 2, 6, ' ', 0)
	fmt.Fprintf(w, "CreateIndex\t%d\nFlags\t%d\nKey\t%s\nLockIndex\t%d\nModifyIndex\t%d\nSession\t%s\nValue\t%s\n",
		p.CreateIndex, p.Flags, p.Key, p.LockIndex, p.ModifyIndex, session, value(p, b64))
	w.Flush()
}

func put(f *flag.FlagSet) func(*verb.Call) error {
	b64 := f.Bool("base64", false, "DATA is base64 and stored decoded")
	cas := f.Bool("cas", false, "write only if the key was last changed at -modify-index")
	index := f.Uint64("modify-index", 0, "`index` for -cas; 0 writes only a key that does not exist")
	flags := f.Uint64("flags", 0, "`number` stored with the key for its users")
	session := f.String("session", "", "`ID` of a session")
	acquire := f.Bool("acquire", false, "lock the key for -session")
	release := f.Bool("release", false, "unlock the key")
	return func(c *verb.Call) error {
		switch {
		case len(c.Args) == 0:
			return verb.Errorf("Error! Missing KEY argument")
		case len(c.Args) > 2:
			return verb.Errorf("Error! Too many arguments (expected 1 or 2, got %d)", len(c.Args))
		case c.Args[0] == "":
			return verb.Errorf("Error! Missing KEY argument")
		case strings.HasPrefix(c.Args[0], "/"):
			return verb.Errorf("Invalid key. Key must not begin with a '/': %s", c.Args[0])
		case *session == "" && (*acquire || *release):
			return verb.Errorf("Error! Missing -session (required with -acquire and -release)")
		}
		data := ""
		if len(c.Args) == 2 {
			var err error
			if data, err = c.Data(c.Args[1]); err != nil {
				return verb.Errorf("Error! %w", err)
			}
		}
		pair := &api.KVPair{Key: c.Args[0], ModifyIndex: *index, Flags: *flags, Value: []byte(data), Session: *session}
		if *b64 {
			decoded, err := base64.StdEncoding.DecodeString(data)
			if err != nil {
				return verb.Errorf("Error! Cannot base 64 decode data: %w", err)
			}
			pair.Value = decoded
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		return store(c, client.KV(), pair, *cas, *acquire, *release)
	}
}

// store writes a pair in the way asked for and says how it went.
func store(c *verb.Call, kv *api.KV, pair *api.KVPair, cas, acquire, release bool) error {
	write := func(pair *api.KVPair, o *api.WriteOptions) (bool, *api.WriteMeta, error) {
		meta, err := kv.Put(pair, o)
		return true, meta, err
	}
	done, refused := "Success! Data written to: "+pair.Key, ""
	switch {
	case cas:
		write, refused = kv.CAS, fmt.Sprintf("Error! Did not write to %s: CAS failed", pair.Key)
		if pair.ModifyIndex == 0 {
			refused = fmt.Sprintf("Error! Did not write to %s: CAS performed with index=0 and key already exists.", pair.Key)
		}
	case acquire:
		write, done, refused = kv.Acquire, "Success! Lock acquired on: "+pair.Key, "Error! Did not acquire lock"
	case release:
		write, done, refused = kv.Release, "Success! Lock released on: "+pair.Key, "Error! Did not release lock"
	}
	ok, _, err := write(pair, c.Write())
	switch {
	case err != nil:
		return verb.Errorf("Error! Failed writing data: %w", err)
	case !ok:
		return verb.Errorf("%s", refused)
	}
	c.Println(done)
	return nil
}

func del(f *flag.FlagSet) func(*verb.Call) error {
	cas := f.Bool("cas", false, "delete only if the key was last changed at -modify-index")
	index := f.Uint64("modify-index", 0, "`index` for -cas")
	recurse := f.Bool("recurse", false, "delete every key that begins with KEY")
	return func(c *verb.Call) error {
		key := ""
		switch {
		case len(c.Args) > 1:
			return verb.Errorf("Too many arguments (expected 1, got %d)", len(c.Args))
		case len(c.Args) == 1:
			key = c.Args[0]
		case !*recurse:
			return verb.Errorf("Error! Missing KEY argument")
		}
		key = strings.TrimPrefix(key, "/")
		if key == "" && !*recurse {
			return verb.Errorf("Error! Missing KEY argument")
		}
		switch {
		case *cas && *recurse:
			return verb.Errorf("Cannot specify both -cas and -recurse!")
		case !*cas && *index != 0:
			return verb.Errorf("Cannot specify -modify-index without -cas!")
		case *cas && *index == 0:
			return verb.Errorf("Cannot delete a key that does not exist. Provide a -modify-index greater than than 0.")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		kv := client.KV()
		switch {
		case *recurse:
			if _, err := kv.DeleteTree(key, c.Write()); err != nil {
				return verb.Errorf("Error! Did not delete prefix %s: %w", key, err)
			}
			c.Printf("Success! Deleted keys with prefix: %s\n", key)
		case *cas:
			ok, _, err := kv.DeleteCAS(&api.KVPair{Key: key, ModifyIndex: *index}, c.Write())
			if err != nil {
				return verb.Errorf("Error! Did not delete key %s: %w", key, err)
			}
			if !ok {
				return verb.Errorf("Error! Did not delete key %s: CAS failed", key)
			}
			c.Printf("Success! Deleted key: %s\n", key)
		default:
			if _, err := kv.Delete(key, c.Write()); err != nil {
				return verb.Errorf("Error deleting key %s: %w", key, err)
			}
			c.Printf("Success! Deleted key: %s\n", key)
		}
		return nil
	}
}

// An exported entry is one key as export prints and import reads it.
type exported struct {
	Key   string `json:"key"`
	Flags uint64 `json:"flags"`
	Value string `json:"value"` // base64
}

func export(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		prefix := ""
		switch len(c.Args) {
		case 0:
		case 1:
			prefix = strings.TrimPrefix(c.Args[0], "/")
		default:
			return verb.Errorf("Too many arguments (expected 1, got %d)", len(c.Args))
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		pairs, _, err := client.KV().List(prefix, c.Query())
		if err != nil {
			return verb.Errorf("Error querying Sarn agent: %w", err)
		}
		out := make([]exported, len(pairs))
		for i, p := range pairs {
			out[i] = exported{p.Key, p.Flags, base64.StdEncoding.EncodeToString(p.Value)}
		}
		text, err := json.MarshalIndent(out, "", "\t")
		if err != nil {
			return verb.Errorf("Error exporting KV data: %w", err)
		}
		c.Println(string(text))
		return nil
	}
}

func imports(f *flag.FlagSet) func(*verb.Call) error {
	prefix := f.String("prefix", "", "`text` put before every key")
	return func(c *verb.Call) error {
		switch {
		case len(c.Args) == 0:
			return verb.Errorf("Error! Missing DATA argument")
		case len(c.Args) > 1:
			return verb.Errorf("Too many arguments (expected 1, got %d)", len(c.Args))
		case c.Args[0] == "":
			return verb.Errorf("Error! Empty DATA argument")
		}
		data, err := c.Data(c.Args[0])
		if err != nil {
			return verb.Errorf("Error! %w", err)
		}
		var entries []exported
		if err := json.Unmarshal([]byte(data), &entries); err != nil {
			return verb.Errorf("Cannot unmarshal data: %w", err)
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		for _, e := range entries {
			decoded, err := base64.StdEncoding.DecodeString(e.Value)
			if err != nil {
				return verb.Errorf("Error base 64 decoding value for key %s: %w", e.Key, err)
			}
			pair := &api.KVPair{Key: *prefix + e.Key, Flags: e.Flags, Value: decoded}
			if _, err := client.KV().Put(pair, c.Write()); err != nil {
				return verb.Errorf("Error! Failed writing data for key %s: %w", pair.Key, err)
			}
			c.Printf("Imported: %s\n", pair.Key)
		}
		return nil
	}
}
