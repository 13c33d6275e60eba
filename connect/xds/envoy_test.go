package xds_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/sarnmesh/sarn/connect/xds"
)

// TestEnvoyAccepts has real Envoy check what the golden cases come to.
func TestEnvoyAccepts(t *testing.T) {
	tools := os.Getenv("SARN_TOOLS")
	if tools == "" {
		tools = "../../.tools"
	}
	envoy, err := filepath.Abs(filepath.Join(tools, "envoy"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(envoy); err != nil {
		t.Skipf("no Envoy: run `make tools`: %v", err)
	}
	if testing.Short() {
		t.Skip("starts a process for each case")
	}
	dir := t.TempDir()
	certificate, key := selfSigned(t)
	for _, name := range []string{"ca.pem", "cert.pem"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(certificate), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "key.pem"), []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	// The fixtures are no certificates; Envoy wants some.
	fixture := regexp.MustCompile(`"(certificate_chain|trusted_ca|trust_bundle|private_key)":\{"inline_string":"(?:[^"\\]|\\.)*"\}`)
	real := func(field string) string {
		if strings.Contains(field, "-----BEGIN") {
			return field
		}
		name, text := "trusted_ca", certificate
		switch {
		case strings.HasPrefix(field, `"certificate_chain`):
			name = "certificate_chain"
		case strings.HasPrefix(field, `"trust_bundle`):
			name = "trust_bundle"
		case strings.HasPrefix(field, `"private_key`):
			name, text = "private_key", key
		}
		b, err := json.Marshal(map[string]any{name: map[string]any{"inline_string": text}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b[1 : len(b)-1])
	}
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".txtar")
		t.Run(name, func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			files := map[string][]byte{}
			for _, f := range archive.Files {
				files[f.Name] = f.Data
			}
			flavour := xds.Envoy
			if _, own := files["in/own"]; own {
				flavour = xds.Own
			}
			r, err := xds.Compile(snapshotOf(t, files), flavour)
			if err != nil {
				t.Skip("a case without resources")
			}
			text := fixture.ReplaceAllStringFunc(string(bootstrapOf(t, r)), real)
			text = strings.ReplaceAll(text, `"/etc/`, `"`+dir+`/`)
			file := filepath.Join(dir, name+".json")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(envoy, "--mode", "validate", "-c", file, "-l", "error").CombinedOutput(); err != nil {
				if strings.Contains(string(out), "Unable to create Wasm plugin") {
					t.Skip("all but the program of a plug-in was accepted")
				}
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// bootstrapOf puts resources into a bootstrap, routes into the connection managers that ask for them.
func bootstrapOf(t *testing.T, r *xds.Resources) []byte {
	t.Helper()
	objects := func(typ xds.Type) map[string]any {
		out := map[string]any{}
		for name, x := range r.Of(typ) {
			var v any
			if err := json.Unmarshal([]byte(render(t, x)), &v); err != nil {
				t.Fatal(err)
			}
			out[name] = v
		}
		return out
	}
	routes := objects(xds.Route)
	var inline func(v any)
	inline = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, x := range v {
				inline(x)
			}
		case map[string]any:
			if rds, ok := v["rds"].(map[string]any); ok {
				if route, ok := routes[rds["route_config_name"].(string)]; ok {
					delete(v, "rds")
					v["route_config"] = route
				}
			}
			for _, x := range v {
				inline(x)
			}
		}
	}
	local := func(name string) any {
		return map[string]any{"name": name, "type": "STATIC", "load_assignment": map[string]any{"cluster_name": name}}
	}
	clusters, listeners := []any{local("local_agent"), local("sds")}, []any{}
	for _, c := range objects(xds.Cluster) {
		clusters = append(clusters, c)
	}
	for _, l := range objects(xds.Listener) {
		inline(l)
		listeners = append(listeners, l)
	}
	data, err := json.Marshal(map[string]any{
		"node":             map[string]any{"id": "p", "cluster": "p"},
		"static_resources": map[string]any{"clusters": clusters, "listeners": listeners},
		"dynamic_resources": map[string]any{"ads_config": map[string]any{
			"api_type": "DELTA_GRPC", "transport_api_version": "V3",
			"grpc_services": map[string]any{"envoy_grpc": map[string]any{"cluster_name": "local_agent"}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func selfSigned(t *testing.T) (certificate, key string) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gw.example.com"}, DNSNames: []string{"gw.example.com"},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, secret.Public(), secret)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
}
