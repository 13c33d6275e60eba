package upstream

import (
	"slices"

	"github.com/sarnmesh/sarn/connect/proxy/balance"
	"github.com/sarnmesh/sarn/connect/proxy/model"
)

// subsets are the divisions of the hosts of a cluster by metadata.
type subsets struct {
	conf      *model.Subsets
	selectors []selector
	fallback  *subset // of the default; nil if there is none
}

// A selector divides hosts by the values under some keys.
type selector struct {
	*model.SubsetSelector
	root node
}

// A node is where a path of values leads.
type node struct {
	next map[string]*node // by the value under the next key
	sub  *subset          // at the end of the path
}

type subset struct {
	index []int // of hosts; nil once the table is there
	hosts []*Host
	table *balance.Table
}

// newSubsets divides hosts.
func newSubsets(c *Cluster, hosts []*Host, in []balance.Host, opt balance.Options) *subsets {
	conf := c.conf.Subsets
	s := &subsets{conf: conf}
	var all []*subset
	for i := range conf.Selectors {
		sel := selector{SubsetSelector: &conf.Selectors[i]}
		for n, h := range hosts {
			values := h.endpoint.Load().Metadata["envoy.lb"]
			all = sel.root.add(sel.Keys, values, n, sel.Single, conf.ListAsAny, all)
		}
		s.selectors = append(s.selectors, sel)
	}
	if conf.Fallback == model.FallbackDefault {
		s.fallback = &subset{}
		for n, h := range hosts {
			if has(h.endpoint.Load().Metadata["envoy.lb"], conf.Default) {
				s.fallback.index = append(s.fallback.index, n)
			}
		}
		all = append(all, s.fallback)
	}
	if !conf.LocalityAware {
		opt.Localities = nil
	}
	for _, sub := range all {
		sub.build(c, hosts, in, opt, conf.ScaleLocality)
	}
	c.stats.LBSubsetsActive.Set(int64(len(all)))
	return s
}

// add puts a host into the subsets that its values lead to.
func (n *node) add(keys []string, values map[string]any, host int, single, lists bool, all []*subset) []*subset {
	if len(keys) == 0 {
		if n.sub == nil {
			n.sub = &subset{}
			all = append(all, n.sub)
		}
		if !single || len(n.sub.index) == 0 {
			n.sub.index = append(n.sub.index, host)
		}
		return all
	}
	v, ok := values[keys[0]]
	if !ok {
		return all
	}
	step := func(v any) {
		key := model.CanonicalValue(v)
		next := n.next[key]
		if next == nil {
			if n.next == nil {
				n.next = map[string]*node{}
			}
			next = &node{}
			n.next[key] = next
		}
		all = next.add(keys[1:], values, host, single, lists, all)
	}
	if list, ok := v.([]any); ok && lists {
		done := map[string]bool{}
		for _, x := range list {
			if key := model.CanonicalValue(x); !done[key] {
				done[key] = true
				step(x)
			}
		}
		return all
	}
	step(v)
	return all
}

// build makes the table of a subset.
func (sub *subset) build(c *Cluster, hosts []*Host, in []balance.Host, opt balance.Options, scale bool) {
	mine := make([]balance.Host, len(sub.index))
	sub.hosts = make([]*Host, len(sub.index))
	total, kept := make([]int, len(opt.Localities)), make([]int, len(opt.Localities))
	for k, n := range sub.index {
		mine[k], sub.hosts[k] = in[n], hosts[n]
		if len(kept) > 0 {
			kept[in[n].Locality]++
		}
	}
	if len(opt.Localities) > 0 && scale {
		for _, h := range in {
			total[h.Locality]++
		}
		opt.Localities = slices.Clone(opt.Localities)
		for l := range opt.Localities {
			if w := &opt.Localities[l].Weight; *w > 0 && kept[l] > 0 {
				*w = max(1, uint32(uint64(*w)*uint64(kept[l])/uint64(total[l])))
			}
		}
	}
	c.bind(&opt, sub.hosts)
	sub.table = balance.NewTable(mine, opt, c.m.cfg.Rand())
	sub.index = nil
}

// choose returns the table for what a request asks for, and its hosts. The
// table is nil if nothing fits.
func (s *subsets) choose(c *Cluster, set *hostSet, want []model.MetadataMatch) (*balance.Table, []*Host) {
	fallback := s.conf.Fallback
	if len(want) > 0 {
		for i := range s.selectors {
			sel := &s.selectors[i]
			if !sel.fits(want) {
				continue
			}
			if sub := sel.find(want, sel.Keys); sub != nil {
				c.stats.LBSubsetSelected.Inc()
				return sub.table, sub.hosts
			}
			switch sel.Fallback {
			case model.FallbackCluster:
			case model.FallbackKeySubset:
				for j := range s.selectors {
					if other := &s.selectors[j]; slices.Equal(other.Keys, sel.FallbackKeys) {
						if sub := other.find(want, other.Keys); sub != nil {
							c.stats.LBSubsetSelected.Inc()
							return sub.table, sub.hosts
						}
						fallback = other.Fallback
					}
				}
				if fallback == model.FallbackCluster || fallback == model.FallbackKeySubset {
					fallback = s.conf.Fallback
				}
			default:
				fallback = sel.Fallback
			}
			break
		}
	}
	switch fallback {
	case model.FallbackAny:
		c.stats.LBSubsetFallback.Inc()
		return set.table, set.hosts
	case model.FallbackDefault:
		if s.fallback != nil && len(s.fallback.hosts) > 0 {
			c.stats.LBSubsetFallback.Inc()
			return s.fallback.table, s.fallback.hosts
		}
	}
	if s.conf.PanicAny {
		c.stats.LBSubsetPanic.Inc()
		return set.table, set.hosts
	}
	return nil, nil
}

// fits reports whether the selector is for the keys that are wanted, and no others.
func (sel *selector) fits(want []model.MetadataMatch) bool {
	if len(want) != len(sel.Keys) {
		return false
	}
	for i, k := range sel.Keys {
		if want[i].Key != k {
			return false
		}
	}
	return true
}

// find follows the wanted values under the keys.
func (sel *selector) find(want []model.MetadataMatch, keys []string) *subset {
	n := &sel.root
	for _, w := range want {
		if len(keys) == 0 || w.Key != keys[0] {
			continue
		}
		keys = keys[1:]
		if n = n.next[w.Value]; n == nil {
			return nil
		}
	}
	if len(keys) > 0 {
		return nil
	}
	return n.sub
}
