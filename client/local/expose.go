package local

import (
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
)

// refreshExposed gives the HTTP and gRPC checks of a service a port of its proxy, when that exposes checks, and takes
// it back when it does not. The mutex is held.
func (s *State) refreshExposed(serviceID string) {
	if serviceID == "" {
		return
	}
	proxy := s.exposingProxy(serviceID)
	for id := range s.byService[serviceID] {
		c := s.checks[id]
		if c.Def == nil || c.Def.HTTP == "" && c.Def.GRPC == "" {
			continue
		}
		port := 0
		if proxy != nil {
			if port = c.Record.ExposedPort; port == 0 {
				port = s.freeExposedPort()
			}
		}
		if port == c.Record.ExposedPort {
			continue
		}
		next := *c
		rec := *c.Record
		rec.ExposedPort = port
		next.Record = &rec
		s.checks[id] = &next
		if err := s.runner.Add(id, s.runDef(&next), rec.Output); err != nil {
			s.log.Error("check cannot be run", "check", id, "error", err)
		}
		s.dirtyCheck(id, serviceID)
		s.notify()
	}
}

// exposingProxy returns the proxy that exposes the checks of a service, nil if there is none.
func (s *State) exposingProxy(serviceID string) *catalog.Service {
	for _, id := range slices.Sorted(maps.Keys(s.proxies[serviceID])) {
		if i := s.services[id].Instance; i.Proxy.Expose.Checks {
			return i
		}
	}
	return nil
}

// freeExposedPort returns the lowest port no exposed check has, 0 when there is none left.
func (s *State) freeExposedPort() int {
	used := map[int]bool{}
	for _, c := range s.checks {
		used[c.Record.ExposedPort] = true
	}
	for port := max(s.cfg.ExposePorts.Low, 1); port <= s.cfg.ExposePorts.High; port++ {
		if !used[port] {
			return port
		}
	}
	s.log.Warn("no port left to expose a check on", "low", s.cfg.ExposePorts.Low, "high", s.cfg.ExposePorts.High)
	return 0
}

// runDef returns the definition a check is run by: one that is exposed is asked through the proxy. The mutex is held.
func (s *State) runDef(c *Check) *definition.Check {
	port := c.Record.ExposedPort
	if port == 0 {
		return c.Def
	}
	host := "127.0.0.1"
	if proxy := s.exposingProxy(c.Record.ServiceID); proxy != nil && proxy.Address != "" {
		host = proxy.Address
	}
	def := *c.Def
	address := net.JoinHostPort(host, strconv.Itoa(port))
	if def.GRPC != "" {
		_, service, named := strings.Cut(def.GRPC, "/")
		def.GRPC = address
		if named {
			def.GRPC += "/" + service
		}
	}
	if u, err := url.Parse(def.HTTP); def.HTTP != "" && err == nil {
		u.Host = address
		def.HTTP = u.String()
	}
	return &def
}
