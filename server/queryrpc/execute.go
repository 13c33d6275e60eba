package queryrpc

import (
	"context"
	"math/rand/v2"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/transport"
)

// execute needs no right on the query: what it finds is shown as far as the token allows, that of the query if it has
// one.
func (h *handlers) execute(ctx context.Context, c *transport.Call, v *state.View, req *query.ExecuteRequest) (*query.ExecuteReply, acl.Permit, error) {
	q, err := resolve(v, req.Query)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	z, token := c.Authorizer, req.Token
	if q.Token != "" {
		token = q.Token
		if z, err = c.Resolve(ctx, token); err != nil {
			return nil, acl.Permit{}, err
		}
	}
	reply := h.search(c, z, v, q, req.Connect)
	if node := source(c, v, q, req); node != "" && q.Service.Peer == "" {
		catalogrpc.SortNear(v, node, reply.Instances, func(i *catalog.Instance) string { return i.Node.Node })
		query.SourceFirst(reply.Instances, node)
	}
	reply.Instances = query.Limit(reply.Instances, req.Limit)
	if len(reply.Instances) > 0 {
		return reply, z.Filtering(), nil
	}
	return reply, z.Filtering(), h.failover(ctx, c, z, v, q, req, token, reply)
}

// search returns the instances here that the query is about and that the token may see, in random order.
func (h *handlers) search(c *transport.Call, z *acl.Authorizer, v *state.View, q *query.Query, connect bool) *query.ExecuteReply {
	s := &q.Service
	reply := &query.ExecuteReply{
		Service: s.Service, Instances: []*catalog.Instance{}, DNS: q.DNS, Datacenter: c.Datacenter, PeerName: s.Peer,
	}
	_, all := h.cfg.Instances(v, &catalog.InstancesRequest{Service: s.Service, Connect: s.Connect || connect, Peer: s.Peer})
	for _, i := range s.Select(all) {
		if !catalogrpc.MayReadInstance(z, i) {
			reply.Filtered = !z.Anonymous()
			continue
		}
		reply.Instances = append(reply.Instances, i)
	}
	list := reply.Instances
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return reply
}

// source returns the name of the node of this datacenter to sort near of, empty for none.
func source(c *transport.Call, v *state.View, q *query.Query, req *query.ExecuteRequest) string {
	near := req.Near
	if near == "" {
		near = q.Service.Near
	}
	switch near {
	case query.NearAgent:
		if req.Origin.Datacenter != c.Datacenter {
			return ""
		}
		return req.Origin.Node
	case query.NearIP:
		if req.Origin.IP == "" {
			return ""
		}
		_, nodes := v.Nodes()
		for _, n := range nodes {
			if n.Address == req.Origin.IP {
				return n.Node
			}
		}
		return ""
	}
	return near
}

// failover asks other places, one after another, until something is found; it is put into the reply. What peers export is
// known here.
func (h *handlers) failover(ctx context.Context, c *transport.Call, z *acl.Authorizer, v *state.View, q *query.Query, req *query.ExecuteRequest, token string, reply *query.ExecuteReply) error {
	own := *q
	own.Token = "" // it goes with the request
	var datacenters []string
	if h.cfg.Elsewhere != nil {
		datacenters = h.cfg.Elsewhere.Datacenters()
	}
	for _, to := range q.Service.Failover.Candidates(c.Datacenter, datacenters) {
		if to.Peer != "" {
			reply.Failovers++
			own.Service.Peer = to.Peer
			there := h.search(c, z, v, &own, req.Connect)
			reply.Datacenter, reply.PeerName, reply.Filtered = "", to.Peer, there.Filtered
			if reply.Instances = query.Limit(there.Instances, req.Limit); len(reply.Instances) > 0 {
				return nil
			}
			continue
		}
		if h.cfg.Elsewhere == nil {
			continue
		}
		own.Service.Peer = ""
		reply.Failovers++
		o := read.Options{Target: read.Target{Datacenter: to.Datacenter, Token: token}, Mode: req.Mode, MaxStale: req.MaxStale}
		there, err := h.cfg.Elsewhere.Execute(ctx, to, &query.RemoteRequest{Options: o, Query: own, Limit: req.Limit, Connect: req.Connect})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			h.cfg.Logger.Warn("prepared query not executed elsewhere, will try the next place", "query", q.ID,
				"datacenter", to.Datacenter, "peer", to.Peer, "error", err)
			continue
		}
		reply.Datacenter, reply.PeerName, reply.Filtered = there.Datacenter, there.PeerName, there.Filtered
		if len(there.Instances) > 0 {
			reply.Instances = there.Instances
			return nil
		}
	}
	return nil
}

// remote executes a query for another datacenter, which has resolved it.
func (h *handlers) remote(c *transport.Call, v *state.View, req *query.RemoteRequest) (*query.ExecuteReply, acl.Permit, error) {
	reply := h.search(c, c.Authorizer, v, &req.Query, req.Connect)
	reply.Instances = query.Limit(reply.Instances, req.Limit)
	return reply, c.Authorizer.Filtering(), nil
}
