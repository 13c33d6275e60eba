package connectrpc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/connectrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
)

// newServer returns a server whose authority is ready.
func newServer(t *testing.T, cfg connectrpc.Config) (*rpctest.Server, *connectrpc.Authority) {
	t.Helper()
	s := rpctest.New()
	a := connectrpc.New(cfg)
	a.Register(&s.Registry, &s.Appliers)
	if err := a.Initialize(t.Context(), s.Store, s.Apply); err != nil {
		t.Fatal(err)
	}
	return s, a
}

func roots(t *testing.T, c rpc.Caller) *ca.RootsReply {
	t.Helper()
	r, err := ca.RootsCall.Call(t.Context(), c, &ca.RootsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func csr(t *testing.T, id connect.ID) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := ca.NewCSR(id, key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func setConfig(ctx context.Context, c rpc.Caller, config map[string]any) error {
	_, err := ca.SetConfigCall.Call(ctx, c, &ca.SetConfigRequest{Config: ca.Configuration{Provider: "consul", Config: config}})
	return err
}

func TestFirstLeadershipMakesARoot(t *testing.T) {
	s, a := newServer(t, connectrpc.Config{Settings: map[string]any{"leaf_cert_ttl": "2h"}})
	got := roots(t, s.Caller())
	if len(got.Roots) != 1 || !got.Roots[0].Active || got.ActiveRootID != got.Roots[0].ID || !strings.HasSuffix(got.TrustDomain, ".consul") {
		t.Fatalf("roots %+v", got)
	}
	conf, err := ca.ConfigCall.Call(t.Context(), s.Caller(), &ca.ConfigRequest{})
	if err != nil || conf.Config.Config["LeafCertTTL"] != "2h" || conf.Config.Config["RootCertTTL"] != "87600h" {
		t.Errorf("configuration %+v, %v", conf, err)
	}
	// Another leadership changes nothing.
	index := s.Index()
	if err := a.Initialize(t.Context(), s.Store, s.Apply); err != nil || s.Index() != index {
		t.Errorf("initialized again: %v, %d entries written", err, s.Index()-index)
	}
	// A server with other settings of its own applies them when it becomes leader, once.
	other := connectrpc.New(connectrpc.Config{Settings: map[string]any{"LeafCertTTL": "3h"}})
	for range 2 {
		if err := other.Initialize(t.Context(), s.Store, s.Apply); err != nil {
			t.Fatal(err)
		}
	}
	if s.Index() != index+1 || len(roots(t, s.Caller()).Roots) != 1 {
		t.Errorf("%d entries written, %d roots", s.Index()-index, len(roots(t, s.Caller()).Roots))
	}
}

func TestSign(t *testing.T) {
	s, _ := newServer(t, connectrpc.Config{})
	s.Resolve = func(token string) (*acl.Authorizer, error) { return acl.New(only(token), "acc-"+token), nil }
	r := roots(t, s.Caller())
	web := connect.ServiceID(r.TrustDomain, "dc1", "web")
	req := &ca.SignRequest{Target: read.Target{Token: "web"}, CSR: csr(t, web)}
	reply, err := ca.SignCall.Call(t.Context(), s.Caller(), req)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.ParseCertificate(reply.Leaf.CertPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(r.Roots[0].RootCert))
	if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}); err != nil {
		t.Error(err)
	}
	if got := cert.NotAfter.Sub(cert.NotBefore); got != 72*time.Hour+time.Minute {
		t.Errorf("valid for %v", got)
	}
	if reply.Leaf.ModifyIndex == 0 || reply.Leaf.RootID != r.ActiveRootID {
		t.Errorf("leaf %+v", reply.Leaf)
	}

	tests := []struct {
		name   string
		id     connect.ID
		token  string
		status int
		want   string
	}{
		{"another service", connect.ServiceID(r.TrustDomain, "dc1", "db"), "web", 403, `lacks permission 'service:write' on "db"`},
		{"an agent", connect.AgentID(r.TrustDomain, "dc1", "web"), "web", 403, `lacks permission 'node:write' on "web"`},
		{"a server", connect.ServerID(r.TrustDomain, "dc1"), "web", 403, `lacks permission 'acl:write'`},
		{"another datacenter", connect.ServiceID(r.TrustDomain, "dc2", "web"), "web", 400, "SPIFFE ID in CSR from a different datacenter: dc2"},
		{"another trust domain", connect.ServiceID("x.consul", "dc1", "web"), "web", 400, "SPIFFE ID in CSR from a different trust domain: x.consul"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ca.SignCall.Call(t.Context(), s.Caller(), &ca.SignRequest{Target: read.Target{Token: tt.token}, CSR: csr(t, tt.id)})
			if err == nil || wireerr.Status(err) != tt.status || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v; want %d with %q", err, tt.status, tt.want)
			}
		})
	}
}

// only grants writing one service.
type only string

func (o only) Allows(r acl.Resource, _ acl.Access, name string) bool {
	return r == acl.Service && name == string(o)
}

func TestRotation(t *testing.T) {
	s, a := newServer(t, connectrpc.Config{})
	first := roots(t, s.Caller())
	if err := setConfig(t.Context(), s.Caller(), map[string]any{"LeafCertTTL": "1h"}); err != nil {
		t.Fatal(err)
	}
	if got := roots(t, s.Caller()); got.ActiveRootID != first.ActiveRootID || len(got.Roots) != 1 {
		t.Errorf("a change of lifetimes made a root: %+v", got)
	}
	if err := setConfig(t.Context(), s.Caller(), map[string]any{"LeafCertTTL": "1h", "PrivateKeyBits": 384}); err != nil {
		t.Fatal(err)
	}
	got := roots(t, s.Caller())
	active := got.Active()
	if len(got.Roots) != 2 || active.ID == first.ActiveRootID || len(active.IntermediateCerts) != 1 || got.TrustDomain != first.TrustDomain {
		t.Fatalf("after the rotation: %+v", got)
	}
	reply, err := ca.SignCall.Call(t.Context(), s.Caller(), &ca.SignRequest{CSR: csr(t, connect.ServiceID(got.TrustDomain, "dc1", "web"))})
	if err != nil {
		t.Fatal(err)
	}
	// Who knows only the old root verifies the new leaf.
	old, between := x509.NewCertPool(), x509.NewCertPool()
	old.AppendCertsFromPEM([]byte(first.Roots[0].RootCert))
	between.AppendCertsFromPEM([]byte(reply.Leaf.CertPEM))
	cert, err := ca.ParseCertificate(reply.Leaf.CertPEM)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: old, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if err := a.Maintain(t.Context(), s.Store, s.Apply); err != nil || len(roots(t, s.Caller()).Roots) != 2 {
		t.Errorf("the old root went too early: %v", err)
	}
	// Forced, there is no cross-signing.
	_, err = ca.SetConfigCall.Call(t.Context(), s.Caller(), &ca.SetConfigRequest{Config: ca.Configuration{
		Provider: "consul", Config: map[string]any{}, ForceWithoutCrossSigning: true,
	}})
	if got := roots(t, s.Caller()); err != nil || len(got.Roots) != 3 || got.Active().IntermediateCerts != nil {
		t.Errorf("forced rotation: %v, %+v", err, got.Active())
	}
}

func TestOldRootsArePruned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, a := newServer(t, connectrpc.Config{Settings: map[string]any{"leaf_cert_ttl": "10h"}})
		if err := setConfig(t.Context(), s.Caller(), map[string]any{"LeafCertTTL": "10h", "PrivateKeyBits": 384}); err != nil {
			t.Fatal(err)
		}
		for hour := range 30 {
			if err := a.Maintain(t.Context(), s.Store, s.Apply); err != nil {
				t.Fatal(err)
			}
			_, all := s.Store.View().CARoots()
			want := 2
			if hour > 20 {
				want = 1
			}
			if len(all) != want {
				t.Fatalf("after %d hours: %d roots, want %d", hour, len(all), want)
			}
			time.Sleep(time.Hour)
		}
	})
}

func TestRootIsReplacedBeforeItExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, a := newServer(t, connectrpc.Config{Settings: map[string]any{"leaf_cert_ttl": "1h", "intermediate_cert_ttl": "3h", "root_cert_ttl": "100h"}})
		seen := map[string]bool{}
		for range 400 {
			if err := a.Maintain(t.Context(), s.Store, s.Apply); err != nil {
				t.Fatal(err)
			}
			_, all := s.Store.View().CARoots()
			active := ca.ActiveRoot(all)
			if !time.Now().Before(active.NotAfter.Add(-5 * time.Hour)) {
				t.Fatalf("root expires %v, now %v", active.NotAfter, time.Now())
			}
			seen[active.ID] = true
			time.Sleep(time.Hour)
		}
		if len(seen) < 4 || len(seen) > 6 {
			t.Errorf("%d roots in 400 hours", len(seen))
		}
	})
}

func TestGivenRoot(t *testing.T) {
	s, _ := newServer(t, connectrpc.Config{})
	id := strings.TrimSuffix(roots(t, s.Caller()).TrustDomain, ".consul")
	key, err := ca.GenerateKey(rand.Reader, "ec", 256)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := ca.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	rootPEM, err := ca.NewRoot(ca.RootParams{Key: key, Serial: 5, ClusterID: id, Label: "mine", Now: time.Now(), TTL: 90000 * time.Hour, Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := ca.NewRoot(ca.RootParams{Key: key, Serial: 5, ClusterID: "99999999-2222-3333-4444-555555555555", Label: "mine", Now: time.Now(), TTL: 90000 * time.Hour, Random: rand.Reader})
	if err != nil {
		t.Fatal(err)
	}
	other, err := ca.GenerateKey(rand.Reader, "ec", 256)
	if err != nil {
		t.Fatal(err)
	}
	otherPEM, err := ca.EncodeKey(other)
	if err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string]map[string]any{
		"key of another root":  {"PrivateKey": otherPEM, "RootCert": rootPEM},
		"another trust domain": {"PrivateKey": keyPEM, "RootCert": foreign},
		"no key":               {"RootCert": rootPEM},
		"rubbish":              {"PrivateKey": "x"},
	} {
		if err := setConfig(t.Context(), s.Caller(), config); err == nil || !strings.HasPrefix(err.Error(), "error configuring provider: ") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if n := len(roots(t, s.Caller()).Roots); n != 1 {
		t.Fatalf("refused configurations left %d roots", n)
	}
	if err := setConfig(t.Context(), s.Caller(), map[string]any{"PrivateKey": keyPEM, "RootCert": rootPEM}); err != nil {
		t.Fatal(err)
	}
	active := roots(t, s.Caller()).ActiveRootID
	if got := roots(t, s.Caller()).Active(); got.RootCert != rootPEM {
		t.Error("the given root is not the active one")
	}
	// The configuration read, changed and written back keeps the key it does not show.
	conf, err := ca.ConfigCall.Call(t.Context(), s.Caller(), &ca.ConfigRequest{})
	if err != nil {
		t.Fatal(err)
	}
	config := maps.Clone(conf.Config.Config)
	config["LeafCertTTL"] = "5h"
	if err := setConfig(t.Context(), s.Caller(), config); err != nil || roots(t, s.Caller()).ActiveRootID != active {
		t.Errorf("written back: %v, active root %s, was %s", err, roots(t, s.Caller()).ActiveRootID, active)
	}
	if _, err := sign(t, s.Caller(), "dc1"); err != nil {
		t.Errorf("a certificate by the given root: %v", err)
	}
	if _, err := ca.RotationCall.Call(t.Context(), s.Caller(), &ca.RotationRequest{}); err != nil {
		t.Errorf("the state of rotation: %v", err)
	}
}

// No answer contains a private key, whoever asks (spec/threats.md class 4).
func TestKeysAreInNoAnswer(t *testing.T) {
	key, err := ca.GenerateKey(rand.Reader, "ec", 256)
	if err != nil {
		t.Fatal(err)
	}
	given, err := ca.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := newServer(t, connectrpc.Config{Settings: map[string]any{"private_key": given}})
	c := s.Caller()
	_, all := s.Store.View().CARoots()
	kept := s.Store.View().CAProvider(all[0].ID)
	if kept == nil || strings.TrimSpace(kept.PrivateKey) != strings.TrimSpace(given) {
		t.Fatal("the given key is not the one in use")
	}
	var answers []any
	conf, err := ca.ConfigCall.Call(t.Context(), c, &ca.ConfigRequest{})
	answers = append(answers, conf, err)
	answers = append(answers, roots(t, c))
	leaf, err := ca.SignCall.Call(t.Context(), c, &ca.SignRequest{CSR: csr(t, connect.ServiceID(roots(t, c).TrustDomain, "dc1", "web"))})
	answers = append(answers, leaf, err, setConfig(t.Context(), c, map[string]any{"PrivateKey": given[:len(given)/2]}))
	secret := strings.Split(given, "\n")[1]
	for i, a := range answers {
		asJSON, _ := json.Marshal(a)
		asCBOR, _ := rpc.Marshal(a)
		for _, text := range []string{string(asJSON), string(asCBOR), fmt.Sprint(a)} {
			if strings.Contains(text, "PRIVATE KEY") || strings.Contains(text, secret) {
				t.Errorf("answer %d contains a key", i)
			}
		}
	}
}

func TestConfigNeedsOperatorWrite(t *testing.T) {
	s, _ := newServer(t, connectrpc.Config{})
	s.Resolve = func(string) (*acl.Authorizer, error) { return acl.New(reader{}, "acc"), nil }
	_, err := ca.ConfigCall.Call(t.Context(), s.Caller(), &ca.ConfigRequest{})
	want := "Permission denied: token with AccessorID 'acc' lacks permission 'operator:write'"
	if err == nil || err.Error() != want {
		t.Errorf("read: %v, want %q", err, want)
	}
	if err := setConfig(t.Context(), s.Caller(), nil); err == nil || err.Error() != want {
		t.Errorf("write: %v, want %q", err, want)
	}
	if r := roots(t, s.Caller()); len(r.Roots) != 1 {
		t.Error("roots are not public")
	}
}

type reader struct{}

func (reader) Allows(_ acl.Resource, a acl.Access, _ string) bool { return a == acl.Read }

func TestSigningIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newServer(t, connectrpc.Config{Settings: map[string]any{"csr_max_per_second": 10}})
		id := connect.ServiceID(roots(t, s.Caller()).TrustDomain, "dc1", "web")
		type outcome struct {
			after time.Duration
			err   error
		}
		results := make(chan outcome, 20)
		start := time.Now()
		text := csr(t, id)
		for range 20 {
			go func() {
				_, err := ca.SignCall.Call(t.Context(), s.Caller(), &ca.SignRequest{CSR: text})
				results <- outcome{time.Since(start), err}
			}()
		}
		var waits []time.Duration
		refused := 0
		for range 20 {
			switch r := <-results; {
			case r.err == nil:
				waits = append(waits, r.after)
			case r.err.Error() == "Rate limit reached, try again later":
				refused++
			default:
				t.Error(r.err)
			}
		}
		slices.Sort(waits)
		want := []time.Duration{0, 100 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond, 400 * time.Millisecond, 500 * time.Millisecond}
		if !slices.Equal(waits, want) || refused != 14 {
			t.Errorf("signed after %v, refused %d", waits, refused)
		}
		// An idle second makes no burst.
		time.Sleep(10 * time.Second)
		start = time.Now()
		for range 2 {
			if _, err := ca.SignCall.Call(t.Context(), s.Caller(), &ca.SignRequest{CSR: text}); err != nil {
				t.Error(err)
			}
		}
		if got := time.Since(start); got != 100*time.Millisecond {
			t.Errorf("two took %v", got)
		}
	})
}

func TestConcurrentSigningIsLimited(t *testing.T) {
	s, _ := newServer(t, connectrpc.Config{Settings: map[string]any{"csr_max_per_second": 0, "csr_max_concurrent": 1}})
	text := csr(t, connect.ServiceID(roots(t, s.Caller()).TrustDomain, "dc1", "web"))
	errs := make(chan error, 20)
	for range 20 {
		go func() {
			_, err := ca.SignCall.Call(t.Context(), s.Caller(), &ca.SignRequest{CSR: text})
			errs <- err
		}()
	}
	for range 20 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestDisabled(t *testing.T) {
	s, _ := newServer(t, connectrpc.Config{Disabled: true})
	if _, err := ca.RootsCall.Call(t.Context(), s.Caller(), &ca.RootsRequest{}); err != wireerr.ErrConnectDisabled {
		t.Errorf("roots: %v", err)
	}
	if _, err := ca.SignCall.Call(t.Context(), s.Caller(), &ca.SignRequest{}); err != wireerr.ErrConnectDisabled {
		t.Errorf("sign: %v", err)
	}
	if err := setConfig(t.Context(), s.Caller(), nil); err != wireerr.ErrConnectDisabled {
		t.Errorf("configuration: %v", err)
	}
}

func TestSignWaitsForTheFirstRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := rpctest.New()
		a := connectrpc.New(connectrpc.Config{})
		a.Register(&s.Registry, &s.Appliers)
		go func() {
			time.Sleep(2 * time.Second)
			a.Initialize(t.Context(), s.Store, s.Apply)
		}()
		start := time.Now()
		// It names no identity: told once there is a root to sign with.
		_, err := ca.SignCall.Call(t.Context(), s.Caller(), &ca.SignRequest{CSR: "x"})
		if wireerr.Status(err) != 400 || time.Since(start) != 2*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		s := rpctest.New()
		connectrpc.New(connectrpc.Config{}).Register(&s.Registry, &s.Appliers)
		start := time.Now()
		_, err := ca.SignCall.Call(t.Context(), s.Caller(), &ca.SignRequest{CSR: "x"})
		if err == nil || time.Since(start) != 5*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
	})
}

// The leaf of an ingress gateway carries the hosts its entry names, and no others.
func TestSignHosts(t *testing.T) {
	s, _ := newServer(t, connectrpc.Config{})
	r := roots(t, s.Caller())
	gateway := &entry.IngressGateway{Listeners: []entry.IngressListener{{Port: 443, Protocol: "http", Services: []entry.IngressService{
		{Name: "web", Hosts: []string{"shop.example.com:443", "*.example.org"}},
	}}}}
	gateway.Kind, gateway.Name = entry.KindIngressGateway, "edge"
	tx := s.Store.Write(s.Index() + 1)
	if _, err := tx.SetEntry(gateway); err != nil {
		t.Fatal(err)
	}
	tx.Commit()
	edge := connect.ServiceID(r.TrustDomain, "dc1", "edge")
	tests := []struct {
		name  string
		id    connect.ID
		hosts []string
		err   string
	}{
		{"what the entry names", edge, []string{"*.ingress.consul", "*.example.org", "shop.example.com"}, ""},
		{"something else", edge, []string{"shop.example.com", "db.example.com"}, `does not name host "db.example.com"`},
		{"a service that is no gateway", connect.ServiceID(r.TrustDomain, "dc1", "web"), []string{"shop.example.com"}, "only ingress gateways"},
		{"not a service", connect.ServerID(r.TrustDomain, "dc1"), []string{"*.ingress.consul"}, "only ingress gateways"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			reply, err := ca.SignCall.Call(t.Context(), s.Caller(), &ca.SignRequest{CSR: csr(t, tt.id), Hosts: tt.hosts})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			cert, err := ca.ParseCertificate(reply.Leaf.CertPEM)
			if err != nil || !slices.Equal(cert.DNSNames, tt.hosts) || cert.URIs[0].String() != tt.id.String() {
				t.Errorf("signed %v %v, %v", cert.DNSNames, cert.URIs, err)
			}
		})
	}
}

// TestThreat2ServersSecret: a server's certificate is for servers alone (spec/threats.md, class 2).
func TestThreat2ServersSecret(t *testing.T) {
	s, _ := newServer(t, connectrpc.Config{})
	domain := roots(t, s.Caller()).TrustDomain
	secret := connectrpc.Secret(s.Store.View())
	if len(secret) < 32 {
		t.Fatalf("the secret has %d characters", len(secret))
	}
	server := connect.ServerID(domain, "dc1")
	for name, tt := range map[string]struct {
		id     connect.ID
		secret string
		ok     bool
	}{
		"with the secret":                 {server, secret, true},
		"without":                         {server, "", false},
		"with another":                    {server, strings.Repeat("0", len(secret)), false},
		"with it, but for a service":      {connect.ServiceID(domain, "dc1", "web"), secret, false},
		"with it, but for a mesh gateway": {connect.MeshGatewayID(domain, "dc1"), secret, false},
	} {
		_, err := ca.SignServerCall.Call(t.Context(), s.Caller(), &ca.SignRequest{CSR: csr(t, tt.id), Secret: tt.secret})
		if (err == nil) != tt.ok || err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
