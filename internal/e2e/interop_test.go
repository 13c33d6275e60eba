//go:build unix

package e2e

import (
	"context"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

// grpcCases are the cases that gRPC's interoperation client and server share: not those that want credentials from
// Google, nor pick_first_unary, whose ID the server does not send.
var grpcCases = []string{
	"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream", "timeout_on_sleeping_server",
	"cancel_after_begin", "cancel_after_first_response", "status_code_and_message", "special_status_message", "custom_metadata",
	"unimplemented_method", "unimplemented_service", "rpc_soak", "channel_soak", "orca_per_rpc", "orca_oob",
}

// TestGRPCInteroperation runs the official client and server with proxies between them.
func TestGRPCInteroperation(t *testing.T) {
	binary(t)
	client, server := tool(t, "grpc-client"), tool(t, "grpc-server")
	for way, through := range httpWays {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			to := freePorts(1)[0]
			start(t, "server", nil, server, "-port", strconv.Itoa(to))
			eventually(t, 20*time.Second, "the server listens", func() bool {
				c, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(to))
				if err == nil {
					c.Close()
				}
				return err == nil
			})
			port := through(t, to, httpListener{}, speaksH2)
			for _, name := range grpcCases {
				t.Run(name, func(t *testing.T) {
					policy := "pick_first"
					if strings.HasPrefix(name, "orca") {
						policy = "test_backend_metrics_load_balancer"
					}
					ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
					defer cancel()
					out, err := exec.CommandContext(ctx, client, "-server_host", "127.0.0.1", "-server_port", strconv.Itoa(port), "-test_case", name,
						"-soak_per_iteration_max_acceptable_latency_ms", "10000", // what is soaked is not the machine
						"-service_config_json", `{"loadBalancingConfig": [{"`+policy+`": {}}]}`).CombinedOutput()
					if err != nil {
						t.Errorf("%v\n%s", err, out)
					}
				})
			}
		})
	}
}
