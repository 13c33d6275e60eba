// Package http1 speaks HTTP/1.1 and 1.0 over one connection, from either side: RFC 9112, read strictly.
//
// A head is parsed from the buffer that it was read into, and the strings of a message point there. Whatever two
// parsers could understand in two ways is refused, so that the next hop can't see another message than the proxy
// did. Nothing that follows an error on a connection is interpreted.
//
// A connection holds buffers only while there is something in them: one that waits for its next message, or an
// upgraded one that is quiet, holds none, if it is a socket or TLS. In the steady state messages cost no memory.
package http1

import (
	"net/http"
	"strconv"
	"sync"
)

// A Case says how names of fields are written. Peers must not care, but some do.
type Case uint8

// The cases.
const (
	LowerCase    Case = iota // unless the other side was asked to keep spellings
	ProperCase               // "Content-Type"
	PreserveCase             // as the other side wrote them, if it was asked to keep that; else in lower case
)

// An Underscores says what becomes of fields with an underscore in their name, which some servers take for a hyphen.
type Underscores uint8

// The actions.
const (
	AllowUnderscores Underscores = iota
	RejectUnderscores
	DropUnderscores
)

// A BadRequest is a request that must be answered with an error, which is the last thing that happens on its
// connection. It is shared: don't change it.
type BadRequest struct {
	Status int
	Detail string // for logs: "http1.codec_error"
	Body   string
}

func (e *BadRequest) Error() string { return "bad request: " + e.Detail }

// What can be wrong with a message. As part of a response, only the detail counts.
var (
	errCodec         = &BadRequest{400, "http1.codec_error", "Bad Request"}
	errCharacters    = &BadRequest{400, "http1.invalid_characters", "Bad Request"}
	errURL           = &BadRequest{400, "http1.invalid_url", "Bad Request"}
	errScheme        = &BadRequest{400, "http1.invalid_scheme", "Bad Request"}
	errHost          = &BadRequest{400, "http1.invalid_host", "Bad Request"}
	errMissingHost   = &BadRequest{400, "missing_host_header", ""}
	errEncoding      = &BadRequest{501, "http1.invalid_transfer_encoding", "Not Implemented"}
	errNoEncoding    = &BadRequest{400, "http1.transfer_encoding_not_allowed", "Bad Request"}
	errLength        = &BadRequest{400, "http1.invalid_content_length", "Bad Request"}
	errLengthTwice   = &BadRequest{400, "http1.content_length_and_chunked_not_allowed", "Bad Request"}
	errBody          = &BadRequest{400, "http1.body_disallowed", "Bad Request"}
	errConnection    = &BadRequest{400, "http1.connection_header_rejected", "Bad Request"}
	errUnderscore    = &BadRequest{400, "http1.unexpected_underscore", "Bad Request"}
	errChunk         = &BadRequest{400, "http1.invalid_chunk", "Bad Request"}
	errLineTooLong   = &BadRequest{400, "http1.request_line_too_long", "Bad Request"}
	errHeaderTimeout = &BadRequest{408, "request_header_timeout", "request header timeout"}
	errVersion       = &BadRequest{426, "low_version", "Upgrade Required"}
	errTooLarge      = &BadRequest{431, "http1.headers_too_large", "Request Header Fields Too Large"}
	errTooMany       = &BadRequest{431, "http1.too_many_headers", "Request Header Fields Too Large"}
)

// statusLines has the rest of a status line after the version, by status.
var statusLines = sync.OnceValue(func() *[600]string {
	var lines [600]string
	for i := range lines {
		if text := http.StatusText(i); text != "" {
			lines[i] = strconv.Itoa(i) + " " + text + "\r\n"
		}
	}
	return &lines
})

// bodiless reports whether a response with the status never has a body.
func bodiless(status int) bool { return status < 200 || status == 204 || status == 304 }

// appendStatus appends the rest of a status line.
func appendStatus(b []byte, status int) []byte {
	if lines := statusLines(); status < len(lines) && lines[status] != "" {
		return append(b, lines[status]...)
	}
	return append(strconv.AppendInt(b, int64(status), 10), " \r\n"...)
}
