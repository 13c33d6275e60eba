package xds

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/go-viper/mapstructure/v2"
	"google.golang.org/protobuf/proto"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/connect/mesh"
)

// ErrExtension reports that an extension that is required could not be applied.
var ErrExtension = errors.New("a required Envoy extension can not be applied")

// An extension changes resources after they were made (spec/xds.md section 17). Extensions are never changed.
type extension interface {
	// apply changes a resource, where it concerns the extension.
	apply(b *build, t Type, m *made) error
}

// A clusterExtension has a cluster of its own.
type clusterExtension interface {
	extension
	cluster() (name string, m proto.Message) // empty name for none
}

// extensions are those of one proxy, in the order in which they are applied. Equal pointers mean equal content.
type extensions struct {
	of       *mesh.Registration
	targets  map[string]string // clusters of upstreams, by service
	all      []activeExtension
	problems []error
	err      error // of one that is required
}

type activeExtension struct {
	catalog.EnvoyExtension
	extension
}

func (x *extensions) empty() bool { return x == nil || len(x.all) == 0 }

// equal reports whether y is made from the same things.
func (x *extensions) equal(y *extensions) bool {
	if len(x.targets) != len(y.targets) || x.of != y.of {
		return false
	}
	for k, v := range x.targets {
		if y.targets[k] != v {
			return false
		}
	}
	return true
}

// An extensionError tells which extension could not be applied.
type extensionError struct {
	name     string
	required bool
	err      error
}

func (e *extensionError) Error() string { return fmt.Sprintf("extension %s: %v", e.name, e.err) }

func (e *extensionError) Unwrap() []error {
	if e.required {
		return []error{ErrExtension, e.err}
	}
	return []error{e.err}
}

// without returns the extensions but for those of the name that failed.
func (x *extensions) without(failed *extensionError) *extensions {
	y := *x
	y.problems = append(slices.Clip(x.problems), failed)
	y.all = slices.DeleteFunc(slices.Clone(x.all), func(a activeExtension) bool { return a.Name == failed.name && !a.Required })
	return &y
}

// extensionTypes make extensions out of their arguments.
var extensionTypes = map[string]func(e *catalog.EnvoyExtension, x *extensions) (extension, error){
	"builtin/lua":                 newLua,
	"builtin/ext-authz":           newExtAuthz,
	"builtin/property-override":   newPropertyOverride,
	"builtin/otel-access-logging": newOtelLogs,
	"builtin/wasm":                newWasm,
}

// foreign are the extensions that the built-in proxy does not know.
var foreign = map[string]bool{"builtin/lua": true, "builtin/wasm": true}

// lambdaExtension concerns terminating gateways only.
const lambdaExtension = "builtin/aws/lambda"

// extensionsOf returns the extensions of a proxy. Those that make no sense are told in problems.
func (b *build) extensionsOf() *extensions {
	s := b.s
	x := &extensions{of: s.Proxy}
	list := s.Proxy.Service.Proxy.EnvoyExtensions
	if len(list) == 0 {
		return x
	}
	x.targets = map[string]string{}
	for _, u := range s.Upstreams {
		c := s.Chain(u)
		if c == nil || c.Nodes[c.StartNode] == nil || x.targets[u.Spec.DestinationName] != "" {
			continue
		}
		if name, err := b.startCluster(u, c); err == nil {
			x.targets[u.Spec.DestinationName] = name
		}
	}
	for i := range list {
		e := &list[i]
		if e.Name == lambdaExtension || !satisfies(e.ConsulVersion, consulVersion) || !satisfies(e.EnvoyVersion, envoyVersion) {
			continue
		}
		made, err := extension(nil), fmt.Errorf("%q is not a built-in extension", e.Name)
		switch f := extensionTypes[e.Name]; {
		case b.flavour == Proxyless:
			err = errors.New("gRPC clients know no extensions")
		case f != nil && b.flavour == Own && foreign[e.Name]:
			err = errors.New("the built-in proxy does not know it")
		case f != nil:
			made, err = f(e, x)
		}
		if err != nil {
			failed := &extensionError{e.Name, e.Required, err}
			if e.Required {
				x.err = failed
			} else {
				x.problems = append(x.problems, failed)
			}
			continue
		}
		x.all = append(x.all, activeExtension{*e, made})
	}
	return x
}

// extend applies the extensions to a resource.
func (b *build) extend(t Type, m *made) error {
	if b.extensions.empty() {
		return nil
	}
	name := nameOf(m.message)
	for _, x := range b.extensions.all {
		if err := x.apply(b, t, m); err != nil {
			return &extensionError{x.Name, x.Required, err}
		}
		if n := nameOf(m.message); n != name {
			return &extensionError{x.Name, x.Required, fmt.Errorf("%s %q must keep its name", t, name)}
		}
		if v, ok := m.message.(interface{ Validate() error }); ok {
			if err := v.Validate(); err != nil {
				return &extensionError{x.Name, x.Required, err}
			}
		}
	}
	return nil
}

func nameOf(m proto.Message) string {
	switch m := m.(type) {
	case interface{ GetName() string }:
		return m.GetName()
	case interface{ GetClusterName() string }:
		return m.GetClusterName()
	}
	return ""
}

// extensionClusters makes the clusters that extensions bring along.
func (b *build) extensionClusters() error {
	for _, x := range b.extensions.all {
		c, ok := x.extension.(clusterExtension)
		if !ok {
			continue
		}
		name, m := c.cluster()
		if name == "" {
			continue
		}
		if err := b.add(Cluster, name, nil, func() (made, error) { return made{message: m}, nil }); err != nil {
			return err
		}
	}
	return nil
}

// Directions of traffic, as seen by the proxy.
const (
	inbound  = "inbound"
	outbnd   = "outbound"
	sidecars = "connect-proxy"
)

// direction tells which traffic a resource is for, empty for neither.
func (b *build) direction(t Type, m *made) string {
	if b.upstream != nil {
		return outbnd
	}
	switch v := m.message.(type) {
	case *listenerv3.Listener:
		switch {
		case strings.HasPrefix(v.Name, publicListener+":"):
			return inbound
		case strings.HasPrefix(v.Name, outboundListener+":"):
			return outbnd
		}
	case interface{ GetName() string }:
		if t == Cluster && v.GetName() == localApp {
			return inbound
		}
		if t == Cluster && v.GetName() == originalDestination || t == Route {
			return outbnd
		}
	}
	return ""
}

// listenerOf returns the message of a listener for traffic in a direction, nil for other resources.
func (b *build) listenerOf(direction string, t Type, m *made) *listenerv3.Listener {
	if t != Listener || b.direction(t, m) != direction {
		return nil
	}
	return m.message.(*listenerv3.Listener)
}

// chainsOf returns all filter chains of a listener.
func chainsOf(l *listenerv3.Listener) []*listenerv3.FilterChain {
	if l.DefaultFilterChain == nil {
		return l.FilterChains
	}
	return append(slices.Clip(l.FilterChains), l.DefaultFilterChain)
}

// changeManagers lets f change every connection manager of a listener.
func changeManagers(l *listenerv3.Listener, f func(m *hcmv3.HttpConnectionManager) error) error {
	for _, fc := range chainsOf(l) {
		for _, n := range fc.Filters {
			m := new(hcmv3.HttpConnectionManager)
			if !n.GetTypedConfig().MessageIs(m) {
				continue
			}
			if err := n.GetTypedConfig().UnmarshalTo(m); err != nil {
				return err
			}
			if err := f(m); err != nil {
				return err
			}
			packed, err := pack(m)
			if err != nil {
				return err
			}
			n.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed}
		}
	}
	return nil
}

// insertOptions say where in a chain a filter goes.
type insertOptions struct{ Location, FilterName string }

func (o insertOptions) check() error {
	switch o.Location {
	case "", "First", "BeforeLast":
		return nil
	case "AfterFirstMatch", "AfterLastMatch", "BeforeFirstMatch", "BeforeLastMatch":
		if o.FilterName != "" {
			return nil
		}
		return errors.New("InsertOptions.FilterName is required")
	}
	return fmt.Errorf("InsertOptions.Location %q is not known", o.Location)
}

// insertFilter puts a filter into a chain, unless o says otherwise before the one called before.
func insertFilter[F interface{ GetName() string }](chain []F, f F, o insertOptions, before string) ([]F, error) {
	if o.Location == "" {
		o = insertOptions{"BeforeFirstMatch", before}
	}
	first := slices.IndexFunc(chain, func(c F) bool { return c.GetName() == o.FilterName })
	last := len(chain) - 1
	for ; last >= 0 && chain[last].GetName() != o.FilterName; last-- {
	}
	at := 0
	switch o.Location {
	case "First":
		return slices.Insert(slices.Clone(chain), 0, f), nil
	case "BeforeLast":
		return slices.Insert(slices.Clone(chain), max(0, len(chain)-1), f), nil
	case "BeforeFirstMatch":
		at = first
	case "AfterFirstMatch":
		at = first + 1
	case "BeforeLastMatch":
		at = last
	case "AfterLastMatch":
		at = last + 1
	}
	if first < 0 {
		return nil, fmt.Errorf("there is no filter %q", o.FilterName)
	}
	return slices.Insert(slices.Clone(chain), at, f), nil
}

const filterRouter = "envoy.filters.http.router"

// decodeArguments reads the arguments of an extension. Those that mean nothing are refused: a misspelt one would not do
// what it was meant to.
func decodeArguments(e *catalog.EnvoyExtension, into any) error {
	d, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		Result: into, WeaklyTypedInput: true, ErrorUnused: true,
		DecodeHook: mapstructure.StringToTimeDurationHookFunc(),
	})
	if err != nil {
		return err
	}
	return d.Decode(e.Arguments)
}

// concerns reports whether an extension for a type of proxy, empty for sidecars, concerns a proxy.
func concerns(proxyType string, x *extensions) (bool, error) {
	switch proxyType {
	case "", sidecars, catalog.KindAPIGateway, catalog.KindTerminatingGateway:
	default:
		return false, fmt.Errorf("ProxyType %q is not supported", proxyType)
	}
	if proxyType == "" {
		proxyType = sidecars
	}
	return proxyType == x.of.Service.Kind, nil
}

// noExtension concerns other proxies.
type noExtension struct{}

func (noExtension) apply(*build, Type, *made) error { return nil }

func checkListenerType(s string) error {
	if s != inbound && s != outbnd {
		return fmt.Errorf("listener type %q is neither %q nor %q", s, inbound, outbnd)
	}
	return nil
}

// stringMatcher is how arguments say which texts are meant.
type stringMatcher struct {
	Contains, Exact, Prefix, SafeRegex, Suffix string
	IgnoreCase                                 bool
}

// headerPair is a header as arguments have it.
type headerPair struct{ Key, Value string }

func headerValues(pairs []headerPair) []*corev3.HeaderValue {
	var out []*corev3.HeaderValue
	for _, p := range pairs {
		out = append(out, &corev3.HeaderValue{Key: p.Key, Value: p.Value})
	}
	return out
}

// The versions that constraints of extensions are compared with: that of the reference whose extensions these are, and
// the newest one of Envoy it knows.
const (
	consulVersion = "1.21.0"
	envoyVersion  = "1.34.0"
)

// satisfies reports whether a version satisfies a constraint such as ">= 1.16.0, < 2". Empty is satisfied; what can not
// be understood is not.
func satisfies(constraint, version string) bool {
	if strings.TrimSpace(constraint) == "" {
		return true
	}
	for part := range strings.SplitSeq(constraint, ",") {
		part = strings.TrimSpace(part)
		op := part[:len(part)-len(strings.TrimLeft(part, "<>=!~"))]
		want, ok := parseVersion(part[len(op):])
		have, _ := parseVersion(version)
		if !ok {
			return false
		}
		c := slices.Compare(have[:], want[:])
		switch op {
		case "", "=":
			ok = c == 0
		case "!=":
			ok = c != 0
		case ">":
			ok = c > 0
		case "<":
			ok = c < 0
		case ">=":
			ok = c >= 0
		case "<=":
			ok = c <= 0
		case "~>":
			// All but the last part given must be equal.
			n := max(1, strings.Count(part, "."))
			ok = c >= 0 && slices.Equal(have[:n], want[:n])
		default:
			ok = false
		}
		if !ok {
			return false
		}
	}
	return true
}

func parseVersion(s string) (v [3]int, ok bool) {
	s = strings.TrimPrefix(strings.TrimSpace(s), "v")
	s, _, _ = strings.Cut(s, "-")
	parts := strings.Split(s, ".")
	if len(parts) > 3 {
		return v, false
	}
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 {
			return v, false
		}
		v[i] = n
	}
	return v, true
}
