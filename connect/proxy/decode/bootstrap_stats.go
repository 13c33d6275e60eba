package decode

import (
	"slices"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"

	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Metrics says what of the metrics is kept, and who gets them.
type Metrics struct {
	Tags    []stats.TagRule
	Keep    func(name string) bool // nil keeps all
	Buckets []stats.BucketRule
	Sinks   []StatsD
}

// StatsD is a server that metrics are reported to.
type StatsD struct {
	Address model.Address // of datagrams
	stats.StatsDConfig
}

// metrics decodes what a bootstrap says about metrics.
func (r *run) metrics(b *bootstrapv3.Bootstrap) Metrics {
	m := b.GetStatsConfig()
	r.only("stats_config", m, "stats_tags use_all_default_tags stats_matcher histogram_bucket_settings", "allow_default_tag_overrides")
	out := Metrics{Tags: r.tags(m), Keep: r.statsMatcher(m.GetStatsMatcher())}
	for i, h := range m.GetHistogramBucketSettings() {
		p := index("stats_config.histogram_bucket_settings", i)
		r.only(p, h, "match buckets", "bins")
		match := r.stringMatch(join(p, "match"), h.GetMatch())
		if len(h.GetBuckets()) == 0 {
			continue // the default
		}
		bounds := slices.Clone(h.GetBuckets())
		slices.Sort(bounds)
		if len(bounds) > maxBounds {
			r.errorf(join(p, "buckets"), "%d bounds, at most %d are allowed", len(bounds), maxBounds)
			continue
		}
		out.Buckets = append(out.Buckets, stats.BucketRule{Match: match.Match, Bounds: bounds})
	}
	interval := r.duration("stats_flush_interval", b.GetStatsFlushInterval(), 5*time.Second)
	for i, s := range b.GetStatsSinks() {
		r.statsSink(index("stats_sinks", i), s, interval, &out)
	}
	return out
}

// maxBounds bounds the buckets of a histogram.
const maxBounds = 100

func (r *run) statsSink(path string, s *metricsv3.StatsSink, interval time.Duration, out *Metrics) {
	r.only(path, s, "name typed_config", "")
	a, path := s.GetTypedConfig(), join(path, "typed_config")
	sink := StatsD{StatsDConfig: stats.StatsDConfig{Interval: max(interval, time.Millisecond)}}
	switch typeOf(a) {
	case "envoy.config.metrics.v3.StatsdSink":
		var m metricsv3.StatsdSink
		if !r.extension(path, a, &m) {
			return
		}
		r.only(path, &m, "address prefix", "")
		if m.GetAddress() == nil {
			r.errorf(join(path, "address"), "missing")
			return
		}
		sink.Address, sink.Prefix = r.address(join(path, "address"), m.GetAddress(), false), m.GetPrefix()
	case "envoy.config.metrics.v3.DogStatsdSink":
		var m metricsv3.DogStatsdSink
		if !r.extension(path, a, &m) {
			return
		}
		r.only(path, &m, "address prefix max_bytes_per_datagram", "scale_histogram_units_to_milliseconds")
		if m.GetAddress() == nil {
			r.errorf(join(path, "address"), "missing")
			return
		}
		sink.Address, sink.Prefix, sink.Tags = r.address(join(path, "address"), m.GetAddress(), false), m.GetPrefix(), true
		sink.MaxDatagram = int(min(m.GetMaxBytesPerDatagram().GetValue(), 64<<10))
	default:
		r.errorf(path, "sink %q of type %q is not supported", s.GetName(), a.GetTypeUrl())
		return
	}
	out.Sinks = append(out.Sinks, sink)
}

// statsMatcher returns which metrics to keep by their names; nil for all.
func (r *run) statsMatcher(m *metricsv3.StatsMatcher) func(string) bool {
	const path = "stats_config.stats_matcher"
	var matches []model.StringMatch
	exclude := false
	switch x := m.GetStatsMatcher().(type) {
	case *metricsv3.StatsMatcher_RejectAll:
		if x.RejectAll {
			return func(string) bool { return false }
		}
		return nil
	case *metricsv3.StatsMatcher_InclusionList:
		matches = r.stringMatches(join(path, "inclusion_list"), x.InclusionList)
	case *metricsv3.StatsMatcher_ExclusionList:
		matches, exclude = r.stringMatches(join(path, "exclusion_list"), x.ExclusionList), true
	default:
		return nil
	}
	return func(name string) bool {
		return slices.ContainsFunc(matches, func(m model.StringMatch) bool { return m.Match(name) }) != exclude
	}
}

func (r *run) tags(m *metricsv3.StatsConfig) []stats.TagRule {
	var out []stats.TagRule
	for i, t := range m.GetStatsTags() {
		p := index("stats_config.stats_tags", i)
		if t.GetTagName() == "" {
			r.errorf(p, "empty tag_name")
		}
		rule := stats.TagRule{Name: t.GetTagName(), Fixed: t.GetFixedValue()}
		if t.GetRegex() != "" {
			re, err := compileTag(t.GetRegex())
			if err != nil {
				r.errorf(p+".regex", "%w", err)
				continue
			}
			rule.Regexp = re
		}
		out = append(out, rule)
	}
	return out
}
