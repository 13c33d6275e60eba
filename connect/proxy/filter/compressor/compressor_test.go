package compressor_test

import (
	"compress/gzip"
	"io"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/compressor"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

func conf() *compressor.Config {
	return &compressor.Config{Library: "text", MinLength: compressor.DefaultMinLength, ContentTypes: compressor.DefaultContentTypes, Level: gzip.BestSpeed}
}

func unzip(t *testing.T, s string) string {
	t.Helper()
	r, err := gzip.NewReader(strings.NewReader(s))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestWhatIsCompressed(t *testing.T) {
	body := strings.Repeat("0123456789", 100)
	for _, tt := range []struct {
		name   string
		change func(*compressor.Config)
		accept string
		status int
		length int64
		fields []string
		zipped bool
		vary   string
		etag   string
	}{
		{"html", nil, "gzip", 200, 1000, []string{"content-type", "text/html; charset=utf-8"}, true, "Accept-Encoding", ""},
		{"unknown length and type", nil, "deflate, gzip;q=0.5", 200, -1, nil, true, "Accept-Encoding", ""},
		{"anything", nil, "*", 200, -1, nil, true, "Accept-Encoding", ""},
		{"not accepted", nil, "", 200, 1000, nil, false, "Accept-Encoding", ""},
		{"refused", nil, "gzip;q=0, *", 200, 1000, nil, false, "Accept-Encoding", ""},
		{"identity preferred", nil, "identity, gzip;q=0.5", 200, 1000, nil, false, "Accept-Encoding", ""},
		{"vary is kept", nil, "gzip", 200, 1000, []string{"vary", "Origin"}, true, "Origin, Accept-Encoding", ""},
		{"vary is there", nil, "gzip", 200, 1000, []string{"vary", "accept-encoding"}, true, "accept-encoding", ""},
		{"small", nil, "gzip", 200, 29, nil, false, "", ""},
		{"image", nil, "gzip", 200, 1000, []string{"content-type", "image/png"}, false, "", ""},
		{"encoded", nil, "gzip", 200, 1000, []string{"content-encoding", "br"}, false, "", ""},
		{"no transform", nil, "gzip", 200, 1000, []string{"cache-control", "private, no-transform"}, false, "", ""},
		{"part", nil, "gzip", 206, 1000, nil, false, "", ""},
		{"own codes", func(c *compressor.Config) { c.Codes = []int{500} }, "gzip", 500, 1000, nil, false, "", ""},
		{"strong tag goes", nil, "gzip", 200, 1000, []string{"etag", `"a"`}, true, "Accept-Encoding", ""},
		{"weak tag stays", nil, "gzip", 200, 1000, []string{"etag", `W/"a"`}, true, "Accept-Encoding", `W/"a"`},
		{"strong tag is weakened", func(c *compressor.Config) { c.WeakenETag = true }, "gzip", 200, 1000, []string{"etag", `"a"`}, true, "Accept-Encoding", `W/"a"`},
		{"strong tag prevents", func(c *compressor.Config) { c.SkipETag = true }, "gzip", 200, 1000, []string{"etag", `"a"`}, false, "", `"a"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := conf()
			if tt.change != nil {
				tt.change(c)
			}
			b := filtertest.New(t, compressor.Type, c)
			x := b.Exchange("GET", "/")
			if tt.accept != "" {
				x.Request.Header.Add("accept-encoding", tt.accept)
			}
			res := b.Run(x, func(x *filter.Exchange) {
				x.Response.Status, x.Response.ContentLength = tt.status, tt.length
				for i := 0; i < len(tt.fields); i += 2 {
					x.Response.Header.Add(tt.fields[i], tt.fields[i+1])
				}
				s := filtertest.Body(body[:10], body[10:])
				s.Tail = filtertest.Trailers("x-end", "1")
				x.ResponseBody = s
			})
			if zipped := res.Header.Get("content-encoding") == "gzip"; zipped != tt.zipped || res.Header.Get("vary") != tt.vary || res.Header.Get("etag") != tt.etag {
				t.Fatalf("headers\n%s", filtertest.Fields(&res.Header))
			}
			if tt.zipped {
				if unzip(t, res.Body) != body || len(res.Body) > 200 || x.Response.ContentLength != -1 {
					t.Errorf("%d bytes, length %d", len(res.Body), x.Response.ContentLength)
				}
			} else if res.Body != body {
				t.Errorf("%d bytes", len(res.Body))
			}
			if res.Trailer.Get("x-end") != "1" {
				t.Error("the trailers are gone")
			}
		})
	}
}

// slowly is a body whose every piece comes after the one before was passed on.
type slowly struct{ *filtertest.Stream }

func (slowly) Ready() bool { return false }

func TestPiecesArePassedOn(t *testing.T) {
	b := filtertest.New(t, compressor.Type, conf())
	x := b.Exchange("GET", "/", "accept-encoding", "gzip")
	x.Response, x.ResponseBody = &message.Response{Status: 200, ContentLength: -1}, slowly{filtertest.Body("first", "second")}
	b.Filter.Request(x)
	b.Filter.(filter.Responder).Response(x)
	p, err := x.ResponseBody.Read()
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(strings.NewReader(string(p)))
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "first" {
		t.Errorf("%q, %v of the first piece", got, err)
	}
	b.Filter.(filter.Finisher).Finish(x)
	if _, err := x.ResponseBody.Read(); err != io.EOF {
		t.Errorf("%v after the end", err)
	}
}

func TestRoutesAndRemoval(t *testing.T) {
	c := conf()
	c.RemoveAccept = true
	b := filtertest.New(t, compressor.Type, c)
	run := func() (string, string) {
		x := b.Exchange("GET", "/", "accept-encoding", "gzip")
		res := b.Run(x, func(x *filter.Exchange) { x.ResponseBody = filtertest.Body("a") })
		return x.Request.Header.Get("accept-encoding"), res.Header.Get("content-encoding")
	}
	if a, e := run(); a != "" || e != "gzip" {
		t.Errorf("%q %q", a, e)
	}
	keep := false
	b.Route(&compressor.RouteConfig{RemoveAccept: &keep})
	if a, e := run(); a != "gzip" || e != "gzip" {
		t.Errorf("%q %q", a, e)
	}
	b.Route(&compressor.RouteConfig{Disabled: true})
	if a, e := run(); a != "gzip" || e != "" {
		t.Errorf("%q %q", a, e)
	}
}

func BenchmarkResponse(b *testing.B) {
	f := filtertest.New(b, compressor.Type, conf())
	body := strings.Repeat("0123456789abcdef", 1<<10)
	x := f.Exchange("GET", "/", "accept-encoding", "gzip")
	f.Filter.Request(x)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		x.Response, x.ResponseBody = &message.Response{Status: 200, ContentLength: -1}, filtertest.Body(body)
		f.Filter.(filter.Responder).Response(x)
		for {
			if _, err := x.ResponseBody.Read(); err != nil {
				break
			}
		}
	}
}
