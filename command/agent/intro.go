package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sarnmesh/sarn/client/newcomer"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/connect/intro"
	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/server/authmethod/jwt"
	"github.com/sarnmesh/sarn/server/introrpc"
)

// introducer answers agents that have no certificate yet.
func (a *Agent) introducer(s *config.Settings) (*introrpc.Introducer, error) {
	if (s.AutoEncrypt.AllowTLS || s.AutoConfig.Authorization) && a.rpcTLS.cert() == nil {
		a.log.Warn("agents cannot get certificates from this server: tls.internal_rpc has no cert_file and key_file")
	}
	conf := introrpc.Config{
		Datacenter: s.Node.Datacenter, Sign: s.AutoEncrypt.AllowTLS, Logger: a.log.Named("intro"),
		ServerRoots:          func() []string { return a.rpcTLS.now.Load().pem },
		VerifyServerHostname: func() bool { return a.rpcTLS.now.Load().stanza.VerifyServerHostname },
		Join:                 a.joining(s),
		Settings:             func() intro.Settings { return told(a.current(), a.pool.PrimaryKey()) },
	}
	if s.AutoConfig.Authorization {
		c := s.AutoConfig.Static
		conf.Tokens = &jwt.Config{
			JWTValidationPubKeys: c.JWTValidationPubKeys, JWKSURL: c.JWKSURL, JWKSCACert: c.JWKSCACert,
			OIDCDiscoveryURL: c.OIDCDiscoveryURL, OIDCDiscoveryCACert: c.OIDCDiscoveryCACert, BoundIssuer: c.BoundIssuer,
			BoundAudiences: c.BoundAudiences, JWTSupportedAlgs: c.JWTSupportedAlgs, ClaimMappings: c.ClaimMappings,
			ListClaimMappings: c.ListClaimMappings, ExpirationLeeway: jwt.Leeway(c.ExpirationLeeway),
			NotBeforeLeeway: jwt.Leeway(c.NotBeforeLeeway), ClockSkewLeeway: jwt.Leeway(c.ClockSkewLeeway),
		}
		conf.Assertions = c.ClaimAssertions
		conf.Way = fetch.Way{Dial: (&net.Dialer{Timeout: 10 * time.Second}).DialContext, Proxy: http.ProxyFromEnvironment}
	}
	return introrpc.New(conf)
}

// told is what an agent is told of the cluster.
func told(s *config.Settings, key string) intro.Settings {
	t := s.TLS.InternalRPC
	return intro.Settings{
		Datacenter: s.Node.Datacenter, PrimaryDatacenter: s.Node.PrimaryDatacenter,
		ACL: intro.ACL{
			Enabled: s.ACL.Enabled, DefaultPolicy: s.ACL.DefaultPolicy, DownPolicy: s.ACL.DownPolicy, TokenTTL: s.ACL.TokenTTL,
			PolicyTTL: s.ACL.PolicyTTL, RoleTTL: s.ACL.RoleTTL, EnableKeyListPolicy: s.ACL.EnableKeyListPolicy,
			EnableTokenPersistence: s.ACL.EnableTokenPersistence,
		},
		Gossip: intro.Gossip{
			Key: key, VerifyIncoming: s.Gossip.VerifyIncoming, VerifyOutgoing: s.Gossip.VerifyOutgoing,
			RetryJoin: []string{s.Addresses.SerfLANAdvertise.String()},
		},
		TLS: intro.TLS{
			VerifyOutgoing: t.VerifyOutgoing, VerifyServerHostname: t.VerifyServerHostname, MinVersion: t.MinVersion, CipherSuites: t.CipherSuites,
		},
	}
}

// source is what an agent was told, as a source of configuration.
func source(t *intro.Settings) (string, error) {
	set := map[string]any{
		"datacenter": t.Datacenter, "primary_datacenter": t.PrimaryDatacenter, "node_name": t.NodeName, "retry_join": t.Gossip.RetryJoin,
		"encrypt_verify_incoming": t.Gossip.VerifyIncoming, "encrypt_verify_outgoing": t.Gossip.VerifyOutgoing,
		"tls": map[string]any{"internal_rpc": map[string]any{
			"verify_outgoing": t.TLS.VerifyOutgoing, "verify_server_hostname": t.TLS.VerifyServerHostname,
			"tls_min_version": t.TLS.MinVersion, "tls_cipher_suites": t.TLS.CipherSuites,
		}},
	}
	if t.Gossip.Key != "" {
		set["encrypt"] = t.Gossip.Key
	}
	if a := t.ACL; a.Enabled {
		acl := map[string]any{
			"enabled": true, "default_policy": a.DefaultPolicy, "down_policy": a.DownPolicy, "token_ttl": a.TokenTTL.String(),
			"policy_ttl": a.PolicyTTL.String(), "role_ttl": a.RoleTTL.String(), "enable_key_list_policy": a.EnableKeyListPolicy,
			"enable_token_persistence": a.EnableTokenPersistence,
		}
		if a.AgentToken != "" {
			acl["tokens"] = map[string]any{"agent": a.AgentToken}
		}
		set["acl"] = acl
	}
	data, err := json.Marshal(set)
	return string(data), err
}

// introduce gets a certificate from the servers, and with auto_config the rest of the configuration, for agents that are
// configured to ask for them. It asks until it has them or ctx ends. For others the keeper is nil.
func introduce(ctx context.Context, src config.Sources, s *config.Settings, log hclog.Logger) (config.Sources, *config.Settings, *newcomer.Keeper, error) {
	if !s.AutoEncrypt.TLS && !s.AutoConfig.Enabled {
		return src, s, nil, nil
	}
	k, err := keeper(s, log.Named("intro"))
	if err != nil {
		return src, nil, nil, err
	}
	if !s.AutoConfig.Enabled {
		return src, s, k, k.AdmitUntil(ctx)
	}
	if kept, err := readAdmission(s); err != nil {
		log.Warn("the answer of the servers that was kept is of no use, asking again", "file", admissionFile(s), "error", err)
	} else if kept != nil && kept.Settings != nil && kept.Settings.Datacenter == s.Node.Datacenter && kept.Settings.NodeName == s.Node.Name {
		if err := k.Resume(kept); err != nil {
			log.Warn("the answer of the servers that was kept is of no use, asking again", "error", err)
		}
	}
	if k.Admission() == nil {
		if err := k.AdmitUntil(ctx); err != nil {
			return src, nil, nil, err
		}
	}
	if src.Given, err = source(k.Admission().Settings); err != nil {
		return src, nil, nil, err
	}
	if s, _, err = config.Load(src); err != nil {
		return src, nil, nil, fmt.Errorf("with what the servers told: %w", err)
	}
	return src, s, k, s.CheckStart()
}

// keeper is what asks the servers.
func keeper(s *config.Settings, log hclog.Logger) (*newcomer.Keeper, error) {
	m := &material{}
	k, err := readKeys(s.TLS.InternalRPC)
	if err != nil {
		return nil, err
	}
	m.now.Store(k)
	t := k.stanza
	conf := newcomer.Config{
		Datacenter: s.Node.Datacenter, Node: s.Node.Name, Dial: dial, Logger: log,
		Security: &rpcwire.Security{
			Roots: m.roots, MinVersion: t.MinTLS(), CipherSuites: t.CipherSuiteIDs(), VerifyOutgoing: t.VerifyOutgoing,
			VerifyServerHostname: t.VerifyServerHostname, Domain: s.DNS.Domain,
		},
		DNSNames: append([]string{"localhost"}, s.AutoEncrypt.DNSSAN...), IPs: append([]string{"127.0.0.1", "::1"}, s.AutoEncrypt.IPSAN...),
		Token: func() string { return firstOf(s.ACL.Tokens.Agent, s.ACL.Tokens.Default) },
	}
	if !s.AutoConfig.Enabled {
		conf.Servers = serverPorts(s.Join.LAN, s.Ports.Server, true)
		if k.roots == nil && !t.VerifyOutgoing {
			log.Warn("the servers that give this agent a certificate are not verified: set tls.defaults.ca_file")
		}
		return newcomer.New(conf), nil
	}
	conf.Servers = serverPorts(s.AutoConfig.ServerAddresses, s.Ports.Server, false)
	conf.DNSNames, conf.IPs = append([]string{"localhost"}, s.AutoConfig.DNSSANs...), append([]string{"127.0.0.1", "::1"}, s.AutoConfig.IPSANs...)
	conf.JWT = func() (string, error) {
		if s.AutoConfig.IntroToken != "" {
			return s.AutoConfig.IntroToken, nil
		}
		data, err := os.ReadFile(s.AutoConfig.IntroTokenFile)
		return strings.TrimSpace(string(data)), err
	}
	if s.DataDir != "" {
		conf.Save = func(a *newcomer.Admission) error {
			data, err := json.Marshal(a)
			if err != nil {
				return err
			}
			return writeFile(admissionFile(s), data)
		}
	}
	return newcomer.New(conf), nil
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// serverPorts turns addresses into those of server ports. Addresses to join name gossip ports, if any, which are left out.
func serverPorts(addrs []string, port int, gossip bool) []string {
	if !gossip {
		return withPort(addrs, port)
	}
	var hosts []string
	for _, addr := range addrs {
		if ip, err := netip.ParseAddr(strings.Trim(addr, "[]")); err == nil {
			addr = ip.String()
		} else if host, _, err := net.SplitHostPort(addr); err == nil {
			addr = host
		}
		hosts = append(hosts, addr)
	}
	return withPort(hosts, port)
}

func admissionFile(s *config.Settings) string { return filepath.Join(s.DataDir, "auto-config.json") }

// readAdmission reads what was kept at an earlier start, nil when there is nothing.
func readAdmission(s *config.Settings) (*newcomer.Admission, error) {
	if s.DataDir == "" {
		return nil, nil
	}
	data, err := os.ReadFile(admissionFile(s))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	a := new(newcomer.Admission)
	return a, json.Unmarshal(data, a)
}
