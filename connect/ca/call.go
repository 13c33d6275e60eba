package ca

import (
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// The replicated types, for those who know the authority only.
type (
	Root          = trust.Root
	Configuration = trust.Configuration
	ProviderState = trust.ProviderState
)

// Calls to the servers. Handlers are in server/connectrpc.
var (
	RootsCall = rpc.Read[RootsRequest, RootsReply]("ConnectCA.Roots")
	SignCall  = rpc.Leader[SignRequest, SignReply]("ConnectCA.Sign")
	// SignServerCall is for a server's own certificate. It needs no right of a token, but the secret of the servers.
	SignServerCall = rpc.Leader[SignRequest, SignReply]("ConnectCA.SignServer")
	ConfigCall     = rpc.Read[ConfigRequest, ConfigReply]("ConnectCA.Configuration")
	// SignIntermediateCall is for servers of other datacenters.
	SignIntermediateCall = rpc.Leader[SignIntermediateRequest, SignIntermediateReply]("ConnectCA.SignIntermediate")
	SetConfigCall        = rpc.Write[SetConfigRequest, struct{}]("ConnectCA.SetConfiguration")
)

// A RootsRequest asks for the trusted roots. It needs no permission.
type RootsRequest struct{ read.Options }

// RootsReply has the roots, active and rotated out, in the order of their IDs.
type RootsReply struct {
	read.Meta
	ActiveRootID string
	TrustDomain  string
	Roots        []*Root
}

// Active returns the active root, nil when there is none.
func (r *RootsReply) Active() *Root {
	for _, root := range r.Roots {
		if root.Active {
			return root
		}
	}
	return nil
}

// A SignRequest asks for a leaf certificate. Of the request only its public key and its one SPIFFE ID are used.
type SignRequest struct {
	read.Target
	CSR string // PEM
	// Hosts are DNS names to put on the leaf of an ingress gateway, whose entry must name them, or of an agent; see
	// CheckAgentNames.
	Hosts []string `json:",omitempty"`
	// IPs are addresses to put on the leaf of an agent. Only the built-in provider does.
	IPs []string `json:",omitempty"`
	// Secret is what servers alone know of one another, for SignServerCall.
	Secret string `json:",omitempty"`
}

// SignReply carries the leaf, without its private key, which the servers never see.
type SignReply struct{ Leaf Leaf }

// A SignIntermediateRequest asks for the certificate that the servers of another datacenter sign their leaves with. It
// needs operator:write. Of the request only the public key is used; its one URI must be the trust domain.
type SignIntermediateRequest struct {
	read.Target
	CSR           string // PEM, made with NewCSR for connect.CAID
	ForDatacenter string // whose servers ask
}

// SignIntermediateReply carries the certificate, and the ID of the root that signed it.
type SignIntermediateReply struct {
	Certificate string // PEM
	RootID      string
}

// A Leaf is a certificate for a service, an agent, mesh gateways or servers; which, its one non-empty URI field tells.
// Leaves are shared; copy one before changing it.
type Leaf struct {
	SerialNumber  string // hex, bytes separated by colons
	CertPEM       string // the leaf, then intermediates
	PrivateKeyPEM string `json:",omitempty" cbor:"-"` // filled in by the agent that made it
	Service       string `json:",omitempty"`
	ServiceURI    string `json:",omitempty"`
	Agent         string `json:",omitempty"`
	AgentURI      string `json:",omitempty"`
	Kind          string `json:",omitempty"` // "mesh-gateway"
	KindURI       string `json:",omitempty"`
	ServerURI     string `json:",omitempty"`
	ValidAfter    time.Time
	ValidBefore   time.Time
	// RootID is the ID of the root that was active when it was signed.
	RootID string `json:"-" cbor:"RootID,omitempty"`
	catalog.Indexes
}

// A ConfigRequest asks for the configuration; it needs operator:write.
type ConfigRequest struct{ read.Options }

// ConfigReply carries the configuration without any key.
type ConfigReply struct {
	read.Meta
	Config *Configuration
}

// A SetConfigRequest replaces the configuration; it may rotate the root.
type SetConfigRequest struct {
	read.Target
	Config Configuration
}
