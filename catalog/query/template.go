package query

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// A Compiled template renders the query that it was made of for a name. It is immutable.
type Compiled struct {
	query *Query
	re    *regexp.Regexp // nil for none
	texts map[string]text
}

// Compile prepares a template for use, and tries it with its own name. The strings of q.Service may hold expressions in
// "${" and "}": name.full is the name as it was asked for, name.prefix the template's own name, name.suffix what
// follows that, match(n) the n-th group of the regular expression in the full name, agent.segment is empty. Keys of
// maps are taken as they are. It keeps q.
func Compile(q *Query) (*Compiled, error) {
	if q.Template.Type != NamePrefixMatch {
		return nil, fmt.Errorf("Bad Template.Type '%s'", q.Template.Type)
	}
	c := &Compiled{query: q, texts: map[string]text{}}
	if r := q.Template.Regexp; r != "" {
		if len(r) > MaxRegexp {
			return nil, errRegexpLimit
		}
		var err error
		if c.re, err = regexp.Compile(r); err != nil {
			return nil, fmt.Errorf("Bad Regexp: %w", err)
		}
	}
	own := q.Service.clone()
	err := own.eachString(func(path, s string) (string, error) {
		t, err := parseText(s)
		if err != nil {
			return "", fmt.Errorf("Bad format '%s' in Service%s: %w", s, path, err)
		}
		c.texts[s] = t
		return s, nil
	})
	if err != nil {
		return nil, err
	}
	if _, err := c.Render(q.Name); err != nil {
		return nil, err
	}
	return c, nil
}

// Render returns the query for a name, which it shares nothing with that could be changed.
func (c *Compiled) Render(name string) (*Query, error) {
	s := &scope{variables: map[string]string{
		"name.full": name, "name.prefix": c.query.Name, "name.suffix": strings.TrimPrefix(name, c.query.Name), "agent.segment": "",
	}, room: MaxRendered}
	if c.re != nil {
		s.match = c.re.FindStringSubmatch(name)
	}
	q := *c.query
	q.Service = c.query.Service.clone()
	err := q.Service.eachString(func(path, source string) (string, error) {
		v, err := c.texts[source].render(s)
		if err != nil {
			return "", fmt.Errorf("Bad evaluation for '%s' in Service%s: %w", source, path, err)
		}
		return v, nil
	})
	if err != nil {
		return nil, err
	}
	if q.Template.RemoveEmptyTags {
		q.Service.Tags = slices.DeleteFunc(q.Service.Tags, func(tag string) bool { return tag == "" })
	}
	return &q, nil
}

// eachString replaces every string by what f makes of it and of its place, up to the first error.
func (s *Service) eachString(f func(path, s string) (string, error)) (err error) {
	one := func(path string, s *string) {
		if err == nil {
			var v string
			if v, err = f(path, *s); err == nil {
				*s = v
			}
		}
	}
	list := func(path string, l []string) {
		for i := range l {
			one(fmt.Sprintf("%s[%d]", path, i), &l[i])
		}
	}
	pairs := func(path string, m map[string]string) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			v := m[k]
			one(fmt.Sprintf("%s[%s]", path, k), &v)
			m[k] = v
		}
	}
	one(".Service", &s.Service)
	list(".Failover.Datacenters", s.Failover.Datacenters)
	for i := range s.Failover.Targets {
		one(fmt.Sprintf(".Failover.Targets[%d].Peer", i), &s.Failover.Targets[i].Peer)
		one(fmt.Sprintf(".Failover.Targets[%d].Datacenter", i), &s.Failover.Targets[i].Datacenter)
	}
	list(".IgnoreCheckIDs", s.IgnoreCheckIDs)
	one(".Near", &s.Near)
	list(".Tags", s.Tags)
	pairs(".NodeMeta", s.NodeMeta)
	pairs(".ServiceMeta", s.ServiceMeta)
	one(".Peer", &s.Peer)
	return err
}
