package httpapi

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog/entry"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/client/cache"
	"github.com/sarnmesh/sarn/connect"
	"github.com/sarnmesh/sarn/connect/intention"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

var errIntentionNotFound = wireerr.NotFound("Intention not found")

// intentions serves /v1/connect/intentions: the list, and creation by the legacy API (spec/connect.md section 6).
func (s *Server) intentions(w http.ResponseWriter, r *http.Request) (any, error) {
	if r.Method == http.MethodPost {
		return s.legacyIntention(w, r, intention.LegacyCreate, "")
	}
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	o.Filter = query(w).get("filter")
	resp, err := ask(s, r, intention.ListCall, &intention.ListRequest{Options: o})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	return orEmpty(resp.Intentions), nil
}

// orEmpty makes a list that may be nil one that is written as "[]".
func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// requiredParam returns a parameter that must not be missing.
func requiredParam(w http.ResponseWriter, name string) (string, error) {
	v := query(w).get(name)
	if v == "" {
		return "", fmt.Errorf("required query parameter '%s' not set", name)
	}
	return v, nil
}

// An intentionName is what a parameter names: a service, of a peer unless that is empty.
type intentionName struct{ service, peer string }

// parseIntentionName reads NAME, default/NAME, default/default/NAME, or peer:PEER/NAME where a peer is allowed. field is
// the parameter, side how errors about its namespace begin.
func parseIntentionName(field, side, text string, peers bool) (n intentionName, err error) {
	invalid := func(problem string) error { return fmt.Errorf("%s %q is invalid: %s", field, text, problem) }
	rest, isPeer := strings.CutPrefix(text, "peer:")
	parts := strings.Split(rest, "/")
	if isPeer {
		switch {
		case !peers:
			return n, invalid("cannot specify a peer here")
		case len(parts) < 2:
			return n, invalid("need to specify the service name as well")
		}
		n.peer, parts = parts[0], parts[1:]
	}
	if len(parts) > 3 {
		return n, invalid("input can contain at most two '/'")
	}
	n.service = parts[len(parts)-1]
	if n.service == "" {
		return n, invalid("service name is missing")
	}
	for i, kind := range []string{"NS", "Partition"} {
		at := len(parts) - 2 - i
		if at < 0 {
			break
		}
		if parts[at] != "default" {
			what := map[string]string{"NS": "Namespaces is", "Partition": "Partitions is"}[kind]
			return n, fmt.Errorf("Invalid %s%s %q: %s a Consul Enterprise feature", side, kind, parts[at], what)
		}
	}
	return n, nil
}

// sourceAndDestination reads both parameters of a request about one pair.
func sourceAndDestination(w http.ResponseWriter, peers bool) (source, destination intentionName, err error) {
	text, err := requiredParam(w, "source")
	if err != nil {
		return source, destination, err
	}
	if source, err = parseIntentionName("source", "Source", text, peers); err != nil {
		return source, destination, err
	}
	if text, err = requiredParam(w, "destination"); err != nil {
		return source, destination, err
	}
	destination, err = parseIntentionName("destination", "Destination", text, false)
	return source, destination, err
}

// intentionExact serves /v1/connect/intentions/exact.
func (s *Server) intentionExact(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	source, destination, err := sourceAndDestination(w, r.Method == http.MethodGet)
	if err != nil {
		return nil, err
	}
	switch r.Method {
	case http.MethodPut:
		var body struct {
			Action      string
			Permissions []*entry.IntentionPermission
			Description string
			SourceType  string
			Meta        map[string]string
		}
		if err := s.decode(r, &body, false); err != nil {
			return nil, err
		}
		_, err := intention.UpsertCall.Call(r.Context(), s.caller, &intention.UpsertRequest{
			Target: o.Target, Destination: destination.service, Meta: body.Meta,
			Source: entry.IntentionSource{
				Name: source.service, Action: body.Action, Permissions: body.Permissions, Description: body.Description,
				Type: body.SourceType,
			},
		})
		if err != nil {
			return nil, err
		}
		return true, nil
	case http.MethodDelete:
		_, err := intention.RemoveCall.Call(r.Context(), s.caller, &intention.RemoveRequest{
			Target: o.Target, Source: source.service, Destination: destination.service,
		})
		if err != nil {
			return nil, err
		}
		return true, nil
	}
	return s.oneIntention(w, r, &intention.GetRequest{
		Options: o, Source: source.service, SourcePeer: source.peer, Destination: destination.service,
	})
}

func (s *Server) oneIntention(w http.ResponseWriter, r *http.Request, req *intention.GetRequest) (any, error) {
	resp, err := ask(s, r, intention.GetCall, req)
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	if resp.Intention == nil {
		return nil, errIntentionNotFound
	}
	return resp.Intention, nil
}

// intentionMatch serves /v1/connect/intentions/match.
func (s *Server) intentionMatch(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	by, err := requiredParam(w, "by")
	if err != nil {
		return nil, err
	}
	side := map[string]string{"source": "Source", "destination": "Destination"}[by]
	if side == "" {
		return nil, errors.New("'by' parameter must be one of 'source' or 'destination'")
	}
	if _, err := requiredParam(w, "name"); err != nil {
		return nil, err
	}
	req := &intention.MatchRequest{Options: o, By: intention.Side(by)}
	asked := query(w).all("name")
	for _, text := range asked {
		n, err := parseIntentionName("name", side, text, false)
		if err != nil {
			return nil, err
		}
		req.Names = append(req.Names, n.service)
	}
	resp, err := askCached(s, w, r, intention.MatchCall, req)
	if err != nil {
		return nil, err
	}
	s.setQueryMeta(w, &resp.Meta)
	out := make(map[string][]*intention.Intention, len(asked))
	for i, list := range resp.Matches {
		out[asked[i]] = orEmpty(list)
	}
	return out, nil
}

// intentionCheck serves /v1/connect/intentions/check.
func (s *Server) intentionCheck(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	source, destination, err := sourceAndDestination(w, false)
	if err != nil {
		return nil, err
	}
	if t := query(w).get("source-type"); t != "" && t != entry.SourceTypeConsul {
		return nil, fmt.Errorf("unsupported SourceType: %q", t)
	}
	resp, err := ask(s, r, intention.CheckCall, &intention.CheckRequest{
		Options: o, Source: source.service, SourcePeer: source.peer, Destination: destination.service,
		DefaultPolicy: s.cfg.Connect.IntentionPolicy,
	})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	return struct{ Allowed bool }{resp.Allowed}, nil
}

// intentionByID serves /v1/connect/intentions/:id, the legacy API.
func (s *Server) intentionByID(w http.ResponseWriter, r *http.Request) (any, error) {
	id := argument(w, r)
	switch r.Method {
	case http.MethodPut:
		return s.legacyIntention(w, r, intention.LegacyUpdate, id)
	case http.MethodDelete:
		_, err := intention.LegacyCall.Call(r.Context(), s.caller, &intention.LegacyRequest{
			Target: s.target(w, r), Op: intention.LegacyDelete, Intention: intention.Intention{ID: id},
		})
		if err != nil {
			return nil, err
		}
		return true, nil
	}
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	if id == "" {
		return nil, errIntentionNotFound
	}
	return s.oneIntention(w, r, &intention.GetRequest{Options: o, ID: id})
}

// legacyIntention creates or changes an intention by the legacy API.
func (s *Server) legacyIntention(w http.ResponseWriter, r *http.Request, op intention.LegacyOp, id string) (any, error) {
	var body struct {
		ID, Description                  string
		SourceNS, SourceName, SourceType string
		DestinationNS, DestinationName   string
		SourcePartition                  string
		DestinationPartition             string
		Action                           string
		Permissions                      []*entry.IntentionPermission
		Meta                             map[string]string
	}
	if err := s.decodeRaw(r, &body, false); err != nil {
		return nil, fmt.Errorf("Failed to decode request body: %w", err)
	}
	for _, f := range []struct{ name, value string }{
		{"SourceNS", body.SourceNS}, {"DestinationNS", body.DestinationNS},
		{"SourcePartition", body.SourcePartition}, {"DestinationPartition", body.DestinationPartition},
	} {
		if f.value != "" && f.value != "default" {
			return nil, wireerr.BadRequest("Invalid %s %q: Namespaces is a Consul Enterprise feature", f.name, f.value)
		}
	}
	if op == intention.LegacyUpdate {
		body.ID = id
	}
	reply, err := intention.LegacyCall.Call(r.Context(), s.caller, &intention.LegacyRequest{
		Target: s.target(w, r), Op: op,
		Intention: intention.Intention{
			ID: body.ID, Description: body.Description, SourceName: body.SourceName, DestinationName: body.DestinationName,
			SourceType: body.SourceType, Action: body.Action, Permissions: body.Permissions, Meta: body.Meta,
		},
	})
	if err != nil {
		return nil, err
	}
	return struct{ ID string }{reply.ID}, nil
}

// agentAuthorize serves /v1/agent/connect/authorize: may the holder of a certificate call a local service (spec/connect.md
// section 5). TLS has verified the certificate, with it the trust domain.
func (s *Server) agentAuthorize(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return refused(err)
	}
	var body struct{ Target, ClientCertURI, ClientCertSerial string }
	if err := s.decode(r, &body, false); err != nil {
		return refused(err)
	}
	if body.Target == "" {
		return refused(wireerr.BadRequest("Target service must be specified"))
	}
	id, err := connect.ParseID(body.ClientCertURI)
	if err != nil {
		return refused(wireerr.BadRequest("ClientCertURI not a valid Connect identifier"))
	}
	if id.Kind() != connect.Service {
		return refused(wireerr.BadRequest("ClientCertURI not a valid Service identifier"))
	}
	z, err := s.authorizer(w, r)
	if err != nil {
		return refused(err)
	}
	p, err := z.Require(acl.Service, acl.Write, body.Target)
	if err != nil {
		return refused(err)
	}
	req := &intention.MatchRequest{
		Options: read.Options{Target: read.Target{Token: o.Token}}, By: intention.ByDestination, Names: []string{body.Target},
	}
	var resp *intention.MatchReply
	if s.cfg.Cache == nil {
		resp, err = ask(s, r, intention.MatchCall, req)
		setCached(w, false, 0)
	} else {
		var info cache.Info
		resp, info, err = cache.Get(r.Context(), s.cfg.Cache, intention.MatchCall, req)
		setCached(w, info.Hit, info.Age)
	}
	if err != nil {
		return refused(err)
	}
	s.setMeta(w, &resp.Meta)
	def := intention.Default{Allow: !s.cfg.ACLEnabled || s.cfg.DefaultPolicy != entry.Deny}
	if p := s.cfg.Connect.IntentionPolicy; p != "" {
		def = intention.Default{Allow: p == entry.Allow, Explicit: true}
	}
	var list []*intention.Intention
	if len(resp.Matches) != 0 {
		list = resp.Matches[0]
	}
	d := intention.Decide(list, id.Name(), "", def)
	return struct {
		Authorized bool
		Reason     string
	}{d.Allowed, d.Reason}, p, nil
}
