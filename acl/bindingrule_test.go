package acl_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/acl"
)

func TestBindFillsNamesIn(t *testing.T) {
	vars := map[string]string{"value.team": "Blue", "value.dollar": "${value.team}", "entity_tags.a-b": "x", "value.kelvin": "wor\u212a"}
	tests := []struct {
		name, kind, text, vars string
		want                   acl.Bound
		fails                  string
	}{
		{name: "value, lower-cased", kind: acl.BindService, text: "svc-${value.team}", want: acl.Bound{ServiceIdentities: []acl.ServiceIdentity{{ServiceName: "svc-blue"}}}},
		{name: "spaces around the name", kind: acl.BindNode, text: "${ value.team }-n", want: acl.Bound{NodeIdentities: []acl.NodeIdentity{{NodeName: "blue-n", Datacenter: "dc1"}}}},
		{name: "twice", kind: acl.BindRole, text: "${value.team}_${entity_tags.a-b}", want: acl.Bound{Roles: []string{"blue_x"}}},
		{name: "own text keeps its case", kind: acl.BindPolicy, text: "Team/${value.team}", want: acl.Bound{Policies: []string{"Team/blue"}}},
		{name: "template", kind: acl.BindTemplatedPolicy, text: "builtin/node", vars: "n-${value.team}", want: acl.Bound{TemplatedPolicies: []acl.TemplatedPolicy{{TemplateName: "builtin/node", TemplateVariables: &acl.TemplateVariables{Name: "n-blue"}}}}},
		{name: "template without variables", kind: acl.BindTemplatedPolicy, text: "builtin/dns", want: acl.Bound{TemplatedPolicies: []acl.TemplatedPolicy{{TemplateName: "builtin/dns"}}}},
		{name: "a value is filled in once", kind: acl.BindService, text: "${value.dollar}", fails: `invalid bind name: "${value.team}"`},
		{name: "escaped", kind: acl.BindService, text: "$${value.team}", fails: `invalid bind name: "${value.team}"`},
		{name: "template name is not filled in", kind: acl.BindTemplatedPolicy, text: "builtin/${value.team}", fails: "does not match existing template name"},
		{name: "injection of a letter that is another in lower case", kind: acl.BindService, text: "${value.kelvin}", fails: "invalid bind name"},
		{name: "unknown", kind: acl.BindService, text: "${value.x}", fails: "unknown variable accessed: value.x"},
		{name: "empty", kind: acl.BindService, text: "${}", fails: "is no variable"},
		{name: "nested", kind: acl.BindService, text: "${${value.team}}", fails: "is no variable"},
		{name: "open", kind: acl.BindService, text: "a${value.team", fails: "expected }"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := acl.BindingRule{ID: "id", BindType: tt.kind, BindName: tt.text}
			if tt.vars != "" {
				r.BindVars = &acl.TemplateVariables{Name: tt.vars}
			}
			var got acl.Bound
			err := r.Bind(vars, "dc1", &got)
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) {
					t.Errorf("error %v, want %q", err, tt.fails)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
				t.Errorf("error %v, bound (-want +got):\n%s", err, diff)
			}
		})
	}
}

// FuzzBind fills hostile values into hostile texts: what is bound has a valid name, or nothing is.
func FuzzBind(f *testing.F) {
	f.Add("svc-${value.n}", "Web")
	f.Add("$${value.n}", `" or 1 == 1`)
	f.Add("${value.n", "${value.n}")
	f.Add("a${value.n}b${value.n}", "\x00\nacl = \"write\"")
	f.Fuzz(func(t *testing.T, text, value string) {
		vars := map[string]string{"value.n": value}
		for _, kind := range []string{acl.BindService, acl.BindNode, acl.BindRole, acl.BindPolicy, acl.BindTemplatedPolicy} {
			r := acl.BindingRule{BindType: kind, BindName: text}
			if kind == acl.BindTemplatedPolicy {
				r.BindName, r.BindVars = "builtin/service", &acl.TemplateVariables{Name: text}
			}
			var b acl.Bound
			if err := r.Bind(vars, "dc1", &b); err != nil {
				if diff := cmp.Diff(acl.Bound{}, b); diff != "" {
					t.Fatalf("%v, and bound %s", err, diff)
				}
				continue
			}
			k := acl.Token{ServiceIdentities: b.ServiceIdentities, NodeIdentities: b.NodeIdentities, TemplatedPolicies: b.TemplatedPolicies}
			if err := k.Normalize(); err != nil {
				t.Fatalf("bound what no token may have: %v", err)
			}
			for _, name := range append(b.Roles, b.Policies...) {
				if strings.ContainsAny(name, "\"\n\x00 ${}") || name == "" {
					t.Fatalf("bound the name %q", name)
				}
			}
		}
	})
}
