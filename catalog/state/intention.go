package state

import "github.com/sarnmesh/sarn/catalog/entry"

// IntentionsTo returns the entries that decide about calls to a service: its own and the one for every service, each
// nil when there is none. Index is that of the last change that could matter to them.
func (v *View) IntentionsTo(service string) (index uint64, own, all *entry.ServiceIntentions) {
	own = EntryAs[entry.ServiceIntentions](v, entry.KindServiceIntentions, service)
	all = EntryAs[entry.ServiceIntentions](v, entry.KindServiceIntentions, entry.Wildcard)
	index = v.EntriesGone(entry.KindServiceIntentions)
	if own != nil {
		index = max(index, own.ModifyIndex)
	}
	if all != nil {
		index = max(index, all.ModifyIndex)
	}
	if service == entry.Wildcard {
		own = nil // it is the same entry
	}
	return index, own, all
}

// Intentions returns every intentions entry in the order of destinations, with the index of the last change of one.
func (v *View) Intentions() (uint64, []*entry.ServiceIntentions) {
	index, list := v.Entries(entry.KindServiceIntentions)
	out := make([]*entry.ServiceIntentions, len(list))
	for i, e := range list {
		out[i] = e.(*entry.ServiceIntentions)
	}
	return index, out
}
