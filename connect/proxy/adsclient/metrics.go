package adsclient

import "github.com/sarnmesh/sarn/connect/proxy/stats"

// controlPlaneStats tells about the stream, under control_plane.
type controlPlaneStats struct {
	Connected stats.Gauge `stat:"connected_state"` // 1 while a stream delivers
	Pending   stats.Gauge `stat:"pending_requests"`
}

// updateStats counts responses of one type, under listener_manager.lds and the like.
type updateStats struct {
	Attempt  stats.Counter   `stat:"update_attempt"`
	Success  stats.Counter   `stat:"update_success"`
	Failure  stats.Counter   `stat:"update_failure"`  // the stream ended
	Rejected stats.Counter   `stat:"update_rejected"` // something in it was refused
	Duration stats.Histogram `stat:"update_duration"`
	Time     stats.Gauge     `stat:"update_time"` // of the last success, in milliseconds since 1970
}
