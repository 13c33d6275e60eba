package httpapi

import (
	"bytes"
	"cmp"
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// The forms of spec/registry.md section 3, told to encoding/json.

type serviceForm struct {
	Kind              string `json:",omitempty"`
	ID                string
	Service           string
	Tags              []string
	Address           string
	TaggedAddresses   map[string]catalog.ServiceAddress `json:",omitempty"`
	Meta              map[string]string
	Port              int    `json:",omitempty"`
	SocketPath        string `json:",omitempty"`
	Weights           catalog.Weights
	EnableTagOverride bool
	Locality          *catalog.Locality `json:",omitempty"`
	Proxy             any
	Connect           catalog.Connect
	PeerName          string
	catalog.Indexes
}

type serviceNodeForm struct {
	ID, Node, Address, Datacenter string
	TaggedAddresses, NodeMeta     map[string]string
	ServiceKind                   string
	ServiceID, ServiceName        string
	ServiceTags                   []string
	ServiceAddress                string
	ServiceTaggedAddresses        map[string]catalog.ServiceAddress `json:",omitempty"`
	ServiceWeights                catalog.Weights
	ServiceMeta                   map[string]string
	ServicePort                   int
	ServiceSocketPath             string
	ServiceEnableTagOverride      bool
	ServiceProxy                  any
	ServiceConnect                catalog.Connect
	ServiceLocality               *catalog.Locality
	PeerName                      string `json:",omitempty"`
	catalog.Indexes
}

type proxyForm struct {
	Mode                   string
	EnvoyExtensions        []catalog.EnvoyExtension `json:",omitempty"`
	DestinationServiceName string                   `json:",omitempty"`
	DestinationServiceID   string                   `json:",omitempty"`
	LocalServiceAddress    string                   `json:",omitempty"`
	LocalServicePort       int                      `json:",omitempty"`
	LocalServiceSocketPath string                   `json:",omitempty"`
	Config                 map[string]any           `json:",omitempty"`
	Upstreams              []catalog.Upstream       `json:",omitempty"`
	MeshGateway            catalog.MeshGateway
	Expose                 catalog.Expose
	TransparentProxy       *catalog.TransparentProxy `json:",omitempty"`
	AccessLogs             *catalog.AccessLogs       `json:",omitempty"`
	MutualTLSMode          string                    `json:",omitempty"`
}

// agentProxyForm leaves out an empty mode.
type agentProxyForm struct {
	Mode string `json:",omitempty"`
	proxyForm
	Upstreams []agentUpstreamForm `json:",omitempty"`
	Expose    agentExposeForm
}

type agentUpstreamForm struct {
	catalog.Upstream
	Datacenter string `json:",omitempty"`
}

type agentExposeForm struct {
	Checks bool              `json:",omitempty"`
	Paths  []agentExposePath `json:",omitempty"`
}

type agentExposePath struct {
	catalog.ExposePath
	ParsedFromCheck bool
}

func tags(t []string) []string {
	if t == nil {
		return []string{}
	}
	return t
}

func weights(w *catalog.Weights) catalog.Weights {
	if w == nil {
		return catalog.Weights{Passing: 1, Warning: 1}
	}
	return *w
}

func formOfProxy(p catalog.Proxy) proxyForm {
	f := proxyForm(p)
	f.Upstreams = slices.Clone(p.Upstreams)
	return f
}

func formOfAgentProxy(p catalog.Proxy) agentProxyForm {
	f := agentProxyForm{Mode: p.Mode, proxyForm: formOfProxy(p), Expose: agentExposeForm{Checks: p.Expose.Checks}}
	for _, u := range f.proxyForm.Upstreams {
		u.DestinationType = cmp.Or(u.DestinationType, "service")
		f.Upstreams = append(f.Upstreams, agentUpstreamForm{u, u.Datacenter})
	}
	for _, path := range p.Expose.Paths {
		f.Expose.Paths = append(f.Expose.Paths, agentExposePath{path, path.ParsedFromCheck})
	}
	return f
}

func formOfService(s *catalog.Service) serviceForm {
	return serviceForm{
		s.Kind, s.ID, s.Service, tags(s.Tags), s.Address, s.TaggedAddresses, s.Meta, s.Port, s.SocketPath, weights(s.Weights),
		s.EnableTagOverride, s.Locality, formOfProxy(s.Proxy), s.Connect, s.PeerName, s.Indexes,
	}
}

func formOfServiceNode(n *catalog.Node, s *catalog.Service) serviceNodeForm {
	meta := s.Meta
	if meta == nil {
		meta = map[string]string{}
	}
	return serviceNodeForm{
		n.ID, n.Node, n.Address, n.Datacenter, n.TaggedAddresses, n.Meta, s.Kind, s.ID, s.Service, tags(s.Tags), s.Address,
		s.TaggedAddresses, weights(s.Weights), meta, s.Port, s.SocketPath, s.EnableTagOverride, formOfProxy(s.Proxy), s.Connect,
		s.Locality, s.PeerName, s.Indexes,
	}
}

func formOfCheck(c *catalog.Check) catalog.Check {
	out := *c
	out.ServiceTags = tags(c.ServiceTags)
	return out
}

// A random fills any value of the catalog's types.
type random struct{ *rand.Rand }

var pieces = []string{"web", "ü", "\u2028", "<a&b>", "\x00\x1f", `"\`, "\xff\xfe", "\b\f\n\r\t", "日本", "\x7f", "😀", "{}", "10.0.0.1"}

func (r random) text() string {
	var b strings.Builder
	for range r.IntN(4) {
		b.WriteString(pieces[r.IntN(len(pieces))])
	}
	return b.String()
}

func (r random) fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(r.text())
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Int, reflect.Int64:
		if r.IntN(3) > 0 {
			v.SetInt(r.Int64() >> r.IntN(63))
		}
	case reflect.Uint, reflect.Uint64:
		if r.IntN(3) > 0 {
			v.SetUint(r.Uint64() >> r.IntN(64))
		}
	case reflect.Float64:
		v.SetFloat(r.NormFloat64())
	case reflect.Pointer:
		if r.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			r.fill(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			r.fill(v.Field(i))
		}
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[json.RawMessage]() {
			if r.IntN(2) == 0 {
				v.SetBytes([]byte(`{"SNI":["a"]}`))
			}
			return
		}
		switch n := r.IntN(4); n {
		case 0: // nil
		default:
			s := reflect.MakeSlice(v.Type(), n-1, n-1)
			for i := range n - 1 {
				r.fill(s.Index(i))
			}
			v.Set(s)
		}
	case reflect.Map:
		switch n := r.IntN(4); n {
		case 0: // nil
		default:
			m := reflect.MakeMap(v.Type())
			for range (n - 1) * 5 {
				k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
				r.fill(k)
				r.fill(e)
				m.SetMapIndex(k, e)
			}
			v.Set(m)
		}
	case reflect.Interface:
		v.Set(reflect.ValueOf([]any{"x", 1.5, true, nil, map[string]any{"k<": "v"}}[r.IntN(3)]))
	}
}

// TestAppendedJSONIsThatOfEncodingJSON compares every appender with encoding/json on random objects.
func TestAppendedJSONIsThatOfEncodingJSON(t *testing.T) {
	seed := testkit.Seed(t)
	r := random{rand.New(rand.NewPCG(seed, 1))}
	compare := func(name string, got []byte, want any) {
		t.Helper()
		data, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if name == "agent proxy" { // the mirror form orders its fields otherwise
			var a, b any
			if json.Unmarshal(got, &a) != nil || json.Unmarshal(data, &b) != nil || !reflect.DeepEqual(a, b) {
				t.Fatalf("seed %d: %s:\n got %s\nwant %s", seed, name, got, data)
			}
			return
		}
		if !bytes.Equal(got, data) {
			t.Fatalf("seed %d: %s:\n got %s\nwant %s", seed, name, got, data)
		}
	}
	for range 2000 {
		var n catalog.Node
		var s catalog.Service
		var c catalog.Check
		var e kv.Entry
		var ses kv.Session
		for _, v := range []any{&n, &s, &c, &e, &ses} {
			r.fill(reflect.ValueOf(v).Elem())
		}
		compare("string", appendString(nil, n.Node), n.Node)
		compare("node", appendNode(nil, &n), n)
		compare("service", appendService(nil, &s), formOfService(&s))
		compare("service node", appendServiceNode(nil, &n, &s), formOfServiceNode(&n, &s))
		compare("agent proxy", appendProxy(nil, &s.Proxy, true), formOfAgentProxy(s.Proxy))
		compare("check", appendCheck(nil, &c), formOfCheck(&c))
		compare("session", appendSession(nil, &ses), ses)
		i := catalog.Instance{Node: &n, Service: &s, Checks: []*catalog.Check{&c, &c}}
		compare("instance", appendInstance(nil, &i), struct {
			Node    catalog.Node
			Service serviceForm
			Checks  []catalog.Check
		}{n, formOfService(&s), []catalog.Check{formOfCheck(&c), formOfCheck(&c)}})
		if len(e.Value) == 0 {
			e.Value = nil
		}
		compare("entry", appendEntry(nil, &e), e)
	}
}

func FuzzAppendString(f *testing.F) {
	for _, p := range pieces {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, s string) {
		want, _ := json.Marshal(s)
		if got := appendString(nil, s); !bytes.Equal(got, want) {
			t.Errorf("appendString(%q) = %s, want %s", s, got, want)
		}
	})
}
