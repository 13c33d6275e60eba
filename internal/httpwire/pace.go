package httpwire

import (
	"io"
	"net/http"
	"time"
)

// perByte is how much longer a transfer may take for each byte of it: it is a KiB a second.
const perByte = time.Second / 1024

// A pace bounds how long a sender keeps a reader waiting. Time that the reader spends elsewhere does not count.
type pace struct {
	timeout time.Duration
	waited  time.Duration
	got     int64
}

// deadline returns until when a read that begins now may take.
func (p *pace) deadline(now time.Time) time.Time {
	return now.Add(p.timeout + time.Duration(p.got)*perByte - p.waited)
}

// took notes what a read brought, and how long that was waited for.
func (p *pace) took(n int, wait time.Duration) {
	p.got += int64(n)
	p.waited += wait
}

// paced returns a handler for net/http whose requests have bodies that come at a pace.
func paced(h http.Handler, timeout time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != nil && r.Body != http.NoBody {
			b := &pacedBody{ReadCloser: r.Body, control: http.NewResponseController(w), pace: pace{timeout: timeout}}
			// What the handler leaves is read by net/http, until then.
			b.control.SetReadDeadline(b.pace.deadline(time.Now()))
			r.Body = b
		}
		h.ServeHTTP(w, r)
	})
}

// A pacedBody is the body of a request that net/http reads.
type pacedBody struct {
	io.ReadCloser
	control *http.ResponseController
	pace    pace
}

// Read reads.
func (b *pacedBody) Read(p []byte) (int, error) {
	began := time.Now()
	b.control.SetReadDeadline(b.pace.deadline(began))
	n, err := b.ReadCloser.Read(p)
	b.pace.took(n, time.Since(began))
	if err == io.EOF {
		b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}
