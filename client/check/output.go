package check

import (
	"fmt"
	"sync"
)

// cutHead returns output cut to its first limit bytes, saying so.
func cutHead(output string, limit int) string {
	if len(output) <= limit {
		return output
	}
	return fmt.Sprintf("%s ... (captured %d of %d bytes)", output[:limit], limit, len(output))
}

// A tail keeps the last bytes written to it. It is safe for concurrent use: a script that outlives its check still
// writes.
type tail struct {
	mu    sync.Mutex
	limit int
	total int64
	buf   []byte // a ring once it has limit bytes
	next  int    // where the ring is written next
}

func newTail(limit int) *tail { return &tail{limit: limit} }

// Write takes p; it never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(p)
	t.total += int64(n)
	if len(p) > t.limit {
		p = p[len(p)-t.limit:]
	}
	if room := t.limit - len(t.buf); room > 0 {
		k := min(room, len(p))
		t.buf = append(t.buf, p[:k]...)
		p = p[k:]
	}
	for len(p) > 0 {
		k := copy(t.buf[t.next:], p)
		t.next = (t.next + k) % t.limit
		p = p[k:]
	}
	return n, nil
}

// String returns the bytes kept, in order.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf[t.next:]) + string(t.buf[:t.next])
}

// report returns the bytes kept, saying how many there were when some are missing.
func (t *tail) report() string {
	s := t.String()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.total <= int64(len(t.buf)) {
		return s
	}
	return fmt.Sprintf("Captured %d of %d bytes\n...\n%s", len(t.buf), t.total, s)
}
