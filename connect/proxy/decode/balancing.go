//lint:file-ignore SA1019 control planes still send what Envoy has deprecated

package decode

import (
	"slices"
	"time"

	xdstype "github.com/cncf/xds/go/xds/type/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/common/v3"
	leastrequestv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	maglevv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/maglev/v3"
	randomv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/random/v3"
	ringhashv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/ring_hash/v3"
	roundrobinv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/round_robin/v3"
	subsetv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/subset/v3"
	wrrv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/wrr_locality/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	// Read from static files, where every type must be known.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/cluster_provided/v3"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// TypePeakEWMA is the type of the policy that no control plane but ours knows.
// It stands in a TypedStruct, whose fields "decay" and "start" are durations in
// their JSON form; both may be missing.
const TypePeakEWMA = "type.googleapis.com/sarn.load_balancing_policies.v1.PeakEWMA"

// Limits of what hashing may cost.
const (
	maxRing   = 8 << 20
	maxMaglev = 5000011
)

// typedBalancing takes the first policy that is supported.
func (r *run) typedBalancing(path string, l *clusterv3.LoadBalancingPolicy, c *model.Cluster) {
	const pkg = "envoy.extensions.load_balancing_policies."
	for i, p := range l.GetPolicies() {
		a := p.GetTypedExtensionConfig().GetTypedConfig()
		at := index(join(path, "policies"), i)
		if ewma, ok := peakEWMA(a); ok {
			r.peakEWMA(at, ewma, c)
			return
		}
		switch typeOf(a) {
		case pkg + "round_robin.v3.RoundRobin":
			var m roundrobinv3.RoundRobin
			if r.extension(at, a, &m) {
				c.LB = model.RoundRobin
				r.only(at, &m, "slow_start_config locality_lb_config", "")
				r.typedSlowStart(join(at, "slow_start_config"), m.GetSlowStartConfig(), c)
				r.locality(m.GetLocalityLbConfig(), c)
			}
		case pkg + "random.v3.Random":
			var m randomv3.Random
			if r.extension(at, a, &m) {
				c.LB = model.Random
				r.only(at, &m, "locality_lb_config", "")
				r.locality(m.GetLocalityLbConfig(), c)
			}
		case pkg + "least_request.v3.LeastRequest":
			var m leastrequestv3.LeastRequest
			if r.extension(at, a, &m) {
				c.LB = model.LeastRequest
				r.only(at, &m, "choice_count active_request_bias slow_start_config locality_lb_config enable_full_scan selection_method", "")
				c.Choices = choices(m.GetChoiceCount())
				c.FullScan = m.GetEnableFullScan().GetValue() || m.GetSelectionMethod() == leastrequestv3.LeastRequest_FULL_SCAN
				r.bias(join(at, "active_request_bias"), m.GetActiveRequestBias(), c)
				r.typedSlowStart(join(at, "slow_start_config"), m.GetSlowStartConfig(), c)
				r.locality(m.GetLocalityLbConfig(), c)
			}
		case pkg + "ring_hash.v3.RingHash":
			var m ringhashv3.RingHash
			if r.extension(at, a, &m) {
				c.LB = model.RingHash
				r.only(at, &m, `hash_function minimum_ring_size maximum_ring_size use_hostname_for_hashing hash_balance_factor
					consistent_hashing_lb_config locality_weighted_lb_config`, "")
				r.ring(at, m.GetMinimumRingSize(), m.GetMaximumRingSize(), m.GetHashFunction() == ringhashv3.RingHash_MURMUR_HASH_2, c)
				c.HashHostname = m.GetUseHostnameForHashing()
				r.hashBalance(join(at, "hash_balance_factor"), m.GetHashBalanceFactor(), c)
				r.hashing(at, m.GetConsistentHashingLbConfig(), c)
				c.LocalityLB = m.GetLocalityWeightedLbConfig() != nil
			}
		case pkg + "maglev.v3.Maglev":
			var m maglevv3.Maglev
			if r.extension(at, a, &m) {
				c.LB = model.Maglev
				r.only(at, &m, "table_size consistent_hashing_lb_config locality_weighted_lb_config", "")
				r.maglev(at, m.GetTableSize(), c)
				r.hashing(at, m.GetConsistentHashingLbConfig(), c)
				c.LocalityLB = m.GetLocalityWeightedLbConfig() != nil
			}
		case pkg + "wrr_locality.v3.WrrLocality":
			var m wrrv3.WrrLocality
			if r.extension(at, a, &m) {
				r.typedBalancing(join(at, "endpoint_picking_policy"), m.GetEndpointPickingPolicy(), c)
				c.LocalityLB = true
			}
		case pkg + "subset.v3.Subset":
			var m subsetv3.Subset
			if r.extension(at, a, &m) {
				var old clusterv3.Cluster_LbSubsetConfig
				old.FallbackPolicy = clusterv3.Cluster_LbSubsetConfig_LbSubsetFallbackPolicy(m.GetFallbackPolicy())
				old.DefaultSubset = m.GetDefaultSubset()
				old.MetadataFallbackPolicy = clusterv3.Cluster_LbSubsetConfig_LbSubsetMetadataFallbackPolicy(m.GetMetadataFallbackPolicy())
				old.LocalityWeightAware, old.ScaleLocalityWeight = m.GetLocalityWeightAware(), m.GetScaleLocalityWeight()
				old.PanicModeAny, old.ListAsAny = m.GetPanicModeAny(), m.GetListAsAny()
				for _, s := range m.GetSubsetSelectors() {
					old.SubsetSelectors = append(old.SubsetSelectors, &clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector{
						Keys: s.GetKeys(), SingleHostPerSubset: s.GetSingleHostPerSubset(), FallbackKeysSubset: s.GetFallbackKeysSubset(),
						FallbackPolicy: clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_LbSubsetSelectorFallbackPolicy(s.GetFallbackPolicy()),
					})
				}
				r.subsets(at, &old, c)
				r.typedBalancing(join(at, "subset_lb_policy"), m.GetSubsetLbPolicy(), c)
			}
		case pkg + "cluster_provided.v3.ClusterProvided":
			c.LB = model.ProvidedByCluster
		default:
			continue
		}
		return
	}
	r.errorf(path, "none of the policies is supported")
}

// peakEWMA returns the settings of that policy, if it is one.
func peakEWMA(a *anypb.Any) (*structpb.Struct, bool) {
	var t xdstype.TypedStruct
	if unpack(a, &t) != nil || t.GetTypeUrl() != TypePeakEWMA {
		return nil, false
	}
	return t.GetValue(), true
}

func (r *run) peakEWMA(path string, s *structpb.Struct, c *model.Cluster) {
	c.LB = model.PeakEWMAPolicy
	for k, v := range s.GetFields() {
		d, err := time.ParseDuration(v.GetStringValue())
		if err != nil || d <= 0 {
			r.errorf(join(path, k), "not a positive duration")
		}
		switch k {
		case "decay":
			c.PeakEWMA.Decay = d
		case "start":
			c.PeakEWMA.Start = d
		default:
			r.errorf(join(path, k), "not supported")
		}
	}
}

func (r *run) locality(l *commonv3.LocalityLbConfig, c *model.Cluster) {
	if l.GetLocalityWeightedLbConfig() != nil {
		c.LocalityLB = true
	}
	if z := l.GetZoneAwareLbConfig(); z != nil {
		c.FailTrafficOnPanic = z.GetFailTrafficOnPanic()
	}
}

func (r *run) hashing(path string, h *commonv3.ConsistentHashingLbConfig, c *model.Cluster) {
	if h == nil {
		return
	}
	path = join(path, "consistent_hashing_lb_config")
	r.only(path, h, "use_hostname_for_hashing hash_balance_factor", "")
	c.HashHostname = h.GetUseHostnameForHashing()
	r.hashBalance(join(path, "hash_balance_factor"), h.GetHashBalanceFactor(), c)
}

func (r *run) hashBalance(path string, v *wrapperspb.UInt32Value, c *model.Cluster) {
	if v == nil {
		return
	}
	if c.HashBalance = v.GetValue(); c.HashBalance != 0 && c.HashBalance < 100 {
		r.errorf(path, "%d is less than 100", c.HashBalance)
	}
}

func (r *run) ring(path string, least, most *wrapperspb.UInt64Value, murmur bool, c *model.Cluster) {
	c.Ring = model.Ring{Min: 1024, Max: maxRing, Murmur: murmur}
	if least != nil {
		c.Ring.Min = least.GetValue()
	}
	if most != nil {
		c.Ring.Max = most.GetValue()
	}
	if c.Ring.Min < 1 || c.Ring.Max > maxRing || c.Ring.Min > c.Ring.Max {
		r.errorf(path, "ring of %d to %d points is not within 1 to %d", c.Ring.Min, c.Ring.Max, maxRing)
	}
}

func (r *run) maglev(path string, size *wrapperspb.UInt64Value, c *model.Cluster) {
	if size == nil {
		return
	}
	c.MaglevTable = size.GetValue()
	if c.MaglevTable > maxMaglev || !prime(c.MaglevTable) {
		r.errorf(join(path, "table_size"), "%d is not a prime up to %d", c.MaglevTable, maxMaglev)
	}
}

func prime(n uint64) bool {
	for d := uint64(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n >= 2
}

func (r *run) slowStart(path string, m *clusterv3.Cluster_SlowStartConfig, c *model.Cluster) {
	if m != nil {
		r.ramp(path, m.GetSlowStartWindow(), m.GetAggression(), m.GetMinWeightPercent(), c)
	}
}

func (r *run) typedSlowStart(path string, m *commonv3.SlowStartConfig, c *model.Cluster) {
	if m != nil {
		r.ramp(path, m.GetSlowStartWindow(), m.GetAggression(), m.GetMinWeightPercent(), c)
	}
}

func (r *run) ramp(path string, window *durationpb.Duration, aggression *corev3.RuntimeDouble, least *typev3.Percent, c *model.Cluster) {
	s := &model.SlowStart{Window: r.duration(join(path, "slow_start_window"), window, 0), Aggression: 1, MinPercent: 10}
	if aggression != nil {
		if s.Aggression = aggression.GetDefaultValue(); !(s.Aggression > 0 && s.Aggression <= 100) {
			r.errorf(join(path, "aggression"), "%v is not in 0 to 100", s.Aggression)
		}
	}
	if least != nil {
		s.MinPercent = least.GetValue()
	}
	if s.Window > 0 {
		c.SlowStart = s
	}
}

func (r *run) subsets(path string, m *clusterv3.Cluster_LbSubsetConfig, c *model.Cluster) {
	r.only(path, m, "fallback_policy default_subset subset_selectors locality_weight_aware scale_locality_weight panic_mode_any list_as_any", "")
	s := &model.Subsets{
		Default:       model.NewMetadataMatches(m.GetDefaultSubset().AsMap()),
		LocalityAware: m.GetLocalityWeightAware(), ScaleLocality: m.GetScaleLocalityWeight(),
		PanicAny: m.GetPanicModeAny(), ListAsAny: m.GetListAsAny(),
	}
	switch m.GetFallbackPolicy() {
	case clusterv3.Cluster_LbSubsetConfig_ANY_ENDPOINT:
		s.Fallback = model.FallbackAny
	case clusterv3.Cluster_LbSubsetConfig_DEFAULT_SUBSET:
		s.Fallback = model.FallbackDefault
	}
	for i, x := range m.GetSubsetSelectors() {
		p := index(join(path, "subset_selectors"), i)
		sel := model.SubsetSelector{Keys: slices.Sorted(slices.Values(x.GetKeys())), Single: x.GetSingleHostPerSubset(),
			FallbackKeys: slices.Sorted(slices.Values(x.GetFallbackKeysSubset()))}
		sel.Keys = slices.Compact(sel.Keys)
		switch x.GetFallbackPolicy() {
		case clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_NO_FALLBACK:
			sel.Fallback = model.FallbackNone
		case clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_ANY_ENDPOINT:
			sel.Fallback = model.FallbackAny
		case clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_DEFAULT_SUBSET:
			sel.Fallback = model.FallbackDefault
		case clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_KEYS_SUBSET:
			sel.Fallback = model.FallbackKeySubset
			for _, k := range sel.FallbackKeys {
				if !slices.Contains(sel.Keys, k) {
					r.errorf(join(p, "fallback_keys_subset"), "%q is none of the keys", k)
				}
			}
			if n := len(sel.FallbackKeys); n == 0 || n >= len(sel.Keys) {
				r.errorf(join(p, "fallback_keys_subset"), "%d of %d keys, want some but not all", n, len(sel.Keys))
			}
		default:
			sel.Fallback = model.FallbackCluster
		}
		if len(sel.Keys) == 0 {
			r.errorf(join(p, "keys"), "missing")
		}
		if sel.Single && len(sel.Keys) != 1 {
			r.errorf(join(p, "single_host_per_subset"), "%d keys, want one", len(sel.Keys))
		}
		s.Selectors = append(s.Selectors, sel)
	}
	c.Subsets = s
}

func (r *run) tlsMatches(m *clusterv3.Cluster, c *model.Cluster) {
	for i, t := range m.GetTransportSocketMatches() {
		p := index("transport_socket_matches", i)
		r.only(p, t, "name match transport_socket", "")
		c.TLSMatches = append(c.TLSMatches, model.TLSMatch{
			Name: t.GetName(), Match: model.NewMetadataMatches(t.GetMatch().AsMap()), TLS: r.upstreamTLS(p, t.GetTransportSocket()),
		})
	}
}
