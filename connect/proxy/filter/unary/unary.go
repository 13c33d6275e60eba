// Package unary calls gRPC services of one request and one answer, through a filter's client.
package unary

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// A Service is where a gRPC service is found.
type Service struct {
	Cluster   string
	Authority string // empty is the cluster
	Timeout   time.Duration
	Metadata  []message.Field // sent with every call
}

// maxAnswer bounds the answer to a call.
const maxAnswer = 4 << 20

// Call calls a method, "/package.Service/Method". An answer with another status than OK is an error.
func Call(ctx context.Context, c filter.Client, s *Service, method string, req, resp proto.Message) error {
	r := &message.Request{Version: message.HTTP2, Method: "POST", Scheme: "http", Authority: s.Authority, Path: method}
	if r.Authority == "" {
		r.Authority = s.Cluster
	}
	r.Header.Add("content-type", "application/grpc")
	r.Header.Add("te", "trailers")
	if s.Timeout > 0 {
		r.Header.Add("grpc-timeout", strconv.FormatInt(max(1, s.Timeout.Milliseconds()), 10)+"m")
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.Timeout)
		defer cancel()
	}
	for _, f := range s.Metadata {
		r.Header.Add(f.Name, f.Value)
	}
	body, err := proto.MarshalOptions{}.MarshalAppend(make([]byte, 5, 512), req)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint32(body[1:], uint32(len(body)-5))
	r.ContentLength = int64(len(body))
	a, err := c.Do(ctx, s.Cluster, r, body, maxAnswer)
	if err != nil {
		return err
	}
	if a.Status != 200 {
		return fmt.Errorf("HTTP status %d", a.Status)
	}
	// An answer without a message has its status among the headers.
	h := &a.Trailer
	if !h.Has("grpc-status") {
		h = &a.Header
	}
	if code := h.Get("grpc-status"); code != "0" {
		return fmt.Errorf("gRPC status %q", code)
	}
	b := a.Body
	if len(b) < 5 || b[0] != 0 || uint64(binary.BigEndian.Uint32(b[1:])) != uint64(len(b)-5) {
		return errors.New("answer is not one plain message")
	}
	return proto.Unmarshal(b[5:], resp)
}
