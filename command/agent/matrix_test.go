package agent

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/acl"
)

// fixture makes objects of every kind. Their names, and what is in them, begin with "zqx-".
type fixture struct {
	session, query, policy, role, token, tokenSecret, rule, intention, jwtKey string
}

// put makes the objects that calls change, again.
func (f *fixture) put(g *guardedAgent) {
	g.t.Helper()
	for _, doc := range []string{
		`{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}`,
		`{"Kind": "mesh", "Meta": {"k": "zqx-mesh"}}`,
		`{"Kind": "service-defaults", "Name": "zqx-svc", "Protocol": "http", "Meta": {"k": "zqx-defaults"}}`,
		`{"Kind": "service-defaults", "Name": "zqx-src", "Protocol": "http"}`,
		`{"Kind": "service-resolver", "Name": "zqx-svc", "Meta": {"k": "zqx-resolver"}}`,
		`{"Kind": "service-splitter", "Name": "zqx-svc", "Splits": [{"Weight": 100, "Service": "zqx-svc"}], "Meta": {"k": "zqx-splitter"}}`,
		`{"Kind": "service-router", "Name": "zqx-svc", "Meta": {"k": "zqx-router"}}`,
		`{"Kind": "service-intentions", "Name": "zqx-svc", "Sources": [{"Name": "zqx-src", "Action": "allow", "Description": "zqx-reason"}]}`,
		`{"Kind": "exported-services", "Name": "default", "Services": [{"Name": "zqx-svc", "Consumers": [{"Peer": "zqx-peer"}]}]}`,
		`{"Kind": "terminating-gateway", "Name": "zqx-tgw", "Services": [{"Name": "zqx-svc", "SNI": "zqx-sni"}]}`,
		`{"Kind": "ingress-gateway", "Name": "zqx-igw", "Listeners": [{"Port": 8080, "Protocol": "http", "Services": [{"Name": "zqx-svc"}]}]}`,
		`{"Kind": "api-gateway", "Name": "zqx-agw", "Listeners": [{"Name": "zqx-listener", "Port": 9090, "Protocol": "http"}]}`,
		`{"Kind": "http-route", "Name": "zqx-route", "Parents": [{"Kind": "api-gateway", "Name": "zqx-agw"}], "Rules": [{"Services": [{"Name": "zqx-svc"}]}]}`,
		`{"Kind": "jwt-provider", "Name": "zqx-jwt", "Issuer": "zqx-issuer", "JSONWebKeySet": {"Local": {"JWKS": "eyJrZXlzIjpbXX0="}}}`,
	} {
		g.must("PUT", "/v1/config", doc)
	}
	register := `{"Node": "zqx-node", "Address": "10.9.9.9", "NodeMeta": {"k": "zqx-nodemeta"}, "Service": %s, "Checks": [%s]}`
	g.do("PUT", "/v1/catalog/deregister", managementSecret, `{"Node": "new-node"}`)
	checks := `{"CheckID": "zqx-nodecheck", "Name": "zqx-checkname", "Status": "passing", "Output": "zqx-output"},
		{"CheckID": "zqx-svccheck", "Name": "n", "ServiceID": "zqx-id", "Status": "passing", "Output": "zqx-svcoutput"}`
	for _, s := range []string{
		`{"ID": "zqx-id", "Service": "zqx-svc", "Port": 80, "Tags": ["zqx-tag"], "Meta": {"k": "zqx-svcmeta"}}`,
		`{"ID": "zqx-srcid", "Service": "zqx-src", "Port": 80}`,
		`{"ID": "zqx-proxy", "Service": "zqx-proxy", "Kind": "connect-proxy", "Port": 81, "Proxy": {"DestinationServiceName": "zqx-svc"}}`,
		`{"ID": "zqx-srcproxy", "Service": "zqx-srcproxy", "Kind": "connect-proxy", "Port": 84, "Proxy": {"DestinationServiceName": "zqx-src", "Upstreams": [{"DestinationName": "zqx-svc", "LocalBindPort": 7}]}}`,
		`{"ID": "zqx-tgw", "Service": "zqx-tgw", "Kind": "terminating-gateway", "Port": 82}`,
		`{"ID": "zqx-igw", "Service": "zqx-igw", "Kind": "ingress-gateway", "Port": 83}`,
	} {
		g.must("PUT", "/v1/catalog/register", fmt.Sprintf(register, s, checks))
		checks = ""
	}
	g.must("PUT", "/v1/coordinate/update", `{"Node": "zqx-node", "Coord": {"Vec": [0,0,0,0,0,0,0,0], "Error": 1, "Height": 0.00001}}`)
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) { // it is written with others, a little later
		if code, _ := g.do("GET", "/v1/coordinate/node/zqx-node", managementSecret, ""); code == 200 {
			break
		} else if time.Now().After(end) {
			g.t.Fatal("the coordinate of zqx-node is not written")
		}
	}
	g.must("PUT", "/v1/kv/zqx-key", "zqx-value")
	g.must("PUT", "/v1/agent/service/register", `{"ID": "zqx-localid", "Name": "zqx-local", "Port": 90, "Meta": {"k": "zqx-localmeta"},
		"Check": {"CheckID": "zqx-localcheck", "TTL": "1h", "Status": "passing", "Notes": "zqx-notes"}}`)
	g.must("PUT", "/v1/agent/check/register", `{"ID": "zqx-ownnodecheck", "Name": "zqx-own", "TTL": "1h", "Status": "passing", "Notes": "zqx-ownnotes"}`)
	if f.session == "" || g.must("GET", "/v1/session/info/"+f.session, "") == "[]" {
		f.session = field(g.t, g.must("PUT", "/v1/session/create", `{"Node": "zqx-node", "Name": "zqx-session", "NodeChecks": []}`), "ID")
	}
	if code, _ := g.do("GET", "/v1/query/"+f.query, managementSecret, ""); f.query == "" || code != 200 {
		f.query = field(g.t, g.must("POST", "/v1/query", `{"Name": "zqx-query", "Token": "`+unknownSecret+`", "Service": {"Service": "zqx-svc"}}`), "ID")
	}
	g.must("PUT", "/v1/query/"+f.query, `{"Name": "zqx-query", "Token": "`+unknownSecret+`", "Service": {"Service": "zqx-svc"}}`)
	if code, _ := g.do("GET", "/v1/connect/intentions/"+f.intention, managementSecret, ""); f.intention == "" || code != 200 {
		f.intention = field(g.t, g.must("POST", "/v1/connect/intentions", `{"SourceName": "zqx-src", "DestinationName": "zqx-dst", "Action": "allow"}`), "ID")
	}
	if code, _ := g.do("GET", "/v1/peering/zqx-peer", managementSecret, ""); code != 200 {
		g.must("POST", "/v1/peering/token", `{"PeerName": "zqx-peer", "Meta": {"k": "zqx-peermeta"}}`)
	}
	object := func(id *string, what, list, doc string) {
		if *id != "" {
			if code, _ := g.do("GET", "/v1/acl/"+what+"/"+*id, managementSecret, ""); code == 200 {
				return
			}
		}
		*id = field(g.t, g.must("PUT", "/v1/acl/"+what, doc), list)
	}
	object(&f.policy, "policy", "ID", `{"Name": "zqx-policy", "Rules": "key \"zqx-ruled\" { policy = \"read\" }"}`)
	object(&f.role, "role", "ID", `{"Name": "zqx-role", "Policies": [{"Name": "zqx-policy"}]}`)
	if code, _ := g.do("GET", "/v1/acl/auth-method/zqx-method", managementSecret, ""); code != 200 {
		g.must("PUT", "/v1/acl/auth-method", `{"Name": "zqx-method", "Type": "jwt", "Config": {"JWTValidationPubKeys": [`+f.jwtKey+`], "BoundIssuer": "zqx-iss"}}`)
	}
	object(&f.rule, "binding-rule", "ID", `{"AuthMethod": "zqx-method", "BindType": "service", "BindName": "zqx-bound"}`)
	if code, _ := g.do("GET", "/v1/acl/token/"+f.token, managementSecret, ""); f.token == "" || code != 200 {
		answer := g.must("PUT", "/v1/acl/token", `{"Description": "zqx-token", "Policies": [{"Name": "zqx-policy"}]}`)
		f.token, f.tokenSecret = field(g.t, answer, "AccessorID"), field(g.t, answer, "SecretID")
	}
}

// A matrixCall is a call with the rights that it asks for (spec/acl.md section 19).
type matrixCall struct {
	route  string // as in the table of routes, with one method
	target string
	body   string
	needs  []need
	any    bool   // one of needs is enough
	first  int    // so many of needs let in, the others show; 0 means all
	plus   []need // rights that show as much
	// filters: who lacks a right is answered, without what it may not see.
	filters bool
	shows   string // what who may sees
	// anyToken: tokens that nobody knows are let in too.
	anyToken bool
	// code is the answer to who may: 200 unless set.
	code int
	// refusal is the answer to who may not: 403 unless set.
	refusal int
	// allowed tells why nobody who may makes the call: what it would do.
	skip string
}

// anyRead are the ways to ask for something: what answers from a cache is asked for twice.
var anyRead = []string{"", "", "cached", "cached", "stale", "consistent", "index=1&wait=1ms", "index=1&wait=1ms&cached"}

func withQuery(target, query string) string {
	switch {
	case query == "":
		return target
	case strings.Contains(target, "?"):
		return target + "&" + query
	}
	return target + "?" + query
}

// Every route, with every kind of token: who lacks a right is refused, or answered without what the right is for
// (spec/threats.md, class 5). A route that is in the server's table and not in this one fails the test.
func TestThreat05EveryRouteAsksForItsRights(t *testing.T) {
	g := runServer(t)
	f := newFixture(t)
	f.put(g)
	g.must("PUT", "/v1/event/fire/zqx-event", "zqx-payload")
	calls := httpCalls(f)

	want := map[string]bool{}
	for _, e := range g.http.Endpoints() {
		methods, path, _ := strings.Cut(e, " ")
		for m := range strings.SplitSeq(methods, ",") {
			want[m+" "+path] = true
		}
		known := append(strings.Split(methods, ","), http.MethodOptions)
		for _, m := range []string{"GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"} {
			if slices.Contains(known, m) {
				continue
			}
			for _, token := range []string{"", managementSecret} {
				target := strings.ReplaceAll(path, "*", "x")
				if strings.HasSuffix(target, "/") {
					target += "x"
				}
				if code, body := g.do(m, target, token, ""); code != 405 || len(leaks(body, "")) > 0 {
					t.Errorf("%s %s: %d %s", m, path, code, body)
				}
			}
		}
	}
	for _, c := range calls {
		if !want[c.route] {
			t.Errorf("%s is not a route", c.route)
		}
	}
	for route := range want {
		if !slices.ContainsFunc(calls, func(c matrixCall) bool { return c.route == route }) {
			t.Errorf("%s is in no table of what calls ask for", route)
		}
	}
	for _, c := range calls {
		t.Run(c.route, func(t *testing.T) { c.try(t, g, f) })
	}
}

func (c *matrixCall) try(t *testing.T, g *guardedAgent, f *fixture) {
	method, _, _ := strings.Cut(c.route, " ")
	code, refusal := max(c.code, 200), 403
	if c.refusal != 0 {
		refusal = c.refusal
	}
	ways := []string{"", ""}
	if method == http.MethodGet && c.route != "GET /v1/snapshot" && !strings.Contains(c.route, "monitor") && !strings.Contains(c.route, "metrics") {
		ways = anyRead
	}
	writes := method != http.MethodGet
	if !writes {
		f.put(g)
	}
	stale := false // the last call may have changed objects
	ask := func(k caller) {
		who, secret, allowed := k.who, k.secret, k.may
		ways := ways
		if writes && (allowed || stale) {
			f.put(g)
		}
		if stale = writes && allowed; stale {
			ways = ways[:1]
		}
		for _, way := range ways {
			target := withQuery(c.at(f), way)
			got, body := g.do(method, target, secret, c.fill(f, c.body))
			asked := target + c.fill(f, c.body)
			if denied := strings.Contains(body, "Permission denied"); denied && got >= 400 {
				for _, n := range c.needs { // the right that is missing is told
					asked += n.name
				}
			}
			found := leaks(body, asked)
			if k.more { // it may see other objects
				found = slices.DeleteFunc(found, func(word string) bool { return word != c.shows })
			}
			denied := got == 403 || strings.Contains(body, "Permission denied") || strings.Contains(body, "ACL not found")
			switch {
			case allowed && (denied || got != code && method == http.MethodGet):
				t.Errorf("%s %s by %s: %d %s", method, target, who, got, body)
			case allowed && !strings.Contains(body, c.shows):
				t.Errorf("%s %s by %s does not show %s: %s", method, target, who, c.shows, body)
			case allowed:
			case len(found) > 0:
				t.Errorf("%s %s by %s tells %q: %s", method, target, who, found, body)
			case (c.filters || k.in) && (denied || got != 200 && got != 404):
				t.Errorf("%s %s by %s: %d %s, want an answer without what it may not see", method, target, who, got, body)
			case !c.filters && !k.in && got != refusal:
				t.Errorf("%s %s by %s: %d %s, want a refusal", method, target, who, got, body)
			}
		}
	}
	for _, k := range g.callers(c) {
		if k.may && c.skip != "" {
			continue
		}
		ask(k)
		if !c.anyToken {
			target := c.at(f)
			if got, body := g.do(method, target, unknownSecret, c.fill(f, c.body)); got != 403 || len(leaks(body, target+c.body)) > 0 {
				t.Errorf("%s %s by a token nobody knows: %d %s", method, target, got, body)
			}
		}
	}
}

var blanks = regexp.MustCompile(`<[a-z]+>`)

// fill puts the IDs of objects into a text.
func (c *matrixCall) fill(f *fixture, text string) string {
	return blanks.ReplaceAllStringFunc(text, func(name string) string {
		switch name {
		case "<session>":
			return f.session
		case "<query>":
			return f.query
		case "<policy>":
			return f.policy
		case "<role>":
			return f.role
		case "<token>":
			return f.token
		case "<rule>":
			return f.rule
		case "<intention>":
			return f.intention
		}
		panic("nothing for " + name)
	})
}

func (c *matrixCall) at(f *fixture) string { return c.fill(f, c.target) }

func one(n ...need) []need { return n }

// Rights that many calls ask for.
var (
	aclRead, aclWrite   = one(may(acl.ACL, acl.Read, "")), one(may(acl.ACL, acl.Write, ""))
	opRead, opWrite     = one(may(acl.Operator, acl.Read, "")), one(may(acl.Operator, acl.Write, ""))
	agentRead           = one(may(acl.Agent, acl.Read, "own-node"))
	agentWrite          = one(may(acl.Agent, acl.Write, "own-node"))
	ownNodeWrite        = one(may(acl.Node, acl.Write, "own-node"))
	nodeRead, nodeWrite = one(may(acl.Node, acl.Read, "zqx-node")), one(may(acl.Node, acl.Write, "zqx-node"))
	svcRead, svcWrite   = one(may(acl.Service, acl.Read, "zqx-svc")), one(may(acl.Service, acl.Write, "zqx-svc"))
	localRead           = one(may(acl.Service, acl.Read, "zqx-local"))
	localWrite          = one(may(acl.Service, acl.Write, "zqx-local"))
	intenRead           = one(may(acl.Inten, acl.Read, "zqx-svc"))
	intenWrite          = one(may(acl.Inten, acl.Write, "zqx-svc"))
	keyRead, keyWrite   = one(may(acl.Key, acl.Read, "zqx-key")), one(may(acl.Key, acl.Write, "zqx-key"))
	sessRead, sessWrite = one(may(acl.Session, acl.Read, "zqx-node")), one(may(acl.Session, acl.Write, "zqx-node"))
	queryRead           = one(may(acl.Query, acl.Read, "zqx-query"))
	queryWrite          = one(may(acl.Query, acl.Write, "zqx-query"))
	meshRead, meshWrite = one(may(acl.Mesh, acl.Read, "")), one(may(acl.Mesh, acl.Write, ""))
	peerRead, peerWrite = one(may(acl.Peering, acl.Read, "")), one(may(acl.Peering, acl.Write, ""))
	instanceRead        = slices.Concat(svcRead, nodeRead)
	gatewayRead         = one(may(acl.Service, acl.Read, "zqx-tgw"), may(acl.Service, acl.Read, "zqx-svc"))
	topologyRead        = slices.Concat(svcRead, nodeRead, one(may(acl.Service, acl.Read, "zqx-src")))
)

// httpCalls are the routes with what they ask for.
func httpCalls(f *fixture) []matrixCall {
	return []matrixCall{
		// Access control.
		{route: "PUT /v1/acl/bootstrap", target: "/v1/acl/bootstrap", needs: nil, anyToken: true, skip: "always refused once done"},
		{route: "POST /v1/acl/login", target: "/v1/acl/login", body: `{"AuthMethod": "zqx-method", "BearerToken": "x"}`, anyToken: true, skip: "the proof is no token"},
		{route: "POST /v1/acl/logout", target: "/v1/acl/logout", skip: "tokens of these tests come from no login"},
		{route: "GET /v1/acl/replication", target: "/v1/acl/replication", anyToken: true},
		{route: "GET /v1/acl/tokens", target: "/v1/acl/tokens", needs: aclRead, shows: "zqx-token"},
		{route: "PUT /v1/acl/token", target: "/v1/acl/token", body: `{"Description": "d"}`, needs: aclWrite},
		{route: "GET /v1/acl/token/self", target: "/v1/acl/token/self", skip: "it shows every token itself, and nobody has none"},
		{route: "GET /v1/acl/token/", target: "/v1/acl/token/<token>", needs: aclRead, shows: "zqx-token"},
		{route: "GET /v1/acl/token/", target: "/v1/acl/token/<token>?expanded", needs: aclRead, shows: "zqx-ruled"},
		{route: "PUT /v1/acl/token/", target: "/v1/acl/token/<token>", body: `{"Description": "zqx-token"}`, needs: aclWrite},
		{route: "DELETE /v1/acl/token/", target: "/v1/acl/token/<token>", needs: aclWrite},
		{route: "PUT /v1/acl/token/*/clone", target: "/v1/acl/token/<token>/clone", body: `{"Description": "c"}`, needs: aclWrite},
		{route: "GET /v1/acl/policies", target: "/v1/acl/policies", needs: aclRead, shows: "zqx-policy"},
		{route: "PUT /v1/acl/policy", target: "/v1/acl/policy", body: `{"Name": ""}`, needs: aclWrite},
		{route: "GET /v1/acl/policy/", target: "/v1/acl/policy/<policy>", needs: aclRead, shows: "zqx-ruled"},
		{route: "PUT /v1/acl/policy/", target: "/v1/acl/policy/<policy>", body: `{"Name": "zqx-policy", "Rules": "key \"zqx-ruled\" { policy = \"read\" }"}`, needs: aclWrite},
		{route: "DELETE /v1/acl/policy/", target: "/v1/acl/policy/<policy>", needs: aclWrite},
		{route: "GET /v1/acl/policy/name/", target: "/v1/acl/policy/name/zqx-policy", needs: aclRead, shows: "zqx-ruled"},
		{route: "GET /v1/acl/roles", target: "/v1/acl/roles", needs: aclRead, shows: "zqx-role"},
		{route: "PUT /v1/acl/role", target: "/v1/acl/role", body: `{"Name": ""}`, needs: aclWrite},
		{route: "GET /v1/acl/role/", target: "/v1/acl/role/<role>", needs: aclRead, shows: "zqx-role"},
		{route: "PUT /v1/acl/role/", target: "/v1/acl/role/<role>", body: `{"Name": "zqx-role"}`, needs: aclWrite},
		{route: "DELETE /v1/acl/role/", target: "/v1/acl/role/<role>", needs: aclWrite},
		{route: "GET /v1/acl/role/name/", target: "/v1/acl/role/name/zqx-role", needs: aclRead, shows: "zqx-role"},
		{route: "GET /v1/acl/auth-methods", target: "/v1/acl/auth-methods", needs: aclRead, shows: "zqx-method"},
		{route: "PUT /v1/acl/auth-method", target: "/v1/acl/auth-method", body: `{"Name": "zqx-other", "Type": "jwt", "Config": {"JWTValidationPubKeys": [` + f.jwtKey + `]}}`, needs: aclWrite},
		{route: "GET /v1/acl/auth-method/", target: "/v1/acl/auth-method/zqx-method", needs: aclRead, shows: "zqx-iss"},
		{route: "PUT /v1/acl/auth-method/", target: "/v1/acl/auth-method/zqx-method", body: `{"Description": "d", "Type": "jwt", "Config": {"JWTValidationPubKeys": [` + f.jwtKey + `], "BoundIssuer": "zqx-iss"}}`, needs: aclWrite},
		{route: "DELETE /v1/acl/auth-method/", target: "/v1/acl/auth-method/zqx-method", needs: aclWrite},
		{route: "GET /v1/acl/binding-rules", target: "/v1/acl/binding-rules", needs: aclRead, shows: "zqx-bound"},
		{route: "PUT /v1/acl/binding-rule", target: "/v1/acl/binding-rule", body: `{"AuthMethod": "zqx-method", "BindType": "node", "BindName": "x"}`, needs: aclWrite},
		{route: "GET /v1/acl/binding-rule/", target: "/v1/acl/binding-rule/<rule>", needs: aclRead, shows: "zqx-bound"},
		{route: "PUT /v1/acl/binding-rule/", target: "/v1/acl/binding-rule/<rule>", body: `{"BindType": "service", "BindName": "zqx-bound"}`, needs: aclWrite},
		{route: "DELETE /v1/acl/binding-rule/", target: "/v1/acl/binding-rule/<rule>", needs: aclWrite},
		{route: "GET /v1/acl/templated-policies", target: "/v1/acl/templated-policies", needs: aclRead, shows: "builtin/service"},
		{route: "GET /v1/acl/templated-policy/name/", target: "/v1/acl/templated-policy/name/builtin/service", needs: aclRead, shows: "builtin/service"},
		{route: "POST /v1/acl/templated-policy/preview/", target: "/v1/acl/templated-policy/preview/builtin/service", body: `{"Name": "api"}`, needs: aclRead},
		{route: "POST /v1/internal/acl/authorize", target: "/v1/internal/acl/authorize", body: `[{"Resource": "key", "Segment": "zqx-key", "Access": "read"}]`},

		// The agent.
		{route: "GET /v1/agent/self", target: "/v1/agent/self", needs: agentRead, shows: "own-node"},
		{route: "GET /v1/agent/host", target: "/v1/agent/host", needs: opRead},
		{route: "GET /v1/agent/version", target: "/v1/agent/version", anyToken: true},
		{route: "GET /v1/agent/members", target: "/v1/agent/members", needs: one(may(acl.Node, acl.Read, "own-node")), filters: true, shows: `own-node`},
		{route: "GET /v1/agent/members", target: "/v1/agent/members?wan=1", needs: one(may(acl.Node, acl.Read, "own-node.dc1")), filters: true, shows: "own-node.dc1"},
		{route: "GET /v1/agent/services", target: "/v1/agent/services", needs: localRead, filters: true, shows: "zqx-localmeta"},
		{route: "GET /v1/agent/service/", target: "/v1/agent/service/zqx-localid", needs: localRead, shows: "zqx-localmeta"},
		{route: "GET /v1/agent/checks", target: "/v1/agent/checks", needs: localRead, filters: true, shows: "zqx-notes"},
		{route: "GET /v1/agent/checks", target: "/v1/agent/checks", needs: one(may(acl.Node, acl.Read, "own-node")), filters: true, shows: "zqx-ownnotes"},
		{route: "GET /v1/agent/health/service/id/", target: "/v1/agent/health/service/id/zqx-localid", needs: localRead, shows: "zqx-notes"},
		{route: "GET /v1/agent/health/service/name/", target: "/v1/agent/health/service/name/zqx-local", needs: localRead, shows: "zqx-notes"},
		{route: "PUT /v1/agent/service/register", target: "/v1/agent/service/register", body: `{"ID": "zqx-localid", "Name": "other", "Port": 1}`, needs: slices.Concat(localWrite, one(may(acl.Service, acl.Write, "other")))},
		{route: "PUT /v1/agent/service/register", target: "/v1/agent/service/register", body: `{"ID": "zqx-p", "Name": "zqx-p", "Kind": "connect-proxy", "Port": 1, "Proxy": {"DestinationServiceName": "zqx-svc"}}`, needs: slices.Concat(svcWrite, one(may(acl.Service, acl.Write, "zqx-p")))},
		{route: "PUT /v1/agent/service/deregister/", target: "/v1/agent/service/deregister/zqx-localid", needs: localWrite},
		{route: "PUT /v1/agent/service/maintenance/", target: "/v1/agent/service/maintenance/zqx-localid?enable=false", needs: localWrite},
		{route: "PUT /v1/agent/maintenance", target: "/v1/agent/maintenance?enable=false", needs: ownNodeWrite},
		{route: "PUT /v1/agent/check/register", target: "/v1/agent/check/register", body: `{"ID": "c", "Name": "c", "TTL": "1h"}`, needs: ownNodeWrite},
		{route: "PUT /v1/agent/check/register", target: "/v1/agent/check/register", body: `{"ID": "d", "Name": "d", "ServiceID": "zqx-localid", "TTL": "1h"}`, needs: localWrite},
		{route: "PUT /v1/agent/check/register", target: "/v1/agent/check/register", body: `{"ID": "zqx-localcheck", "Name": "d", "TTL": "1h"}`, needs: slices.Concat(localWrite, ownNodeWrite)},
		{route: "PUT /v1/agent/check/deregister/", target: "/v1/agent/check/deregister/zqx-localcheck", needs: localWrite},
		{route: "PUT /v1/agent/check/deregister/", target: "/v1/agent/check/deregister/zqx-ownnodecheck", needs: ownNodeWrite},
		{route: "PUT /v1/agent/check/pass/", target: "/v1/agent/check/pass/zqx-localcheck", needs: localWrite},
		{route: "PUT /v1/agent/check/warn/", target: "/v1/agent/check/warn/zqx-ownnodecheck", needs: ownNodeWrite},
		{route: "PUT /v1/agent/check/fail/", target: "/v1/agent/check/fail/zqx-localcheck", needs: localWrite},
		{route: "PUT /v1/agent/check/update/", target: "/v1/agent/check/update/zqx-localcheck", body: `{"Status": "passing", "Output": "x"}`, needs: localWrite},
		{route: "PUT /v1/agent/reload", target: "/v1/agent/reload", needs: agentWrite},
		{route: "PUT /v1/agent/join/", target: "/v1/agent/join/127.0.0.1:1", needs: agentWrite, skip: "it waits long"},
		{route: "PUT /v1/agent/leave", target: "/v1/agent/leave", needs: agentWrite, skip: "the agent would leave"},
		{route: "PUT /v1/agent/force-leave/", target: "/v1/agent/force-leave/zqx-gone", needs: opWrite},
		{route: "GET /v1/agent/metrics", target: "/v1/agent/metrics", needs: agentRead},
		{route: "GET /v1/agent/metrics", target: "/v1/agent/metrics?format=prometheus", needs: agentRead},
		{route: "GET /v1/agent/metrics/stream", target: "/v1/agent/metrics/stream", needs: agentRead},
		{route: "GET /v1/agent/monitor", target: "/v1/agent/monitor", needs: agentRead},
		{route: "PUT /v1/agent/token/", target: "/v1/agent/token/replication", body: `{"Token": ""}`, needs: agentWrite},

		// The catalog.
		{route: "PUT /v1/catalog/register", target: "/v1/catalog/register", body: `{"Node": "new-node", "Address": "10.0.0.1"}`, needs: one(may(acl.Node, acl.Write, "new-node"))},
		{route: "PUT /v1/catalog/register", target: "/v1/catalog/register", body: `{"Node": "zqx-node", "Address": "10.9.9.10"}`, needs: nodeWrite},
		{route: "PUT /v1/catalog/register", target: "/v1/catalog/register", body: `{"Node": "zqx-node", "Address": "10.9.9.9", "SkipNodeUpdate": true, "Service": {"ID": "zqx-id", "Service": "other", "Port": 2}}`, needs: slices.Concat(svcWrite, one(may(acl.Service, acl.Write, "other")))},
		{route: "PUT /v1/catalog/register", target: "/v1/catalog/register", body: `{"Node": "zqx-node", "SkipNodeUpdate": true, "Address": "10.9.9.9", "Check": {"CheckID": "zqx-svccheck", "Name": "n", "ServiceID": "zqx-id", "Status": "critical"}}`, needs: svcWrite},
		{route: "PUT /v1/catalog/register", target: "/v1/catalog/register", body: `{"Node": "zqx-node", "SkipNodeUpdate": true, "Address": "10.9.9.9", "Check": {"CheckID": "zqx-nodecheck", "Name": "n", "Status": "critical"}}`, needs: nodeWrite},
		{route: "PUT /v1/catalog/deregister", target: "/v1/catalog/deregister", body: `{"Node": "zqx-node"}`, needs: nodeWrite},
		{route: "PUT /v1/catalog/deregister", target: "/v1/catalog/deregister", body: `{"Node": "zqx-node", "ServiceID": "zqx-id"}`, needs: slices.Concat(svcWrite, nodeWrite), any: true},
		{route: "PUT /v1/catalog/deregister", target: "/v1/catalog/deregister", body: `{"Node": "zqx-node", "CheckID": "zqx-nodecheck"}`, needs: nodeWrite},
		{route: "PUT /v1/catalog/deregister", target: "/v1/catalog/deregister", body: `{"Node": "zqx-node", "CheckID": "zqx-svccheck"}`, needs: slices.Concat(svcWrite, nodeWrite), any: true},
		{route: "GET /v1/catalog/datacenters", target: "/v1/catalog/datacenters", anyToken: true},
		{route: "GET /v1/catalog/nodes", target: "/v1/catalog/nodes", needs: nodeRead, filters: true, shows: "zqx-nodemeta"},
		{route: "GET /v1/catalog/services", target: "/v1/catalog/services", needs: instanceRead, filters: true, shows: "zqx-tag"},
		{route: "GET /v1/catalog/service/", target: "/v1/catalog/service/zqx-svc", needs: instanceRead, filters: true, shows: "zqx-svcmeta"},
		{route: "GET /v1/catalog/connect/", target: "/v1/catalog/connect/zqx-svc", needs: slices.Concat(instanceRead, one(may(acl.Service, acl.Read, "zqx-proxy"))), filters: true, shows: "zqx-proxy"},
		{route: "GET /v1/catalog/node/", target: "/v1/catalog/node/zqx-node", needs: nodeRead, filters: true, shows: "zqx-nodemeta"},
		{route: "GET /v1/catalog/node/", target: "/v1/catalog/node/zqx-node", needs: instanceRead, filters: true, shows: "zqx-svcmeta"},
		{route: "GET /v1/catalog/node-services/", target: "/v1/catalog/node-services/zqx-node", needs: instanceRead, filters: true, shows: "zqx-svcmeta"},
		{route: "GET /v1/catalog/gateway-services/", target: "/v1/catalog/gateway-services/zqx-tgw", needs: one(may(acl.Service, acl.Read, "zqx-tgw"))},
		{route: "GET /v1/catalog/gateway-services/", target: "/v1/catalog/gateway-services/zqx-tgw", needs: gatewayRead, first: 1, shows: "zqx-sni"},
		{route: "GET /v1/health/node/", target: "/v1/health/node/zqx-node", needs: nodeRead, filters: true, shows: "zqx-output"},
		{route: "GET /v1/health/node/", target: "/v1/health/node/zqx-node", needs: instanceRead, filters: true, shows: "zqx-svcoutput"},
		{route: "GET /v1/health/checks/", target: "/v1/health/checks/zqx-svc", needs: instanceRead, filters: true, shows: "zqx-svcoutput"},
		{route: "GET /v1/health/state/", target: "/v1/health/state/any", needs: nodeRead, filters: true, shows: "zqx-output"},
		{route: "GET /v1/health/state/", target: "/v1/health/state/passing", needs: instanceRead, filters: true, shows: "zqx-svcoutput"},
		{route: "GET /v1/health/service/", target: "/v1/health/service/zqx-svc", needs: instanceRead, filters: true, shows: "zqx-svcoutput"},
		{route: "GET /v1/health/service/", target: "/v1/health/service/zqx-svc?passing&merge-central-config", needs: instanceRead, filters: true, shows: "zqx-svcmeta"},
		{route: "GET /v1/health/connect/", target: "/v1/health/connect/zqx-svc", needs: svcRead},
		{route: "GET /v1/health/connect/", target: "/v1/health/connect/zqx-svc", needs: slices.Concat(instanceRead, one(may(acl.Service, acl.Read, "zqx-proxy"))), first: 1, shows: "zqx-proxy"},
		{route: "GET /v1/health/ingress/", target: "/v1/health/ingress/zqx-svc", needs: svcRead},
		{route: "GET /v1/health/ingress/", target: "/v1/health/ingress/zqx-svc", needs: slices.Concat(instanceRead, one(may(acl.Service, acl.Read, "zqx-igw"))), first: 1, shows: "zqx-igw"},
		{route: "GET /v1/coordinate/nodes", target: "/v1/coordinate/nodes", needs: nodeRead, filters: true, shows: "zqx-node"},
		{route: "GET /v1/coordinate/node/", target: "/v1/coordinate/node/zqx-node", needs: nodeRead, shows: "zqx-node"},
		{route: "GET /v1/coordinate/datacenters", target: "/v1/coordinate/datacenters", anyToken: true},
		{route: "PUT /v1/coordinate/update", target: "/v1/coordinate/update", body: `{"Node": "zqx-node", "Coord": {"Vec": [1,0,0,0,0,0,0,0], "Error": 1}}`, needs: nodeWrite},

		// Keys, sessions, transactions, queries, events.
		{route: "GET /v1/kv/", target: "/v1/kv/zqx-key", needs: keyRead, shows: "zqx-key"},
		{route: "GET /v1/kv/", target: "/v1/kv/zqx-key?raw", needs: keyRead, shows: "zqx-value"},
		{route: "GET /v1/kv/", target: "/v1/kv/zqx?recurse", needs: keyRead, filters: true, shows: "zqx-key"},
		{route: "GET /v1/kv/", target: "/v1/kv/?recurse", needs: keyRead, filters: true, shows: "zqx-key"},
		{route: "GET /v1/kv/", target: "/v1/kv/?keys", needs: keyRead, filters: true, shows: "zqx-key"},
		{route: "PUT /v1/kv/", target: "/v1/kv/zqx-key", body: "x", needs: keyWrite},
		{route: "PUT /v1/kv/", target: "/v1/kv/zqx-key?cas=0", body: "x", needs: keyWrite},
		{route: "PUT /v1/kv/", target: "/v1/kv/zqx-key?acquire=<session>", body: "x", needs: keyWrite},
		{route: "PUT /v1/kv/", target: "/v1/kv/zqx-key?release=<session>", body: "x", needs: keyWrite},
		{route: "DELETE /v1/kv/", target: "/v1/kv/zqx-key", needs: keyWrite},
		{route: "DELETE /v1/kv/", target: "/v1/kv/zqx-key?cas=1", needs: keyWrite},
		{route: "DELETE /v1/kv/", target: "/v1/kv/zqx?recurse", needs: one(need{acl.Key, acl.Write, "zqx", true})},
		{route: "PUT /v1/session/create", target: "/v1/session/create", body: `{"Node": "zqx-node", "NodeChecks": []}`, needs: sessWrite},
		{route: "PUT /v1/session/destroy/", target: "/v1/session/destroy/<session>", needs: sessWrite},
		{route: "PUT /v1/session/renew/", target: "/v1/session/renew/<session>", needs: sessWrite},
		{route: "GET /v1/session/info/", target: "/v1/session/info/<session>", needs: sessRead, filters: true, shows: "zqx-session"},
		{route: "GET /v1/session/node/", target: "/v1/session/node/zqx-node", needs: sessRead, filters: true, shows: "zqx-session"},
		{route: "GET /v1/session/list", target: "/v1/session/list", needs: sessRead, filters: true, shows: "zqx-session"},
		{route: "PUT /v1/txn", target: "/v1/txn", body: `[{"KV": {"Verb": "set", "Key": "zqx-key", "Value": "eA=="}}]`, needs: keyWrite, refusal: 409},
		{route: "PUT /v1/txn", target: "/v1/txn", body: `[{"KV": {"Verb": "get", "Key": "zqx-key"}}]`, needs: keyRead, filters: true, shows: "zqx-key"},
		{route: "PUT /v1/txn", target: "/v1/txn", body: `[{"KV": {"Verb": "get-tree", "Key": "zqx"}}]`, needs: keyRead, filters: true, shows: "zqx-key"},
		{route: "PUT /v1/txn", target: "/v1/txn", body: `[{"KV": {"Verb": "delete-tree", "Key": "zqx"}}]`, needs: one(need{acl.Key, acl.Write, "zqx", true}), refusal: 409},
		{route: "PUT /v1/txn", target: "/v1/txn", body: `[{"Node": {"Verb": "set", "Node": {"Node": "zqx-node", "Address": "10.9.9.11"}}}]`, needs: nodeWrite, refusal: 409},
		{route: "PUT /v1/txn", target: "/v1/txn", body: `[{"Node": {"Verb": "delete", "Node": {"Node": "zqx-node"}}}]`, needs: nodeWrite, refusal: 409},
		{route: "PUT /v1/txn", target: "/v1/txn", body: `[{"Node": {"Verb": "get", "Node": {"Node": "zqx-node"}}}]`, needs: nodeRead, filters: true, shows: "zqx-nodemeta"},
		{route: "PUT /v1/txn", target: "/v1/txn", body: `[{"Service": {"Verb": "get", "Node": "zqx-node", "Service": {"ID": "zqx-id"}}}]`, needs: svcRead, filters: true, shows: "zqx-svcmeta"},
		{route: "PUT /v1/txn", target: "/v1/txn", body: `[{"Service": {"Verb": "delete", "Node": "zqx-node", "Service": {"ID": "zqx-id"}}}]`, needs: svcWrite, refusal: 409},
		{route: "PUT /v1/txn", target: "/v1/txn", body: `[{"Service": {"Verb": "set", "Node": "zqx-node", "Service": {"ID": "zqx-id", "Service": "other", "Port": 9}}}]`, needs: slices.Concat(svcWrite, one(may(acl.Service, acl.Write, "other"))), refusal: 409},
		{route: "PUT /v1/txn", target: "/v1/txn", body: `[{"Check": {"Verb": "set", "Check": {"Node": "zqx-node", "CheckID": "zqx-svccheck", "Name": "n", "ServiceID": "zqx-id", "Status": "critical"}}}]`, needs: svcWrite, refusal: 409},
		{route: "PUT /v1/txn", target: "/v1/txn", body: `[{"Check": {"Verb": "delete", "Check": {"Node": "zqx-node", "CheckID": "zqx-nodecheck"}}}]`, needs: nodeWrite, refusal: 409},
		{route: "PUT /v1/txn", target: "/v1/txn", body: `[{"Check": {"Verb": "get", "Check": {"Node": "zqx-node", "CheckID": "zqx-nodecheck"}}}]`, needs: nodeRead, filters: true, shows: "zqx-output"},
		{route: "GET /v1/query", target: "/v1/query", needs: queryRead, plus: aclWrite, filters: true, shows: "zqx-query"},
		{route: "POST /v1/query", target: "/v1/query", body: `{"Name": "zqx-other", "Service": {"Service": "zqx-svc"}}`, needs: one(may(acl.Query, acl.Write, "zqx-other"))},
		{route: "GET /v1/query/", target: "/v1/query/<query>", needs: queryRead, shows: "zqx-query"},
		{route: "PUT /v1/query/", target: "/v1/query/<query>", body: `{"Name": "zqx-renamed", "Service": {"Service": "zqx-svc"}}`, needs: slices.Concat(queryWrite, one(may(acl.Query, acl.Write, "zqx-renamed")))},
		{route: "DELETE /v1/query/", target: "/v1/query/<query>", needs: queryWrite},
		{route: "GET /v1/query/*/execute", target: "/v1/query/zqx-query/execute", skip: "its own token finds nothing"},
		{route: "GET /v1/query/*/explain", target: "/v1/query/zqx-query/explain", needs: queryRead, shows: "zqx-svc"},
		{route: "PUT /v1/event/fire/", target: "/v1/event/fire/zqx-fired", needs: one(may(acl.Event, acl.Write, "zqx-fired"))},
		{route: "GET /v1/event/list", target: "/v1/event/list", needs: one(may(acl.Event, acl.Read, "zqx-event")), filters: true, shows: "zqx-event"},

		// The mesh.
		{route: "GET /v1/connect/ca/roots", target: "/v1/connect/ca/roots", anyToken: true},
		{route: "GET /v1/agent/connect/ca/roots", target: "/v1/agent/connect/ca/roots", anyToken: true},
		{route: "GET /v1/connect/ca/configuration", target: "/v1/connect/ca/configuration", needs: opWrite},
		{route: "PUT /v1/connect/ca/configuration", target: "/v1/connect/ca/configuration", body: `{"Provider": "none"}`, needs: opWrite},
		{route: "GET /v1/connect/ca/rotation", target: "/v1/connect/ca/rotation", needs: opRead},
		{route: "PUT /v1/connect/ca/rotation", target: "/v1/connect/ca/rotation", body: `{"PrivateKeyType": "none"}`, needs: opWrite},
		{route: "GET /v1/connect/intentions", target: "/v1/connect/intentions", needs: one(may(acl.Inten, acl.Read, "zqx-svc"), may(acl.Inten, acl.Read, "zqx-src")), any: true, filters: true, shows: "zqx-reason"},
		{route: "POST /v1/connect/intentions", target: "/v1/connect/intentions", body: `{"SourceName": "zqx-a", "DestinationName": "zqx-b", "Action": "allow"}`, needs: one(may(acl.Inten, acl.Write, "zqx-b"))},
		{route: "GET /v1/connect/intentions/exact", target: "/v1/connect/intentions/exact?source=zqx-src&destination=zqx-svc", needs: one(may(acl.Inten, acl.Read, "zqx-svc"), may(acl.Inten, acl.Read, "zqx-src")), any: true, shows: "zqx-reason"},
		{route: "PUT /v1/connect/intentions/exact", target: "/v1/connect/intentions/exact?source=zqx-src&destination=zqx-svc", body: `{"Action": "deny"}`, needs: intenWrite},
		{route: "DELETE /v1/connect/intentions/exact", target: "/v1/connect/intentions/exact?source=zqx-src&destination=zqx-svc", needs: intenWrite},
		{route: "GET /v1/connect/intentions/match", target: "/v1/connect/intentions/match?by=destination&name=zqx-svc", needs: intenRead, shows: "zqx-reason"},
		{route: "GET /v1/connect/intentions/match", target: "/v1/connect/intentions/match?by=source&name=zqx-src&name=zqx-else", needs: one(may(acl.Inten, acl.Read, "zqx-src"), may(acl.Inten, acl.Read, "zqx-else")), shows: "zqx-reason"},
		{route: "GET /v1/connect/intentions/check", target: "/v1/connect/intentions/check?source=zqx-src&destination=zqx-svc", needs: svcRead, shows: "true"},
		{route: "GET /v1/connect/intentions/", target: "/v1/connect/intentions/<intention>", needs: one(may(acl.Inten, acl.Read, "zqx-dst"), may(acl.Inten, acl.Read, "zqx-src")), any: true, shows: "zqx-dst"},
		{route: "PUT /v1/connect/intentions/", target: "/v1/connect/intentions/<intention>", body: `{"SourceName": "zqx-src", "DestinationName": "zqx-dst", "Action": "deny"}`, needs: one(may(acl.Inten, acl.Write, "zqx-dst"))},
		{route: "DELETE /v1/connect/intentions/", target: "/v1/connect/intentions/<intention>", needs: one(may(acl.Inten, acl.Write, "zqx-dst"))},
		{route: "GET /v1/agent/connect/ca/leaf/", target: "/v1/agent/connect/ca/leaf/zqx-svc", needs: svcWrite, shows: "PRIVATE KEY"},
		{route: "GET /v1/agent/connect/ca/leaf/", target: "/v1/agent/connect/ca/leaf/zqx-other", needs: one(may(acl.Service, acl.Write, "zqx-other")), shows: "PRIVATE KEY"},
		{route: "POST /v1/agent/connect/authorize", target: "/v1/agent/connect/authorize", body: `{"Target": "zqx-svc", "ClientCertURI": "spiffe://11111111-2222-3333-4444-555555555555.consul/ns/default/dc/dc1/svc/zqx-src", "ClientCertSerial": "01"}`, needs: svcWrite},
		{route: "GET /v1/discovery-chain/", target: "/v1/discovery-chain/zqx-svc", needs: svcRead, shows: "Targets"},
		{route: "POST /v1/discovery-chain/", target: "/v1/discovery-chain/zqx-svc", body: `{}`, needs: svcRead},
		{route: "PUT /v1/internal/service-virtual-ip", target: "/v1/internal/service-virtual-ip", body: `{"Service": "zqx-svc", "ManualVIPs": ["240.9.9.9"]}`, needs: meshWrite},
		{route: "GET /v1/exported-services", target: "/v1/exported-services", needs: meshRead, shows: "zqx-svc"},
		{route: "GET /v1/explain", target: "/v1/explain?from=zqx-src&to=zqx-svc", needs: slices.Concat(svcRead, intenRead, one(may(acl.Service, acl.Read, "zqx-src"))), shows: "zqx-svc"},
		{route: "POST /v1/explain", target: "/v1/explain", body: `{"From": "zqx-src", "To": "zqx-svc"}`, needs: slices.Concat(svcRead, intenRead, one(may(acl.Service, acl.Read, "zqx-src")))},
		{route: "PUT /v1/explain", target: "/v1/explain", body: `{"From": "zqx-src", "To": "zqx-svc"}`, needs: slices.Concat(svcRead, intenRead, one(may(acl.Service, acl.Read, "zqx-src")))},
		{route: "POST /v1/peering/token", target: "/v1/peering/token", body: `{"PeerName": "zqx-newpeer"}`, needs: peerWrite},
		{route: "POST /v1/peering/establish", target: "/v1/peering/establish", body: `{"PeerName": "zqx-newpeer", "PeeringToken": "e30="}`, needs: peerWrite},
		{route: "GET /v1/peering/", target: "/v1/peering/zqx-peer", needs: peerRead, shows: "zqx-peermeta"},
		{route: "DELETE /v1/peering/", target: "/v1/peering/zqx-none", needs: peerWrite},
		{route: "GET /v1/peerings", target: "/v1/peerings", needs: peerRead, shows: "zqx-peermeta"},

		// Config entries.
		{route: "GET /v1/config/", target: "/v1/config/service-defaults/zqx-svc", needs: svcRead, shows: "zqx-defaults"},
		{route: "GET /v1/config/", target: "/v1/config/service-defaults", needs: svcRead, filters: true, shows: "zqx-defaults"},
		{route: "GET /v1/config/", target: "/v1/config/service-resolver/zqx-svc", needs: svcRead, shows: "zqx-resolver"},
		{route: "GET /v1/config/", target: "/v1/config/service-router", needs: svcRead, filters: true, shows: "zqx-router"},
		{route: "GET /v1/config/", target: "/v1/config/service-splitter/zqx-svc", needs: svcRead, shows: "zqx-splitter"},
		{route: "GET /v1/config/", target: "/v1/config/service-intentions/zqx-svc", needs: intenRead, shows: "zqx-reason"},
		{route: "GET /v1/config/", target: "/v1/config/service-intentions", needs: intenRead, filters: true, shows: "zqx-reason"},
		{route: "GET /v1/config/", target: "/v1/config/ingress-gateway/zqx-igw", needs: one(may(acl.Service, acl.Read, "zqx-igw")), shows: "zqx-svc"},
		{route: "GET /v1/config/", target: "/v1/config/terminating-gateway", needs: one(may(acl.Service, acl.Read, "zqx-tgw")), filters: true, shows: "zqx-sni"},
		{route: "GET /v1/config/", target: "/v1/config/api-gateway/zqx-agw", needs: one(may(acl.Service, acl.Read, "zqx-agw")), shows: "zqx-listener"},
		{route: "GET /v1/config/", target: "/v1/config/bound-api-gateway/zqx-agw", needs: one(may(acl.Service, acl.Read, "zqx-agw"))},
		{route: "GET /v1/config/", target: "/v1/config/exported-services/default", needs: meshRead, shows: "zqx-peer"},
		{route: "GET /v1/config/", target: "/v1/config/http-route", needs: meshRead, filters: true, shows: "zqx-route"},
		{route: "GET /v1/config/", target: "/v1/config/jwt-provider/zqx-jwt", needs: one(may(acl.Mesh, acl.Read, ""), need{acl.Service, acl.Write, "", true}), any: true, shows: "zqx-issuer"},
		{route: "GET /v1/config/", target: "/v1/config/mesh/mesh"},
		{route: "GET /v1/config/", target: "/v1/config/proxy-defaults/global"},
		{route: "PUT /v1/config", target: "/v1/config", body: `{"Kind": "service-defaults", "Name": "zqx-svc", "Protocol": "http"}`, needs: svcWrite},
		{route: "PUT /v1/config", target: "/v1/config", body: `{"Kind": "service-resolver", "Name": "zqx-svc", "Redirect": {"Service": "zqx-src"}}`, needs: slices.Concat(svcWrite, one(may(acl.Service, acl.Read, "zqx-src")))},
		{route: "PUT /v1/config", target: "/v1/config", body: `{"Kind": "service-splitter", "Name": "zqx-svc", "Splits": [{"Weight": 50, "Service": "zqx-svc"}, {"Weight": 50, "Service": "zqx-src"}]}`, needs: slices.Concat(svcWrite, one(may(acl.Service, acl.Read, "zqx-src")))},
		{route: "PUT /v1/config", target: "/v1/config", body: `{"Kind": "service-intentions", "Name": "zqx-svc", "Sources": [{"Name": "*", "Action": "allow"}]}`, needs: intenWrite},
		{route: "PUT /v1/config", target: "/v1/config", body: `{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}`, needs: meshWrite},
		{route: "PUT /v1/config", target: "/v1/config", body: `{"Kind": "mesh"}`, needs: meshWrite},
		{route: "PUT /v1/config", target: "/v1/config", body: `{"Kind": "ingress-gateway", "Name": "zqx-igw"}`, needs: meshWrite},
		{route: "PUT /v1/config", target: "/v1/config", body: `{"Kind": "terminating-gateway", "Name": "zqx-tgw", "Services": [{"Name": "*"}]}`, needs: meshWrite},
		{route: "PUT /v1/config", target: "/v1/config", body: `{"Kind": "api-gateway", "Name": "zqx-agw", "Listeners": [{"Name": "zqx-l", "Port": 9091, "Protocol": "http"}]}`, needs: meshWrite},
		{route: "PUT /v1/config", target: "/v1/config", body: `{"Kind": "exported-services", "Name": "default", "Services": [{"Name": "*", "Consumers": [{"Peer": "zqx-peer"}]}]}`, needs: meshWrite},
		{route: "PUT /v1/config", target: "/v1/config", body: `{"Kind": "jwt-provider", "Name": "zqx-jwt", "JSONWebKeySet": {"Local": {"JWKS": "eyJrZXlzIjpbXX0="}}}`, needs: meshWrite},
		{route: "DELETE /v1/config/", target: "/v1/config/service-router/zqx-svc", needs: svcWrite},
		{route: "DELETE /v1/config/", target: "/v1/config/service-intentions/zqx-svc", needs: intenWrite},
		{route: "DELETE /v1/config/", target: "/v1/config/http-route/zqx-route", needs: meshWrite},
		{route: "DELETE /v1/config/", target: "/v1/config/exported-services/default", needs: meshWrite},

		// Operators.
		{route: "GET /v1/operator/raft/configuration", target: "/v1/operator/raft/configuration", needs: opRead, shows: "own-node"},
		{route: "DELETE /v1/operator/raft/peer", target: "/v1/operator/raft/peer?id=none", needs: opWrite},
		{route: "POST /v1/operator/raft/transfer-leader", target: "/v1/operator/raft/transfer-leader", needs: opWrite},
		{route: "GET /v1/operator/autopilot/configuration", target: "/v1/operator/autopilot/configuration", needs: opRead},
		{route: "PUT /v1/operator/autopilot/configuration", target: "/v1/operator/autopilot/configuration", body: `{"CleanupDeadServers": true}`, needs: opWrite},
		{route: "GET /v1/operator/autopilot/health", target: "/v1/operator/autopilot/health", needs: opRead},
		{route: "GET /v1/operator/autopilot/state", target: "/v1/operator/autopilot/state", needs: opRead},
		{route: "GET /v1/operator/keyring", target: "/v1/operator/keyring", needs: one(may(acl.Keyring, acl.Read, "")), shows: gossipKey},
		{route: "POST /v1/operator/keyring", target: "/v1/operator/keyring", body: `{"Key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`, needs: one(may(acl.Keyring, acl.Write, ""))},
		{route: "PUT /v1/operator/keyring", target: "/v1/operator/keyring", body: `{"Key": "` + gossipKey + `"}`, needs: one(may(acl.Keyring, acl.Write, ""))},
		{route: "DELETE /v1/operator/keyring", target: "/v1/operator/keyring", body: `{"Key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`, needs: one(may(acl.Keyring, acl.Write, ""))},
		// That they make a token is tried where there are some to be had; the agent here has none.
		{route: "PUT /v1/operator/join-token", target: "/v1/operator/join-token", body: `{"Server": true}`, needs: slices.Concat(aclWrite, opWrite)},
		{route: "GET /v1/operator/usage", target: "/v1/operator/usage", needs: opRead},
		{route: "GET /v1/snapshot", target: "/v1/snapshot", needs: aclWrite},
		{route: "PUT /v1/snapshot", target: "/v1/snapshot", body: "no snapshot", needs: aclWrite},
		{route: "GET /v1/status/leader", target: "/v1/status/leader", anyToken: true},
		{route: "GET /v1/status/peers", target: "/v1/status/peers", anyToken: true},

		// The console.
		{route: "GET /v1/internal/ui/nodes", target: "/v1/internal/ui/nodes", needs: nodeRead, filters: true, shows: "zqx-output"},
		{route: "GET /v1/internal/ui/nodes", target: "/v1/internal/ui/nodes", needs: instanceRead, filters: true, shows: "zqx-svcmeta"},
		{route: "GET /v1/internal/ui/node/", target: "/v1/internal/ui/node/zqx-node", needs: nodeRead, filters: true, shows: "zqx-nodemeta"},
		{route: "GET /v1/internal/ui/services", target: "/v1/internal/ui/services", needs: instanceRead, filters: true, shows: "zqx-tag"},
		{route: "GET /v1/internal/ui/catalog-overview", target: "/v1/internal/ui/catalog-overview", needs: opRead, shows: "zqx-svc"},
		{route: "GET /v1/internal/ui/gateway-services-nodes/", target: "/v1/internal/ui/gateway-services-nodes/zqx-tgw", needs: one(may(acl.Service, acl.Read, "zqx-tgw"))},
		{route: "GET /v1/internal/ui/gateway-services-nodes/", target: "/v1/internal/ui/gateway-services-nodes/zqx-tgw", needs: gatewayRead, first: 1, shows: "zqx-svc"},
		{route: "GET /v1/internal/ui/gateway-intentions/", target: "/v1/internal/ui/gateway-intentions/zqx-tgw", needs: one(may(acl.Service, acl.Read, "zqx-tgw"))},
		{route: "GET /v1/internal/ui/gateway-intentions/", target: "/v1/internal/ui/gateway-intentions/zqx-tgw", needs: slices.Concat(one(may(acl.Service, acl.Read, "zqx-tgw")), intenRead), first: 1, plus: one(may(acl.Inten, acl.Read, "zqx-src")), shows: "zqx-reason"},
		{route: "GET /v1/internal/ui/service-topology/", target: "/v1/internal/ui/service-topology/zqx-svc?kind=", needs: svcRead},
		{route: "GET /v1/internal/ui/service-topology/", target: "/v1/internal/ui/service-topology/zqx-svc?kind=", needs: topologyRead, first: 1, shows: "zqx-src"},
		{route: "GET /v1/internal/ui/exported-services", target: "/v1/internal/ui/exported-services?peer=zqx-peer", needs: svcRead, plus: meshWrite, filters: true, shows: "zqx-svc"},
		{route: "GET /v1/internal/ui/metrics-proxy/", target: "/v1/internal/ui/metrics-proxy/x", anyToken: true, code: 404},
	}
}
