package decode

import (
	bufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"

	"github.com/sarnmesh/sarn/connect/proxy/filter/buffer"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var bufferFilter = httpFilter{
	name: "envoy.filters.http.buffer", old: "envoy.buffer",
	proto: (*bufferv3.Buffer)(nil), config: with((*run).buffer),
	routeProto: (*bufferv3.BufferPerRoute)(nil),
	route: with(func(r *run, path string, m *bufferv3.BufferPerRoute) model.FilterConfig {
		if m.GetDisabled() {
			return &buffer.Config{Disabled: true}
		}
		return r.buffer(join(path, "buffer"), m.GetBuffer())
	}),
}

func (r *run) buffer(path string, m *bufferv3.Buffer) model.FilterConfig {
	r.only(path, m, "max_request_bytes", "")
	n := u32(m.GetMaxRequestBytes(), 0)
	if n == 0 || n > maxBuffer {
		r.errorf(join(path, "max_request_bytes"), "%d is not between 1 and %d", n, maxBuffer)
	}
	return &buffer.Config{Max: int(min(n, maxBuffer))}
}
