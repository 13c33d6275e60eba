package acl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	hclast "github.com/hashicorp/hcl/hcl/ast"
	hclparser "github.com/hashicorp/hcl/hcl/parser"
	hcltoken "github.com/hashicorp/hcl/hcl/token"
)

// A Level is what one rule says about its names.
type Level uint8

const (
	Unset Level = iota // no rule
	Deny
	ReadLevel
	ListLevel // of keys: reading, and reading whole trees
	WriteLevel
)

var levels = map[string]Level{"deny": Deny, "read": ReadLevel, "list": ListLevel, "write": WriteLevel}

// allows reports whether a level that a rule gives includes an access.
func (l Level) allows(a Access) bool {
	switch a {
	case Read:
		return l >= ReadLevel
	case List:
		return l >= ListLevel
	case Write:
		return l >= WriteLevel
	}
	return false
}

// merge returns what two rules for the same names say together: deny, then write, then list, then read.
func (l Level) merge(other Level) Level {
	if l == Deny || other == Deny {
		return Deny
	}
	return max(l, other)
}

// A Rule is one rule as written.
type Rule struct {
	Resource   Resource
	Name       string // empty for resources without names
	Prefix     bool   // Name is a prefix of the names meant
	Level      Level
	Intentions Level // only of services; Unset when the rule does not say
}

// Rules are the parsed rules of one policy.
type Rules struct{ List []Rule }

// scalars are the resources without names, and labelled those with.
var (
	scalars  = map[string]Resource{"acl": ACL, "keyring": Keyring, "mesh": Mesh, "operator": Operator, "peering": Peering}
	labelled = map[string]Resource{"agent": Agent, "event": Event, "key": Key, "node": Node, "query": Query, "service": Service, "session": Session}
)

// Bounds of the text of a policy.
const (
	maxRulesSize  = 8 << 20
	maxRulesDepth = 16 // of brackets
)

// A member is a name with what it stands for: text, or members in turn.
type member struct {
	name    string
	text    string
	isText  bool
	members []member
}

// Parse reads the rules of a policy, in HCL or JSON (spec/acl.md section 2). Resources that are not known are ignored.
func Parse(text string) (*Rules, error) {
	members, err := parseMembers(text)
	if err != nil {
		return nil, fmt.Errorf("Failed to parse ACL rules: %w", err)
	}
	r := &Rules{}
	seen := map[Resource]bool{}
	for _, m := range members {
		name := strings.ToLower(m.name)
		if res, ok := scalars[name]; ok {
			level, known := levels[strings.ToLower(m.text)]
			switch {
			case !m.isText:
				return nil, fmt.Errorf("Failed to parse ACL rules: %s must be text", name)
			case seen[res]:
				return nil, fmt.Errorf("Failed to parse ACL rules: %s is given twice", name)
			case !known || level == ListLevel:
				return nil, fmt.Errorf("Invalid %s policy: %q", name, m.text)
			}
			seen[res] = true
			r.List = append(r.List, Rule{Resource: res, Level: level})
			continue
		}
		base, prefix := strings.CutSuffix(name, "_prefix")
		res, ok := labelled[base]
		if !ok {
			continue
		}
		if m.isText {
			return nil, fmt.Errorf("Failed to parse ACL rules: %s needs a name", name)
		}
		for _, label := range m.members {
			rule, err := parseRule(name, res, prefix, label)
			if err != nil {
				return nil, err
			}
			r.List = append(r.List, rule)
		}
	}
	return r, nil
}

// parseRule reads one labelled rule.
func parseRule(kind string, res Resource, prefix bool, m member) (Rule, error) {
	rule := Rule{Resource: res, Name: m.name, Prefix: prefix}
	if m.isText {
		return rule, fmt.Errorf("Failed to parse ACL rules: %s %q must be a block", kind, m.name)
	}
	var policy, intentions string
	for _, field := range m.members {
		if !field.isText {
			continue
		}
		switch strings.ToLower(field.name) {
		case "policy":
			policy = field.text
		case "intentions":
			intentions = field.text
		}
	}
	var ok bool
	if rule.Level, ok = levels[strings.ToLower(policy)]; !ok || rule.Level == ListLevel && res != Key {
		return rule, fmt.Errorf("Invalid %s policy: %q of %q", kind, policy, m.name)
	}
	if res == Service && intentions != "" {
		if rule.Intentions, ok = levels[strings.ToLower(intentions)]; !ok || rule.Intentions == ListLevel {
			return rule, fmt.Errorf("Invalid %s intentions policy: %q of %q", kind, intentions, m.name)
		}
	}
	return rule, nil
}

// parseMembers reads the top level of a policy, with blocks of the same name put after one another.
func parseMembers(text string) ([]member, error) {
	if len(text) > maxRulesSize {
		return nil, fmt.Errorf("longer than %d bytes", maxRulesSize)
	}
	if trimmed := strings.TrimSpace(text); strings.HasPrefix(trimmed, "{") {
		return parseJSON(trimmed)
	}
	if tooDeep(text) {
		return nil, errors.New("nested too deep")
	}
	f, err := hclparser.Parse([]byte(text))
	if err != nil {
		return nil, err
	}
	list, ok := f.Node.(*hclast.ObjectList)
	if !ok {
		return nil, errors.New("not a list of rules")
	}
	return hclMembers(list)
}

// tooDeep counts brackets, also those in text, so that the parser, which is recursive, keeps its stack. Names rarely
// hold many.
func tooDeep(text string) bool {
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == '\n':
			quoted = false
		case c == '{' || c == '[':
			if depth++; !quoted && depth > maxRulesDepth || depth > 1024 {
				return true
			}
		case c == '}' || c == ']':
			depth = max(0, depth-1)
		}
	}
	return false
}

func hclMembers(list *hclast.ObjectList) ([]member, error) {
	var all []member
	for _, item := range list.Items {
		m := member{}
		switch v := item.Val.(type) {
		case *hclast.LiteralType:
			text, err := tokenText(v.Token)
			if err != nil {
				return nil, err
			}
			m.text, m.isText = text, true
		case *hclast.ObjectType:
			inner, err := hclMembers(v.List)
			if err != nil {
				return nil, err
			}
			m.members = inner
		default:
			return nil, fmt.Errorf("line %d: a list is not expected here", item.Pos().Line)
		}
		for i := len(item.Keys) - 1; i >= 0; i-- {
			name, err := tokenText(item.Keys[i].Token)
			if err != nil {
				return nil, err
			}
			m.name = name
			if i > 0 {
				m = member{members: []member{m}}
			}
		}
		all = append(all, m)
	}
	return all, nil
}

// tokenText returns the text that a token stands for. The library panics where it cannot be read.
func tokenText(t hcltoken.Token) (text string, err error) {
	switch t.Type {
	case hcltoken.IDENT, hcltoken.STRING, hcltoken.HEREDOC:
	default: // numbers and the like are no levels, whatever they say
		return t.Text, nil
	}
	defer func() {
		if recover() != nil {
			err = fmt.Errorf("line %d: the text cannot be read", t.Pos.Line)
		}
	}()
	text, _ = t.Value().(string)
	return text, nil
}

// parseJSON reads the JSON form. A list stands for its elements, as in HCL's own reading of it.
func parseJSON(text string) ([]member, error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	m, err := jsonValue(d, 0)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something follows the rules")
	}
	return m.members, nil
}

func jsonValue(d *json.Decoder, depth int) (m member, err error) {
	if depth > maxRulesDepth {
		return m, errors.New("nested too deep")
	}
	t, err := d.Token()
	if err != nil {
		return m, err
	}
	switch t := t.(type) {
	case string:
		return member{text: t, isText: true}, nil
	case json.Delim:
		for d.More() {
			var inner member
			if t == '{' {
				key, err := d.Token()
				if err != nil {
					return m, err
				}
				if inner, err = jsonValue(d, depth+1); err != nil {
					return m, err
				}
				inner.name, _ = key.(string)
				m.members = append(m.members, inner)
				continue
			}
			if inner, err = jsonValue(d, depth+1); err != nil {
				return m, err
			}
			if inner.isText {
				return m, errors.New("a list of texts is not expected here")
			}
			m.members = append(m.members, inner.members...)
		}
		_, err := d.Token()
		return m, err
	case nil:
		return m, nil
	}
	var text bytes.Buffer
	fmt.Fprint(&text, t)
	return member{text: text.String(), isText: true}, nil
}
