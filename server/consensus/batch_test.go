package consensus

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func queued(sizes ...int) *waiting {
	q := &waiting{}
	for _, n := range sizes {
		q.add(&write{size: n})
	}
	return q
}

func repeat(n, size int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = size
	}
	return out
}

func TestBatchesAreBounded(t *testing.T) {
	for _, tt := range []struct {
		name  string
		sizes []int
		want  []int // commands of each batch
	}{
		{"one", []int{1}, []int{1}},
		{"many small ones", repeat(1200, 100), []int{512, 512, 176}},
		{"as large as may be", []int{maxBatchBytes / 2, maxBatchBytes / 2, 1}, []int{2, 1}},
		{"too large together", []int{maxBatchBytes/2 + 1, maxBatchBytes / 2, 1}, []int{1, 2}},
		{"one that is larger alone", []int{1, 3 * maxBatchBytes, 1}, []int{1, 1, 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := queued(tt.sizes...)
			all := q.writes
			for i, want := range tt.want {
				got := q.take()
				if len(got) != want || got[0] != all[0] {
					t.Fatalf("batch %d has %d commands or begins with another than the first; want %d", i, len(got), want)
				}
				all = all[want:]
			}
			if len(q.writes) != 0 || q.size != 0 {
				t.Errorf("%d commands of %d bytes are left", len(q.writes), q.size)
			}
		})
	}
}

func TestWhenABatchGoes(t *testing.T) {
	for _, tt := range []struct {
		name              string
		waiting           *waiting
		entries, commands int // under way
		want              bool
	}{
		{"nothing waits", queued(), 0, 0, false},
		{"nothing is under way", queued(1), 0, 0, true},
		{"few are under way", queued(1), 1, few - 1, true},
		{"more are under way", queued(1, 1, 1), 1, few, false},
		{"they take long", &waiting{writes: []*write{{}}, late: true}, 1, few, true},
		{"it is full of commands", queued(repeat(maxBatch, 1)...), 1, few, true},
		{"it is full of bytes", queued(maxBatchBytes), 1, few, true},
		{"all slots are taken", queued(repeat(maxBatch, 1)...), maxFlights, few - 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.waiting.mayGo(tt.entries, tt.commands); got != tt.want {
				t.Errorf("got %v", got)
			}
		})
	}
}

// What waits is bounded: then callers wait, until there is room, they give up or the batcher stops.
func TestWaitingCommandsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBatcher()
		b.entries = maxFlights // nothing goes
		for range backlog {
			if err := b.add(t.Context(), &write{size: 1}); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		given := make(chan error, 1)
		go func() { given <- b.add(ctx, &write{size: 1}) }()
		synctest.Wait()
		cancel()
		if err := <-given; !errors.Is(err, context.Canceled) {
			t.Errorf("who gave up got %v", err)
		}
		added := make(chan error, 2)
		for range 2 {
			go func() { added <- b.add(t.Context(), &write{size: 1}) }()
		}
		synctest.Wait()
		if len(added) != 0 || len(b.waiting.writes) != backlog {
			t.Fatalf("%d were added, %d wait", len(added), len(b.waiting.writes))
		}
		b.landed(0)
		if batch := b.next(); len(batch) != maxBatch {
			t.Errorf("%d went", len(batch))
		}
		for range 2 {
			if err := <-added; err != nil {
				t.Error(err)
			}
		}
		if n := len(b.waiting.writes); n != backlog-maxBatch+2 {
			t.Errorf("%d wait", n)
		}
		for n := len(b.waiting.writes); n < backlog; n++ {
			b.add(t.Context(), &write{size: 1})
		}
		go func() { added <- b.add(t.Context(), &write{size: 1}) }()
		synctest.Wait()
		if n := len(b.stop()); n != backlog {
			t.Errorf("%d are left at the end", n)
		}
		if err := <-added; !errors.Is(err, ErrStopped) {
			t.Errorf("who waits at the end got %v", err)
		}
		if err := b.add(t.Context(), &write{size: 1}); !errors.Is(err, ErrStopped) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// Whoever makes batches is told when one may go, and not of each command.
func TestBatcherIsToldWhenABatchMayGo(t *testing.T) {
	b := newBatcher()
	for i := range 2 * few {
		b.add(t.Context(), &write{size: 1})
		if told := len(b.more) == 1; told != (i == 0) {
			t.Fatalf("command %d: told %v", i, told)
		}
		if i == 0 {
			<-b.more
			if batch := b.next(); len(batch) != 1 {
				t.Fatalf("%d went", len(batch))
			}
			b.commands = few
		}
	}
	if b.next() != nil {
		t.Error("a batch goes while others are under way")
	}
	b.landed(few)
	if <-b.more; len(b.next()) != 2*few-1 {
		t.Error("not all went once nothing was under way")
	}
}
