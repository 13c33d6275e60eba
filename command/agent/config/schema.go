package config

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/internal/spelling"
)

// A kind is what a configuration key holds.
type kind int

const (
	kindObject   kind = iota // fixed keys
	kindDict                 // any keys, values alike
	kindList                 // a list, values alike
	kindAny                  // anything, checked by whoever uses it
	kindString               // text
	kindDuration             // text in the syntax of time.ParseDuration
	kindBool
	kindInt
	kindFloat
)

// A schema says what may stand under a key. The schema is derived from the tags of document; what may stand in service and
// check blocks is the business of package definition.
type schema struct {
	kind   kind
	elem   *schema            // of kindDict and kindList
	fields map[string]*schema // of kindObject, by canonical key
	alias  map[string]string  // of kindObject: other spellings of keys, in lower case

	// blocks marks a list whose key is in the singular, like service: one block is told without an index.
	blocks bool
	// define is "service" or "check" for the elements of lists of such blocks.
	define string
	secret bool // errors do not show the value

	index  []int // of the field in its struct, for kindObject members; nil if it is not decoded
	reload bool
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	nodesType    = reflect.TypeFor[[]*node]()
	prefixType   = reflect.TypeFor[netip.Prefix]()
)

// schemaOf derives the schema of a struct type from its tags.
func schemaOf(t reflect.Type) *schema {
	s := &schema{kind: kindObject, fields: map[string]*schema{}}
	s.addFields(t, nil, "")
	return s
}

// addFields adds the tagged fields of a struct under a dotted prefix.
func (s *schema) addFields(t reflect.Type, index []int, prefix string) {
	for f := range t.Fields() {
		at := append(slices.Clone(index), f.Index...)
		key, tagged := f.Tag.Lookup("key")
		switch {
		case f.Type.Kind() == reflect.Struct && f.Type != prefixType && (tagged || f.IsExported()):
			group := prefix
			if tagged {
				group = prefix + key + "."
			}
			sub := &schema{kind: kindObject, fields: map[string]*schema{}}
			sub.addFields(f.Type, at, "")
			if f.Tag.Get("reload") == "yes" {
				sub.each(func(l *schema) { l.reload = true })
			}
			for k, v := range sub.fields {
				s.add(group+k, v)
			}
		case tagged:
			leaf := leafOf(f)
			leaf.index, leaf.reload, leaf.secret = at, f.Tag.Get("reload") == "yes", f.Tag.Get("secret") == "yes"
			s.add(prefix+key, leaf)
		}
	}
}

// each calls f for the schema and all below it.
func (s *schema) each(f func(*schema)) {
	f(s)
	for _, sub := range s.fields {
		sub.each(f)
	}
}

// add puts a schema at a dotted path, merging objects.
func (s *schema) add(path string, sub *schema) {
	head, rest, nested := strings.Cut(path, ".")
	next := s.fields[head]
	switch {
	case nested:
		if next == nil {
			next = &schema{kind: kindObject, fields: map[string]*schema{}}
			s.fields[head] = next
		}
		next.add(rest, sub)
	case next != nil && next.kind == kindObject && sub.kind == kindObject:
		for k, v := range sub.fields {
			next.add(k, v)
		}
	default:
		s.fields[head] = sub
	}
}

// leafOf is the schema of one tagged field.
func leafOf(f reflect.StructField) *schema {
	if f.Type == nodesType {
		block := f.Tag.Get("schema")
		return &schema{kind: kindList, elem: &schema{kind: kindAny, define: block}, blocks: f.Tag.Get("key") == block}
	}
	return typeSchema(f.Type)
}

func typeSchema(t reflect.Type) *schema {
	switch {
	case t == durationType:
		return &schema{kind: kindDuration}
	case t == reflect.TypeFor[*node]() || t.Kind() == reflect.Interface:
		return &schema{kind: kindAny}
	case t == reflect.TypeFor[map[string]any]():
		return &schema{kind: kindDict, elem: &schema{kind: kindAny}}
	}
	switch t.Kind() {
	case reflect.String:
		return &schema{kind: kindString}
	case reflect.Bool:
		return &schema{kind: kindBool}
	case reflect.Int:
		return &schema{kind: kindInt}
	case reflect.Float64:
		return &schema{kind: kindFloat}
	case reflect.Slice:
		return &schema{kind: kindList, elem: typeSchema(t.Elem())}
	case reflect.Map:
		return &schema{kind: kindDict, elem: typeSchema(t.Elem())}
	case reflect.Pointer:
		return typeSchema(t.Elem())
	case reflect.Struct:
		return schemaOf(t)
	}
	panic("config: no schema for " + t.String())
}

// ---------------------------------------------------------------- checking one source

// A checker collects what is wrong with the keys and types of one source.
type checker struct{ errs []error }

func (c *checker) fail(pos Pos, key, format string, args ...any) {
	c.errs = append(c.errs, &KeyError{Key: key, Pos: pos, Text: fmt.Sprintf(format, args...)})
}

// check returns n in canonical form: keys as in the schema, each once, single values in place of lists of one where the
// schema wants one, and lists in place of single blocks where it wants a list. It returns nil for what is unset or wrong.
func (c *checker) check(s *schema, n *node, path string) *node {
	if n.shape == null {
		return nil
	}
	if n.shape == list && len(n.list) == 1 && n.list[0].shape == object && (s.kind == kindObject || s.kind == kindDict) {
		n = n.list[0] // blocks may be written as a list of one
	}
	switch s.kind {
	case kindObject:
		if n.shape != object {
			c.fail(n.pos, path, "'%s' expected a map, got '%s'", path, n.typeName())
			return nil
		}
		return c.object(s, n, path)
	case kindDict:
		if n.shape != object {
			c.fail(n.pos, path, "'%s' expected a map, got '%s'", path, n.typeName())
			return nil
		}
		out := &node{shape: object, pos: n.pos}
		for _, m := range n.members {
			if s.elem.kind == kindAny {
				continue // below, with repeated keys collected
			}
			if v := c.check(s.elem, m.value, fmt.Sprintf("%s[%s]", path, m.key)); v != nil {
				out.set(m.key, v)
			}
		}
		if s.elem.kind == kindAny {
			return freeForm(n)
		}
		return out
	case kindList:
		return c.list(s, n, path)
	case kindAny:
		if s.define != "" {
			return c.checkDefinition(s.define, n, path)
		}
		return freeForm(n)
	case kindString, kindDuration:
		if n.shape == text {
			return n
		}
		c.mismatch(s, n, path, "string")
	case kindBool:
		if n.shape == boolean {
			return n
		}
		c.mismatch(s, n, path, "bool")
	case kindInt:
		if n.shape == integer {
			return n
		}
		if n.shape == float && n.float == math.Trunc(n.float) && math.Abs(n.float) < 1<<53 {
			return &node{shape: integer, pos: n.pos, integer: int64(n.float)}
		}
		c.mismatch(s, n, path, "int")
	case kindFloat:
		if n.shape == float {
			return n
		}
		if n.shape == integer {
			return &node{shape: float, pos: n.pos, float: float64(n.integer)}
		}
		c.mismatch(s, n, path, "float64")
	}
	return nil
}

func (c *checker) mismatch(s *schema, n *node, path, want string) {
	if s.secret || n.shape == list || n.shape == object {
		c.fail(n.pos, path, "'%s' expected type '%s', got unconvertible type '%s'", path, want, n.typeName())
		return
	}
	c.fail(n.pos, path, "'%s' expected type '%s', got unconvertible type '%s', value: '%s'", path, want, n.typeName(), n)
}

func (c *checker) object(s *schema, n *node, path string) *node {
	out := &node{shape: object, pos: n.pos}
	for _, m := range n.members {
		key := strings.ToLower(m.key)
		if canonical, ok := s.alias[key]; ok {
			key = canonical
		}
		sub, ok := s.fields[key]
		full := join(path, key)
		if !ok {
			c.fail(m.pos, join(path, m.key), "invalid config key %s%s", join(path, m.key), s.suggest(key))
			continue
		}
		if sub.blocks && (m.value.shape == list && len(m.value.list) != 1 || n.repeats(m.key)) {
			full = fmt.Sprintf("%s[%d]", full, out.get(key).size())
		}
		if v := c.check(sub, m.value, full); v != nil {
			out.set(key, merge(sub, out.get(key), v))
		}
	}
	return out
}

// repeats reports whether a key is written more than once.
func (n *node) repeats(key string) bool {
	found := false
	for _, m := range n.members {
		if m.key == key {
			if found {
				return true
			}
			found = true
		}
	}
	return false
}

func (n *node) size() int {
	if n == nil {
		return 0
	}
	return len(n.list)
}

func (c *checker) list(s *schema, n *node, path string) *node {
	elems := n.list
	switch {
	case n.shape == list:
	case n.shape == object && (s.elem.kind == kindObject || s.elem.kind == kindDict || s.elem.define != ""):
		elems = []*node{n} // a single block
	default:
		c.fail(n.pos, path, "'%s': source data must be an array or slice, got %s", path, n.typeName())
		return nil
	}
	out := &node{shape: list, pos: n.pos}
	for i, e := range elems {
		at := fmt.Sprintf("%s[%d]", path, i)
		if s.blocks && len(elems) == 1 {
			at = path
		}
		if v := c.check(s.elem, e, at); v != nil {
			out.list = append(out.list, v)
		}
	}
	return out
}

// freeForm makes a value nobody knows the schema of canonical: a key written once holds its value, a key written several
// times, as HCL blocks are, holds a list of its values.
func freeForm(n *node) *node {
	out := *n
	switch n.shape {
	case list:
		out.list = make([]*node, len(n.list))
		for i, e := range n.list {
			out.list[i] = freeForm(e)
		}
	case object:
		out.members = nil
		repeated := map[string]bool{}
		for _, m := range n.members {
			v := freeForm(m.value)
			switch old := out.get(m.key); {
			case old == nil:
				out.members = append(out.members, member{m.key, m.pos, v})
			case old.shape != object && !repeated[m.key]:
				out.set(m.key, v) // a scalar written twice: the last one wins
			case repeated[m.key]:
				old.list = append(old.list, v)
			default:
				out.set(m.key, &node{shape: list, pos: old.pos, list: []*node{old, v}})
				repeated[m.key] = true
			}
		}
	}
	return &out
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// suggest ends the message about an unknown key with the one that was probably meant: one that is close, or the only one
// of that name elsewhere.
func (s *schema) suggest(key string) string {
	best := spelling.Nearest(key, slices.Collect(maps.Keys(s.fields)))
	if best == "" {
		var elsewhere []string
		walk(root, "", func(full string, _ *schema) {
			if strings.HasSuffix(full, "."+strings.ToLower(key)) {
				elsewhere = append(elsewhere, full)
			}
		})
		if len(elsewhere) == 1 {
			best = elsewhere[0]
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(", did you mean %s?", best)
}

// ---------------------------------------------------------------- decoding the merged tree

// decode stores the values of a checked tree in a struct of the type the schema was derived from. It reports only what
// the shape of a value cannot tell: malformed durations.
func (s *schema) decode(n *node, to reflect.Value, path string, fail func(n *node, key, format string, args ...any)) {
	for key, sub := range s.fields {
		v := n.get(key)
		if v == nil {
			continue
		}
		full := join(path, key)
		if sub.index != nil {
			assign(sub, v, to.FieldByIndex(sub.index), full, fail)
		} else if sub.kind == kindObject {
			sub.decode(v, to, full, fail)
		}
	}
}

func assign(s *schema, n *node, to reflect.Value, path string, fail func(n *node, key, format string, args ...any)) {
	if to.Kind() == reflect.Pointer {
		if to.Type() == reflect.TypeFor[*node]() {
			to.Set(reflect.ValueOf(n))
			return
		}
		p := reflect.New(to.Type().Elem())
		assign(s, n, p.Elem(), path, fail)
		to.Set(p)
		return
	}
	if to.Type() == nodesType {
		to.Set(reflect.ValueOf(n.list))
		return
	}
	switch s.kind {
	case kindObject:
		s.decode(n, to, path, fail)
	case kindString:
		to.SetString(n.text)
	case kindDuration:
		d, err := time.ParseDuration(n.text)
		if err != nil {
			fail(n, path, "%s: invalid duration: %q: %v", path, n.text, err)
			return
		}
		to.SetInt(int64(d))
	case kindBool:
		to.SetBool(n.boolean)
	case kindInt:
		to.SetInt(n.integer)
	case kindFloat:
		to.SetFloat(n.float)
	case kindAny:
		if v := n.plain(); v != nil {
			to.Set(reflect.ValueOf(v))
		}
	case kindList:
		out := reflect.MakeSlice(to.Type(), len(n.list), len(n.list))
		for i, e := range n.list {
			assign(s.elem, e, out.Index(i), fmt.Sprintf("%s[%d]", path, i), fail)
		}
		to.Set(out)
	case kindDict:
		out := reflect.MakeMap(to.Type())
		for _, m := range n.members {
			e := reflect.New(to.Type().Elem()).Elem()
			assign(s.elem, m.value, e, fmt.Sprintf("%s[%q]", path, m.key), fail)
			out.SetMapIndex(reflect.ValueOf(m.key), e)
		}
		to.Set(out)
	}
}
