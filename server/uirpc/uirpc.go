// Package uirpc answers what the web console asks (connect/console): lists of nodes and services with their health, and
// the topology of the mesh. All of it is worked out from the state when it is asked for.
package uirpc

import (
	"cmp"
	"errors"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/filter"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect/console"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/transport"
)

// Config tunes the handlers. A zero field takes its default.
type Config struct {
	// Default is what holds between services that no intention is about.
	Default intention.Default
	// Builds returns the version that each member of the cluster runs, by the name of its node. The default knows none.
	Builds func() map[string]string
}

type handlers struct{ cfg Config }

// Register adds the handlers.
func Register(r *transport.Registry, cfg Config) {
	if cfg.Builds == nil {
		cfg.Builds = func() map[string]string { return nil }
	}
	h := &handlers{cfg}
	transport.HandleRead(r, console.NodesCall, h.nodes)
	transport.HandleRead(r, console.ServicesCall, h.services)
	transport.HandleRead(r, console.OverviewCall, h.overview)
	transport.HandleRead(r, console.GatewayServicesCall, h.gatewayServices)
	transport.HandleRead(r, console.GatewayIntentionsCall, h.gatewayIntentions)
	transport.HandleRead(r, console.ExportedCall, h.exported)
	transport.HandleRead(r, console.TopologyCall, h.topology)
}

// versionMeta is the key of node metadata that has the version of the agent.
const versionMeta = "consul-version"

func (h *handlers) nodes(c *transport.Call, v *state.View, req *console.NodesRequest) (*console.NodesReply, acl.Permit, error) {
	keep, err := filter.Compile[*console.Node](req.Filter)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &console.NodesReply{Nodes: []*console.Node{}}
	index, all := v.Nodes()
	reply.Index = index
	if req.Node != "" {
		all = nil
		if n := v.Node(req.Node); n != nil && req.Peer == "" {
			all = []*catalog.Node{n}
		}
	}
	builds := h.cfg.Builds()
	hide := func() { reply.Filtered = !c.Authorizer.Anonymous() }
	for _, n := range all {
		if !c.Authorizer.May(acl.Node, acl.Read, n.Node) {
			hide()
			continue
		}
		out := &console.Node{
			ID: n.ID, Node: n.Node, Address: n.Address, TaggedAddresses: n.TaggedAddresses, Meta: n.Meta, PeerName: n.PeerName,
			Services: []*catalog.Service{}, Checks: []*catalog.Check{},
		}
		at, _, services := v.NodeServices(n.Node)
		checked, checks := v.NodeChecks(n.Node)
		reply.Index = max(reply.Index, at, checked)
		for _, s := range services {
			if !c.Authorizer.May(acl.Service, acl.Read, s.Service) {
				hide()
				continue
			}
			out.Services = append(out.Services, s)
		}
		for _, k := range checks {
			if !catalogrpc.MayReadCheck(c.Authorizer, k) {
				hide()
				continue
			}
			out.Checks = append(out.Checks, k)
		}
		if build := builds[n.Node]; build != "" && n.Meta[versionMeta] == "" {
			out.Meta = map[string]string{versionMeta: build}
			for k, value := range n.Meta {
				out.Meta[k] = value
			}
		}
		if keep.Match(out) {
			reply.Nodes = append(reply.Nodes, out)
		}
	}
	if req.Node == "" || req.Peer != "" {
		changed, found := importedNodes(c, v, req, hide)
		reply.Index = max(reply.Index, changed)
		reply.Nodes = append(reply.Nodes, keep.Select(found)...)
	}
	reply.NotFound = req.Node != "" && len(reply.Nodes) == 0
	return reply, c.Authorizer.Filtering(), nil
}

// importedNodes returns the nodes of peers, all or the one asked for, with what of them is imported, ordered by peer, then
// name.
func importedNodes(c *transport.Call, v *state.View, req *console.NodesRequest, hide func()) (uint64, []*console.Node) {
	index, all := v.Imports(req.Peer)
	type key struct{ peer, node string }
	known := map[key]*console.Node{}
	var out []*console.Node
	for _, imported := range all {
		for _, i := range imported.Instances {
			if req.Node != "" && !strings.EqualFold(i.Node.Node, req.Node) {
				continue
			}
			if !catalogrpc.MayReadInstance(c.Authorizer, i) {
				hide()
				continue
			}
			at := key{i.Node.PeerName, strings.ToLower(i.Node.Node)}
			n := known[at]
			if n == nil {
				n = &console.Node{
					ID: i.Node.ID, Node: i.Node.Node, Address: i.Node.Address, TaggedAddresses: i.Node.TaggedAddresses,
					Meta: i.Node.Meta, PeerName: i.Node.PeerName, Services: []*catalog.Service{}, Checks: []*catalog.Check{},
				}
				known[at] = n
				out = append(out, n)
			}
			n.Services = append(n.Services, i.Service)
			for _, k := range i.Checks {
				if !slices.ContainsFunc(n.Checks, func(o *catalog.Check) bool { return o.CheckID == k.CheckID }) {
					n.Checks = append(n.Checks, k)
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b *console.Node) int {
		return cmp.Or(cmp.Compare(a.PeerName, b.PeerName), cmp.Compare(a.Node, b.Node))
	})
	return index, out
}

func (h *handlers) services(c *transport.Call, v *state.View, req *console.ServicesRequest) (*console.ServicesReply, acl.Permit, error) {
	keep, err := filter.Compile[*catalog.Instance](req.Filter)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &console.ServicesReply{Services: []*console.Listing{}}
	hide := func() { reply.Filtered = !c.Authorizer.Anonymous() }
	changed, imported := importedServices(c, v, req.Peer, keep, hide)
	if req.Peer != "" {
		reply.Index, reply.Services = changed, imported
		return reply, c.Authorizer.Filtering(), nil
	}
	index, all := health(v)
	reply.Index = max(index, changed)
	in := console.NewSummarizer(c.Datacenter)
	gateways := map[string]string{} // kinds by name
	for _, i := range all {
		if !catalogrpc.MayReadInstance(c.Authorizer, i) {
			reply.Filtered = !c.Authorizer.Anonymous()
			continue
		}
		if isGateway(i.Service.Kind) {
			gateways[i.Service.Service] = i.Service.Kind
		}
		if keep.Match(i) {
			in.Add(i)
		}
	}
	linked := map[string]bool{} // lower case
	counts := map[string]int{}
	for name := range gateways {
		at, links := linkedBy(v, name)
		reply.Index = max(reply.Index, at)
		names := map[string]bool{}
		for _, l := range links {
			if key := strings.ToLower(l.Service.Name); c.Authorizer.May(acl.Service, acl.Read, l.Service.Name) {
				names[key], linked[key] = true, true
			}
		}
		counts[name] = len(names)
	}
	for _, name := range in.Names() {
		s := in.Summary(name)
		s.GatewayConfig.AssociatedServiceCount = counts[name]
		reply.Services = append(reply.Services, &console.Listing{
			Summary: *s, ConnectedWithProxy: in.Proxied(name), ConnectedWithGateway: linked[strings.ToLower(name)],
		})
	}
	reply.Services = append(reply.Services, imported...)
	slices.SortStableFunc(reply.Services, func(a, b *console.Listing) int { return cmp.Compare(a.Name, b.Name) })
	return reply, c.Authorizer.Filtering(), nil
}

// importedServices returns summaries of the services of a peer, or of all peers, ordered by peer, then name.
func importedServices(c *transport.Call, v *state.View, peer string, keep *filter.Filter[*catalog.Instance], hide func()) (uint64, []*console.Listing) {
	index, all := v.Imports(peer)
	byPeer := map[string]*console.Summarizer{}
	for _, imported := range all {
		for _, i := range imported.Instances {
			if !catalogrpc.MayReadInstance(c.Authorizer, i) {
				hide()
				continue
			}
			if !keep.Match(i) {
				continue
			}
			if byPeer[imported.Peer] == nil {
				byPeer[imported.Peer] = console.NewSummarizer(c.Datacenter)
			}
			byPeer[imported.Peer].Add(i)
		}
	}
	out := []*console.Listing{}
	for _, name := range slices.Sorted(maps.Keys(byPeer)) {
		in := byPeer[name]
		for _, service := range in.Names() {
			out = append(out, &console.Listing{Summary: *in.Summary(service), ConnectedWithProxy: in.Proxied(service)})
		}
	}
	return index, out
}

// health returns all instances, with the index of the last change of one or of its health. A waiter is woken by both.
func health(v *state.View) (uint64, []*catalog.Instance) {
	checked, _ := v.ChecksInState("any")
	index, all := v.AllInstances()
	return max(index, checked), slices.Collect(all)
}

func isGateway(kind string) bool {
	return kind == catalog.KindIngressGateway || kind == catalog.KindTerminatingGateway || kind == catalog.KindAPIGateway
}

// linkedBy returns what a gateway of any kind links, ordered by service, with the index of the last change to that.
func linkedBy(v *state.View, gateway string) (uint64, []entry.GatewayService) {
	index, links := configrpc.LinkedServices(v, gateway)
	changed, _ := v.Entries(entry.KindBoundAPIGateway)
	if b := state.EntryAs[entry.BoundAPIGateway](v, entry.KindBoundAPIGateway, gateway); b != nil {
		for name := range b.Services {
			links = append(links, entry.GatewayService{
				Gateway: entry.GatewayName{Name: gateway}, Service: entry.GatewayName{Name: name}, GatewayKind: catalog.KindAPIGateway,
			})
		}
		slices.SortStableFunc(links, func(a, b entry.GatewayService) int { return cmp.Compare(a.Service.Name, b.Service.Name) })
	}
	return max(index, changed), links
}

func (h *handlers) overview(c *transport.Call, v *state.View, _ *console.OverviewRequest) (*console.OverviewReply, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Operator, acl.Read, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	o := console.NewOverview()
	index, all := health(v)
	for _, i := range all {
		o.AddInstance(i)
	}
	at, nodes := v.Nodes()
	for _, n := range nodes {
		_, checks := v.NodeChecks(n.Node)
		o.AddNode(checks)
	}
	reply := o.Reply()
	reply.Index = max(index, at)
	return reply, permit, nil
}

// A reader makes summaries of single services, of what the token may see.
type reader struct {
	c    *transport.Call
	v    *state.View
	meta *read.Meta
}

// summary returns the summary of a service, nil when it has no instances or none may be seen.
func (r *reader) summary(name string) *console.Summary {
	in := console.NewSummarizer(r.c.Datacenter)
	index, own := r.v.Instances(name, false)
	at, mesh := r.v.MeshInstances(name, false)
	r.meta.Index = max(r.meta.Index, index, at)
	add := func(i *catalog.Instance) {
		if catalogrpc.MayReadInstance(r.c.Authorizer, i) {
			in.Add(i)
		} else {
			r.meta.Filtered = !r.c.Authorizer.Anonymous()
		}
	}
	for _, i := range own {
		add(i)
	}
	for _, i := range mesh {
		if i.Service.Kind == catalog.KindConnectProxy {
			add(i)
		}
	}
	return in.Summary(name)
}

// may reports whether the token may see a service, and notes when not.
func (r *reader) may(name string) bool {
	if r.c.Authorizer.May(acl.Service, acl.Read, name) {
		return true
	}
	r.meta.Filtered = !r.c.Authorizer.Anonymous()
	return false
}

func (h *handlers) gatewayServices(c *transport.Call, v *state.View, req *console.GatewayRequest) (*console.SummariesReply, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Service, acl.Read, req.Gateway)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &console.SummariesReply{Services: []*console.Summary{}}
	r := &reader{c, v, &reply.Meta}
	index, links := linkedBy(v, req.Gateway)
	reply.Index = index
	byName := map[string]*console.Summary{}
	for _, l := range links {
		name := l.Service.Name
		if name == entry.Wildcard || !r.may(name) {
			continue
		}
		s := byName[name]
		if s == nil {
			if s = r.summary(name); s == nil {
				s = &console.Summary{Name: name, Datacenter: c.Datacenter}
			}
			byName[name] = s
			reply.Services = append(reply.Services, s)
		}
		if l.GatewayKind == catalog.KindIngressGateway {
			hosts := l.Hosts
			if len(hosts) == 0 {
				hosts = []string{name + ".ingress." + c.Datacenter + "." + cmp.Or(req.Domain, "consul")}
			}
			for _, host := range hosts {
				s.GatewayConfig.Addresses = append(s.GatewayConfig.Addresses, net.JoinHostPort(host, strconv.Itoa(l.Port)))
			}
		}
	}
	return reply, permit, nil
}

func (h *handlers) gatewayIntentions(c *transport.Call, v *state.View, req *console.GatewayRequest) (*console.IntentionsReply, acl.Permit, error) {
	permit, err := c.Authorizer.Require(acl.Service, acl.Read, req.Gateway)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &console.IntentionsReply{Intentions: []*intention.Intention{}}
	index, links := linkedBy(v, req.Gateway)
	changed, _ := v.Intentions()
	reply.Index = max(index, changed)
	seen := map[string]bool{}
	include := func(e *entry.ServiceIntentions) {
		if e == nil || seen[e.Name] {
			return
		}
		seen[e.Name] = true
		for _, n := range intention.FromEntry(e) {
			if configrpc.MayReadIntention(c.Authorizer, n) {
				reply.Intentions = append(reply.Intentions, n)
			} else {
				reply.Filtered = !c.Authorizer.Anonymous()
			}
		}
	}
	for _, l := range links {
		_, own, all := v.IntentionsTo(l.Service.Name)
		include(own)
		include(all)
	}
	intention.Sort(reply.Intentions)
	return reply, permit, nil
}

var errNoPeer = errors.New("must provide PeerName")

// exported lists what is exported to a peer; to one that is not known, nothing.
func (h *handlers) exported(c *transport.Call, v *state.View, req *console.ExportedRequest) (*console.SummariesReply, acl.Permit, error) {
	if req.Peer == "" {
		return nil, acl.Permit{}, errNoPeer
	}
	reply := &console.SummariesReply{Services: []*console.Summary{}}
	changed, peered := v.Peering(req.Peer)
	index, names := v.Exports(req.Peer)
	reply.Index = max(index, changed)
	if peered == nil {
		return reply, c.Authorizer.Filtering(), nil
	}
	every := c.Authorizer.May(acl.Mesh, acl.Write, "")
	for _, name := range names {
		if !every && !c.Authorizer.May(acl.Service, acl.Read, name) {
			reply.Filtered = !c.Authorizer.Anonymous()
			continue
		}
		reply.Services = append(reply.Services, &console.Summary{Name: name, Datacenter: c.Datacenter})
	}
	return reply, c.Authorizer.Filtering(), nil
}
