package operatorcmd_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/command"
	"github.com/sarnmesh/sarn/command/verb"
)

func TestUsageOfInstances(t *testing.T) {
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		dc1 := `"dc1":{"Nodes":3,"Services":4,"ServiceInstances":9,"ConnectServiceInstances":{"connect-proxy":2,"mesh-gateway":1},"BillableServiceInstances":5}`
		dc2 := `,"dc2":{"Nodes":1,"Services":2,"ServiceInstances":2,"ConnectServiceInstances":{"connect-native":10},"BillableServiceInstances":1}`
		if !r.URL.Query().Has("global") {
			dc2 = ""
		}
		io.WriteString(w, `{"Usage":{`+dc1+dc2+`}}`)
	}))
	defer agent.Close()
	run := func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		args = append([]string{"operator", "usage", "instances", "-http-addr=" + agent.URL}, args...)
		code := command.Run(t.Context(), args, verb.Streams{In: strings.NewReader(""), Out: &out, Err: &errs})
		return code, out.String(), errs.String()
	}
	const billable = `Billable Service Instances Total: 5
dc1 Billable Service Instances: 5

Billable Services
Services  Service instances
4         5

Nodes
Datacenter  Count
dc1         3
Total       3
`
	const mesh = `Connect Services
Type                 Service instances
api-gateway          0
connect-native       0
connect-proxy        2
ingress-gateway      0
mesh-gateway         1
terminating-gateway  0
`
	for args, want := range map[string]string{"": billable + "\n" + mesh, "-billable": billable, "-connect": mesh} {
		if code, out, errs := run(strings.Fields(args)...); code != 0 || out != want || errs != "" {
			t.Errorf("%q: %d, %q\n%s\nwant\n%s", args, code, errs, out, want)
		}
	}
	_, out, _ := run("-all-datacenters")
	for _, want := range []string{
		"Billable Service Instances Total: 6\ndc1 Billable Service Instances: 5\ndc2 Billable Service Instances: 1\n",
		"Datacenter  Services  Service instances\ndc1         4         5\ndc2         2         1\nTotal       6         6\n",
		"dc2         1\nTotal       4\n", "dc2         connect-native       10\n", "Total                            13\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("in all datacenters:\n%s\nwant in it\n%s", out, want)
		}
	}
	for _, args := range [][]string{{"-billable", "-connect"}, {"more"}} {
		if code, _, errs := run(args...); code != 1 || !strings.Contains(errs, map[string]string{"more": "Too many arguments (expected 0, got 1)", "-billable": "Cannot specify both -billable and -connect flags"}[args[0]]) {
			t.Errorf("%v: %d, %q", args, code, errs)
		}
	}
}
