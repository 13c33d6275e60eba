package configcmd

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/command/explaincmd"
	"github.com/sarnmesh/sarn/connect/explain"
	"github.com/sarnmesh/sarn/internal/spelling"
)

// A testFile is a file of configuration tests: entries and services, and what becomes of requests between them.
type testFile struct {
	name          string
	datacenter    string // default dc1
	defaultPolicy string // of intentions; default entry.Deny
	files         []string
	entries       []explaincmd.Document
	services      []testService
	cases         []*testCase
}

// A testService is some instances of a service that are alike.
type testService struct {
	line      int
	name      string
	kind      string // "sidecar" (default), "native", "plain", or "terminating-gateway"
	count     int    // default 1
	address   string // of the first; the others follow
	port      int
	status    string // default passing
	meta      map[string]string
	tags      []string
	upstreams []string
}

// A testCase is one request with what is expected of it; or, if refused is set, changes that are expected to be refused.
type testCase struct {
	line    int
	name    string
	request explain.Request
	changes []explaincmd.Document // on top of the entries of the file
	refused bool
	expect  []expectation
}

// An expectation is one fact about the outcome.
type expectation struct {
	line int
	what string // key in the file
	want any    // string, bool, float64, []string or map[string]float64, as expectations has it
}

// A parser reads a file and notes every mistake with its line.
type parser struct {
	file string
	errs []error
}

func (p *parser) errorf(line int, format string, args ...any) {
	if len(p.errs) < maxMistakes {
		p.errs = append(p.errs, fmt.Errorf("%s:%d: %w", p.file, line, fmt.Errorf(format, args...)))
	}
}

// maxMistakes bounds the text about a file that is wrong all over.
const maxMistakes = 50

// keyName makes spellings of a key one.
func keyName(s string) string { return strings.ToLower(strings.ReplaceAll(s, "-", "_")) }

// object reads the keys of a block with the functions for them.
func (p *parser) object(t config.Tree, what string, fields map[string]func(config.Branch)) {
	if !t.IsObject() {
		p.errorf(t.Line(), "%s is not a block", what)
		return
	}
	for _, b := range t.Keys() {
		if f := fields[keyName(b.Key)]; f != nil {
			f(b)
			continue
		}
		near := spelling.Nearest(keyName(b.Key), slices.Collect(maps.Keys(fields)))
		if near != "" {
			near = ", did you mean " + near + "?"
		}
		p.errorf(b.Line, "%q is not expected in %s%s", b.Key, what, near)
	}
}

func (p *parser) text(to *string) func(config.Branch) {
	return func(b config.Branch) {
		s, ok := b.Tree.Plain().(string)
		if !ok {
			p.errorf(b.Line, "%s is not a text", b.Key)
		}
		*to = s
	}
}

func (p *parser) texts(to *[]string) func(config.Branch) {
	return func(b config.Branch) {
		for _, t := range b.Tree.Items() {
			s, ok := t.Plain().(string)
			if !ok {
				p.errorf(t.Line(), "%s is not a list of texts", b.Key)
				return
			}
			*to = append(*to, s)
		}
	}
}

func (p *parser) whole(to *int, least, most int) func(config.Branch) {
	return func(b config.Branch) {
		n, ok := number(b.Tree.Plain())
		if !ok || n != float64(int(n)) || int(n) < least || int(n) > most {
			p.errorf(b.Line, "%s is not a whole number from %d to %d", b.Key, least, most)
			return
		}
		*to = int(n)
	}
}

func (p *parser) pairs(to *map[string]string) func(config.Branch) {
	return func(b config.Branch) {
		if !b.Tree.IsObject() {
			p.errorf(b.Line, "%s is not a block of texts", b.Key)
			return
		}
		for _, f := range b.Tree.Keys() {
			s, ok := f.Tree.Plain().(string)
			if !ok {
				p.errorf(f.Line, "%s is not a text", f.Key)
				continue
			}
			if *to == nil {
				*to = map[string]string{}
			}
			(*to)[f.Key] = s
		}
	}
}

func number(v any) (float64, bool) {
	switch n := v.(type) {
	case int:
		return float64(n), true
	case int64:
		return float64(n), true
	case float64:
		return n, true
	case json.Number:
		f, err := n.Float64()
		return f, err == nil
	}
	return 0, false
}

// named calls f for each block of a key with labels: test "name" { ... }.
func (p *parser) named(f func(name string, line int, t config.Tree)) func(config.Branch) {
	return func(b config.Branch) {
		for _, item := range b.Tree.Items() {
			if !item.IsObject() {
				p.errorf(b.Line, "%s has no name: it is written %s \"NAME\" { ... }", b.Key, b.Key)
				continue
			}
			for _, named := range item.Keys() {
				for _, one := range named.Tree.Items() {
					if !one.IsObject() {
						p.errorf(named.Line, "%s has no name: it is written %s \"NAME\" { ... }", b.Key, b.Key)
						continue
					}
					f(named.Key, named.Line, one)
				}
			}
		}
	}
}

func (p *parser) documents(to *[]explaincmd.Document) func(config.Branch) {
	return func(b config.Branch) {
		docs, _, err := explaincmd.Entries(p.file, b)
		if err != nil {
			p.errs = append(p.errs, err)
		}
		for _, d := range docs {
			if _, err := d.Change(); err != nil {
				p.errs = append(p.errs, err)
			}
		}
		*to = append(*to, docs...)
	}
}

// parseTests reads a file of tests in HCL or JSON. All mistakes are told at once, with file and line.
func parseTests(name string, data []byte) (*testFile, error) {
	tree, err := config.ParseTree(name, data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	f := &testFile{name: name, datacenter: "dc1", defaultPolicy: entry.Deny}
	p := &parser{file: name}
	p.object(tree, "a file of tests", map[string]func(config.Branch){
		"datacenter":     p.text(&f.datacenter),
		"default_policy": p.text(&f.defaultPolicy),
		"files":          p.texts(&f.files),
		"entry":          p.documents(&f.entries),
		"service":        p.named(func(name string, line int, t config.Tree) { f.services = append(f.services, p.service(name, line, t)) }),
		"test":           p.named(func(name string, line int, t config.Tree) { f.cases = append(f.cases, p.test(name, line, t)) }),
		"refused":        p.named(func(name string, line int, t config.Tree) { f.cases = append(f.cases, p.refusal(name, line, t)) }),
	})
	if f.datacenter == "" {
		p.errorf(1, "datacenter is empty")
	}
	if f.defaultPolicy != entry.Allow && f.defaultPolicy != entry.Deny {
		p.errorf(1, "default_policy is %q, want allow or deny", f.defaultPolicy)
	}
	if len(f.cases) == 0 {
		p.errorf(1, "there is no test in the file")
	}
	seen := map[string]bool{}
	for _, c := range f.cases {
		if seen[c.name] {
			p.errorf(c.line, "there is another test %q", c.name)
		}
		seen[c.name] = true
	}
	for _, pattern := range f.files {
		if _, err := filepath.Match(pattern, ""); err != nil {
			p.errorf(1, "files: %q is no pattern", pattern)
		}
	}
	return f, errors.Join(p.errs...)
}

// serviceKinds are the kinds of instances.
var serviceKinds = []string{kindSidecar, kindNative, kindPlain, catalog.KindTerminatingGateway}

const (
	kindSidecar = "sidecar"
	kindNative  = "native"
	kindPlain   = "plain"
)

func (p *parser) service(name string, line int, t config.Tree) testService {
	s := testService{line: line, name: name, kind: kindSidecar, count: 1, status: catalog.Passing, port: 8080}
	p.object(t, "a service", map[string]func(config.Branch){
		"kind": p.text(&s.kind), "count": p.whole(&s.count, 0, 1000), "address": p.text(&s.address), "port": p.whole(&s.port, 1, 65535),
		"status": p.text(&s.status), "meta": p.pairs(&s.meta), "tags": p.texts(&s.tags), "upstreams": p.texts(&s.upstreams),
	})
	if !slices.Contains(serviceKinds, s.kind) {
		p.errorf(line, "kind %q of service %s is none of %s", s.kind, name, strings.Join(serviceKinds, ", "))
	}
	if s.status != catalog.Passing && s.status != catalog.Warning && s.status != catalog.Critical {
		p.errorf(line, "status %q of service %s is none of passing, warning, critical", s.status, name)
	}
	if name == "" || name == entry.Wildcard {
		p.errorf(line, "a service can not have the name %q", name)
	}
	return s
}

func (p *parser) test(name string, line int, t config.Tree) *testCase {
	c := &testCase{line: line, name: name}
	r := &c.request
	expected := false
	p.object(t, "a test", map[string]func(config.Branch){
		"from": p.text(&r.From), "to": p.text(&r.To), "method": p.text(&r.Method), "path": p.text(&r.Path), "host": p.text(&r.Host),
		"port": p.whole(&r.Port, 1, 65535), "entry": p.documents(&c.changes), "delete": p.documents(&c.changes),
		"headers": func(b config.Branch) { r.Headers = append(r.Headers, p.headers(b)...) },
		"jwt":     func(b config.Branch) { r.JWT = p.jwt(b) },
		"expect": func(b config.Branch) {
			expected = true
			p.expect(c, b.Tree)
		},
	})
	checked := *r
	if err := checked.Check(); err != nil {
		p.errorf(line, "test %q: %v", name, err)
	}
	if !expected || len(c.expect) == 0 {
		p.errorf(line, "test %q expects nothing", name)
	}
	return c
}

func (p *parser) refusal(name string, line int, t config.Tree) *testCase {
	c := &testCase{line: line, name: name, refused: true}
	text := ""
	p.object(t, "a refusal", map[string]func(config.Branch){
		"entry": p.documents(&c.changes), "delete": p.documents(&c.changes), "error": p.text(&text),
	})
	c.expect = []expectation{{line, "error", text}}
	if len(c.changes) == 0 {
		p.errorf(line, "%q has nothing to refuse", name)
	}
	return c
}

// headers reads a block of texts, or of lists of texts, by name.
func (p *parser) headers(b config.Branch) (out []explain.Header) {
	if !b.Tree.IsObject() {
		p.errorf(b.Line, "headers is not a block of texts")
		return nil
	}
	for _, f := range b.Tree.Keys() {
		for _, v := range f.Tree.Items() {
			s, ok := v.Plain().(string)
			if !ok {
				p.errorf(f.Line, "header %s is not a text", f.Key)
				continue
			}
			out = append(out, explain.Header{Name: f.Key, Value: s})
		}
	}
	return out
}

// jwt reads a token, or a block of claims.
func (p *parser) jwt(b config.Branch) string {
	switch v := b.Tree.Plain().(type) {
	case string:
		return v
	case map[string]any:
		claims, err := json.Marshal(v)
		if err != nil {
			p.errorf(b.Line, "jwt: %v", err)
		}
		return string(claims)
	}
	p.errorf(b.Line, "jwt is neither a token nor a block of claims")
	return ""
}

// expectations are the facts that can be expected, with the form of what is wanted.
var expectations = map[string]any{
	"allowed": false, "verdict": "", "reason": "", "rule": "", "details": "", "status": 0.0, "intention": "", "permission": 0.0, "by_default": false,
	"route": "", "service": "", "subset": "", "datacenter": "", "peer": "", "path": "", "host": "", "protocol": "", "timeout": "", "retries": 0.0,
	"instances": 0.0, "healthy": 0.0, "failover": []string{}, "split": map[string]float64{}, "edits": []string{}, "problem": "",
}

func (p *parser) expect(c *testCase, t config.Tree) {
	fields := map[string]func(config.Branch){}
	for what, form := range expectations {
		fields[what] = func(b config.Branch) {
			if want, ok := p.want(b, form); ok {
				c.expect = append(c.expect, expectation{b.Line, what, want})
			}
		}
	}
	p.object(t, "expect", fields)
}

// want reads a value of a form.
func (p *parser) want(b config.Branch, form any) (any, bool) {
	v := b.Tree.Plain()
	switch form.(type) {
	case bool:
		if w, ok := v.(bool); ok {
			return w, true
		}
		p.errorf(b.Line, "%s is neither true nor false", b.Key)
	case float64:
		if n, ok := number(v); ok {
			return n, true
		}
		p.errorf(b.Line, "%s is not a number", b.Key)
	case string:
		if s, ok := v.(string); ok {
			return s, true
		}
		if n, ok := number(v); ok {
			return strconv.FormatFloat(n, 'f', -1, 64), true
		}
		p.errorf(b.Line, "%s is not a text", b.Key)
	case []string:
		list := []string{}
		before := len(p.errs)
		p.texts(&list)(b)
		return list, len(p.errs) == before
	case map[string]float64:
		if !b.Tree.IsObject() {
			p.errorf(b.Line, "%s is not a block of shares in percent", b.Key)
			return nil, false
		}
		shares := map[string]float64{}
		for _, f := range b.Tree.Keys() {
			n, ok := number(f.Tree.Plain())
			if !ok {
				p.errorf(f.Line, "the share of %s is not a number", f.Key)
				return nil, false
			}
			shares[f.Key] = n
		}
		return shares, true
	}
	return nil, false
}
