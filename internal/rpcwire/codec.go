package rpcwire

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// codec is the encoding of messages.
type codec struct{}

func (codec) Name() string { return "cbor" }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*frames); ok {
		return mem.BufferSlice{mem.SliceBuffer(*f)}, nil
	}
	if p, ok := v.(*parts); ok {
		return p.encode(), nil
	}
	b, err := rpc.Marshal(v)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	if f, ok := v.(*frames); ok {
		*f = data.Materialize()
		return nil
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	return rpc.Unmarshal(buf.ReadOnlyData(), v)
}

// toStatus puts an error of a handler on the wire. gRPC's own codes are below 100; an HTTP status carried by the error
// travels in the place of the code.
func toStatus(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	case errors.Is(err, context.DeadlineExceeded):
		return status.Error(codes.DeadlineExceeded, err.Error())
	}
	code := codes.Unknown
	if s := wireerr.Carried(err); s >= 100 {
		code = codes.Code(s)
	}
	return status.Error(code, err.Error())
}

// A LostError tells that the connection broke, or the server ended, after a call may have reached it: it may or may
// not have been performed.
type LostError struct{ Err error }

func (e *LostError) Error() string { return wireerr.RemotePrefix + e.Err.Error() }
func (e *LostError) Unwrap() error { return e.Err }

// A DialError tells that a server could not be reached: the call was not performed.
type DialError struct{ Err error }

func (e *DialError) Error() string {
	return "rpc error getting client: failed to get conn: " + e.Err.Error()
}
func (e *DialError) Unwrap() error { return e.Err }

// fromStatus is the inverse of toStatus, at the caller.
func fromStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		return &LostError{err}
	}
	switch c := s.Code(); c {
	case codes.Canceled, codes.DeadlineExceeded:
		if err := ended(ctx); err != nil {
			return err
		}
		return &LostError{errors.New(s.Message())}
	case codes.Unavailable:
		return &LostError{errors.New(s.Message())}
	default:
		carried := int(c)
		if carried < 100 { // one of gRPC's own
			carried = 0
		}
		return wireerr.Remote(carried, s.Message())
	}
}

// ended returns why ctx has ended, nil while it has not. The other side goes by the same deadline, and may say that it has
// passed before the timer of ctx does.
func ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if end, ok := ctx.Deadline(); ok && !time.Now().Before(end) {
		return context.DeadlineExceeded
	}
	return nil
}
