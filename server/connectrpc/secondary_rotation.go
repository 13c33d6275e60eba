package connectrpc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/transport"
)

// The primary datacenter waits for secondary ones as it does for its nodes: each tells now and then how far it is. One that
// has not told for a while is waited for no more; it finds its way when it is back, since new roots are cross-signed.

const (
	tellEvery         = 30 * time.Second
	tellPause         = time.Second // at least
	datacenterGone    = 2 * time.Minute
	maxDatacenters    = 1000
	maxRotationReport = 128 // bytes of a field
)

// A datacenterReport is what a secondary datacenter has told last.
type datacenterReport struct {
	ca.ConfirmDatacenterRequest
	at time.Time
}

// node returns what is waited for.
func (d datacenterReport) node(active, pending *trust.Root) *ca.RotationNode {
	n := &ca.RotationNode{Node: "datacenter " + d.FromDatacenter, Seen: d.at, Waiting: []string{}}
	if pending != nil {
		n.Confirmed = d.NewRootID == pending.ID && d.Required == d.Confirmed
	} else {
		n.Confirmed = d.NewRootID == active.ID && d.Phase != ca.PhaseSpreading && d.Phase != ca.PhaseSigning
	}
	if !n.Confirmed && d.Required > d.Confirmed {
		n.Waiting = append(n.Waiting, fmt.Sprintf("%d of %d nodes", d.Required-d.Confirmed, d.Required))
	}
	return n
}

// datacenters returns what those that are there have told last, in the order of their names.
func (r *reports) datacenters() []datacenterReport {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []datacenterReport
	for _, d := range r.away {
		if time.Since(d.at) < datacenterGone {
			out = append(out, d)
		}
	}
	slices.SortFunc(out, func(x, y datacenterReport) int { return cmp.Compare(x.FromDatacenter, y.FromDatacenter) })
	return out
}

// setDatacenter takes a report.
func (r *reports) setDatacenter(req ca.ConfirmDatacenterRequest) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	before, known := r.away[req.FromDatacenter]
	if !known && len(r.away) >= maxDatacenters {
		return errors.New("too many datacenters")
	}
	if r.away == nil {
		r.away = map[string]datacenterReport{}
	}
	r.away[req.FromDatacenter] = datacenterReport{req, time.Now()}
	if before.ConfirmDatacenterRequest != req {
		r.changed()
	}
	return nil
}

// confirmDatacenter takes what a secondary datacenter tells. Only servers are let in.
func (a *Authority) confirmDatacenter(_ context.Context, c *transport.Call, req *ca.ConfirmDatacenterRequest) (*struct{}, acl.Permit, error) {
	if a.cfg.Disabled {
		return nil, acl.Permit{}, wireerr.ErrConnectDisabled
	}
	permit, err := c.Authorizer.Require(acl.Operator, acl.Write, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	switch {
	case !plainName(req.FromDatacenter) || req.FromDatacenter == c.Datacenter:
		return nil, acl.Permit{}, wireerr.BadRequest("%q is not the name of another datacenter", req.FromDatacenter)
	case len(req.Phase) > maxRotationReport || len(req.NewRootID) > maxRotationReport || req.Required < 0 || req.Confirmed < 0:
		return nil, acl.Permit{}, wireerr.BadRequest("this can not be what a datacenter has to tell")
	}
	kept := ca.ConfirmDatacenterRequest{
		FromDatacenter: req.FromDatacenter, Phase: req.Phase, NewRootID: req.NewRootID, Required: req.Required, Confirmed: req.Confirmed,
	}
	return &struct{}{}, permit, a.reports.setDatacenter(kept)
}

// tellPrimary tells the primary datacenter how far this one is with a rotation, until ctx ends.
func (a *Authority) tellPrimary(ctx context.Context, store *state.Store) {
	var last ca.ConfirmDatacenterRequest
	var at time.Time
	for ctx.Err() == nil {
		news, _ := a.reports.watch()
		view := store.WatchView()
		view.CARoots()
		if r, err := a.progress(store.View()); err == nil {
			now := ca.ConfirmDatacenterRequest{
				FromDatacenter: a.cfg.Datacenter, Phase: r.Phase, NewRootID: r.NewRootID, Required: r.Required, Confirmed: r.Confirmed,
			}
			if now != last || time.Since(at) >= tellEvery {
				req := now
				req.Target = a.primaryOptions(0).Target
				if _, err := ca.ConfirmDatacenterCall.Call(ctx, a.cfg.Primary.Caller, &req); err == nil {
					last, at = now, time.Now()
				} else if ctx.Err() == nil {
					a.log.Debug("the primary datacenter was not told how far the rotation is here, will retry", "error", err)
				}
			}
		}
		// Nodes fail, and are waited for no more, without anything else changing.
		most := tellEvery
		if last.Required != last.Confirmed {
			most = recheck
		}
		await(ctx, view, news, most)
		if !pause.For(ctx, tellPause) {
			return
		}
	}
}
