package local_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/client/local"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

func TestRegistrationIsInTheCatalogWhenTheCallReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		s, _ := start(t, config(c))
		if got := c.take(); !slices.Equal(got, []string{"register node"}) {
			t.Errorf("at start: %q", got)
		}
		register(t, s, `{"Name":"web","Port":80,"Check":{"TTL":"1m"}}`)
		if got, want := c.take(), []string{"register service web, check service:web"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
		register(t, s, `{"Name":"web","Port":80,"Check":{"TTL":"1m"}}`)
		if got := c.take(); len(got) != 0 {
			t.Errorf("an identical registration wrote %q", got)
		}
		if err := s.UpdateTTL(t.Context(), "service:web", "passing", "fine"); err != nil {
			t.Fatal(err)
		}
		if got := c.check("service:web"); got.Status != "passing" || got.Output != "fine" {
			t.Errorf("catalog has %+v", got)
		}
		if err := s.DeregisterService(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		if got, want := c.ids(), "consul serfHealth"; got != want {
			t.Errorf("catalog has %q, want %q", got, want)
		}
		if err := s.DeregisterService(t.Context(), "web"); wireerr.Status(err) != 404 {
			t.Errorf("second deregistration: %v", err)
		}
	})
}

func TestReregistrationReplacesFieldsAndKeepsStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t, config(newServers()))
		register(t, s, `{"Name":"api","Tags":["t"],"Meta":{"a":"b"},"Checks":[{"CheckID":"x","TTL":"60s"},{"CheckID":"y","TTL":"60s"}]}`)
		s.UpdateTTL(t.Context(), "x", "warning", "busy")
		register(t, s, `{"Name":"api","Port":9,"Check":{"CheckID":"x","TTL":"30s","Status":"passing"}}`)
		if got, want := checkStates(s), "x=warning/busy y=critical/"; got != want {
			t.Errorf("checks %q, want %q", got, want)
		}
		if svc := s.Service("api").Given; svc.Port != 9 || svc.Tags != nil || svc.Meta != nil {
			t.Errorf("service %+v", svc)
		}
		if tags := s.Check("y").Record.ServiceTags; len(tags) != 0 {
			t.Errorf("a check kept the tags %q", tags)
		}
		if err := s.RegisterService(t.Context(), service(t, `{"Name":"api","Check":{"CheckID":"x","TTL":"30s"}}`), local.Options{ReplaceChecks: true}); err != nil {
			t.Fatal(err)
		}
		if got, want := checkStates(s), "x=warning/busy"; got != want {
			t.Errorf("after replacing: %q, want %q", got, want)
		}
	})
}

func TestRefusedRegistrationsLeaveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(newServers())
		cfg.SidecarPorts = local.Ports{Low: 21000, High: 21000}
		s, _ := start(t, cfg)
		register(t, s, `{"Name":"a","Connect":{"SidecarService":{}}}`)
		for body, want := range map[string]string{
			`{"Name":"b","Check":{"TTL":"1s"},"Connect":{"SidecarService":{}}}`:                  "no port provided for sidecar_service and none left in the configured range [21000, 21000]",
			`{"Name":"b","Check":{"Args":["true"],"Interval":"1s"}}`:                             "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true",
			`{"Name":"b","Check":{"OSService":"x","Interval":"1s"}}`:                             "not implemented: this system has no service manager that os_service checks could ask",
			`{"Name":"b","TaggedAddresses":{"lan_ipv4":{"Address":"::1","Port":1}}}`:             `Service tagged address "lan_ipv4" must be a valid ipv4 address`,
			`{"Name":"b","Connect":{"SidecarService":{"Check":{"Args":["x"],"Interval":"1s"}}}}`: "Scripts are disabled on this agent from remote calls; to enable, configure 'enable_script_checks' to true",
		} {
			err := s.RegisterService(t.Context(), service(t, body), local.Options{})
			if text(err) != want || wireerr.Status(err) != 500 {
				t.Errorf("%s: %v", body, err)
			}
		}
		err := s.RegisterCheck(t.Context(), &definition.Check{Name: "x", TTL: time.Second, ServiceID: "nope"}, local.Options{})
		if want := `ServiceID "nope" does not exist`; text(err) != want || wireerr.Status(err) != 404 {
			t.Errorf("check of an unknown service: %v", err)
		}
		if got, want := serviceIDs(s), "a a-sidecar-proxy"; got != want || len(s.Checks()) != 2 {
			t.Errorf("services %q, want %q; checks %q", got, want, checkStates(s))
		}
	})
}

func TestSidecarLifecycle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		s, _ := start(t, config(c))
		register(t, s, `{"ID":"w","Name":"web","Port":80,"Connect":{"SidecarService":{}}}`)
		register(t, s, `{"ID":"v","Name":"web","Port":81,"Connect":{"SidecarService":{}}}`)
		if a, b := s.Service("w-sidecar-proxy").Given.Port, s.Service("v-sidecar-proxy").Given.Port; a != 21000 || b != 21001 {
			t.Errorf("ports %d, %d", a, b)
		}
		register(t, s, `{"ID":"v","Name":"web","Port":82,"Connect":{"SidecarService":{}}}`)
		if side := s.Service("v-sidecar-proxy").Given; side.Port != 21001 || side.Proxy.LocalServicePort != 82 {
			t.Errorf("an update changed the port: %+v", side)
		}
		register(t, s, `{"ID":"w","Name":"web","Port":83}`)
		if side := s.Service("w-sidecar-proxy"); side == nil || side.Given.Proxy.LocalServicePort != 80 {
			t.Errorf("registering without the block touched the sidecar: %+v", side)
		}
		s.DeregisterService(t.Context(), "w")
		if got, want := serviceIDs(s), "v v-sidecar-proxy"; got != want {
			t.Errorf("services %q, want %q", got, want)
		}
		register(t, s, `{"ID":"x","Name":"x","Port":1,"Connect":{"SidecarService":{}}}`)
		if p := s.Service("x-sidecar-proxy").Given.Port; p != 21000 {
			t.Errorf("the freed port was not used again: %d", p)
		}
		register(t, s, `{"ID":"own","Name":"own"}`)
		register(t, s, `{"ID":"own-sidecar-proxy","Name":"p","Kind":"connect-proxy","Port":5,"Proxy":{"DestinationServiceName":"own"}}`)
		s.DeregisterService(t.Context(), "own")
		if s.Service("own-sidecar-proxy") == nil {
			t.Error("a proxy registered by itself went with its service")
		}
	})
}

func TestMaintenance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		s, _ := start(t, config(c))
		register(t, s, `{"ID":"w1","Name":"web","Tags":["a"]}`)
		ctx := t.Context()
		s.SetServiceMaintenance(ctx, "w1", true, "disk swap", "")
		s.SetServiceMaintenance(ctx, "w1", true, "other", "")
		got := s.Check("_service_maintenance:w1").Record
		if got.Notes != "disk swap" || got.Status != "critical" || got.Type != "maintenance" || got.ServiceName != "web" || got.Output != "" {
			t.Errorf("check %+v", got)
		}
		if c.check("_service_maintenance:w1").Notes != "disk swap" {
			t.Error("the catalog does not know")
		}
		s.SetServiceMaintenance(ctx, "w1", false, "", "")
		if err := s.SetServiceMaintenance(ctx, "w1", false, "", ""); err != nil {
			t.Errorf("disabling twice: %v", err)
		}
		s.SetNodeMaintenance(ctx, true, "", "")
		if got := s.Check("_node_maintenance").Record.Notes; got != "Maintenance mode is enabled for this node, but no reason was provided. This is a default message." {
			t.Errorf("default reason %q", got)
		}
		if err := s.SetServiceMaintenance(ctx, "nope", true, "", ""); wireerr.Status(err) != 404 {
			t.Errorf("unknown service: %v", err)
		}
		if got, want := c.ids(), "consul w1 _node_maintenance serfHealth"; got != want {
			t.Errorf("catalog has %q, want %q", got, want)
		}
	})
}

func TestOutputAloneIsDeferred(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		s, _ := start(t, config(c))
		registerCheck(t, s, `{"ID":"t","Name":"t","TTL":"1h"}`)
		s.UpdateTTL(t.Context(), "t", "passing", "one")
		s.UpdateTTL(t.Context(), "t", "passing", "two")
		time.Sleep(2 * time.Minute) // a full sync does not send it either
		synctest.Wait()
		if got := c.check("t").Output; got != "one" {
			t.Errorf("output %q was sent early", got)
		}
		s.UpdateTTL(t.Context(), "t", "passing", "three")
		time.Sleep(time.Minute) // half the interval since "two"
		synctest.Wait()
		if got := c.check("t").Output; got != "three" {
			t.Errorf("output %q, want three", got)
		}
		s.UpdateTTL(t.Context(), "t", "passing", "four")
		s.UpdateTTL(t.Context(), "t", "warning", "five")
		if got := c.check("t").Output; got != "five" {
			t.Errorf("a status change did not send the output: %q", got)
		}
		c.take()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if got := c.take(); len(got) != 0 {
			t.Errorf("the deferral was not cancelled: %q", got)
		}
	})
}

func TestAntiEntropyAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		c.down = true
		s, _ := start(t, config(c), service(t, `{"Name":"fromfile","Port":1}`))
		register(t, s, `{"Name":"web","Port":80,"Check":{"CheckID":"c","TTL":"1h","Status":"passing"}}`)
		time.Sleep(10 * time.Minute)
		if got, want := serviceIDs(s), "fromfile web"; got != want {
			t.Errorf("without servers the agent has %q, want %q", got, want)
		}
		c.setDown(false)
		time.Sleep(16 * time.Second)
		synctest.Wait()
		if got, want := c.ids(), "consul fromfile web c serfHealth"; got != want {
			t.Errorf("after the outage the catalog has %q, want %q", got, want)
		}
		c.setDown(true)
		s.UpdateTTL(t.Context(), "c", "critical", "down")
		s.DeregisterService(t.Context(), "fromfile")
		time.Sleep(5 * time.Minute)
		c.setDown(false)
		s.SyncSoon()
		time.Sleep(time.Second)
		synctest.Wait()
		if got, want := c.ids(), "consul web c serfHealth"; got != want || c.check("c").Status != "critical" {
			t.Errorf("after the second the catalog has %q, want %q; check %+v", got, want, c.check("c"))
		}
	})
}

func TestAntiEntropyRepairsTheCatalog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		s, _ := start(t, config(c))
		register(t, s, `{"Name":"web","Port":80,"Tags":["a"],"Check":{"CheckID":"c","TTL":"1h","Status":"passing"}}`)
		register(t, s, `{"Name":"gone","Port":90}`)
		register(t, s, `{"Name":"eto","Port":81,"Tags":["a"],"EnableTagOverride":true}`)
		register(t, s, `{"Name":"px","Kind":"connect-proxy","Port":5,"Proxy":{"DestinationServiceName":"web","Config":{"n":1,"f":1.5}}}`)
		c.take()
		time.Sleep(65 * time.Second)
		synctest.Wait()
		if got := c.take(); len(got) != 0 {
			t.Errorf("a full sync with nothing to do wrote %q", got)
		}
		c.mu.Lock()
		delete(c.services, "gone")
		c.services["web"] = &catalog.Service{ID: "web", Service: "web", Port: 9999, Tags: []string{"z"}, TaggedAddresses: map[string]catalog.ServiceAddress{"consul-virtual": {Address: "240.0.0.1", Port: 80}}}
		c.services["eto"] = &catalog.Service{ID: "eto", Service: "eto", Port: 9999, Tags: []string{"edited", "more"}, EnableTagOverride: true}
		c.services["intruder"] = &catalog.Service{ID: "intruder", Service: "intruder"}
		c.checks["c"] = &catalog.Check{CheckID: "c", Name: "changed", ServiceID: "web", Status: "critical"}
		c.checks["stray"] = &catalog.Check{CheckID: "stray"}
		c.checks["strayed"] = &catalog.Check{CheckID: "strayed", ServiceID: "intruder"}
		c.node.Address = "10.9.9.9"
		c.mu.Unlock()
		time.Sleep(60 * time.Second)
		synctest.Wait()
		if got, want := c.ids(), "consul eto gone px web c serfHealth"; got != want {
			t.Errorf("the catalog has %q, want %q", got, want)
		}
		if web, eto := c.service("web"), c.service("eto"); web.Port != 80 || web.Tags[0] != "a" || eto.Port != 81 || len(eto.Tags) != 2 {
			t.Errorf("web %+v, eto %+v", web, eto)
		}
		if got := c.check("c"); got.Name != "Service 'web' check" || got.Status != "passing" {
			t.Errorf("check %+v", got)
		}
		if c.node.Address != "10.0.0.1" {
			t.Errorf("node %+v", c.node)
		}
		if got := s.Service("eto").Instance.Tags; !slices.Equal(got, []string{"edited", "more"}) {
			t.Errorf("tags of the catalog were not taken over: %q", got)
		}
		if got := s.Service("web").Instance.TaggedAddresses["consul-virtual"].Address; got != "240.0.0.1" {
			t.Errorf("the virtual address was not taken over: %q", got)
		}
	})
}

func TestIntervalsGrowWithTheCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		cfg := config(c)
		cfg.ClusterSize = func() int { return 1000 } // three powers of two above 128
		cfg.Jitter = func(max time.Duration) time.Duration { return max }
		start(t, cfg)
		c.reads()
		time.Sleep(299 * time.Second)
		synctest.Wait()
		if n := c.reads(); n != 0 {
			t.Errorf("%d reads before I + 4·I", n)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if n := c.reads(); n != 1 {
			t.Errorf("%d reads after I + 4·I, want 1", n)
		}
	})
}

// tokens are set by tests.
type tokens struct{ user, agent, registration string }

func (k *tokens) Default() string      { return k.user }
func (k *tokens) Agent() string        { return k.agent }
func (k *tokens) Registration() string { return k.registration }

func TestTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		cfg := config(c)
		cfg.Tokens = &tokens{"user", "agent", "files"}
		file := service(t, `{"Name":"file"}`)
		owned := service(t, `{"Name":"owned"}`)
		owned.Token = "own"
		s, _ := start(t, cfg, file, owned)
		c.refuse["bad"] = true
		if err := s.RegisterService(t.Context(), service(t, `{"Name":"api","Check":{"CheckID":"c","TTL":"1h"}}`), local.Options{Token: "mine"}); err != nil {
			t.Fatal(err)
		}
		register(t, s, `{"Name":"plain"}`)
		s.RegisterCheck(t.Context(), &definition.Check{ID: "extra", Name: "extra", ServiceID: "api", TTL: time.Hour}, local.Options{Token: "other"})
		for what, want := range map[string]string{
			"service file": "files", "service owned": "own", "service api": "mine", "check c": "mine", "check extra": "other", "service plain": "user",
		} {
			if got := c.tokens[what]; got != want {
				t.Errorf("%s was registered with %q, want %q", what, got, want)
			}
		}
		if c.node.Token != "" && c.node.Token != "agent" {
			t.Errorf("the node was registered with %q", c.node.Token)
		}
		c.take()
		s.RegisterService(t.Context(), service(t, `{"Name":"no"}`), local.Options{Token: "bad"})
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if got := c.take(); !slices.Equal(got, []string{"refused"}) {
			t.Errorf("a refused registration is tried again before the full sync: %q", got)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := c.take(); len(got) == 0 {
			t.Error("a refused registration is not tried again")
		}
	})
}

func TestReaping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		s, _ := start(t, config(c))
		began := time.Now()
		register(t, s, `{"Name":"dead","Check":{"TTL":"1s","DeregisterCriticalServiceAfter":"1s"},"Connect":{"SidecarService":{"Check":{"TTL":"1h","Status":"passing"}}}}`)
		register(t, s, `{"Name":"alive","Check":{"TTL":"1h","Status":"critical","DeregisterCriticalServiceAfter":"1s"}}`)
		register(t, s, `{"Name":"kept","Check":{"TTL":"1s"}}`)
		for s.Service("dead") != nil && time.Since(began) < 5*time.Minute {
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if d := time.Since(began); d < 61*time.Second || d > 91*time.Second {
			t.Errorf("reaped after %v", d)
		}
		time.Sleep(5 * time.Minute)
		if got, want := serviceIDs(s), "alive kept"; got != want || c.ids() != "alive consul kept serfHealth service:alive service:kept" {
			t.Errorf("services %q, want %q; catalog %q", got, want, c.ids())
		}
	})
}

func TestAliasFollowsItsService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t, config(newServers()))
		register(t, s, `{"Name":"src","Check":{"CheckID":"a","Name":"first","TTL":"1h"}}`)
		registerCheck(t, s, `{"ID":"al","Name":"al","AliasService":"src"}`)
		registerCheck(t, s, `{"ID":"later","Name":"later","ServiceID":"src","AliasService":"nope"}`)
		step := func(id, want string) {
			t.Helper()
			synctest.Wait()
			if rec := s.Check(id).Record; rec.Status+" "+rec.Output != want {
				t.Errorf("%s is %s %s, want %s", id, rec.Status, rec.Output, want)
			}
		}
		step("al", `critical Aliased check "first" failing: `)
		step("later", "critical Service nope could not be found on node ")
		s.DeregisterCheck(t.Context(), "later")
		s.UpdateTTL(t.Context(), "a", "warning", "slow")
		step("al", `warning Aliased check "first" failing: slow`)
		s.UpdateTTL(t.Context(), "a", "passing", "")
		step("al", "passing All checks passing.")
		s.DeregisterService(t.Context(), "src")
		step("al", "critical Service src could not be found on node ")
		register(t, s, `{"Name":"src"}`)
		step("al", "passing No checks found.")
	})
}

func TestPersistenceAcrossRestart(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg := config(newServers())
		cfg.DataDir = dir
		s, stop := start(t, cfg)
		if err := s.RegisterService(t.Context(), service(t, `{"ID":"w1","Name":"web","Port":80,"Tags":["a"],"Check":{"CheckID":"ttl","TTL":"1h"},"Connect":{"SidecarService":{"Proxy":{"Config":{"a":[1,"b"]}}}}}`), local.Options{Token: "secret"}); err != nil {
			t.Fatal(err)
		}
		registerCheck(t, s, `{"ID":"short","Name":"short","TTL":"2s"}`)
		registerCheck(t, s, `{"ID":"tcp","Name":"tcp","TCP":"x:1","Interval":"1h","Status":"passing"}`)
		s.UpdateTTL(t.Context(), "ttl", "passing", strings.Repeat("much ", 600)) // more than is written over it
		s.UpdateTTL(t.Context(), "ttl", "warning", "busy")
		s.UpdateTTL(t.Context(), "short", "passing", "quick")
		s.SetNodeMaintenance(t.Context(), true, "kernel", "")
		register(t, s, `{"Name":"removed"}`)
		s.DeregisterService(t.Context(), "removed")
		before := s.Service("w1-sidecar-proxy").Given
		stop()
		time.Sleep(10 * time.Second)

		c := newServers()
		cfg = config(c)
		cfg.DataDir = dir
		cfg.Check.Jitter = func(max time.Duration) time.Duration { return max / 2 }
		s, _ = start(t, cfg)
		if got, want := serviceIDs(s), "w1 w1-sidecar-proxy"; got != want {
			t.Errorf("services %q, want %q", got, want)
		}
		side := s.Service("w1-sidecar-proxy")
		if !side.Nested || side.Given.Port != before.Port || side.Token != "secret" || len(side.Given.Proxy.Config) != 1 {
			t.Errorf("sidecar %+v of %+v", side.Given, side)
		}
		states := checkStates(s)
		for _, want := range []string{"_node_maintenance=critical/", "short=critical/", "tcp=critical/", "ttl=warning/busy"} {
			if !slices.Contains(strings.Fields(states), want) {
				t.Errorf("checks %q lack %q", states, want)
			}
		}
		if got := s.Check("_node_maintenance").Record.Notes; got != "kernel" {
			t.Errorf("reason %q", got)
		}
		if got := c.tokens["service w1"]; got != "secret" {
			t.Errorf("registered with %q after the restart", got)
		}
		s.DeregisterService(t.Context(), "w1")
		if got := serviceIDs(s); got != "" {
			t.Errorf("the sidecar did not go with its service: %q", got)
		}
	})
}

func TestAgentWithoutDataDirKeepsNothingOnReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		s, _ := start(t, config(c), service(t, `{"Name":"file"}`))
		register(t, s, `{"Name":"api"}`)
		registerCheck(t, s, `{"ID":"n","Name":"n","TTL":"1h"}`)
		if err := s.Load(t.Context(), []*definition.Service{service(t, `{"Name":"file"}`)}, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got, want := serviceIDs(s), "file"; got != want || len(s.Checks()) != 0 || c.ids() != "consul file serfHealth" {
			t.Errorf("services %q, want %q; checks %q; catalog %q", got, want, checkStates(s), c.ids())
		}
	})
}

func TestNothingIsPushedBeforeLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		c.services["web"] = &catalog.Service{ID: "web", Service: "web", Weights: catalog.DefaultWeights()}
		s, err := local.New(config(c))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(time.Minute)
		if got := c.take(); len(got) != 0 || c.service("web") == nil {
			t.Errorf("before Load the agent wrote %q", got)
		}
		if err := s.Load(t.Context(), []*definition.Service{service(t, `{"Name":"web"}`)}, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got, want := c.take(), []string{"register node"}; !slices.Equal(got, want) {
			t.Errorf("after Load the agent wrote %q, want %q", got, want)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestFirstLoadWithABadDefinitionKeepsWhatWasSaved(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		cfg := config(c)
		cfg.DataDir = dir
		s, stop := start(t, cfg)
		register(t, s, `{"Name":"web"}`)
		stop()
		s, err := local.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Load(t.Context(), []*definition.Service{{}}, nil); err == nil {
			t.Error("a service without a name was accepted")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		time.Sleep(time.Minute)
		if c.service("web") == nil {
			t.Error("the saved service was deregistered")
		}
		cancel()
		<-done
	})
}

func TestReloadChangesOnlyWhatDiffers(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		cfg := config(c)
		cfg.DataDir = dir
		var d dialer
		cfg.Check.Dial = d.dial
		load := func() []*definition.Service {
			return []*definition.Service{
				service(t, `{"Name":"web","Port":80,"Checks":[{"CheckID":"ttl","TTL":"1h"},{"CheckID":"tcp","TCP":"x:1","Interval":"10s"}],"Connect":{"SidecarService":{"Check":{"CheckID":"side","TTL":"1h","Status":"passing"}}}}`),
				service(t, `{"Name":"old"}`),
			}
		}
		s, _ := start(t, cfg, load()...)
		register(t, s, `{"Name":"api","Check":{"CheckID":"api-ttl","TTL":"1h"}}`)
		registerCheck(t, s, `{"ID":"onweb","Name":"onweb","ServiceID":"web","TTL":"1h"}`)
		s.UpdateTTL(t.Context(), "ttl", "passing", "fine")
		s.UpdateTTL(t.Context(), "api-ttl", "warning", "slow")
		s.SetServiceMaintenance(t.Context(), "api", true, "r", "")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		states, ids := checkStates(s), serviceIDs(s)
		c.take()
		d.take()
		if err := s.Load(t.Context(), load(), nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got, dials := c.take(), len(d.take()); len(got) != 0 || dials != 0 {
			t.Errorf("an unchanged reload wrote %q and ran %d checks", got, dials)
		}
		if checkStates(s) != states || serviceIDs(s) != ids {
			t.Errorf("an unchanged reload left %q, %q; before %q, %q", serviceIDs(s), checkStates(s), ids, states)
		}

		changed := []*definition.Service{service(t, `{"Name":"web","Port":81,"Check":{"CheckID":"ttl","TTL":"1h"}}`), service(t, `{"Name":"new"}`)}
		if err := s.Load(t.Context(), changed, []*definition.Check{{ID: "node", Name: "node", TTL: time.Hour}}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got, want := serviceIDs(s), "api new web"; got != want {
			t.Errorf("services %q, want %q", got, want)
		}
		if got, want := checkStates(s), "_service_maintenance:api=critical/ api-ttl=warning/slow node=critical/ onweb=critical/ ttl=passing/fine"; got != want {
			t.Errorf("checks %q, want %q", got, want)
		}
		if got := s.Check("node").Record.Type; got != "" {
			t.Errorf("a check at the top level of a file has type %q", got)
		}
		if got, want := c.ids(), "api consul new web _service_maintenance:api api-ttl node onweb serfHealth ttl"; got != want {
			t.Errorf("catalog %q, want %q", got, want)
		}

		if err := s.Load(t.Context(), []*definition.Service{{Port: 1}}, nil); err == nil || !strings.Contains(err.Error(), "Service name missing") {
			t.Errorf("a service without a name: %v", err)
		}
		if got, want := serviceIDs(s), "api new web"; got != want {
			t.Errorf("a bad reload left %q, want %q", got, want)
		}
	})
}

func TestFileTakesOverAnAPIRegistration(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg := config(newServers())
		cfg.DataDir = dir
		file := service(t, `{"Name":"web","Port":1}`)
		s, stop := start(t, cfg, file)
		register(t, s, `{"Name":"web","Port":2,"Check":{"TTL":"1h"}}`)
		if err := s.Load(t.Context(), []*definition.Service{file}, nil); err != nil {
			t.Fatal(err)
		}
		if svc := s.Service("web"); svc.Given.Port != 1 || svc.Source != local.File || len(s.Checks()) != 0 {
			t.Errorf("%+v, checks %q", svc, checkStates(s))
		}
		stop()
		s, _ = start(t, cfg)
		if got := serviceIDs(s); got != "" {
			t.Errorf("what gave way came back: %q", got)
		}
	})
}

func TestCentralConfiguration(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		c.setResolved(entry.Resolved{Config: map[string]any{"protocol": "http"}})
		cfg := config(c)
		cfg.DataDir = dir
		s, stop := start(t, cfg)
		register(t, s, `{"Name":"web","Port":1,"Connect":{"SidecarService":{"Proxy":{"Config":{"a":1}}}}}`)
		if got := c.service("web-sidecar-proxy").Proxy.Config; got["protocol"] != "http" || got["a"] != 1.0 {
			t.Errorf("registered with %v", got)
		}
		if got := s.Service("web-sidecar-proxy").Given.Proxy.Config; len(got) != 1 {
			t.Errorf("the registration itself was changed: %v", got)
		}
		c.take()
		svc, changed := s.WatchService("web-sidecar-proxy")
		c.setResolved(entry.Resolved{Config: map[string]any{"protocol": "grpc"}, Mode: "transparent"})
		synctest.Wait()
		select {
		case <-changed:
		default:
			t.Error("a change of central configuration does not wake")
		}
		if now := s.Service("web-sidecar-proxy"); now == svc || now.Instance.Proxy.Mode != "transparent" {
			t.Errorf("merged %+v", now.Instance.Proxy)
		}
		if got := c.service("web-sidecar-proxy").Proxy.Config["protocol"]; got != "grpc" {
			t.Errorf("the catalog has protocol %v", got)
		}
		c.setResolved(entry.Resolved{Config: map[string]any{"protocol": "grpc"}, Mode: "transparent"})
		c.take()
		synctest.Wait()
		if got := c.take(); len(got) != 0 {
			t.Errorf("the same answer wrote %q", got)
		}
		stop()

		// Without servers the last answer on disk counts.
		down := newServers()
		down.down = true
		cfg = config(down)
		cfg.DataDir = dir
		s, stop = start(t, cfg)
		if got := s.Service("web-sidecar-proxy").Instance.Proxy.Mode; got != "transparent" {
			t.Errorf("after a restart without servers the mode is %q", got)
		}
		began := time.Now()
		register(t, s, `{"Name":"more","Port":2,"Connect":{"SidecarService":{}}}`)
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("registering without servers took %v", d)
		}
		stop()

		cfg = config(c)
		cfg.NoCentralConfig = true
		s, _ = start(t, cfg)
		register(t, s, `{"Name":"web","Port":1,"Connect":{"SidecarService":{}}}`)
		if got := s.Service("web-sidecar-proxy").Instance.Proxy.Mode; got != "" {
			t.Errorf("with central configuration off the mode is %q", got)
		}
	})
}

func TestExposedChecksGoThroughTheProxy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var d dialer
		cfg := config(newServers())
		cfg.Check.Dial = d.dial
		s, _ := start(t, cfg)
		register(t, s, `{"Name":"web","Port":80,"Checks":[{"CheckID":"h","HTTP":"http://127.0.0.1:80/health","Interval":"10s"},{"CheckID":"t","TCP":"127.0.0.1:80","Interval":"1h"}],
			"Connect":{"SidecarService":{"Address":"10.0.0.5","Check":{"TTL":"1h"},"Proxy":{"Expose":{"Checks":true}}}}}`)
		synctest.Wait()
		d.take()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		dialled := d.take()
		if got := s.Check("h").Record.ExposedPort; got != 21500 || s.Check("t").Record.ExposedPort != 0 || !slices.Equal(dialled, []string{"10.0.0.5:21500"}) {
			t.Errorf("port %d, dialled %q", got, dialled)
		}
		s.DeregisterService(t.Context(), "web-sidecar-proxy")
		d.take()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		dialled = d.take()
		if got := s.Check("h").Record.ExposedPort; got != 0 || !slices.Contains(dialled, "127.0.0.1:80") || slices.Contains(dialled, "10.0.0.5:21500") {
			t.Errorf("without the proxy: port %d, dialled %q", got, dialled)
		}
	})
}

// A dialer refuses connections and remembers to where.
type dialer struct {
	mu   sync.Mutex
	seen []string
}

func (d *dialer) dial(_ context.Context, _, address string) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = append(d.seen, address)
	return nil, errors.New("refused")
}

func (d *dialer) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	seen := d.seen
	d.seen = nil
	return seen
}

func TestNodeMetaReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		s, _ := start(t, config(c))
		s.SetNodeMeta(map[string]string{"rack": "r1"})
		synctest.Wait()
		if got := c.node.NodeMeta["rack"]; got != "r1" {
			t.Errorf("rack %q", got)
		}
	})
}

func TestConcurrentRegistrationsArriveInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newServers()
		s, _ := start(t, config(c))
		c.mu.Lock()
		c.delay = 50 * time.Millisecond
		c.mu.Unlock()
		for port := 1; port <= 20; port++ {
			go func() {
				time.Sleep(time.Duration(port) * 7 * time.Millisecond)
				s.RegisterService(t.Context(), &definition.Service{Name: "web", Port: port}, local.Options{})
			}()
		}
		time.Sleep(10 * time.Second)
		if got := c.service("web").Port; got != 20 {
			t.Errorf("the catalog has port %d, want that of the last registration, 20", got)
		}
		if n := len(c.take()); n > 10 {
			t.Errorf("%d writes: registrations that wait for each other should be pushed together", n)
		}
	})
}

func TestDiscardedOutput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config(newServers())
		cfg.DiscardCheckOutput = true
		s, _ := start(t, cfg)
		registerCheck(t, s, `{"ID":"t","Name":"t","TTL":"1h"}`)
		s.UpdateTTL(t.Context(), "t", "passing", "secret")
		if got := checkStates(s); got != "t=passing/" {
			t.Errorf("kept %q", got)
		}
		s.SetDiscardCheckOutput(false)
		s.UpdateTTL(t.Context(), "t", "passing", "fine")
		if got := checkStates(s); got != "t=passing/fine" {
			t.Errorf("kept %q", got)
		}
	})
}
