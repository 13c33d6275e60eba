package http1_test

import (
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/http1"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// A feed is a connection that gives bytes, in pieces if it is told to, then the end, and keeps what is written.
type feed struct {
	net.Conn
	in    string
	piece int // 0 gives all that fits
	out   strings.Builder
}

func (f *feed) Read(p []byte) (int, error) {
	if f.in == "" {
		return 0, io.EOF
	}
	if f.piece > 0 && len(p) > f.piece {
		p = p[:f.piece]
	}
	n := copy(p, f.in)
	f.in = f.in[n:]
	return n, nil
}

func (f *feed) Write(p []byte) (int, error)      { return f.out.Write(p) }
func (f *feed) Close() error                     { return nil }
func (f *feed) SetReadDeadline(time.Time) error  { return nil }
func (f *feed) SetWriteDeadline(time.Time) error { return nil }

// request reads one request from a connection that gives in, with its body, and describes it.
func request(in string, piece int, cfg http1.ServerConfig) (string, error) {
	cfg.DelayedClose = -1
	c := http1.NewServerConn(&feed{in: in, piece: piece}, cfg)
	defer c.Close()
	s, err := c.Next()
	if err != nil {
		return "", err
	}
	text := show(s.Request())
	body, err := readAll(s)
	if body != "" {
		text += " body=" + body
	}
	if h := s.Trailer(); h != nil {
		for i := range h.Len() {
			text += " trailer=" + h.At(i).Name + ":" + h.At(i).Value
		}
	}
	return text, err
}

func TestRequestHeads(t *testing.T) {
	long := strings.Repeat("x", 70<<10)
	tests := []struct {
		name, in string
		cfg      http1.ServerConfig
		want     string // as show and request write it; or a status with a detail
	}{
		{name: "plain", in: "GET /a?b HTTP/1.1\r\nHost: x:80\r\nA-B: c\r\n\r\n", want: "GET x:80 /a?b [a-b: c]"},
		{name: "white space around values", in: "GET / HTTP/1.1\r\nHost:\t x \t\r\nA: \t b\tc \r\nE:\r\n\r\n", want: "GET x / [a: b\tc] [e: ]"},
		{name: "one empty line before", in: "\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", want: "GET x /"},
		{name: "two empty lines before", in: "\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n", want: "GET x /"},
		{name: "endless empty lines before", in: strings.Repeat("\r\n", 100) + "GET / HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 http1.codec_error"},
		{name: "bytes above ASCII in a value", in: "GET / HTTP/1.1\r\nHost: x\r\na: \xc3\xbc\r\n\r\n", want: "GET x / [a: \xc3\xbc]"},
		{name: "absolute form", in: "GET HTTP://y:1/p?q HTTP/1.1\r\nHost: x\r\n\r\n", want: "GET y:1 /p?q scheme=http"},
		{name: "absolute form without path", in: "GET http://y HTTP/1.1\r\nHost: x\r\n\r\n", want: "GET y / scheme=http"},
		{name: "absolute form with a query alone", in: "GET http://y?q HTTP/1.1\r\nHost: x\r\n\r\n", want: "GET y /?q scheme=http"},
		{name: "absolute form, not allowed", in: "GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n", cfg: http1.ServerConfig{RefuseAbsoluteURL: true}, want: "GET x http://y/"},
		{name: "absolute form with https in plaintext", in: "GET https://y/ HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 http1.invalid_scheme"},
		{name: "absolute form with https", in: "GET https://y/ HTTP/1.1\r\nHost: x\r\n\r\n", cfg: http1.ServerConfig{Secure: true}, want: "GET y / scheme=https"},
		{name: "absolute form with a user", in: "GET http://u@y/ HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 http1.invalid_url"},
		{name: "absolute form without Host", in: "GET http://y/ HTTP/1.1\r\n\r\n", want: "400 missing_host_header"},
		{name: "absolute form with another scheme", in: "GET ftp://y/ HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 http1.invalid_scheme"},
		{name: "absolute form without host", in: "GET http:///p HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 http1.invalid_url"},
		{name: "relative", in: "GET a HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 http1.invalid_url"},
		{name: "asterisk", in: "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", want: "OPTIONS x *"},
		{name: "asterisk for GET", in: "GET * HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 http1.invalid_url"},
		{name: "fragment", in: "GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", want: "GET x /a#b"},
		{name: "fragment without a path", in: "GET http://y#b HTTP/1.1\r\nHost: x\r\n\r\n", want: "GET y /#b scheme=http"},
		{name: "bytes above ASCII in the target", in: "GET /\xc3\xbc HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 http1.invalid_url"},
		{name: "CONNECT", in: "CONNECT y:443 HTTP/1.1\r\nHost: x\r\n\r\n", want: "CONNECT y:443 "},
		{name: "CONNECT with a path", in: "CONNECT /y HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 http1.invalid_url"},
		{name: "CONNECT with a body", in: "CONNECT y:1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na", want: "400 http1.body_disallowed"},

		{name: "no Host", in: "GET / HTTP/1.1\r\nA: b\r\n\r\n", want: "400 missing_host_header"},
		{name: "empty Host", in: "GET / HTTP/1.1\r\nHost: \r\n\r\n", want: "400 missing_host_header"},
		{name: "two Hosts", in: "GET / HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n", want: "400 http1.invalid_host"},
		{name: "Host with a path", in: "GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", want: "400 http1.invalid_host"},
		{name: "Host with a user", in: "GET / HTTP/1.1\r\nHost: u@x\r\n\r\n", want: "400 http1.invalid_host"},
		{name: "Host with a space", in: "GET / HTTP/1.1\r\nHost: x y\r\n\r\n", want: "400 http1.invalid_host"},
		{name: "Host with a list", in: "GET / HTTP/1.1\r\nHost: x,y\r\n\r\n", want: "400 http1.invalid_host"},
		{name: "Host with a bad port", in: "GET / HTTP/1.1\r\nHost: x:8a\r\n\r\n", want: "400 http1.invalid_host"},
		{name: "Host of IPv6", in: "GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", want: "GET [::1]:80 /"},
		{name: "Host of half an IPv6", in: "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", want: "400 http1.invalid_host"},
		{name: "Host of IPv6 without brackets", in: "GET / HTTP/1.1\r\nHost: ::1\r\n\r\n", want: "400 http1.invalid_host"},

		{name: "HTTP/1.0", in: "GET / HTTP/1.0\r\nHost: x\r\n\r\n", want: "426 low_version"},
		{name: "HTTP/1.0 allowed", in: "GET / HTTP/1.0\r\nHost: x\r\n\r\n", cfg: http1.ServerConfig{AcceptHTTP10: true}, want: "GET x /"},
		{name: "HTTP/1.0 without Host", in: "GET / HTTP/1.0\r\n\r\n", cfg: http1.ServerConfig{AcceptHTTP10: true, DefaultHost: "d"}, want: "GET d /"},
		{name: "HTTP/1.0 without Host and default", in: "GET / HTTP/1.0\r\n\r\n", cfg: http1.ServerConfig{AcceptHTTP10: true}, want: "400 missing_host_header"},
		{name: "HTTP/1.0 with chunks", in: "POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", cfg: http1.ServerConfig{AcceptHTTP10: true}, want: "400 http1.transfer_encoding_not_allowed"},
		{name: "HTTP/0.9", in: "GET /\r\n\r\n", want: "426 low_version"},
		{name: "HTTP/1.2", in: "GET / HTTP/1.2\r\nHost: x\r\n\r\n", want: "426 low_version"},
		{name: "HTTP/2", in: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", want: "400 http1.codec_error"},
		{name: "HTTP/1.10", in: "GET / HTTP/1.10\r\nHost: x\r\n\r\n", want: "400 http1.codec_error"},
		{name: "http/1.1", in: "GET / http/1.1\r\nHost: x\r\n\r\n", want: "400 http1.codec_error"},
		{name: "two spaces", in: "GET  / HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 http1.invalid_url"},
		{name: "tab", in: "GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 http1.codec_error"},
		{name: "space at the end of the line", in: "GET / HTTP/1.1 \r\nHost: x\r\n\r\n", want: "400 http1.codec_error"},
		{name: "space in the target", in: "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 http1.codec_error"},
		{name: "method that is no token", in: "G@T / HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 http1.codec_error"},
		{name: "TLS to plaintext", in: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", want: "400 http1.codec_error"},

		{name: "bare LF everywhere", in: "GET / HTTP/1.1\nHost: x\n\n", want: "400 http1.codec_error"},
		{name: "bare LF after a field", in: "GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", want: "400 http1.invalid_characters"},
		{name: "bare LF at the end", in: "GET / HTTP/1.1\r\nHost: x\r\n\n", want: "400 http1.invalid_characters"},
		{name: "bare CR in a value", in: "GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n", want: "400 http1.invalid_characters"},
		{name: "bare CR before a name", in: "GET / HTTP/1.1\r\nHost: x\r\n\rA: b\r\n\r\n", want: "400 http1.invalid_characters"},
		{name: "NUL", in: "GET / HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", want: "400 http1.invalid_characters"},
		{name: "DEL", in: "GET / HTTP/1.1\r\nHost: x\r\nA: bbbbbbbbbbbb\x7fc\r\n\r\n", want: "400 http1.invalid_characters"},
		{name: "obs-fold", in: "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n", want: "400 http1.invalid_characters"},
		{name: "fold before the first field", in: "GET / HTTP/1.1\r\n Host: x\r\n\r\n", want: "400 http1.invalid_characters"},
		{name: "space before the colon", in: "GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n", want: "400 http1.invalid_characters"},
		{name: "tab before the colon", in: "GET / HTTP/1.1\r\nHost: x\r\nContent-Length\t: 5\r\n\r\n", want: "400 http1.invalid_characters"},
		{name: "no name", in: "GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n", want: "400 http1.invalid_characters"},
		{name: "no colon", in: "GET / HTTP/1.1\r\nHost: x\r\nabc\r\n\r\n", want: "400 http1.invalid_characters"},
		{name: "name with a space", in: "GET / HTTP/1.1\r\nHost: x\r\na b: c\r\n\r\n", want: "400 http1.invalid_characters"},
		{name: "name above ASCII", in: "GET / HTTP/1.1\r\nHost: x\r\n\xc3\xbc: c\r\n\r\n", want: "400 http1.invalid_characters"},
		{name: "pseudo-header", in: "GET / HTTP/1.1\r\nHost: x\r\n:path: /b\r\n\r\n", want: "400 http1.invalid_characters"},

		{name: "length and chunks", in: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", want: "400 http1.content_length_and_chunked_not_allowed"},
		{name: "chunks and length", in: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", want: "400 http1.content_length_and_chunked_not_allowed"},
		{name: "length and chunks allowed", in: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", cfg: http1.ServerConfig{AllowChunkedLength: true}, want: "POST x / length=-1 body=a"},
		{name: "two equal lengths", in: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", want: "400 http1.invalid_content_length"},
		{name: "two lengths", in: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", want: "400 http1.invalid_content_length"},
		{name: "length with a sign", in: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\nab", want: "400 http1.invalid_content_length"},
		{name: "negative length", in: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\nab", want: "400 http1.invalid_content_length"},
		{name: "list of lengths", in: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2, 2\r\n\r\nab", want: "400 http1.invalid_content_length"},
		{name: "empty length", in: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length:\r\n\r\nab", want: "400 http1.invalid_content_length"},
		{name: "hexadecimal length", in: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x2\r\n\r\nab", want: "400 http1.invalid_content_length"},
		{name: "length that overflows", in: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551618\r\n\r\nab", want: "400 http1.invalid_content_length"},
		{name: "encoding that is not chunked", in: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", want: "501 http1.invalid_transfer_encoding"},
		{name: "encoding identity", in: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n", want: "501 http1.invalid_transfer_encoding"},
		{name: "two encodings", in: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", want: "501 http1.invalid_transfer_encoding"},
		{name: "chunked twice", in: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", want: "501 http1.invalid_transfer_encoding"},
		{name: "chunked and identity", in: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", want: "501 http1.invalid_transfer_encoding"},
		{name: "quoted chunked", in: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", want: "501 http1.invalid_transfer_encoding"},
		{name: "empty encoding", in: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", want: "501 http1.invalid_transfer_encoding"},
		{name: "vertical tab before chunked", in: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", want: "400 http1.invalid_characters"},
		{name: "Chunked", in: "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", want: "POST x / length=-1 body=a"},

		{name: "fields for the connection alone", in: "GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, X-A , x-B\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\nX-a: 1\r\nX-C: 2\r\nUpgrade: foo\r\nX-B: 3\r\n\r\n", want: "GET x / [x-c: 2]"},
		{name: "te", in: "GET / HTTP/1.1\r\nHost: x\r\nConnection: te\r\nTE: gzip;q=0.5, Trailers\r\n\r\n", want: "GET x / [te: trailers]"},
		{name: "te without trailers", in: "GET / HTTP/1.1\r\nHost: x\r\nTE: gzip\r\n\r\n", want: "GET x /"},
		{name: "Connection names what says who asks", in: "GET / HTTP/1.1\r\nHost: x\r\nConnection: X-Forwarded-For\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n", want: "400 http1.connection_header_rejected"},
		{name: "Connection names Host", in: "GET / HTTP/1.1\r\nHost: x\r\nConnection: host\r\n\r\n", want: "400 http1.connection_header_rejected"},
		{name: "Connection names what is no name", in: "GET / HTTP/1.1\r\nHost: x\r\nConnection: :path\r\n\r\n", want: "400 http1.connection_header_rejected"},
		{name: "upgrade", in: "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n", want: "GET x / upgrade=websocket"},
		{name: "upgrade to h2c", in: "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", want: "GET x /"},
		{name: "upgrade to h2c or another", in: "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c, WebSocket\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", want: "GET x / upgrade=websocket"},
		{name: "upgrade that Connection does not name", in: "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n", want: "GET x /"},
		{name: "underscore", in: "GET / HTTP/1.1\r\nHost: x\r\nX_A: b\r\n\r\n", want: "GET x / [x_a: b]"},
		{name: "underscore rejected", in: "GET / HTTP/1.1\r\nHost: x\r\nX_A: b\r\n\r\n", cfg: http1.ServerConfig{Underscores: http1.RejectUnderscores}, want: "400 http1.unexpected_underscore"},
		{name: "underscore dropped", in: "GET / HTTP/1.1\r\nHost: x\r\nX_A: b\r\nb: c\r\n\r\n", cfg: http1.ServerConfig{Underscores: http1.DropUnderscores}, want: "GET x / [b: c]"},

		{name: "head too large", in: "GET / HTTP/1.1\r\nHost: x\r\nA: " + long + "\r\n\r\n", want: "431 http1.headers_too_large"},
		{name: "large head", in: "GET / HTTP/1.1\r\nHost: x\r\nA: " + long[:40<<10] + "\r\n\r\n", want: "GET x / [a: " + long[:40<<10] + "]"},
		{name: "request line too large", in: "GET /" + long + " HTTP/1.1\r\nHost: x\r\n\r\n", want: "400 http1.request_line_too_long"},
		{name: "too many fields", in: "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a: b\r\n", 100) + "\r\n", want: "431 http1.too_many_headers"},
		{name: "just few enough fields", in: "GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("a: b\r\n", 99) + "\r\n", want: "GET x /" + strings.Repeat(" [a: b]", 99)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, piece := range []int{0, 1, 7} {
				if piece == 1 && len(tt.in) > 10000 {
					continue
				}
				got, err := request(tt.in, piece, tt.cfg)
				if bad, ok := errors.AsType[*http1.BadRequest](err); ok {
					got = itoa(bad.Status) + " " + bad.Detail
				} else if err != nil {
					got = err.Error()
				}
				if got != tt.want {
					t.Errorf("in pieces of %d: got %.200s\nwant %.200s", piece, got, tt.want)
				}
			}
		})
	}
}

func itoa(n int) string {
	return string([]byte{byte('0' + n/100), byte('0' + n/10%10), byte('0' + n%10)})
}

func TestChunkedBodies(t *testing.T) {
	const head = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
	tests := []struct {
		name, in, want string // want "!" is a protocol error, "?" a body that broke off
	}{
		{"empty", "0\r\n\r\n", ""},
		{"many zeros", "000\r\n\r\n", ""},
		{"two chunks", "2\r\nab\r\nA\r\n0123456789\r\n0\r\n\r\n", "ab0123456789"},
		{"small letters", "a\r\n0123456789\r\n0\r\n\r\n", "0123456789"},
		{"extension", "2;a=b;c=\"d e\"\r\nab\r\n0;x\r\n\r\n", "ab"},
		{"trailers", "1\r\na\r\n0\r\nX-T: 1\r\nY: 2\r\n\r\n", "a trailer=x-t:1 trailer=y:2"},
		{"trailers that would frame", "1\r\na\r\n0\r\nContent-Length: 5\r\nHost: y\r\nTransfer-Encoding: chunked\r\nTrailer: a\r\nX: 1\r\n\r\n", "a trailer=x:1"},
		{"bare LF after the size", "1\na\r\n0\r\n\r\n", "!"},
		{"bare LF after the data", "1\r\na\n0\r\n\r\n", "!"},
		{"bare LF at the end", "1\r\na\r\n0\n\n", "!"},
		{"bare LF in trailers", "1\r\na\r\n0\r\nA: b\n\r\n\r\n", "!"},
		{"fold in trailers", "1\r\na\r\n0\r\nA: b\r\n c\r\n\r\n", "!"},
		{"bare CR in an extension", "1;a\rb\r\na\r\n0\r\n\r\n", "!"},
		{"data longer than the chunk", "1\r\nab\r\n0\r\n\r\n", "!"},
		{"no size", "\r\n\r\n", "!"},
		{"extension without size", ";a\r\n\r\n", "!"},
		{"prefix", "0x1\r\na\r\n0\r\n\r\n", "!"},
		{"sign", "+1\r\na\r\n0\r\n\r\n", "!"},
		{"minus", "-1\r\na\r\n0\r\n\r\n", "!"},
		{"space before", " 1\r\na\r\n0\r\n\r\n", "!"},
		{"space after", "1 \r\na\r\n0\r\n\r\n", "!"},
		{"no digit", "g\r\na\r\n0\r\n\r\n", "!"},
		{"overflow", "10000000000000001\r\na\r\n0\r\n\r\n", "!"},
		{"huge", "FFFFFFFFFFFFFFFF\r\na\r\n0\r\n\r\n", "!"},
		{"endless extension", "1;" + strings.Repeat("a", 2000) + "\r\na\r\n0\r\n\r\n", "!"},
		{"17 digits", "00000000000000001\r\na\r\n0\r\n\r\n", "!"},
		{"endless size", strings.Repeat("0", 2000), "!"},
		{"many long extensions", strings.Repeat("1;"+strings.Repeat("a", 500)+"\r\na\r\n", 50) + "0\r\n\r\n", "!"},
		{"many small chunks", strings.Repeat("1\r\na\r\n", 20000) + "0\r\n\r\n", strings.Repeat("a", 20000)},
		{"trailers too large", "0\r\nA: " + strings.Repeat("a", 70<<10) + "\r\n\r\n", "!"},
		{"too many trailers", "0\r\n" + strings.Repeat("a: b\r\n", 101) + "\r\n", "!"},
		{"breaks off in a chunk", "5\r\nab", "?"},
		{"breaks off in a size", "5", "?"},
		{"breaks off in the end", "1\r\na\r\n0\r\n", "?"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, piece := range []int{0, 1, 3} {
				got, err := request(head+tt.in, piece, http1.ServerConfig{Trailers: true})
				got = strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(got, "POST x / length=-1"), " body="), " ")
				if err != nil {
					switch message.ReasonOf(err) {
					case message.ProtocolError:
						got = "!"
					case message.RemoteReset:
						got = "?"
					}
				}
				if got != tt.want {
					t.Errorf("in pieces of %d: got %.100q, want %.100q, %v", piece, got, tt.want, err)
				}
			}
		})
	}
}

func TestResponseFraming(t *testing.T) {
	const get, head, old = "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\n\r\n"
	tests := []struct {
		name, req string
		status    int
		length    int64
		body      []string // nil ends with the head
		want      string
		closes    bool
	}{
		{"known length", get, 200, 4, []string{"ab", "cd"}, "HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 4\r\n\r\nabcd", false},
		{"unknown length", get, 200, -1, []string{"ab", "", "cd"}, "HTTP/1.1 200 OK\r\na: b\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n", false},
		{"no body", get, 404, -1, nil, "HTTP/1.1 404 Not Found\r\na: b\r\ncontent-length: 0\r\n\r\n", false},
		{"unknown status", get, 299, 0, nil, "HTTP/1.1 299 \r\na: b\r\ncontent-length: 0\r\n\r\n", false},
		{"204", get, 204, 0, nil, "HTTP/1.1 204 No Content\r\na: b\r\n\r\n", false},
		{"304", get, 304, 9, nil, "HTTP/1.1 304 Not Modified\r\na: b\r\ncontent-length: 9\r\n\r\n", false},
		{"HEAD", head, 200, 9, nil, "HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 9\r\n\r\n", false},
		{"HEAD of unknown length, with a body", head, 200, -1, []string{"abc"}, "HTTP/1.1 200 OK\r\na: b\r\n\r\n", false},
		{"HTTP/1.0", old, 200, 2, []string{"ab"}, "HTTP/1.0 200 OK\r\na: b\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nab", false},
		{"HTTP/1.0 of unknown length", old, 200, -1, []string{"ab"}, "HTTP/1.0 200 OK\r\na: b\r\nconnection: close\r\n\r\nab", true},
		{"client closes", "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200, 0, nil, "HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", true},
		{"body that nobody reads", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 200, 0, nil, "HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 0\r\n\r\n", false},
		{"body that was not sent yet", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n", 200, 0, nil, "HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", true},
		{"long body that nobody reads", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + strings.Repeat("x", 300000), 200, 0, nil, "HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 0\r\n\r\n", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := &feed{in: tt.req + "GET /second HTTP/1.1\r\nHost: x\r\n\r\n"}
			c := http1.NewServerConn(f, http1.ServerConfig{AcceptHTTP10: true})
			s, err := c.Next()
			if err != nil {
				t.Fatal(err)
			}
			var r message.Response
			r.Reset()
			r.Status, r.ContentLength = tt.status, tt.length
			r.Header.Add("a", "b")
			r.Header.Add("content-length", "99") // what frames is not taken from here
			r.Header.Add("transfer-encoding", "gzip")
			r.Header.Add("connection", "x")
			if err := s.Respond(&r, tt.body == nil); err != nil {
				t.Fatal(err)
			}
			for i, p := range tt.body {
				if err := s.Write([]byte(p), i == len(tt.body)-1); err != nil {
					t.Fatal(err)
				}
			}
			if got := f.out.String(); got != tt.want {
				t.Errorf("got %q\nwant %q", got, tt.want)
			}
			s, err = c.Next()
			if tt.closes != (err == io.EOF) {
				t.Fatalf("then: %v", err)
			}
			if !tt.closes && s.Request().Path != "/second" {
				t.Errorf("the next request is for %q", s.Request().Path)
			}
		})
	}
}

func TestBodyOfAnotherLengthIsNotSent(t *testing.T) {
	for _, body := range []string{"abc", "abcde"} {
		f := &feed{in: "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"}
		c := http1.NewServerConn(f, http1.ServerConfig{})
		s, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		var r message.Response
		r.Reset()
		r.Status, r.ContentLength = 200, 4
		if err := s.Respond(&r, false); err != nil {
			t.Fatal(err)
		}
		if err := s.Write([]byte(body), true); message.ReasonOf(err) != message.LocalReset {
			t.Errorf("%q as a body of 4 bytes: %v", body, err)
		}
		if _, err := c.Next(); err == nil {
			t.Error("the connection goes on")
		}
	}
}

func TestFieldsThatWouldSplitAResponseAreNotSent(t *testing.T) {
	for _, f := range [][2]string{{"a", "b\r\nc: d"}, {"a", "b\nc"}, {"a", "\x00"}, {"a: b\r\nc", "d"}, {"", "x"}, {"A", "x"}, {"a b", "x"}} {
		fd := &feed{in: "GET / HTTP/1.1\r\nHost: x\r\n\r\n"}
		c := http1.NewServerConn(fd, http1.ServerConfig{})
		s, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		var r message.Response
		r.Reset()
		r.Status = 200
		r.Header.Add(f[0], f[1])
		if err := s.Respond(&r, true); err == nil || fd.out.Len() > 0 {
			t.Errorf("%q was sent as %q", f, fd.out.String())
		}
	}
}

func TestRefusal(t *testing.T) {
	f := &feed{in: "GET /\r\n\r\n"}
	c := http1.NewServerConn(f, http1.ServerConfig{})
	_, err := c.Next()
	bad, ok := errors.AsType[*http1.BadRequest](err)
	if !ok {
		t.Fatal(err)
	}
	var r message.Response
	r.Reset()
	r.Status = bad.Status
	if err := c.Refuse(&r, []byte(bad.Body)); err != nil {
		t.Fatal(err)
	}
	if got, want := f.out.String(), "HTTP/1.1 426 Upgrade Required\r\ncontent-length: 16\r\nconnection: close\r\n\r\nUpgrade Required"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if _, err := c.Next(); err == nil {
		t.Error("the connection goes on")
	}
}

func TestPipelinedRequestsAreServedInOrder(t *testing.T) {
	in := "POST /1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcPOST /2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nz\r\n0\r\n\r\nGET /3 HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, piece := range []int{0, 1, 5} {
		f := &feed{in: in, piece: piece}
		if err := serve(t, http1.NewServerConn(f, http1.ServerConfig{})); err != io.EOF {
			t.Fatal(err)
		}
		var want strings.Builder
		for _, s := range []string{"POST /1\r\ncontent-length: 3\r\n\r\nabc", "POST /2\r\ncontent-length: 1\r\n\r\nz", "GET /3\r\ncontent-length: 0\r\n\r\n"} {
			want.WriteString("HTTP/1.1 200 OK\r\nx-request: " + s)
		}
		if f.out.String() != want.String() {
			t.Errorf("got %q", f.out.String())
		}
	}
}

func TestSpellings(t *testing.T) {
	in := "GET / HTTP/1.1\r\nHOST: x\r\nX-MiXed: 1\r\nlower: 2\r\n\r\n"
	for piece := range 3 {
		c := http1.NewServerConn(&feed{in: in, piece: piece}, http1.ServerConfig{Case: http1.PreserveCase})
		s, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		for mode, want := range map[http1.Case]string{
			http1.LowerCase:    "GET / HTTP/1.1\r\nHOST: x\r\nX-MiXed: 1\r\nlower: 2\r\n\r\n",
			http1.ProperCase:   "GET / HTTP/1.1\r\nHost: x\r\nX-Mixed: 1\r\nLower: 2\r\n\r\n",
			http1.PreserveCase: "GET / HTTP/1.1\r\nHOST: x\r\nX-MiXed: 1\r\nlower: 2\r\n\r\n",
		} {
			f := &feed{}
			if err := http1.NewClientConn(f, http1.ClientConfig{Case: mode}).Stream().Send(s.Request(), true); err != nil || f.out.String() != want {
				t.Errorf("case %d: got %q, %v, want %q", mode, f.out.String(), err, want)
			}
		}
	}
}

func TestTimeoutsOfRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t)
		c := http1.NewServerConn(server, http1.ServerConfig{IdleTimeout: time.Minute, HeaderTimeout: 10 * time.Second})
		go func() {
			for range 3 {
				io.WriteString(client, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
				time.Sleep(50 * time.Second)
			}
		}()
		go io.Copy(io.Discard, client)
		var r message.Response
		r.Reset()
		r.Status = 200
		start := time.Now()
		for range 3 {
			s, err := c.Next()
			if err != nil {
				t.Fatal(err)
			}
			s.SetReadDeadline(time.Now().Add(5 * time.Second)) // of the request, not of the connection
			s.Respond(&r, true)
		}
		_, err := c.Next()
		if d := time.Since(start); !errors.Is(err, os.ErrDeadlineExceeded) || d < 160*time.Second || d > 161*time.Second {
			t.Errorf("idle connection ended with %v after %v, want a minute after its last request", err, d)
		}
		c.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t)
		c := http1.NewServerConn(server, http1.ServerConfig{IdleTimeout: time.Minute, HeaderTimeout: 10 * time.Second})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, b := range []byte("GET / HTTP/1.1\r\nHost: a-name-that-comes-slowly\r\n\r\n") {
				if _, err := client.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}()
		start := time.Now()
		_, err := c.Next()
		bad, ok := errors.AsType[*http1.BadRequest](err)
		if d := time.Since(start); !ok || bad.Status != 408 || d < 10*time.Second || d > 11*time.Second {
			t.Errorf("slow head ended with %v after %v, want 408 after 10s", err, d)
		}
		client.Close()
		c.Close()
		<-done
	})
}

func TestDeadlinesOfStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := pair(t)
		c := http1.NewServerConn(server, http1.ServerConfig{IdleTimeout: time.Second})
		io.WriteString(client, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
		s, err := c.Next()
		if err != nil {
			t.Fatal(err)
		}
		wait := func(d time.Duration, set func()) {
			t.Helper()
			start := time.Now()
			set()
			if _, err := s.Read(); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != d {
				t.Errorf("read ended with %v after %v, want %v", err, time.Since(start), d)
			}
		}
		in := func(d time.Duration) func() { return func() { s.SetReadDeadline(time.Now().Add(d)) } }
		wait(time.Minute, in(time.Minute))
		wait(time.Second, in(time.Second))
		wait(time.Hour, in(time.Hour))
		wait(2*time.Second, func() {
			s.SetReadDeadline(time.Time{})
			time.AfterFunc(2*time.Second, func() { s.SetReadDeadline(time.Now()) })
		})
		s.SetReadDeadline(time.Time{})
		time.AfterFunc(time.Hour, func() { io.WriteString(client, "123456789") })
		if p, err := s.Read(); string(p) != "123456789" || err != io.EOF {
			t.Errorf("got %q, %v", p, err)
		}
		client.Close()
		c.Close()
	})
}

func TestUpgradeCarriesBytesBothWays(t *testing.T) {
	for name, wire := range wires {
		t.Run(name, func(t *testing.T) {
			a, b := wire(t)
			sc, cc := http1.NewServerConn(b, http1.ServerConfig{}), http1.NewClientConn(a, http1.ClientConfig{})
			var req message.Request
			req.Reset()
			req.Method, req.Authority, req.Path, req.ContentLength, req.Upgrade = "GET", "x", "/chat", 0, "websocket"
			cs := cc.Stream()
			if err := cs.Send(&req, false); err != nil {
				t.Fatal(err)
			}
			if err := cs.Flush(); err != nil {
				t.Fatal(err)
			}
			ss, err := sc.Next()
			if err != nil {
				t.Fatal(err)
			}
			if got := ss.Request().Upgrade; got != "websocket" {
				t.Fatalf("the server sees upgrade %q", got)
			}
			if _, err := ss.Read(); err != io.EOF {
				t.Errorf("there is a body before the upgrade: %v", err)
			}
			var resp, got message.Response
			resp.Reset()
			resp.Status = 101
			resp.Header.Add("upgrade", "websocket")
			if err := ss.Respond(&resp, false); err != nil {
				t.Fatal(err)
			}
			if end, err := cs.Receive(&got); end || err != nil || got.Status != 101 || got.Header.Get("upgrade") != "websocket" {
				t.Fatalf("the client got %d, %v, %v", got.Status, end, err)
			}
			say := func(from message.Sink, to message.Source, text string) {
				t.Helper()
				if err := errors.Join(from.Write([]byte(text), false), from.Flush()); err != nil {
					t.Fatal(err)
				}
				var b []byte
				for len(b) < len(text) {
					p, err := to.Read()
					b = append(b, p...)
					if err != nil {
						t.Fatal(err)
					}
				}
				if string(b) != text {
					t.Errorf("got %q, want %q", b, text)
				}
			}
			for range 3 {
				say(cs, ss, "GET / HTTP/1.1\r\n\r\n")
				say(ss, cs, "x")
				say(ss, cs, strings.Repeat("long", 20000)[:200])
			}
			if err := cs.Write(nil, true); err != nil {
				t.Fatal(err)
			}
			if _, err := ss.Read(); err != io.EOF {
				t.Errorf("the half that was closed: %v", err)
			}
			say(ss, cs, "after half a close")
			if err := ss.Write(nil, true); err != nil {
				t.Fatal(err)
			}
			if _, err := cs.Read(); err != io.EOF {
				t.Errorf("the other half: %v", err)
			}
			cs.Close()
			if cc.Usable() {
				t.Error("the connection could be used again")
			}
			if _, err := sc.Next(); err != io.EOF {
				t.Error(err)
			}
			sc.Close()
		})
	}
}

func TestClientThatLeavesIsNoticed(t *testing.T) {
	for _, name := range []string{"sockets", "TLS"} {
		t.Run(name, func(t *testing.T) {
			a, b := wires[name](t)
			c := http1.NewServerConn(b, http1.ServerConfig{})
			io.WriteString(a, "GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /more HTTP/1.1\r\n")
			s, err := c.Next()
			if err != nil {
				t.Fatal(err)
			}
			if s.Gone() {
				t.Error("the client is gone while it waits")
			}
			a.Close()
			for end := time.Now().Add(time.Minute); !s.Gone(); {
				if time.Now().After(end) {
					t.Fatal("nobody noticed that the client has left")
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

func TestResetEndsTheConnectionAfterWhatWasSent(t *testing.T) {
	client, server := sockets(t)
	c := http1.NewServerConn(server, http1.ServerConfig{})
	io.WriteString(client, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
	s, err := c.Next()
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := s.Read()
		read <- err
	}()
	var r message.Response
	r.Reset()
	r.Status = 200
	s.Respond(&r, false)
	s.Write([]byte("half"), false)
	s.Reset(message.LocalReset)
	if err := <-read; message.ReasonOf(err) != message.LocalReset {
		t.Errorf("who read the body got %v", err)
	}
	if _, err := c.Next(); err == nil {
		t.Error("the connection goes on")
	}
	go c.Close()
	got, _ := io.ReadAll(client)
	if want := "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
