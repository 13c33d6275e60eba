package config

import (
	"cmp"
	"reflect"
	"slices"
)

// A Change is a key whose value differs between two configurations.
type Change struct {
	Key     string
	Restart bool // a reload does not apply it
}

// Diff lists the keys that differ between the running settings and reloaded ones, in order of their names. Defaults that
// follow from other keys count where they changed.
func Diff(running, loaded *Settings) []Change {
	was, is := running.document(), loaded.document()
	var out []Change
	walk(root, "", func(key string, s *schema) {
		before, after := field(was, s), field(is, s)
		if !reflect.DeepEqual(normal(before), normal(after)) {
			out = append(out, Change{Key: key, Restart: !s.reload})
		}
	})
	slices.SortFunc(out, func(a, b Change) int { return cmp.Compare(a.Key, b.Key) })
	return out
}

// document is what the settings were made of; settings made by hand have nothing written.
func (s *Settings) document() *document {
	if s.doc != nil {
		return s.doc
	}
	return &document{Settings: *s}
}

// walk calls f for every decoded key of a schema.
func walk(s *schema, path string, f func(key string, s *schema)) {
	for key, sub := range s.fields {
		switch full := join(path, key); {
		case sub.index != nil:
			f(full, sub)
		case sub.kind == kindObject:
			walk(sub, full, f)
		}
	}
}

func field(d *document, s *schema) any {
	return reflect.ValueOf(d).Elem().FieldByIndex(s.index).Interface()
}

// normal makes values comparable: blocks without their positions, empty lists and maps alike.
func normal(v any) any {
	if blocks, ok := v.([]*node); ok {
		out := []any{}
		for _, n := range blocks {
			out = append(out, n.plain())
		}
		return out
	}
	if n, ok := v.(*node); ok {
		return n.plain()
	}
	if r := reflect.ValueOf(v); (r.Kind() == reflect.Map || r.Kind() == reflect.Slice) && r.Len() == 0 {
		return nil
	}
	return v
}
