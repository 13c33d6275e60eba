package httpapi

import (
	"net/http"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/read"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

func (s *Server) catalogRoutes() []endpoint {
	return []endpoint{
		{"/v1/catalog/register", "PUT", s.catalogRegister},
		{"/v1/catalog/deregister", "PUT", s.catalogDeregister},
		{"/v1/catalog/datacenters", "GET", s.catalogDatacenters},
		{"/v1/catalog/nodes", "GET", s.catalogNodes},
		{"/v1/catalog/services", "GET", s.catalogServices},
		{"/v1/catalog/service/", "GET", s.catalogService},
		{"/v1/catalog/connect/", "GET", s.catalogConnect},
		{"/v1/catalog/node/", "GET", s.catalogNode},
		{"/v1/catalog/node-services/", "GET", s.catalogNodeServices},
		{"/v1/catalog/gateway-services/", "GET", s.catalogGatewayServices},
	}
}

// Refusals of paths without their argument.
var (
	errMissingService = wireerr.BadRequest("Missing service name")
	errMissingNode    = wireerr.BadRequest("Missing node name")
	errMissingState   = wireerr.BadRequest("Missing check state")
	errMissingGateway = wireerr.BadRequest("Missing gateway name")
)

// A registerBody is what catalog/register takes: strict, but for the definitions of checks.
type registerBody struct {
	catalog.RegisterRequest
	Check  *checkBody
	Checks []*checkBody
}

func (s *Server) catalogRegister(w http.ResponseWriter, r *http.Request) (any, error) {
	var body registerBody
	if err := s.decode(r, &body, true); err != nil {
		return nil, err
	}
	req := &body.RegisterRequest
	if body.Check != nil {
		req.Check = body.Check.check()
	}
	for _, c := range body.Checks {
		if c != nil {
			req.Checks = append(req.Checks, c.check())
		}
	}
	s.retarget(w, r, &req.Target)
	if _, err := catalog.RegisterCall.Call(r.Context(), s.caller, req); err != nil {
		return nil, err
	}
	return true, nil
}

// retarget completes the target of a request whose body may name a datacenter.
func (s *Server) retarget(w http.ResponseWriter, r *http.Request, t *read.Target) {
	t.Token = s.token(w, r)
	if t.Datacenter == "" {
		t.Datacenter = s.datacenter(w)
	}
}

// A deregisterBody is what catalog/deregister takes. Address is obsolete.
type deregisterBody struct {
	catalog.DeregisterRequest
	Address string
}

func (s *Server) catalogDeregister(w http.ResponseWriter, r *http.Request) (any, error) {
	var body deregisterBody
	if err := s.decode(r, &body, true); err != nil {
		return nil, err
	}
	s.retarget(w, r, &body.Target)
	if _, err := catalog.DeregisterCall.Call(r.Context(), s.caller, &body.DeregisterRequest); err != nil {
		return nil, err
	}
	return true, nil
}

func (s *Server) catalogNodes(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := s.checkPartition(w, r); err != nil {
		return nil, err
	}
	o, err := s.parseOptions(w, r)
	if err != nil {
		return nil, err
	}
	s.parseSelection(w, &o)
	resp, err := ask(s, r, catalog.NodesCall, &catalog.NodesRequest{Options: o})
	if err != nil {
		return nil, err
	}
	s.setQueryMeta(w, &resp.Meta)
	nodes := resp.Nodes
	if s.translates(o.Datacenter) {
		nodes = translated(nodes, wanNode)
	}
	return listValue[*catalog.Node]{nodes, appendNode}, nil
}

func (s *Server) catalogServices(w http.ResponseWriter, r *http.Request) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	s.parseSelection(w, &o)
	o.Near = "" // names have no place
	resp, err := askCached(s, w, r, catalog.ServicesCall, &catalog.ServicesRequest{Options: o})
	if err != nil {
		return nil, err
	}
	s.setQueryMeta(w, &resp.Meta)
	return appendFunc(func(dst []byte) []byte {
		o := object{b: append(dst, '{')}
		sortedKeys(resp.Services, func(name string, tags []string) {
			if o.begun {
				o.b = append(o.b, ',')
			}
			o.begun = true
			o.b = appendString(o.b, name)
			o.b = append(o.b, ':')
			o.b = appendStrings(o.b, tags)
		})
		return append(o.b, '}')
	}), nil
}

func (s *Server) catalogService(w http.ResponseWriter, r *http.Request) (any, error) {
	return s.catalogInstances(w, r, false)
}

func (s *Server) catalogConnect(w http.ResponseWriter, r *http.Request) (any, error) {
	return s.catalogInstances(w, r, true)
}

func (s *Server) catalogInstances(w http.ResponseWriter, r *http.Request, connect bool) (any, error) {
	req, err := s.parseInstances(w, r)
	if err != nil {
		return nil, err
	}
	req.Connect, req.CatalogOnly = connect, true
	if connect {
		req.Tags = nil
	}
	resp, err := askCached(s, w, r, catalog.InstancesCall, req)
	if err != nil {
		return nil, err
	}
	s.setQueryMeta(w, &resp.Meta)
	instances := resp.Instances
	if s.translates(req.Datacenter) {
		instances = translated(instances, wanInstance)
	}
	return s.renderInstances(w, instances, appendInstanceNode), nil
}

// appendInstanceNode appends an instance in the form of catalog/service.
func appendInstanceNode(dst []byte, i *catalog.Instance) []byte {
	return appendServiceNode(dst, i.Node, i.Service)
}

// parseInstances reads what the endpoints that list instances of a service have in common.
func (s *Server) parseInstances(w http.ResponseWriter, r *http.Request) (*catalog.InstancesRequest, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	name := argument(w, r)
	if name == "" {
		return nil, errMissingService
	}
	s.parseSelection(w, &o)
	q := query(w)
	return &catalog.InstancesRequest{
		Options: o, Service: name, Tags: q.all("tag"), Peer: q.get("peer"), MergeCentralConfig: q.has("merge-central-config"),
	}, nil
}

func (s *Server) nodeServices(w http.ResponseWriter, r *http.Request) (*catalog.NodeServicesReply, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	node := argument(w, r)
	if node == "" {
		return nil, errMissingNode
	}
	o.Filter = query(w).get("filter")
	req := &catalog.NodeServicesRequest{Options: o, Node: node, MergeCentralConfig: query(w).has("merge-central-config")}
	resp, err := ask(s, r, catalog.NodeServicesCall, req)
	if err != nil {
		return nil, err
	}
	s.setQueryMeta(w, &resp.Meta)
	if resp.Node != nil && s.translates(o.Datacenter) {
		c := *resp
		c.Node, c.Services = wanNode(c.Node), translated(c.Services, wanService)
		resp = &c
	}
	return resp, nil
}

func (s *Server) catalogNode(w http.ResponseWriter, r *http.Request) (any, error) {
	resp, err := s.nodeServices(w, r)
	if err != nil {
		return nil, err
	}
	return appendFunc(func(dst []byte) []byte {
		if resp.Node == nil {
			return append(dst, "null"...)
		}
		o := object{b: append(dst, '{')}
		o.name("Node")
		o.b = appendNode(o.b, resp.Node)
		o.name("Services")
		o.b = append(o.b, '{')
		for i, svc := range resp.Services {
			if i > 0 {
				o.b = append(o.b, ',')
			}
			o.b = appendString(o.b, svc.ID)
			o.b = append(o.b, ':')
			o.b = appendService(o.b, svc)
		}
		return append(o.b, '}', '}')
	}), nil
}

func (s *Server) catalogNodeServices(w http.ResponseWriter, r *http.Request) (any, error) {
	resp, err := s.nodeServices(w, r)
	if err != nil {
		return nil, err
	}
	return appendFunc(func(dst []byte) []byte {
		if resp.Node == nil {
			return append(dst, `{"Node":null,"Services":null}`...)
		}
		o := object{b: append(dst, '{')}
		o.name("Node")
		o.b = appendNode(o.b, resp.Node)
		o.name("Services")
		o.b = appendList(o.b, resp.Services, appendService)
		return append(o.b, '}')
	}), nil
}
