package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/client/httpapi"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/internal/gossip"
	"github.com/sarnmesh/sarn/internal/version"
	"github.com/sarnmesh/sarn/server"
)

// envoys are the releases of Envoy whose resources are served, newest first.
var envoys = []string{"1.40.0", "1.39.0", "1.38.0", "1.37.0"}

// Self implements httpapi.Agent.
func (a *Agent) Self(context.Context) (*httpapi.AgentSelf, error) {
	s := a.current()
	self := &httpapi.AgentSelf{
		Config: httpapi.AgentSummary{
			Datacenter: s.Node.Datacenter, PrimaryDatacenter: s.Node.PrimaryDatacenter, NodeName: s.Node.Name, NodeID: a.node.ID,
			Revision: version.Commit, Server: s.Server, Version: version.Compat, BuildDate: version.BuildDate,
		},
		DebugConfig: a.debugConfig(s),
		Member:      member(a.pool.Local()),
		Stats:       a.stats(s),
		Meta:        nodeMeta(s),
	}
	if !s.DisableCoordinates {
		if c := a.pool.Coordinate(); c != nil {
			self.Coord = &catalog.Coordinate{Vec: c.Vec, Error: c.Error, Adjustment: c.Adjustment, Height: c.Height}
		}
	}
	plain, secure := port(s.Addresses.GRPC, s.Ports.GRPC), port(s.Addresses.GRPCTLS, s.Ports.GRPCTLS)
	if plain > 0 || secure > 0 {
		x := &httpapi.AgentXDS{SupportedProxies: map[string][]string{"envoy": envoys}, Port: plain}
		x.Ports = httpapi.AgentXDSPorts{Plaintext: plain, TLS: secure}
		if secure > 0 {
			x.Port = secure
		}
		self.XDS = x
	}
	return self, nil
}

// stats are figures about the parts of the agent.
func (a *Agent) stats(s *config.Settings) map[string]map[string]string {
	acls := "disabled"
	if s.ACL.Enabled {
		acls = "enabled"
	}
	stats := map[string]map[string]string{
		"build": {
			"version": version.Number(), "prerelease": version.Prerelease(), "revision": version.Commit, "version_metadata": "",
		},
		"runtime": {
			"arch": runtime.GOARCH, "os": runtime.GOOS, "version": runtime.Version(), "cpu_count": strconv.Itoa(runtime.NumCPU()),
			"max_procs": strconv.Itoa(runtime.GOMAXPROCS(0)), "goroutines": strconv.Itoa(runtime.NumGoroutine()),
		},
	}
	if a.server != nil {
		maps.Copy(stats, a.server.Stats())
	} else {
		stats["consul"] = map[string]string{"server": "false", "known_servers": strconv.Itoa(len(a.router.Servers()))}
		stats["serf_lan"] = a.pool.Stats()
	}
	if stats["consul"] != nil {
		stats["consul"]["acl"] = acls
	}
	return stats
}

func member(m gossip.Member) httpapi.AgentMember {
	return httpapi.AgentMember{
		Name: m.Name, Addr: m.Addr.String(), Port: m.Port, Tags: m.Tags, Status: int(m.Status),
		ProtocolMin: m.ProtocolMin, ProtocolMax: m.ProtocolMax, ProtocolCur: m.ProtocolCur,
		DelegateMin: m.DelegateMin, DelegateMax: m.DelegateMax, DelegateCur: m.DelegateCur,
	}
}

// wanPool returns the WAN pool, nil when the agent is in none.
func (a *Agent) wanPool() *gossip.Pool {
	if a.server == nil {
		return nil
	}
	return a.server.WAN()
}

// Members implements httpapi.Agent.
func (a *Agent) Members(wan bool) ([]httpapi.AgentMember, error) {
	pool := a.pool
	if wan {
		if a.server == nil {
			return nil, nil
		}
		pool = a.wanPool()
	}
	list := []httpapi.AgentMember{}
	if pool == nil {
		return list, nil
	}
	for _, m := range pool.Members() {
		list = append(list, member(m))
	}
	return list, nil
}

var errNoWAN = errors.New("this agent is in no WAN pool")

// Join implements httpapi.Agent.
func (a *Agent) Join(_ context.Context, address string, wan bool) error {
	pool, port := a.pool, a.current().Ports.SerfLAN
	if wan {
		if pool, port = a.wanPool(), a.current().Ports.SerfWAN; pool == nil {
			return errNoWAN
		}
	}
	_, err := pool.Join(withPort([]string{address}, port))
	return err
}

// ForceLeave implements httpapi.Agent.
func (a *Agent) ForceLeave(name string, prune, wan bool) error {
	pool := a.pool
	if wan {
		if pool = a.wanPool(); pool == nil {
			return errNoWAN
		}
	}
	for _, m := range pool.Members() {
		if m.Name == name {
			return pool.ForceLeave(name, prune)
		}
	}
	return fmt.Errorf("agent: No node found with name '%s'", name)
}

// Leave implements httpapi.Agent.
func (a *Agent) Leave(ctx context.Context) error {
	if err := a.leave(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	select {
	case a.stop <- leftByAPI:
	default:
	}
	return nil
}

// SetToken implements httpapi.Agent.
func (a *Agent) SetToken(kind httpapi.AgentToken, secret string) error {
	if err := a.tokens.put(kind, secret); err != nil {
		return err
	}
	if kind == httpapi.TokenDefault || kind == httpapi.TokenAgent {
		a.local.SyncSoon()
	}
	return nil
}

// Reload implements httpapi.Agent: it reads the configuration again and applies what can change while the agent runs.
// When there is anything wrong with it, nothing changes.
func (a *Agent) Reload(ctx context.Context) error { return a.reload(ctx, false) }

// reload reads the configuration again; byItself tells that nobody asked for it but changed files.
func (a *Agent) reload(ctx context.Context, byItself bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, warnings, err := config.Load(a.sources)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		a.log.Warn(w)
	}
	for _, c := range config.Diff(a.begun, s) {
		if c.Restart {
			a.log.Warn("a changed setting takes effect only after a restart", "key", c.Key)
		}
	}
	if err := checkWatches(s.Watches); err != nil {
		return err
	}
	if _, err := metricTargets(s); err != nil {
		return err
	}
	collector, err := traceCollector(s)
	if err != nil {
		return err
	}
	if byItself && keepTLS(s, a.settings) {
		a.log.Warn("changed TLS settings take effect when somebody asks for a reload; certificates are read again now")
	}
	if err := a.loadTLS(s); err != nil {
		return err
	}
	if level, err := config.ParseLevel(s.Log.Level); err != nil {
		a.log.Warn("log level not changed", "error", err)
	} else {
		a.log.SetLevel(level)
	}
	resume := a.local.Pause()
	defer resume()
	a.tokens.configure(s)
	a.local.SetNodeMeta(nodeMeta(s))
	a.local.SetDiscardCheckOutput(s.Check.DiscardOutput)
	services, checks := definitions(s)
	if err := a.local.Load(ctx, services, checks); err != nil {
		return err
	}
	if err := a.watches.set(s.Watches); err != nil {
		return err
	}
	a.dns.Update(dnsSettings(s))
	a.conns.SetMax(s.Limits.HTTPMaxConnsPerClient)
	a.cache.SetRate(s.Cache.EntryFetchRate, s.Cache.EntryFetchMaxBurst)
	a.xds.SetUpdateRate(s.XDS.UpdateMaxPerSecond)
	if err := a.metrics.set(s); err != nil {
		return err
	}
	a.traces.Set(collector, s.Telemetry.OTLPTraceSampling)
	if a.server != nil {
		a.rate.Set(s.Limits.RPCRate, s.Limits.RPCMaxBurst)
		limits := requestLimits(s)
		err = a.server.Reload(server.Reload{
			Limits:        &limits,
			ClientTimeout: s.Limits.RPCClientTimeout, MaxConnsPerIP: s.Limits.RPCMaxConnsPerClient, RaftMultiplier: s.Performance.RaftMultiplier,
			RaftSnapshotEntries: uint64(s.Raft.SnapshotThreshold), RaftSnapshotEvery: s.Raft.SnapshotInterval,
			RaftTrailingLogs: uint64(s.Raft.TrailingLogs),
		})
		if err != nil {
			return err
		}
	} else {
		a.router.SetRate(s.Limits.RPCRate, s.Limits.RPCMaxBurst)
		a.router.SetTimeout(s.Limits.RPCClientTimeout)
	}
	// What needs a restart stays as it is.
	s.Addresses, s.Ports, s.Node.Name, s.Node.ID, s.Node.Datacenter = a.settings.Addresses, a.settings.Ports, a.settings.Node.Name, a.settings.Node.ID, a.settings.Node.Datacenter
	a.settings = s
	select {
	case a.seeds <- struct{}{}:
	default:
	}
	a.log.Info("configuration reloaded")
	return nil
}

// mayHoldSecrets are fields in which users put what only they can tell from a secret: credentials of certificate
// authorities and providers, headers and bodies of requests, parameters of watches.
var mayHoldSecrets = []string{"CAConfig", "ConfigEntries", "MetricsProxyHeaders", "OTLPHeaders", "Watches", "Header", "Body"}

// redact copies a value of the configuration for people to look at, with every secret hidden.
func redact(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return redact(v.Elem())
	case reflect.Struct:
		if s, ok := v.Interface().(fmt.Stringer); ok {
			return s.String()
		}
		out := map[string]any{}
		for i := range v.NumField() {
			f := v.Type().Field(i)
			switch {
			case !f.IsExported():
			case f.Tag.Get("secret") != "" || f.Type.PkgPath() == "" && f.Name == "Token":
				out[f.Name] = "hidden"
				if v.Field(i).IsZero() {
					out[f.Name] = ""
				}
			case slices.Contains(mayHoldSecrets, f.Name):
				out[f.Name] = "hidden"
				if v.Field(i).IsZero() {
					out[f.Name] = nil
				}
			default:
				out[f.Name] = redact(v.Field(i))
			}
		}
		return out
	case reflect.Slice, reflect.Array:
		out := []any{}
		for i := range v.Len() {
			out = append(out, redact(v.Index(i)))
		}
		return out
	case reflect.Map:
		out := map[string]any{}
		for _, k := range v.MapKeys() {
			out[fmt.Sprint(k.Interface())] = redact(v.MapIndex(k))
		}
		return out
	case reflect.Int64:
		if d, ok := v.Interface().(time.Duration); ok {
			return d.String()
		}
	case reflect.Float64:
		return fmt.Sprint(v.Float())
	case reflect.Func, reflect.Chan:
		return nil
	}
	return v.Interface()
}

// dialDocker opens a connection to the Docker engine: DOCKER_HOST, else its usual socket.
func dialDocker(ctx context.Context) (net.Conn, error) {
	network, address := "unix", "/var/run/docker.sock"
	if host := os.Getenv("DOCKER_HOST"); host != "" {
		u, err := url.Parse(host)
		if err != nil {
			return nil, fmt.Errorf("DOCKER_HOST: %w", err)
		}
		if network, address = u.Scheme, u.Host; network == "unix" {
			address = u.Path
		}
	}
	return (&net.Dialer{}).DialContext(ctx, network, address)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
