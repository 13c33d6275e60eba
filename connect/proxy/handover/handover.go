// Package handover passes the listening sockets of a running proxy to the process that takes its place, so that not one
// connection is lost between the two: they accept from the same kernel sockets, and the old one stops only when the new
// one has said that it is ready. If the new one goes away before that, nothing has happened.
//
// The two speak over a UNIX socket, in packets of JSON, and each makes sure that the other runs as the same user.
package handover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Config is what a process that may be succeeded says about itself. All is required but Logger.
type Config struct {
	Node string // the proxy's ID, which its successor must have, too
	// Sockets returns the listening sockets by the addresses that the configuration has for them.
	Sockets func() map[string]net.Listener
	// Leave is called when the successor is ready. When it returns nothing is accepted any more.
	Leave  func()
	Logger hclog.Logger // default discards
}

// ErrRefused reports a predecessor that does not want to be succeeded.
var ErrRefused = errors.New("the running process refuses")

// A packet is what the two say to each other. A socket comes with its file descriptor.
type packet struct {
	Hello  string `json:"hello,omitempty"`  // successor: for this node
	Socket string `json:"socket,omitempty"` // predecessor: one, by its address
	End    bool   `json:"end,omitempty"`    // predecessor: those were all
	Ready  bool   `json:"ready,omitempty"`  // successor
	Left   bool   `json:"left,omitempty"`   // predecessor
	Error  string `json:"error,omitempty"`  // predecessor: no
}

// maxPacket bounds packets, and maxSockets how many sockets come.
const (
	maxPacket  = 4 << 10
	maxSockets = 4096
)

// Sockets are listening sockets that another process made.
type Sockets struct {
	mu     sync.Mutex
	byAddr map[string]net.Listener // by address, or by name if the environment has one
}

// A ListenFunc opens the socket of a listener at one of its addresses.
type ListenFunc = func(ctx context.Context, l *model.Listener, a model.Address) (net.Listener, error)

// Listen returns a function that takes the sockets for the addresses they are for, each once, and calls open for others.
func (s *Sockets) Listen(open ListenFunc) ListenFunc {
	return func(ctx context.Context, l *model.Listener, a model.Address) (net.Listener, error) {
		if ln := s.take(l.Name, a.String()); ln != nil {
			if u, ok := ln.(*net.UnixListener); ok && !strings.HasPrefix(a.Path, "@") {
				u.SetUnlinkOnClose(true)
			}
			return ln, nil
		}
		return open(ctx, l, a)
	}
}

func (s *Sockets) take(names ...string) net.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		name = everywhere(name)
		if ln := s.byAddr[name]; ln != nil {
			delete(s.byAddr, name)
			return ln
		}
	}
	return nil
}

// Len returns how many sockets nobody has taken yet.
func (s *Sockets) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byAddr)
}

// Close closes the sockets that nobody has taken.
func (s *Sockets) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for name, ln := range s.byAddr {
		errs = append(errs, ln.Close())
		delete(s.byAddr, name)
	}
	return errors.Join(errs...)
}

// firstFD is the first file descriptor that a service manager passes on.
const firstFD = 3

// FromEnvironment returns the sockets that a service manager has opened for the process pid, as LISTEN_PID, LISTEN_FDS
// and LISTEN_FDNAMES tell. A socket is for the listener that it has the name of, or else for the address it is bound to;
// one for all addresses is known as 0.0.0.0 and as ::, whichever was asked for.
func FromEnvironment(env func(string) string, pid int) (*Sockets, error) {
	s := &Sockets{byAddr: map[string]net.Listener{}}
	if env("LISTEN_PID") != strconv.Itoa(pid) {
		return s, nil
	}
	n, err := strconv.Atoi(env("LISTEN_FDS"))
	if err != nil || n < 0 || n > maxSockets {
		return nil, fmt.Errorf("LISTEN_FDS: %q is no number of sockets", env("LISTEN_FDS"))
	}
	names := strings.Split(env("LISTEN_FDNAMES"), ":")
	for i := range n {
		ln, err := listenerOf(firstFD + i)
		if err != nil {
			s.Close()
			return nil, fmt.Errorf("socket %d of LISTEN_FDS: %w", i, err)
		}
		name := ""
		if i < len(names) && names[i] != "unknown" {
			name = names[i]
		}
		s.byAddr[cmp.Or(name, everywhere(ln.Addr().String()))] = ln
	}
	return s, nil
}

// everywhere gives the addresses that stand for all of a host's one form. Other text stays as it is.
func everywhere(addr string) string {
	if port, ok := strings.CutPrefix(addr, "[::]:"); ok {
		return "0.0.0.0:" + port
	}
	return addr
}

// listenerOf makes a listener of a file descriptor, which it takes.
func listenerOf(fd int) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	if f == nil {
		return nil, os.ErrInvalid
	}
	defer f.Close() // the listener has a duplicate
	return net.FileListener(f)
}
