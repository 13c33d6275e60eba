// Package servicescmd holds the commands that register services with the agent.
package servicescmd

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/catalog/filter"
	"github.com/sarnmesh/sarn/command/agent/config"
	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	common := func(v verb.Verb) verb.Verb {
		v.Client, v.Server, v.Tenancy = true, true, true
		return v
	}
	return []verb.Verb{
		{Path: "services", Synopsis: "Register services with the agent"},
		common(verb.Verb{
			Path: "services register", Args: "[FILE...]", Synopsis: "Register services", Setup: register,
			Help: "Registers the services defined in configuration files, or the one that the flags describe. A service registered so is " +
				"forgotten when it is deregistered; a definition in the agent's own configuration is not.",
		}),
		common(verb.Verb{
			Path: "services deregister", Args: "[FILE...]", Synopsis: "Deregister services", Setup: deregister,
			Help: "Deregisters the services defined in configuration files, or the one with -id.",
		}),
		common(verb.Verb{
			Path: "services export", Synopsis: "Export a service to peers", Setup: export,
			Help: "Adds consumers to a service in the exported-services configuration entry.",
		}),
		common(verb.Verb{
			Path: "services exported-services", Synopsis: "List the services that are exported, and to whom", Setup: exported,
		}),
	}
}

// FromFiles reads the services of configuration files.
func FromFiles(paths []string) ([]config.Service, error) {
	settings, _, err := config.Load(config.Sources{Dev: true, Paths: paths})
	if err != nil {
		return nil, verb.Errorf("Error: %w", err)
	}
	return settings.Services, nil
}

// Flags that describe one service.
type described struct {
	id, name, address, socket, kind *string
	port                            *int
	tags                            *[]string
	meta, tagged                    *map[string]string
}

func (d described) flags(f *flag.FlagSet) described {
	d.name = f.String("name", "", "`name` of the service")
	d.id = f.String("id", "", "`ID` of the service; default its name")
	d.address = f.String("address", "", "`host` the service is at; default the node's")
	d.port = f.Int("port", 0, "`port` of the service")
	d.socket = f.String("socket", "", "`path` of the unix socket of the service")
	d.kind = f.String("kind", "", "`kind` of the service, for proxies and gateways")
	d.tags = verb.Strings(f, "tag", "`tag` of the service; repeatable")
	d.meta = verb.Pairs(f, "meta", "metadata `key=value` of the service; repeatable")
	d.tagged = verb.Pairs(f, "tagged-address", "address with a tag, as `tag=host:port`; repeatable")
	return d
}

var dotted = regexp.MustCompile(`^[0-9.]+$`)

// service makes a definition of the flags.
func (d described) service() (*definition.Service, error) {
	if _, _, err := net.SplitHostPort(*d.address); err == nil {
		return nil, verb.Errorf("Invalid Service address when using CLI flags. Use -port flag instead: address should not contain port")
	}
	if err := checkIP(*d.address); err != nil {
		return nil, verb.Errorf("Invalid Service address: %w", err)
	}
	svc := &definition.Service{
		Name: *d.name, ID: *d.id, Address: *d.address, Port: *d.port, SocketPath: *d.socket, Kind: *d.kind,
		Tags: *d.tags, Meta: *d.meta,
	}
	for tag, addr := range *d.tagged {
		host, text, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, verb.Errorf("Invalid Tagged address: %w", err)
		}
		port, err := strconv.ParseUint(text, 10, 16)
		if err == nil {
			err = checkIP(host)
		}
		if err != nil {
			return nil, verb.Errorf("Invalid Tagged address: %w", err)
		}
		if svc.TaggedAddresses == nil {
			svc.TaggedAddresses = map[string]catalog.ServiceAddress{}
		}
		svc.TaggedAddresses[tag] = catalog.ServiceAddress{Address: host, Port: int(port)}
	}
	return svc, nil
}

// checkIP refuses what is meant as an IPv4 address and is none.
func checkIP(host string) error {
	if dotted.MatchString(host) {
		if _, err := netip.ParseAddr(host); err != nil {
			return fmt.Errorf("%q is not an IP address", host)
		}
	}
	return nil
}

func register(f *flag.FlagSet) func(*verb.Call) error {
	d := described{}.flags(f)
	return func(c *verb.Call) error {
		byFlags := *d.name != "" || *d.id != ""
		switch {
		case len(c.Args) == 0 && !byFlags:
			return verb.Errorf("Service registration requires at least one argument or flags.")
		case len(c.Args) > 0 && byFlags:
			return verb.Errorf("Service registration requires arguments or -id, not both.")
		}
		var all []*definition.Service
		if byFlags {
			svc, err := d.service()
			if err != nil {
				return err
			}
			all = []*definition.Service{svc}
		} else {
			blocks, err := FromFiles(c.Args)
			if err != nil {
				return err
			}
			for _, b := range blocks {
				all = append(all, b.Service)
			}
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		for _, svc := range all {
			body, err := Request(svc)
			if err == nil {
				_, err = client.Raw().Write("/v1/agent/service/register", body, nil, c.Write())
			}
			if err != nil {
				return verb.Errorf("Error registering service %q: %w", svc.Name, err)
			}
			c.Printf("Registered service: %s\n", svc.Name)
		}
		return nil
	}
}

// Request makes the body of a registration. The client library has no fields for some of what a check can say, so the
// definition is sent itself; only what a nested check is called differs over HTTP.
func Request(svc *definition.Service) (map[string]any, error) {
	data, err := json.Marshal(svc)
	if err != nil {
		return nil, err
	}
	var body map[string]any
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := dec.Decode(&body); err != nil {
		return nil, err
	}
	rename(body)
	return body, nil
}

// rename gives the IDs of nested checks the name the endpoint wants, and leaves out what is unset.
func rename(body map[string]any) {
	checks, _ := body["Checks"].([]any)
	for _, c := range append(checks, body["Check"]) {
		check, _ := c.(map[string]any)
		if id, ok := check["ID"]; ok {
			check["CheckID"] = id
			delete(check, "ID")
		}
		if check["H2PING"] != nil && check["H2PingUseTLS"] == nil {
			check["H2PingUseTLS"] = false // unset would mean true
		}
	}
	maps.DeleteFunc(body, func(_ string, v any) bool { return v == nil || v == "" })
	if connect, ok := body["Connect"].(map[string]any); ok {
		if sidecar, ok := connect["SidecarService"].(map[string]any); ok {
			rename(sidecar)
		} else {
			delete(connect, "SidecarService")
		}
	}
}

func deregister(f *flag.FlagSet) func(*verb.Call) error {
	id := f.String("id", "", "`ID` of the service")
	return func(c *verb.Call) error {
		switch {
		case len(c.Args) == 0 && *id == "":
			return verb.Errorf("Service deregistration requires at least one argument or -id.")
		case len(c.Args) > 0 && *id != "":
			return verb.Errorf("Service deregistration requires arguments or -id, not both.")
		}
		ids := []string{*id}
		if *id == "" {
			blocks, err := FromFiles(c.Args)
			if err != nil {
				return err
			}
			ids = nil
			for _, b := range blocks {
				ids = append(ids, b.ServiceID())
			}
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		for _, id := range ids {
			if err := client.Agent().ServiceDeregister(id); err != nil {
				return verb.Errorf("Error deregistering service %q: %w", id, err)
			}
			c.Printf("Deregistered service: %s\n", id)
		}
		return nil
	}
}

func export(f *flag.FlagSet) func(*verb.Call) error {
	name := f.String("name", "", "`name` of the service; required")
	peers := f.String("consumer-peers", "", "comma-separated `names` of the peers to export to")
	partitions := f.String("consumer-partitions", "", "comma-separated `names` of admin partitions; passed on")
	return func(c *verb.Call) error {
		switch {
		case *name == "":
			return verb.Errorf("Missing the required -name flag")
		case *peers == "" && *partitions == "":
			return verb.Errorf("Missing the required -consumer-peers or -consumer-partitions flag")
		}
		toPeers, err := split("peer", *peers)
		if err != nil {
			return err
		}
		toPartitions, err := split("partition", *partitions)
		if err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		entries := client.ConfigEntries()
		conf := &api.ExportedServicesConfigEntry{Name: "default"}
		found, _, err := entries.Get(api.ExportedServices, "default", c.Query())
		if status := (api.StatusError{}); err != nil && (!errors.As(err, &status) || status.Code != 404) {
			return verb.Errorf("Error reading config entry %s/%s: %w", api.ExportedServices, "default", err)
		}
		if old, ok := found.(*api.ExportedServicesConfigEntry); ok && old != nil {
			conf = old
		}
		merge(conf, *name, toPeers, toPartitions)
		switch ok, _, err := entries.CAS(conf, conf.GetModifyIndex(), c.Write()); {
		case err != nil:
			return verb.Errorf("Error writing config entry %s/%s: %w", api.ExportedServices, "default", err)
		case !ok:
			return verb.Errorf("Config entry was changed during update: %s/%s", api.ExportedServices, "default")
		}
		c.Printf("Successfully exported service %q to %s\n", *name, consumers(*peers, *partitions))
		return nil
	}
}

// consumers tells whom a service was exported to.
func consumers(peers, partitions string) string {
	var parts []string
	if peers != "" {
		parts = append(parts, fmt.Sprintf("cluster peers %q", peers))
	}
	if partitions != "" {
		parts = append(parts, fmt.Sprintf("partitions %q", partitions))
	}
	return strings.Join(parts, " and to ")
}

// split reads a comma-separated list of names.
func split(what, s string) ([]string, error) {
	if s == "" {
		return nil, nil
	}
	list := strings.Split(s, ",")
	for i, n := range list {
		if list[i] = strings.TrimSpace(n); list[i] == "" {
			return nil, verb.Errorf("Invalid %s %q", what, list[i])
		}
	}
	return list, nil
}

// merge adds consumers to a service of the entry, each once.
func merge(conf *api.ExportedServicesConfigEntry, name string, peers, partitions []string) {
	i := slices.IndexFunc(conf.Services, func(s api.ExportedService) bool { return s.Name == name })
	if i < 0 {
		conf.Services = append(conf.Services, api.ExportedService{Name: name})
		i = len(conf.Services) - 1
	}
	svc := &conf.Services[i]
	for _, p := range peers {
		if !slices.ContainsFunc(svc.Consumers, func(c api.ServiceConsumer) bool { return c.Peer == p }) {
			svc.Consumers = append(svc.Consumers, api.ServiceConsumer{Peer: p})
		}
	}
	for _, p := range partitions {
		if !slices.ContainsFunc(svc.Consumers, func(c api.ServiceConsumer) bool { return c.Partition == p }) {
			svc.Consumers = append(svc.Consumers, api.ServiceConsumer{Partition: p})
		}
	}
}

func exported(f *flag.FlagSet) func(*verb.Call) error {
	format := f.String("format", "pretty", "`format` of the output: pretty or json")
	filtered := f.String("filter", "", "`expression` to choose services by, such as Service == \"web\"")
	return func(c *verb.Call) error {
		if *format != "pretty" && *format != "json" {
			return verb.Errorf("Invalid format, valid formats are {pretty|json}")
		}
		keep, err := filter.Compile[api.ResolvedExportedService](*filtered)
		if err != nil {
			return verb.Errorf("Error reading exported services: %w", err)
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		all, _, err := client.ExportedServices(c.Query())
		if err != nil {
			return verb.Errorf("Error reading exported services: %w", err)
		}
		all = slices.DeleteFunc(all, func(s api.ResolvedExportedService) bool { return !keep.Match(s) })
		if *format == "json" {
			return c.PrintJSON(all)
		}
		if len(all) == 0 {
			c.Printf("No exported services found\n")
			return nil
		}
		rows := [][]string{{"Service", "Consumer Peers"}}
		for _, s := range all {
			rows = append(rows, []string{s.Service, strings.Join(s.Consumers.Peers, ", ")})
		}
		c.Printf("%s", verb.Table(rows))
		return nil
	}
}
