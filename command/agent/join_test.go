package agent

import (
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/internal/agentcert"
)

// A server that has the key of its authority makes its own certificate, and a new one when half of the life of the old
// one is over, when it was off until long after, and when it does not fit.
func TestServerKeepsItsOwnCertificate(t *testing.T) {
	dir, now := t.TempDir(), time.Now()
	file := func(name string) string { return filepath.Join(dir, name) }
	put := func(name string, data []byte) {
		t.Helper()
		if err := os.WriteFile(file(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	authority := func() {
		t.Helper()
		cert, key, err := agentcert.Authority{Validity: 10 * 365 * 24 * time.Hour}.Make(now)
		if err != nil {
			t.Fatal(err)
		}
		put("ca.pem", cert)
		put("ca-key.pem", key)
	}
	authority()
	s := &config.Settings{Server: true, JoinTokens: config.JoinTokens{CAKeyFile: file("ca-key.pem")}}
	s.Node.Name, s.Node.Datacenter, s.DNS.Domain = "s1", "dc1", "consul."
	s.Addresses.Advertise = netip.MustParseAddr("10.0.0.1")
	s.TLS.InternalRPC = config.TLSStanza{CAFile: file("ca.pem"), CertFile: file("server.pem"), KeyFile: file("server.pem")}
	keep := func(what string, at time.Time, want bool) *x509.Certificate {
		t.Helper()
		made, err := keepOwnCert(s, hclog.NewNullLogger(), at)
		if err != nil || made != want {
			t.Fatalf("%s: made %v, %v", what, made, err)
		}
		k, err := readKeys(s.TLS.InternalRPC)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		leaf, err := x509.ParseCertificate(k.cert.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: k.roots, CurrentTime: at, DNSName: "server.dc1.consul"}); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		ca, _ := pem.Decode([]byte(k.pem[0]))
		if len(k.cert.Certificate) != 2 || string(k.cert.Certificate[1]) != string(ca.Bytes) {
			t.Errorf("%s: the authority is not shown", what)
		}
		return leaf
	}
	first := keep("the first", now, true)
	for _, host := range []string{"server.dc1.consul", "s1.server.dc1.consul", "localhost", "127.0.0.1", "10.0.0.1"} {
		if err := first.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if info, err := os.Stat(file("server.pem")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	keep("a restart", now.Add(time.Hour), false)
	keep("before half of its life", now.Add(44*24*time.Hour), false)
	half := now.Add(46 * 24 * time.Hour)
	second := keep("after half of its life", half, true)
	if second.SerialNumber.Cmp(first.SerialNumber) == 0 || !second.NotAfter.After(half.Add(89*24*time.Hour)) {
		t.Errorf("until %v", second.NotAfter)
	}
	year := now.Add(365 * 24 * time.Hour)
	keep("after a year without power", year, true)
	s.Addresses.Advertise = netip.MustParseAddr("10.0.0.2")
	keep("another address", year, true)
	put("server.pem", []byte("half a file"))
	keep("a broken file", year, true)
	authority()
	keep("another authority", year, true)
	put("ca-key.pem", nil)
	if made, err := keepOwnCert(s, hclog.NewNullLogger(), year.Add(80*24*time.Hour)); made || err == nil {
		t.Errorf("without a key: made %v, %v", made, err)
	}
}
