package config

import (
	"errors"
	"strconv"
	"strings"

	"github.com/sarnmesh/sarn/catalog/definition"
)

// A Service is a service block.
type Service struct {
	Pos Pos // where the block begins
	*definition.Service
}

// A CheckBlock is a check block that stands outside a service.
type CheckBlock struct {
	Pos Pos // where the block begins
	*definition.Check
}

// checkDefinition reports what package definition cannot read in a service or check block, with the place it stands at.
// It returns the block in canonical form.
func (c *checker) checkDefinition(block string, n *node, path string) *node {
	if n.shape != object {
		c.fail(n.pos, path, "'%s' expected a map, got '%s'", path, n.typeName())
		return nil
	}
	n = freeForm(n)
	var err error
	if block == "check" {
		_, err = definition.CheckFromConfig(n.plain().(map[string]any), path)
	} else {
		gatherChecks(n)
		_, err = definition.ServiceFromConfig(n.plain().(map[string]any), path)
	}
	for _, e := range flatten(err) {
		key, pos := path, n.pos
		if f, ok := errors.AsType[*definition.FieldError](e); ok {
			key, pos = f.Path, n.locate(strings.TrimPrefix(f.Path, path))
		}
		c.errs = append(c.errs, &KeyError{Key: key, Pos: pos, Text: e.Error()})
	}
	return n
}

// flatten lists the errors joined in err.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range joined.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	return []error{err}
}

// gatherChecks moves check blocks written several times in front of those under checks, here and in a sidecar.
func gatherChecks(n *node) {
	if n == nil || n.shape != object {
		return
	}
	if repeated := n.getFold("check"); repeated != nil && repeated.shape == list && len(repeated.list) > 1 {
		n.takeFold("check")
		all := &node{shape: list, pos: repeated.pos, list: repeated.list}
		if more := n.takeFold("checks"); more != nil && more.shape == list {
			all.list = append(append([]*node{}, all.list...), more.list...)
		} else if more != nil {
			all.list = append(append([]*node{}, all.list...), more)
		}
		n.set("checks", all)
	}
	gatherChecks(n.getFold("connect").getFold("sidecar_service"))
}

// getFold is get without regard to case, for any value.
func (n *node) getFold(key string) *node {
	if n == nil || n.shape != object {
		return nil
	}
	for _, m := range n.members {
		if strings.EqualFold(m.key, key) {
			return m.value
		}
	}
	return nil
}

func (n *node) takeFold(key string) *node {
	for _, m := range n.members {
		if strings.EqualFold(m.key, key) {
			return n.take(m.key)
		}
	}
	return nil
}

// locate finds the place of a path such as ".checks[1].ttl" below n: that of the key itself, or of the nearest value
// above it.
func (n *node) locate(path string) Pos {
	pos := n.pos
	for path != "" && n != nil {
		switch path[0] {
		case '.':
			end := strings.IndexAny(path[1:], ".[")
			if end < 0 {
				end = len(path) - 1
			}
			key := path[1 : end+1]
			path = path[end+1:]
			next := (*node)(nil)
			if n.shape == list && len(n.list) == 1 {
				n = n.list[0]
			}
			for _, m := range n.members {
				if strings.EqualFold(m.key, key) {
					next, pos = m.value, m.pos
				}
			}
			n = next
		case '[':
			end := strings.IndexByte(path, ']')
			if end < 0 {
				return pos
			}
			i, err := strconv.Atoi(path[1:end])
			path = path[end+1:]
			if n.shape == list && err == nil && i >= 0 && i < len(n.list) {
				n = n.list[i]
				pos = n.pos
			} else if n.shape != object { // a single block stands for a list of one
				return pos
			}
		default:
			return pos
		}
	}
	return pos
}

// definitions decodes the service and check blocks and checks what they mean.
func (b *builder) definitions() {
	s, w := &b.doc.Settings, &b.doc.Written
	report := func(n *node, err error) {
		for _, e := range flatten(err) {
			if _, ok := errors.AsType[*definition.FieldError](e); ok && b.rest {
				continue // told by checkDefinition
			}
			b.problems = append(b.problems, &KeyError{Pos: n.pos, Text: e.Error()})
		}
	}
	for _, blocks := range [][]*node{w.Service, w.Services} {
		for _, n := range blocks {
			svc, err := definition.ServiceFromConfig(n.plain().(map[string]any), "service")
			if err == nil {
				err = svc.ValidateConfig()
			}
			report(n, err)
			s.Services = append(s.Services, Service{n.pos, svc})
		}
	}
	for _, blocks := range [][]*node{w.Check, w.Checks} {
		for _, n := range blocks {
			check, err := definition.CheckFromConfig(n.plain().(map[string]any), "check")
			if err == nil {
				err = check.ValidateConfig()
			}
			report(n, err)
			s.Checks = append(s.Checks, CheckBlock{n.pos, check})
		}
	}
}
