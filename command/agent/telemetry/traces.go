package telemetry

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/internal/measure"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/internal/span"
)

// Metrics of spans: how many a collector took, and how many it never got since there was no room or it did not take them.
var (
	metricSent    = measure.NewCounter("telemetry.spans.sent")
	metricDropped = measure.NewCounter("telemetry.spans.dropped")
)

const (
	maxSpans   = 4096             // that wait
	giveUp     = 30 * time.Second // on spans that the collector does not take
	flushLimit = time.Second      // for what waits at the end
)

// Traces records requests and sends their spans to a collector. Make one with NewTraces; nothing is recorded before Set,
// and nothing sent before Run.
type Traces struct {
	Tracer *span.Tracer

	queue *span.Queue
	dial  Dial
	log   hclog.Logger

	mu    sync.Mutex
	to    *poster // nil for nowhere
	share float64
}

// NewTraces returns one that is off.
func NewTraces(dial Dial, log hclog.Logger) *Traces {
	q := span.NewQueue(maxSpans, span.MaxBatch, func(n int) { metricDropped.Add(int64(n)) })
	return &Traces{Tracer: span.NewTracer(q), queue: q, dial: dial, log: log}
}

// Set says where spans are sent from now on, nil for nowhere, and which share of requests is recorded of those whose caller
// has not decided. A collector that stays keeps its connection.
func (t *Traces) Set(to *OTLP, share float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.share = share
	t.Tracer.Set(to != nil, share)
	if t.to != nil && t.to.to.same(to) {
		return
	}
	if t.to != nil {
		t.to.close()
	}
	if t.to = nil; to != nil {
		p := newPoster(to, "/v1/traces", t.dial)
		t.to = &p
	}
}

func (t *Traces) collector() *poster {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.to
}

// Run sends spans until ctx ends, then those that wait, and returns after a second at the latest.
func (t *Traces) Run(ctx context.Context) error {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		failing := ""
		t.queue.Run(ctx, func(batch []*span.Data) { failing = t.send(own, batch, failing) })
		for batch := t.queue.Take(); len(batch) > 0; batch = t.queue.Take() {
			failing = t.send(own, batch, failing)
		}
		if p := t.collector(); p != nil {
			p.close()
		}
	}()
	<-ctx.Done()
	limit := time.NewTimer(flushLimit)
	defer limit.Stop()
	select {
	case <-ended:
	case <-limit.C:
		cancel()
		<-ended
	}
	return nil
}

// send sends spans, several times if need be. Failing is why those before could not be sent, empty if they could; so is
// what it returns.
func (t *Traces) send(ctx context.Context, batch []*span.Data, failing string) string {
	began := time.Now()
	for wait := firstWait; ; wait = min(2*wait, lastWait) {
		to := t.collector()
		if to == nil || ctx.Err() != nil {
			metricDropped.Add(int64(len(batch)))
			return failing
		}
		limited, cancel := context.WithTimeout(ctx, sendLimit)
		err := to.post(limited, span.Encode(to.to.Resource, scope().GetName(), batch))
		cancel()
		if err == nil {
			metricSent.Add(int64(len(batch)))
			if failing != "" {
				t.log.Info("spans are sent again", "address", to.to.shown())
			}
			return ""
		}
		if now := err.Error(); now != failing && ctx.Err() == nil {
			t.log.Warn("spans not sent", "address", to.to.shown(), "error", err)
			failing = now
		}
		if permanent(err) || t.queue.Full() || time.Since(began) > giveUp || !pause.For(ctx, wait) {
			metricDropped.Add(int64(len(batch)))
			return failing
		}
	}
}
