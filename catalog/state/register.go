package state

import (
	"fmt"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
)

// Register applies a registration as a whole, or returns an error and leaves what it did to be undone (see Try). It
// keeps the objects of the request. The rules are in spec/registry.md section 8.1.
func (t *Tx) Register(r *catalog.RegisterRequest) error {
	n, ok := nodes.Peek(t.tx, "id", nameKey(r.Node))
	if !ok || !r.SkipNodeUpdate {
		var err error
		n, err = t.SetNode(&catalog.Node{
			ID: r.ID, Node: r.Node, Address: r.Address, Datacenter: r.Datacenter, TaggedAddresses: r.TaggedAddresses,
			Meta: r.NodeMeta, Locality: r.Locality, PeerName: r.PeerName,
		})
		if err != nil {
			return fmt.Errorf("failed inserting node: %w", err)
		}
	}
	if r.Service != nil {
		if _, err := t.SetService(n.Node, r.Service); err != nil {
			return fmt.Errorf("failed inserting service: %w", err)
		}
	}
	return t.together(func() error {
		if r.Check != nil {
			if err := t.registerCheck(n, r.Check); err != nil {
				return err
			}
		}
		for _, c := range r.Checks {
			if c == nil {
				continue
			}
			if err := t.registerCheck(n, c); err != nil {
				return err
			}
		}
		return nil
	})
}

func (t *Tx) registerCheck(n *catalog.Node, c *catalog.Check) error {
	if !strings.EqualFold(c.Node, n.Node) {
		return fmt.Errorf("Node '%s' for check '%s' doesn't match register request node '%s'", c.Node, c.CheckID, n.Node)
	}
	if c.ServiceID != "" && t.instance(n.Node, c.ServiceID) == nil {
		return fmt.Errorf("Unknown service ID '%s' for check ID '%s'", c.ServiceID, c.CheckID)
	}
	if _, err := t.SetCheck(c); err != nil {
		return fmt.Errorf("failed inserting check: %w", err)
	}
	return nil
}

// Deregister removes an instance, else a check, else a node. What is not there is no error.
func (t *Tx) Deregister(r *catalog.DeregisterRequest) {
	switch {
	case r.ServiceID != "":
		t.DeleteService(r.Node, r.ServiceID)
	case r.CheckID != "":
		t.DeleteCheck(r.Node, r.CheckID)
	default:
		t.DeleteNode(r.Node)
	}
}

// NodeChanges reports whether storing a node would add or change one, and returns the name of the node that it would
// rename, empty if none.
func (v *View) NodeChanges(n *catalog.Node) (changes bool, renamed string) {
	if n.ID != "" {
		if known := v.nodeByID(n.ID); known != nil && !strings.EqualFold(known.Node, n.Node) {
			return true, known.Node
		}
	}
	old, ok := nodes.Peek(v.tx, "id", nameKey(n.Node))
	if !ok {
		return true, ""
	}
	next := *n
	next.ID = strings.ToLower(n.ID)
	return !sameNode(&next, old), ""
}
