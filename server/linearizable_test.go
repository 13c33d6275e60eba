package server_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server"
)

// A registerOp is one operation on one key.
type registerOp struct {
	key   string
	write bool
	value string // written
}

// register is the sequential meaning of a key: a read gives what was last written.
var register = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, op := range history {
			k := op.Input.(registerOp).key
			byKey[k] = append(byKey[k], op)
		}
		var parts [][]porcupine.Operation
		for _, ops := range byKey {
			parts = append(parts, ops)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		if in := input.(registerOp); in.write {
			return true, in.value
		}
		return output.(string) == state.(string), state
	},
	DescribeOperation: func(input, output any) string {
		if in := input.(registerOp); in.write {
			return fmt.Sprintf("put %s=%s", in.key, in.value)
		}
		return fmt.Sprintf("get %s: %v", input.(registerOp).key, output)
	},
}

// A trial is a cluster under attack with clients that write down what they see.
type trial struct {
	*cluster
	seed uint64
	mode read.Mode

	mu      sync.Mutex
	rng     *rand.Rand
	up      map[*node]*server.Server // those that may be called by clients
	history []porcupine.Operation
}

func (tr *trial) chance(n int) int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.rng.IntN(n)
}

// running returns the process of a server, nil when it is down.
func (tr *trial) running(o *node) *server.Server {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.up[o]
}

// set tells clients of a server, nil when it goes down.
func (tr *trial) set(o *node, s *server.Server) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.up[o] = s
}

// server returns one that is up, nil when ctx ends.
func (tr *trial) server(ctx context.Context) *server.Server {
	for ctx.Err() == nil {
		o := tr.nodes[tr.chance(len(tr.nodes))]
		if s := tr.running(o); s != nil {
			return s
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

var trialKeys = []string{"x", "y", "z"}

// client writes and reads until ctx ends.
func (tr *trial) client(ctx context.Context, id int) {
	for n := 0; ctx.Err() == nil; n++ {
		s := tr.server(ctx)
		if s == nil {
			return
		}
		op := porcupine.Operation{ClientId: id}
		in := registerOp{key: trialKeys[tr.chance(len(trialKeys))]}
		callCtx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		op.Call = time.Now().UnixNano()
		var err error
		if tr.chance(2) == 0 {
			in.write, in.value = true, fmt.Sprintf("%d.%d", id, n)
			_, err = kv.ApplyCall.Call(callCtx, s.Caller(), &kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: in.key, Value: []byte(in.value)}})
		} else {
			var reply *kv.GetReply
			reply, err = kv.GetCall.Call(callCtx, s.Caller(), &kv.GetRequest{Options: read.Options{Mode: tr.mode}, Key: in.key})
			if err == nil {
				op.Output = ""
				if reply.Entry != nil {
					op.Output = string(reply.Entry.Value)
				}
			}
		}
		cancel()
		op.Input, op.Return = in, time.Now().UnixNano()
		switch {
		case err == nil:
		case !in.write, errors.Is(err, wireerr.ErrNoLeader):
			continue // a read that failed says nothing; a write that found no leader was not made
		default:
			op.Return = math.MaxInt64 // may take effect at any time, or never
		}
		tr.mu.Lock()
		tr.history = append(tr.history, op)
		tr.mu.Unlock()
		time.Sleep(time.Duration(tr.chance(30)) * time.Millisecond)
	}
}

// stale reads one server again and again, through one life of its process: what it shows never gets older.
func (tr *trial) stale(ctx context.Context, o *node) {
	last, life := map[string]uint64{}, (*server.Server)(nil)
	for ; ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		s := tr.running(o)
		if s == nil {
			continue
		}
		if s != life {
			life = s
			clear(last)
		}
		key := trialKeys[tr.chance(len(trialKeys))]
		reply, err := kv.GetCall.Call(ctx, s.Caller(), &kv.GetRequest{Options: read.Options{Mode: read.Stale}, Key: key})
		if err != nil {
			continue
		}
		if reply.Index < last[key] {
			tr.t.Errorf("seed %d: a stale read of %s at %s went from index %d back to %d; the log is applied to %s", tr.seed, key, o.name, last[key], reply.Index, s.Stats()["raft"]["applied_index"])
		}
		last[key] = reply.Index
	}
}

// watch follows a key by blocking reads at whichever server, and stores what it saw last.
func (tr *trial) watch(ctx context.Context, key string, seen *sync.Map) {
	var index uint64
	for ctx.Err() == nil {
		s := tr.server(ctx)
		if s == nil {
			return
		}
		callCtx, cancel := context.WithTimeout(ctx, 15*time.Second)
		reply, err := kv.GetCall.Call(callCtx, s.Caller(), &kv.GetRequest{
			Options: read.Options{MinIndex: index, MaxWait: 10 * time.Second, Mode: tr.mode}, Key: key,
		})
		cancel()
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if reply.Index < index && reply.Entry != nil {
			tr.t.Errorf("seed %d: the index of %s went from %d back to %d", tr.seed, key, index, reply.Index)
		}
		index = reply.Index
		if reply.Entry != nil {
			seen.Store(key, string(reply.Entry.Value))
		}
	}
}

// attack does something to the cluster, and undoes it a while later.
func (tr *trial) attack() {
	victim := tr.nodes[tr.chance(len(tr.nodes))]
	if tr.chance(2) == 0 { // rather the leader
		for _, o := range tr.nodes {
			if s, _ := o.Leadership(); s.Leading {
				victim = o
			}
		}
	}
	pause := func() { time.Sleep(1200*time.Millisecond + time.Duration(tr.chance(4000))*time.Millisecond) }
	switch tr.chance(4) {
	case 0, 1:
		n := 1 + tr.chance(5)/4 // now and then two at once, which is no quorum
		var down []*node
		for i := range n {
			o := tr.nodes[(index(tr.nodes, victim)+i)%len(tr.nodes)]
			tr.set(o, nil)
			o.crash()
			down = append(down, o)
		}
		pause() // longer than a leader's lease
		if tr.chance(3) == 0 && !raceEnabled {
			down[0].host.Move(fmt.Sprintf("10.1.%d.%d", tr.chance(250), tr.chance(250)+1))
		}
		for _, o := range down {
			o.start()
			tr.set(o, o.Server)
			for _, other := range tr.nodes {
				if tr.running(other) != nil && other != o {
					o.Gossip().Join([]string{other.host.Addr().String() + ":8301"})
					break
				}
			}
		}
	case 2:
		tr.net.Partition([]*testkit.Host{victim.host})
		pause()
		tr.net.Heal()
	case 3:
		for _, o := range tr.nodes { // one way only
			if o != victim {
				tr.net.SetLink(victim.host, o.host, testkit.Link{Cut: true})
			}
		}
		pause()
		tr.net.Heal()
	}
}

func index(nodes []*node, o *node) int {
	for i, n := range nodes {
		if n == o {
			return i
		}
	}
	return 0
}

// TestKeysAreLinearizable attacks clusters with crashes, partitions and moves. Default and consistent reads must fit one
// order with the writes; stale reads must not go back within one server; watches must not miss the last write; indexes
// must not fall. Default reads rely on a leader's lease: no crash is shorter than that, as no restart in practice is.
// SARN_SEED=n runs one seed, SARN_SEEDS=n that many.
func TestKeysAreLinearizable(t *testing.T) {
	seeds, first := 6, uint64(1)
	if testing.Short() {
		seeds = 2
	}
	if n, err := strconv.Atoi(os.Getenv("SARN_SEEDS")); err == nil {
		seeds = n
	}
	if n, err := strconv.ParseUint(os.Getenv("SARN_SEED"), 10, 64); err == nil {
		seeds, first = 1, n
	}
	for seed := first; seed < first+uint64(seeds); seed++ {
		for _, mode := range []read.Mode{read.Default, read.Consistent} {
			t.Run(fmt.Sprintf("%v/%d", mode, seed), func(t *testing.T) {
				testkit.Bubble(t, func(t *testing.T) { linearizable(t, seed, mode) })
			})
		}
	}
}

func linearizable(t *testing.T, seed uint64, mode read.Mode) {
	conf := server.Config{HoldTimeout: 3 * time.Second, RaftSnapshotEntries: 100, RaftSnapshotEvery: 2 * time.Second, RaftTrailingLogs: 20}
	tr := &trial{cluster: newCluster(t, seed, 3, conf), seed: seed, mode: mode, rng: rand.New(rand.NewPCG(seed, 7)), up: map[*node]*server.Server{}}
	if mode == read.Consistent {
		tr.net.SetAll(testkit.Link{Delay: time.Millisecond, Jitter: 2 * time.Millisecond, Loss: 0.02})
	}
	for _, o := range tr.nodes {
		tr.set(o, o.Server)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg, watchers sync.WaitGroup
	for i := range 5 {
		wg.Go(func() { tr.client(ctx, i) })
	}
	for _, o := range tr.nodes {
		wg.Go(func() { tr.stale(ctx, o) })
	}
	watchCtx, stopWatching := context.WithCancel(context.Background())
	t.Cleanup(func() { // before the servers stop
		cancel()
		stopWatching()
		wg.Wait()
		watchers.Wait()
	})
	var seen sync.Map
	for _, key := range trialKeys {
		watchers.Go(func() { tr.watch(watchCtx, key, &seen) })
	}
	for until := time.Now().Add(25 * time.Second); time.Now().Before(until); {
		tr.attack()
		time.Sleep(time.Duration(tr.chance(3000)) * time.Millisecond)
	}
	cancel()
	wg.Wait()

	// Somebody may still lead whom the last attack has cost the lead.
	for _, key := range trialKeys {
		tr.within(3*time.Minute, "a last write after the attacks", func() bool {
			for _, o := range tr.nodes {
				if s, _ := o.Leadership(); s.Leading && o.put(context.Background(), key, "last") == nil {
					return true
				}
			}
			return false
		})
	}
	tr.within(15*time.Second, "the last write seen by every watch", func() bool {
		for _, key := range trialKeys {
			if v, _ := seen.Load(key); v != "last" {
				return false
			}
		}
		return true
	})
	stopWatching()
	watchers.Wait()

	ok := 0
	for _, op := range tr.history {
		if op.Return != math.MaxInt64 {
			ok++
		}
	}
	t.Logf("%d operations, %d with a known end", len(tr.history), ok)
	if ok < 100 {
		t.Errorf("seed %d: only %d operations succeeded", seed, ok)
	}
	if !porcupine.CheckOperations(register, tr.history) {
		t.Errorf("seed %d: %v reads are not linearizable", seed, mode)
	}
}
