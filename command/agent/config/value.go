package config

import (
	"fmt"
	"strings"
)

// A shape is the form of a parsed value, before a schema gives it a meaning.
type shape int

const (
	null shape = iota
	text
	integer
	float
	boolean
	list
	object
)

// A node is one parsed value with the place it was written at. Both file formats parse into nodes, flags are made into
// them, and merging works on them; only the merged tree is decoded into Settings.
type node struct {
	shape shape
	pos   Pos

	text    string
	integer int64
	float   float64
	boolean bool
	list    []*node
	members []member // of an object, in the order written; the same key may occur again until the schema was applied
}

// A member is one key of an object.
type member struct {
	key   string
	pos   Pos // of the key
	value *node
}

// get returns the member with the given key, nil if there is none.
func (n *node) get(key string) *node {
	if n == nil {
		return nil
	}
	for i := len(n.members) - 1; i >= 0; i-- {
		if n.members[i].key == key {
			return n.members[i].value
		}
	}
	return nil
}

// find follows a dotted path of object keys, and returns nil where it ends early.
func (n *node) find(path string) *node {
	for part := range strings.SplitSeq(path, ".") {
		if n == nil || n.shape != object {
			return nil
		}
		n = n.get(part)
	}
	return n
}

// set gives the member with the given key a value, adding it if need be.
func (n *node) set(key string, v *node) {
	for i := range n.members {
		if n.members[i].key == key {
			n.members[i].value = v
			return
		}
	}
	n.members = append(n.members, member{key: key, pos: v.pos, value: v})
}

// put sets the value at a dotted path, making the objects on the way.
func (n *node) put(path string, v *node) {
	head, rest, nested := strings.Cut(path, ".")
	if !nested {
		n.set(head, v)
		return
	}
	next := n.get(head)
	if next == nil || next.shape != object {
		next = &node{shape: object, pos: v.pos}
		n.set(head, next)
	}
	next.put(rest, v)
}

// take removes the value at a dotted path and returns it, nil if there is none.
func (n *node) take(path string) *node {
	if head, rest, nested := strings.Cut(path, "."); nested {
		if next := n.get(head); next != nil && next.shape == object {
			return next.take(rest)
		}
		return nil
	}
	for i, m := range n.members {
		if m.key == path {
			n.members = append(n.members[:i:i], n.members[i+1:]...)
			return m.value
		}
	}
	return nil
}

// typeName is the name of the value's type in error messages.
func (n *node) typeName() string {
	switch n.shape {
	case text:
		return "string"
	case integer:
		return "int"
	case float:
		return "float64"
	case boolean:
		return "bool"
	case list:
		return "slice"
	case object:
		return "map"
	}
	return "nil"
}

// String shows a scalar as it is quoted in error messages.
func (n *node) String() string {
	switch n.shape {
	case text:
		return n.text
	case integer:
		return fmt.Sprint(n.integer)
	case float:
		return fmt.Sprint(n.float)
	case boolean:
		return fmt.Sprint(n.boolean)
	}
	return n.typeName()
}

// plain converts the value to what encoding/json would make of it, with whole numbers as int.
func (n *node) plain() any {
	if n == nil {
		return nil
	}
	switch n.shape {
	case text:
		return n.text
	case integer:
		return int(n.integer)
	case float:
		return n.float
	case boolean:
		return n.boolean
	case list:
		out := make([]any, len(n.list))
		for i, e := range n.list {
			out[i] = e.plain()
		}
		return out
	case object:
		out := make(map[string]any, len(n.members))
		for _, m := range n.members {
			out[m.key] = m.value.plain()
		}
		return out
	}
	return nil
}

// merge lays over on top of base and returns the result: scalars and free-form values are replaced, lists are appended,
// objects are merged key by key. Either may be nil. Neither is changed.
func merge(s *schema, base, over *node) *node {
	switch {
	case over == nil:
		return base
	case base == nil || base.shape != over.shape:
		return over
	case over.shape == list && s.kind == kindList:
		out := *over
		out.list = append(append([]*node{}, base.list...), over.list...)
		return &out
	case over.shape == object && (s.kind == kindObject || s.kind == kindDict || s.kind == kindAny):
		out := *base
		out.members = append([]member{}, base.members...)
		for _, m := range over.members {
			v := m.value
			if s.kind == kindObject {
				v = merge(s.fields[m.key], base.get(m.key), m.value)
			}
			out.set(m.key, v)
		}
		return &out
	}
	return over
}

func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Column)
}

// Problems are all the errors found in a configuration. Alone, an error is told as it is; several are told as a list.
type Problems []error

func (p Problems) Error() string {
	if len(p) == 1 {
		return p[0].Error()
	}
	return bullets(p)
}

// Unwrap lets errors.Is and errors.As look at each problem.
func (p Problems) Unwrap() []error { return p }

// bullets tells errors as a counted list.
func bullets(errs []error) string {
	var b strings.Builder
	word := "errors"
	if len(errs) == 1 {
		word = "error"
	}
	fmt.Fprintf(&b, "%d %s occurred:\n", len(errs), word)
	for _, err := range errs {
		fmt.Fprintf(&b, "\t* %s\n", strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "\n\t  "))
	}
	return b.String()
}

// A FileError says what is wrong with one source as it is written: its syntax, its keys, the types of its values.
type FileError struct {
	File string
	Errs []error // syntax errors are alone; otherwise one KeyError per problem
}

func (e *FileError) Error() string {
	if _, ok := e.Errs[0].(*SyntaxError); ok {
		return fmt.Sprintf("failed to parse %s: %v", e.File, e.Errs[0])
	}
	return fmt.Sprintf("failed to parse %s: %s", e.File, bullets(e.Errs))
}

// Unwrap lets errors.Is and errors.As look at each problem.
func (e *FileError) Unwrap() []error { return e.Errs }

// A KeyError is a problem with one key.
type KeyError struct {
	Key  string // dotted path, with [n] for list elements
	Pos  Pos    // zero if the key was not written anywhere
	Text string // the problem, with the key in it where that helps
}

func (e *KeyError) Error() string {
	if e.Pos.File == "" {
		return e.Text
	}
	return fmt.Sprintf("%s (%v)", e.Text, e.Pos)
}

// A SyntaxError is a place at which a source stops making sense.
type SyntaxError struct {
	Pos Pos
	Err error
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("line %d, column %d: %v", e.Pos.Line, e.Pos.Column, e.Err)
}

func (e *SyntaxError) Unwrap() error { return e.Err }
