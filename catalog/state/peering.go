package state

import (
	"bytes"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/internal/mvcc"
)

var peerings = mvcc.NewTable("peering", func(buf []byte, p *peering.Peering) ([]byte, bool) {
	return mvcc.String(buf, p.Name), true
}, mvcc.Index[*peering.Peering]{Name: "uuid", Key: func(buf []byte, p *peering.Peering) ([]byte, bool) {
	return mvcc.String(buf, p.ID), true
}})

// peeringSecrets are never part of an answer.
var peeringSecrets = mvcc.NewTable("peering-secret", func(buf []byte, s *peering.Secrets) ([]byte, bool) {
	return mvcc.String(buf, s.ID), true
})

var peerBundles = mvcc.NewTable("peer-bundle", func(buf []byte, b *peering.Bundle) ([]byte, bool) {
	return mvcc.String(buf, b.Peer), true
})

// imports holds what is known of services of other clusters apart from the catalog of this one: whatever a peer sends, it
// can neither stand beside nor replace what is registered here.
var imports = mvcc.NewTable("import", func(buf []byte, i *peering.Import) ([]byte, bool) {
	return mvcc.String(mvcc.String(buf, i.Peer), strings.ToLower(i.Service)), true
})

func importKey(peer, service string) []byte {
	return mvcc.String(mvcc.String(nil, peer), strings.ToLower(service))
}

// importGone is the mark of the last removal of an import.
const importGone = "import-gone"

// Peerings returns all peerings in the order of their names, with the index of the last change of one.
func (v *View) Peerings() (uint64, []*peering.Peering) {
	return v.marked(peerings.Name()), slices.Collect(peerings.All(v.tx, "id"))
}

// Peering returns a peering, nil when there is none, with its index.
func (v *View) Peering(name string) (uint64, *peering.Peering) {
	if p, ok := peerings.First(v.tx, "id", mvcc.String(nil, name)); ok {
		return p.ModifyIndex, p
	}
	return v.peeked(peerings.Name()), nil
}

// PeeringByID returns a peering, nil when there is none.
func (v *View) PeeringByID(id string) *peering.Peering {
	p, _ := peerings.First(v.tx, "uuid", mvcc.String(nil, id))
	return p
}

// PeeringSecrets returns the secrets of a peering, nil when it has none.
func (v *View) PeeringSecrets(id string) *peering.Secrets {
	s, _ := peeringSecrets.First(v.tx, "id", mvcc.String(nil, id))
	return s
}

// PeerBundle returns whom to trust for a peer, nil while that is not known.
func (v *View) PeerBundle(peer string) (uint64, *peering.Bundle) {
	if b, ok := peerBundles.First(v.tx, "id", mvcc.String(nil, peer)); ok {
		return b.ModifyIndex, b
	}
	return v.peeked(peerBundles.Name()), nil
}

// PeerBundles returns whom to trust for all peers, ordered by peer.
func (v *View) PeerBundles() (uint64, []*peering.Bundle) {
	return v.marked(peerBundles.Name()), slices.Collect(peerBundles.All(v.tx, "id"))
}

// Import returns a service of a peer, nil when it is not imported.
func (v *View) Import(peer, service string) (uint64, *peering.Import) {
	if i, ok := imports.First(v.tx, "id", importKey(peer, service)); ok {
		return i.ModifyIndex, i
	}
	if index := v.peeked(importGone); index > 0 {
		return index, nil
	}
	return v.peeked(imports.Name()), nil
}

// Imports returns what is imported from a peer, from all when that is empty, ordered by peer and service, with the index
// of the last change of any import.
func (v *View) Imports(peer string) (uint64, []*peering.Import) {
	var prefix []byte
	if peer != "" {
		prefix = mvcc.String(nil, peer)
	}
	return v.peeked(imports.Name()), slices.Collect(imports.Prefix(v.tx, "id", prefix))
}

// Exports returns the names of the services that are exported to a peer, in order, of those that are known: they have
// instances, or are spoken of in entries.
func (v *View) Exports(peer string) (uint64, []string) {
	index, all := v.AllExports()
	var names []string
	for name, peers := range all {
		if slices.Contains(peers, peer) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return index, names
}

// AllExports returns the services that are exported, with their peers in order. The wildcard stands for the services that
// have instances and are no proxies or gateways.
func (v *View) AllExports() (uint64, map[string][]string) {
	x := EntryAs[entry.ExportedServices](v, entry.KindExportedServices, entry.ExportedServicesName)
	index := v.peeked(entryMark(entry.KindExportedServices))
	if x == nil {
		return index, nil
	}
	all := map[string][]string{}
	add := func(name string, consumers []entry.ServiceConsumer) {
		for _, c := range consumers {
			if c.Peer != "" && !slices.Contains(all[name], c.Peer) {
				all[name] = append(all[name], c.Peer)
			}
		}
	}
	for _, s := range x.Services {
		if s.Name != entry.Wildcard {
			if s.Name != catalog.ServerServiceName {
				add(s.Name, s.Consumers)
			}
			continue
		}
		changed, services := v.AllInstances()
		index = max(index, changed)
		last := ""
		for i := range services {
			if i.Service.Service != last && i.Service.Kind == catalog.KindTypical && i.Service.Service != catalog.ServerServiceName {
				last = i.Service.Service
				add(last, s.Consumers)
			}
		}
	}
	for _, peers := range all {
		slices.Sort(peers)
	}
	return index, all
}

// Errors of changes of peerings.
var (
	errPeeringChanged = errors.New("the peering was changed at the same time, try again")
	errExchanged      = errors.New("a new peering token must be generated: the secret of this one was used or replaced")
	errNoPeering      = errors.New("the peering is gone or was deleted")
)

// UpdatePeering applies an update, or returns an error and leaves what it did to be undone (see Try).
func (t *Tx) UpdatePeering(u *peering.Update) error {
	if u.Peering != nil {
		if err := t.setPeering(u); err != nil {
			return err
		}
	}
	if u.Exchange != nil && u.Secrets != nil {
		if err := t.exchangeSecrets(u); err != nil {
			return err
		}
	}
	if u.Status != nil {
		if err := t.setPeeringStatus(u.Status); err != nil {
			return err
		}
	}
	if u.Promote != "" {
		if s := t.PeeringSecrets(u.Promote); s != nil && len(s.Pending) > 0 {
			next := *s
			next.Active, next.Pending = s.Pending, nil
			peeringSecrets.Insert(t.tx, &next)
		}
	}
	if u.Forget != "" {
		t.forgetPeering(u.Forget)
	}
	return nil
}

func (t *Tx) setPeering(u *peering.Update) error {
	p := *u.Peering
	_, old := t.Peering(p.Name)
	switch {
	case (old == nil) != u.Fresh, old != nil && (old.ID != p.ID || old.ModifyIndex != p.ModifyIndex):
		return errPeeringChanged
	case old == nil && t.PeeringByID(p.ID) != nil:
		return errPeeringChanged
	}
	if u.Secrets != nil {
		s := *u.Secrets
		s.ID = p.ID
		peeringSecrets.Insert(t.tx, &s)
	}
	t.putPeering(&p, old)
	return nil
}

func (t *Tx) exchangeSecrets(u *peering.Update) error {
	p, s := t.PeeringByID(u.Secrets.ID), t.PeeringSecrets(u.Secrets.ID)
	if p == nil || !p.Open() || s == nil || len(s.Establishment) == 0 || !bytes.Equal(s.Establishment, u.Exchange) {
		return errExchanged
	}
	next := *u.Secrets
	peeringSecrets.Insert(t.tx, &next)
	return nil
}

// putPeering stores p, whose indexes it sets, in the place of old, unless they are equal.
func (t *Tx) putPeering(p, old *peering.Peering) {
	p.Indexes = catalog.Indexes{CreateIndex: t.Index, ModifyIndex: t.Index}
	if old != nil {
		p.Indexes = old.Indexes
		if samePeering(p, old) {
			return
		}
		p.ModifyIndex = t.Index
	}
	peerings.Insert(t.tx, p)
	t.mark(peerings.Name())
}

func samePeering(a, b *peering.Peering) bool {
	return a.ID == b.ID && a.Name == b.Name && maps.Equal(a.Meta, b.Meta) && a.State == b.State && a.DeletedAt.Equal(b.DeletedAt) &&
		a.PeerID == b.PeerID && slices.Equal(a.PeerCAPems, b.PeerCAPems) && a.PeerServerName == b.PeerServerName &&
		slices.Equal(a.PeerServerAddresses, b.PeerServerAddresses) && slices.Equal(a.ManualAddresses, b.ManualAddresses) &&
		a.Fixed == b.Fixed && reflect.DeepEqual(a.Remote, b.Remote)
}

func (t *Tx) setPeeringStatus(s *peering.StatusUpdate) error {
	old := t.PeeringByID(s.ID)
	if old == nil || !old.Open() {
		return errNoPeering
	}
	p := *old
	if s.State != "" {
		p.State = s.State
	}
	if s.Remote != nil {
		p.Remote = *s.Remote
	}
	if p.Dials() {
		if len(s.Roots) > 0 {
			p.PeerCAPems = s.Roots
		}
		if len(s.Addresses) > 0 && !p.Fixed {
			p.PeerServerAddresses = s.Addresses
		}
	}
	t.putPeering(&p, old)
	return nil
}

// forgetPeering removes a peering, its secrets, and everything it brought.
func (t *Tx) forgetPeering(id string) {
	p := t.PeeringByID(id)
	if p == nil {
		return
	}
	t.removeImports(p.Name, -1)
	t.removeBundle(p.Name)
	if s := t.PeeringSecrets(id); s != nil {
		peeringSecrets.Delete(t.tx, s)
	}
	peerings.Delete(t.tx, p)
	t.mark(peerings.Name())
}

func (t *Tx) removeBundle(peer string) {
	if _, b := t.PeerBundle(peer); b != nil {
		peerBundles.Delete(t.tx, b)
		t.mark(peerBundles.Name())
	}
}

// removeImports removes up to so many imports of a peer, all of them when most is negative, and returns how many are left.
func (t *Tx) removeImports(peer string, most int) (left int) {
	_, all := t.Imports(peer)
	if most < 0 || most > len(all) {
		most = len(all)
	}
	for _, i := range all[:most] {
		t.removeImport(i)
	}
	return len(all) - most
}

func (t *Tx) removeImport(i *peering.Import) {
	imports.Delete(t.tx, i)
	t.mark(imports.Name())
	t.mark(importGone)
	t.releaseVirtualIP(i.Service, i.Peer)
}

// ChangeImports applies a change of what is imported. The peer is that of the peering, whatever the change says.
func (t *Tx) ChangeImports(c *peering.Change) (*peering.ChangeReply, error) {
	p := t.PeeringByID(c.ID)
	if p == nil {
		return nil, errNoPeering
	}
	if c.RemoveAll > 0 {
		left := t.removeImports(p.Name, c.RemoveAll)
		if left == 0 {
			t.removeBundle(p.Name)
		}
		return &peering.ChangeReply{Left: left}, nil
	}
	if !p.Open() {
		return nil, errNoPeering
	}
	for _, service := range c.Remove {
		if _, i := t.Import(p.Name, service); i != nil {
			t.removeImport(i)
		}
	}
	if c.Bundle != nil {
		if err := t.setBundle(p.Name, c.Bundle); err != nil {
			return nil, err
		}
	}
	if c.Import != nil {
		if err := t.setImport(p.Name, c.Import); err != nil {
			return nil, err
		}
	}
	return &peering.ChangeReply{}, nil
}

var errTrustDomain = errors.New("the trust domain is that of this cluster or of another peer")

// setBundle stores whom to trust for a peer. Nobody vouches for the members of another cluster: no two peers have one
// trust domain, and none has that of this cluster.
func (t *Tx) setBundle(peer string, b *peering.Bundle) error {
	own := *b
	own.Peer = peer
	if _, config := t.CAConfig(); config != nil && strings.EqualFold(own.TrustDomain, config.ClusterID+".consul") {
		return errTrustDomain
	}
	_, all := t.PeerBundles()
	own.Indexes = catalog.Indexes{CreateIndex: t.Index, ModifyIndex: t.Index}
	for _, other := range all {
		switch {
		case other.Peer != peer:
			if strings.EqualFold(other.TrustDomain, own.TrustDomain) {
				return errTrustDomain
			}
		case !strings.EqualFold(other.TrustDomain, own.TrustDomain):
			return errors.New("the trust domain of a peer does not change")
		case other.Partition == own.Partition && slices.Equal(other.RootPEMs, own.RootPEMs):
			return nil
		default:
			own.CreateIndex = other.CreateIndex
		}
	}
	peerBundles.Insert(t.tx, &own)
	t.mark(peerBundles.Name())
	return nil
}

// setImport stores a service of a peer, with the virtual IP that stands for it here. It keeps the instances of i.
func (t *Tx) setImport(peer string, i *peering.Import) error {
	if err := t.assignVirtualIP(i.Service, peer); err != nil {
		return err
	}
	own := &peering.Import{Peer: peer, Service: i.Service, Instances: i.Instances, Gateways: i.Gateways}
	for _, in := range own.Instances {
		adopt(peer, in, "")
	}
	virtual := ""
	if ip := t.VirtualIP(own.Service, peer); ip != nil {
		virtual = ip.Address()
	}
	for _, in := range own.Gateways {
		adopt(peer, in, virtual)
	}
	at := catalog.Indexes{CreateIndex: t.Index, ModifyIndex: t.Index}
	if _, old := t.Import(peer, own.Service); old != nil {
		index(own, old.Indexes)
		if reflect.DeepEqual(own, old) {
			return nil
		}
		at.CreateIndex = old.CreateIndex
	}
	index(own, at)
	imports.Insert(t.tx, own)
	t.mark(imports.Name())
	return nil
}

// adopt makes an instance one of a peer, with a virtual IP unless that is empty. What the peer says of such things does
// not count.
func adopt(peer string, i *catalog.Instance, virtual string) {
	i.Node.PeerName, i.Service.PeerName = peer, peer
	for _, c := range i.Checks {
		c.PeerName = peer
	}
	if i.Service.Weights == nil || i.Service.Weights.Validate() != nil {
		i.Service.Weights = catalog.DefaultWeights()
	}
	maps.DeleteFunc(i.Service.TaggedAddresses, func(tag string, _ catalog.ServiceAddress) bool {
		return strings.HasPrefix(tag, catalog.VirtualAddressTag)
	})
	if virtual != "" {
		if i.Service.TaggedAddresses == nil {
			i.Service.TaggedAddresses = map[string]catalog.ServiceAddress{}
		}
		i.Service.TaggedAddresses[catalog.VirtualAddressTag] = catalog.ServiceAddress{Address: virtual, Port: i.Service.Port}
	}
}

// index gives an import and everything in it the indexes.
func index(i *peering.Import, at catalog.Indexes) {
	i.Indexes = at
	for _, list := range [][]*catalog.Instance{i.Instances, i.Gateways} {
		for _, in := range list {
			in.Node.Indexes, in.Service.Indexes = at, at
			for _, c := range in.Checks {
				c.Indexes = at
			}
		}
	}
}

// imported reports whether a service of a peer is imported.
func (v *View) imported(service, peer string) bool {
	_, i := v.Import(peer, service)
	return i != nil
}
