package mvcc_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/internal/mvcc"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// A row is kept by its raw key, as one of a group, and by its rank if that is not zero.
type row struct {
	key   string
	group string
	value int
}

func newTable() *mvcc.Table[*row] {
	return mvcc.NewTable("row",
		func(buf []byte, r *row) ([]byte, bool) { return append(buf, r.key...), true },
		mvcc.Index[*row]{Name: "group", Key: func(buf []byte, r *row) ([]byte, bool) {
			return mvcc.String(buf, r.group), r.group != ""
		}})
}

func keysOf(rows []*row) (all []string) {
	for _, r := range rows {
		all = append(all, r.key)
	}
	return all
}

// A model is the naive form of the table.
type model map[string]row

func (m model) prefix(p string) (all []string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if strings.HasPrefix(k, p) {
			all = append(all, k)
		}
	}
	return all
}

func (m model) group(g string) (all []string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if m[k].group == g {
			all = append(all, k)
		}
	}
	return all
}

func randomKey(r *rand.Rand) string {
	// Few bytes and short: keys that are prefixes of others, and nodes that are split and joined, are frequent.
	b := make([]byte, r.IntN(7))
	for i := range b {
		b[i] = "abc"[r.IntN(3)]
	}
	if r.IntN(8) == 0 {
		return string(b) + string([]byte{byte(r.IntN(256)), byte(r.IntN(256))})
	}
	return string(b)
}

func check(t *testing.T, table *mvcc.Table[*row], tx *mvcc.Txn, m model, probe []string) {
	t.Helper()
	for _, p := range probe {
		got, ok := table.Peek(tx, "id", []byte(p))
		want, exists := m[p]
		if ok != exists || ok && *got != want {
			t.Fatalf("%q: got %v %v, want %v %v", p, got, ok, want, exists)
		}
		if got, want := keysOf(slices.Collect(table.PeekPrefix(tx, "id", []byte(p)))), m.prefix(p); !slices.Equal(got, want) {
			t.Fatalf("prefix %q: got %q, want %q", p, got, want)
		}
		var path []string
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if strings.HasPrefix(p, k) {
				path = append(path, k)
			}
		}
		if got := keysOf(slices.Collect(table.Path(tx, "id", []byte(p)))); !slices.Equal(got, path) {
			t.Fatalf("path to %q: got %q, want %q", p, got, path)
		}
		l, ok := table.Longest(tx, "id", []byte(p))
		if ok != (len(path) > 0) || ok && l.key != path[len(path)-1] {
			t.Fatalf("longest prefix of %q: got %v, want the last of %q", p, l, path)
		}
	}
	for _, g := range []string{"x", "y", "z"} {
		if got, want := keysOf(slices.Collect(table.PeekGet(tx, "group", mvcc.String(nil, g)))), m.group(g); !slices.Equal(got, want) {
			t.Fatalf("group %q: got %q, want %q", g, got, want)
		}
	}
}

// TestTableAgreesWithModel does random transactions with savepoints, and checks that tables hold what a map would, that
// old snapshots never change, and that watches fire for exactly the changes they must not miss.
func TestTableAgreesWithModel(t *testing.T) {
	seed := testkit.Seed(t)
	for round := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, round))
		table := newTable()
		db := mvcc.NewDB(table)
		m := model{}
		type old struct {
			tx *mvcc.Txn
			m  model
		}
		var snapshots []old
		for range 40 {
			// Watches of the state before.
			type watch struct {
				what string
				tx   *mvcc.Txn
				read func(m model) string // what the watch is about
				must string
			}
			var watches []watch
			for range 6 {
				k := randomKey(r)
				w := watch{tx: db.Read(true)}
				switch r.IntN(3) {
				case 0:
					w.what = fmt.Sprintf("key %q", k)
					table.First(w.tx, "id", []byte(k))
					w.read = func(m model) string { return fmt.Sprint(m[k]) }
				case 1:
					w.what = fmt.Sprintf("prefix %q", k)
					table.Prefix(w.tx, "id", []byte(k))
					w.read = func(m model) string {
						s := ""
						for _, p := range m.prefix(k) {
							s += fmt.Sprint(m[p])
						}
						return s
					}
				default:
					g := "xyz"[r.IntN(3):][:1]
					w.what = "group " + g
					table.Get(w.tx, "group", mvcc.String(nil, g))
					w.read = func(m model) string {
						s := ""
						for _, p := range m.group(g) {
							s += fmt.Sprint(m[p])
						}
						return s
					}
				}
				w.must = w.read(m)
				watches = append(watches, w)
			}
			tx := db.Write()
			next := maps.Clone(m)
			var marks []int
			var saved []model
			for range r.IntN(12) {
				switch r.IntN(10) {
				case 0:
					marks, saved = append(marks, tx.Savepoint()), append(saved, maps.Clone(next))
				case 1:
					if n := len(marks); n > 0 {
						tx.RollbackTo(marks[n-1])
						next = saved[n-1]
						marks, saved = marks[:n-1], saved[:n-1]
					}
				case 2, 3, 4:
					k := randomKey(r)
					_, was := next[k]
					if table.Delete(tx, &row{key: k}) != was {
						t.Fatalf("seed %d round %d: delete of %q", seed, round, k)
					}
					delete(next, k)
				default:
					o := row{key: randomKey(r), group: []string{"", "x", "y", "z"}[r.IntN(4)], value: r.Int()}
					table.Insert(tx, &o)
					next[o.key] = o
				}
			}
			probe := []string{""}
			for range 8 {
				probe = append(probe, randomKey(r))
			}
			check(t, table, tx, next, probe)
			if r.IntN(5) == 0 {
				tx.Abort()
			} else {
				tx.Commit()
				m = next
			}
			for _, w := range watches {
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				fired := w.tx.Wait(ctx) == nil
				if !fired && w.read(m) != w.must {
					t.Fatalf("seed %d round %d: a change of %s woke nobody", seed, round, w.what)
				}
			}
			snapshots = append(snapshots, old{db.Read(false), maps.Clone(m)})
		}
		for _, s := range snapshots {
			check(t, table, s.tx, s.m, []string{"", "a", "ab", "abc", "b"})
		}
		if t.Failed() {
			t.Fatalf("seed %d round %d", seed, round)
		}
	}
}

// A touched set has the keys that were written, and the groups that these were in before or are in now.
type touched struct{ keys, groups map[string]bool }

// TestWritesWakeExactlyWhoWatchesThem has standing waiters on keys, prefixes and groups, there or not, and checks after
// each of many random transactions that those were woken whose place it wrote, and nobody else.
func TestWritesWakeExactlyWhoWatchesThem(t *testing.T) {
	seed := testkit.Seed(t)
	done, cancel := context.WithCancel(t.Context())
	cancel()
	for round := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, round))
		table := newTable()
		db := mvcc.NewDB(table)
		m := model{}
		type standing struct {
			what  string
			w     *mvcc.Waiter
			wrote func(x touched) bool
		}
		begin := func() standing {
			tx, k := db.Read(true), randomKey(r)
			s := standing{}
			switch r.IntN(4) {
			case 0, 1:
				s.what = fmt.Sprintf("key %q", k)
				table.First(tx, "id", []byte(k))
				s.wrote = func(x touched) bool { return x.keys[k] }
			case 2:
				s.what = fmt.Sprintf("prefix %q", k)
				table.Prefix(tx, "id", []byte(k))
				s.wrote = func(x touched) bool {
					for key := range x.keys {
						if strings.HasPrefix(key, k) {
							return true
						}
					}
					return false
				}
			default:
				g := "vwxyz"[r.IntN(5):][:1]
				s.what = "group " + g
				table.Get(tx, "group", mvcc.String(nil, g))
				s.wrote = func(x touched) bool { return x.groups[g] }
			}
			s.w = tx.Waiter()
			return s
		}
		var all []standing
		for range 30 {
			for len(all) < 12 {
				all = append(all, begin())
			}
			x := touched{map[string]bool{}, map[string]bool{}}
			touch := func(o row) { x.keys[o.key], x.groups[o.group] = true, true }
			tx := db.Write()
			for range r.IntN(4) {
				if r.IntN(3) == 0 {
					k := randomKey(r)
					if old, was := m[k]; was {
						touch(old)
						table.Delete(tx, &row{key: k})
						delete(m, k)
					}
					continue
				}
				o := row{key: randomKey(r), group: []string{"", "x", "y", "z"}[r.IntN(4)], value: r.Int()}
				if old, was := m[o.key]; was {
					touch(old)
				}
				touch(o)
				table.Insert(tx, &o)
				m[o.key] = o
			}
			tx.Commit()
			left := all[:0]
			for _, s := range all {
				woken, wrote := s.w.Wait(done) == nil, s.wrote(x)
				if woken != wrote {
					t.Fatalf("seed %d round %d: %s was woken: %v, written: %v (%v)", seed, round, s.what, woken, wrote, x)
				}
				if woken || r.IntN(10) == 0 {
					s.w.Close()
				} else {
					left = append(left, s)
				}
			}
			all = left
		}
		for _, s := range all {
			s.w.Close()
		}
		if n := mvcc.Watched(db); n != 0 {
			t.Fatalf("seed %d round %d: %d places are watched by nobody", seed, round, n)
		}
	}
}

// TestNoChangeIsMissedBetweenReadAndWait writes one key from several goroutines while others wait for it to reach a value.
func TestNoChangeIsMissedBetweenReadAndWait(t *testing.T) {
	const last = 2000
	table := newTable()
	db := mvcc.NewDB(table)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for {
				tx := db.Read(true)
				var r *row
				var ok bool
				if i%2 == 0 {
					r, ok = table.First(tx, "id", []byte("ab"))
				} else {
					for r = range table.Prefix(tx, "id", []byte("a")) {
						ok = true
					}
				}
				if ok && r.value == last {
					return
				}
				if err := tx.Wait(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := 1; i <= last; i++ {
		tx := db.Write()
		table.Insert(tx, &row{key: "b", value: i}) // a neighbour
		if i%3 == 0 && i != last {
			table.Delete(tx, &row{key: "ab"})
		} else {
			table.Insert(tx, &row{key: "ab", value: i})
		}
		tx.Commit()
	}
	wg.Wait()
	if n := mvcc.Watched(db); n != 0 {
		t.Errorf("%d places are watched by nobody", n)
	}
}

// waits reports whether the transaction's watches have not fired.
func waits(tx interface{ Wait(context.Context) error }) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return tx.Wait(ctx) != nil
}

func TestWatchIsNarrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable()
		db := mvcc.NewDB(table)
		put := func(keys ...string) {
			tx := db.Write()
			for _, k := range keys {
				table.Insert(tx, &row{key: k})
			}
			tx.Commit()
		}
		put("a", "a/b", "a/b/1", "a/b/2", "c")
		watch := func(read func(tx *mvcc.Txn)) *mvcc.Txn {
			tx := db.Read(true)
			read(tx)
			return tx
		}
		key := watch(func(tx *mvcc.Txn) { table.First(tx, "id", []byte("a/b")) })
		prefix := watch(func(tx *mvcc.Txn) { table.Prefix(tx, "id", []byte("a/b/")) })
		other := watch(func(tx *mvcc.Txn) { table.First(tx, "id", []byte("c")) })
		peek := watch(func(tx *mvcc.Txn) { table.Peek(tx, "id", []byte("a/b/3")) })
		absent := watch(func(tx *mvcc.Txn) { table.First(tx, "id", []byte("a/y")) }).Waiter()
		empty := watch(func(tx *mvcc.Txn) { table.Prefix(tx, "id", []byte("a/x/")) }).Waiter()
		defer absent.Close()
		defer empty.Close()
		put("a/b/3", "a/x", "a")
		if !waits(key) || !waits(other) || !waits(peek) || !waits(absent) || !waits(empty) {
			t.Error("woken by other keys")
		}
		if waits(prefix) {
			t.Error("a new key under the prefix woke nobody")
		}
		put("a/b", "a/y", "a/x/1")
		if waits(key) || waits(absent) || waits(empty) {
			t.Error("a change of the key woke nobody")
		}
	})
}

func TestWaitEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable()
		db := mvcc.NewDB(table)
		for _, places := range []int{0, 1, 4, 5, 100} {
			tx := db.Write()
			for i := range places {
				table.Insert(tx, &row{key: fmt.Sprint("k", i)})
			}
			tx.Commit()
			read := db.Read(true)
			for i := range places {
				table.First(read, "id", []byte(fmt.Sprint("k", i)))
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if err := read.Wait(ctx); err != context.DeadlineExceeded {
				t.Errorf("%d places: got %v", places, err)
			}
			cancel()
			if places == 0 {
				continue
			}
			woken := make(chan error)
			go func() { woken <- read.Wait(t.Context()) }()
			synctest.Wait()
			tx = db.Write()
			table.Insert(tx, &row{key: fmt.Sprint("k", places-1), value: 1})
			tx.Commit()
			if err := <-woken; err != nil {
				t.Errorf("%d places: got %v", places, err)
			}
		}
	})
}

func TestAbortedChangesAreGone(t *testing.T) {
	table := newTable()
	db := mvcc.NewDB(table)
	tx := db.Write()
	table.Insert(tx, &row{key: "a"})
	tx.Abort()
	tx.Commit() // does nothing
	if _, ok := table.Peek(db.Read(false), "id", []byte("a")); ok {
		t.Error("an aborted change can be read")
	}
	tx = db.Write() // is not blocked
	tx.Commit()
	tx.Abort()
	defer func() {
		if recover() == nil {
			t.Error("a change after Commit did not panic")
		}
	}()
	table.Insert(tx, &row{key: "a"})
}

func TestReadersBesideAWriter(t *testing.T) {
	table := newTable()
	db := mvcc.NewDB(table)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				// Every transaction writes all keys with one value.
				tx, first := db.Read(true), -1
				for r := range table.All(tx, "id") {
					if first >= 0 && r.value != first {
						t.Errorf("one snapshot has %d and %d", first, r.value)
						return
					}
					first = r.value
				}
			}
		})
	}
	for i := range 300 {
		tx := db.Write()
		for k := range 20 {
			table.Insert(tx, &row{key: fmt.Sprint(k), value: i})
		}
		tx.Commit()
	}
	close(done)
	wg.Wait()
}

func BenchmarkInsert(b *testing.B) {
	table := newTable()
	db := mvcc.NewDB(table)
	rows := make([]*row, 10000)
	for i := range rows {
		rows[i] = &row{key: fmt.Sprintf("some/key/%05d", i), group: fmt.Sprint("g", i%100)}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		tx := db.Write()
		table.Insert(tx, rows[i%len(rows)])
		tx.Commit()
	}
}

func BenchmarkFirst(b *testing.B) {
	table := newTable()
	db := mvcc.NewDB(table)
	tx := db.Write()
	for i := range 10000 {
		table.Insert(tx, &row{key: fmt.Sprintf("some/key/%05d", i)})
	}
	tx.Commit()
	key := []byte("some/key/07777")
	for _, watch := range []bool{false, true} {
		b.Run(fmt.Sprint("watch=", watch), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := table.First(db.Read(watch), "id", key); !ok {
					b.Fatal("missing")
				}
			}
		})
	}
}

// BenchmarkWake measures a change that wakes a thousand who wait for it, among others who do not, and their coming back.
func BenchmarkWake(b *testing.B) {
	table := newTable()
	db := mvcc.NewDB(table)
	const waiters = 1000
	var ready, wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	wait := func(key string, back bool) {
		for {
			tx := db.Read(true)
			table.First(tx, "id", []byte(key))
			w := tx.Waiter()
			ready.Done()
			if w.Wait(ctx) != nil || !back {
				w.Close()
				return
			}
			w.Close()
		}
	}
	ready.Add(2 * waiters)
	for i := range waiters {
		wg.Go(func() { wait("key", true) })
		wg.Go(func() { wait(fmt.Sprint("other", i), false) })
	}
	ready.Wait()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		ready.Add(waiters)
		tx := db.Write()
		table.Insert(tx, &row{key: "key", value: i})
		tx.Commit()
		ready.Wait()
	}
	cancel()
	wg.Wait()
}

// What a fork changes nobody else sees, whatever is written meanwhile, and it keeps no writer waiting.
func TestForksAreOnTheirOwn(t *testing.T) {
	table := newTable()
	db := mvcc.NewDB(table)
	set := func(tx *mvcc.Txn, key string, value int) { table.Insert(tx, &row{key: key, value: value}) }
	tx := db.Write()
	set(tx, "a", 1)
	set(tx, "ab", 2)
	tx.Commit()
	base := db.Read(false)
	one, two := base.Fork(), base.Fork()
	set(one, "a", 10)
	table.Delete(two, &row{key: "ab"})
	nested := one.Fork()
	set(nested, "c", 3)
	tx = db.Write()
	set(tx, "a", 5)
	tx.Commit()
	set(one, "abc", 11)
	one.Commit()
	two.Abort()
	for _, tt := range []struct {
		name string
		tx   *mvcc.Txn
		want model
	}{
		{"what was forked", base, model{"a": {key: "a", value: 1}, "ab": {key: "ab", value: 2}}},
		{"the first fork", one, model{"a": {key: "a", value: 10}, "ab": {key: "ab", value: 2}, "abc": {key: "abc", value: 11}}},
		{"the second fork", two, model{"a": {key: "a", value: 1}}},
		{"a fork of a fork", nested, model{"a": {key: "a", value: 10}, "ab": {key: "ab", value: 2}, "c": {key: "c", value: 3}}},
		{"the database", db.Read(false), model{"a": {key: "a", value: 5}, "ab": {key: "ab", value: 2}}},
	} {
		t.Run(tt.name, func(t *testing.T) { check(t, table, tt.tx, tt.want, []string{"a", "ab", "abc", "c"}) })
	}
}
