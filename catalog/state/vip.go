package state

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/internal/mvcc"
)

// A VirtualIP is the address that stands for a service of the mesh, whichever instance is meant (spec/connect.md
// section 14).
type VirtualIP struct {
	Service string
	Peer    string `json:",omitempty"` // empty unless imported
	Offset  uint32 // above 240.0.0.0, at least 1
	Manual  []string
	catalog.Indexes
}

// Address returns the address in text form.
func (v *VirtualIP) Address() string { return offsetAddress(v.Offset) }

const virtualBase, virtualLast = 240 << 24, 0x0ffffffe

func offsetAddress(offset uint32) string {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], virtualBase+offset)
	return netip.AddrFrom4(b).String()
}

var virtualIPs = mvcc.NewTable("virtual-ip", func(buf []byte, v *VirtualIP) ([]byte, bool) {
	return mvcc.String(mvcc.String(buf, v.Peer), v.Service), true
})

// A virtualSlot is an address that may be given out: one that was freed, or the one above the highest ever used.
type virtualSlot struct{ Offset uint32 }

var virtualSlots = mvcc.NewTable("virtual-ip-slot", func(buf []byte, s *virtualSlot) ([]byte, bool) {
	return binary.BigEndian.AppendUint32(buf, s.Offset), true
})

// VirtualIP returns the virtual IP of a service, nil when it has none; peer is empty unless it is imported.
func (v *View) VirtualIP(service, peer string) *VirtualIP {
	ip, _ := virtualIPs.First(v.tx, "id", mvcc.String(mvcc.String(nil, peer), service))
	return ip
}

// VirtualIPs returns all virtual IPs ordered by peer, then service, with the index of the last change of one.
func (v *View) VirtualIPs() (uint64, []*VirtualIP) {
	return v.marked(virtualIPs.Name()), slices.Collect(virtualIPs.All(v.tx, "id"))
}

var errNoVirtualIP = errors.New("cannot allocate any more unique service virtual IPs")

// assignVirtualIP gives a service its virtual IP unless it has one.
func (t *Tx) assignVirtualIP(service, peer string) error {
	if t.VirtualIP(service, peer) != nil {
		return nil
	}
	// The lowest slot; it is the one above the highest ever used when there is no other.
	free, slots := uint32(1), 0
	for s := range virtualSlots.All(t.tx, "id") {
		if slots++; slots == 2 {
			break
		}
		free = s.Offset
	}
	if free > virtualLast {
		return errNoVirtualIP
	}
	virtualSlots.Delete(t.tx, &virtualSlot{free})
	if slots < 2 {
		virtualSlots.Insert(t.tx, &virtualSlot{free + 1})
	}
	virtualIPs.Insert(t.tx, &VirtualIP{
		Service: service, Peer: peer, Offset: free,
		Indexes: catalog.Indexes{CreateIndex: t.Index, ModifyIndex: t.Index},
	})
	t.mark(virtualIPs.Name())
	return nil
}

// releaseVirtualIP takes a service's virtual IP back unless something still needs it.
func (t *Tx) releaseVirtualIP(service, peer string) {
	ip := t.VirtualIP(service, peer)
	if ip == nil || t.needsVirtualIP(service, peer) {
		return
	}
	virtualIPs.Delete(t.tx, ip)
	virtualSlots.Insert(t.tx, &virtualSlot{ip.Offset})
	t.mark(virtualIPs.Name())
}

func (t *Tx) releaseNamed(services []string) {
	for _, s := range services {
		t.releaseVirtualIP(s, "")
	}
}

// needsVirtualIP reports whether a service is in the mesh or named by an entry.
func (t *Tx) needsVirtualIP(service, peer string) bool {
	if peer != "" {
		return t.imported(service, peer)
	}
	if t.MeshMember(service) {
		return true
	}
	for _, k := range []entry.Kind{
		entry.KindServiceDefaults, entry.KindServiceRouter, entry.KindServiceSplitter, entry.KindServiceResolver,
		entry.KindServiceIntentions,
	} {
		if t.Entry(k, service) != nil {
			return true
		}
	}
	_, gateways := t.Entries(entry.KindTerminatingGateway)
	for _, g := range gateways {
		if slices.Contains(named(g), service) {
			return true
		}
	}
	return false
}

// An AddressOwner is a service that lost a manual virtual IP to another.
type AddressOwner struct{ Service, Peer string }

// SetManualVirtualIPs makes addresses, in canonical text form, stand for a service besides its own virtual IP. Other
// services lose them; they are returned. It reports whether the service has a virtual IP, without which nothing is
// done.
func (t *Tx) SetManualVirtualIPs(service, peer string, addresses []string) (found bool, from []AddressOwner) {
	ip := t.VirtualIP(service, peer)
	if ip == nil {
		return false, nil
	}
	if slices.Equal(ip.Manual, addresses) {
		return true, nil
	}
	for _, other := range slices.Collect(virtualIPs.All(t.tx, "id")) {
		if other.Service == service && other.Peer == peer {
			continue
		}
		keep := slices.DeleteFunc(slices.Clone(other.Manual), func(a string) bool { return slices.Contains(addresses, a) })
		if len(keep) == len(other.Manual) {
			continue
		}
		from = append(from, AddressOwner{other.Service, other.Peer})
		changed := *other
		changed.Manual, changed.ModifyIndex = keep, t.Index
		virtualIPs.Insert(t.tx, &changed)
	}
	changed := *ip
	changed.Manual, changed.ModifyIndex = slices.Clone(addresses), t.Index
	virtualIPs.Insert(t.tx, &changed)
	t.mark(virtualIPs.Name())
	return true, from
}
