package caprovider

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect/ca"
)

// BuiltIn is the provider whose key is part of the replicated state.
type BuiltIn struct{ Random io.Reader }

// Establish keeps the present root, or makes one with the key and certificate given in the settings, or generated ones.
func (b BuiltIn) Establish(_ context.Context, w Wanted) (*trust.ProviderState, error) {
	s, now := w.Settings, time.Now()
	if w.Current != nil && !w.New && !ca.KeyNeeded(w.Root, w.Current, s) {
		return Copy(w.Current), nil
	}
	kept := &trust.ProviderState{Given: s.PrivateKey != ""}
	key, err := ca.GenerateKey(b.Random, s.PrivateKeyType, s.PrivateKeyBits)
	if s.PrivateKey != "" {
		key, err = ca.ParseKey(s.PrivateKey)
	}
	if err != nil {
		return nil, fmt.Errorf("error parsing private key: %w", err)
	}
	if kept.PrivateKey, err = ca.EncodeKey(key); err != nil {
		return nil, err
	}
	if kept.RootCert = s.RootCert; kept.RootCert != "" {
		cert, err := ca.ParseCertificate(s.RootCert)
		if err != nil {
			return nil, fmt.Errorf("error parsing root cert: %w", err)
		}
		return kept, ca.CheckRoot(cert, key, w.ClusterID, now)
	}
	var random [12]byte
	if _, err := io.ReadFull(b.Random, random[:]); err != nil {
		return nil, err
	}
	kept.RootCert, err = ca.NewRoot(ca.RootParams{
		Key: key, Serial: Serial(random[:8]), ClusterID: w.ClusterID, Label: hex.EncodeToString(random[8:]),
		Now: now, TTL: s.RootCertTTL, Random: b.Random,
	})
	return kept, err
}

// Open returns a provider with the key that is kept: the root's, or that of an intermediate which the primary datacenter has
// signed.
func (b BuiltIn) Open(kept *trust.ProviderState, _ string) (ca.Provider, error) {
	if kept.PrivateKey == "" {
		return nil, errors.New("the signing key of the CA root is missing")
	}
	key, err := ca.ParseKey(kept.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("signing key of the CA root: %w", err)
	}
	if kept.Intermediate != "" {
		return ca.NewSecondary(kept.RootCert, kept.Intermediate, key, b.Random)
	}
	return ca.NewBuiltIn(kept.RootCert, key, b.Random)
}

// Close does nothing.
func (BuiltIn) Close() {}

// Serial makes a positive serial number that any JSON reader takes exactly.
func Serial(random []byte) uint64 { return max(binary.BigEndian.Uint64(random)>>11, 1) }
