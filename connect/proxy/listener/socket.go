package listener

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Listen opens a socket of the operating system. A UNIX socket that a dead
// process left behind is replaced.
func Listen(ctx context.Context, l *model.Listener, a model.Address) (net.Listener, error) {
	if a.Path == "" {
		lc := net.ListenConfig{}
		if l.ReusePort {
			lc.Control = reusePort
		}
		return lc.Listen(ctx, "tcp", a.String())
	}
	path := a.Path
	if strings.HasPrefix(path, "@") {
		return (&net.ListenConfig{}).Listen(ctx, "unix", path)
	}
	if err := removeDeadSocket(path); err != nil {
		return nil, err
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if a.Mode != 0 {
		if err := os.Chmod(path, a.Mode); err != nil {
			ln.Close()
			return nil, err
		}
	}
	return ln, nil
}

// removeDeadSocket removes a socket file that nobody listens on.
func removeDeadSocket(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is no socket", path)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return fmt.Errorf("%s: address already in use", path)
	}
	return os.Remove(path)
}
