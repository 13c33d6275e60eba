package httpapi

import (
	"net/http"
	"strconv"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// valueStreaming is shared among answers.
var valueStreaming = []string{"streaming"}

func (s *Server) healthRoutes() []endpoint {
	return []endpoint{
		{"/v1/health/node/", "GET", s.healthNode},
		{"/v1/health/checks/", "GET", s.healthChecks},
		{"/v1/health/state/", "GET", s.healthState},
		{"/v1/health/service/", "GET", s.healthService},
		{"/v1/health/connect/", "GET", s.healthConnect},
		{"/v1/health/ingress/", "GET", s.healthIngress},
	}
}

func (s *Server) healthService(w http.ResponseWriter, r *http.Request) (any, error) {
	return s.healthInstances(w, r, func(*catalog.InstancesRequest) {})
}

func (s *Server) healthConnect(w http.ResponseWriter, r *http.Request) (any, error) {
	return s.healthInstances(w, r, func(req *catalog.InstancesRequest) { req.Connect, req.Tags = true, nil })
}

func (s *Server) healthIngress(w http.ResponseWriter, r *http.Request) (any, error) {
	return s.healthInstances(w, r, func(req *catalog.InstancesRequest) { req.Ingress, req.Tags = true, nil })
}

func (s *Server) healthInstances(w http.ResponseWriter, r *http.Request, kind func(*catalog.InstancesRequest)) (any, error) {
	req, err := s.parseInstances(w, r)
	if err != nil {
		return nil, err
	}
	kind(req)
	q := query(w)
	if v, ok := q.lookup("passing"); ok {
		req.PassingOnly = true
		if v != "" {
			if req.PassingOnly, err = strconv.ParseBool(v); err != nil {
				return nil, wireerr.BadRequest("Invalid value for ?passing")
			}
		}
	}
	if q.get("sg") != "" || q.get("sameness-group") != "" {
		if req.Peer != "" {
			return nil, wireerr.BadRequest("peer-name and sameness-group are mutually exclusive")
		}
		return nil, wireerr.Errorf(http.StatusInternalServerError, "sameness groups are not supported")
	}
	resp, err := askWatched(s, w, r, catalog.InstancesCall, req)
	if err != nil {
		return nil, err
	}
	s.setQueryMeta(w, &resp.Meta)
	instances := resp.Instances
	if s.translates(req.Datacenter) {
		instances = translated(instances, wanInstance)
	}
	return s.renderInstances(w, instances, appendInstance), nil
}

func (s *Server) healthNode(w http.ResponseWriter, r *http.Request) (any, error) {
	node := argument(w, r)
	return s.checks(w, r, catalog.ChecksRequest{Node: node}, node == "", errMissingNode)
}

func (s *Server) healthChecks(w http.ResponseWriter, r *http.Request) (any, error) {
	service := argument(w, r)
	return s.checks(w, r, catalog.ChecksRequest{Service: service}, service == "", errMissingService)
}

func (s *Server) healthState(w http.ResponseWriter, r *http.Request) (any, error) {
	state := argument(w, r)
	return s.checks(w, r, catalog.ChecksRequest{State: state}, state == "", errMissingState)
}

func (s *Server) checks(w http.ResponseWriter, r *http.Request, req catalog.ChecksRequest, missing bool, refusal error) (any, error) {
	o, err := s.parseQuery(w, r)
	if err != nil {
		return nil, err
	}
	if missing {
		return nil, refusal
	}
	s.parseSelection(w, &o)
	if req.Node != "" {
		o.Near, o.NodeMeta = "", nil
	}
	req.Options = o
	resp, err := ask(s, r, catalog.ChecksCall, &req)
	if err != nil {
		return nil, err
	}
	s.setQueryMeta(w, &resp.Meta)
	return listValue[*catalog.Check]{resp.Checks, appendCheck}, nil
}
