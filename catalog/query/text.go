package query

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// A text is a string of a template: plain pieces and expressions in turn. An expression stands between "${" and "}";
// "$${" is a plain "${". It is
//
//	expression = variable | call | string | integer | "(" expression ")"
//	call       = name "(" [ expression { "," expression } ] ")"
//
// with variables such as name.full, and strings in double quotes with \" and \\ in them.
type text []piece

type piece struct {
	plain string
	expr  *expr // nil for a plain piece
}

// An expr is one expression. Its value is a string.
type expr struct {
	kind exprKind
	name string // of a variable or function, or the value of a constant
	args []*expr
}

type exprKind uint8

const (
	constant exprKind = iota
	variable
	function
)

// maxNesting bounds how deep expressions may nest.
const maxNesting = 32

// parseText parses a string of a template.
func parseText(s string) (text, error) {
	var t text
	var plain strings.Builder
	for s != "" {
		at := strings.IndexByte(s, '$')
		if at < 0 {
			plain.WriteString(s)
			break
		}
		plain.WriteString(s[:at])
		s = s[at:]
		switch {
		case strings.HasPrefix(s, "$${"):
			plain.WriteString("${")
			s = s[3:]
		case strings.HasPrefix(s, "${"):
			if plain.Len() > 0 {
				t = append(t, piece{plain: plain.String()})
				plain.Reset()
			}
			p := &exprParser{rest: s[2:]}
			e, err := p.expression(0)
			if err == nil {
				err = p.expect('}')
			}
			if err != nil {
				return nil, err
			}
			t, s = append(t, piece{expr: e}), p.rest
		default:
			plain.WriteByte('$')
			s = s[1:]
		}
	}
	if plain.Len() > 0 {
		t = append(t, piece{plain: plain.String()})
	}
	return t, nil
}

// An exprParser reads expressions from the beginning of a string.
type exprParser struct{ rest string }

var errUnended = errors.New("expression is not ended with '}'")

func (p *exprParser) space() { p.rest = strings.TrimLeft(p.rest, " \t\r\n") }

// next returns the next byte that is no space, 0 at the end.
func (p *exprParser) next() byte {
	if p.space(); p.rest == "" {
		return 0
	}
	return p.rest[0]
}

// expect takes the next byte, which must be c.
func (p *exprParser) expect(c byte) error {
	switch got := p.next(); got {
	case c:
		p.rest = p.rest[1:]
		return nil
	case 0:
		return errUnended
	default:
		return fmt.Errorf("expected %q but found %q", c, got)
	}
}

func (p *exprParser) expression(depth int) (*expr, error) {
	if depth > maxNesting {
		return nil, errors.New("expression nests too deep")
	}
	switch c := p.next(); {
	case c == 0:
		return nil, errUnended
	case c == '(':
		p.rest = p.rest[1:]
		e, err := p.expression(depth + 1)
		if err == nil {
			err = p.expect(')')
		}
		return e, err
	case c == '"':
		return p.quoted()
	case c == '-' || '0' <= c && c <= '9':
		n := 1 + len(p.rest[1:]) - len(strings.TrimLeft(p.rest[1:], "0123456789"))
		digits := p.rest[:n]
		if _, err := strconv.Atoi(digits); err != nil {
			return nil, fmt.Errorf("%q is not an integer", digits)
		}
		p.rest = p.rest[n:]
		return &expr{kind: constant, name: digits}, nil
	case nameByte(c):
		return p.named(depth)
	default:
		return nil, fmt.Errorf("unexpected %q", c)
	}
}

func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '.'
}

// quoted reads a string constant.
func (p *exprParser) quoted() (*expr, error) {
	var b strings.Builder
	for i := 1; i < len(p.rest); i++ {
		switch c := p.rest[i]; {
		case c == '"':
			p.rest = p.rest[i+1:]
			return &expr{kind: constant, name: b.String()}, nil
		case c == '\\' && i+1 < len(p.rest) && (p.rest[i+1] == '"' || p.rest[i+1] == '\\'):
			i++
			b.WriteByte(p.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	return nil, errors.New("string is not ended with '\"'")
}

// named reads a variable or a call.
func (p *exprParser) named(depth int) (*expr, error) {
	n := 0
	for n < len(p.rest) && nameByte(p.rest[n]) {
		n++
	}
	e := &expr{kind: variable, name: p.rest[:n]}
	if p.rest = p.rest[n:]; p.next() != '(' {
		return e, nil
	}
	e.kind = function
	p.rest = p.rest[1:]
	if p.next() == ')' {
		p.rest = p.rest[1:]
		return e, nil
	}
	for {
		arg, err := p.expression(depth + 1)
		if err != nil {
			return nil, err
		}
		e.args = append(e.args, arg)
		if p.next() != ',' {
			return e, p.expect(')')
		}
		p.rest = p.rest[1:]
	}
}

// A scope gives variables and functions their values.
type scope struct {
	variables map[string]string
	match     []string // groups of the regular expression, the whole first
	room      int      // bytes that may still be rendered
}

// render returns the text with its expressions evaluated.
func (t text) render(s *scope) (string, error) {
	var b strings.Builder
	for _, p := range t {
		v := p.plain
		if p.expr != nil {
			var err error
			if v, err = s.eval(p.expr); err != nil {
				return "", err
			}
		}
		if s.room -= len(v); s.room < 0 {
			return "", errRendered
		}
		b.WriteString(v)
	}
	return b.String(), nil
}

func (s *scope) eval(e *expr) (string, error) {
	switch e.kind {
	case constant:
		return e.name, nil
	case variable:
		v, ok := s.variables[e.name]
		if !ok {
			return "", fmt.Errorf("unknown variable accessed: %s", e.name)
		}
		return v, nil
	}
	if e.name != "match" {
		return "", fmt.Errorf("unknown function called: %s", e.name)
	}
	if len(e.args) != 1 {
		return "", fmt.Errorf("match: expected 1 arguments, got %d", len(e.args))
	}
	arg, err := s.eval(e.args[0])
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(arg)
	if err != nil {
		return "", fmt.Errorf("match: argument should be an integer, got %q", arg)
	}
	if n < 0 || n >= len(s.match) {
		return "", nil
	}
	return s.match[n], nil
}
