package consensus

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-metrics"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"github.com/sarnmesh/sarn/internal/measure"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server/fsm"
)

// An end is a verified log, and what it logs.
type end struct {
	*verified
	t     *testing.T
	store *raft.InmemStore
	out   testkit.Log
	read  func(l *raft.Log) error // changes what is read from the store; may be nil
	full  bool                    // nothing more can be stored
}

func newEnd(t *testing.T) *end {
	e := &end{t: t, store: raft.NewInmemStore()}
	e.verified = newVerified(disturbed{e.store, e}, hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: &e.out, DisableTime: true}))
	return e
}

type disturbed struct {
	*raft.InmemStore
	end *end
}

func (d disturbed) GetLog(index uint64, l *raft.Log) error {
	if err := d.InmemStore.GetLog(index, l); err != nil {
		return err
	}
	if d.end.read != nil {
		return d.end.read(l)
	}
	return nil
}

func (d disturbed) StoreLogs(logs []*raft.Log) error {
	if d.end.full {
		return errors.New("the disk is full")
	}
	return d.InmemStore.StoreLogs(logs)
}

// put stores entries of a term from an index on.
func (e *end) put(term, from, to uint64) {
	e.t.Helper()
	var logs []*raft.Log
	for i := from; i <= to; i++ {
		logs = append(logs, &raft.Log{Index: i, Term: term, Data: fmt.Appendf(nil, "%d of term %d", i, term)})
	}
	if err := e.StoreLogs(logs); err != nil {
		e.t.Fatal(err)
	}
}

// mark stores a checkpoint, and waits until what it ends is verified.
func (e *end) mark(term, index uint64) {
	e.t.Helper()
	if err := e.StoreLog(&raft.Log{Index: index, Term: term, Data: slices.Clone(checkpoint)}); err != nil {
		e.t.Fatal(err)
	}
	synctest.Wait()
}

// follow stores entries that the leader has.
func (e *end) follow(lead *end, from, to uint64, change func(l *raft.Log)) {
	e.t.Helper()
	for i := from; i <= to; i++ {
		l := new(raft.Log)
		if err := lead.store.GetLog(i, l); err != nil {
			e.t.Fatal(err)
		}
		if change != nil {
			change(l)
		}
		if err := e.StoreLog(l); err != nil {
			e.t.Fatal(err)
		}
		synctest.Wait()
	}
}

func (e *end) drop(from, to uint64) {
	e.t.Helper()
	if err := e.DeleteRange(from, to); err != nil {
		e.t.Fatal(err)
	}
}

// other changes an entry.
func other(index uint64) func(l *raft.Log) {
	return func(l *raft.Log) {
		if l.Index == index {
			l.Data = []byte("something else")
		}
	}
}

// on fails, or changes, what is read of an entry.
func on(index uint64, change func(l *raft.Log), err error) func(l *raft.Log) error {
	return func(l *raft.Log) error {
		if l.Index != index {
			return nil
		}
		if change != nil {
			change(l)
		}
		return err
	}
}

// A tally counts what is told to the metrics.
type tally struct {
	metrics.BlackholeSink
	mu     sync.Mutex
	counts map[string]int
}

func (s *tally) IncrCounterWithLabels(key []string, v float32, _ []metrics.Label) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[strings.Join(key, ".")] += int(v)
}

// countersOf returns what returns the counters since now.
func countersOf(t *testing.T) func() map[string]int {
	t.Helper()
	measure.Report() // what others have counted
	sink := &tally{counts: map[string]int{}}
	to := func(sink metrics.MetricSink) {
		t.Helper()
		if _, err := metrics.NewGlobal(&metrics.Config{FilterDefault: true, TimerGranularity: time.Millisecond}, sink); err != nil {
			t.Fatal(err)
		}
	}
	to(sink)
	t.Cleanup(func() { to(&metrics.BlackholeSink{}) })
	return func() map[string]int {
		measure.Report()
		sink.mu.Lock()
		defer sink.mu.Unlock()
		return sink.counts
	}
}

func TestWhatIsFoundInALog(t *testing.T) {
	const (
		fine    = "[INFO]  entries of the log are verified: from=%d to=%d took=0s\n"
		onWay   = "[ERROR] entries of the log are not what the leader wrote: they changed before they were stored here: from=%d to=%d leader="
		onDisk  = "[ERROR] entries of the log are not what the leader wrote: the storage of this server changed them: from=%d to=%d leader="
		lacking = "[WARN]  entries were not verified: the log does not have all of them, since they came, or went, with a snapshot: from=%d to=%d\n"
	)
	for _, tt := range []struct {
		name  string
		steps func(lead, follower *end)
		want  []string // of the follower's log, in order, and nothing else
		lead  []string // of the leader's
		found string   // counter that counts once; "" for none
	}{
		{
			name: "what was written is there",
			steps: func(lead, follower *end) {
				lead.put(1, 1, 9)
				lead.mark(1, 10)
				lead.put(1, 11, 19)
				lead.mark(1, 20)
				follower.follow(lead, 1, 20, nil)
			},
			want: []string{fmt.Sprintf(fine, 1, 9), fmt.Sprintf(fine, 10, 19)},
			lead: []string{fmt.Sprintf(fine, 1, 9), fmt.Sprintf(fine, 10, 19)},
		}, {
			name: "the storage of the follower changed an entry",
			steps: func(lead, follower *end) {
				lead.put(1, 1, 9)
				lead.mark(1, 10)
				follower.read = on(5, other(5), nil)
				follower.follow(lead, 1, 10, nil)
			},
			want: []string{fmt.Sprintf(onDisk, 1, 9)}, lead: []string{fmt.Sprintf(fine, 1, 9)}, found: "read_checksum_failures",
		}, {
			name: "the storage of the leader changed an entry",
			steps: func(lead, follower *end) {
				lead.read = on(5, other(5), nil)
				lead.put(1, 1, 9)
				lead.mark(1, 10)
				follower.follow(lead, 1, 10, nil)
			},
			want: []string{fmt.Sprintf(fine, 1, 9)}, lead: []string{fmt.Sprintf(onDisk, 1, 9)}, found: "read_checksum_failures",
		}, {
			name: "an entry changed on its way",
			steps: func(lead, follower *end) {
				lead.put(1, 1, 9)
				lead.mark(1, 10)
				follower.follow(lead, 1, 10, other(5))
			},
			want: []string{fmt.Sprintf(onWay, 1, 9)}, lead: []string{fmt.Sprintf(fine, 1, 9)}, found: "write_checksum_failures",
		}, {
			name: "the log tells that it is damaged",
			steps: func(lead, follower *end) {
				lead.put(1, 1, 9)
				lead.mark(1, 10)
				follower.read = on(5, nil, wal.ErrCorrupt)
				follower.follow(lead, 1, 10, nil)
			},
			want: []string{"[ERROR] entries of the log cannot be read any more: from=1 to=9 error="}, lead: []string{fmt.Sprintf(fine, 1, 9)}, found: "read_checksum_failures",
		}, {
			name: "the log cannot be read for another reason",
			steps: func(lead, follower *end) {
				lead.put(1, 1, 9)
				lead.mark(1, 10)
				follower.read = on(5, nil, errors.New("the disk sleeps"))
				follower.follow(lead, 1, 10, nil)
			},
			want: []string{"[ERROR] entries of the log were not verified: from=1 to=9 error="}, lead: []string{fmt.Sprintf(fine, 1, 9)},
		}, {
			// The follower had entries that were not committed. The checksum begins with those that replace them, so
			// that nothing but the reading is compared.
			name: "a new leader has other entries",
			steps: func(lead, follower *end) {
				lead.put(1, 1, 4)
				lead.mark(1, 5)
				follower.follow(lead, 1, 5, nil)
				follower.put(1, 6, 8)
				lead.put(2, 6, 9)
				lead.mark(2, 10)
				follower.drop(6, 8)
				follower.follow(lead, 6, 10, nil)
			},
			want: []string{fmt.Sprintf(fine, 1, 4), fmt.Sprintf(fine, 5, 9)},
			lead: []string{fmt.Sprintf(fine, 1, 4), fmt.Sprintf(fine, 5, 9)},
		}, {
			name: "the new leader had other entries",
			steps: func(lead, follower *end) {
				follower.put(1, 1, 4)
				follower.mark(1, 5)
				lead.follow(follower, 1, 5, nil)
				lead.put(1, 6, 8)
				lead.drop(6, 8)
				lead.put(2, 6, 9)
				lead.mark(2, 10)
				follower.follow(lead, 6, 10, nil)
			},
			want: []string{fmt.Sprintf(fine, 1, 4), "[INFO]  entries of the log were left out: from=5 to=5\n", fmt.Sprintf(fine, 6, 9)},
			lead: []string{fmt.Sprintf(fine, 1, 4), fmt.Sprintf(fine, 6, 9)},
		}, {
			name: "entries are replaced while they are read",
			steps: func(lead, follower *end) {
				lead.put(1, 1, 9)
				lead.mark(1, 10)
				follower.read = func(l *raft.Log) error { time.Sleep(time.Second); return nil }
				follower.follow(lead, 1, 10, nil)
				time.Sleep(1500 * time.Millisecond)
				follower.drop(5, 10)
				follower.put(2, 5, 20)
				time.Sleep(time.Minute)
			},
			want: []string{"[DEBUG] entries of the log were replaced before they were verified: from=1 to=9\n"}, lead: []string{fmt.Sprintf(fine, 1, 9)},
		}, {
			name: "later entries are replaced while some are read",
			steps: func(lead, follower *end) {
				lead.put(1, 1, 9)
				lead.mark(1, 10)
				follower.read = func(l *raft.Log) error { time.Sleep(time.Second); return on(5, other(5), nil)(l) }
				follower.follow(lead, 1, 10, nil)
				follower.put(1, 11, 12)
				time.Sleep(1500 * time.Millisecond)
				follower.drop(11, 12)
				follower.put(2, 11, 12)
				time.Sleep(time.Minute)
			},
			want: []string{fmt.Sprintf(onDisk, 1, 9)}, lead: []string{fmt.Sprintf(fine, 1, 9)}, found: "read_checksum_failures",
		}, {
			name: "the oldest entries go into a snapshot",
			steps: func(lead, follower *end) {
				lead.put(1, 1, 9)
				follower.follow(lead, 1, 9, nil)
				follower.drop(1, 5)
				lead.mark(1, 10)
				follower.follow(lead, 10, 10, nil)
				lead.put(1, 11, 19)
				lead.mark(1, 20)
				follower.follow(lead, 11, 20, nil)
			},
			want: []string{fmt.Sprintf(lacking, 1, 9), fmt.Sprintf(fine, 10, 19)},
			lead: []string{fmt.Sprintf(fine, 1, 9), fmt.Sprintf(fine, 10, 19)},
		}, {
			name: "a snapshot brings what is between",
			steps: func(lead, follower *end) {
				lead.put(1, 1, 9)
				follower.follow(lead, 1, 3, nil)
				lead.mark(1, 10)
				follower.follow(lead, 8, 10, nil) // it need not delete what it has
				lead.put(1, 11, 19)
				lead.mark(1, 20)
				follower.follow(lead, 11, 20, nil)
			},
			want: []string{fmt.Sprintf(lacking, 1, 9), fmt.Sprintf(fine, 10, 19)},
			lead: []string{fmt.Sprintf(fine, 1, 9), fmt.Sprintf(fine, 10, 19)},
		}, {
			name: "a snapshot replaces all there is, and no more",
			steps: func(lead, follower *end) {
				lead.put(1, 1, 3)
				lead.mark(1, 4)
				follower.follow(lead, 1, 4, nil)
				lead.put(2, 5, 9)
				lead.mark(2, 10)
				follower.put(1, 5, 7)
				follower.drop(1, 7)
				follower.follow(lead, 8, 10, nil)
			},
			want: []string{fmt.Sprintf(fine, 1, 3), fmt.Sprintf(lacking, 4, 9)},
			lead: []string{fmt.Sprintf(fine, 1, 3), fmt.Sprintf(fine, 4, 9)},
		}, {
			name: "a follower has started again",
			steps: func(lead, follower *end) {
				lead.put(1, 1, 9)
				lead.mark(1, 10)
				for i := range uint64(5) {
					l := new(raft.Log)
					if err := errors.Join(lead.store.GetLog(i+1, l), follower.store.StoreLog(l)); err != nil {
						lead.t.Fatal(err)
					}
				}
				follower.read = on(3, other(3), nil)
				follower.follow(lead, 6, 10, nil)
			},
			want: []string{fmt.Sprintf(onDisk, 1, 9)}, lead: []string{fmt.Sprintf(fine, 1, 9)}, found: "read_checksum_failures",
		}, {
			name: "entries come faster than they are read",
			steps: func(lead, follower *end) {
				for i := range uint64(4) {
					lead.put(1, 10*i+1, 10*i+9)
					lead.mark(1, 10*i+10)
				}
				follower.read = func(*raft.Log) error { time.Sleep(time.Second); return nil }
				follower.follow(lead, 1, 30, nil)
				time.Sleep(time.Minute)
				follower.follow(lead, 31, 40, nil)
				time.Sleep(time.Minute)
			},
			want: []string{
				"[INFO]  entries of the log are verified: from=1 to=9 took=9s\n", "[INFO]  entries of the log are verified: from=10 to=19 took=10s\n",
				"[INFO]  entries of the log were left out: from=20 to=29\n", "[INFO]  entries of the log are verified: from=30 to=39 took=10s\n",
			},
			lead:  []string{fmt.Sprintf(fine, 1, 9), fmt.Sprintf(fine, 10, 19), fmt.Sprintf(fine, 20, 29), fmt.Sprintf(fine, 30, 39)},
			found: "dropped_reports",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				counters := countersOf(t)
				lead, follower := newEnd(t), newEnd(t)
				tt.steps(lead, follower)
				lead.stop()
				follower.stop()
				for i, e := range []*end{follower, lead} {
					want := [][]string{tt.want, tt.lead}[i]
					got := slices.Collect(strings.Lines(e.out.String()))
					if !slices.EqualFunc(got, want, strings.HasPrefix) {
						t.Errorf("%s: logged\n%s\nwant\n%s", []string{"follower", "leader"}[i], e.out.String(), strings.Join(want, ""))
					}
				}
				counts := counters()
				for _, name := range []string{"read_checksum_failures", "write_checksum_failures", "dropped_reports"} {
					want := 0
					if name == tt.found {
						want = 1
					}
					if got := counts["raft.logstore.verifier."+name]; got != want {
						t.Errorf("%s is %d, want %d", name, got, want)
					}
				}
				w, v, d := counts["raft.logstore.verifier.checkpoints_written"], counts["raft.logstore.verifier.ranges_verified"], counts["raft.logstore.verifier.dropped_reports"]
				if v == 0 || w != v+d {
					t.Errorf("%d checkpoints were written, %d ranges verified, %d dropped", w, v, d)
				}
			})
		})
	}
}

// A log is closed without waiting until all is read, and tells nothing wrong.
func TestVerifyingEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEnd(t)
		e.read = func(*raft.Log) error { time.Sleep(time.Minute); return nil }
		e.put(1, 1, 9)
		e.mark(1, 10)
		e.put(1, 11, 19)
		e.mark(1, 20)
		began := time.Now()
		e.stop()
		if d := time.Since(began); d > time.Minute {
			t.Errorf("it took %v", d)
		}
		synctest.Wait()
		if out := e.out.String(); out != "" {
			t.Errorf("logged\n%s", out)
		}
	})
}

// What could not be stored does not count.
func TestEntriesThatAreNotStoredAreNotVerified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lead, follower := newEnd(t), newEnd(t)
		lead.put(1, 1, 9)
		lead.mark(1, 10)
		follower.follow(lead, 1, 5, nil)
		follower.full = true
		if err := follower.StoreLog(&raft.Log{Index: 6, Term: 1, Data: []byte("lost")}); err == nil {
			t.Fatal("no error")
		}
		follower.full = false
		follower.follow(lead, 6, 10, nil)
		lead.stop()
		follower.stop()
		if out := follower.out.String(); !strings.HasPrefix(out, "[INFO]  entries of the log are verified: from=1 to=9") || strings.Count(out, "\n") != 1 {
			t.Errorf("logged\n%s", out)
		}
	})
}

// Only what leaders write as checkpoints are some, and none keeps an entry from being stored.
func TestWhatACheckpointIs(t *testing.T) {
	command, err := fsm.Encode([]fsm.Command{{Kind: fsm.KV}})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		log  raft.Log
		want bool
	}{
		{"of a leader", raft.Log{Data: checkpoint}, true},
		{"another type", raft.Log{Type: raft.LogNoop, Data: checkpoint}, false},
		{"no data", raft.Log{}, false},
		{"commands", raft.Log{Data: command}, false},
		{"begins alike", raft.Log{Data: append(slices.Clone(checkpoint), 0)}, false},
		{"other extensions", raft.Log{Data: checkpoint, Extensions: []byte("x")}, false},
		{"other extensions of the same length", raft.Log{Data: checkpoint, Extensions: make([]byte, 24)}, false},
	} {
		if got, err := isCheckpoint(&tt.log); got != tt.want || err != nil {
			t.Errorf("%s: %v, %v; want %v", tt.name, got, err, tt.want)
		}
		l := tt.log
		l.Index = 1
		e := newEnd(t)
		if err := e.StoreLog(&l); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if tt.want {
			again := l // as it comes to a follower
			if got, err := isCheckpoint(&again); !got || err != nil || len(again.Extensions) == 0 {
				t.Errorf("%s: once stored: %v, %v, extensions %x", tt.name, got, err, again.Extensions)
			}
		}
		e.stop()
	}
}

func FuzzCheckpoint(f *testing.F) {
	f.Add(checkpoint, []byte{})
	f.Add(checkpoint, []byte("\x03\xa5\x92\x03\xd6\xf9\xd1\xaf0123456789abcdef"))
	f.Fuzz(func(t *testing.T, data, extensions []byte) {
		e := newEnd(t)
		defer e.stop()
		if err := e.StoreLog(&raft.Log{Index: 1, Data: data, Extensions: extensions}); err != nil {
			t.Errorf("%x with extensions %x: %v", data, extensions, err)
		}
	})
}

// discarding is a log that keeps nothing.
type discarding struct{ raft.LogStore }

func (discarding) StoreLogs([]*raft.Log) error { return nil }

// BenchmarkStoreVerified measures what is added to storing an entry of 256 KiB, some 500 commands.
func BenchmarkStoreVerified(b *testing.B) {
	v := newVerified(discarding{}, hclog.NewNullLogger())
	defer v.stop()
	l := &raft.Log{Data: make([]byte, 256<<10)}
	b.SetBytes(256 << 10)
	b.ReportAllocs()
	for b.Loop() {
		l.Index++
		if err := v.StoreLog(l); err != nil {
			b.Fatal(err)
		}
	}
}
