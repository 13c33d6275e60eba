package http2_test

import (
	"io"
	"testing"
	"time"

	"github.com/sarnmesh/sarn/connect/proxy/http2"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// TestRequestsDoNotAllocate counts what a request costs at both ends together, with a body each way, fields that
// differ from request to request, trailers and deadlines.
func TestRequestsDoNotAllocate(t *testing.T) {
	var resp message.Response // one request at a time
	var trailer message.Header
	trailer.Add("grpc-status", "0")
	cli, _ := pair(t, func(s message.ServerStream) {
		s.SetReadDeadline(time.Now().Add(time.Minute))
		for {
			if _, err := s.Read(); err != nil {
				break
			}
		}
		resp.Reset()
		resp.Status = 200
		resp.Header.Add("content-type", "application/grpc")
		resp.Header.Add("x-request-id", s.Request().Header.Get("x-request-id"))
		if s.Respond(&resp, false) == nil {
			s.Write(small, false)
			s.WriteTrailer(&trailer)
		}
	}, http2.ServerConfig{}, http2.ClientConfig{})
	r := request("POST", "/package.Service/Method", "content-type", "application/grpc", "te", "trailers", "x-request-id", "", "user-agent", "test")
	id := make([]byte, 36)
	n := 0
	var got message.Response
	once := func() {
		n++
		for i := range id {
			id[i] = 'a' + byte(n>>i)&1
		}
		r.Arena.Reset()
		r.Header.Set("x-request-id", r.Arena.Bytes(id))
		s, err := cli.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		s.SetReadDeadline(time.Now().Add(time.Minute))
		if err := s.Send(r, false); err != nil {
			t.Fatal(err)
		}
		if err := s.Write(small, true); err != nil {
			t.Fatal(err)
		}
		got.Reset()
		if _, err := s.Receive(&got); err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = s.Read()
		}
		if err != io.EOF || s.Trailer().Get("grpc-status") != "0" || got.Header.Get("x-request-id") != string(id) {
			t.Fatalf("%v, status %s, id %s", err, s.Trailer().Get("grpc-status"), got.Header.Get("x-request-id"))
		}
	}
	for range 200 {
		once()
	}
	// Whatever is collected between may empty pools.
	if allocs := testing.AllocsPerRun(3000, once); allocs >= 1 && !raceEnabled {
		t.Errorf("%v allocations for a request", allocs)
	}
}
