// Package filtertest runs a filter on made-up exchanges, without a connection manager.
package filtertest

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// FilterName is what the configuration calls the filter under test.
const FilterName = "tested"

// A Bench runs one filter. Its fields may be changed before exchanges are made.
type Bench struct {
	Filter filter.Filter
	Env    *filter.Env
	Stats  *stats.Store
	Conn   *filter.Conn
	// Client answers what the filter asks of clusters; nil fails.
	Client func(ctx context.Context, cluster string, r *message.Request, body []byte) (*filter.Answer, error)
	// Hosts tells the healthy and all hosts of clusters.
	Hosts map[string][2]int
	// Failing is what the proxy says about its own health.
	Failing bool
	// Random is the random number of every exchange.
	Random uint64

	t     testing.TB
	typ   filter.Type
	table *route.Table
}

// New makes a filter. What it starts has ended when the test has.
func New(t testing.TB, typ filter.Type, conf model.FilterConfig) *Bench {
	t.Helper()
	return NewWith(t, typ, conf, func(*Bench) {})
}

// NewWith is New for filters that use something of the bench right away: prepare may set it.
func NewWith(t testing.TB, typ filter.Type, conf model.FilterConfig, prepare func(*Bench)) *Bench {
	t.Helper()
	b := &Bench{
		Stats: stats.NewStore(nil),
		Conn: &filter.Conn{
			ID:       1,
			Listener: "in",
			Remote:   netip.MustParseAddrPort("192.0.2.1:40000"),
			Direct:   netip.MustParseAddrPort("192.0.2.1:40000"),
			Local:    netip.MustParseAddrPort("192.0.2.2:80"),
		},
		t: t, typ: typ,
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	b.Env = &filter.Env{
		StatPrefix: "test",
		Stats:      b.Stats.Scope(stats.Text("http"), stats.Label("envoy_http_conn_manager_prefix", "test")),
		Scope:      b.Stats.Scope,
		Client:     client{b},
		Clusters:   clusters{b},
		Logger:     hclog.NewNullLogger(),
		Rand:       func() uint64 { return b.Random },
		Go:         func(f func(context.Context)) { wg.Go(func() { f(ctx) }) },
		NodeID:     "node-1", NodeCluster: "web",
		Failing: func() bool { return b.Failing },
	}
	prepare(b)
	if typ.Name != conf.FilterType() {
		t.Fatalf("a filter of type %q has a configuration of %q", typ.Name, conf.FilterType())
	}
	f, err := typ.New(FilterName, conf, b.Env)
	if err != nil {
		t.Fatal(err)
	}
	b.Filter = f
	return b
}

// Route makes exchanges go to the cluster "up" by a route that changes the filter; nil changes nothing.
func (b *Bench) Route(conf model.FilterConfig, change ...func(*model.Route)) {
	b.t.Helper()
	r := model.Route{Name: "r", Match: model.RouteMatch{Path: "/"}, Forward: &model.Forward{Cluster: "up"}}
	if conf != nil {
		r.PerFilter = map[string]model.PerFilter{FilterName: {Config: conf}}
	}
	for _, f := range change {
		f(&r)
	}
	hosts := []model.VirtualHost{{Name: "vh", Domains: []string{"*"}, Routes: []model.Route{r}}}
	table, err := route.Compile(&model.RouteConfig{VirtualHosts: hosts}, func(_ string, c model.FilterConfig) (any, error) {
		if b.typ.Route == nil {
			return nil, errors.New("routes can't change this filter")
		}
		return b.typ.Route(c, b.Env)
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.table = table
}

type client struct{ b *Bench }

func (c client) Do(ctx context.Context, cluster string, r *message.Request, body []byte, limit int) (*filter.Answer, error) {
	if c.b.Client == nil {
		return nil, errors.New("no such cluster")
	}
	a, err := c.b.Client(ctx, cluster, r, body)
	if err == nil && len(a.Body) > limit {
		return nil, errors.New("answer too large")
	}
	return a, err
}

type clusters struct{ b *Bench }

func (c clusters) Health(name string) (healthy, total int, ok bool) {
	n, ok := c.b.Hosts[name]
	return n[0], n[1], ok
}

// Exchange returns the exchange of a request whose fields are pairs of name and value. The names ":authority" and
// ":scheme" replace those of the request.
func (b *Bench) Exchange(method, path string, fields ...string) *filter.Exchange {
	r := &message.Request{Version: message.HTTP11, Method: method, Scheme: "http", Authority: "web.test", Path: path, ContentLength: -1}
	for i := 0; i < len(fields); i += 2 {
		switch name, value := fields[i], fields[i+1]; name {
		case ":authority":
			r.Authority = value
		case ":scheme":
			r.Scheme = value
		default:
			r.Header.Add(name, value)
		}
	}
	x := &filter.Exchange{
		Conn: b.Conn, Start: time.Now(), Random: b.Random,
		Request: r, Body: message.NoBody,
		Remote:      b.Conn.Remote.Addr(),
		Reroute:     func() {},
		Entry:       &accesslog.Entry{HTTP: &accesslog.HTTP{Request: r}},
		BufferLimit: 1 << 20,
	}
	if b.table != nil {
		x.Reroute = func() {
			x.Match = b.table.Match(&route.Facts{Request: r, Random: x.Random, Metadata: x.Entry.HTTP.Metadata})
		}
		x.Reroute()
	}
	return x
}

// A Result is how an exchange went.
type Result struct {
	Reply    *filter.Reply // of Request or Response; nil if the filter let all pass
	Upstream bool          // a host saw the request
	Sent     string        // the body that the host got
	SentTail *message.Header
	Status   int // what the client got
	Header   message.Header
	Body     string
	Trailer  *message.Header
	Err      error // of reading either body
}

// Run carries an exchange to its end. The function stands for the host; nil answers 200 without a body.
func (b *Bench) Run(x *filter.Exchange, host func(x *filter.Exchange)) Result {
	var res Result
	if f, ok := b.Filter.(filter.Finisher); ok {
		defer f.Finish(x)
	}
	defer x.Cancel()
	x.Response, x.ResponseBody = &message.Response{Version: message.HTTP11, ContentLength: -1}, message.NoBody
	res.Reply = b.Filter.Request(x)
	if res.Reply == nil {
		res.Upstream = true
		if res.Sent, res.SentTail, res.Err = Drain(x.Body); res.Err != nil {
			return res
		}
		x.Response.Status = 200
		if host != nil {
			host(x)
		}
	} else {
		Local(x, res.Reply)
	}
	if f, ok := b.Filter.(filter.Responder); ok {
		if r := f.Response(x); r != nil {
			res.Reply = r
			x.Response.Reset()
			Local(x, r)
		}
	}
	res.Status = x.Response.Status
	res.Header.CopyFrom(&x.Response.Header)
	res.Body, res.Trailer, res.Err = Drain(x.ResponseBody)
	return res
}

// Local makes a reply the response of an exchange.
func Local(x *filter.Exchange, r *filter.Reply) {
	x.Response.Status = r.Status
	x.Response.Header.Set("content-type", "text/plain")
	for _, f := range r.Header {
		x.Response.Header.Add(f.Name, f.Value)
	}
	x.Response.ContentLength = int64(len(r.Body))
	x.Response.Header.Set("content-length", strconv.Itoa(len(r.Body)))
	x.ResponseBody = Body(r.Body)
}

// A Stream is a body that comes in pieces.
type Stream struct {
	Pieces []string
	Tail   *message.Header
	// Err is returned instead of io.EOF, if it is not nil.
	Err error
}

// Body returns a body in pieces.
func Body(pieces ...string) *Stream { return &Stream{Pieces: pieces} }

// Read returns the next piece. What was returned before is overwritten, as its owner may not keep it.
func (s *Stream) Read() ([]byte, error) {
	if len(s.Pieces) > 0 {
		p := s.Pieces[0]
		s.Pieces = s.Pieces[1:]
		return []byte(p), nil
	}
	if s.Err != nil {
		return nil, s.Err
	}
	return nil, io.EOF
}

// Ready reports true.
func (s *Stream) Ready() bool { return true }

// Trailer returns the trailers once the body has ended.
func (s *Stream) Trailer() *message.Header { return s.Tail }

// Trailers makes trailers of pairs of name and value.
func Trailers(fields ...string) *message.Header {
	h := &message.Header{}
	for i := 0; i < len(fields); i += 2 {
		h.Add(fields[i], fields[i+1])
	}
	return h
}

// Drain reads a body to its end.
func Drain(s message.Source) (string, *message.Header, error) {
	var b strings.Builder
	for {
		p, err := s.Read()
		b.Write(p)
		if err == io.EOF {
			return b.String(), s.Trailer(), nil
		}
		if err != nil {
			return b.String(), nil, err
		}
	}
}

// Fields returns a header as "name: value" lines.
func Fields(h *message.Header) string {
	var b strings.Builder
	if h == nil {
		return ""
	}
	for i := range h.Len() {
		f := h.At(i)
		b.WriteString(f.Name + ": " + f.Value + "\n")
	}
	return b.String()
}

// Counters returns the counters and gauges that are not zero, as "name value" lines.
func (b *Bench) Counters() string {
	all := map[string]float64{}
	for _, s := range b.Stats.Samples(stats.Query{}) {
		if s.Value != 0 {
			all[s.Name] = s.Value
		}
	}
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out.WriteString(name + " " + strconv.FormatFloat(all[name], 'f', -1, 64) + "\n")
	}
	return out.String()
}
