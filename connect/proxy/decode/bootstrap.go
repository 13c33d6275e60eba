package decode

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// A Bootstrap is what a proxy starts from.
type Bootstrap struct {
	Node Node

	Listeners []*model.Listener
	Clusters  []*model.Cluster
	Secrets   []*model.Secret

	ADS *ADS // nil: there are only the static resources
	// LDS and CDS tell whether listeners and clusters come over ADS too.
	LDS, CDS bool

	Admin *Admin // nil leaves it to whoever starts the proxy
	Metrics

	// Raw holds the static resources as they came, for showing.
	Raw []*anypb.Any
}

// A Node says who the proxy is to the control plane.
type Node struct {
	ID       string
	Cluster  string
	Metadata map[string]any // values that JSON has
	Region   string
	Zone     string
	SubZone  string
}

// ADS says where the control plane is.
type ADS struct {
	Cluster  string // one of the static clusters
	SotW     bool   // the state-of-the-world variant of the protocol
	Metadata []Header
}

// A Header goes with each stream to the control plane.
type Header struct{ Key, Value string }

// Admin says where the admin server listens.
type Admin struct {
	Address model.Address
	Allow   []model.StringMatch // paths to serve; empty serves all
}

// Bootstrap decodes a bootstrap document. The name tells its format by its
// extension: .yaml, .yml, .json, .pb or .pb_text. An unknown field is an error.
func (d *Decoder) Bootstrap(name string, b []byte) (*Bootstrap, error) {
	var m bootstrapv3.Bootstrap
	var err error
	switch ext := filepath.Ext(name); ext {
	case ".yaml", ".yml", ".json", "":
		if ext == ".yaml" || ext == ".yml" {
			b, err = yamlToJSON(b)
		}
		if err == nil {
			b, err = lenient(b, m.ProtoReflect().Descriptor())
		}
		if err == nil {
			err = protojson.Unmarshal(b, &m)
		}
	case ".pb":
		err = proto.Unmarshal(b, &m)
	case ".pb_text":
		err = prototext.Unmarshal(b, &m)
	default:
		err = fmt.Errorf("unknown extension %q", ext)
	}
	if err != nil {
		return nil, fmt.Errorf("read bootstrap %s: %w", name, err)
	}
	if err := valid(&m); err != nil {
		return nil, fmt.Errorf("bootstrap %s: %w", name, err)
	}
	r := &run{d: d}
	out := r.bootstrap(&m)
	if err := r.err(); err != nil {
		return nil, fmt.Errorf("bootstrap %s: %w", name, err)
	}
	return out, nil
}

func yamlToJSON(b []byte) ([]byte, error) {
	var v any
	if err := yaml.Unmarshal(b, &v); err != nil {
		return nil, err
	}
	j, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("not of the form of JSON: %w", err)
	}
	return j, nil
}

func (r *run) bootstrap(m *bootstrapv3.Bootstrap) *Bootstrap {
	r.only("", m, "node static_resources dynamic_resources admin stats_config stats_sinks stats_flush_interval",
		`stats_flush_on_admin tracing layered_runtime cluster_manager overload_manager watchdog watchdogs
		enable_dispatcher_stats flags_path header_prefix default_regex_engine typed_dns_resolver_config memory_allocator_manager
		application_log_config deferred_stat_options stats_server_version_override`)
	b := &Bootstrap{}
	n := m.GetNode()
	b.Node = Node{ID: n.GetId(), Cluster: n.GetCluster(), Metadata: n.GetMetadata().AsMap(),
		Region: n.GetLocality().GetRegion(), Zone: n.GetLocality().GetZone(), SubZone: n.GetLocality().GetSubZone()}

	s := m.GetStaticResources()
	for i, c := range s.GetClusters() {
		sub := &run{d: r.d}
		b.Clusters = append(b.Clusters, sub.cluster(c))
		r.sub(fmt.Sprintf("static_resources.clusters[%d] %q", i, c.GetName()), sub.err())
		r.keep(b, c)
	}
	for i, l := range s.GetListeners() {
		sub := &run{d: r.d}
		if l.GetName() == "" {
			l.Name = fmt.Sprintf("static-%d", i)
		}
		b.Listeners = append(b.Listeners, sub.listener(l))
		r.sub(fmt.Sprintf("static_resources.listeners[%d] %q", i, l.GetName()), sub.err())
		r.keep(b, l)
	}
	for i, x := range s.GetSecrets() {
		p := index("static_resources.secrets", i)
		a, err := anypb.New(x)
		if err != nil {
			r.errorf(p, "%w", err)
			continue
		}
		secret, err := r.d.Secret(a)
		r.sub(p, err)
		b.Secrets = append(b.Secrets, secret)
		b.Raw = append(b.Raw, a)
	}
	r.dynamic(b, m.GetDynamicResources())
	if a := m.GetAdmin(); a.GetAddress() != nil {
		b.Admin = &Admin{Address: r.address("admin.address", a.GetAddress(), false)}
		for i, p := range a.GetAllowPaths() {
			b.Admin.Allow = append(b.Admin.Allow, r.stringMatch(index("admin.allow_paths", i), p))
		}
	}
	b.Metrics = r.metrics(m)
	return b
}

func (r *run) sub(path string, err error) {
	if err != nil {
		r.errorf(path, "%w", err)
	}
}

func (r *run) keep(b *Bootstrap, m proto.Message) {
	if a, err := anypb.New(m); err == nil {
		b.Raw = append(b.Raw, a)
	}
}

func (r *run) dynamic(b *Bootstrap, m *bootstrapv3.Bootstrap_DynamicResources) {
	const p = "dynamic_resources"
	r.only(p, m, "lds_config cds_config ads_config", "")
	if c := m.GetLdsConfig(); c != nil {
		r.adsOnly(p+".lds_config", c)
		b.LDS = true
	}
	if c := m.GetCdsConfig(); c != nil {
		r.adsOnly(p+".cds_config", c)
		b.CDS = true
	}
	a := m.GetAdsConfig()
	if a == nil {
		if b.LDS || b.CDS {
			r.errorf(p+".ads_config", "missing")
		}
		return
	}
	r.only(p+".ads_config", a, "api_type transport_api_version grpc_services", "set_node_on_first_message_only rate_limit_settings")
	ads := &ADS{}
	switch a.GetApiType() {
	case corev3.ApiConfigSource_DELTA_GRPC, corev3.ApiConfigSource_AGGREGATED_DELTA_GRPC:
	case corev3.ApiConfigSource_GRPC, corev3.ApiConfigSource_AGGREGATED_GRPC:
		ads.SotW = true
	default:
		r.errorf(p+".ads_config.api_type", "%v is not supported", a.GetApiType())
	}
	if len(a.GetGrpcServices()) == 0 {
		r.errorf(p+".ads_config.grpc_services", "empty")
		return
	}
	g := a.GetGrpcServices()[0]
	if ads.Cluster = g.GetEnvoyGrpc().GetClusterName(); ads.Cluster == "" {
		r.errorf(p+".ads_config.grpc_services[0]", "only envoy_grpc with a cluster_name is supported")
	}
	known := false
	for _, c := range b.Clusters {
		known = known || c.Name == ads.Cluster
	}
	if !known {
		r.errorf(p+".ads_config.grpc_services[0].envoy_grpc.cluster_name", "%q is no static cluster", ads.Cluster)
	}
	for _, h := range g.GetInitialMetadata() {
		ads.Metadata = append(ads.Metadata, Header{strings.ToLower(h.GetKey()), h.GetValue()})
	}
	b.ADS = ads
}

func compileTag(s string) (*regexp.Regexp, error) {
	re, err := regexp.Compile(s)
	if err != nil {
		return nil, err
	}
	if re.NumSubexp() < 1 {
		return nil, errors.New("no group says what to cut")
	}
	return re, nil
}
