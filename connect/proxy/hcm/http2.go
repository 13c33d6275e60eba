package hcm

import (
	"github.com/sarnmesh/sarn/connect/proxy/http2"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// http2ServerConfig is what the codec needs of a manager's configuration.
func http2ServerConfig(c *model.HTTPManager, counters *http2.Counters) http2.ServerConfig {
	o := &c.HTTP2
	bound := func(n *uint32) int {
		switch {
		case n == nil:
			return 0 // the default
		case *n == 0:
			return -1
		}
		return int(*n)
	}
	cfg := http2.ServerConfig{
		Options: http2.Options{
			HeaderTable: bound(o.HPACKTable), MaxStreams: o.ConcurrentStreams, StreamWindow: o.StreamWindow, ConnWindow: o.ConnectionWindow,
			MaxHeaderBytes: c.MaxHeaderBytes, MaxHeaders: c.MaxHeaders, MaxOutboundFrames: int(o.MaxOutbound),
			MaxOutboundControlFrames: int(o.MaxOutboundControl), MaxEmptyFrames: bound(o.EmptyFrames),
			MaxPriorityPerStream: bound(o.PriorityPerStream), MaxWindowPerData: bound(o.WindowUpdatePerData), StreamErrors: o.OverrideError,
			Counters: counters,
		},
		AllowConnect: o.AllowConnect, IdleTimeout: c.IdleTimeout, MaxRequests: int(c.MaxRequests), DrainTimeout: c.DrainTimeout,
	}
	if k := o.Keepalive; k != nil {
		cfg.Keepalive = http2.Keepalive{Interval: k.Interval, Timeout: k.Timeout, Jitter: k.Jitter / 100, Idle: k.IdleInterval}
	}
	return cfg
}
