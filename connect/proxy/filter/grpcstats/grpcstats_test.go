package grpcstats_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/filter/filtertest"
	"github.com/sarnmesh/sarn/connect/proxy/filter/grpcstats"
)

const grpc = "application/grpc"

func frame(n int) string {
	return string([]byte{0, 0, 0, byte(n >> 8), byte(n)}) + strings.Repeat("x", n)
}

func host(status string, pieces ...string) func(x *filter.Exchange) {
	return func(x *filter.Exchange) {
		s := filtertest.Body(pieces...)
		s.Tail = filtertest.Trailers("grpc-status", status)
		x.ResponseBody = s
	}
}

func TestCallsAndMessages(t *testing.T) {
	b := filtertest.New(t, grpcstats.Type, &grpcstats.Config{All: true, ReplaceDots: true})
	b.Route(nil)
	x := b.Exchange("POST", "/my.Service/Do", "content-type", grpc)
	two := frame(300) + frame(0)
	x.Body = filtertest.Body(two[:3], two[3:7], two[7:])
	if res := b.Run(x, host("0", frame(1), frame(2)+frame(3))); res.Sent != two || res.Trailer.Get("grpc-status") != "0" {
		t.Errorf("%+v", res)
	}
	b.Run(b.Exchange("POST", "/my.Service/Do", "content-type", grpc), host("14"))
	b.Run(b.Exchange("POST", "/my.Service/Do", "content-type", grpc), func(x *filter.Exchange) { x.Response.Header.Add("grpc-status", "99") })
	b.Run(b.Exchange("GET", "/my.Service/Do"), nil)
	const p = "cluster.up.grpc.my_Service.Do."
	want := p + "0 1\n" + p + "14 1\n" + p + "failure 2\n" + p + "request_message_count 2\n" + p + "response_message_count 3\n" + p + "success 1\n" + p + "total 3\n"
	if got := b.Counters(); got != want {
		t.Errorf("counters\n%s\nwant\n%s", got, want)
	}
}

func TestOthersAreCountedTogether(t *testing.T) {
	b := filtertest.New(t, grpcstats.Type, &grpcstats.Config{Methods: map[string][]string{"s.S": {"A"}}})
	b.Route(nil)
	for _, p := range []string{"/s.S/A", "/s.S/B", "/x", "/a/b/c"} {
		b.Run(b.Exchange("POST", p, "content-type", grpc), host("0"))
	}
	want := "cluster.up.grpc.0 3\ncluster.up.grpc.s.S.A.0 1\ncluster.up.grpc.s.S.A.success 1\ncluster.up.grpc.s.S.A.total 1\ncluster.up.grpc.success 3\ncluster.up.grpc.total 3\n"
	if got := b.Counters(); got != want {
		t.Errorf("counters\n%s", got)
	}
}

func TestNamesFromRequestsAreBounded(t *testing.T) {
	b := filtertest.New(t, grpcstats.Type, &grpcstats.Config{All: true})
	b.Route(nil)
	for i := range 1500 {
		b.Run(b.Exchange("POST", fmt.Sprintf("/s/m%d", i), "content-type", grpc), host("0"))
	}
	if n := strings.Count(b.Counters(), ".success 1\n"); n != 1000 || b.Stats.Value("cluster.up.grpc.success") != 500 {
		t.Errorf("%d methods, %v others", n, b.Stats.Value("cluster.up.grpc.success"))
	}
}
