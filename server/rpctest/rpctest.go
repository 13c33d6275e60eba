// Package rpctest runs handlers of calls over a store, with commands applied at once in place of a replicated log.
package rpctest

import (
	"cmp"
	"context"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/server/consensus"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

// A Server answers the calls of its registry. Add handlers to Registry and Appliers before the first call.
type Server struct {
	Registry transport.Registry
	Appliers fsm.Appliers
	Store    *state.Store
	// Datacenter is the one it answers for; default dc1. Set it before the first call.
	Datacenter string
	// Resolve finds what a token may do; nil grants everything. Do not change it while calls run.
	Resolve func(token string) (*acl.Authorizer, error)

	once       sync.Once
	dispatcher *transport.Dispatcher

	mu    sync.Mutex
	index uint64
}

// New returns a server with an empty store.
func New() *Server { return &Server{Store: state.New()} }

// Caller returns what calls the server.
func (s *Server) Caller() *transport.Dispatcher {
	s.once.Do(func() {
		cfg := transport.Config{
			Datacenter: cmp.Or(s.Datacenter, "dc1"), Registry: &s.Registry, Store: s.Store, Log: (*log)(s), Resolver: resolver{s},
		}
		s.dispatcher = transport.NewDispatcher(cfg)
	})
	return s.dispatcher
}

// Index returns the index of the last log entry.
func (s *Server) Index() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.index
}

// Apply applies one command as its own log entry and returns its applier's reply.
func (s *Server) Apply(_ context.Context, k fsm.Kind, req any) (any, error) {
	entry, err := fsm.Encode([]fsm.Command{{Kind: k, Req: req}})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.index++
	r := s.Appliers.Apply(s.Store, s.index, entry)[0]
	return r.Value, r.Err
}

type resolver struct{ s *Server }

func (r resolver) Resolve(_ context.Context, token string) (*acl.Authorizer, error) {
	if r.s.Resolve == nil {
		return acl.Everything(), nil
	}
	return r.s.Resolve(token)
}

// A log always leads.
type log Server

func (l *log) Status() (consensus.Status, <-chan struct{}) {
	return consensus.Status{LeaderID: "self", Leading: true, Elected: true}, nil
}
func (l *log) Leadership() context.Context        { return context.Background() }
func (l *log) LastContact() (time.Duration, bool) { return 0, true }
func (l *log) Verify(context.Context) error       { return nil }

func (l *log) Apply(ctx context.Context, k fsm.Kind, req any) (any, error) {
	return (*Server)(l).Apply(ctx, k, req)
}
