//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// rootSecret is that of the token that the cluster begins with, rescueSecret the agents' recovery token.
const (
	rootSecret   = "5f0c1c6e-8d5f-4c7e-9a43-0a1b2c3d4e5f"
	rescueSecret = "rescue-me-if-there-is-no-server"
)

// TestAccessControlAcrossAgents runs three servers and two client agents with access control: agents get their tokens
// while they run, a new token works at once everywhere, a deleted one is refused within the TTL, what was known goes on
// while no server runs, and no log has a secret.
func TestAccessControlAcrossAgents(t *testing.T) {
	settings := func(more map[string]any) map[string]any {
		acl := map[string]any{"enabled": true, "default_policy": "deny", "token_ttl": "4s", "tokens": map[string]any{"initial_management": rootSecret, "agent_recovery": rescueSecret}}
		more["acl"] = acl
		return more
	}
	var all, servers []*agent
	var join []string
	for i := range 3 {
		a := newAgent(t, fmt.Sprintf("s%d", i+1), settings(map[string]any{"server": true, "bootstrap_expect": 3, "retry_join": join}))
		join = append(join, a.lan())
		servers = append(servers, a)
	}
	all = append(all, servers...)
	for i := range 2 {
		all = append(all, newAgent(t, fmt.Sprintf("c%d", i+1), settings(map[string]any{"retry_join": join})))
	}
	clients := all[3:]
	for _, a := range all {
		a.run(t)
	}
	for _, a := range all {
		eventually(t, 30*time.Second, a.name+" knows a leader", func() bool { return a.leader() != "" })
	}
	secrets := []string{rootSecret, rescueSecret}
	create := func(at *agent, body string) (accessor, secret string) {
		t.Helper()
		var k struct{ AccessorID, SecretID string }
		if err := json.Unmarshal([]byte(at.must(t, "PUT", "/v1/acl/token?token="+rootSecret, body)), &k); err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, k.SecretID)
		return k.AccessorID, k.SecretID
	}

	// Each agent is told its token by who has only its recovery token.
	for _, a := range all {
		_, secret := create(servers[0], fmt.Sprintf(`{"NodeIdentities":[{"NodeName":%q,"Datacenter":"dc1"}]}`, a.name))
		if out, code := a.cli(t, "acl", "set-agent-token", "-token="+rescueSecret, "agent", secret); code != 0 {
			t.Fatalf("%s: %s", a.name, out)
		}
	}
	eventually(t, 20*time.Second, "every node is registered", func() bool {
		nodes, _ := servers[0].get("/v1/catalog/nodes?token=" + rootSecret).([]any)
		return len(nodes) == len(all)
	})

	t.Run("new tokens work at once", func(t *testing.T) {
		for i := range 10 {
			_, secret := create(all[i%len(all)], `{"ServiceIdentities":[{"ServiceName":"web"}]}`)
			for _, a := range all {
				for _, path := range []string{"/v1/agent/health/service/name/web", "/v1/agent/services", "/v1/acl/token/self", "/v1/catalog/service/web?stale"} {
					sep := "?"
					if strings.Contains(path, "?") {
						sep = "&"
					}
					if code, body, err := a.call("GET", path+sep+"token="+secret, ""); err != nil || code == 403 {
						t.Fatalf("%s %s with token %d: %d %s %v", a.name, path, i, code, body, err)
					}
				}
			}
		}
	})

	accessor, web := create(servers[1], `{"ServiceIdentities":[{"ServiceName":"web"}]}`)
	c := clients[0]
	c.must(t, "PUT", "/v1/agent/service/register?token="+web, `{"Name":"web","Port":80}`)
	if code, body, _ := c.call("PUT", "/v1/agent/service/register?token="+web, `{"Name":"db","Port":80}`); code != 403 {
		t.Errorf("another service: %d %s", code, body)
	}
	c.must(t, "GET", "/v1/agent/connect/ca/leaf/web?token="+web, "")
	if code, body, _ := c.call("GET", "/v1/agent/connect/ca/leaf/web", ""); code != 403 || strings.Contains(body, "PRIVATE") {
		t.Errorf("a certificate without a token: %d %s", code, body)
	}
	eventually(t, 10*time.Second, "the service is in the catalog", func() bool {
		list, _ := servers[2].get("/v1/catalog/service/web?token=" + web).([]any)
		return len(list) == 1
	})

	whole := t // processes end with the test they were started in
	t.Run("without servers", func(t *testing.T) {
		for _, s := range servers {
			s.end(syscall.SIGKILL)
		}
		time.Sleep(5 * time.Second) // the TTL is over
		c.must(t, "GET", "/v1/agent/members?token="+rescueSecret, "")
		c.must(t, "GET", "/v1/agent/service/web?token="+web, "")
		if code, body, _ := c.call("GET", "/v1/agent/service/web?token=11111111-2222-3333-4444-555555555555", ""); code != 403 {
			t.Errorf("an unknown token: %d %s", code, body)
		}
		for _, s := range servers {
			s.run(whole)
		}
		for _, a := range all {
			eventually(t, 30*time.Second, a.name+" knows a leader again", func() bool { return a.leader() != "" })
		}
	})

	t.Run("deleted tokens", func(t *testing.T) {
		eventually(t, 20*time.Second, "the token is good", func() bool { return c.get("/v1/agent/service/web?token="+web) != nil })
		servers[0].must(t, "DELETE", "/v1/acl/token/"+accessor+"?token="+rootSecret, "")
		start := time.Now()
		eventually(t, 15*time.Second, "the token is refused by the other agent", func() bool {
			code, _, _ := c.call("GET", "/v1/agent/service/web?token="+web, "")
			return code == 403
		})
		t.Logf("refused after %v", time.Since(start).Round(time.Millisecond))
	})

	for _, a := range all {
		for i, secret := range secrets {
			if strings.Contains(a.output(), secret) {
				t.Errorf("the log of %s has secret %d", a.name, i)
			}
		}
	}
}
