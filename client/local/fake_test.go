package local_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/client/check"
	"github.com/sarnmesh/sarn/client/local"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// servers is a catalog with one node.
type servers struct {
	mu       sync.Mutex
	down     bool
	delay    time.Duration            // of each write
	node     *catalog.RegisterRequest // latest with node fields
	services map[string]*catalog.Service
	checks   map[string]*catalog.Check
	tokens   map[string]string // by "service ID" or "check ID"
	refuse   map[string]bool   // tokens that may do nothing
	calls    []string
	statuses map[string][]string // of each check, as they were written
	resolved entry.Resolved
	index    uint64
	changed  chan struct{}
}

func newServers() *servers {
	return &servers{services: map[string]*catalog.Service{"consul": {ID: "consul", Service: "consul"}},
		checks: map[string]*catalog.Check{catalog.SerfCheckID: {CheckID: catalog.SerfCheckID, Status: "passing"}},
		tokens: map[string]string{}, statuses: map[string][]string{}, refuse: map[string]bool{}, index: 1, changed: make(chan struct{})}
}

// roundTrip copies v as the network would.
func roundTrip[T any](v *T) *T {
	data, err := rpc.Marshal(v)
	if err != nil {
		panic(err)
	}
	out := new(T)
	if err := rpc.Unmarshal(data, out); err != nil {
		panic(err)
	}
	return out
}

func (s *servers) Call(ctx context.Context, d rpc.Descriptor, req, resp any) error {
	if r, ok := req.(*entry.ResolvedRequest); ok {
		return s.resolve(ctx, r, resp.(*entry.ResolvedReply))
	}
	s.mu.Lock()
	delay := s.delay
	s.mu.Unlock()
	time.Sleep(delay)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return wireerr.ErrNoServers
	}
	switch r := req.(type) {
	case *catalog.RegisterRequest:
		if s.refuse[r.Token] {
			s.calls = append(s.calls, "refused")
			return wireerr.Remote(403, "Permission denied: nope")
		}
		token := r.Token
		r = roundTrip(r)
		what := []string{}
		if !r.SkipNodeUpdate {
			s.node = r
			what = append(what, "node")
		}
		if r.Service != nil {
			s.services[r.Service.ID] = r.Service
			s.tokens["service "+r.Service.ID] = token
			what = append(what, "service "+r.Service.ID)
		}
		if r.Check != nil {
			r.Checks = append(r.Checks, r.Check)
		}
		for _, c := range r.Checks {
			if c.ServiceID != "" && s.services[c.ServiceID] == nil {
				return fmt.Errorf("Unknown service ID '%s' for check ID '%s'", c.ServiceID, c.CheckID)
			}
			s.checks[c.CheckID] = c
			s.tokens["check "+c.CheckID] = token
			s.statuses[c.CheckID] = append(s.statuses[c.CheckID], c.Status)
			what = append(what, "check "+c.CheckID)
		}
		s.calls = append(s.calls, "register "+strings.Join(what, ", "))
	case *catalog.DeregisterRequest:
		switch {
		case r.ServiceID != "":
			delete(s.services, r.ServiceID)
			maps.DeleteFunc(s.checks, func(_ string, c *catalog.Check) bool { return c.ServiceID == r.ServiceID })
			s.calls = append(s.calls, "deregister service "+r.ServiceID)
		case r.CheckID != "":
			delete(s.checks, r.CheckID)
			s.calls = append(s.calls, "deregister check "+r.CheckID)
		default:
			return errors.New("the node was deregistered")
		}
	case *catalog.NodeServicesRequest:
		out := resp.(*catalog.NodeServicesReply)
		s.calls = append(s.calls, "read")
		if s.node != nil {
			out.Node = &catalog.Node{ID: s.node.ID, Node: s.node.Node, Address: s.node.Address, TaggedAddresses: s.node.TaggedAddresses, Meta: s.node.NodeMeta}
		}
		for _, id := range slices.Sorted(maps.Keys(s.services)) {
			out.Services = append(out.Services, roundTrip(s.services[id]))
		}
		for _, id := range slices.Sorted(maps.Keys(s.checks)) {
			out.Checks = append(out.Checks, roundTrip(s.checks[id]))
		}
	default:
		return fmt.Errorf("unexpected call of %s", d.Name)
	}
	return nil
}

func (s *servers) resolve(ctx context.Context, r *entry.ResolvedRequest, out *entry.ResolvedReply) error {
	for {
		s.mu.Lock()
		if s.down {
			s.mu.Unlock()
			return wireerr.ErrNoServers
		}
		changed := s.changed
		if s.index > r.MinIndex {
			out.Index, out.Resolved = s.index, s.resolved
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Minute):
			r.MinIndex = 0
		}
	}
}

func (s *servers) setResolved(r entry.Resolved) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.resolved = r
	s.index++
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *servers) setDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// written returns the statuses of a check since the last time, as they were written.
func (s *servers) written(id string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.statuses[id]
	delete(s.statuses, id)
	return out
}

// take returns the writes since the last time, without reads.
func (s *servers) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := slices.DeleteFunc(s.calls, func(c string) bool { return c == "read" })
	s.calls = nil
	return calls
}

func (s *servers) reads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, c := range s.calls {
		if c == "read" {
			n++
		}
	}
	s.calls = nil
	return n
}

func (s *servers) service(id string) *catalog.Service {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.services[id]
}

func (s *servers) check(id string) catalog.Check {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.checks[id]; c != nil {
		return *c
	}
	return catalog.Check{}
}

// ids returns the IDs of all services and checks, in order.
func (s *servers) ids() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(append(slices.Sorted(maps.Keys(s.services)), slices.Sorted(maps.Keys(s.checks))...), " ")
}

var node = catalog.Node{ID: "11111111-2222-3333-4444-555555555555", Node: "node1", Address: "10.0.0.1", Datacenter: "dc1",
	TaggedAddresses: map[string]string{"lan": "10.0.0.1"}, Meta: map[string]string{"a": "b"}}

func config(s *servers) local.Config {
	cfg := local.Config{
		Node: node, Jitter: func(max time.Duration) time.Duration { return 0 },
		SidecarPorts: local.Ports{Low: 21000, High: 21255}, ExposePorts: local.Ports{Low: 21500, High: 21755},
		Check: check.Config{Jitter: func(time.Duration) time.Duration { return 0 }},
	}
	if s != nil {
		cfg.Caller = s
	}
	return cfg
}

// start runs an agent until the test ends or stop is called.
func start(t *testing.T, cfg local.Config, services ...*definition.Service) (s *local.State, stop func()) {
	t.Helper()
	s, err := local.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Load(t.Context(), services, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	synctest.Wait()
	return s, stop
}

func service(t testing.TB, body string) *definition.Service {
	t.Helper()
	def, err := definition.DecodeService(strings.NewReader(body))
	if err == nil {
		err = errors.Join(def.ValidateIdentity(), def.ValidateRegistration())
	}
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return def
}

func register(t *testing.T, s *local.State, body string) {
	t.Helper()
	if err := s.RegisterService(t.Context(), service(t, body), local.Options{}); err != nil {
		t.Fatalf("RegisterService(%s): %v", body, err)
	}
}

func registerCheck(t *testing.T, s *local.State, body string) {
	t.Helper()
	def, err := definition.DecodeCheck(strings.NewReader(body))
	if err == nil {
		err = s.RegisterCheck(t.Context(), def, local.Options{})
	}
	if err != nil {
		t.Fatalf("RegisterCheck(%s): %v", body, err)
	}
}

func serviceIDs(s *local.State) string {
	var ids []string
	for _, svc := range s.Services() {
		ids = append(ids, svc.Given.ID)
	}
	return strings.Join(ids, " ")
}

// checkStates returns "ID=status/output" for each check.
func checkStates(s *local.State) string {
	var out []string
	for _, c := range s.Checks() {
		out = append(out, c.Record.CheckID+"="+c.Record.Status+"/"+c.Record.Output)
	}
	return strings.Join(out, " ")
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
