package measure_test

import (
	"math"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/internal/measure"
)

func TestTimersAndCountersOfOneNameAreOne(t *testing.T) {
	l := metrics.Label{Name: "op", Value: "x"}
	if one, same, other := measure.NewTimer("test.same", l), measure.NewTimer("test.same", l), measure.NewTimer("test.same"); one != same || one == other {
		t.Error("timers are not told apart by name and labels")
	}
	if one, same, other := measure.NewCounter("test.same", l), measure.NewCounter("test.same", l), measure.NewCounter("test.same"); one != same || one == other {
		t.Error("counters are not told apart by name and labels")
	}
}

// Batches have exact figures, whoever adds to them at the same time.
func TestBatchesAreExact(t *testing.T) {
	timer := measure.NewTimer("test.exact")
	var mu sync.Mutex
	var got measure.Batch
	measure.To(func(key []string, _ []metrics.Label, b measure.Batch) {
		if len(key) == 2 && key[1] == "exact" {
			mu.Lock()
			got.Merge(b)
			mu.Unlock()
		}
	})
	defer measure.To(nil)
	const each = 500
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range each {
				timer.Add(time.Duration(i+1) * time.Millisecond)
				if i%100 == 0 {
					measure.Report()
				}
			}
		})
	}
	wg.Wait()
	measure.Report()
	if got.Count != 4*each || math.Abs(got.Sum-4*each*(each+1)/2) > 1e-6 || got.Min != 1 || got.Max != each || len(got.Values) != measure.Kept {
		t.Errorf("got %d, sum %v, from %v to %v, %d values", got.Count, got.Sum, got.Min, got.Max, len(got.Values))
	}
	for _, v := range got.Values {
		if v < 1 || v > each {
			t.Errorf("%v was not measured", v)
		}
	}
}

// Where nobody takes batches, go-metrics is told of each.
func TestBatchesAreToldOneByOne(t *testing.T) {
	sink := metrics.NewInmemSink(time.Hour, 2*time.Hour)
	conf := metrics.DefaultConfig("")
	conf.EnableRuntimeMetrics = false
	if _, err := metrics.NewGlobal(conf, sink); err != nil {
		t.Fatal(err)
	}
	defer metrics.NewGlobal(conf, &metrics.BlackholeSink{})
	counter, timer := measure.NewCounter("test.told"), measure.NewTimer("test.told")
	counter.Add(3)
	for range 100 {
		timer.Add(2 * time.Millisecond)
	}
	measure.Report()
	data := sink.Data()[0]
	if got := data.Samples["test.told"]; got.AggregateSample == nil || got.Count != 100 || got.Sum != 200 {
		t.Errorf("samples: %v", got)
	}
	if got := data.Counters["test.told"]; got.AggregateSample == nil || got.Sum != 3 {
		t.Errorf("counter: %v", got)
	}
}

func BenchmarkTimer(b *testing.B) {
	t := measure.NewTimer("test.bench")
	measure.To(func([]string, []metrics.Label, measure.Batch) {})
	defer measure.To(nil)
	b.ReportAllocs()
	for b.Loop() {
		t.Add(time.Millisecond)
	}
}

// What a Timer is there to avoid.
func BenchmarkGoMetrics(b *testing.B) {
	conf := metrics.DefaultConfig("consul")
	conf.EnableRuntimeMetrics = false
	m, err := metrics.New(conf, metrics.NewInmemSink(10*time.Second, time.Minute))
	if err != nil {
		b.Fatal(err)
	}
	labels := []metrics.Label{{Name: "method", Value: "GET"}, {Name: "path", Value: "v1_kv"}}
	b.ReportAllocs()
	for b.Loop() {
		m.AddSampleWithLabels([]string{"api", "http"}, 1, labels)
	}
}
