package xds_test

import (
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/mesh"
)

// gatewayAnswer answers what gateways need out of the files of a case: entries.json, links.json (else what the entries
// say), datacenters.json, and instances.json, where keys begin with "plain" for instances that need not be in the mesh and
// with "gateways" for the mesh gateways of a datacenter. It returns nil for what is not known.
func gatewayAnswer(n mesh.Need, all entries, links []entry.GatewayService, datacenters []string, instances map[string][]*catalog.Instance) any {
	found := func(key string) any {
		if list, ok := instances[strings.TrimSpace(key)]; ok {
			return &catalog.InstancesReply{Instances: list}
		}
		return nil
	}
	switch n.Kind {
	case mesh.NeedEntries:
		r := &entry.ListReply{}
		for k, e := range all {
			if k.Kind == n.Entry {
				r.Entries = append(r.Entries, entry.Any{Entry: e})
			}
		}
		return r
	case mesh.NeedLinks:
		if links != nil {
			return &entry.GatewayServicesReply{Services: links}
		}
		r := &entry.GatewayServicesReply{}
		for _, kind := range []entry.Kind{entry.KindTerminatingGateway, entry.KindIngressGateway} {
			if e := all.Entry(kind, n.Service); e != nil {
				r.Services = append(r.Services, entry.GatewayServices(e)...)
			}
		}
		for i := range r.Services {
			l := &r.Services[i]
			d, _ := all.Entry(entry.KindServiceDefaults, l.Service.Name).(*entry.ServiceDefaults)
			if l.GatewayKind == catalog.KindTerminatingGateway {
				l.ServiceKind = entry.GatewayToService
				if d != nil && d.Destination != nil {
					l.ServiceKind = entry.GatewayToDestination
				}
			}
		}
		return r
	case mesh.NeedPlain:
		return found("plain " + n.Service + " " + n.Filter)
	case mesh.NeedGateways:
		return found("gateways " + n.Datacenter)
	case mesh.NeedServices:
		r := &catalog.ServicesReply{Services: map[string][]string{"consul": nil}}
		for key := range instances {
			if !strings.Contains(key, " ") {
				r.Services[key] = nil
			}
		}
		return r
	case mesh.NeedDatacenters:
		return &catalog.DatacentersReply{Datacenters: datacenters}
	}
	return nil
}

// leafOf is the certificate of a service behind a terminating gateway.
func leafOf(service string) *ca.Leaf {
	return &ca.Leaf{CertPEM: "LEAF of " + service + "\n", PrivateKeyPEM: "KEY of " + service, Service: service}
}
