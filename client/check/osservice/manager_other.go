//go:build !linux && !windows

package osservice

import (
	"context"
	"net"
)

// Manager returns nil: there is no service manager here that can be asked.
func Manager(func(ctx context.Context, network, address string) (net.Conn, error)) Asker { return nil }
