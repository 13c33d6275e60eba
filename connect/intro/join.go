package intro

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// A machine joins by a token: an operator has the leader make one, the machine shows it once, and is told what it needs
// to be part of the cluster. What the servers keep of the token is a hash.

// JoinName is the call of a machine that joins. It needs no certificate, and is made over rpcwire.ProtoIntro.
const JoinName = "Intro.Join"

var (
	// NewJoinTokenCall has the leader make a token. It needs acl:write and operator:write.
	NewJoinTokenCall = rpc.Leader[NewJoinTokenRequest, NewJoinTokenReply]("Intro.NewJoinToken")
	// RedeemCall has the leader take a token that was shown to a server. It needs the secret of the servers.
	RedeemCall = rpc.Leader[RedeemRequest, RedeemReply]("Intro.Redeem")
	// OwnTokenCall has the leader tell a server the ACL token of its own agent. It needs the secret of the servers.
	OwnTokenCall = rpc.Leader[OwnTokenRequest, OwnTokenReply]("Intro.OwnToken")
)

// Bounds of the life of a token.
const (
	DefaultJoinTTL = 10 * time.Minute
	MinJoinTTL     = time.Second
	MaxJoinTTL     = 24 * time.Hour
)

// A NewJoinTokenRequest asks for a token for a server or, without Server, for a client agent.
type NewJoinTokenRequest struct {
	read.Target
	Server bool
	TTL    time.Duration // 0 means DefaultJoinTTL
}

// A NewJoinTokenReply carries it. The text is a secret.
type NewJoinTokenReply struct {
	Text      string
	ExpiresAt time.Time
}

// A JoinRequest shows the secret of a token.
type JoinRequest struct {
	Secret []byte
	Server bool // what the token says it is for
	Node   string
}

// A JoinReply tells what a machine needs to be part of the cluster. All of it is secret.
type JoinReply struct {
	Settings Settings
	Domain   string
	// Authorities are the certificates, PEM, that servers are verified with.
	Authorities []string
	// AuthorityKey is told to servers alone, PEM: a server makes its own certificate.
	AuthorityKey string `json:",omitempty"`
}

// A RedeemRequest is made by a server to which a token was shown.
type RedeemRequest struct {
	Join      JoinRequest
	WantToken bool // make a client a token with its node's identity, where access control is on
	Secret    string
}

// A RedeemReply carries the secret of the token.
type RedeemReply struct{ AgentToken string }

// An OwnTokenRequest is made by a server for itself.
type OwnTokenRequest struct{ Node, Secret string }

// An OwnTokenReply carries the secret of the token.
type OwnTokenReply struct{ AgentToken string }

// SecretSize is the size of what makes a token one, in bytes.
const SecretSize = 32

// A JoinToken is what the text of a token says.
type JoinToken struct {
	Server     bool // joins a server rather than a client agent
	Secret     [SecretSize]byte
	Pin        [sha256.Size]byte // SHA-256 of the certificate of the authority that vouches for the servers
	Datacenter string
	Domain     string   // of DNS, which is part of the names of servers
	Addresses  []string // host:port of server ports, at least one
}

// ErrJoinToken reports a text that is no token. It shows nothing of it.
var ErrJoinToken = errors.New("this is not a join token")

// Bounds of a token's text.
const (
	joinPrefix   = "sarn-join-"
	joinVersion  = 1
	maxJoinText  = 2048
	maxAddresses = 8
	maxName      = 253
)

const kindServer, kindClient = 's', 'c'

// Text is what an operator copies: a prefix, and in base64 a version, the kind, the secret, the pin, datacenter, domain and
// addresses with their lengths before them, and a checksum, by which a copy that lost a letter is told from a token that
// is not good. Only as many addresses go in as are allowed.
func (t *JoinToken) Text() string {
	kind := byte(kindClient)
	if t.Server {
		kind = kindServer
	}
	b := append([]byte{joinVersion, kind}, t.Secret[:]...)
	b = append(b, t.Pin[:]...)
	text := func(s string) { b = append(append(b, byte(len(s))), s...) }
	text(t.Datacenter)
	text(t.Domain)
	addresses := t.Addresses[:min(len(t.Addresses), maxAddresses)]
	b = append(b, byte(len(addresses)))
	for _, a := range addresses {
		text(a)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return joinPrefix + base64.RawURLEncoding.EncodeToString(b)
}

var (
	datacenterName = regexp.MustCompile(`^[a-z0-9_-]{1,63}$`)
	domainName     = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*$`)
)

// ParseJoinToken reads the text of a token.
func ParseJoinToken(s string) (*JoinToken, error) {
	s, ok := strings.CutPrefix(strings.TrimSpace(s), joinPrefix)
	if !ok || len(s) > maxJoinText {
		return nil, ErrJoinToken
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) < 4 || crc32.ChecksumIEEE(b[:len(b)-4]) != binary.BigEndian.Uint32(b[len(b)-4:]) {
		return nil, fmt.Errorf("%w: part of it is missing or was changed", ErrJoinToken)
	}
	b = b[:len(b)-4]
	take := func(n int) []byte {
		if n > len(b) {
			ok, n = false, len(b)
		}
		head := b[:n]
		b = b[n:]
		return head
	}
	length := func() int {
		if n := take(1); len(n) == 1 {
			return int(n[0])
		}
		return 0
	}
	if v := length(); ok && v != joinVersion {
		return nil, fmt.Errorf("%w that this version can read: it is of version %d", ErrJoinToken, v)
	}
	t := new(JoinToken)
	kind := length()
	t.Server = kind == kindServer
	copy(t.Secret[:], take(SecretSize))
	copy(t.Pin[:], take(sha256.Size))
	t.Datacenter, t.Domain = string(take(length())), string(take(length()))
	for range length() {
		t.Addresses = append(t.Addresses, string(take(length())))
	}
	if !ok || len(b) != 0 || kind != kindServer && kind != kindClient {
		return nil, ErrJoinToken
	}
	return t, t.Check()
}

// Check refuses what no token says.
func (t *JoinToken) Check() error {
	switch {
	case !datacenterName.MatchString(t.Datacenter):
		return fmt.Errorf("%w: there is no datacenter in it", ErrJoinToken)
	case CheckDomain(t.Domain) != nil:
		return fmt.Errorf("%w: there is no domain in it", ErrJoinToken)
	case len(t.Addresses) == 0 || len(t.Addresses) > maxAddresses:
		return fmt.Errorf("%w: there are no servers in it", ErrJoinToken)
	}
	for _, a := range t.Addresses {
		if err := CheckAddress(a); err != nil {
			return fmt.Errorf("%w: %w", ErrJoinToken, err)
		}
	}
	return nil
}

// CheckDatacenter refuses what cannot be the name of a datacenter.
func CheckDatacenter(name string) error {
	if !datacenterName.MatchString(name) {
		return fmt.Errorf("%q is not the name of a datacenter", name)
	}
	return nil
}

// CheckDomain refuses what cannot be a domain.
func CheckDomain(name string) error {
	if len(name) > maxName || !domainName.MatchString(name) {
		return fmt.Errorf("%q is not a domain", name)
	}
	return nil
}

// CheckAddress refuses what is not host:port.
func CheckAddress(addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err == nil {
		var n uint64
		if n, err = strconv.ParseUint(port, 10, 16); n == 0 {
			err = errors.New("no port")
		}
	}
	if err != nil || net.ParseIP(host) == nil && CheckDomain(host) != nil {
		return fmt.Errorf("%q is not an address with a port", addr)
	}
	return nil
}
