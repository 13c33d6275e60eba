package consensus

import (
	"sync"

	"github.com/hashicorp/raft"
)

// Bounds of a cache. Followers that keep up ask for nothing older, and others are sent what is on disk.
const (
	maxCached      = 512
	maxCachedBytes = 1 << 20
)

// A cache keeps the newest entries of a log in memory: those that are about to be applied or sent to followers.
type cache struct {
	raft.LogStore

	mu sync.RWMutex
	// entries has those from the index low to the index high, at their index modulo maxCached; size is what they take.
	entries   [maxCached]raft.Log
	low, high uint64
	size      int
}

func newCache(logs raft.LogStore) *cache { return &cache{LogStore: logs, low: 1} }

// IsMonotonic implements raft.MonotonicLogStore.
func (c *cache) IsMonotonic() bool {
	m, ok := c.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// GetLog implements raft.LogStore.
func (c *cache) GetLog(index uint64, l *raft.Log) error {
	c.mu.RLock()
	e := &c.entries[index%maxCached]
	if e.Index == index && index != 0 {
		*l = *e
		c.mu.RUnlock()
		return nil
	}
	c.mu.RUnlock()
	return c.LogStore.GetLog(index, l)
}

// StoreLog implements raft.LogStore.
func (c *cache) StoreLog(l *raft.Log) error { return c.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore. Only what is stored is kept.
func (c *cache) StoreLogs(logs []*raft.Log) error {
	if err := c.LogStore.StoreLogs(logs); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range logs {
		if l.Index != c.high+1 {
			c.drop(c.high)
			c.low, c.high = l.Index, l.Index-1
		}
		if c.high-c.low+1 == maxCached {
			c.drop(c.low)
		}
		c.entries[l.Index%maxCached] = *l
		c.high, c.size = l.Index, c.size+bytesOf(l)
		for c.size > maxCachedBytes && c.low < c.high {
			c.drop(c.low)
		}
	}
	return nil
}

// DeleteRange implements raft.LogStore.
func (c *cache) DeleteRange(from, to uint64) error {
	c.mu.Lock()
	switch {
	case from <= c.low:
		c.drop(to)
	case from <= c.high:
		c.drop(c.high) // what is kept has no gaps
	}
	c.mu.Unlock()
	return c.LogStore.DeleteRange(from, to)
}

// drop forgets what is kept up to an index.
func (c *cache) drop(to uint64) {
	for ; c.low <= c.high && c.low <= to; c.low++ {
		e := &c.entries[c.low%maxCached]
		c.size -= bytesOf(e)
		*e = raft.Log{}
	}
}

func bytesOf(l *raft.Log) int { return len(l.Data) + len(l.Extensions) }
