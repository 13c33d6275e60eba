package bundle_test

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/client/bundle"
	"github.com/sarnmesh/sarn/client/local"
	"github.com/sarnmesh/sarn/connect/ads"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/xds"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// A world is an agent, and the leader it reports to.
type world struct {
	mu       sync.Mutex
	roots    *ca.RootsReply
	rootsNew chan struct{}
	old      int // leaves of the old root

	streams  []ads.Trust
	left     []string
	trustNew chan struct{}

	services []*local.Service

	again bool
	err   error
	told  []ca.ConfirmRequest
	at    []time.Time
}

func (w *world) Roots() (*ca.RootsReply, <-chan struct{}, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.roots, w.rootsNew, nil
}

func (w *world) Count(string) (all, others int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return 3, w.old
}

func (w *world) Trust(string) ([]ads.Trust, []string, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.streams), slices.Clone(w.left), w.trustNew
}

func (w *world) Services() []*local.Service {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.services)
}

func (w *world) Call(_ context.Context, d rpc.Descriptor, req, resp any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if d.Name != ca.ConfirmCall.Name {
		return errors.New("unexpected call " + d.Name)
	}
	w.told = append(w.told, *req.(*ca.ConfirmRequest))
	w.at = append(w.at, time.Now())
	resp.(*ca.ConfirmReply).Again = w.again
	return w.err
}

// change changes the world and tells about it.
func (w *world) change(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
	close(w.rootsNew)
	close(w.trustNew)
	w.rootsNew, w.trustNew = make(chan struct{}), make(chan struct{})
}

// set makes the roots those with these IDs, the first being active.
func (w *world) set(ids ...string) (bundle string) {
	w.change(func() {
		r := &ca.RootsReply{ActiveRootID: ids[0]}
		for _, id := range ids {
			r.Roots = append(r.Roots, &ca.Root{ID: id, Active: id == ids[0]})
		}
		w.roots, bundle = r, ca.Bundle(r.Roots)
	})
	return bundle
}

// trust makes a proxy trust a bundle.
func (w *world) trust(i int, bundle string) { w.change(func() { w.streams[i].Bundle = bundle }) }

// take returns what was told since the last time.
func (w *world) take() []ca.ConfirmRequest {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	told := w.told
	w.told, w.at = nil, nil
	return told
}

// want checks the last of what was told: how many trust the bundle, and who does not.
func (w *world) want(t *testing.T, what, bundle string, confirmed int, waiting ...string) {
	t.Helper()
	told := w.take()
	if len(told) == 0 {
		t.Errorf("%s: nothing was told", what)
		return
	}
	r := told[len(told)-1]
	if r.Node != "n1" || r.Token != "secret" || r.Bundle != bundle || r.Confirmed != confirmed || r.Missing != len(waiting) ||
		strings.Join(r.Waiting, ", ") != strings.Join(waiting, ", ") {
		t.Errorf("%s: told %+v; want %d of %s, missing %q", what, r, confirmed, bundle, waiting)
	}
}

func run(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{rootsNew: make(chan struct{}), trustNew: make(chan struct{}), again: true}
		r := bundle.New(bundle.Config{
			Node: "n1", Caller: w, Leaves: w, Proxies: w, Services: w, Token: func() string { return "secret" }, Chance: func() float64 { return 0.5 },
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		f(t, w)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func service(kind, id string, native bool) *local.Service {
	return &local.Service{Instance: &catalog.Service{Kind: kind, ID: id, Service: id, Connect: catalog.Connect{Native: native}}}
}

func TestReportsWhileARotationIsUnderWay(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		time.Sleep(time.Hour)
		if told := w.take(); len(told) != 0 {
			t.Errorf("told before anything is known: %+v", told)
		}
		first := w.set("a")
		w.change(func() { w.streams = []ads.Trust{{Proxy: "db", Bundle: first}, {Proxy: "web", Bundle: first}} })
		time.Sleep(time.Hour)
		if told := w.take(); len(told) != 0 {
			t.Errorf("told of one root: %+v", told)
		}

		both := w.set("a", "b")
		w.want(t, "at once", both, 0, "db", "web")
		time.Sleep(time.Second)
		w.trust(0, both)
		w.want(t, "one trusts it", both, 1, "web")
		w.change(func() { w.streams[1].Refused = "bad listener" })
		w.trust(1, first)
		time.Sleep(time.Second)
		w.want(t, "one refuses", both, 1, "web (refuses its configuration: bad listener)")
		w.trust(1, both)
		w.want(t, "both trust it", both, 2)

		// The same is told again, for a new leader.
		time.Sleep(58 * time.Second)
		w.mu.Lock()
		var gaps []time.Duration
		for i := 1; i < len(w.at); i++ {
			gaps = append(gaps, w.at[i].Sub(w.at[i-1]))
		}
		w.mu.Unlock()
		if len(gaps) != 10 || slices.Max(gaps) != 5*time.Second || slices.Min(gaps) != 5*time.Second {
			t.Errorf("told again after %v", gaps)
		}
		w.take()

		// The new root signs; what the agent keeps is of the old one for a while.
		w.change(func() { w.old = 2 })
		w.set("b", "a")
		time.Sleep(time.Second)
		told := w.take()
		if r := told[len(told)-1]; r.ActiveRoot != "b" || r.Leaves != 3 || r.OldLeaves != 2 || r.Missing != 0 {
			t.Errorf("told %+v", r)
		}
		w.mu.Lock()
		w.old, w.again = 0, false // without news: leaves are counted now and then
		w.mu.Unlock()
		time.Sleep(2 * time.Second)
		if told := w.take(); len(told) != 1 || told[0].OldLeaves != 0 {
			t.Errorf("told %+v", told)
		}
		// The leader needs no more.
		w.change(func() { w.streams = nil })
		time.Sleep(time.Hour)
		if told := w.take(); len(told) != 0 {
			t.Errorf("told after the end: %+v", told)
		}
		if w.set("b"); len(w.take()) != 0 {
			t.Error("told when the old root was forgotten")
		}
	})
}

func TestWhatHappensTogetherIsToldTogether(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		for range 100 {
			w.streams = append(w.streams, ads.Trust{Proxy: "web"})
		}
		both := w.set("a", "b")
		synctest.Wait()
		for i := range w.streams {
			time.Sleep(10 * time.Millisecond)
			w.trust(i, both)
		}
		time.Sleep(time.Second)
		told := w.take()
		if n := len(told); n < 5 || n > 8 {
			t.Errorf("told %d times in a second", n)
		}
		if r := told[len(told)-1]; r.Confirmed != 100 || r.Missing != 0 {
			t.Errorf("told %+v", r)
		}
		for _, r := range told {
			if len(r.Waiting) > ca.MaxWaiting || r.Confirmed+r.Missing != 100 {
				t.Errorf("told %+v", r)
			}
		}
	})
}

func TestProxiesThatAreNotConnected(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.services = []*local.Service{
			service(catalog.KindConnectProxy, "web-sidecar-proxy", false), service(catalog.KindMeshGateway, "gateway", false), service("", "web", false),
		}
		both := w.set("a", "b")
		w.change(func() { w.streams = []ads.Trust{{Proxy: "gateway", Bundle: both}, {Proxy: "pod", Node: "elsewhere"}} })
		time.Sleep(time.Second)
		w.want(t, "the agent has just started", both, 1, "pod on elsewhere", "web-sidecar-proxy (not connected)")
		time.Sleep(30 * time.Second)
		w.want(t, "it was never there", both, 1, "pod on elsewhere")
		w.change(func() { w.left = []string{"web-sidecar-proxy", "gone"} })
		time.Sleep(time.Second)
		w.want(t, "its stream has ended", both, 1, "pod on elsewhere", "web-sidecar-proxy (not connected)")
		w.mu.Lock()
		w.left = nil // the time to come back is over, which nobody tells
		w.mu.Unlock()
		time.Sleep(2 * time.Second)
		w.want(t, "it does not come back", both, 1, "pod on elsewhere")
	})
}

func TestProgramsThatLookForRootsThemselvesAreGivenTime(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.services = []*local.Service{service("", "api", true)}
		w.streams = []ads.Trust{{Proxy: "shop", Flavour: xds.Proxyless, Bundle: "whatever"}}
		both := w.set("a", "b")
		w.want(t, "at first", both, 0, "shop (a gRPC client, which looks for roots by itself)", "api (looks for roots by itself)")
		time.Sleep(16 * time.Second)
		w.want(t, "after a while", both, 2)
		w.set("b", "a") // another root is active, the same are trusted
		time.Sleep(time.Second)
		w.want(t, "in the next phase", both, 2)
	})
}

func TestLeadersThatDoNotAnswerAreAskedAgain(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.err = errors.New(`unknown call "ConnectCA.Confirm"`) // of an older version
		both := w.set("a", "b")
		time.Sleep(58 * time.Second)
		if told := w.take(); len(told) != 12 {
			t.Errorf("told %d times", len(told))
		}
		w.mu.Lock()
		w.err = nil
		w.mu.Unlock()
		time.Sleep(5 * time.Second)
		w.want(t, "there is another leader", both, 0)
	})
}

func TestLongNamesAreCut(t *testing.T) {
	run(t, func(t *testing.T, w *world) {
		w.streams = []ads.Trust{{Proxy: strings.Repeat("ä", 1000)}}
		w.set("a", "b")
		if told := w.take(); len(told) != 1 || len(told[0].Waiting[0]) > 300 || !reflect.DeepEqual(told[0].Waiting[0], strings.ToValidUTF8(told[0].Waiting[0], "")) {
			t.Errorf("told %+v", told)
		}
	})
}
