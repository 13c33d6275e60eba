package acl_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// refusals are rights with the line that grants each.
var refusals = []struct {
	denied acl.DeniedError
	rule   string
}{
	{acl.DeniedError{Accessor: "a1", Resource: acl.Service, Access: acl.Write, Name: "web"}, `service "web" { policy = "write" }`},
	{acl.DeniedError{Accessor: "a1", Resource: acl.Service, Access: acl.Write}, `service_prefix "" { policy = "write" }`},
	{acl.DeniedError{Accessor: "a1", Resource: acl.Operator, Access: acl.Read}, `operator = "read"`},
	{acl.DeniedError{Accessor: "a1", Resource: acl.Key, Access: acl.Write, Name: "app/", Prefix: true}, `key_prefix "app/" { policy = "write" }`},
	{acl.DeniedError{Accessor: "a1", Resource: acl.Key, Access: acl.List, Name: "app/"}, `key_prefix "app/" { policy = "list" }`},
	{acl.DeniedError{Accessor: "a1", Resource: acl.Inten, Access: acl.Read, Name: "db"}, `service "db" { policy = "read" }`},
	{acl.DeniedError{Accessor: "a1", Resource: acl.Inten, Access: acl.Write, Name: "db"}, `service "db" { policy = "read" intentions = "write" }`},
	{acl.DeniedError{Accessor: "a1", Resource: acl.Inten, Access: acl.Write, Name: "*"}, `service_prefix "" { policy = "read" intentions = "write" }`},
	{acl.DeniedError{Resource: acl.Agent, Access: acl.Read, Name: "n1"}, `agent "n1" { policy = "read" }`},
	{acl.DeniedError{Accessor: "agent-recovery:n1", Resource: acl.Key, Access: acl.Read, Name: "a\"b\nü"}, `key "a\"b\n\u00fc" { policy = "read" }`},
	{acl.DeniedError{Accessor: "a1", Resource: acl.Key, Access: acl.Read, Name: "${x}"}, ``},
}

func TestDeniedAnswersNameTheLineThatGrants(t *testing.T) {
	for _, tt := range refusals {
		rule := tt.denied.Rule()
		if rule != tt.rule {
			t.Errorf("%v\ngot  %s\nwant %s", &tt.denied, rule, tt.rule)
		}
		if rule == "" {
			continue
		}
		checkGrants(t, &tt.denied, rule)
	}
}

func checkGrants(t *testing.T, e *acl.DeniedError, rule string) {
	t.Helper()
	rules, err := acl.Parse(rule)
	if err != nil {
		t.Fatalf("%s: %v", rule, err)
	}
	z := acl.New(acl.Compile(false, rules), "x")
	granted := z.May(e.Resource, e.Access, e.Name)
	if e.Prefix {
		granted = z.MayPrefix(e.Resource, e.Access, e.Name)
	}
	if !granted {
		t.Errorf("%s does not grant what was refused: %v", rule, e)
	}
}

func TestDeniedTextsAreReadAgain(t *testing.T) {
	for _, tt := range refusals {
		for _, prefix := range []string{"", wireerr.RemotePrefix} {
			want := tt.denied
			want.Prefix = false
			got, ok := acl.ParseDenied(prefix + tt.denied.Error())
			if diff := cmp.Diff(&want, got); !ok || diff != "" {
				t.Errorf("%v: %v (-want +got):\n%s", &tt.denied, ok, diff)
			}
		}
	}
	for _, text := range []string{
		"", "Permission denied", "ACL not found", "Permission denied: token with AccessorID '' lacks permission 'key:read'",
		"Permission denied: token with AccessorID 'a' lacks permission 'key:own'", "Permission denied: token with AccessorID 'a' lacks permission 'cat:read'",
		"Permission denied: token with AccessorID 'a' lacks permission 'key:read' on \"x\" and more", "x Permission denied: anonymous token lacks permission 'key:read'",
	} {
		if e, ok := acl.ParseDenied(text); ok {
			t.Errorf("%q was read as %+v", text, e)
		}
	}
}

// Whatever is read prints as the same text, and its line grants the right.
func FuzzParseDenied(f *testing.F) {
	for _, tt := range refusals {
		f.Add(tt.denied.Error())
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, ok := acl.ParseDenied(text)
		if !ok {
			return
		}
		again, ok := acl.ParseDenied(e.Error())
		if !ok || *again != *e {
			t.Fatalf("%q: %+v became %+v", text, e, again)
		}
		if rule := e.Rule(); rule != "" {
			checkGrants(t, e, rule)
		}
	})
}
