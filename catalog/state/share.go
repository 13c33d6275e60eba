package state

import (
	"maps"
	"slices"

	"github.com/sarnmesh/sarn/catalog"
)

// What is stored stays as it is, so objects that have equal parts may have the same ones: the instances of a service have
// mostly the same tags and meta, and a map takes more memory than anything else of an instance. The one to share with is
// found among what is stored, so nothing is kept for sharing alone.

// shareService gives an instance the parts of another of its service that are equal to its own.
func (t *Tx) shareService(s *catalog.Service) {
	i, ok := instances.Peek(t.tx, byName, nameKey(s.Service))
	if !ok {
		return
	}
	of := i.Service
	share(&s.Service, of.Service)
	shareSlice(&s.Tags, of.Tags)
	shareMap(&s.Meta, of.Meta)
	shareMap(&s.TaggedAddresses, of.TaggedAddresses)
	shareValue(&s.Weights, of.Weights)
	shareValue(&s.Locality, of.Locality)
}

// shareNode is shareService for a node; any other may have the same parts.
func (t *Tx) shareNode(n *catalog.Node) {
	for of := range nodes.PeekPrefix(t.tx, "id", nil) {
		share(&n.Datacenter, of.Datacenter)
		shareMap(&n.Meta, of.Meta)
		shareMap(&n.TaggedAddresses, of.TaggedAddresses)
		shareValue(&n.Locality, of.Locality)
		return // the first will do
	}
}

// shareCheck gives a check the names that it has in common with its instance and with others.
func (t *Tx) shareCheck(c *catalog.Check) {
	for _, status := range [...]string{catalog.Passing, catalog.Warning, catalog.Critical} {
		share(&c.Status, status)
	}
	if c.ServiceID == "" {
		return
	}
	if i := t.instance(c.Node, c.ServiceID); i != nil {
		share(&c.ServiceID, i.Service.ID)
	}
}

func share(s *string, with string) {
	if *s == with {
		*s = with
	}
}

// Empty ones are left alone here: nil is another answer.

func shareSlice[E comparable](s *[]E, with []E) {
	if len(*s) > 0 && slices.Equal(*s, with) {
		*s = with
	}
}

func shareMap[V comparable](m *map[string]V, with map[string]V) {
	if len(*m) > 0 && maps.Equal(*m, with) {
		*m = with
	}
}

func shareValue[T comparable](p **T, with *T) {
	if *p != nil && with != nil && **p == *with {
		*p = with
	}
}
