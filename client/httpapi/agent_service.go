package httpapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/sarnmesh/sarn/acl"
	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/filter"
	"github.com/sarnmesh/sarn/client/local"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// Bounds of hash-blocking reads (spec/registry.md section 7).
const (
	defaultHashWait = 5 * time.Minute
	maxHashWait     = 10 * time.Minute
)

// appendAgentService appends the form of the agent endpoints (spec/registry.md section 3.6). The hash is left out when
// it is empty.
func appendAgentService(dst []byte, v *catalog.Service, datacenter, hash string) []byte {
	o := object{b: append(dst, '{')}
	o.optStr("Kind", v.Kind)
	o.str("ID", v.ID)
	o.str("Service", v.Service)
	o.strings("Tags", v.Tags)
	o.name("Meta")
	if v.Meta == nil {
		o.b = append(o.b, '{', '}')
	} else {
		o.b = appendStringMap(o.b, v.Meta)
	}
	o.num("Port", v.Port)
	o.str("Address", v.Address)
	o.optStr("SocketPath", v.SocketPath)
	if len(v.TaggedAddresses) != 0 {
		o.name("TaggedAddresses")
		o.b = appendAddresses(o.b, v.TaggedAddresses)
	}
	o.name("Weights")
	o.b = appendWeights(o.b, v.Weights)
	o.bool("EnableTagOverride", v.EnableTagOverride)
	o.optStr("ContentHash", hash)
	if definition.Central(v.Kind) {
		o.name("Proxy")
		o.b = appendProxy(o.b, &v.Proxy, true)
	}
	if v.Connect.Native {
		o.name("Connect")
		o.b = append(o.b, `{"Native":true}`...)
	}
	o.str("Datacenter", datacenter)
	if v.Locality != nil {
		o.name("Locality")
		o.b = appendLocality(o.b, v.Locality)
	}
	return append(o.b, '}')
}

// contentHash is equal for equal definitions, whatever addresses the servers have added.
func contentHash(v *catalog.Service) string {
	own := *v
	own.TaggedAddresses = local.OwnAddresses(v.TaggedAddresses)
	sum := sha256.Sum256(appendAgentService(nil, &own, "", ""))
	return hex.EncodeToString(sum[:8])
}

// agentServiceMap is written as an object with a member for each service.
type agentServiceMap struct {
	datacenter string
	services   []*catalog.Service
}

func (m agentServiceMap) appendJSON(dst []byte) []byte {
	dst = append(dst, '{')
	for i, v := range m.services {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendString(dst, v.ID), ':')
		dst = appendAgentService(dst, v, m.datacenter, "")
	}
	return append(dst, '}')
}

func (s *Server) agentServices(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return refused(err)
	}
	z, err := s.authorizer(w, r)
	if err != nil {
		return refused(err)
	}
	f, err := filter.Compile[*catalog.Service](query(w).get("filter"))
	if err != nil {
		return refused(err)
	}
	all := s.registered.Services()
	seen := make([]*catalog.Service, 0, len(all))
	for _, svc := range all {
		if z.May(acl.Service, acl.Read, svc.Instance.Service) {
			seen = append(seen, svc.Instance)
		}
	}
	setFiltered(w, len(seen) < len(all))
	return agentServiceMap{s.cfg.Datacenter, f.Select(seen)}, z.Filtering(), nil
}

// agentServiceValue is written as one service with its hash.
type agentServiceValue struct {
	service          *catalog.Service
	datacenter, hash string
}

func (v agentServiceValue) appendJSON(dst []byte) []byte {
	return appendAgentService(dst, v.service, v.datacenter, v.hash)
}

func (s *Server) agentService(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return refused(err)
	}
	o, err := s.parseOptions(w, r)
	if err != nil {
		return refused(err)
	}
	id, hash := argument(w, r), query(w).get("hash")
	wait := o.MaxWait
	switch {
	case wait <= 0:
		wait = defaultHashWait
	case wait > maxHashWait:
		wait = maxHashWait
	}
	var limit *time.Timer
	over := false
	for {
		z, err := s.authorizer(w, r) // again after each wait: the token may be good no more
		if err != nil {
			return refused(err)
		}
		svc, changed := s.registered.WatchService(id)
		if svc == nil {
			return refused(wireerr.NotFound("unknown service ID: %s", id))
		}
		p, err := z.Require(acl.Service, acl.Read, svc.Instance.Service)
		if err != nil {
			return refused(err)
		}
		now := contentHash(svc.Instance)
		value := agentServiceValue{svc.Instance, s.cfg.Datacenter, now}
		w.Header()["X-Consul-Contenthash"] = []string{now}
		if hash != now || over {
			return value, p, nil
		}
		if limit == nil {
			limit = time.NewTimer(wait + rand.N(wait/16+1))
			defer limit.Stop()
		}
		select {
		case <-changed:
		case <-limit.C:
			over = true
		case <-r.Context().Done():
			return refused(r.Context().Err())
		}
	}
}

// mayWriteService asks for the rights that registering an instance needs.
func (s *Server) mayWriteService(z *acl.Authorizer, v *catalog.Service) (acl.Permit, error) {
	p, err := z.Require(acl.Service, acl.Write, v.Service)
	if old := s.registered.Service(v.ID); err == nil && old != nil {
		p, err = z.Require(acl.Service, acl.Write, old.Given.Service)
	}
	if err == nil && v.Kind == catalog.KindConnectProxy {
		p, err = z.Require(acl.Service, acl.Write, v.Proxy.DestinationServiceName)
	}
	return p, err
}

// mayReplaceChecks asks for the rights on checks of the node and of other services that have the IDs of those in a
// definition.
func (s *Server) mayReplaceChecks(z *acl.Authorizer, def *definition.Service) error {
	for _, c := range def.NestedChecks() {
		if err := s.mayReplaceCheck(z, c.ID, def.ServiceID()); err != nil {
			return err
		}
	}
	return nil
}

// mayReplaceCheck asks for the right on the check with an ID, unless there is none or it is of the service itself; the
// service is empty for the node.
func (s *Server) mayReplaceCheck(z *acl.Authorizer, id, serviceID string) error {
	old := s.registered.Check(id)
	if old == nil || old.Record.ServiceID == serviceID {
		return nil
	}
	_, err := s.mayWriteCheck(z, old.Record)
	return err
}

func (s *Server) agentRegisterService(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return refused(err)
	}
	body, err := s.readJSON(r, s.cfg.MaxBodySize)
	if err != nil {
		return refused(err)
	}
	def, err := definition.DecodeService(bytes.NewReader(body.b))
	putBuffer(body)
	if err != nil {
		return refused(decodeFailed(err))
	}
	def.Token = "" // the request's is used
	if err := def.ValidateIdentity(); err != nil {
		return refused(err)
	}
	z, err := s.authorizer(w, r)
	if err != nil {
		return refused(err)
	}
	if err := def.ValidateRegistration(); err != nil {
		return refused(err)
	}
	p, err := s.mayWriteService(z, def.Instance())
	if err != nil {
		return refused(err)
	}
	side, err := def.ExpandSidecar()
	if err != nil {
		return refused(err)
	}
	if err := s.mayReplaceChecks(z, def); err != nil {
		return refused(err)
	}
	if side != nil {
		if p, err = s.mayWriteService(z, side.Instance()); err != nil {
			return refused(err)
		}
		// Its default checks are only known with a port, whichever.
		if err := side.ExpandSidecarPort(def.ServiceID(), func(string) (int, error) { return 1, nil }); err != nil {
			return refused(err)
		}
		if err := s.mayReplaceChecks(z, side); err != nil {
			return refused(err)
		}
	}
	replace, given := query(w).lookup("replace-existing-checks")
	a, err := s.own.With(p)
	if err != nil {
		return refused(err)
	}
	return done(p, a.Local.RegisterService(r.Context(), def, local.Options{
		Token: requestToken(query(w), r.Header), ReplaceChecks: given && (replace == "" || replace == "true"),
	}))
}

// ownService asks for the right to change a registered service.
func (s *Server) ownService(w http.ResponseWriter, r *http.Request, id string) (AgentConfig, acl.Permit, error) {
	if err := s.checkTenancy(w, r); err != nil {
		return AgentConfig{}, acl.Permit{}, err
	}
	z, err := s.authorizer(w, r)
	if err != nil {
		return AgentConfig{}, acl.Permit{}, err
	}
	svc := s.registered.Service(id)
	if svc == nil {
		return AgentConfig{}, acl.Permit{}, wireerr.NotFound("Unknown service ID %q. Ensure that the service ID is passed, not the service name.", id)
	}
	return s.ownFor(z.Require(acl.Service, acl.Write, svc.Given.Service))
}

func (s *Server) agentDeregisterService(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	id := argument(w, r)
	a, p, err := s.ownService(w, r, id)
	if err != nil {
		return refused(err)
	}
	// Its sidecar goes too. One that is still that of another service is not this one's to remove.
	side, own := s.registered.Service(definition.SidecarID(id)), s.registered.Service(id)
	if side != nil && side.Nested && (own == nil || side.Given.Proxy.DestinationServiceName != own.Given.Service) {
		if _, p, err = s.ownService(w, r, side.Given.ID); err != nil {
			return refused(err)
		}
	}
	return done(p, a.Local.DeregisterService(r.Context(), id))
}

// maintenanceParams reads enable and reason.
func maintenanceParams(w http.ResponseWriter) (on bool, reason string, err error) {
	q := query(w)
	enable, given := q.lookup("enable")
	if !given {
		return false, "", wireerr.BadRequest("Missing value for enable")
	}
	if on, err = strconv.ParseBool(enable); err != nil {
		return false, "", wireerr.BadRequest("Invalid value for enable: %q", enable)
	}
	return on, q.get("reason"), nil
}

func (s *Server) agentServiceMaintenance(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	id := argument(w, r)
	if id == "" {
		return refused(wireerr.BadRequest("Missing service ID"))
	}
	on, reason, err := maintenanceParams(w)
	if err != nil {
		return refused(err)
	}
	a, p, err := s.ownService(w, r, id)
	if err != nil {
		return refused(err)
	}
	if err := s.mayMaintain(w, r, local.ServiceMaintenanceID+id, id); err != nil {
		return refused(err)
	}
	return done(p, a.Local.SetServiceMaintenance(r.Context(), id, on, reason, requestToken(query(w), r.Header)))
}

// mayMaintain asks for the right on another's check that has the ID of the check of maintenance.
func (s *Server) mayMaintain(w http.ResponseWriter, r *http.Request, id, serviceID string) error {
	z, err := s.authorizer(w, r)
	if err != nil {
		return err
	}
	return s.mayReplaceCheck(z, id, serviceID)
}

func (s *Server) agentNodeMaintenance(w http.ResponseWriter, r *http.Request) (any, acl.Permit, error) {
	on, reason, err := maintenanceParams(w)
	if err != nil {
		return refused(err)
	}
	a, p, err := s.require(w, r, acl.Node, acl.Write, s.cfg.NodeName)
	if err != nil {
		return refused(err)
	}
	if err := s.mayMaintain(w, r, local.NodeMaintenanceID, ""); err != nil {
		return refused(err)
	}
	return done(p, a.Local.SetNodeMaintenance(r.Context(), on, reason, requestToken(query(w), r.Header)))
}
