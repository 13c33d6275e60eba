package agent

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/client/local"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// naive reads rules as their text says, in the plainest way. What no rule is about is refused.
type naive map[need]acl.Access // by resource, name and prefix

func (n naive) may(r acl.Resource, a acl.Access, name string) bool {
	level, named := n[need{resource: r, name: name}]
	for i := len(name); i >= 0 && !named; i-- {
		level, named = n[need{resource: r, name: name[:i], prefix: true}]
	}
	if slices.Contains(scalar, r) {
		level, named = n[need{resource: r}]
		if !named && (r == acl.Mesh || r == acl.Peering) {
			level = n[need{resource: acl.Operator}]
		}
	}
	switch level {
	case acl.Write:
		return true
	case acl.List:
		return a != acl.Write
	}
	return level == acl.Read && a == acl.Read
}

// some rules at random.
func someRules(r *rand.Rand) naive {
	n := naive{}
	levels := []acl.Access{acl.Read, acl.Write, acl.Write, "deny"}
	names := map[acl.Resource][]string{
		acl.Node: nodeNames, acl.Service: serviceNames, acl.Key: keyNames, acl.Query: queryNames, acl.Session: nodeNames, acl.Agent: {"own-node"}, acl.Event: {"e1"},
		acl.Inten: serviceNames,
	}
	for res, of := range names {
		for range r.IntN(4) {
			name := pick(r, of)
			rule := need{resource: res, name: name}
			if r.IntN(3) == 0 {
				rule.prefix, rule.name = true, name[:r.IntN(len(name)+1)]
			}
			n[rule] = pick(r, levels)
		}
	}
	for _, res := range scalar {
		if res != acl.ACL && r.IntN(3) == 0 || res == acl.ACL && r.IntN(8) == 0 {
			n[need{resource: res}] = pick(r, levels)
		}
	}
	return n
}

// text writes rules down. A rule on intentions that has none on the service beside it gets one that refuses; a rule on a
// service gets one on intentions.
func (n naive) text() string {
	t := rulesText{}
	for rule := range n {
		switch rule.resource {
		case acl.Inten:
			if service := (need{acl.Service, "", rule.name, rule.prefix}); n[service] == "" {
				n[service] = "deny"
			}
		case acl.Service:
			if of := (need{acl.Inten, "", rule.name, rule.prefix}); n[of] == "" {
				n[of] = "deny"
			}
		}
	}
	for rule, level := range n {
		t.set(rule, string(level))
	}
	return t.String()
}

func pick[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

// Names differ in case too: what is one object must not be reached by rules for another spelling of its name.
var (
	nodeNames    = []string{"n1", "n2", "N1"}
	serviceNames = []string{"s1", "s2", "S1", "s1-sidecar-proxy"}
	keyNames     = []string{"k/1", "k/2", "k/x/1", "K/1", "k"}
	queryNames   = []string{"q1", "q2", "Q1"}
	idNames      = []string{"i1", "i2", "I1"}
	checkNames   = []string{"c1", "c2", "C1", "service:i1", "service:i2-sidecar-proxy:2", "_service_maintenance:i1", "_node_maintenance"}
)

// An object is what is stored, and the rights each of which suffices to change it.
type object struct {
	data  string
	any   []need
	links string // IDs of sessions it depends on
}

type objects map[string]object

func (o objects) add(kind, id string, v any, any ...need) {
	data, err := rpc.Marshal(v)
	if err != nil {
		panic(err)
	}
	o[kind+" "+id] = object{data: string(data), any: any}
}

func writes(r acl.Resource, name string) need {
	return need{resource: r, access: acl.Write, name: name}
}

// snapshot lists the objects there are. It leaves out what agents and leaders look after by themselves: the server's own
// node in the catalog, coordinates, virtual IPs, and what is bound to API gateways.
func (g *guardedAgent) snapshot() objects {
	o := objects{}
	v := g.server.Store().View()
	_, nodes := v.Nodes()
	for _, n := range nodes {
		if n.Node == "own-node" {
			continue
		}
		o.add("node", n.Node, n, writes(acl.Node, n.Node))
		_, checks := v.NodeChecks(n.Node)
		for _, c := range checks {
			needs := []need{writes(acl.Node, n.Node)}
			if c.ServiceID != "" {
				needs = append(needs, writes(acl.Service, c.ServiceName))
				if s := v.Service(n.Node, c.ServiceID); s != nil { // it may have got another name since
					needs = append(needs, writes(acl.Service, s.Service))
				}
			}
			o.add("check", n.Node+"/"+c.CheckID, c, needs...)
		}
	}
	_, all := v.AllInstances()
	for i := range all {
		if i.Node.Node != "own-node" {
			o.add("instance", i.Node.Node+"/"+i.Service.ID, i.Service, writes(acl.Service, i.Service.Service), writes(acl.Node, i.Node.Node))
		}
	}
	_, keys := v.KeysUnder("")
	for _, k := range keys {
		o.add("key", k.Key, k, writes(acl.Key, k.Key))
		of := o["key "+k.Key]
		of.links = k.Session
		o["key "+k.Key] = of
	}
	_, sessions := v.Sessions()
	for _, s := range sessions {
		needs := []need{writes(acl.Session, s.Node), writes(acl.Node, s.Node)}
		if n := v.Node(s.Node); n != nil { // it may be spelled otherwise since
			needs = append(needs, writes(acl.Node, n.Node))
		}
		o.add("session", s.ID, s, needs...)
		of := o["session "+s.ID]
		for _, c := range s.NodeChecks { // it ends with its checks
			of.links += " " + s.Node + "/" + c
		}
		o["session "+s.ID] = of
	}
	_, queries := v.Queries()
	for _, q := range queries {
		o.add("query", q.ID, q, writes(acl.Query, q.Name))
		of := o["query "+q.ID]
		of.links = q.Session
		o["query "+q.ID] = of
	}
	for _, kind := range entry.Kinds() {
		_, entries := v.Entries(kind)
		for _, e := range entries {
			name := e.Head().Name
			switch kind {
			case entry.KindBoundAPIGateway:
			case entry.KindServiceDefaults, entry.KindServiceResolver, entry.KindServiceRouter, entry.KindServiceSplitter:
				o.add(string(kind), name, e, writes(acl.Service, name))
			case entry.KindServiceIntentions:
				o.add(string(kind), name, e, writes(acl.Inten, name))
			default:
				o.add(string(kind), name, e, writes(acl.Mesh, ""))
			}
		}
	}
	_, tokens := v.ACLTokens()
	for _, k := range tokens {
		o.add("token", k.AccessorID, k, writes(acl.ACL, ""))
	}
	_, policies := v.ACLPolicies()
	for _, p := range policies {
		o.add("policy", p.ID, p, writes(acl.ACL, ""))
	}
	_, roles := v.ACLRoles()
	for _, p := range roles {
		o.add("role", p.ID, p, writes(acl.ACL, ""))
	}
	_, peerings := v.Peerings()
	for _, p := range peerings {
		if p.State == peering.Deleting { // the leader goes on with that
			continue
		}
		o.add("peering", p.Name, p, writes(acl.Peering, ""))
		o.add("peering secrets", p.Name, v.PeeringSecrets(p.ID), writes(acl.Peering, ""))
	}
	if _, c := v.CAConfig(); c != nil {
		o.add("authority", "", c, writes(acl.Operator, ""))
	}
	_, roots := v.CARoots()
	for _, root := range roots {
		o.add("root", root.ID, root, writes(acl.Operator, ""))
	}
	if f := v.Fact("autopilot"); f != nil {
		o.add("fact", "autopilot", f, writes(acl.Operator, ""))
	}
	for _, s := range g.local.Services() {
		is := s.Given
		o.add("own instance", is.ID, []any{is.Service, is.Kind, is.Port, is.Address, is.Tags, is.Meta, is.Proxy.DestinationServiceName}, ownRights(s)...)
	}
	for _, c := range g.local.Checks() {
		is, rights := []any{c.Record.Name, c.Record.ServiceID}, []need{writes(acl.Node, "own-node")}
		if c.Record.ServiceID != "" {
			rights = []need{writes(acl.Service, c.Record.ServiceName)}
			if s := g.local.Service(c.Record.ServiceID); s != nil {
				rights = append(rights, ownRights(s)...)
			}
		}
		if c.Record.Type == "ttl" || c.Record.Type == "maintenance" { // others find out by themselves
			is = append(is, c.Record.Status, c.Record.Output)
		}
		o.add("own check", c.Record.CheckID, is, rights...)
	}
	return o
}

// ownRights are those on a service that an agent registered: a sidecar that came with its service goes with it.
func ownRights(s *local.Service) []need {
	rights := []need{writes(acl.Service, s.Given.Service)}
	if s.Nested {
		rights = append(rights, writes(acl.Service, s.Given.Proxy.DestinationServiceName))
	}
	return rights
}

// trespasses returns the changes that rules do not cover.
func trespasses(rules naive, before, after objects) (list []string) {
	covered := func(o object) bool {
		return slices.ContainsFunc(o.any, func(n need) bool { return rules.may(n.resource, n.access, n.name) })
	}
	changed := func(id string) bool { return before[id].data != after[id].data }
	check := func(id string) {
		old, had := before[id]
		now, has := after[id]
		kind, _, _ := strings.Cut(id, " ")
		switch {
		case !had && !covered(now), had && has && (!covered(old) || !covered(now)), !has && !covered(old):
		default:
			return
		}
		// What depends on something else goes with it, and that was looked at itself.
		for _, link := range strings.Fields(old.links) {
			if _, still := after["session "+link]; !still && (kind == "key" || kind == "query") {
				return
			}
			if kind == "session" && !has && changed("check "+link) {
				return
			}
		}
		list = append(list, fmt.Sprintf("%s: %q became %q", id, old.data, now.data))
	}
	for id := range before {
		if changed(id) {
			check(id)
		}
	}
	for id := range after {
		if _, had := before[id]; !had {
			check(id)
		}
	}
	return list
}

// A step is one call.
type step struct{ method, target, body string }

// someStep returns a call at random, about objects there are or may be.
func (g *guardedAgent) someStep(r *rand.Rand) step {
	node, service, other, key := pick(r, nodeNames), pick(r, serviceNames), pick(r, serviceNames), pick(r, keyNames)
	id, check, status := pick(r, idNames), pick(r, checkNames), pick(r, []string{"passing", "warning", "critical"})
	text := func(format string, args ...any) string { return fmt.Sprintf(format, args...) }
	v := g.server.Store().View()
	session, queryID, intentionID, accessor, policy := unknownSecret, unknownSecret, unknownSecret, unknownSecret, unknownSecret
	if _, all := v.Sessions(); len(all) > 0 {
		session = pick(r, all).ID
	}
	if _, all := v.Queries(); len(all) > 0 {
		queryID = pick(r, all).ID
	}
	if _, all := v.Intentions(); len(all) > 0 {
		for _, s := range pick(r, all).Sources {
			if s.LegacyID != "" {
				intentionID = s.LegacyID
			}
		}
	}
	if _, all := v.ACLTokens(); len(all) > 0 {
		accessor = pick(r, all).AccessorID
	}
	if _, all := v.ACLPolicies(); len(all) > 0 {
		policy = pick(r, all).ID
	}
	ids := map[string]string{"n1": "11111111-0000-4000-8000-000000000001", "n2": "11111111-0000-4000-8000-000000000002", "N1": "11111111-0000-4000-8000-000000000003"}
	nodeID := pick(r, []string{"", "", ids[node], ids[pick(r, nodeNames)]})
	tree := pick(r, []string{"", "k", "k/", "k/x", "K"})
	value := r.IntN(100)
	kind := pick(r, []string{"service-defaults", "service-resolver", "service-splitter", "service-router", "service-intentions", "exported-services", "mesh", "proxy-defaults", "jwt-provider", "ingress-gateway", "terminating-gateway", "http-route"})
	entryName := service
	switch kind {
	case "exported-services":
		entryName = "default"
	case "mesh":
		entryName = "mesh"
	case "proxy-defaults":
		entryName = "global"
	}
	txnOps := []string{
		text(`{"KV": {"Verb": "set", "Key": %q, "Value": "eA=="}}`, key), text(`{"KV": {"Verb": "delete-tree", "Key": %q}}`, tree),
		text(`{"KV": {"Verb": "delete", "Key": %q}}`, key), text(`{"KV": {"Verb": "lock", "Key": %q, "Session": %q, "Value": "eA=="}}`, key, session),
		text(`{"KV": {"Verb": "unlock", "Key": %q, "Session": %q}}`, key, session), text(`{"KV": {"Verb": "get-tree", "Key": ""}}`),
		text(`{"Node": {"Verb": "set", "Node": {"ID": %q, "Node": %q, "Address": "10.0.0.%d"}}}`, nodeID, node, value), text(`{"Node": {"Verb": "delete", "Node": {"Node": %q}}}`, node),
		text(`{"Service": {"Verb": "set", "Node": %q, "Service": {"ID": %q, "Service": %q, "Port": %d}}}`, node, id, service, value),
		text(`{"Service": {"Verb": "delete", "Node": %q, "Service": {"ID": %q}}}`, node, id),
		text(`{"Check": {"Verb": "set", "Check": {"Node": %q, "CheckID": %q, "Name": "n%d", "Status": %q, "ServiceID": %q}}}`, node, check, value, status, pick(r, []string{"", id})),
		text(`{"Check": {"Verb": "delete", "Check": {"Node": %q, "CheckID": %q}}}`, node, check),
	}
	steps := []step{
		{"PUT", "/v1/catalog/register", text(`{"ID": %q, "Node": %q, "Address": "10.0.0.%d"}`, nodeID, node, value)},
		{"PUT", "/v1/catalog/register", text(`{"ID": %q, "Node": %q, "Address": "10.0.0.%d", "SkipNodeUpdate": %t, "Service": {"ID": %q, "Service": %q, "Port": %d}}`, nodeID, node, value, r.IntN(2) == 0, id, service, value)},
		{"PUT", "/v1/catalog/register", text(`{"Node": %q, "Address": "10.0.0.1", "SkipNodeUpdate": true, "Service": {"ID": %q, "Service": %q, "Kind": "connect-proxy", "Port": 1, "Proxy": {"DestinationServiceName": %q}}}`, node, id, service, other)},
		{"PUT", "/v1/catalog/register", text(`{"Node": %q, "Address": "10.0.0.1", "SkipNodeUpdate": true, "Service": {"ID": %q, "Service": %q, "Port": 3}, "Checks": [{"CheckID": %q, "Name": "n", "Status": %q}, {"CheckID": %q, "Name": "m", "Status": %q, "ServiceID": %q}]}`, node, id, service, check, status, pick(r, checkNames), status, pick(r, idNames))},
		{"PUT", "/v1/catalog/register", text(`{"Node": %q, "Address": "10.0.0.1", "SkipNodeUpdate": true, "Check": {"Node": %q, "CheckID": %q, "Name": "n", "Status": %q, "ServiceID": %q, "ServiceName": %q}}`, node, pick(r, nodeNames), check, status, pick(r, []string{"", id}), other)},
		{"PUT", "/v1/catalog/deregister", text(`{"Node": %q}`, node)},
		{"PUT", "/v1/catalog/deregister", text(`{"Node": %q, "ServiceID": %q}`, node, id)},
		{"PUT", "/v1/catalog/deregister", text(`{"Node": %q, "CheckID": %q}`, node, check)},
		{"PUT", "/v1/agent/service/register", text(`{"ID": %q, "Name": %q, "Port": %d, "Check": {"CheckID": %q, "TTL": "1h"}}`, id, service, value, check)},
		{"PUT", "/v1/agent/service/register?replace-existing-checks=true", text(`{"ID": %q, "Name": %q, "Port": %d, "Checks": [{"CheckID": %q, "TTL": "1h"}]}`, id, service, value, check)},
		{"PUT", "/v1/agent/service/register", text(`{"ID": %q, "Name": %q, "Port": %d, "Connect": {"SidecarService": {}}}`, id, service, value)},
		{"PUT", "/v1/agent/service/register", text(`{"ID": %q, "Name": %q, "Kind": "connect-proxy", "Port": %d, "Proxy": {"DestinationServiceName": %q}, "Check": {"TTL": "1h"}}`, id, service, value, other)},
		{"PUT", "/v1/agent/service/deregister/" + id, ""},
		{"PUT", "/v1/agent/service/maintenance/" + id + "?enable=" + pick(r, []string{"true", "false"}), ""},
		{"PUT", "/v1/agent/maintenance?enable=" + pick(r, []string{"true", "false"}), ""},
		{"PUT", "/v1/agent/check/register", text(`{"ID": %q, "Name": "n%d", "TTL": "1h", "ServiceID": %q}`, check, value, pick(r, []string{"", id}))},
		{"PUT", "/v1/agent/check/deregister/" + check, ""},
		{"PUT", "/v1/agent/check/" + pick(r, []string{"pass", "warn", "fail"}) + "/" + check, ""},
		{"PUT", "/v1/agent/check/update/" + check, text(`{"Status": %q, "Output": "o%d"}`, status, value)},
		{"PUT", "/v1/kv/" + key, text("%d", value)},
		{"PUT", "/v1/kv/" + key + "?acquire=" + session, text("%d", value)},
		{"PUT", "/v1/kv/" + key + "?release=" + session, ""},
		{"DELETE", "/v1/kv/" + key, ""},
		{"DELETE", "/v1/kv/" + tree + "?recurse", ""},
		{"PUT", "/v1/session/create", text(`{"Node": %q, "NodeChecks": [], "Behavior": %q, "LockDelay": "0s"}`, node, pick(r, []string{"release", "delete"}))},
		{"PUT", "/v1/session/create", text(`{"Node": %q, "NodeChecks": [%q]}`, node, check)},
		{"PUT", "/v1/session/destroy/" + session, ""},
		{"PUT", "/v1/session/renew/" + session, ""},
		{"POST", "/v1/query", text(`{"Name": %q, "Service": {"Service": %q}, "Session": %q}`, pick(r, queryNames), service, pick(r, []string{"", session}))},
		{"PUT", "/v1/query/" + queryID, text(`{"Name": %q, "Service": {"Service": %q}}`, pick(r, queryNames), service)},
		{"DELETE", "/v1/query/" + queryID, ""},
		{"PUT", "/v1/connect/intentions/exact?source=" + url.QueryEscape(other) + "&destination=" + service, text(`{"Action": %q}`, pick(r, []string{"allow", "deny"}))},
		{"DELETE", "/v1/connect/intentions/exact?source=" + other + "&destination=" + service, ""},
		{"POST", "/v1/connect/intentions", text(`{"SourceName": %q, "DestinationName": %q, "Action": "allow"}`, other, service)},
		{"PUT", "/v1/connect/intentions/" + intentionID, text(`{"SourceName": %q, "DestinationName": %q, "Action": "deny"}`, other, service)},
		{"DELETE", "/v1/connect/intentions/" + intentionID, ""},
		{"PUT", "/v1/config", text(`{"Kind": "service-defaults", "Name": %q, "Protocol": "http", "Meta": {"v": "%d"}}`, service, value)},
		{"PUT", "/v1/config", text(`{"Kind": "service-resolver", "Name": %q, "Redirect": {"Service": %q}}`, service, other)},
		{"PUT", "/v1/config", text(`{"Kind": "service-splitter", "Name": %q, "Splits": [{"Weight": 100, "Service": %q}]}`, service, other)},
		{"PUT", "/v1/config", text(`{"Kind": "service-router", "Name": %q, "Routes": [{"Destination": {"Service": %q}}]}`, service, other)},
		{"PUT", "/v1/config", text(`{"Kind": "service-intentions", "Name": %q, "Sources": [{"Name": %q, "Action": "allow"}]}`, service, other)},
		{"PUT", "/v1/config", text(`{"Kind": "exported-services", "Name": "default", "Services": [{"Name": %q, "Consumers": [{"Peer": "p"}]}]}`, service)},
		{"PUT", "/v1/config", text(`{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http", "v": %d}}`, value)},
		{"PUT", "/v1/config", text(`{"Kind": "mesh", "Meta": {"v": "%d"}}`, value)},
		{"PUT", "/v1/config", text(`{"Kind": "terminating-gateway", "Name": %q, "Services": [{"Name": %q}]}`, service, other)},
		{"PUT", "/v1/config", text(`{"Kind": "ingress-gateway", "Name": %q, "Listeners": [{"Port": 80, "Protocol": "http", "Services": [{"Name": %q}]}]}`, service, other)},
		{"PUT", "/v1/config", text(`{"Kind": "bound-api-gateway", "Name": %q}`, service)},
		{"DELETE", "/v1/config/" + kind + "/" + entryName, ""},
		{"PUT", "/v1/acl/token", text(`{"Description": "made %d"}`, value)},
		{"PUT", "/v1/acl/token/" + accessor, text(`{"Description": "changed %d"}`, value)},
		{"PUT", "/v1/acl/token/" + accessor + "/clone", `{}`},
		{"PUT", "/v1/acl/policy", text(`{"Name": "made-%d"}`, value)},
		{"PUT", "/v1/acl/policy/" + policy, text(`{"Name": "changed-%d", "Description": "d"}`, value)},
		{"PUT", "/v1/acl/role", text(`{"Name": "role-%d"}`, value)},
		{"PUT", "/v1/acl/bootstrap", ""},
		{"POST", "/v1/acl/logout", ""},
		{"PUT", "/v1/coordinate/update", text(`{"Node": %q, "Coord": {"Vec": [1,0,0,0,0,0,0,0], "Error": 1}}`, node)},
		{"POST", "/v1/peering/token", text(`{"PeerName": "p%d"}`, value%3)},
		{"DELETE", text("/v1/peering/p%d", value%3), ""},
		{"PUT", "/v1/connect/ca/configuration", text(`{"Provider": "consul", "Config": {"LeafCertTTL": "%dh"}}`, 70+value)},
		{"PUT", "/v1/connect/ca/rotation", `{"PrivateKeyType": "none"}`},
		{"PUT", "/v1/operator/autopilot/configuration", text(`{"MaxTrailingLogs": %d}`, 200+value)},
		{"PUT", "/v1/internal/service-virtual-ip", text(`{"Service": %q, "ManualVIPs": ["240.0.0.%d"]}`, service, value)},
		{"PUT", "/v1/snapshot", "none"},
		{"PUT", "/v1/agent/token/replication", `{"Token": ""}`},
		{"PUT", "/v1/event/fire/e1", "x"},
	}
	for range 8 {
		ops := []string{}
		for range 1 + r.IntN(3) {
			ops = append(ops, pick(r, txnOps))
		}
		steps = append(steps, step{"PUT", "/v1/txn", "[" + strings.Join(ops, ",") + "]"})
	}
	return pick(r, steps)
}

// No sequence of calls with any token changes an object that the token may not write, whatever way round it tries: held
// against the plainest reading of its rules (spec/threats.md, class 6).
func TestThreat06NoSideDoors(t *testing.T) {
	seed, steps := testkit.Seed(t), 6000
	if testing.Short() {
		steps = 1500
	}
	noSideDoors(t, rand.New(rand.NewPCG(seed, 6)), steps)
}

func noSideDoors(t *testing.T, r *rand.Rand, steps int) {
	g := runServer(t)
	type actor struct {
		secret string
		rules  naive
		text   string
	}
	actors := []actor{{"", naive{}, "nobody"}}
	for range 24 {
		rules := someRules(r)
		text := rules.text()
		actors = append(actors, actor{g.token(text), rules, text})
	}
	done, refused, made := 0, 0, map[string]int{}
	before := g.snapshot()
	for i := range steps {
		s := g.someStep(r)
		if r.IntN(3) == 0 { // somebody has to fill the state
			if strings.HasPrefix(s.target, "/v1/acl/token/") || strings.Contains(s.target, "/v1/acl/policy/") {
				continue // the actors are to stay what they are
			}
			g.do(s.method, s.target, managementSecret, s.body)
			before = g.snapshot()
			continue
		}
		a := pick(r, actors)
		if a.rules.may(acl.ACL, acl.Write, "") && strings.HasPrefix(s.target, "/v1/acl/") {
			continue
		}
		code, answer := g.do(s.method, s.target, a.secret, s.body)
		after := g.snapshot()
		if found := trespasses(a.rules, before, after); len(found) > 0 {
			t.Fatalf("step %d: %s %s %s\nanswered %d %s\nto a token with\n%s\nchanged\n%s", i, s.method, s.target, s.body, code, answer, a.text, strings.Join(found, "\n"))
		}
		kind, _, _ := strings.Cut(strings.TrimPrefix(s.target, "/v1/"), "?")
		switch {
		case code == 403 || strings.Contains(answer, "Permission denied"):
			refused++
		case code == 200:
			done++
			made[strings.SplitN(kind, "/", 3)[0]]++
		}
		before = after
	}
	if done < steps/20 || refused < steps/20 || len(made) < 6 {
		t.Errorf("%d calls were done (%v) and %d refused: this tests little", done, made, refused)
	}
}
