package buffer_test

import (
	"os"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/filter/buffer"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

func TestBuffer(t *testing.T) {
	b := filtertest.New(t, buffer.Type, &buffer.Config{Max: 5})
	run := func(body message.Source, length int64) (filtertest.Result, string) {
		x := b.Exchange("POST", "/")
		x.Body, x.Request.ContentLength = body, length
		res := b.Run(x, nil)
		return res, x.Request.Header.Get("content-length")
	}
	if res, n := run(filtertest.Body("abc", "de"), -1); res.Sent != "abcde" || n != "5" {
		t.Errorf("%+v, length %q", res, n)
	}
	if res, _ := run(filtertest.Body("abc", "def"), -1); res.Status != 413 || res.Body != "Payload Too Large" || res.Upstream {
		t.Errorf("%+v", res)
	}
	if res, _ := run(filtertest.Body("abcdef"), 6); res.Status != 413 || res.Reply.Details != "request_payload_too_large" {
		t.Errorf("%+v", res)
	}
	if res, _ := run(&filtertest.Stream{Pieces: []string{"a"}, Err: os.ErrDeadlineExceeded}, -1); res.Status != 408 {
		t.Errorf("%+v", res)
	}
	tail := &filtertest.Stream{Pieces: []string{"a"}, Tail: filtertest.Trailers("x-end", "1")}
	if res, n := run(tail, -1); res.Sent != "a" || res.SentTail.Get("x-end") != "1" || n != "" {
		t.Errorf("%+v, length %q", res, n)
	}
	if res, _ := run(message.NoBody, 0); !res.Upstream || res.Sent != "" {
		t.Errorf("%+v", res)
	}
	b.Route(&buffer.Config{Max: 2})
	if res, _ := run(filtertest.Body("abc"), -1); res.Status != 413 {
		t.Errorf("%+v", res)
	}
	b.Route(&buffer.Config{Disabled: true})
	if res, n := run(filtertest.Body("abcdefgh"), -1); res.Sent != "abcdefgh" || n != "" {
		t.Errorf("%+v", res)
	}
}
