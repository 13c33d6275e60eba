// Package consensus is the replicated log: Raft with its storage, its network transport, and the batching of writes.
// Members are known by ID; where they are is asked from outside, so that a server may come back under another address.
package consensus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// A Config describes this member. A zero field takes its default.
type Config struct {
	ID      string // node ID
	Address string // of the server port, as told to other members

	FSM     raft.FSM
	Storage func() (*Storage, error) // opens the storage; see Disk and Memory

	Listener net.Listener // of connections that speak Raft
	Dial     func(ctx context.Context, address string) (net.Conn, error)
	// AddressOf returns where a member is now; false leaves it to the address in the Raft configuration.
	AddressOf func(id string) (string, bool)

	// Lead is called when this server leads and has applied all that was committed before; its context ends with the
	// leadership. It returns before it is called again.
	Lead func(ctx context.Context)

	Multiplier        int           // scales the timeouts, 1 to 10; default 5
	SnapshotThreshold uint64        // default 16384 entries
	SnapshotInterval  time.Duration // default 30s
	TrailingLogs      uint64        // default 10240 entries
	PreVoteDisabled   bool
	CacheDisabled     bool // read the newest entries from the log, too

	// Verify has what is written to the log read back and compared with what the leader wrote, where the leader does so,
	// too: it writes checkpoints. What differs is logged and counted.
	Verify         bool
	VerifyInterval time.Duration // from one checkpoint to the next; default 60s

	Logger hclog.Logger // default discards
}

// Errors of writes. Their texts are matched by clients.
var (
	// ErrNotLeader reports a write that was not made since this server does not lead.
	ErrNotLeader = errors.New("raft apply failed: node is not the leader")
	// ErrLeadershipLost reports a write that may or may not have been made.
	ErrLeadershipLost = errors.New("raft apply failed: leadership lost while committing log")
	// ErrStopped reports that this server has stopped or not started.
	ErrStopped = errors.New("raft apply failed: raft is not running")
)

// translate gives errors of raft their texts for clients.
func translate(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return ErrNotLeader
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrAbortedByRestore):
		return ErrLeadershipLost
	case errors.Is(err, raft.ErrRaftShutdown):
		return ErrStopped
	}
	return fmt.Errorf("raft apply failed: %w", err)
}

// A Status is what this member knows of the leadership.
type Status struct {
	LeaderID      string // empty when no leader is known
	LeaderAddress string
	// Leading tells that this server leads and has applied all that was committed before it did.
	Leading bool
	// Elected tells that this server leads.
	Elected bool
}

// Known reports whether there is a leader.
func (s Status) Known() bool { return s.LeaderID != "" || s.Leading || s.LeaderAddress != "" }

// A standing is what this member knows of the leadership, from one change to the next.
type standing struct {
	Status
	changed chan struct{}   // closed when another takes its place
	lead    context.Context // ends with the present leadership; one that has ended when this server does not lead
}

// notLeading is the context of a leadership that there is not: it has ended.
var notLeading = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// A Raft is this server's membership in the log. Make one with New.
type Raft struct {
	cfg     Config
	log     hclog.Logger
	batcher *batcher
	ready   chan struct{} // closed when raft is set
	again   chan chan struct{}

	raft atomic.Pointer[raft.Raft]
	// Set before ready is closed.
	trans *raft.NetworkTransport
	empty bool // the storage held nothing

	now atomic.Pointer[standing] // what every call looks at; replaced under mu

	mu      sync.Mutex
	lead    context.Context // ends with the present leadership; nil when there was none
	round   *round          // verification that has not begun
	running bool            // a verification is under way
	closing bool            // no more verifications

	background sync.WaitGroup
}

// New prepares a member. Nothing is opened until Run.
func New(cfg Config) (*Raft, error) {
	if cfg.ID == "" || cfg.Address == "" || cfg.FSM == nil || cfg.Storage == nil || cfg.Listener == nil || cfg.Dial == nil {
		return nil, errors.New("consensus: ID, address, FSM, storage, listener and dialer are needed")
	}
	if cfg.Multiplier == 0 {
		cfg.Multiplier = 5
	}
	if cfg.Multiplier < 1 || cfg.Multiplier > 10 {
		return nil, fmt.Errorf("raft multiplier must be between 1 and 10, not %d", cfg.Multiplier)
	}
	if cfg.SnapshotThreshold == 0 {
		cfg.SnapshotThreshold = 16384
	}
	if cfg.SnapshotInterval == 0 {
		cfg.SnapshotInterval = 30 * time.Second
	}
	if cfg.TrailingLogs == 0 {
		cfg.TrailingLogs = 10240
	}
	if cfg.VerifyInterval == 0 {
		cfg.VerifyInterval = 60 * time.Second
	}
	if cfg.AddressOf == nil {
		cfg.AddressOf = func(string) (string, bool) { return "", false }
	}
	if cfg.Lead == nil {
		cfg.Lead = func(ctx context.Context) { <-ctx.Done() }
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	r := &Raft{
		cfg: cfg, log: cfg.Logger.Named("raft"), ready: make(chan struct{}), again: make(chan chan struct{}),
	}
	r.now.Store(&standing{changed: make(chan struct{}), lead: notLeading})
	r.batcher = newBatcher()
	return r, nil
}

func (r *Raft) raftConfig() *raft.Config {
	m := time.Duration(r.cfg.Multiplier)
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(r.cfg.ID)
	c.HeartbeatTimeout = m * time.Second
	c.ElectionTimeout = m * time.Second
	c.LeaderLeaseTimeout = m * 500 * time.Millisecond
	c.MaxAppendEntries = 64
	c.SnapshotThreshold = r.cfg.SnapshotThreshold
	c.SnapshotInterval = r.cfg.SnapshotInterval
	c.TrailingLogs = r.cfg.TrailingLogs
	c.PreVoteDisabled = r.cfg.PreVoteDisabled
	c.NoLegacyTelemetry = true
	// A removed server keeps running: it may be added again.
	c.ShutdownOnRemove = false
	c.Logger = r.log
	return c
}

// Run takes part in the log until ctx ends.
func (r *Raft) Run(ctx context.Context) (err error) {
	storage, err := r.cfg.Storage()
	if err != nil {
		return fmt.Errorf("open raft storage: %w", err)
	}
	defer func() { err = errors.Join(err, storage.close()) }()
	hasState, err := raft.HasExistingState(storage.Logs, storage.Stable, storage.Snapshots)
	if err != nil {
		return fmt.Errorf("read raft storage: %w", err)
	}
	r.empty = !hasState

	layer := newStream(r.cfg)
	trans := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider: r, Logger: r.log, Stream: layer, MaxPool: 3, Timeout: 10 * time.Second,
		// No pipelining: raft 1.8 can block in it for ever when a follower refuses an entry while another is being sent,
		// and then neither stops replicating nor shuts down. Batches fill the log entries instead.
		MaxRPCsInFlight: 1,
	})
	defer func() {
		layer.Close()
		err = errors.Join(err, trans.Close())
		trans.CloseStreams()
	}()
	notify := make(chan bool, 16)
	conf := r.raftConfig()
	conf.NotifyCh = notify
	logs := storage.Logs
	if r.cfg.Verify {
		v := newVerified(logs, r.log)
		defer v.stop()
		logs = v
	}
	if !storage.InMemory && !r.cfg.CacheDisabled {
		logs = newCache(logs)
	}
	if err := r.recover(conf, storage, trans); err != nil {
		return fmt.Errorf("recover the members of raft: %w", err)
	}
	ra, err := raft.NewRaft(conf, r.cfg.FSM, logs, storage.Stable, storage.Snapshots, trans)
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	observed := make(chan raft.Observation, 64)
	observer := raft.NewObserver(observed, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.LeaderObservation, raft.RaftState:
			return true
		}
		return false
	})
	ra.RegisterObserver(observer)
	r.trans = trans
	r.raft.Store(ra)
	close(r.ready)

	var wg sync.WaitGroup
	ended, end := context.WithCancel(context.WithoutCancel(ctx))
	wg.Go(func() { r.batcher.run(ended, ra) })
	wg.Go(func() { r.observe(ended, observed) })
	wg.Go(func() { r.watchLeadership(ended, ra, notify) })
	if r.alone(ra) {
		wg.Go(r.StandForElection)
	}
	<-ctx.Done()
	// Raft forgets verifications that it has not taken up when it is shut down; while it runs it answers each.
	r.mu.Lock()
	r.closing = true
	r.mu.Unlock()
	r.background.Wait()
	ra.DeregisterObserver(observer)
	err = ra.Shutdown().Error()
	end()
	wg.Wait()
	r.setStatus(func(s *Status) { *s = Status{} })
	return err
}

// Ready is closed once Run has opened the storage and started Raft.
func (r *Raft) Ready() <-chan struct{} { return r.ready }

// get returns the running raft.
func (r *Raft) get() (*raft.Raft, error) {
	if ra := r.raft.Load(); ra != nil {
		return ra, nil
	}
	return nil, ErrStopped
}

// ServerAddr implements raft.ServerAddressProvider.
func (r *Raft) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if string(id) == r.cfg.ID {
		return raft.ServerAddress(r.cfg.Address), nil
	}
	if a, ok := r.cfg.AddressOf(string(id)); ok {
		return raft.ServerAddress(a), nil
	}
	if ra := r.raft.Load(); ra != nil {
		if f := ra.GetConfiguration(); f.Error() == nil {
			for _, s := range f.Configuration().Servers {
				if s.ID == id {
					return s.Address, nil
				}
			}
		}
	}
	return "", fmt.Errorf("address of server %s is not known", id)
}

// alone reports whether this member is the only voter: then there is nobody to wait for before an election.
func (r *Raft) alone(ra *raft.Raft) bool {
	f := ra.GetConfiguration()
	if f.Error() != nil {
		return false
	}
	voters, self := 0, false
	for _, s := range f.Configuration().Servers {
		if s.Suffrage == raft.Voter {
			voters++
			self = self || string(s.ID) == r.cfg.ID
		}
	}
	return voters == 1 && self
}

// StandForElection makes this member a candidate at once instead of after a timeout: for when it is known that there is
// no leader yet.
func (r *Raft) StandForElection() {
	if _, err := r.get(); err != nil {
		return
	}
	req := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(r.cfg.ID), Addr: []byte(r.cfg.Address),
	}}
	err := r.trans.TimeoutNow(raft.ServerID(r.cfg.ID), raft.ServerAddress(r.cfg.Address), req, new(raft.TimeoutNowResponse))
	if err != nil {
		r.log.Debug("could not stand for election at once", "error", err)
	}
}

// Status returns what is known of the leadership, and a channel that is closed when that changes.
func (r *Raft) Status() (Status, <-chan struct{}) {
	now := r.now.Load()
	return now.Status, now.changed
}

// Leadership returns a context that ends with the present leadership; one that has ended when this server does not
// lead.
func (r *Raft) Leadership() context.Context { return r.now.Load().lead }

func (r *Raft) setStatus(change func(*Status)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.now.Load()
	next := &standing{Status: old.Status, changed: make(chan struct{}), lead: notLeading}
	if change(&next.Status); next.Status == old.Status {
		return
	}
	if next.Leading {
		next.lead = r.lead
	}
	r.now.Store(next)
	close(old.changed)
}

// observe keeps the status up to date with what Raft knows.
func (r *Raft) observe(ctx context.Context, observed <-chan raft.Observation) {
	for {
		r.refresh()
		select {
		case <-ctx.Done():
			return
		case <-observed:
		}
	}
}

func (r *Raft) refresh() {
	ra, err := r.get()
	if err != nil {
		return
	}
	addr, id := ra.LeaderWithID()
	r.setStatus(func(s *Status) { s.LeaderID, s.LeaderAddress = string(id), string(addr) })
}

// watchLeadership runs Lead while this server leads.
func (r *Raft) watchLeadership(ctx context.Context, ra *raft.Raft, notify <-chan bool) {
	stop := func() {}
	defer func() { stop() }()
	for {
		select {
		case <-ctx.Done():
			return
		case leading := <-notify:
			stop()
			stop = func() {}
			if leading {
				stop = r.beginLeading(ctx, ra)
			}
			r.refresh()
		case done := <-r.again:
			if _, cancelled := r.leading(); !cancelled {
				stop()
				stop = r.beginLeading(ctx, ra)
			}
			close(done)
		}
	}
}

func (r *Raft) leading() (ctx context.Context, ended bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lead, r.lead == nil || r.lead.Err() != nil
}

// beginLeading starts the duties of the leader and returns what ends them.
func (r *Raft) beginLeading(ctx context.Context, ra *raft.Raft) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	r.lead = ctx
	r.mu.Unlock()
	r.setStatus(func(s *Status) { s.Elected = true })
	done := make(chan struct{})
	go func() {
		defer close(done)
		began := time.Now()
		for ra.Barrier(0).Error() != nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
		metricBarrier.Since(began)
		r.setStatus(func(s *Status) { s.Leading = ctx.Err() == nil })
		if ctx.Err() != nil {
			return
		}
		r.log.Info("leading", "id", r.cfg.ID)
		var verifying sync.WaitGroup
		if r.cfg.Verify {
			verifying.Go(func() { r.writeCheckpoints(ctx, ra) })
		}
		r.cfg.Lead(ctx)
		verifying.Wait()
	}()
	return func() {
		cancel()
		r.setStatus(func(s *Status) { s.Leading, s.Elected = false, false })
		<-done
	}
}

// Relead ends the duties of the leader and starts them anew, as if this server had just been elected; it returns when
// they are about to start.
func (r *Raft) Relead(ctx context.Context) error {
	done := make(chan struct{})
	select {
	case r.again <- done:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// LastContact returns the time since the leader was heard of: 0 on the leader, false when never.
func (r *Raft) LastContact() (time.Duration, bool) {
	ra, err := r.get()
	if err != nil {
		return 0, false
	}
	if ra.State() == raft.Leader {
		return 0, true
	}
	at := ra.LastContact()
	if at.IsZero() {
		return 0, false
	}
	return time.Since(at), true
}

// A round is one confirmation of leadership that any number of readers wait for.
type round struct {
	done chan struct{}
	err  error
}

// Verify confirms with a quorum that this server still leads. Readers that arrive while a confirmation is under way
// share the next one.
func (r *Raft) Verify(ctx context.Context) error {
	ra, err := r.get()
	if err != nil {
		return err
	}
	r.mu.Lock()
	if r.closing {
		r.mu.Unlock()
		return ErrStopped
	}
	if r.round == nil {
		r.round = &round{done: make(chan struct{})}
	}
	own := r.round
	if !r.running {
		r.running = true
		r.background.Go(func() { r.verify(ra) })
	}
	r.mu.Unlock()
	select {
	case <-own.done:
		return own.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *Raft) verify(ra *raft.Raft) {
	for {
		r.mu.Lock()
		next := r.round
		r.round = nil
		if next == nil {
			r.running = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		if err := ra.VerifyLeader().Error(); err != nil {
			next.err = translate(err)
		}
		close(next.done)
	}
}
