package configrpc_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/server/catalogrpc"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
)

// newCatalog returns a server that also knows a catalog, as servers put them together.
func newCatalog() *rpctest.Server {
	s := newServer(configrpc.Config{})
	catalogrpc.Register(&s.Registry, &s.Appliers, catalogrpc.Config{Resolve: configrpc.Resolve, LinkedGateways: configrpc.LinkedGateways})
	return s
}

// mustPut writes entries.
func mustPut(t *testing.T, s *rpctest.Server, entries ...string) {
	t.Helper()
	for _, e := range entries {
		if err := put(t, s, e); err != nil {
			t.Fatal(err)
		}
	}
}

// register adds an instance to node n1: "web", "web native", "web-proxy connect-proxy web", "gw ingress-gateway".
func register(t *testing.T, s *rpctest.Server, instances ...string) {
	t.Helper()
	for _, text := range instances {
		f := append(strings.Fields(text), "", "")
		svc := &catalog.Service{Service: f[0], Port: 80}
		if f[1] == "native" {
			svc.Connect.Native = true
		} else {
			svc.Kind, svc.Proxy.DestinationServiceName = f[1], f[2]
		}
		if _, err := catalog.RegisterCall.Call(t.Context(), s.Caller(), &catalog.RegisterRequest{Node: "n1", Address: "10.0.0.1", Service: svc}); err != nil {
			t.Fatal(err)
		}
	}
}

func deregister(t *testing.T, s *rpctest.Server, id string) {
	t.Helper()
	if _, err := catalog.DeregisterCall.Call(t.Context(), s.Caller(), &catalog.DeregisterRequest{Node: "n1", ServiceID: id}); err != nil {
		t.Fatal(err)
	}
}

// linked renders what a gateway stands for.
func linked(t *testing.T, s *rpctest.Server, gateway, token string) (string, *entry.GatewayServicesReply) {
	t.Helper()
	req := &entry.GatewayServicesRequest{Gateway: gateway}
	req.Token = token
	r, err := entry.GatewayServicesCall.Call(t.Context(), s.Caller(), req)
	if err != nil {
		return err.Error(), nil
	}
	var all []string
	for _, l := range r.Services {
		text := l.Service.Name
		if l.Port != 0 {
			text += fmt.Sprintf(":%d/%s", l.Port, l.Protocol)
		}
		if l.FromWildcard {
			text += "*"
		}
		if l.SNI != "" {
			text += " " + l.SNI
		}
		if l.ServiceKind != "" {
			text += "=" + l.ServiceKind
		}
		all = append(all, text)
	}
	return strings.Join(all, ", "), r
}

// found lists the instances of a request by ID.
func found(t *testing.T, s *rpctest.Server, req catalog.InstancesRequest) string {
	t.Helper()
	r, err := catalog.InstancesCall.Call(t.Context(), s.Caller(), &req)
	if err != nil {
		return err.Error()
	}
	var ids []string
	for _, i := range r.Instances {
		ids = append(ids, i.Service.ID)
	}
	return strings.Join(ids, " ")
}

func behind(service string) catalog.InstancesRequest {
	return catalog.InstancesRequest{Service: service, Connect: true}
}
func before(service string) catalog.InstancesRequest {
	return catalog.InstancesRequest{Service: service, Ingress: true}
}

const (
	exactTerminating = `{"Kind": "terminating-gateway", "Name": "tg", "Services": [{"Name": "db", "SNI": "s"}, {"Name": "ext"}]}`
	anyTerminating   = `{"Kind": "terminating-gateway", "Name": "wild", "Services": [{"Name": "db", "SNI": "own"}, {"Name": "*", "SNI": "w"}]}`
	exactIngress     = `{"Kind": "ingress-gateway", "Name": "ig", "Listeners": [{"Port": 8080, "Services": [{"Name": "db"}]}, {"Port": 8081, "Services": [{"Name": "ext"}]}]}`
	anyIngress       = `{"Kind": "ingress-gateway", "Name": "igw", "Listeners": [{"Port": 80, "Protocol": "http", "Services": [{"Name": "web"}, {"Name": "*"}]}]}`
	destination      = `{"Kind": "service-defaults", "Name": "api.example", "Protocol": "tcp", "Destination": {"Addresses": ["api.example.com"], "Port": 443}}`
)

func http(name string) string {
	return `{"Kind": "service-defaults", "Name": "` + name + `", "Protocol": "http"}`
}

func TestGatewayServices(t *testing.T) {
	s := newCatalog()
	mustPut(t, s, exactTerminating, exactIngress)
	register(t, s, "db", "consul", "web", "api", "native native", "api-proxy connect-proxy api", "web-proxy connect-proxy web",
		"late-proxy connect-proxy late", "tg terminating-gateway", "mesh mesh-gateway")
	mustPut(t, s, http("web"), http("api"), http("native"), anyTerminating, anyIngress, destination)
	for gateway, want := range map[string]string{
		"none": "",
		"tg":   "db s=service, ext",
		// Explicit links win; proxies, gateways, the servers and what is in the mesh alone are left out.
		"wild": "api* w=service, api.example* w=destination, db own=service, web* w=service",
		"ig":   "db:8080/tcp, ext:8081/tcp",
		// What is not in the mesh or speaks another protocol is left out: db, late.
		"igw": "api:80/http*, native:80/http*, web:80/http",
	} {
		if got, _ := linked(t, s, gateway, ""); got != want {
			t.Errorf("%s: got  %s\nwant %s", gateway, got, want)
		}
	}
	deregister(t, s, "web")
	if got, _ := linked(t, s, "wild", ""); got != "api* w=service, api.example* w=destination, db own=service" {
		t.Errorf("after a service went: %s", got)
	}
	mustPut(t, s, http("late"))
	if got, _ := linked(t, s, "igw", ""); got != "api:80/http*, late:80/http*, native:80/http*, web:80/http" {
		t.Errorf("after a protocol changed: %s", got)
	}
	if err := remove(t, s, entry.KindIngressGateway, "igw"); err != nil {
		t.Fatal(err)
	}
	if got, r := linked(t, s, "igw", ""); got != "" || r.Services == nil || r.Index != s.Index() {
		t.Errorf("after the entry went: %s, index %d of %d", got, r.Index, s.Index())
	}
}

func TestLookupsThroughGateways(t *testing.T) {
	s := newCatalog()
	register(t, s, "db", "ext-proxy connect-proxy ext", "tg terminating-gateway", "wild terminating-gateway", "ig ingress-gateway", "igw ingress-gateway",
		"web", "web-proxy connect-proxy web", "plain")
	register(t, s, "native native") // in the mesh alone
	if got := found(t, s, behind("db")) + found(t, s, before("db")); got != "" {
		t.Errorf("without entries: %s", got)
	}
	mustPut(t, s, exactTerminating, exactIngress)
	check := func(req catalog.InstancesRequest, want string) {
		t.Helper()
		if got := found(t, s, req); got != want {
			t.Errorf("%s connect=%v: %q, want %q", req.Service, req.Connect, got, want)
		}
	}
	check(behind("db"), "tg")
	check(behind("DB"), "tg")
	check(behind("ext"), "ext-proxy tg")
	check(behind("tg"), "")
	check(behind("plain"), "")
	check(before("db"), "ig")
	check(before("other"), "")

	mustPut(t, s, http("web"), http("native"), http("plain"), http("ghost"), anyTerminating, anyIngress, destination)
	check(behind("plain"), "wild")
	check(behind("native"), "native")
	check(behind("ghost"), "")
	check(behind("api.example"), "wild")
	check(behind("db"), "tg wild")
	check(before("web"), "igw")
	check(before("native"), "igw")
	check(before("plain"), "") // not in the mesh
	check(before("ghost"), "") // not there
	check(before("ext"), "ig") // another protocol than the wildcard's listener
}

// The rights of what is linked decide, not those on the entry.
func TestGatewayServicesRights(t *testing.T) {
	s := newCatalog()
	mustPut(t, s, exactTerminating)
	s.Resolve = func(token string) (*acl.Authorizer, error) {
		return acl.New(readable(strings.Fields(token)), token), nil
	}
	for token, want := range map[string]string{
		"":          "Permission denied: anonymous token lacks permission 'service:read' on \"tg\". The anonymous token is used implicitly when a request does not specify a token.",
		"tg":        " true",
		"tg db":     "db s true",
		"tg db ext": "db s, ext false",
	} {
		got, r := linked(t, s, "tg", token)
		if r != nil {
			got += fmt.Sprintf(" %v", r.Filtered)
		}
		if got != want {
			t.Errorf("with %q: %q, want %q", token, got, want)
		}
	}
}

// readable are the services a token may read.
type readable []string

func (l readable) Allows(r acl.Resource, a acl.Access, name string) bool {
	return r == acl.Service && a == acl.Read && slices.Contains(l, name)
}

// Each change is seen by those who wait for what it changes.
func TestGatewayLookupsWake(t *testing.T) {
	type reading func(ctx context.Context, s *rpctest.Server, o read.Options) (uint64, string, error)
	instances := func(req catalog.InstancesRequest) reading {
		return func(ctx context.Context, s *rpctest.Server, o read.Options) (uint64, string, error) {
			req.Options = o
			r, err := catalog.InstancesCall.Call(ctx, s.Caller(), &req)
			if err != nil {
				return 0, "", err
			}
			text := ""
			for _, i := range r.Instances {
				text += i.Service.ID + " " + i.Service.Proxy.Mode + "."
			}
			return r.Index, text, nil
		}
	}
	services := func(gateway string) reading {
		return func(ctx context.Context, s *rpctest.Server, o read.Options) (uint64, string, error) {
			r, err := entry.GatewayServicesCall.Call(ctx, s.Caller(), &entry.GatewayServicesRequest{Options: o, Gateway: gateway})
			if err != nil {
				return 0, "", err
			}
			return r.Index, fmt.Sprint(r.Services), nil
		}
	}
	merged := behind("api")
	merged.MergeCentralConfig = true
	catalogOnly := behind("db")
	catalogOnly.CatalogOnly = true
	tests := []struct {
		name    string
		before  func(t *testing.T, s *rpctest.Server)
		read    reading
		change  func(t *testing.T, s *rpctest.Server)
		already bool // the change only takes away
	}{
		{name: "a service is linked", read: instances(behind("db")), change: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, exactTerminating) }},
		{name: "a service is linked, in the catalog", read: instances(catalogOnly), change: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, exactTerminating) }},
		{name: "a service is exposed", read: instances(before("db")), change: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, exactIngress) }},
		{name: "the first gateway appears", before: func(t *testing.T, s *rpctest.Server) { deregister(t, s, "ig"); mustPut(t, s, exactIngress) },
			read: instances(before("db")), change: func(t *testing.T, s *rpctest.Server) { register(t, s, "ig ingress-gateway") }},
		{name: "the last gateway goes", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, exactTerminating) },
			read: instances(behind("db")), change: func(t *testing.T, s *rpctest.Server) { deregister(t, s, "tg") }},
		{name: "a link goes", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, exactTerminating) }, read: instances(behind("db")),
			change: func(t *testing.T, s *rpctest.Server) {
				mustPut(t, s, `{"Kind": "terminating-gateway", "Name": "tg", "Services": [{"Name": "ext"}]}`)
			}},
		{name: "an entry goes", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, exactIngress) }, read: instances(before("db")),
			change: func(t *testing.T, s *rpctest.Server) {
				if err := remove(t, s, entry.KindIngressGateway, "ig"); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "a wildcard covers a service that appears", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, anyTerminating) },
			read: instances(behind("new")), change: func(t *testing.T, s *rpctest.Server) { register(t, s, "new") }},
		{name: "a wildcard covers a destination", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, anyTerminating) },
			read: instances(behind("api.example")), change: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, destination) }},
		{name: "a destination goes", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, anyTerminating, destination) }, read: instances(behind("api.example")),
			change: func(t *testing.T, s *rpctest.Server) {
				if err := remove(t, s, entry.KindServiceDefaults, "api.example"); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "a protocol comes to fit", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, http("web"), anyIngress) },
			read: instances(before("api")), change: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, http("api")) }},
		{name: "a protocol fits no longer", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, http("web"), http("api"), anyIngress) }, read: instances(before("api")),
			change: func(t *testing.T, s *rpctest.Server) {
				if err := remove(t, s, entry.KindServiceDefaults, "api"); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "the protocol of all comes to fit", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, http("web"), anyIngress) },
			read: instances(before("api")), change: func(t *testing.T, s *rpctest.Server) {
				mustPut(t, s, `{"Kind": "proxy-defaults", "Config": {"protocol": "http"}}`)
			}},
		{name: "a service joins the mesh", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, http("web"), http("db"), anyIngress) },
			read: instances(before("db")), change: func(t *testing.T, s *rpctest.Server) { register(t, s, "db-proxy connect-proxy db") }},
		{name: "central settings change", read: instances(merged), change: func(t *testing.T, s *rpctest.Server) {
			mustPut(t, s, `{"Kind": "proxy-defaults", "Mode": "transparent"}`)
		}},
		{name: "central settings go", before: func(t *testing.T, s *rpctest.Server) {
			mustPut(t, s, `{"Kind": "proxy-defaults", "Mode": "transparent"}`)
		},
			read: instances(merged), change: func(t *testing.T, s *rpctest.Server) {
				if err := remove(t, s, entry.KindProxyDefaults, "global"); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "the links of a gateway appear", read: services("tg"), change: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, exactTerminating) }},
		{name: "the links of a gateway go", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, exactIngress) }, read: services("ig"),
			change: func(t *testing.T, s *rpctest.Server) {
				if err := remove(t, s, entry.KindIngressGateway, "ig"); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "a linked service appears", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, exactTerminating) }, read: services("tg"),
			change: func(t *testing.T, s *rpctest.Server) { register(t, s, "ext") }},
		{name: "a wildcard takes in a service", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, anyTerminating) }, read: services("wild"),
			change: func(t *testing.T, s *rpctest.Server) { register(t, s, "new") }},
		{name: "a wildcard lets a service go", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, anyTerminating); register(t, s, "new") }, read: services("wild"),
			change: func(t *testing.T, s *rpctest.Server) { deregister(t, s, "new") }},
		{name: "a wildcard takes in a protocol", before: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, http("web"), anyIngress) }, read: services("igw"),
			change: func(t *testing.T, s *rpctest.Server) { mustPut(t, s, http("api")) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newCatalog()
				register(t, s, "db", "api", "api-proxy connect-proxy api", "tg terminating-gateway", "wild terminating-gateway", "ig ingress-gateway", "igw ingress-gateway")
				if tt.before != nil {
					tt.before(t, s)
				}
				first, was, err := tt.read(t.Context(), s, read.Options{})
				if err != nil {
					t.Fatal(err)
				}
				done, start := make(chan string, 1), time.Now()
				go func() {
					index, now, err := tt.read(t.Context(), s, read.Options{MinIndex: first, MaxWait: time.Minute})
					switch took := time.Since(start); {
					case err != nil:
						done <- err.Error()
					case took != time.Second || index <= first || index > s.Index() || now == was:
						done <- fmt.Sprintf("after %v: index %d after %d of %d, %q after %q", took, index, first, s.Index(), now, was)
					default:
						done <- ""
					}
				}()
				time.Sleep(time.Second)
				tt.change(t, s)
				if problem := <-done; problem != "" {
					t.Error(problem)
				}
			})
		})
	}
}

// What changes elsewhere wakes nobody who waits for one service.
func TestGatewayLookupsSleep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newCatalog()
		register(t, s, "db", "tg terminating-gateway", "ig ingress-gateway", "gone")
		// Until a first service has gone, every change is news to who waits for one that is not there.
		deregister(t, s, "gone")
		mustPut(t, s, exactTerminating, exactIngress)
		for _, req := range []catalog.InstancesRequest{behind("db"), before("db")} {
			first, err := catalog.InstancesCall.Call(t.Context(), s.Caller(), &req)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			done := make(chan time.Duration)
			go func() {
				req.MinIndex, req.MaxWait = first.Index, 10*time.Second
				if _, err := catalog.InstancesCall.Call(t.Context(), s.Caller(), &req); err != nil {
					t.Error(err)
				}
				done <- time.Since(start)
			}()
			time.Sleep(time.Second)
			register(t, s, "unrelated", "unrelated-proxy connect-proxy unrelated")
			mustPut(t, s, http("unrelated"), `{"Kind": "service-defaults", "Name": "unrelated", "Protocol": "grpc"}`)
			if took := <-done; took < 10*time.Second {
				t.Errorf("connect=%v: woken after %v", req.Connect, took)
			}
		}
	})
}
