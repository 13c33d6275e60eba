// Package bundle tells the leader of the servers which roots are trusted on an agent's node, so that a new root of the
// mesh signs nothing before it is (spec/connect.md section 2.3).
//
// A proxy trusts the roots that were in the last resources it has accepted. Programs that speak the mesh's TLS by
// themselves, and gRPC clients without a proxy, are woken by the agent's own answers about roots, and are taken to
// trust what they were told after a while.
package bundle

import (
	"context"
	"fmt"
	mathrand "math/rand/v2"
	"reflect"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/local"
	"github.com/sarnmesh/sarn/connect/ads"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/xds"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Leaves are the agent's certificates and what it knows of roots: a *leaf.Keeper.
type Leaves interface {
	Roots() (roots *ca.RootsReply, news <-chan struct{}, err error)
	Count(root string) (all, others int)
}

// Proxies are those that the agent serves: an *ads.Server.
type Proxies interface {
	Trust(bundle string) (streams []ads.Trust, left []string, news <-chan struct{})
}

// Services are those registered with the agent: a *local.State.
type Services interface {
	Services() []*local.Service
}

// Config tells a Reporter where it is and where to look. The first five are required, other fields have defaults.
type Config struct {
	Node     string
	Caller   rpc.Caller
	Leaves   Leaves
	Proxies  Proxies
	Services Services
	// Token returns the agent's own token; default none.
	Token func() string
	// ClusterSize returns the number of nodes, by which reports are spread; default 1.
	ClusterSize func() int
	// Chance returns a random number in [0, 1); default math/rand.
	Chance func() float64
	Logger hclog.Logger // default discards
}

const (
	// settleTime is how long programs that read roots by themselves are given: gRPC looks at its files every ten seconds.
	settleTime = 15 * time.Second
	// repeatTime is the least time between equal reports while a rotation is under way; a new leader knows of none.
	repeatTime = 5 * time.Second
	repeatRate = 64 // such reports a second that the leader is to get from the whole cluster
	// quietTime is between any two reports. What happens meanwhile is in the second.
	quietTime = 200 * time.Millisecond
	// pollTime is how often the agent's certificates are counted while there are some of the old root.
	pollTime = time.Second
)

// A Reporter reports. Make one with New; nothing happens until Run.
type Reporter struct {
	cfg Config
	log hclog.Logger
}

// New returns a reporter.
func New(cfg Config) *Reporter {
	if cfg.Token == nil {
		cfg.Token = func() string { return "" }
	}
	if cfg.ClusterSize == nil {
		cfg.ClusterSize = func() int { return 1 }
	}
	if cfg.Chance == nil {
		cfg.Chance = mathrand.Float64
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	return &Reporter{cfg: cfg, log: cfg.Logger}
}

// Run reports, while a rotation is under way, until ctx ends; then it returns nil.
func (r *Reporter) Run(ctx context.Context) error {
	t := &teller{Reporter: r, began: time.Now()}
	for ctx.Err() == nil {
		next, roots, proxies := t.round(ctx)
		sleep(ctx, next, roots, proxies)
	}
	return nil
}

// A teller is one run of a Reporter.
type teller struct {
	*Reporter
	began        time.Time
	bundle, root string    // that the agent knew in the last round: the roots, and the active one
	since        time.Time // when it learnt of the bundle
	active       bool      // a rotation is under way, as far as is known
	failed       bool      // the last report

	sent   ca.ConfirmRequest
	sentAt time.Time
	repeat time.Duration // after which the same is sent again
}

// round reports if there is something to report. It returns when to come back even if nothing happens, 0 for never, and
// channels that are closed when something does.
func (t *teller) round(ctx context.Context) (next time.Duration, rootsNews, proxyNews <-chan struct{}) {
	roots, rootsNews, _ := t.cfg.Leaves.Roots()
	if roots == nil {
		return 0, rootsNews, nil
	}
	if bundle := ca.Bundle(roots.Roots); bundle != t.bundle {
		t.bundle, t.since, t.root = bundle, time.Now(), ""
	}
	if t.root != roots.ActiveRootID {
		t.root, t.active = roots.ActiveRootID, len(roots.Roots) > 1
	}
	if !t.active {
		return 0, rootsNews, nil
	}
	report, next, proxyNews := t.report(t.bundle, t.root, t.since, t.began)
	if due := time.Until(t.sentAt.Add(t.repeat)); due > 0 && reflect.DeepEqual(report, t.sent) {
		return shorter(next, due), rootsNews, proxyNews
	}
	if quiet := time.Until(t.sentAt.Add(quietTime)); quiet > 0 {
		return quiet, nil, nil // and then with what has happened since
	}
	t.sent, t.sentAt = report, time.Now()
	t.repeat = max(repeatTime, time.Duration(t.cfg.ClusterSize())*time.Second/repeatRate)
	t.repeat = time.Duration((0.75 + 0.5*t.cfg.Chance()) * float64(t.repeat))
	report.Target = read.Target{Token: t.cfg.Token()}
	reply, err := ca.ConfirmCall.Call(ctx, t.cfg.Caller, &report)
	switch {
	case err == nil:
		t.active, t.failed = reply.Again, false
	case !t.failed && ctx.Err() == nil:
		t.failed = true
		t.log.Warn("the leader cannot be told which roots are trusted here, will retry", "error", err)
	}
	if !t.active {
		return 0, rootsNews, nil
	}
	return shorter(next, t.repeat), rootsNews, proxyNews
}

// shorter returns the shorter of two times, of which 0 is none.
func shorter(a, b time.Duration) time.Duration {
	if a <= 0 || b > 0 && b < a {
		return b
	}
	return a
}

// sleep waits for news, or until the time is over, 0 for any, or ctx ends.
func sleep(ctx context.Context, d time.Duration, a, b <-chan struct{}) {
	var over <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-a:
	case <-b:
	case <-over:
	case <-ctx.Done():
	}
}

// report makes what is to be told, without a token. It returns when that may change even if nothing happens, 0 for never,
// and a channel that is closed when something does happen with proxies.
func (r *Reporter) report(bundle, root string, since, began time.Time) (req ca.ConfirmRequest, next time.Duration, news <-chan struct{}) {
	streams, left, news := r.cfg.Proxies.Trust(bundle)
	req = ca.ConfirmRequest{Node: r.cfg.Node, Bundle: bundle, ActiveRoot: root}
	missing := func(format string, args ...any) {
		req.Missing++
		if len(req.Waiting) < ca.MaxWaiting {
			req.Waiting = append(req.Waiting, short(fmt.Sprintf(format, args...)))
		}
	}
	until := func(t time.Time) bool {
		left := time.Until(t)
		if left <= 0 {
			return false
		}
		next = shorter(next, left)
		return true
	}
	settling := since.Add(settleTime)
	connected := map[string]bool{}
	for _, t := range streams {
		name := t.Proxy
		if t.Node != "" {
			name += " on " + t.Node
		} else {
			connected[t.Proxy] = true
		}
		switch {
		case t.Flavour == xds.Proxyless && until(settling):
			missing("%s (a gRPC client, which looks for roots by itself)", name)
		case t.Flavour == xds.Proxyless, t.Bundle == bundle:
			req.Confirmed++
		case t.Refused != "":
			missing("%s (refuses its configuration: %s)", name, t.Refused)
		default:
			missing("%s", name)
		}
	}
	away := map[string]bool{}
	for _, id := range left {
		away[id] = true
	}
	for _, svc := range r.cfg.Services.Services() {
		switch id := svc.Instance.ID; {
		case connected[id]:
		case svc.Instance.Kind != catalog.KindTypical:
			if away[id] || until(began.Add(ads.BackTime)) {
				next = shorter(next, pollTime)
				missing("%s (not connected)", id)
			}
		case svc.Instance.Connect.Native && until(settling):
			missing("%s (looks for roots by itself)", id)
		case svc.Instance.Connect.Native:
			req.Confirmed++
		}
	}
	req.Leaves, req.OldLeaves = r.cfg.Leaves.Count(root)
	if req.OldLeaves > 0 {
		next = shorter(next, pollTime)
	}
	return req, next, news
}

// short cuts what is said about a proxy, which says a part of it.
func short(s string) string {
	const most = 200
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}
