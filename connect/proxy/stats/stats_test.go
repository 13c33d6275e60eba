package stats

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	prometheus "github.com/prometheus/common/model"
)

type clusterStats struct {
	Total  Counter   `stat:"upstream_cx_total"`
	Active Gauge     `stat:"upstream_cx_active"`
	Length Histogram `stat:"upstream_cx_length_ms"`
}

func TestPrometheusNamesAndLabels(t *testing.T) {
	st := NewStore([]TagRule{
		{Name: "consul.destination.service", Regexp: regexp.MustCompile(`^cluster\.((?:([^.]+))\.)[^.]+\.internal\.`)},
		{Name: "local_cluster", Fixed: "web"},
	})
	s := Struct[clusterStats](st.Scope(Text("cluster"), Label("envoy_cluster_name", "db.dc1.internal.td")))
	s.Total.Add(3)
	s.Active.Set(2)
	s.Length.Record(3 * time.Millisecond)

	var b strings.Builder
	if err := WritePrometheus(&b, st.Samples(Query{}), Cumulative); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# TYPE envoy_cluster_upstream_cx_total counter\n",
		`envoy_cluster_upstream_cx_total{consul_destination_service="db",envoy_cluster_name="db.dc1.internal.td",local_cluster="web"} 3` + "\n",
		`envoy_cluster_upstream_cx_length_ms_bucket{consul_destination_service="db",envoy_cluster_name="db.dc1.internal.td",local_cluster="web",le="1"} 0` + "\n",
		`local_cluster="web",le="5"} 1` + "\n",
		`local_cluster="web",le="+Inf"} 1` + "\n",
		`envoy_cluster_upstream_cx_length_ms_sum{consul_destination_service="db",envoy_cluster_name="db.dc1.internal.td",local_cluster="web"} 3` + "\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no line %q in\n%s", want, b.String())
		}
	}
}

func TestLabelValuesAreEscaped(t *testing.T) {
	st := NewStore(nil)
	st.Scope(Text("cluster"), Label("envoy_cluster_name", "a\"b\\c\nd")).Counter("x").Inc()
	var b strings.Builder
	WritePrometheus(&b, st.Samples(Query{}), Cumulative)
	if want := `envoy_cluster_x{envoy_cluster_name="a\"b\\c\nd"} 1`; !strings.Contains(b.String(), want) {
		t.Errorf("got %q, want it to contain %q", b.String(), want)
	}
}

func TestScopesOfOnePrefixShareMetricsUntilTheLastCloses(t *testing.T) {
	st := NewStore(nil)
	one, two := st.Scope(Text("tcp"), Text("a")), st.Scope(Text("tcp"), Text("a"))
	Struct[clusterStats](one).Total.Inc()
	Struct[clusterStats](two).Total.Inc()
	one.Close()
	one.Close() // again: counts once
	if got := st.Value("tcp.a.upstream_cx_total"); got != 2 {
		t.Errorf("after the first close the counter is %v, want 2", got)
	}
	two.Close()
	if got := len(st.Samples(Query{})); got != 0 {
		t.Errorf("after the last close there are %d metrics, want 0", got)
	}
}

func TestTextListsSortedAndUsedOnly(t *testing.T) {
	st := NewStore(nil)
	sc := st.Scope(Text("b"))
	sc.Counter("z").Inc()
	sc.Counter("y")
	sc.GaugeFunc("f", func() float64 { return 1.5 })
	st.Scope(Text("a")).Gauge("g").Set(-1)
	var b strings.Builder
	WriteText(&b, st.Samples(Query{UsedOnly: true}), Summary)
	if want := "a.g: -1\nb.f: 1.5\nb.z: 1\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestQuantilesAreNearTheTruth(t *testing.T) {
	for name, at := range map[string]func(i int) time.Duration{
		"microseconds":     func(i int) time.Duration { return time.Duration(i) * time.Microsecond },
		"milliseconds":     func(i int) time.Duration { return time.Duration(i) * time.Millisecond },
		"seconds":          func(i int) time.Duration { return time.Duration(i) * time.Second },
		"odd milliseconds": func(i int) time.Duration { return time.Duration(i) * 1234567 },
	} {
		var h Histogram
		for i := range 1000 {
			h.Record(at(i + 1))
		}
		for _, q := range []float64{.01, .5, .9, .99, .999} {
			got, want := h.Quantile(q).Seconds(), at(int(q*1000)).Seconds()
			if got < want*.93-2e-6 || got > want*1.07+2e-6 {
				t.Errorf("%s: quantile %v is %v, want about %v", name, q, got, want)
			}
		}
		if h.Count() != 1000 {
			t.Errorf("%s: count %d, want 1000", name, h.Count())
		}
	}
	var h Histogram
	h.Record(-time.Second)
	h.Record(1 << 62)
	if got := h.Quantile(1); got < 18*time.Hour {
		t.Errorf("the longest duration shows as %v", got)
	}
}

func TestCodesAreLabels(t *testing.T) {
	st := NewStore(nil)
	sc := st.Scope(Text("cluster"), Label("envoy_cluster_name", "db"))
	for _, name := range []string{"upstream_rq_200", "upstream_rq_503", "upstream_rq_2xx", "upstream_rq_total"} {
		sc.Counter(name).Inc()
	}
	var b strings.Builder
	if err := WritePrometheus(&b, st.Samples(Query{}), Cumulative); err != nil {
		t.Fatal(err)
	}
	want := `# TYPE envoy_cluster_upstream_rq counter
envoy_cluster_upstream_rq{envoy_cluster_name="db",envoy_response_code="200"} 1
envoy_cluster_upstream_rq{envoy_cluster_name="db",envoy_response_code="503"} 1
# TYPE envoy_cluster_upstream_rq_total counter
envoy_cluster_upstream_rq_total{envoy_cluster_name="db"} 1
# TYPE envoy_cluster_upstream_rq_xx counter
envoy_cluster_upstream_rq_xx{envoy_cluster_name="db",envoy_response_code_class="2"} 1
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

// TestPrometheusTakesIt reads the text with the parser of Prometheus' own libraries, whatever the names are.
func TestPrometheusTakesIt(t *testing.T) {
	st := NewStore([]TagRule{{Name: "1 bad.name", Fixed: "x"}})
	for _, name := range []string{"db", "a.b", "a\"\\\n", "\xff\xfe", ""} {
		sc := st.Scope(Text("cluster"), Label("envoy_cluster_name", name))
		s := Struct[clusterStats](sc)
		s.Total.Inc()
		s.Length.Record(7 * time.Millisecond)
		sc.Counter("upstream_rq_404").Inc()
		sc.Gauge("odd-näme")
	}
	st.Scope(Text("x.y")).Counter("z").Inc() // the same for Prometheus,
	st.Scope(Text("x_y")).Counter("z").Inc() // twice,
	st.Scope(Text("x-y")).Gauge("z").Inc()   // and of two kinds
	for _, d := range []Detail{Summary, Cumulative} {
		var b bytes.Buffer
		if err := WritePrometheus(&b, st.Samples(Query{}), d); err != nil {
			t.Fatal(err)
		}
		parser := expfmt.NewTextParser(prometheus.LegacyValidation)
		families, err := parser.TextToMetricFamilies(&b)
		if err != nil {
			t.Fatalf("detail %d: %v", d, err)
		}
		h := families["envoy_cluster_upstream_cx_length_ms"]
		if h == nil || len(h.GetMetric()) != 5 {
			t.Fatalf("detail %d: the histogram is %v", d, h)
		}
		for _, m := range h.GetMetric() {
			if d == Summary {
				if q := m.GetSummary().GetQuantile(); m.GetSummary().GetSampleCount() != 1 || len(q) != len(Quantiles) || q[2].GetValue() < 6.5 || q[2].GetValue() > 7.5 {
					t.Errorf("summary %v", m)
				}
				continue
			}
			if m.GetHistogram().GetSampleCount() != 1 || m.GetHistogram().GetSampleSum() != 7 {
				t.Errorf("histogram %v", m)
			}
			for _, k := range m.GetHistogram().GetBucket() {
				if (k.GetCumulativeCount() == 1) != (k.GetUpperBound() >= 10) {
					t.Errorf("bucket up to %v has %d", k.GetUpperBound(), k.GetCumulativeCount())
				}
			}
		}
		if z := families["envoy_x_y_z"]; len(z.GetMetric()) != 1 {
			t.Errorf("what is the same shows as %v", z)
		}
	}
}

func TestBoundsAndSelectionAreAsConfigured(t *testing.T) {
	st := NewStore(nil)
	st.Keep(func(name string) bool { return !strings.Contains(name, "secret") })
	st.Buckets([]BucketRule{{Match: func(name string) bool { return strings.HasSuffix(name, "length_ms") }, Bounds: []float64{2, 20}}})
	sc := st.Scope(Text("cluster"), Text("a"))
	sc.Counter("secret").Inc()
	s := Struct[clusterStats](sc)
	for _, ms := range []int{2, 3, 20, 21} {
		s.Length.Record(time.Duration(ms) * time.Millisecond)
	}
	samples := st.Samples(Query{UsedOnly: true})
	for d, want := range map[Detail]string{
		Cumulative: "cluster.a.upstream_cx_length_ms: B2(nan,1) B20(nan,3) B+Inf(nan,4)\n",
		Disjoint:   "cluster.a.upstream_cx_length_ms: B2(nan,1) B20(nan,2) B+Inf(nan,1)\n",
	} {
		var b strings.Builder
		if err := WriteText(&b, samples, d); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("detail %d gives %q, want %q", d, b.String(), want)
		}
	}
}

func TestRecordingAllocatesNothing(t *testing.T) {
	var h Histogram
	h.Record(time.Millisecond)
	if n := testing.AllocsPerRun(100, func() { h.Record(time.Millisecond) }); n != 0 {
		t.Errorf("recording allocates %v times", n)
	}
}

func BenchmarkHistogram(b *testing.B) {
	var h Histogram
	b.ReportAllocs()
	for b.Loop() {
		h.Record(3 * time.Millisecond)
	}
}

func BenchmarkCounter(b *testing.B) {
	var c Counter
	b.ReportAllocs()
	for b.Loop() {
		c.Inc()
	}
}
