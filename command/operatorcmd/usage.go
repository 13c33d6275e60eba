package operatorcmd

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

// meshKinds are the kinds of instances in the table of the mesh, in its order.
var meshKinds = []string{"api-gateway", "connect-native", "connect-proxy", "ingress-gateway", "mesh-gateway", "terminating-gateway"}

func usageInstances(f *flag.FlagSet) func(*verb.Call) error {
	billable := f.Bool("billable", false, "print ordinary services and nodes only")
	connect := f.Bool("connect", false, "print instances of the mesh only")
	all := f.Bool("all-datacenters", false, "count in all datacenters that can be reached")
	return func(c *verb.Call) error {
		if len(c.Args) > 0 {
			return verb.Errorf("Too many arguments (expected 0, got %d)", len(c.Args))
		}
		if *billable && *connect {
			return verb.Errorf("Cannot specify both -billable and -connect flags")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		query := c.Query()
		query.Global = *all
		reply, _, err := client.Operator().Usage(query)
		if err != nil {
			return verb.Errorf("Error fetching usage information: %w", err)
		}
		if c.WantsJSON() {
			return c.PrintJSON(reply.Usage)
		}
		dcs := slices.Sorted(maps.Keys(reply.Usage))
		if !*connect {
			total := 0
			for _, dc := range dcs {
				total += reply.Usage[dc].BillableServiceInstances
			}
			c.Printf("Billable Service Instances Total: %d\n", total)
			for _, dc := range dcs {
				c.Printf("%s Billable Service Instances: %d\n", dc, reply.Usage[dc].BillableServiceInstances)
			}
			c.Printf("\nBillable Services\n%s\nNodes\n%s", verb.Table(billableTable(reply.Usage, dcs, *all)), verb.Table(nodesTable(reply.Usage, dcs)))
		}
		if !*billable {
			if !*connect {
				c.Println("")
			}
			c.Printf("Connect Services\n%s", verb.Table(meshTable(reply.Usage, dcs, *all)))
		}
		return nil
	}
}

// billableTable counts services and their ordinary instances; by datacenter and altogether when all are asked.
func billableTable(usage map[string]api.ServiceUsage, dcs []string, all bool) [][]string {
	rows, services, instances := [][]string{}, 0, 0
	for _, dc := range dcs {
		u := usage[dc]
		services, instances = services+u.Services, instances+u.BillableServiceInstances
		rows = append(rows, []string{dc, strconv.Itoa(u.Services), strconv.Itoa(u.BillableServiceInstances)})
	}
	rows = append(rows, []string{"Total", strconv.Itoa(services), strconv.Itoa(instances)})
	return headed([]string{"Datacenter", "Services", "Service instances"}, rows, all)
}

func nodesTable(usage map[string]api.ServiceUsage, dcs []string) [][]string {
	rows, total := [][]string{{"Datacenter", "Count"}}, 0
	for _, dc := range dcs {
		total += usage[dc].Nodes
		rows = append(rows, []string{dc, strconv.Itoa(usage[dc].Nodes)})
	}
	return append(rows, []string{"Total", strconv.Itoa(total)})
}

func meshTable(usage map[string]api.ServiceUsage, dcs []string, all bool) [][]string {
	rows, total := [][]string{}, 0
	for _, dc := range dcs {
		for _, kind := range meshKinds {
			n := usage[dc].ConnectServiceInstances[kind]
			total += n
			rows = append(rows, []string{dc, kind, strconv.Itoa(n)})
		}
	}
	if all {
		rows = append(rows, []string{"Total", "", fmt.Sprint(total)})
	}
	return headed([]string{"Datacenter", "Type", "Service instances"}, rows, all)
}

// headed puts the header above rows, which begin with a datacenter; with only one that column and the total are left out.
func headed(header []string, rows [][]string, all bool) [][]string {
	table := append([][]string{header}, rows...)
	if all {
		return table
	}
	out := [][]string{}
	for _, row := range table {
		if row[0] != "Total" {
			out = append(out, row[1:])
		}
	}
	return out
}
