package httpapi

import (
	"io"
	"net/http"

	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

func (s *Server) snapshotRoutes() []endpoint {
	return []endpoint{{"/v1/snapshot", "GET,PUT", s.snapshot}}
}

// snapshot serves /v1/snapshot (spec/state.md section 10).
func (s *Server) snapshot(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseOptions(w, r)
	if err != nil {
		return nil, err
	}
	if s.cfg.Streamer == nil {
		return nil, wireerr.Errorf(http.StatusNotImplemented, "snapshots are not available on this agent")
	}
	o.MinIndex, o.MaxWait, o.MaxStale = 0, 0, 0
	if r.Method == http.MethodPut {
		return nil, s.restore(r, &o)
	}
	return nil, s.save(w, r, &o)
}

func (s *Server) save(w http.ResponseWriter, r *http.Request, o *read.Options) error {
	resp, archive, err := operator.SaveSnapshotCall.Stream(r.Context(), s.cfg.Streamer, &operator.SnapshotRequest{Options: *o}, nil)
	if err != nil {
		return err
	}
	defer archive.Close()
	s.setMeta(w, &resp.Meta)
	w.Header()["Content-Type"] = []string{"application/x-gzip"}
	w.WriteHeader(http.StatusOK)
	if _, err := io.Copy(w, archive); err != nil {
		s.log.Error("snapshot ended early", "error", err)
		panic(http.ErrAbortHandler) // the client must not take it for a whole one
	}
	return nil
}

// maxArchive bounds a snapshot as it is uploaded.
const maxArchive = 64 << 30

func (s *Server) restore(r *http.Request, o *read.Options) error {
	if o.Mode == read.Stale {
		return wireerr.Errorf(http.StatusInternalServerError, "stale not allowed for restore")
	}
	if r.ContentLength > maxArchive {
		return tooLarge(maxArchive)
	}
	body := io.LimitedReader{R: r.Body, N: maxArchive + 1}
	_, rest, err := operator.RestoreSnapshotCall.Stream(r.Context(), s.cfg.Streamer, &operator.StatusRequest{Target: o.Target}, &body)
	if body.N <= 0 {
		err = tooLarge(maxArchive)
	}
	if err != nil {
		return err
	}
	return rest.Close()
}
