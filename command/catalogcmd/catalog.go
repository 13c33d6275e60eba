// Package catalogcmd holds the commands that read the catalog.
package catalogcmd

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{
		{Path: "catalog", Synopsis: "Read the catalog of nodes and services"},
		{
			Path: "catalog datacenters", Synopsis: "List datacenters", Client: true, Server: true, Formats: true, Setup: datacenters,
			Help: "Prints the datacenters the agent knows, nearest first.",
		},
		{
			Path: "catalog nodes", Synopsis: "List nodes", Client: true, Server: true, Formats: true, Setup: nodes,
			Help: "Prints the nodes of the catalog, or those that run a service.",
		},
		{
			Path: "catalog services", Synopsis: "List services", Client: true, Server: true, Tenancy: true, Formats: true, Setup: services,
			Help: "Prints the names of the services in the catalog, or of those on one node.",
		},
	}
}

func datacenters(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		if err := c.NoArgs(); err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		dcs, err := client.Catalog().Datacenters()
		if err != nil {
			return verb.Errorf("Error listing datacenters: %w", err)
		}
		if c.WantsJSON() {
			return c.PrintJSON(dcs)
		}
		for _, dc := range dcs {
			c.Println(dc)
		}
		return nil
	}
}

func nodes(f *flag.FlagSet) func(*verb.Call) error {
	detailed := f.Bool("detailed", false, "print whole IDs, tagged addresses and metadata too")
	near := f.String("near", "", "`node` to sort by round-trip time from; _agent is the agent's")
	meta := verb.Pairs(f, "node-meta", "metadata `key=value` that nodes must have; repeatable")
	service := f.String("service", "", "`name` of a service that nodes must run")
	filter := f.String("filter", "", "`expression` that nodes must match")
	f.String("partition", "", "`name` of an admin partition; accepted, without effect here")
	return func(c *verb.Call) error {
		if err := c.NoArgs(); err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		q := c.Query()
		q.Near, q.NodeMeta, q.Filter = *near, *meta, *filter
		list, err := find(client, q, *service)
		if err != nil {
			return verb.Errorf("Error listing nodes: %w", err)
		}
		if len(list) == 0 {
			c.Warnf("No nodes match the given query - try expanding your search.")
			return nil
		}
		if *near == "" {
			slices.SortFunc(list, func(a, b *api.Node) int { return cmp.Compare(a.Node, b.Node) })
		}
		if c.WantsJSON() {
			return c.PrintJSON(list)
		}
		rows := [][]string{{"Node", "ID", "Address", "DC"}}
		if *detailed {
			rows[0] = append(rows[0], "TaggedAddresses", "Meta")
		}
		for _, n := range list {
			row := []string{n.Node, n.ID, n.Address, n.Datacenter}
			if *detailed {
				row = append(row, verb.JoinPairs(n.TaggedAddresses, ", "), verb.JoinPairs(n.Meta, ", "))
			} else {
				row[1] = row[1][:min(8, len(row[1]))]
			}
			rows = append(rows, row)
		}
		c.Printf("%s", verb.Table(rows))
		return nil
	}
}

// find lists all nodes, or those that run a service, each once.
func find(client *api.Client, q *api.QueryOptions, service string) ([]*api.Node, error) {
	if service == "" {
		list, _, err := client.Catalog().Nodes(q)
		return list, err
	}
	instances, _, err := client.Catalog().Service(service, "", q)
	if err != nil {
		return nil, err
	}
	var out []*api.Node
	seen := map[string]bool{}
	for _, i := range instances {
		if !seen[i.Node] {
			seen[i.Node] = true
			out = append(out, &api.Node{
				ID: i.ID, Node: i.Node, Address: i.Address, Datacenter: i.Datacenter,
				TaggedAddresses: i.TaggedAddresses, Meta: i.NodeMeta,
			})
		}
	}
	return out, nil
}

func services(f *flag.FlagSet) func(*verb.Call) error {
	node := f.String("node", "", "`name` or ID of the node to list")
	meta := verb.Pairs(f, "node-meta", "metadata `key=value` that nodes must have; repeatable")
	tags := f.Bool("tags", false, "print the tags of each service too")
	return func(c *verb.Call) error {
		if err := c.NoArgs(); err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		q := c.Query()
		q.NodeMeta = *meta
		found := map[string][]string{}
		if *node != "" {
			n, _, err := client.Catalog().Node(*node, q)
			if err != nil {
				return verb.Errorf("Error listing services for node: %w", err)
			}
			if n != nil {
				for _, s := range n.Services {
					found[s.Service] = append(found[s.Service], s.Tags...)
				}
			}
		} else if found, _, err = client.Catalog().Services(q); err != nil {
			return verb.Errorf("Error listing services: %w", err)
		}
		if len(found) == 0 {
			c.Warnf("No services match the given query - try expanding your search.")
			return nil
		}
		if c.WantsJSON() {
			return c.PrintJSON(found)
		}
		w := tabwriter.NewWriter(c.Out, 0, 2, 6, ' ', 0)
		for _, name := range slices.Sorted(maps.Keys(found)) {
			if *tags {
				fmt.Fprintf(w, "%s\t%s\n", name, strings.Join(slices.Compact(slices.Sorted(slices.Values(found[name]))), ","))
			} else {
				fmt.Fprintln(w, name)
			}
		}
		return w.Flush()
	}
}
