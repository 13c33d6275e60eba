package definition

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/catalog"
)

// DecodeService reads a service definition from the body of a registration request: the first JSON value of r. Keys
// match without regard to case, with the other spellings of spec/registry.md sections 4.1, 4.2 and 6.1; an unknown key
// is an error.
func DecodeService(r io.Reader) (*Service, error) {
	s := new(Service)
	return s, decodeJSON(r, serviceSchema, s)
}

// DecodeCheck reads a stand-alone check definition from the body of a registration request, as DecodeService does.
func DecodeCheck(r io.Reader) (*Check, error) {
	c := new(Check)
	return c, decodeJSON(r, checkSchema, c)
}

// ServiceFromConfig reads a service definition from the map of a configuration file; path, such as "services[0]", is
// where it stood and begins the paths in errors. All problems are reported, joined: each is a *FieldError.
func ServiceFromConfig(m map[string]any, path string) (*Service, error) {
	s := new(Service)
	return s, decodeConfig(m, path, serviceSchema, s)
}

// CheckFromConfig reads a stand-alone check definition, as ServiceFromConfig does.
func CheckFromConfig(m map[string]any, path string) (*Check, error) {
	c := new(Check)
	return c, decodeConfig(m, path, checkSchema, c)
}

// ErrUnknownKey is what a FieldError wraps when nothing is known by the name.
var ErrUnknownKey = errors.New("invalid config key")

// A FieldError is a problem with one field of a configuration map.
type FieldError struct {
	Path string // such as "services[0].checks[1].ttl"
	Err  error
}

func (e *FieldError) Error() string {
	if errors.Is(e.Err, ErrUnknownKey) {
		return e.Err.Error() + " " + e.Path
	}
	if d, ok := errors.AsType[*durationError](e.Err); ok {
		return e.Path + ": " + d.Error()
	}
	return "'" + e.Path + "' " + e.Err.Error()
}

func (e *FieldError) Unwrap() error { return e.Err }

// durationError is a duration in a configuration file that does not parse.
type durationError struct {
	text string
	err  error
}

func (e *durationError) Error() string {
	return fmt.Sprintf("invalid duration: %q: %v", e.text, e.err)
}

// A form is where a definition comes from.
type form uint8

const (
	fromHTTP   form = iota // JSON of the HTTP API: alternative spellings, durations also as numbers
	fromConfig             // configuration files: snake case, all problems reported
)

// A decoder carries the errors of one decoding.
type decoder struct {
	form form
	errs []error
}

// fail records a problem with the value at path.
func (d *decoder) fail(path string, err error) {
	d.errs = append(d.errs, &FieldError{path, err})
}

// mistyped records that the value at path has the wrong type.
func (d *decoder) mistyped(path, want string, v any) {
	if d.form == fromConfig {
		d.fail(path, fmt.Errorf("expected type '%s', got unconvertible type '%s', value: '%v'", want, goType(v), v))
		return
	}
	d.errs = append(d.errs, fmt.Errorf("json: cannot unmarshal %s into field %s of type %s", jsonType(v), path, want))
}

func goType(v any) string {
	switch v := v.(type) {
	case json.Number:
		if _, err := v.Int64(); err == nil {
			return "int"
		}
		return "float64"
	case nil:
		return "nil"
	case map[string]any, []map[string]any:
		return "map"
	case []any:
		return "slice"
	}
	return fmt.Sprintf("%T", v)
}

func jsonType(v any) string {
	switch v := v.(type) {
	case json.Number:
		return "number " + v.String()
	case string:
		return "string"
	case bool:
		return "bool"
	case map[string]any:
		return "object"
	case []any:
		return "array"
	}
	return "value"
}

// A setter stores v, found at path, in t.
type setter[T any] func(d *decoder, t *T, v any, path string)

// A field is one field of an object with its spellings, the first of each list being the usual one. A form without
// spellings does not have the field.
type field[T any] struct {
	http, config []string
	set          setter[T]
}

// A schema finds the field of a lower-case key.
type schema[T any] struct {
	byKey [2]map[string]slot[T]
	// defaults, when not nil, fills in what depends on which fields were given. The argument has their lower-case keys.
	defaults func(t *T, given func(key string) bool)
}

type slot[T any] struct {
	rank int // 0 for the usual spelling, which wins over others
	set  setter[T]
}

func newSchema[T any](fields ...field[T]) *schema[T] {
	s := &schema[T]{byKey: [2]map[string]slot[T]{{}, {}}}
	for _, f := range fields {
		for form, names := range [2][]string{f.http, f.config} {
			for rank, n := range names {
				s.byKey[form][strings.ToLower(n)] = slot[T]{min(rank, 1), f.set}
			}
		}
	}
	return s
}

// decode stores the members of m in t. Other spellings are stored before usual ones, and equal ranks in the order of
// their text, so that the outcome does not depend on map order.
func (s *schema[T]) decode(d *decoder, t *T, m map[string]any, path string) {
	keys := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		ea, eb := s.byKey[d.form][strings.ToLower(a)], s.byKey[d.form][strings.ToLower(b)]
		if ea.rank != eb.rank {
			return eb.rank - ea.rank
		}
		return strings.Compare(a, b)
	})
	for _, k := range keys {
		e, ok := s.byKey[d.form][strings.ToLower(k)]
		at := k
		if path != "" {
			at = path + "." + k
		}
		switch v := m[k]; {
		case !ok && d.form == fromHTTP:
			d.errs = append(d.errs, fmt.Errorf("json: unknown field %q", k))
		case !ok:
			d.fail(at, ErrUnknownKey)
		case v != nil:
			e.set(d, t, v, at)
		}
	}
	if s.defaults != nil {
		s.defaults(t, func(key string) bool {
			return slices.ContainsFunc(keys, func(k string) bool { return m[k] != nil && strings.ToLower(k) == key })
		})
	}
}

// both returns a field with these spellings: the first name over HTTP, snake in files, and alt as further HTTP
// spellings.
func both[T any](name, snake string, set setter[T], alt ...string) field[T] {
	config := []string{snake}
	// Some fields are accepted in files in the spelling of the API too.
	if flat := strings.ToLower(name); flat != snake && fileAlias[flat] {
		config = append(config, flat)
	}
	return field[T]{append([]string{name}, alt...), config, set}
}

// fileAlias lists the CamelCase spellings that files may use beside the snake-case ones.
var fileAlias = map[string]bool{
	"scriptargs": true, "dockercontainerid": true, "tlsskipverify": true, "deregistercriticalserviceafter": true, "serviceid": true,
}

func onlyHTTP[T any](set setter[T], names ...string) field[T] { return field[T]{http: names, set: set} }
func onlyConfig[T any](set setter[T], names ...string) field[T] {
	return field[T]{config: names, set: set}
}

func text[T any](p func(*T) *string) setter[T] {
	return func(d *decoder, t *T, v any, path string) {
		s, ok := v.(string)
		if !ok {
			d.mistyped(path, "string", v)
			return
		}
		*p(t) = s
	}
}

func flag[T any](p func(*T) *bool) setter[T] {
	return func(d *decoder, t *T, v any, path string) {
		b, ok := v.(bool)
		if !ok {
			d.mistyped(path, "bool", v)
			return
		}
		*p(t) = b
	}
}

func number[T any](p func(*T) *int) setter[T] {
	return func(d *decoder, t *T, v any, path string) {
		n, ok := integer(v)
		if !ok {
			d.mistyped(path, "int", v)
			return
		}
		*p(t) = n
	}
}

// integer returns the whole number v is.
func integer(v any) (int, bool) {
	switch v := v.(type) {
	case int:
		return v, true
	case int64:
		return int(v), int64(int(v)) == v
	case float64:
		if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
			return int(v), true
		}
	case json.Number:
		n, err := strconv.Atoi(v.String())
		return n, err == nil
	}
	return 0, false
}

// period stores a duration. Over HTTP it is text or a number of nanoseconds and other types are ignored; in files it is
// text.
func period[T any](p func(*T) *time.Duration) setter[T] {
	return func(d *decoder, t *T, v any, path string) {
		switch v := v.(type) {
		case string:
			dur, err := time.ParseDuration(v)
			switch {
			case err == nil:
				*p(t) = dur
			case d.form == fromHTTP:
				d.errs = append(d.errs, err)
			default:
				d.fail(path, &durationError{v, err})
			}
		case json.Number:
			if d.form == fromConfig {
				d.mistyped(path, "string", v)
			} else if dur, err := nanoseconds(v); err == nil {
				*p(t) = dur
			} else {
				d.errs = append(d.errs, err)
			}
		default:
			if d.form == fromConfig {
				d.mistyped(path, "string", v)
			}
		}
	}
}

func nanoseconds(n json.Number) (time.Duration, error) {
	f, err := n.Float64()
	if err != nil {
		return 0, fmt.Errorf("time: invalid duration %q", n.String())
	}
	dur, err := catalog.Nanoseconds(f)
	return time.Duration(dur), err
}

// list returns the elements of v. Files may leave out the brackets around a single element.
func list(d *decoder, v any, want, path string) ([]any, bool) {
	switch v := v.(type) {
	case []any:
		return v, true
	case []string:
		l := make([]any, len(v))
		for i := range v {
			l[i] = v[i]
		}
		return l, true
	case []map[string]any:
		l := make([]any, len(v))
		for i := range v {
			l[i] = v[i]
		}
		return l, true
	case map[string]any:
		if d.form == fromConfig {
			return []any{v}, true
		}
	}
	d.mistyped(path, want, v)
	return nil, false
}

// object returns the members of v. In files a block is also a list of one.
func object(d *decoder, v any, want, path string) (map[string]any, bool) {
	switch v := v.(type) {
	case map[string]any:
		return v, true
	case []map[string]any:
		if d.form == fromConfig && len(v) == 1 {
			return v[0], true
		}
	case []any:
		if d.form == fromConfig && len(v) == 1 {
			if m, ok := v[0].(map[string]any); ok {
				return m, true
			}
		}
	}
	d.mistyped(path, want, v)
	return nil, false
}

func texts[T any](p func(*T) *[]string) setter[T] {
	return func(d *decoder, t *T, v any, path string) { textList(d, p(t), v, path) }
}

func textList(d *decoder, p *[]string, v any, path string) {
	l, ok := list(d, v, "[]string", path)
	if !ok {
		return
	}
	out := make([]string, 0, len(l))
	for i, e := range l {
		s, ok := e.(string)
		if !ok && e != nil {
			d.mistyped(path+"["+strconv.Itoa(i)+"]", "string", e)
			continue
		}
		out = append(out, s)
	}
	*p = out
}

// mapped stores an object with free keys, each value stored by set.
func mapped[T, V any](p func(*T) *map[string]V, set func(d *decoder, v *V, raw any, path string)) setter[T] {
	return func(d *decoder, t *T, v any, path string) {
		m, ok := object(d, v, "map", path)
		if !ok {
			return
		}
		out := make(map[string]V, len(m))
		for _, k := range slices.Sorted(maps.Keys(m)) {
			var e V
			if raw := m[k]; raw != nil {
				set(d, &e, raw, path+"."+k)
			}
			out[k] = e
		}
		*p(t) = out
	}
}

func textValue(d *decoder, s *string, v any, path string) {
	text(func(s *string) *string { return s })(d, s, v, path)
}

// opaque stores a map that is not looked into.
func opaque[T any](p func(*T) *map[string]any) setter[T] {
	return func(d *decoder, t *T, v any, path string) {
		if m, ok := object(d, v, "map[string]interface {}", path); ok {
			*p(t) = plain(m).(map[string]any)
		}
	}
}

// plain returns v in the few Go types that survive every encoding alike: nil, bool, string, int64 for whole numbers
// beyond the exact range of float64 and float64 for all others, []any and map[string]any.
func plain(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[k] = plain(e)
		}
		return m
	case []any:
		l := make([]any, len(v))
		for i, e := range v {
			l[i] = plain(e)
		}
		return l
	case []map[string]any:
		// How HCL presents a block; several of one name are a list.
		if len(v) == 1 {
			return plain(v[0])
		}
		l := make([]any, len(v))
		for i, e := range v {
			l[i] = plain(e)
		}
		return l
	case []string:
		l := make([]any, len(v))
		for i, e := range v {
			l[i] = e
		}
		return l
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return plain(n)
		}
		f, _ := v.Float64()
		return f
	case int:
		return plain(int64(v))
	case int64:
		if v > -1<<53 && v < 1<<53 {
			return float64(v)
		}
		return v
	case nil, bool, string, float64:
		return v
	}
	return fmt.Sprint(v)
}

// nested stores an object with a schema; sub is called once there is one, so schemas may be recursive.
func nested[T, U any](p func(*T) *U, sub func() *schema[U]) setter[T] {
	return func(d *decoder, t *T, v any, path string) {
		if m, ok := object(d, v, "object", path); ok {
			sub().decode(d, p(t), m, path)
		}
	}
}

// optional stores an object in a new value.
func optional[T, U any](p func(*T) **U, sub func() *schema[U]) setter[T] {
	return func(d *decoder, t *T, v any, path string) {
		if m, ok := object(d, v, "object", path); ok {
			u := new(U)
			sub().decode(d, u, m, path)
			*p(t) = u
		}
	}
}

// several stores a list of objects.
func several[T, U any](p func(*T) *[]U, sub func() *schema[U]) setter[T] {
	return func(d *decoder, t *T, v any, path string) {
		l, ok := list(d, v, "list", path)
		if !ok {
			return
		}
		out := make([]U, len(l))
		for i, e := range l {
			at := path + "[" + strconv.Itoa(i) + "]"
			if e == nil {
				continue
			}
			if m, ok := object(d, e, "object", at); ok {
				sub().decode(d, &out[i], m, at)
			}
		}
		*p(t) = out
	}
}

func decodeJSON[T any](r io.Reader, s *schema[T], t *T) error {
	dec := json.NewDecoder(r)
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return err
	}
	d := &decoder{form: fromHTTP}
	switch v := v.(type) {
	case nil:
	case map[string]any:
		s.decode(d, t, v, "")
	default:
		d.errs = append(d.errs, fmt.Errorf("json: cannot unmarshal %s into a definition", jsonType(v)))
	}
	if len(d.errs) > 0 {
		return d.errs[0]
	}
	return nil
}

func decodeConfig[T any](m map[string]any, path string, s *schema[T], t *T) error {
	d := &decoder{form: fromConfig}
	s.decode(d, t, m, path)
	return errors.Join(d.errs...)
}

// The schemas. HTTP names come first, then those of files.

var serviceSchema = func() *schema[Service] {
	var connect *schema[Connect]
	check := of(nestedCheckSchema)
	service := newSchema(
		both("Kind", "kind", text(func(s *Service) *string { return &s.Kind })),
		both("ID", "id", text(func(s *Service) *string { return &s.ID })),
		both("Name", "name", text(func(s *Service) *string { return &s.Name })),
		both("Tags", "tags", texts(func(s *Service) *[]string { return &s.Tags })),
		both("Address", "address", text(func(s *Service) *string { return &s.Address })),
		both("TaggedAddresses", "tagged_addresses", mapped(func(s *Service) *map[string]catalog.ServiceAddress { return &s.TaggedAddresses },
			func(d *decoder, a *catalog.ServiceAddress, v any, path string) {
				if m, ok := object(d, v, "object", path); ok {
					addressSchema.decode(d, a, m, path)
				}
			}), "tagged_addresses"),
		both("Meta", "meta", mapped(func(s *Service) *map[string]string { return &s.Meta }, textValue)),
		both("Port", "port", number(func(s *Service) *int { return &s.Port })),
		both("SocketPath", "socket_path", text(func(s *Service) *string { return &s.SocketPath })),
		both("EnableTagOverride", "enable_tag_override", flag(func(s *Service) *bool { return &s.EnableTagOverride }), "enable_tag_override"),
		both("Weights", "weights", optional(func(s *Service) **catalog.Weights { return &s.Weights }, of(weightsSchema))),
		both("Locality", "locality", optional(func(s *Service) **catalog.Locality { return &s.Locality }, of(localitySchema))),
		both("Check", "check", nested(func(s *Service) *Check { return &s.Check }, check)),
		both("Checks", "checks", several(func(s *Service) *[]Check { return &s.Checks }, check)),
		both("Proxy", "proxy", optional(func(s *Service) **catalog.Proxy { return &s.Proxy }, of(proxySchema))),
		both("Connect", "connect", optional(func(s *Service) **Connect { return &s.Connect }, func() *schema[Connect] { return connect })),
		both("Token", "token", text(func(s *Service) *string { return &s.Token })),
	)
	connect = newSchema(
		both("Native", "native", flag(func(c *Connect) *bool { return &c.Native })),
		both("SidecarService", "sidecar_service", optional(func(c *Connect) **Service { return &c.SidecarService }, of(service)), "sidecar_service"),
	)
	return service
}()

// of returns a function returning s.
func of[T any](s *schema[T]) func() *schema[T] { return func() *schema[T] { return s } }

var (
	addressSchema = newSchema(
		both("Address", "address", text(func(a *catalog.ServiceAddress) *string { return &a.Address })),
		both("Port", "port", number(func(a *catalog.ServiceAddress) *int { return &a.Port })),
	)
	weightsSchema = newSchema(
		both("Passing", "passing", number(func(w *catalog.Weights) *int { return &w.Passing })),
		both("Warning", "warning", number(func(w *catalog.Weights) *int { return &w.Warning })),
	)
	localitySchema = newSchema(
		both("Region", "region", text(func(l *catalog.Locality) *string { return &l.Region })),
		both("Zone", "zone", text(func(l *catalog.Locality) *string { return &l.Zone })),
	)
	meshGatewaySchema = newSchema(
		both("Mode", "mode", text(func(m *catalog.MeshGateway) *string { return &m.Mode })),
	)
	upstreamSchema = newSchema(
		both("DestinationType", "destination_type", text(func(u *catalog.Upstream) *string { return &u.DestinationType }), "destination_type"),
		both("DestinationName", "destination_name", text(func(u *catalog.Upstream) *string { return &u.DestinationName }), "destination_name"),
		both("DestinationPeer", "destination_peer", text(func(u *catalog.Upstream) *string { return &u.DestinationPeer }), "destination_peer"),
		both("DestinationNamespace", "destination_namespace", text(func(u *catalog.Upstream) *string { return &u.DestinationNamespace }), "destination_namespace"),
		both("DestinationPartition", "destination_partition", text(func(u *catalog.Upstream) *string { return &u.DestinationPartition }), "destination_partition"),
		both("Datacenter", "datacenter", text(func(u *catalog.Upstream) *string { return &u.Datacenter })),
		both("LocalBindAddress", "local_bind_address", text(func(u *catalog.Upstream) *string { return &u.LocalBindAddress }), "local_bind_address"),
		both("LocalBindPort", "local_bind_port", number(func(u *catalog.Upstream) *int { return &u.LocalBindPort }), "local_bind_port"),
		both("LocalBindSocketPath", "local_bind_socket_path", text(func(u *catalog.Upstream) *string { return &u.LocalBindSocketPath }), "local_bind_socket_path"),
		both("LocalBindSocketMode", "local_bind_socket_mode", text(func(u *catalog.Upstream) *string { return &u.LocalBindSocketMode }), "local_bind_socket_mode"),
		both("Config", "config", opaque(func(u *catalog.Upstream) *map[string]any { return &u.Config })),
		both("MeshGateway", "mesh_gateway", nested(func(u *catalog.Upstream) *catalog.MeshGateway { return &u.MeshGateway }, of(meshGatewaySchema)), "mesh_gateway"),
		// Written by the servers; a definition read back from the API may carry it.
		onlyHTTP(flag(func(u *catalog.Upstream) *bool { return new(bool) }), "CentrallyConfigured"),
	)
	exposePathSchema = newSchema(
		both("ListenerPort", "listener_port", number(func(p *catalog.ExposePath) *int { return &p.ListenerPort }), "listener_port"),
		both("Path", "path", text(func(p *catalog.ExposePath) *string { return &p.Path })),
		both("LocalPathPort", "local_path_port", number(func(p *catalog.ExposePath) *int { return &p.LocalPathPort }), "local_path_port"),
		both("Protocol", "protocol", text(func(p *catalog.ExposePath) *string { return &p.Protocol })),
		both("ParsedFromCheck", "parsed_from_check", flag(func(p *catalog.ExposePath) *bool { return &p.ParsedFromCheck }), "parsed_from_check"),
	)
	exposeSchema = newSchema(
		both("Checks", "checks", flag(func(e *catalog.Expose) *bool { return &e.Checks })),
		both("Paths", "paths", several(func(e *catalog.Expose) *[]catalog.ExposePath { return &e.Paths }, of(exposePathSchema))),
	)
	transparentSchema = newSchema(
		both("OutboundListenerPort", "outbound_listener_port", number(func(t *catalog.TransparentProxy) *int { return &t.OutboundListenerPort })),
		both("DialedDirectly", "dialed_directly", flag(func(t *catalog.TransparentProxy) *bool { return &t.DialedDirectly })),
	)
	accessLogsSchema = newSchema(
		both("Enabled", "enabled", flag(func(a *catalog.AccessLogs) *bool { return &a.Enabled })),
		both("DisableListenerLogs", "disable_listener_logs", flag(func(a *catalog.AccessLogs) *bool { return &a.DisableListenerLogs })),
		both("Type", "type", text(func(a *catalog.AccessLogs) *string { return &a.Type })),
		both("Path", "path", text(func(a *catalog.AccessLogs) *string { return &a.Path })),
		both("JSONFormat", "json_format", text(func(a *catalog.AccessLogs) *string { return &a.JSONFormat })),
		both("TextFormat", "text_format", text(func(a *catalog.AccessLogs) *string { return &a.TextFormat })),
	)
	extensionSchema = newSchema(
		both("Name", "name", text(func(e *catalog.EnvoyExtension) *string { return &e.Name })),
		both("Required", "required", flag(func(e *catalog.EnvoyExtension) *bool { return &e.Required })),
		both("Arguments", "arguments", opaque(func(e *catalog.EnvoyExtension) *map[string]any { return &e.Arguments })),
		both("ConsulVersion", "consul_version", text(func(e *catalog.EnvoyExtension) *string { return &e.ConsulVersion })),
		both("EnvoyVersion", "envoy_version", text(func(e *catalog.EnvoyExtension) *string { return &e.EnvoyVersion })),
	)
	proxySchema = newSchema(
		both("DestinationServiceName", "destination_service_name", text(func(p *catalog.Proxy) *string { return &p.DestinationServiceName }), "destination_service_name"),
		both("DestinationServiceID", "destination_service_id", text(func(p *catalog.Proxy) *string { return &p.DestinationServiceID }), "destination_service_id"),
		both("LocalServiceAddress", "local_service_address", text(func(p *catalog.Proxy) *string { return &p.LocalServiceAddress }), "local_service_address"),
		both("LocalServicePort", "local_service_port", number(func(p *catalog.Proxy) *int { return &p.LocalServicePort }), "local_service_port"),
		both("LocalServiceSocketPath", "local_service_socket_path", text(func(p *catalog.Proxy) *string { return &p.LocalServiceSocketPath }), "local_service_socket_path"),
		both("Mode", "mode", text(func(p *catalog.Proxy) *string { return &p.Mode })),
		both("Config", "config", opaque(func(p *catalog.Proxy) *map[string]any { return &p.Config })),
		both("Upstreams", "upstreams", several(func(p *catalog.Proxy) *[]catalog.Upstream { return &p.Upstreams }, of(upstreamSchema))),
		both("MeshGateway", "mesh_gateway", nested(func(p *catalog.Proxy) *catalog.MeshGateway { return &p.MeshGateway }, of(meshGatewaySchema)), "mesh_gateway"),
		both("Expose", "expose", nested(func(p *catalog.Proxy) *catalog.Expose { return &p.Expose }, of(exposeSchema))),
		both("TransparentProxy", "transparent_proxy", optional(func(p *catalog.Proxy) **catalog.TransparentProxy { return &p.TransparentProxy }, of(transparentSchema)), "transparent_proxy"),
		both("AccessLogs", "access_logs", optional(func(p *catalog.Proxy) **catalog.AccessLogs { return &p.AccessLogs }, of(accessLogsSchema)), "access_logs"),
		both("EnvoyExtensions", "envoy_extensions", several(func(p *catalog.Proxy) *[]catalog.EnvoyExtension { return &p.EnvoyExtensions }, of(extensionSchema))),
	)

	checkSchema       = newCheckSchema(true)
	nestedCheckSchema = newCheckSchema(false)
)

// newCheckSchema returns the schema of a check definition, stand-alone or nested in a service.
func newCheckSchema(standAlone bool) *schema[Check] {
	id := both("CheckID", "id", text(func(c *Check) *string { return &c.ID }))
	redirects := both("DisableRedirects", "disable_redirects", flag(func(c *Check) *bool { return &c.DisableRedirects }))
	serviceID := func(c *Check) *string { return new(string) } // accepted and ignored inside a service
	if standAlone {
		id = both("ID", "id", text(func(c *Check) *string { return &c.ID }))
		redirects.http = append(redirects.http, "disable_redirects")
		serviceID = func(c *Check) *string { return &c.ServiceID }
	}
	fields := []field[Check]{
		id, redirects,
		both("ServiceID", "service_id", text(serviceID), "service_id"),
		both("Name", "name", text(func(c *Check) *string { return &c.Name })),
		both("Notes", "notes", text(func(c *Check) *string { return &c.Notes })),
		both("Status", "status", text(func(c *Check) *string { return &c.Status })),
		{[]string{"ScriptArgs", "args", "script_args"}, []string{"args", "scriptargs", "script_args"}, texts(func(c *Check) *[]string { return &c.ScriptArgs })},
		both("HTTP", "http", text(func(c *Check) *string { return &c.HTTP })),
		both("Method", "method", text(func(c *Check) *string { return &c.Method })),
		both("Header", "header", mapped(func(c *Check) *map[string][]string { return &c.Header }, textList)),
		both("Body", "body", text(func(c *Check) *string { return &c.Body })),
		both("TCP", "tcp", text(func(c *Check) *string { return &c.TCP })),
		both("TCPUseTLS", "tcp_use_tls", flag(func(c *Check) *bool { return &c.TCPUseTLS }), "tcp_use_tls"),
		both("UDP", "udp", text(func(c *Check) *string { return &c.UDP })),
		both("GRPC", "grpc", text(func(c *Check) *string { return &c.GRPC })),
		both("GRPCUseTLS", "grpc_use_tls", flag(func(c *Check) *bool { return &c.GRPCUseTLS }), "grpc_use_tls"),
		both("H2PING", "h2ping", text(func(c *Check) *string { return &c.H2PING })),
		both("DockerContainerID", "docker_container_id", text(func(c *Check) *string { return &c.DockerContainerID }), "docker_container_id"),
		both("Shell", "shell", text(func(c *Check) *string { return &c.Shell })),
		both("OSService", "os_service", text(func(c *Check) *string { return &c.OSService })),
		both("AliasService", "alias_service", text(func(c *Check) *string { return &c.AliasService })),
		both("AliasNode", "alias_node", text(func(c *Check) *string { return &c.AliasNode })),
		both("TTL", "ttl", period(func(c *Check) *time.Duration { return &c.TTL })),
		both("Interval", "interval", period(func(c *Check) *time.Duration { return &c.Interval })),
		both("Timeout", "timeout", period(func(c *Check) *time.Duration { return &c.Timeout })),
		both("TLSServerName", "tls_server_name", text(func(c *Check) *string { return &c.TLSServerName }), "tls_server_name"),
		both("TLSSkipVerify", "tls_skip_verify", flag(func(c *Check) *bool { return &c.TLSSkipVerify }), "tls_skip_verify"),
		both("SuccessBeforePassing", "success_before_passing", number(func(c *Check) *int { return &c.SuccessBeforePassing })),
		both("FailuresBeforeWarning", "failures_before_warning", number(func(c *Check) *int { return &c.FailuresBeforeWarning })),
		both("FailuresBeforeCritical", "failures_before_critical", number(func(c *Check) *int { return &c.FailuresBeforeCritical })),
		both("DeregisterCriticalServiceAfter", "deregister_critical_service_after", period(func(c *Check) *time.Duration { return &c.DeregisterCriticalServiceAfter }), "deregister_critical_service_after"),
		both("OutputMaxSize", "output_max_size", number(func(c *Check) *int { return &c.OutputMaxSize })),
		both("H2PingUseTLS", "h2ping_use_tls", flag(func(c *Check) *bool { return &c.H2PingUseTLS }), "h2ping_use_tls"),
	}
	if standAlone {
		fields = append(fields, both("Token", "token", text(func(c *Check) *string { return &c.Token })))
	} else {
		fields = append(fields,
			onlyHTTP(text(func(c *Check) *string { return &c.ProxyHTTP }), "ProxyHTTP"),
			onlyHTTP(text(func(c *Check) *string { return &c.ProxyGRPC }), "ProxyGRPC"),
			onlyConfig(text(func(c *Check) *string { return new(string) }), "token"),
		)
	}
	s := newSchema(fields...)
	s.defaults = func(c *Check, given func(key string) bool) {
		if c.H2PING != "" && !given("h2pingusetls") && !given("h2ping_use_tls") {
			c.H2PingUseTLS = true
		}
	}
	return s
}
