package sidecar

import (
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/client/local"
)

// Local is the registry of the agent's own services.
type Local struct {
	State *local.State
	// Token is the secret for a proxy that was registered without one of its
	// own; nil gives none.
	Token func() string
}

// Sidecars returns the proxies that local services declare with sidecar_service.
// Proxies that were registered by themselves are somebody else's to run.
func (l Local) Sidecars() []Sidecar {
	var out []Sidecar
	for _, s := range l.State.Services() {
		if !s.Nested || s.Given.Kind != catalog.KindConnectProxy {
			continue
		}
		w := Sidecar{ID: s.Given.ID, Token: s.Token}
		if w.Token == "" && l.Token != nil {
			w.Token = l.Token()
		}
		out = append(out, w)
	}
	return out
}

// Changed returns a channel that is closed at the next change.
func (l Local) Changed() <-chan struct{} { return l.State.Changed() }
