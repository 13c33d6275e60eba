package connectcmd

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/consul/api"
	"golang.org/x/sync/errgroup"

	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/connect/xds"
)

// grpcFlags are the flags of connect grpc.
type grpcFlags struct {
	envoyFlags // those about which proxy, and where the agent's gRPC port is
	dir        string
	refresh    time.Duration
}

func grpcClient(f *flag.FlagSet) func(*verb.Call) error {
	g := new(grpcFlags)
	f.StringVar(&g.proxyID, "proxy-id", env("CONNECT_PROXY_ID", ""), "`ID` of the proxy service; CONNECT_PROXY_ID")
	f.StringVar(&g.sidecarFor, "sidecar-for", env("CONNECT_SIDECAR_FOR", ""), "`ID` of the service that calls; CONNECT_SIDECAR_FOR")
	f.StringVar(&g.dir, "dir", "", "`folder` for the bootstrap, the certificate and the trusted roots; default a temporary one if there is a program to run")
	f.DurationVar(&g.refresh, "refresh", 10*time.Second, "how often the program looks for a renewed certificate")
	f.BoolVar(&g.bootstrap, "bootstrap", false, "print the bootstrap and exit")
	f.StringVar(&g.grpcAddr, "grpc-addr", env("CONSUL_GRPC_ADDR", ""), "`address` of the agent's gRPC port; CONSUL_GRPC_ADDR")
	f.StringVar(&g.grpcCAFile, "grpc-ca-file", env("CONSUL_GRPC_CACERT", ""), "CA `file` for gRPC; CONSUL_GRPC_CACERT")
	f.StringVar(&g.grpcCAPath, "grpc-ca-path", env("CONSUL_GRPC_CAPATH", ""), "`folder` of CA files for gRPC; CONSUL_GRPC_CAPATH")
	return g.run
}

func (g *grpcFlags) run(c *verb.Call) error {
	switch {
	case g.proxyID == "" && g.sidecarFor == "":
		return verb.Errorf("No service specified. One of -proxy-id or -sidecar-for is required")
	case g.dir == "" && (g.bootstrap || len(c.Args) == 0):
		return verb.Errorf("The -dir flag is required where no program is to be run")
	case g.refresh < time.Second:
		return verb.Errorf("-refresh is at least 1s")
	case g.bootstrap && len(c.Args) > 0:
		return verb.Errorf("A program can not be run with -bootstrap")
	}
	client, err := c.API()
	if err != nil {
		return err
	}
	id, err := g.findProxy(client, "")
	if err != nil {
		return err
	}
	proxy, err := g.fetch(c, client, id)
	if err != nil {
		return err
	}
	if proxy.kind != api.ServiceKindConnectProxy {
		return verb.Errorf("a gateway has no calls of its own")
	}
	dir := g.dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "sarn-grpc-"); err != nil { // mode 0700
			return verb.Errorf("Error making a folder: %w", err)
		}
		defer os.RemoveAll(dir)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return verb.Errorf("Invalid -dir: %w", err)
	}
	k := &keeper{dir: dir}
	doc, err := g.document(c, client, proxy, k)
	if err != nil {
		return err
	}
	if g.bootstrap {
		c.Println(string(doc))
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return verb.Errorf("Error making a folder: %w", err)
	}
	if err := k.write(bootstrapFile, doc); err != nil {
		return err
	}
	ctx, stop := c.Interruptible()
	defer stop()
	return k.run(ctx, c, client, proxy)
}

// Names of files in the folder of a gRPC client.
const (
	bootstrapFile   = "bootstrap.json"
	certificateFile = "certificate.pem"
	keyFile         = "key.pem"
	rootsFile       = "roots.pem"
	agentRootsFile  = "agent-roots.pem"
)

// document makes the bootstrap of a gRPC client (spec/xds.md section 19.1). If the agent's certificate is to be verified,
// what by is put beside it.
func (g *grpcFlags) document(c *verb.Call, client *api.Client, p *proxyService, k *keeper) ([]byte, error) {
	target, err := g.target(c, client)
	if err != nil {
		return nil, err
	}
	token, err := c.TokenFlag()
	if err != nil {
		return nil, err
	}
	creds := dict{"type": "insecure"}
	if target.tls {
		ca, err := g.agentRoots(c, client)
		if err != nil {
			return nil, err
		}
		creds = dict{"type": "tls", "config": dict{}}
		if ca != "" {
			creds["config"] = dict{"ca_certificate_file": k.path(agentRootsFile)}
			if !g.bootstrap {
				if err := os.MkdirAll(k.dir, 0o700); err != nil {
					return nil, verb.Errorf("Error making a folder: %w", err)
				}
				if err := k.write(agentRootsFile, []byte(ca)); err != nil {
					return nil, err
				}
			}
		}
	}
	uri := "unix:" + target.socket
	if target.socket == "" {
		uri = net.JoinHostPort(target.address, target.port)
	}
	metadata := dict{}
	if token != "" {
		// A gRPC client has no other way to send it.
		metadata["x-consul-token"] = token
	}
	return encode(dict{
		"xds_servers": []any{dict{"server_uri": uri, "channel_creds": []any{creds}, "server_features": []any{"xds_v3"}}},
		"node": dict{"id": p.id, "cluster": cmp.Or(p.proxy.DestinationServiceName, p.id), "metadata": metadata,
			"locality": dict{}}, // empty, but clients in JavaScript refuse a node without
		"certificate_providers": dict{xds.ProxylessCertificates: dict{
			"plugin_name": "file_watcher",
			"config": dict{
				"certificate_file":    k.path(certificateFile),
				"private_key_file":    k.path(keyFile),
				"ca_certificate_file": k.path(rootsFile),
				"refresh_interval":    strconv.FormatFloat(g.refresh.Truncate(time.Millisecond).Seconds(), 'f', -1, 64) + "s",
			},
		}},
	})
}

// agentRoots returns what to know the agent by, empty for what the machine trusts.
func (g *grpcFlags) agentRoots(c *verb.Call, client *api.Client) (string, error) {
	conf := c.Config()
	ca, err := pemFiles(cmp.Or(g.grpcCAFile, iif(g.grpcCAPath == "", conf.TLSConfig.CAFile)), cmp.Or(g.grpcCAPath, iif(g.grpcCAFile == "", conf.TLSConfig.CAPath)))
	if err != nil {
		return "", verb.Errorf("Error loading CA: %w", err)
	}
	if ca == "" && g.grpcAddr == "" {
		return meshRoots(client)
	}
	return ca, nil
}

// A keeper keeps the files of a gRPC client fresh.
type keeper struct{ dir string }

func (k *keeper) path(name string) string { return filepath.Join(k.dir, name) }

// write replaces a file, so that a reader sees the old or the new one.
func (k *keeper) write(name string, data []byte) (err error) {
	defer func() {
		if err != nil {
			err = verb.Errorf("Error writing %s: %w", k.path(name), err)
		}
	}()
	f, err := os.CreateTemp(k.dir, ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // without effect once it is renamed
	if _, err = f.Write(data); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), k.path(name))
}

// run writes the certificate and the roots, then keeps them fresh while the program runs that the arguments are, or until
// ctx ends if there is none.
func (k *keeper) run(ctx context.Context, c *verb.Call, client *api.Client, p *proxyService) error {
	service := cmp.Or(p.proxy.DestinationServiceName, p.name)
	leafIndex, err := k.leaf(ctx, client, service, 0)
	if err != nil {
		return err
	}
	rootsIndex, err := k.roots(ctx, client, 0)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var keeping errgroup.Group
	follow := func(index uint64, get func(index uint64) (uint64, error)) {
		keeping.Go(func() error {
			for ctx.Err() == nil {
				next, err := get(index)
				if err == nil {
					if next < index {
						next = 0
					}
					index = next
					continue
				}
				if ctx.Err() == nil {
					c.Warnf("The present certificate stays: %v", err)
				}
				select {
				case <-ctx.Done():
				case <-time.After(5 * time.Second):
				}
			}
			return nil
		})
	}
	follow(leafIndex, func(index uint64) (uint64, error) { return k.leaf(ctx, client, service, index) })
	follow(rootsIndex, func(index uint64) (uint64, error) { return k.roots(ctx, client, index) })
	if len(c.Args) > 0 {
		err = k.program(ctx, c)
		cancel()
	} else {
		c.Printf("Keeping %s\n", k.path(bootstrapFile))
		<-ctx.Done()
	}
	return errors.Join(err, keeping.Wait())
}

// leaf writes the certificate of a service once its index is another one.
func (k *keeper) leaf(ctx context.Context, client *api.Client, service string, index uint64) (uint64, error) {
	cert, meta, err := client.Agent().ConnectCALeaf(service, (&api.QueryOptions{WaitIndex: index}).WithContext(ctx))
	if err != nil {
		return 0, verb.Errorf("Error asking for the certificate of %s: %w", service, err)
	}
	if meta.LastIndex == index {
		return index, nil
	}
	// Whoever reads in between has a certificate and a key that do not match, keeps what it has, and reads again.
	if err := k.write(keyFile, []byte(cert.PrivateKeyPEM)); err != nil {
		return 0, err
	}
	return meta.LastIndex, k.write(certificateFile, []byte(cert.CertPEM))
}

// roots writes the trusted roots once their index is another one.
func (k *keeper) roots(ctx context.Context, client *api.Client, index uint64) (uint64, error) {
	roots, meta, err := client.Agent().ConnectCARoots((&api.QueryOptions{WaitIndex: index}).WithContext(ctx))
	if err != nil {
		return 0, verb.Errorf("Error asking for the roots of the mesh: %w", err)
	}
	if meta.LastIndex == index {
		return index, nil
	}
	var all strings.Builder
	for _, r := range roots.Roots {
		all.WriteString(strings.TrimSuffix(r.RootCertPEM, "\n") + "\n")
	}
	return meta.LastIndex, k.write(rootsFile, []byte(all.String()))
}

// killAfter is how long a program may take to end once it is told to.
const killAfter = 10 * time.Second

// program runs the program that the arguments are until it ends. Signals are passed on.
func (k *keeper) program(ctx context.Context, c *verb.Call) error {
	cmd := c.Child(c.Args, false, "GRPC_XDS_BOOTSTRAP="+k.path(bootstrapFile))
	cmd.Stdin = c.In
	if err := cmd.Start(); err != nil {
		return verb.Errorf("Error starting the program: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGHUP)
	defer signal.Stop(signals)
	for {
		select {
		case err := <-done:
			if failed := (*exec.ExitError)(nil); errors.As(err, &failed) && failed.ExitCode() > 0 {
				return verb.Exit(failed.ExitCode(), nil)
			}
			return err
		case s := <-signals:
			cmd.Process.Signal(s) // fails only if it has ended
		case <-ctx.Done():
			cmd.Process.Signal(syscall.SIGTERM)
			kill := time.AfterFunc(killAfter, func() { cmd.Process.Kill() })
			<-done
			kill.Stop()
			return nil
		}
	}
}
