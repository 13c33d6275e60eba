package configrpc_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/server/configrpc"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/leader"
	"github.com/sarnmesh/sarn/server/rpctest"
)

// bind brings what depends on API gateways up to date once, and reports how many requests that took.
func bind(t *testing.T, s *rpctest.Server, now time.Time) int {
	t.Helper()
	requests := configrpc.Bind(s.Store.View(), "dc1", now)
	for _, r := range requests {
		if _, err := s.Apply(t.Context(), fsm.ConfigEntry, r); err != nil {
			t.Fatal(err)
		}
	}
	return len(requests)
}

// conditions renders a status, a line for each condition.
func conditions(t *testing.T, s *rpctest.Server, kind entry.Kind, name string) string {
	t.Helper()
	var of []entry.Condition
	switch e := s.Store.View().Entry(kind, name).(type) {
	case *entry.APIGateway:
		of = e.Status.Conditions
	case *entry.HTTPRoute:
		of = e.Status.Conditions
	case *entry.TCPRoute:
		of = e.Status.Conditions
	default:
		t.Fatalf("no %s %q", kind, name)
	}
	var lines []string
	for _, c := range of {
		lines = append(lines, fmt.Sprintf("%s/%s %s %s %s: %s", c.Resource.Name, c.Resource.SectionName, c.Type, c.Status, c.Reason, c.Message))
	}
	return strings.Join(lines, "\n")
}

// boundTo renders what is bound to a gateway: "listener: kind/route ..., ...".
func boundTo(t *testing.T, s *rpctest.Server, name string) string {
	t.Helper()
	b, ok := s.Store.View().Entry(entry.KindBoundAPIGateway, name).(*entry.BoundAPIGateway)
	if !ok {
		return "none"
	}
	var out []string
	for _, l := range b.Listeners {
		text := l.Name + ":"
		for _, r := range l.Routes {
			text += fmt.Sprintf(" %s/%s", r.Kind, r.Name)
		}
		for _, r := range l.Certificates {
			text += fmt.Sprintf(" %s/%s", r.Kind, r.Name)
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func TestBind(t *testing.T) {
	const gateway = `{"Kind": "api-gateway", "Name": "gw", "Listeners": [
		{"Name": "web", "Port": 80, "Protocol": "http", "Hostname": "*.example.com"}, {"Name": "raw", "Port": 90, "Protocol": "tcp"}]}`
	const httpAPI = `{"Kind": "service-defaults", "Name": "api", "Protocol": "http"}`
	const listenersFine = "\ngw/web Conflicted False NoConflict: listener has no route conflicts\ngw/web ResolvedRefs True ResolvedRefs: resolved refs" +
		"\ngw/raw Conflicted False NoConflict: listener has no route conflicts\ngw/raw ResolvedRefs True ResolvedRefs: resolved refs"
	tests := []struct {
		name    string
		entries []string
		kind    entry.Kind
		of      string
		want    string
		bound   string // of gateway gw
	}{
		{"a gateway without routes", []string{gateway}, entry.KindAPIGateway, "gw",
			"/ Accepted True Accepted: gateway is valid" + listenersFine, "web:, raw:"},
		{"a route binds to the listener it names",
			[]string{gateway, httpAPI, `{"Kind": "http-route", "Name": "r", "Parents": [{"Name": "gw", "SectionName": "web"}], "Hostnames": ["a.example.com"], "Rules": [{"Services": [{"Name": "api"}]}]}`},
			entry.KindHTTPRoute, "r", "/ Accepted True Accepted: route is valid\ngw/web Bound True Bound: successfully bound route", "web: http-route/r, raw:"},
		{"a route without a section binds where it fits",
			[]string{gateway, `{"Kind": "tcp-route", "Name": "r", "Parents": [{"Name": "gw"}, {"Name": "no"}], "Services": [{"Name": "db"}]}`},
			entry.KindTCPRoute, "r", "/ Accepted True Accepted: route is valid\ngw/ Bound True Bound: successfully bound route\nno/ Bound False GatewayNotFound: gateway was not found", "web:, raw: tcp-route/r"},
		{"another protocol", []string{gateway, `{"Kind": "http-route", "Name": "r", "Parents": [{"Name": "gw"}], "Rules": [{"Services": [{"Name": "api"}]}]}`},
			entry.KindHTTPRoute, "r", "/ Accepted False InvalidDiscoveryChain: route protocol does not match targeted service protocol\n" +
				"gw/ Bound False FailedToBind: route is not accepted: route protocol does not match targeted service protocol", "web:, raw:"},
		{"no service", []string{gateway, `{"Kind": "http-route", "Name": "r", "Parents": [{"Name": "gw"}]}`}, entry.KindHTTPRoute, "r",
			"/ Accepted False NoUpstreamServicesTargeted: route must target at least one upstream service\n" +
				"gw/ Bound False FailedToBind: route is not accepted: route must target at least one upstream service", "web:, raw:"},
		{"a host that does not fit",
			[]string{gateway, httpAPI, `{"Kind": "http-route", "Name": "r", "Parents": [{"Name": "gw", "SectionName": "web"}], "Hostnames": ["example.com"], "Rules": [{"Services": [{"Name": "api"}]}]}`},
			entry.KindHTTPRoute, "r", "/ Accepted True Accepted: route is valid\n" +
				`gw/web Bound False FailedToBind: no host of the route fits host "*.example.com" of listener "web"`, "web:, raw:"},
		{"a listener of another protocol, and one that is none",
			[]string{gateway, httpAPI, `{"Kind": "http-route", "Name": "r", "Parents": [{"Name": "gw", "SectionName": "raw"}, {"Name": "gw", "SectionName": "x"}], "Rules": [{"Services": [{"Name": "api"}]}]}`},
			entry.KindHTTPRoute, "r", "/ Accepted True Accepted: route is valid\ngw/raw Bound False FailedToBind: listener \"raw\" is no http listener\n" +
				"gw/x Bound False FailedToBind: gateway has no listener \"x\"", "web:, raw:"},
		{"two routes of a TCP listener",
			[]string{gateway, `{"Kind": "tcp-route", "Name": "r1", "Parents": [{"Name": "gw"}], "Services": [{"Name": "db"}]}`,
				`{"Kind": "tcp-route", "Name": "r2", "Parents": [{"Name": "gw"}], "Services": [{"Name": "db2"}]}`},
			entry.KindAPIGateway, "gw", "/ Accepted True Accepted: gateway is valid\ngw/web Conflicted False NoConflict: listener has no route conflicts\n" +
				"gw/web ResolvedRefs True ResolvedRefs: resolved refs\ngw/raw Conflicted True RouteConflict: TCP-based listeners currently only support binding a single route\n" +
				"gw/raw ResolvedRefs True ResolvedRefs: resolved refs", "web:, raw: tcp-route/r1 tcp-route/r2"},
		{"a certificate that does not exist",
			[]string{`{"Kind": "api-gateway", "Name": "gw", "Listeners": [{"Name": "web", "Port": 80, "Protocol": "http", "TLS": {"Certificates": [{"Name": "c"}, {"Kind": "file-system-certificate", "Name": "f"}]}}]}`,
				`{"Kind": "file-system-certificate", "Name": "f", "Certificate": "/c", "PrivateKey": "/k"}`},
			entry.KindAPIGateway, "gw", "/ Accepted False InvalidCertificates: gateway references invalid certificates\n" +
				"gw/web Conflicted False NoConflict: listener has no route conflicts\ngw/web ResolvedRefs False InvalidCertificateRef: certificate \"c\" not found",
			"web: file-system-certificate/f"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newServer(configrpc.Config{})
			mustPut(t, s, tt.entries...)
			now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
			if bind(t, s, now) == 0 {
				t.Fatal("nothing to do")
			}
			if d := cmp.Diff(tt.want, conditions(t, s, tt.kind, tt.of)); d != "" {
				t.Errorf("conditions (-want +got):\n%s", d)
			}
			if got := boundTo(t, s, "gw"); got != tt.bound {
				t.Errorf("bound %q, want %q", got, tt.bound)
			}
			if n := bind(t, s, now.Add(time.Hour)); n != 0 {
				t.Errorf("%d requests though nothing changed", n)
			}
		})
	}
}

// A condition that stays as it was keeps its time; one that changes has the time of the change.
func TestBindKeepsTimes(t *testing.T) {
	s := newServer(configrpc.Config{})
	mustPut(t, s, `{"Kind": "api-gateway", "Name": "gw", "Listeners": [{"Name": "raw", "Port": 90, "Protocol": "tcp"}]}`,
		`{"Kind": "tcp-route", "Name": "r", "Parents": [{"Name": "gw"}], "Services": [{"Name": "db"}]}`)
	first := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	bind(t, s, first)
	if err := remove(t, s, entry.KindAPIGateway, "gw"); err != nil {
		t.Fatal(err)
	}
	if got := boundTo(t, s, "gw"); got != "none" {
		t.Errorf("after the gateway is gone there is bound %q", got)
	}
	second := first.Add(time.Minute)
	bind(t, s, second)
	r := s.Store.View().Entry(entry.KindTCPRoute, "r").(*entry.TCPRoute)
	if at := r.Status.Conditions[0].LastTransitionTime; !at.Equal(first) {
		t.Errorf("Accepted has time %v, want %v", at, first)
	}
	if at := r.Status.Conditions[1].LastTransitionTime; !at.Equal(second) {
		t.Errorf("Bound has time %v, want %v", at, second)
	}
}

// A request that was worked out before an entry changed leaves that entry alone.
func TestBindLeavesNewerEntriesAlone(t *testing.T) {
	s := newServer(configrpc.Config{})
	mustPut(t, s, `{"Kind": "tcp-route", "Name": "r", "Parents": [{"Name": "gw"}], "Services": [{"Name": "db"}]}`)
	late := configrpc.Bind(s.Store.View(), "dc1", time.Now())
	mustPut(t, s, `{"Kind": "tcp-route", "Name": "r", "Parents": [{"Name": "gw"}], "Services": [{"Name": "db2"}]}`)
	for _, r := range late {
		if _, err := s.Apply(t.Context(), fsm.ConfigEntry, r); err != nil {
			t.Fatal(err)
		}
	}
	r := s.Store.View().Entry(entry.KindTCPRoute, "r").(*entry.TCPRoute)
	if r.Services[0].Name != "db2" || len(r.Status.Conditions) != 0 {
		t.Errorf("the newer route was overwritten: %+v", r)
	}
}

func TestLeaderBindsRoutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(configrpc.Config{})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			done <- leader.APIGateways(configrpc.Bind).Run(ctx, &leader.Leader{Store: s.Store, Apply: s.Apply, Datacenter: "dc1", Log: hclog.NewNullLogger()})
		}()
		mustPut(t, s, `{"Kind": "api-gateway", "Name": "gw", "Listeners": [{"Name": "raw", "Port": 90, "Protocol": "tcp"}]}`)
		synctest.Wait()
		if got := boundTo(t, s, "gw"); got != "raw:" {
			t.Errorf("bound %q", got)
		}
		mustPut(t, s, `{"Kind": "tcp-route", "Name": "r", "Parents": [{"Name": "gw"}], "Services": [{"Name": "db"}]}`)
		synctest.Wait()
		if got := boundTo(t, s, "gw"); got != "raw: tcp-route/r" {
			t.Errorf("bound %q", got)
		}
		index := s.Index()
		time.Sleep(time.Minute)
		if s.Index() != index {
			t.Error("there is no end of it")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
