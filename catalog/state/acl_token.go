package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/mvcc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// aclTokens holds the tokens by accessor ID. The index "secret" finds one by the digest of its secret, so that the time
// a lookup takes tells nothing about secrets; "expires" has those that expire, the earliest first, for each locality.
var aclTokens = mvcc.NewTable("acl-token", func(buf []byte, k *acl.Token) ([]byte, bool) {
	return appendName(buf, k.AccessorID), true
}, mvcc.Index[*acl.Token]{Name: "secret", Unique: true, Key: func(buf []byte, k *acl.Token) ([]byte, bool) {
	sum := HashSecret(k.SecretID)
	return append(buf, sum[:]...), true
}}, mvcc.Index[*acl.Token]{Name: "method", Key: func(buf []byte, k *acl.Token) ([]byte, bool) {
	return appendName(buf, k.AuthMethod), k.AuthMethod != ""
}}, mvcc.Index[*acl.Token]{Name: "expires", Unique: true, Key: func(buf []byte, k *acl.Token) ([]byte, bool) {
	if k.ExpirationTime == nil {
		return buf, false
	}
	return appendName(appendExpiry(buf, k.Local, *k.ExpirationTime), k.AccessorID), true
}})

func appendExpiry(buf []byte, local bool, at time.Time) []byte {
	if local {
		buf = append(buf, 1)
	} else {
		buf = append(buf, 0)
	}
	// The sign bit is turned so that the order of the bytes is that of the times.
	buf = binary.BigEndian.AppendUint64(buf, uint64(at.Unix())^1<<63)
	return binary.BigEndian.AppendUint32(buf, uint32(at.Nanosecond()))
}

// HashSecret returns the digest under which a secret is looked up.
func HashSecret(secret string) [sha256.Size]byte {
	// Secrets are short: no copy on the heap.
	var buf [64]byte
	if n := copy(buf[:], secret); n == len(secret) {
		return sha256.Sum256(buf[:n])
	}
	return sha256.Sum256([]byte(secret))
}

// ACLToken returns the token with this accessor ID, nil when there is none, with the index of the last change of any; a
// waiter is woken by that one alone.
func (v *View) ACLToken(accessor string) (uint64, *acl.Token) {
	k, _ := aclTokens.First(v.tx, "id", nameKey(accessor))
	return v.peeked(aclTokens.Name()), k
}

// ACLTokenBySecret returns the token whose secret has this digest, nil when there is none. It records no watch.
func (v *View) ACLTokenBySecret(sum [sha256.Size]byte) *acl.Token {
	k, _ := aclTokens.Peek(v.tx, "secret", sum[:])
	return k
}

// ACLTokens returns all tokens, ordered by accessor ID, with the index of the last change of one.
func (v *View) ACLTokens() (uint64, []*acl.Token) {
	return v.peeked(aclTokens.Name()), slices.Collect(aclTokens.All(v.tx, "id"))
}

// ACLIndex returns the index of the last change of a token, policy or role. It records no watch.
func (v *View) ACLIndex() uint64 {
	return v.peeked(aclTokens.Name(), aclPolicies.Name(), aclRoles.Name())
}

// Named returns the token with the present names of its policies and roles.
func (v *View) Named(k *acl.Token) *acl.Token {
	if len(k.Policies) == 0 && len(k.Roles) == 0 {
		return k
	}
	shown := *k
	shown.Policies, shown.Roles = namedLinks(k.Policies, v.policyName), namedLinks(k.Roles, v.roleName)
	return &shown
}

// ExpiredACLTokens returns the accessor IDs of tokens that are no longer good at this time, those that expired first,
// at most so many. It records no watch.
func (v *View) ExpiredACLTokens(local bool, now time.Time, most int) []string {
	var ids []string
	for k := range aclTokens.PeekPrefix(v.tx, "expires", appendExpiry(nil, local, now)[:1]) {
		if len(ids) == most || !k.Expired(now) {
			break
		}
		ids = append(ids, k.AccessorID)
	}
	return ids
}

// Texts about tokens that clients match on.
var (
	errAccessorUsed  = errors.New("Invalid Token: AccessorID is already in use")
	errSecretUsed    = errors.New("Invalid Token: SecretID is already in use")
	errChangedSecret = errors.New("Changing a token's SecretID is not permitted")
)

func errNoToken(accessor string) error { return fmt.Errorf("Cannot find token %q", accessor) }

// A TokenWrite says how SetACLToken writes.
type TokenWrite struct {
	Create bool // there must be none with this accessor; else there must be one
	Prune  bool // links to what does not exist are dropped; else they are errors
	// Replicated tokens come from another datacenter: the auth method they are from need not be here.
	Replicated bool
}

// SetACLToken adds or replaces a token, whose content is valid, and keeps it. What cannot change about a token must be
// as it was. Equal content changes nothing.
func (t *Tx) SetACLToken(k *acl.Token, w TokenWrite) error {
	if err := catalog.CheckUUID(k.AccessorID); err != nil {
		return fmt.Errorf("Invalid Token: AccessorID - %w", err)
	}
	if k.SecretID == "" {
		return errors.New("Invalid Token: SecretID is empty")
	}
	old, _ := aclTokens.Peek(t.tx, "id", nameKey(k.AccessorID))
	switch {
	case w.Create && old != nil:
		return errAccessorUsed
	case !w.Create && old == nil:
		return errNoToken(k.AccessorID)
	case old == nil:
		if err := t.checkNewToken(k, w.Replicated); err != nil {
			return err
		}
	case k.SecretID != old.SecretID:
		return errChangedSecret
	case k.Local != old.Local || k.AuthMethod != old.AuthMethod || !sameTime(k.ExpirationTime, old.ExpirationTime):
		return fmt.Errorf("token %s has changed meanwhile", k.AccessorID)
	}
	var err error
	if k.Policies, err = t.links(k.Policies, w.Prune, func(id string) bool { return t.peekACLPolicy(id) != nil }, "policy"); err != nil {
		return err
	}
	if k.Roles, err = t.links(k.Roles, w.Prune, func(id string) bool { return t.peekACLRole(id) != nil }, "role"); err != nil {
		return err
	}
	k.SetHash()
	k.CreateIndex = t.Index
	var oldLinks []*aclLink
	if old != nil {
		k.CreateTime = old.CreateTime
		if bytes.Equal(k.Hash, old.Hash) {
			k.CreateIndex, k.ModifyIndex = old.CreateIndex, old.ModifyIndex
			return nil
		}
		k.CreateIndex = old.CreateIndex
		oldLinks = linksOf(linkToken, old.AccessorID, old.Policies, old.Roles)
	}
	k.ModifyIndex = t.Index
	aclTokens.Insert(t.tx, k)
	t.relink(oldLinks, linksOf(linkToken, k.AccessorID, k.Policies, k.Roles))
	t.touchACL(aclTokens.Name())
	return nil
}

// checkNewToken checks what must be unique: accessor IDs and secrets share one space.
func (t *Tx) checkNewToken(k *acl.Token, replicated bool) error {
	if t.ACLTokenBySecret(HashSecret(k.AccessorID)) != nil {
		return errAccessorUsed
	}
	if t.ACLTokenBySecret(HashSecret(k.SecretID)) != nil {
		return errSecretUsed
	}
	if _, ok := aclTokens.Peek(t.tx, "id", nameKey(k.SecretID)); ok {
		return errSecretUsed
	}
	if k.AuthMethod != "" && !replicated && t.peekACLMethod(k.AuthMethod) == nil {
		return ErrNoAuthMethod(k.AuthMethod)
	}
	return nil
}

// links returns links without names, each once.
func (t *Tx) links(links []acl.Link, prune bool, exists func(id string) bool, kind string) ([]acl.Link, error) {
	var out []acl.Link
	for _, l := range links {
		if !exists(l.ID) {
			if prune {
				continue
			}
			return nil, fmt.Errorf("No such ACL %s with ID %q", kind, l.ID)
		}
		if !slices.ContainsFunc(out, func(o acl.Link) bool { return strings.EqualFold(o.ID, l.ID) }) {
			out = append(out, acl.Link{ID: l.ID})
		}
	}
	return out, nil
}

func sameTime(a, b *time.Time) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(*b)
}

// DeleteACLToken removes a token; it reports whether there was one.
func (t *Tx) DeleteACLToken(accessor string) bool {
	k, ok := aclTokens.Peek(t.tx, "id", nameKey(accessor))
	if !ok {
		return false
	}
	aclTokens.Delete(t.tx, k)
	t.relink(linksOf(linkToken, k.AccessorID, k.Policies, k.Roles), nil)
	t.touchACL(aclTokens.Name())
	return true
}

// unlinkToken drops a token's links to a policy or role.
func (t *Tx) unlinkToken(accessor, kind, id string) {
	old, ok := aclTokens.Peek(t.tx, "id", nameKey(accessor))
	if !ok {
		return
	}
	k := *old
	if kind == linkPolicy {
		k.Policies = without(k.Policies, id)
	} else {
		k.Roles = without(k.Roles, id)
	}
	k.SetHash()
	k.ModifyIndex = t.Index
	aclTokens.Insert(t.tx, &k)
	t.relink(linksOf(linkToken, old.AccessorID, old.Policies, old.Roles), linksOf(linkToken, k.AccessorID, k.Policies, k.Roles))
	t.touchACL(aclTokens.Name())
}

// A bootstrap notes that the first token was made. There is at most one.
type aclBootstrap struct{ Index uint64 } // of the log entry that made it, or that allowed another one

var aclBootstraps = mvcc.NewTable("acl-bootstrap", func(buf []byte, _ *aclBootstrap) ([]byte, bool) {
	return mvcc.String(buf, "acl"), true
})

// ACLBootstrapped returns the index at which the first token was made, which allows to make another; 0 before that. It
// records no watch.
func (v *View) ACLBootstrapped() uint64 {
	if b, ok := aclBootstraps.Peek(v.tx, "id", mvcc.String(nil, "acl")); ok {
		return b.Index
	}
	return 0
}

// ErrBootstrapped is the answer to a second bootstrap; it tells the index that a reset must name.
func ErrBootstrapped(index uint64) error {
	return fmt.Errorf("%w: ACL bootstrap no longer allowed (reset index: %d)", wireerr.ErrPermissionDenied, index)
}

// BootstrapACL makes the first token, or another one when reset is the index of the last time.
func (t *Tx) BootstrapACL(k *acl.Token, reset uint64) error {
	if at := t.ACLBootstrapped(); at != reset {
		return ErrBootstrapped(at)
	}
	if err := t.SetACLToken(k, TokenWrite{Create: true}); err != nil {
		return err
	}
	aclBootstraps.Insert(t.tx, &aclBootstrap{t.Index})
	t.touchACL(aclBootstraps.Name())
	return nil
}
