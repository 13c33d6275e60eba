package rpc_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/internal/rpc"
)

func TestCodecKeepsWhatJSONWouldNot(t *testing.T) {
	type object struct {
		Key    string
		Value  []byte
		Nil    []string
		Empty  []string
		Config map[string]any
		Hidden string `json:"-" cbor:"hidden,omitempty"`
	}
	want := object{
		Key: "a\xff\x00b", Value: []byte{0, 255}, Empty: []string{}, Hidden: "token",
		Config: map[string]any{"int": int64(-3), "float": 2.0, "list": []any{"x\xfe", nil, true}, "map": map[string]any{"k": int64(1), "l": nil, "m": nil}},
	}
	data, err := rpc.Marshal(&want)
	if err != nil {
		t.Fatal(err)
	}
	var got object
	if err := rpc.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for range 20 {
		if again, err := rpc.Marshal(&got); err != nil || string(again) != string(data) {
			t.Fatalf("encoded differently again: %v", err)
		}
	}
	if err := rpc.Unmarshal(append(data, 0), &got); err == nil {
		t.Error("trailing bytes were taken")
	}
	if err := rpc.Unmarshal([]byte{0xa2, 0x63, 'K', 'e', 'y', 0x61, 'a', 0x63, 'K', 'e', 'y', 0x61, 'b'}, &got); err == nil {
		t.Error("a field given twice was taken")
	}
}
