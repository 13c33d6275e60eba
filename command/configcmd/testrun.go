package configcmd

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/state"
	"github.com/sarnmesh/sarn/command/explaincmd"
	"github.com/sarnmesh/sarn/connect/explain"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/server/explainrpc"
)

// A testResult is how one test went.
type testResult struct {
	Name     string
	Line     int
	Passed   bool
	Failures []string             `json:",omitempty"` // each with its line
	Outcome  *explain.Explanation `json:",omitempty"` // of a test that failed
}

// A fileResult is how the tests of a file went. Error is set when they could not be run.
type fileResult struct {
	File  string
	Error string `json:",omitempty"`
	Tests []*testResult
}

// runFile runs the tests of a file whose names are wanted.
func runFile(name string, data []byte, wanted func(test string) bool) *fileResult {
	r := &fileResult{File: name, Tests: []*testResult{}}
	f, err := parseTests(name, data)
	if err == nil {
		err = f.run(r, wanted)
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

// run puts entries and services into a state of its own and explains each request in it.
func (f *testFile) run(r *fileResult, wanted func(string) bool) error {
	docs, err := f.documents()
	if err != nil {
		return err
	}
	store := state.New()
	tx := store.Write(1)
	if err := f.apply(tx, docs); err != nil {
		tx.Abort()
		return err
	}
	node := 0
	for i := range f.services {
		if err := f.services[i].register(tx, &node); err != nil {
			tx.Abort()
			return fmt.Errorf("%s:%d: service %s: %w", f.name, f.services[i].line, f.services[i].name, err)
		}
	}
	tx.Commit()
	for _, c := range f.cases {
		if wanted(c.name) {
			r.Tests = append(r.Tests, f.runCase(store.View(), c))
		}
	}
	return nil
}

// documents returns the entries of the file and of those it names.
func (f *testFile) documents() ([]explaincmd.Document, error) {
	var out []explaincmd.Document
	for _, pattern := range f.files {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(f.name), pattern)
		}
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		if len(paths) == 0 {
			return nil, fmt.Errorf("%s: files: no file is named %s", f.name, pattern)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			docs, err := explaincmd.Documents(path, data)
			if err != nil {
				return nil, err
			}
			out = append(out, docs...)
		}
	}
	return append(out, f.entries...), nil
}

// apply makes changes; the error tells the place of one that is refused.
func (f *testFile) apply(tx *state.Tx, docs []explaincmd.Document) error {
	changes := make([]explain.Change, len(docs))
	for i := range docs {
		var err error
		if changes[i], err = docs[i].Change(); err != nil {
			return err
		}
	}
	if at, err := explainrpc.Apply(tx, f.datacenter, changes); err != nil {
		return fmt.Errorf("%s: %w", docs[at].Where(), err)
	}
	return nil
}

// register puts the instances into the catalog, each on a node of its own.
func (s *testService) register(tx *state.Tx, node *int) error {
	first := netip.AddrFrom4([4]byte{10, 0, byte((*node + 1) >> 8), byte(*node + 1)})
	if s.address != "" {
		a, err := netip.ParseAddr(s.address)
		if err != nil {
			return fmt.Errorf("address %q is no IP address", s.address)
		}
		first = a
	}
	for ; s.count > 0; s.count-- {
		*node++
		name := "node-" + strconv.Itoa(*node)
		id := s.name + "-" + strconv.Itoa(*node)
		weights := &catalog.Weights{Passing: 1, Warning: 1}
		app := &catalog.Service{
			ID: id, Service: s.name, Port: s.port, Meta: s.meta, Tags: s.tags, Weights: weights, Connect: catalog.Connect{Native: s.kind == kindNative},
		}
		if s.kind == catalog.KindTerminatingGateway {
			app.Kind = s.kind
		}
		services := []*catalog.Service{app}
		if s.kind == kindSidecar {
			proxy := &catalog.Service{
				Kind: catalog.KindConnectProxy, ID: id + "-sidecar-proxy", Service: s.name + "-sidecar-proxy", Port: 21000, Meta: s.meta, Tags: s.tags,
				Weights: weights,
				Proxy: catalog.Proxy{
					DestinationServiceName: s.name, DestinationServiceID: id, LocalServiceAddress: "127.0.0.1", LocalServicePort: s.port,
				},
			}
			for i, u := range s.upstreams {
				proxy.Proxy.Upstreams = append(proxy.Proxy.Upstreams, catalog.Upstream{DestinationType: "service", DestinationName: u, LocalBindPort: 9000 + i})
			}
			services = append(services, proxy)
		}
		for _, svc := range services {
			err := tx.Register(&catalog.RegisterRequest{
				Node: name, Address: first.String(), Service: svc,
				Check: &catalog.Check{Node: name, CheckID: "service:" + svc.ID, Name: "test", Status: s.status, ServiceID: svc.ID, ServiceName: svc.Service},
			})
			if err != nil {
				return err
			}
		}
		first = first.Next()
	}
	return nil
}

// runCase runs one test.
func (f *testFile) runCase(v *state.View, c *testCase) *testResult {
	r := &testResult{Name: c.name, Line: c.line}
	world := v
	if len(c.changes) > 0 {
		tx := v.Fork()
		err := f.apply(tx, c.changes)
		switch want, _ := c.expect[0].want.(string); {
		case c.refused && err == nil:
			r.Failures = append(r.Failures, fmt.Sprintf("line %d: nothing was refused", c.line))
			return r
		case c.refused:
			if !strings.Contains(err.Error(), want) {
				r.Failures = append(r.Failures, fmt.Sprintf("line %d: error: got %q, want one with %q", c.line, err, want))
			}
			r.Passed = len(r.Failures) == 0
			return r
		case err != nil:
			r.Failures = append(r.Failures, fmt.Sprintf("line %d: the entries of the test are refused: %v", c.line, err))
			return r
		}
		world = &tx.View
	}
	x, err := explain.Explain(&explain.Config{
		Datacenter: f.datacenter, TrustDomain: "00000000-0000-0000-0000-000000000000.consul",
		Default: intention.Default{Allow: f.defaultPolicy == entry.Allow, Explicit: true},
	}, explainrpc.NewWorld(world, v), c.request)
	if err != nil {
		r.Failures = append(r.Failures, fmt.Sprintf("line %d: %v", c.line, err))
		return r
	}
	for _, e := range c.expect {
		if got, ok := e.met(x); !ok {
			r.Failures = append(r.Failures, fmt.Sprintf("line %d: %s: got %s, want %s", e.line, e.what, got, shown(e.want)))
		}
	}
	if r.Passed = len(r.Failures) == 0; !r.Passed {
		r.Outcome = x
	}
	return r
}

// met compares a fact with what was expected.
func (e *expectation) met(x *explain.Explanation) (got string, ok bool) {
	switch want := e.want.(type) {
	case bool:
		v, err := e.truth(x)
		if err != nil {
			return err.Error(), false
		}
		return shown(v), v == want
	case float64:
		v, err := e.count(x)
		if err != nil {
			return err.Error(), false
		}
		return shown(v), v == want
	case []string:
		v := e.list(x)
		return shown(v), slices.Equal(v, want)
	case map[string]float64:
		v := shares(x)
		return shown(v), maps.EqualFunc(v, want, func(a, b float64) bool { return math.Abs(a-b) < 0.005 })
	case string:
		v, err := e.text(x)
		if err != nil {
			return err.Error(), false
		}
		if e.what == "reason" || e.what == "problem" {
			return shown(v), strings.Contains(v, want)
		}
		return shown(v), v == want
	}
	return "", false
}

func shown(v any) string {
	switch v := v.(type) {
	case string:
		return strconv.Quote(v)
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case []string:
		return fmt.Sprintf("%q", v)
	case map[string]float64:
		var parts []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			parts = append(parts, fmt.Sprintf("%s = %.2f", k, v[k]))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	}
	return fmt.Sprint(v)
}

var (
	errBranches = errors.New("several things, since the requests are split; expect split")
	errNoBranch = errors.New("nothing, since the request goes nowhere")
)

// same returns what the branches that get requests have in common.
func same[T comparable](x *explain.Explanation, of func(*explain.Branch) T) (v T, err error) {
	found := false
	for _, b := range x.Branches {
		if b.Weight <= 0 {
			continue
		}
		if n := of(b); found && n != v {
			return v, errBranches
		} else if !found {
			v, found = n, true
		}
	}
	if !found {
		return v, errNoBranch
	}
	return v, nil
}

// authorization returns a fact about what is decided.
func authorization[T comparable](x *explain.Explanation, of func(*explain.Authorization) T) (T, error) {
	return same(x, func(b *explain.Branch) (none T) {
		if b.Authorization == nil {
			return none
		}
		return of(b.Authorization)
	})
}

func (e *expectation) truth(x *explain.Explanation) (bool, error) {
	if e.what == "allowed" {
		return x.Allowed, nil
	}
	return authorization(x, func(a *explain.Authorization) bool { return a.ByDefault })
}

func (e *expectation) count(x *explain.Explanation) (float64, error) {
	n := 0
	var err error
	switch e.what {
	case "status":
		if x.Reply != nil {
			return float64(x.Reply.Status), nil
		}
		n, err = authorization(x, func(a *explain.Authorization) int { return a.Status })
	case "permission":
		n, err = authorization(x, func(a *explain.Authorization) int {
			if a.Permission == nil {
				return 0
			}
			return a.Permission.Index + 1
		})
	case "retries":
		if x.Retries != nil {
			n = x.Retries.Attempts
		}
	case "instances":
		n, err = same(x, func(b *explain.Branch) int { return len(b.Endpoints) })
	case "healthy":
		n, err = same(x, func(b *explain.Branch) int { return b.Healthy })
	}
	return float64(n), err
}

func (e *expectation) text(x *explain.Explanation) (string, error) {
	switch e.what {
	case "verdict":
		return x.Verdict, nil
	case "reason":
		return x.Reason, nil
	case "problem":
		return strings.Join(x.Problems, "\n"), nil
	case "route":
		switch {
		case x.Route == nil:
			return "none", nil
		case x.Route.CatchAll:
			return "default", nil
		}
		return strconv.Itoa(x.Route.Index + 1), nil
	case "path":
		return cmp.Or(x.Path, x.Request.Path), nil
	case "host":
		return cmp.Or(x.Host, x.Request.Host), nil
	case "protocol":
		return x.Protocol, nil
	case "timeout":
		if x.Timeouts == nil {
			return "none", nil
		}
		return x.Timeouts.Request, nil
	case "service":
		return same(x, func(b *explain.Branch) string { return b.Service })
	case "subset":
		return same(x, func(b *explain.Branch) string { return b.Subset })
	case "datacenter":
		return same(x, func(b *explain.Branch) string { return b.Datacenter })
	case "peer":
		return same(x, func(b *explain.Branch) string { return b.Peer })
	case "rule":
		return authorization(x, func(a *explain.Authorization) string { return a.Rule })
	case "details":
		return authorization(x, func(a *explain.Authorization) string { return a.Details })
	case "intention":
		return authorization(x, func(a *explain.Authorization) string {
			if a.Intention == nil {
				return "none"
			}
			return a.Intention.Source + " => " + a.Intention.Destination
		})
	}
	return "", nil
}

func (e *expectation) list(x *explain.Explanation) []string {
	out := []string{}
	for _, b := range x.Branches {
		if e.what == "edits" {
			out = append(out, b.Edits...)
			continue
		}
		for _, f := range b.Failover {
			out = append(out, targetName(f, x))
		}
	}
	return out
}

// targetName is SERVICE or SUBSET.SERVICE, with the datacenter or the peer if it is another.
func targetName(t *explain.Target, x *explain.Explanation) string {
	name := t.Service
	if t.Subset != "" {
		name = t.Subset + "." + name
	}
	switch {
	case t.Peer != "":
		name += " at " + t.Peer
	case t.Datacenter != x.Datacenter:
		name += " in " + t.Datacenter
	}
	return name
}

func shares(x *explain.Explanation) map[string]float64 {
	out := map[string]float64{}
	for _, b := range x.Branches {
		out[targetName(&b.Target, x)] += b.Weight
	}
	return out
}
