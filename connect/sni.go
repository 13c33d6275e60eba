package connect

import "strings"

// ServiceSNI is the server name of a service in a datacenter, of one subset when subset is not empty.
func ServiceSNI(subset, service, datacenter, trustDomain string) string {
	name := service + ".default." + datacenter + ".internal." + trustDomain
	if subset != "" {
		name = subset + "." + name
	}
	return name
}

// DatacenterSNI is the server name of the mesh gateways of a datacenter.
func DatacenterSNI(datacenter, trustDomain string) string {
	return datacenter + ".internal." + trustDomain
}

// QuerySNI is the server name of a prepared query.
func QuerySNI(query, datacenter, trustDomain string) string {
	return query + ".default." + datacenter + ".query." + trustDomain
}

// PeeredServiceSNI is the server name of a service imported from a peer: peer is the name the exporter gave the
// importer, trustDomain the exporter's.
func PeeredServiceSNI(service, peer, trustDomain string) string {
	return service + ".default.default." + peer + ".external." + trustDomain
}

// PeeringServerSNI is the server name of the servers of a datacenter for peers.
func PeeringServerSNI(datacenter, trustDomain string) string {
	return "server." + datacenter + ".peering." + trustDomain
}

// GatewayServerSNI is the server name of one server reached over mesh gateways; domain is the DNS domain.
func GatewayServerSNI(node, datacenter, domain string) string {
	return node + ".server." + datacenter + "." + domain
}

// DestinationSNI is the server name of an address outside the mesh that a service stands for.
func DestinationSNI(address, service, datacenter, trustDomain string) string {
	return "destination." + strings.NewReplacer(".", "-", ":", "-").Replace(address) + "." + ServiceSNI("", service, datacenter, trustDomain)
}
