package httpapi

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	prepared "github.com/sarnmesh/sarn/catalog/query"
)

func (s *Server) queryRoutes() []endpoint {
	return []endpoint{
		{"/v1/query", "GET,POST", s.queryCollection},
		{"/v1/query/", "GET,PUT,DELETE", s.queryItem},
		{"/v1/query/*/execute", "GET", s.queryExecute},
		{"/v1/query/*/explain", "GET", s.queryExplain},
	}
}

// maxQueryBody bounds a definition as JSON, which is somewhat longer than what is stored.
const maxQueryBody = 2 * prepared.MaxSize

func (s *Server) queryCollection(w http.ResponseWriter, r *http.Request) (any, error) {
	if r.Method == http.MethodPost {
		return s.applyQuery(w, r, prepared.Create, "")
	}
	o, err := s.parseOptions(w, r)
	if err != nil {
		return nil, err
	}
	resp, err := ask(s, r, prepared.ListCall, &prepared.ListRequest{Options: o})
	if err != nil {
		return nil, err
	}
	s.setQueryMeta(w, &resp.Meta)
	return queriesValue(resp), nil
}

// queriesValue is the list of an answer, never null.
func queriesValue(resp *prepared.Reply) []*prepared.Query {
	if resp.Queries == nil {
		return []*prepared.Query{}
	}
	return resp.Queries
}

func (s *Server) queryItem(w http.ResponseWriter, r *http.Request) (any, error) {
	id := argument(w, r)
	switch r.Method {
	case http.MethodPut:
		_, err := s.applyQuery(w, r, prepared.Update, id)
		return nil, err
	case http.MethodDelete:
		_, err := s.applyQuery(w, r, prepared.Delete, id)
		return nil, err
	}
	o, err := s.parseOptions(w, r)
	if err != nil {
		return nil, err
	}
	resp, err := ask(s, r, prepared.GetCall, &prepared.GetRequest{Options: o, ID: id})
	if err != nil {
		return nil, err
	}
	s.setQueryMeta(w, &resp.Meta)
	return queriesValue(resp), nil
}

// applyQuery changes one query. That of the path counts, whatever the body says.
func (s *Server) applyQuery(w http.ResponseWriter, r *http.Request, op prepared.Op, id string) (*prepared.ApplyReply, error) {
	req := &prepared.ApplyRequest{Target: s.target(w, r), Op: op}
	if op != prepared.Delete {
		body, err := s.readJSON(r, maxQueryBody)
		if err != nil {
			return nil, err
		}
		defer putBuffer(body)
		// An update without a body is an empty definition.
		if len(body.b) > 0 || op == prepared.Create {
			if err := decodeJSON(body.b, &req.Query, true); err != nil {
				return nil, decodeFailed(err)
			}
		}
	}
	if op != prepared.Create {
		req.Query.ID = id
	}
	return prepared.ApplyCall.Call(r.Context(), s.caller, req)
}

// parseExecution reads what execute and explain have in common. Neither blocks.
func (s *Server) parseExecution(w http.ResponseWriter, r *http.Request) (*prepared.ExecuteRequest, error) {
	o, err := s.parseOptions(w, r)
	if err != nil {
		return nil, err
	}
	o.MinIndex, o.MaxWait = 0, 0
	return &prepared.ExecuteRequest{
		Options: o, Query: argument(w, r), Origin: prepared.Origin{Node: s.cfg.NodeName, Datacenter: s.cfg.Datacenter, IP: callerIP(r)},
	}, nil
}

// callerIP returns the address of whoever asks: what the first proxy on the way says, else that of the connection.
func callerIP(r *http.Request) string {
	first, _, _ := strings.Cut(r.Header.Get("X-Forwarded-For"), ",")
	ip, err := netip.ParseAddr(strings.TrimSpace(first))
	if err != nil {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		if ip, err = netip.ParseAddr(host); err != nil {
			return ""
		}
	}
	return ip.Unmap().WithZone("").String()
}

func (s *Server) queryExecute(w http.ResponseWriter, r *http.Request) (any, error) {
	req, err := s.parseExecution(w, r)
	if err != nil {
		return nil, err
	}
	q := query(w)
	if v := q.get("limit"); v != "" {
		if req.Limit, err = strconv.Atoi(v); err != nil {
			return nil, fmt.Errorf("Bad limit: %w", err)
		}
	}
	if v := q.get("connect"); v != "" {
		if req.Connect, err = strconv.ParseBool(v); err != nil {
			return nil, fmt.Errorf("Error parsing 'connect' value: %w", err)
		}
	}
	if !s.cfg.DisableCoordinates {
		req.Near = q.get("near")
	}
	var resp *prepared.ExecuteReply
	if w.(*response).cache.wanted {
		resp, err = askKept(s, w, r, prepared.ExecuteCall, req)
	} else {
		resp, err = ask(s, r, prepared.ExecuteCall, req)
	}
	if err != nil {
		return nil, err
	}
	s.setQueryMeta(w, &resp.Meta)
	instances := resp.Instances
	if s.translates(resp.Datacenter) {
		instances = translated(instances, wanInstance)
	}
	return appendFunc(func(dst []byte) []byte {
		o := object{b: append(dst, '{')}
		o.str("Service", resp.Service)
		o.name("Nodes")
		o.b = appendList(o.b, instances, appendInstance)
		o.any("DNS", resp.DNS)
		o.str("Datacenter", resp.Datacenter)
		o.str("PeerName", resp.PeerName)
		o.num("Failovers", resp.Failovers)
		return append(appendMetaFields(o.b, &resp.Meta, max(resp.Index, 1)), '}')
	}), nil
}

func (s *Server) queryExplain(w http.ResponseWriter, r *http.Request) (any, error) {
	req, err := s.parseExecution(w, r)
	if err != nil {
		return nil, err
	}
	resp, err := ask(s, r, prepared.ExplainCall, req)
	if err != nil {
		return nil, err
	}
	s.setQueryMeta(w, &resp.Meta)
	return appendFunc(func(dst []byte) []byte {
		o := object{b: append(dst, '{')}
		o.any("Query", resp.Query)
		return append(appendMetaFields(o.b, &resp.Meta, max(resp.Index, 1)), '}')
	}), nil
}
