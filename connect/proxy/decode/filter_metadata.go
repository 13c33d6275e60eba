//lint:file-ignore SA1019 control planes still send what Envoy has deprecated

package decode

import (
	"strings"

	headermetav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
	setmetav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/set_metadata/v3"

	"github.com/sarnmesh/sarn/connect/proxy/filter/headertometadata"
	"github.com/sarnmesh/sarn/connect/proxy/filter/setmetadata"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

var headerToMetadataFilter = httpFilter{
	name:  "envoy.filters.http.header_to_metadata",
	proto: (*headermetav3.Config)(nil), config: with((*run).headerToMetadata),
	routeProto: (*headermetav3.Config)(nil), route: with((*run).headerToMetadata),
}

func (r *run) headerToMetadata(path string, m *headermetav3.Config) model.FilterConfig {
	r.only(path, m, "request_rules response_rules", "")
	rules := func(field string, list []*headermetav3.Config_Rule) (out []headertometadata.Rule) {
		for i, x := range list {
			p := index(join(path, field), i)
			r.only(p, x, "header cookie on_header_present on_header_missing remove", "")
			rule := headertometadata.Rule{
				Header: strings.ToLower(x.GetHeader()), Cookie: x.GetCookie(), Remove: x.GetRemove(),
				Present: r.metadataValue(join(p, "on_header_present"), x.GetOnHeaderPresent()),
				Missing: r.metadataValue(join(p, "on_header_missing"), x.GetOnHeaderMissing()),
			}
			switch {
			case (rule.Header == "") == (rule.Cookie == ""):
				r.errorf(p, "One of Cookie or Header option needs to be specified")
			case rule.Remove && rule.Cookie != "":
				r.errorf(join(p, "remove"), "Cannot specify remove for cookie")
			case rule.Present == nil && rule.Missing == nil:
				r.errorf(p, "rule for header %q has neither on_header_present nor on_header_missing set", rule.Header)
			case rule.Missing != nil && rule.Missing.Value == "":
				r.errorf(join(p, "on_header_missing"), "Cannot specify on_missing rule with an empty value")
			case rule.Missing != nil && rule.Missing.Rewrite != nil:
				r.errorf(join(p, "on_header_missing"), "Cannot specify on_missing rule with regex_value_rewrite")
			case field == "response_rules" && rule.Cookie != "":
				r.errorf(join(p, "cookie"), "responses have no cookies to look at")
			}
			out = append(out, rule)
		}
		return out
	}
	return &headertometadata.Config{Request: rules("request_rules", m.GetRequestRules()), Response: rules("response_rules", m.GetResponseRules())}
}

func (r *run) metadataValue(path string, m *headermetav3.Config_KeyValuePair) *headertometadata.Value {
	if m == nil {
		return nil
	}
	r.only(path, m, "metadata_namespace key value regex_value_rewrite type encode", "")
	v := &headertometadata.Value{
		Namespace: m.GetMetadataNamespace(), Key: m.GetKey(), Value: m.GetValue(),
		Rewrite: r.regexRewrite(join(path, "regex_value_rewrite"), m.GetRegexValueRewrite()),
		Number:  m.GetType() == headermetav3.Config_NUMBER,
		Base64:  m.GetEncode() == headermetav3.Config_BASE64,
	}
	if t := m.GetType(); t != headermetav3.Config_STRING && t != headermetav3.Config_NUMBER {
		r.errorf(join(path, "type"), "%v is not supported", t)
	}
	return v
}

var setMetadataFilter = httpFilter{
	name:  "envoy.filters.http.set_metadata",
	proto: (*setmetav3.Config)(nil), config: with((*run).setMetadata),
	routeProto: (*setmetav3.Config)(nil), route: with((*run).setMetadata),
}

func (r *run) setMetadata(path string, m *setmetav3.Config) model.FilterConfig {
	r.only(path, m, "metadata_namespace value metadata", "")
	c := &setmetadata.Config{}
	if m.GetValue() != nil {
		if m.GetMetadataNamespace() == "" {
			r.errorf(join(path, "metadata_namespace"), "empty")
		}
		c.Entries = append(c.Entries, setmetadata.Entry{Namespace: m.GetMetadataNamespace(), Values: m.GetValue().AsMap()})
	}
	for i, x := range m.GetMetadata() {
		r.only(index(join(path, "metadata"), i), x, "metadata_namespace allow_overwrite value", "")
		c.Entries = append(c.Entries, setmetadata.Entry{Namespace: x.GetMetadataNamespace(), Values: x.GetValue().AsMap(), Keep: !x.GetAllowOverwrite()})
	}
	return c
}
