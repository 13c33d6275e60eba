package acl_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/acl"
)

// keys grants reading of the keys below a prefix.
type keys string

func (p keys) Allows(r acl.Resource, a acl.Access, name string) bool {
	return r == acl.Key && a == acl.Read && strings.HasPrefix(name, string(p))
}

// trees grants writing of every key except one.
type trees string

func (p trees) Allows(r acl.Resource, a acl.Access, name string) bool {
	return r == acl.Key && name != string(p)
}

func (p trees) AllowsPrefix(r acl.Resource, a acl.Access, prefix string) bool {
	return r == acl.Key && !strings.HasPrefix(string(p), prefix)
}

func (p trees) AllowsAny(r acl.Resource, a acl.Access) bool { return r == acl.Key }

// The texts are matched by clients.
func TestDeniedAnswersNameTheMissingRight(t *testing.T) {
	anonymous, known := acl.New(keys("app/"), ""), acl.New(keys("app/"), "a1b2")
	const implicit = ". The anonymous token is used implicitly when a request does not specify a token."
	refusal := func(p acl.Permit, err error) error {
		if p.Given() != (err == nil) {
			t.Errorf("permit %v with error %v", p, err)
		}
		return err
	}
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"granted", refusal(known.Require(acl.Key, acl.Read, "app/x")), ""},
		{"granted to the anonymous token", refusal(anonymous.Require(acl.Key, acl.Read, "app/x")), ""},
		{"name", refusal(known.Require(acl.Key, acl.Write, "app/x")), `Permission denied: token with AccessorID 'a1b2' lacks permission 'key:write' on "app/x"`},
		{"no name", refusal(known.Require(acl.Operator, acl.Read, "")), `Permission denied: token with AccessorID 'a1b2' lacks permission 'operator:read'`},
		{"anonymous", refusal(anonymous.Require(acl.Key, acl.Write, "app/x")), `Permission denied: anonymous token lacks permission 'key:write' on "app/x"` + implicit},
		{"anonymous, no name", refusal(anonymous.Require(acl.Keyring, acl.List, "")), `Permission denied: anonymous token lacks permission 'keyring:list'` + implicit},
		{"quotes in names", refusal(known.Require(acl.Node, acl.Read, "a\"b\n")), `Permission denied: token with AccessorID 'a1b2' lacks permission 'node:read' on "a\"b\n"`},
		{"prefix, by name", refusal(known.RequirePrefix(acl.Key, acl.Read, "app/")), ""},
		{"prefix, by name, denied", refusal(known.RequirePrefix(acl.Key, acl.Read, "ap")), `Permission denied: token with AccessorID 'a1b2' lacks permission 'key:read' on "ap"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ""
			if tt.err != nil {
				got = tt.err.Error()
				if denied, ok := errors.AsType[*acl.DeniedError](tt.err); !ok || denied.Access == "" {
					t.Errorf("error of type %T", tt.err)
				}
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// The right to a whole subtree does not follow from the right to the key that names it.
func TestPrefixesAreAskedAsPrefixes(t *testing.T) {
	z := acl.New(trees("app/secret"), "x")
	if !z.May(acl.Key, acl.Write, "app/") || z.May(acl.Key, acl.Write, "app/secret") {
		t.Error("single keys")
	}
	for prefix, want := range map[string]bool{"": false, "app/": false, "app/secret": false, "app/secrets": true, "web/": true} {
		if _, err := z.RequirePrefix(acl.Key, acl.Write, prefix); (err == nil) != want {
			t.Errorf("prefix %q: %v", prefix, err)
		}
		if got := z.MayPrefix(acl.Key, acl.Write, prefix); got != want {
			t.Errorf("prefix %q: %v, want %v", prefix, got, want)
		}
	}
}

func TestEverythingIsGrantedWithoutRules(t *testing.T) {
	z := acl.Everything()
	one, oneErr := z.Require(acl.Key, acl.Write, "x")
	all, allErr := z.RequirePrefix(acl.Key, acl.Write, "")
	if !z.May(acl.Operator, acl.Write, "") || !z.MayAny(acl.Service, acl.Write) || oneErr != nil || !one.Given() || allErr != nil || !all.Given() || !z.Anonymous() {
		t.Error("something is not granted")
	}
}
