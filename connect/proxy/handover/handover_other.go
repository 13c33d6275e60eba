//go:build !linux

package handover

import (
	"context"
	"errors"
	"net"
)

// Network is empty where processes cannot tell that they belong to the same user.
const Network = ""

// Serve waits until ctx ends: nobody can take over here.
func Serve(ctx context.Context, _ *net.UnixListener, _ Config) error {
	<-ctx.Done()
	return nil
}

// A Predecessor is a process whose sockets were received.
type Predecessor struct{ *Sockets }

// Take fails.
func Take(*net.UnixConn, string) (*Predecessor, error) { return nil, errors.ErrUnsupported }

// Ready does nothing.
func (p *Predecessor) Ready() error { return nil }
