// Command sarn is the server, the agent, the sidecar proxy and the command line of Sarn.
package main

import (
	"os"

	"github.com/sarnmesh/sarn/command"
)

func main() { os.Exit(command.Main(os.Args[1:])) }
