// Package read holds what every request to the servers carries (Target, Options) and what every answer to a read
// tells about itself (Meta). The rules are in spec/state.md section 1.
package read

import "time"

// A Mode is how fresh an answer has to be.
type Mode uint8

const (
	// Default is answered by the leader without confirming its leadership.
	Default Mode = iota
	// Consistent is answered by the leader after a quorum confirmed it.
	Consistent
	// Stale is answered by whichever server was asked.
	Stale
)

// String returns the name used in the X-Consul-Effective-Consistency header.
func (m Mode) String() string {
	switch m {
	case Consistent:
		return "consistent"
	case Stale:
		return "stale"
	}
	return "leader"
}

// A Target says where a request goes and on whose behalf. Requests that write embed it.
type Target struct {
	Datacenter string `json:",omitempty"` // empty means that of the server asked
	// Token is the secret of the ACL token, empty for the anonymous one. It is cleared before a request enters the
	// Raft log.
	Token string `json:"-" cbor:"token,omitempty"`
	// Relayed requests come from a datacenter that takes the one asked for the primary one.
	Relayed bool `json:"-" cbor:"relayed,omitempty"`
}

// RequestTarget returns t; the transport finds it through this method.
func (t *Target) RequestTarget() *Target { return t }

// Options are what every read may ask for. Requests that read embed it.
type Options struct {
	Target
	Mode Mode `json:",omitempty"`
	// MinIndex greater than zero makes the call wait until the index of the answer passes it.
	MinIndex uint64 `json:",omitempty"`
	// MaxWait bounds that wait. Zero means the server's default, and the server's maximum applies.
	MaxWait time.Duration `json:",omitempty"`
	// MaxStale makes the caller repeat a stale read in Default mode when the answer's LastContact is greater.
	// Zero means any age will do.
	MaxStale time.Duration `json:",omitempty"`
	// Filter is an expression of spec/registry.md section 2, empty for none.
	Filter string `json:",omitempty"`
	// Near sorts by round-trip time from this node, empty for the natural order.
	Near string `json:",omitempty"`
	// NodeMeta keeps only what belongs to nodes that have all these pairs.
	NodeMeta map[string]string `json:",omitempty"`
}

// ReadOptions returns o; the transport finds it through this method.
func (o *Options) ReadOptions() *Options { return o }

// Meta tells about the answer to a read. Replies embed it. The handler of a read sets Index and, where it applies,
// Filtered; the transport sets the rest.
type Meta struct {
	// Index is that of the last change that touched the answer, at least 1 when it reaches a client.
	Index uint64 `json:"-" cbor:"index,omitempty"`
	// KnownLeader tells whether the answering server knows a leader.
	KnownLeader bool `json:"-" cbor:"leader,omitempty"`
	// LastContact is the time since the answering server heard from the leader, 0 on the leader.
	LastContact time.Duration `json:"-" cbor:"contact,omitempty"`
	// Filtered tells that ACLs removed something from the answer.
	Filtered bool `json:"-" cbor:"filtered,omitempty"`
	// NotFound tells that the single object asked for does not exist: a blocked read does not wake for it twice.
	NotFound bool `json:"-" cbor:"notfound,omitempty"`
}

// ReadMeta returns m; the transport finds it through this method.
func (m *Meta) ReadMeta() *Meta { return m }
