package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
)

// Types of destinations of an upstream.
const (
	DestinationService = "service"
	DestinationQuery   = "prepared_query"
)

// Modes of reaching what is elsewhere through mesh gateways.
const (
	GatewayLocal  = "local"  // through those of the proxy's datacenter
	GatewayRemote = "remote" // through those over there
)

// An UpstreamKind says where an upstream leads.
type UpstreamKind uint8

// The kinds of upstreams.
const (
	ToNothing     UpstreamKind = iota // it only has settings for upstreams that are implied
	ToChain                           // through the discovery chain of a service
	ToPeer                            // to a service imported from a peer
	ToQuery                           // to what a prepared query finds
	ToDestination                     // to something outside the mesh, through terminating gateways
)

// An Upstream is a destination of the proxy's application.
type Upstream struct {
	// ID names the upstream's listener and route: SERVICE, SERVICE?dc=DC, SERVICE?peer=PEER, prepared_query:NAME.
	ID string
	// Key tells the upstream apart from others of the snapshot: it is the ID unless one is listed several times.
	Key    string
	Kind   UpstreamKind
	Spec   *catalog.Upstream
	Config UpstreamConfig
	// Gateway is the mode of mesh gateways that was asked for, if any.
	Gateway string
	// Destination is set for kind ToDestination.
	Destination *entry.ServiceDefaults

	overrides chain.Overrides
	settings  *catalog.Upstream // that an implied upstream was made of
	problem   error             // with the settings; defaults stand in for them
}

// newUpstream makes an upstream out of a registration, where transparent tells the proxy's mode.
func newUpstream(spec *catalog.Upstream, gateway catalog.MeshGateway, transparent bool) *Upstream {
	u := &Upstream{ID: UpstreamID(spec), Spec: spec}
	var err error
	if u.Config, err = parseUpstreamConfig(spec.Config); err != nil {
		u.problem = fmt.Errorf("upstream %s: %w", u.ID, err)
	}
	u.Gateway = cmp.Or(spec.MeshGateway.Mode, u.Config.MeshGateway.Mode, gateway.Mode)
	u.overrides = chain.Overrides{
		MeshGateway:    catalog.MeshGateway{Mode: u.Gateway},
		Protocol:       u.Config.Protocol,
		ConnectTimeout: time.Duration(u.Config.ConnectTimeoutMs) * time.Millisecond,
	}
	switch {
	case spec.DestinationName == entry.Wildcard, spec.CentrallyConfigured && !u.Bound(), !u.Bound() && !transparent:
	case spec.DestinationType == DestinationQuery:
		if u.Bound() {
			u.Kind = ToQuery
		}
	case spec.DestinationType != "" && spec.DestinationType != DestinationService:
		u.problem = errors.Join(u.problem, fmt.Errorf("upstream %s: unknown type %q", u.ID, spec.DestinationType))
	case spec.DestinationPeer != "":
		u.Kind = ToPeer
	default:
		u.Kind = ToChain
	}
	return u
}

// UpstreamID returns the ID of an upstream (spec/xds.md section 4).
func UpstreamID(u *catalog.Upstream) string {
	id := u.DestinationName
	if t := u.DestinationType; t != "" && t != DestinationService {
		id = t + ":" + id
	}
	switch {
	case u.DestinationPeer != "":
		id += "?peer=" + u.DestinationPeer
	case u.Datacenter != "":
		id += "?dc=" + u.Datacenter
	}
	return id
}

// Bound reports whether the upstream has an address to listen on. In transparent mode one that has none is reached by the
// virtual addresses of its service.
func (u *Upstream) Bound() bool { return u.Spec.LocalBindPort > 0 || u.Spec.LocalBindSocketPath != "" }

// imply returns the upstreams that nobody listed: what the proxy's service may call. Those that were implied before and
// still are come back as they were.
func (s *Snapshot) imply(may *intention.CallableReply) []*Upstream {
	settings := map[string]*catalog.Upstream{} // by ID
	listed := map[string]bool{}
	before := map[string]*Upstream{}
	for _, u := range s.Upstreams {
		switch {
		case u.settings != nil || u.Kind == ToDestination:
			before[u.ID] = u
		case u.Kind == ToNothing:
			settings[u.ID] = u.Spec
		default:
			listed[u.ID] = true
			settings[u.ID] = u.Spec
		}
	}
	var out []*Upstream
	add := func(spec catalog.Upstream, destination *entry.ServiceDefaults) {
		id := UpstreamID(&spec)
		if listed[id] || destination == nil && spec.DestinationPeer == "" && spec.DestinationName == s.Proxy.Identity() {
			return
		}
		from := settings[id]
		if from == nil {
			from = settings[entry.Wildcard]
		}
		if from == nil {
			from = noSettings
		}
		if b := before[id]; b != nil && b.settings == from && (b.Kind == ToDestination) == (destination != nil) &&
			(destination == nil || reflect.DeepEqual(destination.Destination, b.Destination.Destination) && destination.Protocol == b.Destination.Protocol) {
			out = append(out, b)
			return
		}
		spec.Config, spec.MeshGateway, spec.CentrallyConfigured = from.Config, from.MeshGateway, true
		if from.DestinationName == entry.Wildcard || spec.DestinationPeer != "" {
			// Settings for every service know no protocol of this one; its chain does.
			spec.Config = maps.Clone(spec.Config)
			delete(spec.Config, "protocol")
		}
		u := newUpstream(&spec, s.Proxy.Service.Proxy.MeshGateway, true)
		u.settings, u.Kind = from, ToChain
		switch {
		case destination != nil:
			u.Kind, u.Destination = ToDestination, destination
		case spec.DestinationPeer != "":
			u.Kind = ToPeer
		}
		out = append(out, u)
	}
	outside := map[string]bool{}
	for _, d := range may.Destinations {
		if d != nil && d.Destination != nil {
			outside[d.Name] = true
			add(catalog.Upstream{DestinationName: d.Name}, d)
		}
	}
	for _, name := range may.Services {
		if !outside[name] {
			add(catalog.Upstream{DestinationName: name}, nil)
		}
	}
	for _, i := range may.Imported {
		add(catalog.Upstream{DestinationName: i.Service, DestinationPeer: i.Peer}, nil)
	}
	return out
}

var noSettings = new(catalog.Upstream)
