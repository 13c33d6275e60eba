package xds

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// fromJSON reads a message a user wrote: an Any that holds it, or the message itself.
func fromJSON(text string, into proto.Message) error {
	a := new(anypb.Any)
	if err := protojson.Unmarshal([]byte(text), a); err != nil || a.TypeUrl == "" {
		if direct := protojson.Unmarshal([]byte(text), into); direct == nil {
			return nil
		}
		if err == nil {
			err = errors.New("it has no @type")
		}
		return err
	}
	if !a.MessageIs(into) {
		return fmt.Errorf("it is a %s, not a %s", a.MessageName(), into.ProtoReflect().Descriptor().FullName())
	}
	return a.UnmarshalTo(into)
}

// oldHCM is what filterHCM used to be called; users' listeners may still call it so.
const oldHCM = "envoy.http_connection_manager"

// customPublicListener is the public listener a user wrote, with mutual TLS and the intentions put into every chain.
func (b *build) customPublicListener(name string, addr *corev3.Address) (made, error) {
	cfg := &b.s.Config
	l := new(listenerv3.Listener)
	if err := fromJSON(cfg.PublicListenerJSON, l); err != nil {
		return made{}, fmt.Errorf("envoy_public_listener_json: %w", err)
	}
	l.Name = name
	if l.Address == nil {
		l.Address = addr
	}
	socket, uses, err := b.downstreamTLS(cfg.Protocol)
	if err != nil {
		return made{}, err
	}
	chains := l.FilterChains
	if l.DefaultFilterChain != nil {
		chains = append(slices.Clone(chains), l.DefaultFilterChain)
	}
	if len(chains) == 0 {
		return made{}, errors.New("envoy_public_listener_json: it has no filter chain")
	}
	for _, fc := range chains {
		fc.TransportSocket = socket
		if isHTTP(cfg.Protocol) {
			more, done, err := b.authorizeManager(fc)
			if err != nil {
				return made{}, fmt.Errorf("envoy_public_listener_json: %w", err)
			}
			if done {
				uses = append(uses, more...)
				continue
			}
		}
		fc.Filters = append([]*listenerv3.Filter{b.authorization()}, fc.Filters...)
	}
	return made{message: l, uses: uses}, nil
}

// passing are the types of network filters that hand a connection on to the next one, or refuse it, and do nothing else
// with it.
var passing = map[string]bool{
	"type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit": true,
	"type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz":               true,
	"type.googleapis.com/envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit":   true,
	"type.googleapis.com/envoy.extensions.filters.network.ratelimit.v3.RateLimit":              true,
	"type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC":                        true,
}

// authorizeManager puts the intentions before the filters of a chain's connection manager. It reports false when the
// chain has none, or when something before it may serve a connection by itself.
func (b *build) authorizeManager(fc *listenerv3.FilterChain) ([]ref, bool, error) {
	for _, f := range fc.Filters {
		if passing[f.GetTypedConfig().GetTypeUrl()] {
			continue
		}
		m := new(hcmv3.HttpConnectionManager)
		if (f.Name != filterHCM && f.Name != oldHCM) || !f.GetTypedConfig().MessageIs(m) {
			return nil, false, nil
		}
		if err := f.GetTypedConfig().UnmarshalTo(m); err != nil {
			return nil, false, fmt.Errorf("filter %s: %w", f.Name, err)
		}
		first, uses, err := b.requestAuthorization()
		if err != nil {
			return nil, false, err
		}
		m.HttpFilters = append(first, m.HttpFilters...)
		packed, err := pack(m)
		if err != nil {
			return nil, false, fmt.Errorf("filter %s: %w", f.Name, err)
		}
		f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed}
		return uses, true, nil
	}
	return nil, false, nil
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }
