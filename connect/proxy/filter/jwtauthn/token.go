package jwtauthn

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"strings"
	"time"
)

// A status is how the check of a token went, in the words that clients read. They are part of the wire format.
type status string

// The statuses.
const (
	ok               status = "OK"
	missing          status = "Jwt is missing"
	notYetValid      status = "Jwt not yet valid"
	expired          status = "Jwt is expired"
	badFormat        status = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
	badHeaderBase64  status = "Jwt header is an invalid Base64url encoded"
	badHeaderJSON    status = "Jwt header is an invalid JSON"
	badAlg           status = "Jwt header [alg] field is required and must be a string"
	unknownAlg       status = "Jwt header [alg] is not supported"
	badKid           status = "Jwt header [kid] field is not a string"
	badPayloadBase64 status = "Jwt payload is an invalid Base64url encoded"
	badPayloadJSON   status = "Jwt payload is an invalid JSON"
	badIss           status = "Jwt payload [iss] field is not a string"
	badSub           status = "Jwt payload [sub] field is not a string"
	badIat           status = "Jwt payload [iat] field is not an integer"
	badNbf           status = "Jwt payload [nbf] field is not an integer"
	badExp           status = "Jwt payload [exp] field is not an integer"
	badJti           status = "Jwt payload [jti] field is not a string"
	badAud           status = "Jwt payload [aud] field is not a string or string list"
	badSignature     status = "Jwt signature is an invalid Base64url encoded"
	notVerified      status = "Jwt verification fails"
	unknownIssuer    status = "Jwt issuer is not configured"
	wrongAudience    status = "Audiences in Jwt are not allowed"
	fetchFailed      status = "Jwks remote fetch is failed"
	noKey            status = "Jwks doesn't have key to match kid or alg from Jwt"
)

// maxToken bounds the bytes of a token that is looked at.
const maxToken = 16 << 10

// A token is a parsed, unverified token.
type token struct {
	raw     string
	payload string // as it stands in the token

	alg, kid       string
	iss, sub       string
	aud            []string
	iat, nbf, exp  float64 // seconds; 0 is not there
	header, claims map[string]any
}

// parse takes a token apart.
func parse(raw string) (*token, status) {
	if len(raw) > maxToken {
		return nil, badFormat
	}
	head, rest, found := strings.Cut(raw, ".")
	body, sig, found2 := strings.Cut(rest, ".")
	if !found || !found2 || head == "" || body == "" || sig == "" || strings.Contains(sig, ".") {
		return nil, badFormat
	}
	t := &token{raw: raw, payload: body}
	b, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return nil, badHeaderBase64
	}
	if json.Unmarshal(b, &t.header) != nil || t.header == nil {
		return nil, badHeaderJSON
	}
	var isText bool
	if t.alg, isText = t.header["alg"].(string); !isText {
		return nil, badAlg
	}
	if _, known := algorithms[t.alg]; !known {
		return nil, unknownAlg
	}
	if !text(t.header, "kid", &t.kid) {
		return nil, badKid
	}
	if b, err = base64.RawURLEncoding.DecodeString(body); err != nil {
		return nil, badPayloadBase64
	}
	if json.Unmarshal(b, &t.claims) != nil || t.claims == nil {
		return nil, badPayloadJSON
	}
	var jti string
	switch {
	case !text(t.claims, "iss", &t.iss):
		return nil, badIss
	case !text(t.claims, "sub", &t.sub):
		return nil, badSub
	case !instant(t.claims, "iat", &t.iat):
		return nil, badIat
	case !instant(t.claims, "nbf", &t.nbf):
		return nil, badNbf
	case !instant(t.claims, "exp", &t.exp):
		return nil, badExp
	case !text(t.claims, "jti", &jti):
		return nil, badJti
	}
	switch aud := t.claims["aud"].(type) {
	case nil:
		if _, there := t.claims["aud"]; there {
			return nil, badAud
		}
	case string:
		t.aud = []string{aud}
	case []any:
		for _, a := range aud {
			s, isText := a.(string)
			if !isText {
				return nil, badAud
			}
			t.aud = append(t.aud, s)
		}
	default:
		return nil, badAud
	}
	if _, err := base64.RawURLEncoding.DecodeString(sig); err != nil {
		return nil, badSignature
	}
	return t, ok
}

// text stores a string; it returns false if there is something else.
func text(m map[string]any, key string, to *string) bool {
	v, there := m[key]
	if !there {
		return true
	}
	s, isText := v.(string)
	*to = s
	return isText
}

// instant stores seconds since 1970.
func instant(m map[string]any, key string, to *float64) bool {
	v, there := m[key]
	if !there {
		return true
	}
	f, isNumber := v.(float64)
	*to = f
	return isNumber && f >= 0 && f < math.MaxInt64/2
}

// checkTime applies the claims about time. A token is good in the second that its expiry names, and the skew longer.
func (t *token) checkTime(now time.Time, skew time.Duration) status {
	s := float64(now.Unix())
	if t.nbf > s+skew.Seconds() {
		return notYetValid
	}
	if _, there := t.claims["exp"]; there && s > math.Floor(t.exp)+skew.Seconds() {
		return expired
	}
	return ok
}

// allowed reports whether one of the audiences is among the wanted. A scheme and a slash at the end are no difference.
func (t *token) allowed(audiences []string) bool {
	if len(audiences) == 0 {
		return true
	}
	for _, a := range t.aud {
		for _, want := range audiences {
			if bareAudience(a) == bareAudience(want) {
				return true
			}
		}
	}
	return false
}

func bareAudience(s string) string {
	if rest, found := strings.CutPrefix(s, "https://"); found {
		s = rest
	} else {
		s = strings.TrimPrefix(s, "http://")
	}
	return strings.TrimSuffix(s, "/")
}
