//lint:file-ignore SA1019 what replaces http2.Transport wants to dial by itself

package healthcheck

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http2"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

const (
	userAgent = "Envoy/HC"
	maxHead   = 64 << 10 // of an answer
	maxDrain  = 64 << 10 // of a body that nobody wants, to keep the connection
)

// request returns the request of a check.
func (k *kept) request(ctx context.Context, secure bool) *http.Request {
	h := k.conf.HTTP
	host := h.Host
	if host == "" {
		host = k.to.Hostname
	}
	if host == "" {
		host = k.to.Cluster
	}
	path, query, _ := strings.Cut(h.Path, "?")
	r := &http.Request{
		Method: h.Method, Host: host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		URL:    &url.URL{Scheme: scheme(secure), Host: host, Path: path, RawQuery: query},
		Header: http.Header{"User-Agent": {userAgent}},
	}
	if u, err := url.ParseRequestURI(h.Path); err == nil {
		r.URL.Path, r.URL.RawPath, r.URL.RawQuery = u.Path, u.RawPath, u.RawQuery
	}
	if len(h.Body) > 0 {
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(h.Body)), int64(len(h.Body))
	}
	edit(r, h.Edits)
	return r.WithContext(ctx)
}

func scheme(secure bool) string {
	if secure {
		return "https"
	}
	return "http"
}

func edit(r *http.Request, edits []model.HeaderEdit) {
	for _, e := range edits {
		switch name := http.CanonicalHeaderKey(e.Name); {
		case e.Remove:
			r.Header.Del(name)
		case e.Name == "host" || e.Name == ":authority":
			r.Host = e.Value
		case e.Action == model.AppendOrAdd:
			r.Header.Add(name, e.Value)
		case e.Action == model.AddIfAbsent:
			if r.Header.Get(name) == "" {
				r.Header.Set(name, e.Value)
			}
		case e.Action == model.OverwriteOrAdd:
			r.Header.Set(name, e.Value)
		case r.Header.Get(name) != "":
			r.Header.Set(name, e.Value)
		}
	}
}

// judge says what a response means.
func (k *kept) judge(r *http.Response, body []byte) answer {
	h := k.conf.HTTP
	a := answer{degraded: r.Header.Get("x-envoy-degraded") != "", immediate: r.Header.Get("x-envoy-immediate-health-check-fail") != ""}
	good := r.StatusCode == 200
	if len(h.Expected) > 0 {
		good = within(r.StatusCode, h.Expected)
	}
	switch {
	case !good:
		a.err, a.counted = fmt.Errorf("status %d", r.StatusCode), within(r.StatusCode, h.Retry)
	case h.Service != nil && !h.Service.Match(r.Header.Get("x-envoy-upstream-healthchecked-cluster")):
		a.err, a.service = errors.New("another service answers"), true
	case !inOrder(body, h.Receive):
		a.err = errors.New("the body is not what is expected")
	}
	return a
}

func within(status int, ranges []model.StatusRange) bool {
	for _, r := range ranges {
		if status >= r.Start && status < r.End {
			return true
		}
	}
	return false
}

// read reads the part of a body that is looked at, and reports whether nothing
// of it is left.
func (k *kept) read(body io.Reader) (b []byte, all bool, err error) {
	if h := k.conf.HTTP; len(h.Receive) > 0 {
		most := h.MaxBody
		if most == 0 {
			most = 1024
		}
		if b, err = io.ReadAll(io.LimitReader(body, int64(most))); err != nil {
			return b, false, err
		}
	}
	n, err := io.Copy(io.Discard, io.LimitReader(body, maxDrain))
	return b, n < maxDrain, err
}

// h1 speaks HTTP/1.1.
type h1 struct {
	kept
	conn   net.Conn
	secure bool
	limit  io.LimitedReader
	br     *bufio.Reader
}

func (p *h1) close() {
	if p.conn != nil {
		p.conn.Close()
		p.conn, p.br = nil, nil
	}
}

func (p *h1) probe(ctx context.Context) answer {
	reused := p.conn != nil
	a, silent := p.once(ctx)
	if silent && reused && ctx.Err() == nil {
		// The host closed the connection in between.
		a, _ = p.once(ctx)
	}
	return a
}

// once asks. It reports whether the connection ended before the first byte of an
// answer.
func (p *h1) once(ctx context.Context) (a answer, silent bool) {
	if p.conn == nil {
		conn, secure, err := p.to.Dial(ctx, p.alpn("http/1.1"))
		if err != nil {
			return answer{err: late(err), network: true}, false
		}
		p.conn, p.secure = conn, secure
		p.limit.R = conn
		p.br = bufio.NewReader(&p.limit)
	}
	defer limit(ctx, p.conn)()
	fail := func(err error) (answer, bool) {
		p.close()
		return answer{err: late(err), network: true}, false
	}
	r := p.request(ctx, p.secure)
	if err := r.Write(p.conn); err != nil {
		a, _ := fail(err)
		return a, true
	}
	p.limit.N = maxHead
	if _, err := p.br.Peek(1); err != nil {
		a, _ := fail(err)
		return a, errors.Is(err, io.EOF)
	}
	resp, err := http.ReadResponse(p.br, r)
	for err == nil && resp.StatusCode >= 100 && resp.StatusCode < 200 && resp.StatusCode != 101 {
		resp, err = http.ReadResponse(p.br, r)
	}
	if err != nil {
		return fail(err)
	}
	p.limit.N = maxDrain + int64(p.conf.HTTP.MaxBody) + 1024
	body, all, err := p.read(resp.Body)
	if err != nil {
		return fail(err)
	}
	if !all || resp.Close {
		p.close()
	}
	return p.judge(resp, body), false
}

// h2 speaks HTTP/2.
type h2 struct {
	kept
	conn   net.Conn
	secure bool
	cc     *http2.ClientConn
}

func (p *h2) close() {
	if p.conn != nil {
		p.conn.Close()
		p.conn, p.cc = nil, nil
	}
}

// connect makes a connection unless one is kept.
func (p *h2) connect(ctx context.Context) error {
	if p.cc != nil && p.cc.CanTakeNewRequest() {
		return nil
	}
	p.close()
	conn, secure, err := p.to.Dial(ctx, p.alpn("h2"))
	if err != nil {
		return err
	}
	t := &http2.Transport{AllowHTTP: true, MaxHeaderListSize: maxHead, DisableCompression: true}
	cc, err := t.NewClientConn(conn)
	if err != nil {
		conn.Close()
		return err
	}
	p.conn, p.secure, p.cc = conn, secure, cc
	return nil
}

func (p *h2) probe(ctx context.Context) answer {
	if err := p.connect(ctx); err != nil {
		return answer{err: late(err), network: true}
	}
	defer limit(ctx, p.conn)()
	resp, err := p.cc.RoundTrip(p.request(ctx, p.secure))
	if err != nil {
		p.close()
		return answer{err: late(err), network: true}
	}
	defer resp.Body.Close()
	body, _, err := p.read(resp.Body)
	if err != nil {
		p.close()
		return answer{err: late(err), network: true}
	}
	p.conn.SetDeadline(time.Time{})
	return p.kept.judge(resp, body)
}

// rpc asks grpc.health.v1.Health.
type rpc struct{ h2 }

func (p *rpc) probe(ctx context.Context) answer {
	if err := p.connect(ctx); err != nil {
		return answer{err: late(err), network: true}
	}
	defer limit(ctx, p.conn)()
	g := p.conf.GRPC
	host := g.Authority
	if host == "" {
		host = p.to.Hostname
	}
	if host == "" {
		host = p.to.Cluster
	}
	r := &http.Request{
		Method: "POST", Host: host, URL: &url.URL{Scheme: scheme(p.secure), Host: host, Path: "/grpc.health.v1.Health/Check"},
		Header: http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "User-Agent": {userAgent}},
		Body:   io.NopCloser(bytes.NewReader(checkRequest(g.Service))),
	}
	edit(r, g.Metadata)
	resp, err := p.cc.RoundTrip(r.WithContext(ctx))
	if err != nil {
		p.close()
		return answer{err: late(err), network: true}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if err != nil {
		p.close()
		return answer{err: late(err), network: true}
	}
	p.conn.SetDeadline(time.Time{})
	if resp.StatusCode != 200 {
		return answer{err: fmt.Errorf("status %d", resp.StatusCode)}
	}
	status := resp.Trailer.Get("grpc-status")
	if status == "" {
		status = resp.Header.Get("grpc-status")
	}
	if n, err := strconv.Atoi(status); err != nil || n != 0 {
		return answer{err: fmt.Errorf("gRPC status %q", status)}
	}
	serving, err := checkResponse(body)
	switch {
	case err != nil:
		return answer{err: err, network: true}
	case !serving:
		return answer{err: errors.New("the service does not serve")}
	}
	return answer{}
}

// checkRequest returns a HealthCheckRequest with its gRPC frame.
func checkRequest(service string) []byte {
	var msg []byte
	if service != "" {
		msg = append(msg, 1<<3|2)
		msg = binary.AppendUvarint(msg, uint64(len(service)))
		msg = append(msg, service...)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg))), msg...)
}

// checkResponse reports whether a framed HealthCheckResponse says SERVING.
func checkResponse(b []byte) (bool, error) {
	bad := errors.New("malformed answer")
	if len(b) < 5 || b[0] != 0 || uint64(binary.BigEndian.Uint32(b[1:])) != uint64(len(b)-5) {
		return false, bad
	}
	status := uint64(0)
	for b = b[5:]; len(b) > 0; {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return false, bad
		}
		b = b[n:]
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return false, bad
		}
		b = b[n:]
		switch tag & 7 {
		case 0:
			if tag>>3 == 1 {
				status = v
			}
		case 2:
			if v > uint64(len(b)) {
				return false, bad
			}
			b = b[v:]
		default:
			return false, bad
		}
	}
	return status == 1, nil
}
