// Package jwt checks JSON Web Tokens as proof of who logs in, and takes from them what binding rules see
// (spec/acl.md section 9.1).
package jwt

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/internal/fetch"
	"github.com/sarnmesh/sarn/internal/oidc"
)

// A Config says which tokens are good. Exactly one of JWTValidationPubKeys, JWKSURL and OIDCDiscoveryURL is set.
type Config struct {
	JWTValidationPubKeys []string // PEM
	JWKSURL              string
	JWKSCACert           string // PEM; empty takes the system's authorities
	OIDCDiscoveryURL     string // also the issuer of the tokens
	OIDCDiscoveryCACert  string // PEM; empty takes the system's authorities

	BoundIssuer      string   // empty does not look at it
	BoundAudiences   []string // a token that has an audience must have one of these
	JWTSupportedAlgs []string // empty allows all of oidc.Algorithms

	ClaimMappings     map[string]string // claim, or JSON pointer to one, to variable
	ListClaimMappings map[string]string

	ExpirationLeeway Leeway // default 150s
	NotBeforeLeeway  Leeway // default 150s
	ClockSkewLeeway  Leeway // default 60s
}

// A Leeway is a duration whose zero takes a default; a negative one is none. In JSON it is a number of nanoseconds, or
// text such as "30s".
type Leeway time.Duration

// UnmarshalJSON reads either form.
func (l *Leeway) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	var text string
	if json.Unmarshal(b, &text) == nil {
		d, err := time.ParseDuration(text)
		*l = Leeway(d)
		return err
	}
	var n float64
	if err := json.Unmarshal(b, &n); err != nil || math.Abs(n) >= math.MaxInt64 {
		return errors.New("not a duration")
	}
	*l = Leeway(n)
	return nil
}

func (l Leeway) or(byDefault time.Duration) time.Duration {
	switch {
	case l == 0:
		return byDefault
	case l < 0:
		return 0
	}
	return time.Duration(l)
}

const (
	defaultLeeway    = 150 * time.Second
	defaultClockSkew = 60 * time.Second
)

// A Validator checks tokens. It is safe for concurrent use.
type Validator struct {
	conf Config
	keys []oidc.Key // or
	set  *oidc.Set
	what string // what Check reaches, the name of a setting
}

// Variables are what a token says, under the names that the mappings give.
type Variables struct {
	Values map[string]string
	Lists  map[string][]string
}

// New checks the configuration. It reaches nothing.
func New(conf Config, way fetch.Way) (*Validator, error) {
	v := &Validator{conf: conf}
	sources := 0
	for _, set := range []bool{len(conf.JWTValidationPubKeys) > 0, conf.JWKSURL != "", conf.OIDCDiscoveryURL != ""} {
		if set {
			sources++
		}
	}
	if sources != 1 {
		return nil, errors.New(`exactly one of 'JWTValidationPubKeys', 'JWKSURL', or 'OIDCDiscoveryURL' must be set for type "jwt"`)
	}
	if conf.JWKSCACert != "" && conf.JWKSURL == "" {
		return nil, errors.New("'JWKSCACert' should not be set unless 'JWKSURL' is set")
	}
	if conf.OIDCDiscoveryCACert != "" && conf.OIDCDiscoveryURL == "" {
		return nil, errors.New("'OIDCDiscoveryCACert' should not be set unless 'OIDCDiscoveryURL' is set")
	}
	for i, text := range conf.JWTValidationPubKeys {
		k, err := oidc.ParsePEM(text)
		if err != nil {
			return nil, fmt.Errorf("error parsing public key JWTValidationPubKeys[%d]: %w", i, err)
		}
		v.keys = append(v.keys, k)
	}
	for _, a := range conf.JWTSupportedAlgs {
		if !slices.Contains(oidc.Algorithms(), a) {
			return nil, fmt.Errorf("Invalid supported algorithm: %s", a) //nolint:staticcheck // clients match the text
		}
	}
	for _, m := range []struct {
		name string
		of   map[string]string
	}{{"ClaimMappings", conf.ClaimMappings}, {"ListClaimMappings", conf.ListClaimMappings}} {
		seen := map[string]bool{}
		for _, variable := range slices.Sorted(maps.Values(m.of)) {
			if seen[variable] {
				return nil, fmt.Errorf("%s contains multiple mappings for key %q", m.name, variable)
			}
			seen[variable] = true
		}
	}
	switch {
	case conf.JWKSURL != "":
		roots, err := authorities(conf.JWKSCACert)
		if err != nil {
			return nil, fmt.Errorf("error checking JWKSCACert: %w", err)
		}
		client := way.Client(roots)
		v.what = "JWKSURL"
		v.set = oidc.NewSet(func(ctx context.Context) ([]oidc.Key, error) { return oidc.FetchKeys(ctx, client, conf.JWKSURL) })
	case conf.OIDCDiscoveryURL != "":
		roots, err := authorities(conf.OIDCDiscoveryCACert)
		if err != nil {
			return nil, fmt.Errorf("error checking OIDCDiscoveryCACert: %w", err)
		}
		client := way.Client(roots)
		v.what = "OIDCDiscoveryURL"
		v.set = oidc.NewSet(func(ctx context.Context) ([]oidc.Key, error) {
			p, err := oidc.Discover(ctx, client, conf.OIDCDiscoveryURL)
			if err != nil {
				return nil, err
			}
			return oidc.FetchKeys(ctx, client, p.KeysURL)
		})
	}
	return v, nil
}

// authorities reads certificates that TLS is verified with; nil for none.
func authorities(pem string) (*x509.CertPool, error) {
	if pem == "" {
		return nil, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(pem)) {
		return nil, errors.New("no certificate in PEM")
	}
	return pool, nil
}

// Check reaches the URL that keys come from, if there is one.
func (v *Validator) Check(ctx context.Context) error {
	if v.set == nil {
		return nil
	}
	if err := v.set.Fetch(ctx); err != nil {
		return fmt.Errorf("error checking %s: %w", v.what, err)
	}
	return nil
}

// Login checks a token. The errors are those of the specification.
func (v *Validator) Login(ctx context.Context, bearer string) (*Variables, error) {
	if bearer == "" {
		return nil, errors.New("missing jwt")
	}
	t, err := oidc.Parse(bearer)
	if err != nil {
		return nil, fmt.Errorf("error parsing token: %w", err)
	}
	if algs := v.conf.JWTSupportedAlgs; len(algs) > 0 && !slices.Contains(algs, t.Algorithm()) {
		return nil, fmt.Errorf("error verifying token: it is signed with %s, which is not a supported algorithm", t.Algorithm())
	}
	var c oidc.Claims
	if v.set != nil {
		if c, err = v.set.Verify(ctx, t); err != nil {
			return nil, fmt.Errorf("error verifying token: %w", err)
		}
	} else {
		var ok bool
		if c, ok = t.Verify(v.keys); !ok {
			return nil, oidc.ErrNoKey
		}
	}
	if err := v.validate(c, time.Now()); err != nil {
		return nil, err
	}
	return v.variables(c)
}

// validate checks the claims that say for whom and when the token is good.
func (v *Validator) validate(c oidc.Claims, now time.Time) error {
	invalid := func(err error) error { return fmt.Errorf("error validating claims: %w", err) }
	var times [3]time.Time
	for i, name := range []string{"iat", "nbf", "exp"} {
		t, err := c.Time(name)
		if err != nil {
			return invalid(err)
		}
		times[i] = t
	}
	iat, nbf, exp := times[0], times[1], times[2]
	if iat.IsZero() && nbf.IsZero() && exp.IsZero() {
		return errors.New("no issue time, notbefore, or expiration time encoded in token")
	}
	if exp.IsZero() {
		latest := iat
		if nbf.After(iat) {
			latest = nbf
		}
		exp = latest.Add(v.conf.ExpirationLeeway.or(defaultLeeway))
	}
	if nbf.IsZero() {
		if nbf = iat; iat.IsZero() {
			nbf = exp.Add(-v.conf.NotBeforeLeeway.or(defaultLeeway))
		}
	}
	skew := v.conf.ClockSkewLeeway.or(defaultClockSkew)
	switch {
	case now.Add(-skew).After(exp):
		return invalid(errors.New("the token is expired (exp)"))
	case now.Add(skew).Before(nbf):
		return invalid(errors.New("the token is not valid yet (nbf)"))
	case now.Add(skew).Before(iat):
		return invalid(errors.New("the token was issued in the future (iat)"))
	}

	issuer, err := c.Text("iss")
	if err != nil {
		return invalid(err)
	}
	for _, bound := range []string{v.conf.BoundIssuer, v.conf.OIDCDiscoveryURL} {
		if bound != "" && issuer != bound {
			return invalid(errors.New("iss claim does not match the bound issuer"))
		}
	}
	aud, present, err := c.Audience()
	switch {
	case err != nil:
		return invalid(err)
	case len(v.conf.BoundAudiences) == 0 && present:
		return invalid(errors.New("audience claim found in JWT but no audiences are bound"))
	case len(v.conf.BoundAudiences) > 0 && !oidc.HasAudience(aud, v.conf.BoundAudiences):
		return invalid(errors.New("aud claim does not match any bound audience"))
	}
	return nil
}

// Blank returns the variables with nothing in them: every name that the mappings give.
func (v *Validator) Blank() *Variables {
	out := &Variables{map[string]string{}, map[string][]string{}}
	for _, name := range v.conf.ClaimMappings {
		out.Values[name] = ""
	}
	for _, name := range v.conf.ListClaimMappings {
		out.Lists[name] = nil
	}
	return out
}

// variables takes what is mapped from the claims; what a token does not say stays empty.
func (v *Validator) variables(c oidc.Claims) (*Variables, error) {
	out := v.Blank()
	for claim, name := range v.conf.ClaimMappings {
		value := lookup(c, claim)
		if value == nil {
			continue
		}
		s, ok := text(value)
		if !ok {
			return nil, fmt.Errorf("error converting claim '%s' to string", claim)
		}
		out.Values[name] = s
	}
	for claim, name := range v.conf.ListClaimMappings {
		value := lookup(c, claim)
		if value == nil {
			continue
		}
		items, ok := value.([]any)
		if !ok {
			items = []any{value}
		}
		for _, item := range items {
			s, ok := text(item)
			if !ok {
				return nil, fmt.Errorf("error converting claim '%s' to string list", claim)
			}
			if s != "" {
				out.Lists[name] = append(out.Lists[name], s)
			}
		}
	}
	return out, nil
}

// lookup finds a claim by its name, or by a JSON pointer (RFC 6901); nil if there is none.
func lookup(c oidc.Claims, claim string) any {
	if !strings.HasPrefix(claim, "/") {
		return c[claim]
	}
	var at any = map[string]any(c)
	for part := range strings.SplitSeq(claim[1:], "/") {
		part = strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
		switch v := at.(type) {
		case map[string]any:
			at = v[part]
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(v) || part != strconv.Itoa(i) {
				return nil
			}
			at = v[i]
		default:
			return nil
		}
	}
	return at
}

// text returns a scalar as text. Numbers become whole ones.
func text(value any) (string, bool) {
	switch v := value.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		if n, err := strconv.ParseInt(v.String(), 10, 64); err == nil {
			return strconv.FormatInt(n, 10), true
		}
		if f, err := v.Float64(); err == nil && math.Abs(f) < math.MaxInt64 {
			return strconv.FormatInt(int64(f), 10), true
		}
	}
	return "", false
}
