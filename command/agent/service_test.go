package agent

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A scm stands in for the service manager of Windows: it sends requests and keeps what it is told.
type scm struct {
	requests chan serviceRequest
	code     chan int

	mu   sync.Mutex
	told []serviceStatus
}

// manage runs an agent for one.
func manage(run func(context.Context, manager) int) *scm {
	s := &scm{requests: make(chan serviceRequest), code: make(chan int, 1)}
	go func() {
		s.code <- attend(s.requests, func(st serviceStatus) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.told = append(s.told, st)
		}, run)
	}()
	return s
}

// heard is what it was told since it was last asked.
func (s *scm) heard() []serviceStatus {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	told := s.told
	s.told = nil
	return told
}

func (s *scm) want(t *testing.T, want ...serviceStatus) {
	t.Helper()
	if got := s.heard(); !slices.Equal(got, want) {
		t.Errorf("told %+v, want %+v", got, want)
	}
}

// pending is the status of a service that starts or stops.
func pending(state serviceState, checkpoint uint32) serviceStatus {
	return serviceStatus{state: state, checkpoint: checkpoint, patience: patience}
}

func TestServiceStartsServesAndStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		serve, end := make(chan bool), make(chan bool)
		s := manage(func(ctx context.Context, m manager) int {
			m.say(starting)
			<-serve
			m.say(serving)
			<-ctx.Done()
			m.say(stopping)
			<-end
			return m.stopped()
		})
		s.want(t, pending(servicePending, 0))
		time.Sleep(patience/2 + time.Second)
		s.want(t, pending(servicePending, 1), pending(servicePending, 2))
		s.requests <- interrogate
		s.want(t, pending(servicePending, 2))

		close(serve)
		s.want(t, serviceStatus{state: serviceRuns})
		time.Sleep(time.Hour)
		s.want(t)
		s.requests <- interrogate
		s.want(t, serviceStatus{state: serviceRuns})

		s.requests <- stopService
		s.want(t, pending(serviceStops, 0))
		s.requests <- stopService
		s.requests <- interrogate
		s.want(t, pending(serviceStops, 0))
		time.Sleep(patience / 2)
		if got := s.heard(); len(got) != 2 || got[1] != pending(serviceStops, 2) {
			t.Errorf("while it stopped it told %+v, want two checkpoints", got)
		}
		close(end)
		if code := <-s.code; code != 0 {
			t.Errorf("ended with %d after it was asked to stop, want 0", code)
		}
	})
}

func TestServiceThatFailsTellsSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := manage(func(context.Context, manager) int { return 1 })
		if code := <-s.code; code != 1 {
			t.Errorf("ended with %d, want 1", code)
		}
		s.want(t, pending(servicePending, 0))
	})
}

// A service that is not said to run can't be stopped: Windows sends such a one no requests.
func TestServiceThatWaitsForServersRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := manage(func(ctx context.Context, m manager) int {
			m.say(starting)
			m.say(admission)
			<-ctx.Done()
			m.say(serving) // too late
			return m.stopped()
		})
		s.want(t, pending(servicePending, 0), serviceStatus{state: serviceRuns})
		s.requests <- stopService
		if code := <-s.code; code != 0 {
			t.Errorf("ended with %d, want 0", code)
		}
		s.want(t, pending(serviceStops, 0))
	})
}

func TestServiceReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reloads, proceed := 0, make(chan bool)
		s := manage(func(ctx context.Context, m manager) int {
			m.say(serving)
			for {
				select {
				case <-ctx.Done():
					return m.stopped()
				case <-m.reloads:
					m.say(reloading)
					reloads++
					<-proceed
					m.say(serving)
				}
			}
		})
		for range 4 { // one is under way, one waits, and stands for the others
			s.requests <- reloadService
			synctest.Wait()
		}
		close(proceed)
		s.want(t, pending(servicePending, 0), serviceStatus{state: serviceRuns})
		if reloads != 2 {
			t.Errorf("loaded %d times, want 2", reloads)
		}
		close(s.requests) // nobody is there any more
		if code := <-s.code; code != 0 {
			t.Errorf("ended with %d, want 0", code)
		}
	})
}
