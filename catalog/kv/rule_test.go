package kv_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/catalog/kv"
)

func TestSessionRules(t *testing.T) {
	tests := []struct {
		name     string
		session  kv.Session
		min      time.Duration
		behavior kv.Behavior
		expires  time.Duration
		err      string
	}{
		{name: "defaults", behavior: kv.Release},
		{name: "delete", session: kv.Session{Behavior: kv.Delete}, behavior: kv.Delete},
		{name: "unknown behavior", session: kv.Session{Behavior: "keep"}, err: "Invalid Behavior setting 'keep'"},
		{name: "zero never expires", session: kv.Session{TTL: "0s"}, behavior: kv.Release},
		{name: "lower bound", session: kv.Session{TTL: "10s"}, behavior: kv.Release, expires: 20 * time.Second},
		{name: "below it", session: kv.Session{TTL: "9.999s"}, err: "Invalid Session TTL '9999000000', must be between [10s=24h0m0s]"},
		{name: "upper bound", session: kv.Session{TTL: "24h"}, behavior: kv.Release, expires: 48 * time.Hour},
		{name: "above it", session: kv.Session{TTL: "24h1ns"}, err: "Invalid Session TTL '86400000000001', must be between [10s=24h0m0s]"},
		{name: "negative", session: kv.Session{TTL: "-1m"}, err: "Invalid Session TTL '-60000000000', must be between [10s=24h0m0s]"},
		{name: "configured lower bound", session: kv.Session{TTL: "1s"}, min: time.Second, behavior: kv.Release, expires: 2 * time.Second},
		{name: "no duration", session: kv.Session{TTL: "soon"}, err: `Session TTL 'soon' invalid: time: invalid duration "soon"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.session
			err := s.Normalize(tt.min)
			if got := fmt.Sprint(err); err != nil && got != tt.err || err == nil && tt.err != "" {
				t.Fatalf("error %v, want %q", err, tt.err)
			}
			if err == nil && (s.Behavior != tt.behavior || s.ExpiresAfter() != tt.expires) {
				t.Errorf("behavior %q, expires after %v; want %q, %v", s.Behavior, s.ExpiresAfter(), tt.behavior, tt.expires)
			}
		})
	}
}

func TestOperationsThatWrite(t *testing.T) {
	kvOp := func(verb kv.Op) kv.TxnOp { return kv.TxnOp{KV: &kv.TxnKV{Verb: verb}} }
	writes := map[kv.Op]bool{
		kv.OpSet: true, kv.OpCAS: true, kv.OpLock: true, kv.OpUnlock: true, kv.OpDelete: true, kv.OpDeleteTree: true, kv.OpDeleteCAS: true,
		kv.OpGet: false, kv.OpGetOrEmpty: false, kv.OpGetTree: false, kv.OpCheckIndex: false, kv.OpCheckSession: false, kv.OpCheckNotExists: false,
		"bogus": false, "": false,
	}
	for verb, want := range writes {
		if op := kvOp(verb); op.Writes() != want || op.Verb() != verb {
			t.Errorf("%q on a key: writes %v, want %v", verb, op.Writes(), want)
		}
	}
	for _, op := range []kv.TxnOp{{Node: &kv.TxnNode{Verb: kv.OpSet}}, {Service: &kv.TxnService{Verb: kv.OpDeleteCAS}}, {Check: &kv.TxnCheck{Verb: kv.OpCAS}}, {Session: &kv.TxnSession{Verb: kv.OpDelete}}} {
		if !op.Writes() {
			t.Errorf("%s does not write", op.Verb())
		}
	}
	for _, op := range []kv.TxnOp{{}, {Node: &kv.TxnNode{Verb: kv.OpGet}}, {Service: &kv.TxnService{Verb: kv.OpLock}}, {Check: &kv.TxnCheck{Verb: kv.OpDeleteTree}}} {
		if op.Writes() {
			t.Errorf("%q writes", op.Verb())
		}
	}
}
