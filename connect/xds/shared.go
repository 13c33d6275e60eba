package xds

import (
	"runtime"
	"slices"
	"sync"
	"weak"

	"github.com/sarnmesh/sarn/catalog"
)

// Shared has the resources of several proxies, each kept once: what one has made, another takes, for as long as anybody
// has it. It is safe for concurrent use. The zero value is ready.
type Shared struct {
	mu          sync.Mutex
	byContent   map[contentKey]weak.Pointer[Resource]
	assignments map[weakAssignmentKey]weak.Pointer[Resource]
}

type contentKey struct {
	typ           Type
	name, version string
}

// A weakAssignmentKey is an assignmentKey that keeps no instances.
type weakAssignmentKey struct {
	assignmentKey
	instances, gateways weak.Pointer[catalog.InstancesReply]
}

// one returns the resource to use in place of r, which is equal.
func (s *Shared) one(t Type, r *Resource) *Resource {
	if s == nil {
		return r
	}
	key := contentKey{t, r.Name, r.Version}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.byContent[key].Value(); old != nil && slices.Equal(old.Children, r.Children) && slices.Equal(old.uses, r.uses) {
		return old
	}
	if s.byContent == nil {
		s.byContent = map[contentKey]weak.Pointer[Resource]{}
	}
	s.byContent[key] = weak.Make(r)
	runtime.AddCleanup(r, func(key contentKey) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.byContent[key].Value() == nil {
			delete(s.byContent, key)
		}
	}, key)
	return r
}

// assignment returns the load assignment made from the same things, and otherwise makes it.
func (s *Shared) assignment(key assignmentKey, make func() (*Resource, error)) (*Resource, error) {
	if s == nil {
		return make()
	}
	w := weakAssignmentKey{key, weak.Make(key.instances), weak.Make(key.gateways)}
	w.assignmentKey.instances, w.assignmentKey.gateways = nil, nil
	s.mu.Lock()
	defer s.mu.Unlock() // also while it is made, so that it is made once
	if r := s.assignments[w].Value(); r != nil {
		return r, nil
	}
	r, err := make()
	if err != nil {
		return nil, err
	}
	if s.assignments == nil {
		s.assignments = map[weakAssignmentKey]weak.Pointer[Resource]{}
	}
	s.assignments[w] = weak.Make(r)
	runtime.AddCleanup(r, func(w weakAssignmentKey) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.assignments[w].Value() == nil {
			delete(s.assignments, w)
		}
	}, w)
	return r, nil
}

// Len returns how many resources are kept.
func (s *Shared) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.byContent {
		if r.Value() != nil {
			n++
		}
	}
	for _, r := range s.assignments {
		if r.Value() != nil {
			n++
		}
	}
	return n
}
