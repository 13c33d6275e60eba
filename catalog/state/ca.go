package state

import (
	"bytes"
	"slices"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/internal/mvcc"
	"github.com/sarnmesh/sarn/internal/rpc"
)

var caRoots = mvcc.NewTable("ca-root", func(buf []byte, r *trust.Root) ([]byte, bool) { return mvcc.String(buf, r.ID), true })

// caConfigs holds one object.
var caConfigs = mvcc.NewTable("ca-config", func(buf []byte, _ *trust.Configuration) ([]byte, bool) {
	return mvcc.String(buf, "ca"), true
})

var caProviders = mvcc.NewTable("ca-provider", func(buf []byte, p *trust.ProviderState) ([]byte, bool) {
	return mvcc.String(buf, p.ID), true
})

// CARoots returns the root certificates in the order of their IDs, with the index of the last change of one.
func (v *View) CARoots() (uint64, []*trust.Root) {
	return v.marked(caRoots.Name()), slices.Collect(caRoots.All(v.tx, "id"))
}

// CAConfig returns the configuration of the authority, nil before it was first set, with its index.
func (v *View) CAConfig() (uint64, *trust.Configuration) {
	c, ok := caConfigs.First(v.tx, "id", mvcc.String(nil, "ca"))
	if !ok {
		return 0, nil
	}
	return c.ModifyIndex, c
}

// CAProvider returns what the provider keeps for a root, nil when it keeps nothing.
func (v *View) CAProvider(rootID string) *trust.ProviderState {
	p, _ := caProviders.First(v.tx, "id", mvcc.String(nil, rootID))
	return p
}

// SetCARoots replaces the set of roots. Provider state of roots that are no longer there goes with them. A root that is
// as it was keeps its indexes.
func (t *Tx) SetCARoots(roots []*trust.Root) {
	_, old := t.CARoots()
	kept := map[string]bool{}
	for _, r := range roots {
		kept[r.ID] = true
		r.CreateIndex, r.ModifyIndex = t.Index, t.Index
		if i := slices.IndexFunc(old, func(o *trust.Root) bool { return o.ID == r.ID }); i >= 0 {
			r.CreateIndex = old[i].CreateIndex
			if sameRoot(old[i], r) {
				continue
			}
		}
		caRoots.Insert(t.tx, r)
		t.mark(caRoots.Name())
	}
	for _, o := range old {
		if !kept[o.ID] {
			caRoots.Delete(t.tx, o)
			caProviders.Delete(t.tx, &trust.ProviderState{ID: o.ID})
			t.mark(caRoots.Name())
		}
	}
}

// sameRoot compares what can change about a certificate.
func sameRoot(a, b *trust.Root) bool {
	return a.Active == b.Active && a.Name == b.Name && a.SpreadSince.Equal(b.SpreadSince) &&
		a.ActiveSince.Equal(b.ActiveSince) && a.RotatedOutAt.Equal(b.RotatedOutAt) &&
		a.PruneAfter.Equal(b.PruneAfter) && a.RootCert == b.RootCert && slices.Equal(a.IntermediateCerts, b.IntermediateCerts)
}

// SetCAConfig replaces the configuration. The cluster ID, once set, stays. One that is as it was changes nothing.
func (t *Tx) SetCAConfig(c *trust.Configuration) {
	c.Indexes = catalog.Indexes{CreateIndex: t.Index, ModifyIndex: t.Index}
	if _, old := t.CAConfig(); old != nil {
		c.CreateIndex, c.ClusterID = old.CreateIndex, old.ClusterID
		if sameConfig(old, c) {
			c.Indexes = old.Indexes
			return
		}
	}
	caConfigs.Insert(t.tx, c)
}

// sameConfig reports whether the two differ in their indexes at most.
func sameConfig(a, b *trust.Configuration) bool {
	x, y := *a, *b
	x.Indexes, y.Indexes = catalog.Indexes{}, catalog.Indexes{}
	was, err := rpc.Marshal(&x)
	if err != nil {
		return false
	}
	is, err := rpc.Marshal(&y)
	return err == nil && bytes.Equal(was, is)
}

// DropCAConfig forgets the configuration, so that the next may have another cluster ID.
func (t *Tx) DropCAConfig() {
	if _, old := t.CAConfig(); old != nil {
		caConfigs.Delete(t.tx, old)
	}
}

// SetCAProvider stores what the provider keeps for a root.
func (t *Tx) SetCAProvider(p *trust.ProviderState) {
	p.Indexes = catalog.Indexes{CreateIndex: t.Index, ModifyIndex: t.Index}
	if old := t.CAProvider(p.ID); old != nil {
		p.CreateIndex = old.CreateIndex
	}
	caProviders.Insert(t.tx, p)
}
