//go:build unix

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/internal/testkit"
)

func writePEM(t *testing.T, path, kind string, der ...[]byte) string {
	t.Helper()
	var data []byte
	for _, d := range der {
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: d})...)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestClusterWithTLSKeepsOthersOut runs servers and a client agent with mutual TLS and gossip encryption. A client's
// certificate does not reach Raft, nothing in plain text reaches anything, and an agent without the gossip key or with a
// certificate of another authority stays outside.
func TestClusterWithTLSKeepsOthersOut(t *testing.T) {
	binary(t)
	dir := t.TempDir()
	authority := testkit.NewCA(t, "cluster")
	caFile := writePEM(t, filepath.Join(dir, "ca.pem"), "CERTIFICATE", authority.Certificate().Raw)
	const key = "pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s="
	settings := func(ca *testkit.CA, caFile, name, dnsName string) map[string]any {
		cert := ca.Issue(dnsName, "localhost", "127.0.0.1")
		der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		return map[string]any{
			"encrypt": key,
			"tls": map[string]any{
				"defaults": map[string]any{
					"ca_file": caFile, "cert_file": writePEM(t, filepath.Join(dir, name+".crt"), "CERTIFICATE", cert.Certificate...),
					"key_file": writePEM(t, filepath.Join(dir, name+".key"), "PRIVATE KEY", der), "verify_incoming": true, "verify_outgoing": true,
				},
				"internal_rpc": map[string]any{"verify_server_hostname": true},
			},
		}
	}
	server := func(name string, join []string) *agent {
		conf := settings(authority, caFile, name, "server.dc1.consul")
		conf["server"], conf["bootstrap_expect"], conf["retry_join"] = true, 3, join
		a := newAgent(t, name, conf)
		a.run(t)
		return a
	}
	var list []*agent
	var join []string
	for _, name := range []string{"s1", "s2", "s3"} {
		a := server(name, join)
		list, join = append(list, a), append(join, a.lan())
	}
	leaderOf(t, list)
	conf := settings(authority, caFile, "c1", "client.dc1.consul")
	conf["retry_join"] = join
	c := newAgent(t, "c1", conf)
	c.run(t)
	eventually(t, 30*time.Second, "the client reaches the servers", func() bool { return c.leader() != "" })
	if body := c.must(t, "PUT", "/v1/kv/a", "1"); strings.TrimSpace(body) != "true" {
		t.Errorf("put: %s", body)
	}

	// What a caller gets from a server's port: an error, or the end of the connection.
	refused := func(conn net.Conn, err error) error {
		if err != nil {
			return nil
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		conn.Write([]byte("\x00\x00\x00\x00"))
		if n, err := conn.Read(make([]byte, 16)); err == nil {
			return errors.New("the server answered " + string(rune('0'+n)) + " bytes")
		} else if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			return errors.New("the connection was kept")
		}
		return nil
	}
	leader := leaderOf(t, list)
	clientCert, err := tls.LoadX509KeyPair(filepath.Join(dir, "c1.crt"), filepath.Join(dir, "c1.key"))
	if err != nil {
		t.Fatal(err)
	}
	dial := func(protocol string, certs ...tls.Certificate) (net.Conn, error) {
		return tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", leader.serverAddr(), &tls.Config{
			RootCAs: authority.Pool(), ServerName: "server.dc1.consul", NextProtos: []string{protocol}, Certificates: certs,
		})
	}
	if err := refused(dial("sarn-raft/1", clientCert)); err != nil {
		t.Errorf("a client's certificate reached Raft: %v", err)
	}
	if err := refused(dial("sarn-rpc/1")); err != nil {
		t.Errorf("no certificate reached RPC: %v", err)
	}
	if err := refused(net.DialTimeout("tcp", leader.serverAddr(), 5*time.Second)); err != nil {
		t.Errorf("plain text reached the server port: %v", err)
	}

	// An agent of another authority, and one without the gossip key.
	other := testkit.NewCA(t, "other")
	conf = settings(other, writePEM(t, filepath.Join(dir, "other.pem"), "CERTIFICATE", other.Certificate().Raw), "x1", "client.dc1.consul")
	conf["retry_join"] = join
	stranger := newAgent(t, "x1", conf)
	stranger.run(t)
	eventually(t, 20*time.Second, "the stranger's agent runs", func() bool { return stranger.get("/v1/agent/self") != nil })
	if code, _, err := stranger.call("PUT", "/v1/kv/b", "1"); err == nil && code == 200 {
		t.Error("an agent with another authority's certificate wrote a key")
	}
	plain := newAgent(t, "p1", map[string]any{"retry_join": join, "retry_max": 2})
	plain.run(t)
	if code, ended := plain.exit(60 * time.Second); !ended || code != 1 {
		t.Errorf("an agent without the gossip key: ended %v, code %d, want 1", ended, code)
	}
	members := leader.must(t, "GET", "/v1/agent/members", "")
	if strings.Contains(members, `"p1"`) {
		t.Error("an agent without the gossip key became a member")
	}
}
