package main

import (
	"fmt"
	"go/ast"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/command/agent/config"
)

// A key is one configuration key.
type key struct {
	name    string
	kind    string   // in words
	path    []string // the fields of config.Settings that lead to it, nil for keys that are worked on first
	comment string   // what the code says about it
	reload  bool
	secret  bool
	use     string // the key that replaces this old one
	paid    bool   // of the reference product's paid edition
	ignored bool
	flag    string
	usage   string // of the flag
}

// keys reads the configuration keys from the tags of the settings.
func keys(root string) ([]*key, error) {
	files, err := parseFolder(filepath.Join(root, "command/agent/config"))
	if err != nil {
		return nil, err
	}
	types := structs(files)
	var found []*key
	var walk func(s *ast.StructType, path []string, prefix string, reload bool)
	walk = func(s *ast.StructType, path []string, prefix string, reload bool) {
		for _, f := range s.Fields.List {
			if len(f.Names) == 0 {
				continue
			}
			var tag reflect.StructTag
			if f.Tag != nil {
				text, _ := strconv.Unquote(f.Tag.Value)
				tag = reflect.StructTag(text)
			}
			name := tag.Get("key")
			reload := reload || tag.Get("reload") == "yes"
			here := append(slices.Clone(path), f.Names[0].Name)
			if id, ok := f.Type.(*ast.Ident); ok && types[id.Name] != nil {
				if name != "" {
					name += "."
				}
				walk(types[id.Name], here, prefix+name, reload)
				continue
			}
			if name == "" {
				continue
			}
			k := &key{
				name: prefix + name, kind: kindOf(f.Type), path: here, reload: reload, secret: tag.Get("secret") == "yes",
				use: tag.Get("use"), paid: tag.Get("enterprise") != "", ignored: tag.Get("ignored") != "",
			}
			if f.Comment != nil {
				k.comment = cell(f.Comment.Text())
			} else if f.Doc != nil {
				k.comment = cell(f.Doc.Text())
			}
			found = append(found, k)
		}
	}
	walk(types["Settings"], nil, "", false)
	from := len(found)
	walk(types["written"], nil, "", false)
	for _, k := range found[from:] {
		k.path = nil
	}
	if from == 0 || len(found) == from {
		return nil, fmt.Errorf("no keys found in the settings")
	}
	addFlags(files, found)
	slices.SortFunc(found, func(a, b *key) int { return strings.Compare(a.name, b.name) })
	return found, nil
}

// kindOf says what kind of value a field holds.
func kindOf(t ast.Expr) string {
	switch t := t.(type) {
	case *ast.StarExpr:
		return kindOf(t.X)
	case *ast.SelectorExpr:
		return map[string]string{"Duration": "duration", "Prefix": "network"}[t.Sel.Name]
	case *ast.ArrayType:
		if elem := kindOf(t.Elt); elem == "string" {
			return "list of strings"
		}
		return "list of blocks"
	case *ast.MapType:
		if elem := kindOf(t.Value); elem == "string" || elem == "duration" {
			return "map of " + elem + "s"
		}
		return "block"
	case *ast.Ident:
		switch t.Name {
		case "string", "bool":
			return t.Name
		case "int", "float64":
			return "number"
		}
	}
	return "block"
}

// addFlags finds the table of flags and adds name and usage to the keys they set.
func addFlags(files []*ast.File, all []*key) {
	byName := map[string]*key{}
	for _, k := range all {
		byName[k.name] = k
	}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Names) != 1 || spec.Names[0].Name != "keyFlags" || len(spec.Values) != 1 {
				return true
			}
			for _, e := range spec.Values[0].(*ast.CompositeLit).Elts {
				row := e.(*ast.CompositeLit).Elts
				if k := byName[literal(row[1])]; k != nil {
					k.flag, k.usage = literal(row[0]), literal(row[3])
				}
			}
			return false
		})
	}
}

// literal is the value of a string literal, empty for anything else.
func literal(e ast.Expr) string {
	if l, ok := e.(*ast.BasicLit); ok {
		s, _ := strconv.Unquote(l.Value)
		return s
	}
	return ""
}

// A variant is a configuration that says nothing, and what it is for.
type variant struct {
	name     string
	settings *config.Settings
}

// variants are what defaults are taken from.
func variants() ([]variant, error) {
	var out []variant
	for _, v := range []struct {
		name, text string
		dev        bool
	}{
		{"", `data_dir = "/" bind_addr = "127.0.0.1"`, false},
		{"servers", `data_dir = "/" bind_addr = "127.0.0.1" server = true`, false},
		{"`-dev`", ``, true},
	} {
		src := config.Sources{
			Dev:       v.dev,
			Fragments: []string{v.text},
			LookupEnv: func(string) (string, bool) { return "", false },
			Hostname:  func() (string, error) { return "", nil },
			MaxFiles:  func() (uint64, error) { return 0, nil },
		}
		s, _, err := config.Load(src)
		if err != nil {
			return nil, err
		}
		out = append(out, variant{v.name, s})
	}
	return out, nil
}

// defaults says what a key is when nobody sets it.
func (k *key) defaults(of []variant) string {
	if text, ok := computed[k.name]; ok {
		return text
	}
	if k.path == nil {
		return ""
	}
	base, server := k.at(of[0].settings), k.at(of[1].settings)
	text := code(base)
	if server != base {
		text = strings.TrimPrefix(text+"; servers "+code(server), "; ")
	}
	if dev := k.at(of[2].settings); dev != server {
		text = strings.TrimPrefix(text+"; `-dev` "+code(dev), "; ")
	}
	return text
}

// at is the value of a key in some settings as it would be written, empty for the zero of what is no number or bool.
func (k *key) at(s *config.Settings) string {
	v := reflect.ValueOf(s).Elem()
	for _, name := range k.path {
		v = v.FieldByName(name)
	}
	switch x := v.Interface().(type) {
	case time.Duration:
		return short(x)
	case bool, int:
		return fmt.Sprint(x)
	case float64:
		return strings.TrimPrefix(fmt.Sprint(x), "+")
	case string:
		return x
	}
	return ""
}

// short is a duration without the parts that are zero.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// meaning says what a key is for, and what this version does not do with it.
func (k *key) meaning() string {
	text := meanings[k.name]
	if text == "" {
		text = k.comment
	}
	if text == "" {
		text = k.usage
	}
	text = sentence(text)
	if why := k.missing(); why != "" {
		text += " **" + why + "**"
	}
	if k.secret {
		text += " A secret."
	}
	return strings.TrimSpace(text)
}

// sentence begins a text with a capital and ends it with a full stop.
func sentence(s string) string {
	if s = cell(s); s == "" {
		return ""
	}
	if first, _, _ := strings.Cut(s, " "); first == strings.ToLower(first) && !strings.ContainsAny(first, "_.:`") {
		s = strings.ToUpper(s[:1]) + s[1:]
	}
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}

// missing says that this version does nothing with the key, empty if it does.
func (k *key) missing() string {
	for _, group := range absent {
		if k.in(group.keys) {
			return group.says
		}
	}
	return ""
}

// in reports whether the key is in a list of names, in which * stands for any text.
func (k *key) in(names string) bool {
	return slices.ContainsFunc(strings.Fields(names), func(name string) bool {
		ok, _ := path.Match(name, k.name)
		return ok
	})
}

// configuration makes the page of configuration keys.
func configuration(root string) (string, error) {
	all, err := keys(root)
	if err != nil {
		return "", err
	}
	of, err := variants()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString(notice)
	b.WriteString(configurationHead)
	sections := map[string][]*key{}
	var names []string
	var old, useless []*key
	for _, k := range all {
		section, _, nested := strings.Cut(k.name, ".")
		switch {
		case k.use != "":
			old = append(old, k)
			continue
		case k.paid || k.ignored:
			useless = append(useless, k)
			continue
		case !nested:
			section = ""
		case sections[section] == nil:
			names = append(names, section)
		}
		sections[section] = append(sections[section], k)
	}
	slices.Sort(names)
	for _, section := range append([]string{""}, names...) {
		title := section
		if title == "" {
			title = "Top level"
		}
		fmt.Fprintf(&b, "\n## %s\n\n| key | value | default | reload | meaning |\n| --- | --- | --- | --- | --- |\n", title)
		for _, k := range sections[section] {
			reload := ""
			if k.reload && k.missing() == "" {
				reload = "yes"
			}
			text := k.meaning()
			if k.flag != "" {
				text += " Flag `-" + k.flag + "`."
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", k.name, k.kind, k.defaults(of), reload, strings.TrimSpace(text))
		}
	}
	b.WriteString("\n## Old names\n\nThey work, with a warning.\n\n| old | now |\n| --- | --- |\n")
	for _, k := range old {
		fmt.Fprintf(&b, "| `%s` | `%s` |\n", k.name, k.use)
	}
	b.WriteString("\n## Without effect\n\nAccepted so that files for Consul are read; those of its paid edition with a warning.\n\n")
	for i, k := range useless {
		if i > 0 {
			b.WriteString(",\n")
		}
		b.WriteString("`" + k.name + "`")
	}
	b.WriteString(".\n")
	return b.String(), nil
}
