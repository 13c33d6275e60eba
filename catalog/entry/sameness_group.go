package entry

import "errors"

// A SamenessGroup is refused: it is known so that its users are told so.
type SamenessGroup struct {
	Header
	Members            []map[string]any `json:",omitempty"`
	DefaultForFailover bool             `json:",omitempty"`
	IncludeLocal       bool             `json:",omitempty"`
}

// Normalize does nothing.
func (*SamenessGroup) Normalize() {}

// Validate refuses.
func (*SamenessGroup) Validate() error {
	return errors.New("sameness-groups are an enterprise-only feature")
}
