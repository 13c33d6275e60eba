package agent

import (
	"net/http"

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

// consoleOf is what answers below the path of the console, nil when it is off.
func consoleOf(s *config.Settings) http.Handler {
	switch {
	case s.UI.Dir != "":
		return httpapi.ConsoleFiles(s.UI.Dir, s.UI.ContentPath)
	case s.UI.Enabled:
		return httpapi.ConsolePage()
	}
	return nil
}
