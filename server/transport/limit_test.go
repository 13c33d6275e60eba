package transport_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/kv"
	"github.com/sarnmesh/sarn/catalog/operator"
	"github.com/sarnmesh/sarn/internal/wireerr"
	"github.com/sarnmesh/sarn/server/kvrpc"
	"github.com/sarnmesh/sarn/server/rpctest"
	"github.com/sarnmesh/sarn/server/transport"
)

func TestRequestLimits(t *testing.T) {
	for _, tt := range []struct {
		name   string
		limits transport.Limits
		reads  int // that go through when twenty are made at once
		writes int
	}{
		{"none", transport.Limits{}, 20, 20},
		{"disabled", transport.Limits{Mode: transport.LimitDisabled, Reads: 1, Writes: 1}, 20, 20},
		{"permissive", transport.Limits{Mode: transport.LimitPermissive, Reads: 1, Writes: 1}, 20, 20},
		{"enforcing", transport.Limits{Mode: transport.LimitEnforcing, Reads: 1, Writes: 0.5}, 10, 5},
		{"reads only", transport.Limits{Mode: transport.LimitEnforcing, Reads: 1, Writes: -1}, 10, 20},
		{"less than one", transport.Limits{Mode: transport.LimitEnforcing, Reads: 0.01, Writes: 0}, 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := rpctest.New()
				kvrpc.Register(&s.Registry, &s.Appliers, kvrpc.Config{})
				d := s.Caller()
				d.SetLimits(tt.limits)
				burst := func() (reads, writes int) {
					for range 20 {
						if _, err := kv.GetCall.Call(t.Context(), d, &kv.GetRequest{Key: "a"}); err == nil {
							reads++
						} else if !errors.Is(err, wireerr.ErrRateLimited) {
							t.Fatalf("read: %v", err)
						}
						if _, err := kv.ApplyCall.Call(t.Context(), d, &kv.ApplyRequest{Op: kv.OpSet, Entry: kv.Entry{Key: "a"}}); err == nil {
							writes++
						} else if !errors.Is(err, wireerr.ErrRateLimitedWrite) {
							t.Fatalf("write: %v", err)
						}
					}
					return reads, writes
				}
				if reads, writes := burst(); reads != tt.reads || writes != tt.writes {
					t.Errorf("%d reads and %d writes went through, want %d and %d", reads, writes, tt.reads, tt.writes)
				}
				time.Sleep(2 * time.Second)
				if reads, writes := burst(); tt.name == "enforcing" && (reads != 2 || writes != 1) {
					t.Errorf("two seconds later %d reads and %d writes went through, want 2 and 1", reads, writes)
				}
			})
		})
	}
}

func leader(context.Context, *transport.Call, *operator.StatusRequest) (*operator.LeaderReply, acl.Permit, error) {
	return &operator.LeaderReply{}, acl.Open(), nil
}

func TestWhatOperatorsAskIsNotLimited(t *testing.T) {
	s := rpctest.New()
	transport.Handle(&s.Registry, operator.LeaderCall, leader)
	d := s.Caller()
	d.SetLimits(transport.Limits{Mode: transport.LimitEnforcing})
	if _, err := operator.LeaderCall.Call(t.Context(), d, &operator.StatusRequest{}); err != nil {
		t.Error(err)
	}
}
