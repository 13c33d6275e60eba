package mesh

import (
	"fmt"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect/chain"
)

// Types of destinations of an upstream.
const (
	DestinationService = "service"
	DestinationQuery   = "prepared_query"
)

// An Upstream is a destination of the proxy's application.
type Upstream struct {
	// ID names the upstream's listener and route: SERVICE, SERVICE?dc=DC, SERVICE?peer=PEER, prepared_query:NAME.
	ID     string
	Spec   *catalog.Upstream
	Config UpstreamConfig

	overrides chain.Overrides
}

func newUpstream(spec *catalog.Upstream, gateway catalog.MeshGateway) (*Upstream, error) {
	u := &Upstream{ID: UpstreamID(spec), Spec: spec}
	var err error
	if u.Config, err = parseUpstreamConfig(spec.Config); err != nil {
		err = fmt.Errorf("upstream %s: %w", u.ID, err)
	}
	mode := spec.MeshGateway.Mode
	if mode == "" {
		mode = u.Config.MeshGateway.Mode
	}
	if mode == "" {
		mode = gateway.Mode
	}
	u.overrides = chain.Overrides{
		MeshGateway:    catalog.MeshGateway{Mode: mode},
		Protocol:       u.Config.Protocol,
		ConnectTimeout: time.Duration(u.Config.ConnectTimeoutMs) * time.Millisecond,
	}
	return u, err
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

// Followed reports whether the upstream is one whose chain is followed: a service, not of a peer, with a name of its
// own, and with an address to listen on.
func (u *Upstream) Followed() bool {
	return (u.Spec.DestinationType == "" || u.Spec.DestinationType == DestinationService) &&
		u.Spec.DestinationPeer == "" && u.Spec.DestinationName != "*" && u.Bound()
}

// Bound reports whether the upstream has an address to listen on.
func (u *Upstream) Bound() bool { return u.Spec.LocalBindPort > 0 || u.Spec.LocalBindSocketPath != "" }
