package state

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/internal/mvcc"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// instances holds every instance together with its node and the checks that count for it, so that a read needs one
// walk over an index and no joins. Whatever changes a part puts a new Instance in its place (see reassemble); what a
// read returns is shared and stays as it is. The indexes are the name of the service, the name of the service that a
// proxy or native instance is the mesh's way to, and the kind.
var instances = mvcc.NewTable("service", func(buf []byte, i *catalog.Instance) ([]byte, bool) {
	return mvcc.String(appendName(buf, i.Node.Node), i.Service.ID), true
},
	mvcc.Index[*catalog.Instance]{Name: byName, Key: func(buf []byte, i *catalog.Instance) ([]byte, bool) {
		return appendName(buf, i.Service.Service), true
	}},
	mvcc.Index[*catalog.Instance]{Name: byMesh, Key: func(buf []byte, i *catalog.Instance) ([]byte, bool) {
		name := meshName(i.Service)
		return appendName(buf, name), name != ""
	}},
	mvcc.Index[*catalog.Instance]{Name: byKind, Key: func(buf []byte, i *catalog.Instance) ([]byte, bool) {
		return mvcc.String(buf, i.Service.Kind), i.Service.Kind != ""
	}},
)

// Indexes of instances.
const (
	byName = "name"
	byMesh = "mesh"
	byKind = "kind"
)

// meshName returns the service that mesh traffic reaches through the instance, empty if none.
func meshName(s *catalog.Service) string {
	switch {
	case s.Kind == catalog.KindConnectProxy:
		return s.Proxy.DestinationServiceName
	case s.Connect.Native:
		return s.Service
	}
	return ""
}

// A group is the instances under one name in the index byName or byMesh. Reads of a group watch one mark of it, so
// that any number of waiters on a service of any size cost one channel each.
type group struct{ index, name string }

// catalogMark is raised by changes of the group's instances and their nodes, healthMark by those of their checks too.
func (g group) catalogMark() string { return "catalog-" + g.index + "." + g.name }
func (g group) healthMark() string  { return "health-" + g.index + "." + g.name }

// extinct is the mark of the last time that a group lost its last instance.
const extinct = "service-extinct"

// groups returns the groups of an instance.
func groups(s *catalog.Service) []group {
	all := []group{{byName, strings.ToLower(s.Service)}}
	if name := meshName(s); name != "" {
		all = append(all, group{byMesh, strings.ToLower(name)})
	}
	return all
}

// A touch says what kind of change happened to an instance.
type touch bool

const (
	touchHealth  touch = false // its checks
	touchCatalog touch = true  // itself or its node
)

func (t *Tx) touch(s *catalog.Service, what touch) {
	for _, g := range groups(s) {
		if what == touchCatalog {
			t.mark(g.catalogMark())
		}
		t.mark(g.healthMark())
	}
}

func instanceKey(node, id string) []byte {
	return mvcc.String(appendName(make([]byte, 0, len(node)+len(id)+2), node), id)
}

// instance returns an instance, nil when there is none. It records no watch.
func (v *View) instance(node, id string) *catalog.Instance {
	i, _ := instances.Peek(v.tx, "id", instanceKey(node, id))
	return i
}

// Service returns an instance, nil when there is none.
func (v *View) Service(node, id string) *catalog.Service {
	i, ok := instances.First(v.tx, "id", instanceKey(node, id))
	if !ok {
		return nil
	}
	return i.Service
}

// instancesOn returns the instances of a node in the order of their IDs. It records no watch.
func (v *View) instancesOn(node string) iter.Seq[*catalog.Instance] {
	return instances.PeekPrefix(v.tx, "id", nameKey(node))
}

// Instances returns the instances of a service, ordered by node name, then ID. With catalogOnly, changes of checks
// neither count for the index nor wake a waiter.
func (v *View) Instances(service string, catalogOnly bool) (uint64, []*catalog.Instance) {
	return v.group(group{byName, strings.ToLower(service)}, catalogOnly)
}

// MeshInstances is Instances for those through which mesh traffic reaches the service: its proxies and its native
// instances.
func (v *View) MeshInstances(service string, catalogOnly bool) (uint64, []*catalog.Instance) {
	return v.group(group{byMesh, strings.ToLower(service)}, catalogOnly)
}

func (v *View) group(g group, catalogOnly bool) (uint64, []*catalog.Instance) {
	var all []*catalog.Instance
	for i := range instances.PeekGet(v.tx, g.index, nameKey(g.name)) {
		if all == nil {
			all = make([]*catalog.Instance, 0, 8)
		}
		all = append(all, i)
	}
	mark := g.healthMark()
	if catalogOnly {
		mark = g.catalogMark()
	}
	index := v.marked(mark)
	if len(all) > 0 {
		return index, all
	}
	if index = v.marked(extinct); index == 0 {
		index = v.peeked(instances.Name(), nodes.Name())
	}
	return index, nil
}

// InstancesOfKind returns the instances of a kind other than typical, ordered by node name, then ID. The index is that
// of the last change of any instance.
func (v *View) InstancesOfKind(kind string) (uint64, []*catalog.Instance) {
	return v.peeked(instances.Name(), nodes.Name(), checks.Name()), slices.Collect(instances.Get(v.tx, byKind, mvcc.String(nil, kind)))
}

// AllInstances returns every instance, ordered by service name, node name and ID. The index is that of the last change
// of an instance; only such a change wakes a waiter.
func (v *View) AllInstances() (uint64, iter.Seq[*catalog.Instance]) {
	return v.marked(instances.Name()), instances.PeekPrefix(v.tx, byName, nil)
}

// MeshMember reports whether a service has an instance in the mesh: a native one, or one with a proxy.
func (v *View) MeshMember(service string) bool {
	for range instances.PeekGet(v.tx, byMesh, nameKey(service)) {
		return true
	}
	return false
}

// sameService reports whether the two differ in their indexes at most.
func sameService(a, b *catalog.Service) bool {
	return a.Kind == b.Kind && a.ID == b.ID && a.Service == b.Service && slices.Equal(a.Tags, b.Tags) &&
		a.Address == b.Address && maps.Equal(a.TaggedAddresses, b.TaggedAddresses) && maps.Equal(a.Meta, b.Meta) &&
		a.Port == b.Port && a.SocketPath == b.SocketPath && *a.Weights == *b.Weights &&
		a.EnableTagOverride == b.EnableTagOverride && sameLocality(a.Locality, b.Locality) &&
		a.Connect.Native == b.Connect.Native && a.PeerName == b.PeerName &&
		slices.Equal(a.Connect.PeerMeta, b.Connect.PeerMeta) && sameProxy(&a.Proxy, &b.Proxy)
}

func sameProxy(a, b *catalog.Proxy) bool {
	// Most instances have none.
	none := func(p *catalog.Proxy) bool {
		return p.DestinationServiceName == "" && p.Config == nil && p.Upstreams == nil && p.Mode == ""
	}
	if none(a) != none(b) {
		return false
	}
	return reflect.DeepEqual(a, b)
}

// SetService adds or replaces an instance on a node and returns it as it is stored. It keeps s.
func (t *Tx) SetService(node string, s *catalog.Service) (*catalog.Service, error) {
	n, ok := nodes.Peek(t.tx, "id", nameKey(node))
	if !ok {
		return nil, errNoNode
	}
	if s.Weights == nil || s.Weights.Validate() != nil {
		s.Weights = catalog.DefaultWeights()
	}
	if err := catalog.ValidateMeta(s.Meta, s.Kind); err != nil {
		return nil, fmt.Errorf("Invalid Service Meta for node %s and serviceID %s: %w", n.Node, s.ID, err)
	}
	if err := t.giveVirtualIP(s); err != nil {
		return nil, err
	}
	i := &catalog.Instance{Node: n, Service: s}
	created := t.Index
	old := t.instance(n.Node, s.ID)
	if old != nil {
		s.Indexes = old.Service.Indexes
		if sameService(s, old.Service) {
			return old.Service, nil
		}
		created = old.Service.CreateIndex
		i.Checks = old.Checks
	} else {
		i.Checks = t.countingChecks(n.Node, s.ID)
	}
	s.Indexes = catalog.Indexes{CreateIndex: created, ModifyIndex: t.Index}
	t.shareService(s)
	instances.Insert(t.tx, i)
	t.mark(instances.Name())
	t.mark(nodeMark(n.Node))
	t.touch(s, touchCatalog)
	if old != nil {
		t.left(old.Service, groups(s))
	}
	return s, nil
}

// left tells the groups of an instance, except those it is still in, that it has left.
func (t *Tx) left(s *catalog.Service, still []group) {
	for _, g := range groups(s) {
		if slices.Contains(still, g) {
			continue
		}
		if _, more := instances.Peek(t.tx, g.index, nameKey(g.name)); more {
			t.mark(g.catalogMark())
			t.mark(g.healthMark())
			continue
		}
		t.unmark(g.catalogMark())
		t.unmark(g.healthMark())
		t.mark(extinct)
		if g.index == byMesh {
			t.releaseVirtualIP(meshName(s), s.PeerName)
		}
	}
}

// giveVirtualIP gives an instance the tagged addresses that the servers own: the virtual IP of the service that it is
// the mesh's way to, or for a terminating gateway those of the services linked to it (spec/registry.md section 5). What
// the registrar says of them does not count.
func (t *Tx) giveVirtualIP(s *catalog.Service) error {
	if meshName(s) == "" && s.Kind != catalog.KindTerminatingGateway && len(s.TaggedAddresses) == 0 {
		return nil
	}
	own := map[string]catalog.ServiceAddress{}
	add := func(tag, service string) error {
		if err := t.assignVirtualIP(service, s.PeerName); err != nil {
			return err
		}
		if ip := t.VirtualIP(service, s.PeerName); ip != nil {
			own[tag] = catalog.ServiceAddress{Address: ip.Address(), Port: s.Port}
		}
		return nil
	}
	if name := meshName(s); name != "" {
		if err := add(catalog.VirtualAddressTag, name); err != nil {
			return err
		}
	}
	if s.Kind == catalog.KindTerminatingGateway {
		if g := EntryAs[entry.TerminatingGateway](&t.View, entry.KindTerminatingGateway, s.Service); g != nil {
			for _, service := range named(g) {
				if err := add(catalog.VirtualAddressTag+":"+service, service); err != nil {
					return err
				}
			}
		}
	}
	tagged := own
	for tag, address := range s.TaggedAddresses {
		if tag != catalog.VirtualAddressTag && !strings.HasPrefix(tag, catalog.VirtualAddressTag+":") {
			tagged[tag] = address
		}
	}
	if s.TaggedAddresses = tagged; len(tagged) == 0 {
		s.TaggedAddresses = nil
	}
	return nil
}

// retagGateway brings the tagged addresses of a terminating gateway's instances in line with its entry.
func (t *Tx) retagGateway(name string) error {
	for _, i := range slices.Collect(instances.PeekGet(t.tx, byName, nameKey(name))) {
		if i.Service.Kind != catalog.KindTerminatingGateway {
			continue
		}
		s := *i.Service
		if _, err := t.SetService(i.Node.Node, &s); err != nil {
			return err
		}
	}
	return nil
}

// DeleteService removes an instance with its checks; it reports whether there was one.
func (t *Tx) DeleteService(node, id string) bool {
	i := t.instance(node, id)
	if i == nil {
		return false
	}
	for _, c := range slices.Clone(i.Checks) {
		if c.ServiceID != "" {
			t.DeleteCheck(node, c.CheckID)
		}
	}
	instances.Delete(t.tx, i)
	t.mark(instances.Name())
	t.mark(nodeMark(node))
	t.left(i.Service, nil)
	return true
}

// reassemble puts new instances in the place of those on a node after a change of the node or its checks.
func (t *Tx) reassemble(n *catalog.Node, what touch) {
	for _, i := range slices.Collect(t.instancesOn(n.Node)) {
		t.reassembleOne(n, i.Service, what)
	}
}

func (t *Tx) reassembleOne(n *catalog.Node, s *catalog.Service, what touch) {
	if t.waiting {
		t.stale = append(t.stale, catalog.Instance{Node: n, Service: s})
	} else {
		instances.Insert(t.tx, &catalog.Instance{Node: n, Service: s, Checks: t.countingChecks(n.Node, s.ID)})
	}
	t.touch(s, what)
}

// together runs f, which only sets checks, and reassembles each instance once after it however many of its checks f
// sets. When f fails, its changes are to be undone.
func (t *Tx) together(f func() error) error {
	t.waiting = true
	defer func() { t.waiting, t.stale = false, t.stale[:0] }()
	if err := f(); err != nil {
		return err
	}
	seen := make(map[*catalog.Service]bool, len(t.stale))
	for _, i := range t.stale {
		if !seen[i.Service] {
			seen[i.Service] = true
			instances.Insert(t.tx, &catalog.Instance{Node: i.Node, Service: i.Service, Checks: t.countingChecks(i.Node.Node, i.Service.ID)})
		}
	}
	return nil
}

// countingChecks returns the checks that count for an instance: its node's, then its own.
func (t *Tx) countingChecks(node, id string) []*catalog.Check {
	var all []*catalog.Check
	for c := range t.checksFor(node, "") {
		all = append(all, c)
	}
	for c := range t.checksFor(node, id) {
		all = append(all, c)
	}
	return all
}

// An instanceRecord is an instance in a snapshot.
type instanceRecord struct {
	Node    string
	Service *catalog.Service
}

// storedInstances describes the table of instances; nodes and checks are restored before it.
func storedInstances(kind uint64) subject {
	return subject{
		schema: instances, name: instances.Name(), kind: kind,
		dump: func(v *View, emit func([]byte) error) error {
			for i := range instances.PeekPrefix(v.tx, "id", nil) {
				data, err := rpc.Marshal(&instanceRecord{i.Node.Node, i.Service})
				if err != nil {
					return fmt.Errorf("encode instance: %w", err)
				}
				if err := emit(data); err != nil {
					return err
				}
			}
			return nil
		},
		load: func(t *Tx, version uint64, data []byte) error {
			if version != 1 {
				return fmt.Errorf("instance has version %d, not known to this server", version)
			}
			var r instanceRecord
			if err := rpc.Unmarshal(data, &r); err != nil {
				return fmt.Errorf("decode instance: %w", err)
			}
			if r.Service == nil {
				return errors.New("instance without a service")
			}
			n, ok := nodes.Peek(t.tx, "id", nameKey(r.Node))
			if !ok {
				return fmt.Errorf("instance %s is on an unknown node %s", r.Service.ID, r.Node)
			}
			if r.Service.Weights == nil {
				r.Service.Weights = catalog.DefaultWeights()
			}
			t.shareService(r.Service)
			instances.Insert(t.tx, &catalog.Instance{Node: n, Service: r.Service, Checks: t.countingChecks(n.Node, r.Service.ID)})
			return nil
		},
	}
}
