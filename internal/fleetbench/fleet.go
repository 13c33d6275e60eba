package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/client/local"
	"github.com/sarnmesh/sarn/client/router"
	"github.com/sarnmesh/sarn/client/subscription"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// An agent is one of the fleet: the parts of a real one that talk to the servers.
type agent struct {
	name   string
	router *router.Router
	local  *local.State
	cache  *cache.Cache
	feeds  *subscription.Client // nil when -streams=false
	checks []string             // IDs of those that change
	uses   []string             // the services that its proxy uses; one program asks for the first by itself
}

// A fleet is many agents.
type fleet struct {
	o        options
	agents   []*agent
	services int

	// ownOnly leaves out what only proxies watch: certificates, rules and routes.
	ownOnly bool

	run    sync.WaitGroup
	cancel context.CancelFunc
	ctx    context.Context

	probe    atomic.Pointer[probe]
	answered atomic.Int64 // watches that have their first answer
	answers  atomic.Int64 // of all watches
	failures atomic.Int64
	writes   [4]atomic.Int64 // of checks, coordinates, sessions made and renewed
	sending  atomic.Bool     // coordinates are sent

	mu     sync.Mutex
	errors map[string]int
}

// What is counted of writes.
const (
	checkWrites = iota
	coordinateWrites
	sessionsMade
	sessionsRenewed
)

// shared is the service that every agent uses.
const shared = "shared"

func serviceName(n int) string { return fmt.Sprint("service-", n) }

// definitions is what the nth agent registers: two services and the proxy of one of them, a check for each and one for
// the node. The node and all checks are healthy from the start.
func definitions(n, services int) (list []*definition.Service, checks []*definition.Check) {
	up := func(id string) definition.Check {
		return definition.Check{ID: id, Name: id, TTL: time.Hour, Status: catalog.Passing}
	}
	first, second := serviceName(n%services), serviceName((n*7+1)%services)
	return []*definition.Service{
			{ID: "one", Name: first, Port: 8000, Tags: []string{"v1"}, Checks: []definition.Check{up("one")}},
			{ID: "two", Name: second, Port: 8001, Tags: []string{"v1"}, Checks: []definition.Check{up("two")}},
			{
				ID: "proxy", Kind: catalog.KindConnectProxy, Name: first + "-proxy", Port: 21000, Checks: []definition.Check{up("proxy")},
				Proxy: &catalog.Proxy{DestinationServiceName: first, DestinationServiceID: "one", LocalServiceAddress: "127.0.0.1", LocalServicePort: 8000},
			},
		}, []*definition.Check{
			{ID: "disk", Name: "disk", TTL: time.Hour, Status: catalog.Passing},
		}
}

// used are the services that the proxy of the nth agent uses.
func usedBy(n, services int) []string {
	r := rand.New(rand.NewPCG(7, uint64(n)))
	return []string{serviceName(r.IntN(services)), serviceName(r.IntN(services)), shared}
}

// nodeID gives the nth node an ID.
func nodeID(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012x", n) }

func serviceCount(agents int) int { return max(agents/10, 10) }

// newFleet makes agents that do nothing yet.
func newFleet(ctx context.Context, o options, n int, c *cluster) (*fleet, error) {
	f := &fleet{o: o, services: serviceCount(n), errors: map[string]int{}}
	f.ctx, f.cancel = context.WithCancel(ctx)
	var members []gossip.Member
	for _, p := range c.servers {
		members = append(members, gossip.Member{Name: p.name, Addr: p.rpc.Addr(), Status: gossip.Alive, Tags: map[string]string{
			"role": gossip.RoleServer, "dc": "dc1", "id": p.name, "port": fmt.Sprint(p.rpc.Port()),
		}})
	}
	log := hclog.New(&hclog.LoggerOptions{Level: hclog.Warn, Output: f})
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", address)
	}
	for i := range n {
		a := &agent{name: fmt.Sprintf("agent-%05d", i), checks: []string{"one", "two", "proxy", "disk"}, uses: usedBy(i, f.services)}
		a.router = router.New(router.Config{Datacenter: "dc1", Dial: dial})
		a.router.Observe(gossip.Event{Kind: gossip.Joined, Members: members})
		var streams cache.Streams
		if o.streams {
			a.feeds = subscription.New(a.router, subscription.Config{Datacenter: "dc1"})
			streams = a.feeds
		}
		a.cache = cache.New(a.router, cache.Config{Streams: streams})
		var err error
		a.local, err = local.New(local.Config{
			Node: catalog.Node{
				ID: nodeID(i), Node: a.name, Address: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), Datacenter: "dc1",
				Meta: map[string]string{"consul-network-segment": "", "consul-version": "1.21.0", "rack": fmt.Sprint(i % 50)},
			},
			Caller: a.router, ClusterSize: func() int { return n }, Logger: log,
		})
		if err != nil {
			return nil, err
		}
		f.agents = append(f.agents, a)
	}
	return f, nil
}

// Write takes a line of the log: what an agent warns of is a failure.
func (f *fleet) Write(line []byte) (int, error) {
	_, text, _ := strings.Cut(string(line), "[WARN]")
	text, facts, _ := strings.Cut(strings.TrimSpace(text), ": ")
	if _, reason, ok := strings.Cut(facts, "error="); ok {
		text += ": " + strings.TrimSpace(reason)
	}
	f.failed(errors.New(text))
	return len(line), nil
}

// failed counts an error.
func (f *fleet) failed(err error) {
	if f.ctx.Err() != nil {
		return
	}
	f.failures.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if text := err.Error(); len(f.errors) < 100 || f.errors[text] > 0 {
		f.errors[text]++
	}
}

// register starts all agents.
func (f *fleet) register() error {
	for i, a := range f.agents {
		f.run.Go(func() { a.router.Run(f.ctx) })
		f.run.Go(func() { a.local.Run(f.ctx) })
		f.run.Go(func() { a.cache.Run(f.ctx) })
		if a.feeds != nil {
			f.run.Go(func() { a.feeds.Run(f.ctx) })
		}
		services, checks := definitions(i, f.services)
		if err := a.local.Load(f.ctx, services, checks); err != nil {
			return err
		}
	}
	return nil
}

// settle waits until nothing happens at the agents.
func (f *fleet) settle(ctx context.Context) error {
	for quiet, last := 0, int64(-1); quiet < 10; quiet++ {
		if now := f.answers.Load(); now != last {
			quiet, last = 0, now
		}
		if !pause.For(ctx, 200*time.Millisecond) {
			return ctx.Err()
		}
	}
	return nil
}

// stop ends all agents.
func (f *fleet) stop() {
	f.cancel()
	f.run.Wait()
}

// A probe is a change that is made, and who has heard of it.
type probe struct {
	service string
	port    int
	began   time.Time
	heard   chan time.Duration
}

// sight returns what is to be called with the answers about a service that one watcher gets.
func (f *fleet) sight(service string) func(*catalog.InstancesReply) {
	var last *probe
	return func(reply *catalog.InstancesReply) {
		p := f.probe.Load()
		if p == nil || p == last || p.service != service {
			return
		}
		for _, i := range reply.Instances {
			if i.Node.Node == canary && i.Service.Port == p.port {
				last = p
				p.heard <- time.Since(p.began)
				return
			}
		}
	}
}

// canary is the node whose instances change.
const canary = "canary"

// watchers is how many of the fleet watch a service.
func (f *fleet) watchers(service string) (n int) {
	for _, a := range f.agents {
		for _, s := range a.uses {
			if s == service {
				n++
			}
		}
		if a.uses[0] == service {
			n++
		}
	}
	return n
}

// watch keeps what a proxy needs, as the agent of one does, and has a program ask for one service by itself: those are
// asked of the leader, the others of any server. It returns how many watches there are.
func (f *fleet) watch() (n int) {
	options := read.Options{Target: read.Target{Datacenter: "dc1"}}
	began := time.Now()
	for i, a := range f.agents {
		pause.For(f.ctx, time.Until(began.Add(time.Duration(i)*time.Second/time.Duration(f.o.ramp))))
		if !f.ownOnly {
			follow(f, a, ca.RootsCall, &ca.RootsRequest{}, nil)
			follow(f, a, entry.GetCall, &entry.GetRequest{Options: options, Kind: entry.KindMesh, Name: entry.MeshName}, nil)
			follow(f, a, intention.MatchCall, &intention.MatchRequest{
				Options: options, By: intention.ByDestination, Names: []string{serviceName(i % f.services)},
			}, nil)
			for _, s := range a.uses {
				follow(f, a, chain.GetCall, &chain.GetRequest{Options: options, Service: s}, nil)
			}
			n += 3 + len(a.uses)
		}
		// One and the same twice is one view with two watchers.
		for _, s := range a.uses {
			follow(f, a, catalog.InstancesCall, &catalog.InstancesRequest{Options: options, Service: s, Connect: true},
				f.sight(s))
			n++
		}
		f.run.Go(func() { f.ask(a, a.uses[0]) })
		n++
	}
	return n
}

// follow keeps one answer.
func follow[Req, Resp any](f *fleet, a *agent, m rpc.Method[Req, Resp], req *Req, then func(*Resp)) {
	first := true
	cache.Watch(a.cache, m, req, func(r *Resp, err error) {
		if r == nil {
			if err != nil && !errors.Is(err, cache.ErrStopped) {
				f.failed(fmt.Errorf("watch of %s: %w", m.Name, err))
			}
			return
		}
		if first {
			first = false
			f.answered.Add(1)
		}
		f.answers.Add(1)
		if then != nil {
			then(r)
		}
	})
}

// ask asks for a service again and again, as a program does that uses the HTTP API.
func (f *fleet) ask(a *agent, service string) {
	req := catalog.InstancesRequest{Options: read.Options{Target: read.Target{Datacenter: "dc1"}}, Service: service, Connect: true}
	first, sight := true, f.sight(service)
	for f.ctx.Err() == nil {
		own := req
		var reply *catalog.InstancesReply
		var err error
		if own.MinIndex > 0 && cache.Streamed(a.cache, catalog.InstancesCall, &own) { // as the HTTP API does
			reply, _, err = cache.Get(f.ctx, a.cache, catalog.InstancesCall, &own)
		} else {
			reply, err = catalog.InstancesCall.Call(f.ctx, a.router, &own)
		}
		switch {
		case err != nil:
			f.failed(fmt.Errorf("query of a program: %w", err))
			req.MinIndex = 0
			pause.For(f.ctx, time.Second)
			continue
		case first:
			first = false
			f.answered.Add(1)
		}
		f.answers.Add(1)
		sight(reply)
		if reply.Index < req.MinIndex {
			reply.Index = 0
		}
		req.MinIndex = reply.Index
	}
}

// each calls do for agents one after the other in turn, so that each has its turn once in period.
func (f *fleet) each(period time.Duration, step int, do func(a *agent)) {
	count := (len(f.agents) + step - 1) / step
	at := time.Now()
	for i := 0; ; i++ {
		at = at.Add(period / time.Duration(count))
		if !pause.For(f.ctx, time.Until(at)) {
			return
		}
		a := f.agents[i*step%len(f.agents)]
		f.run.Go(func() { do(a) })
	}
}

// sessionEvery is how many agents have one program with a session between them.
const sessionEvery = 10

// sessions makes sessions and renews them as clients do, after half their time.
func (f *fleet) sessions() {
	const ttl = 30 * time.Second
	var ids sync.Map
	f.run.Go(func() {
		f.each(ttl/2, sessionEvery, func(a *agent) {
			target := read.Target{Datacenter: "dc1"}
			if id, ok := ids.Load(a.name); ok {
				f.writes[sessionsRenewed].Add(1)
				reply, err := kv.SessionRenewCall.Call(f.ctx, a.router, &kv.SessionRenewRequest{Target: target, ID: id.(string)})
				if err == nil && len(reply.Sessions) == 0 {
					err = errors.New("it has expired")
				}
				if err != nil {
					f.failed(fmt.Errorf("renew a session: %w", err))
				}
				return
			}
			f.writes[sessionsMade].Add(1)
			reply, err := kv.SessionCreateCall.Call(f.ctx, a.router, &kv.SessionCreateRequest{Target: target, Session: kv.Session{
				Node: a.name, TTL: ttl.String(), LockDelay: time.Second, Behavior: kv.Release, NodeChecks: []string{},
			}})
			if err != nil {
				f.failed(fmt.Errorf("make a session: %w", err))
				return
			}
			ids.Store(a.name, reply.ID)
		})
	})
}

// coordinates sends where agents are, each as often as agents of so large a fleet do, while sending is set.
func (f *fleet) coordinates() {
	period := max(15*time.Second, time.Duration(len(f.agents))*time.Second/64)
	f.run.Go(func() {
		f.each(period, 1, func(a *agent) {
			if !f.sending.Load() {
				return
			}
			f.writes[coordinateWrites].Add(1)
			at := &catalog.Coordinate{Vec: make([]float64, 8), Error: 0.5, Height: 1e-4}
			for i := range at.Vec {
				at.Vec[i] = rand.Float64() / 1000
			}
			_, err := catalog.UpdateCoordinateCall.Call(f.ctx, a.router, &catalog.CoordinateUpdate{
				Updates: []*catalog.NodeCoordinate{{Node: a.name, Coord: at}},
			})
			if err != nil {
				f.failed(fmt.Errorf("send a coordinate: %w", err))
			}
		})
	})
}

// change changes the status of one check of each agent once in o.flip, until ctx ends.
func (f *fleet) change(ctx context.Context) {
	critical := map[string]bool{}
	at := time.Now()
	for i := 0; ; i++ {
		at = at.Add(f.o.flip / time.Duration(len(f.agents)))
		if !pause.For(ctx, time.Until(at)) {
			return
		}
		a := f.agents[i*7919%len(f.agents)]
		id := a.checks[i%len(a.checks)]
		key := a.name + id
		status := catalog.Critical
		if critical[key] {
			status = catalog.Passing
		}
		critical[key] = !critical[key]
		f.writes[checkWrites].Add(1)
		if err := a.local.UpdateTTL(ctx, id, status, ""); err != nil {
			f.failed(err)
		}
	}
}

// compare has all agents compare what they have with the catalog soon, as they do when a server joins.
func (f *fleet) compare() {
	for _, a := range f.agents {
		a.local.SyncSoon()
	}
}
