// Package oidc reads JSON Web Tokens and what those who issue them publish: their keys, and the metadata of OpenID
// Connect. Only signatures by key pairs count; what a token says about where its key is found never does. All that
// comes from outside is bounded in size and time.
package oidc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// MaxToken bounds a token, in bytes.
const MaxToken = 32 << 10

// Algorithms lists the signature algorithms that are accepted.
func Algorithms() []string {
	return []string{"RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512", "EdDSA"}
}

// accepted is Algorithms in the form the parser takes.
var accepted = func() []jose.SignatureAlgorithm {
	var list []jose.SignatureAlgorithm
	for _, a := range Algorithms() {
		list = append(list, jose.SignatureAlgorithm(a))
	}
	return list
}()

// A Token is a signed token that nothing is known about yet: its claims come from Verify.
type Token struct {
	jws *jose.JSONWebSignature
	alg string
	kid string // empty if it names no key
}

// CheckForm returns an error for what does not have the form of a signed token, whatever it is signed with: for tokens
// that are shown to others, who verify them.
func CheckForm(raw string) error {
	_, err := parse(raw, append(slices.Clone(accepted), jose.HS256, jose.HS384, jose.HS512))
	return err
}

// Parse reads a token in its compact form. Its signature is not verified.
func Parse(raw string) (*Token, error) { return parse(raw, accepted) }

func parse(raw string, algorithms []jose.SignatureAlgorithm) (*Token, error) {
	if len(raw) > MaxToken {
		return nil, fmt.Errorf("the token is longer than %d bytes", MaxToken)
	}
	jws, err := jose.ParseSignedCompact(raw, algorithms)
	if err != nil {
		return nil, err
	}
	if len(jws.Signatures) != 1 {
		return nil, errors.New("the token does not have exactly one signature")
	}
	t := &Token{jws: jws, alg: jws.Signatures[0].Header.Algorithm, kid: jws.Signatures[0].Header.KeyID}
	if _, err := decode(jws.UnsafePayloadWithoutVerification()); err != nil {
		return nil, err
	}
	return t, nil
}

// Algorithm returns the name of the algorithm that signed the token, one of Algorithms.
func (t *Token) Algorithm() string { return t.alg }

// Verify returns the claims if one of the keys signed the token.
func (t *Token) Verify(keys []Key) (Claims, bool) {
	for _, k := range keys {
		if !k.fits(t) {
			continue
		}
		if payload, err := t.jws.Verify(k.value); err == nil {
			c, err := decode(payload)
			return c, err == nil
		}
	}
	return nil, false
}

// Claims are what a token says. Numbers are of type json.Number.
type Claims map[string]any

func decode(payload []byte) (Claims, error) {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	var c Claims
	if err := d.Decode(&c); err != nil || c == nil {
		return nil, errors.New("the claims are not a JSON object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the claims")
	}
	return c, nil
}

// Text returns a claim that is text; a missing one is empty.
func (c Claims) Text(name string) (string, error) {
	switch v := c[name].(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	}
	return "", fmt.Errorf("%s is not text", name)
}

// Audience returns the claim aud, which is one text or a list of them; present tells whether there is one at all.
func (c Claims) Audience() (aud []string, present bool, err error) {
	switch v := c["aud"].(type) {
	case nil:
		return nil, false, nil
	case string:
		return []string{v}, true, nil
	case []any:
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, true, errors.New("aud is not a list of texts")
			}
			aud = append(aud, s)
		}
		return aud, true, nil
	}
	return nil, true, errors.New("aud is not text")
}

// maxTime bounds times, in seconds since 1970: far beyond any that make sense, far below where arithmetic ends.
const maxTime = 1e11

// Time returns a claim that is a time; the zero time if it is missing.
func (c Claims) Time(name string) (time.Time, error) {
	switch v := c[name].(type) {
	case nil:
		return time.Time{}, nil
	case json.Number:
		f, err := v.Float64()
		if err == nil && math.Abs(f) < maxTime {
			return time.Unix(int64(math.Floor(f)), 0), nil
		}
	}
	return time.Time{}, fmt.Errorf("%s is not a time", name)
}

// HasAudience reports whether one of the audiences is wanted.
func HasAudience(aud, wanted []string) bool {
	return slices.ContainsFunc(aud, func(a string) bool { return slices.Contains(wanted, a) })
}
