package agent

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/client/newcomer"
	"github.com/sarnmesh/sarn/command/agent/config"
)

// More secrets that an agent is configured with.
const (
	replicationSecret  = "bbbbbbbb-166e-7d80-08ad-aee76e7ddf19"
	registrationSecret = "cccccccc-166e-7d80-08ad-aee76e7ddf19"
	recoverySecret     = "dddddddd-166e-7d80-08ad-aee76e7ddf19"
	metricsSecret      = "eeeeeeee-166e-7d80-08ad-aee76e7ddf19"
)

const moreSecrets = `
acl { enable_token_persistence = true
  tokens { replication = "` + replicationSecret + `"
    config_file_service_registration = "` + registrationSecret + `"
    agent_recovery = "` + recoverySecret + `" } }
ui_config { metrics_proxy { base_url = "http://127.0.0.1:1"
  add_headers = [{ name = "Authorization"
    value = "` + metricsSecret + `" }] } }
service { name = "from-file"
  port = 1
  token = "` + registrationSecret + `"
  check { id = "from-file"
    http = "http://127.0.0.1:1/"
    interval = "1h"
    header { Authorization = ["` + metricsSecret + `"] } } }
telemetry { prometheus_retention_time = "1m" }
`

// secretsOf lists what must not be told, by what it is: keys of every kind, and the secrets of tokens.
func (g *guardedAgent) secretsOf() (keys, tokens map[string]string) {
	g.t.Helper()
	keys, tokens = map[string]string{}, map[string]string{}
	v := g.server.Store().View()
	_, roots := v.CARoots()
	for _, root := range roots {
		p := v.CAProvider(root.ID)
		if p == nil || !strings.Contains(p.PrivateKey, "PRIVATE KEY") {
			g.t.Fatal("the authority has no key")
		}
		keys["the key of the authority"] = strings.Split(p.PrivateKey, "\n")[1]
	}
	_, peerings := v.Peerings()
	for _, p := range peerings {
		if s := v.PeeringSecrets(p.ID); s != nil && len(s.Establishment) > 0 {
			keys["a secret of a peering"] = string(s.Establishment)
			keys["a secret of a peering in base64"] = base64.StdEncoding.EncodeToString(s.Establishment)
			keys["a secret of a peering in hex"] = hex.EncodeToString(s.Establishment)
		}
	}
	keys["the token of metrics"], keys["what servers know of one another"] = metricsSecret, g.server.Secret()
	_, all := v.ACLTokens()
	for _, k := range all {
		if k.AccessorID != acl.AnonymousID {
			tokens["the token "+k.Description+k.AccessorID] = k.SecretID
		}
	}
	tokens["the token of replication"], tokens["the token of registration"], tokens["the token of recovery"] = replicationSecret, registrationSecret, recoverySecret
	tokens["the token of a query"] = unknownSecret
	return keys, tokens
}

// No answer with any token, no line of the log at its most detailed level, no metric, no error and no file of an agent
// tells a key or the secret of another's token (spec/threats.md, class 4). What `sarn debug` saves is made of answers.
func TestThreat04NoKeyAndNoSecretGoesOut(t *testing.T) {
	g := startServer(t, false, moreSecrets)
	f := newFixture(t)
	f.put(g)
	calls := httpCalls(f)
	all := g.token(allBut(aclWrite)) // everything but acl:write
	noKeyring := g.token(allBut([]need{may(acl.ACL, acl.Write, ""), may(acl.Keyring, acl.Read, "")}))
	keys, tokens := g.secretsOf()
	if len(keys) < 5 || len(tokens) < 8 {
		t.Fatalf("only %d keys and %d tokens to look for", len(keys), len(tokens))
	}
	told := func(where, text string, list ...map[string]string) {
		t.Helper()
		for _, of := range list {
			for what, secret := range of {
				if strings.Contains(text, secret) {
					t.Errorf("%s tells %s", where, what)
				}
			}
		}
		if strings.Contains(text, "PRIVATE KEY") && !strings.Contains(where, "/connect/ca/leaf/") {
			t.Errorf("%s has a private key: %.300s", where, text)
		}
	}
	for _, c := range calls {
		method, _, _ := strings.Cut(c.route, " ")
		if c.skip != "" && method != "GET" {
			continue
		}
		for who, secret := range map[string]string{"nobody": "", "unknown": "99999999-2222-3333-4444-555555555555", "everything but acl:write": all, "nor the keyring": noKeyring, "management": managementSecret} {
			if method != "GET" && (who == "management" || secret == all || secret == noKeyring) {
				continue // the fixture is to stay
			}
			w := g.answer(method, c.at(f), secret, c.fill(f, c.body))
			where := fmt.Sprintf("%s %s by %s", method, c.at(f), who)
			text := w.Body.String() + fmt.Sprint(w.Header())
			if strings.HasPrefix(c.target, "/v1/acl/token/self") && secret != "" {
				text = strings.ReplaceAll(text, secret, "") // its own
			}
			told(where, text, keys)
			if who != "management" || !strings.HasPrefix(c.target, "/v1/acl/") && !strings.HasPrefix(c.target, "/v1/query") {
				told(where, text, tokens)
			}
			if !strings.HasPrefix(c.target, "/v1/operator/keyring") || who == "nor the keyring" {
				told(where, text, map[string]string{"the key of gossip": gossipKey})
			}
		}
	}
	// Tokens in every place that they can stand in.
	g.do("GET", "/v1/kv/zqx-key?token="+managementSecret, "", "")
	g.do("GET", "/v1/nope?token="+managementSecret, "", "")
	g.do("GET", "/v1/kv/zqx-key?token="+managementSecret+"%zz", "", "")
	g.do("PUT", "/v1/agent/token/default", managementSecret, `{"Token": "`+f.tokenSecret+`"}`)
	g.do("PUT", "/v1/agent/token/default", managementSecret, `{"Token": ""}`)
	g.do("PUT", "/v1/agent/token/agent", managementSecret, `{"Token": "`+agentSecret+`"`)
	g.do("PUT", "/v1/agent/service/register", managementSecret, `{"Name": "x", "Token": "`+f.tokenSecret+`", "Check": {"HTTP": "http://127.0.0.1:1/", "Interval": "1h", "Header": {"Authorization": ["`+metricsSecret+`"]}}}`)
	g.do("PUT", "/v1/acl/token", managementSecret, `{"SecretID": "`+f.tokenSecret+`"}`)
	g.do("POST", "/v1/acl/login", "", `{"AuthMethod": "zqx-method", "BearerToken": "`+f.tokenSecret+`"}`)
	g.do("POST", "/v1/peering/establish", managementSecret, `{"PeerName": "zqx-newpeer", "PeeringToken": "`+base64.StdEncoding.EncodeToString([]byte(f.tokenSecret))+`"}`)
	for _, path := range []string{"/v1/agent/checks", "/v1/agent/service/x", "/v1/agent/services", "/v1/agent/self", "/v1/catalog/service/x", "/v1/health/checks/x", "/v1/agent/metrics?format=prometheus"} {
		told(path, g.must("GET", path, ""), keys, tokens)
	}
	told("the log", g.log.String(), keys, tokens, map[string]string{"the key of gossip": gossipKey})
	if !strings.Contains(g.log.String(), "[TRACE]") && !strings.Contains(g.log.String(), "[DEBUG]") {
		t.Error("the log is not at its most detailed level")
	}
	owned(t, g.dir)

	// A client keeps what it registered and its own tokens, for its owner alone, and no key of anybody else's.
	c := g.runClient(moreSecrets)
	c.eventually("the client answers", func() bool {
		code, _ := c.do("GET", "/v1/catalog/nodes", managementSecret, "")
		return code == 200
	})
	c.must("PUT", "/v1/agent/service/register", `{"Name": "zqx-here", "Port": 1, "Check": {"TTL": "1h"}}`)
	if code, body := c.do("GET", "/v1/agent/connect/ca/leaf/zqx-here", managementSecret, ""); code != 200 {
		t.Errorf("no certificate: %d %s", code, body)
	}
	delete(tokens, "the token of registration") // its own
	files := 0
	filepath.WalkDir(c.dir, func(path string, d fs.DirEntry, err error) error {
		var data []byte
		if err == nil && !d.IsDir() {
			data, err = os.ReadFile(path)
		}
		if err != nil || d.IsDir() {
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // not gone since
				t.Error(err)
			}
			return nil
		}
		files++
		told("the file "+path, string(data), keys)
		if strings.Contains(string(data), managementSecret) && !strings.Contains(path, "/services/") && !strings.Contains(path, "/checks/") {
			t.Errorf("%s has the token of management", path)
		}
		return nil
	})
	if files < 3 {
		t.Errorf("the client has %d files", files)
	}
	owned(t, c.dir)
	told("the log of the client", c.log.String(), keys, tokens, map[string]string{"the key of gossip": gossipKey})
}

// owned checks that what is in a data folder is for its owner alone.
func owned(t *testing.T, dir string) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone since
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 && path != dir {
			inPrivate := false
			for up := filepath.Dir(path); len(up) > len(dir); up = filepath.Dir(up) {
				if i, err := os.Stat(up); err == nil && i.Mode().Perm()&0o077 == 0 {
					inPrivate = true
				}
			}
			if !inPrivate {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
		}
		return nil
	})
}

// introduceSoon introduces an agent within a minute.
func introduceSoon(t testing.TB, src config.Sources, s *config.Settings, log hclog.Logger) (config.Sources, *config.Settings, *newcomer.Keeper, error) {
	t.Helper()
	soon, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	return introduce(soon, src, s, log)
}

// runClient starts a client agent of the cluster that ends with the test.
func (g *guardedAgent) runClient(settings ...string) *guardedAgent {
	t := g.t
	t.Helper()
	c := &guardedAgent{t: t, log: &logBuffer{}, dir: filepath.Join(t.TempDir(), "data"), tokens: map[string]string{}}
	ports := freePorts(t, 2)
	src := sources(slices.Concat([]string{fmt.Sprintf(`node_name = "client-node"
bind_addr = "127.0.0.1"
data_dir = %q
encrypt = %q
retry_join = ["127.0.0.1:%d"]
retry_interval = "100ms"
ports { serf_lan = %d
 http = %d
 dns = -1
 grpc = -1
 grpc_tls = -1 }
acl { enabled = true
  default_policy = "deny" }
`, c.dir, gossipKey, g.current().Ports.SerfLAN, ports[0], ports[1])}, settings)...)
	src.Dev = false
	s := load(t, src)
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckStart(); err != nil {
		t.Fatal(err)
	}
	log := hclog.NewInterceptLogger(&hclog.LoggerOptions{Name: "agent", Level: hclog.Trace, Output: c.log})
	src, s, given, err := introduceSoon(t, src, s, log)
	if err != nil {
		t.Fatal(err)
	}
	if c.Agent, err = newMember(src, s, log, given); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the client ended with %v", err)
		}
	})
	return c
}
