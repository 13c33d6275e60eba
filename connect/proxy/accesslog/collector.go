package accesslog

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// Collect is how lines get to collectors.
type Collect struct {
	// Send calls a collector with a request: an ExportLogsServiceRequest of OpenTelemetry, or a StreamAccessLogsMessage.
	Send func(ctx context.Context, c *model.LogCollector, request []byte) error

	NodeID, NodeCluster, Zone string       // who the proxy is
	Logger                    hclog.Logger // default discards
}

// Collect sets how lines get to collectors. It is called before Run; without it, they are dropped.
func (s *Sinks) Collect(c Collect) {
	if c.Logger == nil {
		c.Logger = hclog.NewNullLogger()
	}
	s.collect = c
}

// Bounds of what waits for a collector.
const (
	batchSize   = 16 << 10
	callTimeout = 5 * time.Second
)

// A collector gathers records for one collector. It is an io.Writer of records.
type collector struct {
	s    *Sinks
	conf *model.LogCollector
	head []byte // who sends: the resource, as a field of ResourceLogs, or the identifier of a StreamAccessLogsMessage

	mu   sync.Mutex
	buf  []byte // records, as fields of ScopeLogs or of a list of entries
	n    uint64
	last time.Time     // when a batch was taken
	call chan struct{} // closed when the call that is on its way has ended; nil: there is none
}

// collector returns the one of a configuration. Logs with the same share it.
func (s *Sinks) collector(conf *model.LogCollector) *collector {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.collectors {
		if reflect.DeepEqual(c.conf, conf) {
			return c
		}
	}
	if conf.Service != model.OpenTelemetryLogs {
		node := appendString(appendString(nil, 1, s.collect.NodeID), 2, s.collect.NodeCluster)
		c := &collector{s: s, conf: conf, head: appendField(nil, 1, appendString(appendField(nil, 1, node), 2, conf.Name)), last: time.Now()}
		s.collectors = append(s.collectors, c)
		return c
	}
	var labels []model.LogAttribute
	if conf.Labels {
		labels = []model.LogAttribute{
			{Key: "log_name", Value: conf.Name}, {Key: "zone_name", Value: s.collect.Zone},
			{Key: "cluster_name", Value: s.collect.NodeCluster}, {Key: "node_name", Value: s.collect.NodeID},
		}
	}
	var resource []byte
	for _, a := range slices.Concat(labels, conf.Resource) {
		v, _ := a.Value.(string)
		resource = appendField(resource, 1, appendField(appendString(nil, 1, a.Key), 2, appendString(nil, 1, v)))
	}
	c := &collector{s: s, conf: conf, head: appendField(nil, 1, resource), last: time.Now()}
	s.collectors = append(s.collectors, c)
	return c
}

func appendString(b []byte, n protowire.Number, v string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), v)
}

func appendField(b []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

func (c *collector) Write(record []byte) (int, error) {
	c.mu.Lock()
	if len(c.buf)+len(record) > maxQueued {
		c.mu.Unlock()
		c.s.dropped.Add(1)
		return len(record), nil
	}
	field := protowire.Number(2)
	if c.conf.Service != model.OpenTelemetryLogs {
		field = 1
	}
	c.buf = appendField(c.buf, field, record)
	c.n++
	full := len(c.buf) >= cmp.Or(c.conf.FlushSize, batchSize) && c.call == nil
	c.mu.Unlock()
	if full {
		select {
		case c.s.kick <- struct{}{}:
		default:
		}
	}
	return len(record), nil
}

// take returns the request for what waits, and how many records that are; nil if nothing is to be sent now.
func (c *collector) take(all bool) ([]byte, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	due := all || len(c.buf) >= cmp.Or(c.conf.FlushSize, batchSize) || time.Since(c.last) >= c.conf.FlushInterval
	if c.call != nil || c.n == 0 || !due {
		return nil, 0
	}
	var request []byte
	switch c.conf.Service {
	case model.EnvoyHTTPLogs:
		request = appendField(slices.Clone(c.head), 2, c.buf)
	case model.EnvoyTCPLogs:
		request = appendField(slices.Clone(c.head), 3, c.buf)
	default:
		request = appendField(nil, 1, appendField(slices.Clone(c.head), 2, c.buf))
	}
	n := c.n
	c.buf, c.n, c.call, c.last = c.buf[:0], 0, make(chan struct{}), time.Now()
	if cap(c.buf) > 1<<20 {
		c.buf = nil
	}
	return request, n
}

// send sends what is due, or all, each batch in a goroutine of its own.
func (s *Sinks) send(ctx context.Context, all bool, work *sync.WaitGroup) {
	s.mu.Lock()
	list := slices.Clone(s.collectors)
	s.mu.Unlock()
	for _, c := range list {
		request, n := c.take(all)
		if n == 0 {
			continue
		}
		work.Go(func() {
			err := errors.New("no way to collectors")
			if s.collect.Send != nil {
				limited, cancel := context.WithTimeout(ctx, cmp.Or(c.conf.Timeout, callTimeout))
				err = s.collect.Send(limited, c.conf, request)
				cancel()
			}
			if err != nil {
				s.dropped.Add(n)
				if s.collect.Logger != nil {
					s.collect.Logger.Warn("access log not taken by its collector", "cluster", c.conf.Cluster, "lines", n, "error", err)
				}
			}
			c.mu.Lock()
			close(c.call)
			c.call = nil
			c.mu.Unlock()
		})
	}
}

// Deliver sends all that waits for collectors and waits until they have it, or ctx ends.
func (s *Sinks) Deliver(ctx context.Context) {
	s.mu.Lock()
	list := slices.Clone(s.collectors)
	s.mu.Unlock()
	for _, c := range list {
		c.mu.Lock()
		call := c.call
		c.mu.Unlock()
		if call == nil {
			continue
		}
		select {
		case <-call:
		case <-ctx.Done():
			return
		}
	}
	var work sync.WaitGroup
	s.send(ctx, true, &work)
	work.Wait()
}

// A record renders entries as a LogRecord of OpenTelemetry, or as Envoy's access log service wants them.
type record struct {
	als        *model.LogCollector // of Envoy's access log service; nil: not of it
	body       value               // nil: none
	attributes []attribute
}

type attribute struct {
	key   []byte // as a field of KeyValue
	value value
}

// value appends an AnyValue, without its length.
type value func(b []byte, e *Entry) []byte

func compileRecord(c *model.LogCollector) (*record, error) {
	r := &record{}
	if c.Service != model.OpenTelemetryLogs {
		r.als = c
		return r, nil
	}
	if c.Body != nil {
		v, err := compileValue(c.Body, 0)
		if err != nil {
			return nil, fmt.Errorf("body: %w", err)
		}
		r.body = v
	}
	for _, a := range c.Attributes {
		v, err := compileValue(a.Value, 0)
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", a.Key, err)
		}
		r.attributes = append(r.attributes, attribute{appendString(nil, 1, a.Key), v})
	}
	return r, nil
}

// sized adds a field whose content f appends; its length takes five bytes, so that nothing is copied.
func sized(b []byte, n protowire.Number, f func([]byte) []byte) []byte {
	b = protowire.AppendTag(b, n, protowire.BytesType)
	at := len(b)
	b = f(append(b, 0x80, 0x80, 0x80, 0x80, 0))
	size := len(b) - at - 5
	for i := range 5 {
		b[at+i] |= byte(size & 0x7f)
		size >>= 7
	}
	return b
}

func compileValue(v any, depth int) (value, error) {
	if depth > maxDepth {
		return nil, errors.New("nests too deep")
	}
	constant := func(b []byte) (value, error) {
		return func(out []byte, _ *Entry) []byte { return append(out, b...) }, nil
	}
	switch v := v.(type) {
	case string:
		f, err := ParseFormat(v)
		if err != nil {
			return nil, err
		}
		return func(b []byte, e *Entry) []byte {
			return sized(b, 1, func(b []byte) []byte { return valid(f.render(b, e, "-", false), len(b)) })
		}, nil
	case bool:
		return constant(protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), protowire.EncodeBool(v)))
	case int64:
		return constant(protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), uint64(v)))
	case float64:
		return constant(protowire.AppendFixed64(protowire.AppendTag(nil, 4, protowire.Fixed64Type), math.Float64bits(v)))
	case []any:
		var items []value
		for _, x := range v {
			item, err := compileValue(x, depth+1)
			if err != nil {
				return nil, err
			}
			items = append(items, item)
		}
		return func(b []byte, e *Entry) []byte {
			return sized(b, 5, func(b []byte) []byte {
				for _, item := range items {
					b = sized(b, 1, func(b []byte) []byte { return item(b, e) })
				}
				return b
			})
		}, nil
	case map[string]any:
		var members []attribute
		for _, k := range slices.Sorted(maps.Keys(v)) {
			x, err := compileValue(v[k], depth+1)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", k, err)
			}
			members = append(members, attribute{appendString(nil, 1, k), x})
		}
		return func(b []byte, e *Entry) []byte {
			return sized(b, 6, func(b []byte) []byte { return appendMembers(b, 1, members, e) })
		}, nil
	case nil:
		return constant(nil)
	}
	return nil, fmt.Errorf("a %T has no place here", v)
}

func appendMembers(b []byte, n protowire.Number, members []attribute, e *Entry) []byte {
	for i := range members {
		m := &members[i]
		b = sized(b, n, func(b []byte) []byte {
			return sized(append(b, m.key...), 2, func(b []byte) []byte { return m.value(b, e) })
		})
	}
	return b
}

// valid makes b[from:] valid UTF-8, without which a collector would refuse the whole batch.
func valid(b []byte, from int) []byte {
	for _, c := range b[from:] {
		if c >= 0x80 {
			s := []rune(string(b[from:])) // what is not valid becomes U+FFFD
			return append(b[:from], string(s)...)
		}
	}
	return b
}

func (r *record) append(b []byte, e *Entry) []byte {
	if r.als != nil {
		return appendALS(b, r.als, e)
	}
	b = protowire.AppendFixed64(protowire.AppendTag(b, 1, protowire.Fixed64Type), uint64(e.Start.UnixNano()))
	if r.body != nil {
		b = sized(b, 5, func(b []byte) []byte { return r.body(b, e) })
	}
	b = appendMembers(b, 6, r.attributes, e)
	if e.HTTP != nil && len(e.HTTP.TraceID) == 32 {
		var id [16]byte
		if _, err := hex.Decode(id[:], []byte(e.HTTP.TraceID)); err == nil {
			b = appendField(b, 9, id[:])
		}
	}
	return b
}
