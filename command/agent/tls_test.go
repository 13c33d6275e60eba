package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/testkit"
)

// files writes a certificate and its key into a folder of the test.
func files(t *testing.T, cert *tls.Certificate) (certFile, keyFile string) {
	t.Helper()
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writeCert(t, cert, certFile, keyFile)
	return certFile, keyFile
}

func writeCert(t *testing.T, cert *tls.Certificate, certFile, keyFile string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, keyFile: {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func authorityFile(t *testing.T, ca *testkit.CA) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate().Raw})
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// A displayed certificate is what somebody shows on the wire.
type displayed struct {
	name string
	cert *tls.Certificate // nil for none
}

func everyCertificate(ours, others *testkit.CA, name string) []displayed {
	return []displayed{
		{"right", ours.Issue(name)}, {"wrong authority", others.Issue(name)}, {"none", nil},
		{"expired", ours.IssueUntil(time.Now().Add(-time.Minute), name)}, {"wrong name", ours.Issue("elsewhere.example")},
	}
}

// handshake makes a TLS connection that shows a certificate whatever the other side asks for, and waits until the other
// side has taken it.
func handshake(address string, cert *tls.Certificate, protocol string, max uint16) (tls.ConnectionState, error) {
	c := &tls.Config{InsecureSkipVerify: true, MaxVersion: max}
	if protocol != "" {
		c.NextProtos = []string{protocol}
	}
	if cert != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", address, c)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	// With TLS 1.3 a refusal comes after the handshake: the answer to what is said next, or to nothing.
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	said := "GET /v1/status/leader HTTP/1.1\r\nHost: x\r\n\r\n"
	switch protocol {
	case "h2", rpcwire.ProtoRPC, rpcwire.ProtoIntro:
		said = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
	case rpcwire.ProtoRaft: // which answers to what is none of its messages by hanging up
		said = "\xff"
	}
	if _, err := io.WriteString(conn, said); err != nil {
		return conn.ConnectionState(), err
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil && !(protocol == rpcwire.ProtoRaft && errors.Is(err, io.EOF)) {
		return conn.ConnectionState(), err
	}
	return conn.ConnectionState(), nil
}

// tlsServer is a server with certificates and a stanza for each listener; its HTTPS port is the second result.
func tlsServer(t *testing.T, ours *testkit.CA, stanzas string, more ...string) (g *guardedAgent, https int) {
	t.Helper()
	cert, key := files(t, ours.Issue("server.dc1.consul", "localhost", "127.0.0.1"))
	https = freePorts(t, 1)[0]
	g = runServer(t, append([]string{
		fmt.Sprintf("ports { https = %d }\ntls { defaults { ca_file = %q\n cert_file = %q\n key_file = %q } }", https, authorityFile(t, ours), cert, key), stanzas,
	}, more...)...)
	return g, https
}

// Each flag about those who call does what it says, on the wire, on its own listener and on no other
// (spec/threats.md, class 3).
func TestThreat03EveryVerifyIncomingFlagIsObeyed(t *testing.T) {
	ours, others := testkit.NewCA(t, "ours"), testkit.NewCA(t, "others")
	for _, tt := range []struct {
		name, stanzas              string
		https, grpc, rpc, restrict bool // what verifies
	}{
		{name: "off", stanzas: ""},
		{name: "defaults", stanzas: `tls { defaults { verify_incoming = true } }`, https: true, grpc: true, rpc: true},
		{name: "https", stanzas: `tls { https { verify_incoming = true } }`, https: true},
		{name: "grpc", stanzas: `tls { grpc { verify_incoming = true } }`, grpc: true},
		{name: "internal_rpc", stanzas: `tls { internal_rpc { verify_incoming = true } }`, rpc: true},
		{name: "all but https", stanzas: `tls { defaults { verify_incoming = true } https { verify_incoming = false } }`, grpc: true, rpc: true},
		{name: "all but grpc", stanzas: `tls { defaults { verify_incoming = true } grpc { verify_incoming = false } }`, https: true, rpc: true},
		{name: "all but rpc", stanzas: `tls { defaults { verify_incoming = true } internal_rpc { verify_incoming = false } }`, https: true, grpc: true},
		{name: "old verify_incoming", stanzas: `verify_incoming = true`, https: true, rpc: true},
		{name: "old verify_incoming_rpc", stanzas: `verify_incoming_rpc = true`, rpc: true},
		{name: "old verify_incoming_https", stanzas: `verify_incoming_https = true`, https: true},
		{
			name: "servers by name", stanzas: `tls { defaults { verify_incoming = true } internal_rpc { verify_server_hostname = true } }`,
			https: true, grpc: true, rpc: true, restrict: true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, https := tlsServer(t, ours, tt.stanzas)
			s := g.current()
			at := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
			for _, l := range []struct {
				name, address, protocol string
				verifies, named         bool
			}{
				{"https", at(https), "", tt.https, false},
				{"grpc", at(s.Ports.GRPCTLS), "h2", tt.grpc, false},
				{"rpc", at(s.Ports.Server), rpcwire.ProtoRPC, tt.rpc, false},
			} {
				for _, c := range everyCertificate(ours, others, "server.dc1.consul") {
					for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
						want := !l.verifies || c.name == "right" || c.name == "wrong name"
						state, err := handshake(l.address, c.cert, l.protocol, version)
						if taken := err == nil; taken != want {
							t.Errorf("%s, %s, %s: %v, want taken: %v", l.name, c.name, tls.VersionName(version), err, want)
						}
						if err == nil && state.Version != version {
							t.Errorf("%s speaks %s, want %s", l.name, tls.VersionName(state.Version), tls.VersionName(version))
						}
					}
				}
				if _, err := handshake(l.address, nil, l.protocol, tls.VersionTLS11); err == nil {
					t.Errorf("%s speaks TLS 1.1", l.name)
				}
			}
			for _, c := range everyCertificate(ours, others, "server.dc1.consul") {
				want := !tt.rpc || c.name == "right" || c.name == "wrong name" && !tt.restrict
				if err := callRaft(t, at(s.Ports.Server), c.cert); (err == nil) != want {
					t.Errorf("Raft, %s: %v, want taken: %v", c.name, err, want)
				}
			}
			// Plain text is taken by the server port alone, where callers are not verified.
			conn, err := net.Dial("tcp", at(s.Ports.Server))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn, err = (&rpcwire.Security{}).Secure(t.Context(), conn, rpcwire.ProtoRaft, "dc1")
			if err == nil {
				err = knock(conn)
			}
			if (err == nil) != !tt.rpc {
				t.Errorf("Raft in plain text: %v, want taken: %v", err, !tt.rpc)
			}
			conn, err = net.Dial("tcp", at(https))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			io.WriteString(conn, "GET /v1/agent/self HTTP/1.1\r\nHost: x\r\n\r\n")
			if answer, _ := io.ReadAll(conn); bytes.Contains(answer, []byte("200 OK")) {
				t.Errorf("the HTTPS port answers plain text: %s", answer)
			}
		})
	}
}

// callRaft connects to Raft as another server does, and reports whether it answers.
func callRaft(t *testing.T, address string, cert *tls.Certificate) error {
	t.Helper()
	raw, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{rpcwire.ProtoRaft}}
	if cert != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	return knock(tls.Client(raw, c))
}

// knock sends a request for a vote that is none, and returns nil when Raft answers it: type 1, an empty message.
func knock(conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write([]byte{1, 0x80}); err != nil {
		return err
	}
	n, err := conn.Read(make([]byte, 1))
	if n > 0 {
		return nil
	}
	return err
}

// Each flag about who is called does what it says: the agent hangs up on servers that cannot prove who they are
// (spec/threats.md, class 3).
func TestThreat03EveryVerifyOutgoingFlagIsObeyed(t *testing.T) {
	ours, others := testkit.NewCA(t, "ours"), testkit.NewCA(t, "others")
	for _, tt := range []struct {
		name, stanzas   string
		verifies, named bool
	}{
		{"off", ``, false, false},
		{"defaults", `tls { defaults { verify_outgoing = true } }`, true, false},
		{"internal_rpc", `tls { internal_rpc { verify_outgoing = true } }`, true, false},
		{"https", `tls { https { verify_outgoing = true } }`, false, false},
		{"all but rpc", `tls { defaults { verify_outgoing = true } internal_rpc { verify_outgoing = false } }`, false, false},
		{"names", `tls { internal_rpc { verify_server_hostname = true } }`, true, true},
		{"names by default", `tls { defaults { verify_server_hostname = true } }`, true, true},
		{"old verify_outgoing", `verify_outgoing = true`, true, false},
		{"old verify_server_hostname", `verify_server_hostname = true`, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := load(t, sources(fmt.Sprintf("tls { defaults { ca_file = %q } }", authorityFile(t, ours)), tt.stanzas))
			a := &Agent{}
			if err := a.loadTLS(s); err != nil {
				t.Fatal(err)
			}
			for _, c := range everyCertificate(ours, others, "server.dc1.consul") {
				for _, protocol := range []string{rpcwire.ProtoRPC, rpcwire.ProtoRaft} {
					secure, err := callPort(t, a.security(s), c.cert, protocol)
					want := !tt.verifies || c.name == "right" || c.name == "wrong name" && !tt.named
					if (err == nil) != want {
						t.Errorf("%s to a server with %s: %v, want taken: %v", protocol, c.name, err, want)
					}
					if err == nil && secure != tt.verifies {
						t.Errorf("%s to a server with %s: over TLS %v, want %v", protocol, c.name, secure, tt.verifies)
					}
				}
			}
		})
	}
}

// callPort calls a port that shows a certificate, or speaks plain text without one, and tells whether TLS was spoken.
func callPort(t *testing.T, sec *rpcwire.Security, cert *tls.Certificate, protocol string) (secure bool, err error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &rpcwire.Security{Certificate: func() *tls.Certificate { return cert }}
	port := rpcwire.NewPort(rpcwire.PortConfig{Listener: l, Security: server})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	done := make(chan error, 1)
	go func() { done <- port.Run(ctx) }()
	defer func() { cancel(); <-done }()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := sec.Secure(ctx, raw, protocol, "dc1")
	if err != nil {
		return false, err
	}
	defer conn.Close()
	type accepted struct {
		conn net.Conn
		err  error
	}
	got := make(chan accepted, 1)
	go func() {
		c, err := port.Listener(protocol).Accept()
		got <- accepted{c, err}
	}()
	select {
	case a := <-got:
		if a.err != nil {
			return false, a.err
		}
		defer a.conn.Close()
		return a.conn.(*rpcwire.Conn).Peer().TLS != nil, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// A reload changes all of TLS: certificates, authorities, flags and versions. What is wrong with one file changes nothing.
func TestThreat03ReloadFollowsEveryTLSKey(t *testing.T) {
	ours, others := testkit.NewCA(t, "ours"), testkit.NewCA(t, "others")
	dir := t.TempDir()
	conf := filepath.Join(dir, "tls.hcl")
	certFile, keyFile := files(t, ours.Issue("server.dc1.consul"))
	caFile := authorityFile(t, ours)
	write := func(flags string) {
		t.Helper()
		text := fmt.Sprintf("tls { defaults { ca_file = %q\n cert_file = %q\n key_file = %q\n %s } }", caFile, certFile, keyFile, flags)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	https := freePorts(t, 1)[0]
	g := runServerWith(t, []string{conf}, fmt.Sprintf("ports { https = %d }", https))
	ports := map[string]string{
		"": fmt.Sprintf("127.0.0.1:%d", https), "h2": fmt.Sprintf("127.0.0.1:%d", g.current().Ports.GRPCTLS),
		rpcwire.ProtoRPC: fmt.Sprintf("127.0.0.1:%d", g.current().Ports.Server),
	}
	good, bad := ours.Issue("x"), others.Issue("x")
	each := func(cert *tls.Certificate, max uint16, want bool) {
		t.Helper()
		for protocol, address := range ports {
			if _, err := handshake(address, cert, protocol, max); (err == nil) != want {
				t.Errorf("%q: %v, want taken: %v", protocol, err, want)
			}
		}
	}
	reload := func() error { return g.Reload(t.Context()) }
	must := func() {
		t.Helper()
		if err := reload(); err != nil {
			t.Fatal(err)
		}
	}
	each(nil, tls.VersionTLS12, true)
	write("verify_incoming = true")
	must()
	each(nil, 0, false)
	each(bad, 0, false)
	each(good, 0, true)
	write("verify_incoming = true\n tls_min_version = \"TLSv1_3\"")
	must()
	each(good, tls.VersionTLS12, false)
	each(good, 0, true)
	write("tls_cipher_suites = \"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384\"")
	must()
	for protocol, address := range ports {
		state, err := handshake(address, nil, protocol, tls.VersionTLS12)
		if err != nil || state.CipherSuite != tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384 {
			t.Errorf("%q: cipher suite %s, %v", protocol, tls.CipherSuiteName(state.CipherSuite), err)
		}
	}
	// Another certificate in the same files.
	next := ours.Issue("server.dc1.consul", "renewed.example")
	writeCert(t, next, certFile, keyFile)
	must()
	for protocol, address := range ports {
		state, err := handshake(address, nil, protocol, 0)
		if err != nil || state.PeerCertificates[0].VerifyHostname("renewed.example") != nil {
			t.Errorf("%q shows the old certificate: %v", protocol, err)
		}
	}
	// A file that is no key: all stays.
	if err := os.WriteFile(keyFile, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	write("verify_incoming = true")
	if err := reload(); err == nil {
		t.Error("a file that is no key was loaded")
	}
	each(nil, 0, true)
}

// Sessions are not resumed where callers are verified: an authority that is taken away counts at once.
func TestThreat03AnAuthorityTakenAwayIsNotTrustedAnyLonger(t *testing.T) {
	ours, others := testkit.NewCA(t, "ours"), testkit.NewCA(t, "others")
	g, https := tlsServer(t, ours, `tls { https { verify_incoming = true } }`)
	cert := ours.Issue("x")
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		RootCAs: ours.Pool(), Certificates: []tls.Certificate{*cert}, ClientSessionCache: tls.NewLRUClientSessionCache(8),
	}}}
	get := func() error {
		resp, err := client.Get(fmt.Sprintf("https://localhost:%d/v1/status/leader", https))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.TLS.DidResume {
			t.Error("a session was resumed")
		}
		_, err = io.ReadAll(resp.Body)
		return err
	}
	for range 3 {
		if err := get(); err != nil {
			t.Fatal(err)
		}
	}
	g.sources.Fragments = append(g.sources.Fragments, fmt.Sprintf("tls { https { ca_file = %q } }", authorityFile(t, others)))
	if err := g.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := get(); err == nil {
		t.Error("the certificate of an authority that was taken away is taken")
	}
}

// An agent that has no certificate gets one by its token, and is then an agent and nothing more: not a server, and
// neither is a service of the mesh (spec/config.md section 3.6, spec/threats.md, class 2).
func TestAutoEncrypt(t *testing.T) {
	ours := testkit.NewCA(t, "ours")
	g, _ := tlsServer(t, ours, `tls { defaults { verify_incoming = true
 verify_outgoing = true } internal_rpc { verify_server_hostname = true } }
auto_encrypt { allow_tls = true }`)
	token := g.token(`node "client-node" { policy = "write" }`)
	ask := func(more ...string) (*config.Settings, config.Sources) {
		src := sources(append([]string{fmt.Sprintf(`node_name = "client-node"
bind_addr = "127.0.0.1"
retry_join = ["127.0.0.1:%d"]
ports { server = %d }
tls { defaults { ca_file = %q
 verify_outgoing = true } }
auto_encrypt { tls = true
 dns_san = ["client.example"]
 ip_san = ["10.1.2.3"] }`, g.current().Ports.SerfLAN, g.current().Ports.Server, authorityFile(t, ours))}, more...)...)
		src.Dev = false
		src.Fragments = append(src.Fragments, fmt.Sprintf("data_dir = %q", t.TempDir()))
		return load(t, src), src
	}
	admit := func(more ...string) error {
		s, _ := ask(more...)
		k, err := keeper(s, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		return k.Admit(t.Context())
	}
	if err := admit(); err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("without a token: %v", err)
	}
	if err := admit(fmt.Sprintf("acl { tokens { agent = %q } }\nnode_name = \"other\"", token)); err == nil || !strings.Contains(err.Error(), "Permission denied") {
		t.Errorf("as another node: %v", err)
	}
	tokens := fmt.Sprintf("acl { tokens { agent = %q } }", token)
	for _, name := range []string{"server.dc1.consul", "SERVER.dc1.consul", "*.dc1.consul", "*.consul", "a b"} {
		if err := admit(tokens, fmt.Sprintf("auto_encrypt { dns_san = [%q] }", name)); err == nil {
			t.Errorf("the name %s was signed", name)
		}
	}
	if err := admit(tokens, fmt.Sprintf("tls { defaults { ca_file = %q } }", authorityFile(t, testkit.NewCA(t, "others")))); err == nil {
		t.Error("a server of another authority was believed")
	}

	c := g.runClient(fmt.Sprintf(`acl { tokens { agent = %q default = %q } }
ports { server = %d }
tls { defaults { ca_file = %q
 verify_outgoing = true } }
auto_encrypt { tls = true
 dns_san = ["client.example"]
 ip_san = ["10.1.2.3"] }`, token, managementSecret, g.current().Ports.Server, authorityFile(t, ours)))
	c.eventually("the client reaches the servers", func() bool {
		code, body := c.do("GET", "/v1/catalog/nodes", managementSecret, "")
		return code == 200 && strings.Contains(body, "client-node")
	})
	given := c.given.Admission()
	leaf, err := x509.ParseCertificate(given.Certificate().Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := leaf.VerifyHostname("client.example"); err != nil {
		t.Error(err)
	}
	if err := leaf.VerifyHostname("10.1.2.3"); err != nil {
		t.Error(err)
	}
	if id, err := connect.ParseID(leaf.URIs[0].String()); err != nil || id.Kind() != connect.Agent || id.Name() != "client-node" || !given.VerifyServerHostname {
		t.Errorf("%v, %v; servers by name: %v", id, err, given.VerifyServerHostname)
	}
	server := fmt.Sprintf("127.0.0.1:%d", g.current().Ports.Server)
	if _, err := handshake(server, given.Certificate(), rpcwire.ProtoRPC, 0); err != nil {
		t.Errorf("calls by the agent's certificate: %v", err)
	}
	if err := callRaft(t, server, given.Certificate()); err == nil {
		t.Error("the agent's certificate reaches Raft")
	}
	// The mesh's authority vouches for agents alone.
	var service struct{ CertPEM, PrivateKeyPEM string }
	if err := json.Unmarshal([]byte(g.must("GET", "/v1/agent/connect/ca/leaf/web", "")), &service); err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair([]byte(service.CertPEM), []byte(service.PrivateKeyPEM))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := handshake(server, &pair, rpcwire.ProtoRPC, 0); err == nil {
		t.Error("the certificate of a service opens the calls of agents")
	}
	if _, err := handshake(server, nil, rpcwire.ProtoRPC, 0); err == nil {
		t.Error("no certificate opens the calls of agents")
	}
	// Who has none may only introduce himself.
	client := rpcwire.NewClient(func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return nil, err
		}
		return (&rpcwire.Security{Roots: ours.Pool}).Secure(ctx, conn, rpcwire.ProtoIntro, "dc1")
	})
	defer client.Close()
	for _, call := range []string{"Catalog.Nodes", "KV.Get", "Status.Leader", "Intro.Admit", "ConnectCA.Sign"} {
		if err := client.Call(t.Context(), server, call, &struct{}{}, &struct{}{}); err == nil || !strings.Contains(err.Error(), "unknown method") {
			t.Errorf("%s without a certificate: %v", call, err)
		}
	}
	if err := client.Call(t.Context(), server, "Intro.Configure", &struct{}{}, &struct{}{}); err == nil || !strings.Contains(err.Error(), "auto_config.authorization must be enabled") {
		t.Errorf("a configuration: %v", err)
	}
}

// With a web token that names the node an agent gets all it needs, and none without one.
func TestAutoConfig(t *testing.T) {
	ours := testkit.NewCA(t, "ours")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token := func(node, audience string, ends time.Time) string {
		text, err := jwt.Signed(signer).Claims(map[string]any{
			"iss": "deployer", "aud": audience, "exp": ends.Unix(), "nbf": time.Now().Add(-time.Hour).Unix(), "node": node,
		}).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	g, _ := tlsServer(t, ours, fmt.Sprintf(`tls { defaults { verify_incoming = true
 verify_outgoing = true } internal_rpc { verify_server_hostname = true } }
auto_config { authorization { enabled = true
 static { jwt_validation_pub_keys = [%q]
  bound_issuer = "deployer"
  bound_audiences = ["cluster"]
  claim_mappings { node = "node_name" }
  claim_assertions = ["value.node_name == \"${node}\""] } } }`, public))
	ca := authorityFile(t, ours)
	agent := func(name, intro, dir string) (config.Sources, *config.Settings) {
		src := sources(fmt.Sprintf(`node_name = %q
bind_addr = "127.0.0.1"
data_dir = %q
tls { defaults { ca_file = %q
 verify_outgoing = true } }
auto_config { enabled = true
 intro_token = %q
 dns_sans = ["client.example"]
 server_addresses = ["127.0.0.1:%d"] }`, name, dir, ca, intro, g.current().Ports.Server))
		src.Dev = false
		return src, load(t, src)
	}
	later := time.Now().Add(time.Hour)
	for _, bad := range []struct{ name, node, token string }{
		{"no token of the issuer", "client-node", "x.y.z"}, {"another node's", "client-node", token("other", "cluster", later)},
		{"another audience", "client-node", token("client-node", "others", later)},
		{"expired", "client-node", token("client-node", "cluster", time.Now().Add(-time.Hour))},
		{"no name", `x" or value.node_name != "`, token("other", "cluster", later)},
	} {
		_, s := agent(bad.name, bad.token, t.TempDir())
		s.Node.Name = bad.node
		k, err := keeper(s, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Admit(t.Context()); err == nil {
			t.Errorf("%s: admitted", bad.name)
		}
	}

	dir := t.TempDir()
	src, s := agent("client-node", token("client-node", "cluster", later), dir)
	src, s, k, err := introduceSoon(t, src, s, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	secret := s.ACL.Tokens.Agent
	if !s.ACL.Enabled || s.ACL.DefaultPolicy != "deny" || secret == "" || s.Gossip.Key != gossipKey || !s.TLS.InternalRPC.VerifyServerHostname ||
		len(s.Join.LAN) != 1 || s.Node.Datacenter != "dc1" {
		t.Errorf("told: %+v %+v %+v", s.ACL, s.Gossip, s.Join)
	}
	if _, body := g.do("GET", "/v1/acl/token/self", secret, ""); !strings.Contains(body, `"client-node"`) {
		t.Errorf("the token: %s", body)
	}
	info, err := os.Stat(filepath.Join(dir, "auto-config.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("kept: %v, %v", info, err)
	}
	log := &logBuffer{}
	src.Fragments = append(src.Fragments, fmt.Sprintf("ports { serf_lan = %d\n http = -1\n dns = -1 }", freePorts(t, 1)[0]))
	s = load(t, src)
	a, err := newMember(src, s, hclog.NewInterceptLogger(&hclog.LoggerOptions{Level: hclog.Trace, Output: log}), k)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	g.eventually("the agent registers its node", func() bool {
		_, body := g.do("GET", "/v1/catalog/nodes", managementSecret, "")
		return strings.Contains(body, "client-node")
	})
	cancel()
	if err := <-done; err != nil {
		t.Errorf("the agent ended with %v\n%s", err, log)
	}

	// A start later needs neither the servers nor a token that is still good, and gets the same token again.
	src, s = agent("client-node", token("client-node", "cluster", time.Now().Add(-time.Hour)), dir)
	s.AutoConfig.ServerAddresses = nil
	if _, s, _, err = introduceSoon(t, src, s, hclog.NewNullLogger()); err != nil || s.ACL.Tokens.Agent != secret {
		t.Errorf("with what was kept: %v", err)
	}
	src, s = agent("client-node", token("client-node", "cluster", later), t.TempDir())
	if _, s, _, err = introduceSoon(t, src, s, hclog.NewNullLogger()); err != nil || s.ACL.Tokens.Agent != secret {
		t.Errorf("once more: %v", err)
	}
	if logged := g.log.String() + log.String(); strings.Contains(logged, secret) || strings.Contains(logged, gossipKey) {
		t.Error("a secret was logged")
	}
}
