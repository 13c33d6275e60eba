package ca

import (
	"fmt"
	"net"
	"regexp"
	"strings"
)

var dnsName = regexp.MustCompile(`^([a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?\.)*[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?$`)

// Bounds of what goes on a certificate beside its identity.
const (
	maxNames = 32
	maxName  = 253
)

// CheckAgentNames refuses names that the certificate of an agent may not have: those that mean servers or the mesh, and
// wildcards (spec/threats.md class 2).
func CheckAgentNames(dns, ips []string, trustDomain string) error {
	if len(dns)+len(ips) > maxNames {
		return fmt.Errorf("at most %d names and addresses go on the certificate of an agent", maxNames)
	}
	for _, name := range dns {
		lower := strings.ToLower(name)
		first, _, _ := strings.Cut(lower, ".")
		switch {
		case len(name) > maxName || !dnsName.MatchString(name):
			return fmt.Errorf("%q is no DNS name for the certificate of an agent", name)
		case first == "server" || lower == trustDomain || strings.HasSuffix(lower, "."+trustDomain):
			return fmt.Errorf("%q is a name of servers or of the mesh, not of an agent", name)
		}
	}
	for _, ip := range ips {
		if parsed := net.ParseIP(ip); parsed == nil || parsed.IsUnspecified() {
			return fmt.Errorf("%q is no address for the certificate of an agent", ip)
		}
	}
	return nil
}
