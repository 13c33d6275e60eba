package xds_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/connect/mesh"
	"github.com/sarnmesh/sarn/connect/xds"
)

var update = flag.Bool("update", false, "rewrite the want/ sections of the golden files")

const trustDomain = "11111111-2222-3333-4444-555555555555.consul"

// fixtures are what a case does not care about unless it brings its own.
func fixtures() (*ca.RootsReply, *ca.Leaf) {
	return &ca.RootsReply{TrustDomain: trustDomain, ActiveRootID: "aa", Roots: []*ca.Root{{ID: "aa", RootCert: "ROOT", Active: true}}},
		&ca.Leaf{CertPEM: "LEAF\n", PrivateKeyPEM: "KEY", Service: "web"}
}

// entries are the configuration entries of a case.
type entries map[entry.Key]entry.Entry

func (e entries) Entry(kind entry.Kind, name string) entry.Entry {
	if x, ok := e[entry.Key{Kind: kind, Name: name}]; ok {
		return x
	}
	return nil
}

// snapshotOf answers every need of a registration out of the files of a case.
func snapshotOf(t testing.TB, files map[string][]byte) *mesh.Snapshot {
	t.Helper()
	read := func(name string, into any) {
		t.Helper()
		data, ok := files["in/"+name]
		if !ok {
			return
		}
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		if err := d.Decode(into); err != nil {
			t.Fatalf("in/%s: %v", name, err)
		}
	}
	registration := mesh.Registration{Node: "n1", Datacenter: "dc1"}
	read("proxy.json", &registration)
	var raw []json.RawMessage
	read("entries.json", &raw)
	all := entries{}
	for _, data := range raw {
		var head struct{ Kind entry.Kind }
		if err := json.Unmarshal(data, &head); err != nil {
			t.Fatal(err)
		}
		e, err := entry.New(head.Kind)
		if err == nil {
			err = json.Unmarshal(data, e)
		}
		if err != nil {
			t.Fatalf("in/entries.json: %v", err)
		}
		if n, ok := e.(interface{ Normalize() }); ok {
			n.Normalize()
		}
		all[entry.KeyOf(e)] = e
	}
	var given map[string][]*catalog.Instance
	read("instances.json", &given)
	instances := map[string][]*catalog.Instance{}
	for key, list := range given {
		instances[strings.Join(strings.Fields(key), " ")] = list
	}
	var links []entry.GatewayService
	read("links.json", &links)
	datacenters := []string{registration.Datacenter}
	read("datacenters.json", &datacenters)
	callable := &intention.CallableReply{}
	read("callable.json", callable)
	peers := map[string]*mesh.PeerBundle{}
	read("peers.json", &peers)
	var callers []string
	read("callers.json", &callers)
	var imports []peering.Key
	read("imports.json", &imports)
	var exports []peering.Export
	read("exports.json", &exports)
	queries := map[string]*query.ExecuteReply{}
	read("queries.json", &queries)
	virtualIPs := map[string]struct{ Auto, Manual []string }{}
	read("virtual-ips.json", &virtualIPs)
	roots, leaf := fixtures()
	for _, name := range []string{"roots.json"} {
		read(name, roots)
	}

	s := mesh.New(&registration)
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
				if n.Service != registration.Identity() {
					answers[n] = leafOf(n.Service)
				}
			case mesh.NeedMesh:
				r := &entry.GetReply{}
				r.Entry.Entry = all.Entry(entry.KindMesh, entry.MeshName)
				answers[n] = r
			case mesh.NeedCallable:
				answers[n] = callable
			case mesh.NeedPeer:
				if p := peers[n.Peer]; p != nil {
					answers[n] = p
				}
			case mesh.NeedBundles:
				r := &peering.BundlesReply{}
				for _, name := range callers {
					r.Bundles = append(r.Bundles, peers[name])
				}
				answers[n] = r
			case mesh.NeedImports:
				answers[n] = &peering.ImportsReply{Imports: imports}
			case mesh.NeedExports:
				answers[n] = &peering.ExportsReply{Exports: exports}
			case mesh.NeedQuery:
				if q := queries[n.Service]; q != nil {
					answers[n] = q
				}
			case mesh.NeedEntry:
				r := &entry.GetReply{}
				r.Entry.Entry = all.Entry(n.Entry, n.Service)
				answers[n] = r
			case mesh.NeedIntentions:
				own, _ := all.Entry(entry.KindServiceIntentions, n.Service).(*entry.ServiceIntentions)
				any, _ := all.Entry(entry.KindServiceIntentions, entry.Wildcard).(*entry.ServiceIntentions)
				answers[n] = &intention.MatchReply{Matches: [][]*intention.Intention{intention.To(own, any)}}
			case mesh.NeedChain:
				dc := n.Datacenter
				if dc == "" {
					dc = registration.Datacenter
				}
				c, err := chain.Compile(chain.Request{Service: n.Service, Datacenter: dc, TrustDomain: trustDomain, Overrides: n.Overrides}, all)
				if err != nil {
					t.Fatal(err)
				}
				if ip, ok := virtualIPs[n.Service]; ok {
					c.AutoVirtualIPs, c.ManualVirtualIPs = ip.Auto, ip.Manual
				}
				answers[n] = &chain.GetReply{Chain: c}
			case mesh.NeedInstances:
				key := strings.Join(strings.Fields(n.Service+" "+n.Datacenter+" "+n.Filter+" "+n.Peer), " ")
				if list, ok := instances[key]; ok {
					for _, i := range list {
						if i.Service == nil || i.Node == nil {
							t.Fatalf("in/instances.json: %s: incomplete", key)
						}
					}
					answers[n] = &catalog.InstancesReply{Instances: list}
				}
			default:
				if a := gatewayAnswer(n, all, links, datacenters, instances); a != nil {
					answers[n] = a
				}
			}
		}
		if len(answers) == 0 {
			return s
		}
		s = s.With(answers)
	}
}

func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatal("no cases", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files := map[string][]byte{}
			for _, f := range archive.Files {
				files[f.Name] = f.Data
			}
			flavour := xds.Envoy
			if _, own := files["in/own"]; own {
				flavour = xds.Own
			}
			if _, proxyless := files["in/proxyless"]; proxyless {
				flavour = xds.Proxyless
			}
			s := snapshotOf(t, files)
			if !s.Complete() {
				t.Fatal("the snapshot is not complete")
			}
			r, err := xds.Compile(s, flavour)
			for i, f := range archive.Files {
				if !strings.HasPrefix(f.Name, "want/") {
					continue
				}
				got := section(t, r, err, strings.TrimPrefix(f.Name, "want/"))
				if *update {
					archive.Files[i].Data = []byte(got)
				} else if d := cmp.Diff(string(f.Data), got); d != "" {
					t.Errorf("%s (-want +got):\n%s", f.Name, d)
				}
			}
			if *update {
				if err := os.WriteFile(path, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// section renders a part of a result: "error", "problems", "TYPEs" for the names of a type, "TYPEs.json" for all
// resources of it, "TYPE/NAME.json" for one.
func section(t *testing.T, r *xds.Resources, err error, name string) string {
	t.Helper()
	if name == "error" {
		return strings.ReplaceAll(fmt.Sprintln(err), "\u00a0", " ") // protojson varies its spacing on purpose
	}
	if err != nil {
		t.Fatal(err)
	}
	if name == "problems" {
		return fmt.Sprintln(errors.Join(r.Problems...))
	}
	for typ := range xds.Type(xds.NumTypes) {
		of := r.Of(typ)
		var names []string
		for n := range of {
			names = append(names, n)
		}
		slices.Sort(names)
		switch {
		case name == typ.String()+"s":
			return strings.Join(names, "\n") + "\n"
		case name == typ.String()+"s.json":
			var all []json.RawMessage
			for _, n := range names {
				all = append(all, json.RawMessage(render(t, of[n])))
			}
			return indent(t, all)
		case strings.HasPrefix(name, typ.String()+"/"):
			n := strings.TrimSuffix(strings.TrimPrefix(name, typ.String()+"/"), ".json")
			if of[n] == nil {
				t.Fatalf("no %s %q among %q", typ, n, names)
			}
			return indent(t, json.RawMessage(render(t, of[n])))
		}
	}
	t.Fatalf("unknown section %q", name)
	return ""
}

func render(t *testing.T, r *xds.Resource) string {
	t.Helper()
	m, err := r.Body.UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// indent gives JSON one form, whatever spacing it came with.
func indent(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var any any
	if err := json.Unmarshal(data, &any); err != nil {
		t.Fatal(err)
	}
	data, err = json.MarshalIndent(any, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(data) + "\n"
}

// A change of one thing makes anew only what depends on it.
func TestCompilerReusesWhatDidNotChange(t *testing.T) {
	files := map[string][]byte{
		"in/proxy.json": []byte(`{"Service": {"Kind": "connect-proxy", "ID": "p", "Service": "p", "Port": 1, "Proxy": {
			"DestinationServiceName": "web", "LocalServicePort": 2,
			"Upstreams": [{"DestinationName": "db", "LocalBindPort": 3}, {"DestinationName": "api", "LocalBindPort": 4}]}}}`),
		"in/instances.json": []byte(`{"db": [], "api": []}`),
	}
	for _, f := range []xds.Flavour{xds.Envoy, xds.Own} {
		s := snapshotOf(t, files)
		c := xds.Compiler{Flavour: f}
		before, err := c.Compile(s)
		if err != nil {
			t.Fatal(err)
		}
		changed := func(s *mesh.Snapshot) []string {
			t.Helper()
			after, err := c.Compile(s)
			if err != nil {
				t.Fatal(err)
			}
			var out []string
			for typ := range xds.Type(xds.NumTypes) {
				for n, r := range after.Of(typ) {
					if o := before.Of(typ)[n]; o != r {
						out = append(out, typ.String()+" "+strings.SplitN(n, ".", 2)[0])
					}
				}
			}
			slices.Sort(out)
			before = after
			return out
		}
		check := func(what string, got, want []string) {
			t.Helper()
			if !slices.Equal(got, want) {
				t.Errorf("flavour %d, %s: made anew %q, want %q", f, what, got, want)
			}
		}
		check("nothing", changed(s), nil)
		var endpoints mesh.Need
		for _, n := range s.Needs() {
			if n.Kind == mesh.NeedInstances && n.Service == "db" {
				endpoints = n
			}
		}
		s = s.With(map[mesh.Need]any{endpoints: &catalog.InstancesReply{}})
		check("instances of db", changed(s), []string{"endpoint db"})
		s = s.With(map[mesh.Need]any{endpoints: &catalog.InstancesReply{}}).With(map[mesh.Need]any{endpoints: &catalog.InstancesReply{}})
		check("instances of db, twice", changed(s), []string{"endpoint db"})
		_, leaf := fixtures()
		leaf.CertPEM = "NEXT"
		s = s.With(map[mesh.Need]any{{Kind: mesh.NeedLeaf, Service: "web"}: leaf})
		if f == xds.Own {
			check("the leaf", changed(s), []string{"secret leaf"})
		} else {
			check("the leaf", changed(s), []string{"cluster api", "cluster db", "listener public_listener:0"})
		}
	}
}

func TestVersionsAreOfTheContent(t *testing.T) {
	files := map[string][]byte{"in/proxy.json": []byte(`{"Service": {"Kind": "connect-proxy", "ID": "p", "Port": 1, "Proxy": {"DestinationServiceName": "web"}}}`)}
	one, err := xds.Compile(snapshotOf(t, files), xds.Envoy)
	if err != nil {
		t.Fatal(err)
	}
	two, err := xds.Compile(snapshotOf(t, files), xds.Envoy)
	if err != nil {
		t.Fatal(err)
	}
	for typ := range xds.Type(xds.NumTypes) {
		for n, r := range one.Of(typ) {
			if len(r.Version) != 64 || two.Of(typ)[n].Version != r.Version {
				t.Errorf("%s %s has versions %q and %q", typ, n, r.Version, two.Of(typ)[n].Version)
			}
		}
	}
}

func TestCompileRefusesOtherKinds(t *testing.T) {
	s := mesh.New(&mesh.Registration{Service: &catalog.Service{ID: "web"}})
	if _, err := xds.Compile(s, xds.Envoy); !errors.Is(err, xds.ErrKind) {
		t.Errorf("Compile = %v, want ErrKind", err)
	}
}
