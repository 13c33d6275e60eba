// Package feed is what servers and agents say to one another so that an agent keeps the instances of a service without
// asking for all of them again after each change: an agent subscribes to a subject, gets its state, and from then on what
// changes.
//
// A server and an agent have one feed between them, in which every subscription of the agent has a number. The agent
// sends an Ask for each; the server sends frames. An event in a frame is made once and is the same for all who
// subscribe, on every server that has the same state: it names the state it follows on and the one it leads to by digests
// of their content, so an agent whose feed broke goes on at any server that knows the state it has, and never shows what
// is not.
//
// The package is pure.
package feed

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// OpenCall opens a feed. Whichever server is asked gives it, from its own state.
var OpenCall = rpc.Local[OpenRequest, OpenReply]("Feed.Open")

// An OpenRequest says nothing: each Ask says what is asked for, and on whose behalf.
type OpenRequest struct{}

// An OpenReply is empty; frames follow it.
type OpenReply struct{}

// A Subject is what one subscribes to: the instances of a service, or those through which the mesh reaches it, or the
// ingress gateways that expose it, or those of a kind.
type Subject struct {
	Service string `json:",omitempty"`
	Connect bool   `json:",omitempty"`
	Ingress bool   `json:",omitempty"`
	Kind    string `json:",omitempty"`
}

// Of returns the subject whose instances a request selects from; ok is false for a request that a feed cannot answer,
// wherever it goes.
func Of(req *catalog.InstancesRequest) (s Subject, ok bool) {
	if req.Peer != "" || req.MergeCentralConfig || req.CatalogOnly || req.Near != "" || len(req.Service)+len(req.Kind)+len(req.Token) > maxWords {
		return Subject{}, false
	}
	return Subject{req.Service, req.Connect, req.Ingress, req.Kind}, true
}

// Request returns the request for everything of a subject.
func (s Subject) Request() *catalog.InstancesRequest {
	return &catalog.InstancesRequest{Service: s.Service, Connect: s.Connect, Ingress: s.Ingress, Kind: s.Kind}
}

// A Version names a state: states with the same version have the same content. The zero Version is that of none.
type Version struct {
	Index  uint64
	Digest uint64
}

// An Ask begins a subscription or ends it.
type Ask struct {
	ID      uint64 // chosen by the agent, of one subscription at a time
	End     bool   // the subscription is over; nothing else is set then
	Subject Subject
	// Token is the secret of the ACL token, empty for the anonymous one.
	Token string `json:"-" cbor:"token,omitempty"`
	// Have is the state that the agent has, to go on from if the server knows it.
	Have Version
	// Floor is the greatest index that the agent has shown of the subject. A server whose own state is older waits a
	// while until it has that.
	Floor uint64
}

// MaxAsk bounds an Ask in bytes; maxWords what of it is text.
const (
	MaxAsk   = 8 << 10
	maxWords = 6 << 10
)

// WriteAsk writes an Ask with its length.
func WriteAsk(w io.Writer, a *Ask) error {
	data, err := rpc.Marshal(a)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.AppendUvarint(nil, uint64(len(data))), data...))
	return err
}

// ReadAsk reads an Ask.
func ReadAsk(r *bufio.Reader) (*Ask, error) {
	data, err := readSized(r, MaxAsk)
	if err != nil {
		return nil, err
	}
	a := new(Ask)
	if err := rpc.Unmarshal(data, a); err != nil {
		return nil, fmt.Errorf("decode what is subscribed to: %w", err)
	}
	return a, nil
}

// A Kind says what a frame is.
type Kind uint8

// Kinds of frames.
const (
	// Event carries an event, for State.Follow.
	Event Kind = iota + 1
	// Current says that there is nothing newer than what the agent has.
	Current
	// Refused ends a subscription.
	Refused
	// Goodbye ends the feed: the server is about to go.
	Goodbye
)

// A Frame is what a server sends about one subscription, or to end the feed.
type Frame struct {
	Kind Kind
	ID   uint64

	// Last says, of an Event, that no other is on its way: the agent shows none of them before.
	Last bool
	// KnownLeader and Contact are of read.Meta, at the server, of an Event and of Current.
	KnownLeader bool
	Contact     time.Duration
	Event       []byte

	// Status and Text are the error of Refused; Status is 0 for none of HTTP's.
	Status int
	Text   string
}

const (
	flagLast = 1 << iota
	flagLeader
)

// AppendHead appends all of a frame but its Event, which is to follow.
func (f *Frame) AppendHead(buf []byte) []byte {
	var room [64]byte
	b := append(room[:0], byte(f.Kind))
	b = binary.AppendUvarint(b, f.ID)
	switch f.Kind {
	case Event, Current:
		flags := byte(0)
		if f.Last {
			flags |= flagLast
		}
		if f.KnownLeader {
			flags |= flagLeader
		}
		b = append(b, flags)
		b = binary.AppendUvarint(b, uint64(max(0, f.Contact)))
	case Refused:
		b = binary.AppendUvarint(b, uint64(f.Status))
		b = append(b, f.Text...)
	}
	buf = binary.AppendUvarint(buf, uint64(len(b)+len(f.Event)))
	return append(buf, b...)
}

// maxFrame bounds a frame: an agent trusts the servers, but not without end.
const maxFrame = 1 << 30

var errFrame = errors.New("malformed frame")

// ReadFrame reads a frame.
func ReadFrame(r *bufio.Reader) (f Frame, err error) {
	data, err := readSized(r, maxFrame)
	if err != nil {
		return f, err
	}
	d := decoder{data: data}
	f.Kind = Kind(d.byte())
	f.ID = d.number()
	switch f.Kind {
	case Event, Current:
		flags := d.byte()
		f.Last, f.KnownLeader = flags&flagLast != 0, flags&flagLeader != 0
		contact := d.number()
		f.Contact = time.Duration(min(contact, uint64(24*time.Hour)))
		if f.Kind == Event {
			f.Event = d.data
		}
	case Refused:
		f.Status = int(min(d.number(), 1000))
		f.Text = string(d.data)
	case Goodbye:
	default:
		return f, errFrame
	}
	if d.bad {
		return f, errFrame
	}
	return f, nil
}

// readSized reads bytes that come after their number. What is claimed to come is not made room for before it does.
func readSized(r *bufio.Reader, most uint64) ([]byte, error) {
	n, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	if n > most {
		return nil, fmt.Errorf("%w: %d bytes", errFrame, n)
	}
	data := make([]byte, 0, min(n, 64<<10))
	for uint64(len(data)) < n {
		if len(data) == cap(data) {
			grown := make([]byte, len(data), min(n, uint64(2*cap(data))))
			copy(grown, data)
			data = grown
		}
		read, err := io.ReadFull(r, data[len(data):cap(data)])
		data = data[:len(data)+read]
		if err == io.EOF && n > 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
	}
	return data, nil
}

// A decoder takes a message apart. What is missing is zero, and bad then set.
type decoder struct {
	data []byte
	bad  bool
}

func (d *decoder) byte() byte {
	if len(d.data) == 0 {
		d.bad = true
		return 0
	}
	b := d.data[0]
	d.data = d.data[1:]
	return b
}

func (d *decoder) number() uint64 {
	n, size := binary.Uvarint(d.data)
	if size <= 0 {
		d.bad, d.data = true, nil
		return 0
	}
	d.data = d.data[size:]
	return n
}

func (d *decoder) fixed() uint64 {
	if len(d.data) < 8 {
		d.bad, d.data = true, nil
		return 0
	}
	n := binary.BigEndian.Uint64(d.data)
	d.data = d.data[8:]
	return n
}

func (d *decoder) bytes() []byte {
	n := d.number()
	if n > uint64(len(d.data)) {
		d.bad, d.data = true, nil
		return nil
	}
	b := d.data[:n]
	d.data = d.data[n:]
	return b
}
