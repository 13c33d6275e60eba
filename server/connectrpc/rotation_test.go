package connectrpc_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/connectrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
)

// A cluster is a leader's authority with a catalog, in virtual time.
type cluster struct {
	*rpctest.Server
	t    *testing.T
	a    *connectrpc.Authority
	log  *journal
	stop func() // ends the leadership
}

// A journal is a log that can be read while it is written.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// inCluster runs a test with a leader in a bubble.
func inCluster(t *testing.T, settings map[string]any, f func(t *testing.T, c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{Server: rpctest.New(), t: t, log: new(journal)}
		c.a = connectrpc.New(connectrpc.Config{Settings: settings, Logger: hclog.New(&hclog.LoggerOptions{Output: c.log})})
		c.a.Register(&c.Registry, &c.Appliers)
		catalogrpc.Register(&c.Registry, &c.Appliers, catalogrpc.Config{})
		c.lead()
		defer func() { c.stop() }()
		f(t, c)
	})
}

// lead begins a leadership.
func (c *cluster) lead() {
	c.t.Helper()
	if err := c.a.Initialize(c.t.Context(), c.Store, c.Apply); err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.a.Rotate(ctx, c.Store, c.Apply)
	}()
	c.stop = func() { cancel(); <-done }
	synctest.Wait()
}

// node registers a node, with a check of gossip's unless the status is empty, and services given as kind:name.
func (c *cluster) node(name, status string, services ...string) {
	c.t.Helper()
	put := func(r *catalog.RegisterRequest) {
		r.Node, r.Address = name, "10.0.0.1"
		if _, err := catalog.RegisterCall.Call(c.t.Context(), c.Caller(), r); err != nil {
			c.t.Fatal(err)
		}
	}
	r := &catalog.RegisterRequest{}
	if status != "" {
		r.Check = &catalog.Check{Node: name, CheckID: catalog.SerfCheckID, Name: "serf", Status: status}
	}
	put(r)
	for _, s := range services {
		kind, id, _ := strings.Cut(s, ":")
		svc := &catalog.Service{ID: id, Service: id, Port: 1}
		switch kind {
		case "native":
			svc.Connect.Native = true
		case "plain":
		default:
			svc.Kind = kind
			if kind == catalog.KindConnectProxy {
				svc.Proxy.DestinationServiceName = strings.TrimSuffix(id, "-sidecar-proxy")
			}
		}
		put(&catalog.RegisterRequest{Service: svc})
	}
	synctest.Wait()
}

func (c *cluster) roots() *ca.RootsReply { return roots(c.t, c.Caller()) }

// confirm has a node tell that it trusts the present roots, but for proxies that wait.
func (c *cluster) confirm(node string, waiting ...string) *ca.ConfirmReply {
	c.t.Helper()
	return c.tell(&ca.ConfirmRequest{Node: node, Missing: len(waiting), Waiting: waiting})
}

func (c *cluster) tell(r *ca.ConfirmRequest) *ca.ConfirmReply {
	c.t.Helper()
	now := c.roots()
	r.Bundle, r.ActiveRoot = ca.Bundle(now.Roots), now.ActiveRootID
	reply, err := ca.ConfirmCall.Call(c.t.Context(), c.Caller(), r)
	if err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
	return reply
}

func (c *cluster) rotate(r ca.RotateRequest) {
	c.t.Helper()
	if _, err := ca.RotateCall.Call(c.t.Context(), c.Caller(), &r); err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
}

func (c *cluster) set(config map[string]any) {
	c.t.Helper()
	if err := setConfig(c.t.Context(), c.Caller(), config); err != nil {
		c.t.Fatal(err)
	}
	synctest.Wait()
}

func (c *cluster) rotation() *ca.Rotation {
	c.t.Helper()
	r, err := ca.RotationCall.Call(c.t.Context(), c.Caller(), &ca.RotationRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	return r
}

// want checks the phase and who is awaited.
func (c *cluster) want(what, phase string, awaited ...string) *ca.Rotation {
	c.t.Helper()
	r := c.rotation()
	got := []string{}
	for _, n := range r.Nodes {
		if !n.Confirmed {
			got = append(got, n.Node)
		}
	}
	if r.Phase != phase || !slices.Equal(got, awaited) && len(got)+len(awaited) > 0 {
		c.t.Errorf("%s: %s, awaiting %v; want %s, %v", what, r.Phase, got, phase, awaited)
	}
	if r.Required-r.Confirmed != len(got) {
		c.t.Errorf("%s: %d of %d confirmed, and %d awaited", what, r.Confirmed, r.Required, len(got))
	}
	return r
}

// signer returns the ID of the root that signs, and how many certificates a new leaf brings.
func (c *cluster) signer() (string, int) {
	c.t.Helper()
	reply, err := ca.SignCall.Call(c.t.Context(), c.Caller(), &ca.SignRequest{CSR: csr(c.t, connect.ServiceID(c.roots().TrustDomain, "dc1", "web"))})
	if err != nil {
		c.t.Fatal(err)
	}
	return reply.Leaf.RootID, strings.Count(reply.Leaf.CertPEM, "BEGIN CERTIFICATE")
}

const (
	sidecar = catalog.KindConnectProxy + ":"
	passing = catalog.Passing
)

func TestNewRootSignsNothingUntilEveryNodeTrustsIt(t *testing.T) {
	inCluster(t, nil, func(t *testing.T, c *cluster) {
		c.node("n1", passing, sidecar+"web-sidecar-proxy", "plain:web")
		c.node("n2", passing, "native:api")
		c.node("n3", passing, catalog.KindMeshGateway+":gateway")
		c.node("n4", passing, "plain:db")
		c.node("n5", catalog.Critical, sidecar+"old-sidecar-proxy")
		old := c.roots().ActiveRootID
		c.want("before", ca.PhaseNone)

		c.set(map[string]any{"LeafCertTTL": "10h", "PrivateKeyBits": 384})
		r := c.want("told of by nobody", ca.PhaseSpreading, "n1", "n2", "n3")
		now := c.roots()
		var pending *ca.Root
		for _, root := range now.Roots {
			if root.ID != old {
				pending = root
			}
		}
		if len(now.Roots) != 2 || now.ActiveRootID != old || pending == nil || pending.Active || pending.PrivateKeyBits != 384 ||
			len(pending.IntermediateCerts) != 1 || r.NewRootID != pending.ID || !slices.Equal(r.OldRootIDs, []string{old}) {
			t.Fatalf("roots while one is spread: %+v, %+v", now, r)
		}
		if by, n := c.signer(); by != old || n != 1 {
			t.Errorf("signed by %s with %d certificates while %s is spread", by, n, pending.ID)
		}
		for range 3 {
			time.Sleep(time.Minute)
			c.want("later", ca.PhaseSpreading, "n1", "n2", "n3")
		}
		if !c.confirm("n1").Again {
			t.Error("n1 need not tell again")
		}
		c.confirm("N2")
		c.confirm("n3", "gateway")
		r = c.want("a proxy is missing", ca.PhaseSpreading, "n3")
		if n := r.Nodes[0]; n.Missing != 1 || !slices.Equal(n.Waiting, []string{"gateway"}) || n.Seen.IsZero() {
			t.Errorf("what n3 waits for: %+v", n)
		}
		c.confirm("n3")
		r = c.want("all trust it", ca.PhaseSigning, "n1", "n2", "n3") // they do not know yet that it is active
		if by, n := c.signer(); by != pending.ID || n != 2 || r.NewRootID != by {
			t.Errorf("signed by %s with %d certificates, want %s", by, n, pending.ID)
		}
		for _, n := range []string{"n1", "n2", "n3"} {
			c.tell(&ca.ConfirmRequest{Node: n, Leaves: 3, OldLeaves: 2})
		}
		c.want("leaves are of the old root", ca.PhaseSigning, "n1", "n2", "n3")
		for _, n := range []string{"n1", "n2", "n3"} {
			c.tell(&ca.ConfirmRequest{Node: n, Leaves: 3})
		}
		if c.confirm("n1").Again {
			t.Error("n1 is to tell again when all is done")
		}
		r = c.want("all leaves are new", ca.PhaseRetiring)
		// Leaves lived three days before the rotation.
		if left := time.Until(r.Until); left < 143*time.Hour || left > 144*time.Hour {
			t.Errorf("the old root is trusted for %v", left)
		}
		for c.rotation().Phase == ca.PhaseRetiring {
			if time.Since(r.Until) > 2*time.Hour {
				t.Fatal("the old root stays")
			}
			if by, _ := c.signer(); by != pending.ID {
				t.Fatalf("signed by %s", by)
			}
			time.Sleep(time.Hour)
			if err := c.a.Maintain(t.Context(), c.Store, c.Apply); err != nil {
				t.Fatal(err)
			}
		}
		if now := c.roots(); len(now.Roots) != 1 || time.Now().Before(r.Until) {
			t.Errorf("roots after it: %+v", now)
		}
	})
}

func TestNobodyToConfirmMeansNoWait(t *testing.T) {
	inCluster(t, nil, func(t *testing.T, c *cluster) {
		c.node("n1", passing, "plain:db")
		c.node("n2", catalog.Critical, sidecar+"web-sidecar-proxy")
		if err := setConfig(t.Context(), c.Caller(), map[string]any{"PrivateKeyBits": 384}); err != nil {
			t.Fatal(err)
		}
		if got := c.roots().Active(); got.PrivateKeyBits != 384 || len(got.IntermediateCerts) != 1 {
			t.Errorf("active at once: %+v", got)
		}
		c.want("nobody", ca.PhaseRetiring)
	})
}

func TestWaitingForConfirmationsIsBounded(t *testing.T) {
	inCluster(t, map[string]any{"rotation_confirm_timeout": "90s"}, func(t *testing.T, c *cluster) {
		c.node("n1", passing, sidecar+"web-sidecar-proxy")
		c.node("n2", passing, sidecar+"db-sidecar-proxy")
		c.node("n3", passing, sidecar+"api-sidecar-proxy") // of an older version: never says a word
		old := c.roots().ActiveRootID
		c.rotate(ca.RotateRequest{})
		c.confirm("n1")
		c.confirm("n2", "db-sidecar-proxy (not connected)")
		time.Sleep(89 * time.Second)
		if r := c.want("before the end", ca.PhaseSpreading, "n2", "n3"); time.Until(r.Until) != time.Second {
			t.Errorf("until %v", r.Until)
		}
		time.Sleep(2 * time.Second)
		if got := c.roots().ActiveRootID; got == old {
			t.Error("the old root is active")
		}
		for _, want := range []string{"[WARN]", "awaited", "n2: db-sidecar-proxy (not connected); n3"} {
			if !strings.Contains(c.log.String(), want) {
				t.Errorf("%q is not in the log: %s", want, c.log)
			}
		}
		// The next phase ends, too.
		c.want("signing", ca.PhaseSigning, "n1", "n2", "n3")
		time.Sleep(90 * time.Second)
		c.want("in the end", ca.PhaseRetiring, "n1", "n2", "n3")
	})
}

func TestFailedNodesAreNotWaitedFor(t *testing.T) {
	inCluster(t, nil, func(t *testing.T, c *cluster) {
		c.node("n1", passing, sidecar+"web-sidecar-proxy")
		c.node("n2", passing, sidecar+"db-sidecar-proxy")
		c.rotate(ca.RotateRequest{})
		c.confirm("n1")
		c.want("n2 is alive", ca.PhaseSpreading, "n2")
		c.node("n2", catalog.Critical)
		time.Sleep(2 * time.Second)
		c.want("n2 has failed", ca.PhaseSigning, "n1")
	})
}

func TestServersConfirmForProxiesWithoutAnAgent(t *testing.T) {
	inCluster(t, nil, func(t *testing.T, c *cluster) {
		c.node("s1", passing, "plain:"+catalog.ServerServiceName)
		c.node("s2", passing, "plain:"+catalog.ServerServiceName)
		c.node("pod", "", sidecar+"web-sidecar-proxy")
		c.rotate(ca.RotateRequest{})
		c.want("any server may serve it", ca.PhaseSpreading, "s1", "s2")
		c.confirm("s1", "web-sidecar-proxy on pod")
		c.confirm("s2")
		c.want("s1 serves it", ca.PhaseSpreading, "s1")
		c.confirm("s1")
		c.want("it has confirmed", ca.PhaseSigning, "s1", "s2")
	})
}

// A node that need not confirm, but says that a proxy is missing, is waited for.
func TestMissingProxiesCountWhereverTheyAre(t *testing.T) {
	inCluster(t, nil, func(t *testing.T, c *cluster) {
		c.node("n1", passing, sidecar+"web-sidecar-proxy")
		c.node("n2", passing)
		c.rotate(ca.RotateRequest{})
		c.confirm("N2", "a proxy that is registered elsewhere")
		c.confirm("N1", "web-sidecar-proxy")
		c.want("both are missing some", ca.PhaseSpreading, "n1", "n2")
		c.confirm("n1")
		c.want("n2 has a proxy", ca.PhaseSpreading, "n2")
		c.confirm("n2")
		c.want("it has confirmed", ca.PhaseSigning, "n1")
	})
}

func TestAnotherRotationReplacesThePendingRoot(t *testing.T) {
	inCluster(t, nil, func(t *testing.T, c *cluster) {
		c.node("n1", passing, sidecar+"web-sidecar-proxy")
		c.node("n2", passing, sidecar+"db-sidecar-proxy")
		first := c.roots().ActiveRootID
		c.set(map[string]any{"PrivateKeyBits": 384})
		second := c.rotation().NewRootID
		c.confirm("n1")
		bundle := ca.Bundle(c.roots().Roots)

		// Settings that do not concern the key leave it as it is.
		c.set(map[string]any{"PrivateKeyBits": 384, "LeafCertTTL": "5h"})
		if r := c.want("other settings", ca.PhaseSpreading, "n2"); r.NewRootID != second {
			t.Errorf("another root is spread: %+v", r)
		}
		c.set(map[string]any{"PrivateKeyBits": 521})
		third := c.want("another key", ca.PhaseSpreading, "n1", "n2").NewRootID
		now := c.roots()
		if third == second || third == first || len(now.Roots) != 2 || now.ActiveRootID != first {
			t.Errorf("roots: %+v", now)
		}
		if c.Store.View().CAProvider(second) != nil {
			t.Error("the key of the root that was replaced is kept")
		}
		// What was said about the other root counts for nothing, also when it comes late.
		for _, late := range []*ca.ConfirmRequest{{Node: "n2", Bundle: bundle, Confirmed: 1}, {Node: "n2", Bundle: bundle, Missing: 1, Waiting: []string{"db"}}} {
			if _, err := ca.ConfirmCall.Call(t.Context(), c.Caller(), late); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			r := c.want("late", ca.PhaseSpreading, "n1", "n2")
			if n := r.Nodes[1]; n.Proxies != 0 || n.Missing != 0 || len(n.Waiting) != 0 || n.Seen.IsZero() {
				t.Errorf("what was said about other roots is shown: %+v", n)
			}
		}

		// The key that is in use, asked for again, ends the rotation.
		c.set(map[string]any{"PrivateKeyBits": 256})
		c.want("withdrawn", ca.PhaseNone)
		if now := c.roots(); len(now.Roots) != 1 || now.ActiveRootID != first {
			t.Errorf("roots: %+v", now)
		}
		if by, _ := c.signer(); by != first {
			t.Errorf("signed by %s", by)
		}
		// And so does another, until it is done.
		c.set(map[string]any{"PrivateKeyBits": 384})
		c.confirm("n1")
		c.confirm("n2")
		if by, _ := c.signer(); by == first || by == second {
			t.Errorf("signed by %s", by)
		}
	})
}

func TestForcedRotation(t *testing.T) {
	inCluster(t, nil, func(t *testing.T, c *cluster) {
		c.node("n1", passing, sidecar+"web-sidecar-proxy")
		c.rotate(ca.RotateRequest{PrivateKeyType: "rsa"})
		pending := c.want("not forced", ca.PhaseSpreading, "n1").NewRootID
		c.rotate(ca.RotateRequest{Force: true})
		active := c.roots().Active()
		if active.ID != pending || active.PrivateKeyType != "rsa" || active.PrivateKeyBits != 2048 {
			t.Errorf("forced: %+v", active)
		}
		c.rotate(ca.RotateRequest{PrivateKeyType: "ec", PrivateKeyBits: 521, Force: true})
		if active := c.roots().Active(); active.PrivateKeyBits != 521 || len(active.IntermediateCerts) != 1 {
			t.Errorf("a new one, forced: %+v", active)
		}
		c.rotate(ca.RotateRequest{Force: true})
		if now := c.roots(); len(now.Roots) != 4 || now.Active().PrivateKeyBits != 521 {
			t.Errorf("one like it, forced: %+v", now)
		}
		conf, err := ca.ConfigCall.Call(t.Context(), c.Caller(), &ca.ConfigRequest{})
		if err != nil || conf.Config.Config["PrivateKeyType"] != "ec" || fmt.Sprint(conf.Config.Config["PrivateKeyBits"]) != "521" {
			t.Errorf("configuration %v, %v", conf.Config, err)
		}
	})
}

func TestAnotherLeaderGoesOn(t *testing.T) {
	inCluster(t, map[string]any{"rotation_confirm_timeout": "5m"}, func(t *testing.T, c *cluster) {
		c.node("n1", passing, sidecar+"web-sidecar-proxy")
		c.node("n2", passing, sidecar+"db-sidecar-proxy")
		c.rotate(ca.RotateRequest{})
		c.confirm("n1")
		pending := c.want("before", ca.PhaseSpreading, "n2").NewRootID
		time.Sleep(time.Minute)
		c.stop()
		c.confirm("n2") // told to nobody who could act
		time.Sleep(time.Minute)
		c.lead()
		if r := c.want("the new leader knows of nobody", ca.PhaseSpreading, "n1", "n2"); r.NewRootID != pending || time.Until(r.Until) != 3*time.Minute {
			t.Errorf("%+v", r)
		}
		c.confirm("n1")
		c.confirm("n2")
		if by, _ := c.signer(); by != pending {
			t.Errorf("signed by %s, want %s", by, pending)
		}
		// In the next phase, too: what was told is told again.
		c.tell(&ca.ConfirmRequest{Node: "n1", Leaves: 1})
		c.stop()
		c.lead()
		c.want("signing", ca.PhaseSigning, "n1", "n2")
		c.confirm("n1")
		c.confirm("n2")
		c.want("done", ca.PhaseRetiring)
	})
	inCluster(t, nil, func(t *testing.T, c *cluster) {
		c.node("n1", passing, sidecar+"web-sidecar-proxy")
		c.rotate(ca.RotateRequest{})
		c.stop()
		time.Sleep(time.Hour) // without a leader
		c.lead()
		c.want("the time is over", ca.PhaseSigning, "n1")
	})
}

func TestRotationByAge(t *testing.T) {
	settings := map[string]any{"leaf_cert_ttl": "2h", "intermediate_cert_ttl": "20h", "root_cert_ttl": "1000h", "rotation_period": "24h"}
	inCluster(t, settings, func(t *testing.T, c *cluster) {
		c.node("n1", passing, sidecar+"web-sidecar-proxy")
		var switched []time.Time
		last := c.roots().ActiveRootID
		for range 20 * 24 {
			if err := c.a.Maintain(t.Context(), c.Store, c.Apply); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if c.rotation().Phase == ca.PhaseSpreading {
				time.Sleep(3 * time.Minute) // as long as the proxies take
				if err := c.a.Maintain(t.Context(), c.Store, c.Apply); err != nil {
					t.Fatal(err)
				}
				c.confirm("n1")
			}
			now := c.roots()
			if now.ActiveRootID != last {
				last = now.ActiveRootID
				switched = append(switched, time.Now())
			}
			if len(now.Roots) > 2 {
				t.Fatalf("%d roots", len(now.Roots))
			}
			time.Sleep(time.Hour)
		}
		if len(switched) < 18 || len(switched) > 20 {
			t.Errorf("rotated at %v", switched)
		}
		for i := 1; i < len(switched); i++ {
			if d := switched[i].Sub(switched[i-1]); d < 24*time.Hour || d > 26*time.Hour {
				t.Errorf("%v between rotations", d)
			}
		}
	})
}

func TestGivenKeysAreNotReplacedUnasked(t *testing.T) {
	key, err := ca.GenerateKey(rand.Reader, "ec", 256)
	if err != nil {
		t.Fatal(err)
	}
	text, err := ca.EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	inCluster(t, map[string]any{"private_key": text}, func(t *testing.T, c *cluster) {
		_, err := ca.RotateCall.Call(t.Context(), c.Caller(), &ca.RotateRequest{})
		if wireerr.Status(err) != 400 || !strings.Contains(err.Error(), "given by the operator") {
			t.Errorf("rotated: %v", err)
		}
		c.rotate(ca.RotateRequest{PrivateKeyType: "ec"})
		if now := c.roots(); len(now.Roots) != 2 || len(now.Active().IntermediateCerts) != 1 {
			t.Errorf("asked for: %+v", now)
		}
		c.rotate(ca.RotateRequest{}) // now that it is generated
		if err := setConfig(t.Context(), c.Caller(), map[string]any{"PrivateKey": text, "RotationPeriod": "100h"}); err == nil ||
			!strings.Contains(err.Error(), "rotation period is for generated keys") {
			t.Errorf("a period for a given key: %v", err)
		}
	})
}

// The old root is trusted as long as any leaf of it can live, however short leaves have become.
func TestOldRootsOutliveTheirLeaves(t *testing.T) {
	inCluster(t, map[string]any{"leaf_cert_ttl": "100h"}, func(t *testing.T, c *cluster) {
		c.node("n1", passing, sidecar+"web-sidecar-proxy")
		c.set(map[string]any{"LeafCertTTL": "50h"})
		c.set(map[string]any{"LeafCertTTL": "1h"})
		c.rotate(ca.RotateRequest{})
		c.confirm("n1")
		c.confirm("n1")
		if r := c.want("rotated", ca.PhaseRetiring); time.Until(r.Until) != 200*time.Hour {
			t.Errorf("trusted for %v", time.Until(r.Until))
		}
		// The new root never signed such leaves.
		c.set(map[string]any{"LeafCertTTL": "2h"})
		c.rotate(ca.RotateRequest{Force: true})
		for _, root := range c.roots().Roots {
			if left := time.Until(root.PruneAfter); !root.Active && left != 200*time.Hour && left != 4*time.Hour {
				t.Errorf("trusted for %v", left)
			}
		}
	})
}

// An outside authority goes on signing while the root of another provider is spread, with the settings it had.
func TestRotationBetweenProvidersIsConfirmed(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		w := newWorld(t, connectrpc.Config{})
		catalogrpc.Register(&w.Registry, &w.Appliers, catalogrpc.Config{})
		c := &cluster{Server: w.Server, t: t, a: w.authority, log: w.log}
		c.lead()
		defer func() { c.stop() }()
		c.node("n1", passing, sidecar+"web-sidecar-proxy")
		first := c.roots().ActiveRootID
		set := func(provider string, config map[string]any) string {
			if err := w.set(t, provider, config, false); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			return c.rotation().NewRootID
		}

		// To Vault and, before it is confirmed, back again.
		set("vault", vaultConfig("root", "inter"))
		c.want("to Vault", ca.PhaseSpreading, "n1")
		if got := set("consul", map[string]any{}); got != first || len(c.roots().Roots) != 1 {
			t.Errorf("withdrawn: %s, was %s; %d roots", got, first, len(c.roots().Roots))
		}
		inVault := set("vault", vaultConfig("root", "inter"))
		w.leaf(t, c.roots().Active())
		if by, _ := c.signer(); by != first {
			t.Errorf("signed by %s while Vault's root is spread", by)
		}
		c.confirm("n1")
		if by, n := c.signer(); by != inVault || n != 3 {
			t.Errorf("signed by %s with %d certificates, want %s", by, n, inVault)
		}
		for _, root := range c.roots().Roots {
			w.leaf(t, root)
		}

		// Vault makes no other root by itself: nothing changes.
		index := c.Index()
		if _, err := ca.RotateCall.Call(t.Context(), c.Caller(), &ca.RotateRequest{}); err == nil || c.Index() != index {
			t.Errorf("rotated in Vault: %v", err)
		}

		// And back to the built-in provider: Vault signs until that is confirmed.
		time.Sleep(time.Hour)
		back := set("consul", map[string]any{"PrivateKeyBits": 384})
		for range 30 {
			if by, n := c.signer(); by != inVault || n != 3 {
				t.Fatalf("signed by %s with %d certificates while another root is spread", by, n)
			}
			time.Sleep(time.Second)
		}
		if err := c.a.Maintain(t.Context(), c.Store, c.Apply); err != nil {
			t.Fatal(err)
		}
		w.leaf(t, c.roots().Active())
		c.confirm("n1")
		if by, n := c.signer(); by != back || n != 2 {
			t.Errorf("signed by %s with %d certificates, want %s", by, n, back)
		}
	})
}

func TestRotationIsWaitedFor(t *testing.T) {
	inCluster(t, nil, func(t *testing.T, c *cluster) {
		c.node("n1", passing, sidecar+"web-sidecar-proxy")
		wait := func(index uint64, most time.Duration) (*ca.Rotation, time.Duration) {
			start := time.Now()
			r, err := ca.RotationCall.Call(t.Context(), c.Caller(), &ca.RotationRequest{MinIndex: index, MaxWait: most})
			if err != nil {
				t.Fatal(err)
			}
			return r, time.Since(start)
		}
		index := c.rotation().Index
		if _, took := wait(index, 3*time.Second); took != 3*time.Second {
			t.Errorf("nothing happened for %v", took)
		}
		if _, took := wait(index, time.Hour); took != 50*time.Second {
			t.Errorf("waited %v", took)
		}
		if _, took := wait(index+1000, time.Hour); took != 0 { // of another leader
			t.Errorf("waited %v", took)
		}
		go func() {
			time.Sleep(2 * time.Second)
			c.rotate(ca.RotateRequest{})
		}()
		r, took := wait(index, 0)
		if took != 2*time.Second || r.Phase != ca.PhaseSpreading {
			t.Errorf("after %v: %+v", took, r)
		}
		go func() {
			time.Sleep(time.Second)
			c.confirm("n1", "web-sidecar-proxy")
		}()
		if r, took = wait(r.Index, 0); took != time.Second || r.Nodes[0].Missing != 1 {
			t.Errorf("after %v: %+v", took, r.Nodes[0])
		}
	})
}

// nodeOf grants writing one node, and nothing else.
type nodeOf string

func (n nodeOf) Allows(r acl.Resource, _ acl.Access, name string) bool {
	return r == acl.Node && name == string(n)
}

func TestRightsToRotate(t *testing.T) {
	inCluster(t, nil, func(t *testing.T, c *cluster) {
		c.node("n1", passing, sidecar+"web-sidecar-proxy")
		c.node("n2", passing, sidecar+"db-sidecar-proxy")
		c.rotate(ca.RotateRequest{})
		index := c.Index()
		c.Resolve = func(token string) (*acl.Authorizer, error) {
			if token == "reader" {
				return acl.New(reader{}, "acc"), nil
			}
			return acl.New(nodeOf(token), "acc"), nil
		}
		n1 := read.Target{Token: "n1"}
		for what, err := range map[string]error{
			"node:write": func() error {
				_, err := ca.ConfirmCall.Call(t.Context(), c.Caller(), &ca.ConfirmRequest{Target: n1, Node: "n2"})
				return err
			}(),
			"operator:write": func() error {
				_, err := ca.RotateCall.Call(t.Context(), c.Caller(), &ca.RotateRequest{Target: read.Target{Token: "reader"}, Force: true})
				return err
			}(),
			"operator:read": func() error {
				_, err := ca.RotationCall.Call(t.Context(), c.Caller(), &ca.RotationRequest{Target: n1})
				return err
			}(),
		} {
			if wireerr.Status(err) != 403 || !strings.Contains(err.Error(), what) {
				t.Errorf("without %s: %v", what, err)
			}
		}
		// The catalog takes another spelling for the same node; its rights are those of the node that is there.
		if _, err := ca.ConfirmCall.Call(t.Context(), c.Caller(), &ca.ConfirmRequest{Target: read.Target{Token: "N2"}, Node: "N2"}); wireerr.Status(err) != 403 {
			t.Errorf("side door, by another spelling: %v", err)
		}
		long := strings.Repeat("x", 1000)
		for what, r := range map[string]ca.ConfirmRequest{
			"node":       {Node: "n1", Bundle: long},
			"root":       {Node: "n1", ActiveRoot: long},
			"negative":   {Node: "n1", Missing: -1},
			"too many":   {Node: "n1", Missing: 100, Waiting: make([]string, 100)},
			"more names": {Node: "n1", Missing: 1, Waiting: []string{"a", "b"}},
			"long name":  {Node: "n1", Missing: 1, Waiting: []string{long}},
		} {
			r.Target = n1
			if _, err := ca.ConfirmCall.Call(t.Context(), c.Caller(), &r); wireerr.Status(err) != 400 {
				t.Errorf("%s: %v", what, err)
			}
		}
		ghost := &ca.ConfirmRequest{Target: read.Target{Token: "ghost"}, Node: "ghost"}
		if _, err := ca.ConfirmCall.Call(t.Context(), c.Caller(), ghost); wireerr.Status(err) != 400 {
			t.Errorf("unknown node: %v", err)
		}
		if _, err := ca.ConfirmCall.Call(t.Context(), c.Caller(), &ca.ConfirmRequest{Target: n1, Node: "n1", Bundle: "x"}); err != nil {
			t.Error(err)
		}
		c.Resolve = nil
		if c.Index() != index {
			t.Error("something was written")
		}
		c.want("after all this", ca.PhaseSpreading, "n1", "n2")
	})
}

// BenchmarkConfirm has the nodes of a large cluster tell that they trust a new root.
func BenchmarkConfirm(b *testing.B) {
	s := rpctest.New()
	a := connectrpc.New(connectrpc.Config{})
	a.Register(&s.Registry, &s.Appliers)
	catalogrpc.Register(&s.Registry, &s.Appliers, catalogrpc.Config{})
	if err := a.Initialize(b.Context(), s.Store, s.Apply); err != nil {
		b.Fatal(err)
	}
	const nodes = 2000
	for i := range nodes {
		node := fmt.Sprintf("n%d", i)
		for j := range 5 {
			r := &catalog.RegisterRequest{Node: node, Address: "10.0.0.1", Service: &catalog.Service{
				Kind: catalog.KindConnectProxy, ID: fmt.Sprintf("svc%d", j), Service: fmt.Sprintf("svc%d", j), Port: 1,
				Proxy: catalog.Proxy{DestinationServiceName: "x"},
			}}
			if j == 0 {
				r.Check = &catalog.Check{Node: node, CheckID: catalog.SerfCheckID, Status: passing}
			}
			if _, err := catalog.RegisterCall.Call(b.Context(), s.Caller(), r); err != nil {
				b.Fatal(err)
			}
		}
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.Rotate(ctx, s.Store, s.Apply)
	}()
	defer func() { cancel(); <-done }()
	if _, err := ca.RotateCall.Call(b.Context(), s.Caller(), &ca.RotateRequest{}); err != nil {
		b.Fatal(err)
	}
	_, all := s.Store.View().CARoots()
	bundle := ca.Bundle(all)
	b.ResetTimer()
	for i := range b.N {
		r := &ca.ConfirmRequest{Node: fmt.Sprintf("n%d", i%(nodes-1)), Bundle: bundle, Confirmed: 5}
		if _, err := ca.ConfirmCall.Call(b.Context(), s.Caller(), r); err != nil {
			b.Fatal(err)
		}
	}
}
