package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/adsclient"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
)

// A dump gathers what /config_dump shows.
type dump struct {
	p        *proxy.Proxy
	name     *regexp.Regexp // of resources; nil takes all
	resource string         // the only list to show; empty shows all
	mask     [][]string     // paths of fields to show; nil shows all
	found    bool           // there is such a list
	configs  []any
}

const adminTypes = "type.googleapis.com/envoy.admin.v3."

func (s *Server) configDump(w http.ResponseWriter, r *http.Request) {
	d, err := newDump(s.p, r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	d.bootstrap()
	d.add("ClustersConfigDump", decode.TypeCluster, "static_clusters", "dynamic_active_clusters", "dynamic_warming_clusters", wrap("cluster"))
	if r.URL.Query().Has("include_eds") || strings.HasSuffix(d.resource, "_endpoint_configs") {
		d.add("EndpointsConfigDump", decode.TypeEndpoints, "static_endpoint_configs", "dynamic_endpoint_configs", "", wrap("endpoint_config"))
	}
	d.add("ListenersConfigDump", decode.TypeListener, "static_listeners", "dynamic_listeners", "", wrapListener)
	d.routes()
	d.add("SecretsConfigDump", decode.TypeSecret, "static_secrets", "dynamic_active_secrets", "", func(x proxy.Dumped, j json.RawMessage) map[string]any {
		e := wrap("secret")(x, j)
		e["name"] = x.Name
		return e
	})
	if d.resource != "" && !d.found {
		http.Error(w, fmt.Sprintf("%q not found in config dump", d.resource), http.StatusNotFound)
		return
	}
	s.json(w, map[string]any{"configs": d.configs})
}

func newDump(p *proxy.Proxy, v url.Values) (*dump, error) {
	d := &dump{p: p, resource: v.Get("resource"), configs: []any{}}
	if x := v.Get("name_regex"); x != "" {
		if len(x) > maxPattern {
			return nil, errors.New("Invalid regex: too long") //nolint:staticcheck // shown as it is
		}
		var err error
		if d.name, err = regexp.Compile(x); err != nil {
			return nil, fmt.Errorf("Invalid regex: %w", err) //nolint:staticcheck // shown as it is
		}
	}
	if m := v.Get("mask"); m != "" {
		for path := range strings.SplitSeq(m, ",") {
			d.mask = append(d.mask, strings.Split(path, "."))
		}
	}
	return d, nil
}

// wrap shows a resource under the name of a field.
func wrap(field string) func(proxy.Dumped, json.RawMessage) map[string]any {
	return func(x proxy.Dumped, j json.RawMessage) map[string]any {
		e := map[string]any{field: j, "last_updated": x.Updated.UTC().Format(time.RFC3339Nano)}
		if x.Version != "" {
			e["version_info"] = x.Version
		}
		if x.Failure != "" {
			e["error_state"] = map[string]string{"details": x.Failure}
		}
		return e
	}
}

// wrapListener shows a listener: one that came from the control plane has a state.
func wrapListener(x proxy.Dumped, j json.RawMessage) map[string]any {
	e := wrap("listener")(x, j)
	if x.Static {
		return e
	}
	out := map[string]any{"name": x.Name}
	if f := e["error_state"]; f != nil {
		out["error_state"] = f
		delete(e, "error_state")
	}
	state := "active_state"
	if x.Warming {
		state = "warming_state"
	}
	out[state] = e
	return out
}

// add shows the resources of a type.
func (d *dump) add(kind, typeURL, static, dynamic, warming string, wrap func(proxy.Dumped, json.RawMessage) map[string]any) {
	lists := map[string][]any{static: nil, dynamic: nil}
	for _, x := range d.p.Resources(typeURL) {
		key := dynamic
		switch {
		case x.Static:
			key = static
		case x.Warming && warming != "":
			key = warming
		}
		d.keep(lists, key, x, wrap)
	}
	d.show(kind, lists)
}

func (d *dump) keep(lists map[string][]any, key string, x proxy.Dumped, wrap func(proxy.Dumped, json.RawMessage) map[string]any) {
	if d.name != nil && !d.name.MatchString(x.Name) {
		return
	}
	j, err := decode.JSON(x.Any)
	if err != nil {
		j, _ = json.Marshal(map[string]string{"error": err.Error()})
	}
	lists[key] = append(lists[key], wrap(x, j))
}

// routes shows the route configurations: those that came by name, and those that stand in listeners.
func (d *dump) routes() {
	lists := map[string][]any{"static_route_configs": nil, "dynamic_route_configs": nil}
	inline := func(x proxy.Dumped) {
		for _, a := range decode.InlineRoutes(x.Any) {
			name, _ := decode.NameOf(a)
			d.keep(lists, "static_route_configs", proxy.Dumped{Resource: adsclient.Resource{Name: name, Any: a}, Updated: x.Updated}, wrap("route_config"))
		}
	}
	for _, x := range d.p.Resources(decode.TypeListener) {
		inline(x)
	}
	for _, x := range d.p.Resources(decode.TypeRoute) {
		d.keep(lists, "dynamic_route_configs", x, wrap("route_config"))
	}
	d.show("RoutesConfigDump", lists)
}

// bootstrap shows what the proxy was started with.
func (d *dump) bootstrap() {
	if d.resource != "" {
		return
	}
	n := d.p.Node()
	static := map[string][]any{}
	for field, typeURL := range map[string]string{"clusters": decode.TypeCluster, "listeners": decode.TypeListener, "secrets": decode.TypeSecret} {
		for _, x := range d.p.Resources(typeURL) {
			if !x.Static || d.name != nil && !d.name.MatchString(x.Name) {
				continue
			}
			if j, err := decode.JSON(x.Any); err == nil {
				static[field] = append(static[field], j)
			}
		}
	}
	d.push(map[string]any{"@type": adminTypes + "BootstrapConfigDump", "last_updated": d.p.Started().UTC().Format(time.RFC3339Nano), "bootstrap": map[string]any{
		"node":             map[string]any{"id": n.ID, "cluster": n.Cluster, "metadata": n.Metadata, "locality": map[string]string{"region": n.Region, "zone": n.Zone, "sub_zone": n.SubZone}},
		"static_resources": static,
	}})
}

// show adds lists as one message, or the items of the only list that is asked for.
func (d *dump) show(kind string, lists map[string][]any) {
	if d.resource != "" {
		if l, ok := lists[d.resource]; ok {
			d.found = true
			for _, x := range l {
				d.push(x)
			}
		}
		return
	}
	out := map[string]any{"@type": adminTypes + kind}
	for k, l := range lists {
		if l != nil {
			out[k] = l
		}
	}
	d.push(out)
}

// push adds what the mask leaves.
func (d *dump) push(v any) {
	if d.mask == nil {
		d.configs = append(d.configs, v)
		return
	}
	b, err := json.Marshal(v)
	if err != nil {
		return
	}
	var tree any
	if json.Unmarshal(b, &tree) == nil {
		d.configs = append(d.configs, masked(tree, d.mask))
	}
}

// masked returns the fields of a value that one of the paths leads to, through lists, too.
func masked(v any, paths [][]string) any {
	switch v := v.(type) {
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = masked(v[i], paths)
		}
		return out
	case map[string]any:
		out := map[string]any{}
		if t, ok := v["@type"]; ok {
			out["@type"] = t
		}
		for key, x := range v {
			var below [][]string
			whole := false
			for _, p := range paths {
				if p[0] != key {
					continue
				}
				whole = whole || len(p) == 1
				below = append(below, p[1:])
			}
			switch {
			case whole:
				out[key] = x
			case below != nil:
				out[key] = masked(x, slices.DeleteFunc(below, func(p []string) bool { return len(p) == 0 }))
			}
		}
		return out
	}
	return v
}
