//go:build unix

package e2e

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/server/caprovider/awsauth"
	"github.com/sarnmesh/sarn/server/caprovider/awstest"
	"github.com/sarnmesh/sarn/server/caprovider/vaulttest"
)

// A server goes from one authority to the next: the built-in one, Vault, a program, AWS. Leaves of each are verified by
// the roots that everybody has, restarts go on with what there is, the program ends with its server, and nothing that gives
// access to a key is in an answer or in the log.
func TestAuthoritiesOutsideTheServers(t *testing.T) {
	program := filepath.Join(t.TempDir(), "fileca")
	binary(t)
	if out, err := exec.Command("go", "build", "-o", program, "github.com/sarnmesh/sarn/plugin/example/fileca").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	const vaultToken, awsSecret = "hvs.token-of-vault", "secret-key-of-aws"
	vault := vaulttest.New(vaultToken)
	vaultServer := httptest.NewServer(vault)
	defer vaultServer.Close()
	aws := &awstest.Server{Credentials: awsauth.Credentials{KeyID: "AKID", Secret: awsSecret}}
	awsServer := httptest.NewServer(aws)
	defer awsServer.Close()
	t.Setenv("AWS_ENDPOINT_URL_ACM_PCA", awsServer.URL)
	t.Setenv("AWS_REGION", awstest.Region)
	t.Setenv("AWS_ACCESS_KEY_ID", "AKID")
	t.Setenv("AWS_SECRET_ACCESS_KEY", awsSecret)

	s := newAgent(t, "s1", map[string]any{
		"server": true, "bootstrap": true,
		"connect": map[string]any{"enabled": true, "ca_config": map[string]any{
			"plugin": map[string]any{"name": "file", "path": program, "sha256": hex.EncodeToString(sum[:])},
		}},
	})
	s.run(t)
	eventually(t, 20*time.Second, "a leaf", func() bool { return s.get("/v1/agent/connect/ca/leaf/first") != nil })

	var answers []string
	look := func(path string) string {
		answer := s.must(t, "GET", path, "")
		answers = append(answers, answer)
		return answer
	}
	services := 0
	// check has a leaf signed for a service that has none, and verifies it by the active root.
	check := func(want string) {
		t.Helper()
		var roots struct {
			Roots []struct {
				Name, RootCert string
				Active         bool
			}
		}
		if err := json.Unmarshal([]byte(look("/v1/connect/ca/roots")), &roots); err != nil {
			t.Fatal(err)
		}
		pool, name := x509.NewCertPool(), ""
		for _, r := range roots.Roots {
			if r.Active {
				name = r.Name
				pool.AppendCertsFromPEM([]byte(r.RootCert))
			}
		}
		if name != want {
			t.Fatalf("active root %q, want %q", name, want)
		}
		services++
		var leaf struct{ CertPEM string }
		if err := json.Unmarshal([]byte(s.must(t, "GET", "/v1/agent/connect/ca/leaf/web"+strconv.Itoa(services), "")), &leaf); err != nil {
			t.Fatal(err)
		}
		block, rest := pem.Decode([]byte(leaf.CertPEM))
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		between := x509.NewCertPool()
		between.AppendCertsFromPEM(rest)
		if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("%s: %v", want, err)
		}
		for _, path := range []string{"/v1/connect/ca/configuration", "/v1/agent/self", "/v1/agent/connect/ca/roots", "/v1/connect/ca/roots?pem=true"} {
			look(path)
		}
	}
	set := func(provider string, config map[string]any) {
		t.Helper()
		body, err := json.Marshal(map[string]any{"Provider": provider, "Config": config})
		if err != nil {
			t.Fatal(err)
		}
		s.must(t, "PUT", "/v1/connect/ca/configuration", string(body))
	}
	again := func() {
		t.Helper()
		s.end(syscall.SIGKILL)
		s.run(t)
		eventually(t, 20*time.Second, "a leader", func() bool { return s.leader() != "" })
	}

	check("Consul CA Primary Cert")
	set("vault", map[string]any{"Address": vaultServer.URL, "Token": vaultToken, "RootPKIPath": "root", "IntermediatePKIPath": "inter"})
	check("Vault CA Primary Cert")
	again()
	check("Vault CA Primary Cert")

	set("plugin:file", map[string]any{"Folder": filepath.Join(t.TempDir(), "ca")})
	check("plugin:file CA Primary Cert")
	if got := vault.Mounts(); len(got) != 1 || got[0] != "root" {
		t.Errorf("engines left in Vault: %v", got)
	}
	logged := s.output()
	pid := regexp.MustCompile(`the CA plugin runs:.* pid=(\d+)`).FindStringSubmatch(logged)
	if pid == nil {
		t.Fatal("the program is not in the log")
	}
	again()
	eventually(t, 30*time.Second, "the program of the killed server ends", func() bool {
		state, err := os.ReadFile("/proc/" + pid[1] + "/stat")
		return err != nil || strings.Contains(string(state), ") Z ")
	})
	check("plugin:file CA Primary Cert")

	set("aws-pca", map[string]any{"DeleteOnExit": true})
	check("Aws-Pca CA Primary Cert")
	again()
	check("Aws-Pca CA Primary Cert")
	code, answer, err := s.call("PUT", "/v1/connect/ca/configuration", `{"Provider":"consul","Config":{}}`)
	if err != nil || code != 500 || !strings.HasPrefix(answer, "The current CA Provider does not support cross-signing. ") {
		t.Errorf("from AWS without force: %d %s %v", code, answer, err)
	}
	s.must(t, "PUT", "/v1/connect/ca/configuration", `{"Provider":"consul","Config":{},"ForceWithoutCrossSigning":true}`)
	check("Consul CA Primary Cert")
	if states := fmt.Sprint(aws.Authorities()); !strings.Contains(states, "DELETED") || strings.Contains(states, "ACTIVE") {
		t.Errorf("authorities at AWS: %s", states)
	}
	answers = append(answers, s.output(), logged)
	for _, a := range answers {
		for _, secret := range []string{vaultToken, awsSecret, "PRIVATE KEY"} {
			if i := strings.Index(a, secret); i >= 0 {
				t.Errorf("%q is shown: …%s", secret, a[max(0, i-200):i])
			}
		}
	}
}
