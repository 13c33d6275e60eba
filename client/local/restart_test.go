package local_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/client/local"
)

// A peer answers connections while it is up.
type peer struct{ up atomic.Bool }

func (p *peer) dial(context.Context, string, string) (net.Conn, error) {
	if !p.up.Load() {
		return nil, errors.New("refused")
	}
	a, b := net.Pipe()
	b.Close()
	return a, nil
}

// Checks of a service that is defined in a file: c is looked at an hour apart, al follows the service from the node.
const watched = `{"Name":"web","Port":80,"Checks":[
	{"CheckID":"c","TCP":"x:1","Interval":"1h"},
	{"CheckID":"own","TCP":"x:1","Interval":"1h","Status":"warning"},
	{"CheckID":"ttl","TTL":"1h"}]}`

// restart runs an agent until its checks have results, stops it, lets change change the world, and starts another one
// with the same definitions, whose checks have their first results after half an hour unless soon.
func restart(t *testing.T, p *peer, change func(*servers), soon bool, each func(*servers)) (*servers, func(id string) string) {
	defs := []*definition.Service{service(t, watched), service(t, `{"Name":"follower","Port":81,"Checks":[{"CheckID":"al","AliasService":"web"}]}`)}
	c := newServers()
	cfg := config(c)
	cfg.Check.Dial = p.dial
	p.up.Store(true)
	s, stop := start(t, cfg, defs...)
	if err := s.UpdateTTL(t.Context(), "ttl", catalog.Passing, ""); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	for _, id := range []string{"c", "own", "ttl", "al"} {
		if got := c.check(id).Status; got != catalog.Passing {
			t.Fatalf("before the restart %s is %q", id, got)
		}
	}
	stop()
	for _, id := range []string{"c", "own", "ttl", "al"} {
		c.written(id)
	}
	change(c)
	if !soon {
		cfg.Check.Jitter = func(max time.Duration) time.Duration { return max / 2 }
	}
	s, _ = start(t, cfg, defs...)
	each(c)
	synctest.Wait()
	return c, func(id string) string { return s.Check(id).Record.Status }
}

func none(*servers) {}

// An agent that was restarted does not take a healthy service away until the first result of its check.
func TestRestartedAgentKeepsStatusUntilTheFirstResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peer{}
		c, status := restart(t, p, none, false, none)
		time.Sleep(29 * time.Minute)
		synctest.Wait()
		for id, want := range map[string]string{"c": catalog.Passing, "own": catalog.Warning, "ttl": catalog.Critical} {
			if got := status(id); got != want {
				t.Errorf("before the first result %s is %s, want %s", id, got, want)
			}
		}
		if got := c.written("c"); len(got) != 0 {
			t.Errorf("the catalog was told %q", got)
		}
		p.up.Store(false)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := c.written("c"); status("c") != catalog.Critical || !slices.Equal(got, []string{catalog.Critical}) {
			t.Errorf("after a failure the check is %s; the catalog was told %q", status("c"), got)
		}
	})
}

// What an alias is depends on what its checks are now.
func TestRestartedAgentJudgesAliasesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peer{}
		c, status := restart(t, p, none, false, none)
		if got := status("al"); got != catalog.Critical {
			t.Errorf("with a critical TTL check, the alias is %s", got)
		}
		if got := c.check("al").Status; got != catalog.Critical {
			t.Errorf("in the catalog, %s", got)
		}
	})
}

// The first result counts although the catalog says otherwise.
func TestResultBeforeTheFirstComparisonCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peer{}
		c, status := restart(t, p, func(c *servers) {
			c.down = true
			p.up.Store(false)
		}, true, func(c *servers) {
			time.Sleep(5 * time.Second)
			c.setDown(false)
			time.Sleep(time.Minute)
		})
		for _, id := range []string{"c", "al"} {
			if got, there := status(id), c.check(id).Status; got != catalog.Critical || there != catalog.Critical {
				t.Errorf("%s is %s, in the catalog %s", id, got, there)
			}
		}
	})
}

// A check of the same name that belongs to something else, or that is critical there too, says nothing.
func TestStatusOfAnotherCheckIsNotTakenOver(t *testing.T) {
	for name, change := range map[string]func(*servers){
		"another service":  func(c *servers) { c.checks["c"].ServiceID = "other" },
		"critical there":   func(c *servers) { c.checks["c"].Status = catalog.Critical },
		"not there":        func(c *servers) { delete(c.checks, "c") },
		"unknown statuses": func(c *servers) { c.checks["c"].Status = "maintenance" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, status := restart(t, &peer{}, change, false, none)
				time.Sleep(time.Minute)
				synctest.Wait()
				if got, there := status("c"), c.check("c"); got != catalog.Critical || there.Status != catalog.Critical || there.ServiceID != "web" {
					t.Errorf("the check is %s, in the catalog %+v", got, there)
				}
			})
		})
	}
}

// Maintenance of a service that is defined in a file, and checks registered for it over the API, outlive the agent and
// reloads; those of a service that the file no longer has do not.
func TestFileServiceKeepsMaintenanceAndChecks(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		load := func(c *servers, names ...string) (*local.State, func()) {
			cfg := config(c)
			cfg.DataDir = dir
			var defs []*definition.Service
			for _, name := range names {
				defs = append(defs, service(t, `{"Name":"`+name+`","Check":{"CheckID":"ttl-`+name+`","TTL":"1h"}}`))
			}
			return start(t, cfg, defs...)
		}
		s, stop := load(newServers(), "web", "db")
		for _, id := range []string{"web", "db"} {
			if err := s.SetServiceMaintenance(t.Context(), id, true, "kernel", ""); err != nil {
				t.Fatal(err)
			}
			registerCheck(t, s, `{"ID":"api-`+id+`","Name":"c","ServiceID":"`+id+`","TTL":"1h"}`)
			if err := s.UpdateTTL(t.Context(), "api-"+id, "warning", "busy"); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Load(t.Context(), []*definition.Service{service(t, `{"Name":"web"}`), service(t, `{"Name":"db"}`)}, nil); err != nil {
			t.Fatal(err)
		}
		kept := "_service_maintenance:db=critical/ _service_maintenance:web=critical/ api-db=warning/busy api-web=warning/busy"
		if got := checkStates(s); got != kept {
			t.Errorf("after a reload %q, want %q", got, kept)
		}
		stop()

		c := newServers()
		s, stop = load(c, "web")
		want := "_service_maintenance:web=critical/ api-web=warning/busy ttl-web=critical/"
		if got := checkStates(s); got != want {
			t.Errorf("after a restart %q, want %q", got, want)
		}
		if m := s.Check("_service_maintenance:web").Record; m.Notes != "kernel" || m.ServiceName != "web" {
			t.Errorf("maintenance is %+v", m)
		}
		if got := c.check("_service_maintenance:web"); got.Status != catalog.Critical || got.ServiceID != "web" {
			t.Errorf("in the catalog %+v", got)
		}
		if err := s.SetServiceMaintenance(t.Context(), "web", false, "", ""); err != nil {
			t.Fatal(err)
		}
		stop()

		s, _ = load(newServers(), "web", "db")
		if got, want := checkStates(s), "api-web=warning/busy ttl-db=critical/ ttl-web=critical/"; got != want {
			t.Errorf("after another restart %q, want %q", got, want)
		}
	})
}

// A check of the file takes the place of a saved one that has its ID, wherever that belonged.
func TestFileCheckTakesThePlaceOfASavedOne(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		cfg := config(newServers())
		cfg.DataDir = dir
		s, stop := start(t, cfg, service(t, `{"Name":"web"}`))
		registerCheck(t, s, `{"ID":"c","Name":"saved","ServiceID":"web","TTL":"1h"}`)
		stop()
		for range 2 {
			s, stop = start(t, cfg, service(t, `{"Name":"web","Check":{"CheckID":"c","Name":"nested","TTL":"1h"}}`))
			if c := s.Check("c"); c.Record.Name != "nested" || c.Source != local.File {
				t.Errorf("the check is %+v of %s", c.Record, c.Source)
			}
			stop()
		}
		s, _ = start(t, cfg, service(t, `{"Name":"web"}`))
		if got := checkStates(s); got != "" {
			t.Errorf("the saved check is back: %q", got)
		}
	})
}

// An agent without a data folder forgets registrations on a reload, not maintenance of what stays.
func TestReloadWithoutDataDirKeepsMaintenance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t, config(newServers()), service(t, `{"Name":"file"}`))
		register(t, s, `{"Name":"api"}`)
		registerCheck(t, s, `{"ID":"n","Name":"n","ServiceID":"file","TTL":"1h"}`)
		for _, id := range []string{"file", "api"} {
			if err := s.SetServiceMaintenance(t.Context(), id, true, "", ""); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.SetNodeMaintenance(t.Context(), true, "", ""); err != nil {
			t.Fatal(err)
		}
		if err := s.Load(t.Context(), []*definition.Service{service(t, `{"Name":"file"}`)}, nil); err != nil {
			t.Fatal(err)
		}
		if got, want := checkStates(s), "_node_maintenance=critical/ _service_maintenance:file=critical/"; got != want {
			t.Errorf("checks %q, want %q", got, want)
		}
	})
}
