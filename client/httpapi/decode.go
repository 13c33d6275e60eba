package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"

	"github.com/sarnmesh/sarn/internal/wireerr"
)

// decode reads the first JSON value of a request's body into v. Keys match without regard to case; unknown keys are an
// error if strict. The error is what the client is told: status 400 and "Request decode failed: ".
func (s *Server) decode(r *http.Request, v any, strict bool) error {
	if err := s.decodeRaw(r, v, strict); err != nil {
		return decodeFailed(err)
	}
	return nil
}

func decodeFailed(err error) error { return unreadable("Request decode failed", err) }

// unreadable is the refusal of a body that could not be read for err: what is said of it, unless err is a refusal itself.
func unreadable(what string, err error) error {
	if wireerr.Carried(err) != 0 {
		return err
	}
	hint := ""
	switch err.Error() {
	case `json: unknown field "Namespace"`:
		hint = " - namespaces are not supported"
	case `json: unknown field "Partition"`:
		hint = " - partitions are not supported"
	}
	return wireerr.BadRequest("%s: %v%s", what, err, hint)
}

// decodeRaw is decode for endpoints with their own text: it returns the decoder's error as it is.
func (s *Server) decodeRaw(r *http.Request, v any, strict bool) error {
	body, err := s.readJSON(r, s.cfg.MaxBodySize)
	if err != nil {
		return err
	}
	defer putBuffer(body)
	return decodeJSON(body.b, v, strict)
}

// decodeJSON decodes the first JSON value of data into v. What v holds afterwards does not alias data.
func decodeJSON(data []byte, v any, strict bool) error {
	d := json.NewDecoder((*bytesReader)(&data))
	if strict {
		d.DisallowUnknownFields()
	}
	return d.Decode(v)
}

// readJSON is readBody for what will be decoded. Decoded, a few bytes such as "[]," take hundreds: so there may be only so
// many values, and what many take is reserved until putBuffer, as large bodies are.
func (s *Server) readJSON(r *http.Request, limit int64) (*buffer, error) {
	body, err := s.readBody(r, limit)
	if err != nil || len(body.b) < freeValues {
		return body, err
	}
	values := 0
	for _, mark := range []string{",", "[", "{"} { // those within texts too
		values += bytes.Count(body.b, []byte(mark))
	}
	switch {
	case values > maxValues:
		err = errValues
	case values > freeValues && !body.reserve(&s.largeBodies, body.reserved+int64(values)*valueSize, largeBodies):
		err = errBusy
	}
	if err != nil {
		putBuffer(body)
		return nil, err
	}
	return body, nil
}

// readBody reads a whole body of at most limit bytes into a buffer that the caller gives back with putBuffer.
func (s *Server) readBody(r *http.Request, limit int64) (*buffer, error) {
	if r.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	buf := getBuffer()
	b := buf.b[:0]
	if n := int(r.ContentLength); n >= cap(b) {
		b = make([]byte, 0, min(n+1, freeBody))
	}
	for {
		if len(b) == cap(b) {
			size := min(2*cap(b), int(limit)+1)
			if size > freeBody && !buf.reserve(&s.largeBodies, int64(size), largeBodies) {
				putBuffer(buf)
				return nil, errBusy
			}
			b = append(make([]byte, 0, size), b...)
		}
		n, err := r.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if int64(len(b)) > limit {
			putBuffer(buf)
			return nil, tooLarge(limit)
		}
		if err != nil {
			buf.b = b
			if errors.Is(err, io.EOF) {
				return buf, nil
			}
			putBuffer(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, errSlow
			}
			return nil, wireerr.BadRequest("request body cannot be read: %v", err)
		}
	}
}

const (
	// freeBody is the size up to which bodies take what they need, and how much of what a request says is the length of
	// its body is believed. More room is made as it comes.
	freeBody = 1 << 20
	// largeBodies is how much room larger ones, being read and decoded, have together.
	largeBodies = 256 << 20

	maxValues  = 256 << 10 // in a body of JSON
	freeValues = 2 << 10   // that take what they need
	valueSize  = 512       // what one takes, about, while it is decoded
)

var (
	errSlow   = wireerr.Errorf(http.StatusRequestTimeout, "request body was not sent in time")
	errValues = wireerr.Errorf(http.StatusRequestEntityTooLarge, "Request body has too many values, max: %d.", maxValues)
	errBusy   = wireerr.Errorf(http.StatusServiceUnavailable, "too many large requests at once, try again later")
)

func tooLarge(limit int64) error {
	return wireerr.Errorf(http.StatusRequestEntityTooLarge, "Request body too large, max size: %d bytes.", limit)
}

// A bytesReader reads a slice once.
type bytesReader []byte

func (b *bytesReader) Read(p []byte) (int, error) {
	if len(*b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, *b)
	*b = (*b)[n:]
	return n, nil
}
