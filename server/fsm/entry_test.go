package fsm

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/sarnmesh/sarn/internal/rpc"
)

// batches returns commands of all sizes at which the form of an entry changes.
func batches(t testing.TB) map[string][]Command {
	t.Helper()
	out := map[string][]Command{"none": {}, "no request": {{Kind: 1}}}
	for _, n := range []int{0, 1, 22, 23, 24, 254, 255, 256, 65534, 65535, 65536, 1 << 20} {
		out["a value of "+strings.Repeat("I", len(out))] = []Command{{Kind: KV, Req: strings.Repeat("x", n)}}
	}
	for _, n := range []int{2, 23, 24, 255, 256, 512} {
		var commands []Command
		for i := range n {
			commands = append(commands, Command{Kind: Kind(i * 131), Req: map[string]int{"a": i}})
		}
		out["commands "+strings.Repeat("I", len(out))] = commands
	}
	return out
}

// An entry is what package rpc makes of its records, whoever wrote it.
func TestEntriesAreInTheCommonEncoding(t *testing.T) {
	for name, commands := range batches(t) {
		t.Run(name, func(t *testing.T) {
			records := make([]record, len(commands))
			for i, c := range commands {
				data, err := rpc.Marshal(c.Req)
				if err != nil {
					t.Fatal(err)
				}
				records[i] = record{c.Kind, 1, data}
			}
			want, err := rpc.Marshal(records)
			if err != nil {
				t.Fatal(err)
			}
			got, err := Encode(commands)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %.60x, %v; want %.60x", got, err, want)
			}
			if len(commands) > 0 && cap(got) > len(got)+maxHead+len(commands)*maxRecordHead {
				t.Errorf("an entry of %d bytes takes %d", len(got), cap(got))
			}
			for i := range commands { // as callers hand them in
				commands[i].Req = cbor.RawMessage(records[i].Data)
			}
			if again, err := Encode(commands); err != nil || !bytes.Equal(again, want) {
				t.Errorf("of encoded requests: got %.60x, %v", again, err)
			}
			back, ok := decodeOwn(got)
			if !ok || !slices.EqualFunc(back, records, sameRecord) {
				t.Errorf("not read as written: %v, %d records", ok, len(back))
			}
		})
	}
}

func sameRecord(a, b record) bool {
	return a.Kind == b.Kind && a.Version == b.Version && bytes.Equal(a.Data, b.Data)
}

// Another version may order the parts of a record differently, or add some.
func TestEntriesOfOtherVersionsAreRead(t *testing.T) {
	for name, entry := range map[string]any{
		"another order":   cbor.RawMessage("\x81\xa3\x61v\x01\x61k\x04\x61d\x41x"),
		"another field":   []map[string]any{{"d": []byte("x"), "k": 4, "v": 1, "z": true}},
		"lists of no end": cbor.RawMessage("\x9f\xa3\x61d\x41x\x61k\x04\x61v\x01\xff"),
	} {
		t.Run(name, func(t *testing.T) {
			data, err := rpc.Marshal(entry)
			if err != nil {
				t.Fatal(err)
			}
			records, err := decode(data)
			if want := []record{{KV, 1, []byte("x")}}; err != nil || !slices.EqualFunc(records, want, sameRecord) {
				t.Errorf("got %+v, %v", records, err)
			}
		})
	}
}

// What is read here is what package rpc reads.
func FuzzEntry(f *testing.F) {
	for _, commands := range batches(f) {
		entry, err := Encode(commands)
		if err != nil {
			f.Fatal(err)
		}
		if len(entry) < 1<<12 {
			f.Add(entry)
		}
	}
	f.Add([]byte("\x9a\xff\xff\xff\xff"))
	f.Add([]byte("\x81\xa3\x61d\x5b\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Add([]byte("\x81\xa3\x61d\x58\x01x\x61k\x18\x04\x61v\x01")) // longer heads than needed
	f.Fuzz(func(t *testing.T, entry []byte) {
		own, ok := decodeOwn(entry)
		if !ok {
			return
		}
		var want []record
		if err := rpc.Unmarshal(entry, &want); err != nil || !slices.EqualFunc(own, want, sameRecord) {
			t.Errorf("got %+v; package rpc reads %+v, %v", own, want, err)
		}
	})
}
