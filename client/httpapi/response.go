package httpapi

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/httpwire"
	"github.com/sarnmesh/sarn/internal/span"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// Header values that never change. They are shared among answers and must not be written to.
var (
	typeJSON     = []string{"application/json"}
	typeText     = []string{"text/plain; charset=utf-8"}
	varyEncoding = []string{"Accept-Encoding"}
	encodingGzip = []string{"gzip"}
	valueTrue    = []string{"true"}
	valueFalse   = []string{"false"}
	valueHit     = []string{"HIT"}
	valueMiss    = []string{"MISS"}
	valueQuery   = []string{"blocking-query"}
	modeValues   = [...][]string{read.Default: {"leader"}, read.Consistent: {"consistent"}, read.Stale: {"stale"}}
)

// gzipFrom is the size of body from which answers are compressed for clients that accept it.
const gzipFrom = 1024

// A response is the ResponseWriter handlers get, with what is known of their request.
type response struct {
	http.ResponseWriter
	s     *Server
	r     *http.Request
	route *route
	wrote bool
	span  *span.Span // nil when the request is not recorded

	params   params
	mode     read.Mode // consistency asked for, once parseOptions ran
	hasToken bool      // the request is made on behalf of a token
	tree     bool      // the request is about all that begins with a name
	streamed bool      // the answer came by a stream
	cache    cacheControl
	status   int // that was sent, when the request is recorded; 0 before
}

var responses = sync.Pool{New: func() any { return new(response) }}

func newResponse(s *Server, w http.ResponseWriter, r *http.Request, rt *route) *response {
	rw := responses.Get().(*response)
	rw.ResponseWriter, rw.s, rw.r, rw.route = w, s, r, rt
	return rw
}

func (w *response) free() {
	list := w.params.list
	clear(list)
	*w = response{params: params{list: list[:0]}}
	responses.Put(w)
}

// set sets a header field. What every answer has is set so; Header does not show it on all connections.
func (w *response) set(name string, value []string) { httpwire.Set(w.ResponseWriter, name, value) }

// setUint is set for a number.
func (w *response) setUint(name string, n uint64) { httpwire.SetUint(w.ResponseWriter, name, n) }

// WriteHeader sends the status.
func (w *response) WriteHeader(status int) {
	w.wrote = true
	if t := w.route.tally; t != nil && status >= 200 {
		t.count(status)
	}
	if w.span != nil && w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write sends part of the body as it is.
func (w *response) Write(p []byte) (int, error) {
	w.wrote = true
	return w.ResponseWriter.Write(p)
}

// Flush is FlushError for those who do not ask.
func (w *response) Flush() { w.FlushError() }

// FlushError sends what was written so far.
func (w *response) FlushError() error {
	w.wrote = true
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap lets http.ResponseController reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Values a handler may return that are not plain JSON values.
type (
	// A jsonAppender appends its own compact JSON.
	jsonAppender interface{ appendJSON(dst []byte) []byte }
	// A statusValue is written as JSON with a status other than 200.
	statusValue struct {
		status int
		value  any
	}
	// A rawValue is written as it is.
	rawValue struct {
		contentType []string
		body        []byte
	}
	// A rendered value is JSON made before, with its compressed form.
	rendered struct {
		json []byte
		gzip []byte // nil when there is none
	}
)

// writeError answers with an error's text.
func (w *response) writeError(err error) {
	if w.wrote {
		return // the status is out: all that is left is to end the answer
	}
	status := 0
	if m, ok := errors.AsType[*methodError](err); ok {
		w.Header()["Allow"] = m.allow
		status = http.StatusMethodNotAllowed
	} else {
		status = wireerr.Status(err)
	}
	text := err.Error()
	if status == http.StatusForbidden && w.hasToken {
		w.tellMissingRule(err, text)
	}
	if w.s.log.IsDebug() {
		log := w.s.log
		if w.span != nil {
			log = log.With("trace_id", w.span.TraceID())
		}
		log.Debug("request failed", "method", w.r.Method, "path", w.r.URL.Path, "status", status, "error", text)
	}
	w.set("Content-Type", typeText)
	w.setUint("Content-Length", uint64(len(text)))
	w.WriteHeader(status)
	w.Write([]byte(text))
}

// tellMissingRule says which line of a policy would have let the request through. Who has no token is not told.
func (w *response) tellMissingRule(err error, text string) {
	denied, ok := errors.AsType[*acl.DeniedError](err)
	if !ok {
		denied, ok = acl.ParseDenied(text)
	}
	if !ok || denied.Accessor == "" {
		return
	}
	missing := *denied
	missing.Prefix = missing.Prefix || w.tree
	h := w.Header()
	if rule := missing.Rule(); rule != "" && !slices.Contains(h["X-Sarn-Missing-Rule"], rule) {
		h["X-Sarn-Missing-Rule"] = append(h["X-Sarn-Missing-Rule"], rule)
	}
}

// writeValue answers with a handler's value.
func (w *response) writeValue(v any) {
	status := http.StatusOK
	if sv, ok := v.(statusValue); ok {
		status, v = sv.status, sv.value
	}
	contentType := typeJSON
	indent := w.s.cfg.Dev || w.params.has("pretty")
	var body, zipped []byte
	buf := getBuffer()
	defer putBuffer(buf)
	switch v := v.(type) {
	case rawValue:
		contentType, body, indent = v.contentType, v.body, false
	case *rendered:
		body, zipped = v.json, v.gzip
	case jsonAppender:
		buf.b = v.appendJSON(buf.b[:0])
		body = buf.b
	case bool:
		buf.b = strconv.AppendBool(buf.b[:0], v)
		body = buf.b
	default:
		data, err := json.Marshal(v)
		if err != nil {
			w.writeError(err)
			return
		}
		body = data
	}
	if indent {
		pretty := getBuffer()
		defer putBuffer(pretty)
		out := bytes.NewBuffer(pretty.b[:0])
		if err := json.Indent(out, body, "", "    "); err != nil {
			w.writeError(err)
			return
		}
		if w.params.has("pretty") {
			out.WriteByte('\n')
		}
		body, zipped = out.Bytes(), nil
		pretty.b = body
	}
	w.writeBody(status, contentType, body, zipped)
}

// writeBody sends a whole body, compressed if that is wanted and worthwhile. zipped is body compressed before, or nil.
func (w *response) writeBody(status int, contentType []string, body, zipped []byte) {
	if contentType != nil {
		w.set("Content-Type", contentType)
	}
	if len(body) >= gzipFrom && acceptsGzip(w.r.Header["Accept-Encoding"]) {
		if zipped == nil {
			buf := getBuffer()
			defer putBuffer(buf)
			buf.b = appendGzip(buf.b[:0], body)
			zipped = buf.b
		}
		w.set("Content-Encoding", encodingGzip)
		body = zipped
	}
	w.setUint("Content-Length", uint64(len(body)))
	w.WriteHeader(status)
	w.Write(body)
}

// acceptsGzip reports whether an Accept-Encoding header names gzip with a weight above zero.
func acceptsGzip(values []string) bool {
	for _, v := range values {
		if v == "gzip" { // what most clients send
			return true
		}
		for part := range strings.SplitSeq(v, ",") {
			coding, weight, _ := strings.Cut(part, ";")
			if coding = strings.TrimSpace(coding); !strings.EqualFold(coding, "gzip") && coding != "*" {
				continue
			}
			q, ok := strings.CutPrefix(strings.TrimSpace(weight), "q=")
			if !ok {
				return true
			}
			f, err := strconv.ParseFloat(strings.TrimSpace(q), 64)
			return err == nil && f > 0
		}
	}
	return false
}

// A buffer is a reusable byte slice.
type buffer struct {
	b []byte
	// reserved is how much of what is limited this buffer took from inUse.
	reserved int64
	inUse    *atomic.Int64
}

// reserve makes what the buffer takes of what is limited to most be size, and reports whether there is as much.
func (b *buffer) reserve(inUse *atomic.Int64, size, most int64) bool {
	if inUse.Add(size-b.reserved) > most {
		inUse.Add(b.reserved - size)
		return false
	}
	b.reserved, b.inUse = size, inUse
	return true
}

var buffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, 0, 4096)} }}

// keepBuffer is the capacity up to which buffers are kept for reuse.
const keepBuffer = 1 << 20

func getBuffer() *buffer { return buffers.Get().(*buffer) }

func putBuffer(b *buffer) {
	if b.inUse != nil {
		b.inUse.Add(-b.reserved)
		b.reserved, b.inUse = 0, nil
	}
	if cap(b.b) <= keepBuffer {
		buffers.Put(b)
	}
}

var gzipWriters = sync.Pool{New: func() any {
	z, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is valid
	return z
}}

type sliceWriter []byte

func (w *sliceWriter) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}

// appendGzip appends data as a gzip stream.
func appendGzip(dst, data []byte) []byte {
	z := gzipWriters.Get().(*gzip.Writer)
	defer gzipWriters.Put(z)
	out := sliceWriter(dst)
	z.Reset(&out)
	z.Write(data) // a sliceWriter does not fail
	z.Close()
	return out
}

// setMeta tells what the servers said about an answer. Endpoints that also name the consistency they used call
// setQueryMeta.
func (s *Server) setMeta(w http.ResponseWriter, m *read.Meta) {
	rw := w.(*response)
	rw.setUint("X-Consul-Index", max(m.Index, 1))
	backend := valueQuery
	if rw.streamed {
		backend = valueStreaming
	}
	rw.set("X-Consul-Query-Backend", backend)
	rw.setLeader(m)
	if m.Filtered && rw.hasToken {
		rw.set("X-Consul-Results-Filtered-By-Acls", valueTrue)
	}
}

// setQueryMeta is setMeta and the consistency that was asked for.
func (s *Server) setQueryMeta(w http.ResponseWriter, m *read.Meta) {
	s.setMeta(w, m)
	rw := w.(*response)
	rw.set("X-Consul-Effective-Consistency", modeValues[rw.mode])
}

func (w *response) setLeader(m *read.Meta) {
	known := valueFalse
	if m.KnownLeader {
		known = valueTrue
	}
	w.set("X-Consul-Knownleader", known)
	w.setUint("X-Consul-Lastcontact", uint64(max(m.LastContact, 0).Milliseconds()))
}

// setCached tells that an answer came from the agent's cache.
func setCached(w http.ResponseWriter, hit bool, age time.Duration) {
	rw := w.(*response)
	if !hit {
		rw.set("X-Cache", valueMiss)
		return
	}
	rw.set("X-Cache", valueHit)
	rw.setUint("Age", uint64(max(age, 0)/time.Second))
}
