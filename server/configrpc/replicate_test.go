package configrpc_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/configrpc"
)

// What the replication token may not read in the primary datacenter is not taken for deleted: a rule that denies would go,
// and its place would be open.
func TestReplicationNeedsToReadAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		primary, second := newServer(configrpc.Config{}), newServer(configrpc.Config{})
		deny := `{"Kind":"service-intentions","Name":"db","Sources":[{"Name":"*","Action":"deny"}]}`
		for _, s := range []string{deny, `{"Kind":"service-defaults","Name":"web","Protocol":"http"}`} {
			if err := put(t, primary, s); err != nil {
				t.Fatal(err)
			}
		}
		rules := map[string]string{"all": `service_prefix "" { policy = "read" } mesh = "read"`, "": ``, "few": `service "web" { policy = "read" }`}
		primary.Resolve = func(token string) (*acl.Authorizer, error) {
			text, ok := rules[token]
			if !ok {
				return nil, wireerr.ErrTokenNotFound
			}
			parsed, err := acl.Parse(text)
			if err != nil {
				return nil, err
			}
			return acl.New(acl.Compile(false, parsed), token), nil
		}
		token := "all"
		run := func() {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			r := configrpc.Replicator{
				Datacenter: "dc1", Primary: primary.Caller(), Token: func() string { return token },
				Store: second.Store, Apply: second.Apply, Log: hclog.NewNullLogger(),
			}
			if err := r.Run(ctx); err != nil {
				t.Error(err)
			}
		}
		run()
		for _, token = range []string{"all", "few", "", "unknown"} {
			run()
			v := second.Store.View()
			if v.Entry(entry.KindServiceIntentions, "db") == nil || v.Entry(entry.KindServiceDefaults, "web") == nil {
				t.Fatalf("with the token %q, entries are deleted that are there", token)
			}
		}
		// What is really gone goes.
		token = "all"
		if _, err := entry.DeleteCall.Call(t.Context(), primary.Caller(), &entry.DeleteRequest{Kind: entry.KindServiceIntentions, Name: "db"}); err == nil {
			t.Fatal("the token may not write")
		}
		primary.Resolve = nil
		if err := remove(t, primary, entry.KindServiceIntentions, "db"); err != nil {
			t.Fatal(err)
		}
		run()
		if second.Store.View().Entry(entry.KindServiceIntentions, "db") != nil {
			t.Error("a deleted entry is left")
		}
	})
}
