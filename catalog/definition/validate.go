package definition

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/internal/wireerr"
)

// Errors of check definitions; their texts are matched by clients (spec/registry.md section 6.3).
var (
	errIntervalAndTTL = errors.New("Interval and TTL cannot both be specified")
	errNoInterval     = errors.New("Interval must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks")
	errAliasInterval  = errors.New("Interval cannot be set for Alias checks")
	errAliasTTL       = errors.New("TTL must be not be set for Alias checks")
	errNoTTL          = errors.New("TTL must be > 0 for TTL checks")
	errOutputMaxSize  = errors.New("MaxOutputMaxSize must be positive")
	errThresholds     = errors.New("FailuresBeforeWarning can't be higher than FailuresBeforeCritical")
)

// Validate returns the first rule of spec/registry.md section 6.3 that c breaks.
func (c *Check) Validate() error {
	periodic := c.script() || c.HTTP != "" || c.TCP != "" || c.UDP != "" || c.GRPC != "" || c.H2PING != "" || c.OSService != ""
	switch {
	case c.Interval > 0 && c.TTL > 0:
		return errIntervalAndTTL
	case periodic && c.Interval <= 0:
		return errNoInterval
	case periodic && c.alias():
		return errAliasInterval
	case c.alias() && c.TTL > 0:
		return errAliasTTL
	case !periodic && !c.alias() && c.TTL <= 0:
		return errNoTTL
	case c.OutputMaxSize < 0:
		return errOutputMaxSize
	case c.FailuresBeforeWarning > c.FailuresBeforeCritical:
		return errThresholds
	}
	return nil
}

// ValidStatus reports whether a check may be registered with status s; the empty one means the default.
func ValidStatus(s string) bool {
	switch s {
	case "", catalog.Passing, catalog.Warning, catalog.Critical:
		return true
	}
	return false
}

// ValidateRegistration checks a stand-alone check as the registration endpoint does; the error carries its status.
func (c *Check) ValidateRegistration() error {
	switch {
	case c.Name == "":
		return wireerr.BadRequest("Missing check name")
	case !ValidStatus(c.Status):
		return wireerr.BadRequest("Bad check status")
	}
	if err := c.Validate(); err != nil {
		return wireerr.BadRequest("Invalid check: %v", err)
	}
	return nil
}

// ValidateIdentity checks what the registration endpoint looks at before it knows whose request it is. Errors of this
// and the other methods for that endpoint carry their status (spec/registry.md section 4.3, in its order).
func (s *Service) ValidateIdentity() error {
	switch {
	case s.Name == "":
		return wireerr.BadRequest("Missing service name")
	case catalog.AnyAddress(s.Address):
		return wireerr.BadRequest("Invalid service address")
	}
	return nil
}

// ValidateRegistration checks weights, meta, structure and checks of s, and the checks of its nested sidecar.
func (s *Service) ValidateRegistration() error {
	if s.Weights != nil {
		if err := s.Weights.Validate(); err != nil {
			return wireerr.BadRequest("Invalid Weights: %v", err)
		}
	}
	if err := catalog.ValidateMeta(s.Meta, s.Kind); err != nil {
		return wireerr.BadRequest("Invalid Service Meta: %v", err)
	}
	if err := s.ValidateStructure(); err != nil {
		return wireerr.BadRequest("Validation failed: %v", err)
	}
	if err := s.validateChecks("Invalid check"); err != nil {
		return err
	}
	if side := s.Sidecar(); side != nil {
		return side.validateChecks("Invalid check in sidecar_service")
	}
	return nil
}

// ValidateStructure checks the rules of spec/registry.md section 4.5. The error is a catalog.Problems.
func (s *Service) ValidateStructure() error {
	var p catalog.Problems
	if err := s.Instance().Validate(); err != nil {
		p, _ = errors.AsType[catalog.Problems](err)
	}
	if side := s.Sidecar(); side != nil {
		if side.ID != "" {
			p = append(p, "A SidecarService cannot specify an ID as this is managed by the agent")
		}
		if side.Sidecar() != nil {
			p = append(p, "A SidecarService cannot have a nested SidecarService")
		}
		if catalog.IsGateway(s.Kind) {
			p = append(p, fmt.Sprintf("A %s cannot have a sidecar service defined", s.Kind))
		}
	}
	if len(p) == 0 {
		return nil
	}
	return p
}

func (s *Service) validateChecks(prefix string) error {
	checks := s.NestedChecks()
	for i := range checks {
		if err := checks[i].Validate(); err != nil {
			return wireerr.BadRequest("%s: %v", prefix, err)
		}
	}
	for i := range checks {
		if !ValidStatus(checks[i].Status) {
			return wireerr.BadRequest("Status for checks must 'passing', 'warning', 'critical'")
		}
	}
	return nil
}

// ValidateTaggedAddresses checks that addresses tagged with a family are of it.
func ValidateTaggedAddresses(addrs map[string]catalog.ServiceAddress) error {
	for _, tag := range []string{"lan_ipv4", "wan_ipv4", "lan_ipv6"} {
		a, ok := addrs[tag]
		if !ok {
			continue
		}
		ip, err := netip.ParseAddr(a.Address)
		four := strings.HasSuffix(tag, "_ipv4")
		if err != nil || ip.Unmap().Is4() != four {
			family := "ipv6"
			if four {
				family = "ipv4"
			}
			return fmt.Errorf("Service tagged address %q must be a valid %s address", tag, family)
		}
	}
	return nil
}

// ValidateConfig checks a service of a configuration file as loading it does, short of what is known only when the
// agent runs (spec/config.md section 6). All problems are reported, joined.
func (s *Service) ValidateConfig() error {
	var errs []error
	addf := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if s.Weights != nil {
		if err := s.Weights.Validate(); err != nil {
			addf("Invalid weight definition for service %s: %w", s.Name, err)
		}
	}
	if err := catalog.ValidateMeta(s.Meta, s.Kind); err != nil {
		addf("invalid meta for service %s: %w", s.Name, err)
	}
	if s.SocketPath != "" && (s.Address != "" || s.Port != 0) {
		addf("service %s cannot have both socket path %s and address/port", s.Name, s.SocketPath)
	}
	side := s.Sidecar()
	if side != nil && side.ID != "" {
		addf("sidecar_service can't specify an ID")
	} else if err := s.ValidateStructure(); err != nil {
		p, _ := errors.AsType[catalog.Problems](err)
		for _, text := range p {
			addf("service %q: %s", s.Name, text)
		}
	}
	for _, def := range []*Service{s, side} {
		if def == nil {
			continue
		}
		for _, c := range def.configChecks() {
			if err := c.Validate(); err != nil {
				addf("service %q: check %q: %w", s.Name, c.Name, err)
			}
			if !ValidStatus(c.Status) {
				addf("service %q: check %q: status must be 'passing', 'warning' or 'critical'", s.Name, c.Name)
			}
		}
	}
	return errors.Join(errs...)
}

// configChecks returns the checks of s under the names they were given.
func (s *Service) configChecks() []Check {
	if s.Check.Empty() {
		return s.Checks
	}
	return append([]Check{s.Check}, s.Checks...)
}

// ValidateConfig checks a stand-alone check of a configuration file.
func (c *Check) ValidateConfig() error {
	if err := c.Validate(); err != nil {
		return fmt.Errorf("check %q: %w", c.Name, err)
	}
	if !ValidStatus(c.Status) {
		return fmt.Errorf("check %q: status must be 'passing', 'warning' or 'critical'", c.Name)
	}
	return nil
}
