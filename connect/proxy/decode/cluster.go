//lint:file-ignore SA1019 control planes still send what Envoy has deprecated

package decode

import (
	"cmp"
	"math"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	aggregatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/clusters/aggregate/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Cluster decodes a cluster.
func (d *Decoder) Cluster(a *anypb.Any) (*model.Cluster, error) {
	var m clusterv3.Cluster
	if err := resource(a, &m); err != nil {
		return nil, err
	}
	r := &run{d: d}
	c := r.cluster(&m)
	return c, r.err()
}

func (r *run) cluster(m *clusterv3.Cluster) *model.Cluster {
	r.only("", m, `name alt_stat_name type cluster_type eds_cluster_config connect_timeout per_connection_buffer_limit_bytes
		lb_policy least_request_lb_config round_robin_lb_config ring_hash_lb_config maglev_lb_config original_dst_lb_config lb_subset_config
		load_assignment circuit_breakers dns_refresh_rate dns_lookup_family outlier_detection cleanup_interval
		common_lb_config transport_socket transport_socket_matches upstream_connection_options load_balancing_policy typed_extension_protocol_options
		max_requests_per_connection upstream_http_protocol_options common_http_protocol_options http_protocol_options
		http2_protocol_options protocol_selection health_checks close_connections_on_host_health_failure
		ignore_health_on_host_removal metadata`,
		// What a proxy without them does is right, too.
		`track_timeout_budgets track_cluster_stats dns_failure_refresh_rate respect_dns_ttl dns_jitter use_tcp_for_dns_lookups
		wait_for_warm_on_init preconnect_policy`)
	c := &model.Cluster{
		Name:           m.GetName(),
		AltStatName:    m.GetAltStatName(),
		ConnectTimeout: r.duration("connect_timeout", m.GetConnectTimeout(), model.DefaultConnectTimeout),
		BufferLimit:    r.bufferLimit("per_connection_buffer_limit_bytes", m.GetPerConnectionBufferLimitBytes()),
		Breakers:       [2]model.Breaker{model.DefaultBreaker, model.DefaultBreaker},
		PanicThreshold: model.DefaultPanicThreshold,
		Choices:        model.DefaultLeastRequestPicks,
		ActiveBias:     1,
		TLS:            r.upstreamTLS("", m.GetTransportSocket()),
		DNS:            model.DNS{Refresh: r.duration("dns_refresh_rate", m.GetDnsRefreshRate(), model.DefaultDNSRefresh)},
	}
	if c.ConnectTimeout == 0 {
		r.errorf("connect_timeout", "must be positive")
	}
	r.discovery(m, c)
	r.balancing(m, c)
	r.breakers(m.GetCircuitBreakers(), c)
	r.upstreamHTTP(m, c)
	r.tlsMatches(m, c)
	c.HealthCheck = r.healthChecks(m.GetHealthChecks(), c)
	c.Metadata = metadata(m.GetMetadata())
	c.CloseOnFailure = m.GetCloseConnectionsOnHostHealthFailure()
	c.ForgetAtOnce = m.GetIgnoreHealthOnHostRemoval()
	if m.GetOutlierDetection() != nil {
		c.Outlier = r.outlier(m.GetOutlierDetection())
	}
	if o := m.GetUpstreamConnectionOptions(); o != nil {
		r.only("upstream_connection_options", o, "tcp_keepalive", "set_local_interface_name_on_upstream_connections happy_eyeballs_config")
		if k := o.GetTcpKeepalive(); k != nil {
			c.Keepalive = &model.Keepalive{
				Probes:   int(min(k.GetKeepaliveProbes().GetValue(), math.MaxInt16)),
				Time:     time.Duration(k.GetKeepaliveTime().GetValue()) * time.Second,
				Interval: time.Duration(k.GetKeepaliveInterval().GetValue()) * time.Second,
			}
		}
	}
	return c
}

func (r *run) discovery(m *clusterv3.Cluster, c *model.Cluster) {
	if ct := m.GetClusterType(); ct != nil {
		switch typeOf(ct.GetTypedConfig()) {
		case "envoy.extensions.clusters.aggregate.v3.ClusterConfig":
			var a aggregatev3.ClusterConfig
			if r.extension("cluster_type.typed_config", ct.GetTypedConfig(), &a) {
				c.Type, c.Members = model.Aggregate, a.GetClusters()
			}
		default:
			r.errorf("cluster_type", "%q of type %q is not supported", ct.GetName(), ct.GetTypedConfig().GetTypeUrl())
		}
		return
	}
	switch m.GetType() {
	case clusterv3.Cluster_STATIC:
		c.Type = model.Static
	case clusterv3.Cluster_STRICT_DNS:
		c.Type = model.StrictDNS
	case clusterv3.Cluster_LOGICAL_DNS:
		c.Type = model.LogicalDNS
	case clusterv3.Cluster_EDS:
		c.Type = model.EDS
	case clusterv3.Cluster_ORIGINAL_DST:
		c.Type = model.OriginalDst
	}
	dns := c.Type == model.StrictDNS || c.Type == model.LogicalDNS
	switch la := m.GetLoadAssignment(); {
	case c.Type == model.Static || dns:
		if la == nil {
			r.errorf("load_assignment", "missing in a %v cluster", c.Type)
			break
		}
		c.Endpoints = r.loadAssignment("load_assignment", la, dns)
		if n := len(c.Endpoints.Endpoints); c.Type == model.LogicalDNS && n != 1 {
			r.errorf("load_assignment", "%d endpoints in a LOGICAL_DNS cluster, want one", n)
		}
	case la != nil:
		r.errorf("load_assignment", "not for a %v cluster", c.Type)
	}
	if dns && c.DNS.Refresh < time.Millisecond {
		r.errorf("dns_refresh_rate", "%v is less than 1ms", c.DNS.Refresh)
	}
	switch m.GetDnsLookupFamily() {
	case clusterv3.Cluster_V4_ONLY:
		c.DNS.Family = model.FamilyV4
	case clusterv3.Cluster_V6_ONLY:
		c.DNS.Family = model.FamilyV6
	case clusterv3.Cluster_V4_PREFERRED:
		c.DNS.Family = model.FamilyPreferV4
	case clusterv3.Cluster_ALL:
		c.DNS.Family = model.FamilyAll
	}
	if e := m.GetEdsClusterConfig(); e != nil {
		if c.Type != model.EDS {
			r.errorf("eds_cluster_config", "not for a %v cluster", c.Type)
		}
		r.adsOnly("eds_cluster_config.eds_config", e.GetEdsConfig())
		c.EDSName = e.GetServiceName()
		c.FetchTimeout = r.duration("eds_cluster_config.eds_config.initial_fetch_timeout", e.GetEdsConfig().GetInitialFetchTimeout(), model.DefaultFetchTimeout)
	} else if c.Type == model.EDS {
		r.errorf("eds_cluster_config", "missing in an EDS cluster")
	}
	if c.Type == model.EDS && c.EDSName == "" {
		c.EDSName = c.Name
	}
}

func (r *run) balancing(m *clusterv3.Cluster, c *model.Cluster) {
	switch p := m.GetLbPolicy(); p {
	case clusterv3.Cluster_ROUND_ROBIN:
		c.LB = model.RoundRobin
	case clusterv3.Cluster_LEAST_REQUEST:
		c.LB = model.LeastRequest
	case clusterv3.Cluster_RANDOM:
		c.LB = model.Random
	case clusterv3.Cluster_RING_HASH:
		c.LB = model.RingHash
	case clusterv3.Cluster_MAGLEV:
		c.LB = model.Maglev
	case clusterv3.Cluster_CLUSTER_PROVIDED, clusterv3.Cluster_LOAD_BALANCING_POLICY_CONFIG:
		c.LB = model.ProvidedByCluster
	default:
		r.errorf("lb_policy", "%v is not supported", p)
	}
	switch l := m.GetLeastRequestLbConfig(); {
	case l != nil:
		r.only("least_request_lb_config", l, "choice_count active_request_bias slow_start_config", "")
		c.Choices = choices(l.GetChoiceCount())
		r.bias("least_request_lb_config.active_request_bias", l.GetActiveRequestBias(), c)
		r.slowStart("least_request_lb_config.slow_start_config", l.GetSlowStartConfig(), c)
	case m.GetRoundRobinLbConfig() != nil:
		r.slowStart("round_robin_lb_config.slow_start_config", m.GetRoundRobinLbConfig().GetSlowStartConfig(), c)
	case m.GetRingHashLbConfig() != nil:
		l := m.GetRingHashLbConfig()
		r.only("ring_hash_lb_config", l, "minimum_ring_size maximum_ring_size hash_function", "")
		r.ring("ring_hash_lb_config", l.GetMinimumRingSize(), l.GetMaximumRingSize(), l.GetHashFunction() == clusterv3.Cluster_RingHashLbConfig_MURMUR_HASH_2, c)
	case m.GetMaglevLbConfig() != nil:
		r.maglev("maglev_lb_config", m.GetMaglevLbConfig().GetTableSize(), c)
	case m.GetOriginalDstLbConfig() != nil:
		l := m.GetOriginalDstLbConfig()
		const p = "original_dst_lb_config"
		r.only(p, l, "use_http_header http_header_name upstream_port_override", "")
		if l.GetUseHttpHeader() {
			c.OriginalDst.Header = strings.ToLower(cmp.Or(l.GetHttpHeaderName(), "x-envoy-original-dst-host"))
		}
		if port := u32(l.GetUpstreamPortOverride(), 0); port > math.MaxUint16 {
			r.errorf(p+".upstream_port_override", "%d is no port", port)
		} else {
			c.OriginalDst.Port = uint16(port)
		}
	}
	c.OriginalDst.Cleanup = r.duration("cleanup_interval", m.GetCleanupInterval(), 5*time.Second)
	if l := m.GetLbSubsetConfig(); l != nil && len(l.GetSubsetSelectors()) > 0 {
		r.subsets("lb_subset_config", l, c)
	}
	l := m.GetCommonLbConfig()
	r.only("common_lb_config", l, `healthy_panic_threshold locality_weighted_lb_config consistent_hashing_lb_config
		zone_aware_lb_config ignore_new_hosts_until_first_hc`,
		// Updates are applied at once.
		"update_merge_window")
	if p := l.GetHealthyPanicThreshold(); p != nil {
		c.PanicThreshold = p.GetValue()
	}
	c.FailTrafficOnPanic = l.GetZoneAwareLbConfig().GetFailTrafficOnPanic()
	c.LocalityLB = l.GetLocalityWeightedLbConfig() != nil
	c.IgnoreNewUntilChecked = l.GetIgnoreNewHostsUntilFirstHc()
	if h := l.GetConsistentHashingLbConfig(); h != nil {
		c.HashHostname = h.GetUseHostnameForHashing()
		r.hashBalance("common_lb_config.consistent_hashing_lb_config.hash_balance_factor", h.GetHashBalanceFactor(), c)
	}
	if l := m.GetLoadBalancingPolicy(); l != nil {
		r.typedBalancing("load_balancing_policy", l, c)
	}
	if provided := c.Type == model.Aggregate || c.Type == model.OriginalDst; provided {
		c.LB = model.ProvidedByCluster
	} else if c.LB == model.ProvidedByCluster {
		r.errorf("lb_policy", "CLUSTER_PROVIDED is not for a %v cluster", c.Type)
	}
}

func choices(v *wrapperspb.UInt32Value) int {
	return int(min(u32(v, model.DefaultLeastRequestPicks), 64))
}

func (r *run) bias(path string, d *corev3.RuntimeDouble, c *model.Cluster) {
	if d == nil {
		return
	}
	if c.ActiveBias = d.GetDefaultValue(); !(c.ActiveBias >= 0 && c.ActiveBias <= 100) {
		r.errorf(path, "%v is not in 0 to 100", c.ActiveBias)
		c.ActiveBias = 1
	}
}

func (r *run) breakers(m *clusterv3.CircuitBreakers, c *model.Cluster) {
	r.only("circuit_breakers", m, "thresholds per_host_thresholds", "")
	for i, t := range m.GetPerHostThresholds() {
		r.only(index("circuit_breakers.per_host_thresholds", i), t, "priority max_connections", "")
		c.Breakers[t.GetPriority()&1].MaxHostConnections = u32(t.GetMaxConnections(), 0)
	}
	for i, t := range m.GetThresholds() {
		p := index("circuit_breakers.thresholds", i)
		r.only(p, t, "priority max_connections max_pending_requests max_requests max_retries retry_budget track_remaining max_connection_pools", "")
		b := &c.Breakers[t.GetPriority()&1]
		b.MaxConnections = u32(t.GetMaxConnections(), b.MaxConnections)
		b.MaxPending = u32(t.GetMaxPendingRequests(), b.MaxPending)
		b.MaxRequests = u32(t.GetMaxRequests(), b.MaxRequests)
		b.MaxRetries = u32(t.GetMaxRetries(), b.MaxRetries)
		b.MaxPools = u32(t.GetMaxConnectionPools(), 0)
		b.TrackRemaining = t.GetTrackRemaining()
		if rb := t.GetRetryBudget(); rb != nil {
			r.only(join(p, "retry_budget"), rb, "budget_percent min_retry_concurrency", "")
			b.Budget = &model.RetryBudget{Percent: 20, Min: u32(rb.GetMinRetryConcurrency(), 3)}
			if rb.GetBudgetPercent() != nil {
				b.Budget.Percent = rb.GetBudgetPercent().GetValue()
			}
		}
	}
}

func (r *run) outlier(m *clusterv3.OutlierDetection) *model.Outlier {
	const p = "outlier_detection"
	r.only(p, m, `consecutive_5xx interval base_ejection_time max_ejection_percent enforcing_consecutive_5xx
		split_external_local_origin_errors consecutive_local_origin_failure enforcing_consecutive_local_origin_failure
		max_ejection_time max_ejection_time_jitter always_eject_one_host
		enforcing_success_rate success_rate_minimum_hosts success_rate_request_volume success_rate_stdev_factor
		consecutive_gateway_failure enforcing_consecutive_gateway_failure enforcing_local_origin_success_rate
		failure_percentage_threshold enforcing_failure_percentage enforcing_failure_percentage_local_origin
		failure_percentage_minimum_hosts failure_percentage_request_volume successful_active_health_check_uneject_host`, "")
	o := &model.Outlier{
		Consecutive5xx:          u32(m.GetConsecutive_5Xx(), 5),
		EnforceConsecutive5xx:   u32(m.GetEnforcingConsecutive_5Xx(), 100),
		ConsecutiveGateway:      u32(m.GetConsecutiveGatewayFailure(), 5),
		EnforceGateway:          u32(m.GetEnforcingConsecutiveGatewayFailure(), 0),
		ConsecutiveLocal:        u32(m.GetConsecutiveLocalOriginFailure(), 5),
		EnforceConsecutiveLocal: u32(m.GetEnforcingConsecutiveLocalOriginFailure(), 100),
		SplitLocalErrors:        m.GetSplitExternalLocalOriginErrors(),
		Interval:                r.duration(p+".interval", m.GetInterval(), 10*time.Second),
		BaseEjection:            r.duration(p+".base_ejection_time", m.GetBaseEjectionTime(), 30*time.Second),
		EjectionJitter:          r.duration(p+".max_ejection_time_jitter", m.GetMaxEjectionTimeJitter(), 0),
		MaxEjectionPercent:      u32(m.GetMaxEjectionPercent(), 10),
		AlwaysEjectOne:          m.GetAlwaysEjectOneHost().GetValue(),
		KeepDespiteCheck:        !boolean(m.GetSuccessfulActiveHealthCheckUnejectHost(), true),
		SuccessRate: model.OutlierRate{
			MinHosts:     u32(m.GetSuccessRateMinimumHosts(), 5),
			MinRequests:  u32(m.GetSuccessRateRequestVolume(), 100),
			Factor:       float64(u32(m.GetSuccessRateStdevFactor(), 1900)) / 1000,
			Enforce:      u32(m.GetEnforcingSuccessRate(), 100),
			EnforceLocal: u32(m.GetEnforcingLocalOriginSuccessRate(), 100),
		},
		FailurePercentage: model.OutlierRate{
			MinHosts:     u32(m.GetFailurePercentageMinimumHosts(), 5),
			MinRequests:  u32(m.GetFailurePercentageRequestVolume(), 50),
			Factor:       float64(u32(m.GetFailurePercentageThreshold(), 85)),
			Enforce:      u32(m.GetEnforcingFailurePercentage(), 0),
			EnforceLocal: u32(m.GetEnforcingFailurePercentageLocalOrigin(), 0),
		},
	}
	o.MaxEjection = r.duration(p+".max_ejection_time", m.GetMaxEjectionTime(), max(300*time.Second, o.BaseEjection))
	if o.Interval < time.Millisecond {
		r.errorf(p+".interval", "%v is less than 1ms", o.Interval)
	}
	return o
}

// LoadAssignment decodes the endpoints of a cluster.
func (d *Decoder) LoadAssignment(a *anypb.Any) (*model.LoadAssignment, error) {
	var m endpointv3.ClusterLoadAssignment
	if err := resource(a, &m); err != nil {
		return nil, err
	}
	r := &run{d: d}
	la := r.loadAssignment("", &m, false)
	return la, r.err()
}

func (r *run) loadAssignment(path string, m *endpointv3.ClusterLoadAssignment, names bool) *model.LoadAssignment {
	r.only(path, m, "cluster_name endpoints policy", "")
	r.only(join(path, "policy"), m.GetPolicy(), "overprovisioning_factor endpoint_stale_after drop_overloads weighted_priority_health", "")
	la := &model.LoadAssignment{
		Cluster:          m.GetClusterName(),
		Overprovisioning: u32(m.GetPolicy().GetOverprovisioningFactor(), model.DefaultOverprovisioning),
		PriorityByWeight: m.GetPolicy().GetWeightedPriorityHealth(),
		StaleAfter:       r.duration(join(path, "policy.endpoint_stale_after"), m.GetPolicy().GetEndpointStaleAfter(), 0),
	}
	for i, d := range m.GetPolicy().GetDropOverloads() {
		p := index(join(path, "policy.drop_overloads"), i)
		la.Drops = append(la.Drops, model.DropOverload{Category: d.GetCategory(), Fraction: r.fraction(p, d.GetDropPercentage())})
	}
	for i, group := range m.GetEndpoints() {
		p := index(join(path, "endpoints"), i)
		r.only(p, group, "locality lb_endpoints load_balancing_weight priority", "metadata proximity")
		l := group.GetLocality()
		la.Localities = append(la.Localities, model.Locality{
			Region: l.GetRegion(), Zone: l.GetZone(), SubZone: l.GetSubZone(),
			Priority: group.GetPriority(), Weight: u32(group.GetLoadBalancingWeight(), 0),
		})
		for j, e := range group.GetLbEndpoints() {
			p := index(join(p, "lb_endpoints"), j)
			r.only(p, e, "endpoint health_status load_balancing_weight metadata", "")
			r.only(join(p, "endpoint"), e.GetEndpoint(), "address hostname additional_addresses health_check_config", "observability_name")
			ep := model.Endpoint{
				Address:  r.address(join(p, "endpoint.address"), e.GetEndpoint().GetAddress(), names),
				Hostname: e.GetEndpoint().GetHostname(),
				Weight:   u32(e.GetLoadBalancingWeight(), 1),
				Priority: group.GetPriority(),
				Locality: i,
				Metadata: metadata(e.GetMetadata()),
			}
			for k, a := range e.GetEndpoint().GetAdditionalAddresses() {
				ep.Additional = append(ep.Additional, r.address(index(join(p, "endpoint.additional_addresses"), k), a.GetAddress(), false))
			}
			if h := e.GetEndpoint().GetHealthCheckConfig(); h != nil {
				hp := join(p, "endpoint.health_check_config")
				ep.Check = model.EndpointCheck{Hostname: h.GetHostname(), Disabled: h.GetDisableActiveHealthCheck()}
				if h.GetAddress() != nil {
					ep.Check.Address = r.address(join(hp, "address"), h.GetAddress(), false)
				}
				if h.GetPortValue() > math.MaxUint16 {
					r.errorf(join(hp, "port_value"), "%d is no port", h.GetPortValue())
				}
				ep.Check.Port = uint16(h.GetPortValue())
			}
			if ep.Weight == 0 {
				r.errorf(join(p, "load_balancing_weight"), "0 is not a weight")
			}
			switch e.GetHealthStatus() {
			case corev3.HealthStatus_UNKNOWN, corev3.HealthStatus_HEALTHY:
			case corev3.HealthStatus_DEGRADED:
				ep.Health = model.Degraded
			default:
				ep.Health = model.Unhealthy
			}
			la.Endpoints = append(la.Endpoints, ep)
		}
	}
	return la
}

// NameOf returns the name of a resource, as its type has it.
func NameOf(a *anypb.Any) (string, error) {
	m, err := a.UnmarshalNew()
	if err != nil {
		return "", err
	}
	if e, ok := m.(*endpointv3.ClusterLoadAssignment); ok {
		return e.GetClusterName(), nil
	}
	if n, ok := m.(interface {
		proto.Message
		GetName() string
	}); ok {
		return n.GetName(), nil
	}
	return "", nil
}
