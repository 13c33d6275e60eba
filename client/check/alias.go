package check

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/internal/rpc"
)

const (
	aliasMaxStale = 15 * time.Second
	aliasRetry    = 15 * time.Second // at least so long after a failed query
)

// aliasResult is the status of an alias of a service (empty for none) on a node (empty for the agent's own), made from
// the checks it considers. self is the ID of the alias check, which does not consider itself.
func aliasResult(checks []*catalog.Check, self, service, node string, exists bool) Result {
	if service != "" && !exists {
		return critical("Service %s could not be found on node %s", service, node)
	}
	r := Result{Status: catalog.Passing, Output: "No checks found."}
	for _, c := range checks {
		if c.CheckID == self || c.ServiceID != "" && c.ServiceID != service {
			continue
		}
		if r.Status == catalog.Passing {
			r.Output = "All checks passing."
		}
		failing := Result{Status: c.Status, Output: fmt.Sprintf("Aliased check %q failing: %s", c.Name, c.Output)}
		switch {
		case c.Status == catalog.Critical:
			return failing
		case c.Status == catalog.Warning && r.Status == catalog.Passing:
			r = failing
		}
	}
	return r
}

// A localAlias follows a service of this agent.
type localAlias struct {
	source  Aliases
	id      string
	service string
}

// Probe judges the present state.
func (a localAlias) Probe(context.Context) Result {
	if a.source == nil {
		return critical("alias checks are not available")
	}
	checks, exists := a.source.AliasChecks(a.service)
	return aliasResult(checks, a.id, a.service, "", exists)
}

// A nodeAlias follows a node, or a service on it, through the catalog.
type nodeAlias struct {
	caller  rpc.Caller
	id      string
	node    string
	service string // empty for the node itself
	token   func(id string) string
}

// Probe is not used: a nodeAlias watches.
func (a *nodeAlias) Probe(context.Context) Result { return critical("alias checks are not available") }

// watch asks for the node's checks again and again, each time until they have changed or a minute has passed.
func (a *nodeAlias) watch(ctx context.Context, report func(Result)) {
	if a.caller == nil {
		report(a.Probe(ctx))
		return
	}
	var index uint64
	for failures := 0; ctx.Err() == nil; {
		began := time.Now()
		opts := read.Options{Target: read.Target{Token: a.token(a.id)}, Mode: read.Stale, MaxStale: aliasMaxStale, MinIndex: index, MaxWait: aliasInterval}
		reply, err := catalog.ChecksCall.Call(ctx, a.caller, &catalog.ChecksRequest{Options: opts, Node: a.node})
		if err != nil {
			if failures++; failures > 1 && ctx.Err() == nil {
				report(critical("Failure checking aliased node or service: %v", err))
			}
			index = 0
			pause.For(ctx, aliasRetry+rand.N(aliasRetry))
			continue
		}
		failures = 0
		switch {
		case reply.Index < index:
			index = 0 // the state was replaced
		case reply.Index == index && time.Since(began) < time.Second:
			pause.For(ctx, time.Second) // it should have waited
		default:
			index = max(reply.Index, 1)
		}
		report(aliasResult(reply.Checks, a.id, a.service, a.node, a.exists(ctx)))
	}
}

// exists reports whether the service is on the node. When that cannot be determined, it counts as there.
func (a *nodeAlias) exists(ctx context.Context) bool {
	if a.service == "" {
		return true
	}
	opts := read.Options{Target: read.Target{Token: a.token(a.id)}, Mode: read.Stale, MaxStale: aliasMaxStale}
	reply, err := catalog.NodeServicesCall.Call(ctx, a.caller, &catalog.NodeServicesRequest{Options: opts, Node: a.node})
	if err != nil || reply.Node == nil || !strings.EqualFold(reply.Node.Node, a.node) {
		return err != nil
	}
	for _, s := range reply.Services {
		if s.ID == a.service {
			return true
		}
	}
	return false
}
