package workload_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/client/leaf"
	"github.com/sarnmesh/sarn/client/workload"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/svid"
	"github.com/sarnmesh/sarn/internal/rpc"
)

const clusterID = "11111111-2222-3333-4444-555555555555"

var domain = connect.TrustDomain(clusterID)

// servers stands for the servers: it has roots, signs, and remembers with which tokens it was asked.
type servers struct {
	t *testing.T

	mu       sync.Mutex
	index    uint64
	roots    []*ca.Root
	provider ca.Provider
	keys     *svid.Keys
	changed  chan struct{}
	tokens   map[string]bool
	serial   byte
}

func (s *servers) rotate() {
	key, err := ca.GenerateKey(rand.Reader, ca.KeyEC, 256)
	if err != nil {
		s.t.Fatal(err)
	}
	text, err := ca.NewRoot(ca.RootParams{Key: key, Serial: 1, ClusterID: clusterID, Label: "x", Now: time.Now(), TTL: 90000 * time.Hour, Random: rand.Reader})
	if err != nil {
		s.t.Fatal(err)
	}
	root, err := ca.DescribeRoot(text, "x", clusterID)
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.provider, err = ca.NewBuiltIn(text, key, rand.Reader); err != nil {
		s.t.Fatal(err)
	}
	s.roots = []*ca.Root{root} // the old one is not trusted any more: leaves are renewed at once
	root.Active = true
	s.index += 10
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *servers) Call(ctx context.Context, _ rpc.Descriptor, req, resp any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch req := req.(type) {
	case *ca.RootsRequest:
		for req.MinIndex >= s.index {
			changed := s.changed
			s.mu.Unlock()
			select {
			case <-changed:
			case <-ctx.Done():
			}
			s.mu.Lock()
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
		*resp.(*ca.RootsReply) = ca.RootsReply{TrustDomain: domain, Roots: s.roots, ActiveRootID: s.roots[0].ID}
		resp.(*ca.RootsReply).Index = s.index
		return nil
	case *ca.SignRequest:
		s.tokens[req.Token] = true
		r, err := ca.ParseCSR(req.CSR, domain, "dc1")
		if err != nil {
			return err
		}
		s.serial++
		l, err := ca.SignLeaf(ctx, r, ca.LeafParams{Provider: s.provider, Root: s.roots[0], Serial: []byte{1, s.serial}, Now: time.Now(), TTL: time.Hour})
		if err != nil {
			return err
		}
		resp.(*ca.SignReply).Leaf = *l
		return nil
	case *svid.SignRequest:
		s.tokens[req.Token] = true
		id := connect.ServiceID(domain, "dc1", req.Service)
		token, expires, err := s.keys.Sign(id, req.Audience, time.Now())
		*resp.(*svid.SignReply) = svid.SignReply{ID: id.String(), Token: token, Expires: expires}
		return err
	case *svid.KeysRequest:
		jwks, err := s.keys.JWKS()
		*resp.(*svid.KeysReply) = svid.KeysReply{TrustDomain: domain, JWKS: jwks}
		resp.(*svid.KeysReply).Index = 1
		if req.MinIndex > 0 {
			s.mu.Unlock()
			defer s.mu.Lock()
			select {
			case <-time.After(req.MaxWait):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return err
	}
	return fmt.Errorf("unexpected %T", req)
}

func (s *servers) asked(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tokens[token]
}

// A world is a server of the API whose rules and registrations a test changes.
type world struct {
	*servers
	path string

	mu      sync.Mutex
	rules   []workload.Rule
	regs    []workload.Registration
	changed chan struct{}
}

func (w *world) set(rules []workload.Rule, regs []workload.Registration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rules, w.regs = rules, regs
	close(w.changed)
	w.changed = make(chan struct{})
}

func newWorld(t *testing.T, acls bool) *world {
	t.Helper()
	s := &servers{t: t, changed: make(chan struct{}), tokens: map[string]bool{}}
	s.rotate()
	var err error
	if s.keys, err = (&svid.Keys{}).Next(rand.Reader, time.Now()); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "workload") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &world{servers: s, path: filepath.Join(dir, "s"), changed: make(chan struct{})}
	cfg := workload.Config{
		Rules: func() []workload.Rule { w.mu.Lock(); defer w.mu.Unlock(); return w.rules },
		Registrations: func() ([]workload.Registration, <-chan struct{}) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.regs, w.changed
		},
		Token: func() string { return "agent" }, Caller: s, Recheck: 200 * time.Millisecond,
	}
	if acls {
		cfg.Authorize = func(_ context.Context, token string) (*acl.Authorizer, error) {
			service, ok := strings.CutPrefix(token, "token-of-")
			if !ok {
				return nil, errors.New("ACL not found")
			}
			rules, err := acl.Parse(fmt.Sprintf(`service %q { policy = "write" } service_prefix "" { policy = "read" }`, service))
			if err != nil {
				return nil, err
			}
			return acl.New(acl.Compile(false, rules), token), nil
		}
	}
	cfg.Leaves = leaf.New(s, leaf.Config{Datacenter: "dc1"})
	l, err := net.Listen("unix", w.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { cfg.Leaves.Run(ctx) })
	running.Go(func() {
		if err := workload.New(cfg).Run(ctx, l); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return w
}

func (w *world) client(t *testing.T, opts ...workloadapi.ClientOption) *workloadapi.Client {
	t.Helper()
	c, err := workloadapi.New(t.Context(), append(opts, workloadapi.WithAddr("unix://"+w.path))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func ptr[T any](v T) *T { return &v }

// self returns a rule for the process of the test.
func self(t *testing.T, service string) workload.Rule {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return workload.Rule{Service: service, UID: ptr(uint32(os.Getuid())), Path: path}
}

func TestProcessesGetWhatTheyAre(t *testing.T) {
	w := newWorld(t, false)
	w.set([]workload.Rule{self(t, "web"), {Service: "db", UID: ptr(uint32(4242))}, {Service: "cache", Path: "/bin/other"}, {Service: "none"}},
		[]workload.Registration{{"web", "token-of-web"}, {"db", ""}})
	c := w.client(t)
	x, err := c.FetchX509Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := connect.ServiceID(domain, "dc1", "web").String()
	if len(x.SVIDs) != 1 || x.SVIDs[0].ID.String() != want {
		t.Fatalf("SVIDs %v", x.SVIDs)
	}
	bundle, err := x.Bundles.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString(domain))
	if err != nil || len(bundle.X509Authorities()) != 1 {
		t.Fatalf("bundle %v, %v", bundle, err)
	}
	if err := x.SVIDs[0].Certificates[0].CheckSignatureFrom(bundle.X509Authorities()[0]); err != nil {
		t.Error(err)
	}
	if !w.asked("token-of-web") {
		t.Error("the certificate was not asked for with the token of the registration")
	}

	token, err := c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "bank"})
	if err != nil || token.ID.String() != want {
		t.Fatalf("%v, %v", token, err)
	}
	bundles, err := c.FetchJWTBundles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(token.Marshal(), bundles, []string{"bank"}); err != nil {
		t.Error(err)
	}
	if got, err := c.ValidateJWTSVID(t.Context(), token.Marshal(), "bank"); err != nil || got.ID.String() != want {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := c.ValidateJWTSVID(t.Context(), token.Marshal(), "shop"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("for another audience: %v", err)
	}
	if _, err := c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "bank", Subject: spiffeid.RequireFromString(connect.ServiceID(domain, "dc1", "db").String())}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a token for somebody else: %v", err)
	}
}

func TestStrangersGetNothing(t *testing.T) {
	w := newWorld(t, true)
	w.set([]workload.Rule{{Service: "db", UID: ptr(uint32(4242))}}, []workload.Registration{{"db", ""}, {"web", ""}})
	conn, err := grpc.NewClient("unix://"+w.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	api := pb.NewSpiffeWorkloadAPIClient(conn)
	calls := map[string]func(context.Context) error{
		"X509SVID": func(ctx context.Context) error {
			s, err := api.FetchX509SVID(ctx, &pb.X509SVIDRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"X509Bundles": func(ctx context.Context) error {
			s, err := api.FetchX509Bundles(ctx, &pb.X509BundlesRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"JWTSVID": func(ctx context.Context) error {
			_, err := api.FetchJWTSVID(ctx, &pb.JWTSVIDRequest{Audience: []string{"a"}})
			return err
		},
		"JWTBundles": func(ctx context.Context) error {
			s, err := api.FetchJWTBundles(ctx, &pb.JWTBundlesRequest{})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
		"Validate": func(ctx context.Context) error {
			_, err := api.ValidateJWTSVID(ctx, &pb.ValidateJWTSVIDRequest{Audience: "a", Svid: "x"})
			return err
		},
	}
	for name, call := range calls {
		for _, tt := range []struct {
			name string
			md   []string
			want codes.Code
		}{
			{"no header", nil, codes.InvalidArgument},
			{"no rule fits", []string{"workload.spiffe.io", "true"}, codes.PermissionDenied},
			{"unknown token", []string{"workload.spiffe.io", "true", "x-consul-token", "x"}, codes.PermissionDenied},
			{"token of a service that is elsewhere", []string{"workload.spiffe.io", "true", "x-consul-token", "token-of-bank"}, codes.PermissionDenied},
		} {
			if got := status.Code(call(metadata.AppendToOutgoingContext(t.Context(), tt.md...))); got != tt.want {
				t.Errorf("%s, %s: %v, want %v", name, tt.name, got, tt.want)
			}
		}
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true", "authorization", "Bearer token-of-web")
	r, err := api.FetchJWTSVID(ctx, &pb.JWTSVIDRequest{Audience: []string{"a"}})
	if err != nil || len(r.Svids) != 1 || r.Svids[0].Hint != "web" || !w.asked("token-of-web") {
		t.Errorf("with a token: %v, %v", r, err)
	}
}

// Tokens show nothing while nobody can say what they may do.
func TestTokensCountOnlyWithACLs(t *testing.T) {
	w := newWorld(t, false)
	w.set(nil, []workload.Registration{{"web", ""}})
	conn, err := grpc.NewClient("unix://"+w.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true", "x-consul-token", "anything")
	if _, err := pb.NewSpiffeWorkloadAPIClient(conn).FetchJWTSVID(ctx, &pb.JWTSVIDRequest{Audience: []string{"a"}}); status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
}

func TestStreamsFollowRotationAndEndWithTheRule(t *testing.T) {
	w := newWorld(t, false)
	w.set([]workload.Rule{self(t, "web")}, []workload.Registration{{"web", ""}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+w.path)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	first, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	w.rotate()
	for {
		now, err := source.GetX509SVID()
		bundle, bundleErr := source.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString(domain))
		if err != nil || bundleErr != nil {
			t.Fatal(err, bundleErr)
		}
		if !now.Certificates[0].Equal(first.Certificates[0]) && now.Certificates[0].CheckSignatureFrom(bundle.X509Authorities()[0]) == nil {
			break
		}
		if err := source.WaitUntilUpdated(ctx); err != nil {
			t.Fatal("the certificate was not renewed: ", err)
		}
	}
	// A second service of the same process comes and goes.
	c := w.client(t)
	updates := make(chan int, 100)
	ended := make(chan error, 1)
	watch, stop := context.WithCancel(ctx)
	defer stop()
	go func() { ended <- c.WatchX509Context(watch, &watcher{updates: updates, stop: stop}) }()
	if n := <-updates; n != 1 {
		t.Errorf("%d identities", n)
	}
	w.set([]workload.Rule{self(t, "web"), self(t, "db")}, nil)
	if n := <-updates; n != 2 {
		t.Errorf("%d identities after another rule", n)
	}
	w.set(nil, nil)
	if n := <-updates; n != -int(codes.PermissionDenied) {
		t.Errorf("after the rules are gone: %d", n)
	}
	<-ended
}

type watcher struct {
	updates chan int
	stop    func()
}

func (w *watcher) OnX509ContextUpdate(c *workloadapi.X509Context) { w.updates <- len(c.SVIDs) }
func (w *watcher) OnX509ContextWatchError(err error) {
	w.updates <- -int(status.Code(err))
	w.stop()
}

func TestRulesMustSaySomething(t *testing.T) {
	for want, r := range map[string]workload.Rule{
		"must name a service": {UID: ptr(uint32(0))},
		"at least one of":     {Service: "web"},
	} {
		if err := r.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
