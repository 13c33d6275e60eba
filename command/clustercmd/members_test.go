package clustercmd_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/command/clustercmd"
	"github.com/sarnmesh/sarn/command/verb"
)

// Nothing is printed when no member fits, unless that is for want of a token.
func TestMembersThatMayNotBeSeen(t *testing.T) {
	const one = `[{"Name": "n1", "Addr": "10.0.0.1", "Port": 8301, "Status": 1, "Tags": {"role": "node"}}]`
	for _, tt := range []struct {
		name, policy, list string
		args               []string
		hint               bool
	}{
		{name: "none without access control", policy: "allow", list: "[]"},
		{name: "none with it", policy: "deny", list: "[]", hint: true},
		{name: "a filter leaves none", policy: "deny", list: "[]", args: []string{"-filter", "Name == x"}},
		{name: "a state leaves none", policy: "deny", list: one, args: []string{"-status", "failed"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Consul-Default-Acl-Policy", tt.policy)
				w.Write([]byte(tt.list))
			}))
			defer agent.Close()
			var out, errs bytes.Buffer
			for _, v := range clustercmd.Verbs() {
				if v.Path != "members" {
					continue
				}
				c, err := v.Factory(t.Context(), verb.Streams{In: strings.NewReader(""), Out: &out, Err: &errs})()
				if err != nil {
					t.Fatal(err)
				}
				if code := c.Run(append([]string{"-http-addr", agent.URL}, tt.args...)); code != 2 {
					t.Errorf("exit %d", code)
				}
			}
			if out.Len() > 0 || strings.Contains(errs.String(), "SARN_HTTP_TOKEN") != tt.hint || !tt.hint && errs.Len() > 0 {
				t.Errorf("printed %q, %q; want a hint: %v", &out, &errs, tt.hint)
			}
		})
	}
}
