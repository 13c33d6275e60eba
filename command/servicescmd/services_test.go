package servicescmd

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/catalog/definition"
)

// What register sends must mean to the agent what the file meant to the agent's own loader.
func TestDefinitionsSurviveTheRequest(t *testing.T) {
	const file = `
service {
  name = "web"
  id = "web1"
  port = 8080
  tags = ["v1", "v2"]
  enable_tag_override = true
  meta { a = "b" }
  weights { passing = 3 warning = 1 }
  tagged_addresses { wan { address = "1.2.3.4" port = 80 } }
  locality { region = "r" zone = "z" }
  check { id = "one" name = "alive" ttl = "30s" status = "passing" }
  check {
    name = "http"
    http = "http://127.0.0.1:1/"
    method = "POST"
    header { X-A = ["1", "2"] }
    interval = "10s"
    timeout = "1500ms"
    tls_skip_verify = true
    deregister_critical_service_after = "10m"
    success_before_passing = 2
    failures_before_critical = 3
  }
  checks = [{ args = ["true"], interval = "5s" }, { tcp = "127.0.0.1:1", interval = "5s" }, { alias_service = "db" }, { h2ping = "h:1", h2ping_use_tls = false, interval = "5s", output_max_size = 10 }]
  connect {
    sidecar_service {
      port = 21000
      proxy {
        config { protocol = "http" nested { deep = [1, "a", true] } }
        mode = "transparent"
        transparent_proxy { outbound_listener_port = 15001 }
        expose { checks = true paths = [{ path = "/m" local_path_port = 1 listener_port = 2 protocol = "http" }] }
        upstreams = [{ destination_name = "db" local_bind_port = 9191 config { a = 1 } mesh_gateway { mode = "local" } }]
      }
    }
  }
}
service {
  kind = "connect-proxy"
  name = "p"
  port = 1
  proxy { destination_service_name = "web" local_service_port = 80 upstreams { destination_name = "x" local_bind_socket_path = "/s" } }
}`
	path := filepath.Join(t.TempDir(), "s.hcl")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	blocks, err := FromFiles([]string{path})
	if err != nil {
		t.Fatal(err)
	}
	if len(blocks) != 2 {
		t.Fatalf("read %d services, want 2", len(blocks))
	}
	for _, b := range blocks {
		req, err := Request(b.Service)
		if err != nil {
			t.Fatal(err)
		}
		body, err := json.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := definition.DecodeService(bytes.NewReader(body))
		if err != nil {
			t.Fatalf("decode %s: %v", body, err)
		}
		if diff := cmp.Diff(instanceOf(b.Service), instanceOf(got)); diff != "" {
			t.Errorf("%s (-file +request):\n%s", b.Name, diff)
		}
	}
}

// instanceOf is what a definition comes to, in comparable form.
func instanceOf(s *definition.Service) []any {
	return []any{s.Instance(), s.NestedChecks(), s.Sidecar()}
}

func TestFlagsDescribeAService(t *testing.T) {
	tests := []struct {
		name string
		args []string
		err  string
	}{
		{"plain", []string{"-name=web", "-address=10.0.0.1", "-port=80"}, ""},
		{"host name", []string{"-name=web", "-address=web.example.com"}, ""},
		{"IPv6", []string{"-name=web", "-address=::1"}, ""},
		{"port in address", []string{"-name=x", "-address=10.0.0.1:90"}, "Invalid Service address when using CLI flags. Use -port flag instead: address should not contain port"},
		{"malformed IP", []string{"-name=x", "-address=10.0.0.900"}, `Invalid Service address: "10.0.0.900" is not an IP address`},
		{"tagged address without port", []string{"-name=x", "-tagged-address", "wan=x"}, "Invalid Tagged address: address x: missing port in address"},
		{"tagged address with a bad port", []string{"-name=x", "-tagged-address", "wan=x:99999"}, `Invalid Tagged address: strconv.ParseUint: parsing "99999": value out of range`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fs := flag.NewFlagSet("register", flag.ContinueOnError)
			d := described{}.flags(fs)
			if err := fs.Parse(tt.args); err != nil {
				t.Fatal(err)
			}
			svc, err := d.service()
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tt.err {
				t.Fatalf("error %q, want %q", got, tt.err)
			}
			if err == nil && svc.Name != "web" {
				t.Errorf("name %q, want web", svc.Name)
			}
		})
	}
}

func TestMergeAddsConsumersOnce(t *testing.T) {
	conf := &api.ExportedServicesConfigEntry{Name: "default"}
	merge(conf, "web", []string{"a", "b"}, nil)
	merge(conf, "web", []string{"b", "c"}, []string{"p"})
	merge(conf, "api", []string{"a"}, nil)
	want := []api.ExportedService{
		{Name: "web", Consumers: []api.ServiceConsumer{{Peer: "a"}, {Peer: "b"}, {Peer: "c"}, {Partition: "p"}}},
		{Name: "api", Consumers: []api.ServiceConsumer{{Peer: "a"}}},
	}
	if diff := cmp.Diff(want, conf.Services); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
}
