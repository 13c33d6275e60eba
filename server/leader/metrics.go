package leader

import "github.com/sarnmesh/sarn/internal/measure"

// Metrics of this package, summaries of milliseconds.
var (
	// metricReap is of the removal of old deletion marks.
	metricReap = measure.NewTimer("leader.reapTombstones")
	// metricInvalidate is of the end of a session that was not renewed.
	metricInvalidate = measure.NewTimer("session_ttl.invalidate")
)

// Active returns how many sessions end unless they are renewed; 0 without leadership.
func (s *Sessions) Active() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byID)
}
