package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/access"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/event"
	"github.com/sarnmesh/sarn/catalog/feed"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/console"
	"github.com/sarnmesh/sarn/connect/explain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/connect/intro"
	"github.com/sarnmesh/sarn/connect/svid"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/statusrpc"
	"github.com/sarnmesh/sarn/server/transport"
)

// A callCase is a call of the servers with the rights that it asks for; of the matrixCall, what is about HTTP is unused.
type callCase struct {
	rpc.Descriptor
	matrixCall
	// do makes the call, with changes of the request's options for reads.
	do func(ctx context.Context, c *transport.Dispatcher, f *fixture, token string, change func(*read.Options)) (any, string, error)
}

// calling describes a call; request is asked for each time.
func calling[Req, Resp any](m rpc.Method[Req, Resp], needs []need, request func(f *fixture) Req, more ...func(*matrixCall)) callCase {
	c := callCase{Descriptor: m.Descriptor, matrixCall: matrixCall{needs: needs}}
	for _, set := range more {
		set(&c.matrixCall)
	}
	c.do = func(ctx context.Context, d *transport.Dispatcher, f *fixture, token string, change func(*read.Options)) (any, string, error) {
		req := request(f)
		asked := fmt.Sprintf("%+v", req)
		if t, ok := any(&req).(interface{ RequestTarget() *read.Target }); ok {
			t.RequestTarget().Token = token
		}
		if o, ok := any(&req).(interface{ ReadOptions() *read.Options }); ok {
			change(o.ReadOptions())
		}
		resp, err := m.Call(ctx, d, &req)
		return resp, asked, err
	}
	return c
}

// plain describes a call whose request is always the same.
func plain[Req, Resp any](m rpc.Method[Req, Resp], needs []need, request Req, more ...func(*matrixCall)) callCase {
	return calling(m, needs, func(*fixture) Req { return request }, more...)
}

func filters(shows string) func(*matrixCall) {
	return func(c *matrixCall) { c.filters, c.shows = true, shows }
}
func shows(text string) func(*matrixCall) { return func(c *matrixCall) { c.shows = text } }
func first(n int) func(*matrixCall)       { return func(c *matrixCall) { c.first = n } }
func anyOf(c *matrixCall)                 { c.any = true }
func everybody(c *matrixCall)             { c.anyToken = true }
func skip(why string) func(*matrixCall)   { return func(c *matrixCall) { c.skip = why } }
func plus(n []need) func(*matrixCall)     { return func(c *matrixCall) { c.plus = n } }

// Every call that servers answer, with every kind of token: who lacks a right is refused, or answered without what the
// right is for (spec/threats.md, class 5). A call that has a handler and is not in this table fails the test.
func TestThreat05EveryCallAsksForItsRights(t *testing.T) {
	g := runServer(t)
	f := newFixture(t)
	f.put(g)
	d, ok := g.server.Caller().(*transport.Dispatcher)
	if !ok {
		t.Fatal("the server has no dispatcher")
	}
	cases := serverCalls(t, g)
	has := map[string]bool{}
	for _, call := range d.Calls() {
		has[call.Name] = true
		if !slices.ContainsFunc(cases, func(c callCase) bool { return c.Descriptor == call }) {
			t.Errorf("%s is in no table of what calls ask for", call.Name)
		}
	}
	for _, c := range cases {
		if !has[c.Name] {
			t.Errorf("%s has no handler", c.Name)
		}
		t.Run(c.Name, func(t *testing.T) { c.try(t, g, d, f) })
	}
}

func (c *callCase) try(t *testing.T, g *guardedAgent, d *transport.Dispatcher, f *fixture) {
	ways := []func(*read.Options){
		func(*read.Options) {}, func(o *read.Options) { o.Mode = read.Stale }, func(o *read.Options) { o.Mode = read.Consistent },
		func(o *read.Options) { o.MinIndex, o.MaxWait = 1, 1 },
	}
	if c.Kind != rpc.KindRead {
		ways = ways[:1]
	}
	f.put(g)
	stale := false
	one := func(who, secret string, check func(answer, asked string, err error)) {
		for _, way := range ways {
			resp, asked, err := c.do(t.Context(), d, f, secret, way)
			answer, _ := json.Marshal(resp)
			if err != nil {
				answer = []byte(err.Error())
			}
			check(string(answer), asked, err)
		}
	}
	for _, k := range g.callers(&c.matrixCall) {
		if k.may && c.skip != "" {
			continue
		}
		writes := c.Kind != rpc.KindRead
		if writes && (k.may || stale) {
			f.put(g)
		}
		stale = writes && k.may
		one(k.who, k.secret, func(answer, asked string, err error) {
			denied := (err != nil || c.refusal != 0) && (strings.Contains(answer, "Permission denied") || strings.Contains(answer, "ACL not found"))
			if denied {
				for _, n := range c.needs { // the right that is missing is told
					asked += n.name
				}
			}
			found := leaks(answer, asked)
			if k.more {
				found = slices.DeleteFunc(found, func(word string) bool { return word != c.shows })
			}
			switch {
			case k.may && (denied || err != nil && c.Kind == rpc.KindRead):
				t.Errorf("%s by %s: %v", c.Name, k.who, err)
			case k.may && !strings.Contains(answer, c.shows):
				t.Errorf("%s by %s does not show %s: %s", c.Name, k.who, c.shows, answer)
			case k.may:
			case len(found) > 0:
				t.Errorf("%s by %s tells %q: %s", c.Name, k.who, found, answer)
			case (c.filters || k.in) && err != nil:
				t.Errorf("%s by %s: %v, want an answer without what it may not see", c.Name, k.who, err)
			case !c.filters && !k.in && !denied:
				t.Errorf("%s by %s: %s, want a refusal", c.Name, k.who, answer)
			}
		})
		if !c.anyToken {
			one("unknown", unknownSecret, func(answer, asked string, err error) {
				if err == nil || !strings.Contains(answer, "ACL not found") {
					t.Errorf("%s by a token that nobody knows: %s", c.Name, answer)
				}
			})
		}
	}
}

// entryOf returns an entry as requests carry it.
func entryOf(t *testing.T, doc map[string]any) entry.Any {
	t.Helper()
	e, err := entry.Decode(doc)
	if err != nil {
		t.Fatal(err)
	}
	return entry.Any{Entry: e}
}

func requestFor(t *testing.T, id connect.ID) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := ca.NewCSR(id, key, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func streamed[Req any](m rpc.Method[Req, operator.SnapshotReply], req Req) callCase {
	c := callCase{Descriptor: m.Descriptor, matrixCall: matrixCall{needs: aclWrite}}
	c.do = func(ctx context.Context, d *transport.Dispatcher, _ *fixture, token string, change func(*read.Options)) (any, string, error) {
		req := req
		any(&req).(interface{ RequestTarget() *read.Target }).RequestTarget().Token = token
		_, out, err := m.Stream(ctx, d, &req, bytes.NewReader([]byte("none")))
		if err != nil {
			return nil, "", err
		}
		defer out.Close()
		_, err = io.Copy(io.Discard, out)
		return nil, "", err
	}
	return c
}

// fed describes a subscription of a feed: the first thing that it is told is its answer.
func fed(needs []need, subject feed.Subject, more ...func(*matrixCall)) callCase {
	c := callCase{Descriptor: feed.OpenCall.Descriptor, matrixCall: matrixCall{needs: needs}}
	for _, set := range more {
		set(&c.matrixCall)
	}
	c.do = func(ctx context.Context, d *transport.Dispatcher, _ *fixture, token string, _ func(*read.Options)) (any, string, error) {
		var ask bytes.Buffer
		if err := feed.WriteAsk(&ask, &feed.Ask{ID: 1, Subject: subject, Token: token}); err != nil {
			return nil, "", err
		}
		in, w := io.Pipe()
		_, out, err := feed.OpenCall.Stream(ctx, d, &feed.OpenRequest{}, in)
		if err != nil {
			return nil, "", err
		}
		defer out.Close()
		defer w.Close()
		go w.Write(ask.Bytes())
		f, err := feed.ReadFrame(bufio.NewReader(out))
		switch {
		case err != nil:
			return nil, "", err
		case f.Kind == feed.Refused:
			return nil, "", wireerr.Remote(f.Status, f.Text)
		}
		var none *feed.State
		s, err := none.Follow(f.Event)
		if err != nil {
			return nil, "", err
		}
		reply := &catalog.InstancesReply{Instances: s.Instances}
		reply.Filtered = s.Filtered
		return reply, fmt.Sprintf("%+v", subject), nil
	}
	return c
}

// serverCalls are the calls with what they ask for.
func serverCalls(t *testing.T, g *guardedAgent) []callCase {
	roots, err := ca.RootsCall.Call(t.Context(), g.server.Internal(), &ca.RootsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	token := func(f *fixture) string { return f.token }
	restore := callCase{Descriptor: operator.RestoreSnapshotCall.Descriptor, matrixCall: matrixCall{needs: aclWrite}}
	restore.do = func(ctx context.Context, d *transport.Dispatcher, _ *fixture, token string, _ func(*read.Options)) (any, string, error) {
		req := operator.StatusRequest{Target: read.Target{Token: token}}
		_, out, err := operator.RestoreSnapshotCall.Stream(ctx, d, &req, bytes.NewReader([]byte("none")))
		if err == nil {
			out.Close()
		}
		return nil, "", err
	}
	method := acl.AuthMethod{Name: "zqx-other", Type: "jwt", Config: map[string]any{"JWTValidationPubKeys": []any{"none"}}}
	instance := catalog.Service{ID: "zqx-id", Service: "other", Port: 9}
	txn := func(op kv.TxnOp) kv.TxnRequest { return kv.TxnRequest{Ops: []kv.TxnOp{op}} }
	return []callCase{
		// Access control.
		plain(access.BootstrapCall, nil, access.BootstrapRequest{}, everybody, skip("done already")),
		plain(access.LoginCall, nil, access.LoginRequest{AuthMethod: "zqx-method", BearerToken: "x"}, everybody, skip("the proof is none")),
		plain(access.LogoutCall, nil, access.LogoutRequest{}, skip("of no login")),
		plain(access.TokenSetCall, aclWrite, access.TokenSetRequest{Create: true}),
		calling(access.TokenCloneCall, aclWrite, func(f *fixture) access.TokenCloneRequest {
			return access.TokenCloneRequest{AccessorID: f.token}
		}),
		calling(access.TokenDeleteCall, aclWrite, func(f *fixture) access.DeleteRequest { return access.DeleteRequest{ID: f.token} }),
		calling(access.TokenReadCall, aclRead, func(f *fixture) access.TokenReadRequest {
			return access.TokenReadRequest{AccessorID: token(f), Expanded: true}
		}, shows("zqx-token")),
		plain(access.TokenListCall, aclRead, access.TokenListRequest{}, shows("zqx-token")),
		plain(access.PolicySetCall, aclWrite, access.PolicySetRequest{}),
		plain(access.PolicyDeleteCall, aclWrite, access.DeleteRequest{ID: unknownSecret}),
		plain(access.PolicyReadCall, aclRead, access.ReadRequest{Name: "zqx-policy"}, shows("zqx-ruled")),
		plain(access.PolicyListCall, aclRead, access.ListRequest{}, shows("zqx-policy")),
		plain(access.RoleSetCall, aclWrite, access.RoleSetRequest{}),
		plain(access.RoleDeleteCall, aclWrite, access.DeleteRequest{ID: unknownSecret}),
		plain(access.RoleReadCall, aclRead, access.ReadRequest{Name: "zqx-role"}, shows("zqx-policy")),
		plain(access.RoleListCall, aclRead, access.RoleListRequest{}, shows("zqx-role")),
		plain(access.AuthMethodSetCall, aclWrite, access.AuthMethodSetRequest{AuthMethod: method}),
		plain(access.AuthMethodDeleteCall, aclWrite, access.DeleteRequest{ID: "zqx-other"}),
		plain(access.AuthMethodReadCall, aclRead, access.ReadRequest{Name: "zqx-method"}, shows("zqx-iss")),
		plain(access.AuthMethodListCall, aclRead, access.ListRequest{}, shows("zqx-method")),
		plain(access.BindingRuleSetCall, aclWrite, access.BindingRuleSetRequest{BindingRule: acl.BindingRule{AuthMethod: "zqx-method", BindType: "node", BindName: "x"}}),
		plain(access.BindingRuleDeleteCall, aclWrite, access.DeleteRequest{ID: unknownSecret}),
		calling(access.BindingRuleReadCall, aclRead, func(f *fixture) access.ReadRequest { return access.ReadRequest{ID: f.rule} }, shows("zqx-bound")),
		plain(access.BindingRuleListCall, aclRead, access.BindingRuleListRequest{}, shows("zqx-bound")),
		plain(access.TemplateListCall, aclRead, access.TemplateListRequest{}),
		plain(access.TemplateReadCall, aclRead, access.TemplateReadRequest{Name: "builtin/service"}),
		plain(access.TemplatePreviewCall, aclRead, access.TemplatePreviewRequest{Name: "builtin/dns"}),
		plain(access.ResolveCall, nil, access.ResolveRequest{}),
		plain(access.AuthorizeCall, nil, access.AuthorizeRequest{Checks: []access.Check{{Resource: acl.Key, Segment: "zqx-key", Access: "read"}}}),
		plain(access.ReplicationCall, nil, access.ReplicationRequest{}, everybody),

		// The catalog.
		plain(catalog.RegisterCall, one(may(acl.Node, acl.Write, "new-node")), catalog.RegisterRequest{Node: "new-node", Address: "10.0.0.1"}),
		plain(catalog.RegisterCall, slices.Concat(svcWrite, one(may(acl.Service, acl.Write, "other"))), catalog.RegisterRequest{Node: "zqx-node", SkipNodeUpdate: true, Address: "10.9.9.9", Service: &instance}),
		plain(catalog.DeregisterCall, nodeWrite, catalog.DeregisterRequest{Node: "zqx-node"}),
		plain(catalog.DeregisterCall, slices.Concat(svcWrite, nodeWrite), catalog.DeregisterRequest{Node: "zqx-node", CheckID: "zqx-svccheck"}, anyOf),
		plain(catalog.NodesCall, nodeRead, catalog.NodesRequest{}, filters("zqx-nodemeta")),
		plain(catalog.ServicesCall, instanceRead, catalog.ServicesRequest{}, filters("zqx-tag")),
		plain(catalog.NodeServicesCall, instanceRead, catalog.NodeServicesRequest{Node: "zqx-node", WithChecks: true, MergeCentralConfig: true}, filters("zqx-svcoutput")),
		plain(catalog.InstancesCall, instanceRead, catalog.InstancesRequest{Service: "zqx-svc"}, filters("zqx-svcoutput")),
		plain(catalog.InstancesCall, instanceRead, catalog.InstancesRequest{Service: "zqx-svc", CatalogOnly: true}, filters("zqx-svcmeta")),
		plain(catalog.InstancesCall, svcRead, catalog.InstancesRequest{Service: "zqx-svc", Ingress: true}),
		fed(instanceRead, feed.Subject{Service: "zqx-svc"}, filters("zqx-svcoutput")),
		fed(svcRead, feed.Subject{Service: "zqx-svc", Connect: true}),
		plain(catalog.ChecksCall, instanceRead, catalog.ChecksRequest{Service: "zqx-svc"}, filters("zqx-svcoutput")),
		plain(catalog.ChecksCall, nodeRead, catalog.ChecksRequest{State: "any"}, filters("zqx-output")),
		plain(catalog.ChecksCall, nodeRead, catalog.ChecksRequest{Node: "zqx-node"}, filters("zqx-output")),
		plain(catalog.CoordinatesCall, nodeRead, catalog.CoordinatesRequest{}, filters("zqx-node")),
		plain(catalog.CoordinatesCall, nodeRead, catalog.CoordinatesRequest{Node: "zqx-node"}, shows("zqx-node")),
		plain(catalog.UpdateCoordinateCall, nodeWrite, catalog.CoordinateUpdate{Updates: []*catalog.NodeCoordinate{{Node: "zqx-node", Coord: &catalog.Coordinate{Vec: make([]float64, 8), Error: 1, Height: 1e-5}}}}),
		plain(catalog.AddressCall, nodeRead, catalog.AddressRequest{Address: "10.9.9.9"}, filters("zqx-node")),
		plain(catalog.DatacentersCall, nil, catalog.DatacentersRequest{}, everybody),
		plain(catalog.DatacenterCoordinatesCall, nil, catalog.DatacentersRequest{}, everybody),

		// Keys, sessions, transactions, queries, events.
		plain(kv.GetCall, keyRead, kv.GetRequest{Key: "zqx-key"}, shows("zqx-key")),
		plain(kv.ListCall, keyRead, kv.ListRequest{}, filters("zqx-key")),
		plain(kv.KeysCall, keyRead, kv.KeysRequest{}, filters("zqx-key")),
		plain(kv.KeysCall, keyRead, kv.KeysRequest{Separator: "-"}, filters("zqx-")),
		plain(kv.ApplyCall, keyWrite, kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: "zqx-key"}}),
		plain(kv.ApplyCall, keyWrite, kv.ApplyRequest{Op: kv.OpDeleteCAS, Entry: kv.Entry{Key: "zqx-key"}}),
		plain(kv.ApplyCall, one(need{acl.Key, acl.Write, "zqx", true}), kv.ApplyRequest{Op: kv.OpDeleteTree, Entry: kv.Entry{Key: "zqx"}}),
		plain(kv.TxnReadCall, keyRead, kv.TxnReadRequest{Ops: []kv.TxnOp{{KV: &kv.TxnKV{Verb: kv.OpGet, Entry: kv.Entry{Key: "zqx-key"}}}}}, filters("zqx-key")),
		plain(kv.TxnReadCall, svcRead, kv.TxnReadRequest{Ops: []kv.TxnOp{{Service: &kv.TxnService{Verb: kv.OpGet, Node: "zqx-node", Service: catalog.Service{ID: "zqx-id"}}}}}, filters("zqx-svcmeta")),
		calling(kv.TxnCall, sessWrite, func(f *fixture) kv.TxnRequest {
			return txn(kv.TxnOp{Session: &kv.TxnSession{Verb: kv.OpDelete, Session: kv.Session{ID: f.session}}})
		}, inReply),
		plain(kv.TxnCall, nodeWrite, txn(kv.TxnOp{Node: &kv.TxnNode{Verb: kv.OpDelete, Node: catalog.Node{Node: "zqx-node"}}}), inReply),
		plain(kv.TxnCall, slices.Concat(svcWrite, one(may(acl.Service, acl.Write, "other"))), txn(kv.TxnOp{Service: &kv.TxnService{Verb: kv.OpSet, Node: "zqx-node", Service: instance}}), inReply),
		plain(kv.SessionCreateCall, sessWrite, kv.SessionCreateRequest{Session: kv.Session{Node: "zqx-node"}}),
		calling(kv.SessionDestroyCall, sessWrite, func(f *fixture) kv.SessionDestroyRequest { return kv.SessionDestroyRequest{ID: f.session} }),
		calling(kv.SessionRenewCall, sessWrite, func(f *fixture) kv.SessionRenewRequest { return kv.SessionRenewRequest{ID: f.session} }),
		plain(kv.SessionsCall, sessRead, kv.SessionsRequest{}, filters("zqx-session")),
		calling(kv.SessionsCall, sessRead, func(f *fixture) kv.SessionsRequest { return kv.SessionsRequest{ID: f.session} }, filters("zqx-session")),
		plain(kv.SessionsCall, sessRead, kv.SessionsRequest{Node: "zqx-node"}, filters("zqx-session")),
		plain(query.ApplyCall, one(may(acl.Query, acl.Write, "zqx-other")), query.ApplyRequest{Op: query.Create, Query: query.Query{Name: "zqx-other", Service: query.Service{Service: "zqx-svc"}}}),
		calling(query.ApplyCall, queryWrite, func(f *fixture) query.ApplyRequest {
			return query.ApplyRequest{Op: query.Delete, Query: query.Query{ID: f.query}}
		}),
		calling(query.GetCall, queryRead, func(f *fixture) query.GetRequest { return query.GetRequest{ID: f.query} }, shows("zqx-query")),
		plain(query.ListCall, queryRead, query.ListRequest{}, filters("zqx-query"), plus(aclWrite)),
		plain(query.ExplainCall, queryRead, query.ExecuteRequest{Query: "zqx-query"}, shows("zqx-svc")),
		plain(query.ExecuteCall, nil, query.ExecuteRequest{Query: "zqx-query"}, skip("its own token is none")),
		plain(query.RemoteCall, instanceRead, query.RemoteRequest{Query: query.Query{Service: query.Service{Service: "zqx-svc"}}}, filters("zqx-svcmeta")),
		plain(event.FireCall, one(may(acl.Event, acl.Write, "zqx-fired")), event.FireRequest{Event: event.Event{ID: unknownSecret, Name: "zqx-fired"}}),

		// Config entries.
		plain(entry.GetCall, svcRead, entry.GetRequest{Kind: entry.KindServiceDefaults, Name: "zqx-svc"}, shows("zqx-defaults")),
		plain(entry.GetCall, meshRead, entry.GetRequest{Kind: entry.KindHTTPRoute, Name: "zqx-route"}, shows("zqx-agw")),
		plain(entry.ListCall, svcRead, entry.ListRequest{Kind: entry.KindServiceResolver}, filters("zqx-resolver")),
		plain(entry.ListCall, intenRead, entry.ListRequest{Kind: entry.KindServiceIntentions}, filters("zqx-reason")),
		plain(entry.ApplyCall, intenWrite, entry.ApplyRequest{Entry: entryOf(t, map[string]any{"Kind": "service-intentions", "Name": "zqx-svc", "Sources": []any{map[string]any{"Name": "*", "Action": "allow"}}})}),
		plain(entry.ApplyCall, svcWrite, entry.ApplyRequest{Entry: entryOf(t, map[string]any{"Kind": "service-defaults", "Name": "zqx-svc", "Protocol": "http"})}),
		plain(entry.DeleteCall, svcWrite, entry.DeleteRequest{Kind: entry.KindServiceRouter, Name: "zqx-svc"}),
		plain(entry.DeleteCall, meshWrite, entry.DeleteRequest{Kind: entry.KindMesh, Name: "mesh"}),
		plain(entry.ResolvedCall, svcRead, entry.ResolvedRequest{Service: "zqx-svc"}),
		plain(entry.VirtualIPCall, svcRead, entry.VirtualIPRequest{Service: "zqx-svc"}),
		plain(entry.SetVirtualIPsCall, meshWrite, entry.SetVirtualIPsRequest{Service: "zqx-svc", Addresses: []string{"240.9.9.8"}}),
		plain(entry.GatewayServicesCall, gatewayRead, entry.GatewayServicesRequest{Gateway: "zqx-tgw"}, first(1), shows("zqx-sni")),
		plain(chain.GetCall, svcRead, chain.GetRequest{Service: "zqx-svc"}),

		// Intentions.
		plain(intention.ListCall, one(may(acl.Inten, acl.Read, "zqx-svc"), may(acl.Inten, acl.Read, "zqx-src")), intention.ListRequest{}, anyOf, filters("zqx-reason")),
		plain(intention.GetCall, one(may(acl.Inten, acl.Read, "zqx-svc"), may(acl.Inten, acl.Read, "zqx-src")), intention.GetRequest{Source: "zqx-src", Destination: "zqx-svc"}, anyOf, shows("zqx-reason")),
		calling(intention.GetCall, one(may(acl.Inten, acl.Read, "zqx-dst"), may(acl.Inten, acl.Read, "zqx-src")), func(f *fixture) intention.GetRequest { return intention.GetRequest{ID: f.intention} }, anyOf, shows("zqx-dst")),
		plain(intention.MatchCall, intenRead, intention.MatchRequest{By: intention.ByDestination, Names: []string{"zqx-svc"}}, shows("zqx-reason")),
		plain(intention.CheckCall, svcRead, intention.CheckRequest{Source: "zqx-src", Destination: "zqx-svc"}),
		plain(intention.CallableCall, one(may(acl.Service, acl.Read, "zqx-src")), intention.CallableRequest{Source: "zqx-src"}),
		plain(intention.UpsertCall, intenWrite, intention.UpsertRequest{Destination: "zqx-svc", Source: entry.IntentionSource{Name: "zqx-src", Action: "deny"}}),
		plain(intention.RemoveCall, intenWrite, intention.RemoveRequest{Source: "zqx-src", Destination: "zqx-svc"}),
		plain(intention.LegacyCall, one(may(acl.Inten, acl.Write, "zqx-new")), intention.LegacyRequest{Op: intention.LegacyCreate, Intention: intention.Intention{SourceName: "zqx-src", DestinationName: "zqx-new", Action: "allow"}}),
		calling(intention.LegacyCall, one(may(acl.Inten, acl.Write, "zqx-dst")), func(f *fixture) intention.LegacyRequest {
			return intention.LegacyRequest{Op: intention.LegacyDelete, Intention: intention.Intention{ID: f.intention}}
		}),

		// Certificates and tokens of the mesh.
		plain(ca.RootsCall, nil, ca.RootsRequest{}, everybody),
		plain(ca.ConfigCall, opWrite, ca.ConfigRequest{}),
		plain(ca.SetConfigCall, opWrite, ca.SetConfigRequest{Config: ca.Configuration{Provider: "none"}}),
		plain(ca.SignCall, svcWrite, ca.SignRequest{CSR: requestFor(t, connect.ServiceID(roots.TrustDomain, "dc1", "zqx-svc"))}, shows("CERTIFICATE")),
		plain(ca.SignCall, one(may(acl.Node, acl.Write, "zqx-node")), ca.SignRequest{CSR: requestFor(t, connect.AgentID(roots.TrustDomain, "dc1", "zqx-node"))}, shows("CERTIFICATE")),
		plain(ca.SignCall, meshWrite, ca.SignRequest{CSR: requestFor(t, connect.MeshGatewayID(roots.TrustDomain, "dc1"))}, shows("CERTIFICATE")),
		plain(ca.SignCall, aclWrite, ca.SignRequest{CSR: requestFor(t, connect.ServerID(roots.TrustDomain, "dc1"))}, shows("CERTIFICATE")),
		// Who knows the secret of the servers may make it, whatever the token.
		plain(ca.SignServerCall, nil, ca.SignRequest{CSR: requestFor(t, connect.ServerID(roots.TrustDomain, "dc1")), Secret: g.server.Secret()}, everybody),
		// So for what a server says of an agent that it has looked at.
		plain(intro.AdmitCall, nil, intro.AdmitRequest{Secret: g.server.Secret(), WantToken: true, Applicant: intro.Applicant{
			Datacenter: "dc1", Node: "zqx-node", CSR: requestFor(t, connect.AgentID(roots.TrustDomain, "dc1", "zqx-node")),
		}}, everybody),
		plain(intro.NewJoinTokenCall, slices.Concat(aclWrite, opWrite), intro.NewJoinTokenRequest{}),
		plain(intro.RedeemCall, nil, intro.RedeemRequest{Secret: g.server.Secret()}, everybody),
		plain(intro.OwnTokenCall, nil, intro.OwnTokenRequest{Secret: g.server.Secret(), Node: "zqx-node"}, everybody),
		plain(ca.SignIntermediateCall, opWrite, ca.SignIntermediateRequest{CSR: requestFor(t, connect.CAID(roots.TrustDomain)), ForDatacenter: "dc2"}),
		plain(ca.ConfirmCall, nodeWrite, ca.ConfirmRequest{Node: "zqx-node"}),
		plain(ca.ConfirmDatacenterCall, opWrite, ca.ConfirmDatacenterRequest{FromDatacenter: "dc2", Phase: ca.PhaseNone}),
		plain(ca.RotateCall, opWrite, ca.RotateRequest{PrivateKeyType: "none"}),
		plain(ca.RotationCall, opRead, ca.RotationRequest{}),
		plain(svid.SignCall, svcWrite, svid.SignRequest{Service: "zqx-svc", Audience: []string{"a"}}),
		plain(svid.KeysCall, nil, svid.KeysRequest{}, everybody),
		plain(explain.EvaluateCall, slices.Concat(svcRead, intenRead, one(may(acl.Service, acl.Read, "zqx-src"))), explain.EvaluateRequest{Request: explain.Request{From: "zqx-src", To: "zqx-svc"}}),

		// Peerings.
		plain(peering.TokenCall, peerWrite, peering.TokenRequest{Name: "zqx-newpeer"}),
		plain(peering.EstablishCall, peerWrite, peering.EstablishRequest{Name: "zqx-newpeer", Token: "e30="}),
		plain(peering.DeleteCall, peerWrite, peering.DeleteRequest{Name: "zqx-none"}),
		plain(peering.GetCall, peerRead, peering.GetRequest{Name: "zqx-peer"}, shows("zqx-peermeta")),
		plain(peering.ListCall, peerRead, peering.ListRequest{}, shows("zqx-peermeta")),
		plain(peering.BundleCall, one(need{acl.Service, acl.Write, "", true}), peering.BundleRequest{Peer: "zqx-peer"}),
		plain(peering.BundlesCall, one(need{acl.Service, acl.Write, "", true}), peering.BundlesRequest{}),
		plain(peering.ImportsCall, one(need{acl.Service, acl.Write, "", true}), peering.ImportsRequest{}),
		plain(peering.BundlesCall, svcRead, peering.BundlesRequest{Service: "zqx-svc"}),
		plain(peering.ExportsCall, svcRead, peering.ExportsRequest{}, filters("zqx-peer")),

		// Operators.
		plain(operator.LeaderCall, nil, operator.StatusRequest{}, everybody),
		plain(operator.PeersCall, nil, operator.StatusRequest{}, everybody),
		plain(statusrpc.StatsCall, nil, statusrpc.StatsRequest{}, everybody),
		plain(operator.RaftConfigurationCall, opRead, operator.StatusRequest{}, shows("own-node")),
		plain(operator.RaftConfigurationStaleCall, opRead, operator.StatusRequest{}, shows("own-node")),
		plain(operator.RemovePeerCall, opWrite, operator.RemovePeerRequest{ID: "none"}),
		plain(operator.TransferLeaderCall, opWrite, operator.TransferLeaderRequest{}),
		plain(operator.AutopilotConfigCall, opRead, operator.AutopilotConfigRequest{}),
		plain(operator.SetAutopilotConfigCall, opWrite, operator.SetAutopilotConfigRequest{Config: operator.DefaultAutopilot()}),
		plain(operator.HealthCall, opRead, operator.StatusRequest{}),
		plain(operator.StateCall, opRead, operator.StatusRequest{}),
		plain(operator.KeyringCall, one(may(acl.Keyring, acl.Read, "")), operator.KeyringRequest{Op: operator.KeyringList}, shows(gossipKey)),
		plain(operator.KeyringCall, one(may(acl.Keyring, acl.Write, "")), operator.KeyringRequest{Op: operator.KeyringUse, Key: gossipKey}),
		plain(operator.UsageCall, opRead, operator.UsageRequest{}),
		streamed(operator.SaveSnapshotCall, operator.SnapshotRequest{}), restore,

		// The console.
		plain(console.NodesCall, nodeRead, console.NodesRequest{}, filters("zqx-output")),
		plain(console.NodesCall, instanceRead, console.NodesRequest{Node: "zqx-node"}, filters("zqx-svcmeta")),
		plain(console.ServicesCall, instanceRead, console.ServicesRequest{}, filters("zqx-tag")),
		plain(console.OverviewCall, opRead, console.OverviewRequest{}, shows("zqx-svc")),
		plain(console.GatewayServicesCall, gatewayRead, console.GatewayRequest{Gateway: "zqx-tgw"}, first(1), shows("zqx-svc")),
		plain(console.GatewayIntentionsCall, slices.Concat(one(may(acl.Service, acl.Read, "zqx-tgw")), intenRead), console.GatewayRequest{Gateway: "zqx-tgw"}, first(1), plus(one(may(acl.Inten, acl.Read, "zqx-src"))), shows("zqx-reason")),
		plain(console.ExportedCall, svcRead, console.ExportedRequest{Peer: "zqx-peer"}, filters("zqx-svc"), plus(meshWrite)),
		plain(console.TopologyCall, topologyRead, console.TopologyRequest{Service: "zqx-svc"}, first(1), shows("zqx-src")),
	}
}

// inReply marks calls whose reply has the refusal.
func inReply(c *matrixCall) { c.refusal = 409 }
