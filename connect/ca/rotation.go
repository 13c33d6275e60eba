package ca

import (
	"slices"
	"strings"
	"time"
)

// Rotate returns the set of roots after next has become the active one: those before it, rotated out at now, stay until
// what they signed has expired. The roots given are not changed.
func Rotate(roots []*Root, next *Root, now time.Time, leafTTL time.Duration) []*Root {
	var out []*Root
	for _, r := range roots {
		if r.ID == next.ID {
			continue
		}
		c := *r
		if c.Active {
			c.Active = false
			c.RotatedOutAt = now
			c.PruneAfter = now.Add(2 * leafTTL)
		}
		out = append(out, &c)
	}
	n := *next
	n.Active, n.RotatedOutAt, n.PruneAfter = true, time.Time{}, time.Time{}
	return sortRoots(append(out, &n))
}

// Prune returns the roots without those that nothing in use was signed by, and whether any is missing.
func Prune(roots []*Root, now time.Time) (kept []*Root, pruned bool) {
	for _, r := range roots {
		if !r.Active && !r.PruneAfter.IsZero() && now.After(r.PruneAfter) {
			pruned = true
			continue
		}
		c := *r
		kept = append(kept, &c)
	}
	return sortRoots(kept), pruned
}

func sortRoots(roots []*Root) []*Root {
	slices.SortFunc(roots, func(a, b *Root) int { return strings.Compare(a.ID, b.ID) })
	return roots
}

// ActiveRoot returns the active one of a set of roots, nil when there is none.
func ActiveRoot(roots []*Root) *Root {
	for _, r := range roots {
		if r.Active {
			return r
		}
	}
	return nil
}

// KeyNeeded tells whether changed settings ask for a new root: another type or size of key, or another key or root that
// the operator brings. Settings without a key keep a key that was brought before, since it is never shown.
func KeyNeeded(now *Root, state *ProviderState, s Settings) bool {
	if s.PrivateKey != "" && strings.TrimSpace(s.PrivateKey) != strings.TrimSpace(state.PrivateKey) {
		return true
	}
	if s.RootCert != "" && strings.TrimSpace(s.RootCert) != strings.TrimSpace(state.RootCert) {
		return true
	}
	if s.PrivateKey != "" || state.Given && !s.KeyTypeGiven {
		return false
	}
	return s.PrivateKeyType != now.PrivateKeyType || s.PrivateKeyBits != now.PrivateKeyBits
}
