// Package svidrpc answers the calls about JWT-SVIDs (connect/svid): the leader signs them with keys that are replicated
// among the servers, and replaces the keys in time.
package svidrpc

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/svid"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/leader"
	"github.com/sarnmesh/sarn/server/transport"
)

// Config tunes the handlers. A zero field takes its default.
type Config struct {
	Disabled bool      // connect.enabled = false
	Random   io.Reader // default crypto/rand
}

type handlers struct{ cfg Config }

// Register adds the handlers and appliers.
func Register(r *transport.Registry, a *fsm.Appliers, cfg Config) {
	h := &handlers{cfg}
	fsm.Handle(a, fsm.SVIDKeys, apply)
	transport.Handle(r, svid.SignCall, h.sign)
	transport.HandleRead(r, svid.KeysCall, h.keys)
}

// factName is the name under which the keys are stored.
const factName = "jwt-svid-keys"

// A setKeys command replaces the keys, if nobody else has since.
type setKeys struct {
	Keys  svid.Keys
	Index uint64 // of the keys that these were made from, 0 for none
}

func apply(tx *state.Tx, cmd *setKeys) (*struct{}, error) {
	data, err := rpc.Marshal(&cmd.Keys)
	if err != nil {
		return nil, err
	}
	if old := tx.Fact(factName); old == nil && cmd.Index == 0 {
		tx.SetFact(factName, data)
	} else if !tx.CompareAndSetFact(factName, data, cmd.Index) {
		return nil, errors.New("the keys for tokens were changed at the same time")
	}
	return nil, nil
}

// stored returns the keys and their index.
func stored(v *state.View) (*svid.Keys, uint64, error) {
	keys := &svid.Keys{}
	f := v.Fact(factName)
	if f == nil {
		return keys, 0, nil
	}
	return keys, f.ModifyIndex, rpc.Unmarshal(f.Data, keys)
}

// checkEvery is how often the leader looks whether keys are to be replaced: much more often than they are.
const checkEvery = 10 * time.Minute

// Duty keeps the keys.
func Duty(cfg Config) leader.Duty {
	random := cfg.Random
	if random == nil {
		random = rand.Reader
	}
	return leader.Duty{Name: "token-keys", Run: func(ctx context.Context, l *leader.Leader) error {
		if cfg.Disabled {
			return nil
		}
		tick := time.NewTicker(checkEvery)
		defer tick.Stop()
		for {
			keys, index, err := stored(l.Store.View())
			if err != nil {
				return err
			}
			next, err := keys.Next(random, time.Now())
			if err != nil {
				return err
			}
			if next != nil {
				if _, err := l.Apply(ctx, fsm.SVIDKeys, &setKeys{Keys: *next, Index: index}); err != nil {
					return err
				}
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	}}
}

func trustDomain(v *state.View) (string, error) {
	_, config := v.CAConfig()
	if config == nil {
		return "", errors.New("the certificate authority is not ready yet")
	}
	return connect.TrustDomain(config.ClusterID), nil
}

func (h *handlers) sign(_ context.Context, c *transport.Call, req *svid.SignRequest) (*svid.SignReply, acl.Permit, error) {
	if h.cfg.Disabled {
		return nil, acl.Permit{}, wireerr.ErrConnectDisabled
	}
	if req.Service == "" {
		return nil, acl.Permit{}, wireerr.BadRequest("a service must be named")
	}
	if err := svid.CheckAudience(req.Audience); err != nil {
		return nil, acl.Permit{}, wireerr.BadRequest("%v", err)
	}
	permit, err := c.Authorizer.Require(acl.Service, acl.Write, req.Service)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	v := c.Store.View()
	domain, err := trustDomain(v)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	keys, _, err := stored(v)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	id := connect.ServiceID(domain, c.Datacenter, req.Service)
	reply := &svid.SignReply{ID: id.String()}
	reply.Token, reply.Expires, err = keys.Sign(id, req.Audience, time.Now())
	return reply, permit, err
}

func (h *handlers) keys(_ *transport.Call, v *state.View, _ *svid.KeysRequest) (*svid.KeysReply, acl.Permit, error) {
	if h.cfg.Disabled {
		return nil, acl.Permit{}, wireerr.ErrConnectDisabled
	}
	domain, err := trustDomain(v)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	keys, index, err := stored(v)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	reply := &svid.KeysReply{TrustDomain: domain}
	reply.Index = index
	reply.JWKS, err = keys.JWKS()
	return reply, acl.Open(), err
}
