package model

import (
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"strings"
)

// A StringMatch tells whether a string fits a pattern. Make one with
// NewStringMatch; the zero StringMatch matches nothing.
type StringMatch struct {
	kind       StringMatchKind
	pattern    string
	ignoreCase bool
	re         *regexp.Regexp
	suffix     string // with which all that the expression matches ends; may be empty
}

// A StringMatchKind is a way to compare.
type StringMatchKind uint8

// The kinds of comparison.
const (
	MatchNothing StringMatchKind = iota
	MatchExact
	MatchPrefix
	MatchSuffix
	MatchContains
	MatchRegex // the whole string must match
)

// maxRegexLen bounds a pattern; the programs of longer ones cost more memory
// than any rule is worth.
const maxRegexLen = 64 << 10

// NewStringMatch returns a matcher. Case can be ignored for all kinds but a
// regular expression. An empty pattern is only good for an exact match.
func NewStringMatch(kind StringMatchKind, pattern string, ignoreCase bool) (StringMatch, error) {
	m := StringMatch{kind: kind, pattern: pattern, ignoreCase: ignoreCase}
	switch kind {
	case MatchExact:
	case MatchPrefix, MatchSuffix, MatchContains:
		if pattern == "" {
			return StringMatch{}, errors.New("empty pattern")
		}
	case MatchRegex:
		if ignoreCase {
			return StringMatch{}, errors.New("ignore_case has no meaning for a regular expression")
		}
		if len(pattern) > maxRegexLen {
			return StringMatch{}, fmt.Errorf("regular expression of %d bytes; at most %d are allowed", len(pattern), maxRegexLen)
		}
		// Compiled alone first: wrapping could make a broken pattern valid.
		if _, err := regexp.Compile(pattern); err != nil {
			return StringMatch{}, err
		}
		re, err := regexp.Compile(`\A(?:` + pattern + `)\z`)
		if err != nil {
			return StringMatch{}, err
		}
		m.re, m.suffix = re, literalSuffix(pattern)
	default:
		return StringMatch{}, errors.New("no match pattern")
	}
	if ignoreCase {
		m.pattern = LowerASCII(pattern)
	}
	return m, nil
}

// literalSuffix returns the text with which every string ends that an expression matches as a whole.
func literalSuffix(pattern string) string {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil || re.Op != syntax.OpConcat {
		return ""
	}
	last := len(re.Sub) - 1
	if last > 0 && re.Sub[last].Op == syntax.OpEndText {
		last--
	}
	if l := re.Sub[last]; l.Op == syntax.OpLiteral && l.Flags&syntax.FoldCase == 0 {
		return string(l.Rune)
	}
	return ""
}

// Match reports whether s fits. Bytes are compared as they are: nothing is
// normalized, and a NUL is a byte like any other. Only the case of ASCII
// letters can be ignored: other alphabets have letters that look alike.
func (m *StringMatch) Match(s string) bool {
	if m.ignoreCase {
		return m.matchFold(s)
	}
	switch m.kind {
	case MatchExact:
		return s == m.pattern
	case MatchPrefix:
		return strings.HasPrefix(s, m.pattern)
	case MatchSuffix:
		return strings.HasSuffix(s, m.pattern)
	case MatchContains:
		return strings.Contains(s, m.pattern)
	case MatchRegex:
		// Names of services differ at their ends, so most of many policies are done with here.
		return strings.HasSuffix(s, m.suffix) && m.re.MatchString(s)
	}
	return false
}

func (m *StringMatch) matchFold(s string) bool {
	n := len(m.pattern)
	if len(s) < n {
		return false
	}
	switch m.kind {
	case MatchExact:
		return len(s) == n && EqualFold(s, m.pattern)
	case MatchPrefix:
		return EqualFold(s[:n], m.pattern)
	case MatchSuffix:
		return EqualFold(s[len(s)-n:], m.pattern)
	case MatchContains:
		for i := range len(s) - n + 1 {
			if EqualFold(s[i:i+n], m.pattern) {
				return true
			}
		}
	}
	return false
}

// EqualFold reports whether s is equal to lower, which is in lower case,
// but for the case of ASCII letters.
func EqualFold(s, lower string) bool {
	if len(s) != len(lower) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != lower[i] && (c < 'A' || c > 'Z' || c|0x20 != lower[i]) {
			return false
		}
	}
	return true
}

// LowerASCII returns s with its ASCII letters in lower case.
func LowerASCII(s string) string {
	for i := range len(s) {
		if s[i] < 'A' || s[i] > 'Z' {
			continue
		}
		b := []byte(s)
		for ; i < len(b); i++ {
			if b[i] >= 'A' && b[i] <= 'Z' {
				b[i] |= 0x20
			}
		}
		return string(b)
	}
	return s
}

// Kind returns the way of comparison and the pattern, lower-cased if case is ignored.
func (m StringMatch) Kind() (StringMatchKind, string) { return m.kind, m.pattern }

// Equal reports whether two matchers match the same strings for the same reason.
func (m StringMatch) Equal(o StringMatch) bool {
	return m.kind == o.kind && m.pattern == o.pattern && m.ignoreCase == o.ignoreCase
}
