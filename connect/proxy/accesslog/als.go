package accesslog

import (
	"net/netip"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/connect/proxy/message"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// appendALS appends an entry as Envoy's access log service takes it: an HTTPAccessLogEntry, or a TCPAccessLogEntry.
func appendALS(b []byte, c *model.LogCollector, e *Entry) []byte {
	var m proto.Message
	if c.Service == model.EnvoyTCPLogs {
		m = &datav3.TCPAccessLogEntry{CommonProperties: commonALS(e), ConnectionProperties: &datav3.ConnectionProperties{
			ReceivedBytes: e.BytesReceived, SentBytes: e.BytesSent,
		}}
	} else {
		m = httpALS(c, e)
	}
	if out, err := (proto.MarshalOptions{}).MarshalAppend(b, m); err == nil {
		return out
	}
	return b
}

func httpALS(c *model.LogCollector, e *Entry) *datav3.HTTPAccessLogEntry {
	m := &datav3.HTTPAccessLogEntry{CommonProperties: commonALS(e)}
	h := e.HTTP
	if h == nil {
		return m
	}
	if r := h.Request; r != nil {
		m.ProtocolVersion = map[message.Version]datav3.HTTPAccessLogEntry_HTTPVersion{
			message.HTTP10: datav3.HTTPAccessLogEntry_HTTP10, message.HTTP11: datav3.HTTPAccessLogEntry_HTTP11, message.HTTP2: datav3.HTTPAccessLogEntry_HTTP2,
		}[r.Version]
		get := func(name string) string { return utf8(r.Header.Get(name)) }
		m.Request = &datav3.HTTPRequestProperties{
			RequestMethod: corev3.RequestMethod(corev3.RequestMethod_value[r.Method]), Scheme: utf8(r.Scheme), Authority: utf8(r.Authority), Path: utf8(r.Path),
			UserAgent: get("user-agent"), Referer: get("referer"), ForwardedFor: get("x-forwarded-for"), RequestId: get("x-request-id"),
			OriginalPath: get("x-envoy-original-path"), RequestHeadersBytes: uint64(r.Header.Size()), RequestBodyBytes: e.BytesReceived,
			RequestHeaders: pick(&r.Header, c.RequestHeaders),
		}
	}
	m.Response = &datav3.HTTPResponseProperties{ResponseBodyBytes: e.BytesSent, ResponseCodeDetails: utf8(h.Details)}
	if h.Status > 0 {
		m.Response.ResponseCode = wrapperspb.UInt32(uint32(h.Status))
	}
	if r := h.Response; r != nil {
		m.Response.ResponseHeadersBytes = uint64(r.Header.Size())
		m.Response.ResponseHeaders = pick(&r.Header, c.ResponseHeaders)
	}
	if h.ResponseTrailer != nil {
		m.Response.ResponseTrailers = pick(h.ResponseTrailer, c.ResponseTrailers)
	}
	return m
}

func commonALS(e *Entry) *datav3.AccessLogCommon {
	m := &datav3.AccessLogCommon{
		StartTime: timestamppb.New(e.Start), Duration: durationpb.New(e.Duration), TimeToLastDownstreamTxByte: durationpb.New(e.Duration),
		DownstreamRemoteAddress: addressALS(e.DownstreamRemote), DownstreamLocalAddress: addressALS(e.DownstreamLocal),
		DownstreamDirectRemoteAddress: addressALS(e.DownstreamDirect), UpstreamRemoteAddress: addressALS(e.UpstreamHost),
		UpstreamLocalAddress: addressALS(e.UpstreamLocal), UpstreamCluster: utf8(e.UpstreamCluster), RouteName: utf8(e.RouteName),
		UpstreamTransportFailureReason: utf8(e.UpstreamFailure), DownstreamTransportFailureReason: utf8(e.DownstreamFailure),
		ConnectionTerminationDetails: utf8(e.CloseDetails), UpstreamRequestAttemptCount: uint32(max(e.Attempts, 0)),
		UpstreamWireBytesSent: e.UpstreamSent, UpstreamWireBytesReceived: e.UpstreamReceived,
		DownstreamWireBytesSent: e.BytesSent, DownstreamWireBytesReceived: e.BytesReceived,
		AccessLogType: datav3.AccessLogType(datav3.AccessLogType_value[logType(e)]), ResponseFlags: flagsALS(e.Flags),
	}
	if e.TLSVersion != "" {
		m.TlsProperties = &datav3.TLSProperties{
			TlsVersion:     datav3.TLSProperties_TLSVersion(datav3.TLSProperties_TLSVersion_value[strings.ReplaceAll(e.TLSVersion, ".", "_")]),
			TlsSniHostname: utf8(e.ServerName), LocalCertificateProperties: certificateALS(e.LocalURIs, nil, "", ""),
			PeerCertificateProperties: certificateALS(e.PeerURIs, e.PeerDNS, e.PeerSubject, e.PeerIssuer),
		}
	}
	h := e.HTTP
	if h == nil {
		return m
	}
	for _, x := range []struct {
		to **durationpb.Duration
		d  time.Duration
	}{
		{&m.TimeToLastRxByte, h.Received}, {&m.TimeToFirstUpstreamTxByte, h.UpstreamStart}, {&m.TimeToLastUpstreamTxByte, h.UpstreamSent},
		{&m.TimeToFirstUpstreamRxByte, h.UpstreamHead}, {&m.TimeToLastUpstreamRxByte, h.UpstreamEnd}, {&m.TimeToFirstDownstreamTxByte, h.Head},
	} {
		if x.d >= 0 {
			*x.to = durationpb.New(x.d)
		}
	}
	if h.Request != nil {
		m.StreamId = utf8(h.Request.Header.Get("x-request-id"))
	}
	for key, value := range map[string]string{"sarn_rule": h.Rule, "sarn_decision": h.Decision, "trace_id": h.TraceID} {
		if value != "" {
			if m.CustomTags == nil {
				m.CustomTags = map[string]string{}
			}
			m.CustomTags[key] = utf8(value)
		}
	}
	return m
}

func utf8(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// pick returns the headers of some names.
func pick(h *message.Header, names []string) map[string]string {
	var out map[string]string
	for _, name := range names {
		for v := range h.Values(name) {
			if out == nil {
				out = map[string]string{}
			}
			if before, ok := out[name]; ok {
				v = before + "," + v
			}
			out[name] = utf8(v)
		}
	}
	return out
}

func addressALS(s string) *corev3.Address {
	if s == "" {
		return nil
	}
	if a, err := netip.ParseAddrPort(s); err == nil {
		return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: a.Addr().String(), PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(a.Port())},
		}}}
	}
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: utf8(s)}}}
}

func certificateALS(uris, dns []string, subject, issuer string) *datav3.TLSProperties_CertificateProperties {
	if len(uris)+len(dns) == 0 && subject == "" {
		return nil
	}
	type san = datav3.TLSProperties_CertificateProperties_SubjectAltName
	m := &datav3.TLSProperties_CertificateProperties{Subject: utf8(subject), Issuer: utf8(issuer)}
	for _, u := range uris {
		m.SubjectAltName = append(m.SubjectAltName, &san{San: &datav3.TLSProperties_CertificateProperties_SubjectAltName_Uri{Uri: utf8(u)}})
	}
	for _, d := range dns {
		m.SubjectAltName = append(m.SubjectAltName, &san{San: &datav3.TLSProperties_CertificateProperties_SubjectAltName_Dns{Dns: utf8(d)}})
	}
	return m
}

// flagFields are the fields of ResponseFlags in the order of the flags, as far as it has them.
var flagFields = map[Flags]protoreflect.Name{
	FailedLocalHealthCheck: "failed_local_healthcheck", NoHealthyUpstream: "no_healthy_upstream", UpstreamRequestTimeout: "upstream_request_timeout",
	LocalReset: "local_reset", UpstreamRemoteReset: "upstream_remote_reset", UpstreamConnectionFailure: "upstream_connection_failure",
	UpstreamConnectionTermination: "upstream_connection_termination", UpstreamOverflow: "upstream_overflow", NoRouteFound: "no_route_found",
	DelayInjected: "delay_injected", FaultInjected: "fault_injected", RateLimited: "rate_limited", RateLimitServiceError: "rate_limit_service_error",
	DownstreamConnectionTermination: "downstream_connection_termination", UpstreamRetryLimitExceeded: "upstream_retry_limit_exceeded",
	StreamIdleTimeout: "stream_idle_timeout", InvalidEnvoyRequestHeaders: "invalid_envoy_request_headers", DownstreamProtocolError: "downstream_protocol_error",
	UpstreamMaxStreamDurationReached: "upstream_max_stream_duration_reached", ResponseFromCacheFilter: "response_from_cache_filter",
	NoFilterConfigFound: "no_filter_config_found", DurationTimeout: "duration_timeout", UpstreamProtocolError: "upstream_protocol_error",
	NoClusterFound: "no_cluster_found", OverloadManagerTerminated: "overload_manager", DnsResolutionFailed: "dns_resolution_failure",
	DownstreamRemoteReset: "downstream_remote_reset",
}

func flagsALS(f Flags) *datav3.ResponseFlags {
	if f == 0 {
		return nil
	}
	m := &datav3.ResponseFlags{}
	r := m.ProtoReflect()
	for flag, name := range flagFields {
		if f&flag != 0 {
			r.Set(r.Descriptor().Fields().ByName(name), protoreflect.ValueOfBool(true))
		}
	}
	if f&UnauthorizedExternalService != 0 {
		m.UnauthorizedDetails = &datav3.ResponseFlags_Unauthorized{Reason: datav3.ResponseFlags_Unauthorized_EXTERNAL_SERVICE}
	}
	return m
}
