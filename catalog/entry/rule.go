package entry

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode"

	"github.com/sarnmesh/sarn/catalog"
)

// An errorList reports several problems in the form clients know.
type errorList []error

func (l *errorList) add(err error) {
	if err != nil {
		*l = append(*l, err)
	}
}

func (l *errorList) addf(format string, args ...any) { *l = append(*l, fmt.Errorf(format, args...)) }

// err returns the list as an error, nil when it is empty.
func (l errorList) err() error {
	if len(l) == 0 {
		return nil
	}
	return l
}

func (l errorList) Error() string {
	var b strings.Builder
	if len(l) == 1 {
		b.WriteString("1 error occurred:")
	} else {
		fmt.Fprintf(&b, "%d errors occurred:", len(l))
	}
	for _, err := range l {
		b.WriteString("\n\t* ")
		b.WriteString(err.Error())
	}
	b.WriteString("\n\n")
	return b.String()
}

// Unwrap returns the problems.
func (l errorList) Unwrap() []error { return l }

var errName = errors.New("Name is required")

// Bounds of an entry's Meta.
const (
	maxMeta      = 64
	maxMetaKey   = 128
	maxMetaValue = 512
)

// CheckHeader checks what all kinds have in common.
func CheckHeader(e Entry) error {
	if strings.ContainsFunc(e.Head().Name, unicode.IsControl) {
		return errors.New("Name contains control characters")
	}
	meta := e.Head().Meta
	var problems errorList
	if len(meta) > maxMeta {
		problems.addf("Meta exceeds maximum element count %d", maxMeta)
	}
	for _, k := range sortedKeys(meta) {
		if len(k) > maxMetaKey {
			problems.addf("Meta key %q exceeds maximum length %d", k, maxMetaKey)
		}
		if len(meta[k]) > maxMetaValue {
			problems.addf("Meta value for key %q exceeds maximum length %d", k, maxMetaValue)
		}
	}
	return problems.err()
}

// Protocols of services.
const (
	TCP   = "tcp"
	HTTP  = "http"
	HTTP2 = "http2"
	GRPC  = "grpc"
)

// HTTPLike reports whether requests of a protocol can be routed one by one.
func HTTPLike(protocol string) bool {
	return protocol == HTTP || protocol == HTTP2 || protocol == GRPC
}

func checkProtocol(p string) error {
	if p == "" || p == TCP || HTTPLike(p) {
		return nil
	}
	return fmt.Errorf("invalid value for protocol: %s", p)
}

// Modes of mutual TLS.
const (
	MutualTLSStrict     = "strict"
	MutualTLSPermissive = "permissive"
)

func checkMutualTLS(mode string) error {
	switch mode {
	case "", MutualTLSStrict, MutualTLSPermissive:
		return nil
	}
	return fmt.Errorf("Invalid MutualTLSMode %q. Must be one of \"\", \"strict\", or \"permissive\".", mode)
}

// Modes of proxies.
const (
	ModeDirect      = "direct"
	ModeTransparent = "transparent"
)

func checkMode(mode string) error {
	switch mode {
	case "", ModeDirect, ModeTransparent:
		return nil
	}
	return fmt.Errorf("invalid value for Mode: %s", mode)
}

func checkMeshGateway(g catalog.MeshGateway) error {
	switch g.Mode {
	case "", "none", "local", "remote":
		return nil
	}
	return fmt.Errorf("Invalid MeshGateway mode %q. Must be one of \"\", \"none\", \"local\", or \"remote\".", g.Mode)
}

func normalizeExpose(e *catalog.Expose) {
	for i := range e.Paths {
		if e.Paths[i].Protocol == "" {
			e.Paths[i].Protocol = HTTP
		}
	}
}

func checkExpose(e catalog.Expose) error {
	var problems errorList
	ports := map[int]bool{}
	for _, p := range e.Paths {
		switch {
		case p.Path == "":
			problems.addf("expose.paths: empty path exposed")
		case ports[p.ListenerPort]:
			problems.addf("expose.paths: duplicate listener ports exposed")
		case p.ListenerPort <= 0 || p.ListenerPort > 65535:
			problems.addf("expose.paths: invalid listener port: %d", p.ListenerPort)
		}
		ports[p.ListenerPort] = true
		if p.Protocol != HTTP && p.Protocol != HTTP2 {
			problems.addf("protocol '%s' not supported for path: %s, must be in: http, http2", p.Protocol, p.Path)
		}
	}
	return problems.err()
}

// extensions are the Envoy extensions the resource compiler knows.
var extensions = []string{
	"builtin/aws/lambda", "builtin/ext-authz", "builtin/lua", "builtin/otel-access-logging", "builtin/property-override",
	"builtin/wasm",
}

func checkExtensions(list []catalog.EnvoyExtension) error {
	var problems errorList
	for i, x := range list {
		if !slices.Contains(extensions, x.Name) {
			problems.addf("invalid EnvoyExtensions[%d][%s]: name %q is not a built-in extension", i, x.Name, x.Name)
		}
	}
	return problems.err()
}

// lower is for enumerations whose values users write in any case.
func lower(s string) string { return strings.ToLower(s) }

// methods are the HTTP methods rules may name.
var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"}

func upperAll(list []string) {
	for i, m := range list {
		list[i] = strings.ToUpper(m)
	}
}

// checkMethods checks a list of methods in upper case; prefix names the field.
func checkMethods(prefix string, list []string) error {
	for i, m := range list {
		if !slices.Contains(methods, m) {
			return fmt.Errorf("%s contains an invalid method %q", prefix, m)
		}
		if slices.Contains(list[:i], m) {
			return fmt.Errorf("%s contains %q more than once", prefix, m)
		}
	}
	return nil
}

// count returns how many facts are true.
func count(facts ...bool) (n int) {
	for _, f := range facts {
		if f {
			n++
		}
	}
	return n
}

// isHostname reports whether s is a DNS name, which an IP address is not.
func isHostname(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return false
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if !isLabel(label) {
			return false
		}
	}
	return true
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// Problems returns texts as one error in the form clients know, nil when there are none.
func Problems(texts []string) error {
	var list errorList
	for _, t := range texts {
		list.addf("%s", t)
	}
	return list.err()
}
