package check

import (
	"context"
	"fmt"
	"time"

	"github.com/sarnmesh/sarn/catalog"
)

// A ServiceState is what the system's service manager says about a service.
type ServiceState struct {
	// Name is the manager's word, such as "active" or "stop pending".
	Name string
	// Running and Stopped are the ends; a service that is neither is on its way or in doubt.
	Running, Stopped bool
}

// A serviceProbe asks the system's service manager.
type serviceProbe struct {
	ask     func(ctx context.Context, name string) (ServiceState, error)
	name    string
	timeout time.Duration // 0 means the default
}

// Probe asks once.
func (p serviceProbe) Probe(ctx context.Context) Result {
	timeout := p.timeout
	if timeout <= 0 {
		timeout = scriptTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	state, err := p.ask(ctx, p.name)
	switch {
	case err != nil:
		return critical("Service %q: %v", p.name, err)
	case state.Running:
		return passing("Service %q is healthy", p.name)
	case state.Stopped:
		return critical("Service %q is %s", p.name, state.Name)
	}
	return Result{Status: catalog.Warning, Output: fmt.Sprintf("Service %q is %s", p.name, state.Name)}
}
