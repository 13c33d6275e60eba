package entry

import "time"

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
