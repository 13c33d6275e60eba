package acl

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/sarnmesh/sarn/internal/wireerr"
)

// Rule returns the line of a policy that grants what was refused, in HCL on one line of printable ASCII. It is empty
// where no line can be given: the language takes "${" in a name for something else.
func (e *DeniedError) Rule() string {
	resource, level := string(e.Resource), string(e.Access)
	if _, scalar := scalars[resource]; scalar {
		return fmt.Sprintf("%s = %q", resource, level)
	}
	name := strconv.QuoteToASCII(e.Name)
	if strings.Contains(name, "${") || strings.Contains(name, `\x`) {
		return ""
	}
	intentions := ""
	if e.Resource == Inten {
		// Who may see a service may see its intentions; writing them is always said apart.
		resource, level = string(Service), string(Read)
		if e.Access == Write {
			intentions = fmt.Sprintf(" intentions = %q", Write)
		}
		if e.Name == "*" {
			name = `""`
		}
	}
	if e.Prefix || e.Name == "" || e.Access == List || name == `""` {
		resource += "_prefix"
	}
	return fmt.Sprintf("%s %s { policy = %q%s }", resource, name, level, intentions)
}

// ParseDenied recognises the text of a DeniedError, such as it comes from another server.
func ParseDenied(text string) (*DeniedError, bool) {
	e := &DeniedError{}
	rest, ok := strings.CutPrefix(strings.TrimPrefix(text, wireerr.RemotePrefix), "Permission denied: ")
	if !ok {
		return nil, false
	}
	if anonymous, ok := strings.CutPrefix(rest, "anonymous token"); ok {
		if rest, ok = strings.CutSuffix(anonymous, anonymousNote); !ok {
			return nil, false
		}
	} else {
		if rest, ok = strings.CutPrefix(rest, "token with AccessorID '"); !ok {
			return nil, false
		}
		if e.Accessor, rest, ok = strings.Cut(rest, "'"); !ok || e.Accessor == "" {
			return nil, false
		}
	}
	if rest, ok = strings.CutPrefix(rest, " lacks permission '"); !ok {
		return nil, false
	}
	right, on, ok := strings.Cut(rest, "'")
	if !ok {
		return nil, false
	}
	resource, access, ok := strings.Cut(right, ":")
	if !ok || !known(Resource(resource)) || access != string(Read) && access != string(List) && access != string(Write) {
		return nil, false
	}
	e.Resource, e.Access = Resource(resource), Access(access)
	if on == "" {
		return e, true
	}
	if on, ok = strings.CutPrefix(on, " on "); !ok {
		return nil, false
	}
	name, err := strconv.Unquote(on)
	if err != nil || name == "" {
		return nil, false
	}
	e.Name = name
	return e, true
}

// known reports whether a resource can be refused.
func known(r Resource) bool {
	_, scalar := scalars[string(r)]
	_, named := labelled[string(r)]
	return scalar || named || r == Inten
}
