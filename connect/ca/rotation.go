package ca

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"
)

// Spread returns the set of roots with next as the pending one: trusted by everybody from now on, signing nothing. It
// replaces one that was pending. The roots given are not changed.
func Spread(roots []*Root, next *Root, now time.Time) []*Root {
	n := *next
	n.Active, n.SpreadSince = false, now
	var out []*Root
	for _, r := range Withdraw(roots) {
		if r.ID == n.ID { // it has been active before
			n.RotatedOutAt, n.PruneAfter = r.RotatedOutAt, r.PruneAfter
			continue
		}
		out = append(out, r)
	}
	return sortRoots(append(out, &n))
}

// Withdraw returns the set of roots without the pending one, which has signed nothing. One that was active before it was
// to become so again stays. The roots given are not changed.
func Withdraw(roots []*Root) []*Root {
	var out []*Root
	for _, r := range roots {
		c := *r
		if !c.SpreadSince.IsZero() {
			c.SpreadSince = time.Time{}
			if !c.Active && c.RotatedOutAt.IsZero() {
				continue
			}
		}
		out = append(out, &c)
	}
	return sortRoots(out)
}

// Rotate returns the set of roots after next has become the active one: those before it, rotated out at now, stay until
// what they signed has expired; leafTTL is the longest life of that. The roots given are not changed.
func Rotate(roots []*Root, next *Root, now time.Time, leafTTL time.Duration) []*Root {
	var out []*Root
	for _, c := range Withdraw(roots) {
		if c.ID == next.ID {
			continue
		}
		if c.Active {
			c.Active, c.ActiveSince = false, time.Time{}
			c.RotatedOutAt = now
			c.PruneAfter = now.Add(2 * leafTTL)
		}
		out = append(out, c)
	}
	n := *next
	n.Active, n.SpreadSince, n.ActiveSince, n.RotatedOutAt, n.PruneAfter = true, time.Time{}, now, time.Time{}, time.Time{}
	return sortRoots(append(out, &n))
}

// Prune returns the roots without those that nothing in use was signed by, and whether any is missing.
func Prune(roots []*Root, now time.Time) (kept []*Root, pruned bool) {
	for _, r := range roots {
		if !r.Active && r.SpreadSince.IsZero() && !r.PruneAfter.IsZero() && now.After(r.PruneAfter) {
			pruned = true
			continue
		}
		c := *r
		kept = append(kept, &c)
	}
	return sortRoots(kept), pruned
}

// PendingRoot returns the one of a set of roots that is to become active, nil when there is none.
func PendingRoot(roots []*Root) *Root {
	for _, r := range roots {
		if !r.Active && !r.SpreadSince.IsZero() {
			return r
		}
	}
	return nil
}

// Bundle names a set of roots: two sets have the same name if and only if the same certificates are trusted. No roots
// have the empty name.
func Bundle(roots []*Root) string {
	if len(roots) == 0 {
		return ""
	}
	var ids []string
	for _, r := range roots {
		ids = append(ids, r.ID)
	}
	slices.Sort(ids)
	sum := sha256.Sum256([]byte(strings.Join(ids, " ")))
	return hex.EncodeToString(sum[:8])
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
