package entry

import (
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Calls about the addresses that stand for services (spec/connect.md section 14). Handlers are in server/configrpc.
var (
	VirtualIPCall     = rpc.Read[VirtualIPRequest, VirtualIPReply]("VirtualIP.Get")
	SetVirtualIPsCall = rpc.Write[SetVirtualIPsRequest, SetVirtualIPsReply]("VirtualIP.SetManual")
)

// MaxManualVirtualIPs is how many addresses may be set for a service.
const MaxManualVirtualIPs = 8

// A VirtualIPRequest asks for the addresses of a service, imported from Peer unless that is empty.
type VirtualIPRequest struct {
	read.Options
	Service string
	Peer    string
}

// VirtualIPReply has an empty Address, and NotFound set, when the service has none.
type VirtualIPReply struct {
	read.Meta
	Address string
	Manual  []string
}

// A SetVirtualIPsRequest makes addresses stand for a service; it needs mesh:write.
type SetVirtualIPsRequest struct {
	read.Target
	Service   string
	Peer      string
	Addresses []string // IPv4
}

// SetVirtualIPsReply tells whether the service has a virtual IP, without which nothing was done, and who lost one of
// the addresses.
type SetVirtualIPsReply struct {
	Found          bool
	UnassignedFrom []AddressOwner // null when there is none
}

// An AddressOwner is a service that had an address.
type AddressOwner struct {
	ServiceName struct{ Name string }
	Peer        string
}
