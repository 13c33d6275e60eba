package verb

import (
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
)

// Strings adds a repeatable flag.
func Strings(f *flag.FlagSet, name, usage string) *[]string {
	list := new([]string)
	f.Func(name, usage, func(s string) error { *list = append(*list, s); return nil })
	return list
}

// Pairs adds a repeatable flag of the form key=value.
func Pairs(f *flag.FlagSet, name, usage string) *map[string]string {
	m := new(map[string]string)
	f.Func(name, usage, func(s string) error {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("Missing \"=\" value in argument: %s", s) //nolint:staticcheck // clients match the text
		}
		if *m == nil {
			*m = map[string]string{}
		}
		(*m)[k] = v
		return nil
	})
	return m
}

// An Option is a flag that knows whether it was given.
type Option[T any] struct {
	Value T
	Given bool
}

// Opt adds a flag that knows whether it was given. parse reads its text.
func Opt[T any](f *flag.FlagSet, name, usage string, parse func(string) (T, error)) *Option[T] {
	o := new(Option[T])
	set := func(s string) error {
		v, err := parse(s)
		if err == nil {
			o.Value, o.Given = v, true
		}
		return err
	}
	if _, isBool := any(o.Value).(bool); isBool {
		f.BoolFunc(name, usage, set)
	} else {
		f.Func(name, usage, set)
	}
	return o
}

// Data reads an argument that may name its content: "-" is standard input, "@path" a file, anything else itself.
func (c *Call) Data(arg string) (string, error) {
	switch {
	case arg == "-":
		data, err := io.ReadAll(c.In)
		if err != nil {
			return "", fmt.Errorf("Failed to read stdin: %w", err) //nolint:staticcheck // shown as it is
		}
		return string(data), nil
	case strings.HasPrefix(arg, "@"):
		data, err := os.ReadFile(arg[1:])
		if err != nil {
			return "", fmt.Errorf("Failed to read file: %w", err) //nolint:staticcheck // clients match the text
		}
		return string(data), nil
	}
	return arg, nil
}

// File reads an argument that names a file: "-" is standard input.
func (c *Call) File(arg string) (string, error) {
	if arg == "-" {
		return c.Data(arg)
	}
	return c.Data("@" + arg)
}

// JoinPairs shows a map as "k=v, k=v" in the order of its keys, with the given separator.
func JoinPairs(m map[string]string, sep string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+"="+m[k])
	}
	return strings.Join(out, sep)
}
