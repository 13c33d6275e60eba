// Package adsclient keeps a proxy subscribed to a control plane over the
// aggregated discovery service, in its delta or its state-of-the-world form.
//
// The stream is opened again whenever it ends, for ever. What was received
// stays in force meanwhile, and on a delta stream the control plane is told
// what the proxy has, so that it sends only what changed.
package adsclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/hashicorp/go-hclog"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// A Resource is one resource as it came.
type Resource struct {
	Name    string
	Version string // empty in the state-of-the-world form
	Any     *anypb.Any
}

// A Handler applies what the control plane sends. It is called from one
// goroutine.
type Handler interface {
	// Update puts resources of one type into force and drops removed ones. It
	// returns what is wrong with those that it refused, by name; the others
	// are in force then. First tells the first response of the type.
	Update(typeURL string, upserts []Resource, removed []string, first bool) map[string]error
}

// Config tunes a Client. A zero field takes its default.
type Config struct {
	Node      decode.Node
	UserAgent string // default "sarn"
	Version   string // of the user agent

	// Targets connect to the control plane, in order of preference. A
	// connection must be ready for HTTP/2, with TLS done if there is any.
	Targets []Target
	// Metadata returns what goes along with a new stream, such as a token.
	// Default nothing.
	Metadata func() []decode.Header
	SotW     bool

	Base   time.Duration  // of the back-off; default 500ms
	Max    time.Duration  // of the back-off; default 30s
	Rand   func() float64 // uniform in [0, 1); default math/rand/v2
	Logger hclog.Logger   // default discards
	Stats  *stats.Store   // default a store of its own
}

// A Target is a place where a control plane may be.
type Target struct {
	Name string // for logs
	Dial func(ctx context.Context) (net.Conn, error)
}

// maxMessage bounds the size of a response.
const maxMessage = 256 << 20

// order is the order in which types are asked for, so that what a resource
// refers to comes before it.
var order = []string{decode.TypeSecret, decode.TypeCluster, decode.TypeEndpoints, decode.TypeListener, decode.TypeRoute}

var kinds = map[string]string{
	decode.TypeSecret: "secret", decode.TypeCluster: "cluster", decode.TypeEndpoints: "endpoint",
	decode.TypeListener: "listener", decode.TypeRoute: "route",
}

// A Client is a subscription to a control plane.
type Client struct {
	cfg     Config
	handler Handler
	stats   *controlPlaneStats
	updates map[string]*updateStats

	changed chan struct{} // holds one token if wants changed

	mu    sync.Mutex
	wants map[string]*want // by type URL

	// Of the goroutine in Run.
	have map[string]*have
}

// want is what is asked for of one type.
type want struct {
	all   bool
	names map[string]bool
}

// have is what is known of one type.
type have struct {
	versions map[string]string // accepted, by name
	version  string            // accepted, state of the world
	answered bool              // a response was handled since the process began
}

// New returns a client that asks for nothing yet.
func New(cfg Config, h Handler) *Client {
	if cfg.UserAgent == "" {
		cfg.UserAgent = "sarn"
	}
	if cfg.Metadata == nil {
		cfg.Metadata = func() []decode.Header { return nil }
	}
	if cfg.Base <= 0 {
		cfg.Base = 500 * time.Millisecond
	}
	if cfg.Max <= 0 {
		cfg.Max = 30 * time.Second
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Float64
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Stats == nil {
		cfg.Stats = stats.NewStore(nil)
	}
	c := &Client{
		cfg: cfg, handler: h,
		stats:   stats.Struct[controlPlaneStats](cfg.Stats.Scope(stats.Text("control_plane"))),
		updates: map[string]*updateStats{},
		changed: make(chan struct{}, 1),
		wants:   map[string]*want{},
		have:    map[string]*have{},
	}
	for typeURL, scope := range map[string][2]string{
		decode.TypeListener: {"listener_manager", "lds"}, decode.TypeCluster: {"cluster_manager", "cds"},
		decode.TypeEndpoints: {"cluster_manager", "eds"}, decode.TypeSecret: {"server", "sds"}, decode.TypeRoute: {"http", "rds"},
	} {
		c.updates[typeURL] = stats.Struct[updateStats](cfg.Stats.Scope(stats.Text(scope[0]), stats.Text(scope[1])))
	}
	for _, t := range order {
		c.have[t] = &have{versions: map[string]string{}}
	}
	return c
}

// Known tells the client, before Run, that the proxy has a resource from an
// earlier life, so that the control plane need not send it again.
func (c *Client) Known(typeURL, name, version string) {
	if h := c.have[typeURL]; h != nil && version != "" {
		h.versions[name] = version
	}
}

// WantAll subscribes to every resource of the type.
func (c *Client) WantAll(typeURL string) {
	c.mu.Lock()
	c.wants[typeURL] = &want{all: true}
	c.mu.Unlock()
	c.kick()
}

// Want makes the named resources those of the type that are subscribed to.
func (c *Client) Want(typeURL string, names []string) {
	w := &want{names: map[string]bool{}}
	for _, n := range names {
		w.names[n] = true
	}
	c.mu.Lock()
	old := c.wants[typeURL]
	same := old != nil && !old.all && maps.Equal(old.names, w.names)
	if !same {
		c.wants[typeURL] = w
	}
	c.mu.Unlock()
	if !same {
		c.kick()
	}
}

func (c *Client) kick() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

func (c *Client) want(typeURL string) *want {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wants[typeURL] // never changed once published
}

// Run keeps a stream open until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	if len(c.cfg.Targets) == 0 {
		return errors.New("no control plane to connect to")
	}
	log := c.cfg.Logger
	failures := 0
	for n := 0; ; n++ {
		target := c.cfg.Targets[n%len(c.cfg.Targets)]
		worked, err := c.session(ctx, target)
		c.stats.Connected.Set(0)
		if ctx.Err() != nil {
			return nil
		}
		for t := range c.have {
			if c.want(t) != nil {
				c.updates[t].Failure.Inc()
			}
		}
		if worked {
			failures, n = 0, n-1 // the same target again: it was good
		}
		wait := c.backoff(failures)
		failures++
		log.Warn("no stream to the control plane, the proxy goes on with what it has", "target", target.Name, "error", explain(err), "retry", wait.Round(time.Millisecond))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// explain shortens the errors of gRPC to what happened.
func explain(err error) string {
	if err == nil {
		return "stream ended"
	}
	s, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	msg := s.Message()
	if i := strings.LastIndex(msg, "Error while dialing: "); i >= 0 {
		msg = strings.TrimSuffix(msg[i+len("Error while dialing: "):], `"`)
	}
	if s.Code() == codes.Unavailable || s.Code() == codes.Unknown {
		return msg
	}
	return s.Code().String() + ": " + msg
}

// backoff returns how long to wait after a number of failures in a row: full
// jitter over a limit that doubles.
func (c *Client) backoff(failures int) time.Duration {
	limit := c.cfg.Max
	if failures < 16 {
		limit = min(limit, c.cfg.Base<<failures)
	}
	return time.Duration(c.cfg.Rand() * float64(limit))
}

func (c *Client) node() (*corev3.Node, error) {
	n := c.cfg.Node
	out := &corev3.Node{
		Id: n.ID, Cluster: n.Cluster, UserAgentName: c.cfg.UserAgent,
		UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: c.cfg.Version},
		ClientFeatures:       []string{"xds.config.resource-in-sotw"},
	}
	if n.Region != "" || n.Zone != "" || n.SubZone != "" {
		out.Locality = &corev3.Locality{Region: n.Region, Zone: n.Zone, SubZone: n.SubZone}
	}
	if len(n.Metadata) > 0 {
		m, err := structpb.NewStruct(n.Metadata)
		if err != nil {
			return nil, fmt.Errorf("node metadata: %w", err)
		}
		out.Metadata = m
	}
	return out, nil
}

// openTimeout bounds how long connecting and the first response headers take.
const openTimeout = 20 * time.Second

// session runs one stream. It tells whether anything was received.
func (c *Client) session(ctx context.Context, target Target) (worked bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cc, err := grpc.NewClient("passthrough:///"+strings.ReplaceAll(target.Name, "/", "_"),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return target.Dial(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the dialer does TLS
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
		grpc.WithReadBufferSize(16<<10), grpc.WithWriteBufferSize(8<<10),
		// One attempt for each session: the back-off is ours.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: time.Hour, MaxDelay: time.Hour, Multiplier: 1}, MinConnectTimeout: openTimeout}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 15 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	)
	if err != nil {
		return false, err
	}
	defer cc.Close()
	md := metadata.MD{}
	for _, h := range c.cfg.Metadata() {
		md.Append(strings.ToLower(h.Key), h.Value)
	}
	sctx := metadata.NewOutgoingContext(ctx, md)
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(cc)
	node, err := c.node()
	if err != nil {
		return false, err
	}
	if c.cfg.SotW {
		s, err := client.StreamAggregatedResources(sctx)
		if err != nil {
			return false, err
		}
		return loop(ctx, c, s.Recv, &sotw{c: c, send: s.Send, node: node, names: map[string][]string{}, nonces: map[string]string{}})
	}
	s, err := client.DeltaAggregatedResources(sctx)
	if err != nil {
		return false, err
	}
	return loop(ctx, c, s.Recv, &delta{c: c, send: s.Send, node: node, asked: map[string]map[string]bool{}})
}

// protocol is one form of the protocol on one stream.
type protocol[R any] interface {
	// ask sends what is wanted and was not asked for yet.
	ask() error
	// answer handles a response.
	answer(R) error
}

// loop runs a stream until it fails or ctx ends.
func loop[R any](ctx context.Context, c *Client, recv func() (R, error), p protocol[R]) (worked bool, err error) {
	type received struct {
		r   R
		err error
	}
	in := make(chan received)
	done := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			r, err := recv()
			select {
			case in <- received{r, err}:
			case <-done:
				return
			}
			if err != nil {
				return
			}
		}
	})
	defer close(done)
	if err := p.ask(); err != nil {
		return false, receiveError(err, in, func(x received) error { return x.err })
	}
	for {
		select {
		case <-ctx.Done():
			return worked, ctx.Err()
		case <-c.changed:
			err = p.ask()
		case x := <-in:
			if x.err != nil {
				return worked, x.err
			}
			if !worked {
				worked = true
				c.stats.Connected.Set(1)
				c.cfg.Logger.Info("receiving configuration from the control plane")
			}
			if err = p.answer(x.r); err == nil {
				err = p.ask()
			}
		}
		if err != nil {
			return worked, receiveError(err, in, func(x received) error { return x.err })
		}
	}
}

// receiveError returns why the stream ended: a failed send only says that it
// did, the next receive says why.
func receiveError[T any](err error, in <-chan T, get func(T) error) error {
	for {
		select {
		case x := <-in:
			if e := get(x); e != nil {
				return e
			}
		case <-time.After(time.Second):
			return err
		}
	}
}

// apply hands resources to the handler and returns the text of a NACK, or "".
func (c *Client) apply(typeURL string, upserts []Resource, removed []string) (refused map[string]error, nack string) {
	u, h := c.updates[typeURL], c.have[typeURL]
	u.Attempt.Inc()
	start := time.Now()
	slices.SortFunc(upserts, func(a, b Resource) int { return cmp.Compare(a.Name, b.Name) })
	refused = c.handler.Update(typeURL, upserts, removed, !h.answered)
	h.answered = true
	u.Duration.Record(time.Since(start))
	if len(refused) == 0 {
		u.Success.Inc()
		u.Time.Set(time.Now().UnixMilli())
		return nil, ""
	}
	u.Rejected.Inc()
	var text []string
	for _, name := range slices.Sorted(maps.Keys(refused)) {
		text = append(text, fmt.Sprintf("%s: %v", name, refused[name]))
		c.cfg.Logger.Error("configuration refused, the previous version stays", "type", kinds[typeURL], "name", name, "error", refused[name])
	}
	nack = fmt.Sprintf("Error adding/updating %s(s) %s", kinds[typeURL], strings.Join(text, "; "))
	if len(nack) > maxNack {
		nack = nack[:maxNack] + "…"
	}
	return refused, nack
}

// maxNack bounds the text of a refusal.
const maxNack = 16 << 10

// delta is the delta form on one stream.
type delta struct {
	c     *Client
	send  func(*discoveryv3.DeltaDiscoveryRequest) error
	node  *corev3.Node // nil once it was sent
	asked map[string]map[string]bool
}

func (d *delta) ask() error {
	for _, t := range order {
		w := d.c.want(t)
		if w == nil {
			continue
		}
		asked, begun := d.asked[t]
		req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: t}
		if !begun {
			if !w.all && len(w.names) == 0 {
				continue // an empty first request would ask for everything
			}
			for name, version := range d.c.have[t].versions {
				if w.all || w.names[name] {
					if req.InitialResourceVersions == nil {
						req.InitialResourceVersions = map[string]string{}
					}
					req.InitialResourceVersions[name] = version
				}
			}
		}
		for name := range w.names {
			if !asked[name] {
				req.ResourceNamesSubscribe = append(req.ResourceNamesSubscribe, name)
			}
		}
		for name := range asked {
			if !w.names[name] {
				req.ResourceNamesUnsubscribe = append(req.ResourceNamesUnsubscribe, name)
				delete(d.c.have[t].versions, name)
			}
		}
		if begun && len(req.ResourceNamesSubscribe) == 0 && len(req.ResourceNamesUnsubscribe) == 0 {
			continue
		}
		slices.Sort(req.ResourceNamesSubscribe)
		slices.Sort(req.ResourceNamesUnsubscribe)
		req.Node, d.node = d.node, nil
		d.asked[t] = maps.Clone(w.names)
		if d.asked[t] == nil {
			d.asked[t] = map[string]bool{}
		}
		if err := d.send(req); err != nil {
			return err
		}
	}
	return nil
}

func (d *delta) answer(r *discoveryv3.DeltaDiscoveryResponse) error {
	t := r.GetTypeUrl()
	h := d.c.have[t]
	if h == nil {
		return fmt.Errorf("response of type %q, which was not asked for", t)
	}
	var upserts []Resource
	nameless := false
	for _, x := range r.GetResources() {
		res := Resource{Name: x.GetName(), Version: x.GetVersion(), Any: x.GetResource()}
		if res.Name == "" {
			res.Name, _ = decode.NameOf(res.Any)
		}
		if x.GetResource() == nil {
			// Only says that an old version is still good.
			nameless = nameless || res.Name == ""
			continue
		}
		upserts = append(upserts, res)
	}
	refused, nack := d.c.apply(t, upserts, r.GetRemovedResources())
	for _, x := range upserts {
		if refused[x.Name] == nil {
			h.versions[x.Name] = x.Version
		}
	}
	for _, name := range r.GetRemovedResources() {
		delete(h.versions, name)
	}
	req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: t, ResponseNonce: r.GetNonce()}
	if nack != "" {
		req.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: nack}
	} else if nameless {
		req.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: "a resource without a name"}
	}
	return d.send(req)
}

// sotw is the state-of-the-world form on one stream.
type sotw struct {
	c      *Client
	send   func(*discoveryv3.DiscoveryRequest) error
	node   *corev3.Node
	names  map[string][]string // asked for last; present once a type was asked for
	nonces map[string]string
}

func (s *sotw) ask() error {
	for _, t := range order {
		w := s.c.want(t)
		if w == nil {
			continue
		}
		names := slices.Sorted(maps.Keys(w.names))
		asked, begun := s.names[t]
		if begun && slices.Equal(asked, names) || !begun && !w.all && len(names) == 0 {
			continue
		}
		s.names[t] = names
		req := &discoveryv3.DiscoveryRequest{TypeUrl: t, ResourceNames: names, VersionInfo: s.c.have[t].version, ResponseNonce: s.nonces[t]}
		req.Node, s.node = s.node, nil
		if err := s.send(req); err != nil {
			return err
		}
	}
	return nil
}

func (s *sotw) answer(r *discoveryv3.DiscoveryResponse) error {
	t := r.GetTypeUrl()
	h := s.c.have[t]
	if h == nil {
		return fmt.Errorf("response of type %q, which was not asked for", t)
	}
	var upserts []Resource
	present := map[string]bool{}
	for i, a := range r.GetResources() {
		res := Resource{Any: a}
		if a.MessageName() == "envoy.service.discovery.v3.Resource" {
			var x discoveryv3.Resource
			if err := a.UnmarshalTo(&x); err == nil && x.GetResource() != nil {
				res = Resource{Name: x.GetName(), Any: x.GetResource()}
			}
		}
		if res.Name == "" {
			res.Name, _ = decode.NameOf(res.Any)
		}
		if res.Name == "" {
			res.Name = fmt.Sprintf("#%d", i) // refused by the decoder
		}
		present[res.Name] = true
		upserts = append(upserts, res)
	}
	var removed []string
	if t == decode.TypeListener || t == decode.TypeCluster {
		for name := range h.versions {
			if !present[name] {
				removed = append(removed, name)
			}
		}
	}
	slices.Sort(removed)
	refused, nack := s.c.apply(t, upserts, removed)
	for _, x := range upserts {
		if refused[x.Name] == nil {
			h.versions[x.Name] = ""
		}
	}
	for _, name := range removed {
		delete(h.versions, name)
	}
	s.nonces[t] = r.GetNonce()
	if nack == "" {
		h.version = r.GetVersionInfo()
	}
	req := &discoveryv3.DiscoveryRequest{TypeUrl: t, ResourceNames: s.names[t], VersionInfo: h.version, ResponseNonce: r.GetNonce()}
	if nack != "" {
		req.ErrorDetail = &rpcstatus.Status{Code: int32(codes.InvalidArgument), Message: nack}
	}
	return s.send(req)
}
