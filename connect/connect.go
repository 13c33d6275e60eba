// Package connect holds the names of the mesh: trust domains, the SPIFFE IDs on certificates, and the server names
// (SNI) that proxies and gateways route by (spec/connect.md section 4).
//
// The package is pure and uses the standard library only, so that the data plane can share it.
package connect

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// TrustDomain returns the trust domain of the cluster with this ID. The suffix is fixed, whatever the DNS domain.
func TrustDomain(clusterID string) string { return strings.ToLower(clusterID) + ".consul" }

// SameTrustDomain compares trust domains, without regard to case.
func SameTrustDomain(a, b string) bool { return strings.EqualFold(a, b) }

// A Kind says what an identity stands for.
type Kind uint8

// The kinds of identities.
const (
	_ Kind = iota
	Service
	Agent
	MeshGateway
	Server
	CA // the trust domain itself: the name on CA certificates
)

// String names the kind as error texts do.
func (k Kind) String() string {
	switch k {
	case Service:
		return "service"
	case Agent:
		return "agent"
	case MeshGateway:
		return "mesh gateway"
	case Server:
		return "server"
	case CA:
		return "CA"
	}
	return "unknown"
}

// An ID is a SPIFFE ID of one of the kinds. IDs are comparable; the zero ID names nothing. Make one with a constructor
// or ParseID.
type ID struct {
	kind             Kind
	trustDomain      string // lower case
	datacenter, name string
}

// ServiceID names a service. Gateways other than mesh gateways are services in this respect.
func ServiceID(trustDomain, datacenter, service string) ID {
	return ID{kind: Service, trustDomain: strings.ToLower(trustDomain), datacenter: datacenter, name: service}
}

// AgentID names the agent of a node.
func AgentID(trustDomain, datacenter, node string) ID {
	return ID{kind: Agent, trustDomain: strings.ToLower(trustDomain), datacenter: datacenter, name: node}
}

// MeshGatewayID names the mesh gateways of a datacenter.
func MeshGatewayID(trustDomain, datacenter string) ID {
	return ID{kind: MeshGateway, trustDomain: strings.ToLower(trustDomain), datacenter: datacenter}
}

// ServerID names the servers of a datacenter.
func ServerID(trustDomain, datacenter string) ID {
	return ID{kind: Server, trustDomain: strings.ToLower(trustDomain), datacenter: datacenter}
}

// CAID names the authority of a trust domain.
func CAID(trustDomain string) ID { return ID{kind: CA, trustDomain: strings.ToLower(trustDomain)} }

// Kind returns what the ID stands for, 0 for the zero ID.
func (id ID) Kind() Kind { return id.kind }

// TrustDomain returns the trust domain in lower case.
func (id ID) TrustDomain() string { return id.trustDomain }

// Datacenter returns the datacenter, empty for a CA.
func (id ID) Datacenter() string { return id.datacenter }

// Name returns the service or node name, empty for other kinds.
func (id ID) Name() string { return id.name }

// String returns the URI in the one form that is put on certificates.
func (id ID) String() string {
	dc, name := url.PathEscape(id.datacenter), url.PathEscape(id.name)
	switch id.kind {
	case Service:
		return "spiffe://" + id.trustDomain + "/ns/default/dc/" + dc + "/svc/" + name
	case Agent:
		return "spiffe://" + id.trustDomain + "/agent/client/dc/" + dc + "/id/" + name
	case MeshGateway:
		return "spiffe://" + id.trustDomain + "/gateway/mesh/dc/" + dc
	case Server:
		return "spiffe://" + id.trustDomain + "/agent/server/dc/" + dc
	case CA:
		return "spiffe://" + id.trustDomain
	}
	return ""
}

// URL returns the URI for an x509 certificate.
func (id ID) URL() *url.URL {
	u, err := url.Parse(id.String())
	if err != nil {
		// Every part was escaped or checked.
		panic(fmt.Sprintf("connect: SPIFFE ID %q: %v", id.String(), err))
	}
	return u
}

// ErrNotID reports text that is no SPIFFE ID of this mesh.
var ErrNotID = errors.New("not a valid Connect identifier")

// ParseID reads a SPIFFE ID. It is strict: what is not exactly one of the forms of the kinds, in the default namespace,
// is an error that wraps ErrNotID.
func ParseID(uri string) (ID, error) {
	rest, ok := strings.CutPrefix(uri, "spiffe://")
	if !ok {
		return ID{}, fmt.Errorf("%w: the scheme is not spiffe", ErrNotID)
	}
	domain, path, hasPath := strings.Cut(rest, "/")
	if err := checkTrustDomain(domain); err != nil {
		return ID{}, fmt.Errorf("%w: %w", ErrNotID, err)
	}
	if !hasPath {
		return CAID(domain), nil
	}
	parts := strings.Split(path, "/")
	for i, p := range parts {
		if strings.ContainsAny(p, "?#") {
			return ID{}, fmt.Errorf("%w: it has a query or fragment", ErrNotID)
		}
		clean, err := url.PathUnescape(p)
		if err != nil {
			return ID{}, fmt.Errorf("%w: %w", ErrNotID, err)
		}
		if clean == "" || clean == "." || clean == ".." || strings.ContainsFunc(clean, isControl) {
			return ID{}, fmt.Errorf("%w: invalid path part %q", ErrNotID, p)
		}
		parts[i] = clean
	}
	// Names of the default partition may be prefixed with it.
	if len(parts) > 2 && parts[0] == "ap" && parts[1] == "default" {
		parts = parts[2:]
	}
	switch {
	case match(parts, "ns", "default", "dc", "", "svc", ""):
		return ServiceID(domain, parts[3], parts[5]), nil
	case match(parts, "agent", "client", "dc", "", "id", ""):
		return AgentID(domain, parts[3], parts[5]), nil
	case match(parts, "gateway", "mesh", "dc", ""):
		return MeshGatewayID(domain, parts[3]), nil
	case match(parts, "agent", "server", "dc", ""):
		return ServerID(domain, parts[3]), nil
	}
	return ID{}, fmt.Errorf("%w: the path has no known form", ErrNotID)
}

// match compares the parts of a path with a form whose empty parts stand for anything.
func match(parts []string, form ...string) bool {
	if len(parts) != len(form) {
		return false
	}
	for i, f := range form {
		if f != "" && f != parts[i] {
			return false
		}
	}
	return true
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

// checkTrustDomain allows what the SPIFFE standard does, in either case: letters, digits, dot, dash and underscore.
func checkTrustDomain(s string) error {
	if s == "" || len(s) > 255 {
		return errors.New("the trust domain is empty or too long")
	}
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '-', c == '_':
		default:
			return fmt.Errorf("invalid character %q in the trust domain", c)
		}
	}
	return nil
}
