package behaviour

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"
)

const start = "GET {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\n"

// Reasons why Sarn refuses what Envoy lets pass.
const (
	strictFraming = "framing that others may read in another way is refused, not put right"
	strictHost    = "a request without exactly one well-formed host is refused, since policies and routes depend on it"
)

// smuggled is a second request that must never be taken for one.
const smuggled = "GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"

var hygiene = group{
	name: "hygiene",
	listeners: []listener{{},
		{name: "reject", hcm: `{common_http_protocol_options: {headers_with_underscores_action: REJECT_REQUEST}}`},
		{name: "drop", hcm: `{common_http_protocol_options: {headers_with_underscores_action: DROP_HEADER}}`},
		{name: "small", hcm: `{max_request_headers_kb: 1, common_http_protocol_options: {max_headers_count: 10}}`},
		{name: "old", hcm: `{http_protocol_options: {accept_http_10: true, default_host_for_http_10: old.test}}`},
	},
	cases: []testCase{
		{name: "length and chunked", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled)},
		{name: "two lengths that differ", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello" + smuggled)},
		{name: "two lengths that agree", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello")},
		{name: "a list of lengths", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: 5, 5\r\n\r\nhello")},
		{name: "a length with a sign", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: +5\r\n\r\nhello")},
		{name: "a length that is none", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: 5x\r\n\r\nhello")},
		{name: "a length in hex", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: 0x5\r\n\r\nhello")},
		{name: "a length without a value", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: \r\n\r\nhello")},
		{name: "a length beyond all numbers", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: 99999999999999999999\r\n\r\nhello")},
		{name: "an encoding that is unknown", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + smuggled)},
		{name: "two encodings", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + smuggled)},
		{name: "two encoding fields", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled)},
		{name: "encoding identity", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: identity\r\ncontent-length: 5\r\n\r\nhello")},
		{name: "an encoding in capitals", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\nTransfer-Encoding: Chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")},
		{name: "an encoding with a tab", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding:\tchunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")},
		{name: "an encoding with a vertical tab", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + smuggled)},
		{name: "chunk sizes: not hex", noUp: true, do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n")},
		{name: "chunk sizes: beyond all numbers", noUp: true, do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nab\r\n0\r\n\r\n")},
		{name: "chunk sizes: a sign", noUp: true, do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: chunked\r\n\r\n+2\r\nab\r\n0\r\n\r\n")},
		{name: "chunk sizes: 0x", noUp: true, do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n\r\n")},
		{name: "chunk extensions", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: chunked\r\n\r\n2;a=b\r\nab\r\n0;c\r\n\r\n")},
		{name: "a chunk extension with a bare line feed", noUp: true, do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: chunked\r\n\r\n2;a\nab\r\n0\r\n\r\n")},
		{name: "a chunk that is longer than it says", noUp: true, differs: strictFraming, do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n")},
		{name: "a chunk ended by a bare line feed", noUp: true, differs: strictFraming, do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\n0\r\n\r\n")},
		{name: "a bare line feed after the request line", differs: strictFraming, do: raw("GET {p} HTTP/1.1\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "a bare line feed after a field", differs: strictFraming, do: raw("GET {p} HTTP/1.1\r\nhost: x\nx-case: {c}\r\n\r\n")},
		{name: "a bare line feed at the end", differs: strictFraming, do: raw(start + "\n")},
		{name: "a bare carriage return in a value", differs: strictFraming, do: raw(start + "x-a: b\rc\r\n\r\n")},
		{name: "a zero byte in a value", do: raw(start + "x-a: b\x00c\r\n\r\n")},
		{name: "a zero byte in a name", do: raw(start + "x\x00a: b\r\n\r\n")},
		{name: "a control byte in a value", do: raw(start + "x-a: b\x01c\r\n\r\n")},
		{name: "delete in a value", do: raw(start + "x-a: b\x7fc\r\n\r\n")},
		{name: "high bytes in a value", do: raw(start + "x-a: caf\xc3\xa9\xff\r\n\r\n")},
		{name: "a folded line", differs: strictFraming, do: raw(start + "x-a: b\r\n c\r\n\r\n")},
		{name: "a line that begins with a space", do: raw("GET {p} HTTP/1.1\r\n host: x\r\n\r\n")},
		{name: "a space before the colon", do: raw(start + "x-a : b\r\n\r\n")},
		{name: "a tab before the colon", do: raw(start + "x-a\t: b\r\n\r\n")},
		{name: "no name", do: raw(start + ": b\r\n\r\n")},
		{name: "no colon", do: raw(start + "x-a\r\n\r\n")},
		{name: "a name with a bad character", do: raw(start + "x(a): b\r\n\r\n")},
		{name: "no host", do: raw("GET {p} HTTP/1.1\r\nx-case: {c}\r\n\r\n")},
		{name: "an empty host", differs: strictHost, do: raw("GET {p} HTTP/1.1\r\nhost: \r\nx-case: {c}\r\n\r\n")},
		{name: "two hosts", differs: strictHost, do: raw("GET {p} HTTP/1.1\r\nhost: a\r\nhost: b\r\nx-case: {c}\r\n\r\n")},
		{name: "a host with a bad character", do: raw("GET {p} HTTP/1.1\r\nhost: a b\r\nx-case: {c}\r\n\r\n")},
		{name: "a host with a path", do: raw("GET {p} HTTP/1.1\r\nhost: a/b\r\nx-case: {c}\r\n\r\n")},
		{name: "a host with a user", differs: strictHost, do: raw("GET {p} HTTP/1.1\r\nhost: u@b\r\nx-case: {c}\r\n\r\n")},
		{name: "absolute form", do: raw("GET http://abs.test{p}?x=1 HTTP/1.1\r\nhost: other\r\nx-case: {c}\r\n\r\n")},
		{name: "absolute form without a path", do: raw("GET http://abs.test HTTP/1.1\r\nhost: other\r\nx-case: {c}\r\n\r\n")},
		{name: "absolute form with https", differs: "https over plain text is refused", do: raw("GET https://abs.test{p} HTTP/1.1\r\nhost: other\r\nx-case: {c}\r\n\r\n")},
		{name: "absolute form with another scheme", do: raw("GET ftp://abs.test{p} HTTP/1.1\r\nhost: other\r\nx-case: {c}\r\n\r\n")},
		{name: "a target without a slash", do: raw("GET abc HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "the target star", do: raw("OPTIONS * HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "a fragment", do: raw("GET {p}#frag HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "a space in the target", do: raw("GET {p}/a b HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "high bytes in the target", do: raw("GET {p}/\xc3\xa9 HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "a control byte in the target", do: raw("GET {p}/\x01 HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "a method nobody knows", differs: anyMethod, do: raw("BREW {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "a method in lower case", differs: anyMethod, do: raw("get {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "a method with a bad character", do: raw("G@T {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "version 1.0", do: raw("GET {p} HTTP/1.0\r\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "version 1.2", do: raw("GET {p} HTTP/1.2\r\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "version 2.0", do: raw("GET {p} HTTP/2.0\r\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "no version", do: raw("GET {p}\r\n\r\n")},
		{name: "version in lower case", do: raw("GET {p} http/1.1\r\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "two spaces in the request line", differs: strictFraming, do: raw("GET  {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\n\r\n")},
		{name: "empty lines before the request", do: raw("\r\n\r\n" + start + "\r\n")},
		{name: "1.0 accepted", on: "old", do: steps(raw("GET {p} HTTP/1.0\r\nx-case: {c}\r\n\r\n"), anew, raw("GET {p} HTTP/1.0\r\nhost: x\r\nx-case: {c}\r\nconnection: keep-alive\r\n\r\n"))},
		{name: "1.0 with an encoding", differs: strictFraming, on: "old", do: raw("POST {p} HTTP/1.0\r\nx-case: {c}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")},
		{name: "1.0 and an answer without a length", on: "old", up: []answer{stream(200, nil, "abc")}, do: raw("GET {p} HTTP/1.0\r\nx-case: {c}\r\n\r\n")},
		{name: "tls spoken to plain text", do: raw("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")},
		{name: "underscores", do: h1("GET {p}", "x_a: 1")},
		{name: "underscores rejected", on: "reject", do: h1("GET {p}", "x_a: 1")},
		{name: "underscores dropped", on: "drop", do: h1("GET {p}", "x_a: 1", "x-b: 2")},
		{name: "fields that are too large", on: "small", do: raw(start + "x-a: " + strings.Repeat("a", 1500) + "\r\n\r\n")},
		{name: "a target that is too large", on: "small", do: raw("GET {p}/" + strings.Repeat("a", 1500) + " HTTP/1.1\r\nhost: x\r\n\r\n")},
		{name: "too many fields", on: "small", do: raw(start + strings.Repeat("x-a: b\r\n", 10) + "\r\n")},
		{name: "as many fields as allowed", on: "small", do: raw(start + strings.Repeat("x-a: b\r\n", 8) + "\r\n")},
		{name: "sixty kilobytes of fields", do: raw(start + "x-a: " + strings.Repeat("a", 61<<10) + "\r\n\r\n")},
		{name: "pipelining", up: []answer{after(100*ms, status(201)), status(202), status(203)}, do: steps(send(start+"\r\n"+start+"\r\n"+start+"\r\n"), receive, receive, receive)},
		{name: "pipelining after a bad request", do: steps(raw("GET {p} HTTP/1.1\r\nx-case: {c}\r\nhost : x\r\n\r\n"+smuggled), receive)},
		{name: "a denied request's body is no request", route: `{direct_response: {status: 403}}`, do: steps(raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: "+strconv.Itoa(len(smuggled))+"\r\n\r\n"+smuggled), h1("GET {p}"))},
		{name: "a request that is cut off", noLog: true, do: steps(send("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: 10\r\n\r\nabc"), wait(100*ms), anew, wait(100*ms))},
		{name: "a client that half closes", differs: halfClosed, do: steps(send(start+"\r\n"), halfClose, receive)},
		{name: "trailers are left out", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-t: 1\r\n\r\n")},
		{name: "nothing at all", differs: noLineForNothing, do: steps(send("\r\n"), halfClose, receive)},

		{name: "upstream: nonsense", cluster: `{type: STATIC}`, up: []answer{bytesThenClose("nonsense\r\n\r\n")}, do: h1("GET {p}")},
		{name: "upstream: length and chunked", cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")}, do: h1("GET {p}")},
		{name: "upstream: a bad chunk", cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n")}, do: h1("GET {p}")},
		{name: "upstream: cut off in the head", differs: cutOff, cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 200 OK\r\ncontent-le")}, do: h1("GET {p}")},
		{name: "upstream: cut off in the body", differs: cutOff, cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")}, do: h1("GET {p}")},
		{name: "upstream: cut off in the body for h2", differs: cutOff, cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")}, do: h2("GET {p}")},
		{name: "upstream: until it closes", cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 200 OK\r\n\r\nabc")}, do: h1("GET {p}")},
		{name: "upstream: until it closes for h2", cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 200 OK\r\n\r\nabc")}, do: h2("GET {p}")},
		{name: "upstream: version 1.0", cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nabc")}, do: h1("GET {p}")},
		{name: "upstream: more than its length", cluster: `{type: STATIC}`, up: []answer{bytesAs("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcdef"), ok}, do: steps(h1("GET {p}"), wait(50*ms), h1("GET {p}"))},
		{name: "upstream: two lengths that differ", cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd")}, do: h1("GET {p}")},
		{name: "upstream: fields that are too large", cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 200 OK\r\nx-a: " + strings.Repeat("a", 100<<10) + "\r\n\r\n")}, do: h1("GET {p}")},
		{name: "upstream: too many fields", cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 200 OK\r\n" + strings.Repeat("x-a: b\r\n", 101) + "content-length: 0\r\n\r\n")}, do: h1("GET {p}")},
		{name: "upstream: a zero byte", cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 200 OK\r\nx-a: b\x00c\r\ncontent-length: 0\r\n\r\n")}, do: h1("GET {p}")},
		{name: "upstream: a bare line feed", differs: strictFraming, cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 200 OK\ncontent-length: 0\n\n")}, do: h1("GET {p}")},
		{name: "upstream: status 999", cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n")}, do: h1("GET {p}")},
		{name: "upstream: status 99", differs: "a status below 100 is none", cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 99 Odd\r\ncontent-length: 0\r\n\r\n")}, do: h1("GET {p}")},
		{name: "upstream: no reason", up: []answer{bytesAs("HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n")}, do: h1("GET {p}")},
		{name: "upstream: an answer before the request's end", up: []answer{early(status(413))}, noUp: true, noLog: true, do: steps(send("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: 10\r\n\r\nabc"), receive)},
	},
}

// fields of a plain request, in the usual order.
func plain(more ...string) []string {
	return append([]string{":method: GET", ":scheme: http", ":path: {p}", ":authority: x", "x-case: {c}"}, more...)
}

// exactly is a request with these fields in this order.
func exactly(fields ...string) action { return h2Fields(append(fields, "as it is")...) }

var hygieneH2 = group{
	name: "hygiene-h2",
	listeners: []listener{{},
		{name: "stream", hcm: `{http2_protocol_options: {override_stream_error_on_invalid_http_message: true}}`},
		{name: "small", hcm: `{max_request_headers_kb: 1, common_http_protocol_options: {max_headers_count: 10}}`},
		{name: "reject", hcm: `{common_http_protocol_options: {headers_with_underscores_action: REJECT_REQUEST}}`},
		{name: "streams", hcm: `{http2_protocol_options: {max_concurrent_streams: 1}}`},
	},
	cases: []testCase{
		{name: "upper case", do: exactly(plain("X-Upper: 1")...)},
		{name: "upper case, the stream alone", on: "stream", do: exactly(plain("X-Upper: 1")...)},
		{name: "connection", do: exactly(plain("connection: close")...)},
		{name: "keep-alive", do: exactly(plain("keep-alive: timeout=5")...)},
		{name: "proxy-connection", do: exactly(plain("proxy-connection: close")...)},
		{name: "transfer-encoding", do: exactly(plain("transfer-encoding: chunked")...)},
		{name: "upgrade", do: exactly(plain("upgrade: h2c")...)},
		{name: "te", do: exactly(plain("te: gzip")...)},
		{name: "te trailers", do: exactly(plain("te: trailers")...)},
		{name: "pseudo fields after others", do: exactly("x-case: {c}", ":method: GET", ":scheme: http", ":path: {p}", ":authority: x")},
		{name: "pseudo fields twice", do: exactly(":method: GET", ":method: GET", ":scheme: http", ":path: {p}", ":authority: x", "x-case: {c}")},
		{name: "an unknown pseudo field", do: exactly(":method: GET", ":scheme: http", ":path: {p}", ":authority: x", ":other: 1", "x-case: {c}")},
		{name: "a pseudo field of answers", do: exactly(":method: GET", ":scheme: http", ":path: {p}", ":authority: x", ":status: 200", "x-case: {c}")},
		{name: "no method", do: exactly(":scheme: http", ":path: {p}", ":authority: x", "x-case: {c}")},
		{name: "no path", do: exactly(":method: GET", ":scheme: http", ":authority: x", "x-case: {c}")},
		{name: "an empty path", do: exactly(":method: GET", ":scheme: http", ":path: ", ":authority: x", "x-case: {c}")},
		{name: "no scheme", do: exactly(":method: GET", ":path: {p}", ":authority: x", "x-case: {c}")},
		{name: "no authority", differs: noAuthority, do: exactly(":method: GET", ":scheme: http", ":path: {p}", "x-case: {c}")},
		{name: "host in place of authority", do: exactly(":method: GET", ":scheme: http", ":path: {p}", "host: h", "x-case: {c}")},
		{name: "host beside authority", differs: otherHost, do: exactly(plain("host: other")...)},
		{name: "a path without a slash", do: exactly(":method: GET", ":scheme: http", ":path: abc", ":authority: x", "x-case: {c}")},
		{name: "a fragment", do: exactly(":method: GET", ":scheme: http", ":path: {p}#f", ":authority: x", "x-case: {c}")},
		{name: "a space in the path", do: exactly(":method: GET", ":scheme: http", ":path: {p}/a b", ":authority: x", "x-case: {c}")},
		{name: "a line feed in a value", do: exactly(plain("x-a: b\nc")...)},
		{name: "a carriage return in a value", do: exactly(plain("x-a: b\rc")...)},
		{name: "a zero byte in a value", do: exactly(plain("x-a: b\x00c")...)},
		{name: "a space around a value", differs: trimmed, do: exactly(plain("x-a:  b ")...)},
		{name: "an empty name", do: exactly(plain(": b")...)},
		{name: "a name with a space", do: exactly(plain("x a: b")...)},
		{name: "a bad authority", do: exactly(":method: GET", ":scheme: http", ":path: {p}", ":authority: a b", "x-case: {c}")},
		{name: "a user in the authority", do: exactly(":method: GET", ":scheme: http", ":path: {p}", ":authority: u@x", "x-case: {c}")},
		{name: "less data than the length", noUp: true, noLog: true, do: exactly(append(plain("content-length: 5"), "body=abc")...)},
		{name: "more data than the length", noUp: true, noLog: true, do: exactly(append(plain("content-length: 2"), "body=abc")...)},
		{name: "a length and no data", noUp: true, noLog: true, do: exactly(plain("content-length: 5")...)},
		{name: "a length that is none", do: exactly(append(plain("content-length: x"), "body=abc")...)},
		{name: "two lengths", do: exactly(append(plain("content-length: 3", "content-length: 4"), "body=abc")...)},
		{name: "scheme https", do: exactly(":method: GET", ":scheme: https", ":path: {p}", ":authority: x", "x-case: {c}")},
		{name: "a scheme nobody knows", do: exactly(":method: GET", ":scheme: ftp", ":path: {p}", ":authority: x", "x-case: {c}")},
		{name: "underscores rejected", on: "reject", do: exactly(plain("x_a: 1")...)},
		{name: "fields that are too large", differs: answeredTooLarge, on: "small", do: exactly(plain("x-a: " + strings.Repeat("a", 1500))...)},
		{name: "too many fields", differs: answeredTooLarge, on: "small", do: exactly(plain(strings.Split(strings.TrimSuffix(strings.Repeat("x-a: b\n", 12), "\n"), "\n")...)...)},
		{name: "pseudo fields in trailers", noUp: true, noLog: true, do: exactly(append(plain(), "body=abc", "trailer=:path: /x")...)},
		{name: "upper case trailers", noUp: true, noLog: true, do: exactly(append(plain(), "body=abc", "trailer=X-Upper: 1")...)},
		{name: "the client cancels", up: []answer{noAnswer}, do: steps(h2Start("GET {p}"), wait(150*ms), h2Reset, wait(100*ms))},
		{name: "a request that is not finished", up: []answer{ok}, noLog: true, do: steps(h2Start("POST {p}", "unfinished"), h2Data("abc", false), wait(100*ms), anew, wait(100*ms))},
		{name: "data on stream 0", do: h2Raw(func(h *h2Client) { h.fr.WriteData(0, false, []byte("x")) })},
		{name: "data on a stream that is not open", do: h2Raw(func(h *h2Client) { h.fr.WriteData(7, false, []byte("x")) })},
		{name: "headers on an even stream", do: h2Raw(func(h *h2Client) {
			h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2, BlockFragment: h.block([]string{":method: GET", ":scheme: http", ":path: /", ":authority: x"}), EndHeaders: true, EndStream: true})
		})},
		{name: "a window update of nothing", do: h2Raw(func(h *h2Client) { h.fr.WriteWindowUpdate(0, 0) })},
		{name: "a window that overflows", do: h2Raw(func(h *h2Client) { h.fr.WriteWindowUpdate(0, 1<<31-1) })},
		{name: "settings that are wrong", do: h2Raw(func(h *h2Client) {
			h.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		})},
		{name: "continuation without headers", do: h2Raw(func(h *h2Client) { h.fr.WriteContinuation(1, true, nil) })},
		{name: "push promise", do: h2Raw(func(h *h2Client) {
			h.fr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		})},
		{name: "a frame nobody knows", do: steps(func(c *client) {
			if h := c.dialH2(); h != nil {
				h.fr.WriteRawFrame(0xfe, 0, 0, []byte("x"))
			}
		}, h2("GET {p}"))},
		{name: "bad header compression", do: h2Raw(func(h *h2Client) {
			h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, EndHeaders: true, EndStream: true})
		})},
		{name: "a preface that goes on otherwise", differs: "a client is told what was wrong before the connection ends", do: steps(send("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"), eof)},
	},
}

var lenient = group{
	name: "codec-options",
	listeners: []listener{{},
		{name: "length", hcm: `{http_protocol_options: {allow_chunked_length: true}}`},
		{name: "trailers", hcm: `{http_protocol_options: {enable_trailers: true}}`},
		{name: "noabs", hcm: `{http_protocol_options: {allow_absolute_url: false}}`},
		{name: "http1", hcm: `{codec_type: HTTP1}`},
		{name: "http2", hcm: `{codec_type: HTTP2}`},
		{name: "preserve", hcm: `{http_protocol_options: {header_key_format: {stateful_formatter: {name: preserve_case, typed_config: {"@type": T/http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig}}}}}`},
		{name: "scheme", hcm: `{scheme_header_transformation: {scheme_to_overwrite: https}}`},
	},
	cases: []testCase{
		{name: "length and chunked may be", on: "length", do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")},
		{name: "trailers from h1 to h2", on: "trailers", route: `{route: {cluster: h2}}`, up: []answer{stream(200, nil, "abc", "x-up: 1")}, do: steps(raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-t: 1\r\n\r\n"))},
		{name: "absolute form refused", on: "noabs", do: raw("GET http://abs.test{p} HTTP/1.1\r\nhost: other\r\nx-case: {c}\r\n\r\n")},
		{name: "h1 alone", on: "http1", do: steps(h1("GET {p}"), anew, send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), receive)},
		{name: "h2 alone", differs: "a client is told what was wrong before the connection ends", on: "http2", do: steps(h2("GET {p}"), anew, send(start+"\r\n"), eof)},
		{name: "case kept", on: "preserve", up: []answer{status(200, "X-UP: 1")}, do: h1("GET {p}", "X-DoWn: 1")},
		{name: "scheme overwritten", on: "scheme", route: `{route: {cluster: h2}}`, do: steps(h2Anew("GET {p}"), h1("GET {p}"))},
		{name: "scheme from the proto", route: `{route: {cluster: h2}}`, do: steps(h1("GET {p}", "x-forwarded-proto: https"), h2Anew("GET {p}", "x-forwarded-proto: https"))},
	},
}

var paths = group{
	name: "paths",
	listeners: []listener{{},
		{name: "norm", hcm: `{normalize_path: true}`},
		{name: "merge", hcm: `{merge_slashes: true}`},
		{name: "both", hcm: `{normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD}`},
		{name: "reject", hcm: `{normalize_path: true, path_with_escaped_slashes_action: REJECT_REQUEST}`},
		{name: "redirect", hcm: `{path_with_escaped_slashes_action: UNESCAPE_AND_REDIRECT}`},
		{name: "forward", hcm: `{path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD}`},
	},
	cases: []testCase{
		{name: "as it is", do: steps(h1("GET {p}/a/../b"), h1("GET {p}//a"), h1("GET {p}/%2Fa"), h1("GET {p}/%61"), h1("GET {p}/a\\b"))},
		{name: "dots", on: "norm", do: steps(h1("GET {p}/a/../b"), h1("GET {p}/./b"), h1("GET {p}/a/b/.."), h1("GET {p}/a/."), h1("GET /x/..{p}"))},
		{name: "dots that leave the root", on: "norm", do: h1("GET /../../{c}")},
		{name: "escaped dots", on: "norm", do: steps(h1("GET {p}/a/%2e%2E/b"), h1("GET {p}/%2e/b"), h1("GET {p}/a/%252e%252e/b"))},
		{name: "escapes of plain characters", on: "norm", do: steps(h1("GET {p}/%61%7e%2d"), h1("GET {p}/%2f"), h1("GET {p}/%3F%23%5b"))},
		{name: "escapes in lower case", on: "norm", do: h1("GET {p}/%c3%a9%2f")},
		{name: "backslashes", on: "norm", do: steps(h1("GET {p}/a\\..\\b"), h1("GET {p}\\a"))},
		{name: "bad escapes", on: "norm", do: steps(h1("GET {p}/%zz"), h1("GET {p}/%"), h1("GET {p}/%00"))},
		{name: "the query stays", on: "norm", do: h1("GET {p}/a/../b?c=../%61/./d")},
		{name: "slashes stay", on: "norm", do: h1("GET {p}//a///b")},
		{name: "parameters", on: "norm", do: h1("GET {p}/a;x=1/..;y/b")},
		{name: "slashes are merged", on: "merge", do: steps(h1("GET //{c}//a///b//?c=//"), h1("GET {p}/"))},
		{name: "all together", on: "both", do: steps(h1("GET {p}/a%2f..%2fb"), h1("GET {p}%2F%2Fb"), h1("GET {p}/a/..//b"), h1("GET {p}/%5cb"))},
		{name: "escaped slashes rejected", on: "reject", do: steps(h1("GET {p}/a%2fb"), anew, h1("GET {p}/a%5Cb"), anew, h1("GET {p}/a?b=%2f"))},
		{name: "escaped slashes redirected", on: "redirect", do: steps(h1("GET {p}/a%2fb?c=d%2f"), anew, h1("GET {p}/a"))},
		{name: "escaped slashes forwarded", on: "forward", do: steps(h1("GET {p}/a%2Fb%5cc"), h1("GET {p}/a%252fb"))},
		{name: "a rejected path for grpc", on: "reject", do: h2("POST {p}/a%2fb", "content-type: application/grpc", "body=x")},
		{name: "at h2 alike", on: "both", do: h2("GET {p}/a/..//%2fb")},
		{name: "a normal path decides", on: "norm", route: `[{match: {prefix: "{p}/admin"}, direct_response: {status: 403}}, {match: {prefix: "{p}"}}]`, do: steps(h1("GET {p}/x/../admin"), h1("GET {p}/%61dmin"), h1("GET {p}/ADMIN"), h1("GET {p}//admin"))},
	},
}

const private = `internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}, {address_prefix: 10.0.0.0, prefix_len: 8}]}`

var addresses = group{
	name: "addresses",
	listeners: []listener{
		{name: "plain"},
		{name: "edge", hcm: `{use_remote_address: true}`},
		{name: "hops1", hcm: `{xff_num_trusted_hops: 1}`},
		{name: "edge1", hcm: `{use_remote_address: true, xff_num_trusted_hops: 1}`},
		{name: "plain internal", hcm: `{` + private + `}`},
		{name: "edge internal", hcm: `{use_remote_address: true, ` + private + `}`},
		{name: "hops1 internal", hcm: `{xff_num_trusted_hops: 1, ` + private + `}`},
		{name: "edge1 internal", hcm: `{use_remote_address: true, xff_num_trusted_hops: 1, ` + private + `}`},
		{name: "skip", hcm: `{use_remote_address: true, skip_xff_append: true}`},
		{name: "keepid", hcm: `{use_remote_address: true, preserve_external_request_id: true}`},
		{name: "showid", hcm: `{always_set_request_id_in_response: true}`},
		{name: "noid", hcm: `{generate_request_id: false}`},
		{name: "port", hcm: `{append_x_forwarded_port: true}`},
		{name: "detect", hcm: `{original_ip_detection_extensions: [{name: x, typed_config: {"@type": T/http.original_ip_detection.custom_header.v3.CustomHeaderConfig, header_name: x-client}}]}`},
	},
	cases: addressCases(),
}

// forwardings is what clients send in every combination of use_remote_address, trusted hops and internal addresses.
func forwardings() action {
	return steps(h1("GET {p}"), h1("GET {p}", "x-forwarded-for: 10.0.0.1"), h1("GET {p}", "x-forwarded-for: 1.2.3.4, 10.0.0.2"), h1("GET {p}", "x-forwarded-for: 1.2.3.4", "x-forwarded-for: 5.6.7.8, 9.9.9.9"),
		h1("GET {p}", "x-forwarded-for: nonsense"), h1("GET {p}", "x-forwarded-proto: https", "x-envoy-external-address: 7.7.7.7", "x-envoy-internal: true", "x-forwarded-host: h", "x-forwarded-port: 99"),
		h1("GET {p}", "x-forwarded-proto: gopher"), h1("GET {p}", "x-forwarded-for: ::1"))
}

func addressCases() []testCase {
	var out []testCase
	for _, on := range []string{"plain", "edge", "hops1", "edge1", "plain internal", "edge internal", "hops1 internal", "edge1 internal", "skip"} {
		out = append(out, testCase{name: on + ": forwarded for", on: on, route: `{request_headers_to_add: [{header: {key: x-client, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}]}`, do: forwardings()})
	}
	id := "x-request-id: 11111111-2222-4333-8444-555555555555"
	given := `[{match: {prefix: "{p}", headers: [{name: x-request-id, string_match: {safe_regex: {regex: "11111111-2222-[4a9b]333-8444-555555555555"}}}]}, direct_response: {status: 201}}, {match: {prefix: "{p}", headers: [{name: x-request-id, present_match: true}]}, direct_response: {status: 202}}, {direct_response: {status: 203}}]`
	for _, on := range []string{"plain", "edge", "edge internal", "keepid", "showid", "noid"} {
		out = append(out, testCase{name: on + ": request id", on: on, route: given, do: steps(h1("GET {p}"), h1("GET {p}", id), h1("GET {p}", "x-request-id: anything"))})
	}
	return append(out,
		testCase{name: "forwarded port", on: "port", do: steps(h1("GET {p}"), h1("GET {p}", "x-forwarded-port: 99"))},
		testCase{name: "the client's address from a header", on: "detect", route: `{request_headers_to_add: [{header: {key: x-seen, value: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}]}`, do: steps(h1("GET {p}", "x-client: 4.3.2.1"), h1("GET {p}"))},
		testCase{name: "at h2", on: "edge", do: h2("GET {p}", "x-forwarded-for: 1.1.1.1", "x-forwarded-proto: https")},
	)
}

// tlsChain is a filter chain with TLS.
func tlsChain(more string) string {
	return `{transport_socket: {name: envoy.transport_sockets.tls, typed_config: {"@type": T/transport_sockets.tls.v3.DownstreamTlsContext, ` + more + sep(more) + `
common_tls_context: {alpn_protocols: [h2, http/1.1], tls_certificates: [{certificate_chain: {filename: "{{server.crt}}"}, private_key: {filename: "{{server.key}}"}}], validation_context: {trusted_ca: {filename: "{{ca.crt}}"}}}}}}`
}

func sep(s string) string {
	if s == "" {
		return ""
	}
	return ","
}

func xfcc(mode, details string) string {
	return `{forward_client_cert_details: ` + mode + `, set_current_client_cert_details: {` + details + `}}`
}

var certificates = group{
	name: "certificates",
	listeners: func() (out []listener) {
		for _, mode := range []string{"SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY"} {
			out = append(out, listener{name: mode, hcm: xfcc(mode, `subject: true, uri: true, dns: true`), chain: tlsChain(``)},
				listener{name: mode + " plain", hcm: xfcc(mode, `subject: true, uri: true, dns: true`)})
		}
		return append(out, listener{name: "cert", hcm: xfcc("SANITIZE_SET", `cert: true`), chain: tlsChain(``)},
			listener{name: "bare", hcm: xfcc("SANITIZE_SET", ``), chain: tlsChain(``)},
			listener{name: "required", chain: tlsChain(`require_client_certificate: true`), vhost: `{request_headers_to_add: [{header: {key: x-peer, value: "%DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_PEER_DNS_SAN% %DOWNSTREAM_PEER_SUBJECT% %DOWNSTREAM_PEER_ISSUER% %DOWNSTREAM_PEER_SERIAL% %DOWNSTREAM_LOCAL_URI_SAN% %DOWNSTREAM_TLS_VERSION% %REQUESTED_SERVER_NAME%"}}]}`},
			listener{name: "edge", hcm: `{use_remote_address: true}`, chain: tlsChain(``)},
		)
	}(),
	cases: func() (out []testCase) {
		for _, mode := range []string{"SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY"} {
			both := steps(h1("GET {p}"), h1("GET {p}", "x-forwarded-client-cert: By=spiffe://td/svc/proxy;URI=spiffe://td/svc/first"))
			out = append(out, testCase{name: "xfcc " + mode, on: mode, do: over(mtls, both)},
				testCase{name: "xfcc " + mode + " without a certificate", on: mode, do: over(tlsPlain, both)},
				testCase{name: "xfcc " + mode + " without tls", on: mode + " plain", do: both})
		}
		return append(out,
			testCase{name: "xfcc with the certificate", on: "cert", do: over(mtls, h1("GET {p}"))},
			testCase{name: "xfcc with the hash alone", on: "bare", do: over(mtls, h1("GET {p}"))},
			testCase{name: "a certificate is required", on: "required", noLog: true, do: over(tlsPlain, h1("GET {p}"))},
			testCase{name: "a certificate from elsewhere", on: "required", noLog: true, do: over(stranger, h1("GET {p}"))},
			testCase{name: "the peer in headers", differs: serverNameKnown, on: "required", do: steps(over(mtls, h1("GET {p}")), over(mtlsH2, h2("GET {p}", ":scheme: https")))},
			testCase{name: "proto over tls", on: "edge", do: steps(over(tlsPlain, h1("GET {p}", "x-forwarded-proto: http")), over(sni("server.test", "h2"), h2("GET {p}")))},
			testCase{name: "a protocol nobody speaks", on: "edge", do: over(sni("server.test", "foo"), h1("GET {p}"))},
		)
	}(),
}

// upgraded answers 101 and then echoes.
var upgraded = answer{early: true, do: func(x exchange) {
	x.head(101, "upgrade: websocket", "connection: upgrade")
	c, br := x.conn()
	b := make([]byte, 100)
	c.SetReadDeadline(time.Now().Add(patience))
	for {
		n, err := br.Read(b)
		if err != nil {
			x.hangUp()
			return
		}
		if string(b[:n]) == "bye" {
			io.WriteString(c, "BYE")
			x.hangUp()
			return
		}
		io.WriteString(c, strings.ToUpper(string(b[:n])))
	}
}}

var protocols = group{
	name: "protocols",
	listeners: []listener{{},
		{name: "ws", hcm: `{upgrade_configs: [{upgrade_type: websocket}]}`},
		{name: "wsoff", hcm: `{upgrade_configs: [{upgrade_type: websocket, enabled: false}]}`},
		{name: "wsidle", hcm: `{upgrade_configs: [{upgrade_type: websocket}], stream_idle_timeout: 0.4s}`},
		{name: "continue", hcm: `{proxy_100_continue: true}`},
		{name: "connect", hcm: `{upgrade_configs: [{upgrade_type: CONNECT}], http2_protocol_options: {allow_connect: true}}`},
		{name: "h2ws", hcm: `{upgrade_configs: [{upgrade_type: websocket}], http2_protocol_options: {allow_connect: true}}`},
	},
	cases: []testCase{
		{name: "head", up: []answer{{do: func(x exchange) { x.head(200, "content-length: 5"); x.end() }}}, do: steps(h1("HEAD {p}"), h1("HEAD {p}"), h2Anew("HEAD {p}"))},
		{name: "head of something chunked", differs: noFramingForHead, up: []answer{{do: func(x exchange) { x.head(200); x.end() }}, ok}, do: steps(h1("HEAD {p}"), h1("GET {p}"))},
		{name: "204", up: []answer{status(204)}, do: steps(h1("GET {p}"), h1("GET {p}"), h2Anew("GET {p}"))},
		{name: "204 with a length", up: []answer{bytesAs("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n")}, do: h1("GET {p}")},
		{name: "204 with an encoding", cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")}, do: h1("GET {p}")},
		{name: "304", up: []answer{bytesAs("HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\netag: \"a\"\r\n\r\n")}, do: steps(h1("GET {p}"), h2Anew("GET {p}"))},
		{name: "chunked", up: []answer{stream(200, nil, "abc")}, do: steps(h1("GET {p}"), h2Anew("GET {p}"))},
		{name: "an empty body", up: []answer{status(200, "body=")}, do: steps(h1("GET {p}"), h2Anew("GET {p}"))},
		{name: "chunked and empty", up: []answer{stream(200, nil, "")}, do: h1("GET {p}")},
		{name: "103", differs: earlyHints, up: []answer{bytesAs("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")}, do: steps(h1("GET {p}"), h2Anew("GET {p}"))},
		{name: "102", up: []answer{bytesAs("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")}, do: h1("GET {p}")},
		{name: "100 nobody asked for", up: []answer{bytesAs("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")}, do: h1("GET {p}")},
		{name: "100 asked for", do: steps(send("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"), send("abc"), receive)},
		{name: "100 asked for at h2", do: h2("POST {p}", "expect: 100-continue", "body=abc")},
		{name: "100 passed through", on: "continue", up: []answer{early(answer{do: func(x exchange) {
			x.raw("HTTP/1.1 100 Continue\r\n\r\n")
			time.Sleep(100 * ms)
			x.raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
		}})}, do: steps(send("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc"), receive)},
		{name: "another expectation", do: h1("POST {p}", "expect: wonders", "body=abc")},
		{name: "101 nobody asked for", differs: "an upgrade that nobody asked for is no answer, and bytes after it are nobody's", cluster: `{type: STATIC}`, up: []answer{bytesThenClose("HTTP/1.1 101 Switching Protocols\r\nupgrade: foo\r\nconnection: upgrade\r\n\r\n")}, do: h1("GET {p}")},
		{name: "a get with a body", do: h1("GET {p}", "body=abc")},
		{name: "a post without a body", do: steps(raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\n\r\n"), h2Anew("POST {p}"))},
		{name: "a large body both ways", up: []answer{status(200, "body="+strings.Repeat("y", 300_000))}, do: h1("POST {p}", "body="+strings.Repeat("x", 300_000))},
		{name: "many requests on a connection", up: []answer{ok, stream(200, nil, "x"), status(404)}, do: steps(h1("GET {p}"), h1("POST {p}", "body=a"), h1("GET {p}"), h1("HEAD {p}"), h1("GET {p}"))},
		{name: "upstream closes after each", up: []answer{status(200, "connection: close")}, do: repeat(2, h1("GET {p}"))},
		{name: "methods", differs: noEmptyLength, do: steps(h1("PUT {p}", "body=a"), h1("DELETE {p}"), h1("PATCH {p}", "body=b"), h1("OPTIONS {p}"), h1("TRACE {p}"), h1("PROPFIND {p}"))},

		{name: "websocket", on: "ws", up: []answer{upgraded}, do: steps(h1("GET {p}", "connection: Upgrade", "upgrade: WebSocket", "sec-websocket-key: abc"), talk("hi", 2), talk("you", 3), talk("bye", 3), eof)},
		{name: "websocket not allowed", do: h1("GET {p}", "connection: Upgrade", "upgrade: websocket")},
		{name: "websocket switched off", on: "wsoff", do: h1("GET {p}", "connection: Upgrade", "upgrade: websocket")},
		{name: "websocket by the route", route: `{route: {upgrade_configs: [{upgrade_type: websocket}]}}`, up: []answer{upgraded}, do: steps(h1("GET {p}", "connection: upgrade", "upgrade: websocket"), talk("hi", 2))},
		{name: "websocket forbidden by the route", on: "ws", route: `{route: {upgrade_configs: [{upgrade_type: websocket, enabled: false}]}}`, do: h1("GET {p}", "connection: upgrade", "upgrade: websocket")},
		{name: "websocket refused upstream", on: "ws", up: []answer{status(403)}, do: steps(h1("GET {p}", "connection: Upgrade", "upgrade: websocket"))},
		{name: "websocket outlives the timeout", on: "ws", route: `{route: {timeout: 0.2s}}`, up: []answer{upgraded}, do: steps(h1("GET {p}", "connection: Upgrade", "upgrade: websocket"), wait(400*ms), talk("hi", 2))},
		{name: "websocket idles out", on: "wsidle", up: []answer{upgraded}, do: steps(h1("GET {p}", "connection: Upgrade", "upgrade: websocket"), talk("hi", 2), took(200*ms, 2500*ms, eof))},
		{name: "websocket with bytes that come early", on: "ws", up: []answer{upgraded}, do: steps(send("GET {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi"), receive, talk("", 2))},
		{name: "websocket: the client leaves", on: "ws", up: []answer{upgraded}, do: steps(h1("GET {p}", "connection: Upgrade", "upgrade: websocket"), talk("hi", 2), anew, wait(100*ms))},
		{name: "another upgrade", on: "ws", do: h1("GET {p}", "connection: Upgrade", "upgrade: foo")},
		{name: "upgrade not named by connection", on: "ws", do: h1("GET {p}", "upgrade: websocket")},
		{name: "upgrade to h2c", do: h1("GET {p}", "connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAAP__")},
		{name: "websocket from h2", differs: tunnelEnds, on: "h2ws", up: []answer{upgraded}, do: steps(h2Start("CONNECT {p}", ":protocol: websocket", "unfinished"), wait(150*ms), h2Data("hi", false), wait(100*ms), h2Data("bye", false), h2Rest)},
		{name: "connect refused", do: steps(raw("CONNECT host.test:443 HTTP/1.1\r\nhost: host.test:443\r\nx-case: {c}\r\n\r\n"), anew, h2Fields(":method: CONNECT", ":authority: host.test:443", "x-case: {c}"))},
		{name: "connect without a route for it", on: "connect", do: raw("CONNECT other.test:443 HTTP/1.1\r\nhost: other.test:443\r\nx-case: {c}\r\n\r\n")},
		{name: "connect ended here", on: "connect", route: `{match: {connect_matcher: {}, headers: [{name: ":authority", string_match: {exact: "tunnel.test:80"}}]}, route: {upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}}`, do: steps(send("CONNECT tunnel.test:80 HTTP/1.1\r\nhost: tunnel.test:80\r\nx-case: {c}\r\n\r\n"), connected, h1("GET {p}/inside"))},
	},
}

// connected reads the head of an answer to CONNECT.
func connected(c *client) {
	if c.conn == nil {
		return
	}
	line, err := c.br.ReadString('\n')
	for l := line; err == nil && l != "\r\n"; {
		l, err = c.br.ReadString('\n')
	}
	c.say("< %s %v", strings.TrimSpace(line), err)
}

var grpcOK = stream(200, []string{"content-type: application/grpc", "x-i: 1"}, "\x00\x00\x00\x00\x02ok", "grpc-status: 0", "grpc-message: fine", "x-t-bin: AAE=")

var translation = group{
	name:      "translation",
	clusters:  `{auto: {hosts: [a], typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": T/upstreams.http.v3.HttpProtocolOptions, use_downstream_protocol_config: {http_protocol_options: {}, http2_protocol_options: {}}}}}}`,
	listeners: []listener{{}, {name: "trailers", hcm: `{http_protocol_options: {enable_trailers: true}}`}},
	cases: []testCase{
		{name: "h1 to h2", route: `{route: {cluster: h2}}`, up: []answer{status(200, "x-a: 1")}, do: steps(h1("POST {p}?q", "connection: x-gone", "x-gone: 1", "cookie: a=1; b=2", "body=abc"), h1("GET {p}"))},
		{name: "h2 to h1", up: []answer{status(200, "x-a: 1", "connection: close")}, do: steps(h2("POST {p}?q", "cookie: a=1", "cookie: b=2", "body=abc"), h2("GET {p}"))},
		{name: "h2 to h2", route: `{route: {cluster: h2}}`, do: h2("POST {p}", "content-length: 3", "cookie: a=1", "cookie: b=2", "body=abc")},
		{name: "as the client speaks", route: `{route: {cluster: auto}}`, do: steps(h1("GET {p}"), h2Anew("GET {p}"))},
		{name: "h2 body without a length to h1", do: h2("POST {p}", "body=abc", "body=def")},
		{name: "h1 chunked to h2", route: `{route: {cluster: h2}}`, do: raw("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")},
		{name: "trailers from h2 to h2", route: `{route: {cluster: h2}}`, up: []answer{stream(200, nil, "x", "x-up: 1")}, do: h2("POST {p}", "body=abc", "trailer=x-t: 1")},
		{name: "trailers from h2 to h1", up: []answer{bytesAs("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-up: 1\r\n\r\n")}, do: h2("POST {p}", "body=abc", "trailer=x-t: 1")},
		{name: "trailers from upstream h2 to h1", on: "trailers", route: `{route: {cluster: h2}}`, up: []answer{stream(200, nil, "x", "x-up: 1")}, do: h1("GET {p}")},
		{name: "trailers from upstream h2 to h1 left out", route: `{route: {cluster: h2}}`, up: []answer{stream(200, nil, "x", "x-up: 1")}, do: h1("GET {p}")},
		{name: "grpc", route: `{route: {cluster: h2}}`, up: []answer{grpcOK}, do: h2("POST {p}", "content-type: application/grpc", "te: trailers", "grpc-timeout: 5S", "x-bin-bin: AAE=", "body=\x00\x00\x00\x00\x01a")},
		{name: "grpc: trailers only", route: `{route: {cluster: h2}}`, up: []answer{headersOnly(200, "content-type: application/grpc", "grpc-status: 5", "grpc-message: not%20here")}, do: h2("POST {p}", "content-type: application/grpc", "te: trailers", "body=x")},
		{name: "grpc: trailers without data", route: `{route: {cluster: h2}}`, up: []answer{stream(200, []string{"content-type: application/grpc"}, "", "grpc-status: 5")}, do: h2("POST {p}", "content-type: application/grpc", "te: trailers", "body=x")},
		{name: "grpc: an http error", route: `{route: {cluster: h2}}`, up: []answer{status(503, "content-type: text/html")}, do: h2("POST {p}", "content-type: application/grpc", "te: trailers", "body=x")},
		{name: "grpc: reset", route: `{route: {cluster: h2}}`, up: []answer{reset}, do: h2("POST {p}", "content-type: application/grpc", "te: trailers", "body=x")},
		{name: "grpc: reset after the head", route: `{route: {cluster: h2}}`, up: []answer{{do: func(x exchange) {
			x.head(200, "content-type: application/grpc")
			x.body("abc")
			time.Sleep(50 * ms)
			x.reset()
		}}}, do: h2("POST {p}", "content-type: application/grpc", "te: trailers", "body=x")},
		{name: "grpc: goaway", cluster: `{h2: true}`, up: []answer{hangUp}, do: h2("POST {p}", "content-type: application/grpc", "te: trailers", "body=x")},
		{name: "refused stream", route: `{route: {cluster: h2}}`, up: []answer{refuse}, do: h1("GET {p}")},
		{name: "upstream h2 that speaks h1", route: `{route: {cluster: h2}}`, noUp: true, noLog: true, do: h1("GET {p}"), up: []answer{ok}},
		{name: "an early answer at h2", route: `{route: {cluster: h2}}`, up: []answer{earlyH2(headersOnly(413))}, noUp: true, do: steps(h2Start("POST {p}", "unfinished"), h2Data("abc", false), h2Rest)},
		{name: "an upstream with an upper case name", route: `{route: {cluster: h2}}`, up: []answer{headersOnly(200, "X-Upper: 1")}, do: h1("GET {p}")},
		{name: "an upstream with a connection field", route: `{route: {cluster: h2}}`, up: []answer{headersOnly(200, "connection: close")}, do: h1("GET {p}")},
		{name: "an upstream whose data is not its length", route: `{route: {cluster: h2}}`, noLog: true, up: []answer{{do: func(x exchange) { x.head(200, "content-length: 10"); x.body("abc"); x.end() }}}, do: h2("GET {p}")},
		{name: "head at h2", route: `{route: {cluster: h2}}`, up: []answer{headersOnly(200, "content-length: 10")}, do: steps(h2("HEAD {p}"), anew, h1("HEAD {p}"))},
		{name: "103 at h2", differs: earlyHints, route: `{route: {cluster: h2}}`, up: []answer{{do: func(x exchange) { x.head(103, "link: </a>"); x.head(200); x.body("ok"); x.end() }}}, do: h2("GET {p}")},
	},
}

var mirrors = group{
	name:     "mirrors-and-hashes",
	clusters: `{ring: {hosts: [a, b, c], lb_policy: RING_HASH}, maglev: {hosts: [a, b, c], lb_policy: MAGLEV, maglev_lb_config: {table_size: 1009}}}`,
	cases: []testCase{
		{name: "mirror", route: `{route: {cluster: a, request_mirror_policies: [{cluster: c}]}}`, sorted: true, do: steps(h1("POST {p}", "host: h", "body=abc"), wait(100*ms))},
		{name: "mirror with a port", route: `{route: {cluster: a, request_mirror_policies: [{cluster: c}]}}`, sorted: true, do: steps(h1("GET {p}", "host: h:80"), wait(100*ms))},
		{name: "mirror none", route: `{route: {cluster: a, request_mirror_policies: [{cluster: c, runtime_fraction: {default_value: {numerator: 0}}}]}}`, do: steps(h1("GET {p}"), wait(50*ms))},
		{name: "mirror to nobody", route: `{route: {cluster: a, request_mirror_policies: [{cluster: refused}]}}`, do: h1("GET {p}")},
		{name: "mirror without the suffix", route: `{route: {cluster: a, request_mirror_policies: [{cluster: c, disable_shadow_host_suffix_append: true}]}}`, sorted: true, do: steps(h1("GET {p}"), wait(100*ms))},
		{name: "mirror that is slow", route: `{route: {cluster: b, request_mirror_policies: [{cluster: c}]}}`, upC: []answer{noAnswer}, noUp: true, noLog: true, do: took(0, 1000*ms, h1("GET {p}", "x-slow: 1"))},
		{name: "mirror at h2 with trailers", route: `{route: {cluster: h2, request_mirror_policies: [{cluster: h2}]}}`, sorted: true, do: steps(h2("POST {p}", "body=abc", "trailer=x-t: 1"), wait(100*ms))},
		{name: "mirror after a rewrite", route: `{route: {cluster: a, prefix_rewrite: /new, host_rewrite_literal: other, request_mirror_policies: [{cluster: c}]}}`, sorted: true, do: steps(h1("GET {p}"), wait(100*ms))},
		{name: "hash: by header", route: `{route: {cluster: ring, hash_policy: [{header: {header_name: x-user}}]}}`, noUp: true, noLog: true, do: sticky(func(i int) string { return fmt.Sprintf("x-user: u%d", i) })},
		{name: "hash: by cookie", route: `{route: {cluster: maglev, hash_policy: [{cookie: {name: session}}]}}`, noUp: true, noLog: true, do: sticky(func(i int) string { return fmt.Sprintf("cookie: a=b; session=s%d", i) })},
		{name: "hash: by query", route: `{route: {cluster: ring, hash_policy: [{query_parameter: {name: q}}]}}`, noUp: true, noLog: true, do: sticky(func(i int) string { return fmt.Sprintf("?q=%d", i) })},
		{name: "hash: by address", route: `{route: {cluster: ring, hash_policy: [{connection_properties: {source_ip: true}}]}}`, noUp: true, noLog: true, do: sticky(func(int) string { return "x-any: 1" })},
		{name: "hash: a cookie is made", route: `{route: {cluster: ring, hash_policy: [{cookie: {name: stick, ttl: 60s, path: /p}}]}}`, noUp: true, noLog: true, do: cookieMade},
	},
}

// sticky sends each of some requests twice and says so when the two went to different hosts, or all to the same.
func sticky(field func(int) string) action {
	return func(c *client) {
		hosts := map[string]bool{}
		for i := range 12 {
			var got [2]string
			for j := range got {
				line := "GET {p}"
				f := field(i)
				if f[0] == '?' {
					line, f = line+f, "x-any: 1"
				}
				sub := &client{c: c.c, w: c.w, port: c.port}
				h1(line, f)(sub)
				sub.hangUp()
				c.w.mu.Lock()
				if seen := c.w.seen[c.c.slug()]; len(seen) > 0 {
					got[j] = seen[len(seen)-1][:1]
				}
				c.w.mu.Unlock()
			}
			if got[0] != got[1] {
				c.say("request %d went to %s and then to %s", i, got[0], got[1])
			}
			hosts[got[0]] = true
		}
		c.say("more than one host: %v", len(hosts) > 1)
	}
}

// cookieMade tells the form of the cookie that a proxy makes, and whether it makes another when it has one.
func cookieMade(c *client) {
	get := func(fields ...string) string {
		sub := &client{c: c.c, w: c.w, port: c.port}
		h1("GET {p}", fields...)(sub)
		sub.hangUp()
		for l := range strings.SplitSeq(sub.out.String(), "\n") {
			if v, ok := strings.CutPrefix(l, "<   set-cookie: "); ok {
				return v
			}
		}
		return ""
	}
	made := get()
	cookie, err := http.ParseSetCookie(made)
	if err != nil {
		c.say("no cookie: %q", made)
		return
	}
	c.say("cookie %s%s", cookie.Name, strings.Replace(strings.SplitN(made, "=", 2)[1], cookie.Value, "…", 1))
	c.say("value of %d characters; again: %q", len(cookie.Value), get("cookie: stick="+cookie.Value))
}

var replies = group{
	name: "local-replies",
	listeners: []listener{{},
		{name: "mapped", hcm: `{local_reply_config: {mappers: [
{filter: {status_code_filter: {comparison: {op: EQ, value: {default_value: 404, runtime_key: x}}}}, status_code: 410, body: {inline_string: "gone: %LOCAL_REPLY_BODY%%REQ(:path)%"}, headers_to_add: [{header: {key: x-mapped, value: "1"}}]},
{filter: {response_flag_filter: {flags: [UF]}}, body_format_override: {json_format: {code: "%RESPONSE_CODE%", flags: "%RESPONSE_FLAGS%", text: "%LOCAL_REPLY_BODY%"}}}],
body_format: {text_format_source: {inline_string: "<%LOCAL_REPLY_BODY%> %RESPONSE_CODE%\n"}, content_type: "text/html; charset=UTF-8"}}}`},
	},
	cases: []testCase{
		{name: "mapped: no route", on: "mapped", do: steps(h1("GET /nothing"), h1("HEAD /nothing"))},
		{name: "mapped: by flag", on: "mapped", route: `{route: {cluster: refused}}`, do: h1("GET {p}")},
		{name: "mapped: the rest by format", on: "mapped", route: `{route: {cluster: none}}`, do: h1("GET {p}")},
		{name: "mapped: answers of upstreams stay", on: "mapped", up: []answer{status(404)}, do: h1("GET {p}")},
		{name: "mapped: direct responses", on: "mapped", route: `{direct_response: {status: 404, body: {inline_string: body}}}`, do: h1("GET {p}")},
		{name: "mapped: bad requests", on: "mapped", do: raw("GET {p} HTTP/1.1\r\nhost : x\r\n\r\n")},
		{name: "grpc: no route", do: h2("POST /nothing", "content-type: application/grpc", "body=x")},
		{name: "grpc: no host", route: `{route: {cluster: none}}`, do: h2("POST {p}", "content-type: application/grpc+proto", "body=x")},
		{name: "grpc: no connection", route: `{route: {cluster: refused}}`, do: h2("POST {p}", "content-type: application/grpc", "body=x")},
		{name: "grpc: no cluster", route: `{route: {cluster_header: x-none}}`, do: h2("POST {p}", "content-type: application/grpc", "x-none: y", "body=x")},
		{name: "grpc: over h1", route: `{route: {cluster: none}}`, do: h1("POST {p}", "content-type: application/grpc", "body=x")},
		{name: "grpc: direct responses by status", route: `[{match: {prefix: "{p}/400"}, direct_response: {status: 400}}, {match: {prefix: "{p}/401"}, direct_response: {status: 401}}, {match: {prefix: "{p}/403"}, direct_response: {status: 403}}, {match: {prefix: "{p}/404"}, direct_response: {status: 404}}, {match: {prefix: "{p}/429"}, direct_response: {status: 429, body: {inline_string: "a b%\n"}}}, {match: {prefix: "{p}/500"}, direct_response: {status: 500}}, {match: {prefix: "{p}/504"}, direct_response: {status: 504}}, {match: {prefix: "{p}/200"}, direct_response: {status: 200, body: {inline_string: text}}}]`, do: func(c *client) {
			for _, code := range []string{"400", "401", "403", "404", "429", "500", "504", "200"} {
				h2("POST {p}/"+code, "content-type: application/grpc", "body=x")(c)
			}
		}},
		{name: "not grpc: web", route: `{route: {cluster: none}}`, do: h1("POST {p}", "content-type: application/grpc-web", "body=x")},
		{name: "a body that nobody reads", route: `{direct_response: {status: 401}}`, do: steps(h1("POST {p}", "body="+strings.Repeat("x", 3000)), h1("GET {p}"))},
		{name: "an answer before the body is there", route: `{direct_response: {status: 401}}`, noLog: true, do: steps(send("POST {p} HTTP/1.1\r\nhost: x\r\nx-case: {c}\r\ncontent-length: 10\r\n\r\nabc"), receive)},
	},
}

var logs = group{
	name: "access-logs",
	listeners: []listener{
		logged("default", ``),
		logged("json", `log_format: {json_format: {code: "%RESPONSE_CODE%", flags: "%RESPONSE_FLAGS%", long: "%RESPONSE_FLAGS_LONG%", path: "%REQ(:PATH)%", missing: "%REQ(x-missing)%", both: "%REQ(x-missing?:METHOD)% %PROTOCOL%", deep: {tx: "%BYTES_SENT%", fixed: text}}}`),
		logged("omit", `log_format: {omit_empty_values: true, json_format: {code: "%RESPONSE_CODE%", missing: "%REQ(x-missing)%"}}`),
		logged("text", `log_format: {text_format_source: {inline_string: "%REQ(:METHOD)% %REQ(:PATH):6% %REQ(X-MISSING?USER-AGENT)% %RESP(x-up)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_FLAGS_LONG% %RESPONSE_CODE_DETAILS% %PROTOCOL% %UPSTREAM_PROTOCOL% %ROUTE_NAME% %VIRTUAL_CLUSTER_NAME% %UPSTREAM_CLUSTER% %UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %REQUESTED_SERVER_NAME% %DOWNSTREAM_PEER_URI_SAN% %GRPC_STATUS% %GRPC_STATUS_NUMBER% %UPSTREAM_TRANSPORT_FAILURE_REASON% %CONNECTION_TERMINATION_DETAILS% %FILTER_CHAIN_NAME% %ACCESS_LOG_TYPE% %UPSTREAM_REQUEST_ATTEMPT_COUNT% %% %LOCAL_REPLY_BODY%\n"}}`),
		logged("trailers", `log_format: {text_format_source: {inline_string: "%TRAILER(grpc-status)% %RESP(content-type)% %GRPC_STATUS% %GRPC_STATUS(CAMEL_STRING)% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)%\n"}}`),
		logged("sizes", `log_format: {text_format_source: {inline_string: "%BYTES_RECEIVED% %BYTES_SENT% %REQUEST_HEADERS_BYTES% %RESPONSE_TRAILERS_BYTES%\n"}}`),
		logged("meta", `log_format: {text_format_source: {inline_string: "%METADATA(ROUTE:m:k)% %CLUSTER_METADATA(m:k)% %UPSTREAM_METADATA(m:k)% %DYNAMIC_METADATA(m:k)%\n"}}`),
		filtered("status", `{status_code_filter: {comparison: {op: GE, value: {default_value: 400, runtime_key: x}}}}`),
		filtered("header", `{header_filter: {header: {name: x-log, string_match: {exact: "1"}}}}`),
		filtered("flag", `{response_flag_filter: {flags: [NR, UF]}}`),
		filtered("anyflag", `{response_flag_filter: {}}`),
		filtered("grpc", `{grpc_status_filter: {statuses: [NOT_FOUND]}}`),
		filtered("and", `{and_filter: {filters: [{status_code_filter: {comparison: {op: EQ, value: {default_value: 200, runtime_key: x}}}}, {header_filter: {header: {name: x-log, present_match: true}}}]}}`),
		filtered("or", `{or_filter: {filters: [{status_code_filter: {comparison: {op: EQ, value: {default_value: 404, runtime_key: x}}}}, {header_filter: {header: {name: x-log, present_match: true}}}]}}`),
		filtered("duration", `{duration_filter: {comparison: {op: GE, value: {default_value: 100, runtime_key: x}}}}`),
	},
	cases: []testCase{
		{name: "the default format", on: "default", do: steps(h1("GET {p}", "user-agent: me"), wait(1100*ms), tellLog("default"))},
		{name: "json", on: "json", do: steps(h1("GET {p}"), h1("GET /none"), wait(1100*ms), tellLog("json"))},
		{name: "json without empty values", on: "omit", do: steps(h1("GET {p}"), wait(1100*ms), tellLog("omit"))},
		{name: "operators", differs: logKnowsMore, on: "text", route: `{name: the-route}`, up: []answer{status(201, "x-up: yes")}, do: steps(h1("GET {p}", "user-agent: me"), h1("GET /none"), wait(1100*ms), tellLog("text"))},
		{name: "operators of failures", differs: logKnowsMore, on: "text", route: `{name: fails, route: {cluster: refused}}`, do: steps(h1("GET {p}"), wait(1100*ms), tellLog("text"))},
		{name: "operators of bad requests", differs: logKnowsMore, on: "text", do: steps(raw("GET {p} HTTP/1.1\r\nhost : x\r\n\r\n"), wait(1100*ms), tellLog("text"))},
		{name: "trailers", on: "trailers", route: `{route: {cluster: h2}}`, up: []answer{stream(200, []string{"content-type: application/grpc"}, "", "grpc-status: 5")}, do: steps(h2("POST {p}", "content-type: application/grpc", "body=x"), wait(1100*ms), tellLog("trailers"))},
		{name: "metadata", on: "meta", cluster: `{metadata: {filter_metadata: {m: {k: of the cluster}}}, hosts: [{host: a, metadata: {filter_metadata: {m: {k: of the host}}}}]}`, route: `{metadata: {filter_metadata: {m: {k: of the route}}}}`, do: steps(h1("GET {p}"), wait(1100*ms), tellLog("meta"))},
		{name: "only some statuses", on: "status", up: []answer{ok, status(404)}, do: repeat(2, h1("GET {p}"))},
		{name: "only some headers", on: "header", do: steps(h1("GET {p}", "x-log: 1"), h1("GET {p}"))},
		{name: "only some flags", on: "flag", do: steps(h1("GET {p}"), h1("GET /none"))},
		{name: "only with flags", on: "anyflag", do: steps(h1("GET {p}"), h1("GET /none"))},
		{name: "only some grpc statuses", on: "grpc", route: `{route: {cluster: h2}}`, up: []answer{headersOnly(200, "content-type: application/grpc", "grpc-status: 5"), headersOnly(200, "content-type: application/grpc", "grpc-status: 0")}, do: repeat(2, h2("POST {p}", "content-type: application/grpc", "body=x"))},
		{name: "and", on: "and", up: []answer{ok, ok, status(404)}, do: steps(h1("GET {p}", "x-log: 1"), h1("GET {p}"), h1("GET {p}", "x-log: 1"))},
		{name: "or", on: "or", up: []answer{ok, ok, status(404)}, do: steps(h1("GET {p}", "x-log: 1"), h1("GET {p}"), h1("GET {p}"))},
		{name: "only what takes long", on: "duration", up: []answer{ok, after(250*ms, ok)}, do: repeat(2, h1("GET {p}"))},
	},
}

// logged has a log of its own beside the usual one.
func logged(name, format string) listener {
	return listener{name: name, chain: `{name: chain}`, hcm: `{access_log: [{name: envoy.access_loggers.file, typed_config: {"@type": T/access_loggers.file.v3.FileAccessLog, path: "{{dir}}/` + name + `.log"` + sep(format) + format + `}}]}`}
}

// filtered has the usual log with a filter.
func filtered(name, filter string) listener {
	return listener{name: name, hcm: `{access_log: [{name: envoy.access_loggers.file, filter: ` + filter + `, typed_config: {"@type": T/access_loggers.file.v3.FileAccessLog, path: "{{log}}", log_format: {text_format_source: {inline_string: "{{format}}"}}}}]}`}
}
