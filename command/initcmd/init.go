// Package initcmd holds the commands that set up a cluster securely: one for the first server, whose output is what to
// run on the machines that join, and one that makes more tokens for them.
package initcmd

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"flag"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/cli"
	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/client/newcomer"
	"github.com/sarnmesh/sarn/command/agent"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/connect/intro"
	"github.com/sarnmesh/sarn/internal/agentcert"
	"github.com/sarnmesh/sarn/internal/pause"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{
		{
			Path: "init", Synopsis: "Set up a secure cluster, or join one with a token", Example: "init -datacenter dc1", Setup: setup,
			Help: "On the first machine, makes an authority for the certificates of servers, a key for gossip and a token for the operator, writes a configuration that uses them, " +
				"with access control on and every connection between machines encrypted and verified, and starts the server. It prints what to run on the machines that join:\n\n" +
				"sarn init -join TOKEN\n\n" +
				"There, the configuration comes from the servers, which are verified before the token is shown to them. A token is good for one machine, and for minutes; " +
				"sarn join-token makes more.\n\n" +
				"The configuration is an ordinary one: change it as you like. Nothing that exists is written over.",
		},
		{
			Path: "join-token", Synopsis: "Make a token by which one machine joins", Client: true, Formats: true, Example: "join-token -server -ttl 30m", Setup: joinToken,
			Help: "Makes a token by which one more machine joins a cluster that was set up by sarn init, and prints the command to run on that machine. " +
				"The token is good once, and for the time in -ttl. Needs acl:write and operator:write.",
		},
	}
}

// options are the flags of init.
type options struct {
	datacenter, configDir, dataDir, advertise, node, join, logLevel string
	noStart                                                         bool
}

func setup(f *flag.FlagSet) func(*verb.Call) error {
	var o options
	f.StringVar(&o.datacenter, "datacenter", "dc1", "`name` of the datacenter, on the first machine")
	f.StringVar(&o.configDir, "config-dir", "/etc/sarn", "`folder` for the configuration")
	f.StringVar(&o.dataDir, "data-dir", "/var/lib/sarn", "`folder` for what the agent keeps, its keys and certificates among it")
	f.StringVar(&o.advertise, "advertise", "", "`address` at which other machines reach this one; default the private one, or with -join the one the servers were reached from")
	f.StringVar(&o.node, "node", "", "`name` of this machine in the cluster; default the host's")
	f.StringVar(&o.join, "join", "", "`token` by which to join a cluster; - reads it from standard input")
	f.StringVar(&o.logLevel, "log-level", "warn", "`level` of the log while the agent runs in the foreground")
	f.BoolVar(&o.noStart, "no-start", false, "write the configuration, and start nothing")
	return func(c *verb.Call) error {
		if err := c.NoArgs(); err != nil {
			return err
		}
		s := &setupRun{options: o, call: c}
		err := s.complete()
		switch {
		case err != nil:
		case s.join != "":
			err = s.joinCluster()
		default:
			err = s.first()
		}
		if err != nil {
			s.clear()
		}
		return err
	}
}

// A setupRun is one run of init.
type setupRun struct {
	options
	call *verb.Call
	give *owner // who the files are for; nil leaves them to who runs this
	// examples are files of a package that say nothing of their own. They are put aside.
	examples []string
	made     []string // folders that were not there, outer ones first
}

// complete fills in what was not given, and refuses what cannot be.
func (s *setupRun) complete() error {
	if s.node == "" {
		name, err := os.Hostname()
		if err != nil {
			return verb.Errorf("Error finding the name of this machine, give -node: %w", err)
		}
		s.node = name
	}
	if err := intro.CheckNode(s.node); err != nil {
		return verb.Errorf("-node: %w", err)
	}
	if err := intro.CheckDatacenter(s.datacenter); err != nil {
		return verb.Errorf("-datacenter: %w", err)
	}
	if s.advertise != "" {
		ip, err := netip.ParseAddr(s.advertise)
		if err != nil || ip.IsUnspecified() {
			return verb.Errorf("-advertise: %q is not the address of one machine", s.advertise)
		}
	}
	if s.join == "-" {
		data, err := io.ReadAll(io.LimitReader(s.call.In, 8<<10))
		if err != nil {
			return err
		}
		s.join = strings.TrimSpace(string(data))
		if s.join == "" {
			return verb.Errorf("There is no token on standard input")
		}
	}
	for _, dir := range []*string{&s.configDir, &s.dataDir} {
		path, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		if strings.ContainsAny(path, "\"\n\r") || strings.Contains(path, "${") {
			return verb.Errorf("%q: a path with such characters is not fit for a configuration file", path)
		}
		*dir = path
	}
	return s.vacant()
}

// vacant refuses folders in which there is something already, and makes them.
func (s *setupRun) vacant() error {
	entries, err := os.ReadDir(s.configDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(s.configDir, e.Name())
		if ext := filepath.Ext(path); ext != ".hcl" && ext != ".json" {
			continue
		}
		if isExample(path) {
			s.examples = append(s.examples, path)
			continue
		}
		return verb.Errorf("There is a configuration already: %s. Nothing was changed. To begin anew, move it away; to add a machine to the cluster, make a token with sarn join-token", path)
	}
	if entries, err = os.ReadDir(s.dataDir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(s.dataDir, e.Name())
		if e.Name() == "lost+found" || path == s.tlsDir() && empty(path) { // what ended halfway may have left that
			continue
		}
		return verb.Errorf("There is data of an agent already: %s. Nothing was changed. To begin anew, move it away", path)
	}
	s.give = ownerOf(s.dataDir)
	for _, dir := range []string{s.configDir, s.dataDir, s.tlsDir()} {
		if _, err := os.Stat(dir); err == nil {
			continue
		}
		mode := os.FileMode(0o755)
		if dir != s.configDir {
			mode = 0o700
		}
		s.made = append(s.made, dir)
		if err := os.MkdirAll(dir, mode); err != nil {
			return err
		}
		if err := s.give.take(dir); err != nil {
			return err
		}
	}
	// A token is good once: that the files can be written is found out before it is shown.
	probe, err := os.CreateTemp(s.configDir, ".init-")
	if err != nil {
		return err
	}
	probe.Close()
	return os.Remove(probe.Name())
}

// empty reports whether there is no folder or nothing in it.
func empty(dir string) bool {
	entries, err := os.ReadDir(dir)
	return len(entries) == 0 && (err == nil || errors.Is(err, os.ErrNotExist))
}

// clear removes the folders that were made and have remained empty, so that a run that failed leaves no trace.
func (s *setupRun) clear() {
	for _, dir := range slices.Backward(s.made) {
		os.Remove(dir) // fails if there is anything in it
	}
}

// exampleLines are what the file of a package says, with which an agent runs alone.
var exampleLines = []string{`data_dir = "/var/lib/sarn"`, `bind_addr = "127.0.0.1"`}

// isExample reports whether a configuration file says no more than a package's does.
func isExample(path string) bool {
	data, err := os.ReadFile(path)
	if err != nil || filepath.Ext(path) != ".hcl" {
		return false
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line != "" && line[0] != '#' && !strings.HasPrefix(line, "//") && !slices.Contains(exampleLines, line) {
			return false
		}
	}
	return filepath.Base(path) != configName
}

const configName = "init.hcl"

func (s *setupRun) configFile() string    { return filepath.Join(s.configDir, configName) }
func (s *setupRun) operatorFile() string  { return filepath.Join(s.dataDir, "operator.token") }
func (s *setupRun) tlsDir() string        { return filepath.Join(s.dataDir, "tls") }
func (s *setupRun) authorityFile() string { return filepath.Join(s.tlsDir(), "ca.pem") }
func (s *setupRun) keyFile() string       { return filepath.Join(s.tlsDir(), "ca-key.pem") }
func (s *setupRun) serverFile() string    { return filepath.Join(s.tlsDir(), "server.pem") }

// authorityLife is the validity of the authority. Replacing it takes all machines: it is to outlive most of them.
const authorityLife = 10 * 365 * 24 * time.Hour

// first sets up the first server.
func (s *setupRun) first() error {
	c := s.call
	cert, key, err := agentcert.Authority{Validity: authorityLife}.Make(time.Now())
	if err != nil {
		return verb.Errorf("Error making the authority: %w", err)
	}
	gossip := make([]byte, 32)
	rand.Read(gossip)
	operator := uuid.NewString()
	conf := configuration{
		run: s, server: true, first: true, datacenter: s.datacenter, primary: s.datacenter, gossipKey: base64.StdEncoding.EncodeToString(gossip), management: operator,
	}
	if s.advertise != "" {
		conf.address, conf.local = s.advertise, isLocal(s.advertise)
	}
	if err := s.write([]file{
		{s.authorityFile(), string(cert), 0o644}, {s.keyFile(), string(key), 0o600}, {s.operatorFile(), operator + "\n", 0o600},
		{s.configFile(), conf.text(), 0o600},
	}); err != nil {
		return err
	}
	c.Printf("The first server of datacenter %s is set up.\n\n", s.datacenter)
	c.Printf("  Configuration     %s\n  Authority         %s, its key beside it\n  Operator's token  %s\n\n", s.configFile(), s.authorityFile(), s.operatorFile())
	if !s.starts() {
		s.explainStart()
		c.Printf("Then make a token for each machine that joins:\n\n  export SARN_HTTP_TOKEN_FILE=%s\n  sarn join-token -server\n  sarn join-token -client\n", s.operatorFile())
		return nil
	}
	ctx, cancel := context.WithCancel(c.Context)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.invite(ctx, operator)
	}()
	err = s.start()
	cancel()
	<-done
	return err
}

// joinCluster sets up a machine that joins.
func (s *setupRun) joinCluster() error {
	c := s.call
	token, err := intro.ParseJoinToken(s.join)
	if err != nil {
		return verb.Errorf("-join: %w", err)
	}
	ctx, stop := c.Interruptible()
	reply, from, err := newcomer.Join(ctx, token, s.node, dial)
	stop()
	if err != nil {
		return verb.Errorf("Error joining: %w", err)
	}
	t := &reply.Settings
	conf := configuration{
		run: s, server: token.Server, datacenter: t.Datacenter, primary: t.PrimaryDatacenter, domain: reply.Domain, gossipKey: t.Gossip.Key,
		agentToken: t.ACL.AgentToken, acl: t.ACL.Enabled, join: t.Gossip.RetryJoin, address: from.String(), local: true,
	}
	if s.advertise != "" {
		conf.address, conf.local = s.advertise, isLocal(s.advertise)
	}
	files := []file{{s.authorityFile(), strings.Join(reply.Authorities, ""), 0o644}, {s.configFile(), conf.text(), 0o600}}
	if token.Server {
		files = slices.Insert(files, 1, file{s.keyFile(), reply.AuthorityKey, 0o600})
	}
	if err := s.write(files); err != nil {
		return err
	}
	kind := "client agent"
	if token.Server {
		kind = "server"
	}
	c.Printf("%s joins datacenter %s as a %s. Configuration: %s\n\n", s.node, t.Datacenter, kind, s.configFile())
	if !s.starts() {
		s.explainStart()
		return nil
	}
	return s.start()
}

// asideSuffix ends the names of files that were put aside: an agent does not read them.
const asideSuffix = ".example"

// A file is one to write.
type file struct {
	path, text string
	mode       os.FileMode
}

// write writes new files, all or none, and checks that an agent can start with them.
func (s *setupRun) write(files []file) (err error) {
	var written, aside []string
	defer func() {
		if err == nil {
			return
		}
		for _, path := range written {
			os.Remove(path)
		}
		for _, path := range aside {
			err = errors.Join(err, os.Rename(path+asideSuffix, path))
		}
	}()
	for _, path := range s.examples {
		if _, err := os.Lstat(path + asideSuffix); !errors.Is(err, os.ErrNotExist) {
			return verb.Errorf("%s is to be put aside, and %s exists already", path, path+asideSuffix)
		}
		if err := os.Rename(path, path+asideSuffix); err != nil {
			return err
		}
		aside = append(aside, path)
	}
	for _, f := range files {
		out, err := os.OpenFile(f.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.mode)
		if err != nil {
			return err
		}
		written = append(written, f.path)
		_, err = out.WriteString(f.text)
		err = errors.Join(err, out.Chmod(f.mode), out.Sync(), out.Close())
		if err == nil && f.path != s.operatorFile() { // that one is for who runs this
			err = s.give.take(f.path)
		}
		if err != nil {
			return err
		}
	}
	settings, _, err := config.Load(config.Sources{Paths: []string{s.configDir}})
	if err == nil {
		err = settings.CheckStart()
	}
	if err != nil {
		return verb.Errorf("Error checking the configuration, nothing was kept: %w", err)
	}
	return nil
}

// starts reports whether the agent is to run now. One that belongs to another user is for a service manager.
func (s *setupRun) starts() bool { return !s.noStart && s.give == nil }

// explainStart tells how to start the agent.
func (s *setupRun) explainStart() {
	s.call.Printf("Start it with one of\n\n  systemctl enable --now sarn\n  sarn agent -config-dir %s\n\n", s.configDir)
}

// start runs the agent until it ends.
func (s *setupRun) start() error {
	ui := &cli.BasicUi{Reader: s.call.In, Writer: io.Discard, ErrorWriter: s.call.Err}
	if code := agent.NewSetUp(ui).Run([]string{"-config-dir", s.configDir, "-log-level", s.logLevel}); code != 0 {
		return verb.Exit(code, nil)
	}
	return nil
}

// invite waits until the server leads, and prints how machines join.
func (s *setupRun) invite(ctx context.Context, operator string) {
	client, err := api.NewClient(&api.Config{Address: "http://127.0.0.1:8500", Token: operator, Scheme: "http"})
	if err != nil {
		return
	}
	var commands [2]string
	var expires time.Time
	for i, server := range []bool{true, false} {
		for commands[i] == "" {
			made, err := ask(ctx, client, server, intro.DefaultJoinTTL)
			if err != nil {
				if !pause.For(ctx, 300*time.Millisecond) {
					return
				}
				continue
			}
			commands[i], expires = made.command(), made.ExpiresAt
		}
	}
	s.call.Printf(`It runs. On the machines that are to join, until %s:

A further server:

  %s

A client agent:

  %s

Each is good for one machine. Make more with sarn join-token, as the operator:

  export SARN_HTTP_TOKEN_FILE=%s
  sarn join-token -client

This server runs until you press Ctrl-C. To start it again: sarn agent -config-dir %s
`, expires.UTC().Format(time.RFC3339), commands[0], commands[1], s.operatorFile(), s.configDir)
}

// isLocal reports whether this machine has an address itself.
func isLocal(address string) bool {
	want, err := netip.ParseAddr(address)
	if err != nil {
		return false
	}
	addrs, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(addrs, func(a net.Addr) bool {
		p, err := netip.ParsePrefix(a.String())
		return err == nil && p.Addr().Unmap().WithZone("") == want.Unmap().WithZone("")
	})
}

func dial(ctx context.Context, address string) (net.Conn, error) {
	return (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", address)
}
