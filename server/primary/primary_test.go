package primary_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sarnmesh/sarn/server/primary"
)

func TestCopyRetriesLaterAndLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		var at, waits []time.Duration
		primary.Copy(ctx, func(context.Context) error {
			at = append(at, time.Since(began)/time.Second)
			switch len(at) {
			case 1, 10:
				return nil
			case 12:
				cancel()
			}
			return errors.New("not reached")
		}, func(err error, wait time.Duration) { waits = append(waits, wait/time.Second) })
		if want := []time.Duration{0, 1, 2, 4, 8, 16, 32, 64, 128, 192, 193, 194}; !slices.Equal(at, want) {
			t.Errorf("rounds after %d seconds, want %d", at, want)
		}
		if want := []time.Duration{1, 2, 4, 8, 16, 32, 64, 64, 1}; !slices.Equal(waits, want) {
			t.Errorf("told of waits of %d seconds, want %d", waits, want)
		}
	})
}

func TestFirstEndsTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, ended := errors.New("first"), 0
		err := primary.First(t.Context(), func(context.Context) error {
			time.Sleep(time.Second)
			return first
		}, func(ctx context.Context) error {
			<-ctx.Done()
			ended++
			return ctx.Err()
		})
		if err != first || ended != 1 {
			t.Errorf("First = %v with %d ended", err, ended)
		}
	})
}

func TestOptionsWaitAfterAnIndex(t *testing.T) {
	if o := primary.Options("dc1", "secret", 0); o.Datacenter != "dc1" || o.Token != "secret" || o.MinIndex != 0 || o.MaxWait != 0 {
		t.Errorf("without an index: %+v", o)
	}
	if o := primary.Options("dc1", "", 7); o.MinIndex != 7 || o.MaxWait != 5*time.Minute {
		t.Errorf("after an index: %+v", o)
	}
}
