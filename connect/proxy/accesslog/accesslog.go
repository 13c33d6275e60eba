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
	filter *model.LogFilter
	text   *Format
	json   func(*Entry) any
	omit   bool
	out    io.Writer
}

// Compile prepares a log that writes to out. With a nil writer it only checks
// the configuration.
func Compile(m *model.AccessLog, out io.Writer) (*Log, error) {
	l := &Log{filter: m.Filter, out: out, omit: m.OmitEmpty}
	if err := checkFilter(m.Filter, 0); err != nil {
		return nil, err
	}
	if m.JSON != nil {
		j, err := compileJSON(m.JSON, m.OmitEmpty, 0)
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

func checkFilter(f *model.LogFilter, depth int) error {
	if f == nil {
		return nil
	}
	if depth > maxDepth {
		return errors.New("filters nest too deep")
	}
	if f.Flags != nil {
		for _, name := range *f.Flags {
			if _, ok := ParseFlag(name); !ok {
				return fmt.Errorf("unknown response flag %q", name)
			}
		}
	}
	for _, sub := range slices.Concat(f.And, f.Or) {
		if err := checkFilter(sub, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func compileJSON(v any, omit bool, depth int) (func(*Entry) any, error) {
	if depth > maxDepth {
		return nil, errors.New("JSON format nests too deep")
	}
	switch v := v.(type) {
	case string:
		f, err := ParseFormat(v)
		if err != nil {
			return nil, err
		}
		return f.value, nil
	case map[string]any:
		fields := map[string]func(*Entry) any{}
		for k, x := range v {
			f, err := compileJSON(x, omit, depth+1)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k, err)
			}
			fields[k] = f
		}
		return func(e *Entry) any {
			m := make(map[string]any, len(fields))
			for k, f := range fields {
				if x := f(e); x != nil || !omit {
					m[k] = x
				}
			}
			return m
		}, nil
	case []any:
		var items []func(*Entry) any
		for i, x := range v {
			f, err := compileJSON(x, omit, depth+1)
			if err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
			items = append(items, f)
		}
		return func(e *Entry) any {
			out := make([]any, len(items))
			for i, f := range items {
				out[i] = f(e)
			}
			return out
		}, nil
	default:
		return func(*Entry) any { return v }, nil
	}
}

// Write logs the entry if the filter lets it through.
func (l *Log) Write(e *Entry) {
	if l.out == nil || !passes(l.filter, e) {
		return
	}
	var b []byte
	if l.json != nil {
		var err error
		if b, err = json.Marshal(l.json(e)); err != nil {
			return // cannot be: the values are strings and numbers
		}
		b = append(b, '\n')
	} else {
		b = l.text.Append(make([]byte, 0, 256), e)
	}
	l.out.Write(b)
}

func passes(f *model.LogFilter, e *Entry) bool {
	switch {
	case f == nil:
		return true
	case f.Flags != nil:
		if len(*f.Flags) == 0 {
			return e.Flags != 0
		}
		for _, name := range *f.Flags {
			if flag, ok := ParseFlag(name); ok && e.Flags&flag != 0 {
				return true
			}
		}
		return false
	case f.Duration != nil:
		return f.Duration.Holds(uint64(e.Duration.Milliseconds()))
	case f.And != nil:
		for _, sub := range f.And {
			if !passes(sub, e) {
				return false
			}
		}
		return true
	case f.Or != nil:
		for _, sub := range f.Or {
			if passes(sub, e) {
				return true
			}
		}
		return false
	}
	return true
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
	kick    chan struct{}

	mu    sync.Mutex
	sinks map[string]*sink
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
	for {
		select {
		case <-ctx.Done():
			return s.Flush()
		case <-t.C:
		case <-s.kick:
		}
		// An error shows again with every line; there is nobody to tell.
		_ = s.Flush()
	}
}

// Flush writes what was queued. Only one goroutine may be in Flush or Reopen.
func (s *Sinks) Flush() error {
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
