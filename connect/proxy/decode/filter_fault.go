package decode

import (
	faultcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"

	"github.com/sarnmesh/sarn/connect/proxy/filter/fault"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var faultFilter = httpFilter{
	name: "envoy.filters.http.fault", old: "envoy.fault",
	proto: (*faultv3.HTTPFault)(nil), config: with((*run).fault),
	routeProto: (*faultv3.HTTPFault)(nil), route: with((*run).fault),
}

func (r *run) fault(path string, m *faultv3.HTTPFault) model.FilterConfig {
	r.only(path, m, `delay abort upstream_cluster headers downstream_nodes max_active_faults response_rate_limit
		disable_downstream_cluster_stats filter_metadata`,
		// Nothing is changed at run time.
		`delay_percent_runtime abort_percent_runtime delay_duration_runtime abort_http_status_runtime
		max_active_faults_runtime response_rate_limit_percent_runtime abort_grpc_status_runtime`)
	c := &fault.Config{
		UpstreamCluster: m.GetUpstreamCluster(),
		DownstreamNodes: m.GetDownstreamNodes(),
		Headers:         r.headerMatches(join(path, "headers"), m.GetHeaders()),
		NoClusterStats:  m.GetDisableDownstreamClusterStats(),
	}
	if n := m.GetMaxActiveFaults(); n != nil {
		c.MaxActive = &n.Value
	}
	if m.GetFilterMetadata() != nil {
		c.Metadata = m.GetFilterMetadata().AsMap()
	}
	if d := m.GetDelay(); d != nil {
		p := join(path, "delay")
		r.only(p, d, "fixed_delay header_delay percentage", "")
		_, byHeader := d.GetFaultDelaySecifier().(*faultcommonv3.FaultDelay_HeaderDelay_)
		c.Delay = &fault.Delay{
			Fixed:      r.duration(join(p, "fixed_delay"), d.GetFixedDelay(), 0),
			ByHeader:   byHeader,
			Percentage: r.fraction(join(p, "percentage"), d.GetPercentage()),
		}
	}
	if a := m.GetAbort(); a != nil {
		p := join(path, "abort")
		r.only(p, a, "http_status grpc_status header_abort percentage response_body", "")
		c.Abort = &fault.Abort{Status: int(a.GetHttpStatus()), Body: a.GetResponseBody(), Percentage: r.fraction(join(p, "percentage"), a.GetPercentage())}
		switch s := a.GetErrorType().(type) {
		case *faultv3.FaultAbort_GrpcStatus:
			c.Abort.GRPCStatus = &s.GrpcStatus
		case *faultv3.FaultAbort_HeaderAbort_:
			c.Abort.ByHeader = true
		}
	}
	if l := m.GetResponseRateLimit(); l != nil {
		p := join(path, "response_rate_limit")
		r.only(p, l, "fixed_limit header_limit percentage", "")
		_, byHeader := l.GetLimitType().(*faultcommonv3.FaultRateLimit_HeaderLimit_)
		c.RateLimit = &fault.RateLimit{
			KiBps:      min(l.GetFixedLimit().GetLimitKbps(), 1<<31),
			ByHeader:   byHeader,
			Percentage: r.fraction(join(p, "percentage"), l.GetPercentage()),
		}
	}
	return c
}
