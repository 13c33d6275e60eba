// Package connectcmd holds the commands about the mesh: its certificate authority, and the bootstrap of Envoy proxies.
package connectcmd

import (
	"encoding/json"
	"flag"
	"os"

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
		{Path: "connect", Synopsis: "Run the mesh"},
		{Path: "connect ca", Synopsis: "Look after the certificate authority of the mesh"},
		common(verb.Verb{Path: "connect ca get-config", Synopsis: "Print the configuration of the certificate authority", Setup: getConfig}),
		common(verb.Verb{
			Path: "connect ca set-config", Synopsis: "Change the configuration of the certificate authority", Setup: setConfig,
			Help: "Replaces the configuration of the certificate authority by the one in a JSON file. A change of provider or of the root " +
				"key rotates the root.",
		}),
		{
			Path: "connect ca rotate", Synopsis: "Replace the root of the certificate authority", Setup: rotateRoot, Client: true,
			Help: "Makes a new root, makes it known, and lets it sign once every proxy has confirmed that it trusts it. Without " +
				"flags, says what happened and leaves the rest to the servers; with -watch, shows it.",
		},
		{
			Path: "connect expose", Synopsis: "Let callers in to a service by an ingress gateway", Setup: expose, Client: true, Server: true, Tenancy: true,
			Help: "Adds the service to a listener of the gateway's configuration entry, and an intention that allows the gateway to call " +
				"it. For a service that the listener has, replaces its hosts.",
		},
		{
			Path: "connect envoy", Args: "[-- ENVOY-ARGUMENTS...]", Synopsis: "Run or configure an Envoy proxy", Setup: envoy,
			Client: true, Tenancy: true,
			Help: "Makes the bootstrap configuration of an Envoy proxy for a service of the agent and runs Envoy with it. With -bootstrap, " +
				"prints the configuration and exits.",
		},
		{
			Path: "connect envoy pipe-bootstrap", Args: "PATH", Synopsis: "Hand a configuration to a program by a pipe", Setup: pipeBootstrap,
			Help: "Copies the standard input into the named pipe PATH, and removes it. For programs that start Envoy.",
		},
		{
			Path: "connect grpc", Args: "[-- PROGRAM [ARGUMENTS...]]", Synopsis: "Let a gRPC client into the mesh without a proxy", Setup: grpcClient,
			Client: true,
			Help: "Makes the bootstrap of a gRPC client that calls xds:///SERVICE in the name of a service of the agent, fetches the " +
				"certificate of that service and the trusted roots, and keeps them fresh while the program runs; without a program, " +
				"until it is interrupted. With -bootstrap, prints the bootstrap, which names the files in the folder, and exits.",
		},
	}
}

func getConfig(*flag.FlagSet) func(*verb.Call) error {
	return func(c *verb.Call) error {
		client, err := c.API()
		if err != nil {
			return err
		}
		conf, _, err := client.Connect().CAGetConfig(c.Query())
		if err != nil {
			return verb.Errorf("Error querying CA configuration: %w", err)
		}
		text, err := json.MarshalIndent(conf, "", "\t")
		if err != nil {
			return verb.Errorf("Error formatting CA configuration: %w", err)
		}
		c.Println(string(text))
		return nil
	}
}

func setConfig(f *flag.FlagSet) func(*verb.Call) error {
	file := f.String("config-file", "", "`file` with the configuration, JSON; required")
	force := f.Bool("force-without-cross-signing", false, "rotate the root even if the old one cannot vouch for the new one")
	return func(c *verb.Call) error {
		if *file == "" {
			return verb.Errorf("The -config-file flag is required")
		}
		data, err := os.ReadFile(*file)
		if err != nil {
			return verb.Errorf("Error reading config file: %w", err)
		}
		var conf api.CAConfig
		if err := json.Unmarshal(data, &conf); err != nil {
			return verb.Errorf("Error parsing config file: %w", err)
		}
		conf.ForceWithoutCrossSigning = conf.ForceWithoutCrossSigning || *force
		client, err := c.API()
		if err != nil {
			return err
		}
		if _, err := client.Connect().CASetConfig(&conf, c.Write()); err != nil {
			return verb.Errorf("Error setting CA configuration: %w", err)
		}
		c.Println("Configuration updated!")
		return nil
	}
}
