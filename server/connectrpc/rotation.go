package connectrpc

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/fsm"
	"github.com/sarnmesh/sarn/server/transport"
)

// A new root takes over in two phases. First it is pending: it is among the replicated roots, so every agent puts it into
// what its proxies trust, and nothing is signed with it. Agents tell the leader when all their proxies have accepted it.
// Once all of them have, or the time for that is over, it becomes active, and agents have their leaves signed anew. The
// phase is replicated state; who has confirmed is not: a new leader is told again.

// recheck is how often the leader looks again whom a pending root waits for: nodes fail, and lose their proxies.
const recheck = time.Second

// maxRotationWait bounds a call that waits for news of a rotation. It is shorter than servers wait for one another.
const maxRotationWait = 50 * time.Second

// reports are what nodes and secondary datacenters have told this leader. The zero reports are ready for use.
type reports struct {
	mu      sync.Mutex
	last    map[string]report           // by node, in lower case
	away    map[string]datacenterReport // by datacenter
	changes uint64
	news    chan struct{} // closed and replaced when last or away changes
}

// A report is what a node has told last.
type report struct {
	ca.ConfirmRequest
	at time.Time
}

// watch returns a channel that is closed at the next change, and how many there have been.
func (r *reports) watch() (news <-chan struct{}, changes uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.news == nil {
		r.news = make(chan struct{})
	}
	return r.news, r.changes
}

// set takes a report, or forgets all of them for none.
func (r *reports) set(req *ca.ConfirmRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if req == nil {
		r.last, r.away = nil, nil
	} else {
		if r.last == nil {
			r.last = map[string]report{}
		}
		r.last[strings.ToLower(req.Node)] = report{*req, time.Now()}
	}
	r.changed()
}

// changed tells those who watch. The caller holds mu.
func (r *reports) changed() {
	r.changes++
	if r.news != nil {
		close(r.news)
		r.news = nil
	}
}

// all returns the last reports by node, in lower case.
func (r *reports) all() map[string]report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.last)
}

// alive reports whether gossip knows a node, and takes it to be alive.
func alive(v *state.View, node string) (known, well bool) {
	c := v.Check(node, catalog.SerfCheckID)
	return c != nil, c != nil && c.Status != catalog.Critical
}

// required returns the nodes whose agents have to confirm new roots: those with proxies, gateways or native services that
// gossip takes to be alive. Where there are such services on nodes without an agent, any server may serve their proxies.
func required(v *state.View) map[string]bool {
	nodes, seen := map[string]bool{}, map[string]bool{}
	external := false
	_, all := v.AllInstances()
	for i := range all {
		if i.Service.Kind == catalog.KindTypical && !i.Service.Connect.Native || i.Node.PeerName != "" || seen[i.Node.Node] {
			continue
		}
		seen[i.Node.Node] = true
		switch known, well := alive(v, i.Node.Node); {
		case well:
			nodes[i.Node.Node] = true
		case !known:
			external = true
		}
	}
	if external {
		_, servers := v.Instances(catalog.ServerServiceName, true)
		for _, i := range servers {
			if _, well := alive(v, i.Node.Node); well {
				nodes[i.Node.Node] = true
			}
		}
	}
	return nodes
}

// introduce returns the set of roots after a new one has been made: the pending one, or at once the active one where
// there is nobody to confirm it.
func (a *Authority) introduce(v *state.View, root *trust.Root, next *trust.Configuration, s ca.Settings) []*trust.Root {
	_, roots := v.CARoots()
	active := ca.ActiveRoot(roots)
	if active == nil || active.ID == root.ID || len(required(v)) == 0 && len(a.reports.datacenters()) == 0 {
		return ca.Rotate(roots, root, time.Now(), longestLeaf(active, next, s))
	}
	return ca.Spread(roots, root, time.Now())
}

// rememberLeaves notes in the configuration that is to follow another how long leaves of the active root may live.
func rememberLeaves(config, next *trust.Configuration, active *trust.Root) {
	if config == nil || active == nil {
		return
	}
	s, err := ca.ParseSettings(config.Provider, config.Config)
	if err != nil { // of another version: what it says is taken as far as it is understood
		s.LeafCertTTL = max(s.LeafCertTTL, config.LongestLeaf)
	}
	next.LongestRoot, next.LongestLeaf = active.ID, longestLeaf(active, config, s)
}

// longestLeaf returns the longest life that a leaf of the active root can have, nil for none.
func longestLeaf(active *trust.Root, config *trust.Configuration, s ca.Settings) time.Duration {
	if active != nil && config.LongestRoot == active.ID {
		return max(s.LeafCertTTL, config.LongestLeaf)
	}
	return s.LeafCertTTL
}

// aim returns the root that the configuration in force is for: the pending one, or the active one when none is.
func aim(roots []*trust.Root) *trust.Root {
	if pending := ca.PendingRoot(roots); pending != nil {
		return pending
	}
	return ca.ActiveRoot(roots)
}

// present returns the root that changed settings are compared with: the one that the configuration in force is for, or the
// active one when they ask for its key again while another is pending; nil when there is none.
func present(v *state.View, provider string, s ca.Settings) *trust.Root {
	_, roots := v.CARoots()
	active, pending := ca.ActiveRoot(roots), ca.PendingRoot(roots)
	if pending == nil {
		return active
	}
	suits := func(r *trust.Root) bool {
		kept := v.CAProvider(r.ID)
		return kept != nil && provider == ca.BuiltIn && providerName(kept) == provider && !ca.KeyNeeded(r, kept, s)
	}
	if suits(active) && !suits(pending) {
		return active
	}
	return pending
}

// aged reports whether a root is as old as the configuration lets it become.
func aged(active *trust.Root, config *trust.Configuration, now time.Time) bool {
	s, err := ca.ParseSettings(config.Provider, config.Config)
	if err != nil || s.RotationPeriod == 0 {
		return false
	}
	since := active.ActiveSince
	if since.IsZero() {
		since = active.NotBefore
	}
	return now.Sub(since) >= s.RotationPeriod
}

// Rotate makes pending roots active in their time, until ctx ends. The leader runs it.
func (a *Authority) Rotate(ctx context.Context, store *state.Store, apply ApplyFunc) {
	if a.cfg.Disabled {
		return
	}
	a.reports.set(nil)
	for ctx.Err() == nil {
		news, _ := a.reports.watch()
		view := store.WatchView()
		view.CAConfig()
		_, roots := view.CARoots()
		if ca.PendingRoot(roots) == nil {
			await(ctx, view, nil, 0)
			continue
		}
		began := time.Now()
		if err := a.advance(ctx, store, apply); err != nil && ctx.Err() == nil {
			a.log.Warn("the new CA root can not be made the active one, will retry", "error", err)
		}
		took := time.Since(began)
		await(ctx, view, news, recheck)
		rest(ctx, took)
	}
}

// rest waits after something that took a time, so that it takes a tenth of all time at most however often there is a
// reason for it: thousands of nodes tell, and all of them count.
func rest(ctx context.Context, took time.Duration) {
	if took > 0 {
		pause.For(ctx, 9*took) // or until ctx ends
	}
}

// await waits until something that was read through the view has changed, news is closed, or the time is over, 0 for any.
func await(ctx context.Context, view *state.View, news <-chan struct{}, most time.Duration) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if most > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, most)
		defer stop()
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-news:
			cancel()
		case <-ctx.Done():
		}
	})
	view.Wait(ctx) // whatever it was
	cancel()
	wg.Wait()
}

// maxNamed bounds how many names a line of the log has.
const maxNamed = 20

// advance makes the pending root the active one if it is time for that.
func (a *Authority) advance(ctx context.Context, store *state.Store, apply ApplyFunc) error {
	a.changing.Lock()
	defer a.changing.Unlock()
	view := store.View()
	r, err := a.progress(view)
	switch {
	case err != nil:
		return err
	case r.Phase != ca.PhaseSpreading, !a.maySign(view), r.Confirmed < r.Required && time.Now().Before(r.Until):
		return nil
	}
	if err := a.activate(ctx, view, apply); err != nil {
		return err
	}
	if r.Confirmed == r.Required {
		a.log.Info("the new CA root is trusted by every proxy and signs from now on", "root", r.NewRootID, "nodes", r.Required,
			"after", time.Since(r.Since).Round(time.Millisecond))
	} else {
		a.log.Warn("the new CA root signs from now on, though not everybody has confirmed to trust it", "root", r.NewRootID,
			"awaited", awaited(r))
	}
	a.retire(ctx, store, apply)
	return nil
}

// awaited tells who has not confirmed, and why.
func awaited(r *ca.Rotation) string {
	var out []string
	for _, n := range r.Nodes {
		switch {
		case n.Confirmed:
		case len(out) == maxNamed:
			return fmt.Sprintf("%s and %d more nodes", strings.Join(out, "; "), r.Required-r.Confirmed-maxNamed)
		case len(n.Waiting) > 0:
			out = append(out, n.Node+": "+strings.Join(n.Waiting[:min(len(n.Waiting), maxNamed)], ", "))
		default:
			out = append(out, n.Node)
		}
	}
	return strings.Join(out, "; ")
}

// activate makes the pending root the active one. The caller holds a.changing.
func (a *Authority) activate(ctx context.Context, view *state.View, apply ApplyFunc) error {
	rootsIndex, roots := view.CARoots()
	configIndex, config := view.CAConfig()
	s, err := ca.ParseSettings(config.Provider, config.Config)
	if err != nil {
		return err
	}
	_, err = apply(ctx, fsm.CARoots, &setCommand{
		RootsIndex: rootsIndex, ConfigIndex: configIndex,
		Roots: ca.Rotate(roots, ca.PendingRoot(roots), time.Now(), longestLeaf(ca.ActiveRoot(roots), config, s)),
	})
	return err
}

// progress tells how far the rotation is, as far as this server has been told.
func (a *Authority) progress(view *state.View) (*ca.Rotation, error) {
	rootsIndex, roots := view.CARoots()
	_, config := view.CAConfig()
	active, pending := ca.ActiveRoot(roots), ca.PendingRoot(roots)
	if config == nil || active == nil {
		return nil, a.notReady()
	}
	s, err := ca.ParseSettings(config.Provider, config.Config)
	if err != nil {
		return nil, err
	}
	_, changes := a.reports.watch()
	r := &ca.Rotation{
		Phase: ca.PhaseNone, NewRootID: aim(roots).ID, OldRootIDs: []string{}, Nodes: []*ca.RotationNode{}, Index: rootsIndex + changes,
	}
	var pruned time.Time
	for _, o := range roots {
		if o.ID == r.NewRootID {
			continue
		}
		r.OldRootIDs = append(r.OldRootIDs, o.ID)
		if o.PruneAfter.After(pruned) {
			pruned = o.PruneAfter
		}
	}
	if len(r.OldRootIDs) == 0 {
		return r, nil
	}
	r.Since = active.ActiveSince
	bundle := ca.Bundle(roots)
	confirmed := func(told report) bool {
		return told.Bundle == bundle && told.Missing == 0 &&
			(pending != nil || told.ActiveRoot == active.ID && told.OldLeaves == 0)
	}
	told := a.reports.all()
	for name, t := range told {
		if t.Bundle != bundle { // how far it was with others says nothing about these
			told[name] = report{ca.ConfirmRequest{Node: t.Node}, t.at}
		}
	}
	nodes := required(view)
	for name, t := range told {
		if _, well := alive(view, name); well && t.Missing > 0 {
			nodes[t.Node] = true
		}
	}
	for name := range nodes {
		t := told[strings.ToLower(name)]
		n := &ca.RotationNode{
			Node: name, Confirmed: confirmed(t), Seen: t.at, Proxies: t.ConfirmRequest.Confirmed, Missing: t.Missing, Waiting: append([]string{}, t.Waiting...),
			Leaves: t.Leaves, OldLeaves: t.OldLeaves,
		}
		r.Nodes = append(r.Nodes, n)
	}
	for _, told := range a.reports.datacenters() {
		r.Nodes = append(r.Nodes, told.node(active, pending))
	}
	for _, n := range r.Nodes {
		r.Required++
		if n.Confirmed {
			r.Confirmed++
		}
	}
	slices.SortFunc(r.Nodes, func(x, y *ca.RotationNode) int {
		if x.Confirmed != y.Confirmed {
			return cmp.Compare(btoi(x.Confirmed), btoi(y.Confirmed))
		}
		return strings.Compare(x.Node, y.Node)
	})
	r.Nodes = r.Nodes[:min(len(r.Nodes), ca.MaxRotationNodes)]
	switch {
	case pending != nil:
		r.Phase, r.Since, r.Until = ca.PhaseSpreading, pending.SpreadSince, pending.SpreadSince.Add(s.RotationConfirmTimeout)
	case r.Confirmed < r.Required && time.Since(active.ActiveSince) < s.RotationConfirmTimeout:
		r.Phase = ca.PhaseSigning
	default:
		r.Phase, r.Until = ca.PhaseRetiring, pruned
	}
	return r, nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// confirm takes what a node tells.
func (a *Authority) confirm(_ context.Context, c *transport.Call, req *ca.ConfirmRequest) (*ca.ConfirmReply, acl.Permit, error) {
	if a.cfg.Disabled {
		return nil, acl.Permit{}, wireerr.ErrConnectDisabled
	}
	if _, err := c.Authorizer.Require(acl.Node, acl.Write, req.Node); err != nil {
		return nil, acl.Permit{}, err
	}
	view := c.Store.View()
	node := view.Node(req.Node)
	switch {
	case node == nil:
		return nil, acl.Permit{}, wireerr.BadRequest("node %q is not in the catalog", req.Node)
	case req.Confirmed < 0 || req.Missing < 0 || req.Leaves < 0 || req.OldLeaves < 0 || len(req.Bundle) > 128 || len(req.ActiveRoot) > 128 ||
		len(req.Waiting) > min(ca.MaxWaiting, req.Missing) || slices.ContainsFunc(req.Waiting, func(w string) bool { return len(w) > maxWaitingText }):
		return nil, acl.Permit{}, wireerr.BadRequest("this can not be what a node has to tell")
	}
	// Names in another spelling are of the same node, but may have other rules.
	permit, err := c.Authorizer.Require(acl.Node, acl.Write, node.Node)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	kept := *req
	kept.Target.Token, kept.Node = "", node.Node
	a.reports.set(&kept)
	again, err := a.rotating(view)
	if err != nil {
		return nil, acl.Permit{}, err
	}
	return &ca.ConfirmReply{Again: again}, permit, nil
}

// A verdict is whether a rotation is under way, which every node asks, and how long that is good for.
type verdict struct {
	mu       sync.Mutex // held while it is found
	index    uint64     // of the roots
	until    time.Time
	rotating bool
}

// rotating reports whether a rotation is under way. What is found is good for nine times as long as finding it took.
func (a *Authority) rotating(view *state.View) (bool, error) {
	index, roots := view.CARoots()
	if ca.PendingRoot(roots) != nil {
		return true, nil
	}
	v := &a.verdict
	v.mu.Lock()
	defer v.mu.Unlock()
	began := time.Now()
	if v.index == index && began.Before(v.until) {
		return v.rotating, nil
	}
	r, err := a.progress(view)
	if err != nil {
		return false, err
	}
	now := time.Now()
	v.index, v.until, v.rotating = index, now.Add(9*now.Sub(began)), r.Phase == ca.PhaseSigning
	return v.rotating, nil
}

// maxWaitingText bounds what is said about one proxy.
const maxWaitingText = 512

// rotation tells how far the rotation is.
func (a *Authority) rotation(ctx context.Context, c *transport.Call, req *ca.RotationRequest) (*ca.Rotation, acl.Permit, error) {
	if a.cfg.Disabled {
		return nil, acl.Permit{}, wireerr.ErrConnectDisabled
	}
	permit, err := c.Authorizer.Require(acl.Operator, acl.Read, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	most := maxRotationWait
	if req.MaxWait > 0 {
		most = min(req.MaxWait, most)
	}
	until := time.Now().Add(most)
	for {
		news, _ := a.reports.watch()
		view := c.Store.WatchView()
		view.CAConfig()
		view.CARoots()
		began := time.Now()
		r, err := a.progress(c.Store.View())
		if err != nil {
			return nil, acl.Permit{}, err
		}
		took := time.Since(began)
		left := time.Until(until)
		if req.MinIndex == 0 || r.Index != req.MinIndex || left <= 0 {
			return r, permit, nil
		}
		await(ctx, view, news, left)
		rest(ctx, took)
		if ctx.Err() != nil {
			return nil, acl.Permit{}, ctx.Err()
		}
	}
}

// rotate makes a new root, or the pending one active.
func (a *Authority) rotate(ctx context.Context, c *transport.Call, req *ca.RotateRequest) (*struct{}, acl.Permit, error) {
	if a.cfg.Disabled {
		return nil, acl.Permit{}, wireerr.ErrConnectDisabled
	}
	if a.secondary() {
		return inPrimary(ctx, a, ca.RotateCall, req)
	}
	permit, err := c.Authorizer.Require(acl.Operator, acl.Write, "")
	if err != nil {
		return nil, acl.Permit{}, err
	}
	apply := func(ctx context.Context, k fsm.Kind, req any) (any, error) { return c.Apply(ctx, permit, k, req) }
	a.changing.Lock()
	defer a.changing.Unlock()
	view := c.Store.View()
	_, config := view.CAConfig()
	_, roots := view.CARoots()
	active, pending := ca.ActiveRoot(roots), ca.PendingRoot(roots)
	if config == nil || active == nil {
		return nil, acl.Permit{}, a.notReady()
	}
	asked := req.PrivateKeyType != "" || req.PrivateKeyBits != 0
	if !req.Force || asked || pending == nil {
		if kept := view.CAProvider(aim(roots).ID); kept != nil && kept.Given && !asked {
			return nil, acl.Permit{}, wireerr.BadRequest("the key of the root was given by the operator: give another in the configuration, or a type for a generated one")
		}
		next := *config
		next.Config = withKeyType(config.Config, req.PrivateKeyType, req.PrivateKeyBits)
		if err := a.change(ctx, view, apply, &next, true); err != nil {
			return nil, acl.Permit{}, err
		}
		before := aim(roots).ID
		view = c.Store.View()
		_, roots = view.CARoots()
		pending = ca.PendingRoot(roots)
		if aim(roots).ID == before {
			return nil, acl.Permit{}, wireerr.BadRequest("the CA provider %q stays with its root: another is chosen in its configuration", config.Provider)
		}
	}
	if req.Force && pending != nil {
		if err := a.activate(ctx, view, apply); err != nil {
			return nil, acl.Permit{}, err
		}
		a.log.Warn("the new CA root signs from now on, as an operator has asked, whoever trusts it", "root", pending.ID)
	}
	a.retire(ctx, c.Store, apply)
	return &struct{}{}, permit, nil
}

// withKeyType returns settings that ask for a generated key, of another type or size unless that is "" and 0.
func withKeyType(config map[string]any, keyType string, bits int) map[string]any {
	out := make(map[string]any, len(config)+2)
	for k, v := range config {
		gone := strings.EqualFold(k, "RootCert") || (keyType != "" || bits != 0) && strings.EqualFold(k, "PrivateKeyBits") ||
			keyType != "" && strings.EqualFold(k, "PrivateKeyType")
		if !gone {
			out[k] = v
		}
	}
	if keyType != "" {
		out["PrivateKeyType"] = keyType
		if bits == 0 && keyType == ca.KeyRSA {
			bits = 2048
		}
	}
	if bits != 0 {
		out["PrivateKeyBits"] = bits
	}
	return out
}
