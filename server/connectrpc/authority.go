// Package connectrpc answers the calls about the mesh's certificate authority: its roots, its configuration, and leaf
// certificates. The leader makes roots, rotates them, and signs; what it signs with is replicated state.
package connectrpc

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/server/fsm"
)

// Config tunes an Authority. A zero field takes its default.
type Config struct {
	Disabled bool           // connect.enabled = false
	Provider string         // connect.ca_provider; default ca.BuiltIn
	Settings map[string]any // connect.ca_config; snake_case keys are understood
	Random   io.Reader      // default crypto/rand
	Logger   hclog.Logger   // default discards
}

// An Authority is a server's part in the certificate authority. Make one with New; nothing runs by itself.
type Authority struct {
	cfg Config
	log hclog.Logger

	changing sync.Mutex // held while roots or configuration are changed

	mu       sync.Mutex // guards what follows
	provider ca.Provider
	rootID   string // of provider
	limit    limiter
}

// New returns an authority.
func New(cfg Config) *Authority {
	if cfg.Provider == "" {
		cfg.Provider = ca.BuiltIn
	}
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	cfg.Settings = ca.NormalizeConfig(cfg.Settings)
	return &Authority{cfg: cfg, log: cfg.Logger.Named("connect")}
}

// An ApplyFunc writes a command to the Raft log.
type ApplyFunc = func(ctx context.Context, k fsm.Kind, req any) (any, error)

// A setCommand changes what is replicated of the authority, all or nothing. A nil field is left as it is. RootsIndex
// and ConfigIndex are those of the state the command was made from; it is refused when that has changed.
type setCommand struct {
	RootsIndex, ConfigIndex uint64
	Roots                   []*trust.Root
	Config                  *trust.Configuration
	Provider                *trust.ProviderState
}

var errChanged = errors.New("the certificate authority was changed at the same time, try again")

func applySet(tx *state.Tx, cmd *setCommand) (*struct{}, error) {
	rootsIndex, _ := tx.CARoots()
	configIndex, _ := tx.CAConfig()
	if rootsIndex != cmd.RootsIndex || configIndex != cmd.ConfigIndex {
		return nil, errChanged
	}
	if cmd.Roots != nil {
		if ca.ActiveRoot(cmd.Roots) == nil {
			return nil, errors.New("there must be exactly one active CA root")
		}
		tx.SetCARoots(cmd.Roots)
	}
	if cmd.Provider != nil {
		tx.SetCAProvider(cmd.Provider)
	}
	if cmd.Config != nil {
		tx.SetCAConfig(cmd.Config)
	}
	return &struct{}{}, nil
}

// Initialize makes what a new cluster lacks: its ID, configuration and root. In an old one it applies this server's own
// settings if they have changed. The leader calls it once for each leadership.
func (a *Authority) Initialize(ctx context.Context, store *state.Store, apply ApplyFunc) error {
	if a.cfg.Disabled {
		return nil
	}
	a.changing.Lock()
	defer a.changing.Unlock()
	view := store.View()
	_, config := view.CAConfig()
	_, roots := view.CARoots()
	if config != nil && ca.ActiveRoot(roots) != nil {
		if len(a.cfg.Settings) == 0 || sameSettings(config.FromAgent, a.cfg.Settings) {
			return nil
		}
		next := &trust.Configuration{Provider: a.cfg.Provider, Config: maps.Clone(a.cfg.Settings), FromAgent: a.cfg.Settings}
		a.log.Info("applying the changed CA settings of this server")
		return a.change(ctx, view, apply, next, false)
	}
	next := &trust.Configuration{Provider: a.cfg.Provider, Config: ca.DefaultConfig(), FromAgent: a.cfg.Settings}
	if config != nil {
		next.ClusterID = config.ClusterID
	}
	maps.Copy(next.Config, a.cfg.Settings)
	if id, ok := next.Config["ClusterID"].(string); ok && next.ClusterID == "" && catalog.CheckUUID(id) == nil {
		next.ClusterID = id
	}
	delete(next.Config, "ClusterID")
	if next.ClusterID == "" {
		id, err := a.uuid()
		if err != nil {
			return err
		}
		next.ClusterID = id
	}
	if err := a.change(ctx, view, apply, next, true); err != nil {
		return err
	}
	a.log.Info("the certificate authority is ready", "provider", next.Provider)
	return nil
}

// sameSettings compares settings that may have been through the log.
func sameSettings(a, b map[string]any) bool {
	return len(a) == 0 && len(b) == 0 || reflect.DeepEqual(a, b) || fmt.Sprint(a) == fmt.Sprint(b)
}

// Maintain forgets roots that nothing in use was signed by, and replaces a generated root in time. The leader calls it
// once an hour.
func (a *Authority) Maintain(ctx context.Context, store *state.Store, apply ApplyFunc) error {
	if a.cfg.Disabled {
		return nil
	}
	a.changing.Lock()
	defer a.changing.Unlock()
	view, now := store.View(), time.Now()
	_, config := view.CAConfig()
	rootsIndex, roots := view.CARoots()
	active := ca.ActiveRoot(roots)
	if config == nil || active == nil {
		return nil
	}
	if kept, pruned := ca.Prune(roots, now); pruned {
		cmd := &setCommand{RootsIndex: rootsIndex, ConfigIndex: config.ModifyIndex, Roots: kept}
		if _, err := apply(ctx, fsm.CARoots, cmd); err != nil {
			return err
		}
		a.log.Info("pruned CA roots that are no longer in use", "left", len(kept))
		view = store.View()
	}
	// Nine tenths of its life are over.
	life := active.NotAfter.Sub(active.NotBefore)
	kept := view.CAProvider(active.ID)
	if config.Provider == ca.BuiltIn && kept != nil && !kept.Given && now.After(active.NotAfter.Add(-life/10)) {
		a.log.Info("replacing the CA root before it expires", "expires", active.NotAfter)
		next := *config
		return a.change(ctx, view, apply, &next, true)
	}
	return nil
}

// change makes next the configuration, and a new root if that is asked for (newRoot), or needed because of what the
// settings say. The caller holds a.changing.
func (a *Authority) change(ctx context.Context, view *state.View, apply ApplyFunc, next *trust.Configuration, newRoot bool) error {
	switch next.Provider {
	case ca.BuiltIn, ca.Vault, ca.AWSPCA:
	default:
		return fmt.Errorf("could not initialize provider: unknown CA provider %q", next.Provider)
	}
	settings, err := ca.ParseSettings(next.Provider, next.Config)
	if err != nil {
		return fmt.Errorf("error configuring provider: %w", err)
	}
	if next.Provider != ca.BuiltIn {
		return fmt.Errorf("could not initialize provider: CA provider %q is not built into this binary", next.Provider)
	}
	configIndex, config := view.CAConfig()
	rootsIndex, roots := view.CARoots()
	active := ca.ActiveRoot(roots)
	if config != nil {
		next.ClusterID = config.ClusterID
		if next.FromAgent == nil {
			next.FromAgent = config.FromAgent
		}
	}
	next.Config = withoutKey(next.Config)
	cmd := &setCommand{RootsIndex: rootsIndex, ConfigIndex: configIndex, Config: next}
	kind := fsm.CAConfig
	if active != nil {
		kept := view.CAProvider(active.ID)
		newRoot = newRoot || kept == nil || config.Provider != next.Provider || ca.KeyNeeded(active, kept, settings)
	}
	if newRoot || active == nil {
		kind = fsm.CARoots
		root, kept, err := a.newRoot(settings, next.ClusterID)
		if err != nil {
			return fmt.Errorf("error configuring provider: %w", err)
		}
		if active != nil && active.ID != root.ID && !next.ForceWithoutCrossSigning {
			if err := a.crossSign(ctx, view, active, root); err != nil {
				return err
			}
		}
		cmd.Provider = kept
		cmd.Roots = ca.Rotate(roots, root, time.Now(), settings.LeafCertTTL)
	}
	_, err = apply(ctx, kind, cmd)
	return err
}

// newRoot makes a root with the key and certificate given in the settings, or generated ones.
func (a *Authority) newRoot(s ca.Settings, clusterID string) (*trust.Root, *trust.ProviderState, error) {
	now := time.Now()
	kept := &trust.ProviderState{Given: s.PrivateKey != ""}
	key, err := ca.GenerateKey(a.cfg.Random, s.PrivateKeyType, s.PrivateKeyBits)
	if s.PrivateKey != "" {
		key, err = ca.ParseKey(s.PrivateKey)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("error parsing private key: %w", err)
	}
	if kept.PrivateKey, err = ca.EncodeKey(key); err != nil {
		return nil, nil, err
	}
	if kept.RootCert = s.RootCert; kept.RootCert == "" {
		var random [12]byte
		if _, err := io.ReadFull(a.cfg.Random, random[:]); err != nil {
			return nil, nil, err
		}
		kept.RootCert, err = ca.NewRoot(ca.RootParams{
			Key: key, Serial: serial(random[:8]), ClusterID: clusterID, Label: hex.EncodeToString(random[8:]),
			Now: now, TTL: s.RootCertTTL, Random: a.cfg.Random,
		})
		if err != nil {
			return nil, nil, err
		}
	} else {
		cert, err := ca.ParseCertificate(s.RootCert)
		if err != nil {
			return nil, nil, fmt.Errorf("error parsing root cert: %w", err)
		}
		if err := ca.CheckRoot(cert, key, clusterID, now); err != nil {
			return nil, nil, err
		}
	}
	root, err := ca.DescribeRoot(kept.RootCert, "Consul CA Primary Cert", clusterID)
	if err != nil {
		return nil, nil, err
	}
	kept.ID = root.ID
	return root, kept, nil
}

// crossSign adds to a new root what makes it trusted by those who know only the active one.
func (a *Authority) crossSign(ctx context.Context, view *state.View, active, root *trust.Root) error {
	provider, err := a.providerOf(view, active)
	if err != nil {
		return err
	}
	var random [8]byte
	if _, err := io.ReadFull(a.cfg.Random, random[:]); err != nil {
		return err
	}
	cert, err := ca.CrossSign(ctx, provider, root.RootCert, serial(random[:]), time.Now())
	if errors.Is(err, ca.ErrNoCrossSigning) {
		return errors.New("The current CA Provider does not support cross-signing. You can try again with ForceWithoutCrossSigning set, but this may interrupt connections until every proxy has learnt the new root.")
	}
	if err != nil {
		return fmt.Errorf("cross-sign the new root: %w", err)
	}
	root.IntermediateCerts = []string{cert}
	return nil
}

// providerOf returns what signs under a root, which must have been read from view.
func (a *Authority) providerOf(view *state.View, root *trust.Root) (ca.Provider, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.provider != nil && a.rootID == root.ID {
		return a.provider, nil
	}
	kept := view.CAProvider(root.ID)
	if kept == nil {
		return nil, errors.New("the signing key of the active CA root is missing")
	}
	key, err := ca.ParseKey(kept.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("signing key of the active CA root: %w", err)
	}
	p, err := ca.NewBuiltIn(kept.RootCert, key, a.cfg.Random)
	if err != nil {
		return nil, err
	}
	a.provider, a.rootID = p, root.ID
	return p, nil
}

// serial makes a positive serial number that any JSON reader takes exactly.
func serial(random []byte) uint64 { return max(binary.BigEndian.Uint64(random)>>11, 1) }

func (a *Authority) uuid() (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(a.cfg.Random, b[:]); err != nil {
		return "", err
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16]), nil
}
