package config_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/command/agent/config"
)

// Whatever a file says, loading it ends: with settings, or with an error that says where. A document that loads means the
// same when it is loaded again.
func FuzzLoad(f *testing.F) {
	data, err := os.ReadFile("testdata/keys.tsv")
	if err != nil {
		f.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(strings.TrimSpace(line), "\t")
		if n++; n%7 == 0 {
			f.Add(nest(cells[0], cells[1]))
		}
	}
	for _, s := range []string{
		`{"services": [{"name": "a", "checks": [{"ttl": "1s"}]}], "ports": {"http": 1e3}}`,
		`{"a": [1, {"b": null}], "A": tru`,
		"service \"web\" { port = 99999999999999999999 }",
		"node_name = <<EOF\nx\nEOF\n",
		"node_name = <<-EOF\n  x\n EOF",
		"a = [[[[{ b = -1.5e3 }]]]]",
		"service { connect { sidecar_service { check {} check {} checks = { name = \"x\" } } } }",
		"\"\\u00\" = \"${x(\"y\")}\"",
		`datacenter = "sarn"`,
		`ports { dns = 8500 }`,
		`{"ports": {"http": "1"},` + "\n" + `"x": ]}`,
		"bind_addr = \"0.0.0.0 ::\"\nadvertise_addr = \"\"",
		"watches = [{ a { b = 1 } a { c = 2 } a = 3 }]",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, _, err := config.Load(dev(text))
		if err != nil {
			located(t, text, err)
			return
		}
		again, _, err := config.Load(dev(text))
		if err != nil {
			t.Fatalf("loads once only: %v", err)
		}
		if d := config.Diff(s, again); len(d) > 0 {
			t.Fatalf("loading again changes %v", d)
		}
	})
}

// located fails unless every problem has its place in the text: a line and a column that are there.
func located(t *testing.T, text string, err error) {
	t.Helper()
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		if len(joined.Unwrap()) == 0 {
			t.Fatalf("%T lists no errors", err)
		}
		for _, e := range joined.Unwrap() {
			located(t, text, e)
		}
		return
	}
	var pos config.Pos
	if s, ok := errors.AsType[*config.SyntaxError](err); ok {
		pos = s.Pos
	} else if k, ok := errors.AsType[*config.KeyError](err); ok {
		pos = k.Pos
	} else {
		t.Fatalf("%T %v has no place", err, err)
	}
	lines := strings.Split(text, "\n")
	if pos.File != "flags-0.hcl" || pos.Line < 1 || pos.Line > len(lines) || pos.Column < 1 || pos.Column > len(lines[pos.Line-1])+1 {
		t.Fatalf("%v: the place %v is none of %q", err, pos, text)
	}
}
