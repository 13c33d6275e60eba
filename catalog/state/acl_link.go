package state

import (
	"iter"
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/internal/mvcc"
)

// The kinds of objects at the ends of an aclLink.
const (
	linkPolicy = "policy"
	linkRole   = "role"
	linkToken  = "token"
)

// An aclLink says that a token or a role refers to a policy or a role.
type aclLink struct{ toKind, to, fromKind, from string }

// aclLinks follows from aclTokens and aclRoles.
var aclLinks = mvcc.NewTable("acl-link", func(buf []byte, l *aclLink) ([]byte, bool) {
	return appendName(mvcc.String(appendName(mvcc.String(buf, l.toKind), l.to), l.fromKind), l.from), true
})

// linksOf returns the links of one object.
func linksOf(fromKind, from string, policies, roles []acl.Link) []*aclLink {
	var all []*aclLink
	for _, l := range policies {
		all = append(all, &aclLink{linkPolicy, l.ID, fromKind, from})
	}
	for _, l := range roles {
		all = append(all, &aclLink{linkRole, l.ID, fromKind, from})
	}
	return all
}

// relink replaces the links of an object.
func (t *Tx) relink(old, links []*aclLink) {
	for _, l := range old {
		aclLinks.Delete(t.tx, l)
	}
	for _, l := range links {
		aclLinks.Insert(t.tx, l)
	}
}

// linkedFrom returns the IDs of the objects of a kind that refer to a policy or role, in order. It records no watch.
func (v *View) linkedFrom(toKind, to, fromKind string) iter.Seq[string] {
	key := mvcc.String(appendName(mvcc.String(nil, toKind), to), fromKind)
	return func(yield func(string) bool) {
		for l := range aclLinks.PeekPrefix(v.tx, "id", key) {
			if !yield(l.from) {
				return
			}
		}
	}
}

// fillLinks makes the links of all tokens and roles.
func fillLinks(t *Tx) {
	for k := range aclTokens.PeekPrefix(t.tx, "id", nil) {
		t.relink(nil, linksOf(linkToken, k.AccessorID, k.Policies, k.Roles))
	}
	for r := range aclRoles.PeekPrefix(t.tx, "id", nil) {
		t.relink(nil, linksOf(linkRole, r.ID, r.Policies, nil))
	}
}

// without returns the links other than those to id, in a slice of their own.
func without(links []acl.Link, id string) []acl.Link {
	return slices.DeleteFunc(slices.Clone(links), func(l acl.Link) bool { return strings.EqualFold(l.ID, id) })
}

// namedLinks returns links with the present names of what they refer to.
func namedLinks(links []acl.Link, name func(id string) string) []acl.Link {
	if len(links) == 0 {
		return nil
	}
	out := make([]acl.Link, 0, len(links))
	for _, l := range links {
		out = append(out, acl.Link{ID: l.ID, Name: name(l.ID)})
	}
	return out
}

func (v *View) policyName(id string) string {
	if p := v.peekACLPolicy(id); p != nil {
		return p.Name
	}
	return ""
}

func (v *View) roleName(id string) string {
	if r := v.peekACLRole(id); r != nil {
		return r.Name
	}
	return ""
}

// touchACL raises the mark of a table of access control.
func (t *Tx) touchACL(table string) {
	t.mark(table)
	t.acl = true
}
