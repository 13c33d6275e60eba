package acl_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/acl"
)

func compile(t testing.TB, allow bool, policies ...string) *acl.Ruleset {
	t.Helper()
	var all []*acl.Rules
	for _, text := range policies {
		r, err := acl.Parse(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		all = append(all, r)
	}
	return acl.Compile(allow, all...)
}

func TestRulesDecide(t *testing.T) {
	const read, list, write = acl.Read, acl.List, acl.Write
	type question struct {
		resource acl.Resource
		access   acl.Access
		name     string
		want     bool
	}
	for _, tt := range []struct {
		name     string
		allow    bool
		policies []string
		ask      []question
	}{
		{"no rules, deny", false, nil, []question{{acl.Key, read, "a", false}, {acl.Operator, read, "", false}, {acl.Inten, read, "*", false}}},
		{"no rules, allow", true, nil, []question{
			{acl.Key, write, "a", true}, {acl.Operator, write, "", true}, {acl.Mesh, write, "", true}, {acl.Inten, write, "*", true}, {acl.ACL, read, "", false},
		}},
		{"exact before prefix, longest prefix first", false, []string{`key "a/b" { policy = "read" } key_prefix "a/" { policy = "write" } key_prefix "" { policy = "deny" } key_prefix "a/b" { policy = "deny" }`}, []question{
			{acl.Key, read, "a/b", true}, {acl.Key, write, "a/b", false}, {acl.Key, write, "a/c", true}, {acl.Key, read, "a/bc", false}, {acl.Key, read, "z", false}, {acl.Key, read, "A/c", false},
		}},
		{"levels of keys", false, []string{`key "r" { policy = "read" } key "l" { policy = "LIST" } key "w" { policy = "write" }`}, []question{
			{acl.Key, list, "r", false}, {acl.Key, list, "l", true}, {acl.Key, read, "l", true}, {acl.Key, write, "l", false}, {acl.Key, list, "w", true},
		}},
		{"policies add up", false, []string{`key "k1" { policy = "read" } key "k2" { policy = "write" } operator = "read"`, `key "k1" { policy = "write" } key "k2" { policy = "deny" } operator = "write"`}, []question{
			{acl.Key, write, "k1", true}, {acl.Key, read, "k2", false}, {acl.Operator, write, "", true},
		}},
		{"mesh and peering follow operator", false, []string{`operator = "write"`}, []question{
			{acl.Mesh, write, "", true}, {acl.Peering, write, "", true}, {acl.Keyring, read, "", false}, {acl.ACL, read, "", false},
		}},
		{"mesh and peering by themselves", false, []string{`operator = "write" mesh = "read" peering = "deny"`}, []question{
			{acl.Mesh, read, "", true}, {acl.Mesh, write, "", false}, {acl.Peering, read, "", false}, {acl.Operator, write, "", true},
		}},
		{"intentions", false, []string{`service "w" { policy = "write" } service "d" { policy = "deny" } service "iw" { policy = "read" intentions = "write" } service "id" { policy = "write" intentions = "deny" }`}, []question{
			{acl.Inten, read, "w", true}, {acl.Inten, write, "w", false}, {acl.Inten, read, "d", false}, {acl.Inten, write, "iw", true},
			{acl.Inten, read, "id", false}, {acl.Service, write, "id", true}, {acl.Inten, read, "none", false}, {acl.Inten, read, "*", true}, {acl.Inten, write, "*", false},
		}},
		{"intentions of all", false, []string{`service_prefix "" { policy = "read" intentions = "write" }`}, []question{{acl.Inten, write, "*", true}, {acl.Inten, write, "x", true}}},
		{"intentions of all but one", false, []string{`service_prefix "" { policy = "read" intentions = "write" } service "x" { policy = "read" }`}, []question{{acl.Inten, write, "*", false}, {acl.Inten, write, "y", true}}},
		{"an unset intentions does not weaken one", false, []string{`service "s" { policy = "read" intentions = "write" }`, `service "s" { policy = "write" }`}, []question{{acl.Inten, write, "s", true}, {acl.Service, write, "s", true}}},
		{"JSON", false, []string{`{"key":{"a":{"policy":"read"}},"key_prefix":[{"b/":{"policy":"write"}},{"c/":{"policy":"read"}}],"operator":"read"}`}, []question{
			{acl.Key, read, "a", true}, {acl.Key, write, "b/x", true}, {acl.Key, read, "c/x", true}, {acl.Operator, read, "", true},
		}},
		{"names with quotes and braces", false, []string{"key \"a\\\"b{{{\" { policy = \"read\" }"}, []question{{acl.Key, read, `a"b{{{`, true}, {acl.Key, read, "a", false}}},
		{"what is not known", false, []string{"identity \"x\" { policy = \"bogus\" }\nnamespace \"n\" { acl = \"write\" }\nsentinel = 3"}, []question{{acl.ACL, read, "", false}}},
		{"built in: management", false, []string{acl.BuiltInPolicies()[0].Rules}, []question{
			{acl.ACL, write, "", true}, {acl.Keyring, write, "", true}, {acl.Key, write, "x", true}, {acl.Inten, write, "*", true}, {acl.Session, write, "n", true}, {acl.Peering, write, "", true},
		}},
		{"built in: reading", false, []string{acl.BuiltInPolicies()[1].Rules}, []question{
			{acl.ACL, read, "", true}, {acl.ACL, write, "", false}, {acl.Key, read, "x", true}, {acl.Key, write, "x", false}, {acl.Inten, read, "*", true}, {acl.Inten, write, "x", false},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := compile(t, tt.allow, tt.policies...)
			for _, q := range tt.ask {
				if got := s.Allows(q.resource, q.access, q.name); got != q.want {
					t.Errorf("%s:%s on %q: %v", q.resource, q.access, q.name, got)
				}
			}
		})
	}
}

func TestRightsOnWholeTrees(t *testing.T) {
	for _, tt := range []struct {
		allow  bool
		rules  string
		prefix string
		want   bool
	}{
		{false, ``, "a/", false}, {true, ``, "a/", true},
		{false, `key_prefix "a/" { policy = "write" }`, "a/", true},
		{false, `key_prefix "a/" { policy = "write" }`, "a/b", true},
		{false, `key_prefix "a/" { policy = "write" }`, "a", false},
		{false, `key "a/" { policy = "write" }`, "a/", false},
		{false, `key_prefix "a/" { policy = "write" } key "a/x" { policy = "read" }`, "a/", false},
		{false, `key_prefix "a/" { policy = "write" } key "a/x" { policy = "read" }`, "a/y", true},
		{false, `key_prefix "a/" { policy = "write" } key_prefix "a/b/" { policy = "deny" }`, "a/", false},
		{true, `key "a/x" { policy = "deny" }`, "a/", false}, {true, `key "b" { policy = "deny" }`, "a/", true},
	} {
		if got := compile(t, tt.allow, tt.rules).AllowsPrefix(acl.Key, acl.Write, tt.prefix); got != tt.want {
			t.Errorf("allow %v, %s: writing all of %q: %v", tt.allow, tt.rules, tt.prefix, got)
		}
	}
	for _, tt := range []struct {
		allow bool
		rules string
		want  bool
	}{
		{false, ``, false}, {true, ``, true}, {false, `service "a" { policy = "read" }`, false}, {false, `service "a" { policy = "write" }`, true},
		{true, `service "a" { policy = "deny" }`, true}, {true, `service_prefix "" { policy = "read" }`, false},
	} {
		if got := compile(t, tt.allow, tt.rules).AllowsAny(acl.Service, acl.Write); got != tt.want {
			t.Errorf("allow %v, %s: writing any service: %v", tt.allow, tt.rules, got)
		}
	}
	imported := acl.New(compile(t, false, `node_prefix "" { policy = "read" } service_prefix "" { policy = "read" } service "x" { policy = "deny" }`), "a")
	if !imported.MayReadImported(acl.Node) || imported.MayReadImported(acl.Service) {
		t.Error("who may read all nodes but not all services sees imported nodes alone")
	}
}

func TestBadRulesAreRefused(t *testing.T) {
	for text, want := range map[string]string{
		`key "a" { policy = "bogus" }`:                        `Invalid key policy`,
		`key_prefix "a" { policy = "" }`:                      `Invalid key_prefix policy`,
		`key "a" { }`:                                         `Invalid key policy`,
		`service "a" { policy = "list" }`:                     `Invalid service policy`,
		`service "a" { policy = "read" intentions = "list" }`: `Invalid service intentions policy`,
		`acl = "list"`:                                        `Invalid acl policy: "list"`,
		`peering = "x"`:                                       `Invalid peering policy: "x"`,
		`key "a" { policy = "read"`:                           `Failed to parse ACL rules: `,
		"acl = \"read\"\nacl = \"write\"":                     `Failed to parse ACL rules: `,
		`{"key":{"a":{"policy":"read"}}`:                      `Failed to parse ACL rules: `,
		`{"operator":"read"} x`:                               `Failed to parse ACL rules: `,
		`acl { policy = "read" }`:                             `Failed to parse ACL rules: `,
		`key = "read"`:                                        `Failed to parse ACL rules: `,
		strings.Repeat("a{", 10000):                           `Failed to parse ACL rules: nested too deep`,
		`{"x":` + strings.Repeat("[", 10000):                  `Failed to parse ACL rules: nested too deep`,
		"# " + strings.Repeat("x", 9<<20):                     `Failed to parse ACL rules: longer than`,
	} {
		_, err := acl.Parse(text)
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.60s: %v, want %s", text, err, want)
		}
	}
}

// naive decides by reading the rules of the specification one after another.
func naive(allow bool, rules []acl.Rule, a acl.Access, name string) bool {
	rank := map[acl.Access]acl.Level{acl.Read: acl.ReadLevel, acl.List: acl.ListLevel, acl.Write: acl.WriteLevel}
	best, level := -1, acl.Unset
	for _, r := range rules {
		score := -1
		switch {
		case !r.Prefix && r.Name == name:
			score = 1 << 20
		case r.Prefix && strings.HasPrefix(name, r.Name):
			score = len(r.Name)
		}
		switch {
		case score < 0 || score < best:
		case score > best:
			best, level = score, r.Level
		case level == acl.Deny || r.Level == acl.Deny:
			level = acl.Deny
		default:
			level = max(level, r.Level)
		}
	}
	if best < 0 {
		return allow
	}
	return level >= rank[a]
}

func TestDecisionsEqualANaiveReading(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	name := func() string {
		b := make([]byte, r.IntN(5))
		for i := range b {
			b[i] = "ab/"[r.IntN(3)]
		}
		return string(b)
	}
	for range 3000 {
		rules := make([]acl.Rule, r.IntN(8))
		var text strings.Builder
		for i := range rules {
			rules[i] = acl.Rule{Resource: acl.Key, Name: name(), Prefix: r.IntN(2) == 0, Level: acl.Level(1 + r.IntN(4))}
			kind := "key"
			if rules[i].Prefix {
				kind = "key_prefix"
			}
			fmt.Fprintf(&text, "%s %q { policy = %q }\n", kind, rules[i].Name, []string{"", "deny", "read", "list", "write"}[rules[i].Level])
		}
		allow := r.IntN(2) == 0
		s := compile(t, allow, text.String())
		var every []string
		for range 12 {
			every = append(every, name())
		}
		for _, a := range []acl.Access{acl.Read, acl.List, acl.Write} {
			for _, n := range every {
				if got, want := s.Allows(acl.Key, a, n), naive(allow, rules, a, n); got != want {
					t.Fatalf("%s(default allow: %v)\n%s of %q: %v, want %v", text.String(), allow, a, n, got, want)
				}
				// A right on a tree is one on everything in it.
				if s.AllowsPrefix(acl.Key, a, n) {
					for _, other := range every {
						if strings.HasPrefix(other, n) && !s.Allows(acl.Key, a, other) {
							t.Fatalf("%s(default allow: %v)\n%s of all below %q, but not of %q", text.String(), allow, a, n, other)
						}
					}
				}
			}
		}
	}
}

func TestTemplates(t *testing.T) {
	p, err := acl.TemplateByName("builtin/service").Policy(&acl.TemplateVariables{Name: "web"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	identity := (&acl.ServiceIdentity{ServiceName: "web"}).Policy()
	if p.Rules != identity.Rules || p.ID != identity.ID {
		t.Error("the template and the identity give different rules")
	}
	z := acl.New(compile(t, false, p.Rules), "a")
	if !z.May(acl.Service, acl.Write, "web") || !z.May(acl.Service, acl.Write, "web-sidecar-proxy") || z.May(acl.Service, acl.Write, "db") || !z.May(acl.Service, acl.Read, "db") || !z.May(acl.Node, acl.Read, "n") {
		t.Error("the rights of a service are not what they should be")
	}
	for name, want := range map[string]string{"": "name is required", "Web": "invalid name", "a\" { policy = \"write\" } acl = \"write\" #": "invalid name", "-a": "invalid name"} {
		for _, tmpl := range []string{"builtin/service", "builtin/node", "builtin/api-gateway"} {
			if _, err := acl.TemplateByName(tmpl).Rules(&acl.TemplateVariables{Name: name}); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s with %q: %v", tmpl, name, err)
			}
		}
	}
	for _, tmpl := range acl.Templates() {
		rules, err := tmpl.Rules(&acl.TemplateVariables{Name: "x"})
		if err != nil {
			t.Fatal(err)
		}
		compile(t, false, rules)
	}
}

func FuzzParse(f *testing.F) {
	for _, p := range acl.BuiltInPolicies() {
		f.Add(p.Rules)
	}
	f.Add(`{"key":{"a":{"policy":"read"}},"operator":"read"}`)
	f.Add("service \"s\" { policy = \"write\" intentions = \"deny\" }")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := acl.Parse(text)
		if err != nil {
			return
		}
		s := acl.Compile(false, r)
		for _, rule := range r.List {
			if rule.Level == acl.Deny && !rule.Prefix && s.Allows(rule.Resource, acl.Read, rule.Name) {
				t.Errorf("%q: %v is denied and granted", text, rule)
			}
		}
	})
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 1000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rules := &acl.Rules{}
			names := make([]string, n)
			for i := range n {
				names[i] = fmt.Sprintf("team-%d/service-%d", i%97, i)
				rules.List = append(rules.List, acl.Rule{Resource: acl.Service, Name: names[i], Prefix: i%2 == 0, Level: acl.WriteLevel})
			}
			z := acl.New(acl.Compile(false, rules), "accessor")
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if !z.May(acl.Service, acl.Write, names[i%n]) {
					b.Fatal("denied")
				}
				i++
			}
		})
	}
}
