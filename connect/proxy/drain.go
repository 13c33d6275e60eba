package proxy

import (
	"context"
	"net"
	"time"
)

// A drain is an order to take no more connections after a while.
type drain struct {
	inboundOnly bool
	stay        bool // goes on accepting afterwards
}

// drain lets the connections end that are open, and ends those that do not in time.
func (p *Proxy) drain(ctx context.Context) {
	wait, accept := p.cfg.ShutdownTime, p.cfg.ShutdownTime/2
	select {
	case <-p.left:
		wait, accept = p.cfg.HandoverTime, 0
	default:
	}
	p.log.Info("stopping", "connections", p.listeners.Connections(), "wait", wait)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), wait)
	defer cancel()
	if accept == 0 && ctx.Err() == nil {
		// Told to stop while it drains for its successor, it has the time that it has then.
		defer context.AfterFunc(ctx, func() {
			select {
			case <-end.Done():
			case <-time.After(p.cfg.ShutdownTime):
				cancel()
			}
		})()
	}
	p.listeners.Depart(false)
	if accept > 0 {
		// Whoever sends clients here takes a moment to learn that the proxy is not ready any more.
		most, cancel := context.WithTimeout(end, accept)
		p.listeners.Wait(most)
		cancel()
	}
	p.listeners.Shutdown(end)
}

// DrainListeners closes the sockets of the listeners, only those for inbound
// traffic if asked; connections stay. If it is to be graceful, the proxy says
// that it is not ready and tells clients to go elsewhere, and closes the sockets
// after the shutdown time, or not at all if they are to stay.
func (p *Proxy) DrainListeners(inboundOnly, graceful, stay bool) {
	if !graceful {
		p.listeners.StopAccepting(inboundOnly)
		return
	}
	p.FailHealth(true)
	p.listeners.Depart(inboundOnly)
	select {
	case p.drains <- drain{inboundOnly, stay}:
	default: // it drains already
	}
}

// drainLoop closes sockets some time after that was asked for, until ctx ends.
func (p *Proxy) drainLoop(ctx context.Context) error {
	for {
		var d drain
		select {
		case <-ctx.Done():
			return nil
		case d = <-p.drains:
		}
		if d.stay {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(p.cfg.ShutdownTime):
			p.listeners.StopAccepting(d.inboundOnly)
		}
	}
}

// Live returns a channel that is closed once the proxy does what it was told.
func (p *Proxy) Live() <-chan struct{} { return p.live }

// Sockets returns the listening sockets by the addresses that the configuration
// has for them, to be passed to a process that takes them over. That one finds
// the configuration as it is now in the state file.
func (p *Proxy) Sockets() map[string]net.Listener {
	if p.cfg.StateFile != "" {
		if err := p.writeState(); err != nil {
			p.log.Warn("configuration not saved", "file", p.cfg.StateFile, "error", err)
		}
	}
	return p.listeners.Sockets()
}

// HandOver stops accepting, since another process does so on the same sockets,
// and makes Run drain for the handover time.
func (p *Proxy) HandOver() {
	p.leftOnce.Do(func() {
		p.state.Store(StateDraining)
		for _, ln := range p.listeners.Sockets() {
			if u, ok := ln.(*net.UnixListener); ok {
				u.SetUnlinkOnClose(false)
			}
		}
		p.listeners.StopAccepting(false)
		close(p.left)
	})
}

// HandedOver reports whether another process has taken the sockets over.
func (p *Proxy) HandedOver() bool {
	select {
	case <-p.left:
		return true
	default:
		return false
	}
}
