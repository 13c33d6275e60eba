package explain_test

import (
	"testing"

	"github.com/sarnmesh/sarn/connect/explain"
)

const httpEverywhere = `{"Kind": "proxy-defaults", "Name": "global", "Config": {"protocol": "http"}}`

func TestTry(t *testing.T) {
	w := newWorld(t, httpEverywhere,
		`{"Kind": "service-router", "Name": "db", "Routes": [{"Match": {"HTTP": {"PathPrefix": "/admin"}}, "Destination": {"Service": "db", "ServiceSubset": "v2", "PrefixRewrite": "/x", "RequestTimeout": "7s", "NumRetries": 3, "RetryOnConnectFailure": true, "RequestHeaders": {"Set": {"a": "b"}}}}]}`,
		`{"Kind": "service-resolver", "Name": "db", "Subsets": {"v1": {"Filter": "Service.Meta.version == v1"}, "v2": {"Filter": "Service.Meta.version == v2"}}, "DefaultSubset": "v1", "Failover": {"*": {"Service": "cache"}}}`,
		`{"Kind": "service-splitter", "Name": "db", "Splits": [{"Weight": 90, "ServiceSubset": "v1"}, {"Weight": 10, "Service": "cache"}]}`,
		`{"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "web", "Permissions": [{"Action": "deny", "HTTP": {"PathPrefix": "/x"}}, {"Action": "allow", "HTTP": {"PathPrefix": "/"}}]}]}`)
	w.sidecar("web", "v1", "passing", "db")
	w.sidecar("db", "v1", "passing")
	w.sidecar("db", "v2", "critical")
	for _, r := range []explain.Request{{From: "web", To: "db", Path: "/admin/x?q=1"}, {From: "web", To: "db"}, {From: "other", To: "db"}} {
		x, err := explain.Explain(config(false), w, r)
		if err != nil {
			t.Fatal(err)
		}
		t.Log("\n" + text(x))
	}
}
