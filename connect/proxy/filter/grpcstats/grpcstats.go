// Package grpcstats counts calls and messages of gRPC, by service and method.
package grpcstats

import (
	"encoding/binary"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// Type makes the filters.
var Type = filter.Type{Name: name, New: newFilter}

const name = "envoy.filters.http.grpc_stats"

// Config says what is counted by itself.
type Config struct {
	All         bool                // every method; else those of Methods, and the others together
	Methods     map[string][]string // by service
	Upstream    bool                // also the time that calls take
	ReplaceDots bool                // in names of services, by underscores
}

// FilterType returns "envoy.filters.http.grpc_stats".
func (*Config) FilterType() string { return name }

// maxMethods bounds what is counted by itself: names come from requests.
const maxMethods = 1000

type statsFilter struct {
	conf *Config
	env  *filter.Env

	mu      sync.RWMutex
	methods map[method]*counters
}

// A method is who counts; service and name are empty for those that are counted together.
type method struct{ cluster, service, name string }

type counters struct {
	scope *stats.Scope
	*callStats
}

type callStats struct {
	Success  stats.Counter   `stat:"success"`
	Failure  stats.Counter   `stat:"failure"`
	Total    stats.Counter   `stat:"total"`
	Requests stats.Counter   `stat:"request_message_count"`
	Answers  stats.Counter   `stat:"response_message_count"`
	Time     stats.Histogram `stat:"upstream_rq_time"`
}

func newFilter(_ string, conf model.FilterConfig, env *filter.Env) (filter.Filter, error) {
	return &statsFilter{conf: conf.(*Config), env: env, methods: map[method]*counters{}}, nil
}

// A call is what is known of a call under way.
type call struct {
	c       *counters
	start   time.Time
	counted bool
}

func (f *statsFilter) Request(x *filter.Exchange) *filter.Reply {
	if !x.GRPC() || x.Match.Cluster == "" {
		return nil
	}
	service, name, ok := strings.Cut(strings.TrimPrefix(x.Path(), "/"), "/")
	if !ok || service == "" || name == "" || strings.Contains(name, "/") || !f.single(service, name) {
		service, name = "", ""
	}
	c := &call{c: f.counters(method{x.Match.Cluster, service, name}), start: time.Now()}
	x.SetState(f, c)
	if x.Body != message.NoBody {
		x.Body = &counted{Source: x.Body, n: &c.c.Requests}
	}
	return nil
}

// single reports whether a method is counted by itself.
func (f *statsFilter) single(service, name string) bool {
	if f.conf.All {
		return true
	}
	for _, m := range f.conf.Methods[service] {
		if m == name {
			return true
		}
	}
	return false
}

func (f *statsFilter) counters(m method) *counters {
	f.mu.RLock()
	c, n := f.methods[m], len(f.methods)
	f.mu.RUnlock()
	if c != nil {
		return c
	}
	if n >= maxMethods && m.service != "" {
		return f.counters(method{cluster: m.cluster})
	}
	// The names outlive the request.
	m = method{strings.Clone(m.cluster), strings.Clone(m.service), strings.Clone(m.name)}
	parts := []stats.Part{stats.Text("cluster"), stats.Label("envoy_cluster_name", m.cluster), stats.Text("grpc")}
	if m.service != "" {
		service := m.service
		if f.conf.ReplaceDots {
			service = strings.ReplaceAll(service, ".", "_")
		}
		parts = append(parts, stats.Label("envoy_grpc_bridge_service", service), stats.Label("envoy_grpc_bridge_method", m.name))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.methods[m]; c != nil {
		return c
	}
	sc := f.env.Scope(parts...)
	c = &counters{sc, stats.Struct[callStats](sc)}
	f.methods[m] = c
	return c
}

func (f *statsFilter) Response(x *filter.Exchange) *filter.Reply {
	c, _ := x.State(f).(*call)
	if c == nil {
		return nil
	}
	if s := x.Response.Header.Get("grpc-status"); s != "" {
		f.end(c, s)
	} else if x.ResponseBody != message.NoBody {
		x.ResponseBody = &counted{Source: x.ResponseBody, n: &c.c.Answers, end: func(h *message.Header) {
			if h != nil {
				f.end(c, h.Get("grpc-status"))
			}
		}}
	}
	return nil
}

// end counts a call by its status, once.
func (f *statsFilter) end(c *call, status string) {
	if c.counted || status == "" {
		return
	}
	c.counted = true
	if status == "0" {
		c.c.Success.Inc()
	} else {
		c.c.Failure.Inc()
	}
	c.c.Total.Inc()
	if code(status) {
		c.c.scope.Counter(status).Inc()
	}
	if f.conf.Upstream {
		c.c.Time.Record(time.Since(c.start))
	}
}

// code reports whether a status is one of gRPC's.
func code(s string) bool {
	return len(s) == 1 && s[0] >= '0' && s[0] <= '9' || len(s) == 2 && s[0] == '1' && s[1] >= '0' && s[1] <= '6'
}

// counted counts the messages that pass.
type counted struct {
	message.Source
	n    *stats.Counter
	end  func(*message.Header) // may be nil
	skip uint32                // bytes of the message that are still to come
	head [5]byte
	have int
}

func (c *counted) Read() ([]byte, error) {
	p, err := c.Source.Read()
	for rest := p; len(rest) > 0; {
		if c.skip > 0 {
			n := min(uint64(c.skip), uint64(len(rest)))
			c.skip -= uint32(n)
			rest = rest[n:]
			continue
		}
		n := copy(c.head[c.have:], rest)
		c.have += n
		rest = rest[n:]
		if c.have == len(c.head) {
			c.n.Inc()
			c.have, c.skip = 0, binary.BigEndian.Uint32(c.head[1:])
		}
	}
	if err == io.EOF && c.end != nil {
		c.end(c.Source.Trailer())
		c.end = nil
	}
	return p, err
}
