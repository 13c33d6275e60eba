package agent

import (
	"github.com/sarnmesh/sarn/client/httpapi"
	"github.com/sarnmesh/sarn/command/agent/config"
)

// uiMetrics is what the console reads metrics through, nil when that is not configured.
func uiMetrics(s *config.Settings) *httpapi.MetricsProxy {
	if s.UI.MetricsProxyURL == "" {
		return nil
	}
	p := &httpapi.MetricsProxy{Base: s.UI.MetricsProxyURL, Paths: s.UI.MetricsProxyPaths}
	for _, h := range s.UI.MetricsProxyHeaders {
		p.Headers = append(p.Headers, httpapi.MetricsHeader{Name: h.Name, Value: h.Value})
	}
	return p
}
