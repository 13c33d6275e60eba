package osservice

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/sys/windows"

	"github.com/sarnmesh/sarn/client/check"
)

// Manager returns an Asker for this system's service manager. Windows needs no connection to it.
func Manager(func(ctx context.Context, network, address string) (net.Conn, error)) Asker {
	return query
}

// query asks with no more rights than looking takes. The calls are answered by the machine itself, at once.
func query(ctx context.Context, name string) (check.ServiceState, error) {
	var s check.ServiceState
	if err := ctx.Err(); err != nil {
		return s, err
	}
	wide, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return s, fmt.Errorf("service name: %w", err)
	}
	manager, err := windows.OpenSCManager(nil, nil, windows.SC_MANAGER_CONNECT)
	if err != nil {
		return s, fmt.Errorf("open the service manager: %w", err)
	}
	defer windows.CloseServiceHandle(manager)
	service, err := windows.OpenService(manager, wide, windows.SERVICE_QUERY_STATUS)
	if err != nil {
		return s, fmt.Errorf("open the service: %w", err)
	}
	defer windows.CloseServiceHandle(service)
	var status windows.SERVICE_STATUS
	if err := windows.QueryServiceStatus(service, &status); err != nil {
		return s, fmt.Errorf("query the service: %w", err)
	}
	switch status.CurrentState {
	case windows.SERVICE_RUNNING:
		return check.ServiceState{Name: "running", Running: true}, nil
	case windows.SERVICE_STOPPED:
		return check.ServiceState{Name: "stopped", Stopped: true}, nil
	case windows.SERVICE_PAUSED:
		return check.ServiceState{Name: "paused", Stopped: true}, nil
	case windows.SERVICE_START_PENDING:
		return check.ServiceState{Name: "start pending"}, nil
	case windows.SERVICE_STOP_PENDING:
		return check.ServiceState{Name: "stop pending"}, nil
	case windows.SERVICE_PAUSE_PENDING:
		return check.ServiceState{Name: "pause pending"}, nil
	case windows.SERVICE_CONTINUE_PENDING:
		return check.ServiceState{Name: "continue pending"}, nil
	}
	return check.ServiceState{Name: fmt.Sprintf("in state %d", status.CurrentState)}, nil
}
