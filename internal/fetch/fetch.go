// Package fetch asks HTTP servers that others run, within bounds: of time, of size, and of where an answer may lead.
package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Timeout bounds one request with its redirects and its answer.
const Timeout = 10 * time.Second

// maxRedirects bounds how often an answer may lead elsewhere.
const maxRedirects = 3

// A Way is how the outside is reached.
type Way struct {
	// Dial opens connections. Nil refuses all of them.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Proxy returns the proxy for a request, as http.ProxyFromEnvironment does; nil takes none.
	Proxy func(*http.Request) (*url.URL, error)
}

// Client returns a client that keeps no connections open. Certificates are verified with roots; nil takes the
// system's. Only a GET without credentials is redirected, and only within its own scheme and host.
func (w Way) Client(roots *x509.CertPool) *http.Client {
	dial := w.Dial
	if dial == nil {
		dial = func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("no way to the outside is configured")
		}
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext:            dial,
			Proxy:                  w.Proxy,
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2:      true,
			DisableKeepAlives:      true,
			DisableCompression:     true,
			TLSHandshakeTimeout:    Timeout,
			ResponseHeaderTimeout:  Timeout,
			MaxResponseHeaderBytes: 64 << 10,
		},
		CheckRedirect: Redirect,
		Timeout:       Timeout,
	}
}

// Redirect is the rule of clients for redirects.
func Redirect(req *http.Request, via []*http.Request) error {
	first := via[0]
	switch {
	case first.Method != http.MethodGet || first.Header.Get("Authorization") != "":
		return errors.New("redirect refused")
	case req.URL.Scheme != first.URL.Scheme || req.URL.Host != first.URL.Host:
		return errors.New("redirect to another host refused")
	case len(via) > maxRedirects:
		return errors.New("too many redirects")
	}
	return nil
}

// An Answer is what a server said.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Do sends the request and reads an answer of up to limit bytes; a longer one is an error. Errors tell nothing of the
// answer's body, and no more of the URL than its host: they go to people who did not configure it.
func Do(c *http.Client, req *http.Request, limit int64) (*Answer, error) {
	resp, err := c.Do(req)
	if whole, ok := errors.AsType[*url.Error](err); ok {
		return nil, fmt.Errorf("ask %s: %w", req.URL.Host, whole.Err)
	}
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", req.URL.Host, err)
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("the answer of %s is longer than %d bytes", req.URL.Host, limit)
	}
	return &Answer{resp.StatusCode, resp.Header, body}, nil
}
