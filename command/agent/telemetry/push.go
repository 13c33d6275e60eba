package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/internal/measure"
	"github.com/sarnmesh/sarn/internal/pause"
)

// A Target is where metrics are sent every Interval. Its zero fields are unused.
type Target struct {
	Protocol Protocol
	Address  string   // host:port, with udp://, tcp:// or unix:// before it for another network than the protocol's own; the URL of OTLP
	Tags     []string // name:value, of dogstatsd
	Host     string   // the part of names that dogstatsd leaves out, since it tells hosts apart by itself
	OTLP     *OTLP    // of OTLP
}

// A Protocol is one that metrics are sent by.
type Protocol string

// The protocols.
const (
	Statsd     Protocol = "statsd"    // datagrams
	Statsite   Protocol = "statsite"  // the same lines, over TCP
	Dogstatsd  Protocol = "dogstatsd" // datagrams whose lines have tags
	OTLPMetric Protocol = "otlp"
)

// network splits an address into its network and the address in it.
func (t *Target) network() (network, address string) {
	network = "udp"
	if t.Protocol == Statsite {
		network = "tcp"
	}
	address = t.Address
	if n, a, ok := strings.Cut(t.Address, "://"); ok {
		network, address = n, a
	}
	if network == "unix" {
		network = "unixgram"
	}
	return network, address
}

// Check reports what is wrong with an address.
func (t *Target) Check() error {
	if t.Protocol == OTLPMetric {
		return t.OTLP.check()
	}
	network, address := t.network()
	switch network {
	case "udp", "tcp":
		if _, port, err := net.SplitHostPort(address); err != nil || port == "" {
			return fmt.Errorf("%q is not of the form host:port", t.Address)
		}
		return nil
	case "unixgram":
		if t.Protocol == Dogstatsd && address != "" {
			return nil
		}
	}
	return fmt.Errorf("%q names a network that %s does not use", t.Address, t.Protocol)
}

// Reach reports whether the target can be reached, as far as its network tells.
func (t *Target) Reach(ctx context.Context, dial Dial) error {
	network, address := t.network()
	if t.Protocol == OTLPMetric {
		network, address = "tcp", t.OTLP.address()
	}
	c, err := dial(ctx, network, address)
	if err != nil {
		return err
	}
	return c.Close()
}

// same reports whether two targets get the same.
func (t *Target) same(o *Target) bool {
	return t.Protocol == o.Protocol && t.Address == o.Address && t.Host == o.Host && slices.Equal(t.Tags, o.Tags) && t.OTLP.same(o.OTLP)
}

// Dial opens connections, as net.Dialer.DialContext does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// A sender sends the points of an interval. What it returns is logged when it changes.
type sender interface {
	send(ctx context.Context, at time.Time, points []point) error
	close()
}

const (
	// waiting is how many intervals wait for a target that cannot be reached; the oldest are left out for newer ones.
	waiting   = 6
	sendLimit = 5 * time.Second
	firstWait = time.Second
	lastWait  = Interval
)

// A Pusher sends what a Store keeps. Make one with NewPusher; nothing is sent before Run.
type Pusher struct {
	store *Store
	dial  Dial
	log   hclog.Logger

	mu      sync.Mutex
	targets []Target
	changed chan struct{} // holds one
}

// NewPusher returns a pusher of a store.
func NewPusher(store *Store, dial Dial, log hclog.Logger) *Pusher {
	return &Pusher{store: store, dial: dial, log: log, changed: make(chan struct{}, 1)}
}

// Set says where metrics are sent from now on. Targets that stay keep their connections.
func (p *Pusher) Set(targets []Target) {
	p.mu.Lock()
	p.targets = slices.Clone(targets)
	p.mu.Unlock()
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// A queue is the intervals that wait for a target.
type queue struct {
	target Target
	end    context.CancelFunc
	due    chan due
}

type due struct {
	at     time.Time
	points []point
}

// Run sends until ctx ends, then what the last interval has so far, and returns.
func (p *Pusher) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	var queues []*queue
	defer func() {
		for _, q := range queues {
			q.end()
		}
		wg.Wait()
	}()
	set := func() {
		p.mu.Lock()
		targets := p.targets
		p.mu.Unlock()
		var keep []*queue
		for _, q := range queues {
			if slices.ContainsFunc(targets, func(t Target) bool { return t.same(&q.target) }) {
				keep = append(keep, q)
			} else {
				q.end()
			}
		}
		for _, t := range targets {
			if slices.ContainsFunc(keep, func(q *queue) bool { return t.same(&q.target) }) {
				continue
			}
			own, end := context.WithCancel(context.WithoutCancel(ctx))
			q := &queue{target: t, end: end, due: make(chan due, waiting)}
			keep = append(keep, q)
			wg.Go(func() { p.serve(own, q) })
		}
		queues = keep
	}
	set()
	for {
		at := time.Unix(0, beginning(time.Now()))
		tick := time.NewTimer(time.Until(at.Add(Interval)))
		select {
		case <-p.changed:
			tick.Stop()
			set()
			continue
		case <-ctx.Done():
			tick.Stop()
		case <-tick.C:
		}
		measure.Report()
		if len(queues) > 0 {
			points := p.store.in(at.UnixNano())
			for _, q := range queues {
				q.put(due{at, points})
			}
		}
		if ctx.Err() != nil {
			for _, q := range queues {
				close(q.due)
			}
			done := make(chan struct{})
			go func() { wg.Wait(); close(done) }()
			select {
			case <-done:
			case <-time.After(time.Second):
			}
			return nil
		}
		p.store.mu.Lock()
		p.store.sweep(time.Now())
		p.store.mu.Unlock()
	}
}

// A lostError is of an interval of which a part has arrived, or which was refused for good: it is not sent again.
type lostError struct{ error }

func (e lostError) Unwrap() error { return e.error }

func permanent(err error) bool {
	_, lost := errors.AsType[lostError](err)
	return lost
}

// put adds an interval, in place of the oldest if there is no room. Only one goroutine puts.
func (q *queue) put(d due) {
	for {
		select {
		case q.due <- d:
			return
		default:
		}
		select {
		case <-q.due:
		default:
		}
	}
}

// serve sends the intervals of a queue until it is closed or ctx ends.
func (p *Pusher) serve(ctx context.Context, q *queue) {
	log := p.log.With("protocol", string(q.target.Protocol), "address", q.target.shown())
	var to sender
	if q.target.Protocol == OTLPMetric {
		to = newOTLPMetrics(q.target.OTLP, p.dial)
	} else {
		to = newLines(&q.target, p.dial)
	}
	defer to.close()
	failing := ""
	for d := range whileOpen(ctx, q.due) {
		for wait := firstWait; ; wait = min(2*wait, lastWait) {
			own, cancel := context.WithTimeout(ctx, sendLimit)
			err := to.send(own, d.at, d.points)
			cancel()
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				if failing != "" {
					log.Info("metrics are sent again")
				}
				failing = ""
				break
			}
			if now := err.Error(); now != failing {
				log.Warn("metrics not sent, will retry", "error", err)
				failing = now
			}
			if permanent(err) || len(q.due) == waiting || !pause.For(ctx, wait) {
				break // newer ones wait
			}
		}
	}
}

// whileOpen gives what comes from a channel until that is closed or ctx ends.
func whileOpen(ctx context.Context, c <-chan due) func(yield func(due) bool) {
	return func(yield func(due) bool) {
		for {
			select {
			case d, ok := <-c:
				if !ok || !yield(d) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}
