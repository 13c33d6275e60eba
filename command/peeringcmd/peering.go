// Package peeringcmd holds the commands about peerings with other clusters.
package peeringcmd

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

// Verbs are the commands of this package.
func Verbs() []verb.Verb {
	common := func(v verb.Verb) verb.Verb {
		v.Client, v.Tenancy = true, true
		return v
	}
	return []verb.Verb{
		{Path: "peering", Synopsis: "Connect with other clusters"},
		common(verb.Verb{
			Path: "peering generate-token", Synopsis: "Make the token that another cluster begins a peering with", Setup: generate,
			Help: "Makes a token for the cluster that will be known here by -name. Give it to \"peering establish\" over there. " +
				"It works once and is a secret; a new one voids the one before.",
		}),
		common(verb.Verb{
			Path: "peering establish", Synopsis: "Begin a peering with the token of another cluster", Setup: establish,
			Help: "Begins a peering with the cluster that made the token, to be known here by -name.",
		}),
		common(verb.Verb{Path: "peering list", Synopsis: "List peerings", Setup: list}),
		common(verb.Verb{Path: "peering read", Synopsis: "Show a peering", Setup: read}),
		common(verb.Verb{
			Path: "peering exported-services", Synopsis: "List the services exported to a peer", Setup: exported,
			Help: "Lists the services that are exported to the peer.",
		}),
		common(verb.Verb{
			Path: "peering delete", Synopsis: "End a peering", Setup: remove,
			Help: "Ends a peering. What was imported through it is removed in the background.",
		}),
	}
}

// named adds the flag -name; the function it returns gives its value, or an error when it is missing.
func named(f *flag.FlagSet) func() (string, error) {
	name := f.String("name", "", "`name` of the peer, as it is known here")
	return func() (string, error) {
		if *name == "" {
			return "", verb.Errorf("Missing the required -name flag")
		}
		return *name, nil
	}
}

// formatted adds the flag -format; the function it returns reports whether JSON is wanted.
func formatted(f *flag.FlagSet) func() (bool, error) {
	format := f.String("format", "pretty", "`format` of the output: pretty or json")
	return func() (bool, error) {
		if *format != "pretty" && *format != "json" {
			return false, verb.Errorf("Invalid format, valid formats are {json|pretty}")
		}
		return *format == "json", nil
	}
}

// find reads the peering of this name, which must be there.
func find(c *verb.Call, name string) (*api.Peering, error) {
	client, err := c.API()
	if err != nil {
		return nil, err
	}
	p, _, err := client.Peerings().Read(c.Context, name, c.Query())
	if err != nil {
		return nil, verb.Errorf("Error reading peering: %w", err)
	}
	if p == nil {
		return nil, verb.Errorf("No peering with name %s found.", name)
	}
	return p, nil
}

func generate(f *flag.FlagSet) func(*verb.Call) error {
	name, asJSON := named(f), formatted(f)
	meta := verb.Pairs(f, "meta", "metadata `key=value` of the peering; repeatable")
	addresses := f.String("server-external-addresses", "", "comma-separated `addresses` to offer in place of the servers' own")
	return func(c *verb.Call) error {
		peer, err := name()
		if err != nil {
			return err
		}
		wantJSON, err := asJSON()
		if err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		req := api.PeeringGenerateTokenRequest{PeerName: peer, Meta: *meta}
		for a := range strings.SplitSeq(*addresses, ",") {
			if a = strings.TrimSpace(a); a != "" {
				req.ServerExternalAddresses = append(req.ServerExternalAddresses, a)
			}
		}
		resp, _, err := client.Peerings().GenerateToken(c.Context, req, c.Write())
		if err != nil {
			return verb.Errorf("Error generating peering token for %s: %w", peer, err)
		}
		if wantJSON {
			return c.PrintJSON(resp)
		}
		c.Printf("%s\n", resp.PeeringToken)
		return nil
	}
}

func establish(f *flag.FlagSet) func(*verb.Call) error {
	name := named(f)
	token := f.String("peering-token", "", "`token` made by the other cluster")
	meta := verb.Pairs(f, "meta", "metadata `key=value` of the peering; repeatable")
	return func(c *verb.Call) error {
		peer, err := name()
		if err != nil {
			return err
		}
		if *token == "" {
			return verb.Errorf("Missing the required -peering-token flag")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		req := api.PeeringEstablishRequest{PeerName: peer, PeeringToken: *token, Meta: *meta}
		if _, _, err := client.Peerings().Establish(c.Context, req, c.Write()); err != nil {
			return verb.Errorf("Error establishing peering for %s: %w", peer, err)
		}
		c.Printf("Successfully established peering connection with %s\n", peer)
		return nil
	}
}

func list(f *flag.FlagSet) func(*verb.Call) error {
	asJSON := formatted(f)
	return func(c *verb.Call) error {
		wantJSON, err := asJSON()
		if err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		all, _, err := client.Peerings().List(c.Context, c.Query())
		if err != nil {
			return verb.Errorf("Error listing peerings: %w", err)
		}
		slices.SortFunc(all, func(a, b *api.Peering) int { return strings.Compare(a.Name, b.Name) })
		if wantJSON {
			return c.PrintJSON(all)
		}
		if len(all) == 0 {
			c.Printf("There are no peering connections.\n")
			return nil
		}
		rows := [][]string{{"Name", "State", "Imported Svcs", "Exported Svcs", "Meta"}}
		for _, p := range all {
			rows = append(rows, []string{
				p.Name, strings.ToUpper(string(p.State)), fmt.Sprint(len(p.StreamStatus.ImportedServices)),
				fmt.Sprint(len(p.StreamStatus.ExportedServices)), verb.JoinPairs(p.Meta, ","),
			})
		}
		c.Printf("%s", verb.Table(rows))
		return nil
	}
}

func read(f *flag.FlagSet) func(*verb.Call) error {
	name, asJSON := named(f), formatted(f)
	return func(c *verb.Call) error {
		peer, err := name()
		if err != nil {
			return err
		}
		wantJSON, err := asJSON()
		if err != nil {
			return err
		}
		p, err := find(c, peer)
		if err != nil {
			return err
		}
		if wantJSON {
			return c.PrintJSON(p)
		}
		show(c, p)
		return nil
	}
}

func show(c *verb.Call, p *api.Peering) {
	c.Printf("Name:         %s\nID:           %s\n", p.Name, p.ID)
	if p.DeletedAt != nil {
		c.Printf("DeletedAt:    %s\n", p.DeletedAt.Format(time.RFC3339))
	}
	c.Printf("State:        %s\n", p.State)
	if len(p.Meta) > 0 {
		c.Printf("Meta:\n")
		for _, pair := range strings.Split(verb.JoinPairs(p.Meta, "\n"), "\n") {
			c.Printf("    %s\n", pair)
		}
	}
	c.Printf("\nPeer ID:               %s\nPeer Server Name:      %s\nPeer CA Pems:          %d\n", p.PeerID, p.PeerServerName, len(p.PeerCAPems))
	if len(p.PeerServerAddresses) > 0 {
		c.Printf("Peer Server Addresses:\n")
		for _, a := range p.PeerServerAddresses {
			c.Printf("    %s\n", a)
		}
	}
	s := &p.StreamStatus
	c.Printf("\nImported Services: %d\nExported Services: %d\n\n", len(s.ImportedServices), len(s.ExportedServices))
	c.Printf("Last Heartbeat:        %s\nLast Send:             %s\nLast Receive:          %s\n\n", moment(s.LastHeartbeat), moment(s.LastSend), moment(s.LastReceive))
	c.Printf("Create Index: %d\nModify Index: %d\n", p.CreateIndex, p.ModifyIndex)
}

// moment is a time that may not have come yet.
func moment(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339)
}

func exported(f *flag.FlagSet) func(*verb.Call) error {
	name, asJSON := named(f), formatted(f)
	return func(c *verb.Call) error {
		peer, err := name()
		if err != nil {
			return err
		}
		wantJSON, err := asJSON()
		if err != nil {
			return err
		}
		p, err := find(c, peer)
		if err != nil {
			return err
		}
		services := p.StreamStatus.ExportedServices
		slices.Sort(services)
		if wantJSON {
			if services == nil {
				services = []string{}
			}
			return c.PrintJSON(services)
		}
		if len(services) == 0 {
			c.Printf("\n")
			return nil
		}
		rows := [][]string{{"Partition", "Namespace", "Service Name"}}
		for _, s := range services {
			rows = append(rows, []string{"default", "default", s})
		}
		c.Printf("%s", verb.Table(rows))
		return nil
	}
}

func remove(f *flag.FlagSet) func(*verb.Call) error {
	name := named(f)
	return func(c *verb.Call) error {
		peer, err := name()
		if err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		if _, err := client.Peerings().Delete(c.Context, peer, c.Write()); err != nil {
			return verb.Errorf("Error deleting peering for %s: %w", peer, err)
		}
		c.Printf("Successfully submitted peering connection, %s, for deletion\n", peer)
		return nil
	}
}
