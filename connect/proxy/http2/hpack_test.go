package http2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/internal/testkit"
)

func decodeAll(d *decoder, b []byte, limit int) (fields []hpack.HeaderField, whole bool, err error) {
	var a message.Arena
	whole, err = d.decode(b, &a, limit, func(f *field) {
		fields = append(fields, hpack.HeaderField{Name: f.name, Value: f.value})
	})
	return fields, whole, err
}

func same(a, b []hpack.HeaderField) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Name != b[i].Name || a[i].Value != b[i].Value {
			return false
		}
	}
	return true
}

// words are names and values that repeat as they do in life.
var words = strings.Fields("content-type application/json x-request-id accept :path / /a/b cookie a=b user-agent curl/8 x-a x-b te trailers date etag authorization 0 64 gzip")

func randomFields(rng *rand.Rand) []hpack.HeaderField {
	fs := make([]hpack.HeaderField, rng.IntN(20))
	for i := range fs {
		f := &fs[i]
		f.Name, f.Value = words[rng.IntN(len(words))], words[rng.IntN(len(words))]
		switch rng.IntN(6) {
		case 0:
			f.Value = fmt.Sprint(rng.Uint64())
		case 1:
			f.Value = strings.Repeat("v\x80\xff", rng.IntN(400))
		case 2:
			f.Name = fmt.Sprintf("x-%d", rng.IntN(50))
		case 3:
			f.Value = ""
		}
	}
	return fs
}

func TestDecoderAgreesWithOthersEncoder(t *testing.T) {
	seed := testkit.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 50 {
		var buf bytes.Buffer
		enc := hpack.NewEncoder(&buf)
		var d decoder
		d.init()
		for range 200 {
			if rng.IntN(20) == 0 {
				enc.SetMaxDynamicTableSize(uint32(rng.IntN(defaultTable + 1)))
			}
			want := randomFields(rng)
			buf.Reset()
			for i := range want {
				want[i].Sensitive = rng.IntN(8) == 0
				if err := enc.WriteField(want[i]); err != nil {
					t.Fatal(err)
				}
			}
			got, whole, err := decodeAll(&d, buf.Bytes(), 1<<20)
			if err != nil || !whole || !same(got, want) {
				t.Fatalf("seed %d: %v, whole %v\ngot  %q\nwant %q", seed, err, whole, got, want)
			}
		}
	}
}

func TestOthersDecoderAgreesWithEncoder(t *testing.T) {
	seed := testkit.Seed(t)
	rng := rand.New(rand.NewPCG(seed, 2))
	for range 50 {
		var e encoder
		e.init()
		var got []hpack.HeaderField
		d := hpack.NewDecoder(defaultTable, func(f hpack.HeaderField) { got = append(got, f) })
		for range 200 {
			if rng.IntN(10) == 0 {
				for range 1 + rng.IntN(2) {
					n := uint32(rng.IntN(2 * defaultTable))
					e.setLimit(n)
					d.SetAllowedMaxDynamicTableSize(max(n, defaultTable))
				}
			}
			want := randomFields(rng)
			b := e.begin(nil)
			for _, f := range want {
				b = e.field(b, f.Name, f.Value, uint64(staticNames[message.KnownName(f.Name)]), f.Name == "authorization")
			}
			got = nil
			if _, err := d.Write(b); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if err := d.Close(); err != nil || !same(got, want) {
				t.Fatalf("seed %d: %v\ngot  %q\nwant %q", seed, err, got, want)
			}
		}
	}
}

func TestRepeatedFieldsBecomeOneByte(t *testing.T) {
	var e encoder
	e.init()
	encode := func() int {
		return len(e.field(nil, "x-service", "a value of some length", 0, false))
	}
	if first, second, third := encode(), encode(), encode(); first < 30 || second < 30 || third != 1 {
		t.Errorf("%d, %d and %d bytes", first, second, third)
	}
	for range 3 {
		if b := e.field(nil, "authorization", "Bearer x", 23, true); len(b) != 11 || b[0]>>4 != 1 {
			t.Errorf("a secret was sent as % x", b)
		}
	}
	if e.n != 1 {
		t.Errorf("%d entries, want 1", e.n)
	}
}

// What a block may not do: RFC 7541.
func TestDecoderRefuses(t *testing.T) {
	for name, b := range map[string]string{
		"index 0":                         "\x80",
		"index behind the tables":         "\xbe",
		"name index behind the tables":    "\x7e\x01a",
		"table larger than allowed":       "\x3f\xe2\x1f",
		"table size behind a field":       "\x82\x20",
		"integer without end":             "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
		"integer that ends early":         "\xff\x80",
		"string that ends early":          "\x40\x05abc",
		"name alone":                      "\x40\x01a",
		"EOS in a string":                 "\x00\x84\xff\xff\xff\xff\x01a",
		"padding of eight bits":           "\x00\x82\x1f\xff\x01a",
		"padding of zeros":                "\x00\x81\x18\x01a",
		"Huffman string that ends early":  "\x00\x01a\x81\xff",
		"Huffman error in a hidden value": "\x00\x01a\x84\xff\xff\xff\xff",
	} {
		t.Run(name, func(t *testing.T) {
			var d decoder
			d.init()
			if f, _, err := decodeAll(&d, []byte(b), 1000); err == nil {
				t.Errorf("decoded as %q", f)
			}
			d.init()
			if name == "Huffman error in a hidden value" {
				if _, _, err := decodeAll(&d, []byte(b), 0); err == nil {
					t.Error("no error beyond the limit")
				}
			}
		})
	}
}

func TestPeerMustShrinkItsTable(t *testing.T) {
	var d decoder
	d.init()
	d.setAllowed(100)
	if _, _, err := decodeAll(&d, []byte{0x82}, 1000); err == nil {
		t.Error("a field was taken before the table was made smaller")
	}
	if _, _, err := decodeAll(&d, []byte{0x3f, 100 - 31, 0x82}, 1000); err != nil {
		t.Error(err)
	}
}

// A block that stands for much more than it is long costs neither memory nor time, and the table stays right.
func TestHugeBlocksAreCutOff(t *testing.T) {
	var d decoder
	d.init()
	var e bytes.Buffer
	enc := hpack.NewEncoder(&e)
	enc.WriteField(hpack.HeaderField{Name: "x-a", Value: strings.Repeat("a", 3900)})
	bomb := append(e.Bytes(), bytes.Repeat([]byte{0x80 | 62}, 100<<10)...)
	var a message.Arena
	n := 0
	allocs, runs := 11.0, 0
	for ; allocs > 10 && runs < 10; runs++ { // others may allocate meanwhile
		allocs = testing.AllocsPerRun(1, func() {
			whole, err := d.decode(bomb, &a, 60<<10, func(*field) { n++ })
			if whole || err != nil {
				t.Errorf("whole %v, %v", whole, err)
			}
		})
	}
	if n > runs*2*16 || allocs > 10 {
		t.Errorf("%d fields were made, %v allocations", n, allocs)
	}
	if got, whole, err := decodeAll(&d, []byte{0x80 | 62}, 60<<10); err != nil || !whole || got[0].Name != "x-a" || len(got[0].Value) != 3900 {
		t.Errorf("afterwards: %v, whole %v", err, whole)
	}
}

// FuzzDecoder compares with another decoder: whatever both accept must mean the same.
func FuzzDecoder(f *testing.F) {
	f.Add([]byte{0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff}, []byte{0x82, 0xbe})
	f.Add([]byte("\x40\x0acustom-key\x0dcustom-header\x3f\xe1\x1f"), []byte("\x20\x3f\xe1\x1f\x04\x0c/sample/path"))
	f.Add([]byte("\x10\x08password\x06secret\xbe"), []byte("\x40\x00\x00\x00\x81\xff\x80"))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		var d decoder
		d.init()
		var theirs []hpack.HeaderField
		o := hpack.NewDecoder(defaultTable, func(f hpack.HeaderField) { theirs = append(theirs, f) })
		for _, b := range [][]byte{one, two} {
			theirs = nil
			_, theirErr := o.Write(b)
			if err := o.Close(); theirErr == nil {
				theirErr = err
			}
			ours, whole, err := decodeAll(&d, b, 1<<30)
			if err == nil && !whole {
				t.Fatal("cut off below the limit")
			}
			if err == nil && theirErr != nil {
				t.Fatalf("% x: we got %q, they %v", b, ours, theirErr)
			}
			if err != nil {
				// Integers beyond 32 bits, and sizes set after a field while the table is empty, are refused by us alone.
				return
			}
			if !same(ours, theirs) {
				t.Fatalf("% x: we got %q, they %q", b, ours, theirs)
			}
			if d.size > d.max {
				t.Fatalf("the table has %d bytes, more than %d", d.size, d.max)
			}
		}
	})
}

// FuzzEncoder checks that another decoder gets back what was encoded.
func FuzzEncoder(f *testing.F) {
	f.Add("x-a", "b", "content-type", "c", uint16(100))
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string, limit uint16) {
		var e encoder
		e.init()
		var got []hpack.HeaderField
		d := hpack.NewDecoder(defaultTable, func(f hpack.HeaderField) { got = append(got, f) })
		want := []hpack.HeaderField{{Name: n1, Value: v1}, {Name: n2, Value: v2}, {Name: n1, Value: v2}}
		for i := range 4 {
			if i == 2 {
				e.setLimit(uint32(limit))
			}
			b := e.begin(nil)
			for _, f := range want {
				b = e.field(b, f.Name, f.Value, 0, false)
			}
			got = nil
			if _, err := d.Write(b); err != nil {
				t.Fatal(err)
			}
			if err := d.Close(); err != nil || !same(got, want) {
				t.Fatalf("%v: got %q, want %q", err, got, want)
			}
		}
	})
}

// Names of the static table that nothing is known of are good names.
func TestPlainNamesOfTheStaticTable(t *testing.T) {
	for _, f := range static[1:] {
		if f.kind == kindBad {
			t.Errorf("%q counts as a bad name", f.name)
		}
	}
}
