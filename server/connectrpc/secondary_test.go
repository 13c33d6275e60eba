package connectrpc_test

import (
	"context"
	"crypto/x509"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/connectrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
)

// A far is a secondary datacenter, dc2, and the way from there to the primary one, dc1.
type far struct {
	cluster
	primary *cluster
	lost    atomic.Bool // the way is
}

// Call is what the secondary reaches the primary with.
func (f *far) Call(ctx context.Context, d rpc.Descriptor, req, resp any) error {
	if f.lost.Load() {
		return errors.New("no route to host")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f.primary.Caller().Call(ctx, d, req, resp) }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			if f.lost.Load() {
				cancel()
				<-done
				return errors.New("connection reset")
			}
		}
	}
}

// inDatacenters runs a test with the leaders of two datacenters in a bubble. The second one does not run yet.
func inDatacenters(t *testing.T, settings map[string]any, f func(t *testing.T, near *cluster, far *far)) {
	t.Helper()
	inCluster(t, settings, func(t *testing.T, near *cluster) {
		o := &far{cluster: cluster{Server: rpctest.New(), t: t, log: new(journal), stop: func() {}}, primary: near}
		o.Datacenter = "dc2"
		near.Resolve = func(token string) (*acl.Authorizer, error) {
			if token == "web" {
				return acl.New(only(token), "acc"), nil
			}
			return acl.Everything(), nil
		}
		o.another()
		o.a.Register(&o.Registry, &o.Appliers)
		catalogrpc.Register(&o.Registry, &o.Appliers, catalogrpc.Config{})
		defer func() { o.stop() }()
		f(t, near, o)
	})
}

// another makes another server's authority of it.
func (o *far) another() {
	o.a = connectrpc.New(connectrpc.Config{
		Logger: hclog.New(&hclog.LoggerOptions{Output: o.log}), Datacenter: "dc2",
		Primary: connectrpc.Primary{Datacenter: "dc1", Caller: o, Token: func() string { return "replication" }},
	})
}

func (o *far) lead() {
	o.t.Helper()
	o.cluster.lead()
	rotating := o.stop
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.a.Replicate(ctx, o.Store, o.Apply)
	}()
	maintained := make(chan struct{})
	go func() {
		defer close(maintained)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Hour):
				if err := o.a.Maintain(ctx, o.Store, o.Apply); err != nil {
					o.t.Error(err)
				}
			}
		}
	}()
	o.stop = func() { cancel(); <-done; <-maintained; rotating() }
	synctest.Wait()
}

// A presented is a chain of certificates that somebody may present as long as it is valid.
type presented struct {
	leaf    *x509.Certificate
	between *x509.CertPool
	root    string
	count   int
}

func sign(t *testing.T, c rpc.Caller, datacenter string) (*presented, error) {
	t.Helper()
	reply, err := ca.SignCall.Call(t.Context(), c, &ca.SignRequest{CSR: csr(t, connect.ServiceID(roots(t, c).TrustDomain, datacenter, "web"))})
	if err != nil {
		return nil, err
	}
	certs, err := ca.ParseCertificates(reply.Leaf.CertPEM)
	if err != nil {
		t.Fatal(err)
	}
	p := &presented{certs[0], x509.NewCertPool(), reply.Leaf.RootID, len(certs)}
	for _, c := range certs[1:] {
		p.between.AddCert(c)
	}
	return p, nil
}

func mustSign(t *testing.T, c rpc.Caller, datacenter string) *presented {
	t.Helper()
	p, err := sign(t, c, datacenter)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// trusted returns an error unless who knows some roots trusts what is presented.
func (p *presented) trusted(known []*ca.Root) error {
	pool := x509.NewCertPool()
	for _, r := range known {
		pool.AppendCertsFromPEM([]byte(r.RootCert))
	}
	_, err := p.leaf.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: p.between, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

func TestDatacentersTrustEachOther(t *testing.T) {
	inDatacenters(t, nil, func(t *testing.T, near *cluster, o *far) {
		// Before the primary datacenter is reached nothing is made up.
		o.lost.Store(true)
		o.lead()
		time.Sleep(5 * time.Minute)
		if got := o.roots(); len(got.Roots) != 0 || got.TrustDomain != "" {
			t.Errorf("roots before the primary was reached: %+v", got)
		}
		key := csr(t, connect.ServiceID("x.consul", "dc2", "web"))
		if _, err := ca.SignCall.Call(t.Context(), o.Caller(), &ca.SignRequest{CSR: key}); err == nil || !strings.Contains(err.Error(), "primary datacenter dc1") {
			t.Errorf("signed without the primary: %v", err)
		}
		if !strings.Contains(o.log.String(), "waits for the primary datacenter and signs nothing") {
			t.Errorf("nothing was said:\n%s", o.log)
		}
		o.lost.Store(false)
		time.Sleep(2 * time.Minute)
		here, there := o.roots(), near.roots()
		if here.TrustDomain != there.TrustDomain || here.ActiveRootID != there.ActiveRootID || len(here.Roots) != 1 || len(here.Roots[0].IntermediateCerts) != 1 {
			t.Fatalf("roots here %+v, there %+v", here, there)
		}
		for _, p := range []*presented{mustSign(t, o.Caller(), "dc2"), mustSign(t, near.Caller(), "dc1")} {
			if err := errors.Join(p.trusted(here.Roots), p.trusted(there.Roots)); err != nil {
				t.Errorf("%s: %v", p.leaf.URIs[0], err)
			}
		}
		first := mustSign(t, o.Caller(), "dc2")
		if first.count != 2 {
			t.Errorf("a leaf brings %d certificates", first.count)
		}
		if _, err := ca.SignCall.Call(t.Context(), o.Caller(), &ca.SignRequest{CSR: csr(t, connect.ServiceID(here.TrustDomain, "dc1", "web"))}); err == nil {
			t.Error("signed for another datacenter")
		}
		// Nothing is written while nothing changes, by another leader neither.
		index := o.Index()
		time.Sleep(time.Hour)
		o.stop()
		o.another()
		o.lead()
		time.Sleep(time.Hour)
		if o.Index() != index {
			t.Errorf("%d entries were written", o.Index()-index)
		}
		if _, err := ca.SignIntermediateCall.Call(t.Context(), o.Caller(), &ca.SignIntermediateRequest{CSR: csr(t, connect.CAID(here.TrustDomain)), ForDatacenter: "dc3"}); err == nil || !strings.Contains(err.Error(), "only the primary datacenter") {
			t.Errorf("an intermediate of a secondary: %v", err)
		}
	})
}

func TestConfigurationIsThePrimaryDatacenters(t *testing.T) {
	inDatacenters(t, nil, func(t *testing.T, near *cluster, o *far) {
		o.lead()
		time.Sleep(time.Minute)
		before := near.roots().ActiveRootID
		if err := setConfig(t.Context(), o.Caller(), map[string]any{"LeafCertTTL": "5h"}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		for _, c := range []rpc.Caller{near.Caller(), o.Caller()} {
			conf, err := ca.ConfigCall.Call(t.Context(), c, &ca.ConfigRequest{})
			if err != nil || conf.Config.Config["LeafCertTTL"] != "5h" {
				t.Errorf("configuration %+v, %v", conf, err)
			}
		}
		if life := time.Until(mustSign(t, o.Caller(), "dc2").leaf.NotAfter); life > 5*time.Hour {
			t.Errorf("a leaf lives %v", life)
		}
		// With the rights that the caller has there.
		var req ca.SetConfigRequest
		req.Token, req.Config = "web", ca.Configuration{Provider: "consul", Config: map[string]any{"LeafCertTTL": "6h"}}
		if _, err := ca.SetConfigCall.Call(t.Context(), o.Caller(), &req); wireerr.Status(err) != http.StatusForbidden {
			t.Errorf("set without the right: %v", err)
		}
		o.rotate(ca.RotateRequest{})
		time.Sleep(10 * time.Second)
		if a, b := near.roots().ActiveRootID, o.roots().ActiveRootID; a == before || a != b {
			t.Errorf("rotated from %s to %s in one, %s in the other", before, a, b)
		}
		o.lost.Store(true)
		if err := setConfig(t.Context(), o.Caller(), nil); err == nil || !strings.Contains(err.Error(), "no route") {
			t.Errorf("set while the primary is lost: %v", err)
		}
	})
}

// Through a whole rotation, with the other datacenter reached at every moment or lost for some of it, what anybody
// presents is trusted by everybody, also by who has learnt of no change for a minute.
func TestRotationReachesOtherDatacenters(t *testing.T) {
	for _, away := range []time.Duration{0, 90 * time.Minute} {
		t.Run("away "+away.String(), func(t *testing.T) {
			inDatacenters(t, map[string]any{"LeafCertTTL": "2h"}, func(t *testing.T, near *cluster, o *far) {
				near.node("n1", passing, sidecar+"web-sidecar-proxy")
				o.node("n2", passing, sidecar+"api-sidecar-proxy")
				o.lead()
				time.Sleep(time.Minute)
				old := near.roots().ActiveRootID

				var shown []*presented
				bundles, seen := map[string][]*ca.Root{}, map[string]time.Time{} // of the last minute, by name
				type pair struct {
					p    *presented
					name string
				}
				looked := map[pair]bool{} // in a short run, once is enough
				look := func() {
					t.Helper()
					now := time.Now()
					shown = append(shown, mustSign(t, near.Caller(), "dc1"), mustSign(t, o.Caller(), "dc2"))
					for _, known := range [][]*ca.Root{near.roots().Roots, o.roots().Roots} {
						name := ca.Bundle(known)
						bundles[name], seen[name] = known, now
					}
					maps.DeleteFunc(bundles, func(name string, _ []*ca.Root) bool { return now.Sub(seen[name]) > time.Minute })
					shown = slices.DeleteFunc(shown, func(p *presented) bool { return now.After(p.leaf.NotAfter) })
					for _, p := range shown {
						for name, b := range bundles {
							if looked[pair{p, name}] {
								continue
							}
							looked[pair{p, name}] = testing.Short()
							if err := p.trusted(b); err != nil {
								t.Fatalf("%s, of root %s: %v", p.leaf.URIs[0], p.root, err)
							}
						}
					}
				}
				pass := func(d, every time.Duration) {
					t.Helper()
					for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(every) {
						look()
					}
				}
				pass(time.Minute, 15*time.Second)
				if away > 0 {
					o.lost.Store(true)
					pass(time.Minute, 15*time.Second)
				}
				near.rotate(ca.RotateRequest{})
				pass(time.Minute, 15*time.Second)
				fresh := near.rotation().NewRootID
				if away == 0 {
					if r := o.rotation(); r.Phase != ca.PhaseSpreading || r.NewRootID != fresh {
						t.Errorf("the pending root has not arrived: %+v", r)
					}
					// What nodes here trust is one thing, whether the primary signs with it another.
					o.confirm("n2")
					pass(20*time.Second, 5*time.Second)
					if mustSign(t, o.Caller(), "dc2").root != old {
						t.Error("signed under a root that is pending in the primary")
					}
				}
				near.confirm("n1")
				pass(away+time.Minute, away/40+15*time.Second)
				if mustSign(t, near.Caller(), "dc1").root != fresh {
					t.Fatal("the primary does not sign with its new root")
				}
				if away > 0 {
					o.lost.Store(false)
					pass(2*time.Minute, 15*time.Second)
					if r := o.rotation(); r.Phase != ca.PhaseSpreading || r.NewRootID != fresh || mustSign(t, o.Caller(), "dc2").root != old {
						t.Errorf("signed under a root that nobody here knows: %+v", r)
					}
					o.confirm("n2")
					pass(20*time.Second, 5*time.Second)
				}
				if p := mustSign(t, o.Caller(), "dc2"); p.root != fresh || p.count != 3 {
					t.Errorf("under %s, want %s; %d certificates", p.root, fresh, p.count)
				}
				// The old one is forgotten in both, when no leaf of it is left.
				pass(10*time.Hour, 20*time.Minute)
				if err := near.a.Maintain(t.Context(), near.Store, near.Apply); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Hour)
				if a, b := near.roots().Roots, o.roots().Roots; len(a) != 1 || len(b) != 1 || a[0].ID != fresh || b[0].ID != fresh {
					t.Errorf("%d and %d roots are left", len(a), len(b))
				}
				look()
			})
		})
	}
}

func TestSecondaryGoesOnWithoutThePrimary(t *testing.T) {
	life := 240 * time.Hour
	if testing.Short() {
		life = 24 * time.Hour
	}
	inDatacenters(t, map[string]any{"LeafCertTTL": "1h", "IntermediateCertTTL": life.String()}, func(t *testing.T, near *cluster, o *far) {
		o.lead()
		time.Sleep(time.Minute)
		issuer := func() string { return ca.Hex(mustSign(t, o.Caller(), "dc2").leaf.AuthorityKeyId) }
		first := issuer()
		// Half of its life later it is another.
		time.Sleep(life/2 + time.Hour)
		second := issuer()
		if second == first {
			t.Error("the intermediate was not renewed at half of its life")
		}
		o.lost.Store(true)
		began := time.Now()
		for day := range 9 {
			time.Sleep(life / 10)
			if day == 4 { // by another leader
				o.stop()
				o.another()
				o.lead()
			}
			p, err := sign(t, o.Caller(), "dc2")
			if err != nil {
				t.Fatalf("%v after the primary was lost: %v", time.Since(began), err)
			}
			if err := p.trusted(near.roots().Roots); err != nil {
				t.Fatalf("day %d: %v", day, err)
			}
		}
		if got := issuer(); got != second {
			t.Errorf("signed by %s, want %s", got, second)
		}
		// It ends when the intermediate does, and goes on when the primary is back.
		time.Sleep(life / 5)
		if _, err := sign(t, o.Caller(), "dc2"); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("signed with an intermediate that has ended: %v", err)
		}
		o.lost.Store(false)
		time.Sleep(2 * time.Minute)
		if p := mustSign(t, o.Caller(), "dc2"); p.trusted(near.roots().Roots) != nil {
			t.Error("what is signed after the primary is back is not trusted there")
		}
		if tries := strings.Count(o.log.String(), "will retry"); tries < int(life/(3*time.Hour)) || tries > int(life/(40*time.Second)) {
			t.Errorf("tried %d times", tries)
		}
		if strings.Contains(o.log.String(), "PRIVATE KEY") {
			t.Error("a key is in the log")
		}
	})
}

// A datacenter that had an authority of its own becomes part of the primary's.
func TestDatacenterWithItsOwnRootJoinsThePrimary(t *testing.T) {
	inDatacenters(t, nil, func(t *testing.T, near *cluster, o *far) {
		own := connectrpc.New(connectrpc.Config{Datacenter: "dc2"})
		if err := own.Initialize(t.Context(), o.Store, o.Apply); err != nil {
			t.Fatal(err)
		}
		before := o.roots()
		o.lost.Store(true)
		o.lead()
		time.Sleep(time.Minute)
		if now := o.roots(); now.ActiveRootID != before.ActiveRootID {
			t.Error("the root went before the primary was reached")
		}
		o.lost.Store(false)
		time.Sleep(2 * time.Minute)
		now := o.roots()
		if now.TrustDomain != near.roots().TrustDomain || len(now.Roots) != 1 || now.ActiveRootID != near.roots().ActiveRootID {
			t.Errorf("roots %+v", now)
		}
		if err := mustSign(t, o.Caller(), "dc2").trusted(near.roots().Roots); err != nil {
			t.Error(err)
		}
	})
}

// A secondary datacenter that lacks the right is told so, and has no authority meanwhile.
func TestReplicationTokenNeedsOperatorWrite(t *testing.T) {
	inDatacenters(t, nil, func(t *testing.T, near *cluster, o *far) {
		near.Resolve = func(string) (*acl.Authorizer, error) { return acl.New(reader{}, "acc"), nil }
		o.lead()
		time.Sleep(time.Minute)
		if len(o.roots().Roots) != 0 || !strings.Contains(o.log.String(), "operator:write") {
			t.Errorf("%d roots, log:\n%s", len(o.roots().Roots), o.log)
		}
	})
}

func TestThePrimaryWaitsForOtherDatacenters(t *testing.T) {
	inDatacenters(t, nil, func(t *testing.T, near *cluster, o *far) {
		near.node("n1", passing, sidecar+"web-sidecar-proxy")
		o.node("n2", passing, sidecar+"api-sidecar-proxy")
		o.lead()
		time.Sleep(time.Minute)
		near.rotate(ca.RotateRequest{})
		time.Sleep(10 * time.Second)
		r := near.want("nobody has confirmed", ca.PhaseSpreading, "datacenter dc2", "n1")
		if got := r.Nodes[0].Waiting; !slices.Equal(got, []string{"1 of 1 nodes"}) {
			t.Errorf("datacenter dc2 waits for %q", got)
		}
		near.confirm("n1")
		time.Sleep(3 * time.Minute)
		near.want("the nodes here have confirmed", ca.PhaseSpreading, "datacenter dc2")
		o.confirm("n2")
		time.Sleep(10 * time.Second)
		near.want("everybody has confirmed", ca.PhaseSigning, "datacenter dc2", "n1")
		near.confirm("n1")
		o.confirm("n2")
		time.Sleep(10 * time.Second)
		near.want("everybody has new leaves", ca.PhaseRetiring)
		o.want("everybody here has", ca.PhaseRetiring)

		// One that is lost is waited for no longer than two minutes.
		near.rotate(ca.RotateRequest{})
		time.Sleep(10 * time.Second)
		near.confirm("n1")
		o.lost.Store(true)
		time.Sleep(time.Minute)
		near.want("the other is lost", ca.PhaseSpreading, "datacenter dc2")
		time.Sleep(90 * time.Second)
		near.want("it is known to be lost", ca.PhaseSigning, "n1")

		for _, r := range []ca.ConfirmDatacenterRequest{
			{}, {FromDatacenter: "dc1"}, {FromDatacenter: "a/b"}, {FromDatacenter: "dc2", Required: -1}, {FromDatacenter: "dc2", NewRootID: strings.Repeat("x", 1000)},
		} {
			if _, err := ca.ConfirmDatacenterCall.Call(t.Context(), near.Caller(), &r); wireerr.Status(err) != http.StatusBadRequest {
				t.Errorf("%+v was taken: %v", r, err)
			}
		}
	})
}
