// Package filter is what the connection manager and its filters agree on: an exchange, which is a request and its
// response on their way, and what a filter may do with it. Each filter is a package below this one.
//
// A filter is called by the goroutine that carries the exchange and may wait, so there are no callbacks and no states
// between them. One value serves all exchanges at once; what it remembers of one is kept with SetState.
package filter

import (
	"context"
	"crypto/tls"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
	"github.com/sarnmesh/sarn/connect/proxy/tlscontext"
)

// A Filter acts on the exchanges of a connection manager.
type Filter interface {
	// Request is called with the head of a request, filter by filter in their order. It may change the head, replace
	// x.Body, wait (until x.Context() ends), and answer: a reply that is not nil goes to the client, and neither later
	// filters nor a host see the request.
	Request(x *Exchange) *Reply
}

// A Responder also acts on responses, in the reverse order. It is called with the head of a response, of a host or of
// the proxy itself, before it goes to the client, unless the exchange ended before the filter's Request was called. It
// may change the head and replace x.ResponseBody. A reply that is not nil is sent instead.
type Responder interface {
	Response(x *Exchange) *Reply
}

// A Finisher is told that an exchange has ended, whatever way, if its Request was called.
type Finisher interface {
	Finish(x *Exchange)
}

// A Type makes the filters of one type.
type Type struct {
	Name string // "envoy.filters.http.fault"
	// New makes a filter. Name is what the configuration calls it.
	New func(name string, conf model.FilterConfig, env *Env) (Filter, error)
	// Route prepares what a route says about the filter; it comes back from Exchange.RouteConfig. Nil: a route can
	// only switch the filter off.
	Route func(conf model.FilterConfig, env *Env) (any, error)
}

// An Env is what filters need of the proxy. All is set.
type Env struct {
	StatPrefix string       // of the manager: counters stand under http.<StatPrefix>
	Stats      *stats.Scope // http.<StatPrefix>
	// Scope opens another prefix for as long as the filter is used. It may be called at any time, by anybody.
	Scope    func(parts ...stats.Part) *stats.Scope
	Client   Client
	Clusters Clusters
	Logger   hclog.Logger
	Rand     func() uint64
	// Go runs f until it returns; its context ends when the filter is no longer used. Exchanges that began before
	// may still call it then: f runs with a context that has ended.
	Go func(f func(ctx context.Context))
	// Node is who the proxy is, for filters that match or tell it.
	NodeID, NodeCluster string
	// Failing reports whether the proxy was told to fail health checks, or drains.
	Failing func() bool
}

// Clusters tells filters about clusters.
type Clusters interface {
	// Health returns the numbers of healthy hosts and of all; ok is false if there is no such cluster.
	Health(cluster string) (healthy, total int, ok bool)
}

// A Client makes requests of the proxy's own.
type Client interface {
	// Do sends a request with a body to a host of the cluster and waits for the answer until ctx ends. The body of
	// the answer may have up to limit bytes. Statuses are no errors.
	Do(ctx context.Context, cluster string, r *message.Request, body []byte, limit int) (*Answer, error)
}

// An Answer is a complete response. It is the caller's.
type Answer struct {
	Status  int
	Header  message.Header
	Body    []byte
	Trailer message.Header
}

// A Conn is the connection that an exchange came over. Its fields do not change.
type Conn struct {
	ID          uint64
	Listener    string
	Remote      netip.AddrPort // the peer, as told by whoever may tell
	Direct      netip.AddrPort // the peer of the socket
	Local       netip.AddrPort
	Destination model.Address // where the client wanted to go; zero if it was not redirected
	ServerName  string
	TLS         *tls.ConnectionState // nil: plaintext
	Peer        *tlscontext.Peer     // nil: not authenticated
	LocalURIs   []string             // of the proxy's own certificate

	mu     sync.Mutex
	states []state
}

// State returns the value that a filter keeps of the connection under a key until the connection ends. It is made when
// it is first asked for.
func (c *Conn) State(key any, make func() any) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.states {
		if c.states[i].key == key {
			return c.states[i].value
		}
	}
	c.states = append(c.states, state{key, make()})
	return c.states[len(c.states)-1].value
}

// An Exchange is a request and its response on their way.
type Exchange struct {
	Conn   *Conn
	Start  time.Time
	Random uint64 // one number for all draws of the exchange

	Request *message.Request
	Body    message.Source // of the request; message.NoBody if there is none

	// Response is the head on its way to the client; empty before.
	Response     *message.Response
	ResponseBody message.Source // message.NoBody if there is none

	Remote   netip.Addr // the client as forwarding headers tell, if they are trusted
	Internal bool       // the request counts as internal

	// Match is where the request goes; its Route is nil if no route matches. Reroute finds it anew after a filter
	// changed what routes look at.
	Match   route.Match
	Reroute func()

	Entry *accesslog.Entry // with HTTP set

	// BufferLimit is how many bytes of a body a filter may keep.
	BufferLimit int

	states []state
	ctx    context.Context
	cancel context.CancelFunc
}

// Context returns a context that ends when the exchange does, or the client has left. It is made when it is first
// asked for.
func (x *Exchange) Context() context.Context {
	if x.ctx == nil {
		x.ctx, x.cancel = context.WithCancel(context.Background())
	}
	return x.ctx
}

// Waited reports whether somebody asked for the context, which means that the exchange may have waited.
func (x *Exchange) Waited() bool { return x.ctx != nil }

// Cancel ends the context.
func (x *Exchange) Cancel() {
	x.Context()
	x.cancel()
}

type state struct{ key, value any }

// Path returns the path of the request without its query.
func (x *Exchange) Path() string { return route.WithoutQuery(x.Request.Path) }

// State returns what was set for a key, which is usually the filter; nil if nothing was.
func (x *Exchange) State(key any) any {
	for i := range x.states {
		if x.states[i].key == key {
			return x.states[i].value
		}
	}
	return nil
}

// SetState keeps a value until the exchange ends.
func (x *Exchange) SetState(key, value any) {
	for i := range x.states {
		if x.states[i].key == key {
			x.states[i].value = value
			return
		}
	}
	x.states = append(x.states, state{key, value})
}

// Reset makes the exchange empty and keeps its memory.
func (x *Exchange) Reset() {
	if x.cancel != nil {
		x.cancel()
	}
	s := x.states
	clear(s)
	*x = Exchange{states: s[:0]}
}

// RouteConfig returns what the most specific of weighted cluster, route, virtual host and route table says about a
// filter, prepared by its Type; nil if none does.
func (x *Exchange) RouteConfig(name string) any { return x.Match.FilterConfig(name) }

// SetMetadata sets a value of dynamic metadata.
func (x *Exchange) SetMetadata(namespace, key string, value any) {
	h := x.Entry.HTTP
	if h.Metadata == nil {
		h.Metadata = model.Metadata{}
	}
	if h.Metadata[namespace] == nil {
		h.Metadata[namespace] = map[string]any{}
	}
	h.Metadata[namespace][key] = value
}

// GRPC reports whether the request is one of gRPC.
func (x *Exchange) GRPC() bool { return route.IsGRPC(&x.Request.Header) }

// A Reply is an answer of the proxy's own.
type Reply struct {
	Status  int
	Body    string
	Details string          // for logs: "fault_filter_abort"
	Flags   accesslog.Flags // for logs
	Header  []message.Field // added; "content-type" replaces text/plain
	// GRPCStatus is sent to clients of gRPC; -1 derives it from Status.
	GRPCStatus int
	Rule       string // the policy that decided, for logs; may be empty
	// Reset breaks the stream off instead.
	Reset bool
}

// Refused is the error of a request's body that a filter does not let pass. The reply goes to the client.
type Refused struct{ Reply *Reply }

func (e *Refused) Error() string { return "refused: " + e.Reply.Details }

// Deny returns a reply.
func Deny(status int, body, details string, flags accesslog.Flags) *Reply {
	return &Reply{Status: status, Body: body, Details: details, Flags: flags, GRPCStatus: -1}
}
