package entry

import (
	"encoding/json"
	"fmt"
	"reflect"

	"github.com/sarnmesh/sarn/internal/rpc"
)

// Any carries an entry of any kind through RPC, the log and snapshots, which need a fixed type. The zero Any carries
// none. In JSON it is the entry itself.
type Any struct{ Entry }

// wireAny is the encoded form of Any.
type wireAny struct {
	Kind Kind   `cbor:"k,omitempty"`
	Data []byte `cbor:"d,omitempty"`
}

// MarshalCBOR encodes the kind and the entry.
func (a Any) MarshalCBOR() ([]byte, error) {
	if a.Entry == nil {
		return rpc.Marshal(wireAny{})
	}
	data, err := rpc.Marshal(a.Entry)
	if err != nil {
		return nil, err
	}
	return rpc.Marshal(wireAny{a.Head().Kind, data})
}

// UnmarshalCBOR decodes what MarshalCBOR made.
func (a *Any) UnmarshalCBOR(data []byte) error {
	var w wireAny
	if err := rpc.Unmarshal(data, &w); err != nil {
		return err
	}
	if w.Kind == "" {
		a.Entry = nil
		return nil
	}
	e, err := New(w.Kind)
	if err != nil {
		return err
	}
	if err := rpc.Unmarshal(w.Data, e); err != nil {
		return fmt.Errorf("decode config entry of kind %s: %w", w.Kind, err)
	}
	if hasNil(reflect.ValueOf(e)) {
		return fmt.Errorf("config entry of kind %s has an empty item in a list", w.Kind)
	}
	if e.Head().Kind != w.Kind {
		return fmt.Errorf("config entry of kind %q is labelled %q", e.Head().Kind, w.Kind)
	}
	a.Entry = e
	return nil
}

// hasNil reports whether a list in a value has a nil pointer, which no rule expects and no document can say.
func hasNil(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.Pointer:
		return !v.IsNil() && hasNil(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && hasNil(v.Field(i)) {
				return true
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			item := v.Index(i)
			if item.Kind() != reflect.Pointer && item.Kind() != reflect.Struct {
				return false
			}
			if item.Kind() == reflect.Pointer && item.IsNil() || hasNil(item) {
				return true
			}
		}
	}
	return false
}

// MarshalJSON writes the entry.
func (a Any) MarshalJSON() ([]byte, error) { return json.Marshal(a.Entry) }

// Copy returns a deep copy of an entry.
func Copy(e Entry) (Entry, error) {
	data, err := rpc.Marshal(Any{e})
	if err != nil {
		return nil, err
	}
	var a Any
	if err := rpc.Unmarshal(data, &a); err != nil {
		return nil, err
	}
	return a.Entry, nil
}
