// Package connectrpc answers the calls about the mesh's certificate authority: its roots, its configuration, and leaf
// certificates. The leader makes roots, rotates them, and signs; what it signs with is replicated state.
package connectrpc

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/server/caprovider"
	"github.com/sarnmesh/sarn/server/caprovider/external"
	"github.com/sarnmesh/sarn/server/fsm"
)

// Config tunes an Authority. A zero field takes its default.
type Config struct {
	Disabled bool           // connect.enabled = false
	Provider string         // connect.ca_provider; default ca.BuiltIn
	Settings map[string]any // connect.ca_config; snake_case keys are understood
	Random   io.Reader      // default crypto/rand
	// Datacenter is this one. Primary is another whose authority this one is part of; zero when it has its own.
	Datacenter string
	Primary    Primary
	// Dial connects to outside authorities; default a net.Dialer's. Getenv reads the environment for the credentials of
	// clouds; default os.Getenv.
	Dial   DialFunc
	Getenv func(string) string
	Logger hclog.Logger // default discards
}

// BuiltIn reports whether these servers are the authority themselves, and ask nobody to make the first root.
func (c *Config) BuiltIn() bool {
	return !c.Disabled && (c.Provider == "" || c.Provider == ca.BuiltIn) && c.Primary.Caller == nil
}

// An Authority is a server's part in the certificate authority. Make one with New; nothing runs by itself.
type Authority struct {
	cfg Config
	log hclog.Logger

	changing sync.Mutex // held while roots or configuration are changed

	kinds map[string]caprovider.Kind // by provider

	mu       sync.Mutex // guards what follows
	stopped  bool
	provider ca.Provider          // nil before it is first needed
	kept     *trust.ProviderState // that provider was opened with
	former   ca.Provider          // the one before it, which calls may still use; nil if there was none
	limit    limiter

	reports reports // of nodes, about the rotation under way
	verdict verdict // whether one is
}

// New returns an authority for settings that CheckSettings has nothing against.
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
	program, settings, err := external.Split(cfg.Provider, ca.NormalizeConfig(cfg.Settings))
	if err != nil { // CheckSettings tells it first
		cfg.Logger.Error("the CA plugin cannot be run", "error", err)
	}
	cfg.Settings = settings
	return &Authority{
		cfg: cfg, log: cfg.Logger.Named("connect"),
		kinds: newKinds(&cfg, program),
	}
}

// Stop ends what providers run. The leader calls it at the end of its leadership; Initialize makes it undone.
func (a *Authority) Stop() {
	a.mu.Lock()
	open := []ca.Provider{a.provider, a.former}
	a.stopped, a.provider, a.kept, a.former = true, nil, nil, nil
	a.mu.Unlock()
	for _, p := range open {
		if p != nil {
			p.Close()
		}
	}
	for _, kind := range a.kinds {
		kind.Close()
	}
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
	Joins                   bool // the trust domain of Config takes the place of the one here
}

var errChanged = errors.New("the certificate authority was changed at the same time, try again")

func applySet(tx *state.Tx, cmd *setCommand) (*struct{}, error) {
	rootsIndex, _ := tx.CARoots()
	configIndex, _ := tx.CAConfig()
	if rootsIndex != cmd.RootsIndex || configIndex != cmd.ConfigIndex {
		return nil, errChanged
	}
	if cmd.Roots != nil {
		if slices.Contains(cmd.Roots, nil) || ca.ActiveRoot(cmd.Roots) == nil {
			return nil, errors.New("there must be exactly one active CA root")
		}
		tx.SetCARoots(cmd.Roots)
	}
	if cmd.Provider != nil {
		tx.SetCAProvider(cmd.Provider)
	}
	if cmd.Joins {
		tx.DropCAConfig()
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
	a.mu.Lock()
	a.stopped = false
	a.mu.Unlock()
	view := store.View()
	if Secret(view) == "" {
		secret, err := uuid.NewRandomFromReader(a.cfg.Random)
		if err != nil {
			return err
		}
		if _, err := apply(ctx, fsm.System, &setSecret{secret.String()}); err != nil {
			return err
		}
	}
	_, config := view.CAConfig()
	_, roots := view.CARoots()
	if a.secondary() { // its roots are copied: see Replicate
		if len(a.cfg.Settings) > 0 || a.cfg.Provider != ca.BuiltIn {
			a.log.Warn("the CA settings of this server are not used: the primary datacenter has the authority", "primary", a.cfg.Primary.Datacenter)
		}
		return nil
	}
	if config != nil && ca.ActiveRoot(roots) != nil {
		a.applyOwn(ctx, view, apply)
		return nil
	}
	next := &trust.Configuration{Provider: a.cfg.Provider, Config: ca.DefaultConfig(), FromAgent: a.own()}
	if config != nil {
		next.ClusterID = config.ClusterID
	}
	maps.Copy(next.Config, a.cfg.Settings)
	if id, ok := next.Config["ClusterID"].(string); ok && next.ClusterID == "" && catalog.CheckUUID(id) == nil {
		next.ClusterID = id
	}
	delete(next.Config, "ClusterID")
	if next.ClusterID == "" {
		id, err := uuid.NewRandomFromReader(a.cfg.Random)
		if err != nil {
			return err
		}
		next.ClusterID = id.String()
	}
	if err := a.change(ctx, view, apply, next, true); err != nil {
		return err
	}
	a.log.Info("the certificate authority is ready", "provider", next.Provider)
	return nil
}

// own returns what this server's own configuration says about the authority.
func (a *Authority) own() map[string]any {
	own := maps.Clone(a.cfg.Settings)
	if a.cfg.Provider != ca.BuiltIn {
		own[ownProvider] = a.cfg.Provider
	}
	return own
}

// applyOwn applies this server's own settings if they are not those that were applied last. Where that fails, what was
// there goes on, and it is tried again by Maintain. The caller holds a.changing.
func (a *Authority) applyOwn(ctx context.Context, view *state.View, apply ApplyFunc) {
	_, config := view.CAConfig()
	own := a.own()
	if len(own) == 0 || sameSettings(config.FromAgent, own) {
		return
	}
	next := &trust.Configuration{Provider: a.cfg.Provider, Config: maps.Clone(a.cfg.Settings), FromAgent: own}
	a.log.Info("applying the changed CA settings of this server")
	if err := a.change(ctx, view, apply, next, false); err != nil && ctx.Err() == nil {
		a.log.Error("the changed CA settings of this server cannot be applied, those before stay in force", "error", err)
	}
}

// ownProvider is where Configuration.FromAgent has the name of a provider that is not the built-in one.
const ownProvider = "ca_provider"

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
	}
	if a.secondary() {
		return nil
	}
	a.applyOwn(ctx, store.View(), apply)
	a.retire(ctx, store, apply)
	if err := a.renew(ctx, store.View(), apply); err != nil {
		return err
	}
	view = store.View()
	_, config = view.CAConfig()
	_, roots = view.CARoots()
	active = ca.ActiveRoot(roots)
	kept := view.CAProvider(active.ID)
	if kept == nil || kept.Given || ca.PendingRoot(roots) != nil {
		return nil
	}
	// Nine tenths of its life are over, or it is as old as it may get.
	switch life := active.NotAfter.Sub(active.NotBefore); {
	case config.Provider == ca.BuiltIn && now.After(active.NotAfter.Add(-life/10)):
		a.log.Info("replacing the CA root before it expires", "expires", active.NotAfter)
	case aged(active, config, now):
		a.log.Info("replacing the CA root, as its rotation period is over", "root", active.ID)
	default:
		return nil
	}
	next := *config
	next.Config = withKeyType(config.Config, "", 0) // of a root that was given nothing is left to make another of
	return a.change(ctx, view, apply, &next, true)
}

// change makes next the configuration, and a new root if that is asked for (newRoot), or needed because of what the
// settings say. The caller holds a.changing.
func (a *Authority) change(ctx context.Context, view *state.View, apply ApplyFunc, next *trust.Configuration, newRoot bool) error {
	kind, ok := a.kinds[next.Provider]
	if !ok {
		return unknownProvider(next.Provider)
	}
	settings, err := ca.ParseSettings(next.Provider, next.Config)
	if err != nil {
		return fmt.Errorf("error configuring provider: %w", err)
	}
	_, config := view.CAConfig()
	_, roots := view.CARoots()
	active := ca.ActiveRoot(roots)
	if config != nil {
		next.ClusterID = config.ClusterID
		if next.FromAgent == nil {
			next.FromAgent = config.FromAgent
		}
	}
	rememberLeaves(config, next, active)
	present := present(view, next.Provider, settings)
	wanted := caprovider.Wanted{Config: next.Config, Settings: settings, ClusterID: next.ClusterID, Root: present, New: newRoot}
	if active != nil {
		if kept := view.CAProvider(present.ID); kept != nil && providerName(kept) == next.Provider {
			wanted.Current = kept
		}
	}
	// The key that came with the root that is there is kept apart, and never shown.
	if next.Provider == ca.BuiltIn && settings.RootCert != "" && settings.PrivateKey == "" &&
		(wanted.Current == nil || strings.TrimSpace(settings.RootCert) != strings.TrimSpace(wanted.Current.RootCert)) {
		return errors.New("error configuring provider: must provide a private key when providing a root cert")
	}
	if active != nil {
		if !next.ForceWithoutCrossSigning && (newRoot || wanted.Current == nil) {
			// Told before anything is made outside.
			if old, err := a.providerOf(view, active); err == nil && !old.CrossSigns() {
				return errNoCrossSigning
			}
		}
	}
	kept, err := kind.Establish(ctx, wanted)
	if err == nil {
		err = ca.CheckEstablished(kept, next.ClusterID, time.Now())
	}
	if err != nil {
		return fmt.Errorf("error configuring provider: %w", err)
	}
	root, err := describe(kept, next)
	if err != nil {
		return fmt.Errorf("error configuring provider: %w", err)
	}
	next.Config, next.State = withoutKey(next.Config), kept.State
	if active != nil && (present.ID == root.ID || active.ID == root.ID) {
		return a.store(ctx, view, apply, next, kept)
	}
	if active != nil && !next.ForceWithoutCrossSigning {
		err = a.crossSign(ctx, view, active, root)
	}
	if err == nil {
		err = a.install(ctx, view, apply, next, root, kept, settings)
	}
	if err != nil && kept.State != nil {
		a.log.Warn("what the CA provider has made for the new root is left as it is", "provider", next.Provider, "state", kept.State)
	}
	return err
}

// store is the last step of a change to a root that is there: it writes the configuration, and what the provider keeps,
// where that is something else now. Where the root is the active one, another is pending no more.
func (a *Authority) store(ctx context.Context, view *state.View, apply ApplyFunc, next *trust.Configuration, kept *trust.ProviderState) error {
	rootsIndex, roots := view.CARoots()
	configIndex, _ := view.CAConfig()
	kind, cmd := fsm.CAConfig, &setCommand{RootsIndex: rootsIndex, ConfigIndex: configIndex, Config: next}
	if old := view.CAProvider(kept.ID); old == nil || !sameKept(old, kept) {
		cmd.Provider = kept
		if old != nil && old.Intermediate != kept.Intermediate {
			renewed, err := withIntermediate(roots, kept)
			if err != nil {
				return err
			}
			kind, cmd.Roots = fsm.CARoots, renewed
		}
	}
	if ca.PendingRoot(roots) != nil && ca.ActiveRoot(roots).ID == kept.ID {
		if cmd.Roots == nil {
			cmd.Roots = roots
		}
		kind, cmd.Roots = fsm.CARoots, ca.Withdraw(cmd.Roots)
	}
	_, err := apply(ctx, kind, cmd)
	return err
}

// install is the last step of a change to another root: it writes the configuration, the root, cross-signed if it is to
// be, and what its provider keeps. The root is pending until it is known to be trusted; see rotation.go.
func (a *Authority) install(ctx context.Context, view *state.View, apply ApplyFunc, next *trust.Configuration, root *trust.Root, kept *trust.ProviderState, s ca.Settings) error {
	rootsIndex, _ := view.CARoots()
	configIndex, _ := view.CAConfig()
	_, err := apply(ctx, fsm.CARoots, &setCommand{
		RootsIndex: rootsIndex, ConfigIndex: configIndex, Config: next, Provider: kept,
		Roots: a.introduce(view, root, next, s),
	})
	return err
}

// providerName is the name of the provider that keeps something.
func providerName(kept *trust.ProviderState) string {
	if kept.Provider == "" {
		return ca.BuiltIn
	}
	return kept.Provider
}

// rootNames are the names of roots by provider. That of others is made of the provider's name.
var rootNames = map[string]string{
	ca.BuiltIn: "Consul CA Primary Cert", ca.Vault: "Vault CA Primary Cert", ca.AWSPCA: "Aws-Pca CA Primary Cert",
}

// describe returns the root that was established, and completes what is kept for it.
func describe(kept *trust.ProviderState, next *trust.Configuration) (*trust.Root, error) {
	name, ok := rootNames[next.Provider]
	if !ok {
		name = next.Provider + " CA Primary Cert"
	}
	root, err := ca.DescribeRoot(kept.RootCert, name, next.ClusterID)
	if err != nil {
		return nil, err
	}
	kept.ID = root.ID
	if next.Provider != ca.BuiltIn {
		kept.Provider, kept.Config = next.Provider, next.Config
	}
	return root, setIntermediate(root, kept)
}

// setIntermediate makes the certificates between a root and its leaves part of what is known of the root, beside a
// cross-signed one.
func setIntermediate(root *trust.Root, kept *trust.ProviderState) error {
	intermediates, issuer, err := ca.SigningChain(kept)
	if err != nil || intermediates == nil {
		return err
	}
	root.IntermediateCerts = intermediates
	if len(issuer.SubjectKeyId) > 0 {
		root.SigningKeyID = ca.Hex(issuer.SubjectKeyId)
	}
	return nil
}

// withIntermediate returns the roots after the provider of one has got another intermediate.
func withIntermediate(roots []*trust.Root, kept *trust.ProviderState) ([]*trust.Root, error) {
	out := make([]*trust.Root, len(roots))
	for i, r := range roots {
		c := *r
		out[i] = &c
		if r.ID != kept.ID {
			continue
		}
		var crossed []string // those that have the root's own name and key
		for _, text := range r.IntermediateCerts {
			if ca.SameAuthority(text, r.RootCert) {
				crossed = append(crossed, text)
			}
		}
		if err := setIntermediate(&c, kept); err != nil {
			return nil, err
		}
		c.IntermediateCerts = append(crossed, c.IntermediateCerts...)
	}
	return out, nil
}

func sameKept(a, b *trust.ProviderState) bool {
	return a.PrivateKey == b.PrivateKey && a.RootCert == b.RootCert && a.Intermediate == b.Intermediate && a.Given == b.Given &&
		a.Provider == b.Provider && maps.Equal(a.State, b.State) && sameSettings(a.Config, b.Config)
}

var errNoCrossSigning = errors.New("The current CA Provider does not support cross-signing. You can try again with ForceWithoutCrossSigning set, but this may interrupt connections until every proxy has learnt the new root.")

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
	cert, err := ca.CrossSign(ctx, provider, root.RootCert, caprovider.Serial(random[:]), time.Now())
	if errors.Is(err, ca.ErrNoCrossSigning) {
		return errNoCrossSigning
	}
	if err != nil {
		return fmt.Errorf("cross-sign the new root: %w", err)
	}
	root.IntermediateCerts = append([]string{cert}, root.IntermediateCerts...)
	return nil
}

// providerOf returns what signs under a root, which must have been read from view. That of the active root is kept open.
func (a *Authority) providerOf(view *state.View, root *trust.Root) (ca.Provider, error) {
	kept := view.CAProvider(root.ID)
	if kept == nil {
		return nil, errors.New("the signing key of the CA root is missing")
	}
	_, config := view.CAConfig()
	p, old, err := a.swap(kept, config)
	if old != nil {
		old.Close()
	}
	return p, err
}

// swap returns the open provider of what is kept, and one to be closed: not the one that was open until now, which may be
// signing, but the one before.
func (a *Authority) swap(kept *trust.ProviderState, config *trust.Configuration) (p, old ca.Provider, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped {
		return nil, nil, errStopped
	}
	if a.provider != nil && a.kept.ID == kept.ID && a.kept.ModifyIndex == kept.ModifyIndex {
		return a.provider, nil, nil
	}
	if p, err = a.open(kept, config); err != nil {
		return nil, nil, err
	}
	old = a.former
	a.former, a.provider, a.kept = a.provider, p, kept
	return p, old, nil
}

var errStopped = errors.New("this server is no longer the leader, which signs")

// open returns a provider that the caller closes.
func (a *Authority) open(kept *trust.ProviderState, config *trust.Configuration) (ca.Provider, error) {
	kind, ok := a.kinds[providerName(kept)]
	if !ok {
		return nil, fmt.Errorf("this server has no CA provider %q", providerName(kept))
	}
	return kind.Open(kept, config.ClusterID)
}
