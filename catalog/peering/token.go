package peering

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// A Token is what one cluster gives another to begin a peering. It holds a secret.
type Token struct {
	CA                    []string // PEM
	ManualServerAddresses []string `json:",omitempty"`
	ServerAddresses       []string // host:port
	ServerName            string
	PeerID                string
	EstablishmentSecret   string
	Remote                Remote
}

// Limits of a token.
const (
	maxToken     = 256 << 10
	maxAddresses = 64
	maxRoots     = 16
	maxRoot      = 32 << 10
)

// Encode returns the text of a token.
func (t *Token) Encode() (string, error) {
	data, err := json.Marshal(t)
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(data), nil
}

// Addresses returns the addresses to dial.
func (t *Token) Addresses() []string {
	if len(t.ManualServerAddresses) > 0 {
		return t.ManualServerAddresses
	}
	return t.ServerAddresses
}

// DecodeToken reads the text of a token and checks everything about it but the secret.
func DecodeToken(text string) (*Token, error) {
	if len(text) > maxToken {
		return nil, errors.New("failed to decode token: it is too large")
	}
	data, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("failed to decode token: %w", err)
	}
	t := new(Token)
	if err := json.Unmarshal(data, t); err != nil {
		return nil, fmt.Errorf("failed to decode token: %w", quiet(err))
	}
	switch {
	case len(t.Addresses()) == 0:
		return nil, errors.New("peering token server addresses value is empty")
	case t.ServerName == "":
		return nil, errors.New("peering token server name value is empty")
	case t.PeerID == "":
		return nil, errors.New("peering token peer ID value is empty")
	case len(t.PeerID) > 64 || len(t.EstablishmentSecret) > 256:
		return nil, errors.New("failed to decode token: its ID or secret is too long")
	}
	if err := CheckAddresses(t.Addresses()); err != nil {
		return nil, fmt.Errorf("peering token server addresses: %w", err)
	}
	if _, err := ServerTrustDomain(t.ServerName); err != nil {
		return nil, fmt.Errorf("peering token server name: %w", err)
	}
	if err := CheckRoots(t.CA); err != nil {
		return nil, fmt.Errorf("peering token CA value is invalid: %w", err)
	}
	return t, nil
}

// quiet takes from a decoder's error what it tells of the text.
func quiet(err error) error {
	if _, ok := errors.AsType[*json.SyntaxError](err); ok {
		return errors.New("it is no JSON")
	}
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf("%s is no %s", t.Field, t.Type)
	}
	return errors.New("it is not of the right form")
}

// ServerTrustDomain returns the trust domain in the name of a peer's servers, server.DC.peering.TD.
func ServerTrustDomain(name string) (string, error) {
	rest, ok := strings.CutPrefix(name, "server.")
	dc, td, found := strings.Cut(rest, ".peering.")
	if !ok || !found || dc == "" || len(name) > 253 || !IsTrustDomain(td) {
		return "", fmt.Errorf("%.80q is not the name of servers", name)
	}
	return strings.ToLower(td), nil
}

// IsTrustDomain reports whether a text may be the trust domain of a cluster: labels of letters, digits and dashes.
func IsTrustDomain(s string) bool {
	if s == "" || len(s) > 200 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, c := range []byte(label) {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-') {
				return false
			}
		}
	}
	return true
}

// CheckAddresses refuses addresses that are no host:port.
func CheckAddresses(list []string) error {
	if len(list) > maxAddresses {
		return fmt.Errorf("there are more than %d", maxAddresses)
	}
	for _, a := range list {
		host, port, err := net.SplitHostPort(a)
		n, nerr := strconv.ParseUint(port, 10, 16)
		if err != nil || nerr != nil || n == 0 || !isHost(host) {
			return fmt.Errorf("%.80q is not a host and port", a)
		}
	}
	return nil
}

// isHost reports whether s is an IP address or could be a DNS name.
func isHost(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
			return false
		}
	}
	return s[0] != '-' && s[0] != '.'
}

// CheckRoots refuses what is no list of certificates of authorities.
func CheckRoots(pems []string) error {
	if len(pems) == 0 || len(pems) > maxRoots {
		return fmt.Errorf("%d certificates, want 1 to %d", len(pems), maxRoots)
	}
	for _, text := range pems {
		if len(text) > maxRoot {
			return errors.New("a certificate is too large")
		}
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "CERTIFICATE" || strings.TrimSpace(string(rest)) != "" {
			return errors.New("not one PEM block with a certificate")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return errors.New("a certificate cannot be read")
		}
		if !cert.IsCA {
			return errors.New("a certificate is not that of an authority")
		}
	}
	return nil
}

// Digest returns what is kept of a secret by the side that is shown it.
func Digest(secret string) []byte {
	sum := sha256.Sum256([]byte(secret))
	return sum[:]
}

// Matches reports whether a secret is the one with a digest. An empty digest matches none. The time it takes tells
// nothing of the digest.
func Matches(digest []byte, secret string) bool {
	return subtle.ConstantTimeCompare(digest, Digest(secret)) == 1 && len(digest) > 0
}
