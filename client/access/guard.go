package access

import (
	"errors"

	"github.com/sarnmesh/sarn/acl"
)

// A Guarded value is out of reach without a permit: a handler that forgets to ask the authorizer does not compile.
type Guarded[T any] struct{ v T }

// Guard puts a value out of reach.
func Guard[T any](v T) Guarded[T] { return Guarded[T]{v} }

// With returns the value to the holder of a permit.
func (g Guarded[T]) With(p acl.Permit) (T, error) {
	if !p.Given() {
		var none T
		return none, ErrNoPermit
	}
	return g.v, nil
}

// ErrNoPermit reports a fault of a handler: it asked nobody.
var ErrNoPermit = errors.New("the request was not authorized")
