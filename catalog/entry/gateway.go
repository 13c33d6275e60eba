package entry

import (
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// GatewayServicesCall asks what a gateway stands for.
var GatewayServicesCall = rpc.Read[GatewayServicesRequest, GatewayServicesReply]("ConfigEntry.GatewayServices")

// A GatewayServicesRequest names a gateway.
type GatewayServicesRequest struct {
	read.Options
	Gateway string
}

// GatewayServicesReply is ordered by service, then port.
type GatewayServicesReply struct {
	read.Meta
	Services []GatewayService
}

// What stands behind a terminating gateway.
const (
	GatewayToService     = "service"
	GatewayToDestination = "destination" // outside the mesh, by its service-defaults
)

// A GatewayService is a service that a gateway's entry links (spec/registry.md section 8.3). The indexes are the
// entry's.
type GatewayService struct {
	Gateway         GatewayName
	Service         GatewayName
	GatewayKind     string
	Port            int      `json:",omitempty"`
	Protocol        string   `json:",omitempty"`
	Hosts           []string `json:",omitempty"`
	CAFile          string   `json:",omitempty"`
	CertFile        string   `json:",omitempty"`
	KeyFile         string   `json:",omitempty"`
	SNI             string   `json:",omitempty"`
	FromWildcard    bool     `json:",omitempty"`
	ServiceKind     string   `json:",omitempty"` // GatewayToService, GatewayToDestination, or empty where neither is known
	AutoHostRewrite bool     `json:",omitempty"`
	catalog.Indexes
}

// A GatewayName is the name of one side of a link.
type GatewayName struct{ Name string }

// GatewayServices lists what an entry links, as it says it: wildcards stand as they are.
func GatewayServices(e Entry) []GatewayService {
	var links []GatewayService
	switch e := e.(type) {
	case *TerminatingGateway:
		for _, l := range e.Services {
			links = append(links, GatewayService{
				Gateway: GatewayName{e.Name}, Service: GatewayName{l.Name}, GatewayKind: catalog.KindTerminatingGateway,
				CAFile: l.CAFile, CertFile: l.CertFile, KeyFile: l.KeyFile, SNI: l.SNI,
				AutoHostRewrite: !l.DisableAutoHostRewrite, Indexes: e.Indexes,
			})
		}
	case *IngressGateway:
		for _, listener := range e.Listeners {
			for _, l := range listener.Services {
				links = append(links, GatewayService{
					Gateway: GatewayName{e.Name}, Service: GatewayName{l.Name}, GatewayKind: catalog.KindIngressGateway,
					Port: listener.Port, Protocol: listener.Protocol, Hosts: l.Hosts, Indexes: e.Indexes,
				})
			}
		}
	}
	return links
}
