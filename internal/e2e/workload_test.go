package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// A program that knows SPIFFE alone, with the client that SPIFFE gives, speaks mutual TLS to a sidecar, is told apart by
// intentions, and serves one who comes through a sidecar.
func TestWorkloadsUseTheOfficialSPIFFEClient(t *testing.T) {
	binary(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "sarn-w")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	ports := freePorts(3)
	m := &mesh{TB: t, by: "sarn", ports: map[string]int{"native": ports[1]}, sidecars: map[string]*process{}}
	native, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.agent = newAgent(t, "s1", map[string]any{
		"server": true, "bootstrap": true, "default_intention_policy": "deny",
		"workload_api": map[string]any{"socket": socket, "rule": []any{
			map[string]any{"service": "native", "uid": os.Getuid(), "path": self},
			map[string]any{"service": "other", "uid": os.Getuid() + 1},
		}},
		"services": []any{
			map[string]any{"name": "db", "port": teller(t, "db"), "connect": map[string]any{"sidecar_service": map[string]any{"port": ports[0]}}},
			map[string]any{"name": "shop", "port": 1, "connect": map[string]any{"sidecar_service": map[string]any{"port": ports[2], "proxy": map[string]any{
				"upstreams": []any{map[string]any{"destination_name": "native", "local_bind_port": ports[1]}}}}}},
			map[string]any{"name": "native", "port": native.Addr().(*net.TCPAddr).Port, "connect": map[string]any{"native": true}},
		},
	})
	m.run(t)
	eventually(t, 20*time.Second, "the services are registered", func() bool {
		known, _ := m.get("/v1/catalog/services").(map[string]any)
		return known["shop-sidecar-proxy"] != nil && known["db-sidecar-proxy"] != nil && known["native"] != nil
	})
	m.write(
		`{"Kind": "service-defaults", "Name": "native", "Protocol": "tcp"}`,
		`{"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "native", "Action": "allow"}]}`,
		`{"Kind": "service-intentions", "Name": "native", "Sources": [{"Name": "shop", "Action": "allow"}]}`)
	for _, id := range []string{"db", "shop"} {
		eventually(t, 20*time.Second, id+" is registered", func() bool {
			_, _, err := m.call("GET", "/v1/agent/service/"+id+"-sidecar-proxy", "")
			return err == nil
		})
		m.sidecar(t, id)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+socket)))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	own, err := source.GetX509SVID()
	if err != nil || !strings.HasSuffix(own.ID.String(), "/svc/native") {
		t.Fatalf("%v, %v", own, err)
	}
	id := func(service string) spiffeid.ID {
		return spiffeid.RequireFromString(strings.TrimSuffix(own.ID.String(), "native") + service)
	}

	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id("db"))), DisableKeepAlives: true}}
	ask := func() (string, error) {
		r, err := client.Get(fmt.Sprintf("https://127.0.0.1:%d/x", ports[0]))
		if err != nil {
			return "", err
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		return string(b), err
	}
	eventually(t, 20*time.Second, "the sidecar answers", func() bool { body, err := ask(); return err == nil && strings.HasPrefix(body, "db") })
	m.write(`{"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "native", "Action": "deny"}]}`)
	eventually(t, 30*time.Second, "the intention refuses", func() bool { _, err := ask(); return err != nil })

	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "native for %s", r.TLS.PeerCertificates[0].URIs[0])
	}), TLSConfig: tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(id("shop")))}
	go server.ServeTLS(native, "", "")
	defer server.Close()
	eventually(t, 30*time.Second, "a sidecar reaches the program", func() bool { return m.ask("native", "GET", "/").body == "native for "+id("shop").String() })

	token, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "bank"}, workloadapi.WithAddr("unix://"+socket))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := workloadapi.ValidateJWTSVID(ctx, token.Marshal(), "bank", workloadapi.WithAddr("unix://"+socket)); err != nil || got.ID != own.ID {
		t.Errorf("%v, %v", got, err)
	}
}
