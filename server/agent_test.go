package server_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog/event"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/router"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server"
	"github.com/sarnmesh/sarn/server/statusrpc"
)

// An agent is a client: a member of gossip that asks servers.
type agent struct {
	*router.Router
	pool *gossip.Pool
	host *testkit.Host
}

func (c *cluster) agent(address string, sec *rpcwire.Security, events func(gossip.Event)) *agent {
	c.t.Helper()
	a := &agent{host: c.net.Host(address)}
	a.Router = router.New(router.Config{Datacenter: "dc1", Dial: a.host.Dial, Security: sec})
	l, err := a.host.Listen(8301)
	if err != nil {
		c.t.Fatal(err)
	}
	p, err := a.host.ListenPacket(8301)
	if err != nil {
		c.t.Fatal(err)
	}
	a.pool, err = gossip.New(gossip.Config{
		Name: "agent-" + address, Tags: gossip.ClientTags("dc1", "99999999-0000-4000-8000-"+strings.ReplaceAll(address, ".", "")+"000000", "1.0.0"),
		Listener: l, Packets: p, Dial: a.host.Dial, OnEvent: func(e gossip.Event) {
			a.Observe(e)
			if events != nil {
				events(e)
			}
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- a.pool.Run(ctx) }()
	go func() { done <- a.Run(ctx) }()
	c.t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-done; err != nil {
				c.t.Error(err)
			}
		}
	})
	<-a.pool.Ready()
	return a
}

func (a *agent) join(c *cluster) {
	c.t.Helper()
	if _, err := a.pool.Join([]string{c.nodes[0].host.Addr().String() + ":8301"}); err != nil {
		c.t.Fatal(err)
	}
	c.within(5*time.Second, "servers known", func() bool { return len(a.Servers()) == len(c.nodes) })
}

func TestAgentReachesServers(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 20, 3, server.Config{})
		var log event.Log
		a := c.agent("10.0.5.1", nil, func(e gossip.Event) {
			if e.Kind != gossip.Fired {
				return
			}
			if ev, ok := event.Decode(e.Name, e.Payload, e.LTime); ok && ev.Concerns("agent", nil) {
				log.Add(ev)
			}
		})
		put := func(v string) error {
			_, err := kv.ApplyCall.Call(t.Context(), a, &kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: "a", Value: []byte(v)}})
			return err
		}
		start := time.Now()
		if err := put("0"); !errors.Is(err, wireerr.ErrNoServers) || time.Since(start) > 0 {
			t.Errorf("without servers: %v after %v, want %v at once", err, time.Since(start), wireerr.ErrNoServers)
		}
		a.join(c)
		if err := put("1"); err != nil {
			t.Fatal(err)
		}

		// A blocking read sees the next change, whichever server dies meanwhile.
		first, err := kv.GetCall.Call(t.Context(), a, &kv.GetRequest{Key: "a"})
		if err != nil {
			t.Fatal(err)
		}
		blocked := make(chan string, 1)
		go func() {
			reply, err := kv.GetCall.Call(context.Background(), a, &kv.GetRequest{Options: read.Options{MinIndex: first.Index, MaxWait: time.Minute}, Key: "a"})
			if err != nil {
				blocked <- err.Error()
				return
			}
			blocked <- string(reply.Entry.Value)
		}()
		time.Sleep(time.Second)
		asked := a.Servers()[0].Name
		for _, o := range c.nodes {
			if o.name == asked {
				o.crash()
			}
		}
		// Once the agent has seen its connection end: a write sent into a dying connection may have been performed, so it
		// is not sent again and its caller is told.
		time.Sleep(20 * time.Millisecond) // the network takes up to two, and the connection's goroutine its turn
		if err := put("2"); err != nil {
			t.Errorf("a write after the server it would ask has died: %v", err)
		}
		if got := <-blocked; got != "2" {
			t.Errorf("the blocked read: %s", got)
		}

		// Byte streams and events.
		_, body, err := operator.SaveSnapshotCall.Stream(t.Context(), a, &operator.SnapshotRequest{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		archive, err := io.ReadAll(body)
		body.Close()
		if err != nil || len(archive) == 0 {
			t.Errorf("snapshot of %d bytes, %v", len(archive), err)
		}
		if _, _, err := operator.RestoreSnapshotCall.Stream(t.Context(), a, &operator.StatusRequest{}, strings.NewReader(string(archive))); err != nil {
			t.Errorf("restore: %v", err)
		}
		if _, err := event.FireCall.Call(t.Context(), a, &event.FireRequest{Event: event.Event{ID: "11111111-2222-3333-4444-555555555555", Name: "deploy", Payload: []byte("v2")}}); err != nil {
			t.Fatal(err)
		}
		c.within(2*time.Second, "the event arrived", func() bool {
			events, _ := log.List("deploy")
			return len(events) == 1 && string(events[0].Payload) == "v2"
		})
		_, err = event.FireCall.Call(t.Context(), a, &event.FireRequest{Event: event.Event{ID: "11111111-2222-3333-4444-555555555555", Name: "big", Payload: make([]byte, 600)}})
		if err == nil || !strings.Contains(err.Error(), "error broadcasting event: user event exceeds configured limit of 512 bytes before encoding") {
			t.Errorf("a large event: %v", err)
		}
	})
}

func TestAgentWaitsForALeader(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 21, 3, server.Config{})
		a := c.agent("10.0.5.1", nil, nil)
		a.join(c)
		c.leader().crash()
		_, err := kv.ApplyCall.Call(t.Context(), a, &kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: "a"}})
		if err != nil {
			t.Errorf("a write while there is no leader: %v, want it held until there is one", err)
		}
		// Without a quorum it is told so after the hold time.
		c.leader().crash()
		time.Sleep(5 * time.Second)
		start := time.Now()
		_, err = kv.ApplyCall.Call(t.Context(), a, &kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: "a"}})
		if !errors.Is(err, wireerr.ErrNoLeader) || !strings.HasPrefix(err.Error(), wireerr.RemotePrefix) {
			t.Errorf("without a quorum: %v", err)
		}
		if took := time.Since(start); took < 6*time.Second || took > 15*time.Second {
			t.Errorf("told after %v", took)
		}
	})
}

// An agent's certificate opens the calls of agents, and neither Raft nor what only servers may call (spec/threats.md,
// class 2).
func TestThreat02AgentCertificatesAreNoServerCertificates(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		ca := testkit.NewCA(t, "ours")
		pool := ca.Pool()
		security := func(name string) *rpcwire.Security {
			cert := ca.Issue(name)
			return &rpcwire.Security{
				Certificate: func() *tls.Certificate { return cert }, Roots: poolOf(pool), VerifyIncoming: true, VerifyServerHostname: true,
			}
		}
		c := newCluster(t, 22, 3, server.Config{Security: security("server.dc1.consul")})
		a := c.agent("10.0.5.1", security("agent.dc1.consul"), nil)
		a.join(c)
		if _, err := kv.ApplyCall.Call(t.Context(), a, &kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: "a"}}); err != nil {
			t.Errorf("an agent's write: %v", err)
		}
		if _, err := statusrpc.StatsCall.Call(t.Context(), a, &statusrpc.StatsRequest{}); err == nil || wireerr.Status(err) != 403 {
			t.Errorf("an agent asked what only servers may: %v", err)
		}
		raft := func(sec *rpcwire.Security) error {
			conn, err := a.host.Dial(t.Context(), "10.0.0.1:8300")
			if err != nil {
				return err
			}
			secured, err := sec.Secure(t.Context(), conn, rpcwire.ProtoRaft, "dc1")
			if err != nil {
				return err
			}
			defer secured.Close()
			secured.SetDeadline(time.Now().Add(time.Second))
			_, err = secured.Read(make([]byte, 1))
			return err
		}
		if err := raft(security("agent.dc1.consul")); !errors.Is(err, io.EOF) {
			t.Errorf("Raft with an agent's certificate: %v, want it closed", err)
		}
		if err := raft(security("server.dc2.consul")); !errors.Is(err, io.EOF) {
			t.Errorf("Raft with the certificate of another datacenter's server: %v, want it closed", err)
		}
		if err := raft(security("server.dc1.consul")); errors.Is(err, io.EOF) {
			t.Error("Raft with a server's certificate was closed")
		}
		if err := raft(&rpcwire.Security{}); err == nil {
			t.Error("Raft without TLS was served")
		}
		// The other way round: an agent with a server's name still finds its forwarded calls refused without it.
		fwd := rpcwire.NewClient(dialer(a.host, security("agent.dc1.consul")))
		defer fwd.Close()
		err := fwd.Call(t.Context(), "10.0.0.1:8300", "Forwarded.KV.Get", &kv.GetRequest{Key: "a"}, new(kv.GetReply))
		if err == nil || wireerr.Status(err) != 403 {
			t.Errorf("a forwarded call by an agent: %v", err)
		}
	})
}
