// Package ads serves configuration to proxies over the aggregated discovery service of xDS, version 3, in both its
// forms: incremental (delta) and state of the world. The resources come from a Source; this package decides what of
// them goes to a client when, so that at every moment what the client has refers only to what it has
// (spec/xds.md sections 1 to 3).
package ads

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/connect/xds"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A Node is who a client says it is.
type Node struct {
	ID      string // service ID of the proxy
	Name    string // catalog node it is registered on, empty for that of the agent
	Token   string // of the stream
	Flavour xds.Flavour
}

// A Source has the configurations of proxies.
type Source interface {
	// Follow begins to follow the configuration of a proxy, which need not be registered yet. An error refuses the
	// stream.
	Follow(n Node) (Subscription, error)
}

// A Subscription follows the configuration of one proxy.
type Subscription interface {
	// Current returns the present resources, nil while there are none, and a channel that is closed when that may have
	// changed. An error tells why none can be made.
	Current() (*xds.Resources, <-chan struct{}, error)
	// Movable reports whether any other server could serve the proxy as well.
	Movable() bool
	// Close ends the subscription.
	Close()
}

// ErrEnded is wrapped by errors of Subscription.Current that no change can heal: the stream ends and the client is to
// start over.
var ErrEnded = errors.New("subscription ended")

// Config tunes a Server. A zero field takes its default.
type Config struct {
	// Authorize resolves the token of a stream. Default grants everything.
	Authorize func(ctx context.Context, token string) (*acl.Authorizer, error)
	// Recheck is how long a silent stream goes on before its token is looked at again; default 5m.
	Recheck time.Duration
	// AckTimeout is how long a client may leave a response unanswered. A client that takes longer is stuck: its stream
	// ends, so that it comes back and both start from what it has. Default 5m.
	AckTimeout time.Duration
	// UpdateRate bounds how many streams are told of changes per second; 0 does not. What a stream begins with and what
	// its client asks for do not count.
	UpdateRate float64
	MaxStreams int          // open at once; default 8192
	MaxNames   int          // subscribed to or announced on one stream; default 65536
	Logger     hclog.Logger // default discards
}

// A Server serves streams. Register it on a gRPC server; it has no goroutines but those of its streams.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	source Source
	cfg    Config
	turns  turns

	mu         sync.Mutex
	streams    map[*stream]struct{}
	identities int // streams whose client said who it is
	share      int // how many may be in movable, 0 for any number
	movable    map[*stream]struct{}
	left       map[string]time.Time // when streams of proxies of this node ended that have none now
	news       chan struct{}        // closed and replaced when trust of a client changes; nil while nobody waits
}

// New returns a server of what source has.
func New(source Source, cfg Config) *Server {
	if cfg.Authorize == nil {
		cfg.Authorize = func(context.Context, string) (*acl.Authorizer, error) { return acl.Everything(), nil }
	}
	if cfg.Recheck <= 0 {
		cfg.Recheck = 5 * time.Minute
	}
	if cfg.AckTimeout <= 0 {
		cfg.AckTimeout = 5 * time.Minute
	}
	if cfg.MaxStreams <= 0 {
		cfg.MaxStreams = 8192
	}
	if cfg.MaxNames <= 0 {
		cfg.MaxNames = 65536
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	s := &Server{source: source, cfg: cfg, streams: map[*stream]struct{}{}, movable: map[*stream]struct{}{}, left: map[string]time.Time{}}
	s.turns.set(cfg.UpdateRate)
	return s
}

// SetUpdateRate changes Config.UpdateRate.
func (s *Server) SetUpdateRate(perSecond float64) { s.turns.set(perSecond) }

// Register adds the service to a gRPC server.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, s)
}

// DeltaAggregatedResources serves an incremental stream.
func (s *Server) DeltaAggregatedResources(g discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return serve(s, g.Context(), g, newDelta(s.cfg.MaxNames))
}

// StreamAggregatedResources serves a stream in state-of-the-world form.
func (s *Server) StreamAggregatedResources(g discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return serve(s, g.Context(), g, newSotw(s.cfg.MaxNames))
}

// A conn is a gRPC stream seen from the server.
type conn[Req, Resp any] interface {
	Recv() (Req, error)
	Send(Resp) error
}

// A request is what both forms of requests have in common.
type request interface {
	GetNode() *corev3.Node
	GetTypeUrl() string
}

// A session is the protocol state of one stream, apart from any I/O.
type session[Req request, Resp any] interface {
	// receive takes a request of a known type into account. The rejection is set when the client refused a response.
	receive(req Req, t xds.Type, now time.Time) (rejection string, err error)
	// next returns the response to send now, given the present resources, and false when there is nothing to send. It is
	// to be called until then.
	next(r *xds.Resources, now time.Time) (Resp, bool)
	// patience returns until when something waits for a request of the client, zero when nothing does.
	patience(r *xds.Resources, now time.Time) time.Time
	// unanswered returns since when the oldest response that was neither accepted nor rejected waits for that.
	unanswered() (time.Time, bool)
	// has reports whether the client has accepted all of the resources that it wants.
	has(r *xds.Resources) bool
	// progress tells about each type.
	progress() []TypeStatus
}

// errNames refuses a client that asks for too much.
var errNames = status.Error(codes.ResourceExhausted, "too many resource names on this stream")

// serve runs one stream. It returns only with a gRPC status.
func serve[Req request, Resp any](s *Server, ctx context.Context, g conn[Req, Resp], sess session[Req, Resp]) error {
	st := &stream{since: time.Now(), token: tokenOf(ctx), progress: sess.progress, drained: make(chan struct{})}
	if err := s.enter(st); err != nil {
		return err
	}
	defer s.leave(st)
	if _, err := s.authorizer(ctx, st.token); err != nil {
		return err
	}

	// Requests are received by a goroutine of their own. gRPC ends its Recv when the handler has returned.
	requests := make(chan Req)
	received := make(chan error, 1)
	go func() {
		for {
			req, err := g.Recv()
			if err != nil {
				received <- err
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				return
			}
		}
	}()

	var sub Subscription
	defer func() {
		if sub != nil {
			sub.Close()
		}
	}()
	var changed <-chan struct{}
	recheck := time.NewTimer(s.cfg.Recheck)
	defer recheck.Stop()
	stuck := time.NewTimer(s.cfg.AckTimeout)
	defer stuck.Stop()
	patience := time.NewTimer(0)
	defer patience.Stop()
	var resources *xds.Resources
	turn := time.NewTimer(0) // when what has changed is looked at
	defer turn.Stop()
	waiting := false // for that
	for {
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-received:
			return nil // the client is gone or has nothing more to say
		case req := <-requests:
			if req.GetTypeUrl() == "" {
				return status.Error(codes.InvalidArgument, "type URL is required for ADS")
			}
			if sub == nil && req.GetNode() != nil {
				node, err := identify(req.GetNode(), st.token)
				if err != nil {
					return err
				}
				if node.Token != st.token {
					st.token = node.Token
					if _, err := s.authorizer(ctx, st.token); err != nil {
						return err
					}
				}
				if sub, err = s.source.Follow(node); err != nil {
					return status.Errorf(codes.Internal, "failed to watch proxy: %s", err)
				}
				s.identified(st, node)
				if sub.Movable() {
					if err := s.admit(st); err != nil {
						return err
					}
				}
			}
			t, known := xds.TypeOf(req.GetTypeUrl())
			if !known {
				continue
			}
			st.mu.Lock()
			rejection, err := sess.receive(req, t, time.Now())
			st.mu.Unlock()
			if err != nil {
				return err
			}
			if rejection != "" {
				s.cfg.Logger.Warn("configuration rejected by proxy", "proxy", st.node.ID, "type", t.String(), "error", rejection)
			}
		case <-st.drained:
			return errTooMany
		case <-changed:
			if !st.served {
				break
			}
			if wait := s.turns.take(time.Now()); wait > 0 {
				changed, waiting = nil, true
				turn.Reset(wait)
				continue
			}
		case <-turn.C:
			waiting = false
		case <-recheck.C:
		case <-patience.C:
		case <-stuck.C:
			if since, pending := sess.unanswered(); pending {
				if left := s.cfg.AckTimeout - time.Since(since); left > 0 {
					stuck.Reset(left)
				} else {
					s.cfg.Logger.Warn("proxy does not answer, ending its stream", "proxy", st.node.ID, "since", since)
					return status.Error(codes.Aborted, "the last response was not answered, please start over")
				}
			} else {
				stuck.Reset(s.cfg.AckTimeout)
			}
			continue
		}
		if sub == nil {
			continue
		}
		var err error
		if !waiting {
			resources, changed, err = sub.Current()
		}
		switch {
		case err != nil && errors.Is(err, ErrEnded):
			return status.Error(codes.Aborted, "xDS stream terminated due to an irrecoverable error, please try again")
		case err != nil && !st.served && errors.Is(err, xds.ErrExtension):
			return status.Errorf(codes.InvalidArgument, "%s", err)
		case err != nil && !st.served:
			return status.Errorf(codes.Unavailable, "failed to generate all xDS resources from the snapshot: %s", err)
		case resources == nil:
			continue
		}
		if err := s.permit(ctx, st.token, resources.Service); err != nil {
			return err
		}
		recheck.Reset(s.cfg.Recheck)
		for {
			st.mu.Lock()
			resp, ok := sess.next(resources, time.Now())
			st.mu.Unlock()
			if !ok {
				break
			}
			// Send waits for a slow client; what changes meanwhile is sent in one go afterwards.
			if err := g.Send(resp); err != nil {
				return err
			}
			if !st.served {
				reportStart(st.since)
			}
			st.served = true
		}
		until := sess.patience(resources, time.Now())
		if soon := s.accept(st, resources, sess.has); until.IsZero() || !soon.IsZero() && soon.Before(until) {
			until = soon
		}
		if !until.IsZero() {
			patience.Reset(time.Until(until))
		}
	}
}

// identify reads who a client is.
func identify(n *corev3.Node, token string) (Node, error) {
	if err := checkEnvoyVersion(n); err != nil {
		return Node{}, err
	}
	if n.GetId() == "" {
		return Node{}, status.Error(codes.InvalidArgument, "node.id is required: it names the proxy's service instance")
	}
	fields := n.GetMetadata().GetFields()
	node := Node{ID: n.GetId(), Name: fields["node_name"].GetStringValue(), Token: token}
	if node.Token == "" {
		node.Token = fields[tokenKey].GetStringValue()
	}
	own := n.GetUserAgentName() == ownUserAgent
	if v, ok := fields[OwnFlavourKey]; ok {
		own = v.GetBoolValue()
	}
	switch {
	case own:
		node.Flavour = xds.Own
	case strings.HasPrefix(n.GetUserAgentName(), grpcUserAgent):
		node.Flavour = xds.Proxyless
	}
	return node, nil
}

// OwnFlavourKey is the key in a node's metadata whose value true asks for resources as the built-in proxy has them best,
// xds.Own, and whose value false refuses them. By itself the built-in proxy gets them and no other.
const OwnFlavourKey = "sarn_secrets"

// ownUserAgent is the name the built-in proxy goes by.
const ownUserAgent = "sarn"

// grpcUserAgent is what the names of gRPC clients begin with, in every language.
const grpcUserAgent = "gRPC"

// tokenKey is where a client has its token: in what it sends along with the stream or, since gRPC clients can send
// nothing along, in the metadata of its node.
const tokenKey = "x-consul-token"

// oldestEnvoy is the oldest minor version of Envoy 1 that understands what it is sent.
const oldestEnvoy = 31

func checkEnvoyVersion(n *corev3.Node) error {
	v := n.GetUserAgentBuildVersion().GetVersion()
	if n.GetUserAgentName() != "envoy" || v == nil {
		return nil
	}
	if v.GetMajorNumber() < 1 || v.GetMajorNumber() == 1 && v.GetMinorNumber() < oldestEnvoy {
		return status.Errorf(codes.InvalidArgument, "Envoy %d.%d.%d is too old and is not supported by Sarn",
			v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
	}
	return nil
}

// tokenOf returns the token a client sends along with its stream, empty for none.
func tokenOf(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(tokenKey); len(v) > 0 {
		return v[0]
	}
	return ""
}

// authorizer resolves a token. The error is a gRPC status.
func (s *Server) authorizer(ctx context.Context, token string) (*acl.Authorizer, error) {
	z, err := s.cfg.Authorize(ctx, token)
	switch {
	case err == nil:
		return z, nil
	case errors.Is(err, wireerr.ErrTokenNotFound):
		return nil, status.Errorf(codes.Unauthenticated, "unauthenticated: %s", err)
	case errors.Is(err, wireerr.ErrPermissionDenied), strings.Contains(err.Error(), wireerr.ErrPermissionDenied.Error()):
		return nil, status.Error(codes.PermissionDenied, err.Error())
	case ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	return nil, status.Error(codes.Internal, err.Error())
}

// permit checks that the token may have the configuration of the service.
func (s *Server) permit(ctx context.Context, token, service string) error {
	z, err := s.authorizer(ctx, token)
	if err != nil {
		return err
	}
	if _, err := z.Require(acl.Service, acl.Write, service); err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return nil
}

// A stream is one client, for those who look at the server from outside.
type stream struct {
	token string // owned by the goroutine that serves the stream, as is served
	since time.Time
	node  Node   // changed under Server.mu, as is what follows
	trust string // the bundle that was accepted last; see Trust

	served  bool          // something was sent
	drained chan struct{} // closed when the client is to go to another server

	mu       sync.Mutex // held by that goroutine while it changes the session
	progress func() []TypeStatus
}

// A StreamStatus tells how far a client is.
type StreamStatus struct {
	Proxy string // empty until it said who it is
	Node  string
	Since time.Time
	Types []TypeStatus
}

// A TypeStatus tells how far a client is with one type of resources.
type TypeStatus struct {
	Type       xds.Type
	Resources  int       // the client has, as far as is known
	Unanswered time.Time // since when a response waits to be accepted or rejected; zero when none does
	Rejected   []string  // resources whose present version the client refuses, by name
	Error      string    // what it said about them
}

// Streams tells about the streams that are open, by proxy.
func (s *Server) Streams() []StreamStatus {
	s.mu.Lock()
	out := make([]StreamStatus, 0, len(s.streams))
	for st := range s.streams {
		st.mu.Lock()
		out = append(out, StreamStatus{Proxy: st.node.ID, Node: st.node.Name, Since: st.since, Types: st.progress()})
		st.mu.Unlock()
	}
	s.mu.Unlock()
	slices.SortFunc(out, func(a, b StreamStatus) int {
		if c := strings.Compare(a.Proxy, b.Proxy); c != 0 {
			return c
		}
		return a.Since.Compare(b.Since)
	})
	return out
}

func (s *Server) enter(st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.streams) >= s.cfg.MaxStreams {
		return errTooMany
	}
	s.streams[st] = struct{}{}
	s.reportLocked()
	return nil
}

func (s *Server) reportLocked() { reportStreams(len(s.streams), len(s.streams)-s.identities) }

func (s *Server) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	delete(s.movable, st)
	if st.node.ID != "" {
		s.identities--
		s.leftLocked(st)
	}
	s.reportLocked()
	s.newsLocked()
}

func (s *Server) identified(st *stream, n Node) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.node = n
	st.node.Token = "" // kept by the stream alone
	s.identities++
	if n.Name == "" {
		delete(s.left, n.ID)
	}
	s.reportLocked()
	s.newsLocked()
}

// nonce formats the number of a response.
func nonce(n uint64) string { return fmt.Sprintf("%08x", n) }
