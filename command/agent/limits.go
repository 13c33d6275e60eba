package agent

import (
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/server/transport"
)

// requestLimits is how many calls a server takes.
func requestLimits(s *config.Settings) transport.Limits {
	return transport.Limits{
		Mode: transport.LimitMode(s.Limits.RequestMode), Reads: s.Limits.RequestReadRate, Writes: s.Limits.RequestWriteRate,
	}
}
