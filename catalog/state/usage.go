package state

import "github.com/sarnmesh/sarn/catalog"

// A Usage counts what is in the catalog (spec/state.md section 11.4).
type Usage struct {
	Nodes                   int
	Services                int // distinct names
	ServiceInstances        int
	MeshInstances           map[string]int // by kind, and "connect-native"
	BillableServiceInstance int            // of ordinary kind, without those of the servers
}

// Usage counts the catalog. The index is that of the last change of a node or an instance.
func (v *View) Usage() (uint64, Usage) {
	u := Usage{MeshInstances: map[string]int{
		catalog.KindAPIGateway: 0, "connect-native": 0, catalog.KindConnectProxy: 0, catalog.KindIngressGateway: 0,
		catalog.KindMeshGateway: 0, catalog.KindTerminatingGateway: 0,
	}}
	for range nodes.PeekPrefix(v.tx, "id", nil) {
		u.Nodes++
	}
	last := ""
	for i := range instances.PeekPrefix(v.tx, byName, nil) {
		u.ServiceInstances++
		if i.Service.Service != last {
			u.Services++
			last = i.Service.Service
		}
		if i.Service.Connect.Native {
			u.MeshInstances["connect-native"]++
		}
		if _, known := u.MeshInstances[i.Service.Kind]; known {
			u.MeshInstances[i.Service.Kind]++
		} else if i.Service.Service != catalog.ServerServiceName {
			u.BillableServiceInstance++
		}
	}
	return v.marked(nodes.Name(), instances.Name()), u
}
