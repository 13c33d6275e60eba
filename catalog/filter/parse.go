package filter

import (
	"strconv"
	"strings"
)

// An operator compares a field with a value, or looks whether it is empty. Each has a negation.
type operator uint8

const (
	opEqual operator = iota
	opIn
	opEmpty
	opMatches
)

var operatorNames = map[operator][2]string{
	opEqual: {"Equal", "Not Equal"}, opIn: {"In", "Not In"}, opEmpty: {"Is Empty", "Is Not Empty"},
	opMatches: {"Matches", "Not Matches"},
}

// A node of the syntax tree: an *any/all of parts, a *negation or a *comparison.
type node interface{ isNode() }

// A junction is true when one (or, with and set, every) part is.
type junction struct {
	and   bool
	parts []node
}

type negation struct{ of node }

type comparison struct {
	selector []string
	op       operator
	negated  bool
	value    string
}

func (*junction) isNode()   {}
func (*negation) isNode()   {}
func (*comparison) isNode() {}

// maxDepth bounds how deep an expression is nested.
const maxDepth = 500

// A parser reads the expression from left to right; a syntax error ends it by a panic with an *Error.
type parser struct {
	text string
	tok  token
	next int // offset behind tok
	deep int
}

type tokenKind uint8

const (
	tokEnd    tokenKind = iota
	tokWord             // identifier or keyword
	tokNumber           // as written
	tokString           // unquoted
	tokPunct            // == != ( ) [ ] .
)

type token struct {
	kind   tokenKind
	text   string
	at     int
	spaced bool // white space precedes it
}

func parse(text string) (n node, err error) {
	p := &parser{text: text}
	defer func() {
		if r := recover(); r != nil {
			e, ok := r.(*Error)
			if !ok {
				panic(r)
			}
			err = e
		}
	}()
	p.advance()
	n = p.or()
	if p.tok.kind != tokEnd {
		p.fail(p.tok.at, `"and", "or" or the end`)
	}
	return n, nil
}

func (p *parser) fail(at int, expected string) {
	before := p.text[:at]
	line := 1 + strings.Count(before, "\n")
	column := at - strings.LastIndexByte(before, '\n')
	panic(errorf("%d:%d (%d): no match found, expected: %s", line, column, at, expected))
}

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
func isDigit(c byte) bool  { return '0' <= c && c <= '9' }
func isSpace(c byte) bool  { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// advance reads the next token.
func (p *parser) advance() {
	i := p.next
	for i < len(p.text) && isSpace(p.text[i]) {
		i++
	}
	p.tok = token{at: i, spaced: i > p.next}
	if i == len(p.text) {
		p.next = i
		return
	}
	end := i + 1
	switch c := p.text[i]; {
	case isLetter(c):
		for end < len(p.text) && (isLetter(p.text[end]) || isDigit(p.text[end]) || p.text[end] == '_') {
			end++
		}
		p.tok.kind, p.tok.text = tokWord, p.text[i:end]
	case isDigit(c), c == '-':
		end = p.number(i)
		p.tok.kind, p.tok.text = tokNumber, p.text[i:end]
	case c == '"', c == '`':
		for end < len(p.text) && p.text[end] != c {
			if c == '"' && p.text[end] == '\\' {
				end++
			}
			end++
		}
		if end >= len(p.text) {
			p.fail(i, "the end of the string")
		}
		end++
		s, err := strconv.Unquote(p.text[i:end])
		if err != nil {
			p.fail(i, "a string")
		}
		p.tok.kind, p.tok.text = tokString, s
	case c == '(', c == ')', c == '[', c == ']', c == '.':
		p.tok.kind, p.tok.text = tokPunct, p.text[i:end]
	case (c == '=' || c == '!') && end < len(p.text) && p.text[end] == '=':
		end++
		p.tok.kind, p.tok.text = tokPunct, p.text[i:end]
	default:
		p.fail(i, "a selector, a value or an operator")
	}
	p.next = end
}

// number returns the offset behind the number at i.
func (p *parser) number(i int) int {
	start := i
	if p.text[i] == '-' {
		i++
	}
	digits := func() {
		from := i
		for i < len(p.text) && isDigit(p.text[i]) {
			i++
		}
		if i == from {
			p.fail(start, "a number")
		}
	}
	if i < len(p.text) && p.text[i] == '0' {
		i++
	} else {
		digits()
	}
	if i < len(p.text) && p.text[i] == '.' {
		i++
		digits()
	}
	if i < len(p.text) && !isSpace(p.text[i]) && p.text[i] != ')' {
		p.fail(start, "a number")
	}
	return i
}

func (p *parser) is(kind tokenKind, text string) bool {
	return p.tok.kind == kind && p.tok.text == text
}

// accept reads the token if it is the one given.
func (p *parser) accept(kind tokenKind, text string) bool {
	if !p.is(kind, text) {
		return false
	}
	p.advance()
	return true
}

func (p *parser) expect(kind tokenKind, text string) {
	if !p.accept(kind, text) {
		p.fail(p.tok.at, strconv.Quote(text))
	}
}

func (p *parser) or() node  { return p.junction("or", false, p.and) }
func (p *parser) and() node { return p.junction("and", true, p.not) }

func (p *parser) junction(word string, and bool, part func() node) node {
	first := part()
	if !p.is(tokWord, word) {
		return first
	}
	j := &junction{and, []node{first}}
	for p.accept(tokWord, word) {
		j.parts = append(j.parts, part())
	}
	return j
}

func (p *parser) not() node {
	if p.deep++; p.deep > maxDepth {
		p.fail(p.tok.at, "less nesting")
	}
	defer func() { p.deep-- }()
	switch {
	case p.is(tokWord, "not") && !p.opFollows():
		p.advance()
		return &negation{p.not()}
	case p.accept(tokPunct, "("):
		n := p.or()
		p.expect(tokPunct, ")")
		return n
	}
	return p.match()
}

// opFollows reports whether == or != comes behind the current token: then a keyword is a selector.
func (p *parser) opFollows() bool {
	rest := strings.TrimLeft(p.text[p.next:], " \t\r\n")
	return strings.HasPrefix(rest, "==") || strings.HasPrefix(rest, "!=")
}

// match reads a comparison. Whether it begins with a selector or a value shows only behind that.
func (p *parser) match() node {
	var c comparison
	start := p.tok.at
	switch p.tok.kind {
	case tokWord:
		c.selector = p.selector()
	case tokNumber, tokString:
		c.value = p.tok.text
		p.advance()
	default:
		p.fail(p.tok.at, "a selector or a value")
	}
	opAt := p.tok.at
	switch {
	case p.accept(tokPunct, "=="):
		c.op = opEqual
	case p.accept(tokPunct, "!="):
		c.op, c.negated = opEqual, true
	case p.accept(tokWord, "is"):
		c.op, c.negated = opEmpty, p.accept(tokWord, "not")
		p.expect(tokWord, "empty")
	default:
		c.negated = p.accept(tokWord, "not")
		switch {
		case p.accept(tokWord, "contains"):
			c.op = opIn
		case p.accept(tokWord, "matches"):
			c.op = opMatches
		case p.accept(tokWord, "in"):
			c.op = opIn
			if c.selector != nil {
				c.value = strings.Join(c.selector, ".")
			}
			if p.tok.kind != tokWord {
				p.fail(p.tok.at, "a selector")
			}
			c.selector = p.selector()
			return &c
		default:
			p.fail(opAt, "an operator")
		}
	}
	if c.selector == nil {
		p.fail(start, "a selector")
	}
	if c.op != opEmpty {
		c.value = p.value()
	}
	return &c
}

// selector reads an identifier and what is chained to it without white space.
func (p *parser) selector() []string {
	path := []string{p.tok.text}
	p.advance()
	for !p.tok.spaced {
		switch {
		case p.accept(tokPunct, "."):
			if p.tok.kind != tokWord || p.tok.spaced {
				p.fail(p.tok.at, "an identifier")
			}
			path = append(path, p.tok.text)
			p.advance()
		case p.accept(tokPunct, "["):
			if p.tok.kind != tokString {
				p.fail(p.tok.at, "a string")
			}
			path = append(path, p.tok.text)
			p.advance()
			p.expect(tokPunct, "]")
		default:
			return path
		}
	}
	return path
}

func (p *parser) value() string {
	switch p.tok.kind {
	case tokWord:
		return strings.Join(p.selector(), ".")
	case tokNumber, tokString:
		v := p.tok.text
		p.advance()
		return v
	}
	p.fail(p.tok.at, "a value")
	return ""
}
