package entry

import (
	"errors"
	"fmt"
)

// A TerminatingGateway lets the mesh call services outside of it (spec/connect.md section 8.8).
type TerminatingGateway struct {
	Header
	Services []LinkedService // null when there are none
}

// A LinkedService is a service a terminating gateway stands for; the name may be the wildcard.
type LinkedService struct {
	Name                   string
	CAFile                 string `json:",omitempty"`
	CertFile               string `json:",omitempty"`
	KeyFile                string `json:",omitempty"`
	SNI                    string `json:",omitempty"`
	DisableAutoHostRewrite bool   `json:",omitempty"`
}

// Validate checks the entry.
func (e *TerminatingGateway) Validate() error {
	if e.Name == "" {
		return errName
	}
	seen := map[string]bool{}
	for _, s := range e.Services {
		if s.Name == "" {
			return errors.New("Service name cannot be blank.")
		}
		if seen[s.Name] {
			return fmt.Errorf("Service %q was specified more than once within a namespace", s.Name)
		}
		seen[s.Name] = true
		// None, the CA alone, or all three.
		if n := count(s.CAFile != "", s.CertFile != "", s.KeyFile != ""); n == 2 || n == 1 && s.CAFile == "" {
			return fmt.Errorf("Service %q must have a CertFile, CAFile, and KeyFile specified for TLS origination", s.Name)
		}
	}
	return nil
}
