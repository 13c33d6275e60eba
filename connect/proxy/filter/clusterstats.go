package filter

import (
	"strings"
	"sync"

	"github.com/sarnmesh/sarn/connect/proxy/stats"
)

// maxClusters bounds the clusters that are counted by themselves: requests can name them.
const maxClusters = 1000

// ClusterStats are counters of a filter for each cluster that requests are for, under cluster.<name>.<filter>.
type ClusterStats[T any] struct {
	env    *Env
	suffix []stats.Part

	mu       sync.RWMutex
	clusters map[string]*T
}

// NewClusterStats returns counters that are made when they are first asked for. The prefix, if any, comes behind the
// filter's name.
func NewClusterStats[T any](env *Env, filter, prefix string) *ClusterStats[T] {
	s := &ClusterStats[T]{env: env, suffix: []stats.Part{stats.Text(filter)}, clusters: map[string]*T{}}
	if prefix != "" {
		s.suffix = append(s.suffix, stats.Text(prefix))
	}
	return s
}

// Of returns the counters for a cluster, nil when there are too many clusters. Those for no cluster there always are.
func (s *ClusterStats[T]) Of(cluster string) *T {
	s.mu.RLock()
	c, n := s.clusters[cluster], len(s.clusters)
	s.mu.RUnlock()
	switch {
	case c != nil:
		return c
	case cluster != "" && n >= maxClusters:
		return nil
	}
	cluster = strings.Clone(cluster)
	parts := append([]stats.Part{stats.Text("cluster"), stats.Label("envoy_cluster_name", cluster)}, s.suffix...)
	s.mu.Lock()
	defer s.mu.Unlock()
	if c = s.clusters[cluster]; c == nil {
		c = stats.Struct[T](s.env.Scope(parts...))
		s.clusters[cluster] = c
	}
	return c
}
