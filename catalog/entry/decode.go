package entry

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/catalog"
)

// Errors about the kind of a document. Their texts are matched by clients.
var (
	ErrNoKind   = errors.New("Payload does not contain a kind/Kind key at the top level")
	ErrKindType = errors.New("Kind value in payload is not a string")
)

// Decode makes an entry of an untyped document: JSON or HCL that was read into maps, lists and plain values. Keys are
// the names of the fields in any letter case, with or without underscores. A single block stands for a list of one and
// the other way round; a number or truth value may be given as text. All unknown keys are reported at once.
func Decode(doc map[string]any) (Entry, error) {
	raw, ok := lookup(doc, "Kind")
	if !ok {
		return nil, ErrNoKind
	}
	kind, ok := raw.(string)
	if !ok {
		return nil, ErrKindType
	}
	e, err := New(Kind(kind))
	if err != nil {
		return nil, err
	}
	d := decoder{mesh: e.Head().Kind == KindMesh}
	if err := d.structure("", reflect.ValueOf(e).Elem(), doc); err != nil {
		return nil, err
	}
	if err := d.unknownKeys(); err != nil {
		return nil, err
	}
	h := e.Head()
	h.Kind, h.Hash, h.Indexes = Kind(kind), 0, catalog.Indexes{}
	return e, nil
}

// lookup finds a key in any letter case, the exact one first.
func lookup(doc map[string]any, name string) (any, bool) {
	if v, ok := doc[name]; ok {
		return v, true
	}
	for _, k := range sortedKeys(doc) {
		if strings.EqualFold(k, name) {
			return doc[k], true
		}
	}
	return nil, false
}

const maxDepth = catalog.MaxDepth

type decoder struct {
	unknown []string
	mesh    bool // the kind without a name
}

func (d *decoder) unknownKeys() error {
	slices.Sort(d.unknown)
	var problems errorList
	for _, path := range d.unknown {
		last := path[strings.LastIndexByte(path, '.')+1:]
		if strings.EqualFold(last, "Namespace") {
			problems.addf("invalid config key %q, namespaces are a consul enterprise feature", path)
			continue
		}
		problems.addf("invalid config key %q", path)
	}
	return problems.err()
}

// structure decodes a document into a struct.
func (d *decoder) structure(path string, into reflect.Value, doc map[string]any) error {
	for _, key := range sortedKeys(doc) {
		at, name := join(path, key), strings.ReplaceAll(key, "_", "")
		if path == "" && storeSets(name) {
			continue
		}
		f, ok := d.field(into, name)
		if !ok {
			d.unknown = append(d.unknown, at)
			continue
		}
		if err := d.value(at, f, doc[key]); err != nil {
			return err
		}
	}
	return nil
}

// storeSets reports whether a field of the header is the store's to set. Entries are written as they were read, so it
// is there, and its value counts for nothing. A hash may be more than a JSON number is good for.
func storeSets(name string) bool {
	return slices.ContainsFunc([]string{"Hash", "CreateIndex", "ModifyIndex"}, func(f string) bool { return strings.EqualFold(f, name) })
}

var headerType = reflect.TypeFor[Header]()

// field finds a field of a struct, or of one embedded in it, by its name without regard to case.
func (d *decoder) field(s reflect.Value, name string) (reflect.Value, bool) {
	t := s.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			if d.mesh && f.Type == headerType && strings.EqualFold(name, "Name") {
				return reflect.Value{}, false
			}
			if v, ok := d.field(s.Field(i), name); ok {
				return v, true
			}
			continue
		}
		if strings.EqualFold(name, f.Name) || f.Tag.Get("alias") != "" && strings.EqualFold(name, f.Tag.Get("alias")) {
			return s.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// value decodes one value. A nil leaves what it goes into as it is.
func (d *decoder) value(path string, into reflect.Value, v any) error {
	if v == nil {
		return nil
	}
	switch into.Interface().(type) {
	case time.Duration, catalog.Duration:
		n, err := duration(v)
		if err != nil {
			return fmt.Errorf("error decoding '%s': %w", path, err)
		}
		into.SetInt(int64(n))
		return nil
	case time.Time:
		t, err := time.Parse(time.RFC3339Nano, fmt.Sprint(v))
		if err != nil {
			return fmt.Errorf("error decoding '%s': %w", path, err)
		}
		into.Set(reflect.ValueOf(t))
		return nil
	case []byte:
		text, ok := v.(string)
		data, err := base64.StdEncoding.DecodeString(text)
		if !ok || err != nil {
			return fmt.Errorf("error decoding '%s': expected base64 text", path)
		}
		into.SetBytes(data)
		return nil
	}
	switch into.Kind() {
	case reflect.Pointer:
		p := reflect.New(into.Type().Elem())
		if err := d.value(path, p.Elem(), v); err != nil {
			return err
		}
		into.Set(p)
	case reflect.Struct:
		doc, ok := block(v)
		if !ok {
			return mistyped(path, "map", v)
		}
		return d.structure(path, into, doc)
	case reflect.Slice:
		return d.list(path, into, v)
	case reflect.Map:
		return d.mapping(path, into, v)
	default:
		return scalar(path, into, v)
	}
	return nil
}

// block returns a document, or the only one of a list of blocks.
func block(v any) (map[string]any, bool) {
	switch v := v.(type) {
	case map[string]any:
		return v, true
	case []map[string]any:
		if len(v) == 1 {
			return v[0], true
		}
	case []any:
		if len(v) == 1 {
			doc, ok := v[0].(map[string]any)
			return doc, ok
		}
	}
	return nil, false
}

func (d *decoder) list(path string, into reflect.Value, v any) error {
	items := reflect.ValueOf(v)
	if items.Kind() != reflect.Slice {
		// A single item stands for a list of it; an empty text for none.
		if text, ok := v.(string); ok && text == "" {
			return nil
		}
		items = reflect.ValueOf([]any{v})
	}
	out := reflect.MakeSlice(into.Type(), items.Len(), items.Len())
	for i := range items.Len() {
		item := items.Index(i).Interface()
		at := fmt.Sprintf("%s[%d]", path, i)
		if item == nil {
			if k := into.Type().Elem().Kind(); k == reflect.Pointer {
				return mistyped(at, "map", nil)
			}
			continue
		}
		if err := d.value(at, out.Index(i), item); err != nil {
			return err
		}
	}
	into.Set(out)
	return nil
}

func (d *decoder) mapping(path string, into reflect.Value, v any) error {
	docs := []map[string]any{}
	switch v := v.(type) {
	case map[string]any:
		docs = append(docs, v)
	case []map[string]any:
		docs = v
	case []any:
		for _, item := range v {
			doc, ok := item.(map[string]any)
			if !ok {
				return mistyped(path, "map", v)
			}
			docs = append(docs, doc)
		}
	default:
		return mistyped(path, "map", v)
	}
	out := reflect.MakeMap(into.Type())
	free := into.Type().Elem().Kind() == reflect.Interface
	for _, doc := range docs {
		for _, key := range sortedKeys(doc) {
			item := reflect.New(into.Type().Elem()).Elem()
			if free {
				plain, err := plain(doc[key], 0)
				if err != nil {
					return fmt.Errorf("error decoding '%s': %w", join(path, key), err)
				}
				if plain != nil {
					item.Set(reflect.ValueOf(plain))
				}
			} else if err := d.value(join(path, key), item, doc[key]); err != nil {
				return err
			}
			out.SetMapIndex(reflect.ValueOf(key), item)
		}
	}
	into.Set(out)
	return nil
}

// plain copies a free-form value, with blocks as maps.
func plain(v any, depth int) (any, error) {
	if depth > maxDepth {
		return nil, errors.New("nested too deeply")
	}
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, item := range v {
			p, err := plain(item, depth+1)
			if err != nil {
				return nil, err
			}
			out[k] = p
		}
		return out, nil
	case []map[string]any:
		if len(v) == 1 {
			return plain(v[0], depth)
		}
		out := make([]any, len(v))
		for i, item := range v {
			p, err := plain(item, depth+1)
			if err != nil {
				return nil, err
			}
			out[i] = p
		}
		return out, nil
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			p, err := plain(item, depth+1)
			if err != nil {
				return nil, err
			}
			out[i] = p
		}
		return out, nil
	case nil, string, bool, float64, int, int64, uint64:
		return v, nil
	}
	return nil, fmt.Errorf("unsupported type %T", v)
}

// scalar decodes text, a truth value or a number, any of which may be given as text.
func scalar(path string, into reflect.Value, v any) error {
	from := reflect.ValueOf(v)
	switch into.Kind() {
	case reflect.String:
		switch {
		case from.Kind() == reflect.String:
			into.SetString(from.String())
		case from.Kind() == reflect.Bool:
			into.SetString(map[bool]string{true: "1", false: "0"}[from.Bool()])
		case from.CanInt():
			into.SetString(strconv.FormatInt(from.Int(), 10))
		case from.CanFloat():
			into.SetString(strconv.FormatFloat(from.Float(), 'f', -1, 64))
		default:
			return mistyped(path, "string", v)
		}
	case reflect.Bool:
		switch from.Kind() {
		case reflect.Bool:
			into.SetBool(from.Bool())
		case reflect.String:
			b, err := strconv.ParseBool(from.String())
			if err != nil && from.String() != "" {
				return fmt.Errorf("error decoding '%s': cannot parse as bool: %w", path, err)
			}
			into.SetBool(b)
		default:
			f, err := number(v)
			if err != nil {
				return mistyped(path, "bool", v)
			}
			into.SetBool(f != 0)
		}
	case reflect.Int, reflect.Int64, reflect.Uint, reflect.Uint32, reflect.Uint64:
		f, err := number(v)
		if err != nil {
			return fmt.Errorf("error decoding '%s': %w", path, err)
		}
		switch {
		case f != math.Trunc(f):
			return fmt.Errorf("error decoding '%s': %v is not a whole number", path, f)
		case math.Abs(f) > 1<<53 || into.CanUint() && (f < 0 || into.OverflowUint(uint64(f))):
			return fmt.Errorf("error decoding '%s': %v is out of range", path, f)
		case into.CanUint():
			into.SetUint(uint64(f))
		default:
			into.SetInt(int64(f))
		}
	case reflect.Float64:
		f, err := number(v)
		if err != nil {
			return fmt.Errorf("error decoding '%s': %w", path, err)
		}
		into.SetFloat(f)
	default:
		return fmt.Errorf("error decoding '%s': unsupported type %s", path, into.Type())
	}
	return nil
}

func number(v any) (float64, error) {
	switch n := reflect.ValueOf(v); {
	case n.CanInt():
		return float64(n.Int()), nil
	case n.CanUint():
		return float64(n.Uint()), nil
	case n.CanFloat():
		return n.Float(), nil
	case n.Kind() == reflect.Bool:
		if n.Bool() {
			return 1, nil
		}
		return 0, nil
	case n.Kind() == reflect.String:
		f, err := strconv.ParseFloat(strings.TrimSpace(n.String()), 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return 0, fmt.Errorf("cannot parse %q as a number", n.String())
		}
		return f, nil
	}
	return 0, fmt.Errorf("expected a number, got %T", v)
}

// duration reads text with a unit or a number of nanoseconds.
func duration(v any) (time.Duration, error) {
	if text, ok := v.(string); ok {
		if text == "" {
			return 0, nil
		}
		return time.ParseDuration(text)
	}
	f, err := number(v)
	if err != nil {
		return 0, err
	}
	if math.Abs(f) > 1<<62 {
		return 0, fmt.Errorf("%v is out of range", f)
	}
	return time.Duration(f), nil
}

func mistyped(path, want string, got any) error {
	return fmt.Errorf("error decoding '%s': expected type '%s', got %T", path, want, got)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Unmarshal decodes an untyped document into a struct by the rules of Decode.
func Unmarshal(doc map[string]any, into any) error {
	var d decoder
	if err := d.structure("", reflect.ValueOf(into).Elem(), doc); err != nil {
		return err
	}
	return d.unknownKeys()
}
