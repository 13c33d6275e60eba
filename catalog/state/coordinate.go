package state

import (
	"slices"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/mvcc"
)

// coordinates holds the network coordinates by node and segment.
var coordinates = mvcc.NewTable("coordinate", func(buf []byte, c *catalog.NodeCoordinate) ([]byte, bool) {
	return mvcc.String(appendName(buf, c.Node), c.Segment), true
})

// Coordinates returns all coordinates, ordered by node.
func (v *View) Coordinates() (uint64, []*catalog.NodeCoordinate) {
	return v.peeked(coordinates.Name()), slices.Collect(coordinates.All(v.tx, "id"))
}

// NodeCoordinates returns the coordinates of a node, one per segment. The index is that of the last change of any; a
// waiter is woken by those of the node alone.
func (v *View) NodeCoordinates(node string) (uint64, []*catalog.NodeCoordinate) {
	return v.peeked(coordinates.Name()), slices.Collect(coordinates.Prefix(v.tx, "id", nameKey(node)))
}

// Coordinate returns the coordinate of a node, nil when it is not known. It records no watch.
func (v *View) Coordinate(node string) *catalog.Coordinate {
	for c := range coordinates.PeekPrefix(v.tx, "id", nameKey(node)) {
		return c.Coord
	}
	return nil
}

// SetCoordinates stores coordinates and keeps them; those of unknown nodes are dropped.
func (t *Tx) SetCoordinates(updates []*catalog.NodeCoordinate) {
	for _, c := range updates {
		if c == nil || c.Coord == nil {
			continue
		}
		n, ok := nodes.Peek(t.tx, "id", nameKey(c.Node))
		if !ok {
			continue
		}
		c.Node = n.Node
		key := mvcc.String(nameKey(c.Node), c.Segment)
		if old, ok := coordinates.Peek(t.tx, "id", key); ok && sameCoordinate(old.Coord, c.Coord) {
			continue
		}
		coordinates.Insert(t.tx, c)
		t.mark(coordinates.Name())
	}
}

func sameCoordinate(a, b *catalog.Coordinate) bool {
	return slices.Equal(a.Vec, b.Vec) && a.Error == b.Error && a.Adjustment == b.Adjustment && a.Height == b.Height
}

func (t *Tx) deleteCoordinates(node string) {
	for _, c := range slices.Collect(coordinates.PeekPrefix(t.tx, "id", nameKey(node))) {
		coordinates.Delete(t.tx, c)
		t.mark(coordinates.Name())
	}
}
