package leader_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/leader"
)

func lead(apply func(ctx context.Context, k fsm.Kind, req any) (any, error)) *leader.Leader {
	return &leader.Leader{Store: state.New(), Apply: apply, Log: hclog.NewNullLogger()}
}

func TestRunRetriesFailingDutiesAndWaitsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var at []time.Duration
		var ended atomic.Int32
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		leader.Run(ctx, lead(nil), []leader.Duty{
			{Name: "fails", Run: func(context.Context, *leader.Leader) error {
				at = append(at, time.Since(start))
				return errors.New("not yet")
			}},
			{Name: "ends early", Run: func(context.Context, *leader.Leader) error { ended.Add(1); return nil }},
			{Name: "ends with leadership", Run: func(ctx context.Context, _ *leader.Leader) error {
				<-ctx.Done()
				time.Sleep(time.Second)
				ended.Add(1)
				return nil
			}},
		})
		if want := []time.Duration{0, time.Second, 3 * time.Second, 7 * time.Second}; !slices.Equal(at, want) {
			t.Errorf("tried at %v, want %v", at, want)
		}
		if ended.Load() != 2 || time.Since(start) != 11*time.Second {
			t.Errorf("returned after %v with %d duties ended", time.Since(start), ended.Load())
		}
	})
}

// createSession puts a session with this TTL into the store.
func createSession(t *testing.T, s *state.Store, index uint64, id, ttl string) {
	t.Helper()
	tx := s.Write(index)
	if err := tx.CreateSession(&kv.Session{ID: id, Node: "n", TTL: ttl, Behavior: kv.Release}); err != nil {
		t.Fatal(err)
	}
	tx.Commit()
}

func TestSessionsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keeper := leader.NewSessions()
		start := time.Now()
		var ended []string
		fail := 0
		var l *leader.Leader
		l = lead(func(_ context.Context, k fsm.Kind, req any) (any, error) {
			id := req.(*kv.SessionDestroyRequest).ID
			if id == "stubborn" && fail < 2 {
				fail++
				return nil, errors.New("no quorum")
			}
			ended = append(ended, fmt.Sprintf("%s %v", id, time.Since(start)))
			tx := l.Store.Write(uint64(100 + len(ended)))
			tx.DestroySession(id)
			tx.Commit()
			return nil, nil
		})
		tx := l.Store.Write(1)
		if _, err := tx.SetNode(node("n")); err != nil {
			t.Fatal(err)
		}
		tx.Commit()
		createSession(t, l.Store, 2, "idle", "10s")
		createSession(t, l.Store, 3, "forever", "")
		createSession(t, l.Store, 4, "renewed", "15s")
		createSession(t, l.Store, 5, "forgotten", "10s")
		createSession(t, l.Store, 6, "stubborn", "12s")
		keeper.Renew("idle", time.Second) // without leadership it has no effect

		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			leader.Run(ctx, l, []leader.Duty{keeper.Duty()})
		}()
		time.Sleep(10 * time.Second)
		keeper.Renew("renewed", 30*time.Second)
		keeper.Forget("forgotten")
		time.Sleep(2 * time.Minute)
		cancel()
		<-done
		// 10s and 20s are the first waits of what fails.
		if want := []string{"idle 20s", "renewed 40s", "stubborn 54s"}; !slices.Equal(ended, want) {
			t.Errorf("ended %v, want %v", ended, want)
		}
	})
}

func TestTombstonesAreReapedByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type reap struct {
			upTo uint64
			at   time.Duration
		}
		var reaped []reap
		start := time.Now()
		var index atomic.Uint64
		index.Store(10)
		var l *leader.Leader
		l = lead(func(_ context.Context, _ fsm.Kind, req any) (any, error) {
			upTo := req.(uint64)
			reaped = append(reaped, reap{upTo, time.Since(start)})
			tx := l.Store.Write(1000 + upTo)
			tx.ReapTombstones(upTo)
			tx.Commit()
			return nil, nil
		})
		remove := func(key string) {
			tx := l.Store.Write(index.Add(1))
			tx.ApplyKey(kv.OpSet, &kv.Entry{Key: key})
			tx.ApplyKey(kv.OpDelete, &kv.Entry{Key: key})
			tx.Commit()
		}
		remove("before")
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Minute)
		defer cancel()
		go func() {
			time.Sleep(10*time.Minute + 10*time.Second)
			remove("during")
		}()
		leader.Run(ctx, l, []leader.Duty{leader.Tombstones(index.Load, func(upTo uint64) any { return upTo })})
		want := []reap{{11, 15 * time.Minute}, {12, 25*time.Minute + 30*time.Second}}
		if !slices.Equal(reaped, want) {
			t.Errorf("reaped %v, want %v", reaped, want)
		}
	})
}

func node(name string) *catalog.Node {
	return &catalog.Node{Node: name, Address: "10.0.0.1", Datacenter: "dc1"}
}
