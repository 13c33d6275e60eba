package agent

import (
	"context"
	"net/netip"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/client/dns"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// dnsSource answers the DNS server's questions: on a server from its own state, on a client from standing views of it.
type dnsSource struct {
	caller rpc.Caller
	views  *cache.Cache // nil on servers
	origin query.Origin // of the questions: this agent
}

// ask answers from a standing view if there is one. What is asked for the first time is asked of a server; a view is made
// of it only when keep says that it is about something that exists, so that questions with made-up names leave nothing
// behind.
func ask[Req, Resp any](ctx context.Context, d *dnsSource, m rpc.Method[Req, Resp], req *Req, keep func(*Resp) bool) (*Resp, error) {
	if d.views == nil {
		return m.Call(ctx, d.caller, req)
	}
	if resp, _, ok := cache.Peek(d.views, m, req); ok {
		return resp, nil
	}
	resp, err := m.Call(ctx, d.caller, req)
	if err != nil || !keep(resp) {
		return resp, err
	}
	resp, _, err = cache.Get(ctx, d.views, m, req)
	return resp, err
}

// Instances implements dns.Source.
func (d *dnsSource) Instances(ctx context.Context, req *catalog.InstancesRequest) (*catalog.InstancesReply, error) {
	resp, err := ask(ctx, d, catalog.InstancesCall, req, func(r *catalog.InstancesReply) bool { return len(r.Instances) > 0 })
	if err == nil && d.views == nil && req.MaxStale > 0 && resp.LastContact > req.MaxStale {
		fresh := *req
		fresh.Mode, fresh.MaxStale = read.Default, 0
		return catalog.InstancesCall.Call(ctx, d.caller, &fresh)
	}
	return resp, err
}

// Node implements dns.Source.
func (d *dnsSource) Node(ctx context.Context, req *catalog.NodeServicesRequest) (*catalog.NodeServicesReply, error) {
	return ask(ctx, d, catalog.NodeServicesCall, req, func(r *catalog.NodeServicesReply) bool { return r.Node != nil })
}

// Address implements dns.Source.
func (d *dnsSource) Address(ctx context.Context, req *catalog.AddressRequest) (*catalog.AddressReply, error) {
	return catalog.AddressCall.Call(ctx, d.caller, req)
}

// Query implements dns.Source.
func (d *dnsSource) Query(ctx context.Context, req *query.ExecuteRequest) (*query.ExecuteReply, error) {
	own := *req
	own.Origin.Node, own.Origin.Datacenter = d.origin.Node, d.origin.Datacenter
	resp, err := query.ExecuteCall.Call(ctx, d.caller, &own)
	if err == nil && own.MaxStale > 0 && resp.LastContact > own.MaxStale {
		own.Mode, own.MaxStale = read.Default, 0
		return query.ExecuteCall.Call(ctx, d.caller, &own)
	}
	return resp, err
}

// Virtual implements dns.Source.
func (d *dnsSource) Virtual(ctx context.Context, target read.Target, service, peer string) (netip.Addr, error) {
	req := &entry.VirtualIPRequest{Options: read.Options{Target: target, Mode: read.Stale}, Service: service, Peer: peer}
	reply, err := entry.VirtualIPCall.Call(ctx, d.caller, req)
	if err != nil || reply.Address == "" {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(reply.Address)
}

// dnsSettings are the DNS server's settings in a configuration.
func dnsSettings(s *config.Settings) dns.Settings {
	d := s.DNS
	return dns.Settings{
		AllowStale: d.AllowStale, MaxStale: d.MaxStale, NodeTTL: d.NodeTTL, ServiceTTL: d.ServiceTTL, OnlyPassing: d.OnlyPassing,
		UDPAnswerLimit: d.UDPAnswerLimit, ARecordLimit: d.ARecordLimit, EnableTruncate: d.EnableTruncate,
		DisableCompression: d.DisableCompression, NodeMetaTXT: d.NodeMetaTXT, SOARefresh: uint32(d.SOARefresh),
		SOARetry: uint32(d.SOARetry), SOAExpire: uint32(d.SOAExpire), SOAMinTTL: uint32(d.SOAMinTTL), Recursors: d.Recursors,
		RandomRecursor: d.RecursorStrategy == "random", RecursorTimeout: d.RecursorTimeout, TranslateWAN: s.TranslateWANAddrs,
	}
}
