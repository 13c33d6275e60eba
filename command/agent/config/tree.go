package config

// A Tree is a document with the places of its parts: for commands that read files of their own and tell where something
// is wrong. Make one with ParseTree.
type Tree struct{ n *node }

// A Branch is one key of an object, as often as it is written.
type Branch struct {
	Key  string
	Line int // from 1
	Tree Tree
}

// ParseTree reads an HCL or JSON document as ParseDocument does.
func ParseTree(name string, data []byte) (Tree, error) {
	n, err := parse(name, "hcl", data)
	return Tree{n}, err
}

// Plain returns maps, lists and plain values; blocks that are written several times are a list.
func (t Tree) Plain() any { return freeForm(t.n).plain() }

// Line returns where it begins, from 1.
func (t Tree) Line() int { return t.n.pos.Line }

// IsObject reports whether it has keys.
func (t Tree) IsObject() bool { return t.n.shape == object }

// Keys returns the keys of an object in the order written; nil of anything else.
func (t Tree) Keys() []Branch {
	if t.n.shape != object {
		return nil
	}
	out := make([]Branch, len(t.n.members))
	for i, m := range t.n.members {
		out[i] = Branch{m.key, m.pos.Line, Tree{m.value}}
	}
	return out
}

// Items returns the parts of a list, and of anything else itself.
func (t Tree) Items() []Tree {
	if t.n.shape != list {
		return []Tree{t}
	}
	out := make([]Tree, len(t.n.list))
	for i, n := range t.n.list {
		out[i] = Tree{n}
	}
	return out
}
