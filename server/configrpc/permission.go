package configrpc

import (
	"maps"
	"net/http"
	"slices"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// requireRead asks for the right to read an entry (spec/acl.md section 19).
func requireRead(z *acl.Authorizer, kind entry.Kind, name string) (acl.Permit, error) {
	switch kind {
	case entry.KindServiceDefaults, entry.KindServiceRouter, entry.KindServiceSplitter, entry.KindServiceResolver,
		entry.KindIngressGateway, entry.KindTerminatingGateway, entry.KindAPIGateway, entry.KindBoundAPIGateway:
		return z.Require(acl.Service, acl.Read, name)
	case entry.KindServiceIntentions:
		return z.Require(acl.Inten, acl.Read, name)
	case entry.KindProxyDefaults, entry.KindMesh:
		return acl.Open(), nil
	case entry.KindJWTProvider:
		if permit, err := z.RequireAny(acl.Service, acl.Write); err == nil {
			return permit, nil
		}
	}
	return z.Require(acl.Mesh, acl.Read, "")
}

// requireWrite asks for the right to write or delete an entry.
func requireWrite(z *acl.Authorizer, e entry.Entry) (acl.Permit, error) {
	name := e.Head().Name
	switch e := e.(type) {
	case *entry.BoundAPIGateway:
		return acl.Permit{}, wireerr.Errorf(http.StatusForbidden, "Permission denied: only writeable by controller")
	case *entry.ServiceDefaults, *entry.ServiceRouter, *entry.ServiceSplitter, *entry.ServiceResolver:
		permit, err := z.Require(acl.Service, acl.Write, name)
		if err != nil {
			return acl.Permit{}, err
		}
		for _, other := range references(e) {
			if other == name {
				continue
			}
			if _, err := z.Require(acl.Service, acl.Read, other); err != nil {
				return acl.Permit{}, err
			}
		}
		return permit, nil
	case *entry.ServiceIntentions:
		return z.Require(acl.Inten, acl.Write, name)
	}
	return z.Require(acl.Mesh, acl.Write, "")
}

// references lists the services of this cluster that an entry sends requests to.
func references(e entry.Entry) (names []string) {
	add := func(name, peer string) {
		if name != "" && peer == "" {
			names = append(names, name)
		}
	}
	switch e := e.(type) {
	case *entry.ServiceRouter:
		for _, r := range e.Routes {
			if r.Destination != nil {
				add(r.Destination.Service, "")
			}
		}
	case *entry.ServiceSplitter:
		for _, s := range e.Splits {
			add(s.Service, "")
		}
	case *entry.ServiceResolver:
		if r := e.Redirect; r != nil {
			add(r.Service, r.Peer)
		}
		for _, subset := range slices.Sorted(maps.Keys(e.Failover)) {
			f := e.Failover[subset]
			add(f.Service, "")
			for _, t := range f.Targets {
				add(t.Service, t.Peer)
			}
		}
	}
	return names
}
