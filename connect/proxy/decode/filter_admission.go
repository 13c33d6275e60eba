package decode

import (
	"time"

	admissionv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/admission_control/v3"

	"github.com/sarnmesh/sarn/connect/proxy/filter/admission"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var admissionFilter = httpFilter{
	name:  "envoy.filters.http.admission_control",
	proto: (*admissionv3.AdmissionControl)(nil),
	config: with(func(r *run, path string, m *admissionv3.AdmissionControl) model.FilterConfig {
		r.only(path, m, "enabled success_criteria sampling_window aggression sr_threshold rps_threshold max_rejection_probability", "")
		c := &admission.Config{
			Disabled:       !boolean(m.GetEnabled().GetDefaultValue(), true),
			Window:         r.duration(join(path, "sampling_window"), m.GetSamplingWindow(), 30*time.Second),
			Aggression:     1,
			Threshold:      0.95,
			MinRate:        m.GetRpsThreshold().GetDefaultValue(),
			MaxProbability: 0.8,
		}
		if c.Window < time.Second || c.Window > time.Hour {
			r.errorf(join(path, "sampling_window"), "%v is not between 1s and 1h", c.Window)
		}
		if a := m.GetAggression(); a != nil {
			c.Aggression = max(1, a.GetDefaultValue())
		}
		if s := m.GetSrThreshold(); s != nil {
			if c.Threshold = s.GetDefaultValue().GetValue() / 100; c.Threshold < 0.01 || c.Threshold > 1 {
				r.errorf(join(path, "sr_threshold"), "Success rate threshold cannot be less than 1.0%%")
			}
		}
		if p := m.GetMaxRejectionProbability(); p != nil {
			c.MaxProbability = min(1, p.GetDefaultValue().GetValue()/100)
		}
		if s := m.GetSuccessCriteria(); s != nil {
			for _, x := range s.GetHttpCriteria().GetHttpSuccessStatus() {
				c.HTTP = append(c.HTTP, admission.Range{From: int(x.GetStart()), To: int(x.GetEnd())})
			}
			c.GRPC = s.GetGrpcCriteria().GetGrpcSuccessStatus()
		}
		return c
	}),
}
