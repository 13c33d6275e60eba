package server_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
	"github.com/sarnmesh/sarn/server/consensus"
)

// A server that is told to leave while it opens its log leaves when it has.
func TestLeaveAtOnce(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		host := testkit.NewNetwork(9).Host("10.0.0.1")
		must := func(err error) {
			if t.Helper(); err != nil {
				t.Fatal(err)
			}
		}
		conf := server.Config{NodeName: "s1", NodeID: "00000001-0000-4000-8000-000000000000", BootstrapExpect: 1, Dial: host.Dial}
		var err error
		conf.Listener, err = host.Listen(8300)
		must(err)
		conf.Gossip.Listener, err = host.Listen(8301)
		must(err)
		conf.Gossip.Packets, err = host.ListenPacket(8301)
		must(err)
		conf.Gossip.Dial = host.Dial
		disk, opened := testkit.NewDisk().Open(), make(chan struct{})
		conf.Storage = func() (*consensus.Storage, error) {
			<-opened
			return &consensus.Storage{Logs: disk, Stable: disk, Snapshots: disk, InMemory: true}, nil
		}
		s, err := server.New(conf)
		must(err)
		ctx, cancel := context.WithCancel(t.Context())
		ended, left := make(chan error, 1), make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		<-s.Gossip().Ready()
		go func() { left <- s.Leave(ctx) }()
		synctest.Wait()
		close(opened)
		must(<-left)
		cancel()
		must(<-ended)
	})
}
