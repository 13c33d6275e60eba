package catalogrpc_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/server/catalogrpc"
)

func TestDatacenters(t *testing.T) {
	s := newServer(t, catalogrpc.Config{})
	s.register(&catalog.RegisterRequest{Node: "a", Address: "10.0.0.1", Service: &catalog.Service{Service: catalog.ServerServiceName}})
	s.register(&catalog.RegisterRequest{Node: "b", Address: "10.0.0.2", Service: &catalog.Service{Service: "web"}})
	list, err := catalog.DatacentersCall.Call(t.Context(), s.Caller(), &catalog.DatacentersRequest{})
	if err != nil || len(list.Datacenters) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	got, err := catalog.DatacenterCoordinatesCall.Call(t.Context(), s.Caller(), &catalog.DatacentersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := []catalog.DatacenterCoordinates{{Datacenter: list.Datacenters[0], AreaID: "wan", Coordinates: []catalog.NodeCoordinate{
		{Node: "a", Coord: &catalog.Coordinate{Vec: make([]float64, 8), Error: 1.5, Height: 1e-5}},
	}}}
	if d := cmp.Diff(want, got.Datacenters); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
