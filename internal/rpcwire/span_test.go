package rpcwire_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/metadata"

	"github.com/sarnmesh/sarn/internal/rpcwire"
	"github.com/sarnmesh/sarn/internal/span"
	"github.com/sarnmesh/sarn/internal/testkit"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// A call for a request that is recorded is a span on either side, on a stream of its own with the headers for it; any other
// goes without headers, and short ones on a lane.
func TestCallsForRecordedRequestsCarryTheirTrace(t *testing.T) {
	testkit.Bubble(t, func(t *testing.T) {
		q := span.NewQueue(100, 100, func(int) { t.Error("a span was dropped") })
		tracer := span.NewTracer(q)
		tracer.Set(true, 0)

		var got metadata.MD
		note := func(ctx context.Context) {
			md, _ := metadata.FromIncomingContext(ctx)
			got = metadata.MD{}
			for _, name := range []string{"traceparent", "tracestate"} {
				if v := md.Get(name); v != nil {
					got[name] = v
				}
			}
		}
		n := testkit.NewNetwork(1)
		l, err := n.Host("10.0.0.1").Listen(8300)
		if err != nil {
			t.Fatal(err)
		}
		p := rpcwire.NewPort(rpcwire.PortConfig{Listener: l})
		answer := map[string]error{"": nil, "mistake": wireerr.BadRequest("the-key"), "fault": errors.New("the-key"), "late": context.DeadlineExceeded}
		s := rpcwire.NewServer([]rpcwire.Method{{Name: "Do", Handle: func(ctx context.Context, _ rpcwire.Peer, decode func(any) error) (any, error) {
			note(ctx)
			var req echo
			if err := decode(&req); err != nil {
				return nil, err
			}
			return &req, answer[req.Text]
		}}}, []rpcwire.StreamMethod{{Name: "Flow", Handle: func(ctx context.Context, _ rpcwire.Peer, decode func(any) error, _ io.Reader, reply func(any) error, _ io.Writer) error {
			note(ctx)
			if err := decode(new(echo)); err != nil {
				return err
			}
			return reply(new(echo))
		}}}, 0)
		s.Trace(tracer)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 2)
		go func() { done <- p.Run(ctx) }()
		go func() { done <- s.Serve(p.Listener(rpcwire.ProtoRPC)) }()
		here := n.Host("10.0.0.2")
		c := rpcwire.NewClient(func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := here.Dial(ctx, address)
			if err != nil {
				return nil, err
			}
			return new(rpcwire.Security).Secure(ctx, conn, rpcwire.ProtoRPC, "dc1")
		})
		defer func() {
			c.Close()
			s.Stop()
			cancel()
			<-done
			<-done
		}()
		flow := func(ctx context.Context, address, _ string, req, resp any) error {
			body, err := c.Stream(ctx, address, "Flow", req, nil, resp)
			if err != nil {
				return err
			}
			io.Copy(io.Discard, body)
			return body.Close()
		}
		spans := func() (list []string) {
			synctest.Wait() // the other side has done its part too
			for _, d := range q.Take() {
				text := fmt.Sprint(d.Kind, " ", d.Name, " ", d.Failed)
				for _, a := range d.Attributes {
					if a.Key == "error.type" || a.Key == "server.address" || a.Key == "server.port" && a.Number > 0 {
						text += " " + a.Text
					}
				}
				list = append(list, text)
			}
			return list
		}
		from, _ := span.Parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		from.State = "a=1"
		recorded, _ := tracer.Begin(t.Context(), from, span.Server, "request")
		for _, tt := range []struct {
			name, method, text, address string
			call                        func(ctx context.Context, address, method string, req, resp any) error
			want                        string
		}{
			{"a call", "Do", "", address, c.Call, "[1 sarn/Do false 2 sarn/Do false 10.0.0.1 ]"},
			{"a short call", "Do", "", address, c.CallShort, "[1 sarn/Do false 2 sarn/Do false 10.0.0.1 ]"},
			{"a stream", "Flow", "", address, flow, "[1 sarn/Flow false 2 sarn/Flow false 10.0.0.1 ]"},
			{"a mistake of the caller", "Do", "mistake", address, c.Call, "[1 sarn/Do false 400 2 sarn/Do true 10.0.0.1  400]"},
			{"a fault", "Do", "fault", address, c.Call, "[1 sarn/Do true 500 2 sarn/Do true 10.0.0.1  500]"},
			{"too late", "Do", "late", address, c.Call, "[1 sarn/Do true deadline_exceeded 2 sarn/Do true 10.0.0.1  connection_lost]"},
			{"nobody there", "Do", "", "10.0.0.1:1", c.Call, "[2 sarn/Do true 10.0.0.1  unreachable]"},
		} {
			got = nil
			tt.call(t.Context(), tt.address, tt.method, &echo{tt.text}, new(echo))
			if len(got) != 0 || len(spans()) != 0 {
				t.Errorf("%s that is not recorded came with %v", tt.name, got)
			}
			tt.call(recorded, tt.address, tt.method, &echo{tt.text}, new(echo))
			list := spans()
			// The side that ends first may be either.
			if len(list) == 2 && strings.HasPrefix(list[0], "2") {
				list[0], list[1] = list[1], list[0]
			}
			if fmt.Sprint(list) != tt.want {
				t.Errorf("%s: %q, want %s", tt.name, list, tt.want)
			}
			if len(list) < 2 {
				continue
			}
			parent := got.Get("traceparent")
			if len(parent) != 1 || !strings.HasPrefix(parent[0], "00-0af7651916cd43dd8448eb211c80319c-") || strings.Contains(parent[0], "b7ad6b7169203331") || fmt.Sprint(got.Get("tracestate")) != "[a=1]" {
				t.Errorf("%s came with %v", tt.name, got)
			}
		}

		// A tracer that is off records nothing, whatever a call comes with.
		tracer.Set(false, 1)
		c.Call(recorded, address, "Do", &echo{}, new(echo))
		if list := spans(); len(list) != 1 || list[0][0] != '2' {
			t.Errorf("a server that records nothing: %q", list)
		}
	})
}
