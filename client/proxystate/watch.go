package proxystate

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/client/leaf"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/connect/mesh"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// watches are those of one proxy, by what they are about. Only the proxy's goroutine uses them.
type watches struct {
	p       *proxy
	token   string
	cancels map[mesh.Need]func()
	leaves  sync.WaitGroup
}

// restart ends all watches and voids their answers. Those that reconcile then begins use the token.
func (w *watches) restart(token string) {
	for n, cancel := range w.cancels {
		cancel()
		delete(w.cancels, n)
	}
	w.token = token
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	w.p.period++
	clear(w.p.answers)
	clear(w.p.known)
}

// end ends all watches and waits for them.
func (w *watches) end() {
	w.restart("")
	w.leaves.Wait()
}

// reconcile makes the watches those that are wanted.
func (w *watches) reconcile(ctx context.Context, wanted []mesh.Need) {
	want := make(map[mesh.Need]bool, len(wanted))
	for _, n := range wanted {
		want[n] = true
	}
	for n, cancel := range w.cancels {
		if !want[n] {
			cancel()
			delete(w.cancels, n)
			w.p.forget(n)
		}
	}
	for _, n := range wanted {
		if w.cancels[n] == nil {
			w.cancels[n] = w.begin(ctx, n)
		}
	}
}

// begin watches one thing.
func (w *watches) begin(ctx context.Context, n mesh.Need) (cancel func()) {
	options := read.Options{Target: read.Target{Datacenter: n.Datacenter, Token: w.token}}
	switch n.Kind {
	case mesh.NeedRoots:
		return follow(w, n, ca.RootsCall, &ca.RootsRequest{})
	case mesh.NeedLeaf:
		return w.leaf(ctx, n)
	case mesh.NeedMesh:
		return follow(w, n, entry.GetCall, &entry.GetRequest{Options: options, Kind: entry.KindMesh, Name: entry.MeshName})
	case mesh.NeedIntentions:
		return follow(w, n, intention.MatchCall, &intention.MatchRequest{
			Options: options, By: intention.ByDestination, Names: []string{n.Service},
		})
	case mesh.NeedChain:
		options.Datacenter = "" // evaluated here, for there
		return follow(w, n, chain.GetCall, &chain.GetRequest{
			Options: options, Service: n.Service, EvaluateDatacenter: n.Datacenter, Overrides: n.Overrides,
		})
	case mesh.NeedInstances:
		options.Filter = n.Filter
		return follow(w, n, catalog.InstancesCall, &catalog.InstancesRequest{
			Options: options, Service: n.Service, Peer: n.Peer, Connect: true,
		})
	case mesh.NeedEntry:
		return follow(w, n, entry.GetCall, &entry.GetRequest{Options: options, Kind: n.Entry, Name: n.Service})
	case mesh.NeedEntries:
		return follow(w, n, entry.ListCall, &entry.ListRequest{Options: options, Kind: n.Entry})
	case mesh.NeedLinks:
		return follow(w, n, entry.GatewayServicesCall, &entry.GatewayServicesRequest{Options: options, Gateway: n.Service})
	case mesh.NeedPlain:
		options.Filter = n.Filter
		return follow(w, n, catalog.InstancesCall, &catalog.InstancesRequest{Options: options, Service: n.Service})
	case mesh.NeedServices:
		return follow(w, n, catalog.ServicesCall, &catalog.ServicesRequest{Options: options})
	case mesh.NeedDatacenters:
		return w.datacenters(ctx, n)
	case mesh.NeedGateways:
		return follow(w, n, catalog.InstancesCall, &catalog.InstancesRequest{Options: options, Kind: catalog.KindMeshGateway})
	case mesh.NeedImports:
		return follow(w, n, peering.ImportsCall, &peering.ImportsRequest{Options: options})
	case mesh.NeedPeer:
		return w.bundle(n, &peering.BundleRequest{Options: options, Peer: n.Peer})
	case mesh.NeedBundles:
		return follow(w, n, peering.BundlesCall, &peering.BundlesRequest{Options: options, Service: n.Service})
	case mesh.NeedExports:
		return follow(w, n, peering.ExportsCall, &peering.ExportsRequest{Options: options})
	case mesh.NeedCallable:
		return follow(w, n, intention.CallableCall, &intention.CallableRequest{Options: options, Source: n.Service})
	case mesh.NeedQuery:
		return w.query(ctx, n)
	}
	w.p.fail(w.period(), n, errUnknownNeed)
	return func() {}
}

var errUnknownNeed = errors.New("the servers have no answer to this")

// queryInterval is how often prepared queries are executed.
const queryInterval = 30 * time.Second

// query executes a prepared query now and then: nothing tells when its answer changes.
func (w *watches) query(ctx context.Context, n mesh.Need) (cancel func()) {
	own := w.p.s.cfg
	return askEvery(ctx, w, n, queryInterval, query.ExecuteCall, &query.ExecuteRequest{
		Options: read.Options{Target: read.Target{Datacenter: n.Datacenter, Token: w.token}}, Query: n.Service, Connect: true,
		Origin: query.Origin{Node: own.Node, Datacenter: own.Datacenter},
	}, func(a, b *query.ExecuteReply) bool { return reflect.DeepEqual(a.Instances, b.Instances) })
}

// datacentersInterval is how often datacenters are asked for.
const datacentersInterval = time.Minute

// datacenters asks for the datacenters now and then: nothing tells when there is another.
func (w *watches) datacenters(ctx context.Context, n mesh.Need) (cancel func()) {
	return askEvery(ctx, w, n, datacentersInterval, catalog.DatacentersCall,
		&catalog.DatacentersRequest{Target: read.Target{Token: w.token}},
		func(a, b *catalog.DatacentersReply) bool { return slices.Equal(a.Datacenters, b.Datacenters) })
}

// askEvery makes a call now and then, and passes on answers that are not the same as the one before.
func askEvery[Req, Resp any](ctx context.Context, w *watches, n mesh.Need, interval time.Duration, call rpc.Method[Req, Resp], req *Req, same func(a, b *Resp) bool) (cancel func()) {
	p, period := w.p, w.period()
	ctx, cancel = context.WithCancel(ctx)
	w.leaves.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		var last *Resp
		for {
			r, _, err := cache.Keep(ctx, p.s.cfg.Cache, call, req, cache.Control{MaxAge: interval / 2})
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				p.fail(period, n, err)
			case last == nil || !same(last, r):
				last = r
				p.answer(period, n, r)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return cancel
}

// follow watches the answer of a call.
func follow[Req, Resp any](w *watches, n mesh.Need, m rpc.Method[Req, Resp], req *Req) (cancel func()) {
	p, period := w.p, w.period()
	return cache.Watch(p.s.cfg.Cache, m, req, func(r *Resp, err error) {
		if err != nil {
			p.fail(period, n, err)
			return
		}
		p.answer(period, n, r)
	})
}

// bundle watches whom to trust for a peer.
func (w *watches) bundle(n mesh.Need, req *peering.BundleRequest) (cancel func()) {
	p, period := w.p, w.period()
	return cache.Watch(p.s.cfg.Cache, peering.BundleCall, req, func(r *peering.BundleReply, err error) {
		if err != nil {
			p.fail(period, n, err)
			return
		}
		p.answer(period, n, r.Bundle)
	})
}

func (w *watches) period() int {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	return w.p.period
}

// Pauses after failures to get a certificate.
const (
	minLeafRetry = time.Second
	maxLeafRetry = time.Minute
)

// leaf watches a certificate.
func (w *watches) leaf(ctx context.Context, n mesh.Need) (cancel func()) {
	p, period, token := w.p, w.period(), w.token
	ctx, cancel = context.WithCancel(ctx)
	w.leaves.Go(func() {
		request := leaf.Request{Service: n.Service, MeshGateway: n.Service == "", Hosts: strings.Fields(n.Hosts), Token: token}
		retry := minLeafRetry
		for {
			r, err := p.s.cfg.Leaves.Get(ctx, request)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				p.fail(period, n, err)
				t := time.NewTimer(retry)
				select {
				case <-t.C:
				case <-ctx.Done():
					t.Stop()
					return
				}
				retry = min(2*retry, maxLeafRetry)
				request.MinIndex = 0
				continue
			}
			retry = minLeafRetry
			if r.Index != request.MinIndex {
				p.answer(period, n, r.Leaf)
			}
			request.MinIndex = r.Index
		}
	})
	return cancel
}
