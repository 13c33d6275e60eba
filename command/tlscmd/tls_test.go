package tlscmd_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/command/tlscmd"
	"github.com/sarnmesh/sarn/command/verb"
)

// run runs a command in the working folder.
func run(t *testing.T, args ...string) (out, errs string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	for _, v := range tlscmd.Verbs() {
		path := strings.Fields(v.Path)
		if len(args) < len(path) || !slices.Equal(args[:len(path)], path) || v.Setup == nil {
			continue
		}
		cmd, err := v.Factory(t.Context(), verb.Streams{In: strings.NewReader(""), Out: &o, Err: &e})()
		if err != nil {
			t.Fatal(err)
		}
		code = cmd.Run(args[len(path):])
		return o.String(), e.String(), code
	}
	t.Fatalf("there is no command %q", args)
	return "", "", 0
}

func must(t *testing.T, args ...string) {
	t.Helper()
	if _, errs, code := run(t, args...); code != 0 {
		t.Fatalf("%q: exit %d: %s", args, code, errs)
	}
}

func certificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := pem.Decode(data)
	c, err := x509.ParseCertificate(b.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCertificatesAreForWhatTheySay(t *testing.T) {
	t.Chdir(t.TempDir())
	must(t, "tls", "ca", "create", "-cluster-id=c1")
	ca := certificate(t, "consul-agent-ca.pem")
	if !ca.IsCA || len(ca.URIs) != 1 || ca.URIs[0].String() != "spiffe://c1.consul" || !strings.HasPrefix(ca.Subject.CommonName, "Sarn Agent CA ") ||
		ca.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign|x509.KeyUsageDigitalSignature {
		t.Errorf("authority: %v %v %v", ca.Subject, ca.URIs, ca.KeyUsage)
	}
	must(t, "tls", "cert", "create", "-server", "-node=n1", "-additional-dnsname=x.y", "-additional-ipaddress=10.0.0.1")
	must(t, "tls", "cert", "create", "-client", "-dc=dc2")
	must(t, "tls", "cert", "create", "-cli", "-days=3")
	tests := []struct{ file, name, hosts, addrs, uses string }{
		{"dc1-server-consul-0", "server.dc1.consul", "[server.dc1.consul localhost n1.server.dc1.consul x.y]", "[127.0.0.1 10.0.0.1]", "[serverAuth clientAuth]"},
		{"dc2-client-consul-0", "client.dc2.consul", "[client.dc2.consul localhost]", "[127.0.0.1]", "[serverAuth clientAuth]"},
		{"dc1-cli-consul-0", "cli.dc1.consul", "[cli.dc1.consul localhost]", "[]", "[]"},
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	for _, tt := range tests {
		c := certificate(t, tt.file+".pem")
		if c.Subject.CommonName != tt.name || fmt.Sprint(c.DNSNames) != tt.hosts || fmt.Sprint(c.IPAddresses) != tt.addrs || fmt.Sprint(c.ExtKeyUsage) != tt.uses {
			t.Errorf("%s: %q for %q, %q, uses %v", tt.file, c.Subject.CommonName, c.DNSNames, c.IPAddresses, c.ExtKeyUsage)
		}
		if c.IsCA || c.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment {
			t.Errorf("%s: authority %v, key usage %v", tt.file, c.IsCA, c.KeyUsage)
		}
		if _, err := c.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Errorf("%s: %v", tt.file, err)
		}
		key, err := os.Stat(tt.file + "-key.pem")
		if err != nil || key.Mode() != 0o600 {
			t.Errorf("%s: the key has mode %v, %v", tt.file, key.Mode(), err)
		}
	}
}

func TestConstrainedAuthoritiesSignForTheirNamesOnly(t *testing.T) {
	t.Chdir(t.TempDir())
	must(t, "tls", "ca", "create", "-domain=in.example", "-name-constraint", "-additional-name-constraint=other.example")
	ca := certificate(t, "in.example-agent-ca.pem")
	if !ca.PermittedDNSDomainsCritical || fmt.Sprint(ca.PermittedDNSDomains) != "[other.example in.example localhost]" {
		t.Errorf("constraints: %v, critical %v", ca.PermittedDNSDomains, ca.PermittedDNSDomainsCritical)
	}
	must(t, "tls", "cert", "create", "-server", "-domain=in.example", "-additional-dnsname=a.other.example")
	if _, errs, code := run(t, "tls", "cert", "create", "-server", "-domain=in.example", "-additional-dnsname=evil.example"); code != 1 || !strings.Contains(errs, "may not sign this") {
		t.Errorf("exit %d: %s", code, errs)
	}
	if _, err := os.Stat("dc1-server-in.example-1.pem"); err == nil {
		t.Error("a certificate was saved all the same")
	}
}

func TestRefusals(t *testing.T) {
	t.Chdir(t.TempDir())
	must(t, "tls", "ca", "create")
	must(t, "tls", "ca", "create", "-domain=foo")
	must(t, "tls", "cert", "create", "-client")
	tests := []struct {
		args, want string
	}{
		{"tls ca create", "consul-agent-ca.pem already exists."},
		{"tls ca create -domain=../x", "Invalid value"},
		{"tls ca create -domain=bar -days=0", "Invalid value 0 for -days"},
		{"tls ca create -domain=bar -additional-name-constraint=x", "requires -name-constraint"},
		{"tls cert create", "Please provide either -server, -client, or -cli"},
		{"tls cert create -server -cli", "Please provide either -server, -client, or -cli"},
		{"tls cert create -cli -node=x", "-node requires -server"},
		{"tls cert create -server -dc=a/b", "Invalid value"},
		{"tls cert create -server -ca=", "Please provide the ca"},
		{"tls cert create -server -domain=none", "Error reading CA: open none-agent-ca.pem"},
		{"tls cert create -server -key=none", "Error reading CA key: open none"},
		{"tls cert create -server -key=foo-agent-ca-key.pem", "not that of the authority"},
		{"tls cert create -server -ca=dc1-client-consul-0.pem -key=dc1-client-consul-0-key.pem", "not that of an authority"},
		{"tls cert create -server -ca=consul-agent-ca-key.pem", "there is no certificate"},
		{"tls cert create -server -key=consul-agent-ca.pem", "there is no private key"},
		{"tls cert create -server -additional-ipaddress=x", `"x" is not an IP address`},
	}
	before, _ := os.ReadDir(".")
	for _, tt := range tests {
		if _, errs, code := run(t, strings.Fields(tt.args)...); code != 1 || !strings.Contains(errs, tt.want) {
			t.Errorf("%s: exit %d, %q; want %q", tt.args, code, errs, tt.want)
		}
	}
	if after, _ := os.ReadDir("."); len(after) != len(before) {
		t.Errorf("%d files before, %d after: refused commands left some", len(before), len(after))
	}
}
