package query

import (
	"slices"
	"strings"

	"github.com/sarnmesh/sarn/catalog"
)

// Select returns those of a service's instances that the query is about, in a slice of its own: by health, then meta,
// then tags.
func (s *Service) Select(all []*catalog.Instance) []*catalog.Instance {
	var must, not []string
	for _, tag := range s.Tags {
		if t, forbidden := strings.CutPrefix(tag, "!"); forbidden {
			not = append(not, t)
		} else {
			must = append(must, tag)
		}
	}
	kept := make([]*catalog.Instance, 0, len(all))
	for _, i := range all {
		has := func(tag string) bool {
			return slices.ContainsFunc(i.Service.Tags, func(t string) bool { return strings.EqualFold(t, tag) })
		}
		lacks := func(tag string) bool { return !has(tag) }
		if s.healthy(i.Checks) && hasPairs(i.Node.Meta, s.NodeMeta) && hasPairs(i.Service.Meta, s.ServiceMeta) &&
			!slices.ContainsFunc(must, lacks) && !slices.ContainsFunc(not, has) {
			kept = append(kept, i)
		}
	}
	return kept
}

func (s *Service) healthy(checks []*catalog.Check) bool {
	return !slices.ContainsFunc(checks, func(c *catalog.Check) bool {
		bad := c.Status == catalog.Critical || s.OnlyPassing && c.Status != catalog.Passing
		return bad && !slices.Contains(s.IgnoreCheckIDs, c.CheckID)
	})
}

func hasPairs(meta, pairs map[string]string) bool {
	for k, want := range pairs {
		if got, ok := meta[k]; !ok || got != want {
			return false
		}
	}
	return true
}

// sourceDepth is how far down a sorted list its source may be to be put first.
const sourceDepth = 10

// SourceFirst puts the first instance on a node to the front, if it is among the first ten. The others keep their
// order.
func SourceFirst(sorted []*catalog.Instance, node string) {
	for i, in := range sorted[:min(len(sorted), sourceDepth)] {
		if strings.EqualFold(in.Node.Node, node) {
			copy(sorted[1:i+1], sorted[:i])
			sorted[0] = in
			return
		}
	}
}

// Limit returns the first n of a list, all of it if n is not positive.
func Limit[T any](list []T, n int) []T {
	if n > 0 && n < len(list) {
		return list[:n]
	}
	return list
}

// Candidates returns the places to search, in order, when nothing was found in the datacenter local: of the other
// datacenters, which come nearest first, as many as asked for, then those named that are among them, each once. A peer
// is passed as it is. What is not known is left out.
func (f *Failover) Candidates(local string, others []string) []Target {
	var out []Target
	add := func(t Target) {
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	others = slices.DeleteFunc(slices.Clone(others), func(dc string) bool { return dc == local })
	for _, dc := range Limit(others, max(f.NearestN, 0)) {
		if f.NearestN > 0 {
			add(Target{Datacenter: dc})
		}
	}
	for _, dc := range f.Datacenters {
		if slices.Contains(others, dc) {
			add(Target{Datacenter: dc})
		}
	}
	for _, t := range f.Targets {
		switch {
		case t.Peer != "":
			add(Target{Peer: t.Peer})
		case slices.Contains(others, t.Datacenter):
			add(Target{Datacenter: t.Datacenter})
		}
	}
	return out
}
