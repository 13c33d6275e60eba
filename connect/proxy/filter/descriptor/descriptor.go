// Package descriptor describes requests to rate limiters, as routes say.
package descriptor

import (
	"strings"
	"sync"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/model"
	"github.com/sarnmesh/sarn/connect/proxy/route"
)

// An Entry is a fact about a request.
type Entry struct{ Key, Value string }

// A VirtualHostUse says when the limits of the virtual host count.
type VirtualHostUse uint8

// The choices.
const (
	Override VirtualHostUse = iota // if the route has none
	Include
	Ignore
)

// Each calls f with the descriptors of a request at a stage. The entries are good until f returns, which stops by
// returning false. Own limits replace those of routes, if there are any.
func Each(x *filter.Exchange, env *filter.Env, own []model.RateLimit, stage uint32, use VirtualHostUse, f func([]Entry) bool) {
	if len(own) > 0 {
		each(x, env, own, 0, f)
		return
	}
	r := x.Match.Route
	if r == nil || r.Forward == nil {
		return
	}
	if !each(x, env, r.Forward.RateLimits, stage, f) {
		return
	}
	if r.Forward.IncludeVHLimits {
		use = Include
	}
	if vh := x.Match.VirtualHost; vh != nil && (use == Include || use == Override && len(r.Forward.RateLimits) == 0) {
		each(x, env, vh.RateLimits, stage, f)
	}
}

// maxActions is how many entries a description has before it needs memory.
const maxActions = 8

var scratch = sync.Pool{New: func() any { return new([maxActions]Entry) }}

func each(x *filter.Exchange, env *filter.Env, limits []model.RateLimit, stage uint32, f func([]Entry) bool) bool {
	if len(limits) == 0 {
		return true
	}
	buf := scratch.Get().(*[maxActions]Entry)
	defer scratch.Put(buf)
next:
	for i := range limits {
		if limits[i].Stage != stage {
			continue
		}
		entries := buf[:0]
		for j := range limits[i].Actions {
			a := &limits[i].Actions[j]
			e, ok := entry(x, env, a)
			switch {
			case ok:
				entries = append(entries, e)
			case !a.SkipIfAbsent:
				continue next
			}
		}
		if len(entries) > 0 && !f(entries) {
			return false
		}
	}
	return true
}

func entry(x *filter.Exchange, env *filter.Env, a *model.RateLimitAction) (Entry, bool) {
	switch {
	case a.SourceCluster:
		return Entry{"source_cluster", env.NodeCluster}, true
	case a.DestinationCluster:
		return Entry{"destination_cluster", x.Match.Cluster}, true
	case a.RemoteAddress:
		a := &x.Request.Arena
		return Entry{"remote_address", a.End(x.Remote.AppendTo(a.Begin()))}, x.Remote.IsValid()
	case a.MaskV4 > 0 || a.MaskV6 > 0:
		ip, bits := x.Remote.Unmap(), a.MaskV6
		if ip.Is4() {
			bits = a.MaskV4
		}
		p, err := ip.WithZone("").Prefix(bits)
		return Entry{"masked_remote_address", p.String()}, err == nil
	case a.Header != "":
		v, ok := Header(x, a.Header)
		return Entry{a.HeaderKey, v}, ok
	case a.HeaderValue != nil:
		m := a.HeaderValue
		return Entry{orDefault(m.Key, "header_match"), m.Value}, route.Headers(m.Headers, x.Request) == m.Expect
	case a.Query != "":
		v, ok := QueryParameter(x.Request.Path, a.Query)
		return Entry{a.HeaderKey, v}, ok
	case a.Metadata != nil:
		v := a.Metadata.Default
		if s, ok := text(x.Entry.HTTP.Metadata, a.Metadata); ok {
			v = s
		}
		return Entry{a.Metadata.Key, v}, v != ""
	}
	return Entry{orDefault(a.GenericKey, "generic_key"), a.Generic}, a.Generic != ""
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func text(md model.Metadata, k *model.MetadataKey) (string, bool) {
	ns := md[k.Namespace]
	for i, key := range k.Path {
		v, ok := ns[key]
		if !ok {
			return "", false
		}
		if i == len(k.Path)-1 {
			s, ok := v.(string)
			return s, ok && s != ""
		}
		if ns, ok = v.(map[string]any); !ok {
			return "", false
		}
	}
	return "", false
}

// Header returns a header of the request, which may be a pseudo header, its values joined.
func Header(x *filter.Exchange, name string) (string, bool) {
	r := x.Request
	switch name {
	case ":method":
		return r.Method, true
	case ":path":
		return r.Path, r.Path != ""
	case ":authority", "host":
		return r.Authority, r.Authority != ""
	case ":scheme":
		return r.Scheme, r.Scheme != ""
	}
	return r.Header.Lookup(name, &r.Arena)
}

// QueryParameter returns the first value of a parameter in the query of a path, as it stands there.
func QueryParameter(path, name string) (string, bool) {
	_, query, _ := strings.Cut(path, "?")
	for query != "" {
		var p string
		p, query, _ = strings.Cut(query, "&")
		k, v, _ := strings.Cut(p, "=")
		if k == name {
			return v, true
		}
	}
	return "", false
}
