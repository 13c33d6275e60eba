package peering_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/connectrpc"
)

func TestServicesAreImported(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		east, west, _ := established(t)
		imports := func(want string) {
			t.Helper()
			soon(t, "imports are "+want, 5*time.Second, func() bool { return west.imports("east") == want })
		}
		east.register(instanceOn("n1", "db", catalog.Passing))
		east.register(instanceOn("n1", "secret", catalog.Passing))
		east.export("west", "db")
		imports("db[n1]")
		east.register(instanceOn("n2", "db", catalog.Warning))
		imports("db[n1 n2!warning]")
		east.register(instanceOn("n1", "db", catalog.Critical))
		imports("db[n1!critical n2!warning]")
		east.export("west", "*")
		imports("db[n1!critical n2!warning] secret[n1]")
		east.export("west", "secret", "ghost")
		imports("ghost[] secret[n1]")
		east.export("other", "db", "secret")
		imports("")

		// What is imported stands apart from what is registered here.
		east.export("west", "db")
		imports("db[n1!critical n2!warning]")
		if _, here := west.Store.View().Instances("db", false); len(here) != 0 {
			t.Errorf("%d instances of a service of a peer are known as of this cluster", len(here))
		}
		r, err := catalog.InstancesCall.Call(t.Context(), west.Caller(), &catalog.InstancesRequest{Service: "db", Peer: "east"})
		if err != nil || len(r.Instances) != 2 || r.Instances[0].Node.PeerName != "east" || r.Instances[0].Checks[0].CheckID != "db:overall-check" {
			t.Errorf("?peer=east: %+v, %v", r, err)
		}
		// Nothing is written when nothing changes.
		before := west.Index()
		time.Sleep(10 * time.Minute)
		if got := west.Index(); got != before {
			t.Errorf("%d log entries while nothing changed", got-before)
		}
		s := west.engine.Status(peeringID(west, "east"))
		if since := time.Since(s.LastHeartbeat); since > 16*time.Second || s.LastSend.IsZero() || s.LastReceive.IsZero() {
			t.Errorf("status %+v", s)
		}
	})
}

func peeringID(c *cluster, name string) string {
	_, p := c.Store.View().Peering(name)
	return p.ID
}

func TestServicesOfTheMeshAreReachedThroughGateways(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		east, west, _ := established(t)
		east.register(instanceOn("n1", "db", catalog.Passing))
		east.register(sidecarOn("n1", "db"))
		east.register(gatewayOn("g1"))
		east.export("west", "db")
		soon(t, "the gateway stands for the service", 5*time.Second, func() bool { return west.imports("east") == "db[n1]+1" })
		r, err := catalog.InstancesCall.Call(t.Context(), west.Caller(), &catalog.InstancesRequest{Service: "db", Peer: "east", Connect: true})
		if err != nil || len(r.Instances) != 1 {
			t.Fatal(r, err)
		}
		s := r.Instances[0].Service
		var meta peering.Meta
		if err := json.Unmarshal(s.Connect.PeerMeta, &meta); err != nil {
			t.Fatal(err)
		}
		td := east.trustDomain()
		if s.Address != "203.0.113.1" || s.Port != 443 || s.Kind != catalog.KindConnectProxy || s.Proxy.DestinationServiceName != "db" || s.PeerName != "east" {
			t.Errorf("gateway %+v", s)
		}
		if meta.SNI[0] != "db.default.default.west.external."+td || meta.Protocol != "tcp" || meta.SpiffeID[0] != "spiffe://"+td+"/ns/default/dc/dc1/svc/db" {
			t.Errorf("meta %+v", meta)
		}
		ip := west.Store.View().VirtualIP("db", "east")
		if ip == nil || s.TaggedAddresses[catalog.VirtualAddressTag].Address != ip.Address() {
			t.Errorf("virtual IP %+v, tagged %+v", ip, s.TaggedAddresses)
		}
		east.export("west", "other")
		soon(t, "the virtual IP is free", 5*time.Second, func() bool { return west.Store.View().VirtualIP("db", "east") == nil })

		// Either side knows whom to trust for the other.
		for _, c := range []struct {
			at    *cluster
			peer  string
			other *cluster
		}{{west, "east", east}, {east, "west", west}} {
			_, b := c.at.Store.View().PeerBundle(c.peer)
			if b == nil || b.TrustDomain != c.other.trustDomain() || len(b.RootPEMs) != 1 {
				t.Errorf("bundle of %s: %+v", c.peer, b)
			}
		}
	})
}

// Both sides may export to each other, whoever dials.
func TestBothSidesExport(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		east, west, _ := established(t)
		east.register(instanceOn("n1", "db", catalog.Passing))
		west.register(instanceOn("m1", "db", catalog.Passing))
		east.export("west", "db")
		west.export("east", "db")
		soon(t, "either knows the other's", 5*time.Second, func() bool {
			return west.imports("east") == "db[n1]" && east.imports("west") == "db[m1]"
		})
	})
}

func TestTokens(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		east, west, network := pair(t)
		first, second := east.token("west"), east.token("west")
		if err := west.establish("east", first); wireerr.Status(err) != http.StatusForbidden || !errorIs(err, "a new peering token must be generated: ") {
			t.Errorf("a token that was replaced: %v", err)
		}
		if err := east.establish("me", second); !errorIs(err, "cannot create a peering within the same cluster") {
			t.Errorf("an own token: %v", err)
		}
		if err := west.establish("east", second); err != nil {
			t.Fatal(err)
		}
		south := newCluster(t, network, "s", "10.0.3.1")
		if err := south.establish("east", second); wireerr.Status(err) != http.StatusForbidden || !errorIs(err, "a new peering token must be generated: ") {
			t.Errorf("a token that was used: %v", err)
		}
		if south.state("east") != "" {
			t.Error("a peering is there without a token")
		}
		if _, err := peering.TokenCall.Call(t.Context(), west.Caller(), &peering.TokenRequest{Name: "east"}); err == nil ||
			err.Error() != `cannot create peering with name: "east"; there is already an established peering` {
			t.Errorf("a token for a peer that is dialed: %v", err)
		}
		other := south.token("x")
		if err := east.establish("west", other); err == nil || err.Error() != `cannot create peering with name: "west"; there is an existing peering expecting to be dialed` {
			t.Errorf("dialing a peer that dials: %v", err)
		}
		if err := west.establish("east", other); !errorIs(err, "there is already a peering with another cluster") {
			t.Errorf("another cluster under the name of a peer: %v", err)
		}

		// A new token may be taken while the peering is up; the stream goes over to the new secret.
		soonActive(t, west, "east")
		id := peeringID(west, "east")
		if err := west.establish("east", east.token("west")); err != nil {
			t.Fatal(err)
		}
		soonActive(t, west, "east")
		soon(t, "the new secret is in force", 10*time.Second, func() bool {
			s := east.Store.View().PeeringSecrets(peeringID(east, "west"))
			return len(s.Active) > 0 && len(s.Pending) == 0 && peering.Matches(s.Active, west.Store.View().PeeringSecrets(id).Stream)
		})
		soonActive(t, east, "west")
		if peeringID(west, "east") != id {
			t.Error("it is another peering")
		}
	})
}

// Two clusters that were given the same ID are two clusters still, and find each other's services; but neither trusts
// members of the other.
func TestClustersOfOneTrustDomain(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		network := testkit.NewNetwork(1)
		same := connectrpc.Config{Settings: map[string]any{"cluster_id": "11111111-2222-3333-4444-555555555555"}}
		east, west := newClusterOf(t, network, "e", "10.0.1.1", same), newClusterOf(t, network, "w", "10.0.2.1", same)
		if east.trustDomain() != west.trustDomain() {
			t.Fatalf("trust domains %s and %s", east.trustDomain(), west.trustDomain())
		}
		token := east.token("west")
		if err := east.establish("me", token); !errorIs(err, "cannot create a peering within the same cluster") {
			t.Errorf("an own token: %v", err)
		}
		if err := west.establish("east", token); err != nil {
			t.Fatal(err)
		}
		soonActive(t, west, "east")
		soonActive(t, east, "west")
		east.register(instanceOn("n1", "db", catalog.Passing))
		east.export("west", "db")
		soon(t, "the service is found", time.Minute, func() bool { return west.imports("east") == "db[n1]" })
		time.Sleep(time.Minute)
		if _, b := west.Store.View().PeerBundle("east"); b != nil {
			t.Errorf("trusted: %+v", b)
		}
		soonActive(t, west, "east")
	})
}

func soonActive(t *testing.T, c *cluster, peer string) {
	t.Helper()
	soon(t, peer+" is active", 10*time.Second, func() bool { return c.state(peer) == peering.Active })
}

// No answer holds a secret, and no server keeps one that it only has to recognise.
func TestSecretsStay(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		east, west, _ := pair(t)
		text := east.token("west")
		token, err := peering.DecodeToken(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := west.establish("east", text); err != nil {
			t.Fatal(err)
		}
		soonActive(t, west, "east")
		stream := west.Store.View().PeeringSecrets(peeringID(west, "east")).Stream
		if len(stream) < 32 || len(token.EstablishmentSecret) < 32 {
			t.Fatalf("secrets of %d and %d characters", len(stream), len(token.EstablishmentSecret))
		}
		for _, c := range []*cluster{east, west} {
			list, err := peering.ListCall.Call(t.Context(), c.Caller(), &peering.ListRequest{})
			if err != nil {
				t.Fatal(err)
			}
			data, err := json.Marshal(list.Peerings)
			if err != nil {
				t.Fatal(err)
			}
			var dump strings.Builder
			if err := c.Store.View().Dump(&dump); err != nil {
				t.Fatal(err)
			}
			for what, secret := range map[string]string{"establishment": token.EstablishmentSecret, "stream": stream} {
				if strings.Contains(string(data), secret) {
					t.Errorf("%s: a list shows the %s secret", c.name, what)
				}
				if c == east && strings.Contains(dump.String(), secret) {
					t.Errorf("%s: the state holds the %s secret", c.name, what)
				}
			}
		}
	})
}

func TestDeletion(t *testing.T) {
	for _, by := range []string{"east", "west"} {
		for _, reachable := range []bool{true, false} {
			name := by
			if !reachable {
				name += " alone"
			}
			t.Run(name, func(t *testing.T) {
				testkit.Bubble(t, func(t *testing.T) {
					east, west, network := established(t)
					east.register(instanceOn("n1", "db", catalog.Passing))
					west.register(instanceOn("m1", "api", catalog.Passing))
					east.export("west", "db")
					west.export("east", "api")
					soon(t, "both import", 5*time.Second, func() bool { return west.imports("east") != "" && east.imports("west") != "" })
					if !reachable {
						network.Partition([]*testkit.Host{east.host}, []*testkit.Host{west.host})
					}
					here, there, name, back := east, west, "west", "east"
					if by == "west" {
						here, there, name, back = west, east, "east", "west"
					}
					here.delete(name)
					soon(t, "it is gone here", time.Minute, func() bool { return here.state(name) == "" && here.imports(name) == "" })
					if _, b := here.Store.View().PeerBundle(name); b != nil {
						t.Error("its bundle is still there")
					}
					if !reachable {
						soon(t, "it fails there", 5*time.Minute, func() bool { return there.state(back) == peering.Failing })
						if there.imports(back) == "" {
							t.Error("what was imported is gone while the peer cannot be reached")
						}
						network.Heal()
					} else {
						soon(t, "it is terminated there", 10*time.Second, func() bool {
							return there.state(back) == peering.Terminated && there.imports(back) == ""
						})
					}
					there.delete(back)
					soon(t, "it is gone there", time.Minute, func() bool { return there.state(back) == "" })
					here.delete(name) // once more is no error

					// A new peering under the same names works.
					if err := west.establish("east", east.token("west")); err != nil {
						t.Fatal(err)
					}
					soon(t, "they import again", 10*time.Second, func() bool {
						return west.imports("east") == "db[n1]" && east.imports("west") == "api[m1]"
					})
				})
			})
		}
	}
}

func TestReconnect(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		east, west, network := established(t)
		east.register(instanceOn("n1", "db", catalog.Passing))
		east.export("west", "db")
		soon(t, "imported", 5*time.Second, func() bool { return west.imports("east") == "db[n1]" })

		// The network is cut: both notice by the silence, and what is known stays.
		network.Partition([]*testkit.Host{east.host}, []*testkit.Host{west.host})
		time.Sleep(100 * time.Second)
		if west.state("east") != peering.Active {
			t.Errorf("%s after less than two minutes", west.state("east"))
		}
		soon(t, "both sides fail", 4*time.Minute, func() bool {
			return west.state("east") == peering.Failing && east.state("west") == peering.Failing
		})
		east.register(instanceOn("n2", "db", catalog.Passing))
		time.Sleep(time.Hour)
		if got := west.imports("east"); got != "db[n1]" {
			t.Errorf("imports %s while the peer is away", got)
		}
		network.Heal()
		soon(t, "it is back", 2*time.Minute, func() bool {
			return west.state("east") == peering.Active && east.state("west") == peering.Active && west.imports("east") == "db[n1 n2]"
		})

		time.Sleep(time.Minute)
		// A server that stops is called again soon; so is one that comes to lead.
		for _, c := range []*cluster{east, west} {
			c.stop()
			east.register(instanceOn("n3", "db", catalog.Passing))
			time.Sleep(20 * time.Second)
			c.lead()
			soon(t, "the stream is up again", 40*time.Second, func() bool { return strings.Contains(west.imports("east"), "n3") })
			time.Sleep(time.Minute)
			if east.state("west") != peering.Active || west.state("east") != peering.Active {
				t.Errorf("states %s and %s", east.state("west"), west.state("east"))
			}
		}
	})
}

// Servers that do not lead say who does; where that is not known, as behind a balancer, the others are tried.
func TestFollowersRedirect(t *testing.T) {
	for _, known := range []bool{true, false} {
		testkit.Bubble(t, func(t *testing.T) {
			east, west, network := pair(t)
			leader := func() string { return "" }
			addresses := []string{"10.0.1.9:8503", east.follow(network, "10.0.1.2", func() string { return leader() })}
			if known {
				leader = func() string { return "10.0.1.1:8503" }
			} else {
				addresses = append(addresses, "10.0.1.1:8503")
			}
			if err := west.establish("east", east.token("west", addresses...)); err != nil {
				t.Fatal(err)
			}
			soonActive(t, west, "east")
			soonActive(t, east, "west")
			// The addresses that were chosen stay.
			time.Sleep(time.Minute)
			if _, p := west.Store.View().Peering("east"); !slices.Equal(p.PeerServerAddresses, addresses) {
				t.Errorf("addresses %v, want %v", p.PeerServerAddresses, addresses)
			}
		})
	}
}

// The addresses of servers that come and go reach the peer.
func TestAddressesFollowServers(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		east, west, _ := established(t)
		east.register(&catalog.RegisterRequest{Node: "e2", Address: "10.0.1.5", Service: &catalog.Service{
			Service: "consul", Port: 8300, Meta: map[string]string{"grpc_tls_port": "8503"},
		}})
		soon(t, "the address is known", 5*time.Second, func() bool {
			_, p := west.Store.View().Peering("east")
			return slices.Equal(p.PeerServerAddresses, []string{"10.0.1.1:8503", "10.0.1.5:8503"})
		})
		// With mesh gateways in front, theirs are told.
		east.register(gatewayOn("g1"))
		east.put(&entry.Mesh{Header: entry.Header{Kind: entry.KindMesh}, Peering: &entry.MeshPeering{PeerThroughMeshGateways: true}})
		soon(t, "the gateway is known", 5*time.Second, func() bool {
			_, p := west.Store.View().Peering("east")
			return slices.Equal(p.PeerServerAddresses, []string{"203.0.113.1:443"})
		})
		token, err := peering.DecodeToken(east.token("other"))
		if err != nil || !slices.Equal(token.ServerAddresses, []string{"203.0.113.1:443"}) {
			t.Errorf("token %+v, %v", token, err)
		}
		if _, err := catalog.DeregisterCall.Call(t.Context(), east.Caller(), &catalog.DeregisterRequest{Node: "g1"}); err != nil {
			t.Fatal(err)
		}
		if _, err := peering.TokenCall.Call(t.Context(), east.Caller(), &peering.TokenRequest{Name: "third"}); err == nil || err.Error() != peering.ErrNoGateways.Error() {
			t.Errorf("a token without gateways: %v", err)
		}
	})
}

// New roots reach peers while calls go on, and the stream survives that its server's certificate is of a new root.
func TestRotation(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		east, west, _ := established(t)
		soon(t, "the bundle is there", 5*time.Second, func() bool { _, b := west.Store.View().PeerBundle("east"); return b != nil })
		for range 2 {
			config := ca.Configuration{Provider: "consul", ForceWithoutCrossSigning: true, Config: map[string]any{"PrivateKeyType": "ec", "PrivateKeyBits": 384}}
			_, roots := east.Store.View().CARoots()
			if len(roots)%2 == 0 {
				config.Config["PrivateKeyBits"] = 256
			}
			if _, err := ca.SetConfigCall.Call(t.Context(), east.Caller(), &ca.SetConfigRequest{Config: config}); err != nil {
				t.Fatal(err)
			}
			_, after := east.Store.View().CARoots()
			if len(after) != len(roots)+1 {
				t.Fatalf("%d roots after %d", len(after), len(roots))
			}
			soon(t, "the peer knows the new root", 5*time.Second, func() bool {
				_, b := west.Store.View().PeerBundle("east")
				_, p := west.Store.View().Peering("east")
				return len(b.RootPEMs) == len(after) && len(p.PeerCAPems) == len(after)
			})
			east.renew()
			east.stop()
			east.lead()
			soon(t, "the stream is up again", time.Minute, func() bool {
				s := west.engine.Status(peeringID(west, "east"))
				return time.Since(s.LastHeartbeat) < time.Second
			})
		}
	})
}
