package httpapi

import "github.com/sarnmesh/sarn/catalog"

// Instances of another datacenter are reached at their WAN addresses where translate_wan_addrs is on. What the servers
// answered is shared, so translation copies.

// translates reports whether answers about a datacenter show WAN addresses.
func (s *Server) translates(dc string) bool { return s.cfg.TranslateWANAddrs && s.remote(dc) }

// wanTags are the tagged addresses that stand for the WAN, best first.
var wanTags = [...]string{"wan_ipv4", "wan_ipv6", "wan"}

func translated[T any](list []*T, one func(*T) *T) []*T {
	out := make([]*T, len(list))
	for i, v := range list {
		out[i] = one(v)
	}
	return out
}

func wanNode(n *catalog.Node) *catalog.Node {
	for _, tag := range wanTags {
		if a := n.TaggedAddresses[tag]; a != "" {
			c := *n
			c.Address = a
			return &c
		}
	}
	return n
}

func wanService(s *catalog.Service) *catalog.Service {
	c := *s
	for _, tag := range wanTags {
		if a := s.TaggedAddresses[tag]; a.Address != "" {
			c.Address = a.Address
			break
		}
	}
	if a := s.TaggedAddresses["wan"]; a.Port != 0 {
		c.Port = a.Port
	}
	return &c
}

func wanInstance(i *catalog.Instance) *catalog.Instance {
	return &catalog.Instance{Node: wanNode(i.Node), Service: wanService(i.Service), Checks: i.Checks}
}
