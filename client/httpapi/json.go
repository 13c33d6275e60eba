package httpapi

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/kv"
)

// The JSON of what is asked for most is appended by hand: it is the larger part of what a busy agent does. The output
// is that of encoding/json, escapes of HTML included; a test compares the two. The forms are those of spec/registry.md
// section 3, where "absent", null and empty differ from field to field.

// A field of an object is begun with its name, the quotes, colon and preceding comma included, so that most of the
// output is copied constants.

func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if plainJSON[c] {
				i++
				continue
			}
			dst = append(dst, s[start:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\b':
				dst = append(dst, '\\', 'b')
			case '\f':
				dst = append(dst, '\\', 'f')
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			dst = append(dst, s[start:i]...)
			dst = append(dst, `\ufffd`...)
		case r == '\u2028' || r == '\u2029': // line ends in JavaScript
			dst = append(dst, s[start:i]...)
			dst = append(dst, `\u202`...)
			dst = append(dst, hexDigits[r&15])
		default:
			i += size
			continue
		}
		i += size
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

const hexDigits = "0123456789abcdef"

// plainJSON tells which ASCII bytes stand for themselves in a string.
var plainJSON = func() (plain [utf8.RuneSelf]bool) {
	for c := range plain {
		plain[c] = c >= ' ' && c != '"' && c != '\\' && c != '<' && c != '>' && c != '&'
	}
	return
}()

func appendInt(dst []byte, n int) []byte     { return strconv.AppendInt(dst, int64(n), 10) }
func appendUint(dst []byte, n uint64) []byte { return strconv.AppendUint(dst, n, 10) }

// appendStrings appends a list, [] for nil.
func appendStrings(dst []byte, list []string) []byte {
	dst = append(dst, '[')
	for i, s := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, s)
	}
	return append(dst, ']')
}

// appendAny appends what has no fixed form, null where it cannot be told in JSON.
func appendAny(dst []byte, v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		return append(dst, "null"...)
	}
	return append(dst, data...)
}

// sortedKeys calls f for each key in order. Maps of the catalog are small, so the keys usually stay on the stack.
func sortedKeys[V any](m map[string]V, f func(k string, v V)) {
	var few [8]string
	keys := few[:0]
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		f(k, m[k])
	}
}

// appendStringMap appends a map, null for nil.
func appendStringMap(dst []byte, m map[string]string) []byte {
	if m == nil {
		return append(dst, "null"...)
	}
	dst = append(dst, '{')
	first := true
	sortedKeys(m, func(k, v string) {
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = appendString(dst, k)
		dst = append(dst, ':')
		dst = appendString(dst, v)
	})
	return append(dst, '}')
}

// An object appends the fields of one JSON object.
type object struct {
	b     []byte
	begun bool
}

func (o *object) name(name string) {
	if o.begun {
		o.b = append(o.b, ',')
	}
	o.begun = true
	o.b = append(o.b, '"')
	o.b = append(o.b, name...)
	o.b = append(o.b, '"', ':')
}

func (o *object) str(name, v string) {
	o.name(name)
	o.b = appendString(o.b, v)
}

func (o *object) optStr(name, v string) {
	if v != "" {
		o.str(name, v)
	}
}

func (o *object) num(name string, v int) {
	o.name(name)
	o.b = appendInt(o.b, v)
}

func (o *object) optNum(name string, v int) {
	if v != 0 {
		o.num(name, v)
	}
}

func (o *object) uint(name string, v uint64) {
	o.name(name)
	o.b = appendUint(o.b, v)
}

func (o *object) bool(name string, v bool) {
	o.name(name)
	o.b = strconv.AppendBool(o.b, v)
}

func (o *object) optBool(name string, v bool) {
	if v {
		o.bool(name, v)
	}
}

func (o *object) strings(name string, v []string) {
	o.name(name)
	o.b = appendStrings(o.b, v)
}

func (o *object) any(name string, v any) {
	o.name(name)
	o.b = appendAny(o.b, v)
}

func (o *object) indexes(x catalog.Indexes) {
	o.uint("CreateIndex", x.CreateIndex)
	o.uint("ModifyIndex", x.ModifyIndex)
}

func appendNode(dst []byte, n *catalog.Node) []byte {
	if n == nil {
		return append(dst, "null"...)
	}
	o := object{b: append(dst, '{')}
	o.str("ID", n.ID)
	o.str("Node", n.Node)
	o.str("Address", n.Address)
	o.str("Datacenter", n.Datacenter)
	o.name("TaggedAddresses")
	o.b = appendStringMap(o.b, n.TaggedAddresses)
	o.name("Meta")
	o.b = appendStringMap(o.b, n.Meta)
	if n.Locality != nil {
		o.name("Locality")
		o.b = appendLocality(o.b, n.Locality)
	}
	o.optStr("PeerName", n.PeerName)
	o.indexes(n.Indexes)
	return append(o.b, '}')
}

func appendLocality(dst []byte, l *catalog.Locality) []byte {
	o := object{b: append(dst, '{')}
	o.str("Region", l.Region)
	o.str("Zone", l.Zone)
	return append(o.b, '}')
}

func appendAddresses(dst []byte, m map[string]catalog.ServiceAddress) []byte {
	dst = append(dst, '{')
	first := true
	sortedKeys(m, func(k string, v catalog.ServiceAddress) {
		if !first {
			dst = append(dst, ',')
		}
		first = false
		dst = appendString(dst, k)
		o := object{b: append(dst, ':', '{')}
		o.str("Address", v.Address)
		o.num("Port", v.Port)
		dst = append(o.b, '}')
	})
	return append(dst, '}')
}

// appendWeights appends weights; an instance without them counts once.
func appendWeights(dst []byte, w *catalog.Weights) []byte {
	if w == nil {
		return append(dst, `{"Passing":1,"Warning":1}`...)
	}
	o := object{b: append(dst, '{')}
	o.num("Passing", w.Passing)
	o.num("Warning", w.Warning)
	return append(o.b, '}')
}

// appendService appends the form of health and catalog/node (spec/registry.md section 3.2).
func appendService(dst []byte, s *catalog.Service) []byte { return appendServiceForm(dst, s, false) }

// appendServiceForm is appendService; the console is told null where there are no tags or metadata.
func appendServiceForm(dst []byte, s *catalog.Service, console bool) []byte {
	o := object{b: append(dst, '{')}
	o.optStr("Kind", s.Kind)
	o.str("ID", s.ID)
	o.str("Service", s.Service)
	if console && len(s.Tags) == 0 {
		o.any("Tags", nil)
	} else {
		o.strings("Tags", s.Tags)
	}
	o.str("Address", s.Address)
	if len(s.TaggedAddresses) != 0 {
		o.name("TaggedAddresses")
		o.b = appendAddresses(o.b, s.TaggedAddresses)
	}
	o.name("Meta")
	meta := s.Meta
	if console && len(meta) == 0 {
		meta = nil
	}
	o.b = appendStringMap(o.b, meta)
	o.optNum("Port", s.Port)
	o.optStr("SocketPath", s.SocketPath)
	o.name("Weights")
	o.b = appendWeights(o.b, s.Weights)
	o.bool("EnableTagOverride", s.EnableTagOverride)
	if s.Locality != nil {
		o.name("Locality")
		o.b = appendLocality(o.b, s.Locality)
	}
	o.name("Proxy")
	o.b = appendProxy(o.b, &s.Proxy, false)
	o.name("Connect")
	o.b = appendConnect(o.b, &s.Connect)
	o.str("PeerName", s.PeerName)
	o.indexes(s.Indexes)
	return append(o.b, '}')
}

// appendServiceNode appends the form of catalog/service, an instance with its node's fields (section 3.3).
func appendServiceNode(dst []byte, n *catalog.Node, s *catalog.Service) []byte {
	o := object{b: append(dst, '{')}
	o.str("ID", n.ID)
	o.str("Node", n.Node)
	o.str("Address", n.Address)
	o.str("Datacenter", n.Datacenter)
	o.name("TaggedAddresses")
	o.b = appendStringMap(o.b, n.TaggedAddresses)
	o.name("NodeMeta")
	o.b = appendStringMap(o.b, n.Meta)
	o.str("ServiceKind", s.Kind)
	o.str("ServiceID", s.ID)
	o.str("ServiceName", s.Service)
	o.strings("ServiceTags", s.Tags)
	o.str("ServiceAddress", s.Address)
	if len(s.TaggedAddresses) != 0 {
		o.name("ServiceTaggedAddresses")
		o.b = appendAddresses(o.b, s.TaggedAddresses)
	}
	o.name("ServiceWeights")
	o.b = appendWeights(o.b, s.Weights)
	o.name("ServiceMeta")
	if s.Meta == nil {
		o.b = append(o.b, '{', '}')
	} else {
		o.b = appendStringMap(o.b, s.Meta)
	}
	o.num("ServicePort", s.Port)
	o.str("ServiceSocketPath", s.SocketPath)
	o.bool("ServiceEnableTagOverride", s.EnableTagOverride)
	o.name("ServiceProxy")
	o.b = appendProxy(o.b, &s.Proxy, false)
	o.name("ServiceConnect")
	o.b = appendConnect(o.b, &s.Connect)
	o.name("ServiceLocality")
	if s.Locality == nil {
		o.b = append(o.b, "null"...)
	} else {
		o.b = appendLocality(o.b, s.Locality)
	}
	o.optStr("PeerName", s.PeerName)
	o.indexes(s.Indexes)
	return append(o.b, '}')
}

func appendConnect(dst []byte, c *catalog.Connect) []byte {
	o := object{b: append(dst, '{')}
	o.optBool("Native", c.Native)
	if len(c.PeerMeta) != 0 {
		o.any("PeerMeta", c.PeerMeta)
	}
	return append(o.b, '}')
}

// appendProxy appends a proxy block in the form of the catalog, or of the agent (section 3.5).
func appendProxy(dst []byte, p *catalog.Proxy, agent bool) []byte {
	o := object{b: append(dst, '{')}
	if !agent || p.Mode != "" {
		o.str("Mode", p.Mode)
	}
	if len(p.EnvoyExtensions) != 0 {
		o.any("EnvoyExtensions", p.EnvoyExtensions)
	}
	o.optStr("DestinationServiceName", p.DestinationServiceName)
	o.optStr("DestinationServiceID", p.DestinationServiceID)
	o.optStr("LocalServiceAddress", p.LocalServiceAddress)
	o.optNum("LocalServicePort", p.LocalServicePort)
	o.optStr("LocalServiceSocketPath", p.LocalServiceSocketPath)
	if len(p.Config) != 0 {
		o.any("Config", p.Config)
	}
	if len(p.Upstreams) != 0 {
		o.name("Upstreams")
		for i := range p.Upstreams {
			o.b = append(o.b, listMark(i))
			o.b = appendUpstream(o.b, &p.Upstreams[i], agent)
		}
		o.b = append(o.b, ']')
	}
	o.name("MeshGateway")
	o.b = appendMeshGateway(o.b, p.MeshGateway)
	o.name("Expose")
	o.b = appendExpose(o.b, &p.Expose, agent)
	if p.TransparentProxy != nil {
		o.name("TransparentProxy")
		o.b = append(o.b, '{')
		t := object{b: o.b}
		t.optNum("OutboundListenerPort", p.TransparentProxy.OutboundListenerPort)
		t.optBool("DialedDirectly", p.TransparentProxy.DialedDirectly)
		o.b = append(t.b, '}')
	}
	if p.AccessLogs != nil {
		o.name("AccessLogs")
		a := object{b: append(o.b, '{')}
		a.optBool("Enabled", p.AccessLogs.Enabled)
		a.optBool("DisableListenerLogs", p.AccessLogs.DisableListenerLogs)
		a.optStr("Type", p.AccessLogs.Type)
		a.optStr("Path", p.AccessLogs.Path)
		a.optStr("JSONFormat", p.AccessLogs.JSONFormat)
		a.optStr("TextFormat", p.AccessLogs.TextFormat)
		o.b = append(a.b, '}')
	}
	o.optStr("MutualTLSMode", p.MutualTLSMode)
	return append(o.b, '}')
}

// listMark returns what begins the element i of a list.
func listMark(i int) byte {
	if i == 0 {
		return '['
	}
	return ','
}

func appendMeshGateway(dst []byte, m catalog.MeshGateway) []byte {
	o := object{b: append(dst, '{')}
	o.optStr("Mode", m.Mode)
	return append(o.b, '}')
}

func appendExpose(dst []byte, e *catalog.Expose, agent bool) []byte {
	o := object{b: append(dst, '{')}
	o.optBool("Checks", e.Checks)
	if len(e.Paths) != 0 {
		o.name("Paths")
		for i, p := range e.Paths {
			o.b = append(o.b, listMark(i))
			x := object{b: append(o.b, '{')}
			x.optNum("ListenerPort", p.ListenerPort)
			x.optStr("Path", p.Path)
			x.optNum("LocalPathPort", p.LocalPathPort)
			x.optStr("Protocol", p.Protocol)
			if agent || p.ParsedFromCheck {
				x.bool("ParsedFromCheck", p.ParsedFromCheck)
			}
			o.b = append(x.b, '}')
		}
		o.b = append(o.b, ']')
	}
	return append(o.b, '}')
}

func appendUpstream(dst []byte, u *catalog.Upstream, agent bool) []byte {
	o := object{b: append(dst, '{')}
	kind := u.DestinationType
	if kind == "" && agent {
		kind = "service"
	}
	o.str("DestinationType", kind) // in the catalog as it was registered
	o.optStr("DestinationNamespace", u.DestinationNamespace)
	o.optStr("DestinationPartition", u.DestinationPartition)
	o.optStr("DestinationPeer", u.DestinationPeer)
	o.str("DestinationName", u.DestinationName)
	if !agent || u.Datacenter != "" {
		o.str("Datacenter", u.Datacenter)
	}
	o.optStr("LocalBindAddress", u.LocalBindAddress)
	o.optNum("LocalBindPort", u.LocalBindPort)
	o.optStr("LocalBindSocketPath", u.LocalBindSocketPath)
	o.optStr("LocalBindSocketMode", u.LocalBindSocketMode)
	if len(u.Config) != 0 {
		o.any("Config", u.Config)
	}
	o.name("MeshGateway")
	o.b = appendMeshGateway(o.b, u.MeshGateway)
	o.optBool("CentrallyConfigured", u.CentrallyConfigured)
	return append(o.b, '}')
}

// appendCheck appends a health check (section 3.4).
func appendCheck(dst []byte, c *catalog.Check) []byte {
	return appendTaggedCheck(dst, c, appendStrings)
}

// appendTxnCheck appends one as transactions answer it: the check of a node has null for tags.
func appendTxnCheck(dst []byte, c *catalog.Check) []byte {
	return appendTaggedCheck(dst, c, func(dst []byte, tags []string) []byte {
		if tags == nil {
			return append(dst, "null"...)
		}
		return appendStrings(dst, tags)
	})
}

func appendTaggedCheck(dst []byte, c *catalog.Check, appendTags func([]byte, []string) []byte) []byte {
	o := object{b: append(dst, '{')}
	o.str("Node", c.Node)
	o.str("CheckID", c.CheckID)
	o.str("Name", c.Name)
	o.str("Status", c.Status)
	o.str("Notes", c.Notes)
	o.str("Output", c.Output)
	o.str("ServiceID", c.ServiceID)
	o.str("ServiceName", c.ServiceName)
	o.name("ServiceTags")
	o.b = appendTags(o.b, c.ServiceTags)
	o.str("Type", c.Type)
	o.str("Interval", c.Interval)
	o.str("Timeout", c.Timeout)
	o.num("ExposedPort", c.ExposedPort)
	o.optStr("PeerName", c.PeerName)
	o.name("Definition")
	o.b = appendDefinition(o.b, &c.Definition)
	o.indexes(c.Indexes)
	return append(o.b, '}')
}

func appendDefinition(dst []byte, d *catalog.CheckDefinition) []byte {
	o := object{b: append(dst, '{')}
	o.optStr("HTTP", d.HTTP)
	o.optStr("TLSServerName", d.TLSServerName)
	o.optBool("TLSSkipVerify", d.TLSSkipVerify)
	if len(d.Header) != 0 {
		o.any("Header", d.Header)
	}
	o.optStr("Method", d.Method)
	o.optStr("Body", d.Body)
	o.optBool("DisableRedirects", d.DisableRedirects)
	o.optStr("TCP", d.TCP)
	o.optBool("TCPUseTLS", d.TCPUseTLS)
	o.optStr("UDP", d.UDP)
	o.optStr("H2PING", d.H2PING)
	o.optStr("OSService", d.OSService)
	o.optBool("H2PingUseTLS", d.H2PingUseTLS)
	o.optDuration("Interval", d.Interval)
	if d.OutputMaxSize != 0 {
		o.uint("OutputMaxSize", uint64(d.OutputMaxSize))
	}
	o.optDuration("Timeout", d.Timeout)
	o.optDuration("DeregisterCriticalServiceAfter", d.DeregisterCriticalServiceAfter)
	if len(d.ScriptArgs) != 0 {
		o.strings("ScriptArgs", d.ScriptArgs)
	}
	o.optStr("DockerContainerID", d.DockerContainerID)
	o.optStr("Shell", d.Shell)
	o.optStr("GRPC", d.GRPC)
	o.optBool("GRPCUseTLS", d.GRPCUseTLS)
	o.optStr("AliasNode", d.AliasNode)
	o.optStr("AliasService", d.AliasService)
	o.optStr("SessionName", d.SessionName)
	o.optDuration("TTL", d.TTL)
	return append(o.b, '}')
}

func (o *object) optDuration(name string, d catalog.Duration) {
	if d != 0 {
		o.str(name, d.String())
	}
}

// appendInstance appends the form of health/service: node, instance and checks.
func appendInstance(dst []byte, i *catalog.Instance) []byte {
	dst = append(dst, `{"Node":`...)
	dst = appendNode(dst, i.Node)
	dst = append(dst, `,"Service":`...)
	dst = appendService(dst, i.Service)
	dst = append(dst, `,"Checks":`...)
	dst = appendList(dst, i.Checks, appendCheck)
	return append(dst, '}')
}

// appendEntry appends a key with its value.
func appendEntry(dst []byte, e *kv.Entry) []byte {
	o := object{b: append(dst, '{')}
	o.uint("LockIndex", e.LockIndex)
	o.str("Key", e.Key)
	o.uint("Flags", e.Flags)
	o.name("Value")
	if len(e.Value) == 0 {
		o.b = append(o.b, "null"...)
	} else {
		o.b = append(o.b, '"')
		o.b = base64.StdEncoding.AppendEncode(o.b, e.Value)
		o.b = append(o.b, '"')
	}
	o.optStr("Session", e.Session)
	o.indexes(e.Indexes)
	return append(o.b, '}')
}

// appendSession appends a session; lists that are not there are null.
func appendSession(dst []byte, s *kv.Session) []byte {
	o := object{b: append(dst, '{')}
	o.str("ID", s.ID)
	o.str("Name", s.Name)
	o.str("Node", s.Node)
	o.name("LockDelay")
	o.b = strconv.AppendInt(o.b, int64(s.LockDelay), 10)
	o.str("Behavior", string(s.Behavior))
	o.str("TTL", s.TTL)
	o.any("NodeChecks", s.NodeChecks)
	o.any("ServiceChecks", s.ServiceChecks)
	if len(s.Checks) != 0 {
		o.strings("Checks", s.Checks)
	}
	o.indexes(s.Indexes)
	return append(o.b, '}')
}

// appendList appends a list, [] for nil.
func appendList[T any](dst []byte, list []T, one func([]byte, T) []byte) []byte {
	dst = append(dst, '[')
	for i, v := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = one(dst, v)
	}
	return append(dst, ']')
}

// A listValue is a list with the function that appends one of its elements.
type listValue[T any] struct {
	list []T
	one  func([]byte, T) []byte
}

func (l listValue[T]) appendJSON(dst []byte) []byte { return appendList(dst, l.list, l.one) }

// stringsValue is a list of strings, [] for nil.
type stringsValue []string

func (l stringsValue) appendJSON(dst []byte) []byte { return appendStrings(dst, l) }

// An appendFunc appends its own JSON.
type appendFunc func(dst []byte) []byte

func (f appendFunc) appendJSON(dst []byte) []byte { return f(dst) }
