// Package decode turns xDS resources into the proxy's model and refuses what
// the proxy cannot do as asked. Protobuf ends here: no other package of the
// data plane but the ADS client knows it.
//
// Every problem of a resource is reported at once, each with the path of the
// field. A field that is set but not supported is a problem, so that nobody
// believes in a protection that is not there; the few fields that are accepted
// without effect are those in the ignored lists beside each message, which
// tune what this proxy does in another way or what only concerns HTTP.
package decode

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	udpatype "github.com/cncf/xds/go/udpa/type/v1"
	xdstype "github.com/cncf/xds/go/xds/type/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Type URLs of the resources.
const (
	TypeListener  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	TypeRoute     = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	TypeCluster   = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	TypeEndpoints = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	TypeSecret    = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
)

// Options are what a Decoder may ask of its surroundings. A nil function
// refuses configuration that needs it.
type Options struct {
	ReadFile func(path string) ([]byte, error) // for data sources that name a file
	Getenv   func(name string) string          // for data sources that name a variable
}

// FromSystem are options that read files and the environment.
func FromSystem() Options { return Options{ReadFile: os.ReadFile, Getenv: os.Getenv} }

// A Decoder decodes resources. It remembers certificates that it parsed, since
// most resources of a proxy hold the same ones. It is safe for concurrent use.
type Decoder struct {
	opt Options

	mu      sync.Mutex
	parsed  map[[sha256.Size]byte]any
	parseds int // bytes of PEM behind parsed, roughly
}

// New returns a decoder.
func New(opt Options) *Decoder {
	return &Decoder{opt: opt, parsed: map[[sha256.Size]byte]any{}}
}

// run collects the problems of one resource.
type run struct {
	d     *Decoder
	errs  []error
	count int
}

// maxProblems bounds the text about a resource that is wrong all over.
const maxProblems = 20

func (r *run) errorf(path, format string, args ...any) {
	if r.count++; r.count <= maxProblems {
		r.errs = append(r.errs, fmt.Errorf("%s: %w", path, fmt.Errorf(format, args...)))
	}
}

func (r *run) err() error {
	if r.count > maxProblems {
		return errors.Join(append(r.errs, fmt.Errorf("and %d more problems", r.count-maxProblems))...)
	}
	return errors.Join(r.errs...)
}

// unpack decodes an Any that must hold a message of m's type.
func unpack(a *anypb.Any, m proto.Message) error {
	if a == nil {
		return errors.New("missing")
	}
	want := m.ProtoReflect().Descriptor().FullName()
	if a.MessageName() != want {
		return fmt.Errorf("is a %q, want %q", a.MessageName(), want)
	}
	return proto.UnmarshalOptions{RecursionLimit: 100}.Unmarshal(a.GetValue(), m)
}

// resource decodes and checks the outermost message of a resource.
func resource(a *anypb.Any, m proto.Message) error {
	if err := unpack(a, m); err != nil {
		return err
	}
	return valid(m)
}

// valid applies the rules that the protobuf definitions themselves carry.
func valid(m proto.Message) error {
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return fmt.Errorf("constraint: %w", err)
		}
	}
	return nil
}

// only reports fields of m that are set and not listed.
func (r *run) only(path string, m proto.Message, supported, ignored string) {
	if m == nil || !m.ProtoReflect().IsValid() {
		return
	}
	known := strings.Fields(supported + " " + ignored)
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if name := string(f.Name()); !slices.Contains(known, name) {
			r.errorf(join(path, name), "not supported")
		}
		return true
	})
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

// extension decodes the typed configuration of an extension, straight or
// wrapped in a TypedStruct, and checks it.
func (r *run) extension(path string, a *anypb.Any, m proto.Message) bool {
	a, err := untype(a)
	if err == nil {
		err = unpack(a, m)
	}
	if err == nil {
		err = valid(m)
	}
	if err != nil {
		r.errorf(path, "%w", err)
		return false
	}
	return true
}

// untype turns a TypedStruct into the message that it describes.
func untype(a *anypb.Any) (*anypb.Any, error) {
	if a == nil {
		return nil, errors.New("missing")
	}
	var url string
	var value *structpb.Struct
	switch a.MessageName() {
	case "xds.type.v3.TypedStruct":
		var t xdstype.TypedStruct
		if err := unpack(a, &t); err != nil {
			return nil, err
		}
		url, value = t.GetTypeUrl(), t.GetValue()
	case "udpa.type.v1.TypedStruct":
		var t udpatype.TypedStruct
		if err := unpack(a, &t); err != nil {
			return nil, err
		}
		url, value = t.GetTypeUrl(), t.GetValue()
	default:
		return a, nil
	}
	b, err := protojson.Marshal(value)
	if err != nil {
		return nil, err
	}
	m, err := (&anypb.Any{TypeUrl: url}).UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("unknown type %q", url)
	}
	if err := protojson.Unmarshal(b, m); err != nil {
		return nil, err
	}
	return anypb.New(m)
}

// typeOf returns the message name of an extension's configuration.
func typeOf(a *anypb.Any) string {
	if u, err := untype(a); err == nil {
		return string(u.MessageName())
	}
	return ""
}

// duration returns d, or def if it is not set.
func (r *run) duration(path string, d *durationpb.Duration, def time.Duration) time.Duration {
	if d == nil {
		return def
	}
	if err := d.CheckValid(); err != nil {
		r.errorf(path, "%w", err)
		return def
	}
	v := d.AsDuration()
	if v < 0 {
		r.errorf(path, "negative duration %v", v)
		return def
	}
	return v
}

func u32(v *wrapperspb.UInt32Value, def uint32) uint32 {
	if v == nil {
		return def
	}
	return v.GetValue()
}

func boolean(v *wrapperspb.BoolValue, def bool) bool {
	if v == nil {
		return def
	}
	return v.GetValue()
}

// maxBuffer bounds configured buffer limits.
const maxBuffer = 1 << 30

func (r *run) bufferLimit(path string, v *wrapperspb.UInt32Value) int {
	n := u32(v, model.DefaultBufferLimit)
	if n > maxBuffer {
		r.errorf(path, "%d is more than %d", n, maxBuffer)
		return model.DefaultBufferLimit
	}
	return int(n)
}

// address decodes an address. Names stands for host names being allowed.
func (r *run) address(path string, a *corev3.Address, names bool) model.Address {
	r.only(path, a, "socket_address pipe", "")
	switch {
	case a.GetSocketAddress() != nil:
		s := a.GetSocketAddress()
		p := join(path, "socket_address")
		r.only(p, s, "protocol address port_value ipv4_compat", "")
		if s.GetProtocol() != corev3.SocketAddress_TCP {
			r.errorf(join(p, "protocol"), "%v is not supported", s.GetProtocol())
		}
		if s.GetPortValue() > math.MaxUint16 {
			r.errorf(join(p, "port_value"), "%d is no port", s.GetPortValue())
		}
		host := s.GetAddress()
		if ip, err := netip.ParseAddr(host); err == nil {
			host = ip.String()
		} else if !names {
			r.errorf(join(p, "address"), "%q is no IP address", host)
		} else if !hostName(host) {
			r.errorf(join(p, "address"), "%q is neither an IP address nor a host name", host)
		}
		return model.Address{Host: host, Port: uint16(s.GetPortValue())}
	case a.GetPipe() != nil:
		p := a.GetPipe()
		if p.GetPath() == "" || strings.IndexByte(p.GetPath(), 0) >= 0 {
			r.errorf(join(path, "pipe.path"), "%q is no path", p.GetPath())
		}
		return model.Address{Path: p.GetPath(), Mode: os.FileMode(p.GetMode() & 0o777)}
	}
	r.errorf(path, "no socket_address and no pipe")
	return model.Address{}
}

// hostName reports whether s can be asked of DNS.
func hostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for _, c := range []byte(s) {
		ok := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
		if !ok {
			return false
		}
	}
	return true
}

func (r *run) prefix(path string, c *corev3.CidrRange) netip.Prefix {
	ip, err := netip.ParseAddr(c.GetAddressPrefix())
	if err != nil {
		r.errorf(join(path, "address_prefix"), "%q is no IP address", c.GetAddressPrefix())
		return netip.Prefix{}
	}
	ip = ip.Unmap().WithZone("")
	n := u32(c.GetPrefixLen(), 0)
	if n > uint32(ip.BitLen()) {
		r.errorf(join(path, "prefix_len"), "%d is longer than the address", n)
		return netip.Prefix{}
	}
	return netip.PrefixFrom(ip, int(n)).Masked()
}

func (r *run) prefixes(path string, list []*corev3.CidrRange) []netip.Prefix {
	var out []netip.Prefix
	for i, c := range list {
		out = append(out, r.prefix(index(path, i), c))
	}
	return out
}

func (r *run) stringMatch(path string, m *matcherv3.StringMatcher) model.StringMatch {
	r.only(path, m, "exact prefix suffix contains safe_regex ignore_case", "")
	kind, pattern := model.MatchNothing, ""
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		kind, pattern = model.MatchExact, p.Exact
	case *matcherv3.StringMatcher_Prefix:
		kind, pattern = model.MatchPrefix, p.Prefix
	case *matcherv3.StringMatcher_Suffix:
		kind, pattern = model.MatchSuffix, p.Suffix
	case *matcherv3.StringMatcher_Contains:
		kind, pattern = model.MatchContains, p.Contains
	case *matcherv3.StringMatcher_SafeRegex:
		kind, pattern = model.MatchRegex, p.SafeRegex.GetRegex()
	}
	sm, err := model.NewStringMatch(kind, pattern, m.GetIgnoreCase() && kind != model.MatchRegex)
	if err != nil {
		r.errorf(path, "%w", err)
	}
	return sm
}

// maxSource bounds what a data source may hold.
const maxSource = 4 << 20

// source returns the content of a data source; set tells whether there is one.
func (r *run) source(path string, s *corev3.DataSource) (b []byte, set bool) {
	if s == nil {
		return nil, false
	}
	r.only(path, s, "filename inline_bytes inline_string environment_variable", "watched_directory")
	switch s := s.GetSpecifier().(type) {
	case *corev3.DataSource_InlineBytes:
		b = s.InlineBytes
	case *corev3.DataSource_InlineString:
		b = []byte(s.InlineString)
	case *corev3.DataSource_Filename:
		if r.d.opt.ReadFile == nil {
			r.errorf(join(path, "filename"), "files may not be read here")
			return nil, false
		}
		var err error
		if b, err = r.d.opt.ReadFile(s.Filename); err != nil {
			r.errorf(join(path, "filename"), "%w", err)
			return nil, false
		}
	case *corev3.DataSource_EnvironmentVariable:
		if r.d.opt.Getenv == nil {
			r.errorf(join(path, "environment_variable"), "the environment may not be read here")
			return nil, false
		}
		b = []byte(r.d.opt.Getenv(s.EnvironmentVariable))
	}
	if len(b) > maxSource {
		r.errorf(path, "%d bytes, at most %d are allowed", len(b), maxSource)
		return nil, false
	}
	return b, true
}

// remember returns what make gives for the key, made at most once in a while.
func remember[T any](d *Decoder, key [sha256.Size]byte, size int, make func() (T, error)) (T, error) {
	d.mu.Lock()
	v, ok := d.parsed[key].(T)
	d.mu.Unlock()
	if ok {
		return v, nil
	}
	v, err := make()
	if err != nil {
		return v, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.parseds += size; d.parseds > maxSource {
		clear(d.parsed)
		d.parseds = size
	}
	d.parsed[key] = v
	return v, nil
}

// JSON returns a resource as JSON, with private keys and tokens struck out.
func JSON(a *anypb.Any) (json.RawMessage, error) {
	m, err := a.UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.GetTypeUrl(), err)
	}
	if m, err = redact(m, 0); err != nil {
		return nil, err
	}
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	var typed map[string]json.RawMessage
	if err := json.Unmarshal(b, &typed); err != nil {
		return nil, err
	}
	if typed == nil {
		typed = map[string]json.RawMessage{}
	}
	typed["@type"], _ = json.Marshal(a.GetTypeUrl())
	return json.Marshal(typed)
}

// secretFields are fields whose content never leaves the proxy, by message.
var secretFields = map[protoreflect.FullName]string{
	"envoy.extensions.transport_sockets.tls.v3.TlsCertificate":       "private_key password pkcs12",
	"envoy.extensions.transport_sockets.tls.v3.GenericSecret":        "secret secrets",
	"envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys": "keys",
	"envoy.extensions.filters.http.jwt_authn.v3.JwtProvider":         "local_jwks", // which may hold symmetric keys
	"envoy.extensions.filters.http.basic_auth.v3.BasicAuth":          "users",
	"envoy.extensions.filters.http.basic_auth.v3.BasicAuthPerRoute":  "users",
}

var secretHeader = regexp.MustCompile(`(?i)token|authorization|secret|cookie|api-?key|password`)

// redact returns a copy of m without secrets, also within Any fields.
func redact(m proto.Message, depth int) (proto.Message, error) {
	if depth > 16 {
		return nil, errors.New("messages nest too deep")
	}
	m = proto.Clone(m)
	return m, redactIn(m.ProtoReflect(), depth)
}

func redactIn(m protoreflect.Message, depth int) error {
	if depth > 100 {
		return errors.New("messages nest too deep")
	}
	if a, ok := m.Interface().(*anypb.Any); ok {
		inner, err := a.UnmarshalNew()
		if err != nil {
			// Not to be looked into, so not to be shown.
			a.TypeUrl, a.Value = "type.googleapis.com/google.protobuf.Empty", nil
			return nil
		}
		if inner, err = redact(inner, depth+1); err != nil {
			return err
		}
		return a.MarshalFrom(inner)
	}
	if h, ok := m.Interface().(*corev3.HeaderValue); ok && secretHeader.MatchString(h.GetKey()) {
		h.Value, h.RawValue = "[redacted]", nil
	}
	hidden := strings.Fields(secretFields[m.Descriptor().FullName()])
	var err error
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case slices.Contains(hidden, string(f.Name())):
			m.Clear(f)
			if f.Message() != nil && !f.IsList() && !f.IsMap() && f.Message().FullName() == "envoy.config.core.v3.DataSource" {
				m.Set(f, protoreflect.ValueOfMessage((&corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: "[redacted]"}}).ProtoReflect()))
			}
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, x protoreflect.Value) bool {
					err = redactIn(x.Message(), depth+1)
					return err == nil
				})
			}
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				if err = redactIn(v.List().Get(i).Message(), depth+1); err != nil {
					break
				}
			}
		default:
			err = redactIn(v.Message(), depth+1)
		}
		return err == nil
	})
	return err
}
