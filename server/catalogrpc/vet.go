package catalogrpc

import (
	"fmt"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/state"
)

// A Vetter asks for the rights that changes of the catalog need (spec/registry.md section 14): also for what a change
// replaces, so that no object is changed without a right on it. It knows the instances that earlier changes of the same
// request make.
type Vetter struct {
	authorizer *acl.Authorizer
	view       *state.View
	made       map[instanceID]string // the service names of instances made by this request
	permit     acl.Permit
}

// Permit returns what the answers to the questions so far add up to.
func (t *Vetter) Permit() acl.Permit { return t.permit }

type instanceID struct{ node, id string }

// NewVetter returns a vetter that holds changes against the view.
func NewVetter(z *acl.Authorizer, v *state.View) *Vetter {
	return &Vetter{authorizer: z, view: v, made: map[instanceID]string{}}
}

// SetNode asks for what storing a node needs: nothing when it stays as it is.
func (t *Vetter) SetNode(n *catalog.Node) error {
	changes, renamed := t.view.NodeChanges(n)
	if !changes {
		t.permit = acl.Open() // nothing to be done
		return nil
	}
	if renamed != "" {
		if err := t.writeNode(renamed); err != nil {
			return err
		}
	}
	return t.writeNode(n.Node)
}

// SetService asks for what storing an instance needs.
func (t *Vetter) SetService(node string, s *catalog.Service) error {
	if err := t.writeService(s.Service); err != nil {
		return err
	}
	if s.Kind == catalog.KindConnectProxy {
		if err := t.writeService(s.Proxy.DestinationServiceName); err != nil {
			return err
		}
	}
	if old := t.serviceName(node, s.ID); old != "" && old != s.Service {
		if err := t.writeService(old); err != nil {
			return err
		}
	}
	t.made[instanceID{node, s.ID}] = s.Service
	return nil
}

// SetCheck asks for what storing a check needs. A service that does not exist is left to the state to refuse.
func (t *Vetter) SetCheck(c *catalog.Check) error {
	if c.ServiceID == "" {
		if err := t.writeNode(c.Node); err != nil {
			return err
		}
	} else if name := t.serviceName(c.Node, c.ServiceID); name != "" {
		if err := t.writeService(name); err != nil {
			return err
		}
	}
	return t.replaceCheck(c.Node, c.CheckID)
}

// replaceCheck asks for what changing or removing a stored check needs.
func (t *Vetter) replaceCheck(node, id string) error {
	old := t.view.Check(node, id)
	switch {
	case old == nil:
		return nil
	case old.ServiceID == "":
		return t.writeNode(old.Node)
	}
	return t.writeService(old.ServiceName)
}

// DeleteNode asks for what removing a node needs.
func (t *Vetter) DeleteNode(node string) error { return t.writeNode(node) }

// DeleteService asks for what removing an instance needs. Without a right on the node, it must exist.
func (t *Vetter) DeleteService(node, id string) error {
	if t.writeNode(node) == nil {
		return nil
	}
	name := t.serviceName(node, id)
	if name == "" {
		return fmt.Errorf("Unknown service ID '%s'", id)
	}
	return t.writeService(name)
}

// DeleteCheck asks for what removing a check needs. Without a right on the node, it must exist.
func (t *Vetter) DeleteCheck(node, id string) error {
	if t.writeNode(node) == nil {
		return nil
	}
	if t.view.Check(node, id) == nil {
		return fmt.Errorf("Unknown check ID '%s'", id)
	}
	return t.replaceCheck(node, id)
}

// writeNode asks for the right on a node: in the spelling of the request, and in that of the node that is there, which
// are the same name to the state but not to rules.
func (t *Vetter) writeNode(name string) error {
	if old := t.view.Node(name); old != nil && old.Node != name {
		if err := t.require(acl.Node, old.Node); err != nil {
			return err
		}
	}
	return t.require(acl.Node, name)
}

func (t *Vetter) writeService(name string) error {
	return t.require(acl.Service, name)
}

func (t *Vetter) require(r acl.Resource, name string) error {
	permit, err := t.authorizer.Require(r, acl.Write, name)
	if err == nil {
		t.permit = permit
	}
	return err
}

// serviceName returns the name of an instance that exists or that the request makes, empty if there is none.
func (t *Vetter) serviceName(node, id string) string {
	if name, ok := t.made[instanceID{node, id}]; ok {
		return name
	}
	if s := t.view.Service(node, id); s != nil {
		return s.Service
	}
	return ""
}
