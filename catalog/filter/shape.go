package filter

import "github.com/sarnmesh/sarn/catalog"

// A ServiceNode is an instance in the form the catalog's service endpoints show and filter it (spec/registry.md
// section 3.3). Health endpoints filter *catalog.Instance itself.
type ServiceNode struct {
	ID                       string
	Node                     string
	Address                  string
	Datacenter               string
	TaggedAddresses          map[string]string
	NodeMeta                 map[string]string
	ServiceKind              string
	ServiceID                string
	ServiceName              string
	ServiceTags              []string
	ServiceAddress           string
	ServiceTaggedAddresses   map[string]catalog.ServiceAddress
	ServiceWeights           *catalog.Weights
	ServiceMeta              map[string]string
	ServicePort              int
	ServiceSocketPath        string
	ServiceEnableTagOverride bool
	ServiceProxy             *catalog.Proxy
	ServiceConnect           *catalog.Connect
	PeerName                 string
}

// Flatten returns the instance in its catalog form. With a nil node the node's fields are empty.
func Flatten(n *catalog.Node, s *catalog.Service) ServiceNode {
	f := ServiceNode{
		ServiceKind: s.Kind, ServiceID: s.ID, ServiceName: s.Service, ServiceTags: s.Tags, ServiceAddress: s.Address,
		ServiceTaggedAddresses: s.TaggedAddresses, ServiceWeights: s.Weights, ServiceMeta: s.Meta, ServicePort: s.Port,
		ServiceSocketPath: s.SocketPath, ServiceEnableTagOverride: s.EnableTagOverride, ServiceProxy: &s.Proxy,
		ServiceConnect: &s.Connect, PeerName: s.PeerName,
	}
	if n != nil {
		f.ID, f.Node, f.Address, f.Datacenter = n.ID, n.Node, n.Address, n.Datacenter
		f.TaggedAddresses, f.NodeMeta = n.TaggedAddresses, n.Meta
	}
	return f
}
