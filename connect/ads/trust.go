package ads

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/connect/xds"
)

// A Trust tells which roots the client of a stream trusts.
type Trust struct {
	Proxy, Node string // Node is empty for that of the agent
	Flavour     xds.Flavour
	// Bundle names the roots that were in the last resources of which the client had accepted all; empty before that. A
	// client of flavour Proxyless learns of roots elsewhere.
	Bundle string
	// Refused is why the client refuses some of its resources, as it says.
	Refused string
}

// BackTime is how long a proxy whose stream has ended is taken to be about to come back: clients try again after half a
// minute at most.
const BackTime = 30 * time.Second

// Trust tells about the streams whose clients said who they are, in the order of their proxies; about those of them that
// do not trust the bundle it tells why they refuse something. It returns the proxies of this node, too, whose streams have
// ended less than BackTime ago, and a channel that is closed when the answer may be another, but for time that passes.
func (s *Server) Trust(bundle string) (streams []Trust, left []string, news <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for st := range s.streams {
		if st.node.ID == "" {
			continue
		}
		t := Trust{Proxy: st.node.ID, Node: st.node.Name, Flavour: st.node.Flavour, Bundle: st.trust}
		if st.trust != bundle {
			t.Refused = st.refused()
		}
		streams = append(streams, t)
	}
	slices.SortFunc(streams, func(a, b Trust) int { return strings.Compare(a.Proxy, b.Proxy) })
	for id, at := range s.left {
		if time.Since(at) < BackTime {
			left = append(left, id)
		}
	}
	slices.Sort(left)
	if s.news == nil {
		s.news = make(chan struct{})
	}
	return streams, left, s.news
}

// leftLocked notes the end of a stream.
func (s *Server) leftLocked(st *stream) {
	maps.DeleteFunc(s.left, func(_ string, at time.Time) bool { return time.Since(at) >= BackTime })
	if st.node.Name != "" {
		return
	}
	for other := range s.streams {
		if other.node.ID == st.node.ID && other.node.Name == "" {
			return
		}
	}
	s.left[st.node.ID] = time.Now()
}

// refused returns why the client refuses something, empty if it does not.
func (st *stream) refused() string {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, t := range st.progress() {
		if len(t.Rejected) > 0 {
			return t.Error
		}
	}
	return ""
}

// accept notes that the client of a stream trusts the roots in the resources, if it has accepted all of them. It returns
// when that is to be looked at again even if nothing happens, zero for not at all: a client that comes back tells what it
// has one type after another.
func (s *Server) accept(st *stream, r *xds.Resources, has func(*xds.Resources) bool) time.Time {
	if st.trust == r.Bundle { // this goroutine alone changes it
		return time.Time{}
	}
	if settled := st.since.Add(askTime); time.Now().Before(settled) {
		return settled
	}
	if has(r) {
		s.mu.Lock()
		defer s.mu.Unlock()
		st.trust = r.Bundle
		s.newsLocked()
		s.cfg.Logger.Debug("proxy has accepted roots", "proxy", st.node.ID, "bundle", r.Bundle)
	}
	return time.Time{}
}

// newsLocked tells those who wait that a client's trust has changed.
func (s *Server) newsLocked() {
	if s.news != nil {
		close(s.news)
		s.news = nil
	}
}

// has ignores what has not been asked for, but that every client asks for clusters and listeners. Endpoints count as soon
// as they are sent: they change all the time, and a cluster takes effect with the first it gets.
func (d *delta) has(r *xds.Resources) bool {
	for i := range d.types {
		t, ty := xds.Type(i), &d.types[i]
		if !ty.registered {
			if t == xds.Cluster || t == xds.Listener {
				return false
			}
			continue
		}
		have := r.Of(t)
		accepted := func(name string) bool {
			x := have[name]
			if x == nil {
				return true
			}
			unanswered := false
			if ty.pending != nil && t != xds.Endpoint {
				_, unanswered = ty.pending.items[name]
			}
			_, rejected := ty.rejected[name]
			return ty.told[name] == x.Version && !unanswered && !rejected
		}
		if ty.wildcard {
			for name := range have {
				if !accepted(name) {
					return false
				}
			}
			continue
		}
		for name := range ty.names {
			if !accepted(name) {
				return false
			}
		}
	}
	return true
}

// has is as that of delta.
func (s *sotw) has(r *xds.Resources) bool {
	for i := range s.types {
		t, ty := xds.Type(i), &s.types[i]
		if !ty.registered {
			if t == xds.Cluster || t == xds.Listener {
				return false
			}
			continue
		}
		if ty.refused || ty.pending != nil && t != xds.Endpoint {
			return false
		}
		for name, x := range r.Of(t) {
			if told := ty.told[name]; (ty.wildcard || ty.names[name]) && (told == nil || told.Version != x.Version) {
				return false
			}
		}
	}
	return true
}
