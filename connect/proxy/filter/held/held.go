// Package held keeps the beginning of a body, so that a filter can look at it before it goes on.
package held

import (
	"errors"
	"io"
	"os"

	"github.com/sarnmesh/sarn/connect/proxy/accesslog"
	"github.com/sarnmesh/sarn/connect/proxy/filter"
	"github.com/sarnmesh/sarn/connect/proxy/message"
)

// A Body is a body whose beginning is kept. Source gives all of it.
type Body struct {
	Bytes []byte // the beginning
	Ended bool   // that is all

	rest message.Source
	sent bool
}

// Read reads a body until it ends or there are more than limit bytes; it may keep some more than that.
func Read(s message.Source, limit int) (*Body, error) {
	b := &Body{rest: s}
	for len(b.Bytes) <= limit {
		p, err := s.Read()
		b.Bytes = append(b.Bytes, p...)
		if err == io.EOF {
			b.Ended = true
			break
		}
		if err != nil {
			return b, err
		}
	}
	return b, nil
}

// Source returns all of the body.
func (b *Body) Source() message.Source {
	if b.Ended && len(b.Bytes) == 0 && b.rest.Trailer() == nil {
		return message.NoBody
	}
	return (*source)(b)
}

// WithoutTrailer returns a body that has ended without its trailers.
func (b *Body) WithoutTrailer() message.Source {
	b.rest = message.NoBody
	return b.Source()
}

type source Body

func (s *source) Read() ([]byte, error) {
	if s.sent && !s.Ended {
		return s.rest.Read()
	}
	p := s.Bytes
	if s.sent {
		p = nil
	}
	s.sent = true
	if s.Ended {
		return p, io.EOF
	}
	return p, nil
}

func (s *source) Ready() bool { return !s.sent || s.Ended || s.rest.Ready() }

func (s *source) Trailer() *message.Header { return s.rest.Trailer() }

// Failed returns the reply to a request whose body could not be read.
func Failed(err error) *filter.Reply {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return filter.Deny(408, "request timeout", "request_overall_timeout", 0)
	}
	return &filter.Reply{Reset: true, Details: "downstream_remote_disconnect", Flags: accesslog.DownstreamConnectionTermination, GRPCStatus: -1}
}

// TooLarge returns the reply to a request whose body is larger than a filter keeps.
func TooLarge() *filter.Reply {
	return filter.Deny(413, "Payload Too Large", "request_payload_too_large", 0)
}
