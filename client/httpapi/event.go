package httpapi

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/event"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

func (s *Server) eventRoutes() []endpoint {
	return []endpoint{
		{"/v1/event/fire/", "PUT", s.eventFire},
		{"/v1/event/list", "GET", permitted(s.eventList)},
	}
}

// maxEvent bounds what gossip carries of an event, payload included.
const maxEvent = 512

var errEventSize = errors.New("error broadcasting event: user event exceeds configured limit of 512 bytes before encoding")

func (s *Server) eventFire(w http.ResponseWriter, r *http.Request) (any, error) {
	name := argument(w, r)
	if name == "" {
		return nil, wireerr.BadRequest("Missing name")
	}
	q := query(w)
	e := event.Event{
		ID: newUUID(), Name: name, NodeFilter: q.get("node"), ServiceFilter: q.get("service"), TagFilter: q.get("tag"), Version: event.Version,
	}
	if err := e.Check(); err != nil {
		return nil, err
	}
	body, err := s.readBody(r, maxEvent)
	switch {
	case err == nil:
		if len(body.b) != 0 {
			e.Payload = append([]byte(nil), body.b...)
		}
		putBuffer(body)
	case wireerr.Status(err) == http.StatusRequestEntityTooLarge:
		return nil, errEventSize
	default:
		return nil, err
	}
	if _, err := event.FireCall.Call(r.Context(), s.caller, &event.FireRequest{Target: s.target(w, r), Event: e}); err != nil {
		return nil, err
	}
	return &e, nil
}

// maxEventWait bounds, and is the default of, a wait for events.
const maxEventWait = 10 * time.Minute

// eventList serves /v1/event/list. Its index is not ordered, so it waits only for another than the one given.
func (s *Server) eventList(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	o, err := s.parseOptions(w, r)
	if err != nil {
		return refused(err)
	}
	var limit <-chan time.Time
	if o.MinIndex != 0 {
		wait := min(o.MaxWait, maxEventWait)
		if wait <= 0 {
			wait = maxEventWait
		}
		t := time.NewTimer(wait)
		defer t.Stop()
		limit = t.C
	}
	over := false
	for {
		z, err := s.authorizer(w, r) // again after each wait: the token may be good no more
		if err != nil {
			return refused(err)
		}
		p := z.Filtering()
		log, err := s.events.With(p)
		if err != nil {
			return refused(err)
		}
		if log == nil {
			return refused(wireerr.Errorf(http.StatusNotImplemented, "events are not available on this agent"))
		}
		all, changed := log.List(query(w).get("name"))
		list := make([]*event.Event, 0, len(all))
		for _, e := range all {
			if z.May(acl.Event, acl.Read, e.Name) {
				list = append(list, e)
			}
		}
		index := uint64(1)
		if len(list) != 0 {
			index = max(list[len(list)-1].Index(), 1)
		}
		if o.MinIndex == index && !over {
			select {
			case <-changed:
			case <-r.Context().Done():
				return refused(r.Context().Err())
			case <-limit:
				over = true
			}
			continue
		}
		h := w.Header()
		h["X-Consul-Index"] = []string{strconv.FormatUint(index, 10)}
		setFiltered(w, len(list) < len(all))
		return list, p, nil
	}
}

// newUUID returns a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
