// Package federation knows the servers of other datacenters, by the WAN gossip pool that only servers are in, and makes
// calls to them. Datacenters share nothing else: each has its own log, and goes on when others are lost.
package federation

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A Config describes this server's place. A zero field takes its default.
type Config struct {
	Datacenter string
	Pool       *gossip.Pool // of the WAN
	// Dial opens a connection for RPC to a server of a datacenter.
	Dial func(ctx context.Context, address, datacenter string) (net.Conn, error)
	// LAN returns the servers of this datacenter.
	LAN    func() []gossip.Server
	Logger hclog.Logger // default discards
}

// A Federation follows the WAN pool. Feed it the pool's events with Observe.
type Federation struct {
	cfg    Config
	log    hclog.Logger
	client *rpcwire.Client

	mu      sync.Mutex
	servers map[string]gossip.Server // by name in the pool; those that left are not among them
}

// New returns a federation that knows nobody.
func New(cfg Config) *Federation {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	f := &Federation{cfg: cfg, log: cfg.Logger.Named("federation"), servers: map[string]gossip.Server{}}
	f.client = rpcwire.NewClient(func(ctx context.Context, address string) (net.Conn, error) {
		return cfg.Dial(ctx, address, f.datacenterOf(address))
	})
	return f
}

// Name returns the name of a node in the WAN pool.
func Name(node, datacenter string) string { return node + "." + datacenter }

// Refuse keeps everybody but servers out of the WAN pool.
func Refuse(m gossip.Member) error {
	s, ok := gossip.ParseServer(m)
	if !ok || !strings.HasSuffix(m.Name, "."+s.Datacenter) {
		return errors.New("Member '" + m.Name + "' is not a server")
	}
	return nil
}

// Observe learns of members.
func (f *Federation) Observe(e gossip.Event) {
	if e.Kind == gossip.Fired {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range e.Members {
		s, ok := gossip.ParseServer(m)
		switch {
		case e.Kind == gossip.Departed || e.Kind == gossip.Reaped:
			delete(f.servers, m.Name)
		case ok:
			f.servers[m.Name] = s
		}
	}
}

// datacenterOf returns whose server has an address.
func (f *Federation) datacenterOf(address string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.servers {
		if s.Addr.String() == address {
			return s.Datacenter
		}
	}
	return ""
}

// Servers returns the servers of a datacenter, those that answer first, in random order otherwise.
func (f *Federation) Servers(datacenter string) []gossip.Server {
	f.mu.Lock()
	var found []gossip.Server
	for _, s := range f.servers {
		if s.Datacenter == datacenter {
			found = append(found, s)
		}
	}
	f.mu.Unlock()
	rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	slices.SortStableFunc(found, func(a, b gossip.Server) int { return rank(a.Status) - rank(b.Status) })
	return found
}

func rank(s gossip.Status) int {
	if s == gossip.Alive {
		return 0
	}
	return 1
}

// Datacenters returns the datacenters known, this one first, then by distance, then by name.
func (f *Federation) Datacenters() []string {
	f.mu.Lock()
	byName := map[string][]gossip.Server{f.cfg.Datacenter: nil}
	for _, s := range f.servers {
		byName[s.Datacenter] = append(byName[s.Datacenter], s)
	}
	f.mu.Unlock()
	here := f.cfg.Pool.Coordinate()
	distance := map[string]float64{}
	for dc, servers := range byName {
		distance[dc] = f.median(here, servers)
	}
	distance[f.cfg.Datacenter] = -1
	names := slices.Sorted(maps.Keys(byName))
	slices.SortStableFunc(names, func(a, b string) int {
		switch {
		case distance[a] < distance[b]:
			return -1
		case distance[a] > distance[b]:
			return 1
		}
		return 0
	})
	return names
}

// unplaced is the distance of a datacenter of which nothing is known: farther than any other.
const unplaced = 1e9

// median returns the median round-trip time to servers, in seconds.
func (f *Federation) median(here *gossip.Coordinate, servers []gossip.Server) float64 {
	var all []float64
	for _, s := range servers {
		if c := f.cfg.Pool.CoordinateOf(s.Name); c != nil && here != nil && len(c.Vec) == len(here.Vec) {
			all = append(all, coordinate(here).Distance(coordinate(c)))
		}
	}
	if len(all) == 0 {
		return unplaced
	}
	slices.Sort(all)
	return all[len(all)/2]
}

func coordinate(c *gossip.Coordinate) *catalog.Coordinate {
	return &catalog.Coordinate{Vec: c.Vec, Error: c.Error, Adjustment: c.Adjustment, Height: c.Height}
}

// Coordinates returns where the servers of each datacenter are, in the order of Datacenters.
func (f *Federation) Coordinates() []catalog.DatacenterCoordinates {
	list := []catalog.DatacenterCoordinates{}
	for _, dc := range f.Datacenters() {
		one := catalog.DatacenterCoordinates{Datacenter: dc, AreaID: "wan"}
		for _, s := range f.Servers(dc) {
			at := f.cfg.Pool.CoordinateOf(s.Name)
			if at == nil {
				at = &gossip.Coordinate{Vec: make([]float64, 8), Error: 1.5, Height: 1e-5}
			}
			one.Coordinates = append(one.Coordinates, catalog.NodeCoordinate{Node: strings.TrimSuffix(s.Name, "."+dc), Coord: coordinate(at)})
		}
		slices.SortFunc(one.Coordinates, func(a, b catalog.NodeCoordinate) int { return strings.Compare(a.Node, b.Node) })
		list = append(list, one)
	}
	return list
}

// try calls f with the address of one server of the datacenter after another, until one could be reached. What may have
// been done is not tried again.
func (f *Federation) try(ctx context.Context, datacenter string, call func(address string) error) error {
	servers := f.Servers(datacenter)
	if len(servers) == 0 {
		return wireerr.ErrNoDatacenter
	}
	var err error
	for _, s := range servers {
		if err = call(s.Addr.String()); err == nil || ctx.Err() != nil {
			return err
		}
		if _, unreachable := errors.AsType[*rpcwire.DialError](err); !unreachable {
			return err
		}
		f.log.Warn("cannot reach a server of another datacenter", "server", s.Name, "error", err)
	}
	return err
}

// Call makes a call to a server of a datacenter, which answers or has it answered there.
func (f *Federation) Call(ctx context.Context, datacenter, method string, req, resp any) error {
	return f.try(ctx, datacenter, func(address string) error { return f.client.Call(ctx, address, method, req, resp) })
}

// Stream is Call for calls with a stream of bytes on either side.
func (f *Federation) Stream(ctx context.Context, datacenter, method string, req any, in io.Reader, resp any) (body io.ReadCloser, err error) {
	err = f.try(ctx, datacenter, func(address string) (err error) {
		body, err = f.client.Stream(ctx, address, method, req, in, resp)
		return err
	})
	return body, err
}

// Caller returns what makes calls to a datacenter. The requests must name it.
func (f *Federation) Caller(datacenter string) rpc.Caller { return caller{f, datacenter} }

type caller struct {
	f          *Federation
	datacenter string
}

func (c caller) Call(ctx context.Context, d rpc.Descriptor, req, resp any) error {
	return c.f.Call(ctx, c.datacenter, d.Name, req, resp)
}

// floodEvery is how often the servers of this datacenter are looked for that are not in the WAN pool.
const floodEvery = 10 * time.Second

// Run brings the servers of this datacenter into the WAN pool until ctx ends: whoever of them joins another datacenter
// joins all.
func (f *Federation) Run(ctx context.Context) error {
	defer f.client.Close()
	select {
	case <-f.cfg.Pool.Ready():
	case <-ctx.Done():
		return nil
	}
	tick := time.NewTicker(floodEvery)
	defer tick.Stop()
	for {
		f.flood()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (f *Federation) flood() {
	for _, s := range f.cfg.LAN() {
		name := Name(s.Name, s.Datacenter)
		f.mu.Lock()
		known, ok := f.servers[name]
		f.mu.Unlock()
		if s.WANPort <= 0 || s.Status != gossip.Alive || name == f.cfg.Pool.Name() || ok && known.Status == gossip.Alive {
			continue
		}
		address := netip.AddrPortFrom(s.Addr.Addr(), uint16(s.WANPort)).String()
		if _, err := f.cfg.Pool.Join([]string{address}); err != nil {
			f.log.Debug("cannot bring a server of this datacenter into the WAN pool, will retry", "server", s.Name, "error", err)
		}
	}
}
