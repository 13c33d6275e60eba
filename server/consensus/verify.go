package consensus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/verifier"

	"github.com/sarnmesh/sarn/internal/measure"
	"github.com/sarnmesh/sarn/server/fsm"
)

// checkpoint is an entry without commands, and changes nothing. Where the leader verifies its log it carries, as its
// extensions, the checksum of the entries since the one before it.
var checkpoint = func() []byte {
	entry, err := fsm.Encode(nil)
	if err != nil {
		panic(err)
	}
	return entry
}()

// isCheckpoint recognizes checkpoints. It knows no errors: storing an entry must not fail for what is verified.
func isCheckpoint(l *raft.Log) (bool, error) {
	if l.Type != raft.LogCommand || !bytes.Equal(l.Data, checkpoint) {
		return false, nil
	}
	x := l.Extensions // none yet on the leader
	return len(x) == 0 || len(x) == 24 && binary.LittleEndian.Uint64(x) == verifier.ExtensionMagicPrefix, nil
}

// writeCheckpoints writes a checkpoint from time to time while this server leads.
func (r *Raft) writeCheckpoints(ctx context.Context, ra *raft.Raft) {
	tick := time.NewTicker(r.cfg.VerifyInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := ra.Apply(checkpoint, 0).Error(); err != nil {
			r.log.Debug("could not write a checkpoint", "error", err)
		}
	}
}

// A verified log is one whose entries are read back from it at each checkpoint: are they those that the leader wrote?
// The library compares. It takes for granted that a log only grows, so it begins anew wherever this one does not.
type verified struct {
	raft.LogStore
	log        hclog.Logger
	background sync.WaitGroup // of what is verified or waits for it
	stopped    atomic.Bool

	mu   sync.Mutex // held while entries are stored
	next uint64     // the index that goes on with run
	run  *run       // nil before anything was stored
}

// A run is a part of the log in which entries were stored one after another.
type run struct {
	*verifier.LogStore
	end uint64 // entries from here on are not in the log any more; math.MaxUint64 while all are
}

func newVerified(logs raft.LogStore, log hclog.Logger) *verified {
	return &verified{LogStore: logs, log: log}
}

// stop ends what goes on in the background. Nothing may be stored afterwards.
func (v *verified) stop() {
	v.stopped.Store(true)
	v.background.Wait()
	if v.run != nil {
		v.run.Close()
	}
}

// IsMonotonic implements raft.MonotonicLogStore.
func (v *verified) IsMonotonic() bool {
	m, ok := v.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// StoreLog implements raft.LogStore.
func (v *verified) StoreLog(l *raft.Log) error { return v.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (v *verified) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.run == nil || v.run.end != math.MaxUint64 || logs[0].Index != v.next {
		v.begin()
	}
	if err := v.run.StoreLogs(logs); err != nil {
		return err
	}
	v.next = logs[len(logs)-1].Index + 1
	return nil
}

func (v *verified) begin() {
	if v.run != nil {
		v.run.Close() // what waits is verified all the same
	}
	begun := &run{end: math.MaxUint64}
	begun.LogStore = verifier.NewLogStore(source{v.LogStore, &v.stopped}, isCheckpoint, func(r verifier.VerificationReport) { v.report(begun, r) }, (*counted)(v))
	v.run = begun
}

// DeleteRange implements raft.LogStore.
func (v *verified) DeleteRange(from, to uint64) error {
	last, err := v.LastIndex()
	if err != nil {
		return err
	}
	v.mu.Lock()
	if v.run != nil && to >= last { // else the oldest go, which are in a snapshot
		v.run.end = min(v.run.end, from)
	}
	v.mu.Unlock()
	return v.LogStore.DeleteRange(from, to)
}

// report tells what became of a range of entries.
func (v *verified) report(in *run, r verifier.VerificationReport) {
	v.mu.Lock()
	replaced := r.Range.End > in.end
	v.mu.Unlock()
	if s := r.SkippedRange; s != nil { // it took too long, or a new leader began after them
		v.log.Info("entries of the log were left out", "from", s.Start, "to", s.End-1)
	}
	log := v.log.With("from", r.Range.Start, "to", r.Range.End-1)
	var differ verifier.ErrChecksumMismatch
	switch {
	case r.Err == nil:
		log.Info("entries of the log are verified", "took", r.Elapsed)
	case r.WrittenSum != 0 && r.WrittenSum != r.ExpectedSum:
		measure.NewCounter(metricVerifier + "write_checksum_failures").Add(1)
		log.Error("entries of the log are not what the leader wrote: they changed before they were stored here", "leader", hclog.Fmt("%016x", r.ExpectedSum), "here", hclog.Fmt("%016x", r.WrittenSum))
	case v.stopped.Load(): // cut short
	case replaced:
		log.Debug("entries of the log were replaced before they were verified")
	case errors.As(r.Err, &differ):
		measure.NewCounter(metricVerifier + "read_checksum_failures").Add(1)
		log.Error("entries of the log are not what the leader wrote: the storage of this server changed them", "leader", hclog.Fmt("%016x", r.ExpectedSum), "here", hclog.Fmt("%016x", r.ReadSum))
	case errors.Is(r.Err, wal.ErrCorrupt):
		measure.NewCounter(metricVerifier + "read_checksum_failures").Add(1)
		log.Error("entries of the log cannot be read any more", "error", r.Err)
	case errors.Is(r.Err, verifier.ErrRangeMismatch), errors.Is(r.Err, raft.ErrLogNotFound):
		log.Warn("entries were not verified: the log does not have all of them, since they came, or went, with a snapshot")
	default:
		log.Error("entries of the log were not verified", "error", r.Err)
	}
}

// A source is the log that is verified, as long as that goes on.
type source struct {
	raft.LogStore
	stopped *atomic.Bool
}

func (s source) GetLog(index uint64, l *raft.Log) error {
	if s.stopped.Load() {
		return ErrStopped
	}
	return s.LogStore.GetLog(index, l)
}

// counted tells what the library counts, as raft.logstore.verifier.*, and keeps count of what goes on.
type counted verified

// IncrementCounter implements the collector of the library.
func (c *counted) IncrementCounter(name string, delta uint64) {
	switch name {
	case "read_checksum_failures", "write_checksum_failures":
		return // report counts those that are some
	case "checkpoints_written":
		c.background.Add(int(delta))
	case "dropped_reports", "ranges_verified":
		c.background.Add(-int(delta))
	}
	measure.NewCounter(metricVerifier + name).Add(int64(delta))
}

// SetGauge implements the collector of the library, which has no gauges.
func (*counted) SetGauge(string, uint64) {}
