// Package admission refuses a share of the requests to a service that fails, so that it can recover: the more fail, the
// more are refused.
package admission

import (
	"io"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter}

const name = "envoy.filters.http.admission_control"

// Config tunes the filter.
type Config struct {
	Disabled       bool
	Window         time.Duration // over which successes are counted, in whole seconds; at least one
	Aggression     float64       // at least 1: how soon many are refused
	Threshold      float64       // share of successes below which requests are refused, above 0 and up to 1
	MinRate        uint32        // requests a second below which none is refused
	MaxProbability float64       // of a refusal, 0 to 1
	HTTP           []Range       // statuses that are successes; nil takes those below 500
	GRPC           []uint32      // the same of gRPC; nil takes those that the caller is to blame for
}

// A Range is From <= status < To.
type Range struct{ From, To int }

// FilterType returns "envoy.filters.http.admission_control".
func (*Config) FilterType() string { return name }

// grpcSuccess are the statuses that do not tell of a service in trouble.
var grpcSuccess = []uint32{0, 1, 2, 3, 5, 6, 7, 9, 11, 12, 16}

type admissionFilter struct {
	conf                      *Config
	env                       *filter.Env
	grpc                      map[string]bool
	rejected, success, failed *stats.Counter

	mu      sync.Mutex
	seconds []second // a ring
	now     int64    // the second that is counted
	start   time.Time
	sum     second
}

type second struct{ total, good uint64 }

func newFilter(_ string, conf model.FilterConfig, env *filter.Env) (filter.Filter, error) {
	c := conf.(*Config)
	s := env.Stats
	f := &admissionFilter{
		conf: c, env: env, grpc: map[string]bool{}, start: time.Now(), seconds: make([]second, max(1, int(c.Window/time.Second))),
		rejected: s.Counter("admission_control.rq_rejected"), success: s.Counter("admission_control.rq_success"), failed: s.Counter("admission_control.rq_failure"),
	}
	codes := c.GRPC
	if codes == nil {
		codes = grpcSuccess
	}
	for _, n := range codes {
		f.grpc[strconv.FormatUint(uint64(n), 10)] = true
	}
	return f, nil
}

// An outcome is what becomes of an exchange.
type outcome struct{ told bool }

func (f *admissionFilter) Request(x *filter.Exchange) *filter.Reply {
	if f.conf.Disabled {
		return nil
	}
	if p := f.probability(); p > 0 && float64(f.env.Rand()>>11)/(1<<53) < p {
		f.rejected.Inc()
		return filter.Deny(503, "", "denied_by_admission_control", 0)
	}
	x.SetState(f, &outcome{})
	return nil
}

// probability returns how likely a request is refused.
func (f *admissionFilter) probability() float64 {
	f.mu.Lock()
	f.advance()
	n := f.sum
	f.mu.Unlock()
	c := f.conf
	total, good := float64(n.total), float64(n.good)
	if total == 0 || total/float64(len(f.seconds)) < float64(c.MinRate) {
		return 0
	}
	p := (total - good/c.Threshold) / (total + 1)
	if p <= 0 {
		return 0
	}
	if c.Aggression != 1 {
		p = math.Pow(p, 1/c.Aggression)
	}
	return min(p, c.MaxProbability)
}

// advance forgets seconds that are too long ago. The lock is held.
func (f *admissionFilter) advance() {
	now := int64(time.Since(f.start) / time.Second)
	for steps := min(now-f.now, int64(len(f.seconds))); steps > 0; steps-- {
		old := &f.seconds[(now-steps+1)%int64(len(f.seconds))]
		f.sum.total -= old.total
		f.sum.good -= old.good
		*old = second{}
	}
	f.now = now
}

func (f *admissionFilter) record(o *outcome, good bool) {
	if o.told {
		return
	}
	o.told = true
	f.mu.Lock()
	f.advance()
	s := &f.seconds[f.now%int64(len(f.seconds))]
	s.total++
	f.sum.total++
	if good {
		s.good++
		f.sum.good++
	}
	f.mu.Unlock()
	if good {
		f.success.Inc()
	} else {
		f.failed.Inc()
	}
}

func (f *admissionFilter) Response(x *filter.Exchange) *filter.Reply {
	o, _ := x.State(f).(*outcome)
	if o == nil || x.Response.Status < 200 && x.Response.Status != 101 {
		return nil
	}
	if x.GRPC() {
		if s := x.Response.Header.Get("grpc-status"); s != "" {
			f.record(o, f.grpc[s])
		} else if x.ResponseBody != message.NoBody {
			x.ResponseBody = &watched{Source: x.ResponseBody, end: func(t *message.Header) {
				f.record(o, t != nil && f.grpc[t.Get("grpc-status")])
			}}
		}
		return nil
	}
	good := f.conf.HTTP == nil && x.Response.Status < 500
	for _, r := range f.conf.HTTP {
		good = good || r.From <= x.Response.Status && x.Response.Status < r.To
	}
	f.record(o, good)
	return nil
}

// Finish counts what never had a status as a failure.
func (f *admissionFilter) Finish(x *filter.Exchange) {
	if o, _ := x.State(f).(*outcome); o != nil {
		f.record(o, false)
	}
}

// watched is a body whose trailers are looked at.
type watched struct {
	message.Source
	end func(*message.Header)
}

func (w *watched) Read() ([]byte, error) {
	p, err := w.Source.Read()
	if err == io.EOF {
		w.end(w.Source.Trailer())
	}
	return p, err
}
