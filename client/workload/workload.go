// Package workload serves the SPIFFE Workload API on a UNIX socket: programs of this machine get the certificate, the
// tokens and the trust bundles of the service they are, without holding a secret before. A caller shows who it is by
// what the kernel says about its process, held against rules of the configuration, or by an ACL token.
//
// The standards are SPIFFE_Workload_API and those of X.509-SVID and JWT-SVID.
package workload

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/leaf"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/svid"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// A Rule says which processes are a service. What is not set fits all; a rule with nothing set fits none.
type Rule struct {
	Service string
	UID     *uint32 // user of the process
	GID     *uint32 // its group
	Path    string  // of its executable, as the kernel tells it
	Cgroup  string  // its control group, or one above it
}

// Check returns nil when the rule says something.
func (r *Rule) Check() error {
	switch {
	case r.Service == "" || r.Service == "*":
		return errors.New("a rule for workloads must name a service")
	case r.UID == nil && r.GID == nil && r.Path == "" && r.Cgroup == "":
		return fmt.Errorf("the rule for workloads of %q must say at least one of uid, gid, path and cgroup", r.Service)
	}
	return nil
}

// fits reports whether a process is meant. What is not known of it fits nothing.
func (r *Rule) fits(p *Process) bool {
	if p == nil || r.Check() != nil {
		return false
	}
	return (r.UID == nil || *r.UID == p.UID) && (r.GID == nil || *r.GID == p.GID) && (r.Path == "" || r.Path == p.Path) &&
		(r.Cgroup == "" || p.Cgroup == r.Cgroup || strings.HasPrefix(p.Cgroup, strings.TrimSuffix(r.Cgroup, "/")+"/"))
}

// A Process is what the kernel told about a caller when it connected.
type Process struct {
	PID      int32
	UID, GID uint32
	Path     string // empty when not known
	Cgroup   string // "/system.slice/web.service"; empty when not known
}

// A Registration is a service of this machine and the token it was registered with, empty for none.
type Registration struct{ Service, Token string }

// Config tunes a Server. A zero field takes its default.
type Config struct {
	// Rules returns the rules in force.
	Rules func() []Rule
	// Registrations returns the services of this machine, and a channel that is closed when they change.
	Registrations func() ([]Registration, <-chan struct{})
	// Token is what certificates are asked for with where a registration has none; nil for the anonymous one.
	Token func() string
	// Authorize returns what a token may do. Nil, as with ACLs off, means that tokens show nothing: rules alone count.
	Authorize func(ctx context.Context, token string) (*acl.Authorizer, error)
	Leaves    *leaf.Keeper // required
	Caller    rpc.Caller   // required
	// Recheck is how often it is looked again whether the caller of an open stream still is who it was; default 30s.
	Recheck time.Duration
	Logger  hclog.Logger // default discards
}

// Bounds on callers.
const (
	maxRequest = 64 << 10
	maxStreams = 64   // of one connection
	maxConns   = 1024 // of all
	maxOwn     = 512  // of one user of the machine
	maxIDs     = 64   // identities of one caller
)

// A Server serves the API. Make one with New.
type Server struct {
	pb.UnimplementedSpiffeWorkloadAPIServer
	cfg Config
	log hclog.Logger
}

// New returns a server; nothing happens until Run.
func New(cfg Config) *Server {
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Recheck <= 0 {
		cfg.Recheck = 30 * time.Second
	}
	if cfg.Token == nil {
		cfg.Token = func() string { return "" }
	}
	return &Server{cfg: cfg, log: cfg.Logger}
}

// Run serves on l until ctx ends, closes it and returns nil; or until it fails.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	g := grpc.NewServer(grpc.Creds(attestor{&users{open: map[uint32]int{}}}), grpc.MaxRecvMsgSize(maxRequest), grpc.MaxConcurrentStreams(maxStreams))
	pb.RegisterSpiffeWorkloadAPIServer(g, s)
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	err := g.Serve(&limited{Listener: l, free: make(chan struct{}, maxConns)})
	if ctx.Err() != nil || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// A limited listener has so many connections open at a time.
type limited struct {
	net.Listener
	free chan struct{} // holds one for each that is open
}

func (l *limited) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: c, done: sync.OnceFunc(func() { <-l.free })}, nil
}

type limitedConn struct {
	net.Conn
	done func()

	mu     sync.Mutex
	closed bool
	leave  func() // nil while nobody is known to own it
}

func (c *limitedConn) Close() error {
	defer c.done()
	c.mu.Lock()
	leave := c.leave
	c.closed, c.leave = true, nil
	c.mu.Unlock()
	if leave != nil {
		leave()
	}
	return c.Conn.Close()
}

// owned counts the connection among those of a user until it is closed. It reports false when there are too many.
func (c *limitedConn) owned(by *users, uid uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || !by.enter(uid) {
		return false
	}
	c.leave = func() { by.leave(uid) }
	return true
}

// users counts the connections of each user of the machine.
type users struct {
	mu   sync.Mutex
	open map[uint32]int // not 0
}

func (u *users) enter(uid uint32) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.open[uid] >= maxOwn {
		return false
	}
	u.open[uid]++
	return true
}

func (u *users) leave(uid uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.open[uid]--; u.open[uid] == 0 {
		delete(u.open, uid)
	}
}

// The header that every call must carry, so that a browser or a proxy cannot be made to make one.
const securityHeader = "workload.spiffe.io"

// A caller is who makes a call.
type caller struct {
	process *Process // nil when the kernel did not tell
	token   string
}

func (s *Server) caller(ctx context.Context) (caller, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get(securityHeader); len(v) != 1 || v[0] != "true" {
		return caller{}, status.Error(codes.InvalidArgument, "security header missing from request")
	}
	c := caller{}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(processInfo); ok {
			c.process = info.process
		}
	}
	if v := md.Get("x-consul-token"); len(v) == 1 {
		c.token = v[0]
	} else if v := md.Get("authorization"); len(v) == 1 {
		if scheme, token, ok := strings.Cut(v[0], " "); ok && strings.EqualFold(scheme, "bearer") {
			c.token = strings.TrimSpace(token)
		}
	}
	return c, nil
}

var errNobody = status.Error(codes.PermissionDenied, "no identity issued: no rule for workloads fits this process, and its token, if any, is none of a service of this machine")

// identities returns the services that a caller is, each with the token its certificate is asked for with, and a
// channel that is closed when that may have changed.
func (s *Server) identities(ctx context.Context, c caller) (map[string]string, <-chan struct{}, error) {
	registered, changed := s.cfg.Registrations()
	found := map[string]string{}
	if c.token != "" && s.cfg.Authorize != nil {
		z, err := s.cfg.Authorize(ctx, c.token)
		if err != nil {
			return nil, nil, status.Error(codes.PermissionDenied, err.Error())
		}
		for _, r := range registered {
			if !z.Anonymous() && z.May(acl.Service, acl.Write, r.Service) {
				found[r.Service] = c.token
			}
		}
	}
	for _, rule := range s.cfg.Rules() {
		if found[rule.Service] != "" || !rule.fits(c.process) {
			continue
		}
		token := s.cfg.Token()
		for _, r := range registered {
			if r.Service == rule.Service && r.Token != "" {
				token = r.Token
				break
			}
		}
		found[rule.Service] = token
	}
	switch {
	case len(found) == 0:
		if c.process != nil {
			s.log.Debug("no identity for a workload", "pid", c.process.PID, "uid", c.process.UID, "gid", c.process.GID, "path", c.process.Path, "cgroup", c.process.Cgroup)
		}
		return nil, nil, errNobody
	case len(found) > maxIDs:
		return nil, nil, status.Errorf(codes.ResourceExhausted, "the caller would be more than %d services", maxIDs)
	}
	return found, changed, nil
}

// FetchX509SVID sends the certificates of the services that the caller is, and again with every change.
func (s *Server) FetchX509SVID(_ *pb.X509SVIDRequest, stream grpc.ServerStreamingServer[pb.X509SVIDResponse]) error {
	ctx := stream.Context()
	c, err := s.caller(ctx)
	if err != nil {
		return err
	}
	var last *pb.X509SVIDResponse
	for {
		ids, changed, err := s.identities(ctx, c)
		if err != nil {
			return err
		}
		roots, rootsNews, err := s.roots(ctx)
		if err != nil {
			return err
		}
		bundle, err := bundleOf(roots)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		resp := &pb.X509SVIDResponse{}
		indexes := map[string]uint64{}
		for _, service := range slices.Sorted(maps.Keys(ids)) {
			got, err := s.cfg.Leaves.Get(ctx, leaf.Request{Service: service, Token: ids[service]})
			if err != nil {
				return status.Errorf(codes.Unavailable, "no certificate for %s: %v", service, err)
			}
			one, err := svidOf(got.Leaf, bundle)
			if err != nil {
				return status.Error(codes.Internal, err.Error())
			}
			resp.Svids = append(resp.Svids, one)
			indexes[service] = got.Index
		}
		if !proto.Equal(resp, last) {
			if err := stream.Send(resp); err != nil {
				return err
			}
			last = resp
		}
		if err := s.wait(ctx, ids, indexes, rootsNews, changed); err != nil {
			return err
		}
	}
}

// wait returns when a certificate was renewed, the roots or the registrations have changed, or it is time to look again
// at who the caller is.
func (s *Server) wait(ctx context.Context, ids map[string]string, indexes map[string]uint64, roots, changed <-chan struct{}) error {
	inner, cancel := context.WithTimeout(ctx, s.cfg.Recheck)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	for service, index := range indexes {
		watching.Go(func() {
			got, err := s.cfg.Leaves.Get(inner, leaf.Request{Service: service, Token: ids[service], MinIndex: index, MaxWait: s.cfg.Recheck})
			if err == nil && got.Index > index {
				cancel()
			}
		})
	}
	select {
	case <-inner.Done():
	case <-roots:
	case <-changed:
	}
	return ctx.Err()
}

// roots waits for the first roots.
func (s *Server) roots(ctx context.Context) (*ca.RootsReply, <-chan struct{}, error) {
	for {
		roots, news, err := s.cfg.Leaves.Roots()
		if roots != nil {
			return roots, news, nil
		}
		if err != nil {
			return nil, nil, status.Errorf(codes.Unavailable, "no trust bundle yet: %v", err)
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// bundleOf returns the roots' certificates one after another.
func bundleOf(roots *ca.RootsReply) (der []byte, err error) {
	for _, r := range roots.Roots {
		cert, err := ca.ParseCertificate(r.RootCert)
		if err != nil {
			return nil, fmt.Errorf("read a root certificate: %w", err)
		}
		der = append(der, cert.Raw...)
	}
	return der, nil
}

func svidOf(l *ca.Leaf, bundle []byte) (*pb.X509SVID, error) {
	one := &pb.X509SVID{SpiffeId: l.ServiceURI, Bundle: bundle, Hint: l.Service}
	for rest := []byte(l.CertPEM); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		one.X509Svid = append(one.X509Svid, block.Bytes...)
	}
	key, err := ca.ParseKey(l.PrivateKeyPEM)
	if err != nil {
		return nil, errors.New("the key of a certificate cannot be read")
	}
	if _, ok := key.(*ecdsa.PrivateKey); !ok {
		return nil, errors.New("the key of a certificate is of another kind")
	}
	one.X509SvidKey, err = x509.MarshalPKCS8PrivateKey(key)
	return one, err
}

// FetchX509Bundles sends what certificates are checked with, and again with every change.
func (s *Server) FetchX509Bundles(_ *pb.X509BundlesRequest, stream grpc.ServerStreamingServer[pb.X509BundlesResponse]) error {
	ctx := stream.Context()
	c, err := s.caller(ctx)
	if err != nil {
		return err
	}
	for {
		_, changed, err := s.identities(ctx, c)
		if err != nil {
			return err
		}
		roots, news, err := s.roots(ctx)
		if err != nil {
			return err
		}
		bundle, err := bundleOf(roots)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		if err := stream.Send(&pb.X509BundlesResponse{Bundles: map[string][]byte{connect.CAID(roots.TrustDomain).String(): bundle}}); err != nil {
			return err
		}
		for same := true; same; {
			if err := s.wait(ctx, nil, nil, news, changed); err != nil {
				return err
			}
			if _, changed, err = s.identities(ctx, c); err != nil {
				return err
			}
			now, _, _ := s.cfg.Leaves.Roots()
			same = now == roots
		}
	}
}

// FetchJWTSVID returns tokens for the services that the caller is.
func (s *Server) FetchJWTSVID(ctx context.Context, req *pb.JWTSVIDRequest) (*pb.JWTSVIDResponse, error) {
	c, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	if err := svid.CheckAudience(req.Audience); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	ids, _, err := s.identities(ctx, c)
	if err != nil {
		return nil, err
	}
	want := ""
	if req.SpiffeId != "" {
		id, err := connect.ParseID(req.SpiffeId)
		if err != nil || id.Kind() != connect.Service {
			return nil, status.Error(codes.InvalidArgument, "the SPIFFE ID asked for is not that of a service")
		}
		want = id.Name()
	}
	resp := &pb.JWTSVIDResponse{}
	for _, service := range slices.Sorted(maps.Keys(ids)) {
		if want != "" && service != want {
			continue
		}
		r, err := svid.SignCall.Call(ctx, s.cfg.Caller, &svid.SignRequest{Target: read.Target{Token: ids[service]}, Service: service, Audience: req.Audience})
		if err != nil {
			return nil, status.Errorf(codes.Unavailable, "no token for %s: %v", service, err)
		}
		if req.SpiffeId != "" && r.ID != req.SpiffeId {
			continue
		}
		resp.Svids = append(resp.Svids, &pb.JWTSVID{SpiffeId: r.ID, Svid: r.Token, Hint: service})
	}
	if len(resp.Svids) == 0 {
		return nil, errNobody
	}
	return resp, nil
}

// FetchJWTBundles sends what tokens are checked with, and again with every change.
func (s *Server) FetchJWTBundles(_ *pb.JWTBundlesRequest, stream grpc.ServerStreamingServer[pb.JWTBundlesResponse]) error {
	ctx := stream.Context()
	c, err := s.caller(ctx)
	if err != nil {
		return err
	}
	var index uint64
	last := ""
	for {
		if _, _, err := s.identities(ctx, c); err != nil {
			return err
		}
		keys, err := svid.KeysCall.Call(ctx, s.cfg.Caller, &svid.KeysRequest{Options: read.Options{MinIndex: index, MaxWait: s.cfg.Recheck}})
		if err != nil {
			return status.Errorf(codes.Unavailable, "no keys of the trust domain: %v", err)
		}
		if index = keys.Index; string(keys.JWKS) == last {
			continue
		}
		last = string(keys.JWKS)
		if err := stream.Send(&pb.JWTBundlesResponse{Bundles: map[string][]byte{connect.CAID(keys.TrustDomain).String(): keys.JWKS}}); err != nil {
			return err
		}
	}
}

// ValidateJWTSVID checks a token that somebody showed to the caller.
func (s *Server) ValidateJWTSVID(ctx context.Context, req *pb.ValidateJWTSVIDRequest) (*pb.ValidateJWTSVIDResponse, error) {
	c, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	if _, _, err := s.identities(ctx, c); err != nil {
		return nil, err
	}
	keys, err := svid.KeysCall.Call(ctx, s.cfg.Caller, &svid.KeysRequest{})
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "no keys of the trust domain: %v", err)
	}
	id, claims, err := svid.Validate(req.Svid, req.Audience, keys.TrustDomain, keys.JWKS, time.Now())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	fields, err := structpb.NewStruct(claims)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "the token's claims cannot be told")
	}
	return &pb.ValidateJWTSVIDResponse{SpiffeId: id.String(), Claims: fields}, nil
}
