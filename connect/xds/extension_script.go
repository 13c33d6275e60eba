//lint:file-ignore SA1019 older Envoys know only the older fields

package xds

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	httpwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	netwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sarnmesh/sarn/catalog"
)

// lua runs a script on requests.
type lua struct{ Listener, Script string }

func newLua(e *catalog.EnvoyExtension, x *extensions) (extension, error) {
	var a struct{ ProxyType, Listener, Script string }
	if err := decodeArguments(e, &a); err != nil {
		return nil, err
	}
	if a.Script == "" {
		return nil, errors.New("Script is required")
	}
	if err := checkListenerType(a.Listener); err != nil {
		return nil, err
	}
	if ok, err := concerns(a.ProxyType, x); err != nil || !ok {
		return noExtension{}, err
	}
	return &lua{a.Listener, a.Script}, nil
}

func (x *lua) apply(b *build, t Type, m *made) error {
	l := b.listenerOf(x.Listener, t, m)
	if l == nil {
		return nil
	}
	return changeManagers(l, func(m *hcmv3.HttpConnectionManager) (err error) {
		f := httpFilter("envoy.filters.http.lua", &luav3.Lua{DefaultSourceCode: inline(x.Script)})
		m.HttpFilters, err = insertFilter(m.HttpFilters, f, insertOptions{}, filterRouter)
		return err
	})
}

// wasm runs a WebAssembly program on requests or connections.
type wasm struct {
	http         bool
	listenerType string
	uses         []ref
	plugin       *wasmv3.PluginConfig
}

type wasmArguments struct {
	Protocol, ListenerType, ProxyType string
	PluginConfig                      struct {
		Name, RootID string
		VMConfig     struct {
			VMID, Runtime string
			Code          struct {
				Local  *struct{ Filename string }
				Remote *struct {
					HTTPURI *struct {
						Service *struct{ Name, Namespace, Partition string }
						URI     string
						Timeout time.Duration
					}
					SHA256      string
					RetryPolicy *retryArguments
				}
			}
			Configuration        string
			EnvironmentVariables *struct {
				HostEnvKeys []string
				KeyValues   map[string]string
			}
		}
		Configuration                      string
		CapabilityRestrictionConfiguration *struct{ AllowedCapabilities map[string]any }
	}
}

// retryArguments say how often something is tried again.
type retryArguments struct {
	RetryBackOff *struct{ BaseInterval, MaxInterval time.Duration }
	NumRetries   *int
}

func (a *retryArguments) policy() (*corev3.RetryPolicy, error) {
	if a == nil {
		return nil, nil
	}
	p := &corev3.RetryPolicy{}
	if a.NumRetries != nil && *a.NumRetries >= 0 {
		p.NumRetries = wrapperspb.UInt32(uint32(*a.NumRetries))
	}
	if back := a.RetryBackOff; back != nil {
		base, limit := cmp.Or(back.BaseInterval, time.Second), cmp.Or(back.MaxInterval, 10*time.Second)
		if base < time.Millisecond || limit < base {
			return nil, fmt.Errorf("RetryBackOff from %v to %v", base, limit)
		}
		p.RetryBackOff = &corev3.BackoffStrategy{BaseInterval: durationpb.New(base), MaxInterval: durationpb.New(limit)}
	}
	return p, nil
}

var wasmRuntimes = map[string]string{
	"": "envoy.wasm.runtime.v8", "v8": "envoy.wasm.runtime.v8", "wasmtime": "envoy.wasm.runtime.wasmtime",
	"wamr": "envoy.wasm.runtime.wamr", "wavm": "envoy.wasm.runtime.wavm",
}

func newWasm(e *catalog.EnvoyExtension, x *extensions) (extension, error) {
	var a wasmArguments
	if err := decodeArguments(e, &a); err != nil {
		return nil, err
	}
	if a.Protocol != "tcp" && a.Protocol != "http" {
		return nil, fmt.Errorf(`Protocol %q is neither "tcp" nor "http"`, a.Protocol)
	}
	if err := checkListenerType(a.ListenerType); err != nil {
		return nil, err
	}
	if ok, err := concerns(a.ProxyType, x); err != nil || !ok {
		return noExtension{}, err
	}
	vm := &a.PluginConfig.VMConfig
	runtime, ok := wasmRuntimes[vm.Runtime]
	if !ok {
		return nil, fmt.Errorf("VmConfig.Runtime %q is not known", vm.Runtime)
	}
	w := &wasm{http: a.Protocol == "http", listenerType: a.ListenerType}
	code := &corev3.AsyncDataSource{}
	switch local, remote := vm.Code.Local, vm.Code.Remote; {
	case (local == nil) == (remote == nil):
		return nil, errors.New("exactly one of Code.Local and Code.Remote must be set")
	case local != nil:
		if local.Filename == "" {
			return nil, errors.New("Code.Local.Filename is required")
		}
		code.Specifier = &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: local.Filename}}}
	default:
		h := remote.HTTPURI
		if h == nil || h.URI == "" || h.Service == nil || remote.SHA256 == "" {
			return nil, errors.New("Code.Remote asks for HttpURI.Service, HttpURI.URI and SHA256")
		}
		cluster := x.targets[h.Service.Name]
		if cluster == "" {
			return nil, fmt.Errorf("service %q is no upstream of the proxy", h.Service.Name)
		}
		retry, err := remote.RetryPolicy.policy()
		if err != nil {
			return nil, err
		}
		w.uses = []ref{{Cluster, cluster}}
		code.Specifier = &corev3.AsyncDataSource_Remote{Remote: &corev3.RemoteDataSource{
			HttpUri: &corev3.HttpUri{
				Uri: h.URI, HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: cluster}, Timeout: durationpb.New(cmp.Or(max(h.Timeout, 0), time.Second)),
			},
			Sha256: remote.SHA256, RetryPolicy: retry,
		}}
	}
	config := &wasmv3.VmConfig{VmId: vm.VMID, Runtime: runtime, Code: code}
	if vm.Configuration != "" {
		config.Configuration = mustPack(wrapperspb.String(vm.Configuration))
	}
	if env := vm.EnvironmentVariables; env != nil {
		config.EnvironmentVariables = &wasmv3.EnvironmentVariables{HostEnvKeys: env.HostEnvKeys, KeyValues: env.KeyValues}
	}
	w.plugin = &wasmv3.PluginConfig{
		Name: a.PluginConfig.Name, RootId: a.PluginConfig.RootID, Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: config}, FailOpen: !e.Required,
	}
	if text := a.PluginConfig.Configuration; text != "" {
		w.plugin.Configuration = mustPack(wrapperspb.String(text))
	}
	if c := a.PluginConfig.CapabilityRestrictionConfiguration; c != nil {
		allowed := map[string]*wasmv3.SanitizationConfig{}
		for name := range c.AllowedCapabilities {
			allowed[name] = &wasmv3.SanitizationConfig{}
		}
		w.plugin.CapabilityRestrictionConfig = &wasmv3.CapabilityRestrictionConfig{AllowedCapabilities: allowed}
	}
	return w, nil
}

func (x *wasm) apply(b *build, t Type, m *made) error {
	l := b.listenerOf(x.listenerType, t, m)
	if l == nil {
		return nil
	}
	m.uses = slices.Concat(m.uses, x.uses)
	if x.http {
		return changeManagers(l, func(m *hcmv3.HttpConnectionManager) (err error) {
			f := httpFilter("envoy.filters.http.wasm", &httpwasmv3.Wasm{Config: x.plugin})
			m.HttpFilters, err = insertFilter(m.HttpFilters, f, insertOptions{}, filterRouter)
			return err
		})
	}
	for _, fc := range chainsOf(l) {
		if !slices.ContainsFunc(fc.Filters, func(f *listenerv3.Filter) bool { return f.Name == filterTCPProxy }) {
			continue
		}
		var err error
		if fc.Filters, err = insertFilter(fc.Filters, filter("envoy.filters.network.wasm", &netwasmv3.Wasm{Config: x.plugin}), insertOptions{}, filterTCPProxy); err != nil {
			return err
		}
	}
	return nil
}
