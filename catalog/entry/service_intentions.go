package entry

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ServiceIntentions say who may call one service, or any when the name is the wildcard (spec/connect.md section 8.9).
type ServiceIntentions struct {
	Header
	Sources []*IntentionSource // by precedence, descending, else as given
	JWT     *IntentionJWT      `json:",omitempty"` // required of every request
}

// What an intention or a permission decides.
const (
	Allow = "allow"
	Deny  = "deny"
)

// SourceTypeConsul is the one type of source.
const SourceTypeConsul = "consul"

// An IntentionSource is one intention: what a source may do. Exactly one of Action and Permissions is set.
type IntentionSource struct {
	Name        string
	Peer        string                 `json:",omitempty"`
	Action      string                 `json:",omitempty"`
	Permissions []*IntentionPermission `json:",omitempty"` // the first that matches a request decides
	Precedence  int                    // computed
	Type        string                 // "consul"
	Description string                 `json:",omitempty"`

	// The following are refused.
	Namespace     string `json:",omitempty"`
	Partition     string `json:",omitempty"`
	SamenessGroup string `json:",omitempty"`

	// The following are set only on intentions made with the legacy API.
	LegacyID         string            `json:",omitempty"`
	LegacyMeta       map[string]string `json:",omitempty"`
	LegacyCreateTime *time.Time        `json:",omitempty"`
	LegacyUpdateTime *time.Time        `json:",omitempty"`
}

// An IntentionPermission decides about some requests.
type IntentionPermission struct {
	Action string
	HTTP   *IntentionHTTP `json:",omitempty"`
	JWT    *IntentionJWT  `json:",omitempty"` // must hold too
}

// An IntentionHTTP holds conditions that must all be true. At most one of the paths is set.
type IntentionHTTP struct {
	PathExact  string            `json:",omitempty"`
	PathPrefix string            `json:",omitempty"`
	PathRegex  string            `json:",omitempty"`
	Header     []IntentionHeader `json:",omitempty"`
	Methods    []string          `json:",omitempty"` // upper case; none means any
}

// An IntentionHeader is a condition on a header; exactly one of Present to Regex is set.
type IntentionHeader struct {
	Name       string
	Present    bool   `json:",omitempty"`
	Exact      string `json:",omitempty"`
	Prefix     string `json:",omitempty"`
	Suffix     string `json:",omitempty"`
	Contains   string `json:",omitempty"`
	Regex      string `json:",omitempty"`
	Invert     bool   `json:",omitempty"`
	IgnoreCase bool   `json:",omitempty"`
}

// An IntentionJWT asks for a valid token of one of the providers.
type IntentionJWT struct {
	Providers []*IntentionJWTProvider `json:",omitempty"`
}

// An IntentionJWTProvider names a jwt-provider entry and what its token must say.
type IntentionJWTProvider struct {
	Name         string             `json:",omitempty"`
	VerifyClaims []*IntentionClaims `json:",omitempty"`
}

// IntentionClaims is a claim, by its path in the token, and its value.
type IntentionClaims struct {
	Path  []string `json:",omitempty"`
	Value string   `json:",omitempty"`
}

// Normalize fills in defaults, computes the precedences, and orders the sources by them.
func (e *ServiceIntentions) Normalize() {
	for _, s := range e.Sources {
		if s.Type == "" {
			s.Type = SourceTypeConsul
		}
		s.Precedence = IntentionPrecedence(s.Name, e.Name)
		for _, p := range s.Permissions {
			if p != nil && p.HTTP != nil {
				upperAll(p.HTTP.Methods)
			}
		}
	}
	slices.SortStableFunc(e.Sources, func(a, b *IntentionSource) int { return b.Precedence - a.Precedence })
}

// IntentionPrecedence tells which of several intentions comes first: the one with the greatest.
func IntentionPrecedence(source, destination string) int {
	switch {
	case destination != Wildcard && source != Wildcard:
		return 9
	case destination != Wildcard:
		return 8
	case source != Wildcard:
		return 6
	}
	return 5
}

// DropLegacy takes away what only the legacy API sets.
func (e *ServiceIntentions) DropLegacy() {
	for _, s := range e.Sources {
		s.LegacyID, s.LegacyMeta, s.LegacyCreateTime, s.LegacyUpdateTime = "", nil, nil, nil
	}
}

// Legacy reports whether the entry was written by the legacy API alone.
func (e *ServiceIntentions) Legacy() bool {
	for _, s := range e.Sources {
		if s.LegacyID == "" {
			return false
		}
	}
	return len(e.Sources) != 0
}

// Source returns the source with a name, of a peer unless that is empty; nil when there is none.
func (e *ServiceIntentions) Source(name, peer string) *IntentionSource {
	for _, s := range e.Sources {
		if s.Name == name && s.Peer == peer {
			return s
		}
	}
	return nil
}

// Clone returns a copy that shares only permissions and JWT with e.
func (e *ServiceIntentions) Clone() *ServiceIntentions {
	c := *e
	c.Sources = make([]*IntentionSource, len(e.Sources))
	for i, s := range e.Sources {
		source := *s
		c.Sources[i] = &source
	}
	return &c
}

var errPartialWildcard = errors.New("wildcard character '*' cannot be used with partial values")

func checkWildcard(name string) error {
	if name != Wildcard && strings.Contains(name, Wildcard) {
		return errPartialWildcard
	}
	return nil
}

// Validate checks the entry.
func (e *ServiceIntentions) Validate() error {
	if e.Name == "" {
		return errName
	}
	if err := checkWildcard(e.Name); err != nil {
		return fmt.Errorf("Name: %w", err)
	}
	if len(e.Sources) == 0 {
		return errors.New("At least one source is required")
	}
	if err := e.JWT.check(); err != nil {
		return err
	}
	seen := map[[2]string]bool{}
	for i, s := range e.Sources {
		if err := s.check(e.Name); err != nil {
			return fmt.Errorf("Sources[%d]%w", i, err)
		}
		if key := [2]string{s.Peer, s.Name}; !seen[key] {
			seen[key] = true
			continue
		}
		if s.Peer != "" {
			return fmt.Errorf("Sources[%d] defines peer(%q) %q more than once", i, s.Peer, s.Name)
		}
		return fmt.Errorf("Sources[%d] defines %q more than once", i, s.Name)
	}
	return nil
}

// check checks a source. Its errors begin with what follows "Sources[i]".
func (s *IntentionSource) check(destination string) error {
	switch {
	case s.Name == "":
		return errors.New(".Name is required")
	case checkWildcard(s.Name) != nil:
		return fmt.Errorf(".Name: %w", errPartialWildcard)
	case strings.Contains(s.Peer, Wildcard):
		return errors.New(".Peer: cannot use wildcard '*' in peer")
	case s.SamenessGroup != "":
		return errors.New(".SamenessGroup: setting SamenessGroup is a consul enterprise feature")
	case s.Type != SourceTypeConsul:
		return errors.New(".Type must be set to 'consul'")
	case len(s.Permissions) != 0 && s.Action != "":
		return errors.New(".Action must be omitted if Permissions are specified")
	case len(s.Permissions) != 0 && destination == Wildcard:
		return errors.New(".Permissions cannot be specified on intentions with wildcarded destinations")
	case len(s.Permissions) == 0 && s.Action != Allow && s.Action != Deny:
		return errors.New(".Action must be set to 'allow' or 'deny'")
	}
	if err := checkTenancy("", s.Namespace, s.Partition, ""); err != nil {
		return fmt.Errorf(".%w", err)
	}
	for i, p := range s.Permissions {
		if err := p.check(); err != nil {
			return fmt.Errorf(".Permissions[%d]%w", i, err)
		}
	}
	return nil
}

func (p *IntentionPermission) check() error {
	if p == nil || p.Action != Allow && p.Action != Deny {
		return errors.New(".Action must be set to 'allow' or 'deny'")
	}
	if err := p.JWT.check(); err != nil {
		return fmt.Errorf(".JWT: %w", err)
	}
	if p.HTTP == nil {
		if p.JWT != nil {
			return nil
		}
		return errors.New(".HTTP is required")
	}
	if err := p.HTTP.check(); err != nil {
		return fmt.Errorf(".HTTP%w", err)
	}
	return nil
}

func (h *IntentionHTTP) check() error {
	switch {
	case h.PathExact == "" && h.PathPrefix == "" && h.PathRegex == "" && len(h.Header) == 0 && len(h.Methods) == 0:
		return errors.New(" should not be empty")
	case h.PathExact != "" && h.PathExact[0] != '/':
		return fmt.Errorf(".PathExact doesn't start with '/': %q", h.PathExact)
	case h.PathPrefix != "" && h.PathPrefix[0] != '/':
		return fmt.Errorf(".PathPrefix doesn't start with '/': %q", h.PathPrefix)
	case count(h.PathExact != "", h.PathPrefix != "", h.PathRegex != "") > 1:
		return errors.New(" should only contain at most one of PathExact, PathPrefix, or PathRegex")
	}
	for i, c := range h.Header {
		if c.Name == "" {
			return fmt.Errorf(".Header[%d] missing required Name field", i)
		}
		text := count(c.Exact != "", c.Prefix != "", c.Suffix != "", c.Contains != "")
		if count(c.Present, c.Regex != "")+text != 1 {
			return fmt.Errorf(".Header[%d] should only contain one of Present, Exact, Prefix, Suffix, Contains, or Regex", i)
		}
		if c.IgnoreCase && text == 0 {
			return fmt.Errorf(".Header[%d] should set one of Exact, Prefix, Suffix, or Contains when using IgnoreCase", i)
		}
	}
	return checkMethods(".Methods", h.Methods)
}

func (j *IntentionJWT) check() error {
	if j == nil {
		return nil
	}
	var problems errorList
	for _, p := range j.Providers {
		if p == nil || p.Name == "" {
			problems.addf("JWT provider name is required")
		}
	}
	return problems.err()
}

// JWTProviders lists the names of the providers the entry refers to, each once.
func (e *ServiceIntentions) JWTProviders() []string {
	var names []string
	add := func(j *IntentionJWT) {
		if j == nil {
			return
		}
		for _, p := range j.Providers {
			if !slices.Contains(names, p.Name) {
				names = append(names, p.Name)
			}
		}
	}
	add(e.JWT)
	for _, s := range e.Sources {
		for _, p := range s.Permissions {
			add(p.JWT)
		}
	}
	return names
}

// MissingJWTProviders is the error for providers that do not exist.
func MissingJWTProviders(names []string) error {
	var problems errorList
	for _, n := range names {
		problems.addf("Referenced JWT Provider does not exist. Provider Name: %s", n)
	}
	return problems.err()
}

// RequestRules reports whether a source has permissions, which are about requests.
func (e *ServiceIntentions) RequestRules() bool {
	for _, s := range e.Sources {
		if len(s.Permissions) != 0 {
			return true
		}
	}
	return false
}
