package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/command/agent/config"
)

// A logFile is a file that is put aside when it is too large or too old (spec/config.md section 9). The current one keeps
// its name; others are called name-TIME.ext, the time in nanoseconds.
type logFile struct {
	path     string
	bytes    int64         // size at which it is put aside; 0 for none
	duration time.Duration // age at which it is put aside; 0 for none
	keep     int           // of those put aside; 0 for all, negative for none

	mu   sync.Mutex
	file *os.File
	size int64
	born time.Time
}

// openLogFile opens the log file of a configuration, making its folder if need be.
func openLogFile(l config.Log) (*logFile, error) {
	dir, name := filepath.Split(l.File)
	if name == "" {
		name = "sarn.log"
	}
	if filepath.Ext(name) == "" {
		name += ".log"
	}
	f := &logFile{path: filepath.Join(dir, name), bytes: int64(l.RotateBytes), duration: l.RotateDuration, keep: l.RotateMaxFiles}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o750); err != nil {
		return nil, err
	}
	return f, f.open()
}

func (f *logFile) open() error {
	file, err := os.OpenFile(f.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return err
	}
	f.file, f.size, f.born = file, info.Size(), time.Now()
	return nil
}

// Write implements io.Writer, one line at a time. A file that cannot be put aside goes on growing.
func (f *logFile) Write(line []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return 0, os.ErrClosed
	}
	full := f.bytes > 0 && f.size > 0 && f.size+int64(len(line)) > f.bytes
	if full || f.duration > 0 && f.size > 0 && time.Since(f.born) >= f.duration {
		f.rotate()
	}
	n, err := f.file.Write(line)
	f.size += int64(n)
	return n, err
}

func (f *logFile) rotate() {
	now := time.Now()
	f.born = now // not again for every line, if it fails
	ext := filepath.Ext(f.path)
	aside := fmt.Sprintf("%s-%d%s", strings.TrimSuffix(f.path, ext), now.UnixNano(), ext)
	old := f.file
	old.Close() // or Windows would not rename it
	err := os.Rename(f.path, aside)
	if opened := f.open(); opened != nil {
		// There is nowhere to say so but where the log went; the next line tries again.
		f.file = old
		return
	}
	if err == nil {
		f.prune()
	}
}

// prune removes the oldest of those put aside.
func (f *logFile) prune() {
	if f.keep == 0 {
		return
	}
	ext := filepath.Ext(f.path)
	prefix := strings.TrimSuffix(filepath.Base(f.path), ext) + "-"
	entries, err := os.ReadDir(filepath.Dir(f.path))
	if err != nil {
		return
	}
	var aside []string
	for _, e := range entries {
		stamp, ok := strings.CutPrefix(e.Name(), prefix)
		stamp, ends := strings.CutSuffix(stamp, ext)
		if ok && ends && stamp != "" && strings.Trim(stamp, "0123456789") == "" {
			aside = append(aside, e.Name())
		}
	}
	slices.SortFunc(aside, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	for len(aside) > max(f.keep, 0) {
		os.Remove(filepath.Join(filepath.Dir(f.path), aside[0]))
		aside = aside[1:]
	}
}

// Close ends the file; what is written later is lost.
func (f *logFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	f.file = nil
	return err
}
