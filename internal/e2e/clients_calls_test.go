//go:build unix

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestCallsOfOtherClients makes the calls on which clients rest that cannot be had here, and looks for what they look for.
func TestCallsOfOtherClients(t *testing.T) {
	binary(t)
	a := single(t, nil)
	long := strings.Repeat("A", 4*((512<<10)/3+3)) // base64 of more than 512 KiB
	ops := func(n int) string {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprintf(`{"KV": {"Verb": "set", "Key": "vault/%d", "Value": "eA=="}}`, i)
		}
		return "[" + strings.Join(list, ",") + "]"
	}
	nomad := `{"ID": "_nomad-task-1-group-api-web-http", "Name": "web", "Tags": ["a"], "Address": "127.0.0.1", "Port": 8080, "Meta": {"external-source": "nomad"},
		"Checks": [{"CheckID": "_nomad-check-1", "Name": "alive", "TTL": "30s", "Status": "passing"}],
		"Connect": {"SidecarService": {"Tags": ["a"], "Port": 8081, "Proxy": {"Config": {"bind_address": "0.0.0.0", "bind_port": 8081, "envoy_stats_tags": ["nomad.group=api"]},
			"Upstreams": [{"DestinationName": "db", "LocalBindPort": 9000, "Config": {"connect_timeout_ms": 9999}}]},
			"Checks": [{"Name": "Connect Sidecar Aliasing web", "AliasService": "_nomad-task-1-group-api-web-http"}, {"Name": "Connect Sidecar Listening", "TCP": "127.0.0.1:8081", "Interval": "10s"}]}}}`
	tests := []struct {
		client, method, path, body string
		status                     int
		has                        string // a part of the answer, of which JSON is without blanks
	}{
		{"Nomad", "GET", "/v1/agent/self", "", 200, `"Server":true`},
		{"Nomad", "GET", "/v1/agent/self", "", 200, `"ConnectEnabled":true`},
		{"Nomad", "GET", "/v1/agent/self", "", 200, fmt.Sprintf(`"GRPCPort":%d`, a.ports["grpc"])},
		{"Nomad", "GET", "/v1/agent/self", "", 200, `"SupportedProxies":{"envoy":["1.`},
		{"Nomad", "PUT", "/v1/agent/service/register?replace-existing-checks=true", nomad, 200, ""},
		{"Nomad", "PUT", "/v1/agent/check/update/_nomad-check-1", `{"Status": "passing", "Output": "fine"}`, 200, ""},
		{"Nomad", "GET", "/v1/agent/services", "", 200, `"_nomad-task-1-group-api-web-http-sidecar-proxy":`},
		{"Nomad", "GET", "/v1/agent/services", "", 200, `"DestinationType":"service","DestinationName":"db"`},
		{"Nomad", "GET", "/v1/agent/services", "", 200, `"envoy_stats_tags":["nomad.group=api"]`},
		{"Nomad", "GET", "/v1/operator/license", "", 404, "Invalid URL path"},
		{"Nomad", "GET", "/v1/catalog/service/nomad?tag=rpc&stale&near=_agent&wait=2s", "", 200, `[]`},
		{"Traefik", "GET", "/v1/health/state/any?stale", "", 200, `"CheckID":"serfHealth"`},
		{"Traefik", "GET", "/v1/health/connect/web?cached", "", 200, `"_nomad-task-1-group-api-web-http-sidecar-proxy"`},
		{"Traefik", "GET", "/v1/agent/connect/ca/leaf/traefik", "", 200, `"PrivateKeyPEM":`},
		{"Traefik", "GET", "/v1/agent/connect/ca/roots", "", 200, `"TrustDomain":`},
		{"Fabio", "GET", "/v1/health/state/any?index=1&wait=1s", "", 200, `"ServiceID":"_nomad-task-1-group-api-web-http"`},
		{"consul-template", "GET", "/v1/catalog/datacenters", "", 200, `["dc1"]`},
		{"consul-template", "GET", "/v1/kv/absent/?recurse=&stale=&wait=1s", "", 404, ""},
		{"consul-template", "GET", "/v1/peerings", "", 200, `[]`},
		{"consul-template", "GET", "/v1/catalog/node/one", "", 200, `"Node":{"ID":`},
		{"consul-esm", "PUT", "/v1/txn", `[{"Node": {"Verb": "set", "Node": {"Node": "ext", "Address": "127.0.0.7", "Meta": {"external-node": "true", "external-probe": "true"}}}},
			{"Check": {"Verb": "set", "Check": {"Node": "ext", "CheckID": "ping", "Name": "ping", "Status": "passing"}}}]`, 200, `"external-probe":"true"`},
		{"consul-esm", "GET", "/v1/catalog/nodes?node-meta=external-node:true", "", 200, `"Node":"ext"`},
		{"consul-esm", "GET", "/v1/health/node/ext", "", 200, `"CheckID":"ping"`},
		{"consul-esm", "PUT", "/v1/coordinate/update", `{"Node": "ext", "Coord": {"Vec": [0,0,0,0,0,0,0,0], "Error": 1.5, "Adjustment": 0, "Height": 0.00001}}`, 200, ""},
		{"Vault", "PUT", "/v1/txn", ops(128), 200, `"Key":"vault/127"`},
		{"Vault", "PUT", "/v1/txn", ops(129), 413, "Transaction contains too many operations (129 > 128)"},
		{"Vault", "PUT", "/v1/txn", `[{"KV": {"Verb": "set", "Key": "vault/large", "Value": "` + long + `"}}]`, 413, ""},
		{"Vault", "GET", "/v1/kv/vault/?keys&separator=/", "", 200, `"vault/0"`},
		{"Vault", "PUT", "/v1/kv/large", strings.Repeat("x", 512<<10+1), 413, "Request body(524289 bytes) too large, max size: 524288 bytes"},
		{"Patroni", "PUT", "/v1/session/create", `{"name": "pg", "Behavior": "delete", "LockDelay": "0.001s", "ttl": "15.0s"}`, 200, `"ID":`},
		{"Patroni", "PUT", "/v1/session/create", `{"ttl": "5.0s"}`, 500, "Invalid Session TTL"},
		{"Patroni", "PUT", "/v1/kv/pg/leader?acquire=00000000-0000-0000-0000-000000000000", "pg1", 500, "invalid session"},
		{"Spring", "GET", "/v1/kv/config/app/?recurse", "", 404, ""},
		{"Spring", "PUT", "/v1/agent/check/pass/_nomad-check-1", "", 200, ""},
		{"Spring", "GET", "/v1/event/list?name=none", "", 200, `[]`},
		{"Terraform", "GET", "/v1/connect/ca/configuration", "", 200, `"Provider":"consul"`},
		{"Terraform", "PUT", "/v1/config", `{"Kind": "service-resolver", "Name": "web", "ConnectTimeout": "5s"}`, 200, "true"},
		{"Terraform", "GET", "/v1/config/service-resolver/web", "", 200, `"ConnectTimeout":"5s"`},
		{"python-consul", "PUT", "/v1/acl/create", `{"Name": "x"}`, 404, "Invalid URL path"},
		{"rings of Mimir", "PUT", "/v1/kv/collectors/ring?cas=0", "x", 200, "true"},
		{"rings of Mimir", "PUT", "/v1/kv/collectors/ring?cas=0", "y", 200, "false"},
		{"registrator", "PUT", "/v1/agent/service/deregister/_nomad-task-1-group-api-web-http-sidecar-proxy", "", 200, ""},
		{"registrator", "PUT", "/v1/agent/service/deregister/_nomad-task-1-group-api-web-http", "", 200, ""},
	}
	for _, tt := range tests {
		var code int
		var answer string
		// What an agent registers is in the catalog a moment later.
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			var err error
			if code, answer, err = a.call(tt.method, tt.path, tt.body); err != nil {
				t.Fatalf("%s: %s %s: %v", tt.client, tt.method, tt.path, err)
			}
			answer = compact(answer)
			if code == tt.status && strings.Contains(answer, tt.has) || tt.method != "GET" || time.Now().After(end) {
				break
			}
		}
		if code != tt.status || !strings.Contains(answer, tt.has) {
			t.Errorf("%s: %s %s: %d %.2000s\nwant %d with %s", tt.client, tt.method, tt.path, code, answer, tt.status, tt.has)
		}
	}
}

// compact is JSON without blanks.
func compact(text string) string {
	var b bytes.Buffer
	if json.Compact(&b, []byte(text)) != nil {
		return text
	}
	return b.String()
}
