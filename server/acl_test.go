package server_test

import (
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server"
	"github.com/sarnmesh/sarn/server/aclrpc"
)

// managementSecret is that of the token that clusters with access control begin with.
const managementSecret = "e95b599e-166e-7d80-08ad-aee76e7ddf19"

// A new cluster has its first token; new tokens are good on every server at once, expired ones on none, and what is
// known survives the leader.
func TestAccessControlOfACluster(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 11, 3, server.Config{ACL: aclrpc.Config{
			Enabled: true, DefaultPolicy: aclrpc.Deny, InitialManagement: managementSecret,
		}})
		get := func(o *node, secret string, mode read.Mode) error {
			_, err := kv.GetCall.Call(t.Context(), o.Caller(), &kv.GetRequest{Options: read.Options{Target: read.Target{Token: secret}, Mode: mode}, Key: "a"})
			return err
		}
		refused := func(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }
		c.within(5*time.Second, "the first token is made", func() bool { return get(c.follower(), managementSecret, read.Default) == nil })
		if err := get(c.leader(), "", read.Default); !refused(err, "anonymous token lacks permission 'key:read' on \"a\"") {
			t.Errorf("nobody: %v", err)
		}
		if err := get(c.follower(), "11111111-2222-3333-4444-555555555555", read.Stale); !refused(err, "ACL not found") {
			t.Errorf("unknown token: %v", err)
		}

		create := func(at *node, ttl time.Duration) *acl.Token {
			t.Helper()
			req := &access.TokenSetRequest{Create: true, TTL: ttl, Token: acl.Token{Policies: []acl.Link{{ID: acl.ReadOnlyID}}}}
			req.Target.Token = managementSecret
			reply, err := access.TokenSetCall.Call(t.Context(), at.Caller(), req)
			if err != nil {
				t.Fatal(err)
			}
			return reply.Token
		}
		// A server that has not heard of a token asks the leader.
		for range 20 {
			k := create(c.follower(), 0)
			for _, o := range c.nodes {
				if err := get(o, k.SecretID, read.Stale); err != nil {
					t.Fatalf("%s, at once: %v", o.name, err)
				}
			}
		}

		k := create(c.leader(), time.Minute)
		if err := get(c.follower(), k.SecretID, read.Stale); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(*k.ExpirationTime))
		for _, o := range c.nodes {
			if err := get(o, k.SecretID, read.Stale); !refused(err, "ACL not found") {
				t.Errorf("%s, expired: %v", o.name, err)
			}
		}
		c.within(1500*time.Millisecond, "the expired token is deleted", func() bool {
			_, found := c.follower().Store().View().ACLToken(k.AccessorID)
			return found == nil
		})

		old := c.leader()
		old.stop()
		c.leader()
		if err := get(c.follower(), managementSecret, read.Default); err != nil {
			t.Errorf("with another leader: %v", err)
		}
		_, tokens := c.leader().Store().View().ACLTokens()
		if len(tokens) != 22 {
			t.Errorf("%d tokens, want the first, the anonymous one and 20", len(tokens))
		}
	})
}
