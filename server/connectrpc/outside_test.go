package connectrpc_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/caprovider/awsauth"
	"github.com/sarnmesh/sarn/server/caprovider/awstest"
	"github.com/sarnmesh/sarn/server/caprovider/vaulttest"
	"github.com/sarnmesh/sarn/server/connectrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
)

const vaultToken = "hvs.the-secret-token"

// A world is a server whose authority reaches Vault at vault:8200 and AWS at aws:443, all in memory.
type world struct {
	*rpctest.Server
	authority *connectrpc.Authority
	vault     *vaulttest.Server
	aws       *awstest.Server
	log       *journal
	dial      connectrpc.DialFunc
	hosts     *hosts // where names are
}

// newWorld is for bubbles.
func newWorld(t *testing.T, cfg connectrpc.Config) *world {
	t.Helper()
	return newWorldWith(t, &world{
		vault: vaulttest.New(vaultToken),
		aws:   &awstest.Server{Credentials: awsauth.Credentials{KeyID: "AKID", Secret: "aws-secret-key"}},
	}, cfg)
}

// hosts says where names are, while that changes.
type hosts struct {
	mu sync.Mutex
	of map[string]string
}

func (h *hosts) get(name string) (string, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	to := h.of[name]
	return to, to != ""
}

func (h *hosts) set(name, to string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.of[name] = to
}

// newWorldWith makes another server, with the Vault and AWS of a world.
func newWorldWith(t *testing.T, other *world, cfg connectrpc.Config) *world {
	t.Helper()
	w := &world{vault: other.vault, aws: other.aws, log: &journal{}}
	network := testkit.NewNetwork(1)
	here := network.Host("10.0.0.1")
	known := &hosts{of: map[string]string{"vault:8200": "10.0.0.2:80", "aws:80": "10.0.0.3:80"}}
	for host, handler := range map[string]http.Handler{"10.0.0.2": w.vault, "10.0.0.3": w.aws} {
		l, err := network.Host(host).Listen(80)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: handler}
		go server.Serve(l)
		t.Cleanup(func() { server.Close() })
	}
	cfg.Dial = func(ctx context.Context, _, address string) (net.Conn, error) {
		to, ok := known.get(address)
		if !ok { // nobody answers
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return here.Dial(ctx, to)
	}
	w.dial, w.hosts = cfg.Dial, known
	cfg.Getenv = func(name string) string {
		return map[string]string{
			"AWS_ENDPOINT_URL": "http://aws", "AWS_REGION": awstest.Region, "AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "aws-secret-key",
		}[name]
	}
	cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: w.log, Level: hclog.Trace})
	w.Server, w.authority = newServer(t, cfg)
	t.Cleanup(w.authority.Stop)
	return w
}

func writeFile(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func vaultConfig(root, between string) map[string]any {
	return map[string]any{"Address": "http://vault:8200", "Token": vaultToken, "RootPKIPath": root, "IntermediatePKIPath": between}
}

func (w *world) set(t *testing.T, provider string, config map[string]any, force bool) error {
	t.Helper()
	_, err := ca.SetConfigCall.Call(t.Context(), w.Caller(), &ca.SetConfigRequest{Config: ca.Configuration{
		Provider: provider, Config: config, ForceWithoutCrossSigning: force,
	}})
	return err
}

// leaf has a leaf signed and verifies it as those do who know the given roots, each alone.
func (w *world) leaf(t *testing.T, known ...*ca.Root) *x509.Certificate {
	t.Helper()
	reply, err := ca.SignCall.Call(t.Context(), w.Caller(), &ca.SignRequest{CSR: csr(t, connect.ServiceID(roots(t, w.Caller()).TrustDomain, "dc1", "web"))})
	if err != nil {
		t.Fatal(err)
	}
	certs, err := ca.ParseCertificates(reply.Leaf.CertPEM)
	if err != nil {
		t.Fatal(err)
	}
	between := x509.NewCertPool()
	for _, c := range certs[1:] {
		between.AddCert(c)
	}
	for _, r := range known {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(r.RootCert))
		if _, err := certs[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("who knows %s: %v", r.Name, err)
		}
	}
	return certs[0]
}

func TestAuthorityInVault(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		w := newWorld(t, connectrpc.Config{Provider: "vault", Settings: map[string]any{
			"address": "http://vault:8200", "token": vaultToken, "root_pki_path": "root", "intermediate_pki_path": "inter",
		}})
		root := roots(t, w.Caller()).Active()
		if root.Name != "Vault CA Primary Cert" || len(root.IntermediateCerts) != 1 {
			t.Fatalf("root %q with %d intermediates", root.Name, len(root.IntermediateCerts))
		}
		between, err := ca.ParseCertificate(root.IntermediateCerts[0])
		if err != nil || root.SigningKeyID != ca.Hex(between.SubjectKeyId) {
			t.Errorf("signing key %s, %v", root.SigningKeyID, err)
		}
		w.leaf(t, root)
		// Another leadership, here or on another server, goes on with it.
		w.authority.Stop()
		if err := w.authority.Initialize(t.Context(), w.Store, w.Apply); err != nil {
			t.Fatal(err)
		}
		w.leaf(t, root)
		if got := roots(t, w.Caller()); len(got.Roots) != 1 {
			t.Errorf("%d roots", len(got.Roots))
		}
	})
}

// Own settings that cannot be applied leave what was there in force, and are applied later.
func TestOwnSettingsAreTriedAgain(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		w := newWorld(t, connectrpc.Config{})
		before := roots(t, w.Caller()).Active()
		w.vault.Revoke(vaultToken)
		other := connectrpc.New(connectrpc.Config{Provider: "vault", Settings: vaultConfig("root", "inter"), Dial: w.dial, Logger: hclog.New(&hclog.LoggerOptions{Output: w.log})})
		defer other.Stop()
		if err := other.Initialize(t.Context(), w.Store, w.Apply); err != nil {
			t.Fatal(err)
		}
		if got := roots(t, w.Caller()).ActiveRootID; got != before.ID || !strings.Contains(w.log.String(), "those before stay in force") {
			t.Errorf("active root %s, was %s; logged: %s", got, before.ID, w.log)
		}
		w.vault.AddToken(vaultToken, 100*time.Hour, false)
		if err := other.Maintain(t.Context(), w.Store, w.Apply); err != nil {
			t.Fatal(err)
		}
		w.leaf(t, before, roots(t, w.Caller()).Active())
		index := w.Index()
		if err := other.Maintain(t.Context(), w.Store, w.Apply); err != nil || w.Index() != index || roots(t, w.Caller()).Active().Name != "Vault CA Primary Cert" {
			t.Errorf("applied again: %v, %d entries", err, w.Index()-index)
		}
	})
}

func TestIntermediateIsRenewedAtHalfOfItsLife(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		config := vaultConfig("root", "inter")
		config["LeafCertTTL"], config["IntermediateCertTTL"] = "2h", "20h"
		w := newWorld(t, connectrpc.Config{Provider: "vault", Settings: config})
		root := roots(t, w.Caller()).Active()
		issuers := map[string]bool{}
		for range 50 {
			if err := w.authority.Maintain(t.Context(), w.Store, w.Apply); err != nil {
				t.Fatal(err)
			}
			leaf := w.leaf(t, root)
			if left := time.Until(leaf.NotAfter); left < 2*time.Hour-time.Second {
				t.Fatalf("a leaf lives for %v", left)
			}
			issuers[string(leaf.AuthorityKeyId)] = true
			time.Sleep(time.Hour)
		}
		if len(issuers) != 5 {
			t.Errorf("%d intermediates in 50 hours, each valid for 20", len(issuers))
		}
		if got := roots(t, w.Caller()); got.ActiveRootID != root.ID || len(got.Roots) != 1 || len(got.Active().IntermediateCerts) != 1 {
			t.Errorf("the root changed: %+v", got)
		}
	})
}

func TestIntermediateNeverOutlivesItsRoot(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		config := vaultConfig("root", "inter")
		config["LeafCertTTL"], config["IntermediateCertTTL"], config["RootCertTTL"] = "2h", "40h", "50h"
		w := newWorld(t, connectrpc.Config{Provider: "vault", Settings: config})
		root := roots(t, w.Caller()).Active()
		issuers := map[string]bool{}
		for time.Until(root.NotAfter) > time.Hour {
			if err := w.authority.Maintain(t.Context(), w.Store, w.Apply); err != nil {
				t.Fatal(err)
			}
			leaf := w.leaf(t, root)
			if leaf.NotAfter.After(root.NotAfter) {
				t.Fatalf("a leaf is valid until %v, its root until %v", leaf.NotAfter, root.NotAfter)
			}
			issuers[string(leaf.AuthorityKeyId)] = true
			time.Sleep(time.Hour)
		}
		if len(issuers) != 2 || !strings.Contains(w.log.String(), "the CA root expires, and needs to be replaced") {
			t.Errorf("%d intermediates in the life of a root of 50 hours", len(issuers))
		}
	})
}

func TestTokenIsRenewedWhileInUse(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		w := newWorld(t, connectrpc.Config{})
		w.vault.AddToken("short-lived", 10*time.Minute, true)
		config := vaultConfig("root", "inter")
		config["Token"] = "short-lived"
		if err := w.set(t, "vault", config, false); err != nil {
			t.Fatal(err)
		}
		w.leaf(t)
		time.Sleep(5 * time.Hour)
		w.leaf(t)
		w.authority.Stop()
		time.Sleep(time.Hour)
		if err := w.authority.Initialize(t.Context(), w.Store, w.Apply); err != nil {
			t.Fatal(err)
		}
		_, err := ca.SignCall.Call(t.Context(), w.Caller(), &ca.SignRequest{CSR: csr(t, connect.ServiceID(roots(t, w.Caller()).TrustDomain, "dc1", "web"))})
		if err == nil || !strings.Contains(err.Error(), "403") || strings.Contains(err.Error(), "short-lived") {
			t.Errorf("with a token that nobody renewed: %v", err)
		}
	})
}

func TestLoggingInAgainWhenATokenIsGone(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		w := newWorld(t, connectrpc.Config{})
		count := 0
		w.vault.Login = func(path string, body map[string]any) string {
			if path != "approle/login" || body["role_id"] != "mesh" || body["secret_id"] != "hidden-secret-id" {
				return ""
			}
			count++
			return fmt.Sprint("login-", count)
		}
		for i := range 20 {
			w.vault.AddToken(fmt.Sprint("login-", i+1), time.Hour, i%2 == 0)
		}
		config := vaultConfig("root", "inter")
		delete(config, "Token")
		config["AuthMethod"] = map[string]any{"Type": "approle", "Params": map[string]any{"role_id": "mesh", "secret_id": "hidden-secret-id"}}
		if err := w.set(t, "vault", config, false); err != nil {
			t.Fatal(err)
		}
		w.leaf(t)
		first := count
		for i := range 20 {
			w.vault.Revoke(fmt.Sprint("login-", i+1))
			w.vault.AddToken(fmt.Sprint("login-", count+1), time.Hour, false)
		}
		w.leaf(t)
		if count != first+1 {
			t.Errorf("logged in %d times, then %d", first, count)
		}
		config["AuthMethod"] = map[string]any{"Type": "approle", "Params": map[string]any{"role_id": "mesh", "secret_id": "wrong-secret-id"}}
		err := w.set(t, "vault", config, false)
		if err == nil || !strings.Contains(err.Error(), "log in to Vault by approle: ") || strings.Contains(err.Error(), "wrong-secret-id") {
			t.Errorf("with a wrong secret: %v", err)
		}
	})
}

func TestRotationFromProviderToProvider(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		w := newWorld(t, connectrpc.Config{})
		builtIn := roots(t, w.Caller()).Active()
		if err := w.set(t, "vault", vaultConfig("root", "inter"), false); err != nil {
			t.Fatal(err)
		}
		inVault := roots(t, w.Caller()).Active()
		if inVault.ID == builtIn.ID || len(inVault.IntermediateCerts) != 2 || !ca.SameAuthority(inVault.IntermediateCerts[0], inVault.RootCert) {
			t.Fatalf("root %s with %d intermediates, the first of which should be cross-signed", inVault.Name, len(inVault.IntermediateCerts))
		}
		w.leaf(t, builtIn, inVault)
		// Lifetimes change nothing else.
		config := vaultConfig("root", "inter")
		config["LeafCertTTL"] = "5h"
		if err := w.set(t, "vault", config, false); err != nil {
			t.Fatal(err)
		}
		if got := roots(t, w.Caller()); got.ActiveRootID != inVault.ID || len(got.Active().IntermediateCerts) != 2 {
			t.Error("another lifetime made another root")
		}
		if cert := w.leaf(t, builtIn, inVault); time.Until(cert.NotAfter) > 5*time.Hour {
			t.Errorf("valid until %v", cert.NotAfter)
		}
		// Another engine's root.
		if err := w.set(t, "vault", vaultConfig("root2", "inter2"), false); err != nil {
			t.Fatal(err)
		}
		second := roots(t, w.Caller()).Active()
		w.leaf(t, inVault, second)
		// To AWS, which Vault signs for.
		if err := w.set(t, "aws-pca", map[string]any{"DeleteOnExit": true}, false); err != nil {
			t.Fatal(err)
		}
		atAWS := roots(t, w.Caller()).Active()
		w.leaf(t, second, atAWS)
		if got := w.vault.Mounts(); !slices.Equal(got, []string{"root", "root2"}) {
			t.Errorf("engines left in Vault: %v", got)
		}
		conf, err := ca.ConfigCall.Call(t.Context(), w.Caller(), &ca.ConfigRequest{})
		if err != nil || !strings.HasPrefix(conf.Config.State["CA_ARN"], "arn:aws:acm-pca:"+awstest.Region+":") {
			t.Errorf("state %v, %v", conf.Config.State, err)
		}
		// AWS signs for nobody: told before anything is made.
		index := w.Index()
		err = w.set(t, "consul", map[string]any{}, false)
		if err == nil || !strings.HasPrefix(err.Error(), "The current CA Provider does not support cross-signing. ") || w.Index() != index {
			t.Errorf("from AWS without force: %v, %d entries written", err, w.Index()-index)
		}
		if err := w.set(t, "consul", map[string]any{}, true); err != nil {
			t.Fatal(err)
		}
		w.leaf(t, roots(t, w.Caller()).Active())
		for arn, status := range w.aws.Authorities() {
			if status != "DELETED" {
				t.Errorf("%s is %s", arn, status)
			}
		}
		// What gave access to the old ones is forgotten.
		_, all := w.Store.View().CARoots()
		for _, r := range all {
			kept := w.Store.View().CAProvider(r.ID)
			if !r.Active && kept.Provider != "" && (!kept.CleanedUp || kept.Config != nil) {
				t.Errorf("%s is not cleaned up", r.Name)
			}
		}
	})
}

func TestCleaningUpIsTriedAgain(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		w := newWorld(t, connectrpc.Config{Provider: "vault", Settings: vaultConfig("root", "inter")})
		w.vault.AddToken("other", 1000*time.Hour, false)
		if err := w.set(t, "consul", map[string]any{}, true); err != nil {
			t.Fatal(err)
		}
		if got := w.vault.Mounts(); !slices.Equal(got, []string{"root"}) {
			t.Fatalf("mounted: %v", got)
		}
		if err := w.set(t, "vault", vaultConfig("root", "inter"), false); err != nil {
			t.Fatal(err)
		}
		w.vault.Revoke(vaultToken)
		if err := w.set(t, "consul", map[string]any{}, true); err != nil {
			t.Fatalf("what Vault does not do any more stops nobody: %v", err)
		}
		if got := w.vault.Mounts(); len(got) != 2 {
			t.Fatalf("mounted: %v", got)
		}
		w.vault.AddToken(vaultToken, time.Hour, false)
		if err := w.authority.Maintain(t.Context(), w.Store, w.Apply); err != nil {
			t.Fatal(err)
		}
		if got := w.vault.Mounts(); !slices.Equal(got, []string{"root"}) {
			t.Errorf("mounted: %v", got)
		}
	})
}

// An authority that does not answer holds nothing up for long, and what it signed stays good.
func TestVaultIsAway(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		w := newWorld(t, connectrpc.Config{Provider: "vault", Settings: vaultConfig("root", "inter")})
		before := roots(t, w.Caller()).Active()
		w.leaf(t, before)
		address, _ := w.hosts.get("vault:8200")
		w.hosts.set("vault:8200", "")
		w.authority.Stop() // and with it the connections
		if err := w.authority.Initialize(t.Context(), w.Store, w.Apply); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err := ca.SignCall.Call(t.Context(), w.Caller(), &ca.SignRequest{CSR: csr(t, connect.ServiceID(roots(t, w.Caller()).TrustDomain, "dc1", "web"))})
		if err == nil || time.Since(start) > 11*time.Second {
			t.Errorf("signed without Vault after %v: %v", time.Since(start), err)
		}
		start, index := time.Now(), w.Index()
		if err := w.set(t, "consul", map[string]any{}, false); err == nil || time.Since(start) > 31*time.Second || w.Index() != index {
			t.Errorf("cross-signed without Vault after %v: %v", time.Since(start), err)
		}
		w.hosts.set("vault:8200", address)
		w.leaf(t, before)
		w.hosts.set("vault:8200", "")
		w.authority.Stop()
		if err := w.authority.Initialize(t.Context(), w.Store, w.Apply); err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		if err := w.set(t, "consul", map[string]any{}, true); err != nil || time.Since(start) > 11*time.Second {
			t.Errorf("without Vault, by force, after %v: %v", time.Since(start), err)
		}
		w.leaf(t, roots(t, w.Caller()).Active())
	})
}

func TestRefusedConfigurationsChangeNothing(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		w := newWorld(t, connectrpc.Config{})
		with := func(key string, value any) map[string]any {
			c := vaultConfig("root", "inter")
			c[key] = value
			return c
		}
		method := func(kind string, params map[string]any) map[string]any {
			c := vaultConfig("root", "inter")
			delete(c, "Token")
			c["AuthMethod"] = map[string]any{"Type": kind, "Params": params}
			return c
		}
		tests := []struct {
			name, provider string
			config         map[string]any
			want           string
		}{
			{"unknown", "acme", nil, `could not initialize provider: unknown CA provider "acme"`},
			{"a program that is not there", "plugin:x", nil, `could not initialize provider: unknown CA provider "plugin:x": its program must be named in every server's own configuration (connect.ca_config.plugin)`},
			{"a program named over the network", "plugin:x", map[string]any{"plugin": map[string]any{"Path": "/bin/sh"}}, "error configuring provider: the program of a CA plugin can be named in the servers' own configuration only"},
			{"a program with another provider", "consul", map[string]any{"PLUGIN": map[string]any{"Path": "/bin/sh"}}, "error configuring provider: the program of a CA plugin can be named in the servers' own configuration only"},
			{"no token", "vault", map[string]any{"RootPKIPath": "r", "IntermediatePKIPath": "i"}, "error configuring provider: must provide a Vault token or configure a Vault auth method"},
			{"no intermediate path", "vault", map[string]any{"Token": "t", "RootPKIPath": "r"}, "error configuring provider: must provide a valid path for the intermediate PKI backend"},
			{"no root path", "vault", map[string]any{"Token": "t", "IntermediatePKIPath": "i"}, "error configuring provider: must provide a valid path to a root PKI backend"},
			{"a path that leaves its place", "vault", with("RootPKIPath", "../sys/raw"), `error configuring provider: "../sys/raw" is not the path of a PKI backend`},
			{"a path with a query", "vault", with("IntermediatePKIPath", "a?b"), `error configuring provider: "a?b" is not the path of a PKI backend`},
			{"an address with a password", "vault", with("Address", "http://u:p@vault"), "error configuring provider: the address of Vault must be of the form"},
			{"an address of another kind", "vault", with("Address", "unix:///run/x"), "error configuring provider: the address of Vault must be of the form"},
			{"a wrong token", "vault", with("Token", "wrong-secret"), "error configuring provider: read the certificate at root: Vault answers with status 403: permission denied for token ***"},
			{"undecodable", "vault", with("TLSSkipVerify", map[string]any{}), "error configuring provider: error decoding config: 'TLSSkipVerify' expected type 'bool'"},
			{"a method that needs a library", "vault", method("kerberos", nil), `error configuring provider: the Vault auth method "kerberos" is not supported`},
			{"a method that does not exist", "vault", method("smoke", nil), `error configuring provider: auth method "smoke" is not supported`},
			{"a file of the server", "vault", with("CAFile", "/etc/shadow"), "error configuring provider: CAFile uses what belongs to the server's machine"},
			{"a key of the server", "vault", with("KeyFile", "/etc/ssl/private/key.pem"), "error configuring provider: KeyFile uses what belongs to the server's machine"},
			{"a secret of the server", "vault", method("approle", map[string]any{"role_id": "r", "secret_id_file_path": "/etc/shadow"}), "error configuring provider: AuthMethod of type approle uses what belongs to the server's machine"},
			{"the server's account", "vault", method("kubernetes", map[string]any{"role": "r"}), "error configuring provider: AuthMethod of type kubernetes uses what belongs to the server's machine"},
			{"the server's identity in a cloud", "vault", method("aws", map[string]any{"role": "r"}), "error configuring provider: AuthMethod of type aws uses what belongs to the server's machine"},
			{"short leaves at AWS", "aws-pca", map[string]any{"LeafCertTTL": "23h"}, "error configuring provider: AWS PCA doesn't support certificates that are valid for less than 24 hours, LeafTTL of 23h0m0s configured"},
			{"no ARN", "aws-pca", map[string]any{"ExistingARN": "arn:aws:s3:::bucket"}, `error configuring provider: "arn:aws:s3:::bucket" is not the ARN of an authority of AWS Private CA`},
			{"an ARN of nothing", "aws-pca", map[string]any{"ExistingARN": "arn:aws:acm-pca:" + awstest.Region + ":1:certificate-authority/x"}, "error configuring provider: AWS Private CA answers with status 400: ResourceNotFoundException"},
			{"a key that AWS has not", "aws-pca", map[string]any{"PrivateKeyType": "ec", "PrivateKeyBits": 224}, `error configuring provider: AWS PCA does not support keys of type "ec" with 224 bits`},
		}
		index := w.Index()
		for _, tt := range tests {
			err := w.set(t, tt.provider, tt.config, false)
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) || strings.Contains(err.Error(), "wrong-secret") {
				t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
			}
		}
		if w.Index() != index || len(w.vault.Mounts()) != 0 || len(w.aws.Authorities()) != 0 {
			t.Errorf("%d entries written, engines %v, authorities %v", w.Index()-index, w.vault.Mounts(), w.aws.Authorities())
		}
		w.leaf(t, roots(t, w.Caller()).Active())
	})
}

// What a server's own configuration says about its machine may be repeated over the network, with other lifetimes.
func TestOwnConfigurationMayUseTheMachine(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		dir := t.TempDir()
		own := vaultConfig("root", "inter")
		delete(own, "Token")
		own["AuthMethod"] = map[string]any{"Type": "jwt", "Params": map[string]any{"path": writeFile(t, dir, "jwt", "the-jwt")}}
		w := newWorld(t, connectrpc.Config{})
		w.vault.AddToken("by-jwt", 100*time.Hour, true)
		w.vault.Login = func(_ string, body map[string]any) string {
			if body["jwt"] == "the-jwt" {
				return "by-jwt"
			}
			return ""
		}
		if err := w.set(t, "vault", own, false); err == nil {
			t.Error("a file was named over the network")
		}
		// The same, by a server whose own configuration says it.
		v := newWorldWith(t, w, connectrpc.Config{Provider: "vault", Settings: own})
		again := vaultConfig("root", "inter")
		delete(again, "Token")
		again["AuthMethod"], again["LeafCertTTL"] = own["AuthMethod"], "3h"
		if err := v.set(t, "vault", again, false); err != nil {
			t.Errorf("repeated with another lifetime: %v", err)
		}
		again["Address"] = "http://elsewhere:8200"
		if err := v.set(t, "vault", again, false); err == nil || !strings.Contains(err.Error(), "belongs to the server's machine") {
			t.Errorf("sent elsewhere: %v", err)
		}
	})
}

// Class 1 of spec/threats.md: a request with other names than the token may write, or a provider that signs others.
func TestThreat1RequestsWithOtherNames(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		w := newWorld(t, connectrpc.Config{})
		w.Resolve = func(token string) (*acl.Authorizer, error) { return acl.New(only(token), "acc"), nil }
		domain := roots(t, w.Caller()).TrustDomain
		web, db := connect.ServiceID(domain, "dc1", "web").URL(), connect.ServiceID(domain, "dc1", "db").URL()
		key, err := ca.GenerateKey(rand.Reader, "ec", 256)
		if err != nil {
			t.Fatal(err)
		}
		weak, err := ca.GenerateKey(rand.Reader, "ec", 224)
		if err != nil {
			t.Fatal(err)
		}
		request := func(c x509.CertificateRequest) string {
			der, err := x509.CreateCertificateRequest(rand.Reader, &c, key)
			if err != nil {
				t.Fatal(err)
			}
			return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
		}
		weakDER, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{web}}, weak)
		if err != nil {
			t.Fatal(err)
		}
		names := func(values ...[]byte) pkix.Extension { // alternative names, tag and bytes each
			content := slices.Concat(values...)
			return pkix.Extension{Id: []int{2, 5, 29, 17}, Value: append([]byte{0x30, byte(len(content))}, content...)}
		}
		short := func(tag byte, text string) []byte { return append([]byte{0x80 | tag, byte(len(text))}, text...) }
		tests := []struct {
			name, csr string
			status    int
		}{
			{"two names", request(x509.CertificateRequest{URIs: []*url.URL{web, db}}), 400},
			{"the same name twice", request(x509.CertificateRequest{URIs: []*url.URL{web, web}}), 400},
			{"another's name", request(x509.CertificateRequest{URIs: []*url.URL{db}}), 403},
			{"another name beside", request(x509.CertificateRequest{URIs: []*url.URL{web}, DNSNames: []string{"db.service.consul"}}), 400},
			{"an address beside", request(x509.CertificateRequest{URIs: []*url.URL{web}, IPAddresses: []net.IP{{10, 0, 0, 1}}}), 400},
			{"a name of a kind that nobody reads", request(x509.CertificateRequest{ExtraExtensions: []pkix.Extension{names(short(6, "spiffe://x"), []byte{0x88, 3, 0x2a, 3, 4})}}), 400},
			{"a name with a NUL", request(x509.CertificateRequest{ExtraExtensions: []pkix.Extension{names(short(6, "spiffe://x\x00y"))}}), 400},
			{"an authority", request(x509.CertificateRequest{URIs: []*url.URL{connect.CAID(domain).URL()}}), 400},
			{"the CA bit", request(x509.CertificateRequest{URIs: []*url.URL{web}, ExtraExtensions: []pkix.Extension{
				{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}},
			}}), 400},
			{"the use of an authority", request(x509.CertificateRequest{URIs: []*url.URL{web}, ExtraExtensions: []pkix.Extension{
				{Id: []int{2, 5, 29, 15}, Critical: true, Value: []byte{0x03, 0x02, 0x02, 0x04}},
			}}), 400},
			{"another trust domain", request(x509.CertificateRequest{URIs: []*url.URL{connect.ServiceID("x.consul", "dc1", "web").URL()}}), 400},
			{"the trust domain as a prefix", request(x509.CertificateRequest{URIs: []*url.URL{connect.ServiceID(domain+".x", "dc1", "web").URL()}}), 400},
			{"a weak key", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: weakDER})), 400},
			{"huge", strings.Repeat("A", 1<<20), 400},
			{"malformed", "-----BEGIN CERTIFICATE REQUEST-----\nMIIB\n-----END CERTIFICATE REQUEST-----\n", 400},
			{"empty", "", 400},
		}
		index := w.Index()
		for _, tt := range tests {
			_, err := ca.SignCall.Call(t.Context(), w.Caller(), &ca.SignRequest{Target: read.Target{Token: "web"}, CSR: tt.csr})
			if err == nil || wireerr.Status(err) != tt.status || len(err.Error()) > 1000 {
				t.Errorf("%s: got %v, want status %d", tt.name, err, tt.status)
			}
		}
		if w.Index() != index {
			t.Errorf("%d entries written", w.Index()-index)
		}
	})
	testkit.Bubble(t, func(t *testing.T) {
		w := newWorld(t, connectrpc.Config{Provider: "vault", Settings: vaultConfig("root", "inter")})
		domain := roots(t, w.Caller()).TrustDomain
		web := connect.ServiceID(domain, "dc1", "web")
		hostile := map[string]func(*x509.Certificate){
			"another's name":       func(c *x509.Certificate) { c.URIs = []*url.URL{connect.ServiceID(domain, "dc1", "db").URL()} },
			"one name more":        func(c *x509.Certificate) { c.URIs = append(c.URIs, connect.ServiceID(domain, "dc1", "db").URL()) },
			"a DNS name":           func(c *x509.Certificate) { c.DNSNames = []string{"db"} },
			"no name":              func(c *x509.Certificate) { c.URIs = nil },
			"a subject":            func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "db"} },
			"an authority":         func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, c.KeyUsage|x509.KeyUsageCertSign },
			"a life without end":   func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(100 * time.Hour) },
			"not for clients":      func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] },
			"letter case":          func(c *x509.Certificate) { c.URIs[0].Path = strings.ToUpper(c.URIs[0].Path) },
			"another trust domain": func(c *x509.Certificate) { c.URIs[0].Host = "x.consul" },
		}
		for name, tamper := range hostile {
			w.vault.Tamper = tamper
			_, err := ca.SignCall.Call(t.Context(), w.Caller(), &ca.SignRequest{CSR: csr(t, web)})
			if err == nil || !strings.Contains(err.Error(), "the CA provider signed something else than it was asked for") {
				t.Errorf("%s: got %v", name, err)
			}
		}
		w.vault.Tamper = nil
		w.leaf(t, roots(t, w.Caller()).Active())
	})
}

// Class 4 of spec/threats.md: no answer and no line of the log has a key, or what gives access to one, whatever the
// provider is.
func TestThreat4KeysAndTokensAreInNoAnswer(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		w := newWorld(t, connectrpc.Config{})
		login := vaultConfig("root", "inter")
		delete(login, "Token")
		login["AuthMethod"] = map[string]any{"Type": "userpass", "Params": map[string]any{"username": "mesh", "password": "hidden-password"}}
		w.vault.Login = func(string, map[string]any) string { return vaultToken }
		secrets := []string{"PRIVATE KEY", vaultToken, "hidden-password", "aws-secret-key"}
		var answers []any
		look := func(err error) {
			t.Helper()
			answers = append(answers, err)
			conf, err := ca.ConfigCall.Call(t.Context(), w.Caller(), &ca.ConfigRequest{})
			answers = append(answers, conf, err, roots(t, w.Caller()))
			leaf, err := ca.SignCall.Call(t.Context(), w.Caller(), &ca.SignRequest{CSR: csr(t, connect.ServiceID(roots(t, w.Caller()).TrustDomain, "dc1", "web"))})
			answers = append(answers, leaf, err)
			for _, r := range roots(t, w.Caller()).Roots {
				if kept := w.Store.View().CAProvider(r.ID); kept.PrivateKey != "" {
					secrets = append(secrets, strings.Split(kept.PrivateKey, "\n")[1])
				}
			}
		}
		look(nil)
		look(w.set(t, "vault", vaultConfig("root", "inter"), false))
		look(w.set(t, "vault", login, false))
		w.vault.Login = nil
		login["LeafCertTTL"] = "9h"
		look(w.set(t, "vault", login, false))
		look(w.set(t, "aws-pca", map[string]any{}, false))
		look(w.set(t, "consul", map[string]any{"PrivateKeyBits": 384}, true))
		for i, a := range answers {
			asJSON, _ := json.Marshal(a)
			asCBOR, _ := rpc.Marshal(a)
			for _, text := range []string{string(asJSON), string(asCBOR), fmt.Sprint(a)} {
				for _, secret := range secrets {
					if strings.Contains(text, secret) {
						t.Errorf("answer %d has %q", i, secret)
					}
				}
			}
		}
		for _, secret := range secrets {
			if strings.Contains(w.log.String(), secret) {
				t.Errorf("the log has %q", secret)
			}
		}
		if w.log.String() == "" {
			t.Error("nothing was logged")
		}
	})
}

func TestSignIntermediate(t *testing.T) {
	s, _ := newServer(t, connectrpc.Config{})
	s.Resolve = func(token string) (*acl.Authorizer, error) {
		if token == "operator" {
			return acl.Everything(), nil
		}
		return acl.New(only(token), "acc"), nil
	}
	r := roots(t, s.Caller())
	key, err := ca.GenerateKey(rand.Reader, "ec", 256)
	if err != nil {
		t.Fatal(err)
	}
	request := func(id connect.ID) string {
		text, err := ca.NewCSR(id, key, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	good := request(connect.CAID(r.TrustDomain))
	tests := []struct {
		name, token, csr, datacenter string
		status                       int
	}{
		{"without the right", "web", good, "dc2", 403},
		{"a leaf", "operator", request(connect.ServiceID(r.TrustDomain, "dc2", "web")), "dc2", 400},
		{"another trust domain", "operator", request(connect.CAID("x.consul")), "dc2", 400},
		{"rubbish", "operator", "x", "dc2", 400},
		{"for this datacenter", "operator", good, "dc1", 400},
		{"for no datacenter", "operator", good, "", 400},
		{"a name that is none", "operator", good, "a/../b\n", 400},
	}
	for _, tt := range tests {
		_, err := ca.SignIntermediateCall.Call(t.Context(), s.Caller(), &ca.SignIntermediateRequest{Target: read.Target{Token: tt.token}, CSR: tt.csr, ForDatacenter: tt.datacenter})
		if err == nil || wireerr.Status(err) != tt.status {
			t.Errorf("%s: got %v, want status %d", tt.name, err, tt.status)
		}
	}
	reply, err := ca.SignIntermediateCall.Call(t.Context(), s.Caller(), &ca.SignIntermediateRequest{Target: read.Target{Token: "operator"}, CSR: good, ForDatacenter: "dc2"})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.ParseCertificate(reply.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if !cert.IsCA || !cert.MaxPathLenZero || reply.RootID != r.ActiveRootID || time.Until(cert.NotAfter) > 8760*time.Hour || cert.URIs[0].String() != "spiffe://"+r.TrustDomain {
		t.Errorf("signed %v for %v until %v", cert.IsCA, cert.URIs, cert.NotAfter)
	}
}
