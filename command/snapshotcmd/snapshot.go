// Package snapshotcmd holds the commands that save, restore and look into snapshots of the servers' state.
package snapshotcmd

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/hashicorp/raft"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/version"
	"github.com/sarnmesh/sarn/server/snapshot"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{
		{Path: "snapshot", Synopsis: "Save and restore the state of the servers"},
		{
			Path: "snapshot save", Args: "FILE", Synopsis: "Save the state to a file", Client: true, Server: true, Setup: save,
			Help: "Saves the state of the servers to FILE once it was verified. FILE appears only when it is whole.",
		},
		{
			Path: "snapshot restore", Args: "FILE", Synopsis: "Restore the state from a file", Client: true, Server: true, Setup: restore,
			Help: "Replaces the state of the servers by the one saved in FILE.",
		},
		{
			Path: "snapshot inspect", Args: "FILE", Synopsis: "Print what a snapshot holds", Setup: inspect,
			Help: "Prints the metadata of a snapshot and how much of what it holds. FILE is a saved archive or the state.bin of a " +
				"server's own snapshot.",
		},
		{
			Path: "snapshot verify", Args: "FILE", Synopsis: "Check that a snapshot is whole", Setup: verify,
			Help: "Reads a snapshot to its end, checks it and every record of it, and changes nothing. FILE is as for inspect.",
		},
		{
			Path: "snapshot decode", Args: "FILE", Synopsis: "Print the records of a snapshot", Setup: decode,
			Help: "Prints every record of a snapshot as a line of JSON. Secrets are among them. FILE is as for inspect.",
		},
	}
}

// oneFile is the only argument of each command.
func oneFile(c *verb.Call) (string, error) {
	switch len(c.Args) {
	case 0:
		return "", verb.Errorf("Missing FILE argument")
	case 1:
		return c.Args[0], nil
	}
	return "", verb.Errorf("Too many arguments (expected 1, got %d)", len(c.Args))
}

func save(f *flag.FlagSet) func(*verb.Call) error {
	add := f.String("append-filename", "", "comma-separated `parts` to add to the file's name: version, dc")
	return func(c *verb.Call) error {
		file, err := oneFile(c)
		if err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		if *add != "" {
			self, err := client.Agent().Self()
			if err != nil {
				return verb.Errorf("Error querying agent: %w", err)
			}
			if file, err = appendParts(file, *add, fmt.Sprint(self["Config"]["Datacenter"])); err != nil {
				return err
			}
		}
		stream, _, err := client.Snapshot().Save(c.Query())
		if err != nil {
			return verb.Errorf("Error saving snapshot: %w", err)
		}
		defer stream.Close()
		watched, done := c.Progress("Saving the snapshot", stream)
		meta, err := keep(watched, file)
		done()
		if err != nil {
			return err
		}
		c.Printf("Saved and verified snapshot to index %d\n", meta.Index)
		return nil
	}
}

// appendParts puts facts between the name and the extension of a file.
func appendParts(file, parts, dc string) (string, error) {
	ext := filepath.Ext(file)
	name := strings.TrimSuffix(file, ext)
	for part := range strings.SplitSeq(parts, ",") {
		switch strings.TrimSpace(part) {
		case "version":
			name += "-" + version.Version
		case "dc":
			name += "-" + dc
		case "":
		default:
			return "", verb.Errorf("Unknown part for -append-filename: %s", part)
		}
	}
	return name + ext, nil
}

// keep writes a snapshot beside the file, verifies what was written and gives it its name.
func keep(stream io.Reader, file string) (*raft.SnapshotMeta, error) {
	unverified := file + ".unverified"
	out, err := os.OpenFile(unverified, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, verb.Errorf("Error creating snapshot file: %w", err)
	}
	defer out.Close()
	if _, err := io.Copy(out, stream); err != nil {
		return nil, verb.Errorf("Error writing snapshot file: %w", err)
	}
	if err := out.Sync(); err != nil {
		return nil, verb.Errorf("Error writing snapshot file: %w", err)
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return nil, verb.Errorf("Error reading snapshot file: %w", err)
	}
	meta, err := snapshot.Verify(out)
	if err != nil {
		return nil, verb.Errorf("Error verifying snapshot file %s: %w", unverified, err)
	}
	if err := os.Rename(unverified, file); err != nil {
		return nil, verb.Errorf("Error renaming %q to %q: %w", unverified, file, err)
	}
	return meta, nil
}

func restore(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		file, err := oneFile(c)
		if err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		in, err := os.Open(file)
		if err != nil {
			return verb.Errorf("Error opening snapshot file: %w", err)
		}
		defer in.Close()
		watched, done := c.Progress("Restoring the snapshot", in)
		err = client.Snapshot().Restore(c.Write(), watched)
		done()
		if err != nil {
			return verb.Errorf("Error restoring snapshot: %w", err)
		}
		c.Println("Restored snapshot")
		return nil
	}
}

// A figure counts the records of one type, or below one key prefix.
type figure struct {
	Name  string
	Sum   int // bytes
	Count int
}

// A report is what inspect finds.
type report struct {
	Meta        meta
	Stats       []figure
	StatsKV     []figure
	TotalSize   int
	TotalSizeKV int
}

// meta is what inspect tells about a snapshot as a whole.
type meta struct {
	ID      string
	Size    int64
	Index   uint64
	Term    uint64
	Version raft.SnapshotVersion
}

// typeNames are the names of tables in reports, where those of the reference product differ from the table's.
var typeNames = map[string]string{
	"kv": "KVS", "node": "Node", "service": "Service", "check": "Check", "session": "Session", "tombstone": "Tombstone",
	"coordinate": "CoordinateBatchUpdate", "entry": "ConfigEntry", "index": "Index", "ca-root": "ConnectCA",
	"ca-config": "ConnectCAConfig", "ca-provider": "ConnectCAProviderState", "virtual-ip": "ServiceVirtualIP",
	"virtual-ip-slot": "FreeVirtualIP", "fact": "SystemMetadata",
}

func inspect(f *flag.FlagSet) func(*verb.Call) error {
	details := f.Bool("kvdetails", false, "count keys by prefix too")
	depth := f.Int("kvdepth", 2, "`parts` of a key that make a prefix")
	filter := f.String("kvfilter", "", "`prefix` of the keys to count")
	format := f.String("format", "pretty", "`form` of the output: pretty or json")
	return func(c *verb.Call) error {
		file, err := oneFile(c)
		if err != nil {
			return err
		}
		if *format != "pretty" && *format != "json" {
			return verb.Errorf("Unknown format: %s", *format)
		}
		found, err := examine(file, *details, *depth, *filter)
		if err != nil {
			return err
		}
		if *format == "json" {
			text, err := json.MarshalIndent(found, "", "   ")
			if err != nil {
				return verb.Errorf("Error encoding report: %w", err)
			}
			c.Println(string(text))
			return nil
		}
		c.Printf("%s", found.text(*details))
		return nil
	}
}

// walk reads an archive, or the state of a server's own snapshot with its metadata beside it. The whole archive is verified
// before begin is told of the metadata, and each of the records, whose data it may not keep.
func walk(file string, begin func(meta) error, each func(table string, data []byte) error) error {
	in, err := os.Open(file)
	if err != nil {
		return verb.Errorf("Error opening snapshot file: %w", err)
	}
	defer in.Close()
	var about meta
	records := in
	if filepath.Base(file) == "state.bin" {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(file), "meta.json"))
		if err != nil {
			return verb.Errorf("Error reading snapshot: %w", err)
		}
		if err := json.Unmarshal(data, &about); err != nil {
			return verb.Errorf("Error reading snapshot: meta.json: %w", err)
		}
	} else {
		tmp, err := os.CreateTemp("", "sarn-snapshot-")
		if err != nil {
			return verb.Errorf("Error reading snapshot: %w", err)
		}
		defer os.Remove(tmp.Name())
		defer tmp.Close()
		m, err := snapshot.Read(in, tmp)
		if err != nil {
			return verb.Errorf("Error reading snapshot: %w", err)
		}
		if _, err := tmp.Seek(0, io.SeekStart); err != nil {
			return verb.Errorf("Error reading snapshot: %w", err)
		}
		about, records = meta{m.ID, m.Size, m.Index, m.Term, m.Version}, tmp
	}
	if err := begin(about); err != nil {
		return err
	}
	if err := state.Records(records, each); err != nil {
		return verb.Errorf("Error reading snapshot: %w", err)
	}
	return nil
}

// examine counts the records of a snapshot.
func examine(file string, details bool, depth int, filter string) (*report, error) {
	found := &report{}
	types, keys := map[string]*figure{}, map[string]*figure{}
	err := walk(file, func(m meta) error {
		found.Meta = m
		return nil
	}, func(table string, data []byte) error {
		add(types, cmp.Or(typeNames[table], table), len(data))
		if !details || table != "kv" {
			return nil
		}
		var e kv.Entry
		if err := rpc.Unmarshal(bytes.Clone(data), &e); err != nil {
			return fmt.Errorf("key record: %w", err)
		}
		if strings.HasPrefix(e.Key, filter) {
			parts := strings.Split(e.Key, "/")
			add(keys, strings.Join(parts[:min(max(depth, 1), len(parts))], "/"), len(data))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	found.Stats, found.TotalSize = sorted(types)
	found.StatsKV, found.TotalSizeKV = sorted(keys)
	return found, nil
}

func verify(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		file, err := oneFile(c)
		if err != nil {
			return err
		}
		var about meta
		records := 0
		err = walk(file, func(m meta) error {
			about = m
			return nil
		}, func(string, []byte) error {
			records++
			return nil
		})
		if err != nil {
			return err
		}
		c.Printf("Verified snapshot to index %d: %d records\n", about.Index, records)
		return nil
	}
}

// A line is what decode prints of a record.
type line struct {
	Data any
	Type string
}

func decode(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		file, err := oneFile(c)
		if err != nil {
			return err
		}
		print := func(l line) error {
			text, err := json.Marshal(l)
			if err != nil {
				return verb.Errorf("Error encoding record: %w", err)
			}
			c.Println(string(text))
			return nil
		}
		return walk(file, func(m meta) error {
			return print(line{struct{ LastIndex uint64 }{m.Index}, "SnapshotHeader"})
		}, func(table string, data []byte) error {
			var record any
			if err := rpc.Unmarshal(bytes.Clone(data), &record); err != nil {
				return fmt.Errorf("record of %s: %w", table, err)
			}
			return print(line{record, cmp.Or(typeNames[table], table)})
		})
	}
}

func add(to map[string]*figure, name string, size int) {
	if to[name] == nil {
		to[name] = &figure{Name: name}
	}
	to[name].Sum += size
	to[name].Count++
}

// sorted lists figures by size, the largest first, with their sum.
func sorted(m map[string]*figure) ([]figure, int) {
	out, total := []figure{}, 0
	for _, f := range m {
		out = append(out, *f)
		total += f.Sum
	}
	slices.SortFunc(out, func(a, b figure) int { return cmp.Or(cmp.Compare(b.Sum, a.Sum), cmp.Compare(a.Name, b.Name)) })
	return out, total
}

// text lays the report out for people.
func (r *report) text(details bool) string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 8, 8, 6, ' ', 0)
	fmt.Fprintf(w, " ID\t%s\n Size\t%d\n Index\t%d\n Term\t%d\n Version\t%d\n", r.Meta.ID, r.Meta.Size, r.Meta.Index, r.Meta.Term, r.Meta.Version)
	w.Flush()
	table := func(title string, rows []figure, total int) {
		fmt.Fprintf(&b, "\n")
		fmt.Fprintf(w, " %s\tCount\tSize\n %s\t%s\t%s\n", title, strings.Repeat("-", 4), strings.Repeat("-", 4), strings.Repeat("-", 4))
		for _, f := range rows {
			fmt.Fprintf(w, " %s\t%d\t%s\n", f.Name, f.Count, bytesText(f.Sum))
		}
		fmt.Fprintf(w, " %s\t%s\t%s\n Total\t\t%s\n", strings.Repeat("-", 4), strings.Repeat("-", 4), strings.Repeat("-", 4), bytesText(total))
		w.Flush()
	}
	table("Type", r.Stats, r.TotalSize)
	if details {
		table("Key Name", r.StatsKV, r.TotalSizeKV)
	}
	return b.String()
}

// bytesText shows a size in the largest unit that leaves a whole part.
func bytesText(n int) string {
	size, units := float64(n), []string{"B", "KB", "MB", "GB", "TB"}
	i := 0
	for size >= 1024 && i < len(units)-1 {
		size /= 1024
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%dB", n)
	}
	return fmt.Sprintf("%.1f%s", size, units[i])
}
