package verb

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/posener/complete"

	"github.com/sarnmesh/sarn/catalog/entry"
)

// A Kind is a kind of names that completion asks the agent for, or knows.
type Kind int

// Kinds of names.
const (
	Services     Kind = iota + 1 // of the catalog
	ServiceIDs                   // of the agent
	Nodes                        // of the catalog
	Keys                         // of the key/value store, up to the next slash
	EntryKinds                   // of configuration entries
	Peerings                     // names of peerings
	Datacenters                  // names of datacenters
	WatchTypes                   // what can be watched
	Levels                       // of logs
	GatewayKinds                 // of gateways
	Shells                       // that have completion
)

// completionTimeout is how long a person waits for names before there are none.
const completionTimeout = time.Second

// predict returns the names of a kind. An agent that does not answer, or does not tell, has none.
func (c *command) predict(kind Kind) complete.Predictor {
	switch kind {
	case EntryKinds:
		return complete.PredictSet(entryKinds()...)
	case WatchTypes:
		return complete.PredictSet("checks", "event", "key", "keyprefix", "nodes", "service", "services")
	case Levels:
		return complete.PredictSet("trace", "debug", "info", "warn", "error")
	case GatewayKinds:
		return complete.PredictSet("api", "ingress", "mesh", "terminating")
	}
	if kind == Shells {
		return complete.PredictSet("bash", "fish", "zsh")
	}
	return complete.PredictFunc(func(a complete.Args) []string {
		call := &Call{Streams: c.streams, Context: c.ctx, verb: &c.Verb}
		// What was typed already says how to reach the agent.
		all, _, _, _ := c.flags(&call.opt)
		all.SetOutput(io.Discard)
		all.Usage = func() {}
		typed := a.Completed
		if n := len(strings.Fields(c.Path)); len(typed) >= n {
			typed = typed[n:]
		}
		if err := all.Parse(typed); err != nil {
			call.opt = options{} // half a flag
		}
		client, err := api.NewClient(call.Config())
		if err != nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(c.ctx, completionTimeout)
		defer cancel()
		q := (&api.QueryOptions{AllowStale: true}).WithContext(ctx)
		return names(client, kind, q, a.Last)
	})
}

func entryKinds() (out []string) {
	for _, k := range entry.Kinds() {
		out = append(out, string(k))
	}
	return out
}

// names asks for the names of a kind, those of keys beginning with what was typed.
func names(client *api.Client, kind Kind, q *api.QueryOptions, typed string) (out []string) {
	switch kind {
	case Services:
		found, _, _ := client.Catalog().Services(q)
		out = slices.Collect(maps.Keys(found))
	case ServiceIDs:
		found, _ := client.Agent().ServicesWithFilterOpts("", q)
		out = slices.Collect(maps.Keys(found))
	case Nodes:
		found, _, _ := client.Catalog().Nodes(q)
		for _, n := range found {
			out = append(out, n.Node)
		}
	case Keys:
		out, _, _ = client.KV().Keys(typed[:strings.LastIndex(typed, "/")+1], "/", q)
	case Peerings:
		found, _, _ := client.Peerings().List(q.Context(), q)
		for _, p := range found {
			out = append(out, p.Name)
		}
	case Datacenters:
		_, _ = client.Raw().Query("/v1/catalog/datacenters", &out, q)
	}
	slices.Sort(out)
	return out
}
