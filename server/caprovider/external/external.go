// Package external is the CA provider that is a program of its own: package plugin has the contract. The program is named
// in the server's own configuration and nowhere else, and runs only while it is needed.
package external

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sarnmesh/sarn/catalog/trust"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/plugin"
	"github.com/sarnmesh/sarn/server/caprovider"
)

// A Program is what is run.
type Program struct {
	Name   string // of the provider, which is then called "plugin:NAME"
	Path   string // absolute
	SHA256 []byte // of the file
	Args   []string
}

// Prefix begins the names of providers that are programs.
const Prefix = "plugin:"

// settingsKey is the block of ca_config that names a program.
const settingsKey = "Plugin"

// Split takes the program out of a server's own settings. provider is the one that the server's configuration names, which
// names the program too; else the block has a name. Without a block there is no program.
func Split(provider string, settings map[string]any) (*Program, map[string]any, error) {
	rest := make(map[string]any, len(settings))
	for k, v := range settings {
		if !strings.EqualFold(k, settingsKey) {
			rest[k] = v
		}
	}
	name, isProgram := strings.CutPrefix(provider, Prefix)
	block := caprovider.Read(settings).Map(settingsKey)
	if block == nil {
		if isProgram {
			return nil, rest, fmt.Errorf("ca_provider %q needs ca_config { plugin { path, sha256 } }", provider)
		}
		return nil, rest, nil
	}
	plain := make(map[string]any, len(block))
	for k, v := range block {
		plain[strings.ReplaceAll(k, "_", "")] = v
	}
	r := caprovider.Read(plain)
	p := &Program{Name: r.Text("Name"), Path: r.Text("Path"), Args: r.Texts("Args")}
	sum := r.Text("SHA256")
	if err := r.Err(); err != nil {
		return nil, rest, fmt.Errorf("ca_config.plugin: %w", err)
	}
	var err error
	p.SHA256, err = hex.DecodeString(sum)
	switch {
	case isProgram && p.Name != "" && p.Name != name:
		return nil, rest, fmt.Errorf("ca_config.plugin.name is %q, and ca_provider is %q", p.Name, provider)
	case isProgram:
		p.Name = name
	}
	switch {
	case !plainName(p.Name):
		return nil, rest, fmt.Errorf("the CA plugin's name %q must be of letters, digits, - and _", p.Name)
	case !filepath.IsAbs(p.Path):
		return nil, rest, errors.New("ca_config.plugin.path must be absolute")
	case err != nil || len(p.SHA256) != sha256.Size:
		return nil, rest, errors.New("ca_config.plugin.sha256 must be the SHA-256 of the program, in 64 hexadecimal digits")
	}
	return p, rest, nil
}

func plainName(name string) bool {
	return name != "" && len(name) <= 64 && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}

// MayBeSet returns an error if a configuration that came over the network names a program.
func MayBeSet(config map[string]any) error {
	for key := range config {
		if strings.EqualFold(strings.ReplaceAll(key, "_", ""), settingsKey) {
			return errors.New("the program of a CA plugin can be named in the servers' own configuration only (connect.ca_config.plugin), since whoever names it has it run as the server")
		}
	}
	return nil
}

const (
	startTimeout     = 10 * time.Second
	callTimeout      = 30 * time.Second
	establishTimeout = 2 * time.Minute
	// firstWait is how long after a program has died it is started again; twice as long each time, up to longestWait. One
	// that has run for healthyAfter begins anew.
	firstWait    = 250 * time.Millisecond
	longestWait  = 30 * time.Second
	healthyAfter = time.Minute
)

// A Kind runs one program for all its providers. Make one with New.
type Kind struct {
	program *Program
	log     hclog.Logger
	turn    chan struct{} // holds one token: who has it may change what follows
	running *process      // nil when there is none
	wait    time.Duration // before the next start
	next    time.Time     // when that may be
	pid     atomic.Int64  // of the running program, 0 for none
}

// A process is a running program.
type process struct {
	client   *goplugin.Client
	provider plugin.Provider
	lifeline *os.File // its end tells the program that this server is gone; nil where there is none
	started  time.Time
}

// New returns a kind. The program is started by the first call.
func New(p *Program, log hclog.Logger) *Kind {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	k := &Kind{program: p, log: log, turn: make(chan struct{}, 1)}
	k.turn <- struct{}{}
	return k
}

// PID returns the process ID of the program, 0 when it does not run.
func (k *Kind) PID() int { return int(k.pid.Load()) }

// Close ends the program.
func (k *Kind) Close() {
	<-k.turn
	k.end()
	k.turn <- struct{}{}
}

// end ends the program. The caller has the turn.
func (k *Kind) end() {
	p := k.running
	if p == nil {
		return
	}
	k.running = nil
	k.pid.Store(0)
	p.client.Kill()
	if p.lifeline != nil {
		p.lifeline.Close()
	}
}

// get returns the running program, which it starts if there is none.
func (k *Kind) get(ctx context.Context) (*process, error) {
	select {
	case <-k.turn:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { k.turn <- struct{}{} }()
	if p := k.running; p != nil {
		if !p.client.Exited() {
			return p, nil
		}
		k.died(p)
	}
	if left := time.Until(k.next); left > firstWait {
		return nil, fmt.Errorf("the CA plugin %q died, and is started again in %s", k.program.Name, left.Round(time.Second))
	} else if left > 0 {
		timer := time.NewTimer(left)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	p, err := k.start()
	if err != nil {
		k.later()
		return nil, fmt.Errorf("start the CA plugin %q: %w", k.program.Name, err)
	}
	k.running = p
	return p, nil
}

// died notes that the program is gone. The caller has the turn.
func (k *Kind) died(p *process) {
	if time.Since(p.started) > healthyAfter {
		k.wait = 0
	}
	k.end()
	k.later()
	k.log.Warn("the CA plugin died, and is started again", "plugin", k.program.Name, "wait", k.wait)
}

// later puts the next start off.
func (k *Kind) later() {
	k.wait = min(max(2*k.wait, firstWait), longestWait)
	k.next = time.Now().Add(k.wait/2 + rand.N(k.wait/2))
}

// start checks the program's file and runs it.
func (k *Kind) start() (_ *process, err error) {
	info, err := os.Stat(k.program.Path)
	if err != nil {
		return nil, err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o022 != 0 {
		return nil, fmt.Errorf("%s may be changed by others than its owner", k.program.Path)
	}
	cmd := exec.Command(k.program.Path, k.program.Args...)
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "TZ"} { // others may be secrets
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	p := &process{started: time.Now()}
	var theirs *os.File
	if runtime.GOOS != "windows" { // no files are passed on there
		if theirs, p.lifeline, err = os.Pipe(); err != nil {
			return nil, err
		}
		defer theirs.Close()
		cmd.ExtraFiles = []*os.File{theirs}
		cmd.Env = append(cmd.Env, plugin.LifelineVariable+"=3")
	}
	p.client = goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig: plugin.Handshake, Plugins: goplugin.PluginSet{plugin.Name: &plugin.GRPC{}}, Cmd: cmd,
		SecureConfig: &goplugin.SecureConfig{Checksum: k.program.SHA256, Hash: sha256.New()},
		AutoMTLS:     true, SkipHostEnv: true, AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		StartTimeout: startTimeout, Logger: k.log.Named(k.program.Name), SyncStdout: io.Discard, SyncStderr: io.Discard, Stderr: io.Discard,
	})
	defer func() {
		if err != nil {
			p.client.Kill()
			if p.lifeline != nil {
				p.lifeline.Close()
			}
		}
	}()
	conn, err := p.client.Client()
	if err != nil {
		return nil, err
	}
	served, err := conn.Dispense(plugin.Name)
	if err != nil {
		return nil, err
	}
	p.provider = served.(plugin.Provider)
	if reattach := p.client.ReattachConfig(); reattach != nil {
		k.pid.Store(int64(reattach.Pid))
	}
	k.log.Info("the CA plugin runs", "plugin", k.program.Name, "pid", k.PID())
	return p, nil
}

// call makes a call, once more if the program died of the first, or before it.
func call[Req, Resp any](ctx context.Context, k *Kind, limit time.Duration, f func(plugin.Provider, context.Context, *Req) (*Resp, error), req *Req) (*Resp, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for again := false; ; again = true {
		p, err := k.get(ctx)
		if err != nil {
			return nil, err
		}
		resp, err := f(p.provider, ctx, req)
		if err == nil {
			return resp, nil
		}
		if status.Code(err) != codes.Unavailable || again || ctx.Err() != nil {
			return nil, fmt.Errorf("the CA plugin %q: %s", k.program.Name, message(err))
		}
		k.drop(p)
	}
}

// drop ends a program that cannot be reached.
func (k *Kind) drop(p *process) {
	<-k.turn
	if k.running == p {
		k.died(p)
	}
	k.turn <- struct{}{}
}

// maxMessage bounds what a program says about an error.
const maxMessage = 512

func message(err error) string {
	text := status.Convert(err).Message()
	return strings.ToValidUTF8(text[:min(len(text), maxMessage)], "")
}

func settings(config map[string]any, s ca.Settings, trustDomain string) plugin.Settings {
	return plugin.Settings{
		Config: config, TrustDomain: trustDomain, PrivateKeyType: s.PrivateKeyType, PrivateKeyBits: s.PrivateKeyBits,
		RootCertTTL: s.RootCertTTL, IntermediateCertTTL: s.IntermediateCertTTL, LeafCertTTL: s.LeafCertTTL,
	}
}

func toKept(s *trust.ProviderState) *plugin.Kept {
	if s == nil {
		return nil
	}
	between, _, err := ca.SigningChain(s)
	if err != nil { // it was checked when it was made
		between = nil
	}
	return &plugin.Kept{Root: s.RootCert, Intermediates: between, State: s.State, Secret: s.PrivateKey, CrossSigns: s.CrossSigns}
}

// Limits of what a program may have replicated.
const (
	maxState  = 64
	maxSecret = 256 << 10
)

// fromKept takes what a program wants to keep.
func fromKept(k *plugin.Kept) (*trust.ProviderState, error) {
	size := 0
	for key, value := range k.State {
		size += len(key) + len(value)
	}
	if len(k.State) > maxState || size > maxSecret || len(k.Secret) > maxSecret || len(k.Root) > maxSecret {
		return nil, errors.New("the CA plugin wants to keep too much")
	}
	root, err := plugin.ParseCertificate(k.Root)
	if err != nil {
		return nil, fmt.Errorf("the root of the CA plugin: %w", err)
	}
	kept := &trust.ProviderState{RootCert: ca.EncodeCertificate(root.Raw), State: k.State, PrivateKey: k.Secret, CrossSigns: k.CrossSigns}
	if len(k.State) == 0 {
		kept.State = nil
	}
	chain, err := ca.ParseCertificates(strings.Join(k.Intermediates, "\n"))
	if len(k.Intermediates) > 0 && err != nil {
		return nil, fmt.Errorf("the intermediates of the CA plugin: %w", err)
	}
	for _, c := range chain {
		kept.Intermediate += ca.EncodeCertificate(c.Raw)
	}
	return kept, nil
}

// Establish asks the program.
func (k *Kind) Establish(ctx context.Context, w caprovider.Wanted) (*trust.ProviderState, error) {
	made, err := call(ctx, k, establishTimeout, plugin.Provider.Establish, &plugin.EstablishRequest{
		Settings: settings(w.Config, w.Settings, connect.TrustDomain(w.ClusterID)), Current: toKept(w.Current), New: w.New,
	})
	if err != nil {
		return nil, err
	}
	return fromKept(made)
}

// Open returns a provider; the program is started when it is first used.
func (k *Kind) Open(kept *trust.ProviderState, clusterID string) (ca.Provider, error) {
	s, err := ca.ParseSettings(Prefix+k.program.Name, kept.Config)
	if err != nil {
		return nil, err
	}
	between, issuer, err := ca.SigningChain(kept)
	if err != nil {
		return nil, err
	}
	p := &provider{kind: k, kept: kept, issuer: issuer, between: between}
	p.settings = settings(kept.Config, s, connect.TrustDomain(clusterID))
	return p, nil
}

// A provider is a root of the program.
type provider struct {
	kind     *Kind
	kept     *trust.ProviderState
	settings plugin.Settings
	issuer   *x509.Certificate
	between  []string
}

func (p *provider) Root() string              { return p.kept.RootCert }
func (p *provider) Issuer() *x509.Certificate { return p.issuer }
func (p *provider) Intermediates() []string   { return p.between }
func (p *provider) CrossSigns() bool          { return p.kept.CrossSigns }
func (p *provider) Close()                    {} // the program is shared

func (p *provider) Sign(ctx context.Context, template *x509.Certificate, csr *x509.CertificateRequest) ([]byte, error) {
	return p.sign(ctx, plugin.Provider.Sign, template, csr)
}

func (p *provider) SignIntermediate(ctx context.Context, template *x509.Certificate, csr *x509.CertificateRequest) ([]byte, error) {
	return p.sign(ctx, plugin.Provider.SignIntermediate, template, csr)
}

func (p *provider) sign(ctx context.Context, f func(plugin.Provider, context.Context, *plugin.SignRequest) (*plugin.Certificate, error), template *x509.Certificate, csr *x509.CertificateRequest) ([]byte, error) {
	key, err := x509.MarshalPKIXPublicKey(csr.PublicKey)
	if err != nil {
		return nil, err
	}
	req := &plugin.SignRequest{
		Settings: p.settings, Kept: *toKept(p.kept),
		CSR:        string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw})),
		PublicKey:  string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: key})),
		Serial:     template.SerialNumber.Text(16),
		CommonName: template.Subject.CommonName, DNSNames: template.DNSNames, NotBefore: template.NotBefore, NotAfter: template.NotAfter,
		IsCA: template.IsCA,
	}
	for _, u := range template.URIs {
		req.URIs = append(req.URIs, u.String())
	}
	signed, err := call(ctx, p.kind, callTimeout, f, req)
	if err != nil {
		return nil, err
	}
	return p.decode(signed)
}

func (p *provider) decode(signed *plugin.Certificate) ([]byte, error) {
	cert, err := plugin.ParseCertificate(signed.PEM)
	if err != nil {
		return nil, fmt.Errorf("the answer of the CA plugin: %w", err)
	}
	return cert.Raw, nil
}

func (p *provider) CrossSign(ctx context.Context, template, root *x509.Certificate) ([]byte, error) {
	if !p.kept.CrossSigns {
		return nil, ca.ErrNoCrossSigning
	}
	signed, err := call(ctx, p.kind, callTimeout, plugin.Provider.CrossSign, &plugin.CrossSignRequest{
		Settings: p.settings, Kept: *toKept(p.kept), Root: ca.EncodeCertificate(root.Raw),
		Serial: template.SerialNumber.Text(16), NotBefore: template.NotBefore, NotAfter: template.NotAfter,
	})
	if err != nil {
		return nil, err
	}
	return p.decode(signed)
}

func (p *provider) Renew(ctx context.Context) (*trust.ProviderState, error) {
	if p.kept.Intermediate == "" {
		return nil, ca.ErrNoIntermediate
	}
	made, err := call(ctx, p.kind, establishTimeout, plugin.Provider.Renew, &plugin.RenewRequest{Settings: p.settings, Kept: *toKept(p.kept)})
	if err != nil {
		return nil, err
	}
	renewed, err := fromKept(made)
	if err != nil {
		return nil, err
	}
	if renewed.RootCert != p.kept.RootCert {
		return nil, errors.New("the CA plugin changed the root when it renewed the intermediate")
	}
	renewed.ID, renewed.Provider, renewed.Config = p.kept.ID, p.kept.Provider, p.kept.Config
	return renewed, nil
}

func (p *provider) Cleanup(ctx context.Context, next *trust.ProviderState) error {
	if next != nil && next.Provider != p.kept.Provider {
		next = nil
	}
	_, err := call(ctx, p.kind, establishTimeout, plugin.Provider.Cleanup, &plugin.CleanupRequest{
		Settings: p.settings, Kept: *toKept(p.kept), Next: toKept(next),
	})
	return err
}
