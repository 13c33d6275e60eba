// Package primary is what other datacenters have to do with the primary one: they have it make changes, and copy what comes
// of them.
package primary

import (
	"context"
	"errors"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/pause"
	"github.com/sarnmesh/sarn/internal/rpc"
)

var errNotPrimary = errors.New("datacenters do not agree on which of them is the primary one (primary_datacenter)")

// Ask has a datacenter, which call reaches, do what is asked of this one: it also decides whether the token may. What another
// has asked of this one in turn goes no further, or it might have no end.
func Ask[Req, Resp any](ctx context.Context, call func(ctx context.Context, d rpc.Descriptor, req, resp any) error, datacenter string, m rpc.Method[Req, Resp], req *Req) (*Resp, acl.Permit, error) {
	there, resp := *req, new(Resp)
	target := any(&there).(interface{ RequestTarget() *read.Target }).RequestTarget()
	if target.Relayed {
		return nil, acl.Permit{}, errNotPrimary
	}
	target.Datacenter, target.Relayed = datacenter, true
	if err := call(ctx, m.Descriptor, &there, resp); err != nil {
		return nil, acl.Permit{}, err
	}
	return resp, acl.Open(), nil
}

// Times of copying.
const (
	every    = time.Second      // at most
	maxWait  = 5 * time.Minute  // for changes
	minRetry = time.Second      // after the first failure; then twice as long each time
	maxRetry = 64 * time.Second // at most
)

// Options are those of a read in a datacenter: of what is there now, or, with an index, of what comes after it.
func Options(datacenter, token string, index uint64) read.Options {
	o := read.Options{Target: read.Target{Datacenter: datacenter, Token: token}, MinIndex: index}
	if index > 0 {
		o.MaxWait = maxWait
	}
	return o
}

// Copy runs round again and again until ctx ends. A round waits for changes, if there was one before that did not fail, and
// copies them. Failed is told of errors, and how long it is until the next round.
func Copy(ctx context.Context, round func(context.Context) error, failed func(err error, wait time.Duration)) {
	retry := minRetry
	for {
		err := round(ctx)
		if ctx.Err() != nil {
			return
		}
		wait := every
		if err != nil {
			wait, retry = retry, min(2*retry, maxRetry)
			failed(err, wait)
		} else {
			retry = minRetry
		}
		if !pause.For(ctx, wait) {
			return
		}
	}
}

// First makes calls at the same time and returns the first result, when all of them have ended.
func First(ctx context.Context, calls ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan error, len(calls))
	for _, call := range calls {
		go func() { results <- call(ctx) }()
	}
	first := <-results
	cancel()
	for range len(calls) - 1 {
		<-results
	}
	return first
}
