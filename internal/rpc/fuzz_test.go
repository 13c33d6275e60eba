package rpc_test

import (
	"encoding/json"
	"testing"

	"github.com/sarnmesh/sarn/internal/rpc"
)

// An item has a field of each kind that the subject types have.
type item struct {
	Name   string
	Value  []byte
	Count  uint64
	Delta  int64
	Share  float64
	On     bool
	Tags   []string
	Meta   map[string]string
	Config map[string]any
	Child  *item            `json:",omitempty"`
	Items  []*item          `json:",omitempty"`
	ByName map[string]*item `json:",omitempty"`
	Secret string           `json:"-" cbor:"secret,omitempty"`
}

// What was decoded can be encoded again, as bytes that decode to themselves, and shown as JSON: nothing that arrives over
// the network can be stored and then keep a server from answering or from taking a snapshot.
func FuzzUnmarshal(f *testing.F) {
	for _, v := range []any{
		nil, []any{}, map[string]any{"Name": "a\xff", "Value": []byte{0, 255}, "Count": uint64(1) << 63, "Delta": int64(-1) << 63, "Share": 0.1},
		&item{Name: "n", Tags: []string{}, Meta: map[string]string{"k": "v"}, Child: &item{Items: []*item{nil, {On: true}}}, ByName: map[string]*item{"x": {Secret: "s"}},
			Config: map[string]any{"i": int64(-3), "f": 1.5, "l": []any{nil, "x", []byte{1}, map[string]any{}}}},
	} {
		data, err := rpc.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("\xa1\x66Config\xa1\x61t\xc1\xfb\x7f\xef\xff\xff\xff\xff\xff\xff"))     // a time far away
	f.Add([]byte("\xa1\x66Config\xa1\x61n\xf9\x7e\x00"))                                 // not a number
	f.Add([]byte("\xa1\x66Config\xa1\x61b\xc2\x49\x01\x00\x00\x00\x00\x00\x00\x00\x00")) // 2^64
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, fresh := range []func() any{func() any { return new(item) }, func() any { return new(any) }} {
			v, again := fresh(), fresh()
			if rpc.Unmarshal(data, v) != nil {
				continue
			}
			first, err := rpc.Marshal(v)
			if err != nil {
				t.Fatalf("decoded, but not encoded again: %v", err)
			}
			if err := rpc.Unmarshal(first, again); err != nil {
				t.Fatalf("what was encoded is not decoded: %v", err)
			}
			if second, err := rpc.Marshal(again); err != nil || string(second) != string(first) {
				t.Fatalf("encoded as %x and then as %x, %v", first, second, err)
			}
			if _, err := json.Marshal(v); err != nil {
				t.Fatalf("not JSON: %v", err)
			}
		}
	})
}
