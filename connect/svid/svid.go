// Package svid makes and checks JWT-SVIDs: tokens that say which service of the mesh somebody is, for those who cannot
// be asked for a certificate. The rules are those of the SPIFFE JWT-SVID standard. The package is pure: time and
// randomness come in.
package svid

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Calls to the servers. Handlers are in server/svidrpc.
var (
	SignCall = rpc.Leader[SignRequest, SignReply]("SVID.Sign")
	KeysCall = rpc.Read[KeysRequest, KeysReply]("SVID.Keys")
)

// A SignRequest asks for a token for a service. It needs service:write.
type SignRequest struct {
	read.Target
	Service  string
	Audience []string // 1 to MaxAudience
}

// SignReply carries the token, a JWS in compact form.
type SignReply struct {
	ID      string // the SPIFFE ID
	Token   string
	Expires time.Time
}

// A KeysRequest asks for the keys that tokens are checked with. It needs no permission.
type KeysRequest struct{ read.Options }

// KeysReply has them as a JWK set (RFC 7517).
type KeysReply struct {
	read.Meta
	TrustDomain string
	JWKS        []byte
}

// Bounds and times.
const (
	TTL         = 5 * time.Minute // of a token
	MaxAudience = 16
	maxName     = 1024             // of one audience
	maxToken    = 16 << 10         // of a token that is checked
	skew        = 30 * time.Second // between the clocks of those who sign and those who check
	// KeyPeriod is how long a key signs; it is told KeyAhead before that, and keyAfter after.
	KeyPeriod = 7 * 24 * time.Hour
	KeyAhead  = 24 * time.Hour
	keyAfter  = time.Hour
)

// A Key signs tokens from one time to another.
type Key struct {
	ID      string
	Private string    // PEM, PKCS #8, ECDSA P-256
	From    time.Time // signs from here
	Until   time.Time // to here
}

// Keys are what a cluster signs with, in the order of their times. It is replicated among servers and goes nowhere
// else.
type Keys struct{ List []*Key }

// NewKey makes a key.
func NewKey(random io.Reader, from time.Time) (*Key, error) {
	secret, err := ecdsa.GenerateKey(elliptic.P256(), random)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		return nil, err
	}
	var id [16]byte
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return nil, err
	}
	return &Key{
		ID: fmt.Sprintf("%x", id), Private: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		From: from, Until: from.Add(KeyPeriod),
	}, nil
}

func (k *Key) secret() (*ecdsa.PrivateKey, error) {
	b, _ := pem.Decode([]byte(k.Private))
	if b == nil {
		return nil, errors.New("the key for tokens cannot be read")
	}
	secret, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return nil, errors.New("the key for tokens cannot be read")
	}
	ec, ok := secret.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the key for tokens is of another kind")
	}
	return ec, nil
}

// Next returns the keys as they should be at a time: without those whose tokens have all expired, and with one that
// signs after the last; nil when they are so already.
func (k *Keys) Next(random io.Reader, now time.Time) (*Keys, error) {
	next := &Keys{}
	for _, key := range k.List {
		if now.Before(key.Until.Add(keyAfter)) {
			next.List = append(next.List, key)
		}
	}
	from := now
	if n := len(next.List); n > 0 {
		if last := next.List[n-1].Until; now.Before(last) {
			from = last
		}
	}
	if from.After(now.Add(KeyAhead)) {
		if len(next.List) == len(k.List) {
			return nil, nil
		}
		return next, nil
	}
	key, err := NewKey(random, from)
	if err != nil {
		return nil, err
	}
	next.List = append(next.List, key)
	return next, nil
}

// JWKS returns the public keys as a JWK set.
func (k *Keys) JWKS() ([]byte, error) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, key := range k.List {
		secret, err := key.secret()
		if err != nil {
			return nil, err
		}
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: secret.Public(), KeyID: key.ID, Use: "jwt-svid", Algorithm: string(jose.ES256)})
	}
	return json.Marshal(set)
}

// CheckAudience returns nil when a token may be made for these audiences.
func CheckAudience(audience []string) error {
	switch {
	case len(audience) == 0:
		return errors.New("an audience is needed")
	case len(audience) > MaxAudience:
		return fmt.Errorf("more than %d audiences", MaxAudience)
	}
	for _, a := range audience {
		if a == "" || len(a) > maxName {
			return fmt.Errorf("an audience must have 1 to %d bytes", maxName)
		}
	}
	return nil
}

// Sign makes a token for an identity, with the key of the time.
func (k *Keys) Sign(id connect.ID, audience []string, now time.Time) (token string, expires time.Time, err error) {
	if err := CheckAudience(audience); err != nil {
		return "", expires, err
	}
	i := slices.IndexFunc(k.List, func(key *Key) bool { return !now.Before(key.From) && now.Before(key.Until) })
	if i < 0 {
		return "", expires, errors.New("there is no key for tokens yet")
	}
	secret, err := k.List[i].secret()
	if err != nil {
		return "", expires, err
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: secret, KeyID: k.List[i].ID}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", expires, err
	}
	expires = now.Add(TTL).Truncate(time.Second)
	token, err = jwt.Signed(signer).Claims(jwt.Claims{
		Subject: id.String(), Audience: audience, IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(expires),
	}).Serialize()
	return token, expires, err
}

// Validate checks a token for one audience against a JWK set of the trust domain, and returns who it speaks for with
// all its claims. Numbers among them are float64.
func Validate(token, audience, trustDomain string, jwks []byte, now time.Time) (connect.ID, map[string]any, error) {
	if audience == "" {
		return connect.ID{}, nil, errors.New("an audience is needed")
	}
	if len(token) > maxToken {
		return connect.ID{}, nil, fmt.Errorf("the token is longer than %d bytes", maxToken)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(jwks, &set); err != nil {
		return connect.ID{}, nil, fmt.Errorf("read the keys of the trust domain: %w", err)
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return connect.ID{}, nil, errors.New("the token cannot be read, or is signed in another way than ES256")
	}
	if len(parsed.Headers) != 1 {
		return connect.ID{}, nil, errors.New("the token must have one signature")
	}
	if typ, ok := parsed.Headers[0].ExtraHeaders[jose.HeaderType]; ok && typ != "JWT" && typ != "JOSE" {
		return connect.ID{}, nil, errors.New("the token is of another type")
	}
	keys := set.Key(parsed.Headers[0].KeyID)
	if len(keys) != 1 {
		return connect.ID{}, nil, errors.New("the token's key is none of the trust domain")
	}
	var std jwt.Claims
	all := map[string]any{}
	if err := parsed.Claims(keys[0].Key, &std, &all); err != nil {
		return connect.ID{}, nil, errors.New("the token's signature does not fit")
	}
	if std.Expiry == nil {
		return connect.ID{}, nil, errors.New("the token says no end")
	}
	if err := std.ValidateWithLeeway(jwt.Expected{AnyAudience: jwt.Audience{audience}, Time: now}, skew); err != nil {
		return connect.ID{}, nil, fmt.Errorf("the token is refused: %s", strings.TrimPrefix(err.Error(), "go-jose/go-jose/jwt: "))
	}
	id, err := connect.ParseID(std.Subject)
	if err != nil {
		return connect.ID{}, nil, errors.New("the token's subject is no identity of the mesh")
	}
	if !connect.SameTrustDomain(id.TrustDomain(), trustDomain) {
		return connect.ID{}, nil, errors.New("the token's subject is of another trust domain")
	}
	return id, all, nil
}
