package explain

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/connect/chain"
	"github.com/sarnmesh/sarn/connect/mesh"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/hcm"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/xds"
)

// Limits of what is asked about.
const (
	maxPath    = 8 << 10
	maxHeaders = 100
	maxName    = 255
)

// Check reports what is wrong with a request, and fills in what it leaves out.
func (r *Request) Check() error {
	r.Method, r.Path, r.Host = cmp.Or(strings.ToUpper(r.Method), "GET"), cmp.Or(r.Path, "/"), cmp.Or(r.Host, r.To)
	switch {
	case r.From == "":
		return errors.New("the source is missing: from")
	case r.To == "":
		return errors.New("the destination is missing: to")
	case r.From == entry.Wildcard || r.To == entry.Wildcard:
		return errors.New("source and destination are names of services, not wildcards")
	case len(r.From) > maxName || len(r.To) > maxName:
		return fmt.Errorf("names of services have at most %d bytes", maxName)
	case !isToken(r.Method) || len(r.Method) > 64:
		return fmt.Errorf("%q is no method", r.Method)
	case r.Path[0] != '/' || strings.ContainsFunc(r.Path, func(c rune) bool { return c <= ' ' || c == 0x7f }):
		return errors.New("the path must begin with / and have no spaces")
	case len(r.Path) > maxPath:
		return fmt.Errorf("the path has more than %d bytes", maxPath)
	case len(r.Headers) > maxHeaders:
		return fmt.Errorf("there are more than %d headers", maxHeaders)
	case r.Port < 0 || r.Port > math.MaxUint16:
		return fmt.Errorf("%d is no port", r.Port)
	}
	size := 0
	for i := range r.Headers {
		h := &r.Headers[i]
		h.Name = strings.ToLower(strings.TrimSpace(h.Name))
		size += len(h.Name) + len(h.Value)
		switch {
		case h.Name == ":authority" || h.Name == "host":
			r.Host = h.Value
		case !isToken(h.Name):
			return fmt.Errorf("%q is no name of a header", h.Name)
		case strings.ContainsFunc(h.Value, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }):
			return fmt.Errorf("the value of header %q has control characters", h.Name)
		}
	}
	if size > model.DefaultMaxRequestHeaders {
		return fmt.Errorf("the headers have more than %d bytes", model.DefaultMaxRequestHeaders)
	}
	return nil
}

func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}

// message returns the request as a proxy's codec hands it on: names in lower case, nothing of one connection only.
func (r *Request) message() *message.Request {
	m := &message.Request{Version: message.HTTP2, Method: r.Method, Authority: r.Host, Path: r.Path, ContentLength: 0}
	for _, h := range r.Headers {
		m.Header.Add(h.Name, h.Value)
	}
	m.Header.DelFunc(func(f message.Field) bool { return f.Framing() || f.Name == "te" || f.Name == ":authority" })
	return m
}

// copyOf returns a request that can be changed by itself.
func copyOf(r *message.Request) *message.Request {
	c := &message.Request{Version: r.Version, Method: r.Method, Scheme: r.Scheme, Authority: strings.Clone(r.Authority), Path: strings.Clone(r.Path)}
	c.Header.CopyFrom(&r.Header)
	c.Header.CloneStrings()
	return c
}

// evaluation is one explanation on its way.
type evaluation struct {
	cfg    *Config
	world  World
	req    Request
	tokens tokens
	decode *decode.Decoder
	sides  map[string]*destination // by target ID
	// decided has the decisions so far; asked counts how often a proxy was asked.
	decided map[string]*decided
	asked   int
	behind  string // the service that a terminating gateway is asked about
}

// Explain tells what becomes of a request. The error tells what is wrong with it.
func Explain(cfg *Config, w World, req Request) (*Explanation, error) {
	if err := req.Check(); err != nil {
		return nil, err
	}
	e := &evaluation{cfg: cfg, world: w, req: req, decode: decode.New(decode.Options{}), sides: map[string]*destination{}, decided: map[string]*decided{}}
	h, path, err := e.tokens.place(req.JWT, req.Path, w.List(entry.KindJWTProvider))
	if err != nil {
		return nil, err
	}
	e.req.Path = path
	if h != nil {
		e.req.Headers = append(slices.Clip(e.req.Headers), *h)
	}
	x := &Explanation{
		Request: Request{From: req.From, To: req.To, Method: req.Method, Path: req.Path, Host: req.Host, Port: req.Port},
		Verdict: Unknown, Datacenter: cfg.Datacenter, Token: e.tokens.facts, Branches: []*Branch{},
	}
	if err := e.run(x); err != nil {
		x.problem("%v", err)
	}
	e.conclude(x)
	return x, nil
}

// conclude makes one verdict of those of the branches.
func (e *evaluation) conclude(x *Explanation) {
	if x.Reply != nil {
		x.Verdict, x.Reason = Denied, fmt.Sprintf("the sidecar of %s answers %d itself (%s)", e.req.From, x.Reply.Status, x.Reply.Details)
		return
	}
	seen := map[string]bool{}
	for _, b := range x.Branches {
		if b.Authorization != nil && b.Weight > 0 {
			seen[b.Authorization.Verdict] = true
			if x.Reason == "" {
				x.Reason = b.Authorization.Reason
			}
		}
	}
	switch {
	case len(seen) == 1:
		for x.Verdict = range seen {
		}
	case len(seen) > 1:
		x.Verdict, x.Reason = Depends, "the branches of the split decide differently"
	case len(x.Problems) > 0:
		x.Reason = x.Problems[0]
	}
	x.Allowed = x.Verdict == Allowed
}

// run follows the request from the source's sidecar on.
func (e *evaluation) run(x *Explanation) error {
	reg, upstream, err := e.source(x)
	if err != nil {
		return err
	}
	x.Upstream = upstream
	s, resources, err := e.compile(reg, nil)
	if err != nil {
		return fmt.Errorf("the sidecar of %s can not be configured: %w", e.req.From, err)
	}
	for _, p := range resources.Problems {
		x.problem("sidecar of %s: %v", e.req.From, p)
	}
	o := &outbound{e: e, x: x, s: s, resources: resources}
	for _, u := range s.Upstreams {
		if u.ID == upstream && u.Kind == mesh.ToChain {
			o.upstream = u
		}
	}
	if o.upstream == nil {
		return fmt.Errorf("the sidecar of %s does not serve the upstream %s", e.req.From, upstream)
	}
	if o.chain = s.Chain(o.upstream); o.chain == nil {
		return fmt.Errorf("the discovery chain of %s is not known", e.req.To)
	}
	x.Protocol = cmp.Or(o.upstream.Config.Protocol, o.chain.Protocol)
	return o.follow()
}

// An outbound is the way from the source's sidecar.
type outbound struct {
	e         *evaluation
	x         *Explanation
	s         *mesh.Snapshot
	upstream  *mesh.Upstream
	chain     *chain.Chain
	resources *xds.Resources
}

func (o *outbound) follow() error {
	var l *model.Listener
	for name, r := range o.resources.Of(xds.Listener) {
		if !strings.HasPrefix(name, o.upstream.ID+":") {
			continue
		}
		var err error
		if l, err = o.e.decode.Listener(r.Body); err != nil {
			return fmt.Errorf("the built-in proxy would refuse the listener of %s: %w", o.upstream.ID, err)
		}
	}
	if l == nil || len(l.Chains) == 0 {
		return fmt.Errorf("the sidecar of %s would have no listener for %s", o.e.req.From, o.upstream.ID)
	}
	switch t := l.Chains[0].Terminal.(type) {
	case *model.TCPProxy:
		return o.connection(t)
	case *model.HTTPManager:
		return o.request(t)
	}
	return fmt.Errorf("the listener of %s leads nowhere", o.upstream.ID)
}

// connection follows a connection whose content nobody looks at.
func (o *outbound) connection(t *model.TCPProxy) error {
	n := o.chain.Nodes[o.chain.StartNode]
	if n == nil || n.Resolver == nil {
		return fmt.Errorf("the discovery chain of %s does not lead to one target", o.e.req.To)
	}
	return o.branch(&Branch{Weight: 100, service: o.chain.ServiceName}, n, t.Cluster, o.e.req.message(), nil)
}

// request follows a request through the routes of the sidecar.
func (o *outbound) request(m *model.HTTPManager) error {
	routes := m.Routes
	if m.RouteName != "" {
		r := o.resources.Of(xds.Route)[m.RouteName]
		if r == nil {
			return fmt.Errorf("there are no routes %s", m.RouteName)
		}
		var err error
		if routes, err = o.e.decode.RouteConfig(r.Body); err != nil {
			return fmt.Errorf("the built-in proxy would refuse the routes %s: %w", m.RouteName, err)
		}
	}
	judge := func(random uint64) (*message.Request, hcm.Verdict, error) {
		r := o.e.req.message()
		v, err := hcm.Judge(hcm.Case{
			Manager: m, Routes: routes, Filters: asked, Conn: localConn(), Request: r, Random: random,
		})
		return r, v, err
	}
	r, v, err := judge(0)
	if err != nil {
		return fmt.Errorf("the built-in proxy would refuse the listener of %s: %w", o.upstream.ID, err)
	}
	o.x.passed("the sidecar of "+o.e.req.From, v.Passed)
	if v.Reply != nil {
		o.x.Reply = reply(v.Reply)
		return nil
	}
	node, err := o.node(&v)
	if err != nil {
		return err
	}
	o.x.Method, o.x.Path, o.x.Host = r.Method, o.e.tokens.hide(r.Path), r.Authority
	o.x.Timeouts = &Timeouts{Request: duration(v.Timeout), Idle: duration(v.Idle)}
	if v.PerTry > 0 {
		o.x.Timeouts.PerTry = duration(v.PerTry)
	}
	if v.RetryOn != 0 && v.Retries > 0 {
		o.x.Retries = &Retries{Attempts: v.Retries, On: o.retryOn(), Statuses: v.RetryStatuses}
	}
	weighted := v.Match.Route.Forward.Weighted
	if len(weighted) == 0 {
		b := &Branch{Weight: 100, Edits: edits(v.Match.Route), service: o.chain.ServiceName}
		if d := o.x.Route.destination(); d != nil {
			b.service, b.subset = cmp.Or(d.Service, b.service), d.ServiceSubset
		}
		return o.branch(b, node, v.Match.Cluster, r, &v)
	}
	if len(weighted) != len(node.Splits) {
		return fmt.Errorf("the routes of %s do not have the splits of its chain", o.e.req.To)
	}
	start, total := uint64(0), 0.0
	for _, w := range weighted {
		total += float64(w.Weight)
	}
	for i := range weighted {
		w := &weighted[i]
		next := o.chain.Nodes[node.Splits[i].NextNode]
		if next == nil {
			return fmt.Errorf("the chain of %s lacks node %q", o.e.req.To, node.Splits[i].NextNode)
		}
		b := &Branch{Split: splitter(node.Name), Weight: 100 * float64(w.Weight) / total, Edits: append(edits(v.Match.Route), headerEdits(w.RequestEdits, w.ResponseEdits)...)}
		b.service = b.Split
		if d := node.Splits[i].Definition; d != nil {
			b.service, b.subset = cmp.Or(d.Service, b.service), d.ServiceSubset
		}
		if w.Weight > 0 {
			// The number that draws the first of its share.
			if r, v, err = judge(start); err != nil {
				return err
			}
			if v.Match.Weighted == nil || v.Match.Cluster != w.Cluster {
				return fmt.Errorf("the split of %s can not be followed", o.e.req.To)
			}
		}
		start += uint64(w.Weight)
		if err := o.branch(b, next, w.Cluster, r, &v); err != nil {
			return err
		}
	}
	return nil
}

// splitter returns the name of a splitter's service from that of its node.
func splitter(node string) string { return strings.TrimSuffix(node, ".default.default") }

// node returns the node of the chain that a match leads to, and tells the route.
func (o *outbound) node(v *hcm.Verdict) (*chain.Node, error) {
	n := o.chain.Nodes[o.chain.StartNode]
	if n == nil {
		return nil, fmt.Errorf("the chain of %s has no start", o.e.req.To)
	}
	if n.Type != chain.Router {
		return n, nil
	}
	at := -1
	for i := range v.Match.VirtualHost.Routes {
		if &v.Match.VirtualHost.Routes[i] == v.Match.Route {
			at = i
		}
	}
	if at < 0 || at >= len(n.Routes) {
		return nil, fmt.Errorf("the routes of %s are not those of its chain", o.e.req.To)
	}
	rule := n.Routes[at]
	o.x.Route = &Route{Router: o.chain.ServiceName, Index: at, CatchAll: at == len(n.Routes)-1, Match: matchText(rule.Definition)}
	if rule.Definition != nil {
		o.x.Route.Destination = rule.Definition.Destination
	}
	next := o.chain.Nodes[rule.NextNode]
	if next == nil {
		return nil, fmt.Errorf("the chain of %s lacks node %q", o.e.req.To, rule.NextNode)
	}
	return next, nil
}

// retryOn returns the conditions in the words of the entry.
func (o *outbound) retryOn() []string {
	d := o.x.Route.destination()
	if d == nil {
		return nil
	}
	on := slices.Clone(d.RetryOn)
	if d.RetryOnConnectFailure && !slices.Contains(on, "connect-failure") {
		on = append(on, "connect-failure")
	}
	if len(d.RetryOnStatusCodes) > 0 {
		on = append(on, "status codes")
	}
	return on
}

func (r *Route) destination() *entry.ServiceRouteDestination {
	if r == nil {
		return nil
	}
	return r.Destination
}

// branch tells where a resolver leads, and what is decided there about the request as it is sent.
func (o *outbound) branch(b *Branch, n *chain.Node, cluster string, r *message.Request, v *hcm.Verdict) error {
	if n.Resolver == nil {
		return fmt.Errorf("the chain of %s leads to node %q, which is no resolver", o.e.req.To, n.Name)
	}
	o.x.Branches = append(o.x.Branches, b)
	if v != nil {
		b.Path = o.e.tokens.hide(r.Path)
	}
	if lb := n.LoadBalancer; lb != nil && lb.Policy != "" {
		b.LoadBalancer = lb.Policy
	}
	if o.x.Timeouts == nil {
		o.x.Timeouts = &Timeouts{Request: "none", Idle: "none"}
	}
	o.x.Timeouts.Connect = duration(time.Duration(n.Resolver.ConnectTimeout))

	ids := []string{n.Resolver.Target}
	if n.Resolver.Failover != nil {
		ids = append(ids, n.Resolver.Failover.Targets...)
	}
	members := o.members(cluster)
	for i, id := range ids {
		t := o.chain.Targets[id]
		if t == nil {
			return fmt.Errorf("the chain of %s lacks target %q", o.e.req.To, id)
		}
		name := cluster
		if len(members) > 0 {
			name = members[i]
		}
		made := o.target(t, name)
		if i == 0 {
			made.Trail = o.trail(b.service, b.subset, t.ID)
			b.Target = *made
			b.Authorization = o.authorize(b, t, r, v != nil)
			continue
		}
		if name == "" {
			o.x.note("failover to %s is left out while too little is known of it", id)
		}
		if t.Service != b.Service || t.Peer != b.Peer {
			made.Authorization = o.authorize(new(Branch), t, r, v != nil)
		}
		b.Failover = append(b.Failover, made)
	}
	return nil
}

// members returns the clusters of an aggregate by the place of their target; empty texts for those that are left out.
func (o *outbound) members(cluster string) map[int]string {
	r := o.resources.Of(xds.Cluster)[cluster]
	if r == nil {
		return nil
	}
	c, err := o.e.decode.Cluster(r.Body)
	if err != nil || len(c.Members) == 0 {
		return nil
	}
	out := map[int]string{}
	for _, m := range c.Members {
		if rest, ok := strings.CutPrefix(m, "failover-target~"); ok {
			place, _, _ := strings.Cut(rest, "~")
			if i, err := strconv.Atoi(place); err == nil {
				out[i] = m
			}
		}
	}
	return out
}

// trail tells how a target came to be meant, if not by its own name.
func (o *outbound) trail(service, subset, to string) []string {
	trail := chain.TrailFrom(chain.Request{Service: service, Datacenter: o.chain.Datacenter}, o.e.world, service, subset)
	if len(trail) < 2 || trail[len(trail)-1] != to {
		return nil // splits of splits do not tell whose they were
	}
	return trail
}

// target tells about a target and its instances.
func (o *outbound) target(t *chain.Target, cluster string) *Target {
	out := &Target{
		ID: t.ID, Service: t.Service, Subset: t.ServiceSubset, Datacenter: t.Datacenter, Peer: t.Peer, Filter: t.Subset.Filter, Cluster: cluster,
		Endpoints: []Endpoint{},
	}
	gateways, through := o.s.Gateways(t)
	if through {
		out.Gateway = t.MeshGateway.Mode
	}
	if t.Datacenter != o.e.cfg.Datacenter && t.Peer == "" && !through {
		o.x.note("instances of other datacenters are not known here")
	}
	if !o.e.cfg.maySee(t.Service) {
		out.Hidden = true
		return out
	}
	r := o.resources.Of(xds.Cluster)[cluster]
	if r == nil {
		return out
	}
	c, err := o.e.decode.Cluster(r.Body)
	if err != nil {
		o.x.problem("the built-in proxy would refuse the cluster %s: %v", cluster, err)
		return out
	}
	load := c.Endpoints
	if c.EDSName != "" {
		if l := o.resources.Of(xds.Endpoint)[c.EDSName]; l != nil {
			if load, err = o.e.decode.LoadAssignment(l.Body); err != nil {
				o.x.problem("the built-in proxy would refuse the instances of %s: %v", cluster, err)
				return out
			}
		}
	}
	if load == nil {
		return out
	}
	list := o.s.Instances(t)
	if through {
		list = gateways
	}
	for _, p := range load.Endpoints {
		i := instanceAt(list, p.Address)
		if i != nil && !o.e.cfg.mayShow(i) {
			out.Hidden = true
			continue
		}
		ep := Endpoint{Address: p.Address.String(), Health: p.Health.String(), Weight: p.Weight}
		if p.Health == model.Healthy {
			out.Healthy++
		}
		if i != nil {
			ep.Node, ep.Service = i.Node.Node, i.Service.ID
		}
		out.Endpoints = append(out.Endpoints, ep)
	}
	return out
}

// instanceAt returns the instance with an address, nil if none has.
func instanceAt(list *catalog.InstancesReply, a model.Address) *catalog.Instance {
	if list == nil {
		return nil
	}
	for _, i := range list.Instances {
		host := cmp.Or(i.Service.Address, i.Node.Address)
		wan := i.Service.TaggedAddresses["wan"]
		if a.Path != "" && i.Service.SocketPath == a.Path || host == a.Host && i.Service.Port == int(a.Port) ||
			wan.Address == a.Host && wan.Port == int(a.Port) {
			return i
		}
	}
	return nil
}

// localConn is the application's connection to its sidecar.
func localConn() *filter.Conn {
	return &filter.Conn{
		Listener: "upstream", Remote: loopback, Direct: loopback, Local: loopback,
	}
}

var loopback = netip.MustParseAddrPort("127.0.0.1:1")

func reply(r *filter.Reply) *Reply {
	out := &Reply{Status: r.Status, Details: r.Details}
	for _, f := range r.Header {
		if f.Name == "location" {
			out.Location = f.Value
		}
	}
	return out
}

// passed notes filters that were not asked.
func (x *Explanation) passed(who string, names []string) {
	for _, n := range names {
		if !slices.Contains(harmless, n) {
			x.note("%s also asks the filter %s, which was not asked here", who, n)
		}
	}
}

func duration(d time.Duration) string {
	if d <= 0 {
		return "none"
	}
	return d.String()
}

// edits tells the changes of headers that a route makes.
func edits(r *model.Route) []string { return headerEdits(r.RequestEdits, r.ResponseEdits) }

func headerEdits(request, response []model.HeaderEdit) (out []string) {
	for _, list := range []struct {
		of    string
		edits []model.HeaderEdit
	}{{"request", request}, {"response", response}} {
		for _, h := range list.edits {
			switch {
			case h.Remove:
				out = append(out, list.of+": remove "+h.Name)
			case h.Action == model.AppendOrAdd:
				out = append(out, list.of+": add "+h.Name+": "+h.Value)
			default:
				out = append(out, list.of+": set "+h.Name+": "+h.Value)
			}
		}
	}
	return out
}
