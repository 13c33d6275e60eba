// Package rpc describes the calls an agent makes to the servers: a name, who may answer it, and the Go types of
// request and reply. It knows no network. A server answers calls in process, an agent sends them over gRPC; both
// look the same to the caller, who holds a Caller.
//
// Subject packages declare their calls as package variables:
//
//	var Get = rpc.Read[GetRequest, GetReply]("KV.Get")
//
// and use them as Get.Call(ctx, caller, &GetRequest{…}).
package rpc

import (
	"context"
	"io"
)

// A Kind says which server may answer a call and how.
type Kind uint8

const (
	// KindRead is answered from a snapshot of the state. The request embeds read.Options and the reply read.Meta;
	// the call may block, and is forwarded to the leader unless it asks for a stale answer.
	KindRead Kind = iota
	// KindWrite changes replicated state and is forwarded to the leader. The request embeds read.Target.
	KindWrite
	// KindLeader is answered by the leader from something that is not replicated state. The request embeds read.Target.
	KindLeader
	// KindLocal is answered by whichever server receives it.
	KindLocal
)

// A Descriptor is the part of a Method that needs no type parameters.
type Descriptor struct {
	Name string // "Subject.Verb", unique
	Kind Kind
}

// A Caller performs calls. The reply is written into resp, a pointer to the method's reply type. What a reply points
// to is shared and must not be changed. A Caller is safe for concurrent use.
type Caller interface {
	Call(ctx context.Context, d Descriptor, req, resp any) error
}

// A Method is a call with request type Req and reply type Resp. The zero Method is not usable.
type Method[Req, Resp any] struct{ Descriptor }

// Read declares a call of KindRead.
func Read[Req, Resp any](name string) Method[Req, Resp] {
	return Method[Req, Resp]{Descriptor{name, KindRead}}
}

// Write declares a call of KindWrite.
func Write[Req, Resp any](name string) Method[Req, Resp] {
	return Method[Req, Resp]{Descriptor{name, KindWrite}}
}

// Leader declares a call of KindLeader.
func Leader[Req, Resp any](name string) Method[Req, Resp] {
	return Method[Req, Resp]{Descriptor{name, KindLeader}}
}

// Local declares a call of KindLocal.
func Local[Req, Resp any](name string) Method[Req, Resp] {
	return Method[Req, Resp]{Descriptor{name, KindLocal}}
}

// Call performs the call through c.
func (m Method[Req, Resp]) Call(ctx context.Context, c Caller, req *Req) (*Resp, error) {
	resp := new(Resp)
	if err := c.Call(ctx, m.Descriptor, req, resp); err != nil {
		return nil, err
	}
	return resp, nil
}

// A Streamer is a Caller that also performs calls with a stream of bytes on either side: such as a snapshot.
type Streamer interface {
	Caller
	// Stream sends req and then all of in (nil for nothing), and returns when resp is filled. The reader gives the
	// bytes that follow it; it must be closed. A failure later on is an error of the reader.
	Stream(ctx context.Context, d Descriptor, req any, in io.Reader, resp any) (io.ReadCloser, error)
}

// Stream performs the call through s; see Streamer.
func (m Method[Req, Resp]) Stream(ctx context.Context, s Streamer, req *Req, in io.Reader) (*Resp, io.ReadCloser, error) {
	resp := new(Resp)
	out, err := s.Stream(ctx, m.Descriptor, req, in, resp)
	if err != nil {
		return nil, nil, err
	}
	return resp, out, nil
}

type impatientKey struct{}

// Impatient marks a call whose caller asks again by itself: it fails as soon as no server can be reached, so that the caller
// learns of it, where others are held until one can.
func Impatient(ctx context.Context) context.Context {
	return context.WithValue(ctx, impatientKey{}, true)
}

// IsImpatient reports whether the context is of a call marked so.
func IsImpatient(ctx context.Context) bool { return ctx.Value(impatientKey{}) != nil }
