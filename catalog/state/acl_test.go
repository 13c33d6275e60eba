package state_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/state"
)

const (
	policyA = "aaaaaaaa-0000-4000-8000-00000000000a"
	roleA   = "bbbbbbbb-0000-4000-8000-00000000000b"
	tokenA  = "cccccccc-0000-4000-8000-00000000000c"
	secretA = "dddddddd-0000-4000-8000-00000000000d"
)

// withACL returns a store with a policy, a role that has it, and a token that has both.
func withACL(t *testing.T) *state.Store {
	t.Helper()
	s := state.New()
	tx := s.Write(7)
	for _, err := range []error{
		tx.SetACLPolicy(&acl.Policy{ID: policyA, Name: "p"}, true),
		tx.SetACLRole(&acl.Role{ID: roleA, Name: "r", Policies: []acl.Link{{ID: policyA}}}, state.RoleWrite{Create: true}),
		tx.SetACLToken(&acl.Token{AccessorID: tokenA, SecretID: secretA, Policies: []acl.Link{{ID: policyA}}, Roles: []acl.Link{{ID: roleA}}}, state.TokenWrite{Create: true}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	tx.Commit()
	return s
}

// A command that fails after it has taken links apart leaves them as they were.
func TestLinksAreRolledBack(t *testing.T) {
	s := withACL(t)
	var before, after bytes.Buffer
	if err := s.View().Dump(&before); err != nil {
		t.Fatal(err)
	}
	failed := errors.New("failed")
	tx := s.Write(8)
	err := tx.Try(func() error {
		tx.DeleteACLPolicy(policyA)
		tx.DeleteACLRole(roleA)
		if _, k := tx.ACLToken(tokenA); len(k.Policies)+len(k.Roles) != 0 {
			t.Error("the transaction does not see what it did")
		}
		return failed
	})
	tx.Commit()
	if !errors.Is(err, failed) {
		t.Fatal(err)
	}
	if err := s.View().Dump(&after); err != nil || !bytes.Equal(before.Bytes(), after.Bytes()) {
		t.Errorf("something is left of it: %v", err)
	}
	// The links still work.
	tx = s.Write(9)
	tx.DeleteACLPolicy(policyA)
	tx.Commit()
	v := s.View()
	_, k := v.ACLToken(tokenA)
	_, r := v.ACLRole(roleA)
	if len(k.Policies) != 0 || len(k.Roles) != 1 || len(r.Policies) != 0 || k.ModifyIndex != 9 || k.CreateIndex != 7 {
		t.Errorf("token %+v, role %+v", k, r)
	}
}

func TestTokensOfAMethodGoWithIt(t *testing.T) {
	s := withACL(t)
	tx := s.Write(8)
	login := &acl.Token{AccessorID: "eeeeeeee-0000-4000-8000-00000000000e", SecretID: "ffffffff-0000-4000-8000-00000000000f", AuthMethod: "m", Roles: []acl.Link{{ID: roleA}, {ID: policyA}}}
	if err := tx.SetACLToken(login, state.TokenWrite{Create: true, Prune: true}); err == nil {
		t.Error("a token of a method that does not exist was made")
	}
	if err := tx.SetACLAuthMethod(&acl.AuthMethod{Name: "m", Type: acl.MethodJWT}); err != nil {
		t.Fatal(err)
	}
	if err := tx.SetACLToken(login, state.TokenWrite{Create: true, Prune: true}); err != nil || len(login.Roles) != 1 {
		t.Fatalf("token %+v: %v", login, err)
	}
	if err := tx.SetACLBindingRule(&acl.BindingRule{ID: tokenA, AuthMethod: "M", BindType: acl.BindRole, BindName: "r"}, true); err != nil {
		t.Fatal(err)
	}
	if err := tx.SetACLAuthMethod(&acl.AuthMethod{Name: "M", Type: acl.MethodAWSIAM}); !errors.Is(err, state.ErrMethodType) {
		t.Errorf("another type: %v", err)
	}
	if !tx.DeleteACLAuthMethod("m", false) || tx.DeleteACLAuthMethod("m", false) {
		t.Error("deletion of the method")
	}
	tx.Commit()
	v := s.View()
	_, rules := v.ACLBindingRules("")
	if _, k := v.ACLToken(login.AccessorID); k != nil || v.ACLTokenBySecret(state.HashSecret(login.SecretID)) != nil || len(rules) != 0 {
		t.Errorf("token %v, rules %v", k, rules)
	}
}

func TestExpiredTokensAreFoundInOrder(t *testing.T) {
	s := state.New()
	tx := s.Write(1)
	at := func(year int) *time.Time {
		end := time.Date(year, 1, 1, 0, 0, 0, 5, time.FixedZone("", 3600))
		return &end
	}
	for i, k := range []acl.Token{
		{ExpirationTime: at(2030)}, {ExpirationTime: at(1950)}, {ExpirationTime: at(2400)}, {}, {ExpirationTime: at(2020), Local: true}, {ExpirationTime: at(2020)},
	} {
		id := func(kind byte) string {
			return string(kind) + "0000000-0000-4000-8000-00000000000" + string('0'+byte(i))
		}
		k.AccessorID, k.SecretID = id('a'), id('b')
		if err := tx.SetACLToken(&k, state.TokenWrite{Create: true}); err != nil {
			t.Fatal(err)
		}
	}
	tx.Commit()
	v, now := s.View(), *at(2030)
	if got := v.ExpiredACLTokens(false, now, 10); len(got) != 3 || got[0][35] != '1' || got[1][35] != '5' || got[2][35] != '0' {
		t.Errorf("global: %v", got)
	}
	if got := v.ExpiredACLTokens(false, now.Add(-1), 10); len(got) != 2 {
		t.Errorf("a moment before: %v", got)
	}
	if got := v.ExpiredACLTokens(true, now, 10); len(got) != 1 || got[0][35] != '4' {
		t.Errorf("local: %v", got)
	}
	if got := v.ExpiredACLTokens(false, now, 1); len(got) != 1 {
		t.Errorf("at most one: %v", got)
	}
}

func TestACLVersionFollowsCommits(t *testing.T) {
	s := withACL(t)
	version := s.ACLVersion()
	tx := s.Write(8)
	tx.SetFact("x", []byte("y"))
	tx.Commit()
	if s.ACLVersion() != version {
		t.Error("something else has changed the version")
	}
	tx = s.Write(9)
	tx.DeleteACLToken(tokenA)
	if s.ACLVersion() != version {
		t.Error("the version has changed before the state")
	}
	tx.Commit()
	if s.ACLVersion() == version {
		t.Error("the version has not changed")
	}
}
