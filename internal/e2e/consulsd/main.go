// Command consulsd is the service discovery of Prometheus by itself, for builds of Prometheus that leave it out: it writes
// the targets it finds as a file for file_sd_configs, whenever they change.
//
//	consulsd CONFIG FILE
//
// CONFIG is YAML or JSON, as a member of consul_sd_configs.
package main

import (
	"context"
	"encoding/json"
	"log"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/discovery"
	"github.com/prometheus/prometheus/discovery/consul"
	"github.com/prometheus/prometheus/discovery/targetgroup"
	"gopkg.in/yaml.v2"
)

// group is a member of a file for file_sd_configs.
type group struct {
	Targets []string       `json:"targets"`
	Labels  model.LabelSet `json:"labels"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	config := consul.DefaultSDConfig
	if err := yaml.UnmarshalStrict(text, &config); err != nil {
		log.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	metrics := config.NewDiscovererMetrics(registry, discovery.NewRefreshMetrics(registry))
	if err := metrics.Register(); err != nil {
		log.Fatal(err)
	}
	d, err := config.NewDiscoverer(discovery.DiscovererOptions{Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), Metrics: metrics})
	if err != nil {
		log.Fatal(err)
	}
	updates := make(chan []*targetgroup.Group)
	go d.Run(ctx, updates)
	known := map[string]*targetgroup.Group{}
	for {
		select {
		case <-ctx.Done():
			return
		case changed := <-updates:
			for _, g := range changed {
				known[g.Source] = g
			}
			list := []group{}
			for _, source := range slices.Sorted(maps.Keys(known)) {
				for _, target := range known[source].Targets {
					labels := known[source].Labels.Merge(target)
					list = append(list, group{[]string{string(target[model.AddressLabel])}, labels})
				}
			}
			if err := replace(os.Args[2], list); err != nil {
				log.Fatal(err)
			}
		}
	}
}

// replace writes the file at once: readers see the old one or the new one.
func replace(path string, list []group) error {
	for _, g := range list {
		delete(g.Labels, model.AddressLabel)
	}
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
