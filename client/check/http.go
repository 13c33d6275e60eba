package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"

	"github.com/sarnmesh/sarn/catalog"
)

const (
	maxBodyRead  = 1 << 20 // bytes of an answer that are read at most
	maxRedirects = 10
	maxStatus    = 200  // bytes of a status line that are shown
	copyBuffer   = 2048 // bytes; most answers are short
)

// An httpProbe judges the status of an answer. It asks the target itself, never by way of a proxy that the environment
// names: that would tell about the proxy.
type httpProbe struct {
	network
	limit int
}

// Probe sends the request once, and what redirects ask for.
func (p httpProbe) Probe(ctx context.Context) Result {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	method := p.def.Method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, p.def.HTTP, strings.NewReader(p.def.Body))
	if err != nil {
		return critical("%v", err)
	}
	for k, vs := range p.def.Header {
		for _, v := range vs {
			req.Header.Add(k, v)
		}
	}
	if h := req.Header.Get("Host"); h != "" {
		req.Host = h
	}
	setDefaults(req.Header)
	ended, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	t := &trip{httpProbe: p, ctx: ctx, ended: ended}
	client := &http.Client{
		CheckRedirect: t.redirect,
		Transport: &http.Transport{
			DisableKeepAlives:      true,
			DialContext:            t.dial,
			TLSClientConfig:        p.tlsConfig("", "http/1.1"),
			MaxResponseHeaderBytes: maxHeader,
			ReadBufferSize:         copyBuffer,
			WriteBufferSize:        copyBuffer,
		},
	}
	resp, err := client.Do(req)
	if err != nil {
		return critical("%v", err)
	}
	defer resp.Body.Close()
	body := newTail(p.limit)
	if _, err := io.CopyBuffer(body, io.LimitReader(resp.Body, maxBodyRead), make([]byte, copyBuffer)); err != nil {
		fmt.Fprintf(body, "\nreading the answer: %v", err)
	}
	status := resp.Status[:min(len(resp.Status), maxStatus)]
	r := Result{Status: catalog.Critical, Output: fmt.Sprintf("HTTP %s %s: %s Output: %s", method, p.def.HTTP, status, body)}
	switch {
	case resp.StatusCode >= 200 && resp.StatusCode <= 299:
		r.Status = catalog.Passing
	case resp.StatusCode == http.StatusTooManyRequests:
		r.Status = catalog.Warning
	}
	return r
}

func setDefaults(h http.Header) {
	if h.Get("User-Agent") == "" {
		h.Set("User-Agent", userAgent)
	}
	if h.Get("Accept") == "" {
		h.Set("Accept", "text/plain, text/*, */*")
	}
}

// A trip is one run of an HTTP check with its redirects. Where those lead is chosen by the target, not by who registered
// the check, so they reach neither what only this machine may ask, nor learn what the check says to the target.
type trip struct {
	httpProbe
	ctx   context.Context // of the run; a dial ends with it
	ended context.Context // ends with the trip, and with it every connection, also one that is still shaking hands

	mu         sync.Mutex
	dialled    bool
	loopback   bool // the target itself is on this machine
	linkLocal  bool // the target itself is on this link
	redirected bool
}

// redirect decides whether a redirect is followed.
func (t *trip) redirect(req *http.Request, via []*http.Request) error {
	switch {
	case t.def.DisableRedirects:
		return http.ErrUseLastResponse
	case len(via) >= maxRedirects:
		return fmt.Errorf("stopped after %d redirects", maxRedirects)
	}
	t.mu.Lock()
	t.redirected = true
	t.mu.Unlock()
	if req.URL.Host == via[0].URL.Host {
		return nil
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return fmt.Errorf("%s is not repeated at %s, to where it is redirected", req.Method, req.URL.Host)
	}
	for k := range t.def.Header {
		req.Header.Del(k)
	}
	setDefaults(req.Header)
	return nil
}

var errRedirectedInside = errors.New("redirected to an address that is not for others to choose")

// dial connects for the first request and, with more care, for redirects. What counts is the address that was connected
// to: a name may stand for any.
func (t *trip) dial(_ context.Context, network, address string) (net.Conn, error) {
	conn, err := t.network.dial(t.ctx, network, address)
	if err != nil {
		return nil, err
	}
	ip := remoteIP(conn)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.dialled && !t.redirected {
		t.dialled, t.loopback, t.linkLocal = true, ip.IsLoopback(), isLinkLocal(ip)
	}
	if ip.IsLoopback() && !t.loopback || isLinkLocal(ip) && !t.linkLocal {
		conn.Close()
		return nil, errRedirectedInside
	}
	context.AfterFunc(t.ended, func() { conn.Close() })
	return conn, nil
}

// remoteIP returns the address at the other end, the zero one where there is none.
func remoteIP(conn net.Conn) netip.Addr {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// awsMetadata is the one well-known address of cloud metadata that is not link-local.
var awsMetadata = netip.MustParseAddr("fd00:ec2::254")

func isLinkLocal(ip netip.Addr) bool { return ip.IsLinkLocalUnicast() || ip == awsMetadata }
