package awsiam

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// An arn is the Amazon Resource Name of a user, a role, or a role that was assumed.
type arn struct {
	partition, account string // such as "aws", and twelve digits
	kind               string // user, role or assumed-role
	path               string // begins and ends with a slash; of an assumed role it is not known, and "/"
	name               string
	session            string // of an assumed role
}

var (
	arnHead  = regexp.MustCompile(`^arn:(aws(?:-[a-z]+)*):(iam|sts)::([0-9]{12}):(.*)$`)
	arnName  = regexp.MustCompile(`^[A-Za-z0-9_+=,.@-]{1,128}$`)
	arnPath  = regexp.MustCompile(`^/([\x21-\x7e]*/)?$`)
	errNoARN = errors.New("not the ARN of a user or a role")
)

func parseARN(text string) (arn, error) {
	m := arnHead.FindStringSubmatch(text)
	if m == nil || len(text) > 2048 {
		return arn{}, errNoARN
	}
	a := arn{partition: m[1], account: m[3], path: "/"}
	kind, rest, _ := strings.Cut(m[4], "/")
	a.kind = kind
	switch {
	case m[2] == "iam" && (kind == "user" || kind == "role"):
		i := strings.LastIndexByte(rest, '/')
		a.path, a.name = "/"+rest[:i+1], rest[i+1:]
	case m[2] == "sts" && kind == "assumed-role":
		a.name, a.session, _ = strings.Cut(rest, "/")
		if !arnName.MatchString(a.session) {
			return arn{}, errNoARN
		}
	default:
		return arn{}, errNoARN
	}
	if !arnName.MatchString(a.name) || !arnPath.MatchString(a.path) {
		return arn{}, errNoARN
	}
	return a, nil
}

// String returns the text that was parsed.
func (a arn) String() string {
	if a.kind == "assumed-role" {
		return fmt.Sprintf("arn:%s:sts::%s:assumed-role/%s/%s", a.partition, a.account, a.name, a.session)
	}
	return fmt.Sprintf("arn:%s:iam::%s:%s%s%s", a.partition, a.account, a.kind, a.path, a.name)
}

// canonical returns the user or role itself, without its path: what is known without asking for details.
func (a arn) canonical() arn {
	a.path, a.session = "/", ""
	if a.kind == "assumed-role" {
		a.kind = "role"
	}
	return a
}

// A bound is a principal that is trusted, or all whose names begin with it.
type bound struct {
	text string
	any  bool
}

// parseBound reads an entry of BoundIAMPrincipalARNs.
func parseBound(text string, details bool) (bound, error) {
	head, wildcard := strings.CutSuffix(text, "*")
	if strings.Contains(head, "*") {
		return bound{}, errors.New("Only one wildcard is allowed at the end of the bound IAM principal ARN") //nolint:staticcheck // clients match the text
	}
	if wildcard {
		if !details {
			return bound{}, errors.New("Must set EnableIAMEntityDetails=true to use wildcards in BoundIAMPrincipalARNs") //nolint:staticcheck // clients match the text
		}
		// The account is always given in full.
		if !arnHead.MatchString(head) {
			return bound{}, fmt.Errorf("Invalid principal ARN: %q", text) //nolint:staticcheck // clients match the text
		}
		return bound{head, true}, nil
	}
	if _, err := parseARN(text); err != nil {
		return bound{}, fmt.Errorf("Invalid principal ARN: %q", text) //nolint:staticcheck // clients match the text
	}
	return bound{text, false}, nil
}

func (b bound) matches(a arn) bool {
	if b.any {
		return strings.HasPrefix(a.String(), b.text)
	}
	return a.String() == b.text
}
