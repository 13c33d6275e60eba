package agent

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
)

// A phase is what an agent does, as it is told to what started it.
type phase int

const (
	starting  phase = iota
	admission       // waits for the servers to give it a certificate
	serving
	reloading
	stopping
)

// A manager has started the agent and is told how it goes, such as systemd or the service manager of Windows. The zero
// manager is a person, or somebody else who watches the process and is told nothing.
type manager struct {
	tell    func(phase)
	alive   func()              // tells that the agent is well
	every   time.Duration       // how often it wants to hear that, from serving on; 0 for never
	reloads <-chan struct{}     // asks to load the configuration again, besides SIGHUP
	sink    hclog.SinkAdapter   // receives what is logged; nil for none
	mute    bool                // standard output leads nowhere
	warn    func(problem error) // tells of an agent that cannot start, besides standard error; nil for nobody
}

func (m manager) say(p phase) {
	if m.tell != nil {
		m.tell(p)
	}
}

// stopped is the exit code of an agent that stopped when it was asked to, without leaving the cluster. A manager takes
// others than 0 for a failure.
func (m manager) stopped() int {
	if m.tell != nil {
		return 0
	}
	return 1
}

// A serviceRequest is what a service manager such as that of Windows asks for.
type serviceRequest int

const (
	interrogate serviceRequest = iota // the status
	stopService
	reloadService
)

// A serviceStatus is what it is told. Requests to stop are for a service that runs.
type serviceStatus struct {
	state      serviceState
	checkpoint uint32        // grows while the service starts or stops
	patience   time.Duration // until the next checkpoint at the latest; 0 for a service that runs
}

type serviceState int

const (
	servicePending serviceState = iota
	serviceRuns
	serviceStops
)

// patience is how long a service manager should wait for the next checkpoint.
const patience = 20 * time.Second

// attend runs an agent for a service manager that sends requests and is to be told of each change, and in between while
// the agent starts or stops. It returns the exit code when the agent has ended.
func attend(requests <-chan serviceRequest, tell func(serviceStatus), run func(context.Context, manager) int) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	phases, reloads, done := make(chan phase), make(chan struct{}, 1), make(chan int)
	m := manager{tell: func(p phase) { phases <- p }, reloads: reloads}
	status := serviceStatus{patience: patience}
	become := func(state serviceState) {
		if status.state >= state {
			return
		}
		status = serviceStatus{state: state}
		if state == serviceStops {
			status.patience = patience
		}
		tell(status)
	}
	tell(status)
	go func() { done <- run(ctx, m) }()
	tick := time.NewTicker(patience / 4)
	defer tick.Stop()
	for {
		select {
		case code := <-done:
			return code
		case p := <-phases:
			switch p {
			case starting:
			case admission, serving, reloading: // one that waits for others can be stopped only if it is said to run
				become(serviceRuns)
			case stopping:
				become(serviceStops)
			}
		case r, ok := <-requests:
			switch {
			case !ok || r == stopService:
				requests = open(requests, ok)
				become(serviceStops)
				cancel()
			case r == reloadService:
				select {
				case reloads <- struct{}{}:
				default: // one is waiting already
				}
			case r == interrogate:
				tell(status)
			}
		case <-tick.C:
			if status.patience > 0 {
				status.checkpoint++
				tell(status)
			}
		}
	}
}

// open is the channel, or nil once it is closed.
func open[T any](c <-chan T, ok bool) <-chan T {
	if ok {
		return c
	}
	return nil
}
