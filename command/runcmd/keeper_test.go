package runcmd

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/catalog/definition"
)

// A fakeAgent keeps registrations in memory, and loses them when told.
type fakeAgent struct {
	mu     sync.Mutex
	marks  map[string]string
	status map[string]string // of the checks, by service
	down   bool
	log    []string
}

var errDown = errors.New("connection refused")

func (f *fakeAgent) do(text string, change func()) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return errDown
	}
	if text != "" {
		f.log = append(f.log, text)
	}
	change()
	return nil
}

func (f *fakeAgent) mark(_ context.Context, id string) (m string, there bool, err error) {
	err = f.do("", func() { m, there = f.marks[id] })
	return m, there, err
}

func (f *fakeAgent) register(_ context.Context, svc *definition.Service) error {
	return f.do("register "+svc.ServiceID(), func() {
		f.marks[svc.ServiceID()], f.status[svc.ServiceID()] = svc.Meta[runMeta], api.HealthCritical
	})
}

func (f *fakeAgent) deregister(_ context.Context, id string) error {
	return f.do("deregister "+id, func() { delete(f.marks, id); delete(f.status, id) })
}

func (f *fakeAgent) tell(_ context.Context, id, status, _ string) (known bool, err error) {
	err = f.do("", func() {
		if _, known = f.status[id]; known {
			f.status[id] = status
		}
	})
	return known, err
}

// state tells what is registered and how it is.
func (f *fakeAgent) state() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, id := range slices.Sorted(maps.Keys(f.marks)) {
		out = append(out, id+" "+f.marks[id]+" "+f.status[id])
	}
	return strings.Join(out, ", ")
}

func (f *fakeAgent) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// newFake returns an agent and a keeper of two services for it.
func newFake(t *testing.T) (*fakeAgent, *keeper) {
	f := &fakeAgent{marks: map[string]string{}, status: map[string]string{}}
	services := []*definition.Service{{Name: "web"}, {Name: "proxy"}}
	for _, s := range services {
		guard(s, "r1", time.Minute)
	}
	return f, newKeeper(f, services, "r1", func(format string, args ...any) { t.Logf(format, args...) })
}

// run starts a keeper and keeps it running until the test ends.
func run(t *testing.T, k *keeper) (ended <-chan error) {
	t.Helper()
	if err := k.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() { done <- k.keep(ctx) }()
	return done
}

func TestKeeperRegistersAgainWhereTheAgentForgot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, k := newFake(t)
		run(t, k)
		<-k.say(api.HealthPassing, "runs")
		if got := f.state(); got != "proxy r1 passing, web r1 passing" {
			t.Fatalf("registered: %s", got)
		}
		f.set(func() { f.down = true; clear(f.marks); clear(f.status) })
		time.Sleep(time.Minute)
		f.set(func() { f.down = false })
		time.Sleep(beat + time.Second)
		if got := f.state(); got != "proxy r1 passing, web r1 passing" {
			t.Errorf("after the agent came back: %s", got)
		}
		f.set(func() { delete(f.status, "web") }) // its check was taken away
		time.Sleep(beat + time.Second)
		if got := f.state(); got != "proxy r1 passing, web r1 passing" {
			t.Errorf("after the check was taken away: %s", got)
		}
	})
}

func TestKeeperTellsOfAChangeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, k := newFake(t)
		run(t, k)
		<-k.say(api.HealthPassing, "runs")
		begin := time.Now()
		<-k.say(api.HealthCritical, "drains")
		if got := f.state(); got != "proxy r1 critical, web r1 critical" || time.Since(begin) > 0 {
			t.Errorf("after %v: %s", time.Since(begin), got)
		}
	})
}

func TestKeeperTakesOverAndGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, k := newFake(t)
		f.marks["web"], f.status["web"] = "r0", api.HealthPassing
		ended := run(t, k)
		if got := strings.Join(f.log, ", "); got != "deregister web, register web, register proxy" {
			t.Errorf("start: %s", got)
		}
		<-k.say(api.HealthPassing, "runs")
		f.set(func() { f.marks["web"] = "r2" })
		if err := <-ended; !errors.Is(err, errReplaced) {
			t.Errorf("keep returned %v", err)
		}
		if err := k.leave(t.Context()); err != nil || f.state() != "web r2 passing" {
			t.Errorf("leave: %v, left %s", err, f.state())
		}
	})
}

func TestKeeperLeavesWhenTheAgentComesBackInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, k := newFake(t)
		if err := k.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		f.set(func() { f.down = true })
		time.AfterFunc(patience/2, func() { f.set(func() { f.down = false }) })
		if err := k.leave(t.Context()); err != nil || f.state() != "" {
			t.Errorf("leave: %v, left %s", err, f.state())
		}
		f.set(func() { f.down = true })
		begin := time.Now()
		if err := k.leave(t.Context()); !errors.Is(err, errDown) || time.Since(begin) != patience {
			t.Errorf("leave with a dead agent: %v after %v", err, time.Since(begin))
		}
	})
}
