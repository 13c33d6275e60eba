package peering

import (
	"fmt"
	"reflect"

	"github.com/fxamacker/cbor/v2"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// What travels between clusters: messages in CBOR, each inside a BytesValue, so that the gRPC server of every agent
// carries them. All of them have been checked by nobody when they arrive.

// An exchangeRequest shows the secret of a token.
type exchangeRequest struct {
	Peering string // the ID in the token
	Secret  string
}

// exchangeReply has the secret that streams are opened with.
type exchangeReply struct{ Secret string }

// A message is one thing said on a stream; which, its one field that is set tells.
type message struct {
	Open    *hello    `json:",omitempty"` // the first of the side that dials
	Welcome *hello    `json:",omitempty"` // the first of the side that is dialed
	Beat    bool      `json:",omitempty"` // the sender is there
	Put     *resource `json:",omitempty"`
	Ack     *ack      `json:",omitempty"`
	End     bool      `json:",omitempty"` // the sender has deleted the peering
}

// A hello opens a stream.
type hello struct {
	Peering    string `json:",omitempty"` // ID that the side that is dialed gave the peering
	Secret     string `json:",omitempty"` // of the side that dials
	Datacenter string
}

// A resourceKind says what a resource is about.
type resourceKind string

// The kinds of resources, in the order in which they are sent.
const (
	bundleResource   resourceKind = "bundle"   // bundleData
	serversResource  resourceKind = "servers"  // []string, addresses of the servers of the side that is dialed
	servicesResource resourceKind = "services" // []string, all services that are exported to the receiver
	serviceResource  resourceKind = "service"  // serviceData of one of them
)

// A resource replaces what was sent of the same kind and name before. The receiver answers with an ack.
type resource struct {
	Nonce uint64
	Kind  resourceKind
	Name  string `json:",omitempty"`
	Data  []byte
}

// An ack says that a resource was taken, or why not.
type ack struct {
	Nonce uint64
	Error string `json:",omitempty"`
}

// bundleData is whom to trust as members of the sender's cluster.
type bundleData struct {
	TrustDomain string
	Roots       []string // PEM
}

// serviceData is a service of the sender's cluster.
type serviceData struct {
	Protocol  string          `json:",omitempty"`
	SNI       []string        `json:",omitempty"` // set for services in the mesh
	SpiffeID  []string        `json:",omitempty"`
	Instances []*instanceData `json:",omitempty"`
	Gateways  []*instanceData `json:",omitempty"` // through which the mesh reaches it
}

// instanceData is one instance with its node.
type instanceData struct {
	Node          string
	NodeID        string            `json:",omitempty"`
	NodeAddress   string            `json:",omitempty"`
	NodeAddresses map[string]string `json:",omitempty"`
	NodeMeta      map[string]string `json:",omitempty"`
	NodeStatus    string            `json:",omitempty"` // the worst of its checks, empty without any
	Datacenter    string            `json:",omitempty"`
	Locality      *catalog.Locality `json:",omitempty"`
	ID            string
	Address       string                            `json:",omitempty"`
	Addresses     map[string]catalog.ServiceAddress `json:",omitempty"`
	Port          int                               `json:",omitempty"`
	Tags          []string                          `json:",omitempty"`
	Meta          map[string]string                 `json:",omitempty"`
	Weights       *catalog.Weights                  `json:",omitempty"`
	Status        string                            `json:",omitempty"` // the worst of its own checks, empty without any
}

// Limits of what a peer may send. The gRPC server and client bound a message to 4 MiB.
const (
	maxServices  = 10000
	maxInstances = 4096 // of one service, and as many gateways
	maxData      = 3 << 20
	maxError     = 512
)

// decMode decodes what peers send: what is small on the wire must not become large in memory.
var decMode = func() cbor.DecMode {
	m, err := cbor.DecOptions{
		DefaultMapType: reflect.TypeFor[map[string]any](), DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxNestedLevels: 8,
		TagsMd: cbor.TagsForbidden, NaN: cbor.NaNDecodeForbidden, Inf: cbor.InfDecodeForbidden, UTF8: cbor.UTF8RejectInvalid,
		MaxArrayElements: 1 << 14, MaxMapPairs: 1 << 10,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return m
}()

// decode reads what a peer sent.
func decode(data []byte, v any) error {
	if err := decMode.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode message: %w", err)
	}
	return nil
}

// pack makes a message ready for gRPC.
func pack(v any) (*wrapperspb.BytesValue, error) {
	data, err := rpc.Marshal(v)
	if err != nil {
		return nil, err
	}
	return wrapperspb.Bytes(data), nil
}

// A carrier is either side of a gRPC stream.
type carrier interface {
	SendMsg(m any) error
	RecvMsg(m any) error
}

func send(c carrier, m *message) error {
	packed, err := pack(m)
	if err != nil {
		return err
	}
	return c.SendMsg(packed)
}

func receive(c carrier) (*message, error) {
	var b wrapperspb.BytesValue
	if err := c.RecvMsg(&b); err != nil {
		return nil, err
	}
	m := new(message)
	if err := decode(b.Value, m); err != nil {
		return nil, err
	}
	return m, nil
}
