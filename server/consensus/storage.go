package consensus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
)

// Storage is where a member keeps its log, its votes and its snapshots.
type Storage struct {
	Logs      raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	InMemory  bool         // the log is as fast as a cache of it
	Close     func() error // may be nil
}

func (s *Storage) close() error {
	if s.Close == nil {
		return nil
	}
	return s.Close()
}

// Memory keeps everything in memory.
func Memory() (*Storage, error) {
	store := raft.NewInmemStore()
	return &Storage{Logs: store, Stable: store, Snapshots: raft.NewInmemSnapshotStore(), InMemory: true}, nil
}

// DiskConfig tunes Disk. A zero field takes its default.
type DiskConfig struct {
	Dir          string       // created, readable by its owner alone
	SegmentBytes int          // of the log's files; default 64 MiB
	Logger       hclog.Logger // default discards
}

// snapshotsKept is how many snapshots stay on disk.
const snapshotsKept = 2

// Disk keeps everything below a directory: a write-ahead log in segments, and snapshots. What is written is synced
// before it counts, so that the process may be killed at any moment.
func Disk(cfg DiskConfig) (*Storage, error) {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.SegmentBytes == 0 {
		cfg.SegmentBytes = 64 << 20
	}
	dir := filepath.Join(cfg.Dir, "wal")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	log, err := wal.Open(dir, wal.WithSegmentSize(cfg.SegmentBytes), wal.WithLogger(cfg.Logger.Named("wal")))
	if err != nil {
		return nil, fmt.Errorf("log in %s: %w", dir, err)
	}
	snaps, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, snapshotsKept, cfg.Logger.Named("snapshot"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("snapshots in %s: %w", cfg.Dir, err), log.Close())
	}
	return &Storage{Logs: log, Stable: log, Snapshots: snaps, Close: log.Close}, nil
}
