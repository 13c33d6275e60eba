package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/client/access"
	"github.com/sarnmesh/sarn/client/local"
)

// A guarded handler answers from what the agent itself has, or changes it. Its answer goes out only with the permit it
// was given; what the servers answer is guarded by theirs.
type guarded func(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error)

// permitted makes a guarded handler a handler.
func permitted(f guarded) handler {
	return func(w http.ResponseWriter, r *http.Request) (any, error) {
		v, p, err := f(w, r)
		if err == nil && !p.Given() {
			err = access.ErrNoPermit
		}
		if err != nil {
			return nil, err
		}
		return v, nil
	}
}

// done is the end of a guarded handler that has nothing to answer.
func done(p acl.Permit, err error) (any, acl.Permit, error) { return nil, p, err }

// refused is the end of a guarded handler that failed.
func refused(err error) (any, acl.Permit, error) { return nil, acl.Permit{}, err }

// registrations are what the agent registered, for handlers to find out which right to ask for, and to answer from once
// they have it. Changes need a permit: see Server.own.
type registrations interface {
	Service(id string) *local.Service
	Services() []*local.Service
	WatchService(id string) (*local.Service, <-chan struct{})
	Check(id string) *local.Check
	Checks() []*local.Check
	ChecksFor(serviceID string) []*local.Check
	Counts() (scripts, ttls int)
}

// ownFor is Server.own for what an authorizer answered.
func (s *Server) ownFor(p acl.Permit, err error) (AgentConfig, acl.Permit, error) {
	if err != nil {
		return AgentConfig{}, p, err
	}
	a, err := s.own.With(p)
	return a, p, err
}

// ownAgent asks for a right on this agent, and returns the agent.
func (s *Server) ownAgent(w http.ResponseWriter, r *http.Request, a acl.Access) (AgentConfig, acl.Permit, error) {
	return s.require(w, r, acl.Agent, a, s.cfg.NodeName)
}

// require asks for a right, and returns the agent.
func (s *Server) require(w http.ResponseWriter, r *http.Request, res acl.Resource, a acl.Access, name string) (AgentConfig, acl.Permit, error) {
	z, err := s.authorizer(w, r)
	if err != nil {
		return AgentConfig{}, acl.Permit{}, err
	}
	return s.ownFor(z.Require(res, a, name))
}

// recheckEvery is how often an answer without end looks whether its token is still good.
const recheckEvery = 30 * time.Second

// whileAllowed returns a context that ends when the request does, or when its token no longer has a right on this agent.
// Call stop before the handler returns.
func (s *Server) whileAllowed(w http.ResponseWriter, r *http.Request, a acl.Access) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancel(r.Context())
	if s.cfg.Authorize == nil {
		return ctx, cancel
	}
	token := s.token(w, r)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(recheckEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			z, err := s.cfg.Authorize(ctx, token)
			if err != nil || !z.May(acl.Agent, a, s.cfg.NodeName) {
				cancel()
				return
			}
		}
	}()
	return ctx, func() {
		cancel()
		<-done
	}
}
