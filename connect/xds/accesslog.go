package xds

import (
	"encoding/json"
	"fmt"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sarnmesh/sarn/catalog"
)

// logFields are the keys of the default format and the operators behind them.
var logFields = map[string]string{
	"start_time":                        "START_TIME",
	"route_name":                        "ROUTE_NAME",
	"method":                            "REQ(:METHOD)",
	"path":                              "REQ(X-ENVOY-ORIGINAL-PATH?:PATH)",
	"protocol":                          "PROTOCOL",
	"response_code":                     "RESPONSE_CODE",
	"response_flags":                    "RESPONSE_FLAGS",
	"response_code_details":             "RESPONSE_CODE_DETAILS",
	"connection_termination_details":    "CONNECTION_TERMINATION_DETAILS",
	"bytes_received":                    "BYTES_RECEIVED",
	"bytes_sent":                        "BYTES_SENT",
	"duration":                          "DURATION",
	"upstream_service_time":             "RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)",
	"x_forwarded_for":                   "REQ(X-FORWARDED-FOR)",
	"user_agent":                        "REQ(USER-AGENT)",
	"request_id":                        "REQ(X-REQUEST-ID)",
	"authority":                         "REQ(:AUTHORITY)",
	"upstream_host":                     "UPSTREAM_HOST",
	"upstream_cluster":                  "UPSTREAM_CLUSTER",
	"upstream_local_address":            "UPSTREAM_LOCAL_ADDRESS",
	"downstream_local_address":          "DOWNSTREAM_LOCAL_ADDRESS",
	"downstream_remote_address":         "DOWNSTREAM_REMOTE_ADDRESS",
	"requested_server_name":             "REQUESTED_SERVER_NAME",
	"upstream_transport_failure_reason": "UPSTREAM_TRANSPORT_FAILURE_REASON",
}

// filterLogs are the logs of connections and requests.
func (b *build) filterLogs() []*accesslogv3.AccessLog {
	return b.logs("Consul Listener Filter Log", nil)
}

// listenerLogs are the logs of connections that no filter chain wanted.
func (b *build) listenerLogs() []*accesslogv3.AccessLog {
	if a := b.s.Proxy.Service.Proxy.AccessLogs; a != nil && a.DisableListenerLogs {
		return nil
	}
	return b.logs("Consul Listener Log", &accesslogv3.AccessLogFilter{
		FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
			ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{"NR"}},
		},
	})
}

func (b *build) logs(name string, only *accesslogv3.AccessLogFilter) []*accesslogv3.AccessLog {
	a := b.s.Proxy.Service.Proxy.AccessLogs
	if a == nil || !a.Enabled {
		return nil
	}
	config, err := logger(a, b.flavour == Own)
	if err != nil {
		b.problem("access logs: %w", err)
		return nil
	}
	return []*accesslogv3.AccessLog{{
		Name: name, Filter: only, ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: mustPack(config)},
	}}
}

func logger(a *catalog.AccessLogs, own bool) (proto.Message, error) {
	format, err := logFormat(a, own)
	if err != nil {
		return nil, err
	}
	switch a.Type {
	case "", "stdout":
		return &streamlogv3.StdoutAccessLog{AccessLogFormat: &streamlogv3.StdoutAccessLog_LogFormat{LogFormat: format}}, nil
	case "stderr":
		return &streamlogv3.StderrAccessLog{AccessLogFormat: &streamlogv3.StderrAccessLog_LogFormat{LogFormat: format}}, nil
	case "file":
		if a.Path == "" {
			return nil, fmt.Errorf("type file has no path")
		}
		return &filelogv3.FileAccessLog{Path: a.Path, AccessLogFormat: &filelogv3.FileAccessLog_LogFormat{LogFormat: format}}, nil
	}
	return nil, fmt.Errorf("unknown type %q", a.Type)
}

// ownLogFields are what only the built-in proxy can tell: the rule that decided, and the id that its client got.
var ownLogFields = map[string]string{"rule": "SARN_RULE", "decision": "SARN_DECISION"}

func logFormat(a *catalog.AccessLogs, own bool) (*corev3.SubstitutionFormatString, error) {
	if a.TextFormat != "" {
		return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_TextFormatSource{
			TextFormatSource: inline(line(a.TextFormat)),
		}}, nil
	}
	fields := map[string]any{}
	if a.JSONFormat != "" {
		if err := json.Unmarshal([]byte(a.JSONFormat), &fields); err != nil {
			return nil, fmt.Errorf("JSON format: %w", err)
		}
	} else {
		for k, op := range logFields {
			fields[k] = "%" + op + "%"
		}
		if own {
			for k, op := range ownLogFields {
				fields[k] = "%" + op + "%"
			}
		}
	}
	s, err := structpb.NewStruct(fields)
	if err != nil {
		return nil, fmt.Errorf("JSON format: %w", err)
	}
	return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: s}}, nil
}
