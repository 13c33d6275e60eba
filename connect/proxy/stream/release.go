package stream

import (
	"bytes"
	"crypto/tls"
	"reflect"
	"unsafe"
)

// handshakeBuffers are the offsets in a tls.Conn of its buffers for records and for handshake messages. Package
// crypto/tls keeps them as large as the longest message of the handshake, which is most of what it holds for an idle
// connection, and has no way to be told that it is over. Empty if they are not where they were.
var handshakeBuffers = func() (offsets []uintptr) {
	for _, name := range []string{"rawInput", "hand"} {
		f, ok := reflect.TypeFor[tls.Conn]().FieldByName(name)
		if !ok || f.Type != reflect.TypeFor[bytes.Buffer]() {
			return nil
		}
		offsets = append(offsets, f.Offset)
	}
	return offsets
}()

// releaseHandshake makes a connection forget the buffers that its handshake needed, where nothing is in them. Nobody may
// read from it meanwhile.
func releaseHandshake(c *tls.Conn) {
	for _, offset := range handshakeBuffers {
		if b := (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(c), offset)); b.Len() == 0 {
			*b = bytes.Buffer{}
		}
	}
}
