package proxy_test

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// A client of HTTP/2 that cancels a request ends it at the host at once.
func TestCancelledRequestsEndAtTheHostAtOnce(t *testing.T) {
	runHTTP(t, "codec_type: HTTP2", `              - {match: {prefix: /}, route: {cluster: app, timeout: 0s}}`, func(s *site) {
		ended := make(chan time.Time, 1)
		s.handle(80, func(c net.Conn) {
			io.Copy(io.Discard, c)
			ended <- time.Now()
			c.Close()
		})
		c := s.dial()
		defer c.Close()
		io.WriteString(c, http2.ClientPreface)
		fr := http2.NewFramer(c, nil)
		fr.WriteSettings()
		go io.Copy(io.Discard, c)
		var b bytes.Buffer
		enc := hpack.NewEncoder(&b)
		for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":path", "/"}, {":authority", "web"}} {
			enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b.Bytes(), EndStream: true, EndHeaders: true})
		time.Sleep(1300 * time.Millisecond)
		cancelled := time.Now()
		fr.WriteRSTStream(1, http2.ErrCodeCancel)
		if took := (<-ended).Sub(cancelled); took > 10*time.Millisecond {
			t.Errorf("the host served on for %v", took)
		}
		s.wantLog("0 DR http2.remote_reset")
	})
}
