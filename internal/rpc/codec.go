package rpc

import (
	"reflect"

	"github.com/fxamacker/cbor/v2"
)

// The one compact encoding of subject types: CBOR (RFC 8949) with the field names of their json tags, used by internal
// RPC, the Raft log and snapshots. Equal values have equal encodings.
var (
	encMode = must(cbor.EncOptions{Time: cbor.TimeRFC3339Nano, ShortestFloat: cbor.ShortestFloat16, Sort: cbor.SortBytewiseLexical}.EncMode())
	decMode = must(cbor.DecOptions{
		DefaultMapType:  reflect.TypeFor[map[string]any](),
		IntDec:          cbor.IntDecConvertSignedOrFail,
		DupMapKey:       cbor.DupMapKeyEnforcedAPF,
		MaxNestedLevels: 96, // subjects bound what users nest: catalog.TooDeep
		// What Marshal makes of subject types has none of these, and what JSON cannot express must not be stored.
		TagsMd:           cbor.TagsForbidden,
		NaN:              cbor.NaNDecodeForbidden,
		Inf:              cbor.InfDecodeForbidden,
		UTF8:             cbor.UTF8DecodeInvalid, // keys and outputs of checks are any bytes
		MaxArrayElements: 1 << 24,
		MaxMapPairs:      1 << 24,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Marshal encodes v. Fields tagged `cbor:"-"` are left out.
func Marshal(v any) ([]byte, error) { return encMode.Marshal(v) }

// Unmarshal decodes data into v, a pointer. Unknown fields are ignored; duplicate keys and trailing bytes are errors.
func Unmarshal(data []byte, v any) error { return decMode.Unmarshal(data, v) }
