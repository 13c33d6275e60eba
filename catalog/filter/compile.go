package filter

import (
	"reflect"
	"regexp"
	"strconv"
	"strings"
)

// hidden lists field names that no selector reaches.
var hidden = map[string]bool{
	"CreateIndex": true, "ModifyIndex": true, "Locality": true, "ServiceLocality": true, "Config": true,
	"Definition": true, "ContentHash": true, "RaftIndex": true,
}

func compile(n node, t reflect.Type) (predicate, error) {
	switch n := n.(type) {
	case *junction:
		parts := make([]predicate, len(n.parts))
		for i, part := range n.parts {
			p, err := compile(part, t)
			if err != nil {
				return nil, err
			}
			parts[i] = p
		}
		and := n.and
		return func(v reflect.Value) bool {
			for _, p := range parts {
				if p(v) != and {
					return !and
				}
			}
			return and
		}, nil
	case *negation:
		p, err := compile(n.of, t)
		if err != nil {
			return nil, err
		}
		return func(v reflect.Value) bool { return !p(v) }, nil
	}
	c := n.(*comparison)
	return c.resolve(t, 0)
}

// resolve compiles the selector from position i on, for values of type t.
func (c *comparison) resolve(t reflect.Type, i int) (predicate, error) {
	if t.Kind() == reflect.Pointer {
		p, err := c.resolve(t.Elem(), i)
		if err != nil {
			return nil, err
		}
		zero := reflect.Zero(t.Elem())
		return func(v reflect.Value) bool {
			if v.IsNil() {
				return p(zero)
			}
			return p(v.Elem())
		}, nil
	}
	if i == len(c.selector) {
		return c.leaf(t)
	}
	invalid := errorf("Selector %q is not valid", strings.Join(c.selector[:i+1], "."))
	switch t.Kind() {
	case reflect.Struct:
		f, ok := field(t, c.selector[i])
		if !ok {
			return nil, invalid
		}
		p, err := c.resolve(f.Type, i+1)
		if err != nil {
			return nil, err
		}
		index := f.Index
		if len(index) == 1 {
			at := index[0]
			return func(v reflect.Value) bool { return p(v.Field(at)) }, nil
		}
		return func(v reflect.Value) bool { return p(v.FieldByIndex(index)) }, nil
	case reflect.Map:
		if t.Key().Kind() != reflect.String {
			return nil, invalid
		}
		p, err := c.resolve(t.Elem(), i+1)
		if err != nil {
			return nil, err
		}
		key := reflect.ValueOf(c.selector[i]).Convert(t.Key())
		// What is missing equals nothing, contains nothing and is empty.
		missing := c.negated != (c.op == opEmpty)
		return func(v reflect.Value) bool {
			e := v.MapIndex(key)
			if !e.IsValid() {
				return missing
			}
			return p(e)
		}, nil
	case reflect.Slice:
		if elem := indirect(t.Elem()); elem.Kind() != reflect.Struct && elem.Kind() != reflect.Map {
			return nil, invalid
		}
		p, err := c.resolve(t.Elem(), i)
		if err != nil {
			return nil, err
		}
		return func(v reflect.Value) bool {
			for k := range v.Len() {
				if p(v.Index(k)) {
					return true
				}
			}
			return false
		}, nil
	}
	return nil, invalid
}

func indirect(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// field finds the selectable field of a struct with this JSON name.
func field(t reflect.Type, name string) (reflect.StructField, bool) {
	if hidden[name] {
		return reflect.StructField{}, false
	}
	for _, f := range reflect.VisibleFields(t) {
		if !f.IsExported() || f.Anonymous || f.Tag.Get("filter") == "-" {
			continue
		}
		tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if tag == "-" {
			continue
		}
		if tag == "" {
			tag = f.Name
		}
		if tag == name {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

func (c *comparison) name() string { return strings.Join(c.selector, ".") }

// leaf compiles the comparison itself, for values of type t.
func (c *comparison) leaf(t reflect.Type) (predicate, error) {
	name := operatorNames[c.op][0]
	if c.negated {
		name = operatorNames[c.op][1]
	}
	invalid := errorf("Invalid match operator %q for selector %q", name, c.name())
	negated := c.negated
	switch t.Kind() {
	case reflect.Struct, reflect.Interface, reflect.Func, reflect.Chan, reflect.Array:
		// An object has no operator of its own.
		return nil, errorf("Selector %q is not valid", c.name())
	case reflect.Map:
		switch {
		case c.op == opEmpty:
			return func(v reflect.Value) bool { return (v.Len() == 0) != negated }, nil
		case c.op == opIn && t.Key().Kind() == reflect.String:
			key := reflect.ValueOf(c.value).Convert(t.Key())
			return func(v reflect.Value) bool { return v.MapIndex(key).IsValid() != negated }, nil
		}
		return nil, invalid
	case reflect.Slice:
		switch {
		case c.op == opEmpty:
			return func(v reflect.Value) bool { return (v.Len() == 0) != negated }, nil
		case c.op == opIn && scalar(t.Elem().Kind()):
			equal, err := c.equal(t.Elem())
			if err != nil {
				return nil, err
			}
			return func(v reflect.Value) bool {
				for k := range v.Len() {
					if equal(v.Index(k)) {
						return !negated
					}
				}
				return negated
			}, nil
		}
		return nil, invalid
	case reflect.String:
		value := c.value
		switch c.op {
		case opIn:
			return func(v reflect.Value) bool { return strings.Contains(v.String(), value) != negated }, nil
		case opMatches:
			re, err := regexp.Compile(value)
			if err != nil {
				return nil, errorf("Failed to compile regular expression %q: %v", value, err)
			}
			return func(v reflect.Value) bool { return re.MatchString(v.String()) != negated }, nil
		}
	}
	if c.op != opEqual || !scalar(t.Kind()) {
		return nil, invalid
	}
	equal, err := c.equal(t)
	if err != nil {
		return nil, err
	}
	return func(v reflect.Value) bool { return equal(v) != negated }, nil
}

func scalar(k reflect.Kind) bool {
	return k == reflect.String || k >= reflect.Bool && k <= reflect.Float64 && k != reflect.Uintptr
}

// equal compiles the comparison of a scalar with the value.
func (c *comparison) equal(t reflect.Type) (predicate, error) {
	coerce := func(err error) error {
		return errorf("Failed to coerce value %q for selector %q: %v", c.value, c.name(), err)
	}
	switch {
	case t.Kind() == reflect.String:
		want := c.value
		return func(v reflect.Value) bool { return v.String() == want }, nil
	case t.Kind() == reflect.Bool:
		want, err := strconv.ParseBool(c.value)
		if err != nil {
			return nil, coerce(err)
		}
		return func(v reflect.Value) bool { return v.Bool() == want }, nil
	case t.Kind() <= reflect.Int64:
		want, err := strconv.ParseInt(c.value, 0, 64)
		if err != nil {
			return nil, coerce(err)
		}
		return func(v reflect.Value) bool { return v.Int() == want }, nil
	case t.Kind() <= reflect.Uint64:
		want, err := strconv.ParseUint(c.value, 0, 64)
		if err != nil {
			return nil, coerce(err)
		}
		return func(v reflect.Value) bool { return v.Uint() == want }, nil
	}
	want, err := strconv.ParseFloat(c.value, 64)
	if err != nil {
		return nil, coerce(err)
	}
	return func(v reflect.Value) bool { return v.Float() == want }, nil
}
