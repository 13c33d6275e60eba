package model

import "time"

// An AccessLog writes a line for each connection or request that its filter lets through.
type AccessLog struct {
	Name string
	Sink Sink
	Path string // of a file sink

	Text string // format of a text log; used if JSON is nil
	JSON any    // map[string]any, []any, string, float64, bool or nil, with format strings at the leaves

	Collector *LogCollector // of SinkCollector; it takes neither Text nor JSON

	OmitEmpty bool
	Filter    *LogFilter // nil logs everything
}

// A LogService is the protocol of a collector.
type LogService uint8

// The protocols.
const (
	OpenTelemetryLogs LogService = iota
	EnvoyHTTPLogs                // Envoy's access log service, for requests
	EnvoyTCPLogs                 // the same for connections
)

// A LogCollector takes lines over gRPC.
type LogCollector struct {
	Service   LogService
	Cluster   string
	Authority string        // empty takes the cluster
	Timeout   time.Duration // of a call; 0 takes 5 s
	Headers   []LogHeader   // sent with each call

	Name string // of the log
	// Of EnvoyHTTPLogs: more headers to tell, in lower case.
	RequestHeaders, ResponseHeaders, ResponseTrailers []string
	// Of OpenTelemetryLogs:
	Labels     bool           // tell the name of the log and who the proxy is
	Resource   []LogAttribute // whose values are text as it stands
	Body       any            // as JSON of an AccessLog; nil has none
	Attributes []LogAttribute

	FlushInterval time.Duration // until a line is sent; whole seconds, at least one
	FlushSize     int           // bytes after which lines are sent at once
}

// A LogHeader goes with a call.
type LogHeader struct{ Name, Value string }

// A LogAttribute is a value of the form of JSON with format strings at the leaves.
type LogAttribute struct {
	Key   string
	Value any
}

// A Sink is where log lines go.
type Sink uint8

// The sinks.
const (
	SinkStdout Sink = iota + 1
	SinkStderr
	SinkFile
	SinkCollector
)

// A LogFilter selects what is logged. Exactly one field is set.
type LogFilter struct {
	Flags    *[]string // any of these response flags; an empty list means any flag at all
	Duration *Comparison
	And, Or  []*LogFilter

	Status         *Comparison // of the response; 0 if there was none
	Header         *HeaderMatch
	GRPC           *GRPCStatuses
	NotHealthCheck bool // anything but requests of health checks
	Traceable      bool // requests that are traced
	Metadata       *MetadataLogFilter
	Fraction       *LogFraction
	Types          *LogTypes
}

// GRPCStatuses selects requests by their gRPC status.
type GRPCStatuses struct {
	Statuses []uint32
	Exclude  bool // all but those
}

// MetadataLogFilter selects requests by their dynamic metadata.
type MetadataLogFilter struct {
	Match     MetadataMatcher
	IfMissing bool // also when there is no such key
}

// Passes reports whether the metadata lets a line through.
func (f *MetadataLogFilter) Passes(md Metadata) bool {
	v, ok := md.lookup(f.Match.Namespace, f.Match.Path)
	if !ok {
		return f.IfMissing
	}
	return f.Match.Value.match(v, true) != f.Match.Invert
}

// LogFraction logs a share.
type LogFraction struct {
	Fraction
	// Independent draws for each log; otherwise the request id decides, the same in every proxy.
	Independent bool
}

// LogTypes selects lines by what they are about: "DownstreamEnd".
type LogTypes struct {
	Types   []string
	Exclude bool // all but those
}

// A Comparison compares a number with a fixed one.
type Comparison struct {
	Op    CompareOp
	Value uint64
}

// A CompareOp is a comparison operator.
type CompareOp uint8

// The operators.
const (
	CompareEqual CompareOp = iota
	CompareAtLeast
	CompareAtMost
	CompareNotEqual
)

// Holds reports whether v compares as asked.
func (c Comparison) Holds(v uint64) bool {
	switch c.Op {
	case CompareEqual:
		return v == c.Value
	case CompareAtLeast:
		return v >= c.Value
	case CompareAtMost:
		return v <= c.Value
	case CompareNotEqual:
		return v != c.Value
	}
	return false
}
