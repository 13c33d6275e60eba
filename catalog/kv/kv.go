// Package kv holds key/value entries, sessions and transactions, and the rules for changing them: check-and-set,
// session locks, lock delay, invalidation and recursive deletes (spec/state.md sections 2 to 4).
//
// The package is pure: it starts no goroutines and reads no clock. IDs and times are chosen before a log entry is
// written.
package kv

import (
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// An Entry is one key with its value and lock state. Entries read from a store are shared; copy one before changing it.
type Entry struct {
	// LockIndex counts acquisitions over the life of the key. Acquiring again with the session that already holds the
	// lock leaves it unchanged.
	LockIndex uint64
	Key       string // compared byte by byte
	Flags     uint64
	Value     []byte // up to the kv_max_value_size limit, 512 KiB by default; nil when empty
	Session   string `json:",omitempty"` // ID of the session that holds the lock, empty if none does
	catalog.Indexes
}

// A Behavior is what happens to held keys when a session ends.
type Behavior string

const (
	Release Behavior = "release" // the default
	Delete  Behavior = "delete"
)

// A ServiceCheck names a service's check that a session depends on.
type ServiceCheck struct {
	ID        string
	Namespace string
}

// A Session is a lease that keys can be locked with. Sessions read from a store are shared.
type Session struct {
	ID            string // UUID
	Name          string
	Node          string
	LockDelay     time.Duration
	Behavior      Behavior
	TTL           string         // as it was given, empty for none
	NodeChecks    []string       // may be nil
	ServiceChecks []ServiceCheck // may be nil
	Checks        []string       `json:",omitempty"` // the deprecated field, see spec/state.md section 4
	catalog.Indexes
}

// A Delay tells that a key refuses new holders for a time, because the session of its last one ended.
type Delay struct {
	Key string
	For time.Duration
}

// An Op is a change of one key or one subtree.
type Op string

// The verbs of transactions, which single writes use too (spec/state.md section 3.1).
const (
	OpSet            Op = "set"
	OpCAS            Op = "cas"
	OpLock           Op = "lock"
	OpUnlock         Op = "unlock"
	OpGet            Op = "get"
	OpGetOrEmpty     Op = "get-or-empty"
	OpGetTree        Op = "get-tree"
	OpCheckIndex     Op = "check-index"
	OpCheckSession   Op = "check-session"
	OpCheckNotExists Op = "check-not-exists"
	OpDelete         Op = "delete"
	OpDeleteTree     Op = "delete-tree"
	OpDeleteCAS      Op = "delete-cas"
)

// Calls to the servers. Handlers are in server/kvrpc.
var (
	GetCall            = rpc.Read[GetRequest, GetReply]("KV.Get")
	ListCall           = rpc.Read[ListRequest, ListReply]("KV.List")
	KeysCall           = rpc.Read[KeysRequest, KeysReply]("KV.Keys")
	ApplyCall          = rpc.Write[ApplyRequest, ApplyReply]("KV.Apply")
	TxnCall            = rpc.Write[TxnRequest, TxnReply]("Txn.Apply")
	TxnReadCall        = rpc.Read[TxnReadRequest, TxnReadReply]("Txn.Read")
	SessionCreateCall  = rpc.Write[SessionCreateRequest, SessionCreateReply]("Session.Create")
	SessionDestroyCall = rpc.Write[SessionDestroyRequest, struct{}]("Session.Destroy")
	SessionRenewCall   = rpc.Leader[SessionRenewRequest, SessionsReply]("Session.Renew")
	SessionsCall       = rpc.Read[SessionsRequest, SessionsReply]("Session.List")
)

// A GetRequest asks for one key.
type GetRequest struct {
	read.Options
	Key string
}

// GetReply has a nil Entry, and NotFound set, when the key does not exist.
type GetReply struct {
	read.Meta
	Entry *Entry
}

// A ListRequest asks for all entries under a prefix.
type ListRequest struct {
	read.Options
	Prefix string
}

// ListReply is ordered by key.
type ListReply struct {
	read.Meta
	Entries []*Entry
}

// A KeysRequest asks for the names of keys under a prefix.
type KeysRequest struct {
	read.Options
	Prefix    string
	Separator string // cut keys after its first occurrence behind the prefix; empty cuts none
}

// KeysReply is ordered and free of duplicates.
type KeysReply struct {
	read.Meta
	Keys []string
}

// An ApplyRequest changes one key: OpSet, OpCAS, OpLock, OpUnlock, OpDelete, OpDeleteTree or OpDeleteCAS.
// Entry.ModifyIndex carries the index to compare with, Entry.Session the session of a lock.
type ApplyRequest struct {
	read.Target
	Op    Op
	Entry Entry
}

// ApplyReply tells whether the change was made; contention is not an error.
type ApplyReply struct{ OK bool }

// A TxnOp is one operation of a transaction; exactly one field is set.
type TxnOp struct {
	KV      *TxnKV      `json:",omitempty"`
	Node    *TxnNode    `json:",omitempty"`
	Service *TxnService `json:",omitempty"`
	Check   *TxnCheck   `json:",omitempty"`
	Session *TxnSession `json:",omitempty"` // only inside the servers, never from HTTP
}

// A TxnKV works on a key. Entry.ModifyIndex carries the index to compare with.
type TxnKV struct {
	Verb  Op
	Entry Entry
}

// A TxnNode works on a node. Verb is OpGet, OpSet, OpCAS, OpDelete or OpDeleteCAS; so for the next two.
type TxnNode struct {
	Verb Op
	Node catalog.Node
}

// A TxnService works on an instance of the node named.
type TxnService struct {
	Verb    Op
	Node    string
	Service catalog.Service
}

// A TxnCheck works on a check.
type TxnCheck struct {
	Verb  Op
	Check catalog.Check
}

// A TxnSession ends a session.
type TxnSession struct {
	Verb    Op // OpDelete
	Session Session
}

// A TxnResult is one object returned by a transaction; exactly one field is set.
type TxnResult struct {
	KV      *Entry           `json:",omitempty"`
	Node    *catalog.Node    `json:",omitempty"`
	Service *catalog.Service `json:",omitempty"`
	Check   *catalog.Check   `json:",omitempty"`
}

// A TxnError tells why an operation failed.
type TxnError struct {
	OpIndex int
	What    string
}

// A TxnRequest applies all operations or none.
type TxnRequest struct {
	read.Target
	Ops []TxnOp
}

// TxnReply has Results when the transaction was applied, else Errors.
type TxnReply struct {
	Results []TxnResult
	Errors  []TxnError
}

// A TxnReadRequest is a transaction that only reads.
type TxnReadRequest struct {
	read.Options
	Ops []TxnOp
}

// TxnReadReply answers a TxnReadRequest.
type TxnReadReply struct {
	read.Meta
	TxnReply
}

// A SessionCreateRequest creates a session. The leader chooses its ID.
type SessionCreateRequest struct {
	read.Target
	Session Session
}

// SessionCreateReply carries the new session's ID.
type SessionCreateReply struct{ ID string }

// A SessionDestroyRequest ends a session; an unknown ID is no error.
type SessionDestroyRequest struct {
	read.Target
	ID string
}

// A SessionRenewRequest restarts the TTL of a session.
type SessionRenewRequest struct {
	read.Target
	ID string
}

// A SessionsRequest lists sessions: one by ID, those of a node, or all.
type SessionsRequest struct {
	read.Options
	ID   string
	Node string
}

// SessionsReply is ordered by ID.
type SessionsReply struct {
	read.Meta
	Sessions []*Session
}
