package peering

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"

	"github.com/sarnmesh/sarn/catalog/peering"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// A Hostile is a peer that took a token and then says what it likes.
type Hostile struct {
	conn *grpc.ClientConn
	c    grpc.ClientStream
	next uint64
}

// NewHostile takes a token and opens a stream with it.
func NewHostile(ctx context.Context, dial func(ctx context.Context, address string) (net.Conn, error), text string) (*Hostile, error) {
	t, err := peering.DecodeToken(text)
	if err != nil {
		return nil, err
	}
	e := New(Config{Datacenter: "dc1", Dial: dial})
	secret, err := e.Exchange(ctx, t)
	if err != nil {
		return nil, err
	}
	conn, err := e.connect(place{roots: t.CA, name: t.ServerName}, t.Addresses()[0])
	if err != nil {
		return nil, err
	}
	c, err := conn.NewStream(ctx, &description.Streams[0], streamMethod)
	if err != nil {
		return nil, err
	}
	h := &Hostile{conn: conn, c: c}
	if err := send(c, &message{Open: &hello{Peering: t.PeerID, Secret: secret, Datacenter: "dc1\x00"}}); err != nil {
		return nil, err
	}
	if m, err := receive(c); err != nil || m.Welcome == nil {
		return nil, fmt.Errorf("not welcome: %v, %w", m, err)
	}
	return h, nil
}

// Close ends the stream.
func (h *Hostile) Close() { h.conn.Close() }

// Put sends a resource, whose data is encoded, and returns what the other side answers.
func (h *Hostile) Put(kind, name string, data any) (refusal string, err error) {
	encoded, err := rpc.Marshal(data)
	if err != nil {
		return "", err
	}
	return h.PutRaw(kind, name, encoded)
}

// PutRaw is Put for data as it is.
func (h *Hostile) PutRaw(kind, name string, data []byte) (refusal string, err error) {
	h.next++
	if err := send(h.c, &message{Put: &resource{Nonce: h.next, Kind: resourceKind(kind), Name: name, Data: data}}); err != nil {
		return "", err
	}
	for {
		m, err := receive(h.c)
		switch {
		case err != nil:
			return "", err
		case m.Put != nil:
			if err := send(h.c, &message{Ack: &ack{Nonce: m.Put.Nonce}}); err != nil {
				return "", err
			}
		case m.Ack != nil && m.Ack.Nonce == h.next:
			return m.Ack.Error, nil
		}
	}
}

// Say sends a message as it is, and returns why the stream ended.
func (h *Hostile) Say(data []byte) error {
	m, err := pack(cborRaw(data))
	if err != nil {
		return err
	}
	m.Value = data
	if err := h.c.SendMsg(m); err != nil {
		return err
	}
	for {
		if _, err := receive(h.c); err != nil {
			return err
		}
	}
}

type cborRaw []byte

// What a hostile peer builds its messages of.
type (
	BundleData   = bundleData
	ServiceData  = serviceData
	InstanceData = instanceData
)

// Limits.
const (
	MaxServices  = maxServices
	MaxInstances = maxInstances
)

// Decode reads a message, and what is in it, as the stream does; it returns what would be imported.
func Decode(data []byte) (imports []*peering.Import) {
	m := new(message)
	if decode(data, m) != nil || m.Put == nil {
		return nil
	}
	var names []string
	var b bundleData
	var d serviceData
	_, _ = serviceNames(m.Put.Data)
	_ = decode(m.Put.Data, &names)
	if decode(m.Put.Data, &b) == nil {
		_, _ = bundle(&b, "")
	}
	if decode(m.Put.Data, &d) == nil {
		if i, err := imported("peer", m.Put.Name, &d, TestTrustDomain); err == nil {
			imports = append(imports, i)
		}
	}
	return imports
}

// TestTrustDomain is the trust domain of the peer that Decode decodes for.
const TestTrustDomain = "11111111-2222-3333-4444-555555555555.consul"

// Encode returns a message with a service.
func Encode(name string, d *ServiceData) []byte {
	inner, err := rpc.Marshal(d)
	if err != nil {
		panic(err)
	}
	data, err := rpc.Marshal(&message{Put: &resource{Nonce: 1, Kind: serviceResource, Name: name, Data: inner}})
	if err != nil {
		panic(err)
	}
	return data
}
