package quota_test

import (
	"sync"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/quota"
)

// fill takes as much as there is to be had.
func fill(s *quota.Share) {
	for s.Take(1) {
	}
}

func used(s *quota.Share) int64 {
	n, _ := s.Used()
	return n
}

func TestGreedLeavesRoom(t *testing.T) {
	for hogs := int64(1); hogs <= 5; hogs++ {
		p := quota.NewPool(600)
		all := make([]*quota.Share, hogs)
		for i := range all {
			all[i] = p.Share(0)
		}
		for more := true; more; {
			more = false
			for _, s := range all {
				if s.Take(1) {
					more = true
				}
			}
		}
		part := 600 / (hogs + 1)
		for _, s := range all {
			if n := used(s); n < part-1 || n > part+1 {
				t.Errorf("%d hogs: one holds %d, want %d", hogs, n, part)
			}
		}
		next := p.Share(0)
		fill(next)
		if n := used(next); n < part/2-1 {
			t.Errorf("%d hogs leave %d for the next, want %d", hogs, n, part/2)
		}
	}
}

func TestShareHasALimitOfItsOwn(t *testing.T) {
	p := quota.NewPool(100)
	s := p.Share(10)
	if s.Take(11) {
		t.Error("took 11 of 10")
	}
	fill(s)
	if n, refused := s.Used(); n != 10 || refused != 2 {
		t.Errorf("holds %d, refused %d; want 10, 2", n, refused)
	}
	s.Give(10)
	if n, total := p.Used(); n != 0 || total != 100 {
		t.Errorf("%d of %d taken after all was given back", n, total)
	}
}

func TestNoShareHasNoEnd(t *testing.T) {
	var s *quota.Share
	if !s.Take(1 << 62) {
		t.Error("refused")
	}
	s.Give(1 << 62)
}

func TestNothingIsLostBetweenThreads(t *testing.T) {
	p := quota.NewPool(50)
	var wg sync.WaitGroup
	for range 4 {
		s := p.Share(0)
		wg.Go(func() {
			for range 1000 {
				if s.Take(3) {
					s.Give(3)
				}
			}
			if n := used(s); n != 0 {
				t.Errorf("holds %d", n)
			}
		})
	}
	wg.Wait()
	if n, _ := p.Used(); n != 0 {
		t.Errorf("%d taken", n)
	}
}
