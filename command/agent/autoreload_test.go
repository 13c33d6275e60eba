package agent

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/internal/testkit"
)

// With auto_reload_config the agent follows its files and its certificates, but opens nothing that was verified.
func TestAutoReload(t *testing.T) {
	ours := testkit.NewCA(t, "ours")
	dir := t.TempDir()
	certFile, keyFile := files(t, ours.Issue("first.example"))
	ca := authorityFile(t, ours)
	write := func(verify bool, more string) {
		t.Helper()
		text := fmt.Sprintf("tls { defaults { ca_file = %q\n cert_file = %q\n key_file = %q\n verify_incoming = %v } }\n%s", ca, certFile, keyFile, verify, more)
		if err := os.WriteFile(filepath.Join(dir, "a.hcl"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(true, "")
	https := freePorts(t, 1)[0]
	g := runServerWith(t, []string{dir}, fmt.Sprintf("auto_reload_config = true\nports { https = %d }", https))
	has := func(service string) bool {
		_, body := g.do("GET", "/v1/agent/services", managementSecret, "")
		return strings.Contains(body, `"`+service+`"`)
	}
	write(true, `service { name = "one" }`)
	g.eventually("the file is read again", func() bool { return has("one") })
	if err := os.WriteFile(filepath.Join(dir, "b.json"), []byte(`{"service": {"name": "two"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	g.eventually("another file is read", func() bool { return has("two") })
	address := fmt.Sprintf("127.0.0.1:%d", https)
	writeCert(t, ours.Issue("second.example"), certFile, keyFile)
	g.eventually("the certificate is read again", func() bool {
		state, err := handshake(address, ours.Issue("x"), "", 0)
		return err == nil && state.PeerCertificates[0].VerifyHostname("second.example") == nil
	})
	write(false, `service { name = "three" }`)
	g.eventually("the file is read once more", func() bool { return has("three") })
	if _, err := handshake(address, nil, "", 0); err == nil {
		t.Error("a changed file turned verify_incoming off")
	}
	if !strings.Contains(g.log.String(), "changed TLS settings take effect when somebody asks for a reload") {
		t.Error("nothing is said about the flag")
	}
	write(true, "bogus = 1")
	g.eventually("a broken file is told", func() bool { return strings.Contains(g.log.String(), "invalid config key bogus") })
	if !has("three") {
		t.Error("a broken file changed the services")
	}
	write(false, "")
	g.eventually("the file is whole again", func() bool { return !has("three") })
	if err := g.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := handshake(address, nil, "", 0); err != nil {
		t.Errorf("after a reload that was asked for: %v", err)
	}
}

// limits.https_handshake_timeout ends connections that do not get on, and no others.
func TestHandshakesAreBounded(t *testing.T) {
	ours := testkit.NewCA(t, "ours")
	_, https := tlsServer(t, ours, `limits { https_handshake_timeout = "300ms" }`)
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", https))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("a connection that says nothing: %v, want it closed", err)
	}
}

// What a reload applies is applied, and what it cannot apply is told by its key.
func TestReloadTellsWhatNeedsARestart(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.hcl")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	g := runServerWith(t, []string{file})
	write(`raft_snapshot_threshold = 2000
cache { entry_fetch_rate = 5
 entry_fetch_max_burst = 7 }
limits { rpc_client_timeout = "9s" }
telemetry { prefix_filter = ["-x"] }
config_entries { bootstrap = [{ kind = "service-defaults" name = "seeded" protocol = "http" }] }
disable_coordinates = true
http_config { response_headers { X = "y" } }`)
	if err := g.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.eventually("a new seed is written", func() bool {
		code, _ := g.do("GET", "/v1/config/service-defaults/seeded", managementSecret, "")
		return code == 200
	})
	log := g.log.String()
	for _, key := range []string{"disable_coordinates", "http_config.response_headers"} {
		if !strings.Contains(log, "takes effect only after a restart: key="+key+"\n") {
			t.Errorf("nothing is said about %s", key)
		}
	}
	for _, key := range []string{"raft_snapshot_threshold", "cache.entry_fetch_rate", "cache.entry_fetch_max_burst", "limits.rpc_client_timeout", "telemetry.prefix_filter", "config_entries.bootstrap"} {
		if strings.Contains(log, "key="+key+"\n") {
			t.Errorf("%s is said to need a restart", key)
		}
	}
}
