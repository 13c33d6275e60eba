package statusrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/snapshot"
	"github.com/sarnmesh/sarn/server/transport"
)

// save writes an archive of the state. In default mode this is the leader, which confirms that first.
func (h *handlers) save(ctx context.Context, c *transport.Call, req *operator.SnapshotRequest, _ io.Reader, reply func(acl.Permit, *operator.SnapshotReply) error, out io.Writer) error {
	permit, err := c.Authorizer.Require(acl.ACL, acl.Write, "")
	if err != nil {
		return err
	}
	if req.Mode != read.Stale {
		if err := h.cfg.Raft.Verify(ctx); err != nil {
			return err
		}
	}
	meta, data, err := h.cfg.Raft.Snapshot()
	if err != nil {
		return err
	}
	defer data.Close()
	resp := &operator.SnapshotReply{}
	resp.Index = max(meta.Index, 1)
	status, _ := h.cfg.Raft.Status()
	resp.KnownLeader = status.Known()
	resp.LastContact, _ = h.cfg.Raft.LastContact()
	if err := reply(permit, resp); err != nil {
		return err
	}
	return snapshot.Write(out, meta, data, time.Now())
}

// restore replaces the state by an archive. It is checked as a whole before anything is changed.
func (h *handlers) restore(ctx context.Context, c *transport.Call, _ *operator.StatusRequest, in io.Reader, reply func(acl.Permit, *struct{}) error, _ io.Writer) error {
	permit, err := c.Authorizer.Require(acl.ACL, acl.Write, "")
	if err != nil {
		return err
	}
	if s, _ := h.cfg.Raft.Status(); !s.Leading {
		return wireerr.ErrNoLeader
	}
	tmp, err := os.CreateTemp(h.cfg.TempDir, "restore-*.tmp") // mode 0600: it holds keys
	if err != nil {
		return fmt.Errorf("temporary file for the snapshot: %w", err)
	}
	defer func() {
		tmp.Close()
		os.Remove(tmp.Name())
	}()
	meta, err := snapshot.Read(in, tmp)
	if err != nil {
		return err
	}
	// Raft gives up on a server that cannot read what it restores: try it on a store of no consequence.
	for _, use := range []func() error{func() error { return state.New().Restore(tmp) }, func() error { return nil }} {
		if _, err := tmp.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("temporary file for the snapshot: %w", err)
		}
		if err := use(); err != nil {
			return fmt.Errorf("failed to restore snapshot: %w", err)
		}
	}
	h.cfg.Logger.Info("restoring a snapshot", "id", meta.ID, "index", meta.Index)
	if err := h.cfg.Raft.Restore(ctx, meta, tmp); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return reply(permit, &struct{}{})
}
