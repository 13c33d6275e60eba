// Package accesslog writes a line about each connection that ended.
package accesslog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// A Log renders entries and hands them to a writer. Make one with Compile.
type Log struct {
	passes func(*Entry) bool // nil lets all through
	text   *Format
	json   *JSON
	record *record // of a collector
	out    io.Writer
}

// Compile prepares a log that writes to out. With a nil writer it only checks
// the configuration.
func Compile(m *model.AccessLog, out io.Writer) (*Log, error) {
	l := &Log{out: out}
	if m.Filter != nil {
		var err error
		if l.passes, err = CompileFilter(m.Filter); err != nil {
			return nil, err
		}
	}
	if m.Collector != nil {
		r, err := compileRecord(m.Collector)
		if err != nil {
			return nil, err
		}
		l.record = r
		return l, nil
	}
	if m.JSON != nil {
		j, err := CompileJSON(m.JSON, m.OmitEmpty)
		if err != nil {
			return nil, err
		}
		l.json = j
		return l, nil
	}
	text := m.Text
	if text == "" {
		text = DefaultFormat
	}
	f, err := ParseFormat(text)
	if err != nil {
		return nil, err
	}
	l.text = f
	return l, nil
}

// maxDepth bounds how deep filters and JSON formats nest.
const maxDepth = 32

// A JSON renders entries as one JSON value. Make one with CompileJSON.
type JSON struct{ root node }

// node appends a JSON value; false: it is not known.
type node func(b []byte, e *Entry) ([]byte, bool)

// CompileJSON prepares a tree of map[string]any, []any, string, float64, bool and nil, with format strings at its
// leaves. Fields that are not known are null, or left out.
func CompileJSON(tree any, omit bool) (*JSON, error) {
	root, err := compileNode(tree, omit, 0)
	if err != nil {
		return nil, err
	}
	return &JSON{root}, nil
}

// Append adds the rendered entry to b.
func (j *JSON) Append(b []byte, e *Entry) []byte {
	b, _ = j.root(b, e)
	return b
}

func compileNode(v any, omit bool, depth int) (node, error) {
	if depth > maxDepth {
		return nil, errors.New("JSON format nests too deep")
	}
	switch v := v.(type) {
	case string:
		f, err := ParseFormat(v)
		if err != nil {
			return nil, err
		}
		return f.json, nil
	case map[string]any:
		type member struct {
			key []byte // with quotes and colon
			n   node
		}
		var members []member
		for _, k := range slices.Sorted(maps.Keys(v)) {
			n, err := compileNode(v[k], omit, depth+1)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k, err)
			}
			key, err := json.Marshal(k)
			if err != nil {
				return nil, err
			}
			members = append(members, member{append(key, ':'), n})
		}
		return func(b []byte, e *Entry) ([]byte, bool) {
			b = append(b, '{')
			start := len(b)
			for i := range members {
				before := len(b)
				if before > start {
					b = append(b, ',')
				}
				b = append(b, members[i].key...)
				var ok bool
				if b, ok = members[i].n(b, e); !ok && omit {
					b = b[:before]
				}
			}
			return append(b, '}'), true
		}, nil
	case []any:
		var items []node
		for i, x := range v {
			n, err := compileNode(x, omit, depth+1)
			if err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
			items = append(items, n)
		}
		return func(b []byte, e *Entry) ([]byte, bool) {
			b = append(b, '[')
			for i, n := range items {
				if i > 0 {
					b = append(b, ',')
				}
				b, _ = n(b, e)
			}
			return append(b, ']'), true
		}, nil
	}
	constant, err := json.Marshal(v)
	return func(b []byte, _ *Entry) ([]byte, bool) { return append(b, constant...), true }, err
}

// json appends a format as a JSON value: a number if it is one operator that gives a number, null if it is one that
// gives nothing, else a string.
func (f *Format) json(b []byte, e *Entry) ([]byte, bool) {
	if len(f.parts) == 1 && f.parts[0].op.append != nil {
		p := &f.parts[0]
		if p.op.number {
			if b, ok := p.value(b, e, false); ok {
				return b, true
			}
			return append(b, "null"...), false
		}
		n := len(b)
		b, ok := p.value(append(b, '"'), e, false)
		if !ok {
			return append(b[:n], "null"...), false
		}
		return quote(b, n+1), true
	}
	n := len(b)
	return quote(f.render(append(b, '"'), e, "-", false), n+1), true
}

// quote makes b[from:] the inside of a JSON string and closes it.
func quote(b []byte, from int) []byte {
	clean := true
	for _, c := range b[from:] {
		if c < 0x20 || c == '"' || c == '\\' || c >= 0x7f {
			clean = false
			break
		}
	}
	if !clean {
		out, err := json.Marshal(string(b[from:]))
		if err != nil {
			return append(b[:from], '"')
		}
		return append(b[:from-1], out...)
	}
	return append(b, '"')
}

var lines = sync.Pool{New: func() any { return new([]byte) }}

// Write logs the entry if the filter lets it through.
func (l *Log) Write(e *Entry) {
	if l.out == nil || l.passes != nil && !l.passes(e) {
		return
	}
	p := lines.Get().(*[]byte)
	b := (*p)[:0]
	if l.record != nil {
		b = l.record.append(b, e)
	} else if l.json != nil {
		b = append(l.json.Append(b, e), '\n')
	} else {
		b = l.text.Append(b, e)
	}
	l.out.Write(b)
	if cap(b) <= 16<<10 {
		*p = b
		lines.Put(p)
	}
}

// Bounds of what waits to be written to a sink.
const (
	flushSize = 64 << 10
	maxQueued = 4 << 20
)

// Sinks buffers lines and writes them from one goroutine, so that a slow disk
// never holds up traffic: lines that find the buffer full are dropped and counted.
type Sinks struct {
	open    func(path string) (io.WriteCloser, error)
	std     map[model.Sink]io.Writer
	dropped atomic.Uint64
	reopen  atomic.Bool
	kick    chan struct{}

	collect Collect

	mu         sync.Mutex
	sinks      map[string]*sink
	collectors []*collector
}

type sink struct {
	s    *Sinks
	path string
	std  io.Writer // nil: a file

	mu  sync.Mutex
	buf []byte

	w io.WriteCloser // of the goroutine that flushes
}

// NewSinks returns sinks. The function opens a file to append to.
func NewSinks(stdout, stderr io.Writer, open func(path string) (io.WriteCloser, error)) *Sinks {
	return &Sinks{
		open:  open,
		std:   map[model.Sink]io.Writer{model.SinkStdout: stdout, model.SinkStderr: stderr},
		kick:  make(chan struct{}, 1),
		sinks: map[string]*sink{},
	}
}

// Writer returns the writer for a log. Logs of one file share it.
func (s *Sinks) Writer(m *model.AccessLog) io.Writer {
	if m.Sink == model.SinkCollector {
		return s.collector(m.Collector)
	}
	key, std := "file:"+m.Path, io.Writer(nil)
	if m.Sink != model.SinkFile {
		key, std = fmt.Sprint("std:", m.Sink), s.std[m.Sink]
		if std == nil {
			std = io.Discard
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.sinks[key]
	if k == nil {
		k = &sink{s: s, path: m.Path, std: std}
		s.sinks[key] = k
	}
	return k
}

// Dropped returns how many lines found no room.
func (s *Sinks) Dropped() uint64 { return s.dropped.Load() }

func (k *sink) Write(b []byte) (int, error) {
	k.mu.Lock()
	if len(k.buf)+len(b) > maxQueued {
		k.mu.Unlock()
		k.s.dropped.Add(1)
		return len(b), nil
	}
	k.buf = append(k.buf, b...)
	full := len(k.buf) >= flushSize
	k.mu.Unlock()
	if full {
		select {
		case k.s.kick <- struct{}{}:
		default:
		}
	}
	return len(b), nil
}

// flushInterval is how long a line waits at most.
const flushInterval = time.Second

// Run writes what was queued until ctx ends; then it writes the rest.
func (s *Sinks) Run(ctx context.Context) error {
	t := time.NewTicker(flushInterval)
	defer t.Stop()
	defer s.closeAll()
	var calls sync.WaitGroup
	defer calls.Wait()
	for {
		select {
		case <-ctx.Done():
			return s.Flush()
		case <-t.C:
		case <-s.kick:
		}
		// An error shows again with every line; there is nobody to tell.
		_ = s.Flush()
		s.send(ctx, false, &calls)
	}
}

// Reopen makes files be opened anew for the next lines.
func (s *Sinks) Reopen() {
	s.reopen.Store(true)
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Flush writes what was queued. Only one goroutine may be in it.
func (s *Sinks) Flush() error {
	if s.reopen.Swap(false) {
		s.closeAll()
	}
	var errs []error
	for _, k := range s.list() {
		k.mu.Lock()
		b := k.buf
		k.buf = nil
		k.mu.Unlock()
		if len(b) == 0 {
			continue
		}
		w := k.std
		if w == nil {
			if k.w == nil {
				f, err := s.open(k.path)
				if err != nil {
					errs = append(errs, err)
					s.dropped.Add(uint64(strings.Count(string(b), "\n")))
					continue
				}
				k.w = f
			}
			w = k.w
		}
		if _, err := w.Write(b); err != nil {
			errs = append(errs, err)
		}
		if k.w != nil && len(b) < flushSize {
			// Reopened for the next lines: a file that was moved away for
			// rotation is let go of within a second.
			k.w.Close()
			k.w = nil
		}
	}
	return errors.Join(errs...)
}

func (s *Sinks) list() []*sink {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*sink
	for _, key := range slices.Sorted(maps.Keys(s.sinks)) {
		out = append(out, s.sinks[key])
	}
	return out
}

func (s *Sinks) closeAll() {
	for _, k := range s.list() {
		if k.w != nil {
			k.w.Close()
			k.w = nil
		}
	}
}
