package clustercmd

import (
	"flag"
	"maps"
	"slices"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

// maxRelay is how many nodes may relay an answer to a keyring query.
const maxRelay = 5

func keyring(f *flag.FlagSet) func(*verb.Call) error {
	list := f.Bool("list", false, "list the keys")
	primary := f.Bool("list-primary", false, "list the primary keys")
	install := f.String("install", "", "`key` to add to the ring of every member")
	use := f.String("use", "", "`key` to encrypt with from now on")
	remove := f.String("remove", "", "`key` to take out of the ring of every member")
	relay := f.Int("relay-factor", 0, "`number` of members that relay each answer, up to 5")
	local := f.Bool("local-only", false, "list the keys of the agent alone")
	return func(c *verb.Call) error {
		actions := 0
		for _, given := range []bool{*list, *primary, *install != "", *use != "", *remove != ""} {
			if given {
				actions++
			}
		}
		switch {
		case actions == 0:
			return verb.Usagef("One action is required")
		case actions > 1:
			return verb.Errorf("Only a single action is allowed")
		case *relay < 0 || *relay > maxRelay:
			return verb.Errorf("Error parsing relay factor: Relay factor must be in range: [0, %d]", maxRelay)
		case *local && !*list && !*primary:
			return verb.Errorf("Error validating local-only: local-only can only be set for list requests")
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		op := client.Operator()
		write := c.Write()
		write.RelayFactor = uint8(*relay)
		switch {
		case *list || *primary:
			what := "installed encryption"
			if *primary {
				what = "installed primary encryption"
			}
			if !c.WantsJSON() {
				c.Printf("==> Gathering %s keys...\n", what)
			}
			q := c.Query()
			q.RelayFactor, q.LocalOnly = uint8(*relay), *local
			pools, err := op.KeyringList(q)
			if err != nil {
				return verb.Errorf("error: %w", err)
			}
			if c.WantsJSON() {
				return c.PrintJSON(pools)
			}
			for _, p := range pools {
				describePool(c, p, *primary)
			}
			return nil
		case *install != "":
			c.Println("==> Installing new gossip encryption key...")
			err = op.KeyringInstall(*install, write)
		case *use != "":
			c.Println("==> Changing primary gossip encryption key...")
			err = op.KeyringUse(*use, write)
		default:
			c.Println("==> Removing gossip encryption key...")
			err = op.KeyringRemove(*remove, write)
		}
		if err != nil {
			return verb.Errorf("error: %w", err)
		}
		return nil
	}
}

// describePool lists the keys of one gossip pool with the number of members that have them.
func describePool(c *verb.Call, p *api.KeyringResponse, primary bool) {
	pool := p.Datacenter + " (LAN)"
	if p.WAN {
		pool = "WAN"
	}
	c.Printf("\n%s:\n", pool)
	for _, node := range slices.Sorted(maps.Keys(p.Messages)) {
		c.Printf("  %s: %s\n", node, p.Messages[node])
	}
	keys := p.Keys
	if primary {
		keys = p.PrimaryKeys
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		c.Printf("  %s [%d/%d]\n", key, keys[key], p.NumNodes)
	}
}
