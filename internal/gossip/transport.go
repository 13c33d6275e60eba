package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// A transport carries memberlist's traffic over the listener, packet connection and dialer of the configuration.
type transport struct {
	cfg     Config
	packets chan *memberlist.Packet
	streams chan net.Conn
	ctx     context.Context // of the reading goroutines and dials in progress: ended by Shutdown
	stop    context.CancelFunc
	wg      sync.WaitGroup

	// leaving is set while and after this member leaves: no streams from then on. Over them members exchange all they
	// know, and serf's account of a member that is about to leave would pass for its having joined at the moment it left,
	// so that who has it takes the announcement of leaving for outdated and the member for failed.
	leaving atomic.Bool
}

var errLeaving = errors.New("this member is leaving")

// newTransport starts reading.
func newTransport(cfg Config) *transport {
	t := &transport{cfg: cfg, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn)}
	t.ctx, t.stop = context.WithCancel(context.Background())
	if c, ok := cfg.Packets.(interface{ SetReadBuffer(int) error }); ok {
		for size := 2 << 20; size > 0 && c.SetReadBuffer(size) != nil; size /= 2 {
		}
	}
	t.wg.Go(t.readPackets)
	t.wg.Go(t.accept)
	return t
}

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.cfg.Advertise.Addr().AsSlice(), int(t.cfg.Advertise.Port()), nil
}

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	to, err := netip.ParseAddrPort(a.Addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("address of %s: %w", a.Name, err)
	}
	_, err = t.cfg.Packets.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return time.Now(), err
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if t.leaving.Load() {
		return nil, errLeaving
	}
	ctx, cancel := context.WithTimeout(t.ctx, timeout)
	defer cancel()
	return t.cfg.Dial(ctx, a.Addr)
}

func (t *transport) Shutdown() error {
	t.stop()
	err := errors.Join(ignoreClosed(t.cfg.Listener.Close()), ignoreClosed(t.cfg.Packets.Close()))
	t.wg.Wait()
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (t *transport) readPackets() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := t.cfg.Packets.ReadFrom(buf)
		at := time.Now()
		if err != nil {
			if t.pause(err) {
				return
			}
			continue
		}
		if n == 0 {
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: at}
		select {
		case t.packets <- p:
		case <-t.ctx.Done():
			return
		}
	}
}

func (t *transport) accept() {
	for {
		conn, err := t.cfg.Listener.Accept()
		if err != nil {
			if t.pause(err) {
				return
			}
			continue
		}
		if t.leaving.Load() {
			conn.Close()
			continue
		}
		select {
		case t.streams <- conn:
		case <-t.ctx.Done():
			conn.Close()
			return
		}
	}
}

// pause waits after a failed read so that a lasting failure does not spin; it reports whether reading is over.
func (t *transport) pause(err error) (over bool) {
	if t.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return true
	}
	t.cfg.Logger.Warn("cannot receive, will retry", "error", err)
	select {
	case <-t.ctx.Done():
		return true
	case <-time.After(100 * time.Millisecond):
		return false
	}
}
