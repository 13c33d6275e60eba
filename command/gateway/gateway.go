// Package gateway finds and registers gateways, for the commands that run them.
package gateway

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

// Kinds are the kinds of gateways by the name of the -gateway flag.
var Kinds = map[string]api.ServiceKind{
	"api":         api.ServiceKindAPIGateway,
	"ingress":     api.ServiceKindIngressGateway,
	"mesh":        api.ServiceKindMeshGateway,
	"terminating": api.ServiceKindTerminatingGateway,
}

// ErrKind reports another value of the -gateway flag.
var ErrKind = verb.Errorf("Gateway must be one of: api, terminating, mesh, or ingress")

// DefaultPort is where a gateway listens when its address does not say.
const DefaultPort = 8443

// A Registration is what flags say about a gateway to register. All but Kind may be empty.
type Registration struct {
	Kind            api.ServiceKind
	ID              string            // default Name
	Name            string            // default the kind
	Address         string            // host:port; default a loopback address and DefaultPort
	WANAddress      string            // host:port other datacenters reach it at
	BindAddresses   map[string]string // ip:port by name; default the others, if the machine has them
	ExposeServers   bool              // other datacenters reach the servers through this mesh gateway
	DeregisterAfter time.Duration     // after so long without health it is deregistered
}

// Request returns the registration in the form of the agent.
func (r *Registration) Request() (*api.AgentServiceRegistration, error) {
	name := cmp.Or(r.Name, string(r.Kind))
	lan, err := hostPort(cmp.Or(r.Address, fmt.Sprintf("127.0.0.1:%d", DefaultPort)), DefaultPort)
	if err != nil {
		return nil, verb.Errorf("Failed to parse the -address parameter: %w", err)
	}
	reg := &api.AgentServiceRegistration{
		Kind: r.Kind, Name: name, ID: cmp.Or(r.ID, name), Address: lan.Address, Port: lan.Port,
		TaggedAddresses: map[string]api.ServiceAddress{"lan": lan},
		Proxy:           &api.AgentServiceConnectProxyConfig{},
	}
	var wan api.ServiceAddress
	if r.WANAddress != "" {
		if wan, err = hostPort(r.WANAddress, DefaultPort); err != nil {
			return nil, verb.Errorf("Failed to parse the -wan-address parameter: %w", err)
		}
		reg.TaggedAddresses["wan"] = wan
	}
	if len(r.BindAddresses) > 0 {
		binds := map[string]api.ServiceAddress{}
		for name, addr := range r.BindAddresses {
			if binds[name], err = hostPort(addr, 0); err != nil {
				return nil, verb.Errorf("Failed to parse the -bind-address parameter: %w", err)
			}
		}
		reg.Proxy.Config = map[string]any{"envoy_gateway_no_default_bind": true, "envoy_gateway_bind_addresses": binds}
	} else if local(lan.Address) && wan.Address != "" && local(wan.Address) {
		reg.Proxy.Config = map[string]any{"envoy_gateway_no_default_bind": true, "envoy_gateway_bind_tagged_addresses": true}
	}
	if r.ExposeServers {
		reg.Meta = map[string]string{"consul-wan-federation": "1"}
	}
	if r.Kind != api.ServiceKindAPIGateway {
		reg.Check = &api.AgentServiceCheck{
			Name: fmt.Sprintf("%s listening", r.Kind), TCP: net.JoinHostPort(lan.Address, strconv.Itoa(lan.Port)),
			Interval: "10s", DeregisterCriticalServiceAfter: r.DeregisterAfter.String(),
		}
	}
	return reg, nil
}

// hostPort splits an address whose port may be left out unless the default is 0.
func hostPort(s string, port int) (api.ServiceAddress, error) {
	host, text, err := net.SplitHostPort(s)
	if err != nil {
		if strings.Contains(err.Error(), "missing port") && port != 0 {
			return api.ServiceAddress{Address: strings.Trim(s, "[]"), Port: port}, nil
		}
		return api.ServiceAddress{}, err
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return api.ServiceAddress{}, fmt.Errorf("port %q: %w", text, err)
	}
	return api.ServiceAddress{Address: host, Port: int(n)}, nil
}

// local reports whether the machine can listen on an address.
func local(host string) bool {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// Find returns the ID of the one gateway of a kind among the services of an agent.
func Find(services map[string]*api.AgentService, kind api.ServiceKind) (string, error) {
	var ids []string
	for id, s := range services {
		if s.Kind == kind {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	switch len(ids) {
	case 0:
		return "", verb.Errorf("No %s services registered with this agent", kind)
	case 1:
		return ids[0], nil
	}
	return "", verb.Errorf("Cannot lookup the %s's proxy ID because multiple are registered with the agent", kind)
}
