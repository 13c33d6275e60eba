package ads

import (
	"maps"
	"slices"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/sarnmesh/sarn/connect/xds"
)

// A delta is the state of an incremental stream. For each type it knows what the client was told of each name; whatever
// differs from the present resources goes out. At most one response of a type is unanswered at a time.
//
// What a client rejected is not told again until it changes: told has the rejected version, so nothing differs.
type delta struct {
	maxNames int
	nonces   uint64
	types    [xds.NumTypes]deltaType
}

type deltaType struct {
	registered bool // the client asked for this type
	since      time.Time
	started    bool // it got a first response
	wildcard   bool
	names      map[string]bool   // subscribed to by name
	told       map[string]string // version by name of what the client has or is being sent; "" for told missing
	rejected   map[string]string // version by name that the client refuses
	unremoved  map[string]bool   // removals the client refused along with something else; told again with the next response
	lost       map[string]bool   // forgotten before the client asked for the type, whatever it then says it has
	complaint  string
	pending    *response
	// looked tells for passes that do not remove, and for those that do, at which resources they found nothing to tell.
	// Whatever changes what is to be told resets it.
	looked     [2]*xds.Resources
	accepted   *response // the last that was
	acceptedAt time.Time
}

// A response is one that was sent and not answered yet.
type response struct {
	nonce string
	sent  time.Time
	items map[string]string // versions by name, "" for removals
}

func newDelta(maxNames int) *delta {
	d := &delta{maxNames: maxNames}
	for i := range d.types {
		d.types[i] = deltaType{names: map[string]bool{}, told: map[string]string{}, rejected: map[string]string{}, lost: map[string]bool{}, unremoved: map[string]bool{}}
	}
	return d
}

func (d *delta) receive(req *discoveryv3.DeltaDiscoveryRequest, t xds.Type, now time.Time) (rejection string, err error) {
	ty := &d.types[t]
	ty.looked = [2]*xds.Resources{}
	first := !ty.registered
	if first {
		ty.registered, ty.since = true, now
		ty.wildcard = len(req.ResourceNamesSubscribe) == 0 && len(req.InitialResourceVersions) == 0 ||
			len(req.ResourceNamesSubscribe) == 0 && wildcardByDefault(t)
	}
	if p := ty.pending; p != nil && req.ResponseNonce == p.nonce {
		ty.pending = nil
		if e := req.ErrorDetail; e != nil {
			rejection = e.GetMessage()
			if rejection == "" {
				rejection = "no reason given"
			}
			ty.complaint = rejection
			for name, v := range p.items {
				if v != "" {
					ty.rejected[name] = v
				} else {
					ty.unremoved[name] = true
				}
			}
		} else {
			ty.accepted, ty.acceptedAt = p, now
			for name := range p.items {
				delete(ty.rejected, name)
			}
			if len(ty.rejected) == 0 {
				ty.complaint = ""
			}
		}
	}
	for _, name := range req.ResourceNamesSubscribe {
		if name == "*" {
			ty.wildcard = true
			continue
		}
		if !first {
			d.forget(t, name) // asked for again: sent again, changed or not
		}
		ty.names[name] = true
	}
	for _, name := range req.ResourceNamesUnsubscribe {
		if name == "*" {
			ty.wildcard = false
			continue
		}
		delete(ty.names, name)
		if !ty.wildcard {
			delete(ty.told, name)
			delete(ty.rejected, name)
		}
	}
	if first {
		for name, v := range req.InitialResourceVersions {
			if !ty.lost[name] {
				ty.told[name] = v
			}
			if !ty.wildcard {
				ty.names[name] = true
			}
		}
		ty.lost = nil
	}
	if len(ty.names) > d.maxNames || len(ty.told) > 2*d.maxNames {
		return rejection, errNames
	}
	return rejection, nil
}

// wildcardByDefault reports whether clients that name nothing want everything of a type even on a reconnect, where they
// say what they have.
func wildcardByDefault(t xds.Type) bool { return t == xds.Listener || t == xds.Cluster }

// forget makes a resource be sent again.
func (d *delta) forget(t xds.Type, name string) {
	ty := &d.types[t]
	if !ty.registered {
		ty.lost[name] = true
	}
	delete(ty.told, name)
	delete(ty.rejected, name)
	ty.looked = [2]*xds.Resources{}
}

// The order in which changes are sent: whatever is new before what refers to it, and whatever is gone after it.
var passes = []struct {
	t      xds.Type
	remove bool
	// after are types whose responses must have been answered before.
	after []xds.Type
}{
	{t: xds.Secret},
	{t: xds.Cluster},
	{t: xds.Endpoint},
	{t: xds.Listener, remove: true, after: []xds.Type{xds.Cluster, xds.Endpoint}},
	{t: xds.Route, remove: true, after: []xds.Type{xds.Cluster, xds.Endpoint}},
	// What keeps listeners and routes back keeps the removal of what they refer to back, too.
	{t: xds.Cluster, remove: true, after: []xds.Type{xds.Cluster, xds.Endpoint, xds.Listener, xds.Route}},
	{t: xds.Endpoint, remove: true, after: []xds.Type{xds.Cluster, xds.Endpoint, xds.Listener, xds.Route}},
	{t: xds.Secret, remove: true, after: []xds.Type{xds.Cluster, xds.Endpoint, xds.Listener, xds.Route}},
}

func (d *delta) next(r *xds.Resources, now time.Time) (*discoveryv3.DeltaDiscoveryResponse, bool) {
	for _, pass := range passes {
		ty := &d.types[pass.t]
		removal := pass.remove && pass.t != xds.Listener && pass.t != xds.Route
		if !ty.registered || ty.pending != nil || d.blocked(pass.after, removal) {
			continue
		}
		if pass.remove && !d.patience(r, now).IsZero() {
			continue
		}
		if resp := d.response(r, pass.t, pass.remove, now); resp != nil {
			return resp, true
		}
	}
	return nil, false
}

// askTime is how long a client has to ask for what goes with what it asked for or accepted, before it is taken not to
// want it.
const askTime = time.Second

// patience returns until when listeners, routes and removals wait for what the client is about to ask for; zero when
// they need not. A client without the endpoints of a cluster would drop the connections of a listener that leads there,
// and a client that comes back asks for clusters first, but cannot do without those its listeners still use.
func (d *delta) patience(r *xds.Resources, now time.Time) time.Time {
	clusters, endpoints := &d.types[xds.Cluster], &d.types[xds.Endpoint]
	if until := clusters.since.Add(askTime); clusters.registered && !d.types[xds.Listener].registered && now.Before(until) {
		return until
	}
	until := clusters.acceptedAt.Add(askTime)
	if clusters.accepted == nil || endpoints.wildcard || !now.Before(until) {
		return time.Time{}
	}
	for name := range clusters.accepted.items {
		c := r.Of(xds.Cluster)[name]
		if c == nil {
			continue
		}
		for _, child := range c.Children {
			if endpoints.told[child] == "" {
				return until
			}
		}
	}
	return time.Time{}
}

// blocked reports whether a step must wait for others. A removal also waits while the client refuses a listener or
// route, for it then goes on with an old one, which may refer to what is to be removed.
func (d *delta) blocked(after []xds.Type, removal bool) bool {
	if slices.ContainsFunc(after, func(t xds.Type) bool { return d.types[t].pending != nil }) {
		return true
	}
	l, r := &d.types[xds.Listener], &d.types[xds.Route]
	return removal && len(l.rejected)+len(l.unremoved)+len(r.rejected)+len(r.unremoved) > 0
}

// response returns what is to be told of a type, nil if nothing is.
func (d *delta) response(r *xds.Resources, t xds.Type, remove bool, now time.Time) *discoveryv3.DeltaDiscoveryResponse {
	ty := &d.types[t]
	looked := &ty.looked[0]
	if remove {
		looked = &ty.looked[1]
	}
	if r.Same(t, *looked) {
		*looked = r
		return nil
	}
	have := r.Of(t)
	items := make(map[string]string, 1)
	resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: t.URL()}
	upsert := func(name string) {
		x := have[name]
		if v, told := ty.told[name]; x == nil || told && v == x.Version {
			return
		}
		items[name] = x.Version
		resp.Resources = append(resp.Resources, &discoveryv3.Resource{Name: name, Version: x.Version, Resource: x.Body})
	}
	if ty.wildcard {
		for name := range have {
			upsert(name)
		}
	} else {
		for name := range ty.names {
			upsert(name)
		}
	}
	slices.SortFunc(resp.Resources, func(a, b *discoveryv3.Resource) int { return strings.Compare(a.Name, b.Name) })
	if remove {
		for _, name := range d.missing(r, t) {
			items[name] = ""
			resp.RemovedResources = append(resp.RemovedResources, name)
		}
	}
	for name := range ty.unremoved {
		if _, known := items[name]; known || have[name] != nil {
			delete(ty.unremoved, name)
		} else if remove && len(items) > 0 {
			delete(ty.unremoved, name)
			items[name] = ""
			resp.RemovedResources = append(resp.RemovedResources, name)
		}
	}
	slices.Sort(resp.RemovedResources)
	// The first response goes out even when it tells nothing: the client learns that what it has is all there is.
	if len(items) == 0 && (ty.started || len(have) == 0 && !r.MayBeEmpty[t]) {
		*looked = r
		return nil
	}
	ty.started = true
	ty.looked = [2]*xds.Resources{}
	for name, v := range items {
		if v == "" && ty.wildcard && !ty.names[name] {
			delete(ty.told, name)
		} else {
			ty.told[name] = v
		}
		delete(ty.rejected, name)
	}
	// The client forgets the children of what it gets anew.
	if child, ok := t.ChildType(); ok {
		for name := range items {
			if x := have[name]; x != nil {
				for _, c := range x.Children {
					d.forget(child, c)
				}
			}
		}
	}
	d.nonces++
	resp.Nonce = nonce(d.nonces)
	ty.pending = &response{nonce: resp.Nonce, sent: now, items: items}
	return resp
}

// missing returns the names of a type that the client is to be told do not exist, or exist no more.
func (d *delta) missing(r *xds.Resources, t xds.Type) []string {
	ty := &d.types[t]
	have := r.Of(t)
	var out []string
	if ty.wildcard {
		for name := range ty.told {
			if have[name] == nil && ty.told[name] != "" {
				out = append(out, name)
			}
		}
	}
	for name := range ty.names {
		// What another resource refers to is still to come, and the client waits for it.
		if v, told := ty.told[name]; have[name] == nil && (!told || v != "") && !r.Expected(t, name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (d *delta) unanswered() (time.Time, bool) {
	var oldest time.Time
	for i := range d.types {
		if p := d.types[i].pending; p != nil && (oldest.IsZero() || p.sent.Before(oldest)) {
			oldest = p.sent
		}
	}
	return oldest, !oldest.IsZero()
}

func (d *delta) progress() []TypeStatus {
	var out []TypeStatus
	for i := range d.types {
		ty := &d.types[i]
		if !ty.registered {
			continue
		}
		st := TypeStatus{Type: xds.Type(i), Error: ty.complaint, Rejected: slices.Sorted(maps.Keys(ty.rejected))}
		for _, v := range ty.told {
			if v != "" {
				st.Resources++
			}
		}
		if ty.pending != nil {
			st.Unanswered = ty.pending.sent
		}
		out = append(out, st)
	}
	return out
}
