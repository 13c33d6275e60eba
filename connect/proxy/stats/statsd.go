package stats

import (
	"cmp"
	"context"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
)

// StatsDConfig tunes a StatsD. A zero field takes its default.
type StatsDConfig struct {
	Prefix   string        // default "envoy"
	Interval time.Duration // between two reports; default 5 s
	// Tags sends labels as DogStatsD has them; else they stand in the names.
	Tags bool
	// MaxDatagram is how many bytes go into one datagram, of one line at least. 0 sends each line by itself.
	MaxDatagram int
	Logger      hclog.Logger // default discards
}

// A StatsD reports metrics to a server that speaks the protocol of statsd. Make one with NewStatsD.
//
// Of counters and histograms it reports what came since it last did. The durations of a histogram are reported to
// about 6 %, those that are alike as one with a sampling rate.
type StatsD struct {
	store *Store
	dial  func(context.Context) (io.WriteCloser, error)
	cfg   StatsDConfig

	sent map[string]uint64                   // of counters, by full name
	fine map[string]*[octaves]*[steps]uint64 // of histograms
	out  []byte
}

// NewStatsD returns a sink. Each report goes through a connection that dial makes, where a write is a datagram.
func NewStatsD(store *Store, dial func(context.Context) (io.WriteCloser, error), cfg StatsDConfig) *StatsD {
	cfg.Prefix = cmp.Or(cfg.Prefix, "envoy")
	cfg.Interval = cmp.Or(cfg.Interval, 5*time.Second)
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &StatsD{store: store, dial: dial, cfg: cfg, sent: map[string]uint64{}, fine: map[string]*[octaves]*[steps]uint64{}}
}

// Run reports until ctx ends, and then once more.
func (s *StatsD) Run(ctx context.Context) error {
	t := time.NewTicker(s.cfg.Interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			s.report(last)
			return nil
		case <-t.C:
			s.report(ctx)
		}
	}
}

// report sends one report. What a server does not take is lost.
func (s *StatsD) report(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Interval)
	defer cancel()
	c, err := s.dial(ctx)
	if err != nil {
		s.cfg.Logger.Warn("metrics not reported", "error", err)
		return
	}
	defer c.Close()
	present := map[string]bool{}
	for _, sm := range s.store.Samples(Query{}) {
		present[sm.Name] = true
		switch sm.kind {
		case kindGauge:
			s.line(c, &sm, strconv.FormatFloat(sm.Value, 'f', -1, 64), "g", 1)
		case kindCounter:
			now := uint64(sm.Value)
			before := s.sent[sm.Name]
			if now < before {
				before = 0 // it was reset
			}
			if s.sent[sm.Name] = now; now > before {
				s.line(c, &sm, strconv.FormatUint(now-before, 10), "c", 1)
			}
		case kindHistogram:
			s.durations(c, &sm)
		}
	}
	s.flush(c)
	for name := range s.sent {
		if !present[name] {
			delete(s.sent, name)
		}
	}
	for name := range s.fine {
		if !present[name] {
			delete(s.fine, name)
		}
	}
}

// durations reports what is new in a histogram.
func (s *StatsD) durations(c io.Writer, sm *Sample) {
	known := s.fine[sm.Name]
	if known == nil {
		known = new([octaves]*[steps]uint64)
		s.fine[sm.Name] = known
	}
	sm.fine.each(func(o, step int, n uint64) {
		if known[o] == nil {
			known[o] = new([steps]uint64)
		}
		before := known[o][step]
		if n < before {
			before = 0
		}
		if known[o][step] = n; n > before {
			low, width := span(o, step)
			ms := (float64(low) + float64(width-1)/2) / 1000
			s.line(c, sm, strconv.FormatFloat(math.Round(ms*1000)/1000, 'f', -1, 64), "ms", n-before)
		}
	})
}

var statsdNames = strings.NewReplacer(":", "_", "|", "_", "@", "_", "#", "_", ",", "_", "\n", "_")

// line adds a line, which stands for times measurements.
func (s *StatsD) line(c io.Writer, sm *Sample, value, kind string, times uint64) {
	name := sm.Name
	if s.cfg.Tags {
		name = sm.bare
	}
	before := len(s.out)
	if before > 0 {
		s.out = append(s.out, '\n')
	}
	b := append(append(s.out, s.cfg.Prefix...), '.')
	b = append(append(b, statsdNames.Replace(name)...), ':')
	b = append(append(append(b, value...), '|'), kind...)
	if times > 1 {
		b = strconv.AppendFloat(append(b, "|@"...), 1/float64(times), 'g', -1, 64)
	}
	if s.cfg.Tags {
		for i, l := range sm.labels {
			sep := ","
			if i == 0 {
				sep = "|#"
			}
			b = append(append(append(append(b, sep...), l.name...), ':'), statsdNames.Replace(l.value)...)
		}
	}
	s.out = b
	switch {
	case s.cfg.MaxDatagram <= 0:
		s.flush(c)
	case len(b) > s.cfg.MaxDatagram && before > 0:
		s.out = b[:before]
		rest := append([]byte(nil), b[before+1:]...)
		s.flush(c)
		s.out = append(s.out, rest...)
	}
}

func (s *StatsD) flush(c io.Writer) {
	if len(s.out) == 0 {
		return
	}
	if _, err := c.Write(s.out); err != nil {
		s.cfg.Logger.Debug("metrics not taken", "error", err)
	}
	s.out = s.out[:0]
}
