package httpapi

import (
	"cmp"
	"errors"
	"net/http"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/connect/console"
	"github.com/sarnmesh/sarn/internal/rpc"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// uiRoutes are the endpoints of the web console, of the files ui*.go. They answer with the console off too.
func (s *Server) uiRoutes() []endpoint {
	return []endpoint{
		{"/v1/internal/ui/nodes", "GET", s.uiNodes},
		{"/v1/internal/ui/node/", "GET", s.uiNode},
		{"/v1/internal/ui/services", "GET", s.uiServices},
		{"/v1/internal/ui/catalog-overview", "GET", s.uiOverview},
		{"/v1/internal/ui/gateway-services-nodes/", "GET", s.uiGatewayServices},
		{"/v1/internal/ui/gateway-intentions/", "GET", s.uiGatewayIntentions},
		{"/v1/internal/ui/service-topology/", "GET", s.uiTopology},
		{"/v1/internal/ui/exported-services", "GET", s.uiExported},
		{"/v1/internal/ui/metrics-proxy/", "GET", s.uiMetrics},
	}
}

// askLeaderless is ask, except that any server may answer while there is no leader: a cluster without one is what
// people look at the console for.
func askLeaderless[Req, Resp any](s *Server, r *http.Request, m rpc.Method[Req, Resp], req *Req) (*Resp, error) {
	resp, err := ask(s, r, m, req)
	if o := any(req).(optioned).ReadOptions(); errors.Is(err, wireerr.ErrNoLeader) && o.Mode == read.Default {
		o.Mode = read.Stale
		return ask(s, r, m, req)
	}
	return resp, err
}

func (s *Server) uiNodes(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	o.Filter = query(w).get("filter")
	resp, err := askLeaderless(s, r, console.NodesCall, &console.NodesRequest{Options: o})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	return listValue[*console.Node]{resp.Nodes, appendConsoleNode}, nil
}

func (s *Server) uiNode(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	name := argument(w, r)
	if name == "" {
		return nil, errMissingNode
	}
	resp, err := askLeaderless(s, r, console.NodesCall, &console.NodesRequest{Options: o, Node: name, Peer: query(w).get("peer")})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	if len(resp.Nodes) == 0 {
		return nil, wireerr.NotFound("")
	}
	return appendFunc(func(dst []byte) []byte { return appendConsoleNode(dst, resp.Nodes[0]) }), nil
}

// appendConsoleNode appends a node with all that is on it.
func appendConsoleNode(dst []byte, n *console.Node) []byte {
	o := object{b: append(dst, '{')}
	o.str("ID", n.ID)
	o.str("Node", n.Node)
	o.str("Address", n.Address)
	o.name("TaggedAddresses")
	o.b = appendStringMap(o.b, n.TaggedAddresses)
	meta := n.Meta
	if len(meta) == 0 {
		meta = nil
	}
	o.name("Meta")
	o.b = appendStringMap(o.b, meta)
	o.name("Services")
	o.b = appendList(o.b, n.Services, func(dst []byte, svc *catalog.Service) []byte { return appendServiceForm(dst, svc, true) })
	o.name("Checks")
	o.b = appendList(o.b, n.Checks, appendCheck)
	o.optStr("PeerName", n.PeerName)
	return append(o.b, '}')
}

func (s *Server) uiServices(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	o.Filter = query(w).get("filter")
	resp, err := askLeaderless(s, r, console.ServicesCall, &console.ServicesRequest{Options: o, Peer: query(w).get("peer")})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	return orEmpty(resp.Services), nil
}

func (s *Server) uiOverview(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	o.MinIndex = 0 // it does not block
	resp, err := askLeaderless(s, r, console.OverviewCall, &console.OverviewRequest{Options: o})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// gatewayRequest reads what endpoints about a gateway take.
func (s *Server) gatewayRequest(w http.ResponseWriter, r *http.Request) (*console.GatewayRequest, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	name := argument(w, r)
	if name == "" {
		return nil, errMissingGateway
	}
	return &console.GatewayRequest{Options: o, Gateway: name, Domain: strings.TrimSuffix(cmp.Or(s.cfg.Domain, "consul."), ".")}, nil
}

func (s *Server) uiGatewayServices(w http.ResponseWriter, r *http.Request) (any, error) {
	req, err := s.gatewayRequest(w, r)
	if err != nil {
		return nil, err
	}
	resp, err := askLeaderless(s, r, console.GatewayServicesCall, req)
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	return orEmpty(resp.Services), nil
}

func (s *Server) uiGatewayIntentions(w http.ResponseWriter, r *http.Request) (any, error) {
	req, err := s.gatewayRequest(w, r)
	if err != nil {
		return nil, err
	}
	resp, err := askLeaderless(s, r, console.GatewayIntentionsCall, req)
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	return orEmpty(resp.Intentions), nil
}

func (s *Server) uiExported(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	resp, err := askLeaderless(s, r, console.ExportedCall, &console.ExportedRequest{Options: o, Peer: query(w).get("peer")})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	return orEmpty(resp.Services), nil
}

func (s *Server) uiTopology(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	name := argument(w, r)
	if name == "" {
		return nil, errMissingService
	}
	kind, ok := query(w).lookup("kind")
	switch {
	case !ok:
		return nil, wireerr.BadRequest("Missing service kind")
	case kind != catalog.KindTypical && kind != catalog.KindIngressGateway && kind != catalog.KindAPIGateway:
		return nil, wireerr.BadRequest("Unsupported service kind %q", kind)
	}
	resp, err := askLeaderless(s, r, console.TopologyCall, &console.TopologyRequest{Options: o, Service: name, Kind: kind})
	if err != nil {
		return nil, err
	}
	s.setMeta(w, &resp.Meta)
	return struct {
		Protocol         string
		TransparentProxy bool
		Upstreams        []*console.Neighbour
		Downstreams      []*console.Neighbour
		FilteredByACLs   bool
	}{resp.Protocol, resp.TransparentProxy, orEmpty(resp.Upstreams), orEmpty(resp.Downstreams), resp.Filtered}, nil
}
