package intention

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog/entry"
)

// FromEntry returns the intentions of an entry, in its order.
func FromEntry(e *entry.ServiceIntentions) []*Intention {
	if e == nil {
		return nil
	}
	out := make([]*Intention, len(e.Sources))
	for i, s := range e.Sources {
		out[i] = &Intention{
			Description: s.Description,
			SourceNS:    "default", SourceName: s.Name, SourcePeer: s.Peer,
			DestinationNS: "default", DestinationName: e.Name,
			SourceType: s.Type, Action: s.Action, Permissions: s.Permissions, JWT: e.JWT, Meta: e.Meta,
			Precedence: s.Precedence, Indexes: e.Indexes,
		}
		if s.LegacyID != "" {
			n := out[i]
			n.ID, n.Meta, n.CreatedAt, n.UpdatedAt = s.LegacyID, s.LegacyMeta, s.LegacyCreateTime, s.LegacyUpdateTime
			n.Hash = n.hash()
		}
	}
	return out
}

// hash is equal for legacy intentions with equal content.
func (n *Intention) hash() []byte {
	h := sha256.New()
	for _, s := range []string{n.ID, n.Description, n.SourceName, n.DestinationName, n.SourceType, n.Action} {
		fmt.Fprintf(h, "%q ", s)
	}
	for _, k := range slices.Sorted(maps.Keys(n.Meta)) {
		fmt.Fprintf(h, "%q %q ", k, n.Meta[k])
	}
	return h.Sum(nil)
}

// Sort brings intentions into the order they are looked at and listed: precedence descending, among equals by source
// peer, source name, destination name.
func Sort(list []*Intention) {
	slices.SortFunc(list, func(a, b *Intention) int {
		return cmp.Or(
			cmp.Compare(b.Precedence, a.Precedence), strings.Compare(a.SourcePeer, b.SourcePeer),
			strings.Compare(a.SourceName, b.SourceName), strings.Compare(a.DestinationName, b.DestinationName),
		)
	})
}

// Fits reports whether the intention is about calls of a service, of a peer unless that is empty, to its destination.
func (n *Intention) Fits(source, peer string) bool {
	return n.SourcePeer == peer && (n.SourceName == entry.Wildcard || n.SourceName == source)
}

// To returns what decides about calls to a service, in order, given its own entry and that for every service, each of
// which may be nil.
func To(own, all *entry.ServiceIntentions) []*Intention {
	list := append(FromEntry(own), FromEntry(all)...)
	Sort(list)
	return list
}

// From returns the intentions that are about calls of a service, in order, given all entries.
func From(source string, entries []*entry.ServiceIntentions) []*Intention {
	list := []*Intention{}
	for _, e := range entries {
		for _, n := range FromEntry(e) {
			if n.Fits(source, "") {
				list = append(list, n)
			}
		}
	}
	Sort(list)
	return list
}

// A Default is what is decided where no intention fits.
type Default struct {
	Allow bool
	// Explicit tells that it was set as the default intention policy, instead of following that of ACLs.
	Explicit bool
}

// A Decision is the answer to whether a source may call a destination.
type Decision struct {
	Allowed bool
	Reason  string
	By      *Intention // nil when the default decided
}

// Decide returns what the first of the intentions that fits the source decides; they are those of the destination, in
// the order of Sort. Rules about requests cannot be judged here: such an intention does not allow.
func Decide(list []*Intention, source, peer string, def Default) Decision {
	for _, n := range list {
		if !n.Fits(source, peer) {
			continue
		}
		if len(n.Permissions) != 0 {
			return Decision{false, fmt.Sprintf("Matched L7 intention: %s (Precedence: %d, Permissions: %d)", n.pair(), n.Precedence, len(n.Permissions)), n}
		}
		return Decision{
			n.Action == entry.Allow,
			fmt.Sprintf("Matched L4 intention: %s (Precedence: %d, Action: %s)", n.pair(), n.Precedence, strings.ToUpper(n.Action)), n,
		}
	}
	if def.Explicit {
		return Decision{Allowed: def.Allow, Reason: "Default intention policy"}
	}
	return Decision{Allowed: def.Allow, Reason: "Default behavior configured by ACLs"}
}

// Callable returns those of the names that a source may call, or may call with some requests; entries are all there are.
func Callable(source string, names []string, entries []*entry.ServiceIntentions, def Default) []string {
	byName := make(map[string]*entry.ServiceIntentions, len(entries))
	for _, e := range entries {
		byName[e.Name] = e
	}
	var out []string
	for _, name := range names {
		if d := Decide(To(byName[name], byName[entry.Wildcard]), source, "", def); d.Allowed || d.By != nil && len(d.By.Permissions) > 0 {
			out = append(out, name)
		}
	}
	return out
}

// pair names source and destination.
func (n *Intention) pair() string {
	source := n.SourceNS + "/" + n.SourceName
	if n.SourcePeer != "" {
		source = "peer:" + n.SourcePeer + "/" + n.SourceName
	}
	return source + " => " + n.DestinationNS + "/" + n.DestinationName
}
