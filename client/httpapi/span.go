package httpapi

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/sarnmesh/sarn/internal/span"
)

// What a span tells of a request follows the conventions of OpenTelemetry for servers of HTTP, but that neither path nor
// query are told: they have what users keep, keys of values and tokens among it.

// begin begins the span of a request, if it is to be recorded.
func (w *response) begin() {
	r, rt := w.r, w.route
	ctx, s := w.s.cfg.Tracer.Begin(r.Context(), span.FromHeader(r.Header), span.Server, "")
	if s == nil {
		return
	}
	method := "_OTHER"
	if standard(r.Method) {
		method = r.Method
		s.Name = r.Method + " " + rt.pattern
	} else {
		s.Name = "HTTP " + rt.pattern
	}
	s.Text("http.request.method", method)
	s.Text("http.route", rt.pattern)
	if r.TLS != nil {
		s.Text("url.scheme", "https")
	} else {
		s.Text("url.scheme", "http")
	}
	host, port := hostPort(r.Host)
	s.Text("server.address", host)
	if port != 0 {
		s.Int("server.port", port)
	}
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		s.Text("client.address", from.Addr().Unmap().String())
	}
	w.r, w.span = r.WithContext(ctx), s
}

func standard(method string) bool {
	return slices.Contains([]string{"GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE"}, method)
}

// hostPort splits what a client says it has asked, and leaves out what is no name or address: it may say anything.
func hostPort(s string) (host string, port int) {
	host = s
	if h, p, err := net.SplitHostPort(s); err == nil {
		if n, err := strconv.ParseUint(p, 10, 16); err == nil {
			host, port = h, int(n)
		}
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	odd := func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == ':' || c == '_')
	}
	if len(host) > 253 || strings.IndexFunc(host, odd) >= 0 {
		return "", 0
	}
	return strings.Clone(host), port
}

// finish ends the span of the request.
func (w *response) finish() {
	status := w.status
	if status == 0 && w.wrote {
		status = http.StatusOK
	}
	if status == 0 { // it panicked
		w.span.Fail("panic")
	} else {
		w.span.Int("http.response.status_code", status)
	}
	if status >= 500 {
		w.span.Fail(strconv.Itoa(status))
	}
	w.span.Finish()
}
