package agent

import (
	"context"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/client/workload"
	"github.com/sarnmesh/sarn/command/agent/config"
)

// serveWorkloads serves the SPIFFE Workload API until ctx ends.
func (a *Agent) serveWorkloads(ctx context.Context) error {
	var authorize func(context.Context, string) (*acl.Authorizer, error)
	if a.access != nil {
		authorize = a.authorize
	}
	return workload.New(workload.Config{
		Authorize: authorize,
		Rules:     func() []workload.Rule { return workloadRules(a.current()) },
		Registrations: func() (list []workload.Registration, changed <-chan struct{}) {
			changed = a.local.Changed()
			for _, s := range a.local.Services() {
				if s.Instance.Kind == catalog.KindTypical {
					list = append(list, workload.Registration{Service: s.Instance.Service, Token: s.Token})
				}
			}
			return list, changed
		},
		Token: a.tokens.Default, Leaves: a.leaves, Caller: a.caller, Logger: a.log.Named("workload"),
	}).Run(ctx, a.sockets.workload)
}

// workloadRules are the rules of a configuration, which was checked.
func workloadRules(s *config.Settings) (rules []workload.Rule) {
	id := func(n *int) *uint32 {
		if n == nil {
			return nil
		}
		v := uint32(*n)
		return &v
	}
	for _, r := range s.WorkloadAPI.Rules {
		rules = append(rules, workload.Rule{Service: r.Service, UID: id(r.UID), GID: id(r.GID), Path: r.Path, Cgroup: r.Cgroup})
	}
	return rules
}
