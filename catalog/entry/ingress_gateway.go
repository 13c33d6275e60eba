package entry

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// An IngressGateway lets callers outside the mesh in (spec/connect.md section 8.7).
type IngressGateway struct {
	Header
	TLS       GatewayTLS        `json:""`
	Defaults  *IngressDefaults  `json:",omitempty"`
	Listeners []IngressListener `json:""`
}

// GatewayTLS is how a gateway's listeners end TLS.
type GatewayTLS struct {
	Enabled       bool
	SDS           *GatewaySDS `json:",omitempty"`
	TLSMinVersion TLSVersion  `json:",omitempty"`
	TLSMaxVersion TLSVersion  `json:",omitempty"`
	CipherSuites  []string    `json:",omitempty"`
}

// A GatewaySDS names a certificate served by another xDS cluster.
type GatewaySDS struct {
	ClusterName  string `json:",omitempty"`
	CertResource string `json:",omitempty"`
}

// IngressLimits bound what a gateway has open to a service; 0 means the proxy's default.
type IngressLimits struct {
	MaxConnections        uint32              `json:",omitempty"`
	MaxPendingRequests    uint32              `json:",omitempty"`
	MaxConcurrentRequests uint32              `json:",omitempty"`
	PassiveHealthCheck    *PassiveHealthCheck `json:",omitempty"`
}

// IngressDefaults are the limits of services that have none of their own. Unlike theirs, they are shown when they are 0:
// clients read them without asking whether they are there.
type IngressDefaults struct {
	MaxConnections        uint32
	MaxPendingRequests    uint32
	MaxConcurrentRequests uint32
	PassiveHealthCheck    *PassiveHealthCheck `json:",omitempty"`
}

// An IngressListener is one port.
type IngressListener struct {
	Port     int
	Protocol string      // default tcp
	TLS      *GatewayTLS `json:",omitempty"`
	Services []IngressService
}

// An IngressService is a service behind a listener; the name may be the wildcard.
type IngressService struct {
	Name            string
	Hosts           []string
	TLS             *IngressServiceTLS `json:",omitempty"`
	RequestHeaders  *HeaderEdit        `json:",omitempty"`
	ResponseHeaders *HeaderEdit        `json:",omitempty"`
	IngressLimits
}

// IngressServiceTLS is the certificate for one service.
type IngressServiceTLS struct {
	SDS *GatewaySDS `json:",omitempty"`
}

// Hosts returns the hosts the entry names, without ports, in order.
func (e *IngressGateway) Hosts() []string {
	var out []string
	for i := range e.Listeners {
		for j := range e.Listeners[i].Services {
			for _, h := range e.Listeners[i].Services[j].Hosts {
				if name, _, _ := strings.Cut(h, ":"); name != Wildcard {
					out = append(out, name)
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Normalize fills in defaults.
func (e *IngressGateway) Normalize() {
	for i := range e.Listeners {
		l := &e.Listeners[i]
		l.Protocol = lower(l.Protocol)
		if l.Protocol == "" {
			l.Protocol = TCP
		}
	}
}

// Validate checks the entry.
func (e *IngressGateway) Validate() error {
	if e.Name == "" {
		return errName
	}
	if err := e.TLS.check(""); err != nil {
		return err
	}
	ports := map[int]bool{}
	for i := range e.Listeners {
		l := &e.Listeners[i]
		if ports[l.Port] {
			return fmt.Errorf("port %d declared on two listeners", l.Port)
		}
		ports[l.Port] = true
		if l.Protocol != TCP && !HTTPLike(l.Protocol) {
			return fmt.Errorf("protocol must be 'tcp', 'http', 'http2', or 'grpc'. '%s' is an unsupported protocol", l.Protocol)
		}
		if err := l.check(e.TLS.Enabled || l.TLS != nil && l.TLS.Enabled); err != nil {
			return err
		}
	}
	return nil
}

// check checks TLS of the gateway, or of a listener, whose errors end with on.
func (t *GatewayTLS) check(on string) error {
	if s := t.SDS; s != nil {
		what := "gateway"
		if on != "" {
			what = "listener"
		}
		switch {
		case s.CertResource != "" && s.ClusterName == "":
			return fmt.Errorf("TLS.SDS.ClusterName is required if CertResource is set%s", on)
		case s.ClusterName != "" && s.CertResource == "":
			return fmt.Errorf("TLS.SDS.CertResource is required if ClusterName is set for %s%s", what, on)
		}
	}
	return checkTLS(t.TLSMinVersion, t.TLSMaxVersion, t.CipherSuites)
}

func (l *IngressListener) check(tls bool) error {
	on := fmt.Sprintf(" (listener on port %d)", l.Port)
	if l.TLS != nil {
		if err := l.TLS.check(on); err != nil {
			return err
		}
	}
	if len(l.Services) == 0 {
		return fmt.Errorf("No service declared for listener with port %d", l.Port)
	}
	if len(l.Services) > 1 && l.Protocol == TCP {
		return fmt.Errorf("Multiple services per listener are only supported for L7 protocols, 'http', 'grpc' and 'http2'%s", on)
	}
	services, hosts := map[string]bool{}, map[string]bool{}
	for i := range l.Services {
		s := &l.Services[i]
		edited := fmt.Sprintf("only valid for http, http2 and grpc protocols (service %q on listener on port %d)", s.Name, l.Port)
		switch {
		case s.Name == "":
			return fmt.Errorf("Service name cannot be blank%s", on)
		case s.Name == Wildcard && l.Protocol != HTTP:
			return fmt.Errorf("Wildcard service name is only valid for protocol = 'http'%s", on)
		case s.Name == Wildcard && len(s.Hosts) != 0:
			return fmt.Errorf("Associating hosts to a wildcard service is not supported%s", on)
		case services[s.Name]:
			return fmt.Errorf("Service %s cannot be added multiple times%s", s.Name, on)
		case l.Protocol == TCP && len(s.Hosts) != 0:
			return fmt.Errorf("Associating hosts to a service is not supported for the tcp protocol%s", on)
		case l.Protocol == TCP && s.RequestHeaders != nil:
			return fmt.Errorf("request headers %s", edited)
		case l.Protocol == TCP && s.ResponseHeaders != nil:
			return fmt.Errorf("response headers %s", edited)
		}
		services[s.Name] = true
		for _, h := range s.Hosts {
			if hosts[h] {
				return fmt.Errorf("Hosts must be unique within a specific listener%s", on)
			}
			hosts[h] = true
			if err := checkIngressHost(h, tls); err != nil {
				return err
			}
		}
		if s.PassiveHealthCheck != nil {
			if err := s.PassiveHealthCheck.check(); err != nil {
				return err
			}
		}
		if err := s.checkSDS(l.Port, on); err != nil {
			return err
		}
	}
	return nil
}

func (s *IngressService) checkSDS(port int, on string) error {
	if s.TLS == nil || s.TLS.SDS == nil {
		return nil
	}
	sds := s.TLS.SDS
	switch {
	case sds.CertResource != "" && sds.ClusterName == "":
		return fmt.Errorf("TLS.SDS.ClusterName is required if CertResource is set%s", on)
	case sds.ClusterName != "" && sds.CertResource == "":
		return fmt.Errorf("TLS.SDS.CertResource is required if ClusterName is set for listener%s", on)
	case sds.CertResource != "" && len(s.Hosts) == 0:
		return fmt.Errorf("A service specifying TLS.SDS.CertResource must have at least one item in Hosts (service %q on listener on port %d)", s.Name, port)
	}
	return nil
}

func checkIngressHost(h string, tls bool) error {
	if h == Wildcard {
		if tls {
			return errors.New("Host '*' is not allowed when TLS is enabled, all hosts must be valid DNS records to add as a DNSSAN")
		}
		return nil
	}
	rest, _ := strings.CutPrefix(h, "*.")
	if strings.Contains(rest, Wildcard) {
		return fmt.Errorf("Host %q is not valid, a wildcard specifier is only allowed as the leftmost label", h)
	}
	if name, _, _ := strings.Cut(rest, ":"); !isHostname(name) {
		return fmt.Errorf("Host %q must be a valid DNS hostname", h)
	}
	return nil
}
