package mvcc

import "strings"

// A node is part of a radix tree: the keys below it begin with the concatenated prefixes on the way to it. A node that
// readers can see never changes; a write transaction puts changed copies in the place of the nodes from the root to
// the change, and changes the nodes that it has made itself in place.
type node struct {
	leaf   *leaf // of the key that ends here, nil if none does
	prefix string
	edges  []edge // ordered by label
	owner  uint64 // the transaction that made the node
}

type edge struct {
	label byte // the first byte of the node's prefix
	node  *node
}

// A leaf holds the value of one key. It stays the same when the nodes around it are replaced, and another is in its place
// once the key has changed.
type leaf struct{ value any }

// at returns the position of the edge with this label, or the one it would be inserted at.
func (n *node) at(label byte) (int, bool) {
	low, high := 0, len(n.edges)
	for high-low > 8 {
		mid := (low + high) / 2
		if n.edges[mid].label < label {
			low = mid + 1
		} else {
			high = mid + 1
		}
	}
	for ; low < high; low++ {
		if l := n.edges[low].label; l >= label {
			return low, l == label
		}
	}
	return low, false
}

// get returns the leaf of a key, nil if there is none, and the deepest node on the way to it: that one is replaced if
// the key is added.
func (n *node) get(key []byte) (*leaf, *node) {
	for len(key) > 0 {
		i, ok := n.at(key[0])
		if !ok {
			return nil, n
		}
		child := n.edges[i].node
		if !hasPrefix(key, child.prefix) {
			// Where the key is added, the child is split.
			return nil, child
		}
		key, n = key[len(child.prefix):], child
	}
	return n.leaf, n
}

// under returns the node with exactly the keys that begin with prefix, nil if there are none, and the deepest node that
// is replaced by every change of these keys.
func (n *node) under(prefix []byte) (all, watched *node) {
	for len(prefix) > 0 {
		i, ok := n.at(prefix[0])
		if !ok {
			return nil, n
		}
		child := n.edges[i].node
		switch {
		case hasPrefix(prefix, child.prefix):
			prefix, n = prefix[len(child.prefix):], child
		case len(prefix) < len(child.prefix) && child.prefix[:len(prefix)] == string(prefix):
			return child, child
		default:
			return nil, child
		}
	}
	return n, n
}

// path calls yield with the leaves whose keys the given one begins with, from the shortest on, until it returns false.
func (n *node) path(key []byte, yield func(*leaf) bool) {
	for {
		if n.leaf != nil && !yield(n.leaf) || len(key) == 0 {
			return
		}
		i, ok := n.at(key[0])
		if !ok {
			return
		}
		child := n.edges[i].node
		if !hasPrefix(key, child.prefix) {
			return
		}
		key, n = key[len(child.prefix):], child
	}
}

// first returns the leaf with the least key.
func (n *node) first() *leaf {
	for n.leaf == nil {
		if len(n.edges) == 0 {
			return nil
		}
		n = n.edges[0].node
	}
	return n.leaf
}

// walk calls yield with the values in the order of their keys, until it returns false.
func walk[T any](n *node, yield func(T) bool) bool {
	if n.leaf != nil && !yield(n.leaf.value.(T)) {
		return false
	}
	for i := range n.edges {
		if !walk(n.edges[i].node, yield) {
			return false
		}
	}
	return true
}

func hasPrefix(key []byte, prefix string) bool {
	return len(key) >= len(prefix) && string(key[:len(prefix)]) == prefix
}

// edits are the changes of one write transaction to its trees.
type edits struct{ id uint64 }

// own returns the node, or a copy in its place, which this transaction may change. The edges get room for more.
func (e *edits) own(n *node, more int) *node {
	if n.owner == e.id {
		return n
	}
	c := withRoom(len(n.edges) + more)
	c.leaf, c.prefix, c.owner = n.leaf, n.prefix, e.id
	c.edges = append(c.edges, n.edges...)
	return c
}

// withRoom returns a node with room for so many edges. Up to eight of them, which nearly every node has, are allocated
// with it: that takes as much memory as apart, and half the work.
func withRoom(edges int) *node {
	switch edges {
	case 0:
		return &node{}
	case 1:
		n := &nodeOf[[1]edge]{}
		n.node.edges = n.room[:0]
		return &n.node
	case 2:
		n := &nodeOf[[2]edge]{}
		n.node.edges = n.room[:0]
		return &n.node
	case 3:
		n := &nodeOf[[3]edge]{}
		n.node.edges = n.room[:0]
		return &n.node
	case 4:
		n := &nodeOf[[4]edge]{}
		n.node.edges = n.room[:0]
		return &n.node
	case 5:
		n := &nodeOf[[5]edge]{}
		n.node.edges = n.room[:0]
		return &n.node
	case 6:
		n := &nodeOf[[6]edge]{}
		n.node.edges = n.room[:0]
		return &n.node
	case 7:
		n := &nodeOf[[7]edge]{}
		n.node.edges = n.room[:0]
		return &n.node
	case 8:
		n := &nodeOf[[8]edge]{}
		n.node.edges = n.room[:0]
		return &n.node
	}
	return &node{edges: make([]edge, 0, edges)}
}

// A nodeOf is a node with its edges.
type nodeOf[Room any] struct {
	node node
	room Room
}

// insert sets the value of the key, which is what remains of it below n. It returns what is in the place of n now, and
// the value that the key had, nil if none.
func (e *edits) insert(n *node, key []byte, value any) (*node, any) {
	if len(key) == 0 {
		c := e.own(n, 0)
		old := c.leaf
		c.leaf = &leaf{value: value}
		if old == nil {
			return c, nil
		}
		return c, old.value
	}
	i, ok := n.at(key[0])
	if !ok {
		c := e.own(n, 1)
		c.edges = append(c.edges, edge{})
		copy(c.edges[i+1:], c.edges[i:])
		c.edges[i] = edge{key[0], &node{leaf: &leaf{value: value}, prefix: string(key), owner: e.id}}
		return c, nil
	}
	child := n.edges[i].node
	common := 0
	for common < len(key) && common < len(child.prefix) && key[common] == child.prefix[common] {
		common++
	}
	var old any
	if common == len(child.prefix) {
		child, old = e.insert(child, key[common:], value)
	} else {
		child = e.split(child, common)
		child, old = e.insert(child, key[common:], value)
	}
	c := e.own(n, 0)
	c.edges[i].node = child
	return c, old
}

// split returns a node with the first at bytes of n's prefix, and below it n with the rest.
func (e *edits) split(n *node, at int) *node {
	lower := e.own(n, 0)
	upper := &node{prefix: lower.prefix[:at], owner: e.id}
	lower.prefix = lower.prefix[at:]
	upper.edges = append(make([]edge, 0, 2), edge{lower.prefix[0], lower})
	return upper
}

// remove removes the key, which is what remains of it below n. It returns what is in the place of n now, nil if nothing
// is, and the value that the key had, nil if it is not there. The root stays even when it is empty.
func (e *edits) remove(n *node, key []byte, root bool) (*node, any) {
	if len(key) == 0 {
		if n.leaf == nil {
			return n, nil
		}
		old := n.leaf
		if len(n.edges) == 0 && !root {
			return nil, old.value
		}
		c := e.own(n, 0)
		c.leaf = nil
		return e.tighten(c, root), old.value
	}
	i, ok := n.at(key[0])
	if !ok || !hasPrefix(key, n.edges[i].node.prefix) {
		return n, nil
	}
	child := n.edges[i].node
	child, old := e.remove(child, key[len(child.prefix):], false)
	if old == nil {
		return n, nil
	}
	c := e.own(n, 0)
	if child != nil {
		c.edges[i].node = child
		return c, old
	}
	copy(c.edges[i:], c.edges[i+1:])
	c.edges[len(c.edges)-1] = edge{}
	c.edges = c.edges[:len(c.edges)-1]
	return e.tighten(c, root), old
}

// tighten joins a node of this transaction with its child when it has nothing else.
func (e *edits) tighten(n *node, root bool) *node {
	if root || n.leaf != nil || len(n.edges) != 1 {
		return n
	}
	child := e.own(n.edges[0].node, 0)
	// Not a part of a longer string that would be kept alive.
	child.prefix = strings.Join([]string{n.prefix, child.prefix}, "")
	return child
}
