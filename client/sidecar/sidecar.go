// Package sidecar runs a proxy process for each local service that declares a
// sidecar, starts it again when it ends, and takes over those that an agent
// before this one started. DESIGN.md tells why it works the way it does.
package sidecar

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A Sidecar is a proxy that should run.
type Sidecar struct {
	ID    string // of the proxy's registration
	Token string // ACL token for its stream; empty for none
}

// A Registry knows which sidecars should run.
type Registry interface {
	// Sidecars returns those that local services declare.
	Sidecars() []Sidecar
	// Changed returns a channel that is closed when the answer may be another.
	Changed() <-chan struct{}
}

// A Record is what is remembered of a process.
type Record struct {
	ProxyID string
	PID     int
	// Start is the process's start as the system tells it, in a form that
	// only serves to be compared.
	Start  string
	Build  string   // of the program that it runs
	Args   []string // without the program
	Socket string   // of its admin server
	Log    string   // file that it writes to
}

// A Process is a running proxy.
type Process interface {
	Record() Record
	Done() <-chan struct{} // closed when it has ended
	Err() error            // how it ended, once Done is closed
	Terminate() error      // tells it to drain and end
	Kill() error
}

// A Spec is a process to start.
type Spec struct {
	Record                   // without PID and Start
	Output func(line string) // gets what it writes; called from one goroutine
}

// A Starter runs processes.
type Starter interface {
	Start(Spec) (Process, error)
	// Adopt returns the process of a record if it still runs.
	Adopt(r Record, output func(line string)) (Process, error)
	// Answers reports whether the admin server of a record answers under the
	// proxy's ID.
	Answers(ctx context.Context, r Record) bool
	// Ready reports whether the proxy of a record answers that it is ready; an
	// ID asks a process that runs several for one of them.
	Ready(ctx context.Context, r Record, id string) bool
}

// Config tunes a Supervisor. A zero field takes its default.
type Config struct {
	Dir  string   // for records, logs and state; required, made if it is not there
	Args []string // for each process, such as the agent's address; without tokens
	// Node makes one process run all sidecars.
	Node  bool
	Build string // of the program; another build's processes are replaced

	DrainTime   time.Duration // of a process that is told to stop; default 10s
	Backoff     time.Duration // before the first restart; default 1s
	MaxBackoff  time.Duration // default 30s
	Stable      time.Duration // after which the back-off starts over; default 30s
	OrphanGrace time.Duration // for processes that nobody wants; default 30s
	// DeregisteredGrace is after how long a proxy ends by itself that the
	// agent says is not registered; default 1 minute.
	DeregisteredGrace time.Duration
	// OnReady is told of each proxy that has come to answer that it is ready.
	// Nil tells nobody. It must not block.
	OnReady func(id string)

	Logger hclog.Logger // default discards
	Rand   func() float64
}

// A Supervisor runs sidecars.
type Supervisor struct {
	cfg      Config
	registry Registry
	starter  Starter
	log      hclog.Logger

	running sync.WaitGroup

	mu      sync.Mutex
	orphans map[string]Record // of an agent before this one, by proxy ID
	status  map[string]Status
	node    nodeList
}

// A Status is how a sidecar does, for showing.
type Status struct {
	PID      int // 0 while none runs
	Restarts int
	LastErr  string
}

// New returns a supervisor. Nothing happens until Run.
func New(r Registry, s Starter, cfg Config) (*Supervisor, error) {
	if cfg.Dir == "" {
		return nil, errors.New("sidecar: no folder")
	}
	cfg.DrainTime = cmp.Or(cfg.DrainTime, 10*time.Second)
	cfg.Backoff = cmp.Or(cfg.Backoff, time.Second)
	cfg.MaxBackoff = cmp.Or(cfg.MaxBackoff, 30*time.Second)
	cfg.Stable = cmp.Or(cfg.Stable, 30*time.Second)
	cfg.OrphanGrace = cmp.Or(cfg.OrphanGrace, 30*time.Second)
	cfg.DeregisteredGrace = cmp.Or(cfg.DeregisteredGrace, time.Minute)
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Float64
	}
	return &Supervisor{cfg: cfg, registry: r, starter: s, log: cfg.Logger, orphans: map[string]Record{}, status: map[string]Status{}}, nil
}

// runner is one sidecar that is looked after.
type runner struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// Run looks after sidecars until ctx ends, and then drains them all.
func (s *Supervisor) Run(ctx context.Context) error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("sidecar: %w", err)
	}
	s.loadRecords()
	if s.cfg.Node {
		s.loadList()
	}
	grace := time.NewTimer(s.cfg.OrphanGrace)
	defer grace.Stop()
	runners := map[string]*runner{}
	leaving := map[string]*runner{} // told to stop, not ended yet
	defer s.running.Wait()
	for {
		changed := s.registry.Changed()
		s.reconcile(ctx, runners, leaving)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-grace.C:
			s.endOrphans()
			s.node.earlier = nil
		}
	}
}

// reconcile makes the runners those that are wanted.
func (s *Supervisor) reconcile(ctx context.Context, runners, leaving map[string]*runner) {
	wanted := map[string]Sidecar{}
	list := s.registry.Sidecars()
	if s.cfg.Node {
		list = s.listForNode(list)
	}
	for _, w := range list {
		wanted[w.ID] = w
	}
	for id, r := range runners {
		if _, ok := wanted[id]; !ok {
			s.log.Info("sidecar is not wanted any more, draining it", "proxy", id)
			r.cancel()
			leaving[id] = r
			delete(runners, id)
		}
	}
	for id, r := range leaving {
		select {
		case <-r.done:
			delete(leaving, id)
		default:
		}
	}
	for _, id := range slices.Sorted(maps.Keys(wanted)) {
		if s.cfg.Node {
			// Tokens are in the list.
		} else if err := s.writeToken(wanted[id]); err != nil {
			s.log.Error("token of sidecar not written", "proxy", id, "error", err)
			continue
		}
		if runners[id] != nil {
			continue
		}
		rctx, cancel := context.WithCancel(ctx)
		r := &runner{cancel, make(chan struct{})}
		runners[id] = r
		before := leaving[id]
		s.running.Go(func() {
			defer close(r.done)
			defer cancel()
			if before != nil {
				<-before.done
			}
			s.look(rctx, id)
		})
	}
}

// look keeps one sidecar running until ctx ends, and then drains it.
func (s *Supervisor) look(ctx context.Context, id string) {
	defer s.setStatus(id, func(st *Status) { st.PID = 0 })
	spec := s.spec(id)
	p := s.takeOver(ctx, id, spec)
	failures := 0
	for ctx.Err() == nil {
		began := time.Now()
		if p == nil {
			var err error
			if p, err = s.start(spec); err != nil {
				s.log.Error("sidecar not started", "proxy", id, "error", err)
				s.setStatus(id, func(st *Status) { st.LastErr = err.Error() })
			}
		}
		if p != nil {
			s.setStatus(id, func(st *Status) { st.PID = p.Record().PID })
			started := p
			s.running.Go(func() { s.tellReady(ctx, id, started) })
			select {
			case <-ctx.Done():
				s.drain(p)
				s.forget(id, p)
				return
			case <-p.Done():
			}
			s.forget(id, p)
			s.setStatus(id, func(st *Status) {
				st.PID = 0
				st.LastErr = fmt.Sprint(p.Err())
			})
			s.log.Warn("sidecar ended", "proxy", id, "pid", p.Record().PID, "after", time.Since(began).Round(time.Millisecond), "error", p.Err())
			p = nil
		}
		if time.Since(began) >= s.cfg.Stable {
			failures = 0
		}
		wait := s.cfg.MaxBackoff
		if failures < 16 {
			wait = min(wait, s.cfg.Backoff<<failures)
		}
		wait = wait/2 + time.Duration(s.cfg.Rand()*float64(wait)/2)
		failures++
		select {
		case <-ctx.Done():
		case <-time.After(wait):
			s.setStatus(id, func(st *Status) { st.Restarts++ })
		}
	}
}

// tellReady waits until p is ready and tells so.
func (s *Supervisor) tellReady(ctx context.Context, id string, p Process) {
	if s.cfg.OnReady == nil {
		return
	}
	if s.cfg.Node {
		s.tellNodeReady(ctx, p)
		return
	}
	for end := time.Now().Add(readyTime); time.Now().Before(end); {
		if s.starter.Ready(ctx, p.Record(), "") {
			s.cfg.OnReady(id)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-p.Done():
			return
		case <-time.After(readyPoll):
		}
	}
}

// How often, and how long, a new proxy is asked whether it is ready.
const (
	readyPoll = 50 * time.Millisecond
	readyTime = 30 * time.Second

	takeOverTime = 30 * time.Second // for a replacement to become ready
	leaveTime    = 2 * time.Second  // for the old process to notice that it did
)

// takeOver returns the process that an agent before this one left, if it is
// what would be started now. One that is not is replaced.
func (s *Supervisor) takeOver(ctx context.Context, id string, spec Spec) Process {
	s.mu.Lock()
	rec, ok := s.orphans[id]
	delete(s.orphans, id)
	s.mu.Unlock()
	if !ok {
		return nil
	}
	old, err := s.starter.Adopt(rec, spec.Output)
	if err != nil {
		s.log.Info("sidecar of an earlier agent is gone", "proxy", id, "pid", rec.PID, "reason", err)
		s.removeRecord(id)
		return nil
	}
	// It may have replaced another, and then has the other of two sockets.
	other := spec.Socket + ".new"
	if rec.Socket == other {
		other, spec.Socket = spec.Socket, other
		spec.Args = s.args(id, spec.Socket)
	}
	current := rec.Socket == spec.Socket && rec.Build == spec.Build && slices.Equal(rec.Args, spec.Args)
	if current && s.starter.Answers(context.WithoutCancel(ctx), rec) {
		s.log.Info("took over the sidecar of an earlier agent", "proxy", id, "pid", rec.PID)
		return old
	}
	s.log.Info("replacing the sidecar of an earlier agent", "proxy", id, "pid", rec.PID, "same build and arguments", current)
	spec.Socket, spec.Args = other, s.args(id, other)
	ready := s.starter.Ready(ctx, rec, "")
	p, err := s.start(spec)
	if err != nil {
		s.log.Error("replacement not started, the old one stays", "proxy", id, "error", err)
		return old
	}
	if !s.await(ctx, p, p.Record(), true, takeOverTime) && ctx.Err() == nil && s.starter.Ready(ctx, rec, "") {
		s.log.Error("replacement does not become ready, the old one stays", "proxy", id)
		s.drain(p)
		if err := s.writeRecord(rec); err != nil {
			s.log.Error("record of sidecar not written", "proxy", id, "error", err)
		}
		return old
	}
	s.running.Go(func() { s.retire(ctx, old, ready) })
	return p
}

// await polls until a proxy's readiness is what is wanted and reports whether that happened, before p ended and within a
// time.
func (s *Supervisor) await(ctx context.Context, p Process, of Record, ready bool, within time.Duration) bool {
	for end := time.Now().Add(within); ; {
		if s.starter.Ready(ctx, of, "") == ready && ctx.Err() == nil {
			return true
		}
		if !time.Now().Before(end) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-p.Done():
			return false
		case <-time.After(readyPoll):
		}
	}
}

// retire lets a process end whose place another has taken. One that has passed its sockets on drains by itself, for as long as
// it wants to, and is seen to have by not being ready any more.
func (s *Supervisor) retire(ctx context.Context, old Process, ready bool) {
	rec := old.Record()
	if ready && s.await(ctx, old, rec, false, leaveTime) {
		s.log.Info("sockets passed on, the old process drains", "proxy", rec.ProxyID, "pid", rec.PID)
		select {
		case <-old.Done():
			return
		case <-ctx.Done():
		}
	}
	s.drain(old)
}

func (s *Supervisor) start(spec Spec) (Process, error) {
	p, err := s.starter.Start(spec)
	if err != nil {
		return nil, err
	}
	s.log.Info("sidecar started", "proxy", spec.ProxyID, "pid", p.Record().PID)
	if err := s.writeRecord(p.Record()); err != nil {
		// It runs; only an agent after this one would not find it.
		s.log.Error("record of sidecar not written", "proxy", spec.ProxyID, "error", err)
	}
	return p, nil
}

// drain tells a process to stop and kills it if it does not.
func (s *Supervisor) drain(p Process) {
	if err := p.Terminate(); err != nil {
		s.log.Debug("sidecar not told to stop", "proxy", p.Record().ProxyID, "error", err)
	}
	select {
	case <-p.Done():
		return
	case <-time.After(s.cfg.DrainTime + time.Second):
	}
	s.log.Warn("sidecar did not stop in time, killing it", "proxy", p.Record().ProxyID, "pid", p.Record().PID)
	if err := p.Kill(); err != nil {
		s.log.Error("sidecar not killed", "proxy", p.Record().ProxyID, "error", err)
		return
	}
	<-p.Done()
}

// endOrphans drains processes that nobody asked for since the agent started.
func (s *Supervisor) endOrphans() {
	s.mu.Lock()
	left := s.orphans
	s.orphans = map[string]Record{}
	s.mu.Unlock()
	for id, rec := range left {
		s.running.Go(func() {
			p, err := s.starter.Adopt(rec, func(string) {})
			if err == nil {
				s.log.Info("draining a sidecar that nobody wants", "proxy", id, "pid", rec.PID)
				s.drain(p)
			}
			s.removeRecord(id)
		})
	}
}

// Status returns how each sidecar does, by proxy ID.
func (s *Supervisor) Status() map[string]Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.status)
}

func (s *Supervisor) setStatus(id string, f func(*Status)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status[id]
	f(&st)
	s.status[id] = st
}

// spec is what to start for a proxy.
func (s *Supervisor) spec(id string) Spec {
	log := s.log.With("proxy", id)
	socket := s.socket(id)
	return Spec{
		Record: Record{ProxyID: id, Build: s.cfg.Build, Args: s.args(id, socket), Socket: socket, Log: s.file(id, "log")},
		Output: func(line string) { relay(log, line) },
	}
}

func (s *Supervisor) args(id, socket string) []string {
	if s.cfg.Node {
		args := []string{
			"connect", "proxy", "-node", "-node-list", s.file(NodeID, "list"), "-admin-socket", socket,
			"-state-dir", filepath.Join(s.cfg.Dir, "state"), "-drain-time", s.cfg.DrainTime.String(),
		}
		return append(args, s.cfg.Args...)
	}
	args := []string{
		"connect", "proxy", "-proxy-id", id, "-admin-socket", socket, "-state-dir", filepath.Join(s.cfg.Dir, "state"),
		"-token-file", s.file(id, "token"), "-drain-time", s.cfg.DrainTime.String(), "-deregistered-grace", s.cfg.DeregisteredGrace.String(),
		"-take-over",
	}
	return append(args, s.cfg.Args...)
}

// relay repeats a line of a proxy's log in the agent's, with its level.
func relay(log hclog.Logger, line string) {
	level := hclog.Info
	for _, l := range []struct {
		mark  string
		level hclog.Level
	}{{"[TRACE]", hclog.Trace}, {"[DEBUG]", hclog.Debug}, {"[WARN]", hclog.Warn}, {"[ERROR]", hclog.Error}, {"[INFO]", hclog.Info}} {
		if _, rest, ok := strings.Cut(line, l.mark); ok {
			level, line = l.level, strings.TrimSpace(rest)
			break
		}
	}
	log.Log(level, line)
}

var unsafeName = regexp.MustCompile(`[^A-Za-z0-9._-]`)

// file returns the path of a file about a proxy. Different IDs have different files.
func (s *Supervisor) file(id, ext string) string {
	name := unsafeName.ReplaceAllString(id, "_")
	if name != id || len(name) > 100 || strings.HasPrefix(name, ".") {
		sum := sha256.Sum256([]byte(id))
		name = "p-" + name[:min(len(name), 60)] + "-" + hex.EncodeToString(sum[:6])
	}
	return filepath.Join(s.cfg.Dir, name+"."+ext)
}

// maxSocketPath is what fits into the address of a UNIX socket everywhere, with
// room for a suffix.
const maxSocketPath = 96

// socket returns the path of a proxy's admin socket.
func (s *Supervisor) socket(id string) string {
	p := s.file(id, "sock")
	if abs, err := filepath.Abs(p); err == nil {
		p = abs
	}
	if len(p) <= maxSocketPath {
		return p
	}
	sum := sha256.Sum256([]byte(p))
	return filepath.Join(os.TempDir(), fmt.Sprintf("sarn-%d", os.Getuid()), hex.EncodeToString(sum[:8])+".sock")
}

// writeToken puts the token where the proxy reads it.
func (s *Supervisor) writeToken(w Sidecar) error {
	path := s.file(w.ID, "token")
	if old, err := os.ReadFile(path); err == nil && string(old) == w.Token {
		return nil
	}
	return replaceFile(path, []byte(w.Token))
}

func (s *Supervisor) writeRecord(r Record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(s.file(r.ProxyID, "json"), b)
}

func (s *Supervisor) removeRecord(id string) {
	if err := os.Remove(s.file(id, "json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("record of sidecar not removed", "proxy", id, "error", err)
	}
}

// forget removes what stood for a process that has ended.
func (s *Supervisor) forget(id string, p Process) {
	s.removeRecord(id)
	_ = os.Remove(p.Record().Socket) // gone already if it ended in order
}

// loadRecords reads what an agent before this one left.
func (s *Supervisor) loadRecords() {
	paths, _ := filepath.Glob(filepath.Join(s.cfg.Dir, "*.json")) // the pattern is good
	for _, path := range paths {
		b, err := os.ReadFile(path)
		var r Record
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err != nil || r.ProxyID == "" || r.PID <= 1 || path != s.file(r.ProxyID, "json") {
			s.log.Warn("record of sidecar not read", "file", path, "error", err)
			continue
		}
		s.orphans[r.ProxyID] = r
	}
}

// replaceFile writes a file that only its owner may read, whole or not at all.
func replaceFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*") // of mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(b); err != nil {
		f.Close()
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
