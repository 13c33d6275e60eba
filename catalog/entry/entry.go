// Package entry holds configuration entries: what operators say about services, proxies, gateways and who may talk to
// whom. A kind gets a file with its form, its defaults and its rules (spec/connect.md sections 7 and 8); rules that
// concern several entries at once are in server/configrpc.
//
// The package is pure: types and rules. JSON tags give the form of the API; the same names are used in the Raft log.
package entry

import (
	"fmt"

	"github.com/sarnmesh/sarn/catalog"
)

// A Kind names a kind of entry.
type Kind string

// The kinds.
const (
	KindServiceDefaults       Kind = "service-defaults"
	KindProxyDefaults         Kind = "proxy-defaults"
	KindServiceRouter         Kind = "service-router"
	KindServiceSplitter       Kind = "service-splitter"
	KindServiceResolver       Kind = "service-resolver"
	KindServiceIntentions     Kind = "service-intentions"
	KindMesh                  Kind = "mesh"
	KindIngressGateway        Kind = "ingress-gateway"
	KindTerminatingGateway    Kind = "terminating-gateway"
	KindExportedServices      Kind = "exported-services"
	KindSamenessGroup         Kind = "sameness-group" // known by name, always refused
	KindAPIGateway            Kind = "api-gateway"
	KindBoundAPIGateway       Kind = "bound-api-gateway" // written by the leader only
	KindHTTPRoute             Kind = "http-route"
	KindTCPRoute              Kind = "tcp-route"
	KindInlineCertificate     Kind = "inline-certificate"
	KindFileSystemCertificate Kind = "file-system-certificate"
	KindJWTProvider           Kind = "jwt-provider"
)

// Names of the kinds of which there is one entry.
const (
	ProxyDefaultsName    = "global"
	MeshName             = "mesh"
	ExportedServicesName = "default"
)

// Wildcard stands for every name where a kind allows it.
const Wildcard = "*"

// A Header is what all entries have in common; they embed it.
type Header struct {
	Kind Kind
	Name string            `json:",omitempty"` // empty for mesh, whose name is fixed
	Meta map[string]string `json:",omitempty"`
	// Hash is of the content without indexes. The store sets it.
	Hash uint64
	catalog.Indexes
}

// Head returns h; it makes an Entry of what embeds a Header.
func (h *Header) Head() *Header { return h }

// Normalize does nothing; kinds with defaults replace it.
func (h *Header) Normalize() {}

// Validate finds nothing wrong; kinds with rules replace it.
func (h *Header) Validate() error { return nil }

// An Entry is one configuration entry: a pointer to the struct of its kind. Entries read from a store are shared.
type Entry interface {
	Head() *Header
	// Normalize fills in defaults and brings values into the form they are kept in. It is idempotent.
	Normalize()
	// Validate checks a normalized entry on its own.
	Validate() error
}

// A Key identifies an entry.
type Key struct {
	Kind Kind
	Name string
}

// KeyOf returns the key of an entry.
func KeyOf(e Entry) Key {
	h := e.Head()
	if h.Kind == KindMesh {
		return Key{KindMesh, MeshName}
	}
	return Key{h.Kind, h.Name}
}

// kinds makes an empty entry of each kind.
var kinds = map[Kind]func() Entry{
	KindServiceDefaults:       func() Entry { return new(ServiceDefaults) },
	KindProxyDefaults:         func() Entry { return new(ProxyDefaults) },
	KindServiceRouter:         func() Entry { return new(ServiceRouter) },
	KindServiceSplitter:       func() Entry { return new(ServiceSplitter) },
	KindServiceResolver:       func() Entry { return new(ServiceResolver) },
	KindServiceIntentions:     func() Entry { return new(ServiceIntentions) },
	KindMesh:                  func() Entry { return new(Mesh) },
	KindIngressGateway:        func() Entry { return new(IngressGateway) },
	KindTerminatingGateway:    func() Entry { return new(TerminatingGateway) },
	KindExportedServices:      func() Entry { return new(ExportedServices) },
	KindSamenessGroup:         func() Entry { return new(SamenessGroup) },
	KindAPIGateway:            func() Entry { return new(APIGateway) },
	KindBoundAPIGateway:       func() Entry { return new(BoundAPIGateway) },
	KindHTTPRoute:             func() Entry { return new(HTTPRoute) },
	KindTCPRoute:              func() Entry { return new(TCPRoute) },
	KindInlineCertificate:     func() Entry { return new(InlineCertificate) },
	KindFileSystemCertificate: func() Entry { return new(FileSystemCertificate) },
	KindJWTProvider:           func() Entry { return new(JWTProvider) },
}

// Kinds lists every kind, in no order that means anything but always the same.
func Kinds() []Kind {
	return []Kind{
		KindServiceDefaults, KindProxyDefaults, KindServiceRouter, KindServiceSplitter, KindServiceResolver,
		KindIngressGateway, KindTerminatingGateway, KindServiceIntentions, KindMesh, KindExportedServices,
		KindSamenessGroup, KindAPIGateway, KindBoundAPIGateway, KindInlineCertificate, KindFileSystemCertificate,
		KindHTTPRoute, KindTCPRoute, KindJWTProvider,
	}
}

// Known reports whether k is a kind.
func (k Kind) Known() bool { _, ok := kinds[k]; return ok }

// New returns an empty entry of a kind.
func New(k Kind) (Entry, error) {
	make, ok := kinds[k]
	if !ok {
		return nil, fmt.Errorf("invalid config entry kind: %s", k)
	}
	e := make()
	e.Head().Kind = k
	return e, nil
}
