package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// stepTime bounds each step but the wait for a successor to be ready.
const stepTime = 5 * time.Second

// Network is the kind of UNIX socket that the two speak over.
const Network = "unixpacket"

// Serve lets a successor take over by ln, which it closes, until one has, or ctx ends.
func Serve(ctx context.Context, ln *net.UnixListener, cfg Config) error {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer ln.Close()
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	var running sync.WaitGroup
	defer running.Wait()
	var busy atomic.Bool // one is at it
	for {
		conn, err := ln.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if conn != nil {
				conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed): // a successor is ready
			running.Wait()
			return nil
		case err != nil:
			cfg.Logger.Warn("successor not accepted", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		running.Go(func() {
			defer conn.Close()
			if !busy.CompareAndSwap(false, true) {
				conn.SetDeadline(time.Now().Add(stepTime))
				if _, _, err := receive(conn); err == nil { // unread, it would take the answer along
					_ = send(conn, packet{Error: "another process is taking over"}, nil) // it sees the end if not this
				}
				return
			}
			defer busy.Store(false)
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if err := give(conn, cfg, func() { ln.Close() }); err != nil {
				if ctx.Err() == nil {
					cfg.Logger.Warn("not taken over", "error", err)
				}
				return
			}
			cancel()
		})
	}
}

// give passes the sockets to a successor and leaves once it is ready. The path is free for the successor by then.
func give(conn *net.UnixConn, cfg Config, free func()) error {
	if err := sameUser(conn); err != nil {
		return err
	}
	conn.SetDeadline(time.Now().Add(stepTime))
	p, _, err := receive(conn)
	if err != nil {
		return err
	}
	if p.Hello != cfg.Node || p.Hello == "" {
		return errors.Join(fmt.Errorf("it is the proxy %q", p.Hello), send(conn, packet{Error: "it is the proxy " + cfg.Node}, nil))
	}
	cfg.Logger.Info("passing the sockets on to another process")
	for addr, ln := range cfg.Sockets() {
		c, ok := ln.(syscall.Conn)
		if !ok {
			continue
		}
		if err := send(conn, packet{Socket: addr}, c); err != nil {
			if errors.Is(err, net.ErrClosed) {
				continue // the listener was removed just now
			}
			return fmt.Errorf("socket %s: %w", addr, err)
		}
	}
	if err := send(conn, packet{End: true}, nil); err != nil {
		return err
	}
	conn.SetDeadline(time.Time{})
	if p, _, err = receive(conn); err != nil || !p.Ready {
		return errors.Join(errors.New("it ended before it was ready"), err)
	}
	free()
	cfg.Leave()
	conn.SetDeadline(time.Now().Add(stepTime))
	if err := send(conn, packet{Left: true}, nil); err != nil {
		cfg.Logger.Warn("successor not told that this process has left", "error", err)
	}
	return nil
}

// A Predecessor is a process whose sockets were received, and that waits for this one to be ready.
type Predecessor struct {
	*Sockets
	conn *net.UnixConn
}

// Take gets the sockets of the process at the other end of conn, which runs the same proxy.
func Take(conn *net.UnixConn, node string) (_ *Predecessor, err error) {
	p := &Predecessor{&Sockets{byAddr: map[string]net.Listener{}}, conn}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.Close())
		}
	}()
	if err := sameUser(conn); err != nil {
		return nil, err
	}
	conn.SetDeadline(time.Now().Add(stepTime))
	if err := send(conn, packet{Hello: node}, nil); err != nil {
		return nil, err
	}
	for {
		m, fd, err := receive(conn)
		switch {
		case err != nil:
			return nil, err
		case m.Error != "":
			return nil, fmt.Errorf("%w: %s", ErrRefused, m.Error)
		case m.End:
			conn.SetDeadline(time.Time{})
			return p, nil
		case m.Socket == "" || fd < 0 || len(p.byAddr) == maxSockets:
			return nil, errors.New("unexpected answer of the running process")
		}
		ln, err := listenerOf(fd)
		if err != nil {
			return nil, fmt.Errorf("socket %s: %w", m.Socket, err)
		}
		name := everywhere(m.Socket)
		if old := p.byAddr[name]; old != nil {
			old.Close()
		}
		p.byAddr[name] = ln
	}
}

// Ready tells the predecessor that this process accepts connections, and returns when the other has stopped to. Sockets
// that nobody has taken are closed.
func (p *Predecessor) Ready() error {
	defer p.Close()
	p.conn.SetDeadline(time.Now().Add(stepTime))
	if err := send(p.conn, packet{Ready: true}, nil); err != nil {
		return err
	}
	m, _, err := receive(p.conn)
	if err == nil && !m.Left {
		err = errors.New("unexpected answer of the running process")
	}
	return err
}

// Close lets the predecessor go on, unless it has left.
func (p *Predecessor) Close() error {
	return errors.Join(p.Sockets.Close(), p.conn.Close())
}

// sameUser makes sure that the process at the other end runs as this one's user.
func sameUser(conn *net.UnixConn) error {
	rc, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var serr error
	if err := rc.Control(func(fd uintptr) { cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if serr != nil {
		return fmt.Errorf("credentials of the other process: %w", serr)
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("the other process belongs to user %d", cred.Uid)
	}
	return nil
}

// send sends a packet, with the file descriptor of a socket if there is one.
func send(conn *net.UnixConn, p packet, socket syscall.Conn) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if len(b) > maxPacket {
		return errors.New("packet too large")
	}
	if socket == nil {
		_, _, err = conn.WriteMsgUnix(b, nil, nil)
		return err
	}
	rc, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	// The kernel duplicates it; (*net.TCPListener).File would make accepting block.
	if err := rc.Control(func(fd uintptr) { _, _, serr = conn.WriteMsgUnix(b, unix.UnixRights(int(fd)), nil) }); err != nil {
		return err
	}
	return serr
}

// receive receives a packet; the file descriptor is -1 if none came with it.
func receive(conn *net.UnixConn) (p packet, fd int, err error) {
	fd = -1
	b, oob := make([]byte, maxPacket+1), make([]byte, unix.CmsgSpace(4))
	n, on, flags, _, err := conn.ReadMsgUnix(b, oob)
	if err != nil {
		return p, fd, err
	}
	if n == 0 {
		return p, fd, errors.New("the other process is gone")
	}
	if messages, perr := unix.ParseSocketControlMessage(oob[:on]); perr == nil {
		for i := range messages {
			fds, _ := unix.ParseUnixRights(&messages[i]) // none, then
			for _, f := range fds {
				if fd >= 0 {
					unix.Close(fd)
				}
				fd = f
			}
		}
	}
	if n > maxPacket || flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
		err = errors.New("packet too large")
	} else {
		err = json.Unmarshal(b[:n], &p)
	}
	if err != nil && fd >= 0 {
		unix.Close(fd)
		fd = -1
	}
	return p, fd, err
}
