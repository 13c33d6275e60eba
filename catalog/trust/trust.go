// Package trust holds what the servers replicate about the mesh's certificate authority: its roots, its configuration
// and the provider's state. How certificates are made and checked is in connect/ca.
//
// The package is pure: types only.
package trust

import (
	"time"

	"github.com/sarnmesh/sarn/catalog"
)

// A Root is a root certificate that leaves are verified with. Exactly one is active: it, or an intermediate of it,
// signs. At most one is pending: it is spread, and becomes the active one once everybody trusts it. Roots read from a
// store are shared.
type Root struct {
	ID                  string // SHA-1 of the certificate in colon-hex
	Name                string
	SerialNumber        uint64
	SigningKeyID        string // key that signs leaves, in colon-hex
	ExternalTrustDomain string // cluster ID, a UUID
	NotBefore           time.Time
	NotAfter            time.Time
	RootCert            string   // PEM
	IntermediateCerts   []string // PEM, sent along with leaves; null when there are none
	Active              bool
	PrivateKeyType      string
	PrivateKeyBits      int
	// SpreadSince is since when it is pending, zero when it is not. ActiveSince is since when it signs, zero when it
	// does not, and when it began to before this was kept.
	SpreadSince time.Time `json:"-" cbor:"SpreadSince,omitzero"`
	ActiveSince time.Time `json:"-" cbor:"ActiveSince,omitzero"`
	// RotatedOutAt is when it was replaced, zero while active. PruneAfter is when nothing it signed can be in use.
	RotatedOutAt time.Time `json:"-" cbor:"RotatedOutAt,omitempty"`
	PruneAfter   time.Time `json:"-" cbor:"PruneAfter,omitempty"`
	catalog.Indexes
}

// Configuration is the operator's choice of provider and its settings (spec/connect.md section 2.2).
type Configuration struct {
	ClusterID string `json:"-" cbor:"ClusterID,omitempty"` // made once
	// FromAgent is the ca_config block of a server's own configuration that was applied last.
	FromAgent map[string]any `json:"-" cbor:"FromAgent,omitempty"`
	Provider  string
	// Config is kept as given, except that the private key of the built-in provider is moved to ProviderState.
	Config                   map[string]any
	State                    map[string]string // of the provider, read-only for clients; usually nil
	ForceWithoutCrossSigning bool
	// LongestRoot and LongestLeaf tell the longest life that leaves signed under a root have had so far, where that was
	// longer than it is now.
	LongestRoot string        `json:"-" cbor:"LongestRoot,omitempty"`
	LongestLeaf time.Duration `json:"-" cbor:"LongestLeaf,omitempty"`
	catalog.Indexes
}

// ProviderState is what a provider keeps in the replicated state for one root. It holds the signing key, or what gives
// access to it: it leaves the servers' log and snapshots in no answer whatsoever.
type ProviderState struct {
	ID           string // that of the root it belongs to
	Provider     string `json:",omitempty"` // empty means the built-in one
	PrivateKey   string // PEM, of the built-in provider; or the secret of a program
	RootCert     string // PEM
	Intermediate string `json:",omitempty"` // PEM: the signing certificate, then those above it; empty where the root signs
	// Given tells that the operator supplied the key.
	Given bool `json:",omitempty"`
	// Config are the settings of an outside provider, secrets included, as they were for this root.
	Config map[string]any `json:",omitempty"`
	// State is what the provider wants to remember, and is shown as Configuration.State: no secrets.
	State map[string]string `json:",omitempty"`
	// CrossSigns tells that a provider program can sign other roots.
	CrossSigns bool `json:",omitempty"`
	// CleanedUp tells that the provider has removed, outside, what only this root needed.
	CleanedUp bool `json:",omitempty"`
	catalog.Indexes
}
