package xds

import (
	"encoding/json"
	"fmt"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

// staticClusters makes the clusters that users add to Envoy's bootstrap, for flavour Own, whose proxy has no bootstrap of
// theirs. They are made last, so that none takes the place of another.
func (b *build) staticClusters() error {
	text := strings.Trim(b.s.Config.StaticClustersJSON, ",\n\t ")
	if b.flavour != Own || text == "" {
		return nil
	}
	var all []json.RawMessage
	if err := json.Unmarshal([]byte("["+text+"]"), &all); err != nil {
		b.problem("envoy_extra_static_clusters_json: %w", err)
		return nil
	}
	for _, one := range all {
		c := new(clusterv3.Cluster)
		err := protojson.Unmarshal(one, c)
		if err == nil {
			err = c.Validate()
		}
		if err == nil && b.out.byType[Cluster][c.Name] != nil {
			err = fmt.Errorf("there is a cluster %q already", c.Name)
		}
		if err != nil {
			b.problem("envoy_extra_static_clusters_json: %w", err)
			continue
		}
		if err := b.add(Cluster, c.Name, []any{string(one)}, func() (made, error) { return made{message: c}, nil }); err != nil {
			return err
		}
	}
	return nil
}

// tracer is where spans go when the listeners do not say it, for flavour Own: nil for nowhere, or for what Envoy's
// bootstrap says.
func (b *build) tracer() *tracev3.Tracing_Http {
	text := b.s.Config.TracingJSON
	if b.flavour != Own || text == "" {
		return nil
	}
	t := new(tracev3.Tracing)
	if err := protojson.Unmarshal([]byte(text), t); err != nil {
		b.problem("envoy_tracing_json: %w", err)
		return nil
	}
	return t.GetHttp()
}
