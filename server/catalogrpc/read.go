package catalogrpc

import (
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/filter"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/transport"
)

// keep returns the elements that the token may see and that have the node meta asked for, in a slice of its own, and
// sets Filtered where the token hid any.
func keep[T any](c *transport.Call, meta *read.Meta, all []T, may func(z *acl.Authorizer, e T) bool) []T {
	kept := make([]T, 0, len(all))
	for _, e := range all {
		if may(c.Authorizer, e) {
			kept = append(kept, e)
		}
	}
	if len(kept) < len(all) && !c.Authorizer.Anonymous() {
		meta.Filtered = true
	}
	return kept
}

// SortNear sorts by the estimated round-trip time from a node, unless its coordinate is not known. What has no
// coordinate comes last; what is equally far keeps its order.
func SortNear[T any](v *state.View, near string, list []T, node func(T) string) {
	if near == "" {
		return
	}
	from := v.Coordinate(near)
	if from == nil {
		return
	}
	type placed struct {
		at     float64
		placed bool
	}
	known := map[string]placed{}
	place := func(name string) placed {
		p, ok := known[name]
		if !ok {
			if c := v.Coordinate(name); c != nil && len(c.Vec) == len(from.Vec) {
				p = placed{from.Distance(c), true}
			}
			known[name] = p
		}
		return p
	}
	slices.SortStableFunc(list, func(a, b T) int {
		x, y := place(node(a)), place(node(b))
		switch {
		case x.placed != y.placed:
			if x.placed {
				return -1
			}
			return 1
		case x.at < y.at:
			return -1
		case x.at > y.at:
			return 1
		}
		return 0
	})
}

// MayReadInstance reports whether a token may see an instance.
func MayReadInstance(z *acl.Authorizer, i *catalog.Instance) bool {
	if i.Node.PeerName != "" {
		return z.MayReadImported(acl.Node) && z.MayReadImported(acl.Service)
	}
	return z.May(acl.Node, acl.Read, i.Node.Node) && z.May(acl.Service, acl.Read, i.Service.Service)
}

// MayReadCheck reports whether a token may see a check.
func MayReadCheck(z *acl.Authorizer, c *catalog.Check) bool {
	return z.May(acl.Node, acl.Read, c.Node) && (c.ServiceID == "" || z.May(acl.Service, acl.Read, c.ServiceName))
}

func (h *handlers) nodes(c *transport.Call, v *state.View, req *catalog.NodesRequest) (*catalog.NodesReply, acl.Permit, error) {
	f, err := filter.Compile[*catalog.Node](req.Filter)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	resp := &catalog.NodesReply{}
	index, all := v.Nodes()
	resp.Index = index
	resp.Nodes = keep(c, &resp.Meta, all, func(z *acl.Authorizer, n *catalog.Node) bool { return z.May(acl.Node, acl.Read, n.Node) })
	resp.Nodes = slices.DeleteFunc(resp.Nodes, func(n *catalog.Node) bool { return !n.HasMeta(req.NodeMeta) })
	resp.Nodes = f.Select(resp.Nodes)
	SortNear(v, req.Near, resp.Nodes, func(n *catalog.Node) string { return n.Node })
	return resp, c.Authorizer.Filtering(), nil
}

func (h *handlers) services(c *transport.Call, v *state.View, req *catalog.ServicesRequest) (*catalog.ServicesReply, acl.Permit, error) {
	f, err := filter.Compile[filter.ServiceNode](req.Filter)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	resp := &catalog.ServicesReply{Services: map[string][]string{}}
	index, all := v.AllInstances()
	resp.Index = index
	for i := range all {
		if !MayReadInstance(c.Authorizer, i) {
			resp.Filtered = !c.Authorizer.Anonymous()
			continue
		}
		if req.Kind != "" && i.Service.Kind != req.Kind || !i.Node.HasMeta(req.NodeMeta) {
			continue
		}
		if f != nil {
			node := i.Node
			if len(req.NodeMeta) > 0 {
				node = nil
			}
			if !f.Match(filter.Flatten(node, i.Service)) {
				continue
			}
		}
		tags, ok := resp.Services[i.Service.Service]
		if !ok {
			tags = []string{}
		}
		for _, tag := range i.Service.Tags {
			if !slices.Contains(tags, tag) {
				tags = append(tags, tag)
			}
		}
		resp.Services[i.Service.Service] = tags
	}
	return resp, c.Authorizer.Filtering(), nil
}

func (h *handlers) nodeServices(c *transport.Call, v *state.View, req *catalog.NodeServicesRequest) (*catalog.NodeServicesReply, acl.Permit, error) {
	f, err := filter.Compile[*catalog.Service](req.Filter)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	resp := &catalog.NodeServicesReply{}
	if req.Peer != "" {
		resp.Index, resp.Node = importedNode(v, req.Peer, req.Node)
		if resp.Node != nil && !c.Authorizer.MayReadImported(acl.Node) {
			resp.Node, resp.Filtered = nil, !c.Authorizer.Anonymous()
		}
		return resp, c.Authorizer.Filtering(), nil
	}
	index, node, services := v.NodeServices(req.Node)
	resp.Index = index
	if node == nil {
		return resp, c.Authorizer.Filtering(), nil
	}
	if !c.Authorizer.May(acl.Node, acl.Read, node.Node) {
		resp.Filtered = !c.Authorizer.Anonymous()
		return resp, c.Authorizer.Filtering(), nil
	}
	resp.Node = node
	resp.Services = keep(c, &resp.Meta, services, func(z *acl.Authorizer, s *catalog.Service) bool {
		return z.May(acl.Service, acl.Read, s.Service)
	})
	if req.MergeCentralConfig {
		for i, s := range resp.Services {
			resp.Services[i] = h.merge(v, &resp.Meta, s)
		}
	}
	resp.Services = f.Select(resp.Services)
	if req.WithChecks {
		_, all := v.NodeChecks(node.Node)
		resp.Checks = keep(c, &resp.Meta, all, MayReadCheck)
		for _, k := range all {
			resp.Index = max(resp.Index, k.ModifyIndex)
		}
	}
	return resp, c.Authorizer.Filtering(), nil
}

// merge returns an instance with its central settings.
func (h *handlers) merge(v *state.View, meta *read.Meta, s *catalog.Service) *catalog.Service {
	if h.cfg.Resolve == nil || !definition.Central(s.Kind) {
		return s
	}
	index, resolved := h.cfg.Resolve(v, definition.CentralRequest(s))
	meta.Index = max(meta.Index, index)
	return definition.MergeCentral(s, resolved)
}

func (h *handlers) instances(c *transport.Call, v *state.View, req *catalog.InstancesRequest) (*catalog.InstancesReply, acl.Permit, error) {
	byCheck, byNode, err := instanceFilters(req)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	resp := &catalog.InstancesReply{Instances: []*catalog.Instance{}}
	if (req.Connect || req.Ingress) && !mayAsk(c.Authorizer, req) {
		if !req.CatalogOnly {
			return nil, acl.Permit{}, wireerr.ErrPermissionDenied
		}
		resp.Index, _ = v.MeshInstances(req.Service, true)
		return resp, c.Authorizer.Filtering(), nil
	}
	index, all := h.cfg.Candidates(v, req)
	resp.Index = index
	for _, i := range all {
		if !MayReadInstance(c.Authorizer, i) {
			resp.Filtered = !c.Authorizer.Anonymous()
			continue
		}
		if !req.Wants(i) {
			continue
		}
		if req.MergeCentralConfig && req.Peer == "" {
			if merged := h.merge(v, &resp.Meta, i.Service); merged != i.Service {
				i = &catalog.Instance{Node: i.Node, Service: merged, Checks: i.Checks}
			}
		}
		if !byCheck.Match(i) || byNode != nil && !byNode.Match(filter.Flatten(i.Node, i.Service)) {
			continue
		}
		if req.CatalogOnly {
			i = &catalog.Instance{Node: i.Node, Service: i.Service}
		}
		if len(resp.Instances) == 0 {
			resp.Instances = make([]*catalog.Instance, 0, len(all))
		}
		resp.Instances = append(resp.Instances, i)
	}
	if req.Peer == "" { // of the nodes of peers nobody knows how far they are
		SortNear(v, req.Near, resp.Instances, func(i *catalog.Instance) string { return i.Node.Node })
	}
	return resp, c.Authorizer.Filtering(), nil
}

// mayAsk reports whether a token may ask for what reaches a service in the mesh.
func mayAsk(z *acl.Authorizer, req *catalog.InstancesRequest) bool {
	if req.Peer != "" {
		return z.MayReadImported(acl.Service)
	}
	return z.May(acl.Service, acl.Read, req.Service)
}

// instanceFilters compiles the filter for the form that the answer has: that of health, or of the catalog.
func instanceFilters(req *catalog.InstancesRequest) (health *filter.Filter[*catalog.Instance], flat *filter.Filter[filter.ServiceNode], err error) {
	if req.CatalogOnly {
		flat, err = filter.Compile[filter.ServiceNode](req.Filter)
	} else {
		health, err = filter.Compile[*catalog.Instance](req.Filter)
	}
	return health, flat, err
}

// Candidates returns the instances a request is about, before anything is left out: those of the service, or those
// through which the mesh reaches it, or the ingress gateways that expose it.
func (cfg Config) Candidates(v *state.View, req *catalog.InstancesRequest) (uint64, []*catalog.Instance) {
	kind := ""
	switch {
	case req.Peer != "":
		return imported(v, req)
	case req.Kind != "":
		return v.InstancesOfKind(req.Kind)
	case req.Ingress:
		kind = catalog.KindIngressGateway
	case req.Connect:
		kind = catalog.KindTerminatingGateway
	default:
		return v.Instances(req.Service, req.CatalogOnly)
	}
	var index uint64
	var all []*catalog.Instance
	if req.Connect {
		index, all = v.MeshInstances(req.Service, req.CatalogOnly)
	}
	if cfg.LinkedGateways == nil {
		if req.Ingress {
			index, _ = v.InstancesOfKind(kind)
		}
		return index, all
	}
	linked, gateways := cfg.LinkedGateways(v, kind, req.Service)
	index = max(index, linked)
	for _, g := range gateways {
		at, instances := v.Instances(g, req.CatalogOnly)
		index = max(index, at)
		for _, i := range instances {
			if i.Service.Kind == kind {
				all = append(all, i)
			}
		}
	}
	if len(gateways) > 0 {
		slices.SortStableFunc(all, func(a, b *catalog.Instance) int {
			return strings.Compare(strings.ToLower(a.Node.Node), strings.ToLower(b.Node.Node))
		})
	}
	return index, all
}

// imported is Candidates for a service of a peer.
func imported(v *state.View, req *catalog.InstancesRequest) (uint64, []*catalog.Instance) {
	index, i := v.Import(req.Peer, req.Service)
	switch {
	case i == nil || req.Ingress:
		return index, nil
	case req.Connect:
		return index, i.Gateways
	}
	return index, i.Instances
}

// importedNode returns a node of a peer, nil when nothing is imported that runs there.
func importedNode(v *state.View, peer, name string) (uint64, *catalog.Node) {
	index, all := v.Imports(peer)
	for _, i := range all {
		for _, in := range i.Instances {
			if strings.EqualFold(in.Node.Node, name) {
				return index, in.Node
			}
		}
	}
	return index, nil
}

func (h *handlers) checks(c *transport.Call, v *state.View, req *catalog.ChecksRequest) (*catalog.ChecksReply, acl.Permit, error) {
	f, err := filter.Compile[*catalog.Check](req.Filter)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	resp := &catalog.ChecksReply{}
	var all []*catalog.Check
	switch {
	case req.Node != "":
		resp.Index, all = v.NodeChecks(req.Node)
	case req.Service != "":
		resp.Index, all = v.ServiceChecks(req.Service)
	default:
		switch strings.ToLower(req.State) {
		case "any", catalog.Passing, catalog.Warning, catalog.Critical:
			resp.Index, all = v.ChecksInState(req.State)
		default:
			resp.Index, _ = v.ChecksInState("any")
		}
	}
	resp.Checks = keep(c, &resp.Meta, all, MayReadCheck)
	if len(req.NodeMeta) > 0 {
		nodes := map[string]bool{}
		resp.Checks = slices.DeleteFunc(resp.Checks, func(k *catalog.Check) bool {
			has, ok := nodes[k.Node]
			if !ok {
				n := v.Node(k.Node)
				has = n != nil && n.HasMeta(req.NodeMeta)
				nodes[k.Node] = has
			}
			return !has
		})
	}
	resp.Checks = f.Select(resp.Checks)
	SortNear(v, req.Near, resp.Checks, func(k *catalog.Check) string { return k.Node })
	return resp, c.Authorizer.Filtering(), nil
}

func (h *handlers) coordinates(c *transport.Call, v *state.View, req *catalog.CoordinatesRequest) (*catalog.CoordinatesReply, acl.Permit, error) {
	resp := &catalog.CoordinatesReply{}
	var all []*catalog.NodeCoordinate
	if req.Node != "" {
		if _, err := c.Authorizer.Require(acl.Node, acl.Read, req.Node); err != nil {
			return nil, acl.Permit{}, err
		}
		resp.Index, all = v.NodeCoordinates(req.Node)
	} else {
		resp.Index, all = v.Coordinates()
	}
	resp.Coordinates = keep(c, &resp.Meta, all, func(z *acl.Authorizer, n *catalog.NodeCoordinate) bool {
		return z.May(acl.Node, acl.Read, n.Node)
	})
	return resp, c.Authorizer.Filtering(), nil
}
