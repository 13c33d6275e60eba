package peering_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/testkit"
	engine "github.com/sarnmesh/sarn/server/peering"
	"github.com/sarnmesh/sarn/server/peeringrpc"
)

// Threat class 19: what a peer sends corrupts nothing, and touches nothing but its own imports.
func TestHostilePeerTouchesOnlyItsOwnImports(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		east, west, network := established(t) // west is an honest peer of east
		west.register(instanceOn("m1", "api", catalog.Passing))
		west.export("east", "api")
		east.register(instanceOn("n1", "db", catalog.Passing))
		soon(t, "the honest peer's service is imported", 5*time.Second, func() bool { return east.imports("west") == "api[m1]" })

		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		south := newCluster(t, network, "s", "10.0.3.1")
		h, err := engine.NewHostile(ctx, south.host.Dial, east.token("evil"))
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		refused := func(why, kind, name string, data any) {
			t.Helper()
			got, err := h.Put(kind, name, data)
			if err != nil {
				t.Fatalf("%s: the stream has ended: %v", why, err)
			}
			if got == "" || !strings.Contains(got, why) {
				t.Errorf("%s %q: answer %q, want it refused because %s", kind, name, got, why)
			}
		}
		taken := func(kind, name string, data any) {
			t.Helper()
			if got, err := h.Put(kind, name, data); err != nil || got != "" {
				t.Errorf("%s %q: refused: %s, %v", kind, name, got, err)
			}
		}
		own, roots := peeringrpc.Roots(south.Store.View())
		eastern, _ := peeringrpc.Roots(east.Store.View())
		fine := func() *engine.ServiceData {
			return &engine.ServiceData{Instances: []*engine.InstanceData{{Node: "n1", NodeAddress: "10.0.3.7", ID: "db", Port: 80, Status: "passing"}}}
		}
		mesh := func(change func(*engine.ServiceData)) *engine.ServiceData {
			d := &engine.ServiceData{
				Protocol: "tcp", SNI: []string{"db.default.default.east.external." + own},
				SpiffeID: []string{connect.ServiceID(own, "dc1", "db").String()},
				Gateways: []*engine.InstanceData{{Node: "g", ID: "g", Address: "10.0.3.9", Port: 443}},
			}
			change(d)
			return d
		}

		// What is not listed, or not listable.
		refused("not one of those that are exported", "service", "db", fine())
		refused("decode", "services", "", 7)
		refused("the servers are not exported", "services", "", []string{"db", "consul"})
		refused("needs a name", "services", "", []string{"*"})
		refused("needs a name", "services", "", []string{""})
		refused("control characters", "services", "", []string{"a\x00b"})
		refused("longer than", "services", "", []string{strings.Repeat("x", 300)})
		refused("listed twice", "services", "", []string{"db", "DB"})
		many := make([]string, engine.MaxServices+1)
		for n := range many {
			many[n] = fmt.Sprint("s", n)
		}
		refused("more than", "services", "", many)
		taken("services", "", []string{"db", "api"})
		refused("not known here", "config-entry", "x", 1)
		refused("only the side that dials", "servers", "", []string{"10.6.6.6:8503"})

		// Whom to trust: nobody vouches for others.
		refused("whom to trust for its members is not known", "service", "db", mesh(func(*engine.ServiceData) {}))
		refused("another peer", "bundle", "", &engine.BundleData{TrustDomain: eastern, Roots: roots})
		refused("another peer", "bundle", "", &engine.BundleData{TrustDomain: strings.ToUpper(eastern), Roots: roots})
		refused("another peer", "bundle", "", &engine.BundleData{TrustDomain: west.trustDomain(), Roots: roots})
		refused("not valid", "bundle", "", &engine.BundleData{TrustDomain: "a b", Roots: roots})
		refused("certificates", "bundle", "", &engine.BundleData{TrustDomain: own})
		refused("PEM", "bundle", "", &engine.BundleData{TrustDomain: own, Roots: []string{"nonsense"}})
		leaf := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: south.cert.Certificate[0]}))
		refused("not that of an authority", "bundle", "", &engine.BundleData{TrustDomain: own, Roots: []string{leaf}})
		taken("bundle", "", &engine.BundleData{TrustDomain: own, Roots: roots})
		refused("does not change", "bundle", "", &engine.BundleData{TrustDomain: "66666666-2222-3333-4444-555555555555.consul", Roots: roots})

		// Services.
		for why, change := range map[string]func(*engine.InstanceData){
			"has no node":           func(i *engine.InstanceData) { i.Node = "" },
			"or no ID":              func(i *engine.InstanceData) { i.ID = "" },
			"no UUID":               func(i *engine.InstanceData) { i.NodeID = "x" },
			"port":                  func(i *engine.InstanceData) { i.Port = 1 << 20 },
			"control characters":    func(i *engine.InstanceData) { i.NodeAddress = "10.0.0.1\n" },
			"longer than":           func(i *engine.InstanceData) { i.Tags = []string{strings.Repeat("x", 1000)} },
			"too many tags":         func(i *engine.InstanceData) { i.Tags = make([]string, 1000) },
			"metadata":              func(i *engine.InstanceData) { i.Meta = map[string]string{"": "x"} },
			"the metadata of an in": func(i *engine.InstanceData) { i.NodeMeta = map[string]string{"k": strings.Repeat("x", 5000)} },
		} {
			d := fine()
			change(d.Instances[0])
			refused(why, "service", "db", d)
		}
		d := fine()
		d.Instances = append(d.Instances, nil)
		refused("missing", "service", "db", d)
		d = fine()
		d.Instances = append(d.Instances, d.Instances[0])
		refused("twice", "service", "db", d)
		d = fine()
		for range engine.MaxInstances {
			d.Instances = append(d.Instances, d.Instances[0])
		}
		refused("more than", "service", "db", d)
		for why, change := range map[string]func(*engine.ServiceData){
			"server name":                     func(d *engine.ServiceData) { d.SNI[0] = "db.default.dc1.internal." + eastern },
			"server names and identities":     func(d *engine.ServiceData) { d.SNI = nil },
			"an identity is not that":         func(d *engine.ServiceData) { d.SpiffeID[0] = connect.ServiceID(eastern, "dc1", "db").String() },
			"an identity is not that of a":    func(d *engine.ServiceData) { d.SpiffeID[0] = connect.ServerID(own, "dc1").String() },
			"an identity is not that of a me": func(d *engine.ServiceData) { d.SpiffeID[0] = "https://example.com" },
			"the protocol":                    func(d *engine.ServiceData) { d.Protocol = "gopher" },
		} {
			refused(why, "service", "db", mesh(change))
		}

		// It cannot say whose it is, what its virtual address is, or that it is healthy when it is not known to be.
		d = mesh(func(d *engine.ServiceData) {
			d.Instances = fine().Instances
			d.Instances[0].Addresses = map[string]catalog.ServiceAddress{catalog.VirtualAddressTag: {Address: "1.1.1.1", Port: 1}, "lan": {Address: "10.0.3.7", Port: 80}}
			d.Instances[0].NodeMeta = map[string]string{"consul-network-segment": "x", "rack": "1"}
			d.Instances[0].Status = "splendid"
			d.Instances[0].Weights = &catalog.Weights{Passing: -5}
		})
		taken("service", "db", d)
		taken("service", "api", fine())
		_, i := east.Store.View().Import("evil", "db")
		in := i.Instances[0]
		if in.Node.PeerName != "evil" || in.Service.PeerName != "evil" || in.Service.Service != "db" {
			t.Errorf("the import is of %q, %q: %s", in.Node.PeerName, in.Service.PeerName, in.Service.Service)
		}
		if a := in.Service.TaggedAddresses; len(a) != 1 || a["lan"].Port != 80 {
			t.Errorf("tagged addresses %v", a)
		}
		if in.Node.Meta["consul-network-segment"] != "" || in.Node.Meta["rack"] != "1" || in.Service.Weights.Passing != 1 {
			t.Errorf("meta %v, weights %v", in.Node.Meta, in.Service.Weights)
		}
		if in.Checks[0].Status != catalog.Critical || in.Checks[0].PeerName != "evil" {
			t.Errorf("check %+v", in.Checks[0])
		}

		// Everything else is as it was.
		if got := east.imports("west"); got != "api[m1]" {
			t.Errorf("the honest peer's imports are %s", got)
		}
		if _, here := east.Store.View().Instances("db", false); len(here) != 1 || here[0].Node.PeerName != "" || here[0].Node.Address != "10.9.0.1" {
			t.Errorf("the cluster's own instances are %v", here)
		}
		if n := east.Store.View().Node("n1"); n.Address != "10.9.0.1" || n.PeerName != "" {
			t.Errorf("the cluster's own node is %+v", n)
		}
		if p := east.state("west"); p != peering.Active {
			t.Errorf("the honest peering is %s", p)
		}
		if _, p := east.Store.View().Peering("evil"); p.Remote.Datacenter != "" {
			t.Errorf("its datacenter is %q", p.Remote.Datacenter)
		}
		// The state survives a snapshot.
		var dump bytes.Buffer
		if err := east.Store.View().Dump(&dump); err != nil {
			t.Fatal(err)
		}
		if err := state.New().Restore(&dump); err != nil {
			t.Fatal(err)
		}

		// What makes no sense ends the stream, and nothing else.
		if got, err := h.PutRaw("service", "db", []byte{0xff, 0x00}); err != nil || got == "" {
			t.Errorf("garbage: %q, %v", got, err)
		}
		if err := h.Say([]byte("\xa1\x63Put")); err == nil {
			t.Error("the stream goes on after garbage")
		}
		east.delete("evil")
		soon(t, "the hostile peer is gone", time.Minute, func() bool { return east.state("evil") == "" && east.imports("evil") == "" })
		if got := east.imports("west"); got != "api[m1]" {
			t.Errorf("the honest peer's imports are %s", got)
		}
	})
}

// A peer that floods is slowed down: it does not fill the log.
func TestFlood(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		east, _, network := pair(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		south := network.Host("10.0.3.1")
		h, err := engine.NewHostile(ctx, south.Dial, east.token("evil"))
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		if got, err := h.Put("services", "", []string{"db"}); got != "" || err != nil {
			t.Fatal(got, err)
		}
		began, before := time.Now(), east.Index()
		const changes = 1500
		for n := range changes {
			d := &engine.ServiceData{Instances: []*engine.InstanceData{{Node: "n", ID: fmt.Sprint(n), Port: 80}}}
			if got, err := h.Put("service", "db", d); got != "" || err != nil {
				t.Fatal(got, err)
			}
		}
		took := time.Since(began)
		if entries := east.Index() - before; entries != changes || took < 4*time.Second {
			t.Errorf("%d entries in %v", entries, took)
		}
	})
}

// Callers without a good secret get nowhere.
func TestStrangers(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		east, west, network := established(t)
		stranger := network.Host("10.0.9.1")
		dial := func(creds credentials.TransportCredentials) *grpc.ClientConn {
			conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(creds),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return stranger.Dial(ctx, "10.0.1.1:8503") }))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		secure := dial(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}))
		id := peeringID(east, "west")
		real := west.Store.View().PeeringSecrets(peeringID(west, "east")).Stream
		for name, req := range map[string]any{
			"no secret":       map[string]any{"Peering": id},
			"a wrong secret":  map[string]any{"Peering": id, "Secret": strings.Repeat("0", 64)},
			"a stream secret": map[string]any{"Peering": id, "Secret": real},
			"no such peering": map[string]any{"Peering": "x", "Secret": real},
			"nothing":         map[string]any{},
		} {
			data, err := rpc.Marshal(req)
			if err != nil {
				t.Fatal(err)
			}
			err = secure.Invoke(t.Context(), "/sarn.peering.v1.Peering/Exchange", wrapperspb.Bytes(data), &wrapperspb.BytesValue{})
			if status.Code(err) != codes.PermissionDenied {
				t.Errorf("exchange with %s: %v", name, err)
			}
			open, err := rpc.Marshal(map[string]any{"Open": map[string]any{"Peering": req.(map[string]any)["Peering"], "Secret": "wrong"}})
			if err != nil {
				t.Fatal(err)
			}
			s, err := secure.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/sarn.peering.v1.Peering/Stream")
			if err != nil {
				t.Fatal(err)
			}
			if err := s.SendMsg(wrapperspb.Bytes(open)); err != nil {
				t.Fatal(err)
			}
			if err := s.RecvMsg(&wrapperspb.BytesValue{}); status.Code(err) != codes.PermissionDenied && status.Code(err) != codes.InvalidArgument {
				t.Errorf("stream with %s: %v", name, err)
			}
		}
		// Who says nothing is not waited for.
		began := time.Now()
		s, err := secure.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/sarn.peering.v1.Peering/Stream")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.RecvMsg(&wrapperspb.BytesValue{}); err == nil || time.Since(began) > 15*time.Second {
			t.Errorf("silence: %v after %v", err, time.Since(began))
		}
		if east.state("west") != peering.Active {
			t.Errorf("the honest peering is %s", east.state("west"))
		}
	})
}

// What arrives from a peer is refused or fit to be stored: it has the peer's name everywhere, and survives the codec.
func FuzzMessage(f *testing.F) {
	f.Add(engine.Encode("db", &engine.ServiceData{Instances: []*engine.InstanceData{{Node: "n", ID: "i", Port: 1, Status: "passing"}}}))
	f.Add(engine.Encode("db", &engine.ServiceData{
		Protocol: "http", SNI: []string{"db.default.default.p.external." + engine.TestTrustDomain},
		SpiffeID: []string{connect.ServiceID(engine.TestTrustDomain, "dc1", "db").String()},
		Gateways: []*engine.InstanceData{{Node: "g", NodeStatus: "warning", ID: "g", Port: 443, Meta: map[string]string{"k": "v"}}},
	}))
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, i := range engine.Decode(data) {
			if i.Peer != "peer" || i.Service == "" || i.Service == "consul" {
				t.Fatalf("import of %q from %q", i.Service, i.Peer)
			}
			for _, list := range [][]*catalog.Instance{i.Instances, i.Gateways} {
				for _, in := range list {
					if in.Node.PeerName != "peer" || in.Service.PeerName != "peer" || in.Node.Node == "" || in.Service.ID == "" {
						t.Fatalf("instance %+v of %+v", in.Service, in.Node)
					}
					for _, c := range in.Checks {
						if c.PeerName != "peer" {
							t.Fatalf("check %+v", c)
						}
					}
				}
			}
			encoded, err := rpc.Marshal(i)
			if err != nil {
				t.Fatal(err)
			}
			if err := rpc.Unmarshal(encoded, new(peering.Import)); err != nil {
				t.Fatal(err)
			}
		}
	})
}
