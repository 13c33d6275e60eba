package consensus

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/hashicorp/raft"
)

// What a cache answers is what the log holds, whatever is done to it, and it keeps no more than it may.
func TestCacheAnswersAsTheLog(t *testing.T) {
	seeds := uint64(50)
	if testing.Short() {
		seeds = 8
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 1))
		store := raft.NewInmemStore()
		c := newCache(store)
		last := uint64(0)
		for step := range 300 {
			switch n := r.IntN(20); {
			case n < 16: // entries are appended
				var logs []*raft.Log
				for range 1 + r.IntN(64) {
					last++
					logs = append(logs, &raft.Log{Index: last, Term: uint64(step), Data: make([]byte, r.IntN(1<<r.IntN(19)))})
				}
				if err := c.StoreLogs(logs); err != nil {
					t.Fatal(err)
				}
			case n < 18: // a new leader has others
				from := last - min(last, uint64(r.IntN(700)))
				if err := c.DeleteRange(from+1, last); err != nil {
					t.Fatal(err)
				}
				last = from
			case n < 19: // a snapshot replaces the oldest
				first, err := store.FirstIndex()
				if err != nil {
					t.Fatal(err)
				}
				if first == 0 || first > last { // it is empty
					continue
				}
				if err := c.DeleteRange(first, first+r.Uint64N(last-first+1)); err != nil {
					t.Fatal(err)
				}
			default: // a snapshot from elsewhere replaces all
				if err := c.DeleteRange(1, last); err != nil {
					t.Fatal(err)
				}
				last += uint64(r.IntN(1000))
			}
			size, kept := 0, 0
			for index := last - min(last, 1200); index <= last+2; index++ {
				var got, want raft.Log
				gerr, werr := c.GetLog(index, &got), store.GetLog(index, &want)
				if !errors.Is(gerr, werr) || got.Index != want.Index || got.Term != want.Term || !bytes.Equal(got.Data, want.Data) {
					t.Fatalf("seed %d: entry %d is %d of term %d, %v; want %d of term %d, %v", seed, index, got.Index, got.Term, gerr, want.Index, want.Term, werr)
				}
			}
			for i := range c.entries {
				if e := &c.entries[i]; e.Index != 0 {
					size, kept = size+bytesOf(e), kept+1
				}
			}
			if size != c.size || kept != int(c.high+1-c.low) || size > maxCachedBytes && kept > 1 {
				t.Fatalf("seed %d: keeps %d entries of %d bytes, counts %d of %d", seed, kept, size, c.high+1-c.low, c.size)
			}
		}
	}
}

// An entry that is larger than all a cache may keep is kept while it is the newest: it is applied at once.
func TestCacheKeepsTheNewestEntry(t *testing.T) {
	c := newCache(raft.NewInmemStore())
	for index := range uint64(3) {
		if err := c.StoreLog(&raft.Log{Index: index + 1, Data: make([]byte, maxCachedBytes+1)}); err != nil {
			t.Fatal(err)
		}
	}
	if c.low != 3 || c.high != 3 {
		t.Errorf("keeps entries %d to %d, want only the third", c.low, c.high)
	}
}

// A log that could not store entries is not spoken for.
func TestCacheKeepsOnlyWhatIsStored(t *testing.T) {
	c := newCache(refusing{raft.NewInmemStore()})
	if err := c.StoreLog(&raft.Log{Index: 1}); err == nil {
		t.Error("no error")
	}
	if err := c.GetLog(1, new(raft.Log)); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("got %v", err)
	}
}

type refusing struct{ *raft.InmemStore }

func (refusing) StoreLogs([]*raft.Log) error { return errors.New("the disk is full") }
