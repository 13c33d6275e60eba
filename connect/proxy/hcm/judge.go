package hcm

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// A Case is a request to judge, with what decides about it.
type Case struct {
	Manager *model.HTTPManager
	Routes  *model.RouteConfig     // in force; nil while they are not known
	Filters map[string]filter.Type // those that are asked, by name
	Conn    *filter.Conn
	// Request is changed as it would be on its way to a host.
	Request *message.Request
	Random  uint64 // the number for all draws
}

// A Verdict is what a manager does with a request, short of sending it.
type Verdict struct {
	// Reply is what the client is answered. Nil: the request goes to the cluster that Match names.
	Reply *filter.Reply
	Rule  string // that made the reply, as access logs have it; may be empty
	Match route.Match
	// Passed are the filters, by the names the manager gives them, that have a say but were not asked.
	Passed []string

	Timeout, PerTry time.Duration // 0 never
	Idle            time.Duration // 0 never
	Retries         int
	RetryOn         model.RetryOn
	RetryStatuses   []int
}

// Judge decides about a request as serving it does, by the same steps: the one form of its path, its route, the filters,
// and the changes on the way to a host. Nothing is sent, logged or started.
func Judge(c Case) (Verdict, error) {
	store := stats.NewStore(nil)
	scope := store.Scope(stats.Text("http"))
	m := &Manager{conf: c.Manager, scope: scope, stats: stats.Struct[Stats](scope), router: &model.Router{}}
	m.env = &filter.Env{
		StatPrefix: c.Manager.StatPrefix, Stats: scope, Scope: store.Scope, Client: unreachable{}, Clusters: unreachable{},
		Logger: hclog.NewNullLogger(), Rand: func() uint64 { return c.Random }, Go: func(func(context.Context)) {},
		Failing: func() bool { return false },
	}
	e := &exchange{m: m}
	x := &e.x
	e.entry.HTTP = &e.http
	e.http.Request = c.Request
	x.Conn, x.Request, x.Response, x.Entry = c.Conn, c.Request, &e.resp, &e.entry
	x.Start, x.Random = time.Now(), c.Random
	x.Body, x.ResponseBody = message.NoBody, message.NoBody
	defer x.Cancel()
	e.idle, e.grpc = c.Manager.StreamIdleTimeout, x.GRPC()

	v := Verdict{}
	if v.Reply = m.canonical(x); v.Reply != nil {
		return v, nil
	}
	m.originate(x, new(string))
	var table *route.Table
	if c.Routes != nil {
		var err error
		table, err = route.Compile(c.Routes, func(_ string, conf model.FilterConfig) (any, error) {
			if t, ok := c.Filters[conf.FilterType()]; ok && t.Route != nil {
				return t.Route(conf, m.env)
			}
			return nil, nil
		})
		if err != nil {
			return v, err
		}
	}
	x.Reroute = func() {
		if x.Match = (route.Match{}); table == nil {
			return
		}
		x.Match = table.Match(&route.Facts{
			Request: x.Request, Random: x.Random, TLSPresented: x.Conn.Peer != nil, TLSValidated: x.Conn.Peer != nil,
			Internal: x.Internal, Metadata: e.http.Metadata, FilterState: e.http.FilterState, SourceIP: x.Remote,
		})
	}
	x.Reroute()
	for _, f := range c.Manager.Filters {
		if r, ok := f.Config.(*model.Router); ok {
			m.router = r
			continue
		}
		if x.Match.Disabled(f.Name, f.Disabled) {
			continue
		}
		t, ok := c.Filters[f.Config.FilterType()]
		if !ok {
			v.Passed = append(v.Passed, f.Name)
			continue
		}
		made, err := t.New(f.Name, f.Config, m.env)
		if err != nil {
			return v, err
		}
		if v.Reply = made.Request(x); v.Reply != nil {
			if v.Rule = v.Reply.Rule; v.Rule == "" && v.Reply.Status >= 400 {
				v.Rule = f.Name
			}
			v.Match = x.Match
			return v, nil
		}
	}
	v.Match = x.Match
	switch r := x.Match.Route; {
	case x.Match.TLSRedirect:
		v.Reply = filter.Deny(301, "", "direct_response", 0)
	case r == nil:
		v.Reply = filter.Deny(404, "", "route_not_found", accesslog.NoRouteFound)
	case r.NonForwarding:
		v.Reply = filter.Deny(503, "", "cluster_not_found", accesslog.NoClusterFound)
	case r.Redirect != nil:
		v.Reply = filter.Deny(r.Redirect.Status, "", "direct_response", 0)
		v.Reply.Header = []message.Field{{Name: "location", Value: strings.Clone(x.Match.Location(x.Request, x.Conn.TLS != nil))}}
	case r.Direct != nil:
		v.Reply = e.direct(r.Direct)
	default:
		e.fwd.conf = r.Forward
		e.timeouts()
		e.retryPolicy()
		x.Match.EditRequest(x.Request, &e.entry)
		x.Match.Rewrite(x.Request, "")
		if x.Match.VirtualHost.AttemptCount {
			x.Request.Header.Set("x-envoy-attempt-count", "1")
		}
		f := &e.fwd
		v.Timeout, v.PerTry, v.Idle = f.timeout, f.perTry, e.idle
		v.Retries, v.RetryOn, v.RetryStatuses = f.left, f.on, f.status
	}
	return v, nil
}

// unreachable is where no cluster can be reached.
type unreachable struct{}

var errUnreachable = errors.New("clusters are not reached while a request is only judged")

func (unreachable) Do(context.Context, string, *message.Request, []byte, int) (*filter.Answer, error) {
	return nil, errUnreachable
}

func (unreachable) Health(string) (healthy, total int, ok bool) { return 0, 0, false }
