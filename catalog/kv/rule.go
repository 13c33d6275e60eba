package kv

import (
	"fmt"
	"time"
)

// Bounds of a session's TTL; the lower one can be changed by the setting session_ttl_min.
const (
	MinTTL = 10 * time.Second
	MaxTTL = 24 * time.Hour
)

// ParseTTL parses a session's TTL. The empty string and zero give 0: the session never expires.
func ParseTTL(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("Session TTL '%s' invalid: %w", s, err)
	}
	return d, nil
}

// ExpiresAfter returns how long after its last renewal a session ends: twice its TTL, to ride out a change of leader
// and slow clocks. 0 means never.
func (s *Session) ExpiresAfter() time.Duration {
	ttl, err := ParseTTL(s.TTL)
	if err != nil {
		return 0
	}
	return 2 * ttl
}

// Normalize gives a new session its defaults and checks its bounds. A minTTL of 0 means MinTTL.
func (s *Session) Normalize(minTTL time.Duration) error {
	if minTTL == 0 {
		minTTL = MinTTL
	}
	switch s.Behavior {
	case "":
		s.Behavior = Release
	case Release, Delete:
	default:
		return fmt.Errorf("Invalid Behavior setting '%s'", string(s.Behavior))
	}
	ttl, err := ParseTTL(s.TTL)
	if err != nil {
		return err
	}
	if ttl != 0 && (ttl < minTTL || ttl > MaxTTL) {
		return fmt.Errorf("Invalid Session TTL '%d', must be between [%v=%v]", ttl, minTTL, MaxTTL)
	}
	return nil
}

// Verb returns the verb of an operation, empty for an empty one.
func (o *TxnOp) Verb() Op {
	switch {
	case o.KV != nil:
		return o.KV.Verb
	case o.Node != nil:
		return o.Node.Verb
	case o.Service != nil:
		return o.Service.Verb
	case o.Check != nil:
		return o.Check.Verb
	case o.Session != nil:
		return o.Session.Verb
	}
	return ""
}

// Writes reports whether an operation changes anything. A verb that is not known does not.
func (o *TxnOp) Writes() bool {
	switch o.Verb() {
	case OpSet, OpCAS, OpDelete, OpDeleteCAS:
		return true
	case OpLock, OpUnlock, OpDeleteTree:
		return o.KV != nil
	}
	return false
}
