package listener

import (
	"errors"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stream"
	"github.com/sarnmesh/sarn/connect/proxy/upstream"
)

// tcpProxy carries the bytes of a connection to a host of a cluster and back.
type tcpProxy struct {
	m     *Manager
	conf  *model.TCPProxy
	stats *tcpStats
	logs  []*accesslog.Log
}

// pick returns the name of the cluster for a connection.
func (t *tcpProxy) pick(c *conn) string {
	if c.cluster != "" {
		return c.cluster
	}
	if len(t.conf.Weighted) == 0 {
		return t.conf.Cluster
	}
	total := uint64(0)
	for _, w := range t.conf.Weighted {
		total += uint64(w.Weight)
	}
	if total == 0 {
		return t.conf.Weighted[0].Name
	}
	n := t.m.cfg.Rand() % total
	for _, w := range t.conf.Weighted {
		if n < uint64(w.Weight) {
			return w.Name
		}
		n -= uint64(w.Weight)
	}
	return ""
}

func (t *tcpProxy) serve(c *conn) {
	t.stats.CxTotal.Inc()
	e := &c.entry
	if len(t.logs) > 0 {
		defer func() {
			c.fillEntry()
			for _, l := range t.logs {
				l.Write(e)
			}
		}()
	}
	e.UpstreamCluster = t.pick(c)
	cluster := t.m.cfg.Upstreams.Get(e.UpstreamCluster)
	if cluster == nil {
		t.stats.NoRoute.Inc()
		e.Flags |= accesslog.NoClusterFound
		c.stop("cluster_not_found")
		t.m.cfg.Logger.Debug("no such cluster", "listener", c.l.name, "cluster", e.UpstreamCluster)
		return
	}
	req := upstream.Request{Destination: c.destination, MaxAttempts: t.conf.MaxConnectAttempts}
	if t.conf.HashSource {
		var b [64]byte
		req.Choice.Hash, req.Choice.HasHash = xxhash.Sum64(c.facts.remote.Addr().AppendTo(b[:0])), true
	}
	up, attempts, err := cluster.Connect(t.m.dials, req)
	e.Attempts = attempts
	if err != nil {
		var ce *upstream.ConnectError
		if errors.As(err, &ce) {
			e.Flags |= ce.Flags
			if ce.Host != nil {
				e.UpstreamHost, e.UpstreamHostName = ce.Host.Address().String(), ce.Host.Hostname()
			}
		}
		e.UpstreamFailure = err.Error()
		c.stop("upstream_connection_failure")
		t.m.cfg.Logger.Debug("no upstream connection", "listener", c.l.name, "cluster", e.UpstreamCluster, "attempts", attempts, "error", err)
		return
	}
	if !c.attach(up) {
		up.Close()
		return
	}
	us := up.Cluster.Stats()
	e.UpstreamHost, e.UpstreamHostName = up.Host.Address().String(), up.Host.Hostname()
	if a := up.LocalAddr(); a != nil && len(t.logs) > 0 {
		e.UpstreamLocal = a.String()
	}
	f := &stream.Flow{
		Down: c.stream, Up: up.Conn,
		IdleTimeout: t.conf.IdleTimeout, MaxDuration: t.conf.MaxDuration,
		Count: func(received, sent int) {
			if received > 0 {
				t.stats.RxBytes.Add(uint64(received))
				us.CxTxBytes.Add(uint64(received))
			} else {
				t.stats.TxBytes.Add(uint64(sent))
				us.CxRxBytes.Add(uint64(sent))
			}
		},
	}
	start := time.Now()
	end, side := f.Run()
	up.Close()
	switch end {
	case stream.Idle:
		t.stats.IdleTimeout.Inc()
		us.CxIdleTimeout.Inc()
		c.stop("idle_timeout")
	case stream.TooLong:
		t.stats.MaxDuration.Inc()
		e.Flags |= accesslog.DurationTimeout
		c.stop("max_duration_timeout")
	}
	if side == stream.Up {
		us.CxDestroyRemote.Inc()
	} else {
		us.CxDestroyLocal.Inc()
	}
	e.BytesReceived, e.BytesSent = f.Received(), f.Sent()
	e.UpstreamSent, e.UpstreamReceived = e.BytesReceived, e.BytesSent
	t.m.cfg.Logger.Trace("connection ended", "listener", c.l.name, "cluster", e.UpstreamCluster, "received", e.BytesReceived, "sent", e.BytesSent, "after", time.Since(start))
}
