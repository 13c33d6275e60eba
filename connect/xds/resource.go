// Package xds compiles the snapshot of a proxy (connect/mesh) into the resources of the xDS protocol, version 3, that
// Envoy and the built-in proxy execute: clusters, endpoints, listeners, routes and secrets. Names and fields are those
// of spec/xds.md sections 4 to 9 and 15 to 16.
//
// The package is pure. What it cannot protect it does not serve: a public listener exists only with mutual TLS and the
// rules of the intentions on every filter chain.
package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// A Type is a type of resources.
type Type uint8

// The types.
const (
	Secret Type = iota
	Cluster
	Endpoint
	Listener
	Route
	NumTypes = iota
)

var typeURLs = [NumTypes]string{
	Secret:   "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
	Cluster:  "type.googleapis.com/envoy.config.cluster.v3.Cluster",
	Endpoint: "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
	Listener: "type.googleapis.com/envoy.config.listener.v3.Listener",
	Route:    "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
}

// URL returns the type URL.
func (t Type) URL() string { return typeURLs[t] }

// String returns a word for logs.
func (t Type) String() string {
	return [NumTypes]string{"secret", "cluster", "endpoint", "listener", "route"}[t]
}

// TypeOf returns the type with a URL.
func TypeOf(url string) (Type, bool) {
	i := slices.Index(typeURLs[:], url)
	return Type(max(i, 0)), i >= 0
}

// A Resource is one resource in the form it is sent in. Resources are immutable and shared.
type Resource struct {
	Name    string
	Version string // 64 hex digits that change with the content
	Body    *anypb.Any
	// Children are the resources that a proxy forgets when it replaces this one: the load assignment of a cluster, the
	// route configurations of a listener.
	Children []string
	// uses are the other resources this one refers to.
	uses []ref
}

type ref struct {
	typ  Type
	name string
}

// ChildType returns the type of a resource's children, false if it has none.
func (t Type) ChildType() (Type, bool) {
	switch t {
	case Cluster:
		return Endpoint, true
	case Listener:
		return Route, true
	}
	return 0, false
}

// Resources are all resources of one proxy. They are immutable and shared.
type Resources struct {
	// Service is the one a token must be able to write to be given them.
	Service string
	// Bundle names the roots that are trusted in these resources; see ca.Bundle.
	Bundle string
	// Problems are what was left out or replaced by defaults, and why.
	Problems []error
	// MayBeEmpty has the types of which a proxy is told even that there are none, since it waits to be told: a gateway
	// without any service is ready all the same.
	MayBeEmpty [NumTypes]bool

	byType [NumTypes]map[string]*Resource
	// expected has, by type, the names that other resources refer to.
	expected [NumTypes]map[string]bool
}

// Of returns the resources of a type by name. The map must not be changed.
func (r *Resources) Of(t Type) map[string]*Resource { return r.byType[t] }

// Same reports whether r is known to have the same resources of a type as old, nil for none, and to expect the same.
func (r *Resources) Same(t Type, old *Resources) bool {
	return old != nil && sameMap(r.byType[t], old.byType[t]) && sameMap(r.expected[t], old.expected[t])
}

func sameMap[V any](a, b map[string]V) bool {
	return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer()
}

// Expected reports whether another resource refers to this name, so that it is to come if it is not there.
func (r *Resources) Expected(t Type, name string) bool { return r.expected[t][name] }

// NewResources puts resources together, for those who make them by themselves. Of two with one name the first stays.
func NewResources(service string, all map[Type][]*Resource) *Resources {
	r := &Resources{Service: service}
	for t := range Type(NumTypes) {
		r.byType[t] = map[string]*Resource{}
		for _, x := range all[t] {
			if r.byType[t][x.Name] == nil {
				r.byType[t][x.Name] = x
			}
		}
	}
	r.index()
	return r
}

func (r *Resources) index() {
	for t := range Type(NumTypes) {
		r.expected[t] = map[string]bool{}
	}
	for t := range Type(NumTypes) {
		child, _ := t.ChildType()
		for _, x := range r.byType[t] {
			for _, name := range x.Children {
				r.expected[child][name] = true
			}
			for _, u := range x.uses {
				r.expected[u.typ][u.name] = true
			}
		}
	}
}

// check reports references that lead nowhere. A load assignment may still be missing, since the proxy waits for it;
// one that no cluster asks for may not exist.
func (r *Resources) check() error {
	for t := range Type(NumTypes) {
		for name := range r.expected[t] {
			if t != Endpoint && r.byType[t][name] == nil {
				return fmt.Errorf("a resource refers to %s %q, which does not exist", t, name)
			}
		}
	}
	for _, t := range []Type{Endpoint, Route} {
		for name := range r.byType[t] {
			if !r.expected[t][name] {
				return fmt.Errorf("%s %q is not referred to", t, name)
			}
		}
	}
	return nil
}

// NewResource makes a resource of a message. Equal messages have equal versions.
func NewResource(name string, m proto.Message, children ...string) (*Resource, error) {
	if v, ok := m.(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
	}
	body, err := pack(m)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	sum := sha256.Sum256(body.Value)
	return &Resource{Name: name, Version: hex.EncodeToString(sum[:]), Body: body, Children: children}, nil
}

// pack puts a message into an Any, equal messages into equal bytes.
func pack(m proto.Message) (*anypb.Any, error) {
	a := new(anypb.Any)
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		return nil, err
	}
	return a, nil
}

// mustPack is pack for messages this package made, which always can be.
func mustPack(m proto.Message) *anypb.Any {
	a, err := pack(m)
	if err != nil {
		panic(fmt.Sprintf("xds: encode %T: %v", m, err))
	}
	return a
}
