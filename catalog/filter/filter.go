// Package filter compiles the expressions of the filter parameter (spec/registry.md section 2) for a type of element.
//
// An expression is parsed, checked against the type, and turned into functions once; matching an element then reads
// only the fields the expression names. The published expression libraries either check no types before data is seen
// or need exponential time for nested parentheses, and clients match on the texts of these checks; hence this one.
//
// A selector is a chain of the JSON names of fields. Fields that are not selectable are Locality, Config, Definition,
// the indexes, and those with the tag `filter:"-"`.
package filter

import (
	"fmt"
	"reflect"
)

// MaxLength bounds an expression, in bytes.
const MaxLength = 64 << 10

// An Error tells why an expression is not valid.
type Error struct{ Text string }

func (e *Error) Error() string { return "Failed to create boolean expression evaluator: " + e.Text }

func errorf(format string, args ...any) *Error { return &Error{fmt.Sprintf(format, args...)} }

// A Filter selects elements of type T. The nil Filter matches everything. A Filter is safe for concurrent use.
type Filter[T any] struct{ match predicate }

// predicate decides on one element, or on one field of it.
type predicate func(v reflect.Value) bool

// Compile makes a filter of the expression; the empty expression gives nil. T is a struct or a pointer to one. An
// error is an *Error.
func Compile[T any](expression string) (*Filter[T], error) {
	if expression == "" {
		return nil, nil
	}
	if len(expression) > MaxLength {
		return nil, errorf("expression of %d bytes is longer than %d", len(expression), MaxLength)
	}
	tree, err := parse(expression)
	if err != nil {
		return nil, err
	}
	match, err := compile(tree, reflect.TypeFor[T]())
	if err != nil {
		return nil, err
	}
	return &Filter[T]{match}, nil
}

// Match reports whether the element is selected.
func (f *Filter[T]) Match(element T) bool { return f == nil || f.match(reflect.ValueOf(element)) }

// Select returns the elements that match, in a slice of their own unless all do.
func (f *Filter[T]) Select(elements []T) []T {
	if f == nil {
		return elements
	}
	kept := make([]T, 0, len(elements))
	for _, e := range elements {
		if f.Match(e) {
			kept = append(kept, e)
		}
	}
	return kept
}
