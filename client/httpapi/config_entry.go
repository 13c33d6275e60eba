package httpapi

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/filter"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// parseCAS reads ?cas, nil when it is missing.
func parseCAS(w http.ResponseWriter) (*uint64, error) {
	text, ok := query(w).lookup("cas")
	if !ok || text == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("cannot parse the cas parameter: %w", err)
	}
	return &n, nil
}

// configPut serves PUT /v1/config (spec/connect.md section 7).
func (s *Server) configPut(w http.ResponseWriter, r *http.Request) (any, error) {
	cas, err := parseCAS(w)
	if err != nil {
		return nil, err
	}
	var doc map[string]any
	if err := s.decodeRaw(r, &doc, false); err != nil {
		return nil, unreadable("Request decoding failed", err)
	}
	e, err := entry.Decode(doc)
	if err != nil {
		return nil, unreadable("Request decoding failed", err)
	}
	reply, err := entry.ApplyCall.Call(r.Context(), s.caller, &entry.ApplyRequest{
		Target: s.target(w, r), Entry: entry.Any{Entry: e}, CAS: cas,
	})
	if err != nil {
		return nil, err
	}
	return reply.OK, nil
}

// config serves /v1/config/:kind/:name and /v1/config/:kind.
func (s *Server) config(w http.ResponseWriter, r *http.Request) (any, error) {
	kind, name, named := strings.Cut(argument(w, r), "/")
	if r.Method == http.MethodDelete {
		return s.configDelete(w, r, entry.Kind(kind), name)
	}
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	if named && name != "" {
		resp, err := ask(s, r, entry.GetCall, &entry.GetRequest{Options: o, Kind: entry.Kind(kind), Name: name})
		if err != nil {
			return nil, err
		}
		s.setMeta(w, &resp.Meta)
		if resp.Entry.Entry == nil {
			return nil, wireerr.NotFound("Config entry not found for %q / %q", kind, name)
		}
		return resp.Entry.Entry, nil
	}
	o.Filter = query(w).get("filter")
	resp, err := ask(s, r, entry.ListCall, &entry.ListRequest{Options: o, Kind: entry.Kind(kind)})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	return orEmpty(resp.Entries), nil
}

func (s *Server) configDelete(w http.ResponseWriter, r *http.Request, kind entry.Kind, name string) (any, error) {
	if kind == "" || name == "" {
		return nil, wireerr.NotFound("Must provide both a kind and name to delete")
	}
	cas, err := parseCAS(w)
	if err != nil {
		return nil, err
	}
	reply, err := entry.DeleteCall.Call(r.Context(), s.caller, &entry.DeleteRequest{
		Target: s.target(w, r), Kind: kind, Name: name, CAS: cas,
	})
	if err != nil {
		return nil, err
	}
	if cas != nil {
		return reply.OK, nil
	}
	return struct{}{}, nil
}

// discoveryChain serves /v1/discovery-chain/:service (spec/connect.md section 10.1).
func (s *Server) discoveryChain(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	req := &chain.GetRequest{Options: o, Service: argument(w, r), EvaluateDatacenter: query(w).get("compile-dc")}
	if req.Service == "" {
		return nil, wireerr.BadRequest("Missing chain name")
	}
	if r.Method == http.MethodPost {
		if req.Overrides, err = s.decodeOverrides(r); err != nil {
			return nil, err
		}
	}
	resp, err := askCached(s, w, r, chain.GetCall, req)
	if err != nil {
		return nil, err
	}
	s.setQueryMeta(w, &resp.Meta)
	return struct{ Chain *chain.Chain }{resp.Chain}, nil
}

func (s *Server) decodeOverrides(r *http.Request) (o chain.Overrides, err error) {
	var doc map[string]any
	if err := s.decodeRaw(r, &doc, false); err != nil {
		return o, unreadable("Request decoding failed", err)
	}
	var body struct {
		OverrideConnectTimeout catalog.Duration
		OverrideProtocol       string
		OverrideMeshGateway    catalog.MeshGateway
	}
	if err := entry.Unmarshal(doc, &body); err != nil {
		return o, unreadable("Request decoding failed", err)
	}
	switch body.OverrideMeshGateway.Mode {
	case "", "none", "local", "remote":
	default:
		return o, wireerr.BadRequest("Invalid OverrideMeshGateway.Mode parameter")
	}
	return chain.Overrides{
		MeshGateway: body.OverrideMeshGateway, Protocol: strings.ToLower(body.OverrideProtocol),
		ConnectTimeout: time.Duration(body.OverrideConnectTimeout),
	}, nil
}

// An exportedService is one line of /v1/exported-services.
type exportedService struct {
	Service   string
	Consumers struct{ Peers []string }
}

// exportedServices serves /v1/exported-services (spec/connect.md section 8.10).
func (s *Server) exportedServices(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	keep, err := filter.Compile[exportedService](query(w).get("filter"))
	if err != nil {
		return nil, err
	}
	resp, err := ask(s, r, entry.GetCall, &entry.GetRequest{
		Options: o, Kind: entry.KindExportedServices, Name: entry.ExportedServicesName,
	})
	if err != nil {
		return nil, err
	}
	peers := map[string][]string{}
	x, _ := resp.Entry.Entry.(*entry.ExportedServices)
	if x == nil {
		x = &entry.ExportedServices{}
	}
	for _, e := range x.Services {
		names := []string{e.Name}
		if e.Name == entry.Wildcard {
			all, err := ask(s, r, catalog.ServicesCall, &catalog.ServicesRequest{Options: read.Options{Target: o.Target, Mode: o.Mode}})
			if err != nil {
				return nil, err
			}
			resp.Index = max(resp.Index, all.Index)
			names = names[:0]
			for name := range all.Services {
				if name != catalog.ServerServiceName {
					names = append(names, name)
				}
			}
		}
		for _, name := range names {
			for _, c := range e.Consumers {
				if c.Peer != "" && !slices.Contains(peers[name], c.Peer) {
					peers[name] = append(peers[name], c.Peer)
				}
			}
		}
	}
	s.setMeta(w, &resp.Meta)
	out := []exportedService{}
	for name, list := range peers {
		slices.Sort(list)
		line := exportedService{Service: name}
		line.Consumers.Peers = list
		if keep.Match(line) {
			out = append(out, line)
		}
	}
	slices.SortFunc(out, func(a, b exportedService) int { return strings.Compare(a.Service, b.Service) })
	return out, nil
}

// serviceVirtualIP serves /v1/internal/service-virtual-ip (spec/registry.md section 8.4).
func (s *Server) serviceVirtualIP(w http.ResponseWriter, r *http.Request) (any, error) {
	var body struct {
		Service    string
		ManualVIPs []string
	}
	if err := s.decode(r, &body, true); err != nil {
		return nil, err
	}
	return entry.SetVirtualIPsCall.Call(r.Context(), s.caller, &entry.SetVirtualIPsRequest{
		Target: s.target(w, r), Service: body.Service, Addresses: body.ManualVIPs,
	})
}
