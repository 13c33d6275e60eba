package initcmd

import (
	"encoding/json"
	"fmt"
	"strings"
)

// A configuration is what init writes down.
type configuration struct {
	run                         *setupRun
	server, first               bool
	datacenter, primary, domain string
	address                     string // that others reach it at; empty leaves it to the agent to find
	local                       bool   // this machine has the address itself
	gossipKey                   string
	acl                         bool // a machine that joins: access control is on
	management, agentToken      string
	join                        []string
}

// quoted writes a value as HCL does. What is not checked by who gave it is a path, which was.
func quoted(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // texts and lists of texts can be written
	}
	return string(data)
}

// text is the configuration file.
func (c *configuration) text() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# Written by sarn init. From here on it is an ordinary configuration file, and yours to change. There are secrets in")
	line("# it: keep it from others.")
	line("")
	line("datacenter = %s", quoted(c.datacenter))
	if c.primary != "" && c.primary != c.datacenter {
		line("primary_datacenter = %s", quoted(c.primary))
	}
	if c.domain != "" && c.domain != "consul" {
		line("domain = %s", quoted(c.domain))
	}
	line("node_name = %s", quoted(c.run.node))
	line("data_dir = %s", quoted(c.run.dataDir))
	switch {
	case c.address == "":
	case c.local:
		line("\n# What other machines talk to listens here. The API stays on loopback: see client_addr and ports.https.")
		line("bind_addr = %s", quoted(c.address))
	default:
		line("advertise_addr = %s", quoted(c.address))
	}
	line("")
	if c.server {
		line("server = true")
	}
	if c.first {
		line("bootstrap_expect = 1 # the others join it")
	}
	if len(c.join) > 0 {
		line("retry_join = %s", quoted(c.join))
	}
	line("\n# The key of gossip.")
	line("encrypt = %s", quoted(c.gossipKey))

	line("\ntls {")
	line("  defaults {")
	line("    ca_file = %s", quoted(c.run.authorityFile()))
	if c.server {
		line("    # The certificate and its key in one file. The server makes it, and replaces it when half of its life is over.")
		line("    cert_file = %s", quoted(c.run.serverFile()))
		line("    key_file = %s", quoted(c.run.serverFile()))
	}
	line("    verify_outgoing = true")
	line("  }")
	line("  internal_rpc {")
	if c.server {
		line("    verify_incoming = true")
	}
	line("    verify_server_hostname = true")
	line("  }")
	line("}")
	if c.server {
		line("\n# The API over HTTPS, beside the plain one, and what sidecars ask for their configuration, with and without TLS; all on")
		line("# loopback unless client_addr or addresses say otherwise.")
		line("ports {\n  https = 8501\n  grpc = 8502\n  grpc_tls = 8503\n}")
		line("\n# Client agents get their certificates from the servers, and renew them.")
		line("auto_encrypt {\n  allow_tls = true\n}")
		line("\n# The key of the authority: this server signs its own certificate with it. With it, machines join by sarn join-token.")
		line("join_tokens {\n  ca_key_file = %s\n}", quoted(c.run.keyFile()))
	} else {
		line("\n# The certificate of this agent comes from the servers, and is renewed.")
		line("auto_encrypt {\n  tls = true\n}")
		line("\n# Sidecars ask here for their configuration; on loopback unless client_addr or addresses say otherwise.")
		line("ports {\n  grpc = 8502\n}")
	}
	if c.first || c.acl {
		line("\nacl {")
		line("  enabled = true")
		line("  default_policy = \"deny\"")
		line("  enable_token_persistence = true")
		if c.management != "" || c.agentToken != "" {
			line("  tokens {")
			if c.management != "" {
				line("    # The operator's token is made of this at the first start. You may remove the line afterwards.")
				line("    initial_management = %s", quoted(c.management))
			}
			if c.agentToken != "" {
				line("    agent = %s", quoted(c.agentToken))
			}
			line("  }")
		}
		line("}")
	}
	return b.String()
}
