package catalog

import (
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/rpc"
)

// Calls about the datacenters a server knows of through the WAN gossip pool.
var (
	DatacentersCall           = rpc.Local[DatacentersRequest, DatacentersReply]("Catalog.Datacenters")
	DatacenterCoordinatesCall = rpc.Local[DatacentersRequest, DatacenterCoordinatesReply]("Coordinate.Datacenters")
)

// A DatacentersRequest asks for the datacenters.
type DatacentersRequest struct{ read.Target }

// DatacentersReply is ordered by distance from the server asked, its own first (spec/state.md section 13).
type DatacentersReply struct{ Datacenters []string }

// DatacenterCoordinatesReply is in the same order.
type DatacenterCoordinatesReply struct{ Datacenters []DatacenterCoordinates }

// DatacenterCoordinates are the positions of a datacenter's servers in the WAN pool, by their names without the
// datacenter.
type DatacenterCoordinates struct {
	Datacenter  string
	AreaID      string // "wan"
	Coordinates []NodeCoordinate
}
