package httpapi

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/client/leaf"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// firstRootWait is how long a request for roots waits for those of a cluster that has only just started.
const firstRootWait = 3 * time.Second

// connectRoots serves /v1/connect/ca/roots (spec/connect.md section 2.1).
func (s *Server) connectRoots(w http.ResponseWriter, r *http.Request) (any, error) {
	inPEM := false
	if v, ok := query(w).lookup("pem"); ok {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return nil, wireerr.BadRequest("The 'pem' query parameter must be a boolean value")
		}
		inPEM = b
	}
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	resp, err := ask(s, r, ca.RootsCall, &ca.RootsRequest{Options: o})
	if err == nil && resp.ActiveRootID == "" && o.MinIndex == 0 {
		o.MinIndex, o.MaxWait = max(resp.Index, 1), firstRootWait
		resp, err = ask(s, r, ca.RootsCall, &ca.RootsRequest{Options: o})
	}
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	if !inPEM {
		return resp, nil
	}
	var all strings.Builder
	for _, root := range resp.Roots {
		for _, text := range append([]string{root.RootCert}, root.IntermediateCerts...) {
			all.WriteString(text)
			if !strings.HasSuffix(text, "\n") {
				all.WriteByte('\n')
			}
		}
	}
	return rawValue{[]string{"application/pem-certificate-chain"}, []byte(all.String())}, nil
}

// connectConfiguration serves /v1/connect/ca/configuration.
func (s *Server) connectConfiguration(w http.ResponseWriter, r *http.Request) (any, error) {
	if r.Method == http.MethodPut {
		req := &ca.SetConfigRequest{Target: s.target(w, r)}
		if err := s.decode(r, &req.Config, false); err != nil {
			return nil, err
		}
		_, err := ca.SetConfigCall.Call(r.Context(), s.caller, req)
		return nil, err
	}
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	resp, err := ask(s, r, ca.ConfigCall, &ca.ConfigRequest{Options: o})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	return resp.Config, nil
}

// agentRoots serves /v1/agent/connect/ca/roots: the roots as this agent knows them.
func (s *Server) agentRoots(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	if s.cfg.Cache == nil {
		resp, err := ask(s, r, ca.RootsCall, &ca.RootsRequest{Options: o})
		if err != nil {
			return nil, err
		}
		s.setMeta(w, &resp.Meta)
		setCached(w, false, 0)
		return resp, nil
	}
	req := &ca.RootsRequest{Options: read.Options{Target: read.Target{Datacenter: o.Datacenter}, MinIndex: o.MinIndex, MaxWait: o.MaxWait}}
	resp, info, err := cache.Get(r.Context(), s.cfg.Cache, ca.RootsCall, req)
	if err == nil && resp.ActiveRootID == "" && o.MinIndex == 0 {
		req.MinIndex, req.MaxWait = max(resp.Index, 1), firstRootWait
		resp, info, err = cache.Get(r.Context(), s.cfg.Cache, ca.RootsCall, req)
	}
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	setCached(w, info.Hit, info.Age)
	return resp, nil
}

// agentLeaf serves /v1/agent/connect/ca/leaf/:service. The right to be the service is asked for every time, whoever had
// the certificate made (spec/connect.md section 18).
func (s *Server) agentLeaf(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return refused(err)
	}
	service := argument(w, r)
	if service == "" {
		return refused(leaf.ErrIdentity)
	}
	if !s.connect {
		return refused(wireerr.ErrConnectDisabled)
	}
	may := func() (acl.Permit, error) {
		z, err := s.authorizer(w, r)
		if err != nil {
			return acl.Permit{}, err
		}
		return z.Require(acl.Service, acl.Write, service)
	}
	p, err := may()
	if err != nil {
		return refused(err)
	}
	leaves, err := s.leaves.With(p)
	if err != nil {
		return refused(err)
	}
	res, err := leaves.Get(r.Context(), leaf.Request{
		Service: service, Token: o.Token, MinIndex: o.MinIndex, MaxWait: o.MaxWait,
	})
	if err != nil {
		return refused(err)
	}
	if o.MinIndex > 0 { // the wait was long enough for the token to be good no more
		if p, err = may(); err != nil {
			return refused(err)
		}
	}
	w.Header()["X-Consul-Index"] = []string{strconv.FormatUint(max(res.Index, 1), 10)}
	setCached(w, res.Hit, res.Age)
	return res.Leaf, p, nil
}
