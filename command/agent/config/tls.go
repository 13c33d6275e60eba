package config

import (
	"crypto/tls"
	"net"
	"slices"
	"strings"
)

// tlsVersions are the names of TLS versions in configurations.
var tlsVersions = []string{"TLS_AUTO", "TLSv1_0", "TLSv1_1", "TLSv1_2", "TLSv1_3"}

// MinTLS is the least version of TLS of a stanza, as crypto/tls numbers it: never one before 1.2.
func (t TLSStanza) MinTLS() uint16 {
	if t.MinVersion == "TLSv1_3" {
		return tls.VersionTLS13
	}
	return tls.VersionTLS12
}

// CipherSuiteIDs are the cipher suites of a stanza, as crypto/tls numbers them; nil leaves the choice to it.
func (t TLSStanza) CipherSuiteIDs() []uint16 {
	ids, _ := cipherSuites(t.CipherSuites)
	return ids
}

// cipherSuites looks up a comma-separated list of names. It returns the names it does not know, too.
func cipherSuites(s string) (ids []uint16, unknown []string) {
	for name := range strings.SplitSeq(s, ",") {
		name = strings.TrimSpace(name)
		if name == "" {
			continue
		}
		all := append(tls.CipherSuites(), tls.InsecureCipherSuites()...)
		i := slices.IndexFunc(all, func(c *tls.CipherSuite) bool {
			return c.Name == name && slices.Contains(c.SupportedVersions, tls.VersionTLS12)
		})
		if i < 0 {
			unknown = append(unknown, name)
			continue
		}
		ids = append(ids, all[i].ID)
	}
	return ids, unknown
}

// checkTLS completes the stanzas from the defaults and checks them.
func (b *builder) checkTLS() {
	t := &b.doc.Settings.TLS
	if b.has("tls.grpc.verify_outgoing") {
		b.fail("tls.grpc.verify_outgoing", "verify_outgoing is not valid in the tls.grpc stanza")
	}
	for _, stanza := range []string{"https", "grpc"} {
		if key := "tls." + stanza + ".verify_server_hostname"; b.has(key) {
			b.fail(key, "verify_server_hostname is only valid in the tls.defaults and tls.internal_rpc stanzas")
		}
	}
	for _, stanza := range []string{"defaults", "internal_rpc", "https"} {
		if key := "tls." + stanza + ".use_auto_cert"; b.has(key) {
			b.fail(key, "use_auto_cert is only valid in the tls.grpc stanza")
		}
	}
	own := false // the gRPC stanza itself, not the defaults, asks for TLS
	for _, key := range []string{"cert_file", "key_file"} {
		own = own || b.has("tls.grpc."+key)
	}
	if own && b.doc.Settings.Ports.GRPC > 0 && !b.has("ports.grpc_tls") && b.has("ports.grpc") {
		b.fail("ports.grpc", "the `ports.grpc` listener no longer supports TLS. Use `ports.grpc_tls` instead. "+
			"This message is appearing because GRPC is configured to use TLS, but `ports.grpc_tls` is not defined")
	}

	for name, stanza := range map[string]*TLSStanza{"internal_rpc": &t.InternalRPC, "https": &t.HTTPS, "grpc": &t.GRPC} {
		inherit(b, "tls."+name+".", stanza, &t.Defaults)
	}
	t.GRPC.VerifyOutgoing, t.GRPC.VerifyServerHostname, t.HTTPS.VerifyServerHostname = false, false, false
	if t.InternalRPC.VerifyServerHostname {
		t.InternalRPC.VerifyOutgoing = true
	}

	for _, st := range []struct {
		name string
		*TLSStanza
	}{{"defaults", &t.Defaults}, {"internal_rpc", &t.InternalRPC}, {"https", &t.HTTPS}, {"grpc", &t.GRPC}} {
		prefix := "tls." + st.name + "."
		from := func(key string) string { // where a value that may be inherited was written
			if st.name != "defaults" && !b.has(prefix+key) {
				return ""
			}
			return prefix + key
		}
		if key := from("tls_min_version"); key != "" && !slices.Contains(tlsVersions, st.MinVersion) {
			b.fail(key, "%s: invalid TLS version: no matching TLS version found for %s, please specify one of [%s]",
				key, st.MinVersion, strings.Join(tlsVersions, ", "))
		}
		if key := from("tls_min_version"); key != "" && (st.MinVersion == "TLSv1_0" || st.MinVersion == "TLSv1_1") {
			b.warn("%s: %s is not spoken, TLSv1_2 is the least", key, st.MinVersion)
		}
		if key := from("tls_cipher_suites"); key != "" && st.CipherSuites != "" {
			if st.MinVersion == "TLSv1_3" {
				b.fail(key, "%s: TLS 1.3 cipher suites are not configurable", key)
			} else if _, unknown := cipherSuites(st.CipherSuites); len(unknown) > 0 {
				b.fail(key, "%s: invalid TLS cipher suites: %s", key, strings.Join(unknown, ", "))
			}
		}
	}
}

// inherit gives the fields of a stanza that were not set the values of the defaults.
func inherit(b *builder, prefix string, t, defaults *TLSStanza) {
	text := func(key string, to *string, from string) {
		if !b.has(prefix + key) {
			*to = from
		}
	}
	fact := func(key string, to *bool, from bool) {
		if !b.has(prefix + key) {
			*to = from
		}
	}
	text("ca_file", &t.CAFile, defaults.CAFile)
	text("ca_path", &t.CAPath, defaults.CAPath)
	text("cert_file", &t.CertFile, defaults.CertFile)
	text("key_file", &t.KeyFile, defaults.KeyFile)
	text("tls_min_version", &t.MinVersion, defaults.MinVersion)
	text("tls_cipher_suites", &t.CipherSuites, defaults.CipherSuites)
	fact("verify_incoming", &t.VerifyIncoming, defaults.VerifyIncoming)
	fact("verify_outgoing", &t.VerifyOutgoing, defaults.VerifyOutgoing)
	fact("verify_server_hostname", &t.VerifyServerHostname, defaults.VerifyServerHostname)
}

// checkAuto checks auto_encrypt and auto_config.
func (b *builder) checkAuto() {
	s := &b.doc.Settings
	if s.AutoEncrypt.TLS && s.Server {
		b.fail("auto_encrypt.tls", "auto_encrypt.tls can only be used on a client.")
	}
	if s.AutoEncrypt.AllowTLS && !s.Server {
		b.fail("auto_encrypt.allow_tls", "auto_encrypt.allow_tls can only be used on a server.")
	}
	if s.AutoEncrypt.AllowTLS && s.Server && !s.TLS.InternalRPC.VerifyIncoming {
		b.warn("if auto_encrypt.allow_tls is turned on, tls.internal_rpc.verify_incoming should be enabled (either explicitly or via tls.defaults.verify_incoming). It is necessary to turn it off during a migration to TLS, but it should definitely be turned on afterwards.")
	}
	parsable := s.AutoEncrypt.IPSAN[:0:0]
	for _, ip := range s.AutoEncrypt.IPSAN {
		if net.ParseIP(ip) == nil {
			b.warn("Cannot parse ip %q from AutoEncrypt.IPSAN", ip)
			continue
		}
		parsable = append(parsable, ip)
	}
	s.AutoEncrypt.IPSAN = parsable

	if !s.AutoConfig.Enabled {
		return
	}
	switch ac := s.AutoConfig; {
	case s.Server:
		b.fail("auto_config.enabled", "auto_config.enabled cannot be set to true for server agents.")
	case s.AutoEncrypt.TLS:
		b.fail("auto_config.enabled", "both auto_encrypt.tls and auto_config.enabled cannot be set to true.")
	case !s.TLS.InternalRPC.VerifyOutgoing:
		b.fail("auto_config.enabled", "auto_config.enabled cannot be set without configuring TLS for server communications")
	case ac.IntroToken == "" && ac.IntroTokenFile == "":
		b.fail("auto_config.enabled", "One of auto_config.intro_token, auto_config.intro_token_file or the CONSUL_INTRO_TOKEN environment variable must be set to enable auto_config")
	case len(b.doc.Written.ServerAddresses) == 0:
		b.fail("auto_config.enabled", "auto_config.enabled is set without providing a list of addresses")
	}
}

// checkJoinTokens checks that a server which lets machines join by tokens is one that nobody else can pass for.
func (b *builder) checkJoinTokens() {
	const key = "join_tokens.ca_key_file"
	s := &b.doc.Settings
	if s.JoinTokens.CAKeyFile == "" {
		return
	}
	t := s.TLS.InternalRPC
	for _, c := range []struct {
		wrong bool
		text  string
	}{
		{!s.Server, "can only be used on a server"},
		{t.CAFile == "" || t.CertFile == "" || t.CertFile != t.KeyFile, "needs tls.internal_rpc.ca_file, with the certificate of the key first, and one file as both cert_file and key_file, which the server keeps current"},
		{!t.VerifyIncoming || !t.VerifyServerHostname, "needs tls.internal_rpc.verify_incoming and verify_server_hostname"},
		{!s.ACL.Enabled, "needs acl.enabled"},
	} {
		if c.wrong {
			b.fail(key, "%s %s.", key, c.text)
		}
	}
}
