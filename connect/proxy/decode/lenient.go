package decode

import (
	"bytes"
	"encoding/json"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// lenient makes lists of single values that stand where a list belongs, as
// documents have them that were written for parsers that allow it: the
// bootstrap that "connect envoy" prints is one.
func lenient(b []byte, md protoreflect.MessageDescriptor) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	return json.Marshal(wrapSingles(v, md, 0))
}

func wrapSingles(v any, md protoreflect.MessageDescriptor, depth int) any {
	m, ok := v.(map[string]any)
	if !ok || md == nil || depth > 100 {
		return v
	}
	if md.FullName() == "google.protobuf.Any" {
		url, _ := m["@type"].(string)
		t, err := protoregistry.GlobalTypes.FindMessageByURL(url)
		if err != nil {
			return v
		}
		md = t.Descriptor()
	}
	switch md.FullName() {
	case "google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue":
		return v
	}
	for name, x := range m {
		f := md.Fields().ByTextName(name)
		if f == nil {
			f = md.Fields().ByJSONName(name)
		}
		if f == nil {
			continue
		}
		if f.IsMap() {
			if entries, ok := x.(map[string]any); ok {
				for k, e := range entries {
					entries[k] = wrapSingles(e, f.MapValue().Message(), depth+1)
				}
			}
			continue
		}
		if !f.IsList() {
			m[name] = wrapSingles(x, f.Message(), depth+1)
			continue
		}
		list, ok := x.([]any)
		if !ok && x != nil {
			list = []any{x}
			m[name] = list
		}
		for i := range list {
			list[i] = wrapSingles(list[i], f.Message(), depth+1)
		}
	}
	return m
}
