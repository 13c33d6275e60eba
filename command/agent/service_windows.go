package agent

import (
	"context"
	"fmt"
	"os"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"

	"github.com/sarnmesh/sarn/internal/version"
)

// managed runs an agent as a service where the service manager has started it.
func managed(run func(context.Context, manager) int) int {
	if is, err := svc.IsWindowsService(); err != nil || !is {
		return run(context.Background(), manager{})
	}
	s := &service{run: run}
	if err := svc.Run(version.Name, s); err != nil { // a process with one service may give any name
		fmt.Fprintf(os.Stderr, "==> run as a service: %v\n", err)
		return 1
	}
	return s.code
}

// A service is an agent as the service manager of Windows sees it.
type service struct {
	run  func(context.Context, manager) int
	code int
}

// Execute implements svc.Handler.
func (s *service) Execute(_ []string, changes <-chan svc.ChangeRequest, statuses chan<- svc.Status) (bool, uint32) {
	requests, ended := make(chan serviceRequest), make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case c := <-changes:
				r := interrogate
				switch c.Cmd {
				case svc.Stop, svc.Shutdown:
					r = stopService
				case svc.ParamChange:
					r = reloadService
				}
				select {
				case requests <- r:
				case <-ended:
					return
				}
			case <-ended:
				return
			}
		}
	}()
	s.code = attend(requests, func(st serviceStatus) { statuses <- windowsStatus(st) }, func(ctx context.Context, m manager) int {
		m.mute = true
		if events, err := eventlog.Open(version.Name); err == nil {
			defer events.Close()
			m.sink = newSyslogSink(eventLog{events}, func() hclog.Level { return hclog.Warn })
			m.warn = func(problem error) { events.Error(eventID, problem.Error()) }
		}
		return s.run(ctx, m)
	})
	return s.code != 0, uint32(s.code)
}

// windowsStatus is a status as Windows has it.
func windowsStatus(s serviceStatus) svc.Status {
	st := svc.Status{State: svc.StartPending, CheckPoint: s.checkpoint, WaitHint: uint32(s.patience.Milliseconds())}
	switch s.state {
	case serviceRuns:
		st.State, st.Accepts = svc.Running, svc.AcceptStop|svc.AcceptShutdown|svc.AcceptParamChange
	case serviceStops:
		st.State = svc.StopPending
	}
	return st
}

// An eventLog writes what is logged to the event log of Windows.
type eventLog struct{ log *eventlog.Log }

// eventID is that of all events: their text says what they are.
const eventID = 1

// Close implements syslogWriter.
func (e eventLog) Close() error { return e.log.Close() }

// Log implements syslogWriter.
func (e eventLog) Log(level hclog.Level, line string) error {
	if level == hclog.Error {
		return e.log.Error(eventID, line)
	}
	return e.log.Warning(eventID, line)
}
