package consensus_test

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/consensus"
	"github.com/sarnmesh/sarn/server/fsm"
)

// BenchmarkApply measures writes of 64 callers at once by a single member whose log is on disk: batch, log entry, sync,
// state, answer.
func BenchmarkApply(b *testing.B) { benchmarkApply(b, consensus.Config{}) }

// BenchmarkApplyVerified is the same with a log that is verified once a second, which is oftener than anybody needs.
func BenchmarkApplyVerified(b *testing.B) {
	benchmarkApply(b, consensus.Config{Verify: true, VerifyInterval: time.Second})
}

func benchmarkApply(b *testing.B, conf consensus.Config) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	store, appliers := state.New(), &fsm.Appliers{}
	fsm.Handle(appliers, fsm.KV, func(tx *state.Tx, req *kv.ApplyRequest) (*kv.ApplyReply, error) {
		_, ok, err := tx.ApplyKey(req.Op, &req.Entry)
		return &kv.ApplyReply{OK: ok}, err
	})
	dir := b.TempDir()
	leading := make(chan struct{})
	conf.ID, conf.Address, conf.FSM, conf.Listener, conf.Multiplier = "one", l.Addr().String(), fsm.New(store, appliers), l, 1
	conf.Storage = func() (*consensus.Storage, error) { return consensus.Disk(consensus.DiskConfig{Dir: dir}) }
	conf.Dial = func(ctx context.Context, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	conf.Lead = func(ctx context.Context) { close(leading); <-ctx.Done() }
	r, err := consensus.New(conf)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}()
	select {
	case <-r.Ready():
	case err := <-done:
		done <- nil
		b.Fatal(err)
	}
	if err := r.Bootstrap([]consensus.Server{{ID: "one", Address: l.Addr().String(), Voter: true}}); err != nil {
		b.Fatal(err)
	}
	<-leading
	value := make([]byte, 512)
	var n atomic.Int64
	b.ReportAllocs()
	b.SetParallelism(64 / runtime.GOMAXPROCS(0))
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			req := &kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: fmt.Sprintf("bench/%d", n.Add(1)%10000), Value: value}}
			if _, err := r.Apply(ctx, fsm.KV, req); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.StopTimer()
}
