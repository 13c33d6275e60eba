package config_test

import (
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/command/agent/config"
)

// Join tokens hand out the key of the authority: only where nobody can ask without being known.
func TestJoinTokensNeedASecureServer(t *testing.T) {
	const whole = `server = true
acl { enabled = true }
tls { internal_rpc { ca_file = "/ca" cert_file = "/c" key_file = "/c" verify_incoming = true verify_server_hostname = true } }
join_tokens { ca_key_file = "/k" }`
	s, _, err := config.Load(dev(whole))
	if err != nil || s.JoinTokens.CAKeyFile != "/k" {
		t.Fatalf("%v, %+v", err, s)
	}
	for _, tt := range []struct{ from, to, want string }{
		{"server = true", "server = false", "only be used on a server"},
		{"enabled = true", "enabled = false", "needs acl.enabled"},
		{`ca_file = "/ca"`, "", "ca_file"},
		{`key_file = "/c" `, `key_file = "/d" `, "one file as both"},
		{"verify_incoming = true", "", "verify_incoming"},
		{"verify_server_hostname = true", "", "verify_server_hostname"},
	} {
		text := strings.Replace(whole, tt.from, tt.to, 1)
		if _, _, err := config.Load(dev(text)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("with %q for %q: %v, want %q", tt.to, tt.from, err, tt.want)
		}
	}
}
