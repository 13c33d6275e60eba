package ads

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sarnmesh/sarn/connect/xds"
)

// A sotw is the state of a stream in state-of-the-world form. Responses of listeners and clusters hold all there is, so
// that what is missing in one is gone; those of other types hold what changed. A cluster that is gone stays in the
// responses until listeners and routes no longer refer to it.
type sotw struct {
	maxNames int
	nonces   uint64
	wrap     bool // the client takes resources in envelopes with their names
	types    [xds.NumTypes]sotwType
}

type sotwType struct {
	registered bool
	started    bool
	wildcard   bool
	named      bool // the client named something once, so naming nothing no longer means everything
	names      map[string]bool
	asked      bool                     // for a name that was not asked for before, so that an answer is due
	told       map[string]*xds.Resource // what the client has or is being sent
	refused    bool                     // the last response
	complaint  string
	nonce      string // of the last response
	pending    *response
}

func newSotw(maxNames int) *sotw {
	s := &sotw{maxNames: maxNames}
	for i := range s.types {
		s.types[i] = sotwType{names: map[string]bool{}, told: map[string]*xds.Resource{}}
	}
	return s
}

// full reports whether responses of a type hold everything.
func full(t xds.Type) bool { return t == xds.Listener || t == xds.Cluster }

func (s *sotw) receive(req *discoveryv3.DiscoveryRequest, t xds.Type, now time.Time) (rejection string, err error) {
	if slices.Contains(req.GetNode().GetClientFeatures(), "xds.config.resource-in-sotw") {
		s.wrap = true
	}
	ty := &s.types[t]
	if ty.registered && req.ResponseNonce != ty.nonce {
		return "", nil // about a response that another has replaced
	}
	ty.registered = true
	if p := ty.pending; p != nil && p.nonce == req.ResponseNonce {
		ty.pending = nil
		ty.refused, ty.complaint = false, ""
		if e := req.ErrorDetail; e != nil {
			rejection = e.GetMessage()
			if rejection == "" {
				rejection = "no reason given"
			}
			ty.refused, ty.complaint = true, rejection
		}
	}
	if len(req.ResourceNames) > s.maxNames {
		return rejection, errNames
	}
	names := map[string]bool{}
	for _, n := range req.ResourceNames {
		if n != "*" {
			names[n] = true
		}
	}
	ty.wildcard = slices.Contains(req.ResourceNames, "*") || len(req.ResourceNames) == 0 && !ty.named
	ty.named = ty.named || len(req.ResourceNames) > 0
	for n := range names {
		ty.asked = ty.asked || !ty.names[n]
	}
	ty.names = names
	if !ty.wildcard { // what it unsubscribed from needs no answer
		maps.DeleteFunc(ty.told, func(n string, _ *xds.Resource) bool { return !names[n] })
	}
	return rejection, nil
}

func (s *sotw) next(r *xds.Resources, now time.Time) (*discoveryv3.DiscoveryResponse, bool) {
	for _, pass := range passes {
		ty := &s.types[pass.t]
		if !ty.registered || ty.pending != nil {
			continue
		}
		removal := pass.remove && pass.t != xds.Listener && pass.t != xds.Route
		if slices.ContainsFunc(pass.after, func(t xds.Type) bool { return s.types[t].pending != nil }) ||
			removal && (s.types[xds.Listener].refused || s.types[xds.Route].refused) {
			continue
		}
		if resp := s.response(r, pass.t, pass.remove, now); resp != nil {
			return resp, true
		}
	}
	return nil, false
}

func (s *sotw) response(r *xds.Resources, t xds.Type, remove bool, now time.Time) *discoveryv3.DiscoveryResponse {
	ty := &s.types[t]
	want := map[string]*xds.Resource{}
	if ty.wildcard {
		maps.Copy(want, r.Of(t))
	} else {
		for n := range ty.names {
			if x := r.Of(t)[n]; x != nil {
				want[n] = x
			}
		}
	}
	if full(t) && !remove {
		for n, x := range ty.told {
			if want[n] == nil && r.Of(t)[n] == nil {
				want[n] = x
			}
		}
	}
	changed := map[string]string{}
	for n, x := range want {
		if o := ty.told[n]; o == nil || o.Version != x.Version {
			changed[n] = x.Version
		}
	}
	sent := changed
	if full(t) {
		gone := slices.ContainsFunc(slices.Collect(maps.Keys(ty.told)), func(n string) bool { return want[n] == nil })
		// A client that asks for what does not exist is told so by an answer without it.
		if len(changed) == 0 && !gone && ty.started && !ty.asked {
			return nil
		}
		ty.asked = false
		ty.told = want
		sent = map[string]string{}
		for n, x := range want {
			sent[n] = x.Version
		}
	} else {
		if len(changed) == 0 {
			return nil
		}
		for n := range changed {
			ty.told[n] = want[n]
		}
	}
	ty.started = true
	if child, ok := t.ChildType(); ok {
		for n := range changed {
			for _, c := range want[n].Children {
				delete(s.types[child].told, c)
			}
		}
	}
	resp := &discoveryv3.DiscoveryResponse{TypeUrl: t.URL(), VersionInfo: versionOf(ty.told)}
	for _, n := range slices.Sorted(maps.Keys(sent)) {
		resp.Resources = append(resp.Resources, s.envelope(want[n]))
	}
	s.nonces++
	resp.Nonce = nonce(s.nonces)
	ty.nonce = resp.Nonce
	ty.pending = &response{nonce: resp.Nonce, sent: now, items: sent}
	return resp
}

func (s *sotw) envelope(x *xds.Resource) *anypb.Any {
	if !s.wrap {
		return x.Body
	}
	a := new(anypb.Any)
	if err := anypb.MarshalFrom(a, &discoveryv3.Resource{Name: x.Name, Version: x.Version, Resource: x.Body}, proto.MarshalOptions{Deterministic: true}); err != nil {
		return x.Body // cannot happen: the body is encoded already
	}
	return a
}

// versionOf returns a text that changes with what a client is told of a type.
func versionOf(told map[string]*xds.Resource) string {
	h := sha256.New()
	for _, n := range slices.Sorted(maps.Keys(told)) {
		h.Write([]byte(n + "\x00" + told[n].Version + "\x00"))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// patience is always zero: clients of this form name all they want with every request, the endpoints of a new cluster
// along with accepting it.
func (s *sotw) patience(*xds.Resources, time.Time) time.Time { return time.Time{} }

func (s *sotw) unanswered() (time.Time, bool) {
	var oldest time.Time
	for i := range s.types {
		if p := s.types[i].pending; p != nil && (oldest.IsZero() || p.sent.Before(oldest)) {
			oldest = p.sent
		}
	}
	return oldest, !oldest.IsZero()
}

func (s *sotw) progress() []TypeStatus {
	var out []TypeStatus
	for i := range s.types {
		ty := &s.types[i]
		if !ty.registered {
			continue
		}
		st := TypeStatus{Type: xds.Type(i), Resources: len(ty.told), Error: ty.complaint}
		if ty.refused {
			st.Rejected = slices.Sorted(maps.Keys(ty.told))
		}
		if ty.pending != nil {
			st.Unanswered = ty.pending.sent
		}
		out = append(out, st)
	}
	return out
}
