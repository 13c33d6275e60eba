package runcmd

import (
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// planOf makes the plan of flags. Ports that are free are 40001, 40002 …
func planOf(t *testing.T, args ...string) (*plan, error) {
	t.Helper()
	f := flag.NewFlagSet("run", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	d := new(description)
	d.flags(f)
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	port := 40000
	return d.plan(func() (int, error) { port++; return port, nil })
}

func TestPlan(t *testing.T) {
	p, err := planOf(t, "-name", "web", "-id", "web-1", "-port", "8080", "-tag", "a", "-meta", "k=v", "-check", "tcp", "-check", "/health", "-check",
		"grpc://127.0.0.1:9000/svc", "-upstream", "db:9191", "-upstream", "cache", "-upstream", "files:10.0.0.1:7")
	if err != nil {
		t.Fatal(err)
	}
	guard(p.service, "r1", time.Minute)
	guard(p.sidecar, "r1", time.Minute)
	if err := p.check(); err != nil {
		t.Fatal(err)
	}
	type check struct {
		ID, HTTP, TCP, GRPC, Alias string
		TTL, Interval, After       time.Duration
	}
	checks := func(i int) (out []check) {
		svc := p.service
		if i == 1 {
			svc = p.sidecar
		}
		for _, c := range svc.NestedChecks() {
			out = append(out, check{c.ID, c.HTTP, c.TCP, c.GRPC, c.AliasService, c.TTL, c.Interval, c.DeregisterCriticalServiceAfter})
		}
		return out
	}
	if diff := cmp.Diff([]check{
		{ID: "service:web-1:1", TCP: "127.0.0.1:8080", Interval: 5 * time.Second},
		{ID: "service:web-1:2", HTTP: "http://127.0.0.1:8080/health", Interval: 5 * time.Second},
		{ID: "service:web-1:3", GRPC: "127.0.0.1:9000/svc", Interval: 5 * time.Second},
		{ID: "run:web-1", TTL: aliveFor, After: time.Minute},
	}, checks(0)); diff != "" {
		t.Errorf("checks of the service (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]check{
		{ID: "service:web-1-sidecar-proxy:1", Alias: "web-1"},
		{ID: "run:web-1-sidecar-proxy", TTL: aliveFor, After: time.Minute},
	}, checks(1)); diff != "" {
		t.Errorf("checks of the sidecar (-want +got):\n%s", diff)
	}
	if p.service.Connect != nil {
		t.Error("the agent is told of the sidecar, and may run it")
	}
	if diff := cmp.Diff(map[string]string{"k": "v", runMeta: "r1"}, p.service.Meta); diff != "" {
		t.Errorf("metadata (-want +got):\n%s", diff)
	}
	if s := p.sidecar.Proxy; s.LocalServicePort != 8080 || s.DestinationServiceID != "web-1" || p.sidecar.Port != 40002 {
		t.Errorf("sidecar on port %d for %s at port %d", p.sidecar.Port, s.DestinationServiceID, s.LocalServicePort)
	}
	if diff := cmp.Diff([]string{
		"SARN_SERVICE_NAME=web", "SARN_SERVICE_ID=web-1", "SARN_SERVICE_PORT=8080",
		"SARN_SIDECAR_ID=web-1-sidecar-proxy", "SARN_SIDECAR_PORT=40002",
		"SARN_UPSTREAM_DB=127.0.0.1:9191", "SARN_UPSTREAM_DB_HOST=127.0.0.1", "SARN_UPSTREAM_DB_PORT=9191",
		"SARN_UPSTREAM_CACHE=127.0.0.1:40001", "SARN_UPSTREAM_CACHE_HOST=127.0.0.1", "SARN_UPSTREAM_CACHE_PORT=40001",
		"SARN_UPSTREAM_FILES=10.0.0.1:7", "SARN_UPSTREAM_FILES_HOST=10.0.0.1", "SARN_UPSTREAM_FILES_PORT=7",
	}, p.environment()); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

// A file may say everything that an agent's configuration can.
func TestPlanOfFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "svc.hcl")
	text := `service { name = "web" port = 80
	  connect { sidecar_service { port = 20000 proxy { upstreams { destination_name = "a-b.c" local_bind_socket_path = "/s" } } } } }`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := planOf(t, "-file", file, "-upstream", "db:9191", "-proxy-port", "21000")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{
		"SARN_SERVICE_NAME=web", "SARN_SERVICE_ID=web", "SARN_SERVICE_PORT=80",
		"SARN_SIDECAR_ID=web-sidecar-proxy", "SARN_SIDECAR_PORT=21000", "SARN_UPSTREAM_A_B_C_SOCKET=/s",
		"SARN_UPSTREAM_DB=127.0.0.1:9191", "SARN_UPSTREAM_DB_HOST=127.0.0.1", "SARN_UPSTREAM_DB_PORT=9191",
	}, p.environment()); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if p, err = planOf(t, "-file", file, "-no-sidecar"); err != nil || p.sidecar != nil || p.service.Sidecar() != nil {
		t.Errorf("with -no-sidecar: %+v, %v", p, err)
	}
}

func TestPlanErrors(t *testing.T) {
	tests := []struct {
		name string
		args []string
		want string
	}{
		{"no service", nil, "The service needs a -name or a -file"},
		{"file and flags", []string{"-file", "x", "-tag", "a"}, "-file says what the service is"},
		{"port and socket", []string{"-name", "a", "-port", "1", "-socket", "/s"}, "Only one of -port and -socket"},
		{"port out of range", []string{"-name", "a", "-port", "65536"}, "between 1 and 65535"},
		{"upstream without sidecar", []string{"-name", "a", "-no-sidecar", "-upstream", "b:1"}, "-upstream needs the sidecar"},
		{"upstream without name", []string{"-name", "a", "-upstream", ":1"}, "Upstream value should be name:addr"},
		{"check of no port", []string{"-name", "a", "-check", "tcp"}, "there is no -port"},
		{"check of no kind", []string{"-name", "a", "-check", "ftp://x:1"}, "knows no ftp://"},
		{"check of nothing", []string{"-name", "a", "-check", "maybe"}, "should be a URL"},
		{"check without port", []string{"-name", "a", "-check", "tcp://host"}, "missing port"},
		{"interval", []string{"-name", "a", "-check-interval", "1ms"}, "at least 1s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := planOf(t, tt.args...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
