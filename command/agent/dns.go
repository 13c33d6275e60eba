package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/client/dns"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/transport"
)

// dnsSource answers the DNS server's questions: on a server from its own state, on a client from standing views of it.
type dnsSource struct {
	caller rpc.Caller
	follow followFunc   // nil on clients
	views  *dnsViews    // nil on servers
	origin query.Origin // of the questions: this agent
	doubts doubts
}

// A follower answers reads from its own state and tells whether it would do so again: a server's *transport.Dispatcher.
type follower interface {
	Follow(ctx context.Context, m rpc.Descriptor, req, resp any) (*transport.Standing, error)
}

type followFunc func(ctx context.Context, m rpc.Descriptor, req, resp any) (*transport.Standing, error)

// dnsViews are the standing views that answer questions on a client.
type dnsViews struct {
	instances *cache.Index[instancesKey, catalog.InstancesRequest, catalog.InstancesReply]
	nodes     *cache.Index[nodeKey, catalog.NodeServicesRequest, catalog.NodeServicesReply]
}

// instancesKey and nodeKey are what of a request matters to its view.
type (
	instancesKey struct {
		target                   read.Target
		service, tag, peer, kind string
	}
	nodeKey struct {
		target     read.Target
		node, peer string
	}
)

// Kinds of endpoints in an instancesKey.
const (
	viewConnect = "connect"
	viewIngress = "ingress"
)

func newDNSViews(c *cache.Cache) *dnsViews {
	return &dnsViews{
		instances: cache.NewIndex(c, catalog.InstancesCall, func(k instancesKey) *catalog.InstancesRequest {
			req := &catalog.InstancesRequest{
				Options: read.Options{Target: k.target}, Service: k.service, Peer: k.peer, Connect: k.kind == viewConnect, Ingress: k.kind == viewIngress,
			}
			if k.tag != "" {
				req.Tags = []string{k.tag}
			}
			return req
		}),
		nodes: cache.NewIndex(c, catalog.NodeServicesCall, func(k nodeKey) *catalog.NodeServicesRequest {
			return &catalog.NodeServicesRequest{Options: read.Options{Target: k.target}, Node: k.node, Peer: k.peer}
		}),
	}
}

// ask answers a read. Stale ones are answered by the state of this server or by a view; a view is made only of what
// there is, so that questions with made-up names leave nothing behind. What is too old, or not there by a state that is
// not the leader's, is asked of the leader.
func ask[K comparable, Req, Resp any](ctx context.Context, d *dnsSource, m rpc.Method[Req, Resp], req *Req,
	views func(*dnsViews) *cache.Index[K, Req, Resp], key K, found func(*Resp) bool) (*Resp, dns.Standing, error) {
	o := any(req).(interface{ ReadOptions() *read.Options }).ReadOptions()
	if o.Mode != read.Stale {
		resp, err := m.Call(ctx, d.caller, req)
		return resp, nil, err
	}
	if d.views != nil {
		index := views(d.views)
		if resp, info, ok := index.Peek(key); ok && (o.MaxStale == 0 || info.Age <= o.MaxStale) {
			return resp, &viewed[K, Req, Resp]{index, key, resp, o.MaxStale}, nil
		}
	}
	var resp *Resp
	var standing dns.Standing
	var err error
	if d.follow != nil {
		resp = new(Resp)
		var s *transport.Standing
		if s, err = d.follow(ctx, m.Descriptor, req, resp); s != nil {
			standing = s
		}
	} else {
		resp, err = m.Call(ctx, d.caller, req)
	}
	if err != nil {
		return nil, nil, err
	}
	meta := any(resp).(interface{ ReadMeta() *read.Meta }).ReadMeta()
	switch {
	case o.MaxStale > 0 && meta.LastContact > o.MaxStale:
		closeStanding(standing)
		resp, err = atLeader(ctx, d, m, req)
		return resp, nil, err
	case !found(resp) && meta.LastContact > 0 && meta.KnownLeader:
		// The state of a server that does not lead is a little behind: what has just been registered may not be there.
		if sure, ok := confirm(ctx, d, m, req, key, found); ok {
			closeStanding(standing)
			return sure, nil, nil
		}
		if standing != nil {
			standing = &brief{standing, time.Now().Add(sureFor)}
		}
		return resp, standing, nil
	case d.views != nil && found(resp):
		index := views(d.views)
		if resp, _, err = index.Get(ctx, key); err != nil {
			return nil, nil, err
		}
		return resp, &viewed[K, Req, Resp]{index, key, resp, o.MaxStale}, nil
	}
	return resp, standing, nil
}

func closeStanding(s dns.Standing) {
	if s != nil {
		s.Close()
	}
}

// atLeader asks the leader what was asked of any server.
func atLeader[Req, Resp any](ctx context.Context, d *dnsSource, m rpc.Method[Req, Resp], req *Req) (*Resp, error) {
	own := *req
	o := any(&own).(interface{ ReadOptions() *read.Options }).ReadOptions()
	o.Mode, o.MaxStale = read.Default, 0
	return m.Call(ctx, d.caller, &own)
}

// A viewed answer is that of a view as long as the view keeps it.
type viewed[K comparable, Req, Resp any] struct {
	index    *cache.Index[K, Req, Resp]
	key      K
	resp     *Resp
	maxStale time.Duration
}

// Current implements dns.Standing.
func (v *viewed[K, Req, Resp]) Current() bool {
	resp, info, ok := v.index.Peek(v.key)
	return ok && resp == v.resp && (v.maxStale == 0 || info.Age <= v.maxStale)
}

// Close implements dns.Standing: the view ends by itself when it is not used.
func (v *viewed[K, Req, Resp]) Close() {}

// A brief standing ends by itself.
type brief struct {
	dns.Standing
	until time.Time
}

func (b *brief) Current() bool { return time.Now().Before(b.until) && b.Standing.Current() }

// How the leader is asked about what is not there by another server's state: one question at a time for the same thing,
// and not without bound, so that questions with made-up names do not become a burden for it. What it has serves until the
// state here has followed; that it has nothing serves for a moment only.
const (
	doubtAfter   = 100 * time.Millisecond
	doubtTimeout = time.Second
	doubtsAtOnce = 50 // in the time of doubtAfter
	sureFor      = 10 * time.Millisecond
)

// doubts bound the questions to the leader.
type doubts struct {
	joined singleflight.Group

	mu    sync.Mutex
	since time.Time
	asked int
	found map[string]any // replies of the leader since then, and those of the time before
	older map[string]any
}

// admit returns what the leader has said already, or reports whether it may be asked.
func (d *doubts) admit(key string, now time.Time) (known any, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if past := now.Sub(d.since); past >= doubtAfter {
		d.older, d.found = d.found, nil
		if past >= 2*doubtAfter {
			d.older = nil
		}
		d.since, d.asked = now, 0
	}
	for _, m := range []map[string]any{d.found, d.older} {
		if known, ok = m[key]; ok {
			return known, true
		}
	}
	d.asked++
	return nil, d.asked <= doubtsAtOnce
}

// keep notes what the leader has.
func (d *doubts) keep(key string, reply any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.found == nil {
		d.found = map[string]any{}
	}
	d.found[key] = reply
}

// confirm asks the leader; it reports false when that was not to be, did not succeed, or found nothing either.
func confirm[K comparable, Req, Resp any](ctx context.Context, d *dnsSource, m rpc.Method[Req, Resp], req *Req, key K, found func(*Resp) bool) (*Resp, bool) {
	name := m.Name + fmt.Sprintf("%#v", key)
	resp, err, _ := d.doubts.joined.Do(name, func() (any, error) {
		if known, ok := d.doubts.admit(name, time.Now()); known != nil {
			return known, nil
		} else if !ok {
			return nil, errDoubts
		}
		ctx, cancel := context.WithTimeout(ctx, doubtTimeout)
		defer cancel()
		resp, err := atLeader(ctx, d, m, req)
		if err != nil {
			return nil, err
		}
		if found(resp) {
			d.doubts.keep(name, resp)
		}
		return resp, nil
	})
	if err != nil || !found(resp.(*Resp)) {
		return nil, false
	}
	return resp.(*Resp), true
}

var errDoubts = errors.New("too many questions for the leader")

// Instances implements dns.Source.
func (d *dnsSource) Instances(ctx context.Context, req *catalog.InstancesRequest) (*catalog.InstancesReply, dns.Standing, error) {
	key := instancesKey{target: req.Target, service: req.Service, peer: req.Peer}
	if len(req.Tags) > 0 {
		key.tag = req.Tags[0]
	}
	switch {
	case req.Connect:
		key.kind = viewConnect
	case req.Ingress:
		key.kind = viewIngress
	}
	return ask(ctx, d, catalog.InstancesCall, req,
		func(v *dnsViews) *cache.Index[instancesKey, catalog.InstancesRequest, catalog.InstancesReply] {
			return v.instances
		},
		key, func(r *catalog.InstancesReply) bool { return len(r.Instances) > 0 })
}

// Node implements dns.Source.
func (d *dnsSource) Node(ctx context.Context, req *catalog.NodeServicesRequest) (*catalog.NodeServicesReply, dns.Standing, error) {
	return ask(ctx, d, catalog.NodeServicesCall, req,
		func(v *dnsViews) *cache.Index[nodeKey, catalog.NodeServicesRequest, catalog.NodeServicesReply] {
			return v.nodes
		},
		nodeKey{req.Target, req.Node, req.Peer}, func(r *catalog.NodeServicesReply) bool { return r.Node != nil })
}

// Address implements dns.Source.
func (d *dnsSource) Address(ctx context.Context, req *catalog.AddressRequest) (*catalog.AddressReply, error) {
	return confirmed(ctx, d, catalog.AddressCall, req, nodeKey{target: req.Target, node: req.Address},
		func(r *catalog.AddressReply) bool { return r.Node != nil || r.Service != "" })
}

// confirmed answers a read without a view.
func confirmed[Req, Resp any](ctx context.Context, d *dnsSource, m rpc.Method[Req, Resp], req *Req, key nodeKey, found func(*Resp) bool) (*Resp, error) {
	o := any(req).(interface{ ReadOptions() *read.Options }).ReadOptions()
	resp, err := m.Call(ctx, d.caller, req)
	if err != nil || o.Mode != read.Stale {
		return resp, err
	}
	meta := any(resp).(interface{ ReadMeta() *read.Meta }).ReadMeta()
	switch {
	case o.MaxStale > 0 && meta.LastContact > o.MaxStale:
		return atLeader(ctx, d, m, req)
	case !found(resp) && meta.LastContact > 0 && meta.KnownLeader:
		if sure, ok := confirm(ctx, d, m, req, key, found); ok {
			return sure, nil
		}
	}
	return resp, nil
}

// Query implements dns.Source.
func (d *dnsSource) Query(ctx context.Context, req *query.ExecuteRequest) (*query.ExecuteReply, error) {
	own := *req
	own.Origin.Node, own.Origin.Datacenter = d.origin.Node, d.origin.Datacenter
	key := nodeKey{target: own.Target, node: own.Origin.IP + " " + own.Query}
	found := func(r *query.ExecuteReply) bool { return len(r.Instances) > 0 }
	resp, err := confirmed(ctx, d, query.ExecuteCall, &own, key, found)
	if err != nil && own.Mode == read.Stale && wireerr.Status(err) == http.StatusNotFound {
		if sure, ok := confirm(ctx, d, query.ExecuteCall, &own, key, found); ok {
			return sure, nil
		}
	}
	return resp, err
}

// Virtual implements dns.Source.
func (d *dnsSource) Virtual(ctx context.Context, o read.Options, service, peer string) (netip.Addr, error) {
	req := &entry.VirtualIPRequest{Options: o, Service: service, Peer: peer}
	reply, err := confirmed(ctx, d, entry.VirtualIPCall, req, nodeKey{o.Target, service, peer},
		func(r *entry.VirtualIPReply) bool { return r.Address != "" })
	if err != nil || reply.Address == "" {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(reply.Address)
}

// dnsSettings are the DNS server's settings in a configuration.
func dnsSettings(s *config.Settings) dns.Settings {
	d := s.DNS
	if d.TrustedNetworks == nil {
		d.TrustedNetworks = dns.TrustedNetworks()
	}
	return dns.Settings{
		AllowStale: d.AllowStale, MaxStale: d.MaxStale, NodeTTL: d.NodeTTL, ServiceTTL: d.ServiceTTL, OnlyPassing: d.OnlyPassing,
		UDPAnswerLimit: d.UDPAnswerLimit, UDPAnswerRate: d.UDPAnswerRate, TrustedNetworks: d.TrustedNetworks, AllowRecursionFrom: d.AllowRecursionFrom, ARecordLimit: d.ARecordLimit, EnableTruncate: d.EnableTruncate,
		DisableCompression: d.DisableCompression, NodeMetaTXT: d.NodeMetaTXT, SOARefresh: uint32(d.SOARefresh),
		SOARetry: uint32(d.SOARetry), SOAExpire: uint32(d.SOAExpire), SOAMinTTL: uint32(d.SOAMinTTL), Recursors: d.Recursors,
		RandomRecursor: d.RecursorStrategy == "random", RecursorTimeout: d.RecursorTimeout, TranslateWAN: s.TranslateWANAddrs,
		UseCache: d.UseCache, CacheMaxAge: d.CacheMaxAge,
	}
}
