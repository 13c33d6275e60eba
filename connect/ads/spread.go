package ads

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A Load is how many proxies there are for how many servers.
type Load struct {
	Proxies int // registered
	Servers int // healthy ones; 0 means that this server is to take whoever comes
}

// share returns how many streams a server is to have, 0 for no limit: its part, and a tenth more.
func (l Load) share() int {
	if l.Servers <= 0 {
		return 0
	}
	return max(1, (l.Proxies*11+l.Servers*10-1)/(l.Servers*10))
}

// drainInterval returns how long to wait between ending one stream and the next.
func (l Load) drainInterval() time.Duration {
	return time.Second / time.Duration(min(max((l.Proxies-256)/256, 1), 10))
}

// errTooMany sends a client to another server.
var errTooMany = status.Error(codes.ResourceExhausted, "this server has too many xDS streams open, please try another")

// Spread keeps the number of streams that any server could serve within this server's share of the load it was last told
// of, until ctx ends; then there is no limit any more and it returns nil. Beyond the share a new stream is refused, and when
// the share sinks, streams are ended one after another, whichever they are (spec/xds.md section 1.6).
func (s *Server) Spread(ctx context.Context, loads <-chan Load) error {
	defer s.setShare(0)
	var load Load
	drain := time.NewTimer(0)
	defer drain.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case load = <-loads:
			s.setShare(load.share())
			reportShare(load.share())
		case <-drain.C:
			s.drainOne()
		}
		if s.surplus() {
			drain.Reset(load.drainInterval())
		}
	}
}

func (s *Server) setShare(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.share = n
}

func (s *Server) surplus() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.share > 0 && len(s.movable) > s.share
}

// drainOne ends a stream if there are too many.
func (s *Server) drainOne() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.share == 0 || len(s.movable) <= s.share {
		return
	}
	for st := range s.movable { // in no order
		delete(s.movable, st)
		close(st.drained)
		reportDrained()
		return
	}
}

// admit counts a stream that any server could serve. It fails when this one has its share.
func (s *Server) admit(st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.share > 0 && len(s.movable) >= s.share {
		return errTooMany
	}
	s.movable[st] = struct{}{}
	return nil
}
