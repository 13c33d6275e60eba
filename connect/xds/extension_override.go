package xds

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/sarnmesh/sarn/catalog"
)

// propertyOverride sets and clears fields of resources.
type propertyOverride struct {
	patches []*patch
	debug   bool
}

type patch struct {
	ResourceFilter struct {
		ResourceType, TrafficDirection string
		Services                       []struct{ Name, Namespace, Partition string }
	}
	Op, Path string
	Value    any

	typ   Type
	names []string // of the path
}

// overridable are the types of resources by the names that arguments know them by.
var overridable = map[string]struct {
	typ     Type
	message proto.Message
}{
	"cluster":                 {Cluster, (*clusterv3.Cluster)(nil)},
	"cluster-load-assignment": {Endpoint, (*endpointv3.ClusterLoadAssignment)(nil)},
	"route":                   {Route, (*routev3.RouteConfiguration)(nil)},
	"listener":                {Listener, (*listenerv3.Listener)(nil)},
}

func newPropertyOverride(e *catalog.EnvoyExtension, x *extensions) (extension, error) {
	var a struct {
		ProxyType string
		Debug     bool
		Patches   []*patch
	}
	if err := decodeArguments(e, &a); err != nil {
		return nil, err
	}
	if len(a.Patches) == 0 {
		return nil, errors.New("there are no Patches")
	}
	o := &propertyOverride{patches: a.Patches, debug: a.Debug}
	for i, p := range a.Patches {
		if err := p.check(a.Debug); err != nil {
			return nil, fmt.Errorf("Patches[%d]: %w", i, err)
		}
	}
	if ok, err := concerns(a.ProxyType, x); err != nil || !ok {
		return noExtension{}, err
	}
	return o, nil
}

// check finds what can be found without a resource: a path that leads nowhere, a value of a wrong type.
func (p *patch) check(debug bool) error {
	if p == nil {
		return errors.New("it is empty")
	}
	f := &p.ResourceFilter
	r, ok := overridable[f.ResourceType]
	if !ok {
		return fmt.Errorf("ResourceType %q is not known", f.ResourceType)
	}
	if err := checkListenerType(f.TrafficDirection); err != nil {
		return fmt.Errorf("TrafficDirection: %w", err)
	}
	if len(f.Services) > 0 && f.TrafficDirection != outbnd {
		return errors.New("Services can be chosen for outbound traffic only")
	}
	for _, s := range f.Services {
		if s.Name == "" {
			return errors.New("a service without Name")
		}
	}
	switch {
	case p.Op != "add" && p.Op != "remove":
		return fmt.Errorf(`Op %q is neither "add" nor "remove"`, p.Op)
	case (p.Op == "add") != (p.Value != nil):
		return errors.New("a Value must be set to add, and none to remove")
	case !strings.HasPrefix(p.Path, "/") || strings.HasSuffix(p.Path, "/"):
		return fmt.Errorf("Path %q does not begin with / and end with a name", p.Path)
	}
	p.typ, p.names = r.typ, strings.Split(p.Path[1:], "/")
	return p.change(r.message.ProtoReflect().New(), debug)
}

func (o *propertyOverride) apply(b *build, t Type, m *made) error {
	for _, p := range o.patches {
		f := &p.ResourceFilter
		if p.typ != t || b.direction(t, m) != f.TrafficDirection {
			continue
		}
		if len(f.Services) > 0 {
			if b.upstream == nil {
				continue // what upstreams share
			}
			name := b.upstream.Spec.DestinationName
			if !slices.ContainsFunc(f.Services, func(s struct{ Name, Namespace, Partition string }) bool { return s.Name == name }) {
				continue
			}
		}
		if err := p.change(m.message.ProtoReflect(), o.debug); err != nil {
			return err
		}
	}
	return nil
}

// change sets or clears the field of a message.
func (p *patch) change(m protoreflect.Message, debug bool) error {
	for i, name := range p.names {
		fd := m.Descriptor().Fields().ByName(protoreflect.Name(name))
		if fd == nil {
			return fmt.Errorf("%s has no field %q, but %s", m.Descriptor().Name(), name, fieldNames(m.Descriptor(), debug))
		}
		if i == len(p.names)-1 {
			if p.Op == "remove" {
				m.Clear(fd)
				return nil
			}
			return p.set(m, fd)
		}
		if fd.IsList() || fd.IsMap() || fd.Message() == nil || fd.Message().FullName() == "google.protobuf.Any" {
			return fmt.Errorf("nothing inside of %q can be changed", name)
		}
		if p.Op == "remove" && !m.Has(fd) {
			m = m.NewField(fd).Message() // only to see whether the path leads somewhere
			continue
		}
		m = m.Mutable(fd).Message()
	}
	return nil
}

// set sets a field to the value, which may be plain where the field is a wrapper.
func (p *patch) set(m protoreflect.Message, fd protoreflect.FieldDescriptor) error {
	if err := plainValue(p.Value, fd); err != nil {
		return fmt.Errorf("%s: %w", p.Path, err)
	}
	data, err := json.Marshal(map[string]any{string(fd.Name()): p.Value})
	if err != nil {
		return err
	}
	fresh := m.New()
	if err := protojson.Unmarshal(data, fresh.Interface()); err != nil {
		return fmt.Errorf("%s: the value does not fit: %s", p.Path, strings.ReplaceAll(err.Error(), "\u00a0", " "))
	}
	m.Set(fd, fresh.Get(fd))
	return nil
}

// plainValue checks that a value is a scalar, a list of scalars, or a map of these.
func plainValue(v any, fd protoreflect.FieldDescriptor) error {
	switch v := v.(type) {
	case map[string]any:
		if fd.Message() == nil {
			return errors.New("the field is no message")
		}
		if fd.IsList() {
			return errors.New("a list of messages can not be set")
		}
		for k, inner := range v {
			if _, nested := inner.(map[string]any); nested {
				return fmt.Errorf("the value of %q is a map, too", k)
			}
		}
	case []any:
		for _, inner := range v {
			switch inner.(type) {
			case map[string]any, []any:
				return errors.New("a list of anything but scalars can not be set")
			}
		}
	}
	return nil
}

// fieldNames lists the fields of a message, the first ten unless all are asked for.
func fieldNames(d protoreflect.MessageDescriptor, all bool) string {
	var names []string
	for i := range d.Fields().Len() {
		if i == 10 && !all {
			names = append(names, "…")
			break
		}
		names = append(names, string(d.Fields().Get(i).Name()))
	}
	return strings.Join(names, ", ")
}
