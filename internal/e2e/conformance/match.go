package conformance

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dlclark/regexp2"
)

// A mismatch tells where an answer differs from what the case expects.
type mismatch string

func (m mismatch) Error() string { return string(m) }

func differ(format string, args ...any) error { return mismatch(fmt.Sprintf(format, args...)) }

var (
	uuidForm = regexp.MustCompile(`(?i)^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	timeForm = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d`)
	digits   = regexp.MustCompile(`^\d+$`)
	variable = regexp.MustCompile(`\$\{([\w.-]+)\}`)
)

// parse reads JSON, keeping numbers as they are written. It returns nil for text that is not JSON.
func parse(data []byte) any {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil || dec.More() {
		return nil
	}
	return v
}

func describe(v any) string {
	data, _ := json.Marshal(v)
	if len(data) > 400 {
		return string(data[:400]) + "…"
	}
	return string(data)
}

// expand replaces ${name} in every string of v.
func expand(v any, vars map[string]string) any {
	switch v := v.(type) {
	case string:
		return variable.ReplaceAllStringFunc(v, func(ref string) string {
			if s, ok := vars[ref[2:len(ref)-1]]; ok {
				return s
			}
			return ref
		})
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = expand(v[i], vars)
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, sub := range v {
			out[expand(k, vars).(string)] = expand(sub, vars)
		}
		return out
	}
	return v
}

// lookup follows a path such as $.A.0.B; "$" alone is the whole value.
func lookup(v any, path string) (any, error) {
	for part := range strings.SplitSeq(path, ".") {
		if part == "$" || part == "" {
			continue
		}
		switch at := v.(type) {
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i >= len(at) {
				return nil, differ("%s: no element %s in %s", path, part, describe(v))
			}
			v = at[i]
		case map[string]any:
			sub, ok := at[part]
			if !ok {
				return nil, differ("%s: no key %s in %s", path, part, describe(v))
			}
			v = sub
		default:
			return nil, differ("%s: %s is neither list nor object", path, describe(v))
		}
	}
	return v, nil
}

// text is the form of a saved value that ${name} stands for.
func text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	if n, ok := v.(json.Number); ok {
		return n.String()
	}
	return describe(v)
}

// match reports how got differs from want; README.md tells what patterns mean.
func match(want, got any, where string, vars map[string]string) error {
	switch want := want.(type) {
	case string:
		return matchString(want, got, where, vars)
	case map[string]any:
		return matchObject(want, got, where, vars)
	case []any:
		list, ok := got.([]any)
		if !ok || len(list) != len(want) {
			return differ("%s: want %d elements, got %s", where, len(want), describe(got))
		}
		for i := range want {
			if err := match(want[i], list[i], fmt.Sprintf("%s[%d]", where, i), vars); err != nil {
				return err
			}
		}
		return nil
	case json.Number:
		if n, ok := got.(json.Number); ok && sameNumber(want, n) {
			return nil
		}
	default:
		if reflect.DeepEqual(want, got) {
			return nil
		}
	}
	return differ("%s: want %s, got %s", where, describe(want), describe(got))
}

func sameNumber(a, b json.Number) bool {
	if a == b {
		return true
	}
	x, errX := a.Float64()
	y, errY := b.Float64()
	return errX == nil && errY == nil && x == y
}

func matchObject(want map[string]any, got any, where string, vars map[string]string) error {
	if items, ok := want["<contains>"]; ok {
		return matchContains(items.([]any), got, where, vars)
	}
	if items, ok := want["<unordered>"]; ok {
		if list, isList := got.([]any); !isList || len(list) != len(items.([]any)) {
			return differ("%s: want %d elements, got %s", where, len(items.([]any)), describe(got))
		}
		return matchContains(items.([]any), got, where, vars)
	}
	if each, ok := want["<each>"]; ok {
		list, isList := got.([]any)
		if !isList {
			return differ("%s: want a list, got %s", where, describe(got))
		}
		for i, item := range list {
			if err := match(each, item, fmt.Sprintf("%s[%d]", where, i), vars); err != nil {
				return err
			}
		}
		return nil
	}
	object, ok := got.(map[string]any)
	if !ok {
		return differ("%s: want an object, got %s", where, describe(got))
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		sub := want[key]
		if key == "<only>" {
			for have := range object {
				if _, allowed := sub.(map[string]any)[have]; !allowed {
					return differ("%s: unexpected key %q", where, have)
				}
			}
			continue
		}
		have, present := object[key]
		switch {
		case sub == "<absent>" && present:
			return differ("%s.%s: should be absent, got %s", where, key, describe(have))
		case sub == "<absent>":
		case !present:
			return differ("%s.%s: missing; keys are %v", where, key, slices.Sorted(maps.Keys(object)))
		default:
			if err := match(sub, have, where+"."+key, vars); err != nil {
				return err
			}
		}
	}
	return nil
}

func matchContains(wants []any, got any, where string, vars map[string]string) error {
	list, ok := got.([]any)
	if !ok {
		return differ("%s: want a list, got %s", where, describe(got))
	}
	free := slices.Clone(list)
	for _, want := range wants {
		i := slices.IndexFunc(free, func(item any) bool { return match(want, item, where, vars) == nil })
		if i < 0 {
			return differ("%s: no element matches %s in %s", where, describe(want), describe(got))
		}
		free = slices.Delete(free, i, i+1)
	}
	return nil
}

func matchString(want string, got any, where string, vars map[string]string) error {
	if !strings.HasPrefix(want, "<") || !strings.HasSuffix(want, ">") {
		if got == any(want) {
			return nil
		}
		return differ("%s: want %q, got %s", where, want, describe(got))
	}
	kind, arg, _ := strings.Cut(want[1:len(want)-1], ":")
	s, isString := got.(string)
	n, isNumber := got.(json.Number)
	value := 0.0
	switch {
	case isNumber:
		value, _ = n.Float64()
	case isString:
		value, _ = strconv.ParseFloat(s, 64)
	}
	size := -1
	switch v := got.(type) {
	case string:
		size = len([]rune(v))
	case []any:
		size = len(v)
	case map[string]any:
		size = len(v)
	}
	ok := false
	switch kind {
	case "any":
		ok = true
	case "string":
		ok = isString
	case "nonempty":
		ok = isString && s != ""
	case "int":
		ok = isNumber && value == float64(int64(value)) || isString && digits.MatchString(s)
	case "positive":
		ok = isNumber && value > 0 || isString && digits.MatchString(s) && value > 0
	case "number":
		ok = isNumber
	case "bool":
		_, ok = got.(bool)
	case "object":
		_, ok = got.(map[string]any)
	case "array":
		_, ok = got.([]any)
	case "null-or-empty":
		ok = got == nil || size == 0
	case "uuid":
		ok = isString && uuidForm.MatchString(s)
	case "time":
		ok = isString && timeForm.MatchString(s)
	case "pem":
		ok = isString && strings.HasPrefix(s, "-----BEGIN ")
	case "re":
		// The cases were written for an engine with lookahead, which package regexp has not.
		re, err := regexp2.Compile(arg, regexp2.None)
		if err != nil {
			return differ("%s: the case's pattern %s: %v", where, want, err)
		}
		re.MatchTimeout = 10 * time.Second
		found, err := re.MatchString(s)
		ok = isString && err == nil && found
	case "gt":
		if saved, has := vars[arg]; has {
			arg = saved
		}
		bound, err := strconv.ParseFloat(arg, 64)
		ok = err == nil && (isNumber || isString) && value > bound
	case "size", "min-size":
		bound, err := strconv.Atoi(arg)
		ok = err == nil && size >= 0 && (kind == "size" && size == bound || kind == "min-size" && size >= bound)
	case "base64":
		data, err := base64.StdEncoding.DecodeString(s)
		ok = isString && err == nil && string(data) == arg
	default:
		return differ("%s: the case uses an unknown pattern %s", where, want)
	}
	if !ok {
		return differ("%s: want %s, got %s", where, want, describe(got))
	}
	return nil
}
