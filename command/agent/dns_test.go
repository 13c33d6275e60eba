package agent

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// laggard is a cluster whose server at hand knows nothing yet of what the leader has.
type laggard struct {
	contact time.Duration // of the server at hand with the leader
	leader  atomic.Int64  // how often it was asked
	hold    chan struct{} // when not nil, the leader answers once it is closed
}

func (l *laggard) Call(ctx context.Context, m rpc.Descriptor, req, resp any) error {
	o := req.(interface{ ReadOptions() *read.Options }).ReadOptions()
	stale := o.Mode == read.Stale
	if !stale {
		l.leader.Add(1)
		if l.hold != nil {
			select {
			case <-l.hold:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	meta := resp.(interface{ ReadMeta() *read.Meta }).ReadMeta()
	meta.Index, meta.KnownLeader = 5, true
	if stale {
		meta.LastContact = l.contact
	}
	there := !stale
	switch resp := resp.(type) {
	case *catalog.InstancesReply:
		if there && req.(*catalog.InstancesRequest).Service == "web" {
			resp.Instances = []*catalog.Instance{{Node: &catalog.Node{Node: "n1"}, Service: &catalog.Service{Service: "web"}}}
		}
	case *catalog.NodeServicesReply:
		if there {
			resp.Node = &catalog.Node{Node: "n1"}
		}
	case *catalog.AddressReply:
		if there {
			resp.Service = "web"
		}
	case *entry.VirtualIPReply:
		if there {
			resp.Address = "240.0.0.1"
		}
	case *query.ExecuteReply:
		if !there {
			return wireerr.Remote(404, "Query not found")
		}
		resp.Instances = []*catalog.Instance{{}}
	default:
		return fmt.Errorf("unexpected call %s", m.Name)
	}
	return nil
}

// What was written through a server that does not lead can be asked of it at once, though its own state is behind.
func TestDNSFindsWhatWasJustRegistered(t *testing.T) {
	stale := read.Options{Mode: read.Stale, MaxStale: time.Hour}
	for name, asks := range map[string]func(*dnsSource) (bool, error){
		"instances": func(d *dnsSource) (bool, error) {
			r, standing, err := d.Instances(t.Context(), &catalog.InstancesRequest{Options: stale, Service: "web"})
			return err == nil && len(r.Instances) == 1 && standing == nil, err
		},
		"node": func(d *dnsSource) (bool, error) {
			r, standing, err := d.Node(t.Context(), &catalog.NodeServicesRequest{Options: stale, Node: "n1"})
			return err == nil && r.Node != nil && standing == nil, err
		},
		"address": func(d *dnsSource) (bool, error) {
			r, err := d.Address(t.Context(), &catalog.AddressRequest{Options: stale, Address: "10.1.1.1"})
			return err == nil && r.Service != "", err
		},
		"query": func(d *dnsSource) (bool, error) {
			r, err := d.Query(t.Context(), &query.ExecuteRequest{Options: stale, Query: "my"})
			return err == nil && len(r.Instances) == 1, err
		},
		"virtual": func(d *dnsSource) (bool, error) {
			ip, err := d.Virtual(t.Context(), stale, "web", "")
			return ip.IsValid(), err
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := &laggard{contact: 5 * time.Millisecond}
			if ok, err := asks(&dnsSource{caller: l}); !ok || err != nil || l.leader.Load() != 1 {
				t.Errorf("found %v, %v; the leader was asked %d times", ok, err, l.leader.Load())
			}
		})
	}
}

func TestDNSDoubtsAreNoBurdenForTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stale := read.Options{Mode: read.Stale}
		l := &laggard{contact: 5 * time.Millisecond, hold: make(chan struct{})}
		d := &dnsSource{caller: l}
		var wg sync.WaitGroup
		var found atomic.Int64
		for range 200 { // the same question
			wg.Go(func() {
				if r, _, err := d.Instances(t.Context(), &catalog.InstancesRequest{Options: stale, Service: "web"}); err == nil && len(r.Instances) == 1 {
					found.Add(1)
				}
			})
		}
		synctest.Wait()
		close(l.hold)
		wg.Wait()
		if n := l.leader.Load(); n != 1 || found.Load() != 200 {
			t.Errorf("the leader was asked %d times, want 1; %d of 200 were answered well", n, found.Load())
		}

		l = &laggard{contact: 5 * time.Millisecond}
		d = &dnsSource{caller: l}
		for second := range 2 {
			for i := range 5000 { // made-up names
				if r, _, err := d.Instances(t.Context(), &catalog.InstancesRequest{Options: stale, Service: fmt.Sprint("x", i)}); err != nil || len(r.Instances) > 0 {
					t.Fatal(r, err)
				}
			}
			if n, want := l.leader.Load(), doubtsAtOnce*int64(1+second); n != want {
				t.Errorf("the leader was asked %d times, want %d", n, want)
			}
			time.Sleep(doubtAfter)
		}

		l = &laggard{} // leads itself
		d = &dnsSource{caller: l}
		if _, _, err := d.Instances(t.Context(), &catalog.InstancesRequest{Options: stale, Service: "web"}); err != nil || l.leader.Load() != 0 {
			t.Errorf("%v; the leader asked itself", err)
		}
	})
}

// countingCaller has one service, and tells how it was asked.
type countingCaller struct{ stale, fresh atomic.Int64 }

func (c *countingCaller) Call(ctx context.Context, m rpc.Descriptor, req, resp any) error {
	r := req.(*catalog.InstancesRequest)
	if r.MinIndex > 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	if r.Mode == read.Stale {
		c.stale.Add(1)
	} else {
		c.fresh.Add(1)
	}
	reply := resp.(*catalog.InstancesReply)
	reply.Index, reply.KnownLeader = 7, true
	reply.Instances = []*catalog.Instance{{Node: &catalog.Node{Node: "n1"}, Service: &catalog.Service{Service: r.Service}}}
	return nil
}

// Views serve those who take answers that are not the leader's, and nobody else.
func TestDNSOnClientsKeepsToAllowStale(t *testing.T) {
	caller := &countingCaller{}
	c := cache.New(caller, cache.Config{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	defer func() {
		cancel()
		<-done
	}()
	d := &dnsSource{caller: caller, views: newDNSViews(c)}
	for range 3 {
		_, standing, err := d.Instances(ctx, &catalog.InstancesRequest{Options: read.Options{Mode: read.Stale}, Service: "web", Tags: []string{"a"}})
		if err != nil || standing == nil || !standing.Current() {
			t.Fatal(standing, err)
		}
	}
	if n := caller.stale.Load(); n != 2 { // once to see whether it is there, once for the view
		t.Errorf("asked %d times", n)
	}
	for range 3 {
		_, standing, err := d.Instances(ctx, &catalog.InstancesRequest{Service: "web", Tags: []string{"a"}})
		if err != nil || standing != nil {
			t.Fatal(standing, err)
		}
	}
	if n := caller.fresh.Load(); n != 3 {
		t.Errorf("the leader was asked %d times, want 3", n)
	}
}
