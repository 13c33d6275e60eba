package sidecar_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/client/sidecar"
)

// registry is a registry whose answer the test changes.
type registry struct {
	mu      sync.Mutex
	list    []sidecar.Sidecar
	changed chan struct{}
}

func (r *registry) Sidecars() []sidecar.Sidecar {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

func (r *registry) Changed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changed
}

func (r *registry) set(ids ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = nil
	for _, id := range ids {
		r.list = append(r.list, sidecar.Sidecar{ID: id, Token: "token of " + id})
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// system is a machine with processes that do what the test says.
type system struct {
	mu         sync.Mutex
	next       int
	procs      map[int]*process
	events     []string
	began      time.Time
	deaf       bool // processes do not end when told to
	broken     bool // nothing can be started
	mute       bool // admin servers don't answer
	first      int  // process ID of what was left last
	neverReady bool // whatever is started after that
	passes     bool // a process passes its sockets on to one that starts for the same proxy

	unready map[string]bool // sidecars that are not ready
}

type process struct {
	sys  *system
	rec  sidecar.Record
	done chan struct{}
	once sync.Once
	left bool // has passed its sockets on; guarded by the system's mutex
}

func (s *system) event(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, fmt.Sprintf("%v ", time.Since(s.began).Round(time.Second))+fmt.Sprintf(format, args...))
}

func (s *system) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.events
	s.events = nil
	return e
}

func (s *system) Start(spec sidecar.Spec) (sidecar.Process, error) {
	if s.broken {
		s.event("failed %s", spec.ProxyID)
		return nil, errors.New("no such file")
	}
	s.mu.Lock()
	s.next++
	p := &process{sys: s, rec: spec.Record, done: make(chan struct{})}
	p.rec.PID, p.rec.Start = 1000+s.next, fmt.Sprint("boot/", s.next)
	for _, old := range s.procs {
		if s.passes && old.rec.ProxyID == spec.ProxyID {
			old.left = true
		}
	}
	s.procs[p.rec.PID] = p
	s.mu.Unlock()
	s.event("start %s", spec.ProxyID)
	return p, nil
}

func (s *system) Adopt(r sidecar.Record, _ func(string)) (sidecar.Process, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.procs[r.PID]
	if p == nil || p.rec.Start != r.Start {
		return nil, errors.New("gone")
	}
	return p, nil
}

func (s *system) Answers(context.Context, sidecar.Record) bool { return !s.mute }
func (s *system) Ready(_ context.Context, r sidecar.Record, id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.procs[r.PID]; p != nil && p.left || s.neverReady && r.PID > s.first {
		return false
	}
	return !s.unready[id]
}

func (p *process) Record() sidecar.Record { return p.rec }
func (p *process) Done() <-chan struct{}  { return p.done }
func (p *process) Err() error             { return errors.New("exit status 1") }

func (p *process) Terminate() error {
	p.sys.event("term %s", p.rec.ProxyID)
	if !p.sys.deaf {
		p.end()
	}
	return nil
}

func (p *process) Kill() error {
	p.sys.event("kill %s", p.rec.ProxyID)
	p.end()
	return nil
}

func (p *process) end() {
	p.once.Do(func() {
		p.sys.mu.Lock()
		delete(p.sys.procs, p.rec.PID)
		p.sys.mu.Unlock()
		close(p.done)
	})
}

func (s *system) only(t *testing.T) *process {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.procs) != 1 {
		t.Fatalf("%d processes run, want 1", len(s.procs))
	}
	for _, p := range s.procs {
		return p
	}
	return nil
}

// world is what a test has; run starts a supervisor and returns a function that
// stops it in order.
type world struct {
	t   *testing.T
	dir string
	reg *registry
	sys *system
	cfg sidecar.Config
}

func newWorld(t *testing.T) *world {
	return &world{t: t, dir: t.TempDir(), reg: &registry{changed: make(chan struct{})}, sys: &system{procs: map[int]*process{}, began: time.Now()}}
}

func (w *world) run() (stop func()) {
	w.t.Helper()
	w.cfg.Dir = w.dir
	w.cfg.Rand = func() float64 { return 1 }
	s, err := sidecar.New(w.reg, w.sys, w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
	}
}

func (w *world) want(events ...string) {
	w.t.Helper()
	synctest.Wait()
	got := w.sys.take()
	slices.Sort(got)
	slices.Sort(events)
	if !slices.Equal(got, events) {
		w.t.Errorf("happened: %q, want %q", got, events)
	}
}

func TestSidecarsFollowTheRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.reg.set("a", "b")
		stop := w.run()
		w.want("0s start a", "0s start b")
		w.reg.set("b", "c")
		w.want("0s term a", "0s start c")
		if b, err := os.ReadFile(filepath.Join(w.dir, "b.token")); err != nil || string(b) != "token of b" {
			t.Errorf("token file holds %q, %v", b, err)
		}
		if fi, err := os.Stat(filepath.Join(w.dir, "b.token")); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("token file has mode %v", fi.Mode())
		}
		stop()
		w.want("0s term b", "0s term c")
		if left, _ := filepath.Glob(filepath.Join(w.dir, "*.json")); len(left) > 0 {
			t.Errorf("records left after an orderly stop: %v", left)
		}
	})
}

func TestNoTokenInArguments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.reg.set("a")
		defer w.run()()
		for _, arg := range w.sys.only(t).rec.Args {
			if arg == "token of a" {
				t.Error("the token is an argument")
			}
		}
	})
}

func TestRestartsBackOffAndStartOverWhenStable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.reg.set("a")
		defer w.run()()
		end := func() { w.sys.only(t).end() }
		end()
		time.Sleep(1500 * time.Millisecond) // at 1.5s: back since 1s
		end()
		time.Sleep(2500 * time.Millisecond) // at 4s: back since 3.5s
		end()
		time.Sleep(4500 * time.Millisecond)  // at 8.5s: back since 8s
		time.Sleep(31500 * time.Millisecond) // stable
		end()
		time.Sleep(1500 * time.Millisecond) // at 41.5s: back since 41s
		w.want("0s start a", "1s start a", "4s start a", "8s start a", "41s start a")
	})
}

func TestStartFailuresBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.sys.broken = true
		w.reg.set("a")
		defer w.run()()
		time.Sleep(70 * time.Second)
		w.want("0s failed a", "1s failed a", "3s failed a", "7s failed a", "15s failed a", "31s failed a", "1m1s failed a")
	})
}

func TestDeafProcessIsKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.sys.deaf = true
		w.reg.set("a")
		stop := w.run()
		w.want("0s start a")
		stop()
		w.want("0s term a", "11s kill a")
	})
}

func TestComesBackOnlyAfterTheOldOneEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.sys.deaf = true
		w.reg.set("a")
		defer w.run()()
		w.want("0s start a")
		w.reg.set()
		time.Sleep(time.Second)
		w.reg.set("a")
		time.Sleep(20 * time.Second)
		w.want("0s term a", "11s kill a", "11s start a")
	})
}

// crash leaves what an agent that was killed leaves: a process and its record.
func (w *world) crash(id, build string) *process {
	w.t.Helper()
	spec := sidecar.Spec{Record: sidecar.Record{ProxyID: id, Build: build, Socket: filepath.Join(w.dir, id+".sock")}}
	spec.Args = append([]string{"connect", "proxy", "-proxy-id", id, "-admin-socket", spec.Socket, "-state-dir", filepath.Join(w.dir, "state"),
		"-token-file", filepath.Join(w.dir, id+".token"), "-drain-time", "10s", "-deregistered-grace", "1m0s", "-take-over"}, w.cfg.Args...)
	p, err := w.sys.Start(spec)
	if err != nil {
		w.t.Fatal(err)
	}
	b, _ := json.Marshal(p.Record())
	if err := os.WriteFile(filepath.Join(w.dir, id+".json"), b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.sys.take()
	w.sys.first = p.Record().PID
	return p.(*process)
}

func TestTakesOverWhatAKilledAgentLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		old := w.crash("a", "")
		w.reg.set("a")
		stop := w.run()
		w.want()
		old.end()
		time.Sleep(2 * time.Second)
		w.want("1s start a")
		stop()
	})
}

func TestReplacesAnotherBuildAndThenTakesOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.crash("a", "v1")
		w.cfg.Build = "v2"
		w.reg.set("a")
		stop := w.run()
		time.Sleep(3 * time.Second)
		w.want("0s start a", "2s term a")
		// The next agent finds the replacement, with its other socket, good.
		b, err := os.ReadFile(filepath.Join(w.dir, "a.json"))
		if err != nil {
			t.Fatal(err)
		}
		p := w.sys.only(t)
		stop()
		w.sys.take()
		w.sys.mu.Lock()
		p2 := &process{sys: w.sys, rec: p.rec, done: make(chan struct{})}
		w.sys.procs[p.rec.PID] = p2 // as if it had been left running
		w.sys.mu.Unlock()
		if err := os.WriteFile(filepath.Join(w.dir, "a.json"), b, 0o600); err != nil {
			t.Fatal(err)
		}
		stop = w.run()
		w.want()
		stop()
		w.want("3s term a")
	})
}

func TestLetsWhatPassedItsSocketsOnDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		first, second := w.crash("a", "v1"), w.crash("b", "v1")
		w.cfg.Build = "v2"
		w.sys.passes = true
		w.reg.set("a", "b")
		stop := w.run()
		time.Sleep(time.Minute)
		w.want("0s start a", "0s start b")
		first.end() // by itself, as nobody uses it any more
		synctest.Wait()
		select {
		case <-second.done:
			t.Error("a process that drains was ended")
		default:
		}
		stop()
		w.want("1m0s term a", "1m0s term b", "1m0s term b") // both of b
	})
}

func TestKeepsTheOldOneIfTheNewOneIsNeverReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		old := w.crash("a", "v1")
		w.cfg.Build = "v2"
		w.sys.neverReady = true
		w.reg.set("a")
		stop := w.run()
		time.Sleep(time.Minute)
		w.want("0s start a", "30s term a")
		if p := w.sys.only(t); p != old {
			t.Error("the old one is gone")
		}
		b, err := os.ReadFile(filepath.Join(w.dir, "a.json"))
		var r sidecar.Record
		if err != nil || json.Unmarshal(b, &r) != nil || r.PID != old.rec.PID {
			t.Errorf("the record is %s, %v", b, err)
		}
		stop()
		w.want("1m0s term a")
	})
}

func TestReplacesWhatDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.crash("a", "")
		w.sys.mute = true
		w.reg.set("a")
		defer w.run()()
		time.Sleep(3 * time.Second)
		w.want("0s start a", "2s term a")
	})
}

func TestOrphansAreDrainedAfterAGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.crash("a", "")
		w.crash("b", "")
		defer w.run()()
		time.Sleep(10 * time.Second)
		w.reg.set("a") // registered late
		time.Sleep(time.Minute)
		w.want("30s term b")
	})
}

func TestReusedProcessIDIsNotTouched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		old := w.crash("a", "")
		old.rec.Start = "boot/other" // somebody else has the number now
		w.reg.set("a")
		defer w.run()()
		w.want("0s start a")
	})
}
