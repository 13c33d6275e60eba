package explaincmd

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/connect/explain"
)

// A Document is an entry as it was written, or one to delete.
type Document struct {
	File   string
	Line   int
	Doc    map[string]any // nil for a deletion
	Delete entry.Key
}

// Where returns file and line, as errors begin.
func (d *Document) Where() string { return fmt.Sprintf("%s:%d", d.File, d.Line) }

// JSON returns the document as /v1/explain takes it.
func (d *Document) JSON() map[string]any {
	if d.Doc != nil {
		return d.Doc
	}
	return map[string]any{"Delete": map[string]any{"Kind": string(d.Delete.Kind), "Name": d.Delete.Name}}
}

// Change decodes the document.
func (d *Document) Change() (explain.Change, error) {
	if d.Doc == nil {
		return explain.Change{Delete: &d.Delete}, nil
	}
	e, err := entry.Decode(d.Doc)
	if err != nil {
		return explain.Change{}, fmt.Errorf("%s: %w", d.Where(), err)
	}
	return explain.Change{Entry: entry.Any{Entry: e}}, nil
}

// Documents reads a file with an entry; or with blocks "entry", each with one, and "delete", each with a kind and a name;
// or with a JSON array of entries. Mistakes are told with file and line.
func Documents(file string, data []byte) ([]Document, error) {
	if trimmed := bytes.TrimLeft(data, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '[' {
		data = append(append([]byte(`{"entry":`), data...), '}') // on the same lines
	}
	tree, err := config.ParseTree(file, data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	keys := tree.Keys()
	for _, k := range keys {
		if strings.EqualFold(k.Key, "kind") {
			doc, _ := tree.Plain().(map[string]any)
			return []Document{{File: file, Line: k.Line, Doc: doc}}, nil
		}
	}
	var out []Document
	for _, k := range keys {
		docs, ok, err := Entries(file, k)
		switch {
		case err != nil:
			return nil, err
		case !ok:
			return nil, fmt.Errorf("%s:%d: %q is not expected: a file has one entry, with its Kind, or blocks \"entry\" and \"delete\"", file, k.Line, k.Key)
		}
		out = append(out, docs...)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: there is no entry in it", file)
	}
	return out, nil
}

// Entries reads the documents of a key "entry" or "delete"; it reports false for others.
func Entries(file string, k config.Branch) ([]Document, bool, error) {
	deletion := strings.EqualFold(k.Key, "delete")
	if !deletion && !strings.EqualFold(k.Key, "entry") {
		return nil, false, nil
	}
	var out []Document
	for _, item := range k.Tree.Items() {
		line := item.Line()
		if !item.IsObject() {
			return nil, true, fmt.Errorf("%s:%d: %s is not a block", file, line, k.Key)
		}
		doc, _ := item.Plain().(map[string]any)
		if !deletion {
			out = append(out, Document{File: file, Line: k.Line + line - k.Tree.Line(), Doc: doc})
			continue
		}
		d := Document{File: file, Line: line}
		for _, f := range item.Keys() {
			text, isText := f.Tree.Plain().(string)
			switch name := strings.ToLower(f.Key); {
			case !isText:
				return nil, true, fmt.Errorf("%s:%d: %s is not a text", file, f.Line, f.Key)
			case name == "kind":
				d.Delete.Kind = entry.Kind(text)
			case name == "name":
				d.Delete.Name = text
			default:
				return nil, true, fmt.Errorf("%s:%d: %q is not expected in a deletion, which has kind and name", file, f.Line, f.Key)
			}
		}
		if d.Delete.Kind == entry.KindMesh {
			d.Delete.Name = entry.MeshName
		}
		if !d.Delete.Kind.Known() || d.Delete.Name == "" {
			return nil, true, fmt.Errorf("%s:%d: a deletion needs the kind and the name of an entry", file, line)
		}
		out = append(out, d)
	}
	return out, true, nil
}
