package filter_test

import (
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/filter"
)

func instance() *catalog.Instance {
	return &catalog.Instance{
		Node: &catalog.Node{
			Node: "n1", ID: "11111111-2222-3333-4444-555555555555", Address: "10.0.0.9",
			Meta: map[string]string{"rack": "r1"},
		},
		Service: &catalog.Service{
			ID: "w1", Service: "web", Port: 80, Tags: []string{"blue", "v1"},
			Meta:            map[string]string{"env": "prod", "a-b": "dashed"},
			TaggedAddresses: map[string]catalog.ServiceAddress{"lan": {Address: "10.0.0.1", Port: 81}},
			Weights:         &catalog.Weights{Passing: 5, Warning: 1},
			Proxy:           catalog.Proxy{Upstreams: []catalog.Upstream{{DestinationName: "db"}, {DestinationName: "mq"}}},
		},
		Checks: []*catalog.Check{{CheckID: "c1", Status: "passing"}, {CheckID: "c2", Status: "warning"}},
	}
}

func TestFilterMatches(t *testing.T) {
	tests := []struct {
		name, expr string
		want       bool
	}{
		{"equal word", `Service.ID == w1`, true},
		{"no white space around ==", `Service.ID=="w1"`, true},
		{"raw string", "Service.ID == `w1`", true},
		{"not equal", `Service.ID != w1`, false},
		{"leading slash is kept", `Service.Address == "/a"`, false},
		{"empty string", `Service.Address == ""`, true},
		{"not", `not Service.ID == w2`, true},
		{"double not", `not not Service.ID == w1`, true},
		{"and binds tighter than or", `Service.ID == w1 or Service.ID == w2 and Service.Port == 0`, true},
		{"parentheses", `(Service.ID == w1 or Service.ID == w2) and Service.Port == 0`, false},
		{"whole in parentheses", ` ( Service.ID == w1 ) `, true},
		{"hexadecimal", `Service.Port == "0x50"`, true},
		{"bool", `Service.EnableTagOverride == false`, true},
		{"list contains", `Service.Tags contains blue`, true},
		{"value in list", `blue in Service.Tags`, true},
		{"value not in list", `red not in Service.Tags`, true},
		{"list not contains", `Service.Tags not contains blue`, false},
		{"list is empty", `Service.Tags is empty`, false},
		{"list is not empty", `Service.Tags is not empty`, true},
		{"substring", `Service.Service contains eb`, true},
		{"number in string", `"1" in Service.ID`, true},
		{"matches", `Service.ID matches "^w[12]$"`, true},
		{"not matches", `Service.ID not matches "1"`, false},
		{"map value", `Service.Meta.env == prod`, true},
		{"map value by index", `Service.Meta["a-b"] == dashed`, true},
		{"map has key", `env in Service.Meta`, true},
		{"map contains key", `Service.Meta contains nope`, false},
		{"missing key is not equal", `Service.Meta.nope != x`, true},
		{"missing key equals nothing", `Service.Meta.nope == ""`, false},
		{"missing key is not in", `x not in Service.Meta.nope`, true},
		{"missing key does not match", `Service.Meta.nope not matches x`, true},
		{"object in a map", `Service.TaggedAddresses.lan.Port == 81`, true},
		{"object missing in a map", `Service.TaggedAddresses.wan.Port == 81`, false},
		{"pointer to an object", `Service.Weights.Passing == 5`, true},
		{"nil object is zero", `Service.Proxy.TransparentProxy.DialedDirectly == false`, true},
		{"any object of a list", `Service.Proxy.Upstreams.DestinationName == mq`, true},
		{"any object of a list is not", `Checks.Status != passing`, true},
		{"no object of a list", `Checks.Status == critical`, false},
		{"list of objects is not empty", `Checks is not empty`, true},
		{"node", `Node.Meta.rack == r1 and Node.Node == n1`, true},
		{"keyword as selector text", `Service.Service != not`, true},
		{"line feeds", "Service.ID == w1\n\tand Service.Port == 80", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := filter.Compile[*catalog.Instance](tt.expr)
			if err != nil {
				t.Fatal(err)
			}
			if got := f.Match(instance()); got != tt.want {
				t.Errorf("%s = %v, want %v", tt.expr, got, tt.want)
			}
		})
	}
}

func TestFilterErrors(t *testing.T) {
	const prefix = "Failed to create boolean expression evaluator: "
	tests := []struct{ name, expr, want string }{
		{"unknown field", `Nope == a`, `Selector "Nope" is not valid`},
		{"printed up to the failing part", `Nope.x.y == a`, `Selector "Nope" is not valid`},
		{"below a string", `ServiceID.x == a`, `Selector "ServiceID.x" is not valid`},
		{"is empty on string", `ServiceID is empty`, `Invalid match operator "Is Empty" for selector "ServiceID"`},
		{"is not empty on a map value", `ServiceMeta.x is not empty`, `Invalid match operator "Is Not Empty" for selector "ServiceMeta.x"`},
		{"in on number", `ServicePort contains 1`, `Invalid match operator "In" for selector "ServicePort"`},
		{"not in on number", `1 not in ServicePort`, `Invalid match operator "Not In" for selector "ServicePort"`},
		{"matches on number", `ServicePort matches 1`, `Invalid match operator "Matches" for selector "ServicePort"`},
		{"equal on list", `ServiceTags == a`, `Invalid match operator "Equal" for selector "ServiceTags"`},
		{"not equal on map", `ServiceMeta != a`, `Invalid match operator "Not Equal" for selector "ServiceMeta"`},
		{"bad number", `ServicePort == abc`, `Failed to coerce value "abc" for selector "ServicePort": `},
		{"bad bool", `ServiceEnableTagOverride == maybe`, `Failed to coerce value "maybe" for selector "ServiceEnableTagOverride": `},
		{"bad regexp", `ServiceID matches "("`, `Failed to compile regular expression "(": `},
		{"index", `CreateIndex == 1`, `Selector "CreateIndex" is not valid`},
		{"locality", `ServiceLocality is empty`, `Selector "ServiceLocality" is not valid`},
		{"object", `ServiceProxy is empty`, `Selector "ServiceProxy" is not valid`},
		{"config map", `ServiceProxy.Config contains a`, `Selector "ServiceProxy.Config" is not valid`},
		{"selector alone", `ServiceID`, `1:10 (9): no match found, expected: `},
		{"no value", `ServiceID ==`, `1:13 (12): no match found, expected: `},
		{"single equal sign", `ServiceID = w1`, `1:11 (10): no match found`},
		{"open parenthesis", `(ServiceID == w1`, `1:17 (16): no match found`},
		{"open string", `ServiceID == "w1`, `1:14 (13): no match found`},
		{"hyphenated word", `ServiceID == w-1`, `no match found`},
		{"rest", `ServiceID == w1 )`, `no match found`},
		{"only blanks", ` `, `no match found`},
		{"second line", "ServiceID == w1 and\n  ==", `2:3 (22): no match found`},
		{"too deep", strings.Repeat("(", 10000), "less nesting"},
		{"too long", strings.Repeat("a", filter.MaxLength+1), "longer than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := filter.Compile[filter.ServiceNode](tt.expr)
			if err == nil || !strings.HasPrefix(err.Error(), prefix) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, prefix+tt.want)
			}
		})
	}
}

func TestNilFilterKeepsAll(t *testing.T) {
	f, err := filter.Compile[*catalog.Node]("")
	if f != nil || err != nil {
		t.Fatalf("got %v, %v", f, err)
	}
	if !f.Match(&catalog.Node{}) || len(f.Select([]*catalog.Node{{}, {}})) != 2 {
		t.Error("a nil filter dropped something")
	}
}

// FuzzCompile checks that an expression is either refused with an *Error or gives a filter whose negation selects
// exactly the rest.
func FuzzCompile(f *testing.F) {
	for _, s := range []string{`Service.ID == w1`, `not (a in Service.Tags or Checks is empty)`, `Service.Meta["x"] matches "^.$"`, "`", `-1 in`, `a.b.c["d"] != 0.5`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, expr string) {
		yes, err := filter.Compile[*catalog.Instance](expr)
		if err != nil {
			if _, ok := err.(*filter.Error); !ok {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		if expr == "" {
			return
		}
		no, err := filter.Compile[*catalog.Instance]("not (" + expr + ")")
		if err != nil {
			return // too long or deep by now
		}
		if x := instance(); yes.Match(x) == no.Match(x) {
			t.Fatalf("%q and its negation agree", expr)
		}
		no.Match(&catalog.Instance{})
	})
}

func BenchmarkMatch(b *testing.B) {
	f, err := filter.Compile[*catalog.Instance](`Service.Meta.env == prod and Checks.Status != critical`)
	if err != nil {
		b.Fatal(err)
	}
	x := instance()
	b.ReportAllocs()
	for b.Loop() {
		f.Match(x)
	}
}
