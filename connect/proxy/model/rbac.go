package model

import "net/netip"

// RBAC is a set of policies about who may do what.
type RBAC struct {
	Action   Action
	Policies []Policy // sorted by name
}

// An Action is what a matching policy means.
type Action uint8

// The actions.
const (
	Allow  Action = iota // at least one policy must match
	Deny                 // no policy may match
	LogAll               // never denies
)

// A Policy matches when any of its permissions and any of its principals match.
type Policy struct {
	Name        string
	Permissions []Rule
	Principals  []Rule
}

// A Rule is one condition on the peer or on what it asks for. Which of the
// other fields count depends on Kind.
type Rule struct {
	Kind   RuleKind
	Rules  []Rule // RuleAnd, RuleOr: the parts; RuleNot: exactly one
	Match  StringMatch
	Prefix netip.Prefix
	Port   uint16 // first port of a range
	End    uint32 // port after the last of a range
}

// A RuleKind is a kind of condition.
type RuleKind uint8

// The kinds of condition. The zero kind matches nothing.
const (
	RuleNever RuleKind = iota
	RuleAny
	RuleAnd
	RuleOr
	RuleNot
	RuleAuthenticated   // the peer showed a valid certificate, with any name
	RulePrincipal       // Match on a URI SAN, else a DNS SAN, else the subject
	RuleDirectRemoteIP  // Prefix
	RuleRemoteIP        // Prefix
	RuleDestinationIP   // Prefix
	RuleDestinationPort // Port..End-1
	RuleServerName      // Match on the server name that the client asked for
	RuleMetadata        // dynamic metadata, of which a connection without filters that set it has none
)
