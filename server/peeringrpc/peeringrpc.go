// Package peeringrpc answers the calls about peerings with other clusters (package catalog/peering), and applies their
// changes to the state. The streams between clusters are those of package server/peering.
package peeringrpc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

// Config tunes the handlers. A zero field takes its default.
type Config struct {
	Disabled bool // peering.enabled = false
	// Exchange shows the other side the secret of a token and returns the one that streams are opened with, and what the
	// other side tells about itself. ErrSecretUsed is wrapped by its error when the secret is not, or no longer, good.
	Exchange func(ctx context.Context, t *peering.Token) (stream string, err error)
	// Status returns what is known of the stream of the peering with an ID; default nothing.
	Status func(id string) peering.Status
	Random io.Reader // default crypto/rand
}

// ErrSecretUsed reports a token whose secret the other side does not take.
var ErrSecretUsed = errors.New("the secret of the token was used or replaced")

type handlers struct{ cfg Config }

// Register adds the handlers and appliers.
func Register(r *transport.Registry, a *fsm.Appliers, cfg Config) {
	if cfg.Random == nil {
		cfg.Random = rand.Reader
	}
	if cfg.Status == nil {
		cfg.Status = func(string) peering.Status { return peering.Status{} }
	}
	if cfg.Exchange == nil {
		cfg.Exchange = func(context.Context, *peering.Token) (string, error) {
			return "", errors.New("this server does not call others")
		}
	}
	h := &handlers{cfg}
	fsm.Handle(a, fsm.Peering, func(tx *state.Tx, u *peering.Update) (*struct{}, error) { return nil, tx.UpdatePeering(u) })
	fsm.Handle(a, fsm.PeeringChange, func(tx *state.Tx, c *peering.Change) (*peering.ChangeReply, error) { return tx.ChangeImports(c) })
	transport.Handle(r, peering.TokenCall, h.token)
	transport.Handle(r, peering.EstablishCall, h.establish)
	transport.Handle(r, peering.DeleteCall, h.delete)
	transport.HandleRead(r, peering.GetCall, h.get)
	transport.HandleRead(r, peering.ListCall, h.list)
	transport.HandleRead(r, peering.BundleCall, h.bundle)
	transport.HandleRead(r, peering.BundlesCall, h.bundles)
	transport.HandleRead(r, peering.ExportsCall, h.exports)
	transport.HandleRead(r, peering.ImportsCall, h.imports)
}

// secretBytes is the size of secrets.
const secretBytes = 32

// NewSecret returns a fresh secret.
func NewSecret(random io.Reader) (string, error) {
	b := make([]byte, secretBytes)
	if _, err := io.ReadFull(random, b); err != nil {
		return "", err
	}
	return hex.EncodeToString(b), nil
}

func (h *handlers) uuid() (string, error) {
	var b [16]byte
	if _, err := io.ReadFull(h.cfg.Random, b[:]); err != nil {
		return "", err
	}
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]), nil
}

// mayWrite asks for what changes of peerings need.
func (h *handlers) mayWrite(c *transport.Call, name string, meta map[string]string) (acl.Permit, error) {
	if h.cfg.Disabled {
		return acl.Permit{}, peering.ErrDisabled
	}
	if err := peering.CheckName(name); err != nil {
		return acl.Permit{}, err
	}
	if err := peering.CheckMeta(meta); err != nil {
		return acl.Permit{}, err
	}
	return c.Authorizer.Require(acl.Peering, acl.Write, "")
}

func (h *handlers) token(ctx context.Context, c *transport.Call, req *peering.TokenRequest) (*peering.TokenReply, acl.Permit, error) {
	permit, err := h.mayWrite(c, req.Name, req.Meta)
	if err != nil {
		return nil, permit, err
	}
	if err := peering.CheckAddresses(req.Addresses); err != nil {
		return nil, permit, fmt.Errorf("ServerExternalAddresses: %w", err)
	}
	v := c.Store.View()
	t := &peering.Token{ManualServerAddresses: req.Addresses, Remote: peering.Remote{Datacenter: c.Datacenter}}
	trustDomain, roots := Roots(v)
	if len(roots) == 0 {
		return nil, permit, wireerr.ErrConnectDisabled
	}
	t.CA, t.ServerName = roots, connect.PeeringServerSNI(c.Datacenter, trustDomain)
	if t.ServerAddresses, err = Addresses(v); err != nil {
		return nil, permit, err
	}
	_, old := v.Peering(req.Name)
	next := &peering.Peering{Name: req.Name, State: peering.Pending}
	switch {
	case old == nil:
		if next.ID, err = h.uuid(); err != nil {
			return nil, permit, err
		}
	case old.Dials():
		return nil, permit, fmt.Errorf("cannot create peering with name: %q; there is already an established peering", req.Name)
	case !old.Open():
		return nil, permit, errEnding(old)
	default:
		own := *old
		next = &own
	}
	if req.Meta != nil {
		next.Meta = req.Meta
	}
	next.ManualAddresses = req.Addresses
	if t.EstablishmentSecret, err = NewSecret(h.cfg.Random); err != nil {
		return nil, permit, err
	}
	t.PeerID = next.ID
	text, err := t.Encode()
	if err != nil {
		return nil, permit, err
	}
	secrets := &peering.Secrets{}
	if s := v.PeeringSecrets(next.ID); s != nil {
		*secrets = *s
	}
	secrets.Establishment = peering.Digest(t.EstablishmentSecret)
	if _, err := c.Apply(ctx, permit, fsm.Peering, &peering.Update{Peering: next, Secrets: secrets, Fresh: old == nil}); err != nil {
		return nil, permit, err
	}
	return &peering.TokenReply{Token: text}, permit, nil
}

func errEnding(p *peering.Peering) error {
	return fmt.Errorf("there is a peering with name %q that has ended (%s): delete it first, or wait until it is gone", p.Name, p.State)
}

// Roots returns the trust domain of this cluster and the certificates its members are verified with, the active one
// first; none before there is an authority.
func Roots(v *state.View) (trustDomain string, pems []string) {
	_, config := v.CAConfig()
	_, roots := v.CARoots()
	if config == nil {
		return "", nil
	}
	for _, r := range roots {
		if r.Active {
			pems = slices.Insert(pems, 0, r.RootCert)
		} else {
			pems = append(pems, r.RootCert)
		}
	}
	return connect.TrustDomain(config.ClusterID), pems
}

// Addresses returns where this cluster's servers are reached by its peers, in order: the servers' own addresses, or those
// of mesh gateways where these are to be used.
func Addresses(v *state.View) ([]string, error) {
	if m := state.EntryAs[entry.Mesh](v, entry.KindMesh, entry.MeshName); m != nil && m.Peering != nil && m.Peering.PeerThroughMeshGateways {
		_, gateways := v.InstancesOfKind(catalog.KindMeshGateway)
		var list []string
		for _, g := range gateways {
			if host, port := GatewayAddress(g); host != "" && port > 0 {
				list = append(list, net.JoinHostPort(host, strconv.Itoa(port)))
			}
		}
		if len(list) == 0 {
			return nil, peering.ErrNoGateways
		}
		slices.Sort(list)
		return slices.Compact(list), nil
	}
	_, servers := v.Instances(catalog.ServerServiceName, true)
	var list []string
	for _, i := range servers {
		if a := ServerAddress(i); a != "" {
			list = append(list, a)
		}
	}
	if len(list) == 0 {
		return nil, peering.ErrNoTLS
	}
	slices.Sort(list)
	return list, nil
}

// ServerAddress returns the address of a server's gRPC-TLS port, empty if it has none or is no voter.
func ServerAddress(i *catalog.Instance) string {
	port := i.Service.Meta["grpc_tls_port"]
	if n, err := strconv.Atoi(port); err != nil || n <= 0 || i.Service.Meta["read_replica"] == "true" {
		return ""
	}
	host := i.Service.Address
	if host == "" {
		host = i.Node.Address
	}
	if wan := i.Node.TaggedAddresses["wan"]; wan != "" {
		host = wan
	}
	return net.JoinHostPort(host, port)
}

// GatewayAddress returns where a mesh gateway is reached from outside.
func GatewayAddress(i *catalog.Instance) (host string, port int) {
	if wan, ok := i.Service.TaggedAddresses["wan"]; ok && wan.Address != "" {
		return wan.Address, wan.Port
	}
	host = i.Service.Address
	if host == "" {
		host = i.Node.Address
		if wan := i.Node.TaggedAddresses["wan"]; wan != "" {
			host = wan
		}
	}
	return host, i.Service.Port
}

// contains reports whether a certificate is among others.
func contains(pems []string, pem string) bool {
	return slices.ContainsFunc(pems, func(other string) bool { return strings.TrimSpace(other) == strings.TrimSpace(pem) })
}

// exchangeTime is how long the other side may take to answer about a token.
const exchangeTime = 30 * time.Second

func (h *handlers) establish(ctx context.Context, c *transport.Call, req *peering.EstablishRequest) (*struct{}, acl.Permit, error) {
	permit, err := h.mayWrite(c, req.Name, req.Meta)
	if err != nil {
		return nil, permit, err
	}
	t, err := peering.DecodeToken(req.Token)
	if err != nil {
		return nil, permit, err
	}
	v := c.Store.View()
	own, roots := Roots(v)
	theirs, err := peering.ServerTrustDomain(t.ServerName)
	switch {
	case err != nil:
		return nil, permit, err
	case own == "":
		return nil, permit, wireerr.ErrConnectDisabled
	case v.PeeringByID(t.PeerID) != nil, connect.SameTrustDomain(theirs, own) && slices.ContainsFunc(t.CA, func(pem string) bool { return contains(roots, pem) }):
		return nil, permit, peering.ErrSameCluster // this datacenter, or one that shares its authority
	}
	_, old := v.Peering(req.Name)
	next := &peering.Peering{Name: req.Name}
	switch {
	case old == nil:
		if next.ID, err = h.uuid(); err != nil {
			return nil, permit, err
		}
	case !old.Dials():
		return nil, permit, fmt.Errorf("cannot create peering with name: %q; there is an existing peering expecting to be dialed", req.Name)
	case !old.Open():
		return nil, permit, errEnding(old)
	default:
		kept := *old
		next = &kept
		if before, _ := peering.ServerTrustDomain(old.PeerServerName); !connect.SameTrustDomain(theirs, before) {
			return nil, permit, fmt.Errorf("cannot create peering with name: %q; there is already a peering with another cluster", req.Name)
		}
	}
	_, all := v.Peerings()
	for _, p := range all {
		if p.Name != req.Name && p.Dials() && p.PeerID == t.PeerID {
			return nil, permit, fmt.Errorf("cannot create peering with name: %q; the token is that of peering %q", req.Name, p.Name)
		}
	}
	if req.Meta != nil {
		next.Meta = req.Meta
	}
	next.State, next.PeerID, next.PeerCAPems, next.PeerServerName = peering.Establishing, t.PeerID, t.CA, t.ServerName
	next.PeerServerAddresses, next.Fixed, next.Remote = t.Addresses(), len(t.ManualServerAddresses) > 0, t.Remote
	asking, cancel := context.WithTimeout(ctx, exchangeTime)
	defer cancel()
	stream, err := h.cfg.Exchange(asking, t)
	switch {
	case errors.Is(err, ErrSecretUsed):
		return nil, permit, wireerr.Errorf(http.StatusForbidden, "a new peering token must be generated: %v", ErrSecretUsed)
	case err != nil:
		return nil, permit, fmt.Errorf("failed to establish peering: %w", err)
	}
	update := &peering.Update{Peering: next, Secrets: &peering.Secrets{Stream: stream}, Fresh: old == nil}
	_, err = c.Apply(ctx, permit, fsm.Peering, update)
	return nil, permit, err
}

func (h *handlers) delete(ctx context.Context, c *transport.Call, req *peering.DeleteRequest) (*struct{}, acl.Permit, error) {
	if h.cfg.Disabled {
		return nil, acl.Permit{}, peering.ErrDisabled
	}
	permit, err := c.Authorizer.Require(acl.Peering, acl.Write, "")
	if err != nil {
		return nil, permit, err
	}
	// Its state may change at the same time.
	for try := 0; ; try++ {
		_, old := c.Store.View().Peering(req.Name)
		if old == nil || old.State == peering.Deleting {
			return nil, permit, nil
		}
		next := *old
		next.State, next.DeletedAt = peering.Deleting, time.Now().UTC()
		if _, err = c.Apply(ctx, permit, fsm.Peering, &peering.Update{Peering: &next}); err == nil || try == deleteTries {
			return nil, permit, err
		}
	}
}

// deleteTries is how often a deletion is tried again.
const deleteTries = 3

// mayRead asks for what reading peerings needs.
func (h *handlers) mayRead(c *transport.Call) (acl.Permit, error) {
	if h.cfg.Disabled {
		return acl.Permit{}, peering.ErrDisabled
	}
	return c.Authorizer.Require(acl.Peering, acl.Read, "")
}

// show returns a peering as it is answered, and the index of what that was made of.
func (h *handlers) show(v *state.View, p *peering.Peering) (uint64, *peering.Shown) {
	s := &peering.Shown{Peering: *p, Status: h.cfg.Status(p.ID)}
	index, imports := v.Imports(p.Name)
	for _, i := range imports {
		s.Status.ImportedServices = append(s.Status.ImportedServices, i.Service)
	}
	exported, names := v.Exports(p.Name)
	if p.State == peering.Active || p.State == peering.Failing {
		s.Status.ExportedServices = names
	}
	return max(index, exported, p.ModifyIndex), s
}

func (h *handlers) get(c *transport.Call, v *state.View, req *peering.GetRequest) (*peering.GetReply, acl.Permit, error) {
	permit, err := h.mayRead(c)
	if err != nil {
		return nil, permit, err
	}
	reply := &peering.GetReply{}
	index, p := v.Peering(req.Name)
	reply.Index = index
	if p == nil {
		reply.NotFound = true
		return reply, permit, nil
	}
	reply.Index, reply.Peering = h.show(v, p)
	return reply, permit, nil
}

func (h *handlers) list(c *transport.Call, v *state.View, _ *peering.ListRequest) (*peering.ListReply, acl.Permit, error) {
	permit, err := h.mayRead(c)
	if err != nil {
		return nil, permit, err
	}
	reply := &peering.ListReply{Peerings: []*peering.Shown{}}
	index, all := v.Peerings()
	reply.Index = index
	for _, p := range all {
		at, s := h.show(v, p)
		reply.Index = max(reply.Index, at)
		reply.Peerings = append(reply.Peerings, s)
	}
	return reply, permit, nil
}

func (h *handlers) bundle(c *transport.Call, v *state.View, req *peering.BundleRequest) (*peering.BundleReply, acl.Permit, error) {
	permit, err := c.Authorizer.RequireAny(acl.Service, acl.Write)
	if err != nil {
		return nil, permit, err
	}
	reply := &peering.BundleReply{}
	reply.Index, reply.Bundle = v.PeerBundle(req.Peer)
	return reply, permit, nil
}

func (h *handlers) bundles(c *transport.Call, v *state.View, req *peering.BundlesRequest) (*peering.BundlesReply, acl.Permit, error) {
	var permit acl.Permit
	var err error
	if req.Service != "" {
		permit, err = c.Authorizer.Require(acl.Service, acl.Read, req.Service)
	} else {
		permit, err = c.Authorizer.RequireAny(acl.Service, acl.Write)
	}
	if err != nil {
		return nil, permit, err
	}
	reply := &peering.BundlesReply{Bundles: []*peering.Bundle{}}
	index, all := v.PeerBundles()
	reply.Index = index
	if req.Service == "" {
		reply.Bundles = append(reply.Bundles, all...)
		return reply, permit, nil
	}
	exported, exports := v.AllExports()
	reply.Index = max(index, exported)
	for _, b := range all {
		if slices.Contains(exports[req.Service], b.Peer) {
			reply.Bundles = append(reply.Bundles, b)
		}
	}
	return reply, permit, nil
}

func (h *handlers) imports(c *transport.Call, v *state.View, _ *peering.ImportsRequest) (*peering.ImportsReply, acl.Permit, error) {
	permit, err := c.Authorizer.RequireAny(acl.Service, acl.Write)
	if err != nil {
		return nil, permit, err
	}
	reply := &peering.ImportsReply{Imports: []peering.Key{}}
	index, all := v.Imports("")
	reply.Index = index
	for _, i := range all {
		reply.Imports = append(reply.Imports, peering.Key{Peer: i.Peer, Service: i.Service})
	}
	return reply, permit, nil
}

func (h *handlers) exports(c *transport.Call, v *state.View, req *peering.ExportsRequest) (*peering.ExportsReply, acl.Permit, error) {
	reply := &peering.ExportsReply{Exports: []peering.Export{}}
	index, all := v.AllExports()
	known, peerings := v.Peerings()
	reply.Index = max(index, known)
	for name, peers := range all {
		if !c.Authorizer.May(acl.Service, acl.Read, name) {
			reply.Filtered = !c.Authorizer.Anonymous()
			continue
		}
		x := peering.Export{Service: name, Protocol: chain.Protocol(v, name)}
		for _, p := range peerings {
			if p.Open() && slices.Contains(peers, p.Name) && (req.Peer == "" || p.Name == req.Peer) {
				x.Peers = append(x.Peers, p.Name)
			}
		}
		if len(x.Peers) > 0 {
			reply.Exports = append(reply.Exports, x)
		}
	}
	for _, k := range []entry.Kind{entry.KindServiceDefaults, entry.KindProxyDefaults} {
		changed, _ := v.Entries(k)
		reply.Index = max(reply.Index, changed)
	}
	slices.SortFunc(reply.Exports, func(a, b peering.Export) int { return strings.Compare(a.Service, b.Service) })
	return reply, c.Authorizer.Filtering(), nil
}
