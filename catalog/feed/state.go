package feed

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// A State is the instances of a subject as of an index. It does not change; the instances are shared.
type State struct {
	Index uint64
	// Filtered says that there are instances that the token may not see.
	Filtered  bool
	Instances []*catalog.Instance

	sums   []uint64 // of the encoded instances
	digest uint64
}

// Version names the state.
func (s *State) Version() Version { return Version{s.Index, s.digest} }

// seal sets the digest: of all that the state is, its index too.
func (s *State) seal() {
	const odd = 0x9e3779b97f4a7c15
	d := s.Index*odd + uint64(len(s.sums))
	if s.Filtered {
		d = ^d
	}
	for _, sum := range s.sums {
		d = (bits.RotateLeft64(d, 7) ^ sum) * odd
	}
	s.digest = d
}

func sumOf(encoded []byte) uint64 {
	sum := sha256.Sum256(encoded)
	return binary.BigEndian.Uint64(sum[:])
}

// Flags of an event.
const (
	eventReplaces = 1 << iota // it follows on any state
	eventFiltered
)

// An event is, in this order: its flags, the index and digest of the state it leads to, the digest of the one it follows on
// (unless it replaces any), the positions there that are left out, and the instances that come in, each after its position
// in the state it leads to. Positions are told by how many lie between one and the next.

// Begin returns a state and the event that leads to it from any other.
func Begin(index uint64, filtered bool, instances []*catalog.Instance) (*State, []byte, error) {
	s := &State{Index: index, Filtered: filtered, Instances: instances, sums: make([]uint64, len(instances))}
	event, err := s.encode(nil, nil, nil)
	return s, event, err
}

// Snapshot returns the event that leads to s from any other state.
func (s *State) Snapshot() ([]byte, error) {
	own := *s
	own.sums = make([]uint64, len(s.sums))
	return own.encode(nil, nil, nil)
}

// Next returns the state that follows, and the event that leads to it from s. Instances of both are told by identity.
func (s *State) Next(index uint64, filtered bool, instances []*catalog.Instance) (*State, []byte, error) {
	n := &State{Index: index, Filtered: filtered, Instances: instances, sums: make([]uint64, len(instances))}
	from, removed := compare(s.Instances, instances)
	for at, old := range from {
		if old >= 0 {
			n.sums[at] = s.sums[old]
		}
	}
	event, err := n.encode(s, from, removed)
	return n, event, err
}

// encode seals s and returns the event that leads to it: from old, where from has the position there of each instance that
// stays, -1 for those that come in; or from any state if old is nil.
func (s *State) encode(old *State, from, removed []int) ([]byte, error) {
	var added []byte
	count, last := 0, -1
	for at, i := range s.Instances {
		if old != nil && from[at] >= 0 {
			continue
		}
		data, err := rpc.Marshal(i)
		if err != nil {
			return nil, fmt.Errorf("encode instance %s of node %s: %w", i.Service.ID, i.Node.Node, err)
		}
		s.sums[at] = sumOf(data)
		added = binary.AppendUvarint(added, uint64(at-last-1))
		added = binary.AppendUvarint(added, uint64(len(data)))
		added = append(added, data...)
		count, last = count+1, at
	}
	s.seal()
	flags := byte(0)
	if old == nil {
		flags |= eventReplaces
	}
	if s.Filtered {
		flags |= eventFiltered
	}
	b := make([]byte, 0, len(added)+64+2*len(removed))
	b = append(b, flags)
	b = binary.AppendUvarint(b, s.Index)
	b = binary.BigEndian.AppendUint64(b, s.digest)
	if old != nil {
		b = binary.BigEndian.AppendUint64(b, old.digest)
	}
	b = binary.AppendUvarint(b, uint64(len(removed)))
	last = -1
	for _, at := range removed {
		b = binary.AppendUvarint(b, uint64(at-last-1))
		last = at
	}
	b = binary.AppendUvarint(b, uint64(count))
	return append(b, added...), nil
}

// compare returns, for each of b, its position in a or -1 if it is none of those that stay in their order, and the
// positions in a of those that do not stay.
func compare(a, b []*catalog.Instance) (from, removed []int) {
	from = make([]int, len(b))
	front := 0
	for front < len(a) && front < len(b) && a[front] == b[front] {
		from[front] = front
		front++
	}
	back := 0
	for back < len(a)-front && back < len(b)-front && a[len(a)-1-back] == b[len(b)-1-back] {
		back++
		from[len(b)-back] = len(a) - back
	}
	a, b = a[:len(a)-back], b[:len(b)-back]
	if front < len(a) {
		at := make(map[*catalog.Instance]int, len(a)-front)
		for i := front; i < len(a); i++ {
			at[a[i]] = i
		}
		next := front
		for i := front; i < len(b); i++ {
			old, ok := at[b[i]]
			if from[i] = -1; ok && old >= next {
				from[i] = old
				for ; next < old; next++ {
					removed = append(removed, next)
				}
				next = old + 1
			}
		}
		for ; next < len(a); next++ {
			removed = append(removed, next)
		}
		return from, removed
	}
	for i := front; i < len(b); i++ {
		from[i] = -1
	}
	return from, nil
}

// Errors of Follow.
var (
	ErrEvent  = errors.New("malformed event")
	ErrOther  = errors.New("the event follows on another state")
	ErrDigest = errors.New("the event does not lead to the state it names")
)

// Follow returns the state that an event leads to from s, which may be nil: no state. What comes out of it is verified to
// be what the server has.
func (s *State) Follow(event []byte) (*State, error) {
	d := decoder{data: event}
	flags := d.byte()
	n := &State{Index: d.number(), Filtered: flags&eventFiltered != 0}
	want := d.fixed()
	if flags&eventReplaces != 0 {
		s = &State{}
	} else if based := d.fixed(); !d.bad && (s == nil || s.digest != based) {
		return nil, ErrOther
	}
	removals := d.number()
	if d.bad || removals > uint64(len(s.Instances)) {
		return nil, ErrEvent
	}
	removed := make([]int, removals)
	last := -1
	for i := range removed {
		gap := d.number()
		if d.bad || gap >= uint64(len(s.Instances)) {
			return nil, ErrEvent
		}
		if last += int(gap) + 1; last >= len(s.Instances) {
			return nil, ErrEvent
		}
		removed[i] = last
	}
	added := d.number()
	if d.bad || added > uint64(len(d.data)) { // each takes a byte and more
		return nil, ErrEvent
	}
	size := len(s.Instances) - len(removed) + int(added)
	n.Instances, n.sums = make([]*catalog.Instance, 0, size), make([]uint64, 0, size)
	next := 0 // of s
	keep := func(to int) bool {
		for len(n.Instances) < to {
			if len(removed) > 0 && removed[0] == next {
				removed = removed[1:]
				next++
				continue
			}
			if next == len(s.Instances) {
				return false
			}
			n.Instances, n.sums = append(n.Instances, s.Instances[next]), append(n.sums, s.sums[next])
			next++
		}
		return true
	}
	last = -1
	for range added {
		gap := d.number()
		data := d.bytes()
		if d.bad || gap >= uint64(size) {
			return nil, ErrEvent
		}
		if last += int(gap) + 1; last >= size || !keep(last) {
			return nil, ErrEvent
		}
		i := new(catalog.Instance)
		if err := rpc.Unmarshal(data, i); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrEvent, err)
		}
		if i.Node == nil || i.Service == nil || slices.Contains(i.Checks, nil) {
			return nil, ErrEvent
		}
		n.Instances, n.sums = append(n.Instances, i), append(n.sums, sumOf(data))
	}
	if !keep(size) || len(d.data) > 0 {
		return nil, ErrEvent
	}
	if n.seal(); n.digest != want {
		return nil, ErrDigest
	}
	return n, nil
}
