package proxystate

import (
	"cmp"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/client/local"
)

// Local returns the registrations of an agent. Those without a token of their own act with that of defaultToken.
func Local(s *local.State, defaultToken func() string) Registrations {
	return registrations{s, defaultToken}
}

type registrations struct {
	state        *local.State
	defaultToken func() string
}

func (r registrations) Proxy(id string) (*catalog.Service, string, <-chan struct{}) {
	any := r.state.Changed() // taken first, lest a registration slips in between
	svc, changed := r.state.WatchService(id)
	if svc == nil {
		return nil, "", any
	}
	return svc.Instance, cmp.Or(svc.Token, r.defaultToken()), changed
}
