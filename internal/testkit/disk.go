package testkit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// ErrCrashed is what every operation on a crashed disk handle returns.
var ErrCrashed = errors.New("testkit: the machine crashed")

// A Disk keeps a server's Raft log, terms, votes and snapshots over crashes. One under way when the machine
// crashes is lost.
type Disk struct {
	syncTime atomic.Int64 // nanoseconds

	mu     sync.Mutex
	handle *Handle
	logs   map[uint64]raft.Log
	low    uint64
	high   uint64
	values map[string][]byte
	snaps  []snapshot // newest first
}

type snapshot struct {
	meta raft.SnapshotMeta
	data []byte
}

// NewDisk returns an empty disk.
func NewDisk() *Disk { return &Disk{logs: map[uint64]raft.Log{}, values: map[string][]byte{}} }

// SetSyncTime makes every write from now on take that long; at first it is nothing.
func (d *Disk) SetSyncTime(t time.Duration) { d.syncTime.Store(int64(t)) }

// A Handle is a disk as one life of a process sees it. It is a raft.LogStore, StableStore and SnapshotStore.
type Handle struct{ disk *Disk }

var (
	_ raft.LogStore      = (*Handle)(nil)
	_ raft.StableStore   = (*Handle)(nil)
	_ raft.SnapshotStore = (*Handle)(nil)
)

// Open returns a handle on what was synced; earlier handles crash.
func (d *Disk) Open() *Handle {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.handle = &Handle{d}
	return d.handle
}

// Crash makes every open handle fail and loses what was not synced.
func (d *Disk) Crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.handle = nil
}

// sync waits for the disk; then change runs, unless the machine has crashed meanwhile.
func (h *Handle) sync(change func() error) error {
	if d := h.disk.syncTime.Load(); d > 0 {
		time.Sleep(time.Duration(d))
	}
	return h.do(change)
}

func (h *Handle) do(f func() error) error {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	if h.disk.handle != h {
		return ErrCrashed
	}
	return f()
}

func (h *Handle) FirstIndex() (i uint64, err error) {
	err = h.do(func() error { i = h.disk.low; return nil })
	return i, err
}

func (h *Handle) LastIndex() (i uint64, err error) {
	err = h.do(func() error { i = h.disk.high; return nil })
	return i, err
}

func (h *Handle) GetLog(index uint64, log *raft.Log) error {
	return h.do(func() error {
		l, ok := h.disk.logs[index]
		if !ok {
			return raft.ErrLogNotFound
		}
		*log = l
		return nil
	})
}

func (h *Handle) StoreLog(log *raft.Log) error { return h.StoreLogs([]*raft.Log{log}) }

func (h *Handle) StoreLogs(logs []*raft.Log) error {
	return h.sync(func() error {
		d := h.disk
		for _, l := range logs {
			c := *l
			c.Data, c.Extensions = slices.Clone(l.Data), slices.Clone(l.Extensions)
			d.logs[l.Index] = c
			if d.low == 0 {
				d.low = l.Index
			}
			d.high = max(d.high, l.Index)
		}
		return nil
	})
}

func (h *Handle) DeleteRange(from, to uint64) error {
	return h.sync(func() error {
		d := h.disk
		for i := from; i <= to; i++ {
			delete(d.logs, i)
		}
		if from <= d.low {
			d.low = to + 1
		}
		if to >= d.high {
			d.high = from - 1
		}
		if d.low > d.high {
			d.low, d.high = 0, 0
		}
		return nil
	})
}

func (h *Handle) Set(key, val []byte) error {
	return h.sync(func() error { h.disk.values[string(key)] = slices.Clone(val); return nil })
}

func (h *Handle) Get(key []byte) (v []byte, err error) {
	err = h.do(func() error { v = slices.Clone(h.disk.values[string(key)]); return nil })
	return v, err
}

func (h *Handle) SetUint64(key []byte, val uint64) error {
	return h.Set(key, fmt.Appendf(nil, "%d", val))
}

func (h *Handle) GetUint64(key []byte) (n uint64, err error) {
	v, err := h.Get(key)
	if err != nil || v == nil {
		return 0, err
	}
	_, err = fmt.Sscanf(string(v), "%d", &n)
	return n, err
}

// Create begins a snapshot; it counts from its Close on.
func (h *Handle) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &sink{handle: h, meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d-%d", term, index, time.Now().UnixMilli()), Index: index, Term: term,
		Configuration: conf, ConfigurationIndex: confIndex,
	}}, nil
}

func (h *Handle) List() (metas []*raft.SnapshotMeta, err error) {
	err = h.do(func() error {
		for _, s := range h.disk.snaps {
			m := s.meta
			metas = append(metas, &m)
		}
		return nil
	})
	return metas, err
}

func (h *Handle) Open(id string) (meta *raft.SnapshotMeta, r io.ReadCloser, err error) {
	err = h.do(func() error {
		for _, s := range h.disk.snaps {
			if s.meta.ID == id {
				m := s.meta
				meta, r = &m, io.NopCloser(bytes.NewReader(s.data))
				return nil
			}
		}
		return fmt.Errorf("testkit: no snapshot %s", id)
	})
	return meta, r, err
}

type sink struct {
	handle *Handle
	meta   raft.SnapshotMeta
	buf    bytes.Buffer
	over   bool
}

func (s *sink) ID() string { return s.meta.ID }

func (s *sink) Write(b []byte) (int, error) { return s.buf.Write(b) }

func (s *sink) Cancel() error {
	s.over = true
	return nil
}

func (s *sink) Close() error {
	if s.over {
		return nil
	}
	s.over = true
	return s.handle.sync(func() error {
		s.meta.Size = int64(s.buf.Len())
		d := s.handle.disk
		d.snaps = append([]snapshot{{s.meta, s.buf.Bytes()}}, d.snaps...)
		d.snaps = d.snaps[:min(2, len(d.snaps))]
		return nil
	})
}
