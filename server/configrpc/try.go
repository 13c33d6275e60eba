package configrpc

import (
	"errors"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
)

// Try writes an entry in a transaction, as the call that writes one does, with all its checks. When it fails the
// transaction is as it was. The datacenter is that of the servers.
func Try(tx *state.Tx, datacenter string, e entry.Entry) error {
	if e == nil {
		return errors.New("config entry is missing")
	}
	e, err := entry.Copy(e)
	if err != nil {
		return err
	}
	if i, ok := e.(*entry.ServiceIntentions); ok {
		i.DropLegacy()
	}
	if e.Head().Kind == entry.KindBoundAPIGateway {
		return errors.New("only writeable by controller")
	}
	e.Normalize()
	if err := entry.CheckHeader(e); err != nil {
		return err
	}
	h := &handlers{Config{Datacenter: datacenter}}
	return tx.Try(func() error {
		_, err := h.setEntry(tx, e)
		return err
	})
}

// TryDelete is Try for deleting an entry.
func TryDelete(tx *state.Tx, datacenter string, key entry.Key) error {
	if !key.Kind.Known() {
		return errUnknownKind(400, key.Kind)
	}
	h := &handlers{Config{Datacenter: datacenter}}
	return tx.Try(func() error {
		_, err := h.deleteEntry(tx, key.Kind, key.Name)
		return err
	})
}

// RequireRead asks for the right to read an entry.
func RequireRead(z *acl.Authorizer, key entry.Key) (acl.Permit, error) {
	return requireRead(z, key.Kind, key.Name)
}

// RequireWrite asks for the right to write or delete an entry.
func RequireWrite(z *acl.Authorizer, e entry.Entry) (acl.Permit, error) { return requireWrite(z, e) }
