package state

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/mvcc"
)

// aclPolicies holds the policies by ID. Names are compared without regard to case.
var aclPolicies = mvcc.NewTable("acl-policy", func(buf []byte, p *acl.Policy) ([]byte, bool) {
	return appendName(buf, p.ID), true
}, mvcc.Index[*acl.Policy]{Name: "name", Unique: true, Key: func(buf []byte, p *acl.Policy) ([]byte, bool) {
	return appendName(buf, p.Name), true
}})

// peekACLPolicy records no watch.
func (v *View) peekACLPolicy(id string) *acl.Policy {
	p, _ := aclPolicies.Peek(v.tx, "id", nameKey(id))
	return p
}

// ACLPolicy returns the policy with this ID, nil when there is none, with the index of the last change of any; a waiter
// is woken by that one alone.
func (v *View) ACLPolicy(id string) (uint64, *acl.Policy) {
	p, _ := aclPolicies.First(v.tx, "id", nameKey(id))
	return v.peeked(aclPolicies.Name()), p
}

// ACLPolicyByName is ACLPolicy by name.
func (v *View) ACLPolicyByName(name string) (uint64, *acl.Policy) {
	p, _ := aclPolicies.First(v.tx, "name", nameKey(name))
	return v.peeked(aclPolicies.Name()), p
}

// ACLPolicies returns all policies, ordered by ID, with the index of the last change of one.
func (v *View) ACLPolicies() (uint64, []*acl.Policy) {
	return v.peeked(aclPolicies.Name()), slices.Collect(aclPolicies.All(v.tx, "id"))
}

// SetACLPolicy adds a policy, or replaces one that must be there, and keeps p. Equal content changes nothing.
func (t *Tx) SetACLPolicy(p *acl.Policy, create bool) error {
	if err := catalog.CheckUUID(p.ID); err != nil {
		return fmt.Errorf("Invalid Policy: ID: %w", err)
	}
	old := t.peekACLPolicy(p.ID)
	switch {
	case create && old != nil:
		return fmt.Errorf("Invalid Policy: A Policy with ID %q already exists", p.ID)
	case !create && old == nil:
		return ErrNoPolicy(p.ID)
	}
	if other, ok := aclPolicies.Peek(t.tx, "name", nameKey(p.Name)); ok && !strings.EqualFold(other.ID, p.ID) {
		return ErrPolicyName(p.Name)
	}
	p.SetHash()
	p.CreateIndex, p.ModifyIndex = t.Index, t.Index
	if old != nil {
		p.CreateIndex = old.CreateIndex
		if bytes.Equal(p.Hash, old.Hash) {
			p.ModifyIndex = old.ModifyIndex
			return nil
		}
	}
	aclPolicies.Insert(t.tx, p)
	t.touchACL(aclPolicies.Name())
	return nil
}

// ErrNoPolicy is the answer to a change of a policy that does not exist.
func ErrNoPolicy(id string) error { return fmt.Errorf("cannot find policy %s", id) }

// ErrPolicyName is the answer to a policy with another's name.
func ErrPolicyName(name string) error {
	return fmt.Errorf("Invalid Policy: A Policy with Name %q already exists", name)
}

// DeleteACLPolicy removes a policy, and the links to it from tokens and roles; it reports whether there was one.
func (t *Tx) DeleteACLPolicy(id string) bool {
	p := t.peekACLPolicy(id)
	if p == nil {
		return false
	}
	for _, role := range slices.Collect(t.linkedFrom(linkPolicy, id, linkRole)) {
		t.unlinkRole(role, id)
	}
	for _, token := range slices.Collect(t.linkedFrom(linkPolicy, id, linkToken)) {
		t.unlinkToken(token, linkPolicy, id)
	}
	aclPolicies.Delete(t.tx, p)
	t.touchACL(aclPolicies.Name())
	return true
}
