package config

import "strings"

// The schemas of service and check blocks. They are checked here for unknown keys and wrong types, so that these are told
// with their place in the file; what the values mean is decided by the package that turns the maps into definitions.
var (
	textKey   = &schema{kind: kindString}
	numberKey = &schema{kind: kindInt}
	boolKey   = &schema{kind: kindBool}
	freeKey   = &schema{kind: kindDict, elem: &schema{kind: kindAny}}
	listKey   = &schema{kind: kindList, elem: textKey}

	stringMap = &schema{kind: kindDict, elem: textKey}
	listMap   = &schema{kind: kindDict, elem: listKey}
)

// fields makes an object schema out of "key key key" lists by type.
func fields(byType map[*schema]string, objects map[string]*schema, aliases ...string) *schema {
	s := &schema{kind: kindObject, fields: map[string]*schema{}, alias: map[string]string{}}
	for sub, keys := range byType {
		for key := range strings.FieldsSeq(keys) {
			s.fields[key] = sub
			if squeezed := strings.ReplaceAll(key, "_", ""); squeezed != key {
				s.alias[squeezed] = key
			}
		}
	}
	for key, sub := range objects {
		s.fields[key] = sub
		if squeezed := strings.ReplaceAll(key, "_", ""); squeezed != key {
			s.alias[squeezed] = key
		}
	}
	for _, pair := range aliases {
		other, key, _ := strings.Cut(pair, "=")
		s.alias[other] = key
	}
	return s
}

var meshGatewaySchema = fields(map[*schema]string{textKey: "mode"}, nil)

var checkSchema = fields(map[*schema]string{
	textKey: `id name notes service_id token status http method body tcp udp interval timeout ttl docker_container_id shell
		grpc h2ping os_service tls_server_name alias_node alias_service deregister_critical_service_after`,
	listKey:   "args",
	listMap:   "header",
	numberKey: "output_max_size success_before_passing failures_before_warning failures_before_critical",
	boolKey:   "disable_redirects tcp_use_tls grpc_use_tls h2ping_use_tls tls_skip_verify",
}, nil, "scriptargs=args", "script_args=args", "check_id=id", "checkid=id")

var upstreamSchema = fields(map[*schema]string{
	textKey: `destination_type destination_name destination_peer destination_namespace destination_partition datacenter
		local_bind_address local_bind_socket_path local_bind_socket_mode`,
	numberKey: "local_bind_port",
	freeKey:   "config",
}, map[string]*schema{"mesh_gateway": meshGatewaySchema})

var proxySchema = fields(map[*schema]string{
	textKey:   "destination_service_name destination_service_id local_service_address local_service_socket_path mode",
	numberKey: "local_service_port",
	freeKey:   "config",
}, map[string]*schema{
	"upstreams":         {kind: kindList, elem: upstreamSchema},
	"mesh_gateway":      meshGatewaySchema,
	"transparent_proxy": fields(map[*schema]string{numberKey: "outbound_listener_port", boolKey: "dialed_directly"}, nil),
	"access_logs": fields(map[*schema]string{
		boolKey: "enabled disable_listener_logs",
		textKey: "type path json_format text_format",
	}, nil),
	"envoy_extensions": {kind: kindList, elem: fields(map[*schema]string{
		textKey: "name consul_version envoy_version", boolKey: "required", freeKey: "arguments",
	}, nil)},
	"expose": fields(map[*schema]string{boolKey: "checks"}, map[string]*schema{
		"paths": {kind: kindList, elem: fields(map[*schema]string{
			textKey: "path protocol", numberKey: "listener_port local_path_port",
		}, nil)},
	}),
})

var serviceSchema = newServiceSchema()

func newServiceSchema() *schema {
	plain := func() *schema {
		return fields(map[*schema]string{
			textKey:   "name id address socket_path token kind",
			listKey:   "tags",
			stringMap: "meta",
			numberKey: "port",
			boolKey:   "enable_tag_override",
		}, map[string]*schema{
			"tagged_addresses": {kind: kindDict, elem: fields(map[*schema]string{textKey: "address", numberKey: "port"}, nil)},
			"check":            {kind: kindList, elem: checkSchema, blocks: true},
			"checks":           {kind: kindList, elem: checkSchema},
			"weights":          fields(map[*schema]string{numberKey: "passing warning"}, nil),
			"proxy":            proxySchema,
			"locality":         fields(map[*schema]string{textKey: "region zone"}, nil),
			"ports": {kind: kindList, elem: fields(map[*schema]string{
				textKey: "name", numberKey: "port", boolKey: "default",
			}, nil)},
		})
	}
	sidecar := plain()
	// A sidecar may not have a sidecar of its own; the keys are known so that the mistake is told as what it is.
	sidecar.fields["connect"] = fields(map[*schema]string{boolKey: "native"}, map[string]*schema{"sidecar_service": plain()})
	service := plain()
	service.fields["connect"] = fields(map[*schema]string{boolKey: "native"}, map[string]*schema{"sidecar_service": sidecar})
	return service
}

// definitions converts checked blocks. A service's check and checks are gathered under checks.
func definitions(lists ...[]*node) []Definition {
	var out []Definition
	for _, blocks := range lists {
		for _, n := range blocks {
			gatherChecks(n)
			out = append(out, Definition{Source: n.pos.File, Pos: n.pos, Map: n.plain().(map[string]any)})
		}
	}
	return out
}

// gatherChecks moves the checks under the key check in front of those under checks, here and in a sidecar.
func gatherChecks(n *node) {
	if one := n.take("check"); one != nil {
		all := &node{shape: list, pos: one.pos, list: one.list}
		if many := n.get("checks"); many != nil {
			all.list = append(append([]*node{}, one.list...), many.list...)
		}
		n.set("checks", all)
	}
	if sidecar := n.find("connect.sidecar_service"); sidecar != nil {
		gatherChecks(sidecar)
	}
}
