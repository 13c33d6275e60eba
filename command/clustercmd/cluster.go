// Package clustercmd holds the commands about the agent and its cluster that belong to no family.
package clustercmd

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"flag"
	"fmt"
	"maps"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	return []verb.Verb{
		{
			Path: "event", Args: "[PAYLOAD]", Synopsis: "Fire a user event", Client: true, Formats: true, Setup: event,
			Help: "Sends an event to every node, or to those the filters match.",
		},
		{
			Path: "force-leave", Args: "NODE", Synopsis: "Take a failed member out of the cluster", Client: true, Setup: forceLeave,
			Help: "Moves a failed member to the state left, so that it is not waited for any more. A member that is alive rejoins.",
		},
		{Path: "info", Synopsis: "Print figures about the agent", Client: true, Formats: true, Setup: info},
		{
			Path: "join", Args: "ADDRESS...", Synopsis: "Join the agent to a cluster", Client: true, Setup: join,
			Help: "Tells the agent to join the cluster that members at the addresses belong to.",
		},
		{
			Path: "keygen", Synopsis: "Make a gossip encryption key", Setup: keygen,
			Help: "Prints 32 random bytes in base64, for the key encrypt of the configuration.",
		},
		{
			Path: "keyring", Synopsis: "Look after the gossip encryption keys", Client: true, Formats: true, Setup: keyring,
			Help: "Lists, adds, changes to and removes gossip encryption keys on all members at once. One action at a time.",
		},
		{
			Path: "leave", Synopsis: "Leave the cluster and stop the agent", Client: true, Setup: leave,
			Help: "Makes the agent leave the cluster gracefully and stop.",
		},
		{
			Path: "maint", Synopsis: "Switch maintenance of the node or a service", Client: true, Formats: true, Setup: maint,
			Help: "Takes the node, or one service, out of discovery and back. Without flags, lists what is in maintenance.",
		},
		{Path: "members", Synopsis: "List the members of the cluster", Client: true, Formats: true, Setup: members},
		{
			Path: "monitor", Synopsis: "Stream the agent's log", Client: true, Setup: monitor,
			Help: "Prints the log lines of the agent as they come, at any level, until interrupted.",
		},
		{
			Path: "reload", Synopsis: "Make the agent read its configuration again", Client: true, Setup: reload,
			Help: "Makes the agent load its configuration files again and apply what can change while it runs.",
		},
		{
			Path: "rtt", Args: "NODE1 [NODE2]", Synopsis: "Estimate the round-trip time between nodes", Client: true, Setup: rtt,
			Help: "Estimates the round-trip time between two nodes, or between a node and the agent's, from network coordinates.",
		},
	}
}

func event(f *flag.FlagSet) func(*verb.Call) error {
	name := f.String("name", "", "`name` of the event; required")
	node := f.String("node", "", "`regexp` of the names of nodes to send to")
	service := f.String("service", "", "`regexp` of the names of services whose nodes to send to")
	tag := f.String("tag", "", "`regexp` of a tag the service must have")
	return func(c *verb.Call) error {
		if *name == "" {
			return verb.Usagef("Event name must be specified")
		}
		for _, r := range []struct{ what, text string }{{"node", *node}, {"service", *service}, {"tag", *tag}} {
			if _, err := regexp.Compile(r.text); err != nil {
				return verb.Errorf("Failed to compile %s filter regexp: %w", r.what, err)
			}
		}
		if *tag != "" && *service == "" {
			return verb.Errorf("Cannot provide tag filter without service filter.")
		}
		var payload []byte
		switch len(c.Args) {
		case 0:
		case 1:
			payload = []byte(c.Args[0])
		default:
			return verb.Usagef("Too many command line arguments.")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		id, _, err := client.Event().Fire(&api.UserEvent{
			Name: *name, Payload: payload, NodeFilter: *node, ServiceFilter: *service, TagFilter: *tag,
		}, c.Write())
		if err != nil {
			return verb.Errorf("Error firing event: %w", err)
		}
		if c.WantsJSON() {
			return c.PrintJSON(map[string]string{"ID": id})
		}
		c.Printf("Event ID: %s\n", id)
		return nil
	}
}

func forceLeave(f *flag.FlagSet) func(*verb.Call) error {
	prune := f.Bool("prune", false, "forget the member altogether")
	wan := f.Bool("wan", false, "take a server out of the WAN pool")
	return func(c *verb.Call) error {
		if len(c.Args) != 1 {
			return verb.Usagef("A single node name must be specified to force leave.")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		if err := client.Agent().ForceLeaveOptions(c.Args[0], api.ForceLeaveOpts{Prune: *prune, WAN: *wan}, c.Query()); err != nil {
			return verb.Errorf("Error force leaving: %w", err)
		}
		return nil
	}
}

func info(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		self, err := client.Agent().Self()
		if err != nil {
			return verb.Errorf("Error querying agent: %w", err)
		}
		stats, ok := self["Stats"]
		if !ok {
			return verb.Errorf("Agent response did not contain 'Stats' key: %v", slices.Sorted(maps.Keys(self)))
		}
		if c.WantsJSON() {
			return c.PrintJSON(stats)
		}
		for _, section := range slices.Sorted(maps.Keys(stats)) {
			values, ok := stats[section].(map[string]any)
			if !ok {
				continue
			}
			c.Printf("%s:\n", section)
			for _, key := range slices.Sorted(maps.Keys(values)) {
				c.Printf("\t%s = %v\n", key, values[key])
			}
		}
		return nil
	}
}

func join(f *flag.FlagSet) func(*verb.Call) error {
	wan := f.Bool("wan", false, "join a server to the WAN pool")
	return func(c *verb.Call) error {
		if len(c.Args) == 0 {
			return verb.Usagef("At least one address to join must be specified.")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		joined := 0
		for _, addr := range c.Args {
			done := c.Waiting("Joining " + addr)
			err := client.Agent().Join(addr, *wan)
			done()
			if err != nil {
				c.Warnf("Error joining address '%s': %v", addr, strings.TrimSpace(err.Error()))
				continue
			}
			joined++
		}
		if joined == 0 {
			return verb.Errorf("Failed to join any nodes.")
		}
		c.Printf("Successfully joined cluster by contacting %d nodes.\n", joined)
		return nil
	}
}

func keygen(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		key := make([]byte, 32)
		if _, err := rand.Read(key); err != nil {
			return verb.Errorf("Error reading random data: %w", err)
		}
		c.Println(base64.StdEncoding.EncodeToString(key))
		return nil
	}
}

func leave(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		if len(c.Args) > 0 {
			return verb.Usagef("Error found unexpected args: %v", c.Args)
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		if err := client.Agent().Leave(); err != nil {
			return verb.Errorf("Error leaving: %w", err)
		}
		c.Println("Graceful leave complete")
		return nil
	}
}

func reload(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		if err := client.Agent().Reload(); err != nil {
			return verb.Errorf("Error reloading: %w", err)
		}
		c.Println("Configuration reload triggered")
		return nil
	}
}

// IDs of the checks that maintenance is made of.
const (
	nodeMaintenance    = "_node_maintenance"
	serviceMaintenance = "_service_maintenance:"
)

func maint(f *flag.FlagSet) func(*verb.Call) error {
	enable := f.Bool("enable", false, "begin maintenance")
	disable := f.Bool("disable", false, "end maintenance")
	reason := f.String("reason", "", "`text` that tells others why")
	service := f.String("service", "", "`ID` of the service; default the node")
	return func(c *verb.Call) error {
		switch {
		case len(c.Args) > 0:
			return verb.Usagef("Error found unexpected args: %v", c.Args)
		case *enable && *disable:
			return verb.Errorf("Only one of -enable or -disable may be provided")
		case !*enable && *reason != "":
			return verb.Errorf("Reason may only be provided with -enable")
		case !*enable && !*disable && *service != "":
			return verb.Errorf("Service requires either -enable or -disable")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		agent := client.Agent()
		if !*enable && !*disable {
			return inMaintenance(c, agent)
		}
		doing, done := "disabling", "disabled"
		if *enable {
			doing, done = "enabling", "enabled"
		}
		if *service != "" {
			if *enable {
				err = agent.EnableServiceMaintenance(*service, *reason)
			} else {
				err = agent.DisableServiceMaintenance(*service)
			}
			if err != nil {
				return verb.Errorf("Error %s service maintenance: %w", doing, err)
			}
			c.Printf("Service maintenance is now %s for %q\n", done, *service)
			return nil
		}
		if *enable {
			err = agent.EnableNodeMaintenance(*reason)
		} else {
			err = agent.DisableNodeMaintenance()
		}
		if err != nil {
			return verb.Errorf("Error %s node maintenance: %w", doing, err)
		}
		c.Printf("Node maintenance is now %s\n", done)
		return nil
	}
}

// inMaintenance lists what is in maintenance on the agent.
func inMaintenance(c *verb.Call, agent *api.Agent) error {
	node, err := agent.NodeName()
	if err != nil {
		return verb.Errorf("Error querying Sarn agent: %w", err)
	}
	checks, err := agent.Checks()
	if err != nil {
		return verb.Errorf("Error getting checks: %w", err)
	}
	if c.WantsJSON() {
		maps.DeleteFunc(checks, func(id string, _ *api.AgentCheck) bool {
			return id != nodeMaintenance && !strings.HasPrefix(id, serviceMaintenance)
		})
		return c.PrintJSON(checks)
	}
	for _, id := range slices.Sorted(maps.Keys(checks)) {
		switch check := checks[id]; {
		case check.CheckID == nodeMaintenance:
			c.Printf("Node:\n  Name:   %s\n  Reason: %s\n\n", node, check.Notes)
		case strings.HasPrefix(check.CheckID, serviceMaintenance):
			c.Printf("Service:\n  ID:     %s\n  Reason: %s\n\n", check.ServiceID, check.Notes)
		}
	}
	return nil
}

// memberStatus names the states of a member.
var memberStatus = map[int]string{0: "none", 1: "alive", 2: "leaving", 3: "left", 4: "failed"}

func members(f *flag.FlagSet) func(*verb.Call) error {
	detailed := f.Bool("detailed", false, "print all tags of each member")
	wan := f.Bool("wan", false, "list the servers of all datacenters")
	status := f.String("status", ".*", "`regexp` of the states to list")
	segment := f.String("segment", api.AllSegments, "`name` of a network segment")
	filter := f.String("filter", "", "`expression` that members must match")
	f.String("partition", "", "`name` of an admin partition; accepted, without effect here")
	return func(c *verb.Call) error {
		states, err := regexp.Compile(*status)
		if err != nil {
			return verb.Errorf("Failed to compile status regexp: %w", err)
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		if *wan && *segment == api.AllSegments {
			*segment = "" // there are none over the WAN
		}
		list, err := client.Agent().MembersOpts(api.MembersOpts{WAN: *wan, Segment: *segment, Filter: *filter})
		if err != nil {
			return verb.Errorf("Error retrieving members: %w", err)
		}
		if len(list) == 0 && *filter == "" && c.Denies() { // every agent has a member: itself
			return verb.Exit(2, verb.Errorf("No member may be seen with this token. Give one that may read nodes: -token, -token-file, SARN_HTTP_TOKEN, SARN_HTTP_TOKEN_FILE"))
		}
		list = slices.DeleteFunc(list, func(m *api.AgentMember) bool { return !states.MatchString(memberStatus[m.Status]) })
		if len(list) == 0 {
			return verb.Exit(2, nil)
		}
		for _, m := range list {
			m.Tags["segment"] = cmp.Or(m.Tags["segment"], "<default>")
			if m.Tags["role"] == "consul" {
				m.Tags["segment"] = "<all>"
			}
			m.Tags["ap"] = cmp.Or(m.Tags["ap"], "default")
		}
		slices.SortFunc(list, func(a, b *api.AgentMember) int {
			return cmp.Or(
				rank(a)-rank(b),
				cmp.Compare(a.Tags["segment"], b.Tags["segment"]),
				cmp.Compare(a.Name, b.Name),
			)
		})
		if c.WantsJSON() {
			return c.PrintJSON(list)
		}
		rows := [][]string{{"Node", "Address", "Status", "Type", "Build", "Protocol", "DC", "Partition", "Segment"}}
		if *detailed {
			rows = [][]string{{"Node", "Address", "Status", "Tags"}}
		}
		for _, m := range list {
			addr := net.JoinHostPort(m.Addr, strconv.Itoa(int(m.Port)))
			row := []string{m.Name, addr, memberStatus[m.Status]}
			if *detailed {
				rows = append(rows, append(row, verb.JoinPairs(m.Tags, ",")))
				continue
			}
			kind, build := "unknown", m.Tags["build"]
			switch m.Tags["role"] {
			case "consul":
				kind = "server"
			case "node":
				kind = "client"
			}
			build, _, _ = strings.Cut(build, ":")
			rows = append(rows, append(row, kind, build, m.Tags["vsn"], m.Tags["dc"], m.Tags["ap"], m.Tags["segment"]))
		}
		// Colours come last: they have no width.
		table := strings.Split(verb.Table(rows), "\n")
		c.Println(table[0])
		for i, m := range list {
			state, colour := memberStatus[m.Status], verb.Bad
			if state == "alive" {
				colour = verb.Good
			}
			if state == "alive" || state == "failed" {
				head, rest := table[i+1][:len(m.Name)], table[i+1][len(m.Name):]
				table[i+1] = head + strings.Replace(rest, "  "+state+"  ", "  "+c.Paint(colour, state)+"  ", 1)
			}
			c.Println(table[i+1])
		}
		return nil
	}
}

// rank puts servers before clients.
func rank(m *api.AgentMember) int {
	if m.Tags["role"] == "consul" {
		return 0
	}
	return 1
}

func monitor(f *flag.FlagSet) func(*verb.Call) error {
	level := f.String("log-level", "INFO", "`level` from which lines are printed")
	asJSON := f.Bool("log-json", false, "print lines as JSON")
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		ctx, cancel := c.Interruptible()
		defer cancel()
		stop := make(chan struct{})
		start := client.Agent().Monitor
		if *asJSON {
			start = client.Agent().MonitorJSON
		}
		lines, err := start(*level, stop, c.Query().WithContext(ctx))
		if err != nil {
			return verb.Errorf("Error starting monitor: %w", err)
		}
		defer close(stop)
		for {
			select {
			case <-ctx.Done():
				return nil
			case line, ok := <-lines:
				if ctx.Err() != nil {
					return nil
				}
				if !ok || line == "" { // the client tells the end of the stream so
					return verb.Errorf("Remote side ended the monitor! This usually means that the remote side has exited or crashed.")
				}
				c.Println(line)
			}
		}
	}
}

func rtt(f *flag.FlagSet) func(*verb.Call) error {
	wan := f.Bool("wan", false, "estimate between servers, named NODE.DATACENTER, over the WAN")
	return func(c *verb.Call) error {
		if n := len(c.Args); n < 1 || n > 2 {
			return verb.Usagef("One or two node names must be specified")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		estimate := lanTime
		if *wan {
			estimate = wanTime
		}
		line, err := estimate(c, client)
		if err != nil {
			return err
		}
		c.Println(line)
		return nil
	}
}

// lanTime estimates between nodes of the agent's datacenter.
func lanTime(c *verb.Call, client *api.Client) (string, error) {
	second := ""
	if len(c.Args) == 2 {
		second = c.Args[1]
	} else {
		name, err := client.Agent().NodeName()
		if err != nil {
			return "", verb.Errorf("Unable to look up agent info: %w", err)
		}
		second = name
	}
	entries, _, err := client.Coordinate().Nodes(c.Query())
	if err != nil {
		return "", verb.Errorf("Error getting coordinates: %w", err)
	}
	find := func(name string) *api.CoordinateEntry {
		i := slices.IndexFunc(entries, func(e *api.CoordinateEntry) bool { return strings.EqualFold(e.Node, name) })
		if i < 0 {
			return nil
		}
		return entries[i]
	}
	a, b := find(c.Args[0]), find(second)
	switch {
	case a == nil:
		return "", verb.Errorf("Could not find a coordinate for node %q", c.Args[0])
	case b == nil:
		return "", verb.Errorf("Could not find a coordinate for node %q", second)
	}
	return timeLine(c.Args[0], second, a, b, "LAN"), nil
}

// wanTime estimates between servers of any datacenters.
func wanTime(c *verb.Call, client *api.Client) (string, error) {
	split := func(s string) (node, dc string, err error) {
		i := strings.LastIndexByte(s, '.')
		if i < 0 {
			return "", "", verb.Errorf("Node names must be specified as <node name>.<datacenter> with -wan")
		}
		return s[:i], s[i+1:], nil
	}
	var names [2]string
	names[0] = c.Args[0]
	if len(c.Args) == 2 {
		names[1] = c.Args[1]
	} else {
		self, err := client.Agent().Self()
		if err != nil {
			return "", verb.Errorf("Unable to look up agent info: %w", err)
		}
		names[1] = fmt.Sprintf("%v.%v", self["Config"]["NodeName"], self["Config"]["Datacenter"])
	}
	datacenters, err := client.Coordinate().Datacenters()
	var found [2]*api.CoordinateEntry
	for i, name := range names {
		node, dc, bad := split(name)
		if bad != nil {
			return "", bad
		}
		if err != nil {
			return "", verb.Errorf("Error getting coordinates: %w", err)
		}
		for _, d := range datacenters {
			for _, e := range d.Coordinates {
				if d.Datacenter == dc && strings.EqualFold(e.Node, node) {
					found[i] = &e
				}
			}
		}
		if found[i] == nil {
			return "", verb.Errorf("Could not find a coordinate for node %q in datacenter %q", node, dc)
		}
	}
	return timeLine(names[0], names[1], found[0], found[1], "WAN"), nil
}

func timeLine(a, b string, from, to *api.CoordinateEntry, pool string) string {
	d := from.Coord.DistanceTo(to.Coord)
	return fmt.Sprintf("Estimated %s <-> %s rtt: %.3f ms (using %s coordinates)", a, b, d.Seconds()*1000, pool)
}
