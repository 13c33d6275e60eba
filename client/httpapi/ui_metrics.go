package httpapi

import (
	"fmt"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A MetricsProxy lets the console read metrics from a store of them that browsers do not reach.
type MetricsProxy struct {
	Base  string   // URL of the store
	Paths []string // whole paths that may be read; empty means all below Base
	// Headers are set on each request. One named Host sets the host.
	Headers   []MetricsHeader
	Transport http.RoundTripper // default http.DefaultTransport
}

// A MetricsHeader is one header of a MetricsProxy.
type MetricsHeader struct{ Name, Value string }

// uiMetrics passes a request on to the store of metrics. The query string is the store's: only headers can carry the
// token, and it stays here.
func (s *Server) uiMetrics(w http.ResponseWriter, r *http.Request) (any, error) {
	p := s.cfg.UIMetrics
	switch {
	case !s.cfg.UIEnabled:
		return nil, wireerr.NotFound("UI is not enabled")
	case p == nil || p.Base == "":
		return nil, wireerr.NotFound("Metrics proxy is not enabled")
	}
	if err := s.mayReadMetrics(r); err != nil {
		return nil, err
	}
	target, err := p.target(argument(w, r))
	if err != nil {
		return nil, err
	}
	target.RawQuery = r.URL.RawQuery
	proxy := httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.Out.URL, pr.Out.Host = target, ""
			pr.Out.Header.Del("X-Consul-Token")
			pr.Out.Header.Del("Authorization")
			pr.Out.Header.Del("Cookie")
			for _, h := range p.Headers {
				if http.CanonicalHeaderKey(h.Name) == "Host" {
					pr.Out.Host = h.Value
				} else {
					pr.Out.Header.Set(h.Name, h.Value)
				}
			}
		},
		Transport: p.Transport,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			s.log.Warn("cannot reach the store of metrics", "error", err)
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	proxy.ServeHTTP(w, r)
	return nil, nil
}

// mayReadMetrics asks for the right to see every node and service: metrics tell of all of them.
func (s *Server) mayReadMetrics(r *http.Request) error {
	if s.cfg.Authorize == nil {
		return nil
	}
	z, err := s.cfg.Authorize(r.Context(), s.ownToken(&params{}, r))
	if err != nil {
		return err
	}
	if _, err := z.RequirePrefix(acl.Node, acl.Read, ""); err != nil {
		return err
	}
	_, err = z.RequirePrefix(acl.Service, acl.Read, "")
	return err
}

// target returns where a path below the base is, if it may be read.
func (p *MetricsProxy) target(rest string) (*url.URL, error) {
	base, err := url.Parse(p.Base)
	if err != nil {
		return nil, fmt.Errorf("base URL of the metrics proxy: %w", err)
	}
	root := path.Clean("/" + base.Path)
	full := path.Clean("/" + base.Path + "/" + rest)
	if len(p.Paths) > 0 && !slices.Contains(p.Paths, full) {
		return nil, wireerr.Errorf(http.StatusForbidden, "")
	}
	if full != root && !strings.HasPrefix(full, strings.TrimSuffix(root, "/")+"/") {
		return nil, wireerr.BadRequest("Invalid path.")
	}
	target := *base
	target.Path, target.RawPath = full, ""
	return &target, nil
}
