package initcmd

import (
	"context"
	"flag"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
	"github.com/sarnmesh/sarn/connect/intro"
)

// A made is a token as the API tells it.
type made struct {
	Token     string
	Server    bool
	ExpiresAt time.Time
}

// command is what to run on the machine that joins.
func (m *made) command() string { return "sarn init -join " + m.Token }

// ask has the servers make a token.
func ask(ctx context.Context, client *api.Client, server bool, ttl time.Duration) (*made, error) {
	out := new(made)
	_, err := client.Raw().Write("/v1/operator/join-token", map[string]any{"Server": server, "TTL": ttl.String()}, out, (&api.WriteOptions{}).WithContext(ctx))
	return out, err
}

func joinToken(f *flag.FlagSet) func(*verb.Call) error {
	server := f.Bool("server", false, "make a token for a server")
	client := f.Bool("client", false, "make a token for a client agent; the default")
	ttl := f.Duration("ttl", intro.DefaultJoinTTL, "`time` for which the token is good, from 1s to 24h")
	return func(c *verb.Call) error {
		if err := c.NoArgs(); err != nil {
			return err
		}
		if *server && *client {
			return verb.Usagef("Please provide only one of -server and -client")
		}
		conn, err := c.API()
		if err != nil {
			return err
		}
		m, err := ask(c.Context, conn, *server, *ttl)
		if err != nil {
			return verb.Errorf("Error making a join token: %w", err)
		}
		if c.WantsJSON() {
			return c.PrintJSON(m)
		}
		c.Println(m.command())
		kind := "client agent"
		if *server {
			kind = "server"
		}
		c.Warnf("\nRun this on the machine that is to join as a %s. It is good for one machine, until %s.", kind, m.ExpiresAt.UTC().Format(time.RFC3339))
		return nil
	}
}
