package initcmd_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/command/initcmd"
	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/connect/intro"
)

// run runs a command of the package.
func run(t *testing.T, in string, args ...string) (out, errs string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	for _, v := range initcmd.Verbs() {
		if v.Path == args[0] {
			cmd, err := v.Factory(t.Context(), verb.Streams{In: strings.NewReader(in), Out: &o, Err: &e})()
			if err != nil {
				t.Fatal(err)
			}
			code = cmd.Run(args[1:])
		}
	}
	return o.String(), e.String(), code
}

func flags(dir string, more ...string) []string {
	return append([]string{"init", "-no-start", "-config-dir", filepath.Join(dir, "etc"), "-data-dir", filepath.Join(dir, "lib"), "-advertise", "127.0.0.1"}, more...)
}

func put(t *testing.T, text string, path ...string) string {
	t.Helper()
	name := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// What init writes is a configuration that protects everything, and that validate accepts.
func TestInitWritesASecureServer(t *testing.T) {
	dir := t.TempDir()
	// The file of a package gives way.
	example := put(t, "# an example\ndata_dir = \"/var/lib/sarn\"\n\nbind_addr = \"127.0.0.1\"\n# server = true\n", dir, "etc", "sarn.hcl")
	out, errs, code := run(t, "", flags(dir, "-node", "s1", "-datacenter", "east")...)
	if code != 0 {
		t.Fatalf("%s%s", out, errs)
	}
	s, _, err := config.Load(config.Sources{Paths: []string{filepath.Join(dir, "etc")}})
	if err != nil {
		t.Fatal(err)
	}
	rpc := s.TLS.InternalRPC
	for what, good := range map[string]bool{
		"server":      s.Server && s.Bootstrap && s.Node.Name == "s1" && s.Node.Datacenter == "east" && s.DataDir == filepath.Join(dir, "lib"),
		"gossip":      len(s.Gossip.Key) == 44 && s.Gossip.VerifyIncoming && s.Gossip.VerifyOutgoing,
		"TLS":         rpc.VerifyIncoming && rpc.VerifyOutgoing && rpc.VerifyServerHostname,
		"ACL":         s.ACL.Enabled && s.ACL.DefaultPolicy == "deny" && len(s.ACL.Tokens.InitialManagement) == 36,
		"auto":        s.AutoEncrypt.AllowTLS && s.JoinTokens.CAKeyFile != "",
		"API":         len(s.Addresses.HTTP) == 1 && s.Addresses.HTTP[0].Address == "127.0.0.1:8500" && len(s.Addresses.HTTPS) == 1 && s.Addresses.HTTPS[0].Address == "127.0.0.1:8501",
		"sidecars":    len(s.Addresses.GRPC) == 1 && s.Addresses.GRPC[0].Address == "127.0.0.1:8502" && len(s.Addresses.GRPCTLS) == 1 && s.Addresses.GRPCTLS[0].Address == "127.0.0.1:8503",
		"out":         strings.Contains(out, "sarn join-token -server") && !strings.Contains(out, s.ACL.Tokens.InitialManagement),
		"authority":   pairs(rpc.CAFile, s.JoinTokens.CAKeyFile),
		"the example": exists(example+".example") && !exists(example),
	} {
		if !good {
			t.Errorf("%s: %+v", what, s)
		}
	}
	for name, mode := range map[string]os.FileMode{"etc/init.hcl": 0o600, "lib/operator.token": 0o600, "lib/tls/ca-key.pem": 0o600, "lib": 0o700, "lib/tls": 0o700} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	// A second time nothing changes.
	before, _ := os.ReadFile(filepath.Join(dir, "etc/init.hcl"))
	if _, errs, code := run(t, "", flags(dir)...); code != 1 || !strings.Contains(errs, "There is a configuration already") {
		t.Errorf("%d: %s", code, errs)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, "etc/init.hcl")); !bytes.Equal(before, after) {
		t.Error("the configuration was changed")
	}
}

func pairs(cert, key string) bool {
	_, err := tls.LoadX509KeyPair(cert, key)
	return err == nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestInitRefuses(t *testing.T) {
	token := (&intro.JoinToken{Datacenter: "dc1", Domain: "consul", Addresses: []string{"127.0.0.1:1"}}).Text()
	for what, tt := range map[string]struct {
		prepare func(t *testing.T, dir string)
		in      string
		args    []string
		want    string
	}{
		"a configuration":     {prepare: func(t *testing.T, dir string) { put(t, "server = true", dir, "etc", "a.hcl") }, want: "There is a configuration already"},
		"JSON":                {prepare: func(t *testing.T, dir string) { put(t, "{}", dir, "etc", "a.json") }, want: "There is a configuration already"},
		"data":                {prepare: func(t *testing.T, dir string) { put(t, "x", dir, "lib", "node-id") }, want: "There is data of an agent already"},
		"a node name":         {args: []string{"-node", "a/b"}, want: "invalid node name"},
		"a datacenter":        {args: []string{"-datacenter", `x"y`}, want: "not the name of a datacenter"},
		"an address":          {args: []string{"-advertise", "0.0.0.0"}, want: "not the address of one machine"},
		"a folder":            {args: []string{"-data-dir", `/tmp/a"b`}, want: "not fit"},
		"no token":            {args: []string{"-join", "sarn-join-AAAA"}, want: "not a join token"},
		"an empty token":      {args: []string{"-join", "-"}, want: "no token on standard input"},
		"servers that are up": {in: token + "\n", args: []string{"-join", "-"}, want: "connection refused"},
		"arguments":           {args: []string{"more"}, want: "Too many arguments"},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			if tt.prepare != nil {
				tt.prepare(t, dir)
			}
			out, errs, code := run(t, tt.in, flags(dir, append([]string{"-node", "n"}, tt.args...)...)...)
			if code != 1 || !strings.Contains(errs, tt.want) {
				t.Errorf("%d: %s%s; want %q", code, out, errs, tt.want)
			}
			if strings.Contains(errs, strings.TrimPrefix(token, "sarn-join-")) {
				t.Errorf("the error shows the token: %s", errs)
			}
			for _, name := range []string{"etc/init.hcl", "lib/operator.token", "lib/tls"} {
				if exists(filepath.Join(dir, name)) {
					t.Errorf("%s was written", name)
				}
			}
		})
	}
}

// What failed, or was killed, does not stand in the way of the next try.
func TestInitAfterOneThatFailed(t *testing.T) {
	dir := t.TempDir()
	token := (&intro.JoinToken{Datacenter: "dc1", Domain: "consul", Addresses: []string{"127.0.0.1:1"}}).Text()
	for range 2 {
		if _, errs, code := run(t, "", flags(dir, "-node", "n", "-join", token)...); code != 1 || !strings.Contains(errs, "connection refused") {
			t.Fatalf("%d: %s", code, errs)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Fatalf("it has left %v", left)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "lib", "tls"), 0o700); err != nil { // as one that was killed leaves
		t.Fatal(err)
	}
	if out, errs, code := run(t, "", flags(dir, "-node", "n")...); code != 0 {
		t.Fatalf("%d: %s%s", code, out, errs)
	}
	if _, errs, code := run(t, "", flags(dir, "-node", "n", "-config-dir", filepath.Join(dir, "other"))...); code != 1 || !strings.Contains(errs, filepath.Join("lib", "operator.token")) {
		t.Errorf("a second time: %d: %s", code, errs)
	}
}

func TestJoinToken(t *testing.T) {
	var body map[string]any
	var status int
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != "PUT" || r.URL.Path != "/v1/operator/join-token" || r.Header.Get("X-Consul-Token") != "secret" {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		}
		body = nil
		json.NewDecoder(r.Body).Decode(&body)
		if status != 0 {
			http.Error(w, "Permission denied", status)
			return
		}
		w.Write([]byte(`{"Token": "sarn-join-x", "Server": true, "ExpiresAt": "2030-01-02T03:04:05Z"}`))
	}))
	defer api.Close()
	args := []string{"join-token", "-http-addr", api.URL, "-token", "secret"}
	out, errs, code := run(t, "", append(args, "-server", "-ttl", "1m")...)
	if code != 0 || out != "sarn init -join sarn-join-x\n" || !strings.Contains(errs, "as a server") || !strings.Contains(errs, "2030-01-02T03:04:05Z") || body["Server"] != true || body["TTL"] != "1m0s" {
		t.Errorf("%d: %s%s, asked %v", code, out, errs, body)
	}
	out, errs, code = run(t, "", append(args, "-format", "json")...)
	if code != 0 || errs != "" || !json.Valid([]byte(out)) || !strings.Contains(out, `"Token": "sarn-join-x"`) || body["Server"] != false || body["TTL"] != "10m0s" {
		t.Errorf("%d: %s%s, asked %v", code, out, errs, body)
	}
	status = 403
	if _, errs, code = run(t, "", args...); code != 1 || !strings.Contains(errs, "Permission denied") {
		t.Errorf("%d: %s", code, errs)
	}
	if _, errs, code = run(t, "", append(args, "-server", "-client")...); code != 1 || !strings.Contains(errs, "only one") {
		t.Errorf("%d: %s", code, errs)
	}
}
