package configrpc_test

import (
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/configrpc"
)

func TestCallable(t *testing.T) {
	for _, tt := range []struct {
		policy, want string
	}{
		{"deny", "allowed ext some + ext"},
		{"allow", "allowed ext other some + ext"},
	} {
		s := newServer(configrpc.Config{IntentionPolicy: tt.policy})
		for _, e := range []string{
			`{"Kind": "service-defaults", "Name": "ext", "Protocol": "tcp", "Destination": {"Addresses": ["10.0.0.1"], "Port": 1}}`,
			`{"Kind": "service-defaults", "Name": "hidden", "Protocol": "tcp", "Destination": {"Addresses": ["10.0.0.2"], "Port": 1}}`,
			`{"Kind": "service-defaults", "Name": "some", "Protocol": "http"}`,
			`{"Kind": "service-resolver", "Name": "other"}`,
			`{"Kind": "service-intentions", "Name": "allowed", "Sources": [{"Name": "web", "Action": "allow"}]}`,
			`{"Kind": "service-intentions", "Name": "ext", "Sources": [{"Name": "*", "Action": "allow"}]}`,
			`{"Kind": "service-intentions", "Name": "hidden", "Sources": [{"Name": "web", "Action": "deny"}]}`,
			`{"Kind": "service-intentions", "Name": "some", "Sources": [{"Name": "web", "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]}]}`,
		} {
			if err := put(t, s, e); err != nil {
				t.Fatal(e, err)
			}
		}
		show := func(token string) string {
			r, err := intention.CallableCall.Call(t.Context(), s.Caller(), &intention.CallableRequest{
				Options: read.Options{Target: read.Target{Token: token}}, Source: "web",
			})
			if err != nil {
				return err.Error()
			}
			out := strings.Join(r.Services, " ") + " +"
			for _, d := range r.Destinations {
				out += " " + d.Name
			}
			if r.Index == 0 {
				out += " without index"
			}
			return out
		}
		if got := show(""); got != tt.want {
			t.Errorf("default %s: %q, want %q", tt.policy, got, tt.want)
		}
		s.Resolve = func(token string) (*acl.Authorizer, error) {
			if token == "blind" {
				return acl.New(rules{}, token), nil
			}
			return acl.New(rules{"service:read:web": true, "service:read:allowed": true}, token), nil
		}
		if got, want := show("limited"), "allowed +"; got != want {
			t.Errorf("with a token for one service: %q, want %q", got, want)
		}
		if _, err := intention.CallableCall.Call(t.Context(), s.Caller(), &intention.CallableRequest{
			Options: read.Options{Target: read.Target{Token: "blind"}}, Source: "web",
		}); wireerr.Status(err) != 403 {
			t.Errorf("without a right to the source: %v", err)
		}
	}
}
