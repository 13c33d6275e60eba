package dns

import (
	"context"
	"net/netip"

	"github.com/miekg/dns"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// GRPCService is the name of the service that answers questions over gRPC: its method Query takes a DNS message and the
// protocol that it came over, and returns a DNS message (spec/dns.md section 13).
const GRPCService = "hashicorp.consul.dns.DNSService"

// tokenKey is where a caller has its token, in what it sends along.
const tokenKey = "x-consul-token"

// The protocols of a call.
const (
	protocolTCP = 1
	protocolUDP = 2
)

// The messages of a call: bytes msg = 1 of both, and Protocol protocol = 2 of the request.
var requestType, replyType = func() (request, reply protoreflect.MessageDescriptor) {
	field := func(name string, number int32, kind descriptorpb.FieldDescriptorProto_Type, of *string) *descriptorpb.FieldDescriptorProto {
		return &descriptorpb.FieldDescriptorProto{
			Name: &name, Number: &number, Type: &kind, TypeName: of, Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
		}
	}
	text := proto.String
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: text("dns.proto"), Package: text("hashicorp.consul.dns"), Syntax: text("proto3"),
		EnumType: []*descriptorpb.EnumDescriptorProto{{Name: text("Protocol"), Value: []*descriptorpb.EnumValueDescriptorProto{
			{Name: text("PROTOCOL_UNSET_UNSPECIFIED"), Number: proto.Int32(0)},
			{Name: text("PROTOCOL_TCP"), Number: proto.Int32(protocolTCP)}, {Name: text("PROTOCOL_UDP"), Number: proto.Int32(protocolUDP)},
		}}},
		MessageType: []*descriptorpb.DescriptorProto{
			{Name: text("QueryRequest"), Field: []*descriptorpb.FieldDescriptorProto{
				field("msg", 1, descriptorpb.FieldDescriptorProto_TYPE_BYTES, nil),
				field("protocol", 2, descriptorpb.FieldDescriptorProto_TYPE_ENUM, text(".hashicorp.consul.dns.Protocol")),
			}},
			{Name: text("QueryResponse"), Field: []*descriptorpb.FieldDescriptorProto{field("msg", 1, descriptorpb.FieldDescriptorProto_TYPE_BYTES, nil)}},
		},
	}, nil)
	if err != nil {
		panic(err)
	}
	return file.Messages().ByName("QueryRequest"), file.Messages().ByName("QueryResponse")
}()

// Register adds the service that answers questions over gRPC.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: GRPCService, HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "Query", Handler: func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			req := dynamicpb.NewMessage(requestType)
			if err := decode(req); err != nil {
				return nil, err
			}
			if intercept == nil {
				return s.query(ctx, req)
			}
			return intercept(ctx, req, &grpc.UnaryServerInfo{Server: s, FullMethod: "/" + GRPCService + "/Query"},
				func(ctx context.Context, req any) (any, error) { return s.query(ctx, req.(*dynamicpb.Message)) })
		}}},
	}, s)
}

// query answers a question that came over gRPC, with the token that came along or none. It is among those that may be
// under way at once.
func (s *Server) query(ctx context.Context, call *dynamicpb.Message) (*dynamicpb.Message, error) {
	msg := call.Get(requestType.Fields().ByNumber(1)).Bytes()
	protocol := call.Get(requestType.Fields().ByNumber(2)).Enum()
	if protocol != protocolTCP && protocol != protocolUDP {
		return nil, status.Error(codes.InvalidArgument, "error protocol type not set: TCP or UDP is wanted")
	}
	if len(msg) > dns.MaxMsgSize {
		return nil, status.Error(codes.InvalidArgument, "the question is too long")
	}
	var from netip.AddrPort
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		from, _ = netip.ParseAddrPort(p.Addr.String()) // the zero address for what has none
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	}
	req, err := s.unpack(msg, from)
	if err != nil || req.Response {
		return nil, status.Error(codes.InvalidArgument, "failure decoding dns request: it is no question")
	}
	release, ok := s.slot(req)
	if !ok {
		s.counts.dropped.Add(1)
		return nil, status.Error(codes.ResourceExhausted, "too many questions are under way")
	}
	defer release()
	token := ""
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		if v := md.Get(tokenKey); len(v) > 0 {
			token = v[0]
		}
	}
	out, _ := s.packed(ctx, asker{from: from, token: token, tcp: protocol == protocolTCP}, req, nil)
	reply := dynamicpb.NewMessage(replyType)
	reply.Set(replyType.Fields().ByNumber(1), protoreflect.ValueOfBytes(out))
	return reply, nil
}
