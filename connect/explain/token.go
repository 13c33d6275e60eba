package explain

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/sarnmesh/sarn/catalog/entry"
)

// maxToken bounds a token, or its claims.
const maxToken = 16 << 10

// tokens puts the token of a request into it. Keys that are not in an entry are not fetched or read: in their place stands
// one of this package's own, with which the claims that are given are signed.
type tokens struct {
	facts *TokenFacts // nil without a token
	every bool        // keys are replaced, not only those that are elsewhere
	query string      // the token where it stands in the path
}

// hide takes the token out of a path that is told.
func (t *tokens) hide(path string) string {
	if t.query == "" {
		return path
	}
	return strings.ReplaceAll(path, t.query, "TOKEN")
}

// standInKey signs claims that count as valid. It opens nothing: no proxy knows it.
var standInKey = []byte("claims that are given in place of a token count as valid")

// standInSet is a JSON Web Key Set of standInKey, in base64.
var standInSet = base64.StdEncoding.EncodeToString([]byte(
	`{"keys": [{"kty": "oct", "alg": "HS256", "k": "` + base64.RawURLEncoding.EncodeToString(standInKey) + `"}]}`))

// provider returns a provider as the proxies in question know it.
func (t *tokens) provider(p *entry.JWTProvider) entry.Entry {
	if !t.every && !standsIn(p) {
		return p
	}
	c := *p
	c.JSONWebKeySet = &entry.JSONWebKeySet{Local: &entry.LocalJWKS{JWKS: standInSet}}
	return &c
}

// standsIn reports whether the keys of a provider are elsewhere. A set that proxies can not use stays as it is.
func standsIn(p *entry.JWTProvider) bool {
	switch s := p.JSONWebKeySet; {
	case s == nil:
		return false
	case s.Local != nil:
		return s.Local.Filename != ""
	case s.Remote != nil:
		c := s.Remote.JWKSCluster
		return c == nil || c.DiscoveryType != "EDS" && c.DiscoveryType != "ORIGINAL_DST"
	}
	return false
}

// place takes a token, or the claims of one, and returns the fields of the request that carry it and the path.
func (t *tokens) place(jwt, path string, providers []entry.Entry) (header *Header, newPath string, err error) {
	if jwt == "" {
		return nil, path, nil
	}
	if len(jwt) > maxToken {
		return nil, "", fmt.Errorf("the token has more than %d bytes", maxToken)
	}
	t.facts = &TokenFacts{}
	claims := map[string]any{}
	var payload []byte
	given := strings.HasPrefix(strings.TrimSpace(jwt), "{")
	if given {
		payload = []byte(jwt)
	} else {
		parts := strings.Split(jwt, ".")
		if len(parts) != 3 {
			return nil, "", errors.New("a token has three parts with dots between them; claims are a JSON object")
		}
		if payload, err = base64.RawURLEncoding.DecodeString(parts[1]); err != nil {
			return nil, "", errors.New("the second part of the token is not base64")
		}
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return nil, "", errors.New("the claims are not a JSON object")
	}
	issuer, hasIssuer := claims["iss"].(string)
	var own *entry.JWTProvider
	for _, e := range providers {
		p, ok := e.(*entry.JWTProvider)
		if ok && (p.Issuer == issuer || p.Issuer == "" && own == nil || given && !hasIssuer && len(providers) == 1) {
			own = p
			if p.Issuer == issuer {
				break
			}
		}
	}
	signed := jwt
	switch {
	case given:
		t.every = true
		t.facts.Note = "the claims count as those of a valid token"
		if own != nil && !hasIssuer && own.Issuer != "" {
			claims["iss"] = own.Issuer
		}
		if _, ok := claims["aud"]; !ok && own != nil && len(own.Audiences) > 0 {
			claims["aud"] = own.Audiences[0]
		}
		if payload, err = json.Marshal(claims); err != nil {
			return nil, "", err
		}
		signed = sign(payload)
	case own != nil && standsIn(own):
		t.facts.Note = fmt.Sprintf("the signature was not verified, since the keys of %s are not in its entry", own.Name)
		signed = sign(payload)
	default:
		t.facts.Verified = own != nil
	}
	if own == nil {
		t.facts.Note = "no jwt-provider has the token's issuer"
	} else {
		t.facts.Provider = own.Name
	}
	location := &entry.JWTLocation{Header: &entry.JWTHeader{Name: "authorization", ValuePrefix: "Bearer "}}
	if own != nil && len(own.Locations) > 0 {
		location = own.Locations[0]
	}
	switch {
	case location.QueryParam != nil:
		separator := "?"
		if strings.Contains(path, "?") {
			separator = "&"
		}
		t.facts.Place, t.query = "query parameter "+location.QueryParam.Name, signed
		return nil, path + separator + location.QueryParam.Name + "=" + signed, nil
	case location.Cookie != nil:
		t.facts.Place = "cookie " + location.Cookie.Name
		return &Header{"cookie", location.Cookie.Name + "=" + signed}, path, nil
	}
	h := location.Header
	prefix := h.ValuePrefix
	if prefix != "" && !strings.HasSuffix(prefix, " ") {
		prefix += " "
	}
	t.facts.Place = "header " + strings.ToLower(h.Name)
	return &Header{strings.ToLower(h.Name), prefix + signed}, path, nil
}

// sign makes a token of claims.
func sign(payload []byte) string {
	text := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(payload)
	mac := hmac.New(sha256.New, standInKey)
	mac.Write([]byte(text))
	return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}
