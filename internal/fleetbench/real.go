package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// compare sets what real agents cost the servers beside what as many simulated ones do.
func compare(ctx context.Context, o options, out io.Writer) error {
	fmt.Fprintf(out, "%d agents (load of the machine before: %s)\n\n", o.real, load())
	fmt.Fprintf(out, "| agents | log entries to register all | log entries per s | server | CPU | connections and files of the network per agent | goroutines per agent | resident per agent |\n")
	fmt.Fprintf(out, "| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, kind := range []struct {
		name  string
		start func(ctx context.Context, o options, c *cluster) (stop func(), err error)
	}{{"real", startReal}, {"simulated", startSimulated}} {
		if err := compareOne(ctx, o, kind.name, kind.start, out); err != nil {
			return fmt.Errorf("%s agents: %w", kind.name, err)
		}
	}
	return nil
}

func compareOne(ctx context.Context, o options, name string, start func(context.Context, options, *cluster) (func(), error), out io.Writer) error {
	c, err := startCluster(ctx, o)
	if err != nil {
		return err
	}
	defer c.stop()
	time.Sleep(12 * time.Second) // what servers do when they are new is done
	none := &fleet{}
	empty, err := none.look(ctx, c)
	if err != nil {
		return err
	}
	stop, err := start(ctx, o, c)
	if err != nil {
		return err
	}
	defer stop()
	if err := c.registered(ctx, o.real); err != nil {
		return err
	}
	time.Sleep(8 * time.Second) // every watch waits
	before, err := none.look(ctx, c)
	if err != nil {
		return err
	}
	time.Sleep(o.window)
	after, err := none.look(ctx, c)
	if err != nil {
		return err
	}
	took := after.at.Sub(before.at).Seconds()
	var connections, goroutines, cpu, resident float64
	for name, s := range after.servers {
		connections += float64(s.connections - empty.servers[name].connections)
		goroutines += float64(s.goroutines - empty.servers[name].goroutines)
		resident += float64(s.resident - empty.servers[name].resident)
		cpu += (s.cpu - before.servers[name].cpu).Seconds()
	}
	n := float64(o.real)
	fmt.Fprintf(out, "| %s | %d | %.1f | all three | %.1f%% | %.1f | %.1f | %.0f KiB |\n", name, before.index-empty.index,
		float64(after.index-before.index)/took, 100*cpu/took, connections/n, goroutines/n, resident/n/1024)
	return nil
}

// startReal starts real agents that do what the simulated ones do. What their proxies and programs watch is asked for over
// their API: with ?cached they keep it as they do for a proxy.
func startReal(ctx context.Context, o options, c *cluster) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	var agents []*process
	var asking sync.WaitGroup
	stop = func() {
		cancel()
		asking.Wait()
		var wg sync.WaitGroup
		for _, p := range agents {
			wg.Go(func() { p.stop(syscall.SIGKILL) })
		}
		wg.Wait()
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	services := serviceCount(o.real)
	for i := range o.real {
		defs, checks := definitions(i, services)
		var list []map[string]any
		for _, d := range defs {
			s := map[string]any{"id": d.ID, "name": d.Name, "port": d.Port, "tags": d.Tags, "check": map[string]any{
				"id": d.Checks[0].ID, "name": d.Checks[0].Name, "ttl": d.Checks[0].TTL.String(), "status": d.Checks[0].Status,
			}}
			if d.Proxy != nil {
				s["kind"] = d.Kind
				s["proxy"] = map[string]any{"destination_service_name": d.Proxy.DestinationServiceName, "destination_service_id": d.Proxy.DestinationServiceID}
			}
			list = append(list, s)
		}
		p, err := start(o.sarn, c.dir, fmt.Sprintf("agent-%05d", i), map[string]any{
			"retry_join": []string{c.servers[i%servers].lan}, "services": list, "use_streaming_backend": o.streams,
			"check": map[string]any{"id": checks[0].ID, "name": checks[0].Name, "ttl": checks[0].TTL.String(), "status": checks[0].Status},
		})
		if err != nil {
			return stop, err
		}
		agents = append(agents, p)
	}
	for i, p := range agents {
		uses := usedBy(i, services)
		for _, s := range uses {
			asking.Go(func() { p.poll(ctx, "/v1/health/connect/"+s+"?cached") })
		}
		asking.Go(func() { p.poll(ctx, "/v1/health/connect/"+uses[0]+"?") })
	}
	return stop, nil
}

// poll asks an agent again and again.
func (p *process) poll(ctx context.Context, path string) {
	own := &http.Client{Transport: &http.Transport{}}
	defer own.CloseIdleConnections()
	index := "0"
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, "GET", p.http+path+"&wait=300s&index="+index, nil)
		if err != nil {
			return
		}
		resp, err := own.Do(req)
		if err == nil && resp.StatusCode != 200 {
			err = errors.New(resp.Status)
		}
		if resp != nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		if err != nil {
			index = "0"
			select {
			case <-time.After(500 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		index = resp.Header.Get("X-Consul-Index")
	}
}

// startSimulated starts as many simulated agents, which watch what the real ones do.
func startSimulated(ctx context.Context, o options, c *cluster) (stop func(), err error) {
	f, err := newFleet(ctx, o, o.real, c)
	if err != nil {
		return nil, err
	}
	f.ownOnly = true
	if err := f.register(); err != nil {
		f.stop()
		return nil, err
	}
	f.watch()
	f.sending.Store(true)
	f.coordinates()
	return f.stop, nil
}
