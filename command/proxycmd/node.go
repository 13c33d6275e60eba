package proxycmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/sarnmesh/sarn/connect/proxy"
	"github.com/sarnmesh/sarn/connect/proxy/admin"
	"github.com/sarnmesh/sarn/connect/proxy/decode"
	"github.com/sarnmesh/sarn/connect/proxy/node"
	"github.com/sarnmesh/sarn/internal/version"
)

// runNode runs all proxies of the host.
func (c *command) runNode(ctx context.Context, log hclog.Logger) error {
	x := &c.flags
	smallHeap()
	a, err := c.agent(log)
	if err != nil {
		return err
	}
	c.ui.Info("    Configuration mode: Node")
	if x.stateDir != "" {
		if err := admin.SocketFolder(x.stateDir); err != nil {
			return fmt.Errorf("state folder: %w", err)
		}
	}
	decoder := decode.New(decode.FromSystem()) // what several proxies were sent is parsed once
	n := node.New(node.Config{
		Connections: allConnections(x.maxConnections), MaxConnections: x.proxyConnections, Memory: x.bodyMemory << 20,
		Logger: log.Named("node"),
		Proxy: func(id string, token func() string) (proxy.Config, error) {
			cfg := proxy.Config{
				Version: version.Number(), Decoder: decoder, Logger: log.Named(id).With("proxy", id),
				Bootstrap: a.bootstrap(id), Targets: a.targets(), Metadata: a.metadataOf(token),
				Stdout: os.Stdout, Stderr: os.Stderr, ShutdownTime: max(x.drainTime, time.Millisecond),
			}
			if x.stateDir != "" {
				cfg.StateFile = filepath.Join(x.stateDir, fileName(id)+".state")
			}
			return cfg, nil
		},
	})
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	g, gctx := errgroup.WithContext(ctx)
	adminListener, _, err := c.openAdmin(gctx, "node", nil)
	if err != nil {
		return fmt.Errorf("admin server: %w", err)
	}
	// What stands beside the proxies stays until they have drained.
	sctx, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g.Go(func() error { return trimMemory(sctx) })
	if adminListener != nil {
		log.Info("admin server", "address", adminListener.Addr())
		s := admin.NewNode(n, version.Number(), quit, admin.Config{Logger: log})
		g.Go(func() error { return s.Serve(sctx, adminListener) })
	}
	g.Go(func() error {
		if x.nodeList != "" {
			return followList(gctx, x.nodeList, n.Set, log)
		}
		return a.followSidecars(gctx, n.Set)
	})
	g.Go(func() error {
		defer end()
		return n.Run(gctx)
	})
	return g.Wait()
}

// metadataOf is metadata for a proxy that may have a token of its own.
func (a *agent) metadataOf(token func() string) func() []decode.Header {
	return func() []decode.Header {
		if t := token(); t != "" {
			return []decode.Header{{Key: "x-consul-token", Value: t}}
		}
		return a.metadata()
	}
}

// fallbackConnections is how many connections all proxies may hold where the system does not say what it gives.
const fallbackConnections = 16384

// allConnections returns how many connections of clients all proxies together
// may hold: what was asked for, or what leaves a file for the connection to a
// host that each of them may need.
func allConnections(asked int64) int64 {
	if asked > 0 {
		return asked
	}
	files := openFiles()
	if files == 0 {
		return fallbackConnections
	}
	const others = 128 // files that are not connections of clients
	return max(int64(min(files, math.MaxInt32)-min(files, others))/2, 1)
}

// How often it is looked which proxies there should be.
const (
	listInterval = 250 * time.Millisecond // in a file
	askInterval  = time.Second            // by the agent
)

// A wantedList is which proxies an agent wants. It is what the file of -node-list has.
type wantedList struct {
	Proxies []struct {
		ID    string
		Token string // empty takes that of the process
	}
}

// followList passes the proxies in a file on, whenever it changes.
func followList(ctx context.Context, path string, set func([]node.Member), log hclog.Logger) error {
	var last os.FileInfo // what was read; nil before
	for {
		fi, err := os.Stat(path)
		if err == nil && (last == nil || !os.SameFile(fi, last) || fi.ModTime() != last.ModTime() || fi.Size() != last.Size()) {
			var members []node.Member
			if members, err = readList(path); err == nil {
				set(members)
			}
			if err != nil && last == nil {
				return fmt.Errorf("list of proxies: %w", err)
			}
			last = fi
		}
		if err != nil {
			// The proxies that were wanted last stay.
			if last == nil {
				return fmt.Errorf("list of proxies: %w", err)
			}
			log.Warn("list of proxies not read", "file", path, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(listInterval):
		}
	}
}

func readList(path string) ([]node.Member, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var l wantedList
	if err := json.Unmarshal(b, &l); err != nil {
		return nil, errors.New("not JSON as expected") // the text may hold tokens
	}
	var out []node.Member
	for _, p := range l.Proxies {
		if p.ID == "" {
			return nil, errors.New("a proxy has no ID")
		}
		out = append(out, node.Member{ID: p.ID, Token: p.Token})
	}
	return out, nil
}

// followSidecars passes the sidecars that are registered with the agent on, whenever there are others. An agent that
// does not answer changes nothing.
func (a *agent) followSidecars(ctx context.Context, set func([]node.Member)) error {
	var last []string // nil: not known yet
	silent := false
	for {
		all, err := a.api.Agent().ServicesWithFilterOpts(`Kind == "connect-proxy"`, a.options(ctx))
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !silent {
			a.log.Warn("the agent does not say which proxies there are, will retry", "error", err)
		}
		silent = err != nil
		if err == nil {
			maps.DeleteFunc(all, func(_ string, s *api.AgentService) bool { return s.Kind != api.ServiceKindConnectProxy })
			ids := slices.Sorted(maps.Keys(all))
			if last == nil || !slices.Equal(ids, last) {
				members := make([]node.Member, 0, len(ids))
				for _, id := range ids {
					members = append(members, node.Member{ID: id})
				}
				set(members)
				last = append([]string{}, ids...)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(askInterval):
		}
	}
}
