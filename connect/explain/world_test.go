package explain_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/filter"
	"github.com/sarnmesh/sarn/connect/explain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/connect/mesh"
)

const trustDomain = "11111111-2222-3333-4444-555555555555.consul"

// world is a state of entries and sidecars.
type world struct {
	entries  map[entry.Key]entry.Entry
	sidecars []*catalog.Instance
}

// newWorld reads entries from JSON.
func newWorld(t testing.TB, texts ...string) *world {
	t.Helper()
	w := &world{entries: map[entry.Key]entry.Entry{}}
	for _, text := range texts {
		var doc map[string]any
		if err := json.Unmarshal([]byte(text), &doc); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		e, err := entry.Decode(doc)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		e.Normalize()
		if err := e.Validate(); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		w.entries[entry.KeyOf(e)] = e
	}
	return w
}

// sidecar registers an instance's sidecar; the version goes into its metadata.
func (w *world) sidecar(service, version, status string, upstreams ...string) {
	n := len(w.sidecars) + 1
	i := &catalog.Instance{
		Node: &catalog.Node{Node: fmt.Sprint("n", n), Address: fmt.Sprint("10.0.0.", n)},
		Service: &catalog.Service{
			Kind: catalog.KindConnectProxy, ID: fmt.Sprint(service, "-", n), Service: service + "-sidecar-proxy", Port: 21000,
			Meta:  map[string]string{"version": version},
			Proxy: catalog.Proxy{DestinationServiceName: service, LocalServicePort: 8080},
		},
		Checks: []*catalog.Check{{Status: status}},
	}
	for j, u := range upstreams {
		i.Service.Proxy.Upstreams = append(i.Service.Proxy.Upstreams, catalog.Upstream{DestinationName: u, LocalBindPort: 9000 + j})
	}
	w.sidecars = append(w.sidecars, i)
}

func (w *world) Entry(kind entry.Kind, name string) entry.Entry {
	return w.entries[entry.Key{Kind: kind, Name: name}]
}

func (w *world) List(kind entry.Kind) (out []entry.Entry) {
	for k, e := range w.entries {
		if k.Kind == kind {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b entry.Entry) int { return strings.Compare(a.Head().Name, b.Head().Name) })
	return out
}

func (w *world) Mesh(service string) (out []*catalog.Instance) {
	for _, i := range w.sidecars {
		if i.Service.Proxy.DestinationServiceName == service {
			out = append(out, i)
		}
	}
	return out
}

func (w *world) Central(s *catalog.Service) *catalog.Service {
	find := func(name string) *entry.ServiceDefaults {
		d, _ := w.Entry(entry.KindServiceDefaults, name).(*entry.ServiceDefaults)
		return d
	}
	all, _ := w.Entry(entry.KindProxyDefaults, entry.ProxyDefaultsName).(*entry.ProxyDefaults)
	req := definition.CentralRequest(s)
	return definition.MergeCentral(s, entry.Resolve(req, all, find(req.Service), find))
}

func (w *world) Answer(n mesh.Need) any {
	if n.Kind != mesh.NeedInstances || n.Datacenter != "" {
		return nil
	}
	keep, err := filter.Compile[*catalog.Instance](n.Filter)
	if err != nil {
		return nil
	}
	return &catalog.InstancesReply{Instances: keep.Select(w.Mesh(n.Service))}
}

func config(defaultAllow bool) *explain.Config {
	return &explain.Config{Datacenter: "dc1", TrustDomain: trustDomain, Default: intention.Default{Allow: defaultAllow}}
}

// text writes an explanation.
func text(x *explain.Explanation) string {
	var b strings.Builder
	explain.Text(&b, x)
	return b.String()
}
