package agent

import (
	"net/netip"
	"reflect"

	"github.com/sarnmesh/sarn/command/agent/config"
)

// debugConfig is the whole configuration without secrets, beside the names under which tools look for the most used
// parts of it.
func (a *Agent) debugConfig(s *config.Settings) map[string]any {
	all := redact(reflect.ValueOf(*s)).(map[string]any)
	for name, value := range map[string]any{
		"Datacenter": s.Node.Datacenter, "PrimaryDatacenter": s.Node.PrimaryDatacenter, "NodeName": s.Node.Name, "NodeID": a.node.ID,
		"NodeMeta": s.Node.Meta, "TaggedAddresses": s.Node.TaggedAddresses, "ServerMode": s.Server, "DevMode": s.Dev,
		"ACLsEnabled": s.ACL.Enabled, "ACLDefaultPolicy": s.ACL.DefaultPolicy, "ConnectEnabled": s.Connect.Enabled,
		"BindAddr": shown(s.Addresses.Bind), "ClientAddrs": shownAll(s.Addresses.Client), "AdvertiseAddrLAN": shown(s.Addresses.Advertise),
		"AdvertiseAddrWAN": shown(s.Addresses.AdvertiseWAN), "ServerPort": s.Ports.Server, "SerfPortLAN": s.Ports.SerfLAN,
		"SerfPortWAN": s.Ports.SerfWAN, "HTTPPort": s.Ports.HTTP, "HTTPSPort": s.Ports.HTTPS, "GRPCPort": s.Ports.GRPC,
		"GRPCTLSPort": s.Ports.GRPCTLS, "DNSPort": s.Ports.DNS, "DNSDomain": s.DNS.Domain, "DNSAltDomain": s.DNS.AltDomain,
		"CheckUpdateInterval": s.Check.UpdateInterval.String(), "LogLevel": s.Log.Level, "UIEnabled": s.UI.Enabled,
		"SerfAdvertiseAddrLAN": "tcp://" + s.Addresses.SerfLANAdvertise.String(), "SerfBindAddrLAN": "tcp://" + s.Addresses.SerfLAN.String(),
		"DNSAddrs": dnsAddrs(s.Addresses.DNS), "HTTPAddrs": listened(s.Addresses.HTTP), "HTTPSAddrs": listened(s.Addresses.HTTPS),
		"GRPCAddrs": listened(s.Addresses.GRPC), "GRPCTLSAddrs": listened(s.Addresses.GRPCTLS),
		"EncryptKey": "hidden", // set or not
	} {
		all[name] = value
	}
	return all
}

func shown(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func shownAll(list []netip.Addr) []string {
	out := []string{}
	for _, a := range list {
		out = append(out, shown(a))
	}
	return out
}

func dnsAddrs(list []netip.AddrPort) []string {
	out := []string{}
	for _, a := range list {
		out = append(out, "tcp://"+a.String(), "udp://"+a.String())
	}
	return out
}

func listened(list []config.Listen) []string {
	out := []string{}
	for _, l := range list {
		out = append(out, l.Network+"://"+l.Address)
	}
	return out
}
