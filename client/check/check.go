// Package check runs health checks: it schedules the probes of many checks on few goroutines, applies thresholds, and
// reports each result (spec/registry.md sections 6.4 and 6.5).
//
// The package opens no sockets of its own: dial functions come in from the outside. Scripts are the one thing it starts.
package check

import (
	"container/heap"
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

const (
	// MinInterval is the least time between two runs of a check; smaller intervals are raised to it.
	MinInterval = time.Second
	// DefaultOutputMaxSize is how many bytes of output are kept unless configured.
	DefaultOutputMaxSize = 4096

	defaultMaxRunning = 1024
	defaultMaxScripts = 128
	aliasInterval     = time.Minute

	// slowRun is how long a run may take for its check to count as one that answers quickly.
	slowRun = time.Second
	// maxLabel bounds what is said around an output, such as the kind of check and how much was cut.
	maxLabel = 1024
)

// Probes that run at once are counted by pool, so that what is slow or heavy keeps nobody else waiting.
const (
	quickPool  = iota // network checks whose last run was quick
	slowPool          // network checks whose last run was slow
	scriptPool        // programs on this machine
	dockerPool        // programs in containers
	pools
)

// ErrNotTTL is returned when a status is set for a check that is not a TTL check.
var ErrNotTTL = errors.New("check has no TTL")

// A Result is what one run of a check found.
type Result struct {
	Status string // catalog.Passing, Warning or Critical
	Output string
	// Final results take effect at once, whatever the thresholds say.
	Final bool
}

// A Probe runs a check once. The context ends when the check is removed; the probe applies its own timeout.
type Probe interface {
	Probe(ctx context.Context) Result
}

// A watcher is a probe that reports by itself for as long as the context lasts.
type watcher interface {
	watch(ctx context.Context, report func(Result))
}

// A Sink receives the status of checks. Calls for one check are made one after another.
type Sink interface {
	UpdateCheck(id, status, output string)
}

// Aliases tells what an alias check considers.
type Aliases interface {
	// AliasChecks returns the agent's node-level checks and those of the service with this ID, ordered by ID, and whether
	// that service is registered.
	AliasChecks(serviceID string) (checks []*catalog.Check, exists bool)
}

// Config tunes a Scheduler. A zero field takes its default.
type Config struct {
	// Sink receives results. Required.
	Sink Sink
	// Dial opens connections for every kind of network check. Required for those.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// DialDocker opens a connection to the Docker API. Nil makes docker checks critical.
	DialDocker func(ctx context.Context) (net.Conn, error)
	// OSService asks the system's service manager about a service. Nil means that there is none: Add then refuses such
	// checks.
	OSService func(ctx context.Context, name string) (ServiceState, error)
	// Aliases answers alias checks of the agent itself. Required for those.
	Aliases Aliases
	// Caller reaches the servers, for alias checks that name a node. Required for those.
	Caller rpc.Caller
	// Token returns the secret with which the check with this ID asks the servers. Nil means the anonymous token.
	Token func(id string) string
	// TLS returns what the TLS configuration of a probe begins with, such as the agent's certificate. It is asked for
	// each probe. Nil means an empty configuration.
	TLS func() *tls.Config
	// OutputMaxSize is how many bytes of output are kept; default 4096. A check can only lower it.
	OutputMaxSize int
	// MaxRunning bounds the network probes that run at once, default 1024. Those that took more than a second the last
	// time get at most half of it, so that targets that hang hold up only each other. MaxScripts bounds the scripts, and
	// also the docker checks, that run at once; default 128. Checks that are due beyond that wait their turn.
	MaxRunning, MaxScripts int
	// Jitter returns a duration in [0, max) by which the first run of a check is put off; default uniformly random.
	Jitter func(max time.Duration) time.Duration
	Logger hclog.Logger // default discards
}

// A Scheduler runs checks. Make one with New. It is safe for concurrent use.
type Scheduler struct {
	cfg  Config
	wake chan struct{} // holds one value when Run has something new to look at

	mu      sync.Mutex
	checks  map[string]*scheduled
	due     queue               // by time
	waiting [pools][]*scheduled // due, in order
	running [pools]int          // not counting watches
}

// A scheduled check is guarded by the scheduler's mutex.
type scheduled struct {
	id       string
	def      definition.Check
	kind     string
	probe    Probe
	interval time.Duration
	limit    int       // of output
	at       time.Time // when it is due; while it runs, when that began
	index    int       // in the queue, -1 when not queued
	pool     int
	again    bool // triggered while it was waiting or running
	removed  bool
	cancel   context.CancelFunc // of the current run, nil when there is none
	lastNote string             // TTL: output of the last update
	state    thresholds
}

// New returns a scheduler without checks. Nothing runs until Run.
func New(cfg Config) (*Scheduler, error) {
	if cfg.Sink == nil {
		return nil, errors.New("check: no sink")
	}
	if cfg.OutputMaxSize <= 0 {
		cfg.OutputMaxSize = DefaultOutputMaxSize
	}
	if cfg.MaxRunning <= 0 {
		cfg.MaxRunning = defaultMaxRunning
	}
	if cfg.MaxScripts <= 0 {
		cfg.MaxScripts = defaultMaxScripts
	}
	if cfg.Jitter == nil {
		cfg.Jitter = func(max time.Duration) time.Duration { return rand.N(max) }
	}
	if cfg.Token == nil {
		cfg.Token = func(string) string { return "" }
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Scheduler{cfg: cfg, wake: make(chan struct{}, 1), checks: map[string]*scheduled{}}, nil
}

var errNoServiceManager = wireerr.Errorf(500, "not implemented: this system has no service manager that os_service checks could ask")

// Supports returns the error that Add has for a check that this system cannot run.
func (s *Scheduler) Supports(def *definition.Check) error {
	if def.CheckType() == definition.TypeOSService && s.cfg.OSService == nil {
		return errNoServiceManager
	}
	return nil
}

// Add begins to run a check, in place of the one with the same ID if there is one. lastOutput is the output a TTL check
// has at present. The error carries the status a registration is answered with.
func (s *Scheduler) Add(id string, def *definition.Check, lastOutput string) error {
	c := &scheduled{id: id, def: *def, kind: def.CheckType(), interval: max(def.Interval, MinInterval), index: -1, lastNote: lastOutput}
	c.limit = s.cfg.OutputMaxSize
	if def.OutputMaxSize > 0 {
		c.limit = min(c.limit, def.OutputMaxSize)
	}
	c.state = newThresholds(def)
	now := time.Now()
	switch c.kind {
	case definition.TypeTTL:
		c.at = now.Add(def.TTL)
	case definition.TypeAlias:
		c.interval = aliasInterval
		c.at = now
	case "":
		return wireerr.BadRequest("check type is not valid")
	default:
		if err := s.Supports(def); err != nil {
			return err
		}
		c.at = now.Add(s.cfg.Jitter(c.interval))
	}
	switch c.kind {
	case definition.TypeScript:
		c.pool = scriptPool
	case definition.TypeDocker:
		c.pool = dockerPool
	}
	c.probe = s.newProbe(c)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(id)
	s.checks[id] = c
	heap.Push(&s.due, c)
	s.notify()
	return nil
}

// Remove stops running a check. A probe under way is cancelled, and its result dropped.
func (s *Scheduler) Remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(id)
}

func (s *Scheduler) remove(id string) {
	c, ok := s.checks[id]
	if !ok {
		return
	}
	delete(s.checks, id)
	c.removed = true
	if c.index >= 0 {
		heap.Remove(&s.due, c.index)
	}
	if c.cancel != nil {
		c.cancel()
	}
}

// Has reports whether a check with this ID is run.
func (s *Scheduler) Has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.checks[id]
	return ok
}

// SetTTL sets the status of a TTL check and starts its clock again. It returns the output as it was kept, cut to the
// limit, and when the TTL will run out. It does not call the sink: the caller knows the outcome. ErrNotTTL means that
// there is no such TTL check.
func (s *Scheduler) SetTTL(id, output string) (kept string, expires time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.checks[id]
	if !ok || c.kind != definition.TypeTTL {
		return "", time.Time{}, ErrNotTTL
	}
	kept = cutHead(output, c.limit)
	c.lastNote = kept
	c.at = time.Now().Add(c.def.TTL)
	if c.index >= 0 {
		heap.Fix(&s.due, c.index)
	} else {
		heap.Push(&s.due, c)
	}
	s.notify()
	return kept, c.at, nil
}

// Trigger runs an alias check now. Other checks are left alone.
func (s *Scheduler) Trigger(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.checks[id]
	switch {
	case !ok || c.kind != definition.TypeAlias:
	case c.index < 0:
		c.again = true
	default:
		c.at = time.Now()
		heap.Fix(&s.due, c.index)
		s.notify()
	}
}

// RunNow runs a check now instead of when it is due. TTL checks, and those that run already, are left alone.
func (s *Scheduler) RunNow(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c, ok := s.checks[id]; ok && c.index >= 0 && c.kind != definition.TypeTTL {
		c.at = time.Now()
		heap.Fix(&s.due, c.index)
		s.notify()
	}
}

// Counts returns how many script checks and how many TTL checks there are.
func (s *Scheduler) Counts() (scripts, ttls int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.checks {
		switch c.kind {
		case definition.TypeScript:
			scripts++
		case definition.TypeTTL:
			ttls++
		}
	}
	return scripts, ttls
}

// notify makes Run look again. The mutex is held.
func (s *Scheduler) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run runs checks until ctx ends, then returns nil. Every probe has ended by then.
func (s *Scheduler) Run(ctx context.Context) error {
	var probes sync.WaitGroup
	defer probes.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		for {
			c, runCtx := s.next(ctx)
			if c == nil {
				break
			}
			if c.kind == definition.TypeTTL {
				s.expire(c)
				continue
			}
			probes.Go(func() {
				if w, ok := c.probe.(watcher); ok {
					w.watch(runCtx, func(r Result) { s.report(c, r) })
				} else {
					s.report(c, c.probe.Probe(runCtx))
				}
				s.ended(c)
			})
		}
		timer.Reset(s.untilNext())
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-s.wake:
		}
	}
}

// room reports whether one more probe of a pool may run. The mutex is held.
func (s *Scheduler) room(pool int) bool {
	network := s.running[quickPool] + s.running[slowPool]
	switch pool {
	case quickPool:
		return network < s.cfg.MaxRunning
	case slowPool:
		return network < s.cfg.MaxRunning && s.running[slowPool] < max(1, s.cfg.MaxRunning/2)
	}
	return s.running[pool] < s.cfg.MaxScripts
}

// next takes one check that is due and, within the limits, marks it running. The context is that of its run.
func (s *Scheduler) next(ctx context.Context) (*scheduled, context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for len(s.due) > 0 && !s.due[0].at.After(now) {
		c := heap.Pop(&s.due).(*scheduled)
		if c.kind == definition.TypeTTL {
			return c, nil
		}
		s.waiting[c.pool] = append(s.waiting[c.pool], c)
	}
	for pool := range pools {
		for len(s.waiting[pool]) > 0 && s.room(pool) {
			c := s.waiting[pool][0]
			s.waiting[pool][0] = nil
			s.waiting[pool] = s.waiting[pool][1:]
			if c.removed {
				continue
			}
			if _, watches := c.probe.(watcher); !watches {
				s.running[pool]++
			}
			c.again, c.at = false, now
			var runCtx context.Context
			runCtx, c.cancel = context.WithCancel(ctx)
			return c, runCtx
		}
	}
	return nil, nil
}

// untilNext returns how long Run may sleep.
func (s *Scheduler) untilNext() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.due) == 0 {
		return time.Hour
	}
	return max(0, time.Until(s.due[0].at))
}

// ended queues c for its next run.
func (s *Scheduler) ended(c *scheduled) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.cancel()
	c.cancel = nil
	now := time.Now()
	if _, watches := c.probe.(watcher); !watches {
		s.running[c.pool]--
	}
	if c.pool == quickPool || c.pool == slowPool {
		c.pool = quickPool
		if now.Sub(c.at) > slowRun {
			c.pool = slowPool
		}
	}
	if !c.removed {
		c.at = now.Add(c.interval)
		if c.again {
			c.at = now
		}
		heap.Push(&s.due, c)
	}
	s.notify()
}

// report passes a result through the thresholds to the sink.
func (s *Scheduler) report(c *scheduled, r Result) {
	s.mu.Lock()
	status, apply := r.Status, true
	if c.kind != definition.TypeAlias {
		status, apply = c.state.judge(r)
	}
	apply = apply && !c.removed
	s.mu.Unlock()
	if apply {
		// Probes keep to the limit in what they were told to show. Errors say what the target wants.
		if len(r.Output) > c.limit+maxLabel+len(c.def.HTTP) {
			r.Output = cutHead(r.Output, c.limit)
		}
		s.cfg.Sink.UpdateCheck(c.id, status, r.Output)
	}
}

// expire makes a TTL check critical. It is queued again by SetTTL.
func (s *Scheduler) expire(c *scheduled) {
	s.mu.Lock()
	gone, last := c.removed || c.index >= 0, c.lastNote
	s.mu.Unlock()
	if gone {
		return
	}
	output := "TTL expired"
	if last != "" {
		output += " (last output before timeout follows): " + last
	}
	s.cfg.Logger.Warn("check missed its TTL, is now critical", "check", c.id)
	s.cfg.Sink.UpdateCheck(c.id, catalog.Critical, output)
}

// thresholds count results in a row (spec/registry.md section 6.4).
type thresholds struct {
	successes, failures                          int // in a row
	beforePassing, beforeWarning, beforeCritical int
}

// newThresholds returns counters that are satisfied, so that the first result takes effect at once.
func newThresholds(def *definition.Check) thresholds {
	t := thresholds{beforePassing: def.SuccessBeforePassing, beforeWarning: def.FailuresBeforeWarning, beforeCritical: def.FailuresBeforeCritical}
	if t.beforeWarning == 0 {
		t.beforeWarning = t.beforeCritical
	}
	t.successes, t.failures = t.beforePassing, t.beforeCritical
	return t
}

// judge counts a result and returns the status to apply, if any is.
func (t *thresholds) judge(r Result) (status string, apply bool) {
	if r.Status != catalog.Critical {
		t.failures = 0
		t.successes++
		return r.Status, t.successes >= t.beforePassing || r.Final
	}
	t.successes = 0
	t.failures++
	switch {
	case r.Final || t.failures >= t.beforeCritical:
		return catalog.Critical, true
	case t.failures >= t.beforeWarning:
		return catalog.Warning, true
	}
	return "", false
}

// A queue is a heap of checks by time.
type queue []*scheduled

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push adds x, for package heap.
func (q *queue) Push(x any) {
	c := x.(*scheduled)
	c.index = len(*q)
	*q = append(*q, c)
}

// Pop takes the last element, for package heap.
func (q *queue) Pop() any {
	last := len(*q) - 1
	c := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	c.index = -1
	return c
}
