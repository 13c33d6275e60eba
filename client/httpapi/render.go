package httpapi

import (
	"net/http"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/sarnmesh/sarn/catalog"
)

// Lists of instances are the largest answers and the ones asked for most: by every client that resolves a name, and by
// thousands of watchers at once when an instance changes. So the bytes of such a list, and their compressed form, are
// made once and shared by all who are answered the same.
//
// "The same" is decided by identity: nodes, instances and checks read from a store are immutable and shared, so two
// lists of the same pointers are the same JSON. A kept list holds on to its objects, so no pointer can come to mean
// another object meanwhile. The key below only says where to look; a wrong guess costs a rendering, never a wrong
// answer.

const (
	maxRenderings     = 4096     // lists remembered
	maxRenderingBytes = 48 << 20 // of JSON, compressed forms included
)

// An instanceCache remembers rendered lists. The zero value is ready for use.
type instanceCache struct {
	mu    sync.Mutex
	lists map[renderKey]*renderSlot
	bytes atomic.Int64
}

type renderKey struct {
	path    string
	variant string // what narrows the list: tags, passing, …
}

// A renderSlot holds the newest rendering of one list. A slot is empty until its list is asked for again: most lists
// of a large catalog are asked for once.
type renderSlot struct {
	now atomic.Pointer[rendering]
	mu  sync.Mutex // held while rendering, so that a crowd of watchers renders once
	// gone tells that the slot was dropped and takes no more renderings.
	gone atomic.Bool
}

// A rendering is a list and its JSON.
type rendering struct {
	list []*catalog.Instance
	rendered
	zip sync.Once
}

// same reports whether list holds the objects of r.
func (r *rendering) same(list []*catalog.Instance) bool {
	if len(r.list) != len(list) {
		return false
	}
	for i, a := range list {
		b := r.list[i]
		if a != b && (a.Node != b.Node || a.Service != b.Service || !slices.Equal(a.Checks, b.Checks)) {
			return false
		}
	}
	return true
}

// renderInstances returns the value that writes list in the form of one.
func (s *Server) renderInstances(w http.ResponseWriter, list []*catalog.Instance, one func([]byte, *catalog.Instance) []byte) any {
	plain := listValue[*catalog.Instance]{list, one}
	rw := w.(*response)
	if len(list) == 0 {
		return plain
	}
	variant, ok := variantOf(&rw.params)
	if !ok || s.cfg.TranslateWANAddrs {
		return plain
	}
	slot := s.instances.slot(renderKey{rw.r.URL.Path, variant})
	if slot == nil {
		return plain
	}
	now := slot.now.Load()
	if now == nil || !now.same(list) {
		slot.mu.Lock()
		defer slot.mu.Unlock()
		if now = slot.now.Load(); now == nil || !now.same(list) {
			now = &rendering{list: list}
			now.json = plain.appendJSON(make([]byte, 0, 1024*len(list)))
			s.instances.replace(slot, now)
		}
	}
	if len(now.json) >= gzipFrom && acceptsGzip(rw.r.Header["Accept-Encoding"]) && !s.cfg.Dev && !rw.params.has("pretty") {
		now.zip.Do(func() {
			now.gzip = appendGzip(nil, now.json)
			s.instances.bytes.Add(int64(len(now.gzip)))
		})
		return &rendered{now.json, now.gzip}
	}
	return &rendered{json: now.json}
}

// variantOf returns the parameters that narrow a list, in their order. ok is false for those lists that differ from
// request to request and are not worth keeping.
func variantOf(q *params) (variant string, ok bool) {
	for _, p := range q.list {
		switch p.name {
		case "filter", "near", "node-meta", "merge-central-config":
			return "", false
		case "passing", "tag", "dc", "datacenter", "peer":
			variant += p.name + "=" + p.value + "&"
		}
	}
	return variant, true
}

// slot returns the slot of a list, nil the first time it is asked for.
func (c *instanceCache) slot(key renderKey) *renderSlot {
	c.mu.Lock()
	defer c.mu.Unlock()
	slot := c.lists[key]
	if slot != nil {
		return slot
	}
	if c.lists == nil {
		c.lists = map[renderKey]*renderSlot{}
	}
	for k, old := range c.lists { // any will do: an unlucky one is rendered again
		if len(c.lists) < maxRenderings && c.bytes.Load() < maxRenderingBytes {
			break
		}
		delete(c.lists, k)
		old.gone.Store(true)
		c.forget(old.now.Swap(nil))
	}
	c.lists[key] = new(renderSlot)
	return nil
}

// replace puts a rendering into its slot. The caller holds the slot's lock.
func (c *instanceCache) replace(slot *renderSlot, r *rendering) {
	c.bytes.Add(int64(len(r.json)))
	c.forget(slot.now.Swap(r))
	if slot.gone.Load() { // dropped meanwhile: whoever swaps r out counts it out
		c.forget(slot.now.Swap(nil))
	}
}

func (c *instanceCache) forget(r *rendering) {
	if r != nil {
		r.zip.Do(func() {}) // nobody compresses it from here on, so its size is final
		c.bytes.Add(-int64(len(r.json) + len(r.gzip)))
	}
}
