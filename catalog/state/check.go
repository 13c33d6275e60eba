package state

import (
	"errors"
	"iter"
	"reflect"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/mvcc"
)

// checks holds the checks by node and CheckID. The index "service" has them by node and service ID, which is empty for
// those of the node itself.
var checks = mvcc.NewTable("check", func(buf []byte, c *catalog.Check) ([]byte, bool) {
	return mvcc.String(appendName(buf, c.Node), c.CheckID), true
},
	mvcc.Index[*catalog.Check]{Name: "service", Key: func(buf []byte, c *catalog.Check) ([]byte, bool) {
		return mvcc.String(appendName(buf, c.Node), c.ServiceID), true
	}},
	mvcc.Index[*catalog.Check]{Name: byName, Key: func(buf []byte, c *catalog.Check) ([]byte, bool) {
		return appendName(buf, c.ServiceName), c.ServiceName != ""
	}},
	mvcc.Index[*catalog.Check]{Name: "status", Key: func(buf []byte, c *catalog.Check) ([]byte, bool) {
		return appendName(buf, c.Status), true
	}},
)

// check returns a check, nil when there is none. It records no watch.
func (v *View) check(node, id string) *catalog.Check {
	c, _ := checks.Peek(v.tx, "id", instanceKey(node, id))
	return c
}

// Check returns a check, nil when there is none.
func (v *View) Check(node, id string) *catalog.Check {
	c, _ := checks.First(v.tx, "id", instanceKey(node, id))
	return c
}

// checksOf returns all checks of a node in the order of their IDs. It records no watch.
func (v *View) checksOf(node string) iter.Seq[*catalog.Check] {
	return checks.PeekPrefix(v.tx, "id", nameKey(node))
}

// checksFor returns the checks of an instance, or with an empty ID the node's own, ordered by ID. It records no watch.
func (v *View) checksFor(node, id string) iter.Seq[*catalog.Check] {
	return checks.PeekGet(v.tx, "service", instanceKey(node, id))
}

// checkIndex is the index of every read of checks: the last change of any. It does not wake.
func (v *View) checkIndex() uint64 { return v.peeked(checks.Name()) }

// NodeChecks returns the checks of a node, ordered by ID.
func (v *View) NodeChecks(node string) (uint64, []*catalog.Check) {
	return v.checkIndex(), slices.Collect(checks.Prefix(v.tx, "id", nameKey(node)))
}

// ServiceChecks returns the checks of a service's instances, ordered by node, then ID.
func (v *View) ServiceChecks(service string) (uint64, []*catalog.Check) {
	return v.checkIndex(), slices.Collect(checks.Get(v.tx, byName, nameKey(service)))
}

// ChecksInState returns the checks with this status, ordered by node, then ID; all with "any".
func (v *View) ChecksInState(status string) (uint64, []*catalog.Check) {
	if status = strings.ToLower(status); status == "any" {
		return v.checkIndex(), slices.Collect(checks.All(v.tx, "id"))
	}
	return v.checkIndex(), slices.Collect(checks.Get(v.tx, "status", nameKey(status)))
}

// sameCheck reports whether the two differ in their indexes at most.
func sameCheck(a, b *catalog.Check) bool {
	return a.Node == b.Node && a.CheckID == b.CheckID && a.Name == b.Name && a.Status == b.Status && a.Notes == b.Notes &&
		a.Output == b.Output && a.ServiceID == b.ServiceID && a.ServiceName == b.ServiceName &&
		slices.Equal(a.ServiceTags, b.ServiceTags) && a.Type == b.Type && a.Interval == b.Interval &&
		a.Timeout == b.Timeout && a.ExposedPort == b.ExposedPort && a.PeerName == b.PeerName &&
		reflect.DeepEqual(a.Definition, b.Definition)
}

var errNoService = errors.New("Missing service registration")

// SetCheck adds or replaces a check and returns it as it is stored. It keeps c. The node must exist, and the instance
// when the check is of one. A check that is critical ends the sessions bound to it.
func (t *Tx) SetCheck(c *catalog.Check) (*catalog.Check, error) {
	n, ok := nodes.Peek(t.tx, "id", nameKey(c.Node))
	if !ok {
		return nil, errNoNode
	}
	c.Node = n.Node
	if c.Status == "" {
		c.Status = catalog.Critical
	}
	var of *catalog.Instance
	if c.ServiceID != "" {
		if of = t.instance(n.Node, c.ServiceID); of == nil {
			return nil, errNoService
		}
		c.ServiceName, c.ServiceTags = of.Service.Service, of.Service.Tags
	} else {
		c.ServiceName, c.ServiceTags = "", nil
	}
	created := t.Index
	old := t.check(n.Node, c.CheckID)
	if old != nil {
		c.Indexes = old.Indexes
		if sameCheck(c, old) {
			return old, nil
		}
		created = old.CreateIndex
	}
	c.Indexes = catalog.Indexes{CreateIndex: created, ModifyIndex: t.Index}
	t.shareCheck(c)
	checks.Insert(t.tx, c)
	t.mark(checks.Name())
	t.checkChanged(n, of, c.ServiceID)
	if old != nil && old.ServiceID != c.ServiceID {
		t.checkChanged(n, t.instance(n.Node, old.ServiceID), old.ServiceID)
	}
	if c.Status == catalog.Critical {
		t.endSessionsBoundTo(n.Node, c.CheckID)
	}
	return c, nil
}

// checkChanged reassembles what a changed check counts for: the instance i with this ID (nil when it is gone), or all
// instances of the node when the ID is empty.
func (t *Tx) checkChanged(n *catalog.Node, i *catalog.Instance, id string) {
	switch {
	case id == "":
		t.reassemble(n, touchHealth)
	case i != nil:
		t.reassembleOne(i.Node, i.Service, touchHealth)
	}
}

// DeleteCheck removes a check and ends the sessions bound to it; it reports whether there was one.
func (t *Tx) DeleteCheck(node, id string) bool {
	c := t.check(node, id)
	if c == nil {
		return false
	}
	checks.Delete(t.tx, c)
	t.mark(checks.Name())
	if n, ok := nodes.Peek(t.tx, "id", nameKey(node)); ok {
		t.checkChanged(n, t.instance(node, c.ServiceID), c.ServiceID)
	}
	t.endSessionsBoundTo(c.Node, c.CheckID)
	return true
}
