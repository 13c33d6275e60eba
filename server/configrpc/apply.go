package configrpc

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/intention"
)

// An op is what a command does. Ops are written to disk.
type op string

const (
	opSet          op = "set"
	opDelete       op = "delete"
	opSetSource    op = "set-source"
	opDeleteSource op = "delete-source"
	opLegacyCreate op = "legacy-create"
	opLegacyUpdate op = "legacy-update"
	opLegacyDelete op = "legacy-delete"
	opVirtualIPs   op = "virtual-ips"
	opBind         op = "bind"
)

// A command changes one entry.
type command struct {
	Op    op
	Entry entry.Any // opSet
	Kind  entry.Kind
	Name  string  // of the entry, for the ops on sources that of the destination
	CAS   *uint64 // of opSet and opDelete
	// Of the ops on sources.
	Source *entry.IntentionSource
	Meta   map[string]string
	// Of opVirtualIPs, for the service Name.
	Peer      string
	Addresses []string
	// Of opBind: gateways and routes with their new status, and bound gateways.
	Bind []entry.Any
}

// A result is what applying a command gave.
type result struct {
	OK   bool
	From []state.AddressOwner // of opVirtualIPs
}

// apply applies a command.
func (h *handlers) apply(tx *state.Tx, cmd *command) (*result, error) {
	switch cmd.Op {
	case opSet:
		e := cmd.Entry.Entry
		if e == nil {
			return nil, errors.New("config entry is missing")
		}
		if key := entry.KeyOf(e); !casFits(tx, key.Kind, key.Name, cmd.CAS) {
			// What is there already counts as written, whatever index it was to have (spec/cli.md section 2.4).
			keepStatus(e, tx.Entry(key.Kind, key.Name))
			same, err := tx.HasEntry(e)
			return &result{OK: same}, err
		}
		return h.setEntry(tx, e)
	case opDelete:
		if cmd.CAS != nil && (tx.Entry(cmd.Kind, cmd.Name) == nil || !casFits(tx, cmd.Kind, cmd.Name, cmd.CAS)) {
			return &result{}, nil
		}
		return h.deleteEntry(tx, cmd.Kind, cmd.Name)
	case opVirtualIPs:
		found, from := tx.SetManualVirtualIPs(cmd.Name, cmd.Peer, cmd.Addresses)
		return &result{found, from}, nil
	case opBind:
		return &result{OK: true}, applyBind(tx, cmd.Bind)
	}
	return h.applySource(tx, cmd)
}

// casFits reports whether an entry is at the index a check-and-set asks for, 0 standing for its absence.
func casFits(tx *state.Tx, kind entry.Kind, name string, cas *uint64) bool {
	if cas == nil {
		return true
	}
	e := tx.Entry(kind, name)
	if e == nil {
		return *cas == 0
	}
	return *cas != 0 && e.Head().ModifyIndex == *cas
}

// setEntry writes an entry if it is valid and everything fits together afterwards.
func (h *handlers) setEntry(tx *state.Tx, e entry.Entry) (*result, error) {
	e.Normalize()
	if err := e.Validate(); err != nil {
		return nil, err
	}
	key := entry.KeyOf(e)
	old := tx.Entry(key.Kind, key.Name)
	keepStatus(e, old)
	if err := checkPermissive(tx, e, old); err != nil {
		return nil, err
	}
	if _, err := tx.SetEntry(e); err != nil {
		return nil, err
	}
	return &result{OK: true}, h.fits(tx, e)
}

func (h *handlers) deleteEntry(tx *state.Tx, kind entry.Kind, name string) (*result, error) {
	old := tx.Entry(kind, name)
	if old == nil {
		return &result{OK: true}, nil
	}
	if kind == entry.KindJWTProvider {
		if err := checkProviderUnused(tx, name); err != nil {
			return nil, err
		}
	}
	tx.DeleteEntry(kind, name)
	if kind == entry.KindAPIGateway {
		tx.DeleteEntry(entry.KindBoundAPIGateway, name)
	}
	return &result{OK: true}, h.fits(tx, old)
}

// keepStatus keeps what the leader found out about a gateway or route; writers do not set it.
func keepStatus(e, old entry.Entry) {
	s := statusOf(e)
	if s == nil {
		return
	}
	*s = entry.Status{}
	if old != nil {
		*s = *statusOf(old)
	}
}

// Errors of changes to single intentions. Clients match on their texts.
var (
	errMetaNew     = errors.New("Meta must not be specified")
	errMetaChanged = errors.New("Meta must not be specified, or should be unchanged during an update.")
	errDestination = errors.New("Cannot modify Destination partition/namespace/name for an intention once it exists.")
)

// applySource changes one source of the entry of a destination.
func (h *handlers) applySource(tx *state.Tx, cmd *command) (*result, error) {
	if cmd.Source == nil {
		return nil, errors.New("intention is missing")
	}
	e, old, err := sourceEntry(tx, cmd)
	if err != nil {
		return nil, err
	}
	if e == nil { // nothing to remove
		return &result{OK: true}, nil
	}
	at := func(s *entry.IntentionSource) bool { return s.Name == cmd.Source.Name && s.Peer == cmd.Source.Peer }
	if strings.HasPrefix(string(cmd.Op), "legacy-") {
		at = func(s *entry.IntentionSource) bool { return s.LegacyID == cmd.Source.LegacyID }
	}
	i := slices.IndexFunc(e.Sources, at)
	switch cmd.Op {
	case opSetSource:
		switch {
		case old == nil && len(cmd.Meta) != 0:
			return nil, errMetaNew
		case old != nil && len(cmd.Meta) != 0 && !maps.Equal(cmd.Meta, old.Meta):
			return nil, errMetaChanged
		}
		e.DropLegacy()
		if i >= 0 {
			e.Sources[i] = cmd.Source
		} else {
			e.Sources = append(e.Sources, cmd.Source)
		}
	case opDeleteSource:
		if i < 0 {
			return &result{OK: true}, nil
		}
		e.Sources = slices.Delete(e.Sources, i, i+1)
	case opLegacyCreate:
		if i >= 0 {
			return nil, errors.New("an intention with this ID exists")
		}
		e.Sources = append(e.Sources, cmd.Source)
	case opLegacyUpdate:
		cmd.Source.LegacyCreateTime = e.Sources[i].LegacyCreateTime
		e.Sources[i] = cmd.Source
	case opLegacyDelete:
		e.Sources = slices.Delete(e.Sources, i, i+1)
	default:
		return nil, errors.New("unknown change of an intention")
	}
	if len(e.Sources) == 0 {
		return h.deleteEntry(tx, entry.KindServiceIntentions, e.Name)
	}
	return h.setEntry(tx, e)
}

// sourceEntry returns a copy of the entry a command works on, a new one if there is none, and the entry as it is, nil
// if there is none. Both are nil when the command removes something that is not there.
func sourceEntry(tx *state.Tx, cmd *command) (e, old *entry.ServiceIntentions, err error) {
	name := cmd.Name
	if cmd.Op == opLegacyUpdate || cmd.Op == opLegacyDelete {
		old = legacyEntry(&tx.View, cmd.Source.LegacyID)
		switch {
		case old == nil && cmd.Op == opLegacyUpdate:
			return nil, nil, errors.New("Cannot modify non-existent intention: '" + cmd.Source.LegacyID + "'")
		case old == nil:
			return nil, nil, errors.New("Cannot delete non-existent intention: '" + cmd.Source.LegacyID + "'")
		case cmd.Op == opLegacyUpdate && old.Name != name:
			return nil, nil, errDestination
		}
	} else {
		old = state.EntryAs[entry.ServiceIntentions](&tx.View, entry.KindServiceIntentions, name)
	}
	switch {
	case old != nil:
		if cmd.Op != opSetSource && cmd.Op != opDeleteSource && !old.Legacy() {
			return nil, nil, errors.New("cannot use legacy intention API to edit intentions with a destination of " +
				quote(old.Name) + " after editing them via a service-intentions config entry")
		}
		return old.Clone(), old, nil
	case cmd.Op == opDeleteSource:
		return nil, nil, nil
	}
	e = &entry.ServiceIntentions{}
	e.Kind, e.Name = entry.KindServiceIntentions, name
	return e, nil, nil
}

func quote(s string) string { return `"` + s + `"` }

// legacyEntry returns the entry that has an intention with a legacy ID, nil when there is none.
func legacyEntry(v *state.View, id string) *entry.ServiceIntentions {
	if id == "" {
		return nil
	}
	_, entries := v.Intentions()
	for _, e := range entries {
		for _, s := range e.Sources {
			if s.LegacyID == id {
				return e
			}
		}
	}
	return nil
}

// trustDomain returns the trust domain, empty before the first leader has made it.
func trustDomain(v *state.View) string {
	if _, config := v.CAConfig(); config != nil {
		return connect.TrustDomain(config.ClusterID)
	}
	return ""
}

// legacyOps maps the changes of the legacy API to what is written to disk.
var legacyOps = map[intention.LegacyOp]op{
	intention.LegacyCreate: opLegacyCreate, intention.LegacyUpdate: opLegacyUpdate, intention.LegacyDelete: opLegacyDelete,
}
