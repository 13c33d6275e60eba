package dns

import (
	"context"
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-metrics"
	"github.com/miekg/dns"

	"github.com/sarnmesh/sarn/internal/measure"
)

// Names of the metrics of this package.
var (
	// metricDomain is a summary of the milliseconds that questions in the zones take. Label: node, this agent.
	metricDomain = []string{"dns", "domain_query"}
	// metricQuery is the same by type. Labels: node; type, that of the question, OTHER for types that are no type.
	metricQuery = []string{"dns", "query"}
	// metricPTR is a summary of the milliseconds that reverse questions take. Label: node.
	metricPTR = []string{"dns", "ptr_query"}
	// metricStale counts answers of a state that had not heard from the leader for five seconds.
	metricStale = []string{"dns", "stale_queries"}
	// metricKept counts questions, in the zones, that were answered by what was kept of an earlier answer.
	metricKept = []string{"dns", "kept_queries"}
	// metricDropped counts questions that were not answered since too many were under way.
	metricDropped = []string{"dns", "dropped_queries"}
	// metricLimited counts questions over UDP whose clients were told to ask over TCP, since their network had enough answers.
	// Label: kind, what was not given: answer, empty (an answer without records) or recursor (what a recursor would say).
	metricLimited = []string{"dns", "limited_queries"}
	// metricRefused counts TCP connections that were closed at once, for there were too many.
	metricRefused = []string{"dns", "refused_connections"}
)

// measuredTypes are the types of questions that are measured by name; 0 stands for all others.
var measuredTypes = [...]uint16{0, dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeANY, dns.TypeTXT, dns.TypeSOA, dns.TypeNS, dns.TypePTR, dns.TypeCNAME}

const (
	reportEvery = time.Second
	// staleAfter is the age from which on an answer counts as stale.
	staleAfter = 5 * time.Second
)

// counts are kept here and told now and then: to answer a question takes less time than to tell of it.
type counts struct {
	byType         [len(measuredTypes)]sum // in the zones
	arpa           sum
	keptOnes       atomic.Int64
	stale, dropped atomic.Int64
	refused        atomic.Int64
	limited        [limitKinds]atomic.Int64
}

// A sum is of the time that a number of questions took.
type sum struct{ n, nanos atomic.Int64 }

func (s *sum) add(d time.Duration) {
	s.n.Add(1)
	s.nanos.Add(int64(d))
}

// take returns what came up, each question as if it had taken the mean of the time, and begins again.
func (s *sum) take() measure.Batch {
	n := s.n.Swap(0)
	if n == 0 {
		return measure.Batch{}
	}
	return measure.Same(n, float64(s.nanos.Swap(0))/float64(n)/float64(time.Millisecond))
}

func typeAt(qtype uint16) int {
	for i, t := range measuredTypes {
		if t == qtype {
			return i
		}
	}
	return 0
}

func (c *counts) zone(qtype uint16, took time.Duration) { c.byType[typeAt(qtype)].add(took) }

// quick counts a question that was answered by what was kept.
func (c *counts) quick(question []byte, took time.Duration) {
	c.keptOnes.Add(1)
	c.zone(binary.BigEndian.Uint16(question[len(question)-4:]), took)
}

// report tells the metrics until ctx ends.
func (s *Server) report(ctx context.Context) error {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	node := metrics.Label{Name: "node", Value: s.cfg.Node}
	samples := func(c *sum, name []string, labels ...metrics.Label) {
		b := c.take()
		measure.Tell(name, labels, b)
		if len(labels) > 1 {
			measure.Tell(metricDomain, labels[:1], b)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for i, t := range measuredTypes {
			name := "OTHER"
			if t != 0 {
				name = dns.TypeToString[t]
			}
			samples(&s.counts.byType[i], metricQuery, node, metrics.Label{Name: "type", Value: name})
		}
		samples(&s.counts.arpa, metricPTR, node)
		for _, c := range []struct {
			name  []string
			since *atomic.Int64
		}{{metricKept, &s.counts.keptOnes}, {metricStale, &s.counts.stale}, {metricDropped, &s.counts.dropped}, {metricRefused, &s.counts.refused}} {
			if n := c.since.Swap(0); n > 0 {
				metrics.IncrCounter(c.name, float32(n))
			}
		}
		for kind := range limitKinds {
			if n := s.counts.limited[kind].Swap(0); n > 0 {
				metrics.IncrCounterWithLabels(metricLimited, float32(n), []metrics.Label{{Name: "kind", Value: kind.String()}})
			}
		}
	}
}
