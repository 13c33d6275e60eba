package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"
)

// A Server is a member of the Raft configuration.
type Server struct {
	ID      string
	Address string
	Voter   bool
}

// Empty reports whether the storage held nothing when Run began and nothing has been written since.
func (r *Raft) Empty() bool {
	ra, err := r.get()
	return err == nil && r.empty && ra.LastIndex() == 0
}

// Bootstrap makes a new cluster of the given voters. Every one of them must do the same, or only one do it.
func (r *Raft) Bootstrap(voters []Server) error {
	ra, err := r.get()
	if err != nil {
		return err
	}
	var conf raft.Configuration
	for _, s := range voters {
		conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(s.ID), Address: raft.ServerAddress(s.Address)})
	}
	if err := ra.BootstrapCluster(conf).Error(); err != nil && !errors.Is(err, raft.ErrCantBootstrap) {
		return fmt.Errorf("bootstrap raft: %w", err)
	}
	return nil
}

// Members returns the present configuration and the index of the log entry that made it.
func (r *Raft) Members() ([]Server, uint64, error) {
	ra, err := r.get()
	if err != nil {
		return nil, 0, err
	}
	f := ra.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, 0, err
	}
	servers := []Server{}
	for _, s := range f.Configuration().Servers {
		servers = append(servers, Server{string(s.ID), string(s.Address), s.Suffrage == raft.Voter})
	}
	return servers, f.Index(), nil
}

// changeTimeout bounds the time to get a change of membership into the log.
const changeTimeout = 10 * time.Second

func (r *Raft) change(f func(ra *raft.Raft) raft.Future) error {
	ra, err := r.get()
	if err != nil {
		return err
	}
	return translate(f(ra).Error())
}

// AddVoter adds a voter, promotes a member to one, or changes a voter's address.
func (r *Raft) AddVoter(id, address string) error {
	return r.change(func(ra *raft.Raft) raft.Future {
		return ra.AddVoter(raft.ServerID(id), raft.ServerAddress(address), 0, changeTimeout)
	})
}

// AddNonvoter adds a member that replicates but does not vote, or changes its address.
func (r *Raft) AddNonvoter(id, address string) error {
	return r.change(func(ra *raft.Raft) raft.Future {
		return ra.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), 0, changeTimeout)
	})
}

// Demote takes a voter's vote; it goes on replicating.
func (r *Raft) Demote(id string) error {
	return r.change(func(ra *raft.Raft) raft.Future { return ra.DemoteVoter(raft.ServerID(id), 0, changeTimeout) })
}

// Remove removes a member.
func (r *Raft) Remove(id string) error {
	return r.change(func(ra *raft.Raft) raft.Future { return ra.RemoveServer(raft.ServerID(id), 0, changeTimeout) })
}

// Transfer makes another voter the leader: the one with this ID, or the most suitable for an empty ID. Meanwhile this
// server answers nothing as leader: the other may lead before this one hears of it.
func (r *Raft) Transfer(id string) (err error) {
	ra, err := r.get()
	if err != nil {
		return err
	}
	lead, over := r.leading()
	if over {
		return ErrNotLeader
	}
	r.setStatus(func(s *Status) { s.Leading = false })
	defer func() {
		if err != nil {
			r.setStatus(func(s *Status) { s.Leading = s.Elected && lead.Err() == nil })
		}
	}()
	if id == "" {
		return ra.LeadershipTransfer().Error()
	}
	address, err := r.ServerAddr(raft.ServerID(id))
	if err != nil {
		return err
	}
	return ra.LeadershipTransferToServer(raft.ServerID(id), address).Error()
}

// Snapshot makes a snapshot of everything applied and returns it; the reader must be closed.
func (r *Raft) Snapshot() (*raft.SnapshotMeta, io.ReadCloser, error) {
	ra, err := r.get()
	if err != nil {
		return nil, nil, err
	}
	f := ra.Snapshot()
	if err := f.Error(); err != nil {
		return nil, nil, fmt.Errorf("take snapshot: %w", err)
	}
	return f.Open()
}

// Restore replaces the state of all members by a snapshot, then starts the duties of the leader anew. Only the leader
// can.
func (r *Raft) Restore(ctx context.Context, meta *raft.SnapshotMeta, data io.Reader) error {
	ra, err := r.get()
	if err != nil {
		return err
	}
	if err := ra.Restore(meta, data, time.Minute); err != nil {
		return translate(err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return r.Relead(ctx)
}

// Progress is how far this member is.
type Progress struct {
	Term, LastIndex, LastTerm, AppliedIndex uint64
}

// Progress returns how far this member is.
func (r *Raft) Progress() Progress {
	ra, err := r.get()
	if err != nil {
		return Progress{}
	}
	p := Progress{Term: ra.CurrentTerm(), LastIndex: ra.LastIndex(), AppliedIndex: ra.AppliedIndex()}
	fmt.Sscan(ra.Stats()["last_log_term"], &p.LastTerm)
	return p
}

// Stats returns figures for operators.
func (r *Raft) Stats() map[string]string {
	if ra, err := r.get(); err == nil {
		return ra.Stats()
	}
	return map[string]string{}
}

// Reload changes what can be changed while running. A zero value leaves a setting as it is.
func (r *Raft) Reload(multiplier int, threshold uint64, interval time.Duration, trailing uint64) error {
	ra, err := r.get()
	if err != nil {
		return err
	}
	c := ra.ReloadableConfig()
	if multiplier > 0 {
		c.HeartbeatTimeout = time.Duration(multiplier) * time.Second
		c.ElectionTimeout = c.HeartbeatTimeout
	}
	if threshold > 0 {
		c.SnapshotThreshold = threshold
	}
	if interval > 0 {
		c.SnapshotInterval = interval
	}
	if trailing > 0 {
		c.TrailingLogs = trailing
	}
	return ra.ReloadConfig(c)
}
