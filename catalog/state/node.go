package state

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/mvcc"
)

// nodes holds the nodes by name, compared without regard to case. The index "uuid" has their IDs in hexadecimal.
var nodes = mvcc.NewTable("node", func(buf []byte, n *catalog.Node) ([]byte, bool) {
	return appendName(buf, n.Node), true
}, mvcc.Index[*catalog.Node]{Name: "uuid", Key: func(buf []byte, n *catalog.Node) ([]byte, bool) {
	if n.ID == "" {
		return buf, false
	}
	return mvcc.String(buf, hexUUID(n.ID)), true
}})

// appendName appends a name that is compared without regard to case to a key.
func appendName(buf []byte, name string) []byte {
	for i := range len(name) {
		if c := name[i]; 'A' <= c && c <= 'Z' || c >= 0x80 {
			return mvcc.String(buf, strings.ToLower(name))
		}
	}
	return mvcc.String(buf, name)
}

func nameKey(name string) []byte { return appendName(make([]byte, 0, len(name)+1), name) }

// hexUUID returns the digits of a UUID.
func hexUUID(id string) string { return strings.ToLower(strings.ReplaceAll(id, "-", "")) }

// Marks of nodes. The table's own is raised by every change of a node.
const nodeGone = "node-gone" // the last removal of a node

func nodeMark(name string) string { return "node." + strings.ToLower(name) }

// Node returns the node with this name, nil when there is none.
func (v *View) Node(name string) *catalog.Node {
	n, _ := nodes.First(v.tx, "id", nameKey(name))
	return n
}

// nodeByID returns the node with this UUID, nil when there is none. It records no watch.
func (v *View) nodeByID(id string) *catalog.Node {
	n, _ := nodes.Peek(v.tx, "uuid", mvcc.String(nil, hexUUID(id)))
	return n
}

// findNode finds a node by name, else by its ID or a prefix of at least two digits that no other node's ID has. Of an
// odd number of digits the last does not count.
func (v *View) findNode(arg string) *catalog.Node {
	if n := v.Node(arg); n != nil {
		return n
	}
	prefix := hexUUID(arg)
	prefix = prefix[:len(prefix)&^1]
	if _, err := hex.DecodeString(prefix); err != nil || len(prefix) < 2 {
		return nil
	}
	var found *catalog.Node
	for n := range nodes.Prefix(v.tx, "uuid", []byte(prefix)) {
		if found != nil {
			return nil
		}
		found = n
	}
	return found
}

// Nodes returns all nodes in the order of their names. The index is that of the last change of a node or an instance;
// a waiter is woken by nodes alone.
func (v *View) Nodes() (uint64, []*catalog.Node) {
	return v.peeked(nodes.Name(), instances.Name()), slices.Collect(nodes.All(v.tx, "id"))
}

// NodeServices returns a node, found by name or (a prefix of) its ID, with its instances ordered by ID; nil when there
// is no such node.
func (v *View) NodeServices(arg string) (uint64, *catalog.Node, []*catalog.Service) {
	n := v.findNode(arg)
	if n == nil {
		return v.marked(nodeGone), nil, nil
	}
	var services []*catalog.Service
	for i := range v.instancesOn(n.Node) {
		services = append(services, i.Service)
	}
	return v.marked(nodeMark(n.Node)), n, services
}

// sameNode reports whether the two differ in their indexes at most.
func sameNode(a, b *catalog.Node) bool {
	return a.ID == b.ID && a.Node == b.Node && a.Address == b.Address && a.Datacenter == b.Datacenter &&
		a.PeerName == b.PeerName && maps.Equal(a.TaggedAddresses, b.TaggedAddresses) && maps.Equal(a.Meta, b.Meta) &&
		sameLocality(a.Locality, b.Locality)
}

func sameLocality(a, b *catalog.Locality) bool {
	return a == b || a != nil && b != nil && *a == *b
}

// SetNode adds or replaces a node and returns it as it is stored. It keeps n. The rules of identity are those of
// spec/registry.md section 13: an ID that is known under another name renames that node, and a name is not taken from a
// node that is alive.
func (t *Tx) SetNode(n *catalog.Node) (*catalog.Node, error) {
	n.ID = strings.ToLower(n.ID)
	old, _ := nodes.Peek(t.tx, "id", nameKey(n.Node))
	created := t.Index
	if n.ID != "" {
		known := t.nodeByID(n.ID)
		switch {
		case known == nil:
			if old != nil && old.ID != "" && t.alive(old) {
				return nil, fmt.Errorf("Error while renaming Node ID: %q: %w", n.ID, reserved(n.Node, old))
			}
		case !strings.EqualFold(known.Node, n.Node):
			if old != nil && t.alive(old) {
				return nil, fmt.Errorf("Error while renaming Node ID: %q (%s): %w", n.ID, n.Address, reserved(n.Node, old))
			}
			created = known.CreateIndex
			t.DeleteNode(known.Node)
		}
	}
	if old != nil {
		n.Indexes = old.Indexes
		if sameNode(n, old) {
			return old, nil
		}
		created = old.CreateIndex
	}
	n.Indexes = catalog.Indexes{CreateIndex: created, ModifyIndex: t.Index}
	t.shareNode(n)
	nodes.Insert(t.tx, n)
	t.mark(nodes.Name())
	t.mark(nodeMark(n.Node))
	t.reassemble(n, touchCatalog)
	return n, nil
}

// alive reports whether gossip says that the node is there.
func (t *Tx) alive(n *catalog.Node) bool {
	c := t.check(n.Node, catalog.SerfCheckID)
	return c != nil && c.Status != catalog.Critical
}

func reserved(name string, by *catalog.Node) error {
	return fmt.Errorf("Node name %s is reserved by node %s with name %s (%s)", name, by.ID, by.Node, by.Address)
}

// DeleteNode removes a node with its instances, checks, coordinates and sessions; it reports whether there was one.
func (t *Tx) DeleteNode(name string) bool {
	n, ok := nodes.Peek(t.tx, "id", nameKey(name))
	if !ok {
		return false
	}
	for _, i := range slices.Collect(t.instancesOn(n.Node)) {
		t.DeleteService(n.Node, i.Service.ID)
	}
	for _, c := range slices.Collect(t.checksOf(n.Node)) {
		t.DeleteCheck(n.Node, c.CheckID)
	}
	t.deleteCoordinates(n.Node)
	for _, s := range t.sessionsOn(n.Node) {
		t.endSession(s)
	}
	nodes.Delete(t.tx, n)
	t.mark(nodes.Name())
	t.mark(nodeGone)
	t.unmark(nodeMark(n.Node))
	return true
}

var errNoNode = errors.New("Missing node registration")
