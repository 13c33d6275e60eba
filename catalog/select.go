package catalog

import (
	"slices"
	"strings"
)

// Wants reports whether an instance has the tags and node meta that a request asks for and, where it asks for that,
// passes all its checks. The filter is no part of it.
func (r *InstancesRequest) Wants(i *Instance) bool {
	return i.Service.HasTags(r.Tags) && i.Node.HasMeta(r.NodeMeta) && (!r.PassingOnly || i.Passing())
}

// HasTags reports whether an instance has all the tags, compared without regard to case.
func (s *Service) HasTags(tags []string) bool {
	for _, want := range tags {
		if !slices.ContainsFunc(s.Tags, func(tag string) bool { return strings.EqualFold(tag, want) }) {
			return false
		}
	}
	return true
}

// HasMeta reports whether a node has all the pairs.
func (n *Node) HasMeta(pairs map[string]string) bool {
	for k, want := range pairs {
		// A key that is asked for without a value must be there, with an empty one.
		if got, ok := n.Meta[k]; !ok || got != want {
			return false
		}
	}
	return true
}

// Passing reports whether all checks pass that count for an instance.
func (i *Instance) Passing() bool {
	for _, c := range i.Checks {
		if c.Status != Passing {
			return false
		}
	}
	return true
}
