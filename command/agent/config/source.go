// Package config turns the sources of an agent's configuration — defaults, files, flags and fragments — into Settings.
//
// A source is parsed into a tree whose values know their place, checked against the schema that the tags of Settings make
// up, and merged with the others; the merged tree is decoded once, completed and validated. Every problem found on the
// way is reported together, with file, line and column where it has them.
package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/go-sockaddr/template"
)

// Sources says where a configuration comes from and how to look at the machine. The zero value reads nothing but defaults.
type Sources struct {
	Dev       bool     // -dev
	Paths     []string // files and folders, in order: -config-file and -config-dir
	Format    string   // "hcl" or "json" to read every file as that; empty goes by extension
	Fragments []string // -hcl
	// Given is what servers told the agent (auto_config), as JSON; every other source wins over it.
	Given string

	set []setting // values from flags

	// Functions of the machine. Nil means the real one.
	LookupEnv  func(name string) (string, bool)
	Hostname   func() (string, error)
	Expand     func(template string) (string, error) // of go-sockaddr templates
	Interfaces func() ([]netip.Addr, error)          // addresses of the network interfaces
	MaxFiles   func() (uint64, error)                // limit of open files, 0 if there is none
}

// A setting is a value given by a flag.
type setting struct {
	key   string
	value *node
}

// root is the schema of everything that can be configured.
var root = schemaOf(reflect.TypeFor[document]())

// Load reads, merges and validates the sources. On error the settings are nil; warnings are returned in any case.
//
// The error is a Problems, or wraps the one problem: *FileError for what is wrong with a source as it is written,
// *KeyError for a value that is not acceptable.
func Load(src Sources) (*Settings, []string, error) {
	src = src.withDefaults()
	b := &builder{src: src, doc: &document{Settings: *defaults(src.Dev)}}
	b.tree = b.collect()
	if len(b.problems) == 0 {
		b.build()
	} else if b.readable() {
		b.buildRest()
	}
	if len(b.problems) > 0 {
		return nil, b.warnings, b.err()
	}
	b.doc.Settings.doc = b.doc
	return &b.doc.Settings, b.warnings, nil
}

func (src Sources) withDefaults() Sources {
	if src.LookupEnv == nil {
		src.LookupEnv = os.LookupEnv
	}
	if src.Hostname == nil {
		src.Hostname = os.Hostname
	}
	if src.Expand == nil {
		src.Expand = template.Parse
	}
	if src.Interfaces == nil {
		src.Interfaces = interfaceAddrs
	}
	if src.MaxFiles == nil {
		src.MaxFiles = maxFiles
	}
	return src
}

// A builder makes one Settings.
type builder struct {
	src      Sources
	tree     *node // all sources merged
	doc      *document
	warnings []string
	problems Problems
	rest     bool // what cannot be read has been told
}

func (b *builder) err() error {
	if len(b.problems) == 1 {
		return b.problems[0]
	}
	return b.problems
}

func (b *builder) warn(format string, args ...any) {
	if w := fmt.Sprintf(format, args...); !slices.Contains(b.warnings, w) {
		b.warnings = append(b.warnings, w)
	}
}

// readable reports whether all that is wrong so far are single keys, so that the others can be looked at too. Which role
// the agent has decides about too many of them.
func (b *builder) readable() bool {
	for _, p := range b.problems {
		f, ok := p.(*FileError)
		if !ok {
			return false
		}
		for _, err := range f.Errs {
			if k, ok := err.(*KeyError); !ok || k.Key == "server" {
				return false
			}
		}
	}
	return true
}

// buildRest looks for what else is wrong, in what is written: what is missing may be so because its key was misspelt.
func (b *builder) buildRest() {
	before := b.problems
	b.problems, b.rest = nil, true
	b.build()
	for _, p := range b.problems {
		if k, ok := p.(*KeyError); ok && k.Pos.File != "" {
			before = append(before, p)
		}
	}
	b.problems = before
}

// fail reports a problem with the value of a key, at the place the key was set.
func (b *builder) fail(key, format string, args ...any) {
	err := &KeyError{Key: key, Text: fmt.Sprintf(format, args...)}
	if n := b.tree.find(key); n != nil {
		err.Pos = n.pos
	}
	b.problems = append(b.problems, err)
}

// keyInText finds the key that an error of somebody else's decoder is about.
var keyInText = regexp.MustCompile(`invalid config key "([^"]+)"|invalid value for (\w+)`)

// failIn reports a problem with the item i of a list of free-form objects, at the key that the text names if it has that.
func (b *builder) failIn(key string, i int, format string, args ...any) {
	b.fail(key, format, args...)
	n := b.tree.find(key)
	if n == nil || n.shape != list || i >= len(n.list) {
		return
	}
	err := b.problems[len(b.problems)-1].(*KeyError)
	n = n.list[i]
	err.Pos = n.pos
	m := keyInText.FindStringSubmatch(err.Text)
	if m == nil {
		return
	}
	for part := range strings.SplitSeq(cmp.Or(m[1], m[2]), ".") {
		name, index, _ := strings.Cut(strings.TrimSuffix(part, "]"), "[")
		found := slices.IndexFunc(n.members, func(m member) bool { return strings.EqualFold(m.key, name) })
		if found < 0 {
			return
		}
		err.Pos, n = n.members[found].pos, n.members[found].value
		if at, bad := strconv.Atoi(index); bad == nil && n.shape == list && at < len(n.list) {
			n = n.list[at]
		}
	}
}

// has reports whether any source sets the key.
func (b *builder) has(key string) bool { return b.tree.find(key) != nil }

// collect reads all sources and merges them in order of precedence.
func (b *builder) collect() *node {
	if f := b.src.Format; f != "" && f != "hcl" && f != "json" {
		b.problems = append(b.problems, fmt.Errorf("-config-format must be either 'hcl' or 'json'"))
		return nil
	}
	tree := &node{shape: object}
	lists, scalars := &node{shape: object}, &node{shape: object}
	for _, s := range b.src.set {
		if s.value.shape == list || s.value.shape == object {
			one := &node{shape: object}
			one.put(s.key, s.value)
			lists = merge(root, lists, one)
		} else {
			scalars.put(s.key, s.value)
		}
	}
	if b.src.Given != "" {
		tree = merge(root, tree, b.source("auto_config", "json", []byte(b.src.Given)))
	}
	tree = merge(root, tree, b.modern(lists))
	for _, path := range b.src.Paths {
		for _, file := range b.files(path) {
			data, err := os.ReadFile(file.Path)
			if err != nil {
				b.problems = append(b.problems, fmt.Errorf("config: ReadFile failed on %s: %w", file.Path, err))
				continue
			}
			b.doc.Settings.Files = append(b.doc.Settings.Files, file)
			tree = merge(root, tree, b.source(file.Path, file.Format, data))
		}
	}
	tree = merge(root, tree, b.modern(scalars))
	for i, text := range b.src.Fragments {
		tree = merge(root, tree, b.source(fmt.Sprintf("flags-%d.hcl", i), "hcl", []byte(text)))
	}
	return tree
}

// source parses and checks one source.
func (b *builder) source(file, format string, data []byte) *node {
	n, err := parse(file, format, data)
	if err != nil {
		b.problems = append(b.problems, &FileError{File: file, Errs: []error{err}})
		return nil
	}
	c := &checker{}
	n = c.check(root, n, "")
	if len(c.errs) > 0 {
		b.problems = append(b.problems, &FileError{File: file, Errs: c.errs})
	}
	return b.modern(n)
}

func (b *builder) modern(n *node) *node {
	for _, w := range modernise(n) {
		b.warn("%s", w)
	}
	return n
}

// files lists what is to be read for a path: the file itself, or the configuration files of a folder by name.
func (b *builder) files(path string) []File {
	info, err := os.Stat(path)
	if err != nil {
		b.problems = append(b.problems, fmt.Errorf("config: Open failed on %s. %w", path, openError(path, err)))
		return nil
	}
	if !info.IsDir() {
		format := b.format(path)
		if format == "" {
			b.problems = append(b.problems,
				fmt.Errorf("file %s has unknown extension; must be .hcl or .json, or config format must be set", path))
			return nil
		}
		return []File{{path, format}}
	}
	entries, err := os.ReadDir(path) // sorted by name
	if err != nil {
		b.problems = append(b.problems, fmt.Errorf("config: Readdir failed on %s. %w", path, err))
		return nil
	}
	var out []File
	for _, e := range entries {
		file := filepath.Join(path, e.Name())
		info, err := os.Stat(file) // follows links
		switch {
		case err != nil:
			b.problems = append(b.problems, fmt.Errorf("config: Open failed on %s. %w", file, openError(file, err)))
		case info.IsDir():
		case b.format(file) == "":
			b.warn("skipping file %s, extension must be .hcl or .json, or config format must be set", file)
		default:
			out = append(out, File{file, b.format(file)})
		}
	}
	return out
}

// openError tells a failed look at a file as a failure to open it, which is what it means here.
func openError(path string, err error) error {
	if p, ok := err.(*os.PathError); ok {
		return &os.PathError{Op: "open", Path: path, Err: p.Err}
	}
	return err
}

// format is how to read a file, empty if it is not a configuration file.
func (b *builder) format(path string) string {
	if b.src.Format != "" {
		return b.src.Format
	}
	switch strings.ToLower(filepath.Ext(path)) {
	case ".hcl":
		return "hcl"
	case ".json":
		return "json"
	}
	return ""
}
