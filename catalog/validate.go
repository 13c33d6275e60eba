package catalog

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// Problems are all the rules an object breaks at once. The text is that of spec/registry.md section 4.3.
type Problems []string

func (p Problems) Error() string {
	noun := "errors"
	if len(p) == 1 {
		noun = "error"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s occurred:\n", len(p), noun)
	for _, text := range p {
		b.WriteString("\t* " + text + "\n")
	}
	b.WriteString("\n")
	return b.String()
}

func (p *Problems) addf(format string, args ...any) { *p = append(*p, fmt.Sprintf(format, args...)) }

// err returns p as an error, nil when there is no problem.
func (p Problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

// Validate checks the structure rules that agents and the catalog share (spec/registry.md section 4.5). The error is
// a Problems with everything that is wrong.
func (s *Service) Validate() error { return s.validate(false) }

// ValidateNested is Validate for the block of a nested sidecar, whose port is assigned later.
func (s *Service) ValidateNested() error { return s.validate(true) }

func (s *Service) validate(nested bool) error {
	var p Problems
	if l := s.Locality; l != nil && l.Zone != "" && l.Region == "" {
		p.addf("zone cannot be set without region")
	}
	s.Proxy.validateSettings(&p)
	if s.Kind == KindConnectProxy {
		s.validateSidecar(&p, nested)
	}
	if s.Connect.Native && s.Kind != KindConnectProxy && s.Port == 0 && s.SocketPath == "" {
		p.addf("Port or SocketPath must be set for a Connect native service.")
	}
	if IsGateway(s.Kind) {
		s.validateGateway(&p)
	}
	return p.err()
}

// MaxDepth bounds how deeply free-form settings may be nested. What stores and carries them has a limit above it, which
// one setting must not exceed: nothing that holds it could be read any more.
const MaxDepth = 24

// TooDeep reports whether a free-form setting is nested deeper than MaxDepth.
func TooDeep(v any) bool { return deeper(v, MaxDepth) }

// deeper reports whether v has more levels of lists and maps than given.
func deeper(v any, levels int) bool {
	switch v := v.(type) {
	case map[string]any:
		for _, item := range v {
			if levels == 0 || deeper(item, levels-1) {
				return true
			}
		}
	case []any:
		for _, item := range v {
			if levels == 0 || deeper(item, levels-1) {
				return true
			}
		}
	}
	return false
}

func (x *Proxy) validateSettings(p *Problems) {
	if TooDeep(x.Config) {
		p.addf("Proxy.Config is nested too deeply")
	}
	for i := range x.Upstreams {
		if u := &x.Upstreams[i]; TooDeep(u.Config) {
			p.addf("Config of the upstream %q is nested too deeply", u.DestinationName)
		}
	}
	for i := range x.EnvoyExtensions {
		if e := &x.EnvoyExtensions[i]; TooDeep(e.Arguments) {
			p.addf("Arguments of the Envoy extension %q are nested too deeply", e.Name)
		}
	}
}

// IsGateway reports whether instances of this kind are gateways.
func IsGateway(kind string) bool {
	switch kind {
	case KindMeshGateway, KindTerminatingGateway, KindIngressGateway, KindAPIGateway:
		return true
	}
	return false
}

func (s *Service) validateSidecar(p *Problems, nested bool) {
	if s.Port == 0 && s.SocketPath == "" && !nested {
		p.addf("Port or SocketPath must be set for a %s", s.Kind)
	}
	switch strings.TrimSpace(s.Proxy.DestinationServiceName) {
	case "":
		if !nested {
			p.addf("Proxy.DestinationServiceName must be non-empty for Connect proxy services")
		}
	case "*":
		p.addf("Proxy.DestinationServiceName must not be a wildcard for Connect proxy services")
	}
	if s.Connect.Native {
		p.addf("A Proxy cannot also be Connect Native, only typical services")
	}
	type destination struct{ kind, name, partition, namespace, peer, datacenter string }
	names, binds := map[destination]bool{}, map[string]bool{}
	for i := range s.Proxy.Upstreams {
		u := &s.Proxy.Upstreams[i]
		if err := u.Validate(); err != nil {
			p.addf("%v", err)
			continue
		}
		bind := u.LocalBindSocketPath
		if bind == "" {
			bind = net.JoinHostPort(cmp.Or(u.LocalBindAddress, "127.0.0.1"), strconv.Itoa(u.LocalBindPort))
		}
		if binds[bind] {
			p.addf("upstreams cannot contain duplicates by local bind address and port or unix path; %q is specified twice", bind)
			continue
		}
		binds[bind] = true
		d := destination{cmp.Or(u.DestinationType, "service"), u.DestinationName, u.DestinationPartition, u.DestinationNamespace, u.DestinationPeer, u.Datacenter}
		if names[d] {
			p.addf("upstreams cannot contain duplicates of [type=%q, name=%q, partition=%q, namespace=%q, peer=%q, datacenter=%q]",
				d.kind, d.name, d.partition, d.namespace, d.peer, d.datacenter)
			continue
		}
		names[d] = true
	}
	s.Proxy.Expose.validate(p)
}

// Validate checks one upstream; the error is the first rule it breaks.
func (u *Upstream) Validate() error {
	switch u.DestinationType {
	case "", "service", "prepared_query":
	default:
		return fmt.Errorf("unknown upstream destination type: %q", u.DestinationType)
	}
	switch {
	case u.DestinationName == "":
		return errors.New("upstream destination name cannot be empty")
	case u.DestinationName == "*":
		return errors.New("upstream destination name cannot be a wildcard")
	case u.DestinationPeer != "" && u.Datacenter != "":
		return errors.New("upstream cannot specify both destination peer and datacenter")
	case u.LocalBindPort == 0 && u.LocalBindSocketPath == "":
		return errors.New("upstream local bind port or local socket path must be defined and nonzero")
	case u.LocalBindPort != 0 && u.LocalBindSocketPath != "":
		return errors.New("only one of upstream local bind port or local socket path can be defined and nonzero")
	}
	return nil
}

func (e *Expose) validate(p *Problems) {
	ports := map[int]bool{}
	for _, path := range e.Paths {
		if path.Path == "" {
			p.addf("expose.paths: empty path exposed")
		}
		if ports[path.ListenerPort] {
			p.addf("expose.paths: duplicate listener ports exposed")
		}
		ports[path.ListenerPort] = true
		if path.ListenerPort <= 0 || path.ListenerPort > 65535 {
			p.addf("expose.paths: invalid listener port: %d", path.ListenerPort)
		}
		switch strings.ToLower(path.Protocol) {
		case "", "http", "http2":
		default:
			p.addf("protocol '%s' not supported for path: %s, must be in: [http http2]", path.Protocol, path.Path)
		}
	}
}

func (s *Service) validateGateway(p *Problems) {
	if s.Port == 0 && (s.Kind == KindMeshGateway || s.Kind == KindTerminatingGateway) {
		p.addf("Port must be non-zero for a %s", s.Kind)
	}
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"DestinationServiceName", s.Proxy.DestinationServiceName != ""},
		{"DestinationServiceID", s.Proxy.DestinationServiceID != ""},
		{"LocalServiceAddress", s.Proxy.LocalServiceAddress != ""},
		{"LocalServicePort", s.Proxy.LocalServicePort != 0},
		{"LocalServiceSocketPath", s.Proxy.LocalServiceSocketPath != ""},
		{"Upstreams", len(s.Proxy.Upstreams) > 0},
	} {
		if f.set {
			p.addf("The Proxy.%s configuration is invalid for a %s", f.name, s.Kind)
		}
	}
}

// Validate checks weights that were given; agents refuse bad ones, the catalog replaces them by DefaultWeights.
func (w *Weights) Validate() error {
	switch {
	case w.Passing < 1:
		return errors.New("Passing must be greater than 0")
	case w.Warning < 0:
		return errors.New("Warning must be greater or equal than 0")
	case w.Passing > 65535 || w.Warning > 65535:
		return errors.New("DNS Weight must be between 0 and 65535")
	}
	return nil
}

// DefaultWeights returns the weights of an instance that gives none.
func DefaultWeights() *Weights { return &Weights{Passing: 1, Warning: 1} }

// AnyAddress reports whether addr is one of the addresses that mean every interface, which no instance may announce.
func AnyAddress(addr string) bool { return addr == "0.0.0.0" || addr == "::" || addr == "[::]" }

// Bounds of meta pairs.
const (
	maxMetaPairs = 64
	maxMetaKey   = 128
	maxMetaValue = 512
)

// ValidateMeta checks the meta of a node (kind is empty) or of an instance of some kind (spec/registry.md section 4.4).
func ValidateMeta(meta map[string]string, kind string) error {
	if len(meta) > maxMetaPairs {
		return fmt.Errorf("Node metadata cannot contain more than %d key/value pairs", maxMetaPairs)
	}
	for _, k := range sortedKeys(meta) {
		if err := validateMetaPair(k, meta[k], kind); err != nil {
			return fmt.Errorf("Couldn't load metadata pair ('%s', '%s'): %w", k, meta[k], err)
		}
	}
	return nil
}

func validateMetaPair(key, value, kind string) error {
	if key == "" {
		return errors.New("Key cannot be blank")
	}
	for _, c := range []byte(key) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return errors.New("Key contains invalid characters")
		}
	}
	switch {
	case len(key) > maxMetaKey:
		return fmt.Errorf("Key is too long (limit: %d characters)", maxMetaKey)
	case strings.HasPrefix(key, "consul-") && !(key == "consul-wan-federation" && kind == KindMeshGateway):
		return errors.New("Key prefix 'consul-' is reserved for internal use")
	case len(value) > maxMetaValue:
		return fmt.Errorf("Value is too long (limit: %d characters)", maxMetaValue)
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// CheckType returns the type that a definition gives to a check registered in the catalog: the first of
// spec/registry.md section 6.2 that it names, empty if none.
func (d *CheckDefinition) CheckType() string {
	switch {
	case d.GRPC != "":
		return "grpc"
	case d.HTTP != "":
		return "http"
	case d.TTL != 0:
		return "ttl"
	case d.TCP != "":
		return "tcp"
	case d.UDP != "":
		return "udp"
	case d.AliasNode != "" || d.AliasService != "":
		return "alias"
	case len(d.ScriptArgs) > 0 && d.DockerContainerID != "":
		return "docker"
	case len(d.ScriptArgs) > 0:
		return "script"
	case d.H2PING != "":
		return "h2ping"
	case d.OSService != "":
		return "os_service"
	}
	return ""
}
