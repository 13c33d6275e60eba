package state

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/mvcc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// aclMethods holds the auth methods by name, compared without regard to case.
var aclMethods = mvcc.NewTable("acl-auth-method", func(buf []byte, m *acl.AuthMethod) ([]byte, bool) {
	return appendName(buf, m.Name), true
})

// aclBindingRules holds the binding rules by ID.
var aclBindingRules = mvcc.NewTable("acl-binding-rule", func(buf []byte, r *acl.BindingRule) ([]byte, bool) {
	return appendName(buf, r.ID), true
}, mvcc.Index[*acl.BindingRule]{Name: "method", Key: func(buf []byte, r *acl.BindingRule) ([]byte, bool) {
	return appendName(buf, r.AuthMethod), true
}})

// peekACLMethod records no watch.
func (v *View) peekACLMethod(name string) *acl.AuthMethod {
	m, _ := aclMethods.Peek(v.tx, "id", nameKey(name))
	return m
}

// ACLAuthMethod returns the method with this name, nil when there is none, with the index of the last change of any; a
// waiter is woken by that one alone.
func (v *View) ACLAuthMethod(name string) (uint64, *acl.AuthMethod) {
	m, _ := aclMethods.First(v.tx, "id", nameKey(name))
	return v.peeked(aclMethods.Name()), m
}

// ACLAuthMethods returns all methods, ordered by name, with the index of the last change of one.
func (v *View) ACLAuthMethods() (uint64, []*acl.AuthMethod) {
	return v.peeked(aclMethods.Name()), slices.Collect(aclMethods.All(v.tx, "id"))
}

// ErrNoAuthMethod is the answer to a login by a method that does not exist.
func ErrNoAuthMethod(name string) error {
	return fmt.Errorf("%w: auth method %q not found", wireerr.ErrTokenNotFound, name)
}

// ErrMethodType is the answer to a change of a method's type.
var ErrMethodType = errors.New("the Type field of an Auth Method is immutable")

// SetACLAuthMethod adds or replaces a valid method and keeps it. Equal content changes nothing.
func (t *Tx) SetACLAuthMethod(m *acl.AuthMethod) error {
	if m.Name == "" {
		return errors.New("Invalid Auth Method: no Name is set")
	}
	m.CreateIndex, m.ModifyIndex = t.Index, t.Index
	if old := t.peekACLMethod(m.Name); old != nil {
		if old.Type != m.Type {
			return ErrMethodType
		}
		m.Name, m.CreateIndex = old.Name, old.CreateIndex
		same := *m
		same.ModifyIndex = old.ModifyIndex
		if reflect.DeepEqual(&same, old) {
			m.ModifyIndex = old.ModifyIndex
			return nil
		}
	}
	aclMethods.Insert(t.tx, m)
	t.touchACL(aclMethods.Name())
	return nil
}

// DeleteACLAuthMethod removes a method, its binding rules and the tokens it made; it reports whether there was one. With
// keepGlobal, global tokens stay: those are copies of another datacenter's, made by its method of the same name.
func (t *Tx) DeleteACLAuthMethod(name string, keepGlobal bool) bool {
	m := t.peekACLMethod(name)
	if m == nil {
		return false
	}
	for _, r := range slices.Collect(aclBindingRules.PeekGet(t.tx, "method", nameKey(name))) {
		t.DeleteACLBindingRule(r.ID)
	}
	for _, k := range slices.Collect(aclTokens.PeekGet(t.tx, "method", nameKey(name))) {
		if k.Local || !keepGlobal {
			t.DeleteACLToken(k.AccessorID)
		}
	}
	aclMethods.Delete(t.tx, m)
	t.touchACL(aclMethods.Name())
	return true
}

// ACLBindingRule returns the rule with this ID, nil when there is none, with the index of the last change of any; a
// waiter is woken by that one alone.
func (v *View) ACLBindingRule(id string) (uint64, *acl.BindingRule) {
	r, _ := aclBindingRules.First(v.tx, "id", nameKey(id))
	return v.peeked(aclBindingRules.Name()), r
}

// ACLBindingRules returns the rules of a method, all of them when its name is empty, ordered by ID, with the index of
// the last change of one.
func (v *View) ACLBindingRules(method string) (uint64, []*acl.BindingRule) {
	if method == "" {
		return v.peeked(aclBindingRules.Name()), slices.Collect(aclBindingRules.All(v.tx, "id"))
	}
	return v.peeked(aclBindingRules.Name()), slices.Collect(aclBindingRules.Get(v.tx, "method", nameKey(method)))
}

// ErrNoBindingRule is the answer to a change of a rule that does not exist.
func ErrNoBindingRule(id string) error { return fmt.Errorf("cannot find binding rule %s", id) }

// SetACLBindingRule adds a rule, or replaces one that must be there, and keeps r. Equal content changes nothing.
func (t *Tx) SetACLBindingRule(r *acl.BindingRule, create bool) error {
	if err := catalog.CheckUUID(r.ID); err != nil {
		return fmt.Errorf("Invalid Binding Rule: ID: %w", err)
	}
	m := t.peekACLMethod(r.AuthMethod)
	if m == nil {
		return fmt.Errorf("cannot find auth method with name %q", r.AuthMethod)
	}
	r.AuthMethod = m.Name
	old, _ := aclBindingRules.Peek(t.tx, "id", nameKey(r.ID))
	r.CreateIndex, r.ModifyIndex = t.Index, t.Index
	switch {
	case create && old != nil:
		return fmt.Errorf("Invalid Binding Rule: a rule with ID %q exists", r.ID)
	case !create && old == nil:
		return ErrNoBindingRule(r.ID)
	case old != nil:
		if !strings.EqualFold(old.AuthMethod, r.AuthMethod) {
			return acl.ErrRuleMethod
		}
		r.CreateIndex = old.CreateIndex
		same := *r
		same.ModifyIndex = old.ModifyIndex
		if reflect.DeepEqual(&same, old) {
			r.ModifyIndex = old.ModifyIndex
			return nil
		}
	}
	aclBindingRules.Insert(t.tx, r)
	t.touchACL(aclBindingRules.Name())
	return nil
}

// DeleteACLBindingRule removes a rule; it reports whether there was one.
func (t *Tx) DeleteACLBindingRule(id string) bool {
	r, ok := aclBindingRules.Peek(t.tx, "id", nameKey(id))
	if !ok {
		return false
	}
	aclBindingRules.Delete(t.tx, r)
	t.touchACL(aclBindingRules.Name())
	return true
}
