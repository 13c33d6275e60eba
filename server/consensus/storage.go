package consensus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"go.etcd.io/bbolt"
)

// Storage is where a member keeps its log, its votes and its snapshots.
type Storage struct {
	Logs      raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	InMemory  bool         // the log is as fast as a cache of it
	Close     func() error // may be nil

	// Recovery returns who the members are from now on, whatever the log says, after most of them were lost; nil for what
	// the log says. Recovered is called when that is done. Both may be nil.
	Recovery  func() ([]Server, error)
	Recovered func() error
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
	if err := checkUnused(filepath.Join(dir, metadb.FileName)); err != nil {
		return nil, fmt.Errorf("log in %s: %w", dir, err)
	}
	meta := &metadb.BoltMetaDB{} // kept, since the log does not close it
	log, err := wal.Open(dir, wal.WithSegmentSize(cfg.SegmentBytes), wal.WithMetaStore(meta), wal.WithLogger(cfg.Logger.Named("wal")), wal.WithMetricsCollector(walMetrics{}))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("log in %s: %w", dir, err), meta.Close())
	}
	closeLog := func() error { return errors.Join(log.Close(), meta.Close()) }
	snaps, err := raft.NewFileSnapshotStoreWithLogger(cfg.Dir, snapshotsKept, cfg.Logger.Named("snapshot"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("snapshots in %s: %w", cfg.Dir, err), closeLog())
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, infoFile), []byte(info), 0o600); err != nil {
		return nil, errors.Join(err, closeLog())
	}
	return &Storage{
		Logs: log, Stable: log, Snapshots: snaps, Close: closeLog,
		Recovery:  func() ([]Server, error) { return readPeers(cfg.Dir) },
		Recovered: func() error { return os.Remove(filepath.Join(cfg.Dir, peersFile)) },
	}, nil
}

// errInUse reports a data directory that another process has open.
var errInUse = errors.New("another process uses it")

// checkUnused opens and closes the log's metadata. The log itself would wait for ever for a process that has it open.
func checkUnused(path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	switch {
	case errors.Is(err, bbolt.ErrTimeout):
		return errInUse
	case err != nil:
		return fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return db.Close()
}
