package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// An acceptance tells that a proxy accepted a load assignment.
type acceptance struct {
	proxy int
	at    time.Time
}

// A proxy is a client with a delta stream.
type proxy struct {
	conn   *grpc.ClientConn
	stream grpc.ClientStream
	done   chan struct{}
}

const (
	prefix   = "type.googleapis.com/envoy."
	cluster  = prefix + "config.cluster.v3.Cluster"
	endpoint = prefix + "config.endpoint.v3.ClusterLoadAssignment"
	listener = prefix + "config.listener.v3.Listener"
)

const window = 16 << 20

// raw sends and receives encoded messages as they are.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = raw{}

// connect opens the stream of a proxy and asks for everything.
func connect(ctx context.Context, address string, n int, accepted chan<- acceptance) (*proxy, error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10),
		grpc.WithStaticConnWindowSize(window), grpc.WithStaticStreamWindowSize(window)) // lest it pings after each response
	if err != nil {
		return nil, err
	}
	p := &proxy{conn: conn, done: make(chan struct{})}
	p.stream, err = conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true},
		"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources", grpc.ForceCodecV2(raw{}))
	if err == nil {
		err = p.stream.SendMsg(request(cluster, "", proxyID(n), nil))
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	go func() {
		defer close(p.done)
		if err := p.serve(n, accepted); ctx.Err() == nil {
			fmt.Printf("proxy %d: %v\n", n, err)
		}
	}()
	return p, nil
}

// serve accepts what comes, until the stream ends. It asks for the endpoints of the clusters that came first, and then for listeners.
func (p *proxy) serve(n int, accepted chan<- acceptance) error {
	asked := map[string]bool{}
	listening := false
	for {
		var data []byte
		if err := p.stream.RecvMsg(&data); err != nil {
			return err
		}
		r, err := parse(data)
		if err != nil {
			return err
		}
		if err := p.stream.SendMsg(request(r.typ, r.nonce, "", nil)); err != nil {
			return err
		}
		switch r.typ {
		case endpoint:
			accepted <- acceptance{n, time.Now()}
		case cluster:
			var more []string
			for _, c := range r.names {
				if c != "local_app" && !asked[c] {
					asked[c] = true
					more = append(more, c)
				}
			}
			if len(more) > 0 {
				if err := p.stream.SendMsg(request(endpoint, "", "", more)); err != nil {
					return err
				}
			}
			if !listening {
				listening = true
				if err := p.stream.SendMsg(request(listener, "", "", nil)); err != nil {
					return err
				}
			}
		}
	}
}

func (p *proxy) close() {
	p.conn.Close()
	<-p.done
}

// request encodes a DeltaDiscoveryRequest.
func request(typ, nonce, node string, subscribe []string) []byte {
	var b []byte
	field := func(n protowire.Number, s string) {
		if s != "" {
			b = protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), s)
		}
	}
	if node != "" {
		id := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), node)
		b = protowire.AppendBytes(protowire.AppendTag(b, 1, protowire.BytesType), id)
	}
	field(2, typ)
	for _, s := range subscribe {
		field(3, s)
	}
	field(6, nonce)
	return b
}

// A response is what is read of a DeltaDiscoveryResponse.
type response struct {
	typ, nonce string
	names      []string
}

var errResponse = errors.New("response can not be read")

func parse(b []byte) (r response, err error) {
	each := func(b []byte, f func(n protowire.Number, v []byte)) {
		for len(b) > 0 {
			num, typ, n := protowire.ConsumeTag(b)
			if n < 0 {
				err = errResponse
				return
			}
			b = b[n:]
			if typ == protowire.BytesType {
				v, n := protowire.ConsumeBytes(b)
				if n < 0 {
					err = errResponse
					return
				}
				f(num, v)
				b = b[n:]
				continue
			}
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				err = errResponse
				return
			}
			b = b[n:]
		}
	}
	each(b, func(num protowire.Number, v []byte) {
		switch num {
		case 2: // resources
			each(v, func(num protowire.Number, v []byte) {
				if num == 3 {
					r.names = append(r.names, string(v))
				}
			})
		case 4:
			r.typ = string(v)
		case 5:
			r.nonce = string(v)
		}
	})
	return r, err
}
