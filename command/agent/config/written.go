package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// A document is everything that can be configured: what becomes a setting as it is, and what needs more work first.
type document struct {
	Settings Settings
	Written  written
}

// written holds the keys whose values are expanded, split, mapped to other keys or only warned about. A pointer is nil
// where the key was not set. Three tags say what becomes of a key:
//
//	use:"key"        an old name of the key
//	enterprise:"yes" of the reference product's paid edition; accepted with a warning
//	ignored:"yes"    accepted; with a warning if the tag says "warn"
type written struct {
	Services []*node `key:"services" schema:"service" reload:"yes"`
	Service  []*node `key:"service" schema:"service" reload:"yes"`
	Checks   []*node `key:"checks" schema:"check" reload:"yes"`
	Check    []*node `key:"check" schema:"check" reload:"yes"`

	ConfigEntries []map[string]any `key:"config_entries.bootstrap" reload:"yes"`

	BindAddr             *string  `key:"bind_addr"`
	AdvertiseAddr        *string  `key:"advertise_addr"`
	AdvertiseAddrIPv4    *string  `key:"advertise_addr_ipv4"`
	AdvertiseAddrIPv6    *string  `key:"advertise_addr_ipv6"`
	AdvertiseAddrWAN     *string  `key:"advertise_addr_wan"`
	AdvertiseAddrWANIPv4 *string  `key:"advertise_addr_wan_ipv4"`
	AdvertiseAddrWANIPv6 *string  `key:"advertise_addr_wan_ipv6"`
	ClientAddr           *string  `key:"client_addr"`
	AddrDNS              *string  `key:"addresses.dns"`
	AddrHTTP             *string  `key:"addresses.http"`
	AddrHTTPS            *string  `key:"addresses.https"`
	AddrGRPC             *string  `key:"addresses.grpc"`
	AddrGRPCTLS          *string  `key:"addresses.grpc_tls"`
	SerfLAN              *string  `key:"serf_lan"`
	SerfWAN              *string  `key:"serf_wan"`
	SerfLANAllowed       []string `key:"serf_lan_allowed_cidrs"`
	SerfWANAllowed       []string `key:"serf_wan_allowed_cidrs"`
	RetryJoin            []string `key:"retry_join"`
	RetryJoinWAN         []string `key:"retry_join_wan"`
	PrimaryGateways      []string `key:"primary_gateways"`
	Recursors            []string `key:"recursors" reload:"yes"`
	AllowWriteFrom       []string `key:"http_config.allow_write_http_from"`
	TrustedNetworks      []string `key:"dns_config.trusted_networks" reload:"yes"`
	AllowRecursionFrom   []string `key:"dns_config.allow_recursion_from" reload:"yes"`
	ServerAddresses      []string `key:"auto_config.server_addresses"`

	ACLDatacenter          *string  `key:"acl_datacenter" use:"primary_datacenter"`
	ACLDefaultPolicy       *string  `key:"acl_default_policy" use:"acl.default_policy"`
	ACLDownPolicy          *string  `key:"acl_down_policy" use:"acl.down_policy"`
	ACLTTL                 *string  `key:"acl_ttl" use:"acl.token_ttl"`
	ACLToken               *string  `key:"acl_token" use:"acl.tokens.default" secret:"yes"`
	ACLAgentToken          *string  `key:"acl_agent_token" use:"acl.tokens.agent" secret:"yes"`
	ACLAgentMasterToken    *string  `key:"acl_agent_master_token" use:"acl.tokens.agent_recovery" secret:"yes"`
	ACLMasterToken         *string  `key:"acl_master_token" use:"acl.tokens.initial_management" secret:"yes"`
	ACLReplicationToken    *string  `key:"acl_replication_token" use:"acl.tokens.replication" secret:"yes"`
	EnableACLReplication   *bool    `key:"enable_acl_replication" use:"acl.enable_token_replication"`
	ACLEnableKeyListPolicy *bool    `key:"acl_enable_key_list_policy" use:"acl.enable_key_list_policy"`
	TokensMaster           *string  `key:"acl.tokens.master" use:"acl.tokens.initial_management" secret:"yes"`
	TokensAgentMaster      *string  `key:"acl.tokens.agent_master" use:"acl.tokens.agent_recovery" secret:"yes"`
	CAFile                 *string  `key:"ca_file" use:"tls.defaults.ca_file"`
	CAPath                 *string  `key:"ca_path" use:"tls.defaults.ca_path"`
	CertFile               *string  `key:"cert_file" use:"tls.defaults.cert_file"`
	KeyFile                *string  `key:"key_file" use:"tls.defaults.key_file"`
	TLSMinVersion          *string  `key:"tls_min_version" use:"tls.defaults.tls_min_version"`
	TLSCipherSuites        *string  `key:"tls_cipher_suites" use:"tls.defaults.tls_cipher_suites"`
	VerifyIncoming         *bool    `key:"verify_incoming" use:"tls.defaults.verify_incoming"`
	VerifyIncomingRPC      *bool    `key:"verify_incoming_rpc" use:"tls.internal_rpc.verify_incoming"`
	VerifyIncomingHTTPS    *bool    `key:"verify_incoming_https" use:"tls.https.verify_incoming"`
	VerifyOutgoing         *bool    `key:"verify_outgoing" use:"tls.defaults.verify_outgoing"`
	VerifyServerHostname   *bool    `key:"verify_server_hostname" use:"tls.internal_rpc.verify_server_hostname"`
	StartJoin              []string `key:"start_join" use:"retry_join"`
	StartJoinWAN           []string `key:"start_join_wan" use:"retry_join_wan"`
	UI                     *bool    `key:"ui" use:"ui_config.enabled"`
	UIDir                  *string  `key:"ui_dir" use:"ui_config.dir"`
	UIContentPath          *string  `key:"ui_content_path" use:"ui_config.content_path"`
	NonVotingServer        *bool    `key:"non_voting_server" use:"read_replica"`
	RaftBoltDBFreelist     *bool    `key:"raft_boltdb.nofreelistsync" use:"raft_logstore.boltdb.no_freelist_sync"`

	Partition              *string `key:"partition" enterprise:"yes"`
	LicensePath            *string `key:"license_path" enterprise:"yes"`
	Audit                  *node   `key:"audit" enterprise:"yes"`
	ReportingLicense       *bool   `key:"reporting.license.enabled" enterprise:"yes"`
	MSPDisableBootstrap    *bool   `key:"acl.msp_disable_bootstrap" enterprise:"yes"`
	ManagedServiceProvider *node   `key:"acl.tokens.managed_service_provider" enterprise:"yes" secret:"yes"`
	PreferNamespace        *bool   `key:"dns_config.prefer_namespace" enterprise:"yes"`

	EnforceVersion8  *bool   `key:"acl_enforce_version_8" ignored:"warn"`
	PreferServerTLS  *bool   `key:"tls_prefer_server_cipher_suites" ignored:"warn"`
	SnapshotAgent    *node   `key:"snapshot_agent" ignored:"yes"`
	CloudResource    *string `key:"cloud.resource_id" ignored:"yes"`
	CloudClient      *string `key:"cloud.client_id" ignored:"yes"`
	CloudSecret      *string `key:"cloud.client_secret" ignored:"yes" secret:"yes"`
	CloudHost        *string `key:"cloud.hostname" ignored:"yes"`
	CloudAuthURL     *string `key:"cloud.auth_url" ignored:"yes"`
	CloudScada       *string `key:"cloud.scada_address" ignored:"yes"`
	Experiments      *node   `key:"experiments" ignored:"yes"`
	Segment          *string `key:"segment"`
	Segments         *node   `key:"segments"`
	ServerlessPlugin *bool   `key:"connect.enable_serverless_plugin" ignored:"yes"`
}

// special is one field of written that has a tag saying what becomes of it.
type special struct{ key, use, enterprise, ignored string }

var specials = func() []special {
	var out []special
	for f := range reflect.TypeFor[written]().Fields() {
		s := special{f.Tag.Get("key"), f.Tag.Get("use"), f.Tag.Get("enterprise"), f.Tag.Get("ignored")}
		if s.use != "" || s.enterprise != "" || s.ignored != "" {
			out = append(out, s)
		}
	}
	return out
}()

// modernise replaces old keys of one checked source by what they are called now and drops those without effect. It returns
// a warning for each.
func modernise(root *node) []string {
	var warnings []string
	for _, s := range specials {
		v := root.find(s.key)
		if v == nil {
			continue
		}
		switch {
		case s.enterprise != "":
			root.take(s.key)
			warnings = append(warnings, fmt.Sprintf("%q is a Consul Enterprise configuration and will have no effect", s.key))
		case s.ignored != "":
			root.take(s.key)
			if s.ignored == "warn" {
				warnings = append(warnings, fmt.Sprintf("config key %q is deprecated and should be removed", s.key))
			}
		default:
			root.take(s.key)
			warnings = append(warnings, fmt.Sprintf("The '%s' field is deprecated. Use the '%s' field instead.", s.key, s.use))
			warnings = append(warnings, replace(root, s, v)...)
		}
	}
	return warnings
}

// replace stores the value of an old key under the new one, unless the same source sets that too.
func replace(root *node, s special, v *node) (warnings []string) {
	yes := &node{shape: boolean, boolean: true, pos: v.pos}
	switch s.key {
	case "acl_datacenter":
		v = &node{shape: text, text: strings.ToLower(v.text), pos: v.pos}
		if root.find("acl.enabled") == nil {
			root.put("acl.enabled", yes)
		}
	case "acl_replication_token":
		if root.find("acl.enable_token_replication") == nil {
			root.put("acl.enable_token_replication", yes)
		}
	case "tls_min_version":
		old := []string{"", "tls10", "tls11", "tls12", "tls13"}
		if i := slices.Index(old, strings.ToLower(v.text)); i >= 0 {
			modern := []string{"TLS_AUTO", "TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3"}[i]
			if i > 0 {
				warnings = append(warnings, fmt.Sprintf("'tls_min_version' value '%s' is deprecated, please specify '%s' instead", v.text, modern))
			}
			v = &node{shape: text, text: modern, pos: v.pos}
		}
	case "verify_incoming":
		if root.find("tls.grpc.verify_incoming") == nil { // the old key never reached gRPC
			root.put("tls.grpc.verify_incoming", &node{shape: boolean, pos: v.pos})
		}
	case "start_join", "start_join_wan":
		if now := root.find(s.use); now != nil {
			v = &node{shape: list, pos: now.pos, list: append(slices.Clone(now.list), v.list...)}
			root.take(s.use)
		}
	}
	if root.find(s.use) == nil {
		root.put(s.use, v)
	}
	return warnings
}
