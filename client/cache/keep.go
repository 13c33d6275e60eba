package cache

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/internal/rpc"
)

// Control says how old a kept answer may be (spec/state.md section 1.7, header Cache-Control).
type Control struct {
	MaxAge         time.Duration // an older answer is fetched again; 0 for any age
	MustRevalidate bool          // fetch again always
	StaleIfError   time.Duration // serve an answer younger than this when fetching fails; 0 for never
}

// A keptEntry is one answer of a call that can not block.
type keptEntry struct {
	used atomic.Int64

	fetching sync.Mutex // held while fetching, so that one fetch serves all who wait for it

	mu      sync.Mutex
	value   any
	fetched time.Time
}

// Keep is Get for calls that can not block: the answer is kept as it is until Control asks for a newer one. The answer
// is shared and must not be changed.
func Keep[Req, Resp any](ctx context.Context, c *Cache, m rpc.Method[Req, Resp], req *Req, ctl Control) (*Resp, Info, error) {
	key, _, err := keyOf(m, req)
	if err != nil {
		return nil, Info{}, err
	}
	asked := time.Now()
	e, err := c.keep(key)
	if err != nil {
		return nil, Info{}, err
	}
	if e == nil { // no room
		return direct(ctx, c, m, req)
	}
	usable := func(value any, fetched time.Time) bool {
		return value != nil && !ctl.MustRevalidate && (ctl.MaxAge <= 0 || time.Since(fetched) <= ctl.MaxAge)
	}
	value, fetched := e.load()
	if usable(value, fetched) {
		return value.(*Resp), kept(value, fetched), nil
	}
	e.fetching.Lock()
	defer e.fetching.Unlock()
	if value, fetched = e.load(); value != nil && fetched.After(asked) { // somebody else fetched while we waited
		return value.(*Resp), Info{Index: indexOf(value)}, nil
	}
	resp, info, err := direct(ctx, c, m, req)
	if err != nil {
		if value != nil && !refused(err) && time.Since(fetched) < ctl.StaleIfError {
			return value.(*Resp), kept(value, fetched), nil
		}
		return nil, Info{}, err
	}
	e.mu.Lock()
	e.value, e.fetched = resp, time.Now()
	e.mu.Unlock()
	return resp, info, nil
}

func kept(value any, fetched time.Time) Info {
	return Info{Hit: true, Age: time.Since(fetched), Index: indexOf(value)}
}

func (e *keptEntry) load() (any, time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.value, e.fetched
}

// keep returns the kept entry of key, nil when there is no room for one.
func (c *Cache) keep(key string) (*keptEntry, error) {
	c.mu.Lock()
	if c.stopped {
		c.mu.Unlock()
		return nil, ErrStopped
	}
	e := c.kept[key]
	var gone []*entry
	if e == nil {
		if len(c.entries)+len(c.kept) >= c.cfg.MaxEntries {
			gone = c.makeRoomLocked()
		}
		if len(c.entries)+len(c.kept) < c.cfg.MaxEntries {
			e = new(keptEntry)
			c.kept[key] = e
		}
	}
	if e != nil {
		e.used.Store(int64(time.Since(c.start)))
	}
	c.mu.Unlock()
	end(gone)
	return e, nil
}
