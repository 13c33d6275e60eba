package server_test

import (
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
	"github.com/sarnmesh/sarn/server/aclrpc"
)

// TestASecondaryDatacenterSignsUnderThePrimarysRoot does so over the WAN, while the leader there changes, and while the
// primary datacenter is lost.
func TestASecondaryDatacenterSignsUnderThePrimarysRoot(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		network := testkit.NewNetwork(13)
		network.SetAll(testkit.Link{Delay: time.Millisecond, Jitter: time.Millisecond})
		var dcs []*cluster
		for i, n := range []int{1, 3} {
			conf := aclrpc.Config{Enabled: true, DefaultPolicy: aclrpc.Deny, PrimaryDatacenter: "dc1", InitialManagement: root, TokenReplication: true}
			dcs = append(dcs, newClusterIn(t, network, []string{"10.0.1", "10.0.2"}[i], n, server.Config{
				Datacenter: []string{"dc1", "dc2"}[i], WAN: &gossip.Config{}, ACL: conf, ReplicationToken: func() string { return root },
			}))
		}
		home, far := dcs[0].nodes[0], dcs[1]
		roots := func(o *node) *ca.RootsReply { return call(t, o, ca.RootsCall, &ca.RootsRequest{}) }
		if got := roots(far.nodes[0]); len(got.Roots) != 0 {
			t.Errorf("%d roots before the primary was reached", len(got.Roots))
		}
		if _, err := far.follower().WAN().Join([]string{home.host.Addr().String() + ":8302"}); err != nil {
			t.Fatal(err)
		}
		sign := func() error {
			known := roots(far.follower())
			key, err := ca.GenerateKey(rand.Reader, ca.KeyEC, 256)
			if err != nil {
				t.Fatal(err)
			}
			csr, err := ca.NewCSR(connect.ServiceID(known.TrustDomain, "dc2", "web"), key, rand.Reader)
			if err != nil {
				return err
			}
			req := &ca.SignRequest{CSR: csr}
			req.Token = root
			reply, err := ca.SignCall.Call(t.Context(), far.follower().Caller(), req)
			if err != nil {
				return err
			}
			certs, err := ca.ParseCertificates(reply.Leaf.CertPEM)
			if err != nil || len(certs) < 2 {
				t.Fatalf("%d certificates, %v", len(certs), err)
			}
			pool, between := x509.NewCertPool(), x509.NewCertPool()
			pool.AppendCertsFromPEM([]byte(known.Active().RootCert))
			for _, c := range certs[1:] {
				between.AddCert(c)
			}
			_, err = certs[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
			return err
		}
		signs := func() bool { return sign() == nil }
		far.within(3*time.Minute, "the primary has signed an intermediate", signs)
		if a, b := roots(home), roots(far.nodes[0]); a.ActiveRootID != b.ActiveRootID || a.TrustDomain != b.TrustDomain {
			t.Errorf("%s of %s, %s of %s", a.ActiveRootID, a.TrustDomain, b.ActiveRootID, b.TrustDomain)
		}
		// It is replicated: another leader signs with it, when there is no primary to ask too.
		home.crash()
		old := far.leader()
		old.crash()
		far.leader()
		far.within(time.Minute, "another leader signs", signs)
		old.start()
		far.leader()
		home.start()
		dcs[0].leader()
		far.within(3*time.Minute, "all are back", signs)
		before := roots(home).ActiveRootID
		rotate := &ca.RotateRequest{}
		rotate.Token = root
		far.within(3*time.Minute, "the root is replaced from here", func() bool {
			_, err := ca.RotateCall.Call(t.Context(), far.follower().Caller(), rotate)
			return err == nil
		})
		far.within(3*time.Minute, "the new root has arrived", func() bool {
			a, b := roots(home).ActiveRootID, roots(far.follower()).ActiveRootID
			return a != before && a == b
		})
		if err := sign(); err != nil {
			t.Error(err)
		}
	})
}
