package httpwire

import (
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// An answer is the http.ResponseWriter of a connection, reused from one request to the next.
type answer struct {
	c      *conn
	header http.Header
	fields []field     // of the head, beside those of header; see Set
	final  http.Header // the header at WriteHeader, where the handler touched it later; nil for header itself
	head   bool        // the request's method is HEAD: no body goes out
	close  bool        // the connection is closed after this answer

	status  int
	length  int64 // told in Content-Length, -1 when not told
	written int64 // of the body, by the handler
	chunked bool
	sent    bool // the head went out
	failed  error

	buf *[]byte // head and body waiting to go out; nil until there is any, for a handler may wait long
}

// holdSize is how much of an answer waits for more before it goes out. An answer that fits is sent with its length
// when the handler returns.
const holdSize = 4 << 10

// largeWrite is the size from which sending has to end in time.
const largeWrite = 64 << 10

var holds = sync.Pool{New: func() any { b := make([]byte, 0, holdSize+1024); return &b }}

func (w *answer) reset(head, closing bool) {
	clear(w.header)
	clear(w.fields)
	*w = answer{c: w.c, header: w.header, fields: w.fields[:0], head: head, close: closing, length: -1}
}

// A field is a header field with one value.
type field struct {
	name, value string
	n           uint64
	number      bool // n is the value
}

// Set sets a header field of an answer, like w.Header().Set but at less cost: on a connection of this package the field
// goes out in the place of those of its name that w.Header() has, and is not to be seen there. The name is in its
// canonical form; value has one element, and may be shared among answers. It has no effect after WriteHeader.
func Set(w http.ResponseWriter, name string, value []string) {
	if a, ok := w.(*answer); ok {
		a.set(field{name: name, value: value[0]})
		return
	}
	w.Header()[name] = value
}

// SetUint is Set for a number, such as a Content-Length.
func SetUint(w http.ResponseWriter, name string, n uint64) {
	if a, ok := w.(*answer); ok {
		a.set(field{name: name, n: n, number: true})
		return
	}
	w.Header()[name] = []string{strconv.FormatUint(n, 10)}
}

func (w *answer) set(f field) {
	if w.status != 0 {
		return
	}
	if old := w.field(f.name); old != nil {
		*old = f
		return
	}
	w.fields = append(w.fields, f)
}

// field returns the field of a name that Set has set, nil if it has none.
func (w *answer) field(name string) *field {
	for i := range w.fields {
		if w.fields[i].name == name {
			return &w.fields[i]
		}
	}
	return nil
}

// Header returns the header. Changes after WriteHeader have no effect.
func (w *answer) Header() http.Header {
	if w.status != 0 && !w.sent && w.final == nil {
		w.final = w.header.Clone()
	}
	return w.header
}

// WriteHeader sets the status. Interim ones (1xx) are not sent.
func (w *answer) WriteHeader(status int) {
	if w.status != 0 || status < 200 {
		return
	}
	w.status = status
	w.buf = holds.Get().(*[]byte)
	*w.buf = (*w.buf)[:0]
	if !w.allowed() {
		return
	}
	if f := w.field("Content-Length"); f != nil && f.number {
		w.length = int64(f.n)
	} else if v := w.header["Content-Length"]; len(v) == 1 {
		if n, err := strconv.ParseInt(v[0], 10, 64); err == nil && n >= 0 {
			w.length = n
		} else {
			delete(w.header, "Content-Length")
		}
	}
}

// allowed reports whether the status may have a body.
func (w *answer) allowed() bool {
	return w.status != http.StatusNoContent && w.status != http.StatusNotModified
}

// Write sends part of the body.
func (w *answer) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !w.allowed() {
		return 0, http.ErrBodyNotAllowed
	}
	first := w.written == 0
	w.written += int64(len(p))
	if w.length >= 0 && w.written > w.length {
		return 0, http.ErrContentLength
	}
	if first && len(p) > 0 && !w.sent {
		w.sniff(p)
	}
	if w.head {
		return len(p), w.failed
	}
	if !w.sent {
		// A body of told length goes out with its head at once; one of unknown length waits, in case it is short.
		if w.length < 0 && len(*w.buf)+len(p) <= holdSize {
			*w.buf = append(*w.buf, p...)
			return len(p), nil
		}
		if w.length >= 0 {
			w.sendHead(nil, false)
			if len(*w.buf)+len(p) > holdSize {
				w.flush(p)
			} else {
				*w.buf = append(*w.buf, p...)
			}
			return len(p), w.failed
		}
		held := slices.Clone(*w.buf)
		w.sendHead(nil, true)
		w.chunk(held)
	}
	switch {
	case w.chunked:
		w.chunk(p)
	case len(*w.buf)+len(p) > holdSize:
		w.flush(p)
	default:
		*w.buf = append(*w.buf, p...)
	}
	return len(p), w.failed
}

// chunk adds a chunk, and sends what waits if it is much.
func (w *answer) chunk(p []byte) {
	if len(p) == 0 {
		return
	}
	b := strconv.AppendUint(*w.buf, uint64(len(p)), 16)
	b = append(b, '\r', '\n')
	if len(b)+len(p) <= holdSize {
		*w.buf = append(append(b, p...), '\r', '\n')
		return
	}
	*w.buf = b
	w.flush(p)
	*w.buf = append(*w.buf, '\r', '\n')
}

// flush sends what waits and then p.
func (w *answer) flush(p []byte) {
	if w.failed == nil {
		if size := len(*w.buf) + len(p); size > largeWrite {
			// What fits into the socket's buffer goes out at once; for more, the client must read.
			w.c.raw.SetWriteDeadline(time.Now().Add(w.c.f.s.cfg.BodyTimeout + time.Duration(size)*perByte))
			defer w.c.raw.SetWriteDeadline(time.Time{})
		}
		switch {
		case len(p) == 0:
			_, w.failed = w.c.raw.Write(*w.buf)
		case len(*w.buf) == 0:
			_, w.failed = w.c.raw.Write(p)
		default:
			v := net.Buffers{*w.buf, p}
			_, w.failed = v.WriteTo(w.c.writer())
		}
	}
	*w.buf = (*w.buf)[:0]
}

// Flush is FlushError for those who do not ask.
func (w *answer) Flush() { w.FlushError() }

// FlushError sends what was written so far. The length of the rest need not be known.
func (w *answer) FlushError() error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !w.sent {
		held := slices.Clone(*w.buf)
		w.sendHead(nil, w.length < 0)
		if w.chunked {
			w.chunk(held)
		}
	}
	w.flush(nil)
	return w.failed
}

// sniff names the type of a body whose handler did not.
func (w *answer) sniff(p []byte) {
	header := w.header
	if w.final != nil {
		header = w.final
	}
	if w.field("Content-Type") != nil || w.field("Content-Encoding") != nil {
		return
	}
	if _, ok := header["Content-Type"]; !ok && header["Content-Encoding"] == nil {
		header["Content-Type"] = []string{http.DetectContentType(p)}
	}
}

// sendHead puts the head into the buffer, and body, all of it, behind. With chunked the length of the body is not
// known.
func (w *answer) sendHead(body []byte, chunked bool) {
	w.sent = true
	b := append((*w.buf)[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(w.status), 10)
	b = append(b, ' ')
	if text := http.StatusText(w.status); text != "" {
		b = append(b, text...)
	} else {
		b = append(append(b, "status code "...), strconv.Itoa(w.status)...)
	}
	b = append(b, "\r\n"...)
	header := w.header
	if w.final != nil {
		header = w.final
	}
	for name, values := range header {
		if w.field(name) != nil || !all(name, &tokenByte) || name == "" {
			continue
		}
		for _, v := range values {
			b = w.appendField(b, field{name: name, value: v})
		}
	}
	for _, f := range w.fields {
		b = w.appendField(b, f)
	}
	b = append(append(append(b, "Date: "...), w.c.f.s.dateText()...), "\r\n"...)
	switch {
	case !w.allowed():
	case chunked && !w.head:
		w.chunked = true
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case w.length < 0 && (!w.head || w.written > 0):
		b = strconv.AppendInt(append(b, "Content-Length: "...), w.written, 10)
		b = append(b, "\r\n"...)
	}
	if w.close || w.c.closing() || w.c.request.body.left > maxDrain {
		w.close = true
		b = append(b, "Connection: close\r\n"...)
	}
	b = append(b, "\r\n"...)
	*w.buf = append(b, body...)
}

// appendField appends a line of the head, unless it is for the server to say what it says.
func (w *answer) appendField(b []byte, f field) []byte {
	switch f.name {
	case "Connection":
		w.close = w.close || f.value == "close"
		return b
	case "Date", "Transfer-Encoding":
		return b
	case "Content-Length":
		if w.length < 0 {
			return b
		}
	}
	b = append(append(b, f.name...), ": "...)
	if f.number {
		b = strconv.AppendUint(b, f.n, 10)
	} else {
		b = append(b, clean(f.value)...)
	}
	return append(b, "\r\n"...)
}

// clean returns a header's value without what would end it.
func clean(v string) string {
	if all(v, &valueByte) {
		return trim(v)
	}
	b := []byte(v)
	for i, c := range b {
		if c == '\r' || c == '\n' {
			b[i] = ' '
		}
	}
	return trim(string(b))
}

// finish sends what is left, and reports whether the connection is fit for another answer.
func (w *answer) finish() bool {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if !w.sent {
		held := getHeld(*w.buf)
		w.sendHead(*held, false)
		putHeld(held)
	}
	if w.chunked {
		*w.buf = append(*w.buf, "0\r\n\r\n"...)
	}
	if len(*w.buf) > 0 {
		w.flush(nil)
	}
	holds.Put(w.buf)
	w.buf = nil
	wrong := w.length >= 0 && w.written != w.length && !w.head && w.allowed()
	return w.failed == nil && !wrong && !w.close
}

func getHeld(b []byte) *[]byte {
	held := holds.Get().(*[]byte)
	*held = append((*held)[:0], b...)
	return held
}

func putHeld(held *[]byte) { holds.Put(held) }
