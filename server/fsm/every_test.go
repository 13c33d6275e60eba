package fsm_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/server/aclrpc"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/connectrpc"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/introrpc"
	"github.com/sarnmesh/sarn/server/kvrpc"
	"github.com/sarnmesh/sarn/server/peeringrpc"
	"github.com/sarnmesh/sarn/server/queryrpc"
	"github.com/sarnmesh/sarn/server/statusrpc"
	"github.com/sarnmesh/sarn/server/svidrpc"
	"github.com/sarnmesh/sarn/server/transport"
)

// every returns the appliers of a whole server.
func every() *fsm.Appliers {
	a, r := &fsm.Appliers{}, &transport.Registry{}
	catalogrpc.Register(r, a, catalogrpc.Config{})
	kvrpc.Register(r, a, kvrpc.Config{})
	queryrpc.Register(r, a, queryrpc.Config{})
	configrpc.Register(r, a, configrpc.Config{})
	connectrpc.New(connectrpc.Config{}).Register(r, a)
	aclrpc.New(aclrpc.Config{Enabled: true, Datacenter: "dc1"}, state.New()).Register(r, a)
	svidrpc.Register(r, a, svidrpc.Config{})
	statusrpc.Register(r, a, statusrpc.Config{})
	peeringrpc.Register(r, a, peeringrpc.Config{})
	introducer, err := introrpc.New(introrpc.Config{})
	if err != nil {
		panic(err)
	}
	introducer.Register(r, a)
	a.OnDelay = nil
	return a
}

const lastKind = fsm.JoinTokens

type wireRecord struct {
	Kind    fsm.Kind `cbor:"k"`
	Version uint8    `cbor:"v"`
	Data    []byte   `cbor:"d"`
}

type object = map[string]any

// samples are commands of each kind in their general form.
func samples(t testing.TB) map[fsm.Kind][]any {
	entryOf := func(doc object) any {
		e, err := entry.Decode(doc)
		if err != nil {
			t.Fatal(err)
		}
		data, err := rpc.Marshal(entry.Any{Entry: e})
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := rpc.Unmarshal(data, &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	var entries []any
	for _, doc := range []object{
		{"Kind": "service-defaults", "Name": "web", "Protocol": "http", "Destination": object{"Addresses": []any{"a.example"}, "Port": 1}},
		{"Kind": "service-resolver", "Name": "web", "Subsets": object{"v": object{"Filter": "x == 1"}}, "Failover": object{"*": object{"Service": "b"}}},
		{"Kind": "service-splitter", "Name": "web", "Splits": []any{object{"Weight": 100, "Service": "b"}}},
		{"Kind": "service-router", "Name": "web", "Routes": []any{object{"Match": object{"HTTP": object{"PathPrefix": "/"}}, "Destination": object{"Service": "b"}}}},
		{"Kind": "service-intentions", "Name": "web", "Sources": []any{object{"Name": "b", "Action": "allow"}}},
		{"Kind": "ingress-gateway", "Name": "gw", "Listeners": []any{object{"Port": 1, "Protocol": "tcp", "Services": []any{object{"Name": "web"}}}}},
		{"Kind": "terminating-gateway", "Name": "tw", "Services": []any{object{"Name": "*"}}},
		{"Kind": "api-gateway", "Name": "aw", "Listeners": []any{object{"Name": "l", "Port": 1, "Protocol": "http"}}},
		{"Kind": "http-route", "Name": "r", "Parents": []any{object{"Kind": "api-gateway", "Name": "aw"}}, "Rules": []any{object{"Services": []any{object{"Name": "web"}}}}},
		{"Kind": "exported-services", "Name": "default", "Services": []any{object{"Name": "*", "Consumers": []any{object{"Peer": "p"}}}}},
		{"Kind": "proxy-defaults", "Name": "global", "Config": object{"protocol": "http"}}, {"Kind": "mesh"},
		{"Kind": "jwt-provider", "Name": "j", "JSONWebKeySet": object{"Local": object{"JWKS": "eyJrZXlzIjpbXX0="}}},
	} {
		entries = append(entries, object{"Op": "set", "Entry": entryOf(doc)}, object{"Op": "delete", "Kind": doc["Kind"], "Name": doc["Name"]})
	}
	entries = append(entries, object{"Op": "set-source", "Kind": "service-intentions", "Name": "web", "Source": object{"Name": "c", "Action": "deny"}},
		object{"Op": "delete-source", "Kind": "service-intentions", "Name": "web", "Source": object{"Name": "b"}},
		object{"Op": "virtual-ips", "Name": "web", "Addresses": []any{"240.0.0.9"}}, object{"Op": "bind", "Bind": []any{entries[0].(object)["Entry"], nil}},
		object{"Op": "set", "Entry": nil}, object{"Op": "set"}, object{"Op": "delete", "Kind": "none"})
	const id = "11111111-2222-3333-4444-555555555555"
	token := object{"AccessorID": id, "SecretID": id, "Policies": []any{object{"ID": id}, nil}}
	root := object{"ID": "aa", "Active": true, "RootCert": "x", "IntermediateCerts": nil}
	return map[fsm.Kind][]any{
		fsm.Register:          {object{"Node": "n", "Address": "1", "Service": object{"ID": "s", "Service": "web"}, "Checks": []any{object{"Node": "n", "CheckID": "c"}, nil}}},
		fsm.Deregister:        {object{"Node": "n1"}, object{"Node": "n1", "ServiceID": "s"}},
		fsm.UpdateCoordinates: {object{"Updates": []any{object{"Node": "n1", "Coord": object{"Vec": []any{1.5}}}, nil}}},
		fsm.KV:                {object{"Op": "set", "Entry": object{"Key": "k", "Value": []byte("v")}}, object{"Op": "delete-tree", "Entry": object{"Key": ""}}},
		fsm.Txn:               {object{"Ops": []any{object{"KV": object{"Verb": "set", "Entry": object{"Key": "k"}}}, object{"Node": object{"Verb": "delete", "Node": object{"Node": "n1"}}}, object{}, nil}}},
		fsm.SessionCreate:     {object{"Session": object{"ID": id, "Node": "n1", "NodeChecks": []any{"c"}}}},
		fsm.SessionDestroy:    {object{"ID": id}},
		fsm.TombstoneReap:     {object{"Index": 9}, object{"index": 9}},
		fsm.ConfigEntry:       entries,
		fsm.CARoots: {object{"Roots": []any{root, nil}, "Config": object{"ClusterID": "c", "Provider": "consul", "Config": object{"a": []any{nil}}}, "Provider": object{"ID": "aa", "PrivateKey": "x"}},
			object{"Roots": []any{root, root}}},
		fsm.CAConfig:        {object{"Config": object{"Provider": "x"}}, object{"Provider": object{"ID": ""}}, object{}},
		fsm.Autopilot:       {object{"Config": object{"MaxTrailingLogs": 1}, "CAS": true}, object{}},
		fsm.System:          {object{"Name": "x", "Value": []byte("y")}, object{}},
		fsm.PreparedQuery:   {object{"Op": "create", "Query": object{"ID": id, "Name": "q", "Session": id, "Template": object{"Type": "name_prefix_match", "Regexp": "("}, "Service": object{"Service": "${"}}}, object{"Op": "delete", "Query": object{"ID": id}}},
		fsm.Peering:         {object{"Peering": object{"ID": id, "Name": "p", "State": "ACTIVE"}, "Secrets": object{"ID": id}}, object{}},
		fsm.PeeringChange:   {object{"Peer": "p", "ID": id, "Service": "web", "Instances": []any{nil}, "Nodes": []any{object{"Node": "n"}}}, object{}},
		fsm.ACLBootstrap:    {object{"Token": token}, object{}},
		fsm.ACLTokens:       {object{"Create": true, "Set": []any{token, nil}}, object{"Delete": []any{id}}},
		fsm.ACLPolicies:     {object{"Create": true, "Set": []any{object{"ID": id, "Name": "p", "Rules": "key {"}, nil}}},
		fsm.ACLRoles:        {object{"Set": []any{object{"ID": id, "Name": "r", "Policies": []any{nil}}}}},
		fsm.ACLAuthMethods:  {object{"Set": []any{object{"Name": "m", "Type": "jwt", "Config": object{"a": object{}}}, nil}}},
		fsm.ACLBindingRules: {object{"Set": []any{object{"ID": id, "AuthMethod": "m", "Selector": "((", "BindName": "${"}, nil}}},
		fsm.JoinTokens: {
			object{"Now": int64(1), "Make": object{"Hash": make([]byte, 32), "Expires": int64(9)}},
			object{"Now": int64(2), "Use": object{"Hash": make([]byte, 32), "Server": true, "Node": "n"}}, object{},
		},
		fsm.SVIDKeys: {object{"Keys": []any{nil}, "Index": 1}, object{}},
	}
}

// odd values to put in the place of others.
var odd = []any{nil, true, "", "x", "../x", strings.Repeat("n", 3000), "\xff\x00", 0, -1, uint64(1) << 63, 1.5, []any{}, []any{nil}, object{}, object{"x": nil}, []byte{0, 255}}

// mutate changes a value somewhere.
func mutate(r *rand.Rand, v any) any {
	if r.IntN(5) == 0 {
		return odd[r.IntN(len(odd))]
	}
	switch v := v.(type) {
	case object:
		out := object{}
		for _, k := range slices.Sorted(maps.Keys(v)) { // the seed alone decides
			x := v[k]
			switch r.IntN(6) {
			case 0:
			case 1:
				out[k] = mutate(r, x)
			default:
				out[k] = x
			}
		}
		return out
	case []any:
		out := append([]any{}, v...)
		for i := range out {
			if r.IntN(3) == 0 {
				out[i] = mutate(r, out[i])
			}
		}
		if len(out) > 0 && r.IntN(4) == 0 {
			out = append(out, out[0])
		}
		return out
	case []byte:
		out := bytes.Clone(v)
		if len(out) > 0 {
			out[r.IntN(len(out))] ^= 1 << r.IntN(8)
		}
		return out
	}
	return v
}

// No entry of the log of any kind, whatever is in it, takes a server down or leaves a state that cannot be saved and
// loaded: what is wrong is an error of that one command and changes nothing (spec/threats.md, class 9).
func TestThreat09NoEntryTakesAServerDown(t *testing.T) {
	seed, rounds := testkit.Seed(t), 400
	if testing.Short() {
		rounds = 60
	}
	r := rand.New(rand.NewPCG(seed, 9))
	a, all := every(), samples(t)
	for kind := fsm.Register; kind <= lastKind; kind++ {
		if len(all[kind]) == 0 {
			t.Errorf("there is no sample of kind %d", kind)
			continue
		}
		for range rounds {
			s := state.New()
			a.Apply(s, 5, beginning(t))
			var records []wireRecord
			for range 1 + r.IntN(3) {
				sample := all[kind][r.IntN(len(all[kind]))]
				for range r.IntN(4) {
					sample = mutate(r, sample)
				}
				data, err := rpc.Marshal(sample)
				if err != nil {
					t.Fatal(err)
				}
				if len(data) > 0 && r.IntN(8) == 0 {
					data[r.IntN(len(data))] ^= 1 << r.IntN(8)
				}
				records = append(records, wireRecord{kind, 1, data})
			}
			if err := survives(a, s, records); err != nil {
				t.Fatalf("kind %d: %v\n%x", kind, err, records)
			}
		}
	}
}

// beginning is an entry with something for others to change.
func beginning(t testing.TB) []byte {
	return encode(t, set("a/b"), fsm.Command{Kind: fsm.Register, Req: &catalog.RegisterRequest{
		Node: "n1", Address: "1", Service: &catalog.Service{ID: "s", Service: "web"}, Checks: []*catalog.Check{{Node: "n1", CheckID: "c", Status: "passing"}},
	}})
}

func survives(a *fsm.Appliers, s *state.Store, records []wireRecord) error {
	entry, err := rpc.Marshal(records)
	if err != nil {
		return err
	}
	save := func(s *state.Store) ([]byte, error) {
		var b bytes.Buffer
		err := s.View().Dump(&b)
		return b.Bytes(), err
	}
	before, err := save(s)
	if err != nil {
		return err
	}
	failed := true
	for _, res := range a.Apply(s, 6, entry) {
		failed = failed && res.Err != nil
		switch {
		case res.Err == nil:
		case strings.Contains(res.Err.Error(), "panic:"):
			return res.Err
		case strings.Contains(res.Err.Error(), "is not known to this server"):
			return res.Err
		}
	}
	after, err := save(s)
	if err != nil {
		return fmt.Errorf("the state cannot be saved: %w", err)
	}
	if failed && !bytes.Equal(before, after) {
		return errors.New("what failed changed something")
	}
	again := state.New()
	if err := again.Restore(bytes.NewReader(after)); err != nil {
		return fmt.Errorf("the state cannot be loaded: %w", err)
	}
	if loaded, err := save(again); err != nil || !bytes.Equal(loaded, after) {
		return fmt.Errorf("the state is another once loaded: %v", err)
	}
	return nil
}

// FuzzEveryKind is that test for arbitrary bytes.
func FuzzEveryKind(f *testing.F) {
	for kind, list := range samples(f) {
		for _, sample := range list {
			data, err := rpc.Marshal(sample)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint8(kind), data)
		}
	}
	a, first := every(), beginning(f)
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		if kind == 0 || fsm.Kind(kind) > lastKind {
			return
		}
		s := state.New()
		a.Apply(s, 5, first)
		if err := survives(a, s, []wireRecord{{fsm.Kind(kind), 1, data}}); err != nil {
			t.Fatal(err)
		}
	})
}
