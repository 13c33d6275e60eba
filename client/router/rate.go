package router

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A Rate bounds calls by a bucket of tokens. The zero Rate does not.
type Rate struct {
	bounds atomic.Bool // changed under mu

	mu     sync.Mutex
	rate   float64
	burst  float64
	tokens float64
	filled time.Time
}

// Set changes the bound to so many calls per second, with bursts; zero or negative for none.
func (r *Rate) Set(rate float64, burst int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rate, r.burst = rate, float64(max(burst, 1))
	r.bounds.Store(rate > 0)
	r.tokens, r.filled = r.burst, time.Now()
}

// admit takes a token from the bucket.
func (r *Rate) admit() error {
	if !r.bounds.Load() {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rate <= 0 {
		return nil
	}
	now := time.Now()
	r.tokens = min(r.burst, r.tokens+now.Sub(r.filled).Seconds()*r.rate)
	r.filled = now
	if r.tokens < 1 {
		metrics.IncrCounter(metricExceeded, 1)
		return wireerr.ErrClientRateLimit
	}
	r.tokens--
	return nil
}

// Limited makes the calls of another caller within a rate: those that a server's own API makes to it.
func Limited(c rpc.Streamer, r *Rate) rpc.Streamer { return limited{c, r} }

type limited struct {
	rpc.Streamer
	rate *Rate
}

// Call implements rpc.Caller.
func (l limited) Call(ctx context.Context, d rpc.Descriptor, req, resp any) error {
	if err := l.rate.admit(); err != nil {
		return err
	}
	return l.Streamer.Call(ctx, d, req, resp)
}

// Stream implements rpc.Streamer.
func (l limited) Stream(ctx context.Context, d rpc.Descriptor, req any, in io.Reader, resp any) (io.ReadCloser, error) {
	if err := l.rate.admit(); err != nil {
		return nil, err
	}
	return l.Streamer.Stream(ctx, d, req, in, resp)
}
