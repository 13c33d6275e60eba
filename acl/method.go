package acl

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Localities of tokens that an auth method makes.
const (
	LocalityLocal  = "local"
	LocalityGlobal = "global"
)

// methodTypes are in the order in which errors name them.
var methodTypes = []string{MethodAWSIAM, MethodJWT, MethodKubernetes}

// CheckMethodName checks the name of an auth method.
func CheckMethodName(name string) error {
	switch {
	case name == "":
		return errors.New("Invalid Auth Method: no Name is set")
	case len(name) > maxMethodName || !validName(name):
		return errors.New("Invalid Auth Method: invalid Name. Only alphanumeric characters, '-' and '_' are allowed")
	}
	return nil
}

// Check checks all but the configuration, whose rules are those of its type (spec/acl.md section 9).
func (m *AuthMethod) Check() error {
	if err := CheckMethodName(m.Name); err != nil {
		return err
	}
	switch {
	case !slices.Contains(methodTypes, m.Type):
		return fmt.Errorf("Invalid Auth Method: Type should be one of: [%s]", strings.Join(methodTypes, " "))
	case m.TokenLocality != "" && m.TokenLocality != LocalityLocal && m.TokenLocality != LocalityGlobal:
		return errors.New("Invalid Auth Method: TokenLocality should be one of 'local' or 'global'")
	case m.MaxTokenTTL != 0 && m.MaxTokenTTL < MinTTL:
		return fmt.Errorf("MaxTokenTTL %s cannot be less than %s", m.MaxTokenTTL, MinTTL)
	}
	return nil
}
