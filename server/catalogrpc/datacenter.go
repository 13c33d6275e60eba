package catalogrpc

import (
	"context"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/server/transport"
)

// registerDatacenters adds the handlers of calls about datacenters. Without a federation a server knows its own alone.
func registerDatacenters(r *transport.Registry, f Federation) {
	if f == nil {
		transport.Handle(r, catalog.DatacentersCall, datacenters)
		transport.Handle(r, catalog.DatacenterCoordinatesCall, datacenterCoordinates)
		return
	}
	transport.Handle(r, catalog.DatacentersCall, func(context.Context, *transport.Call, *catalog.DatacentersRequest) (*catalog.DatacentersReply, acl.Permit, error) {
		return &catalog.DatacentersReply{Datacenters: f.Datacenters()}, acl.Open(), nil
	})
	transport.Handle(r, catalog.DatacenterCoordinatesCall, func(context.Context, *transport.Call, *catalog.DatacentersRequest) (*catalog.DatacenterCoordinatesReply, acl.Permit, error) {
		return &catalog.DatacenterCoordinatesReply{Datacenters: f.Coordinates()}, acl.Open(), nil
	})
}

func datacenters(_ context.Context, c *transport.Call, _ *catalog.DatacentersRequest) (*catalog.DatacentersReply, acl.Permit, error) {
	return &catalog.DatacentersReply{Datacenters: []string{c.Datacenter}}, acl.Open(), nil
}

// datacenterCoordinates places the servers where they were last seen; one not seen yet is nowhere in particular.
func datacenterCoordinates(_ context.Context, c *transport.Call, _ *catalog.DatacentersRequest) (*catalog.DatacenterCoordinatesReply, acl.Permit, error) {
	v := c.Store.View()
	_, servers := v.Instances(catalog.ServerServiceName, true)
	own := catalog.DatacenterCoordinates{Datacenter: c.Datacenter, AreaID: "wan"}
	for _, s := range servers {
		at := v.Coordinate(s.Node.Node)
		if at == nil {
			at = &catalog.Coordinate{Vec: make([]float64, 8), Error: 1.5, Height: 1e-5}
		}
		own.Coordinates = append(own.Coordinates, catalog.NodeCoordinate{Node: s.Node.Node, Coord: at})
	}
	return &catalog.DatacenterCoordinatesReply{Datacenters: []catalog.DatacenterCoordinates{own}}, acl.Open(), nil
}
