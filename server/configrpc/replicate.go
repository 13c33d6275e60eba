package configrpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/primary"
)

// inPrimary has the primary datacenter make a change, which comes back as a copy.
func inPrimary[Req, Resp any](ctx context.Context, h *handlers, m rpc.Method[Req, Resp], req *Req) (*Resp, acl.Permit, error) {
	return primary.Ask(ctx, h.cfg.Primary.Call, h.cfg.PrimaryDatacenter, m, req)
}

// A Replicator copies configuration entries from the primary datacenter (spec/connect.md section 7). It runs on the
// leader.
type Replicator struct {
	Datacenter string     // the primary one
	Primary    rpc.Caller // of it
	Token      func() string
	Store      *state.Store
	Apply      func(ctx context.Context, k fsm.Kind, req any) (any, error)
	Log        hclog.Logger
}

// Run copies until ctx ends.
func (r *Replicator) Run(ctx context.Context) error {
	var index uint64
	primary.Copy(ctx, func(ctx context.Context) error {
		o := primary.Options(r.Datacenter, r.Token(), index)
		index = 0
		reply, err := entry.ListCall.Call(ctx, r.Primary, &entry.ListRequest{Options: o, Whole: true})
		if err != nil {
			return err
		}
		if reply.Filtered { // by a server that does not know Whole
			return errors.New("the replication token may not read every entry")
		}
		if err := r.copy(ctx, reply.Entries); err != nil {
			return err
		}
		index = reply.Index
		return nil
	}, func(err error, wait time.Duration) {
		r.Log.Warn("configuration entries were not copied from the primary datacenter, will retry", "wait", wait, "error", err)
	})
	return nil
}

// rank orders kinds so that what an entry needs is written before it: protocols before routes, providers before
// intentions.
func rank(k entry.Kind) int {
	switch k {
	case entry.KindProxyDefaults, entry.KindMesh, entry.KindJWTProvider, entry.KindInlineCertificate:
		return 0
	case entry.KindServiceDefaults:
		return 1
	case entry.KindServiceResolver:
		return 2
	case entry.KindServiceSplitter:
		return 3
	}
	return 4
}

// copy makes the entries here those there. One that cannot be written is told and does not keep others out.
func (r *Replicator) copy(ctx context.Context, there []entry.Any) error {
	v := r.Store.View()
	own := map[entry.Key]entry.Entry{}
	for _, k := range entry.Kinds() {
		if k == entry.KindBoundAPIGateway { // made by each datacenter's leader
			continue
		}
		_, entries := v.Entries(k)
		for _, e := range entries {
			own[entry.KeyOf(e)] = e
		}
	}
	var set []entry.Entry
	for _, a := range there {
		key := entry.KeyOf(a.Entry)
		if key.Kind == entry.KindBoundAPIGateway {
			continue
		}
		same := false
		if old := own[key]; old != nil {
			a, err := content(a.Entry)
			if err != nil {
				return err
			}
			b, err := content(old)
			if err != nil {
				return err
			}
			same = bytes.Equal(a, b)
			delete(own, key)
		}
		if !same {
			set = append(set, a.Entry)
		}
	}
	slices.SortStableFunc(set, func(a, b entry.Entry) int { return rank(entry.KeyOf(a).Kind) - rank(entry.KeyOf(b).Kind) })
	var gone []entry.Key
	for key := range own {
		gone = append(gone, key)
	}
	slices.SortFunc(gone, func(a, b entry.Key) int {
		if d := rank(b.Kind) - rank(a.Kind); d != 0 {
			return d
		}
		return strings.Compare(string(a.Kind)+"/"+a.Name, string(b.Kind)+"/"+b.Name)
	})
	var first error
	try := func(what string, cmd *command) {
		if _, err := r.Apply(ctx, fsm.ConfigEntry, cmd); err != nil && first == nil {
			first = fmt.Errorf("%s: %w", what, err)
		}
	}
	for _, e := range set {
		key := entry.KeyOf(e)
		try(fmt.Sprintf("%s/%s", key.Kind, key.Name), &command{Op: opSet, Entry: entry.Any{Entry: e}})
	}
	for _, key := range gone {
		try(fmt.Sprintf("delete %s/%s", key.Kind, key.Name), &command{Op: opDelete, Kind: key.Kind, Name: key.Name})
	}
	return first
}

// content is equal for entries that a user wrote alike.
func content(e entry.Entry) ([]byte, error) {
	own, err := entry.Copy(e)
	if err != nil {
		return nil, err
	}
	own.Normalize()
	head := own.Head()
	head.Hash, head.Indexes = 0, catalog.Indexes{}
	if s := statusOf(own); s != nil {
		*s = entry.Status{}
	}
	return rpc.Marshal(own)
}
