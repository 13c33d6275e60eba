package stats

import (
	"regexp"
	"strings"
	"testing"
	"time"
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
	if err := WritePrometheus(&b, st.Samples(Query{})); err != nil {
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
	WritePrometheus(&b, st.Samples(Query{}))
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
	WriteText(&b, st.Samples(Query{UsedOnly: true}))
	if want := "a.g: -1\nb.f: 1.5\nb.z: 1\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestQuantilesLieWithinTheirBuckets(t *testing.T) {
	var h Histogram
	for i := range 100 {
		h.Record(time.Duration(i+1) * time.Millisecond)
	}
	if q := h.p.Load().quantile(.5); q < 25 || q > 55 {
		t.Errorf("median of 1..100 ms is %v, want about 50", q)
	}
	if h.Count() != 100 {
		t.Errorf("count %d, want 100", h.Count())
	}
}

func BenchmarkCounter(b *testing.B) {
	var c Counter
	b.ReportAllocs()
	for b.Loop() {
		c.Inc()
	}
}
