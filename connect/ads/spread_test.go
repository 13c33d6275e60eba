package ads_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sarnmesh/sarn/connect/ads"
	"github.com/sarnmesh/sarn/connect/xds"
)

// as asks for clusters as a proxy of a node, with a token in the node's metadata unless it is empty.
func (c *client) as(agent, node, token string) {
	metadata, err := structpb.NewStruct(map[string]any{"node_name": node, "x-consul-token": token})
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(&discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: "web-sidecar-proxy", UserAgentName: agent, Metadata: metadata}, TypeUrl: types['C'].URL(),
	})
	synctest.Wait()
}

func TestStreamsSpreadOverServers(t *testing.T) {
	run(t, ads.Config{}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:a=1"), nil)
		ctx, cancel := context.WithCancel(t.Context())
		loads, done := make(chan ads.Load), make(chan error)
		go func() { done <- h.server.Spread(ctx, loads) }()
		open := func() int { synctest.Wait(); return len(h.server.Streams()) }

		var clients []*client
		for range 12 {
			clients = append(clients, h.delta(t, ""))
			clients[len(clients)-1].as("envoy", "elsewhere", "")
		}
		if n := open(); n != 12 {
			t.Fatalf("without a load %d streams are open, want 12", n)
		}
		loads <- ads.Load{Proxies: 30, Servers: 3} // ten, and one more
		if n := open(); n != 12 {
			t.Errorf("at once %d streams are open, want 12", n)
		}
		time.Sleep(1100 * time.Millisecond)
		if n := open(); n != 11 {
			t.Errorf("after a second %d streams are open, want 11", n)
		}
		time.Sleep(5 * time.Second)
		if n := open(); n != 11 {
			t.Errorf("in the end %d streams are open, want 11", n)
		}
		ended := 0
		for _, c := range clients {
			if c.ended() {
				c.wantEnd(codes.ResourceExhausted, "this server has too many xDS streams open, please try another")
				ended++
			}
		}
		if ended != 1 {
			t.Errorf("%d streams ended, want 1", ended)
		}

		late := h.delta(t, "")
		late.as("envoy", "elsewhere", "")
		late.wantEnd(codes.ResourceExhausted, "this server has too many xDS streams open, please try another")
		local := h.delta(t, "")
		local.as("envoy", "", "")
		if local.ended() {
			t.Error("a proxy of this agent was refused")
		}

		loads <- ads.Load{Proxies: 2900, Servers: 2900} // one, but two at most; ten a second
		time.Sleep(1050 * time.Millisecond)
		if n := open(); n != 3 {
			t.Errorf("after a second more %d streams are open, want two of others and that of this agent", n)
		}
		loads <- ads.Load{Proxies: 2900}
		late = h.delta(t, "")
		late.as("envoy", "elsewhere", "")
		if late.ended() {
			t.Error("a stream was refused though there is no limit")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, c := range append(clients, late, local) {
			c.cancel()
		}
	})
}

func TestGRPCClients(t *testing.T) {
	known := &tokens{}
	for _, tt := range []struct {
		agent string
		want  xds.Flavour
	}{{"gRPC Go", xds.Proxyless}, {"gRPC Node Pure JS", xds.Proxyless}, {"envoy", xds.Envoy}, {"sarn", xds.Own}} {
		t.Run(tt.agent, func(t *testing.T) {
			run(t, ads.Config{Authorize: known.authorize}, func(t *testing.T, h *harness) {
				h.set(world(t, "c:a=1"), nil)
				c := h.delta(t, "")
				c.as(tt.agent, "", "")
				if n := h.nodes[0]; n.Flavour != tt.want || n.Token != "" {
					t.Errorf("followed as %+v, want flavour %d", n, tt.want)
				}
				c.cancel()
			})
		})
	}
	run(t, ads.Config{Authorize: known.authorize}, func(t *testing.T, h *harness) {
		h.set(world(t, "c:a=1"), nil)
		c := h.delta(t, "")
		c.as("gRPC Go", "", "good")
		c.want("with the token of the node", "C1 +a")
		if n := h.nodes[0]; n.Token != "good" {
			t.Errorf("followed with token %q, want the node's", n.Token)
		}
		c.cancel()
		c = h.delta(t, "good")
		c.as("gRPC Go", "", "other")
		c.want("with that of the stream, which comes first", "C1 +a")
		c.cancel()
		c = h.delta(t, "")
		c.as("gRPC Go", "", "unknown")
		c.wantEnd(codes.Unauthenticated, "unauthenticated")
		c = h.delta(t, "")
		c.as("gRPC Go", "", "other")
		c.wantEnd(codes.PermissionDenied, "lacks permission")
	})
}
