package server_test

import (
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
	"github.com/sarnmesh/sarn/server/aclrpc"
)

const root = "e95b599e-166e-7d80-08ad-aee76e7ddf19"

func call[Req, Resp any](t *testing.T, o *node, m rpc.Method[Req, Resp], req *Req) *Resp {
	t.Helper()
	r, err := m.Call(t.Context(), o.Caller(), req)
	if err != nil {
		t.Fatalf("%s: %v", m.Name, err)
	}
	return r
}

// TestACLsAreCopiedFromThePrimaryDatacenter also is spec/threats.md, class 7: what a token may do does not depend on where
// it is used, unless it is local.
func TestACLsAreCopiedFromThePrimaryDatacenter(t *testing.T) {
	for _, tokens := range []bool{true, false} {
		name := "policies"
		if tokens {
			name = "tokens"
		}
		t.Run(name, func(t *testing.T) { testkit.Bubble(t, func(t *testing.T) { replication(t, tokens) }) })
	}
}

func replication(t *testing.T, tokens bool) {
	network := testkit.NewNetwork(11)
	network.SetAll(testkit.Link{Delay: time.Millisecond, Jitter: time.Millisecond})
	var dcs []*cluster
	for i, n := range []int{1, 3} {
		conf := aclrpc.Config{Enabled: true, DefaultPolicy: aclrpc.Deny, PrimaryDatacenter: "dc1", InitialManagement: root, TokenReplication: tokens}
		dcs = append(dcs, newClusterIn(t, network, []string{"10.0.1", "10.0.2"}[i], n, server.Config{
			Datacenter: []string{"dc1", "dc2"}[i], WAN: &gossip.Config{}, ACL: conf, ReplicationToken: func() string { return root },
		}))
	}
	home, far := dcs[0].nodes[0], dcs[1].follower()
	if _, err := far.WAN().Join([]string{home.host.Addr().String() + ":8302"}); err != nil {
		t.Fatal(err)
	}
	boss := read.Target{Token: root}
	dcs[1].within(2*time.Minute, "the management token is good in both", func() bool {
		_, err := access.PolicyListCall.Call(t.Context(), far.Caller(), &access.ListRequest{Options: read.Options{Target: boss}})
		return err == nil
	})
	may := func(o *node, secret, key string) error {
		_, err := kv.ApplyCall.Call(t.Context(), o.Caller(), &kv.ApplyRequest{Target: read.Target{Token: secret}, Op: kv.OpSet, Entry: kv.Entry{Key: key}})
		return err
	}
	// Written anywhere, good everywhere.
	policy := call(t, far, access.PolicySetCall, &access.PolicySetRequest{Target: boss, Policy: acl.Policy{Name: "a", Rules: `key_prefix "a/" { policy = "write" }`}}).Policy
	role := call(t, far, access.RoleSetCall, &access.RoleSetRequest{Target: boss, Role: acl.Role{Name: "r", Policies: []acl.Link{{Name: "a"}}}}).Role
	token := call(t, far, access.TokenSetCall, &access.TokenSetRequest{Target: boss, Create: true, Token: acl.Token{Roles: []acl.Link{{ID: role.ID}}}}).Token
	dcs[1].within(time.Minute, "the new token is good in both", func() bool {
		return may(home, token.SecretID, "a/x") == nil && may(far, token.SecretID, "a/x") == nil && may(dcs[1].nodes[0], token.SecretID, "a/y") == nil
	})
	if err := may(far, token.SecretID, "b/x"); err == nil || !strings.Contains(err.Error(), "lacks permission 'key:write'") {
		t.Errorf("what no rule grants: %v", err)
	}
	dcs[1].within(time.Minute, "the policy is copied", func() bool {
		return len(call(t, far, access.PolicyListCall, &access.ListRequest{Options: read.Options{Target: boss}}).Policies) == 3
	})
	local, err := access.TokenSetCall.Call(t.Context(), far.Caller(), &access.TokenSetRequest{Target: boss, Create: true, Token: acl.Token{Local: true, Policies: []acl.Link{{Name: "a"}}}})
	switch {
	case !tokens:
		if err == nil || !strings.Contains(err.Error(), "Local tokens are disabled") {
			t.Errorf("a local token without token replication: %v", err)
		}
	case err != nil:
		t.Fatal(err)
	default:
		if err := may(far, local.Token.SecretID, "a/l"); err != nil {
			t.Error(err)
		}
		if err := may(home, local.Token.SecretID, "a/l"); err == nil {
			t.Error("a local token is good in another datacenter")
		}
	}
	// So it is with configuration entries.
	set := func(o *node, e entry.Entry) error {
		_, err := entry.ApplyCall.Call(t.Context(), o.Caller(), &entry.ApplyRequest{Target: boss, Entry: entry.Any{Entry: e}})
		return err
	}
	defaults := &entry.ServiceDefaults{Protocol: "http"}
	defaults.Kind, defaults.Name = entry.KindServiceDefaults, "web"
	router := &entry.ServiceRouter{}
	router.Kind, router.Name = entry.KindServiceRouter, "web"
	if err := set(far, router); err == nil {
		t.Error("a router for a service that speaks no HTTP was written")
	}
	for _, e := range []entry.Entry{defaults, router} {
		if err := set(far, e); err != nil {
			t.Fatal(err)
		}
	}
	has := func(o *node, kind entry.Kind) bool {
		return call(t, o, entry.GetCall, &entry.GetRequest{Options: read.Options{Target: boss}, Kind: kind, Name: "web"}).Entry.Entry != nil
	}
	if !has(home, entry.KindServiceRouter) {
		t.Error("the entry was not written in the primary datacenter")
	}
	dcs[1].within(time.Minute, "the entries are copied", func() bool { return has(far, entry.KindServiceRouter) && has(far, entry.KindServiceDefaults) })
	call(t, far, entry.DeleteCall, &entry.DeleteRequest{Target: boss, Kind: entry.KindServiceRouter, Name: "web"})
	dcs[1].within(time.Minute, "the deletion is copied", func() bool { return !has(far, entry.KindServiceRouter) && has(far, entry.KindServiceDefaults) })

	// What is taken away there is gone here, within the bound.
	call(t, home, access.PolicySetCall, &access.PolicySetRequest{Target: boss, Policy: acl.Policy{ID: policy.ID, Name: "a", Rules: `key_prefix "z/" { policy = "write" }`}})
	dcs[1].within(time.Minute, "the changed policy holds", func() bool { return may(far, token.SecretID, "a/x") != nil && may(far, token.SecretID, "z/x") == nil })
	if tokens { // the primary one may be lost: here goes on what was copied
		home.crash()
		time.Sleep(time.Minute)
		if err := may(far, token.SecretID, "z/y"); err != nil {
			t.Errorf("while the primary datacenter is lost: %v", err)
		}
		if s := call(t, far, access.ReplicationCall, &access.ReplicationRequest{}); !s.Running || s.ReplicationType != "tokens" || s.LastErrorMessage == "" {
			t.Errorf("status %+v", s)
		}
		home.start()
		dcs[0].leader()
	}
	dcs[1].within(3*time.Minute, "it is copied again", func() bool {
		_, err := access.TokenDeleteCall.Call(t.Context(), home.Caller(), &access.DeleteRequest{Target: boss, ID: token.AccessorID})
		return err == nil
	})
	dcs[1].within(3*time.Minute, "the deleted token is refused", func() bool { return may(far, token.SecretID, "z/x") != nil })
	if tokens {
		if err := may(far, local.Token.SecretID, "z/l"); err != nil {
			t.Errorf("the local token went with the others: %v", err)
		}
	}
	// Nothing is written once all is equal.
	time.Sleep(10 * time.Second)
	written := func() uint64 {
		_, entries := far.Store().View().Entries(entry.KindServiceDefaults)
		return far.Store().View().ACLIndex() + entries[0].Head().ModifyIndex
	}
	before := written()
	quiet := 20 * time.Minute
	if testing.Short() {
		quiet = 2 * time.Minute
	}
	time.Sleep(quiet)
	if after := written(); after != before {
		t.Errorf("the index rose from %d to %d without a change", before, after)
	}
}
