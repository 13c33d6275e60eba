// Package intro is what servers and agents say to one another before an agent has a certificate: it asks for one by a
// token (auto_encrypt), or for one and its configuration by a JSON Web Token that somebody else gave it (auto_config).
// See spec/config.md section 3.6.
package intro

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Names of the calls that need no certificate. They are made over rpcwire.ProtoIntro.
const (
	HelloName     = "Intro.Hello"
	SignName      = "Intro.Sign"
	ConfigureName = "Intro.Configure"
)

// AdmitCall has the leader do what the server that was asked has found to be right. It needs the secret of the servers.
var AdmitCall = rpc.Leader[AdmitRequest, AdmitReply]("Intro.Admit")

// A HelloRequest asks whose certificate authority this is.
type HelloRequest struct{}

// A HelloReply tells what a certificate request must say.
type HelloReply struct{ TrustDomain string }

// An Applicant says whom a certificate is for. Of CSR only the key and the one SPIFFE ID, of the node's agent, are used.
type Applicant struct {
	Datacenter string
	Node       string
	CSR        string   // PEM
	DNSNames   []string `json:",omitempty"`
	IPs        []string `json:",omitempty"`
}

// A SignRequest asks for a certificate; Token must have node:write for the node.
type SignRequest struct {
	Applicant
	Token string
}

// An Identity is a signed certificate and what to verify servers with.
type Identity struct {
	CertPEM     string // the certificate, then intermediates
	RootID      string // of the root that was active
	ValidAfter  time.Time
	ValidBefore time.Time
	// ServerRoots are the authorities, PEM, with which the server that was asked verifies others.
	ServerRoots []string
	// VerifyServerHostname is what that server is configured with.
	VerifyServerHostname bool
}

// A ConfigureRequest asks for a certificate and the configuration of an agent.
type ConfigureRequest struct {
	Applicant
	JWT string
}

// A ConfigureReply carries both.
type ConfigureReply struct {
	Identity Identity
	Settings Settings
}

// An AdmitRequest is made by a server for an applicant who has proved to be the node.
type AdmitRequest struct {
	read.Target
	Applicant Applicant
	Secret    string
	WantToken bool // make a token with the node's identity, where access control is on
}

// AdmitReply carries the certificate and the secret of the token.
type AdmitReply struct {
	CertPEM     string
	RootID      string
	ValidAfter  time.Time
	ValidBefore time.Time
	Token       string
}

// Settings are what a server tells an agent about the cluster. There is nothing in them that runs a program, opens a
// port or names a file.
type Settings struct {
	Datacenter        string
	PrimaryDatacenter string
	NodeName          string

	ACL    ACL
	Gossip Gossip
	TLS    TLS
}

// ACL is how access control is set up.
type ACL struct {
	Enabled                      bool
	DefaultPolicy, DownPolicy    string
	TokenTTL, PolicyTTL, RoleTTL time.Duration
	EnableKeyListPolicy          bool
	EnableTokenPersistence       bool
	AgentToken                   string // a secret; empty where access control is off
}

// Gossip is how to find the others.
type Gossip struct {
	Key                            string // base64; a secret
	VerifyIncoming, VerifyOutgoing bool
	RetryJoin                      []string
}

// TLS is how agents and servers call each other.
type TLS struct {
	VerifyOutgoing, VerifyServerHostname bool
	MinVersion, CipherSuites             string
}

// ErrNode reports a node name that an agent cannot be introduced by.
var ErrNode = errors.New("invalid node name")

var nodeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// CheckNode refuses names that could be more than a name where they are compared or written down.
func CheckNode(name string) error {
	if !nodeName.MatchString(name) {
		return fmt.Errorf("%w: %q", ErrNode, name)
	}
	return nil
}
