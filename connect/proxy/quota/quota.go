// Package quota divides what a process has among proxies that share it, so that
// one that is overloaded leaves enough for the others.
//
// Nobody has a fixed part. Who wants more gets it as long as it holds no more
// than what is still free: one alone may take half, two may take a third each,
// and whatever n of them do, an n-th and first part stays free for who comes next.
package quota

import "sync"

// A Pool is what there is of one thing: connections, or bytes.
type Pool struct {
	total int64

	mu   sync.Mutex
	used int64
}

// NewPool returns a pool of total pieces.
func NewPool(total int64) *Pool { return &Pool{total: total} }

// Used returns how much of the pool is taken, and how much there is.
func (p *Pool) Used() (used, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used, p.total
}

// Share returns the part of one who takes from the pool; limit is the most that
// it may ever hold, 0 is no limit of its own.
func (p *Pool) Share(limit int64) *Share { return &Share{pool: p, limit: limit} }

// A Share is what one proxy holds. A nil Share gives without end.
type Share struct {
	pool  *Pool
	limit int64

	used    int64 // guarded by pool.mu
	refused uint64
}

// Take takes n pieces, or none if that would be more than a fair part.
func (s *Share) Take(n int64) bool {
	if s == nil {
		return true
	}
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.limit > 0 && s.used+n > s.limit || s.used+n > p.total-p.used {
		s.refused++
		return false
	}
	s.used += n
	p.used += n
	return true
}

// Give gives n pieces back.
func (s *Share) Give(n int64) {
	if s == nil || n == 0 {
		return
	}
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	s.used -= n
	p.used -= n
}

// Used returns how much is held, and how often more was refused.
func (s *Share) Used() (used int64, refused uint64) {
	if s == nil {
		return 0, 0
	}
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	return s.used, s.refused
}
