package consensus

import "testing"

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

// What waits is bounded too: the rest stays in the queue, and then callers wait.
func TestWaitingCommandsAreBounded(t *testing.T) {
	queue := make(chan *write, backlog)
	for range backlog {
		queue <- &write{size: 1}
	}
	q := &waiting{}
	q.addAll(queue)
	if len(q.writes) != maxBatch || len(queue) != backlog-maxBatch {
		t.Errorf("%d wait, %d are queued", len(q.writes), len(queue))
	}
	queue = make(chan *write, 10)
	for range 10 {
		queue <- &write{size: maxBatchBytes - 1}
	}
	q = &waiting{}
	q.addAll(queue)
	if len(q.writes) != 2 || len(queue) != 8 {
		t.Errorf("%d of a megabyte wait, %d are queued", len(q.writes), len(queue))
	}
}
