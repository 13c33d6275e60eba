package explain_test

import (
	"bufio"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/explain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/connect/mesh"
	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/adsclient"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/xds"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// A fleet is the sidecars of a world, each on a machine of its own with its application.
type fleet struct {
	t     *testing.T
	w     *world
	allow bool // what is decided where no intention fits
	net   *testkit.Network
	ca    *testkit.CA
	hosts map[string]*testkit.Host // by node
	logs  map[string]*log          // access logs by node
	stops []func()
}

// A log is an access log.
type log struct{ testkit.Log }

// last returns the last line.
func (l *log) last() string {
	lines := strings.Split(strings.TrimSpace(l.String()), "\n")
	return lines[len(lines)-1]
}

// An echo is what an application tells about the request it got.
type echo struct {
	Node, Method, Path, Host string
	Header                   http.Header
}

func newFleet(t *testing.T, w *world, allow bool, random func() uint64) *fleet {
	t.Helper()
	f := &fleet{
		t: t, w: w, allow: allow, net: testkit.NewNetwork(1), ca: testkit.NewCA(t, "mesh"), hosts: map[string]*testkit.Host{}, logs: map[string]*log{},
	}
	for _, i := range w.sidecars {
		f.hosts[i.Node.Node], f.logs[i.Node.Node] = f.net.Host(i.Node.Address), &log{}
	}
	for _, i := range w.sidecars {
		f.application(i)
	}
	for _, i := range w.sidecars {
		f.sidecar(i, random)
	}
	synctest.Wait()
	return f
}

func (f *fleet) stop() {
	for _, stop := range slices.Backward(f.stops) {
		stop()
	}
}

// application serves an instance's application.
func (f *fleet) application(i *catalog.Instance) {
	l, err := f.hosts[i.Node.Node].Listen(8080)
	if err != nil {
		f.t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode(echo{i.Node.Node, r.Method, r.RequestURI, r.Host, r.Header})
	})}
	go func() { _ = srv.Serve(l) }()
	f.stops = append(f.stops, func() { _ = srv.Close() })
}

// resources compiles what a sidecar is told, as an agent would.
func (f *fleet) resources(i *catalog.Instance) *xds.Resources {
	svc := f.w.Central(i.Service)
	name := svc.Proxy.DestinationServiceName
	cert := f.ca.Issue(connect.ServiceID(trustDomain, "dc1", name).String())
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		f.t.Fatal(err)
	}
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	roots := &ca.RootsReply{TrustDomain: trustDomain, Roots: []*ca.Root{{ID: "a", Active: true, RootCert: text("CERTIFICATE", f.ca.Certificate().Raw)}}}
	leaf := &ca.Leaf{Service: name, CertPEM: text("CERTIFICATE", cert.Certificate[0]), PrivateKeyPEM: text("PRIVATE KEY", key)}
	s := mesh.New(&mesh.Registration{Node: i.Node.Node, Datacenter: "dc1", Service: svc, DefaultAllow: f.allow})
	for {
		answers := map[mesh.Need]any{}
		for _, n := range s.Needs() {
			if s.Has(n) {
				continue
			}
			switch n.Kind {
			case mesh.NeedRoots:
				answers[n] = roots
			case mesh.NeedLeaf:
				answers[n] = leaf
			case mesh.NeedMesh:
				answers[n] = &entry.GetReply{Entry: entry.Any{Entry: f.w.Entry(entry.KindMesh, entry.MeshName)}}
			case mesh.NeedEntry:
				answers[n] = &entry.GetReply{Entry: entry.Any{Entry: f.w.Entry(n.Entry, n.Service)}}
			case mesh.NeedIntentions:
				own, _ := f.w.Entry(entry.KindServiceIntentions, n.Service).(*entry.ServiceIntentions)
				all, _ := f.w.Entry(entry.KindServiceIntentions, entry.Wildcard).(*entry.ServiceIntentions)
				answers[n] = &intention.MatchReply{Matches: [][]*intention.Intention{intention.To(own, all)}}
			case mesh.NeedChain:
				c, err := chain.Compile(chain.Request{Service: n.Service, Datacenter: "dc1", TrustDomain: trustDomain, Overrides: n.Overrides}, f.w)
				if err != nil {
					f.t.Fatal(err)
				}
				answers[n] = &chain.GetReply{Chain: c}
			case mesh.NeedInstances:
				answers[n] = f.w.Answer(n)
			}
		}
		if len(answers) == 0 {
			break
		}
		s = s.With(answers)
	}
	r, err := xds.Compile(s, xds.Own)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// sidecar runs the proxy of an instance.
func (f *fleet) sidecar(i *catalog.Instance, random func() uint64) {
	h := f.hosts[i.Node.Node]
	p, err := proxy.New(proxy.Config{
		Bootstrap: &decode.Bootstrap{Node: decode.Node{ID: i.Service.ID}, LDS: true, CDS: true, ADS: &decode.ADS{}},
		Targets: []adsclient.Target{{Name: "none", Dial: func(context.Context) (net.Conn, error) {
			return nil, io.ErrUnexpectedEOF
		}}},
		Listen: func(_ context.Context, _ *model.Listener, a model.Address) (net.Listener, error) {
			return h.Listen(a.Port)
		},
		Dial: func(ctx context.Context, _, a string) (net.Conn, error) {
			return h.Dial(ctx, strings.Replace(a, "127.0.0.1", i.Node.Address, 1))
		},
		Stdout: f.logs[i.Node.Node], ShutdownTime: time.Millisecond, Rand: random,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	f.stops = append(f.stops, func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	})
	r := f.resources(i)
	for _, of := range []struct {
		typ xds.Type
		url string
	}{
		{xds.Secret, decode.TypeSecret}, {xds.Cluster, decode.TypeCluster}, {xds.Endpoint, decode.TypeEndpoints}, {xds.Listener, decode.TypeListener},
		{xds.Route, decode.TypeRoute},
	} {
		var list []adsclient.Resource
		for _, x := range r.Of(of.typ) {
			list = append(list, adsclient.Resource{Name: x.Name, Version: x.Version, Any: x.Body})
		}
		if refused := p.Update(of.url, list, nil, true); len(refused) > 0 {
			f.t.Fatalf("the proxy of %s refuses %v", i.Service.ID, refused)
		}
	}
}

// ask sends a request through the first sidecar. The status is 0 when the connection was closed without an answer.
func (f *fleet) ask(r *explain.Request) (int, *echo) {
	first := f.w.sidecars[0].Node
	conn, err := f.hosts[first.Node].Dial(f.t.Context(), first.Address+":9000")
	if err != nil {
		f.t.Fatal(err)
	}
	defer conn.Close()
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n", r.Method, r.Path, r.Host)
	for _, h := range r.Headers {
		fmt.Fprintf(&b, "%s: %s\r\n", h.Name, h.Value)
	}
	if _, err := io.WriteString(conn, b.String()+"\r\n"); err != nil {
		return 0, nil
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	e := new(echo)
	if resp.StatusCode != 200 {
		_, _ = io.Copy(io.Discard, resp.Body)
		time.Sleep(5 * time.Second) // until logs are written
		return resp.StatusCode, nil
	}
	if err := json.NewDecoder(resp.Body).Decode(e); err != nil {
		f.t.Fatal(err)
	}
	return 200, e
}

// jwtKey signs tokens that the proxies accept.
const jwtKey = "a key of thirty-two bytes or more"

func providerText() string {
	set := base64.StdEncoding.EncodeToString([]byte(`{"keys": [{"kty": "oct", "alg": "HS256", "k": "` + base64.RawURLEncoding.EncodeToString([]byte(jwtKey)) + `"}]}`))
	return `{"Kind": "jwt-provider", "Name": "okta", "Issuer": "okta", "JSONWebKeySet": {"Local": {"JWKS": "` + set + `"}}}`
}

func token(claims string) string {
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	mac := hmac.New(sha256.New, []byte(jwtKey))
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// A generator makes random configurations and requests.
type generator struct{ *rand.Rand }

func (g generator) pick(list ...string) string { return list[g.IntN(len(list))] }
func (g generator) one(n int) bool             { return g.IntN(n) == 0 }

func (g generator) permission() string {
	var parts []string
	switch g.IntN(5) {
	case 0:
		parts = append(parts, fmt.Sprintf(`"PathExact": %q`, g.pick("/a", "/b", "/a/b")))
	case 1:
		parts = append(parts, fmt.Sprintf(`"PathPrefix": %q`, g.pick("/", "/a", "/b")))
	case 2:
		parts = append(parts, fmt.Sprintf(`"PathRegex": %q`, g.pick("/[ab].*", "/a/b", "/.")))
	}
	if g.one(3) || len(parts) == 0 {
		parts = append(parts, fmt.Sprintf(`"Methods": [%q]`, g.pick("GET", "PUT")))
	}
	if g.one(3) {
		parts = append(parts, fmt.Sprintf(`"Header": [{"Name": %q, %s, "Invert": %t}]`, g.pick("x", "x", "x_y"), g.pick(`"Present": true`, `"Exact": "1"`, `"Prefix": "1"`), g.one(2)))
	}
	text := fmt.Sprintf(`{"Action": %q, "HTTP": {%s}`, g.pick("allow", "deny"), strings.Join(parts, ", "))
	if g.one(4) {
		text += `, "JWT": ` + g.jwt()
	}
	return text + "}"
}

func (g generator) jwt() string {
	claims := ""
	if g.one(2) {
		claims = `, "VerifyClaims": [{"Path": ["role"], "Value": "admin"}]`
	}
	return `{"Providers": [{"Name": "okta"` + claims + `}]}`
}

func (g generator) intentions(service string, http bool) string {
	var sources []string
	for _, from := range []string{"web", "*", "other"} {
		switch {
		case g.one(4):
		case http && service != "*" && g.one(2):
			var all []string
			for range 1 + g.IntN(3) {
				all = append(all, g.permission())
			}
			sources = append(sources, fmt.Sprintf(`{"Name": %q, "Permissions": [%s]}`, from, strings.Join(all, ", ")))
		default:
			sources = append(sources, fmt.Sprintf(`{"Name": %q, "Action": %q}`, from, g.pick("allow", "deny")))
		}
	}
	if len(sources) == 0 {
		return ""
	}
	text := fmt.Sprintf(`{"Kind": "service-intentions", "Name": %q, "Sources": [%s]`, service, strings.Join(sources, ", "))
	if http && g.one(5) {
		text += `, "JWT": ` + g.jwt()
	}
	return text + "}"
}

func (g generator) destination() string {
	parts := []string{fmt.Sprintf(`"Service": %q`, g.pick("db", "api", "alias"))}
	if g.one(3) {
		parts = []string{fmt.Sprintf(`"ServiceSubset": %q`, g.pick("v1", "v2"))}
	}
	return strings.Join(parts, ", ")
}

func (g generator) entries(http bool) []string {
	protocol := "tcp"
	if http {
		protocol = "http"
	}
	out := []string{
		fmt.Sprintf(`{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": %q}, "AccessLogs": {"Enabled": true, "TextFormat": "%%SARN_RULE%% %%RESPONSE_CODE_DETAILS%%"}}`, protocol),
		`{"Kind": "service-resolver", "Name": "db", "Subsets": {"v1": {"Filter": "Service.Meta.version == v1"}, "v2": {"Filter": "Service.Meta.version == v2"}}` +
			g.pick(`, "DefaultSubset": "v1"`, `, "RequestTimeout": "3s"`, ``) + `}`,
		`{"Kind": "service-resolver", "Name": "alias", "Redirect": {"Service": "api"}}`,
	}
	if http {
		out = append(out, providerText())
	}
	if http && g.one(3) {
		out = append(out, fmt.Sprintf(`{"Kind": "mesh", "HTTP": {"Incoming": {"RequestNormalization": {"MergeSlashes": %t, "PathWithEscapedSlashesAction": %q, "InsecureDisablePathNormalization": %t, "HeadersWithUnderscoresAction": %q}}}}`,
			g.one(2), g.pick("KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_FORWARD"), g.one(3), g.pick("ALLOW", "DROP_HEADER", "REJECT_REQUEST")))
	}
	if http && g.one(2) {
		var routes []string
		for range 1 + g.IntN(3) {
			var match []string
			match = append(match, g.pick(`"PathPrefix": "/a"`, `"PathExact": "/b"`, `"PathRegex": "/[ab]"`, `"PathPrefix": "/A", "CaseInsensitive": true`))
			if g.one(3) {
				match = append(match, g.pick(`"Header": [{"Name": "x", "Exact": "1"}]`, `"Header": [{"Name": "x", "Present": true, "Invert": true}]`, `"QueryParam": [{"Name": "q", "Exact": "1"}]`, `"Methods": ["PUT"]`))
			}
			d := g.destination()
			if g.one(2) && !strings.Contains(match[0], "Regex") {
				d += fmt.Sprintf(`, "PrefixRewrite": %q`, g.pick("/", "/b", "/c/"))
			}
			if g.one(2) {
				d += `, "RequestHeaders": {"Set": {"x": "1", "x-edit": "route"}}`
			}
			routes = append(routes, fmt.Sprintf(`{"Match": {"HTTP": {%s}}, "Destination": {%s}}`, strings.Join(match, ", "), d))
		}
		out = append(out, fmt.Sprintf(`{"Kind": "service-router", "Name": "db", "Routes": [%s]}`, strings.Join(routes, ", ")))
	}
	if http && g.one(2) {
		edit := g.pick(``, `, "RequestHeaders": {"Set": {"x-edit": "split"}}`, `, "RequestHeaders": {"Remove": ["x"]}`)
		out = append(out, fmt.Sprintf(`{"Kind": "service-splitter", "Name": "db", "Splits": [{"Weight": 40, "ServiceSubset": "v1"%s}, {"Weight": 60, %s}]}`, edit,
			g.pick(`"ServiceSubset": "v2"`, `"Service": "api"`, `"Service": "alias"`)))
	}
	for _, service := range []string{"db", "api", "*"} {
		if text := g.intentions(service, http); text != "" && !g.one(4) {
			out = append(out, text)
		}
	}
	return out
}

func (g generator) request() explain.Request {
	r := explain.Request{
		From: "web", To: "db", Method: g.pick("GET", "GET", "PUT"), Host: "db",
		Path: g.pick("/", "/a", "/b", "/a/b", "/a?q=1", "/b?q=2", "/a/../b", "//a", "/a//b", "/a%2fb", "/%61", "/A"),
	}
	if g.one(2) {
		r.Headers = append(r.Headers, explain.Header{Name: "x", Value: g.pick("1", "12", "2")})
	}
	if g.one(6) {
		r.Headers = append(r.Headers, explain.Header{Name: "x_y", Value: "1"})
	}
	switch g.IntN(5) {
	case 0:
		r.JWT = token(`{"iss": "okta", "role": "admin"}`)
	case 1:
		r.JWT = token(`{"iss": "okta", "role": "user"}`)
	case 2:
		r.JWT = token(`{"iss": "okta", "role": "admin"}`) + "x"
	}
	return r
}

// For random entries and requests, an explanation says what the sidecars do: who gets the request and in which form, or
// that it is refused, and by which rule.
func TestExplanationsAreWhatProxiesDo(t *testing.T) {
	seed := testkit.Seed(t)
	configurations, requests := 25, 12
	if testing.Short() {
		configurations = 8
	}
	seen := map[string]int{}
	for n := range configurations {
		g := generator{rand.New(rand.NewPCG(seed, uint64(n)))}
		http, allow := !g.one(5), g.one(3)
		texts := g.entries(http)
		ok := t.Run(fmt.Sprint(n), func(t *testing.T) {
			testkit.Bubble(t, func(t *testing.T) {
				w := newWorld(t, texts...)
				w.sidecar("web", "", "passing", "db")
				w.sidecar("db", "v1", "passing")
				w.sidecar("db", "v2", "passing")
				w.sidecar("api", "", "passing")
				draws := rand.New(rand.NewPCG(seed, uint64(n)))
				var mu sync.Mutex
				f := newFleet(t, w, allow, func() uint64 {
					mu.Lock()
					defer mu.Unlock()
					return draws.Uint64()
				})
				defer f.stop()
				for range requests {
					compare(t, f, g.request(), http, seen)
				}
			})
		})
		if !ok {
			t.Fatalf("default allow %t, entries:\n%s", allow, strings.Join(texts, "\n"))
		}
	}
	for _, what := range []string{"allowed", "denied", "by a permission", "by default", "split", "routed", "refused connections"} {
		if seen[what] == 0 && !testing.Short() {
			t.Errorf("nothing was %s: %v", what, seen)
		}
	}
}

// compare explains a request and sends it some times.
func compare(t *testing.T, f *fleet, r explain.Request, http bool, seen map[string]int) {
	t.Helper()
	x, err := explain.Explain(config(f.allow), f.w, r)
	if err != nil {
		t.Fatal(err)
	}
	sent := r
	if r.JWT != "" {
		sent.Headers = append(slices.Clip(r.Headers), explain.Header{Name: "Authorization", Value: "Bearer " + r.JWT})
	}
	fail := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("%+v: %s, but:\n%s", r, fmt.Sprintf(format, args...), text(x))
	}
	if len(x.Problems) > 0 {
		fail("problems")
	}
	if x.Route != nil {
		seen["routed"]++
	}
	if len(x.Branches) > 1 {
		seen["split"]++
	}
	tries := 1
	if len(x.Branches) > 1 {
		tries = 6
	}
	for range tries {
		status, got := f.ask(&sent)
		if x.Reply != nil {
			if status != x.Reply.Status {
				fail("the answer is %d", status)
			}
			continue
		}
		matched := false
		for _, b := range x.Branches {
			a := b.Authorization
			if strings.Contains(a.Reason, "not its intentions") {
				fail("nobody knows why")
			}
			if a.Verdict == explain.Allowed {
				seen["allowed"]++
				if status != 200 || !slices.ContainsFunc(b.Endpoints, func(e explain.Endpoint) bool { return e.Node == got.Node }) {
					continue
				}
				path := b.Path
				if !http {
					path = r.Path
				}
				edited := slices.ContainsFunc(b.Edits, func(e string) bool { return strings.HasPrefix(e, "request: set x-edit: ") })
				matched = matched || got.Path == path && got.Method == r.Method && edited == (got.Header.Get("x-edit") != "")
				continue
			}
			seen["denied"]++
			if a.Permission != nil {
				seen["by a permission"]++
			}
			if a.ByDefault {
				seen["by default"]++
			}
			if !http {
				seen["refused connections"]++
				matched = matched || status == 0
				continue
			}
			if status != a.Status {
				continue
			}
			// What is no request is in no log.
			matched = matched || a.Details == "http1.unexpected_underscore"
			for _, e := range b.Endpoints {
				matched = matched || f.logs[e.Node].last() == cmp.Or(a.Rule, "-")+" "+a.Details
			}
		}
		if !matched {
			logs := map[string]string{}
			for n, l := range f.logs {
				logs[n] = l.last()
			}
			fail("the answer is %d %+v, logs %v", status, got, slices.Sorted(maps.Values(logs)))
		}
	}
}
