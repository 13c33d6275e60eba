package behaviour

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A group is a set of cases that share a process, hence a bootstrap file.
type group struct {
	name      string
	listeners []listener // the first is where cases go that name none; none stands for a plain one
	clusters  string     // YAML: a map of clusters by name, beside those of the base
	extra     string     // YAML: merged into the bootstrap
	stats     string     // an expression; the counters that match are compared at the end
	cases     []testCase

	statsDiffer string // why counters are others than Envoy's; empty: they are the same
}

// defs returns the group's listeners.
func (g *group) defs() []listener {
	if len(g.listeners) == 0 {
		return []listener{{}}
	}
	return g.listeners
}

// listens tells whether a case's requests go to the i-th listener.
func (c *testCase) listens(i int, l listener) bool { return c.on == l.name || c.on == "" && i == 0 }

// A listener is one of a group's.
type listener struct {
	name    string
	hcm     string // YAML: merged into the connection manager
	filters string // YAML: a list of HTTP filters before the router
	vhost   string // YAML: merged into the virtual host for all domains, which has the routes of the cases
	table   string // YAML: merged into the route table
	chain   string // YAML: merged into the filter chain
	raw     string // YAML: merged into the listener; a list replaces what was there
}

// A testCase is one behaviour.
type testCase struct {
	name    string
	on      string   // the listener
	route   string   // YAML: a route or a list of them; what is not given matches the case's path and goes to its cluster
	vhost   string   // YAML: a virtual host for the case's route alone, with the domain <slug>.test unless it names others
	cluster string   // YAML: a cluster of the case's own; without, the cluster is "a"
	up      []answer // what the upstream answers to the first, second, … request; the last repeats; none: 200 and "hello"
	do      action
	sorted  bool     // the order in which requests reach upstreams is left to chance
	upC     []answer // what the upstream "c" answers, if that is something else
	noLog   bool     // leave access log lines out: what they say is a matter of timing
	noUp    bool     // leave out what the upstream saw, for the same reason

	differs string // why Sarn's answer is another than Envoy's; empty: it is the same
}

// slug is a case's name in paths.
func (c *testCase) slug() string {
	var b strings.Builder
	for _, r := range strings.ToLower(c.name) {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	return strings.TrimSuffix(b.String(), "-")
}

// path is where a case's requests go; none begins with another's.
func (c *testCase) path() string { return "/" + c.slug() + "_" }

func (c *testCase) names() *strings.Replacer {
	return strings.NewReplacer("{p}", c.path(), "{c}", c.slug())
}

type dict = map[string]any

// parse reads a piece of YAML. "T/" stands for the type URLs of Envoy's extensions.
func parse(text string) any {
	var v any
	text = strings.ReplaceAll(text, "T/", "type.googleapis.com/envoy.extensions.")
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		panic(fmt.Sprintf("%v in\n%s", err, text))
	}
	return v
}

func parseMap(text string) dict {
	if text == "" {
		return dict{}
	}
	return parse(text).(dict)
}

func parseList(text string) []any {
	if text == "" {
		return nil
	}
	return parse(text).([]any)
}

// merge puts the fields of b over those of a, into the depth of maps.
func merge(a, b dict) dict {
	out := maps.Clone(a)
	for k, v := range b {
		if x, ok := out[k].(dict); ok {
			if y, ok := v.(dict); ok {
				out[k] = merge(x, y)
				continue
			}
		}
		out[k] = v
	}
	return out
}

// logFormat is a line that tells how a request ended. The peer's address says whose it was and is taken off.
const logFormat = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%" +
	" cluster=%UPSTREAM_CLUSTER% host=%UPSTREAM_HOST% attempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT% rx=%BYTES_RECEIVED% tx=%BYTES_SENT%" +
	" grpc=%GRPC_STATUS%\n"

// bootstrap makes the file for a group's cases.
func bootstrap(g *group, cases []*testCase, w *world) []byte {
	clusters := dict{
		"a": dict{"hosts": []any{"a"}}, "b": dict{"hosts": []any{"b"}}, "c": dict{"hosts": []any{"c"}}, "ab": dict{"hosts": []any{"a", "b"}},
		"h2": dict{"hosts": []any{"a"}, "h2": true}, "refused": dict{"hosts": []any{"refused"}}, "none": dict{"hosts": []any{}},
		"silent": dict{"hosts": []any{"silent"}, "connect_timeout": "0.2s"},
	}
	for name, c := range parseMap(w.expand(g.clusters)) {
		clusters[name] = c
	}
	var listeners []any
	for i, l := range g.defs() {
		if w.without[l.name] {
			continue
		}
		var routes, vhosts []any
		for _, c := range cases {
			if !c.listens(i, l) {
				continue
			}
			target := "a"
			if c.cluster != "" {
				target = c.slug()
				clusters[target] = merge(dict{"hosts": []any{"a"}}, parseMap(w.expand(c.cluster)))
			}
			mine := caseRoutes(c, target, w)
			if c.vhost != "" {
				vhosts = append(vhosts, merge(dict{"name": c.slug(), "domains": []any{c.slug() + ".test"}, "routes": mine}, parseMap(w.expand(c.vhost))))
				continue
			}
			routes = append(routes, mine...)
		}
		vhosts = append(vhosts, merge(dict{"name": "all", "domains": []any{"*"}, "routes": routes}, parseMap(w.expand(l.vhost))))
		hcm := merge(dict{
			"@type":       "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
			"stat_prefix": "in" + l.name, "delayed_close_timeout": "0.05s", "drain_timeout": "0.05s",
			"access_log": []any{dict{"name": "envoy.access_loggers.file", "typed_config": dict{
				"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": w.log,
				"log_format": dict{"text_format_source": dict{"inline_string": logFormat}},
			}}},
			"http_filters": append(parseList(w.expand(l.filters)), dict{"name": "envoy.filters.http.router",
				"typed_config": dict{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}),
			"route_config": merge(dict{"name": "routes" + l.name, "virtual_hosts": vhosts}, parseMap(w.expand(l.table))),
		}, parseMap(w.expand(l.hcm)))
		chain := merge(dict{"filters": []any{dict{"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm}}}, parseMap(w.expand(l.chain)))
		listeners = append(listeners, merge(dict{
			"name": "l" + l.name, "address": socket(w.ports["l"+l.name]), "enable_reuse_port": false, "filter_chains": []any{chain},
		}, parseMap(w.expand(l.raw))))
	}
	var list []any
	for _, name := range sortedKeys(clusters) {
		list = append(list, w.cluster(name, clusters[name].(dict)))
	}
	b, err := json.MarshalIndent(merge(dict{
		"node":             dict{"id": "n", "cluster": "front", "locality": dict{"zone": "z1"}},
		"admin":            dict{"address": socket(w.ports["admin"])},
		"static_resources": dict{"listeners": listeners, "clusters": list},
	}, parseMap(w.expand(g.extra))), "", " ")
	if err != nil {
		panic(err)
	}
	return b
}

func caseRoutes(c *testCase, cluster string, w *world) []any {
	list := []any{dict{}}
	if c.route != "" {
		switch v := parse(w.expand(c.names().Replace(c.route))).(type) {
		case dict:
			list = []any{v}
		case []any:
			list = v
		}
	}
	var out []any
	for _, r := range list {
		r := merge(dict{"match": dict{}}, r.(dict))
		m := r["match"].(dict)
		if has(m, "prefix", "path", "safe_regex", "path_separated_prefix", "connect_matcher") == "" {
			m = merge(m, dict{"prefix": c.path()})
			if c.vhost != "" {
				m["prefix"] = "/"
			}
			r["match"] = m
		}
		switch has(r, "route", "redirect", "direct_response", "non_forwarding_action") {
		case "":
			r["route"] = dict{"cluster": cluster}
		case "route":
			if a := r["route"].(dict); has(a, "cluster", "weighted_clusters", "cluster_header") == "" {
				r["route"] = merge(a, dict{"cluster": cluster})
			}
		}
		out = append(out, r)
	}
	return out
}

// has returns the first of the keys that a map has.
func has(m dict, keys ...string) string {
	for _, k := range keys {
		if _, ok := m[k]; ok {
			return k
		}
	}
	return ""
}

func socket(port int) dict {
	return dict{"socket_address": dict{"address": "127.0.0.1", "port_value": port}}
}

// cluster spells a cluster out: "hosts" are names of upstreams or maps with a name, "h2" speaks HTTP/2 with them.
func (w *world) cluster(name string, c dict) dict {
	c = merge(dict{"name": name, "type": "STATIC", "connect_timeout": "1s"}, c)
	byPriority := map[int][]any{}
	top := 0
	for _, h := range c["hosts"].([]any) {
		m, ok := h.(dict)
		if !ok {
			m = dict{"host": h}
		}
		p, _ := m["priority"].(int)
		top = max(top, p)
		endpoint := dict{"address": socket(w.ports[m["host"].(string)])}
		if n, ok := m["hostname"]; ok {
			endpoint["hostname"] = n
		}
		e := dict{"endpoint": endpoint}
		for _, k := range []string{"metadata", "health_status", "load_balancing_weight"} {
			if v, ok := m[k]; ok {
				e[k] = v
			}
		}
		byPriority[p] = append(byPriority[p], e)
	}
	var localities []any
	for p := 0; p <= top; p++ {
		localities = append(localities, dict{"priority": p, "lb_endpoints": byPriority[p]})
	}
	c["load_assignment"] = dict{"cluster_name": name, "endpoints": localities}
	delete(c, "hosts")
	if h2, _ := c["h2"].(bool); h2 {
		c["typed_extension_protocol_options"] = dict{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": dict{
			"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"explicit_http_config": dict{"http2_protocol_options": dict{}},
		}}
	}
	delete(c, "h2")
	return c
}
