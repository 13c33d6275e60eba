package connectrpc

import (
	"context"
	"crypto/subtle"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

// Register adds the handlers and appliers of the authority.
func (a *Authority) Register(r *transport.Registry, f *fsm.Appliers) {
	fsm.Handle(f, fsm.CARoots, applySet)
	fsm.Handle(f, fsm.CAConfig, applySet)
	fsm.Handle(f, fsm.System, applySecret)
	transport.HandleRead(r, ca.RootsCall, a.roots)
	transport.HandleRead(r, ca.ConfigCall, a.config)
	transport.Handle(r, ca.SetConfigCall, a.setConfig)
	transport.Handle(r, ca.SignCall, a.sign)
	transport.Handle(r, ca.SignServerCall, a.signServer)
	transport.HandleServers(r, ca.SignIntermediateCall, a.signIntermediate)
	transport.Handle(r, ca.ConfirmCall, a.confirm)
	transport.HandleServers(r, ca.ConfirmDatacenterCall, a.confirmDatacenter)
	transport.Handle(r, ca.RotateCall, a.rotate)
	transport.Handle(r, ca.RotationCall, a.rotation)
}

func (a *Authority) roots(_ *transport.Call, v *state.View, _ *ca.RootsRequest) (*ca.RootsReply, acl.Permit, error) {
	if a.cfg.Disabled {
		return nil, acl.Permit{}, wireerr.ErrConnectDisabled
	}
	reply := &ca.RootsReply{Roots: []*trust.Root{}}
	index, roots := v.CARoots()
	reply.Index = index
	for _, r := range roots {
		reply.Roots = append(reply.Roots, r)
		if r.Active {
			reply.ActiveRootID = r.ID
		}
	}
	if _, config := v.CAConfig(); config != nil {
		reply.TrustDomain = connect.TrustDomain(config.ClusterID)
	}
	return reply, acl.Open(), nil
}

func (a *Authority) config(c *transport.Call, v *state.View, _ *ca.ConfigRequest) (*ca.ConfigReply, acl.Permit, error) {
	if a.cfg.Disabled {
		return nil, acl.Permit{}, wireerr.ErrConnectDisabled
	}
	// Reading needs write: it tells how the mesh's identities are made.
	permit, err := c.Authorizer.Require(acl.Operator, acl.Write, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	index, config := v.CAConfig()
	if config == nil {
		return nil, acl.Permit{}, a.notReady()
	}
	shown := *config
	shown.ClusterID, shown.FromAgent = "", nil
	shown.Config = ca.Redact(config.Config)
	reply := &ca.ConfigReply{Config: &shown}
	reply.Index = index
	return reply, permit, nil
}

func (a *Authority) setConfig(ctx context.Context, c *transport.Call, req *ca.SetConfigRequest) (*struct{}, acl.Permit, error) {
	if a.cfg.Disabled {
		return nil, acl.Permit{}, wireerr.ErrConnectDisabled
	}
	if a.secondary() {
		return inPrimary(ctx, a, ca.SetConfigCall, req)
	}
	permit, err := c.Authorizer.Require(acl.Operator, acl.Write, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	a.changing.Lock()
	defer a.changing.Unlock()
	view := c.Store.View()
	_, config := view.CAConfig()
	if config == nil {
		return nil, acl.Permit{}, a.notReady()
	}
	if req.Config.State != nil && !maps.Equal(req.Config.State, config.State) {
		return nil, acl.Permit{}, wireerr.BadRequest("Provider State is read-only. It must be omitted or identical to the current value")
	}
	next := &trust.Configuration{
		Provider: req.Config.Provider, Config: maps.Clone(req.Config.Config), State: config.State,
		ForceWithoutCrossSigning: req.Config.ForceWithoutCrossSigning,
	}
	apply := func(ctx context.Context, k fsm.Kind, req any) (any, error) { return c.Apply(ctx, permit, k, req) }
	if err := a.mayBeSet(next); err != nil {
		return nil, acl.Permit{}, err
	}
	if err := a.change(ctx, view, apply, next, false); err != nil {
		return nil, acl.Permit{}, err
	}
	a.retire(ctx, c.Store, apply)
	return &struct{}{}, permit, nil
}

// withoutKey removes the built-in provider's key, which is kept apart.
func withoutKey(config map[string]any) map[string]any {
	out := make(map[string]any, len(config))
	for k, v := range config {
		if !strings.EqualFold(k, "PrivateKey") {
			out[k] = v
		}
	}
	return out
}

// errNotReady is answered before the first leader has made a root.
var errNotReady = errors.New("CA is uninitialized and unable to sign certificates yet: no root certificate")

// readyWait is how long a request to sign waits for the first root.
const readyWait = 5 * time.Second

func (a *Authority) sign(ctx context.Context, c *transport.Call, req *ca.SignRequest) (*ca.SignReply, acl.Permit, error) {
	return a.signFor(ctx, c, req, func(id connect.ID) (acl.Permit, error) { return ca.Authorize(c.Authorizer, id) })
}

// secretFact is the name under which the secret of the servers is stored.
const secretFact = "servers-secret"

// A setSecret command stores the secret of the servers, unless there is one.
type setSecret struct{ Secret string }

func applySecret(tx *state.Tx, cmd *setSecret) (*struct{}, error) {
	if tx.Fact(secretFact) == nil {
		tx.SetFact(secretFact, []byte(cmd.Secret))
	}
	return nil, nil
}

// Secret returns what the servers of a cluster, and nobody else, know of one another: it is part of what they replicate.
// It is empty before the first leader has made it.
func Secret(v *state.View) string {
	if f := v.Fact(secretFact); f != nil {
		return string(f.Data)
	}
	return ""
}

var errServerIdentity = wireerr.Errorf(http.StatusForbidden, "Permission denied: the request is not for the certificate of a server")

// signServer signs a server's own certificate, for who knows the secret of the servers.
func (a *Authority) signServer(ctx context.Context, c *transport.Call, req *ca.SignRequest) (*ca.SignReply, acl.Permit, error) {
	return a.signFor(ctx, c, req, func(id connect.ID) (acl.Permit, error) {
		secret := Secret(c.Store.View())
		if id.Kind() != connect.Server || secret == "" || subtle.ConstantTimeCompare([]byte(secret), []byte(req.Secret)) != 1 {
			return acl.Permit{}, errServerIdentity
		}
		return acl.Open(), nil
	})
}

// signFor signs a request for an identity that the caller may be.
func (a *Authority) signFor(ctx context.Context, c *transport.Call, req *ca.SignRequest, may func(connect.ID) (acl.Permit, error)) (*ca.SignReply, acl.Permit, error) {
	if a.cfg.Disabled {
		return nil, acl.Permit{}, wireerr.ErrConnectDisabled
	}
	view, config, root, err := a.ready(ctx, c.Store)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	request, err := ca.ParseCSR(req.CSR, connect.TrustDomain(config.ClusterID), c.Datacenter)
	if err != nil {
		return nil, acl.Permit{}, wireerr.BadRequest("%v", err)
	}
	permit, err := may(request.ID())
	if err != nil {
		return nil, acl.Permit{}, err
	}
	if err := checkHosts(view, request.ID(), req); err != nil {
		return nil, acl.Permit{}, err
	}
	turn, err := a.turn(ctx, view, config, root)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	defer turn.done()
	leaf, err := ca.SignLeaf(ctx, request, ca.LeafParams{
		Provider: turn.provider, Root: root, Serial: turn.serial, Now: time.Now(), TTL: turn.settings.LeafCertTTL, Hosts: req.Hosts,
		IPs: req.IPs,
	})
	if err != nil {
		return nil, acl.Permit{}, err
	}
	index, _ := view.CARoots()
	leaf.CreateIndex, leaf.ModifyIndex = index, index
	return &ca.SignReply{Leaf: *leaf}, permit, nil
}

// A turn is what one certificate is signed with.
type turn struct {
	settings ca.Settings
	provider ca.Provider
	serial   []byte
	done     func() // ends the turn
}

// turn waits for a turn to sign under a root.
func (a *Authority) turn(ctx context.Context, view *state.View, config *trust.Configuration, root *trust.Root) (*turn, error) {
	settings, err := ca.ParseSettings(config.Provider, config.Config)
	if err != nil {
		return nil, err
	}
	done, err := a.limit.acquire(ctx, settings.CSRMaxPerSecond, settings.CSRMaxConcurrent)
	if err != nil {
		return nil, err
	}
	t := &turn{settings: settings, done: done}
	if t.provider, err = a.providerOf(view, root); err == nil {
		t.serial, err = a.serial()
	}
	if err != nil {
		done()
		return nil, err
	}
	return t, nil
}

// checkHosts returns nil when the leaf of an identity may carry names: those of an ingress gateway's entry, and of the
// zone that DNS answers for services behind ingress gateways; on that of an agent, names that are no server's.
func checkHosts(v *state.View, id connect.ID, req *ca.SignRequest) error {
	hosts := req.Hosts
	if id.Kind() == connect.Agent {
		if err := ca.CheckAgentNames(hosts, req.IPs, id.TrustDomain()); err != nil {
			return wireerr.BadRequest("%v", err)
		}
		return nil
	}
	if len(req.IPs) > 0 {
		return wireerr.BadRequest("only agents have certificates with addresses, %s %q is none", id.Kind(), id.Name())
	}
	if len(hosts) == 0 {
		return nil
	}
	var named []string
	if gateway, ok := v.Entry(entry.KindIngressGateway, id.Name()).(*entry.IngressGateway); ok && id.Kind() == connect.Service {
		named = gateway.Hosts()
	} else {
		return wireerr.BadRequest("only ingress gateways have certificates with host names, %s %q is none", id.Kind(), id.Name())
	}
	for _, h := range hosts {
		if !slices.Contains(named, h) && !strings.HasPrefix(h, "*.ingress.") {
			return wireerr.BadRequest("the entry of ingress gateway %q does not name host %q", id.Name(), h)
		}
	}
	return nil
}

// ready returns the configuration and active root, waiting a little for those of a cluster that has only just started.
func (a *Authority) ready(ctx context.Context, store *state.Store) (*state.View, *trust.Configuration, *trust.Root, error) {
	ctx, cancel := context.WithTimeout(ctx, readyWait)
	defer cancel()
	for {
		view := store.WatchView()
		_, config := view.CAConfig()
		_, roots := view.CARoots()
		if root := ca.ActiveRoot(roots); config != nil && root != nil {
			return view, config, root, nil
		}
		if view.Wait(ctx) != nil {
			return nil, nil, nil, a.notReady()
		}
	}
}
