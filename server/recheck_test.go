package server_test

import (
	"testing"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server"
	"github.com/sarnmesh/sarn/server/aclrpc"
)

// A read that waits notices within half a minute that its token may no longer have the answer, although that has not
// changed.
func TestWaitingReadsNoticeThatRightsHaveGone(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		c := newCluster(t, 12, 1, server.Config{ACL: aclrpc.Config{
			Enabled: true, DefaultPolicy: aclrpc.Deny, InitialManagement: managementSecret,
		}})
		caller := c.leader().Caller()
		policy := func(id, rules string) string {
			t.Helper()
			req := &access.PolicySetRequest{Policy: acl.Policy{ID: id, Name: "p", Rules: rules}}
			req.Token = managementSecret
			reply, err := access.PolicySetCall.Call(t.Context(), caller, req)
			if err != nil {
				t.Fatal(err)
			}
			return reply.Policy.ID
		}
		id := policy("", `key "a" { policy = "read" }`)
		req := &access.TokenSetRequest{Create: true, Token: acl.Token{Policies: []acl.Link{{ID: id}}}}
		req.Target.Token = managementSecret
		made, err := access.TokenSetCall.Call(t.Context(), caller, req)
		if err != nil {
			t.Fatal(err)
		}
		get := func(index uint64) (*kv.GetReply, error) {
			return kv.GetCall.Call(t.Context(), caller, &kv.GetRequest{Key: "a", Options: read.Options{
				Target: read.Target{Token: made.Token.SecretID}, MinIndex: index, MaxWait: 10 * time.Minute, Mode: read.Stale,
			}})
		}
		first, err := get(0)
		if err != nil {
			t.Fatal(err)
		}
		answer := make(chan error, 1)
		start := time.Now()
		go func() {
			_, err := get(max(first.Index, 1))
			answer <- err
		}()
		time.Sleep(2 * time.Minute)
		select {
		case err := <-answer:
			t.Fatalf("the read ended while nothing had changed: %v", err)
		default:
		}
		policy(id, `key "b" { policy = "read" }`)
		err = <-answer
		if wireerr.Status(err) != 403 {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start) - 2*time.Minute; d > 30*time.Second {
			t.Errorf("noticed after %v", d)
		}
	})
}
