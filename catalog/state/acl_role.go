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

// aclRoles holds the roles by ID. Names are compared without regard to case.
var aclRoles = mvcc.NewTable("acl-role", func(buf []byte, r *acl.Role) ([]byte, bool) {
	return appendName(buf, r.ID), true
}, mvcc.Index[*acl.Role]{Name: "name", Unique: true, Key: func(buf []byte, r *acl.Role) ([]byte, bool) {
	return appendName(buf, r.Name), true
}})

// peekACLRole records no watch.
func (v *View) peekACLRole(id string) *acl.Role {
	r, _ := aclRoles.Peek(v.tx, "id", nameKey(id))
	return r
}

// ACLRole returns the role with this ID, nil when there is none, with the index of the last change of any; a waiter is
// woken by that one alone.
func (v *View) ACLRole(id string) (uint64, *acl.Role) {
	r, _ := aclRoles.First(v.tx, "id", nameKey(id))
	return v.peeked(aclRoles.Name()), r
}

// ACLRoleByName is ACLRole by name.
func (v *View) ACLRoleByName(name string) (uint64, *acl.Role) {
	r, _ := aclRoles.First(v.tx, "name", nameKey(name))
	return v.peeked(aclRoles.Name()), r
}

// ACLRoles returns all roles, ordered by ID, with the index of the last change of one.
func (v *View) ACLRoles() (uint64, []*acl.Role) {
	return v.peeked(aclRoles.Name()), slices.Collect(aclRoles.All(v.tx, "id"))
}

// NamedRole returns the role with the present names of its policies.
func (v *View) NamedRole(r *acl.Role) *acl.Role {
	if len(r.Policies) == 0 {
		return r
	}
	shown := *r
	shown.Policies = namedLinks(r.Policies, v.policyName)
	return &shown
}

// A RoleWrite says how SetACLRole writes.
type RoleWrite struct {
	Create bool // there must be none with this ID; else there must be one
	Prune  bool // links to policies that do not exist are dropped; else they are errors
}

// SetACLRole adds or replaces a role, whose content is valid, and keeps it. Equal content changes nothing.
func (t *Tx) SetACLRole(r *acl.Role, w RoleWrite) error {
	if err := catalog.CheckUUID(r.ID); err != nil {
		return fmt.Errorf("Invalid Role: ID: %w", err)
	}
	old := t.peekACLRole(r.ID)
	switch {
	case w.Create && old != nil:
		return fmt.Errorf("Invalid Role: A Role with ID %q already exists", r.ID)
	case !w.Create && old == nil:
		return ErrNoRole(r.ID)
	}
	if other, ok := aclRoles.Peek(t.tx, "name", nameKey(r.Name)); ok && !strings.EqualFold(other.ID, r.ID) {
		return ErrRoleName(r.Name)
	}
	var err error
	if r.Policies, err = t.links(r.Policies, w.Prune, func(id string) bool { return t.peekACLPolicy(id) != nil }, "policy"); err != nil {
		return err
	}
	r.SetHash()
	r.CreateIndex, r.ModifyIndex = t.Index, t.Index
	var oldLinks []*aclLink
	if old != nil {
		r.CreateIndex = old.CreateIndex
		if bytes.Equal(r.Hash, old.Hash) {
			r.ModifyIndex = old.ModifyIndex
			return nil
		}
		oldLinks = linksOf(linkRole, old.ID, old.Policies, nil)
	}
	aclRoles.Insert(t.tx, r)
	t.relink(oldLinks, linksOf(linkRole, r.ID, r.Policies, nil))
	t.touchACL(aclRoles.Name())
	return nil
}

// ErrNoRole is the answer to a change of a role that does not exist.
func ErrNoRole(id string) error { return fmt.Errorf("cannot find role %s", id) }

// ErrRoleName is the answer to a role with another's name.
func ErrRoleName(name string) error {
	return fmt.Errorf("Invalid Role: A Role with Name %q already exists", name)
}

// DeleteACLRole removes a role, and the links to it from tokens; it reports whether there was one.
func (t *Tx) DeleteACLRole(id string) bool {
	r := t.peekACLRole(id)
	if r == nil {
		return false
	}
	for _, token := range slices.Collect(t.linkedFrom(linkRole, id, linkToken)) {
		t.unlinkToken(token, linkRole, id)
	}
	aclRoles.Delete(t.tx, r)
	t.relink(linksOf(linkRole, r.ID, r.Policies, nil), nil)
	t.touchACL(aclRoles.Name())
	return true
}

// unlinkRole drops a role's links to a policy.
func (t *Tx) unlinkRole(id, policy string) {
	old := t.peekACLRole(id)
	if old == nil {
		return
	}
	r := *old
	r.Policies = without(r.Policies, policy)
	r.SetHash()
	r.ModifyIndex = t.Index
	aclRoles.Insert(t.tx, &r)
	t.relink(linksOf(linkRole, old.ID, old.Policies, nil), linksOf(linkRole, r.ID, r.Policies, nil))
	t.touchACL(aclRoles.Name())
}
