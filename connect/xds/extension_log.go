package xds

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	otelv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/open_telemetry/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog"
)

// otelLogs sends access logs to an OpenTelemetry collector.
type otelLogs struct {
	*target
	listenerType string
	config       *otelv3.OpenTelemetryAccessLogConfig
}

type otelArguments struct {
	ProxyType, ListenerType string
	Config                  struct {
		LogName                 string
		GrpcService             *grpcArguments
		BufferFlushInterval     *time.Duration
		BufferSizeBytes         *uint32
		FilterStateObjectsToLog []string
		RetryPolicy             *retryArguments
		Body                    any
		Attributes              map[string]any
		ResourceAttributes      map[string]any
	}
}

func newOtelLogs(e *catalog.EnvoyExtension, x *extensions) (extension, error) {
	var a otelArguments
	if err := decodeArguments(e, &a); err != nil {
		return nil, err
	}
	a.ListenerType = cmp.Or(a.ListenerType, inbound)
	if err := checkListenerType(a.ListenerType); err != nil {
		return nil, err
	}
	c := &a.Config
	if c.GrpcService == nil || c.GrpcService.Target == nil {
		return nil, errors.New("GrpcService.Target is required")
	}
	if ok, err := concerns(a.ProxyType, x); err != nil || !ok {
		return noExtension{}, err
	}
	t, err := c.GrpcService.Target.resolve("local_otel_access_logging", true, x)
	if err != nil {
		return nil, err
	}
	config := &otelv3.OpenTelemetryAccessLogConfig{}
	body, err := otelValue(c.Body)
	if err != nil {
		return nil, fmt.Errorf("Body: %w", err)
	}
	attributes, err := otelList(c.Attributes)
	if err != nil {
		return nil, fmt.Errorf("Attributes: %w", err)
	}
	resource, err := otelList(c.ResourceAttributes)
	if err != nil {
		return nil, fmt.Errorf("ResourceAttributes: %w", err)
	}
	if err := messageOf(config, map[string]any{"body": body, "attributes": attributes, "resourceAttributes": resource}); err != nil {
		return nil, err
	}
	config.LogName = cmp.Or(c.LogName, a.ListenerType)
	config.GrpcService = c.GrpcService.service(t)
	config.FilterStateObjectsToLog = c.FilterStateObjectsToLog
	if c.BufferFlushInterval != nil {
		if *c.BufferFlushInterval <= 0 {
			return nil, fmt.Errorf("BufferFlushInterval %v is not positive", *c.BufferFlushInterval)
		}
		config.BufferFlushInterval = durationpb.New(*c.BufferFlushInterval)
	}
	if c.BufferSizeBytes != nil {
		config.BufferSizeBytes = wrapperspb.UInt32(*c.BufferSizeBytes)
	}
	if config.GrpcService.RetryPolicy, err = c.RetryPolicy.policy(); err != nil {
		return nil, err
	}
	return &otelLogs{t, a.ListenerType, config}, nil
}

// otelValue returns a value in the JSON form of OpenTelemetry, nil for none. Envoy takes text only.
func otelValue(v any) (any, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return map[string]any{"stringValue": v}, nil
	case []byte:
		return map[string]any{"stringValue": string(v)}, nil
	case bool, int, int64, uint64, float64:
		return map[string]any{"stringValue": fmt.Sprint(v)}, nil
	}
	return nil, fmt.Errorf("a %T is neither text, number nor truth value", v)
}

func otelList(all map[string]any) (any, error) {
	if len(all) == 0 {
		return nil, nil
	}
	var values []any
	for _, k := range sortedKeys(all) {
		v, err := otelValue(all[k])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k, err)
		}
		values = append(values, map[string]any{"key": k, "value": v})
	}
	return map[string]any{"values": values}, nil
}

func (x *otelLogs) apply(b *build, t Type, m *made) error {
	l := b.listenerOf(x.listenerType, t, m)
	if l == nil {
		return nil
	}
	m.uses = append(slices.Clip(m.uses), ref{Cluster, x.name})
	return changeManagers(l, func(m *hcmv3.HttpConnectionManager) error {
		m.AccessLog = append(m.AccessLog, &accesslogv3.AccessLog{
			Name: "envoy.access_loggers.open_telemetry", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: mustPack(x.config)},
		})
		return nil
	})
}
