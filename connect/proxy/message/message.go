// Package message is HTTP as the proxy sees it, whatever its version on the wire: heads of requests and responses,
// and the streams that carry a request one way and its response the other.
//
// A codec (packages http1 and http2) makes streams; the connection manager (package hcm) connects a stream from a
// client with one to a host; filters look at what passes. There is one form of every part: names of fields are in
// lower case, the authority stands in Request.Authority and never in a field "host", hop-by-hop fields and
// framing are gone. So the router, policies and the next hop can't see different requests.
//
// Strings of a message may point into buffers of its stream: they are good until the stream ends. Who keeps one
// longer clones it.
package message

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// A Version is a version of HTTP.
type Version uint8

// The versions.
const (
	HTTP10 Version = iota + 1
	HTTP11
	HTTP2
)

// String returns the name that logs show: "HTTP/1.1".
func (v Version) String() string {
	switch v {
	case HTTP10:
		return "HTTP/1.0"
	case HTTP11:
		return "HTTP/1.1"
	case HTTP2:
		return "HTTP/2"
	}
	return ""
}

// A Request is the head of a request.
type Request struct {
	Version   Version
	Method    string
	Scheme    string // "http" or "https", or empty if the client did not say
	Authority string // host, with the port if the client gave one
	Path      string // with the query; empty only for CONNECT

	// Upgrade is the protocol that the client wants to switch to, in lower case: from "Upgrade" of HTTP/1.1 or
	// ":protocol" of an extended CONNECT. Method is what an HTTP/1.1 client would have sent (GET for an extended
	// CONNECT). Empty asks for none.
	Upgrade string

	// ContentLength is the length of the body, or -1 if it is not known. The field "content-length" is in Header,
	// too.
	ContentLength int64
	// Expect100 is set if the client waits for "100 Continue" before it sends the body. The field "expect" is in
	// Header, too.
	Expect100 bool

	Header Header
	Arena  Arena // where strings that are made for the request live
}

// Reset makes the request empty and keeps its memory.
func (r *Request) Reset() {
	h, a := r.Header, r.Arena
	h.Reset()
	a.Reset()
	*r = Request{ContentLength: -1, Header: h, Arena: a}
}

// A Response is the head of a response.
type Response struct {
	Version       Version
	Status        int
	ContentLength int64 // or -1 if it is not known; the field "content-length" is in Header, too
	Header        Header
	Arena         Arena
}

// Reset makes the response empty and keeps its memory.
func (r *Response) Reset() {
	h, a := r.Header, r.Arena
	h.Reset()
	a.Reset()
	*r = Response{ContentLength: -1, Header: h, Arena: a}
}

// A Source gives the body and the trailers of a message as they come. It is used by one goroutine at a time.
type Source interface {
	// Read returns the next piece of the body, which is good until the next call. At the end of the message it
	// returns io.EOF, possibly together with the last piece. It waits for bytes until the stream's read deadline.
	Read() ([]byte, error)
	// Ready reports whether Read would return without waiting.
	Ready() bool
	// Trailer returns the trailers after io.EOF; nil if there were none.
	Trailer() *Header
}

// A Sink takes the body and the trailers of a message. It is used by one goroutine at a time, which may be another
// one than that of the stream's Source.
type Sink interface {
	// Write sends a piece of the body; end ends the message. It does not keep p. It waits while the peer is slow,
	// until the stream's write deadline. What was written may stay in a buffer until Flush.
	Write(p []byte, end bool) error
	// WriteTrailer ends the message with trailers. A protocol that can't carry them ends it without.
	WriteTrailer(h *Header) error
	// Flush sends what is in buffers. Call it before waiting for something else.
	Flush() error
}

// A ServerStream is one request from a client, with the way to answer it.
type ServerStream interface {
	Source // of the request
	Sink   // of the response

	// Request returns the head. It may be changed by whom it was given to.
	Request() *Request
	// Respond sends the head of a response: any number with a status of 1xx, then one other. End sends a response
	// without a body. After 101, which HTTP/2 sends as 200, or 200 to an extended CONNECT, Read and Write carry the
	// upgraded protocol.
	Respond(r *Response, end bool) error
	// Continue lets a client go on that waits for "100 Continue". It does nothing for others.
	Continue() error
	// Reset breaks the stream off: of HTTP/2 that stream alone, of HTTP/1 the connection once what was sent before
	// has been delivered.
	Reset(reason Reason)
	// Gone reports without waiting whether the client has left: closed the connection or reset the stream.
	Gone() bool
	// SetReadDeadline and SetWriteDeadline bound waiting; the zero time does not. They may be set from another
	// goroutine and wake those that wait.
	SetReadDeadline(t time.Time)
	SetWriteDeadline(t time.Time)
	// CloseAfter makes the connection close after this response (HTTP/1: "connection: close"; HTTP/2: GOAWAY).
	CloseAfter()
	// BytesReceived and BytesSent count bytes of the bodies.
	BytesReceived() uint64
	BytesSent() uint64
}

// A ClientStream is one request to a host. Close it in the end, whatever happened.
type ClientStream interface {
	Source // of the response
	Sink   // of the request

	// Send sends the head of the request, which stays the caller's. End sends a request without a body.
	Send(r *Request, end bool) error
	// Receive waits for the next head of the response and puts it into r: any number with a status of 1xx, then one
	// other. End tells that there is no body. That the host has switched to Request.Upgrade is 101 and the last head,
	// whatever the version.
	Receive(r *Response) (end bool, err error)
	SetReadDeadline(t time.Time)
	SetWriteDeadline(t time.Time)
	// Close gives the stream back. If the request and the response have not both ended it is reset, and an HTTP/1
	// connection is closed with it.
	Close()
}

// A Reason is why a stream broke off. The texts are those that replies and logs carry.
type Reason uint8

// The reasons.
const (
	ConnectionFailure Reason = iota + 1
	LocalConnectionFailure
	RemoteConnectionFailure
	ConnectionTimeout
	ConnectionTermination
	Overflow
	LocalReset
	RemoteReset
	RemoteRefused
	ProtocolError
)

// String returns the text, such as "connection termination".
func (r Reason) String() string {
	switch r {
	case ConnectionFailure:
		return "connection failure"
	case LocalConnectionFailure:
		return "local connection failure"
	case RemoteConnectionFailure:
		return "remote connection failure"
	case ConnectionTimeout:
		return "connection timeout"
	case ConnectionTermination:
		return "connection termination"
	case Overflow:
		return "overflow"
	case LocalReset:
		return "local reset"
	case RemoteReset:
		return "remote reset"
	case RemoteRefused:
		return "remote refused stream reset"
	case ProtocolError:
		return "protocol error"
	}
	return "unknown"
}

// A StreamError reports that a stream broke off. Running into a deadline is os.ErrDeadlineExceeded instead.
type StreamError struct {
	Reason Reason
	// Detail says more for logs: "http1.codec_error"; may be empty.
	Detail string
	// Sent is false if certainly no byte of the request has reached the host.
	Sent bool
	Err  error // the cause; may be nil
}

func (e *StreamError) Error() string {
	switch {
	case e.Err != nil:
		return fmt.Sprintf("%s: %v", e.Reason, e.Err)
	case e.Detail != "":
		return fmt.Sprintf("%s: %s", e.Reason, e.Detail)
	}
	return e.Reason.String()
}

func (e *StreamError) Unwrap() error { return e.Err }

// ReasonOf returns the reason of an error of a stream; ConnectionTermination if it tells none.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*StreamError](err); ok {
		return e.Reason
	}
	return ConnectionTermination
}

// NoBody is a Source that has ended.
var NoBody Source = noBody{}

type noBody struct{}

func (noBody) Read() ([]byte, error) { return nil, io.EOF }
func (noBody) Ready() bool           { return true }
func (noBody) Trailer() *Header      { return nil }
