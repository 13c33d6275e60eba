package definition

import (
	"cmp"
	"net"
	"strconv"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

const (
	sidecarSuffix        = "-sidecar-proxy"
	sidecarCheckInterval = 10 * time.Second
)

// SidecarID returns the ID of the sidecar that the agent makes for the service with this ID.
func SidecarID(serviceID string) string { return serviceID + sidecarSuffix }

// Sidecar returns the nested sidecar definition of s as it was written, nil if there is none.
func (s *Service) Sidecar() *Service {
	if s.Connect == nil {
		return nil
	}
	return s.Connect.SidecarService
}

// ExpandSidecar returns the complete definition of the nested sidecar of s, nil if there is none, except for the port
// and the checks that need it: ExpandSidecarPort adds those. It does not change s. Errors carry their status
// (spec/registry.md sections 4.3 and 5).
func (s *Service) ExpandSidecar() (*Service, error) {
	given := s.Sidecar()
	if given == nil {
		return nil, nil
	}
	side := *given
	side.ID = SidecarID(s.ServiceID())
	side.Name = cmp.Or(side.Name, s.Name+sidecarSuffix)
	side.Kind = cmp.Or(side.Kind, catalog.KindConnectProxy)
	side.Address = cmp.Or(side.Address, s.Address)
	side.Token = cmp.Or(side.Token, s.Token)
	side.Locality = cmp.Or(side.Locality, s.Locality)
	if len(side.Tags) == 0 {
		side.Tags = s.Tags
	}
	if len(side.Meta) == 0 {
		side.Meta = s.Meta
	}
	var proxy catalog.Proxy
	if side.Proxy != nil {
		proxy = cloneProxy(*side.Proxy)
	}
	proxy.DestinationServiceName = cmp.Or(proxy.DestinationServiceName, s.Name)
	proxy.DestinationServiceID = cmp.Or(proxy.DestinationServiceID, s.ServiceID())
	switch {
	case proxy.LocalServiceSocketPath != "":
	case s.SocketPath != "" && (proxy.LocalServiceAddress == "" || proxy.LocalServicePort < 1):
		proxy.LocalServiceSocketPath, proxy.LocalServiceAddress, proxy.LocalServicePort = s.SocketPath, "", 0
	default:
		proxy.LocalServiceAddress = cmp.Or(proxy.LocalServiceAddress, "127.0.0.1")
		if proxy.LocalServicePort < 1 {
			proxy.LocalServicePort = s.Port
		}
	}
	side.Proxy = &proxy

	if side.Weights != nil {
		if err := side.Weights.Validate(); err != nil {
			return nil, wireerr.BadRequest("Invalid SidecarService: Invalid Weights: %v", err)
		}
	}
	if err := catalog.ValidateMeta(side.Meta, side.Kind); err != nil {
		return nil, wireerr.BadRequest("Invalid SidecarService: Invalid Service Meta: %v", err)
	}
	if catalog.AnyAddress(side.Address) {
		return nil, wireerr.BadRequest("Invalid SidecarService: Invalid service address")
	}
	if err := side.Instance().ValidateNested(); err != nil {
		return nil, wireerr.BadRequest("Failed Validation: %v", err)
	}
	return &side, nil
}

// ExpandSidecarPort completes an expanded sidecar: it sets the port, when neither port nor socket path was given, to
// what assign returns for the sidecar's ID, and adds the default checks when it has none. parentID is the ID of the
// service the sidecar was nested in.
func (s *Service) ExpandSidecarPort(parentID string, assign func(sidecarID string) (int, error)) error {
	if s.Port < 1 && s.SocketPath == "" {
		port, err := assign(s.ID)
		if err != nil {
			return err
		}
		s.Port = port
	}
	if !s.Check.Empty() || len(s.Checks) > 0 {
		return nil
	}
	var checks []Check
	if s.Port > 0 {
		checks = append(checks, Check{
			Name:     "Connect Sidecar Listening",
			TCP:      net.JoinHostPort(cmp.Or(s.Address, s.Proxy.LocalServiceAddress, "127.0.0.1"), strconv.Itoa(s.Port)),
			Interval: sidecarCheckInterval,
		})
	}
	s.Checks = append(checks, Check{Name: "Connect Sidecar Aliasing " + parentID, AliasService: parentID})
	return nil
}

// AssignPort returns the port for the sidecar with this ID: the one it has, if that lies in [low, high], else the lowest
// one there that no service uses. current is the sidecar's present port, 0 if it is not registered.
func AssignPort(low, high, current int, used map[int]bool) (int, error) {
	if low < 1 || high < 1 {
		return 0, wireerr.Errorf(500, "no port provided for sidecar_service and auto-assignment disabled in config")
	}
	if current >= low && current <= high {
		return current, nil
	}
	for port := low; port <= high; port++ {
		if !used[port] {
			return port, nil
		}
	}
	return 0, wireerr.Errorf(500, "no port provided for sidecar_service and none left in the configured range [%d, %d]", low, high)
}
