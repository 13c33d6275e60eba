package connectrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/caprovider"
	"github.com/sarnmesh/sarn/server/caprovider/awspca"
	"github.com/sarnmesh/sarn/server/caprovider/external"
	"github.com/sarnmesh/sarn/server/caprovider/vault"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

// A DialFunc connects to an outside authority.
type DialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// newKinds returns the providers there are, by name.
func newKinds(cfg *Config, program *external.Program) map[string]caprovider.Kind {
	log := cfg.Logger.Named("ca")
	kinds := map[string]caprovider.Kind{
		ca.BuiltIn: caprovider.BuiltIn{Random: cfg.Random},
		ca.Vault:   vault.Kind{Dial: cfg.Dial, Getenv: cfg.Getenv, Log: log.Named("vault")},
		ca.AWSPCA:  awspca.Kind{Dial: cfg.Dial, Getenv: cfg.Getenv},
	}
	if program != nil {
		kinds[external.Prefix+program.Name] = external.New(program, log.Named("plugin"))
	}
	return kinds
}

// CheckSettings returns an error if a server's own configuration names a provider that cannot be, or a program in a way
// that cannot be run.
func CheckSettings(provider string, settings map[string]any) error {
	program, _, err := external.Split(provider, ca.NormalizeConfig(settings))
	switch {
	case err != nil:
		return err
	case provider == "" || provider == ca.BuiltIn || provider == ca.Vault || provider == ca.AWSPCA || program != nil && strings.HasPrefix(provider, external.Prefix):
		return nil
	}
	return unknownProvider(provider)
}

func unknownProvider(name string) error {
	if strings.HasPrefix(name, external.Prefix) {
		return fmt.Errorf("could not initialize provider: unknown CA provider %q: its program must be named in every server's own configuration (connect.ca_config.plugin)", name)
	}
	return fmt.Errorf("could not initialize provider: unknown CA provider %q", name)
}

// mayBeSet returns an error if a configuration that came over the network asks for what only the servers' own may.
func (a *Authority) mayBeSet(next *trust.Configuration) error {
	err := external.MayBeSet(next.Config)
	if err == nil && next.Provider == ca.Vault {
		var own map[string]any
		if a.cfg.Provider == ca.Vault {
			own = a.cfg.Settings
		}
		err = vault.MayBeSet(next.Config, own)
	}
	if err != nil {
		return fmt.Errorf("error configuring provider: %w", err)
	}
	return nil
}

// renew replaces the intermediate of the active root when half of its life is over. The caller holds a.changing.
func (a *Authority) renew(ctx context.Context, view *state.View, apply ApplyFunc) error {
	_, roots := view.CARoots()
	_, config := view.CAConfig()
	active := ca.ActiveRoot(roots)
	kept := view.CAProvider(active.ID)
	if kept == nil || kept.Intermediate == "" {
		return nil
	}
	provider, err := a.providerOf(view, active)
	if err != nil {
		return err
	}
	now := time.Now()
	if !ca.HalfLifeOver(provider.Issuer(), now) {
		return nil
	}
	if end := active.NotAfter; !provider.Issuer().NotAfter.Before(end.Add(-time.Minute)) { // another could not live longer
		a.log.Warn("the CA root expires, and needs to be replaced", "expires", end)
		return nil
	}
	next, err := provider.Renew(ctx)
	if errors.Is(err, ca.ErrNoIntermediate) {
		if left := provider.Issuer().NotAfter.Sub(now); left < 30*24*time.Hour {
			a.log.Warn("the CA's signing certificate expires, and somebody else has to renew it", "left", left.Round(time.Hour))
		}
		return nil
	}
	if err == nil {
		err = ca.CheckEstablished(next, config.ClusterID, now)
	}
	if err != nil {
		return fmt.Errorf("renew the CA's intermediate: %w", err)
	}
	changed := *config
	if ca.PendingRoot(roots) == nil { // else the configuration is another's
		changed.State = next.State
	}
	if err := a.store(ctx, view, apply, &changed, next); err != nil {
		return err
	}
	a.log.Info("renewed the CA's intermediate, half of whose life was over")
	return nil
}

// retire lets the providers of roots that sign no more remove what they have outside. What fails is tried again by the
// next call. The caller holds a.changing.
func (a *Authority) retire(ctx context.Context, store *state.Store, apply ApplyFunc) {
	view := store.View()
	_, roots := view.CARoots()
	_, config := view.CAConfig()
	active := ca.ActiveRoot(roots)
	for _, r := range roots {
		kept := view.CAProvider(r.ID)
		if r.Active || !r.SpreadSince.IsZero() || kept == nil || kept.CleanedUp || providerName(kept) == ca.BuiltIn {
			continue
		}
		if err := a.cleanup(ctx, kept, view.CAProvider(active.ID), config); err != nil {
			a.log.Warn("an old CA provider did not clean up, will retry", "root", r.ID, "provider", providerName(kept), "error", err)
			continue
		}
		done := caprovider.Copy(kept)
		done.CleanedUp, done.Config, done.PrivateKey = true, nil, "" // secrets are needed no more
		rootsIndex, _ := view.CARoots()
		configIndex, _ := view.CAConfig()
		if _, err := apply(ctx, fsm.CAConfig, &setCommand{RootsIndex: rootsIndex, ConfigIndex: configIndex, Provider: done}); err != nil {
			a.log.Warn("what an old CA provider has cleaned up cannot be noted, will retry", "root", r.ID, "error", err)
		}
	}
}

// cleanupTimeout is short: somebody waits for the change that made it necessary, and it is tried again.
const cleanupTimeout = 10 * time.Second

func (a *Authority) cleanup(ctx context.Context, kept, next *trust.ProviderState, config *trust.Configuration) error {
	provider, err := a.open(kept, config)
	if err != nil {
		return err
	}
	defer provider.Close()
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	return provider.Cleanup(ctx, next)
}

// maxDatacenter bounds the name of a datacenter.
const maxDatacenter = 64

// signIntermediate signs what the servers of another datacenter sign their leaves with. Only servers are let in.
func (a *Authority) signIntermediate(ctx context.Context, c *transport.Call, req *ca.SignIntermediateRequest) (*ca.SignIntermediateReply, acl.Permit, error) {
	if a.cfg.Disabled {
		return nil, acl.Permit{}, wireerr.ErrConnectDisabled
	}
	permit, err := c.Authorizer.Require(acl.Operator, acl.Write, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	view, config, root, err := a.ready(ctx, c.Store)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if !plainName(req.ForDatacenter) || req.ForDatacenter == c.Datacenter {
		return nil, acl.Permit{}, wireerr.BadRequest("%q is not the name of another datacenter", req.ForDatacenter)
	}
	request, err := ca.ParseIntermediateCSR(req.CSR, connect.TrustDomain(config.ClusterID))
	if err != nil {
		return nil, acl.Permit{}, wireerr.BadRequest("%v", err)
	}
	turn, err := a.turn(ctx, view, config, root)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	defer turn.done()
	cert, err := ca.SignIntermediate(ctx, request, ca.IntermediateParams{
		Provider: turn.provider, Datacenter: req.ForDatacenter, Serial: turn.serial, Now: time.Now(), TTL: turn.settings.IntermediateCertTTL,
	})
	if err != nil {
		return nil, acl.Permit{}, err
	}
	a.log.Info("signed the intermediate of another datacenter", "datacenter", req.ForDatacenter)
	return &ca.SignIntermediateReply{Certificate: cert, RootID: root.ID}, permit, nil
}

// plainName tells whether a text can be the name of a datacenter.
func plainName(name string) bool {
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' {
			return false
		}
	}
	return name != "" && len(name) <= maxDatacenter
}

// serial makes the serial number of a certificate: random, positive, and always of the same length.
func (a *Authority) serial() ([]byte, error) {
	serial := make([]byte, 16)
	if _, err := io.ReadFull(a.cfg.Random, serial); err != nil {
		return nil, err
	}
	serial[0] = serial[0]&0x7f | 0x40
	return serial, nil
}
