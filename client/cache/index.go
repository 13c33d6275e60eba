package cache

import (
	"context"
	"sync"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// An Index looks up the views of one method by a small key of the caller's, for those who look up very often: a lookup
// encodes nothing and allocates nothing. Its views are those of Get and Watch.
type Index[K comparable, Req, Resp any] struct {
	c       *Cache
	method  rpc.Method[Req, Resp]
	request func(K) *Req

	mu    sync.RWMutex
	views map[K]*entry
}

// NewIndex returns an index that makes the request of a key with request, which must give equal keys equal requests.
func NewIndex[K comparable, Req, Resp any](c *Cache, m rpc.Method[Req, Resp], request func(K) *Req) *Index[K, Req, Resp] {
	return &Index[K, Req, Resp]{c: c, method: m, request: request, views: map[K]*entry{}}
}

// Peek returns the answer of the view of k if there is one already. It never waits, and does not make a view.
func (x *Index[K, Req, Resp]) Peek(k K) (*Resp, Info, bool) {
	x.mu.RLock()
	e := x.views[k]
	x.mu.RUnlock()
	if e == nil {
		return nil, Info{}, false
	}
	return peek[Resp](e)
}

// Get returns the answer of the view of k, making the view if there is none.
func (x *Index[K, Req, Resp]) Get(ctx context.Context, k K) (*Resp, Info, error) {
	made := false // by us, as in the other Get
	for {
		e, fresh, err := x.view(k)
		if err != nil {
			return nil, Info{}, err
		}
		if e == nil {
			return direct(ctx, x.c, x.method, x.request(k))
		}
		made = made || fresh
		resp, info, err := get[Resp](ctx, x.c, e, read.Options{})
		if err == errEvicted {
			continue
		}
		info.Hit = info.Hit && !made
		return resp, info, err
	}
}

// view returns the view of k, nil when there is no room for it, and whether it was made just now.
func (x *Index[K, Req, Resp]) view(k K) (e *entry, made bool, err error) {
	x.mu.RLock()
	e = x.views[k]
	x.mu.RUnlock()
	if e != nil {
		return e, false, nil
	}
	req := x.request(k)
	key, _, err := keyOf(x.method, req)
	if err != nil {
		return nil, false, err
	}
	e, err = x.c.view(key, false, func() *entry {
		made = true
		return newEntry(x.c, key, x.method, req)
	})
	if err == nil && e != nil {
		x.put(k, e)
	}
	return e, made, err
}

// put remembers the view of k until it leaves the cache.
func (x *Index[K, Req, Resp]) put(k K, e *entry) {
	forget := func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.views[k] == e {
			delete(x.views, k)
		}
	}
	x.mu.Lock()
	x.views[k] = e
	x.mu.Unlock()
	e.mu.Lock()
	ended := e.ended
	if !ended {
		e.forget = append(e.forget, forget)
	}
	e.mu.Unlock()
	if ended {
		forget()
	}
}
