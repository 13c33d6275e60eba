// Package peering holds what is known of other clusters that share services with this one: the peerings, whom to trust
// for them, the services imported from them, and the tokens that begin a peering (spec/connect.md section 16).
//
// The package is pure: types and rules. What a peer sends is checked here before anything is stored of it.
package peering

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sarnmesh/sarn/catalog"
)

// A State is how far a peering has come.
type State string

// The states of a peering.
const (
	Pending      State = "PENDING"      // a token was made and nobody has called yet
	Establishing State = "ESTABLISHING" // a token was taken and the stream is not up yet
	Active       State = "ACTIVE"       // the stream is up
	Failing      State = "FAILING"      // the stream is down
	Deleting     State = "DELETING"     // it was deleted here, and what it brought is being removed
	Terminated   State = "TERMINATED"   // the other side deleted it
)

// A Peering is what this cluster knows of another one. Peerings read from a store are shared; copy one before changing
// it.
type Peering struct {
	ID    string // UUID, chosen here
	Name  string // chosen here
	Meta  map[string]string
	State State
	// DeletedAt is when it was deleted, zero if it was not.
	DeletedAt time.Time

	// Of the side that dials, from the token and what the other side told since.
	PeerID              string   // the other side's ID of the peering, empty on the side that is dialed
	PeerCAPems          []string // what the certificates of its servers are verified with
	PeerServerName      string   // of those certificates
	PeerServerAddresses []string // host:port

	// ManualAddresses are the addresses that the token made last offered in place of the servers' own.
	ManualAddresses []string
	// Fixed tells that PeerServerAddresses were chosen by whoever made the token: what the other side says its servers'
	// addresses are does not replace them.
	Fixed bool

	Remote Remote
	catalog.Indexes
}

// Remote is what the other side tells about itself.
type Remote struct {
	Partition  string
	Datacenter string
	Locality   *catalog.Locality `json:",omitempty"`
}

// Dials reports whether this side opens the stream.
func (p *Peering) Dials() bool { return p.PeerID != "" }

// Open reports whether the stream of the peering is wanted.
func (p *Peering) Open() bool { return p.State != Deleting && p.State != Terminated }

// Secrets are what the sides of a peering prove themselves to each other with. They leave the servers in no answer.
// The side that is dialed keeps digests of them only.
type Secrets struct {
	ID string // of the peering
	// Stream is what the dialing side opens streams with.
	Stream string
	// Establishment is the digest of the secret of the token made last, empty once it was used.
	Establishment []byte
	// Active is the digest of the secret that streams are opened with, Pending of the one that replaces it once a stream
	// is opened with it.
	Active, Pending []byte
}

// A Bundle is whom to trust as members of another cluster.
type Bundle struct {
	Peer        string
	TrustDomain string
	Partition   string   // of the exporter; "default"
	RootPEMs    []string // certificates
	catalog.Indexes
}

// An Import is a service of another cluster as it is known here. Imports read from a store are shared.
type Import struct {
	Peer    string
	Service string
	// Instances are the service's own. Gateways stand for it in the mesh, in the form of sidecars of it. Both are ordered by
	// node, then ID, and all of them bear the peer's name.
	Instances, Gateways []*catalog.Instance
	catalog.Indexes
}

// Meta is what a peer tells about reaching a service of its in the mesh; it is the Connect.PeerMeta of instances.
type Meta struct {
	SNI      []string `json:",omitempty"` // server names
	SpiffeID []string `json:",omitempty"` // of those who may answer
	Protocol string   `json:",omitempty"`
}

// Status is what the leader knows of a stream. It is not replicated.
type Status struct {
	ImportedServices []string // ordered
	ExportedServices []string // ordered
	LastHeartbeat    time.Time
	LastReceive      time.Time
	LastSend         time.Time
}

// A Shown is a peering as it is answered.
type Shown struct {
	Peering
	Status Status
}

// MarshalJSON writes the form of the API.
func (s *Shown) MarshalJSON() ([]byte, error) {
	type status struct {
		ImportedServices []string
		ExportedServices []string
		LastHeartbeat    *time.Time
		LastReceive      *time.Time
		LastSend         *time.Time
	}
	return json.Marshal(struct {
		ID                  string
		Name                string
		Meta                map[string]string `json:",omitempty"`
		State               State
		DeletedAt           *time.Time `json:",omitempty"`
		PeerID              string     `json:",omitempty"`
		PeerCAPems          []string   `json:",omitempty"`
		PeerServerName      string     `json:",omitempty"`
		PeerServerAddresses []string   `json:",omitempty"`
		StreamStatus        status
		CreateIndex         uint64
		ModifyIndex         uint64
		Remote              Remote
	}{
		s.ID, s.Name, s.Meta, s.State, known(s.DeletedAt), s.PeerID, s.PeerCAPems, s.PeerServerName, s.PeerServerAddresses,
		status{
			s.Status.ImportedServices, s.Status.ExportedServices, known(s.Status.LastHeartbeat), known(s.Status.LastReceive),
			known(s.Status.LastSend),
		},
		s.CreateIndex, s.ModifyIndex, s.Remote,
	})
}

// known returns nil for the zero time.
func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// maxName bounds the name of a peering, which is a label of DNS names.
const maxName = 63

// CheckName refuses names that are no DNS labels in lower case.
func CheckName(name string) error {
	ok := name != "" && len(name) <= maxName
	for i, c := range []byte(name) {
		inner := i > 0 && i < len(name)-1
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' && inner) {
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("%s is not a valid peer name: a valid peering name must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character", name)
	}
	return nil
}

// Limits of the metadata of a peering, those of configuration entries.
const (
	maxMetaPairs = 64
	maxMetaKey   = 128
	maxMetaValue = 512
)

// CheckMeta refuses metadata that is too large.
func CheckMeta(meta map[string]string) error {
	if len(meta) > maxMetaPairs {
		return fmt.Errorf("Meta exceeds maximum element count %d", maxMetaPairs)
	}
	for k, v := range meta {
		if len(k) > maxMetaKey || len(v) > maxMetaValue {
			return fmt.Errorf("Meta key %.32q or its value is longer than %d and %d bytes", k, maxMetaKey, maxMetaValue)
		}
	}
	return nil
}

// Errors that clients match on.
var (
	ErrDisabled    = errors.New("peering must be enabled to use this endpoint")
	ErrNoTLS       = errors.New("TLS for gRPC must be enabled when generating peering tokens")
	ErrNoGateways  = errors.New("servers are configured to PeerThroughMeshGateways, but no mesh gateway instances are registered")
	ErrSameCluster = errors.New("cannot create a peering within the same cluster")
)
