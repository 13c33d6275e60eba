package connect_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/connect"
)

const domain = "11111111-2222-3333-4444-555555555555.consul"

func TestIDForms(t *testing.T) {
	tests := []struct {
		name string
		id   connect.ID
		want string
		kind connect.Kind
	}{
		{"service", connect.ServiceID(domain, "dc1", "web"), "spiffe://" + domain + "/ns/default/dc/dc1/svc/web", connect.Service},
		{"service with odd name", connect.ServiceID(domain, "dc1", "a/b c"), "spiffe://" + domain + "/ns/default/dc/dc1/svc/a%2Fb%20c", connect.Service},
		{"agent", connect.AgentID(domain, "dc1", "node1"), "spiffe://" + domain + "/agent/client/dc/dc1/id/node1", connect.Agent},
		{"mesh gateway", connect.MeshGatewayID(domain, "dc1"), "spiffe://" + domain + "/gateway/mesh/dc/dc1", connect.MeshGateway},
		{"server", connect.ServerID(domain, "dc1"), "spiffe://" + domain + "/agent/server/dc/dc1", connect.Server},
		{"authority", connect.CAID(domain), "spiffe://" + domain, connect.CA},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.id.String(); got != tt.want {
				t.Errorf("String() = %q, want %q", got, tt.want)
			}
			if got := tt.id.URL().String(); got != tt.want {
				t.Errorf("URL() = %q, want %q", got, tt.want)
			}
			got, err := connect.ParseID(tt.want)
			if err != nil || got != tt.id || got.Kind() != tt.kind {
				t.Errorf("ParseID(%q) = %v %v, %v; want the ID it was made from", tt.want, got, got.Kind(), err)
			}
		})
	}
}

func TestParseIDRefuses(t *testing.T) {
	tests := []struct{ name, in string }{
		{"nothing", ""},
		{"plain text", "x"},
		{"another scheme", "http://td.consul/ns/default/dc/dc1/svc/web"},
		{"scheme in another case", "SPIFFE://td.consul/ns/default/dc/dc1/svc/web"},
		{"no trust domain", "spiffe:///ns/default/dc/dc1/svc/web"},
		{"port", "spiffe://td.consul:80/ns/default/dc/dc1/svc/web"},
		{"user", "spiffe://a@td.consul/ns/default/dc/dc1/svc/web"},
		{"query", "spiffe://td.consul/ns/default/dc/dc1/svc/web?x"},
		{"fragment", "spiffe://td.consul/ns/default/dc/dc1/svc/web#x"},
		{"empty name", "spiffe://td.consul/ns/default/dc/dc1/svc/"},
		{"trailing slash", "spiffe://td.consul/ns/default/dc/dc1/svc/web/"},
		{"slash alone", "spiffe://td.consul/"},
		{"doubled slash", "spiffe://td.consul//ns/default/dc/dc1/svc/web"},
		{"another namespace", "spiffe://td.consul/ns/other/dc/dc1/svc/web"},
		{"another partition", "spiffe://td.consul/ap/other/ns/default/dc/dc1/svc/web"},
		{"NUL in the name", "spiffe://td.consul/ns/default/dc/dc1/svc/web%00"},
		{"dots", "spiffe://td.consul/ns/default/dc/dc1/svc/.."},
		{"bad escape", "spiffe://td.consul/ns/default/dc/dc1/svc/%zz"},
		{"wrong word", "spiffe://td.consul/ns/default/dc/dc1/service/web"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if id, err := connect.ParseID(tt.in); !errors.Is(err, connect.ErrNotID) {
				t.Errorf("ParseID(%q) = %v, %v; want ErrNotID", tt.in, id, err)
			}
		})
	}
}

func TestTrustDomainsCompareWithoutCase(t *testing.T) {
	a, err := connect.ParseID("spiffe://ABC.consul/ns/default/dc/dc1/svc/web")
	if err != nil {
		t.Fatal(err)
	}
	if b := connect.ServiceID("abc.consul", "dc1", "web"); a != b {
		t.Errorf("%v and %v differ", a, b)
	}
	if !connect.SameTrustDomain("ABC.consul", "abc.CONSUL") || connect.SameTrustDomain("abc.consul", "abd.consul") {
		t.Error("SameTrustDomain does not compare without case only")
	}
}

func TestSNI(t *testing.T) {
	tests := []struct{ name, got, want string }{
		{"service", connect.ServiceSNI("", "web", "dc1", domain), "web.default.dc1.internal." + domain},
		{"subset", connect.ServiceSNI("v1", "web", "dc1", domain), "v1.web.default.dc1.internal." + domain},
		{"datacenter", connect.DatacenterSNI("dc1", domain), "dc1.internal." + domain},
		{"query", connect.QuerySNI("q", "dc1", domain), "q.default.dc1.query." + domain},
		{"peered", connect.PeeredServiceSNI("web", "p", domain), "web.default.default.p.external." + domain},
		{"server over peering", connect.PeeringServerSNI("dc1", domain), "server.dc1.peering." + domain},
		{"server over gateways", connect.GatewayServerSNI("n", "dc1", "consul"), "n.server.dc1.consul"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, tt.got, tt.want)
		}
	}
}

// What is read is written in one form, which reads as the same again: two texts that name different things never
// become equal, and nothing slips through that the form would not show.
func FuzzParseID(f *testing.F) {
	for _, s := range []string{
		"spiffe://td.consul/ns/default/dc/dc1/svc/web", "spiffe://td.consul/agent/client/dc/dc1/id/n", "spiffe://td.consul",
		"spiffe://td.consul/gateway/mesh/dc/dc1", "spiffe://td.consul/agent/server/dc/dc1",
		"spiffe://td.consul/ap/default/ns/default/dc/dc1/svc/a%2fb", "spiffe://td.consul/ns/default/dc/dc1/svc/a%252fb",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := connect.ParseID(s)
		if err != nil {
			if !errors.Is(err, connect.ErrNotID) || id != (connect.ID{}) {
				t.Fatalf("ParseID(%q) = %v, %v", s, id, err)
			}
			return
		}
		again, err := connect.ParseID(id.String())
		if err != nil || again != id {
			t.Fatalf("ParseID(%q).String() = %q, which reads as %v, %v", s, id.String(), again, err)
		}
		if id.URL().String() != id.String() {
			t.Fatalf("URL of %q is %q", id.String(), id.URL())
		}
		if strings.ContainsRune(id.Name(), 0) {
			t.Fatalf("name with NUL: %q", id.Name())
		}
	})
}
