package main

const httpHead = `# HTTP API

Paths, parameters, answers, headers and error texts are those of Consul's HTTP API, so that its clients work as they are. A path that is
not listed is answered with 404.

Every request takes ` + "`dc`" + ` (only the agent's own datacenter exists; another is answered with 500 ` + "`No path to datacenter`" + `), and ` + "`pretty`" + `. A token
is taken from ` + "`token`" + `, ` + "`X-Consul-Token`" + ` or ` + "`Authorization: Bearer`" + `, in this order; else the agent's default token counts, and without one
the anonymous token. See [access control](../access-control.md). ` + "`ns`" + ` and ` + "`partition`" + ` are refused with 400.

The column "reads" says what a GET can do more:

- *blocks*: ` + "`index`" + ` and ` + "`wait`" + ` make a [blocking query](../find-services.md#wait-for-a-change);
- *modes*: ` + "`stale`, `consistent`, `max_stale`" + ` choose a [consistency mode](../find-services.md#how-fresh-an-answer-is), ` + "`cached`" + ` the agent's cache where
  the answer is one that is kept there;
- *selects*: ` + "`filter`, `near` and `node-meta`" + ` choose and sort.

While access control is off, everything below ` + "`/v1/acl/`" + ` answers 401 ` + "`ACL support disabled`" + `. A request that is refused because its token lacks a right is
answered with 403 and the right; the header ` + "`X-Sarn-Missing-Rule`" + ` holds the line of a policy that grants it. With ` + "`enable_debug`" + ` there are profiles below ` + "`/debug/pprof/`" + `.

Answers to reads carry ` + "`X-Consul-Index`" + `, ` + "`X-Consul-KnownLeader`" + ` and ` + "`X-Consul-LastContact`" + `. Errors are plain text.
`

// An endpoint is what the code does not say about a route.
type endpoint struct {
	argument string // what follows the path, or stands in place of *
	does     string
}

// still are the paths that read the parameters of a blocking query with the others and answer at once all the same.
var still = map[string]bool{
	"/v1/agent/service/":                   true,
	"/v1/catalog/datacenters":              true,
	"/v1/operator/autopilot/configuration": true,
	"/v1/operator/raft/configuration":      true,
	"/v1/snapshot":                         true,
}

// endpoints tell about every route by its path.
var endpoints = map[string]endpoint{
	"/v1/acl/auth-method":                     {"", "Makes an auth method; body: `Name`, `Type`, `Config` and more."},
	"/v1/acl/auth-method/":                    {"NAME", "One auth method. A PUT replaces it; a DELETE removes it with its binding rules and tokens."},
	"/v1/acl/auth-methods":                    {"", "All auth methods, without their configuration."},
	"/v1/acl/binding-rule":                    {"", "Makes a binding rule; body: `AuthMethod`, `BindType`, `BindName`, `Selector`."},
	"/v1/acl/binding-rule/":                   {"ID", "One binding rule. A PUT replaces it."},
	"/v1/acl/binding-rules":                   {"", "All binding rules, or those of `authmethod`."},
	"/v1/acl/bootstrap":                       {"", "Makes the first token, once; body: `BootstrapSecret`, or none."},
	"/v1/acl/login":                           {"", "Trades a proof of identity for a token; body: `AuthMethod`, `BearerToken`, `Meta`."},
	"/v1/acl/logout":                          {"", "Ends the token of the request, which must be from a login."},
	"/v1/acl/policies":                        {"", "All policies, without their rules."},
	"/v1/acl/policy":                          {"", "Makes a policy; body: `Name`, `Rules` and more."},
	"/v1/acl/policy/":                         {"ID", "One policy. A PUT replaces it."},
	"/v1/acl/policy/name/":                    {"NAME", "One policy, by its name."},
	"/v1/acl/replication":                     {"", "How far what the primary datacenter holds was copied here."},
	"/v1/acl/role":                            {"", "Makes a role; body: `Name`, `Policies` and more."},
	"/v1/acl/role/":                           {"ID", "One role. A PUT replaces it."},
	"/v1/acl/role/name/":                      {"NAME", "One role, by its name."},
	"/v1/acl/roles":                           {"", "All roles, or those with `policy`, an ID."},
	"/v1/acl/templated-policies":              {"", "The templates of policies by name."},
	"/v1/acl/templated-policy/name/":          {"NAME", "One template."},
	"/v1/acl/templated-policy/preview/":       {"NAME", "The policy that a template stands for; body: its variables."},
	"/v1/acl/token":                           {"", "Makes a token; body: `Policies`, `Roles` and more."},
	"/v1/acl/token/":                          {"ACCESSOR", "One token; `expanded` shows what it is linked to. A PUT replaces what it is linked to."},
	"/v1/acl/token/*/clone":                   {"ACCESSOR", "Makes a token like another; body: `Description`, or `{}`."},
	"/v1/acl/token/self":                      {"", "The token of the request."},
	"/v1/acl/tokens":                          {"", "All tokens, or those with `policy`, `role`, `authmethod` or `servicename`."},
	"/v1/agent/check/deregister/":             {"ID", "Forgets a check of this agent."},
	"/v1/agent/check/fail/":                   {"ID", "Makes a TTL check critical."},
	"/v1/agent/check/pass/":                   {"ID", "Makes a TTL check pass, for as long as its TTL."},
	"/v1/agent/check/register":                {"", "Registers a check; body: a check definition."},
	"/v1/agent/check/update/":                 {"ID", "Sets a TTL check; body: `Status`, `Output`."},
	"/v1/agent/check/warn/":                   {"ID", "Makes a TTL check warn."},
	"/v1/agent/checks":                        {"", "The checks of this agent by ID."},
	"/v1/agent/connect/authorize":             {"", "Whether the bearer of a certificate may call a service, and which rule says so; body: `Target`, `ClientCertURI`."},
	"/v1/agent/connect/ca/leaf/":              {"SERVICE", "Certificate and key of a local service, kept fresh. Blocks."},
	"/v1/agent/connect/ca/roots":              {"", "The authorities to trust."},
	"/v1/agent/force-leave/":                  {"NODE", "Makes a failed member count as left."},
	"/v1/agent/health/service/id/":            {"ID", "Health of one local instance, also as status: 200, 429 (warning), 503, 404. `format=text` answers one word."},
	"/v1/agent/health/service/name/":          {"NAME", "Health of all local instances of a service, likewise."},
	"/v1/agent/host":                          {"", "Memory, processors, system and disks of the machine."},
	"/v1/agent/join/":                         {"ADDRESS", "Joins the cluster that a member belongs to."},
	"/v1/agent/leave":                         {"", "Leaves the cluster and stops the agent."},
	"/v1/agent/maintenance":                   {"", "Switches maintenance of the node."},
	"/v1/agent/members":                       {"", "Members of the cluster as gossip sees them."},
	"/v1/agent/metrics":                       {"", "Metrics of the last interval; `format=prometheus` needs `telemetry.prometheus_retention_time`."},
	"/v1/agent/metrics/stream":                {"", "Metrics of each interval, as they come."},
	"/v1/agent/monitor":                       {"", "Lines of the agent's log, as they come."},
	"/v1/agent/reload":                        {"", "Loads the configuration again."},
	"/v1/agent/self":                          {"", "Configuration, figures and addresses of this agent."},
	"/v1/agent/service/":                      {"ID", "One local instance, with a hash. Blocks on `hash`."},
	"/v1/agent/service/deregister/":           {"ID", "Forgets an instance of this agent, and its sidecar."},
	"/v1/agent/service/maintenance/":          {"ID", "Switches maintenance of an instance."},
	"/v1/agent/service/register":              {"", "Registers an instance; body: a service definition."},
	"/v1/agent/services":                      {"", "The instances of this agent by ID."},
	"/v1/agent/token/":                        {"KIND", "Sets a token the agent uses itself; body: `Token`."},
	"/v1/agent/version":                       {"", "Version of the interfaces this agent has, and of its build."},
	"/v1/catalog/connect/":                    {"SERVICE", "Instances that take mesh connections for a service."},
	"/v1/catalog/datacenters":                 {"", "Names of the datacenters: one."},
	"/v1/catalog/deregister":                  {"", "Removes a node, an instance or a check from the catalog. What an agent registered comes back: deregister it there."},
	"/v1/catalog/gateway-services/":           {"GATEWAY", "Services behind a gateway."},
	"/v1/catalog/node-services/":              {"NODE", "A node and a list of its instances."},
	"/v1/catalog/node/":                       {"NODE", "A node and its instances by ID."},
	"/v1/catalog/nodes":                       {"", "All nodes."},
	"/v1/catalog/register":                    {"", "Writes a node, an instance or checks into the catalog, for what has no agent."},
	"/v1/catalog/service/":                    {"SERVICE", "Instances of a service, whatever their health."},
	"/v1/catalog/services":                    {"", "Names of all services, with their tags."},
	"/v1/config":                              {"", "Writes a configuration entry."},
	"/v1/config/":                             {"KIND[/NAME]", "Reads, lists or deletes configuration entries."},
	"/v1/connect/ca/configuration":            {"", "Settings of the certificate authority."},
	"/v1/connect/ca/rotation":                 {"", "How far the rotation of the root is; with PUT, starts one, body: `PrivateKeyType`, `PrivateKeyBits`, `Force`. Sarn's own."},
	"/v1/connect/ca/roots":                    {"", "The authorities to trust; `pem=true` answers certificates only."},
	"/v1/connect/intentions":                  {"", "Lists intentions, or creates one."},
	"/v1/connect/intentions/":                 {"ID", "One intention by its ID."},
	"/v1/connect/intentions/check":            {"", "Whether a source may call a destination."},
	"/v1/connect/intentions/exact":            {"", "One intention by source and destination."},
	"/v1/connect/intentions/match":            {"", "Intentions that apply to a source or destination, in the order in which they are looked at."},
	"/v1/coordinate/datacenters":              {"", "Coordinates of servers."},
	"/v1/coordinate/node/":                    {"NODE", "Coordinate of a node in the space of round-trip times."},
	"/v1/coordinate/nodes":                    {"", "Coordinates of all nodes."},
	"/v1/coordinate/update":                   {"", "Sets a coordinate, for nodes without an agent."},
	"/v1/discovery-chain/":                    {"SERVICE", "What requests for a service go through, compiled from its entries; a body overrides parts of it."},
	"/v1/event/fire/":                         {"NAME", "Sends a small message to agents; body: the payload."},
	"/v1/event/list":                          {"", "The last 256 events this agent accepted."},
	"/v1/explain":                             {"", "What becomes of a request from one service to another, and why."},
	"/v1/exported-services":                   {"", "Services exported to others."},
	"/v1/health/checks/":                      {"SERVICE", "Checks of a service."},
	"/v1/health/connect/":                     {"SERVICE", "As `health/service`, for mesh connections."},
	"/v1/health/ingress/":                     {"SERVICE", "As `health/service`, for the ingress gateways of a service."},
	"/v1/health/node/":                        {"NODE", "Checks of a node."},
	"/v1/health/service/":                     {"SERVICE", "Instances of a service with their nodes and checks."},
	"/v1/health/state/":                       {"STATE", "Checks that are `passing`, `warning`, `critical` or `any`."},
	"/v1/internal/acl/authorize":              {"", "What the token of the request may do; body: a list of `Resource`, `Segment`, `Access`."},
	"/v1/internal/service-virtual-ip":         {"", "Sets further virtual addresses of a service."},
	"/v1/internal/ui/catalog-overview":        {"", "Counts of nodes, services and checks by health."},
	"/v1/internal/ui/exported-services":       {"", "Services exported to `peer`."},
	"/v1/internal/ui/gateway-intentions/":     {"GATEWAY", "Intentions about the services behind a gateway."},
	"/v1/internal/ui/gateway-services-nodes/": {"GATEWAY", "The services behind a gateway, with their health."},
	"/v1/internal/ui/metrics-proxy/":          {"PATH", "Reads from [a store of metrics](../console.md#metrics-for-a-console-of-your-own)."},
	"/v1/internal/ui/node/":                   {"NODE", "One node with its services and checks."},
	"/v1/internal/ui/nodes":                   {"", "All nodes with their services and checks."},
	"/v1/internal/ui/service-topology/":       {"SERVICE", "What a service calls and what calls it, and whether intentions let it; needs `kind`, which may be empty."},
	"/v1/internal/ui/services":                {"", "All services with their health, proxies and gateways."},
	"/v1/kv/":                                 {"KEY", "Reads, writes or deletes a key, or all that begin with it."},
	"/v1/operator/autopilot/configuration":    {"", "Settings of autopilot."},
	"/v1/operator/autopilot/health":           {"", "Health of the servers; 429 when not all are healthy."},
	"/v1/operator/autopilot/state":            {"", "What autopilot thinks of the servers."},
	"/v1/operator/join-token":                 {"", "Makes [a token](../secure-start.md#join-tokens) by which one machine joins; body: `Server`, `TTL`."},
	"/v1/operator/keyring":                    {"", "Lists, adds, changes to and removes gossip keys."},
	"/v1/operator/raft/configuration":         {"", "The servers as Raft knows them."},
	"/v1/operator/raft/peer":                  {"", "Takes a server out of Raft."},
	"/v1/operator/raft/transfer-leader":       {"", "Hands leadership to another server."},
	"/v1/operator/usage":                      {"", "Counts of nodes, services and instances."},
	"/v1/peering/":                            {"NAME", "One [peering](../peering.md); `DELETE` ends it."},
	"/v1/peering/establish":                   {"", "Begins a peering with the token of another cluster."},
	"/v1/peering/token":                       {"", "Makes the token that another cluster begins a peering with."},
	"/v1/peerings":                            {"", "All peerings."},
	"/v1/query":                               {"", "Lists prepared queries, or creates one."},
	"/v1/query/":                              {"ID", "Reads, changes or deletes a prepared query."},
	"/v1/query/*/execute":                     {"ID-OR-NAME", "Runs a prepared query."},
	"/v1/query/*/explain":                     {"ID-OR-NAME", "The query a name leads to, with its template filled in."},
	"/v1/session/create":                      {"", "Creates a session; body: `Name`, `TTL`, `Behavior`, `LockDelay`, checks."},
	"/v1/session/destroy/":                    {"ID", "Ends a session and gives its locks back."},
	"/v1/session/info/":                       {"ID", "One session."},
	"/v1/session/list":                        {"", "All sessions."},
	"/v1/session/node/":                       {"NODE", "Sessions of a node."},
	"/v1/session/renew/":                      {"ID", "Starts the TTL of a session over."},
	"/v1/snapshot":                            {"", "Saves (GET) or restores (PUT) the state of the servers."},
	"/v1/status/leader":                       {"", "Address of the leader."},
	"/v1/status/peers":                        {"", "Addresses of the servers in Raft."},
	"/v1/txn":                                 {"", "Up to 128 operations that happen all or not at all; body: a list of operations on keys, nodes, services, checks and sessions."},
}
