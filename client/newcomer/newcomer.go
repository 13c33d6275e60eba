// Package newcomer gets an agent its certificate from the servers before it has one, with auto_config its configuration
// too, and keeps the certificate current (spec/config.md section 3.6). The key never leaves the agent.
package newcomer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/ca"
	"github.com/sarnmesh/sarn/connect/intro"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/rpcwire"
)

// Config tunes a Keeper. A zero field takes its default.
type Config struct {
	Datacenter, Node string
	Servers          []string // host:port of server ports
	Dial             func(ctx context.Context, address string) (net.Conn, error)
	Security         *rpcwire.Security // how servers are verified
	DNSNames, IPs    []string          // to go on the certificate

	// Token returns the ACL token to show. With JWT set it is used for renewals alone.
	Token func() string
	// JWT returns the intro token, and asks for a configuration, too. Nil asks for a certificate alone.
	JWT func() (string, error)
	// Save keeps an admission with a configuration for the next start; nil keeps none.
	Save func(*Admission) error

	Chance  func() float64 // in [0, 1), spreads renewals; default math/rand
	Entropy io.Reader      // for keys; default crypto/rand
	Logger  hclog.Logger   // default discards
}

// An Admission is what the servers gave. It is not changed once made.
type Admission struct {
	intro.Identity
	TrustDomain   string
	PrivateKeyPEM string          // a secret
	Settings      *intro.Settings `json:",omitempty"` // nil without auto_config

	certificate *tls.Certificate
	roots       *x509.CertPool // nil when the servers named no authority
}

// Open checks an admission that was kept, and makes it usable.
func (a *Admission) Open(now time.Time) error {
	pair, err := tls.X509KeyPair([]byte(a.CertPEM), []byte(a.PrivateKeyPEM))
	if err != nil {
		return fmt.Errorf("read the agent's certificate: %w", err)
	}
	if !now.Before(a.ValidBefore) {
		return errors.New("the agent's certificate has expired")
	}
	a.certificate = &pair
	for _, text := range a.ServerRoots {
		if a.roots == nil {
			a.roots = x509.NewCertPool()
		}
		if !a.roots.AppendCertsFromPEM([]byte(text)) {
			return errors.New("read the authorities of the servers: there is no certificate in them")
		}
	}
	return nil
}

// Certificate is that of the agent.
func (a *Admission) Certificate() *tls.Certificate { return a.certificate }

// Roots are the authorities that the servers verify others with, nil if they named none.
func (a *Admission) Roots() *x509.CertPool { return a.roots }

// A Keeper keeps the certificate of an agent. Make one with New; Admit gets the first.
type Keeper struct {
	cfg Config
	log hclog.Logger

	mu  sync.Mutex
	now *Admission // nil before the first
}

// New returns a keeper without a certificate. Nothing happens until Admit or Run.
func New(cfg Config) *Keeper {
	if cfg.Chance == nil {
		cfg.Chance = mathrand.Float64
	}
	if cfg.Entropy == nil {
		cfg.Entropy = rand.Reader
	}
	if cfg.Logger == nil {
		cfg.Logger = hclog.NewNullLogger()
	}
	if cfg.Token == nil {
		cfg.Token = func() string { return "" }
	}
	return &Keeper{cfg: cfg, log: cfg.Logger}
}

// Admission is the current one, nil before the first.
func (k *Keeper) Admission() *Admission {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now
}

// Resume takes an admission that was kept over a restart.
func (k *Keeper) Resume(a *Admission) error {
	if err := a.Open(time.Now()); err != nil {
		return err
	}
	k.set(a)
	return nil
}

func (k *Keeper) set(a *Admission) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.now = a
}

// Follow makes the token be asked of another source: before an agent is whole, its tokens are those of its configuration.
func (k *Keeper) Follow(token func() string) { k.cfg.Token = token }

const (
	attempt  = 30 * time.Second // to be admitted by one server
	minRetry = time.Second
	maxRetry = 30 * time.Second
	// renewRetry is the longest time between attempts while there is a certificate that is still good.
	renewRetry = 5 * time.Minute
)

// AdmitUntil asks the servers, over and over, until one has admitted the agent or ctx ends.
func (k *Keeper) AdmitUntil(ctx context.Context) error {
	retry := minRetry
	for {
		err := k.Admit(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		wait := time.Duration((0.5 + k.cfg.Chance()/2) * float64(retry))
		k.log.Error("no server has given this agent a certificate yet, will retry", "wait", wait, "error", err)
		retry = min(2*retry, maxRetry)
		pause.For(ctx, wait)
	}
}

// Admit asks each server once.
func (k *Keeper) Admit(ctx context.Context) error {
	var errs []error
	for _, address := range k.cfg.Servers {
		a, err := k.ask(ctx, address)
		if err == nil && a.Settings != nil && k.cfg.Save != nil {
			err = k.cfg.Save(a)
		}
		if err == nil {
			k.set(a)
			k.log.Info("the servers gave this agent a certificate", "server", address, "until", a.ValidBefore)
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
	}
	if len(errs) == 0 {
		return errors.New("there are no addresses of servers to ask")
	}
	return errors.Join(errs...)
}

// ask asks one server.
func (k *Keeper) ask(ctx context.Context, address string) (*Admission, error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	client := rpcwire.NewClient(func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := k.cfg.Dial(ctx, address)
		if err != nil {
			return nil, err
		}
		return k.cfg.Security.Secure(ctx, conn, rpcwire.ProtoIntro, k.cfg.Datacenter)
	})
	defer client.Close()
	var hello intro.HelloReply
	if err := client.Call(ctx, address, intro.HelloName, &intro.HelloRequest{}, &hello); err != nil {
		return nil, err
	}
	key, csr, err := k.request(hello.TrustDomain)
	if err != nil {
		return nil, err
	}
	who := intro.Applicant{Datacenter: k.cfg.Datacenter, Node: k.cfg.Node, CSR: csr, DNSNames: k.cfg.DNSNames, IPs: k.cfg.IPs}
	if k.cfg.JWT == nil {
		var id intro.Identity
		if err := client.Call(ctx, address, intro.SignName, &intro.SignRequest{Applicant: who, Token: k.cfg.Token()}, &id); err != nil {
			return nil, err
		}
		return k.admission(hello.TrustDomain, id, nil, key)
	}
	token, err := k.cfg.JWT()
	if err != nil {
		return nil, err
	}
	var reply intro.ConfigureReply
	if err := client.Call(ctx, address, intro.ConfigureName, &intro.ConfigureRequest{Applicant: who, JWT: token}, &reply); err != nil {
		return nil, err
	}
	return k.admission(hello.TrustDomain, reply.Identity, &reply.Settings, key)
}

// request makes a key and the request for its certificate.
func (k *Keeper) request(trustDomain string) (crypto.Signer, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), k.cfg.Entropy)
	if err != nil {
		return nil, "", fmt.Errorf("make a private key: %w", err)
	}
	id := k.id(trustDomain)
	if _, err := connect.ParseID(id.String()); err != nil {
		return nil, "", fmt.Errorf("the servers' trust domain or the name of the node is of no use: %w", err)
	}
	csr, err := ca.NewCSR(id, key, k.cfg.Entropy)
	return key, csr, err
}

func (k *Keeper) id(trustDomain string) connect.ID {
	return connect.AgentID(trustDomain, k.cfg.Datacenter, k.cfg.Node)
}

// admission checks what the servers signed.
func (k *Keeper) admission(trustDomain string, id intro.Identity, settings *intro.Settings, key crypto.Signer) (*Admission, error) {
	cert, err := ca.ParseCertificate(id.CertPEM)
	if err != nil {
		return nil, fmt.Errorf("read the signed certificate: %w", err)
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != k.id(trustDomain).String() {
		return nil, errors.New("the servers signed another certificate than was asked for")
	}
	a := &Admission{Identity: id, TrustDomain: trustDomain, Settings: settings}
	a.ValidAfter, a.ValidBefore = cert.NotBefore, cert.NotAfter
	if a.PrivateKeyPEM, err = ca.EncodeKey(key); err != nil {
		return nil, err
	}
	return a, a.Open(time.Now())
}

// Bounds of renewals.
const (
	renewFrom = 0.5 // of the life of a certificate, earliest: it leaves as long to retry as it took
	renewTo   = 0.65
	spread    = 30 * time.Second // renewals after a change of roots are spread over this
)

// Run renews the certificate until ctx ends, then returns nil. It does so over the ordinary calls while the certificate
// is good, and as a newcomer when it is not. Roots tells which root signs, and is closed over when that changes; nil looks
// at times alone.
func (k *Keeper) Run(ctx context.Context, caller rpc.Caller, roots func() (*ca.RootsReply, <-chan struct{}, error)) error {
	retry := minRetry
	for ctx.Err() == nil {
		a := k.Admission()
		var wait time.Duration
		var news <-chan struct{}
		if a != nil {
			life := a.ValidBefore.Sub(a.ValidAfter)
			at := a.ValidAfter.Add(time.Duration((renewFrom + k.cfg.Chance()*(renewTo-renewFrom)) * float64(life)))
			wait = time.Until(at)
			if roots != nil {
				known, changed, _ := roots()
				if news = changed; known != nil && known.ActiveRootID != "" && known.ActiveRootID != a.RootID {
					wait = min(wait, time.Duration(k.cfg.Chance()*float64(spread)))
				}
			}
		}
		if wait > 0 {
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case <-news:
				timer.Stop()
				continue
			case <-timer.C:
			}
		}
		if err := k.renew(ctx, caller, a); err != nil && ctx.Err() == nil {
			k.log.Error("the certificate of this agent was not renewed", "error", err)
			most := maxRetry
			if a != nil && time.Now().Before(a.ValidBefore) {
				most = renewRetry
			}
			retry = min(retry, most)
			pause.For(ctx, time.Duration((0.5+k.cfg.Chance())*float64(retry)))
			retry *= 2
			continue
		}
		retry = minRetry
	}
	return nil
}

func (k *Keeper) renew(ctx context.Context, caller rpc.Caller, old *Admission) error {
	if old == nil || !time.Now().Before(old.ValidBefore) {
		return k.Admit(ctx)
	}
	key, csr, err := k.request(old.TrustDomain)
	if err != nil {
		return err
	}
	reply, err := ca.SignCall.Call(ctx, caller, &ca.SignRequest{
		Target: read.Target{Token: k.cfg.Token()}, CSR: csr, Hosts: k.cfg.DNSNames, IPs: k.cfg.IPs,
	})
	if err != nil {
		return err
	}
	id := old.Identity
	id.CertPEM, id.RootID = reply.Leaf.CertPEM, reply.Leaf.RootID
	a, err := k.admission(old.TrustDomain, id, old.Settings, key)
	if err != nil {
		return err
	}
	if a.Settings != nil && k.cfg.Save != nil {
		if err := k.cfg.Save(a); err != nil {
			return err
		}
	}
	k.set(a)
	k.log.Info("the certificate of this agent was renewed", "until", a.ValidBefore)
	return nil
}
