package configrpc

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect/chain"
)

// fits checks everything that a change of e, which has been made in tx, could have broken (spec/connect.md section 9).
func (h *handlers) fits(tx *state.Tx, e entry.Entry) error {
	v := &tx.View
	switch e := e.(type) {
	case *entry.ServiceDefaults, *entry.ProxyDefaults, *entry.ServiceRouter, *entry.ServiceSplitter, *entry.ServiceResolver:
		return h.chainsFit(v, e)
	case *entry.ServiceIntentions:
		if v.Entry(entry.KindServiceIntentions, e.Name) == nil {
			return nil
		}
		return intentionsFit(v, e)
	case *entry.IngressGateway:
		if v.Entry(entry.KindIngressGateway, e.Name) == nil {
			return nil
		}
		if err := nameFree(v, entry.KindIngressGateway, e.Name); err != nil {
			return err
		}
		return ingressFits(v, e, nil)
	case *entry.TerminatingGateway:
		if v.Entry(entry.KindTerminatingGateway, e.Name) == nil {
			return nil
		}
		return nameFree(v, entry.KindTerminatingGateway, e.Name)
	case *entry.ExportedServices:
		if v.Entry(entry.KindExportedServices, e.Name) == nil {
			return nil
		}
		return h.exportsFit(v, e, nil)
	}
	return nil
}

// chainsFit checks the chains that go through a service, or all when the settings of every proxy changed, and what
// depends on their protocols.
func (h *handlers) chainsFit(v *state.View, e entry.Entry) error {
	var services []string
	referrers := referrersOf(v)
	if _, all := e.(*entry.ProxyDefaults); all {
		services = slices.Sorted(maps.Keys(configured(v)))
	} else {
		services = reach(referrers, e.Head().Name)
	}
	for _, s := range services {
		if _, err := chain.Compile(chain.Request{Service: s, Datacenter: h.cfg.Datacenter}, v); err != nil {
			return err
		}
	}
	affected := map[string]bool{}
	for _, s := range services {
		affected[s] = true
	}
	if _, all := e.(*entry.ProxyDefaults); all {
		affected = nil // whoever has no service-defaults
	}
	_, gateways := v.Entries(entry.KindIngressGateway)
	for _, g := range gateways {
		if err := ingressFits(v, g.(*entry.IngressGateway), affected); err != nil {
			return err
		}
	}
	_, lists := v.Intentions()
	for _, i := range lists {
		if affected == nil || affected[i.Name] {
			if err := protocolFits(v, i); err != nil {
				return err
			}
		}
	}
	if x := state.EntryAs[entry.ExportedServices](v, entry.KindExportedServices, entry.ExportedServicesName); x != nil {
		return h.exportsFit(v, x, services)
	}
	return nil
}

// configured returns the services that have an entry chains are made of.
func configured(v *state.View) map[string]bool {
	out := map[string]bool{}
	for _, k := range chainKinds {
		if k == entry.KindProxyDefaults {
			continue
		}
		_, entries := v.Entries(k)
		for _, e := range entries {
			out[e.Head().Name] = true
		}
	}
	return out
}

// referrersOf returns, for each service, the services whose entries send requests to it.
func referrersOf(v *state.View) map[string][]string {
	out := map[string][]string{}
	for _, k := range []entry.Kind{entry.KindServiceRouter, entry.KindServiceSplitter, entry.KindServiceResolver} {
		_, entries := v.Entries(k)
		for _, e := range entries {
			for _, to := range references(e) {
				out[to] = append(out[to], e.Head().Name)
			}
		}
	}
	return out
}

// reach returns a service and all whose chains may go through it, in order but for the service itself, which is first.
func reach(referrers map[string][]string, service string) []string {
	seen := map[string]bool{service: true}
	queue := []string{service}
	for i := 0; i < len(queue); i++ {
		for _, r := range referrers[queue[i]] {
			if !seen[r] {
				seen[r] = true
				queue = append(queue, r)
			}
		}
	}
	slices.Sort(queue[1:])
	return queue
}

// ingressFits checks the protocols of the services behind an ingress gateway, of those affected unless that is nil.
func ingressFits(v *state.View, g *entry.IngressGateway, affected map[string]bool) error {
	for _, l := range g.Listeners {
		for _, s := range l.Services {
			if s.Name == entry.Wildcard || affected != nil && !affected[s.Name] {
				continue
			}
			if p := chain.Protocol(v, s.Name); p != l.Protocol {
				return fmt.Errorf("service %q has protocol %q, which does not match defined listener protocol %q", s.Name, p, l.Protocol)
			}
		}
	}
	return nil
}

func intentionsFit(v *state.View, i *entry.ServiceIntentions) error {
	var missing []string
	for _, name := range i.JWTProviders() {
		if v.Entry(entry.KindJWTProvider, name) == nil {
			missing = append(missing, name)
		}
	}
	if err := entry.MissingJWTProviders(missing); err != nil {
		return err
	}
	return protocolFits(v, i)
}

// protocolFits refuses rules about requests where the protocol has none.
func protocolFits(v *state.View, i *entry.ServiceIntentions) error {
	if !i.RequestRules() {
		return nil
	}
	if p := chain.Protocol(v, i.Name); !entry.HTTPLike(p) {
		return fmt.Errorf("service %q has protocol %q, which is incompatible with L7 intentions permissions", i.Name, p)
	}
	return nil
}

// nameFree checks that no gateway of another kind has the name.
func nameFree(v *state.View, kind entry.Kind, name string) error {
	for _, other := range []entry.Kind{entry.KindIngressGateway, entry.KindTerminatingGateway} {
		if other != kind && v.Entry(other, name) != nil {
			return fmt.Errorf("cannot create a %q config entry with name %q, a %q config entry with that name already exists", kind, name, other)
		}
	}
	return nil
}

// exportsFit checks the chains of exported services, only those of services unless that is nil.
func (h *handlers) exportsFit(v *state.View, x *entry.ExportedServices, services []string) error {
	names := map[string]bool{}
	for _, s := range x.Services {
		if s.Name == entry.Wildcard {
			maps.Copy(names, configured(v))
			continue
		}
		names[s.Name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if services != nil && !slices.Contains(services, name) {
			continue
		}
		if err := h.exportFits(v, name); err != nil {
			return err
		}
	}
	return nil
}

func (h *handlers) exportFits(v *state.View, service string) error {
	made, err := chain.Compile(chain.Request{Service: service, Datacenter: h.cfg.Datacenter}, v)
	if err != nil {
		return err
	}
	problem := func(format string, args ...any) error {
		return fmt.Errorf("peer exported service %q "+format, append([]any{service}, args...)...)
	}
	for _, key := range slices.Sorted(maps.Keys(made.Nodes)) {
		r := made.Nodes[key].Resolver
		if r == nil {
			continue
		}
		switch t := made.Targets[r.Target]; {
		case t.Peer != "":
			return problem("contains cross-peer resolver redirect")
		case t.Datacenter != h.cfg.Datacenter:
			return problem("contains cross-datacenter resolver redirect")
		}
		if r.Failover == nil {
			continue
		}
		for _, id := range r.Failover.Targets {
			if t := made.Targets[id]; t.Peer == "" && t.Datacenter != h.cfg.Datacenter {
				return problem("contains cross-datacenter failover")
			}
		}
	}
	if entry.HTTPLike(made.Protocol) {
		return nil
	}
	own := chain.TargetID(service, "", h.cfg.Datacenter, "")
	for _, id := range slices.Sorted(maps.Keys(made.Targets)) {
		if id != own {
			return problem("uses protocol=%q and cannot introduce new discovery chain targets like %q", made.Protocol, id)
		}
	}
	return nil
}

var errPermissive = errors.New("cannot set MutualTLSMode=permissive because AllowEnablingPermissiveMutualTLS=false in the mesh config entry")

// checkPermissive refuses to turn permissive mutual TLS on unless the mesh allows it; what is permissive may stay so.
func checkPermissive(tx *state.Tx, e, old entry.Entry) error {
	if mutualTLS(e) != entry.MutualTLSPermissive || mutualTLS(old) == entry.MutualTLSPermissive {
		return nil
	}
	if m := state.EntryAs[entry.Mesh](&tx.View, entry.KindMesh, entry.MeshName); m != nil && m.AllowEnablingPermissiveMutualTLS {
		return nil
	}
	return errPermissive
}

func mutualTLS(e entry.Entry) string {
	switch e := e.(type) {
	case *entry.ServiceDefaults:
		return e.MutualTLSMode
	case *entry.ProxyDefaults:
		return e.MutualTLSMode
	}
	return ""
}

// checkProviderUnused refuses to delete a JWT provider that an intention refers to.
func checkProviderUnused(tx *state.Tx, name string) error {
	_, lists := tx.Intentions()
	for _, i := range lists {
		if slices.Contains(i.JWTProviders(), name) {
			return fmt.Errorf("cannot delete jwt provider config entry referenced by an intention. Provider name: %s, intention name: %s", name, i.Name)
		}
	}
	return nil
}
