// Package http2 carries HTTP/2 (RFC 9113) for the proxy: connections from clients and to hosts.
//
// A connection has two goroutines. One reads: it handles the frames of all that one read of the socket gave, and only
// then lets answers go. The other writes: it takes what streams and the reader have put into the buffer, all at once.
// Bodies wait in chunks from a pool until they are taken; the peer may send more as they are. A connection without
// requests holds no buffer.
package http2

import (
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Options are what both sides of HTTP/2 can be told. A zero field takes its default.
type Options struct {
	// HeaderTable is the size of the table for decoding fields; default 4096, negative for none.
	HeaderTable int
	// MaxStreams is how many streams there may be at a time; default 1024.
	MaxStreams uint32
	// StreamWindow and ConnWindow are the bytes of bodies that the peer may send before they are taken, on a stream and
	// on all; default 16 MiB and 24 MiB.
	StreamWindow, ConnWindow uint32
	// MaxHeaderBytes bounds the names and values of a message's head, and its trailers; default 60 KiB.
	MaxHeaderBytes int
	// MaxHeaders bounds the number of fields; default 100.
	MaxHeaders int

	// Bounds on what may wait for a peer that does not read, and on frames that do little.
	MaxOutboundFrames        int // default 10000
	MaxOutboundControlFrames int // default 1000
	MaxEmptyFrames           int // in a row; default 1, negative for none
	MaxPriorityPerStream     int // default 100
	MaxWindowPerData         int // WINDOW_UPDATE frames for each DATA frame sent; default 10

	// StreamErrors makes an invalid message end its stream, not the connection.
	StreamErrors bool
	// Keepalive asks the peer for signs of life.
	Keepalive Keepalive
	// Counters, if not nil, counts for several connections.
	Counters *Counters
}

// Keepalive sends PING frames.
type Keepalive struct {
	Interval time.Duration // 0: none are sent
	Timeout  time.Duration // without an answer the connection is closed; default 10s
	Jitter   float64       // up to this much of the interval is added by chance; default 0.15
	Idle     time.Duration // before a request, if nothing was read for so long; clients only; 0: none
}

// Counters count what happens on connections, under "http2" or that of a cluster.
type Counters struct {
	ResetsReceived        stats.Counter `stat:"http2.rx_reset"`
	ResetsSent            stats.Counter `stat:"http2.tx_reset"`
	MessagingErrors       stats.Counter `stat:"http2.rx_messaging_error"`
	HeaderOverflows       stats.Counter `stat:"http2.header_overflow"`
	Trailers              stats.Counter `stat:"http2.trailers"`
	EmptyFrameFloods      stats.Counter `stat:"http2.inbound_empty_frames_flood"`
	PriorityFloods        stats.Counter `stat:"http2.inbound_priority_frames_flood"`
	WindowFloods          stats.Counter `stat:"http2.inbound_window_update_frames_flood"`
	ControlFloods         stats.Counter `stat:"http2.inbound_control_frames_flood"` // of PING, SETTINGS and the like
	HeaderFloods          stats.Counter `stat:"http2.inbound_continuation_frames_flood"`
	ResetFloods           stats.Counter `stat:"http2.inbound_reset_flood"`
	OutboundFloods        stats.Counter `stat:"http2.outbound_flood"`
	OutboundControlFloods stats.Counter `stat:"http2.outbound_control_flood"`
	KeepaliveTimeouts     stats.Counter `stat:"http2.keepalive_timeout"`
	GoAwaysSent           stats.Counter `stat:"http2.goaway_sent"`
}

func (o *Options) defaults() {
	set(&o.HeaderTable, defaultTable)
	set(&o.MaxStreams, 1024)
	set(&o.StreamWindow, 16<<20)
	set(&o.ConnWindow, 24<<20)
	set(&o.MaxHeaderBytes, 60<<10)
	set(&o.MaxHeaders, 100)
	set(&o.MaxOutboundFrames, 10000)
	set(&o.MaxOutboundControlFrames, 1000)
	set(&o.MaxEmptyFrames, 1)
	set(&o.MaxPriorityPerStream, 100)
	set(&o.MaxWindowPerData, 10)
	set(&o.Keepalive.Timeout, 10*time.Second)
	set(&o.Keepalive.Jitter, 0.15)
	o.HeaderTable = max(o.HeaderTable, 0)
	o.MaxEmptyFrames = max(o.MaxEmptyFrames, 0)
	o.StreamWindow = min(o.StreamWindow, maxWindow)
	o.ConnWindow = min(max(o.ConnWindow, initialWindow), maxWindow)
	if o.Counters == nil {
		o.Counters = new(Counters)
	}
}

func set[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}
