package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/sarnmesh/sarn/client/sidecar"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/internal/version"
)

// restartSidecar is how soon a sidecar that ended is started again, the first time.
const restartSidecar = 100 * time.Millisecond

// superviseSidecars runs a sidecar for each local service that declares one, or one process for all of them, until ctx
// ends.
func (a *Agent) superviseSidecars(ctx context.Context) error {
	s := a.current()
	httpAddr, grpcAddr := reach(s.Addresses.HTTP), reach(s.Addresses.GRPC)
	if httpAddr == "" || grpcAddr == "" {
		return fmt.Errorf("connect.sidecars and connect.node_proxy need the HTTP and the gRPC listener; set ports.http and ports.grpc")
	}
	dir := filepath.Join(s.DataDir, "sidecars")
	if s.DataDir == "" {
		tmp, err := os.MkdirTemp("", "sarn-sidecars-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		dir = tmp
	}
	sup, err := sidecar.New(sidecar.Local{State: a.local, Token: a.tokens.Default}, sidecar.Exec{}, sidecar.Config{
		Dir: dir, Args: []string{"-http-addr", httpAddr, "-grpc-addr", grpcAddr}, Build: version.Version + " " + version.Commit,
		Node: s.Connect.NodeProxy, Backoff: restartSidecar, OnReady: a.local.RunChecks, Logger: a.log.Named("sidecar"),
	})
	if err != nil {
		return err
	}
	return sup.Run(ctx)
}

// reach is the address at which a process of this machine reaches the first of the listeners; empty if there is none.
func reach(listeners []config.Listen) string {
	if len(listeners) == 0 {
		return ""
	}
	l := listeners[0]
	if l.Network == "unix" {
		return "unix://" + l.Address
	}
	host, port, err := net.SplitHostPort(l.Address)
	if err != nil {
		return ""
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip.Is6() {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port)
}
