package agent

import (
	"context"
	"time"

	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/connect/ads"
)

// spreadEvery is how often the load of proxies is looked at.
const spreadEvery = 10 * time.Second

// spread tells the xDS server how many proxies there are for how many healthy servers, so that streams which any server
// could serve do not gather at one.
func (a *Agent) spread(ctx context.Context) error {
	loads := make(chan ads.Load)
	go func() {
		tick := time.NewTicker(spreadEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			load, ok := a.proxyLoad(ctx)
			if !ok {
				continue // the last one counts until somebody knows better
			}
			select {
			case <-ctx.Done():
				return
			case loads <- load:
			}
		}
	}()
	return a.xds.Spread(ctx, loads)
}

func (a *Agent) proxyLoad(ctx context.Context) (ads.Load, bool) {
	health, err := operator.HealthCall.Call(ctx, a.server.Internal(), &operator.StatusRequest{})
	if err != nil {
		return ads.Load{}, false
	}
	usage, err := operator.UsageCall.Call(ctx, a.server.Internal(), &operator.UsageRequest{})
	if err != nil {
		return ads.Load{}, false
	}
	var load ads.Load
	for _, s := range health.Servers {
		if s.Healthy {
			load.Servers++
		}
	}
	for kind, n := range usage.Usage[a.current().Node.Datacenter].ConnectServiceInstances {
		if kind != "connect-native" {
			load.Proxies += n
		}
	}
	return load, true
}
