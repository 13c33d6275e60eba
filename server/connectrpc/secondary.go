package connectrpc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/server/caprovider"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/primary"
)

// Datacenters that have a primary one share its trust domain, its roots and its configuration. The leader of such a
// secondary one copies them, and signs leaves with an intermediate that the primary has signed; its key is made here, and is
// part of the state that is replicated here. Without the primary, it goes on with what it has until that ends.
//
// The order of a rotation is that of one datacenter, twice: a root that is pending in the primary, or that has become the
// active one there while this datacenter was away, is pending here. It becomes the active one here once the primary has
// signed an intermediate under it, which it does only when the root is active there, and once the nodes here trust it.

// Primary is the datacenter whose authority this one is part of.
type Primary struct {
	Datacenter string
	Caller     rpc.Caller    // nil where this datacenter is the primary one
	Token      func() string // for copying; needs operator:write there
}

// inPrimary has the primary datacenter make a change, which comes back as a copy.
func inPrimary[Req, Resp any](ctx context.Context, a *Authority, m rpc.Method[Req, Resp], req *Req) (*Resp, acl.Permit, error) {
	return primary.Ask(ctx, a.cfg.Primary.Caller.Call, a.cfg.Primary.Datacenter, m, req)
}

// secondary reports whether the authority is part of another datacenter's.
func (a *Authority) secondary() bool { return a.cfg.Primary.Caller != nil }

// intermediateTime is for the primary to sign.
const intermediateTime = 30 * time.Second

// Replicate keeps the authority of a secondary datacenter equal to the primary's, until ctx ends. The leader runs it.
func (a *Authority) Replicate(ctx context.Context, store *state.Store, apply ApplyFunc) {
	if a.cfg.Disabled || !a.secondary() {
		return
	}
	var telling sync.WaitGroup
	defer telling.Wait()
	telling.Go(func() { a.tellPrimary(ctx, store) })
	round := func(ctx context.Context) error {
		changes := store.WatchView() // of what is here
		changes.CARoots()
		there, err := a.copyAuthority(ctx, store, apply)
		if err != nil {
			return err
		}
		return a.awaitPrimary(ctx, changes, there)
	}
	primary.Copy(ctx, round, func(err error, wait time.Duration) {
		_, roots := store.View().CARoots()
		text := "the certificate authority was not brought up to date with the primary datacenter, will retry"
		if ca.ActiveRoot(roots) == nil {
			text = "the certificate authority waits for the primary datacenter and signs nothing, will retry"
		}
		a.log.Warn(text, "primary", a.cfg.Primary.Datacenter, "wait", wait, "error", err)
	})
}

// A primaryState is what the primary datacenter has.
type primaryState struct {
	clusterID string
	roots     *ca.RootsReply
	active    *trust.Root
	config    *ca.ConfigReply
}

func (a *Authority) primaryOptions(index uint64) read.Options {
	token := ""
	if a.cfg.Primary.Token != nil {
		token = a.cfg.Primary.Token()
	}
	return primary.Options(a.cfg.Primary.Datacenter, token, index)
}

// askPrimary reads what the primary datacenter has.
func (a *Authority) askPrimary(ctx context.Context) (*primaryState, error) {
	roots, err := ca.RootsCall.Call(ctx, a.cfg.Primary.Caller, &ca.RootsRequest{Options: a.primaryOptions(0)})
	if err != nil {
		return nil, fmt.Errorf("read CA roots: %w", err)
	}
	config, err := ca.ConfigCall.Call(ctx, a.cfg.Primary.Caller, &ca.ConfigRequest{Options: a.primaryOptions(0)})
	if err != nil {
		return nil, fmt.Errorf("read CA configuration: %w", err)
	}
	there := &primaryState{roots: roots, active: roots.Active(), config: config}
	if there.active == nil || config.Config == nil {
		return nil, errors.New("the primary datacenter has no CA root yet")
	}
	there.clusterID = there.active.ExternalTrustDomain
	if !connect.SameTrustDomain(connect.TrustDomain(there.clusterID), roots.TrustDomain) {
		return nil, fmt.Errorf("the primary datacenter has trust domain %s, its root is for %s", roots.TrustDomain, there.clusterID)
	}
	return there, nil
}

// awaitPrimary returns when something has changed there, or here.
func (a *Authority) awaitPrimary(ctx context.Context, here *state.View, there *primaryState) error {
	return primary.First(ctx, func(ctx context.Context) error {
		_, err := ca.RootsCall.Call(ctx, a.cfg.Primary.Caller, &ca.RootsRequest{Options: a.primaryOptions(max(there.roots.Index, 1))})
		return err
	}, func(ctx context.Context) error {
		_, err := ca.ConfigCall.Call(ctx, a.cfg.Primary.Caller, &ca.ConfigRequest{Options: a.primaryOptions(max(there.config.Index, 1))})
		return err
	}, here.Wait)
}

// copyAuthority makes what is here what it is there, as far as that may be now.
func (a *Authority) copyAuthority(ctx context.Context, store *state.Store, apply ApplyFunc) (*primaryState, error) {
	there, err := a.askPrimary(ctx)
	if err != nil {
		return nil, err
	}
	// Roots are made known before anything is signed under them.
	if err := a.adopt(ctx, store, apply, there, nil); err != nil {
		return nil, err
	}
	why := a.intermediateNeeded(store.View(), there)
	if why == "" {
		return there, nil
	}
	kept, err := a.askIntermediate(ctx, there)
	if err != nil {
		return nil, fmt.Errorf("have an intermediate certificate signed: %w", err)
	}
	if err := a.adopt(ctx, store, apply, there, kept); err != nil {
		return nil, err
	}
	a.log.Info("the primary datacenter has signed the intermediate of this one", "root", kept.ID, "reason", why)
	return there, nil
}

// intermediateNeeded tells why an intermediate of the primary's active root is needed, "" when it is not.
func (a *Authority) intermediateNeeded(view *state.View, there *primaryState) string {
	_, config := view.CAConfig()
	kept := view.CAProvider(there.active.ID)
	if config == nil || config.ClusterID != there.clusterID || kept == nil || kept.Intermediate == "" {
		return "there was none under the root"
	}
	_, issuer, err := ca.SigningChain(kept)
	if err != nil {
		return "the one before cannot be read"
	}
	// Another could not live longer than the root.
	if ca.HalfLifeOver(issuer, time.Now()) && issuer.NotAfter.Before(there.active.NotAfter.Add(-time.Minute)) {
		return "half of the life of the one before was over"
	}
	return ""
}

// askIntermediate makes a key, and has the primary datacenter sign a certificate for it.
func (a *Authority) askIntermediate(ctx context.Context, there *primaryState) (*trust.ProviderState, error) {
	s, err := ca.ParseSettings(there.config.Config.Provider, there.config.Config.Config)
	if err != nil { // of another version: its usual key
		s.PrivateKeyType, s.PrivateKeyBits = ca.KeyEC, 256
	}
	if s.PrivateKeyType == ca.KeyEC {
		s.PrivateKeyBits = max(s.PrivateKeyBits, 256) // weaker ones are signed for nobody
	}
	key, err := ca.GenerateKey(a.cfg.Random, s.PrivateKeyType, s.PrivateKeyBits)
	if err != nil {
		return nil, err
	}
	csr, err := ca.NewCSR(connect.CAID(there.roots.TrustDomain), key, a.cfg.Random)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, intermediateTime)
	defer cancel()
	reply, err := ca.SignIntermediateCall.Call(ctx, a.cfg.Primary.Caller, &ca.SignIntermediateRequest{
		Target: a.primaryOptions(0).Target, CSR: csr, ForDatacenter: a.cfg.Datacenter,
	})
	if err != nil {
		return nil, err
	}
	if reply.RootID != there.active.ID {
		return nil, errors.New("the primary datacenter has replaced its root in the meantime")
	}
	kept := &trust.ProviderState{ID: reply.RootID, RootCert: there.active.RootCert, Intermediate: reply.Certificate}
	if kept.PrivateKey, err = ca.EncodeKey(key); err != nil {
		return nil, err
	}
	if err := ca.CheckEstablished(kept, there.clusterID, time.Now()); err != nil {
		return nil, err
	}
	_, err = caprovider.BuiltIn{Random: a.cfg.Random}.Open(kept, there.clusterID)
	return kept, err
}

// adopt writes what has changed of the roots and the configuration there, and, unless it is nil, what is kept for the
// active root there. Before there is anything to sign with, nothing is written.
func (a *Authority) adopt(ctx context.Context, store *state.Store, apply ApplyFunc, there *primaryState, kept *trust.ProviderState) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	view := store.View()
	rootsIndex, roots := view.CARoots()
	configIndex, config := view.CAConfig()
	joins := config != nil && config.ClusterID != there.clusterID
	if joins {
		roots = nil // nothing of another trust domain is good here
	}
	if kept == nil && ca.ActiveRoot(roots) == nil {
		return nil
	}
	merged, err := merge(roots, there.roots.Roots, time.Now(), func(id string) *trust.ProviderState {
		switch {
		case kept != nil && kept.ID == id:
			return kept
		case joins:
			return nil
		}
		return view.CAProvider(id)
	})
	if err != nil {
		return err
	}
	cmd := &setCommand{RootsIndex: rootsIndex, ConfigIndex: configIndex, Provider: kept, Joins: joins}
	if joins || !slices.EqualFunc(roots, merged, sameRoot) {
		cmd.Roots = merged
	}
	next := *there.config.Config
	next.ClusterID, next.FromAgent = there.clusterID, nil
	if joins || config == nil || config.Provider != next.Provider || !sameSettings(config.Config, next.Config) ||
		!maps.Equal(config.State, next.State) || config.ForceWithoutCrossSigning != next.ForceWithoutCrossSigning {
		if !joins {
			rememberLeaves(config, &next, ca.ActiveRoot(roots))
		}
		cmd.Config = &next
	}
	if cmd.Roots == nil && cmd.Config == nil && cmd.Provider == nil {
		return nil
	}
	kind := fsm.CAConfig
	if cmd.Roots != nil {
		kind = fsm.CARoots
	}
	if _, err := apply(ctx, kind, cmd); err != nil {
		return err
	}
	switch {
	case joins:
		a.log.Warn("this datacenter has become part of the primary one's trust domain, its own roots are trusted no more",
			"primary", a.cfg.Primary.Datacenter, "was", connect.TrustDomain(config.ClusterID), "is", there.roots.TrustDomain)
	case config == nil:
		a.log.Info("the certificate authority is ready", "primary", a.cfg.Primary.Datacenter)
	}
	return nil
}

// merge returns the roots of a secondary datacenter, after those it has and those of the primary one. The one that signs
// here does until another is activated; with none, the primary's active one signs. The next one is pending: the primary's
// active one, or if that signs here already, the one that is pending there. keptFor returns what signs under a root here,
// nil for none. The roots given are not changed.
func merge(here, there []*trust.Root, now time.Time, keptFor func(id string) *trust.ProviderState) ([]*trust.Root, error) {
	lead := ca.ActiveRoot(there)
	signing := ca.ActiveRoot(here)
	if signing == nil {
		signing = lead
	}
	next := lead
	if lead.ID == signing.ID {
		next = ca.PendingRoot(there)
	}
	of := func(roots []*trust.Root, id string) *trust.Root {
		if i := slices.IndexFunc(roots, func(r *trust.Root) bool { return r.ID == id }); i >= 0 {
			return roots[i]
		}
		return nil
	}
	var out []*trust.Root
	for _, r := range there {
		old := of(here, r.ID)
		if old == nil {
			old = &trust.Root{}
		}
		c := *r
		c.Indexes = old.Indexes
		c.Active, c.ActiveSince, c.SpreadSince = false, time.Time{}, time.Time{}
		c.RotatedOutAt, c.PruneAfter = later(r.RotatedOutAt, old.RotatedOutAt), later(r.PruneAfter, old.PruneAfter)
		switch {
		case r.ID == signing.ID:
			c.Active, c.ActiveSince, c.RotatedOutAt, c.PruneAfter = true, now, time.Time{}, time.Time{}
			if old.Active {
				c.ActiveSince = old.ActiveSince
			}
		case next != nil && r.ID == next.ID:
			if c.SpreadSince = old.SpreadSince; c.SpreadSince.IsZero() {
				c.SpreadSince = now
			}
		case !c.PruneAfter.IsZero() && now.After(c.PruneAfter):
			continue // it is pruned there, or about to be
		}
		if err := ownIntermediate(&c, keptFor(r.ID)); err != nil {
			return nil, err
		}
		out = append(out, &c)
	}
	for _, r := range here {
		// What the primary has forgotten stays as long as leaves of it may be in use here.
		if of(there, r.ID) == nil && (r.Active || !r.PruneAfter.IsZero()) {
			c := *r
			c.SpreadSince = time.Time{}
			out = append(out, &c)
		}
	}
	slices.SortFunc(out, func(x, y *trust.Root) int { return strings.Compare(x.ID, y.ID) })
	return out, nil
}

// ownIntermediate replaces the certificates between a root and its leaves by those here, except for cross-signed ones.
func ownIntermediate(root *trust.Root, kept *trust.ProviderState) error {
	var crossed []string // those that have the root's own name and key
	for _, text := range root.IntermediateCerts {
		if ca.SameAuthority(text, root.RootCert) {
			crossed = append(crossed, text)
		}
	}
	root.IntermediateCerts = nil
	if kept != nil {
		if err := setIntermediate(root, kept); err != nil {
			return err
		}
	}
	if len(crossed) > 0 {
		root.IntermediateCerts = append(crossed, root.IntermediateCerts...)
	}
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// sameRoot compares what can change about a root.
func sameRoot(a, b *trust.Root) bool {
	return a.ID == b.ID && a.Active == b.Active && a.Name == b.Name && a.SigningKeyID == b.SigningKeyID &&
		a.SpreadSince.Equal(b.SpreadSince) && a.ActiveSince.Equal(b.ActiveSince) && a.RotatedOutAt.Equal(b.RotatedOutAt) &&
		a.PruneAfter.Equal(b.PruneAfter) && slices.Equal(a.IntermediateCerts, b.IntermediateCerts)
}

// maySign reports whether the root that is pending, if any, could sign. In a secondary datacenter it can when the primary
// has signed an intermediate under it.
func (a *Authority) maySign(view *state.View) bool {
	_, roots := view.CARoots()
	pending := ca.PendingRoot(roots)
	if pending == nil || !a.secondary() {
		return true
	}
	kept := view.CAProvider(pending.ID)
	return kept != nil && kept.Intermediate != ""
}

// notReady is answered before the first root has been made, or copied.
func (a *Authority) notReady() error {
	if a.secondary() {
		return fmt.Errorf("%w: it comes from the primary datacenter %s, which has not been reached or has not signed the intermediate of this one yet", errNotReady, a.cfg.Primary.Datacenter)
	}
	return errNotReady
}
