package transport

import (
	"strings"
	"sync/atomic"

	"github.com/hashicorp/go-metrics"

	"github.com/sarnmesh/sarn/internal/measure"
)

// Names of the metrics of this package.
var (
	// metricRequests counts calls that came over the network, metricErrors those of them that failed.
	metricRequests = []string{"rpc", "request"}
	metricErrors   = []string{"rpc", "request_error"}
	// metricQueries counts reads answered here. metricBlocking is a gauge: how many wait for a change.
	metricQueries  = []string{"rpc", "query"}
	metricBlocking = []string{"rpc", "queries_blocking"}
	// metricLimited counts calls over the request limits. Labels: limit_type, "global/read" or "global/write"; op, the
	// name of the call; mode, "permissive" or "enforcing".
	metricLimited = []string{"rpc", "rate_limit", "exceeded"}
	// metricLimitUnsaid counts those of them that the log does not name.
	metricLimitUnsaid = []string{"rpc", "rate_limit", "log_dropped"}

	// metricElsewhere counts calls passed on to servers of another datacenter. Label: datacenter.
	metricElsewhere = "rpc.cross-dc"
	// metricConsistent is a summary of the milliseconds until the leader knows that it still leads, for consistent reads.
	metricConsistent = measure.NewTimer("rpc.consistentRead")
)

// measured are the summaries, in milliseconds, of the time that calls of these names take on the server that does them.
var measured = timers(map[string][]string{
	"Catalog.Register": {"catalog", "register"}, "Catalog.Deregister": {"catalog", "deregister"},
	"KV.Apply": {"kvs", "apply"}, "Txn.Apply": {"txn", "apply"}, "Txn.Read": {"txn", "read"},
	"Session.Create": {"session", "apply"}, "Session.Destroy": {"session", "apply"}, "Session.Renew": {"session", "renew"},
	"Query.Apply": {"prepared-query", "apply"}, "Query.Explain": {"prepared-query", "explain"},
	"Query.Execute": {"prepared-query", "execute"}, "Query.ExecuteRemote": {"prepared-query", "execute_remote"},
	"Intention.Upsert": {"intention", "apply"}, "Intention.Remove": {"intention", "apply"}, "Intention.Legacy": {"intention", "apply"},
	"ConfigEntry.Apply": {"config_entry", "apply"}, "ConfigEntry.Delete": {"config_entry", "delete"},
	"ConfigEntry.Get": {"config_entry", "get"}, "ConfigEntry.List": {"config_entry", "list"},
	"ACL.TokenSet": {"acl", "token", "upsert"}, "ACL.TokenDelete": {"acl", "token", "delete"}, "ACL.TokenClone": {"acl", "token", "clone"},
	"ACL.PolicySet": {"acl", "policy", "upsert"}, "ACL.PolicyDelete": {"acl", "policy", "delete"},
	"ACL.RoleSet": {"acl", "role", "upsert"}, "ACL.RoleDelete": {"acl", "role", "delete"},
	"ACL.BindingRuleSet": {"acl", "bindingrule", "upsert"}, "ACL.BindingRuleDelete": {"acl", "bindingrule", "delete"},
	"ACL.AuthMethodSet": {"acl", "authmethod", "upsert"}, "ACL.AuthMethodDelete": {"acl", "authmethod", "delete"},
	"ACL.Login": {"acl", "login"}, "ACL.Logout": {"acl", "logout"},
})

func timers(names map[string][]string) map[string]*measure.Timer {
	m := map[string]*measure.Timer{}
	for call, name := range names {
		m[call] = measure.NewTimer(strings.Join(name, "."))
	}
	return m
}

// counts are kept here and told now and then: a call takes less time than telling of it.
type counts struct {
	requests, errors, queries atomic.Int64 // since they were last told
	blocking                  atomic.Int64
}

// Report tells the metrics that are counted. Call it every few seconds.
func (d *Dispatcher) Report() {
	for _, c := range []struct {
		name  []string
		since *atomic.Int64
	}{{metricRequests, &d.counts.requests}, {metricErrors, &d.counts.errors}, {metricQueries, &d.counts.queries}} {
		if n := c.since.Swap(0); n > 0 {
			metrics.IncrCounter(c.name, float32(n))
		}
	}
	metrics.SetGauge(metricBlocking, float32(d.counts.blocking.Load()))
}

// Blocked returns how many reads wait for a change at present.
func (d *Dispatcher) Blocked() int { return int(d.counts.blocking.Load()) }

// countElsewhere counts a call passed on to another datacenter; elsewhere has found out that there is one of that name.
func (d *Dispatcher) countElsewhere(datacenter string) {
	measure.NewCounter(metricElsewhere, metrics.Label{Name: "datacenter", Value: datacenter}).Add(1)
}
