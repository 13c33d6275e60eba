package osservice

import (
	"context"
	"net"
	"os"
)

// Manager returns an Asker for this system's service manager, nil if there is none. dial connects to it.
func Manager(dial func(ctx context.Context, network, address string) (net.Conn, error)) Asker {
	if fi, err := os.Stat("/run/systemd/system"); err != nil || !fi.IsDir() { // what sd_booted(3) looks at
		return nil
	}
	return Systemd(func(ctx context.Context) (net.Conn, error) { return dial(ctx, "unix", "/run/dbus/system_bus_socket") }, os.Getuid())
}
