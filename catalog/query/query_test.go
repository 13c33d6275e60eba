package query_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/query"
	"github.com/sarnmesh/sarn/internal/rpc"
)

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestValidate(t *testing.T) {
	web := query.Service{Service: "web"}
	failover := func(f query.Failover) query.Query {
		return query.Query{Name: "x", Service: query.Service{Service: "web", Failover: f}}
	}
	ttl := func(s string) query.Query { return query.Query{Name: "x", Service: web, DNS: query.DNS{TTL: s}} }
	tests := []struct {
		name string
		q    query.Query
		want string
	}{
		{"a name is enough", query.Query{Name: "x", Service: web}, ""},
		{"a session is enough", query.Query{Session: "s", Service: web}, ""},
		{"a template needs no name", query.Query{Template: query.Template{Type: query.NamePrefixMatch}, Service: web}, ""},
		{"found by its ID alone", query.Query{Service: web}, "Must be bound to a session"},
		{"a long name", query.Query{Name: strings.Repeat("x", query.MaxName+1), Service: web}, "Name is longer than 1024 bytes"},
		{"no service", query.Query{Name: "x"}, "Must provide a Service name to query"},
		{"a redacted token", query.Query{Name: "x", Token: "<hidden>", Service: web},
			"Bad Token '<hidden>', it looks like a query definition with a redacted token was submitted"},
		{"negative nearest", failover(query.Failover{NearestN: -1}), "Bad NearestN '-1', must be >= 0"},
		{"nearest and targets", failover(query.Failover{NearestN: 1, Targets: []query.Target{{Datacenter: "dc2"}}}),
			"Targets cannot be populated with NearestN or Datacenters"},
		{"datacenters and targets", failover(query.Failover{Datacenters: []string{"dc2"}, Targets: []query.Target{{Peer: "p"}}}),
			"Targets cannot be populated with NearestN or Datacenters"},
		{"nearest and datacenters", failover(query.Failover{NearestN: 1, Datacenters: []string{"dc2"}}), ""},
		{"sameness group", query.Query{Name: "x", Service: query.Service{Service: "web", SamenessGroup: "g"}},
			"sameness-groups are an enterprise-only feature"},
		{"node meta", query.Query{Name: "x", Service: query.Service{Service: "web", NodeMeta: map[string]string{"bad key": "v"}}},
			"Invalid Service.NodeMeta: Couldn't load metadata pair ('bad key', 'v'): Key contains invalid characters"},
		{"service meta is free", query.Query{Name: "x", Service: query.Service{Service: "web", ServiceMeta: map[string]string{"bad key": "v"}}}, ""},
		{"TTL", ttl("10s"), ""},
		{"TTL zero", ttl("0s"), ""},
		{"TTL no duration", ttl("abc"), `Bad DNS TTL 'abc': time: invalid duration "abc"`},
		{"TTL negative", ttl("-1s"), "DNS TTL '-1000000000', must be >=0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := text(tt.q.Validate()); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestJSONForm(t *testing.T) {
	got, err := json.Marshal(&query.Query{ID: "i", Name: "web-q", Service: query.Service{Service: "web"}})
	const want = `{"ID":"i","Name":"web-q","Session":"","Token":"","Template":{"Type":"","Regexp":"","RemoveEmptyTags":false},` +
		`"Service":{"Service":"web","Failover":{"NearestN":0,"Datacenters":null,"Targets":null},"OnlyPassing":false,"IgnoreCheckIDs":null,` +
		`"Near":"","Tags":null,"NodeMeta":null,"ServiceMeta":null,"Connect":false,"Peer":"","SamenessGroup":""},` +
		`"DNS":{"TTL":""},"CreateIndex":0,"ModifyIndex":0}`
	if err != nil || string(got) != want {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
}

func TestSameSeesEveryField(t *testing.T) {
	base := func() query.Query {
		return query.Query{
			ID: "i", Name: "n", Session: "s", Token: "t", Template: query.Template{Type: "x"}, DNS: query.DNS{TTL: "1s"},
			Service: query.Service{Service: "web", Tags: []string{"a"}, NodeMeta: map[string]string{"a": "1"}, ServiceMeta: map[string]string{"b": "1"}},
		}
	}
	a, b := base(), base()
	b.CreateIndex, b.ModifyIndex = 1, 2
	if !a.Same(&b) {
		t.Error("indexes count")
	}
	changes := []func(q *query.Query){
		func(q *query.Query) { q.ID = "" }, func(q *query.Query) { q.Name = "" }, func(q *query.Query) { q.Session = "" },
		func(q *query.Query) { q.Token = "" }, func(q *query.Query) { q.Template.RemoveEmptyTags = true }, func(q *query.Query) { q.DNS.TTL = "" },
		func(q *query.Query) { q.Service.Service = "x" }, func(q *query.Query) { q.Service.Failover.NearestN = 1 },
		func(q *query.Query) { q.Service.Failover.Datacenters = []string{} }, func(q *query.Query) { q.Service.Failover.Targets = []query.Target{{}} },
		func(q *query.Query) { q.Service.OnlyPassing = true }, func(q *query.Query) { q.Service.IgnoreCheckIDs = []string{"c"} },
		func(q *query.Query) { q.Service.Near = "n" }, func(q *query.Query) { q.Service.Tags = []string{"b"} },
		func(q *query.Query) { q.Service.NodeMeta = nil }, func(q *query.Query) { q.Service.ServiceMeta["b"] = "2" },
		func(q *query.Query) { q.Service.Connect = true }, func(q *query.Query) { q.Service.Peer = "p" },
		func(q *query.Query) { q.Service.SamenessGroup = "g" },
	}
	for i, change := range changes {
		b := base()
		change(&b)
		if a.Same(&b) || b.Same(&a) {
			t.Errorf("change %d is not seen", i)
		}
	}
}

func TestRedact(t *testing.T) {
	q := &query.Query{Name: "x", Token: "secret"}
	if r := q.Redact(); r.Token != query.Redacted || q.Token != "secret" {
		t.Errorf("%q, %q", r.Token, q.Token)
	}
	if q := (&query.Query{Name: "x"}); q.Redact().Token != "" {
		t.Error("a token where there is none")
	}
}

func template(regexp string, s query.Service) *query.Query {
	return &query.Query{Name: "geo-", Template: query.Template{Type: query.NamePrefixMatch, Regexp: regexp}, Service: s}
}

func TestRender(t *testing.T) {
	full := query.Service{
		Service: "${name.full}", Failover: query.Failover{Datacenters: []string{"${match(2)}"}, Targets: []query.Target{{Peer: "p${match(1)}", Datacenter: "d${match(1)}"}}},
		IgnoreCheckIDs: []string{"${name.prefix}"}, Near: "${name.suffix}", Tags: []string{"${match(2)}", "${match(9)}", "t"},
		NodeMeta: map[string]string{"${name.full}": "${match(0)}"}, ServiceMeta: map[string]string{"s": "${agent.segment}x"}, Peer: "${match(1)}",
	}
	q := template("^geo-(.*?)-([^-]+?)$", full)
	c, err := query.Compile(q)
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Render("geo-web-blue")
	if err != nil {
		t.Fatal(err)
	}
	want := *q
	want.Service = query.Service{
		Service: "geo-web-blue", Failover: query.Failover{Datacenters: []string{"blue"}, Targets: []query.Target{{Peer: "pweb", Datacenter: "dweb"}}},
		IgnoreCheckIDs: []string{"geo-"}, Near: "web-blue", Tags: []string{"blue", "", "t"},
		NodeMeta: map[string]string{"${name.full}": "geo-web-blue"}, ServiceMeta: map[string]string{"s": "x"}, Peer: "web",
	}
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if q.Service.Tags[0] != "${match(2)}" || q.Service.NodeMeta["${name.full}"] != "${match(0)}" {
		t.Errorf("rendering changed the template: %+v", q.Service)
	}
	q.Template.RemoveEmptyTags = true
	if got, err = c.Render("geo-web-blue"); err != nil || !slices.Equal(got.Service.Tags, []string{"blue", "t"}) {
		t.Errorf("without empty tags: %q, %v", got.Service.Tags, err)
	}
}

func TestTexts(t *testing.T) {
	const (
		format = "Bad format '%s' in Service.Service: "
		eval   = "Bad evaluation for '%s' in Service.Service: "
	)
	tests := []struct {
		in, want, err string
	}{
		{in: "plain", want: "plain"},
		{in: "$ $$ a$", want: "$ $$ a$"},
		{in: "$${name.full}", want: "${name.full}"},
		{in: "$$${name.full}", want: "$${name.full}"},
		{in: "a${name.full}b${name.suffix}", want: "at-1-abbab"},
		{in: "${ name.prefix }", want: "t-1-"},
		{in: "${match(0)} ${match( 1 )} ${match(2)} ${match(3)} ${match(-1)}", want: "t-1-ab 1 ab  "},
		{in: `${match("2")}`, want: "ab"},
		{in: "${match(match(1))}", want: "1"},
		{in: `${"a\"b\\c}$"}`, want: `a"b\c}$`},
		{in: "${(5)}", want: "5"},
		{in: "${agent.segment}", want: ""},
		{in: "${name.full", err: format + "expression is not ended with '}'"},
		{in: "${", err: format + "expression is not ended with '}'"},
		{in: "${}", err: format + "unexpected '}'"},
		{in: "${name.full x}", err: format + "expected '}' but found 'x'"},
		{in: "${match(1}", err: format + "expected ')' but found '}'"},
		{in: "${match(1,)}", err: format + "unexpected ')'"},
		{in: `${"x}`, err: format + `string is not ended with '"'`},
		{in: "${-}", err: format + `"-" is not an integer`},
		{in: "${99999999999999999999}", err: format + `"99999999999999999999" is not an integer`},
		{in: "${" + strings.Repeat("(", 100) + "1" + strings.Repeat(")", 100) + "}", err: format + "expression nests too deep"},
		{in: "${nope}", err: eval + "unknown variable accessed: nope"},
		{in: "${nope(1)}", err: eval + "unknown function called: nope"},
		{in: "${match()}", err: eval + "match: expected 1 arguments, got 0"},
		{in: "${match(1, 2)}", err: eval + "match: expected 1 arguments, got 2"},
		{in: `${match("x")}`, err: eval + `match: argument should be an integer, got "x"`},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			q := template(`^t-(\d)-(\w*)$`, query.Service{Service: tt.in})
			q.Name = "t-1-"
			got := ""
			c, err := query.Compile(q)
			if err == nil {
				var r *query.Query
				if r, err = c.Render("t-1-ab"); err == nil {
					got = r.Service.Service
				}
			}
			want := strings.ReplaceAll(tt.err, "%s", tt.in)
			if text(err) != want || got != tt.want {
				t.Errorf("got %q, %q; want %q, %q", got, text(err), tt.want, want)
			}
		})
	}
}

func TestCompileRefuses(t *testing.T) {
	tests := []struct {
		name string
		q    *query.Query
		want string
	}{
		{"no type", &query.Query{}, "Bad Template.Type ''"},
		{"another type", &query.Query{Template: query.Template{Type: "other"}}, "Bad Template.Type 'other'"},
		{"regexp", template("(", query.Service{}), "Bad Regexp: error parsing regexp: missing closing ): `(`"},
		{"long regexp", template(strings.Repeat("a", query.MaxRegexp+1), query.Service{}), "Bad Regexp: longer than 4096 bytes"},
		{"a tag", template("", query.Service{Tags: []string{"", "${"}}), "Bad format '${' in Service.Tags[1]: expression is not ended with '}'"},
		{"a pair", template("", query.Service{NodeMeta: map[string]string{"k": "${x}"}}), "Bad evaluation for '${x}' in Service.NodeMeta[k]: unknown variable accessed: x"},
		{"the first of several pairs", template("", query.Service{ServiceMeta: map[string]string{"b": "${x}", "a": "${y}", "c": "${z}"}}),
			"Bad evaluation for '${y}' in Service.ServiceMeta[a]: unknown variable accessed: y"},
		{"what grows too much", template("", query.Service{Tags: []string{strings.Repeat("x", query.MaxRendered), "y"}}),
			"Bad evaluation for 'y' in Service.Tags[1]: rendered query is longer than 1048576 bytes"},
		{"a target", template("", query.Service{Failover: query.Failover{Targets: []query.Target{{Peer: "${"}}}}),
			"Bad format '${' in Service.Failover.Targets[0].Peer: expression is not ended with '}'"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := query.Compile(tt.q); text(err) != tt.want {
				t.Errorf("got %q, want %q", text(err), tt.want)
			}
		})
	}
}

// instance makes an instance with checks given as "ID status" and tags.
func instance(node string, meta, serviceMeta map[string]string, tags []string, checks ...string) *catalog.Instance {
	i := &catalog.Instance{Node: &catalog.Node{Node: node, Meta: meta}, Service: &catalog.Service{Tags: tags, Meta: serviceMeta}}
	for _, c := range checks {
		id, status, _ := strings.Cut(c, " ")
		i.Checks = append(i.Checks, &catalog.Check{CheckID: id, Status: status})
	}
	return i
}

func names(list []*catalog.Instance) string {
	var all []string
	for _, i := range list {
		all = append(all, i.Node.Node)
	}
	return strings.Join(all, " ")
}

func TestSelect(t *testing.T) {
	x, y := map[string]string{"rack": "x"}, map[string]string{"rack": "y", "empty": ""}
	all := []*catalog.Instance{
		instance("pass", x, y, []string{"v1", "All"}, "c passing", "d passing"),
		instance("warn", y, x, []string{"v2", "all"}, "c warning"),
		instance("crit", x, nil, []string{"v3"}, "c passing", "d critical"),
		instance("odd", nil, x, nil, "c whatever"),
	}
	tests := []struct {
		name string
		s    query.Service
		want string
	}{
		{"critical is left out", query.Service{}, "pass warn odd"},
		{"only passing", query.Service{OnlyPassing: true}, "pass"},
		{"a check that does not count", query.Service{IgnoreCheckIDs: []string{"d"}}, "pass warn crit odd"},
		{"the rest must pass", query.Service{IgnoreCheckIDs: []string{"d"}, OnlyPassing: true}, "pass crit"},
		{"a tag in any case", query.Service{Tags: []string{"ALL"}}, "pass warn"},
		{"all tags", query.Service{Tags: []string{"all", "V1"}}, "pass"},
		{"a forbidden tag", query.Service{Tags: []string{"all", "!V1"}}, "warn"},
		{"forbidden alone", query.Service{Tags: []string{"!all"}}, "odd"},
		{"an empty tag is a tag", query.Service{Tags: []string{""}}, ""},
		{"node meta", query.Service{NodeMeta: x}, "pass"},
		{"an empty value must be there", query.Service{NodeMeta: map[string]string{"empty": ""}}, "warn"},
		{"service meta", query.Service{ServiceMeta: x}, "warn odd"},
		{"all pairs", query.Service{NodeMeta: x, ServiceMeta: x}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := names(tt.s.Select(all)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	if names(all) != "pass warn crit odd" {
		t.Error("the list was changed")
	}
}

func TestSourceFirst(t *testing.T) {
	for _, tt := range []struct{ name, node, want string }{
		{"the others keep their order", "C", "c a b d e f g h i j k"},
		{"the tenth", "j", "j a b c d e f g h i k"},
		{"not so far down", "k", "a b c d e f g h i j k"},
		{"none", "x", "a b c d e f g h i j k"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var list []*catalog.Instance
			for _, n := range strings.Fields("a b c d e f g h i j k") {
				list = append(list, instance(n, nil, nil, nil))
			}
			query.SourceFirst(list, tt.node)
			if got := names(list); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
	query.SourceFirst(nil, "x")
}

func TestLimit(t *testing.T) {
	for n, want := range map[int]int{-1: 3, 0: 3, 1: 1, 3: 3, 9: 3} {
		if got := len(query.Limit([]int{1, 2, 3}, n)); got != want {
			t.Errorf("%d: %d, want %d", n, got, want)
		}
	}
}

func TestCandidates(t *testing.T) {
	others := []string{"dc3", "dc2", "dc4"}
	tests := []struct {
		name string
		f    query.Failover
		want string
	}{
		{"none", query.Failover{}, ""},
		{"the nearest", query.Failover{NearestN: 2}, "dc3 dc2"},
		{"more than there are", query.Failover{NearestN: 9}, "dc3 dc2 dc4"},
		{"named", query.Failover{Datacenters: []string{"dc4", "dc9", "dc1", "dc2"}}, "dc4 dc2"},
		{"each once", query.Failover{NearestN: 1, Datacenters: []string{"dc4", "dc3", "dc4"}}, "dc3 dc4"},
		{"targets", query.Failover{Targets: []query.Target{{Peer: "p"}, {Datacenter: "dc9"}, {Datacenter: "dc2"}, {Datacenter: "dc1"}}}, "p/ dc2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, c := range tt.f.Candidates("dc1", append([]string{"dc1"}, others...)) {
				if c.Peer != "" {
					c.Peer += "/"
				}
				got = append(got, c.Peer+c.Datacenter)
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
	if others[0] != "dc3" {
		t.Error("the list was changed")
	}
}

// FuzzTemplate compiles and renders arbitrary templates: nothing panics, what compiles renders for its own name, and
// rendering is a function of template and name that leaves the template as it was.
func FuzzTemplate(f *testing.F) {
	for _, s := range []string{
		"", "plain", "$", "${name.full}", "$${x}", "${match(1)}", "${match(match(1))}", `${"a\"}`, "${(((1)))}", "${match(", "${a.b(1, 2)}", "${ -1 }",
	} {
		f.Add(s, `^geo-(\w+)-(\d)$`, "geo-web-1")
	}
	f.Fuzz(func(t *testing.T, s, re, name string) {
		q := template(re, query.Service{Service: s, Tags: []string{s, name}, ServiceMeta: map[string]string{s: s}})
		before, err := rpc.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		c, err := query.Compile(q)
		if err != nil {
			return
		}
		if _, err := c.Render(q.Name); err != nil {
			t.Errorf("compiled, but not rendered for its own name: %v", err)
		}
		one, err1 := c.Render(name)
		two, err2 := c.Render(name)
		if text(err1) != text(err2) || !cmp.Equal(one, two) {
			t.Errorf("rendered differently: %v, %v", one, two)
		}
		if err1 == nil && !strings.Contains(s, "${") && one.Service.Service != s {
			t.Errorf("%q became %q", s, one.Service.Service)
		}
		if after, err := rpc.Marshal(q); err != nil || string(before) != string(after) {
			t.Errorf("the template was changed: %v", err)
		}
	})
}
