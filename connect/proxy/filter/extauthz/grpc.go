//lint:file-ignore SA1019 services still answer with what Envoy has deprecated

package extauthz

import (
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/unary"
	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

func (f *authzFilter) askGRPC(x *filter.Exchange, q *question) (*verdict, error) {
	var resp authv3.CheckResponse
	if err := unary.Call(x.Context(), f.env.Client, f.conf.GRPC, "/envoy.service.auth.v3.Authorization/Check", f.describe(x, q), &resp); err != nil {
		return nil, err
	}
	v := &verdict{}
	if resp.GetDynamicMetadata() != nil {
		v.metadata = resp.GetDynamicMetadata().AsMap()
	}
	if resp.GetStatus().GetCode() != 0 {
		d := resp.GetDeniedResponse()
		v.denied, v.body = true, d.GetBody()
		if v.status = int(d.GetStatus().GetCode()); v.status < 200 || v.status > 599 {
			v.status = 403
		}
		for _, h := range d.GetHeaders() {
			if e := option(h); validName(e.Name) && !strings.HasPrefix(e.Name, ":") {
				v.client = append(v.client, e.Field)
			}
		}
		return v, nil
	}
	o := resp.GetOkResponse()
	if v.metadata == nil && o.GetDynamicMetadata() != nil { // where it stood before
		v.metadata = o.GetDynamicMetadata().AsMap()
	}
	for _, h := range o.GetHeaders() {
		e := option(h)
		switch {
		case h.GetAppend().GetValue():
			v.append = append(v.append, e.Field)
		default:
			v.set = append(v.set, e.Field)
		}
	}
	for _, n := range o.GetHeadersToRemove() {
		v.remove = append(v.remove, strings.ToLower(n))
	}
	for _, h := range o.GetResponseHeadersToAdd() {
		v.response = append(v.response, option(h))
	}
	for _, p := range o.GetQueryParametersToSet() {
		v.setQuery = append(v.setQuery, message.Field{Name: p.GetKey(), Value: p.GetValue()})
	}
	v.removeQuery = o.GetQueryParametersToRemove()
	return v, nil
}

func option(m *corev3.HeaderValueOption) edit {
	e := edit{Field: message.Field{Name: strings.ToLower(m.GetHeader().GetKey()), Value: m.GetHeader().GetValue()}}
	if raw := m.GetHeader().GetRawValue(); e.Value == "" && len(raw) > 0 {
		e.Value = string(raw)
	}
	switch m.GetAppendAction() {
	case corev3.HeaderValueOption_ADD_IF_ABSENT:
		e.action = model.AddIfAbsent
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
		e.action = model.OverwriteOrAdd
	case corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
		e.action = model.OverwriteIfExists
	default:
		if m.GetAppend() != nil && !m.GetAppend().GetValue() {
			e.action = model.OverwriteOrAdd
		}
	}
	return e
}

// describe says what a service is told of a request.
func (f *authzFilter) describe(x *filter.Exchange, q *question) *authv3.CheckRequest {
	c, r := x.Conn, x.Request
	source := &authv3.AttributeContext_Peer{
		Address:   address(c.Remote),
		Service:   text(r.Header.Get("x-envoy-downstream-service-cluster")),
		Principal: text(c.Peer.Principal()),
	}
	if f.conf.PeerCertificate {
		source.Certificate = certificate(x)
	}
	destination := &authv3.AttributeContext_Peer{Address: address(c.Local)}
	if len(c.LocalURIs) > 0 {
		destination.Principal = c.LocalURIs[0]
	}
	size := r.ContentLength
	if x.Body == message.NoBody {
		size = 0
	}
	http := &authv3.AttributeContext_HttpRequest{
		Id:       strconv.FormatUint(x.Entry.HTTP.StreamID, 10),
		Method:   text(r.Method),
		Path:     text(r.Path),
		Host:     text(r.Authority),
		Scheme:   r.Scheme,
		Protocol: r.Version.String(),
		Size:     size,
	}
	f.headers(x, q, http)
	if q.raw {
		http.RawBody = q.body
	} else {
		http.Body = text(string(q.body))
	}
	a := &authv3.AttributeContext{
		Source: source, Destination: destination,
		Request:           &authv3.AttributeContext_Request{Time: timestamppb.New(x.Start), Http: http},
		ContextExtensions: q.extensions,
		MetadataContext:   metadata(x.Entry.HTTP.Metadata, f.conf.Metadata),
	}
	if m := x.Match.Route; m != nil {
		a.RouteMetadataContext = metadata(m.Metadata, f.conf.RouteMetadata)
	}
	if f.conf.TLSSession && c.TLS != nil {
		a.TlsSession = &authv3.AttributeContext_TLSSession{Sni: text(c.ServerName)}
	}
	return &authv3.CheckRequest{Attributes: a}
}

func (f *authzFilter) headers(x *filter.Exchange, q *question, to *authv3.AttributeContext_HttpRequest) {
	r := x.Request
	add := func(name, value string) {
		if !f.shown(name) {
			return
		}
		if f.conf.RawHeaders {
			to.HeaderMap.Headers = append(to.HeaderMap.Headers, &corev3.HeaderValue{Key: name, RawValue: []byte(value)})
			return
		}
		if old, there := to.Headers[name]; there {
			value = old + "," + value
		}
		to.Headers[name] = text(value)
	}
	if f.conf.RawHeaders {
		to.HeaderMap = &corev3.HeaderMap{}
	} else {
		to.Headers = make(map[string]string, r.Header.Len()+4)
	}
	add(":authority", r.Authority)
	add(":method", r.Method)
	add(":path", r.Path)
	add(":scheme", r.Scheme)
	for i := range r.Header.Len() {
		h := r.Header.At(i)
		if h.Name != "x-envoy-auth-partial-body" {
			add(h.Name, h.Value)
		}
	}
	if !q.withBody {
		return
	}
	const partial = "x-envoy-auth-partial-body"
	if f.conf.RawHeaders {
		to.HeaderMap.Headers = append(to.HeaderMap.Headers, &corev3.HeaderValue{Key: partial, RawValue: strconv.AppendBool(nil, q.partial)})
	} else {
		to.Headers[partial] = strconv.FormatBool(q.partial)
	}
}

// text makes s what a protobuf string may be.
func text(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "!")
}

func address(a netip.AddrPort) *corev3.Address {
	if !a.IsValid() {
		return nil
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       a.Addr().Unmap().String(),
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
	}}}
}

func metadata(md model.Metadata, namespaces []string) *corev3.Metadata {
	out := &corev3.Metadata{}
	for _, ns := range namespaces {
		values, there := md[ns]
		if !there {
			continue
		}
		s, err := structpb.NewStruct(values)
		if err != nil {
			continue // bytes that are no text
		}
		if out.FilterMetadata == nil {
			out.FilterMetadata = map[string]*structpb.Struct{}
		}
		out.FilterMetadata[ns] = s
	}
	return out
}
