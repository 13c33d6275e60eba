package agent

import (
	"fmt"
	"testing"

	mdns "github.com/miekg/dns"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/client/dns"
)

// Who asks a server's gRPC port about names is told what the token allows that came along, not what the agent's own
// token for DNS would.
func TestDNSOverGRPCGoesByTheCallersToken(t *testing.T) {
	g := runServer(t, fmt.Sprintf(`acl { tokens { dns = %q } }`, managementSecret))
	g.must("PUT", "/v1/catalog/register", `{"Node": "n1", "Address": "10.1.1.1", "Service": {"Service": "web", "Port": 80}}`)
	conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", g.current().Ports.GRPC), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(token string, protocol uint64) (*mdns.Msg, error) {
		msg, err := new(mdns.Msg).SetQuestion("web.service.consul.", mdns.TypeA).Pack()
		if err != nil {
			t.Fatal(err)
		}
		// Both messages hold bytes in field 1, as a BytesValue does; the protocol is field 2.
		req, reply := wrapperspb.Bytes(msg), &wrapperspb.BytesValue{}
		req.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), protocol))
		ctx := t.Context()
		if token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "x-consul-token", token)
		}
		if err := conn.Invoke(ctx, "/"+dns.GRPCService+"/Query", req, reply); err != nil {
			return nil, err
		}
		resp := new(mdns.Msg)
		return resp, resp.Unpack(reply.Value)
	}
	reader := g.token(`service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }`)
	for name, tt := range map[string]struct {
		token          string
		rcode, answers int
	}{
		"none":    {"", mdns.RcodeNameError, 0},
		"reader":  {reader, mdns.RcodeSuccess, 1},
		"other":   {g.token(`service "db" { policy = "read" }`), mdns.RcodeNameError, 0},
		"unknown": {"7d1b6b4e-0b1f-4a3e-9a3e-111111111111", mdns.RcodeServerFailure, 0},
	} {
		for _, protocol := range []uint64{1, 2} {
			got, err := ask(tt.token, protocol)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if got.Rcode != tt.rcode || len(got.Answer) != tt.answers {
				t.Errorf("%s, protocol %d: %v", name, protocol, got)
			}
		}
	}
	if _, err := ask(reader, 0); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without a protocol: %v", err)
	}
}
