package proxycmd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/admin"
	"github.com/sarnmesh/sarn/connect/proxy/handover"
	"github.com/sarnmesh/sarn/connect/proxy/listener"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// A succession is how this process takes over from one before it, and how another takes over from this one.
type succession struct {
	node string
	path string // of the socket that processes meet at; empty for none
	log  hclog.Logger

	predecessor *handover.Predecessor // nil if there is none
}

// maxSocketPath is what fits into the address of a UNIX socket everywhere.
const maxSocketPath = 100

// succeed gets the sockets that a service manager or a running process of the same proxy have for this one, and makes
// the proxy listen on them.
func (c *command) succeed(ctx context.Context, id string, cfg *proxy.Config, log hclog.Logger) (*succession, error) {
	x := &c.flags
	inherited, err := handover.FromEnvironment(os.Getenv, os.Getpid())
	if err != nil {
		return nil, err
	}
	cfg.Listen = listener.Listen
	if inherited.Len() > 0 {
		log.Info("using sockets of the service manager", "number", inherited.Len())
		cfg.Listen = inherited.Listen(cfg.Listen)
	}
	s := &succession{node: cfg.Bootstrap.Node.ID, log: log.Named("handover")}
	if x.stateDir == "" || handover.Network == "" || s.node == "" {
		return s, nil
	}
	s.path = filepath.Join(x.stateDir, id+".handover")
	if len(s.path) > maxSocketPath {
		dir := runtimeFolder()
		if err := admin.SocketFolder(dir); err != nil {
			return nil, fmt.Errorf("folder for sockets: %w", err)
		}
		sum := sha256.Sum256([]byte(s.path))
		s.path = filepath.Join(dir, hex.EncodeToString(sum[:8])+".handover")
	}
	if !x.takeOver {
		return s, nil
	}
	if s.predecessor, err = s.meet(ctx); err != nil {
		s.log.Warn("sockets of the running process not taken over", "error", err)
	}
	if s.predecessor != nil {
		s.log.Info("taking over from a running process", "sockets", s.predecessor.Len())
		cfg.Listen = s.predecessor.Listen(cfg.Listen)
	}
	return s, nil
}

// meet returns the process that runs the proxy now; nil if there is none.
func (s *succession) meet(ctx context.Context) (*handover.Predecessor, error) {
	conn, err := new(net.Dialer).DialContext(ctx, handover.Network, s.path)
	switch {
	case refused(err), errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return handover.Take(conn.(*net.UnixConn), s.node)
}

// run takes over once p is live, and then waits for a process that takes over from this one.
func (s *succession) run(ctx context.Context, p *proxy.Proxy, desk *adminServer) error {
	if s.predecessor != nil {
		select {
		case <-ctx.Done():
			return s.predecessor.Close()
		case <-p.Live():
		}
		if err := s.predecessor.Ready(); err != nil {
			s.log.Warn("the process before this one did not leave in order", "error", err)
		} else {
			s.log.Info("took over")
		}
		if err := desk.listen(ctx); err != nil {
			s.log.Error("no admin server", "error", err)
		}
	}
	if s.path == "" {
		return nil
	}
	ln, err := s.listen(ctx)
	if err != nil {
		s.log.Warn("no other process can take over", "error", err)
		return nil
	}
	return handover.Serve(ctx, ln, handover.Config{
		Node: s.node, Sockets: p.Sockets, Logger: s.log,
		Leave: func() {
			p.HandOver()
			desk.close()
		},
	})
}

// listen opens the socket at which a successor asks for the others. One that a dead process left behind is replaced.
func (s *succession) listen(ctx context.Context) (*net.UnixListener, error) {
	if conn, err := new(net.Dialer).DialContext(ctx, handover.Network, s.path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("%s: another process runs this proxy", s.path)
	} else if refused(err) {
		if err := os.Remove(s.path); err != nil {
			return nil, err
		}
	}
	ln, err := new(net.ListenConfig).Listen(ctx, handover.Network, s.path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(s.path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return ln.(*net.UnixListener), nil
}

// refused reports whether nobody listened on a socket that is there.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// An adminServer is the admin server of a proxy, which leaves its address to a successor.
type adminServer struct {
	p    *proxy.Proxy
	log  hclog.Logger
	open func(context.Context) (net.Listener, []model.StringMatch, error)

	opened  chan struct{} // closed once there is a socket
	closing chan struct{} // closed to end it
	done    chan struct{} // closed when it has ended

	mu    sync.Mutex
	ln    net.Listener // nil: not open yet, or there is to be none
	allow []model.StringMatch
}

// newAdminServer returns an admin server whose socket open opens; it may return none.
func newAdminServer(p *proxy.Proxy, log hclog.Logger, open func(context.Context) (net.Listener, []model.StringMatch, error)) *adminServer {
	return &adminServer{p: p, log: log, open: open, opened: make(chan struct{}), closing: make(chan struct{}), done: make(chan struct{})}
}

// listen opens the socket unless it is open.
func (a *adminServer) listen(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ln != nil {
		return nil
	}
	ln, allow, err := a.open(ctx)
	if err != nil || ln == nil {
		return err
	}
	a.log.Info("admin server", "address", ln.Addr())
	a.ln, a.allow = ln, allow
	close(a.opened)
	return nil
}

// serve answers, once there is a socket, until ctx ends or the server is closed.
func (a *adminServer) serve(ctx context.Context) error {
	defer close(a.done)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	select {
	case <-ctx.Done():
		return nil
	case <-a.closing:
		return nil
	case <-a.opened:
	}
	go func() {
		select {
		case <-a.closing:
			cancel()
		case <-ctx.Done():
		}
	}()
	return admin.New(a.p, admin.Config{Allow: a.allow, Logger: a.log}).Serve(ctx, a.ln)
}

// close ends the server and waits until its address is free. It may be called once, while serve runs.
func (a *adminServer) close() {
	close(a.closing)
	<-a.done
}
