package telemetry

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-metrics"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	metricsv1 "go.opentelemetry.io/proto/otlp/metrics/v1"
	resourcev1 "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"
)

// OTLP is a collector that speaks the OpenTelemetry protocol over HTTP, in protobuf.
type OTLP struct {
	Endpoint string            // its URL, to whose path /v1/metrics or /v1/traces is added
	Headers  map[string]string // of each request; they may be secrets
	Resource map[string]string // attributes of this agent
	CA       []byte            // certificates of the authorities that its own may be of, in PEM; nil for the system's
}

// check reports what is wrong with the URL.
func (o *OTLP) check() error {
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return errors.New("the endpoint is not a URL of http or https")
	}
	return nil
}

// tls is what connections are secured by, nil for the default.
func (o *OTLP) tls() *tls.Config {
	if o.CA == nil {
		return nil
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(o.CA)
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
}

// shown is the URL without what may be a secret in it.
func (o *OTLP) shown() string {
	u, err := url.Parse(o.Endpoint)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host + u.Path
}

// address is what the URL says to connect to.
func (o *OTLP) address() string {
	u, err := url.Parse(o.Endpoint)
	if err != nil {
		return ""
	}
	if u.Port() != "" {
		return u.Host
	}
	port := "80"
	if u.Scheme == "https" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

func (o *OTLP) same(p *OTLP) bool {
	if o == nil || p == nil {
		return o == p
	}
	return o.Endpoint == p.Endpoint && maps.Equal(o.Headers, p.Headers) && maps.Equal(o.Resource, p.Resource) && bytes.Equal(o.CA, p.CA)
}

// maxAnswer bounds what a collector may say, header and body each.
const maxAnswer = 64 << 10

// A poster posts messages to a collector.
type poster struct {
	to     *OTLP
	client *http.Client
	url    string
}

func newPoster(to *OTLP, path string, dial Dial) poster {
	t := &http.Transport{
		DialContext: dial, TLSClientConfig: to.tls(), MaxIdleConns: 1, IdleConnTimeout: 3 * Interval, ForceAttemptHTTP2: true,
		MaxResponseHeaderBytes: maxAnswer, DisableCompression: true,
	}
	return poster{to: to, url: strings.TrimSuffix(to.Endpoint, "/") + path, client: &http.Client{
		Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (p *poster) close() { p.client.CloseIdleConnections() }

// post sends a message. Statuses that the protocol says to try again are plain errors, others lose the message.
func (p *poster) post(ctx context.Context, m proto.Message) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return lostError{err}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(body))
	if err != nil {
		return lostError{errors.New("the endpoint is not a URL")}
	}
	for k, v := range p.to.Headers {
		r.Header.Set(k, v)
	}
	r.Header.Set("Content-Type", "application/x-protobuf")
	resp, err := p.client.Do(r)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the URL
		}
		return err
	}
	io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	resp.Body.Close()
	switch {
	case resp.StatusCode/100 == 2:
		return nil
	case resp.StatusCode == 429, resp.StatusCode == 502, resp.StatusCode == 503, resp.StatusCode == 504:
		return fmt.Errorf("the collector answered with status %d", resp.StatusCode)
	}
	return lostError{fmt.Errorf("the collector answered with status %d", resp.StatusCode)}
}

// valid is the text as collectors take it.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func text(key, value string) *commonv1.KeyValue {
	return &commonv1.KeyValue{Key: valid(key), Value: &commonv1.AnyValue{Value: &commonv1.AnyValue_StringValue{StringValue: valid(value)}}}
}

func (o *OTLP) resource() *resourcev1.Resource {
	r := &resourcev1.Resource{}
	for _, k := range slices.Sorted(maps.Keys(o.Resource)) {
		r.Attributes = append(r.Attributes, text(k, o.Resource[k]))
	}
	return r
}

func scope() *commonv1.InstrumentationScope {
	return &commonv1.InstrumentationScope{Name: "github.com/sarnmesh/sarn"}
}

type otlpMetrics struct{ poster }

func newOTLPMetrics(to *OTLP, dial Dial) *otlpMetrics {
	return &otlpMetrics{newPoster(to, "/v1/metrics", dial)}
}

// send sends the series that were measured in an interval: counters as sums and samples as summaries, both since the
// series began.
func (o *otlpMetrics) send(ctx context.Context, at time.Time, points []point) error {
	end := uint64(at.Add(Interval).UnixNano())
	var out []*metricsv1.Metric
	for i := range points {
		p := &points[i]
		m := &metricsv1.Metric{Name: valid(p.name)}
		attributes := attributes(p.labels)
		began := uint64(p.born.UnixNano())
		switch p.kind {
		case gauge:
			m.Data = &metricsv1.Metric_Gauge{Gauge: &metricsv1.Gauge{DataPoints: []*metricsv1.NumberDataPoint{{
				Attributes: attributes, TimeUnixNano: end, Value: &metricsv1.NumberDataPoint_AsDouble{AsDouble: p.value},
			}}}}
		case counter:
			m.Data = &metricsv1.Metric_Sum{Sum: &metricsv1.Sum{
				IsMonotonic: true, AggregationTemporality: metricsv1.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE,
				DataPoints: []*metricsv1.NumberDataPoint{{
					Attributes: attributes, StartTimeUnixNano: began, TimeUnixNano: end, Value: &metricsv1.NumberDataPoint_AsDouble{AsDouble: p.value},
				}},
			}}
		case summary:
			d := &metricsv1.SummaryDataPoint{Attributes: attributes, StartTimeUnixNano: began, TimeUnixNano: end, Count: uint64(p.count), Sum: p.sum}
			sorted := slices.Sorted(slices.Values(p.batch.Values))
			for _, q := range quantiles {
				if len(sorted) > 0 {
					d.QuantileValues = append(d.QuantileValues, &metricsv1.SummaryDataPoint_ValueAtQuantile{Quantile: q.of, Value: quantile(sorted, q.of)})
				}
			}
			m.Data = &metricsv1.Metric_Summary{Summary: &metricsv1.Summary{DataPoints: []*metricsv1.SummaryDataPoint{d}}}
		}
		// Series of one name are points of one metric.
		if n := len(out); n > 0 && out[n-1].Name == m.Name && merge(out[n-1], m) {
			continue
		}
		out = append(out, m)
	}
	// The same bytes as an ExportMetricsServiceRequest, whose package brings much that is not needed.
	return o.post(ctx, &metricsv1.MetricsData{ResourceMetrics: []*metricsv1.ResourceMetrics{{
		Resource: o.to.resource(), ScopeMetrics: []*metricsv1.ScopeMetrics{{Scope: scope(), Metrics: out}},
	}}})
}

// merge adds the points of a metric to those of another of the same kind.
func merge(to, from *metricsv1.Metric) bool {
	switch f := from.Data.(type) {
	case *metricsv1.Metric_Gauge:
		if t := to.GetGauge(); t != nil {
			t.DataPoints = append(t.DataPoints, f.Gauge.DataPoints...)
			return true
		}
	case *metricsv1.Metric_Sum:
		if t := to.GetSum(); t != nil {
			t.DataPoints = append(t.DataPoints, f.Sum.DataPoints...)
			return true
		}
	case *metricsv1.Metric_Summary:
		if t := to.GetSummary(); t != nil {
			t.DataPoints = append(t.DataPoints, f.Summary.DataPoints...)
			return true
		}
	}
	return false
}

func attributes(labels []metrics.Label) (list []*commonv1.KeyValue) {
	for _, l := range labels {
		list = append(list, text(l.Name, l.Value))
	}
	return list
}
