package consensus_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server/consensus"
	"github.com/sarnmesh/sarn/server/fsm"
)

// A member is one of a few that keep keys, on a network and with a disk in memory.
type member struct {
	t      *testing.T
	id     string
	host   *testkit.Host
	disk   *testkit.Disk
	read   func(l *raft.Log) // changes what is read from the disk; may be nil
	conf   consensus.Config  // what is the same each time it starts
	out    *testkit.Log
	store  *state.Store
	raft   *consensus.Raft // nil while it is down
	cancel context.CancelFunc
	done   chan error
}

// tampered is a disk that may give back something else than was written.
type tampered struct {
	*testkit.Handle
	member *member
}

func (d tampered) GetLog(index uint64, l *raft.Log) error {
	err := d.Handle.GetLog(index, l)
	if err == nil && d.member.read != nil {
		d.member.read(l)
	}
	return err
}

func keys() (*state.Store, *fsm.FSM) {
	store, appliers := state.New(), &fsm.Appliers{}
	fsm.Handle(appliers, fsm.KV, func(tx *state.Tx, req *kv.ApplyRequest) (*kv.ApplyReply, error) {
		_, ok, err := tx.ApplyKey(req.Op, &req.Entry)
		return &kv.ApplyReply{OK: ok}, err
	})
	return store, fsm.New(store, appliers)
}

// newMembers starts members that verify their logs as told, makes them a cluster, and waits for a leader.
func newMembers(t *testing.T, verify ...bool) []*member {
	t.Helper()
	network := testkit.NewNetwork(61)
	network.SetAll(testkit.Link{Delay: time.Millisecond})
	var all []*member
	var voters []consensus.Server
	for i, v := range verify {
		m := &member{
			t: t, id: fmt.Sprintf("m%d", i+1), host: network.Host(fmt.Sprintf("10.0.0.%d", i+1)), disk: testkit.NewDisk(), out: &testkit.Log{},
			conf: consensus.Config{Verify: v, VerifyInterval: 10 * time.Second, Multiplier: 1},
		}
		m.disk.SetSyncTime(200 * time.Microsecond)
		all = append(all, m)
		voters = append(voters, consensus.Server{ID: m.id, Address: m.address(), Voter: true})
		m.start()
	}
	if err := all[0].raft.Bootstrap(voters); err != nil {
		t.Fatal(err)
	}
	leaderOf(all)
	return all
}

func (m *member) address() string { return m.host.Addr().String() + ":8300" }

func (m *member) start() {
	m.t.Helper()
	l, err := m.host.Listen(8300)
	if err != nil {
		m.t.Fatal(err)
	}
	handle := m.disk.Open()
	conf := m.conf
	conf.ID, conf.Address, conf.Listener, conf.Dial = m.id, m.address(), l, m.host.Dial
	m.store, conf.FSM = keys()
	conf.Storage = func() (*consensus.Storage, error) {
		return &consensus.Storage{Logs: tampered{handle, m}, Stable: handle, Snapshots: handle}, nil
	}
	conf.Logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: m.out})
	if m.raft, err = consensus.New(conf); err != nil {
		m.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r, done := m.raft, make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	m.cancel, m.done = cancel, done
	m.t.Cleanup(m.stop)
	<-m.raft.Ready()
}

func (m *member) stop() {
	if m.raft == nil {
		return
	}
	m.cancel()
	if err := <-m.done; err != nil {
		m.t.Errorf("%s: %v", m.id, err)
	}
	m.raft = nil
}

// leaderOf waits for a leader, and for a moment more.
func leaderOf(all []*member) *member {
	all[0].t.Helper()
	for range 600 {
		time.Sleep(100 * time.Millisecond)
		for _, m := range all {
			if m.raft == nil {
				continue
			}
			if s, _ := m.raft.Status(); s.Leading {
				time.Sleep(time.Second)
				return m
			}
		}
	}
	all[0].t.Fatal("no leader")
	return nil
}

func followerOf(all []*member) *member {
	all[0].t.Helper()
	lead := leaderOf(all)
	for _, m := range all {
		if m != lead && m.raft != nil {
			return m
		}
	}
	all[0].t.Fatal("no follower")
	return nil
}

// put writes keys, all at once.
func (m *member) put(from, to int) {
	m.t.Helper()
	var wg sync.WaitGroup
	for i := from; i < to; i++ {
		wg.Go(func() {
			req := &kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: fmt.Sprintf("k%d", i), Value: fmt.Appendf(nil, "value of %d", i)}}
			if _, err := m.raft.Apply(m.t.Context(), fsm.KV, req); err != nil {
				m.t.Error(err)
			}
		})
	}
	wg.Wait()
}

// has tells what is wrong with the keys of a member, empty for nothing.
func (m *member) has(n int) string {
	view := m.store.View()
	for i := range n {
		if _, e := view.Key(fmt.Sprintf("k%d", i)); e == nil || string(e.Value) != fmt.Sprintf("value of %d", i) {
			return fmt.Sprintf("%s: k%d is %v", m.id, i, e)
		}
	}
	return ""
}

// wrong returns what a member logged as an error, empty for nothing.
func (m *member) wrong() string {
	var found strings.Builder
	for line := range strings.Lines(m.out.String()) {
		if strings.Contains(line, "entries of the log") && strings.Contains(line, "[ERROR]") {
			found.WriteString(line)
		}
	}
	return found.String()
}

const verifiedText = "entries of the log are verified"

func TestAFollowerWhoseStorageChangesEntriesIsFound(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		all := newMembers(t, true, true, true)
		lead, bad := leaderOf(all), followerOf(all)
		bad.read = func(l *raft.Log) { l.Data = bytes.ReplaceAll(l.Data, []byte("value of 7"), []byte("VALUE of 7")) }
		lead.put(0, 50)
		time.Sleep(15 * time.Second)
		for _, m := range all {
			const text = "the storage of this server changed them"
			if found := strings.Contains(m.wrong(), text); found != (m == bad) {
				t.Errorf("%s: found %v:\n%s", m.id, found, m.out.String())
			}
			if fine := strings.Contains(m.out.String(), verifiedText); m != bad && !fine {
				t.Errorf("%s verified nothing:\n%s", m.id, m.out.String())
			}
		}
		// Once told, it is told no more: what came later is as it was written.
		told := bad.wrong()
		bad.out.Take()
		lead.put(100, 150)
		time.Sleep(30 * time.Second)
		if again := bad.wrong(); told == "" || again != "" || !strings.Contains(bad.out.String(), verifiedText) {
			t.Errorf("afterwards:\n%s", bad.out.String())
		}
	})
}

// Members that verify and members that do not go together, whoever leads, and one may change sides.
func TestNotAllMembersVerify(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		all := newMembers(t, true, false, true)
		written := 0
		for _, id := range []string{"m1", "m2", "m3", "m2", "m1"} {
			lead := leaderOf(all)
			if lead.id != id {
				if err := lead.raft.Transfer(id); err != nil {
					t.Fatal(err)
				}
				if lead = leaderOf(all); lead.id != id {
					t.Fatalf("%s leads, not %s", lead.id, id)
				}
			}
			for _, m := range all {
				m.out.Take()
			}
			for range 3 {
				lead.put(written, written+20)
				written += 20
				time.Sleep(10 * time.Second)
			}
			for _, m := range all {
				if does := strings.Contains(m.out.String(), verifiedText); does != (lead.conf.Verify && m.conf.Verify) {
					t.Errorf("while %s leads, %s verifies: %v\n%s", id, m.id, does, m.out.String())
				}
				if w := m.wrong() + m.has(written); w != "" {
					t.Errorf("while %s leads: %s", id, w)
				}
			}
		}
		other := all[1]
		other.stop()
		other.conf.Verify = true
		other.start()
		lead := leaderOf(all)
		other.out.Take()
		for range 3 {
			lead.put(written, written+20)
			written += 20
			time.Sleep(10 * time.Second)
		}
		if w := other.wrong() + other.has(written); w != "" || !strings.Contains(other.out.String(), verifiedText) {
			t.Errorf("%s\n%s", w, other.out.String())
		}
	})
}

// Snapshots are taken, restored and sent to members that were away while checkpoints are written; what was written is
// there, and nothing wrong is found.
func TestSnapshotsOfVerifiedLogs(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		all := newMembers(t, true, true, true)
		lead, away := leaderOf(all), followerOf(all)
		written := 0
		write := func() {
			lead.put(written, written+20)
			written += 20
			time.Sleep(7 * time.Second) // checkpoints are before, between and after what happens
		}
		write()
		meta, data, err := lead.raft.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(data)
		if err != nil {
			t.Fatal(err)
		}
		write()
		away.stop()
		write()
		if err := lead.raft.Restore(t.Context(), meta, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		if _, e := lead.store.View().Key("k20"); e != nil {
			t.Error("the snapshot was not restored")
		}
		written = 20
		write()
		away.start()
		lead = leaderOf(all)
		write()
		write()
		write()
		for _, m := range all {
			m.out.Take()
		}
		for range 3 {
			write()
		}
		for _, m := range all {
			if w := m.wrong() + m.has(written); w != "" || !strings.Contains(m.out.String(), verifiedText) {
				t.Errorf("%s\n%s", w, m.out.String())
			}
		}
		// From their disks: snapshot and log, with the checkpoints in it.
		for _, m := range all {
			m.stop()
		}
		for _, m := range all {
			m.start()
		}
		lead = leaderOf(all)
		write()
		write()
		for _, m := range all {
			if w := m.wrong() + m.has(written); w != "" {
				t.Error(w)
			}
		}
	})
}

// Checkpoints change nothing: no index moves, and who waits for a change is not woken.
func TestCheckpointsChangeNothing(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		all := newMembers(t, true, true, true)
		lead := leaderOf(all)
		lead.put(0, 10)
		time.Sleep(time.Second)
		marks := func(m *member) [2]uint64 {
			v := m.store.View()
			keys, _ := v.Key("none")
			return [2]uint64{v.LastIndex(), keys}
		}
		before := map[*member][2]uint64{}
		for _, m := range all {
			before[m] = marks(m)
		}
		log := lead.raft.Progress().LastIndex
		time.Sleep(time.Minute)
		if now := lead.raft.Progress().LastIndex; now != log+6 {
			t.Errorf("%d entries were written in a minute, want 6", now-log)
		}
		for _, m := range all {
			if p := m.raft.Progress(); p.AppliedIndex != p.LastIndex {
				t.Errorf("%s has applied %d of %d", m.id, p.AppliedIndex, p.LastIndex)
			}
			if now := marks(m); now != before[m] {
				t.Errorf("%s: marks are %v, were %v", m.id, now, before[m])
			}
		}
		// One series of them, also after the duties of the leader began anew.
		if err := lead.raft.Relead(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		log = lead.raft.Progress().LastIndex
		time.Sleep(time.Minute)
		if now := lead.raft.Progress().LastIndex; now != log+6 {
			t.Errorf("after that, %d entries were written in a minute, want 6", now-log)
		}
	})
}

// Alone and in memory, as with -dev.
func TestAVerifiedLogInMemory(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		host := testkit.NewNetwork(62).Host("10.0.0.1")
		l, err := host.Listen(8300)
		if err != nil {
			t.Fatal(err)
		}
		_, f := keys()
		out := &testkit.Log{}
		r, err := consensus.New(consensus.Config{
			ID: "one", Address: "10.0.0.1:8300", FSM: f, Storage: consensus.Memory, Listener: l, Dial: host.Dial, Multiplier: 1, Verify: true,
			Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: out}),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		<-r.Ready()
		if err := r.Bootstrap([]consensus.Server{{ID: "one", Address: "10.0.0.1:8300", Voter: true}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(190 * time.Second)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := strings.Count(out.String(), verifiedText); n != 3 || strings.Contains(out.String(), "[ERROR]") {
			t.Errorf("%d ranges were verified in three minutes, want 3\n%s", n, out.String())
		}
	})
}

// A byte that changes in a file of the log is found.
func TestADamagedFileIsFound(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	_, f := keys()
	out := &testkit.Log{}
	leading := make(chan struct{})
	r, err := consensus.New(consensus.Config{
		ID: "one", Address: l.Addr().String(), FSM: f, Listener: l, Multiplier: 1, Verify: true, VerifyInterval: 200 * time.Millisecond,
		Storage: func() (*consensus.Storage, error) {
			return consensus.Disk(consensus.DiskConfig{Dir: dir, SegmentBytes: 1 << 20})
		},
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", address)
		},
		Lead:   func(ctx context.Context) { close(leading); <-ctx.Done() },
		Logger: hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: out}),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-r.Ready():
	case err := <-done:
		done <- nil
		t.Fatal(err)
	}
	if err := r.Bootstrap([]consensus.Server{{ID: "one", Address: l.Addr().String(), Voter: true}}); err != nil {
		t.Fatal(err)
	}
	<-leading
	// One is damaged after the other: a checkpoint may come before the damage to what it ends.
	for i, end := 0, time.Now().Add(60*time.Second); !strings.Contains(out.String(), "the storage of this server changed them"); i++ {
		if time.Now().After(end) {
			t.Fatalf("the damage was not found:\n%s", out.String())
		}
		value := fmt.Sprintf("value %d of the test", i)
		if _, err := r.Apply(t.Context(), fsm.KV, &kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: "k", Value: []byte(value)}}); err != nil {
			t.Fatal(err)
		}
		damage(t, filepath.Join(dir, "wal"), value)
		time.Sleep(50 * time.Millisecond)
	}
}

// damage changes a byte of a text in the files of a folder.
func damage(t *testing.T, dir, text string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(data, []byte(text))
		if at < 0 {
			continue
		}
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("V"), int64(at)); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("%q is in none of %v", text, names)
}
