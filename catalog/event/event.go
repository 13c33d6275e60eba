// Package event holds user events: small messages that gossip carries to every agent of a datacenter, and the list of
// those an agent has accepted (spec/state.md section 7).
package event

import (
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// FireCall spreads an event in the datacenter of its Target. The caller sets its ID.
var FireCall = rpc.Local[FireRequest, struct{}]("Event.Fire")

// Prefix begins the name under which gossip carries an event.
const Prefix = "consul:event:"

// Version of the event format.
const Version = 1

// ErrTagWithoutService refuses a tag filter on its own.
var ErrTagWithoutService = errors.New("Cannot provide tag filter without service filter")

// An Event is one message. Events in a Log are shared and must not be changed.
type Event struct {
	ID            string // UUID
	Name          string
	Payload       []byte // JSON shows an empty one as null
	NodeFilter    string // regular expressions, not anchored; empty for no filter
	ServiceFilter string
	TagFilter     string
	Version       int
	LTime         uint64 // 0 until gossip has carried it
}

// A FireRequest spreads an event.
type FireRequest struct {
	read.Target
	Event Event
}

// Check returns what is wrong with the filters of e.
func (e *Event) Check() error {
	if e.TagFilter != "" && e.ServiceFilter == "" {
		return ErrTagWithoutService
	}
	for _, f := range []struct{ what, expr string }{
		{"node", e.NodeFilter}, {"service", e.ServiceFilter}, {"tag", e.TagFilter},
	} {
		if _, err := regexp.Compile(f.expr); err != nil {
			return fmt.Errorf("Invalid %s filter: %w", f.what, err)
		}
	}
	return nil
}

// wire is the form of an event in gossip, where each byte counts. The name travels beside it.
type wire struct {
	ID      []byte `cbor:"1,keyasint"`
	Payload []byte `cbor:"2,keyasint,omitempty"`
	Node    string `cbor:"3,keyasint,omitempty"`
	Service string `cbor:"4,keyasint,omitempty"`
	Tag     string `cbor:"5,keyasint,omitempty"`
	Version int    `cbor:"6,keyasint,omitempty"`
}

// Encode returns the name and payload that gossip carries for e.
func (e *Event) Encode() (name string, payload []byte, err error) {
	id, err := hex.DecodeString(strings.ReplaceAll(e.ID, "-", ""))
	if err != nil || len(id) != 16 {
		return "", nil, fmt.Errorf("event ID %q is not a UUID", e.ID)
	}
	payload, err = rpc.Marshal(wire{id, e.Payload, e.NodeFilter, e.ServiceFilter, e.TagFilter, e.Version})
	return Prefix + e.Name, payload, err
}

// Decode is the inverse of Encode. It reports false for a message that is no event.
func Decode(name string, payload []byte, ltime uint64) (*Event, bool) {
	short, ok := strings.CutPrefix(name, Prefix)
	if !ok {
		return nil, false
	}
	var w wire
	if err := rpc.Unmarshal(payload, &w); err != nil || len(w.ID) != 16 {
		return nil, false
	}
	h := hex.EncodeToString(w.ID)
	e := &Event{
		ID: h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:], Name: short, Payload: w.Payload,
		NodeFilter: w.Node, ServiceFilter: w.Service, TagFilter: w.Tag, Version: w.Version, LTime: ltime,
	}
	if len(e.Payload) == 0 {
		e.Payload = nil
	}
	return e, true
}

// Concerns reports whether an agent accepts e: one of this node name, with services, each with its tags, registered at
// it. An event whose filters do not compile concerns nobody.
func (e *Event) Concerns(node string, services map[string][]string) bool {
	if e.Check() != nil {
		return false
	}
	match := func(expr, s string) bool { return expr == "" || regexp.MustCompile(expr).MatchString(s) }
	if !match(e.NodeFilter, node) {
		return false
	}
	if e.ServiceFilter == "" {
		return true
	}
	for name, tags := range services {
		if !match(e.ServiceFilter, name) {
			continue
		}
		if e.TagFilter == "" {
			return true
		}
		for _, tag := range tags {
			if match(e.TagFilter, tag) {
				return true
			}
		}
	}
	return false
}

// Index is the X-Consul-Index of a list that ends with e: the halves of its UUID, combined.
func (e *Event) Index() uint64 {
	b, err := hex.DecodeString(strings.ReplaceAll(e.ID, "-", ""))
	if err != nil || len(b) != 16 {
		return 1
	}
	var hi, lo uint64
	for i := range 8 {
		hi, lo = hi<<8|uint64(b[i]), lo<<8|uint64(b[8+i])
	}
	return hi ^ lo
}

// kept is how many events a Log holds.
const kept = 256

// A Log is the last events an agent accepted. The zero Log is empty and ready; it is safe for concurrent use.
type Log struct {
	mu      sync.Mutex
	events  []*Event      // oldest first
	changed chan struct{} // closed by the next Add; nil until somebody waits
}

// Add appends an event and wakes those who wait.
func (l *Log) Add(e *Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.events) == kept {
		l.events = append([]*Event(nil), l.events[1:]...)
	}
	l.events = append(l.events, e)
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// List returns the events, oldest first, with this name or, for an empty one, all; and a channel that is closed when
// another arrives.
func (l *Log) List(name string) (events []*Event, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	events = []*Event{}
	for _, e := range l.events {
		if name == "" || e.Name == name {
			events = append(events, e)
		}
	}
	return events, l.changed
}
