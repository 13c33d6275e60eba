package httpapi

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// A fixedCaller answers the calls of the benchmarks at once, so that what is measured is this package.
type fixedCaller struct {
	entry     *kv.Entry
	instances []*catalog.Instance
}

func newFixedCaller() *fixedCaller {
	c := &fixedCaller{entry: &kv.Entry{Key: "one", Value: bytes.Repeat([]byte("x"), 512), Indexes: catalog.Indexes{CreateIndex: 10, ModifyIndex: 20}}}
	for i := range 100 {
		c.instances = append(c.instances, someInstance(i))
	}
	return c
}

func (c *fixedCaller) Call(_ context.Context, _ rpc.Descriptor, _, resp any) error {
	switch r := resp.(type) {
	case *kv.GetReply:
		r.Meta, r.Entry = someMeta, c.entry
	case *kv.ApplyReply:
		r.OK = true
	case *catalog.InstancesReply:
		r.Meta, r.Instances = someMeta, make([]*catalog.Instance, len(c.instances))
		for i, in := range c.instances { // as a server does: the triples are new, their parts are shared
			r.Instances[i] = &catalog.Instance{Node: in.Node, Service: in.Service, Checks: in.Checks}
		}
	}
	return nil
}

var requests = []struct{ name, method, target, body string }{
	{"kv-get", "GET", "/v1/kv/one", ""},
	{"kv-put", "PUT", "/v1/kv/bench/1/2", string(bytes.Repeat([]byte("x"), 512))},
	{"register", "PUT", "/v1/catalog/register", `{"Node":"n1-1","Address":"127.0.0.1","Service":{"ID":"s","Service":"svc1","Port":80},` +
		`"Check":{"CheckID":"s","ServiceID":"s","Name":"up","Status":"passing"}}`},
	{"health", "GET", "/v1/health/service/web?passing", ""},
	{"watch", "GET", "/v1/health/service/web?wait=60s&index=5", ""},
}

// BenchmarkHandler measures requests without a connection.
func BenchmarkHandler(b *testing.B) {
	for _, req := range requests {
		b.Run(req.name, func(b *testing.B) {
			s, _ := newServer(b, Config{Caller: newFixedCaller()}, nil)
			body := []byte(req.body)
			r := httptest.NewRequest(req.method, req.target, nil)
			r.Header.Set("Accept-Encoding", "gzip")
			r.ContentLength = int64(len(body))
			w := &discard{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				r.Body = io.NopCloser(bytes.NewReader(body))
				clear(w.header)
				s.ServeHTTP(w, r)
			}
			if w.status != 200 {
				b.Fatal(w.status)
			}
		})
	}
}

type discard struct {
	header http.Header
	status int
}

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(status int)      { d.status = status }

// BenchmarkRendering measures a list whose instances change every time.
func BenchmarkRendering(b *testing.B) {
	c := newFixedCaller()
	b.Run("json", func(b *testing.B) {
		var dst []byte
		b.ReportAllocs()
		for b.Loop() {
			dst = appendList(dst[:0], c.instances, appendInstance)
		}
		b.SetBytes(int64(len(dst)))
	})
	b.Run("gzip", func(b *testing.B) {
		text := appendList(nil, c.instances, appendInstance)
		var dst []byte
		b.ReportAllocs()
		for b.Loop() {
			dst = appendGzip(dst[:0], text)
		}
		b.SetBytes(int64(len(text)))
		b.ReportMetric(float64(len(dst)), "bytes")
	})
}

// BenchmarkConnection measures whole requests over loopback, with a client that does as little as it can.
func BenchmarkConnection(b *testing.B) {
	for _, req := range requests {
		b.Run(req.name, func(b *testing.B) {
			s, _ := newServer(b, Config{Caller: newFixedCaller()}, nil)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error)
			go func() { ended <- s.Serve(ctx, LimitConns(l, new(ConnLimit), true)) }()
			defer func() { cancel(); <-ended }()
			text := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: 127.0.0.1:8500\r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: %d\r\nAccept-Encoding: gzip\r\n\r\n%s",
				req.method, req.target, len(req.body), req.body)
			b.ReportAllocs()
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					b.Error(err)
					return
				}
				defer c.Close()
				buf := make([]byte, 64<<10)
				size := 0
				for pb.Next() {
					io.WriteString(c, text)
					if size == 0 { // the first answer tells the size of the others
						n, _ := c.Read(buf)
						size = n + rest(buf[:n])
						io.ReadFull(c, buf[:size-n])
						continue
					}
					if _, err := io.ReadFull(c, buf[:size]); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// rest returns how much of an answer is still to come.
func rest(begun []byte) int {
	head, body, _ := bytes.Cut(begun, []byte("\r\n\r\n"))
	_, length, _ := bytes.Cut(head, []byte("Content-Length: "))
	var n int
	fmt.Sscanf(string(length), "%d", &n)
	return n - len(body)
}
