package httpapi

import (
	"errors"
	"net/http"
	"strings"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/client/local"
)

// agentHealth is the health of one instance; service is nil for an ID that is not registered.
type agentHealth struct {
	status     string
	service    *catalog.Service
	checks     []*local.Check
	datacenter string
}

func (h agentHealth) appendJSON(dst []byte) []byte {
	o := object{b: append(dst, '{')}
	o.str("AggregatedStatus", h.status)
	o.name("Service")
	if h.service == nil {
		o.b = append(o.b, `null,"Checks":null}`...)
		return o.b
	}
	o.b = appendAgentService(o.b, h.service, h.datacenter, "")
	o.name("Checks")
	o.b = appendList(o.b, h.checks, func(dst []byte, c *local.Check) []byte { return appendClientCheck(dst, c.Record) })
	return append(o.b, '}')
}

// agentHealths is a list of them.
type agentHealths []agentHealth

func (l agentHealths) appendJSON(dst []byte) []byte {
	return appendList(dst, l, func(dst []byte, h agentHealth) []byte { return h.appendJSON(dst) })
}

// emptyDefinition is a check definition as the client library writes it.
const emptyDefinition = `{"HTTP":"","Header":null,"Method":"","Body":"","TLSServerName":"","TLSSkipVerify":false,"TCP":"","TCPUseTLS":false,` +
	`"UDP":"","GRPC":"","OSService":"","GRPCUseTLS":false,"Interval":"0s","Timeout":"0s","DeregisterCriticalServiceAfter":"0s"}`

// appendClientCheck appends a check in the form of the client library (spec/registry.md section 7.2).
func appendClientCheck(dst []byte, c *catalog.Check) []byte {
	o := object{b: append(dst, '{')}
	o.str("Node", c.Node)
	o.str("CheckID", c.CheckID)
	o.str("Name", c.Name)
	o.str("Status", c.Status)
	o.str("Notes", c.Notes)
	o.str("Output", c.Output)
	o.str("ServiceID", c.ServiceID)
	o.str("ServiceName", c.ServiceName)
	o.strings("ServiceTags", c.ServiceTags)
	o.str("Type", "")
	o.num("ExposedPort", c.ExposedPort)
	o.name("Definition")
	o.b = append(o.b, emptyDefinition...)
	o.indexes(catalog.Indexes{})
	return append(o.b, '}')
}

// healthRank orders statuses from good to bad, and healthCodes are the HTTP statuses they are told with.
var (
	healthRank  = map[string]int{catalog.Passing: 0, catalog.Warning: 1, catalog.Critical: 2, catalog.Maintenance: 3}
	healthCodes = map[string]int{
		catalog.Passing: http.StatusOK, catalog.Warning: http.StatusTooManyRequests,
		catalog.Critical: http.StatusServiceUnavailable, catalog.Maintenance: http.StatusServiceUnavailable,
	}
)

// worse returns the worse of two statuses.
func worse(a, b string) string {
	if healthRank[b] > healthRank[a] {
		return b
	}
	return a
}

func (s *Server) healthOf(v *catalog.Service) agentHealth {
	h := agentHealth{catalog.Passing, v, s.registered.ChecksFor(v.ID), s.cfg.Datacenter}
	for _, c := range h.checks {
		status := c.Record.Status
		if c.Record.Type == definition.TypeMaintenance {
			status = catalog.Maintenance
		}
		h.status = worse(h.status, status)
	}
	return h
}

// answerHealth writes a health answer: the reason, in words alone when the client wants text.
func answerHealth(w http.ResponseWriter, r *http.Request, code int, reason string, v any) any {
	w.Header()["X-Consul-Reason"] = []string{reason}
	if query(w).get("format") == "text" || strings.HasPrefix(r.Header.Get("Accept"), "text/plain") {
		return statusValue{code, rawValue{typeText, []byte(reason)}}
	}
	return statusValue{code, v}
}

func (s *Server) agentHealthByID(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return refused(err)
	}
	id := argument(w, r)
	if id == "" {
		return refused(errors.New("Missing serviceID"))
	}
	z, err := s.authorizer(w, r)
	if err != nil {
		return refused(err)
	}
	svc := s.registered.Service(id)
	if svc == nil {
		return answerHealth(w, r, http.StatusNotFound, "ServiceId "+id+" not found", agentHealth{status: catalog.Critical}), acl.Open(), nil
	}
	p, err := z.Require(acl.Service, acl.Read, svc.Instance.Service)
	if err != nil {
		return refused(err)
	}
	h := s.healthOf(svc.Instance)
	return answerHealth(w, r, healthCodes[h.status], h.status, h), p, nil
}

func (s *Server) agentHealthByName(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return refused(err)
	}
	name := argument(w, r)
	if name == "" {
		return refused(errors.New("Missing service Name"))
	}
	z, err := s.authorizer(w, r)
	if err != nil {
		return refused(err)
	}
	p, err := z.Require(acl.Service, acl.Read, name)
	if err != nil {
		return refused(err)
	}
	list, status := agentHealths{}, catalog.Passing
	for _, svc := range s.registered.Services() {
		if svc.Instance.Service == name {
			h := s.healthOf(svc.Instance)
			list, status = append(list, h), worse(status, h.status)
		}
	}
	if len(list) == 0 {
		return answerHealth(w, r, http.StatusNotFound, "ServiceName "+name+" Not Found", list), p, nil
	}
	return answerHealth(w, r, healthCodes[status], status, list), p, nil
}
