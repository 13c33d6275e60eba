package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/span"
)

type (
	optioned interface{ ReadOptions() *read.Options }
	metered  interface{ ReadMeta() *read.Meta }
)

// ask performs a read. When it was a stale one whose answer is older than the request allows, it is repeated in
// default mode.
func ask[Req, Resp any](s *Server, r *http.Request, m rpc.Method[Req, Resp], req *Req) (*Resp, error) {
	resp, err := m.Call(r.Context(), s.caller, req)
	if err != nil {
		return nil, err
	}
	o := any(req).(optioned).ReadOptions()
	if o.MaxStale > 0 && o.Mode == read.Stale && any(resp).(metered).ReadMeta().LastContact > o.MaxStale {
		again := *req
		o := any(&again).(optioned).ReadOptions()
		o.Mode, o.MaxStale = read.Default, 0
		return m.Call(r.Context(), s.caller, &again)
	}
	return resp, nil
}

// askCached is ask for endpoints that the agent's cache keeps fresh: it answers ?cached from there and says so.
func askCached[Req, Resp any](s *Server, w http.ResponseWriter, r *http.Request, m rpc.Method[Req, Resp], req *Req) (*Resp, error) {
	if !w.(*response).cache.wanted {
		return ask(s, r, m, req)
	}
	if _, err := s.authorizer(w, r); err != nil { // what is kept is for tokens that are still good
		return nil, err
	}
	ctx, reading := cached(w, any(req).(optioned).ReadOptions().MinIndex > 0)
	resp, info, err := cache.Get(ctx, s.cfg.Cache, m, req)
	reading.Finish()
	if err != nil {
		return nil, err
	}
	setCached(w, info.Hit, info.Age)
	return resp, nil
}

// cached begins the span of a read from the cache, nil if the request is not recorded.
func cached(w http.ResponseWriter, blocking bool) (context.Context, *span.Span) {
	rw := w.(*response)
	if rw.span == nil {
		return rw.r.Context(), nil
	}
	name := "read from the cache"
	if blocking {
		name = "wait for a change"
	}
	return span.Start(rw.r.Context(), span.Internal, name)
}

// askWatched is askCached for what servers may tell of by streams (spec/state.md section 1.8): a blocking query is then
// answered from the view too, if that is in touch with the servers.
func askWatched[Req, Resp any](s *Server, w http.ResponseWriter, r *http.Request, m rpc.Method[Req, Resp], req *Req) (*Resp, error) {
	o := any(req).(optioned).ReadOptions()
	rw := w.(*response)
	cached := rw.cache.wanted
	if !cached && (o.MinIndex == 0 || o.Mode == read.Consistent || o.MaxStale > 0 || !cache.Streamed(s.cfg.Cache, m, req)) {
		return ask(s, r, m, req)
	}
	if _, err := s.authorizer(w, r); err != nil { // what is kept is for tokens that are still good
		return nil, err
	}
	resp, info, err := cache.Get(r.Context(), s.cfg.Cache, m, req)
	switch {
	case cached && err == nil:
		setCached(w, info.Hit, info.Age)
		rw.streamed = info.Streamed
		return resp, nil
	case err == nil && info.Streamed && info.Age == 0:
		rw.streamed = true
		return resp, nil
	case cached, r.Context().Err() != nil:
		return resp, err
	}
	if err == nil { // it has waited
		own := *req
		req = &own
		any(req).(optioned).ReadOptions().MaxWait = time.Millisecond
	}
	return ask(s, r, m, req)
}

// askKept is ask for calls that cannot block: the cache keeps the answer until the request's Cache-Control asks for
// a newer one.
func askKept[Req, Resp any](s *Server, w http.ResponseWriter, r *http.Request, m rpc.Method[Req, Resp], req *Req) (*Resp, error) {
	c := &w.(*response).cache
	if !c.wanted {
		return m.Call(r.Context(), s.caller, req)
	}
	if _, err := s.authorizer(w, r); err != nil {
		return nil, err
	}
	ctx, reading := cached(w, false)
	resp, info, err := cache.Keep(ctx, s.cfg.Cache, m, req, cache.Control{
		MaxAge: c.maxAge, MustRevalidate: c.revalidate, StaleIfError: c.staleIfError,
	})
	reading.Finish()
	if err != nil {
		return nil, err
	}
	setCached(w, info.Hit, info.Age)
	return resp, nil
}

// authorizer answers for the token of a request: what handlers of agent-local data ask before they show or change
// any. The servers ask their own for everything else.
func (s *Server) authorizer(w http.ResponseWriter, r *http.Request) (*acl.Authorizer, error) {
	token := s.token(w, r)
	if s.cfg.Authorize == nil {
		return acl.Everything(), nil
	}
	return s.cfg.Authorize(r.Context(), token)
}
