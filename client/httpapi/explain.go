package httpapi

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/explain"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// explainRoutes are the endpoints of this file, which the reference product does not have.
func (s *Server) explainRoutes() []endpoint {
	return []endpoint{{"/v1/explain", "GET,POST,PUT", s.explain}}
}

// explain serves /v1/explain: what becomes of a request from one service to another. GET takes it from the query, where
// no token may stand; POST, or PUT, from the body, with changes of entries to try.
func (s *Server) explain(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	o.MinIndex = 0 // nothing tells when the answer changes
	req := &explain.EvaluateRequest{Options: o}
	if r.Method != http.MethodGet {
		if err := s.explainBody(r, req); err != nil {
			return nil, err
		}
	} else if err := explainQuery(w, &req.Request); err != nil {
		return nil, err
	}
	resp, err := ask(s, r, explain.EvaluateCall, req)
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	return struct {
		*explain.Explanation
		WhatIf      *explain.Explanation `json:",omitempty"`
		Differences []string             `json:",omitempty"`
	}{resp.Now, resp.WhatIf, resp.Differences}, nil
}

func explainQuery(w http.ResponseWriter, req *explain.Request) error {
	q := query(w)
	if q.has("jwt") {
		return wireerr.BadRequest("tokens do not belong into a URL: send the request as a POST with JWT in its body")
	}
	req.From, req.To, req.Method, req.Path, req.Host = q.get("from"), q.get("to"), q.get("method"), q.get("path"), q.get("host")
	for _, h := range q.all("header") {
		name, value, ok := strings.Cut(h, ":")
		if !ok {
			return wireerr.BadRequest("header %q is not of the form name:value", h)
		}
		req.Headers = append(req.Headers, explain.Header{Name: strings.TrimSpace(name), Value: strings.TrimSpace(value)})
	}
	if p := q.get("port"); p != "" {
		n, err := strconv.Atoi(p)
		if err != nil {
			return wireerr.BadRequest("%q is no port", p)
		}
		req.Port = n
	}
	return nil
}

// explainBody reads the body of a POST: the fields of an explain.Request, and as WhatIf a list of entries and of objects
// with Delete alone, which has a Kind and a Name.
func (s *Server) explainBody(r *http.Request, req *explain.EvaluateRequest) error {
	var body struct {
		explain.Request
		WhatIf []map[string]any
	}
	if err := s.decode(r, &body, true); err != nil {
		return err
	}
	req.Request = body.Request
	for i, doc := range body.WhatIf {
		c, err := changeOf(doc)
		if err != nil {
			return wireerr.BadRequest("WhatIf[%d]: %v", i, err)
		}
		req.WhatIf = append(req.WhatIf, c)
	}
	return nil
}

func changeOf(doc map[string]any) (explain.Change, error) {
	raw, ok := doc["Delete"]
	if !ok {
		e, err := entry.Decode(doc)
		return explain.Change{Entry: entry.Any{Entry: e}}, err
	}
	key, isMap := raw.(map[string]any)
	kind, _ := key["Kind"].(string)
	name, _ := key["Name"].(string)
	if !isMap || len(doc) != 1 || kind == "" || name == "" && entry.Kind(kind) != entry.KindMesh {
		return explain.Change{}, fmt.Errorf("a deletion is {\"Delete\": {\"Kind\": ..., \"Name\": ...}}")
	}
	k := entry.Key{Kind: entry.Kind(kind), Name: name}
	if k.Kind == entry.KindMesh {
		k.Name = entry.MeshName
	}
	return explain.Change{Delete: &k}, nil
}
