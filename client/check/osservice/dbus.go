package osservice

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// What is needed of the D-Bus wire format, as its specification has it under "Message Protocol" and "Marshaling".
const (
	kindCall   = 1
	kindReturn = 2
	kindError  = 3

	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldErrorName   = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSignature   = 8
)

// A call is a method call, whose only argument is a list of strings if there are any.
type call struct {
	serial                           uint32
	destination, path, iface, member string
	names                            []string
}

// An encoder appends values in the little-endian form, each aligned to its size.
type encoder struct{ b []byte }

func (e *encoder) align(n int) {
	for len(e.b)%n != 0 {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) uint32(v uint32) {
	e.align(4)
	e.b = binary.LittleEndian.AppendUint32(e.b, v)
}

func (e *encoder) string(s string) {
	e.uint32(uint32(len(s)))
	e.b = append(append(e.b, s...), 0)
}

func (e *encoder) signature(s string) {
	e.b = append(append(append(e.b, byte(len(s))), s...), 0)
}

// array appends what fill appends, with its length before it and its first element aligned to n.
func (e *encoder) array(n int, fill func()) {
	e.uint32(0)
	at := len(e.b) - 4
	e.align(n)
	start := len(e.b)
	fill()
	binary.LittleEndian.PutUint32(e.b[at:], uint32(len(e.b)-start))
}

func (c *call) encode() []byte {
	var body encoder
	if len(c.names) > 0 {
		body.array(4, func() {
			for _, n := range c.names {
				body.string(n)
			}
		})
	}
	e := encoder{[]byte{'l', kindCall, 0, 1}}
	e.uint32(uint32(len(body.b)))
	e.uint32(c.serial)
	e.array(8, func() {
		for _, f := range []struct {
			code      byte
			signature string
			value     string
		}{{fieldPath, "o", c.path}, {fieldInterface, "s", c.iface}, {fieldMember, "s", c.member}, {fieldDestination, "s", c.destination}} {
			e.align(8)
			e.b = append(e.b, f.code)
			e.signature(f.signature)
			e.string(f.value)
		}
		if len(c.names) > 0 {
			e.align(8)
			e.b = append(e.b, fieldSignature)
			e.signature("g")
			e.signature("as")
		}
	})
	e.align(8)
	return append(e.b, body.b...)
}

// A message is one that came in.
type message struct {
	kind      byte
	replyTo   uint32 // serial of the call it answers
	errorName string
	signature string
	body      decoder
}

var errMalformed = errors.New("malformed message")

// A decoder takes values off the front of bytes. After an error it is empty, and err says so.
type decoder struct {
	b     []byte
	at    int
	order binary.ByteOrder
	err   error
}

func (d *decoder) take(n int) []byte {
	if d.err != nil || n < 0 || n > len(d.b)-d.at {
		d.err = errMalformed
		return nil
	}
	v := d.b[d.at : d.at+n]
	d.at += n
	return v
}

func (d *decoder) align(n int) { d.take((n - d.at%n) % n) }

func (d *decoder) byte() byte {
	if b := d.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (d *decoder) uint32() uint32 {
	d.align(4)
	if b := d.take(4); b != nil {
		return d.order.Uint32(b)
	}
	return 0
}

// length takes a length that what is left can hold.
func (d *decoder) length() int {
	n := d.uint32()
	if int64(n) > int64(len(d.b)-d.at) {
		d.err = errMalformed
		return 0
	}
	return int(n)
}

func (d *decoder) string() string {
	s := string(d.take(d.length()))
	d.take(1)
	return s
}

func (d *decoder) sig() string {
	s := string(d.take(int(d.byte())))
	d.take(1)
	return s
}

// readMessage reads one message.
func readMessage(r io.Reader) (*message, error) {
	var fixed [16]byte
	if _, err := io.ReadFull(r, fixed[:]); err != nil {
		return nil, err
	}
	d := decoder{b: fixed[:], at: 4}
	switch fixed[0] {
	case 'l':
		d.order = binary.LittleEndian
	case 'B':
		d.order = binary.BigEndian
	default:
		return nil, errMalformed
	}
	body, _, fields := d.uint32(), d.uint32(), d.uint32()
	if body > maxMessage || fields > maxMessage {
		return nil, fmt.Errorf("a message is longer than %d bytes", maxMessage)
	}
	padded := (int(fields) + 7) / 8 * 8
	rest := make([]byte, padded+int(body))
	if _, err := io.ReadFull(r, rest); err != nil {
		return nil, err
	}
	m := &message{kind: fixed[1], body: decoder{b: rest[padded:], order: d.order}}
	// The fields begin at a multiple of eight, so that they are aligned by themselves.
	h := decoder{b: rest[:fields], order: d.order}
	for h.err == nil && h.at < len(h.b) {
		h.align(8)
		code := h.byte()
		var text string
		var number uint32
		switch sig := h.sig(); sig {
		case "s", "o":
			text = h.string()
		case "g":
			text = h.sig()
		case "u":
			number = h.uint32()
		default:
			h.err = errMalformed
		}
		switch code {
		case fieldReplySerial:
			m.replyTo = number
		case fieldErrorName:
			m.errorName = text
		case fieldSignature:
			m.signature = text
		}
	}
	return m, h.err
}

// errorText returns the name of an error and what it says.
func (m *message) errorText() string {
	if len(m.signature) > 0 && m.signature[0] == 's' {
		if text := m.body.string(); m.body.err == nil {
			return m.errorName + ": " + text
		}
	}
	return m.errorName
}

// A unitStatus is what ListUnitsByNames says about a unit.
type unitStatus struct{ name, load, active string }

const unitsSignature = "a(ssssssouso)"

// units decodes the answer to ListUnitsByNames.
func (m *message) units() ([]unitStatus, error) {
	if m.signature != unitsSignature {
		return nil, errMalformed
	}
	d := &m.body
	end := d.length()
	d.align(8)
	end += d.at
	var units []unitStatus
	for d.err == nil && d.at < end {
		d.align(8)
		var u unitStatus
		u.name = d.string()
		d.string() // description
		u.load = d.string()
		u.active = d.string()
		d.string() // sub state
		d.string() // the unit it follows
		d.string() // path
		d.uint32() // job
		d.string() // job type
		d.string() // job path
		units = append(units, u)
	}
	return units, d.err
}
