package troubleshootcmd

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// What admin servers answer, as far as it is looked at. The field names are Envoy's.

type configDump struct {
	Configs []configPart `json:"configs"`
}

type configPart struct {
	Type      string        `json:"@type"`
	Listeners []listenerDoc `json:"dynamic_listeners"`
	Clusters  []clusterDoc  `json:"dynamic_active_clusters"`
	Static    []clusterDoc  `json:"static_clusters"`
	Routes    []routeDoc    `json:"dynamic_route_configs"`
}

type listenerDoc struct {
	Name   string `json:"name"`
	Active struct {
		Listener listener `json:"listener"`
	} `json:"active_state"`
	Error *struct {
		Details string `json:"details"`
	} `json:"error_state"`
}

type listener struct {
	Name      string        `json:"name"`
	Direction string        `json:"traffic_direction"`
	Chains    []filterChain `json:"filter_chains"`
	Default   *filterChain  `json:"default_filter_chain"`
}

type filterChain struct {
	Match struct {
		Ranges []struct {
			Prefix string `json:"address_prefix"`
		} `json:"prefix_ranges"`
	} `json:"filter_chain_match"`
	Filters []json.RawMessage `json:"filters"`
}

type clusterDoc struct {
	Cluster struct {
		Name string `json:"name"`
	} `json:"cluster"`
}

type routeDoc struct {
	Route json.RawMessage `json:"route_config"`
}

type certificates struct {
	Certificates []struct {
		CA    []certificate `json:"ca_cert"`
		Chain []certificate `json:"cert_chain"`
	} `json:"certificates"`
}

type certificate struct {
	Serial string    `json:"serial_number"`
	From   time.Time `json:"valid_from"`
	Until  time.Time `json:"expiration_time"`
}

type statistics struct {
	Stats []struct {
		Name  string      `json:"name"`
		Value json.Number `json:"value"`
	} `json:"stats"`
}

type clusterStatuses struct {
	Clusters []struct {
		Name  string `json:"name"`
		Hosts []struct {
			Health map[string]any `json:"health_status"`
		} `json:"host_statuses"`
	} `json:"cluster_statuses"`
}

// outboundListener takes the connections of a transparent proxy.
const outboundListener = "outbound_listener"

// upstreamList is what a sidecar can reach.
type upstreamList struct {
	Explicit    []string      // by name
	Transparent []transparent // by address
}

// A transparent upstream is one that programs call by its address.
type transparent struct {
	IPs      []string
	Virtual  bool // one of the addresses is virtual
	Clusters []string
}

// virtual addresses are given to services, not to machines.
var virtualRange = netip.MustParsePrefix("240.0.0.0/4")

func (d *configDump) listeners() []listener {
	var out []listener
	for _, part := range d.Configs {
		for _, l := range part.Listeners {
			l.Active.Listener.Name = l.Name
			out = append(out, l.Active.Listener)
		}
	}
	return out
}

// upstreamName is the upstream that a listener is for, empty if it is for none.
func (l *listener) upstreamName() string {
	name, _, _ := strings.Cut(l.Name, ":")
	if l.Direction != "OUTBOUND" || name == outboundListener {
		return ""
	}
	return name
}

// addresses are the addresses that a chain is for.
func (c *filterChain) addresses() []string {
	var out []string
	for _, r := range c.Match.Ranges {
		out = append(out, r.Prefix)
	}
	return out
}

func (d *configDump) upstreams() upstreamList {
	list := upstreamList{Explicit: []string{}, Transparent: []transparent{}}
	for _, l := range d.listeners() {
		if name := l.upstreamName(); name != "" {
			list.Explicit = append(list.Explicit, name)
		}
		if name, _, _ := strings.Cut(l.Name, ":"); name != outboundListener {
			continue
		}
		for _, c := range l.Chains {
			u := transparent{IPs: c.addresses()}
			if len(u.IPs) == 0 {
				continue
			}
			u.Clusters, _, _ = d.targets([]filterChain{c})
			for _, ip := range u.IPs {
				if a, err := netip.ParseAddr(ip); err == nil && virtualRange.Contains(a) {
					u.Virtual = true
				}
			}
			list.Transparent = append(list.Transparent, u)
		}
	}
	slices.Sort(list.Explicit)
	return list
}

// targets are the clusters that chains lead to, and the names of the route configurations in between. missing are those
// of the latter that are not there.
func (d *configDump) targets(chains []filterChain) (clusters, routes, missing []string) {
	found, routeNames := map[string]bool{}, map[string]bool{}
	collect := func(data json.RawMessage) {
		var v any
		if json.Unmarshal(data, &v) == nil {
			walk(v, found, routeNames)
		}
	}
	for _, c := range chains {
		for _, f := range c.Filters {
			collect(f)
		}
	}
	routes = slices.Sorted(maps.Keys(routeNames))
	for _, name := range routes {
		there := false
		for _, part := range d.Configs {
			for _, r := range part.Routes {
				var named struct {
					Name string `json:"name"`
				}
				if json.Unmarshal(r.Route, &named) == nil && named.Name == name {
					there = true
					collect(r.Route)
				}
			}
		}
		if !there {
			missing = append(missing, name)
		}
	}
	return slices.Sorted(maps.Keys(found)), routes, missing
}

// walk collects the names of clusters and of route configurations in a document.
func walk(v any, clusters, routes map[string]bool) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			walk(e, clusters, routes)
		}
	case map[string]any:
		for key, e := range v {
			text, isText := e.(string)
			switch {
			case key == "cluster" && isText:
				clusters[text] = true
			case key == "route_config_name" && isText:
				routes[text] = true
			case key == "weighted_clusters":
				weighted(e, clusters)
			case key == "access_log" || key == "tracing": // their clusters are no upstreams
			default:
				walk(e, clusters, routes)
			}
		}
	}
}

// weighted collects the clusters among which calls are split.
func weighted(v any, clusters map[string]bool) {
	m, _ := v.(map[string]any)
	list, _ := m["clusters"].([]any)
	for _, e := range list {
		if one, ok := e.(map[string]any); ok {
			if name, ok := one["name"].(string); ok {
				clusters[name] = true
			}
		}
	}
}

// A finding is one thing that was looked at.
type finding struct {
	Success         bool
	Message         string
	PossibleActions []string `json:",omitempty"`
}

// examine looks at everything that a call to one upstream needs, in the order in which a call meets it. The upstream has a
// name or an address.
func examine(dump *configDump, certs *certificates, stats *statistics, statuses *clusterStatuses, name, ip string, now time.Time) []finding {
	var out []finding
	good := func(format string, args ...any) {
		out = append(out, finding{Success: true, Message: fmt.Sprintf(format, args...)})
	}
	bad := func(text string, actions ...string) {
		out = append(out, finding{Message: text, PossibleActions: actions})
	}
	invalid := certs.invalid(now)
	for _, text := range invalid {
		bad(text, "Check the log of the agent for the reason why the certificate was not renewed")
	}
	if len(invalid) == 0 {
		good("Certificates are valid")
	}
	rejected, failures := stats.sum()
	for _, part := range dump.Configs {
		for _, l := range part.Listeners {
			if l.Error != nil {
				bad(fmt.Sprintf("Listener %q was refused: %s", l.Name, l.Error.Details))
			}
		}
	}
	if text := fmt.Sprintf("Envoy has %s rejected configurations", rejected); rejected == "0" {
		good("%s", text)
	} else {
		bad(text, "Look for the reason in the logs of the proxy and of the agent")
	}
	good("Envoy has detected %s connection failure(s)", failures)

	wanted, what := name, fmt.Sprintf("upstream %q", name)
	if name == "" {
		wanted, what = ip, "upstream IP "+ip
	}
	chains := dump.chainsOf(name, ip)
	if chains == nil {
		actions := []string{"Check that the upstream is written as the registration of the sidecar has it: see troubleshoot upstreams"}
		if name == "" {
			actions = []string{"Check that an intention allows calls to the upstream, and that the address is one of it: see troubleshoot upstreams"}
		}
		bad(fmt.Sprintf("No listener for %s found", what), actions...)
		return out
	}
	good("Listener for upstream %q found", wanted)
	clusters, routes, missing := dump.targets(chains)
	for _, r := range missing {
		bad(fmt.Sprintf("No route %q for %s found", r, what), "Check the routers and splitters of the service")
	}
	if len(routes) > 0 && len(missing) == 0 {
		good("Route for upstream %q found", wanted)
	}
	if len(clusters) == 0 {
		bad(fmt.Sprintf("No cluster for %s found", what), "Check that the service, and what its configuration entries lead to, exists")
	}
	known := dump.clusters()
	for _, c := range clusters {
		if !known[c] {
			bad(fmt.Sprintf("No cluster %q for %s found", c, what), "Check that the service is registered")
			continue
		}
		good("Cluster %q for upstream %q found", c, wanted)
		if n := statuses.healthy(c); n > 0 {
			good("Healthy endpoints for cluster %q for upstream %q found", c, wanted)
		} else {
			bad(fmt.Sprintf("No healthy endpoints for cluster %q for %s found", c, what),
				"Check that an instance of the service is registered and passes its checks, and its sidecar too")
		}
	}
	return out
}

// chainsOf are the filter chains for an upstream, nil if there is no listener for it.
func (d *configDump) chainsOf(name, ip string) []filterChain {
	for _, l := range d.listeners() {
		if name != "" {
			if l.upstreamName() == name {
				chains := slices.Clone(l.Chains)
				if l.Default != nil {
					chains = append(chains, *l.Default)
				}
				return chains
			}
			continue
		}
		if of, _, _ := strings.Cut(l.Name, ":"); of != outboundListener {
			continue
		}
		for _, c := range l.Chains {
			if slices.Contains(c.addresses(), ip) {
				return []filterChain{c}
			}
		}
	}
	return nil
}

func (d *configDump) clusters() map[string]bool {
	out := map[string]bool{}
	for _, part := range d.Configs {
		for _, c := range append(slices.Clone(part.Clusters), part.Static...) {
			out[c.Cluster.Name] = true
		}
	}
	return out
}

// invalid tells what is wrong with certificates.
func (c *certificates) invalid(now time.Time) []string {
	var out []string
	if len(c.Certificates) == 0 {
		return []string{"The proxy has no certificates"}
	}
	for _, one := range c.Certificates {
		for _, cert := range append(slices.Clone(one.CA), one.Chain...) {
			switch {
			case now.After(cert.Until):
				out = append(out, fmt.Sprintf("Certificate %s expired at %s", cert.Serial, cert.Until.Format(time.RFC3339)))
			case now.Before(cert.From):
				out = append(out, fmt.Sprintf("Certificate %s is valid only from %s", cert.Serial, cert.From.Format(time.RFC3339)))
			}
		}
	}
	return out
}

// sum adds up refused configurations and failed connections.
func (s *statistics) sum() (rejected, failures string) {
	var r, f int64
	for _, one := range s.Stats {
		n, err := one.Value.Int64()
		switch {
		case err != nil:
		case strings.HasSuffix(one.Name, ".update_rejected"):
			r += n
		case strings.HasSuffix(one.Name, ".upstream_cx_connect_fail"):
			f += n
		}
	}
	return fmt.Sprint(r), fmt.Sprint(f)
}

// healthy counts the hosts of a cluster that get calls.
func (s *clusterStatuses) healthy(cluster string) int {
	n := 0
	for _, c := range s.Clusters {
		if c.Name != cluster {
			continue
		}
		for _, h := range c.Hosts {
			failed := false
			for key, v := range h.Health {
				if yes, ok := v.(bool); ok && yes && strings.HasPrefix(key, "failed_") {
					failed = true
				}
			}
			if state, _ := h.Health["eds_health_status"].(string); !failed && (state == "" || state == "HEALTHY" || state == "UNKNOWN" || state == "DEGRADED") {
				n++
			}
		}
	}
	return n
}
