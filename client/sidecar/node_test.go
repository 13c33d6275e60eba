package sidecar_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/client/sidecar"
)

// listed returns what the process that runs all sidecars is told, one "ID token" each.
func (w *world) listed() (out []string) {
	w.t.Helper()
	path := filepath.Join(w.dir, sidecar.NodeID+".list")
	b, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		w.t.Errorf("the list has mode %v", fi.Mode())
	}
	var l struct{ Proxies []struct{ ID, Token string } }
	if err := json.Unmarshal(b, &l); err != nil {
		w.t.Fatal(err)
	}
	for _, p := range l.Proxies {
		out = append(out, p.ID+" "+p.Token)
	}
	return out
}

func (w *world) wantListed(want ...string) {
	w.t.Helper()
	if got := w.listed(); !slices.Equal(got, want) {
		w.t.Errorf("listed: %q, want %q", got, want)
	}
}

func TestOneProcessRunsAllSidecars(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cfg.Node = true
		stop := w.run()
		w.want()
		w.reg.set("a", "b")
		w.want("0s start " + sidecar.NodeID)
		w.wantListed("a token of a", "b token of b")
		w.reg.set("b", "c")
		w.want() // the process itself sees that the list is another
		w.wantListed("b token of b", "c token of c")
		p := w.sys.only(t)
		if args := strings.Join(p.rec.Args, " "); strings.Contains(args, "token of") || !strings.Contains(args, "connect proxy -node -node-list "+w.dir) {
			t.Errorf("arguments %s", args)
		}
		p.end()
		time.Sleep(time.Second)
		w.want("1s start " + sidecar.NodeID)
		w.reg.set()
		w.want("1s term " + sidecar.NodeID)
		w.reg.set("a")
		w.want("1s start " + sidecar.NodeID)
		stop()
		w.want("1s term " + sidecar.NodeID)
	})
}

func TestNodeKeepsSidecarsOfAnEarlierAgentForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cfg.Node = true
		w.reg.set("a", "b")
		if err := os.WriteFile(filepath.Join(w.dir, sidecar.NodeID+".list"), []byte(`{"Proxies":[{"ID":"a","Token":"old"},{"ID":"old","Token":"t"}]}`), 0o600); err != nil {
			t.Fatal(err)
		}
		stop := w.run()
		w.want("0s start " + sidecar.NodeID)
		w.wantListed("a token of a", "b token of b", "old t")
		time.Sleep(31 * time.Second)
		w.want()
		w.wantListed("a token of a", "b token of b")
		stop()
	})
}

func TestNodeTellsOfEachSidecarThatIsReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.cfg.Node = true
		var mu sync.Mutex
		var told []string
		w.cfg.OnReady = func(id string) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, id)
		}
		want := func(ids ...string) {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(told, ids) {
				t.Errorf("told of %q, want %q", told, ids)
			}
			told = nil
		}
		w.sys.unready = map[string]bool{"b": true}
		w.reg.set("a", "b")
		stop := w.run()
		want("a")
		w.sys.mu.Lock()
		w.sys.unready = nil
		w.sys.mu.Unlock()
		want("b")
		w.reg.set("a", "b", "c")
		want("c")
		w.sys.only(t).end()
		want("a", "b", "c") // they were down
		stop()
	})
}
