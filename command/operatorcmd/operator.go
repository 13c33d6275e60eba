// Package operatorcmd holds the commands for those who run the servers.
package operatorcmd

import (
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	common := func(v verb.Verb) verb.Verb {
		v.Client, v.Server = true, true
		return v
	}
	return []verb.Verb{
		{Path: "operator", Synopsis: "Look after the servers"},
		{Path: "operator raft", Synopsis: "Look after the consensus of the servers"},
		common(verb.Verb{Path: "operator raft list-peers", Synopsis: "List the servers of the Raft configuration", Setup: listPeers, Formats: true}),
		common(verb.Verb{
			Path: "operator raft remove-peer", Synopsis: "Take a server out of the Raft configuration", Setup: removePeer,
			Help: "Takes a server that is gone for good out of the Raft configuration. One of -address and -id names it.",
		}),
		common(verb.Verb{
			Path: "operator raft transfer-leader", Synopsis: "Hand leadership to another server", Setup: transferLeader,
			Help: "Makes the leader hand leadership to another server, or to the one with -id.",
		}),
		{Path: "operator autopilot", Synopsis: "Look after the automatic care of the servers"},
		common(verb.Verb{Path: "operator autopilot get-config", Synopsis: "Print the settings of autopilot", Setup: getConfig, Formats: true}),
		common(verb.Verb{
			Path: "operator autopilot set-config", Synopsis: "Change the settings of autopilot", Setup: setConfig,
			Help: "Changes the settings that are given and keeps the others.",
		}),
		common(verb.Verb{Path: "operator autopilot state", Synopsis: "Print what autopilot thinks of the servers", Setup: state}),
		{Path: "operator usage", Synopsis: "Count what is registered"},
		common(verb.Verb{
			Path: "operator usage instances", Synopsis: "Count services, their instances and nodes", Setup: usageInstances, Formats: true,
			Help: "Counts services, their instances, nodes, and the instances of the mesh by kind. Billable is what the product this one " +
				"is compatible with calls ordinary instances, those of the servers left out.",
		}),
	}
}

func listPeers(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		conf, err := client.Operator().RaftGetConfiguration(c.Query())
		if err != nil {
			return verb.Errorf("Error getting peers: %w", err)
		}
		if c.WantsJSON() {
			return c.PrintJSON(conf)
		}
		var leader uint64
		for _, s := range conf.Servers {
			if s.Leader {
				leader = s.LastIndex
			}
		}
		rows := [][]string{{"Node", "ID", "Address", "State", "Voter", "RaftProtocol", "Commit Index", "Trails Leader By"}}
		for _, s := range conf.Servers {
			role, trails := "follower", "-"
			if s.Leader {
				role = "leader"
			} else {
				behind := leader - min(leader, s.LastIndex)
				trails = fmt.Sprintf("%d commits", behind)
				if behind == 1 {
					trails = "1 commit"
				}
			}
			rows = append(rows, []string{
				s.Node, s.ID, s.Address, role, strconv.FormatBool(s.Voter), cmp.Or(s.ProtocolVersion, "<=1"),
				strconv.FormatUint(s.LastIndex, 10), trails,
			})
		}
		c.Printf("%s", verb.Table(rows))
		return nil
	}
}

func removePeer(f *flag.FlagSet) func(*verb.Call) error {
	address := f.String("address", "", "`host:port` of the server")
	id := f.String("id", "", "`ID` of the server")
	return func(c *verb.Call) error {
		switch {
		case *address == "" && *id == "":
			return verb.Errorf("Error removing peer: an address or id is required for the peer to remove")
		case *address != "" && *id != "":
			return verb.Errorf("Error removing peer: cannot give both an address and id")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		if *id != "" {
			if err := client.Operator().RaftRemovePeerByID(*id, c.Write()); err != nil {
				return verb.Errorf("Error removing peer: %w", err)
			}
			c.Printf("Removed peer with id %q\n", *id)
			return nil
		}
		if err := client.Operator().RaftRemovePeerByAddress(*address, c.Write()); err != nil {
			return verb.Errorf("Error removing peer: %w", err)
		}
		c.Printf("Removed peer with address %q\n", *address)
		return nil
	}
}

func transferLeader(f *flag.FlagSet) func(*verb.Call) error {
	id := f.String("id", "", "`ID` of the server to lead")
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		result, err := client.Operator().RaftLeaderTransfer(*id, c.Query())
		switch {
		case err != nil:
			return verb.Errorf("Error transfering leadership: Failed to transfer leadership: %w", err)
		case !result.Success:
			return verb.Errorf("Error transfering leadership: Failed to transfer leadership")
		}
		c.Println("Success")
		return nil
	}
}

func getConfig(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		conf, err := client.Operator().AutopilotGetConfiguration(c.Query())
		if err != nil {
			return verb.Errorf("Error querying Autopilot configuration: %w", err)
		}
		if c.WantsJSON() {
			return c.PrintJSON(conf)
		}
		c.Printf("CleanupDeadServers = %v\n", conf.CleanupDeadServers)
		c.Printf("LastContactThreshold = %v\n", duration(conf.LastContactThreshold))
		c.Printf("MaxTrailingLogs = %v\n", conf.MaxTrailingLogs)
		c.Printf("MinQuorum = %v\n", conf.MinQuorum)
		c.Printf("ServerStabilizationTime = %v\n", duration(conf.ServerStabilizationTime))
		c.Printf("RedundancyZoneTag = %q\n", conf.RedundancyZoneTag)
		c.Printf("DisableUpgradeMigration = %v\n", conf.DisableUpgradeMigration)
		c.Printf("UpgradeVersionTag = %q\n", conf.UpgradeVersionTag)
		return nil
	}
}

func duration(d *api.ReadableDuration) time.Duration {
	if d == nil {
		return 0
	}
	return d.Duration()
}

func setConfig(f *flag.FlagSet) func(*verb.Call) error {
	number := func(s string) (uint64, error) { return strconv.ParseUint(s, 0, 64) }
	text := func(s string) (string, error) { return s, nil }
	cleanup := verb.Opt(f, "cleanup-dead-servers", "remove dead servers when new ones come", strconv.ParseBool)
	trailing := verb.Opt(f, "max-trailing-logs", "`entries` a healthy server may be behind", number)
	quorum := verb.Opt(f, "min-quorum", "least `number` of servers to keep", number)
	contact := verb.Opt(f, "last-contact-threshold", "`time` a healthy server may be out of contact", time.ParseDuration)
	stable := verb.Opt(f, "server-stabilization-time", "`time` a server must be healthy before it votes", time.ParseDuration)
	zone := verb.Opt(f, "redundancy-zone-tag", "`key` of node metadata that says in which zone a server is", text)
	migration := verb.Opt(f, "disable-upgrade-migration", "let servers of all versions vote alike", strconv.ParseBool)
	upgrade := verb.Opt(f, "upgrade-version-tag", "`key` of node metadata that says which version a server is of", text)
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		conf, err := client.Operator().AutopilotGetConfiguration(c.Query())
		if err != nil {
			return verb.Errorf("Error querying Autopilot configuration: %w", err)
		}
		if cleanup.Given {
			conf.CleanupDeadServers = cleanup.Value
		}
		if trailing.Given {
			conf.MaxTrailingLogs = trailing.Value
		}
		if quorum.Given {
			conf.MinQuorum = uint(quorum.Value)
		}
		if contact.Given {
			conf.LastContactThreshold = api.NewReadableDuration(contact.Value)
		}
		if stable.Given {
			conf.ServerStabilizationTime = api.NewReadableDuration(stable.Value)
		}
		if zone.Given {
			conf.RedundancyZoneTag = zone.Value
		}
		if migration.Given {
			conf.DisableUpgradeMigration = migration.Value
		}
		if upgrade.Given {
			conf.UpgradeVersionTag = upgrade.Value
		}
		switch ok, err := client.Operator().AutopilotCASConfiguration(conf, c.Write()); {
		case err != nil:
			return verb.Errorf("Error setting Autopilot configuration: %w", err)
		case !ok:
			return verb.Errorf("Configuration could not be atomically updated, please try again")
		}
		c.Println("Configuration updated!")
		return nil
	}
}

func state(f *flag.FlagSet) func(*verb.Call) error {
	format := f.String("format", "pretty", "`form` of the output: pretty or json")
	return func(c *verb.Call) error {
		if *format != "pretty" && *format != "json" {
			return verb.Errorf("Unknown format: %s", *format)
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		s, err := client.Operator().AutopilotState(c.Query())
		if err != nil {
			return verb.Errorf("Error querying Autopilot state: %w", err)
		}
		if *format == "json" {
			text, err := json.MarshalIndent(s, "", "   ")
			if err != nil {
				return verb.Errorf("Error encoding Autopilot state: %w", err)
			}
			c.Println(string(text))
			return nil
		}
		c.Printf("%s", describe(s))
		return nil
	}
}

// describe lays the state of autopilot out for people.
func describe(s *api.AutopilotState) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Healthy:                      %v\n", s.Healthy)
	fmt.Fprintf(&b, "Failure Tolerance:            %d\n", s.FailureTolerance)
	fmt.Fprintf(&b, "Optimistic Failure Tolerance: %d\n", s.OptimisticFailureTolerance)
	fmt.Fprintf(&b, "Leader:                       %s\n", s.Leader)
	fmt.Fprintln(&b, "Voters:")
	for _, id := range s.Voters {
		fmt.Fprintf(&b, "   %s\n", id)
	}
	if len(s.ReadReplicas) > 0 {
		fmt.Fprintln(&b, "Read Replicas:")
		for _, id := range s.ReadReplicas {
			fmt.Fprintf(&b, "   %s\n", id)
		}
	}
	if len(s.RedundancyZones) > 0 {
		fmt.Fprintln(&b, "Redundancy Zones:")
		for _, name := range slices.Sorted(maps.Keys(s.RedundancyZones)) {
			zone := s.RedundancyZones[name]
			fmt.Fprintf(&b, "   %s\n", name)
			for _, row := range [][2]string{
				{"Servers", strings.Join(zone.Servers, ", ")}, {"Voters", strings.Join(zone.Voters, ", ")},
				{"Failure Tolerance", strconv.Itoa(zone.FailureTolerance)},
			} {
				fmt.Fprintf(&b, "      %-18s %s\n", row[0]+":", row[1])
			}
		}
	}
	if u := s.Upgrade; u != nil {
		fmt.Fprintln(&b, "Upgrade:")
		for _, row := range [][2]string{
			{"Status", string(u.Status)}, {"Target Version", u.TargetVersion},
			{"Target Version Voters", strings.Join(u.TargetVersionVoters, ", ")},
			{"Target Version Non-Voters", strings.Join(u.TargetVersionNonVoters, ", ")},
			{"Target Version Read Replicas", strings.Join(u.TargetVersionReadReplicas, ", ")},
			{"Other Version Voters", strings.Join(u.OtherVersionVoters, ", ")},
			{"Other Version Non-Voters", strings.Join(u.OtherVersionNonVoters, ", ")},
			{"Other Version Read Replicas", strings.Join(u.OtherVersionReadReplicas, ", ")},
		} {
			if row[1] != "" {
				fmt.Fprintf(&b, "   %-29s %s\n", row[0]+":", row[1])
			}
		}
	}
	fmt.Fprintln(&b, "Servers:")
	for _, id := range slices.Sorted(maps.Keys(s.Servers)) {
		srv := s.Servers[id]
		contact := "-"
		if srv.LastContact != nil {
			contact = srv.LastContact.String()
		}
		fmt.Fprintf(&b, "   %s\n", id)
		for _, row := range [][2]string{
			{"Name", srv.Name}, {"Address", srv.Address}, {"Version", srv.Version}, {"Status", string(srv.Status)},
			{"Node Type", string(srv.NodeType)}, {"Node Status", srv.NodeStatus}, {"Healthy", strconv.FormatBool(srv.Healthy)},
			{"Last Contact", contact}, {"Last Term", fmt.Sprint(srv.LastTerm)}, {"Last Index", fmt.Sprint(srv.LastIndex)},
			{"Redundancy Zone", srv.RedundancyZone}, {"Upgrade Version", srv.UpgradeVersion},
		} {
			if row[1] != "" {
				fmt.Fprintf(&b, "      %-16s %s\n", row[0]+":", row[1])
			}
		}
		if len(srv.Meta) > 0 {
			fmt.Fprintln(&b, "      Meta:")
			for _, k := range slices.Sorted(maps.Keys(srv.Meta)) {
				fmt.Fprintf(&b, "         %q: %q\n", k, srv.Meta[k])
			}
		}
	}
	return b.String()
}
