package configrpc

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect/chain"
)

// Types of conditions of API gateways and routes, and what they may say. Clients match on all of these.
const (
	conditionAccepted     = "Accepted"
	conditionConflicted   = "Conflicted"
	conditionResolvedRefs = "ResolvedRefs"
	conditionBound        = "Bound"

	reasonInvalidCertificates   = "InvalidCertificates"
	reasonNoConflict            = "NoConflict"
	reasonRouteConflict         = "RouteConflict"
	reasonInvalidCertificateRef = "InvalidCertificateRef"
	reasonInvalidChain          = "InvalidDiscoveryChain"
	reasonNoUpstreams           = "NoUpstreamServicesTargeted"
	reasonFailedToBind          = "FailedToBind"
	reasonGatewayNotFound       = "GatewayNotFound"
)

// bindBatch bounds how many entries one command changes.
const bindBatch = 64

// Bind works out which routes go with which listeners of API gateways (spec/connect.md section 15.4). It returns the
// requests of kind fsm.ConfigEntry that bring what v has up to date: the statuses of gateways and routes, and the
// bound-api-gateway entries. There are none when all is as it should be. With a watching view, a wait ends when that may
// no longer be so.
func Bind(v *state.View, datacenter string, now time.Time) []any {
	b := &binder{v: v, datacenter: datacenter, now: now.UTC().Truncate(time.Second)}
	b.read()
	for _, r := range b.routes {
		b.check(r)
		b.bindRoute(r)
	}
	var out []entry.Any
	for _, g := range b.gateways {
		out = append(out, b.gatewayEntries(g)...)
	}
	for _, r := range b.routes {
		out = append(out, b.status(r.entry, r.conditions)...)
	}
	var requests []any
	for part := range slices.Chunk(out, bindBatch) {
		requests = append(requests, &command{Op: opBind, Bind: slices.Clone(part)})
	}
	return requests
}

type binder struct {
	v          *state.View
	datacenter string
	now        time.Time
	gateways   []*boundGateway // ordered by name
	routes     []*boundRoute   // ordered by kind, then name
}

// A boundGateway is a gateway with what was found out about it.
type boundGateway struct {
	entry     *entry.APIGateway
	accepted  bool
	missing   [][]string                  // by listener, names of certificates that do not exist
	listeners [][]entry.ResourceReference // by listener, the routes bound to it
	services  map[string][]entry.ResourceReference
}

// A boundRoute is a route with what was found out about it.
type boundRoute struct {
	entry      entry.Entry
	protocol   string // of listeners it can bind to
	parents    []entry.ResourceReference
	hosts      []string // none means any
	services   []string // ordered
	conditions []entry.Condition
	refused    string // why it is not accepted, empty if it is
}

func (b *binder) read() {
	_, gateways := b.v.Entries(entry.KindAPIGateway)
	for _, e := range gateways {
		g := &boundGateway{entry: e.(*entry.APIGateway), accepted: true, services: map[string][]entry.ResourceReference{}}
		g.listeners = make([][]entry.ResourceReference, len(g.entry.Listeners))
		g.missing = make([][]string, len(g.entry.Listeners))
		for i, l := range g.entry.Listeners {
			for _, c := range l.TLS.Certificates {
				if b.v.Entry(c.Kind, c.Name) == nil {
					g.missing[i] = append(g.missing[i], c.Name)
					g.accepted = false
				}
			}
		}
		b.gateways = append(b.gateways, g)
	}
	_, routes := b.v.Entries(entry.KindHTTPRoute)
	for _, e := range routes {
		h := e.(*entry.HTTPRoute)
		r := &boundRoute{entry: h, protocol: entry.HTTP, parents: h.Parents, hosts: h.Hostnames}
		for _, rule := range h.Rules {
			for _, s := range rule.Services {
				r.services = append(r.services, s.Name)
			}
		}
		b.addRoute(r)
	}
	_, routes = b.v.Entries(entry.KindTCPRoute)
	for _, e := range routes {
		t := e.(*entry.TCPRoute)
		r := &boundRoute{entry: t, protocol: entry.TCP, parents: t.Parents}
		for _, s := range t.Services {
			r.services = append(r.services, s.Name)
		}
		b.addRoute(r)
	}
}

func (b *binder) addRoute(r *boundRoute) {
	slices.Sort(r.services)
	r.services = slices.Compact(r.services)
	b.routes = append(b.routes, r)
}

// check finds out whether a route can be served at all.
func (b *binder) check(r *boundRoute) {
	c := entry.Condition{Type: conditionAccepted, Status: "True", Reason: conditionAccepted, Message: "route is valid", Resource: &entry.ResourceReference{}}
	refuse := func(reason, message string) {
		c.Status, c.Reason, c.Message = "False", reason, message
		r.refused = message
	}
	if len(r.services) == 0 {
		refuse(reasonNoUpstreams, "route must target at least one upstream service")
	}
	for _, name := range r.services {
		made, err := chain.Compile(chain.Request{Service: name, Datacenter: b.datacenter, TrustDomain: trustDomain(b.v)}, &recorder{v: b.v})
		var wrong *chain.Error
		switch {
		case errors.As(err, &wrong):
			refuse(reasonInvalidChain, wrong.Text)
		case err != nil:
			refuse(reasonInvalidChain, "the discovery chain of "+quote(name)+" cannot be made")
		case entry.HTTPLike(made.Protocol) != (r.protocol == entry.HTTP):
			refuse(reasonInvalidChain, "route protocol does not match targeted service protocol")
		default:
			continue
		}
		break
	}
	r.conditions = append(r.conditions, c)
}

// bindRoute binds a route to the listeners of its parents.
func (b *binder) bindRoute(r *boundRoute) {
	for i := range r.parents {
		parent := r.parents[i]
		c := entry.Condition{Type: conditionBound, Status: "True", Reason: conditionBound, Message: "successfully bound route", Resource: &parent}
		at, found := slices.BinarySearchFunc(b.gateways, parent.Name, func(g *boundGateway, name string) int {
			return strings.Compare(g.entry.Name, name)
		})
		if !found {
			c.Status, c.Reason, c.Message = "False", reasonGatewayNotFound, "gateway was not found"
		} else if err := b.gateways[at].take(r, parent.SectionName); err != nil {
			c.Status, c.Reason, c.Message = "False", reasonFailedToBind, err.Error()
		}
		r.conditions = append(r.conditions, c)
	}
}

// take binds a route to the listener with this name, or with no name to every one that fits. The error says why it fits
// none.
func (g *boundGateway) take(r *boundRoute, section string) error {
	switch {
	case r.refused != "":
		return fmt.Errorf("route is not accepted: %s", r.refused)
	case !g.accepted:
		return fmt.Errorf("gateway %q is not accepted", g.entry.Name)
	}
	h := r.entry.Head()
	ref := entry.ResourceReference{Kind: h.Kind, Name: h.Name}
	bound := false
	var problems []error
	for i := range g.entry.Listeners {
		l := &g.entry.Listeners[i]
		switch {
		case section != "" && l.Name != section:
			continue
		case l.Protocol != r.protocol:
			problems = append(problems, fmt.Errorf("listener %q is no %s listener", l.Name, r.protocol))
			continue
		case len(entry.ListenerHosts(l.Hostname, r.hosts)) == 0:
			problems = append(problems, fmt.Errorf("no host of the route fits host %q of listener %q", l.Hostname, l.Name))
			continue
		}
		bound = true
		if !slices.Contains(g.listeners[i], ref) {
			g.listeners[i] = append(g.listeners[i], ref)
		}
	}
	switch {
	case bound:
		for _, name := range r.services {
			if !slices.Contains(g.services[name], ref) {
				g.services[name] = append(g.services[name], ref)
			}
		}
		return nil
	case len(problems) == 0:
		return fmt.Errorf("gateway has no listener %q", section)
	}
	texts := make([]string, len(problems))
	for i, p := range problems {
		texts[i] = p.Error()
	}
	return errors.New(strings.Join(texts, "; "))
}

// gatewayEntries returns the gateway with its new status and its bound entry, those that changed.
func (b *binder) gatewayEntries(g *boundGateway) []entry.Any {
	conditions := []entry.Condition{{
		Type: conditionAccepted, Status: "True", Reason: conditionAccepted, Message: "gateway is valid", Resource: &entry.ResourceReference{},
	}}
	if !g.accepted {
		c := &conditions[0]
		c.Status, c.Reason, c.Message = "False", reasonInvalidCertificates, "gateway references invalid certificates"
	}
	bound := &entry.BoundAPIGateway{}
	bound.Kind, bound.Name = entry.KindBoundAPIGateway, g.entry.Name
	if len(g.services) > 0 {
		bound.Services = maps.Clone(g.services)
	}
	for i, l := range g.entry.Listeners {
		section := &entry.ResourceReference{Kind: entry.KindAPIGateway, Name: g.entry.Name, SectionName: l.Name}
		conflict := entry.Condition{
			Type: conditionConflicted, Status: "False", Reason: reasonNoConflict, Message: "listener has no route conflicts", Resource: section,
		}
		if l.Protocol == entry.TCP && len(g.listeners[i]) > 1 {
			conflict.Status, conflict.Reason = "True", reasonRouteConflict
			conflict.Message = "TCP-based listeners currently only support binding a single route"
		}
		refs := entry.Condition{
			Type: conditionResolvedRefs, Status: "True", Reason: conditionResolvedRefs, Message: "resolved refs", Resource: section,
		}
		if missing := g.missing[i]; len(missing) > 0 {
			texts := make([]string, len(missing))
			for i, name := range missing {
				texts[i] = "certificate " + quote(name) + " not found"
			}
			refs.Status, refs.Reason, refs.Message = "False", reasonInvalidCertificateRef, strings.Join(texts, ", ")
		}
		conditions = append(conditions, conflict, refs)
		bl := entry.BoundAPIGatewayListener{Name: l.Name, Routes: g.listeners[i]}
		for _, c := range l.TLS.Certificates {
			if !slices.Contains(g.missing[i], c.Name) {
				bl.Certificates = append(bl.Certificates, c)
			}
		}
		bound.Listeners = append(bound.Listeners, bl)
	}
	out := b.status(g.entry, conditions)
	old, _ := b.v.Entry(entry.KindBoundAPIGateway, g.entry.Name).(*entry.BoundAPIGateway)
	if old == nil || !sameBound(old, bound) {
		out = append(out, entry.Any{Entry: bound})
	}
	return out
}

func sameBound(a, b *entry.BoundAPIGateway) bool {
	return maps.EqualFunc(a.Services, b.Services, slices.Equal[[]entry.ResourceReference]) &&
		slices.EqualFunc(a.Listeners, b.Listeners, func(x, y entry.BoundAPIGatewayListener) bool {
			return x.Name == y.Name && slices.Equal(x.Routes, y.Routes) && slices.Equal(x.Certificates, y.Certificates)
		})
}

// status returns a copy of a gateway or route with these conditions, nothing if it has them already. Conditions that
// were so before keep their time.
func (b *binder) status(e entry.Entry, conditions []entry.Condition) []entry.Any {
	old := statusOf(e).Conditions
	same := len(old) == len(conditions)
	for i := range conditions {
		c := &conditions[i]
		at := slices.IndexFunc(old, func(o entry.Condition) bool {
			return o.Type == c.Type && o.Status == c.Status && o.Reason == c.Reason && o.Message == c.Message &&
				o.Resource != nil && *o.Resource == *c.Resource
		})
		if at >= 0 {
			c.LastTransitionTime = old[at].LastTransitionTime
		} else {
			c.LastTransitionTime = &b.now
			same = false
		}
	}
	if same {
		return nil
	}
	e, err := entry.Copy(e)
	if err != nil {
		return nil // what is stored can be copied
	}
	statusOf(e).Conditions = conditions
	return []entry.Any{{Entry: e}}
}

// statusOf returns the status of an entry that has one, nil for others.
func statusOf(e entry.Entry) *entry.Status {
	switch e := e.(type) {
	case *entry.APIGateway:
		return &e.Status
	case *entry.HTTPRoute:
		return &e.Status
	case *entry.TCPRoute:
		return &e.Status
	}
	return nil
}

// applyBind writes what Bind found out, but for entries that have changed since: about those it finds out anew.
func applyBind(tx *state.Tx, entries []entry.Any) error {
	for _, a := range entries {
		e := a.Entry
		if e == nil {
			return errors.New("config entry is missing")
		}
		h := e.Head()
		switch e.(type) {
		case *entry.BoundAPIGateway:
			if tx.Entry(entry.KindAPIGateway, h.Name) == nil {
				continue
			}
		case *entry.APIGateway, *entry.HTTPRoute, *entry.TCPRoute:
			if old := tx.Entry(h.Kind, h.Name); old == nil || old.Head().ModifyIndex != h.ModifyIndex {
				continue
			}
		default:
			return fmt.Errorf("entries of kind %q have no status", h.Kind)
		}
		if _, err := tx.SetEntry(e); err != nil {
			return err
		}
	}
	return nil
}
