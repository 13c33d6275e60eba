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

	Header   *HeaderMatch     // RuleHeader
	Metadata *MetadataMatcher // RuleMetadata, RuleRouteMetadata; nil matches nothing
	Key      string           // RuleFilterState: with Match, or Prefix if that is valid
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
	RuleMetadata        // Metadata on dynamic metadata, of which a connection without filters that set it has none

	// Of requests only; about a connection they are undecidable.

	RuleHeader        // Header
	RulePath          // Match on the path without its query
	RuleRouteMetadata // Metadata on that of the route
	RuleFilterState   // Match or Prefix on the state named Key
	RuleConnectionIP  // Prefix on the peer of the connection, whatever forwarding headers say
)

// Match reports whether the value that the matcher asks for fits.
func (m *MetadataMatcher) Match(md Metadata) bool {
	v, ok := md.lookup(m.Namespace, m.Path)
	return m.Value.match(v, ok) != m.Invert
}

func (md Metadata) lookup(namespace string, path []string) (any, bool) {
	ns, ok := md[namespace]
	if !ok || len(path) == 0 {
		return nil, false
	}
	v, ok := ns[path[0]]
	for _, key := range path[1:] {
		m, isMap := v.(map[string]any)
		if !isMap {
			return nil, false
		}
		v, ok = m[key]
	}
	return v, ok
}

func (m *ValueMatch) match(v any, present bool) bool {
	switch {
	case m.Present != nil:
		return present == *m.Present
	case !present:
		return false
	case m.Null:
		return v == nil
	case m.Number != nil:
		f, ok := v.(float64)
		if m.Number.Exact {
			return ok && f == m.Number.Start
		}
		return ok && m.Number.Start <= f && f < m.Number.End
	case m.String != nil:
		s, ok := v.(string)
		return ok && m.String.Match(s)
	case m.Bool != nil:
		b, ok := v.(bool)
		return ok && b == *m.Bool
	case m.Any != nil:
		list, _ := v.([]any)
		for _, item := range list {
			if m.Any.match(item, true) {
				return true
			}
		}
	}
	for i := range m.Or {
		if m.Or[i].match(v, true) {
			return true
		}
	}
	return false
}
