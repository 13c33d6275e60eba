package acl

import (
	"slices"
	"strings"
)

// A Ruleset decides by the rules of one token (spec/acl.md section 3). It does not change; a decision allocates nothing.
type Ruleset struct {
	allow  bool // the default policy
	single map[Resource]Level
	named  map[Resource]*names
}

// names are the rules for the names of one resource.
type names struct {
	exact    map[string]Level
	prefixes map[string]Level
	lengths  []int    // of prefixes, each once, the longest first
	sorted   []string // keys of exact
	trees    []string // keys of prefixes, sorted
}

var _ RangeDecider = (*Ruleset)(nil)

// Compile puts rules together. Where none applies, defaultAllow decides.
func Compile(defaultAllow bool, rules ...*Rules) *Ruleset {
	s := &Ruleset{allow: defaultAllow, single: map[Resource]Level{}, named: map[Resource]*names{}}
	type intentions struct{ exact, prefixes map[string]Level }
	explicit := intentions{map[string]Level{}, map[string]Level{}}
	for _, r := range rules {
		for i := range r.List {
			rule := &r.List[i]
			if _, ok := scalars[string(rule.Resource)]; ok {
				s.single[rule.Resource] = s.single[rule.Resource].merge(rule.Level)
				continue
			}
			n := s.named[rule.Resource]
			if n == nil {
				n = &names{exact: map[string]Level{}, prefixes: map[string]Level{}}
				s.named[rule.Resource] = n
			}
			of, own := n.exact, explicit.exact
			if rule.Prefix {
				of, own = n.prefixes, explicit.prefixes
			}
			of[rule.Name] = of[rule.Name].merge(rule.Level)
			if rule.Intentions != Unset {
				own[rule.Name] = own[rule.Name].merge(rule.Intentions)
			}
		}
	}
	if services := s.named[Service]; services != nil {
		// What a rule on a service says about its intentions, where it does not say it itself.
		derive := func(from, own map[string]Level) map[string]Level {
			to := make(map[string]Level, len(from))
			for name, l := range from {
				switch {
				case own[name] != Unset:
					to[name] = own[name]
				case l == Deny:
					to[name] = Deny
				default:
					to[name] = ReadLevel
				}
			}
			return to
		}
		s.named[Inten] = &names{exact: derive(services.exact, explicit.exact), prefixes: derive(services.prefixes, explicit.prefixes)}
	}
	for _, n := range s.named {
		n.index()
	}
	return s
}

func (n *names) index() {
	for p := range n.prefixes {
		n.trees = append(n.trees, p)
		if !slices.Contains(n.lengths, len(p)) {
			n.lengths = append(n.lengths, len(p))
		}
	}
	for name := range n.exact {
		n.sorted = append(n.sorted, name)
	}
	slices.Sort(n.sorted)
	slices.Sort(n.trees)
	slices.SortFunc(n.lengths, func(a, b int) int { return b - a })
}

// covering returns the level of the longest prefix rule for a name or prefix, Unset when there is none.
func (n *names) covering(name string) Level {
	for _, length := range n.lengths {
		if length <= len(name) {
			if l, ok := n.prefixes[name[:length]]; ok {
				return l
			}
		}
	}
	return Unset
}

// level returns what the rules say about a name.
func (n *names) level(name string) Level {
	if l, ok := n.exact[name]; ok {
		return l
	}
	return n.covering(name)
}

// allows is the answer of a level, or the default's where no rule applies.
func (s *Ruleset) allows(l Level, a Access) bool {
	if l == Unset {
		return s.allow
	}
	return l.allows(a)
}

// Allows reports whether an access is granted.
func (s *Ruleset) Allows(r Resource, a Access, name string) bool {
	switch r {
	case ACL:
		return s.single[ACL].allows(a) // never by default
	case Mesh, Peering:
		if l := s.single[r]; l != Unset {
			return l.allows(a)
		}
		return s.allows(s.single[Operator], a)
	case Operator, Keyring:
		return s.allows(s.single[r], a)
	}
	n := s.named[r]
	if n == nil {
		return s.allow
	}
	if r == Inten && name == "*" {
		if a == Read {
			return s.AllowsAny(r, a)
		}
		return n.prefixes[""].allows(a) && n.throughout("", a)
	}
	return s.allows(n.level(name), a)
}

// AllowsPrefix reports whether an access is granted to every name that begins with prefix: by the longest rule that
// covers them all, and by no rule for some of them refused.
func (s *Ruleset) AllowsPrefix(r Resource, a Access, prefix string) bool {
	n := s.named[r]
	if n == nil {
		return s.Allows(r, a, prefix)
	}
	return s.allows(n.covering(prefix), a) && n.throughout(prefix, a)
}

// throughout reports whether no rule below a prefix refuses an access.
func (n *names) throughout(prefix string, a Access) bool {
	return below(n.sorted, n.exact, prefix, a) && below(n.trees, n.prefixes, prefix, a)
}

func below(sorted []string, of map[string]Level, prefix string, a Access) bool {
	from, _ := slices.BinarySearch(sorted, prefix)
	for _, name := range sorted[from:] {
		if !strings.HasPrefix(name, prefix) {
			break
		}
		if !of[name].allows(a) {
			return false
		}
	}
	return true
}

// AllowsAny reports whether some rule, or the default, grants an access.
func (s *Ruleset) AllowsAny(r Resource, a Access) bool {
	n := s.named[r]
	if n == nil {
		return s.Allows(r, a, "")
	}
	for _, of := range []map[string]Level{n.exact, n.prefixes} {
		for _, l := range of {
			if l.allows(a) {
				return true
			}
		}
	}
	// Names that no rule is for.
	return s.allow && n.prefixes[""] == Unset
}
