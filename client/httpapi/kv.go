package httpapi

import (
	"net/http"
	"strconv"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

func (s *Server) kvRoutes() []endpoint {
	return []endpoint{{"/v1/kv/", "GET,PUT,DELETE", s.kv}}
}

// errMissingKey refuses requests that need a key.
var errMissingKey = wireerr.BadRequest("Missing key name")

// kv serves /v1/kv/:key (spec/state.md section 2).
func (s *Server) kv(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	key := argument(w, r)
	switch r.Method {
	case http.MethodPut:
		return s.kvPut(w, r, o.Target, key)
	case http.MethodDelete:
		return s.kvDelete(w, r, o.Target, key)
	}
	q := query(w)
	if len(q.list) != 0 {
		if q.has("keys") {
			return s.kvKeys(w, r, o, key)
		}
		if q.has("recurse") {
			return s.kvList(w, r, o, key)
		}
	}
	return s.kvGet(w, r, o, key)
}

func (s *Server) kvGet(w http.ResponseWriter, r *http.Request, o read.Options, key string) (any, error) {
	if key == "" {
		return nil, errMissingKey
	}
	resp, err := ask(s, r, kv.GetCall, &kv.GetRequest{Options: o, Key: key})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	e := resp.Entry
	if e == nil {
		w.WriteHeader(http.StatusNotFound)
		return nil, nil
	}
	if query(w).has("raw") {
		h := w.Header()
		h["X-Content-Type-Options"] = []string{"nosniff"}
		h["Content-Security-Policy"] = []string{"sandbox"}
		return rawValue{[]string{"text/plain"}, e.Value}, nil
	}
	return (*entryValue)(e), nil
}

// entryValue is a list of one entry.
type entryValue kv.Entry

func (e *entryValue) appendJSON(dst []byte) []byte {
	return append(appendEntry(append(dst, '['), (*kv.Entry)(e)), ']')
}

func (s *Server) kvList(w http.ResponseWriter, r *http.Request, o read.Options, prefix string) (any, error) {
	resp, err := ask(s, r, kv.ListCall, &kv.ListRequest{Options: o, Prefix: prefix})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	if len(resp.Entries) == 0 {
		w.WriteHeader(http.StatusNotFound)
		return nil, nil
	}
	return listValue[*kv.Entry]{resp.Entries, appendEntry}, nil
}

func (s *Server) kvKeys(w http.ResponseWriter, r *http.Request, o read.Options, prefix string) (any, error) {
	q := query(w)
	sep, ok := q.lookup("separator")
	if !ok {
		sep = q.get("seperator") // the historic misspelling
	}
	resp, err := ask(s, r, kv.KeysCall, &kv.KeysRequest{Options: o, Prefix: prefix, Separator: sep})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	if len(resp.Keys) == 0 && prefix != "" {
		w.WriteHeader(http.StatusNotFound)
		return nil, nil
	}
	return stringsValue(resp.Keys), nil
}

// conflict refuses a request with more than one of the parameters named.
func conflict(q *params, names ...string) error {
	n := 0
	for _, name := range names {
		if q.has(name) {
			n++
		}
	}
	if n > 1 {
		return wireerr.BadRequest("Conflicting flags: %s\n", q.encode())
	}
	return nil
}

// uintParam reads a number that must be one if its parameter is there.
func uintParam(q *params, name string) (n uint64, ok bool, err error) {
	v, ok := q.lookup(name)
	if !ok {
		return 0, false, nil
	}
	n, err = strconv.ParseUint(v, 10, 64)
	return n, true, err
}

func (s *Server) kvPut(w http.ResponseWriter, r *http.Request, t read.Target, key string) (any, error) {
	if key == "" {
		return nil, errMissingKey
	}
	q := query(w)
	req := &kv.ApplyRequest{Target: t, Op: kv.OpSet, Entry: kv.Entry{Key: key}}
	if len(q.list) != 0 {
		if err := conflict(q, "cas", "acquire", "release"); err != nil {
			return nil, err
		}
		flags, _, err := uintParam(q, "flags")
		if err != nil {
			return nil, err
		}
		index, cas, err := uintParam(q, "cas")
		if err != nil {
			return nil, err
		}
		req.Entry.Flags = flags
		if cas {
			req.Op, req.Entry.Indexes = kv.OpCAS, catalog.Indexes{ModifyIndex: index}
		}
		if id, ok := q.lookup("acquire"); ok {
			req.Op, req.Entry.Session = kv.OpLock, id
		}
		if id, ok := q.lookup("release"); ok {
			req.Op, req.Entry.Session = kv.OpUnlock, id
		}
	}
	value, err := s.readValue(r)
	if err != nil {
		return nil, err
	}
	req.Entry.Value = value
	return s.apply(r, req)
}

// readValue reads the body of a write. The result is not shared with any buffer.
func (s *Server) readValue(r *http.Request) ([]byte, error) {
	limit := s.cfg.KVMaxValueSize
	if r.ContentLength > limit {
		return nil, wireerr.Errorf(http.StatusRequestEntityTooLarge,
			"Request body(%d bytes) too large, max size: %d bytes. See limits.kv_max_value_size in the configuration.", r.ContentLength, limit)
	}
	if r.ContentLength == 0 {
		return nil, nil
	}
	buf, err := s.readBody(r, limit)
	if err != nil {
		return nil, err
	}
	defer putBuffer(buf)
	if len(buf.b) == 0 {
		return nil, nil
	}
	return append(make([]byte, 0, len(buf.b)), buf.b...), nil
}

func (s *Server) apply(r *http.Request, req *kv.ApplyRequest) (any, error) {
	resp, err := kv.ApplyCall.Call(r.Context(), s.caller, req)
	if err != nil {
		return nil, err
	}
	return resp.OK, nil
}

func (s *Server) kvDelete(w http.ResponseWriter, r *http.Request, t read.Target, key string) (any, error) {
	q := query(w)
	if err := conflict(q, "recurse", "cas"); err != nil {
		return nil, err
	}
	req := &kv.ApplyRequest{Target: t, Op: kv.OpDelete, Entry: kv.Entry{Key: key}}
	if q.has("recurse") {
		req.Op = kv.OpDeleteTree
		w.(*response).tree = true
	} else if key == "" {
		return nil, errMissingKey
	}
	index, cas, err := uintParam(q, "cas")
	if err != nil {
		return nil, err
	}
	if cas {
		req.Op, req.Entry.Indexes = kv.OpDeleteCAS, catalog.Indexes{ModifyIndex: index}
	}
	return s.apply(r, req)
}
