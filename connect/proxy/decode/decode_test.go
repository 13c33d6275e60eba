package decode_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	// What the control plane sends must be known to be read as JSON.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_http1_bridge/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/jwt_authn/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"

	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// keys are the PEM texts of a leaf, its key and its root.
type keys struct{ leaf, key, root string }

// newKeys reads fixed ones: fuzzing wants the same corpus in every process.
func newKeys(t testing.TB) keys {
	t.Helper()
	read := func(name string) string {
		b, err := os.ReadFile("testdata/" + name + ".pem")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return keys{read("leaf"), read("key"), read("root")}
}

// fill puts real PEM texts where resources of tests have words.
func (k keys) fill(s string) string {
	enc := func(s string) string {
		b, _ := json.Marshal(s)
		return string(b[1 : len(b)-1])
	}
	for word, text := range map[string]string{`"LEAF\n"`: k.leaf, `"KEY\n"`: k.key, `"ROOT\n"`: k.root, `"OLD\nNEW\n"`: k.root + k.root, `"LEAF"`: k.leaf, `"KEY"`: k.key, `"ROOT"`: k.root} {
		s = strings.ReplaceAll(s, word, `"`+enc(text)+`"`)
	}
	s = ofSomebody.ReplaceAllString(s, `"`+strings.ReplaceAll(enc(k.leaf), "$", "$$")+`"`)
	s = rootOfSomebody.ReplaceAllString(s, `"`+strings.ReplaceAll(enc(k.root), "$", "$$")+`"`)
	s = keyOfSomebody.ReplaceAllString(s, `"`+strings.ReplaceAll(enc(k.key), "$", "$$")+`"`)
	return s
}

var (
	ofSomebody     = regexp.MustCompile(`"LEAF of [^"]*"`)
	rootOfSomebody = regexp.MustCompile(`"(([A-Z]+ ROOT( [0-9]+)?\\n)+|CA)"`)
	keyOfSomebody  = regexp.MustCompile(`"KEY of [^"]*"`)
)

// pack makes the Any of a resource from its JSON.
func pack(t testing.TB, m proto.Message, j string) *anypb.Any {
	t.Helper()
	if err := protojson.Unmarshal([]byte(j), m); err != nil {
		t.Fatalf("%v in\n%s", err, j)
	}
	a, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// foreign are problems of what the control plane sends to real Envoy only, or to those that ask for it.
var foreign = []string{
	"api_config_source: not supported", "sds_config: only the source ads is supported", "filters.http.lua.v3.Lua", "filters.http.wasm.v3.Wasm",
	"filters.network.wasm.v3.Wasm", "filters.network.ext_authz.v3.ExtAuthz",
}

// awaited are extensions that the proxy does not have yet.
var awaited = []string{}

// onlyForeign reports whether the problems are that such extensions are not supported.
func onlyForeign(err error) bool {
	for line := range strings.Lines(err.Error()) {
		if !slices.ContainsFunc(slices.Concat(foreign, awaited), func(f string) bool { return strings.Contains(line, f) }) {
			return false
		}
	}
	return true
}

// TestControlPlaneResourcesAreUnderstood decodes what the control plane's own
// tests expect it to send.
func TestControlPlaneResourcesAreUnderstood(t *testing.T) {
	paths, _ := filepath.Glob("../../xds/testdata/*.txtar")
	if len(paths) == 0 {
		t.Skip("no examples of the control plane here")
	}
	k := newKeys(t)
	d := decode.New(decode.Options{ReadFile: func(path string) ([]byte, error) {
		return []byte(map[string]string{"/etc/cert.pem": k.leaf, "/etc/key.pem": k.key, "/etc/ca.pem": k.root}[path]), nil
	}})
	decoders := map[string]func(j string) error{
		"listener": func(j string) error {
			_, err := d.Listener(pack(t, new(listenerv3.Listener), j))
			return err
		},
		"route": func(j string) error {
			_, err := d.RouteConfig(pack(t, new(routev3.RouteConfiguration), j))
			return err
		},
		"cluster": func(j string) error {
			_, err := d.Cluster(pack(t, new(clusterv3.Cluster), j))
			return err
		},
		"endpoint": func(j string) error {
			_, err := d.LoadAssignment(pack(t, new(endpointv3.ClusterLoadAssignment), j))
			return err
		},
		"secret": func(j string) error { _, err := d.Secret(pack(t, new(tlsv3.Secret), j)); return err },
	}
	n := 0
	for _, path := range paths {
		if filepath.Base(path) == "proxyless.txtar" {
			continue // for clients that are their own proxies
		}
		ar, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range ar.Files {
			// "want/clusters.json" is a list, "want/cluster/<name>.json" one resource.
			name, one := strings.CutPrefix(f.Name, "want/")
			kind, _, single := strings.Cut(name, "/")
			if !single {
				kind = strings.TrimSuffix(kind, "s.json")
			}
			dec := decoders[kind]
			if !one || dec == nil || len(bytes.TrimSpace(f.Data)) == 0 {
				continue
			}
			list := []json.RawMessage{f.Data}
			if !single {
				if err := json.Unmarshal(f.Data, &list); err != nil {
					t.Fatalf("%s %s: %v", path, f.Name, err)
				}
			}
			for i, raw := range list {
				n++
				if err := dec(k.fill(string(raw))); err != nil && !onlyForeign(err) {
					t.Errorf("%s %s[%d]: %v", filepath.Base(path), f.Name, i, err)
				}
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d resources found", n)
	}
}

const tcpFilter = `{"name":"t","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy","stat_prefix":"p","cluster":"c"%s}}`

func tcp(extra string) string { return strings.Replace(tcpFilter, "%s", extra, 1) }

func listenerJSON(rest string) string {
	return `{"name":"l","address":{"socket_address":{"address":"127.0.0.1","port_value":80}},` + rest + `}`
}

func chainJSON(rest, filters string) string {
	if rest != "" {
		rest += ","
	}
	return `"filter_chains":[{` + rest + `"filters":[` + filters + `]}]`
}

func rbacJSON(principal string) string {
	return `{"name":"r","typed_config":{"@type":"type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC","stat_prefix":"x","rules":{"policies":{"p":{"permissions":[{"any":true}],"principals":[` + principal + `]}}}}}`
}

func downstream(rest string) string {
	return `"transport_socket":{"name":"tls","typed_config":{"@type":"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",` + rest + `}}`
}

const pair = `"tls_certificates":[{"certificate_chain":{"inline_string":"LEAF"},"private_key":{"inline_string":"KEY"}}]`

func TestBadListeners(t *testing.T) {
	k := newKeys(t)
	tests := []struct{ name, json, want string }{
		{"no chain", listenerJSON(`"stat_prefix":"x"`), "no filter chain"},
		{"no terminal filter", listenerJSON(chainJSON("", rbacJSON(`{"any":true}`))), "must be a terminal one"},
		{"filter after the terminal", listenerJSON(chainJSON("", tcp("")+","+rbacJSON(`{"any":true}`))), "after the terminal"},
		{"unknown filter", listenerJSON(chainJSON("", `{"name":"h","typed_config":{"@type":"type.googleapis.com/envoy.config.core.v3.Address"}}`)), `filter_chains[0].filters[0].typed_config: network filter "h" of type`},
		{"unsupported field is named", listenerJSON(chainJSON("", tcp(`,"tunneling_config":{"hostname":"x"}`))), "filter_chains[0].filters[0].typed_config.tunneling_config: not supported"},
		{"unsupported listener field", listenerJSON(`"transparent":true,` + chainJSON("", tcp(""))), "transparent: not supported"},
		{"host name to listen on", `{"name":"l","address":{"socket_address":{"address":"localhost","port_value":80}},` + chainJSON("", tcp("")) + `}`, `"localhost" is no IP address`},
		{"port out of range", `{"name":"l","address":{"socket_address":{"address":"::1","port_value":65536}},` + chainJSON("", tcp("")) + `}`, "PortValue"},
		{"two equal chains", listenerJSON(`"filter_chains":[{"filters":[` + tcp("") + `]},{"name":"b","filters":[` + tcp("") + `]}]`), "multiple filter chains with the same matching rules are defined"},
		{"equal in another order", listenerJSON(`"filter_chains":[{"filter_chain_match":{"server_names":["a","b"]},"filters":[` + tcp("") + `]},{"filter_chain_match":{"server_names":["B","A"]},"filters":[` + tcp("") + `]}]`), "same matching rules"},
		{"partial wildcard", listenerJSON(chainJSON(`"filter_chain_match":{"server_names":["a*.b"]}`, tcp(""))), "wildcard stands for whole labels"},
		{"prefix too long", listenerJSON(chainJSON(`"filter_chain_match":{"prefix_ranges":[{"address_prefix":"10.0.0.0","prefix_len":33}]}`, tcp(""))), "longer than the address"},
		{"transport socket that is not understood is no plaintext", listenerJSON(chainJSON(`"transport_socket":{"name":"x","typed_config":{"@type":"type.googleapis.com/envoy.config.core.v3.Address"}}`, tcp(""))), "transport socket"},
		{"client certificates without trust", listenerJSON(chainJSON(downstream(`"require_client_certificate":true,"common_tls_context":{`+pair+`}`), tcp(""))), "no validation context says which are good"},
		{"names without trust", listenerJSON(chainJSON(downstream(`"common_tls_context":{`+pair+`,"validation_context":{"match_typed_subject_alt_names":[{"san_type":"URI","matcher":{"exact":"x"}}]}}`), tcp(""))), "no trusted_ca vouches"},
		{"server without a certificate", listenerJSON(chainJSON(downstream(`"common_tls_context":{}`), tcp(""))), "no certificate for a server"},
		{"key of another certificate", listenerJSON(chainJSON(downstream(`"common_tls_context":{"tls_certificates":[{"certificate_chain":{"inline_string":"ROOT"},"private_key":{"inline_string":"KEY"}}]}`), tcp(""))), "private key does not match"},
		{"unknown cipher", listenerJSON(chainJSON(downstream(`"common_tls_context":{`+pair+`,"tls_params":{"cipher_suites":["ROT13"]}}`), tcp(""))), `"ROT13" is not supported`},
		{"files may not be read", listenerJSON(chainJSON(downstream(`"common_tls_context":{"tls_certificates":[{"certificate_chain":{"filename":"/etc/passwd"},"private_key":{"inline_string":"KEY"}}]}`), tcp(""))), "files may not be read here"},
		{"principal by header", listenerJSON(chainJSON("", rbacJSON(`{"header":{"name":"x","present_match":true}}`)+","+tcp(""))), "not supported for connections"},
		{"bad regular expression", listenerJSON(chainJSON("", rbacJSON(`{"authenticated":{"principal_name":{"safe_regex":{"regex":"("}}}}`)+","+tcp(""))), "missing closing )"},
		{"regular expression that breaks out of its anchors", listenerJSON(chainJSON("", rbacJSON(`{"authenticated":{"principal_name":{"safe_regex":{"regex":"a)|(b"}}}}`)+","+tcp(""))), "unexpected )"},
		{"unknown log operator", listenerJSON(`"access_log":[{"name":"a","typed_config":{"@type":"type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog","log_format":{"text_format_source":{"inline_string":"%NOPE%"}}}}],` + chainJSON("", tcp(""))), "unknown operator NOPE"},
	}
	d := decode.New(decode.Options{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := d.Listener(pack(t, new(listenerv3.Listener), k.fill(tt.json)))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want it to say %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "PRIVATE KEY") {
				t.Error("the error quotes a private key")
			}
		})
	}
}

func TestEveryProblemIsReported(t *testing.T) {
	_, err := decode.New(decode.Options{}).Listener(pack(t, new(listenerv3.Listener), listenerJSON(`"transparent":true,"freebind":true,`+chainJSON("", tcp(`,"metadata_match":{}`)))))
	for _, want := range []string{"transparent: not supported", "freebind: not supported", "metadata_match: not supported"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}

func TestListenerDefaults(t *testing.T) {
	k := newKeys(t)
	l, err := decode.New(decode.Options{}).Listener(pack(t, new(listenerv3.Listener), k.fill(listenerJSON(chainJSON(downstream(`"common_tls_context":{`+pair+`}`), tcp(""))))))
	if err != nil {
		t.Fatal(err)
	}
	tp := l.Chains[0].Terminal.(*model.TCPProxy)
	got := []any{l.BindToPort, l.ReusePort, l.BufferLimit, l.InspectTimeout, tp.IdleTimeout, tp.MaxConnectAttempts, l.Chains[0].HandshakeTimeout}
	want := []any{true, true, 1 << 20, 15 * time.Second, time.Hour, uint32(0), 15 * time.Second}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestMatchingByServerNameInspects(t *testing.T) {
	l, err := decode.New(decode.Options{}).Listener(pack(t, new(listenerv3.Listener), listenerJSON(chainJSON(`"filter_chain_match":{"server_names":["a"]}`, tcp("")))))
	if err != nil || !reflect.DeepEqual(l.Inspectors, []model.Inspector{model.InspectTLS}) {
		t.Errorf("inspectors %v, %v; want TLS", l.Inspectors, err)
	}
}

func clusterJSON(rest string) string { return `{"name":"c","connect_timeout":"1s",` + rest + `}` }

func TestBadClusters(t *testing.T) {
	eds := `"type":"EDS","eds_cluster_config":{"eds_config":{"ads":{}}}`
	tests := []struct{ name, json, want string }{
		{"EDS without its source", clusterJSON(`"type":"EDS"`), "eds_cluster_config: missing"},
		{"EDS from a file", clusterJSON(`"type":"EDS","eds_cluster_config":{"eds_config":{"path":"/x"}}`), "only the source ads is supported"},
		{"static without hosts", clusterJSON(`"type":"STATIC"`), "load_assignment: missing"},
		{"static with a host name", clusterJSON(`"type":"STATIC","load_assignment":{"cluster_name":"c","endpoints":[{"lb_endpoints":[{"endpoint":{"address":{"socket_address":{"address":"a.b","port_value":1}}}}]}]}`), "is no IP address"},
		{"health checks", clusterJSON(eds + `,"health_checks":[{"timeout":"1s","interval":"1s","unhealthy_threshold":1,"healthy_threshold":1,"custom_health_check":{"name":"x"}}]`), "health_checks[0].custom_health_check: not supported"},
		{"no connect time at all", `{"name":"c","connect_timeout":"0s",` + eds + `}`, "constraint"},
		{"subset", clusterJSON(eds + `,"lb_subset_config":{"subset_selectors":[{"keys":["a"]}],"metadata_fallback_policy":"FALLBACK_LIST"}`), "lb_subset_config.metadata_fallback_policy: not supported"},
		{"unknown cluster type", clusterJSON(`"cluster_type":{"name":"x","typed_config":{"@type":"type.googleapis.com/envoy.config.core.v3.Address"}}`), "is not supported"},
		{"unknown protocol options", clusterJSON(eds + `,"typed_extension_protocol_options":{"x":{"@type":"type.googleapis.com/envoy.config.core.v3.Address"}}`), `["x"]: not supported`},
		{"logical DNS with two names", clusterJSON(`"type":"LOGICAL_DNS","load_assignment":{"cluster_name":"c","endpoints":[{"lb_endpoints":[{"endpoint":{"address":{"socket_address":{"address":"a.b","port_value":1}}}},{"endpoint":{"address":{"socket_address":{"address":"a.c","port_value":1}}}}]}]}`), "want one"},
	}
	d := decode.New(decode.Options{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := d.Cluster(pack(t, new(clusterv3.Cluster), tt.json))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want it to say %q", err, tt.want)
			}
		})
	}
}

func TestClusterSettings(t *testing.T) {
	c, err := decode.New(decode.Options{}).Cluster(pack(t, new(clusterv3.Cluster), clusterJSON(`"type":"EDS","eds_cluster_config":{"service_name":"s","eds_config":{"ads":{},"initial_fetch_timeout":"0s"}},
		"lb_policy":"LEAST_REQUEST","least_request_lb_config":{"choice_count":3},"common_lb_config":{"healthy_panic_threshold":{"value":0}},
		"circuit_breakers":{"thresholds":[{"priority":"HIGH","max_connections":1},{"max_connections":7}]},
		"outlier_detection":{"consecutive_5xx":2,"base_ejection_time":"400s"}`)))
	if err != nil {
		t.Fatal(err)
	}
	got := []any{c.EDSName, c.FetchTimeout, c.LB, c.Choices, c.PanicThreshold, c.Breakers[0].MaxConnections, c.Outlier.Consecutive5xx, c.Outlier.MaxEjection, c.Outlier.Interval}
	want := []any{"s", time.Duration(0), model.LeastRequest, 3, 0.0, uint32(7), uint32(2), 400 * time.Second, 10 * time.Second}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDumpHidesSecrets(t *testing.T) {
	k := newKeys(t)
	l := pack(t, new(listenerv3.Listener), k.fill(listenerJSON(chainJSON(downstream(`"common_tls_context":{`+pair+`}`), tcp("")))))
	s := pack(t, new(tlsv3.Secret), k.fill(`{"name":"s","tls_certificate":{"certificate_chain":{"inline_string":"LEAF"},"private_key":{"inline_string":"KEY"}}}`))
	for _, a := range []*anypb.Any{l, s} {
		j, err := decode.JSON(a)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(j, []byte("PRIVATE KEY")) || !bytes.Contains(j, []byte("[redacted]")) || !bytes.Contains(j, []byte("CERTIFICATE")) {
			t.Errorf("dump of %s is\n%s", a.GetTypeUrl(), j)
		}
	}
}

func TestBootstrap(t *testing.T) {
	k := newKeys(t)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/ca.pem", []byte(k.root), 0o600); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(`
node: {id: web-sidecar-proxy, cluster: web, metadata: {namespace: default}}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 19000}}}
static_resources:
  clusters:
  - name: local_agent
    connect_timeout: 1s
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context: {validation_context: {trusted_ca: {filename: DIR/ca.pem}}}
    load_assignment:
      cluster_name: local_agent
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 8502}}}}]}]
stats_config:
  stats_tags: [{tag_name: local_cluster, fixed_value: web}, {tag_name: x, regex: '^cluster\.((.+?)\.)'}]
dynamic_resources:
  lds_config: {ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3}
  cds_config: {ads: {}, initial_fetch_timeout: 0s, resource_api_version: V3}
  ads_config:
    api_type: DELTA_GRPC
    transport_api_version: V3
    grpc_services: {initial_metadata: [{key: x-consul-token, value: secret}], envoy_grpc: {cluster_name: local_agent}}
`, "DIR", dir)
	d := decode.New(decode.FromSystem())
	b, err := d.Bootstrap("a.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if b.Node.ID != "web-sidecar-proxy" || b.Node.Metadata["namespace"] != "default" || !b.LDS || !b.CDS || b.Admin.Address.String() != "127.0.0.1:19000" {
		t.Errorf("got %+v", b)
	}
	if want := (&decode.ADS{Cluster: "local_agent", Metadata: []decode.Header{{Key: "x-consul-token", Value: "secret"}}}); !reflect.DeepEqual(b.ADS, want) {
		t.Errorf("ADS is %+v, want %+v", b.ADS, want)
	}
	if len(b.Clusters) != 1 || len(b.Clusters[0].TLS.Validation.Roots) != 1 || len(b.Tags) != 2 {
		t.Errorf("clusters %+v, tags %v", b.Clusters, b.Tags)
	}
	for name, bad := range map[string][2]string{
		"unknown field":     {"connect_timeout", "connect_timeoutt"},
		"ADS over nothing":  {"cluster_name: local_agent}}", "cluster_name: nowhere}}"},
		"tag without group": {`'^cluster\.((.+?)\.)'`, "'^cluster'"},
		"unreadable file":   {"/ca.pem", "/no.pem"},
		"not YAML":          {"node:", "\tnode:"},
	} {
		if _, err := d.Bootstrap("a.yaml", []byte(strings.Replace(text, bad[0], bad[1], 1))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// seeds adds what the control plane's tests expect to a fuzz corpus.
func seeds(f *testing.F, section string, m func() proto.Message) {
	paths, _ := filepath.Glob("../../xds/testdata/*.txtar")
	k := newKeys(f)
	for _, path := range paths {
		if filepath.Base(path) == "proxyless.txtar" {
			continue // for clients that are their own proxies
		}
		ar, err := txtar.ParseFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range ar.Files {
			var list []json.RawMessage
			if file.Name != section || json.Unmarshal(file.Data, &list) != nil {
				continue
			}
			for _, raw := range list {
				f.Add(pack(f, m(), k.fill(string(raw))).GetValue())
			}
		}
	}
}

// fuzz holds a decoder to this: the same bytes give the same, what is accepted
// can be dumped, and a dump shows no key.
func fuzz[T any](f *testing.F, typeURL string, dec func(*decode.Decoder, *anypb.Any) (T, error)) {
	f.Fuzz(func(t *testing.T, b []byte) {
		a := &anypb.Any{TypeUrl: typeURL, Value: b}
		one, err1 := dec(decode.New(decode.Options{}), a)
		two, err2 := dec(decode.New(decode.Options{}), a)
		if (err1 == nil) != (err2 == nil) {
			t.Fatalf("once %v, once %v", err1, err2)
		}
		if err1 != nil {
			return
		}
		if !reflect.DeepEqual(one, two) {
			t.Errorf("the same bytes gave %+v and %+v", one, two)
		}
		j, err := decode.JSON(a)
		if err != nil {
			t.Errorf("accepted but not shown: %v", err)
		}
		if bytes.Contains(j, []byte("PRIVATE KEY")) {
			t.Errorf("a dump shows a key: %s", j)
		}
	})
}

func FuzzListener(f *testing.F) {
	seeds(f, "want/listeners.json", func() proto.Message { return new(listenerv3.Listener) })
	fuzz(f, decode.TypeListener, (*decode.Decoder).Listener)
}

func FuzzRouteConfig(f *testing.F) {
	seeds(f, "want/routes.json", func() proto.Message { return new(routev3.RouteConfiguration) })
	m := new(routev3.RouteConfiguration)
	if err := protojson.Unmarshal([]byte(fullRouteConfig), m); err != nil {
		f.Fatal(err)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	fuzz(f, decode.TypeRoute, (*decode.Decoder).RouteConfig)
}

func FuzzCluster(f *testing.F) {
	seeds(f, "want/clusters.json", func() proto.Message { return new(clusterv3.Cluster) })
	fuzz(f, decode.TypeCluster, (*decode.Decoder).Cluster)
}

func FuzzLoadAssignment(f *testing.F) {
	seeds(f, "want/endpoints.json", func() proto.Message { return new(endpointv3.ClusterLoadAssignment) })
	fuzz(f, decode.TypeEndpoints, (*decode.Decoder).LoadAssignment)
}

func FuzzSecret(f *testing.F) {
	seeds(f, "want/secrets.json", func() proto.Message { return new(tlsv3.Secret) })
	fuzz(f, decode.TypeSecret, (*decode.Decoder).Secret)
}

func FuzzBootstrap(f *testing.F) {
	f.Add([]byte("node: {id: a}\nstatic_resources: {clusters: [{name: c, connect_timeout: 1s, type: STATIC, load_assignment: {cluster_name: c}}]}"))
	f.Add([]byte(`{"admin":{"address":{"pipe":{"path":"/x"}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := decode.New(decode.Options{}).Bootstrap("a.yaml", b)
		if (x == nil) == (err == nil) {
			t.Errorf("got %v and %v", x, err)
		}
	})
}
