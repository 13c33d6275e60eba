package server_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
	"github.com/sarnmesh/sarn/server/consensus"
)

// A node is one server's machine: its place in the network, its disk, and its process while that runs.
type node struct {
	t        *testing.T
	name     string
	id       string
	host     *testkit.Host
	disk     *testkit.Disk
	conf     server.Config      // what is the same each time it starts
	recovery []consensus.Server // who the members are when it starts next; nil for who they were

	*server.Server // nil while it is down
	cancel         context.CancelFunc
	done           chan error
}

// A cluster is a number of servers on one network.
type cluster struct {
	t      *testing.T
	net    *testkit.Network
	subnet string // first three numbers of addresses
	nodes  []*node
}

func logger(name string) hclog.Logger {
	level := hclog.Off
	if l := os.Getenv("SARN_TEST_LOG"); l != "" {
		level = hclog.LevelFromString(l)
	}
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: level, Output: os.Stdout})
}

// newCluster starts n servers that expect each other, and waits for a leader.
func newCluster(t *testing.T, seed uint64, n int, conf server.Config) *cluster {
	t.Helper()
	network := testkit.NewNetwork(seed)
	network.SetAll(testkit.Link{Delay: time.Millisecond, Jitter: time.Millisecond})
	return newClusterIn(t, network, "10.0.0", n, conf)
}

// newClusterIn is newCluster in a part of a network.
func newClusterIn(t *testing.T, network *testkit.Network, subnet string, n int, conf server.Config) *cluster {
	t.Helper()
	c := &cluster{t: t, net: network, subnet: subnet}
	conf.BootstrapExpect = n
	for range n {
		c.add(conf)
	}
	for _, o := range c.nodes {
		o.start()
		o.join(c.nodes[0])
	}
	c.leader()
	return c
}

// add makes a machine for one more server.
func (c *cluster) add(conf server.Config) *node {
	i := len(c.nodes) + 1
	if conf.RaftMultiplier == 0 {
		conf.RaftMultiplier = 1
	}
	o := &node{
		t: c.t, name: fmt.Sprintf("s%d", i), id: fmt.Sprintf("%08d-0000-4000-8000-000000000000", i),
		host: c.net.Host(fmt.Sprintf("%s.%d", c.subnet, i)), disk: testkit.NewDisk(), conf: conf,
	}
	o.disk.SetSyncTime(200 * time.Microsecond)
	c.nodes = append(c.nodes, o)
	return o
}

// start runs the server on its machine.
func (o *node) start() {
	o.t.Helper()
	must := func(err error) {
		o.t.Helper()
		if err != nil {
			o.t.Fatal(err)
		}
	}
	port, err := o.host.Listen(8300)
	must(err)
	lan, err := o.host.Listen(8301)
	must(err)
	packets, err := o.host.ListenPacket(8301)
	must(err)
	conf := o.conf
	conf.NodeName, conf.NodeID, conf.Build = o.name, o.id, "1.0.0"
	conf.Listener, conf.Dial = port, o.host.Dial
	conf.Gossip.Listener, conf.Gossip.Packets, conf.Gossip.Dial = lan, packets, o.host.Dial
	if conf.WAN != nil {
		wan := *conf.WAN
		wan.Listener, err = o.host.Listen(8302)
		must(err)
		wan.Packets, err = o.host.ListenPacket(8302)
		must(err)
		wan.Dial, conf.WAN, conf.WANPort = o.host.Dial, &wan, 8302
	}
	handle := o.disk.Open()
	conf.Storage = func() (*consensus.Storage, error) {
		return &consensus.Storage{
			Logs: handle, Stable: handle, Snapshots: handle, InMemory: true,
			Recovery:  func() ([]consensus.Server, error) { return o.recovery, nil },
			Recovered: func() error { o.recovery = nil; return nil },
		}, nil
	}
	conf.Logger = logger(o.name)
	s, err := server.New(conf)
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	o.Server, o.cancel, o.done = s, cancel, done
	o.t.Cleanup(o.stop)
	<-s.Gossip().Ready()
}

// stop ends the process in an orderly way, without leaving.
func (o *node) stop() {
	if o.Server == nil {
		return
	}
	o.cancel()
	if err := <-o.done; err != nil {
		o.t.Errorf("%s: run: %v", o.name, err)
	}
	o.Server = nil
}

// crash ends the process at once: connections break, writes to the disk that are under way are lost. When it returns, the
// other ends have seen their connections break: what is sent afterwards goes into none that is dying.
func (o *node) crash() {
	o.disk.Crash()
	o.host.Crash()
	o.cancel()
	<-o.done // whatever it says
	o.Server = nil
	synctest.Wait()
}

func (o *node) join(other *node) {
	o.t.Helper()
	if o == other {
		return
	}
	if _, err := o.Gossip().Join([]string{other.host.Addr().String() + ":8301"}); err != nil {
		o.t.Fatal(err)
	}
}

// within waits until what holds, by the virtual clock.
func (c *cluster) within(d time.Duration, what string, holds func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(d); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("after %v: not %s", d, what)
		}
	}
}

// leader waits for a leader that every running server agrees on and returns it.
func (c *cluster) leader() *node {
	c.t.Helper()
	var found *node
	c.within(30*time.Second, "one leader", func() bool {
		found = nil
		for _, o := range c.nodes {
			if o.Server == nil {
				continue
			}
			if s, _ := o.Leadership(); s.Leading {
				if found != nil {
					return false
				}
				found = o
			}
		}
		if found == nil {
			return false
		}
		for _, o := range c.nodes {
			if o.Server != nil {
				if s, _ := o.Leadership(); s.LeaderID != found.id {
					return false
				}
			}
		}
		return true
	})
	return found
}

// follower returns a running server that does not lead.
func (c *cluster) follower() *node {
	c.t.Helper()
	lead := c.leader()
	for _, o := range c.nodes {
		if o.Server != nil && o != lead {
			return o
		}
	}
	c.t.Fatal("no follower")
	return nil
}

func (o *node) put(ctx context.Context, key, value string) error {
	reply, err := kv.ApplyCall.Call(ctx, o.Caller(), &kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: key, Value: []byte(value)}})
	if err == nil && !reply.OK {
		return fmt.Errorf("put %s: refused", key)
	}
	return err
}

func (o *node) get(ctx context.Context, key string, mode read.Mode) (string, error) {
	reply, err := kv.GetCall.Call(ctx, o.Caller(), &kv.GetRequest{Options: read.Options{Mode: mode}, Key: key})
	if err != nil || reply.Entry == nil {
		return "", err
	}
	return string(reply.Entry.Value), nil
}

// voters returns how many voters a server sees.
func (o *node) members() (voters, all int) {
	s, _, err := membersOf(o)
	if err != nil {
		return 0, 0
	}
	for _, m := range s {
		all++
		if m.Voter {
			voters++
		}
	}
	return voters, all
}

func poolOf(p *x509.CertPool) func() *x509.CertPool { return func() *x509.CertPool { return p } }

func dialer(h *testkit.Host, sec *rpcwire.Security) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := h.Dial(ctx, address)
		if err != nil {
			return nil, err
		}
		return sec.Secure(ctx, conn, rpcwire.ProtoRPC, "dc1")
	}
}
