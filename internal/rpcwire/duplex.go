package rpcwire

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// ErrUnknownMethod is told to who calls what a server does not know, as one of another version.
var ErrUnknownMethod = errors.New("the server does not know this call")

// Duplex performs a call of a StreamMethod whose two byte streams go on side by side: it sends the request and returns when
// the reply has arrived. What is written then is what follows the request, what is read what follows the reply. One
// goroutine may read while another writes. Close ends the call.
func (c *Client) Duplex(ctx context.Context, address, method string, req, resp any) (io.ReadWriteCloser, error) {
	conn, err := c.conn(ctx, address)
	if err != nil {
		return nil, err
	}
	// The call outlives the one who begins it.
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	defer stop()
	fail := func(err error) (io.ReadWriteCloser, error) {
		unknown := status.Code(err) == codes.Unimplemented
		if own.Err() != nil && ctx.Err() != nil {
			err = ctx.Err()
		} else {
			err = fromStatus(own, err)
		}
		cancel()
		if unknown {
			return nil, ErrUnknownMethod
		}
		if _, lost := errors.AsType[*LostError](err); lost {
			c.drop(address, conn)
		}
		return nil, err
	}
	desc := &grpc.StreamDesc{StreamName: method, ServerStreams: true, ClientStreams: true}
	s, err := conn.grpc.NewStream(own, desc, "/"+service+"/"+method)
	if err == nil {
		if err = s.SendMsg(req); err == nil || errors.Is(err, io.EOF) {
			err = s.RecvMsg(resp)
		}
	}
	if err != nil {
		return fail(err)
	}
	if !stop() { // ctx ended meanwhile
		return fail(ctx.Err())
	}
	return &duplex{
		chunkReader: chunkReader{recv: func(m any) error {
			err := s.RecvMsg(m)
			if err != nil && err != io.EOF {
				err = fromStatus(own, err)
			}
			return err
		}},
		chunkWriter: chunkWriter{s.SendMsg}, cancel: cancel,
	}, nil
}

type duplex struct {
	chunkReader
	chunkWriter
	cancel context.CancelFunc
}

func (d *duplex) Close() error {
	d.cancel()
	return nil
}

// WriteParts writes bytes that lie in several places, without copying them: they must stay as they are for good. All of
// them make one message. What a StreamMethod writes to has this method, unless the caller is in the same process.
func (w chunkWriter) WriteParts(all ...[]byte) error {
	p := parts(all)
	return w.send(&p)
}

// parts are the chunk of a byte stream.
type parts [][]byte

// encode returns the parts as rpc.Marshal would encode all of them in one slice: as a byte string of RFC 8949, section 3.
func (p *parts) encode() mem.BufferSlice {
	n := 0
	for _, b := range *p {
		n += len(b)
	}
	const byteString = 2 << 5
	var head []byte
	switch {
	case n < 24:
		head = []byte{byteString | byte(n)}
	case n <= math.MaxUint8:
		head = []byte{byteString | 24, byte(n)}
	case n <= math.MaxUint16:
		head = binary.BigEndian.AppendUint16([]byte{byteString | 25}, uint16(n))
	case n <= math.MaxUint32:
		head = binary.BigEndian.AppendUint32([]byte{byteString | 26}, uint32(n))
	default:
		head = binary.BigEndian.AppendUint64([]byte{byteString | 27}, uint64(n))
	}
	out := make(mem.BufferSlice, 0, len(*p)+1)
	out = append(out, mem.SliceBuffer(head))
	for _, b := range *p {
		if len(b) > 0 {
			out = append(out, mem.SliceBuffer(b))
		}
	}
	return out
}
