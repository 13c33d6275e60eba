package config

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/hcl/ast"
	hclparser "github.com/hashicorp/hcl/hcl/parser"
	hclstrconv "github.com/hashicorp/hcl/hcl/strconv"
	"github.com/hashicorp/hcl/hcl/token"
)

// maxDepth bounds how deep values may be nested.
const maxDepth = 200

// parse reads a source in the given format ("hcl" or "json") into a tree whose root is an object. A source that is empty
// or blank is an empty object, and an HCL source that begins with a brace is read as JSON. A byte order mark is skipped.
func parse(file, format string, data []byte) (*node, error) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	trimmed := bytes.TrimLeft(data, " \t\r\n")
	switch {
	case len(bytes.TrimSpace(data)) == 0:
		return &node{shape: object, pos: Pos{File: file}}, nil
	case format == "json" || trimmed[0] == '{':
		return parseJSON(file, data)
	}
	return parseHCL(file, data)
}

// ParseDocument reads an HCL or JSON document that is not an agent's configuration, such as a configuration entry, into
// maps, lists and plain values. name stands for it in errors. HCL blocks written several times become a list.
func ParseDocument(name string, data []byte) (map[string]any, error) {
	n, err := parse(name, "hcl", data)
	if err != nil {
		return nil, err
	}
	return freeForm(n).plain().(map[string]any), nil
}

// ---------------------------------------------------------------- JSON

// A jsonReader turns JSON tokens into nodes.
type jsonReader struct {
	file string
	data []byte
	dec  *json.Decoder

	at, line, lineStart int // position up to which lines were counted
}

func parseJSON(file string, data []byte) (*node, error) {
	r := &jsonReader{file: file, data: data, dec: json.NewDecoder(bytes.NewReader(data)), line: 1}
	r.dec.UseNumber()
	n, err := r.value(0)
	if err != nil {
		return nil, r.syntax(err)
	}
	if n.shape != object {
		return nil, &SyntaxError{n.pos, fmt.Errorf("want an object, got a %s", n.typeName())}
	}
	rest := r.next()
	if _, err := r.dec.Token(); err == nil {
		return nil, &SyntaxError{rest, errors.New("data after the end of the object")}
	} else if err != io.EOF {
		return nil, r.syntax(err)
	}
	return n, nil
}

// syntax gives an error of the decoder a position.
func (r *jsonReader) syntax(err error) error {
	offset := int(r.dec.InputOffset())
	if s, ok := errors.AsType[*json.SyntaxError](err); ok {
		if int(s.Offset) > offset { // from the scanner, which has read what it complains of
			offset = int(s.Offset) - 1
		}
	} else if err == io.EOF || err == io.ErrUnexpectedEOF {
		err, offset = errors.New("unexpected end of JSON input"), len(r.data)
	}
	return &SyntaxError{position(r.file, r.data, offset), err}
}

// position is the line and column of an offset.
func position(file string, data []byte, offset int) Pos {
	before := data[:min(max(offset, 0), len(data))]
	return Pos{File: file, Line: bytes.Count(before, []byte("\n")) + 1, Column: len(before) - bytes.LastIndexByte(before, '\n')}
}

// next is the position of the token that follows.
func (r *jsonReader) next() Pos {
	i := int(r.dec.InputOffset())
	for i < len(r.data) && strings.IndexByte(" \t\r\n,:", r.data[i]) >= 0 {
		i++
	}
	for ; r.at < i; r.at++ {
		if r.data[r.at] == '\n' {
			r.line, r.lineStart = r.line+1, r.at+1
		}
	}
	return Pos{File: r.file, Line: r.line, Column: i - r.lineStart + 1}
}

func (r *jsonReader) value(depth int) (*node, error) {
	n := &node{pos: r.next()}
	if depth > maxDepth {
		return nil, errors.New("nested too deep")
	}
	t, err := r.dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Delim:
		if t == '[' {
			n.shape = list
			for r.dec.More() {
				e, err := r.value(depth + 1)
				if err != nil {
					return nil, err
				}
				n.list = append(n.list, e)
			}
		} else {
			n.shape = object
			for r.dec.More() {
				m := member{pos: r.next()}
				key, err := r.dec.Token()
				if err != nil {
					return nil, err
				}
				m.key = key.(string)
				if m.value, err = r.value(depth + 1); err != nil {
					return nil, err
				}
				n.members = append(n.members, m)
			}
		}
		if _, err := r.dec.Token(); err != nil { // the closing bracket
			return nil, err
		}
	case string:
		n.shape, n.text = text, t
	case bool:
		n.shape, n.boolean = boolean, t
	case json.Number:
		if err := n.number(t.String()); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// number parses a number, as a whole one where it is.
func (n *node) number(s string) error {
	if i, err := strconv.ParseInt(s, 0, 64); err == nil {
		n.shape, n.integer = integer, i
		return nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return fmt.Errorf("invalid number %s", s)
	}
	n.shape, n.float = float, f
	return nil
}

// ---------------------------------------------------------------- HCL

// An hclReader turns the syntax tree of HCL 1 into nodes. Version 1 is what existing configuration files are written in:
// it takes single-line blocks with several attributes, lists without commas before a closing bracket, and keys that are
// attributes in one file and blocks in another, all of which HCL 2 refuses.
type hclReader struct{ file string }

// unknownToken is what the parser says where a value is missing.
var unknownToken = regexp.MustCompile(`^Unknown token: \d+:\d+ (\w+)(?s:(.*))$`)

func parseHCL(file string, data []byte) (*node, error) {
	r := &hclReader{file: file}
	if err := r.depth(data); err != nil {
		return nil, err
	}
	f, err := hclparser.Parse(data)
	if err != nil {
		if p, ok := errors.AsType[*hclparser.PosError](err); ok {
			err := p.Err
			if m := unknownToken.FindStringSubmatch(err.Error()); m != nil {
				err = fmt.Errorf("want a value, got %s", cmp.Or(strings.TrimSpace(m[2]), m[1]))
			}
			return nil, &SyntaxError{r.within(data, p.Pos), err}
		}
		return nil, &SyntaxError{Pos{File: file, Line: 1, Column: 1}, err}
	}
	root, ok := f.Node.(*ast.ObjectList)
	if !ok {
		return nil, &SyntaxError{Pos{File: file, Line: 1, Column: 1}, errors.New("not a list of keys")}
	}
	return r.items(root, Pos{File: file, Line: 1, Column: 1})
}

// depth refuses input that is nested so deep that the parser, which is recursive, would exhaust its stack. Brackets in
// strings and comments count too, which no sane file minds.
func (r *hclReader) depth(data []byte) error {
	depth, deepest := 0, 0
	for i, c := range data {
		switch c {
		case '{', '[':
			if depth++; depth > deepest {
				deepest = depth
			}
			if deepest > 10*maxDepth {
				return &SyntaxError{position(r.file, data, i), errors.New("nested too deep")}
			}
		case '}', ']':
			depth = max(0, depth-1)
		}
	}
	return nil
}

func (r *hclReader) pos(p token.Pos) Pos {
	return Pos{File: r.file, Line: max(p.Line, 1), Column: max(p.Column, 1)}
}

// within is a position that is in the text: at its end, the parser counts on.
func (r *hclReader) within(data []byte, p token.Pos) Pos {
	pos := r.pos(p)
	if end := position(r.file, data, len(data)); pos.Line > end.Line || pos.Line == end.Line && pos.Column > end.Column {
		return end
	}
	return pos
}

// items makes an object of attributes and blocks. A block with labels is nested: a "b" {…} is a { b {…} }.
func (r *hclReader) items(l *ast.ObjectList, pos Pos) (*node, error) {
	n := &node{shape: object, pos: pos}
	for _, item := range l.Items {
		v, err := r.value(item.Val)
		if err != nil {
			return nil, err
		}
		for i := len(item.Keys) - 1; i >= 0; i-- {
			key, err := r.key(item.Keys[i])
			if err != nil {
				return nil, err
			}
			m := member{key: key, pos: r.pos(item.Keys[i].Pos()), value: v}
			if i == 0 {
				n.members = append(n.members, m)
			} else {
				v = &node{shape: object, pos: m.pos, members: []member{m}}
			}
		}
	}
	return n, nil
}

func (r *hclReader) key(k *ast.ObjectKey) (string, error) {
	if k.Token.Type != token.STRING {
		return k.Token.Text, nil
	}
	n, err := r.literal(k.Token)
	if err != nil {
		return "", err
	}
	return n.text, nil
}

func (r *hclReader) value(v ast.Node) (*node, error) {
	switch v := v.(type) {
	case *ast.LiteralType:
		return r.literal(v.Token)
	case *ast.ObjectType:
		return r.items(v.List, r.pos(v.Lbrace))
	case *ast.ListType:
		n := &node{shape: list, pos: r.pos(v.Lbrack)}
		for _, e := range v.List {
			c, err := r.value(e)
			if err != nil {
				return nil, err
			}
			n.list = append(n.list, c)
		}
		return n, nil
	}
	return nil, &SyntaxError{Pos{File: r.file, Line: 1, Column: 1}, fmt.Errorf("unexpected %T", v)}
}

// literal converts a scalar. The conversion of the library panics on what its scanner lets through, so only heredocs
// use it.
func (r *hclReader) literal(t token.Token) (n *node, err error) {
	n = &node{pos: r.pos(t.Pos)}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("invalid literal: %v", p)
		}
		if err != nil {
			n, err = nil, &SyntaxError{r.pos(t.Pos), err}
		}
	}()
	switch t.Type {
	case token.STRING:
		n.shape = text
		if n.text, err = hclstrconv.Unquote(t.Text); err != nil {
			err = fmt.Errorf("invalid string %s", t.Text)
		}
	case token.HEREDOC:
		n.shape, n.text = text, t.Value().(string)
	case token.BOOL:
		n.shape, n.boolean = boolean, t.Text == "true"
	case token.NUMBER, token.FLOAT:
		err = n.number(t.Text)
	default:
		err = fmt.Errorf("unexpected %s", t.Text)
	}
	return n, err
}
