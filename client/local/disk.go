package local

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/entry"
)

// Folders below the data folder (spec/registry.md section 15).
const (
	servicesFolder = "services"
	configsFolder  = "services/configs"
	checksFolder   = "checks"
	statesFolder   = "checks/state"
)

// A disk keeps registrations in files named for the hash of their ID.
type disk struct {
	dir string
	log hclog.Logger

	mu    sync.Mutex
	locks map[string]*fileLock
}

// A fileLock orders the writes of one file.
type fileLock struct {
	ch   chan struct{}
	refs int
}

func openDisk(dir string, log hclog.Logger) (*disk, error) {
	d := &disk{dir: dir, log: log, locks: map[string]*fileLock{}}
	for _, sub := range []string{servicesFolder, checksFolder} {
		if err := openFolder(filepath.Join(dir, sub)); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// The files.
type (
	savedService struct {
		Token                      string `json:",omitempty"`
		Service                    *catalog.Service
		Source                     Source
		LocallyRegisteredAsSidecar bool `json:",omitempty"`
	}
	savedCheck struct {
		Check   *catalog.Check
		ChkType *definition.Check `json:",omitempty"` // nil for maintenance
		Token   string            `json:",omitempty"`
		Source  Source
		Nested  bool `json:",omitempty"`
	}
	savedTTL struct {
		CheckID string
		Output  string
		Status  string
		Expires int64 // unix seconds
	}
	savedCentral struct {
		ServiceID string
		Resolved  *entry.Resolved
	}
)

func (d *disk) path(folder, id string) string {
	sum := sha256.Sum256([]byte(id))
	return filepath.Join(d.dir, filepath.FromSlash(folder), hex.EncodeToString(sum[:]))
}

// lock waits for the right to write a file, and returns how to give it back.
func (d *disk) lock(path string) (unlock func()) {
	d.mu.Lock()
	l := d.locks[path]
	if l == nil {
		l = &fileLock{ch: make(chan struct{}, 1)}
		d.locks[path] = l
	}
	l.refs++
	d.mu.Unlock()
	l.ch <- struct{}{}
	return func() {
		<-l.ch
		d.mu.Lock()
		defer d.mu.Unlock()
		if l.refs--; l.refs == 0 {
			delete(d.locks, path)
		}
	}
}

// update makes a file match what current returns: written when there is a value, removed when there is none. current is
// called once no other update of the file is under way, so that the last state always wins.
func (d *disk) update(folder, id string, write func(path string, data []byte) error, current func() (v any, ok bool)) error {
	path := d.path(folder, id)
	unlock := d.lock(path)
	defer unlock()
	v, ok := current()
	if !ok {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove saved registration: %w", err)
		}
		return nil
	}
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode registration of %q: %w", id, err)
	}
	if err := write(path, data); err != nil {
		return fmt.Errorf("save registration of %q: %w", id, err)
	}
	return nil
}

// durable replaces a file as a whole: whoever reads it finds the old content or the new, also after a power failure.
func durable(path string, data []byte) error { return replaceFile(path, data, true) }

// replaced replaces a file as a whole, but a power failure may bring back the old content.
func replaced(path string, data []byte) error { return replaceFile(path, data, false) }

// overBlock is what the files that are written over are padded to with spaces, so that a shorter content covers a
// longer one, mostly.
const overBlock = 512

// over writes over a file, in one call. It takes a twentieth of what replacing does, for what is written all the time and
// can be lost.
func over(path string, data []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err := openFolder(filepath.Dir(path)); err != nil {
			return err
		}
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	}
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			os.Remove(path)
		}
	}()
	for len(data)%overBlock != 0 {
		data = append(data, ' ')
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		return err
	}
	fi, err := f.Stat()
	if err == nil && fi.Size() > int64(len(data)) {
		err = f.Truncate(int64(len(data)))
	}
	return err
}

func replaceFile(path string, data []byte, sync bool) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if errors.Is(err, fs.ErrNotExist) {
		if err := openFolder(dir); err != nil {
			return err
		}
		f, err = os.CreateTemp(dir, ".new-*")
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err == nil && sync {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// read calls use with the content of every file of a folder. A file that use refuses is reported and put aside under
// another name.
func (d *disk) read(folder string, use func(data []byte) error) error {
	dir := filepath.Join(d.dir, filepath.FromSlash(folder))
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read saved registrations: %w", err)
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		if strings.HasPrefix(f.Name(), ".new-") {
			os.Remove(path) // a write that was cut short
		}
		if _, err := hex.DecodeString(f.Name()); err != nil || f.IsDir() || len(f.Name()) != 2*sha256.Size {
			continue
		}
		data, err := os.ReadFile(path)
		if err == nil {
			err = use(data)
		}
		if err != nil {
			d.log.Error("saved registration is unreadable, it is put aside", "file", path, "error", err)
			if err := os.Rename(path, path+".corrupt"); err != nil {
				d.log.Error("putting a file aside", "file", path, "error", err)
			}
		}
	}
	return nil
}

// persistService makes the file of a service match the present state. Only registrations over the API have one.
func (s *State) persistService(id string) error {
	if s.disk == nil {
		return nil
	}
	err := s.disk.update(servicesFolder, id, durable, func() (any, bool) {
		s.mu.RLock()
		defer s.mu.RUnlock()
		svc := s.services[id]
		if svc == nil || svc.Source != API {
			return nil, false
		}
		return savedService{svc.Token, svc.Given, svc.Source, svc.Nested}, true
	})
	if err != nil {
		return err
	}
	s.persistCentral(id)
	return nil
}

// persistCheck makes the files of a check match the present state.
func (s *State) persistCheck(id string) error {
	if s.disk == nil {
		return nil
	}
	known := false
	err := s.disk.update(checksFolder, id, durable, func() (any, bool) {
		s.mu.RLock()
		defer s.mu.RUnlock()
		c := s.checks[id]
		known = c != nil
		if c == nil || c.Source != API {
			return nil, false
		}
		return savedCheck{c.Record, c.Def, c.Token, c.Source, c.Nested}, true
	})
	if err == nil && !known {
		err = s.disk.update(statesFolder, id, over, func() (any, bool) { return nil, false })
	}
	return err
}

// persistTTL keeps the state of a TTL check. Losing it does no harm beyond a critical status after a restart.
func (s *State) persistTTL(id, status, output string, expires time.Time) {
	if s.disk == nil {
		return
	}
	err := s.disk.update(statesFolder, id, over, func() (any, bool) {
		return savedTTL{id, output, status, expires.Unix()}, s.Check(id) != nil
	})
	if err != nil {
		s.log.Error("keeping the state of a TTL check", "check", id, "error", err)
	}
}

// persistCentral keeps the central configuration of a service, so that the agent can start without servers.
func (s *State) persistCentral(id string) {
	if s.disk == nil {
		return
	}
	err := s.disk.update(configsFolder, id, replaced, func() (any, bool) {
		s.mu.RLock()
		defer s.mu.RUnlock()
		c := s.central[id]
		if c == nil || s.services[id] == nil {
			return nil, false
		}
		return savedCentral{id, c.resolved}, true
	})
	if err != nil {
		s.log.Error("keeping central configuration", "service", id, "error", err)
	}
}
